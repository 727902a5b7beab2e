package history

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/envelope"
)

const day = 24 * time.Hour

// story records a message whose steps lie an hour apart, the last of them now.
func story(l *Log, what ...envelope.Step) envelope.ID {
	first := accepted(time.Now().Add(-time.Hour*time.Duration(len(what))), "erp@contoso.com", "x@fabrikam.com")
	l.Record(first)
	for i, s := range what {
		s.ID, s.At = first.ID, first.At.Add(time.Hour*time.Duration(i+1))
		l.Record(s)
	}
	return first.ID
}

func TestRetention(t *testing.T) {
	rows := []struct {
		name string
		last []envelope.Step
		kept time.Duration // 0: for good
	}{
		{"sent", []envelope.Step{{What: envelope.StepAttempt, State: envelope.Sent}}, 7 * day},
		{"dropped", []envelope.Step{{What: envelope.StepDropped, State: envelope.Deferred}}, 7 * day},
		{"dropped without a state", []envelope.Step{{What: envelope.StepDropped}}, 7 * day},
		{"failed", []envelope.Step{{What: envelope.StepAttempt, State: envelope.Failed}}, 30 * day},
		{"failed and bounced", []envelope.Step{{What: envelope.StepAttempt, State: envelope.Failed}, {What: envelope.StepBounced}}, 30 * day},
		{"failed and removed", []envelope.Step{{What: envelope.StepAttempt, State: envelope.Failed}, {What: envelope.StepExpired, State: envelope.Failed}}, 7 * day},
		{"failed, retried by hand and sent", []envelope.Step{{State: envelope.Failed}, {What: envelope.StepRetried, State: envelope.Queued}, {State: envelope.Sent}}, 7 * day},
		{"failed and retried by hand", []envelope.Step{{State: envelope.Failed}, {What: envelope.StepRetried, State: envelope.Queued}}, 0},
		{"queued", nil, 0},
		{"deferred", []envelope.Step{{What: envelope.StepAttempt, State: envelope.Deferred}}, 0},
		{"held", []envelope.Step{{What: envelope.StepHeld, State: envelope.Held}}, 0},
		{"uncertain", []envelope.Step{{What: envelope.StepAttempt, State: envelope.Uncertain}}, 0},
		{"a step from the future", []envelope.Step{{What: envelope.StepAttempt, State: envelope.Sent}}, 7 * day},
	}
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { l.Run(ctx) })
		defer run.Wait()
		defer cancel()
		begun := time.Now()
		byName := map[string]envelope.ID{}
		for _, row := range rows {
			byName[row.name] = story(l, row.last...)
			if strings.Contains(row.name, "future") {
				l.Record(envelope.Step{ID: byName[row.name], At: begun.AddDate(10, 0, 0), What: envelope.StepAttempt, State: envelope.Sent})
			}
		}
		known := func(id envelope.ID) bool { return len(steps(t, l, id)) > 0 }
		for _, pause := range []time.Duration{time.Minute, 7*day - 2*time.Minute, 11 * time.Minute, 23*day - 12*time.Minute, 13 * time.Minute, 365 * day} {
			<-time.After(pause)
			for _, row := range rows {
				age := time.Since(begun)
				if want := row.kept == 0 || age < row.kept; known(byName[row.name]) != want {
					t.Errorf("%s: known after %v: %v", row.name, age, !want)
				}
			}
		}
		open := 0
		for _, row := range rows {
			if row.kept == 0 {
				open++
			}
		}
		if n := len(search(t, l, envelope.Query{})); n != open {
			t.Errorf("%d messages found at the end, want the %d open ones", n, open)
		}
		if n := testutil.ToFloat64(l.metrics.messages); int(n) != open {
			t.Errorf("relayd_history_messages %v, want %d", n, open)
		}
		cancel()
		run.Wait()
		closeLog(t, l)
	})
}

