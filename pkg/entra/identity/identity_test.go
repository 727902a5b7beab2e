package identity

import (
	"bytes"
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
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	tenantID = "0aa0bb00-1111-2222-3333-444455556666"
	otherID  = "99999999-1111-2222-3333-444455556666"
	clientID = "the-app"
)

// entra answers for any tenant with the same keys, as Entra ID does.
type entra struct {
	url string

	mu       sync.Mutex
	key      *rsa.PrivateKey
	kid      string
	metadata func(tenant string) any // nil: as it should be
	status   int                     // of all answers; 0: 200
	hits     map[string]int
}

func (e *entra) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	tenant, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/base/"), "/")
	e.hits[rest]++
	if e.status != 0 {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(e.status)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	switch rest {
	case "v2.0/.well-known/openid-configuration":
		doc := e.document(tenant)
		if e.metadata != nil {
			doc = e.metadata(tenant)
		}
		if raw, ok := doc.(string); ok {
			fmt.Fprint(w, raw)
			return
		}
		_ = json.NewEncoder(w).Encode(doc)
	case "keys":
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]string{"kty": "RSA", "use": "sig", "kid": e.kid,
			"n": base64.RawURLEncoding.EncodeToString(e.key.N.Bytes()),
			"e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(e.key.E)).Bytes())}}})
	default:
		http.NotFound(w, r)
	}
}

func (e *entra) document(tenant string) any {
	if tenant == "contoso.com" { // a verified domain: the metadata names the ID
		tenant = tenantID
	}
	return map[string]any{"issuer": e.url + "/" + tenant + "/v2.0", "jwks_uri": e.url + "/" + tenant + "/keys"}
}

