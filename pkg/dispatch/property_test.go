package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// step is one thing that happens to a world. Each uses the fields it needs.
type step struct {
	kind   string
	sender envelope.Address
	n      int             // how many, or which
	due    []time.Duration // of the messages put
	action status.Action
	stage  status.Stage
	code   int
	flag   bool
	wait   time.Duration
	route  envelope.Route
}

// steps draws the fields of all, so that a failing sequence stays the same while others are tried without parts of it.
var steps = rapid.Custom(func(t *rapid.T) step {
	return step{
		kind: rapid.SampledFrom([]string{
			"put", "put", "end", "end", "accept", "accept", "wait", "wait", "reroute", "unroute", "reload", "rumour", "break",
		}).Draw(t, "kind"),
		sender: sender(rapid.IntRange(0, 7).Draw(t, "sender")),
		n:      rapid.IntRange(1, 60).Draw(t, "n"),
		due:    rapid.SliceOfN(rapid.SampledFrom([]time.Duration{0, 0, time.Second, 90 * time.Second}), 1, 4).Draw(t, "due"),
		action: rapid.SampledFrom([]status.Action{
			status.Retry, status.Fail, status.BackOffSender, status.BackOffTenant, status.ParkSender, status.ParkTenant, status.Uncertain,
			status.Split, status.RetryOnce, status.HoldSender, status.HoldSenderExternal, status.HoldTenantExternal,
		}).Draw(t, "action"),
		stage: rapid.SampledFrom([]status.Stage{status.StageConnect, status.StageAuth, status.StageRcpt, status.StageDot}).Draw(t, "stage"),
		code:  rapid.SampledFrom([]int{432, 451, 550}).Draw(t, "code"),
		flag:  rapid.Bool().Draw(t, "flag"),
		wait: rapid.SampledFrom([]time.Duration{
			time.Millisecond, 500 * time.Millisecond, 2 * time.Second, 61 * time.Second, 17 * time.Minute, 25 * time.Hour,
		}).Draw(t, "wait"),
		route: envelope.Route{
			Tenant:            rapid.SampledFrom([]string{"contoso", "fabrikam"}).Draw(t, "tenant"),
			Login:             rapid.SampledFrom([]envelope.Address{"", "relay@contoso.com"}).Draw(t, "login"),
			Connections:       rapid.IntRange(1, 3).Draw(t, "connections"),
			MessagesPerMinute: rapid.SampledFrom([]int{0, 1, 30}).Draw(t, "per minute"),
			RecipientsPerDay:  rapid.SampledFrom([]int{0, 5}).Draw(t, "per day"),

			RecipientsPerMessage: rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "per message"),
			RecipientsPerDomain:  rapid.SampledFrom([]int{0, 0, 1}).Draw(t, "per domain"),
			Fallback:             rapid.SampledFrom([]envelope.Address{"", "", sender(0), sender(1), "nobody@contoso.com"}).Draw(t, "fallback"),
		},
	}
})

// world is a dispatcher whose every attempt waits for the property to answer it.
type world struct {
	*rig
	flight   []*flying // guarded by exchange.mu
	accepted map[envelope.ID]map[int]int
}

// broken is what fatalf panics with: the bubble's test may not be failed, since rapid tries again with less.
type broken string

func (w *world) fatalf(format string, args ...any) { panic(broken(fmt.Sprintf(format, args...))) }

// flying is an attempt under way.
type flying struct {
	try  *try
	verd chan status.Outcome
}

func newWorld(tb testing.TB) *world {
	w := &world{rig: newRig(tb, func(o *Options) {
		o.Workers, o.DrainTimeout, o.DelayWarning = 40, time.Second, time.Minute
		o.Memory, o.Reporter, o.Record = newFakeMemory(), &fakeReporter{}, func(envelope.Step) {}
	})}
	w.accepted = map[envelope.ID]map[int]int{}
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
	return w
}

