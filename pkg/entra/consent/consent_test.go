package consent

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

func TestNewWantsEverything(t *testing.T) {
	full := newRig(t).options
	for name, take := range map[string]func(*Options){
		"registration": func(o *Options) { o.Registration = nil }, "pending": func(o *Options) { o.Pending = nil },
		"devices": func(o *Options) { o.Devices = nil }, "invitations": func(o *Options) { o.Invitations = nil },
		"adopt": func(o *Options) { o.Adopt = nil }, "redirect": func(o *Options) { o.RedirectURI = nil },
	} {
		o := full
		take(&o)
		if _, err := New(o); err == nil {
			t.Errorf("without %s: no error", name)
		}
	}
	full.Logger = nil
	if _, err := New(full); err != nil {
		t.Errorf("without a logger: %v", err)
	}
}

func TestStart(t *testing.T) {
	r := newRig(t)
	where, err := r.Start(t.Context(), ann())
	if err != nil {
		t.Fatal(err)
	}
	address, query, _ := strings.Cut(where, "?")
	if want := base + "/" + tenantID + "/oauth2/v2.0/authorize"; address != want {
		t.Errorf("got %s, want %s", address, want)
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"client_id": clientID, "response_type": "code", "response_mode": "query", "redirect_uri": redirect,
		"scope": "https://outlook.office.com/SMTP.Send offline_access openid profile", "login_hint": "ann@contoso.com", "code_challenge_method": "S256", "prompt": "select_account"} {
		if got := q.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"state", "nonce", "code_challenge"} { // 256 bits each
		if raw, err := base64.RawURLEncoding.DecodeString(q.Get(name)[strings.IndexByte(q.Get(name), '.')+1:]); err != nil || len(raw) != 32 {
			t.Errorf("%s: got %q, want 32 random octets", name, q.Get(name))
		}
	}
	_, secret, _ := strings.Cut(q.Get("state"), ".")
	wantNoSecret(t, "the store", r.pending.contents(), secret, "session-1")
	other := r.begin(t, ann())
	for _, name := range []string{"state", "nonce", "code_challenge"} {
		if other.Get(name) == q.Get(name) {
			t.Errorf("%s repeats", name)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*rig, *Request)
		rule   string
	}{
		{"no session", func(_ *rig, q *Request) { q.Session = "" }, "sign-in-session"},
		{"no mailbox", func(_ *rig, q *Request) { q.Login = "" }, "sign-in-login"},
		{"no redirect URI", func(r *rig, _ *Request) { r.Consents.options.RedirectURI = func() string { return "" } }, "sign-in-redirect"},
		{"unknown tenant", func(_ *rig, q *Request) { q.Tenant = "fabrikam" }, ""},
		{"store away", func(r *rig, _ *Request) { r.pending.fail(errors.New("away")) }, "sign-in-store"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, q := newRig(t), ann()
			tt.change(r, &q)
			where, err := r.Start(t.Context(), q)
			if e := status.From(err); where != "" || e == nil || e.Rule != tt.rule {
				t.Errorf("got %q, %v, want %q", where, err, tt.rule)
			}
		})
	}
}

