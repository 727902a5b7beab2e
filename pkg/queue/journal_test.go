package queue

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/envelope"
)

func someMark(last uint64) interrupted {
	now := time.Now()
	return interrupted{id: packID(envelope.NewID(now)), last: last, at: time.Unix(0, now.UnixNano())}
}

func TestReadJournal(t *testing.T) {
	a, b := someMark(0), someMark(1<<40)
	foreign := interrupted{id: packID("../../../etc/passwd!"), at: time.Now()}
	torn := a.encode()
	copy(torn[20:], make([]byte, 8)) // as two marks, half and half
	torn[30]++
	for _, row := range []struct {
		name string
		data []byte
		want []interrupted
	}{
		{"nothing", nil, nil},
		{"one", a.encode(), []interrupted{a}},
		{"two, and a free slot between", bytes.Join([][]byte{a.encode(), make([]byte, slotBytes), b.encode()}, nil), []interrupted{a, b}},
		{"torn", append(torn, b.encode()...), []interrupted{b}},
		{"half at the end", append(a.encode(), b.encode()[:slotBytes-1]...), []interrupted{a}},
		{"no id", append(foreign.encode(), b.encode()...), []interrupted{b}},
		{"text", bytes.Repeat([]byte("text"), 100), nil},
	} {
		if diff := cmp.Diff(row.want, readJournal(row.data), cmp.AllowUnexported(interrupted{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
}

// FuzzReadJournal: whatever stands in the file, each mark read out of it is in it with a check that holds.
func FuzzReadJournal(f *testing.F) {
	a := someMark(7)
	f.Add([]byte(nil))
	f.Add(a.encode())
	f.Add(append(make([]byte, slotBytes), a.encode()...))
	f.Add(a.encode()[1:])
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range readJournal(data) {
			slot := m.encode()[:slotChecked]
			i := bytes.Index(data, slot)
			if i < 0 || !m.id.unpack().Valid() {
				t.Fatalf("%+v is not in the file", m)
			}
			if binary.BigEndian.Uint32(data[i+slotChecked:]) != crc32.ChecksumIEEE(slot) {
				t.Fatalf("%+v has no check", m)
			}
		}
	})
}

// onDisk returns the marks in dir's journal, and its length.
func onDisk(t *testing.T, dir string) ([]interrupted, int) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	return readJournal(data), len(data)
}

func TestJournalSlots(t *testing.T) {
	dir := t.TempDir()
	j, marks, err := openJournal(dir, zap.NewNop())
	if err != nil || len(marks) != 0 {
		t.Fatalf("new journal: %v, %v", marks, err)
	}
	if info, err := os.Stat(filepath.Join(dir, journalName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
	}
	a, b, c := someMark(1), someMark(2), someMark(3)
	wants := func(what string, slots int, want ...interrupted) {
		t.Helper()
		got, size := onDisk(t, dir)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(interrupted{})); diff != "" || size != slots*slotBytes {
			t.Errorf("%s: %d octets, (-want +got):\n%s", what, size, diff)
		}
	}
	j.mark(a)
	j.mark(b)
	wants("marked", 2, a, b)
	again := a
	again.at = again.at.Add(time.Second)
	j.mark(again)
	wants("marked twice", 2, a, b)
	j.unmark(a.id)
	j.unmark(a.id)
	j.unmark(c.id)
	wants("taken away", 2, b)
	j.mark(c)
	wants("a free slot is used again", 2, c, b)
	j.mark(a)
	wants("grown", 3, c, b, a)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	wants("closed with messages in hand", 3, c, b, a)
	j.mark(someMark(4)) // too late
	j.unmark(a.id)
	wants("after close", 3, c, b, a)

	j, marks, err = openJournal(dir, zap.NewNop())
	if err != nil || len(marks) != 3 {
		t.Fatalf("opened again: %v, %v", marks, err)
	}
	j.clear()
	wants("cleared", 0)
	j.mark(b)
	j.unmark(b.id)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	wants("closed with nothing in hand", 0)
	if err := j.close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestJournalThatCannotBeWritten(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	j, _, err := openJournal(t.TempDir(), zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	j.file.Close()
	for range 3 {
		m := someMark(0)
		j.mark(m)
		j.unmark(m.id)
	}
	if n := logs.Len(); n != 1 {
		t.Errorf("got %d log lines, want one", n)
	}
}

func TestQueueWithoutJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, journalName), 0o700); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, dir, nil)
	if n := r.logs.FilterMessageSnippet("no journal").Len(); n != 1 {
		t.Errorf("got %d log lines, want one", n)
	}
	r.put(alice, text(10))
	c := r.claim(alice)
	if c.Mark != nil {
		t.Error("there is a mark although nothing can be marked")
	}
	r.settle(c.Envelope, sent(c))
	r.idle()
	r.restart()

	r = newRig(t, t.TempDir(), func(o *Options) { o.Dir = "" })
	r.put(alice, text(10))
	if c := r.claim(alice); c.Mark != nil || r.logs.Len() != 0 {
		t.Errorf("without a directory: got a mark, or %d log lines", r.logs.Len())
	}
	r.close()
}

