package view

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/status"
)

func newView(t *testing.T, files ...fs.FS) *Renderer {
	t.Helper()
	v, err := New(Options{Files: files, Version: "1.2.3", Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func tree(files ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(files); i += 2 {
		m[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	return m
}

// ask renders a page for an administrator.
func ask(v *Renderer, r *http.Request, p Page) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r = r.WithContext(access.With(r.Context(), &access.Principal{Name: "<b>ops", Role: access.Admin, Scopes: access.Admin.Scopes()}))
	v.Render(w, r, p)
	return w
}

func TestVendoredFilesAreTheirMakers(t *testing.T) {
	list, err := fs.ReadFile(own, "assets/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(list)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		content, err := fs.ReadFile(own, "assets/"+name)
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(content); hex.EncodeToString(got[:]) != sum {
			t.Errorf("%s is not what SHA256SUMS says", name)
		}
		listed[name] = true
	}
	for _, name := range []string{"htmx-4.0.1.min.js", "htmx.LICENSE", "pico-2.1.1.min.css", "pico.LICENSE.md"} {
		if !listed[name] {
			t.Errorf("%s is not in SHA256SUMS", name)
		}
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	tests := []struct {
		name string
		tree fstest.MapFS
		want string
	}{
		{"word that is not there", tree("templates/x.html", `{{define "main"}}{{t "x.gone"}}{{end}}`), `there is no word "x.gone"`},
		{"in a condition", tree("templates/x.html", `{{define "main"}}{{if .Data}}{{else}}{{range .Data}}{{with .}}{{t "x.deep" 1}}{{end}}{{end}}{{end}}{{end}}`), `"x.deep"`},
		{"as an argument", tree("templates/x.html", `{{define "main"}}{{template "problem" (dict "a" (t "x.arg"))}}{{end}}`), `"x.arg"`},
		{"prefix that is not there", tree("templates/x.html", `{{define "main"}}{{badge "x.state" .Data}}{{end}}`), `"x.state"`},
		{"language missing", tree("words/x.yaml", "x.a: {en: A}"), `x.a has no text in "ja"`},
		{"other verbs", tree("words/x.yaml", "x.a: {en: '%d %s', ja: '%s'}"), "x.a takes"},
		{"key twice", tree("words/x.yaml", "view.skip: {en: A, ja: A}"), "view.skip stands in another file"},
		{"no YAML", tree("words/x.yaml", "x: ["), "words/x.yaml"},
		{"no template", tree("templates/x.html", "{{"), "templates/x.html"},
		{"no part", tree("templates/part-x.html", "{{"), "templates/part-x.html"},
		{"template twice", tree("templates/error.html", ""), "two templates"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(Options{Files: []fs.FS{tt.tree}}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestLanguagesMayOrderArguments(t *testing.T) {
	v := newView(t, tree("words/x.yaml", "x.a: {en: '%s to %s', ja: '%[2]s と %[1]s'}", "templates/x.html", `{{define "main"}}{{t "x.a" "1" "2"}}{{end}}`))
	r := httptest.NewRequest("GET", "/?lang=ja", nil)
	if w := ask(v, r, Page{Template: "x", Title: "view.skip"}); !strings.Contains(w.Body.String(), "2 と 1") {
		t.Errorf("got %s", w.Body)
	}
}

func TestLanguage(t *testing.T) {
	v := newView(t)
	tests := []struct{ name, query, cookie, accept, want string }{
		{"nothing", "", "", "", "en"},
		{"browser", "", "", "fr, ja-JP;q=0.8, en;q=0.7", "ja"},
		{"not that one", "", "", "ja;q=0, en", "en"},
		{"cookie before browser", "", "en", "ja", "en"},
		{"address before cookie", "?lang=ja", "en", "en", "ja"},
		{"unknown is ignored", "?lang=xx", "yy", "zz", "en"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/"+tt.query, nil)
			r.Header.Set("Accept-Language", tt.accept)
			if tt.cookie != "" {
				r.AddCookie(&http.Cookie{Name: "lang", Value: tt.cookie})
			}
			w := httptest.NewRecorder()
			v.Say(w, r, "view.skip")
			if got := remember(w, r); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if set := w.Header()["Set-Cookie"]; len(set) > 1 || (len(set) == 1) != (tt.query == "?lang=ja") {
				t.Errorf("cookies set: %q", set)
			}
		})
	}
}

func TestPartIsRenderedAloneForHtmx(t *testing.T) {
	v := newView(t, tree("templates/x.html", `{{define "main"}}<h1>whole</h1>{{template "x-part" .}}{{end}}{{define "x-part"}}<p>{{.Data}}</p>{{end}}`))
	p := Page{Template: "x", Part: "x-part", Title: "view.skip", Data: "<script>alert(1)</script>"}
	whole := ask(v, httptest.NewRequest("GET", "/", nil), p).Body.String()
	if !strings.Contains(whole, "<h1>whole</h1>") || !strings.Contains(whole, "&lt;script&gt;alert") || strings.Contains(whole, "<script>alert") {
		t.Errorf("got %s", whole)
	}
	if strings.Contains(whole, "<b>ops") {
		t.Error("the name of who is signed in is not escaped")
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("HX-Request", "true")
	if got := ask(v, r, p).Body.String(); got != "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>" {
		t.Errorf("got %q", got)
	}
	r.Header.Set("HX-Request-Type", "full")
	if got := ask(v, r, p).Body.String(); got != whole {
		t.Error("htmx asked for the whole page and got something else")
	}
}

func TestHalfAPageIsNeverSent(t *testing.T) {
	v := newView(t, tree("templates/x.html", `{{define "main"}}<h1>begin</h1>{{.Data.Missing}}{{end}}`))
	for _, template := range []string{"x", "none"} {
		w := ask(v, httptest.NewRequest("GET", "/", nil), Page{Template: template, Title: "view.skip", Data: struct{}{}})
		if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "<h1>") {
			t.Errorf("%s: got %d %s", template, w.Code, w.Body)
		}
	}
}

func TestNotice(t *testing.T) {
	v := newView(t, tree("words/x.yaml", "x.notice.done: {en: Done., ja: 完了}\nx.notice.many: {en: '%s done.', ja: '%s 件'}"))
	w := httptest.NewRecorder()
	v.Redirect(w, httptest.NewRequest("POST", "/", nil), "/messages?state=held", "x.notice.many", "3 <b>")
	to := w.Header().Get("Location")
	if w.Code != http.StatusSeeOther || to != "/messages?n=3+%3Cb%3E&notice=x.notice.many&state=held" {
		t.Fatalf("got %d to %s", w.Code, to)
	}
	page := Page{Template: "error", Title: "view.skip", Data: failed{}}
	if got := ask(v, httptest.NewRequest("GET", to, nil), page).Body.String(); !strings.Contains(got, "3 &lt;b&gt; done.") {
		t.Errorf("got %s", got)
	}
	for _, key := range []string{"view.skip", "x.notice.other", "<b>"} { // words of other purpose, and no words
		got := ask(v, httptest.NewRequest("GET", "/?notice="+url.QueryEscape(key), nil), page).Body.String()
		if strings.Contains(got, "note-good") {
			t.Errorf("%s is said", key)
		}
	}
}

func TestLanguageLinksStayHere(t *testing.T) {
	v := newView(t)
	r := httptest.NewRequest("GET", "/messages?sender=a%26b&notice=x", nil)
	if got := v.languageLinks("en", r, "")[1].Href; got != "/messages?lang=ja&sender=a%26b" {
		t.Errorf("got %s", got)
	}
	r.URL.Path = "//evil.example/x"
	if got := v.languageLinks("en", r, "")[1].Href; !strings.HasPrefix(got, "/?") {
		t.Errorf("got %s", got)
	}
	if got := v.languageLinks("en", httptest.NewRequest("POST", "/messages/actions", nil), "/messages?a=1")[0].Href; got != "/messages?a=1&lang=en" {
		t.Errorf("got %s", got)
	}
}

func TestFailSaysWhatAndHow(t *testing.T) {
	v := newView(t)
	refused := &status.Error{Code: 535, Text: "refused <i>", Cause: "the secret is wrong", Advice: "make another", Err: errors.New("inner canary")}
	tests := []struct {
		err  error
		code int
		want []string
	}{
		{api.ErrNotFound, 404, []string{"no message with this id"}},
		{console.ErrNotFound, 404, []string{"no such tenant"}},
		{console.ErrFile, 409, []string{"configuration file"}},
		{console.ErrInUse, 409, []string{"Remove them first"}},
		{console.ErrExpired, 410, []string{"Ask for a new one"}},
		{api.ErrBusy, 409, []string{"being sent right now"}},
		{api.ErrUnavailable, 503, []string{"storage is not available"}},
		{console.Mistakes{{Field: "name", Text: "is empty"}}, 422, []string{"name: is empty"}},
		{refused, 422, []string{"refused &lt;i&gt;", "the secret is wrong", "make another"}},
		{&status.Error{Code: 451, Text: "later"}, 503, []string{"later"}},
		{errors.New("inner canary"), 503, []string{"the log says why"}},
	}
	for _, tt := range tests {
		w := httptest.NewRecorder()
		v.Fail(w, httptest.NewRequest("GET", "/", nil), tt.err)
		for _, want := range tt.want {
			if w.Code != tt.code || !strings.Contains(w.Body.String(), want) {
				t.Errorf("%v: got %d, want %d with %q", tt.err, w.Code, tt.code, want)
			}
		}
		if strings.Contains(w.Body.String(), "canary") {
			t.Errorf("%v: tells what lies behind", tt.err)
		}
	}
}

// A poll that the browser has given up is no fault of anybody's; what ends before its asker goes is.
func TestFailOfWhoHasGone(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	v, err := New(Options{Logger: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	for _, err := range []error{
		context.Canceled, fmt.Errorf("read: %w", context.Canceled), &status.Error{Code: 451, Err: context.Canceled},
		errors.Join(api.ErrUnavailable, context.Canceled),
	} {
		logs.TakeAll()
		w := httptest.NewRecorder()
		v.Fail(w, httptest.NewRequestWithContext(gone, "GET", "/", nil), err)
		if w.Code != 503 || logs.Len() != 0 {
			t.Errorf("%v: got %d, logged %v", err, w.Code, logs.All())
		}
		v.Fail(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/", nil), err)
		if logs.FilterMessage("page not shown").Len() != 1 {
			t.Errorf("%v of an asker who waits: logged %v", err, logs.All())
		}
	}
	logs.TakeAll()
	if v.Fail(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "GET", "/", nil), errors.New("disk")); logs.Len() != 1 {
		t.Error("another fault is not logged, since the asker has gone")
	}
}

func TestGuard(t *testing.T) {
	v := newView(t)
	h := v.Guard(access.Operate, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, tt := range []struct {
		who  *access.Principal
		want int
	}{
		{nil, 401},
		{&access.Principal{Scopes: access.Viewer.Scopes()}, 403},
		{&access.Principal{Scopes: access.Operator.Scopes()}, 204},
	} {
		r := httptest.NewRequest("POST", "/", nil)
		if tt.who != nil {
			r = r.WithContext(access.With(r.Context(), tt.who))
		}
		w := httptest.NewRecorder()
		h(w, r)
		if w.Code != tt.want {
			t.Errorf("%+v: got %d, want %d", tt.who, w.Code, tt.want)
		}
	}
}

func TestStatic(t *testing.T) {
	v := newView(t)
	for name, u := range v.assets.urls {
		w := httptest.NewRecorder()
		v.Static(w, httptest.NewRequest("GET", u, nil))
		h := w.Header()
		if w.Code != 200 || !strings.Contains(h.Get("Cache-Control"), "immutable") || h.Get("Content-Type") == "" || w.Body.Len() == 0 {
			t.Errorf("%s: got %d %v", name, w.Code, h)
		}
		r := httptest.NewRequest("GET", u, nil)
		r.Header.Set("If-None-Match", h.Get("ETag"))
		w = httptest.NewRecorder()
		v.Static(w, r)
		if w.Code != http.StatusNotModified {
			t.Errorf("%s: got %d for the content that is there already", name, w.Code)
		}
	}
	for _, path := range []string{"/static/", "/static/relayd.css", "/static/SHA256SUMS", "/static/../view.go"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path = path
		v.Static(w, r)
		if w.Code != http.StatusNotFound {
			t.Errorf("%s: got %d", path, w.Code)
		}
	}
}

func TestFormKeepsWhatWasEntered(t *testing.T) {
	v := newView(t, tree("templates/x.html", `{{define "main"}}{{template "mistakes" .Data}}{{range .Data.Fields}}{{template "field" .}}{{end}}{{end}}`,
		"words/x.yaml", "x.name: {en: Name, ja: 名前}\nx.help: {en: 'Like `a`, **b** & c.', ja: 例}"))
	f := NewForm(
		Field{Name: "name", Label: "x.name", Help: "x.help", Required: true},
		Field{Name: "kind", Label: "x.name", Type: "select", Choices: []Choice{{"a", "x.name"}, {"b<", "literally b<"}}},
		Field{Name: "text", Label: "x.name", Type: "textarea"},
		Field{Name: "yes", Label: "x.name", Type: "checkbox"},
		Field{Name: "token", Type: "hidden"},
	)
	f.Fill(url.Values{"name": {` "><script>x`}, "kind": {"b<"}, "text": {"</textarea>1"}, "yes": {"yes"}, "token": {"t"}, "else": {"y"}})
	if f.Take(errors.New("no mistakes")) {
		t.Error("any error is taken for mistakes")
	}
	if !f.Take(console.Mistakes{{Field: "name", Text: "is wrong."}, {Field: "name", Text: "Twice."}, {Field: "nowhere", Text: "odd"}, {Field: "token", Text: "old"}}) {
		t.Error("mistakes are not taken")
	}
	got := ask(v, httptest.NewRequest("GET", "/", nil), Page{Template: "x", Title: "view.skip", Data: f}).Body.String()
	for _, want := range []string{
		`value=" &#34;&gt;&lt;script&gt;x"`, `aria-describedby="field-name-mistake field-name-help"`, `aria-invalid="true"`, "is wrong. Twice.",
		`<option value="b&lt;" selected>literally b&lt;</option>`, "&lt;/textarea&gt;1", " checked", "nowhere: odd", "token: old",
		"Like <code>a</code>, <strong>b</strong> &amp; c.", `<a href="#field-name">Name</a>`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	if f.Value("name") != `"><script>x` || f.Value("none") != "" {
		t.Errorf("got %q", f.Value("name"))
	}
}

func TestReadFormIsBounded(t *testing.T) {
	v := newView(t)
	post := func(body string) (url.Values, bool, int) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		values, ok := v.ReadForm(w, r)
		return values, ok, w.Code
	}
	if values, ok, _ := post("a=1"); !ok || values.Get("a") != "1" {
		t.Errorf("got %v", values)
	}
	if _, ok, code := post("a=" + strings.Repeat("x", maxForm)); ok || code != http.StatusBadRequest {
		t.Errorf("too large: got ok=%v, %d", ok, code)
	}
}

func TestFormats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView(t)
		en, ja := speech{v.words, "en"}, speech{v.words, "ja"}
		now := time.Now()
		for _, tt := range []struct{ got, want string }{
			{en.relative(now), "just now"},
			{en.relative(now.Add(-90 * time.Second)), "90 s ago"},
			{ja.relative(now.Add(-3 * time.Hour)), "3時間前"},
			{en.relative(now.Add(50 * time.Hour)), "in 2 d"},
			{ja.relative(now.Add(5 * time.Minute)), "5分後"},
			{en.duration(250 * time.Millisecond), "250 ms"},
			{string(en.ago(time.Time{})), "–"},
			{string(en.badge("view.role", "<x>")), `<span class="badge badge-idle"><span class="badge-sign" aria-hidden="true">–</span>&lt;x&gt;</span>`},
			{must(size(1023)), "1023 B"}, {must(size(int64(1536))), "1.5 KiB"}, {must(size(35 << 20)), "35 MiB"}, {must(size(int64(3 << 40))), "3.0 TiB"},
			{must(number(-1234567)), "-1,234,567"}, {must(number(uint64(999))), "999"},
		} {
			if tt.got != tt.want {
				t.Errorf("got %q, want %q", tt.got, tt.want)
			}
		}
		if got := string(en.ago(now.Add(-time.Hour))); !strings.Contains(got, `datetime="`+now.Add(-time.Hour).UTC().Format(time.RFC3339)+`"`) {
			t.Errorf("got %s", got)
		}
	})
	if _, err := number("x"); err == nil {
		t.Error("a text is taken for a number")
	}
	if _, err := dict("a"); err == nil {
		t.Error("a key without a value is taken")
	}
}

func must(s string, err error) string {
	if err != nil {
		return err.Error()
	}
	return s
}

func TestMarkupEscapesArguments(t *testing.T) {
	v := newView(t, tree("words/x.yaml", "x.a: {en: 'Run `%s` <now>.', ja: '`%s`'}"))
	got, err := speech{v.words, "en"}.markup("x.a", access.Scope("<b>`**"))
	if want := "Run <code>&lt;b&gt;`**</code> &lt;now&gt;."; err != nil || string(got) != want {
		t.Errorf("got %s %v, want %s", got, err, want)
	}
}
