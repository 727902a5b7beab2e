package login

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"go.yaml.in/yaml/v4"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/access/peer"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/login/guess"
	"relayd/pkg/admin/login/session"
)

// book is an audit log in memory; full, it takes nothing.
type book struct {
	mu      sync.Mutex // guards entries
	entries []console.Entry
	full    bool
}

func (b *book) Write(_ context.Context, e console.Entry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.full {
		return errors.New("disk full")
	}
	b.entries = append(b.entries, e)
	return nil
}

// site is Logins with a browser before them.
type site struct {
	*Logins
	t       *testing.T
	handler http.Handler
	cookies map[string]string
	seen    *access.Principal // of the last request that was let through
	browser string
	passed  bool
	audit   *book
	reg     *prometheus.Registry
	logs    *observer.ObservedLogs
}

func newSite(t *testing.T, opts Options) *site {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	s := &site{t: t, cookies: map[string]string{}, audit: &book{}, reg: prometheus.NewRegistry(), logs: logs}
	if opts.Address == nil {
		opts.Address = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}
	}
	opts.Logger, opts.Audit, opts.Registerer = zap.New(core), s.audit, s.reg
	var err error
	if s.Logins, err = New(opts); err != nil {
		t.Fatal(err)
	}
	s.handler = s.Identify(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.passed, s.seen, s.browser = true, access.From(r.Context()), access.Browser(r.Context())
		if Ours(r.URL.Path) {
			s.ServeHTTP(w, r)
		}
	}))
	return s
}

// ask makes a request from a browser that keeps its cookies.
func (s *site) ask(method, target string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	s.t.Helper()
	r := httptest.NewRequestWithContext(s.t.Context(), method, target, nil)
	r.RemoteAddr = "10.1.1.1:40000"
	for name, value := range s.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	for _, c := range change {
		c(r)
	}
	s.passed, s.seen, s.browser = false, nil, ""
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	for _, c := range w.Result().Cookies() {
		if c.MaxAge < 0 {
			delete(s.cookies, c.Name)
		} else {
			s.cookies[c.Name] = c.Value
		}
	}
	return w
}

func (s *site) count(method, result string) float64 {
	return testutil.ToFloat64(s.metrics.logins.WithLabelValues(method, result))
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// link makes a link and returns its path.
func (s *site) link(role access.Role) string {
	s.t.Helper()
	to, expires, err := s.NewLink(s.t.Context(), role, "start")
	if err != nil {
		s.t.Fatal(err)
	}
	if d := time.Until(expires); d > linkLife || d < linkLife-time.Minute {
		s.t.Errorf("expires in %v", d)
	}
	return strings.TrimPrefix(to, s.BaseURL())
}

func TestTokens(t *testing.T) {
	good, hash := access.NewToken()
	old, oldHash := access.NewToken()
	s := newSite(t, Options{Settings: Settings{Tokens: []access.Token{
		{Name: "grafana", Hash: hash, Scopes: []access.Scope{access.Read}},
		{Name: "old", Hash: oldHash, Role: access.Admin, Expires: time.Now().Add(-time.Second)},
	}}})
	if w := s.ask("GET", "/api/v1/messages", bearer(good)); w.Code != 200 || s.seen == nil || s.seen.Name != "token grafana" ||
		!s.seen.May(access.Read) || s.seen.May(access.Operate) || s.seen.Peer != "10.1.1.1" || s.seen.Session != "" {
		t.Errorf("got %d, %+v", w.Code, s.seen)
	}
	s.ask("GET", "/", func(r *http.Request) { r.Header.Set("Authorization", "bearer  "+good) })
	if s.seen == nil {
		t.Error("the scheme's case counts")
	}
	next := netip.MustParseAddr("10.9.9.1")
	for name, header := range map[string][]string{
		"guess": {"Bearer relayd_aaaa"}, "hash": {"Bearer " + hash}, "expired": {"Bearer " + old}, "empty": {"Bearer "}, "no scheme": {good},
		"basic": {"Basic " + good}, "two": {"Bearer " + good, "Bearer " + good}, "blank": {""}, "longer": {"Bearer " + good + "a"},
	} {
		w := s.ask("GET", "/", func(r *http.Request) { r.Header["Authorization"] = header; r.RemoteAddr = next.String() + ":1" })
		next = next.Next()
		if w.Code != 401 || s.passed || !strings.Contains(w.Header().Get("WWW-Authenticate"), "invalid_token") ||
			w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: got %d %v", name, w.Code, w.Header())
		}
	}
	if s.count("token", "ok") != 2 || s.count("token", "refused") != 9 {
		t.Errorf("counted %v, %v", s.count("token", "ok"), s.count("token", "refused"))
	}
	for _, e := range s.logs.All() {
		if text := e.Message + " " + strings.Join(values(e.ContextMap()), " "); strings.Contains(text, good) || strings.Contains(text, old) {
			t.Errorf("the log shows a token: %s", text)
		}
	}
}

func values(m map[string]any) (list []string) {
	for _, v := range m {
		if text, ok := v.(string); ok {
			list = append(list, text)
		}
	}
	return list
}

