// Package entra gets access tokens from Microsoft Entra ID: for the application itself (client credentials), one for each
// tenant, and on behalf of the mailboxes' owners (refresh tokens), one for each mailbox.
//
// A token is fetched when first asked for, renewed in the background well before it expires, and kept until its
// replacement is there: a failed renewal costs nothing while the old token lives. There is one request at a time for each
// token, however many callers wait on however many nodes, and a failed one is remembered for a while, so that a thousand
// waiting workers are one client to Entra ID. The context of a caller ends that caller's wait, never the request.
//
// Tokens stand in Options.Records, which the nodes share. Who is to fetch writes its name and a time into the record, by
// compare-and-swap; the others wait for the result to stand there, or for that time to pass. A new refresh token, and the
// access token that came with it, is stored before anyone uses either; a store that fails is tried again until it does not.
// So whatever happens:
//
//   - crash before the request, or in it: the lease ends by itself, another node asks with the refresh token that is stored.
//   - crash between the answer and its being stored: the answer is lost. Entra ID takes the old refresh token still; an issuer
//     that revokes it at once makes the owner sign in again. An answer that is lost on the network is the same.
//   - store away: tokens that are cached serve until they expire, and an application's own token is fetched without being
//     shared. Close waits for a refresh under way, and tries once more to store its answer.
//   - two nodes at one refresh token all the same, because a clock is wrong or a node lost touch with the store: whoever was
//     answered with a token overrules whoever was refused one.
//
// No secret and no token is ever part of an error, a log line or a metric.
package entra

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"relayd/pkg/entra/catalogue"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

// Tenant is one app registration.
type Tenant struct {
	TenantID string // directory (tenant) ID: a GUID or a verified domain
	ClientID string // application (client) ID

	// Exactly one credential; none for a public client, which Delegated must be set for. Functions are called for each
	// request, so that what was rotated is taken up.
	Secret          func() (string, error)          // the client secret
	Certificate     func() (tls.Certificate, error) // certificate and key that sign client assertions
	FederatedToken  func() (string, error)          // a token of a trusted issuer, such as a Kubernetes service account's
	ManagedIdentity string                          // of the Azure machine: "system", or the client ID of a user-assigned one

	Delegated bool // a person signs in for each mailbox; else the application acts in its own name

	Cloud     string         // worldwide, gcc-high, dod or china; empty: worldwide
	Authority string         // base URL in front of the tenant ID; empty: the cloud's. http only to loopback
	Scope     string         // empty: the cloud's scope for SMTP
	RootCAs   *x509.CertPool // nil: the system's
	Proxy     *url.URL       // nil: as the environment says (HTTPS_PROXY)
}

