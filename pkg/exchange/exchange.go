// Package exchange delivers messages to Exchange Online: SMTP submission over STARTTLS with XOAUTH2, on sessions kept
// per mailbox.
//
// A [Pool] holds no message and remembers nothing but idle sessions; a crash loses none of ours. What a crash, or a lost
// connection, means for the message under way depends on how far it came:
//
//	before the final dot    nothing was accepted: retry
//	from the final dot on   unknown until the reply is read (RFC 1047): uncertain
//
// What may not be the message's fault never fails it: authentication parks its sender or tenant, quotas hold the sender's
// mail until they heal, the unknown is temporary. Below this package are submission, the sessions, and catalogue, what the
// replies mean.
package exchange

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/exchange/submission"
	"relayd/pkg/status"
)

// DefaultServer is Exchange Online's submission service, worldwide and GCC.
const DefaultServer = "smtp.office365.com:587"

// Tokens gives access tokens.
type Tokens interface {
	// Token returns a bearer token for login of tenant. refused is "" or the token that Exchange Online has just
	// refused: then a different, fresh one is fetched, in one request however many workers report the same refusal. The
	// refused one returned again says that there is none to be had. Errors are *status.Error with StageToken.
	Token(ctx context.Context, tenant, login, refused string) (string, error)
}

// Tenant is what sessions for one tenant need.
type Tenant struct {
	Server  string         // host:port; the certificate must name the host; empty: DefaultServer
	RootCAs *x509.CertPool // nil: the system's
}

