package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/admin/access"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a queue of which the test knows everything. All methods note their call and return err, where it is set.
type fake struct {
	mu    sync.Mutex // guards the rest
	err   error
	busy  envelope.ID // the one that is being sent
	list  []envelope.Summary
	query envelope.Query // of the last List
	calls []string
	sent  Submission
	text  string // of the message sent
	raw   io.Reader
	size  int64
	get   *Message
}

func (f *fake) call(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fake) List(_ context.Context, q envelope.Query) ([]envelope.Summary, error) {
	if err := f.call("list"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.query = q
	var found []envelope.Summary
	for _, s := range f.list {
		if (q.ID == "" || q.ID == s.ID) && (q.Before == "" || s.ID < q.Before) && len(found) < q.Limit {
			found = append(found, s)
		}
	}
	return found, nil
}

func (f *fake) Get(_ context.Context, id envelope.ID) (*Message, error) {
	return f.get, f.call("get %s", id)
}

func (f *fake) Raw(_ context.Context, id envelope.ID) (io.ReadCloser, int64, error) {
	if err := f.call("raw %s", id); err != nil {
		return nil, 0, err
	}
	return io.NopCloser(f.raw), f.size, nil
}

func (f *fake) change(what string, id envelope.ID, by string) error {
	err := f.call("%s %s %s", what, id, by)
	if id == f.busy {
		return fmt.Errorf("%s: %w", what, ErrBusy)
	}
	return err
}

func (f *fake) Retry(_ context.Context, id envelope.ID, by string) error {
	return f.change("retry", id, by)
}
func (f *fake) Hold(_ context.Context, id envelope.ID, by string) error {
	return f.change("hold", id, by)
}
func (f *fake) Release(_ context.Context, id envelope.ID, by string) error {
	return f.change("release", id, by)
}
func (f *fake) Drop(_ context.Context, id envelope.ID, by string) error {
	return f.change("drop", id, by)
}

func (f *fake) Send(_ context.Context, s Submission) (envelope.ID, error) {
	text, err := io.ReadAll(s.Message)
	if err != nil {
		return "", fmt.Errorf("store: %w", err)
	}
	f.sent, f.text = s, string(text)
	return ids(1)[0], f.call("send %s %s", s.By, s.Peer)
}

// ids are n valid ones, the latest first.
func ids(n int) []envelope.ID {
	list := make([]envelope.ID, n)
	for i := range list {
		list[i] = envelope.NewID(time.Date(2026, 1, 1, 0, 0, n-i, 0, time.UTC))
	}
	return list
}

func summaries(ids []envelope.ID) []envelope.Summary {
	list := make([]envelope.Summary, len(ids))
	for i, id := range ids {
		list[i] = envelope.Summary{ID: id, Received: id.Time(), Sender: "a@contoso.com", Recipients: []envelope.Address{"b@example.com"}, State: envelope.Deferred}
	}
	return list
}

// world is a server with the API on it.
type world struct {
	t    *testing.T
	f    *fake
	who  atomic.Pointer[access.Principal] // who asks; nil: nobody
	url  string
	logs *observer.ObservedLogs
}

// admin may do everything.
func admin() *access.Principal {
	return &access.Principal{Name: "ops@contoso.com", Role: access.Admin, Scopes: access.Admin.Scopes(), Peer: "127.0.0.1"}
}

// asAdmin puts an admin before h, as the login before the API would.
func asAdmin(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(access.With(r.Context(), admin())))
	})
}

func newWorld(t *testing.T, change func(*Options)) *world {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	f := &fake{}
	opts := Options{Messages: f, Logger: zap.New(core)}
	if change != nil {
		change(&opts)
	}
	h, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, f: f, logs: logs}
	w.who.Store(admin())
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(rw, r.WithContext(access.With(r.Context(), w.who.Load())))
	}))
	s.Config.ErrorLog, err = zap.NewStdLogAt(zap.NewNop(), zap.ErrorLevel)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Close)
	w.url = s.URL
	return w
}

type answer struct {
	code   int
	body   string
	header http.Header
}

// problem is the detail of an answer that must be a problem.
func (a answer) problem(t *testing.T) string {
	t.Helper()
	var p struct {
		Title, Detail, Type string
		Status              int
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || a.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("no problem: %d %s %q, %v", a.code, a.header.Get("Content-Type"), a.body, err)
	}
	if p.Status != a.code || p.Title != http.StatusText(a.code) || p.Detail == "" {
		t.Errorf("got status %d, title %q and detail %q in a %d", p.Status, p.Title, p.Detail, a.code)
	}
	return p.Detail
}

func (w *world) do(method, path, body string, change func(*http.Request)) answer {
	w.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, reader)
	if err != nil {
		w.t.Fatal(err)
	}
	if method == "POST" || method == "PUT" {
		req.Header.Set("Content-Type", "application/json")
	}
	if change != nil {
		change(req)
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req) // follows no redirect
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{resp.StatusCode, string(text), resp.Header}
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func decode[T any](t *testing.T, a answer, code int) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil || a.code != code || strings.Contains(a.body, "$schema") {
		t.Fatalf("got %d %q: %v", a.code, a.body, err)
	}
	return v
}

