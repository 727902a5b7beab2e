package signin

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/directory/ticket"
)

// party finds tenant and app of a request, and checks where the browser would be sent back to. Until that is proven, an
// error is shown here and nowhere else (RFC 6749, 4.1.2.1).
func (p *Pages) party(w http.ResponseWriter, r *http.Request) (t directory.Tenant, a directory.App, ok bool) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	q := r.URL.Query()
	refused := func() *refusal.Refusal {
		if r.ParseForm() != nil {
			return refusal.New(9002313)
		}
		id := r.PathValue("tenant")
		if slices.Contains([]string{"common", "organizations", "consumers"}, id) {
			return refusal.New(50194)
		}
		if t, ok = p.dir.Tenant(id); !ok {
			return refusal.New(90002)
		}
		if q.Get("client_id") == "" {
			return &refusal.Refusal{Number: 900144, Value: "client_id"}
		}
		if a, ok = t.App(q.Get("client_id")); !ok {
			return refusal.New(700016)
		}
		switch uri := q.Get("redirect_uri"); {
		case len(a.RedirectURIs) == 0:
			return refusal.New(500113)
		case len(q["redirect_uri"]) != 1 || !a.Redirects(uri):
			return &refusal.Refusal{Number: 50011, Value: uri}
		}
		return nil
	}()
	if refused != nil {
		p.dead(w, r, refused, refusal.About{Client: q.Get("client_id"), Tenant: r.PathValue("tenant")})
	}
	return t, a, refused == nil
}

// dead is the page of an error that nobody else is told.
func (p *Pages) dead(w http.ResponseWriter, r *http.Request, refused *refusal.Refusal, about refusal.About) {
	told := refused.Tell(about)
	p.show(w, r, http.StatusBadRequest, &flow{}, page{
		Name: "error", Title: "Sign in", Problem: told.Description(), Number: told.Number,
	})
}

// serveAuthorize is the authorization endpoint (RFC 6749, 4.1; RFC 7636; OpenID Connect Core, 3.1.2).
func (p *Pages) serveAuthorize(w http.ResponseWriter, r *http.Request) {
	t, a, ok := p.party(w, r)
	if !ok {
		return
	}
	q := r.URL.Query()
	f := &flow{tenant: t, app: a, scope: q.Get("scope"), prompt: q.Get("prompt"), hint: q.Get("login_hint")}
	back := url.Values{"state": {q.Get("state")}}
	f.refuse = func(w http.ResponseWriter, r *http.Request, refused *refusal.Refusal, subcode string) {
		told := refused.Tell(refusal.About{Client: a.ID, Tenant: t.ID})
		back.Set("error", redirectCode(told))
		back.Set("error_subcode", subcode)
		back.Set("error_description", told.Description())
		redirect(w, r, q.Get("redirect_uri"), back)
	}
	f.agree = func(w http.ResponseWriter, r *http.Request, who ticket.Subject) {
		back.Set("code", p.tickets.NewCode(ticket.Code{
			Subject: who, RedirectURI: q.Get("redirect_uri"), Challenge: q.Get("code_challenge"),
			Method: q.Get("code_challenge_method"), Nonce: q.Get("nonce"),
		}))
		back.Set("session_state", refusal.GUID())
		redirect(w, r, q.Get("redirect_uri"), back)
	}
	refused := checkAuthorize(q)
	if refused == nil {
		f.scopes, refused = directory.ParseScopes(f.scope)
	}
	if refused != nil {
		f.refuse(w, r, refused, "")
		return
	}
	p.serve(w, r, f)
}

// checkAuthorize checks the parameters the app is told about.
func checkAuthorize(q url.Values) *refusal.Refusal {
	for name, values := range q {
		if len(values) > 1 {
			return &refusal.Refusal{Number: 9002313, Value: name}
		}
	}
	challenge, method := q.Get("code_challenge"), q.Get("code_challenge_method")
	const least, most = 43, 128 // RFC 7636, 4.2
	switch {
	case q.Get("response_type") != "code":
		return &refusal.Refusal{Number: 700054, Value: q.Get("response_type")}
	case q.Get("response_mode") != "" && q.Get("response_mode") != "query":
		return &refusal.Refusal{Number: 90014, Value: "response_mode"}
	case q.Get("scope") == "":
		return &refusal.Refusal{Number: 900144, Value: "scope"}
	case method != "" && method != "S256" && method != "plain" || method != "" && challenge == "":
		return refusal.New(50147)
	case challenge != "" && (len(challenge) < least || len(challenge) > most):
		return refusal.New(50147)
	case !slices.Contains([]string{"", "none", "login", "select_account", "consent"}, q.Get("prompt")):
		return &refusal.Refusal{Number: 90014, Value: "prompt"}
	}
	return nil
}

// redirectCode is the error an app reads in its redirect. What the token endpoint calls invalid_grant is access_denied
// there, or asks for another sign-in.
func redirectCode(told refusal.Told) string {
	switch {
	case told.Number == 65001:
		return "consent_required"
	case told.Number == 50076 || told.Number == 50079:
		return "interaction_required"
	case told.Code == "invalid_grant" && told.Number != 9002313:
		return "access_denied"
	case told.Code == "invalid_grant" || told.Code == "invalid_client":
		return "invalid_request"
	}
	return told.Code
}

// serveAdminConsent is the page an administrator consents for the whole tenant on.
func (p *Pages) serveAdminConsent(w http.ResponseWriter, r *http.Request) {
	t, a, ok := p.party(w, r)
	if !ok {
		return
	}
	q := r.URL.Query()
	f := &flow{tenant: t, app: a, scope: q.Get("scope"), admin: true, prompt: "select_account"}
	back := url.Values{"admin_consent": {"True"}, "tenant": {t.ID}, "state": {q.Get("state")}}
	f.refuse = func(w http.ResponseWriter, r *http.Request, refused *refusal.Refusal, subcode string) {
		told := refused.Tell(refusal.About{Client: a.ID, Tenant: t.ID})
		back.Set("error", redirectCode(told))
		back.Set("error_subcode", subcode)
		back.Set("error_description", told.Description())
		redirect(w, r, q.Get("redirect_uri"), back)
	}
	f.agree = func(w http.ResponseWriter, r *http.Request, _ ticket.Subject) {
		if strings.HasSuffix(f.scope, "/.default") { // everything registered, the app's own role among it
			if err := p.dir.GrantRoles(t.ID, a.ID); err != nil {
				http.Error(w, "the app or the tenant is gone", http.StatusGone)
				return
			}
		}
		back.Set("scope", f.scope)
		redirect(w, r, q.Get("redirect_uri"), back)
	}
	if f.scope == "" {
		f.scope = "https://outlook.office365.com/.default"
	}
	var refused *refusal.Refusal
	if f.scopes, refused = directory.ParseScopes(f.scope); refused != nil {
		f.refuse(w, r, refused, "")
		return
	}
	p.serve(w, r, f)
}
