package dispatch

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// outcomes are the values of relayd_deliveries_total's label outcome.
var outcomes = [...]string{"sent", "deferred", "failed", "parked", "uncertain"}

// metrics of the dispatcher. The label tenant is a configured name; the label sender a login, the first SenderLabels of
// them, parked ones first, the others together as "other".
type metrics struct {
	deliveries     *prometheus.CounterVec
	duration, wait *prometheus.HistogramVec
	duplicates     prometheus.Counter

	dispatcher        *Dispatcher
	parked, remaining *prometheus.Desc
}

func newMetrics(reg prometheus.Registerer, d *Dispatcher) *metrics {
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help,
			Buckets:                        []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 14400},
			NativeHistogramBucketFactor:    1.1,
			NativeHistogramMaxBucketNumber: 100,
		}, []string{"tenant"})
	}
	m := &metrics{
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_deliveries_total", Help: "Attempts at delivering a message, by what they came to.",
		}, []string{"tenant", "outcome"}),
		duration: histogram("relayd_delivery_duration_seconds", "Time one attempt took."),
		wait:     histogram("relayd_queue_wait_seconds", "Time from acceptance to the first attempt."),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_possible_duplicates_total", Help: "Messages sent again because an attempt ended between final dot and reply.",
		}),
		dispatcher: d,
		parked:     prometheus.NewDesc("relayd_sender_parked", "1 where the mailbox, or its mail to recipients outside, waits for a cure or for quota.", []string{"sender"}, nil),
		remaining:  prometheus.NewDesc("relayd_sender_recipients_remaining", "Recipients the mailbox has left in its rolling day.", []string{"sender"}, nil),
	}
	reg.MustRegister(m.deliveries, m.duration, m.wait, m.duplicates, m)
	return m
}

// tenant creates the series of a tenant, so that rates start at zero and not with the first event.
func (m *metrics) tenant(name string) {
	for _, o := range outcomes {
		m.deliveries.WithLabelValues(name, o)
	}
	m.duration.WithLabelValues(name)
	m.wait.WithLabelValues(name)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.parked
	ch <- m.remaining
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	type row struct {
		sender            string
		parked, remaining float64
	}
	merge := func(a, b row) row {
		return row{a.sender, max(a.parked, b.parked), min(a.remaining, b.remaining)}
	}
	d := m.dispatcher
	now := time.Now()
	d.mu.Lock()
	logins := make(map[string]row, len(d.mailboxes))
	for _, mb := range d.mailboxes {
		r := row{sender: mb.route.Login.Key(), remaining: math.Inf(1)}
		if mb.day.Limit > 0 {
			r.remaining = float64(mb.day.Remaining(now))
		}
		if mb.parkedFor() != "" {
			r.parked = 1
		}
		if other, ok := logins[r.sender]; ok { // one login in two tenants
			r = merge(r, other)
		}
		logins[r.sender] = r
	}
	for _, l := range d.lanes {
		if l.mailbox == nil && l.shown != "" { // parked since no rule has it any more: it has no login either
			logins[l.sender.Key()] = row{sender: l.sender.Key(), parked: 1, remaining: math.Inf(1)}
		}
	}
	d.mu.Unlock()
	rows := slices.SortedFunc(maps.Values(logins), func(a, b row) int {
		return cmp.Or(cmp.Compare(b.parked, a.parked), cmp.Compare(a.sender, b.sender))
	})
	if limit := d.opts.SenderLabels; len(rows) > limit {
		other := rows[limit]
		other.sender = "other"
		for _, r := range rows[limit:] {
			other = merge(other, r)
		}
		rows = append(rows[:limit], other)
	}
	for _, r := range rows {
		ch <- prometheus.MustNewConstMetric(m.parked, prometheus.GaugeValue, r.parked, r.sender)
		ch <- prometheus.MustNewConstMetric(m.remaining, prometheus.GaugeValue, r.remaining, r.sender)
	}
}
