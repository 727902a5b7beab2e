package submission

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// pipelined is how many commands are sent before their replies are read, where the server offers PIPELINING (RFC 2920):
// few enough that replies never fill the connection while commands still do.
const pipelined = 50

// block is the buffers a message passes through. A message smaller than in goes out with its final dot in one write.
type block struct {
	in  [32 << 10]byte
	out []byte
}

// Delivery is one message and some of its recipients.
type Delivery struct {
	Env     *envelope.Envelope
	Open    []int           // which of Env.Recipients to try
	Body    io.Reader       // the message exactly as stored, Env.Size octets; read at most once
	Errs    []*status.Error // parallel to Open, filled in; nil: no verdict of its own
	Reply   string          // filled in: to the final dot, where it was an acceptance
	Started bool            // filled in: Body was read from
}

func (d *Delivery) recipient(i int) *envelope.Recipient { return &d.Env.Recipients[d.Open[i]] }

// transact runs one mail transaction. The error is that of every recipient without one of its own; nil: they are
// accepted.
func (s *Session) transact(d *Delivery) *status.Error {
	todo, e := s.sendables(d)
	if e != nil || len(todo) == 0 {
		return e
	}
	s.messages++
	accepted, e := s.envelope(d, todo)
	if e == nil && accepted == 0 {
		return nil
	}
	if e == nil {
		e = s.data()
	}
	if e != nil {
		if errors.Is(e, errProtocol) { // replies that are out of step may have been given to the wrong recipients
			clear(d.Errs)
		}
		return e
	}
	d.Started = true
	return s.body(d)
}

// inStep is an error where the server has said something that nothing was asked for: whatever it says next would be taken
// for the answer to something else. 421 is for any time (RFC 5321 section 3.8), and left to be read.
func (s *Session) inStep(stage status.Stage) *status.Error {
	if there, _ := s.ahead(); !there { // a connection that is lost shows when it is next used
		return nil
	}
	rest, _ := s.br.Peek(min(s.br.Buffered(), 80)) // buffered, so that it cannot fail
	if bytes.HasPrefix(rest, []byte("421")) {
		return nil
	}
	return s.lost(stage, fmt.Errorf("%w: unasked %s", errProtocol, escape(string(rest))))
}

// data sends DATA and reads its 354.
func (s *Session) data() *status.Error {
	const stage = status.StageData
	limit := s.client.Timeouts.Data
	if err := s.write(limit, []byte("DATA\r\n")); err != nil {
		return s.lost(stage, err)
	}
	r, e := s.read(stage, limit)
	switch {
	case e != nil:
		return e
	case r.code == 354:
		return nil
	case r.code < 400:
		return s.lost(stage, fmt.Errorf("%w: %s", errProtocol, r))
	}
	return s.verdict(stage, r)
}

// sendables returns which of d.Open the server can be asked to take at all, and gives the others their errors.
func (s *Session) sendables(d *Delivery) ([]int, *status.Error) {
	if m := s.ext.maxSize; m > 0 && d.Env.Size > m {
		return nil, &status.Error{Code: 552, Enhanced: status.Enhanced{5, 3, 4}, Stage: status.StageMail, Action: status.Fail,
			Text: fmt.Sprintf("message of %d octets is larger than the %d Exchange Online accepts", d.Env.Size, m)}
	}
	noUTF8 := &status.Error{Code: 553, Enhanced: status.Enhanced{5, 6, 7}, Stage: status.StageMail, Action: status.Fail,
		Text: "Exchange Online does not offer SMTPUTF8, which the message or its addresses need"}
	if !s.ext.utf8 && (d.Env.SMTPUTF8 || !s.login.ASCII()) {
		return nil, noUTF8
	}
	s.todo = s.todo[:0]
	for i := range d.Open {
		switch a := d.recipient(i).Address; {
		case !Sendable(a):
			d.Errs[i] = &status.Error{Code: 553, Enhanced: status.Enhanced{5, 1, 3}, Stage: status.StageRcpt, Action: status.Fail,
				Text: "the address cannot be sent"}
		case !s.ext.utf8 && !a.ASCII():
			d.Errs[i] = noUTF8
		default:
			s.todo = append(s.todo, i)
		}
	}
	return s.todo, nil
}

// Sendable reports whether a can stand in a command without being able to end it. All stored addresses can; this is the
// last door.
func Sendable(a envelope.Address) bool {
	return a != "" && !strings.ContainsFunc(string(a), func(r rune) bool { return r < ' ' || r == 0x7f })
}

// envelope sends MAIL and RCPTs, behind an RSET where the last transaction was left unfinished, and returns how many
// recipients were accepted. An error is every recipient's.
func (s *Session) envelope(d *Delivery, todo []int) (accepted int, e *status.Error) {
	next, window := 0, 1 // commands: -1 RSET, 0 MAIL, then RCPTs
	if s.dirty {
		next = -1
	}
	if s.ext.pipelining {
		window = pipelined
	}
	s.dirty = true
	limit := s.client.Timeouts.Command
	for next <= len(todo) && e == nil {
		if e = s.inStep(stageOf(next)); e != nil {
			return 0, e
		}
		end := min(next+window, len(todo)+1)
		s.out = s.out[:0]
		for i := next; i < end; i++ {
			s.out = s.appendCommand(s.out, d, todo, i)
		}
		if err := s.write(limit, s.out); err != nil {
			return 0, s.lost(stageOf(next), err)
		}
		for ; next < end; next++ {
			r, failed := s.read(stageOf(next), limit)
			if failed == nil && e != nil && r.code >= 400 && !s.broken { // behind a refused MAIL it says nothing
				continue
			}
			if failed == nil {
				failed = s.verdict(stageOf(next), r)
			}
			switch {
			case failed == nil && next > 0:
				accepted++
			case failed == nil:
			case s.broken:
				if e == nil {
					e = failed
				}
				return 0, e
			case next < 0: // a server that cannot do RSET is not one to go on with
				return 0, s.lost(stageOf(next), fmt.Errorf("%w: RSET: %s", errProtocol, r))
			case next == 0:
				e = failed
			default:
				d.Errs[todo[next-1]] = failed
			}
		}
	}
	if e == nil {
		e = s.inStep(status.StageData)
	}
	return accepted, e
}

