package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// wantFull fails the test unless err is the contract's word for a full queue.
func wantFull(t *testing.T, err error) {
	t.Helper()
	e, ok := errors.AsType[*status.Error](err)
	if !ok || e.Error() != "452 4.3.1 queue storage is full" {
		t.Errorf("got %v, want 452 4.3.1 queue storage is full", err)
	}
}

// fillUp puts messages until one is refused, and returns those that were not.
func (r *rig) fillUp(size, limit int) (accepted []*envelope.Envelope, err error) {
	r.t.Helper()
	for len(accepted) < limit {
		env := newEnvelope(alice)
		if err := r.q.Put(context.Background(), env, bytes.NewReader(text(size))); err != nil {
			return accepted, err
		}
		accepted = append(accepted, env)
	}
	r.t.Fatalf("%d messages of %d octets were all accepted", limit, size)
	return nil, nil
}

func (r *rig) drain() {
	r.t.Helper()
	for c := r.claim(alice); c != nil; c = r.claim(alice) {
		r.body(c)
		r.settle(c.Envelope, sent(c))
	}
}

func TestMaxBytes(t *testing.T) {
	t.Parallel()
	const limit = 300_000
	for _, size := range []int{0, 100, 10_000, 60_000} { // of an empty message the records count
		r := newRig(t, t.TempDir(), func(o *Options) { o.MaxBytes = limit })
		accepted, err := r.fillUp(size, limit/1024)
		wantFull(t, err)
		wantFull(t, r.q.Ready())
		if used := len(accepted) * (size + 1024); used < limit*8/10 || used-size-1024 > limit*9/10 {
			t.Errorf("size %d: refused after %d messages, %d octets, want about 90%% of %d", size, len(accepted), used, limit)
		}
		stored := r.q.space.stored.Load()
		r.restart()
		if got := r.q.space.stored.Load(); got != stored {
			t.Errorf("size %d: accounting says %d after the restart, %d before", size, got, stored)
		}
		wantFull(t, r.q.Ready())
		c := r.claim(alice) // what is there can still be worked on
		r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Due: time.Now()})
		r.drain()
		if err := r.q.Ready(); err != nil {
			t.Errorf("size %d: after draining: %v", size, err)
		}
		r.idle()
		r.kill()
	}
}

func TestLargeBodyBeyondMaxBytes(t *testing.T) {
	r := newRig(t, t.TempDir(), func(o *Options) { o.MaxBytes = 3 * chunkBytes })
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	wantFull(t, r.q.Put(t.Context(), newEnvelope(alice), endless))
	r.idle()
	if err := r.q.Ready(); err != nil {
		t.Errorf("one body that does not fit closed the queue: %v", err)
	}
}

