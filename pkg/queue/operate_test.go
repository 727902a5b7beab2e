package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/envelope"
)

func TestHoldAndResume(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	ctx := t.Context()
	if err := r.q.Hold(ctx, env.ID, "ann", "looks odd"); err != nil {
		t.Fatal(err)
	}
	if r.state(env.ID) != envelope.Held || r.claim(alice) != nil {
		t.Error("a held message is offered")
	}
	if c, err := r.q.Get(ctx, env.ID); err != nil || c.Progress.Reason != "looks odd" || c.Progress.Changed.IsZero() {
		t.Errorf("got %+v, %v, want the reason and the time", c.Progress, err)
	}
	if err := r.q.Resume(ctx, env.ID, "ann"); err != nil {
		t.Fatal(err)
	}
	c := r.claim(alice)
	if c == nil || c.Progress.Reason != "" {
		t.Fatalf("got %+v after resume, want the message, without the reason", c)
	}
	for name, err := range map[string]error{"hold": r.q.Hold(ctx, env.ID, "ann", ""), "resume": r.q.Resume(ctx, env.ID, "ann")} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%s of a claimed message: got %v, want ErrBusy", name, err)
		}
	}
	if c, err := r.q.Get(ctx, env.ID); err != nil || c.Envelope.ID != env.ID {
		t.Errorf("get of a claimed message: %v, %v", c.Envelope, err)
	}
	r.settle(env, sent(c))
	_, err := r.q.Get(ctx, env.ID)
	for name, err := range map[string]error{"get": err, "hold": r.q.Hold(ctx, env.ID, "ann", ""), "resume": r.q.Resume(ctx, env.ID, "ann")} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s of a sent message: got %v, want ErrNotFound", name, err)
		}
	}
	if err := r.q.Settle(ctx, env, sent(c)); err == nil {
		t.Error("settled twice without an error")
	}
	r.q.Release(env, envelope.Progress{}) // of nothing: nothing happens
	r.idle()
}

func TestResumeTriesFailedRecipientsOnly(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Failed, Attempts: 7, Reason: "550",
		Results: []envelope.Result{{State: envelope.Sent, Reply: "250 ok"}, {State: envelope.Failed, Reply: "550 no"}}})
	if r.claim(alice) != nil {
		t.Error("failed mail is offered")
	}
	if err := r.q.Resume(t.Context(), env.ID, "ann"); err != nil {
		t.Fatal(err)
	}
	c := r.claim(alice)
	if got := c.Progress.Open(c.Envelope); !slices.Equal(got, []int{1}) || c.Progress.Attempts != 0 {
		t.Errorf("got open recipients %v after %d attempts, want only the failed one, afresh", got, c.Progress.Attempts)
	}
}

// TestPartlySent: who has the message is remembered, whatever word the state record carries.
func TestPartlySent(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	half := []envelope.Result{{State: envelope.Sent}, {State: envelope.Deferred}}
	for _, state := range []envelope.State{envelope.Sent, envelope.Sending, envelope.Queued, envelope.Deferred, envelope.Uncertain} {
		c := r.claim(alice)
		if c == nil {
			t.Fatalf("before %q: the message is gone although one recipient is left", state)
		}
		r.settle(env, envelope.Progress{State: state, Due: time.Now(), Results: half})
		r.restart()
		if c := r.claim(alice); c == nil || !slices.Equal(c.Progress.Open(c.Envelope), []int{1}) {
			t.Errorf("state %q with one recipient left: got %+v after a restart", state, c)
		} else {
			r.q.Release(c.Envelope, c.Progress)
		}
	}
}

