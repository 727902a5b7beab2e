// Package text writes what mail is made of: header fields, parts and running text, out of strings that may come from
// anywhere. What it has escaped can neither begin a line nor a field, and no line it writes exceeds 998 octets.
package text

import (
	"bytes"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxToken is how long a token may be, in octets: it is never broken, and no line may exceed 998.
const MaxToken = 900

const (
	foldAt  = 76  // columns a header field is folded at where it can be
	wrapAt  = 72  // columns of running text
	maxLine = 998 // octets of a line without its CRLF (RFC 5322, section 2.1.1)

	maxEncoded = 300 // octets that are made encoded words of; they become up to five times as many
)

// Field writes a header field, folded between tokens only. A token must be clean and at most MaxToken octets.
func Field(b *bytes.Buffer, name string, tokens ...string) {
	b.WriteString(name + ":")
	column := len(name) + 1
	for i, token := range tokens {
		if i > 0 && column+1+len(token) > foldAt {
			b.WriteString("\r\n")
			column = 0
		}
		b.WriteString(" " + token)
		column += 1 + len(token)
	}
	b.WriteString("\r\n")
}

// Part is one part of a multipart message.
type Part struct {
	Kind        string // Content-Type
	Description string // Content-Description
	Encoding    string // Content-Transfer-Encoding
	Body        []byte // in that encoding
}

// Join writes the parts as the body of a multipart message, and the field Content-Type with its boundary before it. The
// boundary is made of seed, printable ASCII, and occurs in no part (RFC 2046, section 5.1.1).
func Join(b *bytes.Buffer, kind, parameter, seed string, parts []Part) {
	boundary := ""
	for n := 0; boundary == "" || occurs(boundary, parts); n++ {
		boundary = fmt.Sprintf("=_%s.%d", seed, n) // "=_" cannot occur in quoted-printable
	}
	Field(b, "Content-Type", kind+";", parameter+";", `boundary="`+boundary+`"`)
	for _, p := range parts {
		b.WriteString("\r\n--" + boundary + "\r\n")
		Field(b, "Content-Type", p.Kind)
		Field(b, "Content-Description", p.Description)
		Field(b, "Content-Transfer-Encoding", p.Encoding)
		b.WriteString("\r\n")
		b.Write(p.Body)
	}
	b.WriteString("\r\n--" + boundary + "--\r\n")
}

func occurs(boundary string, parts []Part) bool {
	return slices.ContainsFunc(parts, func(p Part) bool { return bytes.Contains(p.Body, []byte(boundary)) })
}

// Encode returns running text, whose lines end in "\n", as the body of a text/plain: Content-Type, encoding and octets.
func Encode(words string) (kind, encoding string, body []byte) {
	body = []byte(strings.ReplaceAll(words, "\n", "\r\n"))
	if IsASCII(body) && Sound(body) {
		return "text/plain; charset=us-ascii", "7bit", body
	}
	return "text/plain; charset=utf-8", "quoted-printable", QuotedPrintable(body)
}

// QuotedPrintable encodes text (RFC 2045, section 6.7); each of CRLF, CR and LF becomes a line break.
func QuotedPrintable(text []byte) []byte {
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	w.Write(text) //nolint:errcheck // a buffer takes all
	w.Close()     //nolint:errcheck // likewise
	return b.Bytes()
}

// IsASCII reports whether no octet of b is above 127.
func IsASCII(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Sound reports whether b may travel unencoded as 7bit or 8bit (RFC 2045, section 2.7): no NUL, no CR or LF but as CRLF,
// no line too long.
func Sound(b []byte) bool {
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n')
		line, rest := b, []byte(nil)
		if n >= 0 {
			if n == 0 || b[n-1] != '\r' {
				return false
			}
			line, rest = b[:n-1], b[n+1:]
		}
		if len(line) > maxLine || bytes.IndexByte(line, 0) >= 0 || bytes.IndexByte(line, '\r') >= 0 {
			return false
		}
		b = rest
	}
	return true
}

// Escape makes s one line of printable text: what is not printable becomes \x{A0}, as RFC 6533 section 3 writes it; with
// ascii set, so does what is not ASCII. A backslash stays one, since replies come escaped already.
func Escape(s string, ascii bool) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x{%02X}`, s[i])
		case r != ' ' && !unicode.IsPrint(r), ascii && r >= utf8.RuneSelf:
			fmt.Fprintf(&b, `\x{%02X}`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// Clip cuts s to at most n octets, between characters.
func Clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const ellipsis = "..."
	end := n - len(ellipsis)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + ellipsis
}

// Words cuts s into tokens a field can be folded between, none longer than MaxToken.
func Words(s string) []string {
	tokens := strings.Fields(s)
	for i, token := range tokens {
		tokens[i] = Clip(token, MaxToken)
	}
	return tokens
}

// EncodedWords is Words, with what is not ASCII in encoded words (RFC 2047). s is printable.
func EncodedWords(s string) []string {
	if IsASCII([]byte(s)) {
		return Words(s)
	}
	return Words(mime.QEncoding.Encode("utf-8", Clip(s, maxEncoded)))
}

// Wrap breaks text into lines of at most wrapAt columns, each behind indent. A longer word has a line of its own.
func Wrap(indent, text string) string {
	var b strings.Builder
	column := 0
	for _, word := range Words(text) {
		width := utf8.RuneCountInString(word)
		switch {
		case column == 0:
			b.WriteString(indent)
			column = len(indent)
		case column+1+width > wrapAt:
			b.WriteString("\n" + indent)
			column = len(indent)
		default:
			b.WriteString(" ")
			column++
		}
		b.WriteString(word)
		column += width
	}
	b.WriteString("\n")
	return b.String()
}

// Plain is Escape for running text, clipped to what one reply or sentence may take.
func Plain(s string) string { return Clip(Escape(s, false), 2<<10) }
