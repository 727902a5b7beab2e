package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/dispatch/report"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// claimRetry is how long a sender rests when the queue itself fails; bodyRetry how long a message, whose body it could not
// give, so that the sender's others have their turn.
const (
	claimRetry = time.Second
	bodyRetry  = time.Minute
)

// course is what is to be done with a claim.
type course uint8

const (
	giveBack course = iota // nothing may be tried now
	rest                   // all that is due waits for a hold to end
	inform                 // its sender is to be told of failures, and no more
	attend                 // an attempt
)

// serve makes one attempt at the lane's first message and gives the connection back.
func (d *Dispatcher) serve(ctx context.Context, a *attempt) {
	claim, err := d.opts.Source.Claim(ctx, a.lane.sender, time.Now())
	var v *fate.Verdict
	took := time.Duration(0)
	todo := d.admit(a, &claim, err)
	if todo == attend {
		d.cover(ctx, a.mailbox)
		v, took = d.try(ctx, a, &claim)
	}
	tried := v != nil
	n := d.judged(a, v)
	if tried {
		d.teller.Attempt(&claim, v, a.route.Tenant+"/"+string(a.route.Login), a.todo, took)
	}
	for _, p := range n.tell {
		d.teller.Park(p)
	}
	owes := len(fate.Owed(&claim.Progress)) > 0
	switch {
	case claim.Envelope == nil:
	case todo == inform, owes && (todo == rest || tried && v.Release && !a.more): // those due may wait for long
		d.inform(ctx, &claim, todo == rest)
	case todo == rest:
		d.opts.Source.Rest(claim.Envelope, a.until)
	case tried && v.Release && v.Waits(): // some or all for a hold; those refused for its sake go without the others now
		d.opts.Source.Rest(claim.Envelope, v.Progress.Due)
	case todo == attend && !tried:
		d.opts.Source.Rest(claim.Envelope, time.Now().Add(bodyRetry))
	case !tried || v.Release:
		d.opts.Source.Release(claim.Envelope, claim.Progress)
	default:
		d.settle(ctx, claim.Envelope, d.teller.Conclude(ctx, &claim, v, report.Terms{Lifetime: a.rules.Lifetime, WarnAfter: a.warnAfter, More: a.more}))
	}
	if n.mailbox {
		d.save(ctx, a.mailbox, true)
	}
	if n.tenant {
		d.saveTenant(ctx, a.mailbox.tenant)
	}
	d.end(a, tried)
}

// inform has the claimed message's sender told of the failures owed. resting: somebody is due, and may not be tried; where
// telling fails, that one is not to have the message claimed again at once.
func (d *Dispatcher) inform(ctx context.Context, claim *envelope.Claim, resting bool) {
	p := claim.Progress
	fate.Sum(&p)
	d.teller.Owe(ctx, claim, &p)
	if resting && len(fate.Owed(&p)) > 0 {
		d.opts.Source.Rest(claim.Envelope, time.Now().Add(bodyRetry))
		return
	}
	d.settle(ctx, claim.Envelope, p)
}

// admit takes in what the source said, and decides what is to be done with it.
func (d *Dispatcher) admit(a *attempt, claim *envelope.Claim, err error) course {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if err != nil {
		if !a.lane.failing {
			d.log.Warn("claim failed: the sender rests a second, and so on until it works", zap.String("sender", string(a.lane.sender)), zap.Error(err))
		}
		a.lane.failing = true
		d.breathe(a.lane, now)
		return giveBack
	}
	a.lane.failing = false
	if !claim.Next.IsZero() {
		d.wake(a.lane, claim.Next)
	}
	env, p := claim.Envelope, &claim.Progress
	if env == nil || d.stopped {
		return giveBack
	}
	due := a.rules.Due(env, p, now)
	if len(due) == 0 {
		return inform
	}
	due, a.held, a.until = d.outside(a, env, due, now)
	if len(due) == 0 {
		a.until = untilAnother(env, p, a.held, a.until)
		return rest
	}
	todo := fate.Pick(env, due, stricter(a.mailbox.most(now), p.Part), a.mailbox.route.RecipientsPerDomain)
	if !a.mailbox.day.Reserve(now, len(todo)) {
		if len(fate.Owed(p)) > 0 && a.mailbox.waits(now) {
			return rest
		}
		return giveBack
	}
	a.todo, a.day = todo, len(todo)
	return attend
}

