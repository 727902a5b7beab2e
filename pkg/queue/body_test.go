package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"relayd/pkg/envelope"
)

// idle fails the test unless the queue holds nothing and owes nothing: no record, no memory, no octet in the accounting.
func (r *rig) idle() {
	r.t.Helper()
	if list := r.q.List(nil); len(list) != 0 {
		r.t.Errorf("got %v in the queue, want nothing", list)
	}
	if m, c := r.records("MAIL", ""), r.records("CHUNK", ""); m != 0 || c != 0 {
		r.t.Errorf("got %d mail and %d chunk records on the disk, want none", m, c)
	}
	if n := r.q.space.stored.Load(); n != 0 {
		r.t.Errorf("accounting says %d octets are stored, want 0", n)
	}
	if !r.q.memory.TryAcquire(r.q.opts.MemoryBytes) {
		r.t.Error("the memory budget was not returned in full")
	} else {
		r.q.memory.Release(r.q.opts.MemoryBytes)
	}
}

func TestBodyErrorQueuesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	custom := errors.New("connection reset by the tests")
	for _, offset := range []int{0, 1, inlineBytes - 1, inlineBytes, inlineBytes + 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 5} {
		for _, cause := range []error{
			io.ErrUnexpectedEOF, // what io.ReadFull makes of an end, and a broken-off DATA of itself
			fmt.Errorf("read from client: %w", io.EOF),
			custom,
			context.Canceled,
		} {
			body := io.MultiReader(bytes.NewReader(text(offset)), iotest.ErrReader(cause))
			err := r.q.Put(t.Context(), newEnvelope(alice), body)
			if !errors.Is(err, cause) {
				t.Errorf("offset %d: got %v, want %v in the chain", offset, err, cause)
			}
		}
	}
	if len(r.q.broken) != 0 {
		t.Error("a client's failure had the storage reopened")
	}
	r.idle()
}

func TestBodyErrorTogetherWithOctets(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	for _, n := range []int{10, inlineBytes + 10} {
		body := iotest.DataErrReader(io.MultiReader(bytes.NewReader(text(n)), iotest.ErrReader(io.ErrUnexpectedEOF)))
		if err := r.q.Put(t.Context(), newEnvelope(alice), body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d octets: got %v, want the body's error", n, err)
		}
	}
	r.idle()
	for _, n := range []int{10, inlineBytes, inlineBytes + 10, chunkBytes} { // the end may come with the last octets, too
		env := newEnvelope(alice)
		if err := r.q.Put(t.Context(), env, iotest.DataErrReader(bytes.NewReader(text(n)))); err != nil {
			t.Fatal(err)
		}
		c := r.claim(alice)
		if !bytes.Equal(r.body(c), text(n)) {
			t.Errorf("%d octets: the body changed", n)
		}
		r.settle(c.Envelope, sent(c))
	}
	r.idle()
}

func TestBodyInSmallPieces(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	want := text(inlineBytes + 1000)
	if err := r.q.Put(t.Context(), newEnvelope(alice), iotest.HalfReader(bytes.NewReader(want))); err != nil {
		t.Fatal(err)
	}
	c := r.claim(alice)
	if !bytes.Equal(r.body(c), want) {
		t.Error("the body changed")
	}
	if err := iotest.TestReader(c.Body(t.Context()), want); err != nil {
		t.Error(err)
	}
}

// TestEnvelopeFilledFromTheBody: an intake learns of Message-ID, repairs and 8-bit octets while the body passes.
func TestEnvelopeFilledFromTheBody(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	for _, n := range []int{10, 2 * inlineBytes} {
		env := newEnvelope(alice)
		end := readerFunc(func([]byte) (int, error) { env.MessageID = "<late@contoso.com>"; return 0, io.EOF })
		if err := r.q.Put(t.Context(), env, io.MultiReader(bytes.NewReader(text(n)), end)); err != nil {
			t.Fatal(err)
		}
		if c := r.claim(alice); c.Envelope.MessageID != "<late@contoso.com>" {
			t.Errorf("got Message-ID %q, want the one set at the body's end", c.Envelope.MessageID)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestCancelledPutQueuesNothing(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	for _, n := range []int{10, inlineBytes + 1, 2 * chunkBytes} {
		ctx, cancel := context.WithCancel(t.Context())
		end := readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF }) // hangs up with the last octet
		err := r.q.Put(ctx, newEnvelope(alice), io.MultiReader(bytes.NewReader(text(n)), end))
		if code(err) != 451 || !errors.Is(err, context.Canceled) {
			t.Errorf("%d octets: got %v, want a 451 that carries the cancellation", n, err)
		}
	}
	if len(r.q.broken) != 0 || len(r.q.refused) != 0 {
		t.Error("a client that hung up had the storage reopened")
	}
	r.idle()
}

// TestManyLargeBodiesShareLittleMemory: with a window of 8 chunks each they want far more than there is; none may wait
// for memory while others wait for it.
func TestManyLargeBodiesShareLittleMemory(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), func(o *Options) { o.MemoryBytes = 3 * chunkBytes })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(text(4*chunkBytes))); err != nil {
				t.Errorf("put: %v", err)
			}
		})
	}
	wg.Wait()
	for range 8 {
		c := r.claim(alice)
		if !bytes.Equal(r.body(c), text(4*chunkBytes)) {
			t.Error("a body changed")
		}
		r.settle(c.Envelope, sent(c))
	}
	r.idle()
}

// TestSlowClientHoldsNoMemory: acknowledged chunks give their memory back though the client sends nothing more.
func TestSlowClientHoldsNoMemory(t *testing.T) {
	r := newRig(t, t.TempDir(), func(o *Options) { o.MemoryBytes = 2 * chunkBytes })
	gate := make(chan struct{})
	stalled := make(chan struct{})
	var once sync.Once
	stall := readerFunc(func([]byte) (int, error) { once.Do(func() { close(stalled) }); <-gate; return 0, io.EOF })
	done := make(chan error)
	go func() {
		done <- r.q.Put(t.Context(), newEnvelope(alice), io.MultiReader(bytes.NewReader(text(2*chunkBytes)), stall))
	}()
	<-stalled
	if err := r.q.memory.Acquire(t.Context(), 2*chunkBytes); err != nil { // the whole budget, while the client stalls
		t.Fatal(err)
	}
	r.q.memory.Release(2 * chunkBytes)
	close(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMemoryBudgetSpent(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	if err := r.q.memory.Acquire(t.Context(), r.q.opts.MemoryBytes); err != nil {
		t.Fatal(err)
	}
	r.q.patience = time.Millisecond
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	if err := r.q.Put(t.Context(), newEnvelope(alice), endless); code(err) != 452 {
		t.Errorf("got %v, want 452", err)
	}
	if err := r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(text(inlineBytes-1))); err != nil {
		t.Errorf("a small body needs none of the budget: got %v", err)
	}
	r.q.memory.Release(r.q.opts.MemoryBytes)
	c := r.claim(alice)
	r.settle(c.Envelope, sent(c))
	r.idle()
}

func TestTinyMemoryBudget(t *testing.T) {
	r := newRig(t, t.TempDir(), func(o *Options) { o.MemoryBytes = 1 })
	env := newEnvelope(alice)
	if err := r.q.Put(t.Context(), env, bytes.NewReader(text(2*chunkBytes))); err != nil {
		t.Fatalf("got %v: a budget below one chunk must not refuse every large body", err)
	}
	if got := r.state(env.ID); got != envelope.Queued {
		t.Errorf("got %q, want queued", got)
	}
}
