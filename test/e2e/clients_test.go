package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// kind is one sort of message, for clients that send a finished one and for those that compose it themselves.
type kind struct {
	name       string
	rcpts      []string
	subject    string // in UTF-8; shown in a charset of the client's choice
	rawSubject string // the field's value as a finished message has it; empty: subject
	rawName    string // the same for the display name in From
	text       string // lines end in \n
	charset    string // of text in a finished message
	attachment int    // octets
	finished   bool   // only a finished message is of this kind, whoever sends it
}

const (
	displayName = "Lager & Versand"
	// The display name and the subject 日本語 and 請求書 in ISO-2022-JP (RFC 1468), as old applications in Japan send them.
	jisName    = "\x1b$BF|K\\8l\x1b(B"
	jisSubject = "\x1b$B@A5a=q\x1b(B"
)

func kinds() []kind {
	one := []string{"you@example.com"}
	wordOf := func(s string) string { return "=?ISO-2022-JP?B?" + base64.StdEncoding.EncodeToString([]byte(s)) + "?=" }
	return []kind{
		{name: "plain", rcpts: one, subject: "plain", text: "A line.\n\nAnother one.\n"},
		{name: "8bit", rcpts: one, subject: "8-bit", text: "Grüße aus dem Lager: 日本語も届きます。\n\tdaß\u00a0es geht\n", charset: "utf-8", finished: true},
		{name: "utf8 header", rcpts: one, subject: "Rechnung für März – 請求書", rawName: "Größe & Söhne", text: "See the header.\n", charset: "us-ascii"},
		{name: "iso-2022-jp header", rcpts: one, subject: "請求書", rawSubject: wordOf(jisSubject), rawName: wordOf(jisName), text: "See the header.\n", charset: "us-ascii"},
		{name: "iso-2022-jp raw", rcpts: one, subject: "raw", rawSubject: jisSubject, rawName: wordOf(jisName), text: jisName + "\n", charset: "iso-2022-jp", finished: true},
		{name: "several recipients", rcpts: []string{"a@example.com", "b@example.org", "c.d+e@example.net", "F@example.com", "o'g@example.com"},
			subject: "five recipients", text: "For all of you.\n"},
		{name: "dot lines", rcpts: one, subject: "dots", text: ".\n..\n...\n.begins with one\n..begins with two\n. \nends.\n.\n\n.\nQUIT\n"},
		{name: "dot at the end", rcpts: one, subject: "dots", text: "The last line is a dot.\nQUIT\n.\n"},
		{name: "1MB", rcpts: one, subject: "one megabyte", text: "See the attachment.\n", attachment: 1 << 20},
		{name: "20MB", rcpts: one, subject: "twenty megabytes", text: "See the attachment.\n", attachment: 20 << 20},
	}
}

// job is one message for one client.
type job struct {
	kind
	client  string
	dir     string
	addr    string // where to send
	from    string
	octets  []byte // of the attachment
	message string // finished, lines ending in CRLF
}

// program is a mail client: how to have it send, and what it does to a finished message by itself.
type program struct {
	name     string
	needs    string // executable
	cannot   string // the kind it cannot send by design
	composes func(k kind) bool
	command  func(j *job) (cmd []string, stdin io.Reader)
}

func programs() []program {
	never := func(kind) bool { return false }
	unlessFinished := func(k kind) bool { return !k.finished && k.rawSubject == "" }
	return []program{
		// swaks takes a last line of one dot for the end it would add itself; s-nail encodes what it composes.
		{"swaks", "swaks", "dot at the end", never, func(j *job) ([]string, io.Reader) {
			host, port, _ := net.SplitHostPort(j.addr)
			return []string{"swaks", "--server", host, "--port", port, "--helo", "client.contoso.com", "--from", j.from,
				"--to", strings.Join(j.rcpts, ","), "--data", "@" + j.file("message", j.message), "--suppress-data"}, nil
		}},
		{"msmtp", "msmtp", "", never, func(j *job) ([]string, io.Reader) {
			host, port, _ := net.SplitHostPort(j.addr)
			args := []string{"msmtp", "--host=" + host, "--port=" + port, "--domain=client.contoso.com", "--from=" + j.from,
				"--tls=off", "--auth=off", "--"}
			return append(args, j.rcpts...), strings.NewReader(strings.ReplaceAll(j.message, "\r\n", "\n"))
		}},
		{"s-nail", "s-nail", "iso-2022-jp raw", func(kind) bool { return true }, nail},
		{"smtplib", "python3", "", unlessFinished, func(j *job) ([]string, io.Reader) {
			return []string{"python3", "testdata/send.py"}, j.json()
		}},
		{"curl", "curl", "", never, func(j *job) ([]string, io.Reader) {
			args := []string{"curl", "--silent", "--show-error", "--url", "smtp://" + j.addr + "/client.contoso.com",
				"--mail-from", j.from, "--upload-file", j.file("message", j.message)}
			for _, r := range j.rcpts {
				args = append(args, "--mail-rcpt", r)
			}
			return args, nil
		}},
		{"nodemailer", "node", "", unlessFinished, func(j *job) ([]string, io.Reader) {
			return []string{"node", "testdata/send.cjs", nodeDir()}, j.json()
		}},
	}
}

