package bounce

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"relayd/pkg/envelope"
)

// metered counts what is read of an endless message.
type metered struct {
	r io.Reader
	n int
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += n
	return n, err
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestReadsNoMoreThanItReturns(t *testing.T) {
	for _, row := range []struct {
		name    string
		env     envelope.Envelope
		prefix  string
		atMost  int
		header  int
		returns bool // whole
	}{
		{"the header", envelope.Envelope{Size: 1 << 30}, "Subject: x\r\n\r\n", 4 << 10, 12, false},
		{"no header at all", envelope.Envelope{Size: 1 << 30}, "\r\n\r\n", 4 << 10, 0, false},
		{"an endless header", envelope.Envelope{Size: 1 << 30}, "Subject: y\r\nX-Long: ", 2 * maxHeader, 12, false},
		{"full, but large", envelope.Envelope{Size: MaxWhole + 1, Return: "FULL"}, "Subject: x\r\n\r\n", 4 << 10, 12, false},
		{"full, but long lines", envelope.Envelope{Size: 2000, Return: "FULL", LongLines: true}, "Subject: x\r\n\r\n", 4 << 10, 12, false},
		{"full, larger than it says", envelope.Envelope{Size: 10, Return: "FULL"}, "Subject: x\r\n\r\n", MaxWhole + 1, 12, false},
	} {
		body := &metered{r: io.MultiReader(strings.NewReader(row.prefix), endless{})}
		o, err := ReadOriginal(&row.env, body)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if body.n > row.atMost || len(o.header) != row.header || (o.whole != nil) != row.returns {
			t.Errorf("%s: read %d, header %d, whole %v; want at most %d, %d, %v", row.name, body.n, len(o.header), o.whole != nil, row.atMost, row.header, row.returns)
		}
	}
}

func TestReadOriginal(t *testing.T) {
	for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.DataErrReader, iotest.HalfReader} {
		o, err := ReadOriginal(&envelope.Envelope{Size: int64(len(message))}, wrap(strings.NewReader(message)))
		if want, _, _ := strings.Cut(message, "\r\n\r\n"); err != nil || string(o.header) != want+"\r\n" || o.whole != nil {
			t.Errorf("header: %v, %q", err, o.header)
		}
		o, err = ReadOriginal(&envelope.Envelope{Size: int64(len(message)), Return: "full"}, wrap(strings.NewReader(message)))
		if err != nil || string(o.whole) != message {
			t.Errorf("whole: %v, %q", err, o.whole)
		}
	}
	for _, ret := range []string{"", "FULL"} { // a damaged message is an error, not a shorter one
		body := io.MultiReader(strings.NewReader("Subject: x\r\n"), iotest.ErrReader(envelope.ErrCorrupt))
		if _, err := ReadOriginal(&envelope.Envelope{Size: 100, Return: ret}, body); !errors.Is(err, envelope.ErrCorrupt) {
			t.Errorf("RET=%s: got %v", ret, err)
		}
	}
	o, err := ReadOriginal(&envelope.Envelope{Size: 100}, strings.NewReader("Subject: x\r\nTo: y\r\n"))
	if err != nil || string(o.header) != "Subject: x\r\nTo: y\r\n" {
		t.Errorf("no body: %v, %q", err, o.header)
	}
}

func TestLongHeaderEndsWithAField(t *testing.T) {
	long := "P: " + strings.Repeat("p", 40) + "\r\n" + // so that the limit is where a field is folded
		strings.Repeat("X-Field: "+strings.Repeat("y", 80)+"\r\n\tfolded\r\n", 1000)
	o, err := ReadOriginal(&envelope.Envelope{Size: 1 << 20}, strings.NewReader(long+"\r\nbody"))
	if err != nil || len(o.header) > maxHeader || len(o.header) < maxHeader-200 || !bytes.HasSuffix(o.header, []byte("folded\r\n")) {
		t.Errorf("%v, %d octets, ends %q", err, len(o.header), o.header[max(0, len(o.header)-20):])
	}
	if o.value("X-Field") != strings.Repeat("y", 80)+"\tfolded" {
		t.Errorf("got %q", o.value("X-Field"))
	}
}

