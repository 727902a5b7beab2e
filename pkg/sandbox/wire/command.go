// Package wire is the sandbox's own reading of RFC 5321 and its extensions: commands, addresses, bodies, and the little
// of a header a submission service looks at. It is strict: what the grammar does not have is refused.
package wire

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// What ParseMail and ParseRcpt return: the address is not one, or something else is wrong.
var (
	ErrAddress   = errors.New("invalid address")
	ErrArguments = errors.New("invalid arguments")
)

// Mail is what follows "MAIL FROM:".
type Mail struct {
	From  string // as sent, without the angle brackets; "" is the null sender
	Size  int64  // SIZE (RFC 1870); 0 if absent
	Body  string // BODY (RFC 6152, RFC 3030): 7BIT, 8BITMIME, BINARYMIME; "" if absent
	UTF8  bool   // SMTPUTF8 (RFC 6531)
	Ret   string // RET (RFC 3461): FULL, HDRS
	EnvID string // ENVID (RFC 3461), as xtext
}

// ParseMail reads what follows "MAIL FROM:".
func ParseMail(s string) (Mail, error) {
	var m Mail
	var rest string
	if after, ok := strings.CutPrefix(s, "<>"); ok {
		rest = after
	} else {
		var err error
		if m.From, rest, err = parsePath(s); err != nil {
			return m, err
		}
	}
	err := eachParameter(rest, func(key, value string, given bool) bool {
		switch key {
		case "SIZE":
			n, err := strconv.ParseUint(value, 10, 62)
			m.Size = int64(n)
			return err == nil && len(value) <= 20
		case "BODY":
			m.Body = strings.ToUpper(value)
			return m.Body == "7BIT" || m.Body == "8BITMIME" || m.Body == "BINARYMIME"
		case "SMTPUTF8":
			m.UTF8 = true
			return !given
		case "RET":
			m.Ret = strings.ToUpper(value)
			return m.Ret == "FULL" || m.Ret == "HDRS"
		case "ENVID":
			m.EnvID = value
			return isXtext(value) && len(value) <= 100
		case "AUTH": // RFC 4954, 5: any server that offers AUTH takes it
			return value == "<>" || isXtext(value)
		}
		return false
	})
	if err == nil && !m.UTF8 && !isASCII(m.From) {
		err = ErrAddress
	}
	return m, err
}

// Rcpt is what follows "RCPT TO:".
type Rcpt struct {
	To     string
	Notify string // NOTIFY (RFC 3461), upper case
	ORcpt  string // ORCPT (RFC 3461): type;xtext
}

// ParseRcpt reads what follows "RCPT TO:"; addresses may have UTF-8 if the transaction does.
func ParseRcpt(s string, utf8Allowed bool) (Rcpt, error) {
	var r Rcpt
	to, rest, err := parsePath(s)
	if err != nil {
		return r, err
	}
	r.To = to
	err = eachParameter(rest, func(key, value string, _ bool) bool {
		switch key {
		case "NOTIFY":
			r.Notify = strings.ToUpper(value)
			return isNotify(r.Notify)
		case "ORCPT":
			r.ORcpt = value
			kind, address, ok := strings.Cut(value, ";")
			return ok && kind != "" && address != "" && len(value) <= 500 && (isXtext(address) || utf8Allowed)
		}
		return false
	})
	if err == nil && !utf8Allowed && !isASCII(r.To) {
		err = ErrAddress
	}
	return r, err
}

// isNotify reports whether s is NEVER, or some of the others, each once.
func isNotify(s string) bool {
	if s == "NEVER" {
		return true
	}
	seen := make(map[string]bool)
	for _, w := range strings.Split(s, ",") {
		if w != "SUCCESS" && w != "FAILURE" && w != "DELAY" || seen[w] {
			return false
		}
		seen[w] = true
	}
	return true
}

