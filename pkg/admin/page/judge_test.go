package page

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"relayd/pkg/admin/console"
	"relayd/pkg/envelope"
)

func TestJudge(t *testing.T) {
	now := time.Now()
	old := func(state envelope.State, age time.Duration) map[string]time.Time {
		return map[string]time.Time{string(state): now.Add(-age)}
	}
	busy := []console.Minute{{Accepted: 3, Sent: 2}}
	parked := []console.Sender{{}}
	tests := []struct {
		name string
		o    console.Overview
		want string
	}{
		{"idle", console.Overview{}, "idle"},
		{"flowing", console.Overview{Hour: busy}, "flowing"},
		{"not ready before all else", console.Overview{Hour: busy, Ready: "disk full", Parked: parked}, "refusing"},
		{"nothing sent, something waits", console.Overview{Oldest: old(envelope.Deferred, 11*time.Minute), Parked: parked}, "stuck"},
		{"nothing sent yet, but it came just now", console.Overview{Oldest: old(envelope.Queued, time.Minute)}, "idle"},
		{"a sender needs a person", console.Overview{Hour: busy, Parked: parked, Oldest: old(envelope.Queued, 2*time.Hour)}, "parked"},
		{"late", console.Overview{Hour: busy, Oldest: old(envelope.Uncertain, 61*time.Minute)}, "late"},
		{"what is held or failed is not late", console.Overview{Hour: busy, Oldest: old(envelope.Held, 100*time.Hour)}, "flowing"},
	}
	for _, tt := range tests {
		if got := judge(&tt.o, now).Key; got != "overview.verdict."+tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestNoWordIsUnused: a key stands in a template or a source, or its family is said with word or badge.
func TestNoWordIsUnused(t *testing.T) {
	var said strings.Builder
	for _, pattern := range []string{"*.go", "templates/*.html"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			said.Write(text)
		}
	}
	families := map[string]bool{"messages.notice": true, "messages.state": true} // built in Go
	for _, m := range regexp.MustCompile(`(?:word|badge) "([\w.]+)"|say\("([\w.]+)\."`).FindAllStringSubmatch(said.String(), -1) {
		families[m[1]+m[2]] = true
	}
	text, err := os.ReadFile("words/page.yaml")
	if err != nil {
		t.Fatal(err)
	}
	keys := regexp.MustCompile(`(?m)^([a-z][\w.]+):`).FindAllStringSubmatch(string(text), -1)
	if len(keys) < 100 {
		t.Fatalf("found %d words", len(keys))
	}
	for _, m := range keys {
		family := m[1][:strings.LastIndexByte(m[1], '.')]
		if !strings.Contains(said.String(), `"`+m[1]+`"`) && !families[family] {
			t.Errorf("%s is never said", m[1])
		}
	}
}

func TestEveryStateHasItsWords(t *testing.T) {
	text, err := os.ReadFile("words/page.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states() {
		if !strings.Contains(string(text), "messages.state."+string(s)+":") {
			t.Errorf("%s has no word", s)
		}
		for _, action := range mayHelp(s) {
			if !strings.Contains(string(text), "messages.action."+action+":") {
				t.Errorf("%s has no word", action)
			}
		}
	}
	for _, s := range queueStates() {
		if s == envelope.Sent {
			t.Error("what is sent is not in the queue")
		}
	}
}