func TestList(t *testing.T) {
	w := newWorld(t, nil)
	known := ids(5)
	w.f.list = summaries(known)
	all := decode[Listing](t, w.do("GET", messagesPath, "", nil), 200)
	if len(all.Messages) != 5 || all.Next != "" || all.Messages[0].ID != known[0] {
		t.Errorf("got %+v", all)
	}
	if want := (envelope.Query{Limit: 100}); w.f.query != want {
		t.Errorf("got %+v, want %+v", w.f.query, want)
	}
	page := decode[Listing](t, w.do("GET", messagesPath+"?limit=2&before="+string(known[1]), "", nil), 200)
	if len(page.Messages) != 2 || page.Messages[0].ID != known[2] || page.Next != known[3] {
		t.Errorf("got %+v", page)
	}
	w.f.list = nil
	if a := w.do("GET", messagesPath, "", nil); a.code != 200 || a.body != "{\"messages\":[]}\n" {
		t.Errorf("nothing found: got %d %q", a.code, a.body)
	}
}

func TestFilters(t *testing.T) {
	w := newWorld(t, nil)
	id := ids(1)[0]
	w.do("GET", messagesPath+"?id="+string(id)+"&message_id=%3Cx@y%3E&sender=*@contoso.com&recipient=b%2B1@example.com&state=parked"+
		"&since=2026-01-02T03:04:05Z&until=2026-02-02T03:04:05.5%2B09:00&limit=7", "", nil)
	want := envelope.Query{
		ID: id, MessageID: "<x@y>", Sender: "*@contoso.com", Recipient: "b+1@example.com", State: envelope.Parked, Limit: 7,
		Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Until: w.f.query.Until,
	}
	if w.f.query != want || !want.Until.Equal(time.Date(2026, 2, 1, 18, 4, 5, 5e8, time.UTC)) {
		t.Errorf("got %+v, want %+v", w.f.query, want)
	}
	began := time.Now()
	w.do("GET", messagesPath+"?older_than=2d12h", "", nil)
	if age := began.Sub(w.f.query.Until); age < 59*time.Hour || age > 60*time.Hour {
		t.Errorf("older_than=2d12h became %v ago", age)
	}
	w.do("GET", messagesPath+"?older_than=2d&until=2020-01-01T00:00:00Z", "", nil)
	if got := w.f.query.Until.Year(); got != 2020 {
		t.Errorf("of two ends the later counts: %v", w.f.query.Until)
	}
	w.do("GET", messagesPath+"?older_than=2d&until=2999-01-01T00:00:00Z", "", nil)
	if got := w.f.query.Until; !got.Before(began) {
		t.Errorf("of two ends the later counts: %v", got)
	}
}

func TestBadQueries(t *testing.T) {
	w := newWorld(t, nil)
	for query, want := range map[string]string{
		"limit=0":                               "query.limit: expected number >= 1",
		"limit=1001":                            "query.limit: expected number <= 1000",
		"limit=ten":                             "query.limit: invalid integer",
		"state=lost":                            `query.state: expected value to be one of "queued, sending,`,
		"since=yesterday":                       "query.since: invalid date/time",
		"older_than=5":                          `query.older_than: invalid value: "5" is no age; write a number with a unit, like 30m, 4h or 5d`,
		"older_than=-1h":                        "is no age",
		"sendr=a@b":                             "query.sendr: unknown query parameter",
		"id=../../etc/passwd":                   "id: not a queue id, which has 20 letters and digits",
		"before=x":                              "before: not a queue id",
		"before=" + strings.Repeat("x", 30):     "query.before: expected length <= 20",
		"sender=" + strings.Repeat("x", 321):    "query.sender: expected length <= 320",
		"state=sent&state=failed":               "query.state: given more than once",
		"message_id=%3C%3E":                     "message_id: nothing stands between the angle brackets",
		"message_id=%20":                        "message_id: nothing stands",
		"sender=%zz":                            "the query of the address is malformed",
		"a=1;b=2":                               "the query of the address is malformed",
		strings.Repeat("x", 1000) + "=1&state=": "query.xxxx",
	} {
		a := w.do("GET", messagesPath+"?"+query, "", nil)
		detail := a.problem(t)
		if a.code != 422 && a.code != 400 || !strings.Contains(detail, want) {
			t.Errorf("%.50s: got %d %q, want %q", query, a.code, detail, want)
		}
		if len(a.body) > 2000 {
			t.Errorf("%.50s: an answer of %d octets", query, len(a.body))
		}
	}
	if len(w.f.calls) != 0 {
		t.Errorf("asked for %v", w.f.calls)
	}
}

func TestAge(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "4h": 4 * time.Hour, "5d": 120 * time.Hour, "1d1h30m": 25*time.Hour + 30*time.Minute, "0d": 0, "3650d": 87600 * time.Hour,
	} {
		var a Age
		if err := a.UnmarshalText([]byte(text)); err != nil || a.Duration != want {
			t.Errorf("%s: got %v, %v", text, a, err)
		}
	}
	for _, text := range []string{"", "d", "5", "5 d", "-5d", "1d-1h", "+1h", "99999d", "3651d", "9999999h", "5w", "5dd", "1h5d", "\x00"} {
		if err := new(Age).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q passes", text)
		}
	}
}

