package index

import (
	"math"
	"slices"
	"strings"

	"relayd/pkg/envelope"
	"relayd/pkg/history/record"
)

// pattern is an address or a whole domain, in lower case; empty: all.
type pattern struct {
	text   string
	domain bool
}

func newPattern(s string) pattern {
	text, ok := strings.CutPrefix(strings.ToLower(record.Clip(s, record.MaxText)), "*@")
	return pattern{text, ok}
}

func (p pattern) fit(a envelope.Address) bool {
	if p.domain {
		return p.text != "" && strings.ToLower(a.Domain()) == p.text
	}
	return p.text == "" || a.Key() == p.text
}

// Walk goes through the messages a query selects, from the latest accepted to the earliest.
type Walk struct {
	query             envelope.Query
	sender, recipient pattern

	whole, domain uint32 // hashes of the sender
	msgID         uint32 // and of the Message-ID
	state         uint8
	received      int64 // go on before this moment, in ms since 1970, and id
	id            key
	done          bool
}

// NewWalk begins before all messages q selects.
func (x *Index) NewWalk(q *envelope.Query) *Walk {
	w := &Walk{
		query:     *q,
		sender:    newPattern(q.Sender),
		recipient: newPattern(q.Recipient),
		state:     stateCode(q.State),
		received:  math.MaxInt64,
	}
	w.query.MessageID = MessageIDKey(q.MessageID)
	w.msgID = x.hashExact(w.query.MessageID)
	w.whole, w.domain = x.hashAddress([]byte(w.sender.text))
	if q.Before == "" {
		return w
	}
	if n, ok := x.find(q.Before); ok {
		w.received, w.id = x.row(n).received, x.row(n).id
	} else {
		w.received = q.Before.Time().UnixMilli()
		copy(w.id[:], q.Before)
	}
	return w
}

// Done reports whether Next has returned all.
func (w *Walk) Done() bool { return w.done }

// Fits judges a message by all that is known of it. Before is not looked at: that is a matter of order.
func (w *Walk) Fits(s *envelope.Summary, recipients []envelope.Recipient) bool {
	q := &w.query
	wanted := func(r envelope.Recipient) bool { return w.recipient.fit(r.Address) }
	return (q.ID == "" || s.ID == q.ID) &&
		(q.MessageID == "" || MessageIDKey(s.MessageID) == q.MessageID) &&
		(q.Sender == "" || w.sender.fit(s.Sender)) &&
		(q.Recipient == "" || slices.ContainsFunc(recipients, wanted)) &&
		(q.State == "" || s.State == q.State) &&
		(q.Since.IsZero() || !s.Received.Before(q.Since)) &&
		(q.Until.IsZero() || s.Received.Before(q.Until))
}

// mayFit judges by the hashes, all but the recipient.
func (w *Walk) mayFit(r *row) bool {
	if w.query.State != "" && r.state != w.state || w.query.MessageID != "" && r.msgID != w.msgID {
		return false
	}
	if w.sender.domain {
		return r.domain == w.domain
	}
	return w.query.Sender == "" || r.sender == w.whole
}

// mentioned returns the rows that may have the recipient w wants; nil where it wants none.
func (x *Index) mentioned(w *Walk, parts []*Part) bits {
	if w.query.Recipient == "" {
		return nil
	}
	rows := newBits(x.used)
	want, shift := mentionHash(x.hashAddress([]byte(w.recipient.text))), 0
	if w.recipient.domain {
		want, shift = want>>20, 20
	}
	for _, p := range parts {
		for _, m := range p.mentions {
			if m.hash>>shift == want {
				rows.set(m.row)
			}
		}
	}
	return rows
}

// bounds returns the range of order that w's times leave.
func (x *Index) bounds(w *Walk) (bottom, top int) {
	top = x.before(w.received, w.id)
	if !w.query.Until.IsZero() {
		top = min(top, x.before(w.query.Until.UnixMilli()+1, key{}))
	}
	if !w.query.Since.IsZero() {
		bottom = x.before(w.query.Since.UnixMilli(), key{})
	}
	if w.query.ID == "" {
		return bottom, top
	}
	n, ok := x.find(w.query.ID)
	if !ok {
		return 0, 0
	}
	at := x.before(x.row(n).received, x.row(n).id)
	return max(bottom, at), min(top, at+1)
}

// Hit is a message that may fit, and where its records stand, in the order written.
type Hit struct {
	ID     envelope.ID
	Places []Place
}

// Place is a record's: the number of its part, and its offset there.
type Place struct {
	Part   int
	Offset int64
}

// Next returns the next n messages of the walk, fewer only at its end. parts are all there are, the oldest first.
func (x *Index) Next(w *Walk, parts []*Part, n int) []Hit {
	bottom, top := x.bounds(w)
	mentioned := x.mentioned(w, parts)
	var rows []uint32
	w.done = true
	for i := top - 1; i >= bottom; i-- {
		at := x.order[i]
		r := x.row(at)
		if !w.mayFit(r) || mentioned != nil && !mentioned.has(at) {
			continue
		}
		if rows = append(rows, at); len(rows) == n {
			w.received, w.id, w.done = r.received, r.id, false
			break
		}
	}
	return x.locate(rows, parts)
}

// locate finds the records of rows.
func (x *Index) locate(rows []uint32, parts []*Part) []Hit {
	hits := make([]Hit, len(rows))
	wanted := newBits(x.used)
	rank := make(map[uint32]int, len(rows))
	for i, at := range rows {
		hits[i].ID = x.row(at).messageID()
		wanted.set(at)
		rank[at] = i
	}
	slices.Sort(rows)
	for number, p := range parts {
		if i, _ := slices.BinarySearch(rows, p.lo); i == len(rows) || rows[i] > p.hi {
			continue
		}
		for _, e := range p.entries {
			if wanted.has(e.row) {
				h := &hits[rank[e.row]]
				h.Places = append(h.Places, Place{number, int64(e.offset)})
			}
		}
	}
	return hits
}
