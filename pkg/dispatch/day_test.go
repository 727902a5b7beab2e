package dispatch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// A mailbox that sent 9,000 recipients in the morning meets its limit of 10,000 at ten, with 5,000 queued: nothing
// bounces, others notice nothing, and all is sent within 28 hours, at the pace allowed.
func TestQuotaTripsAtTen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const queued, quota = 5000, 10000
		report := &fakeReporter{}
		r := newRig(t, withReporter(report))
		began := time.Now()
		charged := []arrival{{began.Add(-2 * time.Hour), 4500}, {began.Add(-time.Hour), 4500}} // by the far end, before relayd's time
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			advance(100 * time.Millisecond)
			if try.login != hot {
				return accept(try)
			}
			r.exchange.mu.Lock()
			defer r.exchange.mu.Unlock()
			used := 0
			for _, a := range charged {
				if time.Since(a.at) < 24*time.Hour {
					used += a.n
				}
			}
			if used+len(try.open) > quota {
				return each(try, reply(status.StageDot, 554, status.HoldSender, "5.2.0 SubmissionQuotaExceeded"))
			}
			charged = append(charged, arrival{time.Now(), len(try.open)})
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 60})
		for range queued {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		others, sentAt := []*mail{}, 0
		for i := range 20 {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 60})
		}
		for range 28 * 2 {
			for i := range 20 {
				others = append(others, r.queue.put(sender(i), 1, 0))
			}
			after(5 * time.Second)
			for _, m := range others[sentAt:] {
				if r.queue.state(m) != envelope.Sent {
					t.Fatalf("another mailbox's message: %v", r.queue.state(m))
				}
			}
			sentAt = len(others)
			after(30*time.Minute - 5*time.Second)
		}
		for _, m := range r.queue.order {
			if m.progress.State != envelope.Sent || m.progress.Attempts != 1 {
				t.Fatalf("%s: %v after %d attempts", m.env.ID, m.progress.State, m.progress.Attempts)
			}
		}
		if len(report.bounces()) != 0 {
			t.Errorf("%d bounces", len(report.bounces()))
		}
		if got := report.words(); len(got) < 1 || len(got) > 2 || !strings.Contains(got[0], "held") {
			t.Errorf("told %q, want the hold and its end, once", got)
		}
		refused, sent := 0, []arrival{}
		for _, try := range r.exchange.of(hot) {
			if try.errs[0] != nil {
				refused++
			} else {
				sent = append(sent, arrival{try.begun, 1})
			}
		}
		if refused > 40 {
			t.Errorf("%d attempts met the quota, want about one an hour", refused)
		}
		if got := most(sent, time.Minute); got > 60 {
			t.Errorf("%d in a minute", got)
		}
	})
}

// A secret expires, for three days: one park told, everything parked, no attempt and no life spent; cured, all is sent and
// one end told.
func TestSecretExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &fakeReporter{}
		r := newRig(t, func(o *Options) {
			o.Reporter, o.Lifetime, o.Retry = report, 24*time.Hour, []time.Duration{time.Minute, time.Hour}
		})
		var expired atomic.Bool
		expired.Store(true)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			advance(time.Second)
			if expired.Load() {
				e := reply(status.StageToken, 535, status.ParkTenant, "AADSTS7000222 secret expired")
				e.Cause, e.Advice = "the client secret has expired", "make a new one"
				return each(try, e)
			}
			return accept(try)
		}
		const senders, each = 50, 20
		for i := range senders {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 600})
			for range each {
				r.queue.put(sender(i), 2, 0)
			}
		}
		r.run()
		after(3 * 24 * time.Hour)
		if got, want := report.words(), []string{"contoso parked: token: 535 AADSTS7000222 secret expired"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		if p := report.parks[0]; p.Err.Cause == "" || p.Err.Advice == "" || p.Quota || p.Since.IsZero() {
			t.Errorf("told without cause and advice: %+v", p)
		}
		for i := range senders {
			if got := r.queue.parks(sender(i)); len(got) != 1 {
				t.Fatalf("the source was told %q", got)
			}
		}
		if n := len(r.exchange.all()); n > 400 {
			t.Errorf("%d probes in three days", n)
		}
		expired.Store(false)
		after(2 * time.Hour)
		for _, m := range r.queue.order {
			if m.progress.State != envelope.Sent || m.progress.Attempts != 1 {
				t.Fatalf("%s: %v after %d attempts", m.env.ID, m.progress.State, m.progress.Attempts)
			}
		}
		if got := report.words(); len(got) != 2 || got[1] != "contoso resumed" {
			t.Errorf("told %q, want one end", got)
		}
		if len(report.bounces()) != 0 {
			t.Errorf("%d bounces", len(report.bounces()))
		}
	})
}

