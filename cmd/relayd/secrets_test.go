package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"relayd/pkg/vault"
)

// mute is a store that does not answer the first write, as after a write error, and then refuses all.
type mute struct {
	vault.Store
	asked bool
}

func (m *mute) Put(context.Context, string, []byte, uint64) (uint64, error) {
	if m.asked {
		return 0, errors.New("gone")
	}
	m.asked = true
	return 0, context.DeadlineExceeded
}

// smallest writes a configuration that needs nothing, and returns its file.
func smallest(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "relayd.yaml")
	content := "hostname: relay.contoso.com\ndata_dir: " + filepath.Join(dir, "data") +
		"\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:0\"}\nlog: {level: error}\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestOrderOfParts: each part is stopped while what it needs to end well is still there.
func TestOrderOfParts(t *testing.T) {
	d, err := newDaemon(t.Context(), smallest(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- d.run(ctx, nil) }()
	for !d.started.Load() {
		runtime.Gosched()
	}
	d.parts.mu.Lock()
	var names []string
	for _, p := range d.parts.live {
		names = append(names, p.name)
	}
	d.parts.mu.Unlock()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, tt := range []struct{ part, needs string }{
		{"queue", "broker"}, {"tokens", "queue"}, {"queue watch", "queue"},
		{"token refreshes", "queue watch"}, // which opens the server anew where it refuses a refresh token
		{"live", "queue watch"}, {"radar", "postmaster"}, {"radar", "queue watch"},
		{"admin", "audit"}, {"consents", "admin"}, {"dispatcher", "postmaster"}, {"dispatcher", "exchange"}, {"listeners", "dispatcher"},
	} {
		part, needs := slices.Index(names, tt.part), slices.Index(names, tt.needs)
		if needs < 0 || part < needs {
			t.Errorf("%s is stopped after %s: %q", tt.part, tt.needs, names)
		}
	}
}

// TestVaultGetsNoAnswer: where only the vault's stream fails, the server is opened anew, and the vault has it.
func TestVaultGetsNoAnswer(t *testing.T) {
	file := smallest(t)
	d, err := newDaemon(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.parts.stop(); err != nil {
			t.Error(err)
		}
	}()
	d.parts.start("queue watch", d.queue.Run)
	records := d.vault.Kind("trial")
	d.vault.Attach(new(mute))
	if _, err := records.Put(t.Context(), "a", nil, 0); err == nil {
		t.Fatal("a store that does not answer has stored something")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for ; ; runtime.Gosched() {
		next, err := records.Put(ctx, "a", nil, 0)
		if err == nil && next != 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the vault does not come back: %v", err)
		}
	}
}