// TestServerIsFull: the server's own limit is the second line, and reopening it would not help.
func TestServerIsFull(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	js := r.jetstream()
	for k := range defaultStreams {
		for _, kind := range []string{"MAIL", "CHUNK"} {
			s, err := js.Stream(t.Context(), fmt.Sprintf("RELAYD_%s_%d", kind, k))
			if err != nil {
				t.Fatal(err)
			}
			cfg := s.CachedInfo().Config
			cfg.MaxBytes = 1000 // the message that is there has about as much
			if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, size := range []int{20_000, 2 * chunkBytes} {
		wantFull(t, r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(text(size))))
	}
	c := r.claim(alice)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	p := envelope.Progress{State: envelope.Deferred, Reason: string(text(2000)), Due: time.Now()}
	if err := r.q.Settle(ctx, c.Envelope, p); !isFull(err) {
		t.Errorf("settle on a full stream: got %v, want the server's refusal", err)
	}
	if len(r.q.broken) != 0 {
		t.Error("a full stream had the storage reopened")
	}
	if got := r.state(env.ID); got != envelope.Sending {
		t.Errorf("got %q, want the claim to stay: its outcome is not on the disk", got)
	}
	r.settle(c.Envelope, sent(c)) // removal needs no room
	r.idle()
}

func TestLowerMaxBytesKeepsMail(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	for range 20 {
		r.put(alice, text(50_000))
	}
	large := r.put(alice, text(2*chunkBytes))
	r.close()
	r.change = func(o *Options) { o.MaxBytes = 100_000 }
	r.start()
	if n := len(r.q.List(nil)); n != 21 {
		t.Errorf("got %d messages under the lower limit, want all 21", n)
	}
	if n := r.records("CHUNK", large.ID); n != 2 {
		t.Errorf("got %d chunks, want 2", n)
	}
	wantFull(t, r.q.Put(t.Context(), newEnvelope(alice), strings.NewReader("x")))
	r.drain()
	r.idle()
}

func TestMinFreeBytes(t *testing.T) {
	r := newRig(t, t.TempDir(), func(o *Options) { o.MinFreeBytes = 1 << 60 })
	wantFull(t, r.q.Put(t.Context(), newEnvelope(alice), bytes.NewReader(nil)))
	wantFull(t, r.q.Ready())

	r = newRig(t, t.TempDir(), func(o *Options) { o.MinFreeBytes = 1 << 20 })
	r.q.space.free.Store(1<<20 + 50_000) // between two looks at the disk, what is written counts
	accepted, err := r.fillUp(20_000, 10)
	wantFull(t, err)
	if len(accepted) != 3 {
		t.Errorf("got %d messages of 20,000 octets into 50,000, want the one that crosses the line to be the last", len(accepted))
	}
	r.q.space.free.Store(1<<20 + 3*chunkBytes)
	r.q.space.written.Store(0)
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	wantFull(t, r.q.Put(t.Context(), newEnvelope(alice), endless))
	if err := r.q.space.measure(); err != nil {
		t.Fatal(err)
	}
	r.put(alice, nil)
	r.drain()
	r.idle()
}

func TestFileSystemThatCannotBeSeen(t *testing.T) {
	s := space{dir: "/nonexistent"}
	if err := s.measure(); err == nil {
		t.Error("got no error for a directory that is not there")
	}
	if err := (&space{}).measure(); err != nil {
		t.Errorf("no directory to watch: got %v", err)
	}
}

// TestDiskFull fills a real file system to ENOSPC. The server then refuses a stream for good, also once there is room
// again: the queue has to reopen it by itself.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		if os.Getenv("TEST_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skipf("needs the right to mount a small file system (root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	r := newRig(t, dir, nil)
	r.run()
	accepted, err := r.fillUp(60_000, 200)
	if c := code(err); c != 451 && c != 452 {
		t.Errorf("disk full: got %v, want 451 or 452", err)
	}
	for range 5 { // also while it is being reopened again and again, and with bodies of any size
		for _, size := range []int{1, 60_000, 2 * chunkBytes} {
			env := newEnvelope(alice)
			switch err := r.q.Put(t.Context(), env, bytes.NewReader(text(size))); code(err) {
			case 451, 452:
			case 0:
				if err != nil {
					t.Fatalf("got %v, want a reply for the client", err)
				}
				accepted = append(accepted, env)
			default:
				t.Fatalf("got %v, want 451 or 452", err)
			}
		}
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	await(t, "mail is taken again by itself", 30*time.Second, func() bool {
		env := newEnvelope(alice)
		err := r.q.Put(t.Context(), env, bytes.NewReader(text(60_000)))
		if err == nil {
			accepted = append(accepted, env)
		}
		return err == nil
	})
	for range 2 {
		here := map[envelope.ID]bool{}
		for _, info := range r.q.List(nil) {
			here[info.ID] = true
		}
		for _, env := range accepted {
			if !here[env.ID] {
				t.Errorf("%s was accepted and is gone", env.ID)
			}
			delete(here, env.ID)
		}
		for id := range here {
			t.Errorf("%s is queued although its client was told to come back", id)
		}
		r.restart()
		r.run()
	}
	for _, env := range accepted {
		c := r.claim(alice)
		if c == nil {
			t.Fatal("messages are missing")
		}
		if data, err := io.ReadAll(c.Body(t.Context())); err != nil || int64(len(data)) != c.Envelope.Size {
			t.Errorf("%s: %d octets, %v", env.ID, len(data), err)
		}
		r.settle(c.Envelope, sent(c))
	}
	r.idle()
	if n := count(t, r.q.metrics.lost) + count(t, r.q.metrics.quarantined); n != 0 {
		t.Errorf("%v messages lost or quarantined", n)
	}
}

func TestDefaultsLeaveNoStreamExposed(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	for k := range defaultStreams {
		s, err := r.jetstream().Stream(t.Context(), fmt.Sprintf("RELAYD_MAIL_%d", k))
		if err != nil {
			t.Fatal(err)
		}
		if cfg := s.CachedInfo().Config; cfg.PersistMode != jetstream.DefaultPersistMode || cfg.Storage != jetstream.FileStorage {
			t.Errorf("%s: kill -9 would lose from it: %+v", cfg.Name, cfg)
		}
	}
}
