package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/envelope"
)

// Watch makes f the queue's scheduler: it is called whenever a sender's earliest due time comes nearer, and at once for
// every sender with waiting mail. f is called without a lock held; it must not block, and may call nothing but Park.
func (q *Queue) Watch(f func(sender envelope.Address, due time.Time)) {
	type head struct {
		sender envelope.Address
		due    time.Time
	}
	q.index.mu.Lock()
	q.index.watch = f
	var heads []head
	for _, l := range q.index.lanes {
		if len(l.heap) > 0 {
			heads = append(heads, head{l.sender, time.Unix(0, l.heap[0].due)})
		}
	}
	q.index.mu.Unlock()
	for _, h := range heads {
		f(h.sender, h.due)
	}
}

// Claim takes the sender's earliest message due at now; Claim.Envelope is nil when there is none. A message that does not
// match its hashes is quarantined on the way and the next one taken. An error leaves the message where it was.
func (q *Queue) Claim(ctx context.Context, sender envelope.Address, now time.Time) (envelope.Claim, error) {
	for {
		e, next := q.index.take(sender, now)
		if e == nil {
			return envelope.Claim{Next: next}, nil
		}
		claim, err := q.fetch(ctx, e)
		claim.Next = next
		switch {
		case err == nil:
			return claim, nil
		case errors.Is(err, errGone):
			q.lost(e)
		case errors.Is(err, envelope.ErrCorrupt):
			q.quarantined(e.id.unpack(), err)
			q.index.update(e, stateHeld, time.Time{}) // in memory: a start, or the next claim, finds it damaged again
		default:
			q.index.giveBack(e)
			return envelope.Claim{Next: next}, err
		}
	}
}

// fetch reads a message's records and checks them. A damaged one is left as it is, for whoever examines it.
func (q *Queue) fetch(ctx context.Context, e *entry) (envelope.Claim, error) {
	st := q.store.Load()
	if st == nil {
		return envelope.Claim{}, errUnavailable(errors.New("server is being reopened"))
	}
	mail, last := q.index.records(e)
	uncertain := q.index.uncertain(e)
	msg, err := st.get(ctx, st.locate(e.place(), "mail", mail))
	if err != nil {
		return envelope.Claim{}, fmt.Errorf("read mail record: %w", err)
	}
	claim := envelope.Claim{Envelope: new(envelope.Envelope), Progress: envelope.Progress{State: envelope.Queued}}
	record, inline := splitRecord(msg.Header, msg.Data)
	if err := claim.Envelope.Decode(record); err != nil {
		return envelope.Claim{}, fmt.Errorf("mail record: %w", err)
	}
	if claim.Envelope.ID != e.id.unpack() {
		return envelope.Claim{}, fmt.Errorf("mail record of %s under the name of %s: %w", claim.Envelope.ID, e.id.unpack(), envelope.ErrCorrupt)
	}
	if last != 0 {
		state, err := st.getState(ctx, e.place(), last)
		if err != nil {
			return envelope.Claim{}, fmt.Errorf("read state record: %w", err)
		}
		record, _ := splitRecord(state.Header, state.Data)
		if err := claim.Progress.Decode(record); err != nil {
			return envelope.Claim{}, fmt.Errorf("state record: %w", err)
		}
	}
	if claim.Envelope.Chunks == 0 && sha256.Sum256(inline) != claim.Envelope.SHA256 {
		return envelope.Claim{}, fmt.Errorf("body of %s: %w", claim.Envelope.ID, envelope.ErrCorrupt)
	}
	env, at := claim.Envelope, e.place()
	claim.Body = func(ctx context.Context) io.Reader {
		if env.Chunks == 0 {
			return bytes.NewReader(inline)
		}
		return &chunkReader{ctx: ctx, q: q, at: at, env: env, sum: sha256.New()}
	}
	if uncertain && claim.Progress.State != envelope.Uncertain { // found in the journal, and could not be recorded
		flagInterrupted(env, &claim.Progress, time.Now())
	}
	if q.journal != nil {
		claim.Mark = func() {
			_, last := q.index.records(e) // Note may have written one since
			q.journal.mark(interrupted{id: e.id, last: last, at: time.Now()})
		}
	}
	return claim, nil
}

