package rewrite

import (
	"io"
	"strings"
	"testing"
)

// BenchmarkRewrite measures both readings of a message of 8 MiB whose one part is encoded.
func BenchmarkRewrite(b *testing.B) {
	const size = 8 << 20
	for name, unit := range map[string]string{
		"text":   strings.Repeat("some words of a text, one after the other; ", 100) + "\r\n",
		"eight":  strings.Repeat("\xe9", 5000) + "\r\n",
		"binary": strings.Repeat("\xe9", 5000) + "\r\n",
	} {
		b.Run(name, func(b *testing.B) {
			head := plainHead
			if name == "binary" {
				head = "Content-Type: a/b\r\n"
			}
			open := func() io.Reader {
				return io.MultiReader(strings.NewReader(head+"\r\n"), &octets{line: unit, n: size}, strings.NewReader("\r\n"))
			}
			b.SetBytes(size)
			for b.Loop() {
				plan, err := long.Plan(open)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, plan.Reader(open)); err != nil || n != plan.Size {
					b.Fatal(n, err)
				}
			}
		})
	}
}
