package fate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// wrong is an error of one recipient.
func wrong(action status.Action, text string) *status.Error {
	return &status.Error{Code: 451, Text: text, Action: action}
}

func at(stage status.Stage, code int, action status.Action, rule string) *status.Error {
	return &status.Error{Code: code, Text: rule, Stage: stage, Action: action, Rule: rule}
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
		atOnce  bool
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
		{name: "uncertain, then refused for now: it may still have been accepted then", before: []envelope.State{envelope.Uncertain}, attempts: 1, errs: []*status.Error{wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Uncertain, after: []envelope.State{envelope.Uncertain}, counted: 2},
		{name: "back-off of the sender is an attempt", errs: []*status.Error{wrong(status.BackOffSender, "432"), wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred, envelope.Deferred}, action: status.BackOffSender, counted: 1},
		{name: "the widest action is the sender's", errs: []*status.Error{wrong(status.Fail, "no"), wrong(status.Uncertain, "lost"), wrong(status.BackOffTenant, "451"), wrong(status.BackOffSender, "432")},
			outcome: "uncertain", state: envelope.Uncertain, action: status.BackOffTenant, counted: 1,
			after: []envelope.State{envelope.Failed, envelope.Uncertain, envelope.Deferred, envelope.Deferred}},
		{name: "a park is no attempt", errs: []*status.Error{wrong(status.ParkSender, "535"), wrong(status.ParkSender, "535")},
			outcome: "parked", release: true, action: status.ParkSender},
		{name: "a park after some were accepted", errs: []*status.Error{nil, wrong(status.ParkTenant, "535")},
			outcome: "parked", state: envelope.Deferred, after: []envelope.State{envelope.Sent, envelope.Deferred}, action: status.ParkTenant, counted: 1, atOnce: true},
		{name: "a park after some were refused for good", errs: []*status.Error{wrong(status.Fail, "no"), wrong(status.ParkSender, "535")},
			outcome: "parked", state: envelope.Deferred, after: []envelope.State{envelope.Failed, envelope.Deferred}, action: status.ParkSender, counted: 1, atOnce: true},
		{name: "a park and an uncertain one", errs: []*status.Error{wrong(status.ParkSender, "535"), wrong(status.Uncertain, "lost")},
			outcome: "uncertain", state: envelope.Uncertain, after: []envelope.State{envelope.Deferred, envelope.Uncertain}, action: status.ParkSender, counted: 1, atOnce: true},
		{name: "a hold is no attempt", errs: []*status.Error{wrong(status.HoldSender, "quota")},
			outcome: "parked", release: true, action: status.HoldSender},
		{name: "one in a park has its own life", errs: []*status.Error{wrong(status.ParkSender, "535"), wrong(status.Retry, "busy")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred, envelope.Deferred}, action: status.ParkSender, counted: 1, atOnce: true},
		{name: "too many beside some", errs: []*status.Error{nil, nil, wrong(status.Split, "4.5.3")},
			outcome: "sent", state: envelope.Queued, after: []envelope.State{envelope.Sent, envelope.Sent, envelope.Queued}, action: status.Split, counted: 1, atOnce: true},
		{name: "too many altogether", errs: []*status.Error{wrong(status.Split, "4.5.3"), wrong(status.Split, "4.5.3"), wrong(status.Split, "4.5.3")},
			state: envelope.Queued, after: []envelope.State{envelope.Queued, envelope.Queued, envelope.Queued}, action: status.Split},
		{name: "one alone is not too many", errs: []*status.Error{wrong(status.Split, "4.5.3")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred}, action: status.Split, counted: 1},
		{name: "one alone is refused", errs: []*status.Error{at(status.StageRcpt, 550, status.Split, "5.5.3")},
			outcome: "failed", state: envelope.Failed, after: []envelope.State{envelope.Failed}, action: status.Split, counted: 1},
		{name: "once more", errs: []*status.Error{at(status.StageDot, 554, status.RetryOnce, "send-as")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred}, action: status.RetryOnce, counted: 1},
		{name: "cut off beside one accepted", errs: []*status.Error{nil, wrong(status.Retry, "closed")}, stopping: true,
			outcome: "sent", state: envelope.Queued, after: []envelope.State{envelope.Sent, envelope.Queued}, counted: 1, atOnce: true},
		{name: "an action nobody knows is a retry", errs: []*status.Error{wrong(99, "?")},
			outcome: "deferred", state: envelope.Deferred, after: []envelope.State{envelope.Deferred}, action: 99, counted: 1},
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
			r := Rules{Retry: []time.Duration{time.Hour}, Lifetime: 100 * time.Hour}
			v := r.Judge(Case{Envelope: env, Before: p, Tried: p.Open(env), Outcome: status.Outcome{Reply: "250 OK", Errs: tt.errs}, Now: now, Stopping: tt.stopping})
			action := status.Retry
			if v.Reply != nil {
				action = v.Reply.Action
			}
			if v.Outcome != tt.outcome || v.Release != tt.release || action != tt.action && (tt.action != 0 || action != status.Fail) {
				t.Errorf("got %q release=%v %v, want %q release=%v %v", v.Outcome, v.Release, action, tt.outcome, tt.release, tt.action)
			}
			if diff := cmp.Diff(beforehand, p.Results); diff != "" {
				t.Errorf("the claim's own results were changed:\n%s", diff)
			}
			if tt.release {
				return
			}
			var after []envelope.State
			for _, res := range v.Progress.Results {
				after = append(after, res.State)
			}
			if v.Progress.State != tt.state || !slices.Equal(after, tt.after) || v.Progress.Attempts != tt.counted {
				t.Errorf("got %v %v after %d attempts, want %v %v after %d", v.Progress.State, after, v.Progress.Attempts, tt.state, tt.after, tt.counted)
			}
			waits := tt.state == envelope.Queued || tt.state == envelope.Deferred || tt.state == envelope.Uncertain
			if waits != !v.Progress.Due.IsZero() {
				t.Errorf("due %v in state %v", v.Progress.Due, v.Progress.State)
			}
			if waits && tt.counted > tt.attempts && !tt.atOnce && v.Progress.Due.Before(now.Add(time.Hour)) {
				t.Errorf("due %v after the attempt, want an hour at least", v.Progress.Due.Sub(now))
			}
		})
	}
}

