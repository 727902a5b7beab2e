package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// failing answers the given recipients with a failure, and accepts the others.
func failing(which ...int) func(context.Context, *try) status.Outcome {
	return func(_ context.Context, try *try) status.Outcome {
		out := accept(try)
		for k, i := range try.open {
			if slices.Contains(which, i) {
				out.Errs[k] = reply(status.StageRcpt, 550, status.Fail, "unknown user")
			}
		}
		return out
	}
}

// A failure is noted as owed before anyone is told of it, and told of once.
func TestBounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{}
		r := newRig(t, withReporter(report))
		r.exchange.answer = failing(1)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 3, 0)
		report.before = func() {
			p := r.queue.progress(m)
			if p.State != envelope.Deferred || p.Due.After(time.Now()) || !p.Results[1].Owed || p.Results[1].State != envelope.Failed || p.Results[0].State != envelope.Sent {
				t.Errorf("when told, the record is %+v", p)
			}
		}
		r.run()
		after(time.Minute)
		if len(report.bounces()) != 1 || !slices.Equal(report.bounces()[0].who, []int{1}) || len(m.noted) != 1 {
			t.Errorf("told %v, noted %d times", report.bounces(), len(m.noted))
		}
		if p := r.queue.progress(m); p.State != envelope.Failed || p.Results[1].Owed || len(m.history) != 1 {
			t.Errorf("in the end %+v", p)
		}
	})
}

// What could not be told is told later, by the minute, without another attempt at it; what else is open goes on.
func TestBounceIsOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{broken: errors.New("queue is full")}
		r := newRig(t, withReporter(report))
		fail := failing(1)
		r.exchange.answer = func(ctx context.Context, try *try) status.Outcome {
			out := fail(ctx, try)
			for k, i := range try.open {
				if i == 2 && len(r.exchange.all()) < 3 {
					out.Errs[k] = reply(status.StageRcpt, 450, status.Retry, "busy")
				}
			}
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 3, 0)
		r.run()
		after(10*time.Minute + 10*time.Second)
		p := r.queue.progress(m)
		if tries := r.exchange.all(); !p.Results[1].Owed || p.State != envelope.Deferred || len(tries) != 3 || !slices.Equal(tries[2].open, []int{2}) {
			t.Errorf("while it cannot be told: %d attempts, %+v", len(tries), p)
		}
		if n := len(m.history); n < 9 || n > 13 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		report.fail(nil)
		after(2 * time.Minute)
		if p := r.queue.progress(m); len(report.bounces()) != 1 || p.Results[1].Owed {
			t.Errorf("told %v, %+v", report.bounces(), p)
		}
		after(time.Hour)
		if p := r.queue.progress(m); p.State != envelope.Failed || p.Results[2].State != envelope.Sent || len(report.bounces()) != 1 {
			t.Errorf("in the end told %v, %+v", report.bounces(), p)
		}
	})
}

// A crash between telling and recording tells the same again, and tries nobody.
func TestBounceAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{}
		r := newRig(t, withReporter(report))
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 2, 0)
		m.progress = envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: time.Now(), Results: []envelope.Result{
			{State: envelope.Sent, Attempts: 1}, {State: envelope.Failed, Attempts: 1, Owed: true, Reply: "550 no"},
		}}
		r.run()
		after(time.Minute)
		if len(report.bounces()) != 1 || len(r.exchange.all()) != 0 {
			t.Errorf("told %v, %d attempts", report.bounces(), len(r.exchange.all()))
		}
		if p := r.queue.progress(m); p.State != envelope.Failed || p.Results[1].Owed || p.Results[1].Reply != "550 no" {
			t.Errorf("in the end %+v", p)
		}
	})
}

