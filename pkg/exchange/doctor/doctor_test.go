package doctor_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"relayd/pkg/entra"
	"relayd/pkg/envelope"
	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/exchange/doctor"
	"relayd/pkg/exchange/doctor/diagnosis"
	"relayd/pkg/sandbox"
	"relayd/pkg/status"
)

const clientSecret = "s3cret-canary-of-the-app"

// simulate runs an Exchange Online and Entra ID with the given apps.
func simulate(t *testing.T, apps ...sandbox.App) (*sandbox.Sandbox, *x509.CertPool) {
	t.Helper()
	if apps == nil {
		apps = []sandbox.App{{ID: sandbox.DefaultClientID, Secret: clientSecret}}
	}
	box, err := sandbox.New(sandbox.Options{Tenants: []sandbox.Tenant{{ID: sandbox.DefaultTenantID, Apps: apps}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := box.Run(ctx); err != nil {
			t.Errorf("sandbox: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(box.CAPEM()) {
		t.Fatal("no CA")
	}
	return box, roots
}

// optionsFor are those of app@contoso.com against box.
func optionsFor(t *testing.T, box *sandbox.Sandbox, roots *x509.CertPool) doctor.Options {
	t.Helper()
	const wait = 10 * time.Second
	tokens, err := entra.New(entra.Options{HTTPTimeout: wait, Tenants: map[string]entra.Tenant{"contoso": {
		TenantID: sandbox.DefaultTenantID, ClientID: sandbox.DefaultClientID, Authority: box.Authority(), RootCAs: roots,
		Secret: func() (string, error) { return clientSecret, nil }}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tokens.Close)
	return doctor.Options{
		Hostname: "relay.contoso.com", Server: box.SMTPAddr(), RootCAs: roots,
		Route: envelope.Route{Tenant: "contoso", Login: "app@contoso.com"},
		Token: func(ctx context.Context) (doctor.Token, error) {
			value, err := tokens.Token(ctx, "contoso", "app@contoso.com", "")
			return doctor.Token{Value: value}, err
		},
		Registration: diagnosis.Registration{TenantID: sandbox.DefaultTenantID, ClientID: sandbox.DefaultClientID,
			Scope: "https://outlook.office365.com/.default"},
		Clock:    doctor.HTTPClock(box.Authority()+"/x/oauth2/v2.0/token", roots),
		Expires:  time.Now().Add(90 * 24 * time.Hour),
		Timeouts: doctor.Timeouts{Resolve: wait, Connect: wait, Token: wait, Clock: wait, Command: wait},
	}
}

// hurry makes the waits as short as a far end that is silent on purpose is worth.
func hurry(o *doctor.Options) {
	const wait = time.Second
	o.Timeouts = doctor.Timeouts{Resolve: wait, Connect: wait, Token: wait, Clock: wait, Command: wait}
}

func step(t *testing.T, r doctor.Report, name string) doctor.Step {
	t.Helper()
	i := slices.IndexFunc(r.Steps, func(s doctor.Step) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("no step %q", name)
	}
	return r.Steps[i]
}

// states returns "dns ok, tcp fail, …".
func states(r doctor.Report) string {
	var b []string
	for _, s := range r.Steps {
		b = append(b, s.Name+" "+string(s.State))
	}
	return strings.Join(b, ", ")
}

// whole is all that is ever shown of a report.
func whole(t *testing.T, r doctor.Report) string {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data) + fmt.Sprintf("%+v", r)
}

func TestAllIsWell(t *testing.T) {
	box, roots := simulate(t)
	var told []string
	o := optionsFor(t, box, roots)
	o.Progress = func(s doctor.Step) { told = append(told, s.Name) }
	r := doctor.Examine(t.Context(), o)
	if r.Result != doctor.OK {
		t.Fatalf("got %s", whole(t, r))
	}
	var names []string
	for _, s := range r.Steps {
		names = append(names, s.Name)
		if s.State != doctor.OK || s.Cause != "" || s.Advice != "" || s.Error != nil {
			t.Errorf("%s: got %+v, want ok and nothing more", s.Name, s)
		}
	}
	if !slices.Equal(names, doctor.Names()) || !slices.Equal(told, names) {
		t.Errorf("got %v, told %v, want %v", names, told, doctor.Names())
	}
	for name, want := range map[string]string{
		"config":     "tenant contoso, login app@contoso.com, server 127.0.0.1:",
		"credential": "the client secret expires on ",
		"clock":      "agrees with Entra ID's to ",
		"tcp":        "connected to 127.0.0.1:",
		"starttls":   "TLS 1.3, certificate for 127.0.0.1 by relayd sandbox CA, valid until ",
		"token":      "client credentials, expires in 1 h",
		"auth":       "as app@contoso.com: 235 2.7.0 Authentication successful",
		"mail":       "MAIL FROM:<app@contoso.com>: 250 2.1.0 ",
		"rcpt":       "RCPT TO:<app@contoso.com>: 250 2.1.5 ",
		"rset":       "RSET: 250 2.0.0 ",
	} {
		if got := step(t, r, name).Detail; !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %q…", name, got, want)
		}
	}
	if s := step(t, r, "token").Detail; !strings.Contains(s, "for https://outlook.office365.com,") || !strings.HasSuffix(s, "roles SMTP.SendAsApp") {
		t.Errorf("token: got %q, want audience and roles", s)
	}
	if !strings.Contains(r.Remark, "relayd send --from app@contoso.com --to app@contoso.com") {
		t.Errorf("got remark %q", r.Remark)
	}
	if stats := box.Stats(); stats.Messages != 0 || stats.Connections != 1 || stats.AuthOK != 1 || stats.Tokens != 1 {
		t.Errorf("got %+v, want one connection, one sign-in, one token, no message", stats)
	}
}

func TestSenderOfAnotherLogin(t *testing.T) {
	box, roots := simulate(t)
	o := optionsFor(t, box, roots)
	o.Sender, o.Recipient = "sales@contoso.com", "you@fabrikam.com"
	r := doctor.Examine(t.Context(), o)
	if want := "MAIL FROM:<app@contoso.com>"; !strings.HasPrefix(step(t, r, "mail").Detail, want) {
		t.Errorf("got %q, want %s: relayd's reverse-path is the login", step(t, r, "mail").Detail, want)
	}
	if want := "RCPT TO:<you@fabrikam.com>"; !strings.HasPrefix(step(t, r, "rcpt").Detail, want) {
		t.Errorf("got %q, want %s", step(t, r, "rcpt").Detail, want)
	}
	if want := "That app@contoso.com may send as sales@contoso.com (Send As)"; !strings.HasPrefix(r.Remark, want) {
		t.Errorf("got %q, want %q…", r.Remark, want)
	}
	if want := "login app@contoso.com for sender sales@contoso.com"; !strings.Contains(step(t, r, "config").Detail, want) {
		t.Errorf("got %q, want %q", step(t, r, "config").Detail, want)
	}
}

// finding is what a fault must come to: which step fails and what its line, cause and advice must say.
type finding struct{ step, detail, cause, advice string }

// faults are the sandbox's ready-made ones that come before DATA; the others leave all well.
func faults() map[string]finding {
	const (
		firewall = "firewall"
		silence  = "no answer within 1s"
	)
	return map[string]finding{
		"connect-421":       {"starttls", "greeting: 421 4.3.2 Service not active", "front end", ""},
		"connect-rst":       {"starttls", "greeting: the connection was lost", firewall, "smtp_server"},
		"connect-blackhole": {"starttls", "greeting: " + silence, firewall, "smtp_server"},
		"ehlo-endless":      {"starttls", "ehlo: reply against the protocol: more than 100 lines", firewall, "smtp_server"},
		"ehlo-endless-line": {"starttls", "ehlo: reply against the protocol: a line longer than 4096 octets", firewall, "smtp_server"},
		"ehlo-garbage":      {"starttls", `ehlo: reply against the protocol: \x00`, firewall, "smtp_server"},

		"no-starttls":        {"starttls", "no STARTTLS offered", "a firewall or antivirus on the way strips it", "inspection of SMTP"},
		"starttls-454":       {"starttls", "454 4.7.0 TLS not available due to temporary reason", "", ""},
		"starttls-injection": {"starttls", "data before the TLS handshake", "RFC 3207", "inspection of SMTP"},
		"cert-expired":       {"starttls", "the certificate of localhost, 127.0.0.1, ::1 expired on ", "by this machine's clock it is ", "Compare this machine's clock"},
		"cert-self-signed":   {"starttls", "the certificate of localhost, 127.0.0.1, ::1 is signed by itself", "no CA vouches", "ca_file"},
		"cert-wrong-name":    {"starttls", "the certificate is for wrong.name.invalid, not for 127.0.0.1", "smtp_server names another host", "smtp.office365.com:587"},
		"tls-1.0":            {"starttls", "no common version of TLS: relayd speaks 1.2 and 1.3", "TLS 1.1 or older", "exempt Exchange Online"},
		"tls-rst":            {"starttls", "the connection was cut in the TLS handshake", firewall, "exempt Exchange Online"},

		"token-429":       {"token", "AADSTS90055: Tenant", "throttles or blocks", "support request"},
		"token-500":       {"token", "Entra ID is unavailable (500 Internal Server Error)", "fault of its own", ""},
		"token-503":       {"token", "Entra ID is unavailable (503 Service Unavailable)", "fault of its own", ""},
		"token-garbage":   {"token", "no usable answer from Entra ID", "missing access_token", "443"},
		"token-rst":       {"token", "no usable answer from Entra ID", "", "443"},
		"token-blackhole": {"token", "", "Entra ID did not answer in time", "443"},
		"token-7000215":   {"token", "AADSTS7000215: Invalid client secret provided", "the client secret is wrong", "New client secret"},
		"token-7000222":   {"token", "AADSTS7000222: The provided client secret keys", "the client secret has expired", "New client secret"},
		"token-700016":    {"token", "AADSTS700016: Application with identifier", "no application with this client_id", "Enterprise applications"},
		"token-90002":     {"token", "AADSTS90002: Tenant", "no tenant with this tenant_id", "Tenant ID"},
		"token-70011":     {"token", "AADSTS70011: ", "scope", "cloud"},
		"token-500011":    {"token", "AADSTS500011: ", "scope", "cloud"},
		"token-90033":     {"token", "AADSTS90033: ", "fault of its own", ""},
		"token-50196":     {"token", "AADSTS50196: ", "loop", "client_id"},
		"token-65001":     {"token", "AADSTS65001: ", "consented", "Grant admin consent"},

		"auth-unsuccessful": {"auth", "535 5.7.3 Authentication unsuccessful [", "",
			"New-ServicePrincipal -AppId " + sandbox.DefaultClientID + " -ObjectId "},
		"auth-challenge":         {"auth", `535 5.7.3 Authentication unsuccessful`, "", "New-ServicePrincipal"},
		"auth-disabled-tenant":   {"auth", "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant", "", "Set-TransportConfig -SmtpClientAuthenticationDisabled $false"},
		"auth-disabled-mailbox":  {"auth", "disabled for the Mailbox", "", "Set-CASMailbox -Identity app@contoso.com "},
		"auth-basic-disabled":    {"auth", "basic authentication is disabled", "", "OAuth"},
		"auth-security-defaults": {"auth", "security defaults policy", "", ""},
		"auth-criteria":          {"auth", "did not meet the criteria", "", ""},
		"auth-sts-unreachable":   {"auth", "federated STS service was unreachable", "", ""},
		"auth-temporary":         {"auth", "454 4.7.0 Temporary authentication failure", "cannot check sign-ins", ""},
		"auth-prx4":              {"auth", "451 4.7.0 Temporary server error", "back end", ""},
		"auth-draining":          {"auth", "421 4.3.2 Service not active", "front end", ""},
		"auth-hve-invalid-user":  {"auth", "501 5.5.124 Invalid XOAUTH2 auth data", "", ""},
		"mail-not-authenticated": {"mail", "MAIL FROM:<app@contoso.com>: 530 5.7.57 Client not authenticated", "", ""},
		"mail-send-as-denied":    {"mail", "550 5.7.60 SMTP; Client does not have permissions to send as this sender", "", "Add-RecipientPermission"},
		"mail-basic-retired":     {"mail", "550 5.7.30 Basic authentication", "", ""},
		"mail-dropped":           {"mail", "421 4.4.2 Connection dropped", "", ""},
		"mail-control":           {"mail", `451 4.3.0 \x1b[2J\x07<script>\x00\x7f`, "", ""},
		"mail-blackhole":         {"mail", silence, "fell silent", "Run it again"},
		"mail-drip":              {"mail", silence, "fell silent", "Run it again"},
		"rcpt-access-denied":     {"rcpt", "451 4.7.500 Access denied", "suspects", "Restricted entities"},
		"rcpt-server-busy":       {"rcpt", "451 4.7.500 Server busy", "throttles", ""},
		"rcpt-restricted":        {"rcpt", "451 4.7.550 Access denied", "", ""},
		"rcpt-invalid":           {"rcpt", "501 5.1.3 Invalid address", "", ""},
		"rcpt-not-found":         {"rcpt", "550 5.1.10 RESOLVER.ADR.RecipientNotFound", "", ""},
		"rcpt-address-rejected":  {"rcpt", "550 5.4.1 Recipient address rejected", "", ""},
	}
}

// TestFaults: each ready-made fault is found at its step, with cause and advice; what stands behind is skipped, and
// nothing that is shown has the secret or the token in it.
func TestFaults(t *testing.T) {
	box, roots := simulate(t)
	known := faults()
	for _, rule := range sandbox.Presets() {
		t.Run(rule.Name, func(t *testing.T) {
			id, err := box.AddFault(rule)
			if err != nil {
				t.Fatal(err)
			}
			defer box.RemoveFault(id)
			o := optionsFor(t, box, roots)
			if rule.Blackhole || rule.Drip > 0 {
				hurry(&o)
			}
			token := ""
			fetch := o.Token
			o.Token = func(ctx context.Context) (doctor.Token, error) {
				got, err := fetch(ctx)
				token = got.Value
				return got, err
			}
			r := doctor.Examine(t.Context(), o)
			want, fails := known[rule.Name]
			if !fails {
				if stage := rule.Stage; stage != sandbox.StageDot && stage != sandbox.StageBody && stage != sandbox.StageData {
					t.Fatalf("a new fault before DATA: say which step finds it: %s", states(r))
				}
				if r.Result != doctor.OK {
					t.Errorf("got %s, want all well: it strikes only behind DATA", states(r))
				}
				return
			}
			checkFailure(t, r, want)
			if all := whole(t, r); strings.Contains(all, clientSecret) || token != "" && strings.Contains(all, token[:40]) {
				t.Errorf("secret or token in %s", all)
			}
		})
	}
	if got := box.Stats().Messages; got != 0 {
		t.Errorf("%d messages were sent", got)
	}
}

func checkFailure(t *testing.T, r doctor.Report, want finding) {
	t.Helper()
	at := slices.Index(doctor.Names(), want.step)
	for i, s := range r.Steps {
		switch {
		case i == at && s.State != doctor.Failed, i > at && (s.State != doctor.Skipped || s.Took != 0), i < at && s.State == doctor.Failed:
			t.Fatalf("got %s, want %s to fail and the rest skipped", states(r), want.step)
		}
	}
	s := r.Steps[at]
	if r.Result != doctor.Failed || r.Remark != "" || s.Error == nil {
		t.Errorf("got %s, remark %q, error %v, want a failure", r.Result, r.Remark, s.Error)
	}
	for _, part := range []struct{ name, got, want string }{
		{"detail", s.Detail, want.detail}, {"cause", s.Cause, want.cause}, {"advice", s.Advice, want.advice},
	} {
		if !strings.Contains(part.got, part.want) {
			t.Errorf("%s: got %q, want %q in it", part.name, part.got, part.want)
		}
	}
	if s.Detail == "" || strings.ContainsFunc(s.Detail+s.Cause+s.Advice, func(r rune) bool { return r < ' ' && r != '\n' }) {
		t.Errorf("got %q, %q, %q: nothing, or control characters", s.Detail, s.Cause, s.Advice)
	}
}

// TestCatalogueOfTheOperator: what the configuration says of a reply goes before relayd's own row.
func TestCatalogueOfTheOperator(t *testing.T) {
	box, roots := simulate(t)
	rule, err := sandbox.ParseRule("auth-disabled-tenant")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := box.AddFault(rule); err != nil {
		t.Fatal(err)
	}
	o := optionsFor(t, box, roots)
	o.Catalogue, err = catalogue.New([]catalogue.Row{{Name: "ours", Enhanced: "5.7.139", Action: status.ParkTenant, Cause: "the usual", Advice: "Call Bob"}})
	if err != nil {
		t.Fatal(err)
	}
	s := step(t, doctor.Examine(t.Context(), o), "auth")
	if s.Cause != "the usual" || s.Advice != "Call Bob" || s.Error.Rule != "ours" || s.Error.Action != status.ParkTenant {
		t.Errorf("got %+v, %+v", s, s.Error)
	}
}

// TestTokenWithoutRole: by App RBAC that is right, so it warns; should AUTH fail, the warning is part of the cause.
func TestTokenWithoutRole(t *testing.T) {
	box, roots := simulate(t, sandbox.App{ID: sandbox.DefaultClientID, Secret: clientSecret, NoRoles: true})
	r := doctor.Examine(t.Context(), optionsFor(t, box, roots))
	s := step(t, r, "token")
	if s.State != doctor.Warning || !strings.HasSuffix(s.Detail, "no roles") || !strings.Contains(s.Cause, "App RBAC") ||
		!strings.Contains(s.Advice, "New-ManagementRoleAssignment") || !strings.Contains(s.Advice, "Grant admin consent") {
		t.Errorf("got %+v, want a warning that explains both ways", s)
	}
	checkFailure(t, r, finding{"auth", "535 5.7.3", "of the token was said above: the token has no role SMTP.SendAsApp", "New-ServicePrincipal"})
	if strings.Contains(s.Advice, "<") && !strings.Contains(s.Advice, "<scope>") {
		t.Errorf("got %q, want the ids of the token in place of words", s.Advice)
	}
}

func TestDNSAndTCP(t *testing.T) {
	box, roots := simulate(t)
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	tests := []struct {
		name   string
		change func(o *doctor.Options)
		want   finding
	}{
		{"no such name", func(o *doctor.Options) { o.Resolver = resolver{err: &net.DNSError{IsNotFound: true}} },
			finding{"dns", "cannot resolve smtp.invalid: no such name", "DNS knows no address", "nslookup smtp.invalid"}},
		{"no addresses", func(o *doctor.Options) { o.Resolver = resolver{} }, finding{"dns", "no such name", "", "smtp_server"}},
		{"a silent DNS server", func(o *doctor.Options) { o.Resolver = resolver{silent: true} },
			finding{"dns", "no answer", "did not answer in time", "resolv.conf"}},
		{"another error", func(o *doctor.Options) { o.Resolver = resolver{err: errors.New("SERVFAIL \x1b[2J")} },
			finding{"dns", `SERVFAIL \x1b[2J`, "could not answer", "resolv.conf"}},
		{"no port", func(o *doctor.Options) { o.Server = "smtp.invalid" }, finding{"dns", "not host:port", "", "smtp_server"}},
		{"refused", func(o *doctor.Options) { o.Dial = dialer(refused) },
			finding{"tcp", "cannot connect to smtp.invalid:587: refused", "refuses the port", "Test-NetConnection smtp.invalid -Port 587"}},
		{"dropped", func(o *doctor.Options) { o.Dial = dialer(nil) },
			finding{"tcp", "no answer within 1s", "a firewall drops what leaves for port 587", "nc -vz smtp.invalid 587"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := optionsFor(t, box, roots)
			hurry(&o)
			o.Server, o.Resolver = "smtp.invalid:587", resolver{found: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
			tt.change(&o)
			checkFailure(t, doctor.Examine(t.Context(), o), tt.want)
		})
	}
	t.Run("many addresses", func(t *testing.T) {
		o := optionsFor(t, box, roots)
		var many []netip.Addr
		for i := range 10 {
			many = append(many, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		}
		o.Server, o.Resolver, o.Dial = "smtp.invalid:587", resolver{found: many}, dialer(refused)
		got := step(t, doctor.Examine(t.Context(), o), "dns").Detail
		if !strings.HasPrefix(got, "smtp.invalid → 192.0.2.0, 192.0.2.1, ") || !strings.HasSuffix(got, ", 192.0.2.7, 2 more") {
			t.Errorf("got %q", got)
		}
	})
}

type resolver struct {
	found  []netip.Addr
	err    error
	silent bool
}

func (r resolver) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	if r.silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return r.found, r.err
}

// dialer fails with err or, where that is nil, in silence.
func dialer(err error) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		if err == nil {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, err
	}
}

func TestLocalSteps(t *testing.T) {
	o := doctor.Options{Server: "192.0.2.1:587", Dial: dialer(syscall.ENETUNREACH), Route: envelope.Route{Login: "a@b.c"},
		Token: func(context.Context) (doctor.Token, error) { return doctor.Token{}, nil }}
	soon := func(d time.Duration) time.Time { return time.Now().Add(d) }
	tests := []struct {
		name, step string
		change     func(o *doctor.Options)
		state      doctor.State
		detail     string
		cause      string
	}{
		{"a full name", "hostname", func(o *doctor.Options) { o.Hostname = "relay.contoso.com" }, doctor.OK, "relay.contoso.com", ""},
		{"a short name", "hostname", func(o *doctor.Options) { o.Hostname = "relay" }, doctor.Warning, "relay is not a fully qualified domain name", "501 5.5.4"},
		{"a dot behind it", "hostname", func(o *doctor.Options) { o.Hostname = "relay." }, doctor.Warning, "not a fully qualified", "501 5.5.4"},
		{"an address", "hostname", func(o *doctor.Options) { o.Hostname = "10.0.0.1" }, doctor.Warning, "is an IP address", "EHLO"},
		{"Microsoft's", "hostname", func(o *doctor.Options) { o.Hostname = "x.mail.Outlook.com" }, doctor.Warning, "is a name of Microsoft's", "5.7.506"},
		{"only like Microsoft's", "hostname", func(o *doctor.Options) { o.Hostname = "x.myoutlook.com" }, doctor.OK, "x.myoutlook.com", ""},
		{"a long way off", "credential", func(o *doctor.Options) { o.Expires = soon(400*24*time.Hour + time.Minute) }, doctor.OK, ", in 400 days", ""},
		{"soon", "credential", func(o *doctor.Options) { o.Expires = soon(5*24*time.Hour + time.Minute) }, doctor.Warning, ", in 5 days", "every sender"},
		{"over", "credential", func(o *doctor.Options) { o.Expires = soon(-time.Hour) }, doctor.Warning, "the client secret expired on ", "no token"},
		{"not said", "credential", func(*doctor.Options) {}, doctor.Skipped, "credential_expires is not set", ""},
		{"warned of", "config", func(o *doctor.Options) { o.Warnings = []string{"one", "two"} }, doctor.Warning, "login a@b.c", "one; two"},
		{"not asked", "clock", func(*doctor.Options) {}, doctor.Skipped, "not compared", ""},
		{"ahead", "clock", func(o *doctor.Options) { o.Clock = clock(7*time.Minute, nil) }, doctor.Warning, "Entra ID's clock is 7 min ahead of this machine's", "expired"},
		{"behind", "clock", func(o *doctor.Options) { o.Clock = clock(-3*time.Hour, nil) }, doctor.Warning, "Entra ID's clock is 3 h behind this machine's", "expired"},
		{"a little", "clock", func(o *doctor.Options) { o.Clock = clock(-5*time.Minute, nil) }, doctor.OK, "agrees with Entra ID's to 5 min", ""},
		{"unknown", "clock", func(o *doctor.Options) { o.Clock = clock(0, errors.New("no way")) }, doctor.Skipped, "Entra ID did not tell the time: no way", ""},
	}
	for _, tt := range tests {
		t.Run(tt.step+" "+tt.name, func(t *testing.T) {
			o := o
			tt.change(&o)
			s := step(t, doctor.Examine(t.Context(), o), tt.step)
			if s.State != tt.state || !strings.Contains(s.Detail, tt.detail) || !strings.Contains(s.Cause, tt.cause) || (s.State == doctor.Warning) != (s.Cause != "") {
				t.Errorf("got %+v, want %s, %q, %q", s, tt.state, tt.detail, tt.cause)
			}
			if s.State == doctor.Warning && tt.step != "config" && s.Advice == "" {
				t.Error("a warning without advice")
			}
		})
	}
}

func clock(ahead time.Duration, err error) func(context.Context) (time.Duration, error) {
	return func(context.Context) (time.Duration, error) { return ahead, err }
}

func TestHTTPClock(t *testing.T) {
	var asked atomic.Int32
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/ahead":
			w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusBadRequest) // what it says else is no matter
		case "/cached":
			w.Header().Set("Age", "600")
		case "/undated":
			w.Header()["Date"] = nil
		case "/elsewhere":
			http.Redirect(w, r, "/ahead", http.StatusFound)
		case "/silent":
			<-r.Context().Done()
		}
	}))
	defer far.Close()
	for _, tt := range []struct {
		path  string
		ahead time.Duration
		err   string
	}{
		{"/ahead", time.Hour, ""}, {"/", 0, ""}, {"/elsewhere", 0, ""},
		{"/cached", 0, "from a cache"}, {"/undated", 0, "no date"}, {"/silent", 0, "deadline exceeded"},
	} {
		wait := 10 * time.Second
		if tt.path == "/silent" {
			wait = 300 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		ahead, err := doctor.HTTPClock(far.URL+tt.path, nil)(ctx)
		cancel()
		if (ahead-tt.ahead).Abs() > 5*time.Second || fmt.Sprint(err) == "" || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: got %v, %v, want %v, %q", tt.path, ahead, err, tt.ahead, tt.err)
		}
	}
	if n := asked.Load(); n != 6 {
		t.Errorf("asked %d times, want 6: no redirect is followed", n)
	}
	if _, err := doctor.HTTPClock("://", nil)(t.Context()); err == nil {
		t.Error("no error for what is no URL")
	}
}

