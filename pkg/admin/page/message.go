package page

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/page/preview"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/admin/transfer"
	"relayd/pkg/envelope"
)

// recipient is one recipient's line.
type recipient struct {
	Address envelope.Address
	envelope.Result
}

// story is what is shown of one message.
type story struct {
	*api.Message
	ID         envelope.ID
	Recipients []recipient
	Actions    []string
	Preview    *preview.Preview // nil: who asks may not see it, or it is no longer kept
	Unread     string           // why it could not be read, in words
	Settled    bool             // nothing more will happen, unless a person acts
}

func (p *page) message(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	id := envelope.ID(r.PathValue("id"))
	if !id.Valid() {
		p.view.Fail(w, r, api.ErrNotFound)
		return
	}
	m, err := p.messages.Get(ctx, id)
	if err != nil {
		p.view.Fail(w, r, err)
		return
	}
	s := story{Message: m, ID: id, Recipients: recipients(m), Settled: m.State.Final() || m.State == envelope.Held, Actions: mayHelp(m.State)}
	if m.State.Final() && !m.Stored {
		s.Actions = nil // it has left the queue
	}
	if m.Stored && access.From(r.Context()).May(access.Content) && !view.Partial(r) {
		if s.Preview, err = p.preview(ctx, id); err != nil {
			s.Unread = p.view.Reason(w, r, err)
		}
	}
	p.view.Render(w, r, view.Page{
		Template: "message", Part: "message-live", Title: "message.title", Subject: string(id), Nav: "messages", Data: s,
	})
}

// recipients merges what is known at acceptance with what happened since.
func recipients(m *api.Message) []recipient {
	if m.Envelope == nil {
		return nil
	}
	var all []recipient
	for i, of := range m.Envelope.Recipients {
		one := recipient{of.Address, envelope.Result{State: envelope.Queued}}
		if i < len(m.Progress.Results) {
			one.Result = m.Progress.Results[i]
		}
		all = append(all, one)
	}
	return all
}

// preview reads a message's beginning.
func (p *page) preview(ctx context.Context, id envelope.ID) (*preview.Preview, error) {
	body, _, err := p.messages.Raw(ctx, id)
	if errors.Is(err, api.ErrNotFound) {
		return nil, nil // it has left the queue just now
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	return preview.Read(body, p.charset)
}

// raw downloads a message. A browser must never show it: it is a stranger's, and may be HTML.
func (p *page) raw(w http.ResponseWriter, r *http.Request) {
	id := envelope.ID(r.PathValue("id"))
	if !id.Valid() {
		p.view.Fail(w, r, api.ErrNotFound)
		return
	}
	body, size, err := p.messages.Raw(r.Context(), id)
	if err != nil {
		p.view.Fail(w, r, err)
		return
	}
	d, err := transfer.NewDownload(body)
	if err != nil {
		p.view.Fail(w, r, err)
		return
	}
	defer func() { _ = d.Close() }()
	h := w.Header()
	h.Set("Content-Type", "message/rfc822")
	h.Set("Content-Disposition", `attachment; filename="`+string(id)+`.eml"`)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	if r.Method == http.MethodHead {
		return
	}
	if err := d.To(w); err != nil {
		p.log.Warn("message download broken off", zap.String("id", string(id)), zap.Error(err))
		panic(http.ErrAbortHandler) // half a message must not look like a whole one
	}
}

// act does one thing to one message.
func (p *page) act(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	id, name := envelope.ID(r.PathValue("id")), r.PathValue("action")
	do := p.action(name)
	if do == nil || !id.Valid() {
		p.view.NotFound(w, r)
		return
	}
	err := do(ctx, id, who(r))
	p.log.Info("operator acts on a message", zap.String("id", string(id)), zap.String("action", name),
		zap.String("client", who(r)), zap.String("peer", peerOf(r)), zap.Error(err))
	if err != nil {
		p.view.Fail(w, r, err)
		return
	}
	p.view.Redirect(w, r, "/messages/"+string(id), "messages.notice."+name, "1")
}
