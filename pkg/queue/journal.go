package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"relayd/pkg/envelope"
)

// The journal says which messages are between their final dot and their outcome. It is one file of fixed slots, written
// in place and never synced: what was written outlives the process, and kill -9 with it, in the system's page cache. After
// a power cut marks may be missing or stale. A mark names the state record it was made on, so one that was settled
// before the process died counts for nothing.
//
//	octets 0–19  id
//	      20–27  sequence of the newest state record when the mark was made, big-endian; 0: none
//	      28–35  time of the mark, ns since 1970, big-endian
//	      36–39  CRC-32 (IEEE) of the octets before, big-endian
//	      40–63  zero
//
// A slot of zeros is free; one whose check does not match was being written and says nothing.
const (
	slotBytes   = 64
	slotChecked = 36
)

// journalName is the journal's file in Options.Dir.
const journalName = "inflight"

// maxJournal bounds what is read at start, in octets: 65,536 messages sent at once.
const maxJournal = slotBytes << 16

// interrupted is a mark found at start.
type interrupted struct {
	id   packedID
	last uint64
	at   time.Time
}

// journal is the file and what memory knows of it. A nil journal is a queue without one.
type journal struct {
	file *os.File
	log  *zap.Logger

	mu     sync.Mutex // guards what follows, and the order of writes
	slots  map[packedID]int64
	free   []int64 // below next
	next   int64   // the first slot never used
	failed bool    // the last write failed, and was logged
	closed bool
}

// openJournal opens or creates dir's journal and returns the marks of the run before.
func openJournal(dir string, log *zap.Logger) (*journal, []interrupted, error) {
	file, err := os.OpenFile(filepath.Join(dir, journalName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxJournal))
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return &journal{file: file, log: log, slots: map[packedID]int64{}}, readJournal(data), nil
}

// readJournal returns the marks in a journal's content. Anything that is not one is passed over.
func readJournal(data []byte) (marks []interrupted) {
	for ; len(data) >= slotBytes; data = data[slotBytes:] {
		if binary.BigEndian.Uint32(data[slotChecked:]) != crc32.ChecksumIEEE(data[:slotChecked]) {
			continue
		}
		m := interrupted{
			id:   packedID(data[:20]),
			last: binary.BigEndian.Uint64(data[20:]),
			at:   time.Unix(0, int64(binary.BigEndian.Uint64(data[28:]))),
		}
		if m.id.unpack().Valid() {
			marks = append(marks, m)
		}
	}
	return marks
}

// encode returns the slot that holds m.
func (m *interrupted) encode() []byte {
	b := make([]byte, slotBytes)
	copy(b, m.id[:])
	binary.BigEndian.PutUint64(b[20:], m.last)
	binary.BigEndian.PutUint64(b[28:], uint64(m.at.UnixNano()))
	binary.BigEndian.PutUint32(b[slotChecked:], crc32.ChecksumIEEE(b[:slotChecked]))
	return b
}

// clear empties the journal.
func (j *journal) clear() {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.note(j.file.Truncate(0))
	clear(j.slots)
	j.free, j.next = j.free[:0], 0
}

// mark writes m into a free slot, unless its message has one already.
func (j *journal) mark(m interrupted) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, marked := j.slots[m.id]; marked || j.closed {
		return
	}
	slot := j.next
	if n := len(j.free); n > 0 {
		slot, j.free = j.free[n-1], j.free[:n-1]
	} else {
		j.next++
	}
	j.slots[m.id] = slot
	_, err := j.file.WriteAt(m.encode(), slot*slotBytes)
	j.note(err)
}

// unmark frees the message's slot; without one it does nothing.
func (j *journal) unmark(id packedID) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	slot, marked := j.slots[id]
	if !marked || j.closed {
		return
	}
	delete(j.slots, id)
	j.free = append(j.free, slot)
	_, err := j.file.WriteAt(make([]byte, slotBytes), slot*slotBytes)
	j.note(err)
}

