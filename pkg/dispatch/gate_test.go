package dispatch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// within reports whether got is d, made up to a tenth longer by chance.
func within(got, d time.Duration) bool { return got >= d && got <= d*11/10+time.Millisecond }

// refusing makes the far end answer senders for which it has an action with that, and accept the others.
type refusing struct {
	actions atomic.Pointer[map[envelope.Address]status.Action]
	after   time.Duration
}

func (r *refusing) set(actions map[envelope.Address]status.Action) { r.actions.Store(&actions) }

func (r *refusing) answer(_ context.Context, t *try) status.Outcome {
	advance(r.after)
	if a, ok := (*r.actions.Load())[t.sender]; ok {
		return refuse(t, a, "535 5.7.3 Authentication unsuccessful")
	}
	return accept(t)
}

func TestParkOfASender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		far := refusing{after: time.Second}
		far.set(map[envelope.Address]status.Action{hot: status.ParkSender})
		r.exchange.answer = far.answer
		route := envelope.Route{Tenant: "contoso", Connections: 3}
		r.router.set(hot, route)
		r.router.set(sender(1), route)
		for range 20 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		for range 90 {
			after(time.Minute)
			r.queue.put(sender(1), 1, 0)
		}
		after(time.Second)
		tries := r.exchange.of(hot)
		if len(tries) < 3 {
			t.Fatalf("got %d attempts", len(tries))
		}
		// Three meet the fault at once; from then on one probe at a time, after 1, 2, 4, 8, 15, 15 … minutes.
		closed := tries[2].end
		for i, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 15 * time.Minute, 15 * time.Minute} {
			try := tries[3+i]
			if got := try.begun.Sub(closed); !within(got, want) {
				t.Errorf("probe %d began %v after the last failure, want %v and up to a tenth", i+1, got, want)
			}
			closed = try.end
		}
		if r.exchange.most[hot] != 3 {
			t.Errorf("%d attempts at once", r.exchange.most[hot])
		}
		if got := r.logged(parkedLine); got != 1 {
			t.Errorf("told %d times in the log, want once", got)
		}
		if got, want := r.queue.parks(hot), []string{"451 535 5.7.3 Authentication unsuccessful"}; !slices.Equal(got, want) {
			t.Errorf("the source was told %q, want %q", got, want)
		}
		if got := r.settled(); got != 90 {
			t.Errorf("%d of 90 messages of the tenant's other sender went out", got)
		}

		far.set(nil)
		after(17*time.Minute + 20*time.Second)
		r.stop()
		for _, m := range r.queue.order {
			if m.progress.State != envelope.Sent || m.progress.Attempts != 1 {
				t.Errorf("%s: %v after %d attempts, want sent in the first that counts", m.env.ID, m.progress.State, m.progress.Attempts)
			}
		}
		if got, want := r.queue.parks(hot), []string{"451 535 5.7.3 Authentication unsuccessful", ""}; !slices.Equal(got, want) {
			t.Errorf("the source was told %q, want %q", got, want)
		}
		if r.logged("resumed") != 1 {
			t.Errorf("resumed %d times in the log, want once", r.logged("resumed"))
		}
	})
}

