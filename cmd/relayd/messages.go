package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/api"
	"relayd/pkg/envelope"
	"relayd/pkg/history"
	"relayd/pkg/queue"
	"relayd/pkg/status"
)

// messages is what the API sees: the queue, which is right about all it holds, over the history of everything.
type messages struct {
	queue   *queue.Queue
	history *history.Log
	send    func(ctx context.Context, s *api.Submission) (envelope.ID, error)
}

var _ api.Messages = (*messages)(nil)

// defaultList is how many messages a listing has where the query does not say.
const defaultList = 100

// List implements api.Messages. A state that only the queue knows of is asked of the queue; everything else of the
// history, whose states are then set right.
func (m *messages) List(ctx context.Context, q envelope.Query) ([]envelope.Summary, error) {
	if q.Limit <= 0 {
		q.Limit = defaultList
	}
	inQueue := q.Queued || q.State != "" && q.State != envelope.Sent
	if inQueue && q.MessageID == "" && q.Recipient == "" {
		return m.queued(ctx, q), nil
	}
	asked := q
	if q.State != envelope.Sent {
		asked.State = "" // the last step may be older than the state
	}
	var list []envelope.Summary
	for len(list) < q.Limit {
		page, err := m.history.Search(ctx, asked)
		if err != nil {
			return nil, errors.Join(api.ErrUnavailable, err)
		}
		for i := range page {
			held := m.correct(&page[i])
			if (held || !inQueue) && (q.State == "" || page[i].State == q.State) {
				list = append(list, page[i])
			}
		}
		if len(page) < asked.Limit {
			break
		}
		asked.Before = page[len(page)-1].ID
	}
	return list[:min(len(list), q.Limit)], nil
}

// correct gives a summary of the history the state its message has now, and reports whether the queue still holds it.
func (m *messages) correct(s *envelope.Summary) bool {
	info, ok := m.queue.Info(s.ID)
	if !ok {
		if !s.State.Final() { // its last step did not reach the history: only what was sent leaves by itself
			s.State = envelope.Sent
		}
		return false
	}
	s.State, s.Due, s.Attempts = info.State, info.Due, max(s.Attempts, info.Attempts)
	s.Reply = cmp.Or(info.Reason, s.Reply)
	return true
}

// queued lists from the queue, the latest accepted first.
func (m *messages) queued(ctx context.Context, q envelope.Query) []envelope.Summary {
	sender := addressFilter(q.Sender)
	infos := m.queue.List(func(i queue.Info) bool {
		at := i.ID.Time()
		return (q.State == "" || i.State == q.State) && (q.ID == "" || i.ID == q.ID) && (q.Before == "" || i.ID < q.Before) && sender(i.Sender) &&
			(q.Since.IsZero() || !at.Before(q.Since)) && (q.Until.IsZero() || at.Before(q.Until))
	})
	slices.Reverse(infos)
	list := make([]envelope.Summary, 0, min(len(infos), q.Limit))
	for i := range infos {
		if len(list) == q.Limit {
			break
		}
		if s := m.summary(ctx, &infos[i]); s != nil {
			list = append(list, *s)
		}
	}
	return list
}

// summary is a queued message's line: from the history where it has one, else from the queue's own record. nil: the
// message has left the queue meanwhile.
func (m *messages) summary(ctx context.Context, info *queue.Info) *envelope.Summary {
	found, err := m.history.Search(ctx, envelope.Query{ID: info.ID, Limit: 1})
	if err == nil && len(found) == 1 && len(found[0].Recipients) > 0 {
		m.correct(&found[0])
		return &found[0]
	}
	claim, err := m.queue.Get(ctx, info.ID)
	switch {
	case errors.Is(err, queue.ErrNotFound):
		return nil
	case err != nil || claim.Envelope == nil: // damaged, say: all the more to be shown
		return &envelope.Summary{
			ID: info.ID, Received: info.ID.Time(), Sender: info.Sender, Size: info.Size, State: info.State, Attempts: info.Attempts,
			Due: info.Due, Reply: info.Reason,
		}
	}
	env := claim.Envelope
	s := &envelope.Summary{
		ID: env.ID, Received: env.Received, Sender: env.Sender, MessageID: env.MessageID, Size: env.Size, State: info.State,
		Attempts: claim.Progress.Attempts, Due: info.Due, Reply: cmp.Or(info.Reason, claim.Progress.Reason),
	}
	for i := range env.Recipients {
		s.Recipients = append(s.Recipients, env.Recipients[i].Address)
	}
	return s
}

