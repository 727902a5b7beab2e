package page_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/page"
	"relayd/pkg/admin/page/view/viewtest"
	"relayd/pkg/envelope"
)

// rig is the page before a fake relay.
type rig struct {
	http.Handler
	console  *fakeConsole
	messages *fakeMessages
	log      *observer.ObservedLogs
}

func newRig(t testing.TB, n int, text string) *rig {
	t.Helper()
	now := time.Now()
	core, log := observer.New(zap.DebugLevel)
	r := &rig{console: &fakeConsole{now: now, entries: 130, text: text}, messages: newMessages(n, now, text), log: log}
	var err error
	if r.Handler, err = page.New(page.Options{Console: r.console, Messages: r.messages, Version: "1.2.3", Logger: zap.New(core)}); err != nil {
		t.Fatal(err)
	}
	return r
}

// ask does a request as somebody of that role; no role: as nobody.
func (r *rig) ask(role access.Role, method, target string, form url.Values, headers ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, target, strings.NewReader(form.Encode()))
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	if role != "" {
		who := &access.Principal{Name: "ops", Role: role, Scopes: role.Scopes(), Peer: "192.0.2.1"}
		req = req.WithContext(access.With(req.Context(), who))
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	return w
}

func (r *rig) get(t *testing.T, target string) string {
	t.Helper()
	w := r.ask(access.Admin, "GET", target, nil)
	if w.Code != http.StatusOK {
		t.Fatalf("%s: got %d", target, w.Code)
	}
	return w.Body.String()
}

// views are addresses of every view, with a message of each state.
func (r *rig) views() []string {
	all := []string{
		"/", "/messages", "/messages?q=fabrikam.example&state=sent", "/messages?state=uncertain&q=nobody@example.com", "/configuration", "/configuration?q=key_1",
		"/audit", "/audit?before=70", "/audit?before=1", "/messages?q=no+such+thing&since=x&id=1&state=odd&message_id=%3C%3E",
		"/senders", "/tenants", "/guide", // package enrol tests them for what they say
	}
	seen := map[envelope.State]bool{}
	for _, s := range r.messages.all {
		if !seen[s.State] {
			seen[s.State] = true
			all = append(all, "/messages/"+string(s.ID))
		}
	}
	return all
}

// TestEveryViewIsSafeAndWhole: script in every field, in both languages, for every role; whole and in part.
func TestEveryViewIsSafeAndWhole(t *testing.T) {
	r := newRig(t, 200, hostile)
	japanese := regexp.MustCompile(`[\p{Hiragana}\p{Katakana}]`)
	for _, target := range r.views() {
		for _, role := range []access.Role{access.Viewer, access.Admin} {
			for _, lang := range []string{"en", "ja"} {
				t.Run(fmt.Sprint(target, " ", role, " ", lang), func(t *testing.T) {
					w := r.ask(role, "GET", target, nil, "Accept-Language", lang)
					got := w.Body.String()
					if w.Code != http.StatusOK {
						t.Errorf("got %d", w.Code)
					}
					viewtest.Page(t, got)
					if strings.Contains(got, "<script>alert") || strings.Contains(got, "<img") {
						t.Errorf("a stranger's markup stands in %s", got)
					}
					if lang == "ja" && !japanese.MatchString(got) || !strings.Contains(got, `<html lang="`+lang+`"`) {
						t.Error("not in the language asked for")
					}
					part := r.ask(role, "GET", target, nil, "HX-Request", "true").Body.String()
					viewtest.Part(t, `<div id="in-force-of-the-page">`+part+"</div>")
				})
			}
		}
	}
}

func TestQuietRelay(t *testing.T) {
	r := newRig(t, 0, "")
	r.console.calm, r.console.entries = true, 0
	for target, want := range map[string]string{
		"/": "Mail is flowing.", "/messages": "There are no messages yet", "/audit": "Nothing was changed yet", "/configuration": "in force as it stands",
	} {
		got := r.get(t, target)
		viewtest.Page(t, got)
		if !strings.Contains(got, want) {
			t.Errorf("%s: no %q", target, want)
		}
	}
}

