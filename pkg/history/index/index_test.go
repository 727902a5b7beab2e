package index

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"relayd/pkg/envelope"
	"relayd/pkg/history/record"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// apply enters s at offset of p.
func apply(x *Index, p *Part, offset int64, s envelope.Step) {
	x.Apply(p, offset, record.Append(nil, &s)[record.Head:], noon.Add(24*time.Hour))
}

func accepted(at time.Time, sender envelope.Address, to ...envelope.Address) envelope.Step {
	id := envelope.NewID(at)
	e := &envelope.Envelope{ID: id, Received: at, Sender: sender, MessageID: "<" + string(id) + "@x>"}
	for _, a := range to {
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: a})
	}
	return envelope.Step{ID: id, At: at, What: envelope.StepAccepted, State: envelope.Queued, Envelope: e}
}

// all returns the ids x finds for q, in order.
func all(x *Index, parts []*Part, q envelope.Query) (found []envelope.ID) {
	for w := x.NewWalk(&q); !w.Done(); {
		for _, h := range x.Next(w, parts, 2+len(found)) {
			found = append(found, h.ID)
		}
	}
	return found
}

func TestStateAfter(t *testing.T) {
	for _, row := range []struct {
		was, said envelope.State
		what      string
		want      envelope.State
	}{
		{"", envelope.Queued, envelope.StepAccepted, envelope.Queued},
		{envelope.Sent, envelope.Queued, envelope.StepAccepted, envelope.Sent}, // reported late
		{envelope.Queued, envelope.Sent, envelope.StepAttempt, envelope.Sent},
		{envelope.Sent, envelope.Deferred, envelope.StepAttempt, envelope.Deferred}, // the last word counts
		{envelope.Failed, "", envelope.StepBounced, envelope.Failed},
		{envelope.Held, "", envelope.StepDropped, Dropped},
		{envelope.Held, envelope.Failed, envelope.StepDropped, envelope.Failed},
		{"", "", envelope.StepWarned, ""},
	} {
		if got := StateAfter(row.was, row.said, row.what); got != row.want {
			t.Errorf("%q, then %s says %q: got %q, want %q", row.was, row.what, row.said, got, row.want)
		}
	}
}

func TestMessageIDKey(t *testing.T) {
	for in, want := range map[string]string{
		"<a@b>": "a@b", "a@b": "a@b", "<a@b": "a@b", "<<a>>": "<a>", "": "", "<": "", "<>": "",
		"<" + strings.Repeat("x", 1020) + ">": strings.Repeat("x", 1000),
		strings.Repeat("x", 1020):             strings.Repeat("x", 1000),
	} {
		if got := MessageIDKey(in); got != want {
			t.Errorf("MessageIDKey(%.20q) = %q, want %q", in, got, want)
		}
	}
}

// The package comment promises about 100 octets for a message of three records and one recipient.
func TestMemoryOfAMessage(t *testing.T) {
	if n := unsafe.Sizeof(row{}); n != 48 {
		t.Errorf("a row of %d octets, want 48", n)
	}
	x, p := New(), &Part{}
	const n = 10_000
	for range n {
		s := accepted(noon, "erp@contoso.com", "someone@fabrikam.example")
		apply(x, p, 0, s)
		apply(x, p, 0, envelope.Step{ID: s.ID})
		apply(x, p, 0, envelope.Step{ID: s.ID})
	}
	x.Sort()
	p.Close()
	counted := x.Bytes([]*Part{p})
	held := int64(len(x.chunks)*chunkRows*48 + 4*cap(x.table) + 4*cap(x.order) + 8*cap(p.entries) + 8*cap(p.mentions))
	if counted > 105*n || held > counted+counted/5 {
		t.Errorf("%d octets a message by count, %d in truth; want at most 105, and about that", counted/n, held/n)
	}
}

