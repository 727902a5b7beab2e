package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/fault"
)

type rig struct {
	t   testing.TB
	dir *directory.Directory
	mux *http.ServeMux
}

func newRig(t testing.TB) rig {
	t.Helper()
	dir, err := directory.New(directory.Options{
		Tenants: []directory.Tenant{
			{ID: "one", Apps: []directory.App{{ID: "a", Secret: "s"}, {ID: "b", Secret: "s"}}}, {ID: "two"},
		},
		Faults: &fault.List{}, Authority: func() string { return "https://x" }, Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	New(dir).Routes(mux)
	return rig{t, dir, mux}
}

// do sends a request and checks the status; the answer is the body.
func (r rig) do(line, body string, status int) string {
	r.t.Helper()
	method, path, _ := strings.Cut(line, " ")
	w := httptest.NewRecorder()
	r.mux.ServeHTTP(w, httptest.NewRequest(method, "/sandbox/"+path, strings.NewReader(body)))
	if w.Code != status {
		r.t.Fatalf("%s %s: got %d %s, want %d", line, body, w.Code, w.Body, status)
	}
	return strings.TrimSpace(w.Body.String())
}

// Each list is what was put into it, and nothing is null.
func TestLists(t *testing.T) {
	r := newRig(t)
	for path, want := range map[string]string{
		"users": "[]", "consents": "[]", "redirect-uris": "[]", "grants": `{"full_access":[],"send_as":[]}`, "redirect-uris?app=nobody": "[]",
	} {
		if got := r.do("GET "+path, "", 200); got != want {
			t.Errorf("%s: got %s", path, got)
		}
	}
	r.do("POST users", `{"mail":"ann@b.c","name":"Ann","admin":true}`, 204)
	r.do("POST users", `{"tenant":"two","mail":"bob@b.c"}`, 204)
	r.do("POST grants", `{"login":"ann@b.c","as":"x@b.c"}`, 204)
	r.do("PUT grants", `{"login":"ANN@b.c","as":"x@b.c"}`, 204)
	r.do("POST grants", `{"login":"ann@b.c","as":"y@b.c","right":"full-access"}`, 204)
	r.do("POST consents", `{"user":"ann@b.c"}`, 204)
	r.do("POST consents", `{"app":"b","scopes":["x/y"]}`, 204)
	r.do("POST redirect-uris", `{"app":"b","uri":"https://x/cb"}`, 204)
	r.do("POST redirect-uris", `{"app":"b","uri":"https://x/cb"}`, 204)
	for path, want := range map[string]string{
		"consents":                       `[{"app":"a","user":"ann@b.c","scopes":["https://outlook.office.com/SMTP.Send"]},{"app":"b","scopes":["x/y"]}]`,
		"grants":                         `{"full_access":[{"login":"ann@b.c","as":"y@b.c"}],"send_as":[{"login":"ANN@b.c","as":"x@b.c"}]}`,
		"redirect-uris?app=b&tenant=ONE": `["https://x/cb"]`,
	} {
		if got := r.do("GET "+path, "", 200); got != want {
			t.Errorf("%s: got %s", path, got)
		}
	}
	if got := r.do("GET users?tenant=two", "", 200); !strings.Contains(got, `"bob@b.c"`) || strings.Contains(got, "ann@b.c") {
		t.Errorf("users of two: %s", got)
	}
	var tenants []directory.Tenant
	if err := json.Unmarshal([]byte(r.do("GET tenants", "", 200)), &tenants); err != nil || len(tenants) != 2 || tenants[0].Apps[0].Secret != "s" {
		t.Errorf("got %+v, %v", tenants, err)
	}

	r.do("DELETE users?mail=ann@b.c", "", 204)
	r.do("DELETE users?mail=ann@b.c", "", 404)
	r.do("DELETE grants", `{"login":"ann@b.c","as":"x@b.c"}`, 204)
	r.do("DELETE grants?login=ann@b.c&as=x@b.c", "", 404)
	r.do("DELETE grants?login=ann@b.c&as=y@b.c&right=full-access", "", 204)
	r.do("DELETE consents?user=ann@b.c", "", 204)
	r.do("DELETE consents?user=ann@b.c", "", 404)
	r.do("DELETE redirect-uris?app=b&uri=https://x/cb", "", 204)
	tenant := r.dir.List()[0]
	if fmt.Sprint(tenant.Users, tenant.SendAs, tenant.FullAccess, tenant.Apps[1].RedirectURIs) != "[] [] [] []" || len(tenant.Consents) != 1 {
		t.Errorf("left: %+v", tenant)
	}
}

func TestRefuses(t *testing.T) {
	r := newRig(t)
	for _, test := range []struct{ line, body, want string }{
		{"POST users", `{"mail":"nobody"}`, "mail is not an address"},
		{"POST users", `{"mail":"a@b.c","role":"x"}`, "unknown field"},
		{"POST users", `{`, "read the request"},
		{"POST users", `{"tenant":"three","mail":"a@b.c"}`, "no tenant"},
		{"GET users?tenant=three", "", "no tenant"},
		{"POST grants", `{"login":"a@b.c"}`, "a grant needs login and as"},
		{"POST grants", `{"login":"a@b.c","as":"b@b.c","right":"all"}`, "is not send-as or full-access"},
		{"POST consents", `{"app":"c"}`, "no app"},
		{"POST redirect-uris", `{"uri":"http://relay.example/"}`, "is not https"},
		{"POST secrets", `{"app":"c"}`, "no app"},
		{"POST revoke", `{"user":"no address"}`, "no user"},
		{"POST revoke?tenant=three", "", "no tenant"},
	} {
		if got := r.do(test.line, test.body, 400); !strings.Contains(got, test.want) {
			t.Errorf("%s %s: got %s, want %s", test.line, test.body, got, test.want)
		}
	}
}

func TestSecrets(t *testing.T) {
	r := newRig(t)
	var answer struct{ Tenant, App, Secret string }
	if err := json.Unmarshal([]byte(r.do("POST secrets", "", 200)), &answer); err != nil {
		t.Fatal(err)
	}
	if app := r.dir.List()[0].Apps[0]; answer.Tenant != "one" || answer.App != "a" || len(answer.Secret) != 40 || app.Secret != answer.Secret {
		t.Errorf("got %+v for %+v", answer, app)
	}
	r.do("POST secrets", `{"app":"b","secret":"mine","expires":"2026-01-02T03:04:05Z"}`, 200)
	if app := r.dir.List()[0].Apps[1]; app.Secret != "mine" || app.SecretExpires.Year() != 2026 {
		t.Errorf("got %+v", app)
	}
}

func TestRevokeAndPolicy(t *testing.T) {
	r := newRig(t)
	tenant := r.dir.List()[0]
	ann, refused := tenant.User("ann@b.c")
	if refused != nil {
		t.Fatal(refused)
	}
	r.do("POST revoke", "", 204)
	if r.dir.Epoch(ann.ObjectID) != 0 {
		t.Error("access tokens only, and a grant went")
	}
	r.do("POST revoke?user=ann@b.c&access=true", "", 204)
	if r.dir.Epoch(ann.ObjectID) != 1 {
		t.Error("nothing was revoked")
	}
	r.do("POST admin-consent-required", `{"required":true}`, 204)
	if !r.dir.List()[0].AdminConsentRequired || r.dir.List()[1].AdminConsentRequired {
		t.Error("the wrong tenant, or none")
	}
	r.do("POST admin-consent-required", `{"required":false}`, 204)
	if r.dir.List()[0].AdminConsentRequired {
		t.Error("still required")
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("users", `{"mail":"a@b.c"}`)
	f.Add("grants?login=a", `{"as":1}`)
	f.Add("revoke", `{"user":"a@b.c","access":true}`)
	r := newRig(f)
	f.Fuzz(func(t *testing.T, path, body string) {
		request, err := http.NewRequest("POST", "http://x/sandbox/"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		r.mux.ServeHTTP(w, request)
		if w.Code >= 500 {
			t.Errorf("%s %s: got %d", path, body, w.Code)
		}
	})
}
