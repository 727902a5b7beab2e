package endpoint

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/ticket"
	"relayd/pkg/sandbox/fault"
)

func newTestEndpoint(t testing.TB) *Endpoint {
	t.Helper()
	dir, err := directory.New(directory.Options{
		Tenants: []directory.Tenant{{ID: "t", Apps: []directory.App{{ID: "a", Secret: "s"}, {ID: "p", Public: true}}}},
		Faults:  &fault.List{}, Authority: func() string { return "https://x" }, Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Directory: dir, Tickets: ticket.New(ticket.Options{})})
}

// send posts a form to an endpoint of tenant t and returns status and answer.
func (e *Endpoint) send(t testing.TB, endpoint, form string) (int, map[string]any) {
	t.Helper()
	mux := http.NewServeMux()
	e.Routes(mux)
	r := httptest.NewRequest("POST", "/t/oauth2/v2.0/"+endpoint, strings.NewReader(form))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatalf("%q: %d %s: %v", form, w.Code, w.Body, err)
	}
	return w.Code, answer
}

// A repeated field is none (RFC 6749, 3.2).
func TestRepeatedFields(t *testing.T) {
	e := newTestEndpoint(t)
	const good = "grant_type=client_credentials&client_id=a&client_secret=s&scope=https://outlook.office365.com/.default"
	if status, a := e.send(t, "token", good); status != 200 {
		t.Fatalf("%d %v", status, a)
	}
	for field, number := range map[string]int{"grant_type=x": 900144, "client_id=a": 900144, "client_secret=s": 7000218, "scope=x": 70011} {
		if _, a := e.send(t, "token", good+"&"+field); fmt.Sprint(a["error_codes"]) != fmt.Sprint([]float64{float64(number)}) {
			t.Errorf("%s twice: %v", field, a)
		}
	}
	if _, a := e.send(t, "token", good+"&%zz"); a["error"] != "invalid_request" {
		t.Errorf("a broken form: %v", a)
	}
	if c := e.Counts(); c.Requests["client_credentials"] != 4 || c.Requests["other"] != 1 || c.Granted["client_credentials"] != 1 {
		t.Errorf("counted %+v", c)
	}
}

// An assertion's id is remembered as long as the assertion could be used, and not for ever.
func TestFirstUse(t *testing.T) {
	e := newTestEndpoint(t)
	synctest.Test(t, func(t *testing.T) {
		soon := time.Now().Add(time.Minute)
		for i := range 10_000 {
			if !e.firstUse(fmt.Sprint(i), soon) || e.firstUse(fmt.Sprint(i), soon) {
				t.Fatalf("%d was not taken once", i)
			}
		}
		<-time.After(30 * time.Minute)
		if e.firstUse("0", soon) {
			t.Error("forgotten too soon")
		}
		<-time.After(2 * time.Hour)
		if !e.firstUse("new", soon) || len(e.assertions) != 1 {
			t.Errorf("%d are remembered", len(e.assertions))
		}
	})
}

func TestNarrowed(t *testing.T) {
	for _, test := range []struct{ granted, asked, want string }{
		{"x/a openid", "", "x/a openid"},
		{"x/a openid offline_access", "x/b", "x/b openid offline_access"},
		{"x/a", "x/b", "x/b"},
	} {
		if got := narrowed(test.granted, test.asked); got != test.want {
			t.Errorf("%s of %s: got %s", test.asked, test.granted, got)
		}
	}
}

// Plain is allowed, and meant where no method is named (RFC 7636, 4.3).
func TestCheckVerifier(t *testing.T) {
	for _, test := range []struct {
		challenge, method, verifier string
		want                        int
	}{
		{"", "", "", 0}, {"", "", "any", 0}, {"v", "plain", "v", 0}, {"v", "", "v", 0}, {"v", "plain", "w", 501481}, {"v", "plain", "", 50148},
		{"v", "S256", "v", 501481}, {"TJQJhgsA91N3nwsEqWYe6nzYbKXZd4jiX7LO5F39TVo", "S256", "v", 501481},
	} {
		got := 0
		if refused := checkVerifier(ticket.Code{Challenge: test.challenge, Method: test.method}, test.verifier); refused != nil {
			got = refused.Number
		}
		if got != test.want {
			t.Errorf("%+v: got %d", test, got)
		}
	}
}

// Nothing that is sent breaks the endpoints, and nobody gets a token without proof.
func FuzzToken(f *testing.F) {
	e := newTestEndpoint(f)
	for _, seed := range []string{
		"grant_type=client_credentials&client_id=a&client_secret=x&scope=x",
		"grant_type=authorization_code&client_id=p&code=x&redirect_uri=x&code_verifier=x", "grant_type=refresh_token&client_id=p&refresh_token=x",
		"grant_type=urn:ietf:params:oauth:grant-type:device_code&client_id=p&device_code=x", "client_id=p&scope=openid",
		"grant_type=client_credentials&client_id=a&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer&client_assertion=e30.e30.",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, form string) {
		if strings.Contains(form, "client_secret=s") {
			return
		}
		if status, a := e.send(t, "token", form); status == 200 || status >= 500 && status != 503 || a["error"] == "" {
			t.Errorf("%q: %d %v", form, status, a)
		}
		if status, a := e.send(t, "devicecode", form); status >= 500 || status == 200 && a["user_code"] == "" {
			t.Errorf("%q: %d %v", form, status, a)
		}
	})
}
