package catalogue

import (
	"slices"
	"time"

	"relayd/pkg/status"
)

// Builtin returns relayd's own rules. They are read from the top; the first that fits decides.
func Builtin() []Rule {
	return slices.Concat(waiting(), registration(), signIn(), application(), accounts(), person())
}

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

// registration is how the application is set up in Entra ID, as far as its numbers go before the rest of what
// application says.
func registration() []Rule {
	const (
		app        = "Entra admin center > App registrations > the application > "
		federation = app + "Certificates & secrets > Federated credentials: issuer, subject and audience must be exactly those of the token"
	)
	list := []Rule{
		{Name: "admin-consent-needed", Codes: []int{90094, 90095, 90093, 900941},
			Text:  "an administrator must approve the application first",
			Cause: "the organisation lets only administrators consent to this application, and none has",
			Advice: "Have an administrator open the tenant's admin-consent link, or: " + app + "API permissions > Grant admin consent; " +
				"then sign in again"},
		{Name: "redirect-mismatch", Codes: []int{50011, 500112, 500113, 900971},
			Text:  "the redirect URI is not registered with the application",
			Cause: "the redirect URI that was sent is none of those of the app registration, or of another platform",
			Advice: app + "Authentication > Add a platform > Web: enter the redirect URI exactly as the tenant's page shows it, with " +
				"scheme, port and path"},
		{Name: "credential-unwanted", Codes: []int{700025},
			Text:  "the application is a public client and takes no credential",
			Cause: "a credential is configured, but the application is registered as a public client",
			Advice: "Take the credential out of the tenant, or register the redirect URI under the platform Web in place of Mobile and desktop: " +
				app + "Authentication"},
		{Name: "federation-unknown", Codes: []int{70021, 700211, 700212, 700213, 700021, 700022},
			Text:   "the application does not trust the federated token",
			Cause:  "no federated credential of the application fits issuer, subject and audience of the token, or the issuer's keys cannot be read",
			Advice: federation},
		{Name: "method-refused", Codes: []int{900561},
			Text:   "Entra ID got a GET where only POST will do",
			Cause:  "something on the way turned the request into a GET, as a redirect does, or somebody opened the address in a browser",
			Advice: "Correct authority and proxy of the tenant; begin a sign-in from its page, never from a bookmark"},
	}
	for i := range list {
		list[i].Action = status.ParkTenant
	}
	return list
}

