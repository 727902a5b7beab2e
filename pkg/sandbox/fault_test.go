package sandbox_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"relayd/pkg/sandbox"
)

// preset puts the named fault in force, with more fields if any: "name,field=value".
func preset(t *testing.T, b *sandbox.Sandbox, text string) {
	t.Helper()
	r, err := sandbox.ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.AddFault(r); err != nil {
		t.Fatal(err)
	}
}

// Every preset that answers a command is seen by a client at its stage, word for word.
func TestReplyPresets(t *testing.T) {
	b := start(t, sandbox.Options{Limits: sandbox.Limits{MessagesPerMin: -1}})
	seen := 0
	for _, p := range sandbox.Presets() {
		if p.Reply == "" || p.Stage == sandbox.StageConnect || p.Stage == sandbox.StageSTARTTLS {
			continue
		}
		seen++
		b.ClearFaults()
		if _, err := b.AddFault(p); err != nil {
			t.Fatalf("%s: %v", p.Name, err)
		}
		c := dial(t, b).secure()
		got := c.auth("app@contoso.com", c.token())
		if p.Stage != sandbox.StageAuth {
			got = c.cmd("MAIL FROM:<app@contoso.com>")
		}
		if p.Stage == sandbox.StageRcpt || p.Stage == sandbox.StageDot {
			got = c.cmd("RCPT TO:<b@example.net>")
		}
		if p.Stage == sandbox.StageDot {
			c.want("DATA", "354")
			got = c.cmd("From: app@contoso.com\r\n\r\n.")
		}
		fixed, stamped := strings.CutSuffix(p.Reply, "{server}")
		if !strings.HasPrefix(got, fixed) || strings.Contains(got, "{server}") {
			t.Errorf("%s: got %q, want %q", p.Name, got, p.Reply)
		}
		if stamped && !strings.Contains(got, "[SBXPR01CA0001.sandbox.prod.outlook.com 20") {
			t.Errorf("%s: no server name in %q", p.Name, got)
		}
		switch {
		case strings.HasPrefix(got, "421"):
			c.closed()
		case strings.HasPrefix(got, "334"):
			c.want("", "535 5.7.3 Authentication unsuccessful [")
		default:
			c.want("NOOP", "250")
		}
	}
	if seen < 40 {
		t.Errorf("only %d presets were tried", seen)
	}
	if n := b.Stats().Messages; n != 1 { // dot-421-delivered
		t.Errorf("%d messages were kept, want 1", n)
	}
}

func TestFaultLimits(t *testing.T) {
	b := start(t, sandbox.Options{Limits: sandbox.Limits{MessagesPerMin: -1}})
	preset(t, b, "rcpt-not-found,recipient=gone@example.net,mailbox=app@contoso.com,skip=1,count=2")
	c := login(t, b, "app@contoso.com")
	c.want("MAIL FROM:<app@contoso.com>", "250")
	for i, step := range []struct{ to, reply string }{
		{"gone@example.net", "250"}, // skipped
		{"here@example.net", "250"},
		{"GONE@example.net", "550 5.1.10"},
		{"gone@example.net", "550 5.1.10"},
		{"gone@example.net", "250"}, // spent
	} {
		if got := c.cmd("RCPT TO:<" + step.to + ">"); !strings.HasPrefix(got, step.reply) {
			t.Errorf("step %d: got %q, want %q", i, got, step.reply)
		}
	}
	if f := b.Faults(); len(f) != 1 || f[0].Fired != 2 || f[0].ID == 0 {
		t.Errorf("got %+v", f)
	}
	b.ClearFaults()
	preset(t, b, "rcpt-not-found,mailbox=*@fabrikam.com")
	c.want("RCPT TO:<b@example.net>", "250")

	b.ClearFaults()
	preset(t, b, "mail-send-as-denied,probability=0.5")
	refused := 0
	for range 200 {
		if strings.HasPrefix(c.cmd("RSET"), "250") && strings.HasPrefix(c.cmd("MAIL FROM:<app@contoso.com>"), "550") {
			refused++
		}
	}
	if refused < 50 || refused > 150 {
		t.Errorf("probability 0.5 struck %d of 200 times", refused)
	}
}

func TestAnyCommand(t *testing.T) {
	b := start(t, sandbox.Options{Faults: []sandbox.Rule{{Reply: "421 4.3.2 Service not active", Skip: 2}}})
	c := dial(t, b)
	c.reply()
	c.want("EHLO a.example.org", "250-")
	c.want("NOOP", "250")
	c.want("NOOP", "421 4.3.2 Service not active")
	c.closed()
}

