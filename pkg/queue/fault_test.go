package queue

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"relayd/pkg/envelope"
)

// cut closes the queue's connections under it: the server answers nobody any more.
func (r *rig) cut() {
	for _, nc := range r.q.store.Load().conns {
		nc.Close()
	}
}

// gated makes Reopen wait for the returned release, so that a test can look around while the server is away.
func gated(r *rig) (entered chan struct{}, release func()) {
	entered, gate := make(chan struct{}, 10), make(chan struct{})
	reopen := r.q.opts.Reopen
	r.q.opts.Reopen = func(ctx context.Context) ([]*nats.Conn, error) {
		entered <- struct{}{}
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return reopen(ctx)
	}
	return entered, sync.OnceFunc(func() { close(gate) })
}

func TestServerGone(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	first := r.put(alice, text(100))
	claimed := r.claim(alice)
	entered, release := gated(r)
	r.run()
	r.cut()
	begun := time.Now()
	for _, size := range []int{100, 2 * chunkBytes} {
		if err := r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(text(size))); code(err) != 451 {
			t.Errorf("got %v, want 451", err)
		}
	}
	<-entered
	if err := r.q.Ready(); err == nil {
		t.Error("ready while the server is away")
	}
	if err := r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(nil)); code(err) != 451 {
		t.Errorf("got %v, want 451", err)
	}
	if _, err := r.q.Get(t.Context(), first.ID); code(err) != 451 {
		t.Errorf("get: got %v, want 451", err)
	}
	if took := time.Since(begun); took > opTimeout {
		t.Errorf("clients waited %v for their 451", took)
	}
	settled := make(chan error, 1)
	go func() { settled <- r.q.Settle(t.Context(), claimed.Envelope, sent(claimed)) }()
	if c, err := r.q.Claim(t.Context(), alice, time.Now()); c.Envelope != nil {
		t.Errorf("got %+v, %v, want nothing: the only message is claimed", c, err)
	}
	release()
	if err := <-settled; err != nil {
		t.Errorf("the settlement begun during the outage: %v", err)
	}
	await(t, "ready again", 10*time.Second, func() bool { return r.q.Ready() == nil })
	r.put(alice, text(2*chunkBytes))
	r.drain()
	r.idle()
	if n := count(t, r.q.metrics.reopened); n != 1 {
		t.Errorf("reopened %v times, want once", n)
	}
}

func TestReopenTriesUntilItWorks(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(100))
	reopen := r.q.opts.Reopen
	var tries atomic.Int32
	r.q.opts.Reopen = func(ctx context.Context) ([]*nats.Conn, error) {
		if tries.Add(1) == 1 {
			return nil, errors.New("disk away")
		}
		return reopen(ctx)
	}
	r.run()
	r.cut()
	r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(nil)) // refused, which starts the cure
	await(t, "ready again", 10*time.Second, func() bool { return tries.Load() == 2 && r.q.Ready() == nil })
	if c := r.claim(alice); c.Envelope.ID != env.ID {
		t.Errorf("got %v, want the message from before", c.Envelope.ID)
	}
	if r.claim(alice) != nil {
		t.Error("the message whose client heard 451 is offered")
	}
}

func TestRunEndsDuringAnOutage(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	entered, _ := gated(r)
	r.run()
	r.cut()
	r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(nil))
	<-entered
	r.stop()
	if err := r.q.Close(t.Context()); err != nil {
		t.Errorf("close without a server: %v", err)
	}
}

// TestRefusedButStored: the record is on the disk, but its client never heard so. After a reopening it must not be sent,
// since the client sends it again.
func TestRefusedButStored(t *testing.T) {
	for _, size := range []int{100, 2 * chunkBytes} {
		r := newRig(t, t.TempDir(), nil)
		env := r.put(alice, text(size))
		r.q.index.drop(r.q.index.get(env.ID)) // as if the acknowledgement had been lost
		r.q.refused[env.ID] = true
		kept := r.put(alice, text(size))
		r.q.fault(r.q.store.Load(), "put", errors.New("no answer"))
		r.q.reopen(t.Context())
		c := r.claim(alice)
		if c.Envelope.ID != kept.ID {
			t.Errorf("got %v, want only %v", c.Envelope.ID, kept.ID)
		}
		if r.claim(alice) != nil {
			t.Error("the refused message is offered")
		}
		if n := r.records("MAIL", env.ID) + r.records("CHUNK", env.ID); n != 0 {
			t.Errorf("%d records of the refused message are left", n)
		}
		r.settle(c.Envelope, sent(c))
		r.idle()
		if len(r.q.refused) != 0 {
			t.Error("refusals are never forgotten")
		}
		r.kill()
	}
}