func TestFinish(t *testing.T) {
	r := newRig(t)
	q := r.begin(t, ann())
	before := time.Now()
	got, err := r.Finish(t.Context(), callback(q))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Result{Tenant: "contoso", Sender: "*@contoso.com", Login: "ann@contoso.com", User: "Ann@contoso.com"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	all := r.grants()
	if len(all) != 1 {
		t.Fatalf("adopted %d grants", len(all))
	}
	g := all[0]
	if g.Granted.Before(before) || !g.Used.Equal(g.Granted) || g.Expires.Sub(g.Granted) != time.Hour {
		t.Errorf("times: %+v", g)
	}
	g.Granted, g.Used, g.Expires = time.Time{}, time.Time{}, time.Time{}
	if want := (grant.Grant{Tenant: "contoso", Login: "ann@contoso.com", ClientID: clientID, TenantID: tenantID, User: "Ann@contoso.com",
		ObjectID: "object-1", Refresh: refreshCanary, Access: accessCanary}); g != want {
		t.Errorf("got %+v, want %+v", g, want)
	}
	form := r.entra.forms[0]
	challenge := sha256.Sum256([]byte(form.Get("code_verifier")))
	if base64.RawURLEncoding.EncodeToString(challenge[:]) != q.Get("code_challenge") || len(form.Get("code_verifier")) < 43 {
		t.Errorf("verifier %q does not fit the challenge", form.Get("code_verifier"))
	}
	form.Del("code_verifier")
	if want := (url.Values{"grant_type": {"authorization_code"}, "code": {codeCanary}, "redirect_uri": {redirect}, "client_id": {clientID},
		"client_secret": {secretCanary}, "scope": {q.Get("scope")}}); form.Encode() != want.Encode() {
		t.Errorf("got form %v, want %v", form, want)
	}
	if r.entra.headers[0].Get("Authorization") != "" {
		t.Error("the secret is in a header")
	}
	if r.pending.len() != 0 {
		t.Errorf("left behind: %s", r.pending.contents())
	}
	r.wantCleanLogs(t, q.Get("state"), q.Get("nonce"))
}

// TestRedirectStays changes public_url while a sign-in is under way: the code is bound to the URI that was sent.
func TestRedirectStays(t *testing.T) {
	r := newRig(t)
	q := r.begin(t, ann())
	r.Consents.options.RedirectURI = func() string { return "https://new.contoso.com/oauth/callback" }
	if _, err := r.Finish(t.Context(), callback(q)); err != nil || r.entra.forms[0].Get("redirect_uri") != redirect {
		t.Errorf("got %v, %v", err, r.entra.forms)
	}
}

func TestFinishRefuses(t *testing.T) {
	claim := func(name string, value any) func(*rig, *Callback) {
		return func(r *rig, _ *Callback) { r.entra.claims = map[string]any{name: value} }
	}
	answer := func(name string, value any) func(*rig, *Callback) {
		return func(r *rig, _ *Callback) { r.entra.answer = map[string]any{name: value} }
	}
	back := func(name, description string) func(*rig, *Callback) {
		return func(_ *rig, cb *Callback) { cb.Code, cb.Error, cb.ErrorDescription = "", name, description }
	}
	token := func(code int, name string, number int) func(*rig, *Callback) {
		return func(r *rig, _ *Callback) { r.entra.token = refuse(code, name, number) }
	}
	tests := []struct {
		name   string
		change func(*rig, *Callback)
		rule   string
		says   []string // in text or advice
	}{
		{"no state", func(_ *rig, cb *Callback) { cb.State = "" }, "sign-in-unknown", nil},
		{"forged state", func(_ *rig, cb *Callback) { cb.State = cb.State[:13] + random() }, "sign-in-unknown", nil},
		{"state of another bucket", func(_ *rig, cb *Callback) { cb.State = "AAAAAAAAAAAA" + cb.State[12:] }, "sign-in-unknown", nil},
		{"endless state", func(_ *rig, cb *Callback) { cb.State = strings.Repeat(cb.State, 1<<12) }, "sign-in-unknown", nil},
		{"foreign session", func(_ *rig, cb *Callback) { cb.Session = "session-2" }, "sign-in-foreign", []string{"another browser", "same browser"}},
		{"no session", func(_ *rig, cb *Callback) { cb.Session = "" }, "sign-in-foreign", nil},
		{"nothing in it", func(_ *rig, cb *Callback) { cb.Code = "" }, "sign-in-malformed", nil},
		{"another issuer", func(_ *rig, cb *Callback) { cb.Issuer = "https://evil.example" }, "sign-in-issuer", nil},
		{"another issuer with an error", func(_ *rig, cb *Callback) { cb.Issuer, cb.Error = "https://evil.example", "access_denied" }, "sign-in-issuer", nil},
		{"no issuer where one is promised", func(r *rig, _ *Callback) { r.entra.declares = true }, "sign-in-issuer", nil},
		{"Entra ID away", func(r *rig, _ *Callback) { r.entra.down = true }, "sign-in-no-answer", []string{"again"}},

		{"cancelled", back("access_denied", "the user canceled the authentication"), "sign-in-declined", []string{"declined"}},
		{"declined", back("access_denied", "AADSTS65004: User declined to consent"), "sign-in-declined", nil},
		{"declined under another name", back("invalid_grant", "AADSTS65004: no"), "sign-in-declined", nil},
		{"administrator needed", back("access_denied", "AADSTS90094: an administrator must"), "sign-in-admin", []string{"administrator", "Grant admin consent"}},
		{"consent needed", back("consent_required", ""), "sign-in-admin", nil},
		{"not assigned", back("invalid_grant", "AADSTS50105: not assigned a role"), "sign-in-not-assigned", []string{"Users and groups"}},
		{"conditional access", back("interaction_required", "AADSTS53003: blocked"), "sign-in-policy", []string{"Conditional Access"}},
		{"in the catalogue", back("server_error", "AADSTS90033: busy"), "explained", []string{"server_error"}},
		{"unheard of", back("made_up<script>", strings.Repeat("AADSTS1 ", 10000)), "explained", []string{"made_upscript"}},

		{"code redeemed before", token(400, "invalid_grant", 54005), "sign-in-stale", nil},
		{"wrong proof", token(400, "invalid_grant", 501481), "sign-in-proof", nil},
		{"redirect URI unknown", token(400, "invalid_request", 50011), "sign-in-redirect", nil},
		{"bad secret", token(401, "invalid_client", 7000215), "explained", []string{"invalid_client"}},
		{"redirected", token(302, "", 0), "explained", nil},
		{"no JSON", func(r *rig, _ *Callback) { r.entra.token = func(url.Values) (int, any) { return 200, "<html>" } }, "explained", []string{"no answer"}},
		{"endless", func(r *rig, _ *Callback) {
			r.entra.token = func(url.Values) (int, any) { return 200, `{"id_token":"` + strings.Repeat("x", 2<<20) + `"}` }
		}, "explained", []string{"no answer"}},

		{"nobody said who", answer("id_token", ""), "sign-in-nobody", nil},
		{"no ID token at all", answer("id_token", "a.b.c"), "sign-in-identity", nil},
		{"another organisation", func(r *rig, _ *Callback) {
			r.entra.claims = map[string]any{"tid": otherID, "iss": base + "/" + otherID + "/v2.0"}
		}, "sign-in-tenant", []string{"another organisation", `"contoso"`}},
		{"ID token of another issuer", claim("iss", "https://evil.example"), "sign-in-identity", nil},
		{"ID token for another application", claim("aud", "other"), "sign-in-identity", nil},
		{"ID token of another sign-in", claim("nonce", "other"), "sign-in-identity", nil},
		{"ID token too old", claim("exp", 1), "sign-in-clock", nil},
		{"wrong user", claim("preferred_username", "bob@contoso.com"), "sign-in-user",
			[]string{"bob@contoso.com signed in, but ann@contoso.com was expected", "sign in again as ann@contoso.com", "Send As", "enter bob@contoso.com as the sender's login"}},
		{"user without an address", claim("preferred_username", ""), "sign-in-user", []string{"ann@contoso.com was expected"}},
		{"sending not granted", answer("scope", "openid profile https://outlook.office.com/IMAP.AccessAsUser.All"), "sign-in-scope", []string{"SMTP.Send"}},
		{"no lasting access", answer("refresh_token", ""), "sign-in-offline", []string{"offline_access"}},
		{"the grant cannot be stored", func(r *rig, _ *Callback) { r.adopt = errors.New("disk " + refreshCanary[:3]) }, "sign-in-store", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			q := r.begin(t, ann())
			cb := callback(q)
			tt.change(r, &cb)
			got, err := r.Finish(t.Context(), cb)
			e := wantRefusal(t, err, tt.rule)
			for _, s := range tt.says {
				if !strings.Contains(e.Text+" "+e.Advice, s) {
					t.Errorf("got %q, %q, want %q in it", e.Text, e.Advice, s)
				}
			}
			want := Result{Tenant: "contoso", Sender: "*@contoso.com", Login: "ann@contoso.com"}
			if early := tt.rule == "sign-in-unknown" || tt.rule == "sign-in-foreign"; early {
				want = Result{}
			}
			if got != want || len(r.grants()) != 0 {
				t.Errorf("got %+v, adopted %+v", got, r.grants())
			}
			for _, host := range r.entra.hosts {
				if host != "entra.test" {
					t.Errorf("asked %s", host)
				}
			}
			r.wantCleanLogs(t, q.Get("state"), q.Get("nonce"))
			if len(r.told) > 0 && (r.told[0] != codeCanary || r.told[1] != r.entra.forms[0].Get("code_verifier")) {
				t.Errorf("Explain was not told the secrets: %v", r.told)
			}
		})
	}
}