// The service is away for a day with 10,000 queued over 200 senders, and comes back: nothing is lost, and nobody storms.
func TestOutageOfADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const senders, each = 200, 51
		r := newRig(t, func(o *Options) { o.Workers = 256 })
		away := true
		var active, most int
		var back time.Time
		atOnce := map[time.Duration]int{} // most at once, by seconds since the return
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			r.exchange.mu.Lock()
			if active++; !back.IsZero() && !try.begun.Before(back) {
				s := time.Since(back).Truncate(time.Second)
				atOnce[s] = max(atOnce[s], active)
				most = max(most, active)
			}
			r.exchange.mu.Unlock()
			advance(time.Second)
			r.exchange.mu.Lock()
			defer r.exchange.mu.Unlock()
			active--
			if away {
				return refuse(try, status.BackOffTenant, "cannot be reached")
			}
			return accept(try)
		}
		for i := range senders {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 300})
			for range each {
				r.queue.put(sender(i), 1, 0)
			}
		}
		r.run()
		after(24 * time.Hour)
		if n := len(r.exchange.all()); n > 256+250 {
			t.Errorf("%d attempts in a day away", n)
		}
		r.exchange.mu.Lock()
		away, back = false, time.Now()
		r.exchange.mu.Unlock()
		after(15 * time.Minute)
		seconds := []time.Duration{}
		for s := range atOnce {
			seconds = append(seconds, s)
		}
		slices.Sort(seconds)
		for k, s := range seconds[:min(6, len(seconds))] {
			if limit := 1 << (k + 1); atOnce[s] > limit {
				t.Errorf("%d at once in the %d. second after the return, want at most %d", atOnce[s], k+1, limit)
			}
		}
		if most < 100 {
			t.Errorf("%d at once at the most: the slow start does not end", most)
		}
		after(6 * time.Hour)
		if got := r.settled(); got != senders*each {
			t.Errorf("%d of %d sent", got, senders*each)
		}
		for _, m := range r.queue.order {
			if m.progress.State != envelope.Sent {
				t.Fatalf("%s: %v", m.env.ID, m.progress.State)
			}
		}
	})
}

// 600 recipients go in envelopes of at most 500, and at most 200 of one domain; nothing untried is called deferred.
func TestSplitOfALargeMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3, RecipientsPerMessage: 500, RecipientsPerDomain: 200})
		var to []envelope.Address
		for i := range 600 {
			domain := "one.example"
			if i >= 450 {
				domain = fmt.Sprintf("d%d.example", i)
			}
			if i%2 == 1 {
				domain = strings.ToUpper(domain)
			}
			to = append(to, envelope.Address(fmt.Sprintf("r%d@%s", i, domain)))
		}
		m := r.queue.putTo(hot, 0, to...)
		r.run()
		after(5 * time.Second)
		got := map[int]int{}
		for _, try := range r.exchange.of(hot) {
			domains := map[string]int{}
			for k, i := range try.open {
				got[i]++
				domains[strings.ToLower(try.to[k].Domain())]++
			}
			if len(try.open) > 500 || domains["one.example"] > 200 {
				t.Errorf("%d in one envelope, %d of one domain", len(try.open), domains["one.example"])
			}
		}
		for i := range 600 {
			if got[i] != 1 {
				t.Fatalf("recipient %d: %d times", i, got[i])
			}
		}
		if n := len(r.exchange.of(hot)); n != 3 || m.progress.State != envelope.Sent || m.progress.Attempts != 1 {
			t.Errorf("%d envelopes, %v after %d attempts; want 3, sent, 1", n, m.progress.State, m.progress.Attempts)
		}
		if r.logged("deferred") != 0 || r.logged("sent in part: the rest is next") != 2 || r.logged("sent") != 1 {
			t.Errorf("the log says deferred %d times, in part %d times, sent %d times", r.logged("deferred"), r.logged("sent in part: the rest is next"), r.logged("sent"))
		}
		for _, p := range m.history[:2] {
			if p.State != envelope.Queued {
				t.Errorf("in between: %v", p.State)
			}
		}
	})
}