// finish answers the attempt with the given index.
func (w *world) finish(i int, out func(*try) status.Outcome) {
	w.exchange.mu.Lock()
	f := w.flight[i]
	w.flight = slices.Delete(w.flight, i, i+1)
	w.exchange.mu.Unlock()
	o := out(f.try)
	for k, i := range f.try.open {
		if w.accepted[f.try.id] == nil {
			w.accepted[f.try.id] = map[int]int{}
		}
		if o.Errs[k] == nil {
			w.accepted[f.try.id][i]++
		}
	}
	f.verd <- o
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
	held := map[*mailbox]bool{}
	for name, t := range d.tenants {
		for _, m := range t.held {
			ready[m]++
			held[m] = true
		}
		if n := d.room(t); len(t.held) > 0 && n > 0 && w.flying() < w.d.opts.Workers {
			w.fatalf("%s: room for %d more, and %d stand behind", name, n, len(t.held))
		}
	}
	known := map[*mailbox]bool{}
	for key, m := range d.mailboxes {
		known[m] = true
		active += m.active
		w.mailbox(key, m, ready[m], held[m], now)
	}
	for i, m := range d.waiting {
		if m.at != i || !known[m] {
			w.fatalf("place %d of the waiting is held by one that thinks it is at %d, known=%v", i, m.at, known[m])
		}
		if i > 0 && m.wake.Before(d.waiting[(i-1)/2].wake) {
			w.fatalf("the waiting are out of order at %d", i)
		}
	}
	if n := w.flying(); n != active {
		w.fatalf("%d attempts under way, %d connections taken", n, active)
	}
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	for key, l := range w.queue.lanes {
		if len(l.heap) == 0 {
			continue
		}
		// No wake-up is lost: the dispatcher knows of waiting mail no later than it is due.
		if mine := d.lanes[key]; mine == nil || mine.due.IsZero() || mine.due.After(l.heap[0].due) {
			w.fatalf("%s has mail due %v that the dispatcher does not know of: %+v", key, l.heap[0].due.Sub(now), mine)
		} else if mine.mailbox != nil && mine.pos < 0 {
			w.fatalf("%s has a mailbox and mail and stands in no heap", key)
		} else if mine.shown != l.parked {
			w.fatalf("%s is shown as %q, thought to be shown as %q", key, l.parked, mine.shown)
		} else if mine.mailbox != nil && mine.shown != mine.mailbox.parkedFor() {
			w.fatalf("%s is parked for %q and shown as %q", key, mine.mailbox.parkedFor(), mine.shown)
		}
	}
	for _, wrong := range w.queue.wrong {
		w.fatalf("%s", wrong)
	}
}

// mailbox checks one: with work, a free connection and open gates it is ready, or waits for the right time.
func (w *world) mailbox(key string, m *mailbox, ready int, held bool, now time.Time) {
	at, ok := m.next(now)
	switch {
	case m.ready && ready != 1, !m.ready && ready != 0:
		w.fatalf("%s: ready=%v, and %d times in the queue", key, m.ready, ready)
	case m.ready && !held && w.flying() < w.d.opts.Workers:
		w.fatalf("%s: ready, workers free, and nobody takes it", key)
	case !m.ready && ok && m.at < 0:
		w.fatalf("%s: may send in %v and stands nowhere", key, at.Sub(now))
	case !m.ready && ok && m.wake.Sub(now) > max(0, at.Sub(now))+time.Millisecond: // the pace rounds up
		w.fatalf("%s: may send in %v and sleeps %v", key, at.Sub(now), m.wake.Sub(now))
	case m.day.Reserved() < 0 || m.active < 0:
		w.fatalf("%s: %d reserved, %d active", key, m.day.Reserved(), m.active)
	case m.active == 0 && (m.day.Reserved() != 0 || m.Gate.Probe != 0 || m.External.Probe != 0):
		w.fatalf("%s: nothing under way, yet %d reserved, probes %d and %d", key, m.day.Reserved(), m.Gate.Probe, m.External.Probe)
	}
	away := 0
	for l := range m.members {
		if l.home != m && l.spare != m || l.mailbox != l.home && l.mailbox != l.spare {
			w.fatalf("%s: %s is no member", key, l.sender)
		}
		if l.home == m && l.mailbox != m {
			away++
		}
		if l.home == m && l.mailbox != m && (!m.stuck() || l.spare.stuck()) {
			w.fatalf("%s: %s goes by %s", key, l.sender, l.mailbox.key)
		}
	}
	if away != m.away {
		w.fatalf("%s: %d lanes go another way, %d counted", key, away, m.away)
	}
	for i, l := range m.lanes {
		if l.pos != i || l.mailbox != m || l.due.IsZero() || i > 0 && m.lanes.Less(i, (i-1)/2) {
			w.fatalf("%s: lane %d is out of order: %+v", key, i, l)
		}
	}
}

