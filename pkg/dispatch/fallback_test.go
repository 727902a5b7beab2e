package dispatch

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

const spare = envelope.Address("spare@contoso.com")

// While a sender is parked its mail goes by its fallback, as the fallback, at the fallback's pace; one message at a time
// probes; after the cure it goes its own way.
func TestFallback(t *testing.T) {
	for _, action := range []status.Action{status.ParkSender, status.ParkTenant} {
		t.Run(action.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				report := &fakeReporter{}
				r := newRig(t, withReporter(report))
				var cured atomic.Bool
				began := time.Now()
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
					advance(500 * time.Millisecond)
					if try.login == hot && !cured.Load() {
						return each(try, reply(status.StageAuth, 535, action, "no"))
					}
					return accept(try)
				}
				r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, Fallback: spare})
				r.router.set(spare, envelope.Route{Tenant: "fabrikam", Connections: 2, MessagesPerMinute: 30})
				for range 1000 {
					r.queue.put(hot, 1, 0)
				}
				r.run()
				after(20 * time.Minute)
				var probes []time.Duration
				var via []arrival
				for _, try := range r.exchange.of(hot) {
					switch try.login {
					case hot:
						probes = append(probes, try.begun.Sub(began))
						if try.from != "" {
							t.Fatalf("sent as itself, with From rewritten to %s", try.from)
						}
					case spare:
						via = append(via, arrival{try.begun, 1})
						if try.from != spare || try.tenant != "fabrikam" {
							t.Fatalf("by the fallback with From %q, tenant %s", try.from, try.tenant)
						}
					}
				}
				if got := most(via, time.Minute); got > 30 || len(via) < 500 {
					t.Errorf("%d by the fallback, %d in a minute, want 30", len(via), got)
				}
				if n := len(probes); n != 7 { // three at first, then after 1, 2, 4, 8 minutes
					t.Errorf("probes after %v", probes)
				}
				if got := r.queue.parks(hot); len(got) > 0 && got[len(got)-1] != "" {
					t.Errorf("the source was told %q, though its mail flows", got)
				}
				cured.Store(true)
				after(20 * time.Minute)
				before := len(r.exchange.of(hot))
				last := r.exchange.of(hot)[before-1]
				if r.settled() != 1000 || last.login != hot || last.from != "" {
					t.Errorf("%d of 1,000 sent, the last by %s", r.settled(), last.login)
				}
				for _, m := range r.queue.order {
					if m.progress.Attempts != 1 {
						t.Fatalf("%s: %d attempts", m.env.ID, m.progress.Attempts)
					}
				}
				if got := report.words(); len(got) != 2 {
					t.Errorf("told %q", got)
				}
			})
		})
	}
}

