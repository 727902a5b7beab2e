// Package limit holds what keeps a mailbox or a tenant back: the pace of its messages, the recipients of its day, the
// connections it may have, and the gates that close when Exchange Online says no.
//
// All of it is plain state that moves with the times it is given; nothing here has a lock, a clock or a goroutine, and
// whoever holds a value guards it. Pace, connections and gates live in memory. The day, and why a gate is parked, can be
// written down ([Tally], [Memo]) so that a crash never makes relayd think it has more left than it has.
package limit

import "time"

// window is the minute of messages_per_minute.
const window = time.Minute

// Pace spreads a mailbox's messages: never more than limit in any window, and after a burst of a tenth of the limit (at
// least one) they begin evenly, one every 60/limit seconds, instead of all at the top of the minute.
//
// Exchange Online counts a message when it arrives, which is somewhere between our beginning and our end of it. So a
// message counts from its beginning until a window after its end: then no minute of theirs has more than limit either,
// however long each one takes.
type Pace struct {
	Limit  int         // messages a minute; 0: no limit
	ended  []time.Time // of the last window, oldest first
	tokens float64     // of the burst, as of last
	last   time.Time
	waited bool // the window is full: the next message is followed by no burst
}

// Start makes the pace what it is after a start at began: one message at once, and what has been saved up since. Those
// before the start are forgotten, and a burst right behind them would be one too many.
func (p *Pace) Start(began time.Time) { p.tokens, p.last = 1, began }

func (p *Pace) burst() float64 { return max(1, float64(p.Limit)/10) }

func (p *Pace) refill(now time.Time) {
	if p.last.IsZero() {
		p.tokens = p.burst()
	}
	if d := now.Sub(p.last); d > 0 && !p.last.IsZero() {
		p.tokens += d.Minutes() * float64(p.Limit)
	}
	p.tokens = min(p.burst(), p.tokens) // a reload may have lowered it, a beginning taken back have gone past it
	p.last = now
	old := 0
	for old < len(p.ended) && now.Sub(p.ended[old]) >= window {
		old++
	}
	p.ended = p.ended[old:]
}

// Next returns when the next message may begin, now or later, while active ones are under way; ok is false where one of
// those must end first.
func (p *Pace) Next(now time.Time, active int) (at time.Time, ok bool) {
	if p.Limit <= 0 {
		return now, true
	}
	p.refill(now)
	at = now
	if p.tokens < 1 {
		at = now.Add(time.Duration((1 - p.tokens) / float64(p.Limit) * float64(time.Minute)))
		at = at.Add(time.Microsecond) // rounding down would come back a moment too early, again and again
	}
	if over := active + len(p.ended) - p.Limit; over >= 0 {
		p.waited = true
		if over >= len(p.ended) {
			return at, false
		}
		if free := p.ended[over].Add(window); free.After(at) {
			at = free
		}
	}
	return at, true
}

// Begin notes a message that begins now.
func (p *Pace) Begin(now time.Time) {
	if p.Limit <= 0 {
		return
	}
	p.refill(now)
	if p.waited {
		p.tokens, p.waited = min(1, p.tokens), false
	}
	p.tokens--
}

// End notes that one of the active messages ended now, or, where it was not sent, takes its beginning back.
func (p *Pace) End(now time.Time, sent bool) {
	switch {
	case p.Limit <= 0:
	case sent:
		p.ended = append(p.ended, now)
	default:
		p.tokens++
	}
}

// Idle reports whether nothing would be forgotten with p.
func (p *Pace) Idle(now time.Time) bool {
	p.refill(now)
	return len(p.ended) == 0
}
