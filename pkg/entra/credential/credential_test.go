package credential

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/status"
)

const tokenURL = "https://login.microsoftonline.com/0000/oauth2/v2.0/token"

func pair(t *testing.T, key crypto.Signer) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func decode(t *testing.T, segment string) map[string]any {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(segment)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAssertion(t *testing.T) {
	key := rsaKey(t)
	certificate := pair(t, key)
	synctest.Test(t, func(t *testing.T) { // fake time: to the second
		c := Certificate("app", func() (tls.Certificate, error) { return certificate, nil })
		seen := map[any]bool{}
		for range 3 {
			form := url.Values{}
			if err := c(t.Context(), tokenURL, form); err != nil {
				t.Fatal(err)
			}
			if got := form.Get("client_assertion_type"); got != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || form.Has("client_secret") {
				t.Errorf("got type %q in %v", got, form)
			}
			parts := strings.Split(form.Get("client_assertion"), ".")
			if len(parts) != 3 {
				t.Fatalf("got %d parts", len(parts))
			}
			thumbprint := sha256.Sum256(certificate.Certificate[0])
			header := decode(t, parts[0])
			if len(header) != 3 || header["alg"] != "PS256" || header["typ"] != "JWT" ||
				header["x5t#S256"] != base64.RawURLEncoding.EncodeToString(thumbprint[:]) {
				t.Errorf("got header %v", header)
			}
			claims := decode(t, parts[1])
			if claims["aud"] != tokenURL || claims["iss"] != "app" || claims["sub"] != "app" {
				t.Errorf("got claims %v", claims)
			}
			before, after := claims["nbf"].(float64), claims["exp"].(float64)
			now := float64(time.Now().Unix())
			if before > now || after-now < 300 || after-before > 600 {
				t.Errorf("valid from %+.0f s to %+.0f s: want from now or before, for 5 to 10 minutes", before-now, after-now)
			}
			if seen[claims["jti"]] || len(fmt.Sprint(claims["jti"])) < 20 {
				t.Errorf("jti %v: seen before, or to be guessed", claims["jti"])
			}
			seen[claims["jti"]] = true
			signature, err := base64.RawURLEncoding.DecodeString(parts[2])
			if err != nil {
				t.Fatal(err)
			}
			digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
			if err := rsa.VerifyPSS(&key.PublicKey, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: 32}); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestUnreadable(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wrong := pair(t, ec)
	tests := map[string]Credential{
		"no secret":       Secret(func() (string, error) { return "", os.ErrNotExist }),
		"empty secret":    Secret(func() (string, error) { return "", nil }),
		"no certificate":  Certificate("app", func() (tls.Certificate, error) { return tls.Certificate{}, os.ErrNotExist }),
		"no key":          Certificate("app", func() (tls.Certificate, error) { return tls.Certificate{}, nil }),
		"no RSA key":      Certificate("app", func() (tls.Certificate, error) { return wrong, nil }),
		"no token file":   Federated(func() (string, error) { return "", os.ErrNotExist }),
		"blank token":     Federated(func() (string, error) { return " \n", nil }),
		"no such address": (&Machine{ID: "system", Getenv: func(string) string { return "::" }}).Federated("x"),
	}
	for name, c := range tests {
		form := url.Values{}
		err := c(t.Context(), tokenURL, form)
		e, ok := errors.AsType[*status.Error](err)
		if !ok || e.Action != status.ParkTenant || e.Stage != status.StageToken || e.Cause == "" || e.Advice == "" || len(form) != 0 {
			t.Errorf("%s: got %v, form %v", name, err, form)
		}
	}
}

func TestSecretAndFederatedTokenAreReadEachTime(t *testing.T) {
	n := 0
	read := func() (string, error) { n++; return fmt.Sprintf("value-%d\n", n), nil }
	for name, want := range map[string][]string{"secret": {"value-1\n", "value-2\n"}, "token": {"value-1", "value-2"}} {
		n = 0
		c, field := Secret(read), "client_secret"
		if name == "token" {
			c, field = Federated(read), "client_assertion"
		}
		for _, w := range want {
			form := url.Values{}
			if err := c(t.Context(), tokenURL, form); err != nil || form.Get(field) != w {
				t.Errorf("%s: got %v, %v, want %q", name, form, err, w)
			}
			if got := form.Get("client_assertion_type"); (got == assertionType) != (name == "token") {
				t.Errorf("%s: got assertion type %q", name, got)
			}
		}
	}
	form := url.Values{}
	if err := None()(t.Context(), tokenURL, form); err != nil || len(form) != 0 {
		t.Errorf("a public client: %v, %v", form, err)
	}
}

// machine returns the managed identity that server gives, with more in its environment.
func machine(server *httptest.Server, id string, environment map[string]string) *Machine {
	return &Machine{ID: id, Client: server.Client(), Getenv: func(name string) string {
		if name == "AZURE_POD_IDENTITY_AUTHORITY_HOST" {
			return server.URL + "/"
		}
		return strings.ReplaceAll(environment[name], "SERVER", server.URL)
	}}
}

func TestMachine(t *testing.T) {
	app := map[string]string{"IDENTITY_ENDPOINT": "SERVER/msi/token", "IDENTITY_HEADER": "s3cr3t"}
	tests := []struct {
		name, id    string
		environment map[string]string
		path        string
		header      [2]string
	}{
		{"virtual machine", "system", nil, "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=api%3A%2F%2FX", [2]string{"Metadata", "true"}},
		{"user-assigned", "1111", nil, "/metadata/identity/oauth2/token?api-version=2018-02-01&client_id=1111&resource=api%3A%2F%2FX", [2]string{"Metadata", "true"}},
		{"app", "system", app, "/msi/token?api-version=2019-08-01&resource=api%3A%2F%2FX", [2]string{"X-IDENTITY-HEADER", "s3cr3t"}},
		{"an endpoint without its header is another's", "system", map[string]string{"IDENTITY_ENDPOINT": "SERVER/msi/token"},
			"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=api%3A%2F%2FX", [2]string{"Metadata", "true"}},
	}
	for _, tt := range tests {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || r.URL.String() != tt.path || r.Header.Get(tt.header[0]) != tt.header[1] {
				t.Errorf("%s: got %s %s, %v, want %s", tt.name, r.Method, r.URL, r.Header, tt.path)
			}
			fmt.Fprint(w, `{"access_token":"mi-token","expires_in":"3599","expires_on":"1","token_type":"Bearer","resource":"x"}`)
		}))
		m := machine(server, tt.id, tt.environment)
		form := url.Values{}
		if err := m.Federated("api://X")(t.Context(), tokenURL, form); err != nil || form.Get("client_assertion") != "mi-token" {
			t.Errorf("%s: got %v, %v", tt.name, form, err)
		}
		tok, err := m.Token(t.Context(), "api://X")
		if left := time.Until(tok.Expiry); err != nil || tok.AccessToken != "mi-token" || left < 3500*time.Second || left > 3600*time.Second {
			t.Errorf("%s: got %v, %v", tt.name, tok, err)
		}
		server.Close()
	}
	if r, err := (&Machine{ID: "system", Getenv: func(string) string { return "" }}).request(t.Context(), "x"); err != nil || r.URL.Host != "169.254.169.254" {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestMachineRefuses(t *testing.T) {
	tests := []struct {
		code   int
		body   string
		action status.Action
	}{
		{400, `{"error":"invalid_request","error_description":"Identity not found"}`, status.ParkTenant},
		{403, `s3cr3t`, status.ParkTenant},
		{404, ``, status.Retry}, {410, ``, status.Retry}, {429, ``, status.Retry}, {500, `{"error":"s3cr3t!"}`, status.Retry},
		{200, `{}`, status.Retry}, {200, `<html>s3cr3t`, status.Retry}, {307, ``, status.ParkTenant},
	}
	for _, tt := range tests {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tt.code)
			fmt.Fprint(w, tt.body)
		}))
		_, err := machine(server, "system", map[string]string{"IDENTITY_ENDPOINT": "SERVER/msi", "IDENTITY_HEADER": "s3cr3t"}).Token(t.Context(), "x")
		e, ok := errors.AsType[*status.Error](err)
		if !ok || e.Action != tt.action || e.Rule == "" || e.Advice == "" || strings.Contains(fmt.Sprintf("%+v %v", e, e.Err), "s3cr3t") {
			t.Errorf("HTTP %d %s: got %+v", tt.code, tt.body, err)
		}
		server.Close()
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	if _, err := machine(gone, "system", nil).Token(context.Background(), "x"); status.From(err).Action != status.Retry || err == nil {
		t.Errorf("nobody there: got %v", err)
	}
}

// FuzzAnswer: whatever the machine answers, there is a token or an error, and a token of this time.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"access_token":"x","expires_in":"3599"}`))
	f.Add([]byte(`{"access_token":"x","expires_on":1790000000}`))
	f.Add([]byte(`{"access_token":"x","expires_in":-1,"expires_on":"99999999999999999999"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		tok, err := answer(body, time.Now())
		if (tok == nil) == (err == nil) || tok != nil && tok.AccessToken == "" {
			t.Errorf("got %v, %v", tok, err)
		}
	})
}