// TestInterrupted: the end of the context ends the examination at once, and says so.
func TestInterrupted(t *testing.T) {
	box, roots := simulate(t)
	for _, preset := range []string{"connect-blackhole", "mail-blackhole", "token-blackhole"} {
		t.Run(preset, func(t *testing.T) {
			rule, err := sandbox.ParseRule(preset)
			if err != nil {
				t.Fatal(err)
			}
			id, err := box.AddFault(rule)
			if err != nil {
				t.Fatal(err)
			}
			defer box.RemoveFault(id)
			o := optionsFor(t, box, roots)
			o.Timeouts = doctor.Timeouts{} // minutes, should the context not do
			o.Clock = nil
			before := map[string]string{"connect-blackhole": "tcp", "mail-blackhole": "auth", "token-blackhole": "starttls"}[preset]
			ctx, cancel := context.WithCancel(t.Context())
			o.Progress = func(s doctor.Step) {
				if s.Name == before { // the next one hangs
					time.AfterFunc(50*time.Millisecond, cancel)
				}
			}
			r := doctor.Examine(ctx, o)
			i := slices.IndexFunc(r.Steps, func(s doctor.Step) bool { return s.State == doctor.Failed })
			if i < 0 || r.Steps[i].Detail != "interrupted" || r.Steps[i].Cause != "" || r.Steps[i-1].Name != before {
				t.Errorf("got %s", whole(t, r))
			}
		})
	}
}

