// Package view renders the admin page: layout, words in two languages, forms, errors, and the files a browser needs.
//
// A package that shows something brings a file tree of its own, embedded, with
//
//	templates/NAME.html    one page each: {{define "main"}} … {{end}}, and parts of it that are rendered alone for htmx
//	templates/part-*.html  parts that every page may use; the names they define begin with the package's
//	words/*.yaml           what it says: KEY: {en: …, ja: …}; keys begin with the package's name, so that none meets another's
//
// and hands it to [New], which parses everything once and fails on a word that is used but not there:
//
//	//go:embed templates words
//	var files embed.FS
//
//	v, err := view.New(view.Options{Version: version, Files: []fs.FS{files}})
//	v.Render(w, r, view.Page{Template: "senders", Title: "enrol.senders.title", Nav: "senders", Data: …})
//
// In a template the dot is a [Frame]: .Data, .Principal, .May "operate", .Lang. Functions: t KEY ARGS… (a word, arguments as fmt's
// verbs), th (the same with `code` and **strong**), word PREFIX VALUE (the word PREFIX.VALUE, or VALUE where there is none), badge
// PREFIX VALUE, ago TIME, when TIME, bytes N, number N, duration D, asset NAME, dict KEY VALUE …. Parts: "field" FIELD, "mistakes" FORM,
// "problem" *console.Problem. What a template shows is escaped by html/template; no page has inline script, style or handlers.
//
// The package keeps no state.
package view

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
)

//go:embed templates words assets
var own embed.FS

// Options of [New]. No field is required.
type Options struct {
	Files   []fs.FS     // templates/ and words/ of the packages that show something
	Version string      // of relayd, shown at the foot
	Logger  *zap.Logger // nil: none
}

// Renderer writes pages. It is safe for many callers at once.
type Renderer struct {
	log     *zap.Logger
	version string
	words   *words
	assets  *assets
	pages   map[string]map[string]*template.Template // by language, by name
}

