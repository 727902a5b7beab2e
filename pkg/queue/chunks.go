package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// memoryWait is how long a message waits for its share of the memory budget before the client is told to come back.
const memoryWait = 30 * time.Second

var chunkBuffers = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// chunkWriter publishes a large body while it arrives, at most chunkWindow chunks ahead of the disk.
type chunkWriter struct {
	q       *Queue
	st      *store
	at      place
	pending []jetstream.PubAckFuture
	n       int
}

// putChunks stores head and the rest of body as chunks. On return every one of them is on the disk.
func (q *Queue) putChunks(ctx context.Context, st *store, at place, env *envelope.Envelope, head []byte, body io.Reader) error {
	w := &chunkWriter{q: q, st: st, at: at}
	defer w.release()
	sum := sha256.New()
	src := io.TeeReader(io.MultiReader(bytes.NewReader(head), body), sum)
	buf := chunkBuffers.Get().(*[chunkBytes]byte)
	defer chunkBuffers.Put(buf)
	var size int64
	for end := false; !end; {
		var n int
		var err error
		if n, end, err = fill(src, buf[:]); err != nil {
			return fmt.Errorf("read message: %w", err)
		}
		if n > 0 {
			if err := w.write(ctx, buf[:n]); err != nil {
				return err
			}
			size += int64(n)
		}
	}
	if err := w.wait(ctx, 0); err != nil {
		return err
	}
	env.Size, env.Chunks = size, w.n
	sum.Sum(env.SHA256[:0])
	return nil
}

// fill reads until buf is full or r ends. Only a bare io.EOF is an end: io.ReadFull would turn it into the
// ErrUnexpectedEOF by which a broken-off body reports itself, and a truncated message would pass for a whole one.
func fill(r io.Reader, buf []byte) (n int, end bool, err error) {
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err == io.EOF { //nolint:errorlint // a wrapped EOF is somebody's failure, not the end
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

func (w *chunkWriter) write(ctx context.Context, data []byte) error {
	if err := w.q.space.admit(); err != nil {
		return err
	}
	if err := w.wait(ctx, chunkWindow-1); err != nil {
		return err
	}
	wctx, cancel := context.WithTimeout(ctx, memoryWait)
	defer cancel()
	if err := w.q.memory.Acquire(wctx, chunkBytes); err != nil {
		return &status.Error{Code: 452, Enhanced: status.Enhanced{4, 3, 1}, Text: "too much mail in flight, try again", Err: err}
	}
	ack, err := w.st.js[w.at.stream].PublishMsgAsync(&nats.Msg{Subject: w.st.chunkSubject(w.at, w.n), Data: data},
		jetstream.WithRetryAttempts(0)) // a retry would read the buffer after it was filled anew
	if err != nil {
		w.q.memory.Release(chunkBytes)
		return w.failed(err)
	}
	w.pending = append(w.pending, ack)
	w.n++
	return nil
}

// wait blocks until at most left chunks are unacknowledged.
func (w *chunkWriter) wait(ctx context.Context, left int) error {
	for len(w.pending) > left {
		ack := w.pending[0]
		timer := time.NewTimer(2 * opTimeout)
		select {
		case <-ack.Ok():
			timer.Stop()
			w.pending = w.pending[1:]
			w.q.memory.Release(chunkBytes)
			w.q.space.grew(chunkBytes)
		case err := <-ack.Err():
			timer.Stop()
			return w.failed(err)
		case <-timer.C:
			return w.failed(context.DeadlineExceeded)
		case <-ctx.Done():
			timer.Stop()
			return w.failed(ctx.Err())
		}
	}
	return nil
}

func (w *chunkWriter) failed(err error) error {
	if isFull(err) {
		return errFull(err)
	}
	if !errors.Is(err, context.Canceled) {
		w.q.fault("put chunk", err)
	}
	return errUnavailable(err)
}

// release gives the memory of chunks back whose fate is unknown.
func (w *chunkWriter) release() {
	w.q.memory.Release(int64(len(w.pending)) * chunkBytes)
	w.pending = nil
}

// chunkReader reads a large body back. It withholds io.EOF until the whole has matched its hash: a sender that waits for
// EOF before the final dot can never deliver a damaged message.
type chunkReader struct {
	ctx  context.Context
	st   *store
	at   place
	env  *envelope.Envelope
	sum  hash.Hash
	next int
	left []byte
	size int64
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		if r.next == r.env.Chunks {
			if r.size != r.env.Size || !bytes.Equal(r.sum.Sum(nil), r.env.SHA256[:]) {
				return 0, fmt.Errorf("body of %s: %w", r.env.ID, envelope.ErrCorrupt)
			}
			return 0, io.EOF
		}
		data, err := r.st.getChunk(r.ctx, r.at, r.next)
		if err != nil {
			return 0, fmt.Errorf("read chunk %d of %s: %w", r.next, r.env.ID, err)
		}
		r.sum.Write(data)
		r.size += int64(len(data))
		r.left = data
		r.next++
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}
