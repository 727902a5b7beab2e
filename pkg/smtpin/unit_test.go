package smtpin

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"go.uber.org/zap"

	"relayd/pkg/status"
)

func TestReply(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"ours", status.New(452, status.Enhanced{4, 3, 1}, "full"), "452 [4 3 1] full"},
		{"wrapped", fmt.Errorf("put: %w", refuse(reasonSize, 552, status.Enhanced{5, 3, 4}, "big")), "552 [5 3 4] big"},
		{"a plain error is temporary and keeps its secrets", errors.New("open /secret"), "451 [4 3 0] internal error, try again"},
		{"no reply code", status.New(0, status.Enhanced{}, "x"), "451 [4 3 0] internal error, try again"},
		{"a success is no error", status.New(250, status.Enhanced{2, 0, 0}, "x"), "451 [4 3 0] internal error, try again"},
		{"the two codes must agree", status.New(451, status.Enhanced{5, 0, 0}, "x"), "451 [0 0 0] x"},
		{"controls and 8-bit", status.New(550, status.Enhanced{5, 1, 1}, "a\r\nb\x00é"), "550 [5 1 1] a??b???"},
		{"length", status.New(550, status.Enhanced{5, 1, 1}, "%s", strings.Repeat("x", 2000)), "550 [5 1 1] " + strings.Repeat("x", maxReplyText)},
	}
	for _, tt := range tests {
		r := reply(status.From(tt.err))
		if got := fmt.Sprintf("%d %v %s", r.Code, r.EnhancedCode, r.Message); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestWhyOf(t *testing.T) {
	if got := whyOf(fmt.Errorf("x: %w", bySender(errors.New("y")))); got != reasonSender {
		t.Errorf("got %s", got)
	}
	if got := whyOf(errors.New("x")); got != reasonQueue {
		t.Errorf("a foreign error: got %s", got)
	}
	if bySender(nil) != nil {
		t.Error("bySender(nil) is an error")
	}
}

func TestSmallParsers(t *testing.T) {
	for s, want := range map[string]bool{"": true, "a+2Bb": true, "a+2bb": false, "+": false, "+2": false, "+2B": true, "a=b": false, "a b": false, "a\x7f": false, "é": false} {
		if got := isXtext(s); got != want {
			t.Errorf("isXtext(%q) = %v", s, got)
		}
	}
	for s, want := range map[string]bool{"NEVER": true, "SUCCESS": true, "DELAY,SUCCESS,FAILURE": true, "": false, "SUCCESS,": false, "SUCCESS,SUCCESS": false, "NEVER,DELAY": false, "X": false} {
		if got := isNotify(s); got != want {
			t.Errorf("isNotify(%q) = %v", s, got)
		}
	}
	for s, want := range map[string]int64{"0": 0, "12": 12, "9223372036854775807": 1<<63 - 1, "": -1, "-1": -1, "+1": -1, "1k": -1, "9223372036854775808": -1} {
		got, ok := parseSize(s)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("parseSize(%q) = %d, %v", s, got, ok)
		}
	}
	if len(verbNames) != int(verbs) {
		t.Error("a verb has no name")
	}
	for v := verbHELO; v < verbHTTP; v++ {
		if parseVerb([]byte(strings.ToLower(v.String()))) != v {
			t.Errorf("%v is not read", v)
		}
	}
}

func TestLoginServer(t *testing.T) {
	var got string
	l := &loginServer{authenticate: func(u, p string) error { got = u + "/" + p; return nil }}
	for i, step := range []struct {
		response  []byte
		challenge string
		done      bool
	}{{nil, "Username:", false}, {[]byte("u"), "Password:", false}, {[]byte("p"), "", true}} {
		challenge, done, err := l.Next(step.response)
		if string(challenge) != step.challenge || done != step.done || err != nil {
			t.Errorf("step %d: %q, %v, %v", i, challenge, done, err)
		}
	}
	if got != "u/p" {
		t.Errorf("got %q", got)
	}
	if _, _, err := l.Next(nil); !errors.Is(err, sasl.ErrUnexpectedClientResponse) {
		t.Errorf("behind the end: %v", err)
	}
}

// A mechanism's own error is a 501, not the 454 go-smtp would make of it; a reply of ours stays.
func TestExchangeErrors(t *testing.T) {
	ours := &smtp.SMTPError{Code: 535}
	for _, tt := range []struct {
		err  error
		code int
	}{{errors.New("x"), 501}, {ours, 535}} {
		e := exchange{&loginServer{step: 2, authenticate: func(string, string) error { return tt.err }}}
		_, _, err := e.Next([]byte("p"))
		var got *smtp.SMTPError
		if !errors.As(err, &got) || got.Code != tt.code {
			t.Errorf("%v: got %v, want %d", tt.err, err, tt.code)
		}
	}
}

