package provider

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"relayd/pkg/admin/login/providertest"
)

const secret = "canary-of-the-client"

func open(t *testing.T, p *providertest.Provider, change func(*Options)) *Provider {
	t.Helper()
	opts := Options{Issuer: p.URL, ClientID: p.ClientID, Client: p.Client()}
	if change != nil {
		change(&opts)
	}
	got, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func flow() Flow {
	return Flow{State: strings.Repeat("s", 43), Nonce: strings.Repeat("n", 43), Verifier: strings.Repeat("v", 43), Redirect: "https://relay.contoso.com/login/callback"}
}

// signIn walks the whole way and returns the claims.
func signIn(t *testing.T, p *providertest.Provider, o *Provider) (map[string]any, error) {
	t.Helper()
	f := flow()
	to, err := o.Start(t.Context(), f)
	if err != nil {
		return nil, err
	}
	claims := map[string]any{}
	return claims, o.Finish(t.Context(), f, p.Authorize(t, to), &claims)
}

func TestSignIn(t *testing.T) {
	for name, tt := range map[string]struct {
		methods []string
		secret  bool
		basic   bool // by the header, else by the form
	}{
		"public client": {nil, false, false},
		"default":       {nil, true, true},
		"basic":         {[]string{"client_secret_post", "client_secret_basic"}, true, true},
		"post":          {[]string{"client_secret_post", "private_key_jwt"}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := providertest.New(t, "relayd")
			if tt.methods != nil {
				p.Publish("token_endpoint_auth_methods_supported", tt.methods)
			}
			p.Set(providertest.Claims{"email": "a@b"})
			o := open(t, p, func(opts *Options) {
				if tt.secret {
					opts.ClientSecret = func() (string, error) { return secret, nil }
				}
			})
			claims, err := signIn(t, p, o)
			if err != nil || claims["sub"] != "subject" || claims["email"] != "a@b" {
				t.Fatalf("got %v, %v", claims, err)
			}
			r := p.Requests()
			_, given, basic := r[0].BasicAuth()
			if len(r) != 1 || basic != tt.basic || basic && given != secret || (r[0].PostForm.Get("client_secret") == secret) != (tt.secret && !tt.basic) {
				t.Errorf("%d requests, %v, %v", len(r), basic, r[0].PostForm)
			}
		})
	}
}

