package enrol

import (
	"errors"
	"net/http"
	"net/url"
	"time"

	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/status"
)

// tenantView is a tenant as its page shows it.
type tenantView struct {
	console.Tenant
	Path     string
	Senders  string // where its senders are listed
	Guide    string
	Count    int
	Delegate bool
	File     bool
	Findings []console.Finding
	Asked    bool // Findings are of just now
}

func newTenantView(t *console.Tenant) tenantView {
	v := tenantView{Tenant: *t, Path: tenantPath(t.Name), Count: t.Senders, Delegate: t.Grant == grantDelegated, File: t.Origin == console.OriginFile}
	v.Senders = query("/senders", "tenant", t.Name)
	way := ""
	if !v.Delegate {
		way = wayClassic
	}
	v.Guide = query("/guide", "way", way, "tenant", t.Name)
	return v
}

// The grants.
const (
	grantDelegated = "delegated"
	grantApp       = "client_credentials"
)

func (e *Enrol) tenants(w http.ResponseWriter, r *http.Request) {
	all, err := e.console.Tenants(r.Context())
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	views := make([]tenantView, len(all))
	for i := range all {
		views[i] = newTenantView(&all[i])
	}
	e.view.Render(w, r, view.Page{Template: "enrol_tenants", Title: "enrol.tenants.title", Nav: "tenants", Data: views})
}

func (e *Enrol) tenant(w http.ResponseWriter, r *http.Request) { e.showTenant(w, r, nil) }

// showTenant shows a tenant; findings, where not nil, were made just now.
func (e *Enrol) showTenant(w http.ResponseWriter, r *http.Request, findings []console.Finding) {
	t, err := e.console.Tenant(r.Context(), r.PathValue("name"))
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	v := newTenantView(t)
	v.Findings, v.Asked = findings, findings != nil
	e.view.Render(w, r, view.Page{
		Template: "enrol_tenant", Part: "tenant-findings", Title: "enrol.tenant.title", Subject: t.Name, Nav: "tenants", Self: v.Path, Data: v,
	})
}

func (e *Enrol) checkTenant(w http.ResponseWriter, r *http.Request) {
	asking, cancel := within(r, askTime)
	defer cancel()
	findings, err := e.console.CheckTenant(asking.Context(), r.PathValue("name"))
	if findings, err = withFailure(findings, err); err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.showTenant(w, r, findings)
}

// withFailure returns findings, never nil, with what ended them as the last where it has words for people; else the error.
func withFailure(findings []console.Finding, err error) ([]console.Finding, error) {
	if findings == nil {
		findings = []console.Finding{}
	}
	if failed, ok := errors.AsType[*status.Error](err); ok {
		return append(findings, console.Finding{
			Step: string(failed.Stage), Result: "fail", Detail: failed.Text, Cause: failed.Cause, Advice: failed.Advice,
		}), nil
	}
	return findings, err
}

// tenantEdit is the form of a tenant.
type tenantEdit struct {
	Form           *view.Form
	Main, Advanced []*view.Field
	Open           bool   // Advanced is shown from the start
	Name           string // of the one that is changed; empty: a new one
	Action, Back   string
	RedirectURI    string
	Notes          []string
}

// mainFields is how many fields of the form come before the advanced ones.
const mainFields = 7

