package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"relayd/pkg/envelope"
)

// loadStall is how long loading waits for the next record before it looks for what stands in the way. On a slow disk that
// is nothing, and it goes on.
const loadStall = 2 * time.Second

// attach makes conns the queue's store and brings the index in line with what the streams hold. After a reopen the index
// is already there and knows more than the streams (what is being sent right now); it gains what it missed and loses,
// loudly, what the disk lost.
func (q *Queue) attach(ctx context.Context, conns []*nats.Conn) error {
	st, err := openStore(ctx, conns, &q.opts)
	if err != nil {
		return err
	}
	sound, err := q.audit(ctx, st)
	if err != nil {
		return err
	}
	loads := make([]*loading, st.layout.Streams)
	group, gctx := errgroup.WithContext(ctx)
	for k := range st.layout.Streams {
		loads[k] = &loading{q: q, stream: uint8(k), found: map[packedID]*found{}}
		group.Go(func() error { return loads[k].read(gctx, st.mail[k]) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("load queue: %w", err)
	}
	q.pendingMu.Lock()
	refused := maps.Clone(q.refused) // nothing adds to it while there is no store
	q.pendingMu.Unlock()
	seen := map[packedID]bool{}
	for _, l := range loads {
		if err := l.merge(ctx, st, seen, refused); err != nil {
			return fmt.Errorf("load queue: %w", err)
		}
	}
	if lost := q.missing(seen); lost {
		sound = false
	}
	for _, l := range loads {
		sound = sound && !l.damaged
	}
	if sound {
		for _, l := range loads {
			if err := l.sweep(ctx, st); err != nil {
				return fmt.Errorf("collect leftovers: %w", err)
			}
		}
	}
	q.pendingMu.Lock()
	clear(q.refused) // what was stored of it is removed, the rest never will be
	q.pendingMu.Unlock()
	q.store.Store(st)
	return nil
}

// found is a message as its records tell it.
type found struct {
	entry  *entry
	sender envelope.Address
	reason string // why it is held, where loading itself decided so
}

// lone is a state record whose mail record was not met.
type lone struct {
	shard uint8
	seq   uint64
}

// loading reads one mail stream.
type loading struct {
	q      *Queue
	stream uint8
	found  map[packedID]*found
	alone  map[packedID]lone // state records without a mail record so far

	count   uint64 // records read
	damaged bool   // the server counts more of them
}

func (l *loading) read(ctx context.Context, stream jetstream.Stream) error {
	l.alone = map[packedID]lone{}
	info, err := stream.Info(ctx)
	if err != nil {
		return err
	}
	if info.State.Msgs == 0 {
		return nil
	}
	for last, done := uint64(0), false; !done; {
		if last, done, err = l.follow(ctx, stream, last, info.State.LastSeq); err != nil {
			return fmt.Errorf("read %s: %w", info.Config.Name, err)
		}
		if !done {
			if last, done, err = l.pass(ctx, stream, last); err != nil {
				return fmt.Errorf("read %s: %w", info.Config.Name, err)
			}
		}
	}
	if l.damaged = l.count < info.State.Msgs; !l.damaged {
		return nil
	}
	return l.name(ctx, stream)
}

// follow reads the records behind sequence last with a consumer, to the end or until it stands still.
func (l *loading) follow(ctx context.Context, stream jetstream.Stream, last, end uint64) (uint64, bool, error) {
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: last + 1, HeadersOnly: true,
	})
	if err != nil {
		return last, false, err
	}
	msgs, err := consumer.Messages(jetstream.PullMaxMessages(5000))
	if err != nil {
		return last, false, err
	}
	defer msgs.Stop()
	for {
		nctx, cancel := context.WithTimeout(ctx, loadStall)
		msg, err := msgs.Next(jetstream.NextContext(nctx))
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return last, false, nil
		}
		if err != nil {
			return last, false, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return last, false, err
		}
		last = meta.Sequence.Stream
		record := []byte(msg.Headers().Get(headerEnvelope))
		if msg.Headers().Get(headerLength) != "" {
			whole, err := stream.GetMsg(ctx, last)
			if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
				return last, false, err
			}
			if err == nil { // else unreadable: an empty record is a damaged one
				record, _ = splitRecord(whole.Header, whole.Data)
			}
		}
		l.take(msg.Subject(), last, record)
		if meta.NumPending == 0 || last == end {
			return last, true, nil
		}
	}
}

