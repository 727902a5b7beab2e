package queue

import (
	"container/heap"
	"math"
	"runtime"
	"sync"
	"time"

	"relayd/pkg/envelope"
)

// state is envelope.State in one octet.
type state uint8

const (
	stateQueued state = iota
	stateSending
	stateDeferred
	stateUncertain
	stateHeld
	stateFailed
	numStates
)

var stateNames = [numStates]envelope.State{
	envelope.Queued, envelope.Sending, envelope.Deferred, envelope.Uncertain, envelope.Held, envelope.Failed,
}

// stateOf is where a message stands whose state record says s: nobody is sending it.
func stateOf(s envelope.State) state {
	for i, name := range stateNames {
		if name == s && s != envelope.Sending {
			return state(i)
		}
	}
	return stateQueued
}

// waiting reports whether a message in this state belongs into its sender's lane.
func (s state) waiting() bool { return s == stateQueued || s == stateDeferred || s == stateUncertain }

// packedID is an ID without its own allocation: with a million messages queued that is 20 MB.
type packedID [20]byte

func packID(id envelope.ID) (p packedID) {
	copy(p[:], id)
	return p
}

func (p packedID) unpack() envelope.ID { return envelope.ID(p[:]) }

// entry is what memory knows of a message: about 100 octets, map included 150.
type entry struct {
	id            packedID
	stream, shard uint8
	state         state
	before        state  // of a claimed message: what it goes back to when nothing comes of the claim
	chunks        uint16 // 32 GiB at most
	record        uint16 // KiB of the mail record beside the body: with many recipients more than the body itself
	attempts      uint16 // as the newest state record says; at most 65,535
	pos           int32  // in its lane's heap; -1: not in it
	mail, last    uint64 // sequences of the mail record and of the newest state record (0: none)
	size          int64  // octets
	due           int64  // ns since 1970; for a failed message: when it is collected
	lane          *lane
}

// kib rounds octets up.
func kib(n int) uint16 { return uint16((n + 1023) >> 10) }

// footprint is what the message occupies in the storage, in octets.
func (e *entry) footprint() int64 { return e.size + int64(e.record)<<10 }

func (e *entry) place() place { return place{e.stream, e.shard, e.id.unpack()} }

// lane is one sender's waiting mail, earliest due first.
type lane struct {
	sender envelope.Address
	parked string // why the sender cannot send now; empty: it can
	count  int    // entries that point here, waiting or not
	heap   []*entry
}

func (l *lane) Len() int { return len(l.heap) }
func (l *lane) Less(i, j int) bool {
	a, b := l.heap[i], l.heap[j]
	if a.due != b.due {
		return a.due < b.due
	}
	return string(a.id[:]) < string(b.id[:]) // order of acceptance
}
func (l *lane) Swap(i, j int) {
	l.heap[i], l.heap[j] = l.heap[j], l.heap[i]
	l.heap[i].pos, l.heap[j].pos = int32(i), int32(j)
}
func (l *lane) Push(x any) {
	e := x.(*entry)
	e.pos = int32(len(l.heap))
	l.heap = append(l.heap, e)
}
func (l *lane) Pop() any {
	n := len(l.heap) - 1
	e := l.heap[n]
	l.heap[n] = nil
	l.heap = l.heap[:n]
	e.pos = -1
	return e
}

// index is the schedule: every message by id, the waiting ones by sender and due time.
type index struct {
	mu      sync.Mutex // guards all below
	entries map[packedID]*entry
	lanes   map[string]*lane // by Address.Key
	stored  *space           // told of every octet
	watch   func(sender envelope.Address, due time.Time)
}

func (x *index) init(stored *space) {
	x.stored = stored
	x.entries = map[packedID]*entry{}
	x.lanes = map[string]*lane{}
}

// laneFor returns the sender's lane, a new one where there is none. The caller holds mu.
func (x *index) laneFor(sender envelope.Address) *lane {
	l := x.lanes[sender.Key()]
	if l == nil {
		l = &lane{sender: sender}
		x.lanes[sender.Key()] = l
	}
	return l
}

// add takes in a message that is on the disk. One it knows already stays as it is.
func (x *index) add(e *entry, sender envelope.Address) {
	x.mu.Lock()
	if x.entries[e.id] != nil {
		x.mu.Unlock()
		return
	}
	e.lane = x.laneFor(sender)
	e.lane.count++
	e.pos = -1
	x.entries[e.id] = e
	x.stored.stored.Add(e.footprint())
	tell := x.enqueue(e)
	x.mu.Unlock()
	tell()
}

