package postmaster

import (
	"slices"
	"time"

	"relayd/pkg/envelope"
)

// window is what was written within the last hour, oldest first.
type window struct {
	entries []*entry
}

type entry struct {
	at time.Time
	to string // Key of the address a notification went to; empty: it is for operators
}

// trim forgets what is an hour old.
func (w *window) trim(now time.Time) {
	n := 0
	for n < len(w.entries) && now.Sub(w.entries[n].at) >= time.Hour {
		n++
	}
	w.entries = slices.Delete(w.entries, 0, n)
}

// to counts the notifications to an address.
func (w *window) to(a envelope.Address) int {
	n, key := 0, a.Key()
	for _, m := range w.entries {
		if m.to == key {
			n++
		}
	}
	return n
}

// take adds a mail; a empty: for operators.
func (w *window) take(now time.Time, a envelope.Address) *entry {
	m := &entry{at: now, to: a.Key()}
	w.entries = append(w.entries, m)
	return m
}

// giveBack takes out a mail that was not written.
func (w *window) giveBack(m *entry) {
	if i := slices.Index(w.entries, m); i >= 0 {
		w.entries = slices.Delete(w.entries, i, i+1)
	}
}
