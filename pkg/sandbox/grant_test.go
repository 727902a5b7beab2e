package sandbox_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"relayd/pkg/sandbox"
)

// codeFor signs a user in and returns an authorization code.
func codeFor(t *testing.T, b *sandbox.Sandbox, user string, change ...string) string {
	t.Helper()
	p := open(t, b, authorizePath(change...)).signIn(user)
	if p.left == nil {
		p.on("consent").submit("ucaccept", "1")
	}
	return p.returned().Get("code")
}

func TestCodeRefusals(t *testing.T) {
	tenant := fabrikam()
	tenant.Apps = append(tenant.Apps, sandbox.App{ID: "other", Secret: secret, RedirectURIs: []string{callback}})
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{tenant}})
	code := codeFor(t, b, "ann@contoso.com")
	for _, test := range []struct {
		name, value string
		number      int
		text        string
	}{
		{"client_secret", "wrong", 7000215, "invalid_client"},
		{"client_secret", "", 7000218, "invalid_client"},
		{"client_id", "other", 70000, "invalid_grant"},
		{"code", "never-was", 9002313, "invalid_grant"},
		{"code", "", 900144, "invalid_request"},
		{"redirect_uri", "http://127.0.0.1:8080/", 500112, "invalid_client"},
		{"redirect_uri", "", 900144, "invalid_request"},
		{"code_verifier", "wrong-horse-battery-staple-correct-horse-battery", 501481, "invalid_grant"},
		{"code_verifier", "", 50148, "invalid_grant"},
		{"scope", "https://outlook.office.com/IMAP.AccessAsUser.All", 65001, "invalid_grant"},
	} {
		if a := ask(t, b, redemption(code, test.name, test.value)); a.code() != test.number || a.Error != test.text {
			t.Errorf("%s=%s: got %+v, want %d", test.name, test.value, a, test.number)
		}
	}
	if a := ask(t, b, redemption(code)); a.Token == "" {
		t.Fatalf("what was wrong has spent the code: %+v", a)
	}
	if a := ask(t, b, redemption(code)); a.code() != 54005 {
		t.Errorf("replayed: got %+v", a)
	}
	if a := ask(t, b, redemption(codeFor(t, b, "ann@contoso.com", "code_challenge", "", "code_challenge_method", ""), "code_verifier", "")); a.Token == "" {
		t.Errorf("without PKCE: got %+v", a)
	}
	if a := ask(t, b, redemption(codeFor(t, b, "ann@contoso.com", "scope", "https://outlook.office.com/SMTP.Send"), "scope", "")); a.Refresh != "" || a.ID != "" || a.Token == "" {
		t.Errorf("without offline_access and openid: got %+v", a)
	}
	stats := b.Stats()
	if stats.TokenRequests["authorization_code"] != 14 || stats.TokensGranted["authorization_code"] != 3 {
		t.Errorf("counted %v, %v", stats.TokenRequests, stats.TokensGranted)
	}
	b.ClearStats()
	if stats := b.Stats(); len(stats.TokenRequests) != 0 || len(stats.TokensGranted) != 0 {
		t.Errorf("counted %v, %v", stats.TokenRequests, stats.TokensGranted)
	}
}

// By default a refresh token that was replaced stays good, as at Entra; with strict rotation its use ends the family.
func TestRefreshRotation(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}})
	a := grantedTo(t, b, "ann@contoso.com")
	for range 2 {
		if next := ask(t, b, refreshing(a.Refresh)); next.Token == "" || next.Refresh == "" {
			t.Fatalf("got %+v", next)
		}
	}
	if got := ask(t, b, refreshing("never-was")); got.code() != 9002313 {
		t.Errorf("got %+v", got)
	}
	if got := ask(t, b, refreshing("")); got.code() != 900144 {
		t.Errorf("got %+v", got)
	}

	strict := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}, StrictRotation: true})
	a = grantedTo(t, strict, "ann@contoso.com")
	other := grantedTo(t, strict, "ann@contoso.com")
	second := ask(t, strict, refreshing(a.Refresh))
	third := ask(t, strict, refreshing(second.Refresh))
	if third.Token == "" {
		t.Fatalf("got %+v", third)
	}
	for _, token := range []string{a.Refresh, second.Refresh, third.Refresh} {
		if got := ask(t, strict, refreshing(token)); got.code() != 70000 || got.Error != "invalid_grant" {
			t.Errorf("got %+v", got)
		}
	}
	if got := ask(t, strict, refreshing(other.Refresh)); got.Token == "" {
		t.Errorf("another sign-in suffered: %+v", got)
	}
}