func TestAcceptedAnswers(t *testing.T) {
	tests := []struct {
		name   string
		change func(*rig, *Callback)
	}{
		{"the issuer is named", func(r *rig, cb *Callback) { r.entra.declares, cb.Issuer = true, base+"/"+tenantID+"/v2.0" }},
		{"no scope in the answer: all of them", func(r *rig, _ *Callback) { r.entra.answer = map[string]any{"scope": ""} }},
		{"scope under another host of the resource", func(r *rig, _ *Callback) {
			r.entra.answer = map[string]any{"scope": "https://outlook.office365.com/smtp.send"}
		}},
		{"the address is in upn", func(r *rig, _ *Callback) {
			r.entra.claims = map[string]any{"preferred_username": "x@contoso.onmicrosoft.com", "upn": "ANN@CONTOSO.COM"}
		}},
		{"expires_in as a string", func(r *rig, _ *Callback) { r.entra.answer = map[string]any{"expires_in": "3600"} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cb := callback(r.begin(t, ann()))
			tt.change(r, &cb)
			if _, err := r.Finish(t.Context(), cb); err != nil || len(r.grants()) != 1 || r.grants()[0].Expires.IsZero() {
				t.Errorf("got %v, adopted %+v", err, r.grants())
			}
		})
	}
	t.Run("without expires_in the access token is not kept", func(t *testing.T) {
		r := newRig(t)
		r.entra.answer = map[string]any{"expires_in": nil}
		if _, err := r.Finish(t.Context(), callback(r.begin(t, ann()))); err != nil || r.grants()[0].Access != "" || r.grants()[0].Refresh == "" {
			t.Errorf("got %v, adopted %+v", err, r.grants())
		}
	})
}

