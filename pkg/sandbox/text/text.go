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
