package mailbox

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func TestDefaults(t *testing.T) {
	got := Limits{}.WithDefaults()
	want := Limits{
		Sending: 3, MessagesPerMin: 30, RecipientsPerDay: 10_000, Recipients: 500, SameDomain: 200,
		MessageBytes: 157_286_400, MaxSendSize: 36_700_160, HeaderBytes: 262_144, HeaderValueBytes: 32_768,
		SessionAge: 20 * time.Minute, Idle: 5 * time.Minute,
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	none := Limits{Sending: -1, MessagesPerMin: -1, MaxSendSize: -1, SessionAge: -1}.WithDefaults()
	if none.Sending < 1e9 || none.MessagesPerMin < 1e9 || none.MaxSendSize < 1e12 || none.SessionAge < 1000*time.Hour {
		t.Errorf("no limit became %+v", none)
	}
}

// However a client sends, no 60 seconds hold more than the limit, and nothing waits longer than it must.
func TestRateWindow(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, gap := range []time.Duration{0, time.Second, 2 * time.Second, 10 * time.Second} {
		m := New(Limits{MessagesPerMin: 30}.WithDefaults())
		now := noon
		var starts []time.Time
		for i := range 300 {
			wait, v := m.Admit("a@b", 1, now)
			if v != Admitted || wait < 0 {
				t.Fatalf("gap %v, message %d: %v, %v", gap, i, wait, v)
			}
			start := now.Add(wait)
			if i >= 30 && start.Sub(starts[i-30]) < time.Minute {
				t.Fatalf("gap %v: messages %d and %d within %v", gap, i-30, i, start.Sub(starts[i-30]))
			}
			if wait > 0 && start.Sub(starts[i-30]) > time.Minute {
				t.Fatalf("gap %v: message %d waits %v for nothing", gap, i, wait)
			}
			starts = append(starts, start)
			if gap > 0 {
				now = now.Add(time.Duration(random.Int64N(int64(2 * gap))))
			}
		}
		if gap == 0 && starts[299].Sub(noon) != 9*time.Minute {
			t.Errorf("300 at once end after %v, want 9m", starts[299].Sub(noon))
		}
	}
}

func TestWorstMinute(t *testing.T) {
	m := New(Limits{}.WithDefaults())
	for i := range 120 {
		m.Arrived("a@b", noon.Add(time.Duration(i)*2*time.Second))
	}
	if got := m.Stats()["a@b"].WorstMinute; got != 30 {
		t.Errorf("every 2 s: got %d in a minute, want 30", got)
	}
	for range 10 {
		m.Arrived("A@B", noon.Add(240*time.Second))
	}
	if got := m.Stats()["a@b"].WorstMinute; got != 39 {
		t.Errorf("with ten at once: got %d, want 39", got)
	}
}

func TestRecipientsADay(t *testing.T) {
	m := New(Limits{RecipientsPerDay: 100, MessagesPerMin: -1}.WithDefaults())
	for i, step := range []struct {
		after time.Duration
		n     int
		want  Verdict
	}{
		{0, 60, Admitted},
		{30 * time.Second, 41, OverQuota},
		{30 * time.Second, 10, Admitted}, // the same minute: one entry, dated by its beginning
		{12 * time.Hour, 30, Admitted},
		{12 * time.Hour, 1, OverQuota},
		{24*time.Hour - time.Nanosecond, 1, OverQuota},
		{24 * time.Hour, 70, Admitted},
		{24 * time.Hour, 1, OverQuota},
	} {
		if _, got := m.Admit("a@b", step.n, noon.Add(step.after)); got != step.want {
			t.Errorf("step %d: got %v, want %v", i, got, step.want)
		}
	}
	if _, got := m.Admit("c@b", 100, noon); got != Admitted {
		t.Error("another mailbox pays for it")
	}
}

// A mailbox that is used for long must not remember it all.
func TestMemory(t *testing.T) {
	m := New(Limits{MessagesPerMin: -1, RecipientsPerDay: -1}.WithDefaults())
	for i := range 100_000 {
		now := noon.Add(time.Duration(i) * time.Second)
		m.Arrived("a@b", now)
		m.Admit("a@b", 1, now)
	}
	b := m.byName["a@b"]
	for name, n := range map[string]int{"ended": cap(b.ended.items), "starts": cap(b.starts.items), "day": cap(b.day.items)} {
		if n > 5000 {
			t.Errorf("%s holds %d", name, n)
		}
	}
}

func TestQueue(t *testing.T) {
	var q queue[int]
	next := 0
	for i := range 1000 {
		q.push(i)
		if i%3 != 0 {
			if q.first() != next || q.at(0) != next || *q.last() != i {
				t.Fatalf("at %d: first %d, want %d, last %d", i, q.first(), next, *q.last())
			}
			q.pop()
			next++
		}
		if q.len() != i+1-next {
			t.Fatalf("at %d: length %d", i, q.len())
		}
	}
}

func TestSendingIsPerMailbox(t *testing.T) {
	m := New(Limits{}.WithDefaults())
	var got []bool
	for range 4 {
		got = append(got, m.Begin("a@b"))
	}
	m.End("a@b") // a refused one ends too
	m.End("a@b")
	got = append(got, m.Begin("A@b"), m.Begin("c@b"))
	if fmt.Sprint(got) != "[true true true false true true]" {
		t.Errorf("got %v", got)
	}
}
