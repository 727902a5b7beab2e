package main

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/config"
	"relayd/pkg/envelope"
)

// mailroom is a queue behind the real API, of which the test knows everything.
type mailroom struct {
	mu    sync.Mutex // guards the rest
	list  []envelope.Summary
	raw   map[envelope.ID]string // content; absent: no longer kept
	busy  envelope.ID
	acts  []string
	sent  api.Submission
	text  string
	story []*api.Message // what successive Gets see; the last stays; nil: not found
}

func (m *mailroom) List(_ context.Context, q envelope.Query) ([]envelope.Summary, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []envelope.Summary
	for _, s := range m.list {
		if (q.ID == "" || q.ID == s.ID) && (q.Before == "" || s.ID < q.Before) && (q.Sender == "" || q.Sender == string(s.Sender)) &&
			(q.State == "" || q.State == s.State) && (q.MessageID == "" || q.MessageID == s.MessageID) && (q.Until.IsZero() || s.Received.Before(q.Until)) &&
			(q.Recipient == "" || q.Recipient == string(s.Recipients[0])) && len(found) < q.Limit {
			found = append(found, s)
		}
	}
	return found, nil
}

func (m *mailroom) Get(context.Context, envelope.ID) (*api.Message, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.story) == 0 {
		return nil, api.ErrNotFound
	}
	now := m.story[0]
	if len(m.story) > 1 {
		m.story = m.story[1:]
	}
	if now == nil {
		return nil, api.ErrNotFound
	}
	return now, nil
}

func (m *mailroom) Raw(_ context.Context, id envelope.ID) (io.ReadCloser, int64, error) {
	text, ok := m.raw[id]
	if !ok {
		return nil, 0, api.ErrNotFound
	}
	return io.NopCloser(strings.NewReader(text)), int64(len(text)), nil
}

func (m *mailroom) act(what string, id envelope.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if id == m.busy {
		return api.ErrBusy
	}
	if !slices.ContainsFunc(m.list, func(s envelope.Summary) bool { return s.ID == id }) {
		return api.ErrNotFound
	}
	m.acts = append(m.acts, what+" "+string(id))
	return nil
}

func (m *mailroom) Retry(_ context.Context, id envelope.ID, _ string) error {
	return m.act("retry", id)
}
func (m *mailroom) Hold(_ context.Context, id envelope.ID, _ string) error { return m.act("hold", id) }
func (m *mailroom) Release(_ context.Context, id envelope.ID, _ string) error {
	return m.act("release", id)
}
func (m *mailroom) Drop(_ context.Context, id envelope.ID, _ string) error { return m.act("drop", id) }

func (m *mailroom) Send(_ context.Context, s api.Submission) (envelope.ID, error) {
	text, err := io.ReadAll(s.Message)
	m.sent, m.text = s, string(text)
	return mailIDs(1)[0], err
}

// mailIDs are n ids, the latest first, an hour apart.
func mailIDs(n int) []envelope.ID {
	ids := make([]envelope.ID, n)
	for i := range ids {
		ids[i] = envelope.NewID(time.Now().Add(-time.Duration(i) * time.Hour))
	}
	return ids
}

// newMailroom returns n messages behind an API, and its address.
func newMailroom(t *testing.T, n int) (*mailroom, string) {
	t.Helper()
	m := &mailroom{raw: map[envelope.ID]string{}}
	for i, id := range mailIDs(n) {
		m.list = append(m.list, envelope.Summary{
			ID: id, Received: id.Time(), Sender: "erp@contoso.com", Recipients: []envelope.Address{"a@example.com"}, State: envelope.Deferred, Attempts: i,
		})
		m.raw[id] = "Subject: " + string(id) + "\r\n\r\nbody\r\n"
	}
	return m, serveAPI(t, api.Options{Messages: m})
}

// serveAPI serves an API to one who may do everything, and returns its address.
func serveAPI(t *testing.T, opts api.Options) string {
	t.Helper()
	h, err := api.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	who := &access.Principal{Name: "ops", Role: access.Admin, Scopes: access.Admin.Scopes(), Peer: "127.0.0.1"}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(access.With(r.Context(), who)))
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// relaydCommand runs a command as relayd itself would: below a root.
func relaydCommand(t *testing.T, stdin string, sub *cobra.Command, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	root := &cobra.Command{Use: "relayd"}
	root.AddCommand(sub)
	markUsage(root)
	return execute(t, root, stdin, append([]string{sub.Name()}, args...)...)
}

func isUsage(err error) bool {
	_, ok := errors.AsType[*usageError](err)
	return ok
}

