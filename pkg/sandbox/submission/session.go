package submission

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/fault"
	"relayd/pkg/sandbox/text"
	"relayd/pkg/sandbox/wire"
)

const (
	bufferBytes  = 64 << 10 // of a connection's reader; also what a body is handled in
	maxCommand   = 2048     // octets of a command line: RFC 5321's 512 with room for every extension's parameters
	maxAuthLine  = 12288    // octets of a line of AUTH (RFC 4954, 4)
	maxHandshake = 30 * time.Second
)

// session is one SMTP connection. Replies gather in out and are written when there is nothing left to read, so a
// pipelined batch of commands is answered in one piece.
type session struct {
	server *Server
	ctx    context.Context
	id     string   // in bracketed replies and in Message.Session
	socket net.Conn // what was accepted
	conn   net.Conn // socket, or TLS over it
	in     *bufio.Reader
	out    *bufio.Writer
	born   time.Time
	drip   time.Duration // of the reply to the current command
	gone   bool          // no more is read or written

	hello   bool // EHLO or HELO was accepted since the connection or TLS began
	secured bool
	oldTLS  bool
	login   string
	tenant  directory.Tenant
	app     directory.App
	tx      transaction
}

// transaction is what MAIL begins and RSET, EHLO or the end of the message ends.
type transaction struct {
	open      bool
	mail      wire.Mail
	rcpts     []wire.Rcpt
	perDomain map[string]int
	chunking  bool // BDAT was used
	sending   bool // counted by mailboxes.begin
	within    bool // ... and below the limit
	content   *wire.Content
	fault     fault.Rule // of fault.StageBody
	faulty    bool
}

func newSession(v *Server, conn net.Conn, number int64) *session {
	now := time.Now()
	s := &session{
		server: v, socket: conn, conn: conn, born: now,
		id: fmt.Sprintf("08DE%06X%06X", now.Unix()&0xffffff, number&0xffffff), // looks like Exchange's
	}
	s.in = bufio.NewReaderSize(sessionReader{s}, bufferBytes)
	s.out = bufio.NewWriter(sessionWriter{s})
	return s
}

// sessionReader is where the session waits for its client.
type sessionReader struct{ s *session }

func (r sessionReader) Read(p []byte) (int, error) {
	s := r.s
	if err := s.out.Flush(); err != nil {
		return 0, err
	}
	deadline := time.Now().Add(s.server.opts.Limits.Idle)
	if end := s.born.Add(s.server.opts.Limits.SessionAge); end.Before(deadline) {
		deadline = end
	}
	s.conn.SetReadDeadline(deadline) // fails only on a closed connection, as Read will
	return s.conn.Read(p)
}

type sessionWriter struct{ s *session }

func (w sessionWriter) Write(p []byte) (int, error) {
	w.s.conn.SetWriteDeadline(time.Now().Add(w.s.server.opts.Limits.Idle))
	return w.s.conn.Write(p)
}

func (s *session) serve(ctx context.Context) {
	s.ctx = ctx
	defer s.finish()
	if !s.strikes(fault.StageConnect) && !s.gone {
		s.reply("220 " + s.server.opts.ServerName + " Microsoft ESMTP MAIL Service ready at " +
			s.born.UTC().Format("Mon, 2 Jan 2006 15:04:05 -0700") + " [" + s.id + "]")
	}
	for !s.gone {
		line, err := s.readLine(maxCommand)
		if err != nil {
			s.lost(err)
			return
		}
		s.drip = 0
		s.command(line)
	}
}

// finish gives back what the session holds.
func (s *session) finish() {
	s.reset()
	if s.login != "" {
		s.server.opts.Mailboxes.Close(s.login)
	}
	s.out.Flush()
}

// lost ends the session after a failed read. Only a timeout leaves anyone to tell.
func (s *session) lost(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		age := time.Time{}.Add(time.Since(s.born))
		s.reply("421 4.4.1 Connection timed out. Total session duration: " + age.Format("15:04:05.0000000"))
	}
	s.gone = true
}

var errLine = errors.New("bad line")

