package message

import (
	"bytes"
	"errors"
	"io"
	"strings"
)

// ErrHeaderTooLong reports a header longer than the limit given to [ReadHeader].
var ErrHeaderTooLong = errors.New("header too long")

// Field is one header field.
type Field struct {
	Name string // as written, without the white space obsolete syntax allows before the colon
	Raw  []byte // all of its lines, CRLFs included
}

// Value returns what stands behind the colon, unfolded and trimmed (RFC 5322, section 2.2.3).
func (f *Field) Value() string {
	_, v, _ := bytes.Cut(f.Raw, []byte{':'})
	return strings.TrimSpace(strings.NewReplacer("\r", "", "\n", "").Replace(string(v)))
}

// Header is a message's header: its fields in order, each kept as it came.
type Header struct {
	Fields []Field
}

// ReadHeader reads the header from r, whose lines all end in CRLF, up to and including the empty line. rest is what it
// read of the body. The header also ends before the first line that cannot be a field, as old devices leave the empty
// line out; a line "From …" of a mailbox file at the very start is dropped.
//
// Errors: ErrHeaderTooLong once the header exceeds limit octets, or what r returned other than io.EOF.
func ReadHeader(r io.Reader, limit int) (h *Header, rest []byte, err error) {
	var (
		buf = make([]byte, 0, 4096)
		at  int // start of the line to look at
	)
	h = &Header{Fields: make([]Field, 0, 16)}
	starts := make([]int, 0, 16) // where each field begins; buf may still move
	for eof := false; ; {
		line, whole := nextLine(buf[at:])
		kind := lineKind(line, len(starts) > 0, at == 0, whole || eof)
		if kind == lineUnknown && eof {
			kind = lineBody
		}
		if at+len(line) > limit && kind != lineBody && kind != lineEmpty {
			return nil, nil, ErrHeaderTooLong
		}
		switch kind {
		case lineField, lineMailbox:
			starts = append(starts, at)
			at += len(line)
		case lineFolded:
			at += len(line)
		case lineEmpty, lineBody:
			h.split(buf[:at:at], starts)
			if kind == lineEmpty {
				at += len(line)
			}
			return h, buf[at:], nil
		case lineUnknown:
			if len(buf) == cap(buf) {
				buf = append(buf, 0)[:len(buf)]
			}
			n, err := r.Read(buf[len(buf):cap(buf)])
			buf = buf[:len(buf)+n]
			if err == io.EOF {
				eof = true
			} else if err != nil {
				return nil, nil, err
			}
		}
	}
}

type headerLine uint8

const (
	lineUnknown headerLine = iota // cannot be told yet
	lineField
	lineFolded // the continuation of a field
	lineEmpty
	lineBody
	lineMailbox // "From " of a mailbox file
)

func nextLine(b []byte) (line []byte, whole bool) {
	if n := bytes.IndexByte(b, '\n'); n >= 0 {
		return b[:n+1], true
	}
	return b, false
}

// lineKind judges a line of the header; whole is false when more of it is to come.
func lineKind(line []byte, folds, first, whole bool) headerLine {
	if first && len(line) < 6 && !whole {
		return lineUnknown
	}
	if first && (bytes.HasPrefix(line, []byte("From ")) || bytes.HasPrefix(line, []byte(">From "))) &&
		fieldName(line) == "" {
		if !whole {
			return lineUnknown
		}
		return lineMailbox
	}
	if len(line) == 0 || (!whole && (line[0] == '\r' || folds && (line[0] == ' ' || line[0] == '\t'))) {
		return lineUnknown
	}
	switch {
	case string(line) == "\r\n":
		return lineEmpty
	case folds && (line[0] == ' ' || line[0] == '\t'):
		return lineFolded
	case fieldName(line) != "" && whole:
		return lineField
	case fieldName(line) != "":
		return lineUnknown
	}
	if !whole && bytes.IndexFunc(bytes.TrimRight(line, " \t"), func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0 {
		return lineUnknown // the colon may still come
	}
	return lineBody
}

// fieldName returns the name of the field a line begins, "" if it begins none (RFC 5322, sections 3.6.8 and 4.5.8).
func fieldName(line []byte) string {
	name, _, ok := bytes.Cut(line, []byte{':'})
	if !ok {
		return ""
	}
	name = bytes.TrimRight(name, " \t")
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return ""
		}
	}
	return string(name)
}

// split makes fields of block; what has no name (the mailbox line) is dropped.
func (h *Header) split(block []byte, starts []int) {
	for i, start := range starts {
		end := len(block)
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		if name := fieldName(block[start:end]); name != "" {
			h.Fields = append(h.Fields, Field{Name: name, Raw: block[start:end:end]})
		}
	}
}

// Count returns the number of fields of that name.
func (h *Header) Count(name string) int {
	n := 0
	for i := range h.Fields {
		if strings.EqualFold(h.Fields[i].Name, name) {
			n++
		}
	}
	return n
}

// Get returns the first field of that name, nil for none. It is valid until the header is changed.
func (h *Header) Get(name string) *Field {
	for i := range h.Fields {
		if strings.EqualFold(h.Fields[i].Name, name) {
			return &h.Fields[i]
		}
	}
	return nil
}

// Add appends a field on one line. The caller vouches for a value without CR and LF.
func (h *Header) Add(name, value string) {
	h.Fields = append(h.Fields, Field{Name: name, Raw: []byte(name + ": " + value + "\r\n")})
}

// Remove takes all fields of that name out and reports whether there was one.
func (h *Header) Remove(name string) bool {
	kept := h.Fields[:0]
	for _, f := range h.Fields {
		if !strings.EqualFold(f.Name, name) {
			kept = append(kept, f)
		}
	}
	removed := len(kept) < len(h.Fields)
	h.Fields = kept
	return removed
}

// Append appends the header and the empty line behind it to b.
func (h *Header) Append(b []byte) []byte {
	for i := range h.Fields {
		b = append(b, h.Fields[i].Raw...)
	}
	return append(b, "\r\n"...)
}
