// Package jwt reads, checks and signs JSON Web Tokens (RFC 7519) in the compact form, with the algorithms Entra ID uses or
// takes: RS256, PS256 and ES256 (RFC 7518, 3.1).
package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// Header is what a token says about its own signature.
type Header struct {
	Algorithm  string `json:"alg"`
	Type       string `json:"typ,omitempty"`
	KeyID      string `json:"kid,omitempty"`
	Thumbprint string `json:"x5t,omitempty"`      // of the certificate, SHA-1, base64url
	SHA256     string `json:"x5t#S256,omitempty"` // of the certificate, SHA-256, base64url
}

// Token is a token taken apart and not yet checked.
type Token struct {
	Header    Header
	payload   []byte
	signed    string
	signature []byte
}

// Parse takes a token apart. It checks the form and nothing else; the error names no content.
func Parse(s string) (Token, error) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return Token{}, errors.New("not a JWT")
	}
	var decoded [3][]byte
	for i, p := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil {
			return Token{}, fmt.Errorf("part %d is not base64url", i+1)
		}
	}
	t := Token{payload: decoded[1], signed: parts[0] + "." + parts[1], signature: decoded[2]}
	if err := json.Unmarshal(decoded[0], &t.Header); err != nil {
		return Token{}, errors.New("the header is not JSON")
	}
	return t, nil
}

// Claims decodes the payload into out.
func (t Token) Claims(out any) error {
	if err := json.Unmarshal(t.payload, out); err != nil {
		return errors.New("claims are not JSON")
	}
	return nil
}

// SignedBy reports whether the key made the signature by the algorithm the header names. A key of another kind than the
// algorithm's has not.
func (t Token) SignedBy(key crypto.PublicKey) bool {
	digest := sha256.Sum256([]byte(t.signed))
	switch key := key.(type) {
	case *rsa.PublicKey:
		switch t.Header.Algorithm {
		case "RS256":
			return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], t.signature) == nil
		case "PS256": // the salt is as long as the hash (RFC 7518, 3.5)
			pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
			return rsa.VerifyPSS(key, crypto.SHA256, digest[:], t.signature, pss) == nil
		}
	case *ecdsa.PublicKey:
		const half = 32 // of a P-256 signature (RFC 7518, 3.4)
		if t.Header.Algorithm == "ES256" && key.Params().BitSize == 8*half && len(t.signature) == 2*half {
			r, s := new(big.Int).SetBytes(t.signature[:half]), new(big.Int).SetBytes(t.signature[half:])
			return ecdsa.Verify(key, digest[:], r, s)
		}
	}
	return false
}

// Sign makes an RS256 token whose key id and thumbprint are kid.
func Sign(key *rsa.PrivateKey, kid string, claims any) (string, error) {
	header, err := json.Marshal(Header{Type: "JWT", Algorithm: "RS256", KeyID: kid, Thumbprint: kid})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		return "", err
	}
	return signed + "." + encode(signature), nil
}

// Audience is the claim aud, which is one string or a list (RFC 7519, 4.1.3).
type Audience []string

// UnmarshalJSON reads both forms.
func (a *Audience) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = Audience{one}
		return nil
	}
	var many []string
	err := json.Unmarshal(data, &many)
	*a = many
	return err
}

// Has reports whether one of the audiences is among wanted.
func (a Audience) Has(wanted ...string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(wanted, s) })
}