// Where the note fails nobody is told yet; where the reporter panics the relay lives; where nobody reports nothing is owed.
func TestBounceOddities(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*rig, *fakeReporter, *mail)
		cure    func(*rig, *fakeReporter)
		none    bool // no reporter
		state   envelope.State
		noted   int
		bounced int // before the cure
		later   int // after it
	}{
		{name: "the note fails", change: func(r *rig, _ *fakeReporter, _ *mail) { r.queue.noteless = true },
			cure:  func(r *rig, _ *fakeReporter) { r.queue.noteless = false },
			state: envelope.Deferred, later: 1},
		{name: "the reporter panics", change: func(_ *rig, f *fakeReporter, _ *mail) { f.panics = true },
			cure:  func(_ *rig, f *fakeReporter) { f.panics = false },
			state: envelope.Deferred, noted: 1, later: 1},
		{name: "no reporter", none: true, state: envelope.Failed},
		{name: "no reverse-path: told, and nothing is owed", change: func(_ *rig, _ *fakeReporter, m *mail) { m.env.ReversePath = "" },
			state: envelope.Failed, bounced: 1, later: 1},
		{name: "no reverse-path, and it cannot be told", change: func(_ *rig, f *fakeReporter, m *mail) { m.env.ReversePath, f.broken = "", errors.New("no") },
			state: envelope.Failed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				report := &fakeReporter{}
				r := newRig(t, func(o *Options) {
					if !tt.none {
						o.Reporter = report
					}
				})
				r.exchange.answer = failing(0)
				r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
				m := r.queue.put(hot, 1, 0)
				if tt.change != nil {
					tt.change(r, report, m)
				}
				r.run()
				after(time.Second)
				if p := r.queue.progress(m); p.State != tt.state || len(m.noted) != tt.noted || len(report.bounces()) != tt.bounced || p.Results[0].Owed != (tt.state == envelope.Deferred) {
					t.Errorf("%v, noted %d, told %d, owed %v", p.State, len(m.noted), len(report.bounces()), p.Results[0].Owed)
				}
				if tt.cure != nil {
					r.queue.mu.Lock()
					report.mu.Lock()
					tt.cure(r, report)
					report.mu.Unlock()
					r.queue.mu.Unlock()
				}
				after(3 * time.Minute)
				if got := r.queue.state(m); got != envelope.Failed || len(report.bounces()) != tt.later || len(r.exchange.all()) != 1 {
					t.Errorf("in the end %v, told %d times, %d attempts", got, len(report.bounces()), len(r.exchange.all()))
				}
			})
		})
	}
}

// Mail that outlives its lifetime bounces; a delay is told once, in time, and not to nobody.
func TestDelayAndExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{}
		r := newRig(t, func(o *Options) { o.Reporter, o.DelayWarning = report, 4*time.Hour })
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := each(try, reply(status.StageRcpt, 450, status.Retry, "busy"))
			if try.open[0] == 0 {
				out.Errs[0] = nil
			}
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m, null := r.queue.put(hot, 3, 0), r.queue.put(hot, 3, 0)
		null.env.ReversePath = ""
		began := time.Now()
		r.run()
		after(3 * time.Hour)
		if len(report.delays()) != 0 {
			t.Errorf("told of a delay after three hours: %v", report.delays())
		}
		after(6 * 24 * time.Hour)
		if len(report.delays()) != 1 || report.delays()[0].id != m.env.ID || !slices.Equal(report.delays()[0].who, []int{1, 2}) || report.delays()[0].until.Sub(began) != 5*24*time.Hour {
			t.Errorf("told of delays %v", report.delays())
		}
		if p := r.queue.progress(m); p.State != envelope.Failed || !p.Warned {
			t.Errorf("in the end %v, warned %v", p.State, p.Warned)
		}
		var who []envelope.ID
		for _, b := range report.bounces() {
			who = append(who, b.id)
		}
		if !slices.Contains(who, m.env.ID) || len(report.bounces()) != 2 || !slices.Equal(report.bounces()[0].who, []int{1, 2}) {
			t.Errorf("told of failures %v", report.bounces())
		}
	})
}

func TestDelayWarningCanChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{broken: errors.New("full")}
		r := newRig(t, withReporter(report))
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome { return refuse(try, status.Retry, "busy") }
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(24 * time.Hour)
		if len(report.delays()) != 0 {
			t.Error("told of a delay though nobody asked for it")
		}
		r.d.WarnAfter(time.Hour)
		after(24 * time.Hour)
		if len(report.delays()) != 1 || !r.queue.progress(m).Warned {
			t.Errorf("told %d times; one that could not be told is not told again", len(report.delays()))
		}
	})
}

// Each attempt that came to something is a step, with who, what and why; one that tried nothing is none.
func TestSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var steps []envelope.Step
		report := &fakeReporter{}
		r := newRig(t, func(o *Options) {
			o.Reporter, o.DelayWarning = report, time.Minute
			o.Record = func(s envelope.Step) {
				mu.Lock()
				defer mu.Unlock()
				steps = append(steps, s)
			}
		})
		round := 0
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			advance(2 * time.Second)
			out := accept(try)
			switch round++; round {
			case 1:
				return each(try, reply(status.StageAuth, 535, status.ParkSender, "no"))
			case 2:
				out.Errs[0] = reply(status.StageRcpt, 550, status.Fail, "unknown")
				out.Errs[1] = reply(status.StageRcpt, 450, status.Retry, "busy")
			}
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Login: "relay@contoso.com", Connections: 3})
		m := r.queue.put(hot, 3, 0)
		r.run()
		r.d.notify(hot, time.Now()) // no mail: no step
		after(10 * time.Minute)
		by := "contoso/relay@contoso.com"
		to := func(i int, s envelope.State, reply string) envelope.StepResult {
			return envelope.StepResult{Address: envelope.Address(fmt.Sprintf("r%d@example.com", i)), State: s, Reply: reply}
		}
		want := []envelope.Step{
			{What: envelope.StepAttempt, State: envelope.Parked, By: by, Attempt: 1, Took: 2 * time.Second, Reply: "auth: 535 no", Advice: "advice on no", Recipients: []envelope.StepResult{
				to(0, envelope.Parked, "auth: 535 no"), to(1, envelope.Parked, "auth: 535 no"), to(2, envelope.Parked, "auth: 535 no")}},
			{What: envelope.StepAttempt, State: envelope.Deferred, By: by, Attempt: 1, Took: 2 * time.Second, Reply: "rcpt: 450 busy", Advice: "advice on busy", Recipients: []envelope.StepResult{
				to(0, envelope.Failed, "rcpt: 550 unknown"), to(1, envelope.Deferred, "rcpt: 450 busy"), to(2, envelope.Sent, "250 2.0.0 OK")}},
			{What: envelope.StepBounced, State: envelope.Deferred, Reply: "the bounce", Recipients: []envelope.StepResult{to(0, envelope.Failed, "rcpt: 550 unknown")}},
			{What: envelope.StepWarned, State: envelope.Deferred, Reply: "the delay", Recipients: []envelope.StepResult{to(1, envelope.Deferred, "rcpt: 450 busy")}},
			{What: envelope.StepAttempt, State: envelope.Failed, By: by, Attempt: 2, Took: 2 * time.Second, Reply: "250 2.0.0 OK", Recipients: []envelope.StepResult{to(1, envelope.Sent, "250 2.0.0 OK")}},
		}
		mu.Lock()
		defer mu.Unlock()
		for i := range want {
			want[i].ID = m.env.ID
		}
		if diff := cmp.Diff(want, steps, cmpopts.IgnoreFields(envelope.Step{}, "At", "Due")); diff != "" {
			t.Error(diff)
		}
		if len(steps) > 1 && (steps[1].Due.IsZero() || steps[1].At.IsZero()) {
			t.Errorf("without times: %+v", steps[1])
		}
	})
}

