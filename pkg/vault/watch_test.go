package vault

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
)

// heard is what a watch has told, in order.
type heard struct {
	mu    sync.Mutex
	names []string
}

func (h *heard) add(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names = append(h.names, name)
}

func (h *heard) all() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.names, " ")
}

// watch runs a watch of the kind until the test ends.
func watch(t *testing.T, k *Kind) *heard {
	h := &heard{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Watch(ctx, h.add) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return h
}

func TestWatch(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	put(t, v.Kind("grant"), "before", "1")
	v = r.open(keyA)
	other, err := Open(t.Context(), r.options(r.connect(), keyA))
	if err != nil {
		t.Fatal(err)
	}
	grants := other.Kind("grant")
	put(t, grants, "early", "1") // after the opening, before the watch
	h := watch(t, v.Kind("grant"))
	await(t, "what came before the watch", func() bool { return h.all() == "early" })
	put(t, other.Kind("tenant"), "other-kind", "1")
	put(t, v.Kind("grant"), "own", "1")
	put(t, grants, "a@contoso.com", "1")
	if err := grants.Delete(t.Context(), "early"); err != nil {
		t.Fatal(err)
	}
	await(t, "all changes", func() bool { return h.all() == "early own a@contoso.com early" })
}

// TestReopen: while the server is opened anew all is unavailable, and then everything goes on, the watch with what it missed.
func TestReopen(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	k := v.Kind("grant")
	put(t, k, "a", "1")
	h := watch(t, k)
	await(t, "the watch", func() bool { return h.all() == "a" })
	for round := range 3 {
		if err := r.b.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, _, get := k.Get(t.Context(), "a")
		_, put1 := k.Put(t.Context(), "a", nil, 0)
		_, names := k.Names(t.Context())
		_, rotate := v.Rotate(t.Context())
		_, reset := v.Reset(t.Context())
		for what, err := range map[string]error{
			"get": get, "put": put1, "names": names, "delete": k.Delete(t.Context(), "a"), "rotate": rotate, "reset": reset,
		} {
			if what == "rotate" && err == nil { // nothing to do, and the keys are the same
				continue
			}
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: got %v, want %v", what, err, ErrUnavailable)
			}
		}
		bucket := r.connect()
		missed, err := Open(t.Context(), r.options(bucket, keyA))
		if err != nil {
			t.Fatal(err)
		}
		name := "missed" + string(rune('0'+round))
		put(t, missed.Kind("grant"), name, "x")
		v.Attach(bucket)
		want(t, k, "a", "1")
		want(t, k, name, "x")
		await(t, name, func() bool { return strings.HasSuffix(h.all(), name) })
	}
	if got, want := h.all(), "a missed0 missed1 missed2"; got != want {
		t.Errorf("heard %s, want %s", got, want)
	}
}

// TestWatchHearsOfRecordsItCannotOpen only by those it can: another's are passed over.
func TestWatchPassesOverWhatItCannotOpen(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	h := watch(t, v.Kind("grant"))
	r.foreign(v, keyB, "grant", "foreign")
	put(t, v.Kind("grant"), "own", "1")
	await(t, "the one that can be opened", func() bool { return h.all() == "own" })
	if names := strings.Fields(h.all()); !slices.Equal(names, []string{"own"}) {
		t.Errorf("heard %q", names)
	}
}

func TestCancelled(t *testing.T) {
	k := newRig(t, t.TempDir()).open(keyA).Kind("grant")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := k.Get(ctx, "a"); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := k.Put(ctx, "a", nil, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := k.Watch(ctx, func(string) {}); err != nil {
		t.Errorf("got %v", err)
	}
}
