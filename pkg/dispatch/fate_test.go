package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// The words above schedule: the first step after the first attempt, and so on, the last repeats; a quarter at most on top.
func TestSchedule(t *testing.T) {
	steps := []time.Duration{time.Minute, 5 * time.Minute, time.Hour}
	for _, tt := range []struct {
		attempts int
		step     time.Duration
	}{
		{1, time.Minute}, {2, 5 * time.Minute}, {3, time.Hour}, {4, time.Hour}, {1000, time.Hour},
		{0, time.Minute}, // cannot be, and must not crash
	} {
		low, high := time.Duration(1<<62), time.Duration(0)
		for range 2000 {
			got := schedule(steps, tt.attempts)
			low, high = min(low, got), max(high, got)
		}
		if low < tt.step || high > tt.step*5/4 {
			t.Errorf("attempt %d: between %v and %v, want %v to a quarter more", tt.attempts, low, high, tt.step)
		}
		if spread := high - low; spread < tt.step/5 {
			t.Errorf("attempt %d: spread over %v only", tt.attempts, spread)
		}
	}
}

// wrong is an error of one recipient.
func wrong(action status.Action, text string) *status.Error {
	return &status.Error{Code: 451, Text: text, Action: action}
}

func TestJudge(t *testing.T) {
	now := time.Unix(1e9, 0)
	corrupt := &status.Error{Code: 451, Text: "internal error", Err: fmt.Errorf("body: %w", envelope.ErrCorrupt)}
	tests := []struct {
		name     string
		before   []envelope.State // empty: an untouched message to as many as errs
		errs     []*status.Error  // for the open ones
		stopping bool
		age      time.Duration
		attempts int // before this one

		outcome string
		release bool
		state   envelope.State
		after   []envelope.State
		action  status.Action
		counted int // attempts afterwards
	}{
		{name: "accepted", errs: []*status.Error{nil},
			outcome: "sent", state: envelope.Sent, after: []envelope.State{envelope.Sent}, counted: 1},
		{name: "refused for now", errs: []*status.Error{wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred}, counted: 1},
		{name: "refused for good", errs: []*status.Error{wrong(status.Fail, "no such user")},
			outcome: "failed", state: envelope.Failed, after: []envelope.State{envelope.Failed}, counted: 1},
		{name: "mixed", errs: []*status.Error{nil, wrong(status.Fail, "no"), wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Sent, envelope.Failed, envelope.Deferred}, counted: 1},
		{name: "the last of a mixed one", before: []envelope.State{envelope.Sent, envelope.Failed, envelope.Deferred}, attempts: 1, errs: []*status.Error{nil},
			outcome: "failed", state: envelope.Failed, after: []envelope.State{envelope.Sent, envelope.Failed, envelope.Sent}, counted: 2},
		{name: "accepted and refused for good", errs: []*status.Error{nil, wrong(status.Fail, "no")},
			outcome: "failed", state: envelope.Failed, after: []envelope.State{envelope.Sent, envelope.Failed}, counted: 1},
		{name: "uncertain", errs: []*status.Error{wrong(status.Uncertain, "lost")},
			outcome: "uncertain", state: envelope.Uncertain, after: []envelope.State{envelope.Uncertain}, action: status.Uncertain, counted: 1},
		{name: "uncertain, then refused for now", before: []envelope.State{envelope.Uncertain}, attempts: 1, errs: []*status.Error{wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred}, counted: 2},
		{name: "back-off of the sender is an attempt", errs: []*status.Error{wrong(status.BackOffSender, "432"), wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred, envelope.Deferred}, action: status.BackOffSender, counted: 1},
		{name: "the widest action is the sender's", errs: []*status.Error{wrong(status.Fail, "no"), wrong(status.Uncertain, "lost"), wrong(status.BackOffTenant, "451"), wrong(status.BackOffSender, "432")},
			outcome: "uncertain", state: envelope.Uncertain, action: status.BackOffTenant, counted: 1,
			after: []envelope.State{envelope.Failed, envelope.Uncertain, envelope.Deferred, envelope.Deferred}},
		{name: "a park is no attempt", errs: []*status.Error{wrong(status.ParkSender, "535"), wrong(status.ParkSender, "535")},
			outcome: "parked", release: true, action: status.ParkSender},
		{name: "a park after some were accepted", errs: []*status.Error{nil, wrong(status.ParkTenant, "535")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Sent, envelope.Deferred}, action: status.ParkTenant, counted: 0},
		{name: "a park after some were refused for good", errs: []*status.Error{wrong(status.Fail, "no"), wrong(status.ParkSender, "535")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Failed, envelope.Deferred}, action: status.ParkSender, counted: 0},
		{name: "a park and an uncertain one", errs: []*status.Error{wrong(status.ParkSender, "535"), wrong(status.Uncertain, "lost")},
			outcome: "uncertain", state: envelope.Uncertain, after: []envelope.State{envelope.Deferred, envelope.Uncertain}, action: status.ParkSender, counted: 0},
		{name: "cut off", errs: []*status.Error{wrong(status.Retry, "closed")}, stopping: true, release: true},
		{name: "cut off past the dot", errs: []*status.Error{wrong(status.Uncertain, "lost")}, stopping: true,
			outcome: "uncertain", state: envelope.Uncertain, after: []envelope.State{envelope.Uncertain}, action: status.Uncertain, counted: 1},
		{name: "accepted at the last moment", errs: []*status.Error{nil}, stopping: true,
			outcome: "sent", state: envelope.Sent, after: []envelope.State{envelope.Sent}, counted: 1},
		{name: "a damaged body is held, and whom it reached stays known", errs: []*status.Error{nil, corrupt},
			outcome: "failed", state: envelope.Held, after: []envelope.State{envelope.Sent, envelope.Deferred}, counted: 1},
		{name: "too old, after all its attempts", age: 100 * time.Hour, attempts: 200, errs: []*status.Error{wrong(status.Retry, "busy")},
			outcome: "failed", state: envelope.Failed, after: []envelope.State{envelope.Failed}, counted: 201},
		{name: "too old, but accepted", age: 100 * time.Hour, attempts: 200, errs: []*status.Error{nil},
			outcome: "sent", state: envelope.Sent, after: []envelope.State{envelope.Sent}, counted: 201},
		{name: "too old while parked: its attempts are still due", age: 1000 * time.Hour, errs: []*status.Error{wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred}, counted: 1},
		{name: "young with many attempts", age: 99 * time.Hour, attempts: 200, errs: []*status.Error{wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred}, counted: 201},
		{name: "parked past its lifetime", age: 1000 * time.Hour, attempts: 200, errs: []*status.Error{wrong(status.ParkSender, "535")},
			outcome: "parked", release: true, action: status.ParkSender},
		{name: "a held one costs nothing of the schedule", age: 1000 * time.Hour, attempts: 200, errs: []*status.Error{corrupt},
			outcome: "failed", state: envelope.Held, after: []envelope.State{envelope.Deferred}, counted: 201},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := max(len(tt.before), len(tt.errs))
			env := &envelope.Envelope{Received: now.Add(-tt.age), Recipients: make([]envelope.Recipient, n)}
			p := envelope.Progress{Attempts: tt.attempts}
			for _, s := range tt.before {
				p.Results = append(p.Results, envelope.Result{State: s})
			}
			beforehand := slices.Clone(p.Results)
			r := rules{now: now, retry: []time.Duration{time.Hour}, lifetime: 100 * time.Hour, stopping: tt.stopping}
			v := r.judge(env, p, p.Open(env), status.Outcome{Reply: "250 OK", Errs: tt.errs})
			if v.outcome != tt.outcome || v.release != tt.release || v.action != tt.action && (tt.action != 0 || v.action != status.Fail) {
				t.Errorf("got %q release=%v %v, want %q release=%v %v", v.outcome, v.release, v.action, tt.outcome, tt.release, tt.action)
			}
			if diff := cmp.Diff(beforehand, p.Results); diff != "" {
				t.Errorf("the claim's own results were changed:\n%s", diff)
			}
			if tt.release {
				return
			}
			var after []envelope.State
			for _, res := range v.progress.Results {
				after = append(after, res.State)
			}
			if v.progress.State != tt.state || !slices.Equal(after, tt.after) || v.progress.Attempts != tt.counted {
				t.Errorf("got %v %v after %d attempts, want %v %v after %d", v.progress.State, after, v.progress.Attempts, tt.state, tt.after, tt.counted)
			}
			waits := tt.state == envelope.Deferred || tt.state == envelope.Uncertain
			if waits != !v.progress.Due.IsZero() {
				t.Errorf("due %v in state %v", v.progress.Due, v.progress.State)
			}
			if waits && tt.counted > tt.attempts && v.progress.Due.Before(now.Add(time.Hour)) {
				t.Errorf("due %v after the attempt, want an hour at least", v.progress.Due.Sub(now))
			}
		})
	}
}

