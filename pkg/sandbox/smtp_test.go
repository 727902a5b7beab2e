package sandbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net/smtp"
	"regexp"
	"strings"
	"testing"
	"time"

	"relayd/pkg/sandbox"
)

func TestGreetingAndKeywords(t *testing.T) {
	c := dial(t, start(t, sandbox.Options{}))
	if got := c.reply(); !regexp.MustCompile(
		`^220 SBXPR01CA0001\S+ Microsoft ESMTP MAIL Service ready at \w{3}, \d+ \w{3} \d{4} [\d:]{8} \+0000 \[08DE[0-9A-F]{12}\]$`,
	).MatchString(got) {
		t.Errorf("banner %q", got)
	}
	const before = "250-SBXPR01CA0001.sandbox.prod.outlook.com Hello [127.0.0.1]\n250-SIZE 157286400\n250-PIPELINING\n250-DSN\n" +
		"250-ENHANCEDSTATUSCODES\n250-STARTTLS\n250-8BITMIME\n250-BINARYMIME\n250-CHUNKING\n250 SMTPUTF8"
	if got := c.cmd("EHLO a.example.org"); got != before {
		t.Errorf("before TLS: got %q, want %q", got, before)
	}
	c.want("STARTTLS", "220 2.0.0 SMTP server ready")
	if err := c.handshake(c.tlsConfig()); err != nil {
		t.Fatal(err)
	}
	c.want("AUTH XOAUTH2", "503 5.5.2 Send hello first") // what was said before TLS is forgotten
	after := strings.Replace(before, "STARTTLS", "AUTH LOGIN XOAUTH2", 1)
	if got := c.cmd("EHLO [192.0.2.1]"); got != after {
		t.Errorf("after TLS: got %q, want %q", got, after)
	}
	if got := c.cmd("HELO a.example.org"); strings.Contains(got, "\n") {
		t.Errorf("HELO got keywords: %q", got)
	}
	c.want("QUIT", "221 2.0.0 Service closing transmission channel")
	c.closed()
}

func TestCommandsOutOfPlace(t *testing.T) {
	b := start(t, sandbox.Options{})
	c := dial(t, b)
	c.reply()
	for _, step := range []struct{ line, reply string }{
		{"MAIL FROM:<app@contoso.com>", "503 5.5.2 Send hello first"},
		{"STARTTLS", "503 5.5.2 Send hello first"},
		{"AUTH XOAUTH2", "503 5.5.2 Send hello first"},
		{"EHLO", "501 5.5.4 Invalid domain name ["},
		{"EHLO localhost", "501 5.5.4 Invalid domain name ["}, // not fully qualified
		{"EHLO under_score.example.org", "501 5.5.4 Invalid domain name ["},
		{"EHLO [1.2.3]", "501 5.5.4 Invalid domain name ["},
		{"EHLO x.prod.outlook.com", "550 5.7.506 Access Denied, Bad HELO"},
		{"EHLO a.example.org", "250-"},
		{"AUTH XOAUTH2", "504 5.7.4 Unrecognized authentication type"}, // only after TLS
		{"MAIL FROM:<app@contoso.com>", "451 5.7.3 STARTTLS is required to send mail"},
		{"RCPT TO:<b@example.net>", "503 5.5.2 Need mail command"},
		{"DATA", "503 5.5.2 Need mail command"},
		{"STARTTLS now", "501 5.5.4"},
		{"NOOP", "250 2.0.0 OK"},
		{"RSET", "250 2.0.0 Resetting"},
		{"VRFY x", "252 2.1.5 Cannot VRFY user"},
		{"EXPN x", "500 5.3.3 Unrecognized command"},
		{"NOOP\nNOOP", "500 5.3.3 Unrecognized command"}, // a bare LF ends a line, and a wrong one
	} {
		c.want(step.line, step.reply)
	}
	c.want("", "250 2.0.0 OK") // the NOOP behind the bare LF
	c.write(strings.Repeat("N", 3000) + "\r\n")
	if got := c.reply(); !strings.HasPrefix(got, "500 5.3.3") { // the empty line above
		t.Fatal(got)
	}
	if got := c.reply(); !strings.HasPrefix(got, "500 5.3.3") {
		t.Errorf("a line of 3,000: %q", got)
	}

	c = dial(t, b).secure()
	for _, step := range []struct{ line, reply string }{
		{"STARTTLS", "503 5.5.1"},
		{"MAIL FROM:<app@contoso.com>", "530 5.7.57 Client not authenticated to send mail. ["},
		{"AUTH PLAIN AGEAYg==", "504 5.7.4 Unrecognized authentication type"},
		{"AUTH XOAUTH2", "334 "},
		{"*", "501 5.7.0"},
		{"AUTH XOAUTH2", "334 "},
		{"not base64!", "501 5.5.2"},
	} {
		c.want(step.line, step.reply)
	}

	c = login(t, b, "app@contoso.com")
	for _, step := range []struct{ line, reply string }{
		{"AUTH XOAUTH2", "503 5.5.1"},
		{"MAIL app@contoso.com", "501 5.5.4"},
		{"MAIL FROM: <app@contoso.com>", "501 5.5.4"}, // no space in RFC 5321
		{"MAIL FROM:<app@>", "501 5.1.7 Invalid address"},
		{"MAIL FROM:<app@contoso.com> WHAT=1", "501 5.5.4"},
		{"MAIL FROM:<app@contoso.com> SIZE=157286401", "552 5.3.4 Message size exceeds fixed maximum message size"},
		{"MAIL FROM:<app@contoso.com> BODY=BINARYMIME", "250 2.1.0 Sender OK"},
		{"MAIL FROM:<app@contoso.com>", "503 5.5.2 Sender already specified"},
		{"DATA", "503 5.5.2 Need rcpt command"},
		{"RCPT TO:b@example.net", "501 5.5.4"},
		{"RCPT TO:<b@@example.net>", "501 5.1.3 Invalid address"},
		{"RCPT TO:<b@example.net>", "250 2.1.5 Recipient OK"},
		{"DATA", "503 5.5.1"}, // BINARYMIME goes by BDAT alone
		{"BDAT 3", ""},
	} {
		if step.line == "BDAT 3" {
			c.write("BDAT 3\r\nabc")
			if got := c.reply(); got != "250 2.0.0 3 octets received" {
				t.Fatal(got)
			}
			c.want("DATA", "503 5.5.1")
			c.want("RCPT TO:<c@example.net>", "503 5.5.2")
			break
		}
		c.want(step.line, step.reply)
	}
}

