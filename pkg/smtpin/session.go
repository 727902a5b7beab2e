package smtpin

import (
	"io"

	"github.com/emersion/go-smtp"
	"go.uber.org/zap"

	"relayd/pkg/admission"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// session is one client between its first HELO and the end of the connection or STARTTLS. go-smtp sees to the order of
// commands; what they say is read here from the line the guard kept, never from go-smtp's own reading of it.
type session struct {
	conn   *conn
	g      *guard
	set    *settings
	log    *zap.Logger
	client *client // nil: not logged in
	logins int     // failed

	mail       *mail // nil: no transaction
	recipients []envelope.Recipient
	known      map[envelope.Address]bool // the recipients
}

var _ smtp.AuthSession = (*session)(nil)

// Reset implements smtp.Session.
func (s *session) Reset() { s.mail, s.recipients, s.known = nil, nil, nil }

// Logout implements smtp.Session.
func (s *session) Logout() error { return nil }

// refused logs and counts a refusal and returns what go-smtp is to answer. 421 ends the session.
func (s *session) refused(stage string, err error) error {
	e, why := status.From(err), whyOf(err)
	s.conn.srv.opts.Metrics.rejected.WithLabelValues(intakeName, string(why)).Inc()
	fields := []zap.Field{zap.String("stage", stage), zap.String("reason", string(why)), zap.Int("code", e.Code),
		zap.Stringer("enhanced", e.Enhanced), zap.String("reply", e.Text)}
	if s.mail != nil {
		fields = append(fields, zap.String("sender", string(s.mail.path)), zap.Int("recipients", len(s.recipients)))
	}
	if e.Err != nil {
		fields = append(fields, zap.Error(e.Err))
	}
	s.log.Info("refused", fields...)
	if e.Code == 421 {
		s.g.lastReply()
	}
	return reply(e)
}

// Mail implements smtp.Session.
func (s *session) Mail(string, *smtp.MailOptions) error {
	m, err := parseMail(s.g.line)
	if err == nil {
		err = s.judgeMail(&m)
	}
	if err != nil {
		return s.refused("mail", err)
	}
	s.Reset()
	s.mail = &m
	return nil
}

// judgeMail decides on MAIL: access, then sender, then size, then rate, so that no refused command costs a message.
func (s *session) judgeMail(m *mail) error {
	switch {
	case s.mail != nil:
		return refuse(reasonSyntax, 503, status.Enhanced{5, 5, 1}, "MAIL given twice")
	case s.client == nil && s.set.Listener.Auth == AuthRequired:
		return refuse(reasonAccess, 530, status.Enhanced{5, 7, 0}, "Authentication required")
	case s.client == nil && !s.set.trusts(s.conn.peer):
		return refuse(reasonAccess, 550, status.Enhanced{5, 7, 1}, "relaying denied: log in first")
	}
	if m.path != "" { // the null reverse-path is judged by From
		if s.client != nil {
			if err := s.client.maySend(m.path); err != nil {
				return err
			}
		}
		if err := bySender(s.set.Policy.Known(m.path)); err != nil {
			return err
		}
	}
	if m.size > s.set.Limits.MessageBytes {
		return admission.TooLarge(s.set.Limits.MessageBytes)
	}
	if s.client != nil && s.client.limiter != nil && !s.client.limiter.Allow() {
		return refuse(reasonRate, 451, status.Enhanced{4, 7, 1}, "client %q exceeds %d messages a minute",
			s.client.Username, s.client.MessagesPerMinute)
	}
	return nil
}

// Rcpt implements smtp.Session. A recipient given twice is one recipient.
func (s *session) Rcpt(string, *smtp.RcptOptions) error {
	r, err := parseRcpt(s.g.line, s.mail.utf8)
	if err != nil {
		return s.refused("rcpt", err)
	}
	if s.known[r.Address] {
		return nil
	}
	if len(s.recipients) >= s.set.Limits.Recipients {
		return s.refused("rcpt", refuse(reasonSize, 452, status.Enhanced{4, 5, 3}, "too many recipients"))
	}
	if s.known == nil {
		s.known = map[envelope.Address]bool{}
	}
	s.known[r.Address] = true
	s.recipients = append(s.recipients, r)
	return nil
}

// Data implements smtp.Session. The reader is go-smtp's; the message is in the guard.
func (s *session) Data(io.Reader) error {
	b := s.g.body
	env, err := s.receive(b)
	b.finish(s.set.Limits.MessageBytes)
	if b.err == errGivenUp {
		s.log.Info("given up by the client", zap.String("sender", string(s.mail.path)))
		if s.g.verb == verbQUIT {
			s.g.lastReply()
			return &smtp.SMTPError{Code: 221, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "Bye"}
		}
		return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "Message given up"}
	}
	if err != nil {
		return s.refused("data", err)
	}
	m := s.conn.srv.opts.Metrics
	m.accepted.Inc()
	m.bytes.Add(float64(env.Size))
	s.log.Info("accepted", zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)),
		zap.Int64("size", env.Size), zap.Int("recipients", len(env.Recipients)), zap.Strings("repairs", env.Repairs))
	return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "Ok: queued as " + string(env.ID)}
}
