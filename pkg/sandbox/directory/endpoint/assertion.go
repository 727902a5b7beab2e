package endpoint

import (
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/jwt"
	"relayd/pkg/sandbox/directory/refusal"
)

const (
	assertionType      = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523, 2.2
	federationAudience = "api://AzureADTokenExchange"
)

// authenticate finds out whether the client is who it says, by secret or assertion; a public one may come without.
func (e *Endpoint) authenticate(q *request) *refusal.Refusal {
	secret, assertion := q.form.get("client_secret"), q.form.get("client_assertion")
	switch {
	case assertion != "":
		q.acr = directory.ACRCertificate
		return e.checkAssertion(q, assertion)
	case secret == "" && q.app.Public && q.form.get("grant_type") != grantClient:
		q.acr = directory.ACRNone
		return nil
	case secret == "":
		return refusal.New(7000218)
	}
	q.acr = directory.ACRSecret
	switch {
	case q.app.Secret == "" && q.app.Public:
		return refusal.New(700025)
	case q.app.Secret == "" || subtle.ConstantTimeCompare([]byte(secret), []byte(q.app.Secret)) != 1:
		return refusal.New(7000215)
	case !q.app.SecretExpires.IsZero() && !time.Now().Before(q.app.SecretExpires):
		return refusal.New(7000222)
	}
	return nil
}

// assertion are the claims of a client assertion.
type assertion struct {
	Issuer    string       `json:"iss"`
	Subject   string       `json:"sub"`
	Audience  jwt.Audience `json:"aud"`
	ID        string       `json:"jti"`
	NotBefore int64        `json:"nbf"`
	Expires   int64        `json:"exp"`
}

// checkAssertion takes an assertion the app signed with a registered certificate, or the token of a federated issuer.
func (e *Endpoint) checkAssertion(q *request, text string) *refusal.Refusal {
	if kind := q.form.get("client_assertion_type"); kind != assertionType {
		return &refusal.Refusal{Number: 900144, Value: "client_assertion_type"}
	}
	token, err := jwt.Parse(text)
	var claims assertion
	if err == nil {
		err = token.Claims(&claims)
	}
	if err != nil {
		return &refusal.Refusal{Number: 50027, Value: err.Error() + "."}
	}
	if strings.EqualFold(claims.Issuer, q.app.ID) {
		return e.checkCertificate(q, token, claims)
	}
	return checkFederated(q, token, claims)
}

// checkCertificate checks an assertion of the app's own.
func (e *Endpoint) checkCertificate(q *request, token jwt.Token, claims assertion) *refusal.Refusal {
	key, named := certificateKey(q.app, token.Header)
	base := e.dir.Authority() + "/" + q.tenant.ID
	switch {
	case key == nil:
		return &refusal.Refusal{Number: 700027, Value: "The key was not found., Thumbprint of key used by client: '" + named + "'."}
	case token.Header.Algorithm != "PS256" && token.Header.Algorithm != "RS256" || !token.SignedBy(key):
		return &refusal.Refusal{Number: 700027, Value: "The provided signature value did not match the expected signature value."}
	case !strings.EqualFold(claims.Subject, q.app.ID):
		return refusal.New(700021)
	case !claims.Audience.Has(base+"/oauth2/v2.0/token", base+"/v2.0"):
		return refusal.New(700023)
	}
	if refused := inTime(claims); refused != nil {
		return refused
	}
	if claims.ID == "" {
		return &refusal.Refusal{Number: 50027, Value: "It has no jti."}
	}
	if !e.firstUse(q.app.ID+"/"+claims.ID, time.Unix(claims.Expires, 0)) {
		return &refusal.Refusal{Number: 50027, Value: "Its jti was used before."}
	}
	return nil
}

// certificateKey finds the certificate an assertion's header names by thumbprint, and returns the thumbprint named.
func certificateKey(app directory.App, header jwt.Header) (key crypto.PublicKey, named string) {
	named = header.SHA256
	for _, text := range app.Certificates {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue
		}
		digest := sha256.Sum256(certificate.Raw)
		if named != "" && named == base64.RawURLEncoding.EncodeToString(digest[:]) {
			return certificate.PublicKey, named
		}
	}
	return nil, named
}

func inTime(claims assertion) *refusal.Refusal {
	const skew = 5 * time.Minute // of the client's clock
	now := time.Now()
	if claims.Expires == 0 || now.Add(-skew).Unix() >= claims.Expires || now.Add(skew).Unix() < claims.NotBefore {
		return &refusal.Refusal{Number: 700024, Value: "Current time: " + now.UTC().Format(time.RFC3339) +
			", assertion valid from " + time.Unix(claims.NotBefore, 0).UTC().Format(time.RFC3339) +
			", expiry time of assertion " + time.Unix(claims.Expires, 0).UTC().Format(time.RFC3339) + "."}
	}
	return nil
}

// firstUse remembers an assertion until it expires and reports whether it is new.
func (e *Endpoint) firstUse(id string, expires time.Time) bool {
	const most = 10_000 // from here on what has expired is forgotten
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.assertions) >= most {
		for old, until := range e.assertions {
			if time.Since(until) > time.Hour {
				delete(e.assertions, old)
			}
		}
	}
	if _, seen := e.assertions[id]; seen {
		return false
	}
	e.assertions[id] = expires
	return true
}

// checkFederated checks the token of another issuer. Issuer, subject and audience compare letter by letter.
func checkFederated(q *request, token jwt.Token, claims assertion) *refusal.Refusal {
	candidates := slices.Clone(q.app.Federated)
	narrow := func(number int, value string, fits func(directory.FederatedIdentity) bool) *refusal.Refusal {
		candidates = slices.DeleteFunc(candidates, func(f directory.FederatedIdentity) bool { return !fits(f) })
		if len(candidates) == 0 {
			return &refusal.Refusal{Number: number, Value: value}
		}
		return nil
	}
	refused := narrow(700211, claims.Issuer, func(f directory.FederatedIdentity) bool { return f.Issuer == claims.Issuer })
	if refused == nil {
		refused = narrow(700213, claims.Subject, func(f directory.FederatedIdentity) bool { return f.Subject == claims.Subject })
	}
	if refused == nil {
		refused = narrow(700212, strings.Join(claims.Audience, ", "), func(f directory.FederatedIdentity) bool {
			wanted := f.Audience
			if wanted == "" {
				wanted = federationAudience
			}
			return claims.Audience.Has(wanted)
		})
	}
	if refused == nil {
		refused = narrow(5000811, token.Header.KeyID, func(f directory.FederatedIdentity) bool {
			keys, err := jwt.Keys(f.Key)
			return err == nil && slices.ContainsFunc(keys, func(k jwt.Key) bool {
				return (k.ID == "" || token.Header.KeyID == "" || k.ID == token.Header.KeyID) && token.SignedBy(k.Public)
			})
		})
	}
	if refused == nil {
		refused = inTime(claims)
	}
	return refused
}