// nail is s-nail, which composes every message itself: the 8-bit and Japanese ones in the character sets asked for.
func nail(j *job) ([]string, io.Reader) {
	args := []string{"s-nail", "-:/", "-S", "v15-compat=y", "-S", "mta=smtp://" + j.addr, "-S", "smtp-auth=none",
		"-S", "hostname=client.contoso.com", "-S", "nosave", "-S", "from=" + displayName + " <" + j.from + ">",
		"-S", "ttycharset=utf-8", "-S", "mime-encoding=8b", "-S", "expandaddr", "-s", j.subject}
	if strings.HasPrefix(j.name, "iso-2022-jp") {
		args = append(args, "-S", "sendcharsets=iso-2022-jp,utf-8")
	} else {
		args = append(args, "-S", "sendcharsets=us-ascii,utf-8")
	}
	if j.attachment > 0 {
		args = append(args, "-a", j.file("scan.bin", string(j.octets)))
	}
	return append(args, j.rcpts...), strings.NewReader(j.text)
}

func (j *job) file(name, content string) string {
	path := filepath.Join(j.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		panic(err) // of a test's own directory
	}
	return path
}

// json is the job for the scripts in testdata.
func (j *job) json() io.Reader {
	host, port, _ := net.SplitHostPort(j.addr)
	text := map[string]any{"host": host, "port": json.Number(port), "from": j.from, "to": j.rcpts}
	if j.finished || j.rawSubject != "" {
		text["raw"] = j.file("message", j.message)
	} else {
		text["subject"], text["name"], text["text"] = j.subject, displayName, j.text
		if j.attachment > 0 {
			text["attachment"] = j.file("scan.bin", string(j.octets))
		}
	}
	b, err := json.Marshal(text)
	if err != nil {
		panic(err) // it is all strings
	}
	return bytes.NewReader(b)
}

// nodeDir is where scripts/test-deps has put nodemailer.
func nodeDir() string {
	if dir := os.Getenv("TEST_NODE_DIR"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/nonexistent"
	}
	return filepath.Join(cache, "relayd-test-node")
}

// need skips the test where a client is not installed.
func need(t *testing.T, client, executable string) {
	t.Helper()
	_, err := exec.LookPath(executable)
	if err == nil && client == "nodemailer" {
		_, err = os.Stat(filepath.Join(nodeDir(), "node_modules", client))
	}
	if err != nil {
		skip(t, "%s is not installed (scripts/test-deps does it): %v", client, err)
	}
}

// compose makes the finished message.
func (j *job) compose() {
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	var b strings.Builder
	fmt.Fprintf(&b, "From: %s <%s>\nTo: %s\nSubject: %s\nDate: Thu, 01 Oct 2026 10:00:00 +0200\nMessage-ID: <%s.%s>\n",
		cmp.Or(j.rawName, displayName), j.from, strings.Join(j.rcpts, ",\n\t"), cmp.Or(j.rawSubject, j.subject),
		strings.ReplaceAll(j.name, " ", "-"), j.from)
	part := "Content-Type: text/plain; charset=" + cmp.Or(j.charset, "us-ascii") + "\nContent-Transfer-Encoding: 8bit\n\n" + j.text
	b.WriteString("MIME-Version: 1.0\n")
	if j.attachment == 0 {
		b.WriteString(part)
		j.message = crlf(b.String())
		return
	}
	b.WriteString("Content-Type: multipart/mixed; boundary=\"=_parts\"\n\n--=_parts\n" + part +
		"\n--=_parts\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n" +
		"Content-Disposition: attachment; filename=scan.bin\n\n")
	encoded := base64.StdEncoding.EncodeToString(j.octets)
	for line := range slices.Chunk([]byte(encoded), 76) {
		b.Write(line)
		b.WriteByte('\n')
	}
	b.WriteString("--=_parts--\n")
	j.message = crlf(b.String())
}

// TestClients has each client send each kind of message through a tap. What arrives at the far end must be what the
// client put on the wire, octet for octet, behind Received and X-Relayd-Id and nothing else; and what the client put on
// the wire must be what it was given to send.
func TestClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	large := make(chan struct{}, 2) // messages of 20 MB at once
	for _, p := range programs() {
		t.Run(p.name, func(t *testing.T) {
			need(t, p.name, p.needs)
			for _, k := range kinds() {
				if p.cannot == k.name {
					continue
				}
				t.Run(k.name, func(t *testing.T) {
					t.Parallel()
					if k.attachment > 10<<20 {
						large <- struct{}{}
						defer func() { <-large }()
					}
					w.deliver(t, &p, k)
				})
			}
		})
	}
}