// Who guesses waits, and longer each time; others do not, and what is right does not, wherever it comes from.
func TestGuessing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, hash := access.NewToken()
		s := newSite(t, Options{Settings: Settings{Tokens: []access.Token{{Name: "a", Hash: hash, Role: access.Viewer}}}})
		for range guess.Free {
			if w := s.ask("GET", "/", bearer("x")); w.Code != 401 {
				t.Fatalf("got %d", w.Code)
			}
		}
		w := s.ask("GET", "/", bearer("x"))
		if w.Code != 429 || w.Header().Get("Retry-After") != "1" || s.passed {
			t.Errorf("got %d, %q", w.Code, w.Header().Get("Retry-After"))
		}
		for range 20 {
			for range 20 {
				s.ask("GET", "/", bearer("x"))
			}
			if w := s.ask("GET", "/", bearer(good)); w.Code != 200 || s.seen == nil {
				t.Errorf("beside a guesser of the same address: got %d", w.Code)
			}
			if w := s.ask("GET", s.link(access.Viewer)); w.Code != 303 {
				t.Errorf("a link beside a guesser of the same address: got %d", w.Code)
			}
			s.cookies = map[string]string{}
		}
		if w := s.ask("GET", "/", bearer("x"), func(r *http.Request) { r.RemoteAddr = "10.1.1.2:1" }); w.Code != 401 {
			t.Errorf("another address: got %d", w.Code)
		}
		for _, wait := range []string{"2", "4", "8", "16", "30", "30"} {
			<-time.After(guess.MaxWait)
			if w := s.ask("GET", "/", bearer("x")); w.Code != 401 {
				t.Errorf("got %d", w.Code)
			}
			if w := s.ask("GET", "/", bearer("x")); w.Code != 429 || w.Header().Get("Retry-After") != wait {
				t.Errorf("got %d, wait %q, want %q", w.Code, w.Header().Get("Retry-After"), wait)
			}
		}
		if s.count("token", "limited") != 1+400+6 {
			t.Errorf("limited: %v", s.count("token", "limited"))
		}
		if n := s.logs.FilterMessage("login refused").Len(); n != guess.Free+1+6 {
			t.Errorf("%d lines of the log", n)
		}
	})
}

func TestLinkLogsInOnce(t *testing.T) {
	s := newSite(t, Options{})
	path := s.link(access.Operator)
	w := s.ask("GET", path)
	if w.Code != 303 || w.Header().Get("Location") != "/" {
		t.Fatalf("got %d %q", w.Code, w.Header().Get("Location"))
	}
	c := w.Result().Cookies()
	if len(c) != 1 || c[0].Name != "relayd-8080" || !c[0].HttpOnly || c[0].SameSite != http.SameSiteLaxMode || c[0].Secure || c[0].Path != "/" || c[0].Domain != "" {
		t.Errorf("cookies: %v", c)
	}
	if s.ask("GET", "/"); s.seen == nil || s.seen.Name != "start (link)" || s.seen.Role != access.Operator || s.seen.May(access.Manage) ||
		s.seen.Session == "" || s.seen.Session == c[0].Value || s.browser != s.seen.Session {
		t.Errorf("got %+v", s.seen)
	}
	s.cookies = map[string]string{}
	if w := s.ask("GET", path); w.Code != 403 || len(s.cookies) != 0 || !strings.Contains(w.Body.String(), "used already") {
		t.Errorf("a second time: got %d", w.Code)
	}
	if w := s.ask("GET", "/login?code=guess"); w.Code != 403 {
		t.Errorf("a guess: got %d", w.Code)
	}
	if len(s.audit.entries) != 2 || s.audit.entries[0].What != "login.link" || s.audit.entries[1].What != "session.begin" || s.audit.entries[1].Peer != "10.1.1.1" {
		t.Errorf("audit: %+v", s.audit.entries)
	}
	if s.count("link", "ok") != 1 || s.count("link", "refused") != 2 {
		t.Error("counted wrong")
	}
}

func TestLinkForOneOfMany(t *testing.T) {
	s := newSite(t, Options{})
	code := strings.TrimPrefix(s.link(access.Viewer), "/login?code=")
	var won, lost int
	var mu sync.Mutex // guards won and lost
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			_, err := s.takeLink(t.Context(), code)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if errors.Is(err, errLink) {
				lost++
			}
		})
	}
	all.Wait()
	if won != 1 || lost != 19 {
		t.Errorf("%d won, %d lost", won, lost)
	}
}

// What fetches a link beforehand or shows it within a page does not use it up.
func TestLinkIsForPeople(t *testing.T) {
	s := newSite(t, Options{})
	path := s.link(access.Admin)
	for _, header := range [][2]string{{"Sec-Purpose", "prefetch;prerender"}, {"Purpose", "prefetch"}, {"Sec-Fetch-Dest", "iframe"}, {"Sec-Fetch-Dest", "image"}} {
		if w := s.ask("GET", path, func(r *http.Request) { r.Header.Set(header[0], header[1]) }); w.Code != 400 || len(s.cookies) > 0 {
			t.Errorf("%v: got %d", header, w.Code)
		}
	}
	if w := s.ask("HEAD", path); w.Code != 400 {
		t.Errorf("HEAD: got %d", w.Code)
	}
	if w := s.ask("POST", path); w.Code != 405 {
		t.Errorf("POST: got %d", w.Code)
	}
	if w := s.ask("GET", path, func(r *http.Request) { r.Header.Set("Sec-Fetch-Dest", "document") }); w.Code != 303 {
		t.Errorf("a person: got %d", w.Code)
	}
}

func TestLinkExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		links := &session.Memory{}
		s := newSite(t, Options{Links: links})
		path, used := s.link(access.Admin), s.link(access.Admin)
		s.ask("GET", used)
		<-time.After(linkLife - time.Second)
		later := s.link(access.Admin)
		<-time.After(2 * time.Second)
		s.cookies = map[string]string{}
		if w := s.ask("GET", path); w.Code != 403 || len(s.cookies) > 0 {
			t.Errorf("got %d", w.Code)
		}
		if err := s.sweepLinks(t.Context()); err != nil {
			t.Fatal(err)
		}
		if names, _ := links.Names(t.Context()); len(names) != 1 {
			t.Errorf("%d links left", len(names))
		}
		if w := s.ask("GET", later); w.Code != 303 {
			t.Errorf("the sweep took one that is good: %d", w.Code)
		}
	})
}

