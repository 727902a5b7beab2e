package enrol

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

const secretValue = "aBc8Q~tHisIsTheVaLue"

func tenantForm() url.Values {
	return url.Values{
		"name": {"contoso"}, "cloud": {"worldwide"}, "grant": {grantDelegated}, "tenant_id": {tenantGUID}, "client_id": {clientGUID},
		"client_secret": {secretValue}, "credential_expires": {"2027/12/31"}, "smtp_server": {"smtp.example:587"},
	}
}

func TestTenantIsSavedAsEntered(t *testing.T) {
	s := newSite(t)
	w := s.ask(admin(), "/tenants/new", tenantForm())
	s.did(`save tenant ""`)
	want := console.TenantInput{
		Name: "contoso", Cloud: "worldwide", Grant: grantDelegated, TenantID: tenantGUID, ClientID: clientGUID, ClientSecret: secretValue,
		CredentialExpires: "2027-12-31", SMTPServer: "smtp.example:587",
	}
	if s.fake.saved != want {
		t.Errorf("saved %+v, want %+v", s.fake.saved, want)
	}
	if to := w.Header().Get("Location"); w.Code != http.StatusSeeOther || to != "/tenants/contoso?n=contoso&notice=enrol.notice.tenant_saved" {
		t.Errorf("%d to %s", w.Code, to)
	}
	form := tenantForm()
	form.Set("client_secret", " "+secretValue+"\n")
	if to := s.ask(admin(), "/tenants/new?way=delegated", form).Header().Get("Location"); to != "/guide?n=contoso&notice=enrol.notice.tenant_tidied&tenant=contoso&way=delegated" {
		t.Errorf("from the guide it leads to %s", to)
	}
	if s.fake.saved.ClientSecret != secretValue {
		t.Error("the secret was not trimmed")
	}
	wantIn(t, s.get("/tenants/contoso?notice=enrol.notice.tenant_tidied&n=contoso"), "Spaces around the secret were left out")
}

// Nothing typed is lost by a mistake but the secret, and that is said.
func TestTenantFormKeepsWhatWasTyped(t *testing.T) {
	tests := []struct {
		name   string
		change func(url.Values)
		err    error
		lang   string
		want   string
	}{
		{"the console's mistake", func(url.Values) {}, console.Mistakes{{Field: "name", Text: "There is one of that name."}}, "en", "There is one of that name."},
		{"of an advanced field", func(url.Values) {}, console.Mistakes{{Field: "smtp_server", Text: "No port."}}, "en", "<details open>"},
		{"of no field", func(url.Values) {}, console.Mistakes{{Field: "", Text: "All of it."}}, "en", "All of it."},
		{"the secret's ID", func(v url.Values) { v.Set("client_secret", "99999999-2222-3333-4444-555555555555") }, nil, "en", "This is the secret&#39;s ID. Paste its Value"},
		{"the secret's ID, in Japanese", func(v url.Values) { v.Set("client_secret", "99999999-2222-3333-4444-555555555555") }, nil, "ja", "シークレット ID が入力されています"},
		{"an address for the tenant", func(v url.Values) { v.Set("tenant_id", "https://login.microsoftonline.com/"+tenantGUID+"/") }, nil, "en", "seems to be " + tenantGUID},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.fake.err = tt.err
			form := tenantForm()
			tt.change(form)
			w := s.ask(admin(), "/tenants/new?lang="+tt.lang, form)
			body := w.Body.String()
			if w.Code != http.StatusUnprocessableEntity {
				t.Errorf("%d, want 422", w.Code)
			}
			if tt.err == nil {
				s.did()
			}
			checkPage(t, body, tt.lang)
			wantIn(t, body, tt.want, `value="contoso"`, `value="`+form.Get("tenant_id")+`"`, `value="`+clientGUID+`"`, `value="2027-12-31"`,
				`value="smtp.example:587"`, `<option value="delegated" selected>`)
			wantNotIn(t, body, secretValue, form.Get("client_secret"))
			again := "Please paste the secret once more."
			if tt.lang == "ja" {
				again = "もう一度貼り付けてください"
			}
			wantIn(t, body, again)
		})
	}
}