func TestReleaseRestores(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	for _, state := range []envelope.State{envelope.Queued, envelope.Deferred, envelope.Uncertain} {
		if state != envelope.Queued {
			c := r.claim(alice)
			r.settle(env, envelope.Progress{State: state, Attempts: c.Progress.Attempts + 1, Due: time.Now()})
		}
		before := r.q.List(nil)
		c := r.claim(alice)
		if got := r.state(env.ID); got != envelope.Sending {
			t.Errorf("claimed: got %q, want sending", got)
		}
		r.q.Release(env, c.Progress)
		if diff := cmp.Diff(before, r.q.List(nil)); diff != "" {
			t.Errorf("%s, released (-before +after):\n%s", state, diff)
		}
		if again := r.claim(alice); again == nil || again.Progress.Attempts != c.Progress.Attempts {
			t.Errorf("%s, released: got %+v, want it offered as before", state, again)
		}
		r.q.Release(env, c.Progress)
		r.q.Release(env, c.Progress) // twice does no harm
	}
	c := r.claim(alice)
	r.settle(env, envelope.Progress{State: envelope.Held})
	r.q.Release(env, c.Progress) // too late: it is settled
	if got := r.state(env.ID); got != envelope.Held {
		t.Errorf("a release after the settlement made it %q, want held", got)
	}
}

func TestParkShowsInListings(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	waiting, held := r.put(alice, text(10)), r.put(alice, text(10))
	other := r.put("bob@contoso.com", text(10))
	if err := r.q.Hold(t.Context(), held.ID, "ann", "x"); err != nil {
		t.Fatal(err)
	}
	r.q.Park("ALICE@contoso.com", "token refused")
	parked := r.q.List(func(i Info) bool { return i.State == envelope.Parked })
	if len(parked) != 1 || parked[0].ID != waiting.ID || parked[0].Reason != "token refused" {
		t.Errorf("got %+v, want the waiting message, with the reason", parked)
	}
	if r.state(held.ID) != envelope.Held || r.state(other.ID) != envelope.Queued {
		t.Error("parking touched what does not wait, or another sender")
	}
	if c := r.claim(alice); c == nil { // it is for dispatch to stop, not for the queue
		t.Error("a parked sender's mail cannot be claimed for the trial")
	} else {
		r.q.Release(c.Envelope, c.Progress)
	}
	r.q.Park(alice, "")
	if got := r.state(waiting.ID); got != envelope.Queued {
		t.Errorf("got %q after the park ended, want queued", got)
	}
	r.q.Park("nobody@contoso.com", "x") // a sender without mail
}

func TestWaitingAndTally(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	first, held := r.put(alice, text(10)), r.put(alice, text(10))
	r.put(alice, text(10))
	r.put("bob@contoso.com", text(10))
	if err := r.q.Hold(t.Context(), held.ID, "ann", "x"); err != nil {
		t.Fatal(err)
	}
	r.q.Park("bob@contoso.com", "token refused")
	got := map[envelope.Address]Waiting{}
	for _, w := range r.q.Waiting() {
		got[w.Sender] = w
	}
	if w := got[alice]; w.Messages != 2 || !w.Oldest.Equal(first.ID.Time()) || w.Parked != "" {
		t.Errorf("got %+v of the first sender", w)
	}
	if w := got["bob@contoso.com"]; w.Messages != 1 || w.Parked != "token refused" {
		t.Errorf("got %+v of the second", w)
	}
	tally := r.q.Tally()
	if q, h, p := tally[envelope.Queued], tally[envelope.Held], tally[envelope.Parked]; q.Messages != 2 || h.Messages != 1 || p.Messages != 1 ||
		!q.Oldest.Equal(first.ID.Time()) || h.Bytes == 0 || !tally[envelope.Failed].Oldest.IsZero() {
		t.Errorf("got %+v", tally)
	}
}

