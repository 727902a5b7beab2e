package desk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"relayd/pkg/admin/console"
	"relayd/pkg/config"
	"relayd/pkg/dispatch"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

// callbackPath is where Entra ID sends a browser back to, behind the page's base URL.
const callbackPath = "/oauth/callback"

// RedirectURI returns the Authorized redirect URI to enter in Entra.
func (d *Desk) RedirectURI() string { return d.opts.BaseURL() + callbackPath }

// Tenants implements console.Console.
func (d *Desk) Tenants(context.Context) ([]console.Tenant, error) {
	x := d.opts.Config()
	users := map[string]int{}
	for i := range x.Senders {
		users[x.Senders[i].Tenant]++
	}
	stops := tenantStops(d.opts.Dispatcher.Mailboxes())
	var list []console.Tenant
	for i := range x.Tenants {
		origin := console.OriginFile
		if i >= x.TenantsOfFile {
			origin = console.OriginPage
		}
		t := d.tenant(&x.Tenants[i], origin, stops)
		t.Senders = users[t.Name]
		list = append(list, t)
	}
	for _, fields := range x.Shadowed.Tenants {
		list = append(list, d.enteredTenant(fields, true, nil))
	}
	for _, r := range x.Refused {
		if r.Fields["name"] != "" {
			list = append(list, d.enteredTenant(r.Fields, false, r.Problems))
		}
	}
	slices.SortStableFunc(list, func(a, b console.Tenant) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// tenantStops returns what keeps each tenant's mail back: what a person must act on before what heals by itself.
func tenantStops(boxes []dispatch.Mailbox) map[string]dispatch.Stop {
	stops := map[string]dispatch.Stop{}
	for _, box := range boxes {
		for _, s := range box.Stops {
			if known, ok := stops[box.Tenant]; s.Tenant && (!ok || known.Quota && !s.Quota) {
				stops[box.Tenant] = s
			}
		}
	}
	return stops
}

func (d *Desk) tenant(t *config.Tenant, origin string, stops map[string]dispatch.Stop) console.Tenant {
	view := console.Tenant{
		Name: t.Name, Cloud: t.Cloud, TenantID: t.TenantID, ClientID: t.ClientID, Grant: t.Grant, Credential: credential(t),
		CredentialExpires: t.Expiry(), Authority: t.Authority, Scope: t.Scope, SMTPServer: t.SMTPServer, Origin: origin,
		CAFile: t.CAFile, CertFile: t.Certificate.CertFile, KeyFile: t.Certificate.KeyFile,
		RedirectURI: d.RedirectURI(), AdminConsentURL: adminConsentURL(t, d.RedirectURI()),
	}
	expires, refused := d.opts.Tokens.Status(t.Name)
	view.TokenExpires = expires
	if stop, stopped := stops[t.Name]; stopped {
		view.Problem = problemOf(stop.Reply, stop.Since)
	} else if refused != nil {
		view.Problem = problemOf(refused, time.Time{})
	}
	return view
}

// enteredTenant shows what was entered and is not in force.
func (d *Desk) enteredTenant(fields config.Fields, shadowed bool, problems []config.Problem) console.Tenant {
	t := console.Tenant{
		Name: fields["name"], Cloud: fields["cloud"], TenantID: fields["tenant_id"], ClientID: fields["client_id"], Grant: fields["grant"],
		Authority: fields["authority"], Scope: fields["scope"], SMTPServer: fields["smtp_server"], Origin: console.OriginPage, Shadowed: shadowed,
		CertFile: fields["certificate.cert_file"], KeyFile: fields["certificate.key_file"], CAFile: fields["ca_file"],
		Credential: "none", RedirectURI: d.RedirectURI(), Problem: refusedProblem(problems),
	}
	switch {
	case fields["client_secret"] != "":
		t.Credential = "client_secret"
	case t.CertFile != "":
		t.Credential = "certificate"
	}
	if day, err := time.Parse(time.DateOnly, fields["credential_expires"]); err == nil {
		t.CredentialExpires = day
	}
	return t
}

const notInForce = "what was entered is not in force"

func refusedProblem(problems []config.Problem) *console.Problem {
	if len(problems) == 0 {
		return nil
	}
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = p.Key + ": " + p.Text
	}
	return &console.Problem{Text: notInForce, Cause: strings.Join(texts, "; "), Advice: "Change it, or remove it"}
}

func credential(t *config.Tenant) string {
	switch {
	case !t.ClientSecret.IsZero():
		return "client_secret"
	case t.Certificate.CertFile != "":
		return "certificate"
	case t.FederatedTokenFile != "":
		return "federated_token_file"
	case t.ManagedIdentity != "":
		return "managed_identity"
	}
	return "none"
}

// adminConsentURL is where an administrator consents to what the app asks for, as Microsoft documents it for SMTP.
func adminConsentURL(t *config.Tenant, redirect string) string {
	scope := t.Scope
	if t.Grant == "delegated" {
		scope, _, _ = strings.Cut(scope, " ")
	}
	q := url.Values{"client_id": {t.ClientID}, "redirect_uri": {redirect}, "scope": {scope}}
	return t.Authority + "/" + url.PathEscape(t.TenantID) + "/v2.0/adminconsent?" + q.Encode()
}

func problemOf(e *status.Error, since time.Time) *console.Problem {
	if e == nil {
		return nil
	}
	return &console.Problem{Text: e.Error(), Cause: e.Cause, Advice: e.Advice, Since: since}
}

// Tenant implements console.Console.
func (d *Desk) Tenant(ctx context.Context, name string) (*console.Tenant, error) {
	all, err := d.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	var found *console.Tenant
	for i := range all {
		if all[i].Name == name && (found == nil || found.Shadowed) {
			found = &all[i]
		}
	}
	if found == nil {
		return nil, console.ErrNotFound
	}
	return found, nil
}

// SaveTenant implements console.Console.
func (d *Desk) SaveTenant(ctx context.Context, name string, in console.TenantInput) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	entered := d.opts.Registry.Content().Tenants
	old, known := entered[name]
	x := d.opts.Config()
	if name != "" && !known {
		if slices.ContainsFunc(x.Tenants, func(t config.Tenant) bool { return t.Name == name }) {
			return console.ErrFile
		}
		return console.ErrNotFound
	}
	if wrong := secretMistake(in.ClientSecret); wrong != "" {
		return console.Mistakes{{Field: "client_secret", Text: wrong}}
	}
	fields := tenantFields(in)
	// By cloud or by address: it is another server that secrets, or tokens got with them, would be sent to.
	before, _ := without(x, name, "").NewTenant(old)
	after, _ := without(x, name, "").NewTenant(fields)
	elsewhere := before.Authority != after.Authority || before.SMTPServer != after.SMTPServer || before.Scope != after.Scope || before.CAFile != after.CAFile
	if old["client_secret"] != "" && fields["client_secret"] == "" && fields["certificate.cert_file"] == "" {
		if elsewhere {
			return console.Mistakes{{Field: "client_secret", Text: "enter the secret again, since it, or tokens got with it, will go to another server"}}
		}
		fields["client_secret"] = old["client_secret"]
	}
	if name != "" && in.Name != name {
		return console.Mistakes{{Field: "name", Text: "a tenant keeps its name; add another, and remove this one"}}
	}
	if name == "" && in.Name == "new" { // its page would be the form for a new one
		return console.Mistakes{{Field: "name", Text: "\"new\" is a word of the page's own; choose another name"}}
	}
	same := func(other string) bool { return strings.EqualFold(other, in.Name) }
	if name == "" && (slices.ContainsFunc(slices.Collect(maps.Keys(entered)), same) || slices.ContainsFunc(x.Tenants, func(t config.Tenant) bool { return same(t.Name) })) {
		return console.Mistakes{{Field: "name", Text: fmt.Sprintf("%q is the name of another tenant, but for small and capital letters; give each its own", in.Name)}}
	}
	if _, problems := without(x, name, "").NewTenant(fields); len(problems) > 0 {
		return mistakes(problems, "name")
	}
	what := "tenant.change"
	if name == "" {
		what = "tenant.add"
	}
	err := d.Change(ctx, what, in.Name, shownFields(old), shownFields(fields), func() error {
		if !known || elsewhere {
			issuer := after.Authority
			if known && before.Authority == after.Authority {
				issuer = "" // it is the tokens that go elsewhere: whoever granted them was not asked for that
			}
			if err := d.forgetGrants(ctx, in.Name, issuer); err != nil {
				return err
			}
		}
		if err := d.opts.Registry.PutTenant(ctx, in.Name, fields); err != nil {
			return err
		}
		return d.inForce(ctx, func(ctx context.Context) error {
			if known {
				return d.opts.Registry.PutTenant(ctx, in.Name, old)
			}
			return d.opts.Registry.DeleteTenant(ctx, in.Name)
		})
	})
	if err == nil {
		d.opts.Dispatcher.Probe(in.Name, "")
	}
	return err
}

