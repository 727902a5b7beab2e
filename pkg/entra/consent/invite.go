package consent

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrInvitation reports a one-time link that opens nothing: unknown, used, or expired.
var ErrInvitation = errors.New("there is no such one-time link, or it was used, or has expired")

// invited is an invitation as it is stored.
type invited struct {
	Tenant  string    `json:"tenant"`
	Sender  string    `json:"sender"`
	Login   string    `json:"login"`
	Expires time.Time `json:"expires"`
	Used    bool      `json:"used,omitempty"`
}

// Invite makes a one-time link's code, which is in the result alone: what is stored is its hash.
func (c *Consents) Invite(ctx context.Context, r Request, life time.Duration) (Invitation, error) {
	if _, err := c.opts.Registration(r.Tenant); err != nil {
		return Invitation{}, err
	}
	code := random()
	i := invited{Tenant: r.Tenant, Sender: r.Sender, Login: r.Login, Expires: time.Now().Add(life)}
	if revision, err := put(ctx, c.opts.Invitations, hash(code), &i, 0); err != nil || revision == 0 {
		return Invitation{}, fmt.Errorf("store one-time link: %w", orConflict(err))
	}
	return i.shown(code), nil
}

func (i *invited) shown(code string) Invitation {
	return Invitation{Code: code, Tenant: i.Tenant, Sender: i.Sender, Login: i.Login, Expires: i.Expires}
}

// Invitation returns what a link's code opens, and does not use it up. Errors: [ErrInvitation], and the store's.
func (c *Consents) Invitation(ctx context.Context, code string) (Invitation, error) {
	i, _, err := c.invitation(ctx, hash(code))
	if err != nil {
		return Invitation{}, err
	}
	return i.shown(code), nil
}

func (c *Consents) invitation(ctx context.Context, name string) (*invited, uint64, error) {
	i := new(invited)
	revision, err := get(ctx, c.opts.Invitations, name, i)
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("read one-time link: %w", err)
	case revision == 0 || i.Used || time.Now().After(i.Expires):
		return nil, 0, ErrInvitation
	}
	return i, revision, nil
}

// Accept returns the URL at Entra ID to send the browser of that session to. The link is used up when that sign-in succeeds.
func (c *Consents) Accept(ctx context.Context, code, session string) (string, error) {
	i, _, err := c.invitation(ctx, hash(code))
	if err != nil {
		return "", err
	}
	return c.start(ctx, Request{Tenant: i.Tenant, Sender: i.Sender, Login: i.Login, Session: session}, hash(code))
}

// useInvitation marks an invitation as used, or gives it back. Of two who use it at once, one does.
func (c *Consents) useInvitation(ctx context.Context, name string, used bool) error {
	i := new(invited)
	revision, err := get(ctx, c.opts.Invitations, name, i)
	switch {
	case err != nil:
		return fmt.Errorf("read one-time link: %w", err)
	case revision == 0 || i.Used == used || used && time.Now().After(i.Expires):
		return errInvitationUsed()
	}
	i.Used = used
	next, err := put(ctx, c.opts.Invitations, name, i, revision)
	switch {
	case err != nil:
		return fmt.Errorf("use one-time link: %w", err)
	case next == 0:
		return errInvitationUsed()
	}
	return nil
}

// sweepInvitations removes those that were used or have expired.
func (c *Consents) sweepInvitations(ctx context.Context, names []string) {
	for _, name := range names {
		var i invited
		if revision, err := get(ctx, c.opts.Invitations, name, &i); err == nil && revision != 0 && (i.Used || time.Now().After(i.Expires)) {
			_ = c.opts.Invitations.Delete(ctx, name) // swept again
		}
	}
}
