package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"relayd/cmd/relayd/registry"
	"relayd/pkg/config"
	"relayd/pkg/entra"
	"relayd/pkg/envelope"
	"relayd/pkg/exchange"
	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/message/rewrite"
	"relayd/pkg/policy"
	"relayd/pkg/postmaster"
	"relayd/pkg/status"
)

// wiring is what a configuration means to the parts behind the queue: computed whole before any of it is put in force.
type wiring struct {
	entra    map[string]entra.Tenant
	exchange map[string]exchange.Tenant
	policy   policy.Options
	retry    []time.Duration

	refusals   []entra.Rule         // of the operator's, before ours
	replies    *catalogue.Catalogue // the operator's and ours
	postmaster postmaster.Settings
	limits     limits
}

// limits are what a message of the API is admitted by, as [smtpin.Settings] say of one by SMTP.
type limits struct {
	hostname         string
	message          int64 // octets
	header           int   // octets
	recipients, hops int
}

// wiringOf reads c, whose senders of those matches are stopped, for the reason given.
func wiringOf(c *config.Config, stopped map[string]string) (*wiring, error) {
	w := &wiring{entra: map[string]entra.Tenant{}, exchange: map[string]exchange.Tenant{}}
	for i := range c.Tenants {
		t := &c.Tenants[i]
		roots, err := t.RootCAs()
		if err != nil {
			return nil, fmt.Errorf("tenant %s: ca_file %w", t.Name, err)
		}
		if w.entra[t.Name], err = entraTenant(t, roots); err != nil {
			return nil, err
		}
		w.exchange[t.Name] = exchange.Tenant{Server: t.SMTPServer, RootCAs: roots}
	}
	for i := range c.Senders {
		s := &c.Senders[i]
		match := s.Match
		if match == "" {
			match = s.Address
		}
		w.policy.Senders = append(w.policy.Senders, policy.Sender{Match: match, Route: envelope.Route{
			Tenant: s.Tenant, Login: envelope.Address(s.Login),
			Connections: s.Connections, MessagesPerMinute: s.MessagesPerMinute, RecipientsPerDay: s.RecipientsPerDay,
			RecipientsPerMessage: s.RecipientsPerMessage, RecipientsPerDomain: s.RecipientsPerDomain,
			Fallback: envelope.Address(s.Fallback),
		}})
	}
	w.policy.Stopped = stopped
	w.policy.RewriteTo = envelope.Address(c.UnknownSender.RewriteTo)
	w.policy.KeepOriginal = c.UnknownSender.ReplyToOriginal
	for _, step := range c.Queue.Retry {
		w.retry = append(w.retry, time.Duration(step))
	}
	w.limits = limits{
		hostname: c.Hostname, message: int64(c.Limits.MessageBytes), header: int(c.Limits.HeaderBytes), recipients: c.Limits.Recipients, hops: c.Limits.Hops,
	}
	w.postmaster = postmaster.Settings{
		Modes: c.Bounces.Mode, From: envelope.Address(c.Bounces.From), PerHour: c.Bounces.PerHour, Hostname: c.Hostname,
	}
	for _, to := range c.Bounces.Notify {
		w.postmaster.Notify = append(w.postmaster.Notify, envelope.Address(to))
	}
	if err := w.readReplies(c.Replies); err != nil {
		return nil, err
	}
	return w, nil
}

// extendedWiring reads a configuration with what was entered beside it. A sender that was entered and is not in force keeps
// its mail, rather than having it refused: whoever sends is not to blame.
func extendedWiring(x *config.Extended, content registry.Content) (*wiring, error) {
	stopped := map[string]string{}
	for match, by := range content.Paused() {
		stopped[match] = "paused by " + by
	}
	w, err := wiringOf(x.Config, stopped)
	if err != nil {
		return nil, err
	}
	for _, r := range x.Refused {
		match := r.Fields["address"] + r.Fields["match"]
		if match == "" {
			continue // a tenant
		}
		w.policy.Senders = append(w.policy.Senders, policy.Sender{Match: match, Route: envelope.Route{Tenant: r.Fields["tenant"], Login: envelope.Address(r.Fields["login"])}})
		w.policy.Stopped[match] = "what was entered for this sender is not in force: " + r.Problems[0].Key + ": " + r.Problems[0].Text
	}
	return w, nil
}