// newTenantForm returns the form with what is in force in it, but for the secret.
func newTenantForm(in console.TenantInput, secretHelp string) *view.Form {
	return view.NewForm(
		view.Field{Name: "name", Label: "enrol.field.name", Help: "enrol.help.name", Value: in.Name, Required: true, Placeholder: "contoso"},
		view.Field{Name: "grant", Label: "enrol.field.grant", Help: "enrol.help.grant", Type: "select", Value: in.Grant, Required: true, Choices: []view.Choice{
			{Value: grantDelegated, Label: "enrol.grant.delegated"}, {Value: grantApp, Label: "enrol.grant.client_credentials"},
		}},
		view.Field{Name: "cloud", Label: "enrol.field.cloud", Help: "enrol.help.cloud", Type: "select", Value: in.Cloud, Required: true, Choices: []view.Choice{
			{Value: "worldwide", Label: "enrol.cloud.worldwide"}, {Value: "gcc-high", Label: "enrol.cloud.gcc-high"},
			{Value: "dod", Label: "enrol.cloud.dod"}, {Value: "china", Label: "enrol.cloud.china"},
		}},
		view.Field{Name: "tenant_id", Label: "enrol.field.tenant_id", Help: "enrol.help.tenant_id", Value: in.TenantID, Required: true},
		view.Field{Name: "client_id", Label: "enrol.field.client_id", Help: "enrol.help.client_id", Value: in.ClientID, Required: true},
		view.Field{Name: "client_secret", Label: "enrol.field.client_secret", Help: secretHelp, Type: "password", Autocomplete: "new-password"},
		view.Field{Name: "credential_expires", Label: "enrol.field.credential_expires", Help: "enrol.help.credential_expires", Type: "date", Value: in.CredentialExpires},

		view.Field{Name: "cert_file", Label: "enrol.field.cert_file", Help: "enrol.help.cert_file", Value: in.CertFile},
		view.Field{Name: "key_file", Label: "enrol.field.key_file", Help: "enrol.help.key_file", Value: in.KeyFile},
		view.Field{Name: "authority", Label: "enrol.field.authority", Help: "enrol.help.authority", Value: in.Authority},
		view.Field{Name: "scope", Label: "enrol.field.scope", Help: "enrol.help.scope", Value: in.Scope},
		view.Field{Name: "smtp_server", Label: "enrol.field.smtp_server", Help: "enrol.help.smtp_server", Value: in.SMTPServer},
		view.Field{Name: "ca_file", Label: "enrol.field.ca_file", Help: "enrol.help.ca_file", Value: in.CAFile},
	)
}

// tenantInput is what stands in a form.
func tenantInput(v url.Values) console.TenantInput {
	return console.TenantInput{
		Name: v.Get("name"), Cloud: v.Get("cloud"), TenantID: v.Get("tenant_id"), ClientID: v.Get("client_id"), Grant: v.Get("grant"),
		ClientSecret: v.Get("client_secret"), CertFile: v.Get("cert_file"), KeyFile: v.Get("key_file"), CredentialExpires: v.Get("credential_expires"),
		Authority: v.Get("authority"), Scope: v.Get("scope"), SMTPServer: v.Get("smtp_server"), CAFile: v.Get("ca_file"),
	}
}

// asInput is a tenant in force as it would be entered.
func asInput(t *console.Tenant) console.TenantInput {
	in := console.TenantInput{
		Name: t.Name, Cloud: t.Cloud, TenantID: t.TenantID, ClientID: t.ClientID, Grant: t.Grant, CertFile: t.CertFile, KeyFile: t.KeyFile,
		Authority: t.Authority, Scope: t.Scope, SMTPServer: t.SMTPServer, CAFile: t.CAFile,
	}
	if !t.CredentialExpires.IsZero() && t.Credential != "certificate" { // that one says itself when it expires
		in.CredentialExpires = t.CredentialExpires.Format(time.DateOnly)
	}
	return in
}

func (e *Enrol) tenantForm(w http.ResponseWriter, r *http.Request) {
	in := console.TenantInput{Cloud: "worldwide", Grant: grantDelegated}
	if way := r.URL.Query().Get("way"); way == wayClassic || way == wayRBAC {
		in.Grant = grantApp
	}
	name, help := r.PathValue("name"), "enrol.help.client_secret"
	if name != "" {
		t, err := e.console.Tenant(r.Context(), name)
		if err == nil && t.Origin == console.OriginFile {
			err = console.ErrFile
		}
		if err != nil {
			e.view.Fail(w, r, err)
			return
		}
		in, help = asInput(t), "enrol.help.client_secret_keep"
	}
	e.showTenantForm(w, r, newTenantForm(in, help), nil)
}

func (e *Enrol) showTenantForm(w http.ResponseWriter, r *http.Request, form *view.Form, notes []string) {
	name, way := r.PathValue("name"), r.URL.Query().Get("way")
	d := tenantEdit{Form: form, Main: form.Fields[:mainFields], Advanced: form.Fields[mainFields:], Name: name, Notes: notes, RedirectURI: e.redirectURI(r)}
	p := view.Page{Template: "enrol_tenant_form", Title: "enrol.tenant.new", Nav: "tenants", Subject: name}
	d.Action, d.Back = query("/tenants/new", "way", way), "/tenants"
	if name != "" {
		p.Title = "enrol.tenant.edit"
		d.Action, d.Back = tenantPath(name)+"/edit", tenantPath(name)
	} else if way != "" {
		d.Back = query("/guide", "way", way)
	}
	for _, f := range d.Advanced {
		d.Open = d.Open || f.Mistake != ""
	}
	if len(form.Wrong())+len(form.Other) > 0 {
		p.Status = http.StatusUnprocessableEntity
	}
	p.Self, p.Data = d.Action, d
	e.view.Render(w, r, p)
}

