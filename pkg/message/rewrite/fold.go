package rewrite

import (
	"bytes"
	"slices"
	"strings"

	"relayd/pkg/message"
)

// foldField returns f with its lines over message.MaxLine octets broken where white space stands (RFC 5322, section
// 2.2.3), and, in a list of addresses, behind a comma. left: that is not enough, and f stays as it is.
func foldField(f *message.Field) (raw []byte, left bool) {
	if len(f.Raw) <= message.MaxLine+len("\r\n") {
		return f.Raw, false
	}
	commas := addressCommas(f)
	offset := 0
	for line := range bytes.SplitAfterSeq(f.Raw, []byte("\r\n")) {
		next := offset + len(line)
		line = bytes.TrimSuffix(line, []byte("\r\n"))
		room := message.MaxLine
		for len(line) > room {
			at, indent := breakAt(line, room), 0
			if comma := lastWithin(commas, offset, min(room, len(bytes.TrimRight(line, " \t"))-1)); comma > at {
				at, indent = comma, 1
			}
			if at < 0 {
				return f.Raw, true
			}
			raw = append(append(raw, line[:at]...), "\r\n "[:2+indent]...)
			line, offset, room = line[at:], offset+at, message.MaxLine-indent
		}
		raw = append(append(raw, line...), "\r\n"...)
		if offset = next; offset == len(f.Raw) {
			break
		}
	}
	return raw, false
}

// breakAt returns the index of the last white space up to limit, -1 for none. Neither the line before it nor what follows
// may be nothing but white space.
func breakAt(line []byte, limit int) int {
	const space = " \t"
	begin := len(line) - len(bytes.TrimLeft(line, space))
	end := min(len(bytes.TrimRight(line, space)), limit+1)
	if begin >= end {
		return -1
	}
	if n := bytes.LastIndexAny(line[begin:end], space); n >= 0 {
		return begin + n
	}
	return -1
}

// lastWithin returns the last of the sorted places in (offset, offset+limit], less offset; -1 for none.
func lastWithin(places []int, offset, limit int) int {
	n, _ := slices.BinarySearch(places, offset+limit+1)
	if n == 0 || places[n-1] <= offset {
		return -1
	}
	return places[n-1] - offset
}

// addressCommas returns, for a list of addresses, the offsets in f.Raw behind the commas that are not in a quoted string
// or a comment: white space there means nothing. Double-octet text could hide any of these, so with it there are none.
func addressCommas(f *message.Field) (places []int) {
	switch strings.ToLower(f.Name) {
	case "to", "cc", "reply-to", "from", "resent-to", "resent-cc", "resent-from":
	default:
		return nil
	}
	depth, quoted := 0, false
	for i := 0; i < len(f.Raw); i++ {
		switch c := f.Raw[i]; {
		case c == 0x1b:
			return nil
		case c == '\\' && (quoted || depth > 0):
			i++
		case c == '"' && depth == 0:
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			depth = max(0, depth-1)
		case c == ',' && depth == 0:
			places = append(places, i+1)
		}
	}
	return places
}
