package directory

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"relayd/pkg/sandbox/directory/refusal"
)

func number(r *refusal.Refusal) int {
	if r == nil {
		return 0
	}
	return r.Number
}

// Who is a user, in a tenant that lists its users and in one that does not.
func TestUser(t *testing.T) {
	d := newTestDirectory(t)
	for _, tenant := range []Tenant{
		{ID: "any"},
		{ID: "domain", Mailboxes: []string{"app@b.c", "*@d.e"}},
		{ID: "exceptions", Mailboxes: []string{"*@b.c"}, Users: []User{{Mail: "gone@b.c", State: "disabled"}}},
		{ID: "listed", Mailboxes: []string{"*@b.c"}, Users: []User{{Mail: "Ann.b-Able@b.c"}, {Mail: "gone@b.c", State: "disabled"}}},
	} {
		if err := d.Add(tenant); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		tenant, mail string
		want         int
	}{
		{"any", "x@anywhere", 0}, {"any", "no address", 50034}, {"any", "", 50034},
		{"domain", "other@b.c", 0}, {"domain", "x@D.E", 0}, {"domain", "x@f.g", 50034},
		{"exceptions", "ann@b.c", 0}, {"exceptions", "gone@b.c", 0}, {"exceptions", "x@d.e", 50034},
		{"listed", "ann.B-able@b.c", 0}, {"listed", "bob@b.c", 50034},
	} {
		tenant, _ := d.Tenant(test.tenant)
		if _, refused := tenant.User(test.mail); number(refused) != test.want {
			t.Errorf("%s in %s: got %v", test.mail, test.tenant, refused)
		}
	}
	listed, _ := d.Tenant("listed")
	u, _ := listed.User("ann.b-able@b.c")
	if u.Name != "Ann B Able" || u.ObjectID == "" || u.Admin {
		t.Errorf("got %+v", u)
	}
	domain, _ := d.Tenant("domain")
	same, _ := domain.User("ANN@b.c")
	again, _ := domain.User("ann@b.c")
	if boss, _ := domain.User("admin@b.c"); same != again || !boss.Admin || same.Admin {
		t.Errorf("got %+v, %+v, %+v", same, again, boss)
	}
	if _, refused := d.User(&listed, "x@d.e"); number(refused) != 50020 {
		t.Errorf("of another tenant: got %v", refused)
	}
}

func TestStates(t *testing.T) {
	for state, want := range map[string]int{
		"": 0, "disabled": 50057, "unknown": 50034, "blocked": 53003, "mfa": 50076, "foreign": 50020, "50053": 50053,
	} {
		u := User{Mail: "a@b.c", State: state}
		tenant := Tenant{ID: "t"}
		if err := tenant.setUser(u); err != nil || number(u.Refused()) != want {
			t.Errorf("%q: got %v, %v", state, u.Refused(), err)
		}
	}
	tenant := Tenant{ID: "t"}
	for _, u := range []User{{Mail: "a@b.c", State: "1"}, {Mail: "a@b.c", State: "tired"}, {Mail: "a b"}, {}} {
		if err := tenant.setUser(u); err == nil {
			t.Errorf("%+v was taken", u)
		}
	}
	if len(States()) != 5 {
		t.Errorf("states %v", States())
	}
}

