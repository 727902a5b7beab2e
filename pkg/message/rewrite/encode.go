package rewrite

import (
	"encoding/base64"

	"relayd/pkg/message"
)

// coding is how octets of a message are replaced.
type coding uint8

const (
	literal   coding = iota // by other octets
	toQuoted                // encoded as quoted-printable
	toBase64                // encoded as base64
	softened                // quoted-printable, its long lines broken
	rewrapped               // base64, its lines broken anew
	codings
)

// encoder writes a part's content anew; the same for every way the content is cut into pieces. Where sound is false at
// the end, the result would not decode to what it was and must not be used.
type encoder interface {
	text(dst, p []byte, start bool) []byte // octets of a line; start: its first
	crlf(dst []byte) []byte                // the end of a line
	finish(dst []byte) []byte              // the end of the content
	sound() bool
}

func (c coding) encoder() encoder {
	switch c {
	case toQuoted:
		return new(quoted)
	case toBase64:
		return new(based)
	case softened:
		return new(soft)
	case rewrapped:
		return new(wrapped)
	default:
		return nil
	}
}

// Line lengths of the encodings, in octets (RFC 2045, sections 6.7 and 6.8).
const (
	maxEncoded = 76
	maxDecoded = maxEncoded / 4 * 3
)

const hexDigits = "0123456789ABCDEF"

// quoted encodes as quoted-printable.
type quoted struct {
	column
	held byte // white space that may end its line; 0: none
}

// column breaks lines softly.
type column struct {
	n      int
	broken bool // the line began with a soft break
}

// put writes one token, which no break may split.
func (c *column) put(dst []byte, token ...byte) []byte {
	if c.n+len(token) > maxEncoded-1 {
		dst = append(dst, "=\r\n"...)
		c.n, c.broken = 0, true
	}
	if c.n == 0 && c.broken && token[0] == '-' { // else a break could make a boundary of what was none
		token = []byte("=2D")
	}
	c.n += len(token)
	return append(dst, token...)
}

func (q *quoted) text(dst, p []byte, _ bool) []byte {
	for len(p) > 0 {
		c := p[0]
		if q.held != 0 {
			dst = q.put(dst, q.held)
			q.held = 0
		}
		switch run := plainRun(p[:min(len(p), maxEncoded-1-q.n)]); {
		case run > 0 && (q.n > 0 || !q.broken):
			dst, p = append(dst, p[:run]...), p[run:]
			q.n += run
			continue
		case c == ' ' || c == '\t':
			q.held = c
		case isPlain(c):
			dst = q.put(dst, c)
		default:
			dst = q.escape(dst, c)
		}
		p = p[1:]
	}
	return dst
}

// isPlain reports whether c stands for itself anywhere in a line.
func isPlain(c byte) bool { return c > ' ' && c < 0x7f && c != '=' }

// plainRun returns how many octets of p stand for themselves, single spaces between others included.
func plainRun(p []byte) int {
	for i, c := range p {
		if !isPlain(c) && (c != ' ' || i == 0 || i+1 == len(p) || !isPlain(p[i+1])) {
			return i
		}
	}
	return len(p)
}

func (q *quoted) escape(dst []byte, c byte) []byte {
	if q.n+3 > maxEncoded-1 {
		dst = append(dst, "=\r\n"...)
		q.n, q.broken = 0, true
	}
	q.n += 3
	return append(dst, '=', hexDigits[c>>4], hexDigits[c&15])
}

func (q *quoted) crlf(dst []byte) []byte {
	dst = append(q.finish(dst), "\r\n"...)
	q.column = column{}
	return dst
}

func (q *quoted) finish(dst []byte) []byte {
	if q.held != 0 {
		dst = q.escape(dst, q.held)
		q.held = 0
	}
	return dst
}

func (q *quoted) sound() bool { return true }

// based encodes as base64.
type based struct {
	line [maxDecoded]byte
	n    int  // octets in line
	more bool // a line has been written
}

func (b *based) text(dst, p []byte, _ bool) []byte {
	for len(p) > 0 {
		if b.n == len(b.line) {
			dst = b.finish(dst)
		}
		n := copy(b.line[b.n:], p)
		b.n += n
		p = p[n:]
	}
	return dst
}

func (b *based) crlf(dst []byte) []byte { return b.text(dst, []byte("\r\n"), false) }

func (b *based) finish(dst []byte) []byte {
	if b.more {
		dst = append(dst, "\r\n"...)
	}
	dst = base64.StdEncoding.AppendEncode(dst, b.line[:b.n])
	b.n, b.more = 0, true
	return dst
}

func (b *based) sound() bool { return true }

// wrapped breaks the lines of base64 anew. Anything but the alphabet, white space and the padding at the end is unsound:
// decoders do not agree on what it means.
type wrapped struct {
	n, total, padding int
	unsound           bool
}

func (w *wrapped) text(dst, p []byte, _ bool) []byte {
	for _, c := range p {
		switch {
		case c == ' ' || c == '\t':
			continue
		case c == '=':
			w.padding++
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '+', c == '/':
			w.unsound = w.unsound || w.padding > 0
		default:
			w.unsound = true
		}
		if w.n == maxEncoded {
			dst = append(dst, "\r\n"...)
			w.n = 0
		}
		dst = append(dst, c)
		w.n++
		w.total++
	}
	return dst
}

func (w *wrapped) crlf(dst []byte) []byte   { return dst }
func (w *wrapped) finish(dst []byte) []byte { return dst }

func (w *wrapped) sound() bool { return !w.unsound && w.padding <= 2 && w.total%4 == 0 }

// soft breaks the long lines of quoted-printable, and only these. An "=" without two hexadecimal digits, and white space
// at the end of such a line, are unsound: decoders do not agree on what they mean.
type soft struct {
	column
	long    bool
	token   [3]byte // an escape begun
	have    int     // octets of it
	space   bool    // the last octet was white space
	unsound bool
}

func (s *soft) text(dst, p []byte, start bool) []byte {
	if start {
		*s = soft{long: len(p) > message.MaxLine, unsound: s.unsound}
	}
	if !s.long {
		return append(dst, p...)
	}
	for _, c := range p {
		s.space = c == ' ' || c == '\t'
		switch {
		case s.have > 0:
			s.unsound = s.unsound || !isHex(c)
			s.token[s.have] = c
			if s.have++; s.have == len(s.token) {
				dst = s.put(dst, s.token[:]...)
				s.have = 0
			}
		case c == '=':
			s.token[0], s.have = c, 1
		default:
			dst = s.put(dst, c)
		}
	}
	return dst
}

func (s *soft) crlf(dst []byte) []byte { return append(s.finish(dst), "\r\n"...) }

func (s *soft) finish(dst []byte) []byte {
	if s.long {
		s.unsound = s.unsound || s.space || s.have > 1
		dst = append(dst, s.token[:s.have]...) // a soft break that was there
		s.have = 0
	}
	return dst
}

func (s *soft) sound() bool { return !s.unsound }

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' || 'a' <= c && c <= 'f'
}