func TestReasonIsTheHeaviestReply(t *testing.T) {
	r := Rules{Retry: []time.Duration{time.Hour}, Lifetime: time.Hour}
	env := &envelope.Envelope{Received: time.Now(), Recipients: make([]envelope.Recipient, 3)}
	v := r.Judge(Case{Envelope: env, Tried: []int{0, 1, 2}, Now: time.Now(), Outcome: status.Outcome{Errs: []*status.Error{
		wrong(status.Fail, "no such user"), wrong(status.Retry, "busy"), wrong(status.Retry, "later"),
	}}})
	if want := "451 busy"; v.Reply.Error() != want || v.Progress.Reason != want {
		t.Errorf("got %q and %q, want %q: it is why the message waits", v.Reply, v.Progress.Reason, want)
	}
}

func TestHoldReason(t *testing.T) {
	plain := &status.Error{Code: 451, Err: errors.New("reset")}
	if got := holdReason([]*status.Error{nil, plain}); got != "" {
		t.Errorf("got %q", got)
	}
	if got := holdReason([]*status.Error{plain, {Code: 451, Err: ErrPoison}}); got != ErrPoison.Error() {
		t.Errorf("got %q", got)
	}
}

// judge is a shorthand: one attempt at those of a message to n that are tried.
func judge(before envelope.Progress, env *envelope.Envelope, tried []int, errs ...*status.Error) Verdict {
	r := Rules{Retry: []time.Duration{time.Minute, time.Hour}, Lifetime: 100 * time.Hour}
	return r.Judge(Case{Envelope: env, Before: before, Tried: tried, Now: epoch, Outcome: status.Outcome{Reply: "250 OK", Errs: errs},
		External: func(i int) bool { return env.Recipients[i].Address.Domain() != "contoso.com" }})
}

var epoch = time.Unix(1e9, 0)

