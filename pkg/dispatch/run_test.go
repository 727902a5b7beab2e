package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// What is under way when the relay stops gets DrainTimeout, and nothing new is begun.
func TestStopDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.DrainTimeout = 20 * time.Second })
		r.exchange.latency = 15 * time.Second
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		for range 100 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(5 * time.Second)
		began := time.Now()
		r.stop()
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("stopped after %v, want the 10 s the attempts under way took", took)
		}
		if got := len(r.exchange.all()); got != 3 || r.settled() != 3 {
			t.Errorf("%d attempts, %d settled, want the 3 under way", got, r.settled())
		}
		r.queue.put(hot, 1, 0) // intake ends after the dispatcher
		r.d.notify(sender(1), time.Now())
		r.d.Reload(nil, 0)
		after(time.Hour)
		if got := len(r.exchange.all()); got != 3 {
			t.Errorf("%d attempts after the stop", got-3)
		}
	})
}

// What is still under way then is cut off and goes back as it was; what was past the dot, or accepted, is recorded.
func TestStopCutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.DrainTimeout = 20 * time.Second })
		ends := map[envelope.Address]func(*try) status.Outcome{
			sender(0): func(t *try) status.Outcome { // as a deliverer says it
				out := refuse(t, status.Retry, "stopped")
				out.Errs[0].Err = context.Canceled
				return out
			},
			sender(1): func(t *try) status.Outcome { // as a closed socket says it
				return refuse(t, status.Retry, "use of closed network connection")
			},
			sender(2): func(t *try) status.Outcome { return refuse(t, status.Uncertain, "lost") },
			sender(3): accept,
			sender(4): func(t *try) status.Outcome {
				out := accept(t)
				out.Errs[1] = wrong(status.Retry, "stopped")
				return out
			},
		}
		r.exchange.answer = func(ctx context.Context, try *try) status.Outcome {
			<-ctx.Done()
			return ends[try.sender](try)
		}
		for i := range ends {
			r.router.set(i, envelope.Route{Tenant: "contoso", Connections: 3})
		}
		for i := range 5 {
			r.queue.put(sender(i), 2, 0)
		}
		r.run()
		synctest.Wait()
		began := time.Now()
		r.stop()
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("stopped after %v, want the drain timeout, 20 s", took)
		}
		for i, want := range []struct {
			state    envelope.State
			released int
			attempts int
		}{{envelope.Queued, 1, 0}, {envelope.Queued, 1, 0}, {envelope.Uncertain, 0, 1}, {envelope.Sent, 0, 1}, {envelope.Queued, 0, 1}} {
			m := r.queue.order[i]
			if m.progress.State != want.state || m.released != want.released || m.progress.Attempts != want.attempts || m.claimed {
				t.Errorf("%s: %v, released %d times, %d attempts, claimed=%v; want %v", m.env.Sender, m.progress.State, m.released, m.progress.Attempts, m.claimed, want)
			}
		}
		for _, outcome := range []struct {
			name string
			want float64
		}{{"sent", 2}, {"deferred", 0}, {"uncertain", 1}, {"parked", 0}, {"failed", 0}} {
			if got := testutil.ToFloat64(r.d.metrics.deliveries.WithLabelValues("contoso", outcome.name)); got != outcome.want {
				t.Errorf("%s: counted %v, want %v", outcome.name, got, outcome.want)
			}
		}
		if got := r.logged("not sent: stopping"); got != 2 {
			t.Errorf("%d lines say so, want 2", got)
		}
	})
}

// A claim that comes back after the stop is given back, not begun.
func TestStopWhileClaiming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		m := r.queue.put(hot, 1, 0)
		r.queue.waits = make(chan struct{})
		r.run()
		synctest.Wait()
		stopped := make(chan struct{})
		go func() { r.stop(); close(stopped) }()
		synctest.Wait()
		close(r.queue.waits)
		<-stopped
		if got := len(r.exchange.all()); got != 0 || m.released != 1 || m.claimed {
			t.Errorf("%d attempts after the stop; released %d times, claimed=%v", got, m.released, m.claimed)
		}
	})
}