func TestReasonIsTheHeaviestReply(t *testing.T) {
	r := rules{now: time.Now(), retry: []time.Duration{time.Hour}, lifetime: time.Hour}
	env := &envelope.Envelope{Received: time.Now(), Recipients: make([]envelope.Recipient, 3)}
	v := r.judge(env, envelope.Progress{}, []int{0, 1, 2}, status.Outcome{Errs: []*status.Error{
		wrong(status.Fail, "no such user"), wrong(status.Retry, "busy"), wrong(status.Retry, "later"),
	}})
	if want := "451 busy"; v.reason != want || v.progress.Reason != want {
		t.Errorf("got %q and %q, want %q: it is why the message waits", v.reason, v.progress.Reason, want)
	}
}

// Without parks a message fails at the first temporary failure after its lifetime, whatever chance adds to its waits.
func TestLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lifetime = 5 * 24 * time.Hour
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome { return refuse(try, status.Retry, "busy") }
		for i := range 20 {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3})
			r.queue.put(sender(i), 1, 0)
		}
		began := time.Now()
		r.run()
		after(lifetime)
		if got := r.settled(); got != 0 {
			t.Errorf("%d messages failed before their lifetime was over", got)
		}
		after(5 * time.Hour) // the longest wait, 4 h and a quarter
		r.stop()
		for _, m := range r.queue.order {
			if m.progress.State != envelope.Failed || m.settled.Sub(began) < lifetime {
				t.Errorf("%s: %v after %v", m.env.ID, m.progress.State, m.settled.Sub(began))
			}
			want := "554 5.4.7 not delivered within 120h0m0s; last reply: 451 busy"
			if got := m.progress.Results[0].Reply; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			for i, p := range m.history[:len(m.history)-1] {
				if p.Attempts != i+1 || p.State != envelope.Deferred {
					t.Errorf("%s: attempt %d recorded as %d, %v", m.env.ID, i+1, p.Attempts, p.State)
				}
			}
		}
	})
}