// Each recipient has its own attempts and its own next one; the message has the earliest and the most.
func TestEachHasItsOwnFate(t *testing.T) {
	env := toMany(4)
	env.Received = epoch
	v := judge(envelope.Progress{}, env, []int{0, 1}, nil, wrong(status.Retry, "busy"))
	p := v.Progress
	if got := []int{p.Results[0].Attempts, p.Results[1].Attempts, p.Results[2].Attempts, p.Attempts}; !slices.Equal(got, []int{1, 1, 0, 1}) {
		t.Errorf("attempts: got %v", got)
	}
	if p.State != envelope.Deferred || !p.Due.Equal(epoch) {
		t.Errorf("those not tried are due at once: got %v, in %v", p.State, p.Due.Sub(epoch))
	}
	v = judge(p, env, []int{2, 3}, wrong(status.Retry, "busy"), wrong(status.Retry, "busy"))
	p = v.Progress
	if !p.Results[2].Due.Equal(p.Results[3].Due) {
		t.Errorf("failed together, due apart: %v and %v", p.Results[2].Due, p.Results[3].Due)
	}
	v = judge(p, env, []int{1}, wrong(status.Retry, "busy"))
	p = v.Progress
	if got := []int{p.Results[1].Attempts, p.Results[2].Attempts, p.Attempts}; !slices.Equal(got, []int{2, 1, 2}) {
		t.Errorf("attempts: got %v", got)
	}
	if p.Results[1].Due.Sub(epoch) < time.Hour || p.Due.Sub(epoch) > 2*time.Minute {
		t.Errorf("due in %v, the message in %v", p.Results[1].Due.Sub(epoch), p.Due.Sub(epoch))
	}
	if len(v.Tried) != 1 || v.Tried[0].Address != "r1@example.com" || v.Tried[0].State != envelope.Deferred {
		t.Errorf("told %v", v.Tried)
	}
}

// The life of one recipient is not that of another: who came late to it goes on.
func TestLifetimeOfEach(t *testing.T) {
	env := toMany(2)
	env.Received = epoch.Add(-200 * time.Hour)
	before := envelope.Progress{Attempts: 150, Results: []envelope.Result{{State: envelope.Deferred, Attempts: 150}, {State: envelope.Deferred, Attempts: 3}}}
	v := judge(before, env, []int{0, 1}, wrong(status.Retry, "busy"), wrong(status.Retry, "busy"))
	if v.Progress.Results[0].State != envelope.Failed || v.Progress.Results[1].State != envelope.Deferred || !slices.Equal(v.Failed, []int{0}) {
		t.Errorf("got %v and %v, failed %v", v.Progress.Results[0].State, v.Progress.Results[1].State, v.Failed)
	}
	if want := "554 5.4.7 not delivered within 100h0m0s; last reply: 451 busy"; v.Progress.Results[0].Reply != want {
		t.Errorf("got %q, want %q", v.Progress.Results[0].Reply, want)
	}
}

// Whoever is told of a failure is told, too, that the first copy may have arrived.
func TestFailedAfterUncertain(t *testing.T) {
	env := toMany(2)
	env.Received = epoch
	before := envelope.Progress{State: envelope.Uncertain, Attempts: 1, Results: []envelope.Result{{State: envelope.Uncertain, Attempts: 1}, {State: envelope.Deferred, Attempts: 1}}}
	v := judge(before, env, []int{0, 1}, wrong(status.Fail, "gone"), wrong(status.Fail, "gone"))
	if got := v.Progress.Results[0].Reply; !strings.HasSuffix(got, "gone (an earlier attempt may have been accepted)") {
		t.Errorf("once uncertain: %q", got)
	}
	if got := v.Progress.Results[1].Reply; !strings.HasSuffix(got, "gone") {
		t.Errorf("never sent: %q", got)
	}
}

// A message outlives its lifetime by replies about itself, or by a far end that is not there; never by a sign-in.
func TestNoSignInEndsALife(t *testing.T) {
	env := toMany(1)
	env.Received = epoch.Add(-2000 * time.Hour)
	before := envelope.Progress{Attempts: 150, Results: []envelope.Result{{State: envelope.Deferred, Attempts: 150}}}
	for stage, want := range map[status.Stage]envelope.State{
		status.StageToken: envelope.Deferred, status.StageAuth: envelope.Deferred, status.StageConnect: envelope.Failed, status.StageRcpt: envelope.Failed,
	} {
		for _, a := range []status.Action{status.Retry, status.BackOffSender, status.BackOffTenant} {
			if v := judge(before, env, []int{0}, at(stage, 451, a, "x")); v.Progress.Results[0].State != want {
				t.Errorf("%s at %s: %v, want %v", a, stage, v.Progress.Results[0].State, want)
			}
		}
	}
}

