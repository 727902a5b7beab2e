package signin

import (
	"embed"
	"net/http"
	"strings"

	"relayd/pkg/sandbox/directory"
)

//go:embed pages/*.html pages/*.css
var files embed.FS

// page is what a template shows.
type page struct {
	Name        string // of the template
	Title, Text string
	Account     string           // the address typed so far
	Users       []directory.User // to pick from
	User        directory.User   // who is signed in
	Permissions []permission
	Problem     string // what went wrong
	Number      int    // of the problem
	Code        string // of a device

	// What follows is the same for all pages of a flow.
	Tenant, App string // names
	Flow        bool   // there is an app to go back to
	Admin       bool   // for the whole tenant
	Hidden      map[string]string
}

// permission is one line of what an app asks for.
type permission struct{ ID, Title, Text string }

// describe lists what a flow asks for in a person's words.
func describe(f *flow) []permission {
	var list []permission
	for _, name := range f.scopes.Permissions {
		title, text := name, "Allows the app to use "+name+" of "+f.scopes.Resource+" on your behalf."
		if strings.EqualFold(name, "SMTP.Send") {
			title = "Send emails from mailboxes using SMTP AUTH"
			text = "Allows the app to send email from your mailbox, and from those you may send as, by SMTP AUTH."
		}
		list = append(list, permission{name, title, text})
	}
	if f.scopes.OpenID || f.scopes.Profile {
		list = append(list, permission{"openid", "View your basic profile", "Allows the app to see your name and your user name."})
	}
	if f.scopes.Email {
		list = append(list, permission{"email", "View your email address", "Allows the app to read your primary email address."})
	}
	if f.scopes.Offline {
		list = append(list, permission{
			"offline_access", "Maintain access to data you have given it access to",
			"Allows the app to use these permissions even when you are not currently using the app.",
		})
	}
	if f.admin && strings.HasSuffix(f.scope, "/.default") {
		list = append(list, permission{
			"SMTP.SendAsApp", "Application access for sending emails via SMTP AUTH",
			"Allows the app to send email as any mailbox it has been given access to, without a signed-in user.",
		})
	}
	return list
}

// show writes a page of a flow. Nothing on it runs, and nothing of it may be kept or framed.
func (p *Pages) show(w http.ResponseWriter, _ *http.Request, status int, f *flow, view page) {
	view.Flow, view.Admin, view.Hidden = f.refuse != nil, f.admin, f.hidden
	view.App, view.Tenant = f.app.Name, f.tenant.Name
	if view.Tenant == "" {
		view.Tenant = f.tenant.ID
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	if err := p.templates.ExecuteTemplate(w, view.Name+".html", view); err != nil {
		p.dir.Log().Warn("the page was cut short")
	}
}

// serveStyle is the style sheet of the pages.
func (p *Pages) serveStyle(w http.ResponseWriter, _ *http.Request) {
	style, err := files.ReadFile("pages/sign-in.css")
	if err != nil {
		http.Error(w, "Internal Server Error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write(style)
}
