// Package smtpin is the SMTP listener: who may send, what a message may be, and 250 only once it is stored.
//
// The session engine is emersion/go-smtp; [guard] stands between it and the socket, since alone it would run the rest of
// a broken message as commands, accept a BDAT cut short, and make any error of a backend permanent.
//
// Failure contract: nothing is kept here. Before the 250 a message is the client's, after it the queue's; a crash in
// between costs the client a repetition and nobody a message. Whatever fails on our side is 4xx. A message whose end the
// client did not send is never passed off as whole, and no octet of a message is ever read as a command: where its end is
// in doubt, the connection is closed.
package smtpin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/envelope"
)

// Queue stores messages.
type Queue interface {
	// Put reads body to its end, stores it with env and returns nil once both are on the disk. It sets Size, SHA256 and
	// Chunks, and writes env only behind the end of body, which may fill in other fields until then. It returns the
	// error of body, wrapped, or a *status.Error; anything else is taken as temporary.
	Put(ctx context.Context, env *envelope.Envelope, body io.Reader) error
}

// Policy decides whose mail is relayed.
type Policy interface {
	// Known returns nil if mail from the reverse-path, which is not the null one, may have a way out, else a
	// *status.Error.
	Known(reversePath envelope.Address) error
	// Choose returns the address a message goes out as, or a *status.Error. from is the address in From, or the client's
	// default; either argument may be empty. Where the result is not from, From is rewritten; keepOriginal then asks for
	// a Reply-To with what it was.
	Choose(reversePath, from envelope.Address) (sender envelope.Address, keepOriginal bool, err error)
}

// Options are what New needs.
type Options struct {
	Settings
	Queue   Queue
	Metrics *Metrics
	Logger  *zap.Logger
	Drain   time.Duration // how long Run waits for messages under way once its context ends; zero: 30 s
}

// Server is one listening socket.
type Server struct {
	opts      Options
	listener  net.Listener
	settings  atomic.Pointer[settings]
	gauge     prometheus.Gauge
	counts    *commandCounters
	log       *zap.Logger
	hashing   chan struct{} // one for each password being hashed: they cost a core each
	passwords Passwords
	penalties penalties
	wg        sync.WaitGroup // connections

	mu    sync.Mutex // guards the two below
	conns map[*conn]struct{}
	peers map[netip.Addr]int
}

// New binds the socket and reads the certificate. The error names what is wrong.
func New(opts Options) (*Server, error) {
	s, err := newServer(opts)
	if err != nil {
		return nil, err
	}
	s.listener, err = net.Listen("tcp", opts.Listener.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for SMTP: %w", err)
	}
	return s, nil
}

// newServer is New without the socket.
func newServer(opts Options) (*Server, error) {
	opts.Drain = orDefault(opts.Drain, 30*time.Second)
	s := &Server{
		opts: opts, log: opts.Logger.With(zap.String("listener", opts.Listener.Address)),
		hashing: make(chan struct{}, runtime.GOMAXPROCS(0)),
		conns:   map[*conn]struct{}{}, peers: map[netip.Addr]int{},
	}
	if err := s.Update(opts.Settings); err != nil {
		return nil, err
	}
	s.gauge, s.counts = opts.Metrics.listen(opts.Listener.Address)
	return s, nil
}

// Update makes new sessions follow set; those under way keep what they began with. On an error nothing changes. The
// address of a listener cannot be changed.
func (s *Server) Update(set Settings) error {
	apply, err := s.Prepare(set)
	if err != nil {
		return err
	}
	apply()
	return nil
}

// Prepare does all of Update that can fail; apply, which cannot, does the rest.
func (s *Server) Prepare(set Settings) (apply func(), err error) {
	if set.Listener.Address != s.opts.Listener.Address {
		return nil, fmt.Errorf("listener %s cannot move to %s", s.opts.Listener.Address, set.Listener.Address)
	}
	next, err := newSettings(set, s.settings.Load())
	if err != nil {
		return nil, err
	}
	if next.tls, err = newTLSConfig(&next.Listener, s.log); err != nil {
		return nil, fmt.Errorf("listener %s: %w", set.Listener.Address, err)
	}
	return func() { s.settings.Store(next) }, nil
}

// Addr returns the address the socket is bound to.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close gives the socket of a server back that is not run. After Run there is nothing to close.
func (s *Server) Close() error {
	if err := s.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Run serves until ctx ends. Then it takes no new connections, tells idle clients 421, lets messages under way finish
// within Options.Drain, closes what is left, and returns nil once all is over.
func (s *Server) Run(ctx context.Context) error {
	sessions, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = s.listener.Close() })()
	err := s.accept(ctx, sessions)
	_ = s.listener.Close()
	s.each((*conn).drain)
	over := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(over)
	}()
	limit := time.NewTimer(s.opts.Drain)
	defer limit.Stop()
	select {
	case <-over:
	case <-limit.C:
		s.log.Warn("sessions cut off at the end of the drain time")
		cancel()
		s.each((*conn).abort)
		<-over
	}
	return err
}

// accept hands each connection to its own goroutine. An error of the socket, such as no file descriptors left, is waited
// out.
func (s *Server) accept(ctx, sessions context.Context) error {
	var pause time.Duration
	for {
		raw, err := s.listener.Accept()
		switch {
		case err == nil:
			pause = 0
			s.admit(sessions, raw)
			continue
		case ctx.Err() != nil:
			return nil //nolint:nilerr // the socket was closed on purpose
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept SMTP connections: %w", err)
		}
		if pause = min(max(2*pause, 5*time.Millisecond), time.Second); pause == 5*time.Millisecond {
			s.log.Error("connection not accepted, waiting", zap.Error(err))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// admit starts a connection, or turns it away without waiting for anybody.
func (s *Server) admit(ctx context.Context, raw net.Conn) {
	c := &conn{srv: s, ctx: ctx, raw: raw}
	set := s.settings.Load()
	s.mu.Lock()
	full := len(s.conns) >= set.Listener.MaxConnections
	if !full {
		s.conns[c] = struct{}{}
		s.gauge.Inc()
	}
	s.mu.Unlock()
	if full {
		turnAway(raw, set.Listener.TLS, "421 4.7.0 too many connections")
		return
	}
	s.wg.Go(func() {
		defer func() {
			_ = raw.Close()
			s.forget(c)
		}()
		c.serve(set)
	})
}

// turnAway says why before closing. The line fits the empty buffer of a fresh socket; one that is to speak TLS first is
// closed without a word.
func turnAway(c net.Conn, mode TLSMode, line string) {
	if mode != TLSImplicit {
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.Write([]byte(line + "\r\n"))
	}
	_ = c.Close()
}

// claim counts a connection against its address and reports whether it is within the limit. forget gives it back.
func (s *Server) claim(c *conn, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[c.peer] >= limit {
		return false
	}
	s.peers[c.peer]++
	c.claimed = true
	return true
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.gauge.Dec()
	if !c.claimed {
		return
	}
	if s.peers[c.peer]--; s.peers[c.peer] == 0 {
		delete(s.peers, c.peer)
	}
}

func (s *Server) each(f func(*conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		f(c)
	}
}
