package smtpin

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// TLSMode says when a listener speaks TLS.
type TLSMode string

// The modes of a listener. The zero TLSMode is TLSNone.
const (
	TLSNone     TLSMode = "none"
	TLSStartTLS TLSMode = "starttls" // offered, never demanded; AUTH waits for it
	TLSImplicit TLSMode = "implicit" // from the first octet (RFC 8314)
)

// AuthMode says who must log in.
type AuthMode string

// The modes of AUTH. The zero AuthMode is AuthOptional where there are clients, else AuthNone.
const (
	AuthNone     AuthMode = "none"
	AuthOptional AuthMode = "optional" // only from outside AllowNetworks
	AuthRequired AuthMode = "required"
)

// ListenerOptions is one SMTP socket.
type ListenerOptions struct {
	Address             string // host:port
	TLS                 TLSMode
	CertFile, KeyFile   string         // PEM, for TLS; read again when they change
	MinTLS              uint16         // a tls.Version constant; zero: TLS 1.2
	Auth                AuthMode       //
	PlaintextAuth       bool           // offer AUTH without TLS
	AllowNetworks       []netip.Prefix // may send without logging in; nil: loopback only
	RejectLineEndings   bool           // refuse a message with bare CR or LF instead of reading them as CRLF
	ProxyProtocol       bool           // demand a PROXY header and believe it: only a proxy may reach such a socket
	MaxConnections      int            // zero: 1000
	MaxConnectionsPerIP int            // zero: 50
	CommandTimeout      time.Duration  // for a whole command line, and between two blocks of a body; zero: 5 min
	MinBodyRate         int64          // octets a second over a whole body, judged from 30 s on; zero: none
}

// Client is an app or device that logs in.
type Client struct {
	Username          string
	PasswordHash      string // of HashPassword
	Networks          []netip.Prefix
	Senders           []string         // addresses, or *@domain, it may send as
	DefaultSender     envelope.Address // sender of mail without a From; empty: the reverse-path
	MessagesPerMinute int              // zero: no limit
}

// Limits bound one message. A zero field means the value in parentheses.
type Limits struct {
	MessageBytes int64 // octets (35 MiB)
	HeaderBytes  int   // octets (128 KiB)
	Recipients   int   // (500)
	Hops         int   // Received fields (50)
}

// Settings are what [Server.Update] may change while the server runs.
type Settings struct {
	Hostname string // in greeting, EHLO and Received
	Listener ListenerOptions
	Clients  []Client
	Limits   Limits
	Policy   Policy
}

// settings is Settings with defaults filled in and indexed.
type settings struct {
	Settings
	clients map[string]*client
	decoy   string // a hash to check the passwords of unknown names against
	tls     *tls.Config
}

type client struct {
	Client
	addresses map[string]bool // keys of addresses
	domains   map[string]bool
	limiter   *rate.Limiter // nil: no limit
}

// newSettings checks and indexes s. before, which may be nil, lends its rate limiters, so that a reload forgives nothing.
func newSettings(s Settings, before *settings) (*settings, error) {
	l := &s.Listener
	l.MaxConnections = orDefault(l.MaxConnections, 1000)
	l.MaxConnectionsPerIP = orDefault(l.MaxConnectionsPerIP, 50)
	l.CommandTimeout = orDefault(l.CommandTimeout, 5*time.Minute)
	l.MinTLS = orDefault(l.MinTLS, tls.VersionTLS12)
	l.TLS = orDefault(l.TLS, TLSNone)
	if l.AllowNetworks == nil {
		l.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	if l.Auth == "" {
		l.Auth = AuthNone
		if len(s.Clients) > 0 {
			l.Auth = AuthOptional
		}
	}
	s.Limits.MessageBytes = orDefault(s.Limits.MessageBytes, 35<<20)
	s.Limits.HeaderBytes = orDefault(s.Limits.HeaderBytes, 128<<10)
	s.Limits.Recipients = orDefault(s.Limits.Recipients, 500)
	s.Limits.Hops = orDefault(s.Limits.Hops, 50)
	set := &settings{Settings: s, clients: make(map[string]*client, len(s.Clients))}
	for _, c := range s.Clients {
		if _, twice := set.clients[c.Username]; twice {
			return nil, fmt.Errorf("client %q is configured twice", c.Username)
		}
		set.clients[c.Username] = newClient(c, before)
		set.decoy = c.PasswordHash
	}
	return set, nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func newClient(c Client, before *settings) *client {
	n := &client{Client: c, addresses: map[string]bool{}, domains: map[string]bool{}}
	for _, sender := range c.Senders {
		if domain, ok := strings.CutPrefix(sender, "*@"); ok {
			n.domains[strings.ToLower(domain)] = true
		} else {
			n.addresses[envelope.Address(sender).Key()] = true
		}
	}
	if c.MessagesPerMinute <= 0 {
		return n
	}
	if before != nil {
		if old := before.clients[c.Username]; old != nil && old.MessagesPerMinute == c.MessagesPerMinute {
			n.limiter = old.limiter
			return n
		}
	}
	n.limiter = rate.NewLimiter(rate.Limit(float64(c.MessagesPerMinute)/60), c.MessagesPerMinute)
	return n
}

// maySend returns nil if the client may send as a, or the refusal.
func (c *client) maySend(a envelope.Address) error {
	if c.addresses[a.Key()] || c.domains[a.Domain()] {
		return nil
	}
	return refuse(reasonSender, 550, status.Enhanced{5, 7, 1}, "sender <%s> is not allowed for client %q", a, c.Username)
}

func (c *client) mayConnect(addr netip.Addr) bool {
	return c.Networks == nil || contains(c.Networks, addr)
}

func contains(networks []netip.Prefix, addr netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

// offersAuth reports whether anybody can log in at all.
func (s *settings) offersAuth() bool { return s.Listener.Auth != AuthNone && len(s.clients) > 0 }

// trusts reports whether addr may send without logging in, as far as its network goes.
func (s *settings) trusts(addr netip.Addr) bool { return contains(s.Listener.AllowNetworks, addr) }