// A recipient accepted once is never tried again, in whatever company; everyone's fate is known in the end.
func TestNobodyIsSentTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		accepted := map[int]int{}
		round := 0
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := accept(try)
			for k, i := range try.open {
				switch {
				case i == 7:
					out.Errs[k] = wrong(status.Fail, "no such user")
				case i > round: // one more each time
					out.Errs[k] = wrong([]status.Action{status.Retry, status.Uncertain, status.BackOffSender}[i%3], "not yet")
				default:
					accepted[i]++
				}
			}
			round++
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 8, 0)
		r.run()
		after(48 * time.Hour)
		r.stop()
		if m.progress.State != envelope.Failed {
			t.Errorf("got %v, want failed: one recipient was", m.progress.State)
		}
		for i := range 7 {
			if accepted[i] != 1 || m.progress.Results[i].State != envelope.Sent {
				t.Errorf("recipient %d: accepted %d times, %v", i, accepted[i], m.progress.Results[i].State)
			}
		}
		if tries := r.exchange.of(hot); len(tries) != 7 || len(tries[0].open) != 8 || len(tries[1].open) != 6 {
			t.Errorf("got %d attempts", len(tries))
		}
	})
}

func TestUncertainIsResentAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if len(r.exchange.all()) == 0 {
				return refuse(try, status.Uncertain, "connection lost")
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(time.Second)
		if got := r.queue.state(m); got != envelope.Uncertain {
			t.Errorf("got %v, want uncertain", got)
		}
		if got := testutil.ToFloat64(r.d.metrics.duplicates); got != 0 {
			t.Errorf("counted %v before anything was sent again", got)
		}
		after(2 * time.Minute)
		if got := r.queue.state(m); got != envelope.Sent {
			t.Errorf("got %v, want sent", got)
		}
		if got := testutil.ToFloat64(r.d.metrics.duplicates); got != 1 {
			t.Errorf("relayd_possible_duplicates_total: got %v, want 1", got)
		}
		if r.logged("possible duplicate: resending a message whose last attempt ended between final dot and reply") != 1 {
			t.Error("not flagged in the log")
		}
	})
}

