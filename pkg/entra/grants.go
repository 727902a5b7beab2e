package entra

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"relayd/pkg/entra/catalogue"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

// readers is how many grants are read at once.
const readers = 8

// Grants lists what the mailboxes' owners have granted, without secrets, ordered by tenant and login. With an error there are
// those that can be read.
func (t *Tokens) Grants(ctx context.Context) ([]grant.Grant, error) {
	names, err := t.options.Records.Names(ctx)
	if err != nil {
		return nil, fmt.Errorf("list grants: %w", err)
	}
	var mu sync.Mutex // guards what follows
	var all []grant.Grant
	var first error
	var group errgroup.Group
	group.SetLimit(readers)
	for _, name := range names {
		group.Go(func() error {
			g, _, err := grant.Load(ctx, t.options.Records, name)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				first = cmp.Or(first, err)
			case g != nil && g.Login != "":
				all = append(all, g.Safe())
			}
			return nil
		})
	}
	_ = group.Wait() // they note their errors above
	slices.SortFunc(all, func(a, b grant.Grant) int {
		return strings.Compare(a.Tenant+"\x00"+a.Login, b.Tenant+"\x00"+b.Login)
	})
	return all, first
}

// Grant returns one of them, without secrets, and whether there is one.
func (t *Tokens) Grant(ctx context.Context, tenant, login string) (grant.Grant, bool, error) {
	if login == "" {
		return grant.Grant{}, false, nil
	}
	g, _, err := grant.Load(ctx, t.options.Records, grant.Name(tenant, strings.ToLower(login)))
	if err != nil || g == nil {
		return grant.Grant{}, false, err
	}
	return g.Safe(), true, nil
}

// Adopt stores what an owner has just granted, durably, in place of what there was, dead or not; it is in force when Adopt
// returns. An access token in it is not used: the first comes of the refresh token.
func (t *Tokens) Adopt(ctx context.Context, g grant.Grant) error {
	if g.Login = strings.ToLower(g.Login); g.Login == "" || g.Refresh == "" || g.Tenant == "" {
		return fmt.Errorf("adopt grant: tenant, login or refresh token is missing")
	}
	if g.Used.IsZero() {
		g.Used = g.Granted
	}
	g.Holder, g.Until, g.Dead, g.Reason, g.DeadAt, g.Access, g.For, g.Expires = "", time.Time{}, "", "", time.Time{}, "", "", time.Time{}
	name := grant.Name(g.Tenant, g.Login)
	for revision := uint64(0); revision == 0; {
		_, present, err := t.options.Records.Get(ctx, name)
		if err != nil {
			return fmt.Errorf("adopt grant: %w", err)
		}
		if revision, err = grant.Store(ctx, t.options.Records, name, &g, present); err != nil {
			return fmt.Errorf("adopt grant: %w", err)
		}
	}
	t.reset(name)
	t.metrics.consented(g.Login, ends(&g))
	return nil
}

// Forget removes a grant for good; its tokens are used no more. None is no error.
func (t *Tokens) Forget(ctx context.Context, tenant, login string) error {
	login = strings.ToLower(login)
	if login == "" {
		return nil
	}
	name := grant.Name(tenant, login)
	if err := t.options.Records.Delete(ctx, name); err != nil {
		return fmt.Errorf("forget grant: %w", err)
	}
	t.reset(name)
	t.metrics.consented(login, time.Time{})
	return nil
}

// reset has the record of that name read before the next token of it is used.
func (t *Tokens) reset(name string) {
	t.mu.Lock()
	s := t.sources[name]
	t.mu.Unlock()
	if s != nil {
		s.reset()
	}
}

// Status returns when the tenant's own access token expires (zero: there is none), and what Entra ID last refused the
// application, which a success ends; nil: nothing.
func (t *Tokens) Status(tenant string) (expires time.Time, problem *status.Error) {
	t.mu.Lock()
	r, s := t.tenants[tenant], t.sources[grant.Name(tenant, "")]
	t.mu.Unlock()
	if r == nil {
		return time.Time{}, unconfigured()
	}
	if s != nil {
		s.mu.Lock()
		if s.token != nil {
			expires = s.token.Expiry
		}
		problem = s.err
		s.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.problem != nil {
		problem = r.problem
	}
	return expires, problem
}

// Check asks Entra ID afresh whether the registration is there and the credential right: for a token of the application
// itself, or, of a public client, which has no credential, for a device code that nobody will enter. What it finds is what
// Status returns next, and a success lets senders that wait ask at once. Errors are *status.Error.
func (t *Tokens) Check(ctx context.Context, tenant string) error {
	t.mu.Lock()
	r := t.tenants[tenant]
	t.mu.Unlock()
	if r == nil {
		return unconfigured()
	}
	var e *status.Error
	if r.public() {
		e = r.probe(ctx)
	} else {
		_, _, e = r.own(ctx)
	}
	if ctx.Err() != nil {
		return catalogue.Temporary("no answer from Entra ID in time", ctx.Err())
	}
	if e != nil {
		return e
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sources {
		if s.reg == r {
			s.release()
		}
	}
	return nil
}
