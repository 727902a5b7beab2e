package message

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "",
		"a":                         "a\r\n",
		"a\nb":                      "a\r\nb\r\n",
		"a\r\nb\r\n":                "a\r\nb\r\n",
		"a\rb\r":                    "a\r\nb\r\n",
		"a\n\n.\n..b\n":             "a\r\n\r\n.\r\n..b\r\n", // dots are text: nobody stuffed them
		"a\r\r\nb":                  "a\r\n\r\nb\r\n",
		strings.Repeat("x\n", 9000): strings.Repeat("x\r\n", 9000),
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r },
			"by the octet": iotest.OneByteReader, "end with data": iotest.DataErrReader} {
			got, err := io.ReadAll(Normalize(wrap(strings.NewReader(in))))
			if err != nil || string(got) != want {
				t.Errorf("%s: Normalize(%.20q) = %.40q, %v; want %.40q", name, in, got, err, want)
			}
		}
	}
	broken := io.MultiReader(strings.NewReader("a\n"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if got, err := io.ReadAll(Normalize(broken)); err != io.ErrUnexpectedEOF {
		t.Errorf("a broken reader: %q, %v", got, err)
	}
}
