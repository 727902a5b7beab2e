package vault

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"relayd/pkg/broker"
)

func openBroker(ctx context.Context, dir string) (*broker.Broker, error) {
	return broker.Open(ctx, broker.Options{Dir: dir, Logger: zap.NewNop()})
}

// TestKillAfterEachStep: replaced often and then deleted, a record does not come back, nor an older version of one.
func TestKillAfterEachStep(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	k := v.Kind("session")
	content := map[string]string{}
	revisions := map[string]uint64{}
	check := func(what string) {
		t.Helper()
		woken := newRig(t, image(t, r.dir))
		k := woken.open(keyA).Kind("session")
		names := []string{}
		for name, data := range content {
			if want(t, k, name, data); data != "" {
				names = append(names, name)
			}
		}
		wantNames(t, k, names...)
		woken.b.Close()
		if t.Failed() {
			t.Fatalf("after: %s", what)
		}
	}
	check("open")
	for version := range 5 {
		for i := range 20 {
			name := fmt.Sprint("s", i)
			content[name] = fmt.Sprint("version ", version)
			next, err := k.Put(t.Context(), name, []byte(content[name]), revisions[name])
			if err != nil || next == 0 {
				t.Fatal(next, err)
			}
			revisions[name] = next
		}
		check("version " + fmt.Sprint(version))
	}
	for i := range 15 {
		name := fmt.Sprint("s", i)
		if err := k.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if content[name] = ""; i%5 == 0 {
			check("delete " + name)
		}
	}
	check("all deletions")
}