func TestManyMessages(t *testing.T) {
	x, p := New(), &Part{}
	const n = 30_000
	var ids []envelope.ID
	record := func(sorted bool) {
		for i := range n {
			s := accepted(noon.Add(time.Duration(i*7919%n)*time.Millisecond), "a@b")
			if i%3 == 0 {
				s.State = envelope.Sent
			} else {
				ids = append(ids, s.ID)
			}
			apply(x, p, int64(len(p.entries)*100), s)
		}
		if !sorted {
			x.Sort()
		}
	}
	check := func(what string) {
		t.Helper()
		slices.Sort(ids)
		want := slices.Clone(ids)
		slices.Reverse(want)
		if got := all(x, []*Part{p}, envelope.Query{State: envelope.Queued}); !slices.Equal(got, want) {
			t.Errorf("%s: %d found, want %d in order", what, len(got), len(want))
		}
		for _, id := range ids[:100] {
			if got := all(x, []*Part{p}, envelope.Query{ID: id}); len(got) != 1 || got[0] != id {
				t.Fatalf("%s: %s is found as %v", what, id, got)
			}
		}
		if got := all(x, []*Part{p}, envelope.Query{ID: envelope.NewID(noon)}); len(got) != 0 {
			t.Errorf("%s: a stranger is found as %v", what, got)
		}
	}
	record(false)
	check("loaded")
	expiry := Expiry{Ended: noon.Add(time.Hour), Open: noon, Waiting: func(envelope.ID) bool { return true }}
	if !x.Expire(expiry) || x.Len() != n*2/3 {
		t.Errorf("%d left, want %d, and records of the others", x.Len(), n*2/3)
	}
	check("expired")

	// The records leave: the rows are used again.
	move, finish := x.NewSieve().Rewrite(p)
	for i := range n {
		move(int64(i*100), int64(i))
	}
	finish()
	x.Release([]*Part{p})
	used := x.used
	if len(p.entries) != n*2/3 || x.Expire(expiry) {
		t.Errorf("%d records left, want %d, and none of an expired message", len(p.entries), n*2/3)
	}
	record(true)
	if want := used + n*2/3; x.used != want {
		t.Errorf("%d rows used, want %d: those given back first", x.used, want)
	}
	check("grown again")
}

// An attempt without its acceptance is listed by its id's time; the acceptance puts it where it belongs.
func TestLateAcceptanceMovesAMessage(t *testing.T) {
	for _, sorted := range []bool{false, true} {
		x, p := New(), &Part{}
		if sorted {
			x.Sort()
		}
		var want []envelope.ID
		for i := range 5 {
			s := accepted(noon.Add(time.Duration(i)*time.Minute), "a@b")
			apply(x, p, 0, s)
			want = append([]envelope.ID{s.ID}, want...)
		}
		s := accepted(noon, "a@b")
		s.Envelope.Received = noon.Add(150 * time.Second)
		apply(x, p, 0, envelope.Step{ID: s.ID, State: envelope.Sent})
		apply(x, p, 0, s)
		if !sorted {
			x.Sort()
		}
		want = slices.Insert(want, 2, s.ID)
		if got := all(x, []*Part{p}, envelope.Query{}); !slices.Equal(got, want) {
			t.Errorf("sorted before %v: got %v, want %v", sorted, got, want)
		}
	}
}

func TestClockAheadDoesNotKeepAMessage(t *testing.T) {
	x, p := New(), &Part{}
	apply(x, p, 0, envelope.Step{ID: envelope.NewID(noon), At: noon.AddDate(200, 0, 0), State: envelope.Sent})
	if x.Expire(Expiry{Ended: noon.Add(23 * time.Hour)}); x.Len() != 1 {
		t.Error("expired before the time it was recorded")
	}
	if x.Expire(Expiry{Ended: noon.Add(24 * time.Hour)}); x.Len() != 0 {
		t.Error("still there")
	}
}

// What the hashes say must include all that fits.
func TestHashesHideNothing(t *testing.T) {
	local := rapid.StringMatching(`[a-zA-Zäöüß0-9İ.@" -]{0,6}`)
	domain := rapid.SampledFrom([]string{"contoso.com", "CONTOSO.com", "münchen.example", "MÜNCHEN.example", "x", ""})
	address := rapid.Custom(func(t *rapid.T) envelope.Address {
		a := local.Draw(t, "local")
		if rapid.IntRange(0, 9).Draw(t, "at") > 0 {
			a += "@" + domain.Draw(t, "domain")
		}
		return envelope.Address(a)
	})
	rapid.Check(t, func(t *rapid.T) {
		x, p := New(), &Part{}
		x.Sort()
		s := accepted(noon, address.Draw(t, "sender"), rapid.SliceOfN(address, 0, 3).Draw(t, "recipients")...)
		apply(x, p, 0, s)
		summary := envelope.Summary{ID: s.ID, Received: noon, Sender: s.Envelope.Sender, State: s.State, MessageID: s.Envelope.MessageID}
		pattern := func(label string) string {
			switch rapid.IntRange(0, 3).Draw(t, label) {
			case 0:
				return ""
			case 1:
				return "*@" + domain.Draw(t, label)
			case 2:
				return strings.ToUpper(string(s.Envelope.Sender))
			default:
				return string(address.Draw(t, label))
			}
		}
		q := envelope.Query{Sender: pattern("sender wanted"), Recipient: pattern("recipient wanted"), MessageID: rapid.SampledFrom([]string{"", string(s.ID) + "@x", "y"}).Draw(t, "id")}
		w := x.NewWalk(&q)
		found := len(x.Next(w, []*Part{p}, 1)) == 1
		if w.Fits(&summary, s.Envelope.Recipients) && !found {
			t.Fatalf("%+v fits %+v, and was not found", q, s.Envelope)
		}
	})
}

