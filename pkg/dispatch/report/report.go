// Package report has people told of what becomes of mail, and keeps word of a failure owed to its sender until it has
// been told.
//
// A failure is noted as owed before the reporter is asked, and struck out behind. A crash in between asks the reporter
// again, which answers the same for the same; nobody is tried again, and nobody is left without word. The failures of a
// message that goes in parts stay owed until its last part of the moment has gone, and are told in one. Where a park caused
// by other mail comes between two parts, they stay owed until it is over, or probed with this message.
package report

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Reporter tells people of what became of their mail.
type Reporter interface {
	// Bounce has env's sender told that the recipients with the given indices failed. What the sender wants to know is the
	// reporter's to judge: written is the id of the notification now in the queue, or "", where none is to be written. An
	// error says that it could not be stored now; it is asked again, perhaps after a success that a crash kept from being
	// recorded.
	Bounce(ctx context.Context, claim *envelope.Claim, p *envelope.Progress, failed []int) (written envelope.ID, err error)
	// Delay has env's sender told that those recipients still wait, and until when they are tried. It is asked once, and
	// answers as Bounce does.
	Delay(ctx context.Context, claim *envelope.Claim, p *envelope.Progress, open []int, until time.Time) (written envelope.ID, err error)
	// Park says that a sender or tenant was parked or resumed. It must not block.
	Park(status.Park)
}

// Notes makes an interim outcome durable, and the claim goes on. It fails only when ctx ends.
type Notes interface {
	Note(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error
}

// Teller tells the reporter, and whoever wants the steps.
type Teller struct {
	notes    Notes
	reporter Reporter
	step     func(envelope.Step)
	log      *zap.Logger
}

// New returns a Teller. reporter and step may be nil: nobody is told then, and nothing is owed.
func New(notes Notes, reporter Reporter, step func(envelope.Step), log *zap.Logger) *Teller {
	return &Teller{notes: notes, reporter: reporter, step: step, log: log}
}

// settleGrace is how long recording an outcome may still take once attempts are cut off.
const settleGrace = 5 * time.Second

// Grace returns a context that ends five seconds after ctx: what was sent should be on the disk before the process ends.
func Grace(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(settleGrace, cancel) })
	return longer, func() { stop(); cancel() }
}

// reportRetry is how long a message waits whose sender could not be told.
const reportRetry = time.Minute

// Terms are those on which a message's sender is told.
type Terms struct {
	Lifetime  time.Duration // how long the message is tried
	WarnAfter time.Duration // its age at which a delay is told of; 0: never
	More      bool          // a further part goes at once: word of failures waits for it
}

// Conclude takes in what an attempt came to, and has the message's sender told where that is due.
//
// A failure is owed to the sender until it has been told. That is noted first, with whatever else the attempt came to, so
// that a crash between telling and recording tells the same once more, under the same id, and tries nobody again. Where
// more parts go at once nothing is told yet: what is settled says what is owed.
//
// It returns what is to be settled.
func (t *Teller) Conclude(ctx context.Context, claim *envelope.Claim, v *fate.Verdict, terms Terms) envelope.Progress {
	env, p := claim.Envelope, v.Progress
	switch {
	case t.reporter == nil:
	case p.State == envelope.Held: // nothing more happens to it by itself: what earlier parts left is told
		t.Owe(ctx, claim, &p)
	case env.ReversePath == "": // nobody there: the reporter may know others who want to hear of it
		if len(v.Failed) > 0 {
			t.bounce(ctx, claim, &p, v.Failed)
		}
	default:
		for _, i := range v.Failed {
			p.Results[i].Owed = true
		}
		if terms.More || len(fate.Owed(&p)) == 0 {
			break
		}
		note := p
		note.State, note.Due = envelope.Deferred, p.Changed
		if !t.note(ctx, env, note) {
			postpone(&p)
			break
		}
		t.Owe(ctx, claim, &p)
	}
	t.warn(ctx, claim, &p, terms)
	return p
}

