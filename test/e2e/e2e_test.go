// Package e2e tests relayd from outside: `relayd serve` and `relayd sandbox` as processes of their own, driven by command
// line, configuration file, signals, SMTP and HTTP alone.
package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"relayd/test/rig"
)

// patience is how long a test waits for what should take a second on an idle machine.
const patience = 60 * time.Second

// relayd is the binary under test, the same for all; TestMain sets it before any test runs.
var relayd string

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run builds relayd once, or takes the one TEST_RELAYD_BIN names.
func run(m *testing.M) int {
	flag.Parse()
	// These tests wait, for other processes and their timers, far more than they compute.
	if err := flag.Set("test.parallel", "12"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "relayd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	relayd = os.Getenv("TEST_RELAYD_BIN")
	if relayd == "" {
		if relayd, err = rig.Build(context.Background(), dir, race); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// skip ends a test that needs what this machine has not; where nothing may be skipped, it fails.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("TEST_NO_SKIP") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// world is one sandbox and the relay in front of it.
type world struct {
	t     *testing.T
	dir   string
	far   *rig.Sandbox
	relay *rig.Relay // nil before start
}

// newWorld runs a sandbox, without limits on the pace of a mailbox unless flags set them again. Both processes end with
// the test, and the relay must end well.
func newWorld(t *testing.T, flags ...string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	if err := os.WriteFile(w.path("secret"), []byte(rig.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	w.far, err = rig.StartSandbox(t.Context(), relayd, w.dir, append([]string{"--messages-per-minute", "0"}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.relay != nil {
			if err := w.relay.Stop(time.Minute); err != nil {
				t.Errorf("the relay did not end well: %v", err)
			}
		}
		if err := w.far.Stop(time.Minute); err != nil {
			t.Errorf("the sandbox did not end well: %v", err)
		}
		if t.Failed() {
			if w.relay != nil {
				t.Logf("relay:\n%s", tail(w.relay.Log()))
			}
			t.Logf("sandbox:\n%s", tail(w.far.Log()))
		}
	})
	return w
}

// tail is the end of a log, for a failed test's output.
func tail(log string) string {
	const most = 12 << 10
	if len(log) > most {
		return "…" + log[len(log)-most:]
	}
	return log
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// plan is what a relay's configuration has beyond the least: text of flow mappings and lists.
type plan struct {
	listener  string // more keys of the first listener, each ", key: value"
	listeners string // more listeners, each "\n  - {…}"
	senders   string // instead of all of contoso.com without limits of pace
	authority string // instead of the sandbox's
	server    string // instead of the sandbox's
	ca        string // instead of the sandbox's
	queue     string // more keys of queue
	more      string // more sections
}

// unlimited lets a sender send as fast as three connections can.
const unlimited = "messages_per_minute: 1000000, recipients_per_day: 1000000"

func (w *world) config(p plan, smtp, admin string) string {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	return fmt.Sprintf(`hostname: relay.contoso.com
data_dir: %q
listeners:
  - {address: %q%s}%s
tenants:
  - {name: contoso, tenant_id: %s, client_id: %s, client_secret: %q,
     authority: %q, smtp_server: %q, ca_file: %q, credential_expires: 2040-01-31}
senders: %s
queue: {min_free_bytes: 0, retry: [1s]%s}
admin: {address: %q}
%s
`, w.path("data"), smtp, p.listener, p.listeners, rig.TenantID, rig.ClientID, "file:"+w.path("secret"),
		or(p.authority, "https://"+w.far.HTTP), or(p.server, w.far.SMTP), or(p.ca, w.far.CA),
		or(p.senders, `[{match: "*@contoso.com", tenant: contoso, `+unlimited+`}]`), p.queue, admin, p.more)
}

// start runs the relay until it is ready.
func (w *world) start(p plan) {
	w.t.Helper()
	relay, err := rig.StartRelay(w.t.Context(), relayd, w.dir, func(smtp, admin string) string { return w.config(p, smtp, admin) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.relay = relay
}

// stop ends the relay, which must end well, and keeps its configuration for restart.
func (w *world) stop() {
	w.t.Helper()
	if err := w.relay.Stop(time.Minute); err != nil {
		w.t.Fatalf("stop the relay: %v\n%s", err, tail(w.relay.Log()))
	}
}

func (w *world) restart() {
	w.t.Helper()
	if err := w.relay.Restart(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// rewrite changes the configuration file as an editor does: a new file in the place of the old one.
func (w *world) rewrite(change func(text string) string) {
	w.t.Helper()
	text, err := os.ReadFile(w.relay.Config)
	if err != nil {
		w.t.Fatal(err)
	}
	replaceFile(w.t, w.relay.Config, change(string(text)))
}

func replaceFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// fault makes the sandbox misbehave; rule is JSON.
func (w *world) fault(format string, args ...any) {
	w.t.Helper()
	if err := w.far.Post(w.t.Context(), "/sandbox/faults", fmt.Sprintf(format, args...)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) noFaults() {
	w.t.Helper()
	if err := w.far.Delete(w.t.Context(), "/sandbox/faults"); err != nil {
		w.t.Fatal(err)
	}
}

// hangup sends SIGHUP and waits for the relay to say what came of it.
func (w *world) hangup(said string) {
	w.t.Helper()
	before := strings.Count(w.relay.Log(), said)
	if err := w.relay.Signal(syscall.SIGHUP); err != nil {
		w.t.Fatal(err)
	}
	w.logged(said, before+1)
}

const (
	reloaded    = `"msg":"configuration reloaded"`
	notReloaded = `"msg":"configuration not reloaded: the old one stays in force"`
)

// logged waits until the relay has written text n times.
func (w *world) logged(text string, n int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if err := w.relay.WaitLog(ctx, text, n); err != nil {
		w.t.Fatal(err)
	}
}

// arrived waits for n messages of a sender and returns them.
func (w *world) arrived(sender string, n int, within time.Duration) []rig.Message {
	w.t.Helper()
	list, err := w.far.Find(w.t.Context(), url.Values{"sender": {sender}}, n, within)
	if err != nil {
		w.t.Fatalf("waiting for %d messages of %s: %v", n, sender, err)
	}
	if len(list) != n {
		w.t.Fatalf("%d messages of %s arrived, want %d", len(list), sender, n)
	}
	return list
}

// raw returns a delivered message as it arrived.
func (w *world) raw(m rig.Message) string {
	w.t.Helper()
	raw, err := w.far.Raw(w.t.Context(), m.Seq)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(raw)
}

func (w *world) stats() rig.Stats {
	w.t.Helper()
	var s rig.Stats
	if err := w.far.Get(w.t.Context(), "/sandbox/stats", &s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// metric returns the sum of a metric's samples that have all of labels, each as `name="value"`, and how many those are.
func (w *world) metric(name string, labels ...string) (sum float64, samples int) {
	w.t.Helper()
	err := w.relay.Metric(w.t.Context(), name, func(have string, value float64) {
		for _, l := range labels {
			if !strings.Contains(have, l) {
				return
			}
		}
		sum += value
		samples++
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return sum, samples
}

// becomes waits until metric is want.
func (w *world) becomes(want float64, name string, labels ...string) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%s%v = %v", name, labels, want), func() bool {
		got, samples := w.metric(name, labels...)
		return samples > 0 && got == want
	})
}

// stays fails unless metric is want.
func (w *world) stays(want float64, name string, labels ...string) {
	w.t.Helper()
	if got, _ := w.metric(name, labels...); got != want {
		w.t.Errorf("%s%v = %v, want %v", name, labels, got, want)
	}
}

// eventually asks until ok, or fails the test after patience.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not come true: %s", what)
		}
	}
}

// client is an SMTP session, line by line.
type client struct {
	t    *testing.T
	conn net.Conn
	text *textproto.Conn
}

// dial opens a session and reads the greeting.
func dial(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return greet(t, conn)
}

func greet(t *testing.T, conn net.Conn) *client {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c := &client{t, conn, textproto.NewConn(conn)}
	c.expect(220)
	return c
}

// write sends octets as they are.
func (c *client) write(s string) {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(s)); err != nil {
		c.t.Fatal(err)
	}
}

// expect reads a reply that must have this code and returns its text.
func (c *client) expect(code int) string {
	c.t.Helper()
	got, text, err := c.text.ReadResponse(0)
	if got != code {
		c.t.Fatalf("reply %d %s (%v), want %d", got, text, err, code)
	}
	return text
}

// say sends a line and expects the code.
func (c *client) say(code int, format string, args ...any) string {
	c.t.Helper()
	c.write(fmt.Sprintf(format, args...) + "\r\n")
	return c.expect(code)
}

// upgrade goes on in TLS.
func (c *client) upgrade(roots *x509.CertPool) *tls.Conn {
	c.t.Helper()
	c.say(220, "STARTTLS")
	conn := tls.Client(c.conn, &tls.Config{ServerName: "relay.contoso.com", RootCAs: roots, MinVersion: tls.VersionTLS12})
	if err := conn.HandshakeContext(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	c.conn, c.text = conn, textproto.NewConn(conn)
	return conn
}

// closed fails unless the relay closes the connection now.
func (c *client) closed() {
	c.t.Helper()
	if line, err := c.text.ReadLine(); err == nil {
		c.t.Fatalf("the connection goes on: %q", line)
	} else if n, ok := err.(net.Error); ok && n.Timeout() {
		c.t.Fatal("the connection was not closed")
	}
}

// letter is a small message, sound in every respect, its lines ending in CRLF.
func letter(from, subject string) string {
	return "From: <" + from + ">\r\nTo: <you@example.com>\r\nSubject: " + subject + "\r\nDate: Thu, 01 Oct 2026 10:00:00 +0200\r\n" +
		"Message-ID: <" + subject + "." + from + ">\r\n\r\nThis is " + subject + ".\r\n"
}

// send sends a message whose lines do not begin with dots, and returns its queue id.
func (w *world) send(from, message string, rcpts ...string) (id string) {
	w.t.Helper()
	if len(rcpts) == 0 {
		rcpts = []string{"you@example.com"}
	}
	c := dial(w.t, w.relay.SMTP)
	c.say(250, "EHLO app.contoso.com")
	c.say(250, "MAIL FROM:<%s>", from)
	for _, r := range rcpts {
		c.say(250, "RCPT TO:<%s>", r)
	}
	c.say(354, "DATA")
	c.write(message)
	_, id, ok := strings.Cut(c.say(250, "."), "2.0.0 Ok: queued as ")
	if !ok {
		w.t.Fatal("the reply to the message does not tell its id")
	}
	c.say(221, "QUIT")
	return id
}

// certificate writes a certificate for relay.contoso.com, signed by itself, and its key, and returns the pool to trust.
func certificate(t *testing.T, certFile, keyFile string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "relay.contoso.com"},
		DNSNames: []string{"relay.contoso.com", "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	replaceFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	replaceFile(t, certFile, string(certPEM))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return pool
}
