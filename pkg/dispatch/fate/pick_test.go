package fate

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"relayd/pkg/envelope"
)

// The words above Rules: the first step after the first attempt, and so on, the last repeats; a quarter at most on top.
func TestSchedule(t *testing.T) {
	r := Rules{Retry: []time.Duration{time.Minute, 5 * time.Minute, time.Hour}}
	for _, tt := range []struct {
		attempts int
		step     time.Duration
	}{
		{1, time.Minute}, {2, 5 * time.Minute}, {3, time.Hour}, {4, time.Hour}, {1000, time.Hour},
		{0, time.Minute}, // cannot be, and must not crash
	} {
		low, high := time.Duration(1<<62), time.Duration(0)
		for range 2000 {
			got := r.wait(tt.attempts, lot(), 0)
			low, high = min(low, got), max(high, got)
		}
		if low < tt.step || high > tt.step*5/4 {
			t.Errorf("attempt %d: between %v and %v, want %v to a quarter more", tt.attempts, low, high, tt.step)
		}
		if spread := high - low; spread < tt.step/5 {
			t.Errorf("attempt %d: spread over %v only", tt.attempts, spread)
		}
	}
}

// A reply's wait is a lower bound, and nobody is taken along before it.
func TestWaitOfTheReply(t *testing.T) {
	r := Rules{Retry: []time.Duration{time.Minute, time.Hour}}
	for _, tt := range []struct {
		attempts    int
		least, want time.Duration
	}{
		{1, 0, time.Minute}, {1, 30 * time.Second, time.Minute}, {1, time.Hour, time.Hour + 10*time.Second},
		{2, time.Hour, time.Hour + 6*time.Minute}, {2, 2 * time.Hour, 2*time.Hour + 6*time.Minute},
	} {
		got := r.wait(tt.attempts, 0, tt.least)
		if got != tt.want {
			t.Errorf("attempt %d, at least %v: got %v, want %v", tt.attempts, tt.least, got, tt.want)
		}
		if tt.least > 0 && got-r.slack(tt.attempts) < tt.least && got > r.step(tt.attempts) {
			t.Errorf("attempt %d: taken along %v after the reply, which asked for %v", tt.attempts, got-r.slack(tt.attempts), tt.least)
		}
	}
}

func envelopeTo(addresses ...envelope.Address) *envelope.Envelope {
	env := &envelope.Envelope{ID: "00000000000000000001"}
	for _, a := range addresses {
		env.Recipients = append(env.Recipients, envelope.Recipient{Address: a})
	}
	return env
}

func toMany(n int) *envelope.Envelope {
	env := &envelope.Envelope{ID: "00000000000000000001"}
	for i := range n {
		env.Recipients = append(env.Recipients, envelope.Recipient{Address: envelope.Address(fmt.Sprintf("r%d@example.com", i))})
	}
	return env
}

