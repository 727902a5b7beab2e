package dispatch

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

const inside, beyond = envelope.Address("a@contoso.com"), envelope.Address("b@example.com")

// withReporter gives the options a reporter that notes what it is told.
func withReporter(report *fakeReporter) func(*Options) {
	return func(o *Options) { o.Reporter = report }
}

// What each action does: to the message, to its sender's other mail, to others of its tenant; what it costs, what is
// counted, who is told.
func TestEveryAction(t *testing.T) {
	type mails struct{ ownInside, ownBeyond, otherInside, otherBeyond bool } // sent within ten seconds
	all := mails{true, true, true, true}
	for _, tt := range []struct {
		action   status.Action
		stage    status.Stage
		code     int
		outcome  string
		state    envelope.State
		attempts int
		sent     mails
		told     string
		parked   int // mailboxes
	}{
		{status.Retry, status.StageRcpt, 451, "deferred", envelope.Deferred, 1, all, "", 0},
		{status.Fail, status.StageRcpt, 550, "failed", envelope.Failed, 1, all, "", 0},
		{status.BackOffSender, status.StageDot, 432, "deferred", envelope.Deferred, 1, mails{false, false, true, true}, "", 0},
		{status.BackOffTenant, status.StageConnect, 451, "deferred", envelope.Deferred, 1, mails{}, "", 0},
		{status.ParkSender, status.StageAuth, 535, "parked", envelope.Queued, 0, mails{false, false, true, true}, "contoso/hot@contoso.com parked: auth: 535 no", 1},
		{status.ParkTenant, status.StageToken, 535, "parked", envelope.Queued, 0, mails{}, "contoso parked: token: 535 no", 2},
		{status.Uncertain, status.StageDot, 451, "uncertain", envelope.Uncertain, 1, all, "", 0},
		{status.Split, status.StageRcpt, 452, "deferred", envelope.Deferred, 1, all, "", 0}, // alone already
		{status.RetryOnce, status.StageDot, 554, "deferred", envelope.Deferred, 1, all, "", 0},
		{status.HoldSender, status.StageDot, 554, "parked", envelope.Queued, 0, mails{false, false, true, true}, "contoso/hot@contoso.com held: dot: 554 no", 1},
		{status.HoldSenderExternal, status.StageDot, 550, "parked", envelope.Queued, 0, mails{true, false, true, true}, "contoso/hot@contoso.com held: dot: 550 no", 1},
		{status.HoldTenantExternal, status.StageDot, 550, "parked", envelope.Queued, 0, mails{true, false, true, false}, "contoso held: dot: 550 no", 2},
	} {
		t.Run(tt.action.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				report := &fakeReporter{}
				r := newRig(t, withReporter(report))
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
					if try.id == "00000000000000000001" {
						return each(try, reply(tt.stage, tt.code, tt.action, "no"))
					}
					return accept(try)
				}
				other, third := sender(1), envelope.Address("c@fabrikam.com")
				for _, s := range []envelope.Address{hot, other} {
					r.router.set(s, envelope.Route{Tenant: "contoso", Connections: 2})
				}
				r.router.set(third, envelope.Route{Tenant: "fabrikam", Connections: 2})
				first := r.queue.putTo(hot, 0, beyond)
				r.run()
				after(time.Second)
				mail := []*mail{
					r.queue.putTo(hot, 0, inside), r.queue.putTo(hot, 0, beyond), r.queue.putTo(other, 0, inside), r.queue.putTo(other, 0, beyond),
					r.queue.putTo(third, 0, beyond),
				}
				after(10 * time.Second)
				p := r.queue.progress(first)
				if p.State != tt.state || p.Attempts != tt.attempts {
					t.Errorf("the message: %v after %d attempts, want %v after %d", p.State, p.Attempts, tt.state, tt.attempts)
				}
				var sent []bool
				for _, m := range mail {
					sent = append(sent, r.queue.state(m) == envelope.Sent)
				}
				if got := (mails{sent[0], sent[1], sent[2], sent[3]}); got != tt.sent {
					t.Errorf("sent: got %+v, want %+v", got, tt.sent)
				}
				if !sent[4] {
					t.Error("another tenant's mail was kept back")
				}
				if got := testutil.ToFloat64(r.d.metrics.deliveries.WithLabelValues("contoso", tt.outcome)); got < 1 {
					t.Errorf("%s: not counted", tt.outcome)
				}
				if tt.outcome == "parked" {
					if got := testutil.ToFloat64(r.d.metrics.deliveries.WithLabelValues("contoso", "deferred")); got != 0 {
						t.Errorf("%v counted as deferred", got)
					}
				}
				if got := strings.Join(report.words(), "; "); got != tt.told {
					t.Errorf("told %q, want %q", got, tt.told)
				}
				parked := 0
				r.d.mu.Lock()
				for _, m := range r.d.mailboxes {
					if m.parkedFor() != "" {
						parked++
					}
				}
				r.d.mu.Unlock()
				if parked != tt.parked {
					t.Errorf("%d mailboxes are shown as parked, want %d", parked, tt.parked)
				}
				if want := map[bool]int{true: 1}[tt.state == envelope.Failed]; len(report.bounces()) != want {
					t.Errorf("%d bounces, want %d", len(report.bounces()), want)
				}
			})
		})
	}
}