// One refused token parks a tenant's mail, one probe at a time finds out, one success lets all go.
func TestParkOfATenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const senders, each = 50, 4
		r := newRig(t, func(o *Options) { o.Workers = 256 })
		var cured atomic.Bool
		var probing, most atomic.Int32
		parkedAt := time.Now().Add(time.Second)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if try.begun.After(parkedAt) && !cured.Load() && try.tenant == "contoso" {
				if n := probing.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer probing.Add(-1)
			}
			advance(time.Second)
			if try.tenant == "contoso" && !cured.Load() {
				return refuse(try, status.ParkTenant, "7000222 secret expired")
			}
			return accept(try)
		}
		for i := range senders {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3})
			for range each {
				r.queue.put(sender(i), 1, 0)
			}
		}
		other := envelope.Address("a@fabrikam.com")
		r.router.set(other, envelope.Route{Tenant: "fabrikam", Connections: 3})
		r.run()
		for range 33 {
			after(time.Minute)
			r.queue.put(other, 1, 0)
		}
		after(time.Second)
		if got := len(r.exchange.of(other)); got != 33 {
			t.Errorf("%d of 33 messages of another tenant went out", got)
		}
		if got := most.Load(); got != 1 {
			t.Errorf("%d probes at once, want 1", got)
		}
		var probes []time.Duration
		for _, try := range r.exchange.all() {
			if try.tenant == "contoso" && try.begun.After(parkedAt) {
				probes = append(probes, try.begun.Sub(parkedAt))
			}
		}
		if len(probes) != 5 || !within(probes[0], time.Minute) { // 1+2+4+8+15 minutes, and tenths
			t.Errorf("probes after %v, want five, the first after a minute", probes)
		}
		if got := r.logged(parkedLine); got != 1 {
			t.Errorf("told %d times in the log, want once", got)
		}
		for i := range senders {
			if got := r.queue.parks(sender(i)); len(got) != 1 || got[0] == "" {
				t.Fatalf("sender %d: the source was told %q, want the reason once", i, got)
			}
		}
		cured.Store(true)
		after(17 * time.Minute)
		r.stop()
		for _, m := range r.queue.order {
			if m.progress.State != envelope.Sent || m.progress.Attempts != 1 {
				t.Errorf("%s: %v after %d attempts", m.env.ID, m.progress.State, m.progress.Attempts)
			}
		}
		for i := range senders {
			if got := r.queue.parks(sender(i)); len(got) != 2 || got[1] != "" {
				t.Errorf("sender %d: the source was told %q, want the reason and the end", i, got)
			}
		}
	})
}

// Each sender's own fault, found while its tenant is parked, is its own: the others are probed at once.
func TestParkedSenderInAParkedTenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		far := refusing{after: time.Second} // so that all stand behind the probe
		all := map[envelope.Address]status.Action{}
		for i := range 5 {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3})
			all[sender(i)] = status.ParkTenant
			r.queue.put(sender(i), 1, time.Duration(i)*time.Millisecond)
		}
		far.set(all)
		r.exchange.answer = far.answer
		r.run()
		after(2 * time.Second)
		far.set(map[envelope.Address]status.Action{sender(0): status.ParkSender}) // the probe will be its: its mail is the oldest
		after(2 * time.Minute)
		if got := r.settled(); got != 4 {
			t.Errorf("%d of the 4 healthy senders' messages went out", got)
		}
		if got := r.queue.parks(sender(0)); got[len(got)-1] == "" {
			t.Errorf("the sender with a fault of its own is not shown as parked: %q", got)
		}
		if got := r.queue.parks(sender(1)); got[len(got)-1] != "" {
			t.Errorf("a healthy sender is still shown as parked: %q", got)
		}
	})
}

func TestBackOff(t *testing.T) {
	for _, tt := range []struct {
		action status.Action
		others bool // the tenant's other mailbox may go on
	}{{status.BackOffSender, true}, {status.BackOffTenant, false}} {
		t.Run(tt.action.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.Retry = []time.Duration{time.Second} })
				var far refusing
				far.set(map[envelope.Address]status.Action{hot: tt.action})
				r.exchange.answer = far.answer
				r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
				r.router.set(sender(1), envelope.Route{Tenant: "contoso", Connections: 1})
				r.router.set(sender(2), envelope.Route{Tenant: "fabrikam", Connections: 1})
				r.queue.put(hot, 1, 0)
				r.run()
				synctest.Wait()
				r.queue.put(sender(1), 1, 0)
				r.queue.put(sender(2), 1, 0)
				after(time.Second)
				if got := len(r.exchange.of(sender(1))) == 1; got != tt.others {
					t.Errorf("the tenant's other mailbox sent: %v, want %v", got, tt.others)
				}
				if len(r.exchange.of(sender(2))) != 1 {
					t.Error("another tenant's mailbox did not send")
				}
				if tt.action == status.BackOffTenant {
					far.set(map[envelope.Address]status.Action{hot: tt.action, sender(1): tt.action})
				}
				after(90 * time.Minute)
				tries := slices.DeleteFunc(r.exchange.all(), func(t *try) bool { return t.tenant != "contoso" || t.sender == sender(1) && tt.others })
				tries = slices.CompactFunc(tries, func(a, b *try) bool { return a.begun.Equal(b.begun) }) // two mailboxes at once
				for i, want := range []time.Duration{15, 30, 60, 120, 240, 480, 600, 600, 600} {
					if got := tries[i+1].begun.Sub(tries[i].end); !within(got, want*time.Second) {
						t.Errorf("pause %d: got %v, want %v and up to a tenth", i+1, got, want*time.Second)
					}
				}
				if got := r.queue.parks(hot); len(got) != 0 {
					t.Errorf("a back-off was shown as a park: %q", got)
				}
				far.set(nil)
				after(time.Hour)
				if got := r.settled(); got != 3 {
					t.Errorf("%d of 3 messages went out after the cure", got)
				}
			})
		})
	}
}

