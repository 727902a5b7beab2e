package enrol

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/envelope"
)

// fake is a console that remembers what it was asked to do. Methods it has not are not to be called.
type fake struct {
	console.Console
	tenants  []console.Tenant
	senders  []console.Sender
	findings []console.Finding
	device   console.Device
	invited  console.Invitation
	done     *console.Consented
	url      string // to sign in at
	err      error  // of everything that changes or asks
	calls    []string
	saved    console.TenantInput
	sender   console.SenderInput
	callback console.Callback
}

func (f *fake) called(format string, args ...any) error {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fake) RedirectURI() string { return "https://relay.contoso.com/oauth/callback" }

func (f *fake) Tenants(context.Context) ([]console.Tenant, error) { return f.tenants, nil }

func (f *fake) Tenant(_ context.Context, name string) (*console.Tenant, error) {
	for i := range f.tenants {
		if f.tenants[i].Name == name {
			return &f.tenants[i], nil
		}
	}
	return nil, console.ErrNotFound
}

func (f *fake) SaveTenant(_ context.Context, name string, in console.TenantInput) error {
	f.saved = in
	return f.called("save tenant %q", name)
}

func (f *fake) RemoveTenant(_ context.Context, name string) error {
	return f.called("remove tenant %s", name)
}

func (f *fake) CheckTenant(_ context.Context, name string) ([]console.Finding, error) {
	return f.findings, f.called("check %s", name)
}

func (f *fake) Senders(_ context.Context, q console.SenderQuery) (*console.SenderPage, error) {
	var fit []console.Sender
	for _, s := range f.senders {
		if strings.Contains(s.Match, q.Text) && (q.Tenant == "" || s.Tenant == q.Tenant) && (q.State == "" || s.State == q.State) {
			fit = append(fit, s)
		}
	}
	from := min(q.Offset, len(fit))
	return &console.SenderPage{Senders: fit[from:min(from+q.Limit, len(fit))], Total: len(fit)}, nil
}

func (f *fake) Sender(_ context.Context, match string) (*console.Sender, error) {
	for i := range f.senders {
		if f.senders[i].Match == match {
			return &f.senders[i], nil
		}
	}
	return nil, console.ErrNotFound
}

func (f *fake) SaveSender(_ context.Context, match string, in console.SenderInput) error {
	f.sender = in
	return f.called("save sender %q", match)
}

func (f *fake) RemoveSender(_ context.Context, match string) error {
	return f.called("remove sender %s", match)
}

func (f *fake) Pause(_ context.Context, match string) error  { return f.called("pause %s", match) }
func (f *fake) Resume(_ context.Context, match string) error { return f.called("resume %s", match) }
func (f *fake) Revoke(_ context.Context, match string) error { return f.called("revoke %s", match) }

func (f *fake) Examine(_ context.Context, sender string, found func(console.Finding)) error {
	for _, one := range f.findings {
		found(one)
	}
	return f.called("examine %s", sender)
}

func (f *fake) StartConsent(_ context.Context, match, session string) (string, error) {
	return f.url, f.called("consent %s for %s", match, session)
}

func (f *fake) StartAdminConsent(_ context.Context, tenant, session string) (string, error) {
	return f.url, f.called("admin consent %s for %s", tenant, session)
}

func (f *fake) FinishConsent(_ context.Context, c console.Callback) (*console.Consented, error) {
	f.callback = c
	return f.done, f.called("finish %s", c.State)
}

func (f *fake) Invite(_ context.Context, match string) (*console.Invitation, error) {
	return &f.invited, f.called("invite %s", match)
}

func (f *fake) Invitation(_ context.Context, code string) (*console.Invitation, error) {
	if code != f.invited.Code {
		return nil, console.ErrExpired
	}
	return &f.invited, nil
}

func (f *fake) AcceptInvitation(_ context.Context, code, session string) (string, error) {
	return f.url, f.called("accept %s for %s", code, session)
}

func (f *fake) StartDevice(_ context.Context, match string) (*console.Device, error) {
	return &f.device, f.called("device %s", match)
}

func (f *fake) Device(_ context.Context, id string) (*console.Device, error) {
	if id != f.device.ID {
		return nil, console.ErrNotFound
	}
	return &f.device, nil
}

// mail is the messages a test send goes by.
type mail struct {
	api.Messages
	sent    api.Submission
	text    string
	err     error
	message api.Message
}

const testID = envelope.ID("01hxexamp0e0000000ab")

func (m *mail) Send(_ context.Context, s api.Submission) (envelope.ID, error) {
	text, err := io.ReadAll(s.Message)
	if err != nil {
		return "", err
	}
	m.sent, m.text = s, string(text)
	return testID, m.err
}

func (m *mail) Get(_ context.Context, id envelope.ID) (*api.Message, error) {
	if id != testID {
		return nil, api.ErrNotFound
	}
	return &m.message, nil
}

const (
	tenantGUID = "11111111-2222-3333-4444-555555555555"
	clientGUID = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
)

