package smtpin

import (
	"bytes"
	"errors"
	"io"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/message"
	"relayd/pkg/status"
)

// incoming is the message as the client sent it: it counts octets against the limit, notices 8-bit ones and long lines,
// and fills in what the envelope can say only at the end.
type incoming struct {
	*body
	env    *envelope.Envelope
	left   int64 // octets until the message is too large
	limit  int64
	over   bool
	lines  message.LongLines
	sealed string // message.Header.Signature
}

func (in *incoming) Read(p []byte) (int, error) {
	if in.over {
		return 0, errTooLarge(in.limit)
	}
	n, err := in.body.Read(p)
	if !in.env.EightBit {
		in.env.EightBit = hasEightBit(p[:n])
	}
	in.lines.Scan(p[:n])
	if !in.take(int64(n)) {
		return 0, errTooLarge(in.limit)
	}
	if err == io.EOF {
		in.end()
	}
	return n, err
}

// take counts n octets that will be stored, and reports whether the message is still within its limit.
func (in *incoming) take(n int64) bool {
	in.left -= n
	in.over = in.left < 0
	return !in.over
}

// end fills in what shows only when all has been read. Readers may ask for the end more than once.
func (in *incoming) end() {
	in.env.Received = time.Now()
	if !in.lines.Seen || in.env.LongLines {
		return
	}
	in.env.LongLines = true
	note := "re-encodes lines over 998 octets when sending"
	if in.sealed != "" {
		note = "lines over 998 octets left as they are: signed (" + in.sealed + ")"
	}
	in.env.Repairs = append(in.env.Repairs, note)
}

