package text

import (
	"bytes"
	"mime"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestField(t *testing.T) {
	for _, row := range []struct {
		tokens []string
		want   string
	}{
		{nil, "X:\r\n"},
		{[]string{"a", "b"}, "X: a b\r\n"},
		{[]string{strings.Repeat("a", 72), "b"}, "X: " + strings.Repeat("a", 72) + "\r\n b\r\n"},
		{[]string{strings.Repeat("a", 71), "b"}, "X: " + strings.Repeat("a", 71) + " b\r\n"},
		{[]string{strings.Repeat("a", 900)}, "X: " + strings.Repeat("a", 900) + "\r\n"}, // the first stands beside the name
		{[]string{"one  token", "two"}, "X: one  token two\r\n"},
	} {
		var b bytes.Buffer
		Field(&b, "X", row.tokens...)
		if b.String() != row.want {
			t.Errorf("%q: got %q, want %q", row.tokens, b.String(), row.want)
		}
	}
}

func TestEscape(t *testing.T) {
	for _, row := range []struct {
		in, ascii, printable string
	}{
		{"plain \\ text", "plain \\ text", "plain \\ text"},
		{"a\r\nb\tc\x00\x7f", `a\x{0D}\x{0A}b\x{09}c\x{00}\x{7F}`, `a\x{0D}\x{0A}b\x{09}c\x{00}\x{7F}`},
		{"é\u202e\u0085\u2028", `\x{E9}\x{202E}\x{85}\x{2028}`, `é\x{202E}\x{85}\x{2028}`},
		{"\xff\xe9", `\x{FF}\x{E9}`, `\x{FF}\x{E9}`},
		{"\ufffd", `\x{FFFD}`, "\ufffd"},
	} {
		if got := Escape(row.in, true); got != row.ascii {
			t.Errorf("%q: got %q, want %q", row.in, got, row.ascii)
		}
		if got := Escape(row.in, false); got != row.printable {
			t.Errorf("%q: got %q, want %q", row.in, got, row.printable)
		}
	}
}

func TestClip(t *testing.T) {
	for _, row := range []struct {
		in   string
		n    int
		want string
	}{{"abcdef", 6, "abcdef"}, {"abcdefg", 6, "abc..."}, {"aéé", 5, "aéé"}, {"aééé", 6, "aé..."}, {"éééé", 4, "..."}} {
		if got := Clip(row.in, row.n); got != row.want || len(got) > row.n || !utf8.ValidString(got) {
			t.Errorf("%q to %d: got %q, want %q", row.in, row.n, got, row.want)
		}
	}
}

func TestSound(t *testing.T) {
	for in, want := range map[string]bool{
		"": true, "a\r\n": true, "a\r\nb": true, strings.Repeat("x", 998) + "\r\n": true, "é\r\n": true,
		strings.Repeat("x", 999): false, "a\nb": false, "\n": false, "a\rb": false, "a\r": false, "\x00": false, "a\r\r\nb": false,
	} {
		if got := Sound([]byte(in)); got != want {
			t.Errorf("%.20q: got %v, want %v", in, got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	long := strings.Repeat("x", 2000)
	for _, row := range []struct{ in, want string }{
		{"", "\n"},
		{"a  b\nc", "  a b c\n"},
		{strings.Repeat("x", 68) + " y z", "  " + strings.Repeat("x", 68) + " y\n  z\n"},
		{long + " y", "  " + long[:897] + "...\n  y\n"},
	} {
		if got := Wrap("  ", row.in); got != row.want {
			t.Errorf("%.20q: got %q, want %q", row.in, got, row.want)
		}
	}
}

func TestEncodedWords(t *testing.T) {
	for in, want := range map[string]string{
		"plain words": "plain words", "": "", "für  März": "für  März", strings.Repeat("ü", 400): strings.Repeat("ü", 148) + "...",
	} {
		tokens := EncodedWords(in)
		for _, token := range tokens {
			if len(token) > 75 || !IsASCII([]byte(token)) { // RFC 2047, section 2
				t.Errorf("%.20q: token %q", in, token)
			}
		}
		if got, err := new(mime.WordDecoder).DecodeHeader(strings.Join(tokens, " ")); err != nil || got != want {
			t.Errorf("%.20q: got %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestEncode(t *testing.T) {
	for _, row := range []struct{ in, encoding, body string }{
		{"a\nb\n", "7bit", "a\r\nb\r\n"},
		{"für\n", "quoted-printable", "f=C3=BCr\r\n"},
		{strings.Repeat("x", 999) + "\n", "quoted-printable", ""},
	} {
		_, encoding, body := Encode(row.in)
		if encoding != row.encoding || row.body != "" && string(body) != row.body || !Sound(body) {
			t.Errorf("%.20q: got %s, %q", row.in, encoding, body)
		}
	}
}

func TestJoinAvoidsWhatPartsHold(t *testing.T) {
	var b bytes.Buffer
	Join(&b, "multipart/mixed", "x=y", "seed", []Part{{Kind: "text/plain", Body: []byte("--=_seed.0\r\n=_seed.1")}, {Kind: "text/plain", Body: []byte("=_seed.2")}})
	if !strings.HasPrefix(b.String(), "Content-Type: multipart/mixed; x=y; boundary=\"=_seed.3\"\r\n\r\n--=_seed.3\r\nContent-Type: text/plain\r\n") ||
		!strings.HasSuffix(b.String(), "\r\n--=_seed.3--\r\n") {
		t.Errorf("got %q", b.String())
	}
}
