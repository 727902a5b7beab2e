package dispatch

import (
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// lane is one sender with waiting mail.
type lane struct {
	sender  envelope.Address
	mailbox *mailbox  // nil: no route at present
	due     time.Time // of the earliest message, as far as known; zero: nothing to do
	shown   string    // why the source was told it is parked
	pos     int       // in the mailbox's heap; -1: not in it
}

// mailbox is the unit Exchange Online limits: one login of one tenant.
type mailbox struct {
	route  envelope.Route
	tenant *tenant
	lanes  lanes // with something due now or later, earliest first
	active int   // attempts under way
	pace   pace
	day    day
	gate   gate

	ready bool      // stands in Dispatcher.ready
	wake  time.Time // when it stands in Dispatcher.waiting
	at    int       // its place there; -1: none
}

// tenant is what all its mailboxes share: a fault of the app registration, or a throttled organisation.
type tenant struct {
	name string
	gate gate
}

// gate closes a mailbox or a tenant for a while.
//
// Back-off: after a reply that asks this sender to slow down, nothing for 15 s, then 30 s, 1 min … up to 10 min while
// such replies go on. Park: after a failure that is nobody's mail's fault, a single probe with real mail after 1 min,
// 2 min, 4 min … up to 15 min; the first success opens the gate. Either costs no message an attempt while it lasts.
type gate struct {
	until   time.Time // closed before this time
	strikes int       // in a row
	parked  string    // why; empty: not parked
	probing bool      // the one attempt a parked gate lets through is under way
}

const (
	backOffFirst, backOffMost = 15 * time.Second, 10 * time.Minute
	probeFirst, probeMost     = time.Minute, 15 * time.Minute
)

func (g *gate) close(now time.Time, first, most time.Duration) {
	wait := first << min(g.strikes, 16)
	if wait > most || wait <= 0 {
		wait = most
	}
	g.strikes++
	// Up to a tenth longer, so that gates closed by one outage do not open in one moment.
	g.until = now.Add(wait + rand.N(wait/10+1))
}

// parkedFor returns why nothing of this mailbox can be sent, or "".
func (m *mailbox) parkedFor() string {
	if m.tenant.gate.parked != "" {
		return m.tenant.gate.parked
	}
	return m.gate.parked
}

// next returns the earliest time at which the mailbox may begin an attempt; ok is false while something else must happen
// first: mail arriving, a connection or a probe ending.
func (m *mailbox) next(now time.Time) (at time.Time, ok bool) {
	if len(m.lanes) == 0 || m.active >= max(1, m.route.Connections) {
		return at, false
	}
	if m.gate.probing || m.tenant.gate.probing {
		return at, false
	}
	at = m.lanes[0].due
	for _, t := range []time.Time{m.pace.next(now), m.day.next(now), m.gate.until, m.tenant.gate.until} {
		if t.After(at) {
			at = t
		}
	}
	return at, true
}

// probe marks the attempt about to begin, or just ended, as the one a parked gate lets through.
func (m *mailbox) probe(on bool) {
	if m.gate.parked != "" || !on {
		m.gate.probing = on
	}
	if m.tenant.gate.parked != "" || !on {
		m.tenant.gate.probing = on
	}
}

// gate opens and closes the gates as the verdict on an attempt asks. The caller holds mu.
func (d *Dispatcher) gate(m *mailbox, v verdict) {
	now, before := time.Now(), m.parkedFor()
	tenantBefore, probed, tenantProbed := m.tenant.gate.parked, m.gate.probing, m.tenant.gate.probing
	m.probe(false)
	who := []zap.Field{zap.String("tenant", m.route.Tenant), zap.String("login", string(m.route.Login))}
	switch {
	case !v.tried:
	case v.action == status.BackOffSender:
		m.gate.close(now, backOffFirst, backOffMost)
	case v.action == status.BackOffTenant:
		m.tenant.gate.close(now, backOffFirst, backOffMost)
	case v.action == status.ParkSender:
		d.park(&m.gate, now, v.reason, who...)
	case v.action == status.ParkTenant:
		d.park(&m.tenant.gate, now, v.reason, who[:1]...)
	case v.answered:
		d.open(&m.gate, now, who...)
		d.open(&m.tenant.gate, now, who[:1]...)
	default: // a failure of the network, say: a probe that told nothing
		if probed {
			m.gate.close(now, probeFirst, probeMost)
		}
		if tenantProbed {
			m.tenant.gate.close(now, probeFirst, probeMost)
		}
	}
	if tenantProbed || m.tenant.gate.parked != tenantBefore {
		for _, other := range d.mailboxes {
			if other.tenant == m.tenant {
				d.schedule(other, now)
			}
		}
	}
	if m.parkedFor() != before {
		d.showParks(m.tenant)
	}
}

// park closes a gate until a probe gets through, and tells about it once.
func (d *Dispatcher) park(g *gate, now time.Time, reason string, who ...zap.Field) {
	if g.parked == "" {
		g.strikes = 0
		d.log.Warn("parked: mail is kept until the cause is cured, and costs no attempt", append(who, zap.String("reply", reason))...)
	}
	g.parked = reason
	g.close(now, probeFirst, probeMost)
}

// open opens a parked gate, and forgets the strikes of one whose back-off is over.
func (d *Dispatcher) open(g *gate, now time.Time, who ...zap.Field) {
	if g.parked != "" {
		d.log.Info("resumed", who...)
		*g = gate{}
	} else if !g.until.After(now) {
		g.strikes = 0
	}
}

// showParks brings the source's view of the tenant's senders up to date. The caller holds mu.
func (d *Dispatcher) showParks(t *tenant) {
	for _, l := range d.lanes {
		if l.mailbox != nil && l.mailbox.tenant == t {
			d.show(l, l.mailbox.parkedFor())
		}
	}
}

// lanes is a heap by due time.
type lanes []*lane

func (h lanes) Len() int           { return len(h) }
func (h lanes) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h lanes) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].pos, h[j].pos = i, j }
func (h *lanes) Push(x any) {
	l := x.(*lane)
	l.pos = len(*h)
	*h = append(*h, l)
}
func (h *lanes) Pop() any {
	n := len(*h) - 1
	l := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	l.pos = -1
	return l
}

// waiting is a heap by wake time.
type waiting []*mailbox

func (h waiting) Len() int           { return len(h) }
func (h waiting) Less(i, j int) bool { return h[i].wake.Before(h[j].wake) }
func (h waiting) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }
func (h *waiting) Push(x any) {
	m := x.(*mailbox)
	m.at = len(*h)
	*h = append(*h, m)
}
func (h *waiting) Pop() any {
	n := len(*h) - 1
	m := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	m.at = -1
	return m
}
