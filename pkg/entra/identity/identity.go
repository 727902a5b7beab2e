// Package identity reads ID tokens of Entra ID: who signed in, and in which organisation.
//
// The issuer and the keys come from the tenant's OpenID metadata, {authority}/{tenant}/v2.0/.well-known/openid-configuration,
// so a tenant may be named by one of its domains too. Both are kept in memory, the metadata for an hour and the keys until a
// token names one that is not among them; nothing is stored. The metadata and the keys must come from the host the
// operator's authority names. The organisation is checked by itself, because Entra ID signs for all of them with the same
// keys (https://learn.microsoft.com/entra/identity-platform/claims-validation).
package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// What is wrong with an ID token, or with a sign-in's answer. Whatever else fails is that Entra ID could not be asked.
var (
	ErrToken    = errors.New("the ID token is not one of Entra ID's") // malformed, or the signature does not hold
	ErrIssuer   = errors.New("the ID token is of another issuer")
	ErrTenant   = errors.New("the ID token is of another tenant")
	ErrAudience = errors.New("the ID token is for another application")
	ErrNonce    = errors.New("the ID token is of another sign-in")
	ErrExpired  = errors.New("the ID token has expired, or is of the future")
)

const (
	metadataLife = time.Hour
	maxBody      = 1 << 20 // octets of metadata or keys
	skew         = 5 * time.Minute
	maxTenants   = 1000 // whose metadata is kept
)

// Tenant says where a tenant's metadata is.
type Tenant struct {
	Authority string       // base URL in front of the ID
	ID        string       // GUID or verified domain
	Client    *http.Client // makes the requests; it should have a timeout and follow no redirect
}

// Issuer is what a tenant's metadata says of it.
type Issuer struct {
	URL      string // the iss of its tokens
	TenantID string // the tenant's own ID, also where it was asked for by a domain
	// Declares reports that each answer of the authorize page names its issuer in the parameter iss (RFC 9207).
	Declares bool
}

// User is who signed in.
type User struct {
	Name      string   // as Entra ID shows it: the user name, usually an address; safe to print
	Addresses []string // every address the token gives the user: preferred_username, upn, email
	ObjectID  string   // of the account in its tenant
	TenantID  string
}

// Is reports whether address is one of the user's, without regard to case.
func (u *User) Is(address string) bool {
	return address != "" && slices.ContainsFunc(u.Addresses, func(a string) bool { return strings.EqualFold(a, address) })
}

// Verifier checks ID tokens. It is safe for concurrent use.
type Verifier struct {
	mu    sync.Mutex // guards known
	known map[string]*metadata
}

type metadata struct {
	issuer  Issuer
	keysURL string
	keys    *oidc.RemoteKeySet
	fetched time.Time
}

// New returns a Verifier that knows nothing yet.
func New() *Verifier { return &Verifier{known: map[string]*metadata{}} }

// Issuer returns what the tenant's metadata says; it is asked for at most once an hour. An error means it could not be had.
func (v *Verifier) Issuer(ctx context.Context, t Tenant) (Issuer, error) {
	m, err := v.metadata(ctx, t)
	if err != nil {
		return Issuer{}, err
	}
	return m.issuer, nil
}

// Verify checks a raw ID token (OpenID Connect Core 1.0, section 3.1.3.7) and returns who signed in. nonce is what the
// sign-in was begun with; empty: it was begun without. An error is one of those above, or means the keys could not be had;
// none holds the token.
func (v *Verifier) Verify(ctx context.Context, t Tenant, clientID, nonce, raw string) (*User, error) {
	m, err := v.metadata(ctx, t)
	if err != nil {
		return nil, err
	}
	watch := &keyWatch{keys: m.keys}
	verifier := oidc.NewVerifier(m.issuer.URL, watch, &oidc.Config{
		SkipClientIDCheck: true, SkipIssuerCheck: true, // both below, each with an error of its own
		SupportedSigningAlgs: []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512},
	})
	token, err := verifier.Verify(ctx, raw)
	if err != nil {
		return nil, watch.judge(err)
	}
	var c claims
	if err := token.Claims(&c); err != nil {
		return nil, fmt.Errorf("%w: its claims cannot be read", ErrToken)
	}
	if err := check(token, &c, m.issuer, clientID, nonce); err != nil {
		return nil, err
	}
	return c.user(), nil
}

// claims of an ID token, as
// https://learn.microsoft.com/entra/identity-platform/id-token-claims-reference names them.
type claims struct {
	TenantID  string `json:"tid"`
	ObjectID  string `json:"oid"`
	Preferred string `json:"preferred_username"`
	UPN       string `json:"upn"`
	Email     string `json:"email"`
	Party     string `json:"azp"`
}

func check(token *oidc.IDToken, c *claims, issuer Issuer, clientID, nonce string) error {
	switch {
	case !strings.EqualFold(c.TenantID, issuer.TenantID): // first: the issuer of another tenant is another one too
		return ErrTenant
	case token.Issuer != issuer.URL:
		return ErrIssuer
	case !slices.Contains(token.Audience, clientID), len(token.Audience) > 1 && c.Party != clientID:
		return ErrAudience
	case token.Nonce != nonce && nonce != "":
		return ErrNonce
	case time.Until(token.IssuedAt) > skew:
		return ErrExpired
	}
	return nil
}

