package report

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// world is a queue that takes notes and a reporter, in the order they are used.
type world struct {
	did    []string
	noted  envelope.Progress
	failed []int
	steps  []envelope.Step
	noNote error
	noWord error
	panics bool
	more   bool // another part goes at once
	silent bool // writes nothing, and nothing is wrong
	until  time.Time
}

func (w *world) Note(_ context.Context, _ *envelope.Envelope, p envelope.Progress) error {
	w.did = append(w.did, "note")
	w.noted = p
	w.noted.Results = slices.Clone(p.Results)
	return w.noNote
}

func (w *world) Bounce(_ context.Context, _ *envelope.Claim, _ *envelope.Progress, failed []int) (envelope.ID, error) {
	w.did = append(w.did, "bounce")
	if w.panics {
		panic("?")
	}
	w.failed = failed
	return w.answer()
}

func (w *world) Delay(_ context.Context, _ *envelope.Claim, _ *envelope.Progress, _ []int, until time.Time) (envelope.ID, error) {
	w.did = append(w.did, "delay")
	w.until = until
	return w.answer()
}

func (w *world) answer() (envelope.ID, error) {
	if w.noWord != nil || w.silent {
		return "", w.noWord
	}
	return "00000000000000000002", nil
}

func (w *world) Park(status.Park) { w.did = append(w.did, "park") }

var received = time.Unix(1e9, 0)

// conclude has a message to two judged, an hour after its acceptance, of which the second failed and the first is as given.
func (w *world) conclude(first *status.Error, change func(*envelope.Envelope, *envelope.Progress)) envelope.Progress {
	env := &envelope.Envelope{ID: "00000000000000000001", ReversePath: "a@contoso.com", Received: received,
		Recipients: []envelope.Recipient{{Address: "x@example.com"}, {Address: "y@example.com"}}}
	claim := &envelope.Claim{Envelope: env}
	if change != nil {
		change(env, &claim.Progress)
	}
	r := fate.Rules{Retry: []time.Duration{time.Hour}, Lifetime: 100 * time.Hour}
	v := r.Judge(fate.Case{Envelope: env, Before: claim.Progress, Tried: []int{0, 1}, Now: received.Add(time.Hour), Outcome: status.Outcome{
		Errs: []*status.Error{first, {Code: 550, Text: "no", Action: status.Fail}},
	}})
	t := New(w, w, func(s envelope.Step) { w.steps = append(w.steps, s) }, zap.NewNop())
	return t.Conclude(context.Background(), claim, &v, Terms{Lifetime: r.Lifetime, WarnAfter: 30 * time.Minute, More: w.more})
}

func TestConclude(t *testing.T) {
	busy := &status.Error{Code: 451, Text: "busy"}
	for _, tt := range []struct {
		name   string
		world  world
		first  *status.Error
		change func(*envelope.Envelope, *envelope.Progress)
		did    []string
		state  envelope.State
		owed   bool
		steps  int
	}{
		{name: "told", did: []string{"note", "bounce"}, state: envelope.Failed, steps: 1},
		{name: "told, and of the delay of the other", first: busy, did: []string{"note", "bounce", "delay"}, state: envelope.Deferred, steps: 2},
		{name: "warned before", first: busy, change: func(_ *envelope.Envelope, p *envelope.Progress) { p.Warned = true },
			did: []string{"note", "bounce"}, state: envelope.Deferred, steps: 1},
		{name: "nobody there to be warned", first: busy, change: func(e *envelope.Envelope, _ *envelope.Progress) { e.ReversePath = "" },
			did: []string{"bounce"}, state: envelope.Deferred, steps: 1},
		{name: "young", first: busy, change: func(e *envelope.Envelope, _ *envelope.Progress) { e.Received = received.Add(45 * time.Minute) },
			did: []string{"note", "bounce"}, state: envelope.Deferred, steps: 1},
		{name: "the note fails", world: world{noNote: errors.New("full")}, did: []string{"note"}, state: envelope.Deferred, owed: true},
		{name: "the word fails", world: world{noWord: errors.New("full")}, did: []string{"note", "bounce"}, state: envelope.Deferred, owed: true},
		{name: "the reporter panics", world: world{panics: true}, did: []string{"note", "bounce"}, state: envelope.Deferred, owed: true},
		{name: "nothing is written: no step says so", world: world{silent: true}, first: busy, did: []string{"note", "bounce", "delay"}, state: envelope.Deferred},
		{name: "more parts to go: told with the last", world: world{more: true}, did: nil, state: envelope.Failed, owed: true},
		{name: "held: a person looks at it", first: &status.Error{Code: 451, Err: fate.ErrPoison}, state: envelope.Held},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.world
			p := w.conclude(tt.first, tt.change)
			if !slices.Equal(w.did, tt.did) || p.State != tt.state || p.Results[1].Owed != tt.owed || len(w.steps) != tt.steps {
				t.Errorf("did %v, %v, owed=%v, %d steps; want %v, %v, owed=%v, %d", w.did, p.State, p.Results[1].Owed, len(w.steps), tt.did, tt.state, tt.owed, tt.steps)
			}
			if slices.Contains(w.did, "note") && (!w.noted.Results[1].Owed || w.noted.State != envelope.Deferred || !w.noted.Due.Equal(received.Add(time.Hour))) {
				t.Errorf("noted %+v", w.noted)
			}
			for _, s := range w.steps {
				if s.Reply != "00000000000000000002" {
					t.Errorf("the step does not name what was written: %+v", s)
				}
			}
			if slices.Contains(w.did, "delay") && !w.until.Equal(received.Add(100*time.Hour)) {
				t.Errorf("told that it is tried until %v", w.until)
			}
			if p.State != envelope.Failed && p.State != envelope.Held && p.Due.IsZero() {
				t.Error("waits for nothing")
			}
		})
	}
}

func TestNobodyToTell(t *testing.T) {
	teller := New(&world{}, nil, nil, zap.NewNop())
	p := envelope.Progress{Results: []envelope.Result{{State: envelope.Failed, Owed: true}}}
	fate.Sum(&p)
	teller.Owe(context.Background(), &envelope.Claim{Envelope: &envelope.Envelope{}}, &p)
	teller.Park(status.Park{})
	if p.State != envelope.Failed || p.Results[0].Owed {
		t.Errorf("got %+v", p)
	}
}

// What is recorded outlives the attempts by five seconds, and no more.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts, cut := context.WithCancel(context.Background())
		ctx, cancel := Grace(attempts)
		defer cancel()
		<-time.After(time.Hour)
		cut()
		began := time.Now()
		<-ctx.Done()
		if got := time.Since(began); got != 5*time.Second {
			t.Errorf("ended after %v", got)
		}
		other, cancelOther := Grace(context.Background())
		cancelOther()
		<-other.Done()
	})
}