func TestLinkGuessing(t *testing.T) {
	s := newSite(t, Options{})
	for range guess.Free {
		s.ask("GET", "/login?code=x")
	}
	if w := s.ask("GET", "/login?code=x"); w.Code != 429 || w.Header().Get("Retry-After") == "" || len(s.cookies) > 0 || !strings.Contains(w.Body.String(), "Too many") {
		t.Errorf("got %d", w.Code)
	}
	if w := s.ask("GET", s.link(access.Admin)); w.Code != 303 || len(s.cookies) == 0 {
		t.Errorf("a link that is good: got %d", w.Code)
	}
}

// A link that is not recorded is not made; nor is one for a role there is not.
func TestLinkIsRecorded(t *testing.T) {
	s := newSite(t, Options{})
	s.audit.full = true
	if _, _, err := s.NewLink(t.Context(), access.Admin, "x"); err == nil || !strings.Contains(err.Error(), "write the audit log") {
		t.Errorf("got %v", err)
	}
	if names, _ := s.links.Names(t.Context()); len(names) != 0 {
		t.Error("made all the same")
	}
	if _, _, err := s.NewLink(t.Context(), "root", "x"); err == nil {
		t.Error("there is no such role")
	}
}

// Whatever a browser brings along, it gets a session nobody knew before, and the one it had is over.
func TestFixation(t *testing.T) {
	s := newSite(t, Options{})
	s.cookies["relayd-8080"] = "planted-by-an-attacker"
	s.ask("GET", s.link(access.Admin))
	mine := s.cookies["relayd-8080"]
	if mine == "planted-by-an-attacker" || len(mine) < 43 {
		t.Errorf("got %q", mine)
	}
	s.cookies["relayd-8080"] = "planted-by-an-attacker"
	if s.ask("GET", "/"); s.seen != nil {
		t.Error("the planted session is logged in")
	}
	s.cookies["relayd-8080"] = mine
	s.ask("GET", s.link(access.Admin))
	if s.cookies["relayd-8080"] == mine {
		t.Error("the session was kept over a login")
	}
	s.cookies["relayd-8080"] = mine
	if s.ask("GET", "/"); s.seen != nil {
		t.Error("the session before a login is still good")
	}
}

func TestForgedCookies(t *testing.T) {
	s := newSite(t, Options{})
	s.ask("GET", s.link(access.Admin))
	good := s.cookies["relayd-8080"]
	for _, value := range []string{"", "x", good[1:], good + "a", strings.ToUpper(good), hashName(good), strings.Repeat("a", 4000)} {
		s.cookies["relayd-8080"] = value
		if w := s.ask("GET", "/"); w.Code != 200 || s.seen != nil {
			t.Errorf("%.50q: got %d, %v", value, w.Code, s.seen)
		}
	}
	s.cookies = map[string]string{"relayd-9090": good}
	if s.ask("GET", "/"); s.seen != nil {
		t.Error("the cookie of another relay is taken")
	}
}

// counting counts writes.
type counting struct {
	session.Memory
	puts int
}

func (c *counting) Put(ctx context.Context, name string, data []byte, revision uint64) (uint64, error) {
	c.puts++
	return c.Memory.Put(ctx, name, data, revision)
}

func TestSessionLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := &counting{}
		s := newSite(t, Options{Sessions: records})
		s.ask("GET", s.link(access.Admin))
		for range 50 {
			s.ask("GET", "/")
		}
		if records.puts != 1 {
			t.Errorf("%d writes for a login and requests at once", records.puts)
		}
		began := time.Now()
		for time.Since(began) < session.Life-8*time.Hour { // used now and then it lives on
			<-time.After(7 * time.Hour)
			if s.ask("GET", "/"); s.seen == nil {
				t.Fatalf("over after %v", time.Since(began))
			}
		}
		<-time.After(session.Life - time.Since(began))
		if s.ask("GET", "/"); s.seen != nil {
			t.Error("lives on for ever")
		}
		s.ask("GET", s.link(access.Admin))
		<-time.After(session.IdleLife)
		if s.ask("GET", "/"); s.seen != nil {
			t.Error("idle for 8 h, and still good")
		}
		if names, _ := records.Names(t.Context()); len(names) != 0 {
			t.Errorf("what is over is kept: %v", names)
		}
	})
}

func TestLogout(t *testing.T) {
	s := newSite(t, Options{})
	s.ask("GET", s.link(access.Admin))
	cookie := s.cookies["relayd-8080"]
	if w := s.ask("GET", "/logout"); w.Code != 405 || s.cookies["relayd-8080"] != cookie {
		t.Errorf("GET: got %d", w.Code)
	}
	if w := s.ask("POST", "/logout", func(r *http.Request) { r.Header.Del("Cookie") }); w.Code != 303 || len(s.audit.entries) != 2 {
		t.Errorf("nobody: got %d, audit %+v", w.Code, s.audit.entries)
	}
	s.cookies["relayd-8080"] = cookie
	w := s.ask("POST", "/logout")
	if w.Code != 303 || w.Header().Get("Location") != "/login?out" || len(s.cookies) != 0 {
		t.Errorf("got %d %q %v", w.Code, w.Header().Get("Location"), s.cookies)
	}
	if w := s.ask("GET", "/login?out"); w.Code != 200 || !strings.Contains(w.Body.String(), "You have logged out") {
		t.Errorf("got %d", w.Code)
	}
	s.cookies["relayd-8080"] = cookie
	if s.ask("GET", "/"); s.seen != nil {
		t.Error("the cookie is still good")
	}
	if n := len(s.audit.entries); n != 3 || s.audit.entries[2] != (console.Entry{Who: "start (link)", Peer: "10.1.1.1", What: "session.end", On: "start (link)"}) {
		t.Errorf("audit: %+v", s.audit.entries)
	}
	// Nobody is kept logged in by a full disk.
	s.ask("GET", s.link(access.Admin))
	cookie, s.audit.full = s.cookies["relayd-8080"], true
	if w := s.ask("POST", "/logout"); w.Code != 303 || s.logs.FilterMessage("logout not recorded").Len() != 1 {
		t.Errorf("not recorded: got %d", w.Code)
	}
	s.cookies["relayd-8080"] = cookie
	if s.ask("GET", "/"); s.seen != nil {
		t.Error("not recorded, and still logged in")
	}
}