func TestUnsendable(t *testing.T) {
	box, roots := simulate(t)
	o := optionsFor(t, box, roots)
	o.Route.Login, o.Sender = "app@contoso.com>\r\nDATA", "app@contoso.com"
	checkFailure(t, doctor.Examine(t.Context(), o), finding{"auth", "the login is not a mailbox", "", "login of the sender"})
	o = optionsFor(t, box, roots)
	o.Recipient = "x@y.z>\r\nDATA"
	checkFailure(t, doctor.Examine(t.Context(), o), finding{"rcpt", "the recipient's address cannot be sent", "", "--to"})
	o.Recipient = "größe@fabrikam.com"
	if r := doctor.Examine(t.Context(), o); r.Result != doctor.OK || !strings.Contains(step(t, r, "mail").Detail, "> SMTPUTF8: 250") {
		t.Errorf("got %s, want SMTPUTF8 used where it is offered", whole(t, r))
	}
	if _, err := box.AddFault(sandbox.Rule{Stage: sandbox.StageEHLO, Hide: []string{"SMTPUTF8"}}); err != nil {
		t.Fatal(err)
	}
	checkFailure(t, doctor.Examine(t.Context(), o), finding{"mail", "SMTPUTF8 is not offered", "", "ASCII"})
}

func TestNoXOAUTH2(t *testing.T) {
	box, roots := simulate(t)
	if _, err := box.AddFault(sandbox.Rule{Stage: sandbox.StageEHLO, Hide: []string{"AUTH"}}); err != nil {
		t.Fatal(err)
	}
	checkFailure(t, doctor.Examine(t.Context(), optionsFor(t, box, roots)),
		finding{"auth", "XOAUTH2 is not offered", "which Exchange Online's submission service always does", "smtp_server"})
}