// note makes owed failures durable.
func (t *Teller) note(ctx context.Context, env *envelope.Envelope, p envelope.Progress) bool {
	ctx, cancel := Grace(ctx)
	defer cancel()
	err := t.notes.Note(ctx, env, p)
	if err != nil {
		t.log.Error("failure not noted: its sender is told later", zap.String("id", string(env.ID)), zap.Error(err))
	}
	return err == nil
}

// Owe has the message's sender told of the failures owed, and strikes them out of p. Where that does not work they stay,
// and the message is due in a minute.
func (t *Teller) Owe(ctx context.Context, claim *envelope.Claim, p *envelope.Progress) {
	owed := fate.Owed(p)
	if len(owed) == 0 {
		return
	}
	if t.reporter != nil && !t.bounce(ctx, claim, p, owed) {
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

func (t *Teller) bounce(ctx context.Context, claim *envelope.Claim, p *envelope.Progress, failed []int) bool {
	env := claim.Envelope
	written, err := t.guard(env, func() (envelope.ID, error) {
		ctx, cancel := Grace(ctx)
		defer cancel()
		return t.reporter.Bounce(ctx, claim, p, failed)
	})
	if err != nil {
		t.log.Warn("sender could not be told of a failure", zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)), zap.Error(err))
		return false
	}
	if written != "" {
		t.record(envelope.Step{ID: env.ID, What: envelope.StepBounced, State: p.State, Reply: string(written), Recipients: stepResults(env, p, failed)})
	}
	return true
}

// warn has the message's sender told, once, that it still waits.
func (t *Teller) warn(ctx context.Context, claim *envelope.Claim, p *envelope.Progress, terms Terms) {
	env, open := claim.Envelope, p.Open(claim.Envelope)
	if t.reporter == nil || terms.WarnAfter <= 0 || p.Warned || env.ReversePath == "" || len(open) == 0 ||
		p.State == envelope.Held || p.Changed.Sub(env.Received) < terms.WarnAfter {
		return
	}
	p.Warned = true
	written, err := t.guard(env, func() (envelope.ID, error) {
		ctx, cancel := Grace(ctx)
		defer cancel()
		return t.reporter.Delay(ctx, claim, p, open, env.Received.Add(terms.Lifetime))
	})
	if err != nil {
		t.log.Warn("sender could not be told of a delay", zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)), zap.Error(err))
		return
	}
	if written != "" {
		t.record(envelope.Step{ID: env.ID, What: envelope.StepWarned, State: p.State, Due: p.Due, Reply: string(written), Recipients: stepResults(env, p, open)})
	}
}

// guard keeps a reporter that a message crashes from taking the relay with it.
func (t *Teller) guard(env *envelope.Envelope, f func() (envelope.ID, error)) (written envelope.ID, err error) {
	defer func() {
		if r := recover(); r != nil {
			t.log.Error("reporter panicked", zap.String("id", string(env.ID)), zap.Any("panic", r), zap.Stack("stack"))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f()
}

// Park tells that a sender or tenant was parked or resumed.
func (t *Teller) Park(p status.Park) {
	if t.reporter != nil {
		t.reporter.Park(p)
	}
}

// record tells of a step, as of now.
func (t *Teller) record(s envelope.Step) {
	if t.step != nil {
		s.At = time.Now()
		t.step(s)
	}
}

// Attempt tells of an attempt that came to something: by whom, at which recipients, and how long it took.
func (t *Teller) Attempt(claim *envelope.Claim, v *fate.Verdict, by string, tried []int, took time.Duration) {
	if t.step == nil || v.Release && v.Outcome == "" {
		return
	}
	p := &v.Progress
	s := envelope.Step{
		ID: claim.Envelope.ID, What: envelope.StepAttempt, State: p.State, By: by,
		Attempt: fate.Attempt(claim.Envelope, &claim.Progress, tried), Took: took, Due: p.Due, Recipients: v.Tried,
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
	t.record(s)
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