func FuzzAge(f *testing.F) {
	for _, s := range []string{"5d", "1d2h", "90s", "d", "-1d", "1e9h", "65536d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var a, b Age
		if a.UnmarshalText([]byte(s)) != nil {
			return
		}
		text, err := a.MarshalText()
		if err != nil || a.Duration < 0 || a.Duration > 2*3650*24*time.Hour {
			t.Fatalf("%q is %v, %v", s, a.Duration, err)
		}
		if err := b.UnmarshalText(text); err != nil || a != b {
			t.Errorf("%q is %v, which reads back as %v, %v", s, a, b, err)
		}
	})
}

func TestGet(t *testing.T) {
	w := newWorld(t, nil)
	id, now := ids(1)[0], time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	env := &envelope.Envelope{
		ID: id, Received: now, Sender: "a@contoso.com", MessageID: "<m@x>",
		Recipients: []envelope.Recipient{{Address: "b@example.com"}, {Address: "c@example.com"}, {Address: "d@example.com"}},
	}
	w.f.get = &Message{
		Envelope: env, State: envelope.Parked, Parked: "consent is gone", Stored: true,
		Progress: envelope.Progress{State: envelope.Deferred, Attempts: 2, Due: now, Reason: "451 later", Results: []envelope.Result{
			{State: envelope.Sent, Reply: "250 ok"}, {State: envelope.Deferred, Reply: "451 later", Attempts: 2, Rule: "busy"},
		}},
		Steps: []envelope.Step{{ID: id, At: now, What: envelope.StepAccepted, Envelope: env}, {ID: id, At: now, What: envelope.StepAttempt, Reply: "451 later"}},
	}
	d := decode[Detail](t, w.do("GET", messagesPath+"/"+string(id), "", nil), 200)
	if d.ID != id || d.State != "parked" || d.Parked != "consent is gone" || d.Attempts != 2 || !d.Due.Equal(now) || d.Reason != "451 later" || !d.Stored {
		t.Errorf("got %+v", d)
	}
	if len(d.Recipients) != 3 || d.Recipients[0].State != "sent" || d.Recipients[1].Rule != "busy" || d.Recipients[2].State != "queued" || d.Recipients[2].Address != "d@example.com" {
		t.Errorf("recipients: got %+v", d.Recipients)
	}
	if len(d.Steps) != 2 || d.Steps[0].Envelope != nil || d.Envelope == nil || d.Envelope.MessageID != "<m@x>" {
		t.Errorf("got %+v", d)
	}
	if w.f.get.Steps[0].Envelope == nil {
		t.Error("what Get returned was changed")
	}
	w.f.get = &Message{State: envelope.Sent} // its acceptance is forgotten
	if a := w.do("GET", messagesPath+"/"+string(id), "", nil); a.code != 200 || !strings.Contains(a.body, `"recipients":[],"steps":[]`) {
		t.Errorf("got %d %q", a.code, a.body)
	}
}

func TestRaw(t *testing.T) {
	w := newWorld(t, nil)
	id := string(ids(1)[0])
	for _, size := range []int{0, 5, 64 << 10, 1 << 20} {
		want := strings.Repeat("0123456789\r\n", size/12+1)[:size]
		w.f.raw, w.f.size = strings.NewReader(want), int64(size)
		a := w.do("GET", messagesPath+"/"+id+"/raw", "", nil)
		if a.code != 200 || a.body != want || a.header.Get("Content-Type") != "message/rfc822" ||
			a.header.Get("Content-Disposition") != `attachment; filename="`+id+`.eml"` || a.header.Get("Content-Length") != fmt.Sprint(size) {
			t.Errorf("%d octets: got %d, %d octets, %v", size, a.code, len(a.body), a.header)
		}
	}
	w.f.raw, w.f.size = strings.NewReader("abc"), 3
	if a := w.do("HEAD", messagesPath+"/"+id+"/raw", "", nil); a.code != 200 || a.body != "" || a.header.Get("Content-Length") != "3" {
		t.Errorf("HEAD: got %+v", a)
	}
}

