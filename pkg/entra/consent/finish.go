package consent

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/entra/consent/refusal"
	"relayd/pkg/entra/grant"
	"relayd/pkg/entra/identity"
	"relayd/pkg/status"
)

// Finish takes what a browser brings back to the redirect URI. Once its state has been found to be this session's, it has
// served, whatever comes of it. An error is a *status.Error that says why the sign-in was not accepted; the result then says
// whose it was, where that is known, but no user.
func (c *Consents) Finish(ctx context.Context, cb Callback) (Result, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout) // a code is redeemed once: not for nothing
	defer cancel()
	p, err := c.take(ctx, cb)
	if err != nil {
		c.log.Warn("callback refused", zap.Error(refusal.Whole(status.From(err))))
		return Result{}, err
	}
	result := Result{Tenant: p.Tenant, Sender: p.Sender, Login: p.Login, Admin: p.Admin, Invited: p.Invitation != ""}
	if p.Admin {
		err = c.finishAdmin(ctx, p, cb)
	} else {
		result.User, err = c.finish(ctx, p, cb)
	}
	log := c.log.With(zap.String("tenant", p.Tenant), zap.String("login", p.Login), zap.Bool("invited", result.Invited))
	if err != nil {
		log.Warn("sign-in refused", zap.Error(refusal.Whole(status.From(err))))
		return result, err
	}
	log.Info("sign-in accepted", zap.Bool("admin", p.Admin))
	return result, nil
}

// take finds the pending record of a callback and uses it up, so that nobody else can.
func (c *Consents) take(ctx context.Context, cb Callback) (*pending, error) {
	name, ok := nameOf(cb.State)
	if !ok {
		return nil, refusal.Unknown()
	}
	p, revision, err := c.pending.get(ctx, name)
	switch {
	case err != nil:
		return nil, refusal.Store(err)
	case revision == 0 || p.Taken:
		return nil, refusal.Unknown()
	case cb.Session == "" || subtle.ConstantTimeCompare([]byte(p.Session), []byte(sum(cb.Session))) != 1:
		return nil, refusal.Foreign() // and stays: its own session may still finish it
	case !time.Now().Before(p.Expires):
		return nil, refusal.Late()
	}
	taken := pending{Taken: true, Tenant: p.Tenant, Session: p.Session, Begun: p.Begun, Expires: p.Expires}
	switch revision, err = c.pending.put(ctx, name, &taken, revision); {
	case err != nil:
		return nil, refusal.Store(err)
	case revision == 0:
		return nil, refusal.Unknown()
	}
	if err := c.options.Pending.Delete(ctx, name); err != nil { // it is marked: only its room is lost for ten minutes
		c.log.Warn("finished sign-in not dropped", zap.Error(err))
	}
	return p, nil
}

// checkIssuer is the defence against mix-up (RFC 9207, section 2.4): the answer must come from where the browser was sent.
func (c *Consents) checkIssuer(ctx context.Context, reg *Registration, cb Callback) (identity.Issuer, error) {
	issuer, err := c.identity.Issuer(ctx, reg.tenant())
	if err != nil {
		return issuer, refusal.NoAnswer(err)
	}
	if cb.Issuer == "" && issuer.Declares || cb.Issuer != "" && cb.Issuer != issuer.URL {
		return issuer, refusal.Issuer()
	}
	return issuer, nil
}

func (c *Consents) finish(ctx context.Context, p *pending, cb Callback) (user string, err error) {
	reg, err := c.registration(p.Tenant)
	if err != nil {
		return "", err
	}
	if cb.Issuer != "" || cb.Error == "" { // an error needs no proof
		if _, err := c.checkIssuer(ctx, &reg, cb); err != nil {
			return "", err
		}
	}
	switch {
	case cb.Error != "":
		return "", c.read(&reg, refusal.Returned(cb.Error, cb.ErrorDescription))
	case cb.Code == "":
		return "", refusal.Malformed()
	}
	var a answer
	err = reg.post(ctx, reg.endpoint("oauth2/v2.0/token"), url.Values{
		"grant_type": {"authorization_code"}, "code": {cb.Code}, "redirect_uri": {p.Redirect}, "code_verifier": {p.Verifier},
		"scope": {reg.scopes()},
	}, &a)
	if err != nil {
		return "", c.read(&reg, err, cb.Code, p.Verifier)
	}
	return c.accept(ctx, &reg, signIn{login: p.Login, nonce: p.Nonce, invitation: p.Invitation}, &a)
}