// parseSubject reads the place out of relayd.<kind>.<k>.<s>.<id>, whatever follows.
func parseSubject(subject string) (place, bool) {
	parts := strings.Split(subject, ".")
	if len(parts) < 5 || !envelope.ID(parts[4]).Valid() {
		return place{}, false
	}
	stream, err1 := strconv.ParseUint(parts[2], 10, 8)
	shard, err2 := strconv.ParseUint(parts[3], 10, 8)
	return place{uint8(stream), uint8(shard), envelope.ID(parts[4])}, err1 == nil && err2 == nil
}

// take notes one record: relayd.mail.<k>.<s>.<id> or relayd.state.<k>.<s>.<id>.
func (l *loading) take(subject string, seq uint64, record []byte) {
	l.count++
	at, ok := parseSubject(subject)
	id := packID(at.id)
	ok = ok && at.stream == l.stream
	switch {
	default:
		l.q.log.Error("queue holds a record with a subject that is not relayd's", zap.String("subject", subject))
	case ok && subject == at.subject("mail"):
		l.found[id] = l.readMail(&entry{id: id, stream: at.stream, shard: at.shard, mail: seq, last: l.alone[id].seq}, record)
		delete(l.alone, id)
	case ok && subject == at.subject("state"):
		f := l.found[id]
		if f == nil {
			l.alone[id] = lone{at.shard, seq}
			return
		}
		l.readState(f, seq, record)
	}
}

func (l *loading) readMail(e *entry, record []byte) *found {
	f := &found{entry: e}
	var env envelope.Envelope
	if err := env.Decode(record); err != nil {
		l.q.quarantined(e.id.unpack(), err)
		e.state, f.reason = stateHeld, err.Error()
		return f
	}
	e.size, e.chunks, e.record = env.Size, uint16(env.Chunks), kib(len(record))
	e.due, f.sender = env.Received.UnixNano(), env.Sender
	return f
}

func (l *loading) readState(f *found, seq uint64, record []byte) {
	f.entry.last = seq
	if f.reason != "" {
		return
	}
	var p envelope.Progress
	if err := p.Decode(record); err != nil {
		l.q.quarantined(f.entry.id.unpack(), err)
		f.entry.state, f.reason = stateHeld, err.Error()
		return
	}
	f.entry.state, f.entry.attempts = stateOf(p.State), clampAttempts(p.Attempts)
	if !p.Due.IsZero() { // a held message has none of its own
		f.entry.due = p.Due.UnixNano()
	}
}

// merge brings the index up to the stream and clears leftovers away.
func (l *loading) merge(ctx context.Context, st *store, seen map[packedID]bool, refused map[envelope.ID]bool) error {
	for id, f := range l.found {
		if refused[id.unpack()] { // its client was told to send again, and has
			if err := st.remove(ctx, st.locate(f.entry.place(), "mail", f.entry.mail)); err != nil {
				return err
			}
			delete(l.found, id)
			continue
		}
		seen[id] = true
		l.q.index.add(f.entry, f.sender)
	}
	return nil
}

// sweep removes the leftovers of crashes: state records and chunks without a mail record.
func (l *loading) sweep(ctx context.Context, st *store) error {
	for id, last := range l.alone {
		if err := st.removeState(ctx, place{l.stream, last.shard, id.unpack()}, last.seq); err != nil {
			return err
		}
	}
	info, err := st.chunk[l.stream].Info(ctx, jetstream.WithSubjectFilter(fmt.Sprintf("relayd.chunk.%d.>", l.stream)))
	if err != nil {
		return err
	}
	done := map[envelope.ID]bool{}
	for subject := range info.State.Subjects {
		at, ok := parseSubject(subject)
		if !ok || done[at.id] || l.found[packID(at.id)] != nil {
			continue
		}
		done[at.id] = true
		if err := st.purgeChunks(ctx, at); err != nil {
			return err
		}
	}
	if n := len(l.alone) + len(done); n > 0 {
		l.q.log.Info("leftovers of an interrupted run removed", zap.Int("messages", n))
	}
	return nil
}

