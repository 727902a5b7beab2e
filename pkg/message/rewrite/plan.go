package rewrite

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"slices"
	"strings"

	"relayd/pkg/message"
)

// Bounds of what is looked into. Beyond them a message passes as it is.
const (
	maxDepth      = 20        // multiparts and messages within each other
	maxParts      = 10_000    // in a message
	maxHeader     = 17 << 20  // octets of a message's header: what an intake takes, and its own fields
	maxPartHeader = 256 << 10 // octets of a part's header
	maxKept       = 4 << 20   // octets of changed part headers, all together
)

// planner is the first reading. It knows as much of MIME (RFC 2045, RFC 2046) as it takes to find where parts begin and
// end; whatever it does not know for sure is opaque, and passes.
type planner struct {
	Rewriting
	*scanner
	err   error // of the reader
	doubt bool  // readers would not agree on where parts begin
	total int64 // octets of the message

	open  []string // delimiters of the multiparts we are in, outermost first
	stop  stop     // why the last call of line said no
	parts int
	kept  int // octets of changed headers
	room  []byte

	edits   []edit
	changes []string
	counts  [codings]int // parts changed
	left    []string
}

// stop is where the content of a part ends.
type stop struct {
	level   int   // index in open of the delimiter; -1: the message ends
	closing bool  // the closing delimiter
	at      int64 // offset of the delimiter, or of the end of the message
}

// entity is a header with what it is the header of.
type entity struct {
	header  *message.Header // nil: none that could be read
	from    int64           // where its fields begin
	to      int64           // and end
	long    bool            // one of its lines is
	dirty   bool
	opaque  string // why its content is not looked into; empty: it may be
	message bool   // not a part of a multipart
}

// line returns the next piece of a line. false: the part we are in has ended, as stop says.
func (p *planner) line() (piece, bool) {
	if p.err != nil {
		return piece{}, false
	}
	l, err := p.next()
	if err != nil {
		p.stop = stop{level: -1, at: p.at}
		p.total = p.at
		if err != io.EOF {
			p.err = err
		}
		return piece{}, false
	}
	if !l.start || !bytes.HasPrefix(l.text, []byte("--")) {
		return l, true
	}
	for level, delimiter := range slices.Backward(p.open) {
		rest, ok := bytes.CutPrefix(l.text, []byte(delimiter))
		if !ok {
			continue
		}
		rest, closing := bytes.CutPrefix(rest, []byte("--"))
		if len(bytes.Trim(rest, " \t")) > 0 {
			continue
		}
		if p.doubt = p.doubt || !l.whole; len(l.text) > message.MaxLine {
			p.leave("between the parts")
		}
		p.stop = stop{level, closing, l.at}
		return piece{}, false
	}
	return l, true
}

// leave notes that a line over message.MaxLine octets stays.
func (p *planner) leave(why string) {
	if text := leftText(why); p.LongLines && !slices.Contains(p.left, text) && len(p.left) < 10 {
		p.left = append(p.left, text)
	}
}

func leftText(why string) string {
	return fmt.Sprintf("left lines over %d octets as they are: %s", message.MaxLine, why)
}

// skip reads what is not looked into.
func (p *planner) skip(why string) {
	for length := 0; ; {
		l, ok := p.line()
		if !ok {
			return
		}
		if l.start {
			length = 0
		}
		if length += len(l.text); length > message.MaxLine {
			p.leave(why)
		}
	}
}

// entity reads a header and what belongs to it, up to where the part ends. In a digest a part without a type is a message.
func (p *planner) entity(depth int, digest bool) {
	e, empty := p.readHeader(depth == 0)
	if depth == 0 {
		e.message = true
		p.head(e)
		if !p.LongLines {
			p.keep(e)
			if p.total = p.Size; p.Size == 0 {
				p.skip("")
			}
			return
		}
	}
	if p.parts++; p.parts > maxParts && e.opaque == "" {
		e.opaque = "too many parts"
	}
	p.body(e, depth, digest, empty)
}

