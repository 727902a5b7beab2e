// Package bounce composes what relayd itself writes: delivery status notifications to the senders of mail, and notices to
// the operators. It decides nothing and stores nothing; whether a mail is to be written is package postmaster's to say.
//
// Notifications follow RFC 3464 in the multipart/report of RFC 6522, with the address forms of RFC 6533 where an address
// is not ASCII. Whatever comes from outside (replies, addresses, ENVID, ORCPT, the original's header) is escaped, clipped
// or encoded, so that it can neither add a header field nor end a part; every line is at most 998 octets.
package bounce

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/pkg/bounce/text"
	"relayd/pkg/envelope"
)

// dateLayout is the date-time of RFC 5322 section 3.3.
const dateLayout = "Mon, 02 Jan 2006 15:04:05 -0700"

// fromName is the display name every mail of relayd's own carries.
const fromName = "Mail Delivery Subsystem"

// Letter is what every mail relayd writes has at its head.
type Letter struct {
	ID       envelope.ID        // of the mail to be written; its Message-ID is made of it
	Hostname string             // this relay's name, for Message-ID and Reporting-MTA
	From     envelope.Address   // postmaster address
	To       []envelope.Address // at least one
	Date     time.Time
}

// Mail is a composed message and what an envelope has to say of it.
type Mail struct {
	Text      []byte // lines end in CRLF and have at most 998 octets
	MessageID string // with its angle brackets
	EightBit  bool   // an octet above 127 is in it
	SMTPUTF8  bool   // its header is UTF-8 (RFC 6532)
}

// Report is what a notification tells the sender of a message.
type Report struct {
	Letter             // To is the original's reverse-path
	Server   string    // host the message was handed to; empty: not told
	Until    time.Time // how long it will be tried; zero: not told. Only in Delay
	Original *Original // nil: it could not be read, and is not returned

	Envelope *envelope.Envelope
	Progress *envelope.Progress
	About    []int // indices of the recipients to tell of
}

// Failure composes the notification that recipients failed for good. It errs only where the report has no recipient or
// its addresses are none.
func Failure(r *Report) (*Mail, error) { return r.compose(failed) }

// Delay composes the notification that recipients are still waiting. Errors as for Failure.
func Delay(r *Report) (*Mail, error) { return r.compose(delayed) }

// action is the value of the field Action (RFC 3464, section 2.3.3).
type action string

const (
	failed  action = "failed"
	delayed action = "delayed"
)

// FailureWanted returns those indices whose recipients want a failure reported (RFC 3461, section 4.1): no NOTIFY is
// NOTIFY=FAILURE,DELAY.
func FailureWanted(env *envelope.Envelope, indices []int) []int {
	return wanted(env, indices, "FAILURE")
}

// DelayWanted returns those indices whose recipients want a delay reported.
func DelayWanted(env *envelope.Envelope, indices []int) []int { return wanted(env, indices, "DELAY") }

func wanted(env *envelope.Envelope, indices []int, event string) []int {
	var found []int
	for _, i := range indices {
		if i < 0 || i >= len(env.Recipients) {
			continue
		}
		notify := env.Recipients[i].Notify
		for word := range strings.SplitSeq(notify, ",") {
			if notify == "" || strings.EqualFold(word, event) {
				found = append(found, i)
				break
			}
		}
	}
	return found
}

// compose writes the three parts of RFC 6522: words, report, original.
func (r *Report) compose(a action) (*Mail, error) {
	if len(r.About) == 0 {
		return nil, errors.New("a report about no recipient")
	}
	global := !r.ascii()
	kind, encoding, words := text.Encode(r.words(a))
	parts := []text.Part{{Kind: kind, Description: "Notification", Encoding: encoding, Body: words}, r.deliveryStatus(a, global)}
	if r.Original != nil {
		parts = append(parts, r.Original.part(global))
	}
	var b bytes.Buffer
	prefix := "Undeliverable"
	if a == delayed {
		prefix = "Delayed"
	}
	if err := r.head(&b, r.subject(prefix), "auto-replied"); err != nil {
		return nil, err
	}
	if id := messageID(r.Envelope.MessageID); id != "" {
		text.Field(&b, "In-Reply-To", id)
		text.Field(&b, "References", id)
	}
	text.Join(&b, "multipart/report", "report-type=delivery-status", r.id(), parts)
	return r.mail(&b), nil
}

// ascii reports whether the mail can go without SMTPUTF8.
func (l *Letter) ascii() bool {
	for _, to := range l.To {
		if !to.ASCII() {
			return false
		}
	}
	return l.From.ASCII()
}

func (l *Letter) id() string { return text.Clip(text.Escape(string(l.ID), true), 20) }

func (l *Letter) messageID() string {
	return "<" + l.id() + "@" + text.Clip(text.Escape(l.Hostname, true), 255) + ">"
}

// head writes the header fields all mails share, MIME-Version last. auto is the keyword of Auto-Submitted (RFC 3834).
func (l *Letter) head(b *bytes.Buffer, subject []string, auto string) error {
	if len(l.To) == 0 {
		return errors.New("a mail to nobody")
	}
	to := make([]string, len(l.To))
	for i, address := range l.To {
		to[i] = "<" + string(address) + ">"
		if i < len(l.To)-1 {
			to[i] += ","
		}
	}
	if i := slices.IndexFunc(append(l.To[:len(l.To):len(l.To)], l.From), unwritable); i >= 0 {
		return fmt.Errorf("address %d cannot stand in a header", i+1)
	}
	text.Field(b, "From", `"`+fromName+`"`, "<"+string(l.From)+">")
	text.Field(b, "To", to...)
	text.Field(b, "Subject", subject...)
	text.Field(b, "Date", l.Date.Format(dateLayout))
	text.Field(b, "Message-ID", l.messageID())
	text.Field(b, "Auto-Submitted", auto)
	text.Field(b, "X-Relayd-Id", l.id())
	text.Field(b, "MIME-Version", "1.0")
	return nil
}

func (l *Letter) mail(b *bytes.Buffer) *Mail {
	return &Mail{Text: b.Bytes(), MessageID: l.messageID(), EightBit: !text.IsASCII(b.Bytes()), SMTPUTF8: !l.ascii()}
}

// unwritable reports whether an address cannot stand in a header field as it is.
func unwritable(a envelope.Address) bool {
	_, err := envelope.ParseAddress(string(a), true)
	return err != nil || text.Escape(string(a), false) != string(a)
}

// messageID returns id if it can stand in a header field as it is, else "".
func messageID(id string) string {
	if len(id) < 3 || len(id) > text.MaxToken || id[0] != '<' || strings.IndexByte(id, '>') != len(id)-1 {
		return ""
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] >= 0x7f {
			return ""
		}
	}
	return id
}
