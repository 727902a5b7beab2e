// Package access decides who may do what over HTTP.
package access

import (
	"context"
	"slices"
)

// Scope is a right to a kind of act.
type Scope string

// The scopes. Each right is of its own; the roles below bundle them.
const (
	Read    Scope = "read"    // see what is there: messages without their content, senders, tenants, stats, configuration, audit
	Content Scope = "content" // see and download messages' content
	Send    Scope = "send"    // send messages
	Operate Scope = "operate" // retry, hold, release, drop; pause, resume; examine and check; sign in for a sender, and revoke it
	Manage  Scope = "manage"  // add, change and remove tenants and senders; sessions; rotate the vault's key
)

// Role is a bundle of scopes.
type Role string

// The roles, each with all of the one before.
const (
	Viewer   Role = "viewer"   // read
	Operator Role = "operator" // read, content, send, operate
	Admin    Role = "admin"    // all
)

// Scopes returns what a role may; nil for an unknown one.
func (r Role) Scopes() []Scope {
	switch r {
	case Viewer:
		return []Scope{Read}
	case Operator:
		return []Scope{Read, Content, Send, Operate}
	case Admin:
		return []Scope{Read, Content, Send, Operate, Manage}
	}
	return nil
}

// Principal is who asks.
type Principal struct {
	Name    string  // as audit log and history show it: "ops@contoso.com", "token grafana", "local root"
	Role    Role    // empty: by Scopes alone, as a token's
	Scopes  []Scope // what it may
	Session string  // id of its browser's session, for binding sign-ins to; empty: no browser
	Peer    string  // IP address
}

// May reports whether p has a right. A nil Principal has none.
func (p *Principal) May(s Scope) bool { return p != nil && slices.Contains(p.Scopes, s) }

type key struct{}

// With returns a context that carries who asks.
func With(ctx context.Context, p *Principal) context.Context { return context.WithValue(ctx, key{}, p) }

// From returns who asks; nil: nobody that is known.
func From(ctx context.Context) *Principal {
	p, _ := ctx.Value(key{}).(*Principal)
	return p
}
