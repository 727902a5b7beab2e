package enrol

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/enrol/paste"
	"relayd/pkg/admin/page/enrol/powershell"
	"relayd/pkg/admin/page/view"
)

// The ways of coming to send, as the address says them. Those of an app alone differ in who lets it: permissions of each mailbox, or
// a role of Exchange Online; the two are not to be mixed.
const (
	wayDelegated = "" // a person signs in for each mailbox
	wayClassic   = "classic"
	wayRBAC      = "rbac"
)

// The steps.
const (
	stepRegister   = "register"
	stepSecret     = "secret"
	stepPermission = "permission"
	stepEnter      = "enter"
	stepPrincipal  = "principal"
	stepSMTPAuth   = "smtpauth"
	stepSender     = "sender"
	stepConsent    = "consent"
	stepTest       = "test"
	stepSendAs     = "sendas"
)

// place is where a person is in the guide. All of it stands in the address, so that the guide can be left and resumed.
type place struct {
	Way, Tenant, Sender, Object, Other string
}

func (p place) path() string {
	return query("/guide", "way", p.Way, "tenant", p.Tenant, "sender", p.Sender, "object", p.Object, "other", p.Other)
}

// step is one step of the guide.
type step struct {
	Name    string
	Number  int
	Title   string   // key
	Items   []string // keys of what is to be done
	State   string   // done, open; empty: not known
	Missing string   // key of what must come first; empty: nothing
	Copies  []copying
	Scripts []copying
	Check   bool // something can be checked

	Asked    bool // Findings are of just now
	Findings []console.Finding
	Action   string // of the check
}

// copying is a text to copy.
type copying struct{ ID, Label, Text string }

// guideView is the guide with what is known so far.
type guideView struct {
	place
	Form                        *view.Form
	Ways                        []wayLink
	Steps                       []*step
	Portal                      string
	Known                       *tenantView // the tenant, where there is one
	Mailbox                     *senderView // the sender, where there is one
	EnterPath, AddPath, OtherAt string
	Current                     string // the first step that is not done, as a link
	Checked                     *step  // the one that was checked just now
}

type wayLink struct {
	Label, Help, Href string
	Current           bool
}

func (e *Enrol) guide(w http.ResponseWriter, r *http.Request) {
	g, err := e.newGuide(r)
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.showGuide(w, r, g)
}

func (e *Enrol) showGuide(w http.ResponseWriter, r *http.Request, g *guideView) {
	e.view.Render(w, r, view.Page{Template: "enrol_guide", Part: "guide-result", Title: "enrol.guide.title", Nav: "guide", Self: g.path(), Data: g})
}

// checkGuide says what is still missing for one step.
func (e *Enrol) checkGuide(w http.ResponseWriter, r *http.Request) {
	values, ok := e.view.ReadForm(w, r)
	if !ok {
		return
	}
	asking, cancel := within(r, askTime)
	defer cancel()
	g, err := e.newGuide(r)
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	i := slices.IndexFunc(g.Steps, func(s *step) bool { return s.Check && s.Name == values.Get("step") })
	if i < 0 {
		e.view.Fail(w, r, console.ErrNotFound)
		return
	}
	s := g.Steps[i]
	g.Checked, s.Asked = s, true
	switch {
	case s.Missing != "":
	case g.ofTenant(s.Name):
		s.Findings, err = e.console.CheckTenant(asking.Context(), g.Tenant)
	default:
		err = e.console.Examine(asking.Context(), g.Sender, func(f console.Finding) { s.Findings = append(s.Findings, f) })
	}
	if s.Findings, err = withFailure(s.Findings, err); err != nil {
		e.view.Fail(w, r, err)
		return
	}
	if s.Missing == "" {
		s.State = "done"
		if slices.ContainsFunc(s.Findings, func(f console.Finding) bool { return f.Result == "fail" }) {
			s.State = "open"
		}
	}
	e.showGuide(w, r, g)
}

// ofTenant reports whether a step is checked by asking Entra ID about the app; the others by walking a message's way.
func (g *guideView) ofTenant(name string) bool {
	return slices.Contains([]string{stepRegister, stepSecret, stepPermission, stepEnter}, name)
}

