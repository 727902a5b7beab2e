package queue

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/broker"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

const alice envelope.Address = "alice@contoso.com"

// rig is a queue on a server of its own in dir, which can be stopped and started again.
type rig struct {
	t      *testing.T
	dir    string
	change func(*Options)
	logs   *observer.ObservedLogs

	b    *broker.Broker
	q    *Queue
	stop func() // ends Run; nil while it does not run
}

func newRig(t *testing.T, dir string, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, dir: dir, change: change}
	t.Cleanup(r.kill)
	r.start()
	return r
}

// start opens server and queue in the directory; the test fails where they do not open.
func (r *rig) start() {
	r.t.Helper()
	if err := r.tryStart(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) tryStart() error {
	core, logs := observer.New(zapcore.InfoLevel)
	r.logs = logs
	b, err := broker.Open(context.Background(), broker.Options{Dir: r.dir, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	opts := Options{
		Dir: r.dir, Logger: zap.New(core), Registerer: prometheus.NewRegistry(),
		Reopen: func(ctx context.Context) ([]*nats.Conn, error) {
			if err := b.Reopen(ctx); err != nil {
				return nil, err
			}
			return b.Connect(2)
		},
	}
	if r.change != nil {
		r.change(&opts)
	}
	conns, err := b.Connect(2)
	if err == nil {
		r.q, err = Open(context.Background(), conns, opts)
	}
	if err != nil {
		return errors.Join(err, b.Close())
	}
	r.b = b
	return nil
}

// run starts Run; it ends with close or kill.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	q := r.q
	go func() { // owned by r.stop
		defer close(done)
		q.Run(ctx)
	}()
	r.stop = func() { cancel(); <-done; r.stop = nil }
}

// close is a clean stop.
func (r *rig) close() {
	r.t.Helper()
	if r.stop != nil {
		r.stop()
	}
	if err := r.q.Close(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	if err := r.b.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.b = nil
}

// kill stops without the queue's farewell.
func (r *rig) kill() {
	if r.stop != nil {
		r.stop()
	}
	if r.b != nil {
		if r.q.journal != nil {
			r.q.journal.file.Close() // as the process's end would; its content stays
		}
		r.b.Close()
		r.b = nil
	}
}

func (r *rig) restart() {
	r.t.Helper()
	r.close()
	r.start()
}

func (r *rig) put(sender envelope.Address, body []byte) *envelope.Envelope {
	r.t.Helper()
	env := newEnvelope(sender)
	if err := r.q.Put(context.Background(), env, bytes.NewReader(body)); err != nil {
		r.t.Fatalf("put: %v", err)
	}
	return env
}

// claim takes the sender's next message, nil for none.
func (r *rig) claim(sender envelope.Address) *envelope.Claim {
	r.t.Helper()
	c, err := r.q.Claim(context.Background(), sender, time.Now())
	if err != nil {
		r.t.Fatalf("claim: %v", err)
	}
	if c.Envelope == nil {
		return nil
	}
	return &c
}

func (r *rig) settle(env *envelope.Envelope, p envelope.Progress) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.q.Settle(ctx, env, p); err != nil {
		r.t.Fatalf("settle: %v", err)
	}
}

func (r *rig) body(c *envelope.Claim) []byte {
	r.t.Helper()
	data, err := io.ReadAll(c.Body(context.Background()))
	if err != nil {
		r.t.Fatalf("read body of %s: %v", c.Envelope.ID, err)
	}
	return data
}

func (r *rig) state(id envelope.ID) envelope.State {
	r.t.Helper()
	list := r.q.List(func(i Info) bool { return i.ID == id })
	if len(list) != 1 {
		return ""
	}
	return list[0].State
}

// jetstream returns a client of the server, beside the queue's own.
func (r *rig) jetstream() jetstream.JetStream {
	r.t.Helper()
	conns, err := r.b.Connect(1)
	if err != nil {
		r.t.Fatal(err)
	}
	js, err := jetstream.New(conns[0])
	if err != nil {
		r.t.Fatal(err)
	}
	return js
}

// records counts what the streams of a kind ("MAIL" or "CHUNK") hold for an id; "" means all.
func (r *rig) records(kind string, id envelope.ID) int {
	r.t.Helper()
	js := r.jetstream()
	n := 0
	for k := range r.q.store.Load().layout.Streams {
		s, err := js.Stream(context.Background(), "RELAYD_"+kind+"_"+string(rune('0'+k)))
		if err != nil {
			r.t.Fatal(err)
		}
		filter := "relayd.>"
		if id != "" {
			filter = "relayd.*.*.*." + string(id)
			if kind == "CHUNK" {
				filter += ".*"
			}
		}
		info, err := s.Info(context.Background(), jetstream.WithSubjectFilter(filter))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, c := range info.State.Subjects {
			n += int(c)
		}
	}
	return n
}

// sent is the end of a claim whose every recipient took the message.
func sent(c *envelope.Claim) envelope.Progress {
	p := c.Progress
	p.State, p.Changed, p.Results = envelope.Sent, time.Now(), nil
	for range c.Envelope.Recipients {
		p.Results = append(p.Results, envelope.Result{State: envelope.Sent})
	}
	return p
}

// text returns n octets of lines that tell one place of a body from another.
func text(n int) []byte {
	b := make([]byte, 0, n+20)
	for i := 0; len(b) < n; i++ {
		b = append(b, "line "...)
		for v := i; v > 0; v /= 10 {
			b = append(b, byte('0'+v%10))
		}
		b = append(b, '\r', '\n')
	}
	return b[:n]
}

// await waits until other goroutines have made cond true.
func await(t *testing.T, what string, limit time.Duration, cond func() bool) {
	t.Helper()
	end, look := time.After(limit), time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !cond() {
		select {
		case <-look.C:
		case <-end:
			t.Fatalf("after %v still not: %s", limit, what)
		}
	}
}

// image copies a data directory as kill -9 would leave it: everything written, nothing closed, no lock.
func image(t *testing.T, dir string) string {
	t.Helper()
	dst := t.TempDir()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // a temporary file of the server, renamed meanwhile
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dst, rel), 0o700)
		case rel == "lock":
			return nil
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

// code is the SMTP reply a client would get for err: 0 for nil or an error without one.
func code(err error) int {
	if e, ok := errors.AsType[*status.Error](err); ok {
		return e.Code
	}
	return 0
}

// count reads a counter.
func count(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	return testutil.ToFloat64(c)
}
