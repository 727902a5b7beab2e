package powershell

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// hostile are values that would become commands in any other form of quoting.
func hostile() []string {
	return []string{
		"'; Remove-Mailbox boss; '", "$(Remove-Mailbox boss)", "`nRemove-Mailbox boss", "\nRemove-Mailbox boss\n", "\" ; Remove-Mailbox \"",
		"‘; Remove-Mailbox boss; ’", "‚x‛", "a\x00b", "a\u202eb", "a\u2028Remove-Mailbox", "''", "'", "", "\ufeff\u200b", "a\xffb",
	}
}

// unquote reads what PowerShell reads of a single-quoted string, and what stands behind it.
func unquote(t testing.TB, s string) (value, rest string) {
	t.Helper()
	isQuote := func(r rune) bool { return strings.ContainsRune("'‘’‚‛", r) }
	runes := []rune(s)
	if len(runes) == 0 || !isQuote(runes[0]) {
		t.Fatalf("no quote opens %q", s)
	}
	var b strings.Builder
	for i := 1; i < len(runes); i++ {
		if !isQuote(runes[i]) {
			b.WriteRune(runes[i])
			continue
		}
		if i+1 < len(runes) && isQuote(runes[i+1]) {
			b.WriteRune(runes[i])
			i++
			continue
		}
		return b.String(), string(runes[i+1:])
	}
	t.Fatalf("%q never ends", s)
	return "", ""
}

func TestQuote(t *testing.T) {
	tests := []struct{ in, want, reads string }{
		{"a@contoso.com", "'a@contoso.com'", "a@contoso.com"},
		{"o'neil@contoso.com", "'o''neil@contoso.com'", "o'neil@contoso.com"},
		{"o’neil", "'o’’neil'", "o’neil"},
		{"$(x)`n\"", "'$(x)`n\"'", "$(x)`n\""},
		{"a\nb\r\tc\x00", "'abc'", "abc"},
		{"a\u202eb\u200b", "'ab'", "ab"},
		{"", "''", ""},
	}
	for _, tt := range tests {
		got := Quote(tt.in)
		if got != tt.want {
			t.Errorf("Quote(%q) = %s, want %s", tt.in, got, tt.want)
		}
		if reads, rest := unquote(t, got); reads != tt.reads || rest != "" {
			t.Errorf("Quote(%q) reads as %q and leaves %q", tt.in, reads, rest)
		}
	}
}

func FuzzQuote(f *testing.F) {
	for _, s := range hostile() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q := Quote(s)
		if _, rest := unquote(t, q); rest != "" {
			t.Errorf("Quote(%q) = %s ends early and leaves %q", s, q, rest)
		}
		if strings.ContainsAny(q, "\n\r\x00") || !utf8.ValidString(q) {
			t.Errorf("Quote(%q) = %q is more than one line, or no text", s, q)
		}
	})
}

// outside returns a script without what stands in quotes: what PowerShell would take for commands.
func outside(t *testing.T, script string) string {
	t.Helper()
	var b strings.Builder
	for script != "" {
		i := strings.IndexAny(script, "'‘’‚‛")
		if i < 0 {
			b.WriteString(script)
			break
		}
		b.WriteString(script[:i] + "_")
		_, script = unquote(t, script[i:])
	}
	return b.String()
}

// Whatever is filled in, the commands around it stay the same.
func TestNothingFilledInIsACommand(t *testing.T) {
	scripts := func(v string) string {
		a := App{TenantID: v, ClientID: v, ObjectID: "x" + v, Name: "n" + v}
		b := App{TenantID: v, ClientID: v, Cloud: v}
		return Connect(a) + Connect(b) + Principal(a) + Principal(b) + Classic(v) + RBAC(a, v) + SMTPAuth(v) + SendAs(v, v)
	}
	want := outside(t, scripts("plain"))
	for _, v := range hostile() {
		if got := outside(t, scripts(v)); got != want {
			t.Errorf("with %q the commands are\n%s\nwant\n%s", v, got, want)
		}
	}
}

