package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/operation"
	"relayd/pkg/admin/problem"
	"relayd/pkg/envelope"
)

// action is what an operator can do to a message.
type action struct {
	name string
	doc  string
	do   func(ctx context.Context, id envelope.ID, by string) error
}

func (a *api) actions() []action {
	return []action{
		{"retry", "Makes a waiting or failed message due at once.", a.messages.Retry},
		{"hold", "Keeps a message back until it is released.", a.messages.Hold},
		{"release", "Ends a hold, and gives a failed message a new life.", a.messages.Release},
		{"drop", "Removes a message for good. Nobody is told.", a.messages.Drop},
	}
}

func (a *api) registerActions() {
	for _, act := range a.actions() {
		summary := strings.ToUpper(act.name[:1]) + act.name[1:] + " one message"
		operation.Add(a.operations, operation.Operation{
			Method: "POST", Path: messagesPath + "/{id}/" + act.name, ID: act.name + "-message", Summary: summary, Description: act.doc,
			Scope: access.Operate, Errors: []int{http.StatusNotFound, http.StatusConflict},
		},
			func(ctx context.Context, in *actionInput) (*struct{}, error) {
				id, err := pathID(in.ID)
				if err != nil {
					return nil, err
				}
				return nil, a.act(ctx, act, id)
			})
	}
	operation.Add(a.operations, operation.Operation{
		Method: "POST", Path: messagesPath + "/actions", ID: "act-on-messages", Summary: "Retry, hold, release or drop many",
		Description: "On the messages with the given ids, or on those a query selects, the latest accepted first, up to limit. " +
			"With dry_run nothing is done, and the answer shows what would be hit.",
		Scope: access.Operate,
	}, a.actOnMany)
}

// act does one action, and logs it.
func (a *api) act(ctx context.Context, act action, id envelope.ID) error {
	who := access.From(ctx)
	err := act.do(ctx, id, who.Name)
	a.log.Info("operator acts on a message", zap.String("id", string(id)), zap.String("action", act.name),
		zap.String("client", who.Name), zap.String("peer", who.Peer), zap.Error(err))
	return err
}

type actionInput struct {
	ID   string             `path:"id" doc:"queue id"`
	Body *operation.Nothing `doc:"none, or an empty object"`
}

// Actions asks for one action on many messages: either IDs or Query says which.
type Actions struct {
	Action string        `json:"action" enum:"retry,hold,release,drop"`
	IDs    []envelope.ID `json:"ids,omitempty" maxItems:"1000" nullable:"false"`
	Query  *Filter       `json:"query,omitempty" doc:"which, if no ids are given; at least one filter"`
	Before envelope.ID   `json:"before,omitempty" maxLength:"20" doc:"with query: only messages accepted before this one"`
	Limit  int           `json:"limit,omitempty" minimum:"1" maximum:"1000" doc:"with query: at most so many; 1000 if absent"`
	DryRun bool          `json:"dry_run,omitempty" doc:"do nothing, only show"`
}

// Outcomes answers [Actions].
type Outcomes struct {
	Action  string      `json:"action"`
	DryRun  bool        `json:"dry_run"`
	Done    int         `json:"done" doc:"how many it was done to"`
	Results []Outcome   `json:"results" nullable:"false"`
	Next    envelope.ID `json:"next,omitempty" doc:"of a query that may select more: what before takes to go on"`
}

// Outcome is what an action came to for one message.
type Outcome struct {
	ID      envelope.ID       `json:"id"`
	Done    bool              `json:"done"`
	Status  int               `json:"status,omitempty" doc:"where it was not done: the HTTP status it would have had alone"`
	Error   string            `json:"error,omitempty" doc:"why it was not done"`
	Message *envelope.Summary `json:"message,omitempty" doc:"with dry_run, or of a query: what it is about"`
}

// bulkWorkers is how many messages are changed at once: their writes share a sync.
const bulkWorkers = 8

func (a *api) actOnMany(ctx context.Context, in *struct{ Body Actions }) (*operation.Output[Outcomes], error) {
	req := &in.Body
	out := &Outcomes{Action: req.Action, DryRun: req.DryRun, Results: []Outcome{}}
	if err := a.choose(ctx, req, out); err != nil {
		return nil, err
	}
	var act action
	for _, candidate := range a.actions() {
		if candidate.name == req.Action {
			act = candidate
		}
	}
	var all errgroup.Group
	all.SetLimit(bulkWorkers)
	for i := range out.Results {
		all.Go(func() error {
			r := &out.Results[i]
			var err error
			switch {
			case !req.DryRun:
				if err = ctx.Err(); err == nil {
					err = a.act(ctx, act, r.ID)
				}
			case r.Message == nil:
				r.Message, err = a.summary(ctx, r.ID)
			}
			if err != nil {
				p := a.explain(ctx, "act-on-messages", err)
				r.Status, r.Error = p.Status, p.Detail
			}
			r.Done = err == nil && !req.DryRun
			return nil
		})
	}
	_ = all.Wait() // each has told its own
	for i := range out.Results {
		if out.Results[i].Done {
			out.Done++
		}
	}
	return &operation.Output[Outcomes]{Body: *out}, nil
}

// choose fills out.Results with the messages req is about.
func (a *api) choose(ctx context.Context, req *Actions, out *Outcomes) error {
	byQuery := req.Query != nil && *req.Query != Filter{}
	if byQuery == (len(req.IDs) > 0) {
		return problem.New(http.StatusUnprocessableEntity, "say which messages: either ids, or a query with at least one filter")
	}
	if !byQuery {
		seen := map[envelope.ID]bool{}
		for _, id := range req.IDs {
			if !id.Valid() {
				return problem.New(http.StatusUnprocessableEntity, "ids: %q is not a queue id, which has 20 letters and digits", problem.Clip(string(id)))
			}
			if !seen[id] {
				seen[id] = true
				out.Results = append(out.Results, Outcome{ID: id})
			}
		}
		return nil
	}
	if req.Limit == 0 {
		req.Limit = maxLimit
	}
	q, err := req.Query.query(req.Before, req.Limit, time.Now())
	if err != nil {
		return err
	}
	found, err := a.messages.List(ctx, q)
	if err != nil {
		return err
	}
	for i := range found {
		out.Results = append(out.Results, Outcome{ID: found[i].ID, Message: &found[i]})
	}
	out.Next = next(found, req.Limit)
	return nil
}

// summary is one message's line of a listing.
func (a *api) summary(ctx context.Context, id envelope.ID) (*envelope.Summary, error) {
	found, err := a.messages.List(ctx, envelope.Query{ID: id, Limit: 1})
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return &found[0], nil
}
