package dispatch

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// bubbled hides a *testing.T's deadline from rapid: it may not be asked for inside a bubble.
type bubbled struct{ *testing.T }

// world is a dispatcher whose every attempt waits for the property to answer it.
type world struct {
	*rig
	t       *rapid.T
	flight  []*flying
	senders []envelope.Address
}

// flying is an attempt under way.
type flying struct {
	try  *try
	verd chan status.Outcome
}

func newWorld(t *rapid.T, tb testing.TB) *world {
	w := &world{rig: newRig(tb, func(o *Options) { o.Workers = 40; o.DrainTimeout = time.Second }), t: t}
	w.exchange.answer = func(ctx context.Context, try *try) status.Outcome {
		f := &flying{try, make(chan status.Outcome)}
		w.exchange.mu.Lock()
		w.flight = append(w.flight, f)
		w.exchange.mu.Unlock()
		select {
		case out := <-f.verd:
			return out
		case <-ctx.Done():
			return refuse(try, status.Retry, "cut off")
		}
	}
	for i := range 8 {
		w.senders = append(w.senders, sender(i))
		w.route(sender(i))
	}
	return w
}

// route draws a way for a sender: of its own or of a shared mailbox, in one of two tenants.
func (w *world) route(s envelope.Address) {
	route := envelope.Route{
		Tenant:            rapid.SampledFrom([]string{"contoso", "fabrikam"}).Draw(w.t, "tenant"),
		Login:             rapid.SampledFrom([]envelope.Address{"", "relay@contoso.com"}).Draw(w.t, "login"),
		Connections:       rapid.IntRange(1, 3).Draw(w.t, "connections"),
		MessagesPerMinute: rapid.SampledFrom([]int{0, 1, 30}).Draw(w.t, "per minute"),
		RecipientsPerDay:  rapid.SampledFrom([]int{0, 5}).Draw(w.t, "per day"),
	}
	w.router.set(s, route)
}

// finish answers the attempt with the given index.
func (w *world) finish(i int, out func(*try) status.Outcome) {
	w.exchange.mu.Lock()
	f := w.flight[i]
	w.flight = slices.Delete(w.flight, i, i+1)
	w.exchange.mu.Unlock()
	f.verd <- out(f.try)
}

func (w *world) flying() int {
	w.exchange.mu.Lock()
	defer w.exchange.mu.Unlock()
	return len(w.flight)
}

// check holds what must be true whenever nothing moves.
func (w *world) check() {
	synctest.Wait()
	d, now := w.d, time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	active := 0
	ready := map[*mailbox]int{}
	for _, m := range d.ready {
		ready[m]++
	}
	known := map[*mailbox]bool{}
	for key, m := range d.mailboxes {
		known[m] = true
		active += m.active
		w.mailbox(key, m, ready[m], now)
	}
	for i, m := range d.waiting {
		if m.at != i || !known[m] {
			w.t.Fatalf("place %d of the waiting is held by one that thinks it is at %d, known=%v", i, m.at, known[m])
		}
		if i > 0 && m.wake.Before(d.waiting[(i-1)/2].wake) {
			w.t.Fatalf("the waiting are out of order at %d", i)
		}
	}
	if n := w.flying(); n != active {
		w.t.Fatalf("%d attempts under way, %d connections taken", n, active)
	}
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	for key, l := range w.queue.lanes {
		if len(l.heap) == 0 {
			continue
		}
		// No wake-up is lost: the dispatcher knows of waiting mail no later than it is due.
		if mine := d.lanes[key]; mine == nil || mine.due.IsZero() || mine.due.After(l.heap[0].due) {
			w.t.Fatalf("%s has mail due %v that the dispatcher does not know of: %+v", key, l.heap[0].due.Sub(now), mine)
		} else if mine.mailbox != nil && mine.pos < 0 {
			w.t.Fatalf("%s has a mailbox and mail and stands in no heap", key)
		} else if mine.shown != l.parked {
			w.t.Fatalf("%s is shown as %q, thought to be shown as %q", key, l.parked, mine.shown)
		} else if mine.mailbox != nil && mine.shown != mine.mailbox.parkedFor() {
			w.t.Fatalf("%s is parked for %q and shown as %q", key, mine.mailbox.parkedFor(), mine.shown)
		}
	}
	for _, wrong := range w.queue.wrong {
		w.t.Fatal(wrong)
	}
}

