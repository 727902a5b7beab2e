// Package admin answers for the relay over HTTP: whether it lives, whether it is ready, its metrics, and what has become
// of each message.
//
//	/livez     something is broken that only a restart mends
//	/readyz    mail can be accepted now
//	/startupz  the start is complete
//	/metrics   Prometheus, OpenMetrics and native histograms
//	/api/v1/   messages: list, show, download, retry, hold, release, drop, send; described by openapi.json there
//
// The first four tell no secret and change nothing; other machines may ask them. The API shows mail and changes the queue.
// There is no login yet, so it is answered on a loopback address only, to its own name only, and to no page of another site.
//
// The package keeps no state: a crash loses nothing. What a change it has answered with success is worth, is [api.Messages]' to
// promise.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/login"
)

// Options of a Server. Address and Gatherer are required.
type Options struct {
	Address        string // host:port, meant for this machine alone
	MetricsAddress string // host:port that other machines may reach, for probes and Prometheus; empty: none

	Live, Ready, Startup []Check // behind /livez, /readyz and /startupz; none: always ok
	Gatherer             prometheus.Gatherer
	Logger               *zap.Logger // nil: none
	Version              string      // shown in the Server field of responses as "relayd/VERSION"; empty: "relayd"

	Messages     api.Messages // behind the API, on Address alone; nil: there is no API
	MessageBytes int64        // largest message the API takes, in octets; 0: 35 MiB

	Console    console.Console       // behind the rest of the API; nil: that is not there
	Page       http.Handler          // what is not answered otherwise on Address: the page and its files; nil: nothing
	Login      login.Settings        // who may log in, as it stands now: see Configure
	Sessions   login.Records         // who is logged in; nil: forgotten at the next start
	Links      login.Records         // one-time login links; nil: forgotten at the next start
	CertFile   string                // PEM, TLS for Address, read again when it changes; empty: none
	KeyFile    string                // PEM
	Audit      Audit                 // nil: none
	Registerer prometheus.Registerer // nil: logins are not counted
}

// Audit is where changes to who may do what are written, as audit.Log is.
type Audit interface {
	// Write stores an entry durably. On an error the change is not made.
	Write(ctx context.Context, e console.Entry) error
}

// The limits of one connection. But for the API, which has limits of its own, nothing here is large or slow, so whoever is
// slower is broken or hostile.
const (
	headerTimeout  = 5 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = 2 * time.Minute // longer than the usual scrape interval: a connection each minute is kept
	headerBytes    = 16 << 10
	maxConnections = 256 // for each listener; the rest of the file descriptors belongs to mail
	stopTimeout    = 5 * time.Second
)

// Server is the listeners, bound, and what answers on them.
type Server struct {
	log  *zap.Logger
	ends []*end
}

// end is one listener.
type end struct {
	key      string // of the configuration
	listener net.Listener
	guard    *guard
	http     *http.Server
}

// New binds the addresses and answers nothing until Run. The error names the address and the way out. With Messages, the
// address must be a loopback one: the API has no login.
func New(opts Options) (*Server, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	s := &Server{log: opts.Logger}
	pages := newPages(&opts)
	if err := s.listen("admin.address", opts.Address, pages, &opts); err != nil {
		return nil, err
	}
	if opts.Messages != nil {
		g := s.ends[0].guard
		if !g.local {
			const text = "admin.address: %s is no loopback address, and the API has no login; write one like 127.0.0.1:8080"
			return nil, errors.Join(fmt.Errorf(text, opts.Address), s.Close())
		}
		var err error
		if g.api, err = api.New(api.Options{Messages: opts.Messages, MessageBytes: opts.MessageBytes, Logger: opts.Logger}); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if opts.MetricsAddress == "" || opts.MetricsAddress == opts.Address {
		return s, nil
	}
	if err := s.listen("metrics.address", opts.MetricsAddress, pages, &opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) listen(key, address string, pages pages, opts *Options) error {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: another process has %s already; stop it, or write a free port: %w", key, address, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: not allowed to listen on %s; write a port above 1023: %w", key, address, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: %s is no address of this machine; write one that is, or leave the host out: %w", key, address, err)
	case err != nil:
		return fmt.Errorf("%s: cannot listen on %q; write it like 127.0.0.1:8080: %w", key, address, err)
	}
	g := &guard{next: pages, server: "relayd"}
	if opts.Version != "" {
		g.server += "/" + opts.Version
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		host, _, _ := net.SplitHostPort(address) // what Listen took has the form
		g.local, g.host = true, strings.ToLower(host)
	}
	errorLog, err := zap.NewStdLogAt(opts.Logger, zap.WarnLevel)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.ends = append(s.ends, &end{
		key:      key,
		listener: netutil.LimitListener(l, maxConnections),
		guard:    g,
		http: &http.Server{
			Handler:                      g,
			ReadHeaderTimeout:            headerTimeout,
			ReadTimeout:                  headerTimeout,
			WriteTimeout:                 writeTimeout,
			IdleTimeout:                  idleTimeout,
			MaxHeaderBytes:               headerBytes,
			DisableGeneralOptionsHandler: true,
			ErrorLog:                     errorLog,
		},
	})
	return nil
}

// Addr returns the bound address, as Options.Address gave it except for a port chosen by the system.
func (s *Server) Addr() net.Addr { return s.ends[0].listener.Addr() }

// MetricsAddr returns the bound address for other machines; without one, that of Addr.
func (s *Server) MetricsAddr() net.Addr { return s.ends[len(s.ends)-1].listener.Addr() }

// Run answers until ctx ends or a listener fails. It lets requests under way finish, for at most 5 s, and leaves nothing
// listening.
func (s *Server) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(s.ends))
	var serving sync.WaitGroup
	for i, e := range s.ends {
		serving.Go(func() {
			defer stop()
			if err := e.http.Serve(e.listener); !errors.Is(err, http.ErrServerClosed) {
				errs[i] = fmt.Errorf("%s: serve: %w", e.key, err)
			}
		})
	}
	<-ctx.Done()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	for _, e := range s.ends {
		if err := e.http.Shutdown(grace); err != nil {
			s.log.Warn("admin requests cut off", zap.String("listener", e.listener.Addr().String()), zap.Error(err))
			_ = e.http.Close() // closes what Shutdown could not wait for
		}
	}
	serving.Wait()
	return errors.Join(errs...)
}

// Close gives the addresses back where Run is never called.
func (s *Server) Close() error {
	var errs []error
	for _, e := range s.ends {
		if err := e.listener.Close(); !errors.Is(err, net.ErrClosed) { // Run has closed its own
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// guard stands before every page: headers, methods and, on this machine's own address, the Host.
type guard struct {
	next   http.Handler
	api    http.Handler // below /api/; nil: none
	server string
	local  bool   // the listener is on a loopback address
	host   string // as configured, in lower case
}

// ServeHTTP implements http.Handler.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", g.server)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	switch {
	case g.local && !g.knows(r.Host):
		// A page elsewhere can make a browser here ask this address under a name of its own (DNS rebinding).
		http.Error(w, "this address answers only to its own name; ask for it as localhost, or by its number", http.StatusMisdirectedRequest)
	case g.api != nil && strings.HasPrefix(r.URL.Path, api.Root):
		g.api.ServeHTTP(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are allowed here", http.StatusMethodNotAllowed)
	default:
		g.next.ServeHTTP(w, r)
	}
}

// knows reports whether a Host field names this machine: localhost, a loopback address, or the host as configured.
func (g *guard) knows(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || host != "" && host == g.host {
		return true
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	return err == nil && ip.IsLoopback()
}
