package control

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/operation"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/problem"
)

type sendersInput struct {
	Text   string `query:"text" maxLength:"320" doc:"part of address, login or tenant"`
	Tenant string `query:"tenant" maxLength:"200" doc:"name of a tenant"`
	State  string `query:"state" enum:"ready,consent,paused,parked,held,shadowed"`
	Offset int    `query:"offset" minimum:"0" doc:"how many to leave out"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"at most so many"`
}

type senderInput struct {
	Match string `path:"match" maxLength:"320" doc:"what the entry matches, an address or *@domain; percent-encoded"`
}

type senderAct struct {
	Match string             `path:"match" maxLength:"320" doc:"what the entry matches, an address or *@domain; percent-encoded"`
	Body  *operation.Nothing `doc:"none, or an empty object"`
}

func (in *senderInput) name() string { return in.Match }
func (in *senderAct) name() string   { return in.Match }

func (c *control) registerSenders() {
	const one = sendersPath + "/{match}"
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: sendersPath, ID: "list-senders", Summary: "List senders",
		Description: "The entries of senders that fit, ordered by what they match, and how many fit in all.", Scope: access.Read,
	}, func(ctx context.Context, in *sendersInput) (*operation.Output[*console.SenderPage], error) {
		page, err := c.console.Senders(ctx, console.SenderQuery{Text: in.Text, Tenant: in.Tenant, State: in.State, Offset: in.Offset, Limit: in.Limit})
		if err != nil {
			return nil, err
		}
		full := *page
		full.Senders = list(page.Senders)
		return &operation.Output[*console.SenderPage]{Body: &full}, nil
	})
	operation.Add(c.set, operation.Operation{
		Method: "POST", Path: sendersPath, ID: "add-sender", Summary: "Add a sender",
		Description: "Adds an entry of senders, which is in force at once.", Scope: access.Manage, Status: http.StatusCreated,
		Errors: []int{http.StatusConflict},
	}, func(ctx context.Context, in *struct{ Body console.SenderInput }) (*operation.Created, error) {
		err := c.done(ctx, "add-sender", in.Body.Match, c.console.SaveSender(ctx, "", in.Body))
		return &operation.Created{Location: at(sendersPath, in.Body.Match)}, err
	})
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: one, ID: "get-sender", Summary: "Show one sender",
		Description: "How an entry of senders stands: its consent, what it may still send today, what waits.", Scope: access.Read, Errors: notFound(),
	}, func(ctx context.Context, in *senderInput) (*operation.Output[*console.Sender], error) {
		found, err := c.console.Sender(ctx, in.Match)
		return &operation.Output[*console.Sender]{Body: found}, err
	})
	operation.Add(c.set, operation.Operation{
		Method: "PUT", Path: one, ID: "replace-sender", Summary: "Change a sender",
		Description: "Replaces an entry of senders as a whole: what is left out becomes the default. One that stands in the configuration " +
			"file can only be changed there.", Scope: access.Manage, Status: http.StatusNoContent, Errors: notFound(http.StatusConflict),
	}, func(ctx context.Context, in *struct {
		Match string `path:"match" maxLength:"320" doc:"what the entry matches, an address or *@domain; percent-encoded"`
		Body  console.SenderInput
	}) (*struct{}, error) {
		return nil, c.done(ctx, "replace-sender", in.Match, c.console.SaveSender(ctx, in.Match, in.Body))
	})
	change(c, operation.Operation{
		Method: "DELETE", Path: one, ID: "remove-sender", Summary: "Remove a sender",
		Description: "Forgets an entry of senders, and the consent where no other uses it. Its waiting mail stays, and is parked.",
		Scope:       access.Manage, Errors: notFound(http.StatusConflict),
	}, (*senderInput).name, c.console.RemoveSender)
	for _, a := range []struct {
		name, summary, doc string
		do                 func(context.Context, string) error
	}{
		{"pause", "Pause a sender", "Keeps its mail back until it is resumed; mail is accepted all the same.", c.console.Pause},
		{"resume", "Resume a sender", "Ends a pause.", c.console.Resume},
		{"revoke", "Forget a sender's consent", "Nothing is sent by it until somebody signs in for it again.", c.console.Revoke},
	} {
		change(c, operation.Operation{
			Method: "POST", Path: one + "/" + a.name, ID: a.name + "-sender", Summary: a.summary, Description: a.doc,
			Scope: access.Operate, Errors: notFound(),
		}, (*senderAct).name, a.do)
	}
	c.registerExamine()
}

