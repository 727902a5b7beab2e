package broker

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string) *Broker {
	t.Helper()
	b, err := Open(t.Context(), Options{Dir: dir, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func stream(t *testing.T, b *Broker) jetstream.Stream {
	t.Helper()
	conns, err := b.Connect(1)
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conns[0])
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s.1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReopenKeepsWhatWasAcknowledged(t *testing.T) {
	b := open(t, t.TempDir())
	stream(t, b)
	old, err := b.Connect(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !old[0].IsClosed() {
		t.Error("a connection from before Reopen is still open")
	}
	info, err := stream(t, b).Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 2 {
		t.Errorf("got %d messages, want the 1 from before and the 1 from after", info.State.Msgs)
	}
}

func TestSecondProcessIsKeptOut(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	_, err := Open(t.Context(), Options{Dir: dir, Logger: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "in use by another relayd (pid ") {
		t.Fatalf("got %v, want a sentence that names the other process", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir) // free again
}

func TestOpenRefusesWhatItWouldErase(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	stream(t, b)
	b.Close()
	meta := filepath.Join(dir, "jetstream", "$G", "streams", "S", "meta.inf")
	if err := os.WriteFile(meta, []byte("{not json"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Options{Dir: dir, Logger: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "holds stream S") {
		t.Fatalf("got %v, want a refusal that names the stream", err)
	}
	blocks, _ := filepath.Glob(filepath.Join(dir, "jetstream", "$G", "streams", "S", "msgs", "*.blk"))
	if len(blocks) == 0 {
		t.Error("the refused start erased the stream's blocks")
	}
}

func TestUnwritableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Options{Dir: filepath.Join(file, "data"), Logger: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "choose another data_dir") {
		t.Fatalf("got %v, want the way out", err)
	}
}

func TestNoSocket(t *testing.T) {
	b := open(t, t.TempDir())
	if addr, ok := b.srv.Addr().(*net.TCPAddr); ok {
		t.Errorf("server listens on %v", addr)
	}
	if b.srv.MonitorAddr() != nil {
		t.Error("server has a monitoring port")
	}
}

func TestEveryWriteIsSynced(t *testing.T) {
	b := open(t, t.TempDir())
	if cfg := b.srv.JetStreamConfig(); cfg == nil || !cfg.SyncAlways {
		t.Errorf("JetStream runs without SyncAlways: %+v", cfg)
	}
}

func TestConnectAfterClose(t *testing.T) {
	b := open(t, t.TempDir())
	b.Close()
	if _, err := b.Connect(1); err == nil {
		t.Error("got a connection from a closed broker")
	}
}

func TestServerLog(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	var fatal error
	l := &serverLog{log: zap.New(core).Sugar(), fatal: func(err error) { fatal = err }}
	l.Noticef("n %d", 1)
	l.Warnf("w")
	l.Errorf("e")
	l.Debugf("d")
	l.Tracef("never")
	l.Fatalf("lost %s", "disk")
	var got []string
	for _, e := range logs.All() {
		got = append(got, e.Level.String()+" "+e.Message)
	}
	want := "debug n 1|warn w|error e|debug d|error fatal: lost disk"
	if strings.Join(got, "|") != want {
		t.Errorf("got %v, want %v", strings.Join(got, "|"), want)
	}
	if fatal == nil || fatal.Error() != "queue server: lost disk" {
		t.Errorf("got fatal %v, want the server's words", fatal)
	}
}

func TestOpenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := Open(ctx, Options{Dir: dir, Logger: zap.NewNop()}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	open(t, dir) // the lock was given back
}

func TestReopenAfterClose(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	b.Close()
	if err := b.Reopen(t.Context()); err == nil {
		t.Error("a closed broker started a server in a directory it has no lock on")
	}
	if err := b.start(t.Context()); err == nil || b.srv != nil { // Close came while it was starting
		t.Errorf("got %v, want the late server stopped", err)
	}
	open(t, dir)
}
