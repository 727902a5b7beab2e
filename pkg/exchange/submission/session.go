// Package submission is the client's side of one SMTP session with Exchange Online: STARTTLS, XOAUTH2, mail transactions,
// and what the replies mean.
//
// Neither a token nor a byte of mail is sent before TLS 1.2 or better is up with a certificate that names the server.
// Before the final dot nothing is accepted, so that a session lost until then is a retry; from the dot to its reply it is
// unknown (RFC 1047), and the error says so.
package submission

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/status"
)

// Timeouts are the longest waits for one step of the far end.
type Timeouts struct {
	Greeting time.Duration // 220
	Command  time.Duration // EHLO, STARTTLS and the handshake, AUTH, MAIL, RCPT, RSET
	Data     time.Duration // DATA
	Block    time.Duration // for the far end to take one block of the message, 32 KB
	Dot      time.Duration // the reply to the final dot
}

// Client is what sessions have in common. All fields are required.
type Client struct {
	Hostname string // for EHLO
	Timeouts Timeouts
	// Count is told of every reply.
	Count func(stage status.Stage, code int, enhanced status.Enhanced)
	// Catalogue returns the rows to read replies by.
	Catalogue func() *catalogue.Catalogue
	// Unknown is told of a reply that no row describes: its text is escaped, and holds no credential.
	Unknown func(e *status.Error)

	blocks sync.Pool // *block
}

// Session is one connection, authenticated as one mailbox. One goroutine at a time uses it.
type Session struct {
	client *Client
	tls    *tls.Config
	login  envelope.Address
	token  string

	raw   *wire    // the TCP connection
	conn  net.Conn // the same, or TLS on top
	br    *bufio.Reader
	reply []byte // buffer of the last reply
	out   []byte // buffer of commands
	todo  []int  // buffer of transact
	ext   extensions

	secrets  secrets
	messages int
	dirty    bool // a transaction was begun and not completed: RSET before the next
	broken   bool // not to be used again
}

// extensions is what the server offered in its last EHLO reply.
type extensions struct {
	startTLS, xoauth2, pipelining, size, eightBit, utf8, dsn bool
	maxSize                                                  int64 // 0: no limit stated
}

// Open takes conn from the greeting to the end of AUTH, as login with token. config names the server whose certificate
// is wanted. When ctx ends, so does the connection. On an error conn is closed.
func (c *Client) Open(ctx context.Context, conn net.Conn, config *tls.Config, login envelope.Address, token string) (*Session, *status.Error) {
	raw := newWire(conn)
	s := &Session{client: c, tls: config, login: login, token: token, raw: raw, conn: raw, br: bufio.NewReaderSize(raw, maxReplyLine),
		secrets: credentials(login, token)}
	stop := context.AfterFunc(ctx, s.abort)
	e := s.open()
	if !stop() && e == nil {
		e = s.lost(status.StageAuth, net.ErrClosed)
	}
	if e != nil {
		s.abort()
		return nil, interrupted(ctx, e)
	}
	return s, nil
}

// Deliver runs one mail transaction. The error is that of every recipient without one of its own in d.Errs; nil: they
// are accepted. When ctx ends, so does the connection.
func (s *Session) Deliver(ctx context.Context, d *Delivery) *status.Error {
	stop := context.AfterFunc(ctx, s.abort)
	sound := false
	defer func() { // Body may panic
		s.broken = !stop() || s.broken || !sound
	}()
	clear(d.Errs)
	e := s.transact(d)
	sound = true
	return interrupted(ctx, e)
}

// interrupted adds the end of ctx, if it has come, to the causes of e.
func interrupted(ctx context.Context, e *status.Error) *status.Error {
	if e == nil || ctx.Err() == nil {
		return e
	}
	full := *e
	full.Err = errors.Join(context.Cause(ctx), e.Err)
	return &full
}

// Broken reports whether the session is of no more use.
func (s *Session) Broken() bool { return s.broken }

// Messages returns how many transactions were begun.
func (s *Session) Messages() int { return s.messages }

// abort breaks the connection under whatever is going on.
func (s *Session) abort() { _ = s.raw.Close() }

// Close ends the session, with a QUIT whose answer nobody waits for if the server may still be listening.
func (s *Session) Close() {
	if !s.broken {
		_ = s.write(time.Second, []byte("QUIT\r\n"))
	}
	s.abort()
}

// open goes from the greeting to the end of AUTH.
func (s *Session) open() *status.Error {
	r, e := s.read(status.StageGreeting, s.client.Timeouts.Greeting)
	if e == nil {
		e = s.verdict(status.StageGreeting, r)
	}
	for _, step := range []func() *status.Error{s.ehlo, s.startTLS, s.ehlo, s.auth} {
		if e != nil {
			return e
		}
		e = step()
	}
	return e
}

// ehlo greets and notes what is offered. There is no way back to HELO: without extensions there is no TLS.
func (s *Session) ehlo() *status.Error {
	r, e := s.command(status.StageEHLO, "EHLO "+s.client.Hostname)
	if e == nil {
		e = s.verdict(status.StageEHLO, r)
	}
	s.ext = parseExtensions(r.lines)
	return e
}

func parseExtensions(lines []byte) (x extensions) {
	_, lines, _ = bytes.Cut(lines, []byte("\n")) // the first is the server's greeting
	for line := range strings.SplitSeq(strings.ToUpper(string(lines)), "\n") {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "STARTTLS":
			x.startTLS = true
		case "PIPELINING":
			x.pipelining = true
		case "8BITMIME":
			x.eightBit = true
		case "SMTPUTF8":
			x.utf8 = true
		case "DSN":
			x.dsn = true
		case "SIZE":
			x.size = true
			if n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); err == nil && n > 0 {
				x.maxSize = n
			}
		case "AUTH":
			for mech := range strings.FieldsSeq(rest) {
				x.xoauth2 = x.xoauth2 || mech == "XOAUTH2"
			}
		}
	}
	return x
}

