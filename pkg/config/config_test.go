package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"relayd/configs"
)

// sixLines is the configuration the README promises to be enough.
const sixLines = `listeners: [{address: ":2525", allow_networks: [127.0.0.0/8, 10.0.0.0/8]}]
tenants:
  - {name: contoso, tenant_id: 00000000-0000-0000-0000-000000000000, client_id: 11111111-1111-1111-1111-111111111111,
     client_secret: "file:/run/secrets/contoso", grant: client_credentials}
senders: [{match: "*@contoso.com", tenant: contoso}]
`

func mustParse(t *testing.T, text string, environ ...string) *Config {
	t.Helper()
	c, _, err := Parse("relayd.yaml", []byte(text), environ)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSixLinesAreEnough(t *testing.T) {
	c := mustParse(t, sixLines)
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	l, tenant, s := c.Listeners[0], c.Tenants[0], c.Senders[0]
	for _, row := range []struct {
		key       string
		got, want any
	}{
		{"hostname", c.Hostname, hostname},
		{"data_dir", c.DataDir, "./relayd-data"},
		{"address", l.Address, ":2525"},
		{"tls", l.TLS, "none"},
		{"min_tls", l.MinTLSVersion(), uint16(tls.VersionTLS12)},
		{"auth", l.Auth, "none"},
		{"plaintext_auth", l.PlaintextAuth, false},
		{"allow_networks", fmt.Sprint(Prefixes(l.AllowNetworks)), "[127.0.0.0/8 10.0.0.0/8]"},
		{"line_endings", l.LineEndings, "normalize"},
		{"proxy_protocol", l.ProxyProtocol, false},
		{"max_connections", l.MaxConnections, 1000},
		{"max_connections_per_ip", l.MaxConnectionsPerIP, 50},
		{"command_timeout", time.Duration(l.CommandTimeout), 5 * time.Minute},
		{"min_body_rate", int64(l.MinBodyRate), int64(500)},
		{"clients", len(c.Clients), 0},
		{"message_bytes", int64(c.Limits.MessageBytes), int64(35 * 1024 * 1024)},
		{"recipients", c.Limits.Recipients, 500},
		{"header_bytes", int64(c.Limits.HeaderBytes), int64(128 * 1024)},
		{"hops", c.Limits.Hops, 50},
		{"memory_bytes", int64(c.Limits.MemoryBytes), int64(64 * 1024 * 1024)},
		{"backend", c.Queue.Backend, "embedded"},
		{"lifetime", time.Duration(c.Queue.Lifetime), 120 * time.Hour},
		{"retry", fmt.Sprint(c.Queue.Retry), "[1m 5m 15m 30m 1h 2h 4h]"},
		{"delay_warning", time.Duration(c.Queue.DelayWarning), 4 * time.Hour},
		{"keep_sent", time.Duration(c.Queue.KeepSent), 7 * 24 * time.Hour},
		{"keep_failed", time.Duration(c.Queue.KeepFailed), 30 * 24 * time.Hour},
		{"cloud", tenant.Cloud, "worldwide"},
		{"grant", tenant.Grant, "client_credentials"},
		{"authority", tenant.Authority, "https://login.microsoftonline.com"},
		{"scope", tenant.Scope, "https://outlook.office365.com/.default"},
		{"smtp_server", tenant.SMTPServer, "smtp.office365.com:587"},
		{"credential_expires", time.Time(tenant.CredentialExpires).IsZero(), true},
		{"transport", s.Transport, "smtp"},
		{"connections", s.Connections, 3},
		{"messages_per_minute", s.MessagesPerMinute, 30},
		{"recipients_per_day", s.RecipientsPerDay, 10000},
		{"unknown_sender", c.UnknownSender, UnknownSender{RewriteTo: "", ReplyToOriginal: true}},
		{"admin.address", c.Admin.Address, "127.0.0.1:8080"},
		{"metrics.address", c.Metrics.Address, ""},
		{"per_sender_limit", c.Metrics.PerSenderLimit, 200},
		{"level", c.Log.Level, "info"},
		{"format", c.Log.Format, ""},
	} {
		if row.got != row.want {
			t.Errorf("%s: got %v, want %v", row.key, row.got, row.want)
		}
	}
}

func TestListenerTakesLoopbackAloneByDefault(t *testing.T) {
	c := mustParse(t, `listeners: [{address: ":2525"}]`)
	allowed := func(ip string) bool {
		return slices.ContainsFunc(Prefixes(c.Listeners[0].AllowNetworks), func(p netip.Prefix) bool {
			return p.Contains(netip.MustParseAddr(ip))
		})
	}
	for ip, want := range map[string]bool{"127.0.0.1": true, "::1": true, "10.0.0.1": false, "::2": false} {
		if allowed(ip) != want {
			t.Errorf("%s allowed: got %v, want %v", ip, !want, want)
		}
	}
}

func TestDefaultsThatDepend(t *testing.T) {
	c := mustParse(t, `
listeners: [{address: ":1"}, {address: ":2", auth: none}]
clients: [{username: a, password_hash: $2a$10$`+strings.Repeat("a", 53)+`, senders: [a@b.example]}]
tenants:
  - {name: high, cloud: gcc-high, `+ids+`}
  - {name: dod, cloud: dod, `+ids+`}
  - {name: china, cloud: china, `+ids+`}
  - {name: own, cloud: china, authority: "https://localhost:1/x", `+ids+`}
senders: [{address: a@b.example, tenant: high}]
`)
	if c.Listeners[0].Auth != "optional" || c.Listeners[1].Auth != "none" {
		t.Errorf("auth with clients: got %q and %q, want optional, and none where it says so", c.Listeners[0].Auth,
			c.Listeners[1].Auth)
	}
	for i, want := range []string{
		"https://login.microsoftonline.us https://outlook.office365.us/.default smtp.office365.us:587",
		"https://login.microsoftonline.us https://outlook-dod.office365.us/.default smtp-dod.office365.us:587",
		"https://login.partner.microsoftonline.cn https://partner.outlook.cn/.default smtp.partner.outlook.cn:587",
		"https://localhost:1/x https://partner.outlook.cn/.default smtp.partner.outlook.cn:587",
	} {
		tenant := c.Tenants[i]
		if got := tenant.Authority + " " + tenant.Scope + " " + tenant.SMTPServer; got != want {
			t.Errorf("%s: got %s, want %s", tenant.Name, got, want)
		}
	}
}

const ids = `tenant_id: contoso.com, client_id: 11111111-1111-1111-1111-111111111111, client_secret: "env:SECRET"`

func TestMinTLSVersion(t *testing.T) {
	for word, want := range map[string]uint16{
		"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13,
	} {
		// Without quotes YAML makes a number of it, and 1.0 must not become 1.
		c := mustParse(t, `listeners: [{address: ":1", min_tls: `+word+`}]`)
		if got := c.Listeners[0].MinTLSVersion(); got != want {
			t.Errorf("%s: got %x, want %x", word, got, want)
		}
	}
}

// The sample says every default: without its comments it is the same as the shortest file.
func TestSampleEqualsDefaults(t *testing.T) {
	got := mustParse(t, string(configs.Sample()))
	want := mustParse(t, strings.Replace(sixLines, ", allow_networks: [127.0.0.0/8, 10.0.0.0/8]", "", 1))
	if !reflect.DeepEqual(got, want) {
		g, _ := got.Redacted()
		w, _ := want.Redacted()
		t.Errorf("the sample loads to\n%s\nthe defaults are\n%s", g, w)
	}
}

// Every key of the types stands in the sample, as a key or behind a "#", and nothing else does.
func TestSampleHoldsEveryKey(t *testing.T) {
	root, problem := parseYAML("sample", uncomment(configs.Sample()))
	if problem != nil {
		t.Fatal(problem)
	}
	found := map[string]bool{}
	var walk func(path string, n *yaml.Node)
	walk = func(path string, n *yaml.Node) {
		for i, child := range n.Content {
			switch {
			case n.Kind == yaml.SequenceNode:
				walk(path, child)
			case n.Kind == yaml.MappingNode && i%2 == 1:
				key := strings.TrimPrefix(path+"."+n.Content[i-1].Value, ".")
				found[key] = true
				walk(key, child)
			}
		}
	}
	walk("", root)
	descriptions, err := describe(configs.Sample())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keysOf("", reflect.TypeFor[Config]()) {
		if !found[key] {
			t.Errorf("%s is not in the sample", key)
		}
		if descriptions[key] == "" {
			t.Errorf("%s has no comment in the sample", key)
		}
		delete(found, key)
	}
	for key := range found {
		t.Errorf("%s is in the sample and in no type", key)
	}
}

// keysOf returns the path of every key of t, without list indices.
func keysOf(path string, t reflect.Type) (keys []string) {
	for f := range t.Fields() {
		key := strings.TrimPrefix(path+"."+f.Tag.Get("yaml"), ".")
		keys = append(keys, key)
		element := f.Type
		if element.Kind() == reflect.Slice {
			element = element.Elem()
		}
		if element.Kind() == reflect.Struct && element.Field(0).Tag.Get("yaml") != "" {
			keys = append(keys, keysOf(key, element)...)
		}
	}
	return keys
}

// What the sample shows behind "#" is right, too.
func TestSampleExamplesAreValid(t *testing.T) {
	text := string(uncomment(configs.Sample()))
	text = strings.Replace(text, "unknown_sender: reject\n", "", 1)
	text = strings.Replace(text, "    tls: none\n", "    tls: starttls\n", 1)
	// Either of the two, as the sample says.
	text = strings.Replace(text, "    address: invoices@contoso.com\n", "", 1)
	c := mustParse(t, text)
	if c.Hostname != "relay.contoso.com" || len(c.Clients) != 1 || c.UnknownSender.RewriteTo != "noreply@contoso.com" {
		t.Errorf("the sample's disabled keys were not read: %+v", c)
	}
}

func TestLoadNamesAnUnreadableFile(t *testing.T) {
	_, _, err := Load("testdata/absent.yaml")
	const want = "testdata/absent.yaml: cannot be read: no such file or directory; " +
		"name a file, `relayd config example` prints one to start from"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, _, err := Load(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory: got %v", err)
	}
}

func TestLoadRefusesHugeFiles(t *testing.T) {
	huge := strings.Repeat("#", maxFileBytes) + "\n"
	path := filepath.Join(t.TempDir(), "relayd.yaml")
	if err := os.WriteFile(path, []byte(huge), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(path); err == nil || !strings.Contains(err.Error(), "is larger than 4MiB") {
		t.Errorf("a file of %d bytes: got %v", len(huge), err)
	}
	// Three levels of aliases in a file of 46 KB.
	bomb := "listeners:\n  - &l {address: ':1', allow_networks: &n [" + strings.Repeat("10.0.0.1,", 2000) + "]}\n" +
		strings.Repeat("  - *l\n", 2000)
	if _, _, err := Parse("bomb", []byte(bomb), nil); err == nil || !strings.Contains(err.Error(), "use fewer aliases") {
		t.Error("4,000,000 values by aliases are read")
	}
}

func TestKeyPairs(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, dir, "good", time.Now().Add(time.Hour))
	old, oldKey := writePair(t, dir, "old", time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC))
	load := func(cert, key string) (warnings, problems string) {
		path := filepath.Join(dir, "relayd.yaml")
		text := fmt.Sprintf(`hostname: relay.contoso.com
listeners: [{address: ":2525", tls: starttls, cert_file: %s, key_file: %s}]
tenants: [{name: contoso, ca_file: %s, `+ids+`}]
senders: [{match: "*@contoso.com", tenant: contoso}]
`, cert, key, cert)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, ws, err := Load(path)
		if err != nil {
			return fmt.Sprint(ws), err.Error()
		}
		want := []string{cert, key}
		if slices.Sort(want); !slices.Equal(c.Files(), want) {
			t.Errorf("Files() = %v, want %v", c.Files(), want)
		}
		if pool, err := c.Tenants[0].RootCAs(); err != nil || pool == nil {
			t.Errorf("RootCAs() = %v, %v", pool, err)
		}
		return fmt.Sprint(ws), ""
	}
	t.Setenv("SECRET", "x")
	if warnings, problems := load(cert, key); warnings != "[]" || problems != "" {
		t.Errorf("a good pair: got %s, %s", warnings, problems)
	}
	if warnings, problems := load(old, oldKey); problems != "" ||
		!strings.Contains(warnings, ":2:58: listeners[0].cert_file: the certificate expired on 2020-01-02; renew it") {
		t.Errorf("an expired certificate: got %s, %s", warnings, problems)
	}
	if _, problems := load(cert, oldKey); !strings.Contains(problems, "private key does not match public key") {
		t.Errorf("a foreign key: got %s", problems)
	}
	if _, problems := load(key, key); !strings.Contains(problems, "holds no PEM certificate") {
		t.Errorf("a key as CA: got %s", problems)
	}
}

