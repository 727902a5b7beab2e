package history

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/pkg/envelope"
	"relayd/pkg/history/index"
	"relayd/pkg/history/record"
)

const (
	// defaultLimit is the number of summaries where the query names none.
	defaultLimit = 100
	// maxHits is the number of messages looked up at once.
	maxHits = 1000
	// maxRecipients is the number of recipients in a summary.
	maxRecipients = 20
)

// Search returns the messages q selects, the latest accepted first. It sees each step recorded before, and waits for the
// segments of older processes to be read: ctx bounds that. Errors: ctx's, or of opening a segment.
func (l *Log) Search(ctx context.Context, q envelope.Query) ([]envelope.Summary, error) {
	if err := l.ready(ctx); err != nil {
		return nil, err
	}
	l.flush()
	limit := q.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	w := l.newWalk(&q)
	found := []envelope.Summary{}
	for len(found) < limit && !w.Done() {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("search the history: %w", err)
		}
		hits, err := l.next(w, min(limit-len(found), maxHits))
		if err != nil {
			return nil, fmt.Errorf("search the history: %w", err)
		}
		for i := range hits.list {
			summary, recipients := summarise(hits.list[i].ID, hits.steps(i))
			if w.Fits(&summary, recipients) {
				found = append(found, summary)
			}
		}
		hits.close()
	}
	return found, nil
}

// Steps returns what happened to the message id, in order of time; nothing where it is not known. It waits and fails as
// Search does.
func (l *Log) Steps(ctx context.Context, id envelope.ID) ([]envelope.Step, error) {
	if err := l.ready(ctx); err != nil {
		return nil, err
	}
	l.flush()
	if id == "" {
		return nil, nil
	}
	hits, err := l.next(l.newWalk(&envelope.Query{ID: id}), 1)
	if err != nil {
		return nil, fmt.Errorf("read the steps of a message: %w", err)
	}
	defer hits.close()
	if len(hits.list) == 0 {
		return nil, nil
	}
	steps := hits.steps(0)
	slices.SortStableFunc(steps, func(a, b envelope.Step) int { return a.At.Compare(b.At) })
	return steps, nil
}

// newWalk begins a walk through the index.
func (l *Log) newWalk(q *envelope.Query) *index.Walk {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.NewWalk(q)
}

// next returns the next n messages of w. The caller closes them.
func (l *Log) next(w *index.Walk, n int) (hits, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := hits{list: l.index.Next(w, l.parts(), n), files: map[int]*os.File{}, damaged: l.metrics.damaged}
	for i := range found.list {
		for _, at := range found.list[i].Places {
			if found.files[at.Part] != nil {
				continue
			}
			f, err := os.Open(l.segments[at.Part].path)
			if err != nil {
				found.close()
				l.miss(at.Part, err)
				return hits{}, err
			}
			found.files[at.Part] = f
		}
	}
	return found, nil
}

// miss forgets segment i where its file is gone: somebody deleted it. The next search does without.
func (l *Log) miss(i int, err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		return
	}
	if i == len(l.segments)-1 {
		_ = l.retire()
	}
	l.remove(i)
}

// hits hold their files open: segments may be deleted or rewritten meanwhile.
type hits struct {
	list    []index.Hit
	files   map[int]*os.File // by number of the segment
	damaged prometheus.Counter
}

func (h *hits) close() {
	for _, f := range h.files {
		f.Close()
	}
}

// steps reads the steps of hit i, in the order written. What is damaged is missing; what stands there twice, from files
// put back out of a backup, comes once.
func (h *hits) steps(i int) []envelope.Step {
	hit := &h.list[i]
	steps := make([]envelope.Step, 0, len(hit.Places))
	seen := make(map[string]bool, len(hit.Places))
	for _, at := range hit.Places {
		payload := record.Read(h.files[at.Part], at.Offset)
		step, ok := record.Decode(payload)
		if !ok || step.ID != hit.ID {
			h.damaged.Inc()
			continue
		}
		if !seen[string(payload)] {
			seen[string(payload)] = true
			steps = append(steps, step)
		}
	}
	return steps
}

// summarise tells a message's story in one line; all its recipients come beside it.
func summarise(id envelope.ID, steps []envelope.Step) (envelope.Summary, []envelope.Recipient) {
	s := envelope.Summary{ID: id, Received: id.Time().UTC(), Recipients: []envelope.Address{}}
	var recipients []envelope.Recipient
	for i := range steps {
		step := &steps[i]
		if e := step.Envelope; e != nil {
			s.Sender, s.MessageID, s.Size, recipients = e.Sender, e.MessageID, e.Size, e.Recipients
			if !e.Received.IsZero() {
				s.Received = e.Received
			}
		}
		s.State = index.StateAfter(s.State, step.State, step.What)
		if step.Attempt > 0 {
			s.Attempts = step.Attempt
		}
		if !step.Due.IsZero() {
			s.Due = step.Due
		}
		if step.Reply != "" && step.What != envelope.StepBounced && step.What != envelope.StepWarned { // theirs is an id
			s.Reply = step.Reply
		}
	}
	switch s.State {
	case envelope.Sent, envelope.Failed, envelope.Held, index.Dropped:
		s.Due = time.Time{}
	default:
	}
	for i := range recipients[:min(len(recipients), maxRecipients)] {
		s.Recipients = append(s.Recipients, recipients[i].Address)
	}
	return s, recipients
}
