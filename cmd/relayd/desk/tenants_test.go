package desk

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"relayd/pkg/admin/console"
	"relayd/pkg/config"
	"relayd/pkg/dispatch"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

func TestTenantIsAddedChangedAndRemoved(t *testing.T) {
	w := newWorld(t)
	in := tenantInput("contoso")
	w.addTenant(in)
	if diff := cmp.Diff([]string{"audit tenant.add", "apply"}, w.events); diff != "" {
		t.Errorf("the audit log comes first: %s", diff)
	}
	e := w.last()
	if e.Who != "ops@contoso.com" || e.Peer != "192.0.2.7" || e.On != "contoso" || e.Before != "" || !strings.Contains(e.After, "client_secret=[redacted]") {
		t.Errorf("got %+v", e)
	}
	if !slices.Equal(w.probed, []string{"contoso/"}) {
		t.Errorf("probed %v, want what waits for the tenant", w.probed)
	}
	got, err := w.Tenant(t.Context(), "contoso")
	if err != nil {
		t.Fatal(err)
	}
	want := console.Tenant{Name: "contoso", Cloud: "worldwide", TenantID: in.TenantID, ClientID: in.ClientID, Grant: "delegated", Credential: "client_secret",
		CredentialExpires: time.Date(2041, 2, 3, 0, 0, 0, 0, time.UTC), Authority: "https://login.microsoftonline.com",
		Scope: "https://outlook.office.com/SMTP.Send offline_access", SMTPServer: "smtp.office365.com:587", Origin: console.OriginPage,
		RedirectURI: "https://relay.contoso.com/oauth/callback",
		AdminConsentURL: "https://login.microsoftonline.com/" + in.TenantID + "/v2.0/adminconsent?client_id=" + in.ClientID +
			"&redirect_uri=https%3A%2F%2Frelay.contoso.com%2Foauth%2Fcallback&scope=https%3A%2F%2Foutlook.office.com%2FSMTP.Send"}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Error(diff)
	}

	in.ClientSecret, in.CredentialExpires = "", "2042-01-01" // empty keeps it
	if err := w.SaveTenant(ops(t), "contoso", in); err != nil {
		t.Fatal(err)
	}
	if secret, err := w.x.Tenants[1].ClientSecret.Resolve(); secret != canary+"-secret" || err != nil {
		t.Errorf("the secret was not kept: %v", err)
	}
	if e := w.last(); e.What != "tenant.change" || !strings.Contains(e.Before, "credential_expires=2041-02-03") || !strings.Contains(e.After, "credential_expires=2042-01-01") {
		t.Errorf("got %+v", e)
	}
	w.addSender(console.SenderInput{Match: "a@contoso.com", Tenant: "contoso"})
	if err := w.RemoveTenant(ops(t), "contoso"); !errors.Is(err, console.ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	all, err := w.Tenants(t.Context())
	if err != nil || len(all) != 2 || all[0].Name != "contoso" || all[0].Senders != 1 || all[1].Origin != console.OriginFile || all[1].Senders != 2 {
		t.Errorf("got %+v, %v", all, err)
	}
	w.noCanary()
	if err := w.RemoveSender(ops(t), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveTenant(ops(t), "contoso"); err != nil {
		t.Fatal(err)
	}
	if e := w.last(); e.What != "tenant.remove" || e.After != "" || !strings.Contains(e.Before, "client_secret=[redacted]") {
		t.Errorf("got %+v", e)
	}
	if _, err := w.Tenant(t.Context(), "contoso"); !errors.Is(err, console.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	w.noCanary()
}

func TestTenantRules(t *testing.T) {
	w := newWorld(t)
	w.addTenant(tenantInput("contoso"))
	before, events := len(w.entries), len(w.events)
	with := func(change func(*console.TenantInput)) console.TenantInput {
		in := tenantInput("other")
		change(&in)
		return in
	}
	for name, err := range map[string]error{
		"change the file's": w.SaveTenant(ops(t), "filed", tenantInput("filed")),
		"remove the file's": w.RemoveTenant(ops(t), "filed"),
	} {
		if !errors.Is(err, console.ErrFile) {
			t.Errorf("%s: got %v, want ErrFile", name, err)
		}
	}
	for name, err := range map[string]error{
		"change": w.SaveTenant(ops(t), "nobody", tenantInput("nobody")), "remove": w.RemoveTenant(ops(t), "nobody"),
	} {
		if !errors.Is(err, console.ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", name, err)
		}
	}
	mistakesOf(t, w.SaveTenant(ops(t), "contoso", tenantInput("renamed")), "name")
	mistakesOf(t, w.SaveTenant(ops(t), "", tenantInput("contoso")), "name")
	mistakesOf(t, w.SaveTenant(ops(t), "", tenantInput("filed")), "name")
	mistakesOf(t, w.SaveTenant(ops(t), "", with(func(in *console.TenantInput) { in.TenantID, in.ClientID = "common", "app" })), "tenant_id", "client_id")
	mistakesOf(t, w.SaveTenant(ops(t), "", with(func(in *console.TenantInput) { in.CertFile, in.ClientSecret = "/nowhere.pem", "" })), "key_file")
	mistakesOf(t, w.SaveTenant(ops(t), "", with(func(in *console.TenantInput) { in.Grant, in.ClientSecret = "client_credentials", "" })), "client_secret")
	mistakesOf(t, w.SaveTenant(ops(t), "", with(func(in *console.TenantInput) { in.CAFile = "/nowhere.pem" })), "ca_file")
	for _, secret := range []string{
		" " + canary, canary + "\n", "file:/etc/shadow", "env:" + canary, "cred:x", "01234567-89ab-cdef-0123-456789ABCDEF", canary + "\x00",
	} {
		err := w.SaveTenant(ops(t), "", with(func(in *console.TenantInput) { in.ClientSecret = secret }))
		mistakesOf(t, err, "client_secret")
		if strings.Contains(err.Error(), strings.TrimSpace(secret)) {
			t.Errorf("the mistake repeats the secret: %v", err)
		}
	}
	if len(w.entries) != before || len(w.events) != events {
		t.Error("what was never begun is in the audit log, or was done")
	}
	for _, ok := range []string{canary, "01234567-89ab-cdef-0123-456789abcdeg", "0123456789abcdef0123456789abcdef0123", "env:", "https://x"} {
		if text := secretMistake(ok); text != "" {
			t.Errorf("%q %s", ok, text)
		}
	}
}

// TestSecretsGoNowhereElse: who may enter tenants may not see what others entered, nor have it sent to a server of theirs.
func TestSecretsGoNowhereElse(t *testing.T) {
	for name, change := range map[string]func(*console.TenantInput){
		"authority": func(in *console.TenantInput) { in.Authority = "https://evil.example" },
		"cloud":     func(in *console.TenantInput) { in.Cloud = "china" },
		"server":    func(in *console.TenantInput) { in.SMTPServer = "smtp.evil.example:587" }, // access tokens go there
		"scope":     func(in *console.TenantInput) { in.Scope = "https://graph.microsoft.com/SMTP.Send offline_access" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addTenant(tenantInput("contoso"))
			w.addSender(console.SenderInput{Match: "a@contoso.com", Tenant: "contoso"})
			w.grants = []grant.Grant{
				{Tenant: "contoso", Login: "a@contoso.com", Refresh: canary, For: "https://login.microsoftonline.com tid cid scope"},
				{Tenant: "contoso", Login: "old@contoso.com", Refresh: canary},
				{Tenant: "filed", Login: "x@contoso.com", Refresh: canary},
			}
			in := tenantInput("contoso")
			in.ClientSecret = ""
			same := in
			same.Authority = "https://login.microsoftonline.com/" // as before, only written out
			if err := w.SaveTenant(ops(t), "contoso", same); err != nil || len(w.grants) != 3 {
				t.Fatalf("the same authority: %v, %v", err, w.grants)
			}
			change(&in)
			mistakesOf(t, w.SaveTenant(ops(t), "contoso", in), "client_secret")
			if len(w.grants) != 3 {
				t.Error("a refused change forgets consents")
			}
			w.events = nil
			in.ClientSecret = "another"
			if err := w.SaveTenant(ops(t), "contoso", in); err != nil {
				t.Fatal(err)
			}
			want := []string{"audit tenant.change", "forget contoso/a@contoso.com", "forget contoso/old@contoso.com", "apply"}
			if diff := cmp.Diff(want, w.events); diff != "" {
				t.Errorf("refresh tokens are forgotten before the other authority is in force: %s", diff)
			}
		})
	}
	w := newWorld(t)
	for _, name := range []string{"new", "FILED"} { // the page's own word; the file's tenant in capitals
		mistakesOf(t, w.SaveTenant(ops(t), "", tenantInput(name)), "name")
	}
	w = newWorld(t) // one of the name of a former one
	w.grants = []grant.Grant{
		{Tenant: "contoso", Login: "a@contoso.com", For: "https://login.microsoftonline.com tid cid scope"},
		{Tenant: "contoso", Login: "b@contoso.com", For: "https://login.elsewhere.example tid cid scope"},
	}
	w.addTenant(tenantInput("contoso"))
	if len(w.grants) != 1 || w.grants[0].Login != "a@contoso.com" {
		t.Errorf("left %v", w.grants)
	}
	if err := w.RemoveTenant(ops(t), "contoso"); err != nil || len(w.grants) != 0 {
		t.Errorf("%v; left %v", err, w.grants)
	}
}

// TestTenantThatNoLongerFits: what cannot be in force is shown with the reason, and can be changed and removed.
func TestTenantThatNoLongerFits(t *testing.T) {
	w := newWorld(t)
	in := tenantInput("contoso")
	w.addTenant(in)
	spoil := func(w *world) {
		fields := config.Fields{"name": "contoso", "tenant_id": "?", "client_id": in.ClientID, "client_secret": canary, "ca_file": "/ca.pem",
			"credential_expires": "2041-02-03", "certificate.cert_file": "", "frobnicate": "1"}
		if err := w.registry.PutTenant(t.Context(), "contoso", fields); err != nil {
			t.Fatal(err)
		}
		w.extend()
	}
	spoil(w)
	got, err := w.Tenant(t.Context(), "contoso")
	if err != nil || got.Problem == nil || got.Problem.Text != notInForce || !strings.Contains(got.Problem.Cause, "frobnicate: is no field here") ||
		got.Credential != "client_secret" || got.CAFile != "/ca.pem" || got.CredentialExpires.Year() != 2041 || got.Origin != console.OriginPage {
		t.Errorf("got %+v, %v", got, err)
	}
	findings, err := w.CheckTenant(t.Context(), "contoso")
	if err != nil || len(findings) != 1 || findings[0].Step != "configuration" || findings[0].Result != "fail" {
		t.Errorf("got %v, %v", findings, err)
	}
	c, err := w.Configuration(t.Context())
	if err != nil || !slices.ContainsFunc(c.Warnings, func(s string) bool { return strings.Contains(s, "contoso, entered on the page, is not in force") }) {
		t.Errorf("got %v, %v", c, err)
	}
	w.noCanary(findings)
	if err := w.SaveTenant(ops(t), "contoso", in); err != nil {
		t.Fatalf("it cannot be put right: %v", err)
	}
	if got, err := w.Tenant(t.Context(), "contoso"); err != nil || got.Problem != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	spoil(w)
	if err := w.RemoveTenant(ops(t), "contoso"); err != nil {
		t.Errorf("it cannot be removed: %v", err)
	}
}

// TestShadowedTenant: the file has one of that name since; it is in force, and the entered one only in the way.
func TestShadowedTenant(t *testing.T) {
	w := newWorld(t)
	w.addTenant(tenantInput("contoso"))
	w.grants = []grant.Grant{{Tenant: "contoso", Login: "a@contoso.com"}}
	w.changeFile("{name: filed,", "{name: contoso, tenant_id: 11111111-1111-1111-1111-111111111111, client_id: 22222222-2222-2222-2222-222222222222, client_secret: \"env:SECRET\"}\n  - {name: filed,")
	all, err := w.Tenants(t.Context())
	if err != nil || len(all) != 3 || all[0].Shadowed || !all[1].Shadowed || all[1].Origin != console.OriginPage || all[1].Credential != "client_secret" {
		t.Fatalf("got %+v, %v", all, err)
	}
	if got, err := w.Tenant(t.Context(), "contoso"); err != nil || got.Shadowed || got.Origin != console.OriginFile {
		t.Errorf("got %+v, %v; want the one in force", got, err)
	}
	if err := w.RemoveTenant(ops(t), "contoso"); err != nil || len(w.grants) != 1 {
		t.Errorf("%v; the file's consents must stay: %v", err, w.grants)
	}
	if err := w.RemoveTenant(ops(t), "contoso"); !errors.Is(err, console.ErrFile) {
		t.Errorf("got %v, want ErrFile", err)
	}
	w.noCanary()
}

func TestTenantProblems(t *testing.T) {
	w := newWorld(t)
	w.refused = &status.Error{Code: 535, Text: "AADSTS7000222", Cause: "it has expired", Advice: "make another"}
	w.expires = time.Unix(9, 0)
	got, err := w.Tenant(t.Context(), "filed")
	if err != nil || got.Problem == nil || got.Problem.Cause != "it has expired" || got.Problem.Advice != "make another" || !got.TokenExpires.Equal(time.Unix(9, 0)) {
		t.Fatalf("got %+v, %v", got, err)
	}
	since := time.Unix(7, 0)
	w.boxes = []dispatch.Mailbox{{Tenant: "filed", Login: "a@contoso.com", Stops: []dispatch.Stop{
		{Reply: status.New(450, status.Enhanced{}, "quota"), Quota: true, Tenant: true, Since: since},
		{Reply: status.New(535, status.Enhanced{}, "blocked"), Tenant: true, Since: since},
		{Reply: status.New(535, status.Enhanced{}, "its own")},
	}}}
	got, err = w.Tenant(t.Context(), "filed")
	if err != nil || got.Problem == nil || got.Problem.Text != "535 blocked" || !got.Problem.Since.Equal(since) {
		t.Errorf("got %+v, %v; want what stops the tenant's mail, and a person must act on", got.Problem, err)
	}
}

func TestCheckTenant(t *testing.T) {
	w := newWorld(t)
	check := func(what string, want ...string) {
		t.Helper()
		findings, err := w.CheckTenant(t.Context(), what)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range findings {
			got = append(got, f.Step+" "+f.Result)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v: %+v", got, want, findings)
		}
	}
	check("filed", "credential ok", "token ok")
	w.tokenFail = &status.Error{Code: 535, Text: "AADSTS7000215", Cause: "wrong secret", Advice: "copy the value"}
	check("filed", "credential ok", "token fail")
	w.tokenFail = errors.New("no network")
	check("filed", "credential ok", "token fail")
	w.tokenFail = nil
	for expires, result := range map[string]string{
		"": "warn", time.Now().AddDate(0, 0, 3).Format(time.DateOnly): "warn", time.Now().AddDate(0, 0, -3).Format(time.DateOnly): "fail",
	} {
		in := tenantInput("t" + expires)
		in.CredentialExpires = expires
		w.addTenant(in)
		check(in.Name, "credential "+result, "token ok")
	}
	if _, err := w.CheckTenant(t.Context(), "nobody"); !errors.Is(err, console.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestExpiries(t *testing.T) {
	w := newWorld(t)
	used := time.Now().Add(-80 * 24 * time.Hour)
	w.grants = []grant.Grant{
		{Tenant: "filed", Login: "a@contoso.com", Used: used, Refresh: canary}, {Tenant: "filed", Login: "dead@contoso.com", Used: used, Dead: "revoked"},
	}
	got, err := w.Expiries(t.Context())
	if err != nil || len(got) != 2 || got[0].Kind != "consent" || got[0].Sender != "a@contoso.com" || !got[0].Expires.Equal(used.Add(grant.IdleLife)) ||
		got[1].Kind != "secret" || got[1].Tenant != "filed" || got[1].Expires.Year() != 2040 {
		t.Errorf("got %+v, %v", got, err)
	}
	w.tokenFail = errors.New("vault away")
	if _, err := w.Expiries(t.Context()); !errors.Is(err, w.tokenFail) {
		t.Errorf("got %v", err)
	}
}