// Each token that is wrong in one way is refused.
func TestWrongTokens(t *testing.T) {
	for name, claims := range map[string]providertest.Claims{
		"issuer":      {"iss": "https://evil.example"},
		"audience":    {"aud": "another"},
		"expired":     {"exp": 1000},
		"nonce":       {"nonce": "another"},
		"no nonce":    {"nonce": nil},
		"party":       {"azp": "another"},
		"two parties": {"aud": []string{"relayd", "another"}},
		"no audience": {"aud": nil},
	} {
		p := providertest.New(t, "relayd")
		p.Set(claims)
		if _, err := signIn(t, p, open(t, p, nil)); err == nil || !strings.HasPrefix(err.Error(), "check the id token: ") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	p, other := providertest.New(t, "relayd"), providertest.New(t, "relayd")
	o := open(t, p, nil)
	other.Set(providertest.Claims{"iss": p.URL})
	for name, raw := range map[string]string{
		"another's key": other.Sign(flow().Nonce), "unsigned": p.Unsigned(flow().Nonce), "none": " ", "broken": "a.b.c",
		"altered": strings.Replace(p.Sign(flow().Nonce), ".", ".x", 1),
	} {
		p.Answer(raw)
		if _, err := signIn(t, p, o); err == nil || !strings.HasPrefix(err.Error(), "check the id token: ") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	p.Answer("")
	if _, err := signIn(t, p, o); err != nil {
		t.Error(err)
	}
}

func TestTwoPartiesWithOurs(t *testing.T) {
	p := providertest.New(t, "relayd")
	p.Set(providertest.Claims{"aud": []string{"relayd", "another"}, "azp": "relayd"})
	if _, err := signIn(t, p, open(t, p, nil)); err != nil {
		t.Error(err)
	}
}

// A code is good with the verifier of the flow that it belongs to only, and once; the refusal shows no secret.
func TestCode(t *testing.T) {
	p := providertest.New(t, "relayd")
	p.Publish("token_endpoint_auth_methods_supported", []string{"client_secret_post"}) // the provider echoes it
	o := open(t, p, func(opts *Options) { opts.ClientSecret = func() (string, error) { return secret, nil } })
	f := flow()
	to, err := o.Start(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	answer := p.Authorize(t, to)
	stolen := f
	stolen.Verifier = strings.Repeat("x", 43)
	for _, f := range []Flow{stolen, f} {
		err := o.Finish(t.Context(), f, answer, &struct{}{})
		if err == nil || !strings.Contains(err.Error(), "invalid_grant") || strings.Contains(err.Error(), secret) {
			t.Errorf("got %v", err)
		}
	}
}

// The provider's name in its answer is checked where it is given, and must be given where that is announced (RFC 9207).
func TestMixUp(t *testing.T) {
	for _, tt := range []struct {
		iss       string
		announced bool
		ok        bool
	}{{"", false, true}, {"ours", false, true}, {"https://evil.example", false, false}, {"", true, false}, {"ours", true, true}} {
		p := providertest.New(t, "relayd")
		p.Publish("authorization_response_iss_parameter_supported", tt.announced)
		o := open(t, p, nil)
		to, err := o.Start(t.Context(), flow())
		if err != nil {
			t.Fatal(err)
		}
		answer := p.Authorize(t, to)
		if tt.iss != "" {
			answer.Set("iss", strings.ReplaceAll(tt.iss, "ours", p.URL))
		}
		if err := o.Finish(t.Context(), flow(), answer, &struct{}{}); (err == nil) != tt.ok {
			t.Errorf("%+v: got %v", tt, err)
		}
	}
}

func TestScopes(t *testing.T) {
	for _, tt := range []struct {
		supported []string
		groups    bool
		want      string
	}{
		{nil, true, "openid profile email"}, {[]string{"openid", "groups"}, true, "openid profile email groups"},
		{[]string{"openid", "groups"}, false, "openid profile email"},
	} {
		p := providertest.New(t, "relayd")
		p.Publish("scopes_supported", tt.supported)
		to, err := open(t, p, func(o *Options) { o.Groups = tt.groups }).Start(t.Context(), flow())
		if err != nil {
			t.Fatal(err)
		}
		u, _ := url.Parse(to)
		if got := u.Query().Get("scope"); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// A provider that is away stops nobody from starting, and is asked again.
func TestAway(t *testing.T) {
	p := providertest.New(t, "relayd")
	p.Away(true)
	o := open(t, p, nil)
	if _, err := o.Start(t.Context(), flow()); err == nil || !strings.Contains(err.Error(), "ask the OpenID provider for its endpoints: 503") {
		t.Errorf("got %v", err)
	}
	p.Away(false)
	if _, err := signIn(t, p, o); err != nil {
		t.Error(err)
	}
	p.Away(true)
	o.asked = o.asked.Add(-metadataLife)
	if _, err := o.Start(t.Context(), flow()); err != nil {
		t.Errorf("what is known serves on: %v", err)
	}
}

func TestMetadataThatCannotBe(t *testing.T) {
	for name, value := range map[string]string{"issuer": "https://evil.example", "token_endpoint": "http://a/token", "authorization_endpoint": "javascript:x"} {
		p := providertest.New(t, "relayd")
		p.Publish(name, value)
		if _, err := open(t, p, nil).Start(t.Context(), flow()); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestSecretCannotBeRead(t *testing.T) {
	p := providertest.New(t, "relayd")
	o := open(t, p, func(o *Options) { o.ClientSecret = func() (string, error) { return "", errors.New("no such file") } })
	if _, err := o.Start(t.Context(), flow()); err == nil || !strings.Contains(err.Error(), "read the client secret: no such file") {
		t.Errorf("got %v", err)
	}
}

// No redirect is followed, since the secret would go along; no answer is read without end.
func TestRedirectAndEndlessAnswer(t *testing.T) {
	reached := false
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer trap.Close()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/endless") {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
			return
		}
		http.Redirect(w, r, trap.URL, http.StatusTemporaryRedirect)
	}))
	defer s.Close()
	for _, path := range []string{"", "/endless"} {
		o, err := New(Options{Issuer: s.URL + path, ClientID: "x", Client: s.Client()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Start(t.Context(), flow()); err == nil || reached {
			t.Errorf("%q: got %v, %v", path, err, reached)
		}
	}
}

// Without a client of its own it trusts the roots it is given.
func TestRoots(t *testing.T) {
	p := providertest.New(t, "relayd")
	o, err := New(Options{Issuer: p.URL, ClientID: "relayd"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Start(t.Context(), flow()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
	pool := p.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	if o, err = New(Options{Issuer: p.URL, ClientID: "relayd", RootCAs: pool}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Start(t.Context(), flow()); err != nil {
		t.Error(err)
	}
}