// take makes one step.
func (w *world) take(s step) {
	switch s.kind {
	case "put":
		for _, due := range s.due {
			w.queue.putTo(s.sender, due, []envelope.Address{"a@example.com", "b@contoso.com", "c@example.com", "d@Example.com"}[:1+s.n%4]...)
		}
	case "end", "accept":
		n := w.flying()
		if n == 0 {
			return
		}
		w.finish(s.n%n, func(try *try) status.Outcome {
			if s.kind == "accept" {
				return accept(try)
			}
			out := each(try, reply(s.stage, s.code, s.action, s.action.String()))
			if s.flag {
				out.Errs[0] = nil
			}
			return out
		})
	case "wait":
		after(s.wait)
	case "reroute":
		w.router.set(s.sender, s.route)
	case "unroute":
		w.router.remove(s.sender)
	case "reload":
		w.d.Reload(nil, 0)
	case "rumour":
		w.d.notify(s.sender, time.Now())
	case "break":
		w.queue.mu.Lock()
		w.queue.broken = nil
		if s.flag {
			w.queue.broken = errors.New("storage is away")
		}
		w.queue.mu.Unlock()
	}
}

// live makes all steps, checks behind each, and sees that with everything cured all mail goes out in the end.
func (w *world) live(sequence []step) {
	for i := range 8 {
		w.router.set(sender(i), sequence[i%len(sequence)].route)
	}
	w.check()
	for _, s := range sequence {
		w.take(s)
		w.check()
	}
	w.take(step{kind: "break"})
	for i := range 8 {
		w.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 2})
	}
	w.d.Reload(nil, 0)
	for range 3000 {
		for w.check(); w.flying() > 0; w.check() {
			w.finish(0, accept)
		}
		if w.settled() == len(w.queue.order) {
			w.ledger()
			return
		}
		after(time.Minute)
	}
	w.fatalf("%d of %d messages came to an end", w.settled(), len(w.queue.order))
}

// ledger checks that each recipient came to one end, and was accepted once; again only where nobody could know.
func (w *world) ledger() {
	for _, m := range w.queue.order {
		unsure := false
		for _, p := range m.history {
			unsure = unsure || p.State == envelope.Uncertain
		}
		for i, res := range m.progress.Results {
			n := w.accepted[m.env.ID][i]
			if res.Owed || res.State == envelope.Sent && n != 1 || res.State == envelope.Failed && n != 0 || !res.State.Final() {
				w.fatalf("%s, recipient %d: %s, accepted %d times, owed=%v, uncertain=%v", m.env.ID, i, res.State, n, res.Owed, unsure)
			}
		}
	}
}

func TestNoWakeUpIsLost(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sequence := rapid.SliceOfN(steps, 1, 60).Draw(rt, "steps")
		var fault any
		synctest.Test(t, func(st *testing.T) {
			w := newWorld(st)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = w.d.Run(ctx) // is always nil
			}()
			defer func() {
				if fault = recover(); fault != nil {
					if _, ok := fault.(broken); !ok {
						panic(fault)
					}
				}
				cancel()
				<-ended
			}()
			w.live(sequence)
		})
		if fault != nil {
			rt.Fatal(fault)
		}
	})
}