// Run does not wait for a queue that never takes an outcome: the claim stays, and the log says what follows.
func TestStopWithBlockedSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.DrainTimeout = 20 * time.Second })
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 2})
		for range 10 {
			r.queue.put(hot, 1, 0)
		}
		r.queue.blocked = make(chan struct{})
		r.run()
		after(time.Hour)
		if got := len(r.exchange.all()); got != 2 {
			t.Errorf("%d attempts while no outcome can be recorded, want 2: one for each connection", got)
		}
		began := time.Now()
		r.stop()
		if took := time.Since(began); took != 20*time.Second+5*time.Second {
			t.Errorf("stopped after %v, want %v", took, 20*time.Second+5*time.Second)
		}
		if got := r.logged("outcome not recorded: the message will be sent again after a restart"); got != 2 {
			t.Errorf("%d lines say so, want 2", got)
		}
		if !r.queue.order[0].claimed || !r.queue.order[1].claimed {
			t.Error("a claim was given up: the message would be sent again at once")
		}
	})
}

// A Settle that takes its time holds its connection, and no other mailbox.
func TestSlowSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 2})
		r.router.set(sender(1), envelope.Route{Tenant: "contoso", Connections: 2})
		for range 10 {
			r.queue.put(hot, 1, 0)
		}
		blocked := make(chan struct{})
		r.queue.blocked = blocked
		r.run()
		after(time.Minute)
		r.queue.mu.Lock()
		r.queue.blocked = nil // for those that come now
		r.queue.mu.Unlock()
		other := r.queue.put(sender(1), 1, 0)
		after(time.Second)
		if r.queue.state(other) != envelope.Sent {
			t.Errorf("another mailbox's message: %v", r.queue.state(other))
		}
		close(blocked)
		after(time.Second)
		if got := r.settled(); got != 11 {
			t.Errorf("%d of 11 settled", got)
		}
	})
}

// A queue that fails is asked again each second and not more often, and told of once; its recovery is noticed.
func TestClaimFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 30})
		for range 5 {
			r.queue.put(hot, 1, 0)
		}
		r.queue.broken = errors.New("server is being reopened")
		r.run()
		after(time.Minute)
		if got := r.queue.claimed(); got < 55 || got > 3*61 {
			t.Errorf("%d claims in a minute, want one a second, or three where three connections meet the fault at once", got)
		}
		lines := 0
		for _, e := range r.logs.All() {
			if strings.HasPrefix(e.Message, "claim failed") {
				lines++
			}
		}
		if lines != 1 {
			t.Errorf("%d lines say so, want 1", lines)
		}
		r.queue.mu.Lock()
		r.queue.broken = nil
		r.queue.mu.Unlock()
		after(10 * time.Second)
		if got := r.settled(); got != 5 {
			t.Errorf("%d of 5 sent after the recovery", got)
		}
		for _, m := range r.queue.order {
			if m.progress.Attempts != 1 {
				t.Errorf("%s: %d attempts, want 1", m.env.ID, m.progress.Attempts)
			}
		}
	})
}

