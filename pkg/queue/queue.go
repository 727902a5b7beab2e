// Package queue keeps accepted mail until every recipient is settled: durable on JetStream, scheduled from memory.
//
// A message is one immutable mail record (the envelope in a header, a small body as payload); a large body is chunks
// published before it, so that the mail record commits them. Once there is something to remember (an attempt, a hold), a
// state record replaces its predecessor under the message's own subject. An index in memory says who is due; it is
// rebuilt from the records at start.
//
// What a crash leaves behind, step by step:
//
//   - chunks without a mail record: the message was never accepted; leftovers.
//   - a mail record whose acknowledgement nobody saw: the client was told 451 or nothing, and sends again.
//   - a message claimed but not settled: as its last state record says, which Note may have written in between.
//   - a message between its final dot and its outcome, marked in the journal: uncertain. The journal survives the end of
//     the process, not that of the machine: after a power cut the message is sent again unflagged.
//   - a mail record removed, its state or chunks not: leftovers. Collected at the next start or
//     reopening, except after an audit that failed: then they may be all that is left of a message.
//
// Traps of the engine that shaped this, each with its test: a subject limit evicts without a tombstone, and the old state
// comes back after kill -9; a rollup over a record that cannot be read loses the new one (so: neither; newest wins, written
// with the expected revision, and what it replaces is purged by its sequence); a stream that met a write error stays refused
// until its server is reopened (so: Options.Reopen); a flipped bit drops records in silence (so: a hash of
// our own on everything, and an audit of the counts at each clean stop and start).
package queue

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

const (
	// inlineBytes is the largest body kept in the mail record. Loading the index reads bodies too, at disk speed, so a
	// larger limit makes restarts slower; below it one synced write accepts a message, above it at least two.
	inlineBytes = 64 << 10
	// chunkBytes leaves room for headers under NATS's default payload limit of 1 MiB.
	chunkBytes = 512 << 10
	// chunkWindow bounds one message's chunks on their way to the disk.
	chunkWindow = 8
)

// Options of a queue. Zero values are stated; the others are required.
type Options struct {
	// Reopen returns fresh connections to a server that was closed and started again. Called from Run only.
	Reopen func(ctx context.Context) ([]*nats.Conn, error)

	Dir          string // where the journal of what is being sent lives, and the file system watched for MinFreeBytes
	MinFreeBytes int64  // refuse intake when less is free; 0: never
	MaxBytes     int64  // refuse intake at 90% of this many octets of stored mail; 0: no limit but the disk's
	MemoryBytes  int64  // octets of large bodies between client and disk, all messages together; 0: 64 MiB

	KeepFailed time.Duration // failed mail; 0: 30 days

	// Record is told of every acceptance and of what operators do. It must not block; it may be called at once from many
	// goroutines. nil: nobody is told.
	Record func(envelope.Step)

	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

func (o *Options) setDefaults() {
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = 64 << 20
	}
	o.MemoryBytes = max(o.MemoryBytes, chunkBytes) // or no large body would ever get in
	if o.KeepFailed <= 0 {
		o.KeepFailed = 30 * 24 * time.Hour
	}
}

// Queue is the durable queue. All methods may be called at once from many goroutines.
type Queue struct {
	opts     Options
	log      *zap.Logger
	metrics  *metrics
	memory   *semaphore.Weighted
	patience time.Duration // memoryWait but in tests
	space    space

	store   atomic.Pointer[store] // nil while the server is being reopened
	broken  chan struct{}         // signals Run that the server must be reopened; capacity 1
	commits sync.RWMutex          // held for reading from a mail record's publishing to its entry: attach must see neither alone

	index   index
	journal *journal // nil: there is none

	pendingMu sync.Mutex           // guards what follows; the index's may be taken while it is held
	storing   map[envelope.ID]bool // by Put, at this moment
	refused   map[envelope.ID]bool // clients were told 451, yet the record may be there: removed after a reopen
}