// Of three attempts that run at once, one meets the limit: the successes of the others do not open what it closed, and
// what it closed counts once.
func TestSuccessBesideABackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		began := time.Now()
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			switch {
			case !try.begun.Equal(began):
				return accept(try)
			case try.id == "00000000000000000001": // closes after 1 s
				advance(time.Second)
				return refuse(try, status.BackOffSender, "432 4.3.2 Concurrent connections limit exceeded")
			case try.id == "00000000000000000002": // a success behind it
				advance(2 * time.Second)
				return accept(try)
			default: // and another that meets the same
				advance(3 * time.Second)
				return refuse(try, status.BackOffSender, "432 4.3.2 Concurrent connections limit exceeded")
			}
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		for range 6 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(time.Minute)
		tries := r.exchange.of(hot)
		if len(tries) < 4 {
			t.Fatalf("%d attempts", len(tries))
		}
		if got := tries[3].begun.Sub(began.Add(time.Second)); !within(got, 15*time.Second) {
			t.Errorf("the next attempt began %v after the refusal, want 15 s and up to a tenth", got)
		}
	})
}

// The success of a session opened before the fault says nothing about the fault.
func TestOldSuccessDoesNotEndAPark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if try.id == "00000000000000000001" {
				advance(30 * time.Second)
				return accept(try)
			}
			return refuse(try, status.ParkSender, "535")
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 2})
		for range 5 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(50 * time.Second)
		if got := len(r.exchange.of(hot)); got != 2 {
			t.Errorf("%d attempts within the first minute, want 2", got)
		}
		if r.logged("resumed") != 0 || r.logged(parkedLine) != 1 {
			t.Errorf("the log says parked %d times, resumed %d times", r.logged(parkedLine), r.logged("resumed"))
		}
	})
}

// A probe that hangs stays the only one, whatever else of its mailbox or tenant comes to an end meanwhile.
func TestOneProbeAtATime(t *testing.T) {
	for _, action := range []status.Action{status.ParkSender, status.ParkTenant} {
		t.Run(action.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				began := time.Now()
				var probing, most, probes atomic.Int32
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
					switch {
					case try.begun.Sub(began) > time.Second:
						probes.Add(1)
						most.Store(max(most.Load(), probing.Add(1)))
						advance(5 * time.Minute)
						probing.Add(-1)
					case try.sender == sender(2): // begun before the park, ends while its first probe is under way
						advance(3 * time.Minute)
						return refuse(try, status.Retry, "reset")
					default:
						advance(time.Second)
					}
					return refuse(try, action, "refused")
				}
				route := envelope.Route{Tenant: "contoso", Connections: 3}
				if action == status.ParkSender {
					route.Login = "relay@contoso.com"
				}
				for i := range 3 {
					r.router.set(sender(i), route)
					for n := range 10 {
						due := time.Duration(0)
						if i == 2 && n > 0 { // one of its own at a time, whose turn ever comes first
							due = 2 * time.Second
						}
						r.queue.put(sender(i), 1, due)
					}
				}
				r.run()
				after(15 * time.Minute) // 1, +5, 2, +5 minutes
				if probes.Load() != 2 || most.Load() != 1 {
					t.Errorf("%d probes, %d at once, want 2, one at a time", probes.Load(), most.Load())
				}
			})
		})
	}
}

