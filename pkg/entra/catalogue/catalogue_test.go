package catalogue

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"relayd/pkg/status"
)

const canary = `s3cr3t~"with <odd> & parts`

var update = flag.Bool("update", false, "rewrite docs/token-refusals.md")

func TestBuiltinRules(t *testing.T) {
	all := Builtin()
	for i, r := range all {
		r.check(func(field, problem string) { t.Errorf("%s: %s %s", r.Name, field, problem) }, r.Name == unknownRule)
		if r.Text == "" || r.Cause == "" || !TemporaryAction(r.Action) && r.Advice == "" {
			t.Errorf("%s: text, cause or advice is missing", r.Name)
		}
		if i > 0 && r.Name != all[i-1].Name && slices.ContainsFunc(all[:i], func(o Rule) bool { return o.Name == r.Name }) {
			t.Errorf("%s is torn apart", r.Name)
		}
	}
	if last := all[len(all)-1]; last.matches() || last.Action != status.Retry {
		t.Errorf("the last rule is %+v: the unknown is temporary", last)
	}
}

func TestRulesRefused(t *testing.T) {
	tests := []struct {
		field  string
		change func(*Rule)
	}{
		{"name", func(r *Rule) { r.Name = "" }},
		{"name", func(r *Rule) { r.Name = "A b" }},
		{"http", func(r *Rule) { r.HTTP = 200 }},
		{"http", func(r *Rule) { r.HTTP = 6 }},
		{"error", func(r *Rule) { r.Errors = []string{"Invalid Client"} }},
		{"error", func(r *Rule) { r.Errors = []string{""} }},
		{"aadsts", func(r *Rule) { r.Codes = []int{-1} }},
		{"aadsts", func(r *Rule) { r.HTTP = 0 }},
		{"action", func(r *Rule) { r.Action = status.Fail }}, // no message is at fault for a token
		{"action", func(r *Rule) { r.Action = status.Split }},
		{"action", func(r *Rule) { r.Action = status.HoldSender }},
		{"wait", func(r *Rule) { r.Hold = -1 }},
		{"wait", func(r *Rule) { r.Hold = 25 * time.Hour }},
	}
	for _, tt := range tests {
		r := Rule{Name: "x", HTTP: 400}
		tt.change(&r)
		_, err := Rules([]Rule{{Name: "fine", HTTP: 4}, r})
		e, ok := errors.AsType[*FieldError](err)
		if !ok || e.Field != tt.field || e.Index != 1 || e.Name != r.Name || !strings.Contains(err.Error(), "token rule 2") {
			t.Errorf("%+v: got %v, want %s", r, err, tt.field)
		}
	}
	if _, err := Rules([]Rule{{Name: "x", HTTP: 4}, {Name: "x", HTTP: 5}}); err == nil {
		t.Error("accepted one name for two rules")
	}
}

// TestPage: docs/token-refusals.md is what Markdown writes.
func TestPage(t *testing.T) {
	const path = "../../../docs/token-refusals.md"
	var b bytes.Buffer
	if err := Markdown(&b); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(b.Bytes(), want) {
		t.Errorf("docs/token-refusals.md is stale (%v): go test ./pkg/entra/catalogue -run TestPage -update", err)
	}
	for _, r := range Builtin() {
		if !bytes.Contains(b.Bytes(), []byte("| `"+r.Name+"`")) || r.does() == "" || r.says() == "" {
			t.Errorf("%s is not on the page, or without words", r.Name)
		}
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "|") && strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") != 6 {
			t.Errorf("not five columns: %s", line)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		header string
		want   time.Duration
	}{
		{"", 0}, {"soon", 0}, {"60", time.Minute}, {"-1", 0}, {"0", 0},
		{"86400", maxRetryAfter},
		{"9223372036854775807", maxRetryAfter}, // would overflow a Duration
		{"Sun, 22 Nov 2026 12:05:00 GMT", 5 * time.Minute},
		{"Sun, 22 Nov 2026 11:00:00 GMT", 0}, // past
		{"Sun, 22 Nov 2099 11:00:00 GMT", maxRetryAfter},
	}
	for _, tt := range tests {
		if got := retryAfter(tt.header, now); got != tt.want {
			t.Errorf("%q: got %v, want %v", tt.header, got, tt.want)
		}
	}
}

// FuzzRead: whatever the endpoint sends, there is a verdict, and the secret is not in it.
func FuzzRead(f *testing.F) {
	f.Add(401, "invalid_client", `{"error_codes":[7000215]}`, "30")
	f.Add(500, "", canary, "x")
	f.Add(400, "", `{"error_codes":["x"]}`, "Sun, 22 Nov 2026 12:05:00 GMT")
	f.Fuzz(func(t *testing.T, code int, name, body, after string) {
		e, hold := Read(Builtin(), &oauth2.RetrieveError{Response: &http.Response{StatusCode: code, Header: http.Header{"Retry-After": {after}}},
			ErrorCode: name, ErrorDescription: body, Body: []byte(body)}, Request{Secrets: []string{canary}})
		if e.Text == "" || e.Rule == "" || e.Cause == "" || hold < 0 || hold > maxRetryAfter || e.Stage != status.StageToken {
			t.Errorf("got %v, hold %v", e, hold)
		}
		if said := fmt.Sprintf("%v %v", e, e.Err); strings.Contains(said, canary) {
			t.Errorf("secret in %q", said)
		}
	})
}
