// Package transfer moves whole messages over HTTP. A server's timeouts are for requests of one kind; a message of 150 MiB
// takes as long as it takes, so each step has a deadline of its own.
//
// Half a message never looks like a whole one: a download that cannot be finished must be aborted by its caller, and an
// upload that breaks off reads as an error.
package transfer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	stall   = 30 * time.Second // for one step to get through, either way
	most    = 30 * time.Minute // for a whole upload: 150 MiB over a slow line
	answer  = 30 * time.Second // for what follows an upload
	discard = 5 * time.Second  // for the rest of a body nobody wants
	window  = 64 << 10         // octets read ahead of a download
	step    = window / 2
)

// Download is a message about to be sent to a client.
type Download struct {
	source io.Closer
	ahead  *bufio.Reader
}

// NewDownload reads the beginning of source, whose io.EOF vouches for every octet before it; up to 64 KiB that is all. On an
// error source is closed: there is still time for an answer that says so.
func NewDownload(source io.ReadCloser) (*Download, error) {
	ahead := bufio.NewReaderSize(source, window)
	if _, err := ahead.Peek(window); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, source.Close())
	}
	return &Download{source: source, ahead: ahead}, nil
}

// Close closes the source.
func (d *Download) Close() error { return d.source.Close() }

// To writes the message in steps, and the last one only once the message is known to be whole. After an error the
// connection must be broken off.
func (d *Download) To(w http.ResponseWriter) error {
	control := http.NewResponseController(w)
	for {
		b, err := d.ahead.Peek(window)
		whole := errors.Is(err, io.EOF)
		switch {
		case whole:
		case err != nil:
			return fmt.Errorf("read: %w", err)
		default:
			b = b[:step]
		}
		_ = control.SetWriteDeadline(time.Now().Add(stall)) // where there is no connection, as in tests, there is none to set
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if _, err := d.ahead.Discard(len(b)); err != nil || whole {
			return err
		}
	}
}

// Upload is a message on its way from a client.
type Upload struct {
	body    io.Reader
	control *http.ResponseController
	until   time.Time
	err     error
}

// NewUpload takes the body of r, which may have limit octets.
func NewUpload(w http.ResponseWriter, r *http.Request, limit int64) *Upload {
	u := &Upload{body: http.MaxBytesReader(w, r.Body, limit), control: http.NewResponseController(w), until: time.Now().Add(most)}
	if r.ContentLength > limit {
		u.err = &http.MaxBytesError{Limit: limit}
	}
	return u
}

// Err returns what ended the upload before its time; nil: nothing did so far.
func (u *Upload) Err() error { return u.err }

// Read implements io.Reader.
func (u *Upload) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	soon := time.Now().Add(stall)
	if soon.After(u.until) {
		soon = u.until
	}
	_ = u.control.SetReadDeadline(soon)
	n, err := u.body.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		_ = u.control.SetReadDeadline(time.Time{}) // net/http takes one that passes now for a client that hung up
	case err != nil:
		u.err = err
	}
	return n, err
}

// End leaves time for an answer, and some for what is left of the body to be thrown away.
func (u *Upload) End() {
	_ = u.control.SetReadDeadline(time.Now().Add(discard))
	_ = u.control.SetWriteDeadline(time.Now().Add(answer))
}
