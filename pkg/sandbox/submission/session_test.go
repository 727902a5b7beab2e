package submission

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/fault"
	"relayd/pkg/sandbox/mailbox"
)

func TestParseXOAUTH2(t *testing.T) {
	for _, test := range []struct {
		in, user, token string
		ok              bool
	}{
		{"user=a@b\x01auth=Bearer tok\x01\x01", "a@b", "tok", true},
		{"user=a@b\x01auth=Bearer tok\x01", "", "", false},
		{"user=a@b\x01auth=bearer tok\x01\x01", "", "", false},
		{"auth=Bearer tok\x01user=a@b\x01\x01", "", "", false},
		{"user=a@b\x01auth=Bearer \x01\x01", "a@b", "", false},
		{"User=a@b\x01auth=Bearer tok\x01\x01", "User=a@b", "tok", false},
		{"user=a@b\x01x=y\x01auth=Bearer tok\x01\x01", "a@b\x01x=y", "tok", false},
		{"user=a@b\x01auth=Bearer tok\x01\x01\x01", "a@b", "tok\x01", false},
		{"", "", "", false},
	} {
		user, token, ok := parseXOAUTH2(test.in)
		if ok != test.ok || ok && (user != test.user || token != test.token) {
			t.Errorf("%q: got %q, %q, %v", test.in, user, token, ok)
		}
	}
}

// scriptConn is a client that has sent everything at once and reads nothing until it is over.
type scriptConn struct {
	net.Conn // nil: what is not below is not called
	in       io.Reader
	out      strings.Builder
}

func (c *scriptConn) Read(p []byte) (int, error)         { return c.in.Read(p) }
func (c *scriptConn) Write(p []byte) (int, error)        { return c.out.Write(p) }
func (c *scriptConn) Close() error                       { return nil }
func (c *scriptConn) RemoteAddr() net.Addr               { return &net.UnixAddr{Name: "client"} }
func (c *scriptConn) SetReadDeadline(t time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(t time.Time) error { return nil }

func newTestServer(t testing.TB, deliver func(*Message, []byte)) *Server {
	limits := mailbox.Limits{MessagesPerMin: -1}.WithDefaults()
	faults := &fault.List{}
	d, err := directory.New(directory.Options{Faults: faults, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{
		ServerName: "sandbox.example", Limits: limits, Mailboxes: mailbox.New(limits), Directory: d, Faults: faults,
		TLS: func(string, uint16) *tls.Config { return &tls.Config{} }, Deliver: deliver, KeepBodies: true, Log: zap.NewNop(),
	})
}

// play holds a session with an authenticated client that sends script, and returns everything it was answered.
func play(v *Server, script string) string {
	conn := &scriptConn{in: strings.NewReader(script)}
	s := newSession(v, conn, 1)
	s.hello, s.secured, s.login = true, true, "a@b.example"
	v.opts.Mailboxes.Open(s.login)
	s.serve(context.Background())
	return conn.out.String()
}

// Whatever a client sends, it gets one reply a command, nothing of a body is taken for a command, and the session ends.
func FuzzSession(f *testing.F) {
	const message = "From: a@b.example\r\n\r\n.x\r\n.\r\n"
	f.Add("MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n" + message + "QUIT\r\n")
	f.Add("MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 3\r\nQUIBDAT 0 LAST\r\nRSET\r\n")
	f.Add("EHLO x.example\r\nAUTH XOAUTH2 ====\r\nHELO \x00\r\nNOOP\nBDAT -1\r\n")
	var delivered []*Message
	v := newTestServer(f, func(m *Message, raw []byte) {
		if int64(len(raw)) != m.Size {
			panic("a message and its size differ")
		}
		delivered = append(delivered, m)
	})
	f.Fuzz(func(t *testing.T, script string) {
		delivered = nil
		out := play(v, script)
		if !strings.HasSuffix(out, "\r\n") || strings.Contains(strings.ReplaceAll(out, "\r\n", ""), "\n") {
			t.Errorf("%q: replies %q", script, out)
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(out, "\r\n"), "\r\n") {
			if len(line) < 4 || line[0] < '2' || line[0] > '5' || line[3] != ' ' && line[3] != '-' {
				t.Errorf("%q: reply line %q", script, line)
			}
		}
		if accepted := strings.Count(out, "250 2.0.0 OK <") + strings.Count(out, "250 2.0.0 OK  ["); accepted > len(delivered) {
			t.Errorf("%q: %d accepted, %d delivered", script, accepted, len(delivered))
		}
		if m := v.opts.Mailboxes.Stats()["a@b.example"]; m.Sessions != 0 {
			t.Errorf("%q: %d sessions are left", script, m.Sessions)
		}
	})
}

// The body of a broken message never runs as commands.
func TestBodyIsNotCommands(t *testing.T) {
	n := 0
	v := newTestServer(t, func(*Message, []byte) { n++ })
	const envelope = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
	for name, test := range map[string]struct {
		body    string
		replies string // codes after those of the envelope
	}{
		"cut in the middle":        {"DATA\r\nFrom: a@b.example\r\n\r\nQUIT\r\n", "354"},
		"LF.LF":                    {"DATA\r\nFrom: a@b.example\r\n\r\n\n.\nQUIT\r\n", "354"},
		"LF.CRLF":                  {"DATA\r\nFrom: a@b.example\r\n\r\n\n.\r\nQUIT\r\n", "354"},
		"CRLF.LF":                  {"DATA\r\nFrom: a@b.example\r\n\r\n.\nQUIT\r\n", "354"},
		"CR.CR":                    {"DATA\r\nFrom: a@b.example\r\n\r\n\r.\rQUIT\r\n", "354"},
		"CRLF.CRLF":                {"DATA\r\nFrom: a@b.example\r\n\r\n.\r\nQUIT\r\n", "354 250 221"},
		"refused and then a next":  {"DATA\r\nQUIT\r\n.\r\nNOOP\r\n", "354 550 250"},
		"chunk cut short":          {"BDAT 100\r\nQUIT\r\n", ""},
		"chunk that has a command": {"BDAT 6\r\nQUIT\r\nNOOP\r\n", "250 250"},
	} {
		out := play(v, envelope+test.body)
		var codes []string
		for line := range strings.Lines(out) {
			codes = append(codes, line[:3])
		}
		if got := strings.Join(codes[3:], " "); got != test.replies { // banner and envelope are three
			t.Errorf("%s: got %q, want %q", name, got, test.replies)
		}
	}
	if n != 1 {
		t.Errorf("%d messages were delivered, want 1", n)
	}
}

// A batch of commands is answered by one write.
func TestOneWriteABatch(t *testing.T) {
	v := newTestServer(t, func(*Message, []byte) {})
	conn := &countingConn{scriptConn: scriptConn{in: strings.NewReader("EHLO a.example\r\nNOOP\r\nRSET\r\nNOOP\r\nQUIT\r\n")}}
	newSession(v, conn, 1).serve(context.Background())
	if conn.writes != 2 { // the banner before the first read, and the rest
		t.Errorf("got %d writes of %q", conn.writes, conn.out.String())
	}
}

type countingConn struct {
	scriptConn
	writes int
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes++
	return c.scriptConn.Write(p)
}
