package limit

import (
	"time"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Mailbox is what a mailbox's replies have closed.
type Mailbox struct {
	Gate        Gate
	External    Gate // held for recipients outside the organisation only
	Connections Connections
}

// Tenant is what those of any of its mailboxes have.
type Tenant struct {
	Gate     Gate
	External Gate // held for recipients outside the organisation only
	Ramp     Ramp
}

// Attempt is what the gates want to know of one.
type Attempt struct {
	Number  uint64 // as in Gate.Probe
	Begun   time.Time
	Start   uint64                      // what Ramp.Begin returned
	Most    int                         // connections configured
	Workers int                         // past so many attempts at once a tenant's slow start is over
	Outside func(envelope.Address) bool // whether a recipient is outside the organisation
}

// Event is a gate that was parked or held, or is not any more.
type Event struct {
	Gate  *Gate
	Since time.Time // when it was closed
	Quota bool
	Tell  bool          // people are to be told
	Reply *status.Error // why it was closed; nil: it was opened
}

// signInMost is how long replies at AUTH may ask a sender to slow down before it is a park: a service that cannot check
// a token for an hour needs a person's eye.
const signInMost = time.Hour

// move is one attempt's verdict at work on the gates.
type move struct {
	Attempt
	mailbox *Mailbox
	tenant  *Tenant
	verdict *fate.Verdict
	now     time.Time
	events  []Event
}

// Move opens and closes the gates as the verdict on an attempt asks. The verdict is nil where nothing was tried that says
// anything.
//
//	park, hold, back-off      close the gate of their scope
//	a recipient accepted      opens all: mailbox, tenant, and the hold for recipients outside, if it was one
//	a reply from behind AUTH  opens back-offs, and parks that began before that point
//	anything else             closes again what it was the probe of; in a tenant's slow start, the tenant
//
// What we refuse ourselves is no reply, and opens nothing.
func Move(mailbox *Mailbox, tenant *Tenant, a Attempt, v *fate.Verdict, now time.Time) []Event {
	m := move{Attempt: a, mailbox: mailbox, tenant: tenant, verdict: v, now: now}
	probed := func(g *Gate) bool {
		was := g.Probe == a.Number
		if was {
			g.Probe = 0
		}
		return was
	}
	own, whole := probed(&mailbox.Gate), probed(&tenant.Gate)
	outsideOwn, outsideWhole := probed(&mailbox.External), probed(&tenant.External)
	if v != nil {
		about := m.moveMailbox(own)
		m.moveTenant(whole, about)
		m.moveExternal(outsideOwn || outsideWhole)
	}
	tenant.Ramp.End(a.Start, v != nil && v.Reached, a.Workers)
	return m.events
}

// opens reports whether the verdict opens the gate.
func (m *move) opens(g *Gate) bool {
	if g.Parked() && (g.Quota || fate.Behind(g.Reply.Stage)) {
		return m.verdict.Accepted > 0
	}
	return m.verdict.Reached
}

// moveMailbox moves the mailbox's own gate. about: the verdict was about the mailbox.
func (m *move) moveMailbox(probed bool) (about bool) {
	v, g := m.verdict, &m.mailbox.Gate
	park, hold, backOff := v.First(status.ParkSender), v.First(status.HoldSender), v.First(status.BackOffSender)
	switch {
	case park != nil:
		m.park(g, park, false)
	case hold != nil:
		m.park(g, hold, true)
	case backOff != nil:
		news, lasts := g.BackOff(m.Begun, m.now)
		if news {
			g.AtLeast(m.now, backOff.Wait)
		}
		if news && backOff.Code == 432 {
			m.mailbox.Connections.Halve(m.now, m.Most)
		}
		if lasts >= signInMost && (backOff.Stage == status.StageAuth || backOff.Stage == status.StageToken) {
			m.park(g, backOff, false)
		}
	case m.opens(g):
		m.open(g)
	case probed:
		g.Again(m.now)
	}
	return park != nil || hold != nil || backOff != nil
}

// moveTenant moves the tenant's gate. After it was closed the tenant begins slowly.
func (m *move) moveTenant(probed, aboutMailbox bool) {
	t, g, v := m.tenant, &m.tenant.Gate, m.verdict
	switch park, backOff := v.First(status.ParkTenant), v.First(status.BackOffTenant); {
	case park != nil:
		m.park(g, park, false)
		t.Ramp.Start()
	case backOff != nil:
		if news, _ := g.BackOff(m.Begun, m.now); news {
			g.AtLeast(m.now, backOff.Wait)
			t.Ramp.Start()
		}
	case m.opens(g):
		m.open(g)
	case aboutMailbox: // its own fault says nothing about the tenant: the next may try
	case probed:
		g.Again(m.now)
		t.Ramp.Start()
	case t.Ramp.Has(m.Start) && !v.Reached:
		g.BackOff(m.Begun, m.now)
		t.Ramp.Start()
	}
}

// moveExternal moves the holds for recipients outside.
func (m *move) moveExternal(probed bool) {
	v := m.verdict
	sender, tenant := v.First(status.HoldSenderExternal), v.First(status.HoldTenantExternal)
	if sender != nil {
		m.park(&m.mailbox.External, sender, true)
	}
	if tenant != nil {
		m.park(&m.tenant.External, tenant, true)
	}
	gates := [...]*Gate{&m.mailbox.External, &m.tenant.External}
	if sender != nil || tenant != nil || !gates[0].Parked() && !gates[1].Parked() {
		return
	}
	taken := false
	for _, r := range v.Tried {
		taken = taken || r.State == envelope.Sent && m.Outside(r.Address)
	}
	for _, g := range gates {
		switch {
		case !g.Parked():
		case taken:
			m.open(g)
		case probed:
			g.Again(m.now)
		}
	}
}

func (m *move) park(g *Gate, reply *status.Error, quota bool) {
	if fresh, tell := g.Park(m.Begun, m.now, reply, quota); fresh {
		m.events = append(m.events, Event{Gate: g, Since: g.Since, Quota: quota, Tell: tell, Reply: reply})
	}
}

func (m *move) open(g *Gate) {
	since, quota := g.Since, g.Quota
	if was, tell := g.Open(m.Begun); was {
		m.events = append(m.events, Event{Gate: g, Since: since, Quota: quota, Tell: tell})
	}
}
