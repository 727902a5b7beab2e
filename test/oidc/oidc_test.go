// Package oidc signs in at an OpenID provider that nobody here wrote, npm's oidc-provider, with the packages relayd signs in
// with: authorization code with PKCE, device code, refresh with strict rotation, client credentials with a PS256 assertion.
// A shim gives the provider Entra ID's paths. scripts/test-deps installs it; without it the tests are skipped by name.
package oidc

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"html"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"relayd/pkg/entra"
	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

const (
	tenantID  = "0aa0bb00-1111-2222-3333-444455556666"
	sendScope = "https://outlook.office.com/SMTP.Send"
	appScope  = "https://outlook.office365.com/.default"
	redirect  = "https://relay.contoso.com/oauth/callback"
	secret    = "a secret of more than thirty-two characters"
	patience  = 20 * time.Second

	certified = "certified" // tenant and client that sign assertions
	secretive = "secretive" // those with a secret
	appOnly   = "app-only"  // those that act in their own name
)

// modules is where scripts/test-deps has put the provider.
func modules() string {
	if dir := os.Getenv("TEST_OIDC_DIR"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/nonexistent"
	}
	return filepath.Join(cache, "relayd-test-oidc")
}

func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("TEST_NO_SKIP") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// refresh returns the refresh token that is stored for a login, as only the store knows it.
func (w *world) refresh(t *testing.T, tenant, login string) string {
	t.Helper()
	g, _, err := grant.Load(t.Context(), w.grants, grant.Name(tenant, login))
	if err != nil || g == nil || g.Refresh == "" {
		t.Fatalf("no grant of %s is stored: %v", login, err)
	}
	return g.Refresh
}

// world is the provider, and a relay's tokens and consents before it.
type world struct {
	authority string
	tokens    *entra.Tokens
	consents  *consent.Consents
	grants    *grant.Memory
	tenants   map[string]entra.Tenant
	requests  atomic.Int64 // of entra.Tokens and consent: each has a connection of its own
}

func start(t *testing.T) *world {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		skip(t, "node is not installed: run scripts/test-deps")
	}
	if _, err := os.Stat(filepath.Join(modules(), "node_modules", "oidc-provider")); err != nil {
		skip(t, "oidc-provider is not installed: run scripts/test-deps")
	}
	certificate, key := newCertificate(t)
	w := &world{authority: serve(t, node, key), grants: grant.NewMemory()}
	tenant := entra.Tenant{TenantID: tenantID, Authority: w.authority, Scope: sendScope, Delegated: true}
	withCertificate, withSecret := tenant, tenant
	withCertificate.ClientID, withCertificate.Certificate = certified, func() (tls.Certificate, error) { return certificate, nil }
	withSecret.ClientID, withSecret.Secret = secretive, func() (string, error) { return secret, nil }
	app := withCertificate
	app.ClientID, app.Delegated, app.Scope = appOnly, false, appScope
	w.tenants = map[string]entra.Tenant{certified: withCertificate, secretive: withSecret, appOnly: app}
	w.tokens = w.node(t, "one")
	w.consents, err = consent.New(consent.Options{Registration: w.tokens.Registration, Pending: grant.NewMemory(), Devices: grant.NewMemory(),
		Invitations: grant.NewMemory(), Adopt: w.tokens.Adopt, RedirectURI: func() string { return redirect }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.consents.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

// node returns the tokens of one of the relay's nodes.
func (w *world) node(t *testing.T, name string) *entra.Tokens {
	t.Helper()
	dialer := net.Dialer{Timeout: patience}
	tokens, err := entra.New(entra.Options{Records: w.grants, Node: name, Tenants: w.tenants,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			w.requests.Add(1)
			return dialer.DialContext(ctx, network, address)
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tokens.Close)
	return tokens
}

// newCertificate returns what relayd signs assertions with, and the public key as the provider wants it (RFC 7517).
func newCertificate(t *testing.T) (tls.Certificate, map[string]string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relayd"}, NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, map[string]string{"kty": "RSA", "use": "sig", "alg": "PS256",
		"n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes())}
}

// serve runs the provider until the test ends and returns its authority.
func serve(t *testing.T, node string, key map[string]string) string {
	t.Helper()
	client := func(id string, more map[string]any) map[string]any {
		c := map[string]any{"client_id": id, "redirect_uris": []string{redirect}, "response_types": []string{"code"},
			"grant_types": []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"}}
		maps.Copy(c, more)
		return c
	}
	assertion := map[string]any{"token_endpoint_auth_method": "private_key_jwt", "token_endpoint_auth_signing_alg": "PS256",
		"jwks": map[string]any{"keys": []any{key}}}
	app := client(appOnly, assertion)
	app["redirect_uris"], app["response_types"], app["grant_types"] = []string{}, []string{}, []string{"client_credentials"}
	options, err := json.Marshal(map[string]any{"tenant": tenantID, "send": sendScope, "app": appScope, "clients": []any{
		client(certified, assertion), client(secretive, map[string]any{"token_endpoint_auth_method": "client_secret_post", "client_secret": secret}), app}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, "testdata/provider.mjs", modules())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the provider said:\n%s", stderr.String())
		}
	})
	if _, err := stdin.Write(append(options, '\n')); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if port := strings.TrimSpace(lines.Text()); port != "" && strings.Trim(port, "0123456789") == "" {
			go func() { _, _ = io.Copy(io.Discard, stdout) }() // ends with the provider
			return "http://127.0.0.1:" + port
		}
	}
	t.Fatalf("the provider did not start:\n%s", stderr.String())
	return ""
}

// browser keeps cookies and fills in forms; it stops where it is sent to the relay.
type browser struct {
	t      *testing.T
	client *http.Client
	url    *url.URL
	page   string
	back   url.Values // what it brings to the redirect URI
}

func browse(t *testing.T, where string) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	b := &browser{t: t, client: &http.Client{Jar: jar, Timeout: patience, Transport: transport}}
	b.client.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(req.URL.String(), redirect) {
			b.back = req.URL.Query()
			return http.ErrUseLastResponse
		}
		return nil
	}
	return b.shown(b.client.Get(where))
}

