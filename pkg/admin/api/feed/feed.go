// Package feed is the stream of server-sent events (WHATWG HTML, section 9.2) that tells what happens to messages.
//
// It keeps nothing: what happens while nobody listens, or while a reader is too slow, is not told again. A stream ends with
// its reader, with a reader that takes nothing for 30 s, with the HTTP server, or after 15 minutes.
package feed

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"relayd/pkg/admin/console"
)

// MaxReaders is how many may follow at once: each holds a connection.
const MaxReaders = 64

// pace is the times of a stream.
type pace struct {
	heartbeat time.Duration // between comments that show the stream is alive
	stall     time.Duration // for the reader to take what is written
	life      time.Duration // of a stream, so that a right that was taken away ends
}

// Feed is the stream, for all readers.
type Feed struct {
	follow func(context.Context) <-chan console.Event
	pace   pace

	mu      sync.Mutex // guards the rest
	readers int
	stops   map[*http.Server]<-chan struct{} // closed when the server shuts down
}

// New returns a stream of what follow tells until its context ends, as [console.Console].Follow does.
func New(follow func(context.Context) <-chan console.Event) *Feed {
	return &Feed{
		follow: follow, stops: map[*http.Server]<-chan struct{}{},
		pace: pace{heartbeat: 15 * time.Second, stall: 30 * time.Second, life: 15 * time.Minute},
	}
}

// Reader is one place among the readers.
type Reader struct {
	feed *Feed
	free sync.Once
}

// Reader takes a place, which Close gives back; false: all are taken.
func (f *Feed) Reader() (*Reader, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers >= MaxReaders {
		return nil, false
	}
	f.readers++
	return &Reader{feed: f}, true
}

// Close gives the place back.
func (r *Reader) Close() {
	r.free.Do(func() {
		r.feed.mu.Lock()
		defer r.feed.mu.Unlock()
		r.feed.readers--
	})
}

// Serve answers with the events that keep selects until the stream ends.
func (r *Reader) Serve(w http.ResponseWriter, req *http.Request, keep func(*console.Event) bool) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	if req.Method == http.MethodHead {
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), r.feed.pace.life)
	defer cancel()
	stopping := r.feed.stopping(req)
	events := r.feed.follow(ctx)
	s := stream{w, http.NewResponseController(w), r.feed.pace.stall}
	if s.write("retry: 3000\n: from now on\n\n") != nil {
		return
	}
	beat := time.NewTicker(r.feed.pace.heartbeat)
	defer beat.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-stopping:
			return
		case <-beat.C:
			err = s.write(": alive\n\n")
		case event, more := <-events:
			if !more {
				return
			}
			if keep(&event) {
				err = s.event(&event)
			}
		}
		if err != nil {
			return // the reader has gone, or takes nothing
		}
	}
}

// stream writes to one reader.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

func (s *stream) write(text string) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(s.stall)) // where there is no connection, as in tests, there is none to set
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}

func (s *stream) event(e *console.Event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	name := strings.Map(func(c rune) rune { // a line end would begin a field
		if c <= ' ' {
			return -1
		}
		return c
	}, e.Step.What)
	return s.write(fmt.Sprintf("event: %s\ndata: %s\n\n", name, data))
}

// stopping returns what is closed when the server behind req shuts down, which waits for its requests; nil: there is none.
func (f *Feed) stopping(req *http.Request) <-chan struct{} {
	server, ok := req.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stops[server] == nil {
		stop := make(chan struct{})
		f.stops[server] = stop
		server.RegisterOnShutdown(func() { close(stop) })
	}
	return f.stops[server]
}