func TestSessionsListAndEnd(t *testing.T) {
	s := newSite(t, Options{})
	var cookies []string
	for range 3 {
		s.cookies = map[string]string{}
		s.ask("GET", s.link(access.Viewer))
		cookies = append(cookies, s.cookies["relayd-8080"])
	}
	list, err := s.Sessions(t.Context())
	if err != nil || len(list) != 3 || list[0].User != "start (link)" || list[0].Role != access.Viewer || list[0].Method != "link" ||
		list[0].Peer != "10.1.1.1" || list[0].Created.Before(list[2].Created) || !list[0].Expires.After(time.Now()) {
		t.Fatalf("got %+v, %v", list, err)
	}
	good := func(i int) bool {
		s.cookies["relayd-8080"] = cookies[i]
		s.ask("GET", "/")
		return s.seen != nil
	}
	if err := s.EndSession(t.Context(), hashName(cookies[1])); err != nil || !good(0) || good(1) || !good(2) {
		t.Errorf("end of one: %v", err)
	}
	if err := s.EndSession(t.Context(), "nobody's"); err != nil {
		t.Error(err)
	}
	s.audit.full = true
	if n, err := s.EndSessions(t.Context(), "start (link)"); err == nil || n != 0 || !good(0) {
		t.Errorf("not recorded, and yet done: %d, %v", n, err)
	}
	s.audit.full = false
	ctx := access.With(t.Context(), &access.Principal{Name: "ops", Peer: "10.2.2.2"})
	if n, err := s.EndSessions(ctx, "start (link)"); err != nil || n != 2 || good(0) || good(2) {
		t.Errorf("end of all: %d, %v", n, err)
	}
	if e := s.audit.entries[len(s.audit.entries)-1]; e.What != "session.end" || e.Who != "ops" || e.Peer != "10.2.2.2" || e.On != "start (link)" {
		t.Errorf("audit: %+v", e)
	}
}

// A request under way ends with the right to it.
func TestRequestUnderWayIsCutOff(t *testing.T) {
	token, hash := access.NewToken()
	tokens := []access.Token{{Name: "a", Hash: hash, Scopes: []access.Scope{access.Read, access.Content}}}
	s := newSite(t, Options{Settings: Settings{Tokens: tokens}})
	s.ask("GET", s.link(access.Viewer))
	cookie := s.cookies["relayd-8080"]
	follow := func(change func(*http.Request)) (ended chan struct{}) {
		began, ended := make(chan struct{}), make(chan struct{})
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/api/v1/events", nil)
		change(r)
		go func() {
			defer close(ended)
			s.Identify(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { close(began); <-r.Context().Done() })).ServeHTTP(httptest.NewRecorder(), r)
		}()
		<-began
		return ended
	}
	asBrowser := func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "relayd-8080", Value: cookie}) }
	byToken, bySession := follow(bearer(token)), follow(asBrowser)
	if err := s.Configure(Settings{Tokens: tokens}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-byToken:
		t.Fatal("cut off without a change")
	case <-bySession:
		t.Fatal("cut off without a change")
	default:
	}
	tokens[0].Scopes = []access.Scope{access.Read}
	if err := s.Configure(Settings{Tokens: tokens}); err != nil {
		t.Fatal(err)
	}
	<-byToken
	if err := s.EndSession(t.Context(), hashName(cookie)); err != nil {
		t.Fatal(err)
	}
	<-bySession
	if len(s.flights) != 0 {
		t.Errorf("%d flights left", len(s.flights))
	}
}

// hurried has nothing for who has gone, as the vault.
type hurried struct{ Records }

func (h hurried) Get(ctx context.Context, name string) ([]byte, uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	return h.Records.Get(ctx, name)
}

// Who logs out ends their own requests, and nobody else's.
func TestLogoutCutsNobodyElseOff(t *testing.T) {
	s := newSite(t, Options{Sessions: hurried{&session.Memory{}}})
	s.ask("GET", s.link(access.Viewer))
	other := s.cookies["relayd-8080"]
	s.cookies = map[string]string{}
	s.ask("GET", s.link(access.Admin))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var following sync.WaitGroup
	cut := 0
	for range 8 { // in which order they are looked at is chance
		began, follow := make(chan struct{}), httptest.NewRequestWithContext(ctx, "GET", "/api/v1/events", nil)
		follow.AddCookie(&http.Cookie{Name: "relayd-8080", Value: other})
		following.Go(func() {
			s.Identify(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				close(began)
				<-r.Context().Done()
			})).ServeHTTP(httptest.NewRecorder(), follow)
		})
		<-began
	}
	s.mu.Lock()
	others := make([]*flight, 0, len(s.flights))
	for f := range s.flights {
		cancel := f.cancel
		f.cancel = func() { cut++; cancel() }
		others = append(others, f)
	}
	s.mu.Unlock()
	if w := s.ask("POST", "/logout"); w.Code != 303 || len(others) != 8 || cut != 0 {
		t.Errorf("got %d, %d of %d others cut off", w.Code, cut, len(others))
	}
	stop()
	following.Wait()
}