func TestWatch(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	now := time.Now()
	r.put(alice, text(10))
	held := r.put("held@contoso.com", text(10))
	if err := r.q.Hold(t.Context(), held.ID, "ann", ""); err != nil {
		t.Fatal(err)
	}
	type call struct {
		sender envelope.Address
		due    time.Time
	}
	var calls []call
	told := func(what string, want ...call) {
		t.Helper()
		if !slices.EqualFunc(calls, want, func(a, b call) bool { return a.sender == b.sender && a.due.Equal(b.due) }) {
			t.Errorf("%s: told %v, want %v", what, calls, want)
		}
		calls = nil
	}
	r.q.Watch(func(sender envelope.Address, due time.Time) {
		if !r.q.index.mu.TryLock() { // single-threaded here: only the caller can hold it
			t.Error("called with the mutex held: a watcher that asks anything of the queue would hang")
		} else {
			r.q.index.mu.Unlock()
		}
		calls = append(calls, call{sender, due})
	})
	first := r.q.List(func(i Info) bool { return i.Sender == alice })[0]
	told("at once, of every sender with waiting mail", call{alice, first.Due})

	r.put(alice, text(10))
	told("a later message of the same sender")

	bob := r.put("bob@contoso.com", text(10))
	told("a new sender", call{"bob@contoso.com", bob.Received})

	c := r.claim(alice)
	told("a claim: its answer says when the next is due")
	r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Due: now.Add(time.Hour)})
	told("deferred behind the next")
	c = r.claim(alice)
	r.q.Release(c.Envelope, c.Progress)
	told("released to the front", call{alice, c.Envelope.Received})
	c = r.claim(alice)
	r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Due: now.Add(time.Minute)})
	told("deferred before the next", call{alice, now.Add(time.Minute)})
	c2 := r.claim("bob@contoso.com")
	r.settle(c2.Envelope, sent(c2))
	told("sent")
	if err := r.q.Resume(t.Context(), held.ID, "ann"); err != nil {
		t.Fatal(err)
	}
	resumed := r.q.List(func(i Info) bool { return i.ID == held.ID })[0]
	told("resumed", call{"held@contoso.com", resumed.Due})
}

func TestFailedMailIsCollected(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), func(o *Options) { o.KeepFailed = time.Hour })
	env := r.put(alice, text(2*chunkBytes))
	r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Failed}) // without a time: it failed now
	other := r.put(alice, text(10))
	for _, row := range []struct {
		after time.Duration
		left  int
	}{{0, 2}, {59 * time.Minute, 2}, {61 * time.Minute, 1}} {
		r.restart()
		r.q.collect(t.Context(), time.Now().Add(row.after))
		if n := len(r.q.List(nil)); n != row.left {
			t.Errorf("after %v: got %d messages, want %d", row.after, n, row.left)
		}
	}
	if r.state(env.ID) != "" || r.state(other.ID) != envelope.Queued {
		t.Error("the wrong one was collected")
	}
	r.drain()
	r.idle()
}

// TestRetry: due at once, the attempts and what is sent stay; what is held stays held.
func TestRetry(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	later := time.Now().Add(time.Hour)
	for _, row := range []struct {
		state    envelope.State
		first    envelope.State
		want     envelope.State
		attempts int
		open     []int
	}{
		{envelope.Deferred, envelope.Sent, envelope.Deferred, 4, []int{1}},
		{envelope.Uncertain, envelope.Uncertain, envelope.Uncertain, 4, []int{0, 1}},
		{envelope.Failed, envelope.Failed, envelope.Queued, 0, []int{0, 1}},
	} {
		r.claim(alice)
		r.settle(env, envelope.Progress{State: row.state, Attempts: 4, Due: later, Reason: "451", Results: []envelope.Result{
			{State: row.first, Reply: "450", Attempts: 4, Owed: true, Rule: "x"},
			{State: envelope.Deferred, Reply: "451", Attempts: 4, Due: later},
		}})
		if c := r.claim(alice); c != nil {
			t.Fatalf("%s: offered before its time", row.state)
		}
		if err := r.q.Retry(t.Context(), env.ID, "ann"); err != nil {
			t.Fatal(err)
		}
		r.restart()
		c := r.claim(alice)
		if c == nil {
			t.Fatalf("%s: not offered after a retry", row.state)
		}
		p := c.Progress
		if p.State != row.want || p.Attempts != row.attempts || p.Results[1].Attempts != row.attempts || !slices.Equal(p.Open(env), row.open) {
			t.Errorf("%s: got %+v", row.state, p)
		}
		if !p.Results[1].Due.IsZero() || time.Since(p.Due) > time.Minute || p.Results[1].Reply != "451" {
			t.Errorf("%s: got %+v, want all due, and the replies kept", row.state, p)
		}
		if row.state == envelope.Failed && (p.Results[0].Owed || p.Results[0].Rule != "" || p.Results[0].State != envelope.Queued) {
			t.Errorf("the failed recipient is %+v, want it queued afresh", p.Results[0])
		}
		if err := r.q.Retry(t.Context(), env.ID, "ann"); !errors.Is(err, ErrBusy) {
			t.Errorf("while it is being sent: got %v, want ErrBusy", err)
		}
		r.q.Release(env, p)
	}
	if err := r.q.Hold(t.Context(), env.ID, "ann", ""); err != nil {
		t.Fatal(err)
	}
	if err := r.q.Retry(t.Context(), env.ID, "ann"); !errors.Is(err, ErrHeld) || r.state(env.ID) != envelope.Held {
		t.Errorf("of a held message: got %v, and it is %s, want it held", err, r.state(env.ID))
	}
	if err := r.q.Retry(t.Context(), "nonsense", "ann"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of nothing: got %v, want ErrNotFound", err)
	}
}