// failing yields n octets, then err.
func failing(n int, err error) io.Reader {
	return io.MultiReader(strings.NewReader(strings.Repeat("x", n)), readerFunc(func([]byte) (int, error) { return 0, err }))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestDamagedRaw(t *testing.T) {
	w := newWorld(t, nil)
	url := messagesPath + "/" + string(ids(1)[0]) + "/raw"
	w.f.raw, w.f.size = failing(1000, fmt.Errorf("chunk 1: %w", envelope.ErrCorrupt)), 1000
	if a := w.do("GET", url, "", nil); a.code != 500 || a.problem(t) != "the message is damaged in storage" {
		t.Errorf("a small one: got %d %q", a.code, a.body)
	}
	const large = 1 << 20
	w.f.raw, w.f.size = failing(large, envelope.ErrCorrupt), large
	resp, err := http.Get(w.url + url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) || n >= large {
		t.Errorf("a large one: got %d octets, %v", n, err)
	}
	if w.logs.FilterMessage("message download broken off").Len() != 1 || w.logs.FilterMessage("API request panicked").Len() != 0 {
		t.Errorf("log: got %v", w.logs.All())
	}
}

func TestActions(t *testing.T) {
	w := newWorld(t, nil)
	id := ids(1)[0]
	for _, action := range []string{"retry", "hold", "release", "drop"} {
		for _, body := range []string{"", "{}"} {
			w.f.calls = nil
			a := w.do("POST", messagesPath+"/"+string(id)+"/"+action, body, nil)
			if want := []string{action + " " + string(id) + " ops@contoso.com"}; a.code != 204 || a.body != "" || !slices.Equal(w.f.calls, want) {
				t.Errorf("%s: got %d %q, %v", action, a.code, a.body, w.f.calls)
			}
		}
		last := w.logs.FilterMessage("operator acts on a message").All()
		got := last[len(last)-1].ContextMap()
		if got["id"] != string(id) || got["action"] != action || got["client"] != "ops@contoso.com" || got["peer"] != "127.0.0.1" {
			t.Errorf("log: got %v", got)
		}
	}
	w.f.calls = nil
	a := w.do("POST", messagesPath+"/"+string(id)+"/drop", `{"dry_run": true}`, nil)
	if detail := a.problem(t); a.code != 422 || detail != "body.dry_run: unexpected property" || w.f.calls != nil {
		t.Errorf("a wish that is not understood: got %d %q, %v", a.code, detail, w.f.calls)
	}
}

// Each error of Messages, on each operation.
func TestErrors(t *testing.T) {
	const id = "0123456789abcdefghjk"
	asks := map[string]func(*world) answer{
		"list": func(w *world) answer { return w.do("GET", messagesPath, "", nil) },
		"get":  func(w *world) answer { return w.do("GET", messagesPath+"/"+id, "", nil) },
		"raw":  func(w *world) answer { return w.do("GET", messagesPath+"/"+id+"/raw", "", nil) },
		"hold": func(w *world) answer { return w.do("POST", messagesPath+"/"+id+"/hold", "", nil) },
		"query": func(w *world) answer {
			return w.do("POST", messagesPath+"/actions", `{"action":"hold","query":{"sender":"a@b"}}`, nil)
		},
		"send": func(w *world) answer {
			return w.do("POST", messagesPath, `{"from":"a@contoso.com","to":["b@example.com"]}`, nil)
		},
		"send raw": func(w *world) answer {
			return w.do("POST", messagesPath+"?from=a@contoso.com&to=b@example.com", "Subject: x\r\n\r\n", header("Content-Type", "message/rfc822"))
		},
	}
	secret := errors.New("/var/lib/relayd: canary")
	for _, tt := range []struct {
		err    error
		code   int
		detail string
		logged bool
	}{
		{fmt.Errorf("ask: %w", ErrNotFound), 404, "there is no message with that id, or what was asked for is no longer kept", false},
		{fmt.Errorf("ask: %w", ErrBusy), 409, "the message is being sent right now; try again in a moment", false},
		{fmt.Errorf("%w: %w", ErrUnavailable, secret), 503, "the queue's storage is not available; try again in a moment", true},
		{fmt.Errorf("get: %w", envelope.ErrCorrupt), 500, "the message is damaged in storage", false},
		{secret, 503, "451 4.3.0 internal error, try again", true},
		{context.DeadlineExceeded, 503, "no answer in time; ask for less, or try again", false},
		{context.Canceled, 503, "the request was called off", false},
		{status.New(452, status.Enhanced{4, 3, 1}, "queue storage is full"), 507, "452 4.3.1 queue storage is full", false},
		{&status.Error{Code: 451, Enhanced: status.Enhanced{4, 3, 0}, Text: "queue unavailable, try again", Err: secret}, 503, "451 4.3.0 queue unavailable, try again", true},
		{fmt.Errorf("send: %w", status.New(550, status.Enhanced{5, 7, 1}, "no sender")), 422, "550 5.7.1 no sender", false},
		{status.New(552, status.Enhanced{5, 3, 4}, "message exceeds 35 MiB"), 413, "552 5.3.4 message exceeds 35 MiB", false},
		{status.New(554, status.Enhanced{}, "%s", "\x1b[2J"+strings.Repeat("x", 5000)), 422, "\x1b[2Jxxx", false},
	} {
		for name, ask := range asks {
			w := newWorld(t, nil)
			w.f.err = tt.err
			a := ask(w)
			if detail := a.problem(t); a.code != tt.code || !strings.Contains(detail, tt.detail) || strings.Contains(a.body, "canary") || len(a.body) > 1000 {
				t.Errorf("%s with %v: got %d %q, want %d %q", name, tt.err, a.code, a.body, tt.code, tt.detail)
			}
			if logged := w.logs.FilterMessage("API request failed").Len() == 1; logged != tt.logged {
				t.Errorf("%s with %v: logged %v", name, tt.err, w.logs.All())
			}
		}
	}
}

func TestHostileIDs(t *testing.T) {
	w := newWorld(t, nil)
	for _, id := range []string{
		"x", "..%2f..%2fetc%2fpasswd", "%2e%2e", "0123456789ABCDEFGHJK", "0123456789abcdefghjk%00", "0123456789abcdefghjk.", "*", "%3E",
		"0123456789abcdefghji", strings.Repeat("0", 2000), "%ff%fe", "0123456789abcdefghj%C3%A9", "$Q.relayd.%3E", "%0d%0aX-Evil:%201",
	} {
		for _, tt := range []struct{ method, path string }{{"GET", ""}, {"GET", "/raw"}, {"POST", "/drop"}, {"POST", "/retry"}} {
			a := w.do(tt.method, messagesPath+"/"+id+tt.path, "", nil)
			if a.problem(t); a.code != 404 || a.header.Get("Location") != "" || a.header.Get("X-Evil") != "" {
				t.Errorf("%s %.40s%s: got %d %q", tt.method, id, tt.path, a.code, a.body)
			}
		}
		bulk, err := json.Marshal(map[string]any{"action": "drop", "ids": []string{strings.ReplaceAll(id, "%", "")}})
		if err != nil {
			t.Fatal(err)
		}
		if a := w.do("POST", messagesPath+"/actions", string(bulk), nil); a.code != 422 || len(a.problem(t)) > 300 {
			t.Errorf("%.40s in bulk: got %d %q", id, a.code, a.body)
		}
	}
	if len(w.f.calls) != 0 {
		t.Errorf("asked for %v", w.f.calls)
	}
}

func TestPathsAndMethods(t *testing.T) {
	w := newWorld(t, nil)
	id := string(ids(1)[0])
	for _, tt := range []struct {
		method, path string
		code         int
		allow        string
	}{
		{"GET", "/api/", 404, ""},
		{"GET", "/api/v1/", 404, ""},
		{"GET", "/api/v1/nothing", 404, ""},
		{"GET", "/api/v2/messages", 404, ""},
		{"GET", messagesPath + "/", 404, ""},
		{"GET", "/api//v1/messages", 404, ""}, // and no redirect
		{"GET", "/api/../livez", 404, ""},
		{"GET", messagesPath + "/" + id + "/raw/x", 404, ""},
		{"GET", "/api/v1/docs", 404, ""},
		{"GET", "/api/v1/openapi.yaml", 404, ""},
		{"GET", "/api/v1/schemas/Detail.json", 404, ""},
		{"POST", "/api/v1/nothing", 404, ""},
		{"DELETE", messagesPath, 405, "GET, HEAD, POST"},
		{"PUT", messagesPath + "/" + id, 405, "GET, HEAD"},
		{"POST", messagesPath + "/" + id, 405, "GET, HEAD"},
		{"GET", messagesPath + "/" + id + "/hold", 405, "POST"}, // a link changes nothing
		{"HEAD", messagesPath + "/" + id + "/drop", 405, "POST"},
		{"OPTIONS", messagesPath, 405, "GET, HEAD, POST"},
		{"TRACE", messagesPath, 405, "GET, HEAD, POST"},
		{"HEAD", messagesPath, 200, ""},
	} {
		a := w.do(tt.method, tt.path, "", nil)
		if a.code != tt.code || a.header.Get("Allow") != tt.allow || a.header.Get("Location") != "" {
			t.Errorf("%s %s: got %d, Allow %q", tt.method, tt.path, a.code, a.header.Get("Allow"))
		}
		if a.code != 200 && tt.method != "HEAD" {
			a.problem(t)
		}
	}
	if want := []string{"list"}; !slices.Equal(w.f.calls, want) {
		t.Errorf("asked for %v", w.f.calls)
	}
}

func TestForgedRequests(t *testing.T) {
	w := newWorld(t, nil)
	id := string(ids(1)[0])
	for _, tt := range []struct {
		name   string
		change func(*http.Request)
		code   int
	}{
		{"a script", nil, 202},
		{"the page itself", header("Sec-Fetch-Site", "same-origin"), 202},
		{"its own origin", func(r *http.Request) { r.Header.Set("Origin", "http://"+r.URL.Host) }, 202},
		{"another site", header("Sec-Fetch-Site", "cross-site"), 403},
		{"another port of this machine", header("Sec-Fetch-Site", "same-site"), 403},
		{"another origin, from an old browser", header("Origin", "https://attacker.example"), 403},
		{"no origin", header("Origin", "null"), 403},
		{"a form", header("Content-Type", "application/x-www-form-urlencoded"), 415},
		{"a form with a file", header("Content-Type", "multipart/form-data; boundary=x"), 415},
		{"a form of text", header("Content-Type", "text/plain"), 415},
		{"no type", func(r *http.Request) { r.Header.Del("Content-Type") }, 415},
		{"a malformed type", header("Content-Type", "application/json;;="), 415},
		{"JSON by another name", header("Content-Type", "text/json"), 415},
		{"JSON with a parameter", header("Content-Type", "Application/JSON; charset=utf-8"), 202},
		{"compressed", header("Content-Encoding", "gzip"), 415},
	} {
		for _, path := range []string{messagesPath, messagesPath + "/" + id + "/drop"} {
			body, code := `{"from":"a@contoso.com","to":["b@example.com"]}`, tt.code
			if path != messagesPath {
				body = ""
				if code == 202 {
					code = 204
				}
			}
			w.f.calls = nil
			a := w.do("POST", path, body, tt.change)
			if a.code != code || (len(w.f.calls) == 0) != (code >= 400) || a.header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s to %s: got %d %q, %v", tt.name, path, a.code, a.body, w.f.calls)
			}
			if code >= 400 {
				a.problem(t)
			}
		}
	}
	for _, body := range []string{"", "x"} {
		a := w.do("POST", messagesPath+"/"+id+"/drop", body, header("Content-Type", "message/rfc822"))
		if a.problem(t); a.code != 415 {
			t.Errorf("a message where none is taken: got %d", a.code)
		}
	}
}