func TestDue(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := Rules{Retry: []time.Duration{time.Minute, time.Hour}}
	in := func(d time.Duration, attempts int) envelope.Result {
		return envelope.Result{State: envelope.Deferred, Due: now.Add(d), Attempts: attempts}
	}
	for _, tt := range []struct {
		name    string
		results []envelope.Result
		want    []int
	}{
		{"untouched", nil, []int{0, 1, 2}},
		{"those whose time has come, and who is close", []envelope.Result{in(-time.Second, 1), in(10*time.Second, 1), in(11*time.Second, 1)}, []int{0, 1}},
		{"a tenth of a longer step is close", []envelope.Result{in(0, 1), in(6*time.Minute, 2), in(7*time.Minute, 2)}, []int{0, 1}},
		{"settled ones never", []envelope.Result{{State: envelope.Sent}, {State: envelope.Failed}, in(0, 1)}, []int{2}},
		{"no time of its own: the message's", []envelope.Result{{State: envelope.Queued}, {State: envelope.Deferred, Attempts: 1}, in(time.Hour, 1)}, []int{0, 1}},
		{"asked for by an operator: none is due, so all are", []envelope.Result{in(time.Hour, 1), {State: envelope.Sent, Attempts: 1}, in(2*time.Hour, 2)}, []int{0, 2}},
		{"word of a failure is owed, and nobody is due", []envelope.Result{in(time.Hour, 1), {State: envelope.Failed, Owed: true}, in(time.Hour, 1)}, nil},
		{"fewer results than recipients", []envelope.Result{{State: envelope.Sent, Attempts: 1}}, []int{1, 2}},
	} {
		p := envelope.Progress{Results: tt.results}
		if got := r.Due(toMany(3), &p, now); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Records from before recipients had counts of their own have the message's.
func TestCounts(t *testing.T) {
	env := toMany(3)
	old := envelope.Progress{Attempts: 4, Results: []envelope.Result{{State: envelope.Sent}, {State: envelope.Deferred}}}
	if got, want := counts(env, &old), []int{4, 4, 4}; !slices.Equal(got, want) {
		t.Errorf("old record: got %v, want %v", got, want)
	}
	split := envelope.Progress{Attempts: 4, Results: []envelope.Result{{State: envelope.Sent, Attempts: 4}, {State: envelope.Queued}}}
	if got, want := counts(env, &split), []int{4, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("new record: got %v, want %v", got, want)
	}
	if got := Attempt(env, &split, []int{1}); got != 1 {
		t.Errorf("first attempt at the second recipient has the number %d", got)
	}
	if got := Attempt(env, &split, []int{0, 1}); got != 5 {
		t.Errorf("attempt at both has the number %d, want 5", got)
	}
}

func TestPick(t *testing.T) {
	mixed := envelopeTo("a@x.com", "b@X.com", "c@y.com", "d@x.COM", "e@y.com", "f@z.com")
	for _, tt := range []struct {
		most, domain int
		want         []int
	}{
		{0, 0, []int{0, 1, 2, 3, 4, 5}}, {4, 0, []int{0, 1, 2, 3}}, {0, 2, []int{0, 1, 2, 4, 5}}, {0, 1, []int{0, 2, 5}},
		{2, 1, []int{0, 2}}, {1, 1, []int{0}}, {10, 10, []int{0, 1, 2, 3, 4, 5}}, {6, 5, []int{0, 1, 2, 3, 4, 5}},
	} {
		if got := Pick(mixed, []int{0, 1, 2, 3, 4, 5}, tt.most, tt.domain); !slices.Equal(got, tt.want) {
			t.Errorf("%d, %d of a domain: got %v, want %v", tt.most, tt.domain, got, tt.want)
		}
	}
	if got := Pick(mixed, nil, 5, 5); len(got) != 0 {
		t.Errorf("of nobody: %v", got)
	}
}

// Picking again and again what is left takes each recipient once, within the limits, in few rounds.
func TestPickTakesAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, most, perDomain := rapid.IntRange(1, 700).Draw(t, "n"), rapid.IntRange(1, 500).Draw(t, "most"), rapid.IntRange(1, 200).Draw(t, "per domain")
		domains := rapid.IntRange(1, 5).Draw(t, "domains")
		env := &envelope.Envelope{}
		left, count := []int{}, map[string]int{}
		for i := range n {
			d := fmt.Sprintf("d%d.com", rapid.IntRange(0, domains-1).Draw(t, "domain"))
			env.Recipients = append(env.Recipients, envelope.Recipient{Address: envelope.Address("a@" + d)})
			left = append(left, i)
			count[d]++
		}
		largest := 0
		for _, c := range count {
			largest = max(largest, c)
		}
		rounds := 0
		for len(left) > 0 {
			picked := Pick(env, left, most, perDomain)
			in := map[string]int{}
			for _, i := range picked {
				if in[env.Recipients[i].Address.Domain()]++; in[env.Recipients[i].Address.Domain()] > perDomain {
					t.Fatalf("%d of a domain", perDomain+1)
				}
			}
			if len(picked) == 0 || len(picked) > most {
				t.Fatalf("picked %d of %d", len(picked), len(left))
			}
			left = slices.DeleteFunc(slices.Clone(left), func(i int) bool { return slices.Contains(picked, i) })
			rounds++
		}
		if worst := (n+most-1)/most + (largest+perDomain-1)/perDomain; rounds > worst {
			t.Fatalf("%d rounds for %d recipients, %d at once, %d of one domain of %d", rounds, n, most, perDomain, largest)
		}
	})
}
