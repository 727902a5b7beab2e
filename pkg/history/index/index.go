// Package index is the history's memory: of each message what a search filters by, and where its records stand.
//
// Strings are kept as hashes of 32 bits or fewer, so an answer may name a message too many, never one too few: whoever
// asks reads the records and judges. A message costs about 100 octets with three records and one recipient; Bytes says
// how many in all.
package index

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"relayd/pkg/envelope"
	"relayd/pkg/history/record"
)

// key is an [envelope.ID].
type key [record.IDLen]byte

// row is one message: 48 octets.
type row struct {
	received int64 // ms since 1970: when it was accepted, or what its id says
	id       key
	last     uint32 // s since 1970: its newest step
	sender   uint32 // hash of the address
	domain   uint32 // and of its domain
	msgID    uint32 // hash of the Message-ID
	state    uint8  // the last known, in stateNames
	fate     fate
	expired  bool // no longer to be found; waits for its records to leave the disk
}

func (r *row) compare(received int64, id key) int {
	if c := cmp.Compare(r.received, received); c != 0 {
		return c
	}
	return bytes.Compare(r.id[:], id[:])
}

// fate is what a message's history waits for.
type fate uint8

const (
	open   fate = iota // to be settled
	ended              // sent, dropped, or removed after its failure
	failed             // failed, and still kept by the queue
)

// Dropped is the state of a message that an operator dropped; queries may ask for it.
const Dropped envelope.State = "dropped"

// stateNames turns states into octets. The last stands for those not listed: the record on the disk knows which.
var stateNames = [...]envelope.State{"", envelope.Queued, envelope.Sending, envelope.Sent, envelope.Deferred, envelope.Held,
	envelope.Parked, envelope.Uncertain, envelope.Failed, Dropped, "(other)"}

func stateCode(s envelope.State) uint8 {
	for i, name := range stateNames {
		if name == s {
			return uint8(i)
		}
	}
	return uint8(len(stateNames) - 1)
}

// StateAfter returns a message's state after a step that says so much about it. The last step written decides, not the
// one with the latest time: clocks are set back. But StepAccepted decides only where nothing else has: the queue may
// report it after the first attempt.
func StateAfter(was, said envelope.State, what string) envelope.State {
	switch {
	case what == envelope.StepAccepted && was != "":
		return was
	case said == "" && what == envelope.StepDropped:
		return Dropped
	case said == "":
		return was
	}
	return said
}

// MessageIDKey is what of a Message-ID is compared: what stands between its angle brackets, to 1,000 octets.
func MessageIDKey(s string) string {
	return record.Clip(strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">"), 1000)
}

// Index finds rows by id and by time of acceptance. A row keeps its number until no record is its own; rows that
// expired are out of table and order already. An Index is for one goroutine at a time.
type Index struct {
	seed   maphash.Seed
	chunks []*[chunkRows]row
	used   uint32   // rows ever handed out
	free   []uint32 // of them, those that may be used again
	gone   []uint32 // those expired, with records left
	table  []uint32 // open addressing by id: row + 1, 0 is free; a power of two
	order  []uint32 // by acceptance, once sorted
	sorted bool
	low    []byte // scratch of hash
}

// chunkRows is the number of rows allocated at once, so that growing never copies.
const chunkRows = 1 << 12

// rowBytes is what a row costs with its place in order, and in table at the worst filling.
const rowBytes = 48 + 4 + 4*4

// New returns an empty index, in which messages are found only after Sort.
func New() *Index { return &Index{seed: maphash.MakeSeed()} }

// Len returns the number of messages to be found.
func (x *Index) Len() int { return len(x.order) }

// Bytes returns, nearly, the octets of memory x and parts take.
func (x *Index) Bytes(parts []*Part) int64 {
	n := rowBytes * int64(x.used-uint32(len(x.free)))
	for _, p := range parts {
		n += 8 * int64(len(p.entries)+len(p.mentions))
	}
	return n
}

func (x *Index) row(n uint32) *row { return &x.chunks[n/chunkRows][n%chunkRows] }

// slot returns where id is in the table, or where it would go.
func (x *Index) slot(id []byte) int {
	mask := len(x.table) - 1
	i := int(maphash.Bytes(x.seed, id)) & mask
	for x.table[i] != 0 && !bytes.Equal(x.row(x.table[i] - 1).id[:], id) {
		i = (i + 1) & mask
	}
	return i
}

// find returns the row of id.
func (x *Index) find(id envelope.ID) (uint32, bool) {
	if len(x.table) == 0 {
		return 0, false
	}
	n := x.table[x.slot([]byte(id))]
	return n - 1, n != 0
}