func TestBodies(t *testing.T) {
	w := newWorld(t, nil)
	const send, bulk = messagesPath, messagesPath + "/actions"
	for _, tt := range []struct {
		name, path, body string
		code             int
		detail           string
	}{
		{"no JSON", send, `{"from":`, 400, "body: unexpected end of JSON input"},
		{"no JSON", bulk, `{"action":`, 400, "body: unexpected end of JSON input"},
		{"two documents", send, `{} {}`, 400, "body: invalid character"},
		{"no body", send, "", 400, "body: unexpected end of JSON input"},
		{"no body", bulk, "", 400, "request body is required"},
		{"another type", send, `[]`, 422, "body: expected object"},
		{"null", send, `null`, 422, "body: expected object"},
		{"unknown field", send, `{"from":"a@b.c","to":["d@e.f"],"attachments":[]}`, 422, "body.attachments: unexpected property"},
		{"unknown field", bulk, `{"action":"drop","query":{"sendr":"x"}}`, 422, "body.query.sendr: unexpected property"},
		{"missing", send, `{"to":["d@e.f"]}`, 422, "expected required property from to be present"},
		{"missing", bulk, `{"ids":["0123456789abcdefghjk"]}`, 422, "expected required property action to be present"},
		{"wrong type", send, `{"from":1,"to":"d@e.f"}`, 422, "body.from: expected string"},
		{"nobody", send, `{"from":"a@b.c","to":[]}`, 422, "body.to: expected array length >= 1"},
		{"null for a list", send, `{"from":"a@b.c","to":null}`, 422, "body.to: expected array"},
		{"unknown action", bulk, `{"action":"explode","ids":["0123456789abcdefghjk"]}`, 422, `body.action: expected value to be one of "retry, hold, release, drop"`},
		{"nothing chosen", bulk, `{"action":"drop"}`, 422, "say which messages: either ids, or a query with at least one filter"},
		{"everything chosen", bulk, `{"action":"drop","query":{}}`, 422, "say which messages"},
		{"two choices", bulk, `{"action":"drop","ids":["0123456789abcdefghjk"],"query":{"sender":"x"}}`, 422, "say which messages"},
		{"limit", bulk, `{"action":"drop","query":{"sender":"x"},"limit":1001}`, 422, "body.limit: expected number <= 1000"},
		{"age", bulk, `{"action":"drop","query":{"older_than":"5"}}`, 422, "is no age"},
		{"id", bulk, `{"action":"drop","query":{"id":"x"}}`, 422, "id: not a queue id"},
		{"too many", bulk, `{"action":"drop","ids":["` + strings.Repeat(`0123456789abcdefghjk","`, 1001) + `"]}`, 422, "body.ids: expected array length <= 1000"},
		{"bad sender", send, `{"from":"a b@c.d","to":["d@e.f"]}`, 422, `from: "a b@c.d" is no address`},
		{"bad recipient", send, `{"from":"a@b.c","to":["<d@e.f>"]}`, 422, `to: "<d@e.f>" is no address`},
		{"injection", send, `{"from":"a@b.c","to":["d@e.f"],"subject":"x\r\nBcc: y@z"}`, 422, "subject: has a line break"},
		{"injection by address", send, `{"from":"a@b.c\r\nBcc: y@z","to":["d@e.f"]}`, 422, "is no address"},
		{"injection by name", send, `{"from":"a@b.c","to":["d@e.f"],"headers":{"X: 1\r\nBcc":"y@z"}}`, 422, "no header field that can be set here"},
		{"query beside JSON", send + "?from=a@b.c", `{"from":"a@b.c","to":["d@e.f"]}`, 422, "from and to stand in the body"},
		{"huge", send, `{"from":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "the body is larger than the 1048576 bytes allowed here"},
		{"huge", bulk, strings.Repeat(" ", 1<<20+1), 413, "the body is larger"},
		{"long values", send, `{"from":"` + strings.Repeat("x", 1<<19) + `"}`, 422, "expected length <= 320"},
		{"many mistakes", send, `{` + manyFields(500) + `"to":["d@e.f"]}`, 422, "; and 491 more"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.f.calls = nil
			a := w.do("POST", tt.path, tt.body, nil)
			detail := a.problem(t)
			if a.code != tt.code || !strings.Contains(detail, tt.detail) || len(a.body) > 8000 {
				t.Errorf("got %d %.300q, want %d %q", a.code, detail, tt.code, tt.detail)
			}
			if len(w.f.calls) != 0 {
				t.Errorf("asked for %v", w.f.calls)
			}
		})
	}
	if a := w.do("GET", messagesPath, "x", nil); a.code != 400 || a.problem(t) != "a GET takes no body" {
		t.Errorf("GET with a body: got %d %q", a.code, a.body)
	}
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\"x%d\":1,", i)
	}
	return b.String()
}

func TestSend(t *testing.T) {
	w := newWorld(t, nil)
	a := w.do("POST", messagesPath, `{"from":"erp@Contoso.com","to":["a@example.com","A@EXAMPLE.com","b@example.com"],"subject":"Größe","text":"hi","headers":{"X-A":"1"}}`, nil)
	sent := decode[Sent](t, a, 202)
	if !sent.ID.Valid() || a.header.Get("Location") != messagesPath+"/"+string(sent.ID) {
		t.Errorf("got %+v, %v", sent, a.header)
	}
	if s := w.f.sent; s.From != "erp@contoso.com" || !slices.Equal(s.To, []envelope.Address{"a@example.com", "b@example.com"}) {
		t.Errorf("got %+v", s)
	}
	for _, want := range []string{"From: <erp@contoso.com>\r\n", "To: <a@example.com>,\r\n <b@example.com>\r\n", "Subject: =?utf-8?q?Gr=C3=B6=C3=9Fe?=\r\n", "X-A: 1\r\n", "\r\n\r\nhi\r\n"} {
		if !strings.Contains(w.f.text, want) {
			t.Errorf("no %q in\n%s", want, w.f.text)
		}
	}
	if want := []string{"send ops@contoso.com 127.0.0.1"}; !slices.Equal(w.f.calls, want) {
		t.Errorf("got %v, want %v", w.f.calls, want)
	}
	got := w.logs.FilterMessage("operator sends a message").All()[0].ContextMap()
	if got["id"] != string(sent.ID) || got["sender"] != "erp@contoso.com" || got["recipients"] != int64(2) {
		t.Errorf("log: got %v", got)
	}
}

func TestSendRaw(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.MessageBytes = 100 })
	text := "Subject: x\r\n\r\n" + strings.Repeat("x", 86)
	raw := header("Content-Type", "message/rfc822")
	path := messagesPath + "?from=a%2Bb@contoso.com&to=b@example.com&to=c@example.com"
	decode[Sent](t, w.do("POST", path, text, raw), 202)
	if s := w.f.sent; w.f.text != text || s.From != "a+b@contoso.com" || len(s.To) != 2 {
		t.Errorf("got %+v with %q", s, w.f.text)
	}
	chunked := func(r *http.Request) { raw(r); r.ContentLength = -1 }
	decode[Sent](t, w.do("POST", path, text, chunked), 202)
	w.f.calls = nil
	for name, change := range map[string]func(*http.Request){"length": raw, "chunked": chunked} {
		a := w.do("POST", path, text+"x", change)
		if detail := a.problem(t); a.code != 413 || detail != "the body is larger than the 100 bytes allowed here" {
			t.Errorf("%s: got %d %q", name, a.code, detail)
		}
	}
	for query, want := range map[string]string{
		"?to=b@example.com":                   `query.from: "" is no address`,
		"?from=a@contoso.com":                 "query.to: name at least one recipient",
		"?from=a@contoso.com&to=b@e.f&to=":    `query.to: "" is no address`,
		"?from=a@contoso.com&to=x&to=c@d.e":   `query.to: "x" is no address`,
		"?from=a@contoso.com&cc=x&to=c@d.e":   "query.cc: unknown query parameter",
		"?from=a@contoso.com&from=b&to=c@d.e": "query.from: given more than once",
	} {
		a := w.do("POST", messagesPath+query, text, raw)
		if detail := a.problem(t); a.code != 422 || !strings.Contains(detail, want) {
			t.Errorf("%s: got %d %q, want %q", query, a.code, detail, want)
		}
	}
	if len(w.f.calls) != 0 {
		t.Errorf("stored: %v", w.f.calls)
	}
}

// A message whose client dies in the middle of it is not stored.
func TestSendThatBreaksOff(t *testing.T) {
	w := newWorld(t, nil)
	body, out := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.url+messagesPath+"?from=a@contoso.com&to=b@example.com", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "message/rfc822")
	go func() {
		io.WriteString(out, "Subject: x\r\n\r\nhalf")
		out.CloseWithError(errors.New("died"))
	}()
	if _, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req); err == nil {
		t.Error("half a message was answered as a whole one")
	}
	if w.f.sent.From != "" || len(w.f.calls) != 0 {
		t.Errorf("stored: %v", w.f.calls)
	}
}

func TestBulk(t *testing.T) {
	w := newWorld(t, nil)
	known := ids(30)
	w.f.list, w.f.busy = summaries(known), known[3]
	ask := func(v Actions) Outcomes {
		t.Helper()
		w.f.calls = nil
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return decode[Outcomes](t, w.do("POST", messagesPath+"/actions", string(body), nil), 200)
	}
	changes := func() (n int) {
		for _, c := range w.f.calls {
			if c != "list" {
				n++
			}
		}
		return n
	}

	preview := ask(Actions{Action: "drop", Query: &Filter{State: envelope.Deferred, OlderThan: Age{48 * time.Hour}}, Limit: 10, DryRun: true})
	if len(preview.Results) != 10 || preview.Done != 0 || !preview.DryRun || preview.Next != known[9] || changes() != 0 {
		t.Errorf("preview: got %+v after %v", preview, w.f.calls)
	}
	if r := preview.Results[0]; r.ID != known[0] || r.Message == nil || r.Message.Sender != "a@contoso.com" || r.Done {
		t.Errorf("preview: got %+v", r)
	}
	if q := w.f.query; q.State != envelope.Deferred || q.Limit != 10 || time.Since(q.Until) < 47*time.Hour {
		t.Errorf("query: got %+v", q)
	}

	out := ask(Actions{Action: "drop", Query: &Filter{Sender: "a@contoso.com"}})
	if len(out.Results) != 30 || out.Done != 29 || out.Next != "" || changes() != 30 || w.f.query.Limit != 1000 {
		t.Errorf("by query: got %d of %d after %d", out.Done, len(out.Results), changes())
	}
	if r := out.Results[3]; r.Done || r.Status != 409 || r.Error != ErrBusy.Error() {
		t.Errorf("the busy one: got %+v", r)
	}

	absent := envelope.NewID(time.Now())
	out = ask(Actions{Action: "hold", IDs: []envelope.ID{known[5], known[3], known[5]}})
	if len(out.Results) != 2 || out.Done != 1 || changes() != 2 || !slices.Contains(w.f.calls, "hold "+string(known[5])+" ops@contoso.com") {
		t.Errorf("by id: got %+v after %v", out, w.f.calls)
	}
	out = ask(Actions{Action: "hold", IDs: []envelope.ID{known[5], absent}, DryRun: true})
	if out.Done != 0 || changes() != 0 || out.Results[0].Message == nil || out.Results[1].Status != 404 {
		t.Errorf("preview by id: got %+v after %v", out, w.f.calls)
	}
}

type panicking struct{ Messages }

func (panicking) List(context.Context, envelope.Query) ([]envelope.Summary, error) { panic("canary") }

func TestPanic(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Messages = panicking{} })
	resp, err := http.Get(w.url + messagesPath)
	if err == nil {
		resp.Body.Close()
		t.Errorf("got %d", resp.StatusCode)
	}
	if got := w.logs.FilterMessage("API request panicked"); got.Len() != 1 || !bytes.Contains([]byte(fmt.Sprint(got.All()[0].ContextMap()["stack"])), []byte("panicking")) {
		t.Errorf("log: got %v", got.All())
	}
}

// slow answers once the deadlines of the server around it have passed.
type slow struct {
	Messages
	wait time.Duration
}

func (s slow) List(ctx context.Context, _ envelope.Query) ([]envelope.Summary, error) {
	select {
	case <-time.After(s.wait):
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// The timeouts of the server, which fit its other pages, do not call off what takes longer.
func TestTimeoutsOfTheServer(t *testing.T) {
	const timeout = 100 * time.Millisecond
	h, err := New(Options{Messages: slow{wait: 3 * timeout}})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(asAdmin(h))
	s.Config.ReadTimeout, s.Config.WriteTimeout = timeout, timeout
	s.Start()
	defer s.Close()
	for _, ask := range []func() (*http.Response, error){
		func() (*http.Response, error) { return s.Client().Get(s.URL + messagesPath) },
		func() (*http.Response, error) {
			return s.Client().Post(s.URL+messagesPath+"/actions", "application/json", strings.NewReader(`{"action":"hold","query":{"sender":"a@b"}}`))
		},
	} {
		resp, err := ask()
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("got %d %q", resp.StatusCode, body)
		}
	}
}

// deadlines notes the last read deadline.
type deadlines struct {
	*httptest.ResponseRecorder
	set  int
	read time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.set, d.read = d.set+1, t; return nil }

// A deadline left behind would call off what takes longer: that of admit, and huma's own.
func TestNoDeadlineIsLeft(t *testing.T) {
	h, err := New(Options{Messages: &fake{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"", "{}"} {
		r := httptest.NewRequest("POST", messagesPath+"/0123456789abcdefghjk/hold", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		if p := h.(*api).admit(w, r); p != nil || w.set < 2 || !w.read.IsZero() {
			t.Errorf("%q: admit: %v, %d deadlines, the last %v", body, p, w.set, w.read)
		}
		if asAdmin(h).ServeHTTP(w, r); w.Code != 204 || !w.read.IsZero() {
			t.Errorf("%q: got %d, the last deadline is %v", body, w.Code, w.read)
		}
	}
}

// A body that does not come is not waited for.
func TestBodyThatDoesNotCome(t *testing.T) {
	a := &api{origins: http.NewCrossOriginProtection(), log: zap.NewNop()}
	for err, code := range map[error]int{
		context.DeadlineExceeded: 408, // a net.Error, as the connection's own is
		io.ErrUnexpectedEOF:      400,
	} {
		r := httptest.NewRequest("POST", messagesPath, readerFunc(func([]byte) (int, error) { return 0, err }))
		r.Header.Set("Content-Type", "application/json")
		if p := a.admit(httptest.NewRecorder(), r); p == nil || p.Status != code {
			t.Errorf("%v: got %v", err, p)
		}
	}
}
