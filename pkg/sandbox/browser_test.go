package sandbox_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"html"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"relayd/pkg/sandbox"
)

const (
	callback     = "http://127.0.0.1:8080/oauth/callback"
	sendScope    = "https://outlook.office.com/SMTP.Send offline_access openid profile"
	codeVerifier = "correct-horse-battery-staple-correct-horse-battery"
)

// fabrikam is a tenant with people in every state.
func fabrikam() sandbox.Tenant {
	t := contoso()
	t.Mailboxes = []string{"*@contoso.com"}
	t.Apps[0].RedirectURIs = []string{callback}
	t.Apps[0].Name = "relayd of Contoso"
	t.Users = []sandbox.User{
		{Mail: "ann@contoso.com", Name: "Ann Able"}, {Mail: "boss@contoso.com", Admin: true},
		{Mail: "key@contoso.com", Password: "right"}, {Mail: "gone@contoso.com", State: "disabled"},
		{Mail: "never@contoso.com", State: "unknown"}, {Mail: "far@contoso.com", State: "blocked"},
		{Mail: "weak@contoso.com", State: "mfa"}, {Mail: "guest@contoso.com", State: "foreign"},
	}
	return t
}

// browser is a browser without scripts: it keeps cookies, fills in forms, and stops where it is sent off this site.
type browser struct {
	t      *testing.T
	box    *sandbox.Sandbox
	client *http.Client
	url    string // of the page shown
	page   string
	status int
	header http.Header
	left   *url.URL // where it was sent, once it was
}

func open(t *testing.T, box *sandbox.Sandbox, path string) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, box: box, client: web(t, box)}
	b.client.Jar = jar
	b.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return b.visit(path)
}

func (b *browser) visit(path string) *browser {
	b.t.Helper()
	b.url = b.box.Authority() + path
	resp, err := b.client.Get(b.url)
	return b.shown(resp, err)
}

func (b *browser) shown(resp *http.Response, err error) *browser {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	b.page, b.status, b.header, b.left = string(data), resp.StatusCode, resp.Header, nil
	if to := resp.Header.Get("Location"); to != "" {
		if b.left, err = url.Parse(to); err != nil {
			b.t.Fatal(err)
		}
	}
	return b
}

var hiddenField = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// submit posts the form that has a field or button of that name, with its hidden fields and those given.
func (b *browser) submit(fields ...string) *browser {
	b.t.Helper()
	form := url.Values{}
	found := false
	for _, part := range strings.Split(b.page, "<form")[1:] {
		part, _, _ = strings.Cut(part, "</form>")
		if !strings.Contains(part, `name="`+fields[0]+`"`) {
			continue
		}
		found = true
		for _, m := range hiddenField.FindAllStringSubmatch(part, -1) {
			form.Set(html.UnescapeString(m[1]), html.UnescapeString(m[2]))
		}
		break
	}
	if !found {
		b.t.Fatalf("no form with %s on the page:\n%s", fields[0], b.page)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	resp, err := b.client.PostForm(b.url, form)
	return b.shown(resp, err)
}

// signIn goes from the account page past the password.
func (b *browser) signIn(account string) *browser {
	b.t.Helper()
	return b.submit("loginfmt", account).submit("passwd", "anything")
}

// on checks which page is shown, and that every text is on it.
func (b *browser) on(name string, texts ...string) *browser {
	b.t.Helper()
	if !strings.Contains(b.page, `data-page="`+name+`"`) {
		b.t.Fatalf("not on page %s but (%d, to %v):\n%s", name, b.status, b.left, b.page)
	}
	for _, text := range texts {
		if !strings.Contains(html.UnescapeString(b.page), text) {
			b.t.Fatalf("%q is not on page %s:\n%s", text, name, b.page)
		}
	}
	return b
}

// returned is what the app was told.
func (b *browser) returned() url.Values {
	b.t.Helper()
	if b.left == nil || !strings.HasPrefix(b.left.String(), callback+"?") {
		b.t.Fatalf("not sent back to the app but to %v, on:\n%s", b.left, b.page)
	}
	return b.left.Query()
}

func challenge() string {
	digest := sha256.Sum256([]byte(codeVerifier))
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// authorizeQuery is a good request, changed by pairs of name and value; an empty value leaves a parameter out.
func authorizeQuery(change ...string) url.Values {
	q := url.Values{
		"client_id": {clientID}, "response_type": {"code"}, "redirect_uri": {callback}, "response_mode": {"query"},
		"scope": {sendScope}, "state": {"st&te"}, "code_challenge": {challenge()}, "code_challenge_method": {"S256"},
		"nonce": {"n-0nce"},
	}
	for i := 0; i < len(change); i += 2 {
		q.Set(change[i], change[i+1])
		if change[i+1] == "" {
			q.Del(change[i])
		}
	}
	return q
}

func authorizePath(change ...string) string {
	return "/" + tenantID + "/oauth2/v2.0/authorize?" + authorizeQuery(change...).Encode()
}

// userAnswer is a token answer with what only users' tokens have.
type userAnswer struct {
	tokenAnswer
	Scope    string `json:"scope"`
	Refresh  string `json:"refresh_token"`
	ID       string `json:"id_token"`
	Suberror string `json:"suberror"`
}

func (a userAnswer) code() int {
	if len(a.Codes) == 1 {
		return a.Codes[0]
	}
	return 0
}

func ask(t *testing.T, b *sandbox.Sandbox, form url.Values) userAnswer {
	t.Helper()
	resp, err := web(t, b).PostForm(b.Authority()+"/"+tenantID+"/oauth2/v2.0/token", form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var a userAnswer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	return a
}

func redemption(code string, change ...string) url.Values {
	form := url.Values{
		"grant_type": {"authorization_code"}, "client_id": {clientID}, "client_secret": {secret}, "code": {code},
		"redirect_uri": {callback}, "code_verifier": {codeVerifier}, "scope": {sendScope},
	}
	for i := 0; i < len(change); i += 2 {
		form.Set(change[i], change[i+1])
	}
	return form
}

func refreshing(token string, change ...string) url.Values {
	form := redemption("", change...)
	form.Set("grant_type", "refresh_token")
	form.Set("refresh_token", token)
	maps.DeleteFunc(form, func(k string, _ []string) bool { return k == "code" || k == "redirect_uri" || k == "code_verifier" })
	return form
}

// grantedTo signs a user in, consents and redeems the code.
func grantedTo(t *testing.T, b *sandbox.Sandbox, user string) userAnswer {
	t.Helper()
	page := open(t, b, authorizePath()).signIn(user)
	if page.left == nil {
		page.on("consent").submit("ucaccept", "1")
	}
	a := ask(t, b, redemption(page.returned().Get("code")))
	if a.Token == "" || a.Refresh == "" || a.ID == "" {
		t.Fatalf("got %+v", a)
	}
	return a
}

func claimsOf(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("no token: %q", token)
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims map[string]any
	if err == nil {
		err = json.Unmarshal(data, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims
}
