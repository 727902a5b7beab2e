package queue

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/broker"
	"relayd/pkg/envelope"
)

// wakeUp opens a queue on the copy of a directory that kill -9 left, and compares it with what was acknowledged.
func wakeUp(t *testing.T, dir string, want map[envelope.ID]envelope.State) *rig {
	t.Helper()
	r := newRig(t, image(t, dir), nil)
	got := map[envelope.ID]envelope.State{}
	for _, info := range r.q.List(nil) {
		got[info.ID] = info.State
	}
	for id, state := range want {
		if got[id] != state {
			t.Errorf("%s: got %q after kill -9, want %q", id, got[id], state)
		}
		delete(got, id)
	}
	for id, state := range got {
		t.Errorf("%s: came back to life as %q after kill -9", id, state)
	}
	return r
}

func TestKillAfterEachAcknowledgement(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	want := map[envelope.ID]envelope.State{}
	wakeUp(t, r.dir, want)
	step := func(what string, id envelope.ID, state envelope.State) {
		t.Helper()
		if want[id] = state; state == "" {
			delete(want, id)
		}
		woken := wakeUp(t, r.dir, want)
		if t.Failed() {
			t.Fatalf("after: %s", what)
		}
		for id := range want {
			c, err := woken.q.Get(t.Context(), id)
			if err != nil {
				t.Fatalf("after %s: %v", what, err)
			}
			woken.body(&c)
		}
		woken.kill()
	}
	small := r.put(alice, text(100))
	step("small put", small.ID, envelope.Queued)
	large := r.put("bob@contoso.com", text(3*chunkBytes))
	step("large put", large.ID, envelope.Queued)
	c := r.claim(alice)
	step("claim", small.ID, envelope.Queued)
	r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Due: time.Now().Add(time.Hour)})
	step("deferred", small.ID, envelope.Deferred)
	if err := r.q.Hold(t.Context(), small.ID, "ann", "test"); err != nil {
		t.Fatal(err)
	}
	step("hold", small.ID, envelope.Held)
	if err := r.q.Resume(t.Context(), small.ID, "ann"); err != nil {
		t.Fatal(err)
	}
	step("resume", small.ID, envelope.Queued)
	c = r.claim(alice)
	r.settle(c.Envelope, sent(c))
	step("sent", small.ID, "")
	c = r.claim("bob@contoso.com")
	r.settle(c.Envelope, sent(c))
	step("large one sent", large.ID, "")
}

// TestRemovedMessageStaysRemoved is trap 1: a state replaced several times, then removed with its message, must not come
// back with kill -9, neither the message nor an older state.
func TestRemovedMessageStaysRemoved(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	for range 20 {
		r.put(alice, text(100))
	}
	for range 4 {
		now := time.Now()
		var claims []*envelope.Claim
		for c := r.claim(alice); c != nil; c = r.claim(alice) {
			claims = append(claims, c)
		}
		for _, c := range claims {
			p := c.Progress
			p.State, p.Due, p.Attempts = envelope.Deferred, now, p.Attempts+1
			r.settle(c.Envelope, p)
		}
	}
	want := map[envelope.ID]envelope.State{}
	for i := 0; ; i++ {
		c := r.claim(alice)
		if c == nil {
			break
		}
		if c.Progress.Attempts != 4 {
			t.Errorf("got %d attempts, want 4", c.Progress.Attempts)
		}
		if i%4 == 3 { // some stay, or whole blocks would vanish
			r.settle(c.Envelope, envelope.Progress{State: envelope.Held, Attempts: 5})
			want[c.Envelope.ID] = envelope.Held
			continue
		}
		r.settle(c.Envelope, sent(c))
	}
	woken := wakeUp(t, r.dir, want)
	if n := woken.records("MAIL", ""); n != 2*len(want) {
		t.Errorf("got %d records, want a mail and one state record for each of %d", n, len(want))
	}
	for id := range want {
		if c, err := woken.q.Get(t.Context(), id); err != nil || c.Progress.Attempts != 5 {
			t.Errorf("got %+v, %v, want the newest state", c.Progress, err)
		}
	}
}

func TestLeftoversAreCollected(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(2*chunkBytes))
	c := r.claim(alice)
	r.settle(c.Envelope, envelope.Progress{State: envelope.Held})
	e := r.q.index.get(env.ID)
	if n := r.records("MAIL", env.ID) + r.records("CHUNK", env.ID); n != 4 {
		t.Fatalf("got %d records, want mail, state and 2 chunks", n)
	}
	// The crash comes after the mail record's removal.
	if err := r.q.store.Load().remove(t.Context(), r.q.store.Load().locate(e.place(), "mail", e.mail)); err != nil {
		t.Fatal(err)
	}
	// And another in the middle of a large body.
	gate, hung := make(chan struct{}), make(chan struct{})
	var once sync.Once
	stall := readerFunc(func([]byte) (int, error) { once.Do(func() { close(hung) }); <-gate; return 0, io.ErrUnexpectedEOF })
	done := make(chan error)
	go func() {
		done <- r.q.Put(context.Background(), newEnvelope(alice), io.MultiReader(bytes.NewReader(text(2*chunkBytes)), stall))
	}()
	<-hung
	await(t, "the chunks of the second are on the disk", 10*time.Second, func() bool { return r.records("CHUNK", "") == 4 })
	woken := wakeUp(t, r.dir, nil)
	close(gate)
	<-done
	woken.idle()
}

