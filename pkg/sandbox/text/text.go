// Package text holds the replies of Exchange Online and the errors of Entra ID, word for word as they have been published.
package text

import "fmt"

// Replies of Exchange Online, as published.
const (
	AuthFailed        = "535 5.7.3 Authentication unsuccessful"
	BasicDisabled     = "535 5.7.139 Authentication unsuccessful, basic authentication is disabled."
	NotAuthenticated  = "530 5.7.57 Client not authenticated to send mail."
	SenderThreads     = "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded"
	ManyPerDomain     = "452 4.5.3 Too many recipients"
	ManyRecipients    = "550 5.5.3 Too many recipients"
	InvalidSender     = "501 5.1.7 Invalid address"
	InvalidRecipient  = "501 5.1.3 Invalid address"
	MessageSize       = "552 5.3.4 Message size exceeds fixed maximum message size"
	HeaderSize        = "552 5.3.4 Header size exceeds fixed maximum size"
	Quota             = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException"
	OverRate          = "550 5.2.2 Submission quota exceeded"
	InvalidCharacters = "550 5.6.11 Invalid characters"
	ManyFrom          = "550 5.1.20 Multiple From addresses are not allowed without Sender address"
	NoFrom            = "550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant"
	OldTLS            = "421 4.7.66 TLS 1.0 and 1.1 are not supported. Please upgrade/update your client to support TLS 1.2. Visit https://aka.ms/smtp_auth_tls."
	// The number before the text is not in any published trace; the text is.
	MaxSendSize = "554 5.3.4 MapiExceptionMaxSubmissionExceeded; Message size exceeds maximum size limit.; STOREDRV.Submission.Exception:MessageSubmissionExceededException.MapiExceptionMaxSubmissionExceeded; Failed to process message due to a permanent exception with message [BeginDiagnosticData]Cannot save changes made to an item to store.[EndDiagnosticData]"
)

// SendAsDenied is the refusal of a From or MAIL FROM the login may not use.
func SendAsDenied(login, as string) string {
	return "554 5.2.252 SendAsDenied; " + login + " not allowed to send as " + as +
		"; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message " +
		"due to a permanent exception with message [BeginDiagnosticData]Cannot submit message.[EndDiagnosticData]"
}

// HeaderValue is the refusal of one header field of size octets.
func HeaderValue(size, limit int, name string) string {
	return fmt.Sprintf("554 5.6.211 Invalid MIME Content: Single text value size (%d) exceeded allowed maximum (%d) for the '%s' header.",
		size, limit, name)
}

// AADSTS is one of Entra's errors. Its text is followed by trace, correlation id and time; %[1]s is the app, %[2]s the
// tenant, %[3]s the offending value.
type AADSTS struct {
	Number, Status int // the AADSTS number, and the HTTP status
	Code, Text     string
}

// Refusals lists the AADSTS errors the sandbox knows.
func Refusals() []AADSTS {
	return []AADSTS{
		{7000215, 401, "invalid_client", "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%[1]s'."},
		{7000222, 401, "invalid_client", "The provided client secret keys for app '%[1]s' are expired. Visit the Azure portal to create new keys for your app: https://aka.ms/NewClientSecret, or consider using certificate credentials for added security: https://aka.ms/certCreds."},
		{7000218, 401, "invalid_client", "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."},
		{700016, 400, "unauthorized_client", "Application with identifier '%[1]s' was not found in the directory '%[2]s'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant."},
		{90002, 400, "invalid_request", "Tenant '%[2]s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant."},
		{9001023, 400, "invalid_request", "The grant type is not supported over the /common or /consumers endpoints. Please use the /organizations or tenant-specific endpoint."},
		{70011, 400, "invalid_scope", "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope %[3]s is not valid."},
		{500011, 400, "invalid_resource", "The resource principal named %[3]s was not found in the tenant named %[2]s. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant."},
		{70003, 400, "unsupported_grant_type", "The app requested an unsupported grant type '%[3]s'."},
		{900144, 400, "invalid_request", "The request body must contain the following parameter: '%[3]s'."},
		{90033, 503, "temporarily_unavailable", "A transient error has occurred. Please try again."},
		{90055, 429, "temporarily_unavailable", "Tenant '%[2]s' request is throttled due to excessive request rate."},
		{50196, 400, "invalid_grant", "The server terminated an operation because it encountered a client request loop. Please contact your app vendor."},
		{65001, 400, "invalid_grant", "The user or administrator has not consented to use the application with ID '%[1]s'. Send an interactive authorization request for this user and resource."},
	}
}