// body reads the content of e.
func (p *planner) body(e *entity, depth int, digest, empty bool) {
	kind, params := p.kind(e, digest)
	encoding := transferEncoding(e)
	composite := strings.HasPrefix(kind, "multipart/") || kind == "message/rfc822" || kind == "message/global"
	switch {
	case e.opaque != "":
	case composite && depth >= maxDepth:
		e.opaque = "parts are nested too deeply"
	case composite && !isIdentity(encoding):
		e.opaque = "encoded " + kind
	case strings.HasPrefix(kind, "multipart/") && params["boundary"] == "":
		e.opaque = "multipart without a boundary"
	case slices.Contains(p.open, "--"+params["boundary"]):
		e.opaque = "a boundary is used twice"
	}
	switch {
	case e.opaque == "":
		p.fold(e)
	case e.long:
		p.leave(e.opaque)
	}
	switch {
	case empty:
		p.keep(e)
	case e.opaque != "":
		p.keep(e)
		p.skip(e.opaque)
	case !composite:
		p.leaf(e, codingOf(kind, encoding))
	case kind == "message/rfc822" || kind == "message/global":
		p.keep(e)
		p.message(depth + 1)
	default:
		p.keep(e)
		p.multipart("--"+params["boundary"], depth+1, kind == "multipart/digest")
	}
}

func (p *planner) message(depth int) {
	e, empty := p.readHeader(true)
	e.message = true
	if p.parts++; p.parts > maxParts && e.opaque == "" {
		e.opaque = "too many parts"
	}
	p.body(e, depth, false, empty)
}

// multipart reads parts up to the delimiter of one around this one, or the end of the message.
func (p *planner) multipart(delimiter string, depth int, digest bool) {
	const around = "the text around the parts"
	level := len(p.open)
	p.open = append(p.open, delimiter)
	for p.skip(around); p.stop.level == level && !p.stop.closing; {
		p.entity(depth, digest)
	}
	p.open = p.open[:level]
	if p.stop.level == level {
		p.skip(around)
	}
}

// head does to the message's own header what concerns From, signed or not: without it Exchange Online refuses it.
func (p *planner) head(e *entity) {
	if e.header == nil {
		return // nothing that could be called a header: the far end decides
	}
	p.changes = p.rewriteFrom(e.header)
	e.dirty = len(p.changes) > 0
}

// readHeader reads the fields up to the empty line. empty: the part ends with them.
func (p *planner) readHeader(ofMessage bool) (e *entity, empty bool) {
	limit := maxPartHeader
	if ofMessage {
		limit = maxHeader
	}
	e = &entity{from: p.at, to: p.at, message: ofMessage}
	var block []byte
	length := 0
	for {
		l, ok := p.line()
		if !ok {
			empty = true
			break
		}
		if l.start {
			if length = 0; l.ended && len(l.text) == 0 {
				break
			}
		}
		length += len(l.text)
		e.long = e.long || length > message.MaxLine
		e.to = p.at
		if len(block) > limit {
			continue
		}
		if block = append(block, l.text...); l.ended {
			block = append(block, "\r\n"...)
		}
	}
	e.header, e.opaque = parseHeader(block, limit)
	if e.header != nil && ofMessage {
		if s := e.header.Signature(); s != "" {
			e.opaque = "signed (" + s + ")"
		}
	}
	return e, empty
}

// parseHeader returns the fields of block, or why they could not be read.
func parseHeader(block []byte, limit int) (h *message.Header, why string) {
	if len(block) > limit {
		return nil, "header too long"
	}
	h, rest, err := message.ReadHeader(bytes.NewReader(block), len(block)+1)
	if err != nil || len(rest) > 0 || len(h.Append(nil)) != len(block)+len("\r\n") || len(block) > 0 && !bytes.HasSuffix(block, []byte("\r\n")) {
		return nil, "malformed header"
	}
	return h, ""
}

// kind returns the media type of e, and of a multipart its parameters. Where it cannot be told, e becomes opaque.
func (p *planner) kind(e *entity, digest bool) (kind string, params map[string]string) {
	if e.header == nil {
		return "", nil
	}
	if e.header.Count("Content-Type") > 1 || e.header.Count("Content-Transfer-Encoding") > 1 {
		e.opaque = "a Content field is there twice"
	}
	if s := e.header.Signature(); s != "" {
		e.opaque = "signed (" + s + ")"
	}
	f := e.header.Get("Content-Type")
	switch {
	case f == nil && digest:
		return "message/rfc822", nil
	case f == nil:
		return "text/plain", nil
	}
	kind, params, err := mime.ParseMediaType(f.Value())
	if err != nil && (!errors.Is(err, mime.ErrInvalidMediaParameter) || strings.HasPrefix(kind, "multipart/")) || !strings.Contains(kind, "/") {
		e.opaque = "unreadable Content-Type"
	}
	if b, ok := params["boundary"]; ok {
		params["boundary"] = strings.TrimRight(b, " \t")
	}
	return kind, params
}

