package limit

import (
	"math"
	"time"
)

// Connections is how many sessions a mailbox may have at once. Exchange Online's word on that (432) halves it, to one at
// the least; each five minutes without such a word give one back, up to what is configured.
type Connections struct {
	base int       // allowed at the time at; 0: what is configured
	at   time.Time // of the last 432
}

const connectionBack = 5 * time.Minute

// Allowed returns how many there may be now, of most configured.
func (c *Connections) Allowed(now time.Time, most int) int {
	if c.base > 0 {
		if n := c.base + int(now.Sub(c.at)/connectionBack); n < most {
			return n
		}
		c.base = 0
	}
	return most
}

// Halve takes a 432 in.
func (c *Connections) Halve(now time.Time, most int) {
	c.base, c.at = max(1, c.Allowed(now, most)/2), now
}

// Next returns when one more than active may be begun; ok is false where one of those must end first.
func (c *Connections) Next(now time.Time, active, most int) (at time.Time, ok bool) {
	switch {
	case active >= most:
		return now, false
	case active < c.Allowed(now, most):
		return now, true
	}
	return c.at.Add(time.Duration(active+1-c.base) * connectionBack), true
}

// Idle reports whether nothing would be forgotten with c.
func (c *Connections) Idle(now time.Time, most int) bool { return c.Allowed(now, most) == most }

// Ramp is a tenant's slow start after its gate was closed: one attempt first, and each success lets one more run at once,
// so that a round of successes doubles them: 1, 2, 4 … until the workers are the limit. A thousand mailboxes that waited
// for the same outage to end do not come back in one moment.
type Ramp struct {
	allow  int    // attempts at once; 0: no limit
	flight int    // attempts under way of this start
	start  uint64 // number of it
}

// Start begins anew, at one. What is under way already does not count.
func (r *Ramp) Start() { *r = Ramp{allow: 1, start: r.start + 1} }

// Free returns how many more attempts may begin.
func (r *Ramp) Free() int {
	if r.allow == 0 {
		return math.MaxInt
	}
	return max(0, r.allow-r.flight)
}

// Begin notes an attempt, and returns what End wants to know of it.
func (r *Ramp) Begin() (start uint64) {
	if r.allow == 0 {
		return 0
	}
	r.flight++
	return r.start
}

// Has reports whether the attempt is one of the slow start under way.
func (r *Ramp) Has(start uint64) bool { return r.allow > 0 && start == r.start }

// End notes the end of an attempt; past most at once there is no limit any more.
func (r *Ramp) End(start uint64, success bool, most int) {
	if !r.Has(start) {
		return
	}
	r.flight--
	if success {
		if r.allow++; r.allow > most {
			r.allow = 0
		}
	}
}
