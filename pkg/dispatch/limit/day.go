package limit

import "time"

// Day counts a mailbox's recipients in a rolling day, in slots of a quarter of an hour, by a clock that no step of the
// wall clock moves.
//
// What it counts is to survive kill -9 without a write for each message. So it is written down ahead: a record says what
// was counted, and that a block of so many more may have been used since; no attempt begins that the block does not
// cover. Read back, the whole block counts, as of the moment it is read: a crash can make the count too high, by one
// block, never too low.
type Day struct {
	Limit    int       // recipients; 0: no limit
	slots    []slot    // oldest first
	reserved int       // recipients of attempts under way
	blocked  time.Time // nothing fits before this time
	waits    bool      // what does not fit may, once an attempt under way gives back what it does not need

	block   int       // recipients the record allows for, beyond what it counts
	used    int       // of those, counted since
	written time.Time // when the record was
}

type slot struct {
	at time.Time // its beginning
	n  int
}

const (
	slotLength = 15 * time.Minute
	dayLength  = 24*time.Hour + slotLength // from a slot's beginning until its last recipient has left the day
	blockLife  = 12 * time.Hour            // a record covers nothing that begins later, so that old records can be ignored
)

// Tally is a Day written down.
type Tally struct {
	At    int64      `json:"at"`              // ms since 1970
	Slots [][2]int64 `json:"slots,omitempty"` // beginning, in ms since 1970, and recipients
	Block int        `json:"block,omitempty"` // recipients that may have been counted since
	used  int        // Day.used at the time
}

func (y *Day) sum(now time.Time) int {
	old := 0
	for old < len(y.slots) && now.Sub(y.slots[old].at) >= dayLength {
		old++
	}
	y.slots = y.slots[old:]
	total := 0
	for _, s := range y.slots {
		total += s.n
	}
	return total
}

func (y *Day) count(now time.Time, n int) {
	last := len(y.slots) - 1
	switch {
	case n == 0:
	case last >= 0 && now.Sub(y.slots[last].at) < slotLength:
		y.slots[last].n += n
	default:
		y.slots = append(y.slots, slot{now, n})
	}
}

// Reserve takes n recipients out of the day for an attempt that begins, where that many are left. Where they are not, it
// reports false and stops the mailbox until they may be. n must not be beyond the limit.
func (y *Day) Reserve(now time.Time, n int) bool {
	sent := y.sum(now)
	if y.Limit > 0 && sent+y.reserved+n > y.Limit {
		if y.waits = sent+n <= y.Limit; !y.waits {
			for _, s := range y.slots {
				if sent -= s.n; sent+n <= y.Limit {
					y.blocked = s.at.Add(dayLength)
					break
				}
			}
		}
		return false
	}
	y.reserved += n
	return true
}

// Settle gives back the n recipients Reserve took, short of those that count.
func (y *Day) Settle(now time.Time, n, counted int) {
	y.sum(now)
	y.reserved -= n
	y.count(now, counted)
	y.used += counted
	if n > 0 {
		y.waits = false
	}
}

// Next returns when the next message may begin, as far as the day is concerned; ok as for Pace.
func (y *Day) Next(now time.Time) (at time.Time, ok bool) {
	if y.Limit > 0 && y.blocked.After(now) {
		return y.blocked, true
	}
	return now, y.Limit <= 0 || !y.waits
}

// Reconsider lets the next message look again whether it fits: the limit has changed.
func (y *Day) Reconsider() { y.blocked, y.waits = time.Time{}, false }

// Idle reports whether nothing would be forgotten with y.
func (y *Day) Idle(now time.Time) bool { return y.reserved == 0 && (y.Limit <= 0 || y.sum(now) == 0) }

// Reserved returns how many recipients attempts under way have taken.
func (y *Day) Reserved() int { return y.reserved }

// Remaining returns how many recipients the day has left.
func (y *Day) Remaining(now time.Time) int { return max(0, y.Limit-y.sum(now)-y.reserved) }

// Covered reports whether the record as written allows for all that is under way. Without a limit there is nothing to
// write.
func (y *Day) Covered(now time.Time) bool {
	return y.Limit <= 0 || y.used+y.reserved <= y.block && now.Sub(y.written) < blockLife
}

// Ahead reports whether the record as written allows for more than has been used.
func (y *Day) Ahead() bool { return y.block > y.used }

// Tally returns what to write. more asks for a new block: a hundredth of the limit, at least 10; else what is left of the
// last one stays.
func (y *Day) Tally(now time.Time, more bool) Tally {
	y.sum(now)
	t := Tally{At: now.UnixMilli(), Block: max(y.reserved, y.block-y.used), used: y.used}
	if more {
		t.Block = y.reserved + max(y.Limit/100, 10)
	}
	for _, s := range y.slots {
		t.Slots = append(t.Slots, [2]int64{now.UnixMilli() - now.Sub(s.at).Milliseconds(), int64(s.n)})
	}
	return t
}

// Exact returns the record of a day in which nothing is under way any more.
func (y *Day) Exact(now time.Time) Tally {
	t := y.Tally(now, false)
	t.Block = y.reserved
	return t
}

// Written notes that t is on the disk.
func (y *Day) Written(now time.Time, t Tally) {
	y.block, y.written = t.Block, now
	y.used -= t.used
}

// Over reports whether t has nothing to say any more.
func (t *Tally) Over(now time.Time) bool {
	return now.Sub(time.UnixMilli(t.At)) >= dayLength+blockLife
}

// Recall makes y the day t tells of. What the wall clock says lies in the future counts as of now.
func (y *Day) Recall(now time.Time, t Tally) {
	y.slots, y.block, y.used = nil, 0, 0
	if t.Over(now) {
		return
	}
	for _, s := range t.Slots {
		age := min(max(0, now.UnixMilli()-s[0]), 2*dayLength.Milliseconds())
		if n := int(s[1]); n > 0 && age < dayLength.Milliseconds() {
			y.slots = append(y.slots, slot{now.Add(-time.Duration(age) * time.Millisecond), n})
		}
	}
	y.count(now, max(0, t.Block))
}
