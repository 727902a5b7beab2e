package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/console"
	"relayd/pkg/config"
	"relayd/pkg/entra"
	"relayd/pkg/envelope"
	"relayd/pkg/exchange/doctor"
	"relayd/pkg/exchange/doctor/diagnosis"
)

// doctorFlags are the flags of relayd doctor as they are given.
type doctorFlags struct {
	api     apiFlags // with the configuration file
	to      string
	all     bool
	json    bool
	timeout time.Duration
}

func newDoctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor [SENDER] --config FILE|--api URL",
		Short: "Find out why a sender's mail does not reach Exchange Online",
		Long: `Walk the way of a message to Exchange Online, one line a step, without a message and without a running relay. The
first step that fails comes with its cause and what to change; those behind it are skipped.

What was entered on the page, and what mailboxes' owners have granted (grant: delegated), is in the vault of the running
relay, which alone can open it. So it is asked to examine a delegated sender, or a SENDER the file has no entry for, and
with --api all of them: then no --config is needed, and --all takes in what was entered on the page. It must let you:
API token of scope operate, or its own user or root on its machine.

  config      what the configuration makes of the sender, and what config check warns of
  hostname    the name for EHLO, which Exchange Online wants fully qualified
  credential  how long the client secret lasts, by credential_expires
  clock       this machine's clock against Entra ID's
  dns, tcp    the name of the server, and a connection to it
  starttls    TLS version, certificate, its name and chain
  token       grant, expiry, audience, tenant, app, roles or permissions
  auth        AUTH XOAUTH2 as the sender's login
  mail, rcpt  MAIL FROM and RCPT TO, the sender itself unless --to says otherwise
  rset        and no DATA: nothing is sent. relayd send sends a real message.

SENDER is an address that an entry of senders covers; it may be left out where there is only one. --all examines every
mailbox once; a *@domain without login names none and is listed as skipped.

--json writes one object: result (ok, warn or fail), examined, failed, and the lists senders and skipped. Each of senders
has entries, sender, tenant, login, server, recipient, result, remark and steps; a step has step (a name from above),
result (ok, warn, fail or skip), detail, took_ms, and where there is something to say cause, advice and error (stage,
code, enhanced, text, action, rule). Each of skipped has entry and reason.

Status 0 if nothing failed (warnings may be), 1 if something did.`,
		Example: `  relayd doctor --config /etc/relayd/relayd.yaml erp@contoso.com
  relayd doctor --config /etc/relayd/relayd.yaml --all --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.api.config == "" && f.api.url == "" && len(args) > 0 {
				return usagef("doctor needs --config FILE or --api URL to examine %q; see relayd doctor --help", args[0])
			}
			if f.api.config == "" && f.api.url == "" {
				return usagef("doctor needs --config FILE or --api URL; relayd doctor --help says more")
			}
			if f.all && len(args) > 0 {
				return usagef("doctor takes a SENDER or --all, not both")
			}
			return f.run(cmd, args)
		},
	}
	fs := cmd.Flags()
	f.api.register(fs)
	fs.Lookup("config").Usage = "configuration `file`"
	fs.Lookup("api").Usage = "have the running relay at this `URL` examine, like http://127.0.0.1:8080"
	fs.StringVar(&f.to, "to", "", "`ADDRESS` for RCPT TO (default the sender itself)")
	fs.BoolVar(&f.all, "all", false, "examine every configured mailbox")
	fs.BoolVar(&f.json, "json", false, "write the report as JSON")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Second, "longest `WAIT` for one step")
	return cmd
}

func (f *doctorFlags) run(cmd *cobra.Command, args []string) error {
	to := envelope.Address("")
	if f.to != "" {
		var err error
		if to, err = envelope.ParseAddress(f.to, true); err != nil {
			return usagef("--to %q is not a mail address: %w", f.to, err)
		}
	}
	if f.timeout <= 0 {
		return usagef("--timeout must be more than 0")
	}
	if f.api.url != "" {
		return f.online(cmd, args)
	}
	c, warnings, err := config.Load(f.api.config)
	if err != nil {
		return fmt.Errorf("%s cannot be used, so there is nothing to examine:\n%w", f.api.config, err)
	}
	patients, skipped, err := choosePatients(c, args, f.all)
	if uncovered, ok := errors.AsType[*uncoveredError](err); ok && f.to == "" {
		err = f.online(cmd, args)
		if _, again := errors.AsType[*uncoveredError](err); again {
			return uncovered
		}
		if unasked, ok := errors.AsType[*unaskedError](err); ok {
			return fmt.Errorf("%w. What was entered on the page the running relay alone knows: %w", uncovered, unasked.err)
		}
		return err
	}
	if err != nil {
		return err
	}
	delegated := func(p patient) bool {
		return slices.ContainsFunc(c.Tenants, func(t config.Tenant) bool { return t.Name == p.route.Tenant && t.Grant == "delegated" })
	}
	if f.to != "" && slices.ContainsFunc(patients, delegated) {
		return usagef("--to is for senders whose app sends by itself; the running relay, which examines those with grant: delegated, asks for the sender")
	}
	clinic, err := f.newClinic(c, warnings, to)
	if err != nil {
		return err
	}
	defer clinic.tokens.Close()
	clinic.relay = sync.OnceValues(f.api.client)
	return f.report(cmd, patients, skipped, func(progress func(doctor.Step)) ([]examined, error) {
		clinic.progress = progress
		return clinic.examine(cmd.Context(), patients), nil
	})
}

// patient is one mailbox to examine.
type patient struct {
	sender  envelope.Address
	route   envelope.Route // tenant and login
	entries []string       // of senders, as they stand in the configuration
	keys    []string       // of those entries in the configuration's warnings
}

// unexamined is an entry of senders that names no mailbox.
type unexamined struct {
	Entry  string `json:"entry"`
	Reason string `json:"reason"`
}

// patientOf returns the mailbox of an address that an entry of senders covers, an exact one before its domain.
func patientOf(c *config.Config, address envelope.Address) (patient, bool) {
	at := slices.IndexFunc(c.Senders, func(s config.Sender) bool { return strings.EqualFold(s.Address, string(address)) })
	if at < 0 {
		at = slices.IndexFunc(c.Senders, func(s config.Sender) bool { return strings.EqualFold(s.Match, "*@"+address.Domain()) })
	}
	if at < 0 {
		return patient{}, false
	}
	s := &c.Senders[at]
	p := patient{sender: address, route: envelope.Route{Tenant: s.Tenant, Login: envelope.Address(s.Login)},
		entries: []string{s.Address + s.Match}, keys: []string{fmt.Sprintf("senders[%d]", at)}}
	if s.Login == "" {
		p.route.Login = address
	}
	return p, true
}

// allPatients returns every mailbox the configuration names, each once, and the entries that name none.
func allPatients(c *config.Config) (patients []patient, skipped []unexamined) {
	at := map[string]int{} // by Route.Mailbox
	for i := range c.Senders {
		s := &c.Senders[i]
		address := envelope.Address(s.Address)
		if address == "" {
			address = envelope.Address(s.Login) // *@domain, all of it by one login
		}
		if address == "" {
			skipped = append(skipped, unexamined{s.Match, "each address of the domain is a mailbox of its own; name one: relayd doctor somebody" + s.Match[1:]})
			continue
		}
		p := patient{sender: address, route: envelope.Route{Tenant: s.Tenant, Login: envelope.Address(s.Login)},
			entries: []string{s.Address + s.Match}, keys: []string{fmt.Sprintf("senders[%d]", i)}}
		if s.Login == "" {
			p.route.Login = address
		}
		if j, twice := at[p.route.Mailbox()]; twice {
			patients[j].entries = append(patients[j].entries, p.entries...)
			patients[j].keys = append(patients[j].keys, p.keys...)
			continue
		}
		at[p.route.Mailbox()] = len(patients)
		patients = append(patients, p)
	}
	return patients, skipped
}

// choosePatients says whom the command line is about.
func choosePatients(c *config.Config, args []string, all bool) ([]patient, []unexamined, error) {
	patients, skipped := allPatients(c)
	if len(args) > 0 {
		address, err := envelope.ParseAddress(args[0], true)
		if err != nil || strings.HasPrefix(args[0], "*") {
			return nil, nil, usagef("%q is not the address of a sender; write one like app@contoso.com", args[0])
		}
		p, covered := patientOf(c, address)
		if covered {
			return []patient{p}, nil, nil
		}
		fate := "so relayd refuses its mail"
		if to := c.UnknownSender.RewriteTo; to != "" {
			fate = "so its mail is sent as " + to + " (unknown_sender.rewrite_to)"
		}
		return nil, nil, &uncoveredError{fmt.Sprintf("no entry of senders covers %s, %s; configured: %s", address, fate, entriesOf(c))}
	}
	switch {
	case len(c.Senders) == 0:
		return nil, nil, errors.New("the configuration has no senders; add one")
	case all && len(patients) > 0, len(patients) == 1 && len(skipped) == 0:
		return patients, skipped, nil
	case all:
		return nil, nil, fmt.Errorf("no entry of senders names a mailbox; name an address one of them covers: relayd doctor SENDER (configured: %s)", entriesOf(c))
	}
	return nil, nil, usagef("doctor needs a SENDER or --all; configured: %s", entriesOf(c))
}

// entriesOf lists the entries of senders, not all of many.
func entriesOf(c *config.Config) string {
	const most = 20
	var names []string
	for i := range c.Senders[:min(len(c.Senders), most)] {
		names = append(names, c.Senders[i].Address+c.Senders[i].Match)
	}
	if n := len(c.Senders) - most; n > 0 {
		names = append(names, fmt.Sprintf("and %d more", n))
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ", ")
}

// clinic is what the examinations have in common.
type clinic struct {
	hostname string
	to       envelope.Address
	timeout  time.Duration
	warnings []config.Warning
	wiring   *wiring
	tenants  map[string]*clinicTenant
	tokens   *entra.Tokens
	progress func(doctor.Step)       // nil: nobody is told
	relay    func() (*client, error) // the running one; nil: this is it
}

type clinicTenant struct {
	config.Tenant
	key   string // in the configuration's warnings
	clock func(context.Context) (time.Duration, error)
}

func (f *doctorFlags) newClinic(c *config.Config, warnings []config.Warning, to envelope.Address) (*clinic, error) {
	w, err := wiringOf(c, nil)
	if err != nil {
		return nil, err
	}
	k := newClinic(c, w, f.timeout)
	k.to, k.warnings = to, warnings
	k.tokens, err = entra.New(entra.Options{Tenants: w.entra, Rules: w.refusals, HTTPTimeout: f.timeout})
	return k, err
}

// newClinic is for a configuration that is already wired; its tokens are still to be set.
func newClinic(c *config.Config, w *wiring, timeout time.Duration) *clinic {
	k := &clinic{hostname: c.Hostname, timeout: timeout, wiring: w, tenants: map[string]*clinicTenant{}}
	for i, t := range c.Tenants {
		endpoint := t.Authority + "/" + url.PathEscape(t.TenantID) + "/oauth2/v2.0/token"
		k.tenants[t.Name] = &clinicTenant{Tenant: t, key: fmt.Sprintf("tenants[%d]", i),
			clock: onceForAll(doctor.HTTPClock(endpoint, w.entra[t.Name].RootCAs))}
	}
	return k
}

// examineTimeout is the longest wait for one step of an examination that the page or the API asks for.
const examineTimeout = 15 * time.Second

// examine walks the way of a message of that sender with the running relay's own tokens, and tells of each step.
func (d *daemon) examine(ctx context.Context, sender envelope.Address, found func(console.Finding)) error {
	x := d.extended.Load()
	p, covered := patientOf(x.Config, sender)
	if !covered {
		return console.ErrNotFound
	}
	k := newClinic(x.Config, d.wired.Load(), examineTimeout)
	k.tokens = d.tokens
	k.progress = func(s doctor.Step) {
		found(console.Finding{Step: s.Name, Result: string(s.State), Detail: s.Detail, Cause: s.Cause, Advice: s.Advice})
	}
	doctor.Examine(ctx, k.options(p))
	return ctx.Err()
}

// onceForAll asks once and gives every caller the same answer.
func onceForAll(ask func(context.Context) (time.Duration, error)) func(context.Context) (time.Duration, error) {
	var mu sync.Mutex // guards what follows; held while asking
	var asked bool
	var ahead time.Duration
	var err error
	return func(ctx context.Context) (time.Duration, error) {
		mu.Lock()
		defer mu.Unlock()
		if !asked {
			ahead, err = ask(ctx)
			asked = true
		}
		return ahead, err
	}
}

// examined is one patient's report.
type examined struct {
	Entries []string `json:"entries"`
	doctor.Report
}

// atOnce is how many patients are examined at the same time: it is one far end.
const atOnce = 4

func (k *clinic) examine(ctx context.Context, patients []patient) []examined {
	reports := make([]examined, len(patients))
	slots := make(chan struct{}, atOnce)
	var under sync.WaitGroup
	for i, p := range patients {
		slots <- struct{}{}
		under.Go(func() {
			reports[i] = k.one(ctx, &p)
			<-slots
		})
	}
	under.Wait()
	return reports
}

func (k *clinic) options(p patient) doctor.Options {
	t, server := k.tenants[p.route.Tenant], k.wiring.exchange[p.route.Tenant]
	return doctor.Options{
		Hostname: k.hostname, Server: server.Server, RootCAs: server.RootCAs,
		Route: p.route, Sender: p.sender, Recipient: k.to,
		Token: func(ctx context.Context) (doctor.Token, error) {
			value, err := k.tokens.Token(ctx, t.Name, string(p.route.Login), "")
			if err != nil {
				return doctor.Token{}, err
			}
			token := doctor.Token{Value: value}
			if t.Grant != "delegated" {
				if whole, err := k.tokens.Source(t.Name).Token(); err == nil && whole.AccessToken == value { // kept since just now
					token.Expires = whole.Expiry
				}
			} else if g, ok, err := k.tokens.Grant(ctx, t.Name, string(p.route.Login)); err == nil && ok {
				token.Expires = g.Expires
			}
			return token, nil
		},
		Registration: diagnosis.Registration{TenantID: t.TenantID, ClientID: t.ClientID, Scope: t.Scope},
		Warnings:     k.warningsOf(append([]string{t.key}, p.keys...)),
		Expires:      time.Time(t.CredentialExpires),
		Catalogue:    k.wiring.replies,
		Clock:        t.clock,
		Progress:     k.progress,
		Timeouts: doctor.Timeouts{Resolve: min(k.timeout, 10*time.Second), Connect: min(k.timeout, 10*time.Second),
			Clock: min(k.timeout, 5*time.Second), Token: k.timeout, Command: k.timeout},
	}
}

// warningsOf returns what the configuration's check says about the things with those keys, except for what has a step of
// its own.
func (k *clinic) warningsOf(keys []string) []string {
	var texts []string
	for _, w := range k.warnings {
		about := func(key string) bool { return w.Key == key || strings.HasPrefix(w.Key, key+".") }
		if slices.ContainsFunc(keys, about) && !strings.HasSuffix(w.Key, ".credential_expires") {
			texts = append(texts, w.Key+": "+w.Text)
		}
	}
	return texts
}

func failures(all []examined) (n int) {
	for i := range all {
		if all[i].Result == doctor.Failed {
			n++
		}
	}
	return n
}