func TestTenantIsChangedWithoutItsSecret(t *testing.T) {
	s := newSite(t)
	body := s.get("/tenants/contoso/edit")
	wantIn(t, body, `value="`+tenantGUID+`"`, "Leave it empty to keep the one", `value="/etc/relayd/ca.pem"`, `value="smtp.office365.com:587"`)
	form := tenantForm()
	form.Del("client_secret")
	form.Set("authority", "https://login.microsoftonline.com")
	form.Set("scope", "mine")
	s.ask(admin(), "/tenants/contoso/edit", form)
	s.did(`save tenant "contoso"`)
	if s.fake.saved.ClientSecret != "" || s.fake.saved.Authority != "https://login.microsoftonline.com" {
		t.Errorf("saved %+v", s.fake.saved)
	}
	form.Set("cloud", "china")
	s.ask(admin(), "/tenants/contoso/edit", form)
	if got := s.fake.saved; got.Authority != "" || got.Scope != "mine" {
		t.Errorf("in another cloud: authority %q, scope %q; want that of the old cloud gone, what was chosen kept", got.Authority, got.Scope)
	}
	s.fake.err = console.Mistakes{{Field: "name", Text: "x"}}
	wantIn(t, s.ask(admin(), "/tenants/contoso/edit", form).Body.String(), "Leave it empty to keep the one")
}

func TestWhatStandsInTheFileIsNotChangedHere(t *testing.T) {
	s := newSite(t)
	for _, path := range []string{"/tenants/fabrikam/edit", "/tenants/fabrikam/remove", "/senders/%2A@fabrikam.com/edit", "/senders/%2A@fabrikam.com/remove"} {
		if w := s.ask(admin(), path, nil); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "configuration file") {
			t.Errorf("GET %s: %d", path, w.Code)
		}
	}
	wantNotIn(t, s.get("/tenants/fabrikam"), "/tenants/fabrikam/edit")
	if w := s.ask(admin(), "/tenants/contoso/remove", nil); w.Code != http.StatusConflict {
		t.Errorf("a tenant in use: %d", w.Code)
	}
	if w := s.ask(admin(), "/tenants/gone", nil); w.Code != http.StatusNotFound {
		t.Errorf("a tenant that is not there: %d", w.Code)
	}
}

func TestActs(t *testing.T) {
	tests := []struct{ path, did, to string }{
		{"/tenants/spare/remove", "remove tenant spare", "/tenants?"},
		{"/senders/app@contoso.com/pause", "pause app@contoso.com", "/senders/app@contoso.com?"},
		{"/senders/%2A@fabrikam.com/resume", "resume *@fabrikam.com", "/senders/%2A@fabrikam.com?"},
		{"/senders/app@contoso.com/revoke", "revoke app@contoso.com", "/senders/app@contoso.com?"},
		{"/senders/app@contoso.com/remove", "remove sender app@contoso.com", "/senders?"},
		{"/senders/app@contoso.com/device", "device app@contoso.com", "/senders/app@contoso.com/device/d1"},
	}
	for _, tt := range tests {
		s := newSite(t)
		w := s.ask(admin(), tt.path, url.Values{})
		s.did(tt.did)
		if to := w.Header().Get("Location"); w.Code != http.StatusSeeOther || !strings.HasPrefix(to, tt.to) {
			t.Errorf("%s: %d to %s, want %s", tt.path, w.Code, to, tt.to)
		}
		s.fake.err = console.ErrNotFound
		if w := s.ask(admin(), tt.path, url.Values{}); w.Code != http.StatusNotFound {
			t.Errorf("%s of what is not there: %d", tt.path, w.Code)
		}
	}
}

func TestChecksShowWhatWasFound(t *testing.T) {
	s := newSite(t)
	wantIn(t, s.ask(admin(), "/tenants/contoso/check", url.Values{}).Body.String(), "expires in 1 h", "SMTP AUTH is off.", "Set-CASMailbox")
	s.did("check contoso")
	wantIn(t, s.ask(admin(), "/senders/app@contoso.com/examine", url.Values{}).Body.String(), "SMTP AUTH is off.")
	s.did("examine app@contoso.com")
	s.ask(admin(), "/senders/%2A@fabrikam.com/examine", url.Values{"address": {"Bob <bob@fabrikam.com>"}})
	s.did("examine bob@fabrikam.com")
	refused := status.New(535, status.Enhanced{5, 7, 3}, "no token")
	refused.Cause = "The secret has expired."
	s.fake.err, s.fake.findings = refused, nil
	for _, path := range []string{"/tenants/contoso/check", "/senders/app@contoso.com/examine"} {
		if w := s.ask(admin(), path, url.Values{}); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "The secret has expired.") {
			t.Errorf("%s: %d, want the refusal as a finding", path, w.Code)
		}
	}
	s.fake.err = errors.New("something of ours")
	if w := s.ask(admin(), "/tenants/contoso/check", url.Values{}); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "something of ours") {
		t.Errorf("an unknown failure: %d %s", w.Code, w.Body)
	}
}

