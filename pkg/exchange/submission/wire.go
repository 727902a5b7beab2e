package submission

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// glimpse is how long a connection that is no socket is waited for to show what it holds.
const glimpse = time.Millisecond

// wire is the connection below TLS. While looking, it reads what has already come and waits for nothing.
type wire struct {
	net.Conn
	looking bool

	socket syscall.RawConn // nil: Conn is none
	look   func(fd uintptr) bool
	p      []byte // what follows is look's
	n      int
	err    error
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn}
	if c, ok := conn.(syscall.Conn); ok {
		if socket, err := c.SyscallConn(); err == nil {
			w.socket = socket
		}
	}
	w.look = func(fd uintptr) bool { // made once: a message is looked ahead of four times
		w.n, w.err = syscall.Read(int(fd), w.p)
		for errors.Is(w.err, syscall.EINTR) {
			w.n, w.err = syscall.Read(int(fd), w.p)
		}
		return true
	}
	return w
}

// Read implements io.Reader. While looking, that nothing has come is os.ErrDeadlineExceeded, bare: crypto/tls lets a
// connection live on behind it.
func (w *wire) Read(p []byte) (int, error) {
	if !w.looking || w.socket == nil || len(p) == 0 {
		return w.Conn.Read(p)
	}
	w.p = p
	err := w.socket.Read(w.look)
	w.p = nil
	switch {
	case err != nil:
		return 0, err
	case errors.Is(w.err, syscall.EAGAIN):
		return 0, os.ErrDeadlineExceeded
	case w.err != nil:
		return 0, os.NewSyscallError("read", w.err)
	case w.n == 0:
		return 0, io.EOF
	}
	return w.n, nil
}

// ahead reports whether the server has said something that has not been read yet, be it in our buffer, in that of TLS or
// in the system's, and does not wait for it. The error is the connection's.
func (s *Session) ahead() (bool, error) {
	if s.br.Buffered() > 0 {
		return true, nil
	}
	limit := glimpse
	if s.raw.socket != nil {
		limit = s.client.Timeouts.Command // nothing is waited for; one that has passed would keep it from reading at all
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(limit)) // on a closed connection Read tells
	s.raw.looking = true
	_, err := s.br.Peek(1)
	s.raw.looking = false
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}
