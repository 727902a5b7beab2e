package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
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

// TestVaultGetsNoAnswer: where only the vault's stream fails, the server is opened anew, and the vault has it.
func TestVaultGetsNoAnswer(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "relayd.yaml")
	content := "hostname: relay.contoso.com\ndata_dir: " + filepath.Join(dir, "data") +
		"\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:0\"}\nlog: {level: error}\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
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