func TestRetryOnce(t *testing.T) {
	env := toMany(1)
	env.Received = epoch
	e := at(status.StageDot, 554, status.RetryOnce, "send-as-denied")
	e.Wait = 30 * time.Minute
	v := judge(envelope.Progress{}, env, []int{0}, e)
	if p := v.Progress; p.State != envelope.Deferred || p.Due.Sub(epoch) < 30*time.Minute || p.Results[0].Rule != "send-as-denied" {
		t.Errorf("first: %v, due in %v, rule %q", p.State, p.Due.Sub(epoch), p.Results[0].Rule)
	}
	other := judge(v.Progress, env, []int{0}, at(status.StageRcpt, 550, status.RetryOnce, "another"))
	if other.Progress.State != envelope.Deferred {
		t.Errorf("another reply: got %v, want deferred", other.Progress.State)
	}
	if again := judge(v.Progress, env, []int{0}, e); again.Progress.State != envelope.Failed || again.Outcome != "failed" || again.Progress.Attempts != 2 {
		t.Errorf("the same again: %v, %q after %d attempts", again.Progress.State, again.Outcome, again.Progress.Attempts)
	}
	nameless := at(status.StageDot, 554, status.RetryOnce, "")
	if v := judge(judge(envelope.Progress{}, env, []int{0}, nameless).Progress, env, []int{0}, nameless); v.Progress.State != envelope.Deferred {
		t.Error("what no row knows is temporary")
	}
}

// What Exchange Online counts: whoever was in a transaction behind AUTH, but for want of quota.
func TestCounted(t *testing.T) {
	for _, tt := range []struct {
		e       *status.Error
		counted int
		reached bool
	}{
		{nil, 1, true},
		{at(status.StageConnect, 451, status.BackOffTenant, ""), 0, false},
		{at(status.StageToken, 535, status.ParkTenant, "secret"), 0, false},
		{at(status.StageAuth, 535, status.ParkSender, "auth"), 0, false},
		{at(status.StageAuth, 432, status.BackOffSender, "busy"), 0, false},
		{at(status.StageMail, 550, status.Fail, "mail"), 1, true},
		{at(status.StageMail, 552, status.Fail, ""), 1, false}, // refused by us
		{at(status.StageRcpt, 550, status.Fail, "unknown"), 1, true},
		{at(status.StageData, 451, status.Retry, "data"), 1, true},
		{at(status.StageDot, 432, status.BackOffSender, "threads"), 1, true},
		{at(status.StageDot, 554, status.HoldSender, "quota"), 0, true},
		{at(status.StageDot, 550, status.HoldTenantExternal, "quota"), 0, true},
		{at(status.StageRcpt, 550, status.HoldSenderExternal, "quota"), 0, true},
		{at(status.StageDot, 451, status.Uncertain, ""), 1, true},
		{wrong(status.Retry, "internal"), 0, false},
	} {
		env := toMany(1)
		env.Received = epoch
		if v := judge(envelope.Progress{}, env, []int{0}, tt.e); v.Counted != tt.counted || v.Reached != tt.reached {
			t.Errorf("%v: counted %d, reached %v, want %d, %v", tt.e, v.Counted, v.Reached, tt.counted, tt.reached)
		}
	}
}