// enqueue puts e into its lane if it waits, and returns the call that tells the watcher, to be made without mu.
func (x *index) enqueue(e *entry) func() {
	if e.state.waiting() && e.pos < 0 {
		heap.Push(e.lane, e)
	}
	if x.watch == nil || e.pos != 0 {
		return func() {}
	}
	watch, sender, due := x.watch, e.lane.sender, time.Unix(0, e.due)
	return func() { watch(sender, due) }
}

// take removes and returns the lane's first entry due at now, marked sending, and when the next one is due.
func (x *index) take(sender envelope.Address, now time.Time) (e *entry, next time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l := x.lanes[sender.Key()]
	if l == nil {
		return nil, time.Time{}
	}
	if len(l.heap) > 0 && l.heap[0].due <= now.UnixNano() {
		e = l.heap[0]
		x.grab(e)
	}
	if len(l.heap) > 0 {
		next = time.Unix(0, l.heap[0].due)
	}
	return e, next
}

// update gives e a new state and due time.
func (x *index) update(e *entry, s state, due time.Time) {
	x.mu.Lock()
	if x.entries[e.id] != e {
		x.mu.Unlock()
		return
	}
	if e.pos >= 0 {
		heap.Remove(e.lane, int(e.pos))
	}
	e.state = s
	if !due.IsZero() {
		e.due = due.UnixNano()
	}
	tell := x.enqueue(e)
	x.mu.Unlock()
	tell()
}

// park notes why the sender cannot send now, "" that it can.
func (x *index) park(sender envelope.Address, reason string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l := x.laneFor(sender)
	l.parked = reason
	x.prune(l)
}

// prune forgets a lane with nothing in it and nothing to remember. The caller holds mu.
func (x *index) prune(l *lane) {
	if l.count == 0 && l.parked == "" {
		delete(x.lanes, l.sender.Key())
	}
}

// drop forgets e.
func (x *index) drop(e *entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.entries[e.id] != e {
		return
	}
	if e.pos >= 0 {
		heap.Remove(e.lane, int(e.pos))
	}
	delete(x.entries, e.id)
	x.stored.stored.Add(-e.footprint())
	e.lane.count--
	x.prune(e.lane)
}

func (x *index) get(id envelope.ID) *entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.find(id)
}

// find is get for a caller who holds mu.
func (x *index) find(id envelope.ID) *entry {
	if len(id) != len(packedID{}) {
		return nil
	}
	return x.entries[packID(id)]
}

// grab takes e out of its lane and makes the caller its only owner. The caller holds mu.
func (x *index) grab(e *entry) {
	if e.pos >= 0 {
		heap.Remove(e.lane, int(e.pos))
	}
	e.before, e.state = e.state, stateSending
}

// giveBack undoes take and grab. It does nothing to an entry nobody holds.
func (x *index) giveBack(e *entry) {
	x.mu.Lock()
	tell := func() {}
	if x.entries[e.id] == e && e.state == stateSending {
		e.state = e.before
		tell = x.enqueue(e)
	}
	x.mu.Unlock()
	tell()
}

// rest ends a claim like giveBack, and moves the entry's due time in memory.
func (x *index) rest(e *entry, until time.Time) {
	x.mu.Lock()
	tell := func() {}
	if x.entries[e.id] == e && e.state == stateSending {
		e.state, e.due = e.before, until.UnixNano()
		tell = x.enqueue(e)
	}
	x.mu.Unlock()
	tell()
}

// noted changes what e goes back to at the end of its claim.
func (x *index) noted(e *entry, s state, due time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e.before = s
	if !due.IsZero() {
		e.due = due.UnixNano()
	}
}

// records returns the sequences of e's mail record and of its newest state record.
func (x *index) records(e *entry) (mail, last uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return e.mail, e.last
}

// uncertain reports whether e is, or was when it was claimed.
func (x *index) uncertain(e *entry) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return e.state == stateUncertain || e.state == stateSending && e.before == stateUncertain
}

// wrote notes the sequence of e's newest state record, and the attempts in it.
func (x *index) wrote(e *entry, last uint64, attempts int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e.last, e.attempts = last, clampAttempts(attempts)
}

func clampAttempts(n int) uint16 { return uint16(min(max(n, 0), math.MaxUint16)) }

// walkSlice is how many entries are visited before others get their turn at the index: well under a millisecond's worth.
const walkSlice = 1024

// walk calls visit for every entry, with mu held, but lets others have it in between and calls pause then. What comes or
// goes meanwhile may or may not be visited.
func (x *index) walk(visit func(*entry), pause func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := 0
	for _, e := range x.entries {
		visit(e)
		if n++; n%walkSlice == 0 {
			x.mu.Unlock()
			runtime.Gosched() // or this goroutine has the mutex again before those it just woke get to run
			pause()
			x.mu.Lock()
		}
	}
}