// The way to Microsoft is a page that goes on by itself: the policy lets no form lead to another site.
func TestStartAuthentication(t *testing.T) {
	s := newSite(t)
	for path, did := range map[string]string{
		"/senders/app@contoso.com/consent": "consent app@contoso.com for s1", "/tenants/contoso/consent": "admin consent contoso for s1",
	} {
		w := s.ask(admin(), path, url.Values{})
		s.did(did)
		if w.Code != http.StatusOK || w.Header().Get("Refresh") != "0; url="+s.fake.url {
			t.Errorf("%s: %d, Refresh %q", path, w.Code, w.Header().Get("Refresh"))
		}
		wantIn(t, w.Body.String(), `href="`+strings.ReplaceAll(s.fake.url, "&", "&amp;")+`"`, "login.microsoftonline.com to sign in")
		token := admin()
		token.Session = ""
		if w := s.ask(token, path, url.Values{}); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "cookies") {
			t.Errorf("%s without a browser's session: %d", path, w.Code)
		}
		s.did()
		s.fake.err = status.New(550, status.Enhanced{}, "this sender needs no consent")
		if w := s.ask(admin(), path, url.Values{}); w.Code != http.StatusUnprocessableEntity || !strings.Contains(w.Body.String(), "needs no consent") {
			t.Errorf("%s refused: %d", path, w.Code)
		}
		s.fake.err, s.fake.calls = nil, nil
		for _, bad := range []string{"", "javascript:alert(1)", "/relative", "https://", "ht tp://x"} {
			good := s.fake.url
			s.fake.url = bad
			if w := s.ask(admin(), path, url.Values{}); w.Header().Get("Refresh") != "" || w.Code != http.StatusServiceUnavailable {
				t.Errorf("%q: %d, Refresh %q", bad, w.Code, w.Header().Get("Refresh"))
			}
			s.fake.url, s.fake.calls = good, nil
		}
	}
}

func TestInvitation(t *testing.T) {
	s := newSite(t)
	wantIn(t, s.ask(admin(), "/senders/new@contoso.com/invite", url.Values{}).Body.String(), `value="https://relay.contoso.com/consent/c0de"`, "works once")
	s.did("invite new@contoso.com")
	w := s.ask(nil, "/consent/c0de", nil)
	if w.Code != http.StatusOK {
		t.Fatalf("%d", w.Code)
	}
	s.did() // looking at it uses nothing up
	wantIn(t, w.Body.String(), "relay.contoso.com", "new@contoso.com", `action="/consent/c0de"`, "cannot read your mail")
	wantNotIn(t, w.Body.String(), `href="/senders`, `href="/tenants`, "contoso.com/oauth", "fabrikam", "app@contoso.com")
	w = s.ask(nil, "/consent/c0de", url.Values{})
	s.did("accept c0de for b1")
	if w.Code != http.StatusOK || w.Header().Get("Refresh") == "" {
		t.Errorf("%d, Refresh %q", w.Code, w.Header().Get("Refresh"))
	}
	for _, err := range []error{console.ErrExpired, console.ErrNotFound} {
		s.fake.err = err
		if w := s.ask(nil, "/consent/c0de", url.Values{}); w.Code != http.StatusGone || !strings.Contains(w.Body.String(), "used already") {
			t.Errorf("accepted with %v: %d", err, w.Code)
		}
	}
	s.fake.err = errors.New("something of ours")
	if w := s.ask(nil, "/consent/c0de", url.Values{}); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "something of ours") {
		t.Errorf("accepted with an unknown failure: %d", w.Code)
	}
	if w := s.ask(nil, "/consent/forged", nil); w.Code != http.StatusGone || !strings.Contains(w.Body.String(), "used already") {
		t.Errorf("a forged code: %d", w.Code)
	}
	s.fake.invited.Expires = time.Now().Add(-time.Minute)
	if w := s.ask(nil, "/consent/c0de", nil); w.Code != http.StatusGone || strings.Contains(w.Body.String(), "new@contoso.com") {
		t.Errorf("an expired code: %d", w.Code)
	}
}

