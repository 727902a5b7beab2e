package control

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/feed"
	"relayd/pkg/admin/api/operation"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/problem"
	"relayd/pkg/envelope"
)

// Audit is a page of the audit log.
type Audit struct {
	Entries []console.Entry `json:"entries" nullable:"false" doc:"the latest first"`
	Next    uint64          `json:"next,omitempty" doc:"what before takes for the next page; absent: there is none"`
}

func (c *control) registerRelay() {
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: root + "stats", ID: "get-stats", Summary: "See whether mail flows",
		Description: "What was accepted, sent, deferred and failed in the last hour and day, what waits, who cannot send, and what expires.",
		Scope:       access.Read,
	}, func(ctx context.Context, _ *struct{}) (*operation.Output[*console.Overview], error) {
		found, err := c.console.Overview(ctx)
		if err != nil {
			return nil, err
		}
		o := *found
		o.Hour, o.Day, o.Parked, o.Expiries = list(o.Hour), list(o.Day), list(o.Parked), list(o.Expiries)
		return &operation.Output[*console.Overview]{Body: &o}, nil
	})
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: root + "config", ID: "get-config", Summary: "Show the configuration in force",
		Description: "Each value and where it comes from. No secret is ever shown.", Scope: access.Read,
	}, func(ctx context.Context, _ *struct{}) (*operation.Output[*console.Configuration], error) {
		found, err := c.console.Configuration(ctx)
		if err != nil {
			return nil, err
		}
		in := *found
		in.Settings, in.Warnings = list(in.Settings), list(in.Warnings)
		return &operation.Output[*console.Configuration]{Body: &in}, nil
	})
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: root + "audit", ID: "list-audit", Summary: "List who changed what",
		Description: "Every change, whether it was done or not, the latest first.", Scope: access.Read,
	}, func(ctx context.Context, in *struct {
		Before uint64 `query:"before" doc:"only entries before the one with this id: the next page"`
		Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"at most so many"`
	}) (*operation.Output[Audit], error) {
		found, err := c.console.Audit(ctx, in.Before, in.Limit)
		out := Audit{Entries: list(found)}
		if len(found) == in.Limit {
			out.Next = found[len(found)-1].ID
		}
		return &operation.Output[Audit]{Body: out}, err
	})
	c.registerEvents()
}

type eventsInput struct {
	Sender string      `query:"sender" maxLength:"320" doc:"only of this address or *@domain"`
	ID     envelope.ID `query:"id" maxLength:"20" doc:"only of the message with this queue id"`
}

// keep is what in selects.
func (in *eventsInput) keep() (func(*console.Event) bool, error) {
	if in.ID != "" && !in.ID.Valid() {
		return nil, problem.New(http.StatusUnprocessableEntity, "query.id: not a queue id, which has 20 letters and digits")
	}
	domain, whole := strings.CutPrefix(strings.ToLower(in.Sender), "*@")
	if whole && domain == "" || in.Sender != "" && !strings.Contains(in.Sender, "@") {
		return nil, problem.New(http.StatusUnprocessableEntity, "query.sender: write an address, or *@domain")
	}
	key := envelope.Address(in.Sender).Key()
	return func(e *console.Event) bool {
		return (in.ID == "" || e.Step.ID == in.ID) &&
			(in.Sender == "" || whole && strings.EqualFold(e.Sender.Domain(), domain) || !whole && e.Sender.Key() == key)
	}, nil
}

func (c *control) registerEvents() {
	const path = root + "events"
	operation.Stream(c.set, operation.Operation{
		Method: "GET", Path: path, ID: "follow-events", Summary: "Follow messages as things happen to them",
		Description: "Server-sent events, from now on: event is the step (accepted, attempt, held, released, retried, dropped, bounced, warned, " +
			"expired), data is JSON with step and sender. A comment comes every 15 seconds. There are no event ids, so Last-Event-ID does nothing: what " +
			"happens while nobody listens, and what a reader is too slow for, is lost here; get-message has it all. A stream ends after 15 " +
			"minutes, so that who asks is looked at again: connect anew.",
		Scope: access.Read,
	}, func(_ context.Context, in *eventsInput) (*huma.StreamResponse, error) {
		keep, err := in.keep()
		if err != nil {
			return nil, err
		}
		reader, ok := c.feed.Reader()
		if !ok {
			return nil, problem.New(http.StatusServiceUnavailable, "%d others follow already, which is the most; try again later", feed.MaxReaders)
		}
		return &huma.StreamResponse{Body: func(hctx huma.Context) {
			defer reader.Close()
			r, w := humago.Unwrap(hctx)
			reader.Serve(w, r, keep)
		}}, nil
	})
	c.set.API.OpenAPI().Paths[path].Get.Responses["200"] = &huma.Response{
		Description: http.StatusText(http.StatusOK),
		Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}
}

// SessionList is the answer of list-sessions.
type SessionList struct {
	Sessions []access.Session `json:"sessions" nullable:"false" doc:"the latest first"`
}

func (c *control) registerSessions(sessions access.Sessions) {
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: root + "sessions", ID: "list-sessions", Summary: "List browsers that are logged in",
		Description: "Whose browsers are logged in to the admin page.", Scope: access.Manage,
	}, func(ctx context.Context, _ *struct{}) (*operation.Output[SessionList], error) {
		found, err := sessions.Sessions(ctx)
		return &operation.Output[SessionList]{Body: SessionList{list(found)}}, err
	})
	type input struct {
		ID string `path:"id" maxLength:"200" doc:"of the session"`
	}
	change(c, operation.Operation{
		Method: "DELETE", Path: root + "sessions/{id}", ID: "revoke-session", Summary: "Log a browser out",
		Description: "Ends a session at once. One that is not there is no error.", Scope: access.Manage,
	}, func(in *input) string { return in.ID }, sessions.EndSession)
}

// LinkRequest asks for a one-time login link.
type LinkRequest struct {
	Role access.Role `json:"role" enum:"viewer,operator,admin" doc:"what whoever opens it may do"`
}

// Link is a one-time login link.
type Link struct {
	URL     string    `json:"url" doc:"logs in whoever opens it first"`
	Expires time.Time `json:"expires"`
}

func (c *control) registerLinks(links access.Links) {
	operation.Add(c.set, operation.Operation{
		Method: "POST", Path: root + "login-links", ID: "make-login-link", Summary: "Make a one-time login link",
		Description: "The link logs in the browser that opens it first. Whoever has it is let in: hand it over as you would a password. The role may have no scope that the caller lacks.",
		Scope:       access.Manage, Status: http.StatusCreated,
	}, func(ctx context.Context, in *struct{ Body LinkRequest }) (*operation.Output[Link], error) {
		who := access.From(ctx)
		for _, scope := range in.Body.Role.Scopes() {
			if !who.May(scope) { // else manage alone would be all rights
				return nil, problem.New(http.StatusForbidden, "nobody can hand on a right they lack: %s has the scope %s", in.Body.Role, scope)
			}
		}
		url, expires, err := links.NewLink(ctx, in.Body.Role, who.Name)
		return &operation.Output[Link]{Body: Link{url, expires}}, c.done(ctx, "make-login-link", string(in.Body.Role), err)
	})
}

// Rotated is the answer of rotate-vault.
type Rotated struct {
	Rotated int `json:"rotated" doc:"records that were sealed anew"`
}

func (c *control) registerVault(vault Vault) {
	operation.Add(c.set, operation.Operation{
		Method: "POST", Path: root + "vault/rotate", ID: "rotate-vault", Summary: "Seal all secrets with the current key",
		Description: "After vault.key has been changed and the old one named in vault.previous_keys; then the old one can go.", Scope: access.Manage,
	}, func(ctx context.Context, _ *struct{ Body *operation.Nothing }) (*operation.Output[Rotated], error) {
		n, err := vault.Rotate(ctx)
		return &operation.Output[Rotated]{Body: Rotated{n}}, c.done(ctx, "rotate-vault", "vault", err)
	})
}
