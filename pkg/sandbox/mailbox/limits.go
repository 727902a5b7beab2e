package mailbox

import (
	"strings"
	"time"

	"relayd/pkg/sandbox/text"
	"relayd/pkg/sandbox/wire"
)

// Limits are the bounds Exchange Online sets. In every field zero means Exchange's own value and a negative number
// means no limit.
type Limits struct {
	Sending          int           // connections of one mailbox that may be sending at once; 3
	MessagesPerMin   int           // messages of one mailbox in any 60 seconds; 30
	RejectOverRate   bool          // refuse excess messages instead of withholding their reply
	RecipientsPerDay int           // recipients of one mailbox in any 24 hours; 10,000
	Recipients       int           // recipients of one message; 500
	SameDomain       int           // recipients of one message in one domain; 200
	MessageBytes     int64         // the advertised SIZE, refused at MAIL; 150 MiB
	MaxSendSize      int64         // the mailbox's own limit, found out after the body; 35 MiB
	HeaderBytes      int           // the whole header; 256 KiB
	HeaderValueBytes int           // one header field's value; 32 KiB
	RejectBareLF     bool          // refuse a bare LF in the body (550 5.6.11), as a next hop without BDAT does
	SessionAge       time.Duration // life of a connection; 20 minutes
	Idle             time.Duration // silence of a client; 5 minutes
}

// WithDefaults replaces zeros by Exchange's values and negative numbers by numbers nothing reaches.
func (l Limits) WithDefaults() Limits {
	const never = 1 << 40
	setInt := func(v *int, def int) {
		if *v == 0 {
			*v = def
		} else if *v < 0 {
			*v = never
		}
	}
	setBytes := func(v *int64, def int64) {
		if *v == 0 {
			*v = def
		} else if *v < 0 {
			*v = never
		}
	}
	setTime := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		} else if *v < 0 {
			*v = 10 * 365 * 24 * time.Hour
		}
	}
	setInt(&l.Sending, 3)
	setInt(&l.MessagesPerMin, 30)
	setInt(&l.RecipientsPerDay, 10_000)
	setInt(&l.Recipients, 500)
	setInt(&l.SameDomain, 200)
	setBytes(&l.MessageBytes, 150<<20)
	setBytes(&l.MaxSendSize, 35<<20)
	setInt(&l.HeaderBytes, 256<<10)
	setInt(&l.HeaderValueBytes, 32<<10)
	setTime(&l.SessionAge, 20*time.Minute)
	setTime(&l.Idle, 5*time.Minute)
	return l
}

// Submission is a message that has arrived whole.
type Submission struct {
	Login     string // the mailbox that authenticated
	MailFrom  string
	Content   *wire.Content
	Header    []wire.Field
	MaySendAs func(address string) bool // besides the login itself
}

// Judge returns the refusal of a message, "" if its content is acceptable.
func (l Limits) Judge(m Submission) string {
	switch {
	case m.Content.Size > l.MessageBytes:
		return text.MessageSize
	case len(m.Content.Header) > l.HeaderBytes:
		return text.HeaderSize
	case m.Content.BareLF && l.RejectBareLF:
		return text.InvalidCharacters
	}
	for _, f := range m.Header {
		if len(f.Value) > l.HeaderValueBytes {
			return text.HeaderValue(len(f.Value), l.HeaderValueBytes, f.Name)
		}
	}
	if refusal := m.judgeSender(); refusal != "" {
		return refusal
	}
	if m.Content.Size > l.MaxSendSize {
		return text.MaxSendSize
	}
	return ""
}

func (m *Submission) judgeSender() string {
	froms := 0
	for _, f := range m.Header {
		if strings.EqualFold(f.Name, "From") {
			froms++
		}
	}
	from := wire.Addresses(wire.Value(m.Header, "From"))
	switch {
	case froms != 1 || len(from) == 0:
		return text.NoFrom
	case len(from) > 1 && len(wire.Addresses(wire.Value(m.Header, "Sender"))) != 1:
		return text.ManyFrom
	}
	for _, a := range append([]string{m.MailFrom}, from...) {
		if strings.EqualFold(a, m.Login) || m.MaySendAs(a) {
			continue
		}
		if a == "" {
			a = "<>"
		}
		return text.SendAsDenied(m.Login, a)
	}
	return ""
}
