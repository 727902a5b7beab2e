package consent

import (
	"fmt"
	"strings"

	"relayd/pkg/status"
)

// What relayd itself refuses a sign-in for. Each says what happened, what it means, and what to do.

func refuse(rule, text, cause, advice string) *status.Error {
	return &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageToken, Action: status.ParkSender,
		Rule: rule, Text: text, Cause: cause, Advice: advice}
}

func errUnknown() *status.Error {
	return refuse("consent-unknown", "this sign-in is not one that was started here, in this browser",
		"it was finished already, or started in another browser, or the link is not ours", "Start the authentication again, and stay in one browser until it is done")
}

func errExpired() *status.Error {
	return refuse("consent-expired", "this sign-in took too long", "a sign-in is kept for ten minutes", "Start the authentication again")
}

func errNoSession() *status.Error {
	return refuse("consent-no-session", "a sign-in needs a browser that keeps cookies", "there is no browser session to bind the sign-in to", "Allow cookies for this page, or use a device code")
}

func errTooMany() *status.Error {
	return refuse("consent-too-many", "too many sign-ins are under way", "each is kept until it is finished or has expired", "Finish one of them, or wait some minutes")
}

func errIssuer() *status.Error {
	return refuse("consent-issuer", "the answer comes from another server than the one that was asked", "somebody may be mixing up two sign-ins (RFC 9207)",
		"Start the authentication again; if it happens again, check authority of the tenant")
}

func errNoCode() *status.Error {
	return refuse("consent-no-code", "the answer holds neither a code nor an error", "this is no answer of Entra ID", "Start the authentication again")
}

func errNotConsented() *status.Error {
	return refuse("consent-not-given", "the administrator's consent was not given", "the page was left without accepting", "Open the admin consent again, and press Accept")
}

func errTenant() *status.Error {
	return refuse("consent-tenant", "you signed in to another organisation than the tenant's", "the account belongs to another Entra tenant, or tenant_id is not the mailbox's",
		"Sign in with an account of the mailbox's organisation; or copy the Directory (tenant) ID of that organisation to the tenant")
}

func errScope(scope string) *status.Error {
	first, _, _ := strings.Cut(scope, " ")
	return refuse("consent-scope", "the permission to send was not granted", "Entra ID granted the sign-in, but not "+first,
		"Entra admin center > App registrations > the application > API permissions: add the delegated permission SMTP.Send, grant admin consent, and start the authentication again")
}

func errNoRefresh() *status.Error {
	return refuse("consent-no-refresh", "Entra ID gave no refresh token, so relayd could send for an hour only", "offline_access was not granted",
		"Allow offline_access (\"Maintain access to data you have given it access to\") for the application, and start the authentication again")
}

func errIdentity(err error) *status.Error {
	e := refuse("consent-identity", "Entra ID's word on who signed in cannot be verified", "the id_token is missing, not meant for this application, or not signed by the tenant's keys",
		"Start the authentication again; if it stays, check this machine's clock, and authority and tenant_id of the tenant")
	e.Err = err
	return e
}

func errUser(user, login string) *status.Error {
	return refuse("consent-user", fmt.Sprintf("%s signed in, but the mailbox is %s", user, login), "Exchange Online takes a token for the mailbox of whoever signed in",
		fmt.Sprintf("Sign in as %s (choose \"Use another account\"); or, if %s may Send As the sender, enter %s as the sender's login", login, user, user))
}

func errInvitationUsed() *status.Error {
	return refuse("consent-link-used", "this one-time link was used already, or has expired", "a link serves one successful sign-in", "Ask whoever sent it for a new one")
}

func errDeclined() *status.Error {
	return refuse("consent-declined", "the sign-in was declined", "whoever entered the code pressed Cancel", "Start again, and let the mailbox's owner accept")
}

func errDeviceExpired() *status.Error {
	return refuse("consent-device-expired", "nobody entered the code in time", "a device code lives for about 15 minutes", "Start again")
}

// errAway is of a far end that gave no usable answer.
func errAway(err error) *status.Error {
	return &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: status.StageToken, Text: "Entra ID gave no usable answer",
		Cause: "it cannot be reached from here, or answers with something else", Advice: "Try again; if it stays, check authority, proxy and ca_file of the tenant", Err: err}
}
