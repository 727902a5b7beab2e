package history

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/history/index"
)

// How history ends, by the last known state of a message:
//
//	sent, dropped, or a failed one that was removed  KeepSent after its last step
//	failed                                           KeepFailed after its last step
//	any other                                        never; but see Options.Waiting
//
// An expired message is found no longer. Its records leave the disk with their segment, which is deleted once it holds
// nothing else, and rewritten once it holds mostly such. Older segments come first, and a record stays while an older
// one of the same message does: else a restart would take what is left for a message that is still under way.
//
// Past Options.MaxBytes the oldest segment goes, whatever is in it.

// sweep lets history expire. It holds the lock for one segment at a time.
func (l *Log) sweep(now time.Time) {
	if !l.expire(now) {
		return
	}
	for l.compact() {
	}
}

// expire takes the rows that are over out of the index, and reports whether records of such rows are on the disk.
func (l *Log) expire(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.isLoaded() {
		return false
	}
	if err := l.rotate(now); err != nil {
		l.log.Warn("history: cannot finish a segment", zap.Error(err))
	}
	left := l.index.Expire(index.Expiry{
		Ended:   now.Add(-l.keepSent),
		Failed:  now.Add(-l.keepFailed),
		Open:    now.Add(-l.keepFailed),
		Waiting: l.opts.Waiting,
	})
	for _, s := range l.closed() {
		s.part.Close()
	}
	l.trim()
	l.measure()
	return left
}

// closed returns the segments that are not written to.
func (l *Log) closed() []*segment {
	if l.active != nil {
		return l.segments[:len(l.segments)-1]
	}
	return l.segments
}

// compact deletes or rewrites the oldest segment that is worth it, and reports whether there was one.
func (l *Log) compact() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	sieve := l.index.NewSieve()
	for i, s := range l.closed() {
		live := sieve.Live(&s.part, s.size)
		switch {
		case s.failed:
		case live == 0:
			return l.remove(i)
		case live+int64(headerLen) < s.size/2:
			if err := s.rewrite(l.create, sieve); err != nil {
				l.log.Warn("history: cannot rewrite a segment", zap.String("file", filepath.Base(s.path)), zap.Error(err))
				return false
			}
			l.release()
			return true
		}
		sieve.Pass(&s.part)
	}
	return false
}

// remove deletes segment i, and reports whether it could.
func (l *Log) remove(i int) bool {
	s := l.segments[i]
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Warn("history: cannot delete a segment", zap.String("file", filepath.Base(s.path)), zap.Error(err))
		return false
	}
	l.segments = slices.Delete(l.segments, i, i+1)
	l.release()
	return true
}

// release has the index forget what left the disk.
func (l *Log) release() {
	l.index.Release(l.parts())
	l.measure()
}

// parts returns what the index knows of the segments, in their order.
func (l *Log) parts() []*index.Part {
	parts := make([]*index.Part, len(l.segments))
	for i, s := range l.segments {
		parts[i] = &s.part
	}
	return parts
}

// trim deletes the oldest segments while there is too much on the disk or in memory.
func (l *Log) trim() {
	for len(l.closed()) > 0 {
		disk := int64(0)
		for _, s := range l.segments {
			disk += s.size
		}
		if disk <= l.opts.MaxBytes && l.index.Bytes(l.parts()) <= l.opts.MaxBytes/4 {
			return
		}
		if !l.remove(0) {
			return
		}
	}
}
