package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// However often the process is killed or stopped, the far end never sees more recipients in a day than the limit, and not
// many fewer.
func TestDaySurvivesRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1000
		random := rand.New(rand.NewPCG(7, 8))
		memory := newFakeMemory()
		var arrivals []arrival
		began := time.Now()
		restarts := 0
		for time.Since(began) < 72*time.Hour {
			r := newRig(t, func(o *Options) { o.Memory, o.DrainTimeout = memory, time.Nanosecond })
			r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
				advance(time.Second)
				r.exchange.mu.Lock()
				defer r.exchange.mu.Unlock()
				arrivals = append(arrivals, arrival{time.Now(), len(try.open)})
				return accept(try)
			}
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 60, RecipientsPerDay: limit})
			for range 1500 {
				r.queue.put(hot, 1+random.IntN(3), 0)
			}
			r.run()
			after(some(random, 5*time.Hour))
			left := memory.copy() // what a kill finds, however well the process then stops
			r.stop()
			if random.IntN(3) > 0 {
				memory = left
			}
			restarts++
		}
		if restarts < 10 {
			t.Fatalf("%d restarts", restarts)
		}
		if got := most(slices.Clone(arrivals), 24*time.Hour); got > limit || got < limit*3/4 {
			t.Errorf("%d recipients in a day over %d restarts, want at most %d and not much less", got, restarts, limit)
		}
	})
}

// The memory is written once for each block, not for each message; a stop in good order gives back what was ahead.
func TestMemoryIsNotOnTheHotPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newFakeMemory()
		r := newRig(t, func(o *Options) { o.Memory = memory })
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, RecipientsPerDay: 10000})
		for range 1000 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(10 * time.Minute)
		if got := memory.written("dispatch.mailbox.contoso/hot@contoso.com"); r.settled() != 1000 || got < 9 || got > 11 {
			t.Errorf("%d writes for %d messages, want one for each hundred", got, r.settled())
		}
		r.stop()
		next := newRig(t, func(o *Options) { o.Memory = memory })
		next.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, RecipientsPerDay: 10000})
		next.queue.put(hot, 1, 0)
		next.run()
		after(time.Second)
		next.d.mu.Lock()
		defer next.d.mu.Unlock()
		if got := next.d.mailboxes["contoso/hot@contoso.com"].day.Remaining(time.Now()); got != 8999 {
			t.Errorf("%d remain after a stop in good order, want 8999", got)
		}
	})
}

// A memory that does not work stops no mail, is told of once, and is asked again now and then.
func TestMemoryFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newFakeMemory()
		memory.fail(errors.New("disk is away"))
		r := newRig(t, func(o *Options) { o.Memory = memory })
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, RecipientsPerDay: 100})
		began := time.Now()
		for range 20 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(time.Minute)
		if got := r.settled(); got != 20 {
			t.Errorf("%d of 20 sent", got)
		}
		if got := r.exchange.of(hot)[0].begun.Sub(began); got < 30*time.Second || got > 32*time.Second {
			t.Errorf("began after %v, want what the memory gets to come up, 30 s", got)
		}
		if got := r.logged("what a restart needs to know is not written: limits of the day count in memory only"); got != 1 {
			t.Errorf("%d lines say so, want 1", got)
		}
		memory.fail(nil)
		after(2 * time.Minute)
		r.queue.put(hot, 1, 0)
		after(time.Minute)
		if got := memory.written("dispatch.mailbox.contoso/hot@contoso.com"); got != 1 {
			t.Errorf("%d writes after it works again, want 1", got)
		}
	})
}

// A memory that comes up a little late is waited for.
func TestMemoryComesUpLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newFakeMemory()
		memory.records["dispatch.mailbox.contoso/hot@contoso.com"] = fmt.Appendf(nil, `{"day":{"at":%d,"slots":[[%d,90]]}}`, time.Now().UnixMilli(), time.Now().UnixMilli())
		memory.records["dispatch.mailbox.contoso/x@contoso.com"] = []byte(`{"day":`)
		memory.records["postmaster.cap"] = []byte(`?`)
		memory.fail(errors.New("not yet"))
		r := newRig(t, func(o *Options) { o.Memory = memory })
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, RecipientsPerDay: 100})
		for range 20 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(10 * time.Second)
		memory.fail(nil)
		after(time.Minute)
		if got := r.settled(); got != 10 {
			t.Errorf("%d sent, want the 10 that are left", got)
		}
		if got := r.logged("a record of the last process is not readable"); got != 1 {
			t.Errorf("%d lines of damaged records, want 1", got)
		}
	})
}