// A session that another node has ended is cut off here within a minute, and what is over is swept.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := &session.Memory{}
		s := newSite(t, Options{Sessions: records})
		s.ask("GET", s.link(access.Viewer))
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx) }()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			r.AddCookie(&http.Cookie{Name: "relayd-8080", Value: s.cookies["relayd-8080"]})
			s.Identify(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })).ServeHTTP(httptest.NewRecorder(), r)
		}()
		synctest.Wait()
		began := time.Now()
		if err := records.Delete(ctx, hashName(s.cookies["relayd-8080"])); err != nil {
			t.Fatal(err)
		}
		<-ended
		if d := time.Since(began); d > checkEvery {
			t.Errorf("went on for %v", d)
		}
		s.ask("GET", s.link(access.Viewer))
		<-time.After(session.IdleLife + sweepEvery)
		if names, _ := records.Names(ctx); len(names) != 0 {
			t.Errorf("not swept: %v", names)
		}
		if names, _ := s.links.Names(ctx); len(names) != 0 {
			t.Errorf("links not swept: %v", names)
		}
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// away is records that cannot be read at times.
type away struct {
	session.Memory
	away atomic.Bool
}

func (a *away) Get(ctx context.Context, name string) ([]byte, uint64, error) {
	if a.away.Load() {
		return nil, 0, errors.New("vault: no leader")
	}
	return a.Memory.Get(ctx, name)
}

// A request goes on while its session cannot be looked for, unless it is known that it may not, and not for ever.
func TestStorageAwayMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := &away{}
		s := newSite(t, Options{Sessions: records})
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx) }()
		cookie := ""
		follow := func() (cut func() bool) {
			t.Helper()
			s.cookies = map[string]string{}
			s.ask("GET", s.link(access.Viewer))
			cookie = s.cookies["relayd-8080"]
			ended := make(chan struct{})
			r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			r.AddCookie(&http.Cookie{Name: "relayd-8080", Value: cookie})
			go func() {
				defer close(ended)
				s.Identify(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })).ServeHTTP(httptest.NewRecorder(), r)
			}()
			synctest.Wait() // until it has begun
			return func() bool {
				synctest.Wait()
				select {
				case <-ended:
					return true
				default:
					return false
				}
			}
		}
		lines := func() int {
			return s.logs.FilterMessage("sessions cannot be read; requests under way go on for a while").Len()
		}
		first := follow()
		for outage := range 2 { // two short ones are not one long one
			records.away.Store(true)
			<-time.After(unsureLife - 2*checkEvery)
			if first() || lines() != outage+1 {
				t.Errorf("outage %d: cut off %v, %d lines", outage, first(), lines())
			}
			records.away.Store(false)
			<-time.After(2 * checkEvery)
			if first() {
				t.Error("cut off when the store was back")
			}
		}
		// What was ended here is over, whether it can be read or not.
		second := follow()
		records.away.Store(true)
		s.cookies["relayd-8080"] = cookie
		if w := s.ask("POST", "/logout"); w.Code != 303 || !second() || first() {
			t.Errorf("logout: got %d, cut off %v and %v", w.Code, second(), first())
		}
		<-time.After(unsureLife + 2*checkEvery)
		if !first() || s.logs.FilterMessageSnippet("requests cut off").Len() != 1 {
			t.Error("goes on for ever")
		}
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// failing cannot be read or written.
type failing struct{ Records }

func (failing) Get(context.Context, string) ([]byte, uint64, error) {
	return nil, 0, errors.New("vault: sealed with a key that is not here")
}

func (failing) Put(context.Context, string, []byte, uint64) (uint64, error) {
	return 0, errors.New("vault: no space")
}

func (failing) Names(context.Context) ([]string, error) { return nil, errors.New("vault: away") }

func TestStorageFails(t *testing.T) {
	s := newSite(t, Options{Sessions: failing{}})
	path := s.link(access.Admin)
	if w := s.ask("GET", path); w.Code != 503 || len(s.cookies) != 0 || strings.Contains(w.Body.String(), "vault") {
		t.Errorf("login: got %d", w.Code)
	}
	s.cookies["relayd-8080"] = "x"
	if w := s.ask("GET", "/"); w.Code != 503 || s.passed || strings.Contains(w.Body.String(), "vault") {
		t.Errorf("a page: got %d", w.Code)
	}
	if w := s.ask("GET", "/login"); w.Code != 200 {
		t.Errorf("the page to log in: got %d", w.Code)
	}
	if _, err := s.Sessions(t.Context()); err == nil {
		t.Error("no error")
	}
	s = newSite(t, Options{Links: failing{}})
	if _, _, err := s.NewLink(t.Context(), access.Admin, "x"); err == nil {
		t.Error("no error")
	}
	if w := s.ask("GET", "/login?code=x"); w.Code != 503 {
		t.Errorf("got %d", w.Code)
	}
	if s.guesses.Wait(netip.MustParseAddr("10.1.1.1")) > 0 {
		t.Error("counts as a guess")
	}
}