// The end of the message is marked when the deliverer has read it, once, and only then.
func TestMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if try.sender == hot {
				return refuse(try, status.Retry, "refused before DATA")
			}
			return accept(try)
		}
		for _, s := range []envelope.Address{hot, sender(1)} {
			r.router.set(s, envelope.Route{Tenant: "contoso", Connections: 3})
		}
		refused, sent := r.queue.put(hot, 1, 0), r.queue.put(sender(1), 1, 0)
		r.run()
		after(time.Second)
		if refused.marks != 0 || sent.marks != 1 {
			t.Errorf("marked %d and %d times, want 0 and 1", refused.marks, sent.marks)
		}
	})
}

// A body the queue cannot give at present costs no attempt, and the sender's other mail has its turn.
func TestUnreadableBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steps atomic.Int32
		r := newRig(t, func(o *Options) { o.Record = func(envelope.Step) { steps.Add(1) } })
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, RecipientsPerDay: 100})
		for range 3 {
			r.queue.put(hot, 2, 0)
		}
		r.queue.unreadable = errors.New("server is being reopened")
		r.run()
		after(10 * time.Minute)
		for i, try := range r.exchange.all()[:3] {
			if got, want := try.begun.Sub(r.queue.order[0].env.Received), time.Duration(i)*time.Second; got < want {
				t.Errorf("attempt %d after %v, want the sender to rest a second between", i+1, got)
			}
		}
		if n := len(r.exchange.all()); n < 20 || n > 40 {
			t.Errorf("%d attempts in ten minutes, want each message about each minute", n)
		}
		for _, m := range r.queue.order {
			if p := r.queue.progress(m); p.Attempts != 0 || p.State != envelope.Queued || len(m.rested) < 5 {
				t.Errorf("%v after %d attempts, rested %d times", p.State, p.Attempts, len(m.rested))
			}
		}
		r.d.mu.Lock()
		if got := r.d.mailboxes["contoso/hot@contoso.com"].day.Remaining(time.Now()); got != 100 {
			t.Errorf("%d recipients remain, want all 100", got)
		}
		r.d.mu.Unlock()
		r.queue.mu.Lock()
		r.queue.unreadable = nil
		r.queue.mu.Unlock()
		if got := steps.Load(); got != 0 {
			t.Errorf("%d steps of attempts that came to nothing", got)
		}
		after(2 * time.Minute)
		if got := r.settled(); got != 3 {
			t.Errorf("%d of 3 sent", got)
		}
	})
}

// A rewritten message goes out with the envelope that says how long it is; one that cannot be read for it rests.
func TestRewrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards both
		var broken error
		var routes []envelope.Route
		breaks := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			broken = err
		}
		r := newRig(t, func(o *Options) {
			o.Rewrite = func(route *envelope.Route, env *envelope.Envelope, open func() io.Reader) (*envelope.Envelope, io.Reader, error) {
				mu.Lock()
				defer mu.Unlock()
				routes = append(routes, *route)
				if broken != nil {
					return nil, nil, broken
				}
				changed := *env
				changed.Size = 99
				return &changed, io.MultiReader(strings.NewReader("Reply-To: x\r\n"), open()), nil
			}
		})
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, From: "other@contoso.com"})
		breaks(errors.New("server is being reopened"))
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(10 * time.Second)
		if got := r.queue.progress(m); got.Attempts != 0 || len(m.rested) != 1 || len(r.exchange.all()) != 0 {
			t.Errorf("unread: %d attempts, rested %v", got.Attempts, m.rested)
		}
		breaks(nil)
		after(2 * time.Minute)
		if r.queue.state(m) != envelope.Sent || m.marks != 1 || routes[0].From != "other@contoso.com" {
			t.Errorf("%v, marked %d times, by %+v", r.queue.state(m), m.marks, routes)
		}
		if tries := r.exchange.all(); len(tries) != 1 || tries[0].size != 99 {
			t.Errorf("delivered %d times", len(tries))
		}
		breaks(fmt.Errorf("chunk 3: %w", envelope.ErrCorrupt))
		damaged := r.queue.put(hot, 1, 0)
		after(time.Second)
		if got := r.queue.progress(damaged); got.State != envelope.Held {
			t.Errorf("damaged: %v", got.State)
		}
	})
}

