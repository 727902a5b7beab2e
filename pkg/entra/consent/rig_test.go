package consent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/oauth2"

	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	tenantID = "0aa0bb00-1111-2222-3333-444455556666"
	otherID  = "99999999-1111-2222-3333-444455556666"
	clientID = "the-app"
	base     = "https://entra.test/base"
	redirect = "https://relay.contoso.com/oauth/callback"

	// What must be found in no refusal and no log line.
	secretCanary  = "canary-client-secret"
	refreshCanary = "canary-refresh-token"
	accessCanary  = "canary-access-token"
	codeCanary    = "canary-code"
	deviceCanary  = "canary-device-code"
)

// signingKey is made once: it takes most of a second.
var signingKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// memory is a store of records as vault.Kind is one, shared by the nodes of a test.
type memory struct {
	mu       sync.Mutex
	revision uint64
	records  map[string]record
	fails    error
}

type record struct {
	data     []byte
	revision uint64
}

func newMemory() *memory { return &memory{records: map[string]record{}} }

func (m *memory) Get(_ context.Context, name string) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.records[name]
	return slices.Clone(r.data), r.revision, m.fails
}

func (m *memory) Put(_ context.Context, name string, data []byte, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails != nil || m.records[name].revision != revision {
		return 0, m.fails
	}
	m.revision++
	m.records[name] = record{slices.Clone(data), m.revision}
	return m.revision, nil
}

func (m *memory) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails == nil {
		delete(m.records, name)
	}
	return m.fails
}

func (m *memory) Names(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.records)), m.fails
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fails = err
}

func (m *memory) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.records)
}

// contents returns everything in the store, names too.
func (m *memory) contents() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all strings.Builder
	for name, r := range m.records {
		fmt.Fprintf(&all, "%s %s\n", name, r.data)
	}
	return all.String()
}

// entra is a scripted Entra ID for any tenant.
type entra struct {
	mu       sync.Mutex // guards all that follows
	declares bool       // answers name their issuer
	down     bool
	token    func(form url.Values) (int, any) // nil: an answer by claims
	device   func(form url.Values) (int, any)
	claims   map[string]any    // changes to the ID token's
	answer   map[string]any    // changes to the token answer
	nonces   map[string]string // by code
	forms    []url.Values      // of token requests
	times    []time.Time       // of token requests
	headers  []http.Header
	hosts    []string
}

// RoundTrip implements http.RoundTripper, so that requests take no time.
func (e *entra) RoundTrip(r *http.Request) (*http.Response, error) {
	e.mu.Lock()
	down := e.down
	e.hosts = append(e.hosts, r.URL.Host)
	e.mu.Unlock()
	if down {
		return nil, errors.New("connection refused")
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	return w.Result(), nil
}

// polls returns the token requests so far, and when each came.
func (e *entra) polls() ([]url.Values, []time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.forms), slices.Clone(e.times)
}

func (e *entra) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.forms)
}

