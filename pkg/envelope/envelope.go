// Package envelope is relayd's noun: one accepted message's id, sender, recipients and times, and where each recipient
// stands.
//
// An [Envelope] is written once, at acceptance, and never changes. What happens to it afterwards is a [Progress], a
// small record that replaces its predecessor. Both have a versioned encoding (see codec.go); a sample of every version
// stays in testdata and must stay readable.
package envelope

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"strings"
	"time"
)

// ID names a message for its whole life: in the reply to the client, in X-Relayd-Id, in the log. 20 characters of
// lower-case base 32 whose order is the order of acceptance, safe in a NATS subject and in a file name.
type ID string

const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz" // Crockford's: no i, l, o, u to misread on the telephone

// idLen is 10 characters of milliseconds since 1970 (50 bits) and 10 of randomness.
const idLen = 20

// NewID returns a fresh ID for a message accepted at t.
func NewID(t time.Time) ID {
	var random [8]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	var b [idLen]byte
	encode32(b[:10], uint64(t.UnixMilli()))
	encode32(b[10:], binary.BigEndian.Uint64(random[:]))
	return ID(b[:])
}

func encode32(dst []byte, v uint64) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = idAlphabet[v&31]
		v >>= 5
	}
}

// Valid reports whether id has the form NewID gives.
func (id ID) Valid() bool {
	if len(id) != idLen {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= '0' && c <= '9':
		case c >= 'a' && c <= 'z' && c != 'i' && c != 'l' && c != 'o' && c != 'u':
		default:
			return false
		}
	}
	return true
}

// Derived returns the ID of what relayd itself writes about the message id: the same for the same label each time, so that
// storing it twice is storing it once.
func (id ID) Derived(label string) ID {
	sum := sha256.Sum256([]byte(string(id) + " " + label))
	b := []byte(id.orZero())
	encode32(b[10:], binary.BigEndian.Uint64(sum[:]))
	return ID(b)
}

func (id ID) orZero() ID {
	if id.Valid() {
		return id
	}
	return ID(strings.Repeat("0", idLen))
}

// Time returns the moment of acceptance the ID carries, to the millisecond; the zero time where it is not valid.
func (id ID) Time() time.Time {
	if !id.Valid() {
		return time.Time{}
	}
	var ms uint64
	for i := range 10 {
		ms = ms<<5 | uint64(strings.IndexByte(idAlphabet, id[i]))
	}
	return time.UnixMilli(int64(ms))
}

// Envelope is everything known of a message at acceptance, short of its body.
type Envelope struct {
	ID          ID          `json:"id"`
	Received    time.Time   `json:"received"`             // when the intake accepted the end of the message
	Intake      string      `json:"intake"`               // "smtp"
	Listener    string      `json:"listener,omitempty"`   // address of the listener
	Client      string      `json:"client,omitempty"`     // authenticated user name; empty: by network
	Peer        string      `json:"peer,omitempty"`       // IP address of the client
	ReversePath Address     `json:"reverse_path"`         // MAIL FROM as given; empty: null reverse-path
	Sender      Address     `json:"sender"`               // the address it goes out as; chooses tenant, login and limits
	Recipients  []Recipient `json:"recipients"`           // in the order given, no duplicates
	Size        int64       `json:"size"`                 // octets of the message as stored
	SHA256      [32]byte    `json:"-"`                    // of the message as stored; the codec carries it beside the rest
	Chunks      int         `json:"chunks,omitempty"`     // number of separate body records; 0: the body is in the mail record
	EightBit    bool        `json:"eight_bit,omitempty"`  // an octet above 127 was seen: BODY=8BITMIME (RFC 6152)
	SMTPUTF8    bool        `json:"smtputf8,omitempty"`   // the client asked for SMTPUTF8 (RFC 6531)
	Return      string      `json:"ret,omitempty"`        // RET: FULL or HDRS (RFC 3461)
	EnvelopeID  string      `json:"envid,omitempty"`      // ENVID, xtext as given
	MessageID   string      `json:"message_id,omitempty"` // with its angle brackets
	Repairs     []string    `json:"repairs,omitempty"`    // what device repair changed, in words
	LongLines   bool        `json:"long_lines,omitempty"` // a line over 998 octets was seen (RFC 5322, section 2.1.1): re-encoded on the way out
}

