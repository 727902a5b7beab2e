// Package status holds the one error that crosses relayd's packages.
//
// Whatever goes wrong between a client and Exchange Online ends as an [Error]: an SMTP reply code, an enhanced status
// code, a text that is safe to show, and what the relay is to do about it. Everything else stays behind [Error.Unwrap],
// for logs. The unknown is temporary: an error that carries no Error is a 451 and a retry, never a bounce.
package status

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Enhanced is an enhanced status code (RFC 3463), for example {4, 3, 1}. The zero value means none was given.
type Enhanced [3]int

// String returns the dotted form, "4.3.1", or "" for the zero value.
func (e Enhanced) String() string {
	if e == (Enhanced{}) {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", e[0], e[1], e[2])
}

// Action is what the relay does about a failed attempt, and so its scope: the recipient, the message's sender or the
// sender's whole tenant.
type Action uint8

// The actions, from the narrowest scope to the widest.
const (
	Retry         Action = iota // try this recipient again later; the default for anything unknown
	Fail                        // this recipient will never be accepted
	BackOffSender               // retry, and let the sender's mailbox rest
	BackOffTenant               // retry, and let every mailbox of the tenant rest
	ParkSender                  // nobody's mail is at fault: hold all mail of this sender, spend no attempt
	ParkTenant                  // the same for every sender of the tenant
	Uncertain                   // the final dot was sent and no reply came (RFC 1047): retry, flagged as a possible duplicate

	Split              // more recipients than one transaction may have: the rest, or smaller parts, at once; no attempt is spent
	RetryOnce          // try this recipient once more, after Error.Wait; the same reply again fails it
	HoldSender         // the mailbox's quota is used up: keep its mail until some of it is back, which takes hours; no attempt is spent
	HoldSenderExternal // the same for recipients outside the sender's organisation only
	HoldTenantExternal // the same for every sender of the tenant
)

// actionNames are the words of log, page and configuration.
var actionNames = [...]string{
	Retry: "retry", Fail: "fail", BackOffSender: "back off sender", BackOffTenant: "back off tenant", ParkSender: "park sender",
	ParkTenant: "park tenant", Uncertain: "uncertain", Split: "split", RetryOnce: "retry once", HoldSender: "hold sender",
	HoldSenderExternal: "hold sender external", HoldTenantExternal: "hold tenant external",
}

// ParseAction reads the name String returns.
func ParseAction(name string) (Action, bool) {
	i := slices.Index(actionNames[:], name)
	return Action(max(i, 0)), i >= 0
}

// String names the action as the log and the admin page do.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action %d", uint8(a))
}

// Stage is the point of a session at which something failed, as in the label of relayd_exchange_replies_total.
type Stage string

// The stages of a delivery, in order.
const (
	StageConnect  Stage = "connect"
	StageGreeting Stage = "greeting"
	StageEHLO     Stage = "ehlo"
	StageSTARTTLS Stage = "starttls"
	StageToken    Stage = "token"
	StageAuth     Stage = "auth"
	StageMail     Stage = "mail"
	StageRcpt     Stage = "rcpt"
	StageData     Stage = "data" // the DATA command and its 354
	StageDot      Stage = "dot"  // the body, the final dot and the reply to it
)

// Error is a failure with everything needed to answer a client, to decide a recipient's fate and to explain it.
type Error struct {
	Code     int      // SMTP reply code, 400 to 599
	Enhanced Enhanced // zero when the peer gave none
	Text     string   // one line, safe to show to a client: no secret, host, path or setting of ours
	Stage    Stage    // where in a delivery; empty at intake
	Action   Action   // zero value: retry
	Err      error    // what lies behind it, for logs; may be nil

	Rule   string        // name of the catalogue's row that decided on Action; empty: none did
	Wait   time.Duration // the recipient is tried no sooner than this; 0: as the schedule says
	Cause  string        // what is wrong, in a sentence for the operator; empty: not known
	Advice string        // what to change: portal path, PowerShell; empty: nothing a person could do
}

// Error returns reply code, enhanced code and text, without the cause.
func (e *Error) Error() string {
	s := fmt.Sprintf("%03d", e.Code)
	if e.Enhanced != (Enhanced{}) {
		s += " " + e.Enhanced.String()
	}
	s += " " + e.Text
	if e.Stage != "" {
		s = string(e.Stage) + ": " + s
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Temporary reports whether a client may try again (RFC 5321, section 4.2.1: 4yz).
func (e *Error) Temporary() bool { return e.Code < 500 }

// New returns an Error for a client's ears, with no cause behind it.
func New(code int, enhanced Enhanced, format string, args ...any) *Error {
	return &Error{Code: code, Enhanced: enhanced, Text: fmt.Sprintf(format, args...)}
}

// From returns the Error in err's chain, or a temporary one that hides err from the client and keeps it as the cause.
// From(nil) is nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: 451, Enhanced: Enhanced{4, 3, 0}, Text: "internal error, try again", Err: err}
}

// Outcome is what one attempt at delivering a message came to.
type Outcome struct {
	Reply string   // Exchange Online's reply to the final dot, control characters escaped; empty when there was none
	Errs  []*Error // one for each recipient tried, in the order tried; nil: accepted
}

// Park is a sender's mailbox, or a whole tenant, that cannot send now: its mail is kept, and spends neither attempts nor
// lifetime.
type Park struct {
	Tenant  string    // name in the configuration
	Login   string    // mailbox; empty: the whole tenant
	Since   time.Time // when the first reply of this kind came
	Quota   bool      // heals by itself within a day; else a person must act
	Resumed bool      // the park is over
	Err     *Error    // the reply behind it, with cause and advice; nil where Resumed
}
