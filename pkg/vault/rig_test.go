package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/broker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	keyA = "the first of the keys, 32 octets or more"
	keyB = "the second of the keys, as long as need be"
	keyC = "the third of the keys, which is long, too"
)

// rig is a server in dir and its bucket.
type rig struct {
	t      *testing.T
	dir    string
	b      *broker.Broker
	bucket *Bucket
	logs   *observer.ObservedLogs
}

func newRig(t *testing.T, dir string) *rig {
	t.Helper()
	b, err := broker.Open(context.Background(), broker.Options{Dir: dir, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	r := &rig{t: t, dir: dir, b: b}
	r.bucket = r.connect()
	return r
}

// connect makes a bucket over a connection of its own.
func (r *rig) connect() *Bucket {
	r.t.Helper()
	conns, err := r.b.Connect(1)
	if err != nil {
		r.t.Fatal(err)
	}
	js, err := jetstream.New(conns[0])
	if err != nil {
		r.t.Fatal(err)
	}
	bucket, err := NewBucket(context.Background(), js, 1)
	if err != nil {
		r.t.Fatal(err)
	}
	return bucket
}

func keyOf(s string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(s), nil } }

// options are of a vault in store with these keys, the current one first.
func (r *rig) options(store Store, keys ...string) Options {
	core, logs := observer.New(zapcore.InfoLevel)
	r.logs = logs
	opts := Options{Store: store, Key: keyOf(keys[0]), Logger: zap.New(core)}
	for _, k := range keys[1:] {
		opts.Previous = append(opts.Previous, keyOf(k))
	}
	return opts
}

func (r *rig) open(keys ...string) *Vault {
	r.t.Helper()
	v, err := Open(r.t.Context(), r.options(r.bucket, keys...))
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// put stores a new record.
func put(t *testing.T, k *Kind, name, data string) uint64 {
	t.Helper()
	revision, err := k.Put(t.Context(), name, []byte(data), 0)
	if err != nil || revision == 0 {
		t.Fatalf("put %s: got revision %d, %v", name, revision, err)
	}
	return revision
}

// want checks what is under name; "" means nothing.
func want(t *testing.T, k *Kind, name, data string) (revision uint64) {
	t.Helper()
	got, revision, err := k.Get(t.Context(), name)
	if err != nil || string(got) != data || (revision == 0) != (got == nil) {
		t.Errorf("%s: got %q, revision %d, %v, want %q", name, got, revision, err, data)
	}
	return revision
}

func wantErr(t *testing.T, k *Kind, name string, want error) {
	t.Helper()
	got, revision, err := k.Get(t.Context(), name)
	if !errors.Is(err, want) || got != nil || revision != 0 {
		t.Errorf("%s: got %q, revision %d, %v, want %v", name, got, revision, err, want)
	}
}

func wantNames(t *testing.T, k *Kind, want ...string) {
	t.Helper()
	got, err := k.Names(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got names %q, want %q", got, want)
	}
}

// logged returns all log messages with their fields.
func (r *rig) logged() string {
	var b strings.Builder
	for _, e := range r.logs.All() {
		fmt.Fprintln(&b, e.Level, e.Message, e.ContextMap())
	}
	return b.String()
}

// image copies a data directory as kill -9 would leave it: all that was written, nothing closed.
func image(t *testing.T, dir string) string {
	t.Helper()
	dst := t.TempDir()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // a temporary file of the server
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "lock" {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dst, rel), 0o700)
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dst, rel), data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dst
}

// grep returns the files below dir that contain any of the words, in any of the usual spellings.
func grep(t *testing.T, dir string, words ...string) (found []string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		for _, word := range words {
			if bytes.Contains(bytes.ToLower(data), []byte(strings.ToLower(word))) {
				found = append(found, path+": "+word)
			}
		}
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files, %v", files, err)
	}
	return found
}

// await waits until other goroutines have made cond true.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	end, look := time.After(20*time.Second), time.NewTicker(2*time.Millisecond)
	defer look.Stop()
	for !cond() {
		select {
		case <-look.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}
