package entra

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"relayd/pkg/entra/catalogue"
	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/credential"
	"relayd/pkg/status"
)

// cloud is where a national cloud's authority stands and what its tokens are for. Tokens of one are worth nothing in
// another. Authorities are Microsoft's documented ones, as are the worldwide scopes; the other scopes are what public code
// uses, so every field can be overridden. exchange is the audience of a managed identity's token that serves as assertion.
type cloud struct{ name, authority, resource, person, exchange string }

func clouds() []cloud {
	return []cloud{
		{"worldwide", "https://login.microsoftonline.com", "https://outlook.office365.com", "https://outlook.office.com",
			"api://AzureADTokenExchange"},
		{"gcc-high", "https://login.microsoftonline.us", "https://outlook.office365.us", "https://outlook.office365.us",
			"api://AzureADTokenExchangeUSGov"},
		{"dod", "https://login.microsoftonline.us", "https://outlook-dod.office365.us", "https://outlook-dod.office365.us",
			"api://AzureADTokenExchangeUSGov"},
		{"china", "https://login.partner.microsoftonline.cn", "https://partner.outlook.cn", "https://partner.outlook.cn",
			"api://AzureADTokenExchangeChina"},
	}
}

const (
	offline        = "offline_access"
	machineTimeout = 10 * time.Second // for a token of the managed identity, which comes from the machine itself
)

// registration is one configured tenant, with all that a request in its name needs.
type registration struct {
	name     string
	tokens   *Tokens
	tenant   Tenant // with its cloud's defaults
	appScope string // of client credentials
	client   *http.Client

	mu      sync.Mutex // guards what follows
	proof   credential.Credential
	machine *credential.Machine // the managed identity; nil: another credential
	problem *status.Error       // what the application was last refused; nil: nothing
}

// newRegistration checks a tenant and fills in its cloud's defaults.
func (t *Tokens) newRegistration(name string, tenant Tenant) (*registration, error) {
	if tenant.TenantID == "" || strings.Trim(strings.ToLower(tenant.TenantID), "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		return nil, errors.New("tenant_id must be the directory's GUID or one of its domains")
	}
	if tenant.ClientID == "" {
		return nil, errors.New("client_id is required")
	}
	all := clouds()
	i := slices.IndexFunc(all, func(c cloud) bool { return c.name == tenant.Cloud || tenant.Cloud == "" })
	if i < 0 {
		return nil, fmt.Errorf("unknown cloud %q: worldwide, gcc-high, dod and china are known", tenant.Cloud)
	}
	if tenant.Authority == "" {
		tenant.Authority = all[i].authority
	}
	authority, err := checkAuthority(tenant.Authority)
	if err != nil {
		return nil, err
	}
	tenant.Cloud, tenant.Authority = all[i].name, authority
	r := &registration{name: name, tokens: t, client: t.client(tenant), appScope: all[i].resource + "/.default"}
	switch {
	case !tenant.Delegated && tenant.Scope != "":
		r.appScope = tenant.Scope
	case !tenant.Delegated:
		tenant.Scope = r.appScope
	case tenant.Scope == "":
		tenant.Scope = all[i].person + "/SMTP.Send"
	default:
		words := slices.DeleteFunc(strings.Fields(tenant.Scope), func(s string) bool { return s == offline })
		tenant.Scope = strings.Join(words, " ")
	}
	r.tenant = tenant
	return r, r.prove(all[i].exchange)
}