// TestResumeOfUncertain: that a recipient may have the message already is not forgotten.
func TestResumeOfUncertain(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Uncertain, Due: time.Now().Add(time.Hour), Attempts: 2,
		Results: []envelope.Result{{State: envelope.Uncertain, Attempts: 2}, {State: envelope.Sent}}})
	if err := errors.Join(r.q.Hold(t.Context(), env.ID, "ann", ""), r.q.Resume(t.Context(), env.ID, "ann")); err != nil {
		t.Fatal(err)
	}
	if c := r.claim(alice); c == nil || c.Progress.Results[0].State != envelope.Uncertain || c.Progress.Results[1].State != envelope.Sent {
		t.Errorf("got %+v, want the first uncertain, the second sent", c)
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	ctx := t.Context()
	var all []*envelope.Envelope
	for _, state := range []envelope.State{envelope.Deferred, envelope.Uncertain, envelope.Held, envelope.Failed} {
		env := r.put(alice, text(2*chunkBytes))
		r.settle(r.claim(alice).Envelope, envelope.Progress{State: state, Due: time.Now().Add(time.Hour)})
		all = append(all, env)
	}
	all = append(all, r.put(alice, text(10)))
	c := r.claim(alice)
	if err := r.q.Drop(ctx, c.Envelope.ID, "ann"); !errors.Is(err, ErrBusy) {
		t.Errorf("while it is being sent: got %v, want ErrBusy", err)
	}
	r.q.Release(c.Envelope, c.Progress)
	for _, env := range all {
		if err := r.q.Drop(ctx, env.ID, "ann"); err != nil {
			t.Error(err)
		}
		if err := r.q.Drop(ctx, env.ID, "ann"); !errors.Is(err, ErrNotFound) {
			t.Errorf("a second time: got %v, want ErrNotFound", err)
		}
	}
	r.idle()
	r.restart()
	r.idle()
}

// TestSteps: whoever keeps the history hears of every acceptance and of what operators do, in order, and by whom.
func TestSteps(t *testing.T) {
	t.Parallel()
	var steps []envelope.Step
	r := newRig(t, t.TempDir(), func(o *Options) {
		o.KeepFailed = time.Hour
		o.Record = func(s envelope.Step) { steps = append(steps, s) } // from this goroutine alone
	})
	ctx := t.Context()
	told := func(what string, want ...envelope.Step) {
		t.Helper()
		for i := range steps {
			if time.Since(steps[i].At) > time.Minute {
				t.Errorf("%s: step without time: %+v", what, steps[i])
			}
			steps[i].At, steps[i].Due = time.Time{}, time.Time{}
		}
		if diff := cmp.Diff(want, steps); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		steps = nil
	}
	env := r.put(alice, text(10))
	id := env.ID
	told("put", envelope.Step{ID: id, What: envelope.StepAccepted, State: envelope.Queued, Envelope: env})
	if err := r.q.Put(ctx, env, strings.NewReader("again")); err != nil {
		t.Fatal(err)
	}
	told("put again")
	if err := errors.Join(r.q.Hold(ctx, id, "ann", "looks odd"), r.q.Resume(ctx, id, "bob"), r.q.Retry(ctx, id, "eve")); err != nil {
		t.Fatal(err)
	}
	told("operated",
		envelope.Step{ID: id, What: envelope.StepHeld, State: envelope.Held, By: "ann", Reply: "looks odd"},
		envelope.Step{ID: id, What: envelope.StepReleased, State: envelope.Queued, By: "bob"},
		envelope.Step{ID: id, What: envelope.StepRetried, State: envelope.Queued, By: "eve"})
	if err := r.q.Retry(ctx, "none", "ann"); err == nil {
		t.Fatal("retried nothing")
	}
	told("refused")
	r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Held, Reason: "poison"})
	told("held by dispatch", envelope.Step{ID: id, What: envelope.StepHeld, State: envelope.Held, Reply: "poison"})
	if err := r.q.Drop(ctx, id, "ann"); err != nil {
		t.Fatal(err)
	}
	told("dropped", envelope.Step{ID: id, What: envelope.StepDropped, State: envelope.Failed, By: "ann"})
	old := r.put(alice, text(10))
	r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Failed})
	r.q.collect(ctx, time.Now())
	told("put", envelope.Step{ID: old.ID, What: envelope.StepAccepted, State: envelope.Queued, Envelope: old})
	r.q.collect(ctx, time.Now().Add(2*time.Hour))
	told("collected", envelope.Step{ID: old.ID, What: envelope.StepExpired, State: envelope.Failed})
	damaged := r.put(alice, text(10))
	steps = nil
	r.replace(r.q.index.get(damaged.ID), "mail", []byte("1 ?"), nil)
	r.q.index.get(damaged.ID).mail = r.lastSequence(damaged.ID)
	if c := r.claim(alice); c != nil {
		t.Fatal("damaged mail is offered")
	}
	if len(steps) != 1 || steps[0].What != envelope.StepHeld || steps[0].State != envelope.Held || steps[0].Reply == "" {
		t.Errorf("quarantined: got %+v", steps)
	}
}

