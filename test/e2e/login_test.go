package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"relayd/test/rig"
)

const (
	erpPassword = "correct horse: b@ttery\\staple"
	// Keys of a listener for clients that log in.
	starttls = `, tls: starttls, auth: required, cert_file: "%[1]s/tls.crt", key_file: "%[1]s/tls.key"`
)

// startWithLogin runs a relay with two listeners more: STARTTLS and implicit TLS, both for clients that log in.
func (w *world) startWithLogin(p plan) (submission, implicit string) {
	w.t.Helper()
	var err error
	if submission, err = rig.FreeAddress(); err != nil {
		w.t.Fatal(err)
	}
	if implicit, err = rig.FreeAddress(); err != nil {
		w.t.Fatal(err)
	}
	keys := fmt.Sprintf(starttls, w.dir)
	p.listeners = fmt.Sprintf("\n  - {address: %q%s}\n  - {address: %q%s}", submission, keys, implicit,
		strings.Replace(keys, "starttls", "implicit", 1))
	p.more += fmt.Sprintf("clients: [{username: erp, password_hash: %q, senders: [erp@contoso.com, billing@contoso.com]}]\n", hash(w.t, erpPassword))
	w.start(p)
	return submission, implicit
}

// hash is what `relayd password` makes of a password.
func hash(t *testing.T, password string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), relayd, "password")
	cmd.Stdin = strings.NewReader(password + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("relayd password: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// login is a job for a client that logs in over TLS.
type login struct {
	job
	tls       string // starttls or implicit
	mechanism string
	ca        string
}

func (l *login) json() io.Reader {
	host, port, _ := net.SplitHostPort(l.addr)
	text := map[string]any{"host": host, "port": json.Number(port), "from": l.from, "to": l.rcpts, "raw": l.file("message", l.message),
		"tls": l.tls, "cafile": l.ca, "user": "erp", "password": erpPassword, "mechanism": l.mechanism}
	b, err := json.Marshal(text)
	if err != nil {
		panic(err) // it is all strings
	}
	return bytes.NewReader(b)
}

func TestLogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	certificate(t, w.path("tls.crt"), w.path("tls.key"))
	submission, implicit := w.startWithLogin(plan{})
	for _, c := range []struct {
		client, needs string
		tls           string
		command       func(l *login, host, port string) ([]string, io.Reader)
	}{
		{"swaks", "swaks", "starttls", func(l *login, host, port string) ([]string, io.Reader) {
			return []string{"swaks", "--server", host, "--port", port, "--helo", "client.contoso.com", "--from", l.from,
				"--to", l.rcpts[0], "--data", "@" + l.file("message", l.message), "--tls", "--tls-ca-path", l.ca, "--auth", l.mechanism,
				"--auth-user", "erp", "--auth-password", erpPassword}, nil
		}},
		{"swaks", "swaks", "implicit", func(l *login, host, port string) ([]string, io.Reader) {
			return []string{"swaks", "--server", host, "--port", port, "--helo", "client.contoso.com", "--from", l.from,
				"--to", l.rcpts[0], "--data", "@" + l.file("message", l.message), "--tls-on-connect", "--auth", l.mechanism,
				"--auth-user", "erp", "--auth-password", erpPassword}, nil
		}},
		{"msmtp", "msmtp", "starttls", func(l *login, host, port string) ([]string, io.Reader) {
			return []string{"msmtp", "--host=" + host, "--port=" + port, "--domain=client.contoso.com", "--from=" + l.from, "--tls=on",
				"--tls-starttls=on", "--tls-trust-file=" + l.ca, "--auth=" + strings.ToLower(l.mechanism), "--user=erp",
				"--passwordeval=cat " + l.file("password", erpPassword+"\n"), "--", l.rcpts[0]}, strings.NewReader(l.message)
		}},
		{"curl", "curl", "starttls", func(l *login, host, port string) ([]string, io.Reader) {
			return []string{"curl", "--silent", "--show-error", "--url", "smtp://" + net.JoinHostPort(host, port) + "/client.contoso.com",
				"--mail-from", l.from, "--mail-rcpt", l.rcpts[0], "--upload-file", l.file("message", l.message), "--ssl-reqd",
				"--cacert", l.ca, "--user", "erp:" + erpPassword, "--login-options", "AUTH=" + l.mechanism}, nil
		}},
		{"curl", "curl", "implicit", func(l *login, host, port string) ([]string, io.Reader) {
			return []string{"curl", "--silent", "--show-error", "--url", "smtps://" + net.JoinHostPort(host, port) + "/client.contoso.com",
				"--mail-from", l.from, "--mail-rcpt", l.rcpts[0], "--upload-file", l.file("message", l.message),
				"--cacert", l.ca, "--user", "erp:" + erpPassword, "--login-options", "AUTH=" + l.mechanism}, nil
		}},
		{"smtplib", "python3", "starttls", python},
		{"smtplib", "python3", "implicit", python},
		{"nodemailer", "node", "starttls", node},
		{"nodemailer", "node", "implicit", node},
	} {
		for _, mechanism := range []string{"PLAIN", "LOGIN"} {
			t.Run(c.client+"/"+c.tls+"/"+mechanism, func(t *testing.T) {
				need(t, c.client, c.needs)
				if c.client == "swaks" {
					if err := exec.CommandContext(t.Context(), "perl", "-MNet::SSLeay", "-e", "1").Run(); err != nil {
						skip(t, "swaks has no TLS without Net::SSLeay (scripts/test-deps installs it): %v", err)
					}
				}
				l := &login{tls: c.tls, mechanism: mechanism, ca: w.path("tls.crt")}
				l.job = job{kind: kinds()[0], client: c.client, dir: t.TempDir(), addr: submission, from: "erp@contoso.com"}
				if c.tls == "implicit" {
					l.addr = implicit
				}
				l.subject = t.Name()
				l.name = strings.ReplaceAll(t.Name(), "/", ".") // for the Message-ID
				l.compose()
				p := &program{name: c.client, command: func(*job) ([]string, io.Reader) {
					host, port, _ := net.SplitHostPort(l.addr)
					return c.command(l, host, port)
				}}
				runClient(t, &l.job, p)
				w.judgeLogin(t, l)
			})
		}
	}
}

func python(l *login, _, _ string) ([]string, io.Reader) {
	return []string{"python3", "testdata/send.py"}, l.json()
}

func node(l *login, _, _ string) ([]string, io.Reader) {
	return []string{"node", "testdata/send.cjs", nodeDir()}, l.json()
}

// judgeLogin finds the message and the way it came by.
func (w *world) judgeLogin(t *testing.T, l *login) {
	t.Helper()
	own := &world{t: t, dir: w.dir, far: w.far, relay: w.relay}
	list, err := w.far.Find(t.Context(), map[string][]string{"message_id": {"<" + l.name + "." + l.from + ">"}}, 1, patience)
	if err != nil {
		t.Fatal(err)
	}
	raw := own.raw(list[0])
	want := l.message
	if l.client == "swaks" {
		want += "\r\n" // its own
	}
	added, ok := strings.CutSuffix(raw, want)
	if !ok {
		t.Fatalf("arrived changed: %s", difference(raw[max(0, len(raw)-len(want)):], want))
	}
	if !regexp.MustCompile(`with ESMTPSA \(TLS 1\.[23] [A-Z0-9_]+\) id `).MatchString(added) {
		t.Errorf("Received does not tell of TLS and login: %q", added)
	}
	if !strings.Contains(w.relay.Log(), `"client":"erp"`) {
		t.Error("the log does not name the client")
	}
}

// TestLoginRefused tries what a client must not get away with.
func TestLoginRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	roots := certificate(t, w.path("tls.crt"), w.path("tls.key"))
	submission, _ := w.startWithLogin(plan{})
	plain := func(password string) string {
		return base64.StdEncoding.EncodeToString([]byte("\x00erp\x00" + password))
	}

	c := dial(t, submission)
	if ehlo := c.say(250, "EHLO app.contoso.com"); strings.Contains(ehlo, "AUTH") {
		t.Errorf("AUTH is offered without TLS:\n%s", ehlo)
	}
	c.say(538, "AUTH PLAIN %s", plain(erpPassword))
	c.say(530, "MAIL FROM:<erp@contoso.com>")
	c.upgrade(roots)
	if ehlo := c.say(250, "EHLO app.contoso.com"); !strings.Contains(ehlo, "AUTH PLAIN LOGIN") {
		t.Errorf("AUTH is not offered over TLS:\n%s", ehlo)
	}
	c.say(530, "MAIL FROM:<erp@contoso.com>")
	c.say(535, "AUTH PLAIN %s", plain("wrong"))
	c.say(235, "AUTH PLAIN %s", plain(erpPassword))
	if got, want := c.say(550, "MAIL FROM:<boss@contoso.com>"), `5.7.1 sender <boss@contoso.com> is not allowed for client "erp"`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// The envelope may be right and the message not.
	c.say(250, "MAIL FROM:<erp@contoso.com>")
	c.say(250, "RCPT TO:<you@example.com>")
	c.say(354, "DATA")
	c.write(letter("boss@contoso.com", "forged"))
	if got, want := c.say(550, "."), `5.7.1 sender <boss@contoso.com> is not allowed for client "erp"`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}

	guess := dial(t, submission)
	guess.say(250, "EHLO guess.example.org")
	guess.upgrade(roots)
	guess.say(250, "EHLO guess.example.org")
	guess.say(535, "AUTH PLAIN %s", plain("wrong"))
	guess.say(535, "AUTH PLAIN %s", plain("wrong, too"))
	guess.say(421, "AUTH PLAIN %s", plain("and again"))
	guess.closed()
	if n := w.stats().Messages; n != 0 {
		t.Errorf("%d messages arrived", n)
	}
}

