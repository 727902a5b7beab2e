package smtpin

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"relayd/pkg/keypair"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// talk is a client of a server in fake time.
type talk struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

// inFakeTime runs a server without a socket.
func inFakeTime(t *testing.T, set Settings, q *fakeQueue, f func(s *Server, c *talk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		opts, _, _ := testOptions(set, q)
		s, err := newServer(opts)
		if err != nil {
			t.Fatal(err)
		}
		conn := pipe(context.Background(), s)
		f(s, &talk{t, conn, bufio.NewReader(conn)})
		_ = conn.Close()
		s.wg.Wait()
	})
}

func (c *talk) want(prefix string) {
	c.t.Helper()
	line, err := c.in.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, prefix) {
		c.t.Fatalf("got %q, %v, want %q", line, err, prefix)
	}
}

func (c *talk) wantEnd() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.in); len(rest) > 0 || err != nil {
		c.t.Fatalf("got %q, %v, want the end", rest, err)
	}
}

// say reports whether the server was still there.
func (c *talk) say(s string) bool {
	_, err := io.WriteString(c.conn, s)
	return err == nil
}

// toData goes up to the 354.
func (c *talk) toData() {
	c.t.Helper()
	c.want("220")
	for _, line := range []string{"HELO x", "MAIL FROM:<a@contoso.com>", "RCPT TO:<r@example.com>"} {
		c.say(line + "\r\n")
		c.want("250")
	}
	c.say("DATA\r\n")
	c.want("354")
}

// took checks how long something took in fake time.
func took(t *testing.T, start time.Time, want time.Duration) {
	t.Helper()
	if got := time.Since(start); got != want {
		t.Errorf("took %v, want %v", got, want)
	}
}

func TestIdleTimeout(t *testing.T) {
	inFakeTime(t, testSettings(), &fakeQueue{}, func(_ *Server, c *talk) {
		c.want("220")
		start := time.Now()
		c.want("421 4.4.2 timeout")
		took(t, start, 5*time.Minute)
		c.wantEnd()
	})
}

// The deadline is for the command, not for an octet of it.
func TestDrippedCommand(t *testing.T) {
	inFakeTime(t, testSettings(), &fakeQueue{}, func(_ *Server, c *talk) {
		c.want("220")
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			for c.say("N") {
				advance(time.Minute)
			}
		})
		c.want("421 4.4.2 timeout")
		took(t, start, 5*time.Minute)
		c.wantEnd()
		wg.Wait()
	})
}

func TestAuthTimeout(t *testing.T) {
	set := testSettings()
	set.Clients = []Client{{Username: "erp", PasswordHash: hash(t, "x")}}
	inFakeTime(t, set, &fakeQueue{}, func(_ *Server, c *talk) {
		c.want("220")
		c.say("HELO x\r\n")
		c.want("250")
		c.say("AUTH LOGIN\r\n")
		c.want("334")
		c.want("421 4.4.2 timeout")
		c.wantEnd()
	})
}

func TestBodyStalls(t *testing.T) {
	q := &fakeQueue{}
	inFakeTime(t, testSettings(), q, func(_ *Server, c *talk) {
		c.toData()
		c.say("Subject: x\r\n\r\nMAIL FROM:<a@contoso.com>\r\n")
		start := time.Now()
		c.want("421 4.4.2 timeout before the end of the message")
		took(t, start, 5*time.Minute)
		c.wantEnd()
	})
	if len(q.stored()) > 0 {
		t.Error("half a message was stored")
	}
}

func TestBDATStalls(t *testing.T) {
	for name, chunk := range map[string]string{
		"within the last chunk": "BDAT 100 LAST\r\nFrom: a@contoso.com\r\n\r\nMAIL FROM:<a@contoso.com>\r\n",
		"within a chunk":        "BDAT 100\r\nNOOP\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			q := &fakeQueue{}
			inFakeTime(t, testSettings(), q, func(_ *Server, c *talk) {
				c.want("220")
				for _, line := range []string{"HELO x", "MAIL FROM:<a@contoso.com>", "RCPT TO:<r@example.com>"} {
					c.say(line + "\r\n")
					c.want("250")
				}
				go c.say(chunk)
				c.want("421 4.4.2 timeout before the end of the message")
				c.wantEnd()
			})
			if len(q.stored()) > 0 {
				t.Error("half a message was stored")
			}
		})
	}
}

