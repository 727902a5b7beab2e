// Package page is the admin page: what the relay does, its messages, its configuration and the log of changes. Package enrol adds
// tenants, senders and the set-up guide.
//
// Every view works with links and forms alone; htmx makes it live. Whoever mounts the page says who asks, by [access.With], keeps
// requests of other sites from changing anything, and sets the headers; the page needs a Content-Security-Policy with
// script-src, style-src, connect-src and form-action 'self', and img-src 'self' data:.
//
// The package keeps no state: a crash loses nothing.
package page

import (
	"embed"
	"errors"
	"io/fs"
	"net/http"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/enrol"
	"relayd/pkg/admin/page/preview"
	"relayd/pkg/admin/page/view"
)

//go:embed templates words
var files embed.FS

// Files returns templates and words, for [view.New].
func Files() fs.FS { return files }

// Options of [New]. Console and Messages are required.
type Options struct {
	Console  console.Console
	Messages api.Messages
	Logger   *zap.Logger     // nil: none
	Version  string          // of relayd, shown at the foot
	Charset  preview.Charset // for the preview of messages; nil: the few it knows itself
}

type page struct {
	console  console.Console
	messages api.Messages
	log      *zap.Logger
	charset  preview.Charset
	view     *view.Renderer
}

// New returns the handler of the page's paths; what it does not know is answered with 404.
func New(opts Options) (http.Handler, error) {
	if opts.Console == nil || opts.Messages == nil {
		return nil, errors.New("page: Console and Messages are required")
	}
	p := &page{console: opts.Console, messages: opts.Messages, log: opts.Logger, charset: opts.Charset}
	if p.log == nil {
		p.log = zap.NewNop()
	}
	var err error
	if p.view, err = view.New(view.Options{Files: []fs.FS{files, enrol.Files()}, Version: opts.Version, Logger: p.log}); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	for _, route := range []struct {
		pattern string
		scope   access.Scope
		handle  http.HandlerFunc
	}{
		{"GET /{$}", access.Read, p.overview},
		{"GET /messages", access.Read, p.list},
		{"POST /messages/actions", access.Operate, p.bulk},
		{"GET /messages/{id}", access.Read, p.message},
		{"GET /messages/{id}/raw", access.Content, p.raw},
		{"POST /messages/{id}/{action}", access.Operate, p.act},
		{"GET /configuration", access.Read, p.configuration},
		{"GET /audit", access.Read, p.audit},
	} {
		mux.HandleFunc(route.pattern, p.view.Guard(route.scope, route.handle))
	}
	enrol.New(enrol.Options{Console: p.console, Messages: p.messages, View: p.view, Logger: p.log}).Routes(mux)
	mux.HandleFunc("GET "+view.StaticPath, p.view.Static)
	mux.HandleFunc("/", p.view.Guard(access.Read, p.view.NotFound))
	return mux, nil
}

// askTime is how long the relay may take to answer a view.
const askTime = 15 * time.Second

// who is the caller as history and audit log show it.
func who(r *http.Request) string { return access.From(r.Context()).Name }

// peerOf is the caller's IP address, for the log.
func peerOf(r *http.Request) string { return access.From(r.Context()).Peer }