// TestTokenWithheld: a server that repeats what it was sent gets no part of the token into a report.
func TestTokenWithheld(t *testing.T) {
	const token = "eyJ0eXAi.canary-canary-canary-canary.c2lnbmF0dXJl"
	answer := base64.StdEncoding.EncodeToString([]byte("user=app@contoso.com\x01auth=Bearer " + token + "\x01\x01"))
	box, roots := simulate(t)
	for name, reply := range map[string]string{
		"the token":         "535 5.7.3 you said " + token,
		"part of it":        "535 5.7.3 you said " + token[10:30],
		"what was sent":     "501 5.5.2 cannot decode " + answer[20:60],
		"in the challenge":  "334 " + base64.StdEncoding.EncodeToString([]byte(`{"you":"`+token+`"}`)),
		"with another code": "999 " + token,
	} {
		t.Run(name, func(t *testing.T) {
			rule := sandbox.Rule{Stage: sandbox.StageAuth, Reply: reply}
			if strings.HasPrefix(reply, "999") {
				rule = sandbox.Rule{Stage: sandbox.StageAuth, Raw: reply + "\r\n"}
			}
			id, err := box.AddFault(rule)
			if err != nil {
				t.Fatal(err)
			}
			defer box.RemoveFault(id)
			o := optionsFor(t, box, roots)
			o.Token = func(context.Context) (doctor.Token, error) { return doctor.Token{Value: token}, nil }
			r := doctor.Examine(t.Context(), o)
			if step(t, r, "auth").State != doctor.Failed {
				t.Fatalf("got %s", states(r))
			}
			all := whole(t, r)
			for _, secret := range []string{"canary", answer[20:60]} {
				if strings.Contains(all, secret) {
					t.Errorf("%q in %s", secret, all)
				}
			}
		})
	}
}

