package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"relayd/pkg/envelope"
)

// model is the history as one would write it with all the memory and time in the world.
type model struct {
	stories map[envelope.ID][]envelope.Step
}

func (m *model) summary(id envelope.ID) (envelope.Summary, []string) {
	s := envelope.Summary{ID: id, Received: id.Time().UTC(), Recipients: []envelope.Address{}}
	var all []string
	for _, step := range m.stories[id] {
		if step.Envelope != nil {
			s.Received, s.Sender, s.MessageID, s.Size = step.Envelope.Received, step.Envelope.Sender, step.Envelope.MessageID, step.Envelope.Size
			s.Recipients, all = []envelope.Address{}, nil
			for i, r := range step.Envelope.Recipients {
				all = append(all, strings.ToLower(string(r.Address)))
				if i < 20 {
					s.Recipients = append(s.Recipients, r.Address)
				}
			}
			if s.State != "" {
				continue
			}
		}
		s.State = step.State
		if step.Attempt > 0 {
			s.Attempts = step.Attempt
		}
		if !step.Due.IsZero() {
			s.Due = step.Due
		}
		if step.Reply != "" && step.What == envelope.StepAttempt {
			s.Reply = step.Reply
		}
	}
	if s.State == envelope.Sent || s.State == envelope.Failed || s.State == envelope.Held {
		s.Due = time.Time{}
	}
	return s, all
}

func like(pattern, address string) bool {
	pattern, address = strings.ToLower(pattern), strings.ToLower(address)
	if strings.HasPrefix(pattern, "*@") {
		return strings.HasSuffix(address, pattern[1:])
	}
	return pattern == address
}

func (m *model) search(q envelope.Query) []envelope.Summary {
	found := []envelope.Summary{}
	var before *envelope.Summary
	if q.Before != "" {
		s, _ := m.summary(q.Before)
		before = &s
	}
	for id := range m.stories {
		s, all := m.summary(id)
		if before != nil && byAcceptance(s, *before) <= 0 ||
			q.ID != "" && q.ID != id ||
			q.MessageID != "" && strings.Trim(q.MessageID, "<>") != strings.Trim(s.MessageID, "<>") ||
			q.Sender != "" && !like(q.Sender, string(s.Sender)) ||
			q.Recipient != "" && !slices.ContainsFunc(all, func(r string) bool { return like(q.Recipient, r) }) ||
			q.State != "" && q.State != s.State ||
			!q.Since.IsZero() && s.Received.Before(q.Since) ||
			!q.Until.IsZero() && !s.Received.Before(q.Until) {
			continue
		}
		found = append(found, s)
	}
	slices.SortFunc(found, byAcceptance)
	if q.Limit == 0 {
		q.Limit = 100
	}
	return found[:min(len(found), q.Limit)]
}

// byAcceptance puts the latest first; within a millisecond the higher id.
func byAcceptance(a, b envelope.Summary) int {
	return cmp.Or(cmp.Compare(b.Received.UnixMilli(), a.Received.UnixMilli()), cmp.Compare(b.ID, a.ID))
}

var (
	someDomains   = []string{"contoso.com", "fabrikam.com", "Müller.example"}
	someAddresses = func(t *rapid.T, label string) envelope.Address {
		return envelope.Address(rapid.SampledFrom([]string{"a", "B", "o'neil", `"x y"`}).Draw(t, label) + "@" + rapid.SampledFrom(someDomains).Draw(t, label))
	}
	someStates = []envelope.State{envelope.Queued, envelope.Deferred, envelope.Sent, envelope.Failed, envelope.Held, envelope.Uncertain, "odd"}
)

func someQuery(t *rapid.T, known []envelope.ID) envelope.Query {
	var q envelope.Query
	maybe := func(label string) bool { return rapid.IntRange(0, 3).Draw(t, label) == 0 }
	pattern := func(label string) string {
		if maybe(label + " of a domain") {
			return "*@" + rapid.SampledFrom(someDomains).Draw(t, label)
		}
		return strings.ToUpper(string(someAddresses(t, label)))
	}
	anyID := func(label string) envelope.ID {
		if len(known) == 0 {
			return envelope.NewID(noon)
		}
		return rapid.SampledFrom(known).Draw(t, label)
	}
	if maybe("by id") {
		q.ID = anyID("id")
	}
	if maybe("by Message-ID") {
		q.MessageID = fmt.Sprintf("M%d@x", rapid.IntRange(0, 3).Draw(t, "message-id"))
		if maybe("with brackets") {
			q.MessageID = "<" + q.MessageID + ">"
		}
	}
	if maybe("by sender") {
		q.Sender = pattern("sender")
	}
	if maybe("by recipient") {
		q.Recipient = pattern("recipient")
	}
	if maybe("by state") {
		q.State = rapid.SampledFrom(someStates).Draw(t, "state")
	}
	moment := func(label string) time.Time {
		return noon.Add(time.Duration(rapid.IntRange(-5_000, 25_000).Draw(t, label)) * time.Microsecond)
	}
	if maybe("since") {
		q.Since = moment("since at")
	}
	if maybe("until") {
		q.Until = moment("until at")
	}
	if maybe("before") {
		q.Before = anyID("before id")
	}
	if maybe("limited") {
		q.Limit = rapid.IntRange(1, 5).Draw(t, "limit")
	}
	return q
}

