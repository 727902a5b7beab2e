package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"relayd/pkg/config"
	"relayd/pkg/sandbox"
)

// sandboxFlags are the flags of relayd sandbox as they are given. For limits 0 is none, unlike in sandbox.Limits.
type sandboxFlags struct {
	caFile       string
	tenantID     string
	clientID     string
	clientSecret string
	mailboxes    []string
	sendAs       []string
	fullAccess   []string
	redirectURIs []string
	users        []string
	certificates []string
	public       bool
	adminConsent bool
	noRoles      bool
	identity     string
	faults       []string
	listFaults   bool
	keepBodies   bool
	verbose      bool
	opts         sandbox.Options
}

func newSandboxCommand() *cobra.Command {
	var f sandboxFlags
	cmd := &cobra.Command{
		Use:   "sandbox --smtp ADDR --http ADDR --ca FILE",
		Short: "Run a simulated Exchange Online and Entra ID for your own tests",
		Long: `Simulate Exchange Online's SMTP submission and Entra ID, strict and with the published limits and replies, until
Ctrl-C. It sends nothing to anyone. On start it prints a configuration to paste into relayd.

Entra ID is simulated with all of its sign-ins: authorization code with PKCE on pages like Microsoft's, device code (page
/devicelogin), administrator's consent, refresh tokens, client credentials with secret, certificate or federated token,
and the metadata service of managed identities (/metadata/identity/oauth2/token). Every address that fits a --mailbox
signs in with any password, admin@ as an administrator, unless --user names those who may:

  --user ann@contoso.com                 a user; from then on only those named are
  --user boss@contoso.com,admin          who may consent for everyone
  --user key@contoso.com,password=SECRET with a password of its own
  --user gone@contoso.com,state=disabled who may not: disabled, unknown, blocked (Conditional Access), mfa, foreign
                                         (another tenant's), or the number of an AADSTS error

The --http port speaks HTTP and HTTPS and has, besides Entra ID, a control API (JSON):

  GET    /sandbox/messages              delivered mail; ?relayd_id= ?message_id= ?login= ?sender= ?recipient= ?after=SEQ
                                        ?limit=N select, ?wait=N&timeout=30s waits for N messages
  GET    /sandbox/messages/SEQ/raw      one message byte for byte (without /raw: what is known of it)
  DELETE /sandbox/messages              forget them
  GET    /sandbox/stats                 counts, duplicates, each mailbox's most connections and messages a minute
  DELETE /sandbox/stats                 start counting anew, limits included
  POST   /sandbox/faults                a fault rule, such as {"preset":"dot-quota","mailbox":"a@b","count":3}
  GET    /sandbox/faults                rules in force; DELETE ends all, DELETE /sandbox/faults/ID one
  GET    /sandbox/presets               the ready-made faults with what they do
  GET    /sandbox/tenants               the directory, secrets included
  POST   /sandbox/tenants               add {"id","apps":[{"id","secret","redirect_uris":[],"certificates":[PEM],"public",
                                        "federated":[{"issuer","subject","key"}],"managed_identity","no_roles"}],
                                        "mailboxes":[],"send_as":[{"login","as"}],"full_access":[],"users":[],
                                        "consents":[],"admin_consent_required"}

These take {"tenant","app"} besides, the first ones if they are left out; GET and DELETE as a query as well:

  POST   /sandbox/users                 {"mail","name","password","admin","state"}: add or replace; a new password revokes
  GET    /sandbox/users                 DELETE removes {"mail"}
  POST   /sandbox/grants                {"login","as","right"}: send-as (as when left out) or full-access
  GET    /sandbox/grants                DELETE removes one
  POST   /sandbox/consents              {"user","scopes":[]}: no user is everyone, no scope is SMTP.Send
  GET    /sandbox/consents              DELETE withdraws that of {"user"}
  POST   /sandbox/admin-consent-required {"required":true}
  POST   /sandbox/redirect-uris         {"uri"}; GET lists, DELETE removes
  POST   /sandbox/secrets               {"secret","expires"}: replace the app's, by a random one if none is given; answers
                                        with it
  POST   /sandbox/revoke                make every access token issued so far worthless; with {"user"} that user's refresh
                                        tokens and sign-ins instead, with "access":true its access tokens, too
  GET    /sandbox/ca                    the CA certificate`,
		Example: `  relayd sandbox --smtp 127.0.0.1:2587 --http 127.0.0.1:8443 --ca /tmp/sandbox-ca.pem
  relayd sandbox --fault rcpt-not-found,recipient=gone@example.com --fault 'dot-drop-delivered,probability=0.01'
  relayd sandbox --fault '{"stage":"mail","reply":"451 4.3.0 later","delay":"2s","mailbox":"*@contoso.com"}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.listFaults {
				return listFaults(cmd)
			}
			return f.run(cmd)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *sandboxFlags) register(cmd *cobra.Command) {
	fs, o := cmd.Flags(), &f.opts
	fs.StringVar(&o.SMTPAddr, "smtp", "127.0.0.1:2587", "listen for SMTP submission on `ADDR`")
	fs.StringVar(&o.HTTPAddr, "http", "127.0.0.1:8443", "listen for Entra ID and the control API on `ADDR` (HTTP and HTTPS)")
	fs.StringVar(&f.caFile, "ca", "relayd-sandbox-ca.pem", "write the CA certificate, new at each start, to `FILE`")
	fs.StringSliceVar(&o.Names, "name", nil, "host `NAME` or IP address in the certificate besides localhost (repeatable)")
	fs.StringVar(&f.tenantID, "tenant-id", sandbox.DefaultTenantID, "tenant `ID`")
	fs.StringVar(&f.clientID, "client-id", sandbox.DefaultClientID, "client `ID` of the app")
	fs.StringVar(&f.clientSecret, "client-secret", "", "client `SECRET` of the app (default random, printed)")
	fs.StringSliceVar(&f.mailboxes, "mailbox", nil, "`ADDRESS` or *@domain that exists (repeatable; default every address)")
	fs.StringSliceVar(&f.sendAs, "send-as", nil, "grant `LOGIN=ADDRESS`: that login may send as that address (repeatable)")
	fs.StringSliceVar(&f.fullAccess, "full-access", nil, "grant `USER=MAILBOX`: that user may open that mailbox (repeatable)")
	fs.StringArrayVar(&f.users, "user", nil, "`ADDRESS` who signs in, with ,admin ,name=N ,password=P ,state=S (repeatable)")
	fs.StringSliceVar(&f.redirectURIs, "redirect-uri", []string{"*"}, "redirect `URI` registered for the app; * is any on loopback (repeatable)")
	fs.StringArrayVar(&f.certificates, "certificate", nil, "PEM `FILE` of a certificate the app may prove itself with (repeatable)")
	fs.BoolVar(&f.public, "public-client", false, "let the app ask for users' tokens without a secret")
	fs.StringVar(&f.identity, "managed-identity", "", "serve the app's tokens as a managed identity of `KIND` system or user")
	fs.BoolVar(&f.noRoles, "no-roles", false, "withhold SMTP.SendAsApp from the app until an administrator consents")
	fs.BoolVar(&f.adminConsent, "admin-consent-required", false, "let only administrators consent")
	fs.BoolVar(&o.StrictRotation, "strict-rotation", false, "revoke a sign-in when a replaced refresh token is used again")
	fs.DurationVar(&o.RefreshTokenLifetime, "refresh-token-lifetime", 90*24*time.Hour, "`LIFE` of a refresh token that is not used")
	fs.DurationVar(&o.DeviceInterval, "device-interval", 5*time.Second, "`PAUSE` between two polls for a device code, whole seconds")
	fs.DurationVar(&o.TokenLifetimeMin, "token-lifetime-min", 60*time.Minute, "shortest `LIFE` of an access token")
	fs.DurationVar(&o.TokenLifetimeMax, "token-lifetime-max", 90*time.Minute, "longest `LIFE` of an access token")
	fs.BoolVar(&o.RefuseInitialResponse, "refuse-initial-response", false, "refuse AUTH XOAUTH2 with an initial response")

	l := &o.Limits
	fs.IntVar(&l.Sending, "connections", 3, "connections of a mailbox that may be sending at once; 0 is no limit")
	fs.IntVar(&l.MessagesPerMin, "messages-per-minute", 30, "messages of a mailbox in any minute; 0 is no limit")
	fs.BoolVar(&l.RejectOverRate, "reject-over-rate", false, "refuse messages over the rate instead of delaying their reply")
	fs.IntVar(&l.RecipientsPerDay, "recipients-per-day", 10_000, "recipients of a mailbox in 24 hours; 0 is no limit")
	fs.IntVar(&l.Recipients, "recipients", 500, "recipients of a message; 0 is no limit")
	fs.IntVar(&l.SameDomain, "recipients-same-domain", 200, "recipients of a message in one domain; 0 is no limit")
	fs.Int64Var(&l.MessageBytes, "message-bytes", 150<<20, "advertised message size in `BYTES`; 0 is no limit")
	fs.Int64Var(&l.MaxSendSize, "max-send-size", 35<<20, "the mailbox's own limit, told after the body, in `BYTES`; 0 is no limit")
	fs.IntVar(&l.HeaderBytes, "header-bytes", 256<<10, "size of a whole header in `BYTES`; 0 is no limit")
	fs.IntVar(&l.HeaderValueBytes, "header-value-bytes", 32<<10, "size of one header field in `BYTES`; 0 is no limit")
	fs.DurationVar(&l.SessionAge, "session-age", 20*time.Minute, "longest `LIFE` of a connection; 0 is no limit")
	fs.DurationVar(&l.Idle, "idle", 5*time.Minute, "longest silence of a client; 0 is no limit")
	fs.BoolVar(&l.RejectBareLF, "reject-bare-lf", false, "refuse a bare LF in a body (Exchange takes it)")

	fs.StringArrayVar(&f.faults, "fault", nil, "`RULE` in force from the start: a preset with ,field=value, or JSON (repeatable)")
	fs.BoolVar(&f.listFaults, "list-faults", false, "list the presets for --fault and end")
	fs.BoolVar(&f.keepBodies, "keep-bodies", true, "keep delivered bodies; false keeps size, hash and id only, for benchmarks")
	fs.Int64Var(&o.MaxBodyBytes, "max-body-bytes", 512<<20, "bodies kept, in `BYTES`; the oldest are dropped first")
	fs.IntVar(&o.MaxMessages, "max-messages", 1_000_000, "message records kept; the oldest are dropped first")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "log every message, token and failed authentication to stderr")
}

// options turns the flags into what sandbox.New takes.
func (f *sandboxFlags) options() (sandbox.Options, error) {
	o := f.opts
	l := &o.Limits
	for _, n := range []*int{
		&l.Sending, &l.MessagesPerMin, &l.RecipientsPerDay, &l.Recipients, &l.SameDomain, &l.HeaderBytes, &l.HeaderValueBytes,
	} {
		*n = orNone(*n)
	}
	l.MessageBytes, l.MaxSendSize = orNone(l.MessageBytes), orNone(l.MaxSendSize)
	l.SessionAge, l.Idle = orNone(l.SessionAge), orNone(l.Idle)
	o.DropBodies = !f.keepBodies
	for _, text := range f.faults {
		rule, err := sandbox.ParseRule(text)
		if err != nil {
			return o, usagef("--fault: %w; relayd sandbox --list-faults lists the presets", err)
		}
		o.Faults = append(o.Faults, rule)
	}
	tenant, err := f.tenant()
	if err != nil {
		return o, err
	}
	o.Tenants = []sandbox.Tenant{tenant}
	return o, nil
}

// tenant is the directory the flags describe.
func (f *sandboxFlags) tenant() (sandbox.Tenant, error) {
	app := sandbox.App{
		ID: f.clientID, Secret: f.clientSecret, RedirectURIs: f.redirectURIs, Public: f.public, NoRoles: f.noRoles,
		ManagedIdentity: f.identity,
	}
	if app.Secret == "" {
		app.Secret = sandbox.NewSecret()
	}
	for _, file := range f.certificates {
		data, err := os.ReadFile(file)
		if err != nil {
			return sandbox.Tenant{}, usagef("--certificate: %w", err)
		}
		app.Certificates = append(app.Certificates, string(data))
	}
	t := sandbox.Tenant{
		ID: f.tenantID, Mailboxes: f.mailboxes, Apps: []sandbox.App{app}, AdminConsentRequired: f.adminConsent,
	}
	var err error
	if t.SendAs, err = readGrants("send-as", "LOGIN=ADDRESS", f.sendAs); err != nil {
		return t, err
	}
	if t.FullAccess, err = readGrants("full-access", "USER=MAILBOX", f.fullAccess); err != nil {
		return t, err
	}
	for _, text := range f.users {
		u, err := readUser(text)
		if err != nil {
			return t, err
		}
		t.Users = append(t.Users, u)
	}
	return t, nil
}

func readGrants(flag, form string, texts []string) ([]sandbox.Grant, error) {
	var grants []sandbox.Grant
	for _, text := range texts {
		login, as, ok := strings.Cut(text, "=")
		if !ok || login == "" || as == "" {
			return nil, usagef("--%s %q is not %s", flag, text, form)
		}
		grants = append(grants, sandbox.Grant{Login: login, As: as})
	}
	return grants, nil
}

// readUser reads a user as a flag gives it: an address, then what is special about it.
func readUser(text string) (sandbox.User, error) {
	fields := strings.Split(text, ",")
	u := sandbox.User{Mail: fields[0]}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "admin":
			u.Admin = true
		case "name":
			u.Name = value
		case "password":
			u.Password = value
		case "state":
			u.State = value
		default:
			return u, usagef("--user %q: %q is not admin, name, password or state", u.Mail, key)
		}
	}
	return u, nil
}

// orNone maps a flag's "0 is no limit" to the package's negative number.
func orNone[T int | int64 | time.Duration](v T) T {
	if v <= 0 {
		return -1
	}
	return v
}

func (f *sandboxFlags) run(cmd *cobra.Command) error {
	opts, err := f.options()
	if err != nil {
		return err
	}
	if f.verbose {
		if opts.Logger, _, err = newLogger(&config.Log{Level: "info"}); err != nil {
			return err
		}
		defer func() { _ = opts.Logger.Sync() }() // stderr cannot always be synced
	} else {
		opts.Logger = zap.NewNop()
	}
	box, err := sandbox.New(opts)
	if err != nil {
		return fmt.Errorf("start the sandbox: %w%s", err, socketHint(err))
	}
	ca, err := filepath.Abs(f.caFile)
	if err == nil {
		err = os.WriteFile(ca, box.CAPEM(), 0o644)
	}
	if err != nil {
		box.Close()
		return fmt.Errorf("write the CA certificate: %w; --ca names another file", err)
	}
	fmt.Fprint(cmd.OutOrStdout(), f.snippet(box, ca))
	return box.Run(cmd.Context())
}

// snippet is what a user needs to know, as a configuration that works when it is pasted.
func (f *sandboxFlags) snippet(box *sandbox.Sandbox, ca string) string {
	tenant := box.Tenants()[0]
	senders := f.mailboxes
	if len(senders) == 0 {
		senders = []string{"*@example.com"}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Simulated Exchange Online and Entra ID. What arrives: http://%s/sandbox/messages
hostname: relay.example.com
listeners: [{address: "127.0.0.1:2525"}]
tenants:
  - name: sandbox
    tenant_id: %q
    client_id: %q
    client_secret: %q
    grant: client_credentials
    authority: %q
    smtp_server: %q
    ca_file: %q
senders:
`, box.HTTPAddr(), tenant.ID, tenant.Apps[0].ID, tenant.Apps[0].Secret, box.Authority(), box.SMTPAddr(), ca)
	for _, s := range senders {
		key := "address"
		if strings.HasPrefix(s, "*") {
			key = "match"
		}
		fmt.Fprintf(&b, "  - {%s: %q, tenant: sandbox}\n", key, s)
	}
	return b.String()
}

func listFaults(cmd *cobra.Command) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	for _, p := range sandbox.Presets() {
		what := p.Reply
		if what == "" {
			what = "see GET /sandbox/presets"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, p.Stage, what)
	}
	return w.Flush()
}