// note logs the first failed write of a series. Mail goes out all the same: what is lost is the flag on a message that
// happens to be sent when the process dies.
func (j *journal) note(err error) {
	if err != nil && !j.failed {
		j.log.Error("the journal of messages being sent cannot be written: after a crash a possible duplicate may go out unflagged", zap.Error(err))
	}
	j.failed = err != nil
}

// close leaves an empty file, but for what is still marked.
func (j *journal) close() error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	var err error
	if len(j.slots) == 0 {
		err = j.file.Truncate(0)
	}
	return errors.Join(err, j.file.Close())
}

// recoverers is how many records are written at once at start: enough for all streams to sync together.
const recoverers = 32

// interruptedReply stands where the reply would.
const interruptedReply = "no reply: relayd was cut off after the end of the message"

// recover makes Uncertain what the last run was sending when it was cut off, in the index and on the disk, and empties
// the journal. A message whose record cannot be written now stays marked, and is Uncertain in memory.
func (q *Queue) recover(ctx context.Context, marks []interrupted) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	cut := map[*entry]interrupted{}
	for _, m := range marks {
		e := q.index.get(m.id.unpack())
		if e != nil && e.last == m.last && e.state.waiting() { // else it was sent, settled or held before the process died
			cut[e] = m
		}
	}
	var group errgroup.Group
	group.SetLimit(recoverers)
	var mu sync.Mutex // guards cut
	for e, m := range maps.Clone(cut) {
		group.Go(func() error {
			if err := q.recoverOne(ctx, e, m.at); err != nil {
				q.log.Error("message that was being sent could not be recorded as uncertain", zap.String("id", string(m.id.unpack())), zap.Error(err))
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			delete(cut, e)
			return nil
		})
	}
	_ = group.Wait() // logged above, each by itself
	q.journal.clear()
	for _, m := range cut {
		q.journal.mark(m)
	}
}

// recoverOne records that the message was being sent when the process died, at or soon after at.
func (q *Queue) recoverOne(ctx context.Context, e *entry, at time.Time) error {
	q.metrics.interrupted.Inc()
	defer func() { q.index.update(e, stateUncertain, time.Now()) }()
	claim, err := q.fetch(ctx, e)
	if err != nil {
		return err
	}
	env, p := claim.Envelope, claim.Progress
	flagInterrupted(env, &p, at)
	q.log.Warn("message was being sent when relayd was cut off: it will be sent again, as a possible duplicate",
		zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)), zap.Time("at", at))
	q.record(envelope.Step{ID: env.ID, At: at, What: envelope.StepAttempt, State: p.State, Attempt: p.Attempts, Due: p.Due, Reply: p.Reason})
	record, err := encodeState(&p)
	if err != nil {
		return err
	}
	_, last := q.index.records(e)
	seq, err := q.store.Load().putState(ctx, e.place(), record, last)
	if err == nil {
		q.index.wrote(e, seq, p.Attempts)
	}
	return err
}

// flagInterrupted makes those recipients uncertain to whom the message may have been sent in an attempt at the given
// time: the open ones, but for those whose own retry was not due for another minute.
func flagInterrupted(env *envelope.Envelope, p *envelope.Progress, at time.Time) {
	results := make([]envelope.Result, len(env.Recipients))
	for i := range results {
		results[i].State = envelope.Queued
	}
	copy(results, p.Results)
	for _, i := range p.Open(env) {
		if r := &results[i]; r.Due.Before(at.Add(time.Minute)) {
			*r = envelope.Result{State: envelope.Uncertain, Reply: interruptedReply, Attempts: r.Attempts + 1}
		}
	}
	now := time.Now()
	p.State, p.Reason, p.Results = envelope.Uncertain, interruptedReply, results
	p.Attempts, p.Due, p.Changed = p.Attempts+1, now, now
}
