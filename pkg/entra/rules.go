package entra

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/pkg/status"
)

// Rule is one line of what relayd knows of Entra ID's refusals. Microsoft tells clients to go by HTTP status and "error",
// never by the text, and says that the AADSTS numbers change: those only refine. A refusal fits when HTTP, Errors and Codes
// all do; rules of the same name are ways to say the same.
type Rule struct {
	Name   string   // lower-case words joined by "-"
	HTTP   int      // HTTP status; 4 or 5: any of that class; 0: any
	Errors []string // values of "error"; nil: any
	Codes  []int    // one of error_codes, AADSTS without its letters; nil: any

	Action status.Action // retry, back off or park: a token that does not come is no message's fault
	Hold   time.Duration // before the next request, unless Retry-After says; 0: as the action says
	Text   string        // for client and operator; empty: a general one
	Cause  string        // what is wrong, in a sentence for the operator
	Advice string        // what to change; empty: nothing a person could do
}

// FieldError says what is wrong with a rule of the operator's.
type FieldError struct {
	Index   int    // of the rule in what was given, from 0
	Name    string // of the rule, as given
	Field   string // "name", "http", "error", "aadsts", "action" or "wait"
	Problem string // "must be …"
}

// Error names the rule, the field and the problem.
func (e *FieldError) Error() string {
	return fmt.Sprintf("token rule %d (%q): %s %s", e.Index+1, e.Name, e.Field, e.Problem)
}

const (
	unknownRule = "unknown-token-error" // the default
	noToken     = "Entra ID gave no access token"
	maxHoldRule = 24 * time.Hour
)