// A probe whose failure says nothing about the park keeps it, and its steps.
func TestProbeThatTellsNothing(t *testing.T) {
	for _, action := range []status.Action{status.ParkSender, status.ParkTenant} {
		t.Run(action.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
					if len(r.exchange.all()) == 0 {
						return refuse(try, action, "secret expired")
					}
					return refuse(try, status.Retry, "connection reset")
				}
				for i := range 10 {
					route := envelope.Route{Tenant: "contoso", Connections: 1}
					if action == status.ParkSender {
						route.Login = "relay@contoso.com"
					}
					r.router.set(sender(i), route)
					r.queue.put(sender(i), 1, time.Duration(i)*time.Second)
				}
				r.run()
				after(8 * time.Minute) // 1+2+4 and tenths
				if got := len(r.exchange.all()); got != 4 {
					t.Errorf("%d attempts, want the first and three probes", got)
				}
			})
		})
	}
}

// A refusal that is settled (mixed: some accepted, some parked) is due at once, and the gate closed by then.
func TestGateClosesBeforeTheOutcomeIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := accept(try)
			if len(try.open) == 2 {
				out.Errs[1] = wrong(status.ParkSender, "535")
			}
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 2, 0)
		r.run()
		after(30 * time.Second)
		if got := len(r.exchange.of(hot)); got != 1 {
			t.Errorf("%d attempts while parked, want 1", got)
		}
		after(time.Minute)
		if p := r.queue.progress(m); p.State != envelope.Sent || p.Attempts != 1 {
			t.Errorf("after the probe: %v, %d attempts", p.State, p.Attempts)
		}
	})
}

