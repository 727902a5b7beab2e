package preview

import (
	"strings"
	"testing"

	"golang.org/x/net/html/charset"
)

// Japanese mail is read in the charsets that Japanese applications send.
func TestJapaneseCharsets(t *testing.T) {
	for name, text := range map[string]string{
		"ISO-2022-JP": "\x1b$B$3$s$K$A$O\x1b(B",
		"Shift_JIS":   "\x82\xb1\x82\xf1\x82\xc9\x82\xbf\x82\xcd",
		"EUC-JP":      "\xa4\xb3\xa4\xf3\xa4\xcb\xa4\xc1\xa4\xcf",
	} {
		message := "Subject: x\r\nContent-Type: text/plain; charset=" + name + "\r\n\r\n" + text + "\r\n"
		p, err := Read(strings.NewReader(message), charset.NewReaderLabel)
		if err != nil || !strings.Contains(p.Text, "こんにちは") {
			t.Errorf("%s: got %q, %v", name, p.Text, err)
		}
	}
}
