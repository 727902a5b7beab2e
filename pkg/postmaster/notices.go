package postmaster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/bounce"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// When operators are told.
//
// A park waits for others, since a tenant's thousand senders park within moments: until five seconds pass without one, and
// a minute at most. A failure waits five minutes, and an hour since the last digest. What cannot be written, for the queue's sake or because the hour's mails are used up,
// is tried again each minute and meanwhile grows.
const (
	settled     = 5 * time.Second
	gather      = time.Minute
	digestAfter = 5 * time.Minute
	digestEvery = time.Hour
	retryAfter  = time.Minute
	flushMost   = 5 * time.Second // what the last notices may take when Run is told to stop
)

// Bounds of what is kept in memory.
const (
	maxParks    = 1000
	maxUntold   = 10000
	maxFailures = 50
	maxRules    = 200
)

// parks are those to be told of.
type parks struct {
	since   time.Time // when the first of them came
	last    time.Time // and the last
	pending []status.Park
	more    int                 // for which there was no room
	untold  map[string]struct{} // those: their end is not told either
}

// park names one park, from its beginning to its end, in the milliseconds dispatch keeps over a restart.
func park(p *status.Park) string {
	return p.Tenant + "/" + strings.ToLower(p.Login) + p.Since.UTC().Format(" 20060102150405.000")
}

// add notes a park or its end. A park that ends before it was told of is not told of at all, and one that begins before the
// last one's end was told takes that end's place.
func (ps *parks) add(p status.Park) (noted bool) {
	key := park(&p)
	for i := range ps.pending {
		switch q := &ps.pending[i]; {
		case park(q) == key && p.Resumed && !q.Resumed:
			ps.pending = slices.Delete(ps.pending, i, i+1)
			return true
		case park(q) == key && p.Resumed == q.Resumed:
			return true
		case !p.Resumed && q.Resumed && q.Tenant == p.Tenant && strings.EqualFold(q.Login, p.Login):
			ps.pending[i] = p
			return true
		}
	}
	if _, untold := ps.untold[key]; untold && p.Resumed {
		delete(ps.untold, key)
		return true
	}
	if len(ps.pending) >= maxParks {
		ps.more++
		if !p.Resumed && len(ps.untold) < maxUntold {
			if ps.untold == nil {
				ps.untold = map[string]struct{}{}
			}
			ps.untold[key] = struct{}{}
		}
		return false
	}
	ps.pending = append(ps.pending, p)
	return true
}

// Park notes that a sender or tenant was parked or resumed, for the next notice. It never blocks: what is too much is
// counted.
func (p *Postmaster) Park(park status.Park) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.set.notifies() {
		return
	}
	now := time.Now()
	if len(p.parks.pending) == 0 {
		p.parks.since = now
	}
	p.parks.last = now
	if !p.parks.add(park) {
		p.metrics.of(kindNotice, resultSuppressed).Inc()
	}
	p.nudge()
}

// digest is what has failed since the last one.
type digest struct {
	since      time.Time // of the first; zero: there is none
	last       time.Time // when one was written
	messages   int
	recipients int
	suppressed int // notifications not written
	failures   []bounce.Failed
	rules      map[string]int
}

func (d *digest) begin(now time.Time) {
	if d.since.IsZero() {
		d.since = now
	}
}

// noteFailed notes failed recipients for the digest. relayd's own mail is not among them, or a digest that fails would be
// followed by another; the log has it.
func (p *Postmaster) noteFailed(env *envelope.Envelope, progress *envelope.Progress, failed []int) {
	if env.Intake == Intake {
		p.log.Warn("mail of relayd's own failed", zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)), zap.Int("recipients", len(failed)))
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.set.notifies() || len(failed) == 0 {
		return
	}
	now, d := time.Now(), &p.digest
	d.begin(now)
	d.messages++
	if d.rules == nil {
		d.rules = map[string]int{}
	}
	for _, i := range failed {
		var result envelope.Result
		if i < len(progress.Results) {
			result = progress.Results[i]
		}
		d.recipients++
		if _, known := d.rules[result.Rule]; known || len(d.rules) < maxRules {
			d.rules[result.Rule]++
		}
		if len(d.failures) < maxFailures {
			d.failures = append(d.failures, bounce.Failed{At: now, ID: env.ID, Sender: env.Sender, Recipient: env.Recipients[i].Address,
				Reply: result.Reply, Rule: result.Rule})
		}
	}
	p.nudge()
}

// nudge has Run look again.
func (p *Postmaster) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run writes notices and digests until ctx ends, and then what is left of them. Stop it after the dispatcher and before
// the queue.
func (p *Postmaster) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		parksDue, digestDue := p.due(now)
		p.notify(ctx, now, parksDue, digestDue)
		timer.Reset(p.sleep(time.Now()))
		select {
		case <-timer.C:
		case <-p.wake:
		case <-ctx.Done():
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushMost)
	defer cancel()
	p.notify(last, time.Now(), true, true)
	return nil
}

// times returns when parks and digest are to be written; the zero time: there is nothing to write.
func (p *Postmaster) times() (parks, digest time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.parks.pending) > 0 {
		parks = p.parks.since.Add(gather)
		if quiet := p.parks.last.Add(settled); quiet.Before(parks) {
			parks = quiet
		}
		parks = latest(parks, p.rest)
	}
	if !p.digest.since.IsZero() {
		digest = latest(p.digest.since.Add(digestAfter), p.digest.last.Add(digestEvery), p.rest)
	}
	return parks, digest
}

func (p *Postmaster) due(now time.Time) (parks, digest bool) {
	parksAt, digestAt := p.times()
	return !parksAt.IsZero() && !now.Before(parksAt), !digestAt.IsZero() && !now.Before(digestAt)
}