func TestCallback(t *testing.T) {
	s := newSite(t)
	body := s.get("/oauth/callback?state=s&code=c&iss=https%3A%2F%2Fissuer&session_state=x")
	want := console.Callback{Session: "s1", State: "s", Code: "c", Issuer: "https://issuer"}
	if s.fake.callback != want {
		t.Errorf("got %+v, want %+v", s.fake.callback, want)
	}
	wantIn(t, body, "Authenticated", "Signed in as app@contoso.com.", `href="/senders/app@contoso.com/test"`, `href="/senders/app@contoso.com?lang=ja"`)

	s.fake.done = &console.Consented{Tenant: "contoso"}
	body = s.get("/oauth/callback?state=s&admin_consent=True&tenant=" + tenantGUID)
	want = console.Callback{Session: "s1", State: "s", AdminConsent: true, Tenant: tenantGUID}
	if s.fake.callback != want {
		t.Errorf("got %+v, want %+v", s.fake.callback, want)
	}
	wantIn(t, body, "An administrator has consented", `href="/tenants/contoso"`)
	s.fake.calls = nil
	if w := s.ask(admin(), "/oauth/callback", nil); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "brought nothing") {
		t.Errorf("with nothing: %d", w.Code)
	}
	s.did()
}

// An invited owner sees that it is done and nothing else of the relay, whoever looks over the shoulder.
func TestCallbackOfTheInvited(t *testing.T) {
	for _, p := range []*access.Principal{nil, admin()} {
		s := newSite(t)
		s.fake.done = &console.Consented{Sender: "new@contoso.com", Tenant: "contoso", User: "new@contoso.com", Invited: true}
		w := s.ask(p, "/oauth/callback?state=s&code=c", nil)
		wantIn(t, w.Body.String(), "Authenticated", "new@contoso.com", "you can close this page", "/consent/over?lang=ja")
		wantNotIn(t, w.Body.String(), `href="/senders`, `href="/tenants`, `href="/guide`, `class="menu"`)
		if p == nil && s.fake.callback.Session != "b1" {
			t.Errorf("bound to %q, want the browser's own", s.fake.callback.Session)
		}
	}
}

// What a callback brings with it is judged by the console alone; none of it is shown.
func TestCallbackRefused(t *testing.T) {
	refused := status.New(550, status.Enhanced{5, 7, 0}, "boss@contoso.com signed in, not app@contoso.com")
	refused.Cause, refused.Advice = "Another user signed in.", "Sign in as app@contoso.com."
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"in words", refused, "Sign in as app@contoso.com."},
		{"replayed, expired or of another browser", console.ErrExpired, "not started in this browser"},
		{"forged", console.ErrNotFound, "not started in this browser"},
		{"unknown", errors.New("something of ours"), "the log says why"},
	}
	for _, tt := range tests {
		for _, p := range []*access.Principal{nil, admin()} {
			s := newSite(t)
			s.fake.err = tt.err
			w := s.ask(p, "/oauth/callback?state=forged&code=thecode&error=access_denied&error_description=pay+here+now", nil)
			body := w.Body.String()
			if w.Code != http.StatusUnprocessableEntity {
				t.Errorf("%s: %d", tt.name, w.Code)
			}
			if s.fake.callback.Error != "access_denied" || s.fake.callback.ErrorDescription != "pay here now" {
				t.Errorf("%s: got %+v", tt.name, s.fake.callback)
			}
			checkPage(t, body, "en")
			wantIn(t, body, "Not authenticated", tt.want)
			wantNotIn(t, body, "thecode", "pay here", "something of ours", "access_denied")
			if p == nil {
				wantNotIn(t, body, `href="/senders"`, `class="menu"`)
			}
		}
	}
}

