package login

import (
	"crypto/subtle"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/admin/problem"
)

//go:embed templates words
var files embed.FS

func newView(version string, log *zap.Logger) (*view.Renderer, error) {
	return view.New(view.Options{Files: []fs.FS{files}, Version: version, Logger: log})
}

// shownPage is what the page to log in shows.
type shownPage struct {
	Refused  string // key of the word that says why; empty: nobody was
	User     string // who was refused
	Out      bool   // has logged out just now
	Provider string // host of the OpenID provider; empty: none
	Start    string // path of the way there
}

// maxPath bounds a return path, in octets.
const maxPath = 2000

// returnPath is the path to go to behind a login, where it is one of this site's own, else the first page.
func returnPath(to string) string {
	u, err := url.Parse(to)
	if err != nil || len(to) > maxPath || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || u.Host != "" || u.Scheme != "" ||
		u.User != nil || ours(u.Path) || strings.ContainsFunc(to, func(r rune) bool { return r == '\\' || r <= ' ' || r == 0x7f }) {
		return "/"
	}
	return to
}

// PathTo is the page to log in, from which the browser comes back to a path of this site.
func PathTo(to string) string {
	if to = returnPath(to); to == "/" {
		return Path
	}
	return Path + "?" + url.Values{"to": {to}}.Encode()
}

// ServeHTTP answers the paths of this package, and reports nothing for others: see Ours.
func (l *Logins) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	want := http.MethodGet
	if r.URL.Path == LogoutPath {
		want = http.MethodPost
	}
	if r.Method != want && (r.Method != http.MethodHead || r.URL.Path != Path) {
		w.Header().Set("Allow", want)
		problem.New(http.StatusMethodNotAllowed, "only %s is allowed here", want).Write(w)
		return
	}
	switch r.URL.Path {
	case Path:
		l.enter(w, r)
	case StartPath:
		l.startFlow(w, r)
	case CallbackPath:
		l.finishFlow(w, r)
	case LogoutPath:
		l.leave(w, r)
	default:
		http.NotFound(w, r)
	}
}

// Ours reports whether ServeHTTP answers a path.
func Ours(path string) bool { return ours(path) }

// enter shows how to log in, or takes a one-time link.
func (l *Logins) enter(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case q.Has("code"):
		l.enterByLink(w, r, q.Get("code"))
	case access.From(r.Context()) != nil && access.From(r.Context()).Session != "" && !q.Has("lang"):
		http.Redirect(w, r, returnPath(q.Get("to")), http.StatusSeeOther) //nolint:gosec // returnPath leads nowhere else
	default:
		l.show(w, r, http.StatusOK, shownPage{Out: q.Has("out")})
	}
}

// show renders the page to log in.
func (l *Logins) show(w http.ResponseWriter, r *http.Request, status int, p shownPage) {
	to := returnPath(r.URL.Query().Get("to"))
	if in := l.force.Load().oidc; in != nil {
		if u, err := url.Parse(in.Issuer); err == nil {
			p.Provider = u.Host
		}
		p.Start = StartPath + "?" + url.Values{"to": {to}}.Encode()
	}
	title := "login.title"
	if p.Refused != "" {
		title = "login.title.refused"
	}
	l.view.Render(w, r, view.Page{Template: "login", Title: title, Status: status, Self: PathTo(to), Bare: true, Data: p})
}

// refuse says why somebody is not logged in. err is for the log.
func (l *Logins) refuse(w http.ResponseWriter, r *http.Request, method string, status int, p shownPage, err error) {
	l.metrics.count(method, "refused")
	l.log.Warn("login refused", zap.String("method", method), zap.Stringer("peer", peerOf(r)), zap.String("reason", p.Refused),
		zap.String("user", p.User), zap.Error(err))
	l.show(w, r, status, p)
}