// readLine returns the next line without its CRLF. A line that is longer than limit, or ends in LF alone,
// reads as a NUL, which is neither a command nor base64; one past the buffer ends the session.
func (s *session) readLine(limit int) (string, error) {
	line, err := s.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		s.reply("500 5.5.2 Line too long " + s.stamp())
		return "", errLine
	}
	if err != nil {
		return "", err
	}
	if len(line) >= 5 && strings.EqualFold(string(line[:5]), "AUTH ") {
		limit = maxAuthLine
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok || len(line) > limit {
		return "\x00", nil
	}
	return text, nil
}

// stamp is the bracketed server name, time and connection of Exchange's replies.
func (s *session) stamp() string {
	return "[" + s.server.opts.ServerName + " " + time.Now().UTC().Format("2006-01-02T15:04:05.000Z") + " " + s.id + "]"
}

// reply writes text as it is, CRLF for each LF; "{server}" becomes the stamp.
func (s *session) reply(text string) {
	if strings.Contains(text, "{server}") {
		text = strings.ReplaceAll(text, "{server}", s.stamp())
	}
	text = strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\r\n") + "\r\n"
	if s.drip == 0 {
		s.out.WriteString(text) // an error stays with the writer and shows at the next read
		return
	}
	for i := range len(text) {
		s.out.WriteByte(text[i])
		if s.out.Flush() != nil || !fault.Sleep(s.ctx, s.drip) {
			s.gone = true
			return
		}
	}
}

// due looks for a rule that strikes now.
func (s *session) due(at fault.Stage, recipients ...string) (fault.Rule, bool) {
	return s.server.opts.Faults.Due(fault.Occasion{Stage: at, Login: s.login, App: s.app.ID, Recipients: recipients})
}

// strikes lets a due rule act and reports whether that was the answer.
func (s *session) strikes(at fault.Stage, recipients ...string) bool {
	r, hit := s.due(at, recipients...)
	return hit && s.act(r)
}

func (s *session) act(r fault.Rule) (answered bool) {
	s.pause(r)
	return s.strike(r)
}

// pause is the slow part of a rule.
func (s *session) pause(r fault.Rule) {
	s.drip = time.Duration(r.Drip)
	if r.Delay > 0 {
		s.out.Flush()
		s.gone = s.gone || !fault.Sleep(s.ctx, time.Duration(r.Delay))
	}
}

// strike is the rest of it.
func (s *session) strike(r fault.Rule) (answered bool) {
	if r.Raw != "" {
		s.out.WriteString(r.Raw)
		for r.Repeat && s.out.Flush() == nil && s.ctx.Err() == nil {
			s.out.WriteString(r.Raw)
		}
	}
	if r.Reply != "" {
		s.reply(r.Reply)
		s.gone = s.gone || r.Code() == 421
	}
	if r.Blackhole {
		s.out.Flush()
		fault.Sleep(s.ctx, time.Until(s.born.Add(s.server.opts.Limits.SessionAge)))
		s.gone = true
	}
	if r.Close != "" {
		s.out.Flush()
		if tcp, ok := s.socket.(*net.TCPConn); ok && r.Close == "rst" {
			tcp.SetLinger(0)
		}
		s.socket.Close()
		s.gone = true
	}
	return r.Raw != "" || r.Reply != "" || r.Blackhole || r.Close != ""
}

// command dispatches one line.
func (s *session) command(line string) {
	verb, argument, _ := strings.Cut(line, " ")
	switch verb = strings.ToUpper(verb); {
	case s.oldTLS:
		s.reply(text.OldTLS + " {server}")
		s.gone = true
	case verb == "EHLO" || verb == "HELO":
		s.ehlo(verb, argument)
	case verb == "QUIT":
		if !s.strikes(fault.StageQuit) {
			s.reply("221 2.0.0 Service closing transmission channel")
		}
		s.gone = true
	case verb == "NOOP":
		if !s.strikes(fault.StageNoop) {
			s.reply("250 2.0.0 OK")
		}
	case verb == "RSET":
		s.reset()
		if !s.strikes(fault.StageRset) {
			s.reply("250 2.0.0 Resetting")
		}
	case verb == "VRFY":
		s.reply("252 2.1.5 Cannot VRFY user")
	case verb == "STARTTLS":
		s.startTLS(argument)
	case verb == "AUTH":
		s.auth(argument)
	case verb == "MAIL":
		s.mail(argument)
	case verb == "RCPT":
		s.rcpt(argument)
	case verb == "DATA":
		s.data(argument)
	case verb == "BDAT":
		s.bdat(argument)
	default:
		s.reply("500 5.3.3 Unrecognized command {server}")
	}
}

