package directory

import (
	"fmt"
	"slices"
	"strings"
)

// Change alters a tenant as act says. Whoever was handed the tenant before does not see it. An error of act, or an app that
// is unusable after it, changes nothing.
func (d *Directory) Change(tenantID string, act func(*Tenant) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, t := range d.tenants {
		if strings.EqualFold(t.ID, tenantID) {
			changed := t.clone()
			if err := act(&changed); err != nil {
				return err
			}
			for j := range changed.Apps {
				if err := changed.Apps[j].complete(changed.ID); err != nil {
					return err
				}
			}
			d.tenants[i] = changed
			return nil
		}
	}
	return fmt.Errorf("no tenant %q", tenantID)
}

// change alters an app of a tenant.
func (d *Directory) change(tenantID, appID string, act func(*App)) error {
	return d.Change(tenantID, func(t *Tenant) error {
		i := slices.IndexFunc(t.Apps, func(a App) bool { return strings.EqualFold(a.ID, appID) })
		if i < 0 {
			return fmt.Errorf("no app %q in tenant %q", appID, tenantID)
		}
		act(&t.Apps[i])
		return nil
	})
}

// SetUser adds or replaces a user. Who else is a user does not change by it. Another password than before is a reset: it
// revokes what the user had granted.
func (d *Directory) SetUser(tenantID string, u User) error {
	reset := false
	err := d.Change(tenantID, func(t *Tenant) error {
		if before, refused := t.User(u.Mail); refused == nil {
			reset = before.Password != u.Password
			if u.ObjectID == "" {
				u.ObjectID = before.ObjectID
			}
		}
		return t.setUser(u)
	})
	if err == nil && reset {
		err = d.RevokeUser(tenantID, u.Mail, false)
	}
	return err
}

// RemoveUser removes a user from the list and reports whether there was one.
func (d *Directory) RemoveUser(tenantID, mail string) bool {
	found := false
	err := d.Change(tenantID, func(t *Tenant) error {
		is := func(u User) bool { return strings.EqualFold(u.Mail, mail) }
		found = slices.ContainsFunc(t.Users, is)
		t.Users = slices.DeleteFunc(t.Users, is)
		return nil
	})
	return err == nil && found
}

// RevokeUser ends the user's refresh tokens, codes and browser sessions, as an administrator's "revoke sessions" or a
// password reset does. Access tokens live on until they expire, unless access says otherwise.
func (d *Directory) RevokeUser(tenantID, mail string, access bool) error {
	t, ok := d.Tenant(tenantID)
	if !ok {
		return fmt.Errorf("no tenant %q", tenantID)
	}
	u, refused := t.User(mail)
	if refused != nil {
		return fmt.Errorf("no user %q in tenant %q", mail, tenantID)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.epochs[u.ObjectID]++
	if access {
		d.userTo[u.ObjectID] = d.issued
	}
	return nil
}

// Epoch counts the revocations of a user, by object id. What was granted in an earlier one is worthless.
func (d *Directory) Epoch(objectID string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.epochs[objectID]
}

// Consent records a consent, joined to one of the same app and user.
func (d *Directory) Consent(tenantID string, c Consent) error {
	return d.Change(tenantID, func(t *Tenant) error {
		if _, ok := t.App(c.App); !ok {
			return fmt.Errorf("no app %q in tenant %q", c.App, tenantID)
		}
		i := slices.IndexFunc(t.Consents, c.same)
		if i < 0 {
			t.Consents = append(t.Consents, c)
			return nil
		}
		joined := slices.Concat(t.Consents[i].Scopes, c.Scopes)
		slices.Sort(joined)
		t.Consents[i].Scopes = slices.Compact(joined)
		return nil
	})
}

func (c Consent) same(o Consent) bool {
	return strings.EqualFold(c.App, o.App) && strings.EqualFold(c.User, o.User)
}

// Withdraw ends the consent of an app and user, the administrator's if user is empty, and reports whether there was one.
func (d *Directory) Withdraw(tenantID, app, user string) bool {
	found := false
	err := d.Change(tenantID, func(t *Tenant) error {
		is := Consent{App: app, User: user}.same
		found = slices.ContainsFunc(t.Consents, is)
		t.Consents = slices.DeleteFunc(t.Consents, is)
		return nil
	})
	return err == nil && found
}

// GrantRoles gives an app its application permissions: what an administrator's consent does.
func (d *Directory) GrantRoles(tenantID, app string) error {
	return d.change(tenantID, app, func(a *App) { a.NoRoles = false })
}

// SetSecret replaces an app's secret; the old one is refused from now on.
func (d *Directory) SetSecret(tenantID string, app App) error {
	return d.change(tenantID, app.ID, func(a *App) { a.Secret, a.SecretExpires = app.Secret, app.SecretExpires })
}

// AddRedirectURI registers a redirect URI; one that is no URI is an error.
func (d *Directory) AddRedirectURI(tenantID, app, uri string) error {
	return d.change(tenantID, app, func(a *App) {
		if !slices.Contains(a.RedirectURIs, uri) {
			a.RedirectURIs = append(a.RedirectURIs, uri)
		}
	})
}

// RemoveRedirectURI ends the registration of a redirect URI.
func (d *Directory) RemoveRedirectURI(tenantID, app, uri string) error {
	return d.change(tenantID, app, func(a *App) {
		a.RedirectURIs = slices.DeleteFunc(a.RedirectURIs, func(o string) bool { return o == uri })
	})
}
