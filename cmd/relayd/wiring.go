package main

import (
	"fmt"
	"time"

	"relayd/pkg/config"
	"relayd/pkg/entra"
	"relayd/pkg/envelope"
	"relayd/pkg/exchange"
	"relayd/pkg/policy"
)

// wiring is what a configuration means to the parts behind the queue: computed whole before any of it is put in force.
type wiring struct {
	entra    map[string]entra.Tenant
	exchange map[string]exchange.Tenant
	policy   policy.Options
	retry    []time.Duration
}

func wiringOf(c *config.Config) (*wiring, error) {
	w := &wiring{entra: map[string]entra.Tenant{}, exchange: map[string]exchange.Tenant{}}
	for i := range c.Tenants {
		t := &c.Tenants[i]
		roots, err := t.RootCAs()
		if err != nil {
			return nil, fmt.Errorf("tenant %s: ca_file %w", t.Name, err)
		}
		w.entra[t.Name] = entra.Tenant{
			TenantID: t.TenantID, ClientID: t.ClientID, Secret: t.ClientSecret.Resolve,
			Cloud: t.Cloud, Authority: t.Authority, Scope: t.Scope, RootCAs: roots,
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
		}})
	}
	w.policy.RewriteTo = envelope.Address(c.UnknownSender.RewriteTo)
	w.policy.KeepOriginal = c.UnknownSender.ReplyToOriginal
	for _, step := range c.Queue.Retry {
		w.retry = append(w.retry, time.Duration(step))
	}
	return w, nil
}
