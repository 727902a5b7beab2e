//go:build !openid

// Package provider speaks OpenID Connect to the provider that people log in by. In this build it refuses to: go.mod does not list
// a module that the real one needs.
package provider

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
)

var errMissing = errors.New("this build has no OpenID Connect: go.mod lacks github.com/go-jose/go-jose/v4")

// Options of [New].
type Options struct {
	Issuer       string
	ClientID     string
	ClientSecret func() (string, error)
	Groups       bool
	RootCAs      *x509.CertPool
	Client       *http.Client
}

// Flow is a sign-in under way.
type Flow struct{ State, Nonce, Verifier, Redirect string }

// Provider is an OpenID provider.
type Provider struct{}

// New says that there is none.
func New(Options) (*Provider, error) { return nil, errMissing }

// Start says that there is none.
func (*Provider) Start(context.Context, Flow) (string, error) { return "", errMissing }

// Finish says that there is none.
func (*Provider) Finish(context.Context, Flow, url.Values, any) error { return errMissing }
