package wire

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash"
)

// DotReader reads what follows the 354 in blocks: up to the line that is a lone dot, with the dot that begins a line
// taken away (RFC 5321, 4.5.2). A line begins after CR LF and nowhere else, so nothing but CRLF.CRLF ends the message.
type DotReader struct {
	in        *bufio.Reader
	lineStart bool
	afterCR   bool // the last byte returned was CR
	held      int  // bytes of the last block, still in the buffer
}

// NewDotReader reads a body from in, whose buffer is what a block is at most.
func NewDotReader(in *bufio.Reader) *DotReader { return &DotReader{in: in, lineStart: true} }

// Next returns the next block, valid until the call after; more is false once the final dot has been consumed.
func (d *DotReader) Next() (block []byte, more bool, err error) {
	d.in.Discard(d.held) // buffered: cannot fail
	d.held = 0
	if _, err := d.in.Peek(1); err != nil {
		return nil, false, err
	}
	b, _ := d.in.Peek(d.in.Buffered())
	if d.lineStart && b[0] == '.' {
		end, err := d.in.Peek(3) // a dot at the start of a line is never the end of a stream
		if err != nil {
			return nil, false, err
		}
		if end[1] == '\r' && end[2] == '\n' {
			d.in.Discard(3)
			return nil, false, nil
		}
		d.in.Discard(1)
		b, _ = d.in.Peek(d.in.Buffered())
	}
	d.lineStart = false
	switch i := bytes.Index(b, []byte("\r\n.")); {
	case d.afterCR && b[0] == '\n':
		b = b[:1]
		d.lineStart = true
	case i >= 0:
		b = b[:i+2]
		d.lineStart = true
	default:
		d.lineStart = bytes.HasSuffix(b, []byte("\r\n"))
	}
	d.afterCR = b[len(b)-1] == '\r'
	d.held = len(b)
	return b, true, nil
}

// Content receives a message's bytes and tells what is needed of them: hash, size, header, and the body if it is kept.
type Content struct {
	Size   int64
	Header []byte // up to the empty line, or to one byte over the limit
	Raw    []byte // the whole message; nil if it is not kept
	BareLF bool   // a line ended without CR

	sum        hash.Hash
	headerMax  int
	headerDone bool
	keep       bool
	keepMax    int64
	last       byte
}

// NewContent is empty. It keeps headerMax+1 bytes of the header and, if keep is set, a body of up to keepMax bytes;
// announced is the size to expect, 0 if unknown.
func NewContent(headerMax int, keep bool, keepMax, announced int64) *Content {
	c := &Content{sum: sha256.New(), headerMax: headerMax, keep: keep, keepMax: keepMax}
	if keep {
		c.Raw = make([]byte, 0, min(max(announced, 4<<10), 1<<20))
	}
	return c
}

// Write adds a block.
func (c *Content) Write(p []byte) {
	if len(p) == 0 {
		return
	}
	c.Size += int64(len(p))
	c.sum.Write(p)
	if !c.headerDone {
		c.takeHeader(p)
	}
	c.checkLines(p)
	if c.keep && c.Size <= c.keepMax {
		c.Raw = append(c.Raw, p...)
	} else {
		c.Raw, c.keep = nil, false // it will be refused: too large
	}
}

// takeHeader adds p to the header until the empty line, by CR LF or bare LF alike, as Exchange's parser has it.
func (c *Content) takeHeader(p []byte) {
	from := max(0, len(c.Header)-2)
	c.Header = append(c.Header, p...)
	for i := from; i < len(c.Header); i++ {
		n := bytes.IndexByte(c.Header[i:], '\n')
		if n < 0 {
			break
		}
		i += n
		line := bytes.TrimSuffix(c.Header[lineBefore(c.Header, i):i], []byte("\r"))
		if len(line) == 0 {
			c.Header = c.Header[:i+1]
			c.headerDone = true
			return
		}
	}
	if len(c.Header) > c.headerMax {
		c.Header = c.Header[:c.headerMax+1]
		c.headerDone = true
	}
}

func lineBefore(b []byte, end int) int { return bytes.LastIndexByte(b[:end], '\n') + 1 }

func (c *Content) checkLines(p []byte) {
	for start := 0; !c.BareLF; {
		n := bytes.IndexByte(p[start:], '\n')
		if n < 0 {
			break
		}
		before := c.last
		if start+n > 0 {
			before = p[start+n-1]
		}
		c.BareLF = before != '\r'
		start += n + 1
	}
	c.last = p[len(p)-1]
}

// SHA256 is the hash of the bytes so far, in hexadecimal.
func (c *Content) SHA256() string { return hex.EncodeToString(c.sum.Sum(nil)) }
