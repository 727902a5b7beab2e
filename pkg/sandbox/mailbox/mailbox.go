// Package mailbox holds what Exchange Online counts and forbids for one mailbox: limits, their use, and the judgement of
// a message that has arrived.
package mailbox

import (
	"strings"
	"sync"
	"time"
)

// Stats is what one mailbox has been used for. Attempts count, whether they were refused or not: a client that
// needs the sandbox to hold it back has already broken the limit.
type Stats struct {
	Messages     int64 `json:"messages"`   // accepted
	Recipients   int64 `json:"recipients"` // of those
	Refused      int64 `json:"refused"`    // messages answered 4xx or 5xx at their end
	Sessions     int   `json:"sessions"`   // authenticated now
	PeakSessions int   `json:"peak_sessions"`
	PeakSending  int   `json:"peak_sending"` // most connections sending at once
	WorstMinute  int   `json:"worst_minute"` // most messages that ended in any 60 seconds
}

// Set counts each login's use of its limits.
type Set struct {
	limits Limits
	mu     sync.Mutex // guards what follows
	byName map[string]*mailbox
}

type mailbox struct {
	Stats
	sending int
	ended   queue[time.Time] // ends of messages in the last minute
	starts  queue[time.Time] // accepted messages of the last minute, at the times the rate gives them; may lie ahead
	day     queue[spent]
	today   int // sum of day
}

type spent struct {
	at         time.Time
	recipients int
}

// queue is a first-in first-out list whose memory is reused.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) len() int   { return len(q.items) - q.head }
func (q *queue[T]) first() T   { return q.items[q.head] }
func (q *queue[T]) last() *T   { return &q.items[len(q.items)-1] }
func (q *queue[T]) at(i int) T { return q.items[q.head+i] }
func (q *queue[T]) push(v T)   { q.items = append(q.items, v) }

func (q *queue[T]) pop() {
	q.head++
	if q.head > len(q.items)/2 {
		q.items = q.items[:copy(q.items, q.items[q.head:])]
		q.head = 0
	}
}

// New counts from nothing. The limits are used as they are: see [Limits.WithDefaults].
func New(l Limits) *Set {
	return &Set{limits: l, byName: make(map[string]*mailbox)}
}

// of returns the login's mailbox. Callers hold mu.
func (m *Set) of(login string) *mailbox {
	key := strings.ToLower(login)
	b := m.byName[key]
	if b == nil {
		b = &mailbox{}
		m.byName[key] = b
	}
	return b
}

// Open says that a session has authenticated.
func (m *Set) Open(login string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(login)
	b.Sessions++
	b.PeakSessions = max(b.PeakSessions, b.Sessions)
}

// Close ends a session that Open began.
func (m *Set) Close(login string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(login).Sessions--
}

// Begin says that a connection starts sending, and whether it is within the limit. End follows in any case.
func (m *Set) Begin(login string) (within bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(login)
	b.sending++
	b.PeakSending = max(b.PeakSending, b.sending)
	return b.sending <= m.limits.Sending
}

// End says that a connection that began is no longer sending.
func (m *Set) End(login string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(login).sending--
}

// Arrived counts a message whose end was read at now, before it is judged.
func (m *Set) Arrived(login string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(login)
	for b.ended.len() > 0 && now.Sub(b.ended.first()) >= time.Minute {
		b.ended.pop()
	}
	b.ended.push(now)
	b.WorstMinute = max(b.WorstMinute, b.ended.len())
}

// Verdict is what Admit says.
type Verdict int

// The verdicts.
const (
	Admitted Verdict = iota
	OverRate
	OverQuota
)

// Admit charges a message with n recipients to the mailbox and returns how long its reply is to be withheld; a refused
// message is charged nothing.
func (m *Set) Admit(login string, n int, now time.Time) (time.Duration, Verdict) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(login)
	for b.day.len() > 0 && now.Sub(b.day.first().at) >= 24*time.Hour {
		b.today -= b.day.first().recipients
		b.day.pop()
	}
	if b.today+n > m.limits.RecipientsPerDay {
		return 0, OverQuota
	}
	for b.starts.len() > 0 && now.Sub(b.starts.first()) >= time.Minute {
		b.starts.pop()
	}
	start := now
	if full := b.starts.len() - m.limits.MessagesPerMin; full >= 0 {
		if m.limits.RejectOverRate {
			return 0, OverRate
		}
		start = b.starts.at(full).Add(time.Minute)
	}
	b.starts.push(start)
	b.today += n
	if b.day.len() > 0 && now.Sub(b.day.last().at) < time.Minute {
		b.day.last().recipients += n // a minute is one entry: a day at full speed must not cost a list of millions
	} else {
		b.day.push(spent{now, n})
	}
	return start.Sub(now), Admitted
}

// Settled counts the outcome of a message.
func (m *Set) Settled(login string, recipients int, accepted bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(login)
	if !accepted {
		b.Refused++
		return
	}
	b.Messages++
	b.Recipients += int64(recipients)
}

// Stats returns the counters by login in lower case.
func (m *Set) Stats() map[string]Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]Stats, len(m.byName))
	for name, b := range m.byName {
		all[name] = b.Stats
	}
	return all
}

// Clear forgets everything but what is going on this moment.
func (m *Set) Clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, b := range m.byName {
		m.byName[name] = &mailbox{
			sending: b.sending, Stats: Stats{Sessions: b.Sessions, PeakSessions: b.Sessions, PeakSending: b.sending},
		}
	}
}