// Options configures [New]. Hostname and Tokens are required.
type Options struct {
	Hostname    string            // for EHLO; Exchange Online refuses what is not a fully qualified domain name
	Tenants     map[string]Tenant // by the name a Route gives
	Tokens      Tokens
	Logger      *zap.Logger           // nil: none
	Registerer  prometheus.Registerer // nil: metrics are kept and not shown
	Timeouts    Timeouts
	IdleLimit   time.Duration        // an unused session is closed after this; 0: 60 s (Exchange Online drops it after 5 minutes)
	AgeLimit    time.Duration        // a session is not used again after this; 0: 15 min (Exchange Online ends it after 20)
	MaxMessages int                  // per session; 0: 500
	MaxIdle     int                  // idle sessions of all mailboxes together; 0: 1000
	Catalogue   *catalogue.Catalogue // what the replies mean; nil: catalogue.Default
	// Dial opens connections; nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Timeouts are the longest waits for one step of the far end. A zero field is the minimum that RFC 5321 section 4.5.3.2
// asks for, where it asks.
type Timeouts struct {
	Connect  time.Duration // TCP; 0: 30 s
	Greeting time.Duration // 220; 0: 5 min
	Command  time.Duration // EHLO, STARTTLS and the handshake, AUTH, MAIL, RCPT, RSET; 0: 5 min
	Data     time.Duration // DATA; 0: 2 min
	Block    time.Duration // for the far end to take one block of the message, 32 KB; 0: 3 min
	Dot      time.Duration // the reply to the final dot; 0: 10 min
}

// Pool is the sessions with Exchange Online. All its methods may be called at any time from any goroutine.
type Pool struct {
	options   Options
	metrics   *metrics
	client    *submission.Client
	catalogue atomic.Pointer[catalogue.Catalogue]
	unknown   *unknown

	mu      sync.Mutex // guards what follows
	tenants map[string]*tenant
	idle    map[string][]*session // by Route.Mailbox; the last is the latest used
	idling  int                   // sessions in idle
	closed  bool
}

// tenant is a Tenant in use. A changed one is a new one, and sessions of the old are not used again.
type tenant struct {
	Tenant
	name         string
	tls          *tls.Config
	active, idle prometheus.Gauge
}

// New checks the options and returns a Pool without sessions.
func New(o Options) (*Pool, error) {
	if o.Hostname == "" || strings.ContainsFunc(o.Hostname, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("hostname must be a domain name")
	}
	if o.Tokens == nil {
		return nil, errors.New("no source of tokens")
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.MaxMessages == 0 {
		o.MaxMessages = 500
	}
	if o.MaxIdle == 0 {
		o.MaxIdle = 1000
	}
	t := &o.Timeouts
	for _, d := range []struct {
		value *time.Duration
		zero  time.Duration
	}{
		{&o.IdleLimit, time.Minute}, {&o.AgeLimit, 15 * time.Minute}, {&t.Connect, 30 * time.Second},
		{&t.Greeting, 5 * time.Minute}, {&t.Command, 5 * time.Minute}, {&t.Data, 2 * time.Minute},
		{&t.Block, 3 * time.Minute}, {&t.Dot, 10 * time.Minute},
	} {
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	p := &Pool{options: o, metrics: newMetrics(o.Registerer), tenants: map[string]*tenant{}, idle: map[string][]*session{}}
	p.SetCatalogue(o.Catalogue)
	p.unknown = &unknown{metrics: p.metrics, logger: o.Logger, told: map[replyKind]time.Time{}}
	p.client = &submission.Client{Hostname: o.Hostname, Count: p.metrics.count, Catalogue: p.catalogue.Load, Unknown: p.unknown.reply,
		Timeouts: submission.Timeouts{Greeting: t.Greeting, Command: t.Command, Data: t.Data, Block: t.Block, Dot: t.Dot}}
	return p, p.Configure(o.Tenants)
}

// Configure replaces the tenants. Idle sessions of those that changed or went are closed, busy ones end with their
// delivery. On an error all stays as it was.
func (p *Pool) Configure(tenants map[string]Tenant) error {
	fresh := make(map[string]*tenant, len(tenants))
	for name, t := range tenants {
		if t.Server == "" {
			t.Server = DefaultServer
		}
		host, _, err := net.SplitHostPort(t.Server)
		if err != nil || host == "" {
			return fmt.Errorf("tenant %q: server must be host:port", name)
		}
		fresh[name] = &tenant{
			Tenant: t, name: name,
			tls: &tls.Config{ServerName: host, RootCAs: t.RootCAs, MinVersion: tls.VersionTLS12,
				ClientSessionCache: tls.NewLRUClientSessionCache(16), DynamicRecordSizingDisabled: true},
			active: p.metrics.connections.WithLabelValues(name, "active"),
			idle:   p.metrics.connections.WithLabelValues(name, "idle"),
		}
	}
	p.mu.Lock()
	for name, old := range p.tenants {
		if t := fresh[name]; t != nil && t.Server == old.Server && t.RootCAs.Equal(old.RootCAs) {
			fresh[name] = old
		}
	}
	p.tenants = fresh
	p.mu.Unlock()
	p.reap(time.Now())
	return nil
}

// SetCatalogue replaces what the replies mean, from the next reply on; nil: catalogue.Default.
func (p *Pool) SetCatalogue(c *catalogue.Catalogue) {
	if c == nil {
		c = catalogue.Default()
	}
	p.catalogue.Store(c)
}

// Run closes idle sessions when their time has come, until ctx ends; then it closes all and returns nil. Deliveries
// still under way may finish, and leave no session behind.
func (p *Pool) Run(ctx context.Context) error {
	tick := time.NewTicker(max(p.options.IdleLimit/4, 100*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			p.reap(now)
		case <-ctx.Done():
			p.mu.Lock()
			p.closed = true
			p.mu.Unlock()
			p.reap(time.Now())
			return nil
		}
	}
}

// Deliver tries the recipients env.Recipients[i] for i in open. body is the message exactly as stored, env.Size octets
// long; it is read at most once, and not past a fault. When ctx ends, so does the connection.
//
// A reused session that proves dead, and a token that is refused, are replaced once, as long as nothing of body has
// been read.
func (p *Pool) Deliver(ctx context.Context, route *envelope.Route, env *envelope.Envelope, open []int, body io.Reader) status.Outcome {
	d := &submission.Delivery{Env: env, Open: open, Body: body, Errs: make([]*status.Error, len(open))}
	if len(open) == 0 {
		return status.Outcome{}
	}
	if e := p.deliver(ctx, route, d); e != nil {
		for i := range d.Errs {
			if d.Errs[i] == nil {
				d.Errs[i] = e
			}
		}
	}
	return status.Outcome{Reply: d.Reply, Errs: d.Errs}
}

// deliver returns the error of all recipients that have none of their own; nil: those are accepted.
func (p *Pool) deliver(ctx context.Context, route *envelope.Route, d *submission.Delivery) *status.Error {
	p.mu.Lock()
	t := p.tenants[route.Tenant]
	p.mu.Unlock()
	switch {
	case t == nil:
		return &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageConnect,
			Action: status.ParkTenant, Text: "the sender's tenant is not configured",
			Cause: "the configuration has no such tenant", Advice: "Add the tenant to tenants, or take its senders out of senders"}
	case route.Login == "" || !submission.Sendable(route.Login):
		return &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageConnect,
			Action: status.ParkSender, Text: "the sender's login is not a mailbox",
			Cause: "the sender's login is empty, or holds characters no mailbox has", Advice: "Correct login of the sender"}
	}
	var (
		s       = p.take(t, route)
		refused string        // the token that was, once
		verdict *status.Error // what was said of it
	)
	for {
		reused := s != nil
		if !reused {
			token, err := p.options.Tokens.Token(ctx, t.name, string(route.Login), refused)
			if err != nil {
				return status.From(err)
			}
			if refused != "" && token == refused {
				return verdict
			}
			var e *status.Error
			if s, e = p.connect(ctx, t, route, token); e != nil {
				if refused != "" || !p.client.TokenAtFault(e) {
					return e
				}
				refused, verdict = token, e
				continue
			}
		}
		e, died := p.use(ctx, s, route, d, reused)
		switch {
		case e == nil || d.Started || ctx.Err() != nil:
			return e
		case refused == "" && p.client.TokenAtFault(e):
			refused, verdict = s.token, e
		case !reused || !died:
			return e
		}
		s = nil
	}
}

// use runs one delivery on s and then keeps or closes it, even when the delivery panics: s is not the caller's any more.
func (p *Pool) use(ctx context.Context, s *session, route *envelope.Route, d *submission.Delivery, reused bool) (e *status.Error, died bool) {
	keep := false
	defer func() {
		if keep {
			p.release(s, route.Connections)
			return
		}
		s.tenant.active.Dec()
		p.close(s)
	}()
	e = s.Deliver(ctx, d)
	died = s.Broken()
	if died && e != nil && (!reused || d.Started) { // that an old session has died is no news
		p.logFailure(route, e, zap.String("id", string(d.Env.ID)))
	}
	keep = !died && !p.client.TokenAtFault(e)
	return e, died
}

// connect opens and authenticates a session.
func (p *Pool) connect(ctx context.Context, t *tenant, route *envelope.Route, token string) (*session, *status.Error) {
	dialing, cancel := context.WithTimeout(ctx, p.options.Timeouts.Connect)
	defer cancel()
	conn, err := p.options.Dial(dialing, "tcp", t.Server)
	if err != nil {
		e := &status.Error{Code: 451, Enhanced: status.Enhanced{4, 4, 1}, Stage: status.StageConnect,
			Text: "Exchange Online cannot be reached", Err: err}
		if ctx.Err() == nil { // the tenant rests, not only this message: each attempt would hold a worker as long as this one
			e.Action = status.BackOffTenant
		}
		p.logFailure(route, e)
		return nil, e
	}
	s := &session{tenant: t, mailbox: route.Mailbox(), login: string(route.Login), token: token, born: time.Now()}
	var e *status.Error
	if s.Session, e = p.client.Open(ctx, conn, t.tls, route.Login, token); e != nil {
		if e.Stage == status.StageGreeting && e.Err != nil && ctx.Err() == nil { // silence: as good as not reached
			e.Action = status.BackOffTenant
		}
		p.logFailure(route, e)
		return nil, e
	}
	t.active.Inc()
	p.options.Logger.Debug("session opened", zap.String("tenant", t.name), zap.String("login", string(route.Login)))
	return s, nil
}

// logFailure says why a session came to its end, or to none.
func (p *Pool) logFailure(route *envelope.Route, e *status.Error, more ...zap.Field) {
	p.options.Logger.Warn("session failed", append(more, zap.String("tenant", route.Tenant),
		zap.String("login", string(route.Login)), zap.String("stage", string(e.Stage)), zap.Int("code", e.Code),
		zap.Stringer("enhanced", e.Enhanced), zap.String("reply", e.Text), zap.String("rule", e.Rule),
		zap.Error(e.Err))...)
}