// Open creates or verifies the streams over conns (one per stream, at least one in all) and loads the index.
func Open(ctx context.Context, conns []*nats.Conn, opts Options) (*Queue, error) {
	opts.setDefaults()
	q := &Queue{
		opts:     opts,
		log:      opts.Logger,
		memory:   semaphore.NewWeighted(opts.MemoryBytes),
		patience: memoryWait,
		broken:   make(chan struct{}, 1),
		storing:  map[envelope.ID]bool{},
		refused:  map[envelope.ID]bool{},
	}
	q.index.init(&q.space)
	q.metrics = newMetrics(opts.Registerer, q)
	q.space = space{dir: opts.Dir, minFree: opts.MinFreeBytes, maxBytes: opts.MaxBytes}
	if err := q.space.measure(); err != nil {
		return nil, err
	}
	if err := q.attach(ctx, conns); err != nil {
		return nil, err
	}
	q.dropHistory(ctx)
	q.openJournal(ctx)
	return q, nil
}

// dropHistory removes the stream in which earlier versions kept the history.
func (q *Queue) dropHistory(ctx context.Context) {
	err := q.store.Load().metaJS.DeleteStream(ctx, "RELAYD_HISTORY")
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		q.log.Warn("the history of an earlier version could not be removed, and takes up disk", zap.Error(err))
	}
}

// openJournal opens the journal and flags what the last run was sending when it was cut off. A queue without journal works.
func (q *Queue) openJournal(ctx context.Context) {
	if q.opts.Dir == "" {
		return
	}
	j, marks, err := openJournal(q.opts.Dir, q.log)
	if err != nil {
		q.log.Error("no journal of messages being sent: after a crash possible duplicates go out unflagged", zap.Error(err))
		return
	}
	q.journal = j
	q.recover(ctx, marks)
}

// record tells whoever keeps the history.
func (q *Queue) record(step envelope.Step) {
	if q.opts.Record == nil {
		return
	}
	if step.At.IsZero() {
		step.At = time.Now()
	}
	q.opts.Record(step)
}

// errUnavailable is what clients hear while the server is away or refuses to write.
func errUnavailable(cause error) error {
	return &status.Error{Code: 451, Enhanced: status.Enhanced{4, 3, 0}, Text: "queue unavailable, try again", Err: cause}
}

// Put stores a message and returns nil only once it is on the disk. It reads body to its end, sets Size, SHA256 and
// Chunks of env, and writes env only then, so a caller may go on filling env in from within body. It returns body's own
// error wrapped, or a [status.Error]: 452 when the storage or the memory for bodies is full, 451 for any failure.
func (q *Queue) Put(ctx context.Context, env *envelope.Envelope, body io.Reader) error {
	if known, err := q.reserve(env.ID); known || err != nil {
		return err
	}
	defer q.unreserve(env.ID)
	if err := q.space.admit(); err != nil {
		return err
	}
	st := q.store.Load()
	if st == nil {
		return errUnavailable(errors.New("server is being reopened"))
	}
	at := st.place(env.ID, env.Sender)
	buf := inlineBuffers.Get().(*[inlineBytes]byte)
	defer inlineBuffers.Put(buf)
	n, end, err := fill(body, buf[:])
	if err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	inline := buf[:n]
	if end {
		env.Size, env.Chunks, env.SHA256 = int64(n), 0, sha256.Sum256(inline)
		return q.commit(ctx, st, at, env, inline)
	}
	w := &chunkWriter{q: q, st: st, at: at}
	defer w.forget()
	if err = w.copy(ctx, env, inline, body); err == nil {
		err = q.commit(ctx, st, at, env, nil)
	}
	if err != nil {
		w.discard()
	}
	return err
}

// reserve makes the caller the only one to store that id, and reports whether the queue has it already. Two mail records
// under one id would be one message until it is sent, and the other after the next start.
func (q *Queue) reserve(id envelope.ID) (known bool, err error) {
	q.pendingMu.Lock()
	defer q.pendingMu.Unlock()
	switch {
	case q.index.get(id) != nil:
		return true, nil
	case q.storing[id]:
		return false, errUnavailable(errors.New("the same message is being stored"))
	case q.refused[id]:
		return false, errUnavailable(errors.New("an earlier try may have been stored, and is yet to be removed"))
	}
	q.storing[id] = true
	return false, nil
}

