package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// tab is a tab of the browser, and what it complained of.
type tab struct {
	t   *testing.T // of the test that uses it now
	ctx context.Context

	mu       sync.Mutex // guards what follows
	said     []string   // console messages, exceptions, violations of the policy
	refused  int        // documents answered with 4xx or 5xx, each of which Chromium notes in the console
	noted    int        // such notes
	policies map[string]string
}

// newTab opens a tab; own gives it cookies of its own, as a second person's browser has.
func (w *world) newTab(t *testing.T, own bool) *tab {
	t.Helper()
	b := &tab{t: t, policies: map[string]string{}}
	options := []chromedp.ContextOption{chromedp.WithListener(b.listen)}
	if own {
		options = append(options, chromedp.WithNewBrowserContext())
	}
	ctx, cancel := chromedp.NewContext(w.browser, options...)
	t.Cleanup(cancel)
	b.ctx = ctx
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	_, err1 := chromedp.Call(ctx, audits.Enable, cdp.Empty{})
	_, err2 := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	b.look(1280, false)
	return b
}

// listen notes whatever Chromium complains of.
func (b *tab) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		if strings.HasPrefix(e.Entry.Text, "Failed to load resource: the server responded with a status of ") {
			b.noted++
			return
		}
		b.said = append(b.said, fmt.Sprintf("%s: %s (%s)", e.Entry.Source, e.Entry.Text, e.Entry.URL))
	case *runtime.EventConsoleAPICalled:
		text, _ := json.Marshal(e.Args) // for a person to read; an empty one says as much
		b.said = append(b.said, fmt.Sprintf("console.%s: %s", e.Type, text))
	case *runtime.EventExceptionThrown:
		b.said = append(b.said, "exception: "+e.ExceptionDetails.Text)
	case *audits.EventIssueAdded:
		if e.Issue.Code == audits.InspectorIssueCodeContentSecurityPolicyIssue {
			text, _ := json.Marshal(e.Issue.Details)
			b.said = append(b.said, "policy violated: "+string(text))
		}
	case *network.EventResponseReceived:
		if e.Type != network.ResourceTypeDocument {
			return
		}
		if e.Response.Status >= 400 {
			b.refused++
		}
		for name, value := range e.Response.Headers {
			if strings.EqualFold(name, "Content-Security-Policy") {
				b.policies[e.Response.URL] = fmt.Sprint(value)
			}
		}
	}
}

// quiet fails unless the tab had nothing to complain of since the last time.
func (b *tab) quiet(where string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.said) > 0 {
		b.t.Errorf("%s: Chromium says:\n%s", where, strings.Join(b.said, "\n"))
	}
	if b.noted > b.refused {
		b.t.Errorf("%s: %d answers were errors, and only %d were pages", where, b.noted, b.refused)
	}
	b.said, b.noted, b.refused = nil, 0, 0
}

// policy returns the Content-Security-Policy the page in the tab came with.
func (b *tab) policy() string {
	b.t.Helper()
	here, _, _ := strings.Cut(b.location(), "#")
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.policies[here]
}

// do runs steps within patience.
func (b *tab) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatalf("%s: %v\nthe page at %s shows:\n%s", what, err, b.location(), b.text())
	}
}

// leads runs a step that leads to another page, waits for that, and returns its answer.
func (b *tab) leads(what string, step chromedp.Action[chromedp.Void]) *network.Response {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	response, err := chromedp.RunResponse(ctx, step)
	if err != nil {
		b.t.Fatalf("%s: %v\nthe page at %s shows:\n%s", what, err, b.location(), b.text())
	}
	return response
}

func (b *tab) open(url string) *network.Response {
	b.t.Helper()
	return b.leads("open "+url, chromedp.Navigate(url))
}

// named selects a button or link by its text.
func named(text string) string {
	return fmt.Sprintf(`//main//*[self::button or self::a][normalize-space()=%q]`, text)
}

// press clicks a button or link of the page proper, which leads to another page.
func (b *tab) press(text string) *network.Response {
	b.t.Helper()
	return b.leads("press "+text, chromedp.Click(named(text), chromedp.NodeVisible))
}

// fill enters values into fields of these names, each emptied before.
func (b *tab) fill(pairs ...string) {
	b.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		field := chromedp.CSS(fmt.Sprintf(`main [name=%q]`, pairs[i]))
		b.do("fill in "+pairs[i], chromedp.Clear(field), chromedp.SendKeys(field, pairs[i+1]))
	}
}

// eval evaluates an expression in the page; it must not fail.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("evaluate %.80s: %v", expression, err)
	}
	return v
}

// visible is what a person sees, what stands in fields after the rest.
const visible = `document.body ? document.body.innerText + "\n" +
	[...document.querySelectorAll("input:not([type=hidden]), textarea")].map((e) => e.value).join("\n") : ""`

// text is what a person sees, and empty while a page is being exchanged for another.
func (b *tab) text() string {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](visible))
	if err != nil {
		return ""
	}
	return text
}

func (b *tab) location() string {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	url, err := chromedp.Run(ctx, chromedp.Location())
	if err != nil {
		return err.Error()
	}
	return url
}

// shows waits until the page shows each of the texts, without being loaded again.
func (b *tab) shows(texts ...string) {
	b.t.Helper()
	for _, want := range texts {
		deadline := time.After(patience)
		tick := time.NewTicker(50 * time.Millisecond)
		for !strings.Contains(b.text(), want) {
			select {
			case <-tick.C:
				continue
			case <-deadline:
			}
			tick.Stop()
			b.t.Fatalf("the page at %s does not show %q but:\n%s", b.location(), want, b.text())
		}
		tick.Stop()
	}
}

// hides fails if the page shows one of the texts.
func (b *tab) hides(texts ...string) {
	b.t.Helper()
	shown := b.text()
	for _, no := range texts {
		if strings.Contains(shown, no) {
			b.t.Errorf("the page at %s shows %q:\n%s", b.location(), no, shown)
		}
	}
}

// look sets the width of the page in CSS pixels, and the scheme its reader prefers.
func (b *tab) look(width int64, dark bool) {
	b.t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	b.do("look", chromedp.EmulateViewport(width, 800), chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
		}})
		return err
	}))
}

// picture returns the page as it is shown, at most 1,200 pixels of it.
func (b *tab) picture() []byte {
	b.t.Helper()
	size := eval[[2]float64](b, `[document.documentElement.clientWidth, document.documentElement.scrollHeight]`)
	result, err := chromedp.Call(b.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{
		CaptureBeyondViewport: new(true), Clip: &page.Viewport{Width: size[0], Height: min(size[1], 1200), Scale: 1},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return result.Data
}

// client returns an HTTP client with the tab's session.
func (b *tab) client() func(url string) (*http.Response, error) {
	b.t.Helper()
	got, err := chromedp.Call(b.ctx, network.GetCookies, network.GetCookiesParams{})
	if err != nil {
		b.t.Fatal(err)
	}
	return func(url string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			return nil, err
		}
		for _, c := range got.Cookies {
			req.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value})
		}
		return http.DefaultClient.Do(req)
	}
}
