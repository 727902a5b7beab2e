package identity

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// answering is a far end with one answer for everything but the keys.
type answering struct {
	status     int
	kind, body string
	err        error
	keys       io.Reader
}

func (a *answering) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.err != nil {
		return nil, a.err
	}
	body := io.Reader(strings.NewReader(a.body))
	if strings.HasSuffix(r.URL.Path, "/keys") {
		body = a.keys
	}
	return &http.Response{StatusCode: a.status, Header: http.Header{"Content-Type": {a.kind}}, Body: io.NopCloser(body), Request: r}, nil
}

// TestOneFaultIsEnough: metadata that is good but for one thing is none, for Issuer and for Verify.
func TestOneFaultIsEnough(t *testing.T) {
	const authority = "https://login.test"
	good := fmt.Sprintf(`{"issuer":"%s/%s/v2.0","jwks_uri":"%s/keys"}`, authority, tenantID, authority)
	tests := map[string]struct {
		answer answering
		good   bool
	}{
		"good":                   {answering{status: 200, kind: "application/json", body: good}, true},
		"with a charset":         {answering{status: 200, kind: "application/json; charset=utf-8", body: good}, true},
		"an error's status":      {answering{status: 404, kind: "application/json", body: good}, false},
		"another 2xx":            {answering{status: 203, kind: "application/json", body: good}, false},
		"a page":                 {answering{status: 200, kind: "text/html", body: good}, false},
		"no type":                {answering{status: 200, body: good}, false},
		"cut short":              {answering{status: 200, kind: "application/json", body: good[:len(good)-1]}, false},
		"more than a megabyte":   {answering{status: 200, kind: "application/json", body: good[:1] + strings.Repeat(" ", maxBody) + good[1:]}, false},
		"not reached":            {answering{err: errors.New("connection refused")}, false},
		"an issuer without host": {answering{status: 200, kind: "application/json", body: strings.Replace(good, authority, "", 1)}, false},
		"an issuer with query":   {answering{status: 200, kind: "application/json", body: strings.Replace(good, authority, authority+"/?x=", 1)}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tenant := Tenant{Authority: authority, ID: tenantID, Client: &http.Client{Transport: &tt.answer}}
			issuer, err := New().Issuer(t.Context(), tenant)
			if (err == nil) != tt.good || tt.good && issuer.TenantID != tenantID {
				t.Errorf("got %+v, %v", issuer, err)
			}
			if tt.good {
				return
			}
			if user, err := New().Verify(t.Context(), tenant, clientID, "n", "a.b.c"); err == nil || errors.Is(err, ErrToken) {
				t.Errorf("got %v, %v, want that it could not be asked", user, err)
			}
		})
	}
}

// endless never ends, and counts what was read of it.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read += len(p)
	return len(p), nil
}

// TestEndlessKeys: keys are read no further than metadata is.
func TestEndlessKeys(t *testing.T) {
	e, _ := serve(t)
	raw := e.sign(t, e.claims(nil))
	keys := new(endless)
	far := &answering{status: 200, kind: "application/json", keys: keys,
		body: fmt.Sprintf(`{"issuer":"%s/%s/v2.0","jwks_uri":"https://login.test/keys"}`, "https://login.test", tenantID)}
	tenant := Tenant{Authority: "https://login.test", ID: tenantID, Client: &http.Client{Transport: far}}
	if _, err := New().Verify(t.Context(), tenant, clientID, "n0nce", raw); err == nil || errors.Is(err, ErrToken) {
		t.Errorf("got %v, want that the keys could not be had", err)
	}
	if keys.read > 2*maxBody {
		t.Errorf("%d octets were read", keys.read)
	}
}

// TestClientIsBounded: whatever client is given, none waits for ever.
func TestClientIsBounded(t *testing.T) {
	for _, c := range []*http.Client{nil, {}} {
		if b := bounded(c); b.Timeout <= 0 || b.CheckRedirect == nil {
			t.Errorf("got %+v", b)
		}
	}
	if b := bounded(&http.Client{Timeout: time.Second}); b.Timeout != time.Second {
		t.Errorf("got %v", b.Timeout)
	}
}

// TestBlankNames: a claim of blanks is no name.
func TestBlankNames(t *testing.T) {
	if u := (&claims{Preferred: "  ", Email: "ann@contoso.com"}).user(); u.Name != "ann@contoso.com" || len(u.Addresses) != 1 {
		t.Errorf("got %+v", u)
	}
}