// TestFailedAuditKeepsLeftovers: when records are missing, a body without its mail record may be all there is.
func TestFailedAuditKeepsLeftovers(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(2*chunkBytes))
	e := r.q.index.get(env.ID)
	if err := r.q.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := r.jetstream().Stream(t.Context(), fmt.Sprintf("RELAYD_MAIL_%d", e.stream))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteMsg(t.Context(), e.mail); err != nil {
		t.Fatal(err)
	}
	r.kill()
	r.start()
	if got := count(t, r.q.metrics.auditFailures); got != 1 {
		t.Errorf("relayd_queue_audit_failures_total is %v, want 1", got)
	}
	if n := r.records("CHUNK", env.ID); n != 2 {
		t.Errorf("got %d chunks, want both kept", n)
	}
}

// TestHeldBodyOutlivesEveryClock: a body must not expire under a message that is held.
func TestHeldBodyOutlivesEveryClock(t *testing.T) {
	r := newRig(t, t.TempDir(), func(o *Options) { o.KeepFailed = time.Hour })
	for k := range defaultStreams {
		for _, kind := range []string{"MAIL", "CHUNK"} {
			s, err := r.jetstream().Stream(t.Context(), fmt.Sprintf("RELAYD_%s_%d", kind, k))
			if err != nil {
				t.Fatal(err)
			}
			if cfg := s.CachedInfo().Config; cfg.MaxAge != 0 || cfg.MaxMsgsPerSubject > 0 || cfg.Discard != jetstream.DiscardNew {
				t.Errorf("%s may drop accepted mail by itself: %+v", cfg.Name, cfg)
			}
		}
	}
}

const childEnv = "RELAYD_TEST_QUEUE_CHILD"

// TestKilledProcess kills a process that puts, claims and settles as fast as it can, several times at random moments, and
// then looks for every message the process had called accepted.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	t.Parallel()
	dir := t.TempDir()
	accepted, removed := map[string]bool{}, map[string]bool{}
	for round := range 4 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledProcess$")
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		left := 20 + rand.IntN(80)
		begun := map[string]bool{}
		for lines.Scan() { // goes on to the end of what the process managed to say
			word, id, _ := strings.Cut(lines.Text(), " ")
			switch word {
			case "accepted":
				accepted[id] = true
			case "settling":
				begun[id] = true
			case "removed":
				removed[id] = true
			}
			if left--; left == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd.Wait() // its error is that it was killed
		if left > 0 {
			t.Fatalf("round %d: the process ended by itself", round)
		}
		r := newRig(t, dir, nil)
		here, chunks := map[string]bool{}, 0
		for _, info := range r.q.List(nil) {
			id := string(info.ID)
			if here[id] = true; removed[id] {
				t.Errorf("round %d: %s was removed and came back", round, id)
			}
			c, err := r.q.Get(t.Context(), info.ID)
			if err != nil {
				t.Fatalf("round %d: %s: %v", round, id, err)
			}
			if body := r.body(&c); sha256.Sum256(body) != sha256.Sum256(childBody(info.ID)) {
				t.Errorf("round %d: %s: the body changed", round, id)
			}
			chunks += c.Envelope.Chunks
		}
		for id := range accepted {
			if !here[id] && !begun[id] && !removed[id] {
				t.Errorf("round %d: %s was accepted and is gone", round, id)
			}
			if begun[id] && !here[id] {
				removed[id] = true // killed between the removal and its word
			}
		}
		if n := count(t, r.q.metrics.quarantined) + count(t, r.q.metrics.lost); n != 0 {
			t.Errorf("round %d: %v messages quarantined or lost", round, n)
		}
		if n := r.records("CHUNK", ""); n != chunks {
			t.Errorf("round %d: got %d chunks, want the %d of the messages that are there", round, n, chunks)
		}
		r.kill()
	}
	if len(accepted) < 20 {
		t.Errorf("only %d messages were accepted: the test says little", len(accepted))
	}
}

// childBody is the body every process knows for an id: mostly small, sometimes of two chunks.
func childBody(id envelope.ID) []byte {
	if id[len(id)-1] < '4' {
		return append(text(chunkBytes+100), id...)
	}
	return append(text(2000), id...)
}

// failChild ends the process of a test's child.
func failChild(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// openChild opens the queue in a process of its own.
func openChild(ctx context.Context, dir string) *Queue {
	b, err := broker.Open(ctx, broker.Options{Dir: dir, Logger: zap.NewNop()})
	failChild(err)
	conns, err := b.Connect(2)
	failChild(err)
	q, err := Open(ctx, conns, Options{
		Dir: dir, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(),
		Reopen: func(context.Context) ([]*nats.Conn, error) { return nil, io.ErrClosedPipe },
	})
	failChild(err)
	return q
}

// child is the process to be killed. It says what it did only once it was told that it is done.
func child(dir string) {
	ctx, fail := context.Background(), failChild
	q := openChild(ctx, dir)
	var mu sync.Mutex
	say := func(word string, id envelope.ID) {
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.WriteString(word + " " + string(id) + "\n") // one write each: whole lines, or none
	}
	for range 4 {
		go func() {
			for {
				env := newEnvelope(alice)
				fail(q.Put(ctx, env, bytes.NewReader(childBody(env.ID))))
				say("accepted", env.ID)
			}
		}()
	}
	for i := 0; ; i++ {
		c, err := q.Claim(ctx, alice, time.Now())
		fail(err)
		switch {
		case c.Envelope == nil:
		case i%3 == 0:
			fail(q.Settle(ctx, c.Envelope, envelope.Progress{State: envelope.Deferred, Attempts: c.Progress.Attempts + 1, Due: time.Now()}))
		default:
			say("settling", c.Envelope.ID)
			c.Mark()
			fail(q.Settle(ctx, c.Envelope, sent(&c)))
			say("removed", c.Envelope.ID)
		}
	}
}