func stageOf(command int) status.Stage {
	if command > 0 {
		return status.StageRcpt
	}
	return status.StageMail
}

func (s *Session) appendCommand(b []byte, d *Delivery, todo []int, command int) []byte {
	switch {
	case command < 0:
		b = append(b, "RSET"...)
	case command == 0:
		b = s.appendMail(b, d, todo)
	default:
		r := d.recipient(todo[command-1])
		b = append(append(append(b, "RCPT TO:<"...), r.Address...), '>')
		if s.ext.dsn {
			b = appendParameter(b, "NOTIFY", r.Notify)
			b = appendParameter(b, "ORCPT", r.ORCPT)
		}
	}
	return append(b, '\r', '\n')
}

// appendMail writes MAIL FROM with the mailbox authenticated as, which is the only reverse-path Exchange Online is
// known to take.
func (s *Session) appendMail(b []byte, d *Delivery, todo []int) []byte {
	b = append(append(append(b, "MAIL FROM:<"...), s.login...), '>')
	if s.ext.size {
		b = strconv.AppendInt(append(b, " SIZE="...), d.Env.Size, 10)
	}
	if s.ext.eightBit && d.Env.EightBit {
		b = append(b, " BODY=8BITMIME"...)
	}
	utf8 := d.Env.SMTPUTF8 || !s.login.ASCII()
	for _, i := range todo {
		utf8 = utf8 || !d.recipient(i).Address.ASCII()
	}
	if utf8 { // offered: sendables has seen to it
		b = append(b, " SMTPUTF8"...)
	}
	if s.ext.dsn {
		b = appendParameter(b, "RET", d.Env.Return)
		b = appendParameter(b, "ENVID", d.Env.EnvelopeID)
	}
	return b
}

// appendParameter writes a parameter as the client gave it, unless it is empty or could be read as more than one.
func appendParameter(b []byte, name, value string) []byte {
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return b
	}
	return append(append(append(append(b, ' '), name...), '='), value...)
}

// body sends the message and the final dot, and reads the verdict:
//
//	a reply before the dot was written    a refusal is one, an acceptance is out of step: retry
//	one reply to the dot                  the verdict
//	none, or two at once                  uncertain: which of two is the dot's cannot be known
//
// A reply sent before the dot that arrives behind it, and alone, looks like the dot's.
func (s *Session) body(d *Delivery) *status.Error {
	const stage = status.StageDot
	last, err := s.copyBody(d)
	if err != nil && !errors.As(err, new(writeError)) { // the message cannot be read: no dot, so that it never was
		s.broken = true
		return &status.Error{Code: 451, Enhanced: status.Enhanced{4, 3, 0}, Stage: stage, Text: "the stored message cannot be read", Err: err}
	}
	limit, asked := s.client.Timeouts.Dot, last && err == nil
	if !asked { // a server that breaks off has perhaps said why
		limit, s.broken = time.Second, true
	}
	r, e := s.read(stage, limit)
	if e == nil {
		e = s.verdict(stage, r)
	}
	if e == nil && asked {
		e = s.inStep(stage)
	}
	switch {
	case e == nil && asked:
		s.dirty = false
		d.Reply = s.secrets.show(r)
		return nil
	case e != nil && r.code >= 400:
		s.dirty = false
		return e
	case err != nil:
		e = s.lost(stage, err)
	case e == nil:
		e = s.lost(stage, fmt.Errorf("%w: unasked %s", errProtocol, r))
	}
	if last {
		e.Action = status.Uncertain
		e.Text = "the message was sent, but no reply came: it may have been accepted"
	}
	return e
}

// writeError is the connection's failure, as against the stored message's.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// copyBody sends the message, up to where the server says something. last: the final dot may have been sent, in part or
// whole.
func (s *Session) copyBody(d *Delivery) (last bool, err error) {
	b, ok := s.client.blocks.Get().(*block)
	if !ok {
		b = new(block)
	}
	defer s.client.blocks.Put(b)
	var dots stuffer
	var size int64
	for !last {
		n, err := fill(d.Body, b.in[:])
		size += int64(n)
		last = err == io.EOF
		switch {
		case err != nil && !last:
			return false, fmt.Errorf("read message: %w", err)
		case last && size != d.Env.Size:
			return false, fmt.Errorf("read message: %w: %d of %d octets", io.ErrUnexpectedEOF, size, d.Env.Size)
		}
		b.out = dots.append(b.out[:0], b.in[:n])
		if last {
			b.out = dots.end(b.out)
		}
		if there, err := s.ahead(); err != nil {
			return false, writeError{err}
		} else if there {
			return false, nil
		}
		if err := s.write(s.client.Timeouts.Block, b.out); err != nil {
			return last, writeError{err}
		}
	}
	return true, nil
}

// fill reads until p is full or r gives an error. Unlike io.ReadFull it keeps io.EOF apart from io.ErrUnexpectedEOF,
// by which a reader says that something is missing.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}
