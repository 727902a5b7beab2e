package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"relayd/pkg/envelope"
)

// modelled is what a plain reading of the package's promises says of one message.
type modelled struct {
	env      *envelope.Envelope
	body     []byte
	state    envelope.State // as its last record says
	due      time.Time
	attempts int
	claimed  bool
	rests    time.Time // in memory only: not before; zero: due
}

// next is when the message is due, and what a restart makes of it.
func (x *modelled) next() time.Time {
	if !x.rests.IsZero() {
		return x.rests
	}
	return x.due
}

// model is a queue without disk, heap or locks.
type model struct {
	now      time.Time
	messages map[envelope.ID]*modelled
}

// head is the sender's message that must be offered next, nil for none.
func (m *model) head(sender envelope.Address) *modelled {
	var best *modelled
	for _, x := range m.messages {
		if x.env.Sender != sender || x.claimed || x.next().After(m.now) || x.state == envelope.Held || x.state == envelope.Failed {
			continue
		}
		if best == nil || x.next().Before(best.next()) || x.next().Equal(best.next()) && x.env.ID < best.env.ID {
			best = x
		}
	}
	return best
}

// pick draws one of the messages for which keep is true; nil for none.
func (m *model) pick(t *rapid.T, keep func(*modelled) bool) *modelled {
	var ids []envelope.ID
	for id, x := range m.messages {
		if keep(x) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids) // maps have no order, and what is drawn must be the same when rapid replays it
	return m.messages[rapid.SampledFrom(ids).Draw(t, "message")]
}

