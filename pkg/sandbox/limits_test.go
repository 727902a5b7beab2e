package sandbox_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"relayd/pkg/sandbox"
)

func TestSendingConnections(t *testing.T) {
	b := start(t, sandbox.Options{})
	var open []*client
	for range 4 {
		c := login(t, b, "app@contoso.com")
		c.envelope("app@contoso.com", "b@example.net")
		open = append(open, c)
	}
	other := login(t, b, "sales@contoso.com") // another mailbox is not concerned
	if got := other.send("sales@contoso.com", ""); !strings.HasPrefix(got, "250 ") {
		t.Errorf("another mailbox: %q", got)
	}
	const message = "From: app@contoso.com\r\n\r\nx\r\n."
	want := "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname=SBXPR01CA0001.sandbox.prod.outlook.com]"
	if got := open[3].cmd(message); got != want {
		t.Errorf("the fourth: got %q, want %q", got, want)
	}
	for _, c := range open[:3] {
		if got := c.cmd(message); !strings.HasPrefix(got, "250 ") {
			t.Errorf("one of three: %q", got)
		}
	}
	if got := open[3].send("app@contoso.com", ""); !strings.HasPrefix(got, "250 ") { // it may try again
		t.Errorf("the fourth, later: %q", got)
	}
	m := b.Stats().Mailboxes["app@contoso.com"]
	if m.PeakSending != 4 || m.PeakSessions != 4 || m.Messages != 4 || m.Refused != 1 || m.WorstMinute != 5 || m.Recipients != 4 {
		t.Errorf("got %+v", m)
	}
	b.ClearStats()
	if m := b.Stats().Mailboxes["app@contoso.com"]; m.PeakSending != 0 || m.PeakSessions != 4 || m.WorstMinute != 0 {
		t.Errorf("after ClearStats: %+v", m)
	}
}

func TestConnectionLostWhileSending(t *testing.T) {
	b := start(t, sandbox.Options{Limits: sandbox.Limits{Sending: 1}})
	c := login(t, b, "app@contoso.com")
	c.envelope("app@contoso.com", "b@example.net")
	c.write("From: ")
	c.conn.Close()
	next := login(t, b, "app@contoso.com")
	for deadline := time.Now().Add(patience); ; {
		got := next.send("app@contoso.com", "")
		if strings.HasPrefix(got, "250 ") {
			return // the lost connection no longer counts
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %q to the end", got)
		}
	}
}

