package login

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/login/providertest"
)

// withProvider is a site that people log in to by a provider.
func withProvider(t *testing.T, rules ...Rule) (*site, *providertest.Provider, *OIDC) {
	t.Helper()
	p := providertest.New(t, "relayd")
	o := &OIDC{Issuer: p.URL, ClientID: "relayd", Allowed: rules, Client: p.Client()}
	return newSite(t, Options{Settings: Settings{OIDC: o, PublicURL: "https://relay.contoso.com"}}), p, o
}

// signIn walks from the start to the provider and back, and returns the last answer.
func (s *site) signIn(p *providertest.Provider, to string, change func(url.Values)) (code int, location, body string) {
	s.t.Helper()
	w := s.ask("GET", StartPath+"?"+url.Values{"to": {to}}.Encode())
	if w.Code != 303 {
		s.t.Fatalf("start: got %d %s", w.Code, w.Body)
	}
	answer := p.Authorize(s.t, w.Header().Get("Location"))
	if change != nil {
		change(answer)
	}
	w = s.ask("GET", CallbackPath+"?"+answer.Encode())
	return w.Code, w.Header().Get("Location"), w.Body.String()
}

func TestSignIn(t *testing.T) {
	s, p, o := withProvider(t, Rule{User: "ops@contoso.com", Role: access.Viewer}, Rule{Group: "mail", Role: access.Operator})
	p.Set(providertest.Claims{"email": "Ops@Contoso.com", "email_verified": true, "groups": []string{"other", "mail"}})
	if w := s.ask("GET", "/login?to=/senders"); !strings.Contains(w.Body.String(), `href="/login/start?to=%2Fsenders"`) {
		t.Errorf("the page has no button: %s", w.Body)
	}
	code, to, _ := s.signIn(p, "/senders?x=1", nil)
	if code != 303 || to != "/senders?x=1" {
		t.Fatalf("got %d %q", code, to)
	}
	if s.ask("GET", "/"); s.seen == nil || s.seen.Name != "Ops@Contoso.com" || s.seen.Role != access.Operator {
		t.Fatalf("got %+v", s.seen)
	}
	if _, kept := s.cookies["__Host-relayd-flow"]; kept {
		t.Error("the flow is kept")
	}
	if got := p.Requests()[0].PostForm.Get("redirect_uri"); got != "https://relay.contoso.com/login/callback" {
		t.Errorf("redirect URI: got %q", got)
	}
	if list, err := s.Sessions(t.Context()); err != nil || len(list) != 1 || list[0].Method != "oidc" || list[0].Role != access.Operator {
		t.Errorf("got %+v, %v", list, err)
	}
	// A change of the rules counts at the next request.
	less := *o
	less.Allowed = o.Allowed[:1]
	if err := s.Configure(Settings{OIDC: &less, PublicURL: "https://relay.contoso.com"}); err != nil {
		t.Fatal(err)
	}
	if s.ask("GET", "/"); s.seen == nil || s.seen.Role != access.Viewer {
		t.Errorf("got %+v", s.seen)
	}
	none := *o
	none.Allowed = []Rule{{User: "else@contoso.com", Role: access.Admin}}
	for _, other := range []*OIDC{&none, {Issuer: "https://other.example", ClientID: "relayd", Allowed: o.Allowed}, nil} {
		settings := Settings{OIDC: other, PublicURL: "https://relay.contoso.com"}
		if err := s.Configure(settings); err != nil {
			t.Fatal(err)
		}
		if s.ask("GET", "/"); s.seen != nil {
			t.Errorf("got %+v", s.seen)
		}
		if list, _ := s.Sessions(t.Context()); len(list) != 0 {
			t.Errorf("listed: %+v", list)
		}
	}
}

