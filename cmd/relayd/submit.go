package main

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/api"
	"relayd/pkg/admission"
	"relayd/pkg/envelope"
	"relayd/pkg/message"
	"relayd/pkg/status"
)

// httpIntake is the name of the API as an intake.
const httpIntake = "http"

// submit admits a message of the API: as any configured sender, since who reaches the API may do anything here.
func (d *daemon) submit(ctx context.Context, s *api.Submission) (envelope.ID, error) {
	limits := d.wired.Load().limits
	if len(s.To) > limits.recipients {
		return "", status.New(550, status.Enhanced{5, 5, 3}, "%d recipients are more than the %d a message may have", len(s.To), limits.recipients)
	}
	if err := d.policy.Known(s.From); err != nil {
		return "", err
	}
	now := time.Now()
	env := &envelope.Envelope{
		ID: envelope.NewID(now), Received: now, Intake: httpIntake, Client: s.By, Peer: s.Peer, ReversePath: s.From, SMTPUTF8: !s.From.ASCII(),
	}
	for _, to := range s.To {
		env.Recipients = append(env.Recipients, envelope.Recipient{Address: to})
		env.SMTPUTF8 = env.SMTPUTF8 || !to.ASCII()
	}
	peer, err := netip.ParseAddr(s.Peer)
	if err != nil {
		return "", err
	}
	door := admission.Door{
		Queue: d.queue, Policy: d.policy, Hostname: limits.hostname,
		MessageBytes: limits.message, HeaderBytes: limits.header, Hops: limits.hops,
	}
	a := &admission.Arrival{
		Envelope: env, Body: message.Normalize(s.Message), Trace: message.Received{HELO: "api", Peer: peer, Protocol: "HTTP"},
	}
	if err := door.Store(ctx, a); err != nil {
		why := admission.Reason("queue")
		if r, ok := errors.AsType[*admission.Refusal](err); ok {
			why = r.Why
		}
		d.intakes.Rejected.WithLabelValues(httpIntake, string(why)).Inc()
		d.log.Info("refused", zap.String("intake", httpIntake), zap.String("sender", string(s.From)), zap.Error(err))
		return "", err
	}
	d.intakes.Accepted.WithLabelValues(httpIntake).Inc()
	d.intakes.Bytes.WithLabelValues(httpIntake).Add(float64(env.Size))
	d.log.Info("accepted", zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)), zap.String("intake", httpIntake),
		zap.Int64("size", env.Size), zap.Int("recipients", len(env.Recipients)), zap.Strings("repairs", env.Repairs))
	return env.ID, nil
}
