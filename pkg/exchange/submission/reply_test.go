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
	for _, seed := range []string{"250 OK\r\n", "250-2.1.0 a\r\n250 2.1.0 b\r\n", "550 5.7.1 \x1b\xff\u202e\r\n", "334 eyJz\r\n", "250-\r\n250\n", "999 x\r\n"} {
		f.Add([]byte(seed))
	}
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
		classify(status.StageDot, r.code, r.enhanced(), r.text())
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

// TestCatalogue has the exact texts, by their rows in the project's catalogue of replies.
func TestCatalogue(t *testing.T) {
	const dot, auth = status.StageDot, status.StageAuth
	tests := []struct {
		row    int
		stage  status.Stage
		reply  string
		action status.Action
		token  bool
	}{
		{1, dot, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname=X]", status.BackOffSender, false},
		{2, dot, "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname=X]", status.BackOffSender, false},
		{3, dot, "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded", status.Retry, false},
		{4, auth, "454 4.7.0 Temporary authentication failure", status.BackOffSender, false},
		{5, auth, "451 4.7.0 Temporary server error. Please try again later. PRX4 [X]", status.Retry, false},
		{6, auth, "421 4.3.2 Service not active [X]", status.Retry, false},
		{7, dot, "451 4.3.111 Temporary server error. Please try again later MRH1", status.Retry, false},
		{8, status.StageMail, "421 4.4.1 Connection timed out. Total session duration: 00:20:55.1", status.Retry, false},
		{9, dot, "421 4.4.2 Connection dropped", status.BackOffSender, false},
		{10, status.StageSTARTTLS, "421 4.7.66 TLS 1.0 and 1.1 are not supported. Please upgrade", status.Retry, false},
		{11, status.StageRcpt, "451 4.7.500 Access denied, please try again later. (AS112201)", status.BackOffTenant, false},
		{12, status.StageRcpt, "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714)", status.BackOffTenant, false},
		{13, status.StageRcpt, "451 4.7.699 Access denied, please try again later", status.BackOffTenant, false},
		{13, status.StageRcpt, "451 4.7.700 unknown", status.Retry, false},
		{13, status.StageRcpt, "451 4.7.499 unknown", status.Retry, false},
		{13, status.StageRcpt, "451 4.7.850 Access denied, please try again later", status.BackOffTenant, false},
		{14, status.StageRcpt, "452 4.5.3 Too many recipients", status.Retry, false},
		{15, dot, "550 5.5.3 Too many recipients", status.Retry, false},
		{16, status.StageEHLO, "501 5.5.4 Invalid domain name [X]", status.ParkTenant, false},
		{16, status.StageRcpt, "501 5.5.4 Invalid arguments", status.Fail, false},
		{17, status.StageMail, "550 5.7.506 Access Denied, Bad HELO", status.ParkTenant, false},
		{18, auth, "501 5.5.124 Invalid XOAUTH2 auth data - User address provided is not valid. x", status.ParkSender, true},
		{19, status.StageMail, "530 5.7.57 Client not authenticated to send mail. [X]", status.ParkSender, true},
		{20, auth, "535 5.7.3 Authentication unsuccessful [SN2PR00CA0018.namprd00.prod.outlook.com]", status.ParkSender, true},
		{21, auth, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [X]", status.ParkTenant, false},
		{22, auth, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. [X]", status.ParkSender, false},
		{23, auth, "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. [X]", status.ParkSender, true},
		{24, auth, "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy.", status.ParkSender, true},
		{25, auth, "535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated successfully. Contact your administrator.", status.ParkSender, true},
		{26, auth, "535 5.7.139 Authentication unsuccessful, federated STS service was unreachable.", status.BackOffTenant, false},
		{27, auth, "550 5.7.30 Basic authentication is not supported for Client Submission.", status.ParkSender, false},
		{27, status.StageMail, "550 5.7.30 Basic authentication is not supported for Client Submission.", status.ParkSender, false},
		{20, status.StageMail, "550 5.7.3 Authentication unsuccessful", status.ParkSender, true}, // never a bounce, wherever it comes
		{28, dot, "550 5.7.60 SMTP; Client does not have permissions to send as this sender", status.Fail, false},
		{29, dot, "554 5.2.252 SendAsDenied; a@x not allowed to send as b@y; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message", status.Fail, false},
		{30, dot, "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message.", status.Fail, false},
		{31, dot, "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message", status.ParkSender, false},
		{32, dot, "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", status.ParkSender, false},
		{33, dot, "550 5.2.2 Submission quota exceeded", status.ParkSender, false},
		{34, dot, "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded; Failed", status.ParkSender, false},
		{34, status.StageRcpt, "552 5.2.2 mailbox full", status.Retry, false}, // a recipient's, were one checked
		{35, dot, "550 5.1.8 Access denied, bad outbound sender", status.ParkSender, false},
		{36, dot, "550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)", status.ParkSender, false},
		{36, dot, "550 5.7.232 Your message can't be sent because your trial tenant has exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)", status.ParkSender, false},
		{37, dot, "550 5.7.236 Message rejected", status.ParkSender, false},
		{38, dot, "550 5.7.501 Access denied, spam abuse detected", status.ParkSender, false},
		{38, dot, "550 5.7.502 Access denied, banned sender", status.ParkSender, false},
		{38, dot, "550 5.7.503 Access denied, banned sender", status.ParkSender, false},
		{39, dot, "550 5.7.705 Access denied, tenant has exceeded threshold", status.ParkTenant, false},
		{39, dot, "550 5.7.708 Access denied, traffic not accepted from this IP", status.ParkTenant, false},
		{40, dot, "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains", status.ParkTenant, false},
		{41, dot, "552 5.3.4 Header size exceeds fixed maximum size", status.Fail, false},
		{42, dot, "552 5.3.4 Message size exceeds fixed maximum message size", status.Fail, false},
		{43, dot, "554 5.6.0 Invalid message content when handling MIME exception. IMC53", status.Fail, false},
		{45, dot, "550 5.1.20 Multiple From addresses are not allowed without Sender address", status.Fail, false},
		{49, status.StageRcpt, "550 5.1.10 Recipient not found", status.Fail, false},
		{49, status.StageRcpt, "550 5.4.1 Recipient address rejected: Access denied", status.Fail, false},
		{50, status.StageRcpt, "550 5.2.121 Recipient's per hour message receive limit from specific sender exceeded", status.Retry, false},
		{51, status.StageRcpt, "550 5.7.124 Sender not in allowed-senders list", status.Fail, false},

		{0, dot, "499 whatever", status.Retry, false}, // unknown 4xx
		{0, auth, "599 whatever", status.ParkSender, true},
		{0, status.StageMail, "535 5.7.3 too late", status.ParkSender, true},
		{0, dot, "599 whatever", status.Fail, false},
		{0, status.StageGreeting, "554 5.3.2 no service", status.Retry, false}, // before the message: not its fault
		{0, status.StageEHLO, "502 5.5.1 no", status.Retry, false},
		{0, status.StageSTARTTLS, "501 5.5.4 no", status.Retry, false},
		{0, status.StageRcpt, "552 too many", status.Retry, false}, // RFC 5321 section 4.5.3.1.10
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.row, " ", tt.reply[:7]), func(t *testing.T) {
			r, err := readReply(bufio.NewReaderSize(strings.NewReader(tt.reply+"\r\n"), maxReplyLine), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := classify(tt.stage, r.code, r.enhanced(), r.text())
			if got.action != tt.action || got.token != tt.token {
				t.Errorf("%s at %s: got %v, fresh token %v, want %v, %v", tt.reply, tt.stage, got.action, got.token, tt.action, tt.token)
			}
		})
	}
}

// TestCatalogueIsReachable: no rule stands behind one that takes all of its replies.
func TestCatalogueIsReachable(t *testing.T) {
	for i, later := range catalogue() {
		for _, earlier := range catalogue()[:i] {
			if (earlier.stage == "" || earlier.stage == later.stage) && strings.HasPrefix(later.code, earlier.code) &&
				(earlier.enhanced == "" || earlier.enhanced == later.enhanced) && strings.Contains(later.text, earlier.text) {
				t.Errorf("%+v is never reached behind %+v", later, earlier)
			}
		}
		if later.text != strings.ToLower(later.text) {
			t.Errorf("%+v: text is compared in lower case", later)
		}
	}
}

func TestMatchEnhanced(t *testing.T) {
	tests := []struct {
		pattern string
		code    status.Enhanced
		want    bool
	}{
		{"", status.Enhanced{}, true}, {"", status.Enhanced{5, 7, 1}, true},
		{"5.7.60", status.Enhanced{5, 7, 60}, true}, {"5.7.60", status.Enhanced{5, 7, 6}, false}, {"5.7.6", status.Enhanced{5, 7, 60}, false},
		{"5.7.60", status.Enhanced{}, false}, {"5.7.60", status.Enhanced{4, 7, 60}, false},
		{"4.7.500-699", status.Enhanced{4, 7, 500}, true}, {"4.7.500-699", status.Enhanced{4, 7, 699}, true},
		{"4.7.500-699", status.Enhanced{4, 7, 499}, false}, {"4.7.500-699", status.Enhanced{4, 7, 700}, false},
		{"4.7.500-699", status.Enhanced{5, 7, 500}, false}, {"4.7.500-699", status.Enhanced{4, 6, 500}, false},
		{"4.7.500-x", status.Enhanced{4, 7, 500}, false},
	}
	for _, tt := range tests {
		if got := matchEnhanced(tt.pattern, tt.code); got != tt.want {
			t.Errorf("%q, %v: got %v", tt.pattern, tt.code, got)
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
