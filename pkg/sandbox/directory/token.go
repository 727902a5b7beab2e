package directory

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/pkg/sandbox/wire"
)

// claims are those of a version 1.0 app-only access token, the version Exchange Online asks for.
type claims struct {
	Audience  string   `json:"aud"`
	Issuer    string   `json:"iss"`
	IssuedAt  int64    `json:"iat"`
	NotBefore int64    `json:"nbf"`
	Expires   int64    `json:"exp"`
	AIO       string   `json:"aio"`
	AppID     string   `json:"appid"`
	AppIDACR  string   `json:"appidacr"` // "1": a client secret
	IDP       string   `json:"idp"`
	IDType    string   `json:"idtyp"`
	ObjectID  string   `json:"oid"`
	RH        string   `json:"rh"`
	Roles     []string `json:"roles,omitempty"`
	SessionID string   `json:"sid"`
	Subject   string   `json:"sub"`
	TenantID  string   `json:"tid"`
	UTI       string   `json:"uti"` // here also the token's number, for revocation
	Version   string   `json:"ver"`
	WIDs      []string `json:"wids"`
}

func issuer(tenant string) string { return "https://sts.windows.net/" + tenant + "/" }

// Token issues an access token that lives for lifetime, which may be negative, and asks for no secret.
func (d *Directory) Token(tenantID, clientID string, lifetime time.Duration) (string, error) {
	t, ok := d.tenant(tenantID)
	if !ok {
		return "", fmt.Errorf("no tenant %q", tenantID)
	}
	a, ok := t.app(clientID)
	if !ok {
		return "", fmt.Errorf("no app %q in tenant %q", clientID, tenantID)
	}
	return d.issue(t, a, lifetime)
}

// Issued is the number of access tokens so far.
func (d *Directory) Issued() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.issued
}

func (d *Directory) issue(t Tenant, a App, lifetime time.Duration) (string, error) {
	d.mu.Lock()
	d.issued++
	number := d.issued
	d.mu.Unlock()
	now := time.Now()
	opaque := make([]byte, 48)
	rand.Read(opaque)
	const clockSkew = 5 * time.Minute // Entra dates its tokens back by it
	return d.sign(claims{
		Audience: exchangeAudience, Issuer: issuer(t.ID), TenantID: t.ID, IDP: issuer(t.ID),
		IssuedAt: now.Add(-clockSkew).Unix(), NotBefore: now.Add(-clockSkew).Unix(), Expires: now.Add(lifetime).Unix(),
		AIO: base64.StdEncoding.EncodeToString(opaque), RH: "1." + base64.RawURLEncoding.EncodeToString(opaque) + ".",
		AppID: a.ID, AppIDACR: "1", IDType: "app", ObjectID: a.ObjectID, Subject: a.ObjectID, Roles: a.Roles,
		SessionID: randomGUID(), UTI: strconv.FormatInt(number, 10), Version: "1.0",
		WIDs: []string{"0997a1d0-0d1d-4acb-b408-d5ca73121e90"}, // the template id of "default user access", as in real tokens
	})
}

func (d *Directory) sign(c claims) (string, error) {
	header, err := json.Marshal(map[string]string{"typ": "JWT", "alg": "RS256", "kid": d.kid, "x5t": d.kid})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, d.key, crypto.SHA256, digest[:])
	if err != nil {
		return "", err
	}
	return signed + "." + encode(signature), nil
}

// verify checks an access token as Exchange does. The error is for the log: the client only ever sees 535.
func (d *Directory) verify(token string, now time.Time) (claims, error) {
	var c claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("not a JWT")
	}
	var header struct{ Alg, Kid string }
	var decoded [3][]byte
	for i, p := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil {
			return c, fmt.Errorf("part %d is not base64url", i+1)
		}
	}
	if err := json.Unmarshal(decoded[0], &header); err != nil || header.Alg != "RS256" || header.Kid != d.kid {
		return c, errors.New("not signed by RS256 with a known key")
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(&d.key.PublicKey, crypto.SHA256, digest[:], decoded[2]); err != nil {
		return c, errors.New("wrong signature")
	}
	if err := json.Unmarshal(decoded[1], &c); err != nil {
		return c, errors.New("claims are not JSON")
	}
	number, err := strconv.ParseInt(c.UTI, 10, 64)
	if err != nil {
		return c, errors.New("no token number")
	}
	d.mu.Lock()
	revoked := number <= d.revokedTo
	d.mu.Unlock()
	switch {
	case revoked:
		return c, errors.New("revoked")
	case c.Audience != exchangeAudience:
		return c, fmt.Errorf("audience is %s", c.Audience)
	case now.Unix() >= c.Expires:
		return c, errors.New("expired")
	case now.Unix() < c.NotBefore:
		return c, errors.New("not valid yet")
	case c.Issuer != issuer(c.TenantID):
		return c, errors.New("issuer is not the tenant's")
	case !slices.Contains(c.Roles, sendRole):
		return c, errors.New("no role " + sendRole)
	}
	return c, nil
}

// Authorize checks that the token's service principal may submit as the mailbox login, and returns both.
func (d *Directory) Authorize(token, login string, now time.Time) (Tenant, App, error) {
	c, err := d.verify(token, now)
	if err != nil {
		return Tenant{}, App{}, err
	}
	t, ok := d.tenant(c.TenantID)
	if !ok {
		return Tenant{}, App{}, errors.New("the token's tenant is gone")
	}
	a, ok := t.app(c.AppID)
	if !ok || a.ObjectID != c.ObjectID {
		return t, App{}, errors.New("the token's app has no such service principal here")
	}
	named := func(patterns []string) bool {
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return wire.Matches(p, login) })
	}
	if !wire.ValidAddress(login) || !named(t.Mailboxes) {
		return t, a, errors.New("no such mailbox")
	}
	if !named(a.Mailboxes) {
		return t, a, errors.New("the service principal has no access to the mailbox")
	}
	return t, a, nil
}