func TestRefusedChunkStalls(t *testing.T) {
	inFakeTime(t, testSettings(), &fakeQueue{}, func(_ *Server, c *talk) {
		c.want("220")
		c.say("BDAT 10\r\nNOOP\r\n")
		c.want("503 5.5.1")
		start := time.Now()
		c.want("421 4.4.2 timeout")
		took(t, start, 5*time.Minute)
		c.wantEnd()
	})
}

func TestMinimumRate(t *testing.T) {
	set := testSettings()
	set.Listener.MinBodyRate = 500
	header := "From: a@contoso.com\r\n\r\n"
	drip := func(c *talk, octets int, every time.Duration, n int) {
		for range n {
			advance(every)
			if !c.say(strings.Repeat("x", octets-2) + "\r\n") {
				return
			}
		}
	}
	t.Run("too slow", func(t *testing.T) {
		q := &fakeQueue{}
		inFakeTime(t, set, q, func(_ *Server, c *talk) {
			c.toData()
			start := time.Now()
			var wg sync.WaitGroup
			wg.Go(func() { drip(c, 100, time.Second, 1000) })
			c.want("421 4.4.2 message comes too slowly")
			// 30 s of grace and what the octets so far have earned: 30 s + 37 × 100 / 500 is the first to run out.
			took(t, start, 37400*time.Millisecond)
			c.wantEnd()
			wg.Wait()
		})
		if len(q.stored()) > 0 {
			t.Error("half a message was stored")
		}
	})
	t.Run("just fast enough", func(t *testing.T) {
		q := &fakeQueue{}
		inFakeTime(t, set, q, func(_ *Server, c *talk) {
			c.toData()
			c.say(header)
			drip(c, 5000, 10*time.Second, 60)
			c.say(".\r\n")
			c.want("250 2.0.0 Ok: queued")
		})
	})
	t.Run("our own slowness does not count", func(t *testing.T) {
		q := &fakeQueue{gate: make(chan struct{})}
		inFakeTime(t, set, q, func(_ *Server, c *talk) {
			q.gate = make(chan struct{}) // of this bubble
			c.toData()
			c.say(header)
			advance(time.Hour)
			close(q.gate)
			c.say("x\r\n.\r\n")
			c.want("250 2.0.0 Ok: queued")
		})
	})
}

// A client that does not read its replies is given up after the command timeout.
func TestClientDoesNotRead(t *testing.T) {
	inFakeTime(t, testSettings(), &fakeQueue{}, func(s *Server, _ *talk) {
		start := time.Now()
		s.wg.Wait()
		took(t, start, 5*time.Minute)
	})
}

func TestResetWithinBody(t *testing.T) {
	for name, commands := range map[string]string{
		"DATA":            "DATA\r\nFrom: a@contoso.com\r\n\r\nMAIL FROM:<a@contoso.com>\r\n",
		"DATA at the dot": "DATA\r\nFrom: a@contoso.com\r\n\r\nx\r\n.",
		"DATA behind CR":  "DATA\r\nFrom: a@contoso.com\r\n\r\nx\r\n.\r",
		"DATA in header":  "DATA\r\nFrom: a@con",
		"BDAT":            "BDAT 100\r\nFrom: a@contoso.com\r\n\r\n",
		"BDAT LAST":       "BDAT 100 LAST\r\nFrom: a@contoso.com\r\n\r\n",
		"between chunks":  "BDAT 23\r\nFrom: a@contoso.com\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			q := &fakeQueue{}
			inFakeTime(t, testSettings(), q, func(s *Server, c *talk) {
				go func() { _, _ = io.Copy(io.Discard, c.in) }()
				c.say("HELO x\r\nMAIL FROM:<a@contoso.com>\r\nRCPT TO:<r@example.com>\r\n" + commands)
				synctest.Wait()
				_ = c.conn.Close()
				s.wg.Wait()
			})
			if len(q.stored()) > 0 {
				t.Errorf("stored %+v", q.stored())
			}
		})
	}
}

