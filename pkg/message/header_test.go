package message

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestReadHeader(t *testing.T) {
	tests := []struct {
		name, in string
		fields   []string // raw
		rest     string
	}{
		{"plain", "From: a@b\r\nSubject: x\r\n\r\nbody\r\n", []string{"From: a@b\r\n", "Subject: x\r\n"}, "body\r\n"},
		{"folded", "Subject: x\r\n y\r\n\tz\r\n\r\n", []string{"Subject: x\r\n y\r\n\tz\r\n"}, ""},
		{"empty", "\r\nbody\r\n", nil, "body\r\n"},
		{"nothing", "", nil, ""},
		{"header only", "A: b\r\n", []string{"A: b\r\n"}, ""},
		{"no empty line before the body", "A: b\r\nHello world\r\n", []string{"A: b\r\n"}, "Hello world\r\n"},
		{"no header", "Hello world\r\n", nil, "Hello world\r\n"},
		{"no header, no space", "Hello\r\n", nil, "Hello\r\n"},
		{"white space before the colon", "Subject : x\r\n\r\n", []string{"Subject : x\r\n"}, ""},
		{"white space line in a fold", "A: b\r\n \r\n c\r\n\r\n", []string{"A: b\r\n \r\n c\r\n"}, ""},
		{"fold without a field", " x\r\nA: b\r\n", nil, " x\r\nA: b\r\n"},
		{"mailbox line", "From a@b Mon Jan 1 00:00:00 2026\r\nA: b\r\n\r\nx", []string{"A: b\r\n"}, "x"},
		{"From with white space is a field", "From : a@b\r\n\r\n", []string{"From : a@b\r\n"}, ""},
		{"8-bit in the value", "A: \xe9\x1b$B\r\n\r\n", []string{"A: \xe9\x1b$B\r\n"}, ""},
		{"8-bit in the name", "\xe9: x\r\n\r\n", nil, "\xe9: x\r\n\r\n"},
		{"colon first", ": x\r\n", nil, ": x\r\n"},
		{"long body line without a colon", strings.Repeat("x", 3000) + " y\r\n", nil, strings.Repeat("x", 3000) + " y\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, r := range []io.Reader{
				strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in)),
				iotest.DataErrReader(strings.NewReader(tt.in)),
			} {
				h, rest, err := ReadHeader(r, 5000)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, f := range h.Fields {
					got = append(got, string(f.Raw))
				}
				more, _ := io.ReadAll(r)
				if diff := cmp.Diff(tt.fields, got); diff != "" || string(rest)+string(more) != tt.rest {
					t.Errorf("rest %q, want %q; fields -want +got\n%s", string(rest)+string(more), tt.rest, diff)
				}
			}
		})
	}
}

func TestReadHeaderLimit(t *testing.T) {
	for name, in := range map[string]string{
		"many fields":        strings.Repeat("A: b\r\n", 300),
		"one endless line":   "A: " + strings.Repeat("x", 4000),
		"one endless fold":   "A: b\r\n" + strings.Repeat(" x\r\n", 1000),
		"one endless name":   strings.Repeat("x", 4000),
		"mailbox line":       "From " + strings.Repeat("x", 4000),
		"just over the edge": "A: " + strings.Repeat("x", 996) + "\r\n\r\n",
	} {
		if _, _, err := ReadHeader(strings.NewReader(in), 1000); !errors.Is(err, ErrHeaderTooLong) {
			t.Errorf("%s: got %v, want ErrHeaderTooLong", name, err)
		}
	}
	if _, _, err := ReadHeader(strings.NewReader("A: "+strings.Repeat("x", 995)+"\r\n\r\n"+strings.Repeat("y", 9000)), 1000); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	broken := errors.New("reset")
	if _, _, err := ReadHeader(io.MultiReader(strings.NewReader("A: b\r\n"), iotest.ErrReader(broken)), 1000); err != broken {
		t.Errorf("got %v, want the reader's error", err)
	}
}

func TestHeaderEdits(t *testing.T) {
	h, _, err := ReadHeader(strings.NewReader("Received: 1\r\nreceived: 2\r\nTo: x\r\n y\r\n\r\n"), 1000)
	if err != nil {
		t.Fatal(err)
	}
	if got := h.Count("RECEIVED"); got != 2 {
		t.Errorf("Count: got %d, want 2", got)
	}
	if got := h.Get("to").Value(); got != "x y" {
		t.Errorf("Value: got %q, want %q", got, "x y")
	}
	if h.Get("Cc") != nil {
		t.Error("found a Cc")
	}
	if !h.Remove("Received") || h.Remove("Received") {
		t.Error("Remove: not once")
	}
	h.Add("Cc", "z")
	if got, want := string(h.Append([]byte("> "))), "> To: x\r\n y\r\nCc: z\r\n\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is not touched leaves as it came.
func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in strings.Builder
		for range rapid.IntRange(0, 8).Draw(t, "fields") {
			in.WriteString(rapid.StringMatching(`[!-9;-~]{1,9}[ \t]?:[ -~\x80-\xff]{0,30}(\r\n[ \t][ -~]{0,9}){0,2}\r\n`).Draw(t, "field"))
		}
		in.WriteString("\r\n")
		body := rapid.String().Draw(t, "body")
		r := iotest.HalfReader(strings.NewReader(in.String() + body))
		h, rest, err := ReadHeader(r, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		more, _ := io.ReadAll(r)
		if got := string(h.Append(nil)) + string(rest) + string(more); got != in.String()+body {
			t.Fatalf("got %q, want %q", got, in.String()+body)
		}
	})
}

// FuzzReadHeader: nothing is lost but an empty line or a mailbox line, and repair settles in one pass.
func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("From: a@b <a@b>\r\nBcc: c\r\n\r\nbody"))
	f.Add([]byte("From x\r\nA : b\r\n c\r\nno colon"))
	f.Add([]byte("Content-Type: x\r\nFrom: (\"<,;\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var l Lines
		in, _, _ = through(&l, in, len(in)+1, 2*len(in)+lineRoom)
		end := make([]byte, lineRoom)
		n, _ := l.End(end)
		in = append(in, end[:n]...)
		h, rest, err := ReadHeader(bytes.NewReader(in), 1<<16)
		if err != nil {
			return
		}
		size := 0
		for _, f := range h.Fields {
			if !bytes.Contains(in, f.Raw) || !bytes.HasSuffix(f.Raw, []byte("\r\n")) {
				t.Fatalf("field %q is not of the message", f.Raw)
			}
			size += len(f.Raw)
		}
		if !bytes.HasSuffix(in, rest) && len(in) < 4096 {
			t.Fatalf("rest %q is not the end of the message", rest)
		}
		r := Repairs{MessageID: "<i@d>", Sender: "s@d"}
		h.Repair(r)
		once := string(h.Append(nil))
		if strings.ContainsAny(strings.ReplaceAll(once, "\r\n", ""), "\r\n") {
			t.Fatalf("line endings of %q", once)
		}
		again, rest2, err := ReadHeader(strings.NewReader(once), 1<<20)
		if err != nil || len(rest2) > 0 {
			t.Fatalf("repaired header does not read back: %q, %v", rest2, err)
		}
		if notes := again.Repair(r); len(notes) > 0 {
			t.Fatalf("second repair of %q: %q", once, notes)
		}
	})
}
