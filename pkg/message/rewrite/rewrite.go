// Package rewrite changes a stored message on its way out where Exchange Online, or those behind it, would not take it as
// it is: lines over 998 octets are encoded, and From becomes that of a fallback sender.
//
// It takes two readings, since a part's encoding stands in front of it and its longest line may be the last: [Rewriting.Plan]
// finds what to change and how long the result will be, [Plan.Reader] changes it while reading again. Neither holds more
// than a few blocks of the message and the header fields it changes. What is not changed leaves octet for octet, and every
// part that is encoded decodes to the octets it had. Where that is in doubt (a signature, a structure that could be read
// in two ways) nothing is changed, and the plan says why.
package rewrite

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"relayd/pkg/message"
)

// Rewriting is what is to be changed.
type Rewriting struct {
	LongLines bool   // encode parts, and fold header fields, with lines over message.MaxLine octets
	From      string // address that replaces the one in From; empty: From stays
	Size      int64  // octets of the message as stored; 0: counted, which for From alone would not be needed otherwise
}

// Plan is what a rewriting does to one message.
type Plan struct {
	Size    int64    // octets of the result
	Changes []string // what is changed, in words; empty: nothing
	Left    []string // where lines over message.MaxLine octets stay, and why, in words

	source int64 // octets of the message as stored
	edits  []edit
}

// edit replaces the octets [from, to) of the stored message.
type edit struct {
	from, to int64
	how      coding
	text     []byte // the replacement, where how is literal
	size     int64  // octets of the replacement
	ended    bool   // the message ends here: so must the last line
}

// errChanged reports a second reading that differs from the first.
var errChanged = errors.New("the message changed between two readings")

// Plan reads a message, whose lines end in CRLF, and decides. The error is that of the reader; a message that makes no
// sense is none.
func (r Rewriting) Plan(open func() io.Reader) (*Plan, error) {
	p := &planner{Rewriting: r, scanner: newScanner(open(), new([blockSize]byte))}
	p.entity(0, false)
	if p.doubt {
		r.LongLines = false
		plan, err := r.Plan(open)
		if plan != nil {
			plan.Left = []string{leftText("parts cannot be told apart")}
		}
		return plan, err
	}
	if p.err != nil {
		return nil, fmt.Errorf("read the message to rewrite: %w", p.err)
	}
	plan := &Plan{Changes: append(p.changes, p.summary()...), Left: p.left, source: p.total, Size: p.total, edits: p.edits}
	for _, e := range p.edits {
		plan.Size += e.size - (e.to - e.from)
	}
	return plan, nil
}

// Reader returns the message as rewritten. It opens it at the first Read, and ends in io.EOF only where the stored
// message does so, after as many octets as the first reading found.
func (p *Plan) Reader(open func() io.Reader) io.Reader {
	return &reader{plan: p, open: open, edits: p.edits}
}

type reader struct {
	plan  *Plan
	open  func() io.Reader
	src   io.Reader // nil: not opened yet
	edits []edit    // those not yet done
	at    int64     // octets read from src
	out   []byte    // to be returned before anything else
	room  []byte    // what out lies in
	lines *scanner  // of the part being encoded; nil: none is
	block *[blockSize]byte
	enc   encoder
	err   error
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (n int, err error) {
	if r.src == nil {
		r.src = r.open()
	}
	for len(p) > 0 {
		switch {
		case len(r.out) > 0:
			n = copy(p, r.out)
			r.out = r.out[n:]
			return n, nil
		case r.err != nil:
			return 0, r.err
		case r.lines != nil:
			r.encode()
		case len(r.edits) > 0 && r.edits[0].from == r.at:
			r.begin()
		default:
			if n = r.copy(p); n > 0 {
				return n, nil
			}
		}
	}
	return 0, nil
}

// copy reads octets that stay as they are.
func (r *reader) copy(p []byte) int {
	limit := r.plan.source
	if len(r.edits) > 0 {
		limit = r.edits[0].from
	}
	if limit == r.at { // only the end may follow
		p, limit = make([]byte, 1), limit+1
	}
	n, err := r.src.Read(p[:min(int64(len(p)), limit-r.at)])
	r.at += int64(n)
	switch {
	case r.at > r.plan.source:
		n, r.err = 0, errChanged
	case err == io.EOF && r.at < r.plan.source:
		r.err = io.ErrUnexpectedEOF
	default:
		r.err = err
	}
	return n
}

// begin starts the next edit.
func (r *reader) begin() {
	e := &r.edits[0]
	if e.how != literal {
		if r.block == nil {
			r.block = new([blockSize]byte)
		}
		r.lines, r.enc = newScanner(io.LimitReader(r.src, e.to-e.from), r.block), e.how.encoder()
		return
	}
	n, err := io.CopyN(io.Discard, r.src, e.to-e.from)
	r.at += n
	if r.fail(err); r.err == nil {
		r.out, r.edits = e.text, r.edits[1:]
	}
}

// encode takes the next piece of the part being encoded.
func (r *reader) encode() {
	e := &r.edits[0]
	line, err := r.lines.next()
	if err == nil {
		r.room = r.enc.text(r.room[:0], line.text, line.start)
		if line.ended {
			r.room = r.enc.crlf(r.room)
		}
		r.out = r.room
		return
	}
	r.at += r.lines.at
	if err == io.EOF && r.at == e.to {
		r.room = e.finish(r.enc, r.room[:0])
		r.out, r.edits, r.lines = r.room, r.edits[1:], nil
		return
	}
	r.fail(err)
}

// finish writes what the encoder holds back.
func (e *edit) finish(enc encoder, dst []byte) []byte {
	dst = enc.finish(dst)
	if e.ended && (e.how == toBase64 || e.how == rewrapped) {
		dst = append(dst, "\r\n"...)
	}
	return dst
}

func (r *reader) fail(err error) {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	r.err = err
}

// rewriteFrom makes From name the address asked for, keeps the display name, and lets replies go where they went.
func (r *Rewriting) rewriteFrom(h *message.Header) (changes []string) {
	if r.From == "" {
		return nil
	}
	own := func(address string) bool { return strings.EqualFold(address, r.From) }
	var list []message.Mailbox
	f := h.Get("From")
	if f != nil {
		list = message.Mailboxes(f.Value())
	}
	if len(list) != 1 || !own(list[0].Address) {
		if h.Get("Reply-To") == nil && slices.ContainsFunc(list, func(m message.Mailbox) bool { return m.Address != "" }) {
			_, value, _ := strings.Cut(string(f.Raw), ":")
			h.Fields = append(h.Fields, message.Field{Name: "Reply-To", Raw: []byte("Reply-To:" + value)})
			changes = append(changes, "kept the original From in Reply-To")
		}
		h.SetFrom(r.From)
		changes = append(changes, "rewrote From to the fallback sender")
	}
	return append(changes, h.DropForeign(r.From, own)...)
}
