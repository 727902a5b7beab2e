package dispatch

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// wrong is an error of one recipient.
func wrong(action status.Action, text string) *status.Error {
	return &status.Error{Code: 451, Text: text, Action: action}
}

// Without parks a message fails at the first temporary failure after its lifetime, whatever chance adds to its waits.
func TestLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lifetime = 5 * 24 * time.Hour
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome { return refuse(try, status.Retry, "busy") }
		for i := range 20 {
			r.router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3})
			r.queue.put(sender(i), 1, 0)
		}
		began := time.Now()
		r.run()
		after(lifetime)
		if got := r.settled(); got != 0 {
			t.Errorf("%d messages failed before their lifetime was over", got)
		}
		after(5 * time.Hour) // the longest wait, 4 h and a quarter
		r.stop()
		for _, m := range r.queue.order {
			if m.progress.State != envelope.Failed || m.settled.Sub(began) < lifetime {
				t.Errorf("%s: %v after %v", m.env.ID, m.progress.State, m.settled.Sub(began))
			}
			want := "554 5.4.7 not delivered within 120h0m0s; last reply: 451 busy"
			if got := m.progress.Results[0].Reply; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			for i, p := range m.history[:len(m.history)-1] {
				if p.Attempts != i+1 || p.State != envelope.Deferred {
					t.Errorf("%s: attempt %d recorded as %d, %v", m.env.ID, i+1, p.Attempts, p.State)
				}
			}
		}
	})
}

// A recipient accepted once is never tried again, in whatever company; everyone's fate is known in the end.
func TestNobodyIsSentTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		accepted := map[int]int{}
		round := 0
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := accept(try)
			for k, i := range try.open {
				switch {
				case i == 7:
					out.Errs[k] = wrong(status.Fail, "no such user")
				case i > round: // one more each time
					out.Errs[k] = wrong([]status.Action{status.Retry, status.Uncertain, status.BackOffSender}[i%3], "not yet")
				default:
					accepted[i]++
				}
			}
			round++
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 8, 0)
		r.run()
		after(48 * time.Hour)
		r.stop()
		if m.progress.State != envelope.Failed {
			t.Errorf("got %v, want failed: one recipient was", m.progress.State)
		}
		for i := range 7 {
			if accepted[i] != 1 || m.progress.Results[i].State != envelope.Sent {
				t.Errorf("recipient %d: accepted %d times, %v", i, accepted[i], m.progress.Results[i].State)
			}
		}
		if tries := r.exchange.of(hot); len(tries) != 7 || len(tries[0].open) != 8 || len(tries[1].open) != 6 {
			t.Errorf("got %d attempts", len(tries))
		}
	})
}

func TestUncertainIsResentAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if len(r.exchange.all()) == 0 {
				return refuse(try, status.Uncertain, "connection lost")
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(time.Second)
		if got := r.queue.state(m); got != envelope.Uncertain {
			t.Errorf("got %v, want uncertain", got)
		}
		if got := testutil.ToFloat64(r.d.metrics.duplicates); got != 0 {
			t.Errorf("counted %v before anything was sent again", got)
		}
		after(2 * time.Minute)
		if got := r.queue.state(m); got != envelope.Sent {
			t.Errorf("got %v, want sent", got)
		}
		if got := testutil.ToFloat64(r.d.metrics.duplicates); got != 1 {
			t.Errorf("relayd_possible_duplicates_total: got %v, want 1", got)
		}
		if r.logged("possible duplicate: resending a message whose last attempt ended between final dot and reply") != 1 {
			t.Error("not flagged in the log")
		}
	})
}

// A message that panics three times is held; its sender's other mail flows.
func TestPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var poison, short envelope.ID
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			switch try.id {
			case poison:
				panic("a nil map")
			case short:
				return status.Outcome{} // breaks the contract
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		p, s := r.queue.put(hot, 2, 0), r.queue.put(hot, 2, 0)
		poison, short = p.env.ID, s.env.ID
		for range 10 {
			r.queue.put(hot, 1, 0)
		}
		r.run()
		after(time.Second)
		if got := r.settled(); got != 10 {
			t.Errorf("%d of 10 others sent", got)
		}
		after(time.Hour)
		r.stop()
		for _, m := range []*mail{p, s} {
			if m.progress.State != envelope.Held || len(m.history) != 3 || m.progress.Attempts != 3 || m.progress.Reason != fate.ErrPoison.Error() {
				t.Errorf("got %v after %d attempts, %q", m.progress.State, len(m.history), m.progress.Reason)
			}
			if len(m.history) > 1 && m.history[1].Results[0].Reply != "451 4.3.0 internal error" {
				t.Errorf("recipients are told %q", m.history[1].Results[0].Reply)
			}
		}
		if got := r.logged("attempt panicked"); got != 6 {
			t.Errorf("%d panics in the log, want 6", got)
		}
		if len(r.d.panics) != 0 {
			t.Errorf("remembered for nothing: %v", r.d.panics)
		}
	})
}

