package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/operation"
	"relayd/pkg/admin/problem"
	"relayd/pkg/admin/transfer"
	"relayd/pkg/envelope"
)

// Messages is what the API works on: the queue, and the history of what has left it.
//
// Every method may return a *status.Error, whose text the client reads, [ErrUnavailable], or any other error, which is
// logged and told as a failure to try again. by is who asks, as history shows it.
type Messages interface {
	// List returns at most q.Limit messages that fit q, the latest accepted first; none is no error.
	List(ctx context.Context, q envelope.Query) ([]envelope.Summary, error)
	// Get returns one message's whole story. Errors: [ErrNotFound].
	Get(ctx context.Context, id envelope.ID) (*Message, error)
	// Raw opens a message as it is stored and returns its size in octets. The reader's io.EOF vouches for every octet before
	// it. Errors: [ErrNotFound], also where the content is no longer kept, and [ErrBusy].
	Raw(ctx context.Context, id envelope.ID) (io.ReadCloser, int64, error)
	// Retry makes a waiting or failed message due at once. Errors, of all four: [ErrNotFound], also where the message has left
	// the queue, and [ErrBusy] while it is being sent.
	Retry(ctx context.Context, id envelope.ID, by string) error
	// Hold keeps a message back until Release.
	Hold(ctx context.Context, id envelope.ID, by string) error
	// Release ends a Hold, and gives a failed message a new life.
	Release(ctx context.Context, id envelope.ID, by string) error
	// Drop removes a message for good. Nobody is told.
	Drop(ctx context.Context, id envelope.ID, by string) error
	// Send puts a message into the queue; it is durable when Send returns. Refusals of what the message says or whom it is
	// from are permanent *status.Errors. It must not store a message whose reader ends in anything but io.EOF.
	Send(ctx context.Context, s Submission) (envelope.ID, error)
}

// Message is what is known of a message. Only State, and in a message known by its history alone Steps, is always there.
type Message struct {
	Envelope *envelope.Envelope // nil: its acceptance is no longer on record
	Progress envelope.Progress
	State    envelope.State // as it stands now, Parked and Sending included
	Parked   string         // why its sender or tenant cannot send now; empty: they can
	Stored   bool           // Raw can return its content
	Steps    []envelope.Step
}

// Detail is a [Message] as the API shows it.
type Detail struct {
	ID         envelope.ID        `json:"id"`
	State      envelope.State     `json:"state" doc:"queued, sending, sent, deferred, held, parked, uncertain or failed"`
	Attempts   int                `json:"attempts" doc:"that cost a life"`
	Due        time.Time          `json:"due,omitzero" doc:"when the next attempt is"`
	Reason     string             `json:"reason,omitempty" doc:"why it is held, or the last reply"`
	Parked     string             `json:"parked,omitempty" doc:"why its sender or tenant cannot send now"`
	Stored     bool               `json:"stored" doc:"its content can be had"`
	Envelope   *envelope.Envelope `json:"envelope,omitempty" doc:"what was known at acceptance"`
	Recipients []RecipientDetail  `json:"recipients" nullable:"false"`
	Steps      []envelope.Step    `json:"steps" nullable:"false" doc:"what happened to it, the oldest first; took is in nanoseconds"`
}

// RecipientDetail is where one recipient of a message stands.
type RecipientDetail struct {
	Address envelope.Address `json:"address"`
	envelope.Result
}

// detail merges what is known at acceptance with what happened since.
func (m *Message) detail(id envelope.ID) *Detail {
	p := &m.Progress
	d := &Detail{
		ID: id, State: m.State, Attempts: p.Attempts, Due: p.Due, Reason: p.Reason, Parked: m.Parked, Stored: m.Stored,
		Envelope: m.Envelope, Recipients: []RecipientDetail{}, Steps: slices.Clone(m.Steps),
	}
	if d.Steps == nil {
		d.Steps = []envelope.Step{}
	}
	for i := range d.Steps {
		d.Steps[i].Envelope = nil // stands above already
	}
	if m.Envelope == nil {
		return d
	}
	for i := range m.Envelope.Recipients {
		r := RecipientDetail{Address: m.Envelope.Recipients[i].Address, Result: envelope.Result{State: envelope.Queued}}
		if i < len(p.Results) {
			r.Result = p.Results[i]
		}
		d.Recipients = append(d.Recipients, r)
	}
	return d
}