// TestLoginOutlivesEHLO greets again after AUTH, which is a RSET and no farewell (RFC 5321, section 4.1.4).
func TestLoginOutlivesEHLO(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	roots := certificate(t, w.path("tls.crt"), w.path("tls.key"))
	submission, _ := w.startWithLogin(plan{})
	c := dial(t, submission)
	c.say(250, "EHLO app.contoso.com")
	c.upgrade(roots)
	c.say(250, "EHLO app.contoso.com")
	c.say(235, "AUTH PLAIN %s", base64.StdEncoding.EncodeToString([]byte("\x00erp\x00"+erpPassword)))
	c.say(250, "EHLO app.contoso.com")
	c.say(250, "MAIL FROM:<erp@contoso.com>")
	c.say(250, "RSET")
	c.say(250, "MAIL FROM:<erp@contoso.com>")
}

// TestChunks sends by BDAT, where no octet has a meaning.
func TestChunks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	message := letter("erp@contoso.com", "chunks") + ".\r\n..\r\n.a\r\n\r\n.\r\nQUIT\r\nGrüße\r\n"
	c := dial(t, w.relay.SMTP)
	if ehlo := c.say(250, "EHLO app.contoso.com"); !strings.Contains(ehlo, "CHUNKING") {
		t.Fatalf("CHUNKING is not offered:\n%s", ehlo)
	}
	for _, size := range []int{1, 7, 100, len(message)} {
		c.say(250, "MAIL FROM:<erp@contoso.com> BODY=8BITMIME")
		c.say(250, "RCPT TO:<you@example.com>")
		rest := message
		for ; len(rest) > size; rest = rest[size:] {
			c.write(fmt.Sprintf("BDAT %d\r\n%s", size, rest[:size]))
			c.expect(250)
		}
		c.write(fmt.Sprintf("BDAT %d LAST\r\n%s", len(rest), rest))
		c.expect(250)
	}
	c.say(221, "QUIT")
	for i, m := range w.arrived("erp@contoso.com", 4, patience) {
		raw := w.raw(m)
		compare(t, raw, message)
		if m.Body != "8BITMIME" {
			t.Errorf("message %d was handed on as BODY=%s", i, m.Body)
		}
	}
}