func TestPlaces(t *testing.T) {
	x := New()
	a, b := accepted(noon, "a@b"), accepted(noon.Add(time.Second), "a@b")
	parts := []*Part{{}, {}, {}}
	apply(x, parts[0], 10, a)
	apply(x, parts[0], 20, b)
	apply(x, parts[2], 30, envelope.Step{ID: a.ID, State: envelope.Sent})
	apply(x, parts[2], 40, envelope.Step{ID: a.ID, State: envelope.Sent})
	x.Sort()
	hits := x.Next(x.NewWalk(&envelope.Query{}), parts, 10)
	want := []Hit{{b.ID, []Place{{0, 20}}}, {a.ID, []Place{{0, 10}, {2, 30}, {2, 40}}}}
	if fmt.Sprint(hits) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", hits, want)
	}
}

func TestSieve(t *testing.T) {
	x := New()
	done, kept := accepted(noon, "done@b", "x@y"), accepted(noon.Add(time.Second), "kept@b", "x@y")
	done.State = envelope.Sent
	first, second := &Part{}, &Part{}
	apply(x, first, 100, done)
	apply(x, first, 150, kept)
	apply(x, first, 170, envelope.Step{ID: kept.ID})
	apply(x, second, 100, envelope.Step{ID: done.ID})
	apply(x, second, 120, envelope.Step{ID: done.ID})
	x.Sort()
	live := func(s *Sieve, p *Part, want int64) {
		t.Helper()
		if got := s.Live(p, 200); got != want {
			t.Errorf("%d octets must stay, want %d", got, want)
		}
	}
	live(x.NewSieve(), first, 100)
	x.Expire(Expiry{Ended: noon.Add(48 * time.Hour)})
	s := x.NewSieve()
	live(s, first, 50)
	live(s, second, 0)
	s.Pass(first)
	live(s, second, 100) // while the start of the same story stays

	move, finish := x.NewSieve().Rewrite(first)
	var moved []int64
	for i, offset := range []int64{90, 100, 150, 160, 170} { // some of them damaged, or not known
		if move(offset, int64(i)) {
			moved = append(moved, offset)
		}
	}
	finish()
	if !slices.Equal(moved, []int64{150, 170}) || fmt.Sprint(first.entries) != "[{1 2} {1 4}]" || len(first.mentions) != 1 {
		t.Errorf("moved %v, now %v and %v", moved, first.entries, first.mentions)
	}
	x.Release([]*Part{first, second})
	if len(x.free) != 0 {
		t.Error("a row freed while a record is its own")
	}
	x.Release([]*Part{first})
	if len(x.free) != 1 || len(x.gone) != 0 || x.Len() != 1 {
		t.Errorf("free %v, gone %v, %d left", x.free, x.gone, x.Len())
	}
	x.Release(nil)
	if x.Len() != 0 || x.Bytes(nil) != 0 || len(all(x, nil, envelope.Query{ID: kept.ID})) != 0 {
		t.Errorf("%d left without a record, in %d octets", x.Len(), x.Bytes(nil))
	}
}

func FuzzApply(f *testing.F) {
	s := accepted(noon, "a@b", "c@d")
	f.Add(record.Append(nil, &s)[record.Head:], int64(1000))
	f.Add(bytes.Repeat([]byte{0xff}, 40), int64(-1))
	f.Fuzz(func(t *testing.T, payload []byte, now int64) {
		if len(payload) < record.IDLen { // record.Frame sees to that
			return
		}
		x, p := New(), &Part{}
		x.Sort()
		x.Apply(p, 1, payload, time.Unix(now, 0))
		x.Apply(p, 2, payload, time.Unix(now, 0))
		step, ok := record.Decode(payload)
		if hits := x.Next(x.NewWalk(&envelope.Query{ID: step.ID}), []*Part{p}, 1); !ok || len(hits) != 1 || len(hits[0].Places) != 2 {
			t.Errorf("found %v", hits)
		}
	})
}
