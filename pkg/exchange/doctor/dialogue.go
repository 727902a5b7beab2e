package doctor

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/exchange/doctor/diagnosis"
	"relayd/pkg/exchange/submission"
	"relayd/pkg/status"
)

// Bounds of a reply, those of package submission.
const (
	maxReplyLine  = 4 << 10
	maxReplyLines = 100
	maxChallenges = 3
)

var errProtocol = errors.New("reply against the protocol")

// dialogue is one SMTP session, a command at a time: package submission's runs from the greeting to the end of AUTH and
// from MAIL to the final dot in one, and here each command's reply is wanted, and no DATA.
type dialogue struct {
	conn     net.Conn
	br       *bufio.Reader
	hostname string
	limit    time.Duration // for a command and its whole reply
	replies  *catalogue.Catalogue
	offered  []string // lines of the last reply to EHLO, upper case
	lost     bool     // not to be written to any more
}

func newDialogue(conn net.Conn, hostname string, limit time.Duration, replies *catalogue.Catalogue) *dialogue {
	return &dialogue{conn: conn, br: bufio.NewReaderSize(conn, maxReplyLine), hostname: hostname, limit: limit, replies: replies}
}

// reply is one SMTP reply; the enhanced status code is taken off its first line.
type reply struct {
	code     int
	enhanced status.Enhanced
	lines    []string
}

// String returns the reply as one line: "250 2.1.0 Sender OK".
func (r reply) String() string {
	e := status.Error{Code: r.code, Enhanced: r.enhanced, Text: strings.Join(r.lines, " ")}
	return strings.TrimSpace(e.Error())
}

func (d *dialogue) greet() *status.Error {
	_, e := d.read(status.StageGreeting, time.Now().Add(d.limit))
	return e
}

func (d *dialogue) hello() *status.Error {
	r, e := d.command(status.StageEHLO, "EHLO "+d.hostname)
	d.offered = nil
	for i, line := range r.lines {
		if i > 0 { // the first is the server's greeting
			d.offered = append(d.offered, strings.ToUpper(line))
		}
	}
	return e
}

// offers reports whether the keyword was offered, and the argument with it unless that is empty.
func (d *dialogue) offers(keyword, argument string) bool {
	for _, line := range d.offered {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != keyword {
			continue
		}
		if argument == "" {
			return true
		}
		for _, word := range words[1:] {
			if word == argument {
				return true
			}
		}
	}
	return false
}

// The marks of a failed STARTTLS, in the chain of its error.
var (
	errNotOffered = errors.New("STARTTLS is not among what EHLO offers")
	errInjected   = errors.New("plaintext behind the reply to STARTTLS")
)

// handshakeError is what crypto/tls said.
type handshakeError struct{ error }

func (e handshakeError) Unwrap() error { return e.error }

func (d *dialogue) secure(ctx context.Context, config *tls.Config) (tls.ConnectionState, *status.Error) {
	const stage = status.StageSTARTTLS
	insecure := func(text string, err error) (tls.ConnectionState, *status.Error) {
		d.lost = true
		return tls.ConnectionState{}, &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: stage, Text: text, Err: err}
	}
	if !d.offers("STARTTLS", "") {
		return insecure("no STARTTLS offered", errNotOffered)
	}
	if _, e := d.command(stage, "STARTTLS"); e != nil {
		return tls.ConnectionState{}, e
	}
	if d.br.Buffered() > 0 { // RFC 3207 section 6
		return insecure("data before the TLS handshake", errInjected)
	}
	conn := tls.Client(d.conn, config)
	ctx, cancel := context.WithTimeout(ctx, d.limit)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return insecure("no TLS", handshakeError{err})
	}
	d.conn = conn
	d.br.Reset(conn)
	return conn.ConnectionState(), nil
}

// authenticate runs AUTH XOAUTH2 in its two steps, and gives Google's form of a refusal, a second challenge, the empty
// answer that makes the server say it plainly.
func (d *dialogue) authenticate(login envelope.Address, token string) (reply, *status.Error) {
	const stage = status.StageAuth
	answer := credential(login, token)
	line, told := "AUTH XOAUTH2", ""
	for range maxChallenges {
		r, e := d.exchange(stage, line)
		if e == nil && r.code != 334 {
			return r, nil
		}
		if e != nil {
			e.Text = withhold(e.Text, answer)
			if told != "" {
				e.Text += " (challenge: " + told + ")"
			}
			return r, e
		}
		if line == answer {
			challenge, err := base64.StdEncoding.DecodeString(strings.Join(r.lines, ""))
			if err == nil {
				told = string(challenge[:min(len(challenge), 300)])
			}
			answer = ""
		}
		line = answer
	}
	return reply{}, d.gone(stage, fmt.Errorf("%w: challenges without end", errProtocol))
}