// What the rules in force say of who has logged in counts while the sessions cannot be read, too.
func TestRulesChangeWhileStorageIsAway(t *testing.T) {
	records := &away{}
	p := providertest.New(t, "relayd")
	o := &OIDC{Issuer: p.URL, ClientID: "relayd", Allowed: []Rule{{Group: "mail", Role: access.Operator}}, Client: p.Client()}
	s := newSite(t, Options{Sessions: records, Settings: Settings{OIDC: o, PublicURL: "https://relay.contoso.com"}})
	p.Set(providertest.Claims{"groups": []string{"mail"}})
	if code, _, body := s.signIn(p, "/", nil); code != 303 {
		t.Fatalf("got %d %s", code, body)
	}
	began, ended := make(chan context.Context), make(chan struct{})
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
	r.AddCookie(&http.Cookie{Name: "__Host-relayd", Value: s.cookies["__Host-relayd"]})
	go func() {
		defer close(ended)
		s.Identify(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { began <- r.Context(); <-r.Context().Done() })).ServeHTTP(httptest.NewRecorder(), r)
	}()
	ctx := <-began
	records.away.Store(true)
	if s.recheck(t.Context()); ctx.Err() != nil {
		t.Error("cut off without a change")
	}
	less := *o
	less.Allowed = []Rule{{Group: "mail", Role: access.Viewer}}
	if err := s.Configure(Settings{OIDC: &less, PublicURL: "https://relay.contoso.com"}); err != nil {
		t.Fatal(err)
	}
	<-ended
}

// An answer counts in the browser that asked for it, for as long as it may take, and once.
func TestForeignAnswers(t *testing.T) {
	s, p, _ := withProvider(t, Rule{User: "subject", Role: access.Admin})
	refused := func(name string, code int, body string) {
		t.Helper()
		if _, in := s.cookies["__Host-relayd"]; code != 403 || in || !strings.Contains(body, "not begun in this browser") {
			t.Errorf("%s: got %d %s", name, code, body)
		}
		s.cookies = map[string]string{}
	}
	code, _, body := s.signIn(p, "/", func(q url.Values) { q.Set("state", random()) })
	refused("another state", code, body)
	code, _, body = s.signIn(p, "/", func(q url.Values) { q.Del("state") })
	refused("no state", code, body)
	code, _, body = s.signIn(p, "/", func(url.Values) { s.cookies = map[string]string{} })
	refused("another browser", code, body)
	code, _, body = s.signIn(p, "/", func(url.Values) { s.cookies["__Host-relayd-flow"] = "e30" })
	refused("forged cookie", code, body)
	var flow string
	var again url.Values
	if code, _, _ := s.signIn(p, "/", func(q url.Values) { flow, again = s.cookies["__Host-relayd-flow"], q }); code != 303 {
		t.Fatalf("got %d", code)
	}
	s.cookies = map[string]string{}
	if w := s.ask("GET", CallbackPath+"?"+again.Encode()); w.Code != 403 {
		t.Errorf("replayed: got %d", w.Code)
	}
	s.cookies = map[string]string{"__Host-relayd-flow": flow}
	if w := s.ask("GET", CallbackPath+"?"+again.Encode()); w.Code != 502 || len(s.cookies) > 0 || strings.Contains(w.Body.String(), "invalid_grant") {
		t.Errorf("replayed with its cookie: got %d", w.Code)
	}
	if len(p.Requests()) != 2 {
		t.Errorf("%d codes were sent to the provider", len(p.Requests()))
	}
}

func TestFlowExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlow("/")
		data, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		s := newSite(t, Options{})
		r := func() *http.Request {
			r, _ := http.NewRequest("GET", "http://localhost/login/callback?state="+f.State, nil)
			r.AddCookie(&http.Cookie{Name: "relayd-8080-flow", Value: base64.RawURLEncoding.EncodeToString(data)})
			return r
		}
		<-time.After(flowLife - time.Second)
		if s.force.Load().readFlow(r()) == nil {
			t.Error("too early")
		}
		<-time.After(time.Second)
		if s.force.Load().readFlow(r()) != nil {
			t.Error("for ever")
		}
	})
}