// TestUploadAcrossAReopening: its first half went to a server that is no more.
func TestUploadAcrossAReopening(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	begun := time.Now()
	for _, size := range []int{100, 2 * chunkBytes} {
		reopened := readerFunc(func([]byte) (int, error) { r.q.reopen(t.Context()); return 0, io.EOF })
		err := r.q.Put(t.Context(), newEnvelope(alice), io.MultiReader(bytes.NewReader(text(size)), reopened))
		if code(err) != 451 {
			t.Errorf("%d octets: got %v, want 451", size, err)
		}
		if len(r.q.broken) != 0 {
			t.Errorf("%d octets: the new server is to be reopened for the old one's fault", size)
		}
		if err := r.q.Ready(); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(begun); took > opTimeout {
		t.Errorf("the clients waited %v for their 451", took)
	}
	r.idle()
}

func TestClaimsSurviveReopening(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	for range 3 {
		r.put(alice, text(2*chunkBytes))
	}
	a, b, c := r.claim(alice), r.claim(alice), r.claim(alice)
	half := a.Body(t.Context())
	if _, err := io.CopyN(io.Discard, half, 1000); err != nil {
		t.Fatal(err)
	}
	r.q.reopen(t.Context())
	if again := r.claim(alice); again != nil {
		t.Fatalf("%s is offered twice at once", again.Envelope.ID)
	}
	if _, err := io.Copy(io.Discard, half); err != nil {
		t.Errorf("a body that was being read: %v", err)
	}
	r.body(b)
	r.settle(a.Envelope, sent(a))
	r.settle(b.Envelope, envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: time.Now()})
	r.q.Release(c.Envelope, c.Progress)
	for _, attempts := range []int{0, 1} {
		next := r.claim(alice)
		if next == nil || next.Progress.Attempts != attempts {
			t.Fatalf("got %+v, want the released message, then the deferred one", next)
		}
		r.settle(next.Envelope, sent(next))
	}
	r.idle()
}

// TestUnansweredStateWrite: the record was replaced, nobody saw the acknowledgement.
func TestUnansweredStateWrite(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	c := r.claim(alice)
	results := []envelope.Result{{State: envelope.Sent}, {State: envelope.Deferred}}
	r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: time.Now(), Results: results})
	e := r.q.index.get(env.ID)
	p := envelope.Progress{State: envelope.Deferred, Attempts: 2, Due: time.Now(), Results: results}
	record, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	c = r.claim(alice)
	if _, err := r.q.store.Load().putState(t.Context(), e.place(), record, e.last); err != nil {
		t.Fatal(err)
	}
	r.q.Release(c.Envelope, c.Progress)
	c = r.claim(alice)
	if c == nil || c.Progress.Attempts != 2 || len(c.Progress.Open(c.Envelope)) != 1 {
		t.Fatalf("got %+v, want the newest state, with one recipient left", c)
	}
	r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Attempts: 3, Due: time.Now(), Results: results})
	if c = r.claim(alice); c.Progress.Attempts != 3 {
		t.Errorf("got %d attempts, want 3", c.Progress.Attempts)
	}
	r.settle(c.Envelope, sent(c))
	r.idle()
	if n := count(t, r.q.metrics.faults) + count(t, r.q.metrics.lost); n != 0 {
		t.Errorf("got %v faults and losses, want none", n)
	}
}

// TestUnansweredRemoval: the mail record was removed, nobody saw the acknowledgement.
func TestUnansweredRemoval(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	c := r.claim(alice)
	e := r.q.index.get(env.ID)
	if err := r.q.store.Load().remove(t.Context(), r.q.store.Load().locate(e.place(), "mail", e.mail)); err != nil {
		t.Fatal(err)
	}
	r.settle(c.Envelope, sent(c))
	r.idle()
}

// TestUnansweredPut: the second try must find the first, not store the message twice.
func TestUnansweredPut(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	st, at := r.q.store.Load(), r.q.index.get(env.ID).place()
	record, err := env.Encode()
	if err != nil {
		t.Fatal(err)
	}
	msg := newRecord(at.subject("mail"), record, text(10))
	msg.Header.Set(headerExpected, "0")
	if _, err := st.publish(t.Context(), at, msg); apiCode(err) != codeWrongSequence {
		t.Fatalf("got %v, want the server to know the message", err)
	}
	if n := r.records("MAIL", env.ID); n != 1 {
		t.Errorf("got %d mail records, want 1", n)
	}
}