// untilAnother returns until, or when a recipient that no hold keeps back is due, if that is before.
func untilAnother(env *envelope.Envelope, p *envelope.Progress, held []int, until time.Time) time.Time {
	for _, i := range p.Open(env) {
		if !slices.Contains(held, i) && p.Results[i].Due.Before(until) { // it has a result: without one it would be due now
			until = p.Results[i].Due
		}
	}
	return until
}

// breathe keeps the lane back for a moment, whatever the source has named as due meanwhile. The caller holds mu.
func (d *Dispatcher) breathe(l *lane, now time.Time) {
	l.rest = now.Add(claimRetry)
	d.wake(l, now)
	if l.pos >= 0 {
		d.enter(l)
	}
}

// judged takes in what an attempt came to; nil: nothing was tried that says anything. The gates have moved when it
// returns: the source names what is due again at once, and a closed one must be closed by then.
func (d *Dispatcher) judged(a *attempt, v *fate.Verdict) news {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, now, counted := a.mailbox, time.Now(), 0
	if v != nil {
		counted = v.Counted
		if v.Part > 0 {
			m.part, m.partUntil = v.Part, now.Add(partLife)
		}
	}
	m.day.Settle(now, a.day, counted)
	n := d.gate(a, v)
	if v != nil && v.Waits() {
		a.until = later(m.heldUntil(), now)
		v.HoldUntil(a.until)
	}
	a.more = v != nil && v.GoesOn(now) && !m.waits(now)
	return n
}

// end gives the attempt's connection back.
func (d *Dispatcher) end(a *attempt, tried bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	a.lane.active--
	a.mailbox.active--
	a.mailbox.tenant.active--
	a.mailbox.pace.End(now, tried)
	d.schedule(a.mailbox, now)
	d.admitHeld(a.mailbox.tenant)
}

// try delivers to the recipients chosen of one claimed message and judges what came of it. The verdict is nil where the
// queue could not give the body: that is no fault of the message, and says nothing.
func (d *Dispatcher) try(ctx context.Context, a *attempt, claim *envelope.Claim) (*fate.Verdict, time.Duration) {
	env, p, tenant := claim.Envelope, claim.Progress, a.route.Tenant
	log := d.log.With(zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)),
		zap.String("tenant", tenant), zap.String("login", string(a.route.Login)), zap.Int("attempt", fate.Attempt(env, &p, a.todo)))
	started := time.Now()
	out, broken := d.deliver(ctx, a, claim)
	now := time.Now()
	took := now.Sub(started)
	d.metrics.duration.WithLabelValues(tenant).Observe(took.Seconds())
	if broken != nil && ctx.Err() == nil && !errors.Is(broken, envelope.ErrCorrupt) {
		log.Warn("body could not be read: the message rests a minute", zap.Error(broken))
		d.mu.Lock()
		d.breathe(a.lane, now)
		d.mu.Unlock()
		return nil, took
	}
	v := a.rules.Judge(fate.Case{
		Envelope: env, Before: p, Tried: a.todo, Held: a.held, Outcome: out, Now: now, Stopping: ctx.Err() != nil, Probe: a.probe,
		External: func(i int) bool { return d.opts.Router.External(tenant, env.Recipients[i].Address) },
	})
	if p.Attempts == 0 && len(p.Results) == 0 && !v.Release { // what is released comes back for its first attempt
		d.metrics.wait.WithLabelValues(tenant).Observe(started.Sub(env.Received).Seconds())
	}
	if v.Outcome != "" {
		d.metrics.deliveries.WithLabelValues(tenant, v.Outcome).Inc()
	}
	if v.Resent > 0 {
		d.metrics.duplicates.Inc()
		log.Warn("possible duplicate: resending a message whose last attempt ended between final dot and reply", zap.Int("recipients", v.Resent))
	}
	if v.Progress.State.Final() || v.Progress.State == envelope.Held {
		d.mu.Lock()
		delete(d.panics, env.ID)
		d.mu.Unlock()
	}
	logVerdict(log.With(zap.Int("recipients", len(a.todo)), zap.Duration("took", took)), &v, out)
	return &v, took
}

// settle makes an outcome durable. It outlives a cut-off attempt by a little: what was sent should be on the disk before
// the process ends.
func (d *Dispatcher) settle(ctx context.Context, env *envelope.Envelope, p envelope.Progress) {
	ctx, cancel := report.Grace(ctx)
	defer cancel()
	if err := d.opts.Source.Settle(ctx, env, p); err != nil {
		d.log.Error("outcome not recorded: the message will be sent again after a restart", zap.String("id", string(env.ID)), zap.Error(err))
	}
}

