package history

import (
	"context"
	"errors"
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
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/envelope"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// openLog opens a history in dir; opts may change the options.
func openLog(t testing.TB, dir string, opts ...func(*Options)) *Log {
	t.Helper()
	o := Options{Dir: dir, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()}
	for _, opt := range opts {
		opt(&o)
	}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// fataler is a test, or one try of a property.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

func search(t fataler, l *Log, q envelope.Query) []envelope.Summary {
	t.Helper()
	found, err := l.Search(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func steps(t fataler, l *Log, id envelope.ID) []envelope.Step {
	t.Helper()
	found, err := l.Steps(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func ids(found []envelope.Summary) []envelope.ID {
	list := []envelope.ID{}
	for i := range found {
		list = append(list, found[i].ID)
	}
	return list
}

// accepted returns the first step of a message.
func accepted(at time.Time, sender envelope.Address, to ...envelope.Address) envelope.Step {
	id := envelope.NewID(at)
	e := &envelope.Envelope{ID: id, Received: at, Intake: "smtp", Sender: sender, Size: 1234, MessageID: "<" + string(id) + "@app>"}
	for _, a := range to {
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: a})
	}
	return envelope.Step{ID: id, At: at, What: envelope.StepAccepted, State: envelope.Queued, Envelope: e}
}

func attempt(id envelope.ID, at time.Time, state envelope.State, reply string) envelope.Step {
	return envelope.Step{ID: id, At: at, What: envelope.StepAttempt, State: state, Attempt: 1, Reply: reply}
}

// diskBytes returns the octets of all segments, and how many there are.
func diskBytes(t testing.TB, dir string) (size int64, files int) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
		files++
	}
	return size, files
}

func TestAStoryFromEndToEnd(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	a := accepted(noon, "erp@contoso.com", "x@fabrikam.com", "y@fabrikam.com")
	retry := attempt(a.ID, noon.Add(time.Second), envelope.Deferred, "451 4.7.0 later")
	retry.Due = noon.Add(time.Minute)
	retry.By = "contoso/erp@contoso.com"
	warned := envelope.Step{ID: a.ID, At: noon.Add(2 * time.Second), What: envelope.StepWarned, State: envelope.Deferred, Reply: "0123456789abcdefghjk"}
	want := envelope.Summary{
		ID: a.ID, Received: noon, Sender: "erp@contoso.com", Recipients: []envelope.Address{"x@fabrikam.com", "y@fabrikam.com"},
		MessageID: "<" + string(a.ID) + "@app>", Size: 1234, State: envelope.Queued,
	}
	check := func(what string) {
		t.Helper()
		if diff := cmp.Diff([]envelope.Summary{want}, search(t, l, envelope.Query{})); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", what, diff)
		}
	}
	l.Record(a)
	check("accepted") // at once, with no Run in sight
	l.Record(retry)
	want.State, want.Attempts, want.Due, want.Reply = envelope.Deferred, 1, noon.Add(time.Minute), "451 4.7.0 later"
	check("deferred")
	l.Record(warned)
	check("warned: its reply is an id")
	closeLog(t, l)

	l = openLog(t, dir)
	check("after a restart")
	sent := attempt(a.ID, noon.Add(time.Minute), envelope.Sent, "250 2.0.0 Ok")
	sent.Attempt = 2
	l.Record(sent)
	want.State, want.Attempts, want.Due, want.Reply = envelope.Sent, 2, time.Time{}, "250 2.0.0 Ok"
	check("sent")
	if diff := cmp.Diff([]envelope.Step{a, retry, warned, sent}, steps(t, l, a.ID)); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if got := steps(t, l, envelope.NewID(noon)); got != nil {
		t.Errorf("steps of a stranger: %v", got)
	}
	if got := steps(t, l, ""); got != nil {
		t.Errorf("steps of nobody: %v", got)
	}
	if _, files := diskBytes(t, dir); files != 1 {
		t.Errorf("%d files; a restart should go on with the segment", files)
	}
	closeLog(t, l)
}

func TestOddStories(t *testing.T) {
	at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
	lost := envelope.NewID(noon)
	rows := []struct {
		name  string
		steps func(a envelope.Step) []envelope.Step
		want  func(s *envelope.Summary)
	}{
		{"attempt reported before the acceptance", func(a envelope.Step) []envelope.Step {
			return []envelope.Step{attempt(a.ID, at(1), envelope.Sent, "250 ok"), a}
		}, func(s *envelope.Summary) { s.State, s.Attempts, s.Reply = envelope.Sent, 1, "250 ok" }},
		{"clock set back: the last step written counts", func(a envelope.Step) []envelope.Step {
			return []envelope.Step{a, attempt(a.ID, at(3600), envelope.Deferred, "451 x"), attempt(a.ID, at(-3600), envelope.Sent, "250 ok")}
		}, func(s *envelope.Summary) { s.State, s.Attempts, s.Reply = envelope.Sent, 1, "250 ok" }},
		{"dropped without a word of its state", func(a envelope.Step) []envelope.Step {
			return []envelope.Step{a, {ID: a.ID, At: at(1), What: envelope.StepDropped, By: "ada"}}
		}, func(s *envelope.Summary) { s.State = "dropped" }},
		{"bounced without a word of its state", func(a envelope.Step) []envelope.Step {
			return []envelope.Step{a, attempt(a.ID, at(1), envelope.Failed, "550 no"), {ID: a.ID, At: at(2), What: envelope.StepBounced, Reply: "id"}}
		}, func(s *envelope.Summary) { s.State, s.Attempts, s.Reply = envelope.Failed, 1, "550 no" }},
		{"held: nothing is due", func(a envelope.Step) []envelope.Step {
			wait := attempt(a.ID, at(1), envelope.Deferred, "451 x")
			wait.Due = at(60)
			return []envelope.Step{a, wait, {ID: a.ID, At: at(2), What: envelope.StepHeld, State: envelope.Held, Reply: "by ada"}}
		}, func(s *envelope.Summary) { s.State, s.Attempts, s.Reply = envelope.Held, 1, "by ada" }},
		{"a state nobody listed", func(a envelope.Step) []envelope.Step {
			return []envelope.Step{a, attempt(a.ID, at(1), "puzzled", "299 ?")}
		}, func(s *envelope.Summary) { s.State, s.Attempts, s.Reply = "puzzled", 1, "299 ?" }},
		{"accepted twice", func(a envelope.Step) []envelope.Step {
			return []envelope.Step{a, attempt(a.ID, at(1), envelope.Sent, "250 ok"), a}
		}, func(s *envelope.Summary) { s.State, s.Attempts, s.Reply = envelope.Sent, 1, "250 ok" }},
		{"the acceptance was lost", func(envelope.Step) []envelope.Step {
			return []envelope.Step{attempt(lost, at(1), envelope.Sent, "250 ok")}
		}, func(s *envelope.Summary) {
			*s = envelope.Summary{ID: lost, Received: noon, Recipients: []envelope.Address{}, State: envelope.Sent, Attempts: 1, Reply: "250 ok"}
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			l := openLog(t, dir)
			a := accepted(noon, "erp@contoso.com", "x@fabrikam.com")
			want := envelope.Summary{ID: a.ID, Received: noon, Sender: "erp@contoso.com", Size: 1234,
				Recipients: []envelope.Address{"x@fabrikam.com"}, MessageID: a.Envelope.MessageID, State: envelope.Queued}
			row.want(&want)
			for _, s := range row.steps(a) {
				l.Record(s)
			}
			for _, when := range []string{"at once", "after a restart"} {
				for _, q := range []envelope.Query{{}, {ID: want.ID}, {State: want.State}, {ID: want.ID, State: want.State, Since: noon, Until: at(1)}} {
					if diff := cmp.Diff([]envelope.Summary{want}, search(t, l, q)); diff != "" {
						t.Errorf("%s, %+v: (-want +got):\n%s", when, q, diff)
					}
				}
				closeLog(t, l)
				l = openLog(t, dir)
			}
			closeLog(t, l)
		})
	}
}

func TestStepsInOrderOfTime(t *testing.T) {
	l := openLog(t, t.TempDir())
	id := envelope.NewID(noon)
	for _, s := range []int{2, 1, 3, 1} {
		l.Record(attempt(id, noon.Add(time.Duration(s)*time.Second), envelope.Deferred, fmt.Sprint(s)))
	}
	var got []string
	for _, s := range steps(t, l, id) {
		got = append(got, s.Reply)
	}
	if want := []string{"1", "2", "3"}; !slices.Equal(got, want) { // the same step twice is one
		t.Errorf("got %v, want %v", got, want)
	}
	closeLog(t, l)
}

func TestHostileStrings(t *testing.T) {
	l := openLog(t, t.TempDir())
	a := accepted(noon, "erp@contoso.com")
	a.Envelope.MessageID = "<\xff\r\nX: y>"
	for i := range 1000 {
		a.Envelope.Recipients = append(a.Envelope.Recipients, envelope.Recipient{Address: envelope.Address(fmt.Sprintf("r%d@d%d.example", i, i))})
	}
	l.Record(a)
	l.Record(attempt(a.ID, noon, envelope.Failed, strings.Repeat("550 \xf5\xff no\n", 10_000)))
	for _, q := range []envelope.Query{
		{Recipient: "r0@d0.example"}, {Recipient: "R999@D999.example"}, {Recipient: "*@d500.EXAMPLE"}, {Sender: "*@CONTOSO.com"}, {Sender: "ERP@contoso.com"},
	} {
		found := search(t, l, q)
		if len(found) != 1 {
			t.Errorf("%+v: found %d", q, len(found))
			continue
		}
		if n := len(found[0].Recipients); n != 20 {
			t.Errorf("%d recipients in the summary, want 20", n)
		}
		if n := len(found[0].Reply); n > 1024 || !strings.HasPrefix(found[0].Reply, "550 ? no\n") {
			t.Errorf("reply of %d octets, %.20q", n, found[0].Reply)
		}
	}
	if n := len(steps(t, l, a.ID)[0].Envelope.Recipients); n != 1000 {
		t.Errorf("%d recipients in the step, want 1000", n)
	}
	for _, q := range []envelope.Query{{ID: "x"}, {ID: "../../etc/passwd"}, {Before: "x"}, {Sender: "*@"}, {Recipient: "\xff"}, {State: "\x00"}, {MessageID: "<>"}} {
		if q.MessageID == "<>" {
			continue // selects all, like no Message-ID at all
		}
		if found := search(t, l, q); len(found) != 0 {
			t.Errorf("%+v: found %v", q, found)
		}
	}
	closeLog(t, l)
}

func TestPages(t *testing.T) {
	l := openLog(t, t.TempDir())
	var want []envelope.ID
	for i := range 250 {
		a := accepted(noon.Add(time.Duration(i/3)*time.Millisecond), "erp@contoso.com") // some at the same moment
		want = append(want, a.ID)
		l.Record(a)
	}
	slices.Sort(want)
	slices.Reverse(want)
	var got []envelope.ID
	q := envelope.Query{Limit: 7}
	for {
		page := search(t, l, q)
		if len(page) == 0 {
			break
		}
		got = append(got, ids(page)...)
		q.Before = page[len(page)-1].ID
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d messages by pages, want %d in order", len(got), len(want))
	}
	if n := len(search(t, l, envelope.Query{})); n != 100 {
		t.Errorf("%d without a limit, want 100", n)
	}
	if n := len(search(t, l, envelope.Query{Limit: 1 << 30})); n != 250 {
		t.Errorf("%d with a limit past all, want 250", n)
	}
	// A page may begin at a message that history no longer knows.
	if got := ids(search(t, l, envelope.Query{Before: envelope.NewID(noon.Add(time.Millisecond)), Limit: 1 << 30})); !slices.Equal(got, want[len(want)-len(got):]) || len(got) < 3 || len(got) > 6 {
		t.Errorf("before a stranger: %v", got)
	}
	closeLog(t, l)
}

// A bounce carries an id derived from its original's; it is listed where it was accepted.
func TestDerivedIDsAreListedByTheirTime(t *testing.T) {
	l := openLog(t, t.TempDir())
	old, late := accepted(noon, "a@contoso.com"), accepted(noon.Add(time.Hour), "a@contoso.com")
	bounce := accepted(noon.Add(2*time.Hour), "a@contoso.com")
	bounce.ID = old.ID.Derived("bounce")
	bounce.Envelope.ID = bounce.ID
	for _, s := range []envelope.Step{old, bounce, late} {
		l.Record(s)
	}
	if got, want := ids(search(t, l, envelope.Query{})), []envelope.ID{bounce.ID, late.ID, old.ID}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := ids(search(t, l, envelope.Query{Before: bounce.ID, Since: noon.Add(time.Minute)})), []envelope.ID{late.ID}; !slices.Equal(got, want) {
		t.Errorf("before the bounce: got %v, want %v", got, want)
	}
	closeLog(t, l)
}

func TestRunWritesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { l.Run(ctx) })
		empty, _ := diskBytes(t, dir)
		l.Record(accepted(time.Now(), "erp@contoso.com"))
		<-time.After(batchDelay + time.Millisecond)
		synctest.Wait()
		one, _ := diskBytes(t, dir)
		if one <= empty {
			t.Error("nothing written after the delay of a batch")
		}
		for range batchSteps {
			l.Record(accepted(time.Now(), "erp@contoso.com"))
		}
		synctest.Wait() // and no time passes
		batch, _ := diskBytes(t, dir)
		if batch < one*batchSteps/2 {
			t.Error("a full batch waits for its time")
		}
		l.Record(accepted(time.Now(), "erp@contoso.com"))
		cancel()
		run.Wait()
		if last, _ := diskBytes(t, dir); last <= batch {
			t.Error("the end of Run left a step unwritten")
		}
		closeLog(t, l)
		l.Record(accepted(time.Now(), "erp@contoso.com"))
		if n := testutil.ToFloat64(l.metrics.dropped); n != 1 {
			t.Errorf("%v steps counted as dropped after Close, want 1", n)
		}
	})
}

