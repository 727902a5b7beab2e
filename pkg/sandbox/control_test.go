package sandbox_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"relayd/pkg/sandbox"
)

func TestTokenEndpoint(t *testing.T) {
	b := start(t, sandbox.Options{})
	resp, a := askToken(t, b, tenantID, credentials())
	if resp.StatusCode != 200 || a.Type != "Bearer" || a.ExpiresIn < 3600 || a.ExpiresIn > 5400 ||
		!strings.Contains(resp.Header.Get("Cache-Control"), "no-store") || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		t.Fatalf("got %s %+v", resp.Status, a)
	}
	c := dial(t, b).secure()
	if got := c.auth("app@contoso.com", a.Token); !strings.HasPrefix(got, "235") {
		t.Errorf("the token is not good for Exchange: %q", got)
	}

	// The token is checked here against the published key, by hand.
	var meta struct {
		Issuer        string `json:"issuer"`
		TokenEndpoint string `json:"token_endpoint"`
		JWKS          string `json:"jwks_uri"`
	}
	call(t, b, "GET", "/"+tenantID+"/v2.0/.well-known/openid-configuration", "", 200, &meta)
	if meta.Issuer != b.Authority()+"/"+tenantID+"/v2.0" || meta.TokenEndpoint != b.Authority()+"/"+tenantID+"/oauth2/v2.0/token" {
		t.Errorf("metadata %+v", meta)
	}
	var set struct {
		Keys []struct{ Kid, Kty, N, E string }
	}
	call(t, b, "GET", strings.TrimPrefix(meta.JWKS, b.Authority()), "", 200, &set)
	parts := strings.Split(a.Token, ".")
	decode := func(s string) []byte {
		data, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var header struct{ Alg, Kid, Typ string }
	if err := json.Unmarshal(decode(parts[0]), &header); err != nil || header.Alg != "RS256" || header.Typ != "JWT" || header.Kid != set.Keys[0].Kid {
		t.Errorf("header %+v, keys %+v, %v", header, set, err)
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(decode(set.Keys[0].N)), E: int(new(big.Int).SetBytes(decode(set.Keys[0].E)).Int64())}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], decode(parts[2])); err != nil {
		t.Errorf("signature: %v", err)
	}
	var claims struct {
		Aud, Iss, Appid, Tid, Oid, Sub, Ver string
		Roles                               []string
		Iat, Nbf, Exp                       int64
	}
	if err := json.Unmarshal(decode(parts[1]), &claims); err != nil {
		t.Fatal(err)
	}
	life := time.Until(time.Unix(claims.Exp, 0))
	if claims.Aud != "https://outlook.office365.com" || claims.Iss != "https://sts.windows.net/"+tenantID+"/" || claims.Appid != clientID ||
		claims.Tid != tenantID || claims.Oid == "" || claims.Sub != claims.Oid || claims.Ver != "1.0" || fmt.Sprint(claims.Roles) != "[SMTP.SendAsApp]" ||
		claims.Nbf > time.Now().Unix() || claims.Iat != claims.Nbf || life < 59*time.Minute || life > 90*time.Minute {
		t.Errorf("claims %+v", claims)
	}
}

func TestTokenLifetime(t *testing.T) {
	b := start(t, sandbox.Options{TokenLifetimeMin: 90 * time.Second, TokenLifetimeMax: 100 * time.Second})
	seen := make(map[int]bool)
	for range 40 {
		_, a := askToken(t, b, tenantID, credentials())
		if a.ExpiresIn < 90 || a.ExpiresIn > 100 {
			t.Fatalf("expires_in %d", a.ExpiresIn)
		}
		seen[a.ExpiresIn] = true
	}
	if len(seen) < 3 {
		t.Errorf("40 tokens had only the lifetimes %v", seen)
	}
	if _, err := sandbox.New(sandbox.Options{TokenLifetimeMin: time.Hour, TokenLifetimeMax: time.Minute}); err == nil {
		t.Error("a lifetime range upside down was accepted")
	}
}

