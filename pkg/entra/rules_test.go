package entra

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"relayd/pkg/entra/catalogue"
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
		{400, "invalid_grant", []int{65001, 650056, 650057}, "consent-missing", tenant, "SMTP.SendAsApp"},
		{400, "consent_required", []int{0}, "consent-missing", tenant, "SMTP.SendAsApp"},
		{401, "invalid_client", []int{7000215}, "secret-wrong", tenant, "Secret ID pasted"},
		{401, "invalid_client", []int{7000222}, "secret-expired", tenant, "Add-MgApplicationPassword"},
		{401, "invalid_client", []int{70002, 12345}, "credential-refused", tenant, "Certificates & secrets"},
		{401, "invalid_client", []int{700027, 700030, 700023, 700024}, "assertion-refused", tenant, "certificate"},
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
		{400, "invalid_request", []int{90094, 90095, 90093, 900941}, "admin-consent-needed", tenant, "admin-consent link"},
		{400, "invalid_request", []int{50011, 500112, 500113, 900971}, "redirect-mismatch", tenant, "platform > Web"},
		{401, "invalid_client", []int{700025}, "credential-unwanted", tenant, "Take the credential out"},
		{401, "invalid_client", []int{70021, 700211, 700212, 700213, 700021, 700022}, "federation-unknown", tenant, "Federated credentials"},
		{405, "invalid_request", []int{900561}, "method-refused", tenant, "proxy"},
		{400, "invalid_grant", []int{50105}, "user-not-assigned", sender, "Users and groups"},
		{400, "invalid_grant", []int{50020, 51004}, "foreign-account", sender, "private window"},
		{400, "invalid_grant", []int{54005}, "code-redeemed", sender, "again"},
		{400, "invalid_grant", []int{50147, 50148, 501481}, "pkce-mismatch", sender, "one browser window"},
		{400, "access_denied", []int{65004, 0}, "consent-denied", sender, "accept what is asked"},
		{400, "authorization_declined", []int{0}, "consent-denied", sender, "accept what is asked"},
		{400, "expired_token", []int{70019, 70020, 0}, "device-code-expired", sender, "new code"},
		{400, "bad_verification_code", []int{0}, "device-code-expired", sender, "new code"},
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
					if e.Temporary() != catalogue.TemporaryAction(tt.action) {
						t.Errorf("code %d does not go with %v", e.Code, e.Action)
					}
				})
			})
		}
	}
	for _, r := range catalogue.Builtin() {
		if r.Person {
			continue // TestPersonsRefusals
		}
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
		{407, "", "", "proxy", status.BackOffTenant, "Entra ID gave no access token"},
		{400, "interaction_required", "53003", "conditional-access", status.ParkTenant, "Conditional Access"},
		{400, "x", "99", "scope-unknown", status.Retry, "scope"},
		{400, "x", "70011", "unknown-token-error", status.BackOffTenant, "four"},
		{302, "", "", "unknown-token-error", status.Retry, "Entra ID gave no access token"},
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
