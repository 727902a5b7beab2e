// Package refusal says in sentences why a sign-in at Entra ID was not accepted, and what to do.
//
// Each refusal is a *status.Error whose Rule names it, so that a page can say the same in another language. No sentence holds
// what was sent or received but the name of whoever signed in and what the configuration says.
package refusal

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/oauth2"

	"relayd/pkg/status"
)

// New returns a refusal that lasts until a person does something: no mail's fault, so its action parks at the most.
func New(rule, text, cause, advice string, err error) *status.Error {
	return &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageToken, Action: status.ParkSender,
		Rule: rule, Text: text, Cause: cause, Advice: advice, Err: err}
}

// later is a refusal that time may cure.
func later(rule, text, cause, advice string, err error) *status.Error {
	return &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: status.StageToken, Action: status.Retry,
		Rule: rule, Text: text, Cause: cause, Advice: advice, Err: err}
}

// Whole is e with what lies behind it, for the log.
func Whole(e *status.Error) error {
	if e.Err == nil {
		return e
	}
	return fmt.Errorf("%w: %w", e, e.Err)
}

const again = "Start the sign-in again"

// Unknown says that the state of a callback is none of ours, or no longer.
func Unknown() *status.Error {
	return New("sign-in-unknown", "This sign-in is not known here",
		"it has been finished already, is too old, or was not begun here; a page that is loaded twice does this", again, nil)
}

// Foreign says that a callback comes to another session than the one that began.
func Foreign() *status.Error {
	return New("sign-in-foreign", "This sign-in was begun in another browser",
		"a sign-in must end in the browser session it began in, so that nobody can pass theirs off as yours; an ended session does this too",
		"Start the sign-in again, and finish it in the same browser", nil)
}

// Late says that a callback comes after the sign-in has expired.
func Late() *status.Error {
	return New("sign-in-expired", "This sign-in took longer than ten minutes", "a sign-in that is begun is waited for ten minutes", again, nil)
}

// Malformed says that a callback holds neither code nor error, or the wrong kind of answer.
func Malformed() *status.Error {
	return New("sign-in-malformed", "Entra ID's answer is not one to a sign-in",
		"it holds neither what was asked for nor an error; something between browser and relay may have changed it", again, nil)
}

// Issuer says that the answer names another issuer, or none where one was promised (RFC 9207).
func Issuer() *status.Error {
	return New("sign-in-issuer", "The answer does not come from the Entra ID that was asked",
		"it names another issuer than the tenant's OpenID metadata, or none though that says it would",
		"Start the sign-in again; if it happens again, compare cloud and authority of the tenant, and see what stands between", nil)
}

// Tenant says that the account is of another directory than that of the tenant called name.
func Tenant(name string) *status.Error {
	return New("sign-in-tenant", "You signed in to another organisation than that of the tenant "+strconv.Quote(name),
		"the account that signed in, or the organisation consented for, has another tenant ID than the one configured",
		"Sign in with an account of the right organisation: a private browser window forgets the other one. Or correct tenant_id: "+
			"Entra admin center > Overview > Tenant ID", nil)
}

// Clock says that the ID token has expired or is of the future.
func Clock(err error) *status.Error {
	return New("sign-in-clock", "Entra ID's word on who signed in is out of date", "its ID token has expired or is not valid yet",
		"Set this machine's clock, and start the sign-in again", err)
}

// Identity says that the ID token does not hold.
func Identity(err error) *status.Error {
	return New("sign-in-identity", "Entra ID's word on who signed in does not hold",
		"the ID token fails a check of signature, issuer, audience or nonce, so it may be for somebody else", again, err)
}

// Nobody says that there is no ID token.
func Nobody() *status.Error {
	return New("sign-in-nobody", "Entra ID did not say who signed in", "its answer holds no ID token",
		"Entra admin center > App registrations > the application > API permissions: allow openid and profile of Microsoft Graph; "+
			"then start the sign-in again", nil)
}

