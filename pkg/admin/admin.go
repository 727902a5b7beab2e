// Package admin answers for the relay over HTTP: whether it lives, whether it is ready, its metrics, and what has become
// of each message.
//
//	/livez     something is broken that only a restart mends
//	/readyz    mail can be accepted now
//	/startupz  the start is complete
//	/metrics   Prometheus, OpenMetrics and native histograms
//	/api/v1/   messages, senders, tenants and more; described by openapi.json there
//
//	/login…    logging in and out, see package login
//	/          the page
//
// The first four tell no secret and change nothing; other machines may ask them. API and page show mail and change the queue:
// they are answered to who is known by package login, by the relay's own names only, and to no page of another site. A listener
// that other machines can reach is refused where nobody would have to log in.
//
// The package keeps no state: a crash loses nothing. What a change it has answered with success is worth, is [api.Messages]' and
// [console.Console]'s to promise.
package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"relayd/pkg/admin/access/peer"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/api/control"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/login"
	"relayd/pkg/keypair"
)

// Options of a Server. Address and Gatherer are required.
type Options struct {
	Address        string // host:port
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
	Vault      control.Vault         // behind the API; nil: that is not there
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
	maxFromOne     = 128 // of them for one address: of a proxy, too, behind which all come by one
	stopTimeout    = 5 * time.Second
)

// Server is the listeners, bound, and what answers on them.
type Server struct {
	log    *zap.Logger
	ends   []*end
	logins *login.Logins // nil: there is nothing to log in for
}

// end is one listener.
type end struct {
	key      string // of the configuration
	listener net.Listener
	guard    *guard
	http     *http.Server
}

// New binds the addresses and answers nothing until Run. The error names the address and the way out.
func New(opts Options) (*Server, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	s := &Server{log: opts.Logger}
	pages := newPages(&opts)
	if err := s.listen("admin.address", opts.Address, pages, &opts); err != nil {
		return nil, err
	}
	if err := s.protect(&opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if opts.MetricsAddress == "" || opts.MetricsAddress == opts.Address {
		return s, nil
	}
	if err := s.listen("metrics.address", opts.MetricsAddress, pages, &opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// protect mounts what is not for everybody, on the first listener.
func (s *Server) protect(opts *Options) (err error) {
	e := s.ends[0]
	if opts.CertFile != "" {
		cert, err := keypair.Open(opts.CertFile, opts.KeyFile, opts.Logger)
		if err != nil {
			return fmt.Errorf("admin.tls: %w", err)
		}
		e.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.Get}
	}
	if opts.Messages == nil && opts.Page == nil {
		return nil
	}
	s.logins, err = login.New(login.Options{
		Settings: opts.Login, Address: e.listener.Addr(), Listen: opts.Address, TLS: opts.CertFile != "", Sessions: opts.Sessions, Links: opts.Links,
		Audit: opts.Audit, Version: opts.Version, Logger: opts.Logger, Registerer: opts.Registerer,
	})
	if err != nil {
		return err
	}
	var mounted http.Handler
	if opts.Messages != nil {
		mounted, err = api.New(api.Options{
			Messages: opts.Messages, MessageBytes: opts.MessageBytes, Console: opts.Console, Links: s.logins, Sessions: s.logins, Vault: opts.Vault, Logger: opts.Logger,
		})
		if err != nil {
			return err
		}
	}
	e.guard.protect(s.logins, mounted, opts.Page)
	return nil
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
	g := &guard{probes: pages, server: "relayd"}
	if opts.Version != "" {
		g.server += "/" + opts.Version
	}
	host, _, _ := net.SplitHostPort(address) // what Listen took has the form
	g.host = strings.ToLower(host)
	if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		g.local = true
	}
	errorLog, err := zap.NewStdLogAt(opts.Logger, zap.WarnLevel)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.ends = append(s.ends, &end{
		key:      key,
		listener: netutil.LimitListener(newCrowd(peer.Listener{Listener: l}, maxFromOne), maxConnections),
		guard:    g,
		http: &http.Server{
			Handler:                      g,
			ReadHeaderTimeout:            headerTimeout,
			ReadTimeout:                  headerTimeout,
			WriteTimeout:                 writeTimeout,
			IdleTimeout:                  idleTimeout,
			MaxHeaderBytes:               headerBytes,
			ConnContext:                  peer.Context,
			DisableGeneralOptionsHandler: true,
			ErrorLog:                     errorLog,
		},
	})
	return nil
}

func (e *end) serve() error {
	if e.http.TLSConfig != nil {
		return e.http.ServeTLS(e.listener, "", "")
	}
	return e.http.Serve(e.listener)
}

// Configure puts other settings of who may log in in force: all of them or, on an error, nothing.
func (s *Server) Configure(settings login.Settings) error {
	if s.logins == nil {
		return nil
	}
	return s.logins.Configure(settings)
}

// Logins makes login links and shows who is logged in; nil where there is nothing to log in for.
func (s *Server) Logins() *login.Logins { return s.logins }

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
			if err := e.serve(); !errors.Is(err, http.ErrServerClosed) {
				errs[i] = fmt.Errorf("%s: serve: %w", e.key, err)
			}
		})
	}
	if s.logins != nil {
		serving.Go(func() { _ = s.logins.Run(ctx) }) // fails never
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