// eachParameter calls take for each "SP key [= value]" with the key in upper case, until take refuses one. A repeated
// key is refused here.
func eachParameter(s string, take func(key, value string, given bool) bool) error {
	seen := make(map[string]bool)
	for s != "" {
		if s[0] != ' ' {
			return ErrArguments
		}
		var word string
		word, s, _ = strings.Cut(s[1:], " ")
		if s != "" {
			s = " " + s
		}
		key, value, given := strings.Cut(word, "=")
		key = strings.ToUpper(key)
		if key == "" || given && value == "" || seen[key] || strings.IndexFunc(word, isSpaceOrControl) >= 0 {
			return ErrArguments
		}
		seen[key] = true
		if !take(key, value, given) {
			return ErrArguments
		}
	}
	return nil
}

func isSpaceOrControl(r rune) bool { return r <= ' ' || r == 0x7f || r == utf8.RuneError }

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

// isXtext checks the encoding of RFC 3461, 4.
func isXtext(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			if i+2 >= len(s) || !isUpperHex(s[i+1]) || !isUpperHex(s[i+2]) {
				return false
			}
			i += 2
		case c < '!' || c > '~' || c == '=':
			return false
		}
	}
	return true
}

func isUpperHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' }

// parsePath reads "<local@domain>" and returns the address as written and what follows. Source routes are refused.
func parsePath(s string) (address, rest string, err error) {
	if len(s) == 0 || s[0] != '<' {
		return "", "", ErrArguments
	}
	local, ok := localPart(s[1:])
	if !ok || len(local) > 64 {
		return "", "", ErrAddress
	}
	at := 1 + len(local)
	if at >= len(s) || s[at] != '@' {
		return "", "", ErrAddress
	}
	end := strings.IndexByte(s[at:], '>')
	if end < 0 || !isDomain(s[at+1:at+end]) {
		return "", "", ErrAddress
	}
	return s[1 : at+end], s[at+end+1:], nil
}

// ValidAddress reports whether s is local-part@domain.
func ValidAddress(s string) bool {
	address, rest, err := parsePath("<" + s + ">")
	return err == nil && rest == "" && address == s
}

// localPart returns the dot-string or quoted string s begins with.
func localPart(s string) (string, bool) {
	if len(s) > 0 && s[0] == '"' {
		for i := 1; i < len(s); i++ {
			switch c := s[i]; {
			case c == '"':
				return s[:i+1], i > 1 && utf8.ValidString(s[:i])
			case c == '\\':
				i++
				if i == len(s) || s[i] < ' ' || s[i] > '~' {
					return "", false
				}
			case c < ' ' || c == 0x7f:
				return "", false
			}
		}
		return "", false
	}
	n := 0
	for n < len(s) && (isAtext(s[n]) || s[n] == '.') {
		n++
	}
	local := s[:n]
	ok := n > 0 && local[0] != '.' && local[n-1] != '.' && !strings.Contains(local, "..") && utf8.ValidString(local)
	return local, ok
}

func isAtext(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80 ||
		strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// isDomain accepts names of letters, digits, hyphens and (RFC 6531) UTF-8, and address literals.
func isDomain(s string) bool {
	if len(s) > 255 || !utf8.ValidString(s) {
		return false
	}
	if literal, ok := strings.CutPrefix(s, "["); ok {
		return isLiteral(literal)
	}
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !isAlphanumeric(c) && c != '-' && c < 0x80 {
				return false
			}
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isLiteral(afterBracket string) bool {
	inside, ok := strings.CutSuffix(afterBracket, "]")
	if !ok {
		return false
	}
	v6, isV6 := strings.CutPrefix(inside, "IPv6:")
	ip, err := netip.ParseAddr(v6)
	return err == nil && ip.Zone() == "" && ip.Is4() != isV6
}

// IsHelloName is the strict reading of EHLO's argument: a fully qualified name or an address literal.
func IsHelloName(s string) bool {
	if strings.HasPrefix(s, "[") {
		return isDomain(s)
	}
	return isASCII(s) && isDomain(s) && strings.Contains(s, ".")
}

// Matches reports whether address is what pattern names: an address, "*@domain", or "*" for all; case does not count.
func Matches(pattern, address string) bool {
	if pattern == "*" {
		return true
	}
	if domain, ok := strings.CutPrefix(pattern, "*@"); ok {
		return strings.EqualFold(domain, DomainOf(address))
	}
	return strings.EqualFold(pattern, address)
}

// DomainOf is what follows the last @.
func DomainOf(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }
