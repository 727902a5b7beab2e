package sandbox_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"relayd/pkg/sandbox"
)

// A person signs in, is asked, agrees; the code becomes tokens that Exchange and an OpenID client take.
func TestAuthorizationCode(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}})
	page := open(t, b, authorizePath()).on("account", "relayd of Contoso", "Ann Able", "relayd sandbox").
		submit("loginfmt", "Ann@contoso.com").on("password", "Ann@contoso.com").
		submit("passwd", "x").on("consent", "Send emails from mailboxes using SMTP AUTH", "Maintain access to data", "relayd of Contoso")
	if h := page.header; !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'") || h.Get("Cache-Control") != "no-store" ||
		strings.Contains(page.page, "<script") || strings.Contains(page.page, "style=") {
		t.Errorf("headers %v of\n%s", h, page.page)
	}
	told := page.submit("ucaccept", "1").returned()
	if told.Get("state") != "st&te" || told.Get("code") == "" || told.Get("session_state") == "" || told.Has("error") {
		t.Fatalf("told %v", told)
	}
	a := ask(t, b, redemption(told.Get("code")))
	if a.Type != "Bearer" || a.Refresh == "" || a.Scope != "https://outlook.office.com/SMTP.Send openid profile" {
		t.Fatalf("got %+v", a)
	}
	access := claimsOf(t, a.Token)
	if access["aud"] != "https://outlook.office.com" || access["scp"] != "SMTP.Send" || access["upn"] != "ann@contoso.com" ||
		access["tid"] != tenantID || access["appid"] != clientID || access["appidacr"] != "1" || access["roles"] != nil {
		t.Errorf("access token %v", access)
	}
	id := claimsOf(t, a.ID)
	if id["iss"] != b.Authority()+"/"+tenantID+"/v2.0" || id["aud"] != clientID || id["nonce"] != "n-0nce" || id["ver"] != "2.0" ||
		id["preferred_username"] != "ann@contoso.com" || id["name"] != "Ann Able" || id["tid"] != tenantID ||
		id["oid"] != access["oid"] || id["sub"] == "" || id["email"] != nil {
		t.Errorf("id token %v", id)
	}
	c := dial(t, b).secure()
	if got := c.auth("ann@contoso.com", a.Token); !strings.HasPrefix(got, "235") {
		t.Errorf("Exchange: %s", got)
	}
	// Now the browser is known and the consent is there.
	if again := page.visit(authorizePath()).returned(); again.Get("code") == "" || again.Get("code") == told.Get("code") {
		t.Errorf("told %v", again)
	}
	next := ask(t, b, refreshing(a.Refresh))
	if next.Token == "" || next.Refresh == "" || next.Refresh == a.Refresh || next.ID == "" || next.Scope != a.Scope {
		t.Errorf("refreshed: %+v", next)
	}
}

// Until it is proven where the app lives, errors stay here; from then on the app is told.
func TestAuthorizeChecks(t *testing.T) {
	other := fabrikam()
	other.ID = "no-uris"
	other.Apps = []sandbox.App{{ID: clientID, Secret: secret}}
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam(), other}})
	for _, test := range []struct{ name, value, want string }{
		{"redirect_uri", "https://evil.example/oauth/callback", "AADSTS50011"},
		{"redirect_uri", callback + "/", "AADSTS50011"},
		{"redirect_uri", callback + "?x=1", "AADSTS50011"},
		{"redirect_uri", "", "AADSTS50011"},
		{"redirect_uri", `"><script>alert(1)</script>`, "AADSTS50011"},
		{"client_id", "nobody", "AADSTS700016"},
		{"client_id", "", "AADSTS900144"},
	} {
		p := open(t, b, authorizePath(test.name, test.value)).on("error", test.want)
		if p.status != 400 || p.left != nil || strings.Contains(p.page, "<script") {
			t.Errorf("%s=%s: %d, to %v\n%s", test.name, test.value, p.status, p.left, p.page)
		}
	}
	for path, want := range map[string]string{"elsewhere": "AADSTS90002", "common": "AADSTS50194", "no-uris": "AADSTS500113"} {
		open(t, b, "/"+path+"/oauth2/v2.0/authorize?"+authorizeQuery().Encode()).on("error", want)
	}
	for _, test := range []struct{ name, value, code, number string }{
		{"response_type", "token", "unsupported_response_type", "AADSTS700054"},
		{"response_mode", "fragment", "invalid_request", "AADSTS90014"},
		{"scope", "", "invalid_request", "AADSTS900144"},
		{"scope", "offline_access", "invalid_scope", "AADSTS70011"},
		{"scope", "https://outlook.office.com/SMTP.SendAsApp", "invalid_request", "AADSTS650053"},
		{"scope", "https://outlook.office.com/SMTP.Send User.Read", "invalid_scope", "AADSTS28000"},
		{"scope", "https://outlook.office365.us/SMTP.Send", "invalid_resource", "AADSTS500011"},
		{"code_challenge", "short", "invalid_request", "AADSTS50147"},
		{"code_challenge", "", "invalid_request", "AADSTS50147"},
		{"code_challenge_method", "S512", "invalid_request", "AADSTS50147"},
		{"prompt", "sometimes", "invalid_request", "AADSTS90014"},
		{"prompt", "none", "login_required", "AADSTS50058"},
	} {
		told := open(t, b, authorizePath(test.name, test.value)).returned()
		if told.Get("error") != test.code || !strings.HasPrefix(told.Get("error_description"), test.number+": ") ||
			told.Get("state") != "st&te" || told.Has("code") {
			t.Errorf("%s=%s: told %v", test.name, test.value, told)
		}
	}
	if told := open(t, b, authorizePath()+"&scope=openid").returned(); told.Get("error") != "invalid_request" {
		t.Errorf("a repeated parameter: told %v", told)
	}
}