// A server that takes fewer than we think is found out by halves, and that is remembered for a day.
func TestSplitIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if len(try.open) > 30 {
				return each(try, reply(status.StageRcpt, 452, status.Split, "4.5.3 Too many recipients"))
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, RecipientsPerMessage: 500})
		r.queue.put(hot, 100, 0)
		r.run()
		sizes := func() (sizes []int) {
			after(time.Second)
			for _, try := range r.exchange.of(hot) {
				sizes = append(sizes, len(try.open))
			}
			r.exchange.mu.Lock()
			r.exchange.tries = nil
			r.exchange.mu.Unlock()
			return sizes
		}
		if got, want := sizes(), []int{100, 50, 25, 25, 25, 25}; !slices.Equal(got, want) {
			t.Errorf("got envelopes of %v, want %v", got, want)
		}
		r.queue.put(hot, 60, 0)
		if got, want := sizes(), []int{25, 25, 10}; !slices.Equal(got, want) {
			t.Errorf("the next message: got %v, want %v", got, want)
		}
		after(25 * time.Hour)
		r.queue.put(hot, 60, 0)
		if got, want := sizes(), []int{60, 30, 30}; !slices.Equal(got, want) {
			t.Errorf("a day later: got %v, want %v", got, want)
		}
		for _, m := range r.queue.order {
			if m.progress.State != envelope.Sent || m.progress.Attempts != 1 {
				t.Errorf("%v after %d attempts", m.progress.State, m.progress.Attempts)
			}
		}
	})
}

// Recipients of one message that fail apart are tried apart, and each as often as its own replies ask for.
func TestRecipientsHaveTheirOwnTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		began := time.Now()
		tries := map[int][]time.Duration{}
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := accept(try)
			for k, i := range try.open {
				tries[i] = append(tries[i], try.begun.Sub(began))
				switch {
				case i == 0 && len(tries[i]) < 3:
					out.Errs[k] = reply(status.StageRcpt, 450, status.Retry, "busy")
				case i == 1 && len(tries[i]) < 2:
					e := *reply(status.StageRcpt, 450, status.Retry, "per hour limit")
					e.Wait = time.Hour
					out.Errs[k] = &e
				}
			}
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		m := r.queue.put(hot, 3, 0)
		r.run()
		after(3 * time.Hour)
		if len(tries[0]) != 3 || len(tries[1]) != 2 || len(tries[2]) != 1 {
			t.Fatalf("tried %v", tries)
		}
		if got := tries[1][1]; got < time.Hour {
			t.Errorf("tried again after %v, the reply asked for an hour", got)
		}
		if got := tries[0][2]; got < 6*time.Minute || got > 8*time.Minute {
			t.Errorf("third attempt after %v, want the schedule's 1 and 5 minutes", got)
		}
		if p := r.queue.progress(m); p.State != envelope.Sent || p.Attempts != 3 || p.Results[1].Attempts != 2 || p.Results[2].Attempts != 1 {
			t.Errorf("got %+v", p)
		}
	})
}