func TestClientAddress(t *testing.T) {
	file := writeConfig(t, "listeners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:9999\"}\n"+
		"tenants: [{name: c, tenant_id: 00000000-0000-0000-0000-000000000000, client_id: 11111111-1111-1111-1111-111111111111, client_secret: \"file:/nowhere\"}]\n"+
		"senders: [{match: \"*@contoso.com\", tenant: c}]\n")
	for _, tt := range []struct {
		flags apiFlags
		want  string
	}{
		{apiFlags{}, "http://127.0.0.1:8080"},
		{apiFlags{config: file}, "http://127.0.0.1:9999"}, // a secret this user may not read is no obstacle
		{apiFlags{config: file, url: "http://[::1]:1/"}, "http://[::1]:1"},
		{apiFlags{url: "https://relay.example"}, "https://relay.example"},
	} {
		c, err := tt.flags.client()
		if err != nil || c.base != tt.want {
			t.Errorf("%+v: got %v, %v, want %s", tt.flags, c, err, tt.want)
		}
	}
	for _, bad := range []string{"127.0.0.1:8080", "ftp://x", "http://", "http://user:pass@x", "http://x/api", "http://x?y", "http://x:port", "::"} {
		if _, err := (&apiFlags{url: bad}).client(); !isUsage(err) || !strings.Contains(err.Error(), "write one like http://127.0.0.1:8080") {
			t.Errorf("%s: got %v", bad, err)
		}
	}
	if _, err := (&apiFlags{config: "/nowhere/relayd.yaml"}).client(); err == nil || !strings.Contains(err.Error(), "/nowhere/relayd.yaml") {
		t.Errorf("no file: got %v", err)
	}
	if _, err := (&apiFlags{config: writeConfig(t, "admin: {adress: x}\n")}).client(); err == nil || !strings.Contains(err.Error(), "adress") {
		t.Errorf("a bad file: got %v", err)
	}
}

// What the configuration says of the admin listener is where its own machine reaches it.
func TestClientPlace(t *testing.T) {
	for _, tt := range []struct {
		admin config.Admin
		want  place
	}{
		{config.Admin{Address: "127.0.0.1:8080"}, place{base: "http://127.0.0.1:8080"}},
		{config.Admin{Address: ":8080"}, place{base: "http://127.0.0.1:8080"}},
		{config.Admin{Address: "0.0.0.0:8080"}, place{base: "http://127.0.0.1:8080"}},
		{config.Admin{Address: "[::]:8080"}, place{base: "http://127.0.0.1:8080"}},
		{config.Admin{Address: "[::1]:8080"}, place{base: "http://[::1]:8080"}},
		{config.Admin{Address: "127.0.0.1:8080", PublicURL: "https://relay.contoso.com"}, place{base: "http://127.0.0.1:8080"}}, // a proxy's
		{
			config.Admin{Address: "0.0.0.0:443", PublicURL: "https://relay.contoso.com/", TLS: config.AdminTLS{CertFile: "/cert.pem"}},
			place{base: "https://127.0.0.1:443", name: "relay.contoso.com", ca: "/cert.pem"},
		},
		{config.Admin{Address: "relay.contoso.com:443", TLS: config.AdminTLS{CertFile: "/c"}}, place{base: "https://relay.contoso.com:443", ca: "/c"}},
	} {
		if got := placeOf(&tt.admin); got != tt.want {
			t.Errorf("%+v: got %+v, want %+v", tt.admin, got, tt.want)
		}
	}
}

func TestClientToken(t *testing.T) {
	var asked string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Authorization")
		io.WriteString(w, `{"messages":[]}`)
	}))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		env, file string
		args      []string
		want      string
	}{
		{"", "", nil, ""},
		{"relayd_env", "", nil, "Bearer relayd_env"},
		{"relayd_env", "relayd_file\r\n", []string{"--token-file", file}, "Bearer relayd_file"},
		{"relayd_env", "", []string{"--token", "relayd_flag"}, "Bearer relayd_flag"},
	} {
		t.Setenv("RELAYD_TOKEN", tt.env)
		write(tt.file)
		_, _, err := relaydCommand(t, "", newQueueCommand(), append([]string{"list", "--api", s.URL}, tt.args...)...)
		if err != nil || asked != tt.want {
			t.Errorf("%+v: got %q, %v", tt, asked, err)
		}
	}
	t.Setenv("RELAYD_TOKEN", "")
	asked = "nothing"
	for _, tt := range []struct {
		file string
		args string
		want string
	}{
		{"", "--token a --token-file " + file, "--token and --token-file exclude each other"},
		{"\n", "--token-file " + file, "is empty; relayd token makes a token"},
		{"two words", "--token-file " + file, "has no API token, which is one word"},
		{strings.Repeat("x", maxToken+1), "--token-file " + file, "has no API token"},
		{"", "--token-file " + file + "x", "no such file"},
		{"", "--token canary --api http://192.0.2.1:8080", "http://192.0.2.1:8080 would send the API token in clear"},
		{"", "--token canary --api http://relay.contoso.com", "would send the API token in clear"},
		{"", "--ca " + file, "has no certificate in PEM form"},
		{"", "--ca " + file + "x", "--ca: open"},
	} {
		write(tt.file)
		_, _, err := relaydCommand(t, "", newQueueCommand(), append([]string{"list", "--api", s.URL}, strings.Fields(tt.args)...)...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: got %v, want %q", tt.args, err, tt.want)
		}
	}
	if asked != "nothing" {
		t.Errorf("sent %q", asked)
	}
}

