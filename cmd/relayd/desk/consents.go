package desk

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/grant"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// inviteLife is how long a one-time consent link lives: over a weekend.
const inviteLife = 72 * time.Hour

// request says who is to sign in for an entry of senders.
func (d *Desk) request(match, session string) (consent.Request, error) {
	x := d.opts.Config()
	entry, ok := senderOf(x, match)
	if !ok {
		return consent.Request{}, console.ErrNotFound
	}
	for i := range x.Tenants {
		if t := &x.Tenants[i]; t.Name == entry.Tenant && t.Grant != "delegated" {
			return consent.Request{}, &status.Error{Code: 550, Enhanced: status.Enhanced{5, 7, 0}, Text: errNotDelegated.Error(),
				Cause: "consent is a mailbox owner's, in a tenant with grant: delegated", Advice: "Check the tenant instead; or choose the grant delegated for it"}
		}
	}
	login := cmp.Or(entry.Login, entry.Address)
	if login == "" {
		return consent.Request{}, &status.Error{Code: 550, Enhanced: status.Enhanced{5, 7, 0}, Text: "each address of a domain is a mailbox of its own, and each owner signs in",
			Cause: match + " names no mailbox", Advice: "Add a sender for the mailbox, or give this one a login"}
	}
	return consent.Request{Tenant: entry.Tenant, Login: login, Sender: entry.Address + entry.Match, Session: session}, nil
}

// StartConsent implements console.Console.
func (d *Desk) StartConsent(ctx context.Context, match, session string) (url string, err error) {
	r, err := d.request(match, session)
	if err != nil {
		return "", err
	}
	err = d.Change(ctx, "consent.start", r.Sender, "", "login="+r.Login, func() error {
		url, err = d.opts.Consents.Start(ctx, r)
		return err
	})
	return url, err
}

// StartAdminConsent implements console.Console.
func (d *Desk) StartAdminConsent(ctx context.Context, tenant, session string) (url string, err error) {
	if _, err := d.Tenant(ctx, tenant); err != nil {
		return "", err
	}
	err = d.Change(ctx, "tenant.consent.start", tenant, "", "", func() error {
		url, err = d.opts.Consents.StartAdmin(ctx, tenant, session)
		return err
	})
	return url, err
}

// FinishConsent implements console.Console. One that is accepted has gone through Adopt. What is nobody's sign-in is not written
// down: anyone can send such callbacks, as many as they like.
func (d *Desk) FinishConsent(ctx context.Context, c console.Callback) (*console.Consented, error) {
	r, err := d.opts.Consents.Finish(ctx, consent.Callback(c))
	if err != nil {
		if r.Tenant != "" {
			d.failed(ctx, entryOf(ctx, "consent.refused", cmp.Or(r.Sender, r.Tenant)), err)
		}
		return nil, err
	}
	return &console.Consented{Sender: r.Sender, Tenant: r.Tenant, User: r.User, Invited: r.Invited}, nil
}

// Adopt puts a grant in force, however it came, and tries the mailbox's waiting mail.
func (d *Desk) Adopt(ctx context.Context, g grant.Grant) error {
	entry := entryOf(ctx, "consent.granted", g.Login)
	if access.From(ctx) == nil { // by a one-time link or a device code
		entry.Who = g.User
	}
	entry.After = "tenant=" + g.Tenant + " user=" + g.User
	d.changing.Lock()
	defer d.changing.Unlock()
	err := d.change(ctx, entry, func() error {
		if !d.loginUsed(g.Tenant, g.Login) { // a refresh token that serves nobody is only a risk
			return status.New(550, status.Enhanced{5, 7, 0}, "the sender was removed, or changed, while its owner signed in; nothing was kept")
		}
		return d.opts.Tokens.Adopt(ctx, g)
	})
	if err == nil {
		d.opts.Dispatcher.Probe(g.Tenant, envelope.Address(g.Login).Key())
	}
	return err
}

// Invite implements console.Console.
func (d *Desk) Invite(ctx context.Context, match string) (*console.Invitation, error) {
	r, err := d.request(match, "")
	if err != nil {
		return nil, err
	}
	var made consent.Invitation
	err = d.Change(ctx, "consent.invite", r.Sender, "", "login="+r.Login, func() error {
		made, err = d.opts.Consents.Invite(ctx, r, inviteLife)
		return err
	})
	if err != nil {
		return nil, err
	}
	return d.invitation(made), nil
}

func (d *Desk) invitation(i consent.Invitation) *console.Invitation {
	return &console.Invitation{Code: i.Code, Sender: i.Sender, Login: envelope.Address(i.Login), URL: d.opts.BaseURL() + "/consent/" + i.Code, Expires: i.Expires}
}

// Invitation implements console.Console.
func (d *Desk) Invitation(ctx context.Context, code string) (*console.Invitation, error) {
	i, err := d.invited(ctx, code)
	if err != nil {
		return nil, err
	}
	return d.invitation(i), nil
}

// invited returns what a link's code opens. One for a sender that was removed, or goes by another mailbox now, opens nothing.
func (d *Desk) invited(ctx context.Context, code string) (consent.Invitation, error) {
	i, err := d.opts.Consents.Invitation(ctx, code)
	if err != nil {
		return i, expired(err)
	}
	if r, err := d.request(i.Sender, ""); err != nil || r.Tenant != i.Tenant || !strings.EqualFold(r.Login, i.Login) {
		return i, console.ErrExpired
	}
	return i, nil
}

// expired says in the console's words that a link no longer opens anything.
func expired(err error) error {
	if errors.Is(err, consent.ErrInvitation) {
		return console.ErrExpired
	}
	return err
}

// AcceptInvitation implements console.Console. It is not written down: nobody is logged in, and who has the link may do it as
// often as they like. What comes of it is.
func (d *Desk) AcceptInvitation(ctx context.Context, code, session string) (url string, err error) {
	if _, err := d.invited(ctx, code); err != nil {
		return "", err
	}
	url, err = d.opts.Consents.Accept(ctx, code, session)
	return url, expired(err)
}

// StartDevice implements console.Console.
func (d *Desk) StartDevice(ctx context.Context, match string) (*console.Device, error) {
	r, err := d.request(match, "")
	if err != nil {
		return nil, err
	}
	var made consent.Device
	err = d.Change(ctx, "consent.device", r.Sender, "", "login="+r.Login, func() error {
		made, err = d.opts.Consents.StartDevice(ctx, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return device(made), nil
}

func device(c consent.Device) *console.Device {
	return &console.Device{ID: c.ID, UserCode: c.UserCode, VerificationURI: c.VerificationURI, Expires: c.Expires, State: c.State,
		User: c.User, Problem: problemOf(c.Problem, c.Ended)}
}

// Device implements console.Console.
func (d *Desk) Device(ctx context.Context, id string) (*console.Device, error) {
	c, err := d.opts.Consents.Device(ctx, id)
	if errors.Is(err, consent.ErrDevice) {
		return nil, console.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return device(c), nil
}

// Revoke implements console.Console.
func (d *Desk) Revoke(ctx context.Context, match string) error {
	r, err := d.request(match, "")
	if err != nil {
		return err
	}
	return d.Change(ctx, "consent.revoke", r.Sender, "login="+r.Login, "", func() error {
		return errors.Join(d.opts.Consents.Withdraw(ctx, r.Tenant, r.Login), d.opts.Tokens.Forget(ctx, r.Tenant, r.Login))
	})
}
