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
	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// memoryWait is how long a message waits for its share of the memory budget before the client is told to come back.
const memoryWait = 30 * time.Second

var chunkBuffers = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// errEarlierChunk stops publish; copy returns reap's error in its place.
var errEarlierChunk = errors.New("an earlier chunk failed")

// chunkWriter publishes a large body while it arrives, at most chunkWindow chunks ahead of the disk.
type chunkWriter struct {
	q      *Queue
	st     *store
	at     place
	acks   chan jetstream.PubAckFuture // from write to reap
	broken chan struct{}               // closed by reap at the first failure
	n      int                         // chunks published
	flying int64                       // octets published, not yet an entry's
}

// copy stores head and the rest of body as chunks. On return every one of them is on the disk, or it failed.
func (w *chunkWriter) copy(ctx context.Context, env *envelope.Envelope, head []byte, body io.Reader) error {
	w.acks, w.broken = make(chan jetstream.PubAckFuture, chunkWindow-2), make(chan struct{})
	reaped := make(chan error, 1)
	go func() { reaped <- w.reap(ctx) }() // ends with acks
	err := w.publish(ctx, env, head, body)
	close(w.acks)
	if rerr := <-reaped; err == nil || errors.Is(err, errEarlierChunk) {
		return rerr
	}
	return err
}

func (w *chunkWriter) publish(ctx context.Context, env *envelope.Envelope, head []byte, body io.Reader) error {
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
	wctx, cancel := context.WithTimeout(ctx, w.q.patience)
	defer cancel()
	if err := w.q.memory.Acquire(wctx, chunkBytes); ctx.Err() != nil {
		if err == nil {
			w.q.memory.Release(chunkBytes)
		}
		return errUnavailable(ctx.Err())
	} else if err != nil {
		return &status.Error{Code: 452, Enhanced: status.Enhanced{4, 3, 1}, Text: "too much mail in flight, try again", Err: err}
	}
	ack, err := w.st.js[w.at.stream].PublishMsgAsync(&nats.Msg{Subject: w.st.chunkSubject(w.at, w.n), Data: data},
		jetstream.WithRetryAttempts(0)) // a retry would read the buffer after it was filled anew
	if err != nil {
		w.q.memory.Release(chunkBytes)
		return w.failed(ctx, err)
	}
	w.n++
	w.flying += int64(len(data))
	w.q.space.stored.Add(int64(len(data)))
	select {
	case w.acks <- ack:
		return nil
	case <-w.broken:
		w.q.memory.Release(chunkBytes)
		return errEarlierChunk
	}
}

// reap waits for every chunk's acknowledgement and gives its memory back at that moment, not when the client next sends
// something: a slow client must not hold memory it does not use, nor wait for memory while it holds some.
func (w *chunkWriter) reap(ctx context.Context) (err error) {
	for ack := range w.acks {
		if err == nil {
			if err = w.await(ctx, ack); err != nil {
				close(w.broken)
			}
		}
		w.q.memory.Release(chunkBytes)
	}
	return err
}

// await does not end with ctx: a chunk that arrives after discard would stay.
func (w *chunkWriter) await(ctx context.Context, ack jetstream.PubAckFuture) error {
	timer := time.NewTimer(2 * opTimeout)
	defer timer.Stop()
	select {
	case <-ack.Ok():
		w.q.space.grew(chunkBytes)
		return nil
	case err := <-ack.Err():
		return w.failed(ctx, err)
	case <-w.st.gone: // the client library leaves the futures of a closed connection pending
		return errUnavailable(errors.New("server is being reopened"))
	case <-timer.C:
		return w.failed(ctx, context.DeadlineExceeded)
	}
}

func (w *chunkWriter) failed(ctx context.Context, err error) error {
	if isFull(err) {
		return errFull(err)
	}
	if ctx.Err() == nil && apiCode(err) != codeBusy {
		w.q.fault(w.st, "put chunk", err)
	}
	return errUnavailable(err)
}

// forget ends the count of octets on their way: by now they are an entry's, or nobody's.
func (w *chunkWriter) forget() { w.q.space.stored.Add(-w.flying) }

// discard removes the chunks of a message that was refused, so that clients which hang up cannot fill the disk. After a
// fault it leaves them to the reopening: the mail record may be there, and the server does not answer anyway.
func (w *chunkWriter) discard() {
	if w.n == 0 || w.st != w.q.store.Load() || len(w.q.broken) != 0 {
		return
	}
	if err := w.st.purgeChunks(context.Background(), w.at); err != nil {
		w.q.log.Debug("body chunks left to the next start", zap.String("id", string(w.at.id)), zap.Error(err))
	}
}

// chunkReader reads a large body back. It withholds io.EOF until the whole has matched its hash: a sender that waits for
// EOF before the final dot can never deliver a damaged message.
type chunkReader struct {
	ctx  context.Context
	q    *Queue
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
		st := r.q.store.Load() // not the claim's: the server may have been reopened since
		if st == nil {
			return 0, errUnavailable(errors.New("server is being reopened"))
		}
		data, err := st.getChunk(r.ctx, r.at, r.next)
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