func TestPenalties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p penalties
		a, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		for i, want := range []time.Duration{0, 0, 0, 1, 2, 4, 8, 10, 10} {
			if got := p.delay(a); got != want*time.Second {
				t.Errorf("behind %d failures: got %v, want %v", i, got, want*time.Second)
			}
			p.add(a)
		}
		if got := p.delay(other); got != 0 {
			t.Errorf("another address waits %v", got)
		}
		start := time.Now()
		if err := p.wait(context.Background(), a); err != nil {
			t.Error(err)
		}
		took(t, start, 10*time.Second)
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if err := p.wait(ended, a); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the context's error", err)
		}
		p.forgive(a)
		if p.delay(a) != 0 {
			t.Error("not forgiven")
		}
		for range 5 {
			p.add(a)
		}
		advance(penaltyMemory + time.Second)
		if p.delay(a) != 0 {
			t.Error("not forgotten")
		}
		p.add(a)
		if got := p.failed[penaltyKey(a)].count; got != 1 {
			t.Errorf("old failures still count: %d", got)
		}
	})
}

func TestPenaltiesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p penalties
		next := netip.MustParseAddr("10.0.0.0")
		for range maxPenalties + 100 {
			next = next.Next()
			p.add(next)
		}
		if len(p.failed) != maxPenalties {
			t.Errorf("%d addresses are remembered, want %d", len(p.failed), maxPenalties)
		}
		advance(penaltyMemory + time.Second)
		p.add(next.Next())
		if len(p.failed) != 1 {
			t.Errorf("expired ones were kept: %d", len(p.failed))
		}
	})
	if penaltyKey(netip.MustParseAddr("2001:db8::1")) != penaltyKey(netip.MustParseAddr("2001:db8::2")) {
		t.Error("two addresses of a /64 are told apart")
	}
}

// An address that has failed before waits, across sessions; the right password works all the same.
func TestGuessingIsSlow(t *testing.T) {
	set := testSettings()
	set.Clients = []Client{{Username: "erp", PasswordHash: hash(t, "secret"), Senders: []string{"*@contoso.com"}}}
	inFakeTime(t, set, &fakeQueue{}, func(s *Server, c *talk) {
		c.want("220")
		c.say("HELO x\r\n")
		c.want("250")
		for _, code := range []string{"535", "535", "421"} {
			c.say("AUTH PLAIN AGVycAB3cm9uZw==\r\n")
			c.want(code)
		}
		c.wantEnd()
		again := pipe(context.Background(), s)
		c = &talk{t, again, bufio.NewReader(again)}
		c.want("220")
		c.say("HELO x\r\n")
		c.want("250")
		start := time.Now()
		c.say("AUTH PLAIN AGVycABzZWNyZXQ=\r\n")
		c.want("235")
		took(t, start, time.Second)
		_ = again.Close()
	})
}

// brokenListener fails as one without file descriptors does.
type brokenListener struct {
	calls  atomic.Int64
	closed chan struct{}
}

func (l *brokenListener) Accept() (net.Conn, error) {
	l.calls.Add(1)
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
}

func (l *brokenListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *brokenListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestAcceptDoesNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts, _, logs := testOptions(testSettings(), &fakeQueue{})
		s, err := newServer(opts)
		if err != nil {
			t.Fatal(err)
		}
		l := &brokenListener{closed: make(chan struct{})}
		s.listener = l
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		if n := l.calls.Load(); n < 50 || n > 100 {
			t.Errorf("%d attempts in a minute", n)
		}
		if n := logs.FilterMessage("connection not accepted, waiting").Len(); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
	})
}

func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, _ := writePair(t, dir, "one.example")
	synctest.Test(t, func(t *testing.T) {
		opts, _, logs := testOptions(testSettings(), &fakeQueue{})
		c, err := keypair.Open(certFile, keyFile, opts.Logger)
		if err != nil {
			t.Fatal(err)
		}
		name := func() string {
			pair, err := c.Get(nil)
			if err != nil {
				t.Fatal(err)
			}
			return pair.Leaf.DNSNames[0]
		}
		writePair(t, dir, "two.example")
		if got := name(); got != "one.example" {
			t.Errorf("read again at once: %s", got)
		}
		advance(keypair.Check)
		if got := name(); got != "two.example" {
			t.Errorf("not read again: %s", got)
		}
		if err := os.WriteFile(certFile, []byte("rubbish"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			advance(keypair.Check)
			if got := name(); got != "two.example" {
				t.Errorf("a broken pair replaced a good one: %s", got)
			}
		}
		if n := logs.FilterMessageSnippet("not reloaded").Len(); n != 1 {
			t.Errorf("a broken pair was reported %d times, want once", n)
		}
		writePair(t, dir, "three.example")
		advance(keypair.Check)
		if got := name(); got != "three.example" {
			t.Errorf("got %s", got)
		}
	})
}

// advance lets fake time pass, in a synctest bubble.
func advance(d time.Duration) { <-time.After(d) }