// deliver has one client send one message and compares.
func (w *world) deliver(t *testing.T, p *program, k kind) {
	tp := newTap(t, w.relay.SMTP)
	j := &job{kind: k, client: p.name, dir: t.TempDir(), addr: tp.addr,
		from: strings.ToLower(regexp.MustCompile(`[^A-Za-z0-9]+`).ReplaceAllString(p.name+"."+k.name, "-")) + "@contoso.com"}
	j.octets = make([]byte, j.attachment)
	source := rand.NewChaCha8(sha256.Sum256([]byte(t.Name())))
	if _, err := source.Read(j.octets); err != nil {
		t.Fatal(err)
	}
	j.compose()
	runClient(t, j, p)

	var sent taken
	select {
	case sent = <-tp.messages:
	default:
		t.Fatal("the client has ended, and sent no message")
	}
	id, ok := strings.CutPrefix(sent.reply, "250 2.0.0 Ok: queued as ")
	if !ok {
		t.Fatalf("the relay answered %q", sent.reply)
	}
	own := &world{t: t, dir: w.dir, far: w.far, relay: w.relay}
	m := own.arrived(j.from, 1, patience)[0]
	raw := own.raw(m)

	if m.MailFrom != j.from || !slices.Equal(m.Rcpts, j.rcpts) {
		t.Errorf("envelope: from %s to %q, want %s to %q", m.MailFrom, m.Rcpts, j.from, j.rcpts)
	}
	if m.RelaydID != id {
		t.Errorf("X-Relayd-Id: got %s, want %s as in the reply", m.RelaydID, id)
	}
	compare(t, raw, sent.body)
	protocol := "ESMTP"
	if p.name == "s-nail" {
		protocol = "SMTP" // it says HELO where it does not log in
	}
	if added := strings.TrimSuffix(raw, sent.body); !regexp.MustCompile(`^Received: from client\.contoso\.com \(\[127\.0\.0\.1\]\)\r\n` +
		`\tby relay\.contoso\.com with ` + protocol + ` id ` + id + `(\r\n\tfor <[^>]+>)?;\r\n\t[^\r\n]+\r\nX-Relayd-Id: ` + id + `\r\n$`).MatchString(added) {
		t.Errorf("added in front: %q", added)
	}
	if p.composes(k) {
		j.judgeComposed(t, sent.body)
	} else if got := strings.TrimRight(sent.body, "\r\n"); got != strings.TrimRight(j.message, "\r\n") {
		t.Errorf("%s sent something else than it was given: %s", p.name, difference(got, j.message))
	}
}

// runClient runs the client to its end.
func runClient(t *testing.T, j *job, p *program) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	args, stdin := p.command(j)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = stdin
	cmd.Env = append(os.Environ(), "HOME="+j.dir, "MAILRC=/dev/null", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", p.name, err, tail(string(out)))
	}
}

// compare fails unless raw is sent behind something else.
func compare(t *testing.T, raw, sent string) {
	t.Helper()
	at := len(raw) - len(sent)
	if at < 0 {
		t.Errorf("%d octets were sent, %d arrived", len(sent), len(raw))
		return
	}
	if got, want := sha256.Sum256([]byte(raw[at:])), sha256.Sum256([]byte(sent)); got != want {
		t.Errorf("arrived changed: SHA-256 %x, want %x: %s", got, want, difference(raw[at:], sent))
	}
}

// difference shows where two texts part.
func difference(got, want string) string {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	end := func(s string) string { return s[max(0, i-40):min(len(s), i+80)] }
	return fmt.Sprintf("at octet %d of %d (want %d): got %q, want %q", i, len(got), len(want), end(got), end(want))
}

// judgeComposed reads a message the client has composed and looks for what it was told to say.
func (j *job) judgeComposed(t *testing.T, message string) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	// s-nail calls it us-ascii and leaves out the way back to ASCII.
	subject = strings.Replace(subject, strings.TrimSuffix(jisSubject, "\x1b(B"), "請求書", 1)
	if err != nil || subject != j.subject {
		t.Errorf("subject %q, %v; want %q", subject, err, j.subject)
	}
	text, attachment, err := content(m.Header, m.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n"); got != strings.TrimRight(j.text, "\n") {
		t.Errorf("text %q, want %q", got, j.text)
	}
	if got, want := sha256.Sum256([]byte(attachment)), sha256.Sum256(j.octets); got != want {
		t.Errorf("attachment: %d octets with SHA-256 %x, want %d with %x", len(attachment), got, len(j.octets), want)
	}
}

// content returns the decoded text of a message, and its attachment.
func content(h interface{ Get(string) string }, body io.Reader) (text, attachment string, err error) {
	kind, params, err := mime.ParseMediaType(cmp.Or(h.Get("Content-Type"), "text/plain"))
	if err != nil {
		return "", "", err
	}
	switch strings.ToLower(h.Get("Content-Transfer-Encoding")) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	if !strings.HasPrefix(kind, "multipart/") {
		b, err := io.ReadAll(body)
		if strings.HasPrefix(h.Get("Content-Disposition"), "attachment") {
			return "", string(b), err
		}
		return string(b), "", err
	}
	for parts := multipart.NewReader(body, params["boundary"]); ; {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			return text, attachment, nil
		}
		if err != nil {
			return "", "", err
		}
		t, a, err := content(part.Header, part)
		if err != nil {
			return "", "", err
		}
		text, attachment = text+t, attachment+a
	}
}
