package smtpin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"relayd/pkg/admission"
	"relayd/pkg/message"
)

// Bounds of a session.
const (
	commandBuffer = 4 << 10  // octets held for an idle client
	maxLine       = 2048     // command line: RFC 5321, RFC 3461 and RFC 6531 together ask for less
	maxAuthLine   = 12288    // AUTH and what answers its challenges, CRLF included (RFC 4954, section 4)
	maxFaults     = 10       // lines that are no command, before 421
	bodyBuffer    = 64 << 10 // octets held while a body comes in
	lingerTime    = 2 * time.Second
	lingerOctets  = 1 << 20
)

// guard is the connection go-smtp sees. It stands between the socket and go-smtp's parser and hands over one command line
// at a time, checked and in canonical form, so go-smtp holds no octet of what follows, never sees a body, and never
// repeats what a client wrote. Body, BDAT, STARTTLS and every deadline are the guard's own:
//
//	client writes            go-smtp reads          then
//	EHLO name                EHLO <our name>        name kept for Received
//	MAIL FROM:…, RCPT TO:…   a fixed path           the session parses the line itself
//	DATA                     DATA                   at 354, Session.Data reads body; after it go-smtp reads "."
//	BDAT n                   DATA                   354 is swallowed; body reads all chunks and answers between them
//	STARTTLS                 end of file            220; the handshake and a fresh guard are up to conn
//	no command, control octets  nothing             500 or 501; 421 and close after the tenth
//
// All but drain runs on go-smtp's goroutine of this connection.
type guard struct {
	net.Conn
	hostname string
	reject   bool          // bare CR and LF are errors
	timeout  time.Duration // for a whole command line, a block of a body, a reply
	minRate  int64         // octets a second of a body; 0: none
	limit    int64         // octets of a message
	startTLS bool          // offered
	resumed  bool          // greeting was sent before STARTTLS
	counts   *commandCounters
	done     chan struct{} // closed by Close

	idle []byte // the buffer of the command phase
	base []byte // the buffer in lies in
	in   []byte // read from the client, not yet used
	out  []byte // replies not yet sent: those to pipelined commands leave together
	feed []byte // what go-smtp is to read next
	verb verb
	line string // the command line as the client wrote it
	helo string
	esmtp,
	sasl, // the next line answers a challenge
	asked, // go-smtp has not yet answered DATA
	closing, // send what is in out, then end
	abrupt, // the client may still be sending: linger, or it would not get the reply
	upgrade, // go-smtp is to let go of the connection for STARTTLS
	closed bool
	faults int
	body   *body  // from 354 until go-smtp has read its "."
	chunk  *chunk // a BDAT whose DATA go-smtp has not answered yet
	skip   int64  // octets of a refused chunk still to come

	mu       sync.Mutex // guards the two below
	draining bool
	waiting  bool // for a command
}

type chunk struct {
	size int64
	last bool
}

// Read gives go-smtp its next line. Every way out of a session is io.EOF: go-smtp then says nothing of its own.
func (g *guard) Read(p []byte) (int, error) {
	for len(g.feed) == 0 {
		switch {
		case g.closed:
			return 0, io.EOF
		case g.body != nil: // Session.Data is through: go-smtp looks for the end of the body
			g.endBody()
			g.feed = []byte(".\r\n")
		case g.closing || !g.next():
			g.flush()
			return 0, io.EOF
		}
	}
	n := copy(p, g.feed)
	g.feed = g.feed[n:]
	return n, nil
}

// next reads a line and sets feed, or answers the line itself. false: the session is over.
func (g *guard) next() bool {
	if !g.discardChunk() {
		return false
	}
	line, err := g.readLine()
	if err != nil {
		g.endOf(err)
		return false
	}
	if g.sasl {
		g.sasl = false
		if isClean(line) {
			line = append(line, '\r', '\n')
			g.feed = line
		} else {
			g.feed = []byte("*\r\n") // go-smtp answers 501, as to a client that gives up
		}
		return true
	}
	arg, ok := g.command(line)
	if !ok {
		return !g.closing
	}
	switch g.verb {
	case verbHELO, verbEHLO:
		g.helo, _, _ = strings.Cut(arg, " ")
		g.esmtp = g.verb == verbEHLO
		g.canonical(g.hostname) // old devices send no name; nothing of theirs is repeated
	case verbMAIL:
		g.canonical("FROM:<>")
	case verbRCPT:
		g.canonical("TO:<x@x>")
	case verbAUTH:
		g.canonical(arg)
	case verbDATA:
		if arg != "" {
			arg = "x"
		}
		g.canonical(arg)
		g.asked = true
	case verbBDAT:
		g.bdat(arg)
	case verbVRFY:
		g.canonical("x")
	case verbSTARTTLS:
		g.startTLSCommand(arg)
	default:
		g.canonical("")
	}
	return !g.closing && !g.upgrade
}