// A filter is a language of its own inside the quotes: its value must not end there either.
func TestFilterIsQuotedTwice(t *testing.T) {
	got := RBAC(App{ClientID: "id"}, "o'neil@contoso.com")
	const want = "-RecipientRestrictionFilter 'PrimarySmtpAddress -eq ''o''''neil@contoso.com'''"
	if !strings.Contains(got, want) {
		t.Errorf("got\n%s\nwant it to hold %s", got, want)
	}
}

func TestScripts(t *testing.T) {
	a := App{TenantID: "1111", ClientID: "2222", ObjectID: "3333"}
	tests := []struct{ name, got, want string }{
		{"connect", Connect(a), "Connect-ExchangeOnline\n"},
		{"connect in China", Connect(App{Cloud: "china"}), "Connect-ExchangeOnline -ExchangeEnvironmentName O365China\n"},
		{"connect in GCC High", Connect(App{Cloud: "gcc-high"}), "Connect-ExchangeOnline -ExchangeEnvironmentName O365USGovGCCHigh\n"},
		{"connect in DoD", Connect(App{Cloud: "dod"}), "Connect-ExchangeOnline -ExchangeEnvironmentName O365USGovDoD\n"},
		{"principal", Principal(a), "New-ServicePrincipal -AppId '2222' -ObjectId '3333' -DisplayName 'relayd'\n" +
			"$principal = Get-ServicePrincipal | Where-Object AppId -eq '2222'\n"},
		{"principal, object id not known", Principal(App{TenantID: "1111", ClientID: "2222", Name: "Mail", Cloud: "dod"}),
			"Connect-MgGraph -Scopes 'Application.Read.All' -TenantId '1111' -Environment USGovDoD\n" +
				"$app = Get-MgServicePrincipal -Filter 'appId eq ''2222'''\n" +
				"New-ServicePrincipal -AppId '2222' -ObjectId $app.Id -DisplayName 'Mail'\n" +
				"$principal = Get-ServicePrincipal | Where-Object AppId -eq '2222'\n"},
		{"classic", Classic("a@b.c"), "Add-MailboxPermission -Identity 'a@b.c' -User $principal.Identity -AccessRights FullAccess\n" +
			"Add-RecipientPermission -Identity 'a@b.c' -Trustee $principal.Identity -AccessRights SendAs -Confirm:$false\n"},
		{"RBAC", RBAC(a, "a@b.c"), "New-ManagementScope -Name 'relayd a@b.c' -RecipientRestrictionFilter 'PrimarySmtpAddress -eq ''a@b.c'''\n" +
			"New-ManagementRoleAssignment -Name 'relayd a@b.c' -Role 'Application SMTP.SendAsApp' -App '2222' -CustomResourceScope 'relayd a@b.c'\n" +
			"Test-ServicePrincipalAuthorization -Identity '2222' -Resource 'a@b.c'\n"},
		{"SMTP AUTH", SMTPAuth("a@b.c"), "Set-CASMailbox -Identity 'a@b.c' -SmtpClientAuthenticationDisabled $false\n" +
			"Get-CASMailbox -Identity 'a@b.c' | Format-List SmtpClientAuthenticationDisabled\n" +
			"Get-TransportConfig | Format-List SmtpClientAuthenticationDisabled\n"},
		{"Send As", SendAs("info@b.c", "a@b.c"), "Add-RecipientPermission -Identity 'info@b.c' -Trustee 'a@b.c' -AccessRights SendAs -Confirm:$false\n"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, tt.got, tt.want)
		}
	}
}

// Exchange Online takes at most 64 characters for a name.
func TestLongNamesAreClipped(t *testing.T) {
	_, after, _ := strings.Cut(RBAC(App{}, strings.Repeat("ä", 90)+"@b.c"), "-Name ")
	name, _ := unquote(t, after)
	if n := len([]rune(name)); n != 64 {
		t.Errorf("a name of %d characters, want 64", n)
	}
}
