package paste

import (
	"fmt"
	"strings"
	"testing"

	"relayd/pkg/admin/console"
)

const (
	guidA = "11111111-2222-3333-4444-555555555555"
	guidB = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
	value = "aBc8Q~tHisIsTheVaLue.of_a-Secret123456789"
)

func (r Remark) String() string {
	return strings.TrimSpace(r.Field + " " + r.Key + " " + strings.Join(r.Args, " "))
}

func TestTenant(t *testing.T) {
	good := console.TenantInput{Name: "contoso", TenantID: guidA, ClientID: guidB, ClientSecret: value}
	with := func(change func(*console.TenantInput)) console.TenantInput {
		in := good
		change(&in)
		return in
	}
	secret := func(s string) console.TenantInput {
		return with(func(in *console.TenantInput) { in.ClientSecret = s })
	}
	tenant := func(s string) console.TenantInput { return with(func(in *console.TenantInput) { in.TenantID = s }) }
	client := func(s string) console.TenantInput { return with(func(in *console.TenantInput) { in.ClientID = s }) }
	tests := []struct {
		name    string
		in      console.TenantInput
		want    console.TenantInput
		note    string
		mistake string
	}{
		{"nothing to say", good, good, "", ""},
		{"spaces around the secret", secret(" \t" + value + "\r\n"), good, "client_secret enrol.paste.secret.trimmed", ""},
		{"what has no width around the secret", secret("\ufeff" + value + "\u200b"), good, "client_secret enrol.paste.secret.trimmed", ""},
		{"no secret keeps the one there is", secret(""), secret(""), "", ""},
		{"a secret of spaces is none", secret("  "), secret(""), "client_secret enrol.paste.secret.blank", ""},
		{"the secret's ID", secret(guidA), secret(guidA), "", "client_secret enrol.paste.secret.id"},
		{"the secret's ID in capitals, with a space", secret(" " + strings.ToUpper(guidA)), secret(strings.ToUpper(guidA)),
			"client_secret enrol.paste.secret.trimmed", "client_secret enrol.paste.secret.id"},
		{"the client id for a secret", secret(guidB), secret(guidB), "", "client_secret enrol.paste.secret.client"},
		{"masked", secret("aBc" + strings.Repeat("*", 18)), secret("aBc" + strings.Repeat("*", 18)), "", "client_secret enrol.paste.secret.masked"},
		{"broken by a line end", secret(value[:20] + "\n" + value[20:]), secret(value[:20] + "\n" + value[20:]), "", "client_secret enrol.paste.secret.inside"},
		{"wide letters of an input method", secret("ａＢｃ8Q~"), secret("ａＢｃ8Q~"), "", "client_secret enrol.paste.secret.letters"},
		{"a reference is no secret", secret("file:/run/secrets/the secret"), secret("file:/run/secrets/the secret"), "",
			"client_secret enrol.paste.secret.reference"},
		{"another reference", secret("env:SECRET"), secret("env:SECRET"), "", "client_secret enrol.paste.secret.reference"},
		{"another reference, with a space", secret("cred: x"), secret("cred: x"), "", "client_secret enrol.paste.secret.reference"},
		{"the start of a reference", secret("env:"), secret("env:"), "", "client_secret enrol.paste.secret.reference"},
		{"no reference", secret("environment:8Q~x"), secret("environment:8Q~x"), "", ""},
		{"an id in capitals and braces", tenant("{" + strings.ToUpper(guidA) + "}"), good, "", ""},
		{"a domain", tenant("contoso.onmicrosoft.com"), tenant("contoso.onmicrosoft.com"), "", ""},
		{"an endpoint for the tenant", tenant("https://login.microsoftonline.com/" + guidA + "/oauth2/v2.0/token"),
			tenant("https://login.microsoftonline.com/" + guidA + "/oauth2/v2.0/token"), "", "tenant_id enrol.paste.tenant.url_guid " + guidA},
		{"a page for the tenant", tenant("https://entra.microsoft.com/#home"), tenant("https://entra.microsoft.com/#home"), "", "tenant_id enrol.paste.tenant.url"},
		{"a person for the tenant", tenant("admin@contoso.com"), tenant("admin@contoso.com"), "", "tenant_id enrol.paste.tenant.address contoso.com"},
		{"everybody's tenant", tenant("Common"), tenant("Common"), "", "tenant_id enrol.paste.tenant.shared common"},
		{"the client id twice", tenant(guidB), tenant(guidB), "", "tenant_id enrol.paste.tenant.client"},
		{"the client's name", client("Mail relay"), client("Mail relay"), "", "client_id enrol.paste.client.form"},
		{"a secret for the client", client(value), client(value), "", "client_id enrol.paste.client.secret"},
		{"a URI for the client", client("api://" + guidB), client("api://" + guidB), "", "client_id enrol.paste.client.url"},
		{"a name the page has itself", with(func(in *console.TenantInput) { in.Name = " new " }), with(func(in *console.TenantInput) { in.Name = "new" }),
			"", "name enrol.paste.tenant.new"},
		{"no client yet", client(""), client(""), "", ""},
	}
	p := New()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.in
			r := p.Tenant(&got)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if s := list(r.Notes); s != tt.note {
				t.Errorf("notes %q, want %q", s, tt.note)
			}
			if s := list(r.Mistakes); s != tt.mistake {
				t.Errorf("mistakes %q, want %q", s, tt.mistake)
			}
			for _, remark := range append(r.Notes, r.Mistakes...) {
				if strings.TrimSpace(tt.in.ClientSecret) != "" && strings.Contains(fmt.Sprint(remark.Args), strings.TrimSpace(tt.in.ClientSecret)) && tt.in.ClientSecret != guidB {
					t.Errorf("%v repeats the secret", remark)
				}
			}
		})
	}
}

