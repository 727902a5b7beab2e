package smtpin

import (
	"slices"
	"strconv"
	"strings"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// mail is what MAIL FROM says.
type mail struct {
	path  envelope.Address
	size  int64 // SIZE (RFC 1870); 0: not said
	utf8  bool  // SMTPUTF8 (RFC 6531)
	ret   string
	envid string
}

// Longest values of the DSN parameters (RFC 3461, sections 4.2 and 4.4).
const (
	maxENVID = 100
	maxORCPT = 500
)

// parseMail reads a MAIL command line. It tolerates spaces behind the colon and a path without brackets.
func parseMail(line string) (m mail, err error) {
	params, err := parsePath(line, "FROM:", &m.path, status.Enhanced{5, 1, 7})
	if err != nil {
		return m, err
	}
	for key, value := range params {
		ok := true
		switch key {
		case "SIZE":
			m.size, ok = parseSize(value)
		case "BODY":
			ok = strings.EqualFold(value, "7BIT") || strings.EqualFold(value, "8BITMIME")
		case "SMTPUTF8":
			m.utf8, ok = true, value == ""
		case "RET":
			m.ret = strings.ToUpper(value)
			ok = m.ret == "FULL" || m.ret == "HDRS"
		case "ENVID":
			m.envid, ok = value, value != "" && len(value) <= maxENVID && isXtext(value)
		case "AUTH": // RFC 4954, section 5: we trust nobody's word on who wrote a message
		default:
			return m, errParameter(key)
		}
		if !ok {
			return m, refuse(reasonSyntax, 501, status.Enhanced{5, 5, 4}, "malformed %s parameter", key)
		}
	}
	if !m.utf8 && !m.path.ASCII() {
		return m, errNotASCII()
	}
	return m, nil
}

// parseRcpt reads a RCPT command line.
func parseRcpt(line string, utf8 bool) (r envelope.Recipient, err error) {
	params, err := parsePath(line, "TO:", &r.Address, status.Enhanced{5, 1, 3})
	if err != nil {
		return r, err
	}
	if r.Address == "" {
		return r, refuse(reasonSyntax, 501, status.Enhanced{5, 1, 3}, "a recipient cannot be <>")
	}
	for key, value := range params {
		var ok bool
		switch key {
		case "NOTIFY":
			r.Notify = strings.ToUpper(value)
			ok = isNotify(r.Notify)
		case "ORCPT":
			kind, address, _ := strings.Cut(value, ";")
			r.ORCPT = value
			ok = kind != "" && address != "" && len(value) <= maxORCPT && isXtext(kind) &&
				(isXtext(address) || utf8 && strings.EqualFold(kind, "utf-8"))
		default:
			return r, errParameter(key)
		}
		if !ok {
			return r, refuse(reasonSyntax, 501, status.Enhanced{5, 5, 4}, "malformed %s parameter", key)
		}
	}
	if !utf8 && !r.Address.ASCII() {
		return r, errNotASCII()
	}
	return r, nil
}

func errNotASCII() error {
	return refuse(reasonSyntax, 553, status.Enhanced{5, 6, 7}, "address is not ASCII and SMTPUTF8 was not asked for")
}

func errParameter(key string) error {
	return refuse(reasonSyntax, 555, status.Enhanced{5, 5, 4}, "parameter %.40s not recognized", key)
}

// parsePath reads a command line up to the end of its path and returns its parameters, keys in upper case.
func parsePath(line, word string, a *envelope.Address, malformed status.Enhanced) (map[string]string, error) {
	_, s, _ := strings.Cut(line, " ")
	s = strings.Trim(s, " ")
	if len(s) < len(word) || !strings.EqualFold(s[:len(word)], word) {
		return nil, refuse(reasonSyntax, 501, status.Enhanced{5, 5, 4}, "expected %s<address>", word)
	}
	var err error
	*a, s, err = envelope.ParsePath(strings.TrimLeft(s[len(word):], " "), true)
	if err != nil {
		return nil, refuse(reasonSyntax, 501, malformed, "malformed address: %v", err)
	}
	params := map[string]string{}
	for p := range strings.FieldsSeq(s) {
		key, value, _ := strings.Cut(p, "=")
		key = strings.ToUpper(key)
		if _, twice := params[key]; twice {
			return nil, refuse(reasonSyntax, 501, status.Enhanced{5, 5, 4}, "parameter %.40s given twice", key)
		}
		params[key] = value
	}
	return params, nil
}

// parseSize reads a number of octets: digits only, below 2^63.
func parseSize(s string) (n int64, ok bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// parseBDAT reads what follows BDAT: a size and perhaps LAST (RFC 3030, section 2).
func parseBDAT(arg string) (size int64, last, ok bool) {
	digits, word, more := strings.Cut(arg, " ")
	size, ok = parseSize(digits)
	if more {
		last = strings.EqualFold(strings.Trim(word, " "), "LAST")
		ok = ok && last
	}
	return size, last, ok
}

// isXtext reports whether s is xtext (RFC 3461, section 4).
func isXtext(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return false
			}
			i += 2
		case c <= ' ' || c >= 0x7f || c == '=':
			return false
		}
	}
	return true
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' }

// isNotify reports whether s, in upper case, is NEVER or a list of the other three without repetition.
func isNotify(s string) bool {
	if s == "NEVER" {
		return true
	}
	rest := []string{"SUCCESS", "FAILURE", "DELAY"}
	for word := range strings.SplitSeq(s, ",") {
		i := slices.Index(rest, word)
		if i < 0 {
			return false
		}
		rest = slices.Delete(rest, i, i+1)
	}
	return true
}