// Settle records what became of a claimed message and ends the claim: removed once every recipient was sent, kept as
// failed for KeepFailed when one was not, else waiting again until p.Due, or held. It tries until it succeeds or ctx
// ends; then the claim stays, so that nothing is sent again before the outcome is on the disk.
func (q *Queue) Settle(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error {
	e := q.index.get(env.ID)
	if e == nil {
		return fmt.Errorf("settle %s: not in the queue", env.ID)
	}
	q.complete(&p)
	if len(p.Open(env)) == 0 && p.State == envelope.Sent {
		return q.finish(ctx, e)
	}
	if err := q.writeState(ctx, e, &p); err != nil {
		return err
	}
	q.journal.unmark(e.id)
	if p.State == envelope.Held {
		q.quarantined(env.ID, errors.New(p.Reason))
	}
	q.index.update(e, stateOf(p.State), p.Due)
	return nil
}

// complete fills in what the caller of Settle or Note may leave open.
func (q *Queue) complete(p *envelope.Progress) {
	if p.Changed.IsZero() {
		p.Changed = time.Now()
	}
	if p.State == envelope.Failed {
		p.Due = p.Changed.Add(q.opts.KeepFailed)
	}
}

// Note makes an interim outcome durable while the claim goes on: after a crash, and where the claim ends in Release or
// Rest, the message stands as p says. What was marked is answered by p, and the mark taken away. Errors as for Settle.
func (q *Queue) Note(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error {
	e := q.index.get(env.ID)
	if e == nil {
		return fmt.Errorf("note %s: not in the queue", env.ID)
	}
	q.complete(&p)
	if err := q.writeState(ctx, e, &p); err != nil {
		return err
	}
	q.journal.unmark(e.id)
	q.index.noted(e, stateOf(p.State), p.Due)
	return nil
}

// Release ends a claim as if it had never been: nothing was tried that counts. A claim that was settled stays so.
func (q *Queue) Release(env *envelope.Envelope, _ envelope.Progress) {
	if e := q.index.get(env.ID); e != nil {
		q.journal.unmark(e.id)
		q.index.giveBack(e)
	}
}

// Rest ends a claim as Release does, but the message is not offered again before until. Only memory knows of it: after a
// restart the message is due as its records say.
func (q *Queue) Rest(env *envelope.Envelope, until time.Time) {
	if e := q.index.get(env.ID); e != nil {
		q.journal.unmark(e.id)
		q.index.rest(e, until)
	}
}

// finish removes a message, the mail record first: without it the rest is harmless.
func (q *Queue) finish(ctx context.Context, e *entry) error {
	err := q.persist(ctx, "remove mail", func(st *store) error { return st.remove(ctx, st.locate(e.place(), "mail", e.mail)) })
	if err != nil {
		return err
	}
	_, last := q.index.records(e)
	chunks, at := e.chunks, e.place()
	q.journal.unmark(e.id) // before somebody can put and claim the same id anew
	q.index.drop(e)
	if st := q.store.Load(); st != nil && (last != 0 || chunks != 0) {
		if err := st.removeState(ctx, at, last); err != nil {
			q.log.Debug("state record left behind", zap.String("id", string(at.id)), zap.Error(err))
		}
		if chunks != 0 {
			if err := st.purgeChunks(ctx, at); err != nil {
				q.log.Debug("body chunks left to the next start", zap.String("id", string(at.id)), zap.Error(err))
			}
		}
	}
	return nil
}

// writeState replaces the state record of a message the caller holds.
func (q *Queue) writeState(ctx context.Context, e *entry, p *envelope.Progress) error {
	record, err := encodeState(p)
	if err != nil {
		return err
	}
	return q.persist(ctx, "write state", func(st *store) error {
		_, last := q.index.records(e)
		seq, err := st.putState(ctx, e.place(), record, last)
		if apiCode(err) == codeWrongSequence {
			// An earlier try was stored and only its answer lost: this node alone writes, so the newest record is ours.
			if last, err = st.lastState(ctx, e.place()); err == nil {
				seq, err = st.putState(ctx, e.place(), record, last)
			}
		}
		if err == nil {
			q.index.wrote(e, seq, p.Attempts)
		}
		return err
	})
}

// maxState leaves room for a subject and headers under the server's payload limit of 1 MiB.
const maxState = 900 << 10

// encodeState encodes p, cut down where thousands of recipients have much to say: a record that cannot be written would be
// tried for ever.
func encodeState(p *envelope.Progress) ([]byte, error) {
	record, err := p.Encode()
	for most := 256; err == nil && len(record) > maxState; most /= 4 {
		record, err = shortened(p, most).Encode()
		if most == 0 {
			break
		}
	}
	return record, err
}

// shortened returns p with no reply longer than most octets; with 0 the recipients keep what decides their fate alone.
func shortened(p *envelope.Progress, most int) *envelope.Progress {
	cut := func(text string, most int) string {
		if len(text) <= most {
			return text
		}
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	short := *p
	short.Reason = cut(p.Reason, 1024)
	short.Results = slices.Clone(p.Results)
	for i, r := range short.Results {
		short.Results[i].Reply = cut(r.Reply, most)
		if most == 0 {
			short.Results[i] = envelope.Result{State: r.State, Attempts: r.Attempts, Owed: r.Owed}
		}
	}
	return &short
}

// persist repeats op, across reopened servers, until it succeeds or ctx ends. A single missed deadline is a slow disk, the
// second in a row a fault; a full stream is none, since reopening it makes no room, nor are missing file descriptors.
func (q *Queue) persist(ctx context.Context, name string, op func(st *store) error) error {
	slow := false
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, opTimeout) {
		st := q.store.Load()
		err := errors.New("server is being reopened")
		if st != nil {
			if err = op(st); err == nil {
				return nil
			}
			switch late := errors.Is(err, context.DeadlineExceeded); {
			case ctx.Err() != nil, isFull(err), apiCode(err) == codeBusy, errors.Is(err, errNoFiles):
			case late && !slow:
				slow = true
			default:
				q.fault(st, name, err)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}
