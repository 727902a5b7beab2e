// Package login finds out who asks over HTTP, and logs people in.
//
//	Authorization: Bearer …   a token of the configuration
//	a session's cookie        from a one-time link, or from the OpenID provider
//	neither                   on a loopback address, where nobody could log in otherwise: a process of this machine that runs as
//	                          the relay does, or as root, and is neither browser nor proxy
//
// Sessions and links are records of the vault, under the hash of what the browser holds: a copy of the store logs nobody in.
// A session is there when the browser gets its cookie, and gone when the call that ends it returns; what it may is judged anew
// at each request, by the configuration in force. When it was last used is noted every few minutes, so after a crash it may seem
// to have been idle for that much longer. A sign-in under way at the provider is kept by the browser alone.
package login

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/login/guess"
	"relayd/pkg/admin/login/session"
	"relayd/pkg/admin/page/view"
)

// The paths that are answered here.
const (
	Path         = "/login"
	StartPath    = "/login/start"    // to the OpenID provider
	CallbackPath = "/login/callback" // and back
	LogoutPath   = "/logout"
)

// The life of what is handed out.
const (
	linkLife   = time.Hour
	flowLife   = 10 * time.Minute // for signing in at the provider
	checkEvery = time.Minute      // how long a request may go on after its right to was taken away on another node
	checkTime  = 10 * time.Second // for looking at all of them: where the store is away each would wait for it
	unsureLife = 10 * time.Minute // how long a request may go on of which that cannot be found out
	sweepEvery = time.Hour
)

// Audit is where logins are written, as audit.Log is.
type Audit interface {
	// Write stores an entry durably. On an error the change is not made.
	Write(ctx context.Context, e console.Entry) error
}

// Options of [New]. Address is required.
type Options struct {
	Settings   Settings
	Address    net.Addr // of the listener
	Listen     string   // host:port of the listener, as configured
	TLS        bool     // the listener speaks TLS itself
	Sessions   Records  // nil: in memory
	Links      Records  // nil: in memory
	Audit      Audit    // nil: none
	Version    string
	Logger     *zap.Logger           // nil: none
	Registerer prometheus.Registerer // nil: nothing is counted
}

// Logins knows who may log in and who has.
type Logins struct {
	opts    Options
	log     *zap.Logger
	view    *view.Renderer
	store   *session.Store
	links   Records
	guesses guess.Guesses
	metrics *metrics
	force   atomic.Pointer[force]

	mu      sync.Mutex // guards all below
	flights map[*flight]struct{}
	unsure  bool // of some flights it could not be found out whether they may go on
}

// force is the settings in force, and what follows from them.
type force struct {
	tokens  access.Tokens
	oidc    *openID  // nil: none
	base    *url.URL // by which browsers reach the relay
	local   bool     // processes of this machine need no login
	cookie  string   // name of a session's cookie; others' begin with it
	manager *scs.SessionManager
	origins *http.CrossOriginProtection
}

// New returns logins by these settings. The error is a sentence for whoever wrote the configuration.
func New(opts Options) (*Logins, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	if opts.Sessions == nil {
		opts.Sessions = &session.Memory{}
	}
	if opts.Links == nil {
		opts.Links = &session.Memory{}
	}
	l := &Logins{
		opts: opts, log: opts.Logger, store: &session.Store{Records: opts.Sessions, Logger: opts.Logger}, links: opts.Links,
		metrics: newMetrics(opts.Registerer), flights: map[*flight]struct{}{},
	}
	var err error
	if l.view, err = newView(opts.Version, opts.Logger); err != nil {
		return nil, err
	}
	return l, l.Configure(opts.Settings)
}

