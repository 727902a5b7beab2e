package entra

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

	"relayd/pkg/status"
)

// TestEveryNumber has the endpoint refuse with every AADSTS number the rules know, and some "error"s without one.
func TestEveryNumber(t *testing.T) {
	const retry, tenant, sender, backOff = status.Retry, status.ParkTenant, status.ParkSender, status.BackOffTenant
	tests := []struct {
		http   int
		error  string
		codes  []int
		rule   string
		action status.Action
		advice string // part of it; empty: there is none
	}{
		{429, "", []int{0}, "throttled", retry, ""},
		{500, "", []int{0}, "unavailable", retry, ""},
		{503, "temporarily_unavailable", []int{0}, "unavailable", retry, ""},
		{400, "temporarily_unavailable", []int{50033, 90006, 90012, 90024, 90033, 90090}, "unavailable", retry, ""},
		{400, "invalid_request", []int{90055}, "tenant-throttled", backOff, "support request"},
		{400, "invalid_grant", []int{50196}, "client-loop", backOff, "client_id"},
		{400, "invalid_grant", []int{700082, 70008, 70043, 50089, 50173, 70000}, "refresh-token-gone", sender, "consent again"},
		{400, "interaction_required", []int{50076, 50078, 50079, 50074}, "mfa-required", sender, "second factor"},
		{400, "interaction_required", []int{53000, 53003, 530032}, "conditional-access", sender, "Conditional Access"},
		{400, "invalid_grant", []int{530035}, "token-security-defaults", tenant, "Manage security defaults"},
		{400, "invalid_grant", []int{65001, 65004, 90094, 650056, 650057}, "consent-missing", tenant, "SMTP.SendAsApp"},
		{400, "consent_required", []int{0}, "consent-missing", tenant, "SMTP.SendAsApp"},
		{401, "invalid_client", []int{7000215}, "secret-wrong", tenant, "Certificates & secrets"},
		{401, "invalid_client", []int{7000222}, "secret-expired", tenant, "Add-MgApplicationPassword"},
		{401, "invalid_client", []int{70002, 12345}, "credential-refused", tenant, "Certificates & secrets"},
		{401, "invalid_client", []int{700027, 700030}, "assertion-refused", tenant, "certificate"},
		{401, "invalid_client", []int{7000218}, "credential-missing", tenant, "client_secret"},
		{400, "unauthorized_client", []int{700016, 70001}, "application-unknown", tenant, "Enterprise applications"},
		{401, "invalid_client", []int{7000112}, "application-disabled", tenant, "Enabled for users to sign in"},
		{400, "unauthorized_client", []int{0}, "application-refused", tenant, "Enterprise applications"},
		{400, "invalid_resource", []int{500011, 70011, 28002, 0}, "scope-unknown", tenant, "outlook.office365.com/.default"},
		{400, "invalid_request", []int{500011, 70011, 28002}, "scope-unknown", tenant, "cloud"},
		{400, "invalid_request", []int{90002, 90038, 900382}, "tenant-unknown", tenant, "tenant_id"},
		{400, "invalid_grant", []int{50057}, "account-disabled", sender, "Update-MgUser"},
		{400, "invalid_grant", []int{50034}, "account-missing", sender, "login"},
		{400, "invalid_grant", []int{50053}, "account-locked", sender, "Sign-in logs"},
		{400, "invalid_grant", []int{50055}, "password-expired", sender, "Reset password"},
		{400, "invalid_request", []int{50194, 9001023}, "endpoint-wrong", tenant, "not common"},
		{400, "invalid_request", []int{0}, "request-malformed", tenant, "authority"},
		{400, "invalid_grant", []int{0}, "sign-in-needed", sender, "Sign-in logs"},
		{418, "teapot", []int{1}, "unknown-token-error", retry, ""},
	}
	seen, numbers := map[string]bool{}, map[int]bool{}
	for _, tt := range tests {
		seen[tt.rule] = true
		for _, n := range tt.codes {
			numbers[n] = true
			t.Run(fmt.Sprint(tt.rule, " ", tt.error, " ", n), func(t *testing.T) {
				within(t, func(_ int, w http.ResponseWriter) { refuse(w, tt.http, tt.error, fmt.Sprint(n)) }, func(t *testing.T, r *rig) {
					e := r.refusal(t)
					if e.Rule != tt.rule || e.Action != tt.action || e.Cause == "" || e.Text == "" || e.Stage != status.StageToken {
						t.Errorf("got %s, %v, %+v, want %s, %v", e.Rule, e.Action, e, tt.rule, tt.action)
					}
					if !strings.Contains(e.Advice, tt.advice) || tt.advice == "" && e.Advice != "" {
						t.Errorf("got advice %q, want …%q…", e.Advice, tt.advice)
					}
					if e.Temporary() != temporaryAction(tt.action) {
						t.Errorf("code %d does not go with %v", e.Code, e.Action)
					}
				})
			})
		}
	}
	for _, r := range builtin() {
		if !seen[r.Name] {
			t.Errorf("no refusal for rule %s", r.Name)
		}
		for _, n := range r.Codes {
			if !numbers[n] {
				t.Errorf("no refusal with AADSTS%d", n)
			}
		}
	}
}