func (g *guard) canonical(arg string) {
	g.feed = []byte(strings.TrimSuffix(g.verb.String()+" "+arg, " ") + "\r\n")
}

// command takes a line apart and sets verb and line. Where it is no command, it is answered and ok is false.
func (g *guard) command(line []byte) (arg string, ok bool) {
	word, rest, _ := bytes.Cut(line, []byte{' '})
	g.verb = parseVerb(word)
	switch {
	case !isClean(line):
		g.verb = verbOther
		g.fault("501 5.5.2 control characters in the command")
	case g.verb == verbHTTP: // a browser talked into speaking to us: its headers and form data are no commands
		g.say("421 4.7.0 this is no web server")
		g.closing, g.abrupt = true, true
	case g.verb == verbOther:
		g.fault("500 5.5.2 command not recognized")
	case len(line) > maxLine && g.verb != verbAUTH:
		g.fault("500 5.5.2 line too long")
	default:
		g.line = string(line)
		return string(bytes.Trim(rest, " ")), true
	}
	return "", false
}

func isClean(line []byte) bool {
	return bytes.IndexFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}

// fault answers what is no command.
func (g *guard) fault(text string) {
	g.say(text)
	if g.faults++; g.faults >= maxFaults {
		g.say("421 4.7.0 too many errors")
		g.closing, g.abrupt = true, true
	}
}

// bdat hands go-smtp a DATA instead, so that it judges the sequence of commands. A size we cannot read, or will not
// wait for, leaves us not knowing where the next command begins.
func (g *guard) bdat(arg string) {
	size, last, ok := parseBDAT(arg)
	if !ok {
		g.say("501 5.5.4 malformed BDAT")
		g.closing, g.abrupt = true, true
		return
	}
	if size > g.limit {
		g.say("552 5.3.4 message exceeds " + admission.SizeText(g.limit))
		g.closing, g.abrupt = true, true
		return
	}
	g.chunk, g.asked = &chunk{size, last}, true
	g.feed = []byte("DATA\r\n")
}

// startTLSCommand answers STARTTLS (RFC 3207). What the client sent behind it was not encrypted, so it is never read.
func (g *guard) startTLSCommand(arg string) {
	switch {
	case !g.startTLS:
		g.fault("502 5.5.1 STARTTLS not available")
	case arg != "":
		g.fault("501 5.5.4 STARTTLS takes no parameter")
	case len(g.in) > 0:
		g.say("501 5.5.2 command before the TLS handshake")
		g.closing, g.abrupt = true, true
	default:
		g.say("220 2.0.0 ready to start TLS")
		g.flush()
		g.upgrade = !g.closing
	}
}

// discardChunk reads past what is left of a BDAT that was refused.
func (g *guard) discardChunk() bool {
	if g.skip > 0 {
		g.await(time.Now().Add(g.timeout), false)
	}
	for g.skip > 0 {
		if len(g.in) == 0 {
			if err := g.fill(); err != nil {
				g.endOf(err)
				return false
			}
		}
		n := int(min(g.skip, int64(len(g.in))))
		g.in = g.in[n:]
		g.skip -= int64(n)
	}
	return true
}

var (
	errLineTooLong = errors.New("line too long")
	errAuthTooLong = fmt.Errorf("AUTH: %w", errLineTooLong)
)

// readLine reads a line without its end, within one deadline for all of it. The result is valid until the next read.
func (g *guard) readLine() ([]byte, error) {
	seen, armed := 0, false
	for {
		if i := g.lineEnd(seen); i >= 0 && i < maxAuthLine {
			line := g.in[:i]
			g.in = g.in[i+1:]
			if g.body == nil && g.isDraining() {
				return nil, os.ErrDeadlineExceeded
			}
			return bytes.TrimSuffix(line, []byte{'\r'}), nil
		}
		seen = len(g.in)
		auth := g.sasl || parseVerb(g.in[:min(4, seen)]) == verbAUTH
		switch {
		case seen >= maxAuthLine && auth:
			return nil, errAuthTooLong
		case seen > maxLine && !auth:
			return nil, errLineTooLong
		}
		if !armed {
			armed = true
			g.flush()
			g.await(time.Now().Add(g.timeout), g.body == nil)
		}
		if err := g.fill(); err != nil {
			return nil, err
		}
	}
}

