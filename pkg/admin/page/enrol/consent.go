package enrol

import (
	"errors"
	"net/http"
	"net/url"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/status"
)

// session is the browser's, to bind a sign-in to. ok is false where it has none, and the page says so.
func (e *Enrol) session(w http.ResponseWriter, r *http.Request, p view.Page) (id string, ok bool) {
	if id = access.Browser(r.Context()); id != "" {
		return id, true
	}
	p.Template, p.Status = "enrol_continue", http.StatusForbidden
	p.Data = going{}
	e.view.Render(w, r, p)
	return "", false
}

// startConsent sends the browser to Microsoft to sign in for a sender: "Start authentication".
func (e *Enrol) startConsent(w http.ResponseWriter, r *http.Request) {
	match := r.PathValue("match")
	p := view.Page{Title: "enrol.continue.title", Nav: "senders", Self: senderPath(match), Subject: match}
	id, ok := e.session(w, r, p)
	if !ok {
		return
	}
	to, err := e.console.StartConsent(r.Context(), match, id)
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.goTo(w, r, to, p)
}

func (e *Enrol) startAdminConsent(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	p := view.Page{Title: "enrol.continue.title", Nav: "tenants", Self: tenantPath(name), Subject: name}
	id, ok := e.session(w, r, p)
	if !ok {
		return
	}
	to, err := e.console.StartAdminConsent(r.Context(), name, id)
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.goTo(w, r, to, p)
}

// invited is a one-time link as it is handed out.
type invited struct {
	console.Invitation
	Back string
}

// invite shows a new one-time link. It is shown in the answer alone, so it stands in no address and no history.
func (e *Enrol) invite(w http.ResponseWriter, r *http.Request) {
	match := r.PathValue("match")
	i, err := e.console.Invite(r.Context(), match)
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.view.Render(w, r, view.Page{
		Template: "enrol_invited", Title: "enrol.invited.title", Subject: match, Nav: "senders", Self: senderPath(match), Data: invited{*i, senderPath(match)},
	})
}

func (e *Enrol) startDevice(w http.ResponseWriter, r *http.Request) {
	match := r.PathValue("match")
	d, err := e.console.StartDevice(r.Context(), match)
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.view.Redirect(w, r, senderPath(match)+"/device/"+url.PathEscape(d.ID), "", "")
}

// deviceView is a sign-in by device code.
type deviceView struct {
	console.Device
	Match, Path, Back, Test string
	Pending                 bool
}

func (e *Enrol) device(w http.ResponseWriter, r *http.Request) {
	match := r.PathValue("match")
	d, err := e.console.Device(r.Context(), r.PathValue("id"))
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	v := deviceView{Device: *d, Match: match, Back: senderPath(match), Test: senderPath(match) + "/test", Pending: d.State == "pending"}
	v.Path = v.Back + "/device/" + url.PathEscape(d.ID)
	e.view.Render(w, r, view.Page{
		Template: "enrol_device", Part: "device-state", Title: "enrol.device.title", Subject: match, Nav: "senders", Data: v,
	})
}

// asking is a one-time link as the mailbox's owner sees it.
type asking struct {
	console.Invitation
	Relay  string // by its name in the link
	Action string
	Valid  bool // the link is good
}

// invitation asks the owner of a mailbox. Looking at it does not use the link up: mail filters open links too.
func (e *Enrol) invitation(w http.ResponseWriter, r *http.Request) {
	code := r.PathValue("code")
	i, err := e.console.Invitation(r.Context(), code)
	p := view.Page{Template: "enrol_invitation", Title: "enrol.invitation.title", Bare: true}
	switch {
	case errors.Is(err, console.ErrExpired) || errors.Is(err, console.ErrNotFound):
		p.Status, p.Data = http.StatusGone, asking{}
	case err != nil:
		e.failBare(w, r, err)
		return
	default:
		d := asking{Invitation: *i, Relay: r.Host, Action: "/consent/" + url.PathEscape(code), Valid: time.Now().Before(i.Expires)}
		if u, err := url.Parse(i.URL); err == nil && u.Host != "" {
			d.Relay = u.Host
		}
		if !d.Valid {
			p.Status = http.StatusGone
		}
		p.Data = d
	}
	e.view.Render(w, r, p)
}

