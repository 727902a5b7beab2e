package exchange

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// server is a scripted submission server on in-memory connections, so that it lives on fake time. By default it does
// what Exchange Online's traces show; say changes single answers.
type server struct {
	certificate tls.Certificate
	maxTLS      uint16
	offer       []string // EHLO keywords behind TLS, AUTH included
	offerPlain  []string

	// say returns what to send in answer to line of connection n (from 1); "" for the default. Where there is no line it is
	// "(greeting)", "(empty)", "(credential)", "(body)" or "(part)", its first line; "." is the end of a message. hangUp at
	// the end of an answer closes behind it; silence is no answer, and drip one without end. Behind apart, the rest is
	// written on its own, and behind later, when it was not expected any more.
	say func(n int, line string) string

	mu       sync.Mutex
	conns    int
	tokens   []string
	lines    []string // "1: EHLO …", AUTH data as "1: (credential)"
	messages []received
	dialErr  error
	over     chan struct{} // closed when the test is
	done     sync.WaitGroup
}

type received struct {
	from string // MAIL line's rest
	to   []string
	data string
}

const (
	hangUp  = "\x00hang up"
	silence = "\x00silence"
	drip    = "\x00drip" // one octet a second, no end of line
	apart   = "\x00apart"
	later   = "\x00later"
)

var plainOffer = []string{"SIZE 157286400", "PIPELINING", "DSN", "ENHANCEDSTATUSCODES", "STARTTLS", "8BITMIME", "BINARYMIME", "CHUNKING", "SMTPUTF8"}

func newServer(t testing.TB) (*server, *x509.CertPool) {
	t.Helper()
	cert, roots := certify(t, "smtp.example", time.Now().Add(time.Hour))
	s := &server{certificate: cert, over: make(chan struct{}), offerPlain: plainOffer, say: func(int, string) string { return "" }}
	s.offer = append(slices.DeleteFunc(slices.Clone(plainOffer), func(k string) bool { return k == "STARTTLS" }), "AUTH LOGIN XOAUTH2")
	return s, roots
}

// certify makes a self-signed certificate for name and a pool that trusts it.
func certify(t testing.TB, name string, until time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		IPAddresses: []net.IP{{127, 0, 0, 1}}, NotBefore: until.Add(-30 * 24 * time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func (s *server) dial(ctx context.Context, _, address string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dialErr != nil {
		return nil, s.dialErr
	}
	if address != "smtp.example:587" {
		return nil, fmt.Errorf("dialled %s", address)
	}
	s.conns++
	n := s.conns
	client, far := net.Pipe()
	far = newBuffered(far, &s.done)
	s.done.Go(func() { s.serve(n, far) })
	return client, ctx.Err()
}

// serve speaks one connection. Its state is on the stack; what tests look at is under s.mu.
func (s *server) serve(n int, conn net.Conn) {
	c := &conversation{server: s, n: n, conn: conn, br: bufio.NewReader(conn)}
	defer func() { _ = c.conn.Close() }()
	if !c.send("(greeting)", "220 SN2PR00CA0018.outlook.office365.com Microsoft ESMTP MAIL Service ready\r\n") {
		return
	}
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			return
		}
		if line = strings.TrimSuffix(line, "\r\n"); line == "" {
			line = "(empty)"
		}
		s.mu.Lock()
		s.lines = append(s.lines, fmt.Sprintf("%d: %s", n, line))
		s.mu.Unlock()
		if !c.answer(line) {
			return
		}
	}
}

type conversation struct {
	server *server
	n      int
	conn   net.Conn
	br     *bufio.Reader
	tls    bool
	mail   received
}

// send sends what the script says to line, else normal.
func (c *conversation) send(line, normal string) bool {
	answer := c.server.say(c.n, line)
	switch answer {
	case silence:
		_, _ = io.Copy(io.Discard, c.conn)
		return false
	case drip:
		for {
			if _, err := c.conn.Write([]byte("2")); err != nil {
				return false
			}
			select {
			case <-c.server.over:
				return false
			case <-time.After(time.Second):
			}
		}
	case "":
		answer = normal
	}
	answer, end := strings.CutSuffix(answer, hangUp)
	var err error
	for part := range strings.SplitSeq(answer, apart) {
		now, then, _ := strings.Cut(part, later)
		if _, err = io.WriteString(c.conn, now); err == nil && then != "" {
			advance(time.Second)
			_, err = io.WriteString(c.conn, then)
		}
	}
	return err == nil && !end && (answer == normal || !strings.HasPrefix(answer, "421"))
}

