package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"relayd/test/rig"
)

// TestServeRefusesToStart has one row for each thing that keeps the relay from starting: it ends with status 1 and says
// what is wrong and what to do.
func TestServeRefusesToStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	taken := busy.Addr().String()
	for _, c := range []struct {
		name  string
		spoil func(text string) string
		want  []string // said on stderr
	}{
		{"wrong configuration", func(text string) string {
			return strings.NewReplacer("senders: ", "sendres: ", "tenant_id", "tenant").Replace(text)
		}, []string{"the configuration has errors:", "relayd.yaml:8:1: sendres: ", "did you mean senders?", "relayd.yaml:6:21: tenants[0].tenant: ",
			"tenants[0].tenant_id: is missing; copy the Directory (tenant) ID"}},
		{"no configuration", func(string) string { return "" }, []string{"listeners: is missing, so no mail can come in; write listeners:"}},
		{"unreadable secret", func(text string) string { return strings.Replace(text, w.path("secret"), w.path("missing"), 1) },
			[]string{"tenants[0].client_secret: secret file", w.path("missing"), "cannot be read: no such file or directory",
				"put the secret there, or refer to another place"}},
		{"secret is a directory", func(text string) string { return strings.Replace(text, "file:"+w.path("secret"), "file:"+w.dir, 1) },
			[]string{"tenants[0].client_secret: secret file", "is not a regular file", "put the secret there, or refer to another place"}},
		{"missing certificate", func(text string) string {
			return strings.Replace(text, "- {address: ", fmt.Sprintf("- {tls: starttls, cert_file: %q, key_file: %[1]q, address: ", w.path("no.pem")), 1)
		}, []string{"listeners[0].", w.path("no.pem"), "cannot be read: no such file or directory; name a readable PEM file"}},
		{"taken SMTP port", func(text string) string { return strings.Replace(text, "SMTP", taken, 1) },
			[]string{"listeners[0].address: listen for SMTP: listen tcp " + taken + ": bind: address already in use; another process has it: stop that one, or choose a free port"}},
		{"taken admin port", func(text string) string { return strings.Replace(text, "ADMIN", taken, 1) },
			[]string{"admin.address: another process has " + taken + " already; stop it, or write a free port"}},
		{"admin for everybody", func(text string) string { return strings.Replace(text, "ADMIN", "0.0.0.0:8080", 1) },
			[]string{"admin.address: \"0.0.0.0:8080\" can be reached from other machines, and nobody would have to log in; add tokens or oidc, or write 127.0.0.1"}},
		{"data_dir is a file", func(text string) string { return strings.Replace(text, w.path("data"), w.path("secret"), 1) },
			[]string{"create data directory:", w.path("secret"), "not a directory; choose another data_dir"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := t.TempDir() + "/relayd.yaml"
			text := c.spoil(w.config(plan{}, "SMTP", "ADMIN"))
			text = strings.NewReplacer(`"SMTP"`, `"127.0.0.1:0"`, `"ADMIN"`, `"127.0.0.1:0"`).Replace(text)
			replaceFile(t, file, text)
			o := runCommand(t, "", "serve", "--config", file)
			if o.code != 1 || o.stdout != "" {
				t.Errorf("status %d, stdout %q; want 1 and none", o.code, o.stdout)
			}
			for _, want := range c.want {
				if !strings.Contains(o.stderr, want) {
					t.Errorf("stderr does not say %q:\n%s", want, o.stderr)
				}
			}
			if strings.Contains(o.stderr, rig.Secret) || strings.Contains(o.stderr, "goroutine ") {
				t.Errorf("stderr:\n%s", o.stderr)
			}
		})
	}
}

// TestSecondProcess starts a relay on the data directory of another, which must not notice.
func TestSecondProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	file := t.TempDir() + "/relayd.yaml"
	replaceFile(t, file, w.config(plan{}, "127.0.0.1:0", "127.0.0.1:0"))
	o := runCommand(t, "", "serve", "--config", file)
	want := fmt.Sprintf("data directory %s is in use by another relayd (pid %d): stop that one, or give this one a data_dir of its own\n",
		w.path("data"), w.relay.PID())
	if o.code != 1 || !strings.HasSuffix(o.stderr, want) {
		t.Errorf("status %d, stderr %q; want 1 and %q", o.code, o.stderr, want)
	}
	w.send("erp@contoso.com", letter("erp@contoso.com", "still-here"))
	w.arrived("erp@contoso.com", 1, patience)
	w.stop()
	w.restart() // the lock ended with its process
}

