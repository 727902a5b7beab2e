package admin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/keypair"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/login"
)

// thePage says who asks, and counts changes.
type thePage struct{ changes int }

func (p *thePage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		p.changes++
	}
	name := "nobody"
	if who := access.From(r.Context()); who != nil {
		name = who.Name
	}
	fmt.Fprintf(w, "page %s for %s", r.URL.Path, name)
}

func with(headers ...string) func(*http.Request) {
	return func(r *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			if headers[i] == "Host" {
				r.Host = headers[i+1]
				continue
			}
			r.Header.Set(headers[i], headers[i+1])
		}
	}
}

func TestPageNeedsALogin(t *testing.T) {
	page := &thePage{}
	s := start(t, Options{Page: page, Messages: &empty{}})
	base := "http://" + s.Addr().String()
	browser := with("Sec-Fetch-Site", "none", "User-Agent", "Mozilla/5.0")
	for _, tt := range []struct {
		method, path string
		change       func(*http.Request)
		code         int
		location     string
	}{
		{"GET", "/", nil, 303, "/login"},
		{"GET", "/senders?state=parked", nil, 303, "/login?to=%2Fsenders%3Fstate%3Dparked"},
		{"GET", "//evil.example/", nil, 303, "/login"},
		{"POST", "/senders", with("Sec-Fetch-Site", "same-origin"), 303, "/login"},
		{"GET", "/senders", with("HX-Request", "true", "HX-Current-URL", base+"/senders?x=1"), 401, ""},
		{"GET", "/login", nil, 200, ""},
		{"GET", "/static/x.css", nil, 200, ""},
		{"GET", "/consent/abc", nil, 200, ""},
		{"GET", "/oauth/callback?code=x", nil, 200, ""},
		{"GET", "/api/v1/messages", nil, 401, ""},
		{"GET", "/livez", nil, 200, ""},
		{"GET", "/metrics", nil, 200, ""},
	} {
		a := ask(t, tt.method, base+tt.path, func(r *http.Request) {
			browser(r)
			if tt.change != nil {
				tt.change(r)
			}
		})
		if a.code != tt.code || a.header.Get("Location") != tt.location {
			t.Errorf("%s %s: got %d %q, want %d %q", tt.method, tt.path, a.code, a.header.Get("Location"), tt.code, tt.location)
		}
		if tt.code == 401 && strings.HasPrefix(tt.path, "/senders") && a.header.Get("HX-Redirect") != "/login?to=%2Fsenders%3Fx%3D1" {
			t.Errorf("HX-Redirect: got %q", a.header.Get("HX-Redirect"))
		}
	}
	if page.changes != 0 {
		t.Errorf("%d changes by nobody", page.changes)
	}
}

// A browser with a one-time link: in, about, and out again.
func TestLinkThroughTheServer(t *testing.T) {
	s := start(t, Options{Page: &thePage{}})
	link, _, err := s.Logins().NewLink(t.Context(), access.Admin, "start")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.Addr().String())
	if !strings.HasPrefix(link, "http://localhost:"+port+"/login?code=") {
		t.Fatalf("got %q", link)
	}
	jar, _ := cookiejar.New(nil)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr().String())
	}}
	client := &http.Client{Jar: jar, Transport: transport}
	do := func(method, target string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		with("Sec-Fetch-Site", "same-origin", "User-Agent", "Mozilla/5.0")(r)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	base := "http://localhost:" + port
	if code, body := do("GET", link); code != 200 || body != "page / for start (link)" {
		t.Fatalf("got %d %q", code, body)
	}
	if code, body := do("POST", base+"/senders"); code != 200 || body != "page /senders for start (link)" {
		t.Errorf("got %d %q", code, body)
	}
	if code, body := do("POST", base+"/logout"); code != 200 || !strings.Contains(body, "You have logged out") {
		t.Errorf("got %d %q", code, body)
	}
	if code, body := do("GET", base+"/"); code != 200 || strings.Contains(body, "page /") {
		t.Errorf("got %d %q", code, body)
	}
}

