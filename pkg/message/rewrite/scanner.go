package rewrite

import (
	"bytes"
	"io"
)

// blockSize is how much of a message is held: enough to tell a long line by its first piece.
const blockSize = 64 << 10

// scanner reads a message line by line. Only CRLF ends a line; one longer than a block comes in pieces.
type scanner struct {
	r       io.Reader
	buf     []byte
	i, seen int   // what is unread, and where to look on for a CRLF
	at      int64 // octets given out, CRLFs included
	eof     bool
	inside  bool // the next piece continues a line
}

// piece is a line, or a part of one, without its CRLF. text is valid until the next call.
type piece struct {
	text  []byte
	at    int64 // offset of text
	start bool  // it begins a line
	ended bool  // CRLF follows
	whole bool  // the line has no further piece: it ended, or the message did
}

// newScanner returns a scanner of r that holds what it reads in block.
func newScanner(r io.Reader, block *[blockSize]byte) *scanner {
	return &scanner{r: r, buf: block[:0]}
}

// next returns the next piece, or the error of the reader once all before it has been given out.
func (s *scanner) next() (piece, error) {
	for {
		if n := bytes.Index(s.buf[s.seen:], []byte("\r\n")); n >= 0 {
			return s.give(s.seen+n, true), nil
		}
		rest := len(s.buf) - s.i
		s.seen = max(s.i, len(s.buf)-1) // a CR at the end may have its LF yet
		switch {
		case s.eof && rest == 0:
			return piece{}, io.EOF
		case s.eof:
			return s.give(len(s.buf), false), nil
		case rest == cap(s.buf):
			end := len(s.buf)
			if s.buf[end-1] == '\r' {
				end--
			}
			return s.give(end, false), nil
		case s.i > 0 && len(s.buf) == cap(s.buf):
			s.buf = s.buf[:copy(s.buf, s.buf[s.i:])]
			s.seen -= s.i
			s.i = 0
		}
		n, err := s.r.Read(s.buf[len(s.buf):cap(s.buf)])
		s.buf = s.buf[:len(s.buf)+n]
		if err == io.EOF {
			s.eof = true
		} else if err != nil {
			return piece{}, err
		}
	}
}

// give hands out the octets up to end, and the CRLF there.
func (s *scanner) give(end int, ended bool) piece {
	p := piece{text: s.buf[s.i:end], at: s.at, start: !s.inside, ended: ended}
	s.i = end
	if ended {
		s.i += 2
	}
	s.at += int64(s.i-end) + int64(len(p.text))
	s.inside, s.seen = !ended, s.i
	p.whole = ended || s.eof && s.i == len(s.buf)
	return p
}