// User says that who signed in is not who was expected.
func User(who, expected string) *status.Error {
	if who == "" {
		who = "somebody without an address"
	}
	return New("sign-in-user", fmt.Sprintf("%s signed in, but %s was expected", who, expected),
		"a sign-in lets mail be sent through the mailbox that signed in, so it must be the one that is configured",
		fmt.Sprintf("Either sign in again as %s: a private browser window forgets the other account. Or, if %s may Send As the sender "+
			"(Exchange admin center > Recipients > Mailboxes > the sender > Delegation > Send as), enter %s as the sender's login and sign in again",
			expected, who, who), nil)
}

// Scope says that the answer lacks what sending needs.
func Scope(scope string) *status.Error {
	return New("sign-in-scope", "The permission to send was not granted", "Entra ID's answer does not hold the scope "+strings.TrimSpace(scope),
		"Entra admin center > App registrations > the application > API permissions: add SMTP.Send (Delegated) and grant it; then start the sign-in again", nil)
}

// NoRefresh says that there is no refresh token.
func NoRefresh() *status.Error {
	return New("sign-in-offline", "Lasting access was not granted: Entra ID gave no refresh token",
		"without offline_access the sign-in would be over within the hour",
		"Entra admin center > App registrations > the application > API permissions: allow offline_access of Microsoft Graph; a Conditional "+
			"Access policy may forbid it too. Then start the sign-in again", nil)
}

// Invitation says that the link a sign-in came by has served already.
func Invitation() *status.Error {
	return New("sign-in-link-used", "The link has been used already, or has expired", "a link serves for one sign-in that is accepted",
		"Ask for a new link", nil)
}

// NoLogin says that there is no address to expect.
func NoLogin() *status.Error {
	return New("sign-in-login", "It is not said which mailbox is to sign in", "the sender stands for a whole domain and has no login",
		"Enter the mailbox as the sender's login, or add the address as a sender of its own", nil)
}

// NoRedirect says that there is no redirect URI.
func NoRedirect() *status.Error {
	return New("sign-in-redirect", "There is no address for Entra ID to send the browser back to", "admin.public_url is not set",
		"Set admin.public_url, and enter it with /oauth/callback as Redirect URI in Entra admin center > App registrations > the application > Authentication", nil)
}

// NoSession says that there is no session to bind a sign-in to.
func NoSession() *status.Error {
	return New("sign-in-session", "The browser has no session to tie the sign-in to", "it sent no cookie", "Allow cookies for this page, and start again", nil)
}

// Busy says that there is no room for one more.
func Busy() *status.Error {
	return later("sign-in-busy", "Too many sign-ins are under way", "as many as are kept have been begun and not finished",
		"Try again in ten minutes", nil)
}

// NoAnswer says that Entra ID could not be asked.
func NoAnswer(err error) *status.Error {
	return later("sign-in-no-answer", "Entra ID gave no usable answer", "it could not be reached, or answered what nobody can read",
		"Start the sign-in again in a minute; `relayd doctor` shows where it fails", err)
}

// Store says that the records cannot be read or written.
func Store(err error) *status.Error {
	return later("sign-in-store", "The relay cannot read or write its records now", "its store does not answer, or is sealed with another key",
		"Try again in a minute; the log says what is wrong with it", err)
}

// Adopt says that the grant could not be stored; a *status.Error of whoever stores stays what it is.
func Adopt(err error) *status.Error {
	if e, ok := errors.AsType[*status.Error](err); ok {
		return e
	}
	return Store(err)
}

// row is an error of Entra ID's that means something of its own to whoever signs in. Error names decide as a rule; the
// AADSTS numbers, of https://learn.microsoft.com/entra/identity-platform/reference-error-codes, only refine.
type row struct {
	rule   string
	names  []string // values of error; nil: any
	codes  []int    // AADSTS numbers; nil: any
	text   string
	cause  string
	advice string
}

