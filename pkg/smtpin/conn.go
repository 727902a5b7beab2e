package smtpin

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/pires/go-proxyproto"
	"go.uber.org/zap"
)

// proxyHeaderTimeout is how long a proxy may take for its header.
const proxyHeaderTimeout = 10 * time.Second

// conn is one client connection, from accept to close; a session before STARTTLS and one behind it share it.
type conn struct {
	srv     *Server
	ctx     context.Context // ends when the server cuts sessions off
	raw     net.Conn
	peer    netip.Addr
	tls     string // version and cipher suite; empty: none
	claimed bool

	mu       sync.Mutex // guards the two below
	g        *guard     // nil: no session yet
	draining bool
}

// serve runs the connection; the caller closes the socket.
func (c *conn) serve(set *settings) {
	l := &set.Listener
	client := c.raw
	if l.ProxyProtocol {
		p := proxyproto.NewConn(c.raw, proxyproto.WithPolicy(proxyproto.REQUIRE), proxyproto.SetReadHeaderTimeout(proxyHeaderTimeout))
		if p.ProxyHeader() == nil {
			c.srv.log.Warn("connection without a PROXY header closed", zap.Stringer("peer", c.raw.RemoteAddr()))
			return
		}
		client = p
	}
	c.peer = addrOf(client.RemoteAddr())
	log := c.srv.log.With(zap.Stringer("peer", c.peer))
	if !c.srv.claim(c, l.MaxConnectionsPerIP) {
		log.Info("connection refused", zap.String("reason", "too many connections"))
		turnAway(client, l.TLS, "421 4.7.0 too many connections")
		return
	}
	if !set.trusts(c.peer) && !set.offersAuth() {
		log.Info("connection refused", zap.String("reason", "network not allowed"))
		turnAway(client, l.TLS, "554 5.7.1 access denied")
		return
	}
	log.Debug("session opened")
	defer log.Debug("session closed")
	if l.TLS != TLSImplicit {
		g := c.session(set, client, log, false)
		if g == nil || !g.upgrade {
			return
		}
	}
	secure, err := c.handshake(client, set)
	if err != nil {
		log.Info("TLS handshake failed", zap.Error(err))
		return
	}
	c.session(set, secure, log, l.TLS == TLSStartTLS)
}

// session runs go-smtp on the connection until one side has had enough, or until STARTTLS. resumed: there was a greeting
// before, and nothing else of what was before counts any more (RFC 3207, section 4.2).
func (c *conn) session(set *settings, client net.Conn, log *zap.Logger, resumed bool) *guard {
	l := &set.Listener
	g := &guard{
		Conn: client, hostname: set.Hostname, reject: l.RejectLineEndings, timeout: l.CommandTimeout,
		minRate: l.MinBodyRate, limit: set.Limits.MessageBytes, startTLS: l.TLS == TLSStartTLS && !resumed,
		resumed: resumed, counts: c.srv.counts, done: make(chan struct{}), idle: make([]byte, commandBuffer),
	}
	if !c.adopt(g) {
		return nil
	}
	engine := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		return &session{conn: c, g: g, set: set, log: log}, nil
	}))
	engine.Domain = set.Hostname
	engine.MaxMessageBytes = set.Limits.MessageBytes
	engine.MaxLineLength = maxAuthLine + 2
	engine.AllowInsecureAuth = true // ours to decide: session.AuthMechanisms
	engine.EnableSMTPUTF8 = true
	engine.EnableDSN = true
	engine.ErrorLog = engineLog{log}
	if g.startTLS {
		engine.TLSConfig = new(tls.Config) // advertises STARTTLS; the guard never passes the command on
	}
	_ = engine.Serve(&single{conn: g, over: g.done}) // it ends with the one connection
	return g
}

// adopt makes g the session that drain speaks to. false: it is too late for a session.
func (c *conn) adopt(g *guard) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.g = g
	return !c.draining
}

// drain ends the connection as soon as no message is under way.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if c.g != nil {
		c.g.drain()
	} else {
		_ = c.raw.Close()
	}
}

// abort ends it now.
func (c *conn) abort() { _ = c.raw.Close() }

func (c *conn) handshake(client net.Conn, set *settings) (net.Conn, error) {
	if err := client.SetDeadline(time.Now().Add(min(set.Listener.CommandTimeout, time.Minute))); err != nil {
		return nil, err
	}
	t := tls.Server(client, set.tls)
	if err := t.HandshakeContext(c.ctx); err != nil {
		return nil, err
	}
	c.tls = tlsText(t)
	return t, client.SetDeadline(time.Time{})
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// single is a listener of one connection, for an engine of its own: so each connection keeps the settings it began with.
type single struct {
	conn net.Conn
	over <-chan struct{} // closed when conn is
}

func (s *single) Accept() (net.Conn, error) {
	if c := s.conn; c != nil {
		s.conn = nil
		return c, nil
	}
	<-s.over
	return nil, io.EOF
}

func (s *single) Close() error   { return nil }
func (s *single) Addr() net.Addr { return nil }

// engineLog is where go-smtp reports panics.
type engineLog struct{ log *zap.Logger }

func (l engineLog) Printf(format string, args ...any) { l.log.Error(fmt.Sprintf(format, args...)) }
func (l engineLog) Println(args ...any)               { l.log.Error(fmt.Sprintln(args...)) }