// entraTenant is what the tenant's tokens are got with. Files are read for each request, so that a renewed one is taken up.
func entraTenant(t *config.Tenant, roots *x509.CertPool) (entra.Tenant, error) {
	e := entra.Tenant{
		TenantID: t.TenantID, ClientID: t.ClientID, Cloud: t.Cloud, Authority: t.Authority, Scope: t.Scope, RootCAs: roots,
		ManagedIdentity: t.ManagedIdentity, Delegated: t.Grant == "delegated",
	}
	if !t.ClientSecret.IsZero() {
		e.Secret = t.ClientSecret.Resolve
	}
	if t.Certificate.CertFile != "" {
		e.Certificate = t.Certificate.Load
	}
	if t.FederatedTokenFile != "" {
		e.FederatedToken = t.FederatedToken
	}
	if t.Proxy != "" {
		proxy, err := url.Parse(t.Proxy)
		if err != nil {
			return e, fmt.Errorf("tenant %s: proxy: %w", t.Name, err)
		}
		e.Proxy = proxy
	}
	return e, nil
}

// readReplies sorts the operator's rows into those about Entra ID's answers and those about Exchange Online's.
func (w *wiring) readReplies(replies []config.Reply) error {
	var rows []catalogue.Row
	for i := range replies {
		r := &replies[i]
		action, ok := status.ParseAction(r.Action)
		if !ok {
			return fmt.Errorf("replies[%d].action: there is no action %q", i, r.Action)
		}
		if r.Stage == string(status.StageToken) {
			rule := entra.Rule{Name: r.Name, Codes: r.AADSTS, Action: action, Hold: time.Duration(r.Wait), Cause: r.Cause, Advice: r.Advice}
			if r.Error != "" {
				rule.Errors = []string{r.Error}
			}
			w.refusals = append(w.refusals, rule)
			continue
		}
		rows = append(rows, catalogue.Row{
			Name: r.Name, Stage: status.Stage(r.Stage), Code: r.Code, Enhanced: r.Enhanced, Text: r.Text, Action: action, FreshToken: r.Fresh,
			Wait: time.Duration(r.Wait), Cause: r.Cause, Advice: r.Advice,
		})
	}
	var err error
	if w.replies, err = catalogue.New(rows); err != nil {
		return fmt.Errorf("replies: %w", err)
	}
	if err := entra.CheckRules(w.refusals); err != nil {
		return fmt.Errorf("replies: %w", err)
	}
	return nil
}

// serverOf names the host that a sender's mail is handed to, for notifications; "" where it has no way now.
func (d *daemon) serverOf(sender envelope.Address) string {
	route, err := d.policy.Route(sender)
	if err != nil {
		return ""
	}
	host, _, _ := net.SplitHostPort(d.wired.Load().exchange[route.Tenant].Server)
	return host
}

// adviceOf returns what an operator can do where a row of the catalogue decided.
func (d *daemon) adviceOf(rule string) string {
	if row := d.wired.Load().replies.Named(rule); row != nil {
		return row.Advice
	}
	return ""
}

// rewriteMessage is a message's last change before it leaves: lines that Exchange Online would not take, and the author
// where it goes by a fallback sender.
func rewriteMessage(route *envelope.Route, env *envelope.Envelope, open func() io.Reader) (*envelope.Envelope, io.Reader, error) {
	if !env.LongLines && route.From == "" {
		return env, open(), nil
	}
	plan, err := rewrite.Rewriting{LongLines: env.LongLines, From: string(route.From), Size: env.Size}.Plan(open)
	if err != nil {
		return nil, nil, err
	}
	changed := *env
	changed.Size = plan.Size
	return &changed, plan.Reader(open), nil
}
