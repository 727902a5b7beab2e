// Package admission is what every intake does to a message between its sender and the queue: it reads the header, judges
// whose the message is, repairs what old devices leave out, adds the trace fields, and streams the result into the queue.
//
// It keeps nothing: what a crash interrupts was never accepted.
package admission

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/message"
	"relayd/pkg/status"
)

// Queue is where messages go.
type Queue interface {
	// Put stores a message and returns nil only once it is durable. It reads body to its end. Errors are body's own, wrapped,
	// or of type *status.Error.
	Put(ctx context.Context, env *envelope.Envelope, body io.Reader) error
}

// Policy says which sender a message goes by.
type Policy interface {
	// Known returns nil if mail from the address, which is not empty, may have a way out, else a *status.Error.
	Known(address envelope.Address) error
	// Choose returns the address a message goes out as, or a *status.Error. from is the address in From, or the client's
	// default; either argument may be empty. Where the result is not from, From is rewritten; keepOriginal then asks for
	// a Reply-To with what it was.
	Choose(reversePath, from envelope.Address) (sender envelope.Address, keepOriginal bool, err error)
}

// Reason is why a message was refused, as in the label of relayd_messages_rejected_total.
type Reason string

// The reasons of refusals of this package.
const (
	ReasonSender  Reason = "sender"  // sender not allowed for the client, or not configured
	ReasonSize    Reason = "size"    // message or header too large
	ReasonLoop    Reason = "loop"    // too many Received fields
	ReasonContent Reason = "content" // NUL in the header, more than one From
)

// Refusal is a *status.Error with the reason to count it under.
type Refusal struct {
	Why Reason
	Err *status.Error
}

// Error returns that of Err.
func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(why Reason, code int, enhanced status.Enhanced, format string, args ...any) error {
	return &Refusal{why, status.New(code, enhanced, format, args...)}
}

// bySender makes err, of the policy, a refusal of the sender. bySender(nil) is nil.
func bySender(err error) error {
	if err == nil {
		return nil
	}
	return &Refusal{ReasonSender, status.From(err)}
}

// Door is one intake's way to the queue.
type Door struct {
	Queue    Queue
	Policy   Policy
	Hostname string // in Message-ID and Received

	MessageBytes int64 // most octets of a message as it is stored
	HeaderBytes  int   // most octets of its header
	Hops         int   // most Received fields
}

// Arrival is a message at the door.
type Arrival struct {
	// Envelope is as the intake knows it; Store fills in the rest. ID, Received, ReversePath and Recipients are set.
	Envelope *envelope.Envelope
	// Body is the message; every line of it ends in CRLF. Its io.EOF vouches that the sender ended it there.
	Body io.Reader

	MaySend       func(envelope.Address) error // nil, or the refusal; a nil function: any configured sender
	DefaultSender envelope.Address             // of a message without From; empty: the reverse-path
	// Trace is what Received tells of the transaction; Host, ID, Date and Recipient are filled in.
	Trace message.Received

	door   *Door
	left   int64 // octets until the message is too large
	over   bool
	ended  bool
	lines  message.LongLines
	sealed string // message.Header.Signature
}

// TooLarge is the refusal of a message of more than limit octets.
func TooLarge(limit int64) error {
	return refuse(ReasonSize, 552, status.Enhanced{5, 3, 4}, "message exceeds %s", SizeText(limit))
}

