// Package providertest is an OpenID provider for tests, whose answers can be made wrong one by one.
package providertest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Claims of a token.
type Claims = map[string]any

// Provider is an OpenID provider at a TLS address of this machine.
type Provider struct {
	*httptest.Server
	ClientID string

	mu       sync.Mutex // guards all below
	key      *rsa.PrivateKey
	metadata map[string]any
	claims   Claims
	codes    map[string]url.Values // authorization requests by code
	requests []*http.Request       // to the token endpoint, with their forms read
	away     bool
	raw      string
}

// New starts a provider that ends with the test.
func New(t *testing.T, clientID string) *Provider {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &Provider{ClientID: clientID, key: key, codes: map[string]url.Values{}, claims: Claims{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) { p.answer(w, p.metadata) })
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		n, e := p.key.N.Bytes(), big.NewInt(int64(p.key.E)).Bytes()
		p.answer(w, map[string]any{"keys": []any{map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": encode(n), "e": encode(e)}}})
	})
	mux.HandleFunc("POST /token", p.token)
	p.Server = httptest.NewTLSServer(mux)
	t.Cleanup(p.Close)
	p.metadata = map[string]any{
		"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
		"id_token_signing_alg_values_supported": []string{"RS256"},
	}
	return p
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

func (p *Provider) answer(w http.ResponseWriter, v any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// Set changes claims of the tokens to come; nil takes one away.
func (p *Provider) Set(claims Claims) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claims = claims
}

// Publish changes the metadata.
func (p *Provider) Publish(name string, value any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.metadata[name] = value
}

// Away makes every answer a 503, or no longer.
func (p *Provider) Away(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
}

// Answer makes raw the id token of all answers to come; empty: as usual.
func (p *Provider) Answer(raw string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raw = raw
}

// Requests returns what the token endpoint was asked.
func (p *Provider) Requests() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// Authorize is the person who signs in at an authorization request's address. It returns the answer's parameters.
func (p *Provider) Authorize(t *testing.T, address string) url.Values {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil || u.Scheme+"://"+u.Host+u.Path != p.URL+"/authorize" {
		t.Fatalf("sent to %q, %v", address, err)
	}
	q := u.Query()
	for name, want := range map[string]string{"client_id": p.ClientID, "response_type": "code", "code_challenge_method": "S256"} {
		if q.Get(name) != want {
			t.Errorf("%s: got %q, want %q", name, q.Get(name), want)
		}
	}
	for _, name := range []string{"state", "nonce", "code_challenge"} {
		if len(q.Get(name)) < 43 {
			t.Errorf("%s: got %q", name, q.Get(name))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	code := rand.Text()
	p.codes[code] = q
	return url.Values{"code": {code}, "state": {q.Get("state")}}
}

// token is the token endpoint (RFC 6749 section 4.1.3, RFC 7636 section 4.6).
func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	p.mu.Lock()
	p.requests = append(p.requests, r)
	q := p.codes[r.PostForm.Get("code")]
	delete(p.codes, r.PostForm.Get("code"))
	raw := p.raw
	p.mu.Unlock()
	sum := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
	if q == nil || encode(sum[:]) != q.Get("code_challenge") || r.PostForm.Get("redirect_uri") != q.Get("redirect_uri") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"error":"invalid_grant","error_description":"echo of ` + r.PostForm.Get("client_secret") + `"}`)) //nolint:gosec // a provider that tells too much
		return
	}
	if raw == "" {
		raw = p.Sign(q.Get("nonce"))
	}
	p.answer(w, map[string]any{"access_token": "access", "token_type": "Bearer", "expires_in": 300, "id_token": raw})
}

// Sign returns an id token for a sign-in with that nonce.
func (p *Provider) Sign(nonce string) string {
	claims := Claims{
		"iss": p.URL, "aud": p.ClientID, "sub": "subject", "nonce": nonce, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, value := range p.claims {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	payload, _ := json.Marshal(claims)
	signed := encode([]byte(`{"alg":"RS256","kid":"1","typ":"JWT"}`)) + "." + encode(payload)
	sum := sha256.Sum256([]byte(signed))
	signature, _ := rsa.SignPKCS1v15(rand.Reader, p.key, crypto.SHA256, sum[:])
	return signed + "." + encode(signature)
}

// Unsigned returns the token with the algorithm "none".
func (p *Provider) Unsigned(nonce string) string {
	payload, _ := json.Marshal(Claims{"iss": p.URL, "aud": p.ClientID, "sub": "subject", "nonce": nonce, "exp": time.Now().Add(time.Minute).Unix()})
	return encode([]byte(`{"alg":"none"}`)) + "." + encode(payload) + "."
}
