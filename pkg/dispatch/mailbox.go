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
	rest    time.Time // not before this: it had its turn, or the queue failed
	turn    uint64    // number of its last turn
	failing bool      // its last claim failed
	shown   string    // why the source was told it is parked
	pos     int       // in the mailbox's heap; -1: not in it
}

// at returns when the lane's turn may come.
func (l *lane) at() time.Time {
	if l.rest.After(l.due) {
		return l.rest
	}
	return l.due
}

// mailbox is the unit Exchange Online limits: one login of one tenant.
type mailbox struct {
	route  envelope.Route
	tenant *tenant
	lanes  lanes // with something due now or later, earliest first
	reload int   // number of the reload whose limits it has
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
//
// An attempt that began before the gate last closed is no news: of three attempts that meet one throttling, one counts,
// and the success of an old session cures nothing.
type gate struct {
	until   time.Time // closed before this time
	closed  time.Time // when it closed last
	strikes int       // in a row
	parked  string    // why; empty: not parked
	probe   *attempt  // the one attempt a parked gate lets through, while it is under way
}

const (
	backOffFirst, backOffMost = 15 * time.Second, 10 * time.Minute
	probeFirst, probeMost     = time.Minute, 15 * time.Minute
)

// news reports whether an attempt begun then says anything the gate does not know.
func (g *gate) news(begun time.Time) bool { return begun.After(g.closed) }

func (g *gate) close(now time.Time, first, most time.Duration) {
	wait := min(first<<min(g.strikes, 16), most)
	g.strikes++
	g.closed = now
	// Up to a tenth longer, so that gates closed by one outage do not open in one moment.
	g.until = now.Add(wait + rand.N(wait/10+1))
}

// probeAt lets a parked gate be probed at now. A back-off goes on: no change of ours cures that.
func (g *gate) probeAt(now time.Time) {
	if g.parked != "" {
		g.until = now
	}
}

// limit takes over a route's limits: the first after a reload as they are, of the others what is stricter, since senders
// may share a mailbox and disagree. Only those with waiting mail are asked.
func (m *mailbox) limit(route *envelope.Route, reload int) {
	if m.reload != reload {
		m.route, m.reload = *route, reload
	} else {
		m.route.Connections = min(m.route.Connections, route.Connections)
		m.route.MessagesPerMinute = stricter(m.route.MessagesPerMinute, route.MessagesPerMinute)
		m.route.RecipientsPerDay = stricter(m.route.RecipientsPerDay, route.RecipientsPerDay)
	}
	m.pace.limit, m.day.limit = m.route.MessagesPerMinute, m.route.RecipientsPerDay
}

// stricter returns the lower of two limits, of which 0 is none.
func stricter(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// idle reports whether the mailbox could be forgotten and nothing would be lost with it.
func (m *mailbox) idle(now time.Time) bool {
	return len(m.lanes) == 0 && m.active == 0 && !m.ready && m.gate.parked == "" && !m.gate.until.After(now) &&
		m.pace.idle(now) && m.day.idle(now)
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
	if m.gate.probe != nil || m.tenant.gate.probe != nil {
		return at, false
	}
	paced, ok1 := m.pace.next(now, m.active)
	daily, ok2 := m.day.next(now)
	at = m.lanes[0].at()
	for _, t := range [...]time.Time{paced, daily, m.gate.until, m.tenant.gate.until} {
		if t.After(at) {
			at = t
		}
	}
	return at, ok1 && ok2
}

// probe marks an attempt about to begin as the one its parked gates let through.
func (m *mailbox) probe(a *attempt) {
	for _, g := range []*gate{&m.gate, &m.tenant.gate} {
		if g.parked != "" {
			g.probe = a
		}
	}
}

// gate opens and closes the gates as the verdict on an attempt asks. The caller holds mu.
func (d *Dispatcher) gate(a *attempt, v verdict) {
	m, t := a.mailbox, a.mailbox.tenant
	now, before, tenantBefore := time.Now(), m.parkedFor(), t.gate.parked
	probed, tenantProbed := m.gate.probe == a, t.gate.probe == a
	if probed {
		m.gate.probe = nil
	}
	if tenantProbed {
		t.gate.probe = nil
	}
	who := []zap.Field{zap.String("tenant", t.name), zap.String("login", string(m.route.Login))}
	switch {
	case !v.tried:
	case v.action == status.BackOffSender:
		m.gate.backOff(a.begun, now)
	case v.action == status.BackOffTenant:
		t.gate.backOff(a.begun, now)
	case v.action == status.ParkSender:
		d.park(&m.gate, a.begun, now, v.reason, who...)
	case v.action == status.ParkTenant:
		d.park(&t.gate, a.begun, now, v.reason, who[:1:1]...)
	case v.answered:
		d.open(&m.gate, a.begun, who...)
		d.open(&t.gate, a.begun, who[:1:1]...)
	default: // a failure of the network, say: a probe that told nothing
		if probed {
			m.gate.close(now, probeFirst, probeMost)
		}
		if tenantProbed {
			t.gate.close(now, probeFirst, probeMost)
		}
	}
	if tenantProbed || t.gate.parked != tenantBefore {
		for _, other := range d.mailboxes {
			if other.tenant == t {
				d.schedule(other, now)
			}
		}
	}
	if m.parkedFor() != before {
		d.showParks(t)
	}
}

func (g *gate) backOff(begun, now time.Time) {
	if g.news(begun) {
		g.close(now, backOffFirst, backOffMost)
	}
}

// park closes a gate until a probe gets through, and tells about it once.
func (d *Dispatcher) park(g *gate, begun, now time.Time, reason string, who ...zap.Field) {
	if g.parked == "" {
		d.log.Warn("parked: mail is kept until the cause is cured, and costs no attempt", append(who, zap.String("reply", reason))...)
		*g = gate{}
	} else if !g.news(begun) {
		return
	}
	g.parked = reason
	g.close(now, probeFirst, probeMost)
}

// open opens a gate and forgets its strikes.
func (d *Dispatcher) open(g *gate, begun time.Time, who ...zap.Field) {
	if !g.news(begun) {
		return
	}
	if g.parked != "" {
		d.log.Info("resumed", who...)
	}
	*g = gate{}
}

// showParks brings the source's view of the tenant's senders up to date. The caller holds mu.
func (d *Dispatcher) showParks(t *tenant) {
	for _, l := range d.lanes {
		if l.mailbox != nil && l.mailbox.tenant == t {
			d.show(l, l.mailbox.parkedFor())
		}
	}
}

// lanes is a heap by due time; a lane that has had its turn stands behind all that were due before that, so the senders
// of one mailbox take turns however much mail one of them has.
type lanes []*lane

func (h lanes) Len() int { return len(h) }
func (h lanes) Less(i, j int) bool {
	if c := h[i].at().Compare(h[j].at()); c != 0 {
		return c < 0
	}
	return h[i].turn < h[j].turn
}
func (h lanes) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].pos, h[j].pos = i, j }
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
