package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func tenantFields(more ...string) Fields {
	f := Fields{"name": "fabrikam", "tenant_id": "fabrikam.com", "client_id": "11111111-1111-1111-1111-111111111111",
		"grant": "delegated", "client_secret": "env:what it looks like"}
	for i := 0; i < len(more); i += 2 {
		f[more[i]] = more[i+1]
	}
	return f
}

func problemsOf(problems []Problem) string {
	var all []string
	for _, p := range problems {
		all = append(all, p.Key+": "+p.Text)
	}
	return strings.Join(all, "\n")
}

func TestNewTenant(t *testing.T) {
	c := mustParse(t, sixLines)
	tenant, problems := c.NewTenant(tenantFields())
	if len(problems) > 0 {
		t.Fatalf("got %v", problems)
	}
	if value, err := tenant.ClientSecret.Resolve(); err != nil || value != "env:what it looks like" {
		t.Errorf("got the secret %q, %v: what is entered is the value itself", value, err)
	}
	if tenant.Scope != "https://outlook.office.com/SMTP.Send offline_access" || tenant.SMTPServer != "smtp.office365.com:587" {
		t.Errorf("got %+v without the defaults of its cloud and grant", tenant)
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", tenant, tenant, tenant), "looks like") {
		t.Error("the secret is shown")
	}
	for _, test := range []struct{ field, value, want string }{
		{"name", "contoso", `name: "contoso" is the name of tenants[0], too; give each tenant its own`},
		{"tenant_id", "", "tenant_id: is missing; copy the Directory (tenant) ID of the app registration"},
		{"client_id", "mine", `client_id: "mine" is not a GUID; copy the Application (client) ID of the app registration`},
		{"client_secret", "a\nb", "client_secret: holds a control character, or is too long; copy the secret's value again"},
		{"cloud", "mars", `cloud: unknown value "mars"; write worldwide or gcc-high or dod or china`},
		{"credential_expires", "soon", `credential_expires: "soon" is not a date; write it like 2027-03-31`},
		{"ca_file", "testdata/files/absent", `ca_file: "testdata/files/absent" cannot be read: no such file or directory; name a readable file with the PEM certificate of the CA`},
		{"authority", "http://login", "authority: is not a base URL with https; write one like https://login.microsoftonline.com"},
		{"certificate.cert_file", "testdata/files/absent", "certificate: is one credential too many, beside client_secret; take one away\n" +
			"certificate.key_file: is missing, and cert_file needs it; name a PEM file"},
		{"nonsense", "x", "nonsense: is no field here; take it away"},
	} {
		if _, problems := c.NewTenant(tenantFields(test.field, test.value)); problemsOf(problems) != test.want {
			t.Errorf("%s=%s: got\n%s\nwant\n%s", test.field, test.value, problemsOf(problems), test.want)
		}
	}
	if len(c.Tenants) != 1 {
		t.Error("judging a tenant has changed the configuration")
	}
}

func TestNewSender(t *testing.T) {
	c := mustParse(t, sixLines)
	s, problems := c.NewSender(Fields{"address": "erp@fabrikam.com", "tenant": "contoso", "login": "relay@fabrikam.com", "connections": "2"})
	if len(problems) > 0 || s.Connections != 2 || s.MessagesPerMinute != 30 || s.Login != "relay@fabrikam.com" {
		t.Errorf("got %+v, %v", s, problems)
	}
	for _, test := range []struct {
		fields Fields
		want   string
	}{
		{Fields{"tenant": "contoso"}, ": has neither address nor match; write one"},
		{Fields{"address": "erp", "tenant": "contoso"}, `address: "erp" is not a mail address; write one like app@contoso.com`},
		{Fields{"match": "*@CONTOSO.com", "tenant": "contoso"}, `address: "*@CONTOSO.com" has an entry already; change that one`},
		{Fields{"address": "a@b.com", "tenant": "contosoo"}, `tenant: no tenant is called "contosoo"; did you mean contoso?`},
		{Fields{"address": "a@b.com", "tenant": "contoso", "connections": "-1"}, "connections: -1 is too small; write at least 1"},
		{Fields{"address": "a@b.com", "tenant": "contoso", "fallback": "c@d.com"}, `fallback: "c@d.com" is covered by no entry of senders; add it there`},
	} {
		if _, problems := c.NewSender(test.fields); problemsOf(problems) != test.want {
			t.Errorf("%v: got\n%s\nwant\n%s", test.fields, problemsOf(problems), test.want)
		}
	}
}

func TestExtend(t *testing.T) {
	c := mustParse(t, sixLines)
	x := c.Extend(Added{
		Tenants: []Fields{tenantFields(), tenantFields("name", "contoso"), tenantFields("name", "broken", "client_id", "")},
		Senders: []Fields{
			{"address": "a@fabrikam.com", "tenant": "fabrikam"}, {"match": "*@Contoso.com", "tenant": "fabrikam"},
			{"address": "b@fabrikam.com", "tenant": "gone"}, {"address": "c@fabrikam.com", "tenant": "contoso", "fallback": "a@fabrikam.com"},
		},
	})
	if len(x.Tenants) != 2 || x.Tenants[1].Name != "fabrikam" || x.TenantsOfFile != 1 || len(x.Senders) != 3 || x.SendersOfFile != 1 {
		t.Errorf("got the tenants %v and senders %v", x.Tenants, x.Senders)
	}
	if len(x.Shadowed.Tenants) != 1 || len(x.Shadowed.Senders) != 1 {
		t.Errorf("got %v in the file's shadow", x.Shadowed)
	}
	if len(x.Refused) != 2 || x.Refused[0].Fields["name"] != "broken" || x.Refused[1].Fields["address"] != "b@fabrikam.com" {
		t.Errorf("got %v refused", x.Refused)
	}
	if len(c.Tenants) != 1 || len(c.Senders) != 1 {
		t.Error("the file's configuration has changed")
	}
}

