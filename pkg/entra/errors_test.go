package entra

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"relayd/pkg/entra/catalogue"
	"relayd/pkg/status"
)

func TestRules(t *testing.T) {
	tests := []struct {
		name   string
		http   int
		error  string
		codes  string
		action status.Action
		text   string // part of what is said
	}{
		{"throttled", 429, "", "", status.Retry, "busy"},
		{"throttled tenant", 429, "", "90055", status.BackOffTenant, "throttles"},
		{"down", 503, "", "", status.Retry, "unavailable"},
		{"busy by name", 400, "temporarily_unavailable", "", status.Retry, "unavailable"},
		{"transient by number", 400, "invalid_request", "90033", status.Retry, "unavailable"},
		{"loop detected", 400, "invalid_grant", "50196", status.BackOffTenant, "too many"},
		{"secret expired", 401, "invalid_client", "7000222", status.ParkTenant, "has expired"},
		{"secret wrong", 401, "invalid_client", "7000215", status.ParkTenant, "not its ID"},
		{"secret refused, number unknown", 401, "invalid_client", "12345", status.ParkTenant, "create a new one"},
		{"no secret where one is due", 401, "invalid_client", "7000218", status.ParkTenant, "create a new one"},
		{"app absent", 400, "unauthorized_client", "700016", status.ParkTenant, "client_id"},
		{"app disabled", 401, "invalid_client", "7000112", status.ParkTenant, "disabled"},
		{"app absent, number unknown", 400, "unauthorized_client", "", status.ParkTenant, "Enterprise applications"},
		{"no such tenant", 400, "invalid_request", "90002", status.ParkTenant, "tenant_id and cloud"},
		{"common used wrongly", 400, "invalid_request", "50194", status.ParkTenant, "does not understand"},
		{"wrong resource", 400, "invalid_resource", "500011", status.ParkTenant, "scope"},
		{"wrong scope", 400, "invalid_scope", "70011", status.ParkTenant, "scope"},
		{"consent", 400, "invalid_grant", "65001", status.ParkTenant, "SMTP.SendAsApp"},
		{"consent by name", 400, "consent_required", "", status.ParkTenant, "SMTP.SendAsApp"},
		{"security defaults", 400, "invalid_grant", "530035", status.ParkTenant, "security defaults"},
		{"refresh token gone", 400, "invalid_grant", "70008", status.ParkSender, "consent again"},
		{"conditional access", 400, "interaction_required", "53003", status.ParkSender, "Conditional Access"},
		{"user disabled", 400, "invalid_grant", "50057", status.ParkSender, "person"},
		{"a redirect", 302, "", "", status.Retry, "no access token"},
		{"the unknown is temporary", 418, "teapot", "1", status.Retry, "no access token"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, func(_ int, w http.ResponseWriter) { refuse(w, tt.http, tt.error, tt.codes) }, func(t *testing.T, r *rig) {
				e := r.refusal(t)
				if e.Action != tt.action || !strings.Contains(e.Text, tt.text) || e.Stage != status.StageToken {
					t.Errorf("got %v, %q, want %v, …%q…", e.Action, e, tt.action, tt.text)
				}
				if e.Temporary() != catalogue.TemporaryAction(tt.action) {
					t.Errorf("code %d does not go with %v", e.Code, e.Action)
				}
				cause, ok := errors.AsType[*oauth2.RetrieveError](e)
				if !ok || cause.ErrorCode != tt.error || cause.Response.StatusCode != tt.http {
					t.Errorf("got cause %v", e.Err)
				}
			})
		})
	}
}

// TestNoSecretInErrors has the endpoint, or something in front of it, repeat all it was sent.
func TestNoSecretInErrors(t *testing.T) {
	quoted, _ := json.Marshal(canary)
	answers := map[string]func(n int, w http.ResponseWriter){
		"in the description": func(_ int, w http.ResponseWriter) {
			w.WriteHeader(401)
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":%s,"error_uri":%s}`, quoted, quoted)
		},
		"as error": func(_ int, w http.ResponseWriter) {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"error":%s}`, quoted)
		},
		"as a page":       func(_ int, w http.ResponseWriter) { w.WriteHeader(500); fmt.Fprint(w, "you sent "+canary) },
		"the form":        func(_ int, w http.ResponseWriter) { w.WriteHeader(500); fmt.Fprint(w, url.QueryEscape(canary)) },
		"JSON, no error":  func(_ int, w http.ResponseWriter) { w.WriteHeader(500); fmt.Fprintf(w, `{"x":%s}`, quoted) },
		"a token":         func(_ int, w http.ResponseWriter) { w.WriteHeader(500); give(w, canary+"token", "1") },
		"an unusable one": func(_ int, w http.ResponseWriter) { give(w, canary+"token\x01", "3600") },
		"in a redirection": func(_ int, w http.ResponseWriter) {
			w.Header().Set("Location", "/?"+url.QueryEscape(canary))
			w.WriteHeader(307)
		},
		"one good token, then a failed renewal": func(n int, w http.ResponseWriter) {
			if n == 1 {
				give(w, "s3cr3t-token", "3600")
				return
			}
			w.WriteHeader(500)
			fmt.Fprint(w, canary)
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			within(t, answer, func(t *testing.T, r *rig) {
				var said strings.Builder
				for range 3 {
					_, err := r.Token(t.Context(), "contoso", "a@contoso.com", "")
					for ; err != nil; err = errors.Unwrap(err) {
						fmt.Fprintf(&said, "%v %+v %#v %q\n", err, err, err, err)
						if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
							fmt.Fprintf(&said, "%+v %+v\n", e.Response, string(e.Body))
						}
						r.options.Logger.Warn("as a caller would", zap.Error(err), zap.Any("any", fmt.Sprint(err)))
					}
					advance(57 * time.Minute)
				}
				for _, entry := range r.logs.All() {
					fmt.Fprintln(&said, entry.Message, entry.ContextMap())
				}
				families, err := r.registry.Gather()
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintln(&said, families)
				for _, form := range []string{"s3cr3t", "with <odd>", url.QueryEscape(canary)} {
					if strings.Contains(said.String(), form) {
						t.Errorf("%q found in %s", form, said.String())
					}
				}
				if said.Len() < 100 {
					t.Errorf("looked at nothing: %q", said.String())
				}
			})
		})
	}
}