func TestRefusedSignIns(t *testing.T) {
	s, p, _ := withProvider(t, Rule{User: "ops@contoso.com", Role: access.Admin}, Rule{Group: "mail", Role: access.Viewer})
	for name, tt := range map[string]struct {
		claims providertest.Claims
		change func(url.Values)
		code   int
		want   string
	}{
		"nobody we know":   {providertest.Claims{"email": "x@contoso.com", "email_verified": true}, nil, 403, "neither this user nor a group"},
		"unverified email": {providertest.Claims{"email": "ops@contoso.com", "email_verified": false}, nil, 403, "neither this user nor a group"},
		"email, unsaid":    {providertest.Claims{"email": "ops@contoso.com"}, nil, 403, "neither this user nor a group"},
		"chosen name":      {providertest.Claims{"preferred_username": "ops@contoso.com"}, nil, 403, "neither this user nor a group"},
		"overage": {providertest.Claims{"_claim_names": map[string]string{"groups": "src1"},
			"_claim_sources": map[string]any{"src1": map[string]string{"endpoint": "https://graph.example/users/1/getMemberObjects"}}}, nil, 403, "in so many groups"},
		"denied": {nil, func(q url.Values) {
			q.Del("code")
			q.Set("error", "access_denied")
			q.Set("error_description", "<b>no")
		}, 403, "refused the sign-in"},
		"wrong provider": {nil, func(q url.Values) { q.Set("iss", "https://evil.example") }, 502, "could not be checked"},
		"script":         {providertest.Claims{"sub": "<script>alert(1)</script>"}, nil, 403, "&lt;script&gt;"},
	} {
		p.Set(tt.claims)
		code, _, body := s.signIn(p, "/", tt.change)
		if _, in := s.cookies["__Host-relayd"]; code != tt.code || in || !strings.Contains(body, tt.want) || strings.Contains(body, "<script>alert") || strings.Contains(body, "<b>no") {
			t.Errorf("%s: got %d %s", name, code, body)
		}
	}
	if s.count("oidc", "refused") != 8 || s.count("oidc", "ok") != 0 {
		t.Errorf("counted %v", s.count("oidc", "refused"))
	}
}

func TestProviderAway(t *testing.T) {
	s, p, _ := withProvider(t, Rule{User: "subject", Role: access.Admin})
	p.Away(true)
	if w := s.ask("GET", StartPath); w.Code != 502 || !strings.Contains(w.Body.String(), "could not be checked") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	p.Away(false)
	if code, to, _ := s.signIn(p, "//evil.example", nil); code != 303 || to != "/" {
		t.Errorf("got %d %q", code, to)
	}
}

func TestSignInStorageFails(t *testing.T) {
	p := providertest.New(t, "relayd")
	o := &OIDC{Issuer: p.URL, ClientID: "relayd", Allowed: []Rule{{User: "subject", Role: access.Admin}}, Client: p.Client()}
	s := newSite(t, Options{Sessions: failing{}, Settings: Settings{OIDC: o}})
	if code, _, body := s.signIn(p, "/", nil); code != 503 || !strings.Contains(body, "could not be stored") {
		t.Errorf("got %d", code)
	}
}

