package dispatch

import (
	"container/heap"
	"time"

	"relayd/pkg/dispatch/limit"
	"relayd/pkg/envelope"
)

// mailbox is the unit Exchange Online limits: one login of one tenant.
type mailbox struct {
	key     string // Route.Mailbox
	route   envelope.Route
	tenant  *tenant
	lanes   lanes              // with something due now or later, earliest first
	members map[*lane]struct{} // all whose home or spare it is
	away    int                // members whose home it is that go by their fallback
	reload  int                // number of the reload whose limits it has
	active  int                // attempts under way
	pace    limit.Pace
	day     limit.Day
	limit.Mailbox

	probeRest  time.Time     // no probe with mail that goes another way before this
	part       int           // recipients in one transaction, where a reply taught that more are too many
	partUntil  time.Time     // when that is forgotten
	saving     chan struct{} // has room while nobody writes the record
	recorded   bool          // there is one
	unsavedTil time.Time     // the memory failed: attempts do not wait for it until then

	ready bool      // stands in Dispatcher.ready or tenant.held
	wake  time.Time // when it stands in Dispatcher.waiting
	at    int       // its place there; -1: none
}

// tenant is what all its mailboxes share: a fault of the app registration, or a throttled organisation.
type tenant struct {
	name string
	limit.Tenant
	active int           // attempts under way
	held   []*mailbox    // may send but for the tenant's limits, longest waiting first
	saving chan struct{} // has room while nobody writes the record
}

// partLife is how long a mailbox remembers that it may have fewer recipients in a transaction than configured.
const partLife = 24 * time.Hour

// enlist returns the mailbox a route names, a new one where it is not known, with the route's limits. The caller holds mu.
func (d *Dispatcher) enlist(route *envelope.Route) *mailbox {
	now := time.Now()
	t := d.tenants[route.Tenant]
	if t == nil {
		t = &tenant{name: route.Tenant, saving: make(chan struct{}, 1)}
		d.tenants[route.Tenant] = t
		d.metrics.tenant(route.Tenant)
		d.restoreTenant(t, now)
	}
	key := route.Mailbox()
	m := d.mailboxes[key]
	if m == nil {
		m = &mailbox{key: key, tenant: t, at: -1, reload: -1, members: map[*lane]struct{}{}, saving: make(chan struct{}, 1)}
		if !d.began.IsZero() {
			m.pace.Start(d.began)
		}
		d.mailboxes[key] = m
		d.restoreMailbox(m, now)
	}
	m.limit(route, d.reloads)
	return m
}

// limit takes over a route's limits: the first after a reload as they are, of the others what is stricter, since senders
// may share a mailbox and disagree. Only those with waiting mail are asked.
func (m *mailbox) limit(route *envelope.Route, reload int) {
	r := &m.route
	if m.reload != reload {
		*r, m.reload = *route, reload
	} else {
		r.Connections = min(r.Connections, route.Connections)
		r.MessagesPerMinute = stricter(r.MessagesPerMinute, route.MessagesPerMinute)
		r.RecipientsPerDay = stricter(r.RecipientsPerDay, route.RecipientsPerDay)
		r.RecipientsPerMessage = stricter(r.RecipientsPerMessage, route.RecipientsPerMessage)
		r.RecipientsPerDomain = stricter(r.RecipientsPerDomain, route.RecipientsPerDomain)
	}
	m.pace.Limit, m.day.Limit = r.MessagesPerMinute, r.RecipientsPerDay
}

