package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server and returns it; the test's end stops it and checks that Run came back without an error.
func start(t *testing.T, opts Options) *Server {
	t.Helper()
	if opts.Gatherer == nil {
		opts.Gatherer = prometheus.NewRegistry()
	}
	if opts.Address == "" {
		opts.Address = "127.0.0.1:0"
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return s
}

func run(t *testing.T, s *Server) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

type answer struct {
	code   int
	body   string
	header http.Header
}

// ask makes one request on a connection of its own.
func ask(t *testing.T, method, url string, change func(*http.Request)) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, string(body), resp.Header}
}

func ok(context.Context) error { return nil }

func TestPaths(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "relayd_test", Help: "A gauge."}))
	s := start(t, Options{
		Gatherer: reg, Version: "1.2.3",
		Ready:   []Check{{"queue", ok}, {"listeners", ok}},
		Startup: []Check{{"start", func(context.Context) error { return errors.New("index is loading") }}},
	})
	tests := []struct {
		method, path string
		code         int
		body         string // contained
	}{
		{"GET", "/livez", 200, "ok\n"},
		{"GET", "/readyz", 200, "ok queue\nok listeners\n"},
		{"GET", "/readyz?verbose", 200, "ok queue\n"}, // Kubernetes' habit: the detail is always there
		{"GET", "/startupz", 503, "failed start: index is loading\n"},
		{"GET", "/metrics", 200, "\nrelayd_test 0\n"},
		{"GET", "/", 404, "nothing here; there are /livez, /readyz, /startupz and /metrics\n"},
		{"GET", "/livez/", 404, "nothing here"}, // no directory
		{"GET", "//metrics", 404, "nothing here"},
		{"GET", "/metrics/../livez", 404, "nothing here"}, // and no redirect
		{"HEAD", "/readyz", 200, ""},
		{"HEAD", "/startupz", 503, ""},
		{"POST", "/readyz", 405, "only GET and HEAD"},
		{"DELETE", "/metrics", 405, "only GET and HEAD"},
		{"OPTIONS", "/livez", 405, "only GET and HEAD"},
		{"TRACE", "/", 405, "only GET and HEAD"},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			a := ask(t, tt.method, "http://"+s.Addr().String()+tt.path, nil)
			if a.code != tt.code || !strings.Contains(a.body, tt.body) || tt.method == "HEAD" && a.body != "" {
				t.Errorf("got %d %q, want %d with %q", a.code, a.body, tt.code, tt.body)
			}
			if got := a.header.Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("X-Content-Type-Options: got %q", got)
			}
			if got := a.header.Get("Content-Type"); tt.method == "GET" && !strings.HasPrefix(got, "text/plain") {
				t.Errorf("Content-Type: got %q", got)
			}
			if got := a.header.Get("Server"); got != "relayd/1.2.3" {
				t.Errorf("Server: got %q", got)
			}
			if allow := a.header.Get("Allow"); (allow == "GET, HEAD") != (tt.code == 405) {
				t.Errorf("Allow: got %q", allow)
			}
		})
	}
}

func TestMetricFormats(t *testing.T) {
	reg := prometheus.NewRegistry()
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "relayd_test_seconds", Help: "A histogram.", NativeHistogramBucketFactor: 1.1})
	reg.MustRegister(h)
	h.Observe(1)
	s := start(t, Options{Gatherer: reg})
	for accept, want := range map[string]string{
		"application/openmetrics-text;version=1.0.0": "application/openmetrics-text",
		// Native histograms travel in this form only.
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited": "application/vnd.google.protobuf",
		"": "text/plain",
	} {
		a := ask(t, "GET", "http://"+s.Addr().String()+"/metrics", func(r *http.Request) { r.Header.Set("Accept", accept) })
		if got := a.header.Get("Content-Type"); !strings.HasPrefix(got, want) || !strings.Contains(a.body, "relayd_test_seconds") {
			t.Errorf("Accept %q: got %q with %q", accept, got, a.body)
		}
	}
}

// brokenCollector fails each time, beside one that works.
type brokenCollector struct{ desc *prometheus.Desc }

func (c brokenCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }
func (c brokenCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(c.desc, errors.New("disk on fire"))
}

func TestOneBrokenCollectorDoesNotBlindTheRest(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "relayd_test", Help: "A gauge."}))
	reg.MustRegister(brokenCollector{prometheus.NewDesc("relayd_broken", "Fails.", nil, nil)})
	s := start(t, Options{Gatherer: reg, Logger: zap.New(core)})
	a := ask(t, "GET", "http://"+s.Addr().String()+"/metrics", nil)
	if a.code != 200 || !strings.Contains(a.body, "relayd_test 0") {
		t.Errorf("got %d %q", a.code, a.body)
	}
	if logs.FilterMessage("metrics are incomplete").Len() != 1 {
		t.Errorf("log: got %v", logs.All())
	}
}

