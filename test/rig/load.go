package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Load sends messages over kept SMTP connections and remembers which were accepted.
type Load struct {
	Addr     string
	Sessions int
	Messages int             // in all; 0: until ctx ends
	Size     func(i int) int // octets of the i-th body, roughly
	Sender   func(i int) string
	Rcpt     string
	Rcpts    func(i int) []string // instead of Rcpt

	mu       sync.Mutex // guards what follows
	accepted map[string]bool
	next     atomic.Int64
}

// Accepted returns the Message-IDs that were answered with 250.
func (l *Load) Accepted() map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted
}

// Run sends until all are accepted or ctx ends. A refused or broken-off message is sent again with the same Message-ID
// where patient, on a new connection; else it is an error.
func (l *Load) Run(ctx context.Context, patient bool) error {
	l.mu.Lock()
	if l.accepted == nil {
		l.accepted = map[string]bool{}
	}
	l.mu.Unlock()
	errs := make(chan error, l.Sessions)
	for range l.Sessions {
		go func() { errs <- l.session(ctx, patient) }()
	}
	var all []error
	for range l.Sessions {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

func (l *Load) session(ctx context.Context, patient bool) error {
	var c *textproto.Conn
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	for ctx.Err() == nil {
		i := int(l.next.Add(1))
		if l.Messages > 0 && i > l.Messages {
			return nil
		}
		id := fmt.Sprintf("<load-%d@contoso.com>", i)
		for {
			err := l.send(ctx, &c, i, id)
			if err == nil {
				l.mu.Lock()
				l.accepted[id] = true
				l.mu.Unlock()
				break
			}
			if c != nil {
				_ = c.Close()
				c = nil
			}
			if ctx.Err() != nil {
				return nil
			}
			if !patient {
				return err
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		}
	}
	return nil
}

// send sends one message over *c, which it opens where there is none.
func (l *Load) send(ctx context.Context, c **textproto.Conn, i int, id string) error {
	if *c == nil {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr)
		if err != nil {
			return err
		}
		*c = textproto.NewConn(conn)
		(*c).W = bufio.NewWriterSize(conn, 64<<10)
		if _, _, err := (*c).ReadResponse(220); err != nil {
			return err
		}
		if err := l.command(*c, 250, "EHLO load.contoso.com"); err != nil {
			return err
		}
	}
	sender := l.Sender(i)
	if err := l.command(*c, 250, "MAIL FROM:<%s>", sender); err != nil {
		return err
	}
	rcpts := []string{l.Rcpt}
	if l.Rcpts != nil {
		rcpts = l.Rcpts(i)
	}
	for _, r := range rcpts {
		if err := l.command(*c, 250, "RCPT TO:<%s>", r); err != nil {
			return err
		}
	}
	if err := l.command(*c, 354, "DATA"); err != nil {
		return err
	}
	fmt.Fprintf((*c).W, "From: %s\r\nTo: %s\r\nSubject: load\r\nDate: %s\r\nMessage-ID: %s\r\n\r\n%s.\r\n",
		sender, rcpts[0], time.Now().Format(time.RFC1123Z), id, Body(i, l.Size(i)))
	if err := (*c).W.Flush(); err != nil {
		return err
	}
	_, _, err := (*c).ReadResponse(250)
	return err
}

func (l *Load) command(c *textproto.Conn, want int, format string, args ...any) error {
	if err := c.PrintfLine(format, args...); err != nil {
		return err
	}
	_, _, err := c.ReadResponse(want)
	return err
}

// Body returns the body of the i-th message: lines that tell it from every other, of about size octets in all.
func Body(i, size int) string {
	line := fmt.Sprintf("%010d 0123456789012345678901234567890123456789012345678901234567\r\n", i)
	return strings.Repeat(line, size/len(line)+1)
}
