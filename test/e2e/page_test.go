package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"relayd/test/rig"
)

// api makes a request to the relay's API as whoever runs this test, whom the relay knows by the connection.
func (w *world) api(method, path, body string) (code int, answer string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://"+w.relay.Admin+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// done makes a request that must succeed.
func (w *world) done(method, path, body string) string {
	w.t.Helper()
	code, answer := w.api(method, path, body)
	if code/100 != 2 {
		w.t.Fatalf("%s %s: %d %s", method, path, code, answer)
	}
	return answer
}

// surfer is a browser without scripts: it keeps cookies, follows redirects, and fills in forms.
type surfer struct {
	t      *testing.T
	client *http.Client
	url    *url.URL // of the page shown
	page   string
	code   int
	header http.Header
	// stop ends the way at the callback of a sign-in, and held is where it would have led.
	stop bool
	held string
}

// browsing names itself as browsers do, whom the relay never takes for its machine's user.
type browsing struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (b browsing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", "Mozilla/5.0 (test)")
	return b.Transport.RoundTrip(r)
}

// surf opens a browser that nobody is logged in with.
func (w *world) surf() *surfer {
	w.t.Helper()
	ca, err := os.ReadFile(w.far.CA)
	if err != nil {
		w.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	s := &surfer{t: w.t}
	s.client = &http.Client{
		Jar: jar, Timeout: patience,
		Transport: browsing{&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}},
		CheckRedirect: func(req *http.Request, _ []*http.Request) error {
			if s.stop && req.URL.Path == "/oauth/callback" {
				s.held = req.URL.String()
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
	return s
}

// admin opens a browser that an administrator is logged in with.
func (w *world) admin() *surfer {
	w.t.Helper()
	var link struct{ URL string }
	if err := json.Unmarshal([]byte(w.done("POST", "/api/v1/login-links", `{"role": "admin"}`)), &link); err != nil {
		w.t.Fatal(err)
	}
	s := w.surf().open(link.URL)
	if strings.Contains(s.page, `name="code"`) {
		s.submit("code")
	}
	if s.code != http.StatusOK || strings.HasPrefix(s.url.Path, "/login") {
		w.t.Fatalf("not logged in: %d at %s\n%s", s.code, s.url, s.page)
	}
	return s
}

func (s *surfer) open(where string) *surfer {
	s.t.Helper()
	resp, err := s.client.Get(where)
	return s.shown(resp, err)
}

func (s *surfer) post(where string, form url.Values) *surfer {
	s.t.Helper()
	resp, err := s.client.PostForm(where, form)
	return s.shown(resp, err)
}

func (s *surfer) shown(resp *http.Response, err error) *surfer {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.page, s.code, s.header, s.url = string(data), resp.StatusCode, resp.Header, resp.Request.URL
	return s
}

// submit posts the form that has a field or button of that name, with its hidden fields and those given.
func (s *surfer) submit(fields ...string) *surfer {
	s.t.Helper()
	hidden, action := regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`), regexp.MustCompile(`^[^>]* action="([^"]*)"`)
	for _, part := range strings.Split(s.page, "<form")[1:] {
		part, _, _ = strings.Cut(part, "</form>")
		if !strings.Contains(part, `name="`+fields[0]+`"`) {
			continue
		}
		form, to := url.Values{}, s.url
		for _, m := range hidden.FindAllStringSubmatch(part, -1) {
			form.Set(html.UnescapeString(m[1]), html.UnescapeString(m[2]))
		}
		for i := 0; i+1 < len(fields); i += 2 {
			form.Set(fields[i], fields[i+1])
		}
		if m := action.FindStringSubmatch(part); m != nil {
			var err error
			if to, err = s.url.Parse(html.UnescapeString(m[1])); err != nil {
				s.t.Fatal(err)
			}
		}
		return s.post(to.String(), form)
	}
	s.t.Fatalf("no form with %s at %s:\n%s", fields[0], s.url, s.page)
	return nil
}

// says fails unless the page has this status and texts.
func (s *surfer) says(code int, texts ...string) *surfer {
	s.t.Helper()
	page := html.UnescapeString(s.page)
	for _, text := range texts {
		if !strings.Contains(page, text) {
			s.t.Errorf("%s does not say %q:\n%s", s.url.Path, text, page)
		}
	}
	if s.code != code {
		s.t.Errorf("%s: %d, want %d\n%s", s.url.Path, s.code, code, page)
	}
	return s
}

// on goes where the relay sends a browser to sign in.
func (s *surfer) on() *surfer {
	s.t.Helper()
	_, to, ok := strings.Cut(s.header.Get("Refresh"), "url=")
	if !ok {
		s.t.Fatalf("sent nowhere: %d at %s\n%s", s.code, s.url, s.page)
	}
	return s.open(to)
}

// signIn goes past account and password at the sandbox.
func (s *surfer) signIn(account string) *surfer {
	s.t.Helper()
	return s.submit("loginfmt", account).submit("passwd", "anything")
}

// page is the address of a page of the relay, by the name it has for browsers of its own machine.
func (w *world) page(path string) string {
	return "http://localhost" + w.relay.Admin[strings.LastIndexByte(w.relay.Admin, ':'):] + path
}

// delegated enters a delegated tenant and senders of it by the API, and registers the redirect URI with the sandbox.
func (w *world) delegated(secret string, senders ...string) {
	w.t.Helper()
	if err := w.far.Post(w.t.Context(), "/sandbox/redirect-uris", fmt.Sprintf(`{"uri": %q}`, w.page("/oauth/callback"))); err != nil {
		w.t.Fatal(err)
	}
	w.done("POST", "/api/v1/tenants", fmt.Sprintf(`{"name": "paged", "tenant_id": %q, "client_id": %q, "client_secret": %q, "authority": %q, "smtp_server": %q, "ca_file": %q}`,
		rig.TenantID, rig.ClientID, secret, "https://"+w.far.HTTP, w.far.SMTP, w.far.CA))
	for _, sender := range senders {
		w.done("POST", "/api/v1/senders", fmt.Sprintf(`{"match": %q, "tenant": "paged", "messages_per_minute": 1000000, "recipients_per_day": 1000000}`, sender))
	}
}

// TestPageForms is what people paste and type wrong.
func TestPageForms(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	s := w.admin()
	tenant := func(change ...string) url.Values {
		form := url.Values{"name": {"paged"}, "tenant_id": {rig.TenantID}, "client_id": {rig.ClientID}, "grant": {"delegated"},
			"client_secret": {"  " + rig.Secret + "\r\n"}, "authority": {"https://" + w.far.HTTP}, "smtp_server": {w.far.SMTP}, "ca_file": {w.far.CA}}
		for i := 0; i < len(change); i += 2 {
			form.Set(change[i], change[i+1])
		}
		return form
	}
	const id = "01234567-89ab-cdef-0123-456789abcdef"
	s.post(w.page("/tenants/new"), tenant("client_secret", id)).says(http.StatusUnprocessableEntity, "Value", `value="paged"`)
	if strings.Contains(s.page, id) {
		t.Error("the page repeats a secret")
	}
	const script = `"><script>alert(1)</script>`
	for _, field := range []string{"name", "tenant_id", "client_id", "authority", "scope", "smtp_server", "ca_file", "credential_expires", "cert_file"} {
		s.post(w.page("/tenants/new"), tenant(field, script)).says(http.StatusUnprocessableEntity)
		if strings.Contains(s.page, "<script>alert") {
			t.Errorf("script in %s is shown as it is", field)
		}
	}
	s.post(w.page("/tenants/new"), tenant()).says(http.StatusOK)
	if code, body := w.api("POST", "/api/v1/tenants/paged/check", ""); code != http.StatusOK || strings.Contains(body, `"result":"fail"`) {
		t.Errorf("a secret with blanks around it does not serve: %d %s", code, body)
	}
	for _, field := range []string{"match", "tenant", "login", "fallback", "connections"} {
		form := url.Values{"match": {"a@contoso.com"}, "tenant": {"paged"}}
		form.Set(field, script)
		s.post(w.page("/senders/new"), form).says(http.StatusUnprocessableEntity)
		if strings.Contains(s.page, "<script>alert") {
			t.Errorf("script in %s of a sender is shown as it is", field)
		}
	}
	for _, path := range []string{"/senders/" + url.PathEscape(script), "/tenants/" + url.PathEscape(script), "/senders?text=" + url.QueryEscape(script),
		"/messages?sender=" + url.QueryEscape(script), "/consent/" + url.PathEscape(script), "/oauth/callback?state=x&error=" + url.QueryEscape(script) +
			"&error_description=" + url.QueryEscape(script)} {
		if s.open(w.page(path)); strings.Contains(s.page, "<script>alert") {
			t.Errorf("script in %s is shown as it is", path)
		}
	}
	// A stranger sees none of it, and changes nothing.
	stranger := w.surf()
	for _, path := range []string{"/", "/tenants", "/senders", "/configuration", "/audit", "/messages"} {
		stranger.open(w.page(path))
		if strings.Contains(stranger.page, rig.ClientID) || strings.Contains(stranger.page, "contoso.com") {
			t.Errorf("%s is shown to a stranger", path)
		}
	}
	stranger.post(w.page("/tenants/paged/remove"), url.Values{})
	if code, body := w.api("GET", "/api/v1/tenants/paged", ""); code != http.StatusOK {
		t.Errorf("a stranger removed a tenant: %d %s", code, body)
	}
}