// TestModel drives queue and model through the same random lives of messages, with clean stops and crashes in between.
func TestModel(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	ctx := context.Background()
	checks := 0
	rapid.Check(t, func(t *rapid.T) {
		checks++ // senders of its own for each sequence: what a failed one leaves behind disturbs no other
		senders := []envelope.Address{
			envelope.Address(fmt.Sprintf("a%d@contoso.com", checks)), envelope.Address(fmt.Sprintf("b%d@contoso.com", checks)),
		}
		m := &model{now: time.Now(), messages: map[envelope.ID]*modelled{}}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		claimed := func(x *modelled) bool { return x.claimed }
		free := func(x *modelled) bool { return !x.claimed }
		claim := func(t *rapid.T, sender envelope.Address) {
			c, err := r.q.Claim(ctx, sender, m.now)
			must(err)
			want := m.head(sender)
			switch {
			case want == nil && c.Envelope == nil:
			case want == nil:
				t.Fatalf("%s was offered, want nothing", c.Envelope.ID)
			case c.Envelope == nil:
				t.Fatalf("nothing was offered, want %s", want.env.ID)
			case c.Envelope.ID != want.env.ID || c.Progress.Attempts != want.attempts:
				t.Fatalf("got %s after %d attempts, want %s after %d", c.Envelope.ID, c.Progress.Attempts, want.env.ID, want.attempts)
			default:
				want.claimed = true
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				size := rapid.SampledFrom([]int{0, 10, 5000, inlineBytes + 1}).Draw(t, "size")
				env := newEnvelope(rapid.SampledFrom(senders).Draw(t, "sender"))
				env.Received = m.now
				must(r.q.Put(ctx, env, bytes.NewReader(text(size))))
				m.messages[env.ID] = &modelled{env: env, body: text(size), state: envelope.Queued, due: m.now}
			},
			"claim": func(t *rapid.T) { claim(t, rapid.SampledFrom(senders).Draw(t, "sender")) },
			"settle": func(t *rapid.T) {
				x := m.pick(t, claimed)
				if x == nil {
					return
				}
				p := envelope.Progress{
					State: rapid.SampledFrom([]envelope.State{envelope.Sent, envelope.Deferred, envelope.Uncertain, envelope.Held,
						envelope.Failed}).Draw(t, "state"),
					Attempts: x.attempts + 1,
					Due:      m.now.Add(time.Duration(rapid.IntRange(-1, 3).Draw(t, "due")) * time.Second),
				}
				if p.State == envelope.Sent {
					p = sent(&envelope.Claim{Envelope: x.env})
					delete(m.messages, x.env.ID)
				}
				must(r.q.Settle(ctx, x.env, p))
				x.state, x.due, x.attempts, x.claimed, x.rests = p.State, p.Due, p.Attempts, false, time.Time{}
			},
			"note": func(t *rapid.T) {
				x := m.pick(t, claimed)
				if x == nil {
					return
				}
				p := envelope.Progress{
					State: rapid.SampledFrom([]envelope.State{envelope.Deferred, envelope.Uncertain}).Draw(t, "state"), Attempts: x.attempts + 1,
					Due: m.now.Add(time.Duration(rapid.IntRange(-1, 3).Draw(t, "due")) * time.Second),
				}
				must(r.q.Note(ctx, x.env, p))
				x.state, x.due, x.attempts, x.rests = p.State, p.Due, p.Attempts, time.Time{}
			},
			"rest": func(t *rapid.T) {
				if x := m.pick(t, claimed); x != nil {
					x.claimed, x.rests = false, m.now.Add(time.Duration(rapid.IntRange(-1, 3).Draw(t, "until"))*time.Second)
					r.q.Rest(x.env, x.rests)
				}
			},
			"retry": func(t *rapid.T) {
				x := m.pick(t, free)
				if x == nil {
					return
				}
				err := r.q.Retry(ctx, x.env.ID, "model")
				if x.state == envelope.Held {
					if !errors.Is(err, ErrHeld) {
						t.Fatalf("retry of a held message: got %v, want ErrHeld", err)
					}
					return
				}
				must(err)
				if x.state == envelope.Failed {
					x.state, x.attempts = envelope.Queued, 0
				}
				c, err := r.q.Get(ctx, x.env.ID)
				must(err)
				x.due, x.rests = c.Progress.Due, time.Time{}
			},
			"drop": func(t *rapid.T) {
				if x := m.pick(t, free); x != nil {
					must(r.q.Drop(ctx, x.env.ID, "model"))
					delete(m.messages, x.env.ID)
				}
			},
			"put again": func(t *rapid.T) {
				if x := m.pick(t, func(*modelled) bool { return true }); x != nil {
					again := *x.env
					must(r.q.Put(ctx, &again, bytes.NewReader(nil)))
				}
			},
			"release": func(t *rapid.T) {
				if x := m.pick(t, claimed); x != nil {
					r.q.Release(x.env, envelope.Progress{})
					x.claimed = false
				}
			},
			"hold": func(t *rapid.T) {
				if x := m.pick(t, free); x != nil {
					must(r.q.Hold(ctx, x.env.ID, "ann", "model"))
					x.state = envelope.Held
				}
			},
			"resume": func(t *rapid.T) {
				if x := m.pick(t, free); x != nil {
					must(r.q.Resume(ctx, x.env.ID, "ann"))
					c, err := r.q.Get(ctx, x.env.ID)
					must(err)
					x.state, x.attempts, x.due, x.rests = envelope.Queued, 0, c.Progress.Due, time.Time{}
				}
			},
			"time passes": func(t *rapid.T) { m.now = m.now.Add(time.Second) },
			"restart": func(t *rapid.T) {
				if rapid.IntRange(0, 15).Draw(t, "seldom") != 0 {
					return
				}
				if rapid.Bool().Draw(t, "clean") {
					must(r.q.Close(ctx))
				}
				r.kill()
				must(r.tryStart())
				for _, x := range m.messages {
					x.claimed, x.rests = false, time.Time{}
				}
			},
			"": func(t *rapid.T) { // holds after every step
				mine := r.q.List(func(i Info) bool { return i.Sender == senders[0] || i.Sender == senders[1] })
				if len(mine) != len(m.messages) {
					t.Fatalf("got %d messages, want %d", len(mine), len(m.messages))
				}
				for _, info := range mine {
					x := m.messages[info.ID]
					if x == nil {
						t.Fatalf("%s is in the queue, but should not", info.ID)
					}
					want := x.state
					if x.claimed {
						want = envelope.Sending
					}
					if info.Attempts != x.attempts {
						t.Fatalf("%s has %d attempts, want %d", info.ID, info.Attempts, x.attempts)
					}
					if info.State != want {
						t.Fatalf("%s is %s, want %s", info.ID, info.State, want)
					}
				}
			},
		})
		for _, x := range m.messages { // every body is still what it was; then clear away
			c, err := r.q.Get(ctx, x.env.ID)
			must(err)
			if got := r.body(&c); !bytes.Equal(got, x.body) {
				t.Fatalf("%s: the body changed", x.env.ID)
			}
			must(r.q.Settle(ctx, x.env, sent(&c)))
		}
	})
	if !t.Failed() {
		r.idle()
	}
}