// TestTokenWithheldLater: so it is behind AUTH, too.
func TestTokenWithheldLater(t *testing.T) {
	box, roots := simulate(t)
	o := optionsFor(t, box, roots)
	token, err := o.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.Token = func(context.Context) (doctor.Token, error) { return token, nil }
	answer := base64.StdEncoding.EncodeToString([]byte("user=app@contoso.com\x01auth=Bearer " + token.Value + "\x01\x01"))
	for name, quoted := range map[string]string{"part of the token": token.Value[100:124], "part of what was sent": answer[100:124]} {
		for _, code := range []string{"250 2.1.0 ", "451 4.3.0 "} {
			t.Run(name+" "+code, func(t *testing.T) {
				id, err := box.AddFault(sandbox.Rule{Stage: sandbox.StageMail, Reply: code + quoted})
				if err != nil {
					t.Fatal(err)
				}
				defer box.RemoveFault(id)
				all := whole(t, doctor.Examine(t.Context(), o))
				if strings.Contains(all, quoted) || !strings.Contains(all, "withheld") {
					t.Errorf("%q in %s", quoted, all)
				}
			})
		}
	}
}

// TestSilentHandshake: a far end that says yes to STARTTLS and then nothing costs one wait.
func TestSilentHandshake(t *testing.T) {
	box, roots := simulate(t)
	if _, err := box.AddFault(sandbox.Rule{Stage: sandbox.StageTLS, Blackhole: true}); err != nil {
		t.Fatal(err)
	}
	o := optionsFor(t, box, roots)
	hurry(&o)
	checkFailure(t, doctor.Examine(t.Context(), o),
		finding{"starttls", "the TLS handshake did not end in time", "falls silent", "exempt"})
}