func TestEveryViewIsFast(t *testing.T) {
	r := newRig(t, 5000, "")
	for _, target := range r.views() {
		var took []time.Duration
		for range 5 {
			began := time.Now()
			r.ask(access.Admin, "GET", target, nil)
			took = append(took, time.Since(began))
		}
		if slices.Sort(took); took[0] > 200*time.Millisecond { // the best: the machine does other things too
			t.Errorf("%s took %v", target, took)
		}
	}
}

func BenchmarkMessages(b *testing.B) {
	r := newRig(b, 5000, "")
	for b.Loop() {
		r.ask(access.Admin, "GET", "/messages", nil)
	}
}

func TestWhoMayWhat(t *testing.T) {
	r := newRig(t, 20, "secret canary ")
	held := r.first(envelope.Held)
	for _, target := range append(r.views(), "/nothing") {
		if w := r.ask("", "GET", target, nil); w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), "contoso") {
			t.Errorf("%s as nobody: got %d", target, w.Code)
		}
	}
	changes := []string{"/messages/actions", held + "/release", held + "/drop"}
	for _, target := range changes {
		if w := r.ask(access.Viewer, "POST", target, url.Values{"action": {"drop"}, "confirm": {"yes"}, "id": {held[len("/messages/"):]}}); w.Code != http.StatusForbidden {
			t.Errorf("POST %s as viewer: got %d", target, w.Code)
		}
		if w := r.ask(access.Admin, "GET", target, nil); target != changes[0] && w.Code != http.StatusNotFound {
			t.Errorf("GET %s: got %d", target, w.Code)
		}
	}
	if len(r.messages.done) > 0 {
		t.Errorf("a viewer has done %v", r.messages.done)
	}
	if w := r.ask(access.Viewer, "GET", held+"/raw", nil); w.Code != http.StatusForbidden {
		t.Errorf("raw as viewer: got %d", w.Code)
	}
	for _, target := range []string{"/messages", held} {
		got := r.ask(access.Viewer, "GET", target, nil).Body.String()
		for _, hidden := range []string{"Dear customer", "請求書", "/raw", `action="/messages/`, `type="checkbox"`} {
			if strings.Contains(got, hidden) {
				t.Errorf("%s shows a viewer %q", target, hidden)
			}
		}
	}
	got := r.ask(access.Operator, "GET", held, nil).Body.String()
	for _, shown := range []string{"Dear customer", "請求書", "/raw", held + "/release", "invoice.pdf"} {
		if !strings.Contains(got, shown) {
			t.Errorf("an operator does not see %q", shown)
		}
	}
}

// first is the address of the latest message in a state.
func (r *rig) first(state envelope.State) string {
	for _, s := range r.messages.all {
		if s.State == state {
			return "/messages/" + string(s.ID)
		}
	}
	return ""
}

func TestPartKeepsItsContentToItself(t *testing.T) {
	r := newRig(t, 20, "")
	part := r.ask(access.Admin, "GET", r.first(envelope.Deferred), nil, "HX-Request", "true").Body.String()
	if strings.Contains(part, "<html") || strings.Contains(part, "Dear customer") || !strings.Contains(part, `hx-trigger="every 2s"`) {
		t.Errorf("got %s", part)
	}
	if sent := r.get(t, r.first(envelope.Sent)); strings.Contains(sent, "hx-trigger") {
		t.Error("a message that is sent is asked for again and again")
	}
}

var row = regexp.MustCompile(`<tr id="m-([0-9a-z]{20})">`)

