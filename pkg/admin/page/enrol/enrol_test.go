package enrol

import (
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/envelope"
)

// views are all pages that a GET shows.
func views() []string {
	return []string{
		"/tenants", "/tenants/new", "/tenants/new?way=classic", "/tenants/contoso", "/tenants/fabrikam", "/tenants/contoso/edit", "/tenants/spare/remove",
		"/senders", "/senders?q=nobody", "/senders/new", "/senders/new?tenant=contoso&match=x@contoso.com",
		"/senders/app@contoso.com", "/senders/info@contoso.com", "/senders/new@contoso.com", "/senders/%2A@fabrikam.com", "/senders/app@contoso.com/edit",
		"/senders/info@contoso.com/remove", "/senders/app@contoso.com/revoke", "/senders/new@contoso.com/device/d1",
		"/senders/app@contoso.com/test", "/senders/%2A@fabrikam.com/test", "/senders/app@contoso.com/test/" + string(testID),
		"/guide", "/guide?tenant=contoso", "/guide?tenant=contoso&sender=app@contoso.com&other=info@contoso.com", "/guide?way=classic&tenant=fabrikam&sender=a@fabrikam.com",
		"/guide?way=rbac&tenant=fabrikam&sender=a@fabrikam.com&object=1234", "/guide?tenant=gone&sender=gone@x.y",
		"/consent/c0de", "/consent/over", "/oauth/callback?state=s&code=c",
	}
}

// posts are all acts, with the right each needs.
func posts() map[string]access.Scope {
	return map[string]access.Scope{
		"/tenants/new": access.Manage, "/tenants/contoso/edit": access.Manage, "/tenants/spare/remove": access.Manage,
		"/tenants/contoso/check": access.Operate, "/tenants/contoso/consent": access.Operate,
		"/senders/new": access.Manage, "/senders/app@contoso.com/edit": access.Manage, "/senders/app@contoso.com/remove": access.Manage,
		"/senders/app@contoso.com/send-as": access.Manage, "/senders/app@contoso.com/pause": access.Operate, "/senders/app@contoso.com/resume": access.Operate,
		"/senders/app@contoso.com/examine": access.Operate, "/senders/app@contoso.com/consent": access.Operate, "/senders/app@contoso.com/invite": access.Operate,
		"/senders/app@contoso.com/device": access.Operate, "/senders/app@contoso.com/revoke": access.Operate, "/senders/app@contoso.com/test": access.Send,
		"/guide": access.Operate,
	}
}

func TestViewsAreWellFormedAndLabelled(t *testing.T) {
	s := newSite(t)
	for _, lang := range []string{"en", "ja"} {
		for _, path := range views() {
			sep := "?"
			if strings.Contains(path, "?") {
				sep = "&"
			}
			t.Run(lang+path, func(t *testing.T) {
				w := s.ask(admin(), path+sep+"lang="+lang, nil)
				if w.Code != http.StatusOK {
					t.Fatalf("%d %s", w.Code, w.Body)
				}
				checkPage(t, w.Body.String(), lang)
			})
		}
	}
}

// The answers to forms are pages too: with findings, with mistakes, with what was refused.
func TestAnswersAreWellFormedAndLabelled(t *testing.T) {
	for _, err := range []error{nil, console.Mistakes{{Field: "match", Text: "wrong <b>"}, {Field: "name", Text: "wrong <b>"}, {Field: "", Text: "all wrong"}}} {
		for path := range posts() {
			s := newSite(t)
			s.fake.err = err
			if w := s.ask(admin(), path, url.Values{"step": {"enter"}, "text": {"x"}}); w.Code < 300 || w.Code > 399 {
				checkPage(t, w.Body.String(), "en")
			}
		}
	}
}

// checkPage reports what a validator would.
func checkPage(t *testing.T, text, lang string) {
	t.Helper()
	p := &checkedPage{t: t, ids: map[string]int{}, labels: map[string]bool{}}
	p.balance(text)
	doc, err := html.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	p.walk(doc)
	p.verify(doc)
	if !strings.Contains(text, `<html lang="`+lang+`">`) || p.headings != 1 {
		t.Errorf("%d main headings, or another language than %s", p.headings, lang)
	}
	if strings.Contains(text, "%!") || strings.Contains(text, ">enrol.") || strings.Contains(text, "ZgotmplZ") {
		t.Errorf("a word is missing or misses its arguments:\n%s", text)
	}
}

type checkedPage struct {
	t        *testing.T
	ids      map[string]int
	labels   map[string]bool
	refs     []string
	headings int
}