// forgetGrants forgets what mailboxes' owners have granted a tenant of that name elsewhere than at authority, which may be empty:
// refresh tokens go to nobody but who issued them. Whose authority is not known any more is forgotten, too.
func (d *Desk) forgetGrants(ctx context.Context, tenant, authority string) error {
	grants, err := d.opts.Tokens.Grants(ctx)
	if err != nil {
		return err
	}
	for _, g := range grants {
		issuer, _, _ := strings.Cut(g.For, " ")
		if g.Tenant != tenant || authority != "" && issuer == authority {
			continue
		}
		if err := d.opts.Tokens.Forget(ctx, tenant, g.Login); err != nil {
			return err
		}
	}
	return nil
}

// secretMistake says what is wrong with an entered secret, without repeating it; empty: nothing that can be seen.
func secretMistake(secret string) string {
	scheme, rest, found := strings.Cut(secret, ":")
	switch {
	case strings.TrimSpace(secret) != secret:
		return "begins or ends with a space or a line's end; copy the value alone"
	case found && rest != "" && slices.Contains([]string{"env", "file", "cred"}, scheme):
		return "looks like a reference to a secret, which can only stand in the configuration file; enter the secret's value itself"
	case isGUID(secret):
		return "is an ID, not a secret: Entra ID shows both; copy what stands in the column Value, or make a new secret if it is shown no more"
	}
	return ""
}

