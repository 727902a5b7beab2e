package dispatch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// arrival is what the far end counts: so many at that moment.
type arrival struct {
	at time.Time
	n  int
}

// most returns the largest number that arrived in any window of this length.
func most(arrivals []arrival, length time.Duration) (most int) {
	slices.SortFunc(arrivals, func(a, b arrival) int { return a.at.Compare(b.at) })
	sum, first := 0, 0
	for _, a := range arrivals {
		sum += a.n
		for a.at.Sub(arrivals[first].at) >= length {
			sum -= arrivals[first].n
			first++
		}
		most = max(most, sum)
	}
	return most
}

// some returns a part of d, by chance.
func some(random *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(d)))
}

func TestMost(t *testing.T) {
	at := func(s, n int) arrival { return arrival{time.Unix(int64(s), 0), n} }
	if got := most([]arrival{at(60, 5), at(0, 1), at(59, 2)}, time.Minute); got != 7 {
		t.Errorf("got %d, want 7: a window is half open", got)
	}
}

// The far end counts when it likes during an attempt, and attempts take from nothing to most of a minute.
func TestLimitsOfAMailboxHold(t *testing.T) {
	for _, limit := range []int{1, 2, 7, 30, 200} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const connections = 3
				random := rand.New(rand.NewPCG(1, uint64(limit)))
				r := newRig(t, nil)
				arrivals := map[envelope.Address][]arrival{}
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
					r.exchange.mu.Lock()
					before, behind := some(random, time.Second), some(random, time.Second)
					if random.IntN(20) == 0 {
						before, behind = before*20, behind*30
					}
					if random.IntN(10) == 0 {
						before, behind = 0, 0
					}
					r.exchange.mu.Unlock()
					advance(before)
					r.exchange.mu.Lock()
					arrivals[try.login] = append(arrivals[try.login], arrival{time.Now(), 1})
					r.exchange.mu.Unlock()
					advance(behind)
					return accept(try)
				}
				// Three senders of one mailbox count together, one on its own alone.
				for i := range 4 {
					route := envelope.Route{Tenant: "contoso", Login: "relay@contoso.com", Connections: connections, MessagesPerMinute: limit}
					if i == 3 {
						route.Login = ""
					}
					r.router.set(sender(i), route)
					for range 70 * limit {
						r.queue.put(sender(i), 1, 0)
					}
				}
				r.run()
				after(time.Hour)
				r.stop()
				for login, list := range arrivals {
					if got := most(list, time.Minute); got > limit {
						t.Errorf("%s: %d in a minute, want at most %d", login, got, limit)
					}
					if got := r.exchange.most[login]; got > connections {
						t.Errorf("%s: %d attempts at once, want at most %d", login, got, connections)
					}
				}
				if len(arrivals) != 2 {
					t.Errorf("got %d mailboxes, want 2", len(arrivals))
				}
			})
		})
	}
}

func TestPaceIsFullAndSmooth(t *testing.T) {
	for _, limit := range []int{1, 5, 30, 600} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.Workers = 128 }) // connections in plenty: only the pace is looked at
				r.exchange.latency = 300 * time.Millisecond
				r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 128, MessagesPerMinute: limit})
				for range limit * 70 {
					r.queue.put(hot, 1, 0)
				}
				began := time.Now()
				r.run()
				after(time.Hour)
				tries := r.exchange.of(hot)
				if got, want := len(tries), limit*60*95/100; got < want {
					t.Errorf("%d in an hour, want at least %d", got, want)
				}
				if !tries[0].begun.Equal(began) {
					t.Errorf("the first message began after %v, want at once", tries[0].begun.Sub(began))
				}
				interval := time.Minute / time.Duration(limit)
				burst := max(1, limit/10)
				for i := burst; i < len(tries); i++ {
					gap := tries[i].begun.Sub(tries[i-1].begun)
					if gap < interval-time.Microsecond {
						t.Fatalf("messages %d and %d began %v apart, want %v", i-1, i, gap, interval)
					}
					// Each first window is short of its burst, and waits for it; later ones only for the latency.
					if longest := interval*time.Duration(burst+2) + time.Second; gap > longest {
						t.Fatalf("messages %d and %d began %v apart, want at most %v", i-1, i, gap, longest)
					}
				}
			})
		})
	}
}