// A hold for recipients outside holds those, and sends those inside again without them.
func TestHoldOfExternal(t *testing.T) {
	env := envelopeTo("in@contoso.com", "out@example.com")
	env.Received = epoch
	hold := at(status.StageDot, 550, status.HoldTenantExternal, "terrl")
	until := epoch.Add(30 * time.Minute)

	v := judge(envelope.Progress{}, env, []int{0, 1}, hold, hold)
	if !v.Release || !v.Waits() || v.Outcome != "parked" || v.Tried[0].State != envelope.Queued || v.Tried[1].State != envelope.Parked {
		t.Errorf("both refused: %+v", v)
	}
	v.HoldUntil(until)
	if got := v.Progress.Results; !got[0].Due.Equal(epoch) || !got[1].Due.Equal(until) || !v.Progress.Due.Equal(epoch) {
		t.Errorf("due %v and %v, the message %v", got[0].Due, got[1].Due, v.Progress.Due)
	}

	v = judge(envelope.Progress{}, env, []int{0, 1}, nil, hold)
	v.HoldUntil(until)
	if p := v.Progress; v.Release || p.Results[0].State != envelope.Sent || p.Results[1].Attempts != 0 || !p.Due.Equal(until) {
		t.Errorf("one accepted: %+v", p)
	}

	v = judge(envelope.Progress{}, env, []int{0}, hold) // nobody outside was in it: the reply knows better who is
	v.HoldUntil(until)
	if !v.Release || !v.Waits() || !v.Progress.Results[0].Due.Equal(until) {
		t.Errorf("inside only: %+v", v)
	}

	r := Rules{Retry: []time.Duration{time.Minute}, Lifetime: time.Hour}
	v = r.Judge(Case{Envelope: env, Tried: []int{0}, Held: []int{1}, Now: epoch, Outcome: status.Outcome{Errs: make([]*status.Error, 1)}})
	v.HoldUntil(until)
	if p := v.Progress; p.Results[1].State != envelope.Queued || p.Results[1].Attempts != 0 || !p.Due.Equal(until) || v.Outcome != "sent" {
		t.Errorf("held back: %q, %+v", v.Outcome, p)
	}
}

// While a park is probed, what fails before MAIL tells nothing about the message.
func TestProbeCostsNothing(t *testing.T) {
	env := toMany(1)
	env.Received = epoch.Add(-1000 * time.Hour)
	r := Rules{Retry: []time.Duration{time.Minute}, Lifetime: time.Minute}
	for _, tt := range []struct {
		e       *status.Error
		release bool
	}{
		{at(status.StageConnect, 451, status.BackOffTenant, ""), true},
		{at(status.StageAuth, 451, status.BackOffSender, "prx4"), true},
		{at(status.StageEHLO, 421, status.Retry, "closing"), true},
		{at(status.StageRcpt, 450, status.Retry, "busy"), false},
		{at(status.StageRcpt, 550, status.Fail, "unknown"), false},
	} {
		v := r.Judge(Case{Envelope: env, Before: envelope.Progress{Attempts: 99}, Tried: []int{0}, Now: epoch, Probe: true, Outcome: status.Outcome{Errs: []*status.Error{tt.e}}})
		if v.Release != tt.release || tt.release && v.Outcome != "parked" {
			t.Errorf("%v: release=%v, %q", tt.e, v.Release, v.Outcome)
		}
	}
}

// Parts are halved where nobody is taken, and what works is learned.
func TestSplit(t *testing.T) {
	env := toMany(9)
	env.Received = epoch
	too := at(status.StageRcpt, 452, status.Split, "too-many")
	all := func(n int) []*status.Error { return slices.Repeat([]*status.Error{too}, n) }
	p := envelope.Progress{}
	for _, want := range []int{4, 2} {
		tried := Pick(env, p.Open(env), p.Part, 0)
		v := judge(p, env, tried, all(len(tried))...)
		if p = v.Progress; p.Part != want || p.Attempts != 0 || !p.Due.Equal(epoch) || v.Release || v.Part != 0 {
			t.Fatalf("part %d, %d attempts, due in %v, learned %d; want %d, 0, 0s, 0", p.Part, p.Attempts, p.Due.Sub(epoch), v.Part, want)
		}
	}
	v := judge(p, env, []int{0, 1}, nil, too)
	if p = v.Progress; v.Part != 2 || p.Part != 2 || p.Results[0].State != envelope.Sent || p.Results[1].State != envelope.Queued || p.Results[1].Attempts != 0 {
		t.Errorf("one taken: learned %d, %+v", v.Part, p)
	}
}

// Uncertain ones are counted when they are sent again, not when that was only tried.
func TestResent(t *testing.T) {
	env := toMany(2)
	env.Received = epoch
	before := envelope.Progress{State: envelope.Uncertain, Attempts: 1, Results: []envelope.Result{{State: envelope.Uncertain, Attempts: 1}, {State: envelope.Deferred, Attempts: 1}}}
	for _, tt := range []struct {
		name   string
		before envelope.Progress
		e      *status.Error
		want   int
	}{
		{"accepted", before, nil, 1}, {"uncertain again", before, at(status.StageDot, 451, status.Uncertain, ""), 1},
		{"not reached", before, at(status.StageConnect, 451, status.Retry, ""), 0}, {"refused", before, at(status.StageRcpt, 550, status.Fail, "x"), 0},
		{"flagged without a record of each", envelope.Progress{State: envelope.Uncertain}, nil, 2},
	} {
		if v := judge(tt.before, env, []int{0, 1}, tt.e, tt.e); v.Resent != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, v.Resent, tt.want)
		}
	}
	parked := at(status.StageAuth, 535, status.ParkSender, "x")
	if v := judge(before, env, []int{0, 1}, parked, at(status.StageRcpt, 550, status.Fail, "y")); v.Progress.Results[0].State != envelope.Uncertain {
		t.Errorf("parked: got %v, want uncertain still", v.Progress.Results[0].State)
	}
}