func (e *Enrol) saveTenant(w http.ResponseWriter, r *http.Request) {
	values, ok := e.view.ReadForm(w, r)
	if !ok {
		return
	}
	r, cancel := within(r, pageTime)
	defer cancel()
	name, in := r.PathValue("name"), tenantInput(values)
	if name != "" {
		if err := e.followCloud(r, name, &in); err != nil {
			e.view.Fail(w, r, err)
			return
		}
	}
	entered := in.ClientSecret != ""
	read := e.paste.Tenant(&in)
	var err error
	if len(read.Mistakes) > 0 {
		err = e.mistakes(w, r, read.Mistakes)
	} else {
		err = e.console.SaveTenant(r.Context(), name, in)
	}
	if err == nil {
		e.tenantSaved(w, r, in.Name, len(read.Notes) > 0)
		return
	}
	help := "enrol.help.client_secret"
	switch {
	case entered:
		help = "enrol.help.client_secret_again"
	case name != "":
		help = "enrol.help.client_secret_keep"
	}
	in.ClientSecret = ""
	form := newTenantForm(in, help)
	if !form.Take(err) {
		e.view.Fail(w, r, err)
		return
	}
	e.showTenantForm(w, r, form, e.notes(w, r, read.Notes))
}

func (e *Enrol) tenantSaved(w http.ResponseWriter, r *http.Request, name string, tidied bool) {
	notice, to := "enrol.notice.tenant_saved", tenantPath(name)
	if tidied {
		notice = "enrol.notice.tenant_tidied"
	}
	if way := r.URL.Query().Get("way"); way != "" {
		to = query("/guide", "way", way, "tenant", name)
	}
	e.view.Redirect(w, r, to, notice, name)
}

// followCloud takes back the addresses of the cloud a tenant was in, where the form names another cloud and left them as they were:
// they were shown, not chosen.
func (e *Enrol) followCloud(r *http.Request, name string, in *console.TenantInput) error {
	t, err := e.console.Tenant(r.Context(), name)
	if err != nil || t.Cloud == in.Cloud {
		return err
	}
	for _, f := range []struct {
		now *string
		was string
	}{{&in.Authority, t.Authority}, {&in.Scope, t.Scope}, {&in.SMTPServer, t.SMTPServer}} {
		if *f.now == f.was {
			*f.now = ""
		}
	}
	return nil
}

// confirmation asks before something is done for good.
type confirmation struct {
	What, Text, Button string // keys
	Subject            string
	Action, Back       string
	Queued             int
}

func (e *Enrol) confirmTenant(w http.ResponseWriter, r *http.Request) {
	t, err := e.console.Tenant(r.Context(), r.PathValue("name"))
	switch {
	case err != nil:
	case t.Origin == console.OriginFile:
		err = console.ErrFile
	case t.Senders > 0:
		err = console.ErrInUse
	}
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.view.Render(w, r, view.Page{
		Template: "enrol_confirm", Title: "enrol.confirm.tenant.title", Subject: t.Name, Nav: "tenants", Data: confirmation{
			What: "enrol.confirm.tenant.title", Text: "enrol.confirm.tenant.text", Button: "enrol.remove", Subject: t.Name,
			Action: tenantPath(t.Name) + "/remove", Back: tenantPath(t.Name),
		},
	})
}

func (e *Enrol) removeTenant(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if err := e.console.RemoveTenant(r.Context(), name); err != nil {
		e.view.Fail(w, r, err)
		return
	}
	e.view.Redirect(w, r, "/tenants", "enrol.notice.tenant_removed", name)
}

// redirectURI is what to enter in Entra, as well as it is known.
func (e *Enrol) redirectURI(r *http.Request) string {
	if c, ok := e.console.(Redirector); ok {
		if uri := c.RedirectURI(); uri != "" {
			return uri
		}
	}
	if all, err := e.console.Tenants(r.Context()); err == nil && len(all) > 0 && all[0].RedirectURI != "" {
		return all[0].RedirectURI
	}
	u := url.URL{Scheme: "http", Host: r.Host, Path: callbackPath}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	return u.String()
}
