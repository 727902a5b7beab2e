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
