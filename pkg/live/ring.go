package live

import "time"

// counts are accepted, sent, deferred, failed.
type counts [4]int

// slot is one step of a chart.
type slot struct {
	Start  int64  `json:"at"` // its number: time since 1970 in steps
	Counts counts `json:"n"`
}

// ring is the newest steps of a chart. A slot belongs to the step whose number it bears: one of a former round, or of a
// time the clock was set back from, counts as empty.
type ring struct {
	step  time.Duration
	slots []slot
}

func newRing(step time.Duration, n int) ring { return ring{step, make([]slot, n)} }

func (r *ring) number(at time.Time) int64 { return at.Unix() / int64(r.step/time.Second) }

// slot returns the one of that step, empty if it belonged to another; nil where the step is not among the newest.
func (r *ring) slot(now time.Time, number int64) *slot {
	last := r.number(now)
	if number > last || number <= last-int64(len(r.slots)) || number < 0 {
		return nil
	}
	s := &r.slots[number%int64(len(r.slots))]
	if s.Start != number {
		*s = slot{Start: number}
	}
	return s
}

func (r *ring) add(now, at time.Time, c counts) {
	if s := r.slot(now, r.number(at)); s != nil {
		s.add(c)
	}
}

func (s *slot) add(c counts) {
	for i := range c {
		s.Counts[i] += c[i]
	}
}

// merge adds slots from elsewhere, as far as they are still of the newest.
func (r *ring) merge(now time.Time, slots []slot) {
	for i := range slots {
		if min(slots[i].Counts[0], slots[i].Counts[1], slots[i].Counts[2], slots[i].Counts[3]) < 0 {
			continue
		}
		if s := r.slot(now, slots[i].Start); s != nil {
			s.add(slots[i].Counts)
		}
	}
}

// inForce returns the slots that are not empty.
func (r *ring) inForce(now time.Time) []slot {
	var out []slot
	last := r.number(now)
	for number := max(0, last-int64(len(r.slots))+1); number <= last; number++ {
		if s := r.slot(now, number); s.Counts != (counts{}) {
			out = append(out, *s)
		}
	}
	return out
}

// list returns all steps, the oldest first.
func (r *ring) list(now time.Time) []Minute {
	out := make([]Minute, 0, len(r.slots))
	last := r.number(now)
	for number := last - int64(len(r.slots)) + 1; number <= last; number++ {
		m := Minute{At: time.Unix(number*int64(r.step/time.Second), 0).UTC()}
		if s := r.slot(now, number); s != nil {
			m.Accepted, m.Sent, m.Deferred, m.Failed = s.Counts[0], s.Counts[1], s.Counts[2], s.Counts[3]
		}
		out = append(out, m)
	}
	return out
}