func TestDevice(t *testing.T) {
	s := newSite(t)
	const path = "/senders/new@contoso.com/device/d1"
	wantIn(t, s.get(path), "ABCD-EFGH", `href="https://microsoft.com/devicelogin"`, `hx-get="`+path+`"`)
	s.fake.device.State, s.fake.device.User = "done", "new@contoso.com"
	body := s.get(path)
	wantIn(t, body, "Signed in as new@contoso.com.", "/senders/new@contoso.com/test")
	wantNotIn(t, body, "hx-get", "ABCD-EFGH")
	s.fake.device.State, s.fake.device.Problem = "failed", &console.Problem{Text: "declined"}
	body = s.get(path)
	wantIn(t, body, "declined")
	wantNotIn(t, body, "hx-get")
	if w := s.ask(admin(), "/senders/new@contoso.com/device/other", nil); w.Code != http.StatusNotFound {
		t.Errorf("another id: %d", w.Code)
	}
}

func TestSenderIsSavedAsEntered(t *testing.T) {
	s := newSite(t)
	form := url.Values{"match": {"App <app@contoso.com>"}, "tenant": {"contoso"}, "login": {""}, "connections": {"2"}, "recipients_per_day": {" 500 "}}
	w := s.ask(admin(), "/senders/new", form)
	s.did(`save sender ""`)
	if want := (console.SenderInput{Match: "app@contoso.com", Tenant: "contoso", Connections: 2, RecipientsPerDay: 500}); s.fake.sender != want {
		t.Errorf("saved %+v, want %+v", s.fake.sender, want)
	}
	if to := w.Header().Get("Location"); to != "/senders/app@contoso.com?n=app%40contoso.com&notice=enrol.notice.sender_tidied" {
		t.Errorf("to %s", to)
	}
	to := s.ask(admin(), "/senders/new?way=classic", form).Header().Get("Location")
	wantIn(t, to, "/guide?", "sender=app%40contoso.com", "tenant=contoso", "way=classic")
	s.fake.calls = nil
	form.Set("connections", "two")
	form.Set("messages_per_minute", "-1")
	form.Set("login", "x@contoso.com")
	w = s.ask(admin(), "/senders/app@contoso.com/edit", form)
	s.did()
	if w.Code != http.StatusUnprocessableEntity {
		t.Errorf("%d, want 422", w.Code)
	}
	wantIn(t, w.Body.String(), `value="two"`, `value="-1"`, `value="x@contoso.com"`, `value="app@contoso.com"`, "Write a whole number from 1")
	form.Set("connections", "")
	form.Set("messages_per_minute", "")
	s.fake.err = console.Mistakes{{Field: "match", Text: "There is one already."}}
	wantIn(t, s.ask(admin(), "/senders/new", form).Body.String(), "There is one already.", `value="x@contoso.com"`, "Taken as the address app@contoso.com")
}

func TestSendAs(t *testing.T) {
	s := newSite(t)
	s.ask(admin(), "/senders/info@contoso.com/send-as", url.Values{"match": {" sales@contoso.com"}})
	s.did(`save sender ""`)
	if want := (console.SenderInput{Match: "sales@contoso.com", Tenant: "contoso", Login: "app@contoso.com"}); s.fake.sender != want {
		t.Errorf("saved %+v, want %+v", s.fake.sender, want)
	}
	s.fake.err = console.Mistakes{{Field: "match", Text: "There is one already."}}
	w := s.ask(admin(), "/senders/app@contoso.com/send-as", url.Values{"match": {"sales@contoso.com"}})
	if w.Code != http.StatusUnprocessableEntity {
		t.Errorf("%d", w.Code)
	}
	wantIn(t, w.Body.String(), "There is one already.", `value="sales@contoso.com"`)
	body := s.get("/senders/info@contoso.com")
	wantIn(t, body, "Add-RecipientPermission -Identity &#39;info@contoso.com&#39; -Trustee &#39;app@contoso.com&#39; -AccessRights SendAs")
	wantNotIn(t, s.get("/senders/%2A@fabrikam.com"), "/send-as", "Add-RecipientPermission")
	s.fake.err = nil
	if w := s.ask(admin(), "/senders/%2A@fabrikam.com/send-as", url.Values{"match": {"a@b.c"}}); w.Code != http.StatusNotFound {
		t.Errorf("for a whole domain: %d", w.Code)
	}
}

func testForm(from, to string) url.Values {
	return url.Values{"from": {from}, "to": {to}, "subject": {"テスト"}, "text": {"hello\r\nthere"}}
}