// newFake returns a relay with two tenants and a few senders.
func newFake() *fake {
	now := time.Now()
	return &fake{
		tenants: []console.Tenant{{
			Name: "contoso", Cloud: "worldwide", TenantID: tenantGUID, ClientID: clientGUID, Grant: grantDelegated, Credential: "client_secret",
			CredentialExpires: now.Add(40 * 24 * time.Hour), Authority: "https://login.microsoftonline.com", Scope: "https://outlook.office.com/SMTP.Send",
			SMTPServer: "smtp.office365.com:587", CAFile: "/etc/relayd/ca.pem", Origin: console.OriginPage, Senders: 3,
			RedirectURI: "https://relay.contoso.com/oauth/callback", AdminConsentURL: "https://login.microsoftonline.com/" + tenantGUID + "/v2.0/adminconsent?client_id=x",
		}, {
			Name: "fabrikam", Cloud: "gcc-high", TenantID: "fabrikam.com", ClientID: clientGUID, Grant: grantApp, Credential: "certificate",
			Origin: console.OriginFile, Problem: &console.Problem{Text: "AADSTS7000222", Cause: "The secret has expired.", Advice: "Make a new one.", Since: now},
		}, {Name: "spare", Cloud: "worldwide", Grant: grantDelegated, Credential: "none", Origin: console.OriginPage}},
		senders: []console.Sender{{
			Match: "app@contoso.com", Tenant: "contoso", Grant: grantDelegated, Origin: console.OriginPage, State: console.SenderReady,
			Consent:      &console.Consent{User: "app@contoso.com", Granted: now.Add(-time.Hour), Used: now, IdleEnds: now.Add(90 * 24 * time.Hour)},
			TokenExpires: now.Add(time.Hour), RecipientsPerDay: 10000, Remaining: 9990, Connections: 3, MessagesPerMinute: 30,
			SendAs: []string{"info@contoso.com"},
		}, {
			Match: "info@contoso.com", Tenant: "contoso", Login: "app@contoso.com", Grant: grantDelegated, Origin: console.OriginPage,
			State: console.SenderParked, Problem: &console.Problem{Text: "5.7.60", Cause: "No Send As.", Advice: "Grant it.", Since: now}, Queued: 7, Oldest: now.Add(-time.Hour),
		}, {
			Match: "new@contoso.com", Tenant: "contoso", Grant: grantDelegated, Origin: console.OriginPage, State: console.SenderConsent,
		}, {
			Match: "*@fabrikam.com", Tenant: "fabrikam", Grant: grantApp, Origin: console.OriginFile, State: console.SenderPaused, Fallback: "app@contoso.com",
		}},
		findings: []console.Finding{
			{Step: "token", Result: "ok", Detail: "expires in 1 h"},
			{Step: "auth", Result: "fail", Detail: "535 5.7.139", Cause: "SMTP AUTH is off.", Advice: "Set-CASMailbox …"},
		},
		device: console.Device{
			ID: "d1", UserCode: "ABCD-EFGH", VerificationURI: "https://microsoft.com/devicelogin", Expires: now.Add(15 * time.Minute), State: "pending",
		},
		invited: console.Invitation{
			Code: "c0de", Sender: "new@contoso.com", Login: "new@contoso.com", URL: "https://relay.contoso.com/consent/c0de", Expires: now.Add(time.Hour),
		},
		done: &console.Consented{Sender: "app@contoso.com", Tenant: "contoso", User: "app@contoso.com"},
		url:  "https://login.microsoftonline.com/" + tenantGUID + "/oauth2/v2.0/authorize?client_id=x&state=y",
	}
}

func newMail() *mail {
	now := time.Now()
	return &mail{message: api.Message{
		Envelope: &envelope.Envelope{ID: testID, Sender: "app@contoso.com", Recipients: []envelope.Recipient{{Address: "a@example.com"}}},
		State:    envelope.Failed, Steps: []envelope.Step{
			{At: now.Add(-time.Second), What: envelope.StepAccepted, State: envelope.Queued, By: "ops"},
			{At: now, What: envelope.StepAttempt, State: envelope.Failed, By: "contoso/app@contoso.com", Reply: "550 5.7.60 not allowed", Advice: "Grant Send As.",
				Recipients: []envelope.StepResult{{Address: "a@example.com", State: envelope.Failed, Reply: "550 5.7.60"}}},
		},
	}}
}

// site is the pages with what stands behind them.
type site struct {
	t    *testing.T
	fake *fake
	mail *mail
	mux  *http.ServeMux
}

func newSite(t *testing.T) *site {
	t.Helper()
	v, err := view.New(view.Options{Files: []fs.FS{Files()}, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, fake: newFake(), mail: newMail(), mux: http.NewServeMux()}
	New(Options{Console: s.fake, Messages: s.mail, View: v}).Routes(s.mux)
	return s
}

// admin is who may do everything.
func admin() *access.Principal {
	return &access.Principal{Name: "ops@contoso.com", Role: access.Admin, Scopes: access.Admin.Scopes(), Session: "s1", Peer: "192.0.2.1"}
}

// ask makes a request as p; a form, where not nil, makes it a POST.
func (s *site) ask(p *access.Principal, path string, form url.Values) *httptest.ResponseRecorder {
	s.t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if form != nil {
		r = httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	ctx := r.Context()
	if p != nil {
		ctx = access.With(ctx, p)
	} else {
		ctx = access.WithBrowser(ctx, "b1")
	}
	w := httptest.NewRecorder()
	s.mux.ServeHTTP(w, r.WithContext(ctx))
	return w
}

// get returns a page that must be shown.
func (s *site) get(path string) string {
	s.t.Helper()
	w := s.ask(admin(), path, nil)
	if w.Code != http.StatusOK {
		s.t.Fatalf("GET %s: %d %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

func (s *site) did(want ...string) {
	s.t.Helper()
	if !slices.Equal(s.fake.calls, want) {
		s.t.Errorf("did %q, want %q", s.fake.calls, want)
	}
	s.fake.calls = nil
}

func wantIn(t *testing.T, body string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(body, w) {
			t.Errorf("no %q in\n%s", w, body)
		}
	}
}

func wantNotIn(t *testing.T, body string, not ...string) {
	t.Helper()
	for _, w := range not {
		if strings.Contains(body, w) {
			t.Errorf("%q is in\n%s", w, body)
		}
	}
}

// testMessage is a message that waits for somebody.
func testMessage(state envelope.State) api.Message {
	return api.Message{State: state, Parked: "The secret has expired."}
}