func (c *conversation) answer(line string) bool {
	s := c.server
	verb, _, _ := strings.Cut(line, " ")
	switch verb {
	case "EHLO":
		offer := s.offerPlain
		if c.tls {
			offer = s.offer
		}
		return c.send(line, "250-smtp.example Hello\r\n250-"+strings.Join(offer, "\r\n250-")+"\r\n250 XTRA\r\n")
	case "STARTTLS":
		return c.startTLS(line)
	case "AUTH":
		return c.auth(line)
	case "MAIL":
		c.mail = received{from: line}
		return c.send(line, "250 2.1.0 Sender OK\r\n")
	case "RCPT":
		answer := s.say(c.n, line)
		if answer == "" || answer[0] == '2' {
			c.mail.to = append(c.mail.to, line)
		}
		return c.send(line, "250 2.1.5 Recipient OK\r\n")
	case "DATA":
		return c.data(line)
	case "RSET":
		return c.send(line, "250 2.0.0 Resetting\r\n")
	case "QUIT":
		return false
	case "(empty)":
		return c.send(line, "535 5.7.3 Authentication unsuccessful [SN2PR00CA0018]\r\n")
	}
	return c.send(line, "500 5.3.3 Unrecognized command\r\n")
}

func (c *conversation) startTLS(line string) bool {
	if !c.send(line, "220 2.0.0 SMTP server ready\r\n") {
		return false
	}
	config := &tls.Config{Certificates: []tls.Certificate{c.server.certificate}, MaxVersion: c.server.maxTLS, MinVersion: tls.VersionTLS10}
	conn := tls.Server(c.conn, config)
	if conn.Handshake() != nil {
		return false
	}
	c.conn, c.tls = conn, true
	c.br = bufio.NewReader(conn)
	return true
}

func (c *conversation) auth(line string) bool {
	s := c.server
	if !c.send(line, "334 \r\n") || s.say(c.n, line) != "" && !strings.HasPrefix(s.say(c.n, line), "334") {
		return true
	}
	answer, err := c.br.ReadString('\n')
	if err != nil {
		return false
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(answer, "\r\n"))
	parts := strings.Split(string(raw), "\x01")
	if err != nil || len(parts) != 4 || !strings.HasPrefix(parts[0], "user=") {
		return c.send("(malformed)", "501 5.5.4 Malformed\r\n")
	}
	s.mu.Lock()
	s.tokens = append(s.tokens, strings.TrimPrefix(parts[1], "auth=Bearer "))
	s.lines = append(s.lines, fmt.Sprintf("%d: (%s)", c.n, parts[0]))
	s.mu.Unlock()
	return c.send("(credential)", "235 2.7.0 Authentication successful\r\n")
}

func (c *conversation) data(line string) bool {
	if !c.send(line, "354 Start mail input; end with <CRLF>.<CRLF>\r\n") {
		return false
	}
	if answer := c.server.say(c.n, line); answer != "" && !strings.HasPrefix(answer, "354") {
		return true
	}
	if answer := c.server.say(c.n, "(body)"); answer != "" { // before any of it has been read
		if answer == silence {
			<-c.server.over
			return false
		}
		answer, _ = strings.CutSuffix(answer, hangUp)
		_, _ = io.WriteString(c.conn, answer)
		return false
	}
	var data strings.Builder
	for {
		l, err := c.br.ReadString('\n')
		if err != nil {
			return false
		}
		if l == ".\r\n" {
			break
		}
		if answer := c.server.say(c.n, "(part)"); answer != "" {
			_, _ = io.WriteString(c.conn, answer)
			<-c.server.over // and takes no more
			return false
		}
		data.WriteString(strings.TrimPrefix(l, "."))
	}
	c.mail.data = data.String()
	s := c.server
	s.mu.Lock()
	s.messages = append(s.messages, c.mail)
	s.mu.Unlock()
	return c.send(".", "250 2.0.0 OK <id@x> [Hostname=X.prod.outlook.com]\r\n")
}

// buffered is a pipe's end whose writes do not wait for the reader, as a socket's do not.
type buffered struct {
	net.Conn
	mu     sync.Mutex // guards what follows
	filled sync.Cond
	data   []byte
	closed bool
}

func newBuffered(conn net.Conn, done *sync.WaitGroup) *buffered {
	b := &buffered{Conn: conn}
	b.filled.L = &b.mu
	done.Go(b.pump)
	return b
}

// pump writes what has been buffered, all of it, before it closes.
func (b *buffered) pump() {
	defer func() { _ = b.Conn.Close() }()
	for {
		b.mu.Lock()
		for len(b.data) == 0 && !b.closed {
			b.filled.Wait()
		}
		data := b.data
		b.data = nil
		b.mu.Unlock()
		if len(data) == 0 {
			return
		}
		if _, err := b.Conn.Write(data); err != nil {
			return
		}
	}
}

func (b *buffered) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, net.ErrClosed
	}
	b.data = append(b.data, p...)
	b.filled.Signal()
	return len(p), nil
}

// SetWriteDeadline does nothing: crypto/tls sets one in the past as it closes, which must not cost what is buffered.
func (b *buffered) SetWriteDeadline(time.Time) error { return nil }

func (b *buffered) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.filled.Signal()
	return b.Conn.SetReadDeadline(time.Now())
}

// commands returns the lines of all connections that begin with one of the verbs; all lines without any.
func (s *server) commands(verbs ...string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.lines), func(line string) bool {
		_, command, _ := strings.Cut(line, ": ")
		return len(verbs) > 0 && !slices.ContainsFunc(verbs, func(v string) bool { return strings.HasPrefix(command, v) })
	})
}