// TestEndlessChallenges: a server that never comes to a verdict is left.
func TestEndlessChallenges(t *testing.T) {
	box, roots := simulate(t)
	if _, err := box.AddFault(sandbox.Rule{Stage: sandbox.StageAuth, Raw: strings.Repeat("334 e30=\r\n", 100)}); err != nil {
		t.Fatal(err)
	}
	checkFailure(t, doctor.Examine(t.Context(), optionsFor(t, box, roots)), finding{"auth", "challenges without end", "", ""})
}

func TestJSON(t *testing.T) {
	s := doctor.Step{Name: "auth", State: doctor.Failed, Detail: "MAIL FROM:<a@b.c>", Took: 1500 * time.Microsecond, Cause: "c", Advice: "a",
		Error: &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 3}, Text: "no", Stage: status.StageAuth, Action: status.ParkSender, Rule: "r",
			Err: errors.New("never shown")}}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode([]doctor.Step{s, {Name: "mail", State: doctor.Skipped}}); err != nil {
		t.Fatal(err)
	}
	const want = `[{"step":"auth","result":"fail","detail":"MAIL FROM:<a@b.c>","took_ms":1.5,"cause":"c","advice":"a",` +
		`"error":{"stage":"auth","code":535,"enhanced":"5.7.3","text":"no","action":"park sender","rule":"r"}},` +
		`{"step":"mail","result":"skip","detail":"","took_ms":0}]` + "\n"
	if b.String() != want {
		t.Errorf("got %s\nwant %s", b.String(), want)
	}
}