func ids(text string) []string {
	var found []string
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

func TestSearch(t *testing.T) {
	r := newRig(t, 2000, "")
	m := r.messages.all[700]
	at := func(age time.Duration) string {
		return url.QueryEscape(r.console.now.Add(-age).Local().Format("2006-01-02T15:04:05"))
	}
	tests := []struct {
		name, query string
		want        int // rows shown
	}{
		{"nothing", "", 50},
		{"queue id", "q=" + string(m.ID), 1},
		{"queue id as people shout it", "q=" + strings.ToUpper(string(m.ID)), 1},
		{"sender's address", "q=Scanner700@contoso.example", 2},
		{"recipient's address", "q=r700@example.net", 1},
		{"Message-ID", "q=" + url.QueryEscape(m.MessageID), 1},
		{"Message-ID without brackets", "q=m700@contoso.example", 1},
		{"domain of both", "q=contoso.example", 50},
		{"domain with @", "q=@example.net", 50},
		{"with a filter", "q=scanner700@contoso.example&state=" + string(m.State), 1},
		{"sender alone", "sender=scanner700@contoso.example", 2},
		{"sender and recipient", "sender=scanner700@contoso.example&recipient=r700@example.net", 1},
		{"address with both filters set is the Message-ID", "q=r700@example.net&sender=*@contoso.example&recipient=*@example.net", 0},
		{"id", "id=" + string(m.ID), 1},
		{"two ids", "id=" + string(m.ID) + "&q=" + string(r.messages.all[0].ID), 0},
		{"Message-ID field", "message_id=m700@contoso.example", 1},
		{"between", "since=" + at(20*17*time.Second) + "&until=" + at(10*17*time.Second), 10},
		{"minutes will do", "since=2020-01-01T00:00", 50},
		{"nobody", "q=nobody@example.com", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := r.ask(access.Admin, "GET", "/messages?"+tt.query, nil)
			if got := len(ids(w.Body.String())); got != tt.want || w.Code != http.StatusOK {
				t.Errorf("got %d rows and %d, want %d", got, w.Code, tt.want)
			}
		})
	}
}

func TestSearchMistakesStandBesideTheirFields(t *testing.T) {
	r := newRig(t, 10, "")
	for query, want := range map[string]string{
		"q=invoice":           "Subjects and contents are not searched",
		"q=two+words":         "Subjects and contents are not searched",
		"id=123":              "20 letters and digits",
		"since=yesterday":     "This is no time",
		"until=2026-13-01":    "This is no time",
		"state=gone":          "There is no such state",
		"message_id=%3C+%3E":  "between the angle brackets",
		"q=%3C%3E":            "Subjects and contents are not searched",
		"q=a@b.example%22%3E": "Subjects and contents are not searched",
	} {
		w := r.ask(access.Admin, "GET", "/messages?"+query, nil)
		name, value, _ := strings.Cut(query, "=")
		value, _ = url.QueryUnescape(value)
		got := w.Body.String()
		if !strings.Contains(got, want) || !strings.Contains(got, `id="field-`+name+`-mistake"`) || len(ids(got)) > 0 {
			t.Errorf("%s: got %d", query, w.Code)
		}
		if kept := strings.NewReplacer("<", "&lt;", ">", "&gt;", `"`, "&#34;").Replace(value); name != "state" && !strings.Contains(got, `value="`+kept+`"`) {
			t.Errorf("%s: what was entered is lost", query)
		}
	}
}

func TestPaging(t *testing.T) {
	r := newRig(t, 120, "")
	next := regexp.MustCompile(`rel="next" href="([^"]+)"`)
	target, seen := "/messages?q=contoso.example", map[string]bool{}
	for pages := 1; ; pages++ {
		got := r.get(t, target)
		for _, id := range ids(got) {
			if seen[id] {
				t.Errorf("%s shown twice", id)
			}
			seen[id] = true
		}
		if live := strings.Contains(got, `hx-trigger="every 5s"`); live != (pages == 1) {
			t.Errorf("page %d: live=%v", pages, live)
		}
		m := next.FindStringSubmatch(got)
		if m == nil {
			if pages != 3 || len(seen) != 120 {
				t.Errorf("got %d messages on %d pages", len(seen), pages)
			}
			break
		}
		if target = strings.ReplaceAll(m[1], "&amp;", "&"); !strings.Contains(target, "q=contoso.example") {
			t.Fatalf("the next page forgets the search: %s", target)
		}
	}
	if got := r.get(t, "/messages?before=nonsense"); len(ids(got)) != 50 {
		t.Error("a page that begins nowhere is not the first")
	}
}

func TestAuditPaging(t *testing.T) {
	r := newRig(t, 0, "")
	target, shown := "/audit", 0
	next := regexp.MustCompile(`rel="next" href="([^"]+)"`)
	for range 5 {
		got := r.get(t, target)
		shown += strings.Count(got, "<tr>") - 1
		m := next.FindStringSubmatch(got)
		if m == nil {
			break
		}
		target = m[1]
	}
	if shown != 130 {
		t.Errorf("got %d entries, want 130", shown)
	}
}