// TestErrorOfAdopt shows the sentence of whoever stores.
func TestErrorOfAdopt(t *testing.T) {
	r := newRig(t)
	r.adopt = &status.Error{Code: 535, Rule: "explained", Text: "the tenant is gone"}
	_, err := r.Finish(t.Context(), callback(r.begin(t, ann())))
	if e := wantRefusal(t, err, "explained"); e.Text != "the tenant is gone" {
		t.Errorf("got %v", e)
	}
}

func TestErrorOfAuthenticate(t *testing.T) {
	r := newRig(t)
	inner := r.Consents.options.Registration
	r.Consents.options.Registration = func(name string) (Registration, error) {
		reg, err := inner(name)
		reg.Authenticate = func(context.Context, string, url.Values) error {
			return fmt.Errorf("read the secret: %w", &status.Error{Code: 535, Rule: "explained", Text: "no file"})
		}
		return reg, err
	}
	_, err := r.Finish(t.Context(), callback(r.begin(t, ann())))
	if e := wantRefusal(t, err, "explained"); e.Text != "no file" || len(r.entra.forms) != 0 {
		t.Errorf("got %v after %d requests", e, len(r.entra.forms))
	}
}

// TestStateServesOnce brings the same answer back from many windows at once, to two nodes.
func TestStateServesOnce(t *testing.T) {
	r := newRig(t)
	nodes := []*Consents{r.Consents, r.node(t)}
	cb := callback(r.begin(t, ann()))
	var mu sync.Mutex
	accepted := 0
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			_, err := nodes[i%2].Finish(t.Context(), cb)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				accepted++
			} else {
				wantRefusal(t, err, "sign-in-unknown")
			}
		})
	}
	all.Wait()
	if accepted != 1 || len(r.grants()) != 1 || len(r.entra.forms) != 1 {
		t.Errorf("accepted %d, adopted %d, redeemed %d, want 1 each", accepted, len(r.grants()), len(r.entra.forms))
	}
}

