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

// ErrNotFound reports an id the queue does not hold; ErrBusy one that is being sent at this moment; ErrHeld one that is held.
var (
	ErrNotFound = errors.New("no such message in the queue")
	ErrBusy     = errors.New("the message is being sent right now, try again")
	ErrHeld     = errors.New("the message is held, release it first")
)

// Info is one line of a listing.
type Info struct {
	ID       envelope.ID
	Sender   envelope.Address
	State    envelope.State // parked where a waiting message's sender is
	Reason   string         // why its sender is parked
	Size     int64          // octets
	Attempts int            // that cost the message a life, as of its last state record
	Due      time.Time
}

// List returns all messages, in the order of acceptance, for which keep is true; a nil keep means all. Others get their
// turn at the queue in between, so what comes or goes meanwhile may or may not be in it. keep is called without a lock.
func (q *Queue) List(keep func(Info) bool) []Info {
	var list, batch []Info
	sift := func() {
		for _, info := range batch {
			if keep == nil || keep(info) {
				list = append(list, info)
			}
		}
		batch = batch[:0]
	}
	q.index.walk(func(e *entry) { batch = append(batch, e.info()) }, sift)
	sift()
	slices.SortFunc(list, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Info returns the listing's line for one message, and whether the queue holds it.
func (q *Queue) Info(id envelope.ID) (Info, bool) {
	q.index.mu.Lock()
	defer q.index.mu.Unlock()
	e := q.index.find(id)
	if e == nil {
		return Info{}, false
	}
	return e.info(), true
}

// Find returns the listing's lines for those of ids that the queue holds, in their order.
func (q *Queue) Find(ids []envelope.ID) []Info {
	var list []Info
	for _, id := range ids {
		if info, ok := q.Info(id); ok {
			list = append(list, info)
		}
	}
	return list
}

// Waiting is one sender's mail in the queue.
type Waiting struct {
	Sender   envelope.Address
	Messages int // that are due now or later
	Oldest   time.Time
	Parked   string // why the sender cannot send now; empty: it can
}

// Waiting returns every sender with waiting mail, in no order.
func (q *Queue) Waiting() []Waiting {
	q.index.mu.Lock()
	defer q.index.mu.Unlock()
	list := make([]Waiting, 0, len(q.index.lanes))
	for _, l := range q.index.lanes {
		w := Waiting{Sender: l.sender, Messages: len(l.heap), Parked: l.parked}
		for _, e := range l.heap[:min(len(l.heap), waitingSample)] {
			if at := e.id.unpack().Time(); w.Oldest.IsZero() || at.Before(w.Oldest) {
				w.Oldest = at
			}
		}
		list = append(list, w)
	}
	return list
}

// waitingSample is how many of a sender's messages Waiting looks at for the oldest, those due first: a sender with a million
// must not hold up the queue.
const waitingSample = 1000

// Tally is what there is of one state.
type Tally struct {
	Messages int
	Bytes    int64     // octets
	Oldest   time.Time // when the oldest of them was accepted; zero: there is none
}

// Tally returns what there is of each state. It is counted anew as often as a scrape would.
func (q *Queue) Tally() map[envelope.State]Tally {
	out := map[envelope.State]Tally{}
	for s, t := range q.metrics.current(time.Now()) {
		out[s] = Tally{t.messages, t.bytes, t.oldest.Time()}
	}
	return out
}

// info describes e; the caller holds the index's mutex.
func (e *entry) info() Info {
	info := Info{ID: e.id.unpack(), Sender: e.lane.sender, State: stateNames[e.state], Size: e.size, Attempts: int(e.attempts), Due: time.Unix(0, e.due)}
	if e.state.waiting() && e.lane.parked != "" {
		info.State, info.Reason = envelope.Parked, e.lane.parked
	}
	return info
}

// Park notes that nothing of sender can be sent for reason, so that its mail shows as parked; "" ends it. It lives in
// memory: after a restart the next attempt finds out again.
func (q *Queue) Park(sender envelope.Address, reason string) { q.index.park(sender, reason) }

// Get returns one message with its body, whatever its state. Errors: ErrNotFound, ErrBusy where it cannot be read because
// it is being removed, [envelope.ErrCorrupt], or a failure of the storage.
func (q *Queue) Get(ctx context.Context, id envelope.ID) (envelope.Claim, error) {
	e := q.index.get(id)
	if e == nil {
		return envelope.Claim{}, ErrNotFound
	}
	claim, err := q.fetch(ctx, e)
	if !errors.Is(err, envelope.ErrCorrupt) && !errors.Is(err, errGone) {
		return claim, err
	}
	e, busy := q.seize(id)
	if busy != nil { // neither damaged nor lost: its holder is removing it just now, or has
		return claim, busy
	}
	return claim, q.letGo(e, err)
}

// Hold keeps a message back until Resume; by is who wants it so. Errors: ErrNotFound, ErrBusy, or a failure of the storage.
func (q *Queue) Hold(ctx context.Context, id envelope.ID, by, reason string) error {
	return q.operate(ctx, id, envelope.Step{What: envelope.StepHeld, By: by, Reply: reason}, func(p *envelope.Progress) error {
		p.State, p.Reason = envelope.Held, reason
		return nil
	})
}

// Resume lets a held or failed message be tried again, at once and with a fresh number of attempts; recipients already
// sent stay sent. Errors as for Hold.
func (q *Queue) Resume(ctx context.Context, id envelope.ID, by string) error {
	return q.operate(ctx, id, envelope.Step{What: envelope.StepReleased, By: by}, func(p *envelope.Progress) error {
		afresh(p)
		return nil
	})
}

// Retry makes a waiting message due at once; its attempts so far count on. A failed one is tried again as by Resume.
// Errors as for Hold, and ErrHeld.
func (q *Queue) Retry(ctx context.Context, id envelope.ID, by string) error {
	return q.operate(ctx, id, envelope.Step{What: envelope.StepRetried, By: by}, func(p *envelope.Progress) error {
		switch p.State {
		case envelope.Held:
			return ErrHeld
		case envelope.Failed:
			afresh(p)
		default:
			p.Due = time.Now()
			for i := range p.Results {
				p.Results[i].Due = time.Time{}
			}
		}
		return nil
	})
}

// afresh begins a message's life anew for every recipient that has not got it.
func afresh(p *envelope.Progress) {
	p.State, p.Reason, p.Attempts, p.Due = envelope.Queued, "", 0, time.Now()
	for i, r := range p.Results {
		if r.State == envelope.Sent {
			continue
		}
		if r.State == envelope.Failed {
			r.State = envelope.Queued
		}
		p.Results[i] = envelope.Result{State: r.State, Reply: r.Reply}
	}
}

// Drop removes a message that is not being sent, whatever its state. Errors as for Hold, and [envelope.ErrCorrupt] where the
// storage cannot read it: then it cannot remove it either, and the attempt would have it refuse everything until it is
// reopened.
func (q *Queue) Drop(ctx context.Context, id envelope.ID, by string) error {
	e, err := q.seize(id)
	if err != nil {
		return err
	}
	if err = q.readable(ctx, e); err == nil {
		err = q.finish(ctx, e)
	}
	if err != nil {
		return q.letGo(e, err)
	}
	q.record(envelope.Step{ID: id, What: envelope.StepDropped, State: envelope.Failed, By: by})
	return nil
}

// readable reports why the storage cannot give the mail record, whatever it says.
func (q *Queue) readable(ctx context.Context, e *entry) error {
	st := q.store.Load()
	if st == nil {
		return errUnavailable(errors.New("server is being reopened"))
	}
	_, err := st.get(ctx, st.locate(e.place(), "mail", e.mail))
	return err
}

// letGo ends the hold of seize after err, and says what to tell the operator.
func (q *Queue) letGo(e *entry, err error) error {
	if errors.Is(err, errGone) {
		q.lost(e)
		return ErrNotFound
	}
	q.index.giveBack(e)
	return err
}

// seize takes a message that nobody is sending.
func (q *Queue) seize(id envelope.ID) (*entry, error) {
	q.index.mu.Lock()
	defer q.index.mu.Unlock()
	e := q.index.find(id)
	switch {
	case e == nil:
		return nil, ErrNotFound
	case e.state == stateSending:
		return nil, ErrBusy
	}
	q.index.grab(e)
	return e, nil
}

// operate changes a message's state record for an operator, and records the step.
func (q *Queue) operate(ctx context.Context, id envelope.ID, step envelope.Step, change func(*envelope.Progress) error) error {
	e, err := q.seize(id)
	if err != nil {
		return err
	}
	claim, err := q.fetch(ctx, e)
	p := claim.Progress
	if err == nil {
		err = change(&p)
	}
	if err == nil {
		p.Changed = time.Now()
		err = q.writeState(ctx, e, &p)
	}
	if err != nil {
		return q.letGo(e, err)
	}
	q.index.update(e, stateOf(p.State), p.Due)
	step.ID, step.At, step.State, step.Due = id, p.Changed, p.State, p.Due
	q.record(step)
	return nil
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
		if !failed {
			q.record(envelope.Step{ID: e.id.unpack(), What: envelope.StepExpired, State: envelope.Failed})
		}
	}
}

// Close marks a clean stop. Every claim must have ended; the connections are the broker's to close.
func (q *Queue) Close(ctx context.Context) error {
	st := q.store.Swap(nil)
	if st == nil {
		return q.journal.close()
	}
	q.finishCommits() // a message half committed would belie the marks
	return errors.Join(q.writeMarks(ctx, st), q.journal.close())
}
