package message

import "strings"

// Mailbox is one mailbox of an address list.
type Mailbox struct {
	Name    string // display name as written: quotes, encoded words and 8-bit octets included; empty: none
	Address string // addr-spec without brackets, comments and white space around "@" and "."; empty: none was found
}

// maxFrom is the longest value Mailboxes looks at, in octets: unfinished comments would cost the square of it.
const maxFrom = 8192

// Mailboxes reads the value of a From field: an RFC 5322 address-list with comments, quoted strings and groups, and what
// devices make of it, such as "a@b <a@b>" or "Scanner, 3rd floor <a@b>". It returns every address a reader could take
// for the author's, so the caller must judge them all; none where value exceeds 8 KiB. ISO-2022-JP as raw octets is stepped over.
func Mailboxes(value string) []Mailbox {
	var (
		list        []Mailbox
		name, angle string
		bracketed   bool
	)
	flush := func() {
		name = strings.TrimSpace(name)
		switch {
		case bracketed:
			list = append(list, Mailbox{Name: name, Address: addrSpec(angle)})
		case strings.Contains(name, "@"):
			list = append(list, unbracketed(name))
		case name != "":
			list = append(list, Mailbox{Name: name})
		}
		name, angle, bracketed = "", "", false
	}
	if len(value) > maxFrom {
		return nil
	}
	for i := 0; i < len(value); {
		n := tokenLen(value[i:])
		token := value[i : i+n]
		i += n
		switch token[0] {
		case '(':
			if n > 1 {
				token = " "
			}
			name += token
		case '<':
			if bracketed {
				flush() // a second pair of brackets is a second address
			}
			bracketed, angle = true, strings.Trim(token, "<>")
		case ',', ';':
			flush()
		case ':':
			if strings.Contains(name, "@") {
				flush() // the name of a group, and an address to a careless reader
			}
			name = ""
		default:
			name += token
		}
	}
	flush()
	return list
}

// unbracketed reads an address without angle brackets, and what devices write before it: "Scanner a@b".
func unbracketed(s string) Mailbox {
	i := strings.LastIndexAny(s, " \t")
	last := s[i+1:]
	if at := strings.IndexByte(last, '@'); i < 0 || strings.Count(s, "@") != 1 || at <= 0 || at == len(last)-1 ||
		last[0] == '.' || strings.ContainsAny(last, "\"()<>") || strings.Contains(s, "\x1b") || strings.HasSuffix(strings.TrimRight(s[:i], " \t"), ".") {
		return Mailbox{Address: addrSpec(s)} // alone, or with the white space of obsolete syntax
	}
	return Mailbox{Name: strings.TrimSpace(s[:i]), Address: last}
}

// tokenLen returns the length of the token s begins with: comment, quoted string, what stands in angle brackets, a
// separator, double-octet text, or the text up to the next of these. s is not empty.
func tokenLen(s string) int {
	switch s[0] {
	case '(':
		return commentLen(s)
	case '"':
		return quotedLen(s)
	case '<':
		if n := strings.IndexByte(s, '>'); n >= 0 {
			return n + 1
		}
		return len(s)
	case ',', ';', ':':
		return 1
	case 0x1b:
		return escapeLen(s)
	}
	if n := strings.IndexAny(s, "\x1b(\"<,;:"); n >= 0 {
		return n
	}
	return len(s)
}

// quotedLen returns the length of the quoted string s begins with; one that does not end is a single quote.
func quotedLen(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 1
}

// commentLen returns the length of the comment s begins with, nested ones included; one that does not end is a single
// parenthesis.
func commentLen(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 1
}

// escapeLen returns the length of what an ISO-2022-JP escape sequence at the start of s shifts to two octets a
// character, since those may look like brackets, quotes and commas.
func escapeLen(s string) int {
	if !strings.HasPrefix(s, "\x1b$") {
		return 1
	}
	if n := strings.Index(s[2:], "\x1b("); n >= 0 {
		return min(len(s), 2+n+3)
	}
	return len(s)
}

// addrSpec takes comments out of s, and the white space obsolete syntax allows around "@" and ".".
func addrSpec(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		n := 1
		switch s[i] {
		case '"':
			n = quotedLen(s[i:])
			b.WriteString(s[i : i+n])
		case '(':
			n = commentLen(s[i:])
		case ' ', '\t':
			before := b.String()
			after := strings.TrimLeft(s[i:], " \t")
			glued := strings.HasSuffix(before, "@") || strings.HasSuffix(before, ".") ||
				strings.HasPrefix(after, "@") || strings.HasPrefix(after, ".")
			if !glued {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
		i += n
	}
	return strings.TrimSpace(b.String())
}

// quoteName returns a display name in the form a strict reader accepts: as it is where it is a phrase, with the marks
// obsolete syntax allows (RFC 5322, section 4.1), else as a quoted string. Octets above 127 and escape sequences pass.
func quoteName(name string) (quoted string, changed bool) {
	special := false
	for i := 0; i < len(name); {
		n := 1
		switch name[i] {
		case '"':
			n = quotedLen(name[i:])
			special = special || n == 1
		case 0x1b:
			n = escapeLen(name[i:])
		case '@', '<', '>', '(', ')', '[', ']', ':', ';', ',', '\\':
			special = true
		}
		i += n
	}
	if !special {
		return name, false
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`, true
}