func TestAddRefuses(t *testing.T) {
	d := newTestDirectory(t)
	for want, tenant := range map[string]Tenant{
		"does not fit into a URL":                           {ID: "a/b"},
		"an app needs an id":                                {ID: "x", Apps: []App{{Secret: "s"}}},
		"app a needs a secret":                              {ID: "x", Apps: []App{{ID: "a"}}},
		`managed_identity "mine"`:                           {ID: "x", Apps: []App{{ID: "a", ManagedIdentity: "mine"}}},
		`redirect URI "http://relay.example/"`:              {ID: "x", Apps: []App{{ID: "a", Secret: "s", RedirectURIs: []string{"http://relay.example/"}}}},
		`redirect URI "https://relay.example/#x"`:           {ID: "x", Apps: []App{{ID: "a", Secret: "s", RedirectURIs: []string{"https://relay.example/#x"}}}},
		`redirect URI "javascript:alert(1)"`:                {ID: "x", Apps: []App{{ID: "a", Secret: "s", RedirectURIs: []string{"javascript:alert(1)"}}}},
		`user "nobody": mail is not an address`:             {ID: "x", Users: []User{{Mail: "nobody"}}},
		`tenant x: user a@b.c: state "tired" is not one of`: {ID: "x", Users: []User{{Mail: "a@b.c", State: "tired"}}},
	} {
		if err := d.Add(tenant); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if len(d.List()) != 1 {
		t.Errorf("%d tenants", len(d.List()))
	}
}

func TestRedirects(t *testing.T) {
	exact := App{RedirectURIs: []string{"https://relay.example/oauth/callback", "http://localhost:8080/"}}
	loopback := App{RedirectURIs: []string{AnyLoopback}}
	for _, test := range []struct {
		app  App
		uri  string
		want bool
	}{
		{exact, "https://relay.example/oauth/callback", true},
		{exact, "https://relay.example/oauth/callback/", false},
		{exact, "https://relay.example/oauth/Callback", false},
		{exact, "https://relay.example/oauth/callback?x=1", false},
		{exact, "http://localhost:8081/", false},
		{exact, "", false},
		{loopback, "http://127.0.0.1:8080/oauth/callback", true},
		{loopback, "http://[::1]:1/x", true},
		{loopback, "https://localhost/x", true},
		{loopback, "http://localhost.evil.example/x", false},
		{loopback, "http://127.0.0.1@evil.example/", false},
		{loopback, "http://evil.example/?127.0.0.1", false},
		{loopback, "javascript://localhost/%0aalert(1)", false},
		{loopback, "http://localhost/#x", false},
		{loopback, "*", false},
		{loopback, "", false},
		{App{}, "http://localhost/", false},
	} {
		if got := test.app.Redirects(test.uri); got != test.want {
			t.Errorf("%v to %q: got %v", test.app.RedirectURIs, test.uri, got)
		}
	}
}

func TestParseScopes(t *testing.T) {
	for scope, want := range map[string]string{
		"https://outlook.office.com/SMTP.Send offline_access openid profile email":  "{https://outlook.office.com [SMTP.Send] true true true true} 0",
		"https://outlook.office.com/smtp.send https://outlook.office.com/SMTP.Send": "{https://outlook.office.com [SMTP.Send] false false false false} 0",
		"https://Outlook.Office365.com/.default":                                    "{https://outlook.office365.com [SMTP.Send] false false false false} 0",
		"https://outlook.office.com//SMTP.Send":                                     "{https://outlook.office.com [SMTP.Send] false false false false} 0",
		"SMTP.Send":                                                                 "{https://graph.microsoft.com [SMTP.Send] false false false false} 0",
		"OpenID":                                                                    "{https://graph.microsoft.com [User.Read] true false false false} 0",
		"offline_access":                                                            "{ [] false false false true} 70011",
		"":                                                                          "{ [] false false false false} 70011",
		"https://outlook.office.com/SMTP.SendAsApp":                                 "{https://outlook.office.com [] false false false false} 650053",
		"https://other.example/x":                                                   "{ [] false false false false} 500011",
	} {
		s, refused := ParseScopes(scope)
		if got := fmt.Sprint(s, number(refused)); got != want {
			t.Errorf("%s: got %s, want %s", scope, got, want)
		}
	}
}

func FuzzParseScopes(f *testing.F) {
	f.Add("https://outlook.office.com/SMTP.Send offline_access")
	f.Add("User.Read / //")
	f.Fuzz(func(t *testing.T, scope string) {
		s, refused := ParseScopes(scope)
		if refused != nil {
			return
		}
		again, refused := ParseScopes(strings.Join(s.Names(), " "))
		if refused != nil || again.Resource != s.Resource || len(again.Permissions) != len(s.Permissions) {
			t.Errorf("%q became %v, which became %v, %v", scope, s, again, refused)
		}
	})
}

func FuzzRedirects(f *testing.F) {
	f.Add("http://127.0.0.1:8080/x")
	f.Add("http://localhost@evil.example")
	app := App{RedirectURIs: []string{AnyLoopback}}
	f.Fuzz(func(t *testing.T, uri string) {
		if app.Redirects(uri) && !strings.HasPrefix(strings.ToLower(uri), "http") {
			t.Errorf("a browser would be sent to %q", uri)
		}
	})
}

// A change is all or nothing, and those who hold the tenant do not see it.
func TestChange(t *testing.T) {
	d := newTestDirectory(t)
	before, _ := d.Tenant("t")
	if err := d.AddRedirectURI("T", "A", "https://x/y"); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("no")
	if err := d.Change("t", func(t *Tenant) error { t.Apps[0].Secret = "changed"; return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	for _, err := range []error{
		d.AddRedirectURI("t", "a", "http://x/y"), d.AddRedirectURI("t", "b", "https://x/y"), d.AddRedirectURI("u", "a", "https://x/y"),
		d.Consent("t", Consent{App: "b"}), d.RevokeUser("u", "a@b.c", true), d.RevokeUser("t", "no address", true),
		d.Change("t", func(t *Tenant) error { t.Apps[0].ID = ""; return nil }),
	} {
		if err == nil {
			t.Error("an impossible change was made")
		}
	}
	after, _ := d.Tenant("t")
	if len(before.Apps[0].RedirectURIs) != 0 || len(after.Apps[0].RedirectURIs) != 1 || after.Apps[0].Secret != "s" {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if err := d.RemoveRedirectURI("t", "a", "https://x/y"); err != nil {
		t.Fatal(err)
	}
	if err := d.SetSecret("t", App{ID: "a", Secret: "new", SecretExpires: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	after, _ = d.Tenant("t")
	if app := after.Apps[0]; len(app.RedirectURIs) != 0 || app.Secret != "new" || !app.SecretExpires.Equal(time.Unix(1, 0)) {
		t.Errorf("after %+v", app)
	}
}

func TestConsents(t *testing.T) {
	d := newTestDirectory(t)
	consented := func(user, scope string) bool {
		t.Helper()
		s, refused := ParseScopes(scope)
		if refused != nil {
			t.Fatal(refused)
		}
		tenant, _ := d.Tenant("t")
		return tenant.Consented("a", user, s)
	}
	const send, read = "https://outlook.office.com/SMTP.Send", "https://outlook.office.com/IMAP.AccessAsUser.All"
	give := func(user string, scopes ...string) {
		t.Helper()
		if err := d.Consent("t", Consent{App: "A", User: user, Scopes: scopes}); err != nil {
			t.Fatal(err)
		}
	}
	give("Ann@b.c", send)
	if !consented("ann@b.c", send) || !consented("ann@b.c", "https://outlook.office365.com/SMTP.Send") || consented("bob@b.c", send) ||
		consented("ann@b.c", send+" "+read) {
		t.Error("a user's consent is not what it says")
	}
	give("ann@b.c", read, send)
	if tenant, _ := d.Tenant("t"); !consented("ann@b.c", send+" "+read) || len(tenant.Consents) != 1 || len(tenant.Consents[0].Scopes) != 2 {
		t.Errorf("not joined: %+v", tenant.Consents)
	}
	give("", read)
	if !consented("bob@b.c", read) || consented("bob@b.c", send) {
		t.Error("everyone's consent is not what it says")
	}
	if !d.Withdraw("t", "a", "") || d.Withdraw("t", "a", "") || consented("bob@b.c", read) || !consented("ann@b.c", read) {
		t.Error("the wrong consent was withdrawn")
	}
}

func TestSetUser(t *testing.T) {
	d := newTestDirectory(t)
	set := func(u User) {
		t.Helper()
		if err := d.SetUser("t", u); err != nil {
			t.Fatal(err)
		}
	}
	tenant, _ := d.Tenant("t")
	before, _ := tenant.User("ann@b.c")
	set(User{Mail: "ann@b.c", Name: "Ann", ObjectID: "own"})
	set(User{Mail: "ANN@b.c", Name: "Anna"})
	tenant, _ = d.Tenant("t")
	if u, _ := tenant.User("ann@b.c"); u.Name != "Anna" || u.ObjectID != "own" || before.ObjectID == "own" || d.Epoch("own") != 0 {
		t.Errorf("got %+v", u)
	}
	if _, refused := tenant.User("bob@b.c"); refused != nil {
		t.Errorf("naming one user shut the others out: %v", refused)
	}
	set(User{Mail: "ann@b.c", Password: "x"})
	if d.Epoch("own") != 1 {
		t.Errorf("a reset password revoked nothing: %d", d.Epoch("own"))
	}
	if !d.RemoveUser("t", "Ann@b.c") || d.RemoveUser("t", "ann@b.c") || d.RemoveUser("u", "ann@b.c") {
		t.Error("not removed once")
	}
	if err := d.SetUser("u", User{Mail: "a@b.c"}); err == nil {
		t.Error("a tenant that is none got a user")
	}
}

// A user's token opens what the user may open, as long as the user is there.
func TestAuthorizeUser(t *testing.T) {
	d := newTestDirectory(t)
	tenant := Tenant{
		ID: "t", Mailboxes: []string{"*@b.c"}, Apps: []App{{ID: "a", Secret: "s", Mailboxes: []string{"none@b.c"}}},
		FullAccess: []Grant{{Login: "ann@b.c", As: "team@b.c"}, {Login: "ann@b.c", As: "far@d.e"}},
	}
	if err := d.Add(tenant); err != nil {
		t.Fatal(err)
	}
	tenant, _ = d.Tenant("t")
	ann, _ := tenant.User("ann@b.c")
	issue := func(scope string) string {
		t.Helper()
		s, refused := ParseScopes(scope)
		if refused != nil {
			t.Fatal(refused)
		}
		token, err := d.UserToken(tenant, tenant.Apps[0], ann, s, ACRNone, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	token := issue("https://outlook.office.com/SMTP.Send")
	check := func(token, login, want string) {
		t.Helper()
		got := ""
		if _, _, err := d.Authorize(token, login, time.Now()); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", login, got, want)
		}
	}
	check(token, "ANN@b.c", "")
	check(token, "team@b.c", "")
	check(token, "bob@b.c", "the user has no access to the mailbox")
	check(token, "far@d.e", "no such mailbox")
	check(issue("https://outlook.office365.com/SMTP.Send"), "ann@b.c", "")
	check(issue("https://outlook.office.com/IMAP.AccessAsUser.All"), "ann@b.c", "no permission SMTP.Send")
	check(issue("SMTP.Send"), "ann@b.c", "audience is https://graph.microsoft.com")
	if err := d.RevokeUser("t", "bob@b.c", true); err != nil {
		t.Fatal(err)
	}
	check(token, "ann@b.c", "")
	if err := d.SetUser("t", User{Mail: "ann@b.c", State: "disabled"}); err != nil {
		t.Fatal(err)
	}
	check(token, "ann@b.c", "the token's user is disabled")
	if err := d.SetUser("t", User{Mail: "ann@b.c", ObjectID: "another"}); err != nil {
		t.Fatal(err)
	}
	check(token, "ann@b.c", "the token's user is gone")
	if err := d.SetUser("t", ann); err != nil {
		t.Fatal(err)
	}
	check(token, "ann@b.c", "")
	if err := d.RevokeUser("t", "ann@b.c", true); err != nil {
		t.Fatal(err)
	}
	check(token, "ann@b.c", "revoked")
}
