package consent_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"relayd/pkg/entra"
	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/grant"
	"relayd/pkg/sandbox"
	"relayd/pkg/status"
)

const (
	boxTenant   = "0aa0bb00-1111-2222-3333-444455556666"
	boxClient   = "11111111-2222-3333-4444-555566667777"
	boxPublic   = "22222222-2222-3333-4444-555566667777"
	boxSecret   = "box~secret"
	boxCallback = "http://127.0.0.1:8080/oauth/callback"
	patience    = 20 * time.Second
)

// relay is the consents of a relay before a sandbox.
type relay struct {
	*consent.Consents
	box     *sandbox.Sandbox
	tokens  *entra.Tokens
	adopted chan grant.Grant
}

func before(t *testing.T) *relay {
	t.Helper()
	box, err := sandbox.New(sandbox.Options{DeviceInterval: time.Second, Tenants: []sandbox.Tenant{{
		ID: boxTenant, Mailboxes: []string{"*@contoso.com"},
		Apps: []sandbox.App{{ID: boxClient, Secret: boxSecret, RedirectURIs: []string{boxCallback}}, {ID: boxPublic, Public: true}},
		Users: []sandbox.User{{Mail: "ann@contoso.com"}, {Mail: "bob@contoso.com"}, {Mail: "boss@contoso.com", Admin: true},
			{Mail: "far@contoso.com", State: "blocked"}, {Mail: "gone@contoso.com", State: "disabled"}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := box.Run(ctx); err != nil {
			t.Errorf("sandbox: %v", err)
		}
	})
	r := &relay{box: box, adopted: make(chan grant.Grant, 10)}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(box.CAPEM())
	r.tokens, err = entra.New(entra.Options{Tenants: map[string]entra.Tenant{
		"contoso": {TenantID: boxTenant, ClientID: boxClient, Authority: box.Authority(), RootCAs: pool, Delegated: true,
			Secret: func() (string, error) { return boxSecret, nil }},
		"public": {TenantID: boxTenant, ClientID: boxPublic, Authority: box.Authority(), RootCAs: pool, Delegated: true}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.tokens.Close)
	r.Consents, err = consent.New(consent.Options{
		Registration: r.tokens.Registration, Pending: grant.NewMemory(), Devices: grant.NewMemory(), Invitations: grant.NewMemory(),
		Adopt: func(ctx context.Context, g grant.Grant) error {
			r.adopted <- g
			return r.tokens.Adopt(ctx, g)
		},
		RedirectURI: func() string { return boxCallback },
	})
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return r
}

// surfer is a browser without scripts: it keeps cookies and fills in forms.
type surfer struct {
	t      *testing.T
	client *http.Client
	url    string
	page   string
	left   *url.URL // where it was sent off the site
}

func (r *relay) surf(t *testing.T, where string) *surfer {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.box.CAPEM())
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &surfer{t: t, url: where, client: &http.Client{Jar: jar, Timeout: patience,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	return s.shown(s.client.Get(where))
}

func (s *surfer) shown(resp *http.Response, err error) *surfer {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.page, s.left = string(data), nil
	if to := resp.Header.Get("Location"); to != "" {
		if s.left, err = url.Parse(to); err != nil {
			s.t.Fatal(err)
		}
	}
	return s
}

var hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// submit posts the form that has a field of that name.
func (s *surfer) submit(field, value string) *surfer {
	s.t.Helper()
	for _, form := range strings.Split(s.page, "<form")[1:] {
		form, _, _ = strings.Cut(form, "</form>")
		if !strings.Contains(form, `name="`+field+`"`) {
			continue
		}
		values := url.Values{field: {value}}
		for _, m := range hidden.FindAllStringSubmatch(form, -1) {
			if name := html.UnescapeString(m[1]); name != field {
				values.Set(name, html.UnescapeString(m[2]))
			}
		}
		return s.shown(s.client.PostForm(s.url, values))
	}
	s.t.Fatalf("no form with %s on the page (sent to %v):\n%s", field, s.left, s.page)
	return nil
}

// signIn enters account and password, over what login_hint has filled in.
func (s *surfer) signIn(account string) *surfer {
	s.t.Helper()
	if !strings.Contains(s.page, `data-page="account"`) {
		s.submit("back", "1")
	}
	return s.submit("loginfmt", account).submit("passwd", "anything")
}

func (s *surfer) consent() *surfer {
	s.t.Helper()
	if s.left == nil {
		s.submit("ucaccept", "1")
	}
	return s
}

// back is what the browser brings to the redirect URI.
func (s *surfer) back(session string) consent.Callback {
	s.t.Helper()
	if s.left == nil || !strings.HasPrefix(s.left.String(), boxCallback+"?") {
		s.t.Fatalf("not sent back but to %v, on:\n%s", s.left, s.page)
	}
	q := s.left.Query()
	return consent.Callback{Session: session, State: q.Get("state"), Code: q.Get("code"), Issuer: q.Get("iss"), Error: q.Get("error"),
		ErrorDescription: q.Get("error_description"), AdminConsent: strings.EqualFold(q.Get("admin_consent"), "true"), Tenant: q.Get("tenant")}
}

func (r *relay) start(t *testing.T, login string) *surfer {
	t.Helper()
	where, err := r.Start(t.Context(), consent.Request{Tenant: "contoso", Login: login, Sender: login, Session: "s"})
	if err != nil {
		t.Fatal(err)
	}
	return r.surf(t, where)
}

func wantRule(t *testing.T, err error, rule string) {
	t.Helper()
	if e, ok := errors.AsType[*status.Error](err); !ok || e.Rule != rule {
		t.Fatalf("got %v, want %s", err, rule)
	}
}

func TestSandboxCode(t *testing.T) {
	r := before(t)
	result, err := r.Finish(t.Context(), r.start(t, "ann@contoso.com").signIn("ann@contoso.com").consent().back("s"))
	if err != nil || result.User != "ann@contoso.com" {
		t.Fatalf("got %+v, %v (%v)", result, err, errors.Unwrap(err))
	}
	g := <-r.adopted
	if g.Login != "ann@contoso.com" || g.TenantID != boxTenant || g.Refresh == "" || g.Access == "" || g.ObjectID == "" || !g.Expires.After(time.Now()) {
		t.Errorf("adopted %+v", g)
	}
	r.wantToken(t, "contoso")
}

// wantToken checks that relayd gets an access token by what ann has granted, and another when that one is refused.
func (r *relay) wantToken(t *testing.T, tenant string) {
	t.Helper()
	first, err := r.tokens.Token(t.Context(), tenant, "ann@contoso.com", "")
	if err != nil || first == "" {
		t.Fatalf("got %q, %v (%v)", first, err, errors.Unwrap(err))
	}
	if second, err := r.tokens.Token(t.Context(), tenant, "ann@contoso.com", first); err != nil || second == "" || second == first {
		t.Fatalf("got %q, %v (%v)", second, err, errors.Unwrap(err))
	}
}

func TestSandboxRefusals(t *testing.T) {
	r := before(t)
	tests := []struct {
		name string
		do   func() *surfer
		rule string
	}{
		{"wrong user", func() *surfer { return r.start(t, "ann@contoso.com").signIn("bob@contoso.com").consent() }, "sign-in-user"},
		{"cancelled", func() *surfer {
			return r.start(t, "ann@contoso.com").signIn("ann@contoso.com").submit("ucaccept", "0")
		}, "sign-in-declined"},
		{"conditional access", func() *surfer { return r.start(t, "far@contoso.com").signIn("far@contoso.com").submit("return", "1") }, "sign-in-policy"},
		{"account disabled", func() *surfer { return r.start(t, "gone@contoso.com").signIn("gone@contoso.com").submit("return", "1") }, "account-disabled"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.Finish(t.Context(), tt.do().back("s"))
			wantRule(t, err, tt.rule)
			if len(r.adopted) != 0 {
				t.Errorf("adopted %+v", <-r.adopted)
			}
		})
	}
	if _, err := r.tokens.Token(t.Context(), "contoso", "ann@contoso.com", ""); err == nil {
		t.Error("a token for a mailbox whose owner has not consented")
	}
}

// TestSandboxOnlyAdministrators: the organisation lets nobody else consent.
func TestSandboxOnlyAdministrators(t *testing.T) {
	r := before(t)
	if err := r.box.ChangeTenant(boxTenant, func(x *sandbox.Tenant) error { x.AdminConsentRequired = true; return nil }); err != nil {
		t.Fatal(err)
	}
	_, err := r.Finish(t.Context(), r.start(t, "ann@contoso.com").signIn("ann@contoso.com").submit("return", "1").back("s"))
	wantRule(t, err, "sign-in-admin")
	where, err := r.StartAdmin(t.Context(), "contoso", "s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(t.Context(), r.surf(t, where).signIn("boss@contoso.com").submit("ucaccept", "0").back("s")); err == nil {
		t.Fatal("declined, and taken for consent")
	}
	if where, err = r.StartAdmin(t.Context(), "contoso", "s"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(t.Context(), r.surf(t, where).signIn("boss@contoso.com").consent().back("s")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(t.Context(), r.start(t, "ann@contoso.com").signIn("ann@contoso.com").back("s")); err != nil {
		t.Fatalf("%v (%v)", err, errors.Unwrap(err))
	}
	r.wantToken(t, "contoso")
}

func TestSandboxAdmin(t *testing.T) {
	r := before(t)
	where, err := r.StartAdmin(t.Context(), "contoso", "s")
	if err != nil {
		t.Fatal(err)
	}
	result, err := r.Finish(t.Context(), r.surf(t, where).signIn("boss@contoso.com").consent().back("s"))
	if err != nil || !result.Admin || result.Tenant != "contoso" {
		t.Fatalf("got %+v, %v", result, err)
	}
	// From now on nobody is asked.
	after := r.start(t, "ann@contoso.com").signIn("ann@contoso.com")
	if after.left == nil {
		t.Errorf("still asked:\n%s", after.page)
	}
}

func TestSandboxInvitation(t *testing.T) {
	r := before(t)
	i, err := r.Invite(t.Context(), consent.Request{Tenant: "contoso", Login: "ann@contoso.com", Sender: "ann@contoso.com"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	open := func(account string) error {
		where, err := r.Accept(t.Context(), i.Code, "owner")
		if err != nil {
			return err
		}
		_, err = r.Finish(t.Context(), r.surf(t, where).signIn(account).consent().back("owner"))
		return err
	}
	wantRule(t, open("bob@contoso.com"), "sign-in-user")
	if err := open("ann@contoso.com"); err != nil {
		t.Fatal(err)
	}
	if err := open("ann@contoso.com"); !errors.Is(err, consent.ErrInvitation) {
		t.Errorf("used up: got %v", err)
	}
}

func TestSandboxDevice(t *testing.T) {
	r := before(t)
	for account, want := range map[string]string{"ann@contoso.com": consent.DeviceDone, "bob@contoso.com": consent.DeviceFailed} {
		d, err := r.StartDevice(t.Context(), consent.Request{Tenant: "public", Login: "ann@contoso.com", Sender: "ann@contoso.com"})
		if err != nil {
			t.Fatalf("%v (%v)", err, errors.Unwrap(err))
		}
		s := r.surf(t, d.VerificationURI).submit("otc", d.UserCode).signIn(account)
		for strings.Contains(s.page, `name="ucaccept"`) { // is it yours? may it send?
			s.submit("ucaccept", "1")
		}
		deadline := time.After(patience)
		for d.State == consent.DevicePending {
			select {
			case <-deadline:
				t.Fatalf("%s: still pending; the page says:\n%s", account, s.page)
			case <-time.After(50 * time.Millisecond):
			}
			if d, err = r.Device(t.Context(), d.ID); err != nil {
				t.Fatal(err)
			}
		}
		if d.State != want || want == consent.DeviceFailed && d.Problem.Rule != "sign-in-user" {
			t.Errorf("%s: got %+v, %v", account, d, d.Problem)
		}
	}
	if len(r.adopted) != 1 {
		t.Errorf("adopted %d", len(r.adopted))
	}
	r.wantToken(t, "public")
}
