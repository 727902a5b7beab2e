package view

import (
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"text/template/parse"

	"go.yaml.in/yaml/v4"
)

// Languages are those the page speaks, the first where nothing else is known.
func Languages() []string { return []string{"en", "ja"} }

// words is what the page says, by key.
type words struct {
	texts map[string]map[string]string // by key, by language
}

// loadWords reads words/*.yaml of each tree. Every word is there in every language, with the same verbs, and once only.
func loadWords(trees []fs.FS) (*words, error) {
	w := &words{texts: map[string]map[string]string{}}
	for _, tree := range trees {
		files, err := fs.Glob(tree, "words/*.yaml")
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			data, err := fs.ReadFile(tree, file)
			if err != nil {
				return nil, err
			}
			read := map[string]map[string]string{}
			if err := yaml.Unmarshal(data, &read); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			for key, texts := range read {
				if _, twice := w.texts[key]; twice {
					return nil, fmt.Errorf("%s: %s stands in another file too", file, key)
				}
				for _, lang := range Languages() {
					if strings.TrimSpace(texts[lang]) == "" {
						return nil, fmt.Errorf("%s: %s has no text in %q", file, key, lang)
					}
					if a, b := verbs(texts["en"]), verbs(texts[lang]); !slices.Equal(a, b) {
						return nil, fmt.Errorf("%s: %s takes %v in en, but %v in %s", file, key, a, b, lang)
					}
				}
				w.texts[key] = texts
			}
		}
	}
	return w, nil
}

// verbs are the arguments a text takes, sorted: languages may order them with %[2]s.
func verbs(text string) []string {
	var found []string
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			continue
		}
		end := i + 1
		if rest := text[end:]; strings.HasPrefix(rest, "[") {
			end += strings.IndexByte(rest, ']') + 1
		}
		if end < len(text) && text[end] != '%' {
			found = append(found, text[end:end+1])
		}
		i = end
	}
	slices.Sort(found)
	return found
}

func (w *words) has(key string) bool { return w.texts[key] != nil }

// get returns a word as it stands. Of an unknown key it is the key.
func (w *words) get(lang, key string) string {
	if texts := w.texts[key]; texts != nil {
		return texts[lang]
	}
	return key
}

// say returns a word with its arguments in place. Without arguments a word is as it stands, per cent signs included.
func (w *words) say(lang, key string, args ...any) (string, error) {
	if !w.has(key) {
		return "", fmt.Errorf("there is no word %q", key)
	}
	if len(args) == 0 {
		return w.get(lang, key), nil
	}
	return fmt.Sprintf(w.get(lang, key), args...), nil
}

// check reports the first word a template says that there is not.
func (w *words) check(page *template.Template) error {
	for _, t := range page.Templates() {
		if t.Tree == nil {
			continue
		}
		for _, key := range spoken(t.Tree.Root) {
			if prefix, all := strings.CutSuffix(key, ".*"); all {
				if !w.hasPrefix(prefix + ".") {
					return fmt.Errorf("%s: no word begins with %q", t.Name(), prefix)
				}
			} else if !w.has(key) {
				return fmt.Errorf("%s: there is no word %q", t.Name(), key)
			}
		}
	}
	return nil
}

func (w *words) hasPrefix(prefix string) bool {
	for key := range w.texts {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// spoken lists the keys below a node: the first argument of t and th; of word and badge PREFIX.*.
func spoken(node parse.Node) []string {
	var keys []string
	switch n := node.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, child := range n.Nodes {
			keys = append(keys, spoken(child)...)
		}
	case *parse.ActionNode:
		keys = spoken(n.Pipe)
	case *parse.IfNode:
		keys = slices.Concat(spoken(n.Pipe), spoken(n.List), spoken(n.ElseList))
	case *parse.RangeNode:
		keys = slices.Concat(spoken(n.Pipe), spoken(n.List), spoken(n.ElseList))
	case *parse.WithNode:
		keys = slices.Concat(spoken(n.Pipe), spoken(n.List), spoken(n.ElseList))
	case *parse.TemplateNode:
		keys = spoken(n.Pipe)
	case *parse.PipeNode:
		if n == nil {
			return nil
		}
		for _, command := range n.Cmds {
			keys = append(keys, spoken(command)...)
		}
	case *parse.CommandNode:
		if function, ok := n.Args[0].(*parse.IdentifierNode); ok && len(n.Args) > 1 {
			if literal, ok := n.Args[1].(*parse.StringNode); ok {
				switch function.Ident {
				case "t", "th":
					keys = append(keys, literal.Text)
				case "word", "badge":
					keys = append(keys, literal.Text+".*")
				}
			}
		}
		for _, arg := range n.Args {
			keys = append(keys, spoken(arg)...)
		}
	}
	return keys
}

const (
	langCookie = "lang"
	langAge    = 365 * 24 * 60 * 60 // s
)

// language chooses: ?lang=, the cookie, Accept-Language, English. asked is whether the address says so.
func language(r *http.Request) (lang string, asked bool) {
	if l := r.URL.Query().Get("lang"); slices.Contains(Languages(), l) {
		return l, true
	}
	if c, err := r.Cookie(langCookie); err == nil && slices.Contains(Languages(), c.Value) {
		return c.Value, false
	}
	return accepted(r.Header.Get("Accept-Language")), false
}

// remember returns the language, and keeps in a cookie what an address says.
func remember(w http.ResponseWriter, r *http.Request) string {
	lang, asked := language(r)
	if asked {
		//nolint:gosec // a language is no secret; the page may be served without TLS on a loopback address
		http.SetCookie(w, &http.Cookie{Name: langCookie, Value: lang, Path: "/", MaxAge: langAge, HttpOnly: true,
			Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode})
	}
	return lang
}

// accepted is the first language of an Accept-Language field that there is. Browsers list them by preference, so weights are not
// read but for q=0, "not this one".
func accepted(field string) string {
	for entry := range strings.SplitSeq(clip(field, 200), ",") {
		tag, weight, _ := strings.Cut(strings.TrimSpace(entry), ";")
		if q := strings.TrimPrefix(strings.TrimSpace(weight), "q="); q != "" && strings.Trim(q, "0.") == "" {
			continue
		}
		primary, _, _ := strings.Cut(strings.ToLower(tag), "-")
		if slices.Contains(Languages(), primary) {
			return primary
		}
	}
	return Languages()[0]
}

// Say returns a word for that request, for texts that stand in data. An unknown key is returned as it is.
func (v *Renderer) Say(_ http.ResponseWriter, r *http.Request, key string, args ...any) string {
	lang, _ := language(r)
	text, err := v.words.say(lang, key, args...)
	if err != nil {
		return key
	}
	return text
}
