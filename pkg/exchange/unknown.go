package exchange

import (
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/status"
)

// An unknown reply is logged once an hour for each stage, code and enhanced code, and for so many of these at a time: a
// server that makes up new ones ends in the metric alone.
const (
	tellEvery  = time.Hour
	maxUnknown = 200
)

// unknown counts and logs the replies that no row of the catalogue describes.
type unknown struct {
	metrics *metrics
	logger  *zap.Logger

	mu   sync.Mutex // guards told
	told map[replyKind]time.Time
}

func (u *unknown) reply(e *status.Error) {
	u.metrics.unknown.WithLabelValues(string(e.Stage)).Inc()
	if u.tell(replyKind{e.Stage, e.Code, e.Enhanced}, time.Now()) {
		u.logger.Warn("reply that no row of the catalogue describes", zap.String("stage", string(e.Stage)), zap.Int("code", e.Code),
			zap.Stringer("enhanced", e.Enhanced), zap.String("reply", e.Text), zap.String("rule", e.Rule), zap.Stringer("action", e.Action))
	}
}

// tell reports whether kind is to be logged, and notes that it was.
func (u *unknown) tell(kind replyKind, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if at, ok := u.told[kind]; ok && now.Sub(at) < tellEvery {
		return false
	}
	if len(u.told) >= maxUnknown {
		maps.DeleteFunc(u.told, func(_ replyKind, at time.Time) bool { return now.Sub(at) >= tellEvery })
	}
	if len(u.told) >= maxUnknown {
		return false
	}
	u.told[kind] = now
	return true
}
