package limit

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"relayd/pkg/status"
)

var epoch = time.Unix(1e9, 0)

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

// Windows of the pace itself, without a dispatcher: every limit, any pattern of demand.
func TestPaceWindows(t *testing.T) {
	start := time.Unix(1e9, 0)
	for limit := 1; limit <= 40; limit++ {
		random := rand.New(rand.NewPCG(3, uint64(limit)))
		p := Pace{Limit: limit}
		var arrivals []arrival
		for now := start; now.Before(start.Add(time.Hour)); {
			at, ok := p.Next(now, 0)
			if !ok {
				t.Fatalf("limit %d: nothing is under way, and something must end first", limit)
			}
			if at.After(now) {
				now = at
				continue
			}
			p.Begin(now)
			if random.IntN(5) == 0 {
				p.End(now, false)
			} else {
				p.End(now, true)
				arrivals = append(arrivals, arrival{now, 1})
			}
			if random.IntN(limit*2) == 0 {
				now = now.Add(some(random, 2*time.Minute)) // no demand for a while
			}
		}
		if got := most(arrivals, time.Minute); got > limit {
			t.Errorf("limit %d: %d in a minute", limit, got)
		}
	}
}

// The day follows the time that passes, whatever the wall clock does meanwhile: that cannot be stepped here, but times
// without a monotonic reading can.
func TestDaySlots(t *testing.T) {
	start := time.Unix(1e9, 0)
	y := Day{Limit: 10}
	if !y.Reserve(start, 10) {
		t.Fatal("an empty day does not fit its limit")
	}
	y.Settle(start, 10, 10)
	for _, tt := range []struct {
		after time.Duration
		fits  bool
	}{
		{time.Minute, false}, {24 * time.Hour, false}, {24*time.Hour + slotLength, true},
	} {
		now := start.Add(tt.after)
		if got := y.Reserve(now, 1); got != tt.fits {
			t.Errorf("after %v: got %v, want %v", tt.after, got, tt.fits)
		} else if got {
			y.Settle(now, 1, 0)
		} else if at, ok := y.Next(now); !ok || at.Sub(start) != dayLength || !at.After(now) {
			t.Errorf("after %v: next is %v, %v", tt.after, at.Sub(now), ok)
		}
	}
	if !y.Idle(start.Add(100 * time.Hour)) {
		t.Error("an old day is not idle")
	}
}

// After a start there is one message at once, and no burst until it has been saved up.
func TestPaceAfterAStart(t *testing.T) {
	burst := func(p *Pace, now time.Time) (n int) {
		for at, ok := p.Next(now, 0); ok && !at.After(now); at, ok = p.Next(now, 0) {
			p.Begin(now)
			p.End(now, true)
			n++
		}
		return n
	}
	for _, tt := range []struct {
		since time.Duration
		want  int
	}{{0, 1}, {2 * time.Second, 2}, {time.Minute, 3}, {time.Hour, 3}} {
		p := Pace{Limit: 30}
		p.Start(epoch)
		if got := burst(&p, epoch.Add(tt.since)); got != tt.want {
			t.Errorf("%v after the start: %d at once, want %d", tt.since, got, tt.want)
		}
	}
	if got := burst(&Pace{Limit: 30}, epoch); got != 3 {
		t.Errorf("of a pace never started: %d at once, want 3", got)
	}
}

func TestDayBlocksUntilItFits(t *testing.T) {
	y := Day{Limit: 10}
	for i := range 5 { // two each hour
		now := epoch.Add(time.Duration(i) * time.Hour)
		if !y.Reserve(now, 2) {
			t.Fatal("does not fit")
		}
		y.Settle(now, 2, 2)
	}
	now := epoch.Add(5 * time.Hour)
	if y.Reserve(now, 5) {
		t.Fatal("15 of 10")
	}
	if at, ok := y.Next(now); !ok || !at.Equal(epoch.Add(2*time.Hour+dayLength)) {
		t.Errorf("next is %v, %v, want when six have left the day", at.Sub(epoch), ok)
	}
	if y.Remaining(now) != 0 {
		t.Errorf("%d remain", y.Remaining(now))
	}
	y.Limit = 20
	y.Reconsider()
	if at, ok := y.Next(now); !ok || at.After(now) || !y.Reserve(now, 5) {
		t.Error("a higher limit is not looked at")
	}
}