// maxPanics is how often a message may crash an attempt before it is held for a person to look at.
const maxPanics = 3

// body is a stored message on its way out. It notes the moment before the final dot, which comes when the message has been
// read, and why it could not be.
type body struct {
	io.Reader
	mark  func()
	ended bool // it has been read to its end
	err   error
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	switch {
	case err == io.EOF:
		if b.mark != nil {
			b.mark()
			b.mark = nil
		}
	case err != nil:
		b.err = err
	}
	return n, err
}

// deliver calls the deliverer and turns a panic into a failure of this one message; behind the final dot nobody knows what
// became of it. broken is why the body could not be read.
func (d *Dispatcher) deliver(ctx context.Context, a *attempt, claim *envelope.Claim) (out status.Outcome, broken error) {
	env, b := claim.Envelope, &body{}
	b.mark = func() {
		b.ended = true
		if claim.Mark != nil {
			claim.Mark()
		}
	}
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		id := claim.Envelope.ID
		d.log.Error("attempt panicked", zap.String("id", string(id)), zap.Any("panic", r), zap.Stack("stack"))
		d.mu.Lock()
		d.panics[id]++
		poison := d.panics[id] >= maxPanics
		d.mu.Unlock()
		e := &status.Error{Code: 451, Enhanced: status.Enhanced{4, 3, 0}, Text: "internal error"}
		if b.ended {
			e.Action, e.Stage = status.Uncertain, status.StageDot
		}
		if poison {
			e.Err = fate.ErrPoison
		}
		out, broken = status.Outcome{Errs: make([]*status.Error, len(a.todo))}, nil
		for i := range out.Errs {
			out.Errs[i] = e
		}
	}()
	if d.opts.Rewrite == nil {
		b.Reader = claim.Body(ctx)
	} else if env, b.Reader, broken = d.opts.Rewrite(&a.route, env, func() io.Reader { return claim.Body(ctx) }); broken != nil {
		return unread(broken, len(a.todo)), broken
	}
	out = d.opts.Deliverer.Deliver(ctx, &a.route, env, a.todo, b)
	if len(out.Errs) != len(a.todo) {
		panic(fmt.Sprintf("deliverer: %d results for %d recipients", len(out.Errs), len(a.todo)))
	}
	return out, b.err
}

// unread is the outcome for n recipients of a message that could not be read before anything was sent.
func unread(err error, n int) status.Outcome {
	out := status.Outcome{Errs: make([]*status.Error, n)}
	for i := range out.Errs {
		out.Errs[i] = &status.Error{Code: 451, Enhanced: status.Enhanced{4, 3, 0}, Text: "the stored message cannot be read", Err: err}
	}
	return out
}

// logVerdict writes the one line an attempt has in the log.
func logVerdict(log *zap.Logger, v *fate.Verdict, out status.Outcome) {
	reply := zap.Skip()
	if v.Reply != nil {
		reply = zap.String("reply", v.Reply.Error())
	}
	switch p := &v.Progress; {
	case p.State == envelope.Held:
		log.Error("held", zap.String("reply", p.Reason))
	case v.Release && v.Outcome == "parked":
		log.Debug("not sent: parked", reply)
	case v.Release:
		log.Info("not sent: stopping")
	case p.State == envelope.Sent:
		log.Info("sent", zap.String("reply", out.Reply))
	case p.State == envelope.Failed:
		log.Warn("failed", zap.Int("accepted", v.Accepted), reply, causes(out))
	case v.Outcome == "sent":
		log.Info("sent in part: the rest is next", zap.Int("accepted", v.Accepted), zap.String("reply", out.Reply))
	case v.Outcome == "":
		log.Info("too many recipients at once: next in smaller parts", zap.Int("part", p.Part), reply)
	default:
		log.Warn(v.Outcome, zap.Int("accepted", v.Accepted), zap.Time("due", p.Due), reply, causes(out))
	}
}

// causes is what lies behind the first refusal, for the log only.
func causes(out status.Outcome) zap.Field {
	for _, e := range out.Errs {
		if e != nil && e.Err != nil {
			return zap.Error(e.Err)
		}
	}
	return zap.Skip()
}