// TestRefusedIsOver tries a state again that served a refusal, and one that came to the wrong session.
func TestRefusedIsOver(t *testing.T) {
	r := newRig(t)
	cb := callback(r.begin(t, ann()))
	denied := cb
	denied.Code, denied.Error = "", "access_denied"
	foreign := cb
	foreign.Session = "session-2"
	_, err := r.Finish(t.Context(), foreign)
	wantRefusal(t, err, "sign-in-foreign") // and leaves it to its own session
	_, err = r.Finish(t.Context(), denied)
	wantRefusal(t, err, "sign-in-declined")
	_, err = r.Finish(t.Context(), cb)
	wantRefusal(t, err, "sign-in-unknown")
}

func TestBrowserThatLeaves(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the code is redeemed all the same: it serves once
	if _, err := r.Finish(ctx, callback(r.begin(t, ann()))); err != nil || len(r.grants()) != 1 {
		t.Errorf("got %v", err)
	}
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		signingKey()
		early, late := callback(r.begin(t, ann())), callback(r.begin(t, ann()))
		r.entra.claims = map[string]any{"nonce": ""}
		<-time.After(pendingLife - time.Second)
		_, err := r.Finish(t.Context(), early)
		wantRefusal(t, err, "sign-in-identity") // in time: it got as far as the nonce
		<-time.After(time.Second)
		_, err = r.Finish(t.Context(), late)
		wantRefusal(t, err, "sign-in-expired")
		if r.pending.len() != 1 {
			t.Fatalf("got %d records, want the late one", r.pending.len())
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		<-time.After(sweepEvery + time.Second)
		if r.pending.len() != 0 {
			t.Errorf("not swept: %s", r.pending.contents())
		}
		cancel()
		<-done
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		other := ann()
		other.Session = "session-2"
		others := r.begin(t, other)
		var mine []url.Values
		for range maxPerSession + 3 {
			mine = append(mine, r.begin(t, ann()))
			<-time.After(time.Second)
		}
		if got := r.pending.len(); got != maxPerSession+1 {
			t.Errorf("got %d records, want %d and the other session's", got, maxPerSession)
		}
		_, err := r.Finish(t.Context(), callback(mine[2]))
		wantRefusal(t, err, "sign-in-unknown") // made room
		cb := callback(mine[3])
		cb.Code, cb.Error = "", "access_denied"
		_, err = r.Finish(t.Context(), cb)
		wantRefusal(t, err, "sign-in-declined") // was still there
		for i := 0; r.pending.len() < maxPending; i++ {
			q := ann()
			q.Session = fmt.Sprint("many-", i)
			r.begin(t, q)
		}
		_, err = r.Start(t.Context(), ann())
		wantRefusal(t, err, "sign-in-busy")
		cb = callback(others)
		cb.Session = "session-2"
		r.sent(t, "?"+others.Encode()) // its nonce
		if _, err := r.Finish(t.Context(), cb); err != nil {
			t.Errorf("what was begun before cannot be finished: %v", err)
		}
		<-time.After(pendingLife)
		r.begin(t, ann()) // what has expired makes room without Run
	})
}

