package wire

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func TestParsePath(t *testing.T) {
	long := strings.Repeat("x", 64)
	for _, test := range []struct {
		in string
		ok bool
	}{
		{"<a@b>", true},
		{"<a.b+c=d!#$%&'*/?^_`{|}~-@b-c.example>", true},
		{"<" + long + "@b.example>", true},
		{"<" + long + "x@b.example>", false},
		{`<"a b"@c.example>`, true},
		{`<"a\"b\\c>@"@c.example>`, true},
		{`<""@c.example>`, false},
		{`<"a"b@c.example>`, false},
		{"<\"a\x01\"@c.example>", false},
		{"<\"a\\\x01\"@c.example>", false},
		{`<"a@c.example>`, false},
		{`<"a\`, false},
		{"<a@[192.0.2.1]>", true},
		{"<a@[IPv6:2001:db8::1]>", true},
		{"<a@[2001:db8::1]>", false},
		{"<a@[IPv6:192.0.2.1]>", false},
		{"<a@[192.0.2.1>", false},
		{"<a@[192.0.2.300]>", false},
		{"<a@[IPv6:fe80::1%eth0]>", false},
		{"<@x.example:a@b.example>", false}, // a source route
		{"<a@-b.example>", false},
		{"<a@b-.example>", false},
		{"<a@b..example>", false},
		{"<a@.example>", false},
		{"<a@b.example.>", false},
		{"<a@b_c.example>", false},
		{"<a@" + strings.Repeat("x", 63) + ".example>", true},
		{"<a@" + strings.Repeat("x", 64) + ".example>", false},
		{"<a@" + strings.Repeat("x.", 127) + "x>", true},
		{"<a@" + strings.Repeat("x.", 128) + "x>", false},
		{"<.a@b>", false}, {"<a.@b>", false}, {"<a..b@b>", false}, {"<@b>", false}, {"<a@>", false}, {"<a>", false}, {"<>", false},
		{"<a@b", false}, {"a@b", false}, {"<a b@c>", false}, {"<a@b c>", false}, {"< a@b>", false}, {"", false},
		{"<a\x00@b>", false}, {"<a@b\x00>", false}, {"<a@b\r\n>", false}, {"<a\xff@b>", false}, {"<a@\xff>", false},
	} {
		address, rest, err := parsePath(test.in)
		if (err == nil) != test.ok {
			t.Errorf("%q: got %q, %q, %v", test.in, address, rest, err)
		}
		if err == nil && "<"+address+">"+rest != test.in {
			t.Errorf("%q was read as %q and %q", test.in, address, rest)
		}
	}
}

func TestParseMail(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Mail
		err  error
	}{
		{"<a@b>", Mail{From: "a@b"}, nil},
		{"<>", Mail{}, nil},
		{"<a@b> SIZE=123 body=8bitmime RET=full ENVID=x+2By", Mail{From: "a@b", Size: 123, Body: "8BITMIME", Ret: "FULL", EnvID: "x+2By"}, nil},
		{"<j\u00fc@b> SMTPUTF8 AUTH=<>", Mail{From: "j\u00fc@b", UTF8: true}, nil},
		{"<j\u00fc@b>", Mail{}, ErrAddress},
		{"<a@b>SIZE=1", Mail{}, ErrArguments},
		{"<a@b>  SIZE=1", Mail{}, ErrArguments}, // one space
		{"<a@b> ", Mail{}, ErrArguments},
		{"<a@b> SIZE", Mail{}, ErrArguments},
		{"<a@b> SIZE=", Mail{}, ErrArguments},
		{"<a@b> SIZE=-1", Mail{}, ErrArguments},
		{"<a@b> SIZE=1 SIZE=1", Mail{}, ErrArguments},
		{"<a@b> BODY=9BIT", Mail{}, ErrArguments},
		{"<a@b> RET=SOME", Mail{}, ErrArguments},
		{"<a@b> ENVID=a=b", Mail{}, ErrArguments},
		{"<a@b> ENVID=+2b", Mail{}, ErrArguments}, // hexadecimal digits are upper case
		{"<a@b> ENVID=+2", Mail{}, ErrArguments},
		{"<a@b> ENVID=" + strings.Repeat("x", 101), Mail{}, ErrArguments},
		{"<a@b> SMTPUTF8=1", Mail{}, ErrArguments},
		{"<a@b> AUTH=a b", Mail{}, ErrArguments},
		{"<a@b> NOTIFY=NEVER", Mail{}, ErrArguments},
		{"<a@b> ENVID=\x01", Mail{}, ErrArguments},
		{"a@b", Mail{}, ErrArguments},
	} {
		got, err := ParseMail(test.in)
		if !errors.Is(err, test.err) || err == nil && got != test.want {
			t.Errorf("%q: got %+v, %v, want %+v, %v", test.in, got, err, test.want, test.err)
		}
	}
}

func TestParseRcpt(t *testing.T) {
	for _, test := range []struct {
		in   string
		utf8 bool
		want Rcpt
		err  error
	}{
		{"<a@b>", false, Rcpt{To: "a@b"}, nil},
		{"<a@b> NOTIFY=success,FAILURE,DELAY ORCPT=rfc822;x+40y", false, Rcpt{"a@b", "SUCCESS,FAILURE,DELAY", "rfc822;x+40y"}, nil},
		{"<a@b> NOTIFY=NEVER", false, Rcpt{To: "a@b", Notify: "NEVER"}, nil},
		{"<\u00fc@b>", true, Rcpt{To: "\u00fc@b"}, nil},
		{"<\u00fc@b>", false, Rcpt{}, ErrAddress},
		{"<>", false, Rcpt{}, ErrAddress},
		{"<a@b> NOTIFY=NEVER,SUCCESS", false, Rcpt{}, ErrArguments},
		{"<a@b> NOTIFY=DELAY,DELAY", false, Rcpt{}, ErrArguments},
		{"<a@b> NOTIFY=", false, Rcpt{}, ErrArguments},
		{"<a@b> ORCPT=x", false, Rcpt{}, ErrArguments},
		{"<a@b> ORCPT=;x", false, Rcpt{}, ErrArguments},
		{"<a@b> SIZE=1", false, Rcpt{}, ErrArguments},
		// What a client that unquotes and does not quote again would send (faults.md).
		{`<evil@x> NOTIFY=NEVER X="@allowed.example>`, false, Rcpt{}, ErrArguments},
	} {
		got, err := ParseRcpt(test.in, test.utf8)
		if !errors.Is(err, test.err) || err == nil && got != test.want {
			t.Errorf("%q: got %+v, %v, want %+v, %v", test.in, got, err, test.want, test.err)
		}
	}
}

func TestHelloName(t *testing.T) {
	for name, want := range map[string]bool{
		"mx.example.org": true, "[192.0.2.1]": true, "[IPv6:::1]": true, "localhost": false, "": false, "a..b": false,
		"m\u00fcller.example": false, "a.example ": false, "[::1]": false, "example.org.": false,
	} {
		if got := IsHelloName(name); got != want {
			t.Errorf("%q: got %v", name, got)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		pattern, address string
		want             bool
	}{
		{"a@b.c", "A@B.c", true}, {"*@b.c", "x@B.C", true}, {"*", "", true},
		{"*@b.c", "x@a.b.c", false}, {"a@b.c", "b@b.c", false}, {"*@b.c", "", false},
	} {
		if got := Matches(test.pattern, test.address); got != test.want {
			t.Errorf("%s, %s: got %v", test.pattern, test.address, got)
		}
	}
}

func FuzzCommands(f *testing.F) {
	f.Add("<a@b> SIZE=1 BODY=7BIT")
	f.Add(`<"a\" b"@[IPv6:::1]> NOTIFY=SUCCESS ORCPT=rfc822;a+2B`)
	f.Add("<> SMTPUTF8 RET=HDRS ENVID=x AUTH=<>")
	f.Fuzz(func(t *testing.T, s string) {
		check := func(address string) {
			if address == "" {
				return
			}
			if !ValidAddress(address) || !utf8.ValidString(address) || !strings.HasPrefix(s, "<"+address+">") {
				t.Errorf("%q was read as address %q", s, address)
			}
			for _, r := range address {
				if r < ' ' || r == 0x7f {
					t.Errorf("%q has a control character", address)
				}
			}
		}
		if m, err := ParseMail(s); err == nil {
			check(m.From)
			if m.Size < 0 || !m.UTF8 && !isASCII(m.From) {
				t.Errorf("%q: %+v", s, m)
			}
		}
		for _, utf8 := range []bool{false, true} {
			if r, err := ParseRcpt(s, utf8); err == nil {
				check(r.To)
				if r.To == "" {
					t.Errorf("%q: no recipient", s)
				}
			}
		}
		IsHelloName(s)
	})
}

// read takes a whole body by blocks and returns it and what was not consumed.
func read(r io.Reader, size int) (body, rest []byte, err error) {
	in := bufio.NewReaderSize(r, size)
	d := NewDotReader(in)
	for {
		block, more, err := d.Next()
		body = append(body, block...)
		if err != nil {
			return body, nil, err
		}
		if !more {
			rest, err := io.ReadAll(in)
			return body, rest, err
		}
		if len(block) == 0 {
			return body, nil, errors.New("an empty block")
		}
	}
}

// The same, a byte at a time, from the words of RFC 5321.
func slowRead(s []byte) (body, rest []byte, ok bool) {
	for line := true; ; {
		if line && bytes.HasPrefix(s, []byte(".\r\n")) {
			return body, s[3:], true
		}
		if line && len(s) > 0 && s[0] == '.' {
			s = s[1:]
		}
		if len(s) == 0 {
			return body, nil, false
		}
		body, s = append(body, s[0]), s[1:]
		line = bytes.HasSuffix(body, []byte("\r\n"))
	}
}

func FuzzDotReader(f *testing.F) {
	for _, s := range []string{
		".\r\n", "a\r\n.\r\n", "..\r\n.\r\nQUIT\r\n", "a\n.\n\r\n.\r\n", "\r\r\n.\r\n", "\n.\r\n.\r\n.\r\n", "..", ".\r", ".\r.\r\n.\r\n", "..\r\n..\r\n.\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		want, wantRest, ok := slowRead(s)
		for name, r := range map[string]io.Reader{
			"whole": bytes.NewReader(s), "one by one": iotest.OneByteReader(bytes.NewReader(s)), "half": iotest.HalfReader(bytes.NewReader(s)),
		} {
			got, rest, err := read(r, 16)
			if (err == nil) != ok || ok && (!bytes.Equal(got, want) || !bytes.Equal(rest, wantRest)) {
				t.Errorf("%s: %q: got %q, %q, %v, want %q, %q, %v", name, s, got, rest, err, want, wantRest, ok)
			}
		}
	})
}

func FuzzStuffing(f *testing.F) {
	f.Add([]byte("a\r\n.b\r\n..\r\n"))
	f.Add([]byte(".\r\n.\n.\r.\r\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		body = append(body, "\r\n"...)
		stuffed := bytes.ReplaceAll(body, []byte("\r\n."), []byte("\r\n.."))
		if body[0] == '.' {
			stuffed = append([]byte("."), stuffed...)
		}
		got, rest, err := read(strings.NewReader(string(stuffed)+".\r\nNEXT"), 32)
		if err != nil || !bytes.Equal(got, body) || string(rest) != "NEXT" {
			t.Errorf("%q: got %q, %q, %v", body, got, rest, err)
		}
	})
}

func FuzzContent(f *testing.F) {
	f.Add([]byte("From: a@b\r\nX: y\r\n\r\nbody\n"), 7)
	f.Add([]byte("A: b\n\nbody"), 1)
	f.Add([]byte("\r\nbody"), 2)
	f.Fuzz(func(t *testing.T, s []byte, step int) {
		step = max(1, step%100)
		c := NewContent(50, true, 200, 0)
		for rest := s; len(rest) > 0; {
			n := min(step, len(rest))
			c.Write(rest[:n])
			rest = rest[n:]
		}
		sum := sha256.Sum256(s)
		if c.Size != int64(len(s)) || c.SHA256() != hex.EncodeToString(sum[:]) {
			t.Errorf("%q: size %d", s, c.Size)
		}
		if len(s) <= 200 && !bytes.Equal(c.Raw, s) || len(s) > 200 && c.Raw != nil {
			t.Errorf("%q: kept %q", s, c.Raw)
		}
		bare := bytes.Contains(append([]byte("x"), bytes.ReplaceAll(s, []byte("\r\n"), nil)...), []byte("\n"))
		if c.BareLF != bare {
			t.Errorf("%q: bare LF %v", s, c.BareLF)
		}
		want := s
		for i := range s {
			if s[i] == '\n' && (i == 0 || s[i-1] == '\n' || s[i-1] == '\r' && (i == 1 || s[i-2] == '\n')) {
				want = s[:i+1]
				break
			}
		}
		if !bytes.Equal(c.Header, want[:min(len(want), 51)]) {
			t.Errorf("%q: header %q, want %q", s, c.Header, want)
		}
	})
}

func TestFields(t *testing.T) {
	all := Fields([]byte(" lost\r\nFrom: a@b\r\nno field\r\nTo : c@d,\r\n\te@f\nX:\r\nx: 2\r\n\r\n"))
	want := []Field{{"From", "a@b"}, {"To", "c@d,\te@f"}, {"X", ""}, {"x", "2"}}
	if len(all) != len(want) {
		t.Fatalf("got %q", all)
	}
	for i := range want {
		if all[i] != want[i] {
			t.Errorf("field %d: got %q, want %q", i, all[i], want[i])
		}
	}
	if Value(all, "FROM") != "a@b" || Value(all, "Y") != "" {
		t.Error("Value does not find, or invents")
	}
}

func TestAddresses(t *testing.T) {
	for list, want := range map[string]string{
		"a@b":                 "a@b",
		"\"x, y\" <a@b>, c@d": "a@b c@d",
		"=?ISO-2022-JP?B?GyRCRnxLXBsoQg==?= <a@b>": "a@b",
		"=?x-unknown?Q?=FF?= <a@b>":                "a@b",
		"J\xfcrgen <a@b>":                          "a@b",
		"a@b (comment)":                            "a@b",
		"":                                         "",
		"a@b <a@b>":                                "",
		"nobody":                                   "",
	} {
		if got := strings.Join(Addresses(list), " "); got != want {
			t.Errorf("%q: got %q, want %q", list, got, want)
		}
	}
}

func FuzzAddresses(f *testing.F) {
	f.Add("\"x\" <a@b>, =?ISO-2022-JP?B?GyRCRnxLXBsoQg==?= <c@d>")
	f.Fuzz(func(t *testing.T, s string) {
		for _, a := range Addresses(s) {
			if !strings.Contains(a, "@") {
				t.Errorf("%q: address %q", s, a)
			}
		}
		Fields([]byte(s))
	})
}