// list is one that JSON shows as [], not as null.
func list[T any](found []T) []T {
	if found == nil {
		return []T{}
	}
	return found
}

func (c *control) registerConsent() {
	operation.Add(c.set, operation.Operation{
		Method: "POST", Path: sendersPath + "/{match}/device", ID: "start-device", Summary: "Sign in for a sender by device code",
		Description: "Returns a code that the mailbox's owner enters at the address named with it, in any browser. What came of it, the " +
			"sign-in's own operation tells; the relay asks Entra ID by itself.",
		Scope: access.Operate, Status: http.StatusCreated, Errors: notFound(http.StatusConflict),
	}, func(ctx context.Context, in *senderAct) (*operation.Output[*console.Device], error) {
		device, err := c.console.StartDevice(ctx, in.Match)
		return &operation.Output[*console.Device]{Body: device}, c.done(ctx, "start-device", in.Match, err)
	})
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: root + "devices/{id}", ID: "get-device", Summary: "See what came of a device code",
		Description: "Ask again every few seconds while its state is pending.", Scope: access.Operate, Errors: notFound(http.StatusGone),
	}, func(ctx context.Context, in *struct {
		ID string `path:"id" maxLength:"200" doc:"of the sign-in"`
	}) (*operation.Output[*console.Device], error) {
		device, err := c.console.Device(ctx, in.ID)
		return &operation.Output[*console.Device]{Body: device}, err
	})
	operation.Add(c.set, operation.Operation{
		Method: "POST", Path: sendersPath + "/{match}/invitation", ID: "invite-owner", Summary: "Make a one-time consent link",
		Description: "The link is for the mailbox's owner, who needs no account here; it opens nothing but that sign-in, once.",
		Scope:       access.Operate, Status: http.StatusCreated, Errors: notFound(http.StatusConflict),
	}, func(ctx context.Context, in *senderAct) (*operation.Output[*console.Invitation], error) {
		invitation, err := c.console.Invite(ctx, in.Match)
		return &operation.Output[*console.Invitation]{Body: invitation}, c.done(ctx, "invite-owner", in.Match, err)
	})
}

// examineTime is how long an examination may take, and each of its steps to reach the client.
const (
	examineTime = 5 * time.Minute
	stepTime    = time.Minute
)

func (c *control) registerExamine() {
	const path = sendersPath + "/{match}/examine"
	operation.Stream(c.set, operation.Operation{
		Method: "POST", Path: path, ID: "examine-sender", Summary: "Examine a sender's way",
		Description: "Walks the way of a message of that address, from DNS to the recipient's acceptance, without sending one. Each step is a line " +
			"of JSON, sent as it is done. An examination that could not be ended has a last line whose step is examination and whose result is fail.",
		Scope: access.Operate, Errors: notFound(),
	}, func(_ context.Context, in *senderAct) (*huma.StreamResponse, error) {
		if strings.HasPrefix(in.Match, "*") {
			return nil, problem.New(http.StatusUnprocessableEntity, "path.match: only one address can be examined; name one of that domain")
		}
		return &huma.StreamResponse{Body: func(hctx huma.Context) { c.examine(hctx, in.Match) }}, nil
	})
	c.set.API.OpenAPI().Paths[path].Post.Responses["200"] = &huma.Response{
		Description: http.StatusText(http.StatusOK),
		Content:     map[string]*huma.MediaType{"application/x-ndjson": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}
}

// examine writes each finding as it comes up. As long as there is none, an error is an answer of its own.
func (c *control) examine(hctx huma.Context, sender string) {
	r, w := humago.Unwrap(hctx)
	ctx, cancel := context.WithTimeout(r.Context(), examineTime)
	defer cancel()
	connection := http.NewResponseController(w)
	_ = connection.SetWriteDeadline(time.Now().Add(examineTime + stepTime)) // where there is no connection, as in tests, there is none to set
	lines := json.NewEncoder(w)
	begun := false
	write := func(f console.Finding) {
		if !begun {
			w.Header().Set("Content-Type", "application/x-ndjson")
			begun = true
		}
		if lines.Encode(f) != nil || connection.Flush() != nil {
			cancel() // the asker has gone
		}
	}
	err := c.console.Examine(ctx, sender, write)
	if err == nil {
		return
	}
	p := c.set.Explain(r.Context(), "examine-sender", err)
	if !begun {
		p.Write(w)
		return
	}
	c.log.Warn("examination broken off", zap.String("sender", problem.Clip(sender)), zap.Error(err))
	write(console.Finding{Step: "examination", Result: "fail", Detail: p.Detail, Cause: p.Cause, Advice: p.Advice})
}
