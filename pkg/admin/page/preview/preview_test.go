package preview

import (
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func read(t *testing.T, lines ...string) *Preview {
	t.Helper()
	p, err := Read(strings.NewReader(strings.Join(lines, "\r\n")), nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRead(t *testing.T) {
	alternative := []string{
		"Content-Type: multipart/mixed; boundary=out", "",
		"--out", "Content-Type: multipart/alternative; boundary=in", "",
		"--in", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: base64", "", base64.StdEncoding.EncodeToString([]byte("日本語")),
		"--in", "Content-Type: text/html", "", "<p>html", "--in--",
		"--out", "Content-Type: application/pdf; name=ignored.pdf", `Content-Disposition: attachment; filename="=?utf-8?q?<b>=E2=80=AEfdp.exe?="`,
		"Content-Transfer-Encoding: base64", "", "AAAA", "--out--", "",
	}
	tests := []struct {
		name string
		mail []string
		text string
		html bool
	}{
		{"plain", []string{"Subject: x", "", "hello"}, "hello", false},
		{"plain in an alternative in a mixed", alternative, "日本語", false},
		{"quoted-printable", []string{"Content-Transfer-Encoding: Quoted-Printable", "", "a=3Db=\r\nc"}, "a=bc", false},
		{"windows-1252", []string{"Content-Type: text/plain; charset=ISO-8859-1", "", "caf\xe9 \x80"}, "café €", false},
		{"HTML", []string{"Content-Type: text/html", "", "<title>no</title><style>p{}</style><p>one &lt;two&gt;<br>three <b>four</b></p><script>alert(1)</script>end"}, "one <two>\nthree four\nend", true},
		{"no text", []string{"Content-Type: image/png", "", "x"}, "", false},
		{"attached text is no text", []string{"Content-Type: text/plain", "Content-Disposition: attachment", "", "x"}, "", false},
		{"malformed type", []string{"Content-Type: ;;;", "", "x"}, "", false},
		{"header only", []string{"Subject: x"}, "", false},
		{"nothing", nil, "", false},
		{"controls and reversals", []string{"", "a\x00b\x1b[31m\u202ec\n\n\n\n\nd"}, "ab[31mc\n\nd", false},
		{"broken base64 shows its beginning", []string{"Content-Transfer-Encoding: base64", "", "aGVsbG8g!!!!"}, "hello ", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := read(t, tt.mail...)
			if p.Text != strings.TrimSpace(tt.text) || p.HTML != tt.html {
				t.Errorf("got %q html=%v, want %q html=%v", p.Text, p.HTML, tt.text, tt.html)
			}
		})
	}
	if p := read(t, alternative...); len(p.Parts) != 2 || p.Parts[1] != (Part{"<b>fdp.exe", "application/pdf", 3}) {
		t.Errorf("got %+v", p.Parts)
	}
}

func TestFields(t *testing.T) {
	p := read(t, "Subject: =?utf-8?b?5pel5pys?=", " =?utf-8?q?_folded?=", "no colon here", "X-Odd: a\x01b\u202e", "", "")
	want := []Field{{"Subject", "日本 folded"}, {"", "no colon here"}, {"X-Odd", "a b"}}
	if len(p.Fields) != len(want) {
		t.Fatalf("got %q", p.Fields)
	}
	for i := range want {
		if p.Fields[i] != want[i] {
			t.Errorf("got %q, want %q", p.Fields[i], want[i])
		}
	}
}

func TestCharset(t *testing.T) {
	mail := "Content-Type: text/plain; charset=x-own\r\n\r\nabc"
	p, err := Read(strings.NewReader(mail), nil)
	if err != nil || p.Charset != "x-own" || p.Text != "abc" {
		t.Errorf("got %+v %v", p, err)
	}
	p, err = Read(strings.NewReader(mail), func(name string, _ io.Reader) (io.Reader, error) { return strings.NewReader("from " + name), nil })
	if err != nil || p.Charset != "" || p.Text != "from x-own" {
		t.Errorf("got %+v %v", p, err)
	}
}

func TestBounds(t *testing.T) {
	if p := read(t, "", strings.Repeat("é", maxText)); !p.Cut || len(p.Text) > maxText || !utf8.ValidString(p.Text) {
		t.Errorf("long text: cut=%v, %d octets", p.Cut, len(p.Text))
	}
	if p := read(t, strings.Repeat("X: y\r\n", maxFields+1)); !p.Cut || len(p.Fields) != maxFields {
		t.Errorf("many fields: cut=%v, %d", p.Cut, len(p.Fields))
	}
	if p := read(t, "Content-Type: image/png", "", strings.Repeat("x", MaxRead)); !p.Cut || p.Parts[0].Size >= MaxRead {
		t.Errorf("large message: cut=%v, %+v", p.Cut, p.Parts)
	}
	if p := read(t, "Content-Type: multipart/mixed; boundary=b", "", strings.Repeat("--b\r\nContent-Type: image/png\r\n\r\nx\r\n", maxParts+1)); !p.Cut || len(p.Parts) != maxParts {
		t.Errorf("many parts: cut=%v, %d", p.Cut, len(p.Parts))
	}
	deep := ""
	for i := range maxDepth + 2 {
		b := string(rune('a' + i))
		deep += "Content-Type: multipart/mixed; boundary=" + b + "\r\n\r\n--" + b + "\r\n"
	}
	if p := read(t, deep+"\r\ntext"); p.Text != "" {
		t.Errorf("deep: got %q", p.Text)
	}
}

func TestErrorOfTheReader(t *testing.T) {
	broken := errors.New("damaged")
	p, err := Read(io.MultiReader(strings.NewReader("Subject: x\r\n\r\nbegin"), iotest.ErrReader(broken)), nil)
	if !errors.Is(err, broken) || p.Text != "begin" {
		t.Errorf("got %+v %v", p, err)
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{"", "Subject: =?x?b?y?=\r\n\r\n", "Content-Type: text/html\r\n\r\n<p", "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, mail []byte) {
		p, err := Read(strings.NewReader(string(mail)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !utf8.ValidString(p.Text) || len(p.Text) > maxText || strings.ContainsAny(p.Text, "\x00\x1b\u202e") {
			t.Errorf("got %q", p.Text)
		}
		for _, field := range p.Fields {
			if strings.ContainsAny(field.Name+field.Value, "\r\n\x00") || !utf8.ValidString(field.Name+field.Value) {
				t.Errorf("got %q", field)
			}
		}
	})
}