// lastSequence is that of the newest mail record under an id.
func (r *rig) lastSequence(id envelope.ID) uint64 {
	r.t.Helper()
	e := r.q.index.get(id)
	msg, err := r.q.store.Load().mail[e.stream].GetLastMsgForSubject(r.t.Context(), e.place().subject("mail"))
	if err != nil {
		r.t.Fatal(err)
	}
	return msg.Sequence
}

// TestRest: memory alone knows that a message rests.
func TestRest(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	first, second := r.put(alice, text(10)), r.put(alice, text(10))
	var told []time.Time
	r.q.Watch(func(_ envelope.Address, due time.Time) { told = append(told, due) })
	told = nil
	c := r.claim(alice)
	until := time.Now().Add(time.Hour)
	r.q.Rest(c.Envelope, until)
	if info, _ := r.q.Info(first.ID); info.State != envelope.Queued || !info.Due.Equal(until) {
		t.Errorf("got %+v, want it queued, due in an hour", info)
	}
	c = r.claim(alice)
	if c == nil || c.Envelope.ID != second.ID || !c.Next.Equal(until) {
		t.Fatalf("got %+v, want the other message, and next the one that rests", c)
	}
	if len(told) != 0 {
		t.Errorf("told %v, want nothing: the claim's answer said it", told)
	}
	soon := until.Add(-time.Minute)
	r.q.Rest(c.Envelope, soon)
	if len(told) != 1 || !told[0].Equal(soon) {
		t.Errorf("told %v, want that the sender's mail is due at %v", told, soon)
	}
	r.q.Rest(c.Envelope, time.Now()) // of nothing: nothing happens
	if r.claim(alice) != nil {
		t.Error("offered before its time")
	}
	r.restart()
	for _, want := range []envelope.ID{first.ID, second.ID} {
		if c := r.claim(alice); c == nil || c.Envelope.ID != want {
			t.Errorf("got %+v after a restart, want %s: due as stored", c, want)
		}
	}
}