// Who may not sign in learns why, and so does the app if the person goes back to it.
func TestSignInRefused(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam(), {
		ID: "other", Mailboxes: []string{"*@fabrikam.com"}, Apps: []sandbox.App{{ID: "x", Secret: "y"}},
	}}})
	for account, want := range map[string]string{
		"never@contoso.com": "does not exist in the " + tenantID + " directory", "stranger@contoso.com": "does not exist",
		"someone@fabrikam.com": "does not exist in tenant", "": "'username' is missing",
		`"><script>alert(1)</script>@contoso.com`: "does not exist",
	} {
		if p := open(t, b, authorizePath()).submit("loginfmt", account).on("account", want); strings.Contains(p.page, "<script") {
			t.Errorf("%s: script on\n%s", account, p.page)
		}
	}
	for account, test := range map[string]struct{ number, code string }{
		"gone@contoso.com": {"50057", "access_denied"}, "far@contoso.com": {"53003", "access_denied"},
		"weak@contoso.com": {"50076", "interaction_required"}, "guest@contoso.com": {"50020", "access_denied"},
	} {
		told := open(t, b, authorizePath()).signIn(account).on("refused", "AADSTS"+test.number).submit("return", "1").returned()
		if told.Get("error") != test.code || !strings.HasPrefix(told.Get("error_description"), "AADSTS"+test.number+": ") {
			t.Errorf("%s: told %v", account, told)
		}
	}
	p := open(t, b, authorizePath()).submit("loginfmt", "key@contoso.com").submit("passwd", "wrong").on("password", "invalid username or password")
	p.submit("passwd", "").on("password", "invalid username or password").submit("back", "1").on("account", "key@contoso.com")
	p.submit("loginfmt", "key@contoso.com").submit("passwd", "right").on("consent")
}

func TestConsent(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}})
	told := open(t, b, authorizePath()).signIn("ann@contoso.com").submit("ucaccept", "0").returned()
	if told.Get("error") != "access_denied" || told.Get("error_subcode") != "cancel" || told.Get("state") != "st&te" ||
		!strings.HasPrefix(told.Get("error_description"), "AADSTS65004: ") {
		t.Errorf("canceled: told %v", told)
	}
	// Nobody can accept for a session that is not theirs, or without one.
	p := open(t, b, authorizePath()).signIn("ann@contoso.com").on("consent")
	p.submit("ucaccept", "1", "account", "boss@contoso.com").on("account", "session has ended")
	if c := b.Tenants()[0].Consents; len(c) != 0 {
		t.Fatalf("consents %v", c)
	}
	// An administrator's word is everyone's.
	open(t, b, authorizePath()).signIn("boss@contoso.com").on("consent", "Consent on behalf of your organization").
		submit("ucaccept", "1", "everyone", "1").returned()
	if c := fmt.Sprint(b.Tenants()[0].Consents); c != "[{"+clientID+"  [https://outlook.office.com/SMTP.Send]}]" {
		t.Errorf("consents %s", c)
	}
	if told := open(t, b, authorizePath()).signIn("ann@contoso.com").returned(); !told.Has("code") {
		t.Errorf("told %v", told)
	}
	open(t, b, authorizePath("prompt", "consent")).signIn("ann@contoso.com").on("consent")
}