// addressFilter reports whether an address is the one a query names, or in its domain.
func addressFilter(pattern string) func(envelope.Address) bool {
	key := envelope.Address(pattern).Key()
	if domain, ok := strings.CutPrefix(key, "*@"); ok {
		return func(a envelope.Address) bool { return envelope.Address(a.Domain()).Key() == domain }
	}
	return func(a envelope.Address) bool { return pattern == "" || a.Key() == key }
}

// Get implements api.Messages.
func (m *messages) Get(ctx context.Context, id envelope.ID) (*api.Message, error) {
	steps, historyErr := m.history.Steps(ctx, id)
	claim, err := m.queue.Get(ctx, id)
	info, queued := m.queue.Info(id)
	switch {
	case err == nil && queued:
		return &api.Message{
			Envelope: claim.Envelope, Progress: claim.Progress, State: info.State, Parked: info.Reason, Stored: true, Steps: steps,
		}, nil
	case queued: // damaged, or not readable at this moment
		return &api.Message{Progress: envelope.Progress{State: info.State, Reason: err.Error()}, State: info.State, Parked: info.Reason, Steps: steps}, nil
	case historyErr != nil:
		return nil, errors.Join(api.ErrUnavailable, historyErr)
	case len(steps) == 0:
		return nil, api.ErrNotFound
	}
	return told(steps, time.Now()), nil
}

// settled is how old the last step of a message that has left the queue must be to be taken for lost: until then its
// outcome may be on its way to the history.
const settled = time.Minute

// told is a message that has left the queue, as its history tells it. Where its last step was lost it was sent: nothing
// else leaves by itself.
func told(steps []envelope.Step, now time.Time) *api.Message {
	msg := &api.Message{Steps: steps}
	at := map[envelope.Address]int{}
	for i := range steps {
		s := &steps[i]
		if s.Envelope != nil {
			msg.Envelope = s.Envelope
			msg.Progress.Results = make([]envelope.Result, len(s.Envelope.Recipients))
			for k := range s.Envelope.Recipients {
				at[s.Envelope.Recipients[k].Address] = k
				msg.Progress.Results[k].State = envelope.Queued
			}
		}
		for _, r := range s.Recipients {
			if k, ok := at[r.Address]; ok {
				msg.Progress.Results[k] = envelope.Result{State: r.State, Reply: r.Reply, Attempts: s.Attempt}
			}
		}
		msg.Progress.Attempts = max(msg.Progress.Attempts, s.Attempt)
		if s.State != "" {
			msg.State, msg.Progress.State = s.State, s.State
		}
		msg.Progress.Reason = cmp.Or(s.Reply, msg.Progress.Reason)
	}
	if !msg.State.Final() && now.Sub(steps[len(steps)-1].At) >= settled {
		msg.State, msg.Progress.State = envelope.Sent, envelope.Sent
		for i := range msg.Progress.Results {
			if r := &msg.Progress.Results[i]; !r.State.Final() {
				r.State = envelope.Sent
			}
		}
	}
	return msg
}

// Raw implements api.Messages.
func (m *messages) Raw(ctx context.Context, id envelope.ID) (io.ReadCloser, int64, error) {
	claim, err := m.queue.Get(ctx, id)
	if err != nil {
		return nil, 0, apiError(err)
	}
	return io.NopCloser(claim.Body(ctx)), claim.Envelope.Size, nil
}

// Retry implements api.Messages. For a failed message it is a release: its recipients begin anew.
func (m *messages) Retry(ctx context.Context, id envelope.ID, by string) error {
	if info, ok := m.queue.Info(id); ok && info.State == envelope.Failed {
		return apiError(m.queue.Resume(ctx, id, by))
	}
	return apiError(m.queue.Retry(ctx, id, by))
}

// Hold implements api.Messages.
func (m *messages) Hold(ctx context.Context, id envelope.ID, by string) error {
	return apiError(m.queue.Hold(ctx, id, by, "held by "+by))
}

// Release implements api.Messages.
func (m *messages) Release(ctx context.Context, id envelope.ID, by string) error {
	return apiError(m.queue.Resume(ctx, id, by))
}

// Drop implements api.Messages.
func (m *messages) Drop(ctx context.Context, id envelope.ID, by string) error {
	return apiError(m.queue.Drop(ctx, id, by))
}

// Send implements api.Messages.
func (m *messages) Send(ctx context.Context, s api.Submission) (envelope.ID, error) {
	return m.send(ctx, &s)
}

