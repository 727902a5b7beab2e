package message

import (
	"bytes"
	"strings"
)

// MaxLine is the longest line of a message in octets, its CRLF not counted (RFC 5322, section 2.1.1).
const MaxLine = 998

// LongLines looks for lines over MaxLine in a message that comes in blocks. The zero value is ready to use.
type LongLines struct {
	Seen bool
	open int // octets since the last LF
}

// Scan takes the next octets of a message whose every line ends in CRLF.
func (l *LongLines) Scan(p []byte) {
	for !l.Seen && len(p) > 0 {
		n := bytes.IndexByte(p, '\n')
		if n < 0 {
			n = len(p)
		}
		l.open += n
		l.Seen = l.open > MaxLine+1 // the CR
		if n == len(p) {
			return
		}
		p, l.open = p[n+1:], 0
	}
}

// Signature names what shows a message, or a part of one, to be signed or encrypted, so that no octet of it may change;
// "" if nothing does. What lies deeper than this header is not looked at.
func (h *Header) Signature() string {
	for i := range h.Fields {
		switch name := h.Fields[i].Name; strings.ToLower(name) {
		case "dkim-signature", "domainkey-signature", "arc-seal", "arc-message-signature":
			return name
		case "content-type":
			kind, _, _ := strings.Cut(h.Fields[i].Value(), ";")
			kind = strings.ToLower(strings.TrimSpace(kind))
			switch kind {
			case "multipart/signed", "multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime",
				"application/pgp-encrypted":
				return kind
			}
		}
	}
	return ""
}
