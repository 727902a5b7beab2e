package queue

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"relayd/pkg/envelope"
)

// forgetful is a stream whose next direct gets answer that there is no such record, as a lagging replica does.
type forgetful struct {
	jetstream.Stream
	skip atomic.Int32 // but for the first so many
	left atomic.Int32 // so many
	err  error        // nil: jetstream.ErrMsgNotFound
}

func (f *forgetful) forgets() error {
	switch {
	case f.skip.Add(-1) >= 0, f.left.Add(-1) < 0:
		return nil
	case f.err != nil:
		return f.err
	default:
		return jetstream.ErrMsgNotFound
	}
}

func (f *forgetful) GetMsg(ctx context.Context, seq uint64, opts ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	if err := f.forgets(); err != nil {
		return nil, err
	}
	return f.Stream.GetMsg(ctx, seq, opts...)
}

func (f *forgetful) GetLastMsgForSubject(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	if err := f.forgets(); err != nil {
		return nil, err
	}
	return f.Stream.GetLastMsgForSubject(ctx, subject)
}

// forget makes the streams of the message forgetful for n gets, after so many to skip.
func (r *rig) forget(id envelope.ID, skip, n int32, err error) {
	st, k := r.q.store.Load(), r.q.index.get(id).stream
	for _, streams := range [][]jetstream.Stream{st.mail, st.chunk} {
		if f, ok := streams[k].(*forgetful); ok {
			streams[k] = f.Stream
		}
		f := &forgetful{Stream: streams[k], err: err}
		f.skip.Store(skip)
		f.left.Store(n)
		streams[k] = f
	}
}

// quiet fails the test where anything was quarantined, lost, or called a fault of the server.
func (r *rig) quiet() {
	r.t.Helper()
	m := r.q.metrics
	if n := count(r.t, m.quarantined) + count(r.t, m.lost) + count(r.t, m.faults); n != 0 || len(r.q.broken) != 0 {
		r.t.Errorf("%v messages quarantined or lost, or the server at fault, want none", n)
	}
}

// TestNotFoundIsAskedAgain is trap 4: a direct get may answer 404 although the leader has the record.
func TestNotFoundIsAskedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	many := make([]envelope.Recipient, 2000) // a record that does not fit a header
	for i := range many {
		many[i].Address = envelope.Address(fmt.Sprintf("recipient-%d@example.org", i))
	}
	for _, row := range []struct {
		name       string
		size       int
		recipients []envelope.Recipient
	}{{"small", 100, nil}, {"large", 2*chunkBytes + 1, nil}, {"many recipients", 100, many}} {
		env := newEnvelope(alice)
		if row.recipients != nil {
			env.Recipients = row.recipients
		}
		if err := r.q.Put(t.Context(), env, bytes.NewReader(text(row.size))); err != nil {
			t.Fatal(err)
		}
		r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Deferred, Attempts: 3, Due: time.Now()})
		r.forget(env.ID, 0, 1000, nil)
		c := r.claim(alice)
		if c == nil || c.Progress.Attempts != 3 || len(c.Envelope.Recipients) != len(env.Recipients) {
			t.Fatalf("%s: got %+v, want the message and its state", row.name, c)
		}
		if !bytes.Equal(r.body(c), text(row.size)) {
			t.Errorf("%s: the body changed", row.name)
		}
		r.settle(c.Envelope, sent(c))
	}
	r.idle()
	r.quiet()
}

// TestFailedGetSaysNothing: whatever else a get fails with, the message stays what it is.
func TestFailedGetSaysNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(2*chunkBytes))
	r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Deferred, Due: time.Now()})
	for _, cause := range []error{context.DeadlineExceeded, nats.ErrNoResponders, nats.ErrConnectionClosed, unix.EMFILE} {
		for _, after := range []int32{0, 1} { // of mail, of state
			r.forget(env.ID, after, 1, cause)
			if c, err := r.q.Claim(t.Context(), alice, time.Now()); !errors.Is(err, cause) || c.Envelope != nil || errors.Is(err, envelope.ErrCorrupt) {
				t.Errorf("%v: claim gave %v", cause, err)
			}
			r.forget(env.ID, 0, 1, cause)
			if _, err := r.q.Get(t.Context(), env.ID); !errors.Is(err, cause) {
				t.Errorf("%v: get gave %v", cause, err)
			}
			if got := r.state(env.ID); got != envelope.Deferred {
				t.Fatalf("%v: the message is %q", cause, got)
			}
		}
	}
	c := r.claim(alice)
	r.forget(env.ID, 0, 1, context.DeadlineExceeded)
	if _, err := io.Copy(io.Discard, c.Body(t.Context())); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("body: got %v", err)
	}
	r.body(c)
	r.settle(c.Envelope, sent(c))
	r.quiet()
}

// TestServerBehind: the leader itself has not got as far as the record, as after a change of leaders.
func TestServerBehind(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	e := r.q.index.get(env.ID)
	e.mail += 1000
	for range 2 {
		if _, err := r.q.Claim(t.Context(), alice, time.Now()); err == nil || errors.Is(err, envelope.ErrCorrupt) {
			t.Errorf("got %v, want an error that says nothing about the message", err)
		}
	}
	if got := r.state(env.ID); got != envelope.Queued {
		t.Errorf("got %q, want it left queued", got)
	}
	r.quiet()
}

