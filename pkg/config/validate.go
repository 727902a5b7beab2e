package config

import (
	"encoding/pem"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What Exchange Online allows one mailbox; more than that only earns refusals.
const (
	exchangeConnections = 3
	exchangePerMinute   = 30
	exchangePerDay      = 10000
	exchangePerMessage  = 1000
	exchangePerDomain   = 200
)

// validate reports what is wrong with values that were read, each for itself and all together.
func (r *report) validate(c *Config, now time.Time) {
	r.checkHostname(c)
	if c.DataDir == "" {
		r.errorf("data_dir", "is empty; name a directory")
	}
	if len(c.Listeners) == 0 {
		r.errorf("listeners", `is missing, so no mail can come in; write listeners: [{address: ":2525"}]`)
	}
	for i := range c.Listeners {
		r.checkListener(item("listeners", i), &c.Listeners[i], len(c.Clients) > 0)
	}
	r.checkClients(c)
	if c.Limits.HeaderBytes > c.Limits.MessageBytes {
		r.errorf("limits.header_bytes", "%v is more than limits.message_bytes, %v; write less", c.Limits.HeaderBytes,
			c.Limits.MessageBytes)
	}
	r.checkQueue(c)
	for i := range c.Tenants {
		r.checkTenant(c, i, now)
	}
	r.checkSenders(c)
	r.checkUnknownSender(c)
	r.checkBounces(c)
	r.checkReplies(c)
	r.checkHTTP(c)
	r.checkSockets(c)
}

func item(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

func (r *report) checkHostname(c *Config) {
	switch {
	case c.Hostname == "" || len(c.Hostname) > 253 || strings.Trim(strings.ToLower(c.Hostname),
		"abcdefghijklmnopqrstuvwxyz0123456789-._") != "" || strings.Contains(c.Hostname, ".."):
		r.errorf("hostname", "%q is not a host name; write one like relay.contoso.com", c.Hostname)
	case !strings.Contains(strings.Trim(c.Hostname, "."), "."):
		r.warnf("hostname", "%q is not fully qualified, which Exchange Online expects; write one like relay.contoso.com",
			c.Hostname)
	}
}

func (r *report) checkListener(key string, l *Listener, clients bool) {
	r.checkAddress(key+".address", l.Address)
	if l.TLS == "none" {
		for name, file := range map[string]string{".cert_file": l.CertFile, ".key_file": l.KeyFile} {
			if file != "" && !r.given(key+".tls") {
				r.errorf(key+name, "is set, but tls is none; write tls: starttls, or take it away")
			}
		}
	} else {
		for name, file := range map[string]string{".cert_file": l.CertFile, ".key_file": l.KeyFile} {
			if file == "" {
				r.errorf(key+name, "is missing, and tls: %s needs it; name a PEM file, or write tls: none", l.TLS)
			}
		}
	}
	noTLS := l.TLS == "none" && !l.PlaintextAuth
	switch {
	case l.Auth == "required" && !clients:
		r.errorf(key+".auth", "is required, but no clients are configured, so nobody could send; add clients")
	case l.Auth == "required" && noTLS:
		r.errorf(key+".auth", "is required, but AUTH is not offered without TLS, so nobody could send; "+
			"write tls: starttls, or plaintext_auth: true on a network you trust")
	case l.Auth == "optional" && !clients:
		r.warnf(key+".auth", "is optional, but no clients are configured, so nobody can log in; add clients")
	case l.Auth == "optional" && noTLS && r.given(key+".auth"):
		r.warnf(key+".auth", "is optional, but AUTH is not offered without TLS; "+
			"write tls: starttls, or plaintext_auth: true on a network you trust")
	case l.Auth != "none" && l.PlaintextAuth && l.TLS != "implicit":
		r.warnf(key+".plaintext_auth", "passwords may travel in clear; write tls: starttls and plaintext_auth: false "+
			"once the clients can")
	}
	for i, n := range l.AllowNetworks {
		if n != (Network{}) && netip.Prefix(n).Bits() == 0 && l.Auth != "required" {
			r.warnf(item(key+".allow_networks", i), "anybody who reaches this listener may send mail; "+
				"write the networks of your own machines")
		}
	}
}

// checkAddress reports an address no socket can have.
func (r *report) checkAddress(key, address string) {
	if address == "" {
		r.errorf(key, `is missing; write host:port, or ":2525" for all interfaces`)
		return
	}
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || strings.ContainsAny(host, " /@%") {
		r.errorf(key, `%q is not an address; write host:port, or ":2525" for all interfaces`, address)
	}
}

func (r *report) checkClients(c *Config) {
	first := map[string]string{}
	for i := range c.Clients {
		cl, key := &c.Clients[i], item("clients", i)
		if cl.Username == "" {
			r.errorf(key+".username", "is missing; write the name the app logs in with")
		} else if before, twice := first[cl.Username]; twice {
			r.errorf(key+".username", "%q is the name of %s, too; give each client its own", cl.Username, before)
		}
		first[cl.Username] = key
		if cl.PasswordHash == "" {
			r.errorf(key+".password_hash", "is missing; `relayd password` makes one")
		} else if !isPasswordHash(cl.PasswordHash) {
			r.errorf(key+".password_hash", "is not a bcrypt hash ($2b$10$ and 53 more characters); "+
				"`relayd password` makes one")
		}
		if len(cl.Senders) == 0 {
			r.errorf(key+".senders", `is missing, so it could send nothing; write addresses or "*@contoso.com"`)
		}
		for j, s := range cl.Senders {
			r.checkClientSender(c, item(key+".senders", j), s)
		}
		if cl.DefaultSender == "" {
			continue
		}
		if r.checkMailbox(key+".default_sender", cl.DefaultSender) && !covered(cl.DefaultSender, cl.Senders) {
			r.errorf(key+".default_sender", "%q is not among the client's senders; add it there", cl.DefaultSender)
		}
	}
}

func (r *report) checkClientSender(c *Config, key, sender string) {
	if strings.HasPrefix(sender, "*") {
		if !isPattern(sender) {
			r.errorf(key, `%q is neither an address nor *@domain; write it like "*@contoso.com"`, sender)
			return
		}
	} else if !r.checkMailbox(key, sender) {
		return
	}
	domain := sender[strings.LastIndexByte(sender, '@'):]
	for _, s := range c.Senders {
		if strings.EqualFold(s.Address, sender) || strings.EqualFold(s.Match, "*"+domain) {
			return
		}
		if sender[0] == '*' && strings.HasSuffix(strings.ToLower(s.Address), strings.ToLower(domain)) {
			return
		}
	}
	if c.UnknownSender.RewriteTo == "" {
		r.warnf(key, "%q is covered by no entry of senders, so its mail will be refused; add one", sender)
	}
}

// isPasswordHash reports whether s has the form of a bcrypt hash, of a cost that can be checked in the time a client
// waits.
func isPasswordHash(s string) bool {
	return regexp.MustCompile(`^\$2[aby]?\$(0[4-9]|1[0-5])\$[./A-Za-z0-9]{53}$`).MatchString(s)
}

// isPattern reports whether s is "*@" and a domain.
func isPattern(s string) bool {
	domain, found := strings.CutPrefix(s, "*@")
	return found && isDomain(domain)
}

func isDomain(s string) bool {
	return s != "" && len(s) <= 253 && !strings.ContainsAny(s, " @*<>,;:\"\\[](){}/") && !strings.Contains(s, "..") &&
		s[0] != '.' && s[0] != '-' && s[len(s)-1] != '.' && s[len(s)-1] != '-'
}

func isMailbox(s string) bool {
	i := strings.LastIndexByte(s, '@')
	return i > 0 && i <= 64 && isDomain(s[i+1:]) && (s[0] == '"' || !strings.ContainsAny(s[:i], " @*<>,;:\"\\[]()"))
}

func (r *report) checkMailbox(key, address string) bool {
	if !isMailbox(address) {
		r.errorf(key, "%q is not a mail address; write one like app@contoso.com", address)
		return false
	}
	return true
}

// covered reports whether address is one of patterns, or in one's domain.
func covered(address string, patterns []string) bool {
	domain := address[strings.LastIndexByte(address, '@'):]
	return slices.ContainsFunc(patterns, func(p string) bool {
		return strings.EqualFold(p, address) || strings.EqualFold(p, "*"+domain)
	})
}

func (r *report) checkQueue(c *Config) {
	q := &c.Queue
	if q.MaxBytes < c.Limits.MessageBytes {
		r.errorf("queue.max_bytes", "%v is less than one message may have, %v; write more", q.MaxBytes, c.Limits.MessageBytes)
	}
	switch {
	case len(q.Retry) == 0:
		r.errorf("queue.retry", "is empty, so nothing would be tried again; write it like [1m, 5m, 1h]")
	case q.Retry[0] >= q.Lifetime:
		r.errorf("queue.retry", "its first wait, %v, is not shorter than queue.lifetime, %v, so nothing would be tried again; "+
			"write a shorter one", q.Retry[0], q.Lifetime)
	}
	if q.DelayWarning >= q.Lifetime {
		r.warnf("queue.delay_warning", "%v is not shorter than queue.lifetime, %v, so no warning will be sent; "+
			"write less, or 0", q.DelayWarning, q.Lifetime)
	}
}

func (r *report) checkTenant(c *Config, i int, now time.Time) {
	t, key := &c.Tenants[i], item("tenants", i)
	before := slices.IndexFunc(c.Tenants, func(other Tenant) bool { return other.Name == t.Name })
	switch {
	case t.Name == "":
		r.errorf(key+".name", "is missing; write a short name for senders to refer to")
	case !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`).MatchString(t.Name):
		r.errorf(key+".name", "%q is not a name; write up to 63 letters, digits, dots, dashes or underscores", t.Name)
	case before < i:
		r.errorf(key+".name", "%q is the name of tenants[%d], too; give each tenant its own", t.Name, before)
	case !slices.ContainsFunc(c.Senders, func(s Sender) bool { return s.Tenant == t.Name }):
		r.warnf(key+".name", "no sender uses tenant %q; add one to senders", t.Name)
	}
	switch {
	case t.TenantID == "":
		r.errorf(key+".tenant_id", "is missing; copy the Directory (tenant) ID of the app registration")
	case slices.Contains([]string{"common", "organizations", "consumers"}, t.TenantID):
		r.errorf(key+".tenant_id", "%q gives an app no token; copy the Directory (tenant) ID of the app registration",
			t.TenantID)
	case !isGUID(t.TenantID) && (!isDomain(t.TenantID) || !strings.Contains(t.TenantID, ".")):
		r.errorf(key+".tenant_id", "%q is neither a GUID nor a domain; copy the Directory (tenant) ID", t.TenantID)
	}
	if t.ClientID == "" {
		r.errorf(key+".client_id", "is missing; copy the Application (client) ID of the app registration")
	} else if !isGUID(t.ClientID) {
		r.errorf(key+".client_id", "%q is not a GUID; copy the Application (client) ID of the app registration", t.ClientID)
	}
	r.checkCredential(key, t)
	r.checkEndpoints(key, t)
	if expires := time.Time(t.CredentialExpires); !expires.IsZero() && now.After(expires) {
		r.warnf(key+".credential_expires", "%v has passed; make a new client secret", t.CredentialExpires)
	} else if !expires.IsZero() && now.Add(30*day).After(expires) {
		r.warnf(key+".credential_expires", "%v is less than 30 days away; make a new client secret", t.CredentialExpires)
	}
}

// checkCredential reports a tenant without exactly one credential; a delegated one may have none.
func (r *report) checkCredential(key string, t *Tenant) {
	var given []string
	for _, one := range []struct {
		name string
		set  bool
	}{
		{"client_secret", !t.ClientSecret.IsZero()}, {"certificate", t.Certificate != (Certificate{})},
		{"federated_token_file", t.FederatedTokenFile != ""}, {"managed_identity", t.ManagedIdentity != ""},
	} {
		if one.set {
			given = append(given, one.name)
		}
	}
	switch {
	case len(given) == 0 && t.Grant != "delegated":
		r.errorf(key+".client_secret", "is missing; write a reference like file:/run/secrets/name or env:NAME, "+
			"or certificate, federated_token_file or managed_identity in its place")
	case len(given) > 1:
		r.errorf(key+"."+given[1], "is one credential too many, beside %s; take one away", given[0])
	}
	if t.ClientSecret.Plain() {
		r.warnf(key+".client_secret", "the secret itself stands in the file; move it and refer to it with file:, env: or cred:")
	}
	r.checkCertificate(key+".certificate", &t.Certificate)
	switch id := t.ManagedIdentity; {
	case id == "":
	case t.Grant == "delegated":
		r.errorf(key+".managed_identity", "cannot sign people in; take it away, or write grant: client_credentials")
	case id != "system" && !isGUID(id):
		r.errorf(key+".managed_identity", "%q is neither system nor a GUID; write the client ID of the user-assigned identity", id)
	}
	if t.Proxy != "" {
		if u, err := url.Parse(t.Proxy); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" {
			r.errorf(key+".proxy", "is not the address of a proxy; write one like http://proxy.contoso.com:3128")
		} else if u.User != nil {
			r.errorf(key+".proxy", "names a user, and would be shown; use a proxy that lets this machine through")
		}
	}
}

// checkCertificate reports a certificate without its key, and the reverse.
func (r *report) checkCertificate(key string, c *Certificate) {
	switch {
	case c.CertFile == "" && c.KeyFile != "":
		r.errorf(key+".cert_file", "is missing, and key_file needs it; name a PEM file")
	case c.CertFile != "" && c.KeyFile == "":
		r.errorf(key+".key_file", "is missing, and cert_file needs it; name a PEM file")
	}
}

func (r *report) checkEndpoints(key string, t *Tenant) {
	u, err := url.Parse(t.Authority)
	if err != nil || u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())) || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		r.errorf(key+".authority", "is not a base URL with https; write one like https://login.microsoftonline.com")
	}
	switch app := t.Grant != "delegated"; {
	case !app && !strings.Contains(t.Scope, "/SMTP.Send"):
		r.errorf(key+".scope", "%q does not hold SMTP.Send, which a mailbox's owner grants; "+
			"write one like https://outlook.office.com/SMTP.Send offline_access", t.Scope)
	case app && (!strings.HasSuffix(t.Scope, "/.default") || strings.ContainsAny(t.Scope, " \t")):
		r.errorf(key+".scope", "%q does not end in /.default, which an app's own token needs; "+
			"write one like https://outlook.office365.com/.default", t.Scope)
	}
	r.checkServer(key+".smtp_server", t.SMTPServer)
}

// checkServer reports an address nothing can be dialled at.
func (r *report) checkServer(key, address string) {
	host, port, err := net.SplitHostPort(address)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || n == 0 || host == "" || strings.ContainsAny(host, " /@%") {
		r.errorf(key, "%q is not a server; write host:port, like smtp.office365.com:587", address)
	}
}

func isGUID(s string) bool {
	return regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`).MatchString(s)
}

func (r *report) checkSenders(c *Config) {
	if len(c.Senders) == 0 {
		r.warnf("senders", "is missing, so all mail will be refused; write senders: [{match: \"*@contoso.com\", tenant: …}]")
	}
	first := map[string]string{}
	for i := range c.Senders {
		s, key := &c.Senders[i], item("senders", i)
		name := r.checkSender(c, i)
		if who := strings.ToLower(s.Address + s.Match); who != "" && first[who] != "" {
			r.errorf(name, "%q is given in %s, too; take one away", s.Address+s.Match, first[who])
		} else {
			first[who] = key
		}
	}
}

// checkSender reports what is wrong with one sender, and returns the key of what it matches.
func (r *report) checkSender(c *Config, i int) (name string) {
	s, key := &c.Senders[i], item("senders", i)
	name = key + ".address"
	switch {
	case !r.given(key+".address") && !r.given(key+".match"):
		r.errorf(key, "has neither address nor match; write one")
	case r.given(key+".address") && r.given(key+".match"):
		r.errorf(key, "has both address and match; write one")
	case r.given(name):
		r.checkMailbox(name, s.Address)
	case !isPattern(s.Match):
		name = key + ".match"
		r.errorf(name, `%q is not *@domain; write it like "*@contoso.com", or address: for one mailbox`, s.Match)
	default:
		name = key + ".match"
	}
	r.checkSenderTenant(c, key, s.Tenant)
	if s.Login != "" {
		r.checkMailbox(key+".login", s.Login)
	}
	r.checkPace(key, s)
	r.checkFallback(c, key, s)
	return name
}

func (r *report) checkFallback(c *Config, key string, s *Sender) {
	key += ".fallback"
	switch {
	case s.Fallback == "" || !r.checkMailbox(key, s.Fallback):
	case strings.EqualFold(s.Fallback, s.Address):
		r.errorf(key, "is the sender itself; name another sender, or take it away")
	case !covered(s.Fallback, c.patterns()):
		r.errorf(key, "%q is covered by no entry of senders; add it there", s.Fallback)
	}
}

// patterns returns what the entries of senders cover.
func (c *Config) patterns() []string {
	var patterns []string
	for _, s := range c.Senders {
		patterns = append(patterns, s.Address, s.Match)
	}
	return patterns
}

func (r *report) checkSenderTenant(c *Config, key, tenant string) {
	var names []string
	for _, t := range c.Tenants {
		names = append(names, t.Name)
	}
	switch {
	case tenant == "":
		r.errorf(key+".tenant", "is missing; write the name of one of tenants")
	case slices.Contains(names, tenant):
	case nearest(tenant, names) != "":
		r.errorf(key+".tenant", "no tenant is called %q; did you mean %s?", tenant, nearest(tenant, names))
	default:
		r.errorf(key+".tenant", "no tenant is called %q; add it to tenants", tenant)
	}
}

func (r *report) checkPace(key string, s *Sender) {
	for _, pace := range [...]struct {
		name        string
		value, most int
	}{
		{".connections", s.Connections, exchangeConnections},
		{".messages_per_minute", s.MessagesPerMinute, exchangePerMinute},
		{".recipients_per_day", s.RecipientsPerDay, exchangePerDay},
		{".recipients_per_message", s.RecipientsPerMessage, exchangePerMessage},
		{".recipients_per_domain", s.RecipientsPerDomain, exchangePerDomain},
	} {
		if pace.value > pace.most {
			r.warnf(key+pace.name, "%d is more than Exchange Online allows a mailbox, %d; write less", pace.value, pace.most)
		}
	}
}

func (r *report) checkUnknownSender(c *Config) {
	to := c.UnknownSender.RewriteTo
	const key = "unknown_sender.rewrite_to"
	if to == "" {
		if r.given("unknown_sender.reply_to_original") {
			r.errorf("unknown_sender.rewrite_to", "is missing; write the sender to put in place, or unknown_sender: reject")
		}
		return
	}
	if r.checkMailbox(key, to) && !covered(to, c.patterns()) {
		r.errorf(key, "%q is covered by no entry of senders; add it there", to)
	}
}

func (r *report) checkBounces(c *Config) {
	b := &c.Bounces
	if slices.Contains(b.Mode, "off") && len(b.Mode) > 1 {
		r.errorf("bounces.mode", "is off and more than that; write off alone, or take it away")
	}
	for i, to := range b.Notify {
		r.checkMailbox(item("bounces.notify", i), to)
	}
	switch {
	case b.From == "" && len(b.Notify) > 0:
		r.errorf("bounces.from", "is missing, and notices need it; name the sender they go by, one of senders")
	case b.From != "" && r.checkMailbox("bounces.from", b.From) && !covered(b.From, c.patterns()):
		r.errorf("bounces.from", "%q is covered by no entry of senders; add it there", b.From)
	}
}

func (r *report) checkReplies(c *Config) {
	first := map[string]string{}
	for i := range c.Replies {
		row, key := &c.Replies[i], item("replies", i)
		switch {
		case !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`).MatchString(row.Name):
			r.errorf(key+".name", "%q is not a name; write up to 63 small letters, digits and dashes", row.Name)
		case first[row.Name] != "":
			r.errorf(key+".name", "%q is the name of %s, too; give each row its own", row.Name, first[row.Name])
		}
		first[row.Name] = key
		if row.Action == "" {
			r.errorf(key+".action", "is missing; write what to do, like retry or park sender")
		}
		if row.Action == "retry once" && row.Wait == 0 {
			r.errorf(key+".wait", "is missing, and retry once needs it; write one like 15m")
		}
		if row.Code != "" && !regexp.MustCompile(`^[45][0-9]{0,2}$`).MatchString(row.Code) {
			r.errorf(key+".code", "%q is not a reply code; write one like 550, or the digits it begins with", row.Code)
		}
		if row.Enhanced != "" && !regexp.MustCompile(`^[45]\.[0-9]{1,3}\.[0-9]{1,3}(-[0-9]{1,3})?(, *[45]\.[0-9]{1,3}\.[0-9]{1,3}(-[0-9]{1,3})?)*$`).MatchString(row.Enhanced) {
			r.errorf(key+".enhanced", "%q is not an enhanced status code; write one like 5.7.60 or 4.7.500-699", row.Enhanced)
		}
		token := row.Error != "" || len(row.AADSTS) > 0
		smtp := row.Code != "" || row.Enhanced != "" || row.Text != ""
		switch {
		case row.Stage == "token" && smtp:
			r.errorf(key+".stage", "is token, where there is no SMTP reply; write error or aadsts, or another stage")
		case row.Stage == "token" && row.Fresh:
			r.errorf(key+".fresh_token", "means nothing at stage token, where the token is asked for; take it away")
		case row.Stage != "token" && token:
			r.errorf(key+".stage", "error and aadsts are Entra ID's; write stage: token")
		}
	}
}

func (r *report) checkHTTP(c *Config) {
	r.checkAddress("admin.address", c.Admin.Address)
	r.checkAdmin(&c.Admin)
	r.checkVault(&c.Vault)
	if c.Metrics.Address != "" {
		r.checkAddress("metrics.address", c.Metrics.Address)
	}
}

func (r *report) checkAdmin(a *Admin) {
	login := len(a.Tokens) > 0 || a.OIDC.Issuer != ""
	if _, _, err := net.SplitHostPort(a.Address); err == nil && !a.Loopback() {
		switch {
		case !login:
			r.errorf("admin.address", "%q can be reached from other machines, and nobody would have to log in; "+
				"add tokens or oidc, or write 127.0.0.1 and a port, and metrics.address for probes and Prometheus", a.Address)
		case a.TLS == (AdminTLS{}) && !strings.HasPrefix(a.PublicURL, "https://"):
			r.warnf("admin.address", "can be reached from other machines without TLS; add tls, or put a proxy with TLS before it and name it in public_url")
		}
	}
	r.checkCertificate("admin.tls", (*Certificate)(&a.TLS))
	if a.PublicURL != "" {
		u, err := url.Parse(a.PublicURL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" {
			r.errorf("admin.public_url", "is not the address of a site; write one like https://relay.contoso.com, without a path")
		} else if u.Scheme == "http" && !isLoopback(u.Hostname()) {
			r.errorf("admin.public_url", "is not https, and passwords and codes travel there; write https, or http://localhost, which alone Entra ID takes without")
		}
	}
	first := map[string]string{}
	for i := range a.Tokens {
		t, key := &a.Tokens[i], item("admin.tokens", i)
		switch {
		case t.Name == "":
			r.errorf(key+".name", "is missing; write what it is for, as audit log and history show it")
		case first[t.Name] != "":
			r.errorf(key+".name", "%q is the name of %s, too; give each token its own", t.Name, first[t.Name])
		}
		first[t.Name] = key
		if !regexp.MustCompile(`^sha256:[0-9a-f]{64}$`).MatchString(t.Hash) {
			r.errorf(key+".hash", "is not the hash of a token; `relayd token` makes one of each")
		}
		if (t.Role == "") == (len(t.Scopes) == 0) {
			r.errorf(key+".role", "or scopes must say what the token may, one of the two; write role: viewer, or scopes: [read]")
		}
	}
	r.checkOIDC(&a.OIDC)
}

// isLoopback reports whether what is sent to host stays on this machine.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (r *report) checkOIDC(o *OIDC) {
	if o.Issuer == "" {
		if o.ClientID != "" || len(o.Allowed) > 0 || !o.ClientSecret.IsZero() {
			r.errorf("admin.oidc.issuer", "is missing; write the provider's URL, like https://login.microsoftonline.com/TENANT/v2.0")
		}
		return
	}
	if u, err := url.Parse(o.Issuer); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		r.errorf("admin.oidc.issuer", "is not a URL with https; write the provider's, as it stands in its tokens")
	}
	if o.ClientID == "" {
		r.errorf("admin.oidc.client_id", "is missing; write the one the provider gave relayd")
	}
	if o.ClientSecret.Plain() {
		r.warnf("admin.oidc.client_secret", "the secret itself stands in the file; move it and refer to it with file:, env: or cred:")
	}
	if len(o.Allowed) == 0 {
		r.errorf("admin.oidc.allowed", "is missing, so nobody could log in; write [{user: ops@contoso.com, role: admin}]")
	}
	for i := range o.Allowed {
		one, key := &o.Allowed[i], item("admin.oidc.allowed", i)
		if (one.User == "") == (one.Group == "") {
			r.errorf(key, "names not exactly one user or group; write user, or group")
		}
		if one.Role == "" {
			r.errorf(key+".role", "is missing; write viewer, operator or admin")
		}
	}
}

func (r *report) checkVault(v *Vault) {
	if v.Key.Plain() {
		r.warnf("vault.key", "the key itself stands in the file; move it and refer to it with file:, env: or cred:")
	}
	for i, key := range v.PreviousKeys {
		if key.Plain() {
			r.warnf(item("vault.previous_keys", i), "the key itself stands in the file; move it and refer to it with file:, env: or cred:")
		}
	}
}

// checkSockets reports addresses that could not all be listened on. Port 0 is any free one.
func (r *report) checkSockets(c *Config) {
	type socket struct{ key, host, port string }
	var taken []socket
	claim := func(key, address string) {
		host, port, err := net.SplitHostPort(address)
		if n, numberErr := strconv.ParseUint(port, 10, 16); err != nil || numberErr != nil || n == 0 {
			return
		}
		if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
			host = ""
		}
		for _, t := range taken {
			if t.port == port && (t.host == host || t.host == "" || host == "") {
				r.errorf(key, "%q is taken by %s; write another port", address, t.key)
				return
			}
		}
		taken = append(taken, socket{key, host, port})
	}
	for i, l := range c.Listeners {
		claim(item("listeners", i)+".address", l.Address)
	}
	claim("admin.address", c.Admin.Address)
	claim("metrics.address", c.Metrics.Address)
}

// checkFiles reads every file the configuration refers to.
func (r *report) checkFiles(c *Config, now time.Time) {
	for i := range c.Listeners {
		if l := &c.Listeners[i]; l.TLS != "none" && l.CertFile != "" && l.KeyFile != "" {
			r.checkKeyPair(item("listeners", i), l.CertFile, l.KeyFile, now)
		}
	}
	for i := range c.Tenants {
		t, key := &c.Tenants[i], item("tenants", i)
		if _, err := t.RootCAs(); err != nil {
			r.errorf(key+".ca_file", "%q %v; name a readable file with the PEM certificate of the CA", t.CAFile, err)
		}
		r.checkTenantFiles(key, t, now)
	}
	if tls := &c.Admin.TLS; tls.CertFile != "" && tls.KeyFile != "" {
		r.checkKeyPair("admin.tls", tls.CertFile, tls.KeyFile, now)
	}
	if _, err := c.Admin.OIDC.RootCAs(); err != nil {
		r.errorf("admin.oidc.ca_file", "%q %v; name a readable file with the PEM certificate of the CA", c.Admin.OIDC.CAFile, err)
	}
	r.checkSecret("admin.oidc.client_secret", c.Admin.OIDC.ClientSecret)
	r.checkSecret("vault.key", c.Vault.Key)
	for i, key := range c.Vault.PreviousKeys {
		r.checkSecret(item("vault.previous_keys", i), key)
	}
}

// checkTenantFiles reads what the tenant's credential is in.
func (r *report) checkTenantFiles(key string, t *Tenant, now time.Time) {
	r.checkSecret(key+".client_secret", t.ClientSecret)
	if c := &t.Certificate; c.CertFile != "" && c.KeyFile != "" {
		r.checkKeyPair(key+".certificate", c.CertFile, c.KeyFile, now)
	}
	if t.FederatedTokenFile != "" {
		if _, err := readSecret(t.FederatedTokenFile); err != nil {
			r.errorf(key+".federated_token_file", "%q %v; name the file the token is mounted at", t.FederatedTokenFile, err)
		}
	}
}

// checkSecret reports one that cannot be read, where one is set.
func (r *report) checkSecret(key string, s Secret) {
	if s.IsZero() {
		return
	}
	if _, err := s.Resolve(); err != nil {
		r.errorf(key, "%v; put the secret there, or refer to another place", err)
	}
}

func (r *report) checkKeyPair(key, certFile, keyFile string, now time.Time) {
	readable := true
	for name, file := range map[string]string{".cert_file": certFile, ".key_file": keyFile} {
		data, err := readRegular(file, maxPEMBytes)
		if err == nil {
			if block, _ := pem.Decode(data); block == nil {
				err = errors.New("holds no PEM block")
			}
		}
		if err != nil {
			readable = false
			r.errorf(key+name, "%q %v; name a readable PEM file", file, err)
		}
	}
	if !readable {
		return
	}
	pair, err := (&Certificate{certFile, keyFile}).Load()
	if err != nil {
		r.errorf(key+".cert_file", "%q and %q do not make a key pair: %v; name a certificate and its own key", certFile,
			keyFile, err)
		return
	}
	if now.After(pair.Leaf.NotAfter) {
		r.warnf(key+".cert_file", "the certificate expired on %s; renew it", pair.Leaf.NotAfter.Format(time.DateOnly))
	}
}