// user returns who the claims say signed in. An account that has no address, like a guest by a mangled name, keeps its name.
func (c *claims) user() *User {
	u := &User{ObjectID: printable(c.ObjectID), TenantID: c.TenantID}
	for _, name := range []string{c.Preferred, c.UPN, c.Email} {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if u.Name == "" {
			u.Name = printable(name)
		}
		if strings.Contains(name, "@") && !slices.Contains(u.Addresses, name) {
			u.Addresses = append(u.Addresses, name)
		}
	}
	return u
}

// printable keeps a name from the far end to one short line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > 320 { // RFC 3696: 64 octets, an @ and 255
		s = string(runes[:320])
	}
	return s
}

// keyWatch tells a signature that does not hold from keys that could not be had, which go-oidc's error does not.
type keyWatch struct {
	keys  oidc.KeySet
	asked bool
	err   error
}

// VerifySignature implements oidc.KeySet.
func (w *keyWatch) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	payload, err := w.keys.VerifySignature(ctx, jwt)
	w.asked, w.err = true, err
	return payload, err
}

func (w *keyWatch) judge(err error) error {
	if _, expired := errors.AsType[*oidc.TokenExpiredError](err); expired {
		return ErrExpired
	}
	if strings.Contains(err.Error(), "before the nbf") {
		return ErrExpired
	}
	if w.err != nil && strings.HasPrefix(w.err.Error(), "fetching keys") {
		return fmt.Errorf("fetch the keys that sign ID tokens: %w", w.err)
	}
	return ErrToken // what go-oidc says may quote the token
}

// metadata returns the tenant's, from memory where it is younger than metadataLife.
func (v *Verifier) metadata(ctx context.Context, t Tenant) (*metadata, error) {
	id := t.Authority + " " + strings.ToLower(t.ID)
	v.mu.Lock()
	old := v.known[id]
	v.mu.Unlock()
	if old != nil && time.Since(old.fetched) < metadataLife {
		return old, nil
	}
	m, err := fetch(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("fetch the tenant's OpenID metadata: %w", err)
	}
	if old != nil && old.keysURL == m.keysURL {
		m.keys = old.keys
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= maxTenants {
		clear(v.known)
	}
	v.known[id] = m
	return m, nil
}

func fetch(ctx context.Context, t Tenant) (*metadata, error) {
	var doc struct {
		Issuer   string `json:"issuer"`
		KeysURL  string `json:"jwks_uri"`
		Declares bool   `json:"authorization_response_iss_parameter_supported"` // RFC 9207, section 3
	}
	client := bounded(t.Client)
	where := t.Authority + "/" + url.PathEscape(t.ID) + "/v2.0"
	if err := get(ctx, client, where+"/.well-known/openid-configuration", &doc); err != nil {
		return nil, err
	}
	id, err := tenantOf(doc.Issuer)
	if err != nil {
		return nil, err
	}
	if guid(t.ID) && !strings.EqualFold(id, t.ID) {
		return nil, fmt.Errorf("it is of another tenant, %q", printable(id))
	}
	ours, err := url.Parse(t.Authority)
	if err != nil {
		return nil, err
	}
	keys, err := url.Parse(doc.KeysURL)
	if err != nil || keys.Scheme != ours.Scheme && keys.Scheme != "https" || !strings.EqualFold(keys.Host, ours.Host) || keys.User != nil {
		return nil, errors.New("its jwks_uri is at another host than the authority")
	}
	return &metadata{
		issuer:  Issuer{URL: doc.Issuer, TenantID: id, Declares: doc.Declares},
		keysURL: doc.KeysURL,
		keys:    oidc.NewRemoteKeySet(oidc.ClientContext(context.WithoutCancel(ctx), client), doc.KeysURL),
		fetched: time.Now(),
	}, nil
}

// tenantOf reads the tenant out of an issuer, {base}/{tenant}/v2.0. That of common or organizations is a template, which
// is no tenant.
func tenantOf(issuer string) (string, error) {
	u, err := url.Parse(issuer)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("its issuer is no URL")
	}
	path, ok := strings.CutSuffix(u.Path, "/v2.0")
	id := path[strings.LastIndexByte(path, '/')+1:]
	if !ok || id == "" || strings.Trim(strings.ToLower(id), "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		return "", errors.New("its issuer names no tenant: tenant_id must be the directory's own")
	}
	return id, nil
}

// guid reports whether a tenant is named by its ID, which its issuer then repeats.
func guid(id string) bool {
	return len(id) == 36 && strings.Count(id, "-") == 4 && strings.Trim(strings.ToLower(id), "0123456789abcdef-") == ""
}

func get(ctx context.Context, client *http.Client, where string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %d", resp.StatusCode)
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "application/json" {
		return errors.New("it answered no JSON")
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return errors.New("it answered no JSON that could be read")
	}
	return nil
}

// bounded returns the client with answers cut off at maxBody, no redirect, and a timeout where it had none: go-oidc reads
// whole answers.
func bounded(c *http.Client) *http.Client {
	b := http.Client{}
	if c != nil {
		b = *c
	}
	if b.Timeout == 0 {
		b.Timeout = 30 * time.Second
	}
	b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	b.Transport = boundedTransport{b.Transport}
	return &b
}

type boundedTransport struct{ inner http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	inner := t.inner
	if inner == nil {
		inner = http.DefaultTransport
	}
	resp, err := inner.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxBody)
	}
	return resp, err
}
