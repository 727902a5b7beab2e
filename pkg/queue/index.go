package queue

import (
	"container/heap"
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

func stateOf(s envelope.State) state {
	for i, name := range stateNames {
		if name == s {
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

// drop forgets e. Its lane stays: a relay's senders are few and come back.
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
}

func (x *index) get(id envelope.ID) *entry {
	x.mu.Lock()
	defer x.mu.Unlock()
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

// records returns the sequences of e's mail record and of its newest state record.
func (x *index) records(e *entry) (mail, last uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return e.mail, e.last
}

// wrote notes the sequence of e's newest state record.
func (x *index) wrote(e *entry, last uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e.last = last
}