// stricter returns the lower of two limits, of which 0 is none.
func stricter(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// connections returns how many are configured.
func (m *mailbox) connections() int { return max(1, m.route.Connections) }

// most returns how many recipients one transaction may have, as far as the mailbox is concerned; 0: no limit.
func (m *mailbox) most(now time.Time) int {
	most := stricter(m.route.RecipientsPerMessage, m.day.Limit)
	if now.Before(m.partUntil) {
		most = stricter(most, m.part)
	}
	return most
}

// idle reports whether the mailbox could be forgotten and nothing would be lost with it.
func (m *mailbox) idle(now time.Time) bool {
	return len(m.members) == 0 && m.active == 0 && !m.ready && m.at < 0 && m.Gate.Idle(now) && m.External.Idle(now) &&
		m.Connections.Idle(now, m.connections()) && !m.partUntil.After(now) && m.pace.Idle(now) && m.day.Idle(now)
}

func (t *tenant) idle(now time.Time) bool {
	return t.active == 0 && len(t.held) == 0 && t.Gate.Idle(now) && t.External.Idle(now)
}

// inhabited reports whether the tenant has a mailbox. The caller holds mu.
func (d *Dispatcher) inhabited(t *tenant) bool {
	for _, m := range d.mailboxes {
		if m.tenant == t {
			return true
		}
	}
	return false
}

// gates are all that may keep the mailbox's mail back, the widest first.
func (m *mailbox) gates() [4]*limit.Gate {
	return [4]*limit.Gate{&m.tenant.Gate, &m.Gate, &m.tenant.External, &m.External}
}

// parkedFor returns why nothing of this mailbox, or nothing to recipients outside, can be sent, or "".
func (m *mailbox) parkedFor() string {
	for _, g := range m.gates() {
		if g.Parked() {
			return g.Reason()
		}
	}
	return ""
}

// stuck reports whether nothing of this mailbox can be sent until a person has acted.
func (m *mailbox) stuck() bool {
	return m.Gate.Parked() && !m.Gate.Quota || m.tenant.Gate.Parked() && !m.tenant.Gate.Quota
}

// waits reports whether nothing of this mailbox goes until a park, a hold or its day is over.
func (m *mailbox) waits(now time.Time) bool {
	day, _ := m.day.Next(now)
	return m.Gate.Parked() || m.tenant.Gate.Parked() || day.After(now)
}

// next returns the earliest time at which the mailbox may begin an attempt; ok is false while something else must happen
// first: mail arriving, a connection or a probe ending.
func (m *mailbox) next(now time.Time) (at time.Time, ok bool) {
	astray := m.away > 0 && m.stuck()
	switch {
	case m.Gate.Probe != 0 || m.tenant.Gate.Probe != 0:
		return at, false
	case len(m.lanes) > 0:
		if at = m.lanes[0].at(); astray && m.probeRest.Before(at) {
			at = m.probeRest
		}
	case astray:
		at = m.probeRest
	default:
		return at, false
	}
	paced, ok1 := m.pace.Next(now, m.active)
	daily, ok2 := m.day.Next(now)
	connected, ok3 := m.Connections.Next(now, m.active, m.connections())
	for _, t := range [...]time.Time{paced, daily, connected, m.Gate.Until, m.tenant.Gate.Until} {
		at = later(at, t)
	}
	return at, ok1 && ok2 && ok3
}

// first returns the most urgent lane that is due: of those that go by the mailbox, else of those that go another way while
// it is parked. nil: none is.
func (m *mailbox) first(now time.Time) (first *lane) {
	if len(m.lanes) > 0 && !m.lanes[0].at().After(now) {
		return m.lanes[0]
	}
	for l := range m.members {
		if l.home == m && l.mailbox != m && !l.due.IsZero() && !l.at().After(now) && (first == nil || l.at().Before(first.at())) {
			first = l
		}
	}
	return first
}

// waiting is a heap by wake time.
type waiting []*mailbox

func (h *waiting) add(m *mailbox)    { heap.Push(h, m) }
func (h *waiting) remove(m *mailbox) { heap.Remove(h, m.at) }

func (h waiting) Len() int           { return len(h) }
func (h waiting) Less(i, j int) bool { return h[i].wake.Before(h[j].wake) }
func (h waiting) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }

// Push implements heap.Interface.
func (h *waiting) Push(x any) {
	m := x.(*mailbox)
	m.at = len(*h)
	*h = append(*h, m)
}

// Pop implements heap.Interface.
func (h *waiting) Pop() any {
	n := len(*h) - 1
	m := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	m.at = -1
	return m
}
