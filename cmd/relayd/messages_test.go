package main

import (
	"testing"
	"time"

	"relayd/pkg/envelope"
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
