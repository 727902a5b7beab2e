package submission

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"relayd/pkg/envelope"
	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The opening of a session, as traces show it. In a dialogue "C:" is a line the client must send, "S:" one the server
// sends, "TLS" a handshake, "EOF" the client closing, and "…" silence until it does.
const opening = `
S: 220 SN2PR00CA0018.outlook.office365.com Microsoft ESMTP MAIL Service ready
C: EHLO relay.example
S: 250-SN2PR00CA0018.outlook.office365.com Hello [192.0.2.1]
S: 250-SIZE 157286400
S: 250-PIPELINING
S: 250-DSN
S: 250-ENHANCEDSTATUSCODES
S: 250-STARTTLS
S: 250-8BITMIME
S: 250-BINARYMIME
S: 250-CHUNKING
S: 250 SMTPUTF8
C: STARTTLS
S: 220 2.0.0 SMTP server ready
TLS
C: EHLO relay.example
S: 250-SN2PR00CA0018.outlook.office365.com Hello [192.0.2.1]
S: 250-SIZE 157286400
S: 250-PIPELINING
S: 250-DSN
S: 250-AUTH LOGIN XOAUTH2
S: 250-8BITMIME
S: 250 SMTPUTF8
C: AUTH XOAUTH2
S: 334 
C: dXNlcj1hQGNvbnRvc28uY29tAWF1dGg9QmVhcmVyIHRvawEB
`

const authenticated = opening + "S: 235 2.7.0 Authentication successful\n"

const message = "Subject: x\r\n\r\n.hidden\r\n"

const envelopeLines = `
C: MAIL FROM:<a@contoso.com> SIZE=23 BODY=8BITMIME
C: RCPT TO:<b@fabrikam.com>
C: RCPT TO:<c@fabrikam.com>
S: 250 2.1.0 Sender OK
S: 250 2.1.5 Recipient OK
S: 250 2.1.5 Recipient OK
C: DATA
`

const sent = "S: 354 Start mail input; end with <CRLF>.<CRLF>\nC: Subject: x\nC: \nC: ..hidden\nC: .\n"

// run plays a dialogue against a client that opens a session and delivers message twice, and returns what came of it.
func run(t *testing.T, dialogue string, f func(ctx context.Context, c *Client, conn net.Conn, config *tls.Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server, roots := certificate(t)
		near, far := net.Pipe()
		var playing sync.WaitGroup
		playing.Go(func() {
			defer func() { _ = far.Close() }()
			play(t, far, server, dialogue)
		})
		client := &Client{Hostname: "relay.example", Count: func(status.Stage, int, status.Enhanced) {},
			Catalogue: catalogue.Default, Unknown: func(*status.Error) {},
			Timeouts: Timeouts{Greeting: time.Minute, Command: time.Minute, Data: time.Minute, Block: time.Minute, Dot: time.Minute}}
		f(t.Context(), client, near, &tls.Config{ServerName: "smtp.example", RootCAs: roots, MinVersion: tls.VersionTLS12})
		_ = near.Close()
		playing.Wait()
	})
}

func play(t *testing.T, conn net.Conn, config *tls.Config, dialogue string) {
	br := bufio.NewReader(conn)
	for step := range strings.Lines(dialogue) {
		step = strings.TrimSuffix(step, "\n")
		if text, ok := strings.CutPrefix(step, "S: "); ok {
			if _, err := io.WriteString(conn, text+"\r\n"); err != nil {
				t.Errorf("%s: %v", step, err)
				return
			}
			continue
		}
		if want, ok := strings.CutPrefix(step, "C: "); ok {
			if got, err := br.ReadString('\n'); err != nil || got != want+"\r\n" {
				t.Errorf("got %q, %v, want %q", got, err, want)
				return
			}
			continue
		}
		switch step {
		case "TLS":
			secure := tls.Server(conn, config)
			if err := secure.Handshake(); err != nil {
				t.Errorf("handshake: %v", err)
				return
			}
			conn, br = secure, bufio.NewReader(secure)
		case "EOF", "…":
			if got, err := br.ReadString('\n'); err == nil {
				t.Errorf("got %q, want silence", got)
			}
		}
	}
}

func certificate(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"smtp.example"}, NotBefore: time.Now(),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
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
	// A pipe holds nothing, so a session ticket that the client is not waiting for would block both.
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true}, roots
}

func letter(body io.Reader) *Delivery {
	return &Delivery{Body: body, Open: []int{0, 2}, Errs: make([]*status.Error, 2), Env: &envelope.Envelope{
		Size: int64(len(message)), EightBit: true,
		Recipients: []envelope.Recipient{{Address: "b@fabrikam.com"}, {Address: "settled@fabrikam.com"}, {Address: "c@fabrikam.com"}}}}
}