// sleep returns how long there is nothing to do.
func (p *Postmaster) sleep(now time.Time) time.Duration {
	wait := time.Hour
	parks, digest := p.times()
	for _, at := range []time.Time{parks, digest} {
		if !at.IsZero() {
			wait = min(wait, max(at.Sub(now), 0))
		}
	}
	return wait
}

func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// notify writes parks and digest, as far as there are any.
func (p *Postmaster) notify(ctx context.Context, now time.Time, parks, digest bool) {
	if parks {
		p.writeParks(ctx, now)
	}
	if digest {
		p.writeDigest(ctx, now)
	}
}

// letter takes a place of the hour's for a notice. ok is false where there is none, or nobody to tell. The caller holds mu.
func (p *Postmaster) letter(now time.Time) (l *bounce.Letter, place *entry, ok bool) {
	p.written.trim(now)
	if !p.set.notifies() || len(p.written.entries) >= p.set.PerHour {
		p.rest = now.Add(retryAfter)
		return nil, nil, false
	}
	l = &bounce.Letter{ID: envelope.NewID(now), Hostname: p.set.Hostname, From: p.set.From, To: p.set.Notify, Date: now}
	return l, p.written.take(now, ""), true
}

// writeParks writes the notice about what was parked and resumed.
func (p *Postmaster) writeParks(ctx context.Context, now time.Time) {
	p.mu.Lock()
	if len(p.parks.pending) == 0 {
		p.mu.Unlock()
		return
	}
	l, place, ok := p.letter(now)
	if !ok {
		p.mu.Unlock()
		return
	}
	taken := p.parks
	p.parks = parks{untold: taken.untold}
	p.mu.Unlock()

	mail, err := bounce.Parks(l, taken.pending, taken.more)
	if p.send(ctx, kindNotice, l, mail, err) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	since := p.parks
	p.parks = taken
	p.parks.untold = since.untold
	p.parks.more += since.more
	for _, park := range since.pending { // what ended meanwhile drops out
		p.parks.add(park)
	}
	p.putBack(now, place)
}

// writeDigest writes the digest.
func (p *Postmaster) writeDigest(ctx context.Context, now time.Time) {
	p.mu.Lock()
	if p.digest.since.IsZero() {
		p.mu.Unlock()
		return
	}
	l, place, ok := p.letter(now)
	if !ok {
		p.mu.Unlock()
		return
	}
	taken := p.digest
	p.digest = digest{last: now}
	p.mu.Unlock()

	mail, err := bounce.Summary(l, &bounce.Digest{
		Since: taken.since, Until: now, Messages: taken.messages, Recipients: taken.recipients, Failures: taken.failures,
		Rules: taken.rules, Suppressed: taken.suppressed, Advice: p.opts.Advice,
	})
	if p.send(ctx, kindDigest, l, mail, err) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	taken.add(&p.digest)
	p.digest = taken
	p.putBack(now, place)
}

// add takes over what has failed since d was taken.
func (d *digest) add(later *digest) {
	d.messages += later.messages
	d.recipients += later.recipients
	d.suppressed += later.suppressed
	d.failures = append(d.failures, later.failures[:min(len(later.failures), maxFailures-len(d.failures))]...)
	if d.rules == nil {
		d.rules = map[string]int{}
	}
	for rule, n := range maps.All(later.rules) {
		d.rules[rule] += n
	}
}

// putBack ends the attempt at a notice that was not written. The caller holds mu.
func (p *Postmaster) putBack(now time.Time, place *entry) {
	p.written.giveBack(place)
	p.rest = now.Add(retryAfter)
	if !p.set.notifies() { // meanwhile
		p.parks, p.digest = parks{}, digest{}
	}
}

// Notice is what operators are told besides parks and failures.
type Notice struct {
	Subject    string
	Paragraphs []string // one that begins with spaces belongs to the one before it
}

// What Notice may answer besides what the queue does.
var (
	ErrNobody  = errors.New("no operators are to be told: bounces.mode, bounces.from or bounces.notify says so")
	ErrTooMany = errors.New("relayd has written too many mails within the hour")
)

// Notice tells operators at once: the notice is in the queue when it returns nil. It is not kept for later: after an error,
// ask again.
func (p *Postmaster) Notice(ctx context.Context, n Notice) error {
	p.mu.Lock()
	now := time.Now()
	if !p.set.notifies() {
		p.mu.Unlock()
		return ErrNobody
	}
	l, place, ok := p.letter(now)
	p.mu.Unlock()
	if !ok {
		p.metrics.of(kindOther, resultSuppressed).Inc()
		return ErrTooMany
	}
	mail, err := bounce.Announce(l, n.Subject, n.Paragraphs)
	if err == nil {
		err = p.put(ctx, kindOther, l, mail)
	} else {
		p.metrics.of(kindOther, resultError).Inc()
	}
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.written.giveBack(place)
		return fmt.Errorf("store notice: %w", err)
	}
	p.log.Info("operators told", zap.String("id", string(l.ID)), zap.String("kind", string(kindOther)), zap.Int("recipients", len(l.To)))
	return nil
}

// send stores a notice. false: it is to be tried again.
func (p *Postmaster) send(ctx context.Context, k kind, l *bounce.Letter, mail *bounce.Mail, err error) bool {
	if err == nil {
		err = p.put(ctx, k, l, mail)
	} else {
		p.metrics.of(k, resultError).Inc()
	}
	if err == nil {
		p.log.Info("operators told", zap.String("id", string(l.ID)), zap.String("kind", string(k)), zap.Int("recipients", len(l.To)))
		return true
	}
	p.log.Warn("operators not told, tried again in a minute", zap.String("kind", string(k)), zap.Error(err))
	return false
}
