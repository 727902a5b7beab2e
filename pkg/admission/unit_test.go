package admission

import "testing"

func TestUnits(t *testing.T) {
	for n, want := range map[int64]string{35 << 20: "35 MiB", 128 << 10: "128 KiB", 1000: "1000 octets", 1536 << 10: "1536 KiB", 0: "0 octets"} {
		if got := SizeText(n); got != want {
			t.Errorf("SizeText(%d) = %q, want %q", n, got, want)
		}
	}
	for in, want := range map[string]bool{"": false, "abcdefgh": false, "abcdefg\x80": true, "abcdefghi\xff": true, "\x80": true, "abcdefghabcdefgh\x7f": false} {
		if got := hasEightBit([]byte(in)); got != want {
			t.Errorf("hasEightBit(%q) = %v", in, got)
		}
	}
}