// TestMarkGoesWithItsClaim: each way a claim can end, and a clean stop, take the mark away.
func TestMarkGoesWithItsClaim(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	for name, end := range map[string]func(c *envelope.Claim) error{
		"sent":     func(c *envelope.Claim) error { return r.q.Settle(t.Context(), c.Envelope, sent(c)) },
		"deferred": func(c *envelope.Claim) error { return r.q.Settle(t.Context(), c.Envelope, deferred(c)) },
		"released": func(c *envelope.Claim) error { r.q.Release(c.Envelope, c.Progress); return nil },
		"rests":    func(c *envelope.Claim) error { r.q.Rest(c.Envelope, time.Now()); return nil },
		"noted":    func(c *envelope.Claim) error { return r.q.Note(t.Context(), c.Envelope, deferred(c)) },
	} {
		sender := envelope.Address(name + "@contoso.com")
		env := r.put(sender, text(10))
		c := r.claim(sender)
		c.Mark()
		if marks, _ := onDisk(t, r.dir); len(marks) != 1 || marks[0].id.unpack() != env.ID || time.Since(marks[0].at) > time.Minute {
			t.Errorf("%s: got marks %v, want the message's", name, marks)
		}
		if err := end(c); err != nil {
			t.Fatal(err)
		}
		if marks, _ := onDisk(t, r.dir); len(marks) != 0 {
			t.Errorf("%s: the mark stays", name)
		}
	}
	r.restart()
	if n := count(t, r.q.metrics.interrupted); n != 0 {
		t.Errorf("relayd_queue_interrupted_total is %v after a clean stop, want 0", n)
	}
	r.close()
	if _, size := onDisk(t, r.dir); size != 0 {
		t.Errorf("a clean stop leaves %d octets", size)
	}
}

// deferred is the end of an attempt that is tried again at once.
func deferred(c *envelope.Claim) envelope.Progress {
	p := envelope.Progress{State: envelope.Deferred, Attempts: c.Progress.Attempts + 1, Due: time.Now(), Reason: "451 later"}
	for range c.Envelope.Recipients {
		p.Results = append(p.Results, envelope.Result{State: envelope.Deferred, Attempts: 1, Reply: "451 later"})
	}
	return p
}

const interruptedEnv = "RELAYD_TEST_INTERRUPTED_CHILD"