// rows is read from the top; the first that fits decides. What is not here goes by the catalogue of token requests.
func rows() []row {
	const apps = "Entra admin center > Enterprise applications > the application > "
	declined := row{rule: "sign-in-declined", text: "The consent was declined", cause: "whoever signed in pressed Cancel, or did not accept what was asked for",
		advice: "Start the sign-in again and accept. If the page offers no way to accept, an administrator must consent first"}
	declinedNumbered := declined
	declinedNumbered.codes = []int{65004}
	declined.names = []string{"access_denied", "authorization_declined"}
	admin := row{rule: "sign-in-admin", text: "An administrator of the organisation must consent first",
		cause:  "its users may not consent to this permission themselves",
		advice: apps + "Permissions > Grant admin consent, or open the tenant's admin-consent link as an administrator; then start the sign-in again"}
	adminNumbered := admin
	adminNumbered.codes = []int{90094, 90095, 65001, 900941, 90093}
	admin.names = []string{"consent_required"}
	stale := row{rule: "sign-in-stale", text: "Entra ID no longer takes the code of this sign-in", cause: "it was used already, or is older than some minutes",
		advice: again}
	stale.codes = []int{54005, 70000, 70008}
	return []row{
		declinedNumbered, adminNumbered,
		{rule: "sign-in-not-assigned", codes: []int{50105}, text: "The account is not assigned to the application",
			cause:  "the application requires assignment, and whoever signed in has none",
			advice: apps + "Users and groups: add the account; or Properties: Assignment required? No. Then start the sign-in again"},
		{rule: "sign-in-policy", codes: []int{53000, 53001, 53002, 53003, 53004, 530032}, text: "A Conditional Access policy forbids the sign-in",
			cause: "the organisation allows the sign-in only from certain devices, places or applications",
			advice: "Sign in from a device and place that the policy allows; or Entra admin center > Sign-in logs: find the sign-in and the policy, " +
				"and exclude the application or the account"},
		{rule: "sign-in-redirect", codes: []int{50011, 500112}, text: "Entra ID does not know the redirect URI",
			cause:  "the one configured in Entra differs from the one relayd sends, if only by a letter or a slash",
			advice: "Copy the redirect URI from the tenant's page to Entra admin center > App registrations > the application > Authentication > Web"},
		{rule: "sign-in-proof", codes: []int{50147, 50148, 501481}, text: "Entra ID refuses the proof that belongs to the code",
			cause: "the code was made for another sign-in", advice: again},
		stale, admin, declined,
		{rule: "sign-in-device-expired", names: []string{"expired_token"}, text: "The device code has expired", cause: "nobody signed in with it in time",
			advice: "Start again, and enter the new code"},
		{rule: "sign-in-device-expired", names: []string{"bad_verification_code"}, text: "Entra ID no longer takes the device code",
			cause: "it was used already, or has expired", advice: "Start again, and enter the new code"},
	}
}

// Known returns the refusal of the first row that fits; nil where none does.
func Known(err error) *status.Error {
	refused, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return nil
	}
	var detail struct {
		Codes []int `json:"error_codes"`
	}
	_ = json.Unmarshal(refused.Body, &detail) // without it there is no hint
	for _, r := range rows() {
		if (len(r.names) == 0 || slices.Contains(r.names, refused.ErrorCode)) &&
			(len(r.codes) == 0 || slices.ContainsFunc(r.codes, func(n int) bool { return slices.Contains(detail.Codes, n) })) {
			return New(r.rule, r.text, r.cause, r.advice, fmt.Errorf("entra id: %s %v", plain(refused.ErrorCode), detail.Codes))
		}
	}
	return nil
}

// Returned makes of the error that a browser brought back what the token endpoint's would be. Only the error's name and the
// AADSTS numbers are taken: the rest is free text that anybody may have put into the address.
func Returned(name, description string) *oauth2.RetrieveError {
	e := struct {
		Code  string `json:"error,omitempty"`
		Codes []int  `json:"error_codes,omitempty"`
	}{Code: plain(name)}
	for part := range strings.SplitSeq(description[:min(len(description), 4096)], "AADSTS") {
		digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
		if n, err := strconv.Atoi(digits); err == nil && n < 1e8 && len(e.Codes) < 8 {
			e.Codes = append(e.Codes, n)
		}
	}
	if e.Code == "access_denied" && len(e.Codes) > 0 { // it stands for every end of a sign-in; the number tells which
		e.Code = ""
	}
	body, _ := json.Marshal(e) // strings and numbers always encode
	return &oauth2.RetrieveError{
		Response: &http.Response{Status: "400 Bad Request", StatusCode: http.StatusBadRequest, Header: http.Header{}},
		Body:     body, ErrorCode: e.Code,
	}
}

// plain keeps the name of an error to what such names are made of.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r == '_' {
			return r
		}
		return -1
	}, s)
	return s[:min(len(s), 64)]
}
