package sandbox_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"relayd/pkg/sandbox"
)

// signer is a client's key with its certificate.
type signer struct {
	t   *testing.T
	key *rsa.PrivateKey
	der []byte
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relayd"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{t, key, der}
}

func (s *signer) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.der}))
}

// sign makes a PS256 assertion of claims; a header may be given in the place of the right one.
func (s *signer) sign(claims map[string]any, header ...map[string]any) string {
	s.t.Helper()
	digest := sha256.Sum256(s.der)
	encode := base64.RawURLEncoding.EncodeToString
	head := map[string]any{"alg": "PS256", "typ": "JWT", "x5t#S256": encode(digest[:])}
	if len(header) > 0 {
		head = header[0]
	}
	var parts []string
	for _, v := range []any{head, claims} {
		data, err := json.Marshal(v)
		if err != nil {
			s.t.Fatal(err)
		}
		parts = append(parts, encode(data))
	}
	text := strings.Join(parts, ".")
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPSS(rand.Reader, s.key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	if err != nil {
		s.t.Fatal(err)
	}
	return text + "." + encode(signature)
}

func asserting(assertion string) url.Values {
	form := credentials()
	form.Del("client_secret")
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", assertion)
	return form
}

func TestCertificateAssertion(t *testing.T) {
	known, unknown := newSigner(t), newSigner(t)
	tenant := contoso()
	tenant.Apps[0].Secret, tenant.Apps[0].Certificates = "", []string{"no PEM", newSigner(t).pem(), known.pem()}
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{tenant}})
	now := time.Now().Unix()
	number := 0
	claims := func(change ...any) map[string]any {
		number++
		c := map[string]any{
			"iss": clientID, "sub": clientID, "aud": b.Authority() + "/" + tenantID + "/oauth2/v2.0/token",
			"jti": fmt.Sprint(number), "nbf": now, "exp": now + 600,
		}
		for i := 0; i < len(change); i += 2 {
			c[change[i].(string)] = change[i+1]
		}
		return c
	}
	good := known.sign(claims())
	resp, a := askToken(t, b, tenantID, asserting(good))
	if resp.StatusCode != 200 || claimsOf(t, a.Token)["appidacr"] != "2" {
		t.Fatalf("%s %+v", resp.Status, a)
	}
	if got := dial(t, b).secure().auth("app@contoso.com", a.Token); !strings.HasPrefix(got, "235") {
		t.Errorf("Exchange: %s", got)
	}
	thumbprint := func() string {
		digest := sha256.Sum256(known.der)
		return base64.RawURLEncoding.EncodeToString(digest[:])
	}()
	for name, test := range map[string]struct {
		assertion string
		number    int
	}{
		"replayed":             {good, 50027},
		"no jti":               {known.sign(claims("jti", "")), 50027},
		"not a JWT":            {"a.b", 50027},
		"no claims":            {"e30.W10.", 50027},
		"another's key":        {unknown.sign(claims()), 700027},
		"another's, my name":   {unknown.sign(claims(), map[string]any{"alg": "PS256", "x5t#S256": thumbprint}), 700027},
		"no thumbprint":        {known.sign(claims(), map[string]any{"alg": "PS256"}), 700027},
		"an algorithm of none": {known.sign(claims(), map[string]any{"alg": "none", "x5t#S256": thumbprint}), 700027},
		"another padding":      {known.sign(claims(), map[string]any{"alg": "RS256", "x5t#S256": thumbprint}), 700027},
		"another subject":      {known.sign(claims("sub", "other")), 700021},
		"another audience":     {known.sign(claims("aud", "https://login.example/")), 700023},
		"expired":              {known.sign(claims("exp", now-301)), 700024},
		"not yet":              {known.sign(claims("nbf", now+310)), 700024},
		"for ever":             {known.sign(claims("exp", 0)), 700024},
		"no such federation":   {known.sign(claims("iss", "https://k8s.example")), 700211},
	} {
		resp, a := askToken(t, b, tenantID, asserting(test.assertion))
		if resp.StatusCode != 401 || a.Error != "invalid_client" || len(a.Codes) != 1 || a.Codes[0] != test.number {
			t.Errorf("%s: got %s %+v, want %d", name, resp.Status, a, test.number)
		}
	}
	for name, ok := range map[string]string{
		"the issuer as audience": known.sign(claims("aud", []string{b.Authority() + "/" + tenantID + "/v2.0"})),
		"a clock ahead":          known.sign(claims("nbf", now+250)), "a clock behind": known.sign(claims("exp", now-250)),
	} {
		if resp, a := askToken(t, b, tenantID, asserting(ok)); resp.StatusCode != 200 {
			t.Errorf("%s: got %s %+v", name, resp.Status, a)
		}
	}
	form := asserting(known.sign(claims()))
	form.Del("client_assertion_type")
	if _, a := askToken(t, b, tenantID, form); a.Codes[0] != 900144 {
		t.Errorf("no type: got %+v", a)
	}
	if _, a := askToken(t, b, tenantID, credentials()); a.Codes[0] != 7000215 {
		t.Errorf("a secret for an app that has none: got %+v", a)
	}
}

