package admin

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/login"
	"relayd/pkg/admin/problem"
)

// The headers of every answer.
const (
	// probePolicy is for what is no page: nothing of it runs, whatever a browser takes it for.
	probePolicy = "default-src 'none'; frame-ancestors 'none'"
	// pagePolicy lets a page use its own files and nothing else, with nothing inline. Chromium holds form-action against every
	// redirect behind a form, too: a form that
	// leads to another site is answered with a page that goes there.
	pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
		"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
	// permissions are those of the features a page could ask a person for.
	permissions = "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=(), serial=(), hid=(), midi=()"
	// strictTransport makes browsers come by TLS for a year. Not for other names of the domain, which are not the relay's.
	strictTransport = "max-age=31536000"
)

// guard stands before every page: headers, methods, the Host, requests of other sites, and who asks.
type guard struct {
	probes pages
	logins *login.Logins // nil: there are but probes
	api    http.Handler  // below /api/; nil: none
	page   http.Handler  // all else; nil: none
	server string
	local  bool   // the listener is on a loopback address
	host   string // as configured, in lower case
	known  http.Handler
}

func (g *guard) protect(l *login.Logins, api, page http.Handler) {
	g.logins, g.api, g.page = l, api, page
	g.known = l.Identify(http.HandlerFunc(g.route))
}

// ServeHTTP implements http.Handler.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", g.server)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", probePolicy)
	h.Set("Referrer-Policy", "same-origin") // no-referrer would make browsers hide the Origin of our own forms
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if r.TLS != nil {
		h.Set("Strict-Transport-Security", strictTransport)
	}
	probe := g.probes[r.URL.Path] != nil || g.logins == nil
	switch {
	case !g.knows(r.Host, probe):
		// A page elsewhere can make a browser here ask this address under a name of its own (DNS rebinding).
		const text = "this address answers only to its own name; ask for it as localhost, by its number, or as admin.public_url says"
		http.Error(w, text, http.StatusMisdirectedRequest)
	case probe || g.isNothing(r.URL.Path):
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD are allowed here", http.StatusMethodNotAllowed)
			return
		}
		g.probes.ServeHTTP(w, r)
	default:
		g.protected(w, r)
	}
}

// isNothing reports whether a path has nobody to answer it.
func (g *guard) isNothing(path string) bool {
	return g.page == nil && !login.Ours(path) && (g.api == nil || !strings.HasPrefix(path, api.Root))
}

// knows reports whether a Host field is one to be asked by. Probes of other machines ask by whatever name they have.
func (g *guard) knows(host string, probe bool) bool {
	if probe && !g.local {
		return true
	}
	if g.logins != nil && g.logins.Knows(host) {
		return true
	}
	return g.local && login.IsOwn(host, g.host)
}

// protected lets those requests through that no page of another site can have made, to be answered by who is known for whom.
func (g *guard) protected(w http.ResponseWriter, r *http.Request) {
	if err := g.logins.Origins().Check(r); err != nil {
		problem.New(http.StatusForbidden, "a page of another site may not change anything here").Write(w)
		return
	}
	if r.Body == http.NoBody {
		// The deadline has served the header. net/http watches for a client that hangs up while it is answered, and takes a
		// deadline that passes for that.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a recorder has none
	}
	g.known.ServeHTTP(w, r)
}

// route answers requests of which it is known who makes them.
func (g *guard) route(w http.ResponseWriter, r *http.Request) {
	path, who := r.URL.Path, access.From(r.Context())
	h := w.Header()
	if g.api != nil && strings.HasPrefix(path, api.Root) {
		g.api.ServeHTTP(w, r)
		return
	}
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Permissions-Policy", permissions)
	to, elsewhere := g.logins.Canonical(r)
	switch {
	case elsewhere:
		http.Redirect(w, r, to, http.StatusTemporaryRedirect) //nolint:gosec // another name of this machine
	case login.Ours(path):
		g.logins.ServeHTTP(w, r)
	case g.page == nil:
		http.Error(w, "there is no page here", http.StatusNotFound)
	case who != nil || isOpen(path):
		g.page.ServeHTTP(w, r)
	case r.Header.Get("HX-Request") == "true": // a part of a page: the whole of it has to go
		h.Set("HX-Redirect", login.PathTo(shownPath(r)))
		problem.New(http.StatusUnauthorized, "your session has ended; log in again").Write(w)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		http.Redirect(w, r, login.PathTo(r.URL.RequestURI()), http.StatusSeeOther) //nolint:gosec // PathTo leads nowhere else
	default:
		http.Redirect(w, r, login.Path, http.StatusSeeOther)
	}
}

// isOpen reports whether a path needs no login: files of the page, and what people without an account here come to.
func isOpen(path string) bool {
	return strings.HasPrefix(path, "/static/") || strings.HasPrefix(path, "/consent/") || path == "/oauth/callback" || path == "/favicon.ico"
}

// shownPath is the path of the page that a part was asked for by.
func shownPath(r *http.Request) string {
	u, err := url.Parse(r.Header.Get("HX-Current-URL"))
	if err != nil {
		return "/"
	}
	return u.RequestURI()
}
