// Package ledger keeps what must outlive the process of each mailbox and tenant: the recipients of its day, and what is
// parked or held and why.
//
// A record is on the disk when Write returns true. Where the memory behind it fails, mail goes on without: it is told
// once, and the counts are in memory only until it works again. A kill -9 between two records leaves the older one, which
// was written ahead of what it counts (limit.Day).
package ledger

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/dispatch/limit"
)

// Memory keeps small records that outlive the process, the newest of each key.
type Memory interface {
	// Recall returns all of them.
	Recall(ctx context.Context) (map[string][]byte, error)
	// Remember returns once the record is on the disk; one of no octets forgets the key.
	Remember(ctx context.Context, key string, data []byte) error
}

// Record is what outlives the process of a mailbox or a tenant. Unknown fields are ignored, so that an older relayd can
// read what a newer one wrote.
type Record struct {
	Day      *limit.Tally `json:"day,omitempty"`
	Gate     *limit.Memo  `json:"gate,omitempty"`
	External *limit.Memo  `json:"external,omitempty"`
}

const (
	prefix = "dispatch." // of all our keys, as against others' in the same memory

	recallMost   = 30 * time.Second // the memory may need that long to come up; mail goes out without it then
	recallRetry  = time.Second
	rememberMost = 5 * time.Second
	writers      = 16 // of WriteAll, at once
)

// MailboxKey returns the key of the mailbox that Route.Mailbox names.
func MailboxKey(mailbox string) string { return "mailbox." + mailbox }

// TenantKey returns the key of a tenant.
func TenantKey(tenant string) string { return "tenant." + tenant }

// Ledger is all records. Its methods may be called at once from any goroutine, but for two writes of one key.
type Ledger struct {
	memory Memory // nil: nothing is kept
	log    *zap.Logger

	mu         sync.Mutex               // guards all below
	recalled   map[string]Record        // that nobody has asked for since the start
	stale      []string                 // keys of no more use
	forgetting map[string]chan struct{} // being forgotten; closed when done
	failing    bool                     // the last write failed
}

// New returns a ledger over memory, which may be nil.
func New(memory Memory, log *zap.Logger) *Ledger {
	return &Ledger{memory: memory, log: log, forgetting: map[string]chan struct{}{}}
}

// Kept reports whether there is a memory to write to.
func (l *Ledger) Kept() bool { return l.memory != nil }

// Recall reads what the last process left. A memory that is not there yet is waited for, not without end.
func (l *Ledger) Recall(ctx context.Context) {
	if l.memory == nil {
		return
	}
	records, err := l.memory.Recall(ctx)
	for deadline := time.Now().Add(recallMost); err != nil && ctx.Err() == nil && time.Now().Before(deadline); {
		timer := time.NewTimer(recallRetry)
		select {
		case <-timer.C:
			records, err = l.memory.Recall(ctx)
		case <-ctx.Done():
			timer.Stop()
		}
	}
	if err != nil {
		l.log.Error("recipients of the last day, and what was parked, could not be read: counted from nothing", zap.Error(err))
	}
	now := time.Now()
	recalled, stale := map[string]Record{}, []string(nil)
	for key, data := range records {
		key, ours := strings.CutPrefix(key, prefix)
		if !ours {
			continue
		}
		var r Record
		if err := json.Unmarshal(data, &r); err != nil {
			l.log.Warn("a record of the last process is not readable", zap.String("key", key), zap.Error(err))
			continue
		}
		if r.Gate != nil || r.External != nil || r.Day != nil && !r.Day.Over(now) {
			recalled[key] = r
		} else {
			stale = append(stale, key)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recalled, l.stale = recalled, stale
}

// Take returns what Recall read of the key, once.
func (l *Ledger) Take(key string) (r Record, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok = l.recalled[key]
	delete(l.recalled, key)
	return r, ok
}

// Write puts r in the place of the key's last record, and reports whether it is on the disk. A failure is told once.
func (l *Ledger) Write(ctx context.Context, key string, r Record) bool {
	if l.memory == nil {
		return true
	}
	l.mu.Lock()
	gone := l.forgetting[key]
	l.mu.Unlock()
	if gone != nil {
		<-gone
	}
	return l.write(ctx, key, r)
}

func (l *Ledger) write(ctx context.Context, key string, r Record) bool {
	var data []byte
	var err error
	if r != (Record{}) {
		data, err = json.Marshal(r)
	}
	ctx, cancel := context.WithTimeout(ctx, rememberMost)
	defer cancel()
	if err == nil {
		err = l.memory.Remember(ctx, prefix+key, data)
	}
	l.mu.Lock()
	was := l.failing
	l.failing = err != nil
	l.mu.Unlock()
	if err != nil && !was {
		l.log.Warn("what a restart needs to know is not written: limits of the day count in memory only", zap.Error(err))
	}
	return err == nil
}

// WriteAll writes the records at the end of a process, as many of them as five seconds allow.
func (l *Ledger) WriteAll(ctx context.Context, records map[string]Record) {
	ctx, cancel := context.WithTimeout(ctx, rememberMost)
	defer cancel()
	var all sync.WaitGroup
	free := make(chan struct{}, writers)
	for key, r := range records {
		free <- struct{}{}
		all.Go(func() {
			l.Write(ctx, key, r)
			<-free
		})
	}
	all.Wait()
}

// Drop notes keys of no more use, for Forget.
func (l *Ledger) Drop(keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stale = append(l.stale, keys...)
}

// Forget takes what was dropped out of the memory, but for keys that are known again. One that becomes known meanwhile
// writes its record after the old one is gone.
func (l *Ledger) Forget(ctx context.Context, known func(key string) bool) {
	l.mu.Lock()
	keys := l.stale
	l.stale = nil
	l.mu.Unlock()
	if l.memory == nil {
		return
	}
	for _, key := range keys {
		gone := make(chan struct{})
		l.mu.Lock()
		l.forgetting[key] = gone
		l.mu.Unlock()
		if !known(key) && ctx.Err() == nil {
			l.write(ctx, key, Record{})
		}
		l.mu.Lock()
		delete(l.forgetting, key)
		l.mu.Unlock()
		close(gone)
	}
}