// newGuide reads the address, and looks up what it names. What is no longer there is left out.
func (e *Enrol) newGuide(r *http.Request) (*guideView, error) {
	q := r.URL.Query()
	g := &guideView{place: place{
		Way: q.Get("way"), Tenant: q.Get("tenant"), Sender: paste.Address(q.Get("sender")), Object: strings.TrimSpace(q.Get("object")),
		Other: paste.Address(q.Get("other")),
	}}
	if g.Way != wayClassic && g.Way != wayRBAC {
		g.Way = wayDelegated
	}
	tenants, err := e.console.Tenants(r.Context())
	if err != nil {
		return nil, err
	}
	g.choose(tenants)
	if g.Sender != "" {
		s, err := e.console.Sender(r.Context(), g.Sender)
		if err != nil && !errors.Is(err, console.ErrNotFound) {
			return nil, err
		}
		if err == nil && (g.Known == nil || s.Tenant == g.Tenant) {
			v := newSenderView(s)
			g.Mailbox = &v
		}
	}
	g.fill(tenants)
	g.Steps = g.steps(e.redirectURI(r))
	g.number()
	return g, nil
}

// choose takes the tenant the address names, and its way; where it names none, the only one there is.
func (g *guideView) choose(tenants []console.Tenant) {
	fits := func(t *console.Tenant) bool { return (t.Grant == grantDelegated) == (g.Way == wayDelegated) }
	found := -1
	for i := range tenants {
		switch {
		case g.Tenant == tenants[i].Name:
			found = i
		case g.Tenant == "" && found < 0 && len(tenants) == 1 && fits(&tenants[i]):
			found = i
		}
	}
	g.Tenant = ""
	if found < 0 {
		return
	}
	t := newTenantView(&tenants[found])
	g.Known, g.Tenant = &t, t.Name
	switch {
	case t.Delegate:
		g.Way = wayDelegated
	case g.Way == wayDelegated:
		g.Way = wayClassic
	}
}

func (g *guideView) fill(tenants []console.Tenant) {
	fields := []view.Field{
		{Name: "tenant", Label: "enrol.field.tenant", Type: "select", Value: g.Tenant,
			Choices: append([]view.Choice{{Value: "", Label: "enrol.guide.new"}}, tenantChoices(tenants)...)},
		{Name: "sender", Label: "enrol.field.mailbox", Help: "enrol.help.mailbox", Type: "email", Value: g.Sender, Placeholder: "app@contoso.com"},
	}
	if g.Way != wayDelegated {
		fields = append(fields, view.Field{Name: "object", Label: "enrol.field.object", Help: "enrol.help.object", Value: g.Object})
	}
	fields = append(fields, view.Field{Name: "way", Label: "enrol.guide.way", Type: "hidden", Value: g.Way})
	g.Form = view.NewForm(fields...)
	for _, way := range []string{wayDelegated, wayClassic, wayRBAC} {
		name := way
		if name == "" {
			name = grantDelegated
		}
		p := place{Way: way, Sender: g.Sender}
		if g.Known != nil && g.Known.Delegate == (way == wayDelegated) {
			p.Tenant = g.Tenant
		}
		g.Ways = append(g.Ways, wayLink{"enrol.way." + name, "enrol.way." + name + ".help", p.path(), way == g.Way})
	}
	cloud := ""
	if g.Known != nil {
		cloud = g.Known.Cloud
	}
	g.Portal = portal(cloud)
	way := g.Way
	if way == wayDelegated {
		way = grantDelegated // the forms come back here when a way is named
	}
	g.EnterPath = query("/tenants/new", "way", way)
	g.AddPath = query("/senders/new", "way", way, "tenant", g.Tenant, "match", g.Sender)
}

// portal is where apps of a cloud are registered (Microsoft, "Authentication and national clouds").
func portal(cloud string) string {
	switch cloud {
	case "gcc-high", "dod":
		return "https://portal.azure.us"
	case "china":
		return "https://portal.azure.cn"
	}
	return "https://entra.microsoft.com"
}