// TestLeftover: a version that a crash left below the newest does not come back by its deletion.
func TestLeftover(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	k := v.Kind("grant")
	put(t, k, "a", "old")
	place := v.place("grant", "a")
	sealed, err := v.ring.Load().seal(place, typeRecord, "a", []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.bucket.js.Publish(t.Context(), recordSubject+place, sealed); err != nil { // the crash is before the purge
		t.Fatal(err)
	}
	want(t, k, "a", "new")
	if err := k.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	want(t, k, "a", "")
	woken := newRig(t, image(t, r.dir))
	want(t, woken.open(keyA).Kind("grant"), "a", "")
}

// order is a stream that says what is there when the newest record is removed.
type order struct {
	jetstream.Stream
	below func()
}

func (o *order) DeleteMsg(ctx context.Context, seq uint64) error {
	o.below()
	return o.Stream.DeleteMsg(ctx, seq)
}

// stored counts the messages at place.
func (r *rig) stored(place string) uint64 {
	r.t.Helper()
	info, err := r.bucket.stream.Info(r.t.Context(), jetstream.WithSubjectFilter(recordSubject+place))
	if err != nil {
		r.t.Fatal(err)
	}
	return info.State.Subjects[recordSubject+place]
}

// TestOrderOfRemoval: the newest goes last, or a crash would leave an older one in its place; and Put leaves one only.
func TestOrderOfRemoval(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.open(keyA)
	asked := 0
	place := ""
	bucket := &Bucket{js: r.bucket.js, stream: &order{r.bucket.stream, func() {
		if asked++; r.stored(place) != 1 {
			t.Errorf("the newest of %d is removed first", r.stored(place))
		}
	}}}
	v, err := Open(t.Context(), r.options(bucket, keyA))
	if err != nil {
		t.Fatal(err)
	}
	k := v.Kind("grant")
	place = v.place("grant", "a")
	revision := put(t, k, "a", "1")
	if _, err := k.Put(t.Context(), "a", []byte("2"), revision); err != nil || r.stored(place) != 1 {
		t.Errorf("%v, %d messages after a replacement, want 1", err, r.stored(place))
	}
	if _, err := r.bucket.js.Publish(t.Context(), recordSubject+place, []byte("left by a crash")); err != nil {
		t.Fatal(err)
	}
	if err := k.Delete(t.Context(), "a"); err != nil || r.stored(place) != 0 || asked != 1 {
		t.Errorf("%v, %d messages after the deletion, %d removals", err, r.stored(place), asked)
	}
}

// lossy is a JetStream that does not hear the answer to a publish.
type lossy struct {
	jetstream.JetStream
	lose  int
	later func() // what happens before the loss is noticed
}

func (l *lossy) Publish(ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := l.JetStream.Publish(ctx, subject, data, opts...)
	if l.lose > 0 && err == nil {
		l.lose--
		if l.later != nil {
			l.later()
		}
		return nil, context.DeadlineExceeded
	}
	return ack, err
}

func TestLostAnswer(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	js := &lossy{JetStream: r.bucket.js}
	deaf := &Bucket{js: js, stream: r.bucket.stream}
	d, err := Open(t.Context(), r.options(deaf, keyA))
	if err != nil {
		t.Fatal(err)
	}
	k := d.Kind("grant")
	js.lose = 1
	first := put(t, k, "a", "1")
	if got := want(t, k, "a", "1"); got != first {
		t.Errorf("got revision %d, want %d", first, got)
	}
	js.lose = 1
	second, err := k.Put(t.Context(), "a", []byte("2"), first)
	if err != nil || second != want(t, k, "a", "2") {
		t.Errorf("got %d, %v", second, err)
	}
	js.lose, js.later = 1, func() {
		if n, err := v.Kind("grant").Put(context.Background(), "a", []byte("another's"), second+1); n == 0 || err != nil {
			t.Error(n, err)
		}
	}
	if n, err := k.Put(t.Context(), "a", []byte("3"), second); n != 0 || err != nil {
		t.Errorf("replaced meanwhile: got %d, %v, want 0 and no error", n, err)
	}
	want(t, k, "a", "another's")
}

// deaf is a JetStream that answers no publish.
type deaf struct{ jetstream.JetStream }

func (deaf) Publish(context.Context, string, []byte, ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	return nil, context.DeadlineExceeded
}

// replaced is a store that does not answer, and in whose place there is another by the time it says so.
type replaced struct {
	Store
	v *Vault
}

func (s *replaced) Put(context.Context, string, []byte, uint64) (uint64, error) {
	s.v.Attach(s.Store)
	return 0, context.DeadlineExceeded
}

// TestFault: a server that takes no writes is reported, since it never will again.
func TestFault(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.open(keyA)
	opts := r.options(&Bucket{js: deaf{r.bucket.js}, stream: r.bucket.stream}, keyA)
	faults := 0
	opts.Fault = func(err error) { faults++ }
	v, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := v.Kind("grant").Put(t.Context(), "a", nil, 0); n != 0 || !errors.Is(err, ErrUnavailable) || faults != 1 {
		t.Errorf("got %d, %v, %d faults, want one", n, err, faults)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Kind("grant").Put(ctx, "a", nil, 0); err == nil || faults != 1 {
		t.Errorf("the caller gave up: got %v, %d faults", err, faults)
	}
	v.Attach(&replaced{Store: r.bucket, v: v})
	if _, err := v.Kind("grant").Put(t.Context(), "a", nil, 0); err == nil || faults != 1 {
		t.Errorf("the server was opened anew meanwhile: got %v, %d faults", err, faults)
	}
}

// TestDamageOnTheDisk: whatever a bad disk does to a block while the server runs, no wrong secret comes out, it is not taken
// for an empty place, and the name can be used again.
func TestDamageOnTheDisk(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	k := v.Kind("grant")
	put(t, k, "a", "1")
	put(t, k, "b", "2")
	r.b.Close() // or the server answers from its memory
	r = newRig(t, r.dir)
	r.flip(v.place("grant", "a"))
	v.Attach(r.bucket)
	wantErr(t, k, "a", ErrDamaged)
	if err := k.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	want(t, k, "a", "")
	wantNames(t, k, "b")
	put(t, k, "a", "new")
	want(t, k, "a", "new")
	want(t, k, "b", "2")
	wantNames(t, k, "a", "b")
	if err := k.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	want(t, k, "a", "")
	wantNames(t, k, "b")
}

// TestReplacedUnderDamage: what can no longer be compared is not replaced, but can be deleted first.
func TestReplacedUnderDamage(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	k := v.Kind("grant")
	revision := put(t, k, "a", "1")
	put(t, k, "b", "2")
	r.b.Close()
	r = newRig(t, r.dir)
	r.flip(v.place("grant", "a"))
	v.Attach(r.bucket)
	if next, err := k.Put(t.Context(), "a", []byte("new"), revision); next != 0 || !errors.Is(err, ErrDamaged) {
		t.Errorf("got %d, %v, want %v", next, err, ErrDamaged)
	}
	if err := k.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	revision = put(t, k, "a", "new")
	for version := range 5 {
		data := fmt.Sprint("new ", version)
		var err error
		if revision, err = k.Put(t.Context(), "a", []byte(data), revision); err != nil || revision == 0 {
			t.Fatal(revision, err)
		}
		want(t, k, "a", data)
	}
	want(t, k, "b", "2")
}

// flip turns a bit of what is stored at place on the disk.
func (r *rig) flip(place string) {
	r.t.Helper()
	blocks, err := filepath.Glob(filepath.Join(r.dir, "jetstream", "*", "streams", streamName, "msgs", "*.blk"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, path := range blocks {
		data, err := os.ReadFile(path)
		if err != nil {
			r.t.Fatal(err)
		}
		i := bytes.LastIndex(data, []byte(place))
		if i < 0 {
			continue
		}
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		at := int64(i + len(place) + 110)
		_, err = file.WriteAt([]byte{data[at] ^ 4}, at)
		if err := errors.Join(err, file.Close()); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	r.t.Fatalf("%s is in none of %d blocks", place, len(blocks))
}

const childEnv = "RELAYD_TEST_VAULT_CHILD"

// TestKilledProcess kills a process that stores, replaces and deletes as fast as it can, at random moments, and looks
// whether all it was told is true.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	dir := t.TempDir()
	said := map[string][2]string{} // name: version acknowledged, version under way; "-": deleted
	steps := 0
	for round := range 5 {
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
		left := 50 + rand.IntN(400)
		for lines := bufio.NewScanner(out); lines.Scan(); steps++ { // to the end of what it managed to say
			var word, name, version string
			if _, err := fmt.Sscan(lines.Text(), &word, &name, &version); err != nil {
				t.Fatalf("round %d: %q: %v", round, lines.Text(), err)
			}
			state := said[name]
			if state[1] = version; word == "done" {
				state = [2]string{version, version}
			}
			said[name] = state
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
		r := newRig(t, dir)
		k := r.open(keyA).Kind("session")
		names, err := k.Names(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		listed := map[string]bool{}
		for _, name := range names {
			listed[name] = true
		}
		for name, state := range said {
			data, _, err := k.Get(t.Context(), name)
			if err != nil {
				t.Fatalf("round %d: %s: %v", round, name, err)
			}
			got := "-"
			if data != nil {
				got = string(data)
			}
			if got != state[0] && got != state[1] && (state[0] != "" || got != "-") {
				t.Errorf("round %d: %s is %s after kill -9, want %s, or %s, which was under way", round, name, got, state[0], state[1])
			}
			if listed[name] != (data != nil) {
				t.Errorf("round %d: %s is listed: %v", round, name, listed[name])
			}
			said[name] = [2]string{got, got}
		}
		r.b.Close()
	}
	if steps < 500 {
		t.Errorf("only %d steps: the test says little", steps)
	}
}

func failChild(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child is the process to be killed. It says what it is about to do, and then that it was told that it is done.
func child(dir string) {
	ctx := context.Background()
	b, err := openBroker(ctx, dir)
	failChild(err)
	var mu sync.Mutex
	say := func(word, name, version string) {
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.WriteString(strings.Join([]string{word, name, version}, " ") + "\n") // one write each: whole lines, or none
	}
	for worker := range 4 {
		conns, err := b.Connect(1)
		failChild(err)
		js, err := jetstream.New(conns[0])
		failChild(err)
		bucket, err := NewBucket(ctx, js, 1)
		failChild(err)
		v, err := Open(ctx, Options{Store: bucket, Key: keyOf(keyA), Logger: zap.NewNop()})
		failChild(err)
		k := v.Kind("session")
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d", worker, rand.IntN(8))
				if rand.IntN(3) == 0 {
					say("begin", name, "-")
					failChild(k.Delete(ctx, name))
					say("done", name, "-")
					continue
				}
				_, revision, err := k.Get(ctx, name)
				failChild(err)
				version := fmt.Sprint(i, "/", rand.Uint32())
				version = strings.ReplaceAll(version, " ", "")
				say("begin", name, version)
				next, err := k.Put(ctx, name, []byte(version), revision)
				failChild(err)
				if next == 0 {
					failChild(fmt.Errorf("%s: another was quicker, but there is none", name))
				}
				say("done", name, version)
			}
		}()
	}
	select {}
}