func list(remarks []Remark) string {
	var all []string
	for _, r := range remarks {
		all = append(all, r.String())
	}
	return strings.Join(all, "; ")
}

func TestDate(t *testing.T) {
	for in, want := range map[string]string{
		"2027-12-31": "2027-12-31", " 2027/1/5 ": "2027-01-05", "2027年12月3日": "2027-12-03", "2027.1.2": "2027-01-02",
		"12/31/2027": "12/31/2027", "": "", "soon": "soon", // what may mean two days is the console's to refuse
	} {
		if got := New().date(in); got != want {
			t.Errorf("date(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSender(t *testing.T) {
	tests := []struct {
		name string
		in   console.SenderInput
		want console.SenderInput
		note string
	}{
		{"nothing to say", console.SenderInput{Match: "a@b.c", Tenant: "t"}, console.SenderInput{Match: "a@b.c", Tenant: "t"}, ""},
		{"with a name", console.SenderInput{Match: `"App" <a@b.c>`, Tenant: " t "}, console.SenderInput{Match: "a@b.c", Tenant: "t"},
			"match enrol.paste.address.taken a@b.c"},
		{"a link", console.SenderInput{Match: "a@b.c", Login: "mailto:x%2By@b.c?subject=z"}, console.SenderInput{Match: "a@b.c", Login: "x+y@b.c"},
			"login enrol.paste.address.taken x+y@b.c"},
		{"a domain", console.SenderInput{Match: "@b.c"}, console.SenderInput{Match: "*@b.c"}, "match enrol.paste.sender.domain b.c"},
		{"all of a domain by one mailbox", console.SenderInput{Match: "*@b.c", Login: "a@b.c"}, console.SenderInput{Match: "*@b.c", Login: "a@b.c"},
			"login enrol.paste.sender.shared a@b.c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.in
			r := New().Sender(&got)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if s := list(r.Notes); s != tt.note || len(r.Mistakes) > 0 {
				t.Errorf("notes %q, want %q; mistakes %v", s, tt.note, r.Mistakes)
			}
		})
	}
}

// Reading twice changes nothing more: what was put right is right.
func FuzzTenant(f *testing.F) {
	f.Add("https://login.microsoftonline.com/"+guidA, guidB, " "+value, "2027/1/2")
	f.Add("{"+guidA+"}", "x~y", "mailto:", "\u200b")
	f.Fuzz(func(t *testing.T, tenant, client, secret, date string) {
		p := New()
		in := console.TenantInput{TenantID: tenant, ClientID: client, ClientSecret: secret, CredentialExpires: date}
		first := p.Tenant(&in)
		once := in
		second := p.Tenant(&in)
		if in != once || len(second.Notes) > 0 || list(first.Mistakes) != list(second.Mistakes) {
			t.Errorf("again: %+v, %v; before: %+v, %v", in, second, once, first)
		}
		Address(tenant)
	})
}