// What expired must leave the disk, what did not must stay, byte for byte, also after a restart.
func TestExpiryFreesTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		var kept []envelope.ID
		for d := range 10 {
			for i := range 50 {
				state := envelope.Sent
				if i == 7 {
					state = []envelope.State{envelope.Deferred, envelope.Failed}[d%2]
				}
				id := story(l, envelope.Step{What: envelope.StepAttempt, State: envelope.Deferred, Reply: "451 x"}, envelope.Step{What: envelope.StepAttempt, State: state, Reply: "y"})
				if i == 7 {
					kept = append(kept, id)
				}
			}
			l.flush()
			<-time.After(day)
			l.sweep(time.Now())
		}
		full, _ := diskBytes(t, dir)
		before := map[envelope.ID][]envelope.Step{}
		for _, id := range kept {
			before[id] = steps(t, l, id)
		}
		<-time.After(8 * day)
		l.sweep(time.Now())
		size, files := diskBytes(t, dir)
		if size > full/10 {
			t.Errorf("%d octets in %d files, of %d before most expired", size, files, full)
		}
		for range 2 {
			if got := ids(search(t, l, envelope.Query{})); len(got) != len(kept) {
				t.Errorf("%d messages left, want %d", len(got), len(kept))
			}
			for _, id := range kept {
				if diff := cmp.Diff(before[id], steps(t, l, id)); diff != "" {
					t.Errorf("steps of %s: (-before +after):\n%s", id, diff)
				}
				if got := search(t, l, envelope.Query{ID: id, Sender: "erp@contoso.com", Recipient: "x@fabrikam.com"}); len(got) != 1 {
					t.Errorf("%s is not found by its addresses", id)
				}
			}
			closeLog(t, l)
			l = openLog(t, dir)
		}
		<-time.After(31 * day)
		search(t, l, envelope.Query{})
		for _, id := range kept {
			l.Record(envelope.Step{ID: id, At: time.Now(), What: envelope.StepAttempt, State: envelope.Sent})
		}
		l.flush()
		<-time.After(8 * day)
		l.sweep(time.Now())
		if size, files = diskBytes(t, dir); size != 0 || files != 0 {
			t.Errorf("%d octets in %d files though all has expired", size, files)
		}
		closeLog(t, l)
	})
}

// The end of a message's history must not leave the disk before its start: the start alone is a message under way.
func TestExpiryTakesOldBeforeNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		// The first segment stays, since most of it does; the second has nothing but the end of what is expired.
		gone := accepted(time.Now(), "erp@contoso.com")
		l.Record(gone)
		for range 20 {
			l.Record(accepted(time.Now(), "erp@contoso.com"))
		}
		l.flush()
		search(t, l, envelope.Query{})
		<-time.After(2 * day)
		l.Record(attempt(gone.ID, time.Now(), envelope.Sent, "250 ok"))
		l.flush()
		<-time.After(8 * day)
		l.sweep(time.Now())
		for range 2 {
			if len(steps(t, l, gone.ID)) != 0 {
				t.Error("expired, yet still there")
			}
			if n := len(search(t, l, envelope.Query{State: envelope.Queued})); n != 20 {
				t.Errorf("%d messages queued, want 20", n)
			}
			closeLog(t, l)
			l = openLog(t, dir)
			search(t, l, envelope.Query{})
			l.sweep(time.Now())
		}
		closeLog(t, l)
	})
}

// A kill -9 may lose the step that ended a message. The queue knows better.
func TestWaitingEndsGhosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []envelope.ID
		var waiting envelope.ID
		l := openLog(t, t.TempDir(), func(o *Options) {
			o.Waiting = func(id envelope.ID) bool { asked = append(asked, id); return id == waiting }
		})
		ghost := story(l)
		waiting = story(l, envelope.Step{State: envelope.Held})
		l.flush()
		search(t, l, envelope.Query{})
		<-time.After(29 * day)
		l.sweep(time.Now())
		if len(asked) > 0 {
			t.Errorf("asked after %v, though not silent for long", asked)
		}
		<-time.After(day)
		l.sweep(time.Now())
		if got := ids(search(t, l, envelope.Query{})); !slices.Equal(got, []envelope.ID{waiting}) {
			t.Errorf("left: %v, want %v alone, not %v", got, waiting, ghost)
		}
		closeLog(t, l)
	})
}

func TestConfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openLog(t, t.TempDir(), func(o *Options) { o.KeepSent, o.KeepFailed = time.Hour, 3*time.Hour })
		sent, failed := story(l, envelope.Step{State: envelope.Sent}), story(l, envelope.Step{State: envelope.Failed})
		search(t, l, envelope.Query{})
		left := func(after time.Duration, want ...envelope.ID) {
			t.Helper()
			<-time.After(after)
			l.sweep(time.Now())
			got := ids(search(t, l, envelope.Query{}))
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("left: %v, want %v", got, want)
			}
		}
		left(59*time.Minute, sent, failed)
		l.Configure(2*time.Hour, 0)
		left(time.Hour, sent, failed)
		left(2*time.Minute, failed)
		left(29*day, failed)
		l.Configure(0, 0)
		left(day)
		closeLog(t, l)
	})
}