// TestMessageIsLost: the leader is past the record and does not know it. That is said loudly, by whoever meets it.
func TestMessageIsLost(t *testing.T) {
	t.Parallel()
	for name, meet := range map[string]func(r *rig, id envelope.ID) error{
		"claim":  func(r *rig, _ envelope.ID) error { _, err := r.q.Claim(t.Context(), alice, time.Now()); return err },
		"get":    func(r *rig, id envelope.ID) error { _, err := r.q.Get(t.Context(), id); return err },
		"hold":   func(r *rig, id envelope.ID) error { return r.q.Hold(t.Context(), id, "ann", "") },
		"retry":  func(r *rig, id envelope.ID) error { return r.q.Retry(t.Context(), id, "ann") },
		"resume": func(r *rig, id envelope.ID) error { return r.q.Resume(t.Context(), id, "ann") },
	} {
		r := newRig(t, t.TempDir(), nil)
		env, kept := r.put(alice, text(10)), r.put(alice, text(10))
		st, e := r.q.store.Load(), r.q.index.get(env.ID)
		if err := st.remove(t.Context(), st.locate(e.place(), "mail", e.mail)); err != nil {
			t.Fatal(err)
		}
		if err := meet(r, env.ID); (err != nil || name != "claim") && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", name, err)
		}
		if n := count(t, r.q.metrics.lost); n != 1 || r.logs.FilterMessageSnippet("gone from the queue").Len() != 1 {
			t.Errorf("%s: relayd_queue_lost_total is %v, want 1, and a line in the log", name, n)
		}
		if r.state(env.ID) != "" || r.state(kept.ID) == "" || count(t, r.q.metrics.quarantined) != 0 {
			t.Errorf("%s: want the lost one forgotten, the other kept, and nothing quarantined", name)
		}
		r.kill()
	}
}

// TestDropOfAnUnreadableMessage: the server does not remove what it cannot read, and refuses all else once it was asked to.
func TestDropOfAnUnreadableMessage(t *testing.T) {
	t.Parallel()
	for _, atStart := range []bool{true, false} {
		r := newRig(t, t.TempDir(), nil)
		env := newEnvelope(alice)
		if err := r.q.Put(t.Context(), env, bytes.NewReader([]byte("the body"))); err != nil {
			t.Fatal(err)
		}
		r.close()
		flip(t, r.dir, "the body")
		r.start()
		if !atStart { // as if the damage came while the queue ran
			r.q.index.get(env.ID).mail = 1
		}
		for _, err := range []error{r.q.Drop(t.Context(), env.ID, "ann"), r.q.Drop(t.Context(), env.ID, "ann")} {
			if !errors.Is(err, envelope.ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
		}
		if _, ok := r.q.Info(env.ID); !ok {
			t.Error("it is gone from the listing, but not from the disk")
		}
		for range 8 { // the storage takes and removes as ever, in each stream
			r.put("bob@contoso.com", text(10))
			c := r.claim("bob@contoso.com")
			r.settle(c.Envelope, sent(c))
		}
		r.kill()
	}
}

const filesEnv = "RELAYD_TEST_FILES_CHILD"

// TestOutOfFiles: without file descriptors the server cannot read a record and says there is none. That must quarantine
// nothing, lose nothing, and pass. In a process of its own, since the limit is the process's.
func TestOutOfFiles(t *testing.T) {
	if dir := os.Getenv(filesEnv); dir != "" {
		filesChild(dir)
		return
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOutOfFiles$")
	cmd.Env = append(os.Environ(), filesEnv+"="+t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var words []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		words = append(words, lines.Text())
	}
	if err := cmd.Wait(); err != nil || fmt.Sprint(words) != "[unread alive done]" {
		t.Errorf("the process said %v and ended with %v", words, err)
	}
}

// filesChild is the process without file descriptors.
func filesChild(dir string) {
	ctx, fail := context.Background(), failChild
	q := openChild(ctx, dir)
	env := newEnvelope(alice)
	fail(q.Put(ctx, env, bytes.NewReader(text(3*chunkBytes))))
	for n := 0; n < 8; { // push the first one's block of 8 MiB out of the server's hands: it keeps the newest open
		other := newEnvelope("bob@contoso.com")
		if streamOf(other.ID, defaultStreams) == streamOf(env.ID, defaultStreams) {
			fail(q.Put(ctx, other, bytes.NewReader(text(3*chunkBytes))))
			n++
		}
	}
	var old unix.Rlimit
	fail(unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	fail(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}))
	read := func() error {
		c, err := q.Get(ctx, env.ID)
		if err == nil {
			_, err = io.Copy(io.Discard, c.Body(ctx))
		}
		return err
	}
	look := time.NewTicker(100 * time.Millisecond) // until the server's cache of the block runs out, after some 10 s
	defer look.Stop()
	err := read()
	for ; err == nil; err = read() {
		<-look.C
	}
	if !errors.Is(err, errNoFiles) || errors.Is(err, envelope.ErrCorrupt) {
		fail(fmt.Errorf("want a complaint about file descriptors: %w", err))
	}
	os.Stdout.WriteString("unread\n")
	if info, ok := q.Info(env.ID); !ok || info.State != envelope.Queued {
		fail(fmt.Errorf("the message is %+v", info))
	}
	os.Stdout.WriteString("alive\n")
	fail(unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	fail(read())
	os.Stdout.WriteString("done\n")
	os.Exit(0)
}