func TestRecordNeverBlocks(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	l := openLog(t, t.TempDir(), func(o *Options) { o.Logger = zap.New(core) })
	s := accepted(noon, "erp@contoso.com")
	s.Reply = strings.Repeat("x", 1000)
	l.mu.Lock() // a disk that hangs
	n := 0
	for ; testutil.ToFloat64(l.metrics.dropped) < 1000; n++ {
		l.Record(s)
	}
	l.mu.Unlock()
	if n > maxPending/1000+1000 {
		t.Errorf("%d steps of 1000 octets taken; the bound is %d octets", n, maxPending)
	}
	for range 4 {
		search(t, l, envelope.Query{})
	}
	if logs.Len() != 2 || logs.All()[1].ContextMap()["steps"] != int64(1000) {
		t.Errorf("logged %v; want one line at the start of the burst, and one at its end with the count", logs.All())
	}
	closeLog(t, l)
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "file")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	readOnly := filepath.Join(dir, "readonly")
	if err := os.Mkdir(readOnly, 0o500); err != nil {
		t.Fatal(err)
	}
	bad := []string{taken, filepath.Join(taken, "below")}
	if os.Geteuid() != 0 { // whom no mode stops
		bad = append(bad, readOnly)
	}
	for _, path := range bad {
		if l, err := Open(Options{Dir: path, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()}); err == nil {
			t.Errorf("%s: no error", path)
			closeLog(t, l)
		}
	}
	closeLog(t, openLog(t, filepath.Join(dir, "new", "folder")))
}