func (e *Enrol) acceptInvitation(w http.ResponseWriter, r *http.Request) {
	p := view.Page{Title: "enrol.continue.title", Bare: true, Self: overPath}
	id, ok := e.session(w, r, p)
	if !ok {
		return
	}
	to, err := e.console.AcceptInvitation(r.Context(), r.PathValue("code"), id)
	switch {
	case errors.Is(err, console.ErrExpired) || errors.Is(err, console.ErrNotFound):
		e.view.Render(w, r, view.Page{
			Template: "enrol_invitation", Title: "enrol.invitation.title", Bare: true, Self: overPath, Status: http.StatusGone, Data: asking{},
		})
	case err != nil:
		e.failBare(w, r, err)
	default:
		e.goTo(w, r, to, p)
	}
}

// overPath is where people without an account end up who look at a page twice that there is but once.
const overPath = "/consent/over"

func (e *Enrol) over(w http.ResponseWriter, r *http.Request) {
	e.view.Render(w, r, view.Page{Template: "enrol_callback", Title: "enrol.callback.title", Bare: true, Data: outcome{Over: true}})
}

// outcome is what became of a sign-in.
type outcome struct {
	console.Consented
	OK      bool
	Over    bool // nothing is known of it any more
	Empty   bool // the browser brought nothing back
	Expired bool // started too long ago, already finished, or in another browser
	Problem *console.Problem
	Member  bool   // somebody who may look at the relay
	Back    string // of the sender or tenant
	Test    string // where a test is sent
	Guide   string
}

// callback takes what the browser brings back from Microsoft. Anybody may send a browser here with anything: what it brings is the
// console's to judge, and nothing of it is shown but what the console says.
func (e *Enrol) callback(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	member := access.From(r.Context()) != nil
	p := view.Page{Template: "enrol_callback", Title: "enrol.callback.title", Bare: !member, Self: overPath}
	if member {
		p.Self = "/senders"
	}
	if !q.Has("state") && !q.Has("code") && !q.Has("error") {
		p.Status, p.Data = http.StatusBadRequest, outcome{Empty: true, Member: member}
		e.view.Render(w, r, p)
		return
	}
	r, cancel := within(r, askTime)
	defer cancel()
	done, err := e.console.FinishConsent(r.Context(), console.Callback{
		Session: access.Browser(r.Context()), State: q.Get("state"), Code: q.Get("code"), Issuer: q.Get("iss"), Error: q.Get("error"),
		ErrorDescription: q.Get("error_description"), AdminConsent: q.Has("admin_consent"), Tenant: q.Get("tenant"),
	})
	if err != nil {
		d := outcome{Member: member}
		e.refusal(&d, r, err)
		p.Status, p.Data = http.StatusUnprocessableEntity, d
		e.view.Render(w, r, p)
		return
	}
	d := outcome{Consented: *done, OK: true, Member: member && !done.Invited}
	if d.Member {
		d.Back, p.Nav = tenantPath(done.Tenant), "tenants"
		if done.Sender != "" {
			d.Back, p.Nav = senderPath(done.Sender), "senders"
			d.Test = d.Back + "/test"
			d.Guide = query("/guide", "tenant", done.Tenant, "sender", done.Sender)
		}
		p.Self = d.Back
	} else {
		p.Bare, p.Self = true, overPath
	}
	p.Data = d
	e.view.Render(w, r, p)
}

// refusal says in words why a sign-in was not accepted.
func (e *Enrol) refusal(d *outcome, r *http.Request, err error) {
	if refused, ok := errors.AsType[*status.Error](err); ok {
		d.Problem = view.Explain(refused)
		return
	}
	if errors.Is(err, console.ErrExpired) || errors.Is(err, console.ErrNotFound) {
		d.Expired = true
		return
	}
	e.logFailure(r, err)
}

// failBare is Fail for people without an account: it names no page of the relay.
func (e *Enrol) failBare(w http.ResponseWriter, r *http.Request, err error) {
	d := outcome{}
	e.refusal(&d, r, err)
	e.view.Render(w, r, view.Page{
		Template: "enrol_callback", Title: "enrol.callback.title", Bare: true, Self: overPath, Status: http.StatusServiceUnavailable, Data: d,
	})
}
