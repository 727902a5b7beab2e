package desk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/entra/grant"
)

// counting counts how often the list is read.
type counting struct {
	fakeTokens
	n int
}

func (c *counting) Grants(ctx context.Context) ([]grant.Grant, error) {
	c.n++
	return c.fakeTokens.Grants(ctx)
}

func TestRecentGrants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := &counting{fakeTokens: fakeTokens{w}}
		r := NewRecent(c)
		want := func(grants, readings int) {
			t.Helper()
			if list, err := r.Grants(t.Context()); err != nil || len(list) != grants || c.n != readings {
				t.Errorf("%d grants after %d readings, %v; want %d after %d", len(list), c.n, err, grants, readings)
			}
		}
		want(0, 1)
		w.grants = []grant.Grant{{Tenant: "t", Login: "x@b.c"}} // by another node
		want(0, 1)
		<-time.After(recentLife)
		want(1, 2)
		if err := r.Adopt(t.Context(), grant.Grant{Tenant: "t", Login: "a@b.c"}); err != nil {
			t.Fatal(err)
		}
		want(2, 3)
		if err := r.Forget(t.Context(), "t", "a@b.c"); err != nil {
			t.Fatal(err)
		}
		want(1, 4)
		<-time.After(recentLife)
		w.tokenFail = errors.New("vault away")
		if _, err := r.Grants(t.Context()); !errors.Is(err, w.tokenFail) {
			t.Errorf("got %v", err)
		}
		w.tokenFail = nil
		want(1, 6) // a failure is not kept
	})
}
