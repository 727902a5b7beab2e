package smtpin

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"relayd/pkg/status"
)

// Each file of testdata/dialogues is a conversation:
//
//	with NAME     the setting to run it against, see dialogueSettings
//	C: text       sent with CRLF
//	C" text       sent as it is, with Go's escapes and nothing behind it
//	C* n text     text, with Go's escapes, n times
//	S: text       the next line from the server; "..." stands for anything
//	S.            the server has closed the connection, with nothing before it
//	TLS           handshake
//	Q: text       a stored message, in order, with Go's escapes, behind the fields every message is given
//	E: text       its envelope: client reverse-path sender recipients…
//
// All stored messages must be listed.
func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogues/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d dialogues, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			runDialogue(t, string(script))
		})
	}
}

// dialogueSettings changes the setting of a rig as its name says.
func dialogueSettings(t *testing.T, name string, set *Settings, q *fakeQueue) (client *tls.Config) {
	erp := Client{Username: "erp", PasswordHash: hash(t, "secret"), Senders: []string{"erp@contoso.com", "*@sub.contoso.com"}}
	outside := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	switch name {
	case "plain":
	case "reject":
		set.Listener.RejectLineEndings = true
	case "starttls":
		set.Clients = []Client{erp}
		set.Listener.PlaintextAuth = false
		client = withTLS(t, set, TLSStartTLS)
	case "auth":
		set.Clients = []Client{erp, {Username: "default", PasswordHash: erp.PasswordHash, Senders: []string{"*@contoso.com"},
			DefaultSender: "default@contoso.com"}}
	case "auth required":
		set.Clients = []Client{erp}
		set.Listener.Auth = AuthRequired
	case "auth elsewhere":
		erp.Networks = outside
		set.Clients = []Client{erp}
	case "auth none":
		set.Clients = []Client{erp}
		set.Listener.Auth = AuthNone
	case "two a minute":
		erp.MessagesPerMinute = 2
		set.Clients = []Client{erp}
	case "outside":
		set.Clients = []Client{erp}
		set.Listener.AllowNetworks = outside
	case "outside without clients":
		set.Listener.AllowNetworks = outside
	case "small":
		set.Limits = Limits{MessageBytes: 2048, HeaderBytes: 1024, Recipients: 2, Hops: 3}
	case "rewrite":
		set.Policy = fakePolicy{rewriteTo: "noreply@contoso.com"}
	case "queue down":
		q.err = errors.New("dial 10.0.0.1: secret path")
	case "queue full":
		q.err, q.early = status.New(452, status.Enhanced{4, 3, 1}, "queue storage is full"), true
	case "queue closing":
		q.err = status.New(421, status.Enhanced{4, 3, 2}, "going down")
	case "queue blind":
		q.blind = true
	default:
		t.Fatalf("no setting %q", name)
	}
	return client
}

func runDialogue(t *testing.T, script string) {
	set, q := testSettings(), &fakeQueue{}
	lines := strings.Split(strings.TrimSuffix(script, "\n"), "\n")
	var tlsConfig *tls.Config
	if name, ok := strings.CutPrefix(lines[0], "with "); ok {
		tlsConfig = dialogueSettings(t, name, &set, q)
	} else {
		t.Fatal("the first line is no setting")
	}
	r := start(t, set, q)
	conn := r.dial(t)
	in := bufio.NewReader(conn)
	next, envelopes := 0, 0
	for i, line := range lines[1:] {
		where := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("line %d, %s: "+format, append([]any{i + 2, line}, args...)...)
		}
		kind, text, _ := strings.Cut(line, " ")
		switch kind {
		case "C:":
			write(t, conn, text+"\r\n")
		case `C"`:
			write(t, conn, unquote(t, text))
		case "C*":
			count, what, _ := strings.Cut(text, " ")
			n, err := strconv.Atoi(count)
			if err != nil {
				where("%v", err)
			}
			write(t, conn, strings.Repeat(unquote(t, what), n))
		case "S:":
			got, err := in.ReadString('\n')
			pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(text), `\.\.\.`, ".*") + "\r\n$"
			if err != nil || !regexp.MustCompile(pattern).MatchString(got) {
				where("got %q, %v", got, err)
			}
		case "S.":
			if rest, err := io.ReadAll(in); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				where("got %q, %v", rest, err)
			}
		case "TLS":
			secure := tls.Client(conn, tlsConfig)
			if err := secure.Handshake(); err != nil {
				where("%v", err)
			}
			conn, in = secure, bufio.NewReader(secure)
		case "Q:", "E:":
			mails := q.stored()
			index := &next
			if kind == "E:" {
				index = &envelopes
			}
			if *index >= len(mails) {
				where("only %d messages are stored", len(mails))
			}
			mail := mails[*index]
			*index++
			got, want := withoutTrace(t, mail), text
			if kind == "Q:" {
				want = unquote(t, text)
			} else {
				got = envelopeText(mail)
			}
			if id := string(mail.env.ID); strings.ReplaceAll(got, id, "ID") != want {
				where("got %q", got)
			}
		case "", "#":
		default:
			where("not understood")
		}
	}
	if n := len(q.stored()); n != max(next, envelopes) {
		t.Errorf("%d messages are stored, %d expected: %+v", n, max(next, envelopes), q.stored())
	}
}

func envelopeText(m mailRecord) string {
	words := []string{m.env.Client, string(m.env.ReversePath), string(m.env.Sender)}
	for i, w := range words {
		if w == "" {
			words[i] = "-"
		}
	}
	for _, r := range m.env.Recipients {
		words = append(words, strings.Trim(string(r.Address)+";"+r.Notify+";"+r.ORCPT, ";"))
	}
	if m.env.Return+m.env.EnvelopeID != "" {
		words = append(words, "ret="+m.env.Return, "envid="+m.env.EnvelopeID)
	}
	return strings.Join(words, " ")
}

var traceFields = regexp.MustCompile(`^Received: from [^\r]*\r\n\tby relay\.example with [^\r]*(\r\n\tfor <[^\r]*>)?;\r\n\t[^\r]*\r\nX-Relayd-Id: ([0-9a-z]{20})\r\n`)

// withoutTrace returns the message behind the fields every message is given, which must be there.
func withoutTrace(t *testing.T, m mailRecord) string {
	t.Helper()
	match := traceFields.FindStringSubmatch(m.body)
	if match == nil || match[2] != string(m.env.ID) {
		t.Fatalf("no trace fields: %q", m.body)
	}
	return m.body[len(match[0]):]
}

func unquote(t *testing.T, s string) string {
	t.Helper()
	u, err := strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return u
}

// write does not fail where the server has closed already: what it said is what counts.
func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	_, _ = io.WriteString(c, s)
}