func TestAuthentication(t *testing.T) {
	tenant := contoso()
	tenant.Apps = append(tenant.Apps,
		sandbox.App{ID: "no-role", Secret: "x", NoRoles: true},
		sandbox.App{ID: "narrow", Secret: "x", Mailboxes: []string{"erp@contoso.com"}})
	other := sandbox.Tenant{ID: "fabrikam", Mailboxes: []string{"*@fabrikam.com"}, Apps: []sandbox.App{{ID: clientID, Secret: "y"}}}
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{tenant, other}})
	token := func(tenant, app string, life time.Duration) string {
		s, err := b.Token(tenant, app, life)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := token(tenantID, clientID, time.Hour)
	if len(good) < 1000 {
		t.Errorf("a token of %d characters fits into a command line; Entra's do not", len(good))
	}
	for _, test := range []struct {
		name, user, token string
		ok                bool
	}{
		{"good", "app@contoso.com", good, true},
		{"case of the mailbox", "App@CONTOSO.com", good, true},
		{"no such mailbox", "app@example.org", good, false},
		{"not an address", "app", good, false},
		{"expired", "app@contoso.com", token(tenantID, clientID, -time.Second), false},
		{"no role", "app@contoso.com", token(tenantID, "no-role", time.Hour), false},
		{"no access to the mailbox", "app@contoso.com", token(tenantID, "narrow", time.Hour), false},
		{"access to the mailbox", "erp@contoso.com", token(tenantID, "narrow", time.Hour), true},
		{"another tenant's token", "app@contoso.com", token("fabrikam", clientID, time.Hour), false},
		{"broken signature", "app@contoso.com", good[:len(good)-8] + "AAAAAAAA", false},
		{"no token", "app@contoso.com", "", false},
	} {
		c := dial(t, b).secure()
		got := c.auth(test.user, test.token)
		want := `^535 5\.7\.3 Authentication unsuccessful \[SBXPR01CA0001\.sandbox\.prod\.outlook\.com \d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z 08DE[0-9A-F]{12}\]$`
		if test.ok {
			want = `^235 2\.7\.0 Authentication successful$`
		}
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: got %q", test.name, got)
		}
		if !test.ok { // the session goes on
			if got := c.auth("erp@contoso.com", good); !strings.HasPrefix(got, "235") {
				t.Errorf("%s, then a good one: %q", test.name, got)
			}
		}
	}

	b.RevokeTokens()
	c := dial(t, b).secure()
	if got := c.auth("app@contoso.com", good); !strings.HasPrefix(got, "535 5.7.3") {
		t.Errorf("a revoked token: %q", got)
	}
	if got := c.auth("app@contoso.com", token(tenantID, clientID, time.Hour)); !strings.HasPrefix(got, "235") {
		t.Errorf("a token issued after the revocation: %q", got)
	}
	if s := b.Stats(); s.AuthFailed != 9 || s.AuthOK != 12 {
		t.Errorf("got %d refused and %d successful", s.AuthFailed, s.AuthOK)
	}
}

