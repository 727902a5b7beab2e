package entra

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"relayd/pkg/status"
)

// rule is one line of what relayd knows of Entra ID's refusals. Microsoft tells clients to go by HTTP status and
// "error", never by the text, and says that the AADSTS numbers change: those only refine.
type rule struct {
	http   int      // HTTP status; 5: any 5xx; 0: any
	errors []string // values of "error"; nil: any
	hints  []int    // one of error_codes; nil: any
	action status.Action
	hold   time.Duration // before the next request, unless Retry-After says; 0: as the action says
	text   string        // for client and operator; names the cure where a person must act
}

// rules is read from the top; the first that fits decides.
func rules() []rule {
	const (
		secret  = "Entra ID refused the client secret: create a new one (App registrations, Certificates & secrets) and configure it"
		consent = "the application lacks consent: grant SMTP.SendAsApp of Office 365 Exchange Online (App registrations, API permissions)"
	)
	return []rule{
		{hints: []int{90055}, action: status.BackOffTenant, hold: 15 * time.Minute, text: "Entra ID throttles the tenant"},
		{hints: []int{50196}, action: status.BackOffTenant, hold: 5 * time.Minute, text: "Entra ID sees too many token requests"},
		{http: 429, action: status.Retry, hold: time.Minute, text: "Entra ID is busy"},
		{http: 5, action: status.Retry, text: "Entra ID is unavailable"},
		{errors: []string{"temporarily_unavailable", "server_error"}, action: status.Retry, text: "Entra ID is unavailable"},
		{hints: []int{50033, 90006, 90012, 90024, 90033, 90090}, action: status.Retry, text: "Entra ID is unavailable"},

		{hints: []int{700016, 70001, 7000112}, action: status.ParkTenant,
			text: "the application is unknown to the tenant or disabled: check client_id and tenant_id, and Enterprise applications"},
		{errors: []string{"invalid_client"}, hints: []int{7000222}, action: status.ParkTenant,
			text: "the client secret has expired: create a new one (App registrations, Certificates & secrets) and configure it"},
		{errors: []string{"invalid_client"}, hints: []int{7000215}, action: status.ParkTenant,
			text: "the client secret is wrong: configure the secret's value, not its ID (App registrations, Certificates & secrets)"},
		{errors: []string{"invalid_client"}, action: status.ParkTenant, text: secret},

		{hints: []int{90002, 90038, 900382}, action: status.ParkTenant,
			text: "Entra ID knows no such tenant: check tenant_id and cloud"},
		{hints: []int{65001, 65004, 90094, 650056, 650057}, action: status.ParkTenant, text: consent},
		{errors: []string{"consent_required"}, action: status.ParkTenant, text: consent},
		{hints: []int{530035}, action: status.ParkTenant, text: "the tenant's security defaults block the sign-in: an administrator must allow it"},
		{errors: []string{"unauthorized_client"}, action: status.ParkTenant,
			text: "the application may not sign in: check client_id, tenant_id and that it is enabled (Enterprise applications)"},
		{errors: []string{"invalid_scope", "invalid_resource", "invalid_target"}, action: status.ParkTenant,
			text: "Entra ID does not know the scope: check scope and cloud"},
		{hints: []int{500011, 70011, 28002}, action: status.ParkTenant, text: "Entra ID does not know the scope: check scope and cloud"},
		{errors: []string{"invalid_request", "unsupported_grant_type"}, action: status.ParkTenant,
			text: "Entra ID does not understand the request: check tenant_id, client_id, cloud and authority"},

		{errors: []string{"invalid_grant", "interaction_required", "login_required", "access_denied"}, action: status.ParkSender,
			text: "Entra ID wants a person to sign in or to consent again, or a Conditional Access policy forbids the sign-in"},
		{text: "Entra ID gave no access token", action: status.Retry}, // the unknown is temporary
	}
}

func (r *rule) fits(code int, name string, hints []int) bool {
	return (r.http == 0 || r.http == code || r.http == code/100) &&
		(r.errors == nil || slices.Contains(r.errors, name)) &&
		(r.hints == nil || slices.ContainsFunc(r.hints, func(h int) bool { return slices.Contains(hints, h) }))
}

// read turns the error of a token request into ours. secret is struck out of it, should the far end repeat what it was
// sent.
func read(err error, secret string, now time.Time) (e *status.Error, hold time.Duration) {
	refusal, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return temporary("no usable answer from Entra ID", err), 0
	}
	var detail struct {
		Codes []int `json:"error_codes"`
	}
	_ = json.Unmarshal(refusal.Body, &detail) // without it there is no hint
	code := refusal.Response.StatusCode
	all := rules()
	r := all[slices.IndexFunc(all, func(r rule) bool { return r.fits(code, refusal.ErrorCode, detail.Codes) })]
	hold = r.hold
	if after := retryAfter(refusal.Response.Header.Get("Retry-After"), now); after > 0 {
		hold = after
	}
	e = temporary(r.text, printable(refusal, secret))
	if e.Action = r.action; !temporaryAction(r.action) {
		e.Code, e.Enhanced = 535, status.Enhanced{5, 7, 8}
	}
	return e, hold
}

func temporary(text string, cause error) *status.Error {
	return &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: status.StageToken, Text: text, Err: cause}
}

// temporaryAction reports whether time alone may cure what a is the answer to.
func temporaryAction(a status.Action) bool {
	return a == status.Retry || a == status.BackOffSender || a == status.BackOffTenant
}

// retryAfter reads the header of RFC 9110, section 10.2.3: seconds or a date. The result is at most maxRetryAfter; 0
// where there is none.
func retryAfter(s string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(s); err == nil {
		return min(time.Duration(min(max(seconds, 0), 1<<20))*time.Second, maxRetryAfter)
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(max(t.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// printable returns e without all that leads back to the request (its body holds the secret), with its texts cut short
// and the secret struck out. What looks like a token response is left out whole.
func printable(e *oauth2.RetrieveError, secret string) *oauth2.RetrieveError {
	clean := func(s string) string {
		for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), jsonEscape(secret)} {
			s = strings.ReplaceAll(s, form, "[secret]")
		}
		return s[:min(len(s), 600)]
	}
	body := ""
	if e.ErrorCode == "" && !strings.Contains(string(e.Body), "_token") {
		body = fmt.Sprintf("%q", clean(string(e.Body)))
	}
	return &oauth2.RetrieveError{
		Response:         &http.Response{Status: clean(e.Response.Status), StatusCode: e.Response.StatusCode},
		Body:             []byte(body),
		ErrorCode:        clean(e.ErrorCode),
		ErrorDescription: clean(e.ErrorDescription),
	}
}

func jsonEscape(s string) string {
	b, _ := json.Marshal(s) // a string always encodes
	return string(b[1 : len(b)-1])
}