func TestAdminConsentRequired(t *testing.T) {
	tenant := fabrikam()
	tenant.AdminConsentRequired = true
	tenant.Apps[0].NoRoles = true
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{tenant}})
	p := open(t, b, authorizePath()).signIn("ann@contoso.com").on("approval", "Need admin approval", "AADSTS90094")
	told := p.submit("return", "1").returned()
	if told.Get("error") != "access_denied" || !strings.HasPrefix(told.Get("error_description"), "AADSTS90094: ") {
		t.Errorf("told %v", told)
	}
	// The button that is not on the page does not help.
	p = p.visit(authorizePath()).on("approval")
	if resp, err := p.client.PostForm(p.url, url.Values{"ucaccept": {"1"}, "account": {"ann@contoso.com"}}); p.shown(resp, err).returned().Get("error") != "access_denied" {
		t.Errorf("told %v", p.left)
	}
	consent := "/" + tenantID + "/v2.0/adminconsent?" + url.Values{
		"client_id": {clientID}, "redirect_uri": {callback}, "state": {"s"}, "scope": {"https://outlook.office365.com/.default"},
	}.Encode()
	open(t, b, consent).signIn("ann@contoso.com").on("approval")
	told = open(t, b, consent).signIn("boss@contoso.com").on("consent", "without a signed-in user").submit("ucaccept", "0").returned()
	if told.Get("error") != "access_denied" || told.Get("admin_consent") != "True" || told.Get("tenant") != tenantID {
		t.Errorf("told %v", told)
	}
	if _, err := b.Token(tenantID, clientID, 0); err != nil {
		t.Fatal(err)
	}
	told = open(t, b, consent).signIn("boss@contoso.com").submit("ucaccept", "1").returned()
	if told.Get("admin_consent") != "True" || told.Get("tenant") != tenantID || told.Get("state") != "s" || told.Has("error") ||
		told.Get("scope") != "https://outlook.office365.com/.default" {
		t.Errorf("told %v", told)
	}
	grantedTo(t, b, "ann@contoso.com") // although consent was given for Exchange's other name
	if _, a := askToken(t, b, tenantID, credentials()); fmt.Sprint(claimsOf(t, a.Token)["roles"]) != "[SMTP.SendAsApp]" {
		t.Errorf("the app has no role after consent: %v", claimsOf(t, a.Token))
	}
}

// SSO, and the ways around it.
func TestPrompt(t *testing.T) {
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{fabrikam()}})
	p := open(t, b, authorizePath()).signIn("ann@contoso.com").submit("ucaccept", "1")
	p.returned()
	p.visit(authorizePath("prompt", "none")).returned()
	p.visit(authorizePath("prompt", "login")).on("account").signIn("ann@contoso.com").returned()
	p.visit(authorizePath("prompt", "select_account")).on("account")
	p.visit(authorizePath("login_hint", "key@contoso.com")).on("account", "key@contoso.com")
	if told := p.visit(authorizePath("login_hint", "key@contoso.com", "prompt", "none")).returned(); told.Get("error") != "login_required" {
		t.Errorf("told %v", told)
	}
	if told := p.visit(authorizePath("scope", "openid https://outlook.office.com/IMAP.AccessAsUser.All", "prompt", "none")).returned(); told.Get("error") != "consent_required" {
		t.Errorf("told %v", told)
	}
	p.visit("/"+tenantID+"/oauth2/v2.0/logout").on("message", "You signed out")
	p.visit(authorizePath()).on("account")
	if to := p.visit("/" + tenantID + "/oauth2/v2.0/logout?post_logout_redirect_uri=" + url.QueryEscape(callback)).left; to.String() != callback {
		t.Errorf("sent to %v", to)
	}
	if to := p.visit("/" + tenantID + "/oauth2/v2.0/logout?post_logout_redirect_uri=https://evil.example/").left; to != nil {
		t.Errorf("sent to %v", to)
	}
}