// startTLS brings TLS up or ends the session: there is no going on without.
func (s *Session) startTLS() *status.Error {
	const stage = status.StageSTARTTLS
	insecure := func(text string, err error) *status.Error {
		s.broken = true
		return s.secrets.withhold(&status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: stage, Text: text, Err: err})
	}
	if !s.ext.startTLS {
		return insecure("Exchange Online offers no STARTTLS, and nothing is sent without", nil)
	}
	r, e := s.command(stage, "STARTTLS")
	if e == nil {
		e = s.verdict(stage, r)
	}
	if e != nil {
		return e
	}
	if s.br.Buffered() > 0 { // RFC 3207 section 6; whoever put them there wants them read as the server's
		return insecure("data before the TLS handshake", errors.New("plaintext behind the reply to STARTTLS"))
	}
	conn := tls.Client(s.raw, s.tls)
	ctx, cancel := context.WithTimeout(context.Background(), s.client.Timeouts.Command)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return insecure("no TLS with Exchange Online: its certificate or its version of TLS is not acceptable, or the handshake broke off", err)
	}
	s.conn = conn
	s.br.Reset(conn)
	return nil
}

// auth authenticates. The order of challenges is xoauth2's business; here they end for sure.
func (s *Session) auth() *status.Error {
	const stage = status.StageAuth
	if !s.ext.xoauth2 {
		s.broken = true
		return &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: stage, Text: "Exchange Online does not offer XOAUTH2"}
	}
	client := xoauth2{user: string(s.login), token: s.token}
	mech, _, _ := client.Start() // has no error to give
	r, e := s.command(stage, "AUTH "+mech)
	for e == nil && r.code == 334 {
		challenge, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(r.lines)))
		if err != nil {
			challenge = r.lines
		}
		response, err := client.Next(challenge)
		if err != nil {
			return s.lost(stage, fmt.Errorf("%w: %w", errProtocol, err))
		}
		r, e = s.command(stage, base64.StdEncoding.EncodeToString(response))
	}
	if e == nil {
		e = s.verdict(stage, r)
	}
	if e == nil {
		return nil
	}
	if client.challenge != "" {
		e.Err = errors.Join(e.Err, fmt.Errorf("challenge %s", escape(client.challenge[:min(len(client.challenge), maxText)])))
	}
	return s.secrets.withhold(e)
}

// TokenAtFault reports whether a fresh token may cure e, an error of a session.
func (c *Client) TokenAtFault(e *status.Error) bool {
	if e == nil || e.Stage == status.StageToken || e.Rule == "" {
		return false
	}
	row := c.Catalogue().Named(e.Rule) // nil: a reload has just taken it away
	return row != nil && row.FreshToken
}

// command sends one line and reads the reply.
func (s *Session) command(stage status.Stage, line string) (reply, *status.Error) {
	limit := s.client.Timeouts.Command
	s.out = append(append(s.out[:0], line...), '\r', '\n')
	if err := s.write(limit, s.out); err != nil {
		return reply{}, s.lost(stage, err)
	}
	return s.read(stage, limit)
}

func (s *Session) write(limit time.Duration, p []byte) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(limit)) // on a closed connection Write tells
	_, err := s.conn.Write(p)
	return err
}

// read reads one reply, all of it within limit. Behind 421 the server closes, so the session is over.
func (s *Session) read(stage status.Stage, limit time.Duration) (reply, *status.Error) {
	_ = s.conn.SetReadDeadline(time.Now().Add(limit)) // on a closed connection Read tells, behind what has already come
	r, err := readReply(s.br, s.reply)
	s.reply = r.lines
	if err != nil {
		return reply{}, s.lost(stage, err)
	}
	s.client.Count(stage, r.code, r.enhanced())
	s.broken = s.broken || r.code == 421
	return r, nil
}

// verdict is nil for an acceptance; what is no refusal either makes no sense here. From MAIL on an acceptance is 25z: a
// 220 there is the greeting of another server behind a balancer, which has not seen what went before.
func (s *Session) verdict(stage status.Stage, r reply) *status.Error {
	session := stage == status.StageGreeting || stage == status.StageSTARTTLS || stage == status.StageAuth
	switch {
	case r.code/10 == 25, r.code < 300 && session:
		return nil
	case r.code < 400:
		return s.lost(stage, fmt.Errorf("%w: %s", errProtocol, r))
	}
	e := &status.Error{Code: r.code, Enhanced: r.enhanced(), Text: r.text(), Stage: stage}
	row := s.client.Catalogue().Classify(stage, e.Code, e.Enhanced, e.Text)
	e.Action, e.Rule, e.Wait, e.Cause, e.Advice = row.Action, row.Name, row.Wait, row.Cause, row.Advice
	e = s.secrets.withhold(e)
	if row.Unknown {
		s.client.Unknown(e)
	}
	return e
}

// lost ends a session that cannot go on. Nothing is known to be accepted.
func (s *Session) lost(stage status.Stage, err error) *status.Error {
	s.broken = true
	e := &status.Error{Code: 451, Enhanced: status.Enhanced{4, 4, 2}, Stage: stage, Err: err}
	switch {
	case errors.Is(err, errProtocol):
		e.Enhanced, e.Text = status.Enhanced{4, 5, 0}, "Exchange Online's reply was not understood"
	case errors.Is(err, os.ErrDeadlineExceeded):
		e.Text = "Exchange Online did not answer in time"
	default:
		e.Text = "the connection to Exchange Online was lost"
	}
	return s.secrets.withhold(e)
}