func TestDamagedSession(t *testing.T) {
	records := &session.Memory{}
	s := newSite(t, Options{Sessions: records})
	s.ask("GET", s.link(access.Admin))
	name := hashName(s.cookies["relayd-8080"])
	for _, text := range []string{"", "{", "null", `{"v":2}`, `{"v":1,"expires":"2999-01-01T00:00:00Z","seen":"2999-01-01T00:00:00Z","session":{"deadline":"2999-01-01T00:00:00Z","values":{"identity":"{"}}}`} {
		_, revision, _ := records.Get(t.Context(), name)
		if _, err := records.Put(t.Context(), name, []byte(text), revision); err != nil {
			t.Fatal(err)
		}
		if w := s.ask("GET", "/"); s.seen != nil || w.Code != 200 {
			t.Errorf("%q: got %d, %v", text, w.Code, s.seen)
		}
	}
}

func TestReturnPath(t *testing.T) {
	for to, want := range map[string]string{
		"/": "/", "/senders?state=parked&x=1": "/senders?state=parked&x=1", "/messages/0123#a": "/messages/0123#a", "": "/",
		"//evil.example": "/", "///evil.example": "/", "/\\evil.example": "/", "\\\\evil.example": "/", "https://evil.example/": "/", "evil": "/",
		"javascript:alert(1)": "/", "/\t/evil.example": "/", "/a\r\nSet-Cookie: x": "/", " //evil.example": "/", "/login": "/", "/login/start": "/",
		"/logout": "/", "/%zz": "/", "/a b": "/", "/" + strings.Repeat("a", maxPath): "/",
	} {
		if got := returnPath(to); got != want {
			t.Errorf("%.40q: got %.40q, want %.40q", to, got, want)
		}
	}
	if got := PathTo("/senders?a=b&c"); got != "/login?to=%2Fsenders%3Fa%3Db%26c" {
		t.Errorf("got %q", got)
	}
	if got := PathTo("//evil.example"); got != "/login" {
		t.Errorf("got %q", got)
	}
	s := newSite(t, Options{})
	s.ask("GET", s.link(access.Admin))
	for to, want := range map[string]string{"/audit": "/audit", "//evil.example": "/", "/login?to=/login": "/"} {
		if w := s.ask("GET", "/login?"+url.Values{"to": {to}}.Encode()); w.Code != 303 || w.Header().Get("Location") != want {
			t.Errorf("%q: got %d %q", to, w.Code, w.Header().Get("Location"))
		}
	}
}

func FuzzReturnPath(f *testing.F) {
	f.Add("/a")
	f.Add("//a")
	f.Add("/\\a")
	base, _ := url.Parse("https://relay.contoso.com/login")
	f.Fuzz(func(t *testing.T, to string) {
		got := returnPath(to)
		u, err := base.Parse(got)
		if err != nil || u.Host != base.Host || u.Scheme != "https" || !strings.HasPrefix(got, "/") || strings.HasPrefix(got, "//") || strings.HasPrefix(got, "/\\") {
			t.Errorf("%q leads to %q", to, got)
		}
	})
}

func TestLoginPage(t *testing.T) {
	s := newSite(t, Options{})
	w := s.ask("GET", "/login?to=/senders")
	if w.Code != 200 || !strings.Contains(w.Body.String(), "<code>relayd login</code>") || strings.Contains(w.Body.String(), StartPath) {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if w := s.ask("GET", "/login?lang=ja"); !strings.Contains(w.Body.String(), `lang="ja"`) || !strings.Contains(w.Body.String(), "1 時間") {
		t.Errorf("got %s", w.Body)
	}
	for _, path := range []string{StartPath, CallbackPath + "?code=x&state=y"} {
		if w := s.ask("GET", path); w.Code != 303 || w.Header().Get("Location") != Path {
			t.Errorf("%s without a provider: got %d", path, w.Code)
		}
	}
	if w := s.ask("HEAD", "/login"); w.Code != 200 {
		t.Errorf("HEAD: got %d", w.Code)
	}
	if w := s.ask("GET", "/login?code=%3Cscript%3Ealert(1)%3C/script%3E"); w.Code != 403 || strings.Contains(w.Body.String(), "<script>alert") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestBrowserForConsent(t *testing.T) {
	s := newSite(t, Options{})
	for _, target := range []string{"/", "/oauth/callback", "/static/x", "/consentx"} {
		if s.ask("GET", target); s.browser != "" || len(s.cookies) != 0 {
			t.Errorf("%s: got %q, %v", target, s.browser, s.cookies)
		}
	}
	if s.ask("POST", "/consent/abc"); s.browser != "" || len(s.cookies) != 0 {
		t.Errorf("a form of a browser that takes no cookies: %q", s.browser)
	}
	s.ask("GET", "/consent/abc")
	first := s.browser
	cookie := s.cookies["relayd-8080-browser"]
	if first == "" || cookie == "" || strings.Contains(first, cookie) || s.seen != nil {
		t.Fatalf("got %q, %q", first, cookie)
	}
	for _, r := range [][2]string{{"POST", "/consent/abc"}, {"GET", "/oauth/callback?code=x"}, {"GET", "/consent/other"}} {
		if s.ask(r[0], r[1]); s.browser != first {
			t.Errorf("%v: another browser", r)
		}
	}
	if s.ask("GET", "/"); s.browser != "" {
		t.Error("known where it need not be")
	}
	s.cookies = map[string]string{}
	if s.ask("GET", "/consent/abc"); s.browser == first {
		t.Error("two browsers have one id")
	}
	s.cookies["relayd-8080-browser"] = "short"
	if s.ask("GET", "/oauth/callback"); s.browser != "" {
		t.Error("an id that was not given out is taken")
	}
	s.ask("GET", s.link(access.Admin))
	if s.ask("GET", "/consent/abc"); s.browser != s.seen.Session {
		t.Error("who is logged in is known by the session")
	}
}

func TestSecureCookies(t *testing.T) {
	for _, opts := range []Options{
		{Settings: Settings{PublicURL: "https://relay.contoso.com/"}}, // behind a proxy
		{TLS: true},
	} {
		s := newSite(t, opts)
		w := s.ask("GET", s.link(access.Admin))
		c := w.Result().Cookies()
		if len(c) != 1 || c[0].Name != "__Host-relayd" || !c[0].Secure || !c[0].HttpOnly || c[0].Path != "/" || c[0].Domain != "" {
			t.Errorf("got %v", c)
		}
		if s.ask("GET", "/"); s.seen == nil {
			t.Error("not logged in")
		}
		if w := s.ask("POST", "/logout"); !strings.HasPrefix(w.Header().Get("Set-Cookie"), "__Host-relayd=;") || !strings.Contains(w.Header().Get("Set-Cookie"), "Secure") {
			t.Errorf("got %q", w.Header().Get("Set-Cookie")) // without Secure a browser would not take it, and keep the cookie
		}
	}
}

func TestBaseURL(t *testing.T) {
	tokens := []access.Token{{Name: "a", Hash: access.HashToken("a"), Role: access.Viewer}}
	for _, tt := range []struct {
		address, public string
		tls             bool
		want            string
	}{
		{"127.0.0.1:8080", "", false, "http://localhost:8080"},
		{"[::1]:8080", "", true, "https://localhost:8080"},
		{"127.0.0.5:8080", "", false, "http://127.0.0.5:8080"},
		{"[::]:443", "", true, "https://localhost:443"},
		{"10.0.0.1:8080", "", false, "http://10.0.0.1:8080"},
		{"127.0.0.1:8080", "https://Relay.contoso.com/", false, "https://relay.contoso.com"},
	} {
		s := newSite(t, Options{Address: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.address)), TLS: tt.tls, Settings: Settings{Tokens: tokens, PublicURL: tt.public}})
		if got := s.BaseURL(); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.address, got, tt.want)
		}
	}
}

