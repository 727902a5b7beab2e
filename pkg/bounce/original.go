package bounce

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"relayd/pkg/bounce/text"
	"relayd/pkg/envelope"
)

const (
	// MaxWhole is the size up to which a message is returned whole where RET=FULL asks for it, in octets.
	MaxWhole = 256 << 10
	// maxHeader is what is returned of a header, in octets.
	maxHeader = 64 << 10
	// maxSubject is what is quoted of a subject, as encoded, in octets.
	maxSubject = 900
)

// Original is what is kept of the message a notification is about.
type Original struct {
	header []byte // whole fields, without the empty line
	whole  []byte // nil: only the header is returned
}

// ReadOriginal reads from body, the stored message of env, what a notification returns of it: all of it where RET=FULL asks
// so (RFC 3461, section 4.3) and it is at most MaxWhole octets, else its header, 64 KiB of it at most. It reads no further
// than that. Errors are those of body.
func ReadOriginal(env *envelope.Envelope, body io.Reader) (*Original, error) {
	if strings.EqualFold(env.Return, "FULL") && env.Size <= MaxWhole && !env.LongLines {
		whole, err := io.ReadAll(io.LimitReader(body, MaxWhole+1))
		if err != nil {
			return nil, fmt.Errorf("read original: %w", err)
		}
		o := &Original{header: headerOf(whole), whole: whole}
		if len(whole) > MaxWhole {
			o.whole = nil
		}
		return o, nil
	}
	buf := make([]byte, 0, 4<<10)
	for len(buf) <= maxHeader && !bytes.Contains(buf, []byte("\r\n\r\n")) {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read original: %w", err)
		}
	}
	return &Original{header: headerOf(buf)}, nil
}

// headerOf returns the header that b begins with, as whole fields and at most maxHeader octets of it.
func headerOf(b []byte) []byte {
	if bytes.HasPrefix(b, []byte("\r\n")) {
		return nil
	}
	if n := bytes.Index(b, []byte("\r\n\r\n")); n >= 0 {
		b = b[:n+2]
	}
	if len(b) <= maxHeader {
		return b
	}
	for end := maxHeader; end > 1; end-- { // back to where a field begins
		if b[end-1] == '\n' && b[end-2] == '\r' && b[end] != ' ' && b[end] != '\t' {
			return b[:end]
		}
	}
	return nil
}

// value returns the first field of that name, unfolded and trimmed; "" where there is none.
func (o *Original) value(name string) string {
	var found []byte
	inside := false
	for line := range bytes.Lines(o.header) {
		if inside && line[0] != ' ' && line[0] != '\t' {
			break
		}
		if !inside {
			key, rest, ok := bytes.Cut(line, []byte{':'})
			if !ok || !strings.EqualFold(strings.TrimRight(string(key), " \t"), name) {
				continue
			}
			inside, line = true, rest
		}
		found = append(found, bytes.TrimRight(line, "\r\n")...)
	}
	return strings.TrimSpace(string(found))
}

// AutoReplied reports whether the message is itself an answer to mail: a vacation notice, another relay's notification
// (RFC 3834, section 5).
func (o *Original) AutoReplied() bool {
	keyword, _, _ := strings.Cut(o.value("Auto-Submitted"), ";")
	keyword, _, _ = strings.Cut(keyword, "(")
	return strings.EqualFold(strings.TrimSpace(keyword), "auto-replied")
}

// part returns the original as the last part of a notification. A message that could not stand there as it is (8-bit
// header without SMTPUTF8, long lines) comes down to its header, and a header that could not to quoted-printable.
func (o *Original) part(global bool) text.Part {
	plain, valid := text.IsASCII(o.header), utf8.Valid(o.header)
	if o.whole != nil && text.Sound(o.whole) && (plain || global && valid) {
		p := text.Part{Kind: "message/rfc822", Description: "Original message", Encoding: "7bit", Body: o.whole}
		if !plain {
			p.Kind = "message/global" // RFC 6532, section 3.7
		}
		if !text.IsASCII(o.whole) {
			p.Encoding = "8bit"
		}
		return p
	}
	p := text.Part{Kind: "text/rfc822-headers", Description: "Header of the original message", Encoding: "7bit", Body: o.header}
	if plain && text.Sound(o.header) {
		return p
	}
	if global && valid && text.Sound(o.header) {
		p.Kind, p.Encoding = "message/global-headers", "8bit"
		return p
	}
	p.Kind += "; charset=utf-8"
	if !valid {
		p.Kind = "text/rfc822-headers; charset=unknown-8bit" // RFC 1428, section 3
	}
	p.Encoding, p.Body = "quoted-printable", text.QuotedPrintable(o.header)
	return p
}

// subject returns prefix and the original's subject, as the tokens of a field: encoded words (RFC 2047) stay as they came,
// raw UTF-8 becomes some, and what has no known character set (raw ISO-2022-JP) is left out.
func (r *Report) subject(prefix string) []string {
	alone := []string{prefix, "mail"}
	if r.Original == nil {
		return alone
	}
	subject := strings.ReplaceAll(r.Original.value("Subject"), "\t", " ")
	if text.Escape(subject, false) != subject {
		return alone
	}
	tokens, length := []string{prefix + ":"}, 0
	for _, token := range text.EncodedWords(subject) {
		if length += 1 + len(token); length > maxSubject {
			tokens = append(tokens, "...")
			break
		}
		tokens = append(tokens, token)
	}
	if len(tokens) == 1 {
		return alone
	}
	return tokens
}