func TestConfigurationFilter(t *testing.T) {
	r := newRig(t, 0, "")
	if got := r.get(t, "/configuration?q=KEY_12"); !strings.Contains(got, "10 of 300 settings") || strings.Contains(got, "key_200") {
		t.Error("the filter does not filter")
	}
	part := r.ask(access.Admin, "GET", "/configuration?q=nothing+like+it", nil, "HX-Request", "true").Body.String()
	if !strings.HasPrefix(part, `<section id="settings"`) || !strings.Contains(part, "0 of 300") {
		t.Errorf("got %s", part)
	}
}

var hidden = regexp.MustCompile(`<input type="hidden" name="id" value="([0-9a-z]{20})">`)

func TestBulkShowsFirstThenDoesWhatWasShown(t *testing.T) {
	r := newRig(t, 30, "")
	a, b := string(r.messages.all[3].ID), string(r.messages.all[5].ID)
	gone := string(r.messages.all[0].ID) // has been sent
	w := r.ask(access.Operator, "POST", "/messages/actions", url.Values{"action": {"hold"}, "id": {a, b, a, gone, "x"}, "back": {"/messages?state=deferred"}})
	got := w.Body.String()
	viewtest.Page(t, got)
	if len(r.messages.done) > 0 {
		t.Fatalf("done before it was confirmed: %v", r.messages.done)
	}
	shown := hidden.FindAllStringSubmatch(got, -1)
	if len(shown) != 2 || !strings.Contains(got, "Messages: 2") || !strings.Contains(got, gone) || !strings.Contains(got, "has left the queue") {
		t.Fatalf("got %v in %s", shown, got)
	}
	w = r.ask(access.Operator, "POST", "/messages/actions", url.Values{"action": {"hold"}, "confirm": {"yes"}, "id": {a, b}, "back": {"/messages?state=deferred"}})
	slices.Sort(r.messages.done)
	want := []string{"hold " + a + " ops", "hold " + b + " ops"}
	slices.Sort(want)
	if !slices.Equal(r.messages.done, want) {
		t.Errorf("got %v, want %v", r.messages.done, want)
	}
	if to := w.Header().Get("Location"); w.Code != http.StatusSeeOther || to != "/messages?n=2&notice=messages.notice.hold&state=deferred" {
		t.Errorf("got %d to %s", w.Code, to)
	}
	if n := r.log.FilterMessage("operator acts on a message").Len(); n != 2 {
		t.Errorf("%d lines in the log, want one for each message", n)
	}
	if got := r.get(t, w.Header().Get("Location")); !strings.Contains(got, "Held: 2") {
		t.Error("nobody is told that it was done")
	}
}

func TestBulkSaysWhatItCouldNotDo(t *testing.T) {
	r := newRig(t, 5, "")
	r.messages.busy = r.messages.all[1].ID
	form := url.Values{"action": {"retry"}, "confirm": {"yes"}, "id": {string(r.messages.all[0].ID), string(r.messages.busy)}}
	w := r.ask(access.Operator, "POST", "/messages/actions", form)
	got := w.Body.String()
	viewtest.Page(t, got)
	if !strings.Contains(got, "Done to 1. Not done to 1") || !strings.Contains(got, "being sent right now") || !strings.Contains(got, string(r.messages.busy)) {
		t.Errorf("got %s", got)
	}
}

func TestBulkOfAllThatFit(t *testing.T) {
	r := newRig(t, 3000, "")
	form := url.Values{"action": {"drop"}, "all": {"yes"}, "query": {"state=held"}, "id": {string(r.messages.all[0].ID)}}
	got := r.ask(access.Operator, "POST", "/messages/actions", form).Body.String()
	if n := len(hidden.FindAllString(got, -1)); n != 273 || strings.Contains(got, "More fit") {
		t.Errorf("got %d held messages", n)
	}
	form.Set("query", "")
	got = r.ask(access.Operator, "POST", "/messages/actions", form).Body.String()
	if n := len(hidden.FindAllString(got, -1)); n != 1000 || !strings.Contains(got, "More fit") {
		t.Errorf("got %d of all messages, and does not say that there are more", n)
	}
	if form.Set("query", "state=sent"); r.ask(access.Operator, "POST", "/messages/actions", form).Code != http.StatusSeeOther {
		t.Error("what has been sent is to be dropped")
	}
	for _, query := range []string{"state=nonsense", "q=two words", "%zz"} { // a filter that cannot be read fits nothing, not everything
		form.Set("query", query)
		if w := r.ask(access.Operator, "POST", "/messages/actions", form); w.Code == http.StatusOK {
			t.Errorf("%s: got %d", query, w.Code)
		}
	}
	if len(r.messages.done) > 0 {
		t.Errorf("done: %v", r.messages.done)
	}
}