// TestNote: an interim outcome is durable, the claim goes on.
func TestNote(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	c := r.claim(alice)
	p := envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: time.Now(), Changed: time.Now(), Results: []envelope.Result{
		{State: envelope.Failed, Reply: "550 no", Owed: true}, {State: envelope.Deferred, Reply: "451"}}}
	if err := r.q.Note(t.Context(), env, p); err != nil {
		t.Fatal(err)
	}
	if got := r.state(env.ID); got != envelope.Sending || r.claim(alice) != nil {
		t.Errorf("got %q, want the claim to go on", got)
	}
	woken := newRig(t, image(t, r.dir), nil) // kill -9
	if c := woken.claim(alice); c == nil || c.Progress.State != envelope.Deferred || !c.Progress.Results[0].Owed || c.Progress.Attempts != 1 {
		t.Errorf("after kill -9: got %+v, want it at once, as noted", c)
	}
	woken.kill()
	r.q.Release(env, c.Progress)
	if got := r.state(env.ID); got != envelope.Deferred {
		t.Errorf("released: got %q, want it as noted", got)
	}
	c = r.claim(alice)
	if c == nil || !c.Progress.Results[0].Owed {
		t.Fatalf("claimed again: got %+v, want the debt", c)
	}
	p.Due = time.Now().Add(time.Hour)
	if err := r.q.Note(t.Context(), env, p); err != nil {
		t.Fatal(err)
	}
	r.q.Release(env, c.Progress)
	if r.claim(alice) != nil {
		t.Error("noted as due in an hour, and offered at once")
	}
	if err := r.q.Drop(t.Context(), env.ID, "ann"); err != nil {
		t.Fatal(err)
	}
	if err := r.q.Note(t.Context(), env, p); err == nil {
		t.Error("noted what is not there")
	}
	r.idle()
}

func TestInfoAndFind(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	a, b := r.put(alice, text(10)), r.put("bob@contoso.com", text(20))
	r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Deferred, Attempts: 70_000, Due: time.Now()})
	for range 2 {
		info, ok := r.q.Info(a.ID)
		if !ok || info.Sender != alice || info.Size != 10 || info.State != envelope.Deferred || info.Attempts != 65_535 {
			t.Errorf("got %+v, %v", info, ok)
		}
		list := r.q.Find([]envelope.ID{b.ID, "none", a.ID + "x", "", a.ID})
		if len(list) != 2 || list[0].ID != b.ID || list[1].ID != a.ID {
			t.Errorf("got %v, want the two there are, in the order asked", list)
		}
		r.restart()
	}
	if _, ok := r.q.Info(a.ID[:19]); ok {
		t.Error("found by half an id")
	}
}

// TestListLetsOthersIn: a listing of many neither holds the index all the time nor minds what happens meanwhile.
func TestListLetsOthersIn(t *testing.T) {
	q := new(Queue)
	q.index.init(new(space))
	add := func() {
		env := newEnvelope(alice)
		q.index.add(&entry{id: packID(env.ID), due: time.Now().UnixNano()}, alice)
	}
	for range 3*walkSlice + 1 {
		add()
	}
	first := q.List(nil)
	if len(first) != 3*walkSlice+1 || !slices.IsSortedFunc(first, func(a, b Info) int { return strings.Compare(string(a.ID), string(b.ID)) }) {
		t.Fatalf("got %d entries, want all, in order", len(first))
	}
	seen := map[envelope.ID]int{}
	kept := q.List(func(i Info) bool {
		seen[i.ID]++
		if len(seen) == walkSlice { // from within: another goroutine could as well
			for _, info := range first[:walkSlice] {
				q.index.drop(q.index.get(info.ID))
			}
			for range walkSlice {
				add()
			}
		}
		return i.ID == first[len(first)-1].ID
	})
	if len(kept) != 1 {
		t.Errorf("got %d kept, want the one that was there all the time", len(kept))
	}
	for id, n := range seen {
		if n != 1 {
			t.Fatalf("%s was visited %d times", id, n)
		}
	}
	if len(q.List(nil)) != 3*walkSlice+1 {
		t.Error("the index changed")
	}
}