// What becomes of a grant when the user or the consent changes.
func TestRefreshAfterChanges(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}})
	set := func(u sandbox.User) func() error { return func() error { return b.SetUser(tenantID, u) } }
	for _, test := range []struct {
		name   string
		change func() error
		number int
	}{
		{"password reset", set(sandbox.User{Mail: "ann@contoso.com", Password: "new"}), 50173},
		{"revoked", func() error { return b.RevokeUser(tenantID, "ann@contoso.com", false) }, 50173},
		{"disabled", set(sandbox.User{Mail: "ann@contoso.com", State: "disabled"}), 50057},
		{"conditional access", set(sandbox.User{Mail: "ann@contoso.com", State: "blocked"}), 53003},
		{"MFA", set(sandbox.User{Mail: "ann@contoso.com", State: "mfa"}), 50076},
		{"any other number", set(sandbox.User{Mail: "ann@contoso.com", State: "50055"}), 50055},
		{"not a member", set(sandbox.User{Mail: "ann@contoso.com", State: "foreign"}), 50020},
		{"deleted", func() error {
			return b.ChangeTenant(tenantID, func(t *sandbox.Tenant) error { t.Users = t.Users[1:]; return nil })
		}, 50034},
		{"withdrawn", func() error {
			return b.ChangeTenant(tenantID, func(t *sandbox.Tenant) error { t.Consents = nil; return nil })
		}, 65001},
	} {
		if err := b.AddTenant(fabrikam()); err != nil {
			t.Fatal(err)
		}
		a := grantedTo(t, b, "ann@contoso.com")
		if err := test.change(); err != nil {
			t.Fatal(err)
		}
		if got := ask(t, b, refreshing(a.Refresh)); got.code() != test.number || got.Error != "invalid_grant" {
			t.Errorf("%s: got %+v, want %d", test.name, got, test.number)
		}
	}
	if err := b.SetUser(tenantID, sandbox.User{Mail: "ann@contoso.com", State: "tired"}); err == nil {
		t.Error("a state that is none was taken")
	}
}

// A public client needs no secret for a user's tokens, and has none to show.
func TestPublicClient(t *testing.T) {
	tenant := fabrikam()
	tenant.Apps[0].Secret, tenant.Apps[0].Public = "", true
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{tenant}})
	a := ask(t, b, redemption(codeFor(t, b, "ann@contoso.com"), "client_secret", ""))
	if a.Token == "" || claimsOf(t, a.Token)["appidacr"] != "0" {
		t.Fatalf("got %+v", a)
	}
	if got := ask(t, b, refreshing(a.Refresh)); got.code() != 700025 {
		t.Errorf("got %+v", got)
	}
	form := credentials()
	form.Del("client_secret")
	if _, got := askToken(t, b, tenantID, form); got.Codes[0] != 7000218 {
		t.Errorf("app-only without a secret: got %+v", got)
	}
}

