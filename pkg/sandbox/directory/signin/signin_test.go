package signin

import (
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/directory/ticket"
	"relayd/pkg/sandbox/fault"
)

const home = "https://relay.example/oauth/callback"

func newTestPages(t testing.TB) (*directory.Directory, *ticket.Store, *http.ServeMux) {
	t.Helper()
	dir, err := directory.New(directory.Options{
		Tenants: []directory.Tenant{{
			ID: "t", Mailboxes: []string{"*@b.c", "shared@b.c"},
			Apps:  []directory.App{{ID: "a", Secret: "s", RedirectURIs: []string{home}}},
			Users: []directory.User{{Mail: "gone@b.c", State: "disabled"}},
		}},
		Faults: &fault.List{}, Authority: func() string { return "https://x" }, Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	tickets := ticket.New(ticket.Options{})
	mux := http.NewServeMux()
	pages, err := New(dir, tickets)
	if err != nil {
		t.Fatal(err)
	}
	pages.Routes(mux)
	return dir, tickets, mux
}

func query() url.Values {
	return url.Values{
		"client_id": {"a"}, "response_type": {"code"}, "redirect_uri": {home}, "scope": {"https://outlook.office.com/SMTP.Send"}, "state": {"s"},
	}
}

func post(path string, fields url.Values, cookies ...*http.Cookie) *http.Request {
	r := httptest.NewRequest("POST", path, strings.NewReader(fields.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, c := range cookies {
		r.AddCookie(c)
	}
	return r
}

func serve(mux *http.ServeMux, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w
}

// A form on another site signs nobody in and consents to nothing, and the cookie is out of scripts' reach.
func TestOtherSites(t *testing.T) {
	_, _, mux := newTestPages(t)
	path := "/t/oauth2/v2.0/authorize?" + query().Encode()
	fields := url.Values{"loginfmt": {"ann@b.c"}, "passwd": {"x"}}
	w := serve(mux, post(path, fields))
	cookies := w.Result().Cookies()
	if w.Code != 200 || len(cookies) != 1 || !cookies[0].HttpOnly || cookies[0].SameSite != http.SameSiteLaxMode {
		t.Fatalf("%d, %v", w.Code, cookies)
	}
	for _, fields := range []url.Values{fields, {"ucaccept": {"1"}, "account": {"ann@b.c"}}} {
		r := post(path, fields, cookies...)
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		if w := serve(mux, r); w.Code != 403 || w.Header().Get("Location") != "" {
			t.Errorf("%v: got %d", fields, w.Code)
		}
	}
	if w := serve(mux, post(path, url.Values{"ucaccept": {"1"}, "account": {"ann@b.c"}}, cookies...)); w.Code != 302 {
		t.Errorf("of this site: got %d", w.Code)
	}
}

// A session ends with the user's grants, the user, and the day.
func TestSessionAfterChanges(t *testing.T) {
	dir, _, mux := newTestPages(t)
	path := "/t/oauth2/v2.0/authorize?" + query().Encode()
	for name, change := range map[string]func() error{
		"revoked": func() error { return dir.RevokeUser("t", "ann@b.c", false) },
		"another": func() error { return dir.SetUser("t", directory.User{Mail: "ann@b.c", ObjectID: "other"}) },
		"deleted": func() error {
			return dir.Change("t", func(t *directory.Tenant) error { t.Mailboxes = []string{"*@d.e"}; t.Users = nil; return nil })
		},
	} {
		if err := dir.Change("t", func(t *directory.Tenant) error { t.Users, t.Mailboxes = nil, nil; return nil }); err != nil {
			t.Fatal(err)
		}
		cookies := serve(mux, post(path, url.Values{"loginfmt": {"ann@b.c"}, "passwd": {"x"}})).Result().Cookies()
		if err := change(); err != nil {
			t.Fatal(err)
		}
		w := serve(mux, post(path, url.Values{"ucaccept": {"1"}, "account": {"ann@b.c"}}, cookies...))
		if w.Code != 200 || !strings.Contains(w.Body.String(), `data-page="account"`) {
			t.Errorf("%s: got %d\n%s", name, w.Code, w.Body)
		}
	}
}

// Disabled after sign-in: told on the page, or to an app that wants no page.
func TestRefusedAfterSignIn(t *testing.T) {
	dir, _, mux := newTestPages(t)
	q := query()
	path := "/t/oauth2/v2.0/authorize?" + q.Encode()
	cookies := serve(mux, post(path, url.Values{"loginfmt": {"ann@b.c"}, "passwd": {"x"}})).Result().Cookies()
	if err := dir.SetUser("t", directory.User{Mail: "ann@b.c", State: "blocked"}); err != nil {
		t.Fatal(err)
	}
	get := func(path string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", path, nil)
		r.AddCookie(cookies[0])
		return serve(mux, r)
	}
	if w := get(path); !strings.Contains(w.Body.String(), "AADSTS53003") {
		t.Errorf("got %d\n%s", w.Code, w.Body)
	}
	for _, test := range []*httptest.ResponseRecorder{
		get(path + "&prompt=none"), serve(mux, post(path, url.Values{"ucaccept": {"1"}, "account": {"ann@b.c"}}, cookies...)),
	} {
		if to := test.Header().Get("Location"); !strings.Contains(to, "AADSTS53003") || strings.Contains(to, "code=") {
			t.Errorf("sent to %s", to)
		}
	}
}

func TestRedirectCode(t *testing.T) {
	for number, want := range map[int]string{
		65001: "consent_required", 50076: "interaction_required", 50079: "interaction_required", 53003: "access_denied",
		65004: "access_denied", 9002313: "invalid_request", 650053: "invalid_request", 90033: "temporarily_unavailable",
	} {
		if got := redirectCode(refusal.New(number).Tell(refusal.About{})); got != want {
			t.Errorf("AADSTS%d: got %s, want %s", number, got, want)
		}
	}
}

// The style sheet is there, and no page has a style or script of its own.
func TestPagesAreStrict(t *testing.T) {
	_, _, mux := newTestPages(t)
	if w := serve(mux, httptest.NewRequest("GET", "/sandbox/sign-in.css", nil)); w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/css") {
		t.Errorf("style sheet: %d %v", w.Code, w.Header())
	}
	entries, err := files.ReadDir("pages")
	if err != nil || len(entries) < 10 {
		t.Fatalf("%d pages, %v", len(entries), err)
	}
	for _, e := range entries {
		text, err := files.ReadFile("pages/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"<script", "<style", " style=", " onclick=", "javascript:"} {
			if strings.Contains(strings.ToLower(string(text)), bad) {
				t.Errorf("%s has %s", e.Name(), bad)
			}
		}
	}
}

// Whatever is asked or posted, the pages answer, escape, and send nobody anywhere but home.
func FuzzAuthorize(f *testing.F) {
	_, _, mux := newTestPages(f)
	f.Add(query().Encode(), "")
	f.Add(query().Encode(), "loginfmt=ann%40b.c&passwd=x")
	f.Add(query().Encode()+"&prompt=none", "ucaccept=1&account=ann%40b.c")
	f.Add("client_id=a&redirect_uri=https://evil.example/", "loginfmt=<script>")
	f.Add(query().Encode()+"&login_hint=%22%3E%3Cscript%3E", "back=1&loginfmt=%3Cscript%3E")
	f.Fuzz(func(t *testing.T, rawQuery, body string) {
		for _, path := range []string{"/t/oauth2/v2.0/authorize", "/t/v2.0/adminconsent", "/devicelogin", "/t/oauth2/v2.0/logout"} {
			r := httptest.NewRequest("GET", path, nil)
			if body != "" && path != "/t/oauth2/v2.0/logout" {
				r = httptest.NewRequest("POST", path, strings.NewReader(body))
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			r.URL.RawQuery = rawQuery
			w := serve(mux, r)
			if w.Code >= 500 {
				t.Fatalf("%s?%s, %s: %d", path, rawQuery, body, w.Code)
			}
			if to := w.Header().Get("Location"); to != "" && !strings.HasPrefix(to, home) {
				t.Fatalf("%s?%s, %s: sent to %s", path, rawQuery, body, to)
			}
			if strings.Contains(strings.ToLower(w.Body.String()), "<script") {
				t.Fatalf("%s?%s, %s: a script in\n%s", path, rawQuery, body, w.Body)
			}
		}
	})
}

// A device's code from the address is only filled in, and what is shown is escaped.
func TestDevicePage(t *testing.T) {
	dir, tickets, mux := newTestPages(t)
	w := serve(mux, httptest.NewRequest("GET", "/devicelogin?otc="+url.QueryEscape(`"><b>`), nil))
	if body := w.Body.String(); strings.Contains(body, "<b>") || !strings.Contains(html.UnescapeString(body), `value=""><b>"`) {
		t.Errorf("got\n%s", body)
	}
	_, userCode, _ := tickets.NewDevice(ticket.Subject{Tenant: "t", App: "a", Scope: "openid"})
	dashed := url.Values{"otc": {" " + userCode[:4] + "-" + strings.ToLower(userCode[4:]) + " "}}
	if w := serve(mux, post("/devicelogin", dashed)); !strings.Contains(w.Body.String(), `name="otc" value="`+userCode+`"`) {
		t.Errorf("got\n%s", w.Body)
	}
	if err := dir.Change("t", func(t *directory.Tenant) error { t.Apps[0].ID = "renamed"; return nil }); err != nil {
		t.Fatal(err)
	}
	if w := serve(mux, post("/devicelogin", dashed)); w.Code != 400 || !strings.Contains(w.Body.String(), "AADSTS700016") {
		t.Errorf("got %d\n%s", w.Code, w.Body)
	}
}