// SizeText returns octets in the largest unit that keeps them whole.
func SizeText(n int64) string {
	for _, u := range [...]struct {
		name  string
		bytes int64
	}{{"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.bytes && n%u.bytes == 0 {
			return fmt.Sprintf("%d %s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d octets", n)
}

// Read counts octets against the limit, notices 8-bit ones and long lines, and fills in what the envelope can say only at
// the end.
func (a *Arrival) Read(p []byte) (int, error) {
	if a.over {
		return 0, TooLarge(a.door.MessageBytes)
	}
	n, err := a.Body.Read(p)
	if !a.Envelope.EightBit {
		a.Envelope.EightBit = hasEightBit(p[:n])
	}
	a.lines.Scan(p[:n])
	if !a.take(int64(n)) {
		return 0, TooLarge(a.door.MessageBytes)
	}
	if err == io.EOF {
		a.end()
	}
	return n, err
}

// take counts n octets that will be stored, and reports whether the message is still within its limit.
func (a *Arrival) take(n int64) bool {
	a.left -= n
	a.over = a.left < 0
	return !a.over
}

// end fills in what shows only when all has been read. Readers may ask for the end more than once.
func (a *Arrival) end() {
	if a.ended {
		return
	}
	a.ended = true
	env := a.Envelope
	env.Received = time.Now()
	if !a.lines.Seen {
		return
	}
	env.LongLines = true
	note := "re-encodes lines over 998 octets when sending"
	if a.sealed != "" {
		note = "lines over 998 octets left as they are: signed (" + a.sealed + ")"
	}
	env.Repairs = append(env.Repairs, note)
}

func hasEightBit(b []byte) bool {
	const high = 0x8080808080808080
	for ; len(b) >= 8; b = b[8:] {
		v := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
			uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		if v&high != 0 {
			return true
		}
	}
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// Store admits a message and returns nil only once it is durable and its sender has ended it. Errors: a *[Refusal], what
// Body or the queue gave.
func (d *Door) Store(ctx context.Context, a *Arrival) error {
	a.door, a.left = d, d.MessageBytes
	err := d.store(ctx, a)
	switch {
	case a.over:
		return TooLarge(d.MessageBytes)
	case err == nil && !a.ended:
		return errors.New("message was stored without being read to its end")
	}
	return err
}

// maxField is the longest header field Exchange Online takes, in octets (its 554 5.6.211); better told at the door.
const maxField = 32 << 10

// store reads the header, lets policy and repair work on it, and streams header and body into the queue.
func (d *Door) store(ctx context.Context, a *Arrival) error {
	env := a.Envelope
	h, rest, err := message.ReadHeader(a, d.HeaderBytes)
	if errors.Is(err, message.ErrHeaderTooLong) {
		return refuse(ReasonSize, 552, status.Enhanced{5, 3, 4}, "header exceeds %s", SizeText(int64(d.HeaderBytes)))
	}
	if err != nil {
		return err
	}
	header := d.MessageBytes - a.left - int64(len(rest)) // octets of it, as sent
	if err := d.judge(h); err != nil {
		return err
	}
	if err := d.choose(a, h); err != nil {
		return err
	}
	env.Repairs = append(env.Repairs, h.Repair(message.Repairs{
		Date: env.Received, MessageID: "<" + string(env.ID) + "@" + d.Hostname + ">", Sender: string(env.Sender), Own: a.owns,
	})...)
	env.MessageID = h.MessageID()
	env.EightBit = env.EightBit || !env.Sender.ASCII() // it may stand in From now
	a.sealed = h.Signature()
	head := bytes.NewReader(h.Append(d.trace(a)))
	if !a.take(int64(head.Len()) - header) { // what goes out is what the far end's equal limit will judge
		return TooLarge(d.MessageBytes)
	}
	return d.Queue.Put(ctx, env, io.MultiReader(head, bytes.NewReader(rest), a))
}

// judge refuses a header that would fail at the far end, or go in a circle.
func (d *Door) judge(h *message.Header) error {
	if h.Count("Received") > d.Hops {
		return refuse(ReasonLoop, 554, status.Enhanced{5, 4, 6}, "too many hops: the message goes in a circle")
	}
	for i := range h.Fields {
		if f := &h.Fields[i]; len(f.Raw) > maxField {
			return refuse(ReasonSize, 552, status.Enhanced{5, 3, 4}, "header field %.40s exceeds 32 KiB", f.Name)
		}
		if bytes.IndexByte(h.Fields[i].Raw, 0) >= 0 {
			return refuse(ReasonContent, 554, status.Enhanced{5, 6, 0}, "NUL in the header")
		}
	}
	return nil
}

// trace returns the fields every message is given.
func (d *Door) trace(a *Arrival) []byte {
	env, r := a.Envelope, a.Trace
	r.Host, r.ID, r.Date = d.Hostname, string(env.ID), env.Received
	if len(env.Recipients) == 1 {
		r.Recipient = string(env.Recipients[0].Address)
	}
	return append(r.Field().Raw, "X-Relayd-Id: "+string(env.ID)+"\r\n"...)
}

// may returns nil if the sender may use the address, or the refusal.
func (a *Arrival) may(address envelope.Address) error {
	if a.MaySend == nil {
		return nil
	}
	return a.MaySend(address)
}

// owns reports whether the sender may send as address, and there is a way to do so.
func (a *Arrival) owns(address string) bool {
	parsed, err := envelope.ParseAddress(address, true)
	if err != nil || a.may(parsed) != nil {
		return false
	}
	sender, _, err := a.door.Policy.Choose("", parsed)
	return err == nil && sender == parsed
}

// choose judges From, asks the policy for the sender, and rewrites From where the two differ.
func (d *Door) choose(a *Arrival, h *message.Header) error {
	env := a.Envelope
	from, err := d.author(a, h)
	if err != nil {
		return err
	}
	wanted := from
	if wanted == "" {
		wanted = a.DefaultSender
	}
	sender, keep, err := d.Policy.Choose(env.ReversePath, wanted)
	if err != nil {
		return bySender(err)
	}
	env.Sender = sender
	switch {
	case sender == from:
	case from == "":
		if h.Get("From") != nil {
			h.SetFrom(string(sender))
			env.Repairs = append(env.Repairs, "put an address into From")
		}
	default:
		h.SetFrom(string(sender))
		env.Repairs = append(env.Repairs, "rewrote From to the configured sender")
		if keep && h.Get("Reply-To") == nil {
			h.Add("Reply-To", "<"+string(from)+">")
			env.Repairs = append(env.Repairs, "kept the original From in Reply-To")
		}
	}
	return nil
}

// author returns the first address of From, empty if there is none that can be read. Every address in it must be the
// client's to use, or a configured one: which one a reader takes for the author is not ours to guess. Several need a
// Sender (RFC 5322, section 3.6.2), without which Exchange Online refuses them.
func (d *Door) author(a *Arrival, h *message.Header) (first envelope.Address, err error) {
	if h.Count("From") > 1 {
		return "", refuse(ReasonContent, 554, status.Enhanced{5, 6, 0}, "more than one From field")
	}
	f := h.Get("From")
	if f == nil {
		return "", nil
	}
	unread := false
	for _, m := range message.Mailboxes(f.Value()) {
		if m.Address == "" {
			continue
		}
		author, err := envelope.ParseAddress(m.Address, true)
		if err != nil {
			unread = true
			continue
		}
		if err := a.may(author); err != nil {
			return "", err
		}
		if first == "" {
			first = author
			continue
		}
		if err := d.Policy.Known(author); err != nil {
			return "", bySender(err)
		}
		if h.Get("Sender") == nil {
			return "", refuse(ReasonContent, 550, status.Enhanced{5, 1, 20}, "several addresses in From need a Sender field")
		}
	}
	if unread && first != "" {
		return "", refuse(ReasonContent, 554, status.Enhanced{5, 6, 0}, "malformed address in From")
	}
	return first, nil
}
