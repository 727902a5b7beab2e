package live

import (
	"context"
	"errors"
	"maps"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/envelope"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Memory that can fail.
type memory struct {
	mu     sync.Mutex
	kept   map[string][]byte
	writes int
	err    error
}

func newMemory() *memory { return &memory{kept: map[string][]byte{"dispatch.x": []byte("another's")}} }

func (m *memory) Recall(context.Context) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.kept), m.err
}

func (m *memory) Remember(ctx context.Context, key string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	m.writes++
	if m.err == nil {
		m.kept[key] = data
	}
	return m.err
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *memory) record() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.kept[memoryKey])
}

type rig struct {
	*Log
	t    *testing.T
	reg  *prometheus.Registry
	logs *observer.ObservedLogs
	stop func()
}

// newRig runs a log over m.
func newRig(t *testing.T, m Memory) *rig {
	core, logs := observer.New(zapcore.InfoLevel)
	r := &rig{t: t, reg: prometheus.NewRegistry(), logs: logs}
	r.Log = New(Options{Memory: m, Logger: zap.New(core), Registerer: r.reg})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	return r
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func accepted() envelope.Step {
	return envelope.Step{What: envelope.StepAccepted, State: envelope.Queued}
}

func attempt(state envelope.State) envelope.Step {
	return envelope.Step{What: envelope.StepAttempt, State: state}
}

// sum adds a chart up.
func sum(chart []Minute) (total Minute) {
	for _, m := range chart {
		total.Accepted += m.Accepted
		total.Sent += m.Sent
		total.Deferred += m.Deferred
		total.Failed += m.Failed
	}
	return total
}

func (r *rig) want(when string, hour, day Minute) {
	r.t.Helper()
	for name, chart := range map[string][]Minute{"hour": r.Hour(), "day": r.Day()} {
		want, n, step := hour, 60, time.Minute
		if name == "day" {
			want, n, step = day, 24, time.Hour
		}
		if got := sum(chart); got != want {
			r.t.Errorf("%s: %s is %+v, want %+v", when, name, got, want)
		}
		if len(chart) != n {
			r.t.Fatalf("%s: %s has %d steps, want %d", when, name, len(chart), n)
		}
		for i := range chart {
			if i > 0 && chart[i].At.Sub(chart[i-1].At) != step {
				r.t.Errorf("%s: %s: %v comes after %v", when, name, chart[i].At, chart[i-1].At)
			}
		}
		if since := time.Since(chart[n-1].At); since < 0 || since >= step {
			r.t.Errorf("%s: %s ends at %v, %v ago", when, name, chart[n-1].At, since)
		}
	}
}

func TestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		defer r.stop()
		r.want("nothing", Minute{}, Minute{})
		for _, s := range []envelope.Step{
			accepted(), accepted(), attempt(envelope.Sent), attempt(envelope.Deferred), attempt(envelope.Failed),
			attempt(envelope.Parked), attempt(envelope.Held), attempt(envelope.Uncertain), // wait for somebody: none of the four
			{What: envelope.StepDropped, State: envelope.Failed}, {What: envelope.StepExpired, State: envelope.Failed},
			{What: envelope.StepBounced, State: envelope.Failed}, {What: envelope.StepHeld, State: envelope.Held}, {},
		} {
			r.Record(s)
		}
		one := Minute{Accepted: 2, Sent: 1, Deferred: 1, Failed: 1}
		r.want("at once", one, one)
		if last := r.Hour()[59]; last.Accepted != 2 {
			t.Errorf("the last minute is %+v", last)
		}
		pass(59 * time.Minute)
		r.want("the last minute of the hour", one, one)
		if first := r.Hour()[0]; first.Accepted != 2 {
			t.Errorf("the first minute is %+v", first)
		}
		r.Record(attempt(envelope.Sent))
		pass(time.Minute)
		r.want("an hour later", Minute{Sent: 1}, Minute{Accepted: 2, Sent: 2, Deferred: 1, Failed: 1})
		pass(22 * time.Hour)
		r.want("a day later, nearly", Minute{}, Minute{Accepted: 2, Sent: 2, Deferred: 1, Failed: 1})
		pass(time.Hour)
		r.want("a day later", Minute{}, Minute{})
	})
}

func TestTimeOfSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		defer r.stop()
		pass(48 * time.Hour)
		for _, ago := range []time.Duration{30 * time.Minute, 5 * time.Hour, 30 * time.Hour, -10 * time.Hour} {
			s := accepted()
			s.At = time.Now().Add(-ago)
			r.Record(s)
		}
		r.want("late, later, too late, of the future", Minute{Accepted: 2}, Minute{Accepted: 3})
		if h := r.Hour(); h[29].Accepted != 1 || h[59].Accepted != 1 {
			t.Errorf("got %+v", h)
		}
	})
}