// 432 halves the connections, one comes back each five minutes.
func TestThreadLimitShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var refused atomic.Bool
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if refused.CompareAndSwap(false, true) {
				return each(try, reply(status.StageDot, 432, status.BackOffSender, "threads"))
			}
			advance(time.Second)
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 6})
		for range 10000 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(20 * time.Second)
		for _, want := range []int{3, 4, 5, 6, 6} {
			r.exchange.mu.Lock()
			r.exchange.most[hot] = 0
			r.exchange.mu.Unlock()
			after(4*time.Minute + 30*time.Second)
			r.exchange.mu.Lock()
			if got := r.exchange.most[hot]; got != want {
				t.Errorf("%d at once, want %d", got, want)
			}
			r.exchange.mu.Unlock()
			after(30 * time.Second)
		}
	})
}

// A sign-in service that asks for patience for an hour is a person's business.
func TestPatienceAtSignInEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{}
		r := newRig(t, withReporter(report))
		var cured atomic.Bool
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if cured.Load() {
				return accept(try)
			}
			return each(try, reply(status.StageAuth, 451, status.BackOffSender, "PRX4"))
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		for range 20 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(55 * time.Minute)
		if got := report.words(); len(got) != 0 {
			t.Errorf("told within the hour: %q", got)
		}
		after(20 * time.Minute)
		want := []string{"contoso/hot@contoso.com parked: auth: 451 PRX4"}
		if got := report.words(); !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		spent := 0
		for _, m := range r.queue.order {
			spent += r.queue.progress(m).Attempts
		}
		after(10 * 24 * time.Hour)
		for _, m := range r.queue.order {
			spent -= r.queue.progress(m).Attempts
		}
		if spent != 0 {
			t.Errorf("%d attempts were spent while parked", -spent)
		}
		cured.Store(true)
		after(5 * time.Hour)
		if got := report.words(); r.settled() != 20 || len(got) != 2 || got[1] != "contoso/hot@contoso.com resumed" {
			t.Errorf("%d of 20 sent, told %q", r.settled(), got)
		}
		if got := r.queue.order[0].progress.State; got != envelope.Sent {
			t.Errorf("got %v, want sent", got)
		}
	})
}