func TestBulkWithNothingChosen(t *testing.T) {
	r := newRig(t, 5, "")
	for _, back := range []string{"/messages", "//evil.example/messages", "https://evil.example/", "/logout", "javascript:alert(1)", "\\evil"} {
		w := r.ask(access.Operator, "POST", "/messages/actions", url.Values{"action": {"drop"}, "back": {back}})
		if to := w.Header().Get("Location"); w.Code != http.StatusSeeOther || to != "/messages?notice=messages.notice.none" {
			t.Errorf("%s: got %d to %s", back, w.Code, to)
		}
	}
	if w := r.ask(access.Operator, "POST", "/messages/actions", url.Values{"action": {"burn"}}); w.Code != http.StatusNotFound {
		t.Errorf("unknown action: got %d", w.Code)
	}
}

func TestActOnOne(t *testing.T) {
	r := newRig(t, 20, "")
	m := r.first(envelope.Deferred)
	for _, action := range []string{"retry", "hold", "release", "drop"} {
		w := r.ask(access.Operator, "POST", m+"/"+action, url.Values{})
		if to := w.Header().Get("Location"); w.Code != http.StatusSeeOther || to != m+"?n=1&notice=messages.notice."+action {
			t.Errorf("%s: got %d to %s", action, w.Code, to)
		}
	}
	if len(r.messages.done) != 4 {
		t.Errorf("done: %v", r.messages.done)
	}
	for _, target := range []string{m + "/burn", "/messages/x/retry"} {
		if w := r.ask(access.Operator, "POST", target, url.Values{}); w.Code != http.StatusNotFound {
			t.Errorf("%s: got %d", target, w.Code)
		}
	}
	r.messages.busy = envelope.ID(m[len("/messages/"):])
	if w := r.ask(access.Operator, "POST", m+"/hold", url.Values{}); w.Code != http.StatusConflict {
		t.Errorf("while it is being sent: got %d", w.Code)
	}
}

func TestRawIsNeverShown(t *testing.T) {
	r := newRig(t, 5, "")
	m := r.first(envelope.Sent)
	w := r.ask(access.Operator, "GET", m+"/raw", nil)
	h := w.Header()
	if w.Code != 200 || w.Body.String() != r.messages.raw || !strings.HasPrefix(h.Get("Content-Disposition"), "attachment;") ||
		h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Type") != "message/rfc822" {
		t.Errorf("got %d %v", w.Code, h)
	}
}

func TestErrorsAreToldInWords(t *testing.T) {
	r := newRig(t, 5, "")
	if w := r.ask(access.Admin, "GET", "/messages/"+string(envelope.NewID(time.UnixMilli(5))), nil); w.Code != http.StatusNotFound {
		t.Errorf("unknown message: got %d", w.Code)
	}
	m := r.first(envelope.Sent)
	r.messages.err, r.console.err = fmt.Errorf("open: %w", api.ErrUnavailable), errors.New("inner canary")
	for target, code := range map[string]int{
		"/": 503, "/senders": 503, "/configuration": 503, "/audit": 503, "/messages": 503, m: 503, m + "/raw": 503, "/nothing": 404, "/messages/x": 404, "/messages/x/raw": 404,
	} {
		w := r.ask(access.Admin, "GET", target, nil)
		if got := w.Body.String(); w.Code != code || strings.Contains(got, "canary") || strings.Contains(got, "open:") {
			t.Errorf("%s: got %d, want %d", target, w.Code, code)
		} else {
			viewtest.Page(t, got)
		}
	}
}

func TestNewNeedsItsParts(t *testing.T) {
	if _, err := page.New(page.Options{}); err == nil {
		t.Error("a page of nothing is made")
	}
}
