package smtpin

import (
	"errors"

	"github.com/emersion/go-smtp"

	"relayd/pkg/admission"
	"relayd/pkg/status"
)

// reason is why a message was refused, as in the label of relayd_messages_rejected_total.
type reason string

// The reasons; the metric has no others.
const (
	reasonSyntax  reason = "syntax" // command or parameter not understood
	reasonAccess  reason = "access" // network not allowed, or AUTH missing
	reasonSender  reason = reason(admission.ReasonSender)
	reasonRate    reason = "rate"                       // client over its messages a minute
	reasonSize    reason = reason(admission.ReasonSize) // or too many recipients
	reasonLoop    reason = reason(admission.ReasonLoop)
	reasonContent reason = reason(admission.ReasonContent) // or line endings
	reasonTimeout reason = "timeout"                       // body stopped, or came too slowly
	reasonLost    reason = "lost"                          // connection lost or message given up by the client before its end
	reasonQueue   reason = "queue"                         // not stored
)

func reasons() []reason {
	return []reason{reasonSyntax, reasonAccess, reasonSender, reasonRate, reasonSize, reasonLoop, reasonContent,
		reasonTimeout, reasonLost, reasonQueue}
}

// refusal is a status.Error with the reason to count it under.
type refusal struct {
	why reason
	err *status.Error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(why reason, code int, enhanced status.Enhanced, format string, args ...any) error {
	return &refusal{why, status.New(code, enhanced, format, args...)}
}

// bySender makes err, of the policy, a refusal of the sender. bySender(nil) is nil.
func bySender(err error) error {
	if err == nil {
		return nil
	}
	return &refusal{reasonSender, status.From(err)}
}

// whyOf returns the reason of err; what gave none came from behind us.
func whyOf(err error) reason {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.why
	}
	if r, ok := errors.AsType[*admission.Refusal](err); ok {
		return reason(r.Why)
	}
	return reasonQueue
}

// maxReplyText keeps a reply line within the 512 octets of RFC 5321 section 4.5.3.1.5.
const maxReplyText = 480

// reply is the one way from an error to go-smtp, which makes a permanent 554 of any other error. The text is stripped of
// what a terminal or a log could choke on, whoever wrote it.
func reply(e *status.Error) *smtp.SMTPError {
	if e.Code < 400 || e.Code > 599 {
		e = status.New(451, status.Enhanced{4, 3, 0}, "internal error, try again")
	}
	enhanced := smtp.EnhancedCode(e.Enhanced)
	if e.Enhanced[0] != e.Code/100 {
		enhanced = smtp.EnhancedCodeNotSet
	}
	return &smtp.SMTPError{Code: e.Code, EnhancedCode: enhanced, Message: printable(e.Text, maxReplyText)}
}

// printable replaces all but printable ASCII in s and cuts it to n octets.
func printable(s string, n int) string {
	b := []byte(s[:min(len(s), n)])
	for i, c := range b {
		if c < ' ' || c >= 0x7f {
			b[i] = '?'
		}
	}
	return string(b)
}