// The table of who is known by what; see Rule.
func TestRoles(t *testing.T) {
	const entra, other = "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0", "https://id.example.com"
	rules := []Rule{
		{User: "ops@contoso.com", Role: access.Operator}, {User: "11111111-2222-3333-4444-555555555555", Role: access.Viewer},
		{User: "S-1", Role: access.Viewer}, {Group: "g-admin", Role: access.Admin}, {Group: "g-view", Role: access.Viewer},
	}
	for name, tt := range map[string]struct {
		issuer, claims string
		want           access.Role
		err            error
	}{
		"Entra user name":               {entra, `{"preferred_username":"Ops@contoso.com"}`, access.Operator, nil},
		"Entra object id":               {entra, `{"oid":"11111111-2222-3333-4444-555555555555"}`, access.Viewer, nil},
		"Entra email (nOAuth)":          {entra, `{"email":"ops@contoso.com","email_verified":true}`, "", nil},
		"Entra subject":                 {entra, `{"sub":"S-1"}`, access.Viewer, nil},
		"verified email":                {other, `{"email":"OPS@contoso.com","email_verified":true}`, access.Operator, nil},
		"verified email, as a text":     {other, `{"email":"ops@contoso.com","email_verified":"true"}`, access.Operator, nil},
		"unverified email":              {other, `{"email":"ops@contoso.com"}`, "", nil},
		"unverified email, as a text":   {other, `{"email":"ops@contoso.com","email_verified":"false"}`, "", nil},
		"self-chosen name":              {other, `{"preferred_username":"ops@contoso.com"}`, "", nil},
		"object id of another provider": {other, `{"oid":"11111111-2222-3333-4444-555555555555"}`, "", nil},
		"subject":                       {other, `{"sub":"S-1"}`, access.Viewer, nil},
		"subject, other case":           {other, `{"sub":"s-1"}`, "", nil},
		"look-alike":                    {other, `{"email":"opſ@contoso.com","email_verified":true}`, "", nil}, // EqualFold: ſ is s
		"nothing":                       {other, `{}`, "", nil},
		"the highest counts":            {other, `{"sub":"S-1","groups":["g-view","g-admin"]}`, access.Admin, nil},
		"one group alone":               {other, `{"groups":"g-view"}`, access.Viewer, nil},
		"group, other case":             {other, `{"groups":["G-ADMIN"]}`, "", nil},
		"overage":                       {entra, `{"_claim_names":{"groups":"src1"}}`, "", errOverage},
		"overage of a guest":            {entra, `{"hasgroups":true}`, "", errOverage},
		"overage of a known user":       {entra, `{"oid":"11111111-2222-3333-4444-555555555555","hasgroups":"true"}`, access.Viewer, nil},
	} {
		p, err := newOpenID(&OIDC{Issuer: tt.issuer, ClientID: "x", Allowed: rules})
		if err != nil {
			t.Fatal(err)
		}
		var c claims
		if err := json.Unmarshal([]byte(tt.claims), &c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := p.role(&c); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, tt.want)
		}
		k := p.kept(&c)
		data, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		var back claims
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		if got, _ := p.role(&back); got != tt.want {
			t.Errorf("%s: what a session keeps gives %q, want %q", name, got, tt.want)
		}
	}
	p, err := newOpenID(&OIDC{Issuer: other, ClientID: "x", Allowed: rules[:1]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.role(&claims{Many: true}); err != nil {
		t.Errorf("no rule is by group: %v", err)
	}
	if k := p.kept(&claims{Groups: names{"a", "b"}}); len(k.Groups) != 0 {
		t.Errorf("keeps %v", k.Groups)
	}
}

func TestProvidersThatCannotBe(t *testing.T) {
	for want, o := range map[string]OIDC{
		"is not a URL with https":          {Issuer: "http://a", ClientID: "x"},
		"the client id is missing":         {Issuer: "https://a"},
		"for people of every organisation": {Issuer: "https://login.microsoftonline.com/common/v2.0", ClientID: "x"},
		"names a user or a group":          {Issuer: "https://a", ClientID: "x", Allowed: []Rule{{Role: access.Admin}}},
	} {
		if err := newSite(t, Options{}).Configure(Settings{OIDC: &o}); err == nil || !strings.HasPrefix(err.Error(), "admin.oidc: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestShownName(t *testing.T) {
	for _, tt := range []struct {
		entra bool
		c     claims
		want  string
	}{
		{true, claims{Subject: "s", Object: "o", Username: "u", Email: "e", Verified: true}, "u"},
		{true, claims{Subject: "s", Object: "o", Email: "e", Verified: true}, "o"},
		{true, claims{Subject: "s"}, "s"},
		{false, claims{Subject: "s", Username: "u", Email: "e", Verified: true}, "e"},
		{false, claims{Subject: "s", Username: "u", Email: "e"}, "s"},
	} {
		if got := (&openID{entra: tt.entra}).shown(&tt.c); got != tt.want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
}

func TestIsEntra(t *testing.T) {
	for issuer, want := range map[string]bool{
		"https://login.microsoftonline.com/x/v2.0": true, "https://login.microsoftonline.us/x/v2.0": true, "https://sts.windows.net/x/": true,
		"https://login.partner.microsoftonline.cn/x/v2.0": true, "https://x.ciamlogin.com/x/v2.0": true, "https://LOGIN.microsoftonline.com/x": true,
		"https://accounts.google.com": false, "https://login.example.com": false,
	} {
		u, err := url.Parse(issuer)
		if err != nil || isEntra(u) != want {
			t.Errorf("%s: got %v", issuer, !want)
		}
	}
}

func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"groups":"a","email_verified":"true","_claim_names":{"groups":"x"}}`))
	f.Add([]byte(`{"groups":[1],"hasgroups":1}`))
	p, err := newOpenID(&OIDC{Issuer: "https://a", ClientID: "x", Allowed: []Rule{{User: "only@contoso.com", Role: access.Admin}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c claims
		if json.Unmarshal(data, &c) != nil {
			return
		}
		if role, _ := p.role(&c); role != "" && !strings.EqualFold(c.Subject, "only@contoso.com") && !strings.EqualFold(c.Email, "only@contoso.com") {
			t.Errorf("%s may log in", data)
		}
	})
}
