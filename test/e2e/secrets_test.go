package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"relayd/test/rig"
)

// wiretap stands in front of the sandbox's Entra ID and keeps the secrets that pass.
type wiretap struct {
	addr, ca string

	mu   sync.Mutex // guards seen
	seen map[string]string
}

func newWiretap(t *testing.T, w *world) *wiretap {
	t.Helper()
	far, err := os.ReadFile(w.far.CA)
	if err != nil {
		t.Fatal(err)
	}
	tap := &wiretap{ca: w.path("tap.pem"), seen: map[string]string{}}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(far)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: w.far.HTTP}) // by https: it is part of the issuer's name
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	proxy.ModifyResponse = func(resp *http.Response) error {
		if !strings.HasSuffix(resp.Request.URL.Path, "/token") {
			return nil
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
		answer := map[string]any{}
		if json.Unmarshal(body, &answer) == nil {
			for _, name := range []string{"access_token", "refresh_token", "id_token"} {
				if token, ok := answer[name].(string); ok {
					tap.note(name, token)
				}
			}
		}
		return nil
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if form, err := url.ParseQuery(string(body)); err == nil {
				for _, name := range []string{"code", "code_verifier", "refresh_token"} {
					tap.note(name, form.Get(name))
				}
			}
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	tap.addr = server.URL
	replaceFile(t, tap.ca, string(far)+string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	return tap
}

func (tap *wiretap) note(name, value string) {
	tap.mu.Lock()
	defer tap.mu.Unlock()
	if value != "" {
		tap.seen[fmt.Sprintf("%s %d", name, len(tap.seen))] = value
	}
}

// forms are the ways a secret might be written.
func forms(secret string) map[string]string {
	all := map[string]string{
		"raw": secret, "URL-encoded": url.QueryEscape(secret), "path-escaped": url.PathEscape(secret),
		"hex": hex.EncodeToString([]byte(secret)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(secret))),
	}
	for before := range 3 { // by where it begins in what is encoded
		for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := enc.EncodeToString([]byte(strings.Repeat("x", before) + secret))
			all[fmt.Sprintf("%s at %d", name, before)] = text[(before*8+5)/6 : len(text)-1]
		}
	}
	return all
}

