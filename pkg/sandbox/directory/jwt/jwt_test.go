package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

func rsaTestKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func p256TestKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signed makes a token by hand, with any algorithm the key can be made to sign.
func signed(t testing.TB, key crypto.Signer, algorithm string) string {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"`+algorithm+`","kid":"k"}`)) + "." + encode([]byte(`{"sub":"s"}`))
	digest := sha256.Sum256([]byte(text))
	var signature []byte
	var err error
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		var r, s *big.Int
		if r, s, err = ecdsa.Sign(rand.Reader, key, digest[:]); err == nil {
			signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	case *rsa.PrivateKey:
		if algorithm == "PS256" {
			signature, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: 32})
		} else {
			signature, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + encode(signature)
}

// A signature counts for its own key, by the algorithm that belongs to the key.
func TestSignedBy(t *testing.T) {
	one, other, curve := rsaTestKey(t), rsaTestKey(t), p256TestKey(t)
	for _, test := range []struct {
		signer    crypto.Signer
		algorithm string
		key       crypto.PublicKey
		want      bool
	}{
		{one, "RS256", &one.PublicKey, true},
		{one, "PS256", &one.PublicKey, true},
		{curve, "ES256", &curve.PublicKey, true},
		{one, "RS256", &other.PublicKey, false},
		{one, "PS256", &other.PublicKey, false},
		{curve, "ES256", &p256TestKey(t).PublicKey, false},
		{one, "RS256", &curve.PublicKey, false},
		{curve, "ES256", &one.PublicKey, false},
		{one, "ES256", &one.PublicKey, false},
		{one, "none", &one.PublicKey, false},
		{one, "HS256", &one.PublicKey, false},
		{one, "RS256", nil, false},
	} {
		token, err := Parse(signed(t, test.signer, test.algorithm))
		if err != nil {
			t.Fatal(err)
		}
		if got := token.SignedBy(test.key); got != test.want {
			t.Errorf("%T by %s for %T: got %v", test.signer, test.algorithm, test.key, got)
		}
	}
	pkcs := strings.Split(signed(t, one, "RS256"), ".")
	pss := strings.Split(signed(t, one, "PS256"), ".")
	if token, err := Parse(pss[0] + "." + pss[1] + "." + pkcs[2]); err != nil || token.SignedBy(&one.PublicKey) {
		t.Errorf("another padding than the header's: %v", err)
	}
}

func TestSign(t *testing.T) {
	key := rsaTestKey(t)
	text, err := Sign(key, "id", map[string]any{"aud": []string{"a", "b"}, "n": 1})
	if err != nil {
		t.Fatal(err)
	}
	token, err := Parse(text)
	if err != nil || !token.SignedBy(&key.PublicKey) || token.Header != (Header{Algorithm: "RS256", Type: "JWT", KeyID: "id", Thumbprint: "id"}) {
		t.Fatalf("got %+v, %v", token.Header, err)
	}
	var claims struct {
		Audience Audience `json:"aud"`
		N        int      `json:"n"`
	}
	if err := token.Claims(&claims); err != nil || claims.N != 1 || !claims.Audience.Has("x", "b") || claims.Audience.Has("c") {
		t.Errorf("got %+v, %v", claims, err)
	}
	if _, err := Sign(key, "id", func() {}); err == nil {
		t.Error("claims that are no JSON were signed")
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"": "not a JWT", "a.b": "not a JWT", "e30.e30.e30.e30": "not a JWT", "e30=.e30.": "part 1 is not base64url",
		"e30.?.": "part 2 is not base64url", "e30.e30.e3": "part 3 is not base64url", "W10.e30.": "the header is not JSON",
	} {
		if _, err := Parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	token, err := Parse("e30.W10.")
	if err != nil {
		t.Fatal(err)
	}
	var claims struct{ Aud string }
	if err := token.Claims(&claims); err == nil {
		t.Error("a list was read as claims")
	}
}

func TestAudience(t *testing.T) {
	for text, want := range map[string]string{`"a"`: "[a]", `["a","b"]`: "[a b]", `[]`: "[]", `1`: "error", `[1]`: "error"} {
		var a Audience
		got := "error"
		if err := json.Unmarshal([]byte(text), &a); err == nil {
			got = fmt.Sprint([]string(a))
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// set writes keys as a JSON Web Key Set.
func set(keys ...map[string]string) string {
	data, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		panic(err)
	}
	return string(data)
}

func TestKeys(t *testing.T) {
	rsaKey, curve := &rsaTestKey(t).PublicKey, &p256TestKey(t).PublicKey
	encode := base64.RawURLEncoding.EncodeToString
	point, err := curve.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	one := map[string]string{"kty": "RSA", "kid": "1", "n": encode(rsaKey.N.Bytes()), "e": "AQAB"}
	two := map[string]string{"kty": "EC", "kid": "2", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:])}
	der, err := x509.MarshalPKIXPublicKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	block := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	for text, want := range map[string][]crypto.PublicKey{
		set(one, two, map[string]string{"kty": "oct"}): {rsaKey, curve},
		" \n" + set(two): {curve},
		block:            {curve},
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + block: {curve},
	} {
		keys, err := Keys(text)
		if err != nil || len(keys) != len(want) {
			t.Errorf("%.40s: got %v, %v", text, keys, err)
			continue
		}
		for i, k := range keys {
			if !k.Public.(interface{ Equal(crypto.PublicKey) bool }).Equal(want[i]) {
				t.Errorf("%.40s: key %d differs", text, i)
			}
		}
	}
	short, far := map[string]string{"kty": "RSA", "n": "AQAB", "e": "AQAB"}, map[string]string{"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}
	for _, text := range []string{
		"", "{", "{}", set(), set(map[string]string{"kty": "oct"}), set(short), set(far),
		set(map[string]string{"kty": "RSA", "n": "?", "e": "AQAB"}), set(map[string]string{"kty": "RSA", "n": one["n"], "e": "?"}),
		set(map[string]string{"kty": "RSA", "n": one["n"], "e": "AQ"}), set(map[string]string{"kty": "EC", "crv": "P-256", "x": "?", "y": "AQ"}),
		set(map[string]string{"kty": "EC", "crv": "P-256", "x": one["n"], "y": "AQ"}),
		"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		if keys, err := Keys(text); err == nil {
			t.Errorf("%.60q: got %v", text, keys)
		}
	}
}

func FuzzParse(f *testing.F) {
	key := rsaTestKey(f)
	good := signed(f, key, "RS256")
	f.Add(good)
	f.Add("e30.e30.")
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := Parse(text)
		if err == nil && token.SignedBy(&key.PublicKey) && text != good {
			t.Errorf("%q passes for signed", text)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add(set(map[string]string{"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}))
	f.Add(set(map[string]string{"kty": "RSA", "n": "AQAB", "e": "AQAB"}))
	f.Add("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := Keys(text)
		if (err == nil) != (len(keys) > 0) {
			t.Errorf("%d keys and %v", len(keys), err)
		}
		token, parseErr := Parse("eyJhbGciOiJSUzI1NiJ9.e30.AAAA")
		if parseErr != nil {
			t.Fatal(parseErr)
		}
		for _, k := range keys {
			if token.SignedBy(k.Public) {
				t.Errorf("a key of %q made a signature of nothing", text)
			}
		}
	})
}