// rules returns relayd's own rules behind those of extra. One of extra that has the name of one of ours takes its place
// instead: it keeps ours's texts where it has none, and what ours fits where it says nothing of its own about that.
// Errors are *[FieldError]s, all of them, joined.
func rules(extra []Rule) ([]Rule, error) {
	ours := builtin()
	var first []Rule
	var errs []error
	seen := map[string]bool{}
	for i, r := range extra {
		fail := func(field, problem string) {
			errs = append(errs, &FieldError{Index: i, Name: r.Name, Field: field, Problem: problem})
		}
		known := slices.ContainsFunc(ours, func(o Rule) bool { return o.Name == r.Name })
		if seen[r.Name] {
			fail("name", "is used by two rules")
		}
		seen[r.Name] = true
		r.check(fail, known)
		if known {
			ours = override(ours, r)
			continue
		}
		first = append(first, r)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return slices.Concat(first, ours), nil
}

// override puts r in the place of the rules of its name. The default stays behind what takes its place.
func override(all []Rule, r Rule) []Rule {
	var out []Rule
	done := false
	for _, o := range all {
		if o.Name != r.Name {
			out = append(out, o)
			continue
		}
		changed := r
		changed.Text, changed.Cause, changed.Advice = or(r.Text, o.Text), or(r.Cause, o.Cause), or(r.Advice, o.Advice)
		switch {
		case !r.matches():
			changed.HTTP, changed.Errors, changed.Codes = o.HTTP, o.Errors, o.Codes
			out = append(out, changed)
		case !done:
			out, done = append(out, changed), true
		}
		if r.matches() && o.Name == unknownRule {
			out = append(out, o)
		}
	}
	return out
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func (r *Rule) matches() bool { return r.HTTP != 0 || len(r.Errors) > 0 || len(r.Codes) > 0 }

// check calls fail for each field that cannot stand. known: the rule changes one of ours, so that it need not say what it fits.
func (r *Rule) check(fail func(field, problem string), known bool) {
	if r.Name == "" || len(r.Name) > 64 || strings.Trim(r.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		fail("name", "must be lower-case letters and digits, words joined by \"-\"")
	}
	if r.HTTP != 0 && r.HTTP != 4 && r.HTTP != 5 && (r.HTTP < 300 || r.HTTP > 599) {
		fail("http", "must be an HTTP status from 300 to 599, or 4 or 5 for any of that class")
	}
	for _, name := range r.Errors {
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			fail("error", fmt.Sprintf("must be one of Entra ID's, like invalid_client, not %q", name))
		}
	}
	for _, n := range r.Codes {
		if n < 1 {
			fail("aadsts", "must be the digits behind AADSTS")
		}
	}
	if !r.matches() && !known {
		fail("aadsts", "is missing: http, error or aadsts must say which refusals the rule fits")
	}
	if !temporaryAction(r.Action) && r.Action != status.ParkSender && r.Action != status.ParkTenant {
		fail("action", "must be retry, back off sender, back off tenant, park sender or park tenant: no message is at fault for a token")
	}
	if r.Hold < 0 || r.Hold > maxHoldRule {
		fail("wait", fmt.Sprintf("must be from 0 to %v", maxHoldRule))
	}
}

func (r *Rule) fits(code int, name string, numbers []int) bool {
	return (r.HTTP == 0 || r.HTTP == code || r.HTTP == code/100) &&
		(len(r.Errors) == 0 || slices.Contains(r.Errors, name)) &&
		(len(r.Codes) == 0 || slices.ContainsFunc(r.Codes, func(n int) bool { return slices.Contains(numbers, n) }))
}

// builtin is read from the top; the first that fits decides.
func builtin() []Rule { return slices.Concat(waiting(), application(), person()) }

// waiting is what passes by itself.
func waiting() []Rule {
	const unavailable = "Entra ID is unavailable"
	down := Rule{Name: "unavailable", Action: status.Retry, Text: unavailable, Cause: "Entra ID has a fault of its own, for a time"}
	named, numbered := down, down
	down.HTTP = 5
	named.Errors = []string{"temporarily_unavailable", "server_error"}
	numbered.Codes = []int{50033, 90006, 90012, 90024, 90033, 90090}
	return []Rule{
		{Name: "tenant-throttled", Codes: []int{90055}, Action: status.BackOffTenant, Hold: 15 * time.Minute,
			Text:   "Entra ID throttles the tenant",
			Cause:  "Entra ID throttles or blocks the whole tenant",
			Advice: "If it lasts: Entra admin center > Support > New support request, with the trace id of the error"},
		{Name: "client-loop", Codes: []int{50196}, Action: status.BackOffTenant, Hold: 5 * time.Minute,
			Text:   "Entra ID sees too many token requests",
			Cause:  "Entra ID takes the application's requests for a loop",
			Advice: "See that nothing else asks for tokens with this client_id; if nothing does, report it as a fault of relayd"},
		{Name: "throttled", HTTP: 429, Action: status.Retry, Hold: time.Minute,
			Text: "Entra ID is busy", Cause: "Entra ID throttles the application's token requests"},
		down, named, numbered,
	}
}

// application is about the app registration, and so about every sender that uses it.
func application() []Rule {
	const (
		registrations = "Entra admin center > App registrations > the application > "
		secrets       = registrations + "Certificates & secrets: "
		newSecret     = secrets + "New client secret; configure its value as client_secret. PowerShell: " +
			"Add-MgApplicationPassword -ApplicationId <object-id of the App registration>"
		enterprise = "Entra admin center > Enterprise applications > the application > Properties: Enabled for users to sign in. " +
			"Compare its Application ID with client_id, and the tenant's ID with tenant_id"
		consentText   = "the application lacks consent: grant SMTP.SendAsApp of Office 365 Exchange Online (App registrations, API permissions)"
		consentAdvice = registrations + "API permissions: add SMTP.SendAsApp of Office 365 Exchange Online (APIs my organization uses), " +
			"then Grant admin consent"
		scopeText   = "Entra ID does not know the scope: check scope and cloud"
		scopeAdvice = "Set cloud of the tenant to the one it is in (worldwide, gcc-high, dod, china), or correct scope; worldwide it is " +
			"https://outlook.office365.com/.default"
		secretText    = "Entra ID refused the client secret: create a new one (App registrations, Certificates & secrets) and configure it"
		requestText   = "Entra ID does not understand the request: check tenant_id, client_id, cloud and authority"
		requestAdvice = "Correct tenant_id (the directory's own ID, not common or organizations), client_id, cloud and authority of the tenant"
	)
	park := func(r Rule) Rule { r.Action = status.ParkTenant; return r }
	scope := Rule{Name: "scope-unknown", Text: scopeText, Cause: "Entra ID does not know the resource or scope, as a rule because it is another cloud's", Advice: scopeAdvice}
	scopeNumbered := scope
	scope.Errors, scopeNumbered.Codes = []string{"invalid_scope", "invalid_resource", "invalid_target"}, []int{500011, 70011, 28002}
	consent := Rule{Name: "consent-missing", Text: consentText, Cause: "nobody has consented to what the application asks for, or it asks for nothing of Exchange Online", Advice: consentAdvice}
	consentNumbered := consent
	consent.Errors, consentNumbered.Codes = []string{"consent_required"}, []int{65001, 65004, 90094, 650056, 650057}
	list := []Rule{
		{Name: "application-unknown", Codes: []int{700016, 70001},
			Text:   "the application is unknown to the tenant or disabled: check client_id and tenant_id, and Enterprise applications",
			Cause:  "the tenant has no application with this client_id",
			Advice: enterprise},
		{Name: "application-disabled", Codes: []int{7000112},
			Text:   "the application is unknown to the tenant or disabled: check client_id and tenant_id, and Enterprise applications",
			Cause:  "the application is disabled",
			Advice: enterprise},
		{Name: "secret-expired", Codes: []int{7000222},
			Text:  "the client secret has expired: create a new one (App registrations, Certificates & secrets) and configure it",
			Cause: "the client secret has expired", Advice: newSecret},
		{Name: "secret-wrong", Codes: []int{7000215},
			Text:   "the client secret is wrong: configure the secret's value, not its ID (App registrations, Certificates & secrets)",
			Cause:  "the client secret is wrong: often its ID was configured in place of its value, or it belongs to another application",
			Advice: newSecret},
		{Name: "assertion-refused", Codes: []int{700027, 700030}, Text: secretText,
			Cause:  "Entra ID refuses the client assertion: the certificate is not the one registered, has expired, or the clock is wrong",
			Advice: secrets + "upload the certificate that is configured, and compare thumbprint and dates; check this machine's clock"},
		{Name: "credential-missing", Codes: []int{7000218}, Text: secretText,
			Cause: "the request had neither a client secret nor a client assertion", Advice: newSecret},
		{Name: "credential-refused", Codes: []int{70002}, Text: secretText, Cause: "Entra ID refuses the application's credential", Advice: newSecret},
		{Name: "credential-refused", Errors: []string{"invalid_client"}, Text: secretText,
			Cause: "Entra ID refuses the application's credential", Advice: newSecret},
		{Name: "tenant-unknown", Codes: []int{90002, 90038, 900382}, Text: "Entra ID knows no such tenant: check tenant_id and cloud",
			Cause:  "there is no tenant with this tenant_id in this cloud",
			Advice: "Entra admin center > Overview: copy the Tenant ID into tenant_id; set cloud to the one the tenant is in"},
		{Name: "endpoint-wrong", Codes: []int{50194, 9001023}, Text: requestText,
			Cause: "the application is of one tenant only, and was asked for at an endpoint for all", Advice: requestAdvice},
		consentNumbered, consent,
		{Name: "token-security-defaults", Codes: []int{530035},
			Text:  "the tenant's security defaults block the sign-in: an administrator must allow it",
			Cause: "the tenant's security defaults block the sign-in",
			Advice: "Entra admin center > Overview > Properties > Manage security defaults: replace them by Conditional Access policies " +
				"that allow the application"},
		scopeNumbered, scope,
	}
	for i := range list {
		list[i] = park(list[i])
	}
	return append(list, accounts()...)
}

// accounts is what the AADSTS numbers say of the mailbox's own account.
func accounts() []Rule {
	const text = "Entra ID wants a person to sign in or to consent again, or a Conditional Access policy forbids the sign-in"
	user := func(name string, cause, advice string, codes ...int) Rule {
		return Rule{Name: name, Codes: codes, Action: status.ParkSender, Text: text, Cause: cause, Advice: advice}
	}
	const users = "Entra admin center > Users > the account: "
	return []Rule{
		user("refresh-token-gone", "the sender's refresh token has expired or was revoked",
			"Sign in as the sender and consent again", 700082, 70008, 70043, 50089, 50173, 70000),
		user("mfa-required", "Entra ID wants a second factor of the sender",
			"Sign in as the sender and consent again, with the second factor", 50076, 50078, 50079, 50074),
		user("conditional-access", "a Conditional Access policy forbids the sign-in",
			"Entra admin center > Sign-in logs: find the sign-in and the policy that failed it; Protection > Conditional Access: "+
				"exclude the application or the sender, or let this machine's address be a trusted location", 53000, 53003, 530032),
		user("account-disabled", "the sender's account is disabled", users+"Account status: enabled. PowerShell: "+
			"Update-MgUser -UserId <mailbox> -AccountEnabled:$true", 50057),
		user("account-missing", "there is no such account in the tenant", "Correct login or address of the sender, and tenant_id", 50034),
		user("account-locked", "the sender's account is locked after too many failed sign-ins",
			"Entra admin center > Sign-in logs: find out who tries to sign in; the lock goes by itself", 50053),
		user("password-expired", "the password of the sender's account has expired",
			users+"Reset password; then sign in as the sender and consent again", 50055),
	}
}

// person is what "error" alone says, and the default.
func person() []Rule {
	return []Rule{
		{Name: "application-refused", Errors: []string{"unauthorized_client"}, Action: status.ParkTenant,
			Text:   "the application may not sign in: check client_id, tenant_id and that it is enabled (Enterprise applications)",
			Cause:  "the application may not ask for tokens this way",
			Advice: "Entra admin center > Enterprise applications > the application > Properties: Enabled for users to sign in. Compare its Application ID with client_id"},
		{Name: "request-malformed", Errors: []string{"invalid_request", "unsupported_grant_type"}, Action: status.ParkTenant,
			Text:   "Entra ID does not understand the request: check tenant_id, client_id, cloud and authority",
			Cause:  "Entra ID does not understand the request",
			Advice: "Correct tenant_id, client_id, cloud and authority of the tenant; see that no proxy changes the request"},
		{Name: "sign-in-needed", Errors: []string{"invalid_grant", "interaction_required", "login_required", "access_denied"}, Action: status.ParkSender,
			Text:   "Entra ID wants a person to sign in or to consent again, or a Conditional Access policy forbids the sign-in",
			Cause:  "Entra ID wants a person to sign in or to consent again, or a policy forbids the sign-in",
			Advice: "Entra admin center > Sign-in logs: find the sign-in and why it failed; sign in as the sender and consent again where it is the sender's token"},
		{Name: unknownRule, Action: status.Retry, Text: noToken, Cause: "Entra ID gives no token, for a reason relayd does not know"}, // the unknown is temporary
	}
}
