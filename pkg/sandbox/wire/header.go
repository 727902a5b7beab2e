package wire

import (
	"io"
	"mime"
	"net/mail"
	"strings"
)

// Field is one header field, unfolded.
type Field struct{ Name, Value string }

// Fields reads a header block. A line that is no field is passed over.
func Fields(block []byte) []Field {
	var all []Field
	for line := range strings.Lines(string(block)) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if line != "" && (line[0] == ' ' || line[0] == '\t') {
			if len(all) > 0 {
				all[len(all)-1].Value += line
			}
			continue
		}
		if name, value, ok := strings.Cut(line, ":"); ok {
			all = append(all, Field{strings.TrimRight(name, " \t"), strings.TrimLeft(value, " \t")})
		}
	}
	return all
}

// Value returns the first field of that name.
func Value(all []Field, name string) string {
	for _, f := range all {
		if strings.EqualFold(f.Name, name) {
			return strings.TrimSpace(f.Value)
		}
	}
	return ""
}

// Addresses reads an address list and returns nothing if it is none. Display names in any charset are let through:
// only the addresses matter.
func Addresses(list string) []string {
	parser := mail.AddressParser{WordDecoder: &mime.WordDecoder{
		CharsetReader: func(_ string, input io.Reader) (io.Reader, error) { return input, nil },
	}}
	parsed, err := parser.ParseList(strings.ToValidUTF8(list, "?"))
	if err != nil {
		return nil
	}
	found := make([]string, len(parsed))
	for i, a := range parsed {
		found[i] = a.Address
	}
	return found
}
