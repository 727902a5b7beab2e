package main

import (
	"slices"
	"strings"
	"testing"

	"relayd/pkg/admin/api/control"
	"relayd/pkg/admin/console"
)

func TestLogin(t *testing.T) {
	o, url := newOffice(t)
	stdout, stderr, err := relaydCommand(t, "", newLoginCommand(), "--api", url)
	if err != nil || stdout != "https://relay/login?code=x\n" || !strings.HasPrefix(stderr, "signs in the first browser that opens it, as admin, until 20") {
		t.Errorf("got %q, %q, %v", stdout, stderr, err)
	}
	stdout, _, err = relaydCommand(t, "", newLoginCommand(), "--role", "viewer", "--json", "--api", url)
	if got := jsonLines[control.Link](t, stdout); err != nil || len(got) != 1 || got[0].URL != "https://relay/login?code=x" || got[0].Expires.IsZero() {
		t.Errorf("got %q, %v", stdout, err)
	}
	if want := []string{"link admin by ops", "link viewer by ops"}; !slices.Equal(o.calls, want) {
		t.Errorf("got %q", o.calls)
	}
	o.err = console.ErrExpired
	if _, _, err := relaydCommand(t, "", newLoginCommand(), "--api", url); err == nil || !strings.HasPrefix(err.Error(), "login: this link") {
		t.Errorf("got %v", err)
	}
	for _, args := range [][]string{{"--role", "root"}, {"extra"}} {
		if _, _, err := relaydCommand(t, "", newLoginCommand(), args...); !isUsage(err) {
			t.Errorf("%v: got %v", args, err)
		}
	}
}
