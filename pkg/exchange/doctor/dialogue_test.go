package doctor

import (
	"bufio"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"relayd/pkg/status"
)

func TestReadReply(t *testing.T) {
	tests := []struct{ in, want, err string }{
		{"250 2.1.0 Sender OK\r\n", "250 2.1.0 Sender OK", ""},
		{"250\r\n", "250", ""},
		{"250 ok\n", "250 ok", ""},
		{"250-2.0.0 one\r\n250 2.0.0 two\r\n", "250 2.0.0 one two", ""},
		{"535 5.7.139 no\r\n", "535 5.7.139 no", ""},
		{"535 5.7.1399 no\r\n", "535 5.7.1399 no", ""}, // no enhanced code: RFC 3463 allows three digits
		{"250 9.1.0 no\r\n", "250 9.1.0 no", ""},
		{"250-one\r\n251 two\r\n", "", "protocol"},
		{"199 no\r\n", "", "protocol"},
		{"600 no\r\n", "", "protocol"},
		{"25\r\n", "", "protocol"},
		{"2x0 no\r\n", "", "protocol"},
		{"250+no\r\n", "", "protocol"},
		{"HTTP/1.1 400 Bad Request\r\n", "", "protocol: HTTP/1.1 400"},
		{"250 cut", "", "EOF"},
		{"", "", "EOF"},
		{strings.Repeat("250-x\r\n", 100), "", "more than 100 lines"},
		{"250 " + strings.Repeat("x", 4096) + "\r\n", "", "longer than 4096 octets"},
	}
	for _, tt := range tests {
		r, err := readReply(bufio.NewReaderSize(strings.NewReader(tt.in), maxReplyLine))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%.40q: got %v, want %q", tt.in, err, tt.err)
			}
			continue
		}
		if err != nil || r.String() != tt.want {
			t.Errorf("%.40q: got %q, %v, want %q", tt.in, r, err, tt.want)
		}
	}
}

func TestOffers(t *testing.T) {
	d := &dialogue{offered: []string{"", "PIPELINING", "AUTH LOGIN XOAUTH2", "STARTTLSX"}}
	for _, tt := range []struct {
		keyword, argument string
		want              bool
	}{
		{"PIPELINING", "", true}, {"AUTH", "", true}, {"AUTH", "XOAUTH2", true}, {"AUTH", "PLAIN", false}, {"STARTTLS", "", false},
	} {
		if got := d.offers(tt.keyword, tt.argument); got != tt.want {
			t.Errorf("%s %s: got %v", tt.keyword, tt.argument, got)
		}
	}
}

func TestWithhold(t *testing.T) {
	const secret = "0123456789abcdefghij"
	for text, want := range map[string]bool{
		"nothing": false, "x" + secret: true, secret[2:18]: true, secret[2:17]: false, "": false,
	} {
		if got := withhold(text, secret) != text; got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
	if withhold("a short one", "short") == "a short one" {
		t.Error("a short secret is one, too")
	}
	if withhold("text", "") != "text" {
		t.Error("no secret is in nothing")
	}
}

func FuzzReadReply(f *testing.F) {
	for _, seed := range []string{"250 2.1.0 OK\r\n", "250-a\r\n250 b\r\n", "334 \r\n", "421", "\x00\xff\r\n", "550 5.1.10 \x1b[2J\u202e\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := readReply(bufio.NewReaderSize(strings.NewReader(string(in)), maxReplyLine))
		if err == nil && (r.code < 200 || r.code > 599 || len(r.lines) == 0 || len(r.lines) > maxReplyLines) {
			t.Errorf("%q: got %+v", in, r)
		}
		if r.enhanced != (status.Enhanced{}) && r.enhanced[0] != 2 && r.enhanced[0] != 4 && r.enhanced[0] != 5 {
			t.Errorf("%q: got %v", in, r.enhanced)
		}
		shown := escape(r.String() + fmt.Sprint(err))
		for _, c := range shown {
			if c != ' ' && !unicode.IsPrint(c) && c != unicode.ReplacementChar {
				t.Errorf("%q: %q is shown", in, c)
			}
		}
	})
}
