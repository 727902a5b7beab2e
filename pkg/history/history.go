// Package history keeps what happened to each message, and finds it again.
//
// Each [envelope.Step] is appended to a file, the newest of a row of segments; what a search filters by stays in memory
// as hashes, about 100 octets a message, and is read back from the segments at start, in the background. What a search
// returns is read from the disk, and judged there once more, so a hash that two addresses share costs time, never
// truth.
//
// History is no promise: the mail is safe without it, and nothing here ever makes mail wait. What is lost:
//
//   - by kill -9: steps of the last 200 ms. By a power cut: of the last half minute or so (a segment is synced when it is
//     full or a day old). A record that was being written is passed over; all before and behind it are read.
//   - by a flipped bit: the record it is in.
//   - by a full disk: nothing while 8 MiB of steps fit the memory (20,000 messages or so); then the newest steps, counted
//     and logged. It goes on by itself.
//   - by a crash in the middle of expiry: nothing. Expiry takes old before new, so what is left of a message is the end of
//     its history, never a start that looks as if it were still under way.
package history

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/history/index"
	"relayd/pkg/history/record"
)

const (
	// batchDelay and batchSteps are when what was recorded is written: after so long, or so many.
	batchDelay = 200 * time.Millisecond
	batchSteps = 1000
	// retryDelay is the time between two attempts at a disk that takes nothing.
	retryDelay = 2 * time.Second
	// maxPending bounds the encoded steps waiting to be written, in octets.
	maxPending = 8 << 20
	// sweepEvery is how often what has expired is looked for. At a million messages a look takes some 30 ms.
	sweepEvery = 10 * time.Minute
	// segmentBytes is where a new segment begins: small enough to be rewritten in a moment, and to be deleted soon.
	segmentBytes = 16 << 20
)

// Options of a history. Zero values are stated; the others are required.
type Options struct {
	Dir        string        // of this package alone; made if need be
	KeepSent   time.Duration // of a message sent or dropped, from its last step; 0: 7 days
	KeepFailed time.Duration // of a message that failed; 0: 30 days
	MaxBytes   int64         // on the disk, the oldest steps go first; memory is held to a quarter of it; 0: 1 GiB

	// Waiting reports whether a message is still in the queue. It is asked only of one that looks so and of which nothing
	// was heard for KeepFailed: its last step may have been lost. It must not call back. nil: all of them are.
	Waiting func(envelope.ID) bool

	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

func (o *Options) setDefaults() {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 1 << 30
	}
	if o.Waiting == nil {
		o.Waiting = func(envelope.ID) bool { return true }
	}
}

// file is what is written to: an *os.File, but in tests of a full disk.
type file interface {
	io.WriteCloser
	Truncate(size int64) error
	Sync() error
}

// Log is the history. All methods may be called at once from many goroutines.
type Log struct {
	opts    Options
	log     *zap.Logger
	metrics *metrics
	pending *record.Buffer
	create  func(path string) (file, error) // opens for appending, makes the file if need be

	loading chan struct{} // capacity 1: held by who loads
	loaded  chan struct{} // closed once index knows all segments

	mu         sync.Mutex // guards what follows; but index, and what segments know of it, belong to the loader until loaded
	keepSent   time.Duration
	keepFailed time.Duration
	segments   []*segment // the oldest first
	serial     uint64     // the highest ever used
	active     file       // the last of segments, open for appending; nil: the next write opens one
	index      *index.Index
	failing    bool // the last write failed
	dropped    int  // steps, in the burst that has not ended
}

// Open finds the segments in opts.Dir, which it makes. It reads none of them: Run does, or the first search.
func Open(opts Options) (*Log, error) {
	opts.setDefaults()
	l := &Log{
		opts:    opts,
		log:     opts.Logger,
		index:   index.New(),
		loading: make(chan struct{}, 1),
		loaded:  make(chan struct{}),
		pending: record.NewBuffer(maxPending, batchSteps),
		create: func(path string) (file, error) {
			return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		},
	}
	l.Configure(opts.KeepSent, opts.KeepFailed)
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	probe, err := os.CreateTemp(opts.Dir, "probe")
	if err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	probe.Close()
	if err := os.Remove(probe.Name()); err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	l.segments, l.serial, err = readDir(opts.Dir, func(name string, err error) {
		l.log.Warn("history: file left alone", zap.String("file", name), zap.Error(err))
	})
	if err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	if err := l.resume(); err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	l.metrics = newMetrics(opts.Registerer)
	return l, nil
}