// interruptedRows are the messages of TestInterrupted: what the process does with each before it is killed, and what it
// must be found as.
var interruptedRows = []struct {
	name    string
	do      func(q *Queue, c *envelope.Claim) error // nil: not even claimed
	state   envelope.State
	results []envelope.State // nil: none
	tries   int
}{
	{name: "queued", state: envelope.Queued},
	{name: "claimed", do: func(*Queue, *envelope.Claim) error { return nil }, state: envelope.Queued},
	{
		name:  "marked",
		do:    func(_ *Queue, c *envelope.Claim) error { c.Mark(); return nil },
		state: envelope.Uncertain, results: []envelope.State{envelope.Uncertain, envelope.Uncertain}, tries: 1,
	},
	{
		name: "marked.and.deferred",
		do: func(q *Queue, c *envelope.Claim) error {
			c.Mark()
			return q.Settle(context.Background(), c.Envelope, deferred(c))
		},
		state: envelope.Deferred, results: []envelope.State{envelope.Deferred, envelope.Deferred}, tries: 1,
	},
	{
		name: "marked.and.sent",
		do: func(q *Queue, c *envelope.Claim) error {
			c.Mark()
			return q.Settle(context.Background(), c.Envelope, sent(c))
		},
		state: "",
	},
	{
		name:  "marked.and.released",
		do:    func(q *Queue, c *envelope.Claim) error { c.Mark(); q.Release(c.Envelope, c.Progress); return nil },
		state: envelope.Queued,
	},
	{
		name:  "marked.and.rests",
		do:    func(q *Queue, c *envelope.Claim) error { c.Mark(); q.Rest(c.Envelope, time.Now()); return nil },
		state: envelope.Queued,
	},
	{
		name: "noted",
		do: func(q *Queue, c *envelope.Claim) error {
			c.Mark()
			p := deferred(c)
			p.Results[0] = envelope.Result{State: envelope.Failed, Owed: true}
			return q.Note(context.Background(), c.Envelope, p)
		},
		state: envelope.Deferred, results: []envelope.State{envelope.Failed, envelope.Deferred}, tries: 1,
	},
	{
		name: "noted.and.marked", // the next transaction of the same claim
		do: func(q *Queue, c *envelope.Claim) error {
			p := deferred(c)
			p.Results[0].State = envelope.Sent
			err := q.Note(context.Background(), c.Envelope, p)
			c.Mark()
			return err
		},
		state: envelope.Uncertain, results: []envelope.State{envelope.Sent, envelope.Uncertain}, tries: 2,
	},
	{
		name: "partly.due",
		do: func(q *Queue, c *envelope.Claim) error {
			ctx := context.Background()
			p := deferred(c)
			p.Results[1].Due = time.Now().Add(time.Hour)
			if err := q.Settle(ctx, c.Envelope, p); err != nil {
				return err
			}
			again, err := q.Claim(ctx, c.Envelope.Sender, time.Now())
			if err == nil {
				again.Mark()
			}
			return err
		},
		state: envelope.Uncertain, results: []envelope.State{envelope.Uncertain, envelope.Deferred}, tries: 2,
	},
}

