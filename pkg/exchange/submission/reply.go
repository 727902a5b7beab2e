package submission

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"relayd/pkg/status"
)

// Bounds of a reply. RFC 5321 section 4.5.3.1.5 allows 512 octets a line; Exchange Online's reach 700 or so.
const (
	maxReplyLine  = 4 << 10  // octets of a line that are kept
	maxReply      = 64 << 10 // octets of a whole reply, past which it is an error
	maxReplyLines = 100
	maxText       = 1 << 10 // octets of a text passed on: 500 recipients' texts fit one record of the queue
)

// errProtocol is in the chain of every error that a reply against RFC 5321 section 4.2 causes.
var errProtocol = errors.New("reply against the protocol")

// reply is one SMTP reply. Its lines share a buffer and hold until the next reply is read.
type reply struct {
	code  int    // 200 to 599
	lines []byte // texts behind code and separator, joined by "\n"; as received, controls and all
}

// readReply reads a reply into buf, which grows as needed. br must have a buffer of maxReplyLine.
func readReply(br *bufio.Reader, buf []byte) (reply, error) {
	r := reply{lines: buf[:0]}
	octets := 0
	for n := range maxReplyLines {
		line, err := br.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			if err == io.EOF && octets+len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return r, err
		}
		code, more, text, ok := parseReplyLine(line)
		if !ok || n > 0 && code != r.code {
			return r, fmt.Errorf("%w: %s", errProtocol, escape(string(line[:min(len(line), 80)])))
		}
		r.code = code
		if n > 0 {
			r.lines = append(r.lines, '\n')
		}
		r.lines = append(r.lines, text...)
		for octets += len(line); err == bufio.ErrBufferFull; octets += len(line) { // drop the rest of a long line
			if octets > maxReply {
				break
			}
			if line, err = br.ReadSlice('\n'); err != nil && err != bufio.ErrBufferFull {
				return r, io.ErrUnexpectedEOF
			}
		}
		if octets > maxReply {
			return r, fmt.Errorf("%w: longer than %d octets", errProtocol, maxReply)
		}
		if !more {
			return r, nil
		}
	}
	return r, fmt.Errorf("%w: more than %d lines", errProtocol, maxReplyLines)
}

// parseReplyLine takes a line apart. more: another one follows.
func parseReplyLine(line []byte) (code int, more bool, text []byte, ok bool) {
	line = bytes.TrimRight(line, "\r\n")
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || line[1] < '0' || line[1] > '9' || line[2] < '0' || line[2] > '9' {
		return 0, false, nil, false
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, false, nil, true
	}
	return code, line[3] == '-', line[4:], line[3] == '-' || line[3] == ' '
}

// enhanced returns the enhanced status code of the first line (RFC 2034), or zero.
func (r reply) enhanced() status.Enhanced {
	first, _, _ := bytes.Cut(r.lines, []byte("\n"))
	e, _ := cutEnhanced(string(first[:min(len(first), len("5.999.999 "))]))
	return e
}

// text returns the lines joined by spaces, without their enhanced status codes, escaped and at most maxText long.
func (r reply) text() string {
	var b strings.Builder
	for line := range strings.SplitSeq(string(r.lines), "\n") {
		_, line = cutEnhanced(line)
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(strings.TrimSpace(line))
	}
	s := escape(b.String())
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// String returns the reply as one line: "250 2.0.0 OK".
func (r reply) String() string {
	e := status.Error{Code: r.code, Enhanced: r.enhanced(), Text: r.text()}
	return strings.TrimSpace(e.Error())
}

// cutEnhanced parts a line from the enhanced status code at its front (RFC 3463 section 2).
func cutEnhanced(line string) (e status.Enhanced, rest string) {
	part, digits, i := 0, 0, 0
	for ; i < len(line) && line[i] != ' '; i++ {
		switch c := line[i]; {
		case '0' <= c && c <= '9' && digits < 3:
			e[part] = e[part]*10 + int(c-'0')
			digits++
		case c == '.' && digits > 0 && part < 2:
			part, digits = part+1, 0
		default:
			return status.Enhanced{}, line
		}
	}
	if part != 2 || digits == 0 || e[0] != 2 && e[0] != 4 && e[0] != 5 {
		return status.Enhanced{}, line
	}
	return e, line[min(i+1, len(line)):]
}

// escape makes s safe for a log, a page and a DSN: what is not printable becomes \x1b or \u202e, what is not UTF-8 \xff.
func escape(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || r != ' ' && !unicode.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < utf8.RuneSelf && !unicode.IsPrint(r):
			b = fmt.Appendf(b, `\x%02x`, s[i])
		case !unicode.IsPrint(r):
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = utf8.AppendRune(b, r)
		}
		i += n
	}
	return string(b)
}