func TestBuiltinRules(t *testing.T) {
	all := builtin()
	for i, r := range all {
		r.check(func(field, problem string) { t.Errorf("%s: %s %s", r.Name, field, problem) }, r.Name == unknownRule)
		if r.Text == "" || r.Cause == "" || !temporaryAction(r.Action) && r.Advice == "" {
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

func TestOperatorsRules(t *testing.T) {
	mine := []Rule{
		{Name: "proxy", HTTP: 407, Action: status.BackOffTenant, Hold: 10 * time.Minute, Cause: "the proxy wants a password", Advice: "set proxy"},
		{Name: "conditional-access", Action: status.ParkTenant},                                        // its numbers stay
		{Name: "scope-unknown", Codes: []int{99}, Action: status.Retry, Text: "scope", Cause: "cause"}, // and here do not
		{Name: "unknown-token-error", HTTP: 4, Action: status.BackOffTenant, Text: "four"},             // the default stays behind it
	}
	tests := []struct {
		http   int
		error  string
		codes  string
		rule   string
		action status.Action
		text   string
	}{
		{407, "", "", "proxy", status.BackOffTenant, noToken},
		{400, "interaction_required", "53003", "conditional-access", status.ParkTenant, "Conditional Access"},
		{400, "x", "99", "scope-unknown", status.Retry, "scope"},
		{400, "x", "70011", "unknown-token-error", status.BackOffTenant, "four"},
		{302, "", "", "unknown-token-error", status.Retry, noToken},
	}
	for _, tt := range tests {
		within(t, func(_ int, w http.ResponseWriter) { refuse(w, tt.http, tt.error, tt.codes) }, func(t *testing.T, r *rig) {
			if err := r.SetRules(mine); err != nil {
				t.Fatal(err)
			}
			e := r.refusal(t)
			if e.Rule != tt.rule || e.Action != tt.action || !strings.Contains(e.Text, tt.text) || e.Cause == "" {
				t.Errorf("HTTP %d %s %s: got %s, %v, %+v, want %s, %v, %q", tt.http, tt.error, tt.codes, e.Rule, e.Action, e, tt.rule, tt.action, tt.text)
			}
			if tt.rule == "proxy" {
				advance(7 * time.Minute)
				if _ = r.refusal(t); r.count() != 1 {
					t.Errorf("asked %d times within the hold", r.count())
				}
			}
			if err := r.SetRules([]Rule{{Name: "X"}}); err == nil {
				t.Error("accepted a bad rule")
			}
			advance(time.Hour)
			if e := r.refusal(t); e.Rule != tt.rule {
				t.Errorf("a refused change changed %s to %s", tt.rule, e.Rule)
			}
		})
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
		_, err := rules([]Rule{{Name: "fine", HTTP: 4}, r})
		e, ok := errors.AsType[*FieldError](err)
		if !ok || e.Field != tt.field || e.Index != 1 || e.Name != r.Name || !strings.Contains(err.Error(), "token rule 2") {
			t.Errorf("%+v: got %v, want %s", r, err, tt.field)
		}
	}
	if _, err := rules([]Rule{{Name: "x", HTTP: 4}, {Name: "x", HTTP: 5}}); err == nil {
		t.Error("accepted one name for two rules")
	}
	if _, err := New(Options{Rules: []Rule{{Name: "x"}}}); err == nil {
		t.Error("New took a bad rule")
	}
}

var update = flag.Bool("update", false, "rewrite docs/token-refusals.md")

// TestPage: docs/token-refusals.md is what Markdown writes.
func TestPage(t *testing.T) {
	const path = "../../docs/token-refusals.md"
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
		t.Errorf("docs/token-refusals.md is stale (%v): go test ./pkg/entra -run TestPage -update", err)
	}
	for _, r := range builtin() {
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
