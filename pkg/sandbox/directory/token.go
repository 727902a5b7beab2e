package directory

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/pkg/sandbox/directory/jwt"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/wire"
)

// claims are those of a version 1.0 access token, the version Exchange Online asks for: an app's own with roles, or a
// user's with scp.
type claims struct {
	Audience   string   `json:"aud"`
	Issuer     string   `json:"iss"`
	IssuedAt   int64    `json:"iat"`
	NotBefore  int64    `json:"nbf"`
	Expires    int64    `json:"exp"`
	AIO        string   `json:"aio"`
	AMR        []string `json:"amr,omitempty"`
	AppID      string   `json:"appid"`
	AppIDACR   string   `json:"appidacr"` // how the client proved itself; see ACRNone
	IDP        string   `json:"idp,omitempty"`
	IDType     string   `json:"idtyp"`
	Name       string   `json:"name,omitempty"`
	ObjectID   string   `json:"oid"`
	RH         string   `json:"rh"`
	Roles      []string `json:"roles,omitempty"`
	Scope      string   `json:"scp,omitempty"`
	SessionID  string   `json:"sid"`
	Subject    string   `json:"sub"`
	TenantID   string   `json:"tid"`
	UniqueName string   `json:"unique_name,omitempty"`
	UPN        string   `json:"upn,omitempty"`
	UTI        string   `json:"uti"` // here also the token's number, for revocation
	Version    string   `json:"ver"`
	WIDs       []string `json:"wids"`
}

// How a client proved itself, as a token's appidacr says.
const (
	ACRNone        = "0"
	ACRSecret      = "1"
	ACRCertificate = "2"
)

const clockSkew = 5 * time.Minute // Entra dates its tokens back by it

func issuer(tenant string) string { return "https://sts.windows.net/" + tenant + "/" }

// Token issues an access token of an app that lives for lifetime, which may be negative, and asks for no secret.
func (d *Directory) Token(tenantID, clientID string, lifetime time.Duration) (string, error) {
	t, ok := d.Tenant(tenantID)
	if !ok {
		return "", fmt.Errorf("no tenant %q", tenantID)
	}
	a, ok := t.App(clientID)
	if !ok {
		return "", fmt.Errorf("no app %q in tenant %q", clientID, tenantID)
	}
	return d.AppToken(t, a, ACRSecret, lifetime)
}

// Issued is the number of access tokens so far.
func (d *Directory) Issued() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.issued
}

// AppToken issues an access token for Exchange Online to an app itself.
func (d *Directory) AppToken(t Tenant, a App, acr string, lifetime time.Duration) (string, error) {
	c := d.newClaims(t, a, acr, lifetime)
	c.Audience, c.IDType, c.ObjectID, c.Subject, c.Roles = exchangeAudience, "app", a.ObjectID, a.ObjectID, a.Roles
	c.IDP = issuer(t.ID)
	return d.sign(c)
}

// UserToken issues an access token that lets the app do for the user what s says.
func (d *Directory) UserToken(t Tenant, a App, u User, s Scopes, acr string, lifetime time.Duration) (string, error) {
	c := d.newClaims(t, a, acr, lifetime)
	c.Audience, c.IDType, c.ObjectID, c.Subject = s.Resource, "user", u.ObjectID, pairwise(a, u)
	c.Scope, c.Name, c.UPN, c.UniqueName, c.AMR = strings.Join(s.Permissions, " "), u.Name, u.Mail, u.Mail, []string{"pwd"}
	return d.sign(c)
}

// newClaims are those that app and user tokens have in common. It counts the token.
func (d *Directory) newClaims(t Tenant, a App, acr string, lifetime time.Duration) claims {
	d.mu.Lock()
	d.issued++
	number := d.issued
	d.mu.Unlock()
	now := time.Now()
	opaque := make([]byte, 48)
	rand.Read(opaque)
	return claims{
		Issuer: issuer(t.ID), TenantID: t.ID, AppID: a.ID, AppIDACR: acr, Version: "1.0",
		IssuedAt: now.Add(-clockSkew).Unix(), NotBefore: now.Add(-clockSkew).Unix(), Expires: now.Add(lifetime).Unix(),
		AIO: base64.StdEncoding.EncodeToString(opaque), RH: "1." + base64.RawURLEncoding.EncodeToString(opaque) + ".",
		SessionID: refusal.GUID(), UTI: strconv.FormatInt(number, 10),
		WIDs: []string{"0997a1d0-0d1d-4acb-b408-d5ca73121e90"}, // the template id of "default user access", as in real tokens
	}
}

