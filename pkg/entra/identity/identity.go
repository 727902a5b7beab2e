// Package identity reads the id_token of a sign-in (OpenID Connect Core 1.0, section 3.1.3.7): who signed in, and where.
//
// What a tenant's tokens are checked against, its issuer and keys, comes from its OpenID metadata below the operator's
// authority, and is kept for an hour; keys are fetched anew where a token names one that is not known. Nothing survives the
// process, and nothing needs to.
package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
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
)

// Registration is what a token must be for.
type Registration struct {
	Authority string       // base URL in front of the tenant ID
	TenantID  string       // a GUID or a verified domain
	ClientID  string       // the audience
	Client    *http.Client // makes the requests
}

// User is who signed in.
type User struct {
	Name     string   // as Entra ID shows it: preferred_username, or the first other name there is
	Names    []string // all addresses the token gives for the user: preferred_username, upn, email
	ObjectID string
	TenantID string
}

// Is reports whether address is one of the user's, without regard to case.
func (u *User) Is(address string) bool {
	return slices.ContainsFunc(u.Names, func(n string) bool { return strings.EqualFold(n, address) })
}

// The ways in which a token is not the one that was asked for.
var (
	ErrTenant = errors.New("the id_token is of another tenant")
	ErrNonce  = errors.New("the id_token is of another sign-in")
)

const (
	keepMetadata  = time.Hour
	metadataBytes = 1 << 20
	mostTenants   = 1000 // whose metadata is kept
)

// Checker checks id_tokens. Its methods may be called at once.
type Checker struct {
	mu    sync.Mutex // guards known
	known map[string]metadata
}

type metadata struct {
	Issuer  string `json:"issuer"`
	KeysURI string `json:"jwks_uri"`
	keys    oidc.KeySet
	until   time.Time
}

// Issuer returns the issuer of the tenant's tokens.
func (c *Checker) Issuer(ctx context.Context, r Registration) (string, error) {
	m, err := c.metadata(ctx, r)
	return m.Issuer, err
}

// Check returns who the token says has signed in. nonce is the one that was sent with the request; empty: none was, as with
// a device code. Errors: [ErrTenant], [ErrNonce], and those of a token that is not good, or of metadata that cannot be had.
func (c *Checker) Check(ctx context.Context, r Registration, raw, nonce string) (*User, error) {
	m, err := c.metadata(ctx, r)
	if err != nil {
		return nil, err
	}
	verifier := oidc.NewVerifier(m.Issuer, m.keys, &oidc.Config{
		ClientID:             r.ClientID,
		SupportedSigningAlgs: []string{oidc.RS256, oidc.PS256, oidc.ES256},
	})
	token, err := verifier.Verify(oidc.ClientContext(ctx, r.Client), raw)
	if err != nil {
		if other := issuerOf(raw); other != "" && other != m.Issuer {
			return nil, ErrTenant
		}
		return nil, fmt.Errorf("check id_token: %w", err)
	}
	if token.Nonce != nonce {
		return nil, ErrNonce
	}
	var claims struct {
		Preferred string `json:"preferred_username"`
		UPN       string `json:"upn"`
		Email     string `json:"email"`
		ObjectID  string `json:"oid"`
		TenantID  string `json:"tid"`
	}
	if err := token.Claims(&claims); err != nil {
		return nil, fmt.Errorf("read id_token: %w", err)
	}
	if claims.TenantID != "" && strings.Count(r.TenantID, "-") == 4 && !strings.EqualFold(claims.TenantID, r.TenantID) {
		return nil, ErrTenant
	}
	u := &User{ObjectID: claims.ObjectID, TenantID: claims.TenantID}
	for _, name := range []string{claims.Preferred, claims.UPN, claims.Email} {
		if name != "" && !u.Is(name) {
			u.Names = append(u.Names, name)
		}
	}
	if len(u.Names) == 0 {
		return nil, errors.New("read id_token: it names no user")
	}
	u.Name = u.Names[0]
	if u.ObjectID == "" {
		u.ObjectID = token.Subject
	}
	return u, nil
}

// issuerOf reads the issuer of a token that was refused; "" where it has none.
func issuerOf(raw string) string {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Issuer string `json:"iss"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return ""
	}
	return claims.Issuer
}

func (c *Checker) metadata(ctx context.Context, r Registration) (metadata, error) {
	key := r.Authority + "/" + r.TenantID
	c.mu.Lock()
	m, ok := c.known[key]
	c.mu.Unlock()
	if ok && time.Now().Before(m.until) {
		return m, nil
	}
	m, err := fetch(ctx, r)
	if err != nil {
		return m, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= mostTenants {
		c.known = map[string]metadata{}
	}
	c.known[key] = m
	return m, nil
}

// fetch asks for the tenant's OpenID metadata. The keys must stand where the metadata does: a request to any other host would
// be one the operator has not chosen.
func fetch(ctx context.Context, r Registration) (m metadata, err error) {
	at := r.Authority + "/" + url.PathEscape(r.TenantID) + "/v2.0/.well-known/openid-configuration"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return m, fmt.Errorf("get OpenID metadata: %w", err)
	}
	resp, err := r.Client.Do(req)
	if err != nil {
		return m, fmt.Errorf("get OpenID metadata: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return m, fmt.Errorf("get OpenID metadata: %s", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, metadataBytes)).Decode(&m); err != nil || m.Issuer == "" {
		return m, errors.New("get OpenID metadata: the answer is none")
	}
	keys, err := url.Parse(m.KeysURI)
	authority, authorityErr := url.Parse(r.Authority)
	if err != nil || authorityErr != nil || keys.Host != authority.Host {
		return m, errors.New("get OpenID metadata: the keys are at another host than the authority")
	}
	keys.Scheme = authority.Scheme // never weaker than what the operator has chosen
	// The key set outlives this request, so its context does too.
	m.keys = oidc.NewRemoteKeySet(oidc.ClientContext(context.WithoutCancel(ctx), r.Client), keys.String())
	m.until = time.Now().Add(keepMetadata)
	return m, nil
}