// A fallback that is parked, has a fallback, is gone or is the same mailbox is not followed: the mail waits at home. A
// back-off or a quota is no reason to go another way.
func TestFallbackIsNotFollowed(t *testing.T) {
	parked := func(t *try) status.Outcome { return each(t, reply(status.StageAuth, 535, status.ParkSender, "no")) }
	for _, tt := range []struct {
		name   string
		answer func(*try) status.Outcome // for hot
		spare  envelope.Route
		none   bool
		refuse bool // the fallback is parked, too
		via    int
	}{
		{name: "parked", answer: parked, spare: envelope.Route{Tenant: "contoso", Connections: 1}, via: 9},
		{name: "the fallback has one itself: not looked at", answer: parked, spare: envelope.Route{Tenant: "contoso", Connections: 1, Fallback: hot}, via: 9},
		{name: "the fallback is parked", answer: parked, spare: envelope.Route{Tenant: "contoso", Connections: 1, Fallback: sender(5)}, refuse: true, via: 1},
		{name: "the fallback is gone", answer: parked, none: true},
		{name: "the fallback is the same mailbox", answer: parked, spare: envelope.Route{Tenant: "contoso", Login: hot, Connections: 1}},
		{name: "a back-off", answer: func(t *try) status.Outcome { return each(t, reply(status.StageDot, 432, status.BackOffSender, "no")) },
			spare: envelope.Route{Tenant: "contoso", Connections: 1}},
		{name: "a quota", answer: func(t *try) status.Outcome { return each(t, reply(status.StageDot, 554, status.HoldSender, "no")) },
			spare: envelope.Route{Tenant: "contoso", Connections: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
					if try.login == hot || tt.refuse && try.login == spare {
						return tt.answer(try)
					}
					return accept(try)
				}
				r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, Fallback: spare})
				r.router.set(sender(5), envelope.Route{Tenant: "contoso", Connections: 1})
				if !tt.none {
					r.router.set(spare, tt.spare)
				}
				r.queue.put(hot, 1, 0)
				r.run()
				after(time.Second)
				for range 8 {
					r.queue.put(hot, 1, 0)
				}
				after(10 * time.Second)
				via := 0
				for _, try := range r.exchange.of(hot) {
					if try.login != hot {
						via++
						if try.login != spare {
							t.Fatalf("sent by %s", try.login)
						}
					}
				}
				if via != tt.via {
					t.Errorf("%d attempts by the fallback, want %d", via, tt.via)
				}
				r.d.mu.Lock()
				for key, m := range r.d.mailboxes {
					if m.away > 0 && tt.via < 9 {
						t.Errorf("%s: %d lanes go another way", key, m.away)
					}
				}
				r.d.mu.Unlock()
				if tt.via < 9 {
					if got := r.queue.parks(hot); tt.name != "a back-off" && (len(got) == 0 || got[len(got)-1] == "") {
						t.Errorf("the source was told %q, want a park", got)
					}
				}
			})
		})
	}
}

// A fallback that is parked and cured takes the mail again.
func TestFallbackComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var refused atomic.Pointer[[]envelope.Address]
		refused.Store(&[]envelope.Address{hot, spare})
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if slices.Contains(*refused.Load(), try.login) {
				return each(try, reply(status.StageAuth, 535, status.ParkSender, "no"))
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, Fallback: spare})
		r.router.set(spare, envelope.Route{Tenant: "contoso", Connections: 1})
		for range 5 {
			r.queue.put(hot, 1, 0)
		}
		own := r.queue.put(spare, 1, time.Minute)
		r.run()
		after(30 * time.Minute)
		if got := r.settled(); got != 0 {
			t.Fatalf("%d sent while both are parked", got)
		}
		refused.Store(&[]envelope.Address{hot})
		after(20 * time.Minute)
		if got := r.settled(); got != 6 || r.queue.state(own) != envelope.Sent {
			t.Errorf("%d of 6 sent", got)
		}
		// Nothing waits: the parked mailbox is probed again when something does.
		r.d.Reload(nil, 0)
		after(time.Hour)
		if n := len(r.exchange.of(hot)); n > 30 {
			t.Errorf("%d attempts", n)
		}
		refused.Store(new([]envelope.Address))
		r.queue.put(hot, 1, 0)
		after(time.Hour)
		late := r.queue.put(hot, 1, 0)
		after(time.Second)
		tries := r.exchange.of(hot)
		if last := tries[len(tries)-1]; r.queue.state(late) != envelope.Sent || last.login != hot {
			t.Errorf("the last: %v, by %s", r.queue.state(late), last.login)
		}
	})
}

// A fallback through the same mailbox is none, and after the cure the lane is still the mailbox's own.
func TestFallbackThroughTheSameMailbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var cured atomic.Bool
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if !cured.Load() {
				return each(try, reply(status.StageAuth, 535, status.ParkSender, "no"))
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, Fallback: spare})
		r.router.set(spare, envelope.Route{Tenant: "contoso", Login: hot, Connections: 1})
		for range 2 { // parked, cured, and parked again: each time the source is told
			cured.Store(false)
			r.queue.put(hot, 1, 0)
			if r.stop == nil {
				r.run()
			}
			after(time.Second)
			cured.Store(true)
			after(70 * time.Second) // a probe, and no time to forget the lane
		}
		want := []string{"auth: 535 no", "", "auth: 535 no", ""}
		if got := r.queue.parks(hot); !slices.Equal(got, want) || r.settled() != 2 {
			t.Errorf("%d sent, the source was told %q, want %q", r.settled(), got, want)
		}
	})
}