// TestInterrupted kills a process with kill -9 while messages are at every stage of being sent.
func TestInterrupted(t *testing.T) {
	if dir := os.Getenv(interruptedEnv); dir != "" {
		interruptedChild(dir)
		return
	}
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestInterrupted$")
	cmd.Env = append(os.Environ(), interruptedEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("got %q, %v from the process", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // its error is that it was killed
	var steps []envelope.Step
	r := newRig(t, dir, func(o *Options) { o.Record = func(s envelope.Step) { steps = append(steps, s) } })
	if n := count(t, r.q.metrics.interrupted); n != 3 || len(steps) != 3 {
		t.Errorf("relayd_queue_interrupted_total is %v, with %d steps, want 3", n, len(steps))
	}
	for _, s := range steps {
		if s.What != envelope.StepAttempt || s.State != envelope.Uncertain || s.Reply != interruptedReply {
			t.Errorf("got step %+v, want an attempt without reply", s)
		}
	}
	if _, size := onDisk(t, dir); size != 0 {
		t.Errorf("the journal has %d octets after the start, want none", size)
	}
	for _, again := range []bool{false, true} { // the record says so, not the journal
		for _, row := range interruptedRows {
			sender := envelope.Address(row.name + "@contoso.com")
			c := r.claim(sender)
			if c == nil {
				if row.state != "" {
					t.Errorf("%s (again: %v): not offered", row.name, again)
				}
				continue
			}
			got := make([]envelope.State, 0, 2)
			for _, res := range c.Progress.Results {
				got = append(got, res.State)
			}
			if c.Progress.State != row.state || fmt.Sprint(got) != fmt.Sprint(row.results) || c.Progress.Attempts != row.tries {
				t.Errorf("%s (again: %v): got %s %v after %d attempts, want %s %v after %d", row.name, again,
					c.Progress.State, got, c.Progress.Attempts, row.state, row.results, row.tries)
			}
			r.q.Release(c.Envelope, c.Progress)
			if info, ok := r.q.Info(c.Envelope.ID); !ok || info.State != row.state || info.Attempts != row.tries {
				t.Errorf("%s (again: %v): listed as %+v, want %s after %d attempts", row.name, again, info, row.state, row.tries)
			}
		}
		r.restart()
		if n := count(t, r.q.metrics.interrupted); n != 0 {
			t.Errorf("relayd_queue_interrupted_total is %v after the next start, want 0", n)
		}
	}
}

// interruptedChild is the process to be killed.
func interruptedChild(dir string) {
	ctx, fail := context.Background(), failChild
	q := openChild(ctx, dir)
	for _, row := range interruptedRows {
		sender := envelope.Address(row.name + "@contoso.com")
		fail(q.Put(ctx, newEnvelope(sender), strings.NewReader("body")))
		if row.do != nil {
			c, err := q.Claim(ctx, sender, time.Now())
			fail(err)
			fail(row.do(q, &c))
		}
	}
	os.Stdout.WriteString("ready\n")
	select {}
}

// TestStaleMark: the process died between the outcome's record and the mark's removal.
func TestStaleMark(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	c := r.claim(alice)
	c.Mark()
	stale, _ := onDisk(t, r.dir)
	r.settle(env, deferred(c))
	gone := r.put("bob@contoso.com", text(10))
	c = r.claim("bob@contoso.com")
	c.Mark()
	more, _ := onDisk(t, r.dir)
	r.settle(gone, sent(c))
	held := r.put("held@contoso.com", text(10))
	if err := r.q.Hold(t.Context(), held.ID, "ann", ""); err != nil {
		t.Fatal(err)
	}
	more = append(more, interrupted{id: packID(held.ID), last: r.q.index.get(held.ID).last, at: time.Now()})
	r.kill()
	var data []byte
	for _, m := range append(stale, more...) {
		data = append(data, m.encode()...)
	}
	if err := os.WriteFile(filepath.Join(r.dir, journalName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	if got := r.state(env.ID); got != envelope.Deferred {
		t.Errorf("settled as deferred: got %q", got)
	}
	if got := r.state(held.ID); got != envelope.Held {
		t.Errorf("held: got %q", got)
	}
	if n := count(t, r.q.metrics.interrupted); n != 0 || len(r.q.List(nil)) != 2 {
		t.Errorf("relayd_queue_interrupted_total is %v, want 0", n)
	}
}

// TestInterruptedOnAFullDisk: where the state cannot be recorded at start, memory and the journal keep it.
func TestInterruptedOnAFullDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(50_000))
	r.claim(alice).Mark()
	r.kill()
	r.change = func(o *Options) { o.MaxBytes = 10_000 }
	for range 2 {
		r.start()
		if got := r.state(env.ID); got != envelope.Uncertain {
			t.Errorf("got %q, want uncertain", got)
		}
		c := r.claim(alice)
		if c.Progress.State != envelope.Uncertain || len(c.Progress.Results) != 2 || c.Progress.Results[1].State != envelope.Uncertain {
			t.Errorf("got %+v, want every recipient uncertain", c.Progress)
		}
		if marks, _ := onDisk(t, r.dir); len(marks) != 1 {
			t.Errorf("got marks %v, want the message's kept", marks)
		}
		r.kill()
	}
	r.change = nil
	r.start()
	c := r.claim(alice)
	if c.Progress.State != envelope.Uncertain || c.Progress.Attempts != 1 {
		t.Errorf("got %+v, want one attempt, uncertain", c.Progress)
	}
	if marks, _ := onDisk(t, r.dir); len(marks) != 0 {
		t.Errorf("got marks %v although the state is recorded", marks)
	}
	r.settle(env, sent(c))
	r.idle()
}
