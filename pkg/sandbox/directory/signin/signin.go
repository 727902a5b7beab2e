// Package signin is what people see of the sandbox's Entra ID: signing in, the permissions an app asks for, the
// administrator's consent, the page a device code is typed into, and signing out.
//
// The pages are plain HTML and need no script. They carry the field and button names of Microsoft's (loginfmt, passwd,
// idSIButton9, idBtn_Back), so that a browser test written against these works there. Everything a sign-in is about stays
// in the address of its page; a cookie names the session.
package signin

import (
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/directory/ticket"
	"relayd/pkg/sandbox/fault"
)

const cookieName = "SBXAUTH"

// Pages serves people. Its methods may be called from any goroutine.
type Pages struct {
	dir       *directory.Directory
	tickets   *ticket.Store
	templates *template.Template
}

// New returns the pages of a directory. An error means that a template is broken.
func New(dir *directory.Directory, tickets *ticket.Store) (*Pages, error) {
	templates, err := template.ParseFS(files, "pages/*.html")
	if err != nil {
		return nil, fmt.Errorf("read the sign-in pages: %w", err)
	}
	return &Pages{dir: dir, tickets: tickets, templates: templates}, nil
}

// Routes registers the pages.
func (p *Pages) Routes(mux *http.ServeMux) {
	handle := func(pattern string, serve http.HandlerFunc) {
		mux.Handle(pattern, http.NewCrossOriginProtection().Handler(serve)) // a form of another site signs nobody in
	}
	for _, method := range []string{"GET", "POST"} {
		handle(method+" /{tenant}/oauth2/v2.0/authorize", p.serveAuthorize)
		handle(method+" /{tenant}/v2.0/adminconsent", p.serveAdminConsent)
		handle(method+" /devicelogin", p.serveDevice)
		handle(method+" /common/oauth2/deviceauth", p.serveDevice)
	}
	handle("GET /{tenant}/oauth2/v2.0/logout", p.serveLogout)
	handle("GET /sandbox/sign-in.css", p.serveStyle)
}

// flow is one sign-in: who asks for what, and what becomes of the outcome.
type flow struct {
	tenant directory.Tenant
	app    directory.App
	scope  string
	scopes directory.Scopes
	prompt string
	hint   string            // address to begin with
	hidden map[string]string // fields every form of the flow carries
	admin  bool              // an administrator is asked for the whole tenant's consent

	// confirm asks even a user who has consented before: the sign-in began on another device.
	confirm bool

	// agree ends the flow: the user is signed in and has consented. refuse ends it with an error the app is told;
	// subcode is one of OpenID's.
	agree  func(w http.ResponseWriter, r *http.Request, who ticket.Subject)
	refuse func(w http.ResponseWriter, r *http.Request, refused *refusal.Refusal, subcode string)
}

// serve shows the next page of a flow, or ends it.
func (p *Pages) serve(w http.ResponseWriter, r *http.Request, f *flow) {
	occasion := fault.Occasion{Stage: fault.StageAuthorize, App: f.app.ID, Login: r.PostFormValue("loginfmt")}
	if rule, hit := p.dir.Faults().Due(occasion); hit && p.strike(w, r, rule, f) {
		return
	}
	if r.Method == http.MethodPost {
		switch {
		case r.PostForm.Has("ucaccept"):
			p.takeConsent(w, r, f)
			return
		case r.PostForm.Has("return"):
			p.takeReturn(w, r, f)
			return
		case r.PostForm.Has("back"):
			p.show(w, r, http.StatusOK, f, page{Name: "account", Account: r.PostForm.Get("loginfmt"), Users: p.choices(f)})
			return
		case r.PostForm.Has("passwd"):
			p.takePassword(w, r, f)
			return
		case r.PostForm.Has("loginfmt"):
			p.takeAccount(w, r, f)
			return
		}
	}
	session, signedIn := p.session(r, f.tenant)
	wrongUser := f.hint != "" && !strings.EqualFold(f.hint, session.User)
	switch {
	case f.prompt == "none" && (!signedIn || wrongUser):
		f.refuse(w, r, refusal.New(50058), "")
	case !signedIn || wrongUser || f.prompt == "login" || f.prompt == "select_account":
		account := f.hint
		if account == "" {
			account = session.User // nobody, or who is to be asked once more
		}
		p.show(w, r, http.StatusOK, f, page{Name: "account", Account: account, Users: p.choices(f)})
	default:
		p.proceed(w, r, f, session)
	}
}