func TestTokenRefusals(t *testing.T) {
	tenant := contoso()
	tenant.Apps = append(tenant.Apps, sandbox.App{ID: "expired", Secret: secret, SecretExpires: time.Now().Add(-time.Hour)})
	b := start(t, sandbox.Options{Tenants: []sandbox.Tenant{tenant}})
	for _, test := range []struct {
		tenant, field, value string
		status, number       int
		code, text           string
	}{
		{tenantID, "client_secret", "wrong", 401, 7000215, "invalid_client", "Invalid client secret provided."},
		{tenantID, "client_id", "expired", 401, 7000222, "invalid_client", "The provided client secret keys for app 'expired' are expired."},
		{tenantID, "client_id", "nobody", 400, 700016, "unauthorized_client", "Application with identifier 'nobody' was not found in the directory '" + tenantID + "'."},
		{"elsewhere", "", "", 400, 90002, "invalid_request", "Tenant 'elsewhere' not found."},
		{"common", "", "", 400, 9001023, "invalid_request", "The grant type is not supported over the /common"},
		{tenantID, "scope", "SMTP.SendAsApp", 400, 70011, "invalid_scope", "The provided request must include a 'scope' input parameter."},
		{tenantID, "scope", "https://outlook.office365.us/.default", 400, 500011, "invalid_resource", "The resource principal named https://outlook.office365.us was not found"},
		{tenantID, "grant_type", "password", 400, 70003, "unsupported_grant_type", "The app requested an unsupported grant type 'password'."},
		{tenantID, "grant_type", "", 400, 900144, "invalid_request", "The request body must contain the following parameter: 'grant_type'."},
		{tenantID, "client_id", "", 400, 900144, "invalid_request", "The request body must contain the following parameter: 'client_id'."},
		{tenantID, "client_secret", "", 401, 7000218, "invalid_client", "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."},
	} {
		form := credentials()
		if test.field != "" {
			form.Set(test.field, test.value)
		}
		resp, a := askToken(t, b, test.tenant, form)
		want := fmt.Sprintf("AADSTS%d: %s", test.number, test.text)
		if resp.StatusCode != test.status || a.Error != test.code || !strings.HasPrefix(a.Description, want) || a.Token != "" {
			t.Errorf("%s=%s at %s: got %s %+v, want %d %s %s", test.field, test.value, test.tenant, resp.Status, a, test.status, test.code, want)
		}
		if len(a.Codes) != 1 || a.Codes[0] != test.number || len(a.Trace) != 36 || len(a.Correlation) != 36 ||
			!strings.Contains(a.Description, "Trace ID: "+a.Trace+" Correlation ID: "+a.Correlation+" Timestamp: "+a.Timestamp) {
			t.Errorf("AADSTS%d: %+v", test.number, a)
		}
	}
	if n := b.Stats().Tokens; n != 0 {
		t.Errorf("%d tokens were issued", n)
	}
	// Only a form counts: credentials in the URL or a header are none.
	req, err := http.NewRequest("POST", b.Authority()+"/"+tenantID+"/oauth2/v2.0/token?"+credentials().Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(clientID, secret)
	resp, err := web(t, b).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("credentials in the URL: %s", resp.Status)
	}
	doubled := credentials()
	doubled.Add("client_secret", secret)
	if resp, a := askToken(t, b, tenantID, doubled); resp.StatusCode != 401 {
		t.Errorf("two secrets: %s %+v", resp.Status, a)
	}
}

