// Package enrol is the part of the page by which a relay comes to send: tenants, senders, the set-up guide, consent by a
// mailbox's owner, and the test send.
//
// It keeps no state: where a person is in the guide stands in the address, and everything else is the [console.Console]'s.
package enrol

import (
	"context"
	"embed"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/enrol/paste"
	"relayd/pkg/admin/page/view"
)

//go:embed templates words
var files embed.FS

// Files returns templates and words, for [view.New].
func Files() fs.FS { return files }

// Redirector is a [console.Console] that knows the Authorized redirect URI before there is any tenant. Without it the guide shows
// that of a tenant, or the address the page was asked for with /oauth/callback.
type Redirector interface {
	RedirectURI() string
}

// Options of [New]. All but Logger are required.
type Options struct {
	Console  console.Console
	Messages api.Messages
	View     *view.Renderer
	Logger   *zap.Logger // nil: none
}

// Enrol answers for its pages. It is safe for many callers at once.
type Enrol struct {
	console  console.Console
	messages api.Messages
	view     *view.Renderer
	log      *zap.Logger
	paste    *paste.Reader
}

// New returns what answers for the pages of this package.
func New(opts Options) *Enrol {
	e := &Enrol{console: opts.Console, messages: opts.Messages, view: opts.View, log: opts.Logger, paste: paste.New()}
	if e.log == nil {
		e.log = zap.NewNop()
	}
	return e
}

// callbackPath is the Authorized redirect URI's.
const callbackPath = "/oauth/callback"

// Routes adds the pages. Those below /consent/ and the callback are for people without an account here; they show nothing of the
// relay but what the link or the sign-in is about.
func (e *Enrol) Routes(mux *http.ServeMux) {
	for _, route := range []struct {
		pattern string
		scope   access.Scope
		handle  http.HandlerFunc
	}{
		{"GET /tenants", access.Read, e.tenants},
		{"GET /tenants/new", access.Manage, e.tenantForm},
		{"POST /tenants/new", access.Manage, e.saveTenant},
		{"GET /tenants/{name}", access.Read, e.tenant},
		{"GET /tenants/{name}/edit", access.Manage, e.tenantForm},
		{"POST /tenants/{name}/edit", access.Manage, e.saveTenant},
		{"GET /tenants/{name}/remove", access.Manage, e.confirmTenant},
		{"POST /tenants/{name}/remove", access.Manage, e.removeTenant},
		{"POST /tenants/{name}/check", access.Operate, e.checkTenant},
		{"POST /tenants/{name}/consent", access.Operate, e.startAdminConsent},

		{"GET /senders", access.Read, e.senders},
		{"GET /senders/new", access.Manage, e.senderForm},
		{"POST /senders/new", access.Manage, e.saveSender},
		{"GET /senders/{match}", access.Read, e.sender},
		{"GET /senders/{match}/edit", access.Manage, e.senderForm},
		{"POST /senders/{match}/edit", access.Manage, e.saveSender},
		{"GET /senders/{match}/remove", access.Manage, e.confirmSender("remove")},
		{"POST /senders/{match}/remove", access.Manage, e.removeSender},
		{"POST /senders/{match}/send-as", access.Manage, e.addSendAs},
		{"POST /senders/{match}/pause", access.Operate, e.pause},
		{"POST /senders/{match}/resume", access.Operate, e.resume},
		{"POST /senders/{match}/examine", access.Operate, e.examine},
		{"POST /senders/{match}/consent", access.Operate, e.startConsent},
		{"POST /senders/{match}/invite", access.Operate, e.invite},
		{"POST /senders/{match}/device", access.Operate, e.startDevice},
		{"GET /senders/{match}/device/{id}", access.Operate, e.device},
		{"GET /senders/{match}/revoke", access.Operate, e.confirmSender("revoke")},
		{"POST /senders/{match}/revoke", access.Operate, e.revoke},
		{"GET /senders/{match}/test", access.Send, e.testForm},
		{"POST /senders/{match}/test", access.Send, e.sendTest},
		{"GET /senders/{match}/test/{id}", access.Read, e.followTest},

		{"GET /guide", access.Read, e.guide},
		{"POST /guide", access.Operate, e.checkGuide},
	} {
		mux.HandleFunc(route.pattern, e.view.Guard(route.scope, route.handle))
	}
	mux.HandleFunc("GET /consent/{code}", e.invitation)
	mux.HandleFunc("POST /consent/{code}", e.acceptInvitation)
	mux.HandleFunc("GET "+overPath, e.over)
	mux.HandleFunc("GET "+callbackPath, e.callback)
}

// The times one request may take: asking Entra ID or Exchange Online, and all else.
const (
	askTime  = 25 * time.Second
	pageTime = 10 * time.Second
)

// within returns the request with a context that ends in time.
func within(r *http.Request, d time.Duration) (*http.Request, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(r.Context(), d)
	return r.WithContext(ctx), cancel
}

func tenantPath(name string) string  { return "/tenants/" + url.PathEscape(name) }
func senderPath(match string) string { return "/senders/" + url.PathEscape(match) }

// query returns a path with these parameters, but for the empty ones: key, value, key, value.
func query(path string, pairs ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

// goTo sends a browser to another site. A redirect would not do: browsers apply form-action to where the answer to a form leads,
// and that may name no other site. So the answer is a page that goes on by itself, with a link for where it does not.
func (e *Enrol) goTo(w http.ResponseWriter, r *http.Request, to string, p view.Page) {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		e.log.Error("no address to sign in at", zap.String("path", r.Pattern), zap.Error(err))
		p.Template, p.Status = "enrol_continue", http.StatusServiceUnavailable
		p.Data = going{}
		e.view.Render(w, r, p)
		return
	}
	w.Header().Set("Refresh", "0; url="+u.String())
	p.Template, p.Data = "enrol_continue", going{URL: u.String(), Host: u.Host}
	e.view.Render(w, r, p)
}

// going is a browser on its way to another site; empty: there is nowhere to go.
type going struct{ URL, Host string }

// mistakes turns what was found in pasted text into mistakes in the reader's language.
func (e *Enrol) mistakes(w http.ResponseWriter, r *http.Request, remarks []paste.Remark) console.Mistakes {
	var all console.Mistakes
	for _, remark := range remarks {
		all = append(all, console.Mistake{Field: remark.Field, Text: e.say(w, r, remark)})
	}
	return all
}

func (e *Enrol) say(w http.ResponseWriter, r *http.Request, remark paste.Remark) string {
	args := make([]any, len(remark.Args))
	for i, a := range remark.Args {
		args[i] = a
	}
	return e.view.Say(w, r, remark.Key, args...)
}

// notes are what was put right, in the reader's language.
func (e *Enrol) notes(w http.ResponseWriter, r *http.Request, remarks []paste.Remark) []string {
	var all []string
	for _, remark := range remarks {
		all = append(all, e.say(w, r, remark))
	}
	return all
}

func (e *Enrol) logFailure(r *http.Request, err error) {
	e.log.Error("page not shown", zap.String("path", r.Pattern), zap.Error(err)) // the pattern: a path may hold a one-time code
}
