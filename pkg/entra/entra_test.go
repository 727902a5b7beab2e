package entra

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const canary = `s3cr3t~"with <odd> & parts`

// endpoint is a scripted token endpoint reached through in-memory connections, so that it lives on fake time.
type endpoint struct {
	conns chan net.Conn

	mu       sync.Mutex
	requests []url.Values
	headers  []http.Header
	paths    []string
	answer   func(n int, w http.ResponseWriter) // n: which request, from 1
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	e.mu.Lock()
	e.requests = append(e.requests, r.PostForm)
	e.headers = append(e.headers, r.Header)
	e.paths = append(e.paths, r.Method+" "+r.Host+r.URL.Path)
	n, answer := len(e.requests), e.answer
	e.mu.Unlock()
	answer(n, w)
}

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.requests)
}

func (e *endpoint) Accept() (net.Conn, error) {
	c, ok := <-e.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (e *endpoint) Close() error   { return nil }
func (e *endpoint) Addr() net.Addr { return &net.TCPAddr{} }

func (e *endpoint) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case e.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// numbered answers with token-1, token-2, …, each good for an hour.
func numbered(n int, w http.ResponseWriter) { give(w, fmt.Sprintf("token-%d", n), "3600") }

func give(w http.ResponseWriter, token, expiresIn string) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token_type":"Bearer","expires_in":%s,"access_token":%q}`, expiresIn, token)
}

func refuse(w http.ResponseWriter, code int, name, codes string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"error":%q,"error_description":"AADSTS: said so","error_codes":[%s]}`, name, codes)
}

type rig struct {
	*Tokens
	*endpoint
	registry *prometheus.Registry
	logs     *observer.ObservedLogs
}

// within runs f on fake time with one tenant, contoso, before the given endpoint.
func within(t *testing.T, answer func(n int, w http.ResponseWriter), f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{conns: make(chan net.Conn), answer: answer}
		server := &http.Server{Handler: e}
		go func() { _ = server.Serve(e) }()
		core, logs := observer.New(zap.DebugLevel)
		registry := prometheus.NewRegistry()
		tokens, err := New(Options{Tenants: map[string]Tenant{"contoso": contoso()}, Dial: e.dial,
			Logger: zap.New(core), Registerer: registry})
		if err != nil {
			t.Fatal(err)
		}
		f(t, &rig{tokens, e, registry, logs})
		tokens.Close()
		close(e.conns)
		_ = server.Close()
		advance(2 * time.Hour) // handlers that dawdle
	})
}

func contoso() Tenant {
	return Tenant{TenantID: "0000-aaaa", ClientID: "app", Authority: "http://127.0.0.1:1/base/",
		Secret: func() (string, error) { return canary, nil }}
}

func (r *rig) token(t *testing.T, refused string) string {
	t.Helper()
	tok, err := r.Token(t.Context(), "contoso", "a@contoso.com", refused)
	if err != nil {
		t.Fatalf("token: %v (%v)", err, errors.Unwrap(err))
	}
	return tok
}

func (r *rig) refusal(t *testing.T) *status.Error {
	t.Helper()
	tok, err := r.Token(t.Context(), "contoso", "a@contoso.com", "")
	e, ok := errors.AsType[*status.Error](err)
	if !ok {
		t.Fatalf("got token %q, error %v, want a status.Error", tok, err)
	}
	return e
}

func TestRequest(t *testing.T) {
	within(t, numbered, func(t *testing.T, r *rig) {
		if got := r.token(t, ""); got != "token-1" {
			t.Errorf("got %q, want token-1", got)
		}
		want := url.Values{"grant_type": {"client_credentials"}, "client_id": {"app"}, "client_secret": {canary},
			"scope": {"https://outlook.office365.com/.default"}}
		if got := r.requests[0]; got.Encode() != want.Encode() {
			t.Errorf("got form %v, want %v", got, want)
		}
		if got := r.headers[0].Get("Authorization"); got != "" {
			t.Errorf("the secret is in a header: %q", got)
		}
		if got, want := r.paths[0], "POST 127.0.0.1:1/base/0000-aaaa/oauth2/v2.0/token"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := r.token(t, ""); got != "token-1" || r.count() != 1 {
			t.Errorf("got %q after %d requests, want the cached token-1 after one", got, r.count())
		}
		tok, err := r.Source("contoso").Token()
		if err != nil || tok.AccessToken != "token-1" || !tok.Expiry.Equal(time.Now().Add(time.Hour)) {
			t.Errorf("Source: got %v, %v", tok, err)
		}
		wantMetrics := fmt.Sprintf(`
