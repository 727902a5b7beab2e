package message

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// through runs src through l in blocks of the given sizes and returns the message and what is left behind it.
func through(l *Lines, src []byte, block, room int) (msg, rest []byte, err error) {
	dst := make([]byte, room)
	for len(src) > 0 {
		nd, ns, err := l.Next(dst, src[:min(block, len(src))])
		msg = append(msg, dst[:nd]...)
		src = src[ns:]
		if err != nil {
			return msg, src, err
		}
	}
	return msg, nil, nil
}

// stuff is RFC 5321 section 4.5.2 as a client does it, for a message of CRLF lines.
func stuff(msg []byte) []byte {
	s := bytes.ReplaceAll(msg, []byte("\r\n."), []byte("\r\n.."))
	if bytes.HasPrefix(s, []byte(".")) {
		s = append([]byte("."), s...)
	}
	return append(s, ".\r\n"...)
}

func TestLinesData(t *testing.T) {
	tests := []struct {
		name, in, want, rest string
		err                  error // io.EOF: the message ended; nil: more must come
	}{
		{"plain", "a\r\nb\r\n.\r\nQUIT\r\n", "a\r\nb\r\n", "QUIT\r\n", io.EOF},
		{"empty message", ".\r\nNOOP\r\n", "", "NOOP\r\n", io.EOF},
		{"stuffed dots", "..\r\n..a\r\na.b\r\n.\r\n", ".\r\n.a\r\na.b\r\n", "", io.EOF},
		{"a single stuffing dot is taken off", ".a\r\n.\r\n", "a\r\n", "", io.EOF},
		{"LF.LF", "a\n.\nMAIL\r\n.\r\n", "a\r\n.\r\nMAIL\r\n", "", io.EOF},
		{"LF.CRLF", "a\n.\r\nMAIL\r\n.\r\n", "a\r\n.\r\nMAIL\r\n", "", io.EOF},
		{"CRLF.LF", "a\r\n.\nMAIL\r\n.\r\n", "a\r\n.\r\nMAIL\r\n", "", io.EOF},
		{"CR.CR", "a\r.\rMAIL\r\n.\r\n", "a\r\n.\r\nMAIL\r\n", "", io.EOF},
		{"CRLF.CR", "a\r\n.\rMAIL\r\n.\r\n", "a\r\n.\r\nMAIL\r\n", "", io.EOF},
		{"CR.CRLF", "a\r.\r\nMAIL\r\n.\r\n", "a\r\n.\r\nMAIL\r\n", "", io.EOF},
		{"CRLF.CRCR", "a\r\n.\r\rMAIL\r\n.\r\n", "a\r\n.\r\n\r\nMAIL\r\n", "", io.EOF},
		{"CRLF.NUL CRLF", "a\r\n.\x00\r\nMAIL\r\n.\r\n", "a\r\n\x00\r\nMAIL\r\n", "", io.EOF},
		{"CRLF NUL.CRLF", "a\r\n\x00.\r\nMAIL\r\n.\r\n", "a\r\n\x00.\r\nMAIL\r\n", "", io.EOF},
		{"LF.CRLF.CRLF ends at the second", "a\n.\r\n.\r\nQ", "a\r\n.\r\n", "Q", io.EOF},
		{"CRCRLF.CRCRLF can only be an end", "a\r\r\n.\r\r\nMAIL\r\n", "a\r\n\r\n", "MAIL\r\n", ErrEndOfData},
		{"bare LF and CR", "a\nb\rc\r\n.\r\n", "a\r\nb\r\nc\r\n", "", io.EOF},
		{"dots behind a bare LF are stuffed too, as Postfix reads them", "a\n..b\r\n.\r\n", "a\r\n.b\r\n", "", io.EOF},
		{"CRCRLF", "a\r\r\nb\r\n.\r\n", "a\r\n\r\nb\r\n", "", io.EOF},
		{"8-bit and NUL pass", "\xe9\x00\xff\r\n.\r\n", "\xe9\x00\xff\r\n", "", io.EOF},
		{"no end", "a\r\n.", "a\r\n", "", nil},
		{"no end behind CR", "a\r\n.\r", "a\r\n", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, block := range []int{1, 2, 3, 4, 5, 1000} {
				for _, room := range []int{4, 5, 7, 1000} {
					msg, rest, err := through(&Lines{Dots: true}, []byte(tt.in), block, room)
					if string(msg) != tt.want || string(rest) != tt.rest || err != tt.err {
						t.Fatalf("block %d, room %d: got %q, %q, %v, want %q, %q, %v",
							block, room, msg, rest, err, tt.want, tt.rest, tt.err)
					}
				}
			}
		})
	}
}