// A certificate is checked against --ca, or what the configuration has, by the name that browsers use.
func TestClientTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"messages":[]}`) }))
	defer s.Close()
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	cert := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	list := func(args ...string) error {
		_, _, err := relaydCommand(t, "", newQueueCommand(), append([]string{"list", "--token", "relayd_x"}, args...)...)
		return err
	}
	if err := list("--api", s.URL, "--ca", cert); err != nil {
		t.Errorf("with --ca: %v", err)
	}
	if err := list("--api", s.URL); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("without: %v", err)
	}
	file := func(url string) string {
		return writeConfig(t, "listeners: [{address: \"127.0.0.1:0\"}]\ntenants: [{name: c, tenant_id: 00000000-0000-0000-0000-000000000000, "+
			"client_id: 11111111-1111-1111-1111-111111111111, client_secret: \"file:/nowhere\"}]\nsenders: [{match: \"*@contoso.com\", tenant: c}]\n"+
			"admin: {address: \""+strings.TrimPrefix(s.URL, "https://")+"\", public_url: \""+url+"\", tls: {cert_file: \""+cert+"\", key_file: /nowhere}}\n")
	}
	if err := list("--config", file("https://example.com")); err != nil { // a name of the certificate
		t.Errorf("by the configuration: %v", err)
	}
	if err := list("--config", file("https://relay.contoso.com")); err == nil || !strings.Contains(err.Error(), "not relay.contoso.com") {
		t.Errorf("by another name: %v", err)
	}
}

func TestClientRefusals(t *testing.T) {
	const nobody = `{"detail":"say who asks"}`
	for _, tt := range []struct {
		code  int
		token string
		body  string
		want  string
	}{
		{401, "", nobody, "list: the relay does not know who asks; give it an API token with --token-file or RELAYD_TOKEN (relayd token makes one), or run this on its machine as root or as the user it runs as"},
		{401, "relayd_x", nobody, "list: the relay does not accept this API token: say who asks"},
		{403, "relayd_x", `{"detail":"this takes the scope read"}`, "list: this takes the scope read"},
		{422, "", `{"detail":"x","errors":[{"location":"body.match","message":"is no\u001b[2J address"},{"location":"body","message":"b"},{"message":"c"}]}`, `list: match: is no\x1b[2J address; b; c`},
		{422, "", `{"detail":"535 refused","cause":"consent is gone","advice":"Sign in.\nThen retry."}`, "list: 535 refused: consent is gone\nadvice: Sign in.\n        Then retry."},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(tt.code)
			io.WriteString(w, tt.body)
		}))
		args := []string{"list", "--api", s.URL}
		if tt.token != "" {
			args = append(args, "--token", tt.token)
		}
		if _, _, err := relaydCommand(t, "", newQueueCommand(), args...); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.body, err, tt.want)
		}
		s.Close()
	}
}

// Whatever is or is not at the address, the error says so and names the way out.
func TestClientErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	l.Close()
	page := func(code int, kind, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Location", "http://192.0.2.1/")
			w.WriteHeader(code)
			io.WriteString(w, body)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	for name, tt := range map[string]struct{ url, want string }{
		"nobody there": {nobody, "relayd serve is not answering at " + nobody + " (dial tcp"},
		"the way out":  {nobody, "start it, or name its admin address with --api or --config"},
		"no API":       {page(404, "text/plain", "nothing here"), "answers, but not as a relay of this version would (404 Not Found)"},
		"a redirect":   {page(302, "text/html", ""), "answers, but not as a relay of this version would (302 Found)"},
		"another page": {page(200, "text/html", "<html>"), "answers, but not as a relay of this version would (invalid character"},
		"a problem":    {page(503, "application/problem+json", `{"detail":"the queue's storage is\u001b[2J away"}`), `list: the queue's storage is\x1b[2J away`},
		"no problem":   {page(500, "application/problem+json", `{}`), "(500 Internal Server Error)"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := relaydCommand(t, "", newQueueCommand(), "list", "--api", tt.url)
			if err == nil || isUsage(err) || !strings.Contains(err.Error(), tt.want) || strings.Count(err.Error(), tt.url) > 1 {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		`plain "quoted" \ back`: `plain "quoted" \ back`,
		"日本語 é":                 "日本語 é",
		"\x1b[31mred\r\n\tx":    `\x1b[31mred\r\n\tx`,
		"\u202egnp.exe":         `\u202egnp.exe`,
		"\xff\u0085":            `\xff\u0085`,
		"":                      "",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}
