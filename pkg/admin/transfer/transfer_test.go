package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// source is a body that ends in err instead of io.EOF, where there is one.
type source struct {
	io.Reader
	err    error
	closed bool
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if errors.Is(err, io.EOF) && s.err != nil {
		err = s.err
	}
	return n, err
}

func (s *source) Close() error { s.closed = true; return nil }

func TestDownload(t *testing.T) {
	for _, size := range []int{0, 1, step - 1, step, step + 1, window - 1, window, window + 1, 10 * window, 10*window + 7} {
		want := bytes.Repeat([]byte("0123456789abcde\n"), size/16+1)[:size]
		from := &source{Reader: bytes.NewReader(want)}
		d, err := NewDownload(from)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		if err := d.To(w); err != nil || !bytes.Equal(w.Body.Bytes(), want) {
			t.Errorf("%d octets: got %d, %v", size, w.Body.Len(), err)
		}
		if err := d.Close(); err != nil || !from.closed {
			t.Errorf("the source is open: %v", err)
		}
	}
}

// A message found damaged at its very end never goes out whole.
func TestDamagedDownload(t *testing.T) {
	damaged := errors.New("damaged")
	for _, size := range []int{0, 100, window - 1, window} {
		from := &source{Reader: strings.NewReader(strings.Repeat("x", size)), err: damaged}
		d, err := NewDownload(from)
		if size == window { // known only once it has begun
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			if err := d.To(w); !errors.Is(err, damaged) || w.Body.Len() >= size {
				t.Errorf("%d octets: got %d, %v", size, w.Body.Len(), err)
			}
			continue
		}
		if !errors.Is(err, damaged) || !from.closed {
			t.Errorf("%d octets: got %v, closed %v", size, err, from.closed)
		}
	}
}

type brokenWriter struct{ http.ResponseWriter }

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestDownloadToNobody(t *testing.T) {
	d, err := NewDownload(&source{Reader: strings.NewReader("x")})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.To(brokenWriter{httptest.NewRecorder()}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

func TestUploadLimit(t *testing.T) {
	for _, tt := range []struct {
		size   int64
		length bool // given beforehand
		fits   bool
	}{{10, true, true}, {10, false, true}, {11, true, false}, {11, false, false}} {
		r := httptest.NewRequest("POST", "/", io.LimitReader(strings.NewReader(strings.Repeat("x", 20)), tt.size))
		r.ContentLength = -1
		if tt.length {
			r.ContentLength = tt.size
		}
		u := NewUpload(httptest.NewRecorder(), r, 10)
		if early := u.Err() != nil; early != (tt.length && !tt.fits) {
			t.Errorf("%+v: refused beforehand: %v", tt, early)
		}
		got, err := io.ReadAll(u)
		large, _ := errors.AsType[*http.MaxBytesError](err)
		if tt.fits && (err != nil || int64(len(got)) != tt.size || u.Err() != nil) || !tt.fits && (large == nil || !errors.Is(u.Err(), err)) {
			t.Errorf("%+v: got %d octets, %v, Err %v", tt, len(got), err, u.Err())
		}
	}
}

// The server's own timeouts end neither a long upload nor a long download, nor the request's context behind either.
func TestTimeoutsOfTheServer(t *testing.T) {
	const timeout = 100 * time.Millisecond
	half, more := make(chan struct{}), make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := NewUpload(w, r, 100)
		if _, err := io.ReadFull(u, make([]byte, 1)); err != nil {
			t.Errorf("first octet: %v", err)
		}
		late, cancel := context.WithTimeout(r.Context(), 2*timeout)
		defer cancel()
		<-late.Done() // the server's deadlines have passed
		close(half)
		if rest, err := io.ReadAll(u); string(rest) != "b" || err != nil {
			t.Errorf("the rest: %q, %v", rest, err)
		}
		late, cancel = context.WithTimeout(r.Context(), 2*timeout)
		defer cancel()
		<-late.Done()
		if err := r.Context().Err(); err != nil {
			t.Errorf("the request was called off: %v", err)
		}
		u.End()
		d, err := NewDownload(&source{Reader: strings.NewReader("answer")})
		if err == nil {
			err = d.To(w)
		}
		if err != nil {
			t.Errorf("answer: %v", err)
		}
	}))
	s.Config.ReadTimeout, s.Config.WriteTimeout = timeout, timeout
	s.Start()
	defer s.Close()
	body, out := io.Pipe()
	go func() {
		io.WriteString(out, "a")
		<-half
		io.WriteString(out, "b")
		out.Close()
		close(more)
	}()
	resp, err := s.Client().Post(s.URL, "message/rfc822", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); string(got) != "answer" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	<-more
}

func TestUploadThatBreaksOff(t *testing.T) {
	u := NewUpload(httptest.NewRecorder(), httptest.NewRequest("POST", "/", &source{Reader: strings.NewReader("half"), err: io.ErrUnexpectedEOF}), 100)
	if got, err := io.ReadAll(u); string(got) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(u.Err(), err) {
		t.Errorf("got %q, %v, %v", got, err, u.Err())
	}
	if n, err := u.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read again: %d, %v", n, err)
	}
}

func TestUploadEndsInTheEnd(t *testing.T) {
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	u := NewUpload(w, httptest.NewRequest("POST", "/", strings.NewReader("ab")), 100)
	u.until = time.Now().Add(stall / 2) // most of the time is over
	if _, err := u.Read(make([]byte, 1)); err != nil || !w.read.Equal(u.until) {
		t.Errorf("got %v, deadline %v, want %v", err, w.read, u.until)
	}
	for range 2 { // whoever asks again behind the end leaves no deadline either
		if rest, err := io.ReadAll(u); len(rest) > 1 || err != nil || !w.read.IsZero() {
			t.Errorf("got %q, %v, deadline %v behind the end", rest, err, w.read)
		}
	}
}

type deadlines struct {
	*httptest.ResponseRecorder
	read time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.read = t; return nil }
