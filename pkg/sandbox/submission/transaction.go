package submission

import (
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/fault"
	"relayd/pkg/sandbox/mailbox"
	"relayd/pkg/sandbox/text"
	"relayd/pkg/sandbox/wire"
)

func (s *session) mail(argument string) {
	path, ok := cutPrefixFold(argument, "FROM:")
	switch {
	case !s.hello:
		s.reply("503 5.5.2 Send hello first {server}")
		return
	case !s.secured:
		s.reply("451 5.7.3 STARTTLS is required to send mail {server}")
		return
	case s.login == "":
		s.reply(text.NotAuthenticated + " {server}")
		return
	case s.tx.open:
		s.reply("503 5.5.2 Sender already specified {server}")
		return
	case !ok:
		s.reply("501 5.5.4 Invalid arguments {server}")
		return
	}
	m, err := wire.ParseMail(path)
	switch {
	case err == wire.ErrAddress:
		s.reply(text.InvalidSender)
	case err != nil:
		s.reply("501 5.5.4 Invalid arguments {server}")
	case m.Size > s.server.opts.Limits.MessageBytes:
		s.reply(text.MessageSize)
	case s.strikes(fault.StageMail):
	default:
		s.tx = transaction{open: true, mail: m, perDomain: make(map[string]int)}
		s.reply("250 2.1.0 Sender OK")
	}
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

func (s *session) rcpt(argument string) {
	path, ok := cutPrefixFold(argument, "TO:")
	switch {
	case !s.tx.open || s.tx.content != nil:
		s.reply("503 5.5.2 Need mail command {server}")
		return
	case !ok:
		s.reply("501 5.5.4 Invalid arguments {server}")
		return
	}
	r, err := wire.ParseRcpt(path, s.tx.mail.UTF8)
	domain := strings.ToLower(wire.DomainOf(r.To))
	switch {
	case err == wire.ErrAddress:
		s.reply(text.InvalidRecipient)
	case err != nil:
		s.reply("501 5.5.4 Invalid arguments {server}")
	case len(s.tx.rcpts) >= s.server.opts.Limits.Recipients:
		s.reply(text.ManyRecipients)
	case s.tx.perDomain[domain] >= s.server.opts.Limits.SameDomain:
		s.reply(text.ManyPerDomain)
	case s.strikes(fault.StageRcpt, r.To):
	default:
		s.tx.perDomain[domain]++
		s.tx.rcpts = append(s.tx.rcpts, r)
		s.reply("250 2.1.5 Recipient OK")
	}
}

// recipients lists the accepted recipients of the transaction.
func (s *session) recipients() []string {
	all := make([]string, len(s.tx.rcpts))
	for i, r := range s.tx.rcpts {
		all[i] = r.To
	}
	return all
}

func (s *session) data(argument string) {
	switch {
	case argument != "":
		s.reply("501 5.5.4 Invalid arguments {server}")
	case !s.tx.open:
		s.reply("503 5.5.2 Need mail command {server}")
	case len(s.tx.rcpts) == 0:
		s.reply("503 5.5.2 Need rcpt command {server}")
	case s.tx.chunking || s.tx.mail.Body == "BINARYMIME": // RFC 3030, 2 and 3
		s.reply("503 5.5.1 Bad sequence of commands {server}")
	case s.begin():
		s.reply("354 Start mail input; end with <CRLF>.<CRLF>")
		s.dots()
	}
}

// begin starts the message's body; false if a fault answered in its place.
func (s *session) begin() bool {
	recipients := s.recipients()
	if s.strikes(fault.StageData, recipients...) {
		s.reset()
		return false
	}
	if s.gone {
		return false
	}
	limits := s.server.opts.Limits
	s.tx.content = wire.NewContent(limits.HeaderBytes, s.server.opts.KeepBodies, limits.MaxSendSize, s.tx.mail.Size)
	s.tx.sending, s.tx.within = true, s.server.opts.Mailboxes.Begin(s.login)
	s.tx.fault, s.tx.faulty = s.due(fault.StageBody, recipients...)
	return true
}

// dots reads the body of a DATA and answers its end.
func (s *session) dots() {
	in := wire.NewDotReader(s.in)
	for {
		block, more, err := in.Next()
		if err != nil {
			s.lost(err)
			return
		}
		if !s.take(block, !more) {
			return
		}
		if !more {
			s.settle()
			return
		}
	}
}

// take adds a block to the body; false if a fault ended the message.
func (s *session) take(block []byte, last bool) bool {
	c := s.tx.content
	c.Write(block)
	if !s.tx.faulty || !last && c.Size < s.tx.fault.After {
		return true
	}
	s.tx.faulty = false
	if s.act(s.tx.fault) {
		s.gone = true // in the middle of a body nothing else can follow
	}
	return !s.gone
}

// bdat takes one chunk (RFC 3030). Its bytes follow at once and are consumed whatever the answer.
func (s *session) bdat(argument string) {
	count, flag, flagged := strings.Cut(argument, " ")
	n, err := strconv.ParseInt(count, 10, 63)
	last := strings.EqualFold(flag, "LAST")
	if err != nil || n < 0 || flagged && !last {
		s.reply("501 5.5.4 Invalid arguments {server}")
		s.gone = true // where the next command begins is unknown
		return
	}
	ready := s.tx.open && len(s.tx.rcpts) > 0
	if ready && !s.tx.chunking {
		s.tx.chunking = true
		if !s.begin() {
			s.chunk(n, false) // answered
			return
		}
	}
	switch {
	case !s.chunk(n, ready):
	case !ready:
		s.reply("503 5.5.2 Need rcpt command {server}")
	case last:
		s.settle()
	default:
		s.reply("250 2.0.0 " + count + " octets received")
	}
}

// chunk consumes n bytes, into the message if it is one; false if the session ended meanwhile.
func (s *session) chunk(n int64, keep bool) bool {
	for n > 0 && !s.gone {
		if _, err := s.in.Peek(1); err != nil {
			s.lost(err)
			break
		}
		block, _ := s.in.Peek(int(min(n, int64(s.in.Buffered()))))
		n -= int64(len(block))
		if keep {
			s.take(block, false)
		}
		s.in.Discard(len(block))
	}
	return !s.gone
}

// settle answers the end of a message: fault, limits, content, in that order.
func (s *session) settle() {
	now := time.Now()
	s.server.opts.Mailboxes.Arrived(s.login, now)
	header := wire.Fields(s.tx.content.Header)
	recipients := s.recipients()
	r, hit := s.due(fault.StageDot, recipients...)
	if hit {
		s.pause(r)
		if r.Deliver {
			s.deliver(now, header, recipients)
		}
		s.stopSending()
		if s.strike(r) {
			s.server.opts.Mailboxes.Settled(s.login, len(recipients), r.Deliver)
			s.log(header, "fault "+r.Name)
			s.reset()
			return
		}
	}
	refusal := text.SenderThreads
	if s.tx.within {
		refusal = s.server.opts.Limits.Judge(mailbox.Submission{
			Login: s.login, MailFrom: s.tx.mail.From, Content: s.tx.content, Header: header,
			MaySendAs: func(address string) bool { return s.server.opts.Directory.MaySendAs(s.tenant.ID, s.login, address) },
		})
	}
	if refusal == "" {
		refusal = s.admit(now, len(recipients))
	}
	if s.gone {
		return
	}
	if refusal == "" && !r.Deliver {
		s.deliver(now, header, recipients)
	}
	s.stopSending() // before the reply: whoever reads it may start the next
	s.server.opts.Mailboxes.Settled(s.login, len(recipients), refusal == "")
	if refusal == "" {
		s.reply("250 2.0.0 OK " + printable(wire.Value(header, "Message-ID")) + " [Hostname=" + s.server.opts.ServerName + "]")
	} else {
		s.reply(refusal + " [Hostname=" + s.server.opts.ServerName + "]")
	}
	s.log(header, refusal)
	s.reset()
}

// admit charges the message to its mailbox and waits for the rate's sake.
func (s *session) admit(now time.Time, recipients int) (refusal string) {
	wait, v := s.server.opts.Mailboxes.Admit(s.login, recipients, now)
	switch v {
	case mailbox.OverQuota:
		return text.Quota
	case mailbox.OverRate:
		return text.OverRate
	case mailbox.Admitted:
	}
	if wait > 0 && !fault.Sleep(s.ctx, wait) {
		s.gone = true
	}
	return ""
}

func (s *session) deliver(now time.Time, header []wire.Field, recipients []string) {
	c, m := s.tx.content, s.tx.mail
	record := &Message{
		Time: now, Session: s.id, Login: s.login, MailFrom: m.From, Rcpts: recipients, Size: c.Size, SHA256: c.SHA256(),
		RelaydID: wire.Value(header, "X-Relayd-Id"), MessageID: wire.Value(header, "Message-ID"),
		Body: m.Body, SMTPUTF8: m.UTF8, BareLF: c.BareLF,
	}
	dsn := DSN{Ret: m.Ret, EnvID: m.EnvID}
	for _, r := range s.tx.rcpts {
		note(&dsn.Notify, r.To, r.Notify)
		note(&dsn.Recipients, r.To, r.ORcpt)
	}
	if dsn.Ret != "" || dsn.EnvID != "" || dsn.Notify != nil || dsn.Recipients != nil {
		record.DSN = &dsn
	}
	s.server.opts.Deliver(record, c.Raw)
}

func note(m *map[string]string, key, value string) {
	if value == "" {
		return
	}
	if *m == nil {
		*m = make(map[string]string)
	}
	(*m)[key] = value
}

func (s *session) log(header []wire.Field, refusal string) {
	s.server.opts.Log.Info("message", zap.String("id", wire.Value(header, "X-Relayd-Id")), zap.String("sender", s.tx.mail.From),
		zap.Int("recipients", len(s.tx.rcpts)), zap.String("login", s.login), zap.String("session", s.id),
		zap.Int64("bytes", s.tx.content.Size), zap.String("refusal", refusal))
}

// printable is s if it may stand in a reply.
func printable(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return ""
		}
	}
	return s[:min(len(s), 300)]
}