// Options configures [New].
type Options struct {
	Tenants     map[string]Tenant // by the name the configuration gives
	HTTPTimeout time.Duration     // for one request from dialling to the last byte; 0: 30 s
	Rules       []Rule            // of the operator's, for what Entra ID refuses with; see SetRules
	// Records keeps grants and access tokens, and is shared with other nodes; nil: in memory only.
	Records      grant.Records
	Node         string      // name of this process among those that share Records; empty: a random one
	SenderLabels int         // most values of the label "sender"; 0: 200
	Logger       *zap.Logger // nil: none
	Registerer   prometheus.Registerer
	// Dial opens the connections to Entra ID; nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Tokens is the token sources of all tenants. It satisfies exchange.Tokens.
type Tokens struct {
	options Options
	metrics *metrics
	rules   atomic.Pointer[[]Rule]
	ctx     context.Context // of all requests; ended by Close
	cancel  context.CancelFunc
	fetches sync.WaitGroup // one for each request under way; Close waits

	mu      sync.Mutex               // guards what follows; held while a source's own is taken, never the other way
	tenants map[string]*registration // by name
	sources map[string]*source       // by the name of their record

	closing sync.Mutex // guards closed
	closed  bool
}

// New checks the tenants and returns their token sources; it asks Entra ID nothing. Close it when done.
func New(o Options) (*Tokens, error) {
	if o.HTTPTimeout == 0 {
		o.HTTPTimeout = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Records == nil {
		o.Records = grant.NewMemory()
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: o.HTTPTimeout}).DialContext
	}
	if o.Node == "" {
		o.Node = rand.Text()
	}
	if o.SenderLabels == 0 {
		o.SenderLabels = 200
	}
	t := &Tokens{options: o, metrics: newMetrics(o.Registerer, o.SenderLabels),
		tenants: map[string]*registration{}, sources: map[string]*source{}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	if err := errors.Join(t.SetRules(o.Rules), t.Configure(o.Tenants)); err != nil {
		t.cancel()
		return nil, err
	}
	return t, nil
}

// Close ends all requests under way and waits for them, except that what an owner's refresh token is asked for is heard to
// its end, since the answer may hold the only one that is good from now on. Callers still waiting get a temporary error.
func (t *Tokens) Close() {
	t.closing.Lock()
	t.closed = true
	t.closing.Unlock()
	t.cancel()
	t.fetches.Wait()
}

// Configure replaces the tenants. One whose registration and endpoint stay the same keeps its token, and takes up the
// new credential. On an error, which names every faulty tenant, all stays as it was.
func (t *Tokens) Configure(tenants map[string]Tenant) error {
	fresh := make(map[string]*registration, len(tenants))
	var errs []error
	for name, tenant := range tenants {
		r, err := t.newRegistration(name, tenant)
		if err != nil {
			errs = append(errs, fmt.Errorf("tenant %q: %w", name, err))
			continue
		}
		fresh[name] = r
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, old := range t.tenants {
		r := fresh[name]
		switch {
		case r == nil:
			t.metrics.forget(name)
		case r.same(old):
			old.take(r)
			fresh[name] = old
		}
	}
	for name := range fresh {
		t.metrics.add(name)
	}
	t.tenants = fresh
	for name, s := range t.sources {
		if fresh[s.reg.name] != s.reg {
			delete(t.sources, name)
			continue
		}
		s.release() // the reload may be the cure: what the old credential was told is no news
	}
	return nil
}

// SetRules puts extra in front of relayd's own rules, from the next refusal on. One that has the name of one of ours takes
// its place instead: it keeps ours's texts where it has none, and what ours fits where it says nothing of its own about
// that. On an error, which is made of *[FieldError]s, all stays as it was.
func (t *Tokens) SetRules(extra []Rule) error {
	all, err := catalogue.Rules(extra)
	if err == nil {
		t.rules.Store(&all)
	}
	return err
}

// CheckRules reports what SetRules would refuse.
func CheckRules(extra []Rule) error {
	_, err := catalogue.Rules(extra)
	return err
}

// Rule is one line of what relayd knows of Entra ID's refusals.
type Rule = catalogue.Rule

// FieldError says what is wrong with a rule of the operator's.
type FieldError = catalogue.FieldError

// Markdown writes relayd's own rules as a page for operators: docs/token-refusals.md.
func Markdown(w io.Writer) error { return catalogue.Markdown(w) }

// Token returns an access token for tenant: the application's own, or, where persons sign in for their mailboxes, that of
// login. refused is "" or the token that Exchange Online has just refused: then a token other than that is fetched, in one
// request for all callers who report the same one.
//
// Refusals make at most refusalsPerMinute requests for each token; past that, and should Entra ID itself repeat a token,
// the refused one is returned, and the caller must take the refusal as final. Errors are *status.Error with StageToken.
// Of a login whose owner has not consented yet, or must again, they park the sender.
func (t *Tokens) Token(ctx context.Context, tenant, login, refused string) (string, error) {
	tok, err := t.get(ctx, tenant, login, refused)
	if err != nil {
		return "", err
	}
	return tok.AccessToken, nil
}

// Source returns tenant's own tokens in the form golang.org/x/oauth2 uses; of a mailbox's see [Tokens.Grant] for the times.
// Its errors are those of [Tokens.Token].
func (t *Tokens) Source(tenant string) oauth2.TokenSource { return tokenSource{t, tenant} }

type tokenSource struct {
	tokens *Tokens
	tenant string
}

func (s tokenSource) Token() (*oauth2.Token, error) {
	return s.tokens.get(s.tokens.ctx, s.tenant, "", "")
}

func (t *Tokens) get(ctx context.Context, tenant, login, refused string) (*oauth2.Token, error) {
	s := t.source(tenant, login)
	if s == nil {
		return nil, unconfigured()
	}
	return s.get(ctx, refused)
}

// source returns the source of a tenant's or mailbox's tokens; nil: the tenant is not configured.
func (t *Tokens) source(tenant, login string) *source {
	t.mu.Lock()
	defer t.mu.Unlock()
	reg := t.tenants[tenant]
	if reg == nil {
		return nil
	}
	if login = strings.ToLower(login); !reg.tenant.Delegated {
		login = ""
	}
	record := grant.Name(tenant, login)
	if reg.tenant.Delegated && login == "" {
		record = "user/" // no grant has that name
	}
	s := t.sources[record]
	if s == nil || s.reg != reg {
		s = &source{reg: reg, tokens: t, login: login, record: record, asked: time.Now()}
		t.sources[record] = s
	}
	return s
}

func unconfigured() *status.Error {
	return &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageToken,
		Action: status.ParkTenant, Text: "the sender's tenant is not configured",
		Cause: "the configuration has no such tenant", Advice: "Add the tenant to tenants, or take its senders out of senders"}
}

// start runs fetch in a goroutine that Close waits for, and reports false once closed.
func (t *Tokens) start(fetch func()) bool {
	t.closing.Lock()
	defer t.closing.Unlock()
	if t.closed {
		return false
	}
	t.fetches.Go(fetch)
	return true
}