func TestInitialResponse(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		b := start(t, sandbox.Options{RefuseInitialResponse: refuse})
		c := dial(t, b).secure()
		want := "235 "
		if refuse {
			want = "535 5.7.3 Authentication unsuccessful ["
		}
		c.want("AUTH XOAUTH2 "+xoauth2("app@contoso.com", c.token()), want)
	}
}

func TestLoginIsDisabled(t *testing.T) {
	b := start(t, sandbox.Options{})
	const disabled = "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. [SBX"
	c := dial(t, b).secure()
	c.want("AUTH LOGIN", "334 VXNlcm5hbWU6")
	c.want("YQ==", "334 UGFzc3dvcmQ6")
	c.want("Yg==", disabled)
	c.want("AUTH LOGIN YQ==", "334 UGFzc3dvcmQ6")
	c.want("Yg==", disabled)
}

func TestDeliveryByteForByte(t *testing.T) {
	b := start(t, sandbox.Options{})
	head := "From: =?ISO-2022-JP?B?GyRCRnxLXBsoQg==?= <app@contoso.com>\r\nX-Relayd-Id: id1\r\nMessage-ID: <m1@contoso.com>\r\n\r\n"
	for name, body := range map[string]string{
		"dots":                "..two\r\n.\x00\r\n.\r\n..\r\n...\r\nend\r\n",
		"8-bit":               "gr\xfc\xdfe \xe2\x82\xac\r\n",
		"bare":                "a\nb\rc\r\n.\n.\r.\r\r\n\n.\r\n",
		"long line":           strings.Repeat("x", 200_000) + "\r\n",
		"CRLF at block edges": strings.Repeat(strings.Repeat("y", 1021)+"\r\n.", 200) + "\r\n",
		"empty":               "",
	} {
		c := login(t, b, "app@contoso.com")
		message := head + body
		c.want("MAIL FROM:<app@contoso.com> BODY=8BITMIME SIZE=100 RET=HDRS ENVID=a+2Bb", "250")
		c.want("RCPT TO:<b@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b@example.net", "250")
		c.want(`RCPT TO:<"c d"@example.net>`, "250")
		c.want("DATA", "354 Start mail input; end with <CRLF>.<CRLF>")
		stuffed := message
		if strings.HasPrefix(stuffed, ".") {
			stuffed = "." + stuffed
		}
		c.write(strings.ReplaceAll(stuffed, "\r\n.", "\r\n.."))
		if got, want := c.cmd("."), "250 2.0.0 OK <m1@contoso.com> [Hostname=SBXPR01CA0001.sandbox.prod.outlook.com]"; got != want {
			t.Fatalf("%s: got %q, want %q", name, got, want)
		}
		all := b.Messages(sandbox.Filter{})
		m := all[len(all)-1]
		raw, ok := b.Raw(m.Seq)
		if !ok || string(raw) != message {
			t.Errorf("%s: kept %d bytes of %d, or others", name, len(raw), len(message))
		}
		sum := sha256.Sum256([]byte(message))
		if m.SHA256 != hex.EncodeToString(sum[:]) || m.Size != int64(len(message)) {
			t.Errorf("%s: recorded %s and %d bytes", name, m.SHA256, m.Size)
		}
		if m.RelaydID != "id1" || m.MessageID != "<m1@contoso.com>" || m.Login != "app@contoso.com" || m.MailFrom != "app@contoso.com" ||
			len(m.Rcpts) != 2 || m.Rcpts[1] != `"c d"@example.net` || m.Body != "8BITMIME" || m.SMTPUTF8 || m.Session == "" {
			t.Errorf("%s: recorded %+v", name, m)
		}
		if m.BareLF != (name == "bare") {
			t.Errorf("%s: bare LF %v", name, m.BareLF)
		}
		if d := m.DSN; d == nil || d.Ret != "HDRS" || d.EnvID != "a+2Bb" || d.Notify["b@example.net"] != "SUCCESS,DELAY" ||
			d.Recipients["b@example.net"] != "rfc822;b@example.net" {
			t.Errorf("%s: DSN %+v", name, d)
		}
	}
	if s := b.Stats(); s.DuplicateCount != 10 || len(s.Duplicates) != 2 || s.Duplicates[0].Count != 6 || s.Recipients != 12 {
		t.Errorf("the same id six times to two recipients: %+v", s)
	}
}

