package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// pass takes connections on a loopback address and hands each, with one of its own to target, to serve.
func pass(t *testing.T, target string, serve func(client, server net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed: the test is over
			}
			all.Go(func() {
				defer client.Close()
				server, err := net.Dial("tcp", target)
				if err != nil {
					return // the client sees its connection end
				}
				defer server.Close()
				// The end of the test is the end of sessions the relay would keep.
				defer context.AfterFunc(t.Context(), func() { client.Close(); server.Close() })()
				serve(client, server)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// tap keeps what clients send as messages and what the relay says to them: an SMTP reader of its own, which shares
// nothing with the relay's.
type tap struct {
	addr     string
	messages chan taken
}

// taken is a message on its way: between the relay's 354 and its end, dot-stuffing undone, and the reply to it.
type taken struct{ body, reply string }

func newTap(t *testing.T, relay string) *tap {
	t.Helper()
	tp := &tap{messages: make(chan taken, 100)}
	tp.addr = pass(t, relay, func(client, server net.Conn) { (&wire{tap: tp}).run(client, server) })
	return tp
}

// wire is one connection through a tap.
type wire struct {
	tap *tap

	mu     sync.Mutex // guards what follows
	inBody bool       // the relay has said 354, the client has not ended the message
	body   []byte     // as sent, behind the line end of the DATA command
	ended  bool       // the reply to the message is the next one
	line   []byte     // of the relay, so far
}

func (w *wire) run(client, server net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		shovel(client, server, w.said) // the 354 is noted before the client can read it
		client.Close()
	}()
	shovel(server, client, w.sent)
	if c, ok := server.(*net.TCPConn); ok {
		_ = c.CloseWrite() // an error means the relay has gone
	}
	<-done
}

func shovel(dst io.Writer, src io.Reader, look func([]byte)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		look(buf[:n])
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// said looks at octets of the relay.
func (w *wire) said(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range b {
		if w.line = append(w.line, c); c != '\n' {
			continue
		}
		line := strings.TrimRight(string(w.line), "\r\n")
		w.line = w.line[:0]
		switch {
		case w.ended:
			w.tap.messages <- taken{string(unstuff(w.body)), line}
			w.ended, w.body = false, nil
		case strings.HasPrefix(line, "354 "):
			w.inBody, w.body = true, []byte("\r\n")
		}
	}
}

// sent looks at octets of the client.
func (w *wire) sent(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.inBody {
		return
	}
	const end = "\r\n.\r\n"
	from := max(0, len(w.body)-len(end))
	w.body = append(w.body, b...)
	if i := bytes.Index(w.body[from:], []byte(end)); i >= 0 {
		w.body = w.body[2 : from+i+2]
		w.inBody, w.ended = false, true
	}
}

// unstuff takes the first dot of each line away that begins with one (RFC 5321, section 4.5.2).
func unstuff(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		n := len(b)
		if i := bytes.Index(b, []byte("\r\n")); i >= 0 {
			n = i + 2
		}
		out = append(out, bytes.TrimPrefix(b[:n], []byte("."))...)
		b = b[n:]
	}
	return out
}

func TestUnstuff(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "",
		"a\r\n":                      "a\r\n",
		"..\r\n":                     ".\r\n",
		".a\r\n..b\r\n.":             "a\r\n.b\r\n",
		"a.b\r\n.\n.c\r\n":           "a.b\r\n\n.c\r\n", // a bare LF begins no line
		"...\r\n\r\n..\r\nno ending": "..\r\n\r\n.\r\nno ending",
	} {
		if got := string(unstuff([]byte(in))); got != want {
			t.Errorf("unstuff(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestWire feeds a whole dialogue to a wire, in pieces of every size: where the pieces end must not matter.
func TestWire(t *testing.T) {
	for size := 1; size < 40; size++ {
		tp := &tap{messages: make(chan taken, 2)}
		w := &wire{tap: tp}
		feed := func(look func([]byte), s string) {
			for len(s) > 0 {
				n := min(size, len(s))
				look([]byte(s[:n]))
				s = s[n:]
			}
		}
		feed(w.said, "220 hello\r\n250-a\r\n250 b\r\n")
		feed(w.sent, "DATA\r\n.\r\n")
		feed(w.said, "354 go on\r\n")
		feed(w.sent, "a: b\r\n\r\n..dot\r\n.\n.\r\n.\r\nDATA\r\n")
		feed(w.said, "250 2.0.0 Ok: queued as X\r\n354 go on\r\n")
		feed(w.sent, ".\r\nQUIT\r\n")
		feed(w.said, "550 no\r\n221 bye\r\n")
		if got, want := <-tp.messages, (taken{"a: b\r\n\r\n.dot\r\n\n.\r\n", "250 2.0.0 Ok: queued as X"}); got != want {
			t.Fatalf("pieces of %d: got %q, want %q", size, got, want)
		}
		if got, want := <-tp.messages, (taken{"", "550 no"}); got != want {
			t.Fatalf("pieces of %d: got %q, want %q", size, got, want)
		}
	}
}
