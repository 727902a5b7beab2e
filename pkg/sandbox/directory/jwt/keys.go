package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// Key is a public key of a set; ID may be empty.
type Key struct {
	ID     string
	Public crypto.PublicKey
}

// Keys reads public keys: PEM blocks (PUBLIC KEY or CERTIFICATE), or a JSON Web Key Set (RFC 7517, 5) of RSA and P-256 keys.
// Keys of another kind in a set are left out; no key at all is an error.
func Keys(text string) ([]Key, error) {
	keys, err := keysOf(text)
	if err == nil && len(keys) == 0 {
		err = errors.New("there is no public key in it")
	}
	return keys, err
}

func keysOf(text string) ([]Key, error) {
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		return readSet([]byte(text))
	}
	var keys []Key
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return keys, nil
		}
		var public crypto.PublicKey
		var err error
		switch block.Type {
		case "PUBLIC KEY":
			public, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "CERTIFICATE":
			var certificate *x509.Certificate
			if certificate, err = x509.ParseCertificate(block.Bytes); err == nil {
				public = certificate.PublicKey
			}
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a %s: %w", block.Type, err)
		}
		keys = append(keys, Key{Public: public})
	}
}

func readSet(data []byte) ([]Key, error) {
	var set struct {
		Keys []struct {
			KeyType string `json:"kty"`
			ID      string `json:"kid"`
			Curve   string `json:"crv"`
			N       string `json:"n"`
			E       string `json:"e"`
			X       string `json:"x"`
			Y       string `json:"y"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("read a key set: %w", err)
	}
	var keys []Key
	for _, k := range set.Keys {
		var public crypto.PublicKey
		var err error
		switch {
		case k.KeyType == "RSA":
			public, err = rsaKey(k.N, k.E)
		case k.KeyType == "EC" && k.Curve == "P-256":
			public, err = p256Key(k.X, k.Y)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read key %q of a set: %w", k.ID, err)
		}
		keys = append(keys, Key{k.ID, public})
	}
	return keys, nil
}

func number(s string) (*big.Int, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, errors.New("a number is not base64url")
	}
	return new(big.Int).SetBytes(b), nil
}

func rsaKey(modulus, exponent string) (*rsa.PublicKey, error) {
	n, err := number(modulus)
	if err != nil {
		return nil, err
	}
	e, err := number(exponent)
	if err != nil {
		return nil, err
	}
	const least, most = 1024, 8192 // bits
	if n.BitLen() < least || n.BitLen() > most || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
		return nil, errors.New("the numbers are no RSA key")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

func p256Key(x, y string) (*ecdsa.PublicKey, error) {
	const size = 32
	raw := []byte{4} // an uncompressed point (SEC 1, 2.3.4)
	for _, s := range []string{x, y} {
		n, err := number(s)
		if err != nil {
			return nil, err
		}
		if n.BitLen() > 8*size {
			return nil, errors.New("a coordinate is too long")
		}
		raw = append(raw, n.FillBytes(make([]byte, size))...)
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
}