func TestAutoReplied(t *testing.T) {
	for header, want := range map[string]bool{
		"Auto-Submitted: auto-replied\r\n":                          true,
		"auto-submitted: Auto-Replied (vacation)\r\n":               true,
		"Auto-Submitted:\r\n auto-replied; owner-email=\"a@b\"\r\n": true,
		"Auto-Submitted: auto-generated\r\n":                        false, // a cron job has a person behind it
		"Auto-Submitted: no\r\n":                                    false,
		"Subject: auto-replied\r\n":                                 false,
		"":                                                          false,
	} {
		o, err := ReadOriginal(&envelope.Envelope{}, strings.NewReader("From: a@b\r\n"+header+"\r\nAuto-Submitted: auto-replied\r\n"))
		if err != nil || o.AutoReplied() != want {
			t.Errorf("%q: got %v, want %v (%v)", header, o.AutoReplied(), want, err)
		}
	}
}

func TestReturnedPart(t *testing.T) {
	const body = "\r\nHello\r\n"
	for _, row := range []struct {
		name, to, text, ret string
		kind, encoding      string
		exact               bool // the part's octets are the text, or its header
	}{
		{"plain", "a@b.example", "Subject: x\r\n" + body, "FULL", "message/rfc822", "7bit", true},
		{"8-bit body", "a@b.example", "Subject: x\r\n\r\nMüller\r\n", "FULL", "message/rfc822", "8bit", true},
		{"headers asked for", "a@b.example", "Subject: x\r\n" + body, "HDRS", "text/rfc822-headers", "7bit", true},
		{"nothing asked for", "a@b.example", "Subject: x\r\n" + body, "", "text/rfc822-headers", "7bit", true},
		{"utf-8 header, old reader", "a@b.example", "Subject: Müller\r\n" + body, "FULL", "text/rfc822-headers", "quoted-printable", true},
		{"utf-8 header, new reader", "ä@b.example", "Subject: Müller\r\n" + body, "FULL", "message/global", "8bit", true},
		{"utf-8 header only, new reader", "ä@b.example", "Subject: Müller\r\n" + body, "", "message/global-headers", "8bit", true},
		{"latin-1 header", "ä@b.example", "Subject: M\xfcller\r\n" + body, "FULL", "text/rfc822-headers", "quoted-printable", true},
		{"long line in the body", "a@b.example", "Subject: x\r\n\r\n" + strings.Repeat("x", 999) + "\r\n", "FULL", "text/rfc822-headers", "7bit", true},
		{"long line in the header", "a@b.example", "Subject: x\r\nY: " + strings.Repeat("x", 2000) + "\r\n" + body, "", "text/rfc822-headers", "quoted-printable", true},
		{"NUL in the body", "a@b.example", "Subject: x\r\n\r\n\x00\r\n", "FULL", "text/rfc822-headers", "7bit", true},
		{"bare CR and LF", "a@b.example", "Subject: x\r\n\r\na\rb\nc\r\n", "FULL", "text/rfc822-headers", "7bit", true},
		{"bare LF in the header", "a@b.example", "Subject: x\nBcc: y@z.example\r\n" + body, "", "text/rfc822-headers", "quoted-printable", false},
		{"no line break at the end", "a@b.example", "Subject: x\r\n\r\nend", "FULL", "message/rfc822", "7bit", true},
	} {
		r := report(row.text, notFound, 1)
		r.To = []envelope.Address{envelope.Address(row.to)}
		r.Envelope.Return = row.ret
		p := open(t, Failure, r.with(t, row.text))
		last := p.Parts[2]
		if last.Type != row.kind || last.header.Get("Content-Transfer-Encoding") != row.encoding {
			t.Errorf("%s: got %s, %s; want %s, %s", row.name, last.Type, last.header.Get("Content-Transfer-Encoding"), row.kind, row.encoding)
		}
		want := row.text
		if strings.HasSuffix(row.kind, "headers") {
			want = string(r.Original.header)
		}
		if row.exact && string(last.octets) != want {
			t.Errorf("%s: got %q, want %q", row.name, last.octets, want)
		}
	}
}

func TestBoundaryOccursNowhere(t *testing.T) {
	text := "Subject: x\r\n\r\n--=_" + string(own) + ".0\r\n\r\n--=_" + string(own) + ".1--\r\nsmuggled\r\n"
	r := report(text, notFound, 1)
	r.Envelope.Return = "FULL"
	p := open(t, Failure, r.with(t, text))
	if len(p.Parts) != 3 || string(p.Parts[2].octets) != text {
		t.Errorf("%d parts, the last %q", len(p.Parts), p.Parts[len(p.Parts)-1].octets)
	}
}