// balance checks that every element is closed, in order.
func (p *checkedPage) balance(text string) {
	p.t.Helper()
	void := map[string]bool{"meta": true, "link": true, "input": true, "br": true, "img": true, "hr": true, "option": false}
	var open []string
	z := html.NewTokenizer(strings.NewReader(text))
	for {
		switch z.Next() { //nolint:exhaustive // the rest neither opens nor closes
		case html.ErrorToken:
			if len(open) > 0 {
				p.t.Errorf("never closed: %v", open)
			}
			return
		case html.StartTagToken:
			if name, _ := z.TagName(); !void[string(name)] {
				open = append(open, string(name))
			}
		case html.EndTagToken:
			name, _ := z.TagName()
			if len(open) == 0 || open[len(open)-1] != string(name) {
				p.t.Fatalf("</%s> closes %v", name, open)
			}
			open = open[:len(open)-1]
		}
	}
}

func attr(n *html.Node, name string) (string, bool) {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val, true
		}
	}
	return "", false
}

func content(n *html.Node) string {
	if n.Type == html.TextNode {
		return n.Data
	}
	var b strings.Builder
	for c := range n.ChildNodes() {
		b.WriteString(content(c))
	}
	return strings.TrimSpace(b.String())
}

func (p *checkedPage) walk(n *html.Node) {
	for _, a := range n.Attr {
		switch {
		case a.Key == "id":
			p.ids[a.Val]++
		case a.Key == "for":
			p.labels[a.Val] = true
			p.refs = append(p.refs, a.Val)
		case a.Key == "aria-labelledby" || a.Key == "aria-describedby" || a.Key == "list":
			p.refs = append(p.refs, strings.Fields(a.Val)...)
		case a.Key == "hx-target" && strings.HasPrefix(a.Val, "#"):
			p.refs = append(p.refs, a.Val[1:])
		case a.Key == "data-copy":
			p.refs = append(p.refs, a.Val)
		case a.Key == "style" || strings.HasPrefix(a.Key, "on"):
			p.t.Errorf("<%s> has inline %s, which the policy forbids", n.Data, a.Key)
		}
	}
	for c := range n.ChildNodes() {
		p.walk(c)
	}
}

func (p *checkedPage) verify(n *html.Node) {
	if n.Type == html.ElementNode {
		p.element(n)
	}
	for c := range n.ChildNodes() {
		p.verify(c)
	}
	if n.Type != html.DocumentNode {
		return
	}
	for id, times := range p.ids {
		if times > 1 {
			p.t.Errorf("id %q is there %d times", id, times)
		}
	}
	for _, id := range p.refs {
		if p.ids[id] == 0 {
			p.t.Errorf("%q is referred to and not there", id)
		}
	}
}

func (p *checkedPage) element(n *html.Node) {
	id, _ := attr(n, "id")
	kind, _ := attr(n, "type")
	switch n.Data {
	case "h1":
		p.headings++
	case "input", "select", "textarea":
		if kind != "hidden" && !p.labels[id] {
			p.t.Errorf("<%s id=%q> has no label", n.Data, id)
		}
	case "button", "a", "label", "th", "h2", "summary":
		if content(n) == "" {
			p.t.Errorf("<%s> says nothing: %v", n.Data, n.Attr)
		}
	case "script":
		if _, ok := attr(n, "src"); !ok {
			p.t.Error("there is inline script")
		}
	case "style":
		p.t.Error("there is inline style")
	}
	if _, ok := attr(n, "scope"); n.Data == "th" && !ok {
		p.t.Error("<th> says not what it heads")
	}
}

func TestViewerChangesNothing(t *testing.T) {
	viewer := &access.Principal{Name: "v", Role: access.Viewer, Scopes: access.Viewer.Scopes(), Session: "s2"}
	for path := range posts() {
		s := newSite(t)
		if w := s.ask(viewer, path, url.Values{"step": {"enter"}}); w.Code != http.StatusForbidden {
			t.Errorf("POST %s as viewer: %d, want 403", path, w.Code)
		}
		s.did()
		if s.mail.text != "" {
			t.Errorf("POST %s as viewer sent a message", path)
		}
	}
}

// Each right opens what it is for, and no more: with all others a person stays outside.
func TestScopes(t *testing.T) {
	all := access.Admin.Scopes()
	for path, scope := range posts() {
		s := newSite(t)
		p := admin()
		p.Scopes = nil
		for _, one := range all {
			if one != scope {
				p.Scopes = append(p.Scopes, one)
			}
		}
		if w := s.ask(p, path, url.Values{"step": {"enter"}}); w.Code != http.StatusForbidden {
			t.Errorf("POST %s with all rights but %s: %d, want 403", path, scope, w.Code)
		}
		p.Scopes = []access.Scope{scope}
		if w := s.ask(p, path, url.Values{"step": {"enter"}}); w.Code == http.StatusForbidden || w.Code == http.StatusUnauthorized {
			t.Errorf("POST %s with the right %s: %d", path, scope, w.Code)
		}
	}
}

