package dispatch

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/dispatch/limit"
)

// memo is what outlives the process of a mailbox or a tenant. Unknown fields are ignored, so that an older relayd can read
// what a newer one wrote.
type memo struct {
	Day      *limit.Tally `json:"day,omitempty"`
	Gate     *limit.Memo  `json:"gate,omitempty"`
	External *limit.Memo  `json:"external,omitempty"`
}

const (
	keyPrefix     = "dispatch."
	mailboxPrefix = keyPrefix + "mailbox."
	tenantPrefix  = keyPrefix + "tenant."

	recallMost   = 30 * time.Second // the memory may need that long to come up; mail goes out without it then
	rememberMost = 5 * time.Second
	unsavedRest  = time.Minute // attempts do not wait for a memory that failed
	savers       = 16          // records written at once at the end
)

// recall reads what the last process left, before anything is sent.
func (d *Dispatcher) recall(ctx context.Context) {
	if d.opts.Memory == nil {
		return
	}
	records, err := d.opts.Memory.Recall(ctx)
	for deadline := time.Now().Add(recallMost); err != nil && ctx.Err() == nil && time.Now().Before(deadline); {
		timer := time.NewTimer(claimRetry)
		select {
		case <-timer.C:
			records, err = d.opts.Memory.Recall(ctx)
		case <-ctx.Done():
			timer.Stop()
		}
	}
	if err != nil {
		d.log.Error("recipients of the last day, and what was parked, could not be read: counted from nothing", zap.Error(err))
	}
	now := time.Now()
	kept, stale := map[string]memo{}, []string(nil)
	for key, data := range records {
		if !strings.HasPrefix(key, keyPrefix) {
			continue
		}
		var m memo
		if err := json.Unmarshal(data, &m); err != nil {
			d.log.Warn("a record of the last process is not readable", zap.String("key", key), zap.Error(err))
			continue
		}
		if m.Gate != nil || m.External != nil || m.Day != nil && !m.Day.Over(now) {
			kept[key] = m
		} else {
			stale = append(stale, key)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recalled, d.stale = kept, stale
}

// restoreMailbox gives a mailbox that is new to this process what the last one knew of it. The caller holds mu.
func (d *Dispatcher) restoreMailbox(m *mailbox, now time.Time) {
	was, ok := d.recalled[mailboxPrefix+m.key]
	if !ok {
		return
	}
	delete(d.recalled, mailboxPrefix+m.key)
	m.recorded = true
	if was.Day != nil {
		m.day.Recall(now, *was.Day)
	}
	m.gate.Recall(now, was.Gate)
	m.external.Recall(now, was.External)
}

// restoreTenant does the same for a tenant. The caller holds mu.
func (d *Dispatcher) restoreTenant(t *tenant, now time.Time) {
	was := d.recalled[tenantPrefix+t.name]
	delete(d.recalled, tenantPrefix+t.name)
	t.gate.Recall(now, was.Gate)
	t.external.Recall(now, was.External)
	if t.gate.Parked() {
		t.ramp.Start()
	}
}

// cover sees that the mailbox's record allows for the recipients an attempt has reserved, before it begins.
func (d *Dispatcher) cover(ctx context.Context, m *mailbox) {
	if d.opts.Memory == nil {
		return
	}
	d.mu.Lock()
	covered := d.covered(m, time.Now())
	d.mu.Unlock()
	if !covered {
		d.save(ctx, m, false)
	}
}

func (d *Dispatcher) covered(m *mailbox, now time.Time) bool {
	return m.day.Covered(now) || now.Before(m.unsavedTil)
}

// save writes the mailbox's record, with a new block of its day where the last one is used up; without anyway only then.
func (d *Dispatcher) save(ctx context.Context, m *mailbox, anyway bool) {
	if d.opts.Memory == nil {
		return
	}
	m.saving <- struct{}{} // one at a time, or an older record would take the place of a newer one
	defer func() { <-m.saving }()
	d.mu.Lock()
	if gone := d.forgetting[mailboxPrefix+m.key]; gone != nil {
		d.mu.Unlock()
		<-gone
		d.mu.Lock()
	}
	now := time.Now()
	if !anyway && d.covered(m, now) { // by whom this one waited for
		d.mu.Unlock()
		return
	}
	day := m.day.Tally(now, !m.day.Covered(now))
	record := memo{Gate: m.gate.Memo(), External: m.external.Memo()}
	if m.day.Limit > 0 {
		record.Day = &day
	}
	d.mu.Unlock()
	ok := d.remember(ctx, mailboxPrefix+m.key, record)
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok {
		m.day.Written(now, day)
		m.recorded = true
	} else {
		m.unsavedTil = time.Now().Add(unsavedRest)
	}
}

// saveTenant writes the tenant's record.
func (d *Dispatcher) saveTenant(ctx context.Context, t *tenant) {
	if d.opts.Memory == nil {
		return
	}
	t.saving <- struct{}{}
	defer func() { <-t.saving }()
	d.mu.Lock()
	record := memo{Gate: t.gate.Memo(), External: t.external.Memo()}
	d.mu.Unlock()
	d.remember(ctx, tenantPrefix+t.name, record)
}

// remember writes a record, and tells once that it does not work.
func (d *Dispatcher) remember(ctx context.Context, key string, m memo) bool {
	var data []byte
	var err error
	if m != (memo{}) {
		data, err = json.Marshal(m)
	}
	ctx, cancel := context.WithTimeout(ctx, rememberMost)
	defer cancel()
	if err == nil {
		err = d.opts.Memory.Remember(ctx, key, data)
	}
	d.mu.Lock()
	was := d.unsaved
	d.unsaved = err != nil
	d.mu.Unlock()
	if err != nil && !was {
		d.log.Warn("what a restart needs to know is not written: limits of the day count in memory only", zap.Error(err))
	}
	return err == nil
}

// forget takes the records of mailboxes that are not known any more out of the memory.
func (d *Dispatcher) forget(ctx context.Context) {
	d.mu.Lock()
	keys := d.stale
	d.stale = nil
	d.mu.Unlock()
	for _, key := range keys {
		d.mu.Lock()
		known := d.mailboxes[strings.TrimPrefix(key, mailboxPrefix)] != nil || ctx.Err() != nil
		gone := make(chan struct{})
		if !known { // one that comes now writes its record after this one is gone
			d.forgetting[key] = gone
		}
		d.mu.Unlock()
		if known {
			continue
		}
		d.remember(ctx, key, memo{})
		d.mu.Lock()
		delete(d.forgetting, key)
		d.mu.Unlock()
		close(gone)
	}
}

// balance writes the days of all mailboxes without what they had ahead, so that a stop in good order costs nothing.
func (d *Dispatcher) balance(ctx context.Context) {
	if d.opts.Memory == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, rememberMost)
	defer cancel()
	d.mu.Lock()
	now := time.Now()
	records := map[string]memo{}
	for _, m := range d.mailboxes {
		if !m.day.Ahead() {
			continue
		}
		day := m.day.Exact(now)
		records[mailboxPrefix+m.key] = memo{Day: &day, Gate: m.gate.Memo(), External: m.external.Memo()}
	}
	d.mu.Unlock()
	var writers sync.WaitGroup
	free := make(chan struct{}, savers)
	for key, record := range records {
		free <- struct{}{}
		writers.Go(func() {
			d.remember(ctx, key, record)
			<-free
		})
	}
	writers.Wait()
}