func (s *session) ehlo(verb, name string) {
	if !wire.IsHelloName(name) {
		s.reply("501 5.5.4 Invalid domain name {server}")
		return
	}
	lower := strings.ToLower(name)
	if strings.HasSuffix(lower, ".outlook.com") || strings.HasSuffix(lower, ".office365.com") {
		s.reply("550 5.7.506 Access Denied, Bad HELO {server}")
		return
	}
	s.reset()
	r, hit := s.due(fault.StageEHLO)
	if hit && s.act(r) {
		return
	}
	s.hello = true
	peer, _, err := net.SplitHostPort(s.socket.RemoteAddr().String())
	if err != nil {
		peer = s.socket.RemoteAddr().String()
	}
	lines := []string{s.server.opts.ServerName + " Hello [" + peer + "]"}
	if verb == "EHLO" {
		lines = append(lines, s.keywords(r.Hide)...)
	}
	var text strings.Builder
	for i, l := range lines {
		separator := "-"
		if i == len(lines)-1 {
			separator = " "
		}
		text.WriteString("250" + separator + l + "\n")
	}
	s.reply(text.String())
}

// keywords lists the extensions in Exchange's order.
func (s *session) keywords(hidden []string) []string {
	security := "STARTTLS"
	if s.secured {
		security = "AUTH LOGIN XOAUTH2"
	}
	var offered []string
	for _, k := range []string{
		fmt.Sprintf("SIZE %d", s.server.opts.Limits.MessageBytes), "PIPELINING", "DSN", "ENHANCEDSTATUSCODES", security,
		"8BITMIME", "BINARYMIME", "CHUNKING", "SMTPUTF8",
	} {
		keyword, _, _ := strings.Cut(k, " ")
		if !slices.ContainsFunc(hidden, func(h string) bool { return strings.EqualFold(h, keyword) }) {
			offered = append(offered, k)
		}
	}
	return offered
}

func (s *session) startTLS(argument string) {
	switch {
	case argument != "":
		s.reply("501 5.5.4 Invalid arguments {server}")
		return
	case !s.hello:
		s.reply("503 5.5.2 Send hello first {server}")
		return
	case s.secured:
		s.reply("503 5.5.1 TLS already started {server}")
		return
	case s.in.Buffered() > 0: // commands slipped in before the handshake must not run after it (RFC 3207, 4.2)
		s.reply("421 4.7.0 Nothing may follow STARTTLS {server}")
		s.gone = true
		return
	}
	r, hit := s.due(fault.StageSTARTTLS)
	if hit && s.act(r) {
		if s.gone || !strings.HasPrefix(r.Raw, "220") && r.Code() != 220 {
			return
		}
	} else {
		s.reply("220 2.0.0 SMTP server ready")
	}
	if s.out.Flush() != nil {
		s.gone = true
		return
	}
	s.handshake()
}

func (s *session) handshake() {
	r, hit := s.due(fault.StageTLS)
	if hit && s.act(r) {
		s.gone = true // an answer in clear where TLS was due leaves nothing to go on with
		return
	}
	var newest uint16
	if r.OldTLS {
		newest = tls.VersionTLS10
	}
	conn := tls.Server(s.socket, s.server.opts.TLS(r.Certificate, newest))
	s.socket.SetDeadline(time.Now().Add(min(maxHandshake, s.server.opts.Limits.Idle)))
	if err := conn.HandshakeContext(s.ctx); err != nil {
		s.server.opts.Log.Info("handshake failed", zap.String("session", s.id), zap.Error(err))
		s.gone = true
		return
	}
	s.socket.SetDeadline(time.Time{})
	s.conn, s.secured, s.hello = conn, true, false
	s.oldTLS = conn.ConnectionState().Version < tls.VersionTLS12
}

// reset ends the transaction.
func (s *session) reset() {
	s.stopSending()
	s.tx = transaction{}
}

func (s *session) stopSending() {
	if s.tx.sending {
		s.server.opts.Mailboxes.End(s.login)
		s.tx.sending = false
	}
}