// auditedMessages has everything that is done to messages, by page or API, in the audit log: before it is done, one entry a
// message.
type auditedMessages struct {
	api.Messages
	info   func(id envelope.ID) (queue.Info, bool)
	change func(ctx context.Context, what, on, before, after string, do func() error) error
}

// act does one act on a message the queue holds, or says that it does not: what is not there cannot be changed.
func (a *auditedMessages) act(ctx context.Context, what string, id envelope.ID, do func() error) error {
	info, ok := a.info(id)
	if !ok {
		return api.ErrNotFound
	}
	return a.change(ctx, what, string(id), "sender="+string(info.Sender)+" state="+string(info.State), "", do)
}

// Retry implements api.Messages.
func (a *auditedMessages) Retry(ctx context.Context, id envelope.ID, by string) error {
	return a.act(ctx, "message.retry", id, func() error { return a.Messages.Retry(ctx, id, by) })
}

// Hold implements api.Messages.
func (a *auditedMessages) Hold(ctx context.Context, id envelope.ID, by string) error {
	return a.act(ctx, "message.hold", id, func() error { return a.Messages.Hold(ctx, id, by) })
}

// Release implements api.Messages.
func (a *auditedMessages) Release(ctx context.Context, id envelope.ID, by string) error {
	return a.act(ctx, "message.release", id, func() error { return a.Messages.Release(ctx, id, by) })
}

// Drop implements api.Messages.
func (a *auditedMessages) Drop(ctx context.Context, id envelope.ID, by string) error {
	return a.act(ctx, "message.drop", id, func() error { return a.Messages.Drop(ctx, id, by) })
}

// Send implements api.Messages. A message has no id before it is stored; its entry has sender and time.
func (a *auditedMessages) Send(ctx context.Context, s api.Submission) (id envelope.ID, err error) {
	err = a.change(ctx, "message.send", string(s.From), "", fmt.Sprintf("recipients=%d", len(s.To)), func() error {
		id, err = a.Messages.Send(ctx, s)
		return err
	})
	return id, err
}

// apiError says in the API's words what the queue said.
func apiError(err error) error {
	switch {
	case errors.Is(err, queue.ErrNotFound):
		return api.ErrNotFound
	case errors.Is(err, queue.ErrBusy):
		return api.ErrBusy
	case errors.Is(err, queue.ErrHeld):
		return status.New(550, status.Enhanced{5, 7, 0}, "the message is held; release it to have it tried")
	}
	return err
}

const (
	healAge  = 10 * time.Second // how long before its newest message the history may have lost steps: far more than it buffers
	healMost = 10_000           // messages looked after at a start
)

// heal gives the history back what kill -9 took of it: messages of the queue that were accepted after the newest it knows, or
// just before, and where they stand. Those that were sent in its last moments stay unknown.
func (m *messages) heal(ctx context.Context, record func(envelope.Step), log *zap.Logger) {
	newest, err := m.history.Search(ctx, envelope.Query{Limit: 1})
	if err != nil {
		return // ctx has ended, or the history cannot be read: it has said so
	}
	var since time.Time
	if len(newest) > 0 {
		since = newest[0].Received.Add(-healAge)
	}
	infos := m.queue.List(func(i queue.Info) bool { return !i.ID.Time().Before(since) })
	healed := 0
	for _, info := range infos[max(0, len(infos)-healMost):] {
		if found, err := m.history.Search(ctx, envelope.Query{ID: info.ID, Limit: 1}); err != nil || len(found) > 0 && len(found[0].Recipients) > 0 {
			continue
		}
		claim, err := m.queue.Get(ctx, info.ID)
		if err != nil || claim.Envelope == nil {
			continue // on its way out of the queue, or damaged
		}
		env, p := claim.Envelope, &claim.Progress
		record(envelope.Step{ID: env.ID, At: env.Received, What: envelope.StepAccepted, State: envelope.Queued, Envelope: env})
		if len(p.Results) == len(env.Recipients) {
			step := envelope.Step{ID: env.ID, At: p.Changed, What: envelope.StepAttempt, State: p.State, Attempt: p.Attempts, Due: p.Due, Reply: p.Reason}
			for i, r := range p.Results {
				step.Recipients = append(step.Recipients, envelope.StepResult{Address: env.Recipients[i].Address, State: r.State, Reply: r.Reply})
			}
			record(step)
		}
		healed++
	}
	if healed > 0 {
		log.Info("history: took up messages of the queue that it did not know", zap.Int("messages", healed))
	}
}