// session finds out who is signed in to a tenant.
func (p *Pages) session(r *http.Request, t directory.Tenant) (ticket.Subject, bool) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return ticket.Subject{}, false
	}
	who, ok := p.tickets.SignedIn(cookie.Value, t.ID)
	if !ok || who.Epoch != p.dir.Epoch(who.ObjectID) {
		return ticket.Subject{}, false
	}
	u, refused := t.User(who.User)
	if refused != nil || u.ObjectID != who.ObjectID {
		return ticket.Subject{}, false
	}
	return who, true
}

// choices are the users a person may pick from instead of typing, the usual ones if the tenant lists none.
func (p *Pages) choices(f *flow) []directory.User {
	const most = 50
	users := f.tenant.Users
	for _, m := range f.tenant.Mailboxes {
		if u, refused := f.tenant.User(m); refused == nil && !strings.HasPrefix(m, "*") && !f.tenant.UsersOnly {
			users = append(users[:len(users):len(users)], u)
		}
	}
	return users[:min(most, len(users))]
}

// takeAccount has been told who signs in and asks for the password.
func (p *Pages) takeAccount(w http.ResponseWriter, r *http.Request, f *flow) {
	account := strings.TrimSpace(r.PostForm.Get("loginfmt"))
	if _, refused := p.known(f, account); refused != nil {
		p.show(w, r, http.StatusOK, f, page{Name: "account", Account: account, Users: p.choices(f), Problem: p.told(f, refused)})
		return
	}
	p.show(w, r, http.StatusOK, f, page{Name: "password", Account: account})
}

// known finds a user who may at least try: one whose account is no one's is told at once, the rest after the password.
func (p *Pages) known(f *flow, account string) (directory.User, *refusal.Refusal) {
	if account == "" {
		return directory.User{}, &refusal.Refusal{Number: 90014, Value: "username"}
	}
	u, refused := p.dir.User(&f.tenant, account)
	if refused == nil && u.State == "unknown" {
		refused = u.Refused()
	}
	return u, refused
}