func TestFederatedAssertion(t *testing.T) {
	cluster, other := newSigner(t), newSigner(t)
	encode := base64.RawURLEncoding.EncodeToString
	keys, err := json.Marshal(map[string]any{"keys": []map[string]string{
		{"kty": "RSA", "kid": "k1", "n": encode(cluster.key.N.Bytes()), "e": "AQAB"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	tenant := contoso()
	tenant.Apps[0].Secret = ""
	tenant.Apps[0].Federated = []sandbox.Federated{
		{Issuer: "https://k8s.example", Subject: "system:serviceaccount:mail:relayd", Key: string(keys)},
		{Issuer: "https://ci.example", Subject: "repo:x", Audience: "own", Key: cluster.pem()},
	}
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{tenant}})
	now := time.Now().Unix()
	claims := func(change ...any) map[string]any {
		c := map[string]any{
			"iss": "https://k8s.example", "sub": "system:serviceaccount:mail:relayd", "aud": []string{"api://AzureADTokenExchange"},
			"nbf": now, "exp": now + 3600,
		}
		for i := 0; i < len(change); i += 2 {
			c[change[i].(string)] = change[i+1]
		}
		return c
	}
	header := map[string]any{"alg": "PS256", "kid": "k1"}
	good := cluster.sign(claims(), header)
	for range 2 { // a projected token is presented as often as one likes
		if resp, a := askToken(t, b, tenantID, asserting(good)); resp.StatusCode != 200 {
			t.Fatalf("%s %+v", resp.Status, a)
		}
	}
	if resp, a := askToken(t, b, tenantID, asserting(cluster.sign(claims("iss", "https://ci.example", "sub", "repo:x", "aud", "own")))); resp.StatusCode != 200 {
		t.Errorf("by certificate: %s %+v", resp.Status, a)
	}
	for name, test := range map[string]struct {
		assertion string
		number    int
	}{
		"issuer":   {cluster.sign(claims("iss", "https://k8s.example/"), header), 700211},
		"subject":  {cluster.sign(claims("sub", "system:serviceaccount:mail:Relayd"), header), 700213},
		"audience": {cluster.sign(claims("aud", "https://k8s.example"), header), 700212},
		"key":      {other.sign(claims(), header), 5000811},
		"key id":   {cluster.sign(claims(), map[string]any{"alg": "PS256", "kid": "k2"}), 5000811},
		"expired":  {cluster.sign(claims("exp", now-301), header), 700024},
	} {
		if _, a := askToken(t, b, tenantID, asserting(test.assertion)); len(a.Codes) != 1 || a.Codes[0] != test.number || a.Error != "invalid_client" {
			t.Errorf("%s: got %+v, want %d", name, a, test.number)
		}
	}
}

// HTTP Basic is as good as the form (RFC 6749, 2.3.1).
func TestBasicAuthentication(t *testing.T) {
	b := start(t, sandbox.Options{})
	form := credentials()
	form.Del("client_id")
	form.Del("client_secret")
	for password, want := range map[string]int{url.QueryEscape(secret): 200, "wrong": 401, "%zz": 401} {
		req, err := http.NewRequest("POST", b.Authority()+"/"+tenantID+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(clientID, password)
		resp, err := web(t, b).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: got %s", password, resp.Status)
		}
	}
}

func TestManagedIdentity(t *testing.T) {
	tenant := contoso()
	tenant.Apps = []sandbox.App{
		{ID: clientID, Secret: secret}, {ID: "vm", ManagedIdentity: "system"}, {ID: "assigned", ManagedIdentity: "user"},
	}
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{tenant}})
	get := func(query, metadata, forwarded string) (int, map[string]string) {
		t.Helper()
		req, err := http.NewRequest("GET", "http://"+b.HTTPAddr()+"/metadata/identity/oauth2/token?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Metadata", metadata)
		if forwarded != "" {
			req.Header.Set("X-Forwarded-For", forwarded)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer map[string]string // all of them are strings, expires_in too
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, answer
	}
	const good = "api-version=2018-02-01&resource=https://outlook.office365.com"
	for query, want := range map[string]string{good: "vm", good + "/&client_id=assigned": "assigned"} {
		status, a := get(query, "true", "")
		if status != 200 || a["client_id"] != want || a["token_type"] != "Bearer" || len(a["expires_in"]) != 4 || len(a["expires_on"]) != 10 {
			t.Fatalf("%s: got %d %v", query, status, a)
		}
		if got := dial(t, b).secure().auth("app@contoso.com", a["access_token"]); !strings.HasPrefix(got, "235") {
			t.Errorf("%s: Exchange: %s", query, got)
		}
	}
	for _, test := range []struct{ query, metadata, forwarded, want string }{
		{good, "", "", "Required metadata header not specified"},
		{good, "true", "10.0.0.1", "A forwarded request is not answered"},
		{"resource=https://outlook.office365.com", "true", "", "'api-version' is missing"},
		{"api-version=2017-09-01&resource=https://outlook.office365.com", "true", "", "not supported"},
		{"api-version=2018-02-01", "true", "", "'resource' is missing"},
		{"api-version=2018-02-01&resource=https://vault.azure.net", "true", "", "AADSTS500011"},
		{good + "&client_id=" + clientID, "true", "", "Identity not found"},
		{good + "&client_id=nobody", "true", "", "Identity not found"},
	} {
		if status, a := get(test.query, test.metadata, test.forwarded); status != 400 || !strings.Contains(a["error_description"], test.want) {
			t.Errorf("%s: got %d %v, want %s", test.query, status, a, test.want)
		}
	}
	stats := b.Stats()
	if stats.TokenRequests["managed_identity"] != 10 || stats.TokensGranted["managed_identity"] != 2 {
		t.Errorf("counted %v, %v", stats.TokenRequests, stats.TokensGranted)
	}
}