// add returns the row of id, a new one where there is none.
func (x *Index) add(id []byte) (n uint32, fresh bool) {
	if 4*(len(x.order)+1) > 3*len(x.table) {
		x.rehash()
	}
	i := x.slot(id)
	if x.table[i] != 0 {
		return x.table[i] - 1, false
	}
	if last := len(x.free) - 1; last >= 0 {
		n, x.free = x.free[last], x.free[:last]
	} else {
		if n = x.used; n%chunkRows == 0 {
			x.chunks = append(x.chunks, new([chunkRows]row))
		}
		x.used++
	}
	*x.row(n) = row{id: key(id)}
	x.table[i] = n + 1
	return n, true
}

// rehash makes a table for the rows in order, with room to grow.
func (x *Index) rehash() {
	size := 1 << 10
	for size < 2*(len(x.order)+1) {
		size *= 2
	}
	x.table = make([]uint32, size)
	for _, n := range x.order {
		x.table[x.slot(x.row(n).id[:])] = n + 1
	}
}

// place enters row n into order.
func (x *Index) place(n uint32) {
	r := x.row(n)
	last := len(x.order) - 1
	if !x.sorted || last < 0 || x.row(x.order[last]).compare(r.received, r.id) < 0 {
		x.order = append(x.order, n)
		return
	}
	x.order = slices.Insert(x.order, x.before(r.received, r.id), n)
}

// before returns how many rows were accepted before the moment and id.
func (x *Index) before(received int64, id key) int {
	n, _ := slices.BinarySearchFunc(x.order, id, func(n uint32, id key) int { return x.row(n).compare(received, id) })
	return n
}

// Sort ends a first run of Apply, whose rows came in any order.
func (x *Index) Sort() {
	compare := func(a, b uint32) int { return x.row(a).compare(x.row(b).received, x.row(b).id) }
	if !slices.IsSortedFunc(x.order, compare) {
		slices.SortFunc(x.order, compare)
	}
	x.sorted = true
}

// hash of text without case.
func (x *Index) hash(text []byte) uint32 {
	x.low = x.low[:0]
	for _, c := range text {
		if c >= utf8.RuneSelf {
			x.low = bytes.ToLower(text)
			break
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		x.low = append(x.low, c)
	}
	return uint32(maphash.Bytes(x.seed, x.low))
}

// hashAddress returns the hashes of an address and of its domain.
func (x *Index) hashAddress(address []byte) (whole, domain uint32) {
	at := bytes.LastIndexByte(address, '@')
	return x.hash(address), x.hash(address[at+1:])
}

// hashExact is for text in which case matters.
func (x *Index) hashExact(s string) uint32 { return uint32(maphash.String(x.seed, s)) }

// mentionHash packs a recipient into 32 bits: 12 of the domain, 20 of the address.
func mentionHash(whole, domain uint32) uint32 { return domain<<20 | whole>>12 }

// Apply enters the record with that payload, which stands at offset of p. now bounds the time it tells: a clock that was
// ahead must not keep a message for years.
func (x *Index) Apply(p *Part, offset int64, payload []byte, now time.Time) {
	n, fresh := x.add(payload[:record.IDLen])
	p.note(n, offset)
	r := x.row(n)
	was := *r
	if fresh {
		r.received = r.messageID().Time().UnixMilli()
	}
	var what, state []byte
	for f := record.FieldsOf(payload); f.Next(); {
		switch f.Tag {
		case record.TagAt:
			r.last = max(r.last, uint32(max(0, min(int64(f.Num)/1e9, now.Unix()))))
		case record.TagWhat:
			what = f.Text
		case record.TagState:
			state = f.Text
		case record.TagReceived:
			r.received = int64(f.Num) / 1e6
		case record.TagSender:
			r.sender, r.domain = x.hashAddress(f.Text)
		case record.TagMessageID:
			r.msgID = x.hashExact(MessageIDKey(string(f.Text)))
		case record.TagRecipient:
			p.mentions = append(p.mentions, mention{n, mentionHash(x.hashAddress(f.Text))})
		}
	}
	r.settle(envelope.State(state), string(what))
	switch {
	case fresh:
		x.place(n)
	case r.received != was.received && x.sorted:
		i := x.before(was.received, was.id)
		x.order = slices.Delete(x.order, i, i+1)
		x.place(n)
	}
}

// settle takes over what a step says of the state.
func (r *row) settle(said envelope.State, what string) {
	r.state = stateCode(StateAfter(stateNames[r.state], said, what))
	switch now := stateNames[r.state]; {
	case what == envelope.StepDropped, what == envelope.StepExpired, now == envelope.Sent, now == Dropped:
		r.fate = ended
	case now == envelope.Failed:
		r.fate = failed
	default:
		r.fate = open
	}
}

// messageID returns r's id as the rest of relayd has it.
func (r *row) messageID() envelope.ID { return envelope.ID(r.id[:]) }