// TestLanesAreFreed: a relay of many senders must not remember each that ever sent.
func TestLanesAreFreed(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	lanes := func(what string, want int) {
		t.Helper()
		r.q.index.mu.Lock()
		defer r.q.index.mu.Unlock()
		if got := len(r.q.index.lanes); got != want {
			t.Errorf("%s: got %d lanes, want %d", what, got, want)
		}
	}
	a, b := r.put(alice, text(10)), r.put(alice, text(10))
	c := r.claim(alice)
	r.settle(a, sent(c))
	lanes("one of two sent", 1)
	c = r.claim(alice)
	lanes("the other claimed", 1)
	r.q.Park(alice, "token refused")
	r.settle(b, sent(c))
	lanes("nothing left, but parked", 1)
	env := r.put("ALICE@contoso.com", text(10))
	if got := r.state(env.ID); got != envelope.Parked {
		t.Errorf("got %q, want the park remembered", got)
	}
	r.q.Park(alice, "")
	lanes("the park is over", 1)
	if err := r.q.Drop(t.Context(), env.ID, "ann"); err != nil {
		t.Fatal(err)
	}
	lanes("dropped", 0)
	r.q.Park("bob@contoso.com", "")
	lanes("a park that never was is over", 0)
	r.q.Park("bob@contoso.com", "x")
	lanes("parked without mail", 1)
	r.q.Park("bob@contoso.com", "")
	lanes("no longer", 0)
	held := r.put(alice, text(10))
	if err := r.q.Hold(t.Context(), held.ID, "ann", ""); err != nil {
		t.Fatal(err)
	}
	lanes("held", 1)
	r.restart()
	lanes("after a restart", 1)
}

