package entra_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"html"
	"math/big"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"relayd/pkg/broker"
	"relayd/pkg/entra"
	"relayd/pkg/entra/grant"
	"relayd/pkg/sandbox"
	"relayd/pkg/status"
	"relayd/pkg/vault"
)

const (
	tenantID = "99999999-9999-4999-8999-999999999999"
	clientID = "88888888-8888-4888-8888-888888888888"
	callback = "http://127.0.0.1:8080/oauth/callback"
	scope    = "https://outlook.office.com/SMTP.Send offline_access openid profile"
	ann      = "ann@contoso.com"
)

// microsoft is the sandbox, with a strict rotation of refresh tokens.
func microsoft(t *testing.T, app sandbox.App) (box *sandbox.Sandbox, roots *x509.CertPool) {
	t.Helper()
	app.ID, app.RedirectURIs = clientID, []string{callback}
	box, err := sandbox.New(sandbox.Options{StrictRotation: true, Tenants: []sandbox.Tenant{{ID: tenantID, Apps: []sandbox.App{app},
		Mailboxes: []string{"*@contoso.com"}, Users: []sandbox.User{{Mail: ann}}}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- box.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(box.CAPEM())
	return box, roots
}

var hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// consent signs ann in as a browser would, and redeems the code with what reg adds.
func consent(t *testing.T, tokens *entra.Tokens, roots *x509.CertPool) grant.Grant {
	t.Helper()
	reg, err := tokens.Registration("contoso")
	if err != nil {
		t.Fatal(err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	at := reg.Authority + "/" + reg.TenantID + "/oauth2/v2.0/authorize?" + url.Values{"client_id": {reg.ClientID}, "response_type": {"code"},
		"redirect_uri": {callback}, "scope": {scope}, "state": {"x"}}.Encode()
	response, err := client.Get(at)
	for _, field := range [][2]string{{"loginfmt", ann}, {"passwd", "anything"}, {"ucaccept", "1"}} {
		if err != nil {
			t.Fatal(err)
		}
		var page bytes.Buffer
		_, _ = page.ReadFrom(response.Body)
		_ = response.Body.Close()
		form := url.Values{field[0]: {field[1]}}
		for _, part := range strings.Split(page.String(), "<form")[1:] {
			if strings.Contains(part, `name="`+field[0]+`"`) {
				for _, m := range hidden.FindAllStringSubmatch(part, -1) {
					form.Set(html.UnescapeString(m[1]), html.UnescapeString(m[2]))
				}
				break
			}
		}
		response, err = client.PostForm(at, form)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	back, err := response.Location()
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{"client_id": {reg.ClientID}, "grant_type": {"authorization_code"}, "code": {back.Query().Get("code")}, "redirect_uri": {callback}, "scope": {scope}}
	endpoint := reg.Authority + "/" + reg.TenantID + "/oauth2/v2.0/token"
	if err := reg.Authenticate(t.Context(), endpoint, form); err != nil {
		t.Fatal(err)
	}
	answer, err := reg.Client.PostForm(endpoint, form)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	var body bytes.Buffer
	_, _ = body.ReadFrom(answer.Body)
	m := regexp.MustCompile(`"refresh_token":\s*"([^"]+)"`).FindStringSubmatch(body.String())
	if m == nil {
		t.Fatalf("no refresh token: %s", body.String())
	}
	return grant.Grant{Tenant: "contoso", Login: ann, ClientID: clientID, TenantID: tenantID, User: ann, Granted: time.Now(), Refresh: m[1]}
}

// TestTwoNodesOverTheVault: the records sealed in a stream, the strictest Entra ID, and 200 callers at once on two nodes, at
// the first token and whenever it is refused.
func TestTwoNodesOverTheVault(t *testing.T) {
	b, err := broker.Open(t.Context(), broker.Options{Dir: t.TempDir(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	conns, err := b.Connect(2)
	if err != nil {
		t.Fatal(err)
	}
	box, roots := microsoft(t, sandbox.App{Secret: "s3cr3t"})
	var nodes []*entra.Tokens
	for i, conn := range conns {
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		bucket, err := vault.NewBucket(t.Context(), js, 1)
		if err != nil {
			t.Fatal(err)
		}
		v, err := vault.Open(t.Context(), vault.Options{Store: bucket, Key: func() ([]byte, error) { return bytes.Repeat([]byte("k"), 32), nil }})
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := entra.New(entra.Options{Records: v.Kind("grant"), Node: fmt.Sprint(i), Tenants: map[string]entra.Tenant{
			"contoso": {TenantID: tenantID, ClientID: clientID, Authority: box.Authority(), RootCAs: roots, Delegated: true,
				Secret: func() (string, error) { return "s3cr3t", nil }}}})
		if err != nil {
			t.Fatal(err)
		}
		defer tokens.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tokens.Run(ctx) }()
		defer func() { cancel(); <-done }()
		nodes = append(nodes, tokens)
	}
	if err := nodes[0].Adopt(t.Context(), consent(t, nodes[0], roots)); err != nil {
		t.Fatal(err)
	}
	refused := ""
	for n := int64(1); n <= 5; n++ {
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := map[string]int{}
		for _, tokens := range nodes {
			for range 100 {
				wg.Go(func() {
					tok, err := tokens.Token(t.Context(), "contoso", ann, refused)
					if err != nil {
						t.Error(err, errors.Unwrap(err))
					}
					mu.Lock()
					got[tok]++
					mu.Unlock()
				})
			}
		}
		wg.Wait()
		if len(got) != 1 || got[refused] != 0 {
			t.Fatalf("round %d: %d different tokens", n, len(got))
		}
		if asked := box.Stats().TokenRequests["refresh_token"]; asked != n {
			t.Fatalf("round %d: %d requests", n, asked)
		}
		for refused = range got {
		}
	}
	if err := box.RevokeUser(tenantID, ann, true); err != nil {
		t.Fatal(err)
	}
	for _, tokens := range nodes {
		_, err := tokens.Token(t.Context(), "contoso", ann, refused)
		if e, ok := errors.AsType[*status.Error](err); !ok || e.Rule != "refresh-token-gone" || e.Action != status.ParkSender {
			t.Errorf("revoked: got %v", err)
		}
	}
	if asked := box.Stats().TokenRequests["refresh_token"]; asked != 6 {
		t.Errorf("%d requests, want the other node to read that the grant is dead", asked)
	}
}

// TestCredentials gets the application's own token by each of them.
func TestCredentials(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	box, roots := microsoft(t, sandbox.App{Secret: "s3cr3t", Certificates: []string{certificate}, ManagedIdentity: "user"})
	t.Setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://"+box.HTTPAddr())
	tests := map[string]struct {
		tenant entra.Tenant
		rule   string // empty: a token
	}{
		"secret":       {entra.Tenant{Secret: func() (string, error) { return "s3cr3t", nil }}, ""},
		"wrong secret": {entra.Tenant{Secret: func() (string, error) { return "0000", nil }}, "secret-wrong"},
		"certificate": {entra.Tenant{Certificate: func() (tls.Certificate, error) {
			return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
		}}, ""},
		"managed identity": {entra.Tenant{ManagedIdentity: clientID}, ""},
		"the system's own": {entra.Tenant{ManagedIdentity: "system", ClientID: "66666666-6666-4666-8666-666666666666"}, ""},
		"no such identity": {entra.Tenant{ManagedIdentity: "77777777-7777-4777-8777-777777777777"}, "managed-identity-refused"},
	}
	if err := box.ChangeTenant(tenantID, func(x *sandbox.Tenant) error {
		x.Apps = append(x.Apps, sandbox.App{ID: "66666666-6666-4666-8666-666666666666", ManagedIdentity: "system"})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for name, tt := range tests {
		if tt.tenant.ClientID == "" {
			tt.tenant.ClientID = clientID
		}
		tt.tenant.TenantID, tt.tenant.Authority, tt.tenant.RootCAs = tenantID, box.Authority(), roots
		tokens, err := entra.New(entra.Options{Tenants: map[string]entra.Tenant{"contoso": tt.tenant}})
		if err != nil {
			t.Fatal(err)
		}
		tok, err := tokens.Token(t.Context(), "contoso", ann, "")
		if e, ok := errors.AsType[*status.Error](err); tt.rule == "" && (err != nil || tok == "") || tt.rule != "" && (!ok || e.Rule != tt.rule) {
			t.Errorf("%s: got %q, %v (%v)", name, tok, err, errors.Unwrap(err))
		}
		tokens.Close()
	}
}