func TestNobodySeesNothing(t *testing.T) {
	s := newSite(t)
	for _, path := range views() {
		if strings.HasPrefix(path, "/consent/") || strings.HasPrefix(path, "/oauth/") {
			continue
		}
		if w := s.ask(nil, path, nil); w.Code != http.StatusUnauthorized {
			t.Errorf("GET %s as nobody: %d, want 401", path, w.Code)
		}
	}
	for path := range posts() {
		if w := s.ask(nil, path, url.Values{}); w.Code != http.StatusUnauthorized {
			t.Errorf("POST %s as nobody: %d, want 401", path, w.Code)
		}
	}
	s.did()
}

// A viewer is shown no button that would be refused.
func TestViewerSeesNoForms(t *testing.T) {
	s := newSite(t)
	viewer := &access.Principal{Name: "v", Role: access.Viewer, Scopes: access.Viewer.Scopes(), Session: "s2"}
	for _, path := range []string{"/tenants", "/tenants/contoso", "/senders", "/senders/app@contoso.com", "/guide?tenant=contoso&sender=app@contoso.com"} {
		w := s.ask(viewer, path, nil)
		if w.Code != http.StatusOK {
			t.Errorf("GET %s as viewer: %d", path, w.Code)
		}
		for _, form := range regexp.MustCompile(`<form method="post" action="([^"]*)"`).FindAllStringSubmatch(w.Body.String(), -1) {
			if form[1] != "/logout" {
				t.Errorf("GET %s as viewer offers %s", path, form[1])
			}
		}
		wantNotIn(t, w.Body.String(), "/edit\"", "/remove\"", "/tenants/new", "/senders/new\"", "/test\"")
	}
}

// Whatever a tenant, a sender, a reply or the address says is shown as text.
func TestScriptIsEscapedEverywhere(t *testing.T) {
	const evil = `"'><script>alert(1)</script><img src=x onerror=alert(1)>`
	s := newSite(t)
	problem := &console.Problem{Text: evil, Cause: evil, Advice: evil}
	s.fake.tenants = []console.Tenant{{
		Name: "t", Cloud: evil, TenantID: evil, ClientID: evil, Grant: grantDelegated, Credential: evil, Authority: evil, Scope: evil, SMTPServer: evil,
		CertFile: evil, KeyFile: evil, CAFile: evil, Origin: console.OriginPage, RedirectURI: evil, AdminConsentURL: evil, Problem: problem,
	}}
	s.fake.senders = []console.Sender{{
		Match: "a@b.c", Tenant: "t", Login: envelope.Address(evil), Grant: grantDelegated, Origin: console.OriginPage, State: evil, Problem: problem,
		Consent: &console.Consent{User: evil, Problem: problem}, Fallback: envelope.Address(evil), SendAs: []string{evil},
	}}
	s.fake.findings = []console.Finding{{Step: evil, Result: evil, Detail: evil, Cause: evil, Advice: evil}}
	s.fake.device = console.Device{ID: "d1", UserCode: evil, VerificationURI: "javascript:alert(1)", State: "pending", User: evil, Problem: problem}
	s.fake.invited = console.Invitation{Code: "c0de", Login: envelope.Address(evil), URL: evil, Expires: time.Now().Add(time.Hour)}
	s.fake.done = &console.Consented{Sender: evil, Tenant: evil, User: evil}
	s.mail.message.Steps[1] = envelope.Step{What: evil, State: envelope.Failed, By: evil, Reply: evil, Advice: evil,
		Recipients: []envelope.StepResult{{Address: envelope.Address(evil), Reply: evil}}}
	s.mail.message.Parked, s.mail.message.State = evil, evil
	q := url.QueryEscape(evil)
	pages := map[string]url.Values{
		"/tenants": nil, "/tenants/t": nil, "/tenants/t/edit": nil, "/senders?q=" + q + "&tenant=" + q + "&state=" + q: nil, "/senders": nil, "/senders/a@b.c": nil,
		"/senders/a@b.c/edit": nil, "/senders/a@b.c/device/d1": nil, "/senders/a@b.c/test?from=" + q: nil, "/senders/a@b.c/test/" + string(testID): nil,
		"/senders/a@b.c?from=" + q: nil, "/senders/new?match=" + q: nil, "/guide?tenant=t&sender=" + q + "&other=" + q + "&way=" + q: nil,
		"/guide?way=rbac&object=" + q: nil, "/consent/c0de": nil, "/oauth/callback?state=x&error=" + q + "&error_description=" + q: nil,
		"/tenants/t/check": {}, "/senders/a@b.c/examine": {"address": {evil}}, "/senders/a@b.c/invite": {},
		"/senders/a@b.c/test": {"from": {evil}, "to": {evil}, "subject": {evil}, "text": {evil}}, "/guide?tenant=t": {"step": {"enter"}},
		"/tenants/new": {"name": {evil}, "tenant_id": {evil}, "client_id": {evil}, "client_secret": {evil}, "authority": {evil}, "credential_expires": {evil}},
		"/senders/new": {"match": {evil}, "connections": {evil}}, "/senders/a@b.c/consent": {},
	}
	s.fake.url = "javascript:alert(1)"
	for path, form := range pages {
		w := s.ask(admin(), path, form)
		if w.Code >= 500 && path != "/senders/a@b.c/consent" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		wantNotIn(t, w.Body.String(), "<script>alert", "<img src=x", `href="javascript:`)
		if to := w.Header().Get("Location") + w.Header().Get("Refresh"); strings.Contains(to, "javascript") || strings.Contains(to, "<") {
			t.Errorf("%s leads to %s", path, to)
		}
	}
}