// One outage defers everything at once; everything comes back spread, within the limits, and nothing is lost.
func TestNoStampede(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const senders, each = 100, 100
		r := newRig(t, func(o *Options) { o.Workers = 512 })
		began := time.Now()
		outage := 10 * time.Minute
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			advance(100 * time.Millisecond)
			if time.Since(began) < outage {
				return refuse(try, status.Retry, "cannot be reached")
			}
			return accept(try)
		}
		for i := range senders {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 1000})
			for range each {
				r.queue.put(sender(i), 1, 0)
			}
		}
		r.run()
		after(3 * time.Hour)
		if got := r.settled(); got != senders*each {
			t.Fatalf("%d of %d sent", got, senders*each)
		}
		var first []time.Time // of each message, after the outage
		by := map[envelope.Address][]arrival{}
		for _, try := range r.exchange.all() {
			by[try.sender] = append(by[try.sender], arrival{try.end, 1})
			if try.errs != nil && try.errs[0] == nil {
				first = append(first, try.begun)
			}
		}
		for s, list := range by {
			if got := most(list, time.Minute); got > 1000 {
				t.Errorf("%s: %d in a minute", s, got)
			}
			if got := r.exchange.most[s]; got > 3 {
				t.Errorf("%s: %d at once", s, got)
			}
		}
		// The waits are 1, 5 and 15 minutes and up to a quarter: what one step defers in 10 s must not come back in 10 s.
		slices.SortFunc(first, time.Time.Compare)
		perMinute := map[int]int{}
		for _, at := range first {
			perMinute[int(at.Sub(began)/time.Minute)]++
		}
		if len(perMinute) < 4 {
			t.Errorf("10,000 messages came back within %d minutes: %v", len(perMinute), perMinute)
		}
		if r.stop(); len(r.exchange.all()) > 5*senders*each {
			t.Errorf("%d attempts for %d messages", len(r.exchange.all()), senders*each)
		}
	})
}

// reentrant is a Source and a Deliverer that need the dispatcher's mutex themselves, in everything but Park.
type reentrant struct {
	*fakeQueue
	exchange *fakeExchange
	d        **Dispatcher
}

func (s reentrant) touch() {
	(*s.d).mu.Lock()
	defer (*s.d).mu.Unlock()
}

