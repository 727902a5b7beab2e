// Package peer finds out as which user of this machine the process at the other end of a TCP connection runs.
//
// That is known on Linux, for connections within this machine and its network namespace. Elsewhere nobody is ever known.
package peer

import (
	"context"
	"net"
	"os"
	"os/user"
	"strconv"
	"sync"
)

// Listener hands out connections whose RemoteAddr is an [*Addr].
type Listener struct{ net.Listener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	return &conn{TCPConn: tcp, addr: &Addr{Addr: tcp.RemoteAddr(), conn: tcp}}, nil
}

type conn struct {
	*net.TCPConn
	addr *Addr
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.addr }

// Addr is the address of a peer that can be asked for its user. It passes through whatever wraps the connection.
type Addr struct {
	net.Addr
	conn *net.TCPConn

	once  sync.Once
	uid   int
	known bool
}

// User returns the name of the user that opened the connection, where that is the one this process runs as, or root. The
// answer is looked for once; that is done while the connection is open, or there is none.
func (a *Addr) User() (name string, ok bool) {
	a.once.Do(func() { a.uid, a.known = owner(a.conn) })
	if !a.known || !trusted(a.uid, os.Geteuid(), nobody()) {
		return "", false
	}
	if u, err := user.LookupId(strconv.Itoa(a.uid)); err == nil {
		return u.Username, true
	}
	return "uid " + strconv.Itoa(a.uid), true
}

// trusted reports whether a peer with uid is root or runs as this process does. The number that stands for all users unknown
// to a user namespace is nobody's own.
func trusted(uid, own, nobody int) bool { return uid == 0 || uid == own && uid != nobody }

type key struct{}

// Context is for http.Server.ConnContext: it keeps the address of a connection from a [Listener].
func Context(ctx context.Context, c net.Conn) context.Context {
	if a, ok := c.RemoteAddr().(*Addr); ok {
		return context.WithValue(ctx, key{}, a)
	}
	return ctx
}

// User is [Addr.User] of the connection a request came by.
func User(ctx context.Context) (name string, ok bool) {
	a, ok := ctx.Value(key{}).(*Addr)
	if !ok {
		return "", false
	}
	return a.User()
}
