package submission

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"

	"github.com/emersion/go-sasl"
	"pgregory.net/rapid"

	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/status"
)

func TestReadReply(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	tests := []struct {
		name, wire string
		want       string // as String gives it; "" where err is set
		err        error
	}{
		{"plain", "250 OK\r\n", "250 OK", nil},
		{"enhanced", "550 5.1.10 Recipient not found\r\n", "550 5.1.10 Recipient not found", nil},
		{"bare LF", "250 OK\n", "250 OK", nil},
		{"code alone", "354\r\n", "354", nil},
		{"enhanced alone", "250 2.0.0\r\n", "250 2.0.0", nil},
		{"lines", "550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\r\n", "550 5.7.1 one two three", nil},
		{"lines end with a bare code", "250-a\r\n250\r\n", "250 a", nil},
		{"stray spaces", "450  4.2.0  a \r\n", "450 4.2.0  a", nil}, // no code right behind the separator: all is text
		{"not an enhanced code", "550 1.2.3 a\r\n", "550 1.2.3 a", nil},
		{"nor this", "550 5.1 a\r\n", "550 5.1 a", nil},
		{"nor this", "550 5.1.2.3 a\r\n", "550 5.1.2.3 a", nil},
		{"nor this", "550 5.1.1234 a\r\n", "550 5.1.1234 a", nil},
		{"nor this", "550 5..1 a\r\n", "550 5..1 a", nil},
		{"nor this", "550 5.1. a\r\n", "550 5.1. a", nil},
		{"escape sequences", "550 \x1b[2J\x00\x7f\u0085\u2028 \\ é\r\n", `550 \x1b[2J\x00\x7f\u0085\u2028 \ é`, nil},
		{"CR inside", "550 a\rb\r\n", `550 a\x0db`, nil},
		{"replacement character itself is kept apart from bad UTF-8", "550 \xff\ufffd\r\n", `550 \xff` + "\ufffd", nil},
		{"a line at the limit", "250 " + x(maxReplyLine-6) + "\r\n", "250 " + x(maxText) + "…", nil},
		{"a line past it", "250 " + x(3*maxReplyLine) + "\r\n", "250 " + x(maxText) + "…", nil},
		{"as many lines as may be", strings.Repeat("250-x\r\n", maxReplyLines-1) + "250 x\r\n", "250" + strings.Repeat(" x", maxReplyLines), nil},

		{"too many lines", strings.Repeat("250-x\r\n", maxReplyLines) + "250 x\r\n", "", errProtocol},
		{"too long a line", "250 " + x(maxReply) + "\r\n", "", errProtocol},
		{"too long in all", strings.Repeat("250-"+x(4000)+"\r\n", 17) + "250 x\r\n", "", errProtocol},
		{"codes differ", "250-a\r\n550 b\r\n", "", errProtocol},
		{"1yz", "150 a\r\n", "", errProtocol},
		{"6yz", "650 a\r\n", "", errProtocol},
		{"letters", "25o a\r\n", "", errProtocol},
		{"no separator", "250OK\r\n", "", errProtocol},
		{"empty line", "\r\n", "", errProtocol},
		{"short", "25\r\n", "", errProtocol},
		{"nothing", "", "", io.EOF},
		{"half a line", "250 O", "", io.ErrUnexpectedEOF},
		{"half a reply", "250-O\r\n", "", io.ErrUnexpectedEOF},
		{"half a long line", "250 " + x(2*maxReplyLine), "", io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		for name, wire := range map[string]io.Reader{"": strings.NewReader(tt.wire), ", slowly": iotest.OneByteReader(strings.NewReader(tt.wire))} {
			t.Run(tt.name+name, func(t *testing.T) {
				r, err := readReply(bufio.NewReaderSize(wire, maxReplyLine), nil)
				switch {
				case tt.err != nil && !errors.Is(err, tt.err):
					t.Errorf("got %v, want %v", err, tt.err)
				case tt.err == nil && (err != nil || r.String() != tt.want):
					t.Errorf("got %q, %v, want %q", r, err, tt.want)
				}
			})
		}
	}
}

// TestReadReplyLeavesTheRest: pipelined replies come one by one.
func TestReadReplyLeavesTheRest(t *testing.T) {
	br := bufio.NewReaderSize(strings.NewReader("250-a\r\n250 b\r\n550 c\r\n354 d\r\n"), maxReplyLine)
	var buf []byte
	for _, want := range []string{"250 a b", "550 c", "354 d"} {
		r, err := readReply(br, buf)
		if buf = r.lines; err != nil || r.String() != want {
			t.Errorf("got %q, %v, want %q", r, err, want)
		}
	}
}

// FuzzReadReply: bounded, one line, printable, and the same however it arrives.
func FuzzReadReply(f *testing.F) {
	for _, seed := range []string{"250 OK\r\n", "250-2.1.0 a\r\n250 2.1.0 b\r\n", "550 5.7.1 \x1b\xff\u202e\r\n", "334 eyJz\r\n", "250-\r\n250\n", "999 x\r\n",
		"554 5.2.252 SendAsDenied; a\x00@x not allowed\r\n", "535-5.7.139 a\r\n535 5.7.139 b\r\n", "421\r\n", "599 \x07\r\n"} {
		f.Add([]byte(seed))
	}
	rows := catalogue.Default()
	client := &Client{Catalogue: func() *catalogue.Catalogue { return rows }, Unknown: func(e *status.Error) {
		if strings.ContainsFunc(e.Text, func(c rune) bool { return !unicode.IsPrint(c) }) || len(e.Text) > maxText+20 {
			f.Errorf("shown: %q", e.Text)
		}
	}}
	f.Fuzz(func(t *testing.T, wire []byte) {
		r, err := readReply(bufio.NewReaderSize(bytes.NewReader(wire), maxReplyLine), nil)
		again, err2 := readReply(bufio.NewReaderSize(iotest.HalfReader(bytes.NewReader(wire)), maxReplyLine), nil)
		if fmt.Sprint(err) != fmt.Sprint(err2) || r.code != again.code || !bytes.Equal(r.lines, again.lines) {
			t.Fatalf("differs by how it arrives: %q, %v and %q, %v", r, err, again, err2)
		}
		if err != nil {
			for _, c := range err.Error() {
				if !unicode.IsPrint(c) {
					t.Fatalf("%q in an error", c)
				}
			}
			return
		}
		s := r.String()
		if r.code < 200 || r.code > 599 || !utf8.ValidString(s) || len(s) > maxText+20 || len(r.lines) > maxReply {
			t.Fatalf("got code %d, %d octets of text", r.code, len(s))
		}
		for _, c := range s {
			if c != ' ' && !unicode.IsPrint(c) {
				t.Fatalf("%q in %q", c, s)
			}
		}
		parseExtensions(r.lines)
		for _, stage := range catalogue.Stages() {
			session := &Session{client: client}
			switch e := session.verdict(stage, r); {
			case r.code >= 400 && (e == nil || e.Rule == "" || e.Text != r.text()):
				t.Fatalf("%s: got %v", stage, e)
			case r.code >= 300 && r.code < 400 && !session.broken:
				t.Fatalf("%s: %s goes on", stage, r)
			}
		}
	})
}

func TestParseExtensions(t *testing.T) {
	tests := []struct {
		lines string
		want  extensions
	}{
		{"", extensions{}},
		{"STARTTLS", extensions{}}, // the first line is a greeting
		{"hi\nstarttls\nPipelining\nSIZE 157286400\n8BITMIME\nSMTPUTF8\nDSN\nAUTH LOGIN XOAUTH2",
			extensions{startTLS: true, xoauth2: true, pipelining: true, size: true, eightBit: true, utf8: true, dsn: true, maxSize: 157286400}},
		{"hi\nSIZE\nAUTH LOGIN\nXOAUTH2", extensions{size: true}},
		{"hi\nSIZE 0", extensions{size: true}},
		{"hi\nSIZE -5", extensions{size: true}},
		{"hi\nSIZE 99999999999999999999", extensions{size: true}},
		{"hi\nAUTH=XOAUTH2\nSTARTTLSX", extensions{}},
	}
	for _, tt := range tests {
		if got := parseExtensions([]byte(tt.lines)); got != tt.want {
			t.Errorf("%q: got %+v, want %+v", tt.lines, got, tt.want)
		}
	}
}

// unstuff is RFC 5321 section 4.5.2 from the receiver's side, strict about CRLF: the text up to the final dot, and
// whether nothing follows it.
func unstuff(wire []byte) (text []byte, ok bool) {
	lineStart := true
	for i := 0; i < len(wire); i++ {
		if lineStart && wire[i] == '.' {
			if bytes.HasPrefix(wire[i:], []byte(".\r\n")) {
				return text, i+3 == len(wire)
			}
			i++
		}
		if i == len(wire) {
			return text, false
		}
		text = append(text, wire[i])
		lineStart = bytes.HasSuffix(text, []byte("\r\n"))
	}
	return text, false
}

func TestStuffing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOf(rapid.SampledFrom([]byte("..\r\n\r\nx"))).Draw(t, "text")
		var s stuffer
		var wire []byte
		for rest := text; len(rest) > 0; { // in any blocks
			n := rapid.IntRange(1, len(rest)).Draw(t, "block")
			wire = s.append(wire, rest[:n])
			rest = rest[n:]
		}
		wire = s.append(wire, nil)
		want := text
		if len(text) > 0 && !bytes.HasSuffix(text, []byte("\r\n")) {
			want = append(bytes.Clone(text), "\r\n"...)
		}
		if got, ok := unstuff(s.end(wire)); !ok || !bytes.Equal(got, want) {
			t.Fatalf("%q goes out as %q and arrives as %q", text, s.end(wire), got)
		}
	})
}

func TestXOAUTH2(t *testing.T) {
	x := &xoauth2{user: "a@contoso.com", token: "tok"}
	mech, ir, err := x.Start()
	if mech != "XOAUTH2" || ir != nil || err != nil {
		t.Errorf("got %q, %q, %v: there must be no initial response", mech, ir, err)
	}
	var client sasl.Client = x
	for i, want := range []string{"user=a@contoso.com\x01auth=Bearer tok\x01\x01", ""} {
		if got, err := client.Next([]byte(`{"status":"401"}`)); err != nil || got == nil || string(got) != want {
			t.Errorf("answer %d: got %q, %v, want %q", i, got, err, want)
		}
	}
	if x.challenge != `{"status":"401"}` {
		t.Errorf("got challenge %q", x.challenge)
	}
	if got, err := client.Next(nil); err == nil {
		t.Errorf("a third challenge is answered %q", got)
	}
}
