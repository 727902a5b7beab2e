package dispatch

import "time"

// window is the minute of messages_per_minute, with a second's allowance for the time a message takes to arrive:
// Exchange Online counts at its end of the line.
const window = 61 * time.Second

// pace spreads a mailbox's messages: no more than limit begin in any window, and after a burst of a tenth of the limit
// (at least one) they begin evenly, one every 60/limit seconds, instead of all at the top of the minute.
type pace struct {
	limit  int         // messages a minute; 0: no limit
	begun  []time.Time // of the last window, oldest first
	tokens float64     // of the burst, as of last
	last   time.Time
}

func (p *pace) burst() float64 { return max(1, float64(p.limit)/10) }

func (p *pace) refill(now time.Time) {
	if p.last.IsZero() {
		p.tokens = p.burst()
	} else if d := now.Sub(p.last); d > 0 {
		p.tokens = min(p.burst(), p.tokens+d.Minutes()*float64(p.limit))
	}
	p.last = now
	old := 0
	for old < len(p.begun) && now.Sub(p.begun[old]) >= window {
		old++
	}
	p.begun = p.begun[old:]
}

// next returns when the next message may begin: now or later.
func (p *pace) next(now time.Time) time.Time {
	if p.limit <= 0 {
		return now
	}
	p.refill(now)
	at := now
	if p.tokens < 1 {
		at = now.Add(time.Duration((1 - p.tokens) / float64(p.limit) * float64(time.Minute)))
		at = at.Add(time.Microsecond) // rounding down would come back a moment too early, again and again
	}
	if len(p.begun) >= p.limit {
		if free := p.begun[len(p.begun)-p.limit].Add(window); free.After(at) {
			at = free
		}
	}
	return at
}

// spend notes a message that begins now.
func (p *pace) spend(now time.Time) {
	if p.limit <= 0 {
		return
	}
	p.refill(now)
	p.tokens--
	p.begun = append(p.begun, now)
}

// refund takes back the last spend: nothing was sent.
func (p *pace) refund() {
	if p.limit <= 0 || len(p.begun) == 0 {
		return
	}
	p.tokens++
	p.begun = p.begun[:len(p.begun)-1]
}

// day counts a mailbox's recipients in a rolling day, in slots of slotLength. It lives in memory: after a restart the count begins
// anew, and Exchange Online's own count is what parks the sender then.
type day struct {
	limit   int // recipients; 0: no limit
	slots   [daySlots]int
	current int64 // number of the newest slot, counted from 1970
	blocked time.Time
}

const (
	slotLength = 15 * time.Minute
	daySlots   = int(24*time.Hour/slotLength) + 1 // the oldest is only partly within the day: counted whole, to be safe
)

func (y *day) roll(now time.Time) {
	n := now.UnixNano() / int64(slotLength)
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

// fits reports whether a message to n recipients stays within the day's limit. One that alone is beyond it fits an empty
// day: Exchange Online shall have the word on it.
func (y *day) fits(now time.Time, n int) bool {
	if y.limit <= 0 {
		return true
	}
	sent := y.sum(now)
	return sent == 0 || sent+n <= y.limit
}

// full stops the mailbox until the oldest slot leaves the day.
func (y *day) full(now time.Time) { y.blocked = now.Truncate(slotLength).Add(slotLength) }

// next returns when the next message may begin, as far as the day is concerned.
func (y *day) next(now time.Time) time.Time {
	if y.limit > 0 && y.blocked.After(now) {
		return y.blocked
	}
	return now
}

func (y *day) spend(now time.Time, n int) {
	if y.limit <= 0 || n == 0 {
		return
	}
	y.roll(now)
	y.slots[y.current%int64(daySlots)] += n
}

// remaining returns how many recipients the day has left.
func (y *day) remaining(now time.Time) int { return max(0, y.limit-y.sum(now)) }
