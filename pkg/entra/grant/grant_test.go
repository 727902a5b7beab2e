package grant

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, pair := range [][2]string{{"a", ""}, {"a", "b"}, {"a/b", "c"}, {"a", "b/c"}, {"app", "a"}, {"user", "a"}, {"a%2Fb", "c"}, {"", "a"}} {
		name := Name(pair[0], pair[1])
		if seen[name] {
			t.Errorf("%q is the name of two", name)
		}
		seen[name] = true
	}
}

// TestPrintedGrantShowsNoSecret prints one in every way.
func TestPrintedGrantShowsNoSecret(t *testing.T) {
	g := Grant{Tenant: "contoso", Login: "a@contoso.com", Refresh: "s3cr3t-r", Access: "s3cr3t-a", Holder: "s3cr3t-h"}
	said := fmt.Sprintf("%v %+v %#v %s %q", g, g, g, g, g) + fmt.Sprintf("%v %+v %#v", &g, &g, []Grant{g}) + fmt.Sprint(errors.New(g.String()))
	if strings.Contains(said, "s3cr3t") || !strings.Contains(said, "a@contoso.com") {
		t.Errorf("got %s", said)
	}
	safe := g.Safe()
	if safe.Refresh+safe.Access+safe.Holder != "" || safe.Login != g.Login || g.Refresh == "" {
		t.Errorf("got %v", safe)
	}
}

func TestStoreAndLoad(t *testing.T) {
	m := NewMemory()
	if g, revision, err := Load(t.Context(), m, "x"); g != nil || revision != 0 || err != nil {
		t.Errorf("none: got %v, %d, %v", g, revision, err)
	}
	g := &Grant{Tenant: "contoso", Login: "a", Refresh: "r", Granted: time.Now().UTC().Round(0)}
	first, err := Store(t.Context(), m, "x", g, 0)
	if err != nil || first == 0 {
		t.Fatal(first, err)
	}
	if again, err := Store(t.Context(), m, "x", g, 0); again != 0 || err != nil {
		t.Errorf("stored over another: %d, %v", again, err)
	}
	if got, revision, err := Load(t.Context(), m, "x"); err != nil || revision != first || *got != *g {
		t.Errorf("got %v, %d, %v", got, revision, err)
	}
	if names, err := m.Names(t.Context()); err != nil || !slices.Equal(names, []string{"x"}) {
		t.Errorf("got %v, %v", names, err)
	}
	if _, err := m.Put(t.Context(), "x", []byte("s3cr3t"), first); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(t.Context(), m, "x"); err == nil || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("no grant: got %v", err)
	}
	if err := errors.Join(m.Delete(t.Context(), "x"), m.Delete(t.Context(), "x")); err != nil {
		t.Error(err)
	}
}

// TestMemoryCompares: of many who replace one version, one does.
func TestMemoryCompares(t *testing.T) {
	m := NewMemory()
	revision := uint64(0)
	for range 100 {
		var wg sync.WaitGroup
		won := make(chan uint64, 8)
		for range cap(won) {
			wg.Go(func() {
				if r, err := m.Put(context.Background(), "x", nil, revision); err == nil && r != 0 {
					won <- r
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d won", len(won))
		}
		revision = <-won
	}
}

// FuzzLoad: whatever stands in a record, it is a grant or an error without it.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"tenant":"contoso","login":"a","refresh":"r"}`))
	f.Add([]byte(`{"granted":"s3cr3t"}`))
	f.Add([]byte{0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := NewMemory()
		if _, err := m.Put(t.Context(), "x", data, 0); err != nil {
			t.Fatal(err)
		}
		g, _, err := Load(t.Context(), m, "x")
		if (g == nil) == (err == nil) || err != nil && strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("got %v, %v", g, err)
		}
	})
}