func TestSettleGivesUpWithItsContext(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	c := r.claim(alice)
	r.q.store.Store(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for _, p := range []envelope.Progress{sent(c), {State: envelope.Deferred, Due: time.Now()}} {
		if err := r.q.Settle(ctx, c.Envelope, p); err == nil {
			t.Error("got no error although nothing was written")
		}
		if got := r.state(env.ID); got != envelope.Sending {
			t.Errorf("got %q, want the claim to stay", got)
		}
	}
}

func TestCollectDoesNotBlockTheCure(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), func(o *Options) { o.KeepFailed = time.Nanosecond })
	for range 3 {
		r.put(alice, text(10))
		c := r.claim(alice)
		r.settle(c.Envelope, envelope.Progress{State: envelope.Failed})
	}
	r.cut()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.q.collect(ctx, time.Now().Add(time.Second)) // fails for all of them
	for _, info := range r.q.List(nil) {
		if info.State != envelope.Failed {
			t.Errorf("got %q, want failed mail that could not be collected to stay failed", info.State)
		}
	}
	begun := time.Now()
	r.q.collect(t.Context(), time.Now().Add(time.Second)) // as does this, in Run's own goroutine
	if took := time.Since(begun); took > 2*opTimeout {
		t.Errorf("the server could not be reopened for %v", took)
	}
	r.q.reopen(t.Context())
	r.q.collect(t.Context(), time.Now().Add(time.Second))
	r.idle()
}

func TestFaultOfAnOldServer(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	old := r.q.store.Load()
	r.q.fault(old, "put", errors.New("no answer"))
	if len(r.q.broken) != 1 {
		t.Error("a fault of the server at hand asks for no reopening")
	}
	r.q.reopen(t.Context())
	r.q.fault(old, "put", errors.New("connection closed"))
	if len(r.q.broken) != 0 || count(t, r.q.metrics.faults) != 1 {
		t.Error("what fails on a server that is gone has the next one reopened, and so on for ever")
	}
}

// TestCommitAgainstReopening: a message whose body is complete when the server goes is either in the index and answered
// 250, or neither.
func TestCommitAgainstReopening(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	r.q.commits.Lock() // as the reopening does, at its turn
	read, done := make(chan struct{}), make(chan error)
	end := readerFunc(func([]byte) (int, error) { close(read); return 0, io.EOF })
	go func() { done <- r.q.Put(t.Context(), newEnvelope(alice), end) }()
	<-read
	select {
	case err := <-done:
		t.Fatalf("put went on with %v while the index is being compared", err)
	case <-time.After(50 * time.Millisecond):
	}
	st := r.q.store.Swap(nil)
	r.q.commits.Unlock()
	if err := <-done; code(err) != 451 {
		t.Errorf("got %v, want 451", err)
	}
	r.q.store.Store(st)
	r.idle()
}

// TestLostRecord: the disk no longer holds what the index knows.
func TestLostRecord(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env, kept := r.put(alice, text(10)), r.put(alice, text(10))
	e := r.q.index.get(env.ID)
	if err := r.q.store.Load().remove(t.Context(), r.q.store.Load().locate(e.place(), "mail", e.mail)); err != nil {
		t.Fatal(err)
	}
	r.q.reopen(t.Context())
	if n := count(t, r.q.metrics.lost); n != 1 {
		t.Errorf("relayd_queue_lost_total is %v, want 1", n)
	}
	if c := r.claim(alice); c == nil || c.Envelope.ID != kept.ID || r.claim(alice) != nil {
		t.Error("want the other message offered, and nothing else")
	}
}

// TestFaultOfAnother: another part that gets no answer has the server opened anew, once.
func TestFaultOfAnother(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	entered, release := gated(r)
	r.run()
	r.q.Fault(errors.New("no answer"))
	<-entered
	r.q.Fault(errors.New("no answer")) // it is being opened
	release()
	for r.q.store.Load() == nil {
		runtime.Gosched()
	}
	if err := r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(text(10))); err != nil {
		t.Errorf("after the reopening: %v", err)
	}
	r.close()
	if n := count(t, r.q.metrics.faults); n != 1 {
		t.Errorf("got %v faults, want 1", n)
	}
}
