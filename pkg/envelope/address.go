package envelope

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Address is a mailbox in the one form relayd stores, judges and sends: local part re-quoted only where RFC 5321
// demands it, domain in lower case. The empty Address is the null reverse-path "<>".
//
// Policy looks at this form and the wire carries this form, so no spelling can mean one thing to a rule and another to
// Exchange Online.
type Address string

// maxPath is the longest path RFC 5321 section 4.5.3.1.3 allows, in octets, its two angle brackets taken off.
const maxPath = 256 - 2

// Split returns local part (as written, perhaps quoted) and domain.
func (a Address) Split() (local, domain string) {
	i := strings.LastIndexByte(string(a), '@')
	if i < 0 {
		return string(a), ""
	}
	return string(a[:i]), string(a[i+1:])
}

// Domain returns the part behind the last "@", in lower case.
func (a Address) Domain() string {
	_, d := a.Split()
	return d
}

// Key returns the form under which Exchange Online would look a mailbox up: all lower case. Use it to compare and to
// index, never to send.
func (a Address) Key() string { return strings.ToLower(string(a)) }

// ASCII reports whether the address can be sent without SMTPUTF8 (RFC 6531).
func (a Address) ASCII() bool {
	for i := range len(a) {
		if a[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// ParseAddress reads a bare mailbox, "local@domain", by RFC 5321 section 4.1.2 and, where utf8 is set, RFC 6531
// section 3.3. Anything around or behind it is an error.
func ParseAddress(s string, smtputf8 bool) (Address, error) {
	a, rest, err := parseMailbox(s, smtputf8)
	if err != nil {
		return "", err
	}
	if rest != "" {
		return "", fmt.Errorf("unexpected %q behind the address", rest)
	}
	return a, nil
}

// ParsePath reads the path that opens s: "<local@domain>", the null path "<>", or, as old devices write it, a mailbox
// without brackets. It returns what stands behind the path. A source route (RFC 5321 appendix C) is dropped.
func ParsePath(s string, smtputf8 bool) (a Address, rest string, err error) {
	inner, bracketed := strings.CutPrefix(s, "<")
	if bracketed && strings.HasPrefix(inner, ">") {
		return "", inner[1:], nil
	}
	if bracketed && strings.HasPrefix(inner, "@") {
		_, after, ok := strings.Cut(inner, ":")
		if !ok {
			return "", "", errors.New("source route without a colon")
		}
		inner = after
	}
	a, rest, err = parseMailbox(inner, smtputf8)
	if err != nil {
		return "", "", err
	}
	if bracketed {
		if !strings.HasPrefix(rest, ">") {
			return "", "", errors.New("no closing angle bracket")
		}
		rest = rest[1:]
	}
	if rest != "" && rest[0] != ' ' {
		return "", "", fmt.Errorf("unexpected %q behind the path", rest)
	}
	return a, rest, nil
}

func parseMailbox(s string, smtputf8 bool) (a Address, rest string, err error) {
	if !utf8.ValidString(s) {
		return "", "", errors.New("not valid UTF-8")
	}
	local, rest, err := parseLocalPart(s, smtputf8)
	if err != nil {
		return "", "", err
	}
	rest, ok := strings.CutPrefix(rest, "@")
	if !ok {
		return "", "", errors.New("no @ behind the local part")
	}
	end := strings.IndexAny(rest, " >")
	if end < 0 {
		end = len(rest)
	}
	domain := strings.ToLower(rest[:end])
	if err := checkDomain(domain, smtputf8); err != nil {
		return "", "", err
	}
	a = Address(quoteLocal(local) + "@" + domain)
	if len(a) > maxPath {
		return "", "", fmt.Errorf("address longer than %d octets", maxPath)
	}
	return a, rest[end:], nil
}

// parseLocalPart returns the local part without its quoting, and what follows it.
func parseLocalPart(s string, smtputf8 bool) (local, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		n := 0
		for _, r := range s {
			if !isAtext(r, smtputf8) && r != '.' {
				break
			}
			n += utf8.RuneLen(r)
		}
		if n == 0 {
			return "", "", errors.New("no local part")
		}
		return s[:n], s[n:], nil
	}
	var b strings.Builder
	for i := 1; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == '"' {
			if b.Len() == 0 {
				return "", "", errors.New("empty quoted local part")
			}
			return b.String(), s[i+1:], nil
		}
		if r == '\\' {
			i++
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		if r < ' ' || r == 0x7f || n == 0 || (r >= utf8.RuneSelf && !smtputf8) {
			return "", "", errors.New("character not allowed in a quoted local part")
		}
		b.WriteRune(r)
		i += n
	}
	return "", "", errors.New("quoted local part without its end")
}

// isAtext is atext of RFC 5322 section 3.2.3, with RFC 6531's UTF8-non-ascii where allowed. C1 controls are not.
func isAtext(r rune, smtputf8 bool) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return true
	case r < utf8.RuneSelf:
		return r > ' ' && strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r)
	default:
		return smtputf8 && r > 0x9f
	}
}

// quoteLocal writes a local part so that it reads back as itself: a Dot-string where it is one, else a Quoted-string.
// Dots in odd places ("a..b", "a.") are tolerated unquoted: Japanese carriers handed out such addresses.
func quoteLocal(local string) string {
	plain := true
	for _, r := range local {
		if !isAtext(r, true) && r != '.' {
			plain = false
			break
		}
	}
	if plain {
		return local
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range local {
		if r == '"' || r == '\\' {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	b.WriteByte('"')
	return b.String()
}

// checkDomain accepts a Domain or an address-literal of RFC 5321 section 4.1.2, with "_" as the field allows it.
func checkDomain(d string, smtputf8 bool) error {
	if inner, ok := strings.CutPrefix(d, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		ip, err := netip.ParseAddr(strings.TrimPrefix(inner, "ipv6:"))
		if !ok || err != nil || ip.Zone() != "" || ip.Is6() != strings.HasPrefix(inner, "ipv6:") {
			return errors.New("malformed address literal")
		}
		return nil
	}
	if d == "" {
		return errors.New("no domain")
	}
	if len(d) > 255 {
		return errors.New("domain longer than 255 octets")
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("malformed domain %q", d)
		}
		for _, r := range label {
			switch {
			case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '-', r == '_':
			case r > 0x9f && smtputf8:
			default:
				return errors.New("character not allowed in a domain")
			}
		}
	}
	return nil
}