func hasEightBit(b []byte) bool {
	const high = 0x8080808080808080
	for ; len(b) >= 8; b = b[8:] {
		v := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
			uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		if v&high != 0 {
			return true
		}
	}
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// receive reads a message and has it stored. It returns nil only if the client ended the message, all of it was read,
// and Queue.Put has returned nil; what the client did wrong goes before what became of it.
func (s *session) receive(b *body) (*envelope.Envelope, error) {
	now, limit := time.Now(), s.set.Limits.MessageBytes
	env := &envelope.Envelope{
		ID: envelope.NewID(now), Received: now, Intake: intakeName, Listener: s.set.Listener.Address,
		Peer: s.conn.peer.String(), ReversePath: s.mail.path, Recipients: s.recipients,
		Return: s.mail.ret, EnvelopeID: s.mail.envid, SMTPUTF8: s.mail.utf8,
	}
	if s.client != nil {
		env.Client = s.client.Username
	}
	in := &incoming{body: b, env: env, left: limit, limit: limit}
	err := s.store(env, in)
	switch {
	case b.err != nil && b.err != io.EOF:
		err = b.err
	case in.over:
		err = errTooLarge(limit)
	case err == nil && b.err != io.EOF:
		err = errors.New("message was stored without being read to its end")
	}
	return env, err
}

// maxField is the longest header field Exchange Online takes, in octets (its 554 5.6.211); better told at the door.
const maxField = 32 << 10

// store reads the header, lets policy and repair work on it, and streams header and body into the queue.
func (s *session) store(env *envelope.Envelope, in *incoming) error {
	h, rest, err := message.ReadHeader(in, s.set.Limits.HeaderBytes)
	if errors.Is(err, message.ErrHeaderTooLong) {
		return refuse(reasonSize, 552, status.Enhanced{5, 3, 4}, "header exceeds %s", sizeText(int64(s.set.Limits.HeaderBytes)))
	}
	if err != nil {
		return err
	}
	header := in.limit - in.left - int64(len(rest)) // octets of it, as sent
	if h.Count("Received") > s.set.Limits.Hops {
		return refuse(reasonLoop, 554, status.Enhanced{5, 4, 6}, "too many hops: the message goes in a circle")
	}
	for i := range h.Fields {
		if f := &h.Fields[i]; len(f.Raw) > maxField {
			return refuse(reasonSize, 552, status.Enhanced{5, 3, 4}, "header field %.40s exceeds 32 KiB", f.Name)
		}
		if bytes.IndexByte(h.Fields[i].Raw, 0) >= 0 {
			return refuse(reasonContent, 554, status.Enhanced{5, 6, 0}, "NUL in the header")
		}
	}
	if err := s.choose(env, h); err != nil {
		return err
	}
	env.Repairs = append(env.Repairs, h.Repair(message.Repairs{
		Date: env.Received, MessageID: "<" + string(env.ID) + "@" + s.set.Hostname + ">", Sender: string(env.Sender), Own: s.owns,
	})...)
	env.MessageID = h.MessageID()
	env.EightBit = env.EightBit || !env.Sender.ASCII() // it may stand in From now
	in.sealed = h.Signature()
	head := bytes.NewReader(h.Append(s.trace(env)))
	if !in.take(int64(head.Len()) - header) { // what goes out is what the far end's equal limit will judge
		return errTooLarge(in.limit)
	}
	return s.conn.srv.opts.Queue.Put(s.conn.ctx, env, io.MultiReader(head, bytes.NewReader(rest), in))
}

// trace returns the fields every message is given.
func (s *session) trace(env *envelope.Envelope) []byte {
	r := message.Received{
		HELO: s.g.helo, Peer: s.conn.peer, Host: s.set.Hostname, Extended: s.g.esmtp, SMTPUTF8: env.SMTPUTF8,
		TLS: s.conn.tls, Auth: s.client != nil, ID: string(env.ID), Date: env.Received,
	}
	if len(env.Recipients) == 1 {
		r.Recipient = string(env.Recipients[0].Address)
	}
	return append(r.Field().Raw, "X-Relayd-Id: "+string(env.ID)+"\r\n"...)
}

// owns reports whether the client may send as address, and there is a way to do so.
func (s *session) owns(address string) bool {
	a, err := envelope.ParseAddress(address, true)
	if err != nil || s.client != nil && s.client.maySend(a) != nil {
		return false
	}
	sender, _, err := s.set.Policy.Choose("", a)
	return err == nil && sender == a
}

// choose judges From, asks the policy for the sender, and rewrites From where the two differ.
func (s *session) choose(env *envelope.Envelope, h *message.Header) error {
	from, err := s.author(h)
	if err != nil {
		return err
	}
	wanted := from
	if wanted == "" && s.client != nil {
		wanted = s.client.DefaultSender
	}
	sender, keep, err := s.set.Policy.Choose(env.ReversePath, wanted)
	if err != nil {
		return bySender(err)
	}
	env.Sender = sender
	switch {
	case sender == from:
	case from == "":
		if h.Get("From") != nil {
			h.SetFrom(string(sender))
			env.Repairs = append(env.Repairs, "put an address into From")
		}
	default:
		h.SetFrom(string(sender))
		env.Repairs = append(env.Repairs, "rewrote From to the configured sender")
		if keep && h.Get("Reply-To") == nil {
			h.Add("Reply-To", "<"+string(from)+">")
			env.Repairs = append(env.Repairs, "kept the original From in Reply-To")
		}
	}
	return nil
}

// author returns the first address of From, empty if there is none that can be read. Every address in it must be the
// client's to use, or a configured one: which one a reader takes for the author is not ours to guess. Several need a
// Sender (RFC 5322, section 3.6.2), without which Exchange Online refuses them.
func (s *session) author(h *message.Header) (first envelope.Address, err error) {
	if h.Count("From") > 1 {
		return "", refuse(reasonContent, 554, status.Enhanced{5, 6, 0}, "more than one From field")
	}
	f := h.Get("From")
	if f == nil {
		return "", nil
	}
	unread := false
	for _, m := range message.Mailboxes(f.Value()) {
		if m.Address == "" {
			continue
		}
		a, err := envelope.ParseAddress(m.Address, true)
		if err != nil {
			unread = true
			continue
		}
		if s.client != nil {
			if err := s.client.maySend(a); err != nil {
				return "", err
			}
		}
		if first == "" {
			first = a
			continue
		}
		if err := s.set.Policy.Known(a); err != nil {
			return "", bySender(err)
		}
		if h.Get("Sender") == nil {
			return "", refuse(reasonContent, 550, status.Enhanced{5, 1, 20}, "several addresses in From need a Sender field")
		}
	}
	if unread && first != "" {
		return "", refuse(reasonContent, 554, status.Enhanced{5, 6, 0}, "malformed address in From")
	}
	return first, nil
}