// enterByLink logs in who brings the code of a one-time link. What fetches links beforehand, or shows them inside another page,
// does not use one up.
func (l *Logins) enterByLink(w http.ResponseWriter, r *http.Request, code string) {
	purpose := r.Header.Get("Sec-Purpose") + r.Header.Get("Purpose")
	dest := r.Header.Get("Sec-Fetch-Dest")
	if r.Method != http.MethodGet || strings.Contains(purpose, "prefetch") || dest != "" && dest != "document" {
		problem.New(http.StatusBadRequest, "a login link is opened by a person, in a window of its own").Write(w)
		return
	}
	found, err := l.takeLink(r.Context(), code)
	if errors.Is(err, errLink) && l.mustWait(w, r, methodLink) {
		l.show(w, r, http.StatusTooManyRequests, shownPage{Refused: "login.refused.wait"})
		return
	}
	if errors.Is(err, errLink) {
		l.guesses.Add(peerOf(r))
		l.refuse(w, r, methodLink, http.StatusForbidden, shownPage{Refused: "login.refused.link"}, err)
		return
	}
	if err == nil {
		err = l.begin(w, r, &identity{Method: methodLink, Role: found.Role, User: found.By + " (link)"})
	}
	if err != nil {
		l.refuse(w, r, methodLink, http.StatusServiceUnavailable, shownPage{Refused: "login.refused.storage"}, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// startFlow sends the browser to the OpenID provider.
func (l *Logins) startFlow(w http.ResponseWriter, r *http.Request) {
	f := l.force.Load()
	if f.oidc == nil {
		http.Redirect(w, r, Path, http.StatusSeeOther)
		return
	}
	flow := newFlow(returnPath(r.URL.Query().Get("to")))
	to, err := f.oidc.Start(r.Context(), flow.at(f.base))
	var data []byte
	if err == nil {
		data, err = json.Marshal(flow)
	}
	if err != nil {
		l.refuse(w, r, methodOIDC, http.StatusBadGateway, shownPage{Refused: "login.refused.provider"}, err)
		return
	}
	f.setCookie(w, flowSuffix, base64.RawURLEncoding.EncodeToString(data), flowLife)
	http.Redirect(w, r, to, http.StatusSeeOther) //nolint:gosec // the provider's own address, from its metadata
}

const flowSuffix = "-flow" // of the cookie

// readFlow returns the sign-in that an answer of the provider belongs to; nil: none that this browser has begun.
func (f *force) readFlow(r *http.Request) *flow {
	c, err := r.Cookie(f.cookie + flowSuffix)
	if err != nil {
		return nil
	}
	data, err := base64.RawURLEncoding.DecodeString(c.Value)
	var found flow
	if err != nil || json.Unmarshal(data, &found) != nil || found.State == "" || found.Nonce == "" || found.Verifier == "" ||
		!time.Now().Before(found.Expires) {
		return nil
	}
	if subtle.ConstantTimeCompare([]byte(found.State), []byte(r.URL.Query().Get("state"))) != 1 {
		return nil
	}
	return &found
}

// finishFlow takes what the browser brings back from the OpenID provider.
func (l *Logins) finishFlow(w http.ResponseWriter, r *http.Request) {
	f := l.force.Load()
	if f.oidc == nil {
		http.Redirect(w, r, Path, http.StatusSeeOther)
		return
	}
	flow, q := f.readFlow(r), r.URL.Query()
	f.setCookie(w, flowSuffix, "", 0)
	if flow == nil {
		l.refuse(w, r, methodOIDC, http.StatusForbidden, shownPage{Refused: "login.refused.flow"}, nil)
		return
	}
	if q.Get("error") != "" {
		err := errors.New("the provider answers " + problem.Clip(q.Get("error")+" "+q.Get("error_description")))
		l.refuse(w, r, methodOIDC, http.StatusForbidden, shownPage{Refused: "login.refused.denied"}, err)
		return
	}
	who, err := f.oidc.finish(r.Context(), f.base, flow, q)
	if err != nil {
		l.refuse(w, r, methodOIDC, http.StatusBadGateway, shownPage{Refused: "login.refused.provider"}, err)
		return
	}
	user := f.oidc.shown(who)
	role, err := f.oidc.role(who)
	switch {
	case errors.Is(err, errOverage):
		l.refuse(w, r, methodOIDC, http.StatusForbidden, shownPage{Refused: "login.refused.groups", User: user}, err)
		return
	case role == "":
		l.refuse(w, r, methodOIDC, http.StatusForbidden, shownPage{Refused: "login.refused.user", User: user}, nil)
		return
	}
	if err := l.begin(w, r, &identity{Method: methodOIDC, User: user, Issuer: f.oidc.Issuer, Claims: f.oidc.kept(who)}); err != nil {
		l.refuse(w, r, methodOIDC, http.StatusServiceUnavailable, shownPage{Refused: "login.refused.storage"}, err)
		return
	}
	http.Redirect(w, r, returnPath(flow.To), http.StatusSeeOther)
}

// leave logs out. Where the audit log cannot be written that is done all the same: what it takes away is the asker's own.
func (l *Logins) leave(w http.ResponseWriter, r *http.Request) {
	f := l.force.Load()
	var ended []string
	if p := access.From(r.Context()); p != nil && p.Session != "" {
		if err := l.note(r.Context(), console.Entry{What: "session.end", On: p.Name}); err != nil {
			l.log.Error("logout not recorded", zap.Error(err))
		}
	}
	if c, err := r.Cookie(f.cookie); err == nil && c.Value != "" {
		if err := l.store.DeleteCtx(r.Context(), hashName(c.Value)); err != nil {
			l.log.Error("session not ended", zap.Error(err))
			problem.New(http.StatusServiceUnavailable, "your session could not be ended; you are still logged in, try again").Write(w)
			return
		}
		ended = append(ended, hashName(c.Value))
		l.log.Info("logged out", zap.Stringer("peer", peerOf(r)))
	}
	f.manager.WriteSessionCookie(r.Context(), w, "", time.Time{})
	l.recheck(r.Context(), ended...)
	http.Redirect(w, r, Path+"?out", http.StatusSeeOther)
}