// An idle mailbox sends at once, with its burst, however often it was asked for mail it did not have.
func TestRefundsLeaveNoLeak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 30, RecipientsPerDay: 100})
		r.run()
		for range 200 {
			r.d.notify(hot, time.Now()) // says there is mail, and there is none
			synctest.Wait()
		}
		for range 3 {
			r.queue.put(hot, 10, 0)
		}
		began := time.Now()
		after(time.Second)
		for _, try := range r.exchange.of(hot) {
			if !try.begun.Equal(began) {
				t.Errorf("began after %v, want at once", try.begun.Sub(began))
			}
		}
		if got := r.settled(); got != 3 {
			t.Errorf("%d of 3 sent", got)
		}
		r.d.mu.Lock()
		defer r.d.mu.Unlock()
		m := r.d.mailboxes["contoso/"+hot.Key()]
		if m.active != 0 || m.day.Reserved() != 0 || m.pace.Idle(time.Now()) {
			t.Errorf("left behind: %d active, %d reserved, an idle pace: %v", m.active, m.day.Reserved(), m.pace.Idle(time.Now()))
		}
	})
}

func TestRecipientsOfADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 100
		random := rand.New(rand.NewPCG(1, 2))
		r := newRig(t, nil)
		var arrivals []arrival
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			r.exchange.mu.Lock()
			before, outcome := some(random, 5*time.Minute), random.IntN(10)
			r.exchange.mu.Unlock()
			advance(before)
			r.exchange.mu.Lock()
			if outcome != 0 {
				arrivals = append(arrivals, arrival{time.Now(), len(try.open)})
			}
			r.exchange.mu.Unlock()
			advance(before)
			switch outcome {
			case 0: // gives back what was reserved for it
				return refuse(try, status.Retry, "busy")
			case 1: // counted there, as far as anybody knows
				return refuse(try, status.Uncertain, "lost")
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, RecipientsPerDay: limit})
		recipients := 0
		for range 40 {
			n := 1 + random.IntN(30)
			r.queue.put(hot, n, some(random, 24*time.Hour))
			recipients += n
		}
		r.run()
		days := 4 * (recipients/limit + 1) // each day loses something to messages that do not fit, and to uncertain ones
		after(time.Duration(days) * 24 * time.Hour)
		r.stop()
		if got := most(arrivals, 24*time.Hour); got > limit || got < limit/2 {
			t.Errorf("%d recipients in a day, want at most %d and at least half of it", got, limit)
		}
		if got := r.settled(); got != 40 {
			t.Errorf("%d of 40 messages are through after %d days", got, days)
		}
		for _, m := range r.queue.order {
			for _, p := range m.history {
				if p.Attempts > len(m.history) {
					t.Errorf("%s: waiting for the day to end cost an attempt", m.env.ID)
				}
			}
		}
		// A day that is full is looked at again each quarter of an hour, not all the time.
		if limit := days*24*4*2 + 40*10; r.queue.claims > limit {
			t.Errorf("%d claims, want at most %d", r.queue.claims, limit)
		}
	})
}

// A message to more recipients than a day has goes in parts, a day's worth at a time.
func TestMessageLargerThanADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, RecipientsPerDay: 10})
		r.queue.put(hot, 5, 0)
		r.run()
		after(time.Second)
		large := r.queue.put(hot, 11, 0)
		after(24 * time.Hour)
		if r.queue.state(large) != envelope.Queued {
			t.Errorf("on a day with 5 sent: got %v, want queued", r.queue.state(large))
		}
		after(time.Hour)
		if tries := r.exchange.of(hot); len(tries) != 2 || len(tries[1].open) != 10 || r.queue.state(large) != envelope.Queued {
			t.Errorf("on an empty day: %d attempts, %v", len(tries), r.queue.state(large))
		}
		after(25 * time.Hour)
		if p := r.queue.progress(large); p.State != envelope.Sent || p.Attempts != 1 {
			t.Errorf("on the next: got %v after %d attempts, want sent after 1", p.State, p.Attempts)
		}
	})
}

// What does not fit only because of an attempt under way waits for that, not for the next quarter of an hour.
func TestReservationGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		release := make(chan struct{})
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if try.sender == sender(1) {
				<-release
				return refuse(try, status.Fail, "no such user")
			}
			return accept(try)
		}
		for i := 1; i < 3; i++ {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Login: "relay@contoso.com", Connections: 3, RecipientsPerDay: 10})
		}
		r.queue.put(sender(1), 8, 0)
		r.run()
		synctest.Wait()
		second := r.queue.put(sender(2), 8, 0)
		after(time.Minute)
		if got := len(r.exchange.of(sender(2))); got != 0 || r.queue.claimed() > 10 {
			t.Errorf("%d attempts and %d claims while the day is reserved", got, r.queue.claimed())
		}
		close(release)
		synctest.Wait()
		if r.queue.state(second) != envelope.Sent {
			t.Errorf("got %v, want sent as soon as the reservation was given back", r.queue.state(second))
		}
	})
}
