package entra

import (
	"context"
	"hash/fnv"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/entra/grant"
)

// What Run does, and how often:
//
//	tendEvery   renews ahead of time the tokens that somebody has wanted since they came
//	sweepEvery  looks at all grants: those unused for a third of grant.IdleLife, less up to a tenth of that so that a thousand
//	            of one day are not due on one day, get a new refresh token, one after the other
//	forgetAfter drops from memory what nobody has wanted for so long
const (
	tendEvery   = 30 * time.Second
	sweepEvery  = time.Hour
	forgetAfter = 24 * time.Hour
)

// watcher is Records that tell of changes by any node, as vault.Kind does. Without, another node's change shows when a token
// expires, or within the hour.
type watcher interface {
	Watch(ctx context.Context, changed func(name string)) error
}

// Run keeps idle grants alive and renews tokens in use ahead of time until ctx ends.
func (t *Tokens) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if w, ok := t.options.Records.(watcher); ok {
		wg.Go(func() { t.watch(ctx, w) })
	}
	wg.Go(func() {
		for {
			t.sweep(ctx)
			if !pause(ctx, jitter(sweepEvery)) {
				return
			}
		}
	})
	for pause(ctx, tendEvery) {
		t.tend(time.Now())
	}
	return nil
}

// pause waits, and reports false once ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// watch takes up what other nodes have changed. A watch that breaks is begun again.
func (t *Tokens) watch(ctx context.Context, w watcher) {
	for {
		if err := w.Watch(ctx, t.changed); err != nil && ctx.Err() == nil {
			t.options.Logger.Warn("changes of grants are not told", zap.Error(err))
		}
		if !pause(ctx, jitter(storeLast)) {
			return
		}
	}
}

// changed compares what is in memory with the record.
func (t *Tokens) changed(name string) {
	t.mu.Lock()
	s := t.sources[name]
	t.mu.Unlock()
	if s == nil || s.login == "" {
		return
	}
	g, _, err := s.load()
	if err != nil {
		return // the next use of the record says so
	}
	t.metrics.consented(s.login, ends(g))
	bad := s.verdict(g) != nil
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.request != nil: // it will see
	case bad && s.token != nil, !bad && s.gone, !bad && s.token != nil && g.Access != s.token.AccessToken:
		s.token, s.hold, s.err, s.failures = nil, time.Time{}, nil, 0 // the next to ask reads the record
	}
}

// tend begins the renewals that are due, and drops what nobody wants.
func (t *Tokens) tend(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, s := range t.sources {
		s.mu.Lock()
		switch {
		case s.request != nil:
		case s.token != nil && s.asked.After(s.fetched) && !now.Before(s.renew) && !now.Before(s.hold):
			s.begin(s.unwanted(""))
		case now.Sub(s.asked) > forgetAfter:
			delete(t.sources, name)
		}
		s.mu.Unlock()
	}
}

// sweep looks at every grant.
func (t *Tokens) sweep(ctx context.Context) {
	names, err := t.options.Records.Names(ctx)
	if err != nil {
		t.options.Logger.Warn("grants are not kept alive", zap.Error(err))
		return
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return
		}
		g, _, err := grant.Load(ctx, t.options.Records, name)
		if err != nil {
			t.options.Logger.Warn("grant is not kept alive", zap.Error(err))
			continue
		}
		switch {
		case g == nil:
		case g.Login == "":
			t.tidy(ctx, name, g)
		default:
			t.metrics.consented(g.Login, ends(g))
			t.revive(ctx, g)
		}
	}
}

// tidy removes the record of a tenant that is no longer configured, once its token has expired.
func (t *Tokens) tidy(ctx context.Context, name string, g *grant.Grant) {
	t.mu.Lock()
	_, configured := t.tenants[g.Tenant]
	t.mu.Unlock()
	if configured || time.Now().Before(g.Expires) || time.Now().Before(g.Until) {
		return
	}
	if err := t.options.Records.Delete(ctx, name); err != nil {
		t.options.Logger.Warn("record of a removed tenant stays", zap.String("tenant", g.Tenant), zap.Error(err))
	}
}

// revive gets a new refresh token for a grant that has been idle for long.
func (t *Tokens) revive(ctx context.Context, g *grant.Grant) {
	due := keepAlive(g.Tenant + " " + g.Login)
	now := time.Now()
	if g.Dead != "" || now.Sub(g.Used) < due {
		return
	}
	s := t.source(g.Tenant, g.Login)
	if s == nil || s.login == "" {
		return // the tenant is gone, or has gone over to tokens of its own
	}
	s.mu.Lock()
	r := s.request
	if r == nil && now.Before(s.hold) {
		s.mu.Unlock()
		return // with the next sweep
	}
	if r == nil {
		r = s.begin(want{renewed: now.Add(-due)})
	}
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return
	case <-r.done:
	}
	if r.err != nil {
		t.options.Logger.Warn("idle consent not renewed", zap.String("tenant", g.Tenant), zap.String("login", g.Login),
			zap.Time("expiry", ends(g)), zap.Error(r.err), zap.NamedError("cause", r.err.Err))
	}
}

// keepAlive returns how long a grant may be idle before it is used for its own sake: the same on every node.
func keepAlive(name string) time.Duration {
	const third = grant.IdleLife / 3
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // a hash takes everything
	return third - time.Duration(h.Sum64()%uint64(third/10))
}