// change changes what it answers, while it does.
func (e *entra) change(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

func (e *entra) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tenant, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/base/"), "/")
	var code int
	var body any
	switch rest {
	case "v2.0/.well-known/openid-configuration":
		e.mu.Lock()
		code, body = 200, map[string]any{"issuer": base + "/" + tenant + "/v2.0", "jwks_uri": base + "/keys",
			"authorization_response_iss_parameter_supported": e.declares}
		e.mu.Unlock()
	case "":
		key := signingKey()
		encode := base64.RawURLEncoding.EncodeToString
		code, body = 200, map[string]any{"keys": []any{map[string]string{"kty": "RSA", "kid": "k",
			"n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes())}}}
	case "oauth2/v2.0/token", "oauth2/v2.0/devicecode":
		_ = r.ParseForm()
		e.mu.Lock()
		answer := e.device
		if rest == "oauth2/v2.0/token" {
			e.forms, e.times, e.headers = append(e.forms, r.PostForm), append(e.times, time.Now()), append(e.headers, r.Header)
			if answer = e.token; answer == nil {
				answer = e.yes
			}
		}
		e.mu.Unlock()
		code, body = answer(r.PostForm)
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Location", "https://elsewhere.test/")
	w.WriteHeader(code)
	if raw, ok := body.(string); ok {
		fmt.Fprint(w, raw)
		return
	}
	_ = json.NewEncoder(w).Encode(body)
}

// yes answers as if Ann had signed in.
func (e *entra) yes(form url.Values) (int, any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	claims := map[string]any{"iss": base + "/" + tenantID + "/v2.0", "aud": clientID, "tid": tenantID, "oid": "object-1", "sub": "s",
		"preferred_username": "Ann@contoso.com", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	if nonce := e.nonces[form.Get("code")]; nonce != "" {
		claims["nonce"] = nonce
	}
	maps.Copy(claims, e.claims)
	body := map[string]any{"token_type": "Bearer", "expires_in": 3600, "access_token": accessCanary, "refresh_token": refreshCanary,
		"scope": "openid profile https://outlook.office.com/SMTP.Send", "id_token": idToken(claims)}
	maps.Copy(body, e.answer)
	return 200, body
}

func idToken(claims map[string]any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	input := encode([]byte(`{"alg":"RS256","kid":"k"}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(rand.Reader, signingKey(), crypto.SHA256, digest[:])
	if err != nil {
		panic(err)
	}
	return input + "." + encode(signature)
}

// refuse answers as the token endpoint does, and repeats what it was sent, as it never should.
func refuse(code int, name string, number int) func(url.Values) (int, any) {
	return func(form url.Values) (int, any) {
		return code, map[string]any{"error": name, "error_codes": []int{number},
			"error_description": fmt.Sprintf("AADSTS%d: you sent %s", number, form.Encode())}
	}
}

// rig is one relay, or several nodes of one, before a scripted Entra ID.
type rig struct {
	*Consents
	entra                         *entra
	pending, devices, invitations *memory
	logs                          *observer.ObservedLogs
	options                       Options

	mu      sync.Mutex
	adopted []grant.Grant
	adopt   error
	told    []string // secrets that Explain was told of
}

func newRig(t testing.TB) *rig {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	r := &rig{entra: &entra{nonces: map[string]string{}}, pending: newMemory(), devices: newMemory(), invitations: newMemory(), logs: logs}
	r.options = Options{
		Registration: r.registration, Pending: r.pending, Devices: r.devices, Invitations: r.invitations,
		RedirectURI: func() string { return redirect }, Logger: zap.New(core),
		Adopt: func(_ context.Context, g grant.Grant) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.adopt == nil {
				r.adopted = append(r.adopted, g)
			}
			return r.adopt
		},
	}
	r.Consents = r.node(t)
	return r
}

// node returns one more node on the same records.
func (r *rig) node(t testing.TB) *Consents {
	t.Helper()
	c, err := New(r.options)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (r *rig) registration(name string) (Registration, error) {
	if name != "contoso" {
		return Registration{}, status.New(535, status.Enhanced{5, 7, 8}, "no such tenant")
	}
	return Registration{Name: name, TenantID: tenantID, ClientID: clientID, Authority: base + "/", Scope: "https://outlook.office.com/SMTP.Send",
		Client: &http.Client{Transport: r.entra},
		Authenticate: func(_ context.Context, tokenURL string, form url.Values) error {
			if tokenURL != base+"/"+tenantID+"/oauth2/v2.0/token" {
				return errors.New("another audience: " + tokenURL)
			}
			form.Set("client_secret", secretCanary)
			return nil
		},
		Explain: func(err error, secrets ...string) *status.Error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, secrets...)
			if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
				explained := &status.Error{Code: 535, Action: status.ParkTenant, Rule: "explained", Text: "explained " + e.ErrorCode,
					Err: fmt.Errorf("HTTP %d", e.Response.StatusCode)}
				if e.ErrorCode == "unheard_of" {
					explained.Code, explained.Action = 454, status.Retry
				}
				return explained
			}
			return &status.Error{Code: 454, Rule: "explained", Text: "explained no answer"}
		},
	}, nil
}

func ann() Request {
	return Request{Tenant: "contoso", Login: "Ann@Contoso.com", Sender: "*@contoso.com", Session: "session-1"}
}

// begin starts a sign-in and returns its parameters; Entra ID will give codeCanary for it.
func (r *rig) begin(t testing.TB, q Request) url.Values {
	t.Helper()
	where, err := r.Start(context.Background(), q)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	return r.sent(t, where)
}

func (r *rig) sent(t testing.TB, where string) url.Values {
	t.Helper()
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	r.entra.mu.Lock()
	r.entra.nonces[codeCanary] = q.Get("nonce")
	r.entra.mu.Unlock()
	return q
}

func callback(q url.Values) Callback {
	return Callback{Session: "session-1", State: q.Get("state"), Code: codeCanary}
}

func (r *rig) grants() []grant.Grant {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.adopted)
}

// refusal fails the test unless err is a refusal by that rule, in whole sentences, without secrets.
func wantRefusal(t testing.TB, err error, rule string) *status.Error {
	t.Helper()
	e, ok := errors.AsType[*status.Error](err)
	if !ok {
		t.Fatalf("got %v, want a refusal by %s", err, rule)
	}
	if e.Rule != rule {
		t.Fatalf("got rule %q (%v, %v), want %q", e.Rule, e, e.Err, rule)
	}
	if rule != "explained" && (e.Text == "" || e.Cause == "" || e.Advice == "") {
		t.Errorf("%s lacks a sentence: %+v", rule, e)
	}
	wantNoSecret(t, "refusal", fmt.Sprintf("%v %s %s %v", e, e.Cause, e.Advice, e.Err))
	return e
}

func wantNoSecret(t testing.TB, what, text string, more ...string) {
	t.Helper()
	for _, secret := range append(more, secretCanary, refreshCanary, accessCanary, codeCanary, deviceCanary) {
		if secret != "" && strings.Contains(text, secret) {
			t.Errorf("%s holds %s: %s", what, secret, text)
		}
	}
}

func (r *rig) wantCleanLogs(t testing.TB, more ...string) {
	t.Helper()
	for _, entry := range r.logs.All() {
		text := entry.Message
		for _, f := range entry.Context {
			text += fmt.Sprintf(" %s=%s%v", f.Key, f.String, f.Interface)
		}
		wantNoSecret(t, "log", text, more...)
	}
}