func TestFaultsAtTheDot(t *testing.T) {
	for _, test := range []struct {
		preset    string
		delivered int
		reset     bool
	}{
		{"body-drop", 0, false},
		{"body-rst", 0, true},
		{"dot-drop-lost", 0, false},
		{"dot-drop-delivered", 1, false},
		{"dot-rst-delivered", 1, true},
	} {
		b := start(t, sandbox.Options{})
		preset(t, b, test.preset)
		c := login(t, b, "app@contoso.com")
		c.envelope("app@contoso.com", "b@example.net")
		c.write("From: app@contoso.com\r\n\r\n.\r\n")
		_, err := c.in.ReadByte()
		if got := errors.Is(err, syscall.ECONNRESET); err == nil || got != test.reset {
			t.Errorf("%s: %v", test.preset, err)
		}
		if n := len(b.Messages(sandbox.Filter{})); n != test.delivered {
			t.Errorf("%s: %d messages", test.preset, n)
		}
	}
}

func TestBodyFaultAfter(t *testing.T) {
	b := start(t, sandbox.Options{})
	preset(t, b, "body-drop,after=100000,count=1")
	c := login(t, b, "app@contoso.com")
	c.envelope("app@contoso.com", "b@example.net")
	c.write("From: app@contoso.com\r\n\r\n" + strings.Repeat("x", 90_000))
	c.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := c.in.ReadByte(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after 90,000 bytes: %v", err)
	}
	c.conn.SetReadDeadline(time.Now().Add(patience))
	c.write(strings.Repeat("x", 20_000))
	c.closed()
}

func TestSlowAndSilent(t *testing.T) {
	b := start(t, sandbox.Options{})
	preset(t, b, "mail-drip,drip=5ms,count=1")
	c := login(t, b, "app@contoso.com")
	begun := time.Now()
	c.want("MAIL FROM:<app@contoso.com>", "250 2.1.0 Sender OK")
	if d := time.Since(begun); d < 20*5*time.Millisecond {
		t.Errorf("20 bytes at 5 ms each took %v", d)
	}
	if _, err := b.AddFault(sandbox.Rule{Stage: sandbox.StageRset, Delay: sandbox.Duration(80 * time.Millisecond), Count: 1}); err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	c.want("RSET", "250")
	if d := time.Since(begun); d < 80*time.Millisecond {
		t.Errorf("a delay of 80 ms took %v", d)
	}
	preset(t, b, "mail-blackhole")
	c.write("MAIL FROM:<app@contoso.com>\r\n")
	c.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := c.in.ReadByte(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a blackhole answered: %v", err)
	}
}

func TestConnectionFaults(t *testing.T) {
	b := start(t, sandbox.Options{})
	preset(t, b, "connect-421,count=1")
	c := dial(t, b)
	if got := c.reply(); !strings.HasPrefix(got, "421 4.3.2 Service not active [") {
		t.Errorf("got %q", got)
	}
	c.closed()

	preset(t, b, "connect-rst,count=1")
	if conn, err := net.Dial("tcp", b.SMTPAddr()); err == nil { // the reset may be faster than the end of the handshake
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("got %d octets, %v, want a reset", n, err)
		}
		conn.Close()
	}

	preset(t, b, "no-starttls,count=1")
	preset(t, b, "starttls-454,count=1")
	c = dial(t, b)
	c.reply()
	if got := c.cmd("EHLO a.example.org"); strings.Contains(got, "STARTTLS") || !strings.Contains(got, "\n250-8BITMIME") {
		t.Errorf("got %q", got)
	}
	if got := c.cmd("EHLO a.example.org"); !strings.Contains(got, "STARTTLS") {
		t.Errorf("got %q", got)
	}
	c.want("STARTTLS", "454 4.7.0 ")
	c.want("STARTTLS", "220 ")

	preset(t, b, "starttls-injection,count=1")
	c = dial(t, b)
	c.reply()
	c.want("EHLO a.example.org", "250-")
	c.want("STARTTLS", "220 2.0.0 SMTP server ready")
	if got := c.reply(); got != "250 2.0.0 injected" { // a careful client looks before it shakes hands
		t.Errorf("got %q", got)
	}
	if err := c.handshake(c.tlsConfig()); err != nil {
		t.Errorf("a careless client: %v", err)
	}

	for _, name := range []string{"ehlo-endless", "ehlo-endless-line"} {
		b.ClearFaults()
		preset(t, b, name)
		c = dial(t, b)
		c.reply()
		c.write("EHLO a.example.org\r\n")
		if n, err := io.CopyN(io.Discard, c.in, 1<<20); err != nil {
			t.Errorf("%s ended after %d bytes: %v", name, n, err)
		}
		c.conn.Close()
	}
	b.ClearFaults()
	preset(t, b, "mail-control")
	c = login(t, b, "app@contoso.com")
	if got := c.cmd("MAIL FROM:<app@contoso.com>"); got != "451 4.3.0 \x1b[2J\x07<script>\x00\x7f" {
		t.Errorf("got %q", got)
	}
}

