package record

import (
	"sync"

	"relayd/pkg/envelope"
)

// Buffer holds records on their way to the disk, up to a bound. All methods may be called at once.
type Buffer struct {
	Begun chan struct{} // capacity 1: there is something to take, or to tell
	Full  chan struct{} // capacity 1: it should be taken now

	limit int // octets
	batch int // records

	mu      sync.Mutex // guards what follows; held for microseconds
	buf     []byte
	spare   []byte // empty: the one to fill while buf is written
	records int
	dropped int // since the last batch was taken
	closed  bool
}

// NewBuffer returns a buffer that takes records while it holds less than limit octets, and calls itself full at half of
// that, or at batch records.
func NewBuffer(limit, batch int) *Buffer {
	return &Buffer{limit: limit, batch: batch, Begun: make(chan struct{}, 1), Full: make(chan struct{}, 1)}
}

// Add encodes s. It reports false, and counts s as dropped, where there is no room, or s has no valid id.
func (b *Buffer) Add(s *envelope.Step) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || len(b.buf) >= b.limit || !s.ID.Valid() {
		b.dropped++
		poke(b.Begun)
		return false
	}
	b.buf = Append(b.buf, s)
	b.records++
	if b.records == 1 {
		poke(b.Begun)
	}
	if b.records >= b.batch || len(b.buf) >= b.limit/2 {
		poke(b.Full)
	}
	return true
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Take hands out what was added, and how many steps were dropped since the last time. The batch goes to Recycle or
// GiveBack.
func (b *Buffer) Take() (batch []byte, records, dropped int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	dropped, b.dropped = b.dropped, 0
	if b.records == 0 {
		return nil, 0, dropped
	}
	batch, records = b.buf, b.records
	b.buf, b.spare, b.records = b.spare, nil, 0
	return batch, records, dropped
}

// Recycle takes the memory of a batch back, but not that of a burst.
func (b *Buffer) Recycle(batch []byte) {
	if cap(batch) > b.limit/8 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spare = batch[:0]
}

// GiveBack puts a batch before what was added since. It reports false where both are more than the buffer may hold.
func (b *Buffer) GiveBack(batch []byte, records int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(batch)+len(b.buf) > b.limit+Head+MaxPayload {
		return false
	}
	b.buf, b.spare = append(batch, b.buf...), b.buf[:0]
	b.records += records
	poke(b.Begun)
	return true
}

// Close has Add drop everything from now on.
func (b *Buffer) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}