// missing drops from the index what no stream holds any more, which only a damaged disk can cause, and reports whether
// there was any.
func (q *Queue) missing(seen map[packedID]bool) bool {
	q.index.mu.Lock()
	var lost []*entry
	for id, e := range q.index.entries {
		if !seen[id] && e.state != stateSending {
			lost = append(lost, e)
		}
	}
	q.index.mu.Unlock()
	for _, e := range lost {
		q.lost(e)
	}
	return len(lost) > 0
}

func (q *Queue) lost(e *entry) {
	q.log.Error("message is gone from the queue's storage: a damaged block or a deleted file", zap.String("id", string(e.id.unpack())),
		zap.String("sender", string(e.lane.sender)))
	q.metrics.lost.Inc()
	q.index.drop(e)
}

func (q *Queue) quarantined(id envelope.ID, err error) {
	q.record(envelope.Step{ID: id, What: envelope.StepHeld, State: envelope.Held, Reply: err.Error()})
	q.log.Error("message quarantined, and not sent", zap.String("id", string(id)), zap.Error(err))
	q.metrics.quarantined.Inc()
}

// mark is a mail stream's audit mark, written at a clean stop: after it the stream must be found just so.
type mark struct {
	Last uint64 `json:"last"` // highest sequence
	Msgs uint64 `json:"msgs"`
}

func auditSubject(k int) string { return "relayd.meta.audit." + strconv.Itoa(k) }

// audit compares every mail stream with the mark of the last clean stop, reports what is missing and takes the mark back. It
// returns false when something was.
// A flipped bit makes the server drop the rest of its block without a word; this is the word.
func (q *Queue) audit(ctx context.Context, st *store) (sound bool, err error) {
	sound = true
	for k, stream := range st.mail {
		msg, err := st.meta.GetLastMsgForSubject(ctx, auditSubject(k))
		if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return false, fmt.Errorf("read audit mark: %w", err)
		}
		var m mark
		if err != nil || len(msg.Data) == 0 { // a first start, or one after a crash: then the server has looked itself
			dropped, err := st.dropped(ctx, stream)
			if err != nil {
				return false, fmt.Errorf("audit mail stream %d: %w", k, err)
			}
			if dropped != 0 {
				q.log.Error("queue storage was found damaged, or cut short in the middle of a write: records are missing; "+
					"restore a backup or check the disk",
					zap.String("stream", stream.CachedInfo().Config.Name), zap.Int64("octets", dropped))
				q.metrics.auditFailures.Inc()
				sound = false
			}
			continue
		}
		if err := json.Unmarshal(msg.Data, &m); err != nil {
			return false, fmt.Errorf("read audit mark: %w", err)
		}
		info, err := stream.Info(ctx)
		if err != nil {
			return false, err
		}
		if now := (mark{info.State.LastSeq, info.State.Msgs}); now != m {
			q.log.Error("queue storage changed while relayd was stopped: records are missing or damaged; restore a backup or check the disk",
				zap.String("stream", info.Config.Name), zap.Any("was", m), zap.Any("is", now))
			q.metrics.auditFailures.Inc()
			sound = false
		}
		if err := st.putMeta(ctx, auditSubject(k), nil); err != nil {
			return false, fmt.Errorf("take audit mark back: %w", err)
		}
	}
	return sound, nil
}

// writeMarks is the last act of a clean stop.
func (q *Queue) writeMarks(ctx context.Context, st *store) error {
	for k, stream := range st.mail {
		info, err := stream.Info(ctx)
		if err != nil {
			return err
		}
		data, err := json.Marshal(mark{info.State.LastSeq, info.State.Msgs})
		if err != nil {
			return err
		}
		if err := st.putMeta(ctx, auditSubject(k), data); err != nil {
			return err
		}
	}
	return nil
}
