// Package entra gets access tokens from Microsoft Entra ID: the client-credentials grant with a secret, one cached token
// per tenant.
//
// A token is fetched when first asked for, renewed in the background well before it expires, and kept until its
// replacement is there: a failed renewal costs nothing while the old token lives. There is one request at a time per
// tenant, however many callers wait, and a failed one is remembered for a while, so that a thousand waiting workers are
// one client to Entra ID. The context of a caller ends that caller's wait, never the request.
//
// Nothing is stored: after a restart the first caller fetches anew. No secret and no token is ever part of an error, a
// log line or a metric.
package entra

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/oauth2"

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

// cloud is where a national cloud's authority stands and what its tokens are for. Tokens of one are worth nothing in
// another. Authorities are Microsoft's documented ones, as is the worldwide scope; the other scopes are what public code
// uses, so every field can be overridden.
type cloud struct{ name, authority, scope string }

func clouds() []cloud {
	return []cloud{
		{"worldwide", "https://login.microsoftonline.com", "https://outlook.office365.com/.default"},
		{"gcc-high", "https://login.microsoftonline.us", "https://outlook.office365.us/.default"},
		{"dod", "https://login.microsoftonline.us", "https://outlook-dod.office365.us/.default"},
		{"china", "https://login.partner.microsoftonline.cn", "https://partner.outlook.cn/.default"},
	}
}

// Tokens is the token sources of all tenants. It satisfies exchange.Tokens.
type Tokens struct {
	options Options
	metrics *metrics
	rules   atomic.Pointer[[]Rule]
	ctx     context.Context // of all requests; ended by Close
	cancel  context.CancelFunc
	fetches sync.WaitGroup // one for each request under way; Close waits

	mu      sync.Mutex // guards sources; held while a source's own is taken, never the other way
	sources map[string]*source

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
	t := &Tokens{options: o, metrics: newMetrics(o.Registerer), sources: map[string]*source{}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	if err := errors.Join(t.SetRules(o.Rules), t.Configure(o.Tenants)); err != nil {
		t.cancel()
		return nil, err
	}
	return t, nil
}

// Close ends all requests under way and waits for them. Callers still waiting get a temporary error.
func (t *Tokens) Close() {
	t.closing.Lock()
	t.closed = true
	t.closing.Unlock()
	t.cancel()
	t.fetches.Wait()
}

// Configure replaces the tenants. One whose registration and endpoint stay the same keeps its token, and takes up the
// new Secret. On an error, which names every faulty tenant, all stays as it was.
func (t *Tokens) Configure(tenants map[string]Tenant) error {
	fresh := make(map[string]*source, len(tenants))
	var errs []error
	for name, tenant := range tenants {
		s, err := t.newSource(name, tenant)
		if err != nil {
			errs = append(errs, fmt.Errorf("tenant %q: %w", name, err))
			continue
		}
		fresh[name] = s
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, old := range t.sources {
		s := fresh[name]
		switch {
		case s == nil:
			t.metrics.forget(name)
		case s.same(old):
			old.setSecret(s.secret)
			fresh[name] = old
		}
	}
	for name := range fresh {
		t.metrics.add(name)
	}
	t.sources = fresh
	return nil
}

// SetRules puts extra in front of relayd's own rules, from the next refusal on. One that has the name of one of ours takes
// its place instead: it keeps ours's texts where it has none, and what ours fits where it says nothing of its own about
// that. On an error, which is made of *[FieldError]s, all stays as it was.
func (t *Tokens) SetRules(extra []Rule) error {
	all, err := rules(extra)
	if err == nil {
		t.rules.Store(&all)
	}
	return err
}

// CheckRules reports what SetRules would refuse.
func CheckRules(extra []Rule) error {
	_, err := rules(extra)
	return err
}

// Token returns an access token for tenant. refused is "" or the token that Exchange Online has just refused: then a
// token other than that is fetched, in one request for all callers who report the same one.
//
// Refusals make at most refusalsPerMinute requests per tenant; past that, and should Entra ID itself repeat a token,
// the refused one is returned, and the caller must take the refusal as final. Errors are *status.Error with StageToken;
// login is not looked at, because an app-only token serves every mailbox of the tenant.
func (t *Tokens) Token(ctx context.Context, tenant, _ /* login */, refused string) (string, error) {
	tok, err := t.get(ctx, tenant, refused)
	if err != nil {
		return "", err
	}
	return tok.AccessToken, nil
}

// Source returns tenant's tokens in the form golang.org/x/oauth2 uses. Its errors are those of [Tokens.Token].
func (t *Tokens) Source(tenant string) oauth2.TokenSource { return tenantSource{t, tenant} }

type tenantSource struct {
	tokens *Tokens
	tenant string
}

func (s tenantSource) Token() (*oauth2.Token, error) {
	return s.tokens.get(s.tokens.ctx, s.tenant, "")
}

func (t *Tokens) get(ctx context.Context, tenant, refused string) (*oauth2.Token, error) {
	t.mu.Lock()
	s := t.sources[tenant]
	t.mu.Unlock()
	if s == nil {
		return nil, unconfigured()
	}
	return s.get(ctx, refused)
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

// newSource checks a tenant and fills in its cloud's defaults.
func (t *Tokens) newSource(name string, tenant Tenant) (*source, error) {
	if tenant.TenantID == "" || strings.Trim(strings.ToLower(tenant.TenantID), "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		return nil, errors.New("tenant_id must be the directory's GUID or one of its domains")
	}
	if tenant.ClientID == "" || tenant.Secret == nil {
		return nil, errors.New("client_id and a client secret are required")
	}
	all := clouds()
	i := slices.IndexFunc(all, func(c cloud) bool { return c.name == tenant.Cloud || tenant.Cloud == "" })
	if i < 0 {
		return nil, fmt.Errorf("unknown cloud %q: worldwide, gcc-high, dod and china are known", tenant.Cloud)
	}
	if tenant.Authority == "" {
		tenant.Authority = all[i].authority
	}
	if tenant.Scope == "" {
		tenant.Scope = all[i].scope
	}
	authority, err := checkAuthority(tenant.Authority)
	if err != nil {
		return nil, err
	}
	tenant.Cloud, tenant.Authority = all[i].name, authority
	return &source{name: name, tokens: t, tenant: tenant, secret: tenant.Secret, client: t.client(tenant)}, nil
}

// checkAuthority returns the base URL without a slash at its end. A secret travels to it: https, or the machine itself.
func checkAuthority(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("authority must be a URL like https://login.microsoftonline.com")
	}
	ip, err := netip.ParseAddr(u.Hostname())
	loopback := u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
	if u.Scheme != "https" && !(u.Scheme == "http" && loopback) {
		return "", errors.New("authority must be https: a client secret is sent to it")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// client returns an HTTP client that follows no redirect, because the request carries a secret, and keeps no connection,
// because the next request is most of an hour away.
func (t *Tokens) client(tenant Tenant) *http.Client {
	proxy := http.ProxyFromEnvironment
	if tenant.Proxy != nil {
		proxy = http.ProxyURL(tenant.Proxy)
	}
	return &http.Client{
		Timeout:       t.options.HTTPTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  proxy,
			DialContext:            t.options.Dial,
			TLSClientConfig:        &tls.Config{RootCAs: tenant.RootCAs, MinVersion: tls.VersionTLS12},
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
}