// A user's token opens the user's mailbox and those it has full access to; Send As is looked up at each message.
func TestDelegatedSubmission(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}})
	a := grantedTo(t, b, "ann@contoso.com")
	submit := func(login string) string { return dial(t, b).secure().auth(login, a.Token) }
	if got := submit("boss@contoso.com"); !strings.HasPrefix(got, "535 5.7.3") {
		t.Errorf("another's mailbox: %s", got)
	}
	call(t, b, "POST", "/sandbox/grants", `{"login":"ann@contoso.com","as":"team@contoso.com","right":"full-access"}`, 204, nil)
	if got := submit("team@contoso.com"); !strings.HasPrefix(got, "235") {
		t.Errorf("a shared mailbox: %s", got)
	}
	c := dial(t, b).secure()
	c.auth("ann@contoso.com", a.Token)
	if got := c.send("sales@contoso.com", ""); !strings.HasPrefix(got, "554 5.2.252 SendAsDenied") {
		t.Errorf("without Send As: %s", got)
	}
	call(t, b, "PUT", "/sandbox/grants", `{"login":"ann@contoso.com","as":"sales@contoso.com"}`, 204, nil)
	if got := c.send("sales@contoso.com", ""); !strings.HasPrefix(got, "250") {
		t.Errorf("with Send As, in the same session: %s", got)
	}
	call(t, b, "DELETE", "/sandbox/grants", `{"login":"ann@contoso.com","as":"sales@contoso.com","right":"send-as"}`, 204, nil)
	if got := c.send("sales@contoso.com", ""); !strings.HasPrefix(got, "554 5.2.252 SendAsDenied") {
		t.Errorf("Send As is gone: %s", got)
	}
	graph := ask(t, b, redemption(codeFor(t, b, "ann@contoso.com", "scope", "SMTP.Send"), "scope", "SMTP.Send"))
	if got := dial(t, b).secure().auth("ann@contoso.com", graph.Token); graph.Token == "" || !strings.HasPrefix(got, "535") {
		t.Errorf("a token for Graph: %s", got)
	}
	call(t, b, "POST", "/sandbox/revoke?user=ann@contoso.com", "", 204, nil)
	if got := submit("ann@contoso.com"); !strings.HasPrefix(got, "235") {
		t.Errorf("access tokens live on: %s", got)
	}
	call(t, b, "POST", "/sandbox/revoke", `{"user":"ann@contoso.com","access":true}`, 204, nil)
	if got := submit("ann@contoso.com"); !strings.HasPrefix(got, "535") {
		t.Errorf("unless they are revoked, too: %s", got)
	}
}

func TestDeviceCode(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}})
	type device struct {
		DeviceCode string `json:"device_code"`
		UserCode   string `json:"user_code"`
		URI        string `json:"verification_uri"`
		Complete   string `json:"verification_uri_complete"`
		ExpiresIn  int    `json:"expires_in"`
		Interval   int
		Message    string
	}
	begin := func() device {
		t.Helper()
		resp, err := web(t, b).PostForm(b.Authority()+"/"+tenantID+"/oauth2/v2.0/devicecode", url.Values{"client_id": {clientID}, "scope": {sendScope}})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var d device
		if err := json.NewDecoder(resp.Body).Decode(&d); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s %v", resp.Status, err)
		}
		return d
	}
	poll := func(code string) userAnswer {
		return ask(t, b, url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {clientID}, "client_secret": {secret}, "device_code": {code},
		})
	}
	d := begin()
	if d.URI != b.Authority()+"/devicelogin" || d.Complete != "" || d.ExpiresIn != 900 || d.Interval != 5 || len(d.UserCode) != 9 ||
		!strings.Contains(d.Message, d.UserCode) {
		t.Fatalf("got %+v", d)
	}
	if a := poll(d.DeviceCode); a.Error != "authorization_pending" || a.code() != 70016 {
		t.Errorf("got %+v", a)
	}
	if a := poll(d.DeviceCode); a.Error != "slow_down" {
		t.Errorf("asked again at once: got %+v", a)
	}
	p := open(t, b, "/devicelogin").on("code").submit("otc", "WRONGCODE").on("code", "That code did not work")
	p.submit("otc", strings.ToLower(d.UserCode)).on("account").submit("loginfmt", "ann@contoso.com").submit("passwd", "x").
		on("consent", "relayd of Contoso").submit("ucaccept", "1").on("message", "You have signed in to the relayd of Contoso application")

	d = begin() // the first one is made to wait by its haste
	p.visit("/common/oauth2/deviceauth").submit("otc", d.UserCode).on("confirm", "Are you trying to sign in to relayd of Contoso?").
		submit("ucaccept", "1").on("message")
	a := poll(d.DeviceCode)
	if a.Token == "" || a.Refresh == "" || a.ID == "" || claimsOf(t, a.Token)["upn"] != "ann@contoso.com" {
		t.Fatalf("got %+v", a)
	}
	if a := poll(d.DeviceCode); a.Error != "bad_verification_code" {
		t.Errorf("redeemed twice: got %+v", a)
	}
	p.visit("/devicelogin?otc="+d.UserCode).on("code", d.UserCode).submit("otc", d.UserCode).on("code", "That code did not work")

	d = begin()
	p.visit("/devicelogin").submit("otc", d.UserCode).submit("ucaccept", "0").on("message", "You have not signed in")
	if a := poll(d.DeviceCode); a.Error != "authorization_declined" {
		t.Errorf("got %+v", a)
	}
	if a := poll("never-was"); a.Error != "bad_verification_code" {
		t.Errorf("got %+v", a)
	}
	if a := poll(""); a.code() != 900144 {
		t.Errorf("got %+v", a)
	}
	stats := b.Stats()
	if stats.TokenRequests["device_authorization"] != 3 || stats.TokenRequests["device_code"] != 7 || stats.TokensGranted["device_code"] != 1 {
		t.Errorf("counted %v, %v", stats.TokenRequests, stats.TokensGranted)
	}
	for name, number := range map[string]int{"client_id": 900144, "scope": 900144} {
		form := url.Values{"client_id": {clientID}, "scope": {sendScope}}
		form.Del(name)
		var refused userAnswer
		resp, err := web(t, b).PostForm(b.Authority()+"/"+tenantID+"/oauth2/v2.0/devicecode", form)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewDecoder(resp.Body).Decode(&refused); err != nil || refused.code() != number {
			t.Errorf("without %s: got %+v, %v", name, refused, err)
		}
		resp.Body.Close()
	}
}

