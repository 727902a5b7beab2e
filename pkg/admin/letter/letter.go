// Package letter writes a message from the little a person or a script gives: addresses, a subject, a text. It is pure.
package letter

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/quotedprintable"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"relayd/pkg/envelope"
)

// Letter is a message of one plain text.
type Letter struct {
	From    envelope.Address
	To      []envelope.Address
	Date    time.Time
	Subject string
	Text    string            // any line endings, any characters
	Headers map[string]string // more header fields; none of those relayd writes itself
}

// FieldError says which field of a Letter cannot be written. Its text repeats no value.
type FieldError struct {
	Field string // "subject", or "headers.X-Name"
	Text  string
}

// Error implements error.
func (e *FieldError) Error() string { return e.Field + ": " + e.Text }

// maxValue is the longest value of a header field, in octets: with its name it fits a line (RFC 5322, section 2.1.1).
const maxValue = 900

// Compose returns the message in the form of RFC 5322, with a Message-ID of its own. Nothing in a Letter can begin a header
// field or end the header: what could is a [*FieldError].
func (l *Letter) Compose() ([]byte, error) {
	var b bytes.Buffer
	field := func(name, value string) { b.WriteString(name + ": " + value + "\r\n") }
	to := make([]string, len(l.To))
	for i, a := range l.To {
		to[i] = "<" + string(a) + ">"
	}
	field("Date", l.Date.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	field("Message-ID", "<"+strings.ToLower(rand.Text())+"@"+strings.Trim(l.From.Domain(), "[]")+">")
	field("From", "<"+string(l.From)+">")
	field("To", strings.Join(to, ",\r\n "))
	subject, err := encode("subject", l.Subject)
	if err != nil {
		return nil, err
	}
	field("Subject", subject)
	for _, name := range slices.Sorted(maps.Keys(l.Headers)) {
		key := "headers." + strings.ToValidUTF8(name[:min(len(name), 70)], "")
		if !isName(name) || reserved(name) {
			return nil, &FieldError{key, "no header field that can be set here"}
		}
		value, err := encode(key, l.Headers[name])
		if err != nil {
			return nil, err
		}
		field(name, value)
	}
	field("MIME-Version", "1.0")
	field("Content-Type", "text/plain; charset=utf-8")
	field("Content-Transfer-Encoding", "quoted-printable")
	b.WriteString("\r\n")
	w := quotedprintable.NewWriter(&b)
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(l.Text) // the writer loses line ends behind a bare CR
	_, _ = io.WriteString(w, strings.TrimSuffix(text, "\n")+"\n")         // a buffer takes everything
	_ = w.Close()
	return b.Bytes(), nil
}

// encode returns a value as it stands in a header: encoded words (RFC 2047) where it is not ASCII, one to a line.
func encode(key, value string) (string, error) {
	if len(value) > maxValue {
		return "", &FieldError{key, fmt.Sprintf("longer than %d octets", maxValue)}
	}
	if strings.ContainsFunc(value, isControl) {
		return "", &FieldError{key, "has a line break or another control character"}
	}
	return strings.ReplaceAll(mime.QEncoding.Encode("utf-8", value), "?= =?", "?=\r\n =?"), nil
}

func isControl(r rune) bool {
	return r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError
}

// isName reports whether a header field may have that name (RFC 5322, section 3.6.8), and it leaves room for a value.
func isName(name string) bool {
	if name == "" || len(name) > 70 {
		return false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] >= 0x7f || name[i] == ':' {
			return false
		}
	}
	return true
}

// reserved reports whether relayd or a mail server writes that field, or takes it out.
func reserved(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "content-") || strings.HasPrefix(name, "resent-") || slices.Contains([]string{
		"from", "sender", "to", "bcc", "subject", "date", "message-id", "mime-version", "received", "return-path", "x-relayd-id",
	}, name)
}