// Configure puts other settings in force. Whoever may no longer do what they are about to is cut off. On an error the settings
// before stay in force.
func (l *Logins) Configure(s Settings) error {
	f := &force{}
	var err error
	if f.tokens, err = access.NewTokens(s.Tokens); err != nil {
		return fmt.Errorf("admin.tokens: %w", err)
	}
	if s.OIDC != nil {
		if f.oidc, err = newOpenID(s.OIDC); err != nil {
			return fmt.Errorf("admin.oidc: %w", err)
		}
	}
	loopback := isLoopback(hostOf(l.opts.Address.String()))
	if f.base, err = l.baseURL(s.PublicURL); err != nil {
		return err
	}
	anybody := len(s.Tokens) > 0 || s.OIDC != nil
	if !loopback && !anybody {
		return fmt.Errorf("admin.address: %s is no loopback address, and nobody would have to log in; add admin.tokens or admin.oidc, "+
			"or write one like 127.0.0.1:8080", cmp.Or(l.opts.Listen, l.opts.Address.String()))
	}
	f.origins = http.NewCrossOriginProtection()
	if err := f.origins.AddTrustedOrigin(f.base.String()); err != nil {
		return fmt.Errorf("admin.public_url: %w", err)
	}
	f.local = loopback && !anybody && isLoopback(f.base.Hostname())
	f.cookie = "relayd-" + f.base.Port() // cookies of one host are shared by its ports: each relay has names of its own
	if f.base.Scheme == "https" {
		f.cookie = "__Host-relayd"
	}
	f.manager = session.NewManager(l.store, f.cookie, f.base.Scheme == "https")
	l.force.Store(f)
	l.recheck(context.Background())
	return nil
}

// baseURL returns the address by which browsers reach the relay. Without a public URL it is its own one: by the name localhost
// where that fits, since Entra ID takes plain http in redirect URIs for that name alone, and cookies keep to one name.
func (l *Logins) baseURL(public string) (*url.URL, error) {
	if public != "" {
		u, err := url.Parse(strings.TrimRight(public, "/"))
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.Path+u.RawQuery+u.Fragment != "" {
			return nil, fmt.Errorf("admin.public_url: %q is not the address of a site; write one like https://relay.contoso.com", public)
		}
		u.Host = strings.ToLower(u.Host)
		return u, nil
	}
	host, port, err := net.SplitHostPort(l.opts.Address.String())
	if err != nil {
		return nil, fmt.Errorf("admin.address: %w", err)
	}
	if ip, err := netip.ParseAddr(host); err != nil || ip.IsUnspecified() || ip == netip.MustParseAddr("127.0.0.1") || ip == netip.IPv6Loopback() {
		host = "localhost"
	}
	scheme := "http"
	if l.opts.TLS {
		scheme = "https"
	}
	return &url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)}, nil
}

// hostOf returns the host of an address with or without a port, in lower case and without brackets or a final dot.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	return strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(address, "["), "]"), "."))
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// BaseURL is the address by which browsers reach the relay, without a path.
func (l *Logins) BaseURL() string { return l.force.Load().base.String() }

// ByLinkOnly reports whether nobody can log in but by a one-time link.
func (l *Logins) ByLinkOnly() bool {
	f := l.force.Load()
	return len(f.tokens) == 0 && f.oidc == nil
}

