package admin

import (
	"net"
	"net/netip"
	"sync"

	"relayd/pkg/admin/login/guess"
)

// crowd is a listener of which no party has more than its share of connections: one address, or a /64 of IPv6. What is over that
// is closed before anything is read from it, so that others still come in. This machine's own addresses are no exception: any of
// its users can connect.
type crowd struct {
	net.Listener
	share int

	mu   sync.Mutex // guards open
	open map[netip.Prefix]int
}

func newCrowd(l net.Listener, share int) *crowd {
	return &crowd{Listener: l, share: share, open: map[netip.Prefix]int{}}
}

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, _ := netip.ParseAddrPort(conn.RemoteAddr().String()) // all without one are one party
		party := guess.Party(from.Addr().Unmap().WithZone(""))
		if c.enter(party) {
			return &member{Conn: conn, leave: sync.OnceFunc(func() { c.leave(party) })}, nil
		}
		_ = conn.Close()
	}
}

func (c *crowd) enter(party netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[party] >= c.share {
		return false
	}
	c.open[party]++
	return true
}

func (c *crowd) leave(party netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[party]--; c.open[party] == 0 {
		delete(c.open, party)
	}
}

// member is a connection that counts until it is closed.
type member struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (m *member) Close() error {
	defer m.leave()
	return m.Conn.Close()
}