func TestSettingsThatCannotBe(t *testing.T) {
	everybody := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("0.0.0.0:8080"))
	for want, opts := range map[string]Options{
		"admin.address: 0.0.0.0:8080 is no loopback": {Address: everybody},
		"admin.address: :8080 is no loopback":        {Address: everybody, Listen: ":8080"},
		`token "a": its hash is not`:                 {Settings: Settings{Tokens: []access.Token{{Name: "a", Hash: "sha256:ab"}}}},
		`token "b": there is no role "root"`:         {Settings: Settings{Tokens: []access.Token{{Name: "b", Hash: access.HashToken("b"), Role: "root"}}}},
		"admin.public_url":                           {Settings: Settings{PublicURL: "https://a/b"}},
	} {
		if opts.Address == nil {
			opts.Address = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}
		}
		if _, err := New(opts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	// What cannot be leaves what was.
	s := newSite(t, Options{})
	path := s.link(access.Admin)
	if err := s.Configure(Settings{Tokens: []access.Token{{}}}); err == nil || !s.ByLinkOnly() {
		t.Errorf("got %v", err)
	}
	if w := s.ask("GET", path); w.Code != 303 {
		t.Errorf("got %d", w.Code)
	}
}

func TestKnows(t *testing.T) {
	tokens := []access.Token{{Name: "a", Hash: access.HashToken("a"), Role: access.Viewer}}
	local := newSite(t, Options{Settings: Settings{PublicURL: "https://relay.contoso.com"}})
	open := newSite(t, Options{Address: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("0.0.0.0:8080")), Listen: "relay.internal:8080",
		Settings: Settings{Tokens: tokens, PublicURL: "https://relay.contoso.com:8443"}})
	for _, tt := range []struct {
		host        string
		local, open bool
	}{
		{"localhost:8080", true, true}, {"127.0.0.1", true, true}, {"[::1]:1", true, true}, {"relay.contoso.com", true, true},
		{"Relay.Contoso.com.:8443", true, true}, {"relay.internal", false, true}, {"10.0.0.1:8080", false, true}, {"[2001:db8::1]:8080", false, true},
		{"attacker.example", false, false}, {"relay.contoso.com.attacker.example", false, false}, {"", false, false}, {"127.0.0.1.nip.io", false, false},
		{"0.0.0.0", false, true},
	} {
		if local.Knows(tt.host) != tt.local || open.Knows(tt.host) != tt.open {
			t.Errorf("%q: got %v and %v", tt.host, local.Knows(tt.host), open.Knows(tt.host))
		}
	}
}

// serve answers on a loopback address, as the relay does, with who asks.
func serve(t *testing.T, s *site) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ConnContext: peer.Context, ReadHeaderTimeout: time.Minute, Handler: s.Identify(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := access.From(r.Context()); p != nil {
			w.Header().Set("Who", p.Name)
		}
	}))}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(peer.Listener{Listener: l}) }()
	t.Cleanup(func() { server.Close(); <-done })
	return "http://" + l.Addr().String()
}