// finishAdmin reads the answer of the admin-consent page. It proves nothing by itself; that it came to the session that
// asked, for the tenant that was asked about, is all there is to check. A token shows whether it is true.
func (c *Consents) finishAdmin(ctx context.Context, p *pending, cb Callback) error {
	reg, err := c.registration(p.Tenant)
	if err != nil {
		return err
	}
	if cb.Error != "" {
		return c.read(&reg, refusal.Returned(cb.Error, cb.ErrorDescription))
	}
	issuer, err := c.identity.Issuer(ctx, reg.tenant())
	switch {
	case err != nil:
		return refusal.NoAnswer(err)
	case cb.Issuer != "" && cb.Issuer != issuer.URL:
		return refusal.Issuer()
	case !cb.AdminConsent:
		return refusal.Malformed()
	case !strings.EqualFold(cb.Tenant, issuer.TenantID):
		return refusal.Tenant(reg.Name)
	}
	return nil
}

// signIn is what an answer of the token endpoint must fit.
type signIn struct {
	login      string
	nonce      string // empty: a device code, which has none
	invitation string // name of its record; empty: none
}

// accept checks who signed in and what was granted, and adopts it.
func (c *Consents) accept(ctx context.Context, reg *Registration, s signIn, a *answer) (string, error) {
	if a.ID == "" {
		return "", refusal.Nobody()
	}
	user, err := c.identity.Verify(ctx, reg.tenant(), reg.ClientID, s.nonce, a.ID)
	switch {
	case errors.Is(err, identity.ErrTenant):
		return "", refusal.Tenant(reg.Name)
	case errors.Is(err, identity.ErrExpired):
		return "", refusal.Clock(err)
	case errors.Is(err, identity.ErrToken), errors.Is(err, identity.ErrIssuer), errors.Is(err, identity.ErrAudience), errors.Is(err, identity.ErrNonce):
		return "", refusal.Identity(err)
	case err != nil:
		return "", refusal.NoAnswer(err)
	case !user.Is(s.login):
		return "", refusal.User(user.Name, s.login)
	case !granted(reg.Scope, a.Scope):
		return "", refusal.Scope(reg.Scope)
	case a.Refresh == "":
		return "", refusal.NoRefresh()
	}
	now := time.Now()
	g := grant.Grant{Tenant: reg.Name, Login: s.login, ClientID: reg.ClientID, TenantID: user.TenantID, User: user.Name, ObjectID: user.ObjectID,
		Granted: now, Used: now, Refresh: a.Refresh}
	if a.Access != "" && a.Expires > 0 {
		g.Access, g.Expires = a.Access, now.Add(a.Expires.duration())
	}
	settle, err := c.claim(ctx, s.invitation)
	if err != nil {
		return "", err
	}
	err = c.options.Adopt(ctx, g)
	settle(err == nil)
	if err != nil {
		return "", refusal.Adopt(err)
	}
	return user.Name, nil
}

// granted reports whether what sending needs was granted. Entra ID may name the resource by another of its hosts, so only
// the permission's name counts; no scope in the answer means all that was asked for (RFC 6749, section 5.1).
func granted(asked, given string) bool {
	if given == "" {
		return true
	}
	permission := func(s string) string { return strings.ToLower(s[strings.LastIndexByte(s, '/')+1:]) }
	var has []string
	for s := range strings.FieldsSeq(given) {
		has = append(has, permission(s))
	}
	for s := range strings.FieldsSeq(asked) {
		switch name := permission(s); name {
		case "offline_access", "openid", "profile", "email":
		case ".default":
			if !slices.Contains(has, "smtp.send") {
				return false
			}
		default:
			if !slices.Contains(has, name) {
				return false
			}
		}
	}
	return true
}

// read turns an error of Entra ID's into ours: by what is known of sign-ins, else by the catalogue of token requests.
func (c *Consents) read(reg *Registration, err error, secrets ...string) *status.Error {
	if e, ok := errors.AsType[*status.Error](err); ok { // of Authenticate
		return e
	}
	if e := refusal.Known(err); e != nil {
		return e
	}
	if reg.Explain != nil {
		if e := reg.Explain(err, secrets...); e != nil {
			return e
		}
	}
	return refusal.NoAnswer(fmt.Errorf("%T", err)) // its text may repeat a secret
}