func (s reentrant) Watch(f func(envelope.Address, time.Time)) { s.touch(); s.fakeQueue.Watch(f) }
func (s reentrant) Claim(ctx context.Context, a envelope.Address, now time.Time) (envelope.Claim, error) {
	s.touch()
	return s.fakeQueue.Claim(ctx, a, now)
}
func (s reentrant) Settle(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error {
	s.touch()
	return s.fakeQueue.Settle(ctx, env, p)
}
func (s reentrant) Note(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error {
	s.touch()
	return s.fakeQueue.Note(ctx, env, p)
}
func (s reentrant) Rest(env *envelope.Envelope, until time.Time) {
	s.touch()
	s.fakeQueue.Rest(env, until)
}
func (s reentrant) Release(env *envelope.Envelope, p envelope.Progress) {
	s.touch()
	s.fakeQueue.Release(env, p)
}
func (s reentrant) Deliver(ctx context.Context, route *envelope.Route, env *envelope.Envelope, open []int, body io.Reader) status.Outcome {
	s.touch()
	return s.exchange.Deliver(ctx, route, env, open, body)
}

// The dispatcher's mutex is held in no call of the source but Park, so the source may hold its own while it is told
// nothing; a dispatcher that holds it elsewhere hangs here.
func TestMutexIsNotHeldOverTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s reentrant
		r := newRig(t, func(o *Options) {
			s = reentrant{o.Source.(*fakeQueue), o.Deliverer.(*fakeExchange), new(*Dispatcher)}
			o.Source, o.Deliverer = s, s
		})
		*s.d = r.d
		parked := 0
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if parked++; parked == 1 {
				return refuse(try, status.ParkTenant, "535")
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		r.queue.put(hot, 1, 0)
		r.run()
		after(5 * time.Minute)
		if r.settled() != 1 || len(r.queue.parks(hot)) != 2 {
			t.Errorf("%d sent, parks %q", r.settled(), r.queue.parks(hot))
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.SenderLabels = 2 })
		answers := []status.Action{status.Retry, status.Fail, status.ParkSender, status.Uncertain}
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			advance(time.Second)
			if try.id <= "00000000000000000004" {
				return refuse(try, answers[try.id[19]-'1'], "no")
			}
			return accept(try)
		}
		for i := range 5 {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 1, RecipientsPerDay: 10})
			r.queue.put(sender(i), 2, 0)
		}
		// One login in two tenants, once parked and once not; and one without a limit.
		r.router.set(sender(8), envelope.Route{Tenant: "fabrikam", Login: sender(2), Connections: 1})
		r.queue.put(sender(8), 1, 0)
		r.queue.put(sender(9), 1, 0) // no route: parked, and without a login
		r.run()
		after(30 * time.Second)
		want := `
# HELP relayd_deliveries_total Attempts at delivering a message, by what they came to.
# TYPE relayd_deliveries_total counter
relayd_deliveries_total{outcome="deferred",tenant="contoso"} 1
relayd_deliveries_total{outcome="failed",tenant="contoso"} 1
relayd_deliveries_total{outcome="parked",tenant="contoso"} 1
relayd_deliveries_total{outcome="sent",tenant="contoso"} 1
relayd_deliveries_total{outcome="uncertain",tenant="contoso"} 1
relayd_deliveries_total{outcome="deferred",tenant="fabrikam"} 0
relayd_deliveries_total{outcome="failed",tenant="fabrikam"} 0
relayd_deliveries_total{outcome="parked",tenant="fabrikam"} 0
relayd_deliveries_total{outcome="sent",tenant="fabrikam"} 1
relayd_deliveries_total{outcome="uncertain",tenant="fabrikam"} 0
# HELP relayd_sender_parked 1 where the mailbox, or its mail to recipients outside, waits for a cure or for quota.
# TYPE relayd_sender_parked gauge
relayd_sender_parked{sender="s002@contoso.com"} 1
relayd_sender_parked{sender="s009@contoso.com"} 1
relayd_sender_parked{sender="other"} 0
# HELP relayd_sender_recipients_remaining Recipients the mailbox has left in its rolling day.
# TYPE relayd_sender_recipients_remaining gauge
relayd_sender_recipients_remaining{sender="s002@contoso.com"} 10
relayd_sender_recipients_remaining{sender="s009@contoso.com"} +Inf
relayd_sender_recipients_remaining{sender="other"} 8
`
		names := []string{"relayd_deliveries_total", "relayd_sender_parked", "relayd_sender_recipients_remaining"}
		if err := testutil.GatherAndCompare(r.registry, strings.NewReader(want), names...); err != nil {
			t.Error(err)
		}
		if problems, err := testutil.GatherAndLint(r.registry); err != nil || len(problems) > 0 {
			t.Errorf("lint: %v %v", problems, err)
		}
		// Durations of all attempts; waits of first ones only, and not of those that cost no attempt.
		if got := sampleCount(t, r, "relayd_delivery_duration_seconds"); got != 6 {
			t.Errorf("%d durations, want 6", got)
		}
		if got := sampleCount(t, r, "relayd_queue_wait_seconds"); got != 5 {
			t.Errorf("%d waits, want 5", got)
		}
		after(3 * time.Hour)
		if got := sampleCount(t, r, "relayd_queue_wait_seconds"); got != 5 {
			t.Errorf("%d waits after more attempts at the same mail, want 5: the parked one has none that counts", got)
		}
	})
}

func TestNoDailyLimitIsNoneLeftToCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		r.queue.put(hot, 1, 0)
		r.run()
		after(time.Second)
		want := `
# HELP relayd_sender_recipients_remaining Recipients the mailbox has left in its rolling day.
# TYPE relayd_sender_recipients_remaining gauge
relayd_sender_recipients_remaining{sender="hot@contoso.com"} +Inf
`
		if err := testutil.GatherAndCompare(r.registry, strings.NewReader(want), "relayd_sender_recipients_remaining"); err != nil {
			t.Error(err)
		}
	})
}

// sampleCount returns how many observations a histogram has, over all labels.
func sampleCount(t *testing.T, r *rig, name string) (n uint64) {
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				n += m.GetHistogram().GetSampleCount()
			}
		}
	}
	return n
}

func TestDefaults(t *testing.T) {
	var o Options
	o.setDefaults()
	if o.Workers != 256 || fmt.Sprint(o.Retry) != "[1m0s 5m0s 15m0s 30m0s 1h0m0s 2h0m0s 4h0m0s]" || o.Lifetime != 120*time.Hour ||
		o.DrainTimeout != 25*time.Second || o.SenderLabels != 200 {
		t.Errorf("not as the comments say: %+v", o)
	}
}