// resume goes on with the newest segment, if nothing newer stands in the way. A record cut short at its end is no harm.
func (l *Log) resume() (err error) {
	if n := len(l.segments); n > 0 && l.segments[n-1].serial == l.serial {
		l.active, err = l.create(l.segments[n-1].path)
	}
	return err
}

// Configure changes for how long messages are kept; zero means as in [Options].
func (l *Log) Configure(keepSent, keepFailed time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keepSent = keepSent; keepSent <= 0 {
		l.keepSent = 7 * 24 * time.Hour
	}
	if l.keepFailed = keepFailed; keepFailed <= 0 {
		l.keepFailed = 30 * 24 * time.Hour
	}
}

// Record notes a step. It never blocks: a step that does not fit the memory is dropped, and so is one without a valid id.
func (l *Log) Record(s envelope.Step) {
	if !l.pending.Add(&s) {
		l.metrics.dropped.Inc()
	}
}

// Run writes what is recorded, loads what older processes recorded, and lets it expire, until ctx ends; then it writes
// what is left.
func (l *Log) Run(ctx context.Context) {
	var loader sync.WaitGroup
	loader.Go(func() { _ = l.ready(ctx) })
	defer l.flush()
	defer loader.Wait()
	loaded := l.loaded
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-loaded:
			loaded = nil
			l.sweep(time.Now())
		case <-sweep.C:
			l.sweep(time.Now())
		case <-l.pending.Begun:
			full, delay := l.pending.Full, batchDelay
			if !l.writable() {
				full, delay = nil, retryDelay
			}
			select {
			case <-ctx.Done():
				return
			case <-full:
			case <-time.After(delay):
			}
			l.flush()
		}
	}
}

// Close writes what is left and closes the files. Steps recorded later are dropped.
func (l *Log) Close() error {
	l.pending.Close()
	l.flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retire()
}

// flush writes what is pending. A batch that cannot be written waits for the next flush, as far as memory allows.
func (l *Log) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch, steps, dropped := l.pending.Take()
	switch {
	case dropped > 0 && l.dropped == 0:
		l.log.Warn("history: steps are dropped")
	case dropped == 0 && l.dropped > 0:
		l.log.Warn("history: steps were dropped", zap.Int("steps", l.dropped))
		l.dropped = 0
	}
	l.dropped += dropped
	if steps == 0 {
		return
	}
	s, offset, err := l.write(batch)
	if err != nil {
		if !l.pending.GiveBack(batch, steps) {
			l.metrics.dropped.Add(float64(steps))
			l.dropped += steps
		}
		if !l.failing {
			l.log.Error("history: cannot write", zap.Error(err))
		}
		l.failing = true
		return
	}
	if l.failing {
		l.log.Info("history: writing again")
		l.failing = false
	}
	if l.isLoaded() {
		now := time.Now()
		_, _ = record.Scan(bytes.NewReader(batch), 0, int64(len(batch)), func(at int64, r []byte) {
			l.index.Apply(&s.part, offset+at, r[record.Head:], now)
		})
		s.indexed = s.size
		l.trim()
	}
	l.measure()
	l.pending.Recycle(batch)
}

// write appends batch to the active segment, or a new one, and returns where. After an error the segment ends where it
// did before.
func (l *Log) write(batch []byte) (s *segment, offset int64, err error) {
	if err := l.rotate(time.Now()); err != nil {
		l.log.Warn("history: cannot finish a segment", zap.Error(err)) // all of it is written
	}
	if l.active == nil {
		if err := l.begin(time.Now()); err != nil {
			return nil, 0, err
		}
	}
	s = l.segments[len(l.segments)-1]
	if _, err := l.active.Write(batch); err != nil {
		if undo := l.active.Truncate(s.size); undo != nil {
			_ = l.retire() // what was written of the batch is a damaged end; the next goes elsewhere
		}
		return nil, 0, fmt.Errorf("write segment: %w", err)
	}
	s.size += int64(len(batch))
	return s, s.size - int64(len(batch)), nil
}

