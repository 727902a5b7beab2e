// Package radar tells operators ahead of the day when something expires: client secrets, certificates, consents.
//
// For each item there is a notice once 30, 14, 7 and 1 days are left, and once it has expired:
//
//	at first sight of an item, and each hour    what is due, and was not told at that stage, goes into one notice
//	first seen with 5 days left                 one notice (that of 7 days), not three
//	a later date, by more than a day            the item was renewed: it starts over
//	an earlier date                             what was told stays told; the next stage comes sooner
//	gone                                        nothing; what was told of it is forgotten 30 days after its date
//
// What was told is remembered once the notice is in the queue: a restart does not tell again, and kill -9 between the two
// tells twice rather than never. A notice that cannot be written is due again an hour later.
package radar

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// The kinds of items.
const (
	KindSecret      = "secret"
	KindCertificate = "certificate"
	KindConsent     = "consent"
)

// Item is something that expires.
type Item struct {
	Kind    string // one of the kinds above
	Tenant  string // name in the configuration
	Sender  string // the mailbox, of a consent
	Expires time.Time
	Advice  string // what to do about it, a sentence or two
}

// Memory keeps small records that outlive the process, the newest of each key.
type Memory interface {
	// Recall returns all of them.
	Recall(ctx context.Context) (map[string][]byte, error)
	// Remember returns once the record is on the disk; one of no octets forgets the key.
	Remember(ctx context.Context, key string, data []byte) error
}

// Options of a Radar; all are required.
type Options struct {
	Items func(ctx context.Context) []Item // all there are now; one without a date never expires
	// Notify tells operators. nil: they will get it. A paragraph that begins with spaces belongs to the one before it.
	Notify     func(ctx context.Context, subject string, paragraphs []string) error
	Memory     Memory
	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

const (
	checkEvery   = time.Hour
	gather       = 10 * time.Second // after Poke, since changes seldom come alone
	rememberMost = 5 * time.Second
	recallRetry  = time.Minute
	forgetAfter  = 30 * 24 * time.Hour
	renewed      = 24 * time.Hour // a date that moves by less is the same one, read anew
)

// Radar watches what expires.
type Radar struct {
	opts    Options
	log     *zap.Logger
	metrics *metrics
	poked   chan struct{}

	told   map[string]told  // what operators know, by Item.key; nil: not read yet. Only Run's
	logged map[string]stage // what the log has said in this process. Only Run's
	failed bool             // the last notice could not be written. Only Run's

	mu    sync.Mutex // guards items
	items []Item     // as of the last check, the nearest first
}

// told is what was told of an item, as it is remembered.
type told struct {
	Expires time.Time `json:"expires"` // its date then
	Stage   stage     `json:"stage"`
}

// New returns a radar that looks once Run runs.
func New(opts Options) *Radar {
	return &Radar{
		opts: opts, log: opts.Logger, metrics: newMetrics(opts.Registerer), poked: make(chan struct{}, 1), logged: map[string]stage{},
	}
}

// Poke has Run look soon, after something was added, renewed or removed. It never blocks.
func (r *Radar) Poke() {
	select {
	case r.poked <- struct{}{}:
	default:
	}
}

// Items returns what expires, the nearest first, as the last check has found it.
func (r *Radar) Items() []Item {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.items)
}

// Run looks at once, each hour and after Poke, until ctx ends. Stop it before the memory and what Notify uses.
func (r *Radar) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			next = time.Now().Add(r.check(ctx))
		case <-r.poked:
			r.look(ctx)
			if soon := time.Now().Add(gather); soon.Before(next) {
				next = soon
			}
		}
		timer.Reset(time.Until(next))
	}
}

// look takes in what there is.
func (r *Radar) look(ctx context.Context) []Item {
	items := slices.Clone(r.opts.Items(ctx))
	items = slices.DeleteFunc(items, func(i Item) bool { return i.Expires.IsZero() })
	slices.SortFunc(items, func(a, b Item) int {
		return cmp.Or(a.Expires.Compare(b.Expires), strings.Compare(a.key(), b.key()))
	})
	r.metrics.show(items)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items = items
	return items
}

