package submission

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// A text that has this many octets in a row in common with a credential repeats it: that is no coincidence.
const telling = 16

const withheld = "withheld: it repeats the access token"

// secrets is what no log, page or DSN may show, whatever a server quotes: an access token and the line it is sent in.
type secrets []string

func credentials(login envelope.Address, token string) secrets {
	return secrets{token, base64.StdEncoding.EncodeToString(initialResponse(string(login), token))}
}

// in reports whether text repeats one of s. Every reply passes here: a short one costs a comparison, a long one a scan
// for words, and only words are looked up.
func (s secrets) in(text string) bool {
	if len(text) < telling {
		return false
	}
	// Of telling octets in a row, wherever they begin, one aligned half is whole.
	const half = telling / 2
	for i := 0; i+half <= len(text); i += half {
		piece := text[i : i+half]
		if strings.IndexByte(piece, ' ') >= 0 { // no credential holds one
			continue
		}
		for _, secret := range s {
			if repeats(text, i, i+half, secret) {
				return true
			}
		}
	}
	return false
}

// repeats reports whether text[begin:end], with what is around it, is telling octets of secret.
func repeats(text string, begin, end int, secret string) bool {
	for from := 0; ; from++ {
		at := strings.Index(secret[from:], text[begin:end])
		if at < 0 {
			return false
		}
		from += at
		length := end - begin
		for i, k := begin-1, from-1; i >= 0 && k >= 0 && length < telling && text[i] == secret[k]; i, k = i-1, k-1 {
			length++
		}
		for i, k := end, from+end-begin; i < len(text) && k < len(secret) && length < telling && text[i] == secret[k]; i, k = i+1, k+1 {
			length++
		}
		if length >= telling {
			return true
		}
	}
}

// withhold strikes out of e what repeats a credential, as a server may that quotes what it does not understand.
func (s secrets) withhold(e *status.Error) *status.Error {
	if s.in(e.Text) {
		e.Text = "reply " + withheld
	}
	switch {
	case e.Err == nil || !s.in(e.Err.Error()):
	case errors.Is(e.Err, errProtocol): // what replies out of step mean depends on it
		e.Err = fmt.Errorf("%w: cause %s", errProtocol, withheld)
	default:
		e.Err = errors.New("cause " + withheld)
	}
	return e
}

// show returns the reply as one line in which no credential is repeated.
func (s secrets) show(r reply) string {
	line := r.String()
	if s.in(line) {
		line = (&status.Error{Code: r.code, Enhanced: r.enhanced(), Text: "reply " + withheld}).Error()
	}
	return line
}
