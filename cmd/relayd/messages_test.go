package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"relayd/pkg/admin/api"
	"relayd/pkg/envelope"
	"relayd/pkg/queue"
)

// TestTold: a message that has left the queue while its history says it waits was sent, and kill -9 took the last step.
func TestTold(t *testing.T) {
	const alice, bob = envelope.Address("alice@example.com"), envelope.Address("bob@example.com")
	start := time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC)
	accepted := envelope.Step{At: start, What: envelope.StepAccepted, State: envelope.Queued,
		Envelope: &envelope.Envelope{Recipients: []envelope.Recipient{{Address: alice}, {Address: bob}}}}
	attempt := func(state, ofAlice, ofBob envelope.State) envelope.Step {
		return envelope.Step{At: start, What: envelope.StepAttempt, State: state, Attempt: 1,
			Recipients: []envelope.StepResult{{Address: alice, State: ofAlice, Reply: "one"}, {Address: bob, State: ofBob, Reply: "two"}}}
	}
	tests := []struct {
		name  string
		steps []envelope.Step
		later time.Duration
		want  [3]envelope.State // of the message, of Alice, of Bob
	}{
		{"the last step was lost", []envelope.Step{accepted}, time.Minute, [3]envelope.State{envelope.Sent, envelope.Sent, envelope.Sent}},
		{"it is on its way", []envelope.Step{accepted}, time.Minute - 1, [3]envelope.State{envelope.Queued, envelope.Queued, envelope.Queued}},
		{"lost behind a deferral", []envelope.Step{accepted, attempt(envelope.Deferred, envelope.Failed, envelope.Deferred)}, time.Hour,
			[3]envelope.State{envelope.Sent, envelope.Failed, envelope.Sent}},
		{"all is known", []envelope.Step{accepted, attempt(envelope.Failed, envelope.Failed, envelope.Sent)}, time.Hour,
			[3]envelope.State{envelope.Failed, envelope.Failed, envelope.Sent}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := told(tt.steps, start.Add(tt.later))
			r := m.Progress.Results
			if got := [3]envelope.State{m.State, r[0].State, r[1].State}; got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// acted is api.Messages of which only acts are asked; it notes them.
type acted struct {
	api.Messages
	done []string
	fail error
}

func (a *acted) note(what string) error { a.done = append(a.done, what); return a.fail }

func (a *acted) Retry(context.Context, envelope.ID, string) error   { return a.note("do retry") }
func (a *acted) Hold(context.Context, envelope.ID, string) error    { return a.note("do hold") }
func (a *acted) Release(context.Context, envelope.ID, string) error { return a.note("do release") }
func (a *acted) Drop(context.Context, envelope.ID, string) error    { return a.note("do drop") }
func (a *acted) Send(context.Context, api.Submission) (envelope.ID, error) {
	return "new", a.note("do send")
}

// TestActsOnMessagesAreAudited: each is written down before it is done, and one that cannot be written is not done.
func TestActsOnMessagesAreAudited(t *testing.T) {
	const id = envelope.ID("01KAMA0000QZ5YV0ZZZZ")
	for name, tt := range map[string]struct {
		do                func(m api.Messages) error
		on, before, after string
	}{
		"retry":   {func(m api.Messages) error { return m.Retry(t.Context(), id, "ops") }, string(id), "sender=a@contoso.com state=failed", ""},
		"hold":    {func(m api.Messages) error { return m.Hold(t.Context(), id, "ops") }, string(id), "sender=a@contoso.com state=failed", ""},
		"release": {func(m api.Messages) error { return m.Release(t.Context(), id, "ops") }, string(id), "sender=a@contoso.com state=failed", ""},
		"drop":    {func(m api.Messages) error { return m.Drop(t.Context(), id, "ops") }, string(id), "sender=a@contoso.com state=failed", ""},
		"send": {func(m api.Messages) error {
			got, err := m.Send(t.Context(), api.Submission{From: "a@contoso.com", To: []envelope.Address{"b@example.com", "c@example.com"}})
			if err == nil && got != "new" {
				t.Errorf("got id %s", got)
			}
			return err
		}, "a@contoso.com", "", "recipients=2"},
	} {
		inner := &acted{fail: api.ErrBusy}
		held, full := true, false
		m := &auditedMessages{
			Messages: inner,
			info: func(envelope.ID) (queue.Info, bool) {
				return queue.Info{Sender: "a@contoso.com", State: envelope.Failed}, held
			},
			change: func(_ context.Context, what, on, before, after string, do func() error) error {
				if full {
					return io.ErrShortWrite
				}
				inner.done = append(inner.done, fmt.Sprintf("%s|%s|%s|%s", what, on, before, after))
				return do()
			},
		}
		want := []string{fmt.Sprintf("message.%s|%s|%s|%s", name, tt.on, tt.before, tt.after), "do " + name}
		if err := tt.do(m); !errors.Is(err, api.ErrBusy) || !slices.Equal(inner.done, want) {
			t.Errorf("%s: %v, did %q, want %q", name, err, inner.done, want)
		}
		inner.done, inner.fail = nil, nil
		if err := tt.do(m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		inner.done, full = nil, true
		if err := tt.do(m); !errors.Is(err, io.ErrShortWrite) || inner.done != nil {
			t.Errorf("%s: %v, did %q without a word", name, err, inner.done)
		}
		if held, full = false, false; name != "send" {
			if err := tt.do(m); !errors.Is(err, api.ErrNotFound) || inner.done != nil {
				t.Errorf("%s of what is not there: %v, %q", name, err, inner.done)
			}
		}
	}
}