// tokens is a scripted source: token-1, and a new one for each refusal.
type tokens struct {
	mu      sync.Mutex
	n       int
	refused []string
	err     error
	stuck   bool // gives the refused one again
}

func (k *tokens) Token(_ context.Context, tenant, login, refused string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return "", k.err
	}
	if refused != "" {
		k.refused = append(k.refused, refused)
	}
	if current := fmt.Sprintf("token-%d-of-%s-for-%s", k.n, tenant, login); refused == current && !k.stuck {
		k.n++
	}
	return fmt.Sprintf("token-%d-of-%s-for-%s", k.n, tenant, login), nil
}

type rig struct {
	*Pool
	*server
	*tokens
	t        *testing.T
	route    envelope.Route
	roots    *x509.CertPool
	registry *prometheus.Registry
	logs     *observer.ObservedLogs
}

// within runs f on fake time with a pool before a server; change may alter either first.
func within(t *testing.T, change func(*server, *Options), f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, roots := newServer(t)
		core, logs := observer.New(zap.DebugLevel)
		r := &rig{server: s, tokens: &tokens{}, t: t, roots: roots, registry: prometheus.NewRegistry(), logs: logs,
			route: envelope.Route{Tenant: "contoso", Login: "a@contoso.com", Connections: 3}}
		o := Options{Hostname: "relay.example", Tenants: map[string]Tenant{"contoso": {Server: "smtp.example:587", RootCAs: roots}},
			Tokens: r.tokens, Logger: zap.New(core), Registerer: r.registry, Dial: s.dial}
		if change != nil {
			change(s, &o)
		}
		var err error
		if r.Pool, err = New(o); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := r.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		f(r)
		cancel()
		running.Wait()
		close(s.over)
		s.done.Wait()
	})
}

// script is for within: answers by connection and line, the line matched by its beginning. Connection 0 is any.
func script(answers map[string]string) func(*server, *Options) {
	return func(s *server, _ *Options) { s.say = answerer(answers) }
}

func answerer(answers map[string]string) func(int, string) string {
	return func(n int, line string) string {
		for _, conn := range []string{fmt.Sprint(n), "*"} {
			for key, answer := range answers {
				if prefix, ok := strings.CutPrefix(key, conn+" "); ok && (prefix == line || prefix != "" && strings.HasPrefix(line, prefix)) {
					return answer
				}
			}
		}
		return ""
	}
}

const text = "Subject: x\r\n\r\nHello\r\n.\r\n..dots\r\nbye\r\n"

// send delivers a message to recipients.
func (r *rig) send(message string, recipients ...envelope.Address) status.Outcome {
	return r.deliver(r.t.Context(), message, strings.NewReader(message), recipients...)
}

func (r *rig) deliver(ctx context.Context, message string, body io.Reader, recipients ...envelope.Address) status.Outcome {
	env, open := envelop(message, recipients...)
	return r.Deliver(ctx, &r.route, env, open, body)
}

func envelop(message string, recipients ...envelope.Address) (*envelope.Envelope, []int) {
	env := &envelope.Envelope{ID: "0123456789abcdefghjk", ReversePath: "app@contoso.com", Sender: "a@contoso.com", Size: int64(len(message))}
	var open []int
	for i, a := range recipients {
		env.Recipients = append(env.Recipients, envelope.Recipient{Address: a})
		open = append(open, i)
	}
	return env, open
}

// one delivers text to one recipient, who must have the wanted fate: "" or "stage: code …" and action.
func (r *rig) one(want string, action status.Action) *status.Error {
	r.t.Helper()
	return r.fate(r.send(text, "b@fabrikam.com"), want, action)
}

func (r *rig) fate(out status.Outcome, want string, action status.Action) *status.Error {
	r.t.Helper()
	if len(out.Errs) != 1 {
		r.t.Fatalf("got %d results, want 1", len(out.Errs))
	}
	e := out.Errs[0]
	switch {
	case want == "" && e != nil:
		r.t.Errorf("got %v (%v), want acceptance", e, e.Err)
	case want != "" && e == nil:
		r.t.Errorf("accepted, want %q", want)
	case want != "" && (!strings.HasPrefix(e.Error(), want) || e.Action != action):
		r.t.Errorf("got %v, %q (%v), want %v, %q", e.Action, e, e.Err, action, want)
	}
	return e
}

// kept is how many idle sessions the pool has, by both of its counts.
func (r *rig) kept() int {
	r.Pool.mu.Lock()
	defer r.Pool.mu.Unlock()
	n := 0
	for mailbox, list := range r.Pool.idle {
		if len(list) == 0 {
			r.t.Errorf("%s is kept without a session", mailbox)
		}
		n += len(list)
	}
	if n != r.Pool.idling {
		r.t.Errorf("counted %d idle sessions, have %d", r.Pool.idling, n)
	}
	return n
}

var errDisk = errors.New("disk on fire")
