package admin

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

// keep makes a request from an address and keeps the connection; nil: it was closed without an answer.
func keep(t *testing.T, from, to string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	conn, err := dialer.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(bufio.NewReader(conn), nil)
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Fatalf("from %s: neither answered nor closed", from)
	}
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("from %s: got %d, %v", from, resp.StatusCode, err)
	}
	return conn
}

// One address that keeps all connections it gets leaves others theirs, and the probes of the other listener.
func TestOneAddressLeavesOthersRoom(t *testing.T) {
	s := start(t, Options{MetricsAddress: "localhost:0"})
	probe, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("127.0.0.2 is not to be had here: %v", err)
	}
	probe.Close()
	var kept []net.Conn
	for range maxConnections {
		if c := keep(t, "127.0.0.1", s.Addr().String()); c != nil {
			kept = append(kept, c)
		}
	}
	if len(kept) != maxFromOne {
		t.Fatalf("one address has %d connections, want %d", len(kept), maxFromOne)
	}
	if keep(t, "127.0.0.2", s.Addr().String()) == nil {
		t.Error("another address is not answered")
	}
	if keep(t, "127.0.0.1", s.MetricsAddr().String()) == nil {
		t.Error("the metrics listener does not answer")
	}
	kept[0].Close()
	for deadline := time.Now().Add(10 * time.Second); keep(t, "127.0.0.1", s.Addr().String()) == nil; { // until the server has seen it
		if time.Now().After(deadline) {
			t.Fatal("a place that was given back is not given out")
		}
	}
}

// spoken is a connection from an address.
type spoken struct {
	net.Conn
	from   net.Addr
	closed bool
}

func (s *spoken) RemoteAddr() net.Addr { return s.from }

func (s *spoken) Close() error { s.closed = true; return nil }

// arriving hands out connections from the addresses it holds.
type arriving struct {
	net.Listener
	conns []*spoken
}

func (a *arriving) Accept() (net.Conn, error) {
	if len(a.conns) == 0 {
		return nil, net.ErrClosed
	}
	c := a.conns[0]
	a.conns = a.conns[1:]
	return c, nil
}

func TestCrowdCountsParties(t *testing.T) {
	var all []*spoken
	for _, from := range []string{
		"192.0.2.1:1", "[::ffff:192.0.2.1]:2", "192.0.2.1:3", "[2001:db8::1]:1", "[2001:db8::ffff:1]:1", "[2001:db8::2]:1", "[2001:db8:0:1::1]:1", "192.0.2.2:1",
	} {
		all = append(all, &spoken{from: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))})
	}
	c := newCrowd(&arriving{conns: all}, 2)
	var in []net.Conn
	for {
		conn, err := c.Accept()
		if err != nil {
			break
		}
		in = append(in, conn)
	}
	for i, over := range []bool{false, false, true, false, false, true, false, false} {
		if all[i].closed != over {
			t.Errorf("%v: closed %v, want %v", all[i].from, all[i].closed, over)
		}
	}
	for _, conn := range in {
		conn.Close()
		conn.Close() // counts once
	}
	if len(in) != 6 || len(c.open) != 0 {
		t.Errorf("%d were let in, and %v are counted when all have gone", len(in), c.open)
	}
}
