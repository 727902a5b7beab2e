package viewtest

import (
	"fmt"
	"strings"
	"testing"
)

// recorder notes what a check reports.
type recorder struct {
	testing.TB
	said []string
}

func (*recorder) Helper() {}

func (r *recorder) Error(args ...any) { r.said = append(r.said, fmt.Sprint(args...)) }

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func TestPartFinds(t *testing.T) {
	tests := []struct{ html, want string }{
		{`<p><b>x</p></b>`, "closes"},
		{`<div>`, "never closed"},
		{`<p style="x">a</p>`, "style"},
		{`<p onclick="x">a</p>`, "onclick"},
		{`<p hx-on:click="x">a</p>`, "hx-on"},
		{`<p hx-trigger="every 1s [x]">a</p>`, "eval"},
		{`<script>x</script>`, "stands in the page"},
		{`<style>x</style>`, "stands in the page"},
		{`<script src="https://cdn.example/x"></script>`, "loads"},
		{`<a href=" JavaScript:x">a</a>`, "script"},
		{`<input name="a">`, "no label"},
		{`<button></button>`, "no text"},
		{`<p id="a">x</p><p id="a">y</p>`, "twice"},
		{`<p aria-labelledby="none">x</p>`, "no such id"},
		{`<a href="#none">x</a>`, "not there"},
		{`<table><tbody><tr><td>x</td></tr></tbody></table>`, "without headings"},
		{`<svg role="img"></svg>`, "without a name"},
	}
	for _, tt := range tests {
		r := &recorder{TB: t}
		Part(r, tt.html)
		if got := strings.Join(r.said, "\n"); !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.html, got, tt.want)
		}
	}
	Part(t, `<label for="a">x</label><input id="a"><input type="hidden"><a href="/x">x</a>`)
}

func TestPageFinds(t *testing.T) {
	r := &recorder{TB: t}
	Page(r, `<html><head></head><body><h1>a</h1><h3>b</h3></body></html>`)
	for _, want := range []string{"html without lang", "0 elements title", "0 elements main", "below a heading of level 1"} {
		if got := strings.Join(r.said, "\n"); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
