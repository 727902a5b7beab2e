package smtpin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"relayd/pkg/admission"
	"relayd/pkg/message"
	"relayd/pkg/status"
)

// rateGrace is how long a body may take regardless of its rate.
const rateGrace = 30 * time.Second

// body reads the message a client sends with DATA or BDAT: CRLF lines, dots unstuffed, no octet of what follows. io.EOF
// is only ever the end the client gave; any other error is a refusal and ends the session, since nobody can say any more
// where the next command begins.
type body struct {
	g     *guard
	lines message.Lines
	buf   *[bodyBuffer]byte
	err   error // sticky
	spill []byte

	chunked bool  // BDAT
	last    bool  // this chunk is the last
	left    int64 // octets of this chunk still to come
	size    int64 // octets of all chunks so far

	received int64
	waited   time.Duration // for the client, not for the queue
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(b.spill) == 0 && b.err == nil && len(p) > 0 {
		if len(p) >= 4 {
			if n := b.read(p); n > 0 {
				return n, nil
			}
			return 0, b.err
		}
		var small [4]byte
		b.spill = append(b.spill, small[:b.read(small[:])]...)
	}
	if len(b.spill) > 0 {
		n := copy(p, b.spill)
		b.spill = b.spill[n:]
		return n, nil
	}
	return 0, b.err
}

// read returns at least one octet or sets err, perhaps both. p has room for 4.
func (b *body) read(p []byte) (n int) {
	for n == 0 && b.err == nil {
		src := b.g.in
		if b.chunked {
			src = src[:min(int64(len(src)), b.left)]
		}
		switch {
		case len(src) > 0:
			var used int
			n, used, b.err = b.lines.Next(p, src)
			b.g.in = b.g.in[used:]
			b.left -= int64(used)
		case b.chunked && b.left == 0 && b.last:
			if n, b.err = b.lines.End(p); b.err == nil {
				b.err = io.EOF
			}
		case b.chunked && b.left == 0:
			b.err = b.nextChunk()
		default:
			b.err = b.fill()
		}
	}
	if errors.Is(b.err, message.ErrLineEnding) || errors.Is(b.err, message.ErrEndOfData) {
		b.err = refuse(reasonContent, 554, status.Enhanced{5, 6, 0}, "%v: lines must end in CR LF", b.err)
	}
	return n
}

// fill waits for the client: no longer than for a command, and no longer than the minimum rate allows for all it has
// sent so far.
func (b *body) fill() error {
	start, wait, slow := time.Now(), b.g.timeout, false
	if b.g.minRate > 0 {
		earned := time.Duration(float64(b.received) / float64(b.g.minRate) * float64(time.Second))
		if due := rateGrace + earned - b.waited; due < wait {
			wait, slow = due, true
		}
	}
	b.g.await(start.Add(wait), false)
	before := len(b.g.in)
	err := b.g.fill()
	b.waited += time.Since(start)
	b.received += int64(len(b.g.in) - before)
	if slow && errors.Is(err, os.ErrDeadlineExceeded) {
		return refuse(reasonTimeout, 421, status.Enhanced{4, 4, 2}, "message comes too slowly")
	}
	return lost(err)
}

// lost turns an error of the connection into a refusal.
func lost(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(reasonTimeout, 421, status.Enhanced{4, 4, 2}, "timeout before the end of the message")
	}
	return &refusal{reasonLost, &status.Error{Code: 421, Enhanced: status.Enhanced{4, 4, 2},
		Text: "connection lost before the end of the message", Err: err}}
}

// errGivenUp is the end of a message its client gave up with RSET or QUIT, which this has answered.
var errGivenUp = errors.New("message given up by the client")

// nextChunk acknowledges a chunk and reads the next BDAT. Of other commands only NOOP, RSET and QUIT make sense here.
func (b *body) nextChunk() error {
	g := b.g
	g.verb = verbBDAT
	g.say(fmt.Sprintf("250 2.0.0 %d octets received", b.size))
	for !g.closing {
		line, err := g.readLine()
		if errors.Is(err, errLineTooLong) {
			return refuse(reasonSyntax, 500, status.Enhanced{5, 5, 2}, "line too long")
		}
		if err != nil {
			return lost(err)
		}
		arg, ok := g.command(line)
		if !ok {
			continue
		}
		switch g.verb {
		case verbBDAT:
			size, last, ok := parseBDAT(arg)
			if !ok {
				return refuse(reasonSyntax, 501, status.Enhanced{5, 5, 4}, "malformed BDAT")
			}
			if size > g.limit-b.size {
				return admission.TooLarge(g.limit)
			}
			b.left, b.last = size, last
			b.size += size
			return nil
		case verbRSET, verbQUIT:
			return errGivenUp
		case verbNOOP:
			g.say("250 2.0.0 Ok")
		default:
			g.fault("503 5.5.1 BDAT expected")
		}
	}
	return lost(io.ErrClosedPipe)
}

// finish brings the connection to where the reply belongs: behind the final dot, or behind the chunk the client is
// sending. A client that takes more than another limit octets for it, or that failed to keep to the protocol, is
// disconnected behind the reply.
func (b *body) finish(limit int64) {
	if b.chunked && b.err == nil {
		b.g.skip = b.left
		return
	}
	var scratch [4096]byte
	for n := int64(0); b.err == nil && n < limit; {
		k, _ := b.Read(scratch[:])
		n += int64(k)
	}
	if b.err != io.EOF && b.err != errGivenUp {
		b.g.lastReply()
	}
}