// Parks and holds outlast the process: it starts parked, tells nobody again, probes soon, and tells one end.
func TestRestartWhileParked(t *testing.T) {
	closed := map[string]*status.Error{
		"sender":   reply(status.StageAuth, 535, status.ParkSender, "no"),
		"tenant":   reply(status.StageToken, 535, status.ParkTenant, "no"),
		"quota":    reply(status.StageDot, 554, status.HoldSender, "no"),
		"external": reply(status.StageDot, 550, status.HoldTenantExternal, "no"),
	}
	for name, e := range closed {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory, report := newFakeMemory(), &fakeReporter{}
				var cured atomic.Bool
				life := func() *rig {
					r := newRig(t, func(o *Options) { o.Memory, o.Reporter = memory, report })
					r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
						advance(time.Second)
						if !cured.Load() {
							return each(try, e)
						}
						return accept(try)
					}
					r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
					for range 3 {
						r.queue.put(hot, 1, 0)
					}
					r.run()
					return r
				}
				first := life()
				after(10 * time.Minute)
				first.stop()
				words := report.words()
				if len(words) != 1 {
					t.Fatalf("told %q", words)
				}
				after(time.Minute)
				began := time.Now()
				second := life()
				after(20 * time.Second)
				quota := name == "quota" || name == "external"
				tries := second.exchange.of(hot)
				switch {
				case quota && len(tries) != 0:
					t.Errorf("a quota is probed at once: %d attempts", len(tries))
				case !quota && (len(tries) != 1 || tries[0].begun.Sub(began) > 15*time.Second):
					t.Errorf("%d attempts in the first 20 s, want one probe", len(tries))
				}
				if got := second.queue.parks(hot); len(got) == 0 || got[len(got)-1] == "" {
					t.Errorf("the source was told %q, want the park", got)
				}
				after(10 * time.Minute)
				if got := report.words(); !slices.Equal(got, words) {
					t.Errorf("told %q after the restart", got)
				}
				cured.Store(true)
				after(2 * time.Hour)
				if got := report.words(); second.settled() != 3 || len(got) != 2 || !strings.HasSuffix(got[1], "resumed") {
					t.Errorf("%d of 3 sent, told %q", second.settled(), got)
				}
				second.stop()
				third := life()
				after(time.Second)
				if got := third.settled(); got < 1 || len(report.words()) != 2 {
					t.Errorf("after the cure and a restart: %d sent at once, told %q", got, report.words())
				}
			})
		})
	}
}

// Senders without end leave nothing behind: not in the process, and not in the memory.
func TestSendersWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newFakeMemory()
		r := newRig(t, func(o *Options) { o.Memory = memory })
		r.run()
		for i := range 500 {
			s := envelope.Address(fmt.Sprintf("device%d@contoso.com", i))
			r.router.set(s, envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 30, RecipientsPerDay: 10000})
			r.queue.put(s, 1, 0)
		}
		after(10 * time.Minute)
		size := func() (lanes, mailboxes int) {
			r.d.mu.Lock()
			defer r.d.mu.Unlock()
			return len(r.d.lanes), len(r.d.mailboxes)
		}
		if lanes, mailboxes := size(); lanes != 0 || mailboxes != 500 || memory.len() != 500 {
			t.Errorf("%d lanes, %d mailboxes and %d records are kept, want the counts of a day only", lanes, mailboxes, memory.len())
		}
		after(25 * time.Hour)
		if lanes, mailboxes := size(); lanes != 0 || mailboxes != 0 || memory.len() != 0 {
			t.Errorf("a day later %d lanes, %d mailboxes and %d records are kept", lanes, mailboxes, memory.len())
		}
		r.queue.put("device7@contoso.com", 1, 0) // and come back
		after(time.Second)
		if got := r.settled(); got != 501 || memory.len() != 1 {
			t.Errorf("%d sent, %d records", got, memory.len())
		}
	})
}

// Without limits of a day nothing is kept either, and a restart forgets what is of no more use.
func TestOldRecordsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newFakeMemory()
		memory.records["dispatch.mailbox.contoso/old@contoso.com"] = []byte(`{"day":{"at":1000,"slots":[[1000,90]],"block":10}}`)
		r := newRig(t, func(o *Options) { o.Memory = memory })
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		r.queue.put(hot, 1, 0)
		r.run()
		after(11 * time.Minute)
		r.d.mu.Lock()
		defer r.d.mu.Unlock()
		if len(r.d.mailboxes) != 0 || memory.len() != 0 || r.settled() != 1 {
			t.Errorf("%d mailboxes, %d records, %d sent", len(r.d.mailboxes), memory.len(), r.settled())
		}
	})
}

// A reload probes parks, and quotas only where a limit has changed.
func TestReloadAndQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			return each(try, reply(status.StageDot, 554, status.HoldSender, "quota"))
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, RecipientsPerDay: 100})
		r.queue.put(hot, 1, 0)
		r.run()
		after(time.Minute)
		r.d.Reload(nil, 0)
		after(time.Minute)
		if got := len(r.exchange.of(hot)); got != 1 {
			t.Errorf("%d attempts, want no probe of a quota for a reload that changes nothing", got)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, RecipientsPerDay: 200})
		r.d.Reload(nil, 0)
		after(time.Minute)
		if got := len(r.exchange.of(hot)); got != 2 {
			t.Errorf("%d attempts, want a probe with the new limit", got)
		}
	})
}

// After a start the pace has one message, not a burst behind those of the last process.
func TestNoBurstAfterAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 10, MessagesPerMinute: 60})
		for range 20 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(500 * time.Millisecond)
		if got := len(r.exchange.of(hot)); got != 1 {
			t.Errorf("%d at once, want 1", got)
		}
	})
}

// A lane that an attempt is using is not swept away under it: a sender has one lane.
func TestSweepLeavesLanesInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		for range 3 {
			r.queue.put(hot, 1, 0)
		}
		waits := make(chan struct{})
		r.queue.waits = waits
		r.run()
		after(11 * time.Minute) // the claim hangs over two sweeps
		r.queue.mu.Lock()
		r.queue.waits = nil
		r.queue.mu.Unlock()
		r.queue.put(hot, 1, time.Hour)
		close(waits)
		after(10 * time.Second)
		r.d.mu.Lock()
		defer r.d.mu.Unlock()
		if l := r.d.lanes[hot.Key()]; l == nil || len(l.mailbox.members) != 1 || len(l.mailbox.lanes) != 1 || l.mailbox.lanes[0] != l {
			t.Errorf("the lane: %+v", l)
		}
		if got := r.settled(); got != 3 {
			t.Errorf("%d of 3 sent", got)
		}
	})
}