// The record covers what is under way, ahead of it, and is written once for each block.
func TestDayIsWrittenAhead(t *testing.T) {
	y := Day{Limit: 10000}
	writes := 0
	for i := range 1000 {
		now := epoch.Add(time.Duration(i) * time.Second)
		y.Reserve(now, 1)
		if !y.Covered(now) {
			tally := y.Tally(now, true)
			y.Written(now, tally)
			writes++
		}
		if !y.Covered(now) {
			t.Fatal("written, and not covered")
		}
		y.Settle(now, 1, 1)
	}
	if writes < 9 || writes > 11 {
		t.Errorf("%d writes for 1,000 recipients, want one for each hundred", writes)
	}
	if now := epoch.Add(13 * time.Hour); y.Covered(now) {
		t.Error("a record of 13 hours ago covers what begins now")
	}
	if small := (&Day{Limit: 50}).Tally(epoch, true); small.Block != 10 {
		t.Errorf("block of a small limit: %d, want 10", small.Block)
	}
	if !(&Day{}).Covered(epoch) {
		t.Error("without a limit there is something to write")
	}
}

// However attempts, writes and crashes fall: read back, the day never has fewer than were counted, and at most a block
// for each crash more.
func TestDaySurvivesCrashes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom([]int{20, 500, 3000}).Draw(t, "limit")
		y := Day{Limit: limit}
		var disk *Tally
		var arrivals []arrival
		type flight struct{ n int }
		var flights []flight
		now, crashes := epoch, 0
		block := max(limit/100, 10)
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"begin", "begin", "begin", "end", "end", "wait", "long", "crash"}).Draw(t, "step") {
			case "begin":
				n := rapid.IntRange(1, min(limit, 40)).Draw(t, "n")
				if !y.Reserve(now, n) {
					continue
				}
				if !y.Covered(now) {
					tally := y.Tally(now, true)
					data, err := json.Marshal(tally)
					if err != nil {
						t.Fatal(err)
					}
					disk = new(Tally)
					if err := json.Unmarshal(data, disk); err != nil {
						t.Fatal(err)
					}
					y.Written(now, tally)
				}
				flights = append(flights, flight{n})
				arrivals = append(arrivals, arrival{now, n})
			case "end":
				if len(flights) > 0 {
					y.Settle(now, flights[0].n, flights[0].n)
					flights = flights[1:]
				}
			case "wait":
				now = now.Add(time.Duration(rapid.IntRange(1, 3600).Draw(t, "seconds")) * time.Second)
			case "long":
				now = now.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "hours")) * time.Hour)
			case "crash":
				flights, crashes = nil, crashes+1
				y = Day{Limit: limit}
				if disk != nil {
					y.Recall(now, *disk)
				}
				sent := 0
				for _, a := range arrivals {
					if now.Sub(a.at) < 24*time.Hour {
						sent += a.n
					}
				}
				if got := y.sum(now); got < sent {
					t.Fatalf("%d were sent, %d are counted after a crash", sent, got)
				} else if recent := most(arrivals, 25*time.Hour); got > recent+(crashes+1)*(block+80) {
					t.Fatalf("%d were sent, %d are counted after %d crashes", recent, got, crashes)
				}
			}
		}
	})
}

// Steps of the wall clock between two processes neither lose nor multiply what was counted.
func TestDayRecall(t *testing.T) {
	y := Day{Limit: 1000}
	y.Settle(epoch, 0, 100)
	y.Settle(epoch.Add(2*time.Hour), 0, 50)
	tally := y.Tally(epoch.Add(3*time.Hour), true)
	for _, tt := range []struct {
		name string
		in   time.Duration // after the record was written
		want int
	}{
		{"at once", 0, 160}, {"the clock went back", -2 * time.Hour, 160}, {"far back", -1000 * time.Hour, 160},
		{"a day later", 22 * time.Hour, 60}, {"when only the block can be", 30 * time.Hour, 10}, {"long after", 37 * time.Hour, 0},
	} {
		var y Day
		y.Limit = 1000
		now := epoch.Add(3 * time.Hour).Add(tt.in)
		y.Recall(now, tally)
		if got := y.sum(now); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
		if got := y.sum(now.Add(26 * time.Hour)); got != 0 {
			t.Errorf("%s: %d a day later", tt.name, got)
		}
	}
	if exact := y.Exact(epoch.Add(3 * time.Hour)); exact.Block != 0 || len(exact.Slots) != 2 {
		t.Errorf("exact: %+v", exact)
	}
}

