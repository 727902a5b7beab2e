package e2e

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"relayd/test/rig"
)

// metricNames are those of the contract that there is something to count for in this version, with their labels.
func metricNames() map[string][]string {
	return map[string][]string{
		"relayd_messages_accepted_total":             {"intake"},
		"relayd_messages_rejected_total":             {"intake", "reason"},
		"relayd_message_bytes_total":                 {"intake"},
		"relayd_queue_messages":                      {"state"},
		"relayd_queue_bytes":                         {"state"},
		"relayd_queue_oldest_seconds":                {"state"},
		"relayd_deliveries_total":                    {"outcome", "tenant"},
		"relayd_delivery_duration_seconds_bucket":    {"le", "tenant"},
		"relayd_queue_wait_seconds_bucket":           {"le", "tenant"},
		"relayd_exchange_replies_total":              {"code", "enhanced", "stage"},
		"relayd_exchange_connections":                {"state", "tenant"},
		"relayd_token_requests_total":                {"result", "tenant"},
		"relayd_token_expiry_timestamp_seconds":      {"tenant"},
		"relayd_credential_expiry_timestamp_seconds": {"tenant"},
		"relayd_sender_parked":                       {"sender"},
		"relayd_sender_recipients_remaining":         {"sender"},
		"relayd_smtp_connections":                    {"listener"},
		"relayd_smtp_commands_total":                 {"command", "listener", "reply"},
		"relayd_possible_duplicates_total":           nil,
		"relayd_config_last_reload_successful":       nil,
		"relayd_build_info":                          {"commit", "goversion", "nats", "version"},
		"go_goroutines":                              nil,
		"process_resident_memory_bytes":              nil,
	}
}

// TestPages reads what the admin listener shows after mail of every sort.
func TestPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.send("erp@contoso.com", letter("erp@contoso.com", "good"))
	w.arrived("erp@contoso.com", 1, patience)
	w.fault(`{"preset": "dot-mime", "mailbox": "bad@contoso.com"}`)
	w.send("bad@contoso.com", letter("bad@contoso.com", "bad"))
	w.becomes(1, "relayd_queue_messages", `state="failed"`)
	w.fault(`{"preset": "auth-disabled-mailbox", "mailbox": "parked@contoso.com"}`)
	w.send("parked@contoso.com", letter("parked@contoso.com", "parked"))
	w.becomes(1, "relayd_sender_parked", `sender="parked@contoso.com"`)
	c := dial(t, w.relay.SMTP)
	c.say(250, "EHLO probe@contoso.com")
	c.say(550, "MAIL FROM:<stranger@fabrikam.com>")
	c.say(500, "spy@contoso.com")

	for path, want := range map[string]string{
		"/livez":    "ok\n",
		"/readyz":   "ok running\nok queue\n",
		"/startupz": "ok running\n",
	} {
		if code, body, err := w.relay.Page(t.Context(), path); code != http.StatusOK || body != want || err != nil {
			t.Errorf("%s: %d %q, %v; want 200 %q", path, code, body, err, want)
		}
	}
	for _, path := range []string{"/nothing", "/debug/pprof/", "/api/v1/nothing", "/api/v1/messages/00000000000000000000", "/metrics/x"} {
		if code, _, err := w.relay.Page(t.Context(), path); code != http.StatusNotFound || err != nil {
			t.Errorf("%s: %d, %v; want 404", path, code, err)
		}
	}
	w.stays(float64(time.Date(2040, 1, 31, 0, 0, 0, 0, time.UTC).Unix()), "relayd_credential_expiry_timestamp_seconds", `tenant="contoso"`)
	_, text, err := w.relay.Page(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	w.judgeMetrics(text)
}

// judgeMetrics looks for every metric with its labels, and for addresses where none may be.
func (w *world) judgeMetrics(text string) {
	w.t.Helper()
	found := map[string][]string{}
	sample := regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? \S+$`)
	label := regexp.MustCompile(`([a-z_]+)="((?:[^"\\]|\\.)*)"`)
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			w.t.Errorf("not a sample: %q", line)
			continue
		}
		var names []string
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			names = append(names, l[1])
			if strings.Contains(l[2], "@") && l[1] != "sender" {
				w.t.Errorf("an address in label %s: %s", l[1], line)
			}
		}
		slices.Sort(names)
		found[m[1]] = names
	}
	for name, labels := range metricNames() {
		if have, ok := found[name]; !ok {
			w.t.Errorf("there is no metric %s", name)
		} else if !slices.Equal(have, labels) {
			w.t.Errorf("%s has labels %q, want %q", name, have, labels)
		}
	}
	for name := range found {
		if strings.HasPrefix(name, "relayd_") && !strings.Contains(text, "# HELP "+regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")+" ") {
			w.t.Errorf("%s has no help", name)
		}
	}
}

// TestMetricsListener has health and metrics on an address of their own for other machines.
func TestMetricsListener(t *testing.T) {
	t.Parallel()
	addr, err := rig.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.start(plan{more: fmt.Sprintf("metrics: {address: %q}\n", addr)})
	other := *w.relay
	other.Admin = addr
	for _, path := range []string{"/metrics", "/readyz", "/livez"} {
		if code, body, err := other.Page(t.Context(), path); code != http.StatusOK || body == "" || err != nil {
			t.Errorf("%s: %d %q, %v", path, code, body, err)
		}
	}
}

// registry stands in front of the sandbox's Entra ID and keeps the tokens it hands out.
type registry struct {
	addr string
	ca   string // file: the sandbox's CA and its own

	mu     sync.Mutex // guards tokens
	tokens []string
}