func TestStoreAway(t *testing.T) {
	r := newRig(t)
	cb := callback(r.begin(t, ann()))
	r.pending.fail(errors.New("away"))
	_, err := r.Finish(t.Context(), cb)
	if e := wantRefusal(t, err, "sign-in-store"); !e.Temporary() || e.Action != status.Retry {
		t.Errorf("got %+v, want temporary", e)
	}
	r.pending.fail(nil)
	if _, err := r.Finish(t.Context(), cb); err != nil {
		t.Errorf("once it is back: %v", err)
	}
}

func TestDamagedRecord(t *testing.T) {
	r := newRig(t)
	cb := callback(r.begin(t, ann()))
	for name, rec := range r.pending.records {
		rec.data = []byte("{")
		r.pending.records[name] = rec
	}
	_, err := r.Finish(t.Context(), cb)
	wantRefusal(t, err, "sign-in-store")
	r.sweep(t.Context()) // a record that cannot be read is kept: its key may come back
	if r.pending.len() != 1 || r.logs.FilterMessageSnippet("not dropped").Len() != 1 {
		t.Errorf("got %d records", r.pending.len())
	}
}

func TestAdmin(t *testing.T) {
	r := newRig(t)
	where, err := r.StartAdmin(t.Context(), "contoso", "session-1")
	if err != nil {
		t.Fatal(err)
	}
	address, query, _ := strings.Cut(where, "?")
	q, _ := url.ParseQuery(query)
	if address != base+"/"+tenantID+"/v2.0/adminconsent" || q.Get("client_id") != clientID || q.Get("redirect_uri") != redirect ||
		q.Get("scope") != "https://outlook.office.com/SMTP.Send" {
		t.Errorf("got %s", where)
	}
	got, err := r.Finish(t.Context(), Callback{Session: "session-1", State: q.Get("state"), AdminConsent: true, Tenant: strings.ToUpper(tenantID)})
	if want := (Result{Tenant: "contoso", Admin: true}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if len(r.grants()) != 0 || len(r.entra.forms) != 0 {
		t.Error("an administrator's consent adopted a grant")
	}
	tests := []struct {
		name string
		cb   Callback
		rule string
	}{
		{"denied", Callback{Session: "session-1", Error: "access_denied", ErrorDescription: "AADSTS65004"}, "sign-in-declined"},
		{"another tenant", Callback{Session: "session-1", AdminConsent: true, Tenant: otherID}, "sign-in-tenant"},
		{"no tenant", Callback{Session: "session-1", AdminConsent: true}, "sign-in-tenant"},
		{"not consented", Callback{Session: "session-1", Tenant: tenantID}, "sign-in-malformed"},
		{"a code in its place", Callback{Session: "session-1", Code: codeCanary}, "sign-in-malformed"},
		{"another issuer", Callback{Session: "session-1", AdminConsent: true, Tenant: tenantID, Issuer: "https://evil.example"}, "sign-in-issuer"},
		{"foreign session", Callback{Session: "session-2", AdminConsent: true, Tenant: tenantID}, "sign-in-foreign"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			where, err := r.StartAdmin(t.Context(), "contoso", "session-1")
			if err != nil {
				t.Fatal(err)
			}
			tt.cb.State = r.sent(t, where).Get("state")
			_, err = r.Finish(t.Context(), tt.cb)
			wantRefusal(t, err, tt.rule)
		})
	}
	t.Run("the answer does for no sign-in", func(t *testing.T) {
		_, err := r.Finish(t.Context(), Callback{Session: "session-1", State: r.begin(t, ann()).Get("state"), AdminConsent: true, Tenant: tenantID})
		wantRefusal(t, err, "sign-in-malformed")
	})
	if _, err := r.StartAdmin(t.Context(), "fabrikam", "session-1"); err == nil {
		t.Error("an unknown tenant has an address")
	}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[string]seconds{`3600`: 3600, `"3600"`: 3600, `3599.9`: 3599, `-5`: 0, `null`: 0, `"x"`: 0, `1e99`: 86400, `"NaN"`: 0, `{}`: 0} {
		var got struct{ S seconds }
		if err := json.Unmarshal([]byte(`{"S":`+in+`}`), &got); err != nil || got.S != want {
			t.Errorf("%s: got %d, %v, want %d", in, got.S, err, want)
		}
	}
}