// What opens a gate: a quota, or a mailbox that is full, nothing but an acceptance; a sign-in fault any reply behind it.
// What we refuse ourselves opens nothing.
func TestWhatOpensAGate(t *testing.T) {
	park := func(stage status.Stage) *status.Error { return reply(stage, 535, status.ParkSender, "parked") }
	hold := reply(status.StageDot, 554, status.HoldSender, "quota")
	unknown := reply(status.StageRcpt, 550, status.Fail, "unknown user")
	ours := &status.Error{Code: 552, Text: "too large", Stage: status.StageMail, Action: status.Fail}
	for _, tt := range []struct {
		name   string
		closed *status.Error
		probe  *status.Error
		opens  bool
	}{
		{"quota, accepted", hold, nil, true},
		{"quota, refused", hold, unknown, false},
		{"quota, refused by us", hold, ours, false},
		{"sign-in, accepted", park(status.StageAuth), nil, true},
		{"sign-in, refused behind it", park(status.StageAuth), unknown, true},
		{"sign-in, deferred behind it", park(status.StageToken), reply(status.StageDot, 450, status.Retry, "later"), true},
		{"sign-in, refused by us", park(status.StageAuth), ours, false},
		{"sign-in, not reached", park(status.StageAuth), reply(status.StageConnect, 451, status.Retry, ""), false},
		{"mailbox full, refused", park(status.StageDot), unknown, false},
		{"mailbox full, accepted", park(status.StageDot), nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				report := &fakeReporter{}
				r := newRig(t, withReporter(report))
				var n atomic.Int32
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
					switch n.Add(1) {
					case 1:
						return each(try, tt.closed)
					case 2:
						return each(try, tt.probe)
					}
					return each(try, tt.closed)
				}
				r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
				for range 5 {
					r.queue.put(hot, 1, 0)
				}
				r.run()
				for n.Load() < 2 {
					after(time.Second)
				}
				synctest.Wait()
				got := report.words()
				if opened := len(got) > 1 && strings.HasSuffix(got[1], "resumed"); opened != tt.opens {
					t.Errorf("told %q, want opened=%v", got, tt.opens)
				}
			})
		})
	}
}

// A hold for recipients outside: those inside flow, mixed messages are parted, one probe finds out for all.
func TestHoldForRecipientsOutside(t *testing.T) {
	for _, action := range []status.Action{status.HoldSenderExternal, status.HoldTenantExternal} {
		t.Run(action.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				report := &fakeReporter{}
				r := newRig(t, withReporter(report))
				var cured atomic.Bool
				began := time.Now()
				var refused []time.Duration
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
					advance(time.Second)
					if !cured.Load() && slices.Contains(try.to, beyond) {
						r.exchange.mu.Lock()
						refused = append(refused, try.begun.Sub(began))
						r.exchange.mu.Unlock()
						return each(try, reply(status.StageDot, 550, action, "5.7.233"))
					}
					return accept(try)
				}
				senders := []envelope.Address{hot, sender(1), sender(2)}
				if action == status.HoldSenderExternal {
					senders = senders[:1]
				}
				for _, s := range senders {
					r.router.set(s, envelope.Route{Tenant: "contoso", Connections: 1, MessagesPerMinute: 30})
				}
				var outside, mixed, within []*mail
				outside = append(outside, r.queue.putTo(hot, 0, beyond))
				r.run()
				after(10 * time.Second)
				for range 5 {
					for _, s := range senders {
						outside = append(outside, r.queue.putTo(s, 0, beyond))
						mixed = append(mixed, r.queue.putTo(s, 0, beyond, inside))
						within = append(within, r.queue.putTo(s, 0, inside))
					}
				}
				after(10 * time.Minute)
				for _, m := range within {
					if r.queue.state(m) != envelope.Sent {
						t.Errorf("inside: %v", r.queue.state(m))
					}
				}
				for _, m := range mixed {
					p := r.queue.progress(m)
					if len(p.Results) != 2 || p.Results[1].State != envelope.Sent || p.Results[0].State != envelope.Queued || p.Results[0].Attempts != 0 {
						t.Errorf("mixed: %+v", p)
					}
				}
				claims := r.queue.claimed()
				after(15 * time.Minute)
				if got := r.queue.claimed() - claims; got > 0 {
					t.Errorf("%d claims while nothing can be sent", got)
				}
				after(5 * time.Hour) // probes after 30 minutes, then each hour
				if n := len(refused); n < 5 || n > 6 || refused[1] < 30*time.Minute || refused[1] > 34*time.Minute || refused[2]-refused[1] < time.Hour {
					t.Errorf("probes after %v", refused)
				}
				for _, m := range slices.Concat(outside, mixed) {
					if p := r.queue.progress(m); p.Attempts > 1 {
						t.Errorf("%s: %d attempts", m.env.ID, p.Attempts)
					}
				}
				cured.Store(true)
				after(3 * time.Hour)
				if r.settled() != len(r.queue.order) {
					t.Errorf("%d of %d sent", r.settled(), len(r.queue.order))
				}
				who := map[status.Action]string{status.HoldSenderExternal: "contoso/hot@contoso.com", status.HoldTenantExternal: "contoso"}[action]
				if got, want := report.words(), []string{who + " held: dot: 550 5.7.233", who + " resumed"}; !slices.Equal(got, want) {
					t.Errorf("told %q, want %q", got, want)
				}
			})
		})
	}
}

