// Package viewtest examines pages as a browser under a strict content security policy and a screen reader would. Tests use it.
package viewtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// Page checks a whole page, and all that [Part] does.
func Page(t testing.TB, text string) {
	t.Helper()
	root := parse(t, text)
	for _, want := range []string{"html[lang]", "title", "h1", "main", "header"} {
		name, attribute, _ := strings.Cut(strings.TrimSuffix(want, "]"), "[")
		found := all(root, func(n *html.Node) bool { return n.Data == name && n.Namespace == "" })
		if len(found) != 1 {
			t.Errorf("%d elements %s, want 1", len(found), name)
		} else if attribute != "" && get(found[0], attribute) == "" {
			t.Errorf("%s without %s", name, attribute)
		}
	}
	level := 0
	for _, h := range all(root, func(n *html.Node) bool {
		return len(n.Data) == 2 && n.Data[0] == 'h' && n.Data[1] >= '1' && n.Data[1] <= '6'
	}) {
		if next := int(h.Data[1] - '0'); next > level+1 {
			t.Errorf("<%s>%s comes below a heading of level %d", h.Data, words(h), level)
		} else {
			level = next
		}
	}
	Part(t, text)
}

// Part checks a piece of a page: elements are closed in order, nothing is inline, every input is labelled, ids are unique, and what is
// referred to by id is there.
func Part(t testing.TB, text string) {
	t.Helper()
	if err := balanced(text); err != nil {
		t.Error(err)
	}
	root := parse(t, text)
	ids := map[string]bool{}
	for _, n := range all(root, func(n *html.Node) bool { return get(n, "id") != "" }) {
		if id := get(n, "id"); ids[id] {
			t.Errorf("id %q twice", id)
		} else {
			ids[id] = true
		}
	}
	labelled := map[string]bool{}
	for _, n := range all(root, func(n *html.Node) bool { return n.Data == "label" }) {
		labelled[get(n, "for")] = true
	}
	for _, n := range all(root, func(*html.Node) bool { return true }) {
		inline(t, n)
		references(t, n, ids)
		named(t, n, labelled)
	}
}

// inline reports what a strict policy forbids.
func inline(t testing.TB, n *html.Node) {
	t.Helper()
	for _, a := range n.Attr {
		key := strings.ToLower(a.Key)
		switch {
		case key == "style", strings.HasPrefix(key, "on"), strings.HasPrefix(key, "hx-on"):
			t.Errorf("<%s> has %s=%q", n.Data, a.Key, a.Val)
		case (key == "href" || key == "src" || key == "action") && strings.HasPrefix(strings.ToLower(strings.TrimSpace(a.Val)), "javascript:"):
			t.Errorf("<%s> leads to a script", n.Data)
		case key == "hx-trigger" && strings.Contains(a.Val, "["), strings.HasPrefix(key, "hx-") && strings.HasPrefix(a.Val, "js:"):
			t.Errorf("<%s> %s=%q needs eval", n.Data, a.Key, a.Val)
		case key == "src" || key == "href" && n.Data == "link":
			if !strings.HasPrefix(a.Val, "/static/") {
				t.Errorf("<%s> loads %q", n.Data, a.Val)
			}
		}
	}
	if n.Data == "style" || n.Data == "script" && get(n, "src") == "" {
		t.Errorf("<%s> stands in the page", n.Data)
	}
}

// references reports what points to nothing.
func references(t testing.TB, n *html.Node, ids map[string]bool) {
	t.Helper()
	for _, key := range []string{"aria-labelledby", "aria-describedby", "for", "list", "data-copy"} {
		for id := range strings.FieldsSeq(get(n, key)) {
			if !ids[id] {
				t.Errorf("<%s> %s=%q: there is no such id", n.Data, key, id)
			}
		}
	}
	if href := get(n, "href"); len(href) > 1 && href[0] == '#' && !ids[href[1:]] {
		t.Errorf("link to %s, which is not there", href)
	}
}

// named reports inputs, buttons and links that a screen reader cannot name, and tables without headings.
func named(t testing.TB, n *html.Node, labelled map[string]bool) {
	t.Helper()
	said := get(n, "aria-label") != "" || get(n, "aria-labelledby") != ""
	switch n.Data {
	case "input", "select", "textarea":
		kind := get(n, "type")
		if kind != "hidden" && kind != "submit" && !said && !labelled[get(n, "id")] {
			t.Errorf("<%s name=%q> has no label", n.Data, get(n, "name"))
		}
	case "button", "a", "summary", "h1", "h2", "h3", "legend", "label":
		if strings.TrimSpace(words(n)) == "" && !said {
			t.Errorf("<%s> has no text", n.Data)
		}
	case "table":
		if len(all(n, func(n *html.Node) bool { return n.Data == "th" && get(n, "scope") != "" })) == 0 {
			t.Error("a table without headings")
		}
	case "svg":
		if get(n, "role") == "img" && !said {
			t.Error("a picture without a name")
		}
	}
}

func parse(t testing.TB, text string) *html.Node {
	t.Helper()
	root, err := html.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// all returns the elements below a node that fit, in document order.
func all(root *html.Node, fits func(*html.Node) bool) []*html.Node {
	var found []*html.Node
	for n := range root.Descendants() {
		if n.Type == html.ElementNode && fits(n) {
			found = append(found, n)
		}
	}
	return found
}

func get(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

func words(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data)
		}
	}
	return b.String()
}

// balanced reports the first element that is not closed where it should be. The parser would mend it in silence.
func balanced(text string) error {
	void := []string{"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
	var open []string
	tokens := html.NewTokenizer(strings.NewReader(text))
	for {
		kind := tokens.Next()
		name, _ := tokens.TagName()
		switch tag := string(name); kind {
		case html.ErrorToken:
			if len(open) > 0 {
				return fmt.Errorf("<%s> is never closed", open[len(open)-1])
			}
			return nil
		case html.StartTagToken:
			if !slices.Contains(void, tag) {
				open = append(open, tag)
			}
		case html.EndTagToken:
			if len(open) == 0 || open[len(open)-1] != tag {
				return fmt.Errorf("</%s> closes %v", tag, open)
			}
			open = open[:len(open)-1]
		default: // neither opens nor closes
		}
	}
}
