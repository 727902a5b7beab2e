// Package live says what is happening now: how many messages were accepted, sent, deferred and failed in each minute of the
// last hour and each hour of the last day, and every step as it is taken.
//
// Counts live in memory. A record of them is written each minute there was something to count, and at a stop in good
// order; kill -9 loses those of the last minute. Steps are not kept at all: history does that.
package live

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/envelope"
)

// Minute is how many messages met with what in one step of a chart, a minute or an hour.
type Minute struct {
	At       time.Time // its beginning
	Accepted int       // by an intake
	Sent     int       // to all their recipients
	Deferred int       // attempts after which a message waits for the next
	Failed   int       // messages given up for a recipient at least
}

// Memory keeps small records that outlive the process, the newest of each key.
type Memory interface {
	// Recall returns all of them.
	Recall(ctx context.Context) (map[string][]byte, error)
	// Remember returns once the record, of at most 8 KiB, is on the disk.
	Remember(ctx context.Context, key string, data []byte) error
}

// Options of a Log. Memory may be nil: a restart then begins to count anew.
type Options struct {
	Memory     Memory
	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

// Bounds of readers.
const (
	maxReaders = 100
	readAhead  = 256 // steps a reader may be behind
)

const (
	saveEvery   = time.Minute
	saveMost    = 5 * time.Second
	recallTries = 30
	recallRetry = time.Second
)

// Log counts steps and passes them on. All its methods may be called at once.
type Log struct {
	opts    Options
	log     *zap.Logger
	metrics *metrics

	mu      sync.Mutex // guards what follows
	minutes ring
	hours   ring
	changed bool // since the record was written
	readers map[chan envelope.Step]struct{}
}

// New returns a log that has counted nothing. Run brings back what the last process counted.
func New(opts Options) *Log {
	return &Log{
		opts: opts, log: opts.Logger, metrics: newMetrics(opts.Registerer),
		minutes: newRing(time.Minute, 60), hours: newRing(time.Hour, 24), readers: map[chan envelope.Step]struct{}{},
	}
}

// Record counts a step and passes it on to the readers. It never blocks: a reader that is behind loses the step.
func (l *Log) Record(s envelope.Step) {
	now := time.Now()
	at := s.At
	if at.IsZero() || at.After(now) {
		at = now
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := countsOf(&s); c != (counts{}) {
		l.minutes.add(now, at, c)
		l.hours.add(now, at, c)
		l.changed = true
	}
	for r := range l.readers {
		select {
		case r <- s:
		default:
			l.metrics.lost.Inc()
		}
	}
}

// countsOf says what a step adds. Only attempts send, defer and fail: what operators do is in the history.
func countsOf(s *envelope.Step) counts {
	switch {
	case s.What == envelope.StepAccepted:
		return counts{1, 0, 0, 0}
	case s.What != envelope.StepAttempt:
		return counts{}
	case s.State == envelope.Sent:
		return counts{0, 1, 0, 0}
	case s.State == envelope.Deferred:
		return counts{0, 0, 1, 0}
	case s.State == envelope.Failed:
		return counts{0, 0, 0, 1}
	default:
		return counts{}
	}
}

// Hour returns the last 60 minutes, the oldest first; the last one is not over yet.
func (l *Log) Hour() []Minute {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.minutes.list(time.Now())
}

// Day returns the last 24 hours in whole hours of UTC, the oldest first; the last one is not over yet.
func (l *Log) Day() []Minute {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hours.list(time.Now())
}

// Follow returns the steps from now on until ctx ends, which closes it. A reader who is more than 256 steps behind loses
// some; the hundred and first reader gets a closed channel. What a step points to must not be changed.
func (l *Log) Follow(ctx context.Context) <-chan envelope.Step {
	r := make(chan envelope.Step, readAhead)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.readers) >= maxReaders {
		l.metrics.refused.Inc()
		close(r)
		return r
	}
	l.readers[r] = struct{}{}
	l.metrics.readers.Set(float64(len(l.readers)))
	context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.readers, r)
		l.metrics.readers.Set(float64(len(l.readers)))
		close(r)
	})
	return r
}

// Run brings back what was counted before the start, and writes the counts each minute until ctx ends, and then once more.
// Stop it before the memory.
func (l *Log) Run(ctx context.Context) error {
	if l.opts.Memory == nil {
		<-ctx.Done()
		return nil
	}
	if !l.recall(ctx) { // the end came first: the old record is worth more than the counts of a moment
		return nil
	}
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case <-tick.C:
			failing = l.save(ctx, failing)
		case <-ctx.Done():
			l.save(context.WithoutCancel(ctx), failing)
			return nil
		}
	}
}

// memoryKey is the record's.
const memoryKey = "live.counts"

// saved is the record, as JSON. Unknown fields are ignored, so that an older relayd can read what a newer one wrote.
type saved struct {
	Minutes []slot `json:"minutes"`
	Hours   []slot `json:"hours"`
}

// recall adds what the last process counted to what has been counted since. A memory that cannot be read for half a minute
// is given up. false: ctx ended before.
func (l *Log) recall(ctx context.Context) bool {
	var records map[string][]byte
	var err error
	for range recallTries {
		if records, err = l.opts.Memory.Recall(ctx); err == nil {
			break
		}
		timer := time.NewTimer(recallRetry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
	if err == nil && len(records[memoryKey]) > 0 {
		err = l.restore(records[memoryKey])
	}
	if err != nil {
		l.log.Warn("what was counted before the start could not be read: the charts begin now", zap.Error(err))
	}
	return true
}

func (l *Log) restore(data []byte) error {
	var s saved
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("read counts: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.minutes.merge(now, s.Minutes)
	l.hours.merge(now, s.Hours)
	return nil
}

// save writes the record where something has changed. A failure is told once; it reports whether there was one.
func (l *Log) save(ctx context.Context, failed bool) (failing bool) {
	l.mu.Lock()
	if !l.changed {
		l.mu.Unlock()
		return failed
	}
	now := time.Now()
	data, err := json.Marshal(saved{l.minutes.inForce(now), l.hours.inForce(now)})
	l.changed = false
	l.mu.Unlock()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, saveMost)
		defer cancel()
		err = l.opts.Memory.Remember(ctx, memoryKey, data)
	}
	if err == nil {
		return false
	}
	l.mu.Lock()
	l.changed = true
	l.mu.Unlock()
	if !failed {
		l.log.Warn("counts of the last day are not written: a restart would forget them", zap.Error(err))
	}
	return true
}