func TestConcurrent(t *testing.T) {
	l := openLog(t, t.TempDir(), func(o *Options) { o.MaxBytes = 1 << 20 }) // some segments are deleted
	ctx, cancel := context.WithCancel(context.Background())
	var run, users sync.WaitGroup
	run.Go(func() { l.Run(ctx) })
	begun := time.Now().Add(-2 * time.Second)
	for range 800 {
		l.Record(attempt(envelope.NewID(begun), begun.Add(-20*time.Second), envelope.Sent, strings.Repeat("x", 900)))
	}
	for w := range 4 {
		users.Go(func() {
			for i := range 500 {
				at := begun.Add(time.Duration(i) * time.Millisecond)
				a := accepted(at, "erp@contoso.com", envelope.Address(fmt.Sprintf("r%d@fabrikam.com", w)))
				l.Record(a)
				l.Record(attempt(a.ID, at, envelope.Sent, "250 ok"))
				if i%20 == 0 {
					found, err := l.Search(ctx, envelope.Query{Recipient: fmt.Sprintf("r%d@fabrikam.com", w), Limit: 5})
					if err != nil || len(found) == 0 || found[0].ID != a.ID {
						t.Errorf("the message just recorded is not the latest: %v, %v", ids(found), err)
					}
					if s, err := l.Steps(ctx, a.ID); err != nil || len(s) != 2 {
						t.Errorf("%d steps, %v", len(s), err)
					}
				}
				if i%50 == 0 {
					l.Configure(time.Hour, 0)
					l.sweep(begun.Add(time.Hour - 10*time.Second)) // what was there before has expired
				}
			}
		})
	}
	users.Wait()
	cancel()
	run.Wait()
	closeLog(t, l)
}

func TestSearchEndsWithItsContext(t *testing.T) {
	l := openLog(t, t.TempDir())
	l.loading <- struct{}{} // somebody reads, for long
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.Search(ctx, envelope.Query{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Search: %v", err)
	}
	if _, err := l.Steps(ctx, envelope.NewID(noon)); !errors.Is(err, context.Canceled) {
		t.Errorf("Steps: %v", err)
	}
	<-l.loading
	if _, err := l.Search(ctx, envelope.Query{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Search that would read itself: %v", err)
	}
	closeLog(t, l)
}