// TestCanaries plants secrets wherever the relay takes or makes some, has things go wrong with them, and looks for them in
// everything it says and keeps: found nowhere, in no form.
func TestCanaries(t *testing.T) {
	const plain, filed, environ, paged, wrong = "canary-plain~1f0c", "canary-filed~77aa", "canary-environ~9c31", "canary-paged~5e5e", "canary-wrong~abcd"
	const misplaced = "canary-misplaced~0b0b"
	key := "canary-vault-key-" + strings.Repeat("0123456789", 4)
	t.Setenv("CANARY_SECRET", environ)
	w := newWorld(t)
	tap := newWiretap(t, w)
	replaceFile(t, w.path("secret"), filed)
	replaceFile(t, w.path("key"), key)
	tenant := func(name, secret string) string {
		return fmt.Sprintf("\n  - {name: %s, tenant_id: %s, client_id: %s, client_secret: %q, authority: %q, smtp_server: %q, ca_file: %q}",
			name, rig.TenantID, rig.ClientID, secret, tap.addr, w.far.SMTP, tap.ca)
	}
	config := func(smtp, admin string) string {
		return fmt.Sprintf("hostname: relay.contoso.com\ndata_dir: %q\nlisteners: [{address: %q}]\nlog: {level: debug}\nvault: {key: %q}\n"+
			"bounces: {mode: [dsn, notify], notify: [ops@contoso.com], from: filed@contoso.com}\nqueue: {min_free_bytes: 0, retry: [1s]}\nadmin: {address: %q}\n"+
			"senders:\n  - {address: plain@contoso.com, tenant: plain}\n  - {address: filed@contoso.com, tenant: filed}\n  - {address: environ@contoso.com, tenant: environ}\n  - {address: ops@contoso.com, tenant: filed}\ntenants:%s%s%s\n",
			w.path("data"), smtp, "file:"+w.path("key"), admin, tenant("plain", plain), tenant("filed", "file:"+w.path("secret")), tenant("environ", "env:CANARY_SECRET"))
	}
	relay, err := rig.StartRelay(t.Context(), relayd, w.dir, config)
	if err != nil {
		t.Fatal(err)
	}
	w.relay = relay
	canaries := map[string]string{"plain": plain, "filed": filed, "environ": environ, "paged": paged, "wrong": wrong, "misplaced": misplaced, "vault key": key}
	for _, one := range [][2]string{{"plain", plain}, {"filed", filed}, {"environ", environ}, {"", paged}} { // the app has one secret at a time
		if err := w.far.Post(t.Context(), "/sandbox/secrets", fmt.Sprintf(`{"secret": %q}`, one[1])); err != nil {
			t.Fatal(err)
		}
		if one[0] != "" {
			w.send(one[0]+"@contoso.com", letter(one[0]+"@contoso.com", "works"))
			w.arrived(one[0]+"@contoso.com", 1, patience)
		}
	}

	// By API and page, right and wrong.
	if err := w.far.Post(t.Context(), "/sandbox/redirect-uris", fmt.Sprintf(`{"uri": %q}`, w.page("/oauth/callback"))); err != nil {
		t.Fatal(err)
	}
	enter := func(name, client, secret, authority, grant string) (int, string) {
		return w.api("POST", "/api/v1/tenants", fmt.Sprintf(`{"name": %q, "tenant_id": %q, "client_id": %q, "client_secret": %q, "authority": %q, "smtp_server": %q, "ca_file": %q, "grant": %q}`,
			name, rig.TenantID, client, secret, authority, w.far.SMTP, tap.ca, grant))
	}
	for name, one := range map[string][4]string{
		"paged": {rig.ClientID, paged, "https://" + w.far.HTTP, "delegated"}, "bad": {rig.ClientID, wrong, tap.addr, "client_credentials"},
		"nowhere": {rig.ClientID, wrong, "https://127.0.0.1:1", "client_credentials"},
	} {
		if code, answer := enter(name, one[0], one[1], one[2], one[3]); code != http.StatusCreated {
			t.Fatalf("%s: %d %s", name, code, answer)
		}
	}
	if code, _ := enter("typo", misplaced, wrong, tap.addr, "delegated"); code != http.StatusUnprocessableEntity {
		t.Errorf("a secret as client ID: %d", code)
	}
	for _, name := range []string{"paged", "bad", "nowhere"} {
		w.api("POST", "/api/v1/tenants/"+name+"/check", "")
	}
	w.done("POST", "/api/v1/senders", `{"match": "ann@contoso.com", "tenant": "paged"}`)
	w.done("POST", "/api/v1/senders", `{"match": "bad@contoso.com", "tenant": "bad"}`)
	w.done("POST", "/api/v1/senders", `{"match": "bob@contoso.com", "tenant": "paged"}`)
	w.send("bad@contoso.com", letter("bad@contoso.com", "parked"))
	w.becomes(1, "relayd_sender_parked", `sender="bad@contoso.com"`)

	s := w.admin()
	ca, err := os.ReadFile(tap.ca)
	if err != nil {
		t.Fatal(err)
	}
	s.client.Transport.(browsing).TLSClientConfig.RootCAs.AppendCertsFromPEM(ca)
	s.post(w.page("/senders/ann@contoso.com/consent"), nil).on().signIn("ann@contoso.com").submit("ucaccept", "0").says(http.StatusUnprocessableEntity)
	s.stop = true
	s.post(w.page("/senders/ann@contoso.com/consent"), nil).on().submit("loginfmt", "ann@contoso.com")
	if strings.Contains(s.page, `name="passwd"`) {
		s.submit("passwd", "anything")
	}
	if s.held == "" {
		s.submit("ucaccept", "1")
	}
	s.open(s.held).says(http.StatusOK)
	s.open(s.held).says(http.StatusUnprocessableEntity)
	held, err := url.Parse(s.held)
	if err != nil {
		t.Fatal(err)
	}
	canaries["code of a callback"], canaries["state of a callback"] = held.Query().Get("code"), held.Query().Get("state")
	w.send("ann@contoso.com", letter("ann@contoso.com", "granted"))
	w.arrived("ann@contoso.com", 1, patience)
	w.done("POST", "/api/v1/senders/bob@contoso.com/device", "")
	for path, body := range map[string]string{"/api/v1/senders/bob@contoso.com/invitation": "", "/api/v1/login-links": `{"role": "viewer"}`} {
		var link struct{ URL string }
		if err := json.Unmarshal([]byte(w.done("POST", path, body)), &link); err != nil {
			t.Fatal(err)
		}
		canaries["link of "+path] = link.URL[max(strings.LastIndexByte(link.URL, '/'), strings.LastIndexByte(link.URL, '='))+1:]
		w.surf().open(link.URL)
	}
	home, err := url.Parse(w.page("/"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.client.Jar.Cookies(home) {
		if len(c.Value) > 20 {
			canaries["cookie "+c.Name] = c.Value
		}
	}
	// A bounce, and a report to the operators.
	w.fault(`{"preset": "dot-mime", "mailbox": "plain@contoso.com"}`)
	w.send("plain@contoso.com", letter("plain@contoso.com", "bounces"))
	w.becomes(1, "relayd_queue_messages", `state="failed"`)
	w.noFaults()
	w.relay.Page(t.Context(), "/api/v1/messages/"+plain) //nolint:errcheck // what it answers is looked at elsewhere

	// All it says.
	said := map[string]string{}
	for _, path := range []string{"config", "audit?limit=1000", "senders", "tenants", "stats", "openapi.json", "messages", "sessions", "senders/ann@contoso.com", "tenants/paged", "tenants/bad"} {
		code, body := w.api("GET", "/api/v1/"+path, "")
		if code != http.StatusOK {
			t.Errorf("/api/v1/%s: %d", path, code)
		}
		said["API "+path] = body
	}
	s.stop = false
	for _, path := range []string{
		"/", "/messages", "/tenants", "/senders", "/configuration", "/audit", "/guide", "/guide?tenant=paged&sender=ann@contoso.com", "/tenants/paged", "/tenants/paged/edit",
		"/tenants/bad", "/tenants/plain", "/senders/ann@contoso.com", "/senders/ann@contoso.com/edit", "/senders/bad@contoso.com", "/senders/bad@contoso.com/test",
	} {
		for _, lang := range []string{"en", "ja"} {
			with := path + "?lang=" + lang
			if strings.Contains(path, "?") {
				with = path + "&lang=" + lang
			}
			said["page "+with] = s.open(w.page(with)).page
			if s.code != http.StatusOK || strings.HasPrefix(s.url.Path, "/login") {
				t.Errorf("%s: %d at %s", with, s.code, s.url)
			}
		}
	}
	_, said["metrics"], err = w.relay.Page(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"config", "check", "--config", w.relay.Config}, {"doctor", "--all", "--config", w.relay.Config}, {"doctor", "--all", "--json", "--api", "http://" + w.relay.Admin},
		{"tenant", "list", "--config", w.relay.Config}, {"sender", "list", "--config", w.relay.Config},
	} {
		o := runCommand(t, "", args...)
		said["command "+strings.Join(args, " ")] = fmt.Sprintf("%+v", o)
	}
	var mail []rig.Message
	if err := w.far.Get(t.Context(), "/sandbox/messages", &mail); err != nil {
		t.Fatal(err)
	}
	for _, m := range mail {
		said[fmt.Sprintf("mail %d of %s", m.Seq, m.MailFrom)] = w.raw(m)
	}

	// All it keeps, as it stands, and after a crash and a restart.
	keep := func(when string) {
		err := filepath.WalkDir(w.path("data"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // files come and go
			}
			if data, err := os.ReadFile(path); err == nil {
				said["file "+path+" "+when] = string(data)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	keep("running")
	w.relay.Kill()
	log := w.relay.Log()
	keep("killed")
	w.restart()
	w.done("GET", "/api/v1/tenants/paged", "")
	w.stop()
	said["log"] = log + w.relay.Log()
	keep("stopped")
	if !strings.Contains(said["log"], `"level":"debug"`) {
		t.Error("the log is not at its most talkative")
	}

	tap.mu.Lock()
	kinds := map[string]bool{}
	for name, value := range tap.seen {
		canaries[name] = value
		kind, _, _ := strings.Cut(name, " ")
		kinds[kind] = true
	}
	tap.mu.Unlock()
	for _, kind := range []string{"access_token"} {
		if !kinds[kind] {
			t.Errorf("no %s was seen on its way", kind)
		}
	}
	links := regexp.MustCompile(`/login\?code=([A-Za-z0-9_-]+)`).FindAllStringSubmatch(said["log"], -1)
	for _, m := range links { // by design: printed once where nobody else could log in
		if n := strings.Count(said["log"], m[1]); n != 1 {
			t.Errorf("a login link is in the log %d times", n)
		}
		for where, text := range said {
			if where != "log" && strings.Contains(text, m[1]) {
				t.Errorf("a login link is in %s", where)
			}
		}
	}
	if len(links) != 2 {
		t.Errorf("%d login links were announced at two starts", len(links))
	}
	if len(said) < 60 {
		t.Errorf("only %d things were looked at", len(said))
	}
	for name, secret := range canaries {
		if len(secret) < 16 {
			t.Errorf("%s: %d octets are no canary", name, len(secret))
			continue
		}
		needle := map[string]string{}
		for form, text := range forms(secret[:min(len(secret), 400)]) {
			needle[form] = text
		}
		for where, text := range said {
			for form, one := range needle {
				if i := strings.Index(text, one); i >= 0 {
					t.Errorf("%s, %s, is in %s: …%q…", name, form, where, text[max(0, i-120):min(len(text), i+20)])
				}
			}
		}
	}
}
