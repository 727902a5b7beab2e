package page

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"relayd/pkg/admin/api"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/envelope"
)

// bulkTime is how long an action on many may take, and bulkWorkers how many are changed at once: their writes share a sync.
const (
	bulkTime    = 60 * time.Second
	bulkWorkers = 8
)

// outcome is what became of one message, or is about to.
type outcome struct {
	envelope.Summary
	Error string // why it was not done, or will not be; in words
}

// intent is an action on many: shown first, then done.
type intent struct {
	Action   string
	Messages []outcome
	Hit      int    // how many it would be done to
	Cut      bool   // more fit than are taken at once
	Back     string // where to go on
	Done     bool   // it has been done; Messages are those it was not done to
}

// bulk shows what an action would hit; with confirm=yes it does it, to exactly what was shown. The form has action, and either id,
// any number of times, or all=yes with query: the filters of a listing.
func (p *page) bulk(w http.ResponseWriter, r *http.Request) {
	values, ok := p.view.ReadForm(w, r)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), bulkTime)
	defer cancel()
	do := p.action(values.Get("action"))
	if do == nil {
		p.view.NotFound(w, r)
		return
	}
	in := intent{Action: values.Get("action"), Back: local(values.Get("back"))}
	if err := p.choose(ctx, w, r, values, &in); err != nil {
		p.view.Fail(w, r, err)
		return
	}
	if len(in.Messages) == 0 {
		p.view.Redirect(w, r, in.Back, "messages.notice.none", "")
		return
	}
	if values.Get("confirm") == "yes" {
		p.carryOut(ctx, w, r, do, &in)
		return
	}
	p.view.Render(w, r, view.Page{Template: "bulk", Title: "messages.bulk.title", Nav: "messages", Self: in.Back, Data: in})
}

// choose fills in with the messages the form is about.
func (p *page) choose(ctx context.Context, w http.ResponseWriter, r *http.Request, values url.Values, in *intent) error {
	if values.Get("all") == "yes" {
		filters, err := url.ParseQuery(values.Get("query"))
		if err != nil {
			return api.ErrNotFound
		}
		queries := readSearch(filters).queries
		for i := range queries {
			queries[i].Queued = true // nothing can be done to what has left the queue
		}
		found, err := p.find(ctx, queries, "", maxBulk+1)
		if err != nil {
			return err
		}
		in.Cut = len(found) > maxBulk
		for _, s := range found[:min(len(found), maxBulk)] {
			in.Messages = append(in.Messages, outcome{Summary: s})
		}
	} else {
		seen := map[envelope.ID]bool{}
		for _, text := range values["id"] {
			if id := envelope.ID(text); id.Valid() && !seen[id] && len(seen) < maxBulk {
				seen[id] = true
				in.Messages = append(in.Messages, outcome{Summary: envelope.Summary{ID: id}})
			}
		}
		if values.Get("confirm") != "yes" {
			if err := p.look(ctx, w, r, in.Messages); err != nil {
				return err
			}
		}
	}
	for _, m := range in.Messages {
		if m.Error == "" {
			in.Hit++
		}
	}
	return nil
}

// look fills in what is known of messages chosen by id.
func (p *page) look(ctx context.Context, w http.ResponseWriter, r *http.Request, messages []outcome) error {
	var all errgroup.Group
	all.SetLimit(bulkWorkers)
	for i := range messages {
		all.Go(func() error {
			s, err := p.summary(ctx, messages[i].ID)
			messages[i].Summary = s
			if errors.Is(err, api.ErrNotFound) {
				messages[i].Error = err.Error()
				err = nil
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	for i := range messages {
		if messages[i].Error != "" {
			messages[i].Error = p.view.Say(w, r, "messages.bulk.gone")
		}
	}
	return nil
}

// carryOut does the action to every message, and says which it was not done to.
func (p *page) carryOut(ctx context.Context, w http.ResponseWriter, r *http.Request, do func(context.Context, envelope.ID, string) error, in *intent) {
	by, peer := who(r), peerOf(r)
	errs := make([]error, len(in.Messages))
	var all errgroup.Group
	all.SetLimit(bulkWorkers)
	for i, m := range in.Messages {
		all.Go(func() error {
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = do(ctx, m.ID, by)
			}
			p.log.Info("operator acts on a message", zap.String("id", string(m.ID)), zap.String("action", in.Action),
				zap.String("client", by), zap.String("peer", peer), zap.Error(errs[i]))
			return nil
		})
	}
	_ = all.Wait() // each has told its own
	var failed []outcome
	for i, m := range in.Messages {
		if errs[i] != nil {
			m.Error = p.view.Reason(w, r, errs[i])
			failed = append(failed, m)
		}
	}
	in.Hit = len(in.Messages) - len(failed)
	if len(failed) == 0 {
		p.view.Redirect(w, r, in.Back, "messages.notice."+in.Action, strconv.Itoa(in.Hit))
		return
	}
	in.Messages, in.Done = failed, true
	p.view.Render(w, r, view.Page{Template: "bulk", Title: "messages.bulk.title", Nav: "messages", Self: in.Back, Data: *in})
}

// local is a path of ours to go back to. Anything else is the list of messages: nobody is led to another site.
func local(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || u.Opaque != "" || u.Path != "/messages" && !strings.HasPrefix(u.Path, "/messages/") {
		return "/messages"
	}
	return (&url.URL{Path: u.Path, RawQuery: u.RawQuery}).String()
}