func TestContentLimits(t *testing.T) {
	b := start(t, sandbox.Options{Limits: sandbox.Limits{
		MaxSendSize: 100 << 10, MessageBytes: 200 << 10, Sending: -1, MessagesPerMin: -1, RecipientsPerDay: 20,
	}})
	const hostname = ` [Hostname=SBXPR01CA0001.sandbox.prod.outlook.com]`
	denied := "; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message " +
		"due to a permanent exception with message [BeginDiagnosticData]Cannot submit message.[EndDiagnosticData]"
	c := login(t, b, "app@contoso.com")
	for _, test := range []struct {
		name, from, message, want string
	}{
		{"plain", "app@contoso.com", "From: app@contoso.com\r\n\r\n", "250 2.0.0 OK  "},
		{"case and display name", "App@Contoso.com", "from: \"A, B\" <APP@contoso.com>\r\n\r\n", "250 "},
		{"raw 8-bit display name", "app@contoso.com", "From: J\xfcrgen <app@contoso.com>\r\n\r\n", "250 "},
		{"folded From", "app@contoso.com", "Subject: x\r\nFrom:\r\n <app@contoso.com>\r\n\r\n", "250 "},
		{"Send As", "sales@contoso.com", "From: sales@contoso.com\r\n\r\n", "250 "},
		{"several From with Sender", "app@contoso.com",
			"From: app@contoso.com, sales@contoso.com\r\nSender: app@contoso.com\r\n\r\n", "250 "},
		{"foreign From", "app@contoso.com", "From: ceo@contoso.com\r\n\r\n",
			"554 5.2.252 SendAsDenied; app@contoso.com not allowed to send as ceo@contoso.com" + denied},
		{"foreign MAIL FROM", "ceo@contoso.com", "From: app@contoso.com\r\n\r\n",
			"554 5.2.252 SendAsDenied; app@contoso.com not allowed to send as ceo@contoso.com" + denied},
		{"null sender", "", "From: app@contoso.com\r\n\r\n",
			"554 5.2.252 SendAsDenied; app@contoso.com not allowed to send as <>" + denied},
		{"several From", "app@contoso.com", "From: app@contoso.com, sales@contoso.com\r\n\r\n",
			"550 5.1.20 Multiple From addresses are not allowed without Sender address"},
		{"no From", "app@contoso.com", "Subject: x\r\n\r\nFrom: app@contoso.com\r\n",
			"550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant"},
		{"From twice", "app@contoso.com", "From: app@contoso.com\r\nFrom: app@contoso.com\r\n\r\n",
			"550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant"},
		{"unquoted @", "app@contoso.com", "From: app@contoso.com <app@contoso.com>\r\n\r\n",
			"550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant"},
		{"one header", "app@contoso.com", "From: app@contoso.com\r\nAutocrypt: " + strings.Repeat("x", 33061) + "\r\n\r\n",
			"554 5.6.211 Invalid MIME Content: Single text value size (33061) exceeded allowed maximum (32768) for the 'Autocrypt' header."},
		{"a header at the limit", "app@contoso.com", "From: app@contoso.com\r\nX: " + strings.Repeat("x", 32768) + "\r\n\r\n", "250 "},
		{"mailbox size", "app@contoso.com", "From: app@contoso.com\r\n\r\n" + strings.Repeat("x", 100<<10) + "\r\n",
			"554 5.3.4 MapiExceptionMaxSubmissionExceeded; Message size exceeds maximum size limit.; STOREDRV.Submission.Exception:" +
				"MessageSubmissionExceededException.MapiExceptionMaxSubmissionExceeded; Failed to process message due to a permanent " +
				"exception with message [BeginDiagnosticData]Cannot save changes made to an item to store.[EndDiagnosticData]"},
		{"advertised size", "app@contoso.com", "From: app@contoso.com\r\n\r\n" + strings.Repeat("x", 200<<10) + "\r\n",
			"552 5.3.4 Message size exceeds fixed maximum message size"},
	} {
		c.envelope(test.from, "b@example.net")
		got := c.cmd(test.message + ".")
		if test.want[0] == '2' && !strings.HasPrefix(got, test.want) || test.want[0] != '2' && got != test.want+hostname {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
	for range 13 { // of 20 a day 7 are used
		if got := c.send("app@contoso.com", ""); !strings.HasPrefix(got, "250 ") {
			t.Fatal(got)
		}
	}
	want := "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException" + hostname
	if got := c.send("app@contoso.com", ""); got != want {
		t.Errorf("recipients a day: got %q, want %q", got, want)
	}
}

func TestWholeHeaderTooLarge(t *testing.T) {
	c := login(t, start(t, sandbox.Options{Limits: sandbox.Limits{HeaderBytes: 1000}}), "app@contoso.com")
	if got := c.send("app@contoso.com", strings.Repeat("X: y\r\n", 200)); !strings.HasPrefix(got, "552 5.3.4 Header size exceeds fixed maximum size") {
		t.Errorf("got %q", got)
	}
}

func TestBareLFRefused(t *testing.T) {
	c := login(t, start(t, sandbox.Options{Limits: sandbox.Limits{RejectBareLF: true}}), "app@contoso.com")
	c.envelope("app@contoso.com", "b@example.net")
	c.want("From: app@contoso.com\r\n\r\na\nb\r\n.", "550 5.6.11 Invalid characters")
}

func TestRecipientLimits(t *testing.T) {
	b := start(t, sandbox.Options{Limits: sandbox.Limits{Recipients: 4, SameDomain: 2}})
	c := login(t, b, "app@contoso.com")
	c.want("MAIL FROM:<app@contoso.com>", "250")
	for i, step := range []struct{ domain, reply string }{
		{"a.example", "250"}, {"A.EXAMPLE", "250"}, {"a.example", "452 4.5.3 Too many recipients"},
		{"b.example", "250"}, {"c.example", "250"}, {"d.example", "550 5.5.3 Too many recipients"},
	} {
		c.want(fmt.Sprintf("RCPT TO:<r%d@%s>", i, step.domain), step.reply)
	}
	c.want("DATA", "354")
	c.want("From: app@contoso.com\r\n\r\n.", "250")
	if m := b.Messages(sandbox.Filter{}); len(m) != 1 || len(m[0].Rcpts) != 4 {
		t.Errorf("got %+v", m)
	}
}

func TestRateRefused(t *testing.T) {
	b := start(t, sandbox.Options{Limits: sandbox.Limits{MessagesPerMin: 2, RejectOverRate: true}})
	c := login(t, b, "app@contoso.com")
	for i, want := range []string{"250 ", "250 ", "550 5.2.2 Submission quota exceeded"} {
		if got := c.send("app@contoso.com", ""); !strings.HasPrefix(got, want) {
			t.Errorf("message %d: got %q, want %q", i+1, got, want)
		}
	}
}

// An excess message keeps its client waiting, and stopping the sandbox does not wait for it.
func TestRateDelays(t *testing.T) {
	b := start(t, sandbox.Options{Limits: sandbox.Limits{MessagesPerMin: 1}})
	c := login(t, b, "app@contoso.com")
	if got := c.send("app@contoso.com", ""); !strings.HasPrefix(got, "250 ") {
		t.Fatal(got)
	}
	c.envelope("app@contoso.com", "b@example.net")
	c.write("From: app@contoso.com\r\n\r\n.\r\n")
	c.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if line, err := c.in.ReadString('\n'); err == nil {
		t.Errorf("answered at once: %q", line)
	}
	if m := b.Stats().Mailboxes["app@contoso.com"]; m.WorstMinute != 2 || m.Messages != 1 {
		t.Errorf("got %+v", m)
	}
}

func TestSessionAgeAndIdle(t *testing.T) {
	for name, limits := range map[string]sandbox.Limits{
		"age": {SessionAge: 50 * time.Millisecond}, "idle": {Idle: 50 * time.Millisecond},
	} {
		c := dial(t, start(t, sandbox.Options{Limits: limits}))
		c.reply()
		got := c.reply()
		if !regexp.MustCompile(`^421 4\.4\.1 Connection timed out\. Total session duration: 00:00:00\.\d{7}$`).MatchString(got) {
			t.Errorf("%s: got %q", name, got)
		}
		c.closed()
	}
}
