package message

import (
	"strings"
	"testing"
)

func TestLongLines(t *testing.T) {
	line := func(n int) string { return strings.Repeat("x", n) + "\r\n" }
	tests := []struct {
		name, in string
		want     bool
	}{
		{"nothing", "", false},
		{"at the limit", line(998), false},
		{"one over", line(999), true},
		{"one over, not ended", strings.Repeat("x", 1000), true},
		{"at the limit, its LF still to come", strings.TrimSuffix(line(998), "\n"), false},
		{"two at the limit", line(998) + line(998), false},
		{"short ones before", line(0) + line(70) + line(999) + line(1), true},
		{"many short ones", strings.Repeat(line(60), 100), false},
	}
	for _, tt := range tests {
		for _, step := range []int{1, 7, 998, 999, 1000, 1 << 20} {
			var l LongLines
			for s := tt.in; s != ""; {
				n := min(step, len(s))
				l.Scan([]byte(s[:n]))
				s = s[n:]
			}
			if l.Seen != tt.want {
				t.Errorf("%s, in blocks of %d: got %v, want %v", tt.name, step, l.Seen, tt.want)
			}
		}
	}
}

func TestSignature(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"Content-Type: text/plain\r\n":    "",
		"Dkim-Signature: v=1; a=x\r\n":    "Dkim-Signature",
		"ARC-Seal: i=1\r\nSubject: x\r\n": "ARC-Seal",
		"Content-Type: Multipart/Signed;\r\n boundary=x\r\n":        "multipart/signed",
		"Content-Type: application/PKCS7-mime ; name=smime.p7m\r\n": "application/pkcs7-mime",
		"Content-Type: application/pkcs7-signature\r\n":             "", // a part beside what it signs
	} {
		h, _, err := ReadHeader(strings.NewReader(in), 1000)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.Signature(); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
