package dispatch

import (
	"context"
	"strings"
	"time"

	"relayd/pkg/dispatch/ledger"
)

// unsavedRest is how long attempts do not wait for a memory that failed.
const unsavedRest = time.Minute

// restoreMailbox gives a mailbox that is new to this process what the last one knew of it. The caller holds mu.
func (d *Dispatcher) restoreMailbox(m *mailbox, now time.Time) {
	was, ok := d.ledger.Take(ledger.MailboxKey(m.key))
	if !ok {
		return
	}
	m.recorded = true
	if was.Day != nil {
		m.day.Recall(now, *was.Day)
	}
	m.Gate.Recall(now, was.Gate)
	m.External.Recall(now, was.External)
}

// restoreTenant does the same for a tenant. The caller holds mu.
func (d *Dispatcher) restoreTenant(t *tenant, now time.Time) {
	was, _ := d.ledger.Take(ledger.TenantKey(t.name))
	t.Gate.Recall(now, was.Gate)
	t.External.Recall(now, was.External)
	if t.Gate.Parked() {
		t.Ramp.Start()
	}
}

// cover sees that the mailbox's record allows for the recipients an attempt has reserved, before it begins.
func (d *Dispatcher) cover(ctx context.Context, m *mailbox) {
	d.mu.Lock()
	covered := !d.ledger.Kept() || m.covered(time.Now())
	d.mu.Unlock()
	if !covered {
		d.save(ctx, m, false)
	}
}

func (m *mailbox) covered(now time.Time) bool { return m.day.Covered(now) || now.Before(m.unsavedTil) }

// save writes the mailbox's record, with a new block of its day where the last one is used up; without anyway only then.
func (d *Dispatcher) save(ctx context.Context, m *mailbox, anyway bool) {
	m.saving <- struct{}{} // one at a time, or an older record would take the place of a newer one
	defer func() { <-m.saving }()
	d.mu.Lock()
	now := time.Now()
	if !anyway && m.covered(now) { // by whom this one waited for
		d.mu.Unlock()
		return
	}
	day := m.day.Tally(now, !m.day.Covered(now))
	record := ledger.Record{Gate: m.Gate.Memo(), External: m.External.Memo()}
	if m.day.Limit > 0 {
		record.Day = &day
	}
	d.mu.Unlock()
	ok := d.ledger.Write(ctx, ledger.MailboxKey(m.key), record)
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
	t.saving <- struct{}{}
	defer func() { <-t.saving }()
	d.mu.Lock()
	record := ledger.Record{Gate: t.Gate.Memo(), External: t.External.Memo()}
	d.mu.Unlock()
	d.ledger.Write(ctx, ledger.TenantKey(t.name), record)
}

// forget takes the records of mailboxes that are not known any more out of the memory.
func (d *Dispatcher) forget(ctx context.Context) {
	d.ledger.Forget(ctx, func(key string) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		mailbox, ok := strings.CutPrefix(key, ledger.MailboxKey(""))
		return !ok || d.mailboxes[mailbox] != nil
	})
}

// balance writes the days of all mailboxes without what they had ahead, so that a stop in good order costs nothing.
func (d *Dispatcher) balance(ctx context.Context) {
	d.mu.Lock()
	now := time.Now()
	records := map[string]ledger.Record{}
	for _, m := range d.mailboxes {
		if m.day.Ahead() {
			day := m.day.Exact(now)
			records[ledger.MailboxKey(m.key)] = ledger.Record{Day: &day, Gate: m.Gate.Memo(), External: m.External.Memo()}
		}
	}
	d.mu.Unlock()
	d.ledger.WriteAll(ctx, records)
}
