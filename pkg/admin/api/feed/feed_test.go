package feed

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"relayd/pkg/admin/console"
	"relayd/pkg/envelope"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func all(*console.Event) bool { return true }

// relay is a source of events. It counts who follows.
type relay struct {
	events chan console.Event

	mu       sync.Mutex // guards the rest
	contexts []context.Context
}

func (r *relay) follow(ctx context.Context) <-chan console.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contexts = append(r.contexts, ctx)
	return r.events
}

// over reports whether what the last reader follows has been told to end.
func (r *relay) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.contexts[len(r.contexts)-1].Err() != nil
}

// paper is a response that can be read while it is written.
type paper struct {
	mu     sync.Mutex // guards the rest
	header http.Header
	text   strings.Builder
	err    error // of Write
}

func (p *paper) Header() http.Header { return p.header }
func (p *paper) WriteHeader(int)     {}
func (p *paper) Flush()              {}

func (p *paper) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	return p.text.Write(b)
}

func (p *paper) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// serve reads from f until it ends, which done tells.
func serve(t *testing.T, f *Feed, w http.ResponseWriter, r *http.Request, keep func(*console.Event) bool) (done chan struct{}) {
	t.Helper()
	reader, ok := f.Reader()
	if !ok {
		t.Fatal("no place")
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		defer reader.Close()
		reader.Serve(w, r, keep)
	}()
	return done
}

func ended(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := &relay{events: make(chan console.Event)}
		p := &paper{header: http.Header{}}
		done := serve(t, New(from.follow), p, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil), func(e *console.Event) bool { return e.Sender != "b@contoso.com" })
		synctest.Wait()
		const begin = "retry: 3000\n: from now on\n\n"
		if got := p.String(); got != begin {
			t.Errorf("begins with %q", got)
		}
		if got := p.header.Get("Content-Type"); got != "text/event-stream" {
			t.Errorf("is %q", got)
		}
		from.events <- console.Event{Sender: "b@contoso.com"}
		from.events <- console.Event{Sender: "a@contoso.com", Step: envelope.Step{ID: "x", What: "dropped\r\ndata: forged\n\n", By: "ops\n\nevent: forged"}}
		synctest.Wait()
		const event = "event: droppeddata:forged\ndata: {\"step\":{\"id\":\"x\",\"at\":\"0001-01-01T00:00:00Z\",\"what\":\"dropped\\r\\ndata: forged\\n\\n\"," +
			"\"state\":\"\",\"by\":\"ops\\n\\nevent: forged\"},\"sender\":\"a@contoso.com\"}\n\n"
		if got := p.String(); got != begin+event {
			t.Errorf("got %q, want %q", got, begin+event)
		}
		<-time.After(15*time.Second - time.Nanosecond)
		if strings.Contains(p.String(), "alive") {
			t.Error("a heartbeat before its time")
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if n := strings.Count(p.String(), ": alive\n\n"); n != 4 {
			t.Errorf("%d heartbeats in 75 s less a moment", n)
		}
		<-time.After(14 * time.Minute)
		synctest.Wait()
		if !ended(done) || !from.over() {
			t.Error("goes on after 15 minutes")
		}
	})
}

func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, end := range map[string]func(*relay, *paper, context.CancelFunc){
			"the reader hangs up":  func(_ *relay, _ *paper, cancel context.CancelFunc) { cancel() },
			"there is no more":     func(r *relay, _ *paper, _ context.CancelFunc) { close(r.events) },
			"an event cannot go":   func(r *relay, p *paper, _ context.CancelFunc) { p.fail(); r.events <- console.Event{} },
			"a heartbeat does not": func(_ *relay, p *paper, _ context.CancelFunc) { p.fail(); <-time.After(15 * time.Second) },
		} {
			from := &relay{events: make(chan console.Event)}
			p := &paper{header: http.Header{}}
			ctx, cancel := context.WithCancel(t.Context())
			f := New(from.follow)
			done := serve(t, f, p, httptest.NewRequestWithContext(ctx, "GET", "/", nil), all)
			synctest.Wait()
			if ended(done) {
				t.Errorf("%s: ended before", name)
			}
			end(from, p, cancel)
			synctest.Wait()
			if !ended(done) || !from.over() || f.readers != 0 {
				t.Errorf("%s: ended %v, follows no more %v, %d readers", name, ended(done), from.over(), f.readers)
			}
			cancel()
		}
	})
}

