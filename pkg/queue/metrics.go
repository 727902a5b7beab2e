package queue

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/pkg/envelope"
)

// scanShare bounds the time scrapes spend walking the index, which slows intake and dispatch: a walk that took 40 ms (a
// million entries) is repeated after 2 s at the soonest, a short one at every scrape.
const scanShare = 50

// metrics of the queue. relayd_queue_{messages,bytes,oldest_seconds} have the label state: queued, sending, deferred,
// uncertain, held, failed, parked.
type metrics struct {
	faults, reopened, quarantined, lost, interrupted, auditFailures prometheus.Counter

	queue                   *Queue
	messages, bytes, oldest *prometheus.Desc

	mu      sync.Mutex // guards what follows
	scanned time.Time
	took    time.Duration
	tally   map[envelope.State]*tally
}

type tally struct {
	messages int
	bytes    int64
	oldest   envelope.ID // ids are ordered by time
}

func newMetrics(reg prometheus.Registerer, q *Queue) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	label := []string{"state"}
	m := &metrics{
		queue:         q,
		faults:        counter("relayd_queue_faults_total", "Failed operations of the queue's storage."),
		reopened:      counter("relayd_queue_reopened_total", "Times the queue's storage was reopened after a fault."),
		quarantined:   counter("relayd_queue_quarantined_total", "Messages held because they do not match their hash, or crashed every attempt."),
		lost:          counter("relayd_queue_lost_total", "Messages gone from the queue's storage. Anything but 0 is an emergency."),
		interrupted:   counter("relayd_queue_interrupted_total", "Messages whose sending was cut off between the final dot and the outcome: possible duplicates."),
		auditFailures: counter("relayd_queue_audit_failures_total", "Streams found changed after a clean stop."),
		messages:      prometheus.NewDesc("relayd_queue_messages", "Messages in the queue.", label, nil),
		bytes:         prometheus.NewDesc("relayd_queue_bytes", "Octets of the messages in the queue.", label, nil),
		oldest:        prometheus.NewDesc("relayd_queue_oldest_seconds", "Age of the oldest message in the queue.", label, nil),
	}
	reg.MustRegister(m)
	return m
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.messages
	ch <- m.bytes
	ch <- m.oldest
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	for s, t := range m.current(now) {
		age := 0.0
		if t.messages > 0 {
			age = max(0, now.Sub(t.oldest.Time()).Seconds())
		}
		ch <- prometheus.MustNewConstMetric(m.messages, prometheus.GaugeValue, float64(t.messages), string(s))
		ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.GaugeValue, float64(t.bytes), string(s))
		ch <- prometheus.MustNewConstMetric(m.oldest, prometheus.GaugeValue, age, string(s))
	}
}

// current returns the newest count, which nobody changes any more.
func (m *metrics) current(now time.Time) map[envelope.State]*tally {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.scanned) >= scanShare*m.took {
		m.tally = m.queue.count()
		m.scanned, m.took = now, time.Since(now)
	}
	return m.tally
}

// count walks the index.
func (q *Queue) count() map[envelope.State]*tally {
	tallies := map[envelope.State]*tally{envelope.Parked: {}}
	for _, s := range stateNames {
		tallies[s] = &tally{}
	}
	q.index.walk(func(e *entry) {
		s := stateNames[e.state]
		if e.state.waiting() && e.lane.parked != "" {
			s = envelope.Parked
		}
		t := tallies[s]
		t.messages++
		t.bytes += e.size
		if t.oldest == "" || string(e.id[:]) < string(t.oldest) {
			t.oldest = e.id.unpack()
		}
	}, func() {})
	return tallies
}