// isGUID reports whether s has the form of Entra ID's identifiers, which its secrets never have.
func isGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range s {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdefABCDEF", c) {
			return false
		}
	}
	return true
}

func tenantFields(in console.TenantInput) config.Fields {
	fields := config.Fields{
		"name": in.Name, "cloud": in.Cloud, "tenant_id": in.TenantID, "client_id": in.ClientID, "grant": in.Grant,
		"client_secret": in.ClientSecret, "certificate.cert_file": in.CertFile, "certificate.key_file": in.KeyFile,
		"credential_expires": in.CredentialExpires, "authority": in.Authority, "scope": in.Scope, "smtp_server": in.SMTPServer, "ca_file": in.CAFile,
	}
	if fields["grant"] == "" {
		fields["grant"] = "delegated"
	}
	maps.DeleteFunc(fields, func(_, value string) bool { return value == "" })
	return fields
}

// without returns the configuration without the tenant and the sender of that name, as what is entered instead is judged.
func without(x *config.Extended, tenant, match string) *config.Config {
	c := *x.Config
	c.Tenants = slices.DeleteFunc(slices.Clone(c.Tenants), func(t config.Tenant) bool { return tenant != "" && t.Name == tenant })
	c.Senders = slices.DeleteFunc(slices.Clone(c.Senders), func(s config.Sender) bool {
		return match != "" && strings.EqualFold(s.Address+s.Match, match)
	})
	return &c
}

// mistakes are a configuration's problems beside the fields of a form; one of nothing in particular is put beside main.
func mistakes(problems []config.Problem, main string) console.Mistakes {
	names := map[string]string{"certificate.cert_file": "cert_file", "certificate.key_file": "key_file", "certificate": "cert_file", "address": "match", "": main}
	var list console.Mistakes
	for _, p := range problems {
		field := p.Key
		if name, ok := names[field]; ok {
			field = name
		}
		text := p.Text
		if field == "client_secret" && strings.HasPrefix(text, "is missing") { // the file's cures are not the form's
			text = "is missing; enter the secret's value, or name a certificate's files"
		}
		list = append(list, console.Mistake{Field: field, Text: text})
	}
	return list
}

// shownFields is what was entered as the audit log shows it.
func shownFields(fields config.Fields) string {
	parts := make([]string, 0, len(fields))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := fields[name]
		if name == "client_secret" {
			value = "[redacted]"
		}
		parts = append(parts, name+"="+value)
	}
	return strings.Join(parts, " ")
}

