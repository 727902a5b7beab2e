// Package credential proves to Entra ID which application asks for a token: by its secret, by an assertion signed with its
// certificate's key, by the token of an issuer it trusts, or by the managed identity of the Azure machine it runs on.
//
// Nothing is kept: secret, certificate, token file and managed identity are asked for each request, so that what was rotated
// is taken up, and each assertion is made anew. No error quotes what was read; all are *status.Error.
package credential

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"relayd/pkg/status"
)

// Credential adds the client authentication (RFC 6749, section 2.3) to the form of a request to tokenURL. Errors are
// *status.Error.
type Credential func(ctx context.Context, tokenURL string, form url.Values) error

// assertionType says that client_assertion is a JWT (RFC 7523, section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// None is that of a public client, which has nothing to prove itself by.
func None() Credential { return func(context.Context, string, url.Values) error { return nil } }

// Secret is a client secret.
func Secret(read func() (string, error)) Credential {
	return func(_ context.Context, _ string, form url.Values) error {
		secret, err := read()
		if err == nil && secret == "" {
			err = errEmpty
		}
		if err != nil {
			return unreadable("client secret", "client_secret", err)
		}
		form.Set("client_secret", secret)
		return nil
	}
}

// Federated is a token that an issuer the application trusts (workload identity federation) has given, such as that of a
// Kubernetes service account, whose file the kubelet replaces well before it expires.
func Federated(read func() (string, error)) Credential {
	return func(_ context.Context, _ string, form url.Values) error {
		token, err := read()
		if token = strings.TrimSpace(token); err == nil && token == "" {
			err = errEmpty
		}
		if err != nil {
			return unreadable("federated token", "federated_token_file", err)
		}
		assert(form, token)
		return nil
	}
}

// The times of an assertion: Entra ID wants 5 to 10 minutes between nbf and exp. The minute before now is for a clock that is
// ahead of Entra ID's.
const (
	assertionBefore = time.Minute
	assertionAfter  = 8 * time.Minute
)

// Certificate signs an assertion for each request with the key of a certificate that is registered with the application
// clientID: PS256, the certificate named by x5t#S256 (RFC 7515, section 4.1.8). The key must be RSA; it need not be readable,
// only able to sign.
func Certificate(clientID string, read func() (tls.Certificate, error)) Credential {
	return func(_ context.Context, tokenURL string, form url.Values) error {
		pair, err := read()
		if err != nil {
			return unreadable("certificate", "certificate", err)
		}
		assertion, err := sign(pair, clientID, tokenURL, time.Now())
		if err != nil {
			return unreadable("certificate", "certificate", err)
		}
		assert(form, assertion)
		return nil
	}
}

func assert(form url.Values, token string) {
	form.Set("client_assertion_type", assertionType)
	form.Set("client_assertion", token)
}

// sign makes a client assertion (RFC 7523, section 3).
func sign(pair tls.Certificate, clientID, audience string, now time.Time) (string, error) {
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || len(pair.Certificate) == 0 {
		return "", errors.New("it has no certificate or no key that signs")
	}
	if _, ok := key.Public().(*rsa.PublicKey); !ok {
		return "", errors.New("its key is not RSA, and Entra ID takes no other")
	}
	thumbprint := sha256.Sum256(pair.Certificate[0])
	header, err := segment(map[string]any{"alg": "PS256", "typ": "JWT", "x5t#S256": base64.RawURLEncoding.EncodeToString(thumbprint[:])})
	if err != nil {
		return "", err
	}
	claims, err := segment(map[string]any{"aud": audience, "iss": clientID, "sub": clientID, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-assertionBefore).Unix(), "exp": now.Add(assertionAfter).Unix()})
	if err != nil {
		return "", err
	}
	signed := header + "." + claims
	digest := sha256.Sum256([]byte(signed))
	signature, err := key.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func segment(v map[string]any) (string, error) {
	b, err := json.Marshal(v)
	return base64.RawURLEncoding.EncodeToString(b), err
}

var errEmpty = errors.New("it is empty")

// unreadable says that what proves the application is not there. key is that of the configuration.
func unreadable(what, key string, err error) *status.Error {
	return &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageToken, Action: status.ParkTenant,
		Rule: "credential-unreadable", Text: "the " + what + " of the sender's tenant cannot be read",
		Cause:  "the " + what + " cannot be read, is empty, or is of no use",
		Advice: "See that what " + key + " of the tenant refers to exists, is complete and may be read by relayd",
		Err:    fmt.Errorf("read %s: %w", what, err)}
}
