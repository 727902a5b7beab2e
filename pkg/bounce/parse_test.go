package bounce

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"relayd/pkg/bounce/text"
)

// parsed is what a reader makes of a mail: the same for Go's packages and Python's.
type parsed struct {
	Fields  [][2]string `json:"fields"` // names in lower case, in order of their names where Go read them
	Subject string      `json:"subject"`
	Report  string      `json:"report"`
	Parts   []seenPart  `json:"parts"`
	Defects []string    `json:"defects"`
}

type seenPart struct {
	Type   string        `json:"type"`
	Groups [][][2]string `json:"groups"` // of a delivery status
	Inner  [][2]string   `json:"inner"`  // header of a message
	Text   string        `json:"text"`
	octets []byte
	header textproto.MIMEHeader
}

// get returns the value of the one field of that name, "" for none; two are an error.
func get(t *testing.T, fields [][2]string, name string) string {
	t.Helper()
	value, n := "", 0
	for _, f := range fields {
		if strings.EqualFold(f[0], name) {
			value, n = f[1], n+1
		}
	}
	if n > 1 {
		t.Errorf("%d fields %s", n, name)
	}
	return value
}

func flat(h map[string][]string) [][2]string {
	var fields [][2]string
	for name, values := range h {
		for _, v := range values {
			fields = append(fields, [2]string{strings.ToLower(name), strings.Join(strings.Fields(v), " ")})
		}
	}
	slices.SortFunc(fields, func(a, b [2]string) int {
		return strings.Compare(a[0]+"\x00"+a[1], b[0]+"\x00"+b[1])
	})
	return fields
}

// readGo reads a mail with net/mail and mime/multipart.
func readGo(eml []byte) (*parsed, error) {
	m, err := mail.ReadMessage(bytes.NewReader(eml))
	if err != nil {
		return nil, err
	}
	p := &parsed{Fields: flat(m.Header)}
	if p.Subject, err = new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject")); err != nil {
		p.Subject = m.Header.Get("Subject") // a character set Go does not know
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		return nil, err
	}
	p.Report = params["report-type"]
	if kind == "text/plain" {
		part, err := readPart(textproto.MIMEHeader(m.Header), m.Body)
		p.Parts = []seenPart{part}
		return p, err
	}
	if kind != "multipart/report" {
		return nil, fmt.Errorf("a mail of type %s", kind)
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	for {
		raw, err := r.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		part, err := readPart(raw.Header, raw)
		if err != nil {
			return nil, err
		}
		p.Parts = append(p.Parts, part)
	}
	if rest, err := io.ReadAll(m.Body); err != nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("behind the last part stands %q (%v)", rest, err)
	}
	return p, nil
}

func readPart(h textproto.MIMEHeader, r io.Reader) (seenPart, error) {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return seenPart{}, err
	}
	encoding := h.Get("Content-Transfer-Encoding")
	if encoding == "quoted-printable" {
		r = quotedprintable.NewReader(r)
	}
	body, err := io.ReadAll(r)
	if err != nil {
		return seenPart{}, err
	}
	if (encoding == "" || encoding == "7bit") && !text.IsASCII(body) {
		return seenPart{}, fmt.Errorf("8-bit octets in a part %s of 7 bit", kind)
	}
	p := seenPart{Type: kind, octets: body, header: h}
	switch {
	case strings.HasSuffix(kind, "delivery-status"):
		for group := range strings.SplitSeq(strings.TrimSuffix(string(body), "\r\n"), "\r\n\r\n") {
			m, err := mail.ReadMessage(strings.NewReader(group + "\r\n\r\n"))
			if err != nil {
				return p, fmt.Errorf("group %q: %w", group, err)
			}
			if rest, _ := io.ReadAll(m.Body); len(rest) > 0 {
				return p, fmt.Errorf("in group %q stands %q", group, rest)
			}
			p.Groups = append(p.Groups, flat(m.Header))
		}
	case strings.HasPrefix(kind, "message/"):
		m, err := mail.ReadMessage(bytes.NewReader(append(body, "\r\n"...)))
		if err != nil {
			return p, fmt.Errorf("%s: %w", kind, err)
		}
		p.Inner = flat(m.Header)
	default:
		p.Text = strings.ToValidUTF8(strings.ReplaceAll(string(body), "\r\n", "\n"), "\ufffd")
	}
	return p, nil
}

// readPython reads a mail with Python's email package, or skips the test.
func readPython(t *testing.T, eml []byte) *parsed {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("TEST_NO_SKIP") == "1" {
			t.Fatal("python3 is missing")
		}
		t.Skip("python3 is missing")
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/read.py")
	cmd.Stdin = bytes.NewReader(eml)
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	p := new(parsed)
	if err := json.Unmarshal(out, p); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return p
}

// wellFormed checks what holds for every mail there is: CRLF, short lines, no control characters outside the original.
func wellFormed(m *Mail) error {
	if !bytes.HasSuffix(m.Text, []byte("\r\n")) {
		return errors.New("does not end in CRLF")
	}
	for i, line := range bytes.Split(bytes.TrimSuffix(m.Text, []byte("\r\n")), []byte("\r\n")) {
		if len(line) > 998 || bytes.ContainsAny(line, "\r\n\x00") {
			return fmt.Errorf("line %d is long, or holds CR, LF or NUL: %.100q", i+1, line)
		}
	}
	if text.IsASCII(m.Text) == m.EightBit {
		return fmt.Errorf("EightBit is %v", m.EightBit)
	}
	header, _, _ := bytes.Cut(m.Text, []byte("\r\n\r\n"))
	if text.IsASCII(header) == m.SMTPUTF8 || !utf8.Valid(header) {
		return fmt.Errorf("SMTPUTF8 is %v", m.SMTPUTF8)
	}
	return nil
}
