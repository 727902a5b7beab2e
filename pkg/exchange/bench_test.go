package exchange

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// sink is a submission server that does as little as it can, on a real socket.
func sink(t testing.TB, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer func() { _ = conn.Close() }()
				drain(conn, config)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		done.Wait()
	})
	return l.Addr().String()
}

func drain(conn net.Conn, config *tls.Config) {
	r, w := bufio.NewReaderSize(conn, 64<<10), io.Writer(conn)
	var answers []byte
	fmt.Fprint(w, "220 sink\r\n")
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		answer := "250 2.0.0 OK\r\n"
		switch {
		case bytes.HasPrefix(line, []byte("EHLO")):
			answer = "250-sink\r\n250-PIPELINING\r\n250-SIZE\r\n250-STARTTLS\r\n250 AUTH XOAUTH2\r\n"
		case bytes.HasPrefix(line, []byte("STARTTLS")):
			fmt.Fprint(w, "220 go\r\n")
			secure := tls.Server(conn, config)
			r, w = bufio.NewReaderSize(secure, 64<<10), secure
			continue
		case bytes.HasPrefix(line, []byte("AUTH")):
			answer = "334 \r\n"
		case bytes.HasPrefix(line, []byte("DATA")):
			fmt.Fprint(w, "354 go\r\n")
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					return
				}
				if len(line) == 3 && line[0] == '.' {
					break
				}
			}
		case bytes.HasPrefix(line, []byte("QUIT")):
			return
		}
		answers = append(answers, answer...)
		if r.Buffered() == 0 { // one write for all that was pipelined, as good servers do
			if _, err := w.Write(answers); err != nil {
				return
			}
			answers = answers[:0]
		}
	}
}

// counted counts the writes of a connection.
type counted struct {
	net.Conn
	writes *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// SyscallConn implements syscall.Conn, as the socket does.
func (c counted) SyscallConn() (syscall.RawConn, error) { return c.Conn.(syscall.Conn).SyscallConn() }

func socketPool(t testing.TB, writes *atomic.Int64) (*Pool, func()) {
	cert, roots := certify(t, "127.0.0.1", time.Now().Add(time.Hour))
	address := sink(t, &tls.Config{Certificates: []tls.Certificate{cert}})
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return counted{conn, writes}, err
	}
	p, err := New(Options{Hostname: "relay.example", Tokens: fixed(strings.Repeat("token", 300)), MaxMessages: 1 << 30, Dial: dial,
		Tenants: map[string]Tenant{"contoso": {Server: address, RootCAs: roots}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = p.Run(ctx) })
	return p, func() { cancel(); done.Wait() }
}

// TestWrites: on a real socket, a message of 10 KB is three writes: MAIL with RCPT, DATA, and
// the message with its dot.
func TestWrites(t *testing.T) {
	var writes atomic.Int64
	p, stop := socketPool(t, &writes)
	defer stop()
	message := tenKB()
	deliver := func() {
		env, open := envelop(message, "b@fabrikam.com", "c@fabrikam.com")
		route := envelope.Route{Tenant: "contoso", Login: "a@contoso.com", Connections: 1}
		if out := p.Deliver(t.Context(), &route, env, open, strings.NewReader(message)); errors.Join(errOf(out)...) != nil {
			t.Fatal(out.Errs)
		}
	}
	deliver()
	before := writes.Load()
	for range 10 {
		deliver()
	}
	if got := writes.Load() - before; got != 30 {
		t.Errorf("got %d writes for ten messages, want 30", got)
	}
}

func errOf(out status.Outcome) (errs []error) {
	for _, e := range out.Errs {
		if e != nil {
			errs = append(errs, e)
		}
	}
	return errs
}

func tenKB() string {
	return "Subject: ten\r\n\r\n" + strings.Repeat(strings.Repeat("0123456789", 7)+"abcdef\r\n", 131)
}

// BenchmarkDeliver is one 10 KB message to one recipient on a kept session, client and sink in one process.
func BenchmarkDeliver(b *testing.B) {
	for _, sessions := range []int{1, 16} {
		b.Run(fmt.Sprint(sessions, " sessions"), func(b *testing.B) {
			var writes atomic.Int64
			p, stop := socketPool(b, &writes)
			defer stop()
			message := tenKB()
			b.SetBytes(int64(len(message)))
			b.ReportAllocs()
			b.SetParallelism(sessions)
			run := func(pb func() bool) {
				env, open := envelop(message, "b@fabrikam.com")
				route := envelope.Route{Tenant: "contoso", Login: "a@contoso.com", Connections: 100}
				body := strings.NewReader(message)
				for pb() {
					body.Reset(message)
					if out := p.Deliver(context.Background(), &route, env, open, body); out.Errs[0] != nil {
						b.Error(out.Errs[0])
						return
					}
				}
			}
			if sessions == 1 {
				run(b.Loop)
				return
			}
			b.RunParallel(func(pb *testing.PB) { run(pb.Next) })
		})
	}
}
