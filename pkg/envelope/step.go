package envelope

import "time"

// What a step was. The words are those of history, log and page.
const (
	StepAccepted = "accepted" // by an intake; Envelope says all that is known
	StepAttempt  = "attempt"  // a transaction, or the token or session it failed for want of
	StepHeld     = "held"     // by an operator, or quarantined
	StepReleased = "released" // by an operator
	StepRetried  = "retried"  // by an operator: due at once
	StepDropped  = "dropped"  // by an operator
	StepBounced  = "bounced"  // a delivery status notification of failure was written; Reply is its id
	StepWarned   = "warned"   // one of delay; likewise
	StepExpired  = "expired"  // a failed message was removed after the time it is kept
)

// Step is one thing that happened to a message.
type Step struct {
	ID    ID        `json:"id"`
	At    time.Time `json:"at"`
	What  string    `json:"what"`
	State State     `json:"state"`        // the message's, afterwards
	By    string    `json:"by,omitempty"` // tenant/login of an attempt, name of an operator

	Attempt    int           `json:"attempt,omitempty"`    // number of the attempt, from 1
	Took       time.Duration `json:"took,omitempty"`       // ns
	Due        time.Time     `json:"due,omitzero"`         // when the next attempt is
	Reply      string        `json:"reply,omitempty"`      // the reply that decided, escaped; or why; or the id of what was written
	Advice     string        `json:"advice,omitempty"`     // what an operator can do about it
	Recipients []StepResult  `json:"recipients,omitempty"` // those the step was about; empty: all
	Envelope   *Envelope     `json:"envelope,omitempty"`   // of StepAccepted
}

// StepResult is what a step meant for one recipient.
type StepResult struct {
	Address Address `json:"address"`
	State   State   `json:"state"`
	Reply   string  `json:"reply,omitempty"`
}

// Query selects messages. Zero fields select all; several must all fit.
type Query struct {
	ID        ID
	MessageID string    // with or without its angle brackets
	Sender    string    // an address, or "*@domain"; compared without case
	Recipient string    // the same, of any recipient
	State     State     // the last known
	Queued    bool      // only what the queue still holds: not what was sent, dropped or has expired
	Since     time.Time // accepted at or after
	Until     time.Time // accepted before
	Before    ID        // accepted before that message: the next page
	Limit     int       // at most so many, the latest accepted first; 0: 100
}

// Summary is one line of a listing.
type Summary struct {
	ID         ID        `json:"id"`
	Received   time.Time `json:"received"`
	Sender     Address   `json:"sender"`
	Recipients []Address `json:"recipients"`
	MessageID  string    `json:"message_id,omitempty"`
	Size       int64     `json:"size"` // octets
	State      State     `json:"state"`
	Attempts   int       `json:"attempts"`
	Due        time.Time `json:"due,omitzero"`
	Reply      string    `json:"reply,omitempty"` // the last one that decided anything, or why the message is held or parked
}