func (p *paper) fail() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = errors.New("gone")
}

func TestHead(t *testing.T) {
	from := &relay{}
	w := httptest.NewRecorder()
	<-serve(t, New(from.follow), w, httptest.NewRequest("HEAD", "/", nil), all)
	if w.Body.Len() > 0 || w.Header().Get("Content-Type") != "text/event-stream" || len(from.contexts) > 0 {
		t.Errorf("got %q, %v, %d follow", w.Body, w.Header(), len(from.contexts))
	}
}

func TestPlaces(t *testing.T) {
	f := New(nil)
	var readers []*Reader
	for range MaxReaders {
		r, ok := f.Reader()
		if !ok {
			t.Fatalf("no place after %d", len(readers))
		}
		readers = append(readers, r)
	}
	if _, ok := f.Reader(); ok {
		t.Error("one too many")
	}
	readers[3].Close()
	readers[3].Close() // gives back one place, not two
	if _, ok := f.Reader(); !ok {
		t.Error("the place that was given back is not free")
	}
	if _, ok := f.Reader(); ok {
		t.Error("one too many")
	}
}

// server is a real one whose only page is the stream. done gets a value for each stream that has ended.
func server(t *testing.T, f *Feed, change func(*http.Server)) (s *http.Server, address string, done chan struct{}) {
	t.Helper()
	done = make(chan struct{}, 1)
	s = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reader, ok := f.Reader()
		if !ok {
			t.Error("no place")
			return
		}
		reader.Serve(w, r, all)
		reader.Close()
		done <- struct{}{}
	})}
	change(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving := make(chan struct{})
	go func() {
		defer close(serving)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-serving
	})
	return s, l.Addr().String(), done
}

const patience = 20 * time.Second

func wait(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal(what)
	}
}

// dial asks for the stream and returns the connection and what comes.
func dial(t *testing.T, address string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

func until(t *testing.T, from *bufio.Reader, text string) {
	t.Helper()
	for {
		line, err := from.ReadString('\n')
		if strings.Contains(line, text) {
			return
		}
		if err != nil {
			t.Fatalf("no %q: %v", text, err)
		}
	}
}

// A server that shuts down waits for its requests; a stream does not keep it waiting.
func TestServerStops(t *testing.T) {
	from := &relay{events: make(chan console.Event)}
	f := New(from.follow)
	s, address, done := server(t, f, func(*http.Server) {})
	_, one := dial(t, address)
	until(t, one, "from now on")
	_, other := dial(t, address)
	until(t, other, "from now on")
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if err := s.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	wait(t, done, "a stream goes on")
	wait(t, done, "the other stream goes on")
	wait(t, stopped, "the server waits")
	until(t, one, "0\r\n") // its regular end: a browser connects anew
}

// A reader that takes nothing is left, and what it follows ends.
func TestSlowReader(t *testing.T) {
	from := &relay{events: make(chan console.Event)}
	f := New(from.follow)
	f.pace.stall = 50 * time.Millisecond
	_, address, done := server(t, f, func(*http.Server) {})
	_, slow := dial(t, address)
	until(t, slow, "from now on")
	large := console.Event{Step: envelope.Step{Reply: strings.Repeat("x", 1<<20)}}
	end := time.After(patience)
	for left := false; !left; {
		select {
		case from.events <- large:
		case <-done:
			left = true
		case <-end:
			t.Fatal("a reader that takes nothing is waited for")
		}
	}
	if !from.over() {
		t.Error("is still followed")
	}
}

// The timeouts of a server for other pages do not end a stream.
func TestTimeoutsOfTheServer(t *testing.T) {
	from := &relay{events: make(chan console.Event)}
	f := New(from.follow)
	f.pace.heartbeat = 20 * time.Millisecond
	_, address, done := server(t, f, func(s *http.Server) {
		s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	})
	conn, lines := dial(t, address)
	for range 10 {
		until(t, lines, ": alive")
	}
	from.events <- console.Event{Step: envelope.Step{What: "held"}}
	until(t, lines, "event: held")
	_ = conn.Close()
	wait(t, done, "goes on without a reader")
}
