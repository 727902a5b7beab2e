package enrol

import (
	"net/http"
	"strconv"
	"strings"

	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/enrol/paste"
	"relayd/pkg/admin/page/enrol/powershell"
	"relayd/pkg/admin/page/view"
)

// pageSize is how many senders a page lists.
const pageSize = 100

// senderView is a sender as its page shows it.
type senderView struct {
	console.Sender
	Path, TenantPath, Guide string
	Mailbox                 string // that signs in; empty: each address of a domain for itself
	Delegate, File, Domain  bool
	Findings                []console.Finding
	Asked                   bool       // Findings are of just now
	Address                 string     // that was examined
	SendAsForm              *view.Form // to add another address
	SendAsScript            string     // PowerShell that grants Send As; empty: nothing to grant
	Others                  []link     // entries that go by this mailbox
	Notes                   []string
}

// link is an address with where it leads.
type link struct{ Href, Text string }

func newSenderView(s *console.Sender) senderView {
	v := senderView{
		Sender: *s, Path: senderPath(s.Match), TenantPath: tenantPath(s.Tenant), Mailbox: string(s.Login),
		Delegate: s.Grant == grantDelegated, File: s.Origin == console.OriginFile, Domain: strings.HasPrefix(s.Match, "*@"),
	}
	if v.Mailbox == "" && !v.Domain {
		v.Mailbox = s.Match
	}
	way := ""
	if !v.Delegate {
		way = wayClassic
	}
	v.Guide = query("/guide", "way", way, "tenant", s.Tenant, "sender", s.Match)
	for _, other := range s.SendAs {
		v.Others = append(v.Others, link{senderPath(other), other})
	}
	if v.Mailbox != "" && !strings.EqualFold(v.Mailbox, s.Match) {
		v.SendAsScript = powershell.SendAs(strings.TrimPrefix(s.Match, "*@"), v.Mailbox)
		if v.Domain {
			v.SendAsScript = ""
		}
	}
	return v
}

// senderList is a page of the list of senders.
type senderList struct {
	Rows             []senderView
	Total, From, To  int
	Query            *view.Form
	Next, Prev       string
	Filtered, Tenant bool // a filter is set; there is a tenant to add senders to
}

func (e *Enrol) senders(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	offset, _ := strconv.Atoi(q.Get("offset")) // what is no number is the beginning
	asked := console.SenderQuery{
		Text: strings.TrimSpace(q.Get("q")), Tenant: q.Get("tenant"), State: q.Get("state"), Offset: max(offset, 0), Limit: pageSize,
	}
	tenants, err := e.console.Tenants(r.Context())
	var found *console.SenderPage
	if err == nil {
		found, err = e.console.Senders(r.Context(), asked)
	}
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	d := senderList{Total: found.Total, Tenant: len(tenants) > 0, Filtered: asked.Text != "" || asked.Tenant != "" || asked.State != ""}
	for i := range found.Senders {
		d.Rows = append(d.Rows, newSenderView(&found.Senders[i]))
	}
	if len(d.Rows) > 0 {
		d.From, d.To = asked.Offset+1, asked.Offset+len(d.Rows)
	}
	at := func(offset int) string {
		text := strconv.Itoa(offset)
		if offset == 0 {
			text = ""
		}
		return query("/senders", "q", asked.Text, "tenant", asked.Tenant, "state", asked.State, "offset", text)
	}
	if last := (d.Total - 1) / pageSize * pageSize; d.Total > 0 && asked.Offset > last { // some have gone meanwhile
		http.Redirect(w, r, at(last), http.StatusFound)
		return
	}
	if d.To > 0 && d.To < d.Total {
		d.Next = at(d.To)
	}
	if asked.Offset > 0 && d.To > 0 {
		d.Prev = at(max(0, asked.Offset-pageSize))
	}
	d.Query = view.NewForm(
		view.Field{Name: "q", Label: "enrol.field.q", Type: "search", Value: asked.Text},
		view.Field{Name: "state", Label: "enrol.field.state", Type: "select", Value: asked.State, Choices: stateChoices()},
		view.Field{Name: "tenant", Label: "enrol.field.tenant", Type: "select", Value: asked.Tenant,
			Choices: append([]view.Choice{{Value: "", Label: "enrol.all"}}, tenantChoices(tenants)...)},
	)
	e.view.Render(w, r, view.Page{Template: "enrol_senders", Part: "senders-list", Title: "enrol.senders.title", Nav: "senders", Data: d})
}