func TestGranted(t *testing.T) {
	tests := []struct {
		asked, given string
		want         bool
	}{
		{"https://outlook.office.com/SMTP.Send", "https://outlook.office.com/SMTP.Send", true},
		{"https://outlook.office.com/SMTP.Send offline_access", "openid https://outlook.office365.com/SMTP.Send", true},
		{"https://outlook.office.com/SMTP.Send", "https://outlook.office.com/SMTP.SendMore", false},
		{"https://outlook.office.com/SMTP.Send https://outlook.office.com/Other", "https://outlook.office.com/SMTP.Send", false},
		{"https://outlook.office365.com/.default", "https://outlook.office365.com/SMTP.Send", true},
		{"https://outlook.office365.com/.default", "https://outlook.office365.com/POP.AccessAsUser.All", false},
		{"SMTP.Send", "", true},
		{"SMTP.Send", "openid", false},
	}
	for _, tt := range tests {
		if got := granted(tt.asked, tt.given); got != tt.want {
			t.Errorf("asked %q, given %q: got %v, want %v", tt.asked, tt.given, got, tt.want)
		}
	}
}

// TestClientIsTamed has a client that would follow redirects and wait for ever.
func TestClientIsTamed(t *testing.T) {
	r := newRig(t)
	reg, err := r.Consents.registration("contoso")
	if err != nil {
		t.Fatal(err)
	}
	if reg.Client.Timeout == 0 || !errors.Is(reg.Client.CheckRedirect(nil, nil), http.ErrUseLastResponse) {
		t.Errorf("got %+v", reg.Client)
	}
}

func FuzzFinish(f *testing.F) {
	f.Add("session-1", "", codeCanary, "", "", "", false, "")
	f.Add("session-2", "STATE", codeCanary, base, "", "", false, "")
	f.Add("session-1", "STATE", "", "", "access_denied", "AADSTS65004: no", true, tenantID)
	f.Add("session-1", "STATE", "x", "", "invalid_request\x00", "AADSTS99999999999999999999 AADSTS AADSTS-1", false, otherID)
	f.Fuzz(func(t *testing.T, session, state, code, issuer, failure, description string, admin bool, tenant string) {
		r := newRig(t)
		q := r.begin(t, ann())
		genuine := state == "STATE"
		if genuine {
			state = q.Get("state")
		}
		_, err := r.Finish(context.Background(), Callback{Session: session, State: state, Code: code, Issuer: issuer, Error: failure,
			ErrorDescription: description, AdminConsent: admin, Tenant: tenant})
		good := genuine && session == "session-1" && code == codeCanary && failure == "" && (issuer == "" || issuer == base+"/"+tenantID+"/v2.0")
		if (err == nil) != good || len(r.grants()) > 0 != good {
			t.Errorf("got %v, adopted %d, good: %v", err, len(r.grants()), good)
		}
		if err == nil {
			return
		}
		e, ok := errors.AsType[*status.Error](err)
		if !ok || strings.ContainsAny(e.Text+e.Cause+e.Advice, "\r\n\x00<") {
			t.Fatalf("got %v", err)
		}
		if strings.Contains(fmt.Sprint(e, e.Cause, e.Advice, e.Err), q.Get("state")) {
			t.Errorf("%v holds the state", e)
		}
	})
}

// TestPrintedByMistake: what carries a code, a state or a session shows none of them.
func TestPrintedByMistake(t *testing.T) {
	for _, v := range []any{
		Callback{Session: "canary", State: "canary", Code: "canary", Error: "canary", ErrorDescription: "canary", Tenant: "canary"},
		Invitation{Code: "canary", Tenant: "contoso", Login: "ann@contoso.com"},
		Request{Session: "canary", Tenant: "contoso", Login: "ann@contoso.com"},
	} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			if got := fmt.Sprintf(format, v); got == "" || strings.Contains(got, "canary") {
				t.Errorf("%T by %s: got %s", v, format, got)
			}
		}
	}
}