// steps are the way from an empty relay to mail that arrives.
func (g *guideView) steps(redirectURI string) []*step {
	app := powershell.App{Name: "relayd", ObjectID: g.Object}
	if g.Known != nil {
		app.Cloud, app.TenantID, app.ClientID = g.Known.Cloud, g.Known.TenantID, g.Known.ClientID
	}
	noTenant, noMailbox := "", ""
	if g.Known == nil {
		noTenant = "enrol.missing.tenant"
	}
	if g.Sender == "" || strings.HasPrefix(g.Sender, "*@") {
		noMailbox = "enrol.missing.mailbox"
	}
	noSender := noMailbox
	if noSender == "" && g.Mailbox == nil {
		noSender = "enrol.missing.sender"
	}
	connect := powershell.Connect(app)
	register := &step{Name: stepRegister, Items: items("register", "1", "2", "3app", "4"), Missing: noTenant, Check: true}
	secret := &step{Name: stepSecret, Items: items("secret", "1", "2", "3", "4"), Missing: noTenant, Check: true}
	permission := &step{Name: stepPermission, Items: items("permission", "1", "2", "3", "4", "5"), Missing: noTenant, Check: true}
	enter := &step{Name: stepEnter, Items: items("enter", "1"), Missing: noTenant, Check: true, State: state(g.Known != nil)}
	smtpauth := &step{Name: stepSMTPAuth, Items: items("smtpauth", "1", "2"), Missing: noSender, Check: true}
	if noMailbox == "" {
		smtpauth.Scripts = []copying{{"smtpauth", "enrol.script.smtpauth", connect + powershell.SMTPAuth(g.Sender)}}
	}
	sender := &step{Name: stepSender, Items: items("sender", "1"), Missing: noMailbox, State: state(g.Mailbox != nil)}
	test := &step{Name: stepTest, Items: items("test", "1", "2"), Missing: noSender, Check: true}
	if g.Way == wayDelegated {
		register.Items = items("register", "1", "2", "3", "4", "5")
		register.Copies = []copying{{"redirect-uri", "enrol.redirect_uri", redirectURI}}
		consent := &step{Name: stepConsent, Items: items("consent", "1", "2", "3"), Missing: noSender, Check: true}
		if g.Mailbox != nil {
			consent.State = state(g.Mailbox.Consent != nil && g.Mailbox.Consent.Problem == nil)
		}
		return []*step{register, secret, permission, enter, sender, smtpauth, consent, test, g.sendAs(connect, noMailbox)}
	}
	principal := &step{Name: stepPrincipal, Items: items("principal", "1", "2"), Missing: noTenant, Check: true}
	permission.Items = items("permission", "classic1", "classic2", "4", "5")
	grant, label := powershell.Classic, "enrol.script.classic"
	if g.Way == wayRBAC {
		permission.Items = items("permission", "rbac1", "rbac2")
		principal.Items = items("principal", "1", "rbac2")
		grant, label = func(mailbox string) string { return powershell.RBAC(app, mailbox) }, "enrol.script.rbac"
	}
	if principal.Missing == "" {
		principal.Missing = noMailbox
	}
	if principal.Missing == "" {
		principal.Scripts = []copying{
			{"principal", "enrol.script.principal", connect + powershell.Principal(app)}, {"rights", label, grant(g.Sender)},
		}
		principal.Missing = noSender // for the check alone
	}
	return []*step{register, secret, permission, enter, sender, principal, smtpauth, test}
}

// sendAs is the step for mail from another address than that of who signed in.
func (g *guideView) sendAs(connect, missing string) *step {
	s := &step{Name: stepSendAs, Items: items("sendas", "1", "2", "3", "4"), Missing: missing}
	if missing == "" && g.Other != "" {
		s.Scripts = []copying{{"sendas", "enrol.script.sendas", connect + powershell.SendAs(g.Other, g.Sender)}}
		if g.Mailbox != nil {
			g.OtherAt = query(g.Mailbox.Path, "from", g.Other) + "#send-as"
		}
	}
	return s
}

func items(step string, names ...string) []string {
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = "enrol.guide." + step + "." + name
	}
	return keys
}

func state(done bool) string {
	if done {
		return "done"
	}
	return "open"
}

// number counts the steps, titles them, and finds the one to go on with.
func (g *guideView) number() {
	for i, s := range g.Steps {
		s.Number = i + 1
		s.Title = "enrol.guide." + s.Name + ".title"
		s.Action = g.path() + "#step-" + s.Name
		if g.Current == "" && s.State == "open" {
			g.Current = "#step-" + s.Name
		}
	}
}
