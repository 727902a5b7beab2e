package index

import (
	"slices"
	"time"

	"relayd/pkg/envelope"
)

// entry says whose record stands where in a segment.
type entry struct {
	row    uint32
	offset uint32
}

// mention is a recipient of a message accepted in a segment.
type mention struct {
	row  uint32
	hash uint32 // see mentionHash
}

// Part is what memory knows of one segment of the history: its records, in the order written. Offsets are below 4 GiB.
type Part struct {
	entries  []entry
	mentions []mention
	lo, hi   uint32 // no row of entries is outside
}

func (p *Part) note(row uint32, offset int64) {
	if len(p.entries) == 0 {
		p.lo, p.hi = row, row
	}
	p.lo, p.hi = min(p.lo, row), max(p.hi, row)
	p.entries = append(p.entries, entry{row, uint32(offset)})
}

// Close gives back the memory p has in reserve for more records.
func (p *Part) Close() { p.entries, p.mentions = fitted(p.entries), fitted(p.mentions) }

func fitted[T any](s []T) []T {
	if 8*cap(s) < 9*len(s)+64 {
		return s
	}
	return slices.Clone(s)
}

// bits is a set of rows.
type bits []uint64

func newBits(n uint32) bits { return make(bits, (n+63)/64) }

func (b bits) set(n uint32) { b[n/64] |= 1 << (n % 64) }

func (b bits) has(n uint32) bool { return b[n/64]&(1<<(n%64)) != 0 }

func (b bits) setAll(p *Part) {
	for _, e := range p.entries {
		b.set(e.row)
	}
}

// Expiry says what is over: a message with that fate whose newest step is not after the time. One that looks open is
// asked about, too.
type Expiry struct {
	Ended, Failed, Open time.Time
	Waiting             func(envelope.ID) bool // whether it is open indeed
}

func (e *Expiry) over(r *row) bool {
	last := int64(r.last)
	switch r.fate {
	case ended:
		return last <= e.Ended.Unix()
	case failed:
		return last <= e.Failed.Unix()
	case open:
		return last <= e.Open.Unix() && !e.Waiting(r.messageID())
	}
	return false
}

// Expire takes the messages that are over out of the index, and reports whether records of such messages are left.
func (x *Index) Expire(e Expiry) (left bool) {
	before := len(x.order)
	x.order = slices.DeleteFunc(x.order, func(n uint32) bool {
		r := x.row(n)
		if r.expired = e.over(r); r.expired {
			x.gone = append(x.gone, n)
		}
		return r.expired
	})
	if len(x.order) < before {
		x.rehash()
	}
	return len(x.gone) > 0
}

// Release frees the memory of messages that have no record in parts, which are all there are.
func (x *Index) Release(parts []*Part) {
	owned := newBits(x.used)
	for _, p := range parts {
		owned.setAll(p)
	}
	drop := func(n uint32) bool {
		if owned.has(n) {
			return false
		}
		x.free = append(x.free, n)
		return true
	}
	before := len(x.order)
	if x.order = slices.DeleteFunc(x.order, drop); len(x.order) < before {
		x.rehash()
	}
	x.gone = slices.DeleteFunc(x.gone, drop)
}

// Sieve tells which records must stay. Give it the parts from the oldest on: a record of an expired message stays where
// an older one of that message does. Else what is left of it would look, after a restart, like a message under way.
type Sieve struct {
	x     *Index
	older bits
}

// NewSieve returns a sieve that has seen no part.
func (x *Index) NewSieve() *Sieve { return &Sieve{x, newBits(x.used)} }

func (s *Sieve) keep(row uint32) bool { return !s.x.row(row).expired || s.older.has(row) }

// Live returns how many of the octets of p, which ends at size, are records that must stay. Damage counts as part of the
// record before it.
func (s *Sieve) Live(p *Part, size int64) (live int64) {
	for i, e := range p.entries {
		end := size
		if i+1 < len(p.entries) {
			end = int64(p.entries[i+1].offset)
		}
		if s.keep(e.row) {
			live += end - int64(e.offset)
		}
	}
	return live
}

// Pass says that p stays as it is.
func (s *Sieve) Pass(p *Part) { s.older.setAll(p) }

// Rewrite prepares a copy of p. move is to be called with the offsets of p's records in rising order: it returns false
// where the record is not to be copied, else it takes at for its new offset. finish makes p the copy.
func (s *Sieve) Rewrite(p *Part) (move func(offset, at int64) bool, finish func()) {
	rest := p.entries
	var moved []entry
	move = func(offset, at int64) bool {
		for len(rest) > 0 && int64(rest[0].offset) < offset {
			rest = rest[1:]
		}
		if len(rest) == 0 || int64(rest[0].offset) != offset || !s.keep(rest[0].row) {
			return false
		}
		moved = append(moved, entry{rest[0].row, uint32(at)})
		return true
	}
	finish = func() {
		p.entries = moved
		p.mentions = slices.DeleteFunc(p.mentions, func(m mention) bool { return !s.keep(m.row) })
		p.Close()
	}
	return move, finish
}