func TestReload(t *testing.T) {
	t.Run("a route that comes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			early := r.queue.put(hot, 1, 0)
			r.run()
			after(time.Minute)
			late := r.queue.put(hot, 1, 0)
			after(time.Minute)
			if got, want := r.queue.parks(hot), []string{errNoRoute.Error()}; !slices.Equal(got, want) {
				t.Errorf("the source was told %q, want %q", got, want)
			}
			if got := r.logged("sender parked"); got != 1 {
				t.Errorf("told %d times in the log, want once", got)
			}
			r.d.Reload(nil, 0) // nothing has changed
			synctest.Wait()
			if got := r.logged("sender parked"); got != 1 {
				t.Errorf("told again by a reload without a change: %d times", got)
			}
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
			r.d.Reload(nil, 0)
			after(time.Second)
			if r.queue.state(early) != envelope.Sent || r.queue.state(late) != envelope.Sent {
				t.Errorf("got %v and %v, want both sent", r.queue.state(early), r.queue.state(late))
			}
			if got, want := r.queue.parks(hot), []string{errNoRoute.Error(), ""}; !slices.Equal(got, want) {
				t.Errorf("the source was told %q, want %q", got, want)
			}
		})
	})
	t.Run("a route that goes and comes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
			r.run()
			m := r.queue.put(hot, 1, time.Minute)
			r.router.remove(hot)
			r.d.Reload(nil, 0)
			after(time.Hour)
			if got := r.queue.parks(hot); len(got) != 1 || r.queue.state(m) != envelope.Queued {
				t.Errorf("told %q, message %v", got, r.queue.state(m))
			}
			// New mail finds the route back before the reload does.
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
			second := r.queue.put(hot, 1, 0)
			after(time.Second)
			r.d.notify(hot, time.Now())
			after(time.Second)
			if r.queue.state(m) != envelope.Sent || r.queue.state(second) != envelope.Sent {
				t.Errorf("got %v and %v, want both sent", r.queue.state(m), r.queue.state(second))
			}
		})
	})
	t.Run("limits and login", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.exchange.latency = time.Second
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
			for range 400 {
				r.queue.put(hot, 1, 0)
			}
			r.run()
			after(10*time.Second + time.Millisecond)
			if got := r.exchange.most[hot]; got != 1 {
				t.Errorf("%d at once, want 1", got)
			}
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 5})
			r.d.Reload(nil, 0)
			after(10*time.Second + 500*time.Millisecond)
			if got := r.exchange.most[hot]; got != 5 {
				t.Errorf("after the reload %d at once, want 5", got)
			}
			r.router.set(hot, envelope.Route{Tenant: "contoso", Login: "relay@contoso.com", Connections: 2, MessagesPerMinute: 60})
			r.d.Reload(nil, 0)
			reloaded := time.Now()
			after(time.Minute)
			late := slices.DeleteFunc(r.exchange.all(), func(t *try) bool { return t.begun.Before(reloaded) }) // those under way keep the old login
			for _, try := range late {
				if try.login != "relay@contoso.com" {
					t.Fatalf("sent as %s after the reload", try.login)
				}
			}
			if n := len(late); n < 50 || n > 60 || r.exchange.most["relay@contoso.com"] > 2 {
				t.Errorf("%d in the minute, %d at once; want the new limits, 60 and 2", n, r.exchange.most["relay@contoso.com"])
			}
		})
	})
	t.Run("retry and lifetime", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.exchange.answer = func(_ context.Context, try *try) status.Outcome { return refuse(try, status.Retry, "busy") }
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
			r.run()
			r.d.Reload([]time.Duration{10 * time.Second}, time.Minute)
			m := r.queue.put(hot, 1, 0)
			after(2 * time.Minute)
			p := r.queue.progress(m)
			if p.State != envelope.Failed || p.Attempts < 5 || p.Attempts > 8 {
				t.Errorf("got %v after %d attempts, want failed after a minute's worth", p.State, p.Attempts)
			}
		})
	})
	t.Run("probes what is parked, and leaves back-offs alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			actions := map[envelope.Address]status.Action{sender(0): status.ParkSender, sender(1): status.BackOffSender, sender(2): status.ParkTenant}
			var far refusing
			far.set(actions)
			r.exchange.answer = far.answer
			for i := range 3 {
				r.router.set(sender(i), envelope.Route{Tenant: fmt.Sprint("t", i), Connections: 1})
				r.queue.put(sender(i), 1, 0)
				r.queue.put(sender(i), 1, 0)
			}
			r.run()
			after(5 * time.Second)
			far.set(nil)
			r.d.Reload(nil, 0)
			synctest.Wait()
			for i, want := range []int{3, 1, 3} {
				if got := len(r.exchange.of(sender(i))); got != want {
					t.Errorf("%v: %d attempts, want %d", actions[sender(i)], got, want)
				}
			}
		})
	})
	t.Run("while the only message is the probe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			far := refusing{after: 10 * time.Second}
			far.set(map[envelope.Address]status.Action{hot: status.ParkSender})
			r.exchange.answer = far.answer
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
			r.queue.put(hot, 1, 0)
			r.run()
			after(78 * time.Second) // 10 s, a minute and a tenth: the probe is under way
			far.set(nil)
			r.d.Reload(nil, 0)
			after(time.Minute)
			if got := r.queue.parks(hot); r.settled() != 1 || len(got) != 2 || got[1] != "" {
				t.Errorf("%d sent, the source was told %q, want the end of the park as well", r.settled(), got)
			}
		})
	})
	t.Run("keeps what was counted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1, MessagesPerMinute: 2, RecipientsPerDay: 5})
			r.run()
			for range 4 {
				r.queue.put(hot, 1, 0)
				after(10 * time.Second)
				r.d.Reload(nil, 0)
			}
			if got := len(r.exchange.of(hot)); got != 2 {
				t.Errorf("%d messages in 40 s, want 2", got)
			}
			after(5 * time.Minute)
			r.queue.put(hot, 1, 0)
			after(time.Hour)
			r.d.Reload(nil, 0)
			r.queue.put(hot, 1, 0)
			after(time.Hour)
			if got := len(r.exchange.of(hot)); got != 5 {
				t.Errorf("%d recipients in a day, want 5", got)
			}
			after(48 * time.Hour)
			r.d.Reload(nil, 0)
			r.d.mu.Lock()
			defer r.d.mu.Unlock()
			if len(r.d.mailboxes) != 0 {
				t.Error("a mailbox with nothing to remember is kept")
			}
		})
	})
	t.Run("the stricter of two limits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			for i, n := range []int{3, 1, 2} {
				r.router.set(sender(i), envelope.Route{Tenant: "contoso", Login: "relay@contoso.com", Connections: n, MessagesPerMinute: 60 * n, RecipientsPerDay: (i % 2) * 1000})
				for range 300 {
					r.queue.put(sender(i), 1, 0)
				}
			}
			r.run()
			for range 10 {
				after(time.Second)
				r.d.Reload(nil, 0) // in another order each time
				r.d.mu.Lock()
				if m := r.d.mailboxes["contoso/relay@contoso.com"]; m.route.Connections != 1 || m.pace.Limit != 60 || m.day.Limit != 1000 {
					t.Errorf("got %d at once, %d a minute, %d a day, want 1, 60 and 1000", m.route.Connections, m.pace.Limit, m.day.Limit)
				}
				r.d.mu.Unlock()
			}
		})
	})
	// Reload in the middle of everything: a lane between its turn and its claim, in an attempt, in a settlement.
	t.Run("at any moment", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(5, 6))
			r := newRig(t, nil)
			r.exchange.latency = 10 * time.Millisecond
			for i := range 10 {
				r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 2})
				for range 50 {
					r.queue.put(sender(i), 1, some(random, 2*time.Second))
				}
			}
			r.queue.waits = make(chan struct{})
			r.run()
			synctest.Wait() // all workers stand in Claim
			r.d.Reload(nil, 0)
			close(r.queue.waits)
			for range 400 {
				i := random.IntN(10)
				route := envelope.Route{Tenant: fmt.Sprint("t", random.IntN(2)), Connections: 1 + random.IntN(3)}
				if random.IntN(3) == 0 {
					route.Login = sender(random.IntN(3))
				}
				r.router.set(sender(i), route)
				if random.IntN(5) == 0 {
					r.router.remove(sender(i))
				}
				r.d.Reload(nil, 0)
				advance(some(random, 20*time.Millisecond))
			}
			for i := range 10 {
				r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 2})
			}
			r.d.Reload(nil, 0)
			after(time.Minute)
			if got := r.settled(); got != 500 {
				t.Errorf("%d of 500 sent", got)
			}
			r.d.mu.Lock()
			defer r.d.mu.Unlock()
			for key, m := range r.d.mailboxes {
				if m.active != 0 {
					t.Errorf("%s: %d connections were not given back", key, m.active)
				}
			}
		})
	})
}

// A recipient outside that a hold keeps back does not delay one inside of the same message, which is due before its end.
func TestHoldDelaysNobodyInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if slices.Contains(try.to, beyond) {
				return each(try, reply(status.StageDot, 550, status.HoldTenantExternal, "5.7.233"))
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		r.queue.putTo(hot, 0, beyond) // closes the hold
		m := r.queue.putTo(hot, time.Minute, beyond, inside)
		now := time.Now()
		m.progress = envelope.Progress{State: envelope.Deferred, Attempts: 1, Results: []envelope.Result{
			{State: envelope.Deferred, Attempts: 1, Due: now.Add(time.Minute)}, {State: envelope.Deferred, Attempts: 1, Due: now.Add(5 * time.Minute)},
		}}
		r.run()
		after(6 * time.Minute)
		if p := r.queue.progress(m); p.Results[1].State != envelope.Sent || p.Results[0].State.Final() {
			t.Errorf("got %+v, want the one inside sent", p.Results)
		}
		r.stop()
		if n := len(m.rested); n < 1 || n > 3 {
			t.Errorf("given back %d times", n)
		}
	})
}