func TestSizeIsCapped(t *testing.T) {
	for _, row := range []struct {
		name       string
		recipients int
	}{{"disk", 0}, {"memory", 400}} { // 400 short addresses take more memory than a quarter of what they take on the disk
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			const bound = 512 << 10
			l := openLog(t, dir, func(o *Options) { o.MaxBytes = bound })
			search(t, l, envelope.Query{})
			var all []envelope.ID
			written := int64(0)
			for i := 0; written < 4*bound; i++ {
				a := accepted(noon.Add(time.Duration(i)*time.Millisecond), "erp@contoso.com")
				for j := range row.recipients {
					a.Envelope.Recipients = append(a.Envelope.Recipients, envelope.Recipient{Address: envelope.Address(fmt.Sprintf("%d@x", j))})
				}
				all = append(all, a.ID)
				written += 200 + 7*int64(row.recipients)
				l.Record(a)
				l.flush()
				size, _ := diskBytes(t, dir)
				if memory := l.index.Bytes(l.parts()); size > bound || memory > bound/4+bound/16 {
					t.Fatalf("%d octets on the disk, %d in memory; want at most %d and a quarter of it", size, memory, bound)
				}
			}
			slices.Reverse(all)
			for range 2 {
				got := ids(search(t, l, envelope.Query{Limit: len(all)}))
				if len(got) < 10 || len(got) == len(all) || !slices.Equal(got, all[:len(got)]) {
					t.Errorf("%d of %d messages left; want the latest, and a good part", len(got), len(all))
				}
				closeLog(t, l)
				l = openLog(t, dir, func(o *Options) { o.MaxBytes = bound })
			}
			closeLog(t, l)
		})
	}
}

// The index must not remember what left the disk: rows are used again.
func TestMemoryIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openLog(t, t.TempDir())
		search(t, l, envelope.Query{})
		var peak int64
		for round := range 20 {
			for range 500 {
				story(l, envelope.Step{State: envelope.Sent})
			}
			l.flush()
			<-time.After(9 * day)
			l.sweep(time.Now())
			l.mu.Lock()
			now := l.index.Bytes(l.parts())
			l.mu.Unlock()
			if round == 0 {
				peak = now
			}
			if now > peak {
				t.Fatalf("round %d: %d octets in memory, %d after the first", round, now, peak)
			}
		}
		closeLog(t, l)
	})
}

// A disk too full to rewrite a segment keeps what it has.
func TestRewriteThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		search(t, l, envelope.Query{})
		open := story(l)
		for range 50 {
			story(l, envelope.Step{State: envelope.Sent})
		}
		l.flush()
		<-time.After(9 * day)
		full, _ := diskBytes(t, dir)
		disk := &fullDisk{Log: l, create: l.create}
		disk.left.Store(100)
		l.create = disk.open
		l.sweep(time.Now())
		if size, files := diskBytes(t, dir); size != full || files != 1 {
			t.Errorf("%d octets in %d files, want %d in one", size, files, full)
		}
		if got := ids(search(t, l, envelope.Query{})); !slices.Equal(got, []envelope.ID{open}) {
			t.Errorf("found %v, want %v", got, open)
		}
		disk.left.Store(1 << 30)
		l.sweep(time.Now())
		if size, _ := diskBytes(t, dir); size > full/5 {
			t.Errorf("%d octets, of %d before", size, full)
		}
		if got := steps(t, l, open); len(got) != 1 {
			t.Errorf("steps %v", got)
		}
		closeLog(t, l)
	})
}

// A segment that could not be read to its end is not judged by what was read.
func TestUnreadSegmentStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		story(l, envelope.Step{State: envelope.Sent})
		closeLog(t, l)
		path := filepath.Join(dir, segmentName(1))
		aside := filepath.Join(t.TempDir(), "aside")
		l = openLog(t, dir)
		if err := os.Rename(path, aside); err != nil { // as if there were no file descriptors
			t.Fatal(err)
		}
		search(t, l, envelope.Query{})
		if err := os.Rename(aside, path); err != nil {
			t.Fatal(err)
		}
		<-time.After(9 * day)
		other := story(l, envelope.Step{State: envelope.Sent}) // or there would be nothing expired to look for
		l.flush()
		<-time.After(9 * day)
		l.sweep(time.Now())
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
		if len(steps(t, l, other)) != 0 {
			t.Error("the other did not expire")
		}
		closeLog(t, l)
	})
}