// Recipient is one RCPT TO with its delivery status notification parameters (RFC 3461).
type Recipient struct {
	Address Address `json:"address"`
	Notify  string  `json:"notify,omitempty"` // NOTIFY as given: NEVER, or SUCCESS,FAILURE,DELAY
	ORCPT   string  `json:"orcpt,omitempty"`  // ORCPT as given: type;xtext
}

// State is where a message or one of its recipients stands. The words are those of the contract, of log and page.
type State string

// The states of a message. A recipient is only ever queued, deferred, sent, uncertain or failed.
const (
	Queued    State = "queued"
	Sending   State = "sending"
	Sent      State = "sent"
	Deferred  State = "deferred"  // a retry is due at Progress.Due
	Held      State = "held"      // by an operator, or quarantined: see Progress.Reason
	Parked    State = "parked"    // its sender or tenant cannot send now
	Uncertain State = "uncertain" // the final dot was sent, no reply came
	Failed    State = "failed"
)

// Final reports whether a recipient in this state is settled: nothing is tried for it again.
func (s State) Final() bool { return s == Sent || s == Failed }

// Progress is what has happened to a message since acceptance. A message that has none is untouched: queued, due at once.
type Progress struct {
	State    State     `json:"state"`              // Queued, Deferred, Held, Uncertain or Failed
	Attempts int       `json:"attempts,omitempty"` // attempts that cost a life: parks and drains do not count
	Due      time.Time `json:"due,omitzero"`       // not before this time
	Changed  time.Time `json:"changed,omitzero"`   // when this record was written
	Reason   string    `json:"reason,omitempty"`   // why held, or the last reply
	Results  []Result  `json:"results,omitempty"`  // one per recipient of the envelope, same order; empty: all queued

	Part   int  `json:"part,omitempty"`   // recipients in one transaction, where a reply taught that more are too many
	Warned bool `json:"warned,omitempty"` // the sender has been told of the delay
}

// Result is one recipient's state and the last reply about it.
type Result struct {
	State    State     `json:"state"`
	Reply    string    `json:"reply,omitempty"`    // "550 5.1.10 Recipient not found", control characters escaped
	Attempts int       `json:"attempts,omitempty"` // that cost this recipient a life
	Due      time.Time `json:"due,omitzero"`       // not before this time; zero: Progress.Due
	Rule     string    `json:"rule,omitempty"`     // name of the catalogue's row that knew the reply
	Owed     bool      `json:"owed,omitempty"`     // failed, and the sender is yet to be told
	Changed  time.Time `json:"changed,omitzero"`   // when State became final
}

// Open returns the indices of env's recipients that are not settled in p.
func (p *Progress) Open(env *Envelope) []int {
	open := make([]int, 0, len(env.Recipients))
	for i := range env.Recipients {
		if i >= len(p.Results) || !p.Results[i].State.Final() {
			open = append(open, i)
		}
	}
	return open
}

// Route is the way a sender's mail takes: which tenant's token, which mailbox, which limits.
type Route struct {
	Tenant            string  // name of the tenant in the configuration
	Login             Address // mailbox to authenticate as; also the reverse-path Exchange Online sees
	Connections       int     // concurrent sending sessions for Login
	MessagesPerMinute int     // for Login, in any 60 s
	RecipientsPerDay  int     // for Login, in any 24 h

	RecipientsPerMessage int     // in one transaction; 0: no limit
	RecipientsPerDomain  int     // of one domain, in one transaction; 0: no limit
	Fallback             Address // sender to go through while this one is parked; empty: none
	From                 Address // what From is to be rewritten to on the way out; empty: left as it is
}

// Mailbox names the unit Exchange Online limits: one login of one tenant.
func (r *Route) Mailbox() string { return r.Tenant + "/" + r.Login.Key() }

// Claim is a message taken from the queue for one attempt. Whoever holds it is alone in deciding its fate, until it is
// settled or given back.
type Claim struct {
	Envelope *Envelope // nil: nothing of this sender is due
	Progress Progress  // what happened to it before
	Next     time.Time // when more of this sender's mail is due; zero: none waits

	// Body opens the stored message. Its io.EOF vouches for every octet before: a damaged body ends in ErrCorrupt instead.
	Body func(ctx context.Context) io.Reader

	// Mark notes that the end of the message is about to be sent, in a way that kill -9 does not undo: found again at the
	// next start, the message is Uncertain. Settle and Release take the mark away. nil: there is nothing to mark.
	Mark func()
}