// check tells of what is due, and returns when to check next.
func (r *Radar) check(ctx context.Context) time.Duration {
	items := r.look(ctx)
	if err := r.recall(ctx); err != nil {
		if ctx.Err() == nil && !r.failed {
			r.failed = true
			r.log.Warn("what operators were told of what expires cannot be read, tried again in a minute", zap.Error(err))
		}
		return recallRetry
	}
	now := time.Now()
	due := r.due(items, now)
	if len(due) > 0 {
		r.tell(ctx, due, now)
	}
	r.forget(ctx, items, now)
	return checkEvery
}

// memoryPrefix is of all our keys, as against others' in the same memory.
const memoryPrefix = "radar."

// recall reads what was told before the start, once.
func (r *Radar) recall(ctx context.Context) error {
	if r.told != nil {
		return nil
	}
	records, err := r.opts.Memory.Recall(ctx)
	if err != nil {
		return fmt.Errorf("recall: %w", err)
	}
	r.told, r.failed = map[string]told{}, false
	for key, data := range records {
		key, ours := strings.CutPrefix(key, memoryPrefix)
		if !ours {
			continue
		}
		var t told
		if err := json.Unmarshal(data, &t); err != nil || t.Stage < 0 || t.Stage > expired {
			r.log.Warn("what operators were told of an item is not readable: they may be told again", zap.String("key", key), zap.Error(err))
			continue
		}
		r.told[key] = t
	}
	return nil
}

// due returns the items operators are to be told of now.
func (r *Radar) due(items []Item, now time.Time) (due []Item) {
	for _, item := range items {
		key, at := item.key(), stageOf(item.Expires, now)
		before := r.told[key]
		if item.Expires.After(before.Expires.Add(renewed)) {
			before = told{}
			if r.logged[key] > at {
				delete(r.logged, key)
			}
		}
		if at <= before.Stage {
			continue
		}
		due = append(due, item)
		if at > r.logged[key] {
			r.logged[key] = at
			if len(due) > maxNamed {
				continue // the notice counts them
			}
			r.log.Warn("something is about to expire", zap.String("kind", item.Kind), zap.String("tenant", item.Tenant),
				zap.String("sender", item.Sender), zap.Time("expires", item.Expires))
		}
	}
	return due
}

// tell writes the notice, and remembers that it was.
func (r *Radar) tell(ctx context.Context, due []Item, now time.Time) {
	subject, paragraphs := notice(due, now)
	if err := r.opts.Notify(ctx, subject, paragraphs); err != nil {
		if !r.failed && ctx.Err() == nil {
			r.log.Warn("operators not told of what expires, tried again each hour", zap.Int("items", len(due)), zap.Error(err))
		}
		r.failed = true
		return
	}
	r.failed = false
	var failed error
	for _, item := range due {
		t := told{item.Expires, stageOf(item.Expires, now)}
		r.told[item.key()] = t
		data, err := json.Marshal(t)
		if err == nil {
			err = r.remember(ctx, item.key(), data)
		}
		failed = cmp.Or(failed, err)
	}
	if failed != nil {
		r.log.Warn("it is not written what operators were told: a restart tells them again", zap.Error(failed))
	}
}

// remember writes a record even while ctx ends: what was told is told.
func (r *Radar) remember(ctx context.Context, key string, data []byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rememberMost)
	defer cancel()
	return r.opts.Memory.Remember(ctx, memoryPrefix+key, data)
}

// forget drops what is gone and would long have expired. What is gone but has not is kept: it may be back after a fault.
func (r *Radar) forget(ctx context.Context, items []Item, now time.Time) {
	here := map[string]bool{}
	for i := range items {
		here[items[i].key()] = true
	}
	var failed error
	for key, t := range r.told {
		if here[key] || now.Sub(t.Expires) < forgetAfter {
			continue
		}
		if err := r.remember(ctx, key, nil); err != nil {
			failed = errors.Join(failed, err)
			break
		}
		delete(r.told, key)
		delete(r.logged, key)
	}
	if failed != nil {
		r.log.Warn("what operators were told of items that are gone is not forgotten yet", zap.Error(failed))
	}
}

// key names an item, whatever its date.
func (i *Item) key() string {
	return i.Kind + "/" + i.Tenant + "/" + strings.ToLower(i.Sender)
}
