package directory

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/fault"
)

func newTestDirectory(t testing.TB) *Directory {
	t.Helper()
	d, err := New(Options{
		Tenants: []Tenant{{ID: "t", Apps: []App{{ID: "a", Secret: "s"}}, SendAs: []Grant{{Login: "*@b.c", As: "x@b.c"}}}},
		Faults:  &fault.List{}, Authority: func() string { return "https://x" }, Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A token with one thing wrong is refused for that thing, although its signature is good.
func TestVerify(t *testing.T) {
	d := newTestDirectory(t)
	now := time.Now()
	good := claims{
		Audience: exchangeAudience, Issuer: issuer("t"), TenantID: "t", AppID: "a", Roles: []string{"x", sendRole},
		NotBefore: now.Unix(), Expires: now.Unix() + 60, UTI: "1",
	}
	for _, test := range []struct {
		name   string
		change func(*claims)
		want   string
	}{
		{"good", func(*claims) {}, ""},
		{"audience", func(c *claims) { c.Audience = "https://graph.microsoft.com" }, "audience is https://graph.microsoft.com"},
		{"issuer", func(c *claims) { c.Issuer = issuer("u") }, "issuer is not the tenant's"},
		{"expired", func(c *claims) { c.Expires = now.Unix() }, "expired"},
		{"early", func(c *claims) { c.NotBefore = now.Unix() + 1 }, "not valid yet"},
		{"role", func(c *claims) { c.Roles = []string{"Mail.Send"} }, "no role SMTP.SendAsApp"},
		{"revoked", func(c *claims) { c.UTI = "0" }, "revoked"},
		{"no number", func(c *claims) { c.UTI = "x" }, "no token number"},
	} {
		c := good
		test.change(&c)
		token, err := d.sign(c)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if _, err := d.verify(token, now); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestVerifyForgery(t *testing.T) {
	d, other := newTestDirectory(t), newTestDirectory(t)
	token, err := d.Token("t", "a", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Token("t", "a", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	header := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for name, forged := range map[string]string{
		"another key":      foreign,
		"another's claims": parts[0] + "." + strings.Split(foreign, ".")[1] + "." + parts[2],
		"alg none":         header(`{"alg":"none","kid":"`+d.kid+`"}`) + "." + parts[1] + ".",
		"alg HS256":        header(`{"alg":"HS256","kid":"`+d.kid+`"}`) + "." + parts[1] + "." + parts[2],
		"padded":           token + "=",
		"four parts":       token + ".x",
		"empty":            "",
	} {
		if _, err := d.verify(forged, time.Now()); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := d.verify(token, time.Now()); err != nil {
		t.Errorf("the genuine one: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	d := newTestDirectory(f)
	token, err := d.Token("t", "a", time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a.b.c")
	f.Add(token[:len(token)-1])
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","kid":"`+d.kid+`"}`)) + ".e30.e30")
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := d.verify(s, time.Now()); err == nil && s != token {
			t.Errorf("%q was accepted", s)
		}
	})
}

func TestAuthorizeAfterChanges(t *testing.T) {
	d := newTestDirectory(t)
	token, err := d.Token("t", "a", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	allowed := func() bool {
		_, _, err := d.Authorize(token, "m@b.c", time.Now())
		return err == nil
	}
	if !allowed() {
		t.Fatal("refused at first")
	}
	for name, tenant := range map[string]Tenant{
		"the app is gone":             {ID: "t"},
		"another service principal":   {ID: "T", Apps: []App{{ID: "a", Secret: "s", ObjectID: "o"}}},
		"the mailbox is gone":         {ID: "t", Mailboxes: []string{"n@b.c"}, Apps: []App{{ID: "a", Secret: "s"}}},
		"the app has no access to it": {ID: "t", Apps: []App{{ID: "a", Secret: "s", Mailboxes: []string{"n@b.c"}}}},
	} {
		if err := d.Add(tenant); err != nil {
			t.Fatal(err)
		}
		if allowed() {
			t.Errorf("%s, and it is let in", name)
		}
	}
	if len(d.List()) != 1 {
		t.Errorf("one tenant became %d", len(d.List()))
	}
}

func TestMaySendAs(t *testing.T) {
	tenant := Tenant{SendAs: []Grant{{Login: "*@b.c", As: "x@b.c"}, {Login: "root@b.c", As: "*"}}}
	for _, test := range []struct {
		login, as string
		want      bool
	}{
		{"a@b.c", "X@b.c", true}, {"a@b.c", "y@b.c", false}, {"a@d.c", "x@b.c", false}, {"root@b.c", "any@where", true},
	} {
		if got := tenant.MaySendAs(test.login, test.as); got != test.want {
			t.Errorf("%s as %s: got %v", test.login, test.as, got)
		}
	}
}
