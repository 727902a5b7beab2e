package consent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"relayd/pkg/entra/grant"
	"relayd/pkg/entra/identity"
)

// request asks the token endpoint with form, whose grant_type says for what. secrets are struck out of what it refuses with.
func (c *Consents) request(ctx context.Context, reg *Registration, client *http.Client, form url.Values, secrets ...string) (*oauth2.Token, error) {
	at := endpoint(reg, "/oauth2/v2.0/token")
	if reg.Authenticate != nil {
		if err := reg.Authenticate(ctx, at, form); err != nil {
			return nil, explain(reg, err, secrets...)
		}
	}
	for _, name := range []string{"client_secret", "client_assertion"} {
		if value := form.Get(name); value != "" {
			secrets = append(secrets, value)
		}
	}
	// The package's request takes any grant type, which its own for codes does not.
	config := clientcredentials.Config{ClientID: reg.ClientID, TokenURL: at, AuthStyle: oauth2.AuthStyleInParams, EndpointParams: form}
	tok, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	if err != nil {
		return nil, explain(reg, err, secrets...)
	}
	return tok, nil
}

// explain reads an error of a token request by the catalogue.
func explain(reg *Registration, err error, secrets ...string) error {
	if reg.Explain == nil {
		return errAway(err)
	}
	return reg.Explain(err, secrets...)
}

// refusedBy reads what the authorize endpoint refused with, as the catalogue reads the token endpoint. Entra ID gives its
// number there in the description alone.
func (c *Consents) refusedBy(reg *Registration, cb *Callback) error {
	body := "{}"
	if m := regexp.MustCompile(`^AADSTS([0-9]{1,9})\b`).FindStringSubmatch(cb.ErrorDescription); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			body = fmt.Sprintf(`{"error_codes":[%d]}`, n)
		}
	}
	return explain(reg, &oauth2.RetrieveError{
		Response: &http.Response{StatusCode: http.StatusBadRequest, Status: "400 Bad Request", Header: http.Header{}}, Body: []byte(body),
		ErrorCode: cb.Error, ErrorDescription: cb.ErrorDescription,
	}, cb.State)
}

// judge checks a token response: what was granted, by whom, and where. nonce is empty for a device code.
func (c *Consents) judge(ctx context.Context, reg *Registration, client *http.Client, tok *oauth2.Token, login, nonce string) (*grant.Grant, error) {
	given, _ := tok.Extra("scope").(string)
	raw, _ := tok.Extra("id_token").(string)
	switch {
	case given != "" && !granted(reg.Scope, given): // absent: as asked for (RFC 6749, section 5.1)
		return nil, errScope(reg.Scope)
	case tok.RefreshToken == "":
		return nil, errNoRefresh()
	case raw == "":
		return nil, errIdentity(errors.New("there is no id_token"))
	}
	user, err := c.checker.Check(ctx, registered(reg, client), raw, nonce)
	switch {
	case errors.Is(err, identity.ErrTenant):
		return nil, errTenant()
	case err != nil:
		return nil, errIdentity(err)
	case !user.Is(login):
		return nil, errUser(user.Name, login)
	}
	now := time.Now()
	g := &grant.Grant{
		Tenant: reg.Name, Login: strings.ToLower(login), ClientID: reg.ClientID, TenantID: reg.TenantID, User: user.Name, ObjectID: user.ObjectID,
		Granted: now, Used: now, Refresh: tok.RefreshToken, Access: tok.AccessToken, Expires: tok.Expiry,
	}
	if g.Expires.IsZero() {
		g.Access = "" // without an end it cannot be told when it no longer serves; the refresh token gives another
	}
	return g, nil
}

// granted reports whether given holds what sending needs: every scope of the registration's but those of OpenID Connect. Entra
// ID may answer with the short name of one.
func granted(wanted, given string) bool {
	have := strings.Fields(given)
	for _, one := range strings.Fields(wanted) {
		short := one[strings.LastIndexByte(one, '/')+1:]
		switch {
		case slices.Contains([]string{"offline_access", "openid", "profile", "email"}, strings.ToLower(one)):
		case containsFold(have, one), containsFold(have, short):
		case slices.ContainsFunc(have, func(h string) bool { return strings.EqualFold(h[strings.LastIndexByte(h, '/')+1:], short) }):
		default:
			return false
		}
	}
	return true
}

// adopt puts a grant in force; by an invitation, only where that one has not been used.
func (c *Consents) adopt(ctx context.Context, g *grant.Grant, invitation string) error {
	if invitation != "" {
		if err := c.useInvitation(ctx, invitation, true); err != nil {
			return err
		}
	}
	err := c.opts.Adopt(ctx, *g)
	if invitation == "" {
		return err
	}
	if err != nil {
		if back := c.useInvitation(context.WithoutCancel(ctx), invitation, false); back != nil {
			c.log.Error("a one-time link could not be given back", zap.Error(back))
		}
		return err
	}
	if err := c.opts.Invitations.Delete(ctx, invitation); err != nil {
		c.log.Warn("a used one-time link was not removed yet", zap.Error(err)) // it is marked, and swept
	}
	return nil
}

func isGUID(s string) bool {
	return regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`).MatchString(s)
}