func TestControl(t *testing.T) {
	b := start(t, sandbox.Options{})
	c := login(t, b, "app@contoso.com")
	for i := range 3 {
		if got := c.send("app@contoso.com", fmt.Sprintf("X-Relayd-Id: id%d\r\nMessage-ID: <%d@contoso.com>\r\n", i, i)); !strings.HasPrefix(got, "250") {
			t.Fatal(got)
		}
	}
	list := func(query string) (found []sandbox.Message) {
		t.Helper()
		call(t, b, "GET", "/sandbox/messages"+query, "", 200, &found)
		return found
	}
	for query, want := range map[string]int{
		"": 3, "?relayd_id=id1": 1, "?message_id=" + url.QueryEscape("<2@contoso.com>"): 1, "?login=APP@contoso.com": 3,
		"?sender=x@y.z": 0, "?recipient=b@EXAMPLE.net": 3, "?after=1": 2, "?after=1&limit=1": 1, "?wait=3": 3, "?wait=1&after=2": 1,
	} {
		if got := list(query); len(got) != want {
			t.Errorf("%q: got %d messages, want %d", query, len(got), want)
		}
	}
	var one sandbox.Message
	call(t, b, "GET", "/sandbox/messages/2", "", 200, &one)
	if one.Seq != 2 || one.RelaydID != "id1" || len(one.SHA256) != 64 {
		t.Errorf("got %+v", one)
	}
	resp, err := http.Get("http://" + b.HTTPAddr() + "/sandbox/messages/2/raw")
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if sum := sha256.Sum256(raw); fmt.Sprintf("%x", sum) != one.SHA256 || int64(len(raw)) != one.Size {
		t.Errorf("raw is %q, not what %s hashes", raw, one.SHA256)
	}
	for _, path := range []string{"/sandbox/messages/0", "/sandbox/messages/4", "/sandbox/messages/x", "/sandbox/messages/0/raw",
		"/sandbox/messages/4/raw", "/sandbox/messages/x/raw"} {
		call(t, b, "GET", path, "", 404, nil)
	}
	var few []sandbox.Message
	call(t, b, "GET", "/sandbox/messages?wait=4&timeout=20ms", "", 504, &few)
	if len(few) != 3 {
		t.Errorf("a wait in vain showed %d messages", len(few))
	}

	var stats sandbox.Stats
	call(t, b, "GET", "/sandbox/stats", "", 200, &stats)
	if stats.Messages != 3 || stats.Mailboxes["app@contoso.com"].PeakSending != 1 || stats.Connections != 1 || stats.Duplicates == nil {
		t.Errorf("got %+v", stats)
	}
	call(t, b, "DELETE", "/sandbox/messages", "", 204, nil)
	call(t, b, "DELETE", "/sandbox/stats", "", 204, nil)
	if s := b.Stats(); s.Messages != 0 || s.Mailboxes["app@contoso.com"].Messages != 0 || len(list("")) != 0 {
		t.Errorf("after clearing: %+v", s)
	}

	var rule sandbox.Rule
	call(t, b, "POST", "/sandbox/faults", `{"preset":"auth-disabled-tenant","mailbox":"app@contoso.com"}`, 201, &rule)
	call(t, b, "POST", "/sandbox/faults", `{"stage":"mail","reply":"451 4.3.0 later"}`, 201, nil)
	call(t, b, "POST", "/sandbox/faults", `{"stage":"mail"}`, 400, nil)
	var rules []sandbox.Rule
	call(t, b, "GET", "/sandbox/faults", "", 200, &rules)
	if len(rules) != 2 || rules[0].Name != "auth-disabled-tenant" || rules[0].ID != rule.ID {
		t.Errorf("got %+v", rules)
	}
	call(t, b, "DELETE", fmt.Sprintf("/sandbox/faults/%d", rule.ID), "", 204, nil)
	call(t, b, "DELETE", fmt.Sprintf("/sandbox/faults/%d", rule.ID), "", 404, nil)
	call(t, b, "DELETE", "/sandbox/faults", "", 204, nil)
	if len(b.Faults()) != 0 {
		t.Error("faults are left")
	}
	call(t, b, "GET", "/sandbox/presets", "", 200, &rules)
	if len(rules) != len(sandbox.Presets()) {
		t.Errorf("got %d presets", len(rules))
	}

	token := c.token()
	call(t, b, "POST", "/sandbox/revoke", "", 204, nil)
	if got := dial(t, b).secure().auth("app@contoso.com", token); !strings.HasPrefix(got, "535") {
		t.Errorf("a revoked token: %q", got)
	}
	call(t, b, "POST", "/sandbox/tenants", `{"id":"fabrikam","apps":[{"id":"f","secret":"g"}]}`, 204, nil)
	call(t, b, "POST", "/sandbox/tenants", `{"id":"a/b"}`, 400, nil)
	call(t, b, "POST", "/sandbox/tenants", `{"id":"x","apps":[{"id":"f"}]}`, 400, nil)
	if _, err := b.Token("fabrikam", "f", time.Hour); err != nil {
		t.Error(err)
	}
	resp, err = http.Get("http://" + b.HTTPAddr() + "/sandbox/ca")
	if err != nil {
		t.Fatal(err)
	}
	ca, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(ca) != string(b.CAPEM()) {
		t.Errorf("got %q", ca)
	}
}

func TestWaitForWhatIsToCome(t *testing.T) {
	b := start(t, sandbox.Options{})
	c := login(t, b, "app@contoso.com")
	answered := make(chan []sandbox.Message, 1)
	go func() {
		found, _ := b.Wait(t.Context(), 2, sandbox.Filter{Sender: "sales@contoso.com"})
		answered <- found
	}()
	for _, from := range []string{"sales@contoso.com", "app@contoso.com", "sales@contoso.com"} {
		c.send(from, "")
	}
	select {
	case found := <-answered:
		if len(found) != 2 || found[0].Seq != 1 || found[1].Seq != 3 {
			t.Errorf("got %+v", found)
		}
	case <-time.After(patience):
		t.Fatal("Wait did not return")
	}
}

func TestDefaultDirectory(t *testing.T) {
	b, err := sandbox.New(sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	tenants := b.Tenants()
	if len(tenants) != 1 || tenants[0].ID != sandbox.DefaultTenantID || tenants[0].Apps[0].ID != sandbox.DefaultClientID || len(tenants[0].Apps[0].Secret) != 40 {
		t.Errorf("got %+v", tenants)
	}
}

func TestTakenPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, opts := range []sandbox.Options{{SMTPAddr: taken.Addr().String()}, {HTTPAddr: taken.Addr().String()}} {
		if b, err := sandbox.New(opts); err == nil {
			b.Close()
			t.Errorf("%+v was accepted", opts)
		}
	}
}