# HELP relayd_token_expiry_timestamp_seconds When the tenant's current access token expires.
# TYPE relayd_token_expiry_timestamp_seconds gauge
relayd_token_expiry_timestamp_seconds{tenant="contoso"} %g
# HELP relayd_token_requests_total Requests to the token endpoint of Entra ID.
# TYPE relayd_token_requests_total counter
relayd_token_requests_total{result="ok",tenant="contoso"} 1
relayd_token_requests_total{result="refused",tenant="contoso"} 0
relayd_token_requests_total{result="temporary",tenant="contoso"} 0
`, float64(time.Now().Add(time.Hour).Unix()))
		if err := testutil.GatherAndCompare(r.registry, strings.NewReader(wantMetrics)); err != nil {
			t.Error(err)
		}
	})
}

func TestOneRequestForAll(t *testing.T) {
	slow := func(n int, w http.ResponseWriter) {
		advance(time.Second) // fake time: the endpoint takes a second
		numbered(n, w)
	}
	within(t, slow, func(t *testing.T, r *rig) {
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() { // first in, so the request is begun on its behalf
			_, err := r.Token(impatient, "contoso", "", "")
			e, ok := errors.AsType[*status.Error](err)
			if !ok || e.Action != status.Retry || e.Stage != status.StageToken || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("impatient caller: got %v", err)
			}
		})
		synctest.Wait()
		for range 1000 {
			wg.Go(func() {
				if got, err := r.Token(t.Context(), "contoso", "", ""); err != nil || got != "token-1" {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
		wg.Wait()
		if got := r.count(); got != 1 {
			t.Errorf("got %d requests, want 1", got)
		}
	})
}

func TestRefusedToken(t *testing.T) {
	within(t, numbered, func(t *testing.T, r *rig) {
		r.token(t, "")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got, err := r.Token(t.Context(), "contoso", "", "token-1"); err != nil || got != "token-2" {
					t.Errorf("got %q, %v, want token-2", got, err)
				}
			})
		}
		wg.Wait()
		if got := r.token(t, "token-1"); got != "token-2" { // a straggler reports the old refusal
			t.Errorf("got %q, want token-2", got)
		}
		if got := r.count(); got != 2 {
			t.Errorf("got %d requests, want 2", got)
		}
	})
}

func TestRefusalsAreLimited(t *testing.T) {
	within(t, numbered, func(t *testing.T, r *rig) {
		current := r.token(t, "")
		for range refusalsPerMinute {
			next := r.token(t, current)
			if next == current {
				t.Fatalf("refused %q came back within the limit", current)
			}
			current = next
		}
		if got := r.token(t, current); got != current {
			t.Errorf("got %q, want the refused %q back: the limit is reached", got, current)
		}
		if got := r.count(); got != 1+refusalsPerMinute {
			t.Errorf("got %d requests, want %d", got, 1+refusalsPerMinute)
		}
		advance(time.Minute)
		if got := r.token(t, current); got == current {
			t.Error("a minute later the refused token still comes back")
		}
	})
}

func TestRefusedTokenServesOthersWhileEntraIsAway(t *testing.T) {
	answer := func(n int, w http.ResponseWriter) {
		if n > 1 {
			refuse(w, 503, "", "")
			return
		}
		numbered(n, w)
	}
	within(t, answer, func(t *testing.T, r *rig) {
		r.token(t, "")
		if _, err := r.Token(t.Context(), "contoso", "", "token-1"); status.From(err).Action != status.Retry || err == nil {
			t.Errorf("got %v, want retry", err)
		}
		if got := r.token(t, ""); got != "token-1" { // refused for one mailbox, perhaps good for the next
			t.Errorf("got %q, want token-1", got)
		}
	})
}

func TestRenewal(t *testing.T) {
	down := false
	answer := func(n int, w http.ResponseWriter) {
		if down {
			refuse(w, 503, "temporarily_unavailable", "")
			return
		}
		numbered(n, w)
	}
	within(t, answer, func(t *testing.T, r *rig) {
		r.token(t, "")
		advance(52 * time.Minute) // before 60 − 6 × 1.2
		r.token(t, "")
		synctest.Wait()
		if got := r.count(); got != 1 {
			t.Fatalf("renewed too soon: %d requests", got)
		}
		down = true
		advance(4 * time.Minute) // 56 minutes: past 60 − 6 × 0.8
		if got := r.token(t, ""); got != "token-1" {
			t.Errorf("got %q, want the old token at once", got)
		}
		synctest.Wait()
		if got := r.count(); got != 2 {
			t.Errorf("got %d requests, want a renewal in the background", got)
		}
		if got := r.token(t, ""); got != "token-1" {
			t.Errorf("got %q, want token-1: the renewal failed, it lives", got)
		}
		if got := r.logs.FilterMessageSnippet("not renewed").FilterField(zap.String("tenant", "contoso")).Len(); got != 1 {
			t.Errorf("got %d warnings, want 1", got)
		}
		down = false
		advance(2 * time.Second)
		r.token(t, "")
		synctest.Wait()
		if got := r.token(t, ""); got != "token-3" {
			t.Errorf("got %q, want token-3", got)
		}
	})
}

func TestExpiry(t *testing.T) {
	tests := []struct {
		name, expiresIn string
		want            time.Duration // the cached token is served this long, to within the margin
	}{
		{"as given", "3600", time.Hour},
		{"a string, as some send it", `"3600"`, time.Hour},
		{"missing", "null", defaultLifetime},
		{"zero", "0", defaultLifetime},
		{"absurd", "99999999999", maxLifetime},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			down := false
			answer := func(n int, w http.ResponseWriter) {
				if down {
					refuse(w, 500, "", "")
					return
				}
				give(w, "tok", tt.expiresIn)
			}
			within(t, answer, func(t *testing.T, r *rig) {
				r.token(t, "")
				down = true
				advance(tt.want - margin - time.Second)
				r.token(t, "")
				advance(margin)
				r.refusal(t)
			})
		})
	}
	t.Run("in the past", func(t *testing.T) { // of use for nothing, but no loop
		within(t, func(n int, w http.ResponseWriter) { give(w, "tok", "-5") }, func(t *testing.T, r *rig) {
			r.token(t, "")
			r.token(t, "")
			if got := r.count(); got != 2 {
				t.Errorf("got %d requests, want 2", got)
			}
		})
	})
}

func TestFailuresAreRemembered(t *testing.T) {
	tests := []struct {
		name       string
		answer     func(n int, w http.ResponseWriter)
		quiet, due time.Duration // no request within quiet, the next by due
	}{
		{"temporary", func(_ int, w http.ResponseWriter) { refuse(w, 503, "", "") }, 700 * time.Millisecond, 2 * time.Second},
		{"throttled without a word", func(_ int, w http.ResponseWriter) { refuse(w, 429, "", "") }, 47 * time.Second, 73 * time.Second},
		{"refused", func(_ int, w http.ResponseWriter) { refuse(w, 401, "invalid_client", "") }, 23 * time.Second, 37 * time.Second},
		{"Retry-After in seconds", func(_ int, w http.ResponseWriter) {
			w.Header().Set("Retry-After", "600")
			refuse(w, 429, "", "")
		}, 479 * time.Second, 721 * time.Second},
		{"Retry-After as a date", func(_ int, w http.ResponseWriter) {
			w.Header().Set("Retry-After", time.Now().Add(10*time.Minute).UTC().Format(http.TimeFormat))
			refuse(w, 503, "", "")
		}, 479 * time.Second, 721 * time.Second},
		{"Retry-After for ever", func(_ int, w http.ResponseWriter) {
			w.Header().Set("Retry-After", "99999999999")
			refuse(w, 503, "", "")
		}, 47 * time.Minute, 73 * time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, tt.answer, func(t *testing.T, r *rig) {
				ask := func() {
					var wg sync.WaitGroup
					for range 1000 {
						wg.Go(func() {
							if _, err := r.Token(t.Context(), "contoso", "", ""); err == nil {
								t.Error("got a token")
							}
						})
					}
					wg.Wait()
				}
				ask()
				advance(tt.quiet)
				ask()
				if got := r.count(); got != 1 {
					t.Errorf("got %d requests from 2,000 callers, want 1", got)
				}
				advance(tt.due - tt.quiet)
				ask()
				if got := r.count(); got != 2 {
					t.Errorf("got %d requests, want 2", got)
				}
			})
		})
	}
}

func TestBackOffGrowsAndEnds(t *testing.T) {
	down := true
	answer := func(n int, w http.ResponseWriter) {
		if down {
			refuse(w, 500, "", "")
			return
		}
		numbered(n, w)
	}
	within(t, answer, func(t *testing.T, r *rig) {
		start := time.Now()
		for r.count() < 12 {
			r.refusal(t)
			advance(100 * time.Millisecond)
		}
		// 1+2+4+8+16+32 s, then 60 s each, give or take a fifth
		if got := time.Since(start); got < 280*time.Second || got > 450*time.Second {
			t.Errorf("12 requests took %v", got)
		}
		down = false
		advance(73 * time.Second)
		r.token(t, "")
		down = true
		advance(time.Hour)
		r.refusal(t)
		advance(1300 * time.Millisecond) // a success has reset the back-off to 1 s
		before := r.count()
		r.refusal(t)
		if got := r.count(); got != before+1 {
			t.Errorf("got %d requests, want %d", got, before+1)
		}
	})
}

func TestTransportFaults(t *testing.T) {
	tests := []struct {
		name   string
		answer func(n int, w http.ResponseWriter)
	}{
		{"connection lost", func(int, http.ResponseWriter) { panic(http.ErrAbortHandler) }},
		{"silence", func(int, http.ResponseWriter) { advance(time.Minute) }},
		{"no JSON", func(_ int, w http.ResponseWriter) { fmt.Fprint(w, "<html>captive portal</html>") }},
		{"no token", func(_ int, w http.ResponseWriter) { refuse(w, 200, "", "") }},
		{"endless", func(_ int, w http.ResponseWriter) {
			for range 40 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}},
		{"a redirect", func(_ int, w http.ResponseWriter) {
			w.Header().Set("Location", "http://127.0.0.1:2/thief")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}},
		{"control characters in the token", func(_ int, w http.ResponseWriter) { give(w, "a\x01user=b", "3600") }},
		{"not a bearer token", func(_ int, w http.ResponseWriter) {
			fmt.Fprint(w, `{"token_type":"mac","expires_in":3600,"access_token":"x"}`)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, tt.answer, func(t *testing.T, r *rig) {
				e := r.refusal(t)
				if e.Action != status.Retry || e.Stage != status.StageToken || !e.Temporary() {
					t.Errorf("got %v %v, want a retry", e, e.Action)
				}
				if got := r.count(); got != 1 {
					t.Errorf("got %d requests, want 1", got)
				}
			})
		})
	}
}

func TestSecretIsReadAtEachUse(t *testing.T) {
	within(t, numbered, func(t *testing.T, r *rig) {
		secret, fault := "first", error(nil)
		tenant := contoso()
		tenant.Secret = func() (string, error) { return secret, fault }
		if err := r.Configure(map[string]Tenant{"contoso": tenant}); err != nil {
			t.Fatal(err)
		}
		r.token(t, "")
		secret = "second"
		r.token(t, "token-1")
		if got := r.requests[0].Get("client_secret") + r.requests[1].Get("client_secret"); got != "firstsecond" {
			t.Errorf("got %q", got)
		}
		for _, fault = range []error{os.ErrPermission, nil} { // unreadable, then empty
			secret = ""
			advance(2 * time.Hour)
			if e := r.refusal(t); e.Action != status.ParkTenant || fault != nil && !errors.Is(e, fault) {
				t.Errorf("got %v %v, want a parked tenant", e, e.Action)
			}
		}
		if got := r.count(); got != 2 {
			t.Errorf("got %d requests, want none without a secret", got)
		}
	})
}

func TestConfigure(t *testing.T) {
	within(t, numbered, func(t *testing.T, r *rig) {
		configure := func(name string, change func(*Tenant)) error {
			tenant := contoso()
			change(&tenant)
			return r.Configure(map[string]Tenant{name: tenant})
		}
		r.token(t, "")
		if err := configure("contoso", func(x *Tenant) { x.Secret = func() (string, error) { return "new", nil } }); err != nil {
			t.Fatal(err)
		}
		if got := r.token(t, ""); got != "token-1" {
			t.Errorf("got %q: a new secret cost the token", got)
		}
		r.token(t, "token-1")
		if got := r.requests[1].Get("client_secret"); got != "new" {
			t.Errorf("got secret %q, want the new one", got)
		}
		if err := configure("contoso", func(x *Tenant) { x.ClientID = "" }); err == nil {
			t.Error("a faulty tenant was taken")
		}
		if got := r.token(t, ""); got != "token-2" {
			t.Errorf("got %q: a refused configuration changed something", got)
		}
		if err := configure("contoso", func(x *Tenant) { x.ClientID = "other" }); err != nil {
			t.Fatal(err)
		}
		if got := r.token(t, ""); got != "token-3" {
			t.Errorf("got %q: another application got the old one's token", got)
		}
		if err := configure("fabrikam", func(*Tenant) {}); err != nil {
			t.Fatal(err)
		}
		if e := r.refusal(t); e.Action != status.ParkTenant {
			t.Errorf("removed tenant: got %v", e)
		}
		if got := testutil.CollectAndCount(r.Tokens.metrics.requests); got != 3 {
			t.Errorf("got %d series, want those of one tenant", got)
		}
	})
}

func TestSameTenant(t *testing.T) {
	base := func() Tenant {
		return Tenant{TenantID: "t", ClientID: "c", Authority: "a", Scope: "s", RootCAs: x509.NewCertPool(), Proxy: &url.URL{Host: "p"}}
	}
	changes := map[string]func(*Tenant){
		"tenant": func(x *Tenant) { x.TenantID = "" }, "client": func(x *Tenant) { x.ClientID = "" },
		"authority": func(x *Tenant) { x.Authority = "" }, "scope": func(x *Tenant) { x.Scope = "" },
		"delegated": func(x *Tenant) { x.Delegated = true },
		"roots":     func(x *Tenant) { x.RootCAs = nil }, "proxy": func(x *Tenant) { x.Proxy = nil },
	}
	if a, b := (&registration{tenant: base()}), (&registration{tenant: base()}); !a.same(b) {
		t.Error("equal tenants differ")
	}
	for name, change := range changes {
		b := base()
		change(&b)
		if (&registration{tenant: base()}).same(&registration{tenant: b}) {
			t.Errorf("another %s passes as the same", name)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Tenant)
		want   string
	}{
		{"no tenant", func(x *Tenant) { x.TenantID = "" }, "tenant_id"},
		{"a path for a tenant", func(x *Tenant) { x.TenantID = "../evil" }, "tenant_id"},
		{"no client", func(x *Tenant) { x.ClientID = "" }, "client_id"},
		{"no secret", func(x *Tenant) { x.Secret = nil }, "secret"},
		{"cloud", func(x *Tenant) { x.Cloud = "nimbus" }, `unknown cloud "nimbus"`},
		{"plain http", func(x *Tenant) { x.Authority = "http://login.example" }, "https"},
		{"looks like loopback", func(x *Tenant) { x.Authority = "http://127.0.0.1.example" }, "https"},
		{"user in URL", func(x *Tenant) { x.Authority = "https://u:p@login.example" }, "authority"},
		{"no host", func(x *Tenant) { x.Authority = "login.example" }, "authority"},
		{"query", func(x *Tenant) { x.Authority = "https://login.example/?a=b" }, "authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tenant := contoso()
			tt.change(&tenant)
			_, err := New(Options{Tenants: map[string]Tenant{"contoso": tenant}})
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `"contoso"`) {
				t.Errorf("got %v, want %q named", err, tt.want)
			}
		})
	}
	for _, ok := range []string{"http://localhost:8", "http://[::1]:8", "https://login.example/x/"} {
		if _, err := checkAuthority(ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
}

func TestClouds(t *testing.T) {
	tests := []struct{ cloud, authority, scope string }{
		{"", "https://login.microsoftonline.com", "https://outlook.office365.com/.default"},
		{"worldwide", "https://login.microsoftonline.com", "https://outlook.office365.com/.default"},
		{"gcc-high", "https://login.microsoftonline.us", "https://outlook.office365.us/.default"},
		{"dod", "https://login.microsoftonline.us", "https://outlook-dod.office365.us/.default"},
		{"china", "https://login.partner.microsoftonline.cn", "https://partner.outlook.cn/.default"},
	}
	for _, tt := range tests {
		tokens, err := New(Options{Tenants: map[string]Tenant{"x": {TenantID: "t", ClientID: "c", Cloud: tt.cloud, Secret: contoso().Secret}}})
		if err != nil {
			t.Fatal(err)
		}
		got := tokens.tenants["x"].tenant
		if got.Authority != tt.authority || got.Scope != tt.scope {
			t.Errorf("%s: got %s, %s", tt.cloud, got.Authority, got.Scope)
		}
		tokens.Close()
	}
}

func TestClose(t *testing.T) {
	within(t, func(int, http.ResponseWriter) { advance(time.Hour) }, func(t *testing.T, r *rig) {
		var wg sync.WaitGroup
		wg.Go(func() {
			if e := r.refusal(t); e.Action != status.Retry {
				t.Errorf("got %v, want a retry", e)
			}
		})
		synctest.Wait()
		r.Tokens.Close()
		wg.Wait()
		advance(time.Minute)
		if e := r.refusal(t); e.Action != status.Retry || !strings.Contains(e.Text, "shutting down") {
			t.Errorf("after Close: got %v", e)
		}
		advance(time.Hour)
	})
}

// TestTLS is on real sockets: the certificate's issuer must be known, and version 1.2 is the least.
func TestTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { give(w, "tok", "60") }))
	server.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	server.StartTLS()
	defer server.Close()
	known := x509.NewCertPool()
	known.AddCert(server.Certificate())
	for name, roots := range map[string]*x509.CertPool{"known": known, "unknown": x509.NewCertPool()} {
		tenant := contoso()
		tenant.Authority, tenant.RootCAs = server.URL, roots
		tokens, err := New(Options{Tenants: map[string]Tenant{"contoso": tenant}})
		if err != nil {
			t.Fatal(err)
		}
		tok, err := tokens.Token(t.Context(), "contoso", "", "")
		if name == "known" && (err != nil || tok != "tok") {
			t.Errorf("known issuer: %q, %v", tok, err)
		}
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); name == "unknown" && (!ok || status.From(err).Action != status.Retry) {
			t.Errorf("unknown issuer: %q, %v", tok, err)
		}
		tokens.Close()
	}
}

// advance lets fake time pass, in a synctest bubble.
func advance(d time.Duration) { <-time.After(d) }