func TestExplain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "relayd.yaml")
	text := strings.Replace(sixLines, "file:/run/secrets/contoso", "hunter2", 1) +
		"queue: {retry: [1m, 5m]}\nclients: [{username: erp, senders: [a@contoso.com], password_hash: $2a$10$7EqJtq98hPqEX7fNZaFWoOhi5B0a8i6F8G4d1bKqfQn5r3XvQ0v1e}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RELAYD_LOG_LEVEL", "debug")
	settings, err := Explain(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Setting{
		{"queue.lifetime", "5d", "default"}, {"log.level", "debug", "env RELAYD_LOG_LEVEL"},
		{"tenants[0].client_secret", "[redacted]", "file:4"}, {"tenants[0].name", "contoso", "file:3"},
		{"clients[0].password_hash", "[redacted]", "file:7"}, {"queue.retry", "[1m, 5m]", "file:6"}, {"vault.key", "", "default"},
	} {
		if !slices.Contains(settings, want) {
			i := slices.IndexFunc(settings, func(s Setting) bool { return s.Key == want.Key })
			t.Errorf("%v is missing (%d)", want, i)
			if i >= 0 {
				t.Errorf("instead: %v", settings[i])
			}
		}
	}
	for _, s := range settings {
		if strings.Contains(s.Value, "hunter2") || strings.Contains(s.Value, "$2a$") {
			t.Errorf("%s is shown: %s", s.Key, s.Value)
		}
	}
	if _, err := Explain(file + "x"); err == nil {
		t.Error("a file that is not there was explained")
	}
}

func TestBaseURL(t *testing.T) {
	for _, test := range []struct {
		admin Admin
		want  string
		local bool
	}{
		{Admin{Address: "127.0.0.1:8080"}, "http://localhost:8080", true},
		{Admin{Address: "[::1]:80"}, "http://localhost:80", true},
		{Admin{Address: "localhost:8080"}, "http://localhost:8080", true},
		{Admin{Address: ":8080"}, "http://localhost:8080", false},
		{Admin{Address: "0.0.0.0:8443", TLS: AdminTLS{"c", "k"}}, "https://localhost:8443", false},
		{Admin{Address: "10.1.2.3:8080"}, "http://10.1.2.3:8080", false},
		{Admin{Address: "127.0.0.1:8080", PublicURL: "https://relay.contoso.com/"}, "https://relay.contoso.com", true},
	} {
		if got := test.admin.BaseURL(); got != test.want || test.admin.Loopback() != test.local {
			t.Errorf("%+v: got %s, loopback %v", test.admin, got, test.admin.Loopback())
		}
	}
}

// A thousand entries from the page are judged again with every change.
func BenchmarkExtend(b *testing.B) {
	c, _, err := Parse("relayd.yaml", []byte(sixLines), nil)
	if err != nil {
		b.Fatal(err)
	}
	var added Added
	for i := range 1000 {
		added.Senders = append(added.Senders, Fields{"address": fmt.Sprintf("s%d@fabrikam.com", i), "tenant": "contoso"})
	}
	for b.Loop() {
		if x := c.Extend(added); len(x.Senders) != 1001 {
			b.Fatalf("%d senders, %v", len(x.Senders), x.Refused)
		}
	}
}

// TestAddedSendersFallBackOnEachOther: in whatever order they come; and one whose fallback cannot be in force is not either.
func TestAddedSendersFallBackOnEachOther(t *testing.T) {
	c := Default()
	c.Tenants = []Tenant{{Name: "contoso"}}
	x := c.Extend(Added{Senders: []Fields{
		{"address": "a@contoso.com", "tenant": "contoso", "fallback": "b@contoso.com"},
		{"address": "b@contoso.com", "tenant": "contoso", "fallback": "a@contoso.com"},
		{"address": "c@contoso.com", "tenant": "contoso", "fallback": "d@contoso.com"},
		{"address": "d@contoso.com", "tenant": "nobody"},
	}})
	if len(x.Senders) != 2 || x.Senders[0].Address != "a@contoso.com" || x.Senders[1].Address != "b@contoso.com" {
		t.Errorf("in force: %+v", x.Senders)
	}
	if len(x.Refused) != 2 || x.Refused[0].Fields["address"] != "d@contoso.com" || x.Refused[1].Fields["address"] != "c@contoso.com" {
		t.Errorf("refused: %+v", x.Refused)
	}
}

// What has no end, or never opens, is not read: it would stop the whole relay, or whoever waits for it.
func TestNewTenantReadsRegularFilesAlone(t *testing.T) {
	c := mustParse(t, sixLines)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, make([]byte, maxPEMBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/dev/zero", pipe, large, t.TempDir()} {
		if _, problems := c.NewTenant(tenantFields("ca_file", path)); len(problems) != 1 || problems[0].Key != "ca_file" {
			t.Errorf("ca_file %s: got %v", path, problems)
		}
		if _, problems := c.NewTenant(tenantFields("client_secret", "", "certificate.cert_file", path, "certificate.key_file", path)); len(problems) == 0 {
			t.Errorf("certificate %s was taken", path)
		}
	}
}