// One that panics behind its final dot may have been taken: it is sent again as a possible duplicate.
func TestPanicBehindTheDotIsUncertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			deliver := o.Deliverer
			o.Deliverer = afterwards(func() { // the body has been read
				if len(deliver.(*fakeExchange).all()) == 1 {
					panic("a nil map")
				}
			}, deliver)
		})
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 1})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(30 * time.Second)
		if got := r.queue.progress(m); got.State != envelope.Uncertain || got.Results[0].State != envelope.Uncertain {
			t.Errorf("got %v, its recipient %v; want both uncertain", got.State, got.Results)
		}
		after(time.Hour)
		if got := r.logged("possible duplicate: resending a message whose last attempt ended between final dot and reply"); got != 1 || r.queue.state(m) != envelope.Sent {
			t.Errorf("flagged %d times, %v; want once, sent", got, r.queue.state(m))
		}
	})
}

// deliverFunc is a Deliverer.
type deliverFunc func(ctx context.Context, route *envelope.Route, env *envelope.Envelope, open []int, body io.Reader) status.Outcome

func (f deliverFunc) Deliver(ctx context.Context, route *envelope.Route, env *envelope.Envelope, open []int, body io.Reader) status.Outcome {
	return f(ctx, route, env, open, body)
}

// afterwards calls f before each outcome is returned.
func afterwards(f func(), d Deliverer) Deliverer {
	return deliverFunc(func(ctx context.Context, route *envelope.Route, env *envelope.Envelope, open []int, body io.Reader) status.Outcome {
		out := d.Deliver(ctx, route, env, open, body)
		f()
		return out
	})
}

// One that recovers after two panics is forgotten with its end.
func TestTwoPanicsAreForgiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			if len(r.exchange.all()) < 2 {
				panic("passing")
			}
			return accept(try)
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(time.Hour)
		r.stop()
		if m.progress.State != envelope.Sent || len(r.d.panics) != 0 {
			t.Errorf("got %v, remembered %v", m.progress.State, r.d.panics)
		}
	})
}

func TestDamagedBodyIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := refuse(try, status.Retry, "internal error")
			out.Errs[0].Err = fmt.Errorf("read body: %w", envelope.ErrCorrupt)
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(24 * time.Hour)
		r.stop()
		if m.progress.State != envelope.Held || len(m.history) != 1 || !strings.Contains(m.progress.Reason, envelope.ErrCorrupt.Error()) {
			t.Errorf("got %v after %d attempts, %q", m.progress.State, len(m.history), m.progress.Reason)
		}
		if r.logged("held") != 1 {
			t.Error("not in the log")
		}
	})
}

func TestLogNamesTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.exchange.answer = func(_ context.Context, try *try) status.Outcome {
			out := refuse(try, status.Retry, "cannot be reached")
			out.Errs[0].Err = io.ErrUnexpectedEOF
			return out
		}
		r.router.set(hot, envelope.Route{Tenant: "contoso", Connections: 3})
		m := r.queue.put(hot, 1, 0)
		r.run()
		after(time.Second)
		lines := r.logs.FilterMessage("deferred").All()
		if len(lines) != 1 {
			t.Fatalf("got %d lines, want 1", len(lines))
		}
		got := lines[0].ContextMap()
		for key, want := range map[string]any{
			"id": string(m.env.ID), "sender": string(hot), "tenant": "contoso", "login": string(hot), "attempt": int64(1),
			"recipients": int64(1), "reply": "451 cannot be reached", "error": io.ErrUnexpectedEOF.Error(),
		} {
			if got[key] != want {
				t.Errorf("%s: got %v, want %v", key, got[key], want)
			}
		}
		for _, address := range []string{"r0@example.com"} {
			if strings.Contains(fmt.Sprint(got), address) {
				t.Errorf("the log has the recipient %s", address)
			}
		}
	})
}