func TestCertificateFaults(t *testing.T) {
	b := start(t, sandbox.Options{Names: []string{"smtp.sandbox.example", "192.0.2.7"}})
	connect := func(config *tls.Config) error {
		c := dial(t, b)
		c.reply()
		c.want("EHLO a.example.org", "250-")
		c.want("STARTTLS", "220")
		if config.RootCAs == nil {
			config.RootCAs = c.tlsConfig().RootCAs
		}
		return c.handshake(config)
	}
	for _, name := range []string{"localhost", "127.0.0.1", "::1", "smtp.sandbox.example", "192.0.2.7"} {
		if err := connect(&tls.Config{ServerName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, test := range []struct {
		preset string
		is     func(error) bool
	}{
		{"cert-expired", func(err error) bool {
			var e x509.CertificateInvalidError
			return errors.As(err, &e) && e.Reason == x509.Expired
		}},
		{"cert-self-signed", func(err error) bool { return errors.As(err, new(x509.UnknownAuthorityError)) }},
		{"cert-wrong-name", func(err error) bool { return errors.As(err, new(x509.HostnameError)) }},
		{"tls-1.0", func(err error) bool { return err != nil && strings.Contains(err.Error(), "protocol version") }},
		{"tls-rst", func(err error) bool { return err != nil }},
	} {
		preset(t, b, test.preset+",count=1")
		if err := connect(&tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS12}); !test.is(err) {
			t.Errorf("%s: got %v", test.preset, err)
		}
	}
	preset(t, b, "tls-1.0,count=1")
	if err := connect(&tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS10}); err != nil {
		t.Errorf("a client that speaks TLS 1.0: %v", err)
	}
}

func TestTokenFaults(t *testing.T) {
	b := start(t, sandbox.Options{})
	endpoint := b.Authority() + "/" + tenantID + "/oauth2/v2.0/token"
	for _, test := range []struct {
		preset string
		status int
		codes  string
		retry  string
	}{
		{"token-429", 429, `"error_codes":[90055]`, "60"},
		{"token-500", 500, "<html>", ""},
		{"token-503", 503, "<html>", ""},
		{"token-7000215", 401, `"error":"invalid_client"`, ""},
		{"token-90033", 503, `"error":"temporarily_unavailable"`, ""},
		{"token-65001", 400, `"error_codes":[65001]`, ""},
		{"token-garbage", 200, `{"access_token": 17`, ""},
	} {
		preset(t, b, test.preset+",count=1,app="+clientID)
		resp, err := web(t, b).PostForm(endpoint, credentials())
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.status || !strings.Contains(string(body), test.codes) ||
			resp.Header.Get("Retry-After") != test.retry {
			t.Errorf("%s: got %s, Retry-After %q, %s (%v)", test.preset, resp.Status, resp.Header.Get("Retry-After"), body, err)
		}
	}
	preset(t, b, "token-rst,app=another")
	if _, a := askToken(t, b, tenantID, credentials()); a.Token == "" {
		t.Errorf("another app's fault: %+v", a)
	}
	preset(t, b, "token-rst,count=1")
	// A POST is not repeated by net/http, so the first failure shows.
	if resp, err := web(t, b).PostForm(endpoint, credentials()); err == nil {
		resp.Body.Close()
		t.Errorf("the connection was not cut: %s", resp.Status)
	}
	preset(t, b, "token-blackhole,count=1")
	hasty := web(t, b)
	hasty.Timeout = 100 * time.Millisecond
	_, err := hasty.PostForm(endpoint, credentials())
	var timeout *url.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a blackhole: %v", err)
	}
}

func TestRulesThatCannotBe(t *testing.T) {
	for _, text := range []string{
		"no-such-preset", "dot-quota,colour=red", "dot-quota,count=many", "dot-quota,probability=2", "dot-quota,delay=soon",
		`{"stage":"nowhere","reply":"451 x"}`, `{"stage":"mail"}`, `{"stage":"mail","reply":"hello"}`, `{"stage":"mail","close":"gently"}`,
		`{"stage":"tls","certificate":"nice"}`, `{"stage":"mail","status":500}`, `{"preset":"none"}`, `{"unknown":1}`, `{`,
	} {
		if r, err := sandbox.ParseRule(text); err == nil {
			t.Errorf("%s was accepted as %+v", text, r)
		}
	}
	if _, err := sandbox.New(sandbox.Options{Faults: []sandbox.Rule{{Stage: "mail"}}}); err == nil {
		t.Error("New accepted a rule that does nothing")
	}
	r, err := sandbox.ParseRule(`{"preset":"dot-quota","mailbox":"a@b.c","delay":"1.5s","count":3}`)
	if err != nil || r.Stage != sandbox.StageDot || r.Mailbox != "a@b.c" || r.Delay != sandbox.Duration(1500*time.Millisecond) || r.Count != 3 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestPresetNamesAreUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range sandbox.Presets() {
		if p.Name == "" || seen[p.Name] {
			t.Errorf("preset name %q is empty or taken", p.Name)
		}
		seen[p.Name] = true
		if _, err := sandbox.ParseRule(p.Name); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}