func TestSession(t *testing.T) {
	tests := []struct {
		name, dialogue string
		want           []string // for each delivery: its error and each recipient's
		broken         bool
	}{
		{"accepted, twice", authenticated + envelopeLines + sent + "S: 250 2.0.0 OK\n" + envelopeLines + sent + "S: 250 2.0.0 OK\nC: QUIT\n",
			[]string{"<nil> [<nil> <nil>]", "<nil> [<nil> <nil>]"}, false},
		{"one recipient refused", authenticated + strings.Replace(envelopeLines, "S: 250 2.1.5 Recipient OK", "S: 550 5.1.10 Recipient not found", 1) + sent + "S: 250 2.0.0 OK\nC: QUIT\n",
			[]string{"<nil> [rcpt: 550 5.1.10 Recipient not found <nil>]"}, false},
		{"all refused, then RSET in front", authenticated + strings.ReplaceAll(strings.Replace(envelopeLines, "C: DATA", "", 1), "S: 250 2.1.5 Recipient OK", "S: 550 5.1.10 no") +
			"C: RSET\n" + strings.Replace(envelopeLines, "S: 250 2.1.0", "S: 250 2.0.0 Resetting\nS: 250 2.1.0", 1) + sent + "S: 250 2.0.0 OK\nC: QUIT\n",
			[]string{"<nil> [rcpt: 550 5.1.10 no rcpt: 550 5.1.10 no]", "<nil> [<nil> <nil>]"}, false},
		{"MAIL refused", authenticated + strings.Replace(strings.Replace(envelopeLines, "C: DATA", "", 1), "S: 250 2.1.0 Sender OK", "S: 451 4.3.0 later", 1) + "C: QUIT\n",
			[]string{"mail: 451 4.3.0 later [<nil> <nil>]"}, false},
		{"DATA refused", authenticated + envelopeLines + "S: 451 4.3.0 later\nC: QUIT\n", []string{"data: 451 4.3.0 later [<nil> <nil>]"}, false},
		{"421 ends it", authenticated + envelopeLines + sent + "S: 421 4.3.2 closing\nEOF\n", []string{"dot: 421 4.3.2 closing [<nil> <nil>]"}, true},
		{"no reply to the dot", authenticated + envelopeLines + sent + "…\n",
			[]string{"dot: 451 4.4.2 the message was sent, but no reply came: it may have been accepted [<nil> <nil>]"}, true},
		{"no reply to MAIL", authenticated + strings.Split(envelopeLines, "S:")[0] + "…\n",
			[]string{"mail: 451 4.4.2 Exchange Online did not answer in time [<nil> <nil>]"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, tt.dialogue, func(ctx context.Context, c *Client, conn net.Conn, config *tls.Config) {
				s, e := c.Open(ctx, conn, config, "a@contoso.com", "tok")
				if e != nil {
					t.Errorf("open: %v (%v)", e, e.Err)
					return
				}
				for _, want := range tt.want {
					d := letter(strings.NewReader(message))
					e := s.Deliver(ctx, d)
					if got := fmt.Sprint(e, d.Errs); got != want {
						t.Errorf("got %s, want %s", got, want)
					}
					if accepted := strings.Contains(want, "<nil> [<nil>"); accepted != (d.Reply == "250 2.0.0 OK") && !strings.Contains(want, "not found") {
						t.Errorf("got reply %q", d.Reply)
					}
				}
				if s.Broken() != tt.broken || s.Messages() != len(tt.want) {
					t.Errorf("got broken %v after %d messages", s.Broken(), s.Messages())
				}
				s.Close()
			})
		})
	}
}

func TestOpenFails(t *testing.T) {
	plain := func(answer string) string {
		return strings.Split(opening, "C: STARTTLS")[0] + "C: STARTTLS\n" + answer
	}
	tests := []struct {
		name, dialogue, want string
		action               status.Action
		token                bool // a fresh one may help
	}{
		{"greeting", "S: 554 5.3.2 no\n", "greeting: 554 5.3.2 no", status.Retry, false},
		{"454 to STARTTLS", plain("S: 454 4.7.0 not now\nEOF\n"), "starttls: 454 4.7.0 not now", status.Retry, false},
		{"no STARTTLS", strings.Replace(strings.Split(opening, "C: STARTTLS")[0], "250-STARTTLS", "250-AUTH XOAUTH2", 1) + "EOF\n", "starttls: 454 4.7.0 ", status.Retry, false},
		{"535", opening + "S: 535 5.7.3 Authentication unsuccessful\nEOF\n", "auth: 535 5.7.3 Authentication unsuccessful", status.ParkSender, true},
		{"challenge, then 535", opening + "S: 334 eyJzdGF0dXMiOiI0MDEifQ==\nC: \nS: 535 5.7.3 no\nEOF\n", "auth: 535 5.7.3 no", status.ParkSender, true},
		{"challenges for ever", opening + "S: 334 eyJ9\nC: \nS: 334 eyJ9\nEOF\n", "auth: 451 4.5.0 ", status.Retry, false},
		{"454", opening + "S: 454 4.7.0 Temporary authentication failure\nEOF\n", "auth: 454 4.7.0 ", status.BackOffSender, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, tt.dialogue, func(ctx context.Context, c *Client, conn net.Conn, config *tls.Config) {
				s, e := c.Open(ctx, conn, config, "a@contoso.com", "tok")
				if s != nil || e == nil || !strings.HasPrefix(e.Error(), tt.want) || e.Action != tt.action || c.TokenAtFault(e) != tt.token {
					t.Errorf("got %v, %v, want %v, %s", e.Action, e, tt.action, tt.want)
				}
				if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is left open: %v", err)
				}
			})
		})
	}
}