// transferEncoding returns the name of e's encoding in lower case; "" is identity.
func transferEncoding(e *entity) string {
	if e.header == nil {
		return ""
	}
	f := e.header.Get("Content-Transfer-Encoding")
	if f == nil {
		return ""
	}
	name, _, _ := strings.Cut(strings.ToLower(f.Value()), ";")
	name, _, _ = strings.Cut(name, "(") // a comment
	return strings.TrimSpace(name)
}

func isIdentity(encoding string) bool {
	return slices.Contains([]string{"", "7bit", "8bit", "binary"}, encoding)
}

// codingOf returns how a part with long lines is encoded; literal: not at all (RFC 2046, section 5.2, for messages).
func codingOf(kind, encoding string) coding {
	switch {
	case encoding == "base64":
		return rewrapped
	case encoding == "quoted-printable":
		return softened
	case !isIdentity(encoding), strings.HasPrefix(kind, "message/"):
		return literal
	case strings.HasPrefix(kind, "text/"):
		return toQuoted
	default:
		return toBase64
	}
}

// leaf reads a part that has no others in it, encoding it on trial: only its end tells whether it must be, and how long
// that makes it.
func (p *planner) leaf(e *entity, how coding) {
	enc := how.encoder()
	content := edit{from: p.at, how: how}
	count := func(b []byte) {
		p.room = b
		content.size += int64(len(b))
	}
	length, long, pending := 0, false, false
	for {
		l, ok := p.line()
		if !ok {
			break
		}
		if l.start {
			length = 0
		}
		length += len(l.text)
		long = long || length > message.MaxLine
		if enc == nil {
			continue
		}
		if pending {
			count(enc.crlf(p.room[:0]))
		}
		count(enc.text(p.room[:0], l.text, l.start))
		pending = l.ended
	}
	content.to = p.stop.at
	if content.ended = p.stop.level < 0; !content.ended { // the CRLF before a delimiter is part of it
		content.to = max(content.from, content.to-2)
	} else if pending && enc != nil {
		count(enc.crlf(p.room[:0]))
	}
	if enc != nil {
		count(content.finish(enc, p.room[:0]))
	}
	switch {
	case !long:
	case enc == nil:
		p.leave("a part in an encoding, or of a type, that has no other")
	case !enc.sound():
		p.leave("malformed " + transferEncoding(e))
	case p.kept > maxKept:
		p.leave("too many parts")
	default:
		e.encoded(how)
		p.counts[how]++
		p.keep(e)
		p.edits = append(p.edits, content)
		return
	}
	p.keep(e)
}

// encoded says in the header how the content is encoded now.
func (e *entity) encoded(how coding) {
	name := "quoted-printable"
	switch how {
	case toBase64:
		name = "base64"
	case toQuoted:
	default:
		return // it says so already
	}
	e.dirty = true
	if f := e.header.Get("Content-Transfer-Encoding"); f != nil {
		f.Raw = []byte(f.Name + ": " + name + "\r\n")
	} else {
		e.header.Add("Content-Transfer-Encoding", name)
	}
	if e.message && e.header.Count("MIME-Version") == 0 {
		e.header.Add("MIME-Version", "1.0")
	}
}

// keep makes an edit of a changed header.
func (p *planner) keep(e *entity) {
	if !e.dirty {
		return
	}
	text := e.header.Append(nil)
	text = text[:len(text)-len("\r\n")]
	p.kept += len(text)
	p.edits = append(p.edits, edit{from: e.from, to: e.to, text: text, size: int64(len(text))})
}

// fold breaks long lines of the header.
func (p *planner) fold(e *entity) {
	switch {
	case !e.long:
		return
	case p.kept > maxKept:
		p.leave("too many parts")
		return
	}
	for i := range e.header.Fields {
		f := &e.header.Fields[i]
		raw, left := foldField(f)
		if left {
			p.leave("header field " + f.Name + " has no place to break it")
		}
		if len(raw) != len(f.Raw) {
			f.Raw, e.dirty = raw, true
			p.counts[literal]++
		}
	}
}

// summary says what was changed because of long lines.
func (p *planner) summary() (changes []string) {
	for how, format := range [codings]string{
		literal:   "folded header fields with long lines: %d",
		toQuoted:  "encoded parts with long lines as quoted-printable: %d",
		toBase64:  "encoded parts with long lines as base64: %d",
		softened:  "broke long lines of quoted-printable parts: %d",
		rewrapped: "broke the lines of base64 parts anew: %d",
	} {
		if n := p.counts[how]; n > 0 {
			changes = append(changes, fmt.Sprintf(format, n))
		}
	}
	return changes
}