// The rule for processes of this machine holds for a plain client alone, and only where nothing else is configured.
func TestLocalRule(t *testing.T) {
	s := newSite(t, Options{})
	base := serve(t, s)
	who := func(change func(*http.Request)) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", base, nil)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(r)
		}
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.Header.Get("Who")
	}
	if got := who(nil); !strings.HasPrefix(got, "local ") {
		t.Skipf("who runs a process of this machine is not known here: %q", got)
	}
	for _, header := range [][2]string{
		{"Cookie", "a=b"}, {"Origin", "null"}, {"Referer", base}, {"Sec-Fetch-Site", "none"}, {"Sec-Ch-Ua", "x"}, {"Forwarded", "for=1.2.3.4"},
		{"X-Forwarded-For", "1.2.3.4"}, {"X-Forwarded-Host", "a"}, {"X-Real-Ip", "1.2.3.4"}, {"Via", "1.1 proxy"}, {"User-Agent", "Mozilla/5.0"},
		{"Authorization", "Bearer x"}, {"Upgrade-Insecure-Requests", "1"}, {"X-Client-IP", "1.2.3.4"}, {"True-Client-IP", "1.2.3.4"},
		{"CF-Connecting-IP", "1.2.3.4"}, {"Client-IP", "1.2.3.4"}, {"X-Original-Host", "a"}, {"X-Envoy-External-Address", "1.2.3.4"},
		{"Proxy-Connection", "keep-alive"}, {"X_Forwarded_For", "1.2.3.4"}, {"X-Request-Id", "1"}, {"Upgrade", "h2c"},
	} {
		if got := who(func(r *http.Request) { r.Header.Set(header[0], header[1]) }); got != "" {
			t.Errorf("with %s: got %q", header[0], got)
		}
	}
	plain := map[string]map[string]string{
		"curl":     {"User-Agent": "curl/8.14.1", "Accept": "*/*", "Expect": "100-continue", "Content-Type": "application/json"},
		"wget":     {"User-Agent": "Wget/1.25.0", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "Keep-Alive"},
		"requests": {"User-Agent": "python-requests/2.32.3", "Accept": "*/*", "Accept-Encoding": "gzip, deflate", "Connection": "keep-alive"},
		"urllib":   {"User-Agent": "Python-urllib/3.13", "Accept-Encoding": "identity", "Connection": "close"},
		"others":   {"Accept-Language": "ja", "Te": "trailers", "Accept": "text/event-stream"},
	}
	for name, headers := range plain {
		got := who(func(r *http.Request) {
			r.Method, r.Body, r.ContentLength = "POST", io.NopCloser(strings.NewReader("{}")), -1 // chunked
			for key, value := range headers {
				r.Header.Set(key, value)
			}
		})
		if !strings.HasPrefix(got, "local ") {
			t.Errorf("%s: got %q", name, got)
		}
	}
	if got := who(func(r *http.Request) { r.Host = "attacker.example" }); got != "" {
		t.Errorf("under another name: got %q", got)
	}
	tokens := []access.Token{{Name: "a", Hash: access.HashToken("a"), Role: access.Viewer}}
	for name, settings := range map[string]Settings{
		"tokens": {Tokens: tokens}, "public": {PublicURL: "https://relay.contoso.com"},
	} {
		if err := s.Configure(settings); err != nil {
			t.Fatal(err)
		}
		if got := who(nil); got != "" {
			t.Errorf("with %s: got %q", name, got)
		}
	}
	if err := s.Configure(Settings{PublicURL: "http://localhost:8080"}); err != nil || who(nil) == "" {
		t.Errorf("with a public URL of this machine: %v", err)
	}
}

// What speaks HTTP/1.0 may be a proxy that says nothing of itself.
func TestLocalRuleOldProtocol(t *testing.T) {
	base := serve(t, newSite(t, Options{}))
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.0 200") || strings.Contains(string(buf[:n]), "Who:") {
		t.Errorf("got %q, %v", buf[:n], err)
	}
}

// A person who comes by another name of this machine is sent to the one that sign-ins come back to; nobody else is.
func TestCanonical(t *testing.T) {
	s := newSite(t, Options{})
	for _, tt := range []struct{ method, target, mode, want string }{
		{"GET", "http://127.0.0.1:8080/senders?a=b", "navigate", "http://localhost:8080/senders?a=b"},
		{"GET", "http://[::1]:9000/", "navigate", "http://localhost:9000/"}, // through a tunnel
		{"GET", "http://127.0.0.1:8080//evil.example/", "navigate", "http://localhost:8080//evil.example/"},
		{"GET", "http://localhost:8080/", "navigate", ""},
		{"GET", "http://127.0.0.1:8080/", "cors", ""},
		{"GET", "http://127.0.0.1:8080/", "", ""},
		{"POST", "http://127.0.0.1:8080/", "navigate", ""},
		{"GET", "http://attacker.example/", "navigate", ""},
	} {
		r := httptest.NewRequestWithContext(t.Context(), tt.method, tt.target, nil)
		r.Header.Set("Sec-Fetch-Mode", tt.mode)
		if got, ok := s.Canonical(r); got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s %s: got %q", tt.method, tt.target, got)
		}
	}
	s = newSite(t, Options{Settings: Settings{PublicURL: "https://relay.contoso.com"}})
	r := httptest.NewRequestWithContext(t.Context(), "GET", "http://127.0.0.1:8080/", nil)
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	if got, ok := s.Canonical(r); ok { // a proxy may have written the Host: a loop
		t.Errorf("behind a proxy: got %q", got)
	}
}

// Every word that is used is there in both languages, and none is there for nothing.
func TestWords(t *testing.T) {
	data, err := files.ReadFile("words/login.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var words map[string]map[string]string
	if err := yaml.Unmarshal(data, &words); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, name := range []string{"pages.go", "templates/login.html"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range regexp.MustCompile(`"(login\.[a-z.]+)"`).FindAllStringSubmatch(string(text), -1) {
			if key[1] != "login.html" {
				used[key[1]] = true
			}
		}
	}
	for key := range used {
		if words[key]["en"] == "" || words[key]["ja"] == "" {
			t.Errorf("%s is not there in both languages", key)
		}
	}
	for key := range words {
		if !used[key] {
			t.Errorf("%s is not used", key)
		}
	}
	if len(used) < 10 {
		t.Errorf("found %d words", len(used))
	}
}