// TestSmuggling sends, inside one message, ends of a message that are none, each with a forged second message behind it.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	strict, err := rig.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	w.start(plan{listeners: fmt.Sprintf("\n  - {address: %q, line_endings: reject}", strict)})
	const forged = "MAIL FROM:<boss@contoso.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nFrom: <boss@contoso.com>\r\n\r\nforged\r\n"
	ends := []string{"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n\x00.\r\n", "\r\n.\x00\r\n", "\r\n.\r\r\n", "\n\n.\n\n", "\r\n.\t\r\n"}
	normal, rejected := 0, 0
	for i, end := range ends {
		sender := fmt.Sprintf("smuggler%d@contoso.com", i)
		message := letter(sender, "smuggled") + "before" + end + forged
		c := dial(t, w.relay.SMTP)
		c.say(250, "EHLO app.contoso.com")
		c.say(250, "MAIL FROM:<%s>", sender)
		c.say(250, "RCPT TO:<you@example.com>")
		c.say(354, "DATA")
		c.write(message + ".\r\n")
		// Kept as one message, or refused as a whole with the connection closed: never run as commands.
		switch code, text, err := c.text.ReadResponse(0); code {
		case 250:
			normal++
			c.say(221, "QUIT")
			raw := w.raw(w.arrived(sender, 1, patience)[0])
			if !strings.HasSuffix(raw, "\r\nforged\r\n") || !strings.Contains(raw, "\r\nMAIL FROM:<boss@contoso.com>\r\n") {
				t.Errorf("%q: arrived as %q", end, raw)
			}
			if bare := strings.ReplaceAll(raw, "\r\n", ""); strings.ContainsAny(bare, "\r\n") {
				t.Errorf("%q: a bare CR or LF was handed on: %q", end, raw)
			}
		case 554:
			rejected++
			c.closed()
		default:
			t.Errorf("%q: %d %s, %v", end, code, text, err)
		}

		c = dial(t, strict)
		c.say(250, "EHLO app.contoso.com")
		c.say(250, "MAIL FROM:<strict-%s>", sender)
		c.say(250, "RCPT TO:<you@example.com>")
		c.say(354, "DATA")
		c.write(strings.ReplaceAll(message, sender, "strict-"+sender) + ".\r\n")
		if bare := strings.ReplaceAll(end, "\r\n", ""); strings.ContainsAny(bare, "\r\n") {
			if text := c.expect(554); !strings.HasPrefix(text, "5.6.0 ") {
				t.Errorf("%q, strict: 554 %s", end, text)
			}
			c.closed()
		} else {
			c.expect(250)
		}
	}
	if normal < 8 {
		t.Errorf("%d of %d were normalised and %d refused; the listener should normalise", normal, len(ends), rejected)
	}
	for _, m := range w.all() {
		if m.MailFrom == "boss@contoso.com" || len(m.Rcpts) != 1 || m.Rcpts[0] != "you@example.com" {
			t.Errorf("a forged message got through: %+v", m)
		}
	}
}

// all returns every message that arrived.
func (w *world) all() (list []rig.Message) {
	w.t.Helper()
	if err := w.far.Get(w.t.Context(), "/sandbox/messages", &list); err != nil {
		w.t.Fatal(err)
	}
	return list
}