func TestBDAT(t *testing.T) {
	b := start(t, sandbox.Options{})
	c := login(t, b, "app@contoso.com")
	c.want("MAIL FROM:<app@contoso.com> BODY=BINARYMIME SMTPUTF8", "250")
	c.write("BDAT 4\r\nQUIT")
	if got := c.reply(); !strings.HasPrefix(got, "503 5.5.2 Need rcpt command") {
		t.Fatal(got)
	}
	c.want("RCPT TO:<b@example.net>", "250")
	first, second := "From: app@contoso.com\r\n\r\n.\r\n\x00", "\nQUIT\r\n"
	c.write(fmt.Sprintf("BDAT %d\r\n%sBDAT %d\r\n%sBDAT 0 LAST\r\n", len(first), first, len(second), second))
	for _, want := range []string{fmt.Sprintf("250 2.0.0 %d octets", len(first)), fmt.Sprintf("250 2.0.0 %d octets", len(second)), "250 2.0.0 OK"} {
		if got := c.reply(); !strings.HasPrefix(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if raw, _ := b.Raw(1); string(raw) != first+second {
		t.Errorf("got %q", raw)
	}
	c.want("BDAT x", "501 5.5.4")
	c.closed()
}

func TestPipelining(t *testing.T) {
	b := start(t, sandbox.Options{})
	c := login(t, b, "app@contoso.com")
	const message = "From: app@contoso.com\r\n\r\nhi\r\n.\r\n"
	c.write("MAIL FROM:<app@contoso.com>\r\nRCPT TO:<a@example.net>\r\nRCPT TO:<bad>\r\nDATA\r\n")
	got := make([]byte, 4096)
	n, err := io.ReadAtLeast(c.in, got, 60)
	if err != nil {
		t.Fatal(err)
	}
	if batch := string(got[:n]); strings.Count(batch, "\r\n") != 4 || !strings.Contains(batch, "501 5.1.3") || !strings.Contains(batch, "\r\n354 ") {
		t.Errorf("the batch was not answered in one piece: %q", batch)
	}
	// The end of one message, the whole of the next envelope, and QUIT in one segment.
	c.write(message + "MAIL FROM:<app@contoso.com>\r\nRCPT TO:<a@example.net>\r\nRSET\r\nQUIT\r\n")
	for _, want := range []string{"250 2.0.0 OK", "250 2.1.0", "250 2.1.5", "250 2.0.0", "221"} {
		if got := c.reply(); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	c.closed()
}

func TestStartTLSDiscipline(t *testing.T) {
	b := start(t, sandbox.Options{})
	c := dial(t, b)
	c.reply()
	c.want("EHLO a.example.org", "250-")
	c.write("STARTTLS\r\nMAIL FROM:<app@contoso.com>\r\n")
	if got := c.reply(); !strings.HasPrefix(got, "421 4.7.0") {
		t.Errorf("a command behind STARTTLS: %q", got)
	}
	c.closed()

	c = dial(t, b)
	c.reply()
	c.want("EHLO a.example.org", "250-")
	c.want("STARTTLS", "220")
	old := c.tlsConfig()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if err := c.handshake(old); err != nil {
		t.Fatal(err)
	}
	c.want("EHLO a.example.org", "421 4.7.66 TLS 1.0 and 1.1 are not supported.")
	c.closed()
}

// xoauth2Auth is the two-step mechanism for net/smtp.
type xoauth2Auth struct{ user, token string }

func (a xoauth2Auth) Start(*smtp.ServerInfo) (string, []byte, error) { return "XOAUTH2", nil, nil }

func (a xoauth2Auth) Next(_ []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	return []byte("user=" + a.user + "\x01auth=Bearer " + a.token + "\x01\x01"), nil
}

func TestStandardLibraryClient(t *testing.T) {
	b := start(t, sandbox.Options{})
	raw := dial(t, b)
	raw.reply()
	again := dial(t, b)
	c, err := smtp.NewClient(again.conn, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	steps := []func() error{
		func() error { return c.Hello("client.example.org") },
		func() error { return c.StartTLS(raw.tlsConfig()) },
		func() error { return c.Auth(xoauth2Auth{"app@contoso.com", raw.token()}) },
		func() error { return c.Mail("app@contoso.com") },
		func() error { return c.Rcpt("b@example.net") },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("From: app@contoso.com\r\n\r\n.dot\r\n")
	w.Write(message)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	found, err := b.Wait(ctx, 1, sandbox.Filter{Recipient: "B@example.net"})
	if err != nil || len(found) != 1 {
		t.Fatalf("got %d messages, %v", len(found), err)
	}
	if kept, _ := b.Raw(found[0].Seq); !bytes.Equal(kept, message) {
		t.Errorf("got %q", kept)
	}
}