func TestSendATest(t *testing.T) {
	s := newSite(t)
	body := s.get("/senders/app@contoso.com/test")
	wantIn(t, body, `name="from" value="app@contoso.com"`, "Test from relayd")
	w := s.ask(admin(), "/senders/app@contoso.com/test", testForm("app@contoso.com", "A <a@example.com>, b@example.com;A@example.com"))
	if to := w.Header().Get("Location"); w.Code != http.StatusSeeOther || to != "/senders/app@contoso.com/test/"+string(testID) {
		t.Fatalf("%d to %s: %s", w.Code, to, w.Body)
	}
	sent := s.mail.sent
	if sent.From != "app@contoso.com" || len(sent.To) != 2 || sent.To[1] != "b@example.com" || sent.By != "ops@contoso.com" || sent.Peer != "192.0.2.1" {
		t.Errorf("sent %+v", sent)
	}
	wantIn(t, s.mail.text, "From: <app@contoso.com>\r\n", "=?", "hello\r\nthere")
}

func TestTestIsFollowedToItsOutcome(t *testing.T) {
	s := newSite(t)
	path := "/senders/app@contoso.com/test/" + string(testID)
	for state, want := range map[envelope.State]string{
		envelope.Queued: "every 1s", envelope.Sending: "every 1s", envelope.Deferred: "every 5s", envelope.Parked: "every 5s", envelope.Sent: "", envelope.Failed: "",
	} {
		s.mail.message.State = state
		body := s.get(path)
		if polled := strings.Contains(body, `hx-get="`+path+`"`); polled != (want != "") || polled && !strings.Contains(body, `hx-trigger="`+want+`"`) {
			t.Errorf("%s: polled %v, want %q", state, polled, want)
		}
	}
	s.mail.message.State = envelope.Failed
	wantIn(t, s.get(path), "550 5.7.60 not allowed", "Grant Send As.", "contoso/app@contoso.com", "to=a%40example.com")
	s.mail.message = testMessage(envelope.Parked)
	wantIn(t, s.get(path), "The secret has expired.")
	for _, id := range []string{"nonsense", "01hxexamp0e0000000ac"} {
		if w := s.ask(admin(), "/senders/app@contoso.com/test/"+id, nil); w.Code != http.StatusNotFound {
			t.Errorf("id %s: %d", id, w.Code)
		}
	}
}

func TestTestIsRefused(t *testing.T) {
	s := newSite(t)
	refused := status.New(550, status.Enhanced{5, 7, 1}, "no entry of senders covers <boss@contoso.com>")
	refused.Advice = "Add it."
	s.mail.err = refused
	w := s.ask(admin(), "/senders/app@contoso.com/test", testForm("boss@contoso.com", "a@example.com"))
	if w.Code != http.StatusUnprocessableEntity {
		t.Errorf("%d, want 422", w.Code)
	}
	checkPage(t, w.Body.String(), "en")
	wantIn(t, w.Body.String(), "no entry of senders covers &lt;boss@contoso.com&gt;", "Add it.", `value="boss@contoso.com"`, `value="a@example.com"`, "テスト", "hello",
		`href="/senders/app@contoso.com?from=boss%40contoso.com#send-as"`)
	wantIn(t, s.get("/senders/app@contoso.com?from=boss@contoso.com"), `name="match" value="boss@contoso.com"`)
	s.mail.err = status.New(452, status.Enhanced{4, 3, 1}, "queue storage is full")
	if w := s.ask(admin(), "/senders/app@contoso.com/test", testForm("app@contoso.com", "a@example.com")); w.Code != http.StatusServiceUnavailable {
		t.Errorf("storage full: %d", w.Code)
	}
	s.mail.text = ""
	many := strings.Repeat("x@example.com,", 2)
	for i := range maxTrial {
		many += string(rune('a'+i)) + "@example.com,"
	}
	for name, form := range map[string]url.Values{
		"Name at least one recipient": testForm("app@contoso.com", " , "), "is no address": testForm("app", "a@example.com"),
		"“b” is no address": testForm("app@contoso.com", "a@example.com, b"), "at most 10": testForm("app@contoso.com", many),
		"more than one line": {"from": {"app@contoso.com"}, "to": {"a@example.com"}, "subject": {"a\r\nBcc: x@y.z"}},
	} {
		w := s.ask(admin(), "/senders/app@contoso.com/test", form)
		if w.Code != http.StatusUnprocessableEntity || !strings.Contains(w.Body.String(), name) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if s.mail.text != "" {
			t.Errorf("%s: it was sent", name)
		}
	}
}