// TestUnreadable: a message that cannot be read to its end never gets its dot.
func TestUnreadable(t *testing.T) {
	for name, body := range map[string]io.Reader{
		"fault": io.MultiReader(strings.NewReader(message[:5]), iotest.ErrReader(os.ErrInvalid)),
		"short": strings.NewReader(message[:len(message)-2]),
	} {
		t.Run(name, func(t *testing.T) {
			run(t, authenticated+envelopeLines+"S: 354 go\nEOF\n", func(ctx context.Context, c *Client, conn net.Conn, config *tls.Config) {
				s, e := c.Open(ctx, conn, config, "a@contoso.com", "tok")
				if e != nil {
					t.Errorf("open: %v", e)
					return
				}
				d := letter(body)
				e = s.Deliver(ctx, d)
				if e == nil || e.Action != status.Retry || !d.Started || !s.Broken() ||
					!errors.Is(e, os.ErrInvalid) && !errors.Is(e, io.ErrUnexpectedEOF) {
					t.Errorf("got %v, started %v, broken %v", e, d.Started, s.Broken())
				}
				s.Close()
			})
		})
	}
}

func TestWithhold(t *testing.T) {
	const secret = "0123456789abcdefghijklmnopqrstuvwxyz"
	tests := []struct {
		text string
		want bool
	}{
		{"Authentication unsuccessful", false}, {"no " + secret, true}, {"no " + secret[3:19], true}, {"no " + secret[3:18], false},
		{secret[:8] + secret[9:17] + secret[20:35], false}, {"", false}, {secret[20:], true}, {secret[:16], true}, {"x" + secret[:16], true},
		{"1234567 " + secret[8:23], false}, // the octets in common are not in a row
	}
	for _, tt := range tests {
		e := secrets{"short", secret}.withhold(&status.Error{Text: tt.text, Err: errors.New(tt.text)})
		if got := e.Text != tt.text; got != tt.want || (e.Err.Error() != tt.text) != tt.want {
			t.Errorf("%q: got %q, %v", tt.text, e.Text, e.Err)
		}
	}
}

// TestAhead: on a real socket, in clear and behind TLS, what has come is seen and not lost, and nothing is waited for.
func TestAhead(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			near, far := sockets(t)
			s := &Session{client: &Client{Timeouts: Timeouts{Command: time.Hour}}, raw: newWire(near)}
			s.conn = s.raw
			if secure {
				server, roots := certificate(t)
				server.SessionTicketsDisabled = false // a ticket is nothing said
				tlsFar := tls.Server(far, server)
				var shaking sync.WaitGroup
				shaking.Go(func() {
					if err := tlsFar.Handshake(); err != nil {
						t.Error(err)
					}
				})
				s.conn = tls.Client(s.raw, &tls.Config{ServerName: "smtp.example", RootCAs: roots, MinVersion: tls.VersionTLS12})
				if err := s.conn.(*tls.Conn).Handshake(); err != nil {
					t.Fatal(err)
				}
				shaking.Wait()
				far = tlsFar
			}
			s.br = bufio.NewReader(s.conn)
			if there, err := s.ahead(); there || err != nil {
				t.Fatalf("before a word: got %v, %v", there, err)
			}
			for _, said := range []string{"250 one\r\n", "250 two\r\n"} {
				if _, err := io.WriteString(far, said); err != nil {
					t.Fatal(err)
				}
				for there := false; !there; { // it is on its way
					var err error
					if there, err = s.ahead(); err != nil {
						t.Fatal(err)
					}
				}
				if got, err := s.br.ReadString('\n'); got != said || err != nil {
					t.Fatalf("got %q, %v, want %q", got, err, said)
				}
			}
			if there, err := s.ahead(); there || err != nil {
				t.Errorf("after all: got %v, %v", there, err)
			}
			if err := far.Close(); err != nil {
				t.Fatal(err)
			}
			var err error
			for err == nil {
				var there bool
				if there, err = s.ahead(); there {
					t.Fatal("got a word of a closed connection")
				}
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want EOF", err)
			}
		})
	}
}

// sockets is the two ends of a TCP connection.
func sockets(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}