// begin starts a segment.
func (l *Log) begin(now time.Time) error {
	s := &segment{
		path:    filepath.Join(l.opts.Dir, segmentName(l.serial+1)),
		serial:  l.serial + 1,
		born:    now,
		size:    int64(headerLen),
		indexed: int64(headerLen),
	}
	f, err := l.create(s.path)
	if err != nil {
		return fmt.Errorf("begin segment: %w", err)
	}
	if _, err := f.Write(header(now)); err != nil {
		f.Close()
		_ = os.Remove(s.path)
		return fmt.Errorf("begin segment: %w", err)
	}
	l.serial++
	l.active, l.segments = f, append(l.segments, s)
	return nil
}

// rotate ends the active segment where it is full or old.
func (l *Log) rotate(now time.Time) error {
	if l.active == nil {
		return nil
	}
	s := l.segments[len(l.segments)-1]
	age := min(max(min(l.keepSent, l.keepFailed)/8, time.Hour), 24*time.Hour)
	if s.size < min(segmentBytes, l.opts.MaxBytes/8) && now.Sub(s.born) < age {
		return nil
	}
	return l.retire()
}

// retire closes the active segment.
func (l *Log) retire() error {
	if l.active == nil {
		return nil
	}
	err := l.active.Sync()
	if closing := l.active.Close(); err == nil {
		err = closing
	}
	l.active = nil
	return err
}

// writable reports whether the last write succeeded.
func (l *Log) writable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.failing
}

func (l *Log) isLoaded() bool {
	select {
	case <-l.loaded:
		return true
	default:
		return false
	}
}

// ready returns once the index knows all segments. Whoever comes first does the reading.
func (l *Log) ready(ctx context.Context) error {
	select {
	case <-l.loaded:
		return nil
	case l.loading <- struct{}{}:
		defer func() { <-l.loading }()
		return l.load(ctx)
	case <-ctx.Done():
		return fmt.Errorf("wait for the history to be read: %w", ctx.Err())
	}
}

// lastStretch is what load reads while it holds the lock, in octets: the last steps, written meanwhile.
const lastStretch = 1 << 20

// load reads the segments into the index. Interrupted, it goes on where it was at the next call.
func (l *Log) load(ctx context.Context) error {
	for !l.isLoaded() { // it may be since the caller looked
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the history: %w", err)
		}
		var next *segment
		l.mu.Lock()
		behind := int64(0)
		for _, s := range l.segments {
			if s.indexed < s.size && next == nil {
				next = s
			}
			behind += s.size - s.indexed
		}
		if behind <= lastStretch {
			for _, s := range l.segments {
				l.read(s, s.size)
			}
			l.index.Sort()
			close(l.loaded)
			l.measure()
			l.mu.Unlock()
			break
		}
		to := next.size
		l.mu.Unlock()
		l.read(next, to)
	}
	return nil
}

// read enters what stands in s before the offset to.
func (l *Log) read(s *segment, to int64) {
	if s.indexed >= to {
		return
	}
	now := time.Now()
	damaged := 0
	f, err := os.Open(s.path)
	if err == nil {
		damaged, err = record.Scan(f, s.indexed, to, func(offset int64, r []byte) {
			l.index.Apply(&s.part, offset, r[record.Head:], now)
		})
		f.Close()
	}
	s.indexed, s.failed = to, err != nil
	if err != nil || damaged > 0 {
		l.metrics.damaged.Add(float64(max(damaged, 1)))
		l.log.Warn("history: damaged segment",
			zap.String("file", filepath.Base(s.path)), zap.Int("places", damaged), zap.Error(err))
	}
}

// measure updates the gauges.
func (l *Log) measure() {
	size := int64(0)
	for _, s := range l.segments {
		size += s.size
	}
	l.metrics.bytes.Set(float64(size))
	if l.isLoaded() {
		l.metrics.messages.Set(float64(l.index.Len()))
	}
}
