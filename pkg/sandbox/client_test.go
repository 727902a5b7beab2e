package sandbox_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"relayd/pkg/sandbox"
)

const patience = 20 * time.Second // for anything that should happen at once

const (
	tenantID = "5f2c0f2e-0000-4000-8000-00000000c0de"
	clientID = "9b1a2c3d-0000-4000-8000-00000000abcd"
	secret   = "s3cr3t~value"
)

func contoso() sandbox.Tenant {
	return sandbox.Tenant{
		ID: tenantID, Mailboxes: []string{"*@contoso.com"},
		SendAs: []sandbox.Grant{{Login: "app@contoso.com", As: "sales@contoso.com"}},
		Apps:   []sandbox.App{{ID: clientID, Secret: secret}},
	}
}

// start runs a sandbox until the test ends.
func start(t *testing.T, opts sandbox.Options) *sandbox.Sandbox {
	t.Helper()
	if opts.Tenants == nil {
		opts.Tenants = []sandbox.Tenant{contoso()}
	}
	b, err := sandbox.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-stopped:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run did not return")
		}
	})
	return b
}

// client speaks SMTP by hand.
type client struct {
	t    testing.TB
	box  *sandbox.Sandbox
	conn net.Conn
	in   *bufio.Reader
}

func dial(t testing.TB, b *sandbox.Sandbox) *client {
	t.Helper()
	conn, err := net.Dial("tcp", b.SMTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return &client{t, b, conn, bufio.NewReader(conn)}
}

func (c *client) write(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Fatalf("write %.40q: %v", s, err)
	}
}

// reply reads one reply, lines joined by \n.
func (c *client) reply() string {
	c.t.Helper()
	var lines []string
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			c.t.Fatalf("read a reply after %q: %v", lines, err)
		}
		lines = append(lines, strings.TrimSuffix(line, "\r\n"))
		if len(line) < 4 || line[3] != '-' {
			return strings.Join(lines, "\n")
		}
	}
}

func (c *client) cmd(line string) string {
	c.t.Helper()
	c.write(line + "\r\n")
	return c.reply()
}

// want sends a line and checks the beginning of the reply.
func (c *client) want(line, reply string) {
	c.t.Helper()
	if got := c.cmd(line); !strings.HasPrefix(got, reply) {
		c.t.Fatalf("%.60s: got %q, want %q", line, got, reply)
	}
}

// closed checks that the server ends the connection.
func (c *client) closed() {
	c.t.Helper()
	if _, err := c.in.ReadByte(); err == nil {
		c.t.Fatal("the connection is still open")
	} else if e, ok := err.(net.Error); ok && e.Timeout() {
		c.t.Fatal("the connection was not closed in time")
	}
}

func (c *client) tlsConfig() *tls.Config {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.box.CAPEM()) {
		c.t.Fatal("no certificate in CAPEM")
	}
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

func (c *client) handshake(config *tls.Config) error {
	conn := tls.Client(c.conn, config)
	if err := conn.Handshake(); err != nil {
		return err
	}
	c.conn, c.in = conn, bufio.NewReader(conn)
	return nil
}

// secure goes through banner, EHLO, STARTTLS and EHLO.
func (c *client) secure() *client {
	c.t.Helper()
	c.reply()
	c.want("EHLO client.example.org", "250-")
	c.want("STARTTLS", "220 2.0.0 SMTP server ready")
	if err := c.handshake(c.tlsConfig()); err != nil {
		c.t.Fatal(err)
	}
	c.want("EHLO client.example.org", "250-")
	return c
}

func xoauth2(user, token string) string {
	return base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01"))
}

func (c *client) token() string {
	c.t.Helper()
	token, err := c.box.Token(tenantID, clientID, time.Hour)
	if err != nil {
		c.t.Fatal(err)
	}
	return token
}

// auth does the two-step XOAUTH2 and returns the verdict.
func (c *client) auth(user, token string) string {
	c.t.Helper()
	c.want("AUTH XOAUTH2", "334 ")
	return c.cmd(xoauth2(user, token))
}

// login is a connection ready for MAIL.
func login(t testing.TB, b *sandbox.Sandbox, user string) *client {
	t.Helper()
	c := dial(t, b).secure()
	if got := c.auth(user, c.token()); got != "235 2.7.0 Authentication successful" {
		t.Fatalf("AUTH: %s", got)
	}
	return c
}

// envelope sends MAIL, RCPT and DATA.
func (c *client) envelope(from string, to ...string) {
	c.t.Helper()
	c.want("MAIL FROM:<"+from+">", "250 2.1.0 Sender OK")
	for _, r := range to {
		c.want("RCPT TO:<"+r+">", "250 2.1.5 Recipient OK")
	}
	c.want("DATA", "354 ")
}

// send sends a message whose header is From and Subject and the extra lines, and returns the final reply.
func (c *client) send(from, extra string) string {
	c.t.Helper()
	c.envelope(from, "b@example.net")
	return c.cmd("From: <" + from + ">\r\n" + extra + "Subject: x\r\n\r\nhello\r\n.")
}

func web(t *testing.T, b *sandbox.Sandbox) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b.CAPEM())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// call does a request to the control API and decodes the JSON answer into out unless that is nil.
func call(t *testing.T, b *sandbox.Sandbox, method, path, body string, status int, out any) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+b.HTTPAddr()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := web(t, b).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Fatalf("%s %s: got %s %s, want %d", method, path, resp.Status, data, status)
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, data)
		}
	}
}

type tokenAnswer struct {
	Type        string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"`
	Token       string `json:"access_token"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
	Codes       []int  `json:"error_codes"`
	Trace       string `json:"trace_id"`
	Correlation string `json:"correlation_id"`
	Timestamp   string `json:"timestamp"`
}

// askToken posts a form to the token endpoint of a tenant.
func askToken(t *testing.T, b *sandbox.Sandbox, tenant string, form url.Values) (*http.Response, tokenAnswer) {
	t.Helper()
	resp, err := web(t, b).PostForm(fmt.Sprintf("%s/%s/oauth2/v2.0/token", b.Authority(), tenant), form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var a tokenAnswer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	return resp, a
}

func credentials() url.Values {
	return url.Values{
		"grant_type": {"client_credentials"}, "client_id": {clientID}, "client_secret": {secret},
		"scope": {"https://outlook.office365.com/.default"},
	}
}