// Whatever is recorded, in whatever order, across restarts and rotations: searches answer as the model does.
func TestSearchAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		small := func(o *Options) { o.MaxBytes = 1 << 30 }
		l := openLog(t, dir, small)
		m := model{stories: map[envelope.ID][]envelope.Step{}}
		var known []envelope.ID
		record := func(s envelope.Step) {
			if m.stories[s.ID] == nil {
				known = append(known, s.ID)
			}
			m.stories[s.ID] = append(m.stories[s.ID], s)
			l.Record(s)
		}
		tick := 0
		rt.Repeat(map[string]func(*rapid.T){
			"accept": func(t *rapid.T) {
				at := noon.Add(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "µs")) * time.Microsecond)
				a := accepted(at, someAddresses(t, "sender"))
				a.Envelope.MessageID = fmt.Sprintf("<M%d@x>", rapid.IntRange(0, 3).Draw(t, "message-id"))
				for range rapid.SampledFrom([]int{0, 1, 1, 2, 3, 25}).Draw(t, "recipients") {
					a.Envelope.Recipients = append(a.Envelope.Recipients, envelope.Recipient{Address: someAddresses(t, "recipient")})
				}
				if rapid.Bool().Draw(t, "attempted first") {
					tick++
					record(attempt(a.ID, at, envelope.Sent, fmt.Sprint(tick)))
				}
				record(a)
			},
			"step": func(t *rapid.T) {
				id := envelope.NewID(noon)
				if len(known) > 0 && rapid.IntRange(0, 9).Draw(t, "known") > 0 {
					id = rapid.SampledFrom(known).Draw(t, "id")
				}
				tick++ // each step differs
				s := envelope.Step{ID: id, At: noon.Add(time.Duration(tick)), What: rapid.SampledFrom([]string{envelope.StepAttempt, envelope.StepWarned}).Draw(t, "what"),
					State: rapid.SampledFrom(someStates).Draw(t, "state"), Attempt: rapid.IntRange(0, 3).Draw(t, "attempt"), Reply: rapid.SampledFrom([]string{"", "451 later"}).Draw(t, "reply")}
				if rapid.Bool().Draw(t, "due") {
					s.Due = noon.Add(time.Duration(tick) * time.Minute)
				}
				record(s)
			},
			"rotate": func(*rapid.T) {
				l.flush()
				l.mu.Lock()
				defer l.mu.Unlock()
				if err := l.retire(); err != nil {
					rt.Fatal(err)
				}
			},
			"restart": func(*rapid.T) {
				closeLog(t, l)
				l = openLog(t, dir, small)
			},
			"search": func(t *rapid.T) {
				q := someQuery(t, known)
				if diff := gocmp.Diff(m.search(q), search(rt, l, q)); diff != "" {
					t.Fatalf("%+v: (-model +history):\n%s", q, diff)
				}
			},
			"steps": func(t *rapid.T) {
				if len(known) == 0 {
					return
				}
				id := rapid.SampledFrom(known).Draw(t, "id")
				want := slices.Clone(m.stories[id])
				slices.SortStableFunc(want, func(a, b envelope.Step) int { return a.At.Compare(b.At) })
				if diff := gocmp.Diff(want, steps(rt, l, id)); diff != "" {
					t.Fatalf("%s: (-model +history):\n%s", id, diff)
				}
			},
		})
		for range 20 { // and every way of asking at the end
			q := someQuery(rt, known)
			if diff := gocmp.Diff(m.search(q), search(rt, l, q)); diff != "" {
				rt.Fatalf("%+v: (-model +history):\n%s", q, diff)
			}
		}
		closeLog(t, l)
	})
}