func stateChoices() []view.Choice {
	choices := []view.Choice{{Value: "", Label: "enrol.all"}}
	for _, state := range []string{
		console.SenderReady, console.SenderConsent, console.SenderParked, console.SenderHeld, console.SenderPaused, console.SenderShadowed,
	} {
		choices = append(choices, view.Choice{Value: state, Label: "enrol.state." + state})
	}
	return choices
}

func tenantChoices(tenants []console.Tenant) []view.Choice {
	var choices []view.Choice
	for i := range tenants {
		choices = append(choices, view.Choice{Value: tenants[i].Name, Label: tenants[i].Name})
	}
	return choices
}

func (e *Enrol) sender(w http.ResponseWriter, r *http.Request) {
	e.showSender(w, r, "", func(*senderView) {})
}

// showSender shows a sender, after change; part is what htmx gets of the page.
func (e *Enrol) showSender(w http.ResponseWriter, r *http.Request, part string, change func(*senderView)) {
	s, err := e.console.Sender(r.Context(), r.PathValue("match"))
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	v := newSenderView(s)
	v.SendAsForm = newSendAsForm(r.URL.Query().Get("from"))
	change(&v)
	p := view.Page{Template: "enrol_sender", Part: part, Title: "enrol.sender.title", Subject: s.Match, Nav: "senders", Self: v.Path, Data: v}
	if len(v.SendAsForm.Wrong())+len(v.SendAsForm.Other) > 0 {
		p.Status = http.StatusUnprocessableEntity
	}
	e.view.Render(w, r, p)
}

func newSendAsForm(address string) *view.Form {
	return view.NewForm(view.Field{
		Name: "match", Label: "enrol.field.send_as", Help: "enrol.help.send_as", Type: "email", Value: address, Required: true,
	})
}

// addSendAs adds an entry for another address that signs in as this sender's mailbox.
func (e *Enrol) addSendAs(w http.ResponseWriter, r *http.Request) {
	values, ok := e.view.ReadForm(w, r)
	if !ok {
		return
	}
	s, err := e.console.Sender(r.Context(), r.PathValue("match"))
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	in := console.SenderInput{Match: values.Get("match"), Tenant: s.Tenant, Login: newSenderView(s).Mailbox}
	if in.Login == "" { // each mailbox of a domain for itself
		e.view.Fail(w, r, console.ErrNotFound)
		return
	}
	read := e.paste.Sender(&in)
	if err = e.console.SaveSender(r.Context(), "", in); err == nil {
		e.view.Redirect(w, r, senderPath(in.Match), "enrol.notice.send_as_added", in.Match)
		return
	}
	form := newSendAsForm(in.Match)
	if !form.Take(err) {
		e.view.Fail(w, r, err)
		return
	}
	e.showSender(w, r, "", func(v *senderView) { v.SendAsForm, v.Notes = form, e.notes(w, r, read.Notes) })
}

// examine walks a message's way and shows what it found.
func (e *Enrol) examine(w http.ResponseWriter, r *http.Request) {
	values, ok := e.view.ReadForm(w, r)
	if !ok {
		return
	}
	asking, cancel := within(r, askTime)
	defer cancel()
	address := addressOr(values.Get("address"), r.PathValue("match"))
	var findings []console.Finding
	err := e.console.Examine(asking.Context(), address, func(f console.Finding) { findings = append(findings, f) })
	if findings, err = withFailure(findings, err); err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.showSender(w, r, "sender-findings", func(v *senderView) { v.Findings, v.Asked, v.Address = findings, true, address })
}

