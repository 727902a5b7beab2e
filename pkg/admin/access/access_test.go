package access

import (
	"context"
	"encoding/base32"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNewToken(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		token, hash := NewToken()
		random, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(strings.TrimPrefix(token, "relayd_")))
		if err != nil || len(random) != 32 || !strings.HasPrefix(token, "relayd_") || seen[token] {
			t.Fatalf("got %q, %v", token, err)
		}
		seen[token] = true
		if len(hash) != len("sha256:")+64 || hash != HashToken(token) || strings.Contains(hash, token) {
			t.Errorf("got %q", hash)
		}
	}
	// sha256sum of "abc", FIPS 180-2 appendix B.1
	if got := HashToken("abc"); got != "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("got %s", got)
	}
}

func TestFind(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	if _, err := NewTokens([]Token{{Name: "b", Hash: HashToken("b")[7:]}}); err == nil {
		t.Error("a hash without its prefix is taken")
	}
	ts, err := NewTokens([]Token{
		{Name: "a", Hash: HashToken("a"), Role: Operator, Scopes: []Scope{Manage}}, {Name: "b", Hash: HashToken("b"), Expires: now},
	})
	if err != nil {
		t.Fatal(err)
	}
	if found, ok := ts.Find("a", now); !ok || found.Name != "a" {
		t.Errorf("got %v, %v", found, ok)
	}
	if found, ok := ts.Find("b", now); ok || found == nil || found.Name != "b" {
		t.Errorf("expired: got %v, %v", found, ok)
	}
	if _, ok := ts.Find("b", now.Add(-1)); !ok {
		t.Error("expired early")
	}
	for _, guess := range []string{"", "c", "aa", HashToken("a")} {
		if found, ok := ts.Find(guess, now); ok || found != nil {
			t.Errorf("%q: got %v", guess, found)
		}
	}
	if found, ok := Tokens(nil).Find("", now); ok || found != nil {
		t.Error("no tokens, and yet one found")
	}
}

func TestTokenPrincipal(t *testing.T) {
	operator := Operator.Scopes()
	p := (&Token{Name: "a", Role: Operator, Scopes: []Scope{Manage}}).Principal()
	if p.Name != "token a" || !slices.Equal(p.Scopes, append(operator, Manage)) || !slices.Equal(Operator.Scopes(), operator) {
		t.Errorf("got %+v", p)
	}
	if p := (&Token{Name: "b", Scopes: []Scope{Send}}).Principal(); !p.May(Send) || p.May(Read) || p.Role != "" {
		t.Errorf("got %+v", p)
	}
}

func TestRoles(t *testing.T) {
	var before []Scope
	for _, r := range []Role{Viewer, Operator, Admin} {
		now := r.Scopes()
		for _, s := range before {
			if !slices.Contains(now, s) {
				t.Errorf("%s lacks %s of the role before it", r, s)
			}
		}
		if len(now) <= len(before) {
			t.Errorf("%s has no more than the role before it", r)
		}
		before = now
	}
	if len(before) != 5 || Role("root").Scopes() != nil || (*Principal)(nil).May(Read) {
		t.Errorf("got %v", before)
	}
}

func TestContext(t *testing.T) {
	ctx := context.Background()
	if From(ctx) != nil || Browser(ctx) != "" {
		t.Error("somebody in an empty context")
	}
	ctx = WithBrowser(ctx, "b")
	if Browser(ctx) != "b" || From(ctx) != nil {
		t.Errorf("got %q", Browser(ctx))
	}
	if got := Browser(With(ctx, &Principal{Session: "s"})); got != "s" {
		t.Errorf("got %q", got)
	}
	if got := Browser(With(ctx, &Principal{})); got != "" { // a token's, which has no browser
		t.Errorf("got %q", got)
	}
}