// Recipients inside that were refused for the sake of one outside are sent again without it, at once.
func TestRefusedForAnothersSake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if slices.Contains(try.to, beyond) {
				return each(try, reply(status.StageDot, 550, status.HoldTenantExternal, "5.7.233"))
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		m := r.queue.putTo(hot, 0, inside, beyond)
		r.run()
		after(10 * time.Second)
		p := r.queue.progress(m)
		if len(p.Results) != 2 || p.Results[0].State != envelope.Sent || p.Results[1].State == envelope.Sent || p.Attempts != 1 {
			t.Errorf("got %+v", p)
		}
	})
}

// One tenant's mail leaves a quarter of the workers to the others.
func TestNoTenantHasAllWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Workers = 8 })
		r.exchange.answer = func(ctx context.Context, try *try) status.Outcome {
			if try.tenant == "contoso" {
				advance(5 * time.Minute)
			}
			return accept(try)
		}
		for i := range 20 {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3})
			for range 20 {
				r.queue.put(sender(i), 1, 0)
			}
		}
		other := envelope.Address("c@fabrikam.com")
		r.router.set(other, envelope.Route{Tenant: "fabrikam", Connections: 3})
		first := r.queue.put(other, 1, 0)
		r.run()
		after(time.Second)
		var late []*mail
		for range 10 {
			late = append(late, r.queue.put(other, 1, 0))
		}
		after(time.Second)
		for _, m := range append(late, first) {
			if r.queue.state(m) != envelope.Sent {
				t.Fatalf("another tenant's mail waits for a worker: %v", r.queue.state(m))
			}
		}
		r.d.mu.Lock()
		active := r.d.tenants["contoso"].active
		r.d.mu.Unlock()
		if active != 6 {
			t.Errorf("%d of 8 workers, want 6", active)
		}
		after(6 * time.Hour)
		if got := r.settled(); got != 411 {
			t.Errorf("%d of 411 sent", got)
		}
	})
}

// A reply that calls recipients external whom we think inside knows better: they wait for the hold, and are not tried again
// and again.
func TestHoldOfThoseWeThinkInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			return each(try, reply(status.StageDot, 550, status.HoldSenderExternal, "5.7.236"))
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		m := r.queue.putTo(hot, 0, inside)
		r.run()
		after(time.Hour)
		if n := len(r.exchange.of(hot)); n != 2 || r.queue.progress(m).Attempts != 0 {
			t.Errorf("%d attempts in an hour, %d of them spent; want 2 and 0", n, r.queue.progress(m).Attempts)
		}
	})
}