// senderEdit is the form of a sender.
type senderEdit struct {
	Form         *view.Form
	Match        string // of the one that is changed; empty: a new one
	Action, Back string
	Notes        []string
	None         bool // there is no tenant yet
}

func newSenderForm(in console.SenderInput, tenants []console.Tenant) *view.Form {
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	return view.NewForm(
		view.Field{Name: "match", Label: "enrol.field.match", Help: "enrol.help.match", Value: in.Match, Required: true, Placeholder: "app@contoso.com"},
		view.Field{Name: "tenant", Label: "enrol.field.tenant", Help: "enrol.help.tenant", Type: "select", Value: in.Tenant, Required: true, Choices: tenantChoices(tenants)},
		view.Field{Name: "login", Label: "enrol.field.login", Help: "enrol.help.login", Value: in.Login},
		view.Field{Name: "fallback", Label: "enrol.field.fallback", Help: "enrol.help.fallback", Value: in.Fallback},
		view.Field{Name: "recipients_per_day", Label: "enrol.field.recipients_per_day", Help: "enrol.help.recipients_per_day", Type: "number", Min: "1",
			Value: number(in.RecipientsPerDay)},
		view.Field{Name: "messages_per_minute", Label: "enrol.field.messages_per_minute", Help: "enrol.help.messages_per_minute", Type: "number", Min: "1",
			Value: number(in.MessagesPerMinute)},
		view.Field{Name: "connections", Label: "enrol.field.connections", Help: "enrol.help.connections", Type: "number", Min: "1",
			Value: number(in.Connections)},
	)
}

func (e *Enrol) senderForm(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	in := console.SenderInput{Tenant: q.Get("tenant"), Match: q.Get("match")}
	if match := r.PathValue("match"); match != "" {
		s, err := e.console.Sender(r.Context(), match)
		if err == nil && s.Origin == console.OriginFile {
			err = console.ErrFile
		}
		if err != nil {
			e.view.Fail(w, r, err)
			return
		}
		in = console.SenderInput{
			Match: s.Match, Tenant: s.Tenant, Login: string(s.Login), Connections: s.Connections, MessagesPerMinute: s.MessagesPerMinute,
			RecipientsPerDay: s.RecipientsPerDay, Fallback: string(s.Fallback),
		}
	}
	e.showSenderForm(w, r, func(tenants []console.Tenant) *view.Form { return newSenderForm(in, tenants) }, nil)
}

// showSenderForm shows what make makes of the tenants there are.
func (e *Enrol) showSenderForm(w http.ResponseWriter, r *http.Request, form func([]console.Tenant) *view.Form, notes []string) {
	tenants, err := e.console.Tenants(r.Context())
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	match, way := r.PathValue("match"), r.URL.Query().Get("way")
	d := senderEdit{Form: form(tenants), Match: match, Notes: notes, None: len(tenants) == 0}
	p := view.Page{Template: "enrol_sender_form", Title: "enrol.sender.new", Nav: "senders", Subject: match}
	d.Action, d.Back = query("/senders/new", "way", way), "/senders"
	if match != "" {
		p.Title = "enrol.sender.edit"
		d.Action, d.Back = senderPath(match)+"/edit", senderPath(match)
	} else if way != "" {
		d.Back = query("/guide", "way", way, "tenant", d.Form.Value("tenant"))
	}
	if len(d.Form.Wrong())+len(d.Form.Other) > 0 {
		p.Status = http.StatusUnprocessableEntity
	}
	p.Self, p.Data = d.Action, d
	e.view.Render(w, r, p)
}

