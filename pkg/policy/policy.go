// Package policy decides which sender a message goes by, and which tenant, mailbox and limits that sender has.
//
// Exchange Online accepts a message only where its From is the authenticated mailbox or one that mailbox may Send As. The
// configured senders are that knowledge, so relayd refuses at the door what Exchange would refuse after the fact.
package policy

import (
	"errors"
	"strings"
	"sync/atomic"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Sender is one rule. Where several match, an exact address goes before its domain.
type Sender struct {
	Match string         // "local@domain" or "*@domain", compared without case
	Route envelope.Route // Login empty: the address itself; Fallback, where set, must match a rule too
}

// Options are the rules in force.
type Options struct {
	Senders []Sender

	// RewriteTo, where set, is the sender of every message whose own sender no rule matches; it must match one itself.
	RewriteTo envelope.Address
	// KeepOriginal asks that a rewritten message's original From becomes its Reply-To.
	KeepOriginal bool

	// Stopped are the matches of rules whose mail is kept back, and why: it is accepted, and has no way while that is so.
	Stopped map[string]string

	// Domains are those of each tenant, by name, that none of its senders is in: see External.
	Domains map[string][]string
}

// Policy answers for one set of rules at a time. All methods may be called at once.
type Policy struct {
	rules atomic.Pointer[rules]
}

type rules struct {
	exact        map[string]envelope.Route
	domain       map[string]envelope.Route
	stopped      map[string]string          // why, by match in lower case
	own          map[string]map[string]bool // domains by tenant
	rewriteTo    envelope.Address
	keepOriginal bool
}

// New returns a policy with the given rules.
func New(opts Options) *Policy {
	p := new(Policy)
	p.Configure(opts)
	return p
}

// Configure replaces the rules at once.
func (p *Policy) Configure(opts Options) {
	r := &rules{
		exact: map[string]envelope.Route{}, domain: map[string]envelope.Route{}, own: map[string]map[string]bool{}, stopped: map[string]string{},
		rewriteTo: opts.RewriteTo, keepOriginal: opts.KeepOriginal,
	}
	for _, s := range opts.Senders {
		match := strings.ToLower(s.Match)
		if domain, ok := strings.CutPrefix(match, "*@"); ok {
			r.domain[domain] = s.Route
		} else {
			r.exact[match] = s.Route
		}
		r.owns(s.Route.Tenant, envelope.Address(match).Domain())
	}
	for match, why := range opts.Stopped {
		r.stopped[strings.ToLower(match)] = why
	}
	for tenant, domains := range opts.Domains {
		for _, domain := range domains {
			r.owns(tenant, strings.ToLower(domain))
		}
	}
	p.rules.Store(r)
}

func (r *rules) owns(tenant, domain string) {
	if r.own[tenant] == nil {
		r.own[tenant] = map[string]bool{}
	}
	r.own[tenant][domain] = true
}

func (r *rules) route(a envelope.Address) (envelope.Route, bool) {
	route, ok := r.exact[a.Key()]
	if !ok {
		route, ok = r.domain[strings.ToLower(a.Domain())]
	}
	if route.Login == "" {
		route.Login = a
	}
	return route, ok && a != ""
}

func errUnknown(a envelope.Address) error {
	return status.New(550, status.Enhanced{5, 7, 1}, "<%s>: no sender with that address is configured", a)
}

// Known reports whether a message with this reverse-path has a way out: nil, or a 550. The null reverse-path has: its
// From decides.
func (p *Policy) Known(reversePath envelope.Address) error {
	r := p.rules.Load()
	if reversePath == "" || r.rewriteTo != "" {
		return nil
	}
	if _, ok := r.route(reversePath); !ok {
		return errUnknown(reversePath)
	}
	return nil
}

// Choose returns the sender of a message with the given reverse-path and From, either of which may be empty. Where the
// result is not from, From is to be rewritten to it; keepOriginal then asks for a Reply-To with the original. The error
// is a 550.
func (p *Policy) Choose(reversePath, from envelope.Address) (sender envelope.Address, keepOriginal bool, err error) {
	r := p.rules.Load()
	wanted := from
	if wanted == "" {
		wanted = reversePath
	}
	if _, ok := r.route(wanted); ok {
		return wanted, false, nil
	}
	if r.rewriteTo != "" {
		return r.rewriteTo, r.keepOriginal, nil
	}
	if wanted == "" {
		return "", false, status.New(550, status.Enhanced{5, 7, 1}, "message has neither a reverse-path nor a From: no sender to go by")
	}
	return "", false, errUnknown(wanted)
}

// ErrNoRoute reports a sender whose rule was taken out of the configuration after its mail was accepted.
var ErrNoRoute = errors.New("no sender with that address is configured any more")

// StoppedError reports a sender whose mail is kept back.
type StoppedError struct{ Reason string }

// Error says why.
func (e *StoppedError) Error() string { return e.Reason }

// whyStopped returns why the rule that a goes by is stopped; "": it is not.
func (r *rules) whyStopped(a envelope.Address) string {
	if _, exact := r.exact[a.Key()]; exact {
		return r.stopped[a.Key()]
	}
	return r.stopped["*@"+strings.ToLower(a.Domain())]
}

// Route returns the way of a sender Choose has returned. Its Fallback is never the sender itself, nor another that goes by
// the same mailbox: what keeps one from sending keeps the other. The error is ErrNoRoute, or a *StoppedError.
func (p *Policy) Route(sender envelope.Address) (*envelope.Route, error) {
	r := p.rules.Load()
	route, ok := r.route(sender)
	if !ok {
		return nil, ErrNoRoute
	}
	if why := r.whyStopped(sender); why != "" {
		return nil, &StoppedError{why}
	}
	if other, ok := r.route(route.Fallback); ok && other.Mailbox() == route.Mailbox() || route.Fallback.Key() == sender.Key() {
		route.Fallback = ""
	}
	return &route, nil
}

// External reports whether recipient is outside tenant's own domains: those of the senders configured for it, and the
// ones Options.Domains adds. An organisation has others that relayd is not told of; their addresses count as outside.
func (p *Policy) External(tenant string, recipient envelope.Address) bool {
	return !p.rules.Load().own[tenant][strings.ToLower(recipient.Domain())]
}
