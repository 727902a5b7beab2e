package smtpin

import (
	"io"
	"time"

	"relayd/pkg/admission"
	"relayd/pkg/envelope"
	"relayd/pkg/message"
)

// receive reads a message and has it stored. It returns nil only if the client ended the message, all of it was read,
// and Queue.Put has returned nil; what the client did wrong goes before what became of it.
func (s *session) receive(b *body) (*envelope.Envelope, error) {
	now := time.Now()
	env := &envelope.Envelope{
		ID: envelope.NewID(now), Received: now, Intake: intakeName, Listener: s.set.Listener.Address,
		Peer: s.conn.peer.String(), ReversePath: s.mail.path, Recipients: s.recipients,
		Return: s.mail.ret, EnvelopeID: s.mail.envid, SMTPUTF8: s.mail.utf8,
	}
	a := &admission.Arrival{Envelope: env, Body: b, Trace: message.Received{
		HELO: s.g.helo, Peer: s.conn.peer, Extended: s.g.esmtp, SMTPUTF8: s.mail.utf8, TLS: s.conn.tls, Auth: s.client != nil,
	}}
	if s.client != nil {
		env.Client, a.MaySend, a.DefaultSender = s.client.Username, s.client.maySend, s.client.DefaultSender
	}
	door := admission.Door{
		Queue: s.conn.srv.opts.Queue, Policy: s.set.Policy, Hostname: s.set.Hostname,
		MessageBytes: s.set.Limits.MessageBytes, HeaderBytes: s.set.Limits.HeaderBytes, Hops: s.set.Limits.Hops,
	}
	err := door.Store(s.conn.ctx, a)
	if b.err != nil && b.err != io.EOF {
		err = b.err
	}
	return env, err
}
