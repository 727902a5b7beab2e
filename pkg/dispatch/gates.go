package dispatch

import (
	"time"

	"go.uber.org/zap"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/dispatch/limit"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// news is what gates that moved ask for, once the mutex is free.
type news struct {
	tell    []status.Park
	mailbox bool // the mailbox's record is to be written
	tenant  bool // its tenant's is
}

// gate moves the gates as the verdict on an attempt asks, nil where it says nothing, and the lanes with them. The caller
// holds mu.
func (d *Dispatcher) gate(a *attempt, v *fate.Verdict) (n news) {
	m, t, now := a.mailbox, a.mailbox.tenant, time.Now()
	own, whole := [2]string{m.Gate.Reason(), m.External.Reason()}, [2]string{t.Gate.Reason(), t.External.Reason()}
	probed := t.Gate.Probe == a.number
	moved := limit.Move(&m.Mailbox, &t.Tenant, limit.Attempt{
		Number: a.number, Begun: a.begun, Start: a.start, Most: m.connections(), Workers: d.opts.Workers,
		Outside: func(to envelope.Address) bool { return d.opts.Router.External(t.name, to) },
	}, v, now)
	for _, e := range moved {
		d.moved(a, e, &n)
	}
	if own != [2]string{m.Gate.Reason(), m.External.Reason()} {
		d.placeAll(m)
	}
	changed := whole != [2]string{t.Gate.Reason(), t.External.Reason()}
	if !probed && !changed {
		return n
	}
	for _, other := range d.mailboxes {
		if other.tenant != t {
			continue
		}
		if changed {
			d.placeAll(other)
		}
		d.schedule(other, now)
	}
	return n
}

// placeAll lets the mailbox's lanes go where they go now. The caller holds mu.
func (d *Dispatcher) placeAll(m *mailbox) {
	for l := range m.members {
		d.place(l)
	}
}

// moved logs that a gate was parked, held or opened, and notes whom to tell and what to write.
func (d *Dispatcher) moved(a *attempt, e limit.Event, n *news) {
	m, t := a.mailbox, a.mailbox.tenant
	p := status.Park{Tenant: t.name, Since: e.Since, Quota: e.Quota, Resumed: e.Reply == nil, Err: e.Reply}
	who := []zap.Field{zap.String("tenant", t.name)}
	if e.Gate == &m.Gate || e.Gate == &m.External {
		n.mailbox = true
		p.Login = string(m.route.Login)
		who = append(who, zap.String("login", p.Login))
	} else {
		n.tenant = true
	}
	if e.Tell {
		n.tell = append(n.tell, p)
	}
	what := "parked: mail is kept until the cause is cured, and costs no attempt"
	switch r := e.Reply; {
	case r == nil:
		d.log.Info("resumed", who...)
		return
	case e.Quota:
		what = "held: mail is kept until some of the quota is back, and costs no attempt"
	}
	d.log.Warn(what, append(who, zap.String("stage", string(e.Reply.Stage)), zap.Int("code", e.Reply.Code), zap.Stringer("enhanced", e.Reply.Enhanced),
		zap.String("reply", e.Reply.Error()), zap.String("cause", e.Reply.Cause), zap.String("advice", e.Reply.Advice))...)
}

// outside takes out of due those recipients that a hold for recipients outside keeps back now, and says until when. The
// one attempt that goes with them when the time has come is the probe. The caller holds mu.
func (d *Dispatcher) outside(a *attempt, env *envelope.Envelope, due []int, now time.Time) (rest, held []int, until time.Time) {
	m, t := a.mailbox, a.mailbox.tenant
	var parked []*limit.Gate
	closed := false
	for _, g := range []*limit.Gate{&m.External, &t.External} {
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
	for _, g := range []*limit.Gate{&m.External, &m.tenant.External} {
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