// TestHostileClient is a handful of attacks on the commands.
func TestHostileClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	roots := certificate(t, w.path("tls.crt"), w.path("tls.key"))
	w.start(plan{listener: fmt.Sprintf(`, tls: starttls, cert_file: %q, key_file: %q`, w.path("tls.crt"), w.path("tls.key"))})

	t.Run("commands behind STARTTLS", func(t *testing.T) {
		c := dial(t, w.relay.SMTP)
		c.say(250, "EHLO app.contoso.com")
		// What came in clear before the handshake must not be run after it (CVE-2011-0411).
		c.write("STARTTLS\r\nMAIL FROM:<erp@contoso.com>\r\n")
		if code, text, err := c.text.ReadResponse(0); code != 220 {
			return // refused as a whole
		} else if err != nil {
			t.Fatal(text, err)
		}
		conn := tls.Client(c.conn, &tls.Config{ServerName: "relay.contoso.com", RootCAs: roots, MinVersion: tls.VersionTLS12})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			return // the relay took the command for a handshake, or closed
		}
		c.conn, c.text = conn, textproto.NewConn(conn)
		// No reply to the injected command is waiting, and there is no transaction.
		c.say(250, "EHLO app.contoso.com")
		c.say(503, "RCPT TO:<you@example.com>")
	})
	for _, c := range []struct {
		name, line string
		code       int
	}{
		{"NUL in MAIL", "MAIL FROM:<erp\x00@contoso.com>", 501},
		{"CR in RCPT", "RCPT TO:<you@example.com>\rRSET", 501},
		{"parameters inside quotes", `RCPT TO:<"evil@x> NOTIFY=NEVER X="@example.com>`, 250},
		{"escape sequence in HELO", "HELO \x1b[2Jevil", 501},
		{"no such command", "XEVIL \x1b[2J", 500},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := dial(t, w.relay.SMTP)
			s.say(250, "EHLO app.contoso.com")
			if strings.HasPrefix(c.line, "RCPT") {
				s.say(250, "MAIL FROM:<erp@contoso.com>")
			}
			s.write(c.line + "\r\n")
			code, text, _ := s.text.ReadResponse(0)
			if code/100 != c.code/100 {
				t.Errorf("%d %s, want %dxx", code, text, c.code/100)
			}
			if strings.ContainsAny(text, "\x00\x1b\r") {
				t.Errorf("echoed: %q", text)
			}
		})
	}
	t.Run("endless line", func(t *testing.T) {
		s := dial(t, w.relay.SMTP)
		s.say(250, "EHLO app.contoso.com")
		_, _ = s.conn.Write([]byte("MAIL FROM:<" + strings.Repeat("a", 1<<20))) // the relay may have closed before the end
		if code, text, _ := s.text.ReadResponse(0); code != 500 && code != 0 {
			t.Errorf("%d %s, want 500 or a closed connection", code, text)
		}
	})
	t.Run("gone in the middle of DATA", func(t *testing.T) {
		s := dial(t, w.relay.SMTP)
		s.say(250, "EHLO app.contoso.com")
		s.say(250, "MAIL FROM:<gone@contoso.com>")
		s.say(250, "RCPT TO:<you@example.com>")
		s.say(354, "DATA")
		s.write(letter("gone@contoso.com", "half"))
		s.conn.Close()
		s = dial(t, w.relay.SMTP)
		s.say(250, "EHLO app.contoso.com")
		s.say(250, "MAIL FROM:<gone@contoso.com>")
		s.say(250, "RCPT TO:<you@example.com>")
		s.write("BDAT 1000 LAST\r\n" + letter("gone@contoso.com", "half"))
		s.conn.Close()
	})
	t.Run("oversize", func(t *testing.T) {
		s := dial(t, w.relay.SMTP)
		s.say(250, "EHLO app.contoso.com")
		if got, want := s.say(552, "MAIL FROM:<erp@contoso.com> SIZE=99999999"), "5.3.4 message exceeds 35 MiB"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	w.send("last@contoso.com", letter("last@contoso.com", "still-here"))
	w.arrived("last@contoso.com", 1, patience)
	if list := w.all(); len(list) != 1 {
		t.Errorf("%d messages arrived, want the last alone: %+v", len(list), list)
	}
	eventually(t, "the queue is empty", func() bool {
		queued, err := w.relay.Queued(t.Context())
		return err == nil && queued == 0
	})
}

func TestUnknownSender(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	c := dial(t, w.relay.SMTP)
	c.say(250, "EHLO app.contoso.com")
	if got, want := c.say(550, "MAIL FROM:<app@fabrikam.com>"), "5.7.1 <app@fabrikam.com>: no sender with that address is configured"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// The envelope may be known and the author not: Exchange judges both.
	c.say(250, "MAIL FROM:<erp@contoso.com>")
	c.say(250, "RCPT TO:<you@example.com>")
	c.say(354, "DATA")
	c.write(letter("app@fabrikam.com", "stranger"))
	if got, want := c.say(550, "."), "5.7.1 <app@fabrikam.com>: no sender with that address is configured"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.say(221, "QUIT")
	w.stays(2, "relayd_messages_rejected_total", `reason="sender"`)
	w.stays(0, "relayd_messages_accepted_total")
}

func TestUnknownSenderRewritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{more: "unknown_sender: {rewrite_to: noreply@contoso.com, reply_to_original: true}\n"})
	sent := strings.Replace(letter("app@fabrikam.com", "rewritten"), "From: <", "From: \"The App\" <", 1)
	w.send("app@fabrikam.com", sent)
	m := w.arrived("noreply@contoso.com", 1, patience)[0]
	if m.Login != "noreply@contoso.com" {
		t.Errorf("login %s", m.Login)
	}
	raw := w.raw(m)
	// Everything but From stays as it was, and Reply-To tells who it was.
	want := strings.Replace(sent, "From: \"The App\" <app@fabrikam.com>", "From: \"The App\" <noreply@contoso.com>", 1)
	fields, rest, _ := strings.Cut(raw, "\r\nX-Relayd-Id: ")
	_, rest, _ = strings.Cut(rest, "\r\n")
	if !strings.HasPrefix(fields, "Received: ") {
		t.Errorf("arrived as %q", raw)
	}
	const replyTo = "Reply-To: <app@fabrikam.com>\r\n"
	if strings.Count(rest, replyTo) != 1 || strings.Replace(rest, replyTo, "", 1) != want {
		t.Errorf("arrived as %q, want %q with %q", rest, want, replyTo)
	}
	// A known sender is left alone.
	w.send("erp@contoso.com", letter("erp@contoso.com", "known"))
	if raw := w.raw(w.arrived("erp@contoso.com", 1, patience)[0]); !strings.HasSuffix(raw, letter("erp@contoso.com", "known")) {
		t.Errorf("arrived as %q", raw)
	}
}

// TestNetworkNotAllowed reaches the relay from a network that may not send.
func TestNetworkNotAllowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{listener: `, allow_networks: [10.0.0.0/8]`})
	conn, err := net.Dial("tcp", w.relay.SMTP)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(conn)
	if got, want := string(said), "554 5.7.1 access denied\r\n"; got != want || err != nil {
		t.Errorf("got %q, %v; want %q and the end", got, err, want)
	}
}