// RemoveTenant implements console.Console.
func (d *Desk) RemoveTenant(ctx context.Context, name string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	old, known := d.opts.Registry.Content().Tenants[name]
	x := d.opts.Config()
	at := slices.IndexFunc(x.Tenants, func(t config.Tenant) bool { return t.Name == name })
	switch {
	case !known && at >= 0:
		return console.ErrFile
	case !known:
		return console.ErrNotFound
	case at >= x.TenantsOfFile && slices.ContainsFunc(x.Senders, func(s config.Sender) bool { return s.Tenant == name }):
		return console.ErrInUse
	}
	return d.Change(ctx, "tenant.remove", name, shownFields(old), "", func() error {
		if at < 0 || at >= x.TenantsOfFile { // else the consents are of the file's
			if err := d.forgetGrants(ctx, name, ""); err != nil {
				return err
			}
		}
		if err := d.opts.Registry.DeleteTenant(ctx, name); err != nil {
			return err
		}
		return d.inForce(ctx, func(ctx context.Context) error { return d.opts.Registry.PutTenant(ctx, name, old) })
	})
}

// CheckTenant implements console.Console.
func (d *Desk) CheckTenant(ctx context.Context, name string) ([]console.Finding, error) {
	t, err := d.Tenant(ctx, name)
	if err != nil {
		return nil, err
	}
	var findings []console.Finding
	add := func(step, result, detail, cause, advice string) {
		findings = append(findings, console.Finding{Step: step, Result: result, Detail: detail, Cause: cause, Advice: advice})
	}
	if t.Shadowed || t.Problem != nil && t.Problem.Text == notInForce {
		add("configuration", "fail", "this entry is not in force", "the file has a tenant of that name, or what was entered no longer fits", "Remove the entry, or change it")
		return findings, nil
	}
	switch left := time.Until(t.CredentialExpires); {
	case t.CredentialExpires.IsZero() && t.Credential == "client_secret":
		add("credential", "warn", "nobody has entered when the client secret expires", "Entra ends every client secret, after two years at the latest",
			"Enter the date that Certificates & secrets shows, to be warned in time")
	case !t.CredentialExpires.IsZero() && left < 0:
		add("credential", "fail", "it expired on "+t.CredentialExpires.Format(time.DateOnly), "Entra ID refuses an expired credential", "Make a new one under Certificates & secrets, and enter it here")
	case !t.CredentialExpires.IsZero() && left < 30*24*time.Hour:
		add("credential", "warn", "it expires on "+t.CredentialExpires.Format(time.DateOnly), "", "Make a new one under Certificates & secrets, and enter it here")
	default:
		add("credential", "ok", t.Credential, "", "")
	}
	err = d.opts.Tokens.Check(ctx, name)
	refused, _ := errors.AsType[*status.Error](err)
	switch {
	case err == nil:
		add("token", "ok", "Entra ID knows the registration and takes its credential", "", "")
	case refused != nil:
		add("token", "fail", refused.Error(), refused.Cause, refused.Advice)
	default:
		add("token", "fail", err.Error(), "", "")
	}
	return findings, nil
}

// Expiries returns what ends at a known day, the nearest first.
func (d *Desk) Expiries(ctx context.Context) ([]console.Expiry, error) {
	list := []console.Expiry{}
	x := d.opts.Config()
	for i := range x.Tenants {
		t := &x.Tenants[i]
		ends := t.Expiry()
		if ends.IsZero() {
			continue
		}
		e := console.Expiry{Kind: "secret", Tenant: t.Name, Expires: ends,
			Advice: "Make a new client secret in the Entra admin center (App registrations, Certificates & secrets) and enter it in relayd"}
		if t.Certificate.CertFile != "" {
			e.Kind, e.Advice = "certificate", "Make a new certificate, register it with the app in the Entra admin center, and put it in the place of the old one"
		}
		list = append(list, e)
	}
	grants, err := d.opts.Tokens.Grants(ctx) // the rest is right without them
	for _, g := range grants {
		if g.Dead == "" {
			list = append(list, console.Expiry{Kind: "consent", Tenant: g.Tenant, Sender: g.Login, Expires: g.Used.Add(grant.IdleLife),
				Advice: "relayd renews it by itself, long before; should the day come near, it could not: see the sender"})
		}
	}
	slices.SortStableFunc(list, func(a, b console.Expiry) int { return a.Expires.Compare(b.Expires) })
	return list, err
}
