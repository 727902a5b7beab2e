package dispatch

import "time"

// window is the minute of messages_per_minute.
const window = time.Minute

// pace spreads a mailbox's messages: never more than limit in any window, and after a burst of a tenth of the limit (at
// least one) they begin evenly, one every 60/limit seconds, instead of all at the top of the minute.
//
// Exchange Online counts a message when it arrives, which is somewhere between our beginning and our end of it. So a
// message counts from its beginning until a window after its end: then no minute of theirs has more than limit either,
// however long each one takes.
type pace struct {
	limit  int         // messages a minute; 0: no limit
	ended  []time.Time // of the last window, oldest first
	tokens float64     // of the burst, as of last
	last   time.Time
	waited bool // the window is full: the next message is followed by no burst
}

func (p *pace) burst() float64 { return max(1, float64(p.limit)/10) }

func (p *pace) refill(now time.Time) {
	if p.last.IsZero() {
		p.tokens = p.burst()
	}
	if d := now.Sub(p.last); d > 0 && !p.last.IsZero() {
		p.tokens += d.Minutes() * float64(p.limit)
	}
	p.tokens = min(p.burst(), p.tokens) // a reload may have lowered it, a beginning taken back have gone past it
	p.last = now
	old := 0
	for old < len(p.ended) && now.Sub(p.ended[old]) >= window {
		old++
	}
	p.ended = p.ended[old:]
}

// next returns when the next message may begin, now or later, while active ones are under way; ok is false where one of
// those must end first.
func (p *pace) next(now time.Time, active int) (at time.Time, ok bool) {
	if p.limit <= 0 {
		return now, true
	}
	p.refill(now)
	at = now
	if p.tokens < 1 {
		at = now.Add(time.Duration((1 - p.tokens) / float64(p.limit) * float64(time.Minute)))
		at = at.Add(time.Microsecond) // rounding down would come back a moment too early, again and again
	}
	if over := active + len(p.ended) - p.limit; over >= 0 {
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

// begin notes a message that begins now.
func (p *pace) begin(now time.Time) {
	if p.limit <= 0 {
		return
	}
	p.refill(now)
	if p.waited {
		p.tokens, p.waited = min(1, p.tokens), false
	}
	p.tokens--
}

// end notes that one of the active messages ended now, or, where it was not sent, takes its beginning back.
func (p *pace) end(now time.Time, sent bool) {
	switch {
	case p.limit <= 0:
	case sent:
		p.ended = append(p.ended, now)
	default:
		p.tokens++
	}
}

// idle reports whether nothing would be forgotten with p.
func (p *pace) idle(now time.Time) bool {
	p.refill(now)
	return len(p.ended) == 0
}

// day counts a mailbox's recipients in a rolling day, in slots of slotLength. It lives in memory: after a restart the
// count begins anew, and Exchange Online's own count is what parks the sender then.
type day struct {
	limit    int // recipients; 0: no limit
	slots    [daySlots]int
	first    time.Time // the beginning of slot 0; its monotonic clock keeps a step of the wall clock out of the count
	current  int64     // number of the newest slot
	reserved int       // recipients of attempts under way
	blocked  time.Time // nothing fits before this time
	waits    bool      // what does not fit may, once an attempt under way gives back what it does not need
}

const (
	slotLength = 15 * time.Minute
	daySlots   = int(24*time.Hour/slotLength) + 1 // the oldest is only partly within the day: counted whole, to be safe
)

func (y *day) roll(now time.Time) {
	if y.first.IsZero() {
		y.first = now
	}
	n := int64(now.Sub(y.first) / slotLength)
	if n <= y.current {
		return
	}
	for i := max(y.current+1, n-int64(daySlots)+1); i <= n; i++ {
		y.slots[i%int64(daySlots)] = 0
	}
	y.current = n
}

func (y *day) sum(now time.Time) int {
	y.roll(now)
	total := 0
	for _, n := range y.slots {
		total += n
	}
	return total
}

// reserve takes n recipients out of the day for an attempt that begins, where that many are left. Where they are not, it
// reports false and stops the mailbox until some may be. A message that alone is beyond the limit fits an empty day:
// Exchange Online shall have the word on it.
func (y *day) reserve(now time.Time, n int) bool {
	sent := y.sum(now)
	if used := sent + y.reserved; y.limit > 0 && used > 0 && used+n > y.limit {
		if y.waits = sent == 0 || sent+n <= y.limit; !y.waits {
			y.blocked = y.first.Add(time.Duration(y.current+1) * slotLength) // the oldest slot leaves the day
		}
		return false
	}
	y.reserved += n
	return true
}

// settle gives back the n recipients reserve took, short of those that count.
func (y *day) settle(now time.Time, n, counted int) {
	y.roll(now)
	y.reserved -= n
	y.slots[y.current%int64(daySlots)] += counted
	if n > 0 {
		y.waits = false
	}
}

// next returns when the next message may begin, as far as the day is concerned; ok as for pace.
func (y *day) next(now time.Time) (at time.Time, ok bool) {
	if y.limit > 0 && y.blocked.After(now) {
		return y.blocked, true
	}
	return now, y.limit <= 0 || !y.waits
}

// idle reports whether nothing would be forgotten with y.
func (y *day) idle(now time.Time) bool { return y.sum(now) == 0 && y.reserved == 0 }

// remaining returns how many recipients the day has left.
func (y *day) remaining(now time.Time) int { return max(0, y.limit-y.sum(now)-y.reserved) }
