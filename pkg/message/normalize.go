package message

import "io"

// Normalize returns the message of r with every line ending in CRLF, the last line included; bare CR and LF are read as
// line ends. It is for octets that come without SMTP's own framing.
func Normalize(r io.Reader) io.Reader { return &normalizer{src: r} }

type normalizer struct {
	src   io.Reader
	lines Lines
	in    [4 << 10]byte
	have  []byte // of in, not yet read by lines
	out   [8 << 10]byte
	ready []byte // of out, not yet returned
	err   error  // of src
	ended bool
}

// Read implements io.Reader.
func (n *normalizer) Read(p []byte) (int, error) {
	for len(n.ready) == 0 {
		switch {
		case len(n.have) > 0:
			written, read, err := n.lines.Next(n.out[:], n.have)
			n.ready, n.have = n.out[:written], n.have[read:]
			if err != nil {
				return 0, err
			}
		case n.err == io.EOF && !n.ended:
			n.ended = true
			written, err := n.lines.End(n.out[:])
			if err != nil {
				return 0, err
			}
			n.ready = n.out[:written]
		case n.err != nil:
			return 0, n.err
		default:
			var k int
			k, n.err = n.src.Read(n.in[:])
			n.have = n.in[:k]
		}
	}
	k := copy(p, n.ready)
	n.ready = n.ready[k:]
	return k, nil
}
