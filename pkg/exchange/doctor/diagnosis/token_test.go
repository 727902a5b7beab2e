package diagnosis

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

const (
	tenantID = "aaaaaaaa-0000-0000-0000-000000000001"
	clientID = "bbbbbbbb-0000-0000-0000-000000000002"
	objectID = "cccccccc-0000-0000-0000-000000000003"
)

// jwt returns a token with those claims; a nil one takes a claim of the good token away.
func jwt(t testing.TB, change map[string]any) string {
	t.Helper()
	claims := map[string]any{"aud": "https://outlook.office365.com", "tid": tenantID, "appid": clientID, "oid": objectID, "roles": []string{"SMTP.SendAsApp"}}
	for k, v := range change {
		claims[k] = v
		if v == nil {
			delete(claims, k)
		}
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode(payload) + "." + encode([]byte("signature"))
}

func TestToken(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	want := Registration{TenantID: tenantID, ClientID: strings.ToUpper(clientID), Scope: "https://outlook.office365.com/.default"}
	tests := []struct {
		name   string
		claims map[string]any
		say    Finding // Cause empty: there must be none
	}{
		{"good", nil, Finding{Text: "client credentials, expires in 1 h, for https://outlook.office365.com, tenant " + tenantID + ", app " + clientID + ", roles SMTP.SendAsApp"}},
		{"several roles", map[string]any{"roles": []string{"Mail.Send", "smtp.sendasapp"}}, Finding{Text: "roles Mail.Send smtp.sendasapp"}},
		{"version 2.0", map[string]any{"appid": nil, "azp": clientID, "aud": exchangeAppID}, Finding{Text: "for " + exchangeAppID}},
		{"a list of audiences", map[string]any{"aud": []string{"https://outlook.office365.com/"}}, Finding{Text: "for https://outlook.office365.com/,"}},
		{"the other name", map[string]any{"aud": "https://outlook.office.com"}, Finding{}},
		{"another tenant", map[string]any{"tid": objectID}, Finding{"tenant " + objectID, "the token is of tenant " + objectID + ", but tenant_id is " + tenantID, "Directory (tenant) ID"}},
		{"another app", map[string]any{"appid": objectID}, Finding{"", "the token is of app " + objectID, "Application (client) ID"}},
		{"for Graph", map[string]any{"aud": "https://graph.microsoft.com"}, Finding{"", "the token is for https://graph.microsoft.com, not for Exchange Online", "scope"}},
		{"no audience", map[string]any{"aud": nil}, Finding{"", "the token is for , not", "scope"}},
		{"no roles", map[string]any{"roles": nil}, Finding{"no roles", "right if the app is to send by App RBAC", "New-ManagementRoleAssignment -App <object-id>"}},
		{"another role", map[string]any{"roles": []string{"Mail.Send"}}, Finding{"roles Mail.Send", "no role SMTP.SendAsApp", "Grant admin consent"}},
		{"delegated", map[string]any{"roles": nil, "scp": "offline_access SMTP.Send", "upn": "App@contoso.com"},
			Finding{Text: "delegated by App@contoso.com, expires in 1 h, "}},
		{"delegated, not to send", map[string]any{"roles": nil, "scp": "IMAP.AccessAsUser.All", "upn": "app@contoso.com"},
			Finding{"permissions IMAP.AccessAsUser.All", "lacks the permission SMTP.Send", "app@contoso.com sign in again"}},
		{"delegated by another", map[string]any{"roles": nil, "scp": "SMTP.Send", "preferred_username": "boss@contoso.com"},
			Finding{"delegated by boss@contoso.com", "boss@contoso.com signed in, not app@contoso.com", "Add-MailboxPermission -Identity app@contoso.com -User boss@contoso.com"}},
		{"delegated by nobody named", map[string]any{"roles": nil, "scp": "SMTP.Send"}, Finding{Text: "delegated by somebody"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token := jwt(t, tt.claims)
			got := Token(token, now.Add(time.Hour), want, "app@contoso.com", now)
			says(t, got, tt.say)
			if (got.Cause == "") != (tt.say.Cause == "") || (got.Cause == "") != (got.Advice == "") {
				t.Errorf("got %+v", got)
			}
		})
	}
	if got := Token(jwt(t, nil), now.Add(-time.Second), want, "", now); got.Cause != "by this machine's clock the token has expired" {
		t.Errorf("expired: got %+v", got)
	}
	domain := Registration{TenantID: "contoso.com", Scope: "api://other"}
	if got := Token(jwt(t, map[string]any{"aud": "x"}), now.Add(time.Hour), domain, "", now); got.Cause != "" {
		t.Errorf("got %+v, want nothing compared that cannot be", got)
	}
	if got := Token(jwt(t, map[string]any{"exp": now.Add(2 * time.Hour).Unix()}), time.Time{}, want, "", now); !strings.Contains(got.Text, "expires in 2 h") {
		t.Errorf("got %q, want the end that the token has", got.Text)
	}
	for _, opaque := range []string{"", "opaque", "a.b", "a.%%%.c", "a." + base64.RawURLEncoding.EncodeToString([]byte("[]")) + ".c"} {
		if got := Token(opaque, time.Time{}, want, "", now); got != (Finding{Text: "opaque token, no end given"}) {
			t.Errorf("%q: got %+v", opaque, got)
		}
	}
}

func TestObjectID(t *testing.T) {
	for name, tt := range map[string]struct {
		claims map[string]any
		want   string
	}{
		"of an app":      {nil, objectID},
		"of a user":      {map[string]any{"scp": "SMTP.Send"}, ""},
		"none":           {map[string]any{"oid": nil}, ""},
		"not one at all": {map[string]any{"oid": "$(rm -r /)"}, ""},
	} {
		if got := ObjectID(jwt(t, tt.claims)); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
	if got := ObjectID("opaque"); got != "" {
		t.Errorf("got %q", got)
	}
}

func FuzzToken(f *testing.F) {
	f.Add(jwt(f, nil))
	f.Add(jwt(f, map[string]any{"exp": 1e300, "aud": []string{}, "scp": "SMTP.Send"}))
	f.Add("a.e30.c")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		got := Token(token, time.Time{}, Registration{TenantID: tenantID, ClientID: clientID, Scope: "https://x/.default"}, "a@b.c", time.Now())
		if got.Text == "" || (got.Cause == "") != (got.Advice == "") {
			t.Errorf("%q: got %+v", token, got)
		}
		if id := ObjectID(token); id != "" && !isGUID(id) {
			t.Errorf("%q: got %q", token, id)
		}
	})
}