// What is owed is told even where the attempt that goes with it only meets a park.
func TestOwedWhileParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{}
		r := newRig(t, withReporter(report))
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			return each(try, reply(status.StageAuth, 535, status.ParkSender, "no"))
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 2, 0)
		m.progress = envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: time.Now(), Results: []envelope.Result{
			{State: envelope.Deferred, Attempts: 1}, {State: envelope.Failed, Attempts: 1, Owed: true},
		}}
		r.run()
		after(10 * time.Second)
		p := r.queue.progress(m)
		if len(report.bounces()) != 1 || p.Results[1].Owed || p.Results[0].Attempts != 1 || p.State != envelope.Deferred {
			t.Errorf("told %v, %+v", report.bounces(), p)
		}
		after(24 * time.Hour)
		if p := r.queue.progress(m); len(report.bounces()) != 1 || p.Attempts != 1 {
			t.Errorf("told %d times, %d attempts", len(report.bounces()), p.Attempts)
		}
	})
}

// parted is a rig whose message goes in parts of two.
func parted(t *testing.T, report *fakeReporter, day int, change func(*Options)) *rig {
	r := newRig(t, func(o *Options) {
		o.Reporter = report
		if change != nil {
			change(o)
		}
	})
	r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, RecipientsPerMessage: 2, RecipientsPerDay: day})
	return r
}

// The failures of a message that goes in parts are told in one when the last part has gone; one deferred holds nothing back,
// and what fails at its retry is told by itself.
func TestPartsBounceOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{}
		r := parted(t, report, 0, nil)
		fail := failing(0, 2, 7)
		r.exchange.answer = func(ctx context.Context, try *try) status.Outcome {
			advance(time.Second)
			out := fail(ctx, try)
			if k := slices.Index(try.open, 4); k >= 0 {
				out.Errs[k] = reply(status.StageRcpt, 450, status.Retry, "busy")
				if len(try.open) == 1 {
					out.Errs[k] = reply(status.StageRcpt, 550, status.Fail, "gone")
				}
			}
			return out
		}
		m := r.queue.put(hot, 10, 0)
		report.before = func() {
			if p := r.queue.progress(m); len(report.bounced) == 0 && (p.State != envelope.Deferred || p.Results[9].State != envelope.Sent || !p.Results[0].Owed) {
				t.Errorf("when told, the record is %+v", p)
			}
		}
		r.run()
		after(3500 * time.Millisecond)
		r.queue.mu.Lock()
		noted := len(m.noted)
		r.queue.mu.Unlock()
		if p := r.queue.progress(m); !p.Results[0].Owed || !p.Results[2].Owed || len(report.bounces()) != 0 || noted != 0 {
			t.Errorf("with parts to go: told %v, noted %d, %+v", report.bounces(), noted, p)
		}
		after(2 * time.Second)
		if b := report.bounces(); len(b) != 1 || !slices.Equal(b[0].who, []int{0, 2, 7}) || r.queue.progress(m).Results[0].Owed {
			t.Errorf("behind the last part: told %v", b)
		}
		after(time.Hour)
		if b := report.bounces(); len(b) != 2 || !slices.Equal(b[1].who, []int{4}) || r.queue.state(m) != envelope.Failed {
			t.Errorf("in the end told %v", b)
		}
	})
}

// owing is a message of four, of which the first has failed in a process that is no more.
func (r *rig) owing(to ...envelope.Address) *mail {
	m := r.queue.putTo(hot, time.Second, to...)
	m.progress = envelope.Progress{State: envelope.Queued, Attempts: 1, Due: m.due, Results: []envelope.Result{
		{State: envelope.Failed, Attempts: 1, Owed: true, Reply: "550 no"}, {State: envelope.Queued}, {State: envelope.Queued}, {State: envelope.Queued}}}
	return m
}

