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

// What is shown of a parked mailbox is why and since when; a probe that somebody asks for is at once, and of no other.
func TestMailboxesAndProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var cured atomic.Bool
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if cured.Load() {
				return accept(try)
			}
			return each(try, reply(status.StageAuth, 535, status.ParkSender, "no"))
		}
		for i := range 2 {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Login: sender(i), Connections: 1, RecipientsPerDay: 100})
			r.queue.put(sender(i), 1, 0)
		}
		r.run()
		after(10 * time.Second)
		boxes := r.d.Mailboxes()
		slices.SortFunc(boxes, func(a, b Mailbox) int { return len(a.Login) - len(b.Login) })
		if len(boxes) != 2 {
			t.Fatalf("got %+v", boxes)
		}
		for _, b := range boxes {
			if b.Tenant != "contoso" || b.Limit != 100 || b.Remaining != 100 || len(b.Stops) != 1 {
				t.Fatalf("got %+v", b)
			}
			if s := b.Stops[0]; s.Quota || s.External || s.Tenant || s.Reply.Code != 535 || time.Since(s.Since) > 10*time.Second {
				t.Errorf("got the stop %+v", s)
			}
		}
		cured.Store(true)
		before := len(r.exchange.of(sender(1)))
		r.d.Probe("contoso", sender(0).Key())
		after(time.Second)
		if r.settled() != 1 || len(r.exchange.of(sender(1))) != before {
			t.Errorf("%d sent; the other sender was probed too: %v", r.settled(), len(r.exchange.of(sender(1))) != before)
		}
		r.d.Probe("contoso", "")
		after(time.Second)
		if r.settled() != 2 {
			t.Error("a probe of the whole tenant has not sent the other's mail")
		}
		for _, b := range r.d.Mailboxes() {
			if len(b.Stops) > 0 || b.Remaining != 99 {
				t.Errorf("after the cure: %+v", b)
			}
		}
	})
}

// A mailbox that was asked to slow down says until when it rests.
func TestMailboxRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var quiet atomic.Bool
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if quiet.Load() {
				return accept(try)
			}
			return each(try, reply(status.StageRcpt, 451, status.BackOffTenant, "busy"))
		}
		r.router.set(sender(0), envelope.Route{Tenant: "contoso", Connections: 1})
		r.queue.put(sender(0), 1, 0)
		r.run()
		after(time.Second)
		boxes := r.d.Mailboxes()
		if len(boxes) != 1 || len(boxes[0].Stops) != 0 || !boxes[0].Rests.After(time.Now()) {
			t.Fatalf("got %+v", boxes)
		}
		quiet.Store(true)
		after(time.Hour)
		if boxes := r.d.Mailboxes(); len(boxes) > 0 && !boxes[0].Rests.IsZero() || r.settled() != 1 {
			t.Errorf("after the rest: %+v", boxes)
		}
	})
}

// Reroute finds a changed way and lets what is parked wait for its time.
func TestReroute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			return each(try, reply(status.StageAuth, 535, status.ParkSender, "no"))
		}
		r.router.set(sender(0), envelope.Route{Tenant: "contoso", Connections: 1})
		r.queue.put(sender(0), 1, 0)
		r.queue.put(sender(1), 1, 0) // has no way yet
		r.run()
		after(10 * time.Second)
		before := len(r.exchange.of(sender(0)))
		r.router.set(sender(1), envelope.Route{Tenant: "contoso", Connections: 1})
		r.d.Reroute()
		after(time.Second)
		if got := len(r.exchange.of(sender(0))); got != before {
			t.Errorf("the parked sender was probed: %d attempts, before %d", got, before)
		}
		if got := len(r.exchange.of(sender(1))); got != 1 {
			t.Errorf("%d attempts of the sender that has a way now, want 1", got)
		}
	})
}
