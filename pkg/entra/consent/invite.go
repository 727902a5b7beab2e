package consent

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/entra/consent/refusal"
)

// invitation is a one-time link, as it is stored under the hash of its code.
type invitation struct {
	Tenant  string    `json:"tenant"`
	Login   string    `json:"login"`
	Sender  string    `json:"sender"`
	Expires time.Time `json:"expires"`
	Used    bool      `json:"used,omitempty"` // by a sign-in that was accepted
}

// Invite makes a one-time link by which r.Login signs in without an account here, in place of those made for the mailbox
// before. It lives for lifetime; 0: 72 hours.
func (c *Consents) Invite(ctx context.Context, r Request, lifetime time.Duration) (Invitation, error) {
	if lifetime == 0 {
		lifetime = invitationLife
	}
	if _, err := c.registration(r.Tenant); err != nil {
		return Invitation{}, err
	}
	if !strings.Contains(r.Login, "@") {
		return Invitation{}, refusal.NoLogin()
	}
	names, err := c.withdraw(ctx, r.Tenant, r.Login)
	if err != nil {
		return Invitation{}, err
	}
	if len(names) >= maxInvitations {
		return Invitation{}, refusal.Busy()
	}
	i := invitation{Tenant: r.Tenant, Login: strings.ToLower(r.Login), Sender: r.Sender, Expires: time.Now().Add(lifetime)}
	code := random()
	if revision, err := c.invitations.put(ctx, sum(code), &i, 0); err != nil || revision == 0 {
		return Invitation{}, refusal.Store(err)
	}
	c.log.Info("one-time link made", zap.String("tenant", i.Tenant), zap.String("login", i.Login), zap.Time("expires", i.Expires))
	return i.shown(code), nil
}

// Withdraw ends the one-time links made for a mailbox, and the sign-ins begun by them. None is no error.
func (c *Consents) Withdraw(ctx context.Context, tenant, login string) error {
	_, err := c.withdraw(ctx, tenant, login)
	return err
}

// withdraw returns the names of the links that are left.
func (c *Consents) withdraw(ctx context.Context, tenant, login string) (left []string, err error) {
	names, err := c.options.Invitations.Names(ctx)
	if err != nil {
		return nil, refusal.Store(err)
	}
	left, err = c.invitations.sweep(ctx, names, func(i *invitation) bool { return i.Tenant != tenant || !strings.EqualFold(i.Login, login) })
	if err != nil {
		return nil, refusal.Store(err)
	}
	return left, nil
}

// Invitation returns what a link's code opens, and uses nothing up. Errors: [ErrInvitation].
func (c *Consents) Invitation(ctx context.Context, code string) (Invitation, error) {
	i, err := c.open(ctx, code)
	if err != nil {
		return Invitation{}, err
	}
	return i.shown(code), nil
}

// Accept returns where to send the browser of session, so that the link's mailbox signs in. The link stays good until such
// a sign-in was accepted. Errors: [ErrInvitation], and those of Start.
func (c *Consents) Accept(ctx context.Context, code, session string) (string, error) {
	i, err := c.open(ctx, code)
	if err != nil {
		return "", err
	}
	return c.start(ctx, Request{Tenant: i.Tenant, Login: i.Login, Sender: i.Sender, Session: session}, sum(code))
}

func (c *Consents) open(ctx context.Context, code string) (*invitation, error) {
	if len(code) != 43 || !token(code) {
		return nil, ErrInvitation
	}
	i, revision, err := c.invitations.get(ctx, sum(code))
	switch {
	case err != nil:
		return nil, refusal.Store(err)
	case revision == 0 || i.Used || !time.Now().Before(i.Expires):
		return nil, ErrInvitation
	}
	return i, nil
}

func (i *invitation) shown(code string) Invitation {
	return Invitation{Code: code, Tenant: i.Tenant, Sender: i.Sender, Login: i.Login, Expires: i.Expires}
}

// claim uses the named invitation up, ahead of what it is for, so that only one sign-in can. settle must be told whether
// that was done: if not, the link is good again. No name, no invitation: then there is nothing to do.
func (c *Consents) claim(ctx context.Context, name string) (settle func(done bool), err error) {
	if name == "" {
		return func(bool) {}, nil
	}
	i, revision, err := c.invitations.get(ctx, name)
	switch {
	case err != nil:
		return nil, refusal.Store(err)
	case revision == 0 || i.Used || !time.Now().Before(i.Expires):
		return nil, refusal.Invitation()
	}
	used := *i
	used.Used = true
	switch revision, err = c.invitations.put(ctx, name, &used, revision); {
	case err != nil:
		return nil, refusal.Store(err)
	case revision == 0:
		return nil, refusal.Invitation()
	}
	return func(done bool) {
		var err error
		if done {
			err = c.options.Invitations.Delete(ctx, name) // it is marked: this only makes room
		} else {
			_, err = c.invitations.put(ctx, name, i, revision)
		}
		if err != nil {
			c.log.Warn("one-time link not settled", zap.String("tenant", i.Tenant), zap.String("login", i.Login), zap.Error(err))
		}
	}, nil
}