// lineEnd returns the index of the LF that ends the first line of in, looking from seen on; -1 for none.
func (g *guard) lineEnd(seen int) int {
	for i := seen; ; i++ {
		n := bytes.IndexByte(g.in[i:], '\n')
		if n < 0 {
			return -1
		}
		if i += n; !g.reject || i > 0 && g.in[i-1] == '\r' {
			return i
		}
	}
}

// fill reads once from the client into in, growing it where it is full. Replies leave first.
func (g *guard) fill() error {
	g.flush()
	if g.closed || g.closing {
		return net.ErrClosed
	}
	switch {
	case len(g.in) == 0 && g.body == nil:
		g.base = g.idle
		g.in = g.base[:0]
	case len(g.in) == 0:
		g.in = g.base[:0]
	case len(g.in) == cap(g.base):
		g.base = make([]byte, 2*cap(g.base))
		g.in = g.base[:copy(g.base, g.in)]
	case len(g.in) == cap(g.in):
		g.in = g.base[:copy(g.base, g.in)]
	}
	n, err := g.Conn.Read(g.in[len(g.in):cap(g.in)])
	g.in = g.in[:len(g.in)+n]
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// await sets the deadline of the next reads. While a command is awaited, drain ends the wait.
func (g *guard) await(deadline time.Time, command bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = command
	if command && g.draining {
		deadline = time.Unix(1, 0)
	}
	_ = g.Conn.SetReadDeadline(deadline) // an error here is the next Read's
}

// drain asks the session to end: at once where it waits for a command, else behind the body under way. Safe to call
// from any goroutine.
func (g *guard) drain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.draining = true
	if g.waiting {
		_ = g.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}

func (g *guard) isDraining() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.draining
}

// endOf says goodbye where a command line could not be read.
func (g *guard) endOf(err error) {
	g.verb = verbOther
	switch {
	case errors.Is(err, errAuthTooLong):
		g.say("500 5.5.6 authentication exchange line is too long")
		g.abrupt = true
	case errors.Is(err, errLineTooLong):
		g.say("500 5.5.2 line too long")
		g.abrupt = true
	case g.isDraining():
		g.say("421 4.3.2 service shutting down, try again")
	case errors.Is(err, os.ErrDeadlineExceeded):
		g.say("421 4.4.2 timeout")
	}
	g.closing = true
}

// Write takes a reply line of go-smtp.
func (g *guard) Write(p []byte) (int, error) {
	if g.closed {
		return 0, net.ErrClosed
	}
	g.send(g.correct(string(p)))
	return len(p), nil
}

// say sends a reply line of our own.
func (g *guard) say(line string) { g.send(line + "\r\n") }

func (g *guard) send(line string) {
	if len(line) > 3 && line[3] == ' ' {
		g.counts.add(g.verb, line[0])
	}
	g.out = append(g.out, line...)
	if len(g.out) > commandBuffer/2 {
		g.flush()
	}
}

// flush sends what is in out. A client that does not take it is gone.
func (g *guard) flush() {
	if len(g.out) == 0 {
		return
	}
	_ = g.Conn.SetWriteDeadline(time.Now().Add(g.timeout)) // an error here is Write's
	if _, err := g.Conn.Write(g.out); err != nil {
		g.closing = true
	}
	g.out = g.out[:0]
}

// correct notes what a reply of go-smtp means for the guard, and puts right what it words against the RFCs.
func (g *guard) correct(line string) string {
	switch {
	case g.resumed && strings.HasPrefix(line, "220 "):
		g.resumed = false
		return ""
	case strings.HasPrefix(line, "334 "):
		g.sasl = true
	case g.asked && strings.HasPrefix(line, "354 "):
		g.asked = false
		g.startBody()
		if g.body.chunked {
			return ""
		}
	case g.asked && g.chunk != nil:
		g.skip, g.chunk, g.asked = g.chunk.size, nil, false
	case g.asked:
		g.asked = false
		if len(g.in) > 0 { // it did not wait for 354: what follows may be a body
			g.lastReply()
		}
	}
	for _, c := range corrections {
		if rest, ok := strings.CutPrefix(line, c.from); ok && (c.verb == g.verb || c.verb == verbOther) {
			return strings.ReplaceAll(c.to, "%", g.hostname) + strings.Repeat(rest, c.keep)
		}
	}
	return line
}