// signIn is what goes wrong while a person signs in or consents.
func signIn() []Rule {
	const again = "Begin the sign-in again"
	denied := Rule{Name: "consent-denied", Text: "the consent was declined",
		Cause:  "whoever signed in chose not to allow the application to send mail",
		Advice: again + ", and accept what is asked; without SMTP.Send nothing can be sent by this mailbox"}
	deniedNamed := denied
	denied.Codes, deniedNamed.Errors = []int{65004}, []string{"access_denied", "authorization_declined"}
	needed := Rule{Name: "consent-needed", Person: true, Ends: true, Text: "consent to send as this mailbox is missing or was withdrawn",
		Cause: "nobody has consented to SMTP.Send for this mailbox, or the consent was withdrawn",
		Advice: "Sign in as the sender and consent again; if Entra ID wants an administrator for that, have one open the tenant's " +
			"admin-consent link first"}
	neededNamed := needed
	needed.Codes, neededNamed.Errors = []int{65001}, []string{"consent_required"}
	lost := Rule{Name: "device-code-expired", Text: "the device code has expired",
		Cause: "nobody signed in with the code within its time, or the code is not one of Entra ID's", Advice: again + ", and enter the new code"}
	lostNamed := lost
	lost.Codes, lostNamed.Errors = []int{70019, 70020}, []string{"expired_token", "bad_verification_code"}
	list := []Rule{
		{Name: "user-not-assigned", Codes: []int{50105}, Text: "the account is not assigned to the application",
			Cause: "the application admits only assigned users, and this account is none",
			Advice: "Entra admin center > Enterprise applications > the application > Users and groups: add the account; or Properties > " +
				"Assignment required: No"},
		{Name: "foreign-account", Codes: []int{50020, 51004}, Text: "the account belongs to another organisation",
			Cause:  "the account that signed in is not in the tenant",
			Advice: "Sign out at Microsoft, or use a private window, and sign in as the mailbox itself; compare tenant_id with the mailbox's tenant"},
		{Name: "code-redeemed", Codes: []int{54005}, Text: "the sign-in was already used",
			Cause: "the authorization code was redeemed before: the page was loaded twice, or somebody else has used it", Advice: again},
		{Name: "pkce-mismatch", Codes: []int{50147, 50148, 501481}, Text: "the sign-in does not belong to this relay's request",
			Cause:  "the proof key (PKCE) does not fit the authorization code: another sign-in was begun meanwhile, or the code is not ours",
			Advice: again + " in one browser window; if it happens each time, report it as a fault of relayd"},
		denied, deniedNamed, needed, neededNamed, lost, lostNamed,
	}
	for i := range list {
		list[i].Action = status.ParkSender
	}
	return list
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
	consent.Errors, consentNumbered.Codes = []string{"consent_required"}, []int{65001, 650056, 650057}
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
			Text:  "the client secret is wrong: configure the secret's value, not its ID (App registrations, Certificates & secrets)",
			Cause: "the client secret is wrong: often its ID was configured in place of its value, or it belongs to another application",
			Advice: "Was the Secret ID pasted instead of the Value? The portal shows the Value once, when the secret is made. If it is " +
				"gone: " + newSecret},
		{Name: "assertion-refused", Codes: []int{700027, 700030, 700023, 700024}, Text: "Entra ID refused the client assertion: check certificate and clock",
			Cause:  "Entra ID refuses the client assertion: the certificate is not the one registered, has expired, or the clock is wrong",
			Advice: secrets + "upload the certificate that is configured, and compare thumbprint and dates; check this machine's clock"},
		{Name: "credential-missing", Codes: []int{7000218}, Text: secretText,

			Cause: "the request had neither a client secret nor a client assertion, and the application is not a public client",
			Advice: "Configure a client_secret (" + newSecret + "), or make it a public client: " + registrations +
				"Authentication > Allow public client flows: Yes"},
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
	return list
}

// accounts is what the AADSTS numbers say of the mailbox's own account.
func accounts() []Rule {
	const text = "Entra ID wants a person to sign in or to consent again, or a Conditional Access policy forbids the sign-in"
	user := func(name string, cause, advice string, codes ...int) Rule {
		return Rule{Name: name, Codes: codes, Action: status.ParkSender, Text: text, Cause: cause, Advice: advice}
	}
	ends := func(name string, cause, advice string, codes ...int) Rule {
		r := user(name, cause, advice, codes...)
		r.Ends = true
		return r
	}
	const users = "Entra admin center > Users > the account: "
	return []Rule{
		ends("refresh-token-gone", "the sender's refresh token has expired or was revoked",
			"Sign in as the sender and consent again", 700082, 70008, 70043, 50089, 50173, 70000),
		ends("mfa-required", "Entra ID wants a second factor of the sender",
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
		{Name: "sign-in-needed", Errors: []string{"invalid_grant", "interaction_required", "login_required"}, Action: status.ParkSender, Ends: true,
			Text:   "Entra ID wants a person to sign in or to consent again, or a Conditional Access policy forbids the sign-in",
			Cause:  "Entra ID wants a person to sign in or to consent again, or a policy forbids the sign-in",
			Advice: "Entra admin center > Sign-in logs: find the sign-in and why it failed; sign in as the sender and consent again where it is the sender's token"},
		{Name: unknownRule, Action: status.Retry, Text: noToken, Cause: "Entra ID gives no token, for a reason relayd does not know"}, // the unknown is temporary
	}
}