func (e *Enrol) saveSender(w http.ResponseWriter, r *http.Request) {
	values, ok := e.view.ReadForm(w, r)
	if !ok {
		return
	}
	r, cancel := within(r, pageTime)
	defer cancel()
	in := console.SenderInput{Match: values.Get("match"), Tenant: values.Get("tenant"), Login: values.Get("login"), Fallback: values.Get("fallback")}
	read := e.paste.Sender(&in)
	var wrong console.Mistakes
	for _, f := range []struct {
		name string
		n    *int
	}{{"connections", &in.Connections}, {"messages_per_minute", &in.MessagesPerMinute}, {"recipients_per_day", &in.RecipientsPerDay}} {
		text := strings.TrimSpace(values.Get(f.name))
		n, err := strconv.Atoi(text)
		if text != "" && (err != nil || n < 1) {
			wrong = append(wrong, console.Mistake{Field: f.name, Text: e.view.Say(w, r, "enrol.mistake.number")})
		}
		*f.n = n
	}
	var err error = wrong
	if len(wrong) == 0 {
		err = e.console.SaveSender(r.Context(), r.PathValue("match"), in)
	}
	if err == nil {
		e.senderSaved(w, r, in, len(read.Notes) > 0)
		return
	}
	if probe := newSenderForm(in, nil); !probe.Take(err) {
		e.view.Fail(w, r, err)
		return
	}
	e.showSenderForm(w, r, func(tenants []console.Tenant) *view.Form {
		form := newSenderForm(in, tenants)
		for _, name := range []string{"connections", "messages_per_minute", "recipients_per_day"} {
			form.Field(name).Value = values.Get(name) // as typed, number or not
		}
		form.Take(err)
		return form
	}, e.notes(w, r, read.Notes))
}

func (e *Enrol) senderSaved(w http.ResponseWriter, r *http.Request, in console.SenderInput, tidied bool) {
	notice, to := "enrol.notice.sender_saved", senderPath(in.Match)
	if tidied {
		notice = "enrol.notice.sender_tidied"
	}
	if way := r.URL.Query().Get("way"); way != "" {
		to = query("/guide", "way", way, "tenant", in.Tenant, "sender", in.Match)
	}
	e.view.Redirect(w, r, to, notice, in.Match)
}

// confirmSender asks before an entry or its consent goes.
func (e *Enrol) confirmSender(act string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, err := e.console.Sender(r.Context(), r.PathValue("match"))
		if err == nil && act == "remove" && s.Origin == console.OriginFile {
			err = console.ErrFile
		}
		if err != nil {
			e.view.Fail(w, r, err)
			return
		}
		d := confirmation{Subject: s.Match, Action: senderPath(s.Match) + "/" + act, Back: senderPath(s.Match), Queued: s.Queued}
		d.What, d.Text, d.Button = "enrol.confirm.sender.title", "enrol.confirm.sender.text", "enrol.remove"
		if act == "revoke" {
			d.What, d.Text, d.Button = "enrol.confirm.revoke.title", "enrol.confirm.revoke.text", "enrol.revoke"
		}
		e.view.Render(w, r, view.Page{Template: "enrol_confirm", Title: d.What, Subject: s.Match, Nav: "senders", Data: d})
	}
}

// done answers an act on a sender: its page with a notice, or why it was not done.
func (e *Enrol) done(w http.ResponseWriter, r *http.Request, err error, to, notice string) {
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.view.Redirect(w, r, to, notice, r.PathValue("match"))
}

func (e *Enrol) removeSender(w http.ResponseWriter, r *http.Request) {
	e.done(w, r, e.console.RemoveSender(r.Context(), r.PathValue("match")), "/senders", "enrol.notice.sender_removed")
}

func (e *Enrol) pause(w http.ResponseWriter, r *http.Request) {
	match := r.PathValue("match")
	e.done(w, r, e.console.Pause(r.Context(), match), senderPath(match), "enrol.notice.paused")
}

func (e *Enrol) resume(w http.ResponseWriter, r *http.Request) {
	match := r.PathValue("match")
	e.done(w, r, e.console.Resume(r.Context(), match), senderPath(match), "enrol.notice.resumed")
}

func (e *Enrol) revoke(w http.ResponseWriter, r *http.Request) {
	match := r.PathValue("match")
	e.done(w, r, e.console.Revoke(r.Context(), match), senderPath(match), "enrol.notice.revoked")
}

// addressOr returns the address a person entered, or else the other one.
func addressOr(entered, other string) string {
	if address := paste.Address(entered); address != "" {
		return address
	}
	return other
}
