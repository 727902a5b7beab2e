package dispatch

import (
	"time"

	"go.uber.org/zap"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/dispatch/limit"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// signInMost is how long replies at AUTH may ask a sender to slow down before it is a park: a service that cannot check
// a token for an hour needs a person's eye.
const signInMost = time.Hour

// news is what gates that moved ask for, once the mutex is free.
type news struct {
	tell    []status.Park
	mailbox bool // the mailbox's record is to be written
	tenant  bool // its tenant's is
}

// gate opens and closes the gates as the verdict on an attempt asks. v is nil where nothing was tried that says anything.
// The caller holds mu.
//
//	park, hold, back-off     close the gate of their scope
//	a recipient accepted     opens all: mailbox and tenant, and the hold for recipients outside, if it was one
//	a reply from behind AUTH opens back-offs, and parks that began before that point
//	anything else            closes again what it was the probe of; in a tenant's slow start, the tenant
//
// What we refuse ourselves is no reply, and opens nothing.
func (d *Dispatcher) gate(a *attempt, v *fate.Verdict) (n news) {
	m, t, now := a.mailbox, a.mailbox.tenant, time.Now()
	gates := m.gates()
	reasons, probed := [len(gates)]string{}, [len(gates)]bool{}
	for i, g := range gates {
		reasons[i] = g.Reason()
		if probed[i] = g.Probe == a.number; probed[i] {
			g.Probe = 0
		}
	}
	if v != nil {
		own := d.gateMailbox(a, v, probed[1], now, &n)
		d.gateTenant(a, v, probed[0], own, now, &n)
		d.gateExternal(a, v, probed[2] || probed[3], now, &n)
	}
	t.ramp.End(a.start, v != nil && v.Reached, d.opts.Workers)
	changed := func(i int) bool { return gates[i].Reason() != reasons[i] }
	if probed[0] || changed(0) || changed(2) {
		for _, other := range d.mailboxes {
			if other.tenant == t {
				d.placeAll(other, changed(0) || changed(2))
				d.schedule(other, now)
			}
		}
	} else {
		d.placeAll(m, changed(1) || changed(3))
	}
	return n
}

// placeAll lets the mailbox's lanes go where they go now. The caller holds mu.
func (d *Dispatcher) placeAll(m *mailbox, changed bool) {
	if !changed {
		return
	}
	for l := range m.members {
		d.place(l)
	}
}

// opens reports whether v opens the gate.
func opens(g *limit.Gate, v *fate.Verdict) bool {
	if g.Parked() && (g.Quota || fate.Behind(g.Reply.Stage)) {
		return v.Accepted > 0
	}
	return v.Reached
}

// gateMailbox moves the mailbox's own gate. own: the verdict was about the mailbox.
func (d *Dispatcher) gateMailbox(a *attempt, v *fate.Verdict, probed bool, now time.Time, n *news) (own bool) {
	m := a.mailbox
	backOff := v.First(status.BackOffSender)
	switch {
	case v.First(status.ParkSender) != nil:
		d.park(a, &m.gate, v.First(status.ParkSender), false, now, n)
	case v.First(status.HoldSender) != nil:
		d.park(a, &m.gate, v.First(status.HoldSender), true, now, n)
	case backOff != nil:
		fresh, lasts := m.gate.BackOff(a.begun, now)
		if fresh && backOff.Code == 432 {
			m.conns.Halve(now, m.connections())
		}
		if lasts >= signInMost && (backOff.Stage == status.StageAuth || backOff.Stage == status.StageToken) {
			d.park(a, &m.gate, backOff, false, now, n)
		}
	case opens(&m.gate, v):
		d.open(a, &m.gate, n)
	case probed && v.First(status.ParkTenant) == nil && v.First(status.BackOffTenant) == nil:
		m.gate.Again(now)
	}
	return v.First(status.ParkSender) != nil || v.First(status.HoldSender) != nil || backOff != nil
}

// gateTenant moves the tenant's gate. After it was closed the tenant begins slowly.
func (d *Dispatcher) gateTenant(a *attempt, v *fate.Verdict, probed, own bool, now time.Time, n *news) {
	t := a.mailbox.tenant
	switch park := v.First(status.ParkTenant); {
	case park != nil:
		if t.gate.News(a.begun) || !t.gate.Parked() {
			t.ramp.Start()
		}
		d.park(a, &t.gate, park, false, now, n)
	case v.First(status.BackOffTenant) != nil:
		if fresh, _ := t.gate.BackOff(a.begun, now); fresh {
			t.ramp.Start()
		}
	case opens(&t.gate, v):
		d.open(a, &t.gate, n)
	case own: // its own fault says nothing about the tenant: the next may try
	case probed:
		t.gate.Again(now)
		t.ramp.Start()
	case t.ramp.Has(a.start) && !v.Reached:
		t.gate.BackOff(a.begun, now)
		t.ramp.Start()
	}
}

// gateExternal moves the holds for recipients outside.
func (d *Dispatcher) gateExternal(a *attempt, v *fate.Verdict, probed bool, now time.Time, n *news) {
	m, t := a.mailbox, a.mailbox.tenant
	sender, tenant := v.First(status.HoldSenderExternal), v.First(status.HoldTenantExternal)
	if sender != nil {
		d.park(a, &m.external, sender, true, now, n)
	}
	if tenant != nil {
		d.park(a, &t.external, tenant, true, now, n)
	}
	if sender != nil || tenant != nil || !m.external.Parked() && !t.external.Parked() {
		return
	}
	outside := false
	for k, r := range v.Tried {
		outside = outside || v.Tried[k].State == envelope.Sent && d.opts.Router.External(t.name, r.Address)
	}
	for _, g := range []*limit.Gate{&m.external, &t.external} {
		switch {
		case !g.Parked():
		case outside:
			d.open(a, g, n)
		case probed:
			g.Again(now)
		}
	}
}

// scope returns what the gate is one of, for log and people.
func (d *Dispatcher) scope(a *attempt, g *limit.Gate) (status.Park, []zap.Field) {
	m, t := a.mailbox, a.mailbox.tenant
	p, who := status.Park{Tenant: t.name}, []zap.Field{zap.String("tenant", t.name)}
	if g == &m.gate || g == &m.external {
		p.Login = string(m.route.Login)
		who = append(who, zap.String("login", p.Login))
	}
	return p, who
}

// note asks for the record of the gate's owner to be written.
func (n *news) note(a *attempt, g *limit.Gate) {
	if g == &a.mailbox.gate || g == &a.mailbox.external {
		n.mailbox = true
	} else {
		n.tenant = true
	}
}

// park closes a gate until a probe gets through, and has it told once.
func (d *Dispatcher) park(a *attempt, g *limit.Gate, reply *status.Error, quota bool, now time.Time, n *news) {
	fresh, tell := g.Park(a.begun, now, reply, quota)
	if !fresh {
		return
	}
	n.note(a, g)
	p, who := d.scope(a, g)
	what := "parked: mail is kept until the cause is cured, and costs no attempt"
	if quota {
		what = "held: mail is kept until some of the quota is back, and costs no attempt"
	}
	d.log.Warn(what, append(who, zap.String("stage", string(reply.Stage)), zap.Int("code", reply.Code), zap.Stringer("enhanced", reply.Enhanced),
		zap.String("reply", reply.Error()), zap.String("cause", reply.Cause), zap.String("advice", reply.Advice))...)
	if tell {
		p.Since, p.Quota, p.Err = g.Since, quota, reply
		n.tell = append(n.tell, p)
	}
}

// open opens a gate and forgets its strikes.
func (d *Dispatcher) open(a *attempt, g *limit.Gate, n *news) {
	since, quota := g.Since, g.Quota
	was, tell := g.Open(a.begun)
	if !was {
		return
	}
	n.note(a, g)
	p, who := d.scope(a, g)
	d.log.Info("resumed", who...)
	if tell {
		p.Since, p.Quota, p.Resumed = since, quota, true
		n.tell = append(n.tell, p)
	}
}

// outside takes out of due those recipients that a hold for recipients outside keeps back now, and says until when. The
// one attempt that goes with them when the time has come is the probe. The caller holds mu.
func (d *Dispatcher) outside(a *attempt, env *envelope.Envelope, due []int, now time.Time) (rest, held []int, until time.Time) {
	m, t := a.mailbox, a.mailbox.tenant
	var parked []*limit.Gate
	closed := false
	for _, g := range []*limit.Gate{&m.external, &t.external} {
		if !g.Parked() {
			continue
		}
		parked = append(parked, g)
		next := g.Until
		if g.Probe != 0 { // soon known
			next = now.Add(probeTakes)
		}
		closed = closed || next.After(now)
		until = later(until, next)
	}
	if len(parked) == 0 {
		return due, nil, until
	}
	for _, i := range due {
		if d.opts.Router.External(t.name, env.Recipients[i].Address) {
			held = append(held, i)
		} else {
			rest = append(rest, i)
		}
	}
	if closed || len(held) == 0 {
		return rest, held, until
	}
	for _, g := range parked {
		g.Probe = a.number
	}
	return due, nil, until
}

// probeTakes is how long mail rests that waits for the outcome of a probe under way.
const probeTakes = time.Minute

// heldUntil returns when recipients outside are probed next, after an attempt at them was refused; the zero time: now.
func (m *mailbox) heldUntil() (until time.Time) {
	for _, g := range []*limit.Gate{&m.external, &m.tenant.external} {
		if g.Parked() {
			until = later(until, g.Until)
		}
	}
	return until
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