// Rules strike the new endpoints, by grant and by user.
func TestFaultsOfSignIn(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}})
	a := grantedTo(t, b, "ann@contoso.com")
	other := grantedTo(t, b, "boss@contoso.com")
	add := func(rule string) {
		t.Helper()
		b.ClearFaults()
		call(t, b, "POST", "/sandbox/faults", rule, 201, nil)
	}
	add(`{"stage":"token","aadsts":50173,"grant":"refresh_token","mailbox":"ann@contoso.com"}`)
	if got := ask(t, b, refreshing(a.Refresh)); got.code() != 50173 {
		t.Errorf("got %+v", got)
	}
	if got := ask(t, b, refreshing(other.Refresh)); got.Token == "" {
		t.Errorf("another user was struck: %+v", got)
	}
	if _, got := askToken(t, b, tenantID, credentials()); got.Token == "" {
		t.Errorf("another grant was struck: %+v", got)
	}
	add(`{"stage":"authorize","aadsts":90033}`)
	if told := open(t, b, authorizePath()).returned(); told.Get("error") != "temporarily_unavailable" || told.Get("state") != "st&te" {
		t.Errorf("told %v", told)
	}
	add(`{"stage":"authorize","status":503,"raw":"busy"}`)
	if p := open(t, b, authorizePath()); p.status != 503 || p.page != "busy" {
		t.Errorf("got %d %s", p.status, p.page)
	}
	add(`{"stage":"authorize","close":"fin"}`)
	if _, err := web(t, b).Get(b.Authority() + authorizePath()); err == nil {
		t.Error("the connection was not cut")
	}
	add(`{"stage":"token","aadsts":50196,"grant":"device_authorization"}`)
	resp, err := web(t, b).PostForm(b.Authority()+"/"+tenantID+"/oauth2/v2.0/devicecode", url.Values{"client_id": {clientID}, "scope": {sendScope}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("device code: %s", resp.Status)
	}
	add(`{"stage":"token","status":500,"grant":"managed_identity"}`)
	resp, err = http.Get("http://" + b.HTTPAddr() + "/metadata/identity/oauth2/token")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 500 {
		t.Errorf("metadata service: %s", resp.Status)
	}
}

func TestMetadata(t *testing.T) {
	b := start(t, sandbox.Options{})
	var meta map[string]any
	call(t, b, "GET", "/"+tenantID+"/v2.0/.well-known/openid-configuration", "", 200, &meta)
	base := b.Authority() + "/" + tenantID
	for name, want := range map[string]any{
		"authorization_endpoint":        base + "/oauth2/v2.0/authorize",
		"device_authorization_endpoint": base + "/oauth2/v2.0/devicecode",
		"end_session_endpoint":          base + "/oauth2/v2.0/logout",
		"response_types_supported":      []any{"code"},
	} {
		if fmt.Sprint(meta[name]) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", name, meta[name], want)
		}
	}
	call(t, b, "GET", "/elsewhere/v2.0/.well-known/openid-configuration", "", 400, nil)
}