// corrections are go-smtp's replies that RFC 5321, 3463 or 4954 want otherwise. verbOther: to any command.
var corrections = [...]struct {
	verb     verb
	from, to string
	keep     int // 1: what follows from stays
}{
	{verbEHLO, "250-Hello ", "250-%\r\n", 0},
	{verbHELO, "250 2.0.0 Hello ", "250 %\r\n", 0},
	{verbMAIL, "250 ", "250 2.1.0 Ok\r\n", 0}, // it would name the path the guard made up
	{verbRCPT, "250 ", "250 2.1.5 Ok\r\n", 0},
	{verbAUTH, "235 2.0.0 ", "235 2.7.0 ", 1},
	{verbAUTH, "502 5.5.4 Missing ", "501 5.5.4 Missing ", 1},
	{verbAUTH, "454 4.7.0 Invalid base64", "501 5.5.2 Invalid base64", 1},
	{verbOther, "502 5.5.1 Missing ", "503 5.5.1 Missing ", 1},
	{verbOther, "502 5.5.1 Please ", "503 5.5.1 Please ", 1},
}

// lastReply ends the session with the reply that is about to be written.
func (g *guard) lastReply() { g.closing, g.abrupt = true, true }

// startBody begins the body phase; its buffer comes from a pool and goes back when the body is through.
func (g *guard) startBody() {
	g.body = &body{g: g, lines: message.Lines{Dots: g.chunk == nil, Reject: g.reject}}
	if g.chunk != nil {
		g.body.chunked, g.body.left, g.body.last, g.body.size = true, g.chunk.size, g.chunk.last, g.chunk.size
		g.chunk = nil
	}
	g.body.buf = bodyBuffers.Get().(*[bodyBuffer]byte)
	g.base = g.body.buf[:]
	g.in = g.base[:copy(g.base, g.in)] // readLine holds less than a body buffer
}

func (g *guard) endBody() {
	g.base = g.idle
	if len(g.in) > len(g.base) {
		g.base = make([]byte, len(g.in))
	}
	g.in = g.base[:copy(g.base, g.in)]
	bodyBuffers.Put(g.body.buf)
	g.body = nil
}

var bodyBuffers = sync.Pool{New: func() any { return new([bodyBuffer]byte) }}

// Close sends what is left to say and closes the socket, unless it is to go on with TLS.
func (g *guard) Close() error {
	if g.closed {
		return nil
	}
	g.flush()
	g.closed = true
	if g.body != nil {
		g.endBody()
	}
	defer close(g.done)
	if g.upgrade {
		return nil
	}
	if half, ok := g.Conn.(interface{ CloseWrite() error }); ok && g.abrupt && half.CloseWrite() == nil {
		g.await(time.Now().Add(lingerTime), false)
		_, _ = io.CopyN(io.Discard, g.Conn, lingerOctets)
	}
	return g.Conn.Close()
}

// The deadlines are the guard's: go-smtp has no say.

func (g *guard) SetDeadline(time.Time) error      { return nil }
func (g *guard) SetReadDeadline(time.Time) error  { return nil }
func (g *guard) SetWriteDeadline(time.Time) error { return nil }

var _ net.Conn = (*guard)(nil)

// verb is an SMTP command, as in the label of relayd_smtp_commands_total.
type verb uint8

const (
	verbOther verb = iota
	verbHELO
	verbEHLO
	verbMAIL
	verbRCPT
	verbDATA
	verbBDAT
	verbRSET
	verbNOOP
	verbQUIT
	verbVRFY
	verbHELP
	verbEXPN
	verbAUTH
	verbSTARTTLS
	verbHTTP
	verbs
)

var verbNames = [verbs]string{"other", "HELO", "EHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "VRFY",
	"HELP", "EXPN", "AUTH", "STARTTLS", "HTTP"}

func (v verb) String() string { return verbNames[v] }

func parseVerb(word []byte) verb {
	for v := verbHELO; v < verbHTTP; v++ {
		if strings.EqualFold(verbNames[v], string(word)) {
			return v
		}
	}
	switch string(word) {
	case "GET", "POST", "PUT", "CONNECT", "OPTIONS":
		return verbHTTP
	}
	return verbOther
}
