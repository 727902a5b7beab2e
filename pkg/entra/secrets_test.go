package entra

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"relayd/pkg/entra/catalogue"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

// TestNoRefreshTokenAnywhere has the endpoint repeat all it was sent, and looks at all that is said of it.
func TestNoRefreshTokenAnywhere(t *testing.T) {
	const refresh = `refresh-c4nary "+&`
	clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, refresh)
		c.set(func() {
			c.refuse = func(w http.ResponseWriter) bool {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(400)
				fmt.Fprintf(w, `{"error":"invalid_grant","error_description":%q,"error_codes":[70000]}`,
					"AADSTS70000: of "+refresh+" and "+url.QueryEscape(refresh)+" and "+canary+"\r\nTrace")
				return true
			}
		})
		var said strings.Builder
		for range 2 { // the answer, then what the record says of it
			e := c.fails(t, 0, "refresh-token-gone", status.ParkSender)
			fmt.Fprintf(&said, "%v %+v %v", e, *e, e.Err)
		}
		all, err := c.nodes[0].Grants(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		if got := all[0].Reason; !strings.Contains(got, "AADSTS70000: of [secret]") || strings.Contains(got, "Trace") {
			t.Errorf("got reason %q", got)
		}
		for _, entry := range c.logs.All() {
			fmt.Fprintln(&said, entry.Message, entry.ContextMap())
		}
		type bare grant.Grant // without its String
		fmt.Fprintf(&said, "%+v %v", bare(all[0]), c.nodes[0])
		for _, form := range []string{"c4nary", "s3cr3t"} {
			if strings.Contains(said.String(), form) {
				t.Errorf("%q found in %s", form, said.String())
			}
		}
	})
}

// TestRegistration: what consent asks with is authenticated, and what it is refused is read, without the secrets.
func TestRegistration(t *testing.T) {
	tenant := delegated()
	tenant.Scope = "https://mail.example/Send offline_access"
	tokens, err := New(Options{Tenants: map[string]Tenant{"contoso": tenant}})
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.Close()
	r, err := tokens.Registration("contoso")
	if err != nil || r.Name != "contoso" || r.Scope != "https://mail.example/Send" || r.Authority != "http://127.0.0.1:1/base" || r.ClientID != "app" || r.TenantID != "0000-aaaa" {
		t.Errorf("got %+v, %v", r, err)
	}
	form := url.Values{}
	if err := r.Authenticate(t.Context(), "https://x/token", form); err != nil || form.Get("client_secret") != canary {
		t.Errorf("got %v, %v", form, err)
	}
	server := httptest.NewServer(http.RedirectHandler("/elsewhere", http.StatusTemporaryRedirect))
	defer server.Close()
	if response, err := r.Client.Get(server.URL); err != nil || response.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("the client followed a redirect: %v, %v", response, err)
	} else {
		_ = response.Body.Close()
	}
	tests := []struct {
		err  error
		rule string
	}{
		{&oauth2.RetrieveError{ErrorCode: "access_denied", ErrorDescription: "AADSTS65004: User declined c0de to consent."}, "consent-denied"},
		{&oauth2.RetrieveError{ErrorCode: "access_denied"}, "consent-denied"},
		{&oauth2.RetrieveError{ErrorCode: "consent_required", ErrorDescription: "AADSTS90094: an administrator"}, "admin-consent-needed"},
		{&oauth2.RetrieveError{ErrorCode: "invalid_grant", ErrorDescription: "AADSTS65001: c0de"}, "consent-needed"},
		{&oauth2.RetrieveError{ErrorCode: "invalid_client", ErrorDescription: "AADSTS7000215: c0de"}, "secret-wrong"},
		{&oauth2.RetrieveError{Response: &http.Response{StatusCode: 400}, Body: []byte(`{"error":"invalid_request","error_codes":[50011]}`)}, "redirect-mismatch"},
		{&oauth2.RetrieveError{Response: &http.Response{StatusCode: 400}, Body: []byte(`{"error":"authorization_declined","error_description":"c0de"}`)}, "consent-denied"},
		{fmt.Errorf("consent: %w", &status.Error{Rule: "credential-unreadable", Code: 535}), "credential-unreadable"},
		{errors.New("dial c0de"), ""},
	}
	for _, tt := range tests {
		if e := r.Explain(tt.err, "c0de"); e == nil || e.Rule != tt.rule || strings.Contains(fmt.Sprint(e, e.Err), "c0de") {
			t.Errorf("%v: got %+v", tt.err, e)
		}
	}
	if _, err := tokens.Registration("fabrikam"); status.From(err).Action != status.ParkTenant {
		t.Errorf("unknown tenant: %v", err)
	}
}

