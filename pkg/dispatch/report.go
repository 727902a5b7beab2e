package dispatch

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// reportRetry is how long a message waits whose sender could not be told.
const reportRetry = time.Minute

// conclude records what an attempt came to, and has the message's sender told where that is due.
//
// A failure is owed to the sender until it has been told. That is noted first, so that a crash between telling and
// recording tells the same once more, under the same id, and never tries the failed recipients again.
func (d *Dispatcher) conclude(ctx context.Context, a *attempt, claim *envelope.Claim, v *fate.Verdict) {
	env, p := claim.Envelope, v.Progress
	switch {
	case d.opts.Reporter == nil || p.State == envelope.Held:
	case env.ReversePath == "": // nobody there: the reporter may know others who want to hear of it
		if len(v.Failed) > 0 {
			d.bounce(ctx, claim, &p, v.Failed)
		}
	case len(v.Failed) > 0:
		for _, i := range v.Failed {
			p.Results[i].Owed = true
		}
		note := p
		note.State, note.Due = envelope.Deferred, p.Changed
		if !d.note(ctx, env, note) {
			postpone(&p)
			break
		}
		d.owe(ctx, claim, &p)
	default:
		d.owe(ctx, claim, &p)
	}
	d.warn(ctx, a, claim, &p)
	d.settle(ctx, env, p)
}

// note makes owed failures durable.
func (d *Dispatcher) note(ctx context.Context, env *envelope.Envelope, p envelope.Progress) bool {
	ctx, cancel := grace(ctx)
	defer cancel()
	err := d.opts.Source.Note(ctx, env, p)
	if err != nil {
		d.log.Error("failure not noted: its sender is told later", zap.String("id", string(env.ID)), zap.Error(err))
	}
	return err == nil
}

// owe has the message's sender told of the failures owed, and strikes them out of p. Where that does not work they stay,
// and the message is due in a minute.
func (d *Dispatcher) owe(ctx context.Context, claim *envelope.Claim, p *envelope.Progress) {
	owed := fate.Owed(p)
	if len(owed) == 0 {
		return
	}
	if d.opts.Reporter != nil && !d.bounce(ctx, claim, p, owed) {
		postpone(p)
		return
	}
	for _, i := range owed {
		p.Results[i].Owed = false
	}
}

// postpone makes a message that is owed something due again in a minute, at the latest.
func postpone(p *envelope.Progress) {
	due := time.Now().Add(reportRetry)
	if p.State.Final() {
		p.State, p.Due = envelope.Deferred, due
	}
	if due.Before(p.Due) {
		p.Due = due
	}
}

func (d *Dispatcher) bounce(ctx context.Context, claim *envelope.Claim, p *envelope.Progress, failed []int) bool {
	env := claim.Envelope
	err := d.guard(env, func() error {
		ctx, cancel := grace(ctx)
		defer cancel()
		return d.opts.Reporter.Bounce(ctx, claim, p, failed)
	})
	if err != nil {
		d.log.Warn("sender could not be told of a failure", zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)), zap.Error(err))
		return false
	}
	d.record(envelope.Step{ID: env.ID, What: envelope.StepBounced, State: p.State, Recipients: stepResults(env, p, failed)})
	return true
}

// warn has the message's sender told, once, that it still waits.
func (d *Dispatcher) warn(ctx context.Context, a *attempt, claim *envelope.Claim, p *envelope.Progress) {
	env, open := claim.Envelope, p.Open(claim.Envelope)
	d.mu.Lock()
	after := d.warnAfter
	d.mu.Unlock()
	if d.opts.Reporter == nil || after <= 0 || p.Warned || env.ReversePath == "" || len(open) == 0 ||
		p.State == envelope.Held || p.Changed.Sub(env.Received) < after {
		return
	}
	p.Warned = true
	err := d.guard(env, func() error {
		ctx, cancel := grace(ctx)
		defer cancel()
		return d.opts.Reporter.Delay(ctx, claim, p, open, env.Received.Add(a.rules.Lifetime))
	})
	if err != nil {
		d.log.Warn("sender could not be told of a delay", zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)), zap.Error(err))
		return
	}
	d.record(envelope.Step{ID: env.ID, What: envelope.StepWarned, State: p.State, Due: p.Due, Recipients: stepResults(env, p, open)})
}

// guard keeps a reporter that a message crashes from taking the relay with it.
func (d *Dispatcher) guard(env *envelope.Envelope, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			d.log.Error("reporter panicked", zap.String("id", string(env.ID)), zap.Any("panic", r), zap.Stack("stack"))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f()
}

func (d *Dispatcher) reportPark(p status.Park) {
	if d.opts.Reporter != nil {
		d.opts.Reporter.Park(p)
	}
}

// record tells of a step, as of now.
func (d *Dispatcher) record(s envelope.Step) {
	if d.opts.Record != nil {
		s.At = time.Now()
		d.opts.Record(s)
	}
}

// recordAttempt tells of an attempt that came to something.
func (d *Dispatcher) recordAttempt(a *attempt, claim *envelope.Claim, v *fate.Verdict, took time.Duration) {
	if d.opts.Record == nil || v.Release && v.Outcome == "" {
		return
	}
	p := &v.Progress
	s := envelope.Step{
		ID: claim.Envelope.ID, What: envelope.StepAttempt, State: p.State, By: a.route.Tenant + "/" + string(a.route.Login),
		Attempt: fate.Attempt(claim.Envelope, &claim.Progress, a.todo), Took: took, Due: p.Due, Recipients: v.Tried,
	}
	switch {
	case p.State == envelope.Held:
		s.Reply = p.Reason
	case v.Reply != nil:
		s.Reply, s.Advice = v.Reply.Error(), v.Reply.Advice
	case len(v.Tried) > 0:
		s.Reply = v.Tried[0].Reply
	}
	if v.Release {
		s.State, s.Due = envelope.Parked, time.Time{}
	}
	d.record(s)
}

func stepResults(env *envelope.Envelope, p *envelope.Progress, indices []int) []envelope.StepResult {
	out := make([]envelope.StepResult, len(indices))
	for k, i := range indices {
		out[k] = envelope.StepResult{Address: env.Recipients[i].Address, State: envelope.Queued}
		if i < len(p.Results) {
			out[k].State, out[k].Reply = p.Results[i].State, p.Results[i].Reply
		}
	}
	return out
}