// No page of another site changes anything, with whatever credentials the browser adds.
func TestCrossSite(t *testing.T) {
	page, queue := &thePage{}, &empty{}
	token, hash := access.NewToken()
	s := start(t, Options{Page: page, Messages: queue, Login: login.Settings{
		Tokens: []access.Token{{Name: "a", Hash: hash, Role: access.Admin}}, PublicURL: "https://relay.contoso.com",
	}})
	base := "http://" + s.Addr().String()
	in := with("Authorization", "Bearer "+token, "Content-Type", "application/json")
	for _, headers := range [][]string{
		{"Origin", "https://evil.example"}, {"Origin", "null"}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"},
		{"Origin", "https://relay.contoso.com.evil.example"}, {"Origin", "http://relay.contoso.com"},
		{"Host", "relay.contoso.com", "Origin", "https://evil.example"},
	} {
		for _, path := range []string{"/senders", dropPath, "/logout", "/login"} {
			if a := ask(t, "POST", base+path, func(r *http.Request) { in(r); with(headers...)(r) }); a.code != 403 {
				t.Errorf("%v %s: got %d", headers, path, a.code)
			}
		}
	}
	if page.changes != 0 || queue.dropped != 0 {
		t.Fatalf("%d and %d changes", page.changes, queue.dropped)
	}
	for _, headers := range [][]string{
		{}, {"Origin", base}, {"Sec-Fetch-Site", "same-origin"}, {"Sec-Fetch-Site", "none"},
		{"Origin", "https://relay.contoso.com"}, // behind a proxy that has changed the Host
		{"Host", "relay.contoso.com", "Origin", "https://relay.contoso.com"},
	} {
		if a := ask(t, "POST", base+"/senders", func(r *http.Request) { in(r); with(headers...)(r) }); a.code != 200 {
			t.Errorf("%v: got %d %q", headers, a.code, a.body)
		}
	}
}

func TestHeaders(t *testing.T) {
	s := start(t, Options{Page: &thePage{}, Messages: &empty{}, Version: "1.2.3"})
	for path, policy := range map[string]string{
		"/": pagePolicy, "/login": pagePolicy, "/consent/x": pagePolicy, "/oauth/callback": pagePolicy, "/static/x": pagePolicy,
		"/livez": probePolicy, "/metrics": probePolicy, "/api/v1/messages": probePolicy, "/api/v1/openapi.json": probePolicy,
	} {
		for _, change := range []func(*http.Request){nil, with("Sec-Fetch-Site", "cross-site")} {
			a := ask(t, "GET", "http://"+s.Addr().String()+path, change)
			want := map[string]string{
				"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "same-origin",
				"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Server": "relayd/1.2.3",
				"Strict-Transport-Security": "", "Access-Control-Allow-Origin": "",
			}
			if policy == pagePolicy {
				want["Permissions-Policy"] = permissions
			}
			for name, value := range want {
				if got := a.header.Get(name); got != value {
					t.Errorf("%s %s: got %q, want %q", path, name, got, value)
				}
			}
		}
	}
	for _, part := range []string{"'unsafe", "*", "http:", "https:"} {
		if strings.Contains(pagePolicy, part) {
			t.Errorf("the policy has %s", part)
		}
	}
}

// A listener for other machines needs a login, and then answers page and API by its own names only; probes by all.
func TestListenerForOthers(t *testing.T) {
	if _, err := New(Options{Address: "0.0.0.0:0", Page: &thePage{}, Gatherer: prometheus.NewRegistry()}); err == nil || !strings.Contains(err.Error(), "no loopback address") {
		t.Errorf("got %v", err)
	}
	token, hash := access.NewToken()
	s := start(t, Options{Address: "0.0.0.0:0", Page: &thePage{}, Messages: &empty{}, Login: login.Settings{
		Tokens: []access.Token{{Name: "a", Hash: hash, Role: access.Admin}}, PublicURL: "https://relay.contoso.com",
	}})
	_, port, _ := net.SplitHostPort(s.Addr().String())
	base := "http://127.0.0.1:" + port
	for host, code := range map[string]int{"relay.contoso.com": 200, "attacker.example": 421, "10.0.0.7:8080": 200} {
		for _, path := range []string{"/", "/api/v1/messages"} {
			if a := ask(t, "GET", base+path, with("Host", host, "Authorization", "Bearer "+token)); a.code != code {
				t.Errorf("%s as %s: got %d", path, host, a.code)
			}
		}
		if a := ask(t, "GET", base+"/readyz", with("Host", host)); a.code != 200 {
			t.Errorf("readyz as %s: got %d", host, a.code)
		}
	}
	if a := ask(t, "GET", base+"/api/v1/messages", nil); a.code != 401 { // no local rule here
		t.Errorf("without a token: got %d", a.code)
	}
	if err := s.Configure(login.Settings{}); err == nil {
		t.Error("a reload has opened the listener to everybody")
	}
	if a := ask(t, "GET", base+"/api/v1/messages", with("Authorization", "Bearer "+token)); a.code != 200 {
		t.Errorf("after a reload that failed: got %d", a.code)
	}
	if err := s.Configure(login.Settings{Tokens: []access.Token{{Name: "b", Hash: access.HashToken("b"), Role: access.Admin}}}); err != nil {
		t.Fatal(err)
	}
	if a := ask(t, "GET", base+"/api/v1/messages", with("Authorization", "Bearer "+token)); a.code != 401 {
		t.Errorf("with a token that is gone: got %d", a.code)
	}
}