func within(got, want time.Duration) bool { return got >= want && got <= want*11/10+time.Millisecond }

// The words above Gate.
func TestGateSteps(t *testing.T) {
	reply := &status.Error{Code: 535, Text: "no"}
	for _, tt := range []struct {
		name string
		shut func(g *Gate, now time.Time)
		want []time.Duration
	}{
		{"back-off", func(g *Gate, now time.Time) { g.BackOff(now, now) },
			[]time.Duration{15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute, 10 * time.Minute}},
		{"park", func(g *Gate, now time.Time) { g.Park(now, now, reply, false) },
			[]time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 15 * time.Minute}},
		{"hold", func(g *Gate, now time.Time) { g.Park(now, now, reply, true) },
			[]time.Duration{30 * time.Minute, time.Hour, time.Hour}},
		{"hold of a row that says how long", func(g *Gate, now time.Time) {
			g.Park(now, now, &status.Error{Code: 554, Text: "quota", Wait: 5 * time.Minute}, true)
		}, []time.Duration{5 * time.Minute, 5 * time.Minute}},
		{"back-off of a row that says how long at least", func(g *Gate, now time.Time) {
			g.BackOff(now, now)
			g.AtLeast(now, 20*time.Second)
		}, []time.Duration{20 * time.Second, 30 * time.Second}},
	} {
		var g Gate
		now := epoch
		for i, want := range tt.want {
			tt.shut(&g, now)
			if got := g.Until.Sub(now); !within(got, want) {
				t.Errorf("%s, step %d: %v, want %v to a tenth more", tt.name, i+1, got, want)
			}
			now = g.Until.Add(time.Millisecond)
		}
	}
}

func TestGateTellsOnce(t *testing.T) {
	reply := &status.Error{Code: 554, Text: "quota"}
	var g Gate
	at := func(h int) time.Time { return epoch.Add(time.Duration(h) * time.Hour) }
	want := func(what string, got, want bool) {
		t.Helper()
		if got != want {
			t.Errorf("%s: told %v, want %v", what, got, want)
		}
	}
	_, tell := g.Park(at(0), at(0), reply, true)
	want("held", tell, true)
	_, tell = g.Park(at(1), at(1), reply, true)
	want("held still", tell, false)
	_, tell = g.Open(at(2))
	want("resumed", tell, true)
	fresh, tell := g.Park(at(3), at(3), reply, true)
	want("held again the same day", tell, false)
	if !fresh {
		t.Error("held again is not fresh")
	}
	_, tell = g.Open(at(4))
	want("resumed quietly", tell, false)
	if g.Idle(at(5)) {
		t.Error("forgets whom it told")
	}
	_, tell = g.Park(at(5), at(5), reply, false)
	want("parked for another cause", tell, true)
	_, tell = g.Open(at(6))
	want("resumed from that", tell, true)
	_, tell = g.Park(at(30), at(30), reply, true)
	want("held the next day", tell, true)
}

func TestGateNews(t *testing.T) {
	reply := &status.Error{Code: 535, Text: "no"}
	var g Gate
	g.Park(epoch, epoch.Add(time.Second), reply, false)
	until := g.Until
	if _, tell := g.Park(epoch, epoch.Add(2*time.Second), reply, false); tell || !g.Until.Equal(until) {
		t.Error("one of three that met the same closed it again")
	}
	if was, _ := g.Open(epoch); was || !g.Parked() {
		t.Error("an old session's success opened it")
	}
	if news, _ := g.BackOff(epoch, epoch.Add(2*time.Second)); news || !g.Parked() {
		t.Error("an old back-off is news")
	}
	if news, _ := g.BackOff(epoch.Add(time.Minute), epoch.Add(time.Minute)); !news || !g.Parked() {
		t.Error("a back-off ended a park")
	}
	if was, tell := g.Open(epoch.Add(2 * time.Minute)); !was || !tell || g.Parked() {
		t.Error("a new success did not open it")
	}
}

// How long replies of a kind have gone on is counted from the first in a row.
func TestBackOffLasts(t *testing.T) {
	var g Gate
	for _, m := range []int{0, 10, 61} {
		now := epoch.Add(time.Duration(m) * time.Minute)
		if _, lasts := g.BackOff(now, now); lasts != time.Duration(m)*time.Minute {
			t.Errorf("after %d minutes: %v", m, lasts)
		}
	}
	g.Open(epoch.Add(2 * time.Hour))
	if _, lasts := g.BackOff(epoch.Add(3*time.Hour), epoch.Add(3*time.Hour)); lasts != 0 {
		t.Errorf("after a success: %v", lasts)
	}
}