func (b *browser) shown(resp *http.Response, err error) *browser {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	b.url, b.page = resp.Request.URL, string(data)
	return b
}

var (
	action = regexp.MustCompile(`action="([^"]*)"`)
	hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"/>`)
	cancel = regexp.MustCompile(`<a href="([^"]*)">\[ Cancel \]`)
)

// submit posts the page's form.
func (b *browser) submit(fields map[string]string) *browser {
	b.t.Helper()
	m := action.FindStringSubmatch(b.page)
	if m == nil {
		b.t.Fatalf("no form at %s:\n%s", b.url, b.page)
	}
	where, err := b.url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		b.t.Fatal(err)
	}
	form := url.Values{}
	for _, h := range hidden.FindAllStringSubmatch(b.page, -1) {
		form.Set(h[1], html.UnescapeString(h[2]))
	}
	for k, v := range fields {
		form.Set(k, v)
	}
	return b.shown(b.client.PostForm(where.String(), form))
}

// agree signs in and agrees to everything, as long as there is something to agree to.
func (b *browser) agree(account string) *browser {
	b.t.Helper()
	for range 5 {
		switch {
		case b.back != nil:
			return b
		case strings.Contains(b.page, `name="login"`):
			b.submit(map[string]string{"login": account, "password": "any"})
		case strings.Contains(b.page, `value="consent"`), strings.Contains(b.page, "op.deviceConfirmForm"):
			b.submit(nil)
		default:
			return b
		}
	}
	return b
}

func (b *browser) callback() consent.Callback {
	b.t.Helper()
	if b.back == nil {
		b.t.Fatalf("not sent back but at %s:\n%s", b.url, b.page)
	}
	return consent.Callback{Session: "s", State: b.back.Get("state"), Code: b.back.Get("code"), Issuer: b.back.Get("iss"),
		Error: b.back.Get("error"), ErrorDescription: b.back.Get("error_description")}
}

func (w *world) open(t *testing.T, tenant string) *browser {
	t.Helper()
	where, err := w.consents.Start(t.Context(), consent.Request{Tenant: tenant, Login: "ann@contoso.com", Sender: "ann@contoso.com", Session: "s"})
	if err != nil {
		t.Fatal(err)
	}
	return browse(t, where)
}

