// Package message is the hygiene of RFC 5322: line endings and dot-stuffing on the way in, the header read without
// writing it anew, and the few repairs old devices need.
//
// Nothing here holds a body: [Lines] works on blocks, [ReadHeader] stops at the first octet of the body. What is not
// repaired leaves as it came, octet for octet.
package message

import (
	"bytes"
	"errors"
	"io"
)

// Errors of [Lines].
var (
	// ErrLineEnding reports a CR without LF, or an LF without CR, where Lines.Reject is set.
	ErrLineEnding = errors.New("bare CR or LF in the message")
	// ErrEndOfData reports a final dot followed by CR CR LF. It does not end a message, and its sender, who waits for
	// a reply, will send nothing else: without an error both sides would wait for a timeout.
	ErrEndOfData = errors.New("final dot followed by CR CR LF")
)

// Lines turns the octets a client sends into a message whose every line ends in CRLF. The zero value reads BDAT and
// tolerates other line endings.
//
// Only CRLF.CRLF, each of the five octets as written, ends DATA. A bare CR or LF is a line ending of its own, read as
// CRLF; a line of one dot that begins or ends with such a one is text. The first dot of any longer line is taken off.
type Lines struct {
	Dots   bool // DATA: undo dot-stuffing and end at CRLF.CRLF (RFC 5321, section 4.5.2)
	Reject bool // a bare CR or LF is ErrLineEnding

	state lineState
	lax   bool // the current line follows a bare CR or LF: it cannot be the final dot
}

type lineState uint8

const (
	lineStart lineState = iota // before the first octet of a line; also the start of the message
	lineText                   // inside a line
	lineCR                     // CR seen in a line, not yet written
	dotSeen                    // "." at the start of a line, not yet written
	dotCR                      // ".", CR
	dotCRCR                    // ".", CR, CR
)

// lineRoom is how many octets of dst one octet of src may need, what was held back included.
const lineRoom = 4

// Next reads from src and writes to dst. It returns how many octets it wrote and read; io.EOF once the final dot has
// been read, at which src[nsrc:] is what follows the message. It stops when src is empty or dst has less than 4 octets
// left.
func (l *Lines) Next(dst, src []byte) (ndst, nsrc int, err error) {
	cr, lf := -1, -1 // next CR and LF in src, found once each: bodies of nothing but CR must not cost a square
	for nsrc < len(src) && len(dst)-ndst >= lineRoom {
		if l.state > lineText || l.Dots && l.state == lineStart && src[nsrc] == '.' {
			n, taken, err := l.step(dst[ndst:], src[nsrc])
			ndst += n
			if taken {
				nsrc++
			}
			if err != nil {
				return ndst, nsrc, err
			}
			continue
		}
		end := min(len(src), nsrc+len(dst)-ndst)
		n := l.run(src, nsrc, end, &cr, &lf)
		ndst += copy(dst[ndst:], src[nsrc:n])
		nsrc = n
		if nsrc == end {
			continue
		}
		switch src[nsrc] {
		case '\r':
			l.state = lineCR
			nsrc++
		case '\n':
			if l.Reject {
				return ndst, nsrc, ErrLineEnding
			}
			if len(dst)-ndst < lineRoom {
				return ndst, nsrc, nil
			}
			ndst += copy(dst[ndst:], "\r\n")
			l.state, l.lax = lineStart, true
			nsrc++
		}
	}
	return ndst, nsrc, nil
}

// run returns the end of the octets from i on that pass as they are: whole lines, and the beginning of one. It stops
// before a dot at the start of a line, before a bare LF, and before a CR that is not followed by LF within end.
func (l *Lines) run(src []byte, i, end int, cr, lf *int) int {
	for i < end {
		if l.state == lineStart && l.Dots && src[i] == '.' {
			return i
		}
		*cr, *lf = seek(src, '\r', i, *cr), seek(src, '\n', i, *lf)
		stop := min(*cr, *lf)
		if stop >= end {
			l.state = lineText
			return end
		}
		if stop == *lf || *lf != *cr+1 || *lf >= end {
			l.state = lineText
			return stop
		}
		i = *lf + 1
		l.state, l.lax = lineStart, false
	}
	return i
}

// seek returns the index of the next c at or behind from, len(src) for none; known is the index it returned before.
func seek(src []byte, c byte, from, known int) int {
	if known >= from {
		return known
	}
	if n := bytes.IndexByte(src[from:], c); n >= 0 {
		return from + n
	}
	return len(src)
}

// step takes one octet in the states that hold something back. taken is false where c must be read again.
func (l *Lines) step(dst []byte, c byte) (n int, taken bool, err error) {
	switch {
	case l.state == lineStart: // the dot that opens a line
		l.state = dotSeen
		return 0, true, nil
	case l.state == lineCR && c == '\n':
		l.state, l.lax = lineStart, false
		return copy(dst, "\r\n"), true, nil
	case l.state == dotSeen && c == '\r':
		l.state = dotCR
		return 0, true, nil
	case l.state == dotSeen && c != '\n':
		l.state = lineText // the dot was stuffing
		return 0, false, nil
	case l.state == dotCR && c == '\n' && !l.lax:
		return 0, true, io.EOF
	case l.state == dotCR && c == '\n':
		l.state, l.lax = lineStart, false
		return copy(dst, ".\r\n"), true, nil
	case l.state == dotCR && c == '\r':
		l.state = dotCRCR
		return 0, true, nil
	case l.state == dotCRCR && c == '\n':
		return 0, true, ErrEndOfData
	}
	if l.Reject { // what is left is a bare CR or LF
		return 0, false, ErrLineEnding
	}
	was := l.state
	l.state, l.lax = lineStart, true
	switch was {
	case lineCR:
		return copy(dst, "\r\n"), false, nil
	case dotCRCR: // the second CR is still to be judged
		l.state = lineCR
		return copy(dst, ".\r\n"), false, nil
	default:
		return copy(dst, ".\r\n"), c == '\n', nil
	}
}

// End writes what is held back when the client's octets end without a final dot, as BDAT does, and ends the last line.
// dst must have 4 octets.
func (l *Lines) End(dst []byte) (int, error) {
	was := l.state
	l.state = lineStart
	if was == lineStart {
		return 0, nil
	}
	if was == lineCR && l.Reject {
		return 0, ErrLineEnding
	}
	return copy(dst, "\r\n"), nil
}