// What the parts before owed is told though no part goes on for now, or another process goes on with them.
func TestPartsThatGoNoFurther(t *testing.T) {
	to := []envelope.Address{"a@example.com", "b@example.com", "c@example.com", "d@example.com"}
	for _, tt := range []struct {
		name   string
		day    int
		answer func(try *try) status.Outcome
		who    []int
		tries  int
	}{
		{name: "after a crash: with the rest", answer: func(try *try) status.Outcome { return failing(3)(nil, try) }, who: []int{0, 3}, tries: 2},
		{name: "after a crash: the rest is accepted", answer: func(try *try) status.Outcome { return accept(try) }, who: []int{0}, tries: 2},
		{name: "the day is spent", day: 2, answer: func(try *try) status.Outcome { return failing(1)(nil, try) }, who: []int{0, 1}, tries: 1},
		{name: "parked", answer: func(try *try) status.Outcome {
			return each(try, reply(status.StageAuth, 535, status.ParkSender, "no"))
		}, who: []int{0}, tries: 1},
		{name: "one fails beside one for which the sender is held", answer: func(try *try) status.Outcome {
			out := each(try, reply(status.StageRcpt, 550, status.HoldSender, "quota"))
			out.Errs[0] = reply(status.StageRcpt, 550, status.Fail, "unknown")
			return out
		}, who: []int{0, 1}, tries: 1},
		{name: "damaged", answer: func(try *try) status.Outcome {
			out := refuse(try, status.Retry, "?")
			out.Errs[0].Err = envelope.ErrCorrupt
			return out
		}, who: []int{0}, tries: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				report := &fakeReporter{}
				r := parted(t, report, tt.day, nil)
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome { return tt.answer(try) }
				m := r.owing(to...)
				r.run()
				after(5 * time.Second)
				if b := report.bounces(); len(b) != 1 || !slices.Equal(b[0].who, tt.who) || len(r.exchange.all()) != tt.tries {
					t.Errorf("told %v, %d attempts", b, len(r.exchange.all()))
				}
				after(10 * time.Minute)
				if p := r.queue.progress(m); len(report.bounces()) != 1 || p.Results[0].Owed {
					t.Errorf("later told %v, %+v", report.bounces(), p)
				}
			})
		})
	}
}

// All that is left waits for a hold: what is owed is told meanwhile, and where that fails again each minute.
func TestOwedWhileHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{broken: errors.New("queue is full")}
		r := parted(t, report, 0, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			return each(try, reply(status.StageRcpt, 550, status.HoldSenderExternal, "external quota"))
		}
		r.queue.putTo(hot, 0, "x@example.com")
		m := r.owing("a@example.com", "b@example.com", "c@example.com", "d@example.com")
		r.run()
		after(10 * time.Minute)
		if n := r.queue.claimed(); n > 40 || !r.queue.progress(m).Results[0].Owed {
			t.Errorf("%d claims, %+v", n, r.queue.progress(m))
		}
		report.fail(nil)
		after(2 * time.Minute)
		if b := report.bounces(); len(b) != 1 || !slices.Equal(b[0].who, []int{0}) || r.queue.progress(m).Results[1].Attempts != 0 {
			t.Errorf("told %v, %+v", b, r.queue.progress(m))
		}
	})
}

// A relay that stops between two parts leaves the word to the next process, which has more to say.
func TestPartsAndStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{}
		r := parted(t, report, 0, func(o *Options) { o.DrainTimeout = time.Second })
		r.exchange.answer = func(ctx context.Context, try *try) status.Outcome {
			<-ctx.Done()
			return refuse(try, status.Retry, "cut off")
		}
		m := r.owing("a@example.com", "b@example.com", "c@example.com", "d@example.com")
		r.run()
		after(5 * time.Second)
		r.stop()
		if p := r.queue.progress(m); len(report.bounces()) != 0 || !p.Results[0].Owed || len(r.exchange.all()) != 1 {
			t.Errorf("told %v, %+v", report.bounces(), p)
		}
	})
}