func TestHost(t *testing.T) {
	s := start(t, Options{Address: "localhost:0", MetricsAddress: "0.0.0.0:0"})
	tests := []struct {
		host  string
		local int // status from the loopback address
	}{
		{"localhost", 200},
		{"LocalHost:8080", 200},
		{"localhost.", 200},
		{"127.0.0.1:1", 200},
		{"127.9.9.9", 200},
		{"[::1]:8080", 200},
		{"[::1]", 200},
		{"attacker.example", 421},
		{"attacker.example:8080", 421},
		{"localhost.attacker.example", 421},
		{"127.0.0.1.attacker.example", 421},
		{"10.0.0.1", 421},
		{"0.0.0.0", 421}, // reaches loopback on many systems, and is how rebinding is done there
		{"2130706433", 421},
	}
	_, port, _ := net.SplitHostPort(s.MetricsAddr().String())
	for _, tt := range tests {
		t.Run(tt.host, func(t *testing.T) {
			set := func(r *http.Request) { r.Host = tt.host }
			if a := ask(t, "GET", "http://"+s.Addr().String()+"/readyz", set); a.code != tt.local {
				t.Errorf("loopback address: got %d %q, want %d", a.code, a.body, tt.local)
			}
			if a := ask(t, "GET", "http://127.0.0.1:"+port+"/readyz", set); a.code != 200 {
				t.Errorf("address for others: got %d %q, want 200 whatever the Host", a.code, a.body)
			}
		})
	}
}

// The configured name counts too, where it leads to a loopback address. /etc/hosts is not the test's to change, so the
// guard is asked directly.
func TestHostAsConfigured(t *testing.T) {
	g := &guard{local: true, host: "relay.internal"}
	for host, want := range map[string]bool{"relay.internal:8080": true, "Relay.Internal": true, "internal": false, "": false} {
		if got := g.knows(host, true); got != want {
			t.Errorf("%q: got %v, want %v", host, got, want)
		}
	}
	if (&guard{local: true}).knows("", true) {
		t.Error("an empty Host passes where no host is configured")
	}
}

// An old client that names no Host gets no page from a loopback address, and a plain answer.
func TestNoHost(t *testing.T) {
	s := start(t, Options{})
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /livez HTTP/1.0\r\n\r\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "421") {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestReadinessFlips(t *testing.T) {
	var fault atomic.Pointer[error]
	s := start(t, Options{Ready: []Check{{"queue", func(context.Context) error {
		if err := fault.Load(); err != nil {
			return *err
		}
		return nil
	}}}})
	url := "http://" + s.Addr().String() + "/readyz"
	full := fmt.Errorf("put: %w", &status.Error{Code: 452, Enhanced: status.Enhanced{4, 3, 1}, Text: "queue storage is full", Err: errors.New("/var/lib")})
	for _, step := range []struct {
		err  error
		code int
		body string
	}{
		{nil, 200, "ok queue\n"},
		{full, 503, "failed queue: 452 4.3.1 queue storage is full\n"}, // and not the path behind it
		{errors.New("line\r\nbreak\x00\u009b"), 503, "failed queue: line  break  \n"},
		{nil, 200, "ok queue\n"},
	} {
		fault.Store(nil)
		if step.err != nil {
			fault.Store(&step.err)
		}
		if a := ask(t, "GET", url, nil); a.code != step.code || a.body != step.body {
			t.Errorf("%v: got %d %q, want %d %q", step.err, a.code, a.body, step.code, step.body)
		}
	}
}

func TestOneLineIsBounded(t *testing.T) {
	got := oneLine(errors.New(strings.Repeat("é", maxLine)))
	if len(got) > maxLine+len("…") || !strings.HasSuffix(got, "é…") {
		t.Errorf("got %d octets: %q", len(got), got)
	}
}

func get(h http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
	return w
}

func TestHangingCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		release := make(chan struct{})
		h := newHealth([]Check{
			{"deaf", func(context.Context) error { asked.Add(1); <-release; return nil }},
			{"fine", ok},
		})
		for range 3 {
			began := time.Now()
			w := get(h)
			if want := "failed deaf: no answer in time\nok fine\n"; w.Code != 503 || w.Body.String() != want {
				t.Errorf("got %d %q, want 503 %q", w.Code, w.Body.String(), want)
			}
			if took := time.Since(began); took != checkTimeout {
				t.Errorf("took %v, want %v", took, checkTimeout)
			}
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("a check that hangs was begun %d times, want once", n)
		}
		close(release)
		synctest.Wait()
		if w := get(h); w.Code != 200 {
			t.Errorf("after the check came back: got %d %q", w.Code, w.Body.String())
		}
	})
}

// The first to ask may hang up; whoever joined still gets the answer.
func TestCheckOutlivesItsFirstAsker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealth([]Check{{"slow", func(ctx context.Context) error {
			select {
			case <-time.After(time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}})
		gone, hangUp := context.WithCancel(t.Context())
		first := make(chan struct{})
		go func() {
			defer close(first)
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "GET", "/readyz", nil))
		}()
		synctest.Wait()
		hangUp()
		<-first
		if w := get(h); w.Code != 200 {
			t.Errorf("got %d %q", w.Code, w.Body.String())
		}
	})
}

func TestCheckIsBoundedAndMayPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealth([]Check{
			{"waits", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
			{"panics", func(context.Context) error { panic("oops") }},
		})
		if w := get(h); w.Code != 503 || !strings.Contains(w.Body.String(), "failed panics: check panicked: oops\n") {
			t.Errorf("got %d %q", w.Code, w.Body.String())
		}
	})
}

func TestTakenPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	for _, tt := range []struct {
		name string
		opts Options
		want string
	}{
		{"admin", Options{Address: address}, "admin.address: another process has " + address + " already; stop it, or write a free port"},
		{"metrics", Options{Address: "127.0.0.1:0", MetricsAddress: address}, "metrics.address: another process has " + address},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.Gatherer = prometheus.NewRegistry()
			s, err := New(tt.opts)
			if s != nil || err == nil || !strings.HasPrefix(err.Error(), tt.want) || !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestAddressesThatCannotBe(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:0":     "192.0.2.1:0 is no address of this machine", // TEST-NET-1
		"127.0.0.1":       "write it like 127.0.0.1:8080",
		"127.0.0.1:99999": "write it like 127.0.0.1:8080",
	} {
		_, err := New(Options{Address: address, Gatherer: prometheus.NewRegistry()})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: got %v, want %q", address, err, want)
		}
	}
}

// Of two addresses, none stays bound when the second cannot be had; Close gives both back.
func TestAddressesAreGivenBack(t *testing.T) {
	s, err := New(Options{Address: "127.0.0.1:0", MetricsAddress: "localhost:0", Gatherer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	first, second := s.Addr().String(), s.MetricsAddr().String()
	if first == second {
		t.Fatalf("one listener for both: %s", first)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", second)
	if err != nil {
		t.Fatalf("Close kept %s: %v", second, err)
	}
	defer taken.Close()
	if _, err := New(Options{Address: first, MetricsAddress: second, Gatherer: prometheus.NewRegistry()}); err == nil {
		t.Fatal("a taken address was bound")
	}
	again, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatalf("the failed New kept %s: %v", first, err)
	}
	again.Close()
}

func TestOneListenerForOneAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	s := start(t, Options{Address: address, MetricsAddress: address})
	if s.Addr() != s.MetricsAddr() {
		t.Errorf("got %v and %v", s.Addr(), s.MetricsAddr())
	}
}

// A client that sends its request octet by octet, or nothing at all, is cut off; others are answered meanwhile.
func TestSlowClients(t *testing.T) {
	s, err := New(Options{Address: "127.0.0.1:0", Gatherer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	s.ends[0].http.ReadHeaderTimeout, s.ends[0].http.ReadTimeout = 100*time.Millisecond, 100*time.Millisecond
	run(t, s)
	for _, sent := range []string{"", "GET /livez HT", "GET /livez HTTP/1.1\r\nHost: localhost\r\n"} {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
		if a := ask(t, "GET", "http://"+s.Addr().String()+"/livez", nil); a.code != 200 {
			t.Errorf("beside a slow client: got %d", a.code)
		}
		got, _ := io.ReadAll(conn) // returns once the server hangs up, and never otherwise
		if strings.Contains(string(got), "200 OK") {
			t.Errorf("half a request %q was answered with %q", sent, got)
		}
	}
}

func TestLimitsAreSet(t *testing.T) {
	s, err := New(Options{Address: "127.0.0.1:0", Gatherer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := s.ends[0].http
	if h.ReadHeaderTimeout == 0 || h.ReadTimeout == 0 || h.WriteTimeout == 0 || h.IdleTimeout == 0 {
		t.Errorf("a timeout is missing: %+v", h)
	}
	if checkTimeout >= h.WriteTimeout {
		t.Error("a check may take longer than its answer")
	}
}

func TestLargeHeader(t *testing.T) {
	s := start(t, Options{})
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.Addr().String()+"/livez", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X", strings.Repeat("x", 1<<20))
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return // cut off before the answer was read: as good
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %d, want 431", resp.StatusCode)
	}
}

// What is being answered when the relay stops is answered.
func TestRunFinishesRequests(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	s, err := New(Options{Address: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), Ready: []Check{
		{"slow", func(context.Context) error { close(asked); <-release; return nil }},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-asked
	stop()
	for { // until the listener is closed: the stop has begun
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			break
		}
		c.Close()
	}
	close(release)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "200 OK") {
		t.Errorf("got %q, %v", line, err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close behind Run: %v", err)
	}
}

// A listener that breaks ends Run with an error that names it, and takes the other along.
func TestRunEndsWithItsListener(t *testing.T) {
	s, err := New(Options{Address: "127.0.0.1:0", MetricsAddress: "localhost:0", Gatherer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	s.ends[1].listener.Close()
	if err := s.Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "metrics.address: serve: ") {
		t.Errorf("got %v", err)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("the other listener is still open")
	}
}