// takePassword signs a user in. Nobody is let in by another site's form: see [Pages.Routes].
func (p *Pages) takePassword(w http.ResponseWriter, r *http.Request, f *flow) {
	account := strings.TrimSpace(r.PostForm.Get("loginfmt"))
	u, refused := p.known(f, account)
	if refused != nil {
		p.show(w, r, http.StatusOK, f, page{Name: "account", Account: account, Users: p.choices(f), Problem: p.told(f, refused)})
		return
	}
	given := r.PostForm.Get("passwd")
	if given == "" || u.Password != "" && given != u.Password {
		p.show(w, r, http.StatusOK, f, page{Name: "password", Account: account, Problem: p.told(f, refusal.New(50126))})
		return
	}
	if refused := u.Refused(); refused != nil {
		p.dir.Log().Info("sign-in refused", zap.String("login", u.Mail), zap.Int("aadsts", refused.Number))
		p.show(w, r, http.StatusOK, f, page{Name: "refused", Account: account, Problem: p.told(f, refused), Number: refused.Number})
		return
	}
	who := ticket.Subject{
		Tenant: f.tenant.ID, App: f.app.ID, User: u.Mail, ObjectID: u.ObjectID, Epoch: p.dir.Epoch(u.ObjectID), Scope: f.scope,
	}
	old := ""
	if cookie, err := r.Cookie(cookieName); err == nil {
		old = cookie.Value
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // the same port speaks HTTP, where a Secure cookie would be lost
		Name: cookieName, Value: p.tickets.SignIn(old, who), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	p.dir.Log().Info("signed in", zap.String("login", u.Mail))
	p.proceed(w, r, f, who)
}

// proceed asks a signed-in user for consent, if it is not there, or ends the flow.
func (p *Pages) proceed(w http.ResponseWriter, r *http.Request, f *flow, who ticket.Subject) {
	who.App, who.Scope = f.app.ID, f.scope
	u, refused := f.tenant.User(who.User)
	if refused == nil {
		refused = u.Refused()
	}
	consented := !f.admin && f.tenant.Consented(f.app.ID, u.Mail, f.scopes)
	view := page{Account: u.Mail, User: u, Permissions: describe(f), Number: 90094}
	switch {
	case refused != nil && f.prompt == "none":
		f.refuse(w, r, refused, "")
	case refused != nil:
		view.Name, view.Problem, view.Number = "refused", p.told(f, refused), refused.Number
		p.show(w, r, http.StatusOK, f, view)
	case consented && f.confirm:
		view.Name = "confirm"
		p.show(w, r, http.StatusOK, f, view)
	case consented && f.prompt != "consent":
		f.agree(w, r, who)
	case f.prompt == "none":
		f.refuse(w, r, refusal.New(65001), "")
	case (f.admin || f.tenant.AdminConsentRequired && !consented) && !u.Admin:
		view.Name, view.Problem = "approval", p.told(f, refusal.New(90094))
		p.show(w, r, http.StatusOK, f, view)
	default:
		view.Name = "consent"
		p.show(w, r, http.StatusOK, f, view)
	}
}

// takeConsent has the user's answer to what the app asks for.
func (p *Pages) takeConsent(w http.ResponseWriter, r *http.Request, f *flow) {
	who, ok := p.session(r, f.tenant)
	if !ok || !strings.EqualFold(who.User, r.PostForm.Get("account")) {
		p.show(w, r, http.StatusOK, f, page{Name: "account", Users: p.choices(f), Problem: "Your session has ended. Sign in again."})
		return
	}
	if r.PostForm.Get("ucaccept") != "1" {
		f.refuse(w, r, refusal.New(65004), "cancel")
		return
	}
	u, refused := f.tenant.User(who.User)
	if refused == nil {
		refused = u.Refused()
	}
	everyone := f.admin || r.PostForm.Get("everyone") == "1"
	if refused == nil && (everyone || f.tenant.AdminConsentRequired && !f.tenant.Consented(f.app.ID, u.Mail, f.scopes)) && !u.Admin {
		refused = refusal.New(90094)
	}
	if refused != nil {
		f.refuse(w, r, refused, "")
		return
	}
	consent := directory.Consent{App: f.app.ID, User: u.Mail, Scopes: f.scopes.Names()}
	if everyone {
		consent.User = ""
	}
	if err := p.dir.Consent(f.tenant.ID, consent); err != nil {
		http.Error(w, "the app or the tenant is gone", http.StatusGone)
		return
	}
	p.dir.Log().Info("consented", zap.String("login", u.Mail), zap.Bool("everyone", everyone))
	who.App, who.Scope = f.app.ID, f.scope
	f.agree(w, r, who)
}

// takeReturn sends the error a page showed back to the app.
func (p *Pages) takeReturn(w http.ResponseWriter, r *http.Request, f *flow) {
	number := 90094
	if u, refused := p.dir.User(&f.tenant, r.PostForm.Get("account")); refused != nil {
		number = refused.Number
	} else if refused := u.Refused(); refused != nil {
		number = refused.Number
	}
	f.refuse(w, r, &refusal.Refusal{Number: number, Value: r.PostForm.Get("account")}, "")
}

// told is a refusal as a person reads it.
func (p *Pages) told(f *flow, refused *refusal.Refusal) string {
	return refused.Tell(refusal.About{Client: f.app.ID, Tenant: f.tenant.ID}).Text
}

// serveLogout ends the browser's session.
func (p *Pages) serveLogout(w http.ResponseWriter, r *http.Request) {
	if cookie, err := r.Cookie(cookieName); err == nil {
		p.tickets.SignOut(cookie.Value)
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // as above
		Name: cookieName, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	back := r.URL.Query().Get("post_logout_redirect_uri")
	if t, ok := p.dir.Tenant(r.PathValue("tenant")); ok && back != "" {
		for _, a := range t.Apps {
			if a.Redirects(back) {
				http.Redirect(w, r, back, http.StatusFound) //nolint:gosec // an address an app has registered
				return
			}
		}
	}
	p.show(w, r, http.StatusOK, &flow{}, page{Name: "message", Title: "You signed out", Text: "You signed out of your account."})
}

// strike does what a rule says in place of a page, and reports whether it did.
func (p *Pages) strike(w http.ResponseWriter, r *http.Request, rule fault.Rule, f *flow) bool {
	if rule.Delay > 0 && !fault.Sleep(r.Context(), time.Duration(rule.Delay)) {
		return true
	}
	switch {
	case rule.Blackhole:
		<-r.Context().Done() // the browser, or the sandbox, gave up
	case rule.Close != "":
		panic(http.ErrAbortHandler) // documented way to cut the connection without a reply
	case rule.AADSTS != 0:
		f.refuse(w, r, &refusal.Refusal{Number: rule.AADSTS, Value: f.scope}, "")
	case rule.Status != 0:
		w.WriteHeader(rule.Status)
		w.Write([]byte(rule.Raw))
	default:
		return false
	}
	return true
}

// redirect sends the browser to uri with more parameters.
func redirect(w http.ResponseWriter, r *http.Request, uri string, more url.Values) {
	u, err := url.Parse(uri)
	if err != nil {
		http.Error(w, "the redirect URI is none", http.StatusBadRequest)
		return
	}
	q := u.Query()
	for name, values := range more {
		if values[0] != "" {
			q[name] = values
		}
	}
	u.RawQuery = q.Encode()
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, u.String(), http.StatusFound) //nolint:gosec // proven by party
}