// mailbox checks one: with work, a free connection and open gates it is ready, or waits for the right time.
func (w *world) mailbox(key string, m *mailbox, ready int, now time.Time) {
	at, ok := m.next(now)
	switch {
	case m.ready && ready != 1, !m.ready && ready != 0:
		w.t.Fatalf("%s: ready=%v, and %d times in the queue", key, m.ready, ready)
	case m.ready && w.flying() < w.d.opts.Workers:
		w.t.Fatalf("%s: ready, workers free, and nobody takes it", key)
	case !m.ready && ok && !at.After(now):
		w.t.Fatalf("%s: may send now and does not stand in the queue", key)
	case !m.ready && ok && m.at < 0:
		w.t.Fatalf("%s: may send in %v and does not wait for it", key, at.Sub(now))
	case !m.ready && ok && m.wake.After(at.Add(time.Millisecond)):
		w.t.Fatalf("%s: may send in %v and sleeps %v", key, at.Sub(now), m.wake.Sub(now))
	case m.day.reserved < 0 || m.active < 0 || m.pace.tokens > m.pace.burst()+1e-9:
		w.t.Fatalf("%s: %d reserved, %d active, %v tokens", key, m.day.reserved, m.active, m.pace.tokens)
	case m.active == 0 && (m.day.reserved != 0 || m.gate.probe != nil):
		w.t.Fatalf("%s: nothing under way, yet %d reserved, probe %v", key, m.day.reserved, m.gate.probe)
	}
	for i, l := range m.lanes {
		if l.pos != i || l.mailbox != m || l.due.IsZero() || i > 0 && m.lanes.Less(i, (i-1)/2) {
			w.t.Fatalf("%s: lane %d is out of order: %+v", key, i, l)
		}
	}
}

func TestNoWakeUpIsLost(t *testing.T) {
	synctest.Test(t, func(st *testing.T) {
		rapid.Check(bubbled{st}, func(t *rapid.T) {
			w := newWorld(t, st)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = w.d.Run(ctx) // is always nil
			}()
			defer func() {
				cancel()
				<-ended
			}()
			w.check()
			actions := map[string]func(*rapid.T){
				"put": func(t *rapid.T) {
					s := rapid.SampledFrom(w.senders).Draw(t, "sender")
					for range rapid.IntRange(1, 4).Draw(t, "messages") {
						w.queue.put(s, rapid.IntRange(1, 3).Draw(t, "recipients"), time.Duration(rapid.IntRange(0, 90).Draw(t, "due"))*time.Second)
					}
				},
				"end": func(t *rapid.T) {
					n := w.flying()
					if n == 0 {
						t.Skip("nothing under way")
					}
					action := rapid.SampledFrom([]status.Action{
						status.Retry, status.Fail, status.BackOffSender, status.BackOffTenant, status.ParkSender, status.ParkTenant, status.Uncertain,
					}).Draw(t, "action")
					mixed := rapid.Bool().Draw(t, "mixed")
					w.finish(rapid.IntRange(0, n-1).Draw(t, "attempt"), func(try *try) status.Outcome {
						out := refuse(try, action, string(action.String()))
						if mixed {
							out.Errs[0] = nil
						}
						return out
					})
				},
				"accept": func(t *rapid.T) {
					n := w.flying()
					if n == 0 {
						t.Skip("nothing under way")
					}
					w.finish(rapid.IntRange(0, n-1).Draw(t, "attempt"), accept)
				},
				"wait": func(t *rapid.T) {
					after(time.Duration(rapid.SampledFrom([]int{1, 500, 2000, 61_000, 1_000_000, 90_000_000}).Draw(t, "ms")) * time.Millisecond)
				},
				"reroute": func(t *rapid.T) {
					w.t = t
					w.route(rapid.SampledFrom(w.senders).Draw(t, "sender"))
				},
				"unroute": func(t *rapid.T) { w.router.remove(rapid.SampledFrom(w.senders).Draw(t, "sender")) },
				"reload":  func(*rapid.T) { w.d.Reload(nil, 0) },
				"rumour":  func(t *rapid.T) { w.d.notify(rapid.SampledFrom(w.senders).Draw(t, "sender"), time.Now()) },
				"break": func(t *rapid.T) {
					w.queue.mu.Lock()
					defer w.queue.mu.Unlock()
					w.queue.broken = nil
					if rapid.Bool().Draw(t, "broken") {
						w.queue.broken = fmt.Errorf("storage is away")
					}
				},
				"": func(t *rapid.T) {
					w.t = t
					w.check()
				},
			}
			t.Repeat(actions)

			// And in the end, with everything cured, all mail goes out.
			w.queue.mu.Lock()
			w.queue.broken = nil
			w.queue.mu.Unlock()
			for _, s := range w.senders {
				w.router.set(s, envelope.Route{Tenant: "contoso", Connections: 2})
			}
			w.d.Reload(nil, 0)
			for range 4000 {
				w.check()
				for w.flying() > 0 {
					w.finish(0, accept)
					synctest.Wait()
				}
				if w.settled() == len(w.queue.order) {
					return
				}
				after(30 * time.Second)
			}
			t.Fatalf("%d of %d messages came to an end", w.settled(), len(w.queue.order))
		})
	})
}