func (w *world) token(t *testing.T, tenant, refused string) string {
	t.Helper()
	token, err := w.tokens.Token(t.Context(), tenant, "ann@contoso.com", refused)
	if err != nil || token == "" || token == refused {
		t.Fatalf("got %q, %v (%v)", token, err, errors.Unwrap(err))
	}
	return token
}

func rule(err error) string {
	if e, ok := errors.AsType[*status.Error](err); ok {
		return e.Rule
	}
	return ""
}

func TestAuthorizationCode(t *testing.T) {
	w := start(t)
	for _, tenant := range []string{certified, secretive} {
		t.Run(tenant, func(t *testing.T) {
			cb := w.open(t, tenant).agree("ann@contoso.com").callback()
			if cb.Issuer != w.authority+"/"+tenantID+"/v2.0" { // RFC 9207
				t.Errorf("issuer %q", cb.Issuer)
			}
			result, err := w.consents.Finish(t.Context(), cb)
			if err != nil || result.User != "ann@contoso.com" {
				t.Fatalf("got %+v, %v (%v)", result, err, errors.Unwrap(err))
			}
			g, found, err := w.tokens.Grant(t.Context(), tenant, "ann@contoso.com")
			if err != nil || !found || g.User != "ann@contoso.com" || g.ObjectID != "object of ann@contoso.com" || g.TenantID != tenantID {
				t.Errorf("got %+v, %v, %v", g, found, err)
			}
			w.token(t, tenant, "")
			if _, err := w.consents.Finish(t.Context(), cb); rule(err) != "sign-in-unknown" {
				t.Errorf("replayed: %v", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	w := start(t)
	tests := []struct {
		name   string
		answer func() consent.Callback
		want   string
	}{
		{"wrong user", func() consent.Callback { return w.open(t, secretive).agree("bob@contoso.com").callback() }, "sign-in-user"},
		{"another organisation", func() consent.Callback { return w.open(t, secretive).agree("ann@fabrikam.com").callback() }, "sign-in-tenant"},
		{"cancelled", func() consent.Callback {
			b := w.open(t, secretive)
			m := cancel.FindStringSubmatch(b.page)
			if m == nil {
				t.Fatalf("nothing to cancel by:\n%s", b.page)
			}
			where, err := b.url.Parse(html.UnescapeString(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			return b.shown(b.client.Get(where.String())).callback()
		}, "sign-in-declined"},
		{"issuer changed", func() consent.Callback {
			cb := w.open(t, secretive).agree("ann@contoso.com").callback()
			cb.Issuer = "https://evil.example"
			return cb
		}, "sign-in-issuer"},
		{"issuer taken away", func() consent.Callback { // the provider's metadata promises it
			cb := w.open(t, secretive).agree("ann@contoso.com").callback()
			cb.Issuer = ""
			return cb
		}, "sign-in-issuer"},
		{"code of another sign-in", func() consent.Callback { // PKCE
			other, cb := w.open(t, secretive).agree("ann@contoso.com").callback(), w.open(t, secretive).agree("ann@contoso.com").callback()
			cb.Code = other.Code
			return cb
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := w.consents.Finish(t.Context(), tt.answer())
			if err == nil || tt.want != "" && rule(err) != tt.want {
				t.Errorf("got %v (%s), want %s", err, rule(err), tt.want)
			}
		})
	}
	if all, err := w.tokens.Grants(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("got %d grants, %v, want none", len(all), err)
	}
}

// TestRotation refreshes time and again at a provider that takes each refresh token once and revokes all of a family when
// one comes back; then brings one back.
func TestRotation(t *testing.T) {
	w := start(t)
	if _, err := w.consents.Finish(t.Context(), w.open(t, secretive).agree("ann@contoso.com").callback()); err != nil {
		t.Fatalf("%v (%v)", err, errors.Unwrap(err))
	}
	first := w.refresh(t, secretive, "ann@contoso.com")
	token := w.token(t, secretive, "")
	seen := map[string]bool{first: true}
	for range 3 {
		token = w.token(t, secretive, token)
		next := w.refresh(t, secretive, "ann@contoso.com")
		if seen[next] {
			t.Fatal("the refresh token was not replaced")
		}
		seen[next] = true
	}
	resp, err := http.PostForm(w.authority+"/"+tenantID+"/oauth2/v2.0/token", url.Values{"grant_type": {"refresh_token"}, "client_id": {secretive},
		"client_secret": {secret}, "refresh_token": {first}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("a refresh token served twice: %s", resp.Status)
	}
	if _, err := w.tokens.Token(t.Context(), secretive, "ann@contoso.com", token); status.From(err) == nil || status.From(err).Action != status.ParkSender {
		t.Errorf("got %v, want the sender parked: its grant is revoked", err)
	}
	// Signing in again cures it.
	if _, err := w.consents.Finish(t.Context(), w.open(t, secretive).agree("ann@contoso.com").callback()); err != nil {
		t.Fatalf("%v (%v)", err, errors.Unwrap(err))
	}
	w.token(t, secretive, "")
}

// TestTwoNodesRotate: two nodes on the same records, and 100 callers at once on each. Were the refresh token sent twice, the
// provider would revoke the grant, and the next round would fail.
func TestTwoNodesRotate(t *testing.T) {
	w := start(t)
	if _, err := w.consents.Finish(t.Context(), w.open(t, certified).agree("ann@contoso.com").callback()); err != nil {
		t.Fatalf("%v (%v)", err, errors.Unwrap(err))
	}
	nodes := []*entra.Tokens{w.tokens, w.node(t, "two")}
	refused, refresh := "", w.refresh(t, certified, "ann@contoso.com")
	for round := range 3 {
		before := w.requests.Load()
		var callers sync.WaitGroup
		var mu sync.Mutex
		got := map[string]int{}
		for _, node := range nodes {
			for range 100 {
				callers.Go(func() {
					token, err := node.Token(t.Context(), certified, "ann@contoso.com", refused)
					if err != nil {
						t.Error(err, errors.Unwrap(err))
					}
					mu.Lock()
					defer mu.Unlock()
					got[token]++
				})
			}
		}
		callers.Wait()
		if n := w.requests.Load() - before; len(got) != 1 || got[refused] != 0 || n != 1 {
			t.Fatalf("round %d: %d requests, %d different tokens, want one new one by one request", round, n, len(got))
		}
		next := w.refresh(t, certified, "ann@contoso.com")
		if next == refresh {
			t.Fatalf("round %d: the refresh token was not replaced", round)
		}
		for refused = range got {
		}
		refresh = next
	}
}

func TestDeviceCode(t *testing.T) {
	w := start(t)
	for _, tt := range []struct{ tenant, account, want string }{
		{certified, "ann@contoso.com", consent.DeviceDone}, {secretive, "bob@contoso.com", consent.DeviceFailed},
	} {
		t.Run(tt.tenant, func(t *testing.T) {
			d, err := w.consents.StartDevice(t.Context(), consent.Request{Tenant: tt.tenant, Login: "ann@contoso.com", Sender: "ann@contoso.com"})
			if err != nil {
				t.Fatalf("%v (%v)", err, errors.Unwrap(err))
			}
			b := browse(t, d.VerificationURI).submit(map[string]string{"user_code": d.UserCode}).agree(tt.account)
			deadline := time.After(patience)
			for d.State == consent.DevicePending {
				select {
				case <-deadline:
					t.Fatalf("still pending; the page says:\n%s", b.page)
				case <-time.After(50 * time.Millisecond):
				}
				if d, err = w.consents.Device(t.Context(), d.ID); err != nil {
					t.Fatal(err)
				}
			}
			if d.State != tt.want {
				t.Fatalf("got %+v, %v", d, d.Problem)
			}
			if tt.want == consent.DeviceDone {
				w.token(t, tt.tenant, w.token(t, tt.tenant, ""))
			} else if d.Problem.Rule != "sign-in-user" {
				t.Errorf("got %v", d.Problem)
			}
		})
	}
}

func TestClientCredentials(t *testing.T) {
	w := start(t)
	first := w.token(t, appOnly, "")
	if second := w.token(t, appOnly, first); second == first { // a new assertion: the provider takes each once
		t.Error("the same token again")
	}
	if err := w.tokens.Check(t.Context(), appOnly); err != nil {
		t.Errorf("check: %v", err)
	}
}