// 1,000 senders: a page of the list is small and quick.
func TestThousandSenders(t *testing.T) {
	s := newSite(t)
	s.fake.senders = nil
	for i := range 1000 {
		s.fake.senders = append(s.fake.senders, console.Sender{
			Match: fmt.Sprintf("user%04d@contoso.com", i), Tenant: "contoso", Grant: grantDelegated, Origin: console.OriginPage, State: console.SenderReady,
			Consent: &console.Consent{User: "x", IdleEnds: time.Now().Add(time.Hour)}, RecipientsPerDay: 10000, Remaining: 10000,
		})
	}
	s.get("/senders") // the first is slower: templates are escaped then
	start := time.Now()
	body := s.get("/senders")
	if took := time.Since(start); took > 200*time.Millisecond*raceFactor {
		t.Errorf("a page took %v, want at most 200 ms", took)
	}
	wantIn(t, body, "1 to 100 of 1000", "user0099@", `href="/senders?offset=100"`)
	wantNotIn(t, body, "user0100@", `rel="prev"`)
	body = s.get("/senders?offset=900&state=ready")
	wantIn(t, body, "901 to 1000 of 1000", `href="/senders?offset=800&amp;state=ready" rel="prev"`)
	wantNotIn(t, body, `rel="next"`)
	wantIn(t, s.get("/senders?q=user0123"), "1 to 1 of 1", "user0123@")
	wantIn(t, s.get("/senders?q=nobody"), "No sender fits")
	if to := s.ask(admin(), "/senders?offset=5000&q=user", nil).Header().Get("Location"); to != "/senders?offset=900&q=user" {
		t.Errorf("behind the end it leads to %q, want the last page", to)
	}
	s.get("/senders?offset=-7")
	s.get("/senders?offset=x")
}

// Every word that is there is used; the renderer checks that every word templates use is there, and this that those in code are.
func TestWords(t *testing.T) {
	var text strings.Builder
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".yaml") {
			return err
		}
		data, err := os.ReadFile(path)
		text.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	used := text.String()
	keys := map[string]bool{}
	for _, file := range []string{"words/enrol.yaml", "words/guide.yaml"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^(enrol\.[a-z0-9_.-]+):`).FindAllStringSubmatch(string(data), -1) {
			keys[m[1]] = true
		}
	}
	for _, m := range regexp.MustCompile(`"(enrol\.[a-z0-9_.-]+[a-z0-9_])"`).FindAllStringSubmatch(used, -1) {
		if !keys[m[1]] && !hasPrefix(keys, m[1]+".") {
			t.Errorf("there is no word %s", m[1])
		}
	}
	stepItems := map[string]bool{}
	for _, m := range regexp.MustCompile(`items\("([a-z]+)"((?:, "[a-z0-9]+")+)\)`).FindAllStringSubmatch(used, -1) {
		for name := range strings.SplitSeq(m[2], ", ") {
			if name != "" {
				stepItems["enrol.guide."+m[1]+"."+strings.Trim(name, `"`)] = true
			}
		}
	}
	for key := range stepItems {
		if !keys[key] {
			t.Errorf("there is no word %s", key)
		}
	}
	for key := range keys {
		prefix := key[:strings.LastIndexByte(key, '.')]
		byPrefix := strings.Contains(used, `word "`+prefix+`"`) || strings.Contains(used, `badge "`+prefix+`"`) || strings.Contains(used, `"`+prefix+`."`)
		title := strings.HasPrefix(key, "enrol.guide.") && strings.HasSuffix(key, ".title")
		way := strings.HasPrefix(key, "enrol.way.")
		if !strings.Contains(used, `"`+key+`"`) && !byPrefix && !title && !way && !stepItems[key] {
			t.Errorf("%s is used nowhere", key)
		}
	}
}

func hasPrefix(keys map[string]bool, prefix string) bool {
	for key := range keys {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}
