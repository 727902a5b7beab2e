package enrol

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"relayd/pkg/admin/console"
)

func stepNames(body string) string {
	var names []string
	for _, m := range regexp.MustCompile(`<li id="step-([a-z]+)">`).FindAllStringSubmatch(body, -1) {
		names = append(names, m[1])
	}
	return strings.Join(names, " ")
}

func TestGuideLeadsEachWay(t *testing.T) {
	tests := []struct {
		query, steps string
		want, not    []string
	}{
		{"", "register secret permission enter sender smtpauth consent test sendas",
			[]string{"https://relay.contoso.com/oauth/callback", "<code>SMTP.Send</code>", "Microsoft Graph", "https://entra.microsoft.com"}, []string{"SendAsApp"}},
		{"?way=classic", "register secret permission enter sender principal smtpauth test",
			[]string{"<code>SMTP.SendAsApp</code>", "Office 365 Exchange Online"}, []string{"/oauth/callback", "New-ManagementRoleAssignment"}},
		{"?way=classic&tenant=fabrikam&sender=a@fabrikam.com", "register secret permission enter sender principal smtpauth test",
			[]string{"New-ServicePrincipal -AppId &#39;" + clientGUID + "&#39; -ObjectId $app.Id", "Add-MailboxPermission -Identity &#39;a@fabrikam.com&#39;",
				"Set-CASMailbox -Identity &#39;a@fabrikam.com&#39; -SmtpClientAuthenticationDisabled $false", "O365USGovGCCHigh", "https://portal.azure.us"}, []string{"Application SMTP.SendAsApp"}},
		{"?way=rbac&tenant=fabrikam&sender=a@fabrikam.com&object=1234", "register secret permission enter sender principal smtpauth test",
			[]string{"Application SMTP.SendAsApp", "-ObjectId &#39;1234&#39;", "Grant <strong>no</strong> API permission"}, []string{"Add-MailboxPermission", "admin-consent-url"}},
		{"?way=rbac&tenant=contoso", "register secret permission enter sender smtpauth consent test sendas", []string{"admin-consent-url"}, nil}, // the tenant decides
		{"?tenant=fabrikam", "register secret permission enter sender principal smtpauth test", nil, []string{"Start authentication"}},
		{"?tenant=contoso&sender=app@contoso.com&other=o'neil@contoso.com", "register secret permission enter sender smtpauth consent test sendas",
			[]string{"Add-RecipientPermission -Identity &#39;o&#39;&#39;neil@contoso.com&#39; -Trustee &#39;app@contoso.com&#39;", "Signed in as app@contoso.com.",
				`action="/senders/app@contoso.com/consent"`, `href="/senders/app@contoso.com/test"`, "/senders/app@contoso.com?from=o%27neil%40contoso.com#send-as"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.query, func(t *testing.T) {
			s := newSite(t)
			body := s.get("/guide" + tt.query)
			if got := stepNames(body); got != tt.steps {
				t.Errorf("steps %s, want %s", got, tt.steps)
			}
			wantIn(t, body, tt.want...)
			wantNotIn(t, body, tt.not...)
		})
	}
}

// From an empty relay: the redirect URI is there before any tenant is, and the address remembers each answer.
func TestGuideFromNothing(t *testing.T) {
	s := newSite(t)
	tenants, senders := s.fake.tenants, s.fake.senders
	s.fake.tenants, s.fake.senders = nil, nil
	body := s.get("/guide")
	wantIn(t, body, `value="https://relay.contoso.com/oauth/callback"`, `href="/tenants/new?way=delegated"`, `href="#step-enter"`)
	s.fake.tenants = tenants[:1] // the only one is taken
	body = s.get("/guide")
	wantIn(t, body, `href="/tenants/contoso"`, `href="#step-sender"`, "/senders/new?tenant=contoso&amp;way=delegated")
	body = s.get("/guide?tenant=contoso&sender=new@contoso.com")
	wantIn(t, body, "match=new%40contoso.com")
	s.fake.senders = senders
	wantIn(t, s.get("/guide?tenant=contoso&sender=new@contoso.com"), `href="#step-consent"`)
	wantNotIn(t, s.get("/guide?tenant=contoso&sender=app@contoso.com"), "Go on where something is missing")
}

func TestGuideChecks(t *testing.T) {
	tests := []struct{ query, step, did, want string }{
		{"", "register", "", "Missing: the app&#39;s IDs"},
		{"?tenant=contoso", "secret", "check contoso", "SMTP AUTH is off."},
		{"?tenant=contoso", "smtpauth", "", "Missing: the mailbox"},
		{"?tenant=contoso&sender=x@contoso.com", "consent", "", "Missing: the sender"},
		{"?tenant=contoso&sender=app@contoso.com", "consent", "examine app@contoso.com", "Set-CASMailbox"},
		{"?tenant=contoso&sender=app@contoso.com", "test", "examine app@contoso.com", "SMTP AUTH is off."},
		{"?tenant=fabrikam&sender=app@contoso.com", "principal", "", "Missing: the sender"}, // it is another tenant's
	}
	for _, tt := range tests {
		t.Run(tt.query+tt.step, func(t *testing.T) {
			s := newSite(t)
			w := s.ask(admin(), "/guide"+tt.query, url.Values{"step": {tt.step}})
			if w.Code != http.StatusOK {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			if got := strings.Join(s.fake.calls, " "); got != tt.did {
				t.Errorf("did %q, want %q", got, tt.did)
			}
			wantIn(t, w.Body.String(), tt.want)
		})
	}
	s := newSite(t)
	for _, step := range []string{"", "nonsense", "sendas", "principal"} { // the last is none of this way
		if w := s.ask(admin(), "/guide?tenant=contoso", url.Values{"step": {step}}); w.Code != http.StatusNotFound {
			t.Errorf("step %q: %d", step, w.Code)
		}
	}
	s.did()
}

// Whatever is filled in, a step's commands hold it in quotes: here by the address of the page.
func TestGuideFillsInNoCommands(t *testing.T) {
	s := newSite(t)
	body := s.get("/guide?way=classic&tenant=fabrikam&sender=" + url.QueryEscape("a'; Remove-Mailbox b; '@c.d"))
	wantIn(t, body, "Add-MailboxPermission -Identity &#39;a&#39;&#39;; Remove-Mailbox b; &#39;&#39;@c.d&#39; -User $principal.Identity")
}

// Without a console that knows it, the redirect URI is a tenant's, or where the page was asked for.
func TestRedirectURI(t *testing.T) {
	s := newSite(t)
	e := New(Options{Console: struct{ console.Console }{s.fake}})
	r, err := http.NewRequest(http.MethodGet, "http://localhost:8080/guide", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := e.redirectURI(r); got != "https://relay.contoso.com/oauth/callback" {
		t.Errorf("got %s", got)
	}
	s.fake.tenants = nil
	if got := e.redirectURI(r); got != "http://localhost:8080/oauth/callback" {
		t.Errorf("got %s", got)
	}
}