func (e *entra) sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	input := encode([]byte(`{"alg":"RS256","typ":"JWT","kid":"`+e.kid+`"}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(rand.Reader, e.key, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + encode(signature)
}

func (e *entra) claims(changes map[string]any) map[string]any {
	all := map[string]any{"iss": e.url + "/" + tenantID + "/v2.0", "aud": clientID, "tid": tenantID, "oid": "object-1", "sub": "s",
		"nonce": "n0nce", "preferred_username": "Ann@Contoso.com", "iat": time.Now().Unix(), "nbf": time.Now().Add(-5 * time.Minute).Unix(),
		"exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, changes)
	for k, v := range all {
		if v == nil {
			delete(all, k)
		}
	}
	return all
}

func newKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serve(t testing.TB) (*entra, Tenant) {
	t.Helper()
	e := &entra{key: newKey(t), kid: "k1", hits: map[string]int{}}
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	e.url = server.URL + "/base"
	client := server.Client()
	t.Cleanup(client.CloseIdleConnections)
	return e, Tenant{Authority: e.url, ID: tenantID, Client: client}
}

func TestVerify(t *testing.T) {
	e, tenant := serve(t)
	tests := []struct {
		name    string
		changes map[string]any
		want    error
	}{
		{"as it should be", nil, nil},
		{"tenant in capitals", map[string]any{"tid": strings.ToUpper(tenantID)}, nil},
		{"several audiences, ours is the party", map[string]any{"aud": []string{"x", clientID}, "azp": clientID}, nil},
		{"another tenant, as its own issuer says", map[string]any{"tid": otherID, "iss": e.url + "/" + otherID + "/v2.0"}, ErrTenant},
		{"another tenant under our issuer", map[string]any{"tid": otherID}, ErrTenant},
		{"no tenant", map[string]any{"tid": nil}, ErrTenant},
		{"another issuer", map[string]any{"iss": "https://evil.example/" + tenantID + "/v2.0"}, ErrIssuer},
		{"our issuer and more", map[string]any{"iss": e.url + "/" + tenantID + "/v2.0/"}, ErrIssuer},
		{"another application", map[string]any{"aud": "other-app"}, ErrAudience},
		{"several audiences, another party", map[string]any{"aud": []string{clientID, "other-app"}, "azp": "other-app"}, ErrAudience},
		{"no audience", map[string]any{"aud": nil}, ErrAudience},
		{"another sign-in", map[string]any{"nonce": "other"}, ErrNonce},
		{"no nonce", map[string]any{"nonce": nil}, ErrNonce},
		{"expired", map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}, ErrExpired},
		{"no expiry", map[string]any{"exp": nil}, ErrExpired},
		{"not valid yet", map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}, ErrExpired},
		{"not valid for some seconds yet: our clock is slow", map[string]any{"nbf": time.Now().Add(time.Minute).Unix()}, nil},
		{"issued in the future", map[string]any{"iat": time.Now().Add(time.Hour).Unix()}, ErrExpired},
		{"claims of a wrong kind", map[string]any{"tid": []int{1}}, ErrToken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			user, err := New().Verify(t.Context(), tenant, clientID, "n0nce", e.sign(t, e.claims(tt.changes)))
			if !errors.Is(err, tt.want) || (err == nil) != (user != nil) || tt.want == nil && err != nil {
				t.Errorf("got %+v, %v, want error %v", user, err, tt.want)
			}
		})
	}
	t.Run("no nonce is asked for", func(t *testing.T) {
		if _, err := New().Verify(t.Context(), tenant, clientID, "", e.sign(t, e.claims(map[string]any{"nonce": nil}))); err != nil {
			t.Error(err)
		}
	})
}

func TestSignatures(t *testing.T) {
	e, tenant := serve(t)
	v := New()
	good := e.sign(t, e.claims(nil))
	forger := &entra{key: newKey(t), kid: "k1", url: e.url}
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
	for name, raw := range map[string]string{"another key": forger.sign(t, e.claims(nil)), "none": none, "cut": good[:len(good)-10],
		"payload changed": parts[0] + "." + strings.ToUpper(parts[1]) + "." + parts[2], "empty": "", "no token": "hello"} {
		_, err := v.Verify(t.Context(), tenant, clientID, "n0nce", raw)
		if !errors.Is(err, ErrToken) {
			t.Errorf("%s: got %v, want %v", name, err, ErrToken)
		}
		if err != nil && raw != "" && strings.Contains(err.Error(), raw) {
			t.Errorf("%s: the error holds the token: %v", name, err)
		}
	}
	if _, err := v.Verify(t.Context(), tenant, clientID, "n0nce", good); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestUser(t *testing.T) {
	long := strings.Repeat("x", 1000) + "@contoso.com"
	tests := []struct {
		name    string
		changes map[string]any
		want    string
		is, not []string
	}{
		{"by user name", nil, "Ann@Contoso.com", []string{"ann@contoso.com", "ANN@CONTOSO.COM"}, []string{"", "bob@contoso.com", "ann@contoso.com.evil"}},
		{"by upn and email as well", map[string]any{"upn": "a1@contoso.com", "email": "ann.lee@contoso.com"}, "Ann@Contoso.com",
			[]string{"a1@contoso.com", "Ann.Lee@contoso.com", "ann@contoso.com"}, nil},
		{"a name that is no address", map[string]any{"preferred_username": "+49123"}, "+49123", nil, []string{"+49123"}},
		{"nobody", map[string]any{"preferred_username": nil}, "", nil, []string{""}},
		{"what would break a line", map[string]any{"preferred_username": "a\nb\u2028\u009bc@x"}, "a?b??c@x", nil, []string{"a?b??c@x"}},
		{"too long to show", map[string]any{"preferred_username": long}, long[:320], []string{long}, nil},
	}
	e, tenant := serve(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := New().Verify(t.Context(), tenant, clientID, "n0nce", e.sign(t, e.claims(tt.changes)))
			if err != nil {
				t.Fatal(err)
			}
			if u.Name != tt.want || u.ObjectID != "object-1" || u.TenantID != tenantID {
				t.Errorf("got %+v, want name %q", u, tt.want)
			}
			for _, a := range tt.is {
				if !u.Is(a) {
					t.Errorf("is not %q", a)
				}
			}
			for _, a := range tt.not {
				if u.Is(a) {
					t.Errorf("is %q", a)
				}
			}
		})
	}
}

func TestMetadata(t *testing.T) {
	e, tenant := serve(t)
	base := e.url
	doc := func(issuer, keys string) func(string) any {
		return func(string) any { return map[string]any{"issuer": issuer, "jwks_uri": keys} }
	}
	good, keys := base+"/"+tenantID+"/v2.0", base+"/keys"
	tests := []struct {
		name     string
		id       string
		metadata func(string) any
		status   int
		want     string // tenant ID; empty: an error
	}{
		{name: "by ID", id: tenantID, want: tenantID},
		{name: "by ID in capitals", id: strings.ToUpper(tenantID), metadata: doc(good, keys), want: tenantID},
		{name: "by domain", id: "contoso.com", want: tenantID},
		{name: "another tenant's", id: otherID, metadata: doc(good, keys)},
		{name: "of no one tenant", id: "common", metadata: doc(base+"/{tenantid}/v2.0", keys)},
		{name: "no issuer", id: tenantID, metadata: doc("", keys)},
		{name: "an issuer of v1.0", id: tenantID, metadata: doc("https://sts.windows.net/"+tenantID+"/", keys)},
		{name: "keys at another host", id: tenantID, metadata: doc(good, "http://evil.example/keys")},
		{name: "keys by https at the same host", id: tenantID, metadata: doc(good, strings.Replace(keys, "http://", "https://", 1)), want: tenantID},
		{name: "keys by another scheme", id: tenantID, metadata: doc(good, "file:///etc/passwd")},
		{name: "keys with a password", id: tenantID, metadata: doc(good, strings.Replace(keys, "://", "://a:b@", 1))},
		{name: "no JSON", id: tenantID, metadata: func(string) any { return "<html>" }},
		{name: "endless", id: tenantID, metadata: func(string) any { return `{"issuer":"` + strings.Repeat("x", 2<<20) }},
		{name: "away", id: tenantID, status: http.StatusServiceUnavailable},
		{name: "elsewhere", id: tenantID, status: http.StatusFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e.mu.Lock()
			e.metadata, e.status, e.hits = tt.metadata, tt.status, map[string]int{}
			e.mu.Unlock()
			tenant.ID = tt.id
			got, err := New().Issuer(t.Context(), tenant)
			if got.TenantID != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %+v, %v, want tenant %q", got, err, tt.want)
			}
			if e.hits["elsewhere"] != 0 || len(e.hits) > 1 {
				t.Errorf("it went elsewhere: %v", e.hits)
			}
		})
	}
	t.Run("declares iss", func(t *testing.T) {
		e.mu.Lock()
		e.status, e.metadata = 0, func(string) any {
			return map[string]any{"issuer": good, "jwks_uri": keys, "authorization_response_iss_parameter_supported": true}
		}
		e.mu.Unlock()
		tenant.ID = tenantID
		if got, err := New().Issuer(t.Context(), tenant); err != nil || !got.Declares || got.URL != good {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

// TestKeysAreKept also rotates the key: a token that names a new one has the keys fetched again.
func TestKeysAreKept(t *testing.T) {
	e, tenant := serve(t)
	v := New()
	verify := func() {
		t.Helper()
		if _, err := v.Verify(t.Context(), tenant, clientID, "n0nce", e.sign(t, e.claims(nil))); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		verify()
	}
	e.mu.Lock()
	e.key, e.kid = newKey(t), "k2"
	e.mu.Unlock()
	for range 3 {
		verify()
	}
	if e.hits["keys"] != 2 || e.hits["v2.0/.well-known/openid-configuration"] != 1 {
		t.Errorf("got %v, want the keys twice and the metadata once", e.hits)
	}
}

// TestKeysAway tells keys that cannot be had from a token that is no good: the first is no fault of whoever signed in.
func TestKeysAway(t *testing.T) {
	e, tenant := serve(t)
	v := New()
	if _, err := v.Issuer(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	e.status = http.StatusBadGateway
	e.mu.Unlock()
	_, err := v.Verify(t.Context(), tenant, clientID, "n0nce", e.sign(t, e.claims(nil)))
	if err == nil || errors.Is(err, ErrToken) {
		t.Errorf("got %v, want that the keys could not be had", err)
	}
	e.mu.Lock()
	e.status = 0
	e.mu.Unlock()
	if _, err := v.Verify(t.Context(), tenant, clientID, "n0nce", e.sign(t, e.claims(nil))); err != nil {
		t.Errorf("once they can: %v", err)
	}
}

func TestMetadataAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &entra{url: "http://entra.test/base", hits: map[string]int{}}
		tenant := Tenant{Authority: e.url, ID: tenantID, Client: &http.Client{Transport: direct{e}}}
		v := New()
		want := 0
		for range 3 {
			want++
			for range 5 {
				if _, err := v.Issuer(t.Context(), tenant); err != nil {
					t.Fatal(err)
				}
				<-time.After(11 * time.Minute)
			}
			if got := e.hits["v2.0/.well-known/openid-configuration"]; got != want {
				t.Fatalf("got %d requests, want %d", got, want)
			}
			<-time.After(5 * time.Minute)
		}
		e.status = http.StatusServiceUnavailable // what was known is not used past its age
		if _, err := v.Issuer(t.Context(), tenant); err == nil {
			t.Error("got old metadata")
		}
	})
}

// TestMemoryIsBounded asks for more tenants than are kept.
func TestMemoryIsBounded(t *testing.T) {
	e := &entra{url: "http://entra.test/base", hits: map[string]int{}}
	v := New()
	for i := range 2*maxTenants + 1 {
		if _, err := v.Issuer(t.Context(), Tenant{Authority: e.url, ID: fmt.Sprintf("t%d.example", i), Client: &http.Client{Transport: direct{e}}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(v.known); got > maxTenants {
		t.Errorf("keeps %d", got)
	}
}

// direct hands requests to a handler, so that they take no time.
type direct struct{ handler http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	d.handler.ServeHTTP(w, r)
	return w.Result(), nil
}

func FuzzVerify(f *testing.F) {
	e := &entra{key: newKey(f), kid: "k1", url: "http://entra.test/base", hits: map[string]int{}}
	tenant := Tenant{Authority: e.url, ID: tenantID, Client: &http.Client{Transport: direct{e}}}
	good := e.sign(f, e.claims(nil))
	f.Add(good)
	f.Add("a.b.c")
	f.Add(strings.Replace(good, ".", "..", 1))
	f.Add(`{"payload":"e30","signatures":[{"signature":""}]}`)
	v := New()
	f.Fuzz(func(t *testing.T, raw string) {
		user, err := v.Verify(context.Background(), tenant, clientID, "n0nce", raw)
		if err == nil && (!user.Is("ann@contoso.com") || !strings.Contains(raw, good[:40])) {
			t.Errorf("accepted %q as %+v", raw, user)
		}
		if err != nil && !errors.Is(err, ErrToken) && !errors.Is(err, ErrExpired) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte(`{"issuer":"http://entra.test/base/` + tenantID + `/v2.0","jwks_uri":"http://entra.test/keys"}`))
	f.Add([]byte(`{"issuer":"http://entra.test/{tenantid}/v2.0","jwks_uri":"http://entra.test/keys"}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, body []byte) {
		e := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = bytes.NewReader(body).WriteTo(w)
		})
		got, err := New().Issuer(context.Background(), Tenant{Authority: "http://entra.test/base", ID: tenantID, Client: &http.Client{Transport: direct{e}}})
		if err == nil && !strings.EqualFold(got.TenantID, tenantID) {
			t.Errorf("took %+v for ours", got)
		}
	})
}