// TestHistoryStreamIsRemoved: earlier versions kept the history in the queue's own storage.
func TestHistoryStreamIsRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	js := r.jetstream()
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "RELAYD_HISTORY", Subjects: []string{"relayd.history.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "relayd.history.1.x", []byte("old")); err != nil {
		t.Fatal(err)
	}
	env := r.put(alice, text(10))
	r.restart()
	if _, err := r.jetstream().Stream(t.Context(), "RELAYD_HISTORY"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("got %v, want no such stream", err)
	}
	if got := r.state(env.ID); got != envelope.Queued {
		t.Errorf("got %q, want the mail untouched", got)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, t.TempDir(), func(o *Options) { o.Registerer = reg })
	for i, state := range []envelope.State{envelope.Deferred, envelope.Uncertain, envelope.Held, envelope.Failed} {
		sender := envelope.Address(string(state) + "@contoso.com")
		env := r.put(sender, text(100*(i+1)))
		r.settle(r.claim(sender).Envelope, envelope.Progress{State: state, Due: time.Now()})
		if got := r.state(env.ID); got != state {
			t.Fatalf("got %q, want %q", got, state)
		}
	}
	r.put("queued@contoso.com", text(1000))
	r.put("queued@contoso.com", text(1000))
	r.put("sending@contoso.com", text(2000))
	r.claim("sending@contoso.com")
	r.put("parked@contoso.com", text(3000))
	r.q.Park("parked@contoso.com", "test")
	want := `
# HELP relayd_queue_bytes Octets of the messages in the queue.
# TYPE relayd_queue_bytes gauge
relayd_queue_bytes{state="deferred"} 100
relayd_queue_bytes{state="failed"} 400
relayd_queue_bytes{state="held"} 300
relayd_queue_bytes{state="parked"} 3000
relayd_queue_bytes{state="queued"} 2000
relayd_queue_bytes{state="sending"} 2000
relayd_queue_bytes{state="uncertain"} 200
# HELP relayd_queue_messages Messages in the queue.
# TYPE relayd_queue_messages gauge
relayd_queue_messages{state="deferred"} 1
relayd_queue_messages{state="failed"} 1
relayd_queue_messages{state="held"} 1
relayd_queue_messages{state="parked"} 1
relayd_queue_messages{state="queued"} 2
relayd_queue_messages{state="sending"} 1
relayd_queue_messages{state="uncertain"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "relayd_queue_messages", "relayd_queue_bytes"); err != nil {
		t.Error(err)
	}
	r.put("queued@contoso.com", text(1000))
	r.q.metrics.took = time.Hour // a walk that long is not repeated at every scrape
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "relayd_queue_messages", "relayd_queue_bytes"); err != nil {
		t.Errorf("a second scrape walked the index anew: %v", err)
	}
	r.q.metrics.took = time.Nanosecond
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "relayd_queue_messages"); err == nil {
		t.Error("a later scrape does not see the new message")
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "relayd_queue_oldest_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			if age := m.GetGauge().GetValue(); age < 0 || age > 60 || (age == 0) != (m.GetLabel()[0].GetValue() == "") {
				t.Errorf("%v: oldest is %v s old", m.GetLabel(), age)
			}
		}
	}
}

// TestTogether has many goroutines put, claim, settle, release, hold, resume and look at the same messages. Nothing is
// claimed twice at once, nothing is lost, nothing is left.
func TestTogether(t *testing.T) {
	t.Parallel()
	const writers, each = 8, 40
	r := newRig(t, t.TempDir(), nil)
	r.run()
	ctx := t.Context()
	senders := []envelope.Address{"a@contoso.com", "b@contoso.com", "c@contoso.com"}
	var inHand, done sync.Map // by id
	var left atomic.Int64
	left.Store(writers * each)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				env := newEnvelope(senders[(w+i)%len(senders)])
				if err := r.q.Put(ctx, env, bytes.NewReader(text(100*i))); err != nil {
					t.Errorf("put: %v", err)
				}
			}
		})
	}
	for w := range 6 {
		wg.Go(func() {
			for n := 0; left.Load() > 0; n++ {
				c, err := r.q.Claim(ctx, senders[(w+n)%len(senders)], time.Now())
				if err != nil {
					t.Errorf("claim: %v", err)
					return
				}
				if c.Envelope == nil {
					continue
				}
				id := c.Envelope.ID
				if _, busy := inHand.LoadOrStore(id, true); busy {
					t.Errorf("%s was claimed twice at once", id)
				}
				if _, err := io.Copy(io.Discard, c.Body(ctx)); err != nil {
					t.Errorf("body: %v", err)
				}
				inHand.Delete(id) // before the claim ends: whoever comes next must find it free
				switch n % 4 {
				case 0:
					r.q.Release(c.Envelope, c.Progress)
				case 1:
					err = r.q.Settle(ctx, c.Envelope, envelope.Progress{State: envelope.Deferred, Attempts: c.Progress.Attempts + 1, Due: time.Now()})
				default:
					if _, again := done.LoadOrStore(id, true); again {
						t.Errorf("%s was sent twice", id)
					}
					if err = r.q.Settle(ctx, c.Envelope, sent(&c)); err == nil {
						left.Add(-1)
					}
				}
				if err != nil {
					t.Errorf("settle: %v", err)
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() { // the operator
			for left.Load() > 0 {
				for _, info := range r.q.List(nil) {
					_, err := r.q.Get(ctx, info.ID)
					err = errors.Join(err, r.q.Hold(ctx, info.ID, "ann", "now"), r.q.Resume(ctx, info.ID, "ann"))
					for _, e := range flatten(err) {
						if !errors.Is(e, ErrBusy) && !errors.Is(e, ErrNotFound) {
							t.Errorf("operate: %v", e)
						}
					}
				}
				r.q.count()
				for _, s := range senders {
					r.q.Park(s, "")
				}
			}
		})
	}
	wg.Wait()
	for _, info := range r.q.List(nil) {
		t.Errorf("%s is left %s", info.ID, info.State)
	}
	r.idle()
	if n := count(t, r.q.metrics.lost) + count(t, r.q.metrics.faults); n != 0 {
		t.Errorf("%v faults and losses", n)
	}
}

// flatten returns the errors that errors.Join put together.
func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // one level, as Join made it
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func TestAuditMarks(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	r.put(alice, text(10))
	r.restart()
	if n := count(t, r.q.metrics.auditFailures); n != 0 {
		t.Errorf("an untouched queue failed %v audits", n)
	}
	r.put(alice, text(10))
	r.kill() // no farewell: the marks of the last one must not count any more
	r.start()
	if n := count(t, r.q.metrics.auditFailures); n != 0 {
		t.Errorf("after a crash %v audits failed against an old mark", n)
	}
	if err := r.q.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, err := r.jetstream().Stream(t.Context(), "RELAYD_META")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := meta.GetLastMsgForSubject(t.Context(), auditSubject(0))
	if err != nil {
		t.Fatal(err)
	}
	var m mark
	if err := json.Unmarshal(msg.Data, &m); err != nil {
		t.Fatalf("mark %q: %v", msg.Data, err)
	}
	if err := r.q.Close(t.Context()); err != nil {
		t.Errorf("second close: %v", err)
	}
	if err := r.q.Put(context.Background(), newEnvelope(alice), strings.NewReader("x")); code(err) != 451 {
		t.Errorf("put after close: got %v, want 451", err)
	}
}
