package dispatch

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

const hot = envelope.Address("hot@contoso.com")

// lastOfOthers queues 5 messages of each of 99 senders, behind hotMail of one, and returns when the 99 were through.
func lastOfOthers(t *testing.T, hotMail, workers int, route envelope.Route, answer func(context.Context, *try) status.Outcome) (took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Workers, o.DrainTimeout = workers, time.Nanosecond })
		r.exchange.answer = answer
		r.router.set(hot, route)
		for range hotMail {
			r.queue.put(hot, 1, 0)
		}
		others := 0
		for i := range 99 {
			r.router.set(sender(i), route)
			for range 5 {
				r.queue.put(sender(i), 1, 0)
				others++
			}
		}
		began := time.Now()
		r.run()
		for {
			after(50 * time.Millisecond)
			done := 0
			for _, try := range r.exchange.all() {
				if try.sender != hot {
					done++
					took = max(took, try.end.Sub(began))
				}
			}
			if done == others {
				return
			}
			if time.Since(began) > time.Hour {
				t.Fatalf("after an hour %d of %d are through", done, others)
			}
		}
	})
	return took
}

func TestHotSenderDelaysNobody(t *testing.T) {
	for _, tt := range []struct {
		name    string
		workers int
		route   envelope.Route
	}{
		{"workers in plenty", 256, envelope.Route{Tenant: "contoso", Connections: 3}},
		{"fewer workers than mailboxes", 8, envelope.Route{Tenant: "contoso", Connections: 3}},
		{"one worker", 1, envelope.Route{Tenant: "contoso", Connections: 3}},
		{"with the pace of Exchange Online", 256, envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 30}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			without := lastOfOthers(t, 0, tt.workers, tt.route, nil)
			with := lastOfOthers(t, 4500, tt.workers, tt.route, nil)
			if with > without*3/2 {
				t.Errorf("the others took %v beside a sender with 90%% of all mail, %v without", with, without)
			}
		})
	}
}

// A mailbox that hangs costs the workers its connections, and the others nothing.
func TestHangingMailboxDelaysNobody(t *testing.T) {
	answer := func(ctx context.Context, try *try) status.Outcome {
		wait := 100 * time.Millisecond
		if try.sender == hot {
			wait = 7 * time.Minute
		}
		select {
		case <-time.After(wait):
			return accept(try)
		case <-ctx.Done():
			return refuse(try, status.Retry, "cut off")
		}
	}
	route := envelope.Route{Tenant: "contoso", Connections: 3}
	without := lastOfOthers(t, 0, 8-3, route, answer)
	with := lastOfOthers(t, 1000, 8, route, answer)
	if with > without*11/10 {
		t.Errorf("the others took %v beside a mailbox that hangs, %v without", with, without)
	}
}

// Senders that share a mailbox share its pace, in turn.
func TestSendersOfOneMailboxTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		shared := envelope.Route{Tenant: "contoso", Login: "relay@contoso.com", Connections: 3, MessagesPerMinute: 30}
		r.router.set(hot, shared)
		r.router.set(sender(1), shared)
		for range 1000 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(10 * time.Minute) // the flood is long under way
		for range 10 {
			r.queue.put(sender(1), 1, 0)
		}
		began := time.Now()
		after(45 * time.Second) // 20 messages at 2 s, and a little
		if got := len(r.exchange.of(sender(1))); got != 10 {
			t.Errorf("%v after it was queued, %d of 10 messages are sent", time.Since(began), got)
		}
		if got := len(r.exchange.of(hot)); got < 300 {
			t.Errorf("the hot sender's turn was lost: %d sent", got)
		}
	})
}