func TestRootCAsWithoutFile(t *testing.T) {
	if pool, err := new(Tenant).RootCAs(); pool != nil || err != nil {
		t.Errorf("got %v, %v, want nil for the system's roots", pool, err)
	}
}

// writePair writes a self-signed certificate and its key and returns their paths.
func writePair(t *testing.T, dir, name string, notAfter time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: notAfter.Add(-time.Hour * 24),
		NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestCredentialExpiryIsAnnouncedAMonthAhead(t *testing.T) {
	text := `{listeners: [{address: ":1"}], hostname: a.b, tenants: [{name: c, credential_expires: 2027-03-31, ` + ids +
		`}], senders: [{match: "*@contoso.com", tenant: c}]}`
	for day, want := range map[string]string{
		"2027-02-28": "",
		"2027-03-02": "2027-03-31 is less than 30 days away; make a new client secret",
		"2027-04-01": "2027-03-31 has passed; make a new client secret",
	} {
		now, err := time.Parse(time.DateOnly, day)
		if err != nil {
			t.Fatal(err)
		}
		_, r := parse("relayd.yaml", []byte(text), nil, now.Add(time.Hour))
		warnings, err := r.result()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, w := range warnings {
			got += w.Text
		}
		if got != want {
			t.Errorf("on %s: got %q, want %q", day, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sixLines))
	f.Add(configs.Sample())
	f.Add(uncomment(configs.Sample()))
	f.Add([]byte("listeners: &a [*a]\nsenders: *a"))
	f.Add([]byte("limits: {message_bytes: 1e308GiB, hops: 99999999999999999999}\nqueue: {lifetime: 9999999999h}"))
	f.Add([]byte("\xff\xfea: b"))
	f.Add([]byte("---\n...\n---\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, warnings, err := Parse("f.yaml", data, nil)
		if (c == nil) == (err == nil) {
			t.Fatalf("got %v and %v, want one of them", c, err)
		}
		for _, w := range warnings {
			checkProblem(t, w.Problem, data)
		}
		if err == nil {
			if len(c.Listeners) == 0 || c.Limits.MessageBytes > 150<<20 || len(c.Queue.Retry) == 0 {
				t.Errorf("accepted without listener, limit or schedule: %+v", c)
			}
			if _, err := c.Redacted(); err != nil {
				t.Errorf("cannot be dumped: %v", err)
			}
			return
		}
		e, ok := err.(*Error)
		if !ok || len(e.Problems) == 0 {
			t.Fatalf("got %T without problems", err)
		}
		for _, p := range e.Problems {
			checkProblem(t, p, data)
		}
	})
}

func checkProblem(t *testing.T, p Problem, data []byte) {
	t.Helper()
	if p.Text == "" || strings.ContainsAny(p.String(), "\n\r\x1b") {
		t.Errorf("a report that is not one printable line: %q", p.String())
	}
	if p.Line < 0 || p.Line > len(data)+1 {
		t.Errorf("line %d of a file of %d bytes", p.Line, len(data))
	}
}