// TestMerge: of what was written before only the newest steps count, and none that is still to come.
func TestMerge(t *testing.T) {
	now := time.Unix(60*1000, 0)
	r := newRing(time.Minute, 60)
	r.add(now, now, counts{1})
	r.merge(now, []slot{
		{1000, counts{2}}, {941, counts{4}}, {940, counts{8}}, {1001, counts{16}}, {1060, counts{32}}, {999, counts{-64}},
	})
	for _, later := range []time.Duration{0, time.Minute, 30 * time.Minute} {
		want := 7
		if later > 0 {
			want = 3 // the oldest is over
		}
		if got := sum(r.list(now.Add(later))); got.Accepted != want {
			t.Errorf("%v later: got %d, want %d", later, got.Accepted, want)
		}
	}
}

// TestClockSteps: whatever the clock does, nothing panics or grows, and what is counted is shown.
func TestClockSteps(t *testing.T) {
	base := time.Date(2026, 5, 17, 12, 0, 30, 0, time.UTC)
	for _, step := range []time.Duration{time.Second, time.Hour, 24 * time.Hour, 100 * 365 * 24 * time.Hour} {
		for _, sign := range []time.Duration{1, -1} {
			r := newRing(time.Minute, 60)
			r.add(base, base, counts{1})
			now := base.Add(sign * step)
			r.add(now, now, counts{0, 1})
			chart := r.list(now)
			if got := sum(chart); len(chart) != 60 || got.Sent != 1 && now.Unix() >= 0 { // before 1970 nothing is counted
				t.Errorf("after %v: %+v of %d", sign*step, got, len(chart))
			}
			r.add(base, base, counts{1})
			if got := sum(r.list(base)); got.Accepted < 1 || got.Accepted > 2 || got.Sent != 0 && step*sign >= time.Hour {
				t.Errorf("after %v and back: %+v, want nothing of the time to come", sign*step, got)
			}
			if len(r.inForce(now)) > 60 || len(r.slots) != 60 {
				t.Errorf("after %v: it has grown", sign*step)
			}
		}
	}
	for _, now := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1e9, 0), time.Unix(1<<40, 0)} {
		r := newRing(time.Hour, 24)
		r.add(now, now, counts{1})
		r.add(base, now, counts{1})
		r.merge(now, []slot{{math.MinInt64, counts{1}}, {math.MaxInt64, counts{1}}, {-1, counts{1}}})
		if n := len(r.list(now)); n != 24 {
			t.Errorf("%v: %d hours", now, n)
		}
	}
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		r := newRig(t, m)
		r.Record(accepted())
		pass(saveEvery)
		if m.record() == "" {
			t.Fatal("after a minute nothing is written")
		}
		killed := m.record()
		pass(5 * saveEvery)
		if m.writes != 1 {
			t.Errorf("%d writes of the same", m.writes)
		}
		r.Record(attempt(envelope.Sent))
		r.stop() // in good order
		r = newRig(t, m)
		both := Minute{Accepted: 1, Sent: 1}
		r.want("after a stop", both, both)
		r.stop()

		m.kept[memoryKey] = []byte(killed)
		r = newRig(t, m)
		r.want("after kill -9", Minute{Accepted: 1}, Minute{Accepted: 1})
		pass(10 * saveEvery)
		if m.writes != 2 {
			t.Errorf("%d writes, though nothing was to be counted", m.writes)
		}
		r.stop()
		pass(2 * time.Hour)
		r = newRig(t, m)
		r.want("two hours down", Minute{}, Minute{Accepted: 1})
		r.stop()
		pass(48 * time.Hour)
		r = newRig(t, m)
		r.want("two days down", Minute{}, Minute{})
		r.stop()
		if string(m.kept["dispatch.x"]) != "another's" {
			t.Error("another's record was touched")
		}
	})
}

// TestRecordFits: the largest record there can be is within what a memory takes.
func TestRecordFits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		r := newRig(t, m)
		for range 24 * 60 {
			pass(time.Minute)
			r.mu.Lock()
			now := time.Now()
			c := counts{1e9, 1e9, 1e9, 1e9}
			r.minutes.add(now, now, c)
			r.hours.add(now, now, c)
			r.changed = true
			r.mu.Unlock()
		}
		r.stop()
		if n := len(m.record()) + len(memoryKey); n > 8<<10 || n < 4<<10 {
			t.Errorf("the record has %d octets", n)
		}
	})
}

func TestMemoryFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		r := newRig(t, m)
		r.Record(accepted())
		r.stop()
		m.fail(errors.New("being reopened"))
		r = newRig(t, m)
		r.Record(accepted())
		pass(5 * recallRetry)
		m.fail(nil)
		pass(recallRetry)
		r.want("read late", Minute{Accepted: 2}, Minute{Accepted: 2})
		m.fail(errors.New("no space"))
		r.Record(accepted())
		pass(10 * saveEvery)
		if n := r.logs.FilterMessageSnippet("not written").Len(); n != 1 {
			t.Errorf("told %d times, want once", n)
		}
		m.fail(nil)
		pass(saveEvery)
		r.stop()
		r = newRig(t, m)
		r.want("written late", Minute{Accepted: 3}, Minute{Accepted: 3})
		r.stop()

		m.fail(errors.New("gone for good"))
		r = newRig(t, m)
		pass(recallTries * recallRetry)
		if n := r.logs.FilterMessageSnippet("begin now").Len(); n != 1 {
			t.Errorf("told %d times, want once", n)
		}
		r.stop()
	})
}

// TestStoppedBeforeRecall: a process that ends before it could read leaves the record as it was.
func TestStoppedBeforeRecall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.kept[memoryKey] = []byte(`{"minutes":null}`)
		m.fail(errors.New("being reopened"))
		r := newRig(t, m)
		r.Record(accepted())
		m.mu.Lock()
		m.err = nil
		m.mu.Unlock()
		r.stop()
		if got := m.record(); got != `{"minutes":null}` {
			t.Errorf("got %s", got)
		}
	})
}

func TestUnreadableRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, data := range []string{"{", `[]`, `{"minutes":[{"at":"x"}]}`} {
			m := newMemory()
			m.kept[memoryKey] = []byte(data)
			r := newRig(t, m)
			r.Record(accepted())
			r.want(data, Minute{Accepted: 1}, Minute{Accepted: 1})
			if n := r.logs.FilterMessageSnippet("could not be read").Len(); n != 1 {
				t.Errorf("%s: told %d times, want once", data, n)
			}
			r.stop()
		}
	})
}

func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"minutes":[{"at":29650000,"n":[1,2,3,4]}],"hours":[{"at":494000,"n":[1,2,3,4]}]}`))
	f.Add([]byte(`{"minutes":[{"at":-9223372036854775808,"n":[1,2,3,4,5,6]},{"at":9223372036854775807,"n":[-1]}]}`))
	f.Add([]byte(`{`))
	l := New(Options{Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = l.restore(data)
		if n := len(l.Hour()) + len(l.Day()); n != 84 {
			t.Errorf("%d steps", n)
		}
	})
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		defer r.stop()
		ctx, cancel := context.WithCancel(t.Context())
		early, slow := r.Follow(ctx), r.Follow(ctx)
		for i := range readAhead + 10 {
			s := attempt(envelope.Sent)
			s.Attempt = i
			r.Record(s) // does not block, though nobody reads slow
			if got := <-early; got.Attempt != i {
				t.Fatalf("got step %d, want %d", got.Attempt, i)
			}
		}
		for i := range readAhead {
			if got := <-slow; got.Attempt != i {
				t.Fatalf("slow: got step %d, want %d", got.Attempt, i)
			}
		}
		r.Record(accepted())
		if got := <-slow; got.What != envelope.StepAccepted {
			t.Errorf("after a loss: got %+v", got)
		}
		<-early
		if n := testutil.ToFloat64(r.metrics.lost); n != 10 {
			t.Errorf("relayd_live_lost_total is %v, want 10", n)
		}
		if n := testutil.ToFloat64(r.metrics.readers); n != 2 {
			t.Errorf("relayd_live_readers is %v, want 2", n)
		}
		cancel()
		synctest.Wait()
		for _, c := range []<-chan envelope.Step{early, slow} {
			if s, open := <-c; open {
				t.Errorf("after the end: got %+v", s)
			}
		}
		r.Record(accepted()) // to nobody
		if n := testutil.ToFloat64(r.metrics.readers); n != 0 {
			t.Errorf("relayd_live_readers is %v, want 0", n)
		}
	})
}

func TestTooManyReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		defer r.stop()
		ctx, cancel := context.WithCancel(t.Context())
		for range maxReaders {
			r.Follow(ctx)
		}
		if _, open := <-r.Follow(t.Context()); open {
			t.Error("one too many was let in")
		}
		cancel()
		synctest.Wait()
		late := r.Follow(t.Context())
		r.Record(accepted())
		if _, open := <-late; !open {
			t.Error("there is room again, but none is given")
		}
		if err := testutil.GatherAndCompare(r.reg, strings.NewReader(
			"# HELP relayd_live_refused_total Readers for which there was no room.\n# TYPE relayd_live_refused_total counter\nrelayd_live_refused_total 1\n",
		), "relayd_live_refused_total"); err != nil {
			t.Error(err)
		}
	})
}

// TestAtOnce is for the race detector.
func TestAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newMemory())
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 200 {
					r.Record(accepted())
				}
			})
			all.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				follow := r.Follow(ctx)
				for range 20 {
					r.Hour()
					r.Day()
					select {
					case <-follow:
					default:
					}
				}
			})
		}
		all.Wait()
		r.want("all", Minute{Accepted: 1600}, Minute{Accepted: 1600})
		r.stop()
	})
}