// Age is a duration as people write it: 90s, 15m, 4h, 5d.
type Age struct{ time.Duration }

// UnmarshalText reads an age. It is positive and below 10 years.
func (a *Age) UnmarshalText(text []byte) error {
	days, rest, found := strings.Cut(string(text), "d")
	if !found {
		days, rest = "0", string(text)
	}
	n, err := strconv.ParseUint(days, 10, 16)
	var d time.Duration
	if err == nil && (rest != "" || !found) {
		d, err = time.ParseDuration(rest)
	}
	const day, most = 24 * time.Hour, 3650
	if err != nil || strings.ContainsAny(rest, "+-") || n > most || d > most*day {
		return fmt.Errorf("%q is no age; write a number with a unit, like 30m, 4h or 5d", problem.Clip(string(text)))
	}
	a.Duration = time.Duration(n)*day + d
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (a Age) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Filter selects messages. Zero fields select all; several must all fit.
type Filter struct {
	ID        envelope.ID    `query:"id" json:"id,omitempty" maxLength:"20" doc:"queue id"`
	MessageID string         `query:"message_id" json:"message_id,omitempty" maxLength:"998" doc:"Message-ID, with or without its angle brackets"`
	Sender    string         `query:"sender" json:"sender,omitempty" maxLength:"320" doc:"an address, or *@domain"`
	Recipient string         `query:"recipient" json:"recipient,omitempty" maxLength:"320" doc:"an address, or *@domain: of any recipient"`
	State     envelope.State `query:"state" json:"state,omitempty" enum:"queued,sending,sent,deferred,held,parked,uncertain,failed" doc:"the last known"`
	Queued    bool           `query:"queued" json:"queued,omitempty" doc:"only what the queue still holds: waiting, held and failed messages"`
	Since     time.Time      `query:"since" json:"since,omitzero" doc:"accepted at or after this time (RFC 3339)"`
	Until     time.Time      `query:"until" json:"until,omitzero" doc:"accepted before this time (RFC 3339)"`
	OlderThan Age            `query:"older_than" json:"older_than,omitzero" doc:"accepted longer ago than this: 30m, 4h, 5d"`
}

// Limits of a listing, and of an action on many.
const (
	maxLimit     = 1000
	defaultLimit = 100
)

// query is f as Messages takes it. before and limit page: see [envelope.Query].
func (f *Filter) query(before envelope.ID, limit int, now time.Time) (envelope.Query, error) {
	for name, id := range map[string]envelope.ID{"id": f.ID, "before": before} {
		if id != "" && !id.Valid() {
			return envelope.Query{}, problem.New(http.StatusUnprocessableEntity, "%s: not a queue id, which has 20 letters and digits", name)
		}
	}
	if f.MessageID != "" && strings.Trim(f.MessageID, "<> \t") == "" {
		return envelope.Query{}, problem.New(http.StatusUnprocessableEntity, "message_id: nothing stands between the angle brackets")
	}
	q := envelope.Query{
		ID: f.ID, MessageID: f.MessageID, Sender: f.Sender, Recipient: f.Recipient, State: f.State, Queued: f.Queued,
		Since: f.Since, Until: f.Until, Before: before, Limit: limit,
	}
	if f.OlderThan.Duration > 0 {
		if old := now.Add(-f.OlderThan.Duration); q.Until.IsZero() || old.Before(q.Until) {
			q.Until = old
		}
	}
	return q, nil
}

type listInput struct {
	Filter
	Before envelope.ID `query:"before" maxLength:"20" doc:"only messages accepted before this one: the next page"`
	Limit  int         `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"at most so many"`
}

// Listing is a page of messages, the latest accepted first.
type Listing struct {
	Messages []envelope.Summary `json:"messages" nullable:"false"`
	Next     envelope.ID        `json:"next,omitempty" doc:"what before takes for the next page; absent: there is none"`
}

type messageInput struct {
	ID string `path:"id" doc:"queue id"`
}

// pathID is the id in a path; a form no id has is one that no message has.
func pathID(s string) (envelope.ID, error) {
	if id := envelope.ID(s); id.Valid() {
		return id, nil
	}
	return "", ErrNotFound
}

func (a *api) registerMessages() {
	operation.Add(a.operations, operation.Operation{
		Method: "GET", Path: messagesPath, ID: "list-messages", Summary: "List messages",
		Description: "Messages in the queue and those it has dealt with, as long as history is kept. All filters given must fit.",
		Scope:       access.Read,
	}, a.list)
	operation.Add(a.operations, operation.Operation{
		Method: "GET", Path: messagesPath + "/{id}", ID: "get-message", Summary: "Show one message",
		Description: "What was known at acceptance, where each recipient stands, and every step since.",
		Scope:       access.Read, Errors: []int{http.StatusNotFound},
	}, a.get)
	operation.Stream(a.operations, operation.Operation{
		Method: "GET", Path: messagesPath + "/{id}/raw", ID: "get-message-content", Summary: "Download one message",
		Description: "The message as it is stored. An answer that breaks off is one that was found damaged, or could not be read.",
		Scope:       access.Content, Errors: []int{http.StatusNotFound, http.StatusConflict},
	}, a.raw)
	a.huma.OpenAPI().Paths[messagesPath+"/{id}/raw"].Get.Responses["200"].Content = map[string]*huma.MediaType{
		mediaMessage: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
	}
	a.registerActions()
	a.registerSend()
}

func (a *api) list(ctx context.Context, in *listInput) (*operation.Output[Listing], error) {
	q, err := in.query(in.Before, in.Limit, time.Now())
	if err != nil {
		return nil, err
	}
	found, err := a.messages.List(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &operation.Output[Listing]{Body: Listing{Messages: found, Next: next(found, q.Limit)}}
	if found == nil {
		out.Body.Messages = []envelope.Summary{}
	}
	return out, nil
}

// next is where the page behind found begins, "" where found is the last.
func next(found []envelope.Summary, limit int) envelope.ID {
	if len(found) < limit || len(found) == 0 {
		return ""
	}
	return found[len(found)-1].ID
}

func (a *api) get(ctx context.Context, in *messageInput) (*operation.Output[*Detail], error) {
	id, err := pathID(in.ID)
	if err != nil {
		return nil, err
	}
	m, err := a.messages.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	return &operation.Output[*Detail]{Body: m.detail(id)}, nil
}

func (a *api) raw(ctx context.Context, in *messageInput) (*huma.StreamResponse, error) {
	id, err := pathID(in.ID)
	if err != nil {
		return nil, err
	}
	body, size, err := a.messages.Raw(ctx, id)
	if err != nil {
		return nil, err
	}
	d, err := transfer.NewDownload(body)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer func() { _ = d.Close() }() // all there was to say has been said
		r, w := humago.Unwrap(hctx)
		h := w.Header()
		h.Set("Content-Type", mediaMessage)
		h.Set("Content-Disposition", `attachment; filename="`+string(id)+`.eml"`)
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		if r.Method == http.MethodHead {
			return
		}
		if err := d.To(w); err != nil {
			a.log.Warn("message download broken off", zap.String("id", string(id)), zap.Error(err))
			panic(http.ErrAbortHandler)
		}
	}}, nil
}