// credential is the line a token is sent in.
func credential(login envelope.Address, token string) string {
	return base64.StdEncoding.EncodeToString([]byte("user=" + string(login) + "\x01auth=Bearer " + token + "\x01\x01"))
}

// command sends a line and wants 2yz.
func (d *dialogue) command(stage status.Stage, line string) (reply, *status.Error) {
	r, e := d.exchange(stage, line)
	if e == nil && r.code >= 300 {
		e = d.gone(stage, fmt.Errorf("%w: %s", errProtocol, r))
	}
	return r, e
}

// exchange sends a line and reads its reply. The error is that of 4yz and 5yz, or of no reply.
func (d *dialogue) exchange(stage status.Stage, line string) (reply, *status.Error) {
	deadline := time.Now().Add(d.limit)
	_ = d.conn.SetWriteDeadline(deadline) // on a closed connection Write tells
	if _, err := d.conn.Write([]byte(line + "\r\n")); err != nil {
		return reply{}, d.gone(stage, err)
	}
	return d.read(stage, deadline)
}

func (d *dialogue) read(stage status.Stage, deadline time.Time) (reply, *status.Error) {
	_ = d.conn.SetReadDeadline(deadline) // on a closed connection Read tells
	r, err := readReply(d.br)
	if err != nil {
		return r, d.gone(stage, err)
	}
	if r.code < 400 {
		return r, nil
	}
	d.lost = d.lost || r.code == 421
	e := &status.Error{Code: r.code, Enhanced: r.enhanced, Text: strings.Join(r.lines, " "), Stage: stage}
	row := d.replies.Classify(stage, e.Code, e.Enhanced, e.Text)
	e.Action, e.Rule, e.Wait, e.Cause, e.Advice = row.Action, row.Name, row.Wait, row.Cause, row.Advice
	return r, e
}

// gone ends a dialogue that cannot go on.
func (d *dialogue) gone(stage status.Stage, err error) *status.Error {
	d.lost = true
	e := &status.Error{Code: 451, Enhanced: status.Enhanced{4, 4, 2}, Stage: stage, Err: err}
	switch {
	case errors.Is(err, errProtocol):
		e.Enhanced, e.Text = status.Enhanced{4, 5, 0}, err.Error()
	case diagnosis.TimedOut(err):
		e.Text = fmt.Sprintf("no answer within %v", d.limit)
	default:
		e.Text = "the connection was lost: " + err.Error()
	}
	return e
}

// quit says so, where the server may still be listening, and waits for no answer.
func (d *dialogue) quit() {
	if !d.lost {
		_ = d.conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = d.conn.Write([]byte("QUIT\r\n")) // nothing depends on it
	}
}

// readReply reads one reply (RFC 5321 section 4.2), at most maxReplyLines of maxReplyLine octets.
func readReply(br *bufio.Reader) (reply, error) {
	var r reply
	for range maxReplyLines {
		raw, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return r, fmt.Errorf("%w: a line longer than %d octets", errProtocol, maxReplyLine)
		}
		if err != nil {
			return r, err
		}
		line := strings.TrimRight(string(raw), "\r\n")
		code, more, text, ok := parseReplyLine(line)
		if !ok || r.code != 0 && code != r.code {
			return r, fmt.Errorf("%w: %s", errProtocol, escape(line[:min(len(line), 80)]))
		}
		e, rest := cutEnhanced(text)
		if r.code == 0 {
			r.code, r.enhanced = code, e
		}
		r.lines = append(r.lines, strings.TrimSpace(rest))
		if !more {
			return r, nil
		}
	}
	return r, fmt.Errorf("%w: more than %d lines", errProtocol, maxReplyLines)
}

func parseReplyLine(line string) (code int, more bool, text string, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || line[1] < '0' || line[1] > '9' || line[2] < '0' || line[2] > '9' {
		return 0, false, "", false
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, false, "", true
	}
	return code, line[3] == '-', line[4:], line[3] == '-' || line[3] == ' '
}

// cutEnhanced parts a line from the enhanced status code at its front (RFC 2034), if it has one.
func cutEnhanced(line string) (e status.Enhanced, rest string) {
	word, rest, _ := strings.Cut(line, " ")
	parts := strings.Split(word, ".")
	if len(parts) != len(e) {
		return status.Enhanced{}, line
	}
	for i, part := range parts {
		if len(part) == 0 || len(part) > 3 || strings.Trim(part, "0123456789") != "" {
			return status.Enhanced{}, line
		}
		for _, digit := range part {
			e[i] = e[i]*10 + int(digit-'0')
		}
	}
	if e[0] != 2 && e[0] != 4 && e[0] != 5 {
		return status.Enhanced{}, line
	}
	return e, rest
}

// sendable reports whether a can stand in a command without being able to end it.
func sendable(a envelope.Address) bool { return submission.Sendable(a) }