// TestOneCredential: of each tenant exactly one, and none of a public client only.
func TestOneCredential(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret := func() (string, error) { return "x", nil }
	pair := func() (tls.Certificate, error) {
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
	}
	tests := []struct {
		tenant Tenant
		want   string // part of the error; empty: accepted
		field  string // of the request
	}{
		{Tenant{}, "a credential is required", ""},
		{Tenant{Delegated: true}, "", ""},
		{Tenant{Secret: secret}, "", "client_secret"},
		{Tenant{Certificate: pair}, "", "client_assertion"},
		{Tenant{FederatedToken: secret}, "", "client_assertion"},
		{Tenant{Secret: secret, Certificate: pair}, "one credential is enough", ""},
		{Tenant{FederatedToken: secret, ManagedIdentity: "system", Delegated: true}, "one credential is enough", ""},
	}
	for i, tt := range tests {
		tt.tenant.TenantID, tt.tenant.ClientID = "t", "app"
		tokens, err := New(Options{Tenants: map[string]Tenant{"contoso": tt.tenant}})
		if tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d: got %v, want %s", i, err, tt.want)
			}
			continue
		}
		if err != nil {
			t.Fatal(i, err)
		}
		r, _ := tokens.Registration("contoso")
		form := url.Values{}
		if err := r.Authenticate(t.Context(), "https://x/token", form); err != nil || tt.field != "" && form.Get(tt.field) == "" || tt.field == "" && len(form) != 0 {
			t.Errorf("%d: got %v, %v", i, form, err)
		}
		tokens.Close()
	}
}

// TestWatchedChanges: what another node stores, ends or forgets is in force here at once, and what this node was told to wait
// for is not asked sooner for it.
func TestWatchedChanges(t *testing.T) {
	clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
		name := grant.Name("contoso", owner)
		c.adopt(t, "refresh-0")
		c.want(t, 1, "", "access-1")
		c.set(func() { c.valid["fresh"] = true })
		advance(time.Second)
		c.adopt(t, "fresh") // on node 0
		c.nodes[1].changed(name)
		c.want(t, 1, "", "access-2")
		if err := c.nodes[0].Forget(t.Context(), "contoso", owner); err != nil {
			t.Fatal(err)
		}
		c.nodes[1].changed(name)
		c.fails(t, 1, "no-consent", status.ParkSender)
		c.set(func() {
			c.valid["third"] = true
			c.refuse = func(w http.ResponseWriter) bool { refuse(w, 503, "", ""); return true }
		})
		c.adopt(t, "third")
		c.nodes[1].changed(name)
		c.fails(t, 1, "unavailable", status.Retry)
		before := c.count()
		c.nodes[1].changed(name) // its own release of the lease
		c.fails(t, 1, "unavailable", status.Retry)
		if c.count() != before {
			t.Error("a change of no account ended the wait")
		}
		c.nodes[1].changed("user/contoso/nobody")
	})
}

func TestNewTakesNoBadRule(t *testing.T) {
	if _, err := New(Options{Rules: []catalogue.Rule{{Name: "x"}}}); err == nil {
		t.Error("taken")
	}
}