// pairwise is a user's sub, which no other app is told (OpenID Connect Core, 8.1).
func pairwise(a App, u User) string {
	digest := sha256.Sum256([]byte(a.ID + "/" + u.ObjectID))
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// IDToken issues an OpenID Connect id_token of version 2.0. As at Entra, the name and ids of the user are told with the
// scope profile, the address with email.
func (d *Directory) IDToken(t Tenant, a App, u User, s Scopes, nonce string) (string, error) {
	now := time.Now()
	c := map[string]any{
		"aud": a.ID, "iss": d.Authority() + "/" + t.ID + "/v2.0", "iat": now.Add(-clockSkew).Unix(),
		"nbf": now.Add(-clockSkew).Unix(), "exp": now.Add(time.Hour).Unix(), "sub": pairwise(a, u), "ver": "2.0",
		"uti": refusal.GUID(),
	}
	if nonce != "" {
		c["nonce"] = nonce
	}
	if s.Profile {
		c["tid"], c["oid"], c["preferred_username"], c["name"] = t.ID, u.ObjectID, u.Mail, u.Name
	}
	if s.Email {
		c["email"] = u.Mail
	}
	return d.sign(c)
}

func (d *Directory) sign(claims any) (string, error) { return jwt.Sign(d.key, d.kid, claims) }

// Keys is the JSON Web Key Set tokens can be checked with.
func (d *Directory) Keys() any {
	public := d.key.PublicKey
	encode := base64.RawURLEncoding.EncodeToString
	return map[string]any{"keys": []any{map[string]string{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": d.kid, "x5t": d.kid,
		"n": encode(public.N.Bytes()), "e": encode(big.NewInt(int64(public.E)).Bytes()),
	}}}
}

// verify checks an access token as Exchange does. The error is for the log: the client only ever sees 535.
func (d *Directory) verify(token string, now time.Time) (claims, error) {
	var c claims
	parsed, err := jwt.Parse(token)
	if err != nil {
		return c, err
	}
	if parsed.Header.Algorithm != "RS256" || parsed.Header.KeyID != d.kid {
		return c, errors.New("not signed by RS256 with a known key")
	}
	if !parsed.SignedBy(&d.key.PublicKey) {
		return c, errors.New("wrong signature")
	}
	if err := parsed.Claims(&c); err != nil {
		return c, err
	}
	number, err := strconv.ParseInt(c.UTI, 10, 64)
	if err != nil {
		return c, errors.New("no token number")
	}
	d.mu.Lock()
	revoked := number <= max(d.revokedTo, d.userTo[c.ObjectID])
	d.mu.Unlock()
	switch {
	case revoked:
		return c, errors.New("revoked")
	case c.Audience != exchangeAudience && (c.Scope == "" || c.Audience != "https://outlook.office.com"):
		return c, fmt.Errorf("audience is %s", c.Audience)
	case now.Unix() >= c.Expires:
		return c, errors.New("expired")
	case now.Unix() < c.NotBefore:
		return c, errors.New("not valid yet")
	case c.Issuer != issuer(c.TenantID):
		return c, errors.New("issuer is not the tenant's")
	case c.Scope != "" && !slices.Contains(strings.Fields(c.Scope), sendPermission):
		return c, errors.New("no permission " + sendPermission)
	case c.Scope == "" && !slices.Contains(c.Roles, sendRole):
		return c, errors.New("no role " + sendRole)
	}
	return c, nil
}

// Authorize checks that the token's service principal or user may submit as the mailbox login, and returns tenant and app.
func (d *Directory) Authorize(token, login string, now time.Time) (Tenant, App, error) {
	c, err := d.verify(token, now)
	if err != nil {
		return Tenant{}, App{}, err
	}
	t, ok := d.Tenant(c.TenantID)
	if !ok {
		return Tenant{}, App{}, errors.New("the token's tenant is gone")
	}
	a, ok := t.App(c.AppID)
	if !ok || c.Scope == "" && a.ObjectID != c.ObjectID {
		return t, App{}, errors.New("the token's app has no such service principal here")
	}
	named := func(patterns []string) bool {
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return wire.Matches(p, login) })
	}
	switch {
	case !wire.ValidAddress(login) || !named(t.Mailboxes):
		return t, a, errors.New("no such mailbox")
	case c.Scope != "":
		return t, a, t.opens(c, login)
	case !named(a.Mailboxes):
		return t, a, errors.New("the service principal has no access to the mailbox")
	}
	return t, a, nil
}

// opens checks that the user of a token may use the mailbox login: it is the user's own, or full access was given.
func (t *Tenant) opens(c claims, login string) error {
	u, refused := t.User(c.UPN)
	switch {
	case refused != nil || u.ObjectID != c.ObjectID:
		return errors.New("the token's user is gone")
	case u.State == "disabled":
		return errors.New("the token's user is disabled")
	case !strings.EqualFold(u.Mail, login) && !granted(t.FullAccess, u.Mail, login):
		return errors.New("the user has no access to the mailbox")
	}
	return nil
}