// New parses templates and words. The error names the file, and the word that is missing.
func New(opts Options) (*Renderer, error) {
	v := &Renderer{log: opts.Logger, version: opts.Version, pages: map[string]map[string]*template.Template{}}
	if v.log == nil {
		v.log = zap.NewNop()
	}
	trees := append([]fs.FS{own}, opts.Files...)
	var err error
	if v.words, err = loadWords(trees); err != nil {
		return nil, err
	}
	if v.assets, err = loadAssets(own); err != nil {
		return nil, err
	}
	for _, lang := range Languages() {
		if v.pages[lang], err = v.parse(lang, trees); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// parse returns the pages of all trees in one language: each is the layout, all parts, and its own file.
func (v *Renderer) parse(lang string, trees []fs.FS) (map[string]*template.Template, error) {
	base := template.New("").Funcs(v.funcs(lang))
	var names []string
	sources := map[string]string{}
	for _, tree := range trees {
		files, err := fs.Glob(tree, "templates/*.html")
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			text, err := fs.ReadFile(tree, file)
			if err != nil {
				return nil, err
			}
			name := strings.TrimSuffix(path.Base(file), ".html")
			if _, twice := sources[name]; twice {
				return nil, fmt.Errorf("%s: there are two templates of that name", file)
			}
			sources[name] = string(text)
			if !strings.HasPrefix(name, "part-") {
				names = append(names, name)
				continue
			}
			if _, err := base.Parse(string(text)); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	pages := map[string]*template.Template{}
	for _, name := range names {
		page, err := base.Clone()
		if err == nil {
			_, err = page.Parse(sources[name])
		}
		if err == nil {
			err = v.words.check(page)
		}
		if err != nil {
			return nil, fmt.Errorf("templates/%s.html: %w", name, err)
		}
		pages[name] = page
	}
	return pages, nil
}

// Page is what is to be shown.
type Page struct {
	Template string // name of its file, without .html
	Part     string // the template that alone is the answer to htmx; empty: there is none, the whole page is
	Status   int    // of the response; 0: 200
	Title    string // key of its word
	Subject  string // what it is about, behind the title in the browser's tab: an id or address; may be empty
	Nav      string // which item of the navigation it belongs to: overview, messages, senders, tenants, guide, configuration, audit
	Self     string // where the language switch leads, for pages that answer a POST; empty: the address asked for
	Bare     bool   // without navigation: for people who have no account here
	Data     any
}

// Frame is the dot of a template.
type Frame struct {
	Page
	Principal *access.Principal
	Lang      string
	Version   string
	Notice    string // what was done just now, in words
	Menu      []Item
	Switch    []Item // languages
}

// Item is a link of the navigation.
type Item struct {
	Href, Label, Lang string
	Current           bool
}

// May reports whether who asks has a right.
func (f *Frame) May(scope string) bool { return f.Principal.May(access.Scope(scope)) }

// Render answers with a page, or with the part of it that htmx asked for. A page that cannot be rendered is logged and answered
// with a short text, never with half a page.
func (v *Renderer) Render(w http.ResponseWriter, r *http.Request, p Page) {
	lang := remember(w, r)
	f := &Frame{Page: p, Principal: access.From(r.Context()), Lang: lang, Version: v.version, Notice: v.notice(lang, r)}
	f.Menu, f.Switch = v.menu(lang, p.Nav), v.languageLinks(lang, r, p.Self)
	name := "layout"
	if p.Part != "" && Partial(r) {
		name = p.Part
	}
	var b bytes.Buffer
	page := v.pages[lang][p.Template]
	err := fmt.Errorf("there is no template %q", p.Template)
	if page != nil {
		err = page.ExecuteTemplate(&b, name, f)
	}
	if err != nil {
		v.log.Error("page cannot be rendered", zap.String("template", p.Template), zap.Error(err))
		http.Error(w, v.words.get(lang, "view.error.render"), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", lang)
	h.Add("Vary", "HX-Request, Cookie, Accept-Language")
	if p.Status != 0 {
		w.WriteHeader(p.Status)
	}
	_, _ = w.Write(b.Bytes()) // the asker may be gone
}

// Partial reports whether htmx asks, for a part of a page.
func Partial(r *http.Request) bool {
	return r.Header.Get("HX-Request") == "true" && r.Header.Get("HX-Request-Type") != "full"
}

// Redirect answers a POST: the browser shows the page at that path next, with the word "KEYPREFIX.notice.NAME" above it. notice is
// the whole key and must hold ".notice."; empty: none. n is for its %s, empty where it has none.
func (v *Renderer) Redirect(w http.ResponseWriter, r *http.Request, to, notice, n string) {
	u, err := url.Parse(to)
	if err == nil && notice != "" {
		q := u.Query()
		q.Set("notice", notice)
		if n != "" {
			q.Set("n", n)
		}
		u.RawQuery = q.Encode()
		to = u.String()
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// maxNotice bounds what the address may add to a notice, in octets: anyone may write such a link.
const maxNotice = 100

// notice is what an address says was done. Only words that are meant to be said so are.
func (v *Renderer) notice(lang string, r *http.Request) string {
	q := r.URL.Query()
	key := q.Get("notice")
	if r.Method != http.MethodGet || !strings.Contains(key, ".notice.") || !v.words.has(key) {
		return ""
	}
	if text := v.words.get(lang, key); strings.Contains(text, "%s") {
		return fmt.Sprintf(text, clip(q.Get("n"), maxNotice))
	}
	return v.words.get(lang, key)
}

// menu is the navigation, with the item of that name current.
func (v *Renderer) menu(lang, current string) []Item {
	var items []Item
	for _, name := range []string{"overview", "messages", "senders", "tenants", "guide", "configuration", "audit"} {
		href := "/" + name
		if name == "overview" {
			href = "/"
		}
		items = append(items, Item{Href: href, Label: v.words.get(lang, "view.nav."+name), Current: name == current})
	}
	return items
}

// languageLinks leads to the same page in each language.
func (v *Renderer) languageLinks(lang string, r *http.Request, self string) []Item {
	u := &url.URL{Path: r.URL.Path, RawQuery: r.URL.RawQuery}
	if self != "" {
		if parsed, err := url.Parse(self); err == nil {
			u = parsed
		}
	} else if r.Method != http.MethodGet && r.Method != http.MethodHead {
		u = &url.URL{Path: "/"}
	}
	if strings.HasPrefix(u.Path, "//") { // would lead to another host
		u.Path = "/"
	}
	var items []Item
	for _, l := range Languages() {
		q := u.Query()
		q.Set("lang", l)
		q.Del("notice")
		to := url.URL{Path: u.Path, RawQuery: q.Encode()}
		items = append(items, Item{Href: to.String(), Label: v.words.get(l, "view.language"), Lang: l, Current: l == lang})
	}
	return items
}

// Guard lets only those in who have a right; the others read why not.
func (v *Renderer) Guard(scope access.Scope, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch p := access.From(r.Context()); {
		case p == nil:
			v.fail(w, r, failure{status: http.StatusUnauthorized, key: "view.error.login"})
		case !p.May(scope):
			v.fail(w, r, failure{status: http.StatusForbidden, key: "view.error.forbidden", arg: string(scope)})
		default:
			next(w, r)
		}
	}
}