// A message that panics three times is held; its sender's other mail flows.
func TestPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var poison, short envelope.ID
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			switch try.id {
			case poison:
				panic("a nil map")
			case short:
				return status.Outcome{} // breaks the contract
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		p, s := r.queue.put(hot, 2, 0), r.queue.put(hot, 2, 0)
		poison, short = p.env.ID, s.env.ID
		for range 10 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(time.Second)
		if got := r.settled(); got != 10 {
			t.Errorf("%d of 10 others sent", got)
		}
		after(time.Hour)
		r.stop()
		for _, m := range []*mail{p, s} {
			if m.progress.State != envelope.Held || len(m.history) != 3 || m.progress.Attempts != 3 || m.progress.Reason != errPoison.Error() {
				t.Errorf("got %v after %d attempts, %q", m.progress.State, len(m.history), m.progress.Reason)
			}
			if len(m.history) > 1 && m.history[1].Results[0].Reply != "451 4.3.0 internal error" {
				t.Errorf("recipients are told %q", m.history[1].Results[0].Reply)
			}
		}
		if got := r.logged("attempt panicked"); got != 6 {
			t.Errorf("%d panics in the log, want 6", got)
		}
		if len(r.d.panics) != 0 {
			t.Errorf("remembered for nothing: %v", r.d.panics)
		}
	})
}

// One that recovers after two panics is forgotten with its end.
func TestTwoPanicsAreForgiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if len(r.exchange.all()) < 2 {
				panic("passing")
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(time.Hour)
		r.stop()
		if m.progress.State != envelope.Sent || len(r.d.panics) != 0 {
			t.Errorf("got %v, remembered %v", m.progress.State, r.d.panics)
		}
	})
}

func TestDamagedBodyIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := refuse(try, status.Retry, "internal error")
			out.Errs[0].Err = fmt.Errorf("read body: %w", envelope.ErrCorrupt)
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(24 * time.Hour)
		r.stop()
		if m.progress.State != envelope.Held || len(m.history) != 1 || !strings.Contains(m.progress.Reason, envelope.ErrCorrupt.Error()) {
			t.Errorf("got %v after %d attempts, %q", m.progress.State, len(m.history), m.progress.Reason)
		}
		if r.logged("held") != 1 {
			t.Error("not in the log")
		}
	})
}

func TestLogNamesTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := refuse(try, status.Retry, "cannot be reached")
			out.Errs[0].Err = io.ErrUnexpectedEOF
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(time.Second)
		lines := r.logs.FilterMessage("deferred").All()
		if len(lines) != 1 {
			t.Fatalf("got %d lines, want 1", len(lines))
		}
		got := lines[0].ContextMap()
		for key, want := range map[string]any{
			"id": string(m.env.ID), "sender": string(hot), "tenant": "contoso", "login": string(hot), "attempt": int64(1),
			"recipients": int64(1), "reply": "451 cannot be reached", "error": io.ErrUnexpectedEOF.Error(),
		} {
			if got[key] != want {
				t.Errorf("%s: got %v, want %v", key, got[key], want)
			}
		}
		for _, address := range []string{"r0@example.com"} {
			if strings.Contains(fmt.Sprint(got), address) {
				t.Errorf("the log has the recipient %s", address)
			}
		}
	})
}

func TestExpireKeepsTheSettled(t *testing.T) {
	results := []envelope.Result{{State: envelope.Sent, Reply: "250"}, {State: envelope.Failed, Reply: "550 no"}, {State: envelope.Uncertain, Reply: "lost"}}
	expire(results, time.Hour)
	want := []envelope.Result{{State: envelope.Sent, Reply: "250"}, {State: envelope.Failed, Reply: "550 no"},
		{State: envelope.Failed, Reply: "554 5.4.7 not delivered within 1h0m0s; last reply: lost"}}
	if diff := cmp.Diff(want, results); diff != "" {
		t.Error(diff)
	}
}

func TestHoldReason(t *testing.T) {
	plain := &status.Error{Code: 451, Err: errors.New("reset")}
	if got := holdReason([]*status.Error{nil, plain}); got != "" {
		t.Errorf("got %q", got)
	}
	if got := holdReason([]*status.Error{plain, {Code: 451, Err: errPoison}}); got != errPoison.Error() {
		t.Errorf("got %q", got)
	}
}