// A long answer is not cut off by the deadline its header was read by.
func TestLongAnswer(t *testing.T) {
	token, hash := access.NewToken()
	asked, ended := make(chan context.Context, 1), make(chan struct{})
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if err := control.SetWriteDeadline(time.Time{}); err != nil {
			t.Error(err)
		}
		fmt.Fprintln(w, "first")
		if err := control.Flush(); err != nil {
			t.Error(err)
		}
		asked <- r.Context()
		<-ended
		if r.Context().Err() != nil {
			t.Error("taken for a client that has hung up")
		}
		fmt.Fprintln(w, "last")
	})
	s, err := New(Options{Address: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), Page: page, Login: login.Settings{
		Tokens: []access.Token{{Name: "a", Hash: hash, Role: access.Viewer}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := s.ends[0].http
	h.ReadHeaderTimeout, h.ReadTimeout, h.WriteTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	run(t, s)
	go func() {
		ctx := <-asked
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
		close(ended)
	}()
	if a := ask(t, "GET", "http://"+s.Addr().String()+"/events", with("Authorization", "Bearer "+token)); a.body != "first\nlast\n" {
		t.Errorf("got %q", a.body)
	}
}

// pair writes a self-signed certificate and its key, and returns the names of the files.
func pair(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestTLS(t *testing.T) {
	certFile, keyFile := pair(t, t.TempDir(), "relay.contoso.com")
	s := start(t, Options{Page: &thePage{}, CertFile: certFile, KeyFile: keyFile, MetricsAddress: "localhost:0"})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // self-signed
	resp, err := client.Get("https://" + s.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || !strings.HasPrefix(string(body), "page / for ") || resp.Header.Get("Strict-Transport-Security") != strictTransport {
		t.Errorf("got %d %q %v", resp.StatusCode, body, resp.Header)
	}
	if u, err := url.Parse(s.Logins().BaseURL()); err != nil || u.Scheme != "https" {
		t.Errorf("got %v, %v", u, err)
	}
	old := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}}}
	if _, err := old.Get("https://" + s.Addr().String() + "/"); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if a := ask(t, "GET", "http://"+s.MetricsAddr().String()+"/livez", nil); a.code != 200 {
		t.Errorf("metrics: got %d", a.code)
	}
	if _, err := New(Options{Address: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), CertFile: "none.pem", KeyFile: keyFile}); err == nil || !strings.Contains(err.Error(), "admin.tls: read certificate") {
		t.Errorf("got %v", err)
	}
}

func TestCertificateIsReloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		certFile, keyFile := pair(t, dir, "first")
		c, err := keypair.Open(certFile, keyFile, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		name := func() string {
			t.Helper()
			got, err := c.Get(nil)
			if err != nil {
				t.Fatal(err)
			}
			return got.Leaf.DNSNames[0]
		}
		pair(t, dir, "second")
		if name() != "first" {
			t.Error("looked at each handshake")
		}
		<-time.After(keypair.Check)
		if name() != "second" {
			t.Error("not reloaded")
		}
		if err := os.WriteFile(keyFile, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		<-time.After(keypair.Check)
		if name() != "second" {
			t.Error("the one before is gone")
		}
		if err := os.Remove(keyFile); err != nil {
			t.Fatal(err)
		}
		<-time.After(keypair.Check)
		if name() != "second" {
			t.Error("the one before is gone")
		}
	})
}
