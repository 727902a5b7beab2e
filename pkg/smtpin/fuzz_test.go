package smtpin

import (
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

// scripted is a client that has said all it will say, in pieces of a size, and half closed.
type scripted struct {
	net.Conn
	sent  string
	piece int
	said  strings.Builder
}

func (c *scripted) Read(p []byte) (int, error) {
	if c.sent == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.piece)], c.sent)
	c.sent = c.sent[n:]
	return n, nil
}

func (c *scripted) Write(p []byte) (int, error)      { return c.said.Write(p) }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// replies runs what a client sends against a server and returns its replies, as lines.
func replies(t *testing.T, set Settings, q *fakeQueue, piece uint8, sent string) []string {
	t.Helper()
	opts, _, _ := testOptions(set, q)
	s, err := newServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	c := &scripted{sent: sent, piece: int(piece) + 1}
	s.admit(t.Context(), &fromLoopback{c})
	s.wg.Wait()
	return strings.Split(strings.TrimSuffix(c.said.String(), "\r\n"), "\r\n")
}

// halfCloser is a client that notices the end of the replies before it stops sending.
type halfCloser struct {
	fromLoopback
	halfClosed bool
}

func (c *halfCloser) CloseWrite() error {
	c.halfClosed = true
	return nil
}

// A socket closed with octets unread is reset, and the reply that says why may be lost with it.
func TestLastReplyIsNotLost(t *testing.T) {
	opts, _, _ := testOptions(testSettings(), &fakeQueue{})
	s, err := newServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	client := &scripted{sent: "POST / HTTP/1.1\r\n" + strings.Repeat("x", 100_000), piece: 1000}
	c := &halfCloser{fromLoopback: fromLoopback{client}}
	s.admit(t.Context(), c)
	s.wg.Wait()
	if !c.halfClosed || client.sent != "" {
		t.Errorf("half closed %v, %d octets unread", c.halfClosed, len(client.sent))
	}
}

const fuzzHeader = "Date: d\r\nMessage-ID: <m@x>\r\nTo: z\r\nFrom: a@contoso.com\r\n\r\n"

var (
	lineEnd  = regexp.MustCompile(`\r\n|\r|\n`)
	falseEnd = regexp.MustCompile(`(^|[\r\n])\.\r\r\n`)
)

// wanted is what must become of the octets behind fuzzHeader, found without the code under test: the message, how much
// of sent it took, and whether it is sound.
func wanted(sent string) (msg string, end int, ok bool) {
	end = strings.Index("\r\n"+sent, "\r\n.\r\n")
	text := sent
	if end >= 0 {
		text = sent[:end]
	}
	if falseEnd.MatchString(text) || end < 0 {
		return "", end, false
	}
	if text == "" {
		return "", end + 3, true
	}
	lines := lineEnd.Split(text, -1)
	for i, line := range lines[:len(lines)-1] {
		if len(line) > 1 {
			lines[i] = strings.TrimPrefix(line, ".")
		}
	}
	return strings.Join(lines, "\r\n"), end + 3, true
}

// FuzzData: a message ends at CRLF.CRLF and nowhere else, what is stored is what was sent, and no octet of it is run.
func FuzzData(f *testing.F) {
	for _, s := range []string{
		"x\r\n", "x\n.\nRSET\n", "x\r\n.\nRSET\r\n", "\r\r\n.\r\r\n", "..\r\n.a", "\x00\xff\r.\r", ".", "a\r\n.\r\nRSET\r\n.\r\n", "\r\n.\r\r", "BDAT 3\r\n",
	} {
		f.Add(s, uint8(0))
		f.Add(s, uint8(255))
	}
	f.Fuzz(func(t *testing.T, body string, piece uint8) {
		q := &fakeQueue{}
		sent := body + "\r\n.\r\n"
		if strings.HasSuffix(body, "\r\n") || body == "" {
			sent = body + ".\r\n"
		}
		got := replies(t, testSettings(), q, piece, "HELO x\r\nMAIL FROM:<a@contoso.com>\r\nRCPT TO:<r@example.com>\r\nDATA\r\n"+fuzzHeader+sent)
		want, end, ok := wanted(sent)
		mails := q.stored()
		if !ok {
			if len(mails) > 0 {
				t.Fatalf("%q was stored as %q", sent, mails[0].body)
			}
			return
		}
		if len(mails) != 1 {
			t.Fatalf("%q: %d messages, replies %q", sent, len(mails), got)
		}
		if got := withoutTrace(t, mails[0]); got != fuzzHeader+want {
			t.Fatalf("%q: got %q, want %q", sent, got, fuzzHeader+want)
		}
		if end == len(sent) && len(got) > 6 { // greeting, HELO, MAIL, RCPT, 354, 250: a seventh answers something of the body
			t.Fatalf("%q was run: %q", sent, got)
		}
	})
}

// FuzzSession: nothing a client sends makes the server panic, hang, or store what does not end.
func FuzzSession(f *testing.F) {
	for _, s := range []string{
		"HELO x\r\nMAIL FROM:<a@contoso.com>\r\nRCPT TO:<r@example.com>\r\nDATA\r\nFrom: a@contoso.com\r\n\r\n.\r\nQUIT\r\n",
		"EHLO x\nMAIL FROM:<>\nRCPT TO:<r@example.com>\nBDAT 6\r\nA: b\r\nBDAT 3 LAST\r\nx\r\n",
		"HELO x\r\nAUTH LOGIN\r\nZXJw\r\n*\r\nAUTH PLAIN AGVycABzZWNyZXQ=\r\nSTARTTLS\r\n",
		"HELO x\r\nBDAT 5\r\nNOOP\r\nDATA\r\n",
		"HELO x\r\nMAIL FROM:<a@contoso.com>\r\nRCPT TO:<r@example.com>\r\nBDAT 0\r\nRSET\r\nVRFY\r\n",
	} {
		f.Add(s, uint8(0), false)
		f.Add(s, uint8(99), true)
	}
	f.Fuzz(func(t *testing.T, sent string, piece uint8, reject bool) {
		set, q := testSettings(), &fakeQueue{}
		set.Listener.RejectLineEndings = reject
		set.Clients = []Client{{Username: "erp", PasswordHash: "$2a$04$zzzzzzzzzzzzzzzzzzzzz.", Senders: []string{"*@contoso.com"}}}
		for _, line := range replies(t, set, q, piece, sent) {
			if len(line) < 4 || line[0] < '2' || line[0] > '5' || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
				t.Fatalf("reply %q", line)
			}
		}
		for _, m := range q.stored() {
			if bare := strings.ReplaceAll(m.body, "\r\n", ""); strings.ContainsAny(bare, "\r\n") || !strings.HasSuffix(m.body, "\r\n") {
				t.Fatalf("stored %q", m.body)
			}
			if !strings.Contains(sent, ".") && !strings.Contains(strings.ToUpper(sent), "LAST") {
				t.Fatalf("%q has no end, and stored %q", sent, m.body)
			}
		}
	})
}