func TestSum(t *testing.T) {
	due := func(s envelope.State, in time.Duration) envelope.Result {
		return envelope.Result{State: s, Due: epoch.Add(in)}
	}
	for _, tt := range []struct {
		results []envelope.Result
		state   envelope.State
		due     time.Time
	}{
		{[]envelope.Result{{State: envelope.Sent}, {State: envelope.Sent}}, envelope.Sent, time.Time{}},
		{[]envelope.Result{{State: envelope.Sent}, {State: envelope.Failed}}, envelope.Failed, time.Time{}},
		{[]envelope.Result{{State: envelope.Failed}, due(envelope.Queued, 5)}, envelope.Queued, epoch.Add(5)},
		{[]envelope.Result{due(envelope.Queued, 7), due(envelope.Deferred, 5)}, envelope.Deferred, epoch.Add(5)},
		{[]envelope.Result{due(envelope.Uncertain, 9), due(envelope.Deferred, 5)}, envelope.Uncertain, epoch.Add(5)},
	} {
		p := envelope.Progress{State: "x", Due: epoch, Results: tt.results}
		if Sum(&p); p.State != tt.state || !p.Due.Equal(tt.due) {
			t.Errorf("got %v, %v, want %v, %v", p.State, p.Due, tt.state, tt.due)
		}
	}
}

// Whatever is replied: each recipient ends, once; nobody who was accepted is tried again; splitting comes to an end; and
// without parks it all ends within the attempts a life has.
func TestEveryRecipientEndsOnce(t *testing.T) {
	actions := []status.Action{status.Retry, status.Fail, status.BackOffSender, status.BackOffTenant, status.Uncertain, status.Split, status.RetryOnce}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "recipients")
		env, now := toMany(n), epoch
		env.Received = now
		r := Rules{Retry: []time.Duration{time.Minute, time.Hour}, Lifetime: 12 * time.Hour}
		var p envelope.Progress
		ended := map[int]int{}
		for round := 0; len(p.Open(env)) > 0; round++ {
			if round > 40*(n+10) {
				t.Fatalf("no end after %d rounds: %d open, part %d", round, len(p.Open(env)), p.Part)
			}
			tried := Pick(env, r.Due(env, &p, now), p.Part, rapid.IntRange(0, 3).Draw(t, "per domain"))
			if len(tried) == 0 {
				t.Fatalf("due, and nobody to try: %+v", p)
			}
			same := rapid.SampledFrom(actions).Draw(t, "action")
			mixed := rapid.IntRange(0, 3).Draw(t, "mixed") == 0
			errs := make([]*status.Error, len(tried))
			for k, i := range tried {
				if ended[i] > 0 {
					t.Fatalf("recipient %d is tried again", i)
				}
				a := same
				if mixed {
					a = rapid.SampledFrom(actions).Draw(t, "one")
				}
				if !mixed || rapid.IntRange(0, 5).Draw(t, "accepted") > 0 {
					errs[k] = at(status.StageRcpt, 450+100*rapid.IntRange(0, 1).Draw(t, "class"), a, same.String())
				}
			}
			v := r.Judge(Case{Envelope: env, Before: p, Tried: tried, Outcome: status.Outcome{Errs: errs}, Now: now})
			if v.Release {
				t.Fatalf("released: %+v", v)
			}
			p = v.Progress
			for i, res := range p.Results {
				if res.State.Final() && ended[i] == 0 {
					ended[i]++
				}
			}
			if p.Due.After(now) {
				now = p.Due
			}
		}
		if len(ended) != n || !p.State.Final() {
			t.Fatalf("%d of %d ended, %v", len(ended), n, p.State)
		}
	})
}
