// Package provider speaks OpenID Connect to the provider that people log in by: authorization code with PKCE.
//
// The provider is asked where its endpoints are when somebody wants to log in, so that the relay starts without it. The package
// keeps nothing but that, for an hour.
package provider

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	timeout      = 10 * time.Second // for one request to the provider
	metadataLife = time.Hour        // after which the provider is asked again where its endpoints are
	maxBody      = 1 << 20          // octets
)

// Options of [New]. Issuer and ClientID are required.
type Options struct {
	Issuer       string // URL, as tokens have it
	ClientID     string
	ClientSecret func() (string, error) // nil: a public client
	Groups       bool                   // ask for the scope "groups" where the provider has it
	RootCAs      *x509.CertPool         // for the provider's certificate; nil: the system's
	Client       *http.Client           // nil: one of its own with RootCAs
}

// Provider is an OpenID provider. It is safe for many callers at once.
type Provider struct {
	opts   Options
	client *http.Client

	mu       sync.Mutex // guards all below, and is held while the provider is asked
	found    *oidc.Provider
	metadata metadata
	asked    time.Time
}

// metadata is what go-oidc does not read of a provider's.
type metadata struct {
	Scopes  []string `json:"scopes_supported"`
	Methods []string `json:"token_endpoint_auth_methods_supported"`
	Iss     bool     `json:"authorization_response_iss_parameter_supported"`
}

// Flow is a sign-in under way.
type Flow struct {
	State    string
	Nonce    string
	Verifier string // RFC 7636
	Redirect string // the redirect URI
}

// New checks the options and asks nobody.
func New(opts Options) (*Provider, error) {
	u, err := url.Parse(opts.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("the issuer %q is not a URL with https; write the provider's, as it stands in its tokens", opts.Issuer)
	}
	if opts.ClientID == "" {
		return nil, errors.New("the client id is missing; write the one the provider gave relayd")
	}
	client := http.Client{}
	if opts.Client != nil {
		client = *opts.Client
	} else {
		client.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: opts.RootCAs, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: timeout, ForceAttemptHTTP2: true, MaxIdleConns: 4, IdleConnTimeout: time.Minute,
		}
	}
	if client.Transport == nil {
		client.Transport = http.DefaultTransport
	}
	client.Timeout, client.Transport = timeout, bounded{client.Transport}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // requests carry the secret
	return &Provider{opts: opts, client: &client}, nil
}

// bounded gives no answer that is larger than the provider's can sensibly be.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxBody), resp.Body}
	}
	return resp, err
}

// discover returns the provider's metadata, at most an hour old; older where it does not answer.
func (p *Provider) discover(ctx context.Context) (*oidc.Provider, metadata, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil && time.Since(p.asked) < metadataLife {
		return p.found, p.metadata, nil
	}
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.opts.Issuer)
	var m metadata
	if err == nil {
		err = found.Claims(&m)
	}
	if err == nil {
		err = onlyHTTPS(found)
	}
	switch {
	case err == nil:
		p.found, p.metadata, p.asked = found, m, time.Now()
	case p.found == nil:
		return nil, m, fmt.Errorf("ask the OpenID provider for its endpoints: %w", err)
	}
	return p.found, p.metadata, nil
}

func onlyHTTPS(p *oidc.Provider) error {
	for _, endpoint := range []string{p.Endpoint().AuthURL, p.Endpoint().TokenURL} {
		if !strings.HasPrefix(endpoint, "https://") {
			return fmt.Errorf("the endpoint %q is not https", endpoint)
		}
	}
	return nil
}

// config returns what requests to the provider are made with.
func (p *Provider) config(found *oidc.Provider, m metadata, redirect string) (*oauth2.Config, error) {
	c := &oauth2.Config{
		ClientID: p.opts.ClientID, Endpoint: found.Endpoint(), RedirectURL: redirect,
		Scopes: []string{oidc.ScopeOpenID, "profile", "email"},
	}
	if p.opts.Groups && slices.Contains(m.Scopes, "groups") {
		c.Scopes = append(c.Scopes, "groups")
	}
	c.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	if p.opts.ClientSecret == nil {
		return c, nil
	}
	secret, err := p.opts.ClientSecret()
	if err != nil {
		return nil, fmt.Errorf("read the client secret: %w", err)
	}
	c.ClientSecret = secret
	// Known beforehand, since a second try would use a code that is good once. Basic is the default (OpenID Connect Discovery,
	// section 3).
	if len(m.Methods) == 0 || slices.Contains(m.Methods, "client_secret_basic") {
		c.Endpoint.AuthStyle = oauth2.AuthStyleInHeader
	}
	return c, nil
}

// Start returns where to send the browser.
func (p *Provider) Start(ctx context.Context, f Flow) (string, error) {
	found, m, err := p.discover(ctx)
	if err != nil {
		return "", err
	}
	c, err := p.config(found, m, f.Redirect)
	if err != nil {
		return "", err
	}
	return c.AuthCodeURL(f.State, oidc.Nonce(f.Nonce), oauth2.S256ChallengeOption(f.Verifier)), nil
}

// Finish exchanges the code of an answer that belongs to f, checks the id token, and reads its claims into claims.
func (p *Provider) Finish(ctx context.Context, f Flow, answer url.Values, claims any) error {
	found, m, err := p.discover(ctx)
	if err != nil {
		return err
	}
	if iss := answer.Get("iss"); iss != p.opts.Issuer && (iss != "" || m.Iss) { // RFC 9207: a mix-up
		return errors.New("the answer is of another provider than the one that was asked")
	}
	c, err := p.config(found, m, f.Redirect)
	if err != nil {
		return err
	}
	ctx = oidc.ClientContext(ctx, p.client)
	token, err := c.Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(f.Verifier))
	if err != nil {
		return withoutBody(err)
	}
	raw, _ := token.Extra("id_token").(string)
	id, err := found.Verifier(&oidc.Config{ClientID: p.opts.ClientID}).Verify(ctx, raw)
	if err != nil {
		return fmt.Errorf("check the id token: %w", err)
	}
	if f.Nonce == "" || id.Nonce != f.Nonce {
		return errors.New("check the id token: it was not issued for this sign-in (nonce)")
	}
	var who struct {
		Party string `json:"azp"`
	}
	if err := errors.Join(id.Claims(&who), id.Claims(claims)); err != nil {
		return fmt.Errorf("read the id token: %w", err)
	}
	if who.Party != p.opts.ClientID && (who.Party != "" || len(id.Audience) > 1) { // OpenID Connect Core 3.1.3.7
		return errors.New("check the id token: it was issued for another application")
	}
	return nil
}

// withoutBody keeps the code of a refusal, and nothing else that the answer may repeat.
func withoutBody(err error) error {
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		return fmt.Errorf("exchange the code: the provider answers %s %s", e.Response.Status, e.ErrorCode)
	}
	return fmt.Errorf("exchange the code: %w", err)
}
