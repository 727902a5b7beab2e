package sandbox

import (
	"context"
	"slices"
	"strings"
	"sync"
)

// Filter selects messages; each field that is not zero must match. Addresses compare without case.
type Filter struct {
	RelaydID  string
	MessageID string
	Login     string
	Sender    string // MAIL FROM
	Recipient string
	After     uint64 // sequence number
	Limit     int    // of the answer; 0 is none. Wait does not look at it.
}

func (f *Filter) selects(m *Message) bool {
	return m.Seq > f.After && (f.RelaydID == "" || f.RelaydID == m.RelaydID) &&
		(f.MessageID == "" || f.MessageID == m.MessageID) && (f.Login == "" || strings.EqualFold(f.Login, m.Login)) &&
		(f.Sender == "" || strings.EqualFold(f.Sender, m.MailFrom)) &&
		(f.Recipient == "" || slices.ContainsFunc(m.Rcpts, func(r string) bool { return strings.EqualFold(r, f.Recipient) }))
}

// Duplicate is an X-Relayd-Id that one recipient was sent more than once.
type Duplicate struct {
	RelaydID  string `json:"relayd_id"`
	Recipient string `json:"rcpt"`
	Count     int    `json:"count"`
}

// store keeps accepted messages within bounds.
type store struct {
	maxBytes    int64
	maxMessages int

	mu         sync.Mutex // guards what follows
	messages   []*kept    // ascending, without gaps
	bodies     int        // index of the first message whose body is still kept
	bytes      int64      // of bodies
	lastSeq    uint64
	count      Stats
	deliveries map[delivery]int
	repeated   []delivery // with more than one, in order of their second
	changed    chan struct{}
}

type delivery struct{ id, recipient string }

func newStore(maxBytes int64, maxMessages int) *store {
	return &store{
		maxBytes: maxBytes, maxMessages: maxMessages, deliveries: make(map[delivery]int),
	}
}

// kept is a message and its body, nil if it is dropped.
type kept struct {
	Message
	raw []byte
}

func (s *store) add(record *Message, raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastSeq++
	record.Seq = s.lastSeq
	m := &kept{*record, raw}
	s.bytes += int64(len(raw))
	s.messages = append(s.messages, m)
	for s.bytes > s.maxBytes && s.bodies < len(s.messages) {
		s.dropBody(s.messages[s.bodies])
		s.bodies++
	}
	if over := len(s.messages) - s.maxMessages; over > 0 {
		over += s.maxMessages / 8 // in steps, or each message would move all the others
		for _, old := range s.messages[:over] {
			s.dropBody(old)
		}
		s.messages = slices.Delete(s.messages, 0, over)
		s.bodies = max(0, s.bodies-over)
	}
	s.count.Messages++
	s.count.Bytes += m.Size
	s.count.Recipients += int64(len(m.Rcpts))
	if m.RelaydID != "" {
		for _, r := range m.Rcpts {
			key := delivery{m.RelaydID, strings.ToLower(r)}
			s.deliveries[key]++
			switch n := s.deliveries[key]; {
			case n == 2:
				s.repeated = append(s.repeated, key)
				fallthrough
			case n > 2:
				s.count.DuplicateCount++
			}
		}
	}
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *store) dropBody(m *kept) {
	s.bytes -= int64(len(m.raw))
	m.raw = nil
}

// from returns the messages after seq. Callers hold mu.
func (s *store) from(seq uint64) []*kept {
	i, _ := slices.BinarySearchFunc(s.messages, seq+1, func(m *kept, seq uint64) int {
		switch {
		case m.Seq < seq:
			return -1
		case m.Seq > seq:
			return 1
		}
		return 0
	})
	return s.messages[i:]
}

func (s *store) list(f Filter) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := []Message{}
	for _, m := range s.from(f.After) {
		if f.Limit > 0 && len(found) == f.Limit {
			break
		}
		if f.selects(&m.Message) {
			found = append(found, m.Message)
		}
	}
	return found
}

func (s *store) raw(seq uint64) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rest := s.from(seq - 1); len(rest) > 0 && rest[0].Seq == seq && rest[0].raw != nil {
		return rest[0].raw, true
	}
	return nil, false
}

func (s *store) wait(ctx context.Context, n int, f Filter) ([]Message, error) {
	f.Limit = 0
	seen, found := f.After, 0
	for {
		s.mu.Lock()
		for _, m := range s.from(seen) {
			if f.selects(&m.Message) {
				found++
			}
			seen = m.Seq
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if found >= n {
			return s.list(f), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s.list(f), ctx.Err()
		}
	}
}

func (s *store) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages, s.bodies, s.bytes = nil, 0, 0
	s.count = Stats{}
	s.deliveries, s.repeated = make(map[delivery]int), nil
}

func (s *store) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	const shown = 1000
	st := s.count
	st.Duplicates = []Duplicate{}
	for _, d := range s.repeated[:min(shown, len(s.repeated))] {
		st.Duplicates = append(st.Duplicates, Duplicate{d.id, d.recipient, s.deliveries[d]})
	}
	slices.SortStableFunc(st.Duplicates, func(a, b Duplicate) int { return strings.Compare(a.RelaydID, b.RelaydID) })
	return st
}