func TestGateMemo(t *testing.T) {
	reply := &status.Error{Code: 554, Enhanced: status.Enhanced{5, 2, 0}, Text: "quota", Stage: status.StageDot, Rule: "rrl", Cause: "c", Advice: "a"}
	for _, quota := range []bool{false, true} {
		var g Gate
		if g.Memo() != nil {
			t.Error("a memo of an open gate")
		}
		g.Park(epoch, epoch, reply, quota)
		data, err := json.Marshal(g.Memo())
		if err != nil {
			t.Fatal(err)
		}
		var m Memo
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		var back Gate
		now := epoch.Add(10 * time.Minute)
		back.Recall(now, &m)
		if diff := cmp.Diff(reply, back.Reply); diff != "" || back.Quota != quota || !back.Since.Equal(epoch) {
			t.Errorf("quota=%v: %+v\n%s", quota, back, diff)
		}
		wait := back.Until.Sub(now)
		if !quota && wait > stagger || quota && (wait < 20*time.Minute || wait > 24*time.Minute) {
			t.Errorf("quota=%v: probed in %v", quota, wait)
		}
		if fresh, tell := back.Park(now.Add(time.Hour), now.Add(time.Hour), reply, quota); fresh || tell {
			t.Error("told again after a start")
		}
		if was, tell := back.Open(now.Add(2 * time.Hour)); !was || !tell {
			t.Error("the end is not told")
		}
		back.Recall(epoch.Add(-1000*time.Hour), &m) // the clock went back
		if wait := back.Until.Sub(epoch.Add(-1000 * time.Hour)); wait > quotaMost+stagger {
			t.Errorf("probed in %v", wait)
		}
	}
}

func TestConnections(t *testing.T) {
	var c Connections
	const conf = 8
	check := func(after time.Duration, want int) {
		t.Helper()
		if got := c.Allowed(epoch.Add(after), conf); got != want {
			t.Errorf("after %v: %d, want %d", after, got, want)
		}
	}
	check(0, 8)
	c.Halve(epoch, conf)
	check(0, 4)
	check(5*time.Minute-1, 4)
	check(5*time.Minute, 5)
	c.Halve(epoch.Add(10*time.Minute), conf) // of six
	check(10*time.Minute, 3)
	if at, ok := c.Next(epoch.Add(11*time.Minute), 4, conf); !ok || !at.Equal(epoch.Add(20*time.Minute)) {
		t.Errorf("the fifth may begin after %v, %v, want 20m", at.Sub(epoch), ok)
	}
	if at, ok := c.Next(epoch.Add(11*time.Minute), 2, conf); !ok || at.After(epoch.Add(11*time.Minute)) {
		t.Error("the third may not begin")
	}
	if _, ok := c.Next(epoch.Add(11*time.Minute), 8, conf); ok {
		t.Error("the ninth may begin")
	}
	for range 5 {
		c.Halve(epoch.Add(10*time.Minute), conf)
	}
	check(10*time.Minute, 1)
	if c.Idle(epoch.Add(40*time.Minute), conf) {
		t.Error("idle while it has seven of eight")
	}
	check(45*time.Minute, 8)
	if !c.Idle(epoch.Add(45*time.Minute), conf) {
		t.Error("not idle with all of them back")
	}
}

// One, two, four, eight: a round of successes doubles, a failure starts anew.
func TestRamp(t *testing.T) {
	var r Ramp
	const most = 16
	if r.Free() < 1000 {
		t.Error("limited from the beginning")
	}
	old := r.Begin()
	r.Start()
	r.End(old, true, most) // not of this start
	for _, want := range []int{1, 2, 4, 8, 16} {
		if got := r.Free(); got != want {
			t.Fatalf("%d at once, want %d", got, want)
		}
		var round []uint64
		for range want {
			round = append(round, r.Begin())
		}
		if r.Free() != 0 {
			t.Fatalf("%d more beside %d", r.Free(), want)
		}
		for _, a := range round {
			r.End(a, true, most)
		}
	}
	if r.Free() < 1000 {
		t.Errorf("limited to %d past the workers", r.Free())
	}
	r.Start()
	a := r.Begin()
	r.End(a, false, most)
	if r.Free() != 1 || r.Has(old) || !r.Has(a) {
		t.Errorf("after a failure %d at once", r.Free())
	}
}