// Knows reports whether a Host field is one by which the page and the API may be asked. A page elsewhere can make a browser ask
// them under a name of its own (DNS rebinding); then it can read the answers. Numbers cannot be rebound, so where the listener is
// for other machines all of them count.
func (l *Logins) Knows(host string) bool {
	host = hostOf(host)
	if host == "" {
		return false
	}
	if IsOwn(host, hostOf(l.opts.Listen)) || host == hostOf(l.force.Load().base.Host) {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil && !isLoopback(hostOf(l.opts.Address.String()))
}

// Canonical returns where a person belongs who looks at a page by another name of this machine than the one that sign-ins come
// back to: cookies keep to one name, so what was begun by 127.0.0.1 could not be finished by localhost. The port stays, since it
// may be the end of a tunnel.
func (l *Logins) Canonical(r *http.Request) (to string, elsewhere bool) {
	base, host := l.force.Load().base, hostOf(r.Host)
	if r.Method != http.MethodGet || r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.TLS != nil && base.Scheme != "https" ||
		host == base.Hostname() || !isLoopback(host) || !isLoopback(base.Hostname()) {
		return "", false
	}
	name := base.Hostname()
	if _, port, err := net.SplitHostPort(r.Host); err == nil {
		name = net.JoinHostPort(name, port)
	}
	return (&url.URL{Scheme: base.Scheme, Host: name, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}).String(), true
}

// IsOwn reports whether a Host field names this machine: localhost, a loopback address, or the host as configured.
func IsOwn(host, configured string) bool {
	host = hostOf(host)
	return isLoopback(host) || host != "" && host == strings.ToLower(configured)
}

// Origins refuses what pages of other sites ask. The relay's own ones are known by the public URL, too: a proxy may have changed
// the Host field that the origin is compared with.
func (l *Logins) Origins() *http.CrossOriginProtection { return l.force.Load().origins }

// flight is a request under way.
type flight struct {
	principal *access.Principal
	cancel    context.CancelFunc
	unsure    time.Time // since when again has failed; zero: it has not. Guarded by Logins.mu
	// again returns who it would be now. On an error that is by what was known when it began.
	again func(ctx context.Context) (*access.Principal, error)
}

// may reports whether somebody has every right that the request was let in with.
func (f *flight) may(now *access.Principal) bool {
	return now != nil && !slices.ContainsFunc(f.principal.Scopes, func(s access.Scope) bool { return !now.May(s) })
}

// Identify puts who asks into the request's context. Credentials that are wrong are refused here; no credentials at all are not.
func (l *Logins) Identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := l.identify(w, r)
		if !ok {
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		if f == nil {
			next.ServeHTTP(w, r.WithContext(l.browser(ctx, w, r)))
			return
		}
		f.cancel = cancel
		l.mu.Lock()
		l.flights[f] = struct{}{}
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.flights, f)
		}()
		next.ServeHTTP(w, r.WithContext(access.With(ctx, f.principal)))
	})
}

// recheck cuts those requests off that could not be made any more, those of the sessions just ended unasked. One of them may be
// the very request that asks for it: that it ends, or its client hangs up, says nothing of the others. A request goes on while its
// session cannot be looked for, but not for ever: the session may have been ended elsewhere.
func (l *Logins) recheck(ctx context.Context, ended ...string) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	defer stop()
	l.mu.Lock()
	flights := make([]*flight, 0, len(l.flights))
	for f := range l.flights {
		flights = append(flights, f)
	}
	l.mu.Unlock()
	var failed error
	lapsed := 0
	for _, f := range flights {
		if f.principal.Session != "" && slices.Contains(ended, f.principal.Session) {
			f.cancel()
			continue
		}
		now, err := f.again(ctx)
		failed = cmp.Or(failed, err)
		switch unsure := l.unsureFor(f, err); {
		case !f.may(now):
			f.cancel()
		case unsure >= unsureLife:
			f.cancel()
			lapsed++
		}
	}
	l.mu.Lock()
	began := failed != nil && !l.unsure
	l.unsure = failed != nil
	l.mu.Unlock()
	if began {
		l.log.Error("sessions cannot be read; requests under way go on for a while", zap.Duration("bound", unsureLife), zap.Error(failed))
	}
	if lapsed > 0 {
		l.log.Error("requests cut off, since their sessions could not be read for too long", zap.Int("requests", lapsed), zap.Error(failed))
	}
}

// unsureFor notes whether a request could be looked at, and returns for how long it could not.
func (l *Logins) unsureFor(f *flight, err error) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		f.unsure = time.Time{}
		return 0
	case f.unsure.IsZero():
		f.unsure = time.Now()
	}
	return time.Since(f.unsure)
}

// Run forgets what has expired and cuts off whoever has lost their right meanwhile, until ctx ends.
func (l *Logins) Run(ctx context.Context) error {
	check, sweep := time.NewTicker(checkEvery), time.NewTicker(sweepEvery)
	defer check.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-check.C:
			l.recheck(ctx)
		case <-sweep.C:
			if err := errors.Join(l.store.Sweep(ctx), l.sweepLinks(ctx)); err != nil && ctx.Err() == nil {
				l.log.Warn("expired sessions and links not removed", zap.Error(err))
			}
		}
	}
}

// note writes what was done to the audit log.
func (l *Logins) note(ctx context.Context, e console.Entry) error {
	if l.opts.Audit == nil {
		return nil
	}
	if p := access.From(ctx); p != nil {
		e.Peer = p.Peer
		if e.Who == "" {
			e.Who = p.Name
		}
	}
	if err := l.opts.Audit.Write(ctx, e); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}
