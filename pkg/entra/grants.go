package entra

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

// Grants lists what the mailboxes' owners have granted, without secrets, ordered by tenant and login.
func (t *Tokens) Grants(ctx context.Context) ([]grant.Grant, error) {
	names, err := t.options.Records.Names(ctx)
	if err != nil {
		return nil, fmt.Errorf("list grants: %w", err)
	}
	var all []grant.Grant
	for _, name := range names {
		g, _, err := grant.Load(ctx, t.options.Records, name)
		if err != nil {
			return nil, err
		}
		if g != nil && g.Login != "" {
			all = append(all, g.Safe())
		}
	}
	slices.SortFunc(all, func(a, b grant.Grant) int {
		return strings.Compare(a.Tenant+"\x00"+a.Login, b.Tenant+"\x00"+b.Login)
	})
	return all, nil
}

// Grant returns one of them, without secrets, and whether there is one.
func (t *Tokens) Grant(ctx context.Context, tenant, login string) (grant.Grant, bool, error) {
	g, _, err := grant.Load(ctx, t.options.Records, grant.Name(tenant, strings.ToLower(login)))
	if err != nil || g == nil {
		return grant.Grant{}, false, err
	}
	return g.Safe(), true, nil
}

// Adopt stores what an owner has just granted, durably, in place of what there was, dead or not; it is in force when Adopt
// returns.
func (t *Tokens) Adopt(ctx context.Context, g grant.Grant) error {
	g.Login = strings.ToLower(g.Login)
	g.Holder, g.Until, g.Dead, g.Reason, g.DeadAt = "", time.Time{}, "", "", time.Time{}
	name := grant.Name(g.Tenant, g.Login)
	for {
		_, revision, err := t.options.Records.Get(ctx, name)
		if err != nil {
			return fmt.Errorf("adopt grant: %w", err)
		}
		if revision, err = grant.Store(ctx, t.options.Records, name, &g, revision); err != nil {
			return fmt.Errorf("adopt grant: %w", err)
		}
		if revision != 0 {
			return nil
		}
	}
}

// Forget removes a grant for good. None is no error.
func (t *Tokens) Forget(ctx context.Context, tenant, login string) error {
	if err := t.options.Records.Delete(ctx, grant.Name(tenant, strings.ToLower(login))); err != nil {
		return fmt.Errorf("forget grant: %w", err)
	}
	return nil
}

// Status returns when the tenant's own access token expires (zero: there is none), and what Entra ID last refused the
// application; nil: nothing, or nothing was asked yet.
func (t *Tokens) Status(tenant string) (expires time.Time, problem *status.Error) {
	t.mu.Lock()
	s := t.sources[tenant]
	t.mu.Unlock()
	if s == nil {
		return time.Time{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != nil {
		expires = s.token.Expiry
	}
	return expires, s.err
}

// Check makes one fresh request to the token endpoint, which proves registration and credential. Errors are *status.Error.
func (t *Tokens) Check(ctx context.Context, tenant string) error {
	_, err := t.get(ctx, tenant, "")
	return err
}

// Run keeps idle grants alive and renews tokens in use ahead of time until ctx ends.
func (t *Tokens) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Registration returns what consent for tenant is asked with. Errors are *status.Error.
func (t *Tokens) Registration(tenant string) (consent.Registration, error) {
	t.mu.Lock()
	s := t.sources[tenant]
	t.mu.Unlock()
	if s == nil {
		return consent.Registration{}, unconfigured()
	}
	s.mu.Lock()
	secret := s.secret
	s.mu.Unlock()
	return consent.Registration{
		Name: tenant, TenantID: s.tenant.TenantID, ClientID: s.tenant.ClientID, Authority: s.tenant.Authority,
		Scope: s.tenant.Scope, Client: s.client,
		Authenticate: func(_ context.Context, _ string, form url.Values) error {
			value, err := secret()
			form.Set("client_secret", value)
			return err
		},
		Explain: func(err error, secrets ...string) *status.Error {
			e, _ := read(*t.rules.Load(), err, strings.Join(secrets, ""), time.Now())
			return e
		},
	}, nil
}