// prove picks the credential: exactly one, or none of a public client.
func (r *registration) prove(audience string) error {
	t := r.tenant
	n := 0
	for _, has := range []bool{t.Secret != nil, t.Certificate != nil, t.FederatedToken != nil, t.ManagedIdentity != ""} {
		if has {
			n++
		}
	}
	switch {
	case n == 0 && !t.Delegated:
		return errors.New("a credential is required: client secret, certificate, federated token or managed identity")
	case n > 1:
		return errors.New("one credential is enough: client secret, certificate, federated token or managed identity")
	case t.Secret != nil:
		r.proof = credential.Secret(t.Secret)
	case t.Certificate != nil:
		r.proof = credential.Certificate(t.ClientID, t.Certificate)
	case t.FederatedToken != nil:
		r.proof = credential.Federated(t.FederatedToken)
	case t.ManagedIdentity != "":
		r.machine = &credential.Machine{ID: t.ManagedIdentity, Client: r.tokens.direct(), Getenv: os.Getenv}
		r.proof = r.machine.Federated(audience)
	default:
		r.proof = credential.None()
	}
	return nil
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

// direct returns the client for the machine itself: no proxy could reach it, and none may see its tokens.
func (t *Tokens) direct() *http.Client {
	c := t.client(Tenant{})
	c.Timeout = min(machineTimeout, t.options.HTTPTimeout)
	c.Transport.(*http.Transport).Proxy = nil // made above
	return c
}

// same reports whether a token of o serves as one of r.
func (r *registration) same(o *registration) bool {
	a, b := r.tenant, o.tenant
	return a.TenantID == b.TenantID && a.ClientID == b.ClientID && a.Authority == b.Authority && a.Scope == b.Scope &&
		a.Delegated == b.Delegated && a.RootCAs.Equal(b.RootCAs) && sameURL(a.Proxy, b.Proxy)
}

func sameURL(a, b *url.URL) bool {
	return a == b || a != nil && b != nil && a.String() == b.String()
}

// take takes up the credential of o.
func (r *registration) take(o *registration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.proof, r.machine, r.problem = o.proof, o.machine, nil
}

// purpose is what an access token of the registration is good for, to know one of another's, or of another time, by.
func (r *registration) purpose() string {
	return strings.Join([]string{r.tenant.Authority, r.tenant.TenantID, r.tenant.ClientID, r.tenant.Scope}, " ")
}

func (r *registration) endpoint(name string) string {
	return r.tenant.Authority + "/" + url.PathEscape(r.tenant.TenantID) + "/oauth2/v2.0/" + name
}

// public reports whether the client has nothing to prove itself by.
func (r *registration) public() bool {
	t := r.tenant
	return t.Secret == nil && t.Certificate == nil && t.FederatedToken == nil && t.ManagedIdentity == ""
}

// authenticate adds the client's credential to a form.
func (r *registration) authenticate(ctx context.Context, tokenURL string, form url.Values) error {
	r.mu.Lock()
	proof := r.proof
	r.mu.Unlock()
	return proof(ctx, tokenURL, form)
}

// explain reads an error by the rules. What the form of the request held of secrets is struck out of it.
func (r *registration) explain(err error, secrets ...string) (*status.Error, time.Duration) {
	if e, ok := errors.AsType[*status.Error](err); ok {
		return e, 0
	}
	return catalogue.Read(*r.tokens.rules.Load(), err, catalogue.Request{Person: r.tenant.Delegated, Secrets: secrets})
}

// secrets returns what a form holds of them.
func secrets(form url.Values) []string {
	var all []string
	for _, name := range []string{"client_secret", "client_assertion", "refresh_token"} {
		if value := form.Get(name); value != "" {
			all = append(all, value)
		}
	}
	return all
}

// own asks for a token of the application itself. Where the machine's managed identity is that application, the machine
// gives it; another application takes the identity's token for an assertion.
func (r *registration) own(ctx context.Context) (*oauth2.Token, time.Duration, *status.Error) {
	r.mu.Lock()
	machine := r.machine
	r.mu.Unlock()
	if machine != nil && (machine.ID == "system" || strings.EqualFold(machine.ID, r.tenant.ClientID)) {
		started := time.Now()
		tok, err := machine.Token(ctx, strings.TrimSuffix(r.appScope, "/.default"))
		switch {
		case err == nil && strings.EqualFold(fmt.Sprint(tok.Extra("client_id")), r.tenant.ClientID), err == nil && machine.ID != "system":
			return r.accept(tok, started)
		case err != nil && machine.ID != "system":
			e, hold := r.explain(err)
			return nil, hold, r.noted(e)
		}
	}
	return r.ask(ctx, r.appScope, url.Values{})
}

// refresh asks for a token by an owner's refresh token. The answer may hold a new one in its place.
func (r *registration) refresh(ctx context.Context, token string) (*oauth2.Token, time.Duration, *status.Error) {
	return r.ask(ctx, r.tenant.Scope+" "+offline, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
}

// ask makes one request to the token endpoint. hold is what Entra ID asks for before the next one; 0: nothing.
func (r *registration) ask(ctx context.Context, scope string, form url.Values) (*oauth2.Token, time.Duration, *status.Error) {
	config := clientcredentials.Config{ClientID: r.tenant.ClientID, TokenURL: r.endpoint("token"), Scopes: []string{scope},
		EndpointParams: form, AuthStyle: oauth2.AuthStyleInParams}
	started := time.Now()
	err := r.authenticate(ctx, config.TokenURL, form)
	var tok *oauth2.Token
	if err == nil {
		started = time.Now()
		tok, err = config.Token(context.WithValue(ctx, oauth2.HTTPClient, r.client))
	}
	if err != nil {
		e, hold := r.explain(err, secrets(form)...)
		return nil, hold, r.noted(e)
	}
	return r.accept(tok, started)
}

// accept checks an answer and bounds its life.
func (r *registration) accept(tok *oauth2.Token, started time.Time) (*oauth2.Token, time.Duration, *status.Error) {
	if err := check(tok); err != nil {
		return nil, 0, r.noted(catalogue.Temporary("Entra ID gave no usable access token", err))
	}
	lifetime := tok.Expiry.Sub(started)
	if tok.Expiry.IsZero() {
		lifetime = defaultLifetime
	}
	tok.Expiry = started.Add(min(lifetime, maxLifetime))
	r.tokens.options.Logger.Debug("access token fetched", zap.String("tenant", r.name), zap.Time("expiry", tok.Expiry))
	return tok, 0, r.noted(nil)
}

// noted counts a request and remembers what the application, as opposed to one mailbox, was refused.
func (r *registration) noted(e *status.Error) *status.Error {
	result := resultOK
	switch {
	case e != nil && catalogue.TemporaryAction(e.Action):
		result = resultTemporary
	case e != nil:
		result = resultRefused
	}
	r.tokens.metrics.asked(r.name, result)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case e == nil:
		r.problem = nil
	case e.Action == status.ParkTenant:
		r.problem = e
	}
	return e
}

// check refuses what could not be sent in XOAUTH2, where a control character would end a field.
func check(tok *oauth2.Token) error {
	if !strings.EqualFold(tok.Type(), "Bearer") {
		return errors.New("token_type is not Bearer")
	}
	for i := range len(tok.AccessToken) {
		if c := tok.AccessToken[i]; c <= ' ' || c >= 0x7f {
			return errors.New("access_token has characters that no token has")
		}
	}
	return nil
}

// probe asks for a device code, which needs no credential.
func (r *registration) probe(ctx context.Context) *status.Error {
	config := oauth2.Config{ClientID: r.tenant.ClientID, Scopes: []string{r.tenant.Scope},
		Endpoint: oauth2.Endpoint{DeviceAuthURL: r.endpoint("devicecode"), AuthStyle: oauth2.AuthStyleInParams}}
	if _, err := config.DeviceAuth(context.WithValue(ctx, oauth2.HTTPClient, r.client)); err != nil {
		e, _ := r.explain(err)
		return r.noted(e)
	}
	return r.noted(nil)
}

// Registration returns what consent for tenant is asked with. Errors are *status.Error.
func (t *Tokens) Registration(tenant string) (consent.Registration, error) {
	t.mu.Lock()
	r := t.tenants[tenant]
	t.mu.Unlock()
	if r == nil {
		return consent.Registration{}, unconfigured()
	}
	return consent.Registration{
		Name: r.name, TenantID: r.tenant.TenantID, ClientID: r.tenant.ClientID, Authority: r.tenant.Authority,
		Scope: r.tenant.Scope, Client: r.client, Authenticate: r.authenticate,
		Explain: func(err error, secrets ...string) *status.Error {
			e, _ := r.explain(err, secrets...)
			return e
		},
	}, nil
}