func TestLinesReject(t *testing.T) {
	for _, in := range []string{"a\nb", "a\rb", "a\r\n.\nb", "a\r\n.\rb", "a\r\r\n", "\n", "a\r\n.\r\r\n"} {
		for _, block := range []int{1, 2, 1000} {
			_, _, err := through(&Lines{Dots: true, Reject: true}, []byte(in), block, 100)
			if !errors.Is(err, ErrLineEnding) && !errors.Is(err, ErrEndOfData) {
				t.Errorf("%q in blocks of %d: got %v, want ErrLineEnding", in, block, err)
			}
		}
	}
	msg, _, err := through(&Lines{Dots: true, Reject: true}, []byte("a\r\n..b\r\n.\r\n"), 3, 100)
	if err != io.EOF || string(msg) != "a\r\n.b\r\n" {
		t.Errorf("sound message: got %q, %v", msg, err)
	}
}

func TestLinesWithoutDots(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"dots are text", ".\r\n..a\r\n", ".\r\n..a\r\n"},
		{"bare LF", "a\nb\n", "a\r\nb\r\n"},
		{"last line is ended", "a\r\nb", "a\r\nb\r\n"},
		{"CR at the end", "a\r", "a\r\n"},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		for _, block := range []int{1, 2, 1000} {
			var l Lines
			msg, _, err := through(&l, []byte(tt.in), block, 10)
			end := make([]byte, lineRoom)
			n, endErr := l.End(end)
			if got := string(msg) + string(end[:n]); got != tt.want || err != nil || endErr != nil {
				t.Errorf("%s: got %q, %v, %v, want %q", tt.name, got, err, endErr, tt.want)
			}
		}
	}
	l := Lines{Reject: true}
	if _, _, err := through(&l, []byte("a\r"), 10, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := l.End(make([]byte, lineRoom)); err != ErrLineEnding {
		t.Errorf("CR at the end: got %v, want ErrLineEnding", err)
	}
}

// Bodies of nothing but CR or LF must not cost the square of the block.
func TestLinesLinear(t *testing.T) {
	for _, in := range []string{"\r", "\n", "a\r", "a\n", "\r\n"} {
		src := bytes.Repeat([]byte(in), 3<<20/len(in))
		start := time.Now()
		if _, _, err := through(&Lines{Dots: true}, src, 3<<20, 3<<20); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("3 MiB of %q took %v", in, took)
		}
	}
}

func TestUnstuffIsTheInverseOfStuff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var msg []byte
		for _, line := range rapid.SliceOf(rapid.StringMatching(`[.a\x00\xff]{0,5}`)).Draw(t, "lines") {
			msg = append(append(msg, line...), "\r\n"...)
		}
		block, room := rapid.IntRange(1, 20).Draw(t, "block"), rapid.IntRange(lineRoom, 20).Draw(t, "room")
		got, rest, err := through(&Lines{Dots: true}, append(stuff(msg), "REST"...), block, room)
		if err != io.EOF || !bytes.Equal(got, msg) || string(rest) != "REST" {
			t.Fatalf("got %q, %q, %v, want %q", got, rest, err, msg)
		}
	})
}

// FuzzLines: the same message whatever the blocks; CRLF lines only; it ends at CRLF.CRLF or not at all.
func FuzzLines(f *testing.F) {
	for _, s := range []string{"a\r\n.\r\n", "a\n.\n", "\r\r\n.\r\r\n", "..\r\n.\r\n", "a\r\n.\rb"} {
		f.Add([]byte(s), uint8(1), uint8(4))
	}
	f.Fuzz(func(t *testing.T, src []byte, block, room uint8) {
		msg, rest, err := through(&Lines{Dots: true}, src, int(block)+1, int(room)+lineRoom)
		whole, wholeRest, wholeErr := through(&Lines{Dots: true}, src, len(src)+1, 2*len(src)+lineRoom)
		if !bytes.Equal(msg, whole) || !bytes.Equal(rest, wholeRest) || err != wholeErr {
			t.Fatalf("blocks matter: %q, %q, %v against %q, %q, %v", msg, rest, err, whole, wholeRest, wholeErr)
		}
		if bare := strings.ReplaceAll(string(msg), "\r\n", ""); strings.ContainsAny(bare, "\r\n") {
			t.Fatalf("line endings of %q", msg)
		}
		if err == io.EOF {
			read := "\r\n" + string(src[:len(src)-len(rest)])
			if !strings.HasSuffix(read, "\r\n.\r\n") {
				t.Fatalf("ended behind %q", read)
			}
		}
		if i := strings.Index("\r\n"+string(src), "\r\n.\r\n"); i >= 0 && err == nil {
			t.Fatalf("did not end: %q", src)
		}
	})
}

func BenchmarkLines(b *testing.B) {
	src := stuff(bytes.Repeat([]byte(strings.Repeat("x", 76)+"\r\n"), 500))
	dst := make([]byte, 64<<10)
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		l := Lines{Dots: true}
		if _, _, err := l.Next(dst, src); err != io.EOF {
			b.Fatal(err)
		}
	}
}