func TestSettingsDefaults(t *testing.T) {
	set, err := newSettings(Settings{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := set.Listener
	if l.MaxConnections != 1000 || l.MaxConnectionsPerIP != 50 || l.CommandTimeout.Minutes() != 5 || l.Auth != AuthNone ||
		set.Limits != (Limits{35 << 20, 128 << 10, 500, 50}) || l.MinTLS != 0x0303 || l.TLS != TLSNone {
		t.Errorf("got %+v, %+v", l, set.Limits)
	}
	for addr, want := range map[string]bool{"127.0.0.9": true, "::1": true, "10.0.0.1": false, "::2": false} {
		if got := set.trusts(netip.MustParseAddr(addr)); got != want {
			t.Errorf("trusts(%s) = %v", addr, got)
		}
	}
	set, err = newSettings(Settings{Listener: ListenerOptions{AllowNetworks: []netip.Prefix{}}, Clients: []Client{{}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if set.trusts(netip.MustParseAddr("127.0.0.1")) || set.Listener.Auth != AuthOptional {
		t.Error("an empty list allows nobody; with clients AUTH is optional")
	}
}

func TestClientSenders(t *testing.T) {
	c := newClient(Client{Username: "erp", Senders: []string{"Erp@Contoso.com", "*@Sub.contoso.com"}}, nil)
	for a, want := range map[string]bool{
		"erp@contoso.com": true, "ERP@contoso.com": true, "x@sub.contoso.com": true,
		"x@contoso.com": false, "x@a.sub.contoso.com": false, `"x@sub.contoso.com"@evil.com`: false, "": false,
	} {
		r, err := parseMail("MAIL FROM:<" + a + ">")
		if err != nil {
			t.Fatal(err)
		}
		if got := c.maySend(r.path) == nil; got != want {
			t.Errorf("maySend(%s) = %v", a, got)
		}
	}
	if nobody := newClient(Client{Username: "x"}, nil); nobody.maySend("a@b") == nil {
		t.Error("a client without senders may send as anybody")
	}
}

// FuzzParams: what is accepted reads back as itself, and no error is permanent by accident of its kind.
func FuzzParams(f *testing.F) {
	for _, s := range []string{
		"MAIL FROM:<a@b.c> SIZE=1 BODY=8BITMIME RET=FULL ENVID=x AUTH=<>", `RCPT TO:<"evil@x> NOTIFY=NEVER X="@allowed.com>`,
		"RCPT TO: a@b.c NOTIFY=SUCCESS,DELAY ORCPT=utf-8;é", "MAIL FROM:<> SMTPUTF8", "MAIL", "BDAT 1 LAST",
	} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, line string, utf8 bool) {
		m, err := parseMail(line)
		checkRefusal(t, err)
		if err == nil && m.path != "" {
			again, err := parseMail("MAIL FROM:<" + string(m.path) + "> SMTPUTF8")
			if err != nil || again.path != m.path {
				t.Fatalf("%q reads back as %q, %v", m.path, again.path, err)
			}
		}
		r, err := parseRcpt(line, utf8)
		checkRefusal(t, err)
		if err == nil && (r.Address == "" || strings.ContainsAny(string(r.Address)+r.Notify+r.ORCPT, "\r\n ") && !strings.Contains(string(r.Address), `"`)) {
			t.Fatalf("%q gives %+v", line, r)
		}
		if size, _, ok := parseBDAT(line); ok && size < 0 {
			t.Fatalf("BDAT of %d", size)
		}
	})
}

func checkRefusal(t *testing.T, err error) {
	if err == nil {
		return
	}
	if _, ok := errors.AsType[*refusal](err); !ok {
		t.Fatalf("%v carries no reply", err)
	}
}

// small reads give the same message.
func TestBodyReadsOfAnySize(t *testing.T) {
	for _, size := range []int{1, 2, 3, 4, 5, 7, 1000} {
		g := &guard{body: new(body), timeout: 1, in: []byte("a\nb\r\n..c\r\n.\r\nQUIT")}
		b := g.body
		b.g, b.lines.Dots = g, true
		var got strings.Builder
		buf := make([]byte, size)
		for {
			n, err := b.Read(buf)
			got.Write(buf[:n])
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if got.String() != "a\r\nb\r\n.c\r\n" || string(g.in) != "QUIT" {
			t.Errorf("by %d: got %q, rest %q", size, got.String(), g.in)
		}
	}
}

// Devices of the days of TLS 1.0 exchange keys by RSA, which Go has given up by default; others must not get it back.
func TestOldCipherSuites(t *testing.T) {
	cert, key, _ := writePair(t, t.TempDir(), "relay.example")
	for version, want := range map[uint16]bool{tls.VersionTLS10: true, tls.VersionTLS11: true, tls.VersionTLS12: false} {
		c, err := newTLSConfig(&ListenerOptions{TLS: TLSImplicit, CertFile: cert, KeyFile: key, MinTLS: version}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(c.CipherSuites, tls.TLS_RSA_WITH_AES_128_CBC_SHA); got != want {
			t.Errorf("from TLS %x on: %v, want %v", version, got, want)
		}
	}
}
