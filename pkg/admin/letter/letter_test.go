package letter

import (
	"errors"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"time"

	"relayd/pkg/envelope"
)

func letter() Letter {
	return Letter{
		From: "erp@contoso.com", To: []envelope.Address{"a@example.com", "b@example.net"},
		Date: time.Date(2026, 3, 4, 5, 6, 7, 0, time.FixedZone("", 9*3600)), Subject: "Invoice 7", Text: "Hello\nworld",
	}
}

// parse reads a message with readers that are not ours.
func parse(t *testing.T, text []byte) (*mail.Message, string) {
	t.Helper()
	for line := range strings.SplitSeq(string(text), "\r\n") {
		if len(line) > 998 || strings.ContainsAny(line, "\r\n") {
			t.Errorf("a line no server takes: %q", line)
		}
	}
	m, err := mail.ReadMessage(strings.NewReader(string(text)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
	if err != nil {
		t.Fatal(err)
	}
	return m, string(body)
}

func TestCompose(t *testing.T) {
	l := letter()
	l.Headers = map[string]string{"X-Campaign": "spring", "Reply-To": "help@contoso.com"}
	text, err := l.Compose()
	if err != nil {
		t.Fatal(err)
	}
	m, body := parse(t, text)
	if body != "Hello\r\nworld\r\n" {
		t.Errorf("body: got %q", body)
	}
	for name, want := range map[string]string{
		"Date": "Wed, 04 Mar 2026 05:06:07 +0900", "From": "<erp@contoso.com>", "To": "<a@example.com>, <b@example.net>",
		"Subject": "Invoice 7", "X-Campaign": "spring", "Reply-To": "help@contoso.com", "Mime-Version": "1.0",
		"Content-Type": "text/plain; charset=utf-8", "Content-Transfer-Encoding": "quoted-printable",
	} {
		if got := m.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	id := m.Header.Get("Message-ID")
	again, err := l.Compose()
	if err != nil {
		t.Fatal(err)
	}
	if other, _ := parse(t, again); !strings.HasSuffix(id, "@contoso.com>") || other.Header.Get("Message-ID") == id {
		t.Errorf("Message-ID: got %q and %q", id, other.Header.Get("Message-ID"))
	}
}

func TestWhatIsNotASCII(t *testing.T) {
	l := letter()
	l.Subject = strings.Repeat("請求書 ", 60)
	l.Text = "日本語\r\n.\r\nFrom the start\n" + strings.Repeat("x", 5000) + "\nNUL \x00 end\r\n"
	text, err := l.Compose()
	if err != nil {
		t.Fatal(err)
	}
	m, body := parse(t, text)
	if got, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject")); got != l.Subject || err != nil {
		t.Errorf("Subject: got %q, %v", got, err)
	}
	if want := strings.ReplaceAll(strings.ReplaceAll(l.Text, "\r\n", "\n"), "\n", "\r\n"); body != want {
		t.Errorf("body: got %q, want %q", body, want)
	}
	for _, c := range text {
		if c > 126 || c < ' ' && c != '\r' && c != '\n' {
			t.Fatalf("octet %#x goes out bare", c)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Letter)
		want   string
	}{
		{"a subject that begins a field", func(l *Letter) { l.Subject = "x\r\nBcc: spy@example.com" }, "subject: has a line break or another control character"},
		{"a bare LF", func(l *Letter) { l.Subject = "x\ny" }, "subject: has a line break"},
		{"NUL", func(l *Letter) { l.Subject = "x\x00" }, "subject: has a line break"},
		{"C1", func(l *Letter) { l.Subject = "x\u0085y" }, "subject: has a line break"},
		{"no UTF-8", func(l *Letter) { l.Subject = "x\xffy" }, "subject: has a line break"},
		{"a long subject", func(l *Letter) { l.Subject = strings.Repeat("x", 901) }, "subject: longer than 900 octets"},
		{"a value that ends the header", func(l *Letter) { l.Headers = map[string]string{"X-A": "x\r\n\r\nbody"} }, "headers.X-A: has a line break"},
		{"a name with a colon", func(l *Letter) { l.Headers = map[string]string{"X: y\r\nBcc": "z"} }, "no header field that can be set here"},
		{"a name with a line break", func(l *Letter) { l.Headers = map[string]string{"X\r\nBcc": "z"} }, "no header field"},
		{"no name", func(l *Letter) { l.Headers = map[string]string{"": "z"} }, "headers.: no header field"},
		{"a long name", func(l *Letter) { l.Headers = map[string]string{strings.Repeat("x", 71): "z"} }, "no header field"},
		{"not ASCII in a name", func(l *Letter) { l.Headers = map[string]string{"Xé": "z"} }, "no header field"},
		{"a second From", func(l *Letter) { l.Headers = map[string]string{"FROM": "z@example.com"} }, "headers.FROM: no header field"},
		{"Bcc", func(l *Letter) { l.Headers = map[string]string{"bcc": "z@example.com"} }, "no header field"},
		{"Content-Type", func(l *Letter) { l.Headers = map[string]string{"Content-Type": "text/html"} }, "no header field"},
		{"Resent-To", func(l *Letter) { l.Headers = map[string]string{"Resent-To": "z@example.com"} }, "no header field"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := letter()
			tt.change(&l)
			text, err := l.Compose()
			if _, ok := errors.AsType[*FieldError](err); !ok || text != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Whatever is given, what comes out has the fields it should have and no other, and the text reads back.
func FuzzCompose(f *testing.F) {
	f.Add("subject", "text", "X-A", "value")
	f.Add("0", "\r\xbe\n", "X", "0")
	f.Add("件名\r\nBcc: x", "a\rb\n.\n", "X", "é ?= =?")
	f.Fuzz(func(t *testing.T, subject, body, name, value string) {
		l := letter()
		l.Subject, l.Text, l.Headers = subject, body, map[string]string{name: value}
		text, err := l.Compose()
		if err != nil {
			return
		}
		m, got := parse(t, text)
		if len(m.Header) != 9 {
			t.Errorf("%d fields in\n%s", len(m.Header), text)
		}
		fold := strings.NewReplacer("\r\n", "\n", "\r", "\n")
		if want := strings.TrimSuffix(fold.Replace(body), "\n") + "\n"; fold.Replace(got) != want {
			t.Errorf("body: got %q, want %q", got, want)
		}
	})
}
