package queue

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/envelope"
)

// ErrNotFound reports an id the queue does not hold; ErrBusy one that is being sent at this moment.
var (
	ErrNotFound = errors.New("no such message in the queue")
	ErrBusy     = errors.New("the message is being sent right now, try again")
)

// Info is one line of a listing.
type Info struct {
	ID     envelope.ID
	Sender envelope.Address
	State  envelope.State // parked where a waiting message's sender is
	Reason string         // why its sender is parked
	Size   int64          // octets
	Due    time.Time
}

// List returns all messages, in the order of acceptance, for which keep is true; a nil keep means all.
func (q *Queue) List(keep func(Info) bool) []Info {
	q.index.mu.Lock()
	var list []Info
	for _, e := range q.index.entries {
		if info := e.info(); keep == nil || keep(info) {
			list = append(list, info)
		}
	}
	q.index.mu.Unlock()
	slices.SortFunc(list, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// info describes e; the caller holds the index's mutex.
func (e *entry) info() Info {
	info := Info{ID: e.id.unpack(), Sender: e.lane.sender, State: stateNames[e.state], Size: e.size, Due: time.Unix(0, e.due)}
	if e.state.waiting() && e.lane.parked != "" {
		info.State, info.Reason = envelope.Parked, e.lane.parked
	}
	return info
}

// Park notes that nothing of sender can be sent for reason, so that its mail shows as parked; "" ends it. It lives in
// memory: after a restart the next attempt finds out again.
func (q *Queue) Park(sender envelope.Address, reason string) {
	q.index.mu.Lock()
	defer q.index.mu.Unlock()
	q.index.laneFor(sender).parked = reason
}

// Get returns one message with its body, whatever its state. Errors: ErrNotFound, ErrBusy where it cannot be read because
// it is being removed, [envelope.ErrCorrupt], or a failure of the storage.
func (q *Queue) Get(ctx context.Context, id envelope.ID) (envelope.Claim, error) {
	e := q.index.get(id)
	if e == nil {
		return envelope.Claim{}, ErrNotFound
	}
	claim, err := q.fetch(ctx, e)
	if !errors.Is(err, envelope.ErrCorrupt) {
		return claim, err
	}
	q.index.mu.Lock()
	defer q.index.mu.Unlock()
	switch { // not damaged, where its holder is removing it just now
	case q.index.entries[e.id] != e:
		err = ErrNotFound
	case e.state == stateSending:
		err = ErrBusy
	}
	return claim, err
}

// Hold keeps a waiting message back until Resume. Errors: ErrNotFound, ErrBusy, or a failure of the storage.
func (q *Queue) Hold(ctx context.Context, id envelope.ID, reason string) error {
	return q.operate(ctx, id, func(p *envelope.Progress) { p.State, p.Reason = envelope.Held, reason })
}

// Resume lets a held or failed message be tried again, at once and with a fresh number of attempts; recipients already
// sent stay sent. Errors as for Hold.
func (q *Queue) Resume(ctx context.Context, id envelope.ID) error {
	return q.operate(ctx, id, func(p *envelope.Progress) {
		p.State, p.Reason, p.Attempts, p.Due = envelope.Queued, "", 0, time.Now()
		for i, r := range p.Results {
			if r.State == envelope.Failed {
				p.Results[i].State = envelope.Queued
			}
		}
	})
}

func (q *Queue) operate(ctx context.Context, id envelope.ID, change func(*envelope.Progress)) error {
	q.index.mu.Lock()
	e := q.index.entries[packID(id)]
	if e == nil {
		q.index.mu.Unlock()
		return ErrNotFound
	}
	if e.state == stateSending {
		q.index.mu.Unlock()
		return ErrBusy
	}
	q.index.grab(e)
	q.index.mu.Unlock()
	claim, err := q.fetch(ctx, e)
	if err == nil {
		p := claim.Progress
		change(&p)
		p.Changed = time.Now()
		err = q.writeState(ctx, e, &p)
	}
	if err != nil {
		q.index.giveBack(e)
	}
	return err
}

// Run watches the disk, reopens the server after a write error, and collects failed mail whose time is over. It returns
// when ctx ends.
func (q *Queue) Run(ctx context.Context) error {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	collect := time.NewTicker(time.Minute)
	defer collect.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			if err := q.space.measure(); err != nil {
				q.log.Error("cannot see how much disk is free", zap.Error(err))
			}
		case <-collect.C:
			q.collect(ctx, time.Now())
		case <-q.broken:
			q.reopen(ctx)
		}
	}
}

// reopen replaces the server until it works: at once, then after 1, 2, 4, 8 and at last every 10 seconds.
func (q *Queue) reopen(ctx context.Context) {
	if st := q.store.Swap(nil); st != nil {
		close(st.gone)
	}
	for wait := time.Second; ; wait = min(2*wait, 10*time.Second) {
		conns, err := q.opts.Reopen(ctx)
		if err == nil {
			q.finishCommits() // they have failed by now with their connections; let them say so before the index is compared
			err = q.attach(ctx, conns)
		}
		if err == nil {
			q.log.Info("queue storage is open again")
			q.metrics.reopened.Inc()
			select {
			case <-q.broken: // asked for by somebody who met the old server
			default:
			}
			return
		}
		q.log.Error("queue storage does not open", zap.Error(err), zap.Duration("retry_in", wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// finishCommits waits for the mail records being written at this moment.
func (q *Queue) finishCommits() {
	q.commits.Lock()
	defer q.commits.Unlock()
}

// collect removes failed mail that has been kept long enough. It gives up soon: it runs in the goroutine that alone can
// reopen the server.
func (q *Queue) collect(ctx context.Context, now time.Time) {
	var old []*entry
	q.index.mu.Lock()
	for _, e := range q.index.entries {
		if e.state == stateFailed && e.due <= now.UnixNano() {
			q.index.grab(e)
			old = append(old, e)
		}
	}
	q.index.mu.Unlock()
	failed := false
	for _, e := range old {
		fctx, cancel := context.WithTimeout(ctx, opTimeout)
		if failed = failed || q.finish(fctx, e) != nil; failed {
			q.index.giveBack(e)
		}
		cancel()
	}
}

// Close marks a clean stop. Every claim must have ended; the connections are the broker's to close.
func (q *Queue) Close(ctx context.Context) error {
	st := q.store.Swap(nil)
	if st == nil {
		return nil
	}
	q.finishCommits() // a message half committed would belie the marks
	return q.writeMarks(ctx, st)
}