func newRegistry(t *testing.T, w *world) *registry {
	t.Helper()
	r := &registry{ca: w.path("both.pem")}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: w.far.HTTP})
	proxy.ModifyResponse = func(resp *http.Response) error {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		resp.Body = io.NopCloser(strings.NewReader(string(body)))
		var answer struct {
			Token string `json:"access_token"`
		}
		if json.Unmarshal(body, &answer) == nil && answer.Token != "" {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.tokens = append(r.tokens, answer.Token)
		}
		return nil
	}
	server := httptest.NewTLSServer(proxy)
	t.Cleanup(server.Close)
	r.addr = server.URL
	far, err := os.ReadFile(w.far.CA)
	if err != nil {
		t.Fatal(err)
	}
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	replaceFile(t, r.ca, string(far)+string(own))
	return r
}

// TestNoSecretEscapes plants secrets, a password and tokens, has everything go wrong that touches them, and looks for them
// in all the relay says: the log at its most talkative, the metrics, and every answer by HTTP and SMTP.
func TestNoSecretEscapes(t *testing.T) {
	t.Parallel()
	const wrongSecret, wrongPassword = "canary-wrong-secret-5f1c", "canary-wrong-password-77aa"
	w := newWorld(t)
	r := newRegistry(t, w)
	roots := certificate(t, w.path("tls.crt"), w.path("tls.key"))
	replaceFile(t, w.path("secret"), wrongSecret)
	submission, _ := w.startWithLogin(plan{authority: r.addr, ca: r.ca, more: "log: {level: debug}\n"})

	// A wrong secret, which Entra ID may repeat in its refusal; then the right one.
	w.send("crm@contoso.com", letter("crm@contoso.com", "wrong-secret"))
	w.becomes(1, "relayd_queue_messages", `state="parked"`)
	w.stop()
	replaceFile(t, w.path("secret"), rig.Secret)
	log := w.relay.Log()
	w.restart()
	w.arrived("crm@contoso.com", 1, patience)

	// Logins, right and wrong, in clear and over TLS.
	var said strings.Builder
	login := func(name, password string) {
		c := dial(t, submission)
		try := func(line string) {
			c.write(line + "\r\n")
			_, text, err := c.text.ReadResponse(0)
			if err == nil && text == "" {
				t.Errorf("no answer to %.4s", line)
			}
			said.WriteString(text + "\n")
		}
		plain := base64.StdEncoding.EncodeToString([]byte("\x00" + name + "\x00" + password))
		try("EHLO app.contoso.com")
		try("AUTH PLAIN " + plain)
		try(password)
		c.upgrade(roots)
		try("EHLO app.contoso.com")
		try("AUTH " + password)
		try("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte(password)))
		try("AUTH PLAIN " + plain)
	}
	login("erp", erpPassword)
	login("erp", wrongPassword)
	login("nobody", wrongPassword)

	// Tokens refused in every way, also by a server that repeats what it was sent.
	for i, rule := range []string{
		`{"preset": "auth-unsuccessful", "count": 2}`,
		`{"preset": "auth-challenge", "count": 1}`,
		`{"preset": "mail-not-authenticated", "count": 1}`,
		`{"stage": "auth", "raw": "not SMTP at all\r\n", "count": 1}`,
		`{"stage": "auth", "close": "rst", "count": 1}`,
	} {
		w.noFaults()
		w.fault("%s", rule)
		sender := fmt.Sprintf("s%d@contoso.com", i)
		before, _ := w.metric("relayd_exchange_replies_total", `stage="greeting"`)
		w.send(sender, letter(sender, "refused"))
		eventually(t, "the fault has struck", func() bool {
			n, _ := w.metric("relayd_exchange_replies_total", `stage="greeting"`)
			return n > before
		})
	}
	w.noFaults()
	w.hangup(reloaded) // parked ones are tried at once
	for i := range 5 {
		w.arrived(fmt.Sprintf("s%d@contoso.com", i), 1, patience)
	}

	for _, path := range []string{"/metrics", "/livez", "/readyz", "/startupz", "/", "/debug/pprof/", "/debug/pprof/cmdline", "/api/v1/config"} {
		_, body, err := w.relay.Page(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		said.WriteString(body)
	}
	all := log + w.relay.Log() + said.String()
	if !strings.Contains(all, `"level":"debug"`) || !strings.Contains(all, `"msg":"access token fetched"`) {
		t.Error("the log is not at its most talkative")
	}
	r.mu.Lock()
	tokens := r.tokens
	r.mu.Unlock()
	if len(tokens) < 2 {
		t.Fatalf("%d tokens were handed out", len(tokens))
	}
	canaries := map[string]string{
		"the client secret": rig.Secret, "a wrong client secret": wrongSecret, "a password": erpPassword, "a wrong password": wrongPassword,
		"a wrong password, encoded": base64.StdEncoding.EncodeToString([]byte("\x00erp\x00" + wrongPassword)),
		"a password, encoded":       base64.StdEncoding.EncodeToString([]byte("\x00erp\x00" + erpPassword)),
		"a password hash":           "$2a$10$",
		"a token in XOAUTH2":        base64.StdEncoding.EncodeToString([]byte("user=s0@contoso.com\x01auth=Bearer "))[:40],
	}
	for i, token := range tokens {
		for j, part := range strings.Split(token, ".") { // any of its parts, from its middle
			if j > 0 {
				canaries[fmt.Sprintf("part %d of token %d", j, i)] = part[len(part)/4 : len(part)/2]
			}
		}
	}
	for what, canary := range canaries {
		if escaped := strings.Trim(fmt.Sprintf("%q", canary), `"`); escaped != canary && strings.Contains(all, escaped) { // as JSON has it
			t.Errorf("%s escapes", what)
		}
		if i := strings.Index(all, canary); i >= 0 {
			t.Errorf("%s escapes: …%q…", what, all[max(0, i-200):min(len(all), i+20)])
		}
	}
}