func (q *Queue) unreserve(id envelope.ID) {
	q.pendingMu.Lock()
	defer q.pendingMu.Unlock()
	delete(q.storing, id)
}

var inlineBuffers = sync.Pool{New: func() any { return new([inlineBytes]byte) }}

// commit writes the mail record: the moment of acceptance. A client that hangs up meanwhile does not interrupt it, since
// then nobody would know whether the message was accepted.
func (q *Queue) commit(ctx context.Context, st *store, at place, env *envelope.Envelope, inline []byte) error {
	record, err := env.Encode()
	if err != nil {
		return status.From(fmt.Errorf("encode envelope: %w", err))
	}
	q.commits.RLock()
	defer q.commits.RUnlock()
	if err := ctx.Err(); err != nil {
		return errUnavailable(err)
	}
	if st != q.store.Load() {
		return errUnavailable(errors.New("server was reopened while the message arrived"))
	}
	seq, err := st.putMail(context.WithoutCancel(ctx), at, record, inline)
	switch {
	case err == nil:
	case errors.Is(err, errUnknown):
		return q.refuse(st, env.ID, err)
	case errors.Is(err, nats.ErrMaxPayload):
		return &status.Error{Code: 552, Enhanced: status.Enhanced{5, 3, 4}, Text: "envelope too large: fewer recipients, please", Err: err}
	case isFull(err):
		return errFull(err)
	case apiCode(err) == codeBusy:
		return errUnavailable(err)
	default:
		return q.refuse(st, env.ID, err)
	}
	q.space.grew(env.Size)
	if q.opts.Record != nil { // before the index knows, so that acceptance is the first step
		accepted := *env
		q.record(envelope.Step{ID: env.ID, At: env.Received, What: envelope.StepAccepted, State: envelope.Queued, Envelope: &accepted})
	}
	q.index.add(&entry{
		id: packID(env.ID), stream: at.stream, shard: at.shard, mail: seq, size: env.Size, chunks: uint16(env.Chunks),
		record: kib(len(record)), due: env.Received.UnixNano(), state: stateQueued,
	}, env.Sender)
	return nil
}

// refuse tells the client to send again although the record may be there, and has it removed at the next load.
func (q *Queue) refuse(st *store, id envelope.ID, err error) error {
	q.pendingMu.Lock()
	q.refused[id] = true
	q.pendingMu.Unlock()
	q.fault(st, "put", err)
	return errUnavailable(err)
}

// fault records a failed operation of the server and asks Run to reopen it. What fails on a server that was replaced
// already says nothing about the new one.
func (q *Queue) fault(st *store, op string, err error) {
	if st != q.store.Load() {
		return
	}
	q.log.Error("queue storage failed; reopening it", zap.String("operation", op), zap.Error(err))
	q.metrics.faults.Inc()
	select {
	case q.broken <- struct{}{}:
	default: // asked already
	}
}

// Fault has Run reopen the server, for another part that keeps records on it and got no answer to a write.
func (q *Queue) Fault(err error) {
	if st := q.store.Load(); st != nil { // else it is being reopened
		q.fault(st, "other records", err)
	}
}

// Ready reports why the queue cannot take mail now, or nil: the readiness check.
func (q *Queue) Ready() error {
	if q.store.Load() == nil {
		return errors.New("queue storage is being reopened after a write error")
	}
	if err := q.space.admit(); err != nil {
		return err
	}
	return nil
}

// shardOf spreads senders over shards: all mail of one sender has one owner.
func shardOf(sender envelope.Address, shards int) uint8 {
	h := fnv.New32a()
	_, _ = io.WriteString(h, sender.Key()) // never fails (hash.Hash)
	return uint8(h.Sum32() % uint32(shards))
}

// streamOf spreads messages over streams: each stream syncs by itself, so even one sender's mail syncs in parallel.
func streamOf(id envelope.ID, streams int) uint8 {
	h := fnv.New32a()
	_, _ = io.WriteString(h, string(id)) // never fails (hash.Hash)
	return uint8(h.Sum32() % uint32(streams))
}
