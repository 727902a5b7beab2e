package radar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
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
	"relayd/pkg/postmaster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is all around a radar; it outlives restarts.
type world struct {
	t *testing.T

	mu     sync.Mutex // guards what follows
	items  []Item
	kept   map[string][]byte
	mails  []string // subject, then the paragraphs
	notify error
	memory error
	asked  int
}

func newWorld(t *testing.T, items ...Item) *world {
	return &world{t: t, items: items, kept: map[string][]byte{"dispatch.x": []byte("another's")}}
}

func (w *world) Recall(context.Context) (map[string][]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.kept), w.memory
}

func (w *world) Remember(ctx context.Context, key string, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(ctx.Err(), w.memory); err != nil {
		return err
	}
	if w.kept[key] = data; len(data) == 0 {
		delete(w.kept, key)
	}
	return nil
}

// set changes the world under its lock.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// take returns the notices since it was last asked.
func (w *world) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	mails := w.mails
	w.mails = nil
	return mails
}

// want checks the subjects since last asked.
func (w *world) want(when string, subjects ...string) {
	w.t.Helper()
	mails := w.take()
	if len(mails) != len(subjects) {
		w.t.Errorf("%s: got %q, want %q", when, mails, subjects)
		return
	}
	for i := range mails {
		if subject, _, _ := strings.Cut(mails[i], "\n"); subject != subjects[i] {
			w.t.Errorf("%s: got %q, want %q", when, subject, subjects[i])
		}
	}
}

type rig struct {
	*Radar
	reg  *prometheus.Registry
	logs *observer.ObservedLogs
	stop func()
}

// run starts a radar in w.
func (w *world) run() *rig {
	core, logs := observer.New(zapcore.InfoLevel)
	r := &rig{reg: prometheus.NewRegistry(), logs: logs}
	r.Radar = New(Options{
		Items: func(context.Context) []Item {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked++
			return w.items
		},
		Notify: func(_ context.Context, subject string, paragraphs []string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.notify == nil {
				w.mails = append(w.mails, subject+"\n"+strings.Join(paragraphs, "\n"))
			}
			return w.notify
		},
		Memory: w, Logger: zap.New(core), Registerer: r.reg,
	})
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(r.stop)
	synctest.Wait()
	return r
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func secret(left time.Duration) Item {
	return Item{Kind: KindSecret, Tenant: "contoso", Expires: time.Now().Add(left), Advice: "Make a new one."}
}

func consent(i int, left time.Duration) Item {
	return Item{Kind: KindConsent, Tenant: "contoso", Sender: fmt.Sprintf("user%d@contoso.com", i), Expires: time.Now().Add(left), Advice: "Sign in again."}
}

const ofSecret = "The client secret of tenant contoso "

func TestStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(40*day))
		r := w.run()
		defer r.stop()
		for _, step := range []struct {
			wait time.Duration
			want string // "": nothing
		}{
			{10*day - time.Hour, ""}, {time.Hour, "expires in 30 days"},
			{16*day - time.Hour, ""}, {time.Hour, "expires in 14 days"},
			{7*day - time.Hour, ""}, {time.Hour, "expires in 7 days"},
			{6*day - time.Hour, ""}, {time.Hour, "expires within a day"},
			{day - time.Hour, ""}, {time.Hour, "has expired"},
			{100 * day, ""},
		} {
			pass(step.wait)
			if step.want == "" {
				w.want("between")
				continue
			}
			w.want(step.want, ofSecret+step.want)
		}
	})
}

// TestRestart: what was told is not told again by the next process, at whatever stage.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(30*day))
		for _, want := range []struct {
			subject string
			days    time.Duration
		}{{"expires in 30 days", 16}, {"expires in 14 days", 7}, {"expires in 7 days", 6}, {"expires within a day", 1}, {"has expired", 1}} {
			r := w.run()
			w.want("first process", ofSecret+want.subject)
			r.stop()
			r = w.run()
			w.want("second process")
			r.stop()
			pass(want.days * day)
		}
		if string(w.kept["dispatch.x"]) != "another's" {
			t.Error("another's record was touched")
		}
	})
}

func TestFirstSeenLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(5*day))
		r := w.run()
		defer r.stop()
		w.want("first seen with 5 days left", ofSecret+"expires in 5 days")
		pass(4*day - time.Hour)
		w.want("no stage of the past is caught up")
		pass(time.Hour)
		w.want("the next stage", ofSecret+"expires within a day")
	})
}

func TestFirstSeenExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(-3*day))
		r := w.run()
		defer r.stop()
		w.want("first seen late", ofSecret+"has expired")
		pass(100 * day)
		w.want("told once")
	})
}

func TestRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(day))
		r := w.run()
		defer r.stop()
		w.want("at first", ofSecret+"expires within a day")
		w.set(func() { w.items = []Item{secret(20 * day)} })
		r.Poke()
		pass(gather)
		w.want("renewed for 20 days", ofSecret+"expires in 20 days")
		w.set(func() { w.items = []Item{secret(365 * day)} })
		r.Poke()
		pass(334 * day)
		w.want("renewed for a year, 31 days left")
		pass(day + time.Hour)
		w.want("it started over", ofSecret+"expires in 30 days")

		w.set(func() { w.items[0].Expires = w.items[0].Expires.Add(time.Hour) })
		pass(2 * time.Hour)
		w.want("read anew, it differs by hours")
		w.set(func() { w.items[0].Expires = w.items[0].Expires.Add(-10 * day) })
		pass(2 * time.Hour)
		w.want("earlier, at the same stage")
		w.set(func() { w.items[0].Expires = w.items[0].Expires.Add(-10 * day) })
		pass(2 * time.Hour)
		w.want("earlier, at the next stage", ofSecret+"expires in 10 days")
		if n := r.logs.FilterMessageSnippet("about to expire").Len(); n != 4 {
			t.Errorf("%d log lines, want one for each notice", n)
		}
	})
}

func TestManyAtOnceAreOneNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 1000 {
			w.items = append(w.items, consent(i, 10*day+time.Duration(i)*time.Minute))
		}
		w.items = append(w.items, secret(-time.Hour), Item{Kind: KindCertificate, Tenant: "fabrikam", Expires: time.Now().Add(3 * day)}, Item{Kind: KindSecret, Tenant: "never"})
		r := w.run()
		defer r.stop()
		mails := w.take()
		if len(mails) != 1 {
			t.Fatalf("%d notices", len(mails))
		}
		for _, want := range []string{
			"1 of 1002 credentials and consents have expired, the others do in 11 days at the latest\n",
			"The client secret of tenant contoso expired on ", "\n  Make a new one.\n", "The certificate of tenant fabrikam expires on ", ", in 3 days.\n",
			"The consent of user0@contoso.com (tenant contoso) expires on ", "\n952 more are not listed here",
			"Nothing is lost",
		} {
			if !strings.Contains(mails[0], want) {
				t.Errorf("%q is missing in\n%.3000s", want, mails[0])
			}
		}
		if n := strings.Count(mails[0], "Sign in again."); n != maxNamed-2 {
			t.Errorf("%d consents are named, want %d", n, maxNamed-2)
		}
		if n := r.logs.FilterMessageSnippet("about to expire").Len(); n > maxNamed+1 {
			t.Errorf("%d log lines", n)
		}
		pass(day)
		w.want("told once")
		if items := r.Items(); len(items) != 1002 || items[0].Kind != KindSecret || items[1].Tenant != "fabrikam" || items[2].Sender != "user0@contoso.com" {
			t.Errorf("%d items, not the nearest first: %+v", len(items), items[:3])
		}
	})
}

func TestSubjects(t *testing.T) {
	now := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	in := func(kind string, left time.Duration) Item {
		return Item{Kind: kind, Tenant: "t", Sender: "a@b.example", Expires: now.Add(left)}
	}
	for _, tt := range []struct {
		items []Item
		want  string
	}{
		{[]Item{in(KindCertificate, 30*day)}, "The certificate of tenant t expires in 30 days"},
		{[]Item{in(KindConsent, day+1)}, "The consent of a@b.example (tenant t) expires in 2 days"},
		{[]Item{in(KindConsent, day)}, "The consent of a@b.example (tenant t) expires within a day"},
		{[]Item{in("key", 0)}, "The key of tenant t has expired"},
		{[]Item{in(KindSecret, -day), in(KindConsent, 0)}, "2 credentials and consents have expired"},
		{[]Item{in(KindSecret, day), in(KindConsent, 7*day)}, "2 credentials and consents expire, the last of them in 7 days"},
	} {
		subject, paragraphs := notice(tt.items, now)
		if subject != tt.want {
			t.Errorf("got %q, want %q", subject, tt.want)
		}
		if len(paragraphs) != len(tt.items)+1 {
			t.Errorf("%s: got %q", subject, paragraphs)
		}
	}
	_, paragraphs := notice([]Item{in(KindSecret, -day-time.Hour)}, now)
	if want := "The client secret of tenant t expired on Sun, 01 Mar 2026, 08:00 UTC, 2 days ago."; paragraphs[0] != want {
		t.Errorf("got %q, want %q", paragraphs[0], want)
	}
	if got := left(now, now.Add(time.Minute)); got != "within the last day" {
		t.Errorf("got %q", got)
	}
}

// TestNoticeNotWritten: it is due again each hour, and then says what is so by then.
func TestNoticeNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(8*day))
		w.notify = errors.New("queue storage is full")
		r := w.run()
		pass(day + 2*time.Hour)
		w.want("while it cannot be written")
		if n := r.logs.FilterMessageSnippet("not told").Len(); n != 1 {
			t.Errorf("said %d times, want once", n)
		}
		if n := r.logs.FilterMessageSnippet("about to expire").Len(); n != 2 {
			t.Errorf("the log says it %d times, want once at each stage", n)
		}
		r.stop()
		r = w.run() // nothing was remembered
		defer r.stop()
		w.set(func() { w.notify = nil })
		pass(checkEvery)
		w.want("written at last", ofSecret+"expires in 7 days")
	})
}

// TestMemoryFails: nothing is told before it is known what was; what cannot be remembered is told again after a restart only.
func TestMemoryFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(8*day))
		w.memory = errors.New("being reopened")
		r := w.run()
		pass(5 * recallRetry)
		w.want("unknown what was told")
		if n := r.logs.FilterMessageSnippet("cannot be read").Len(); n != 1 {
			t.Errorf("said %d times, want once", n)
		}
		if items := r.Items(); len(items) != 1 {
			t.Errorf("the page sees %d items, want 1", len(items))
		}
		w.set(func() { w.memory = nil })
		pass(recallRetry)
		w.want("read", ofSecret+"expires in 8 days")
		w.set(func() { w.memory = errors.New("no space") })
		pass(2 * day)
		w.want("the next stage", ofSecret+"expires in 7 days")
		pass(day)
		w.want("told once by this process")
		r.stop()
		w.set(func() { w.memory = nil })
		r = w.run()
		w.want("the next process", ofSecret+"expires in 5 days")
		r.stop()
	})
}

// TestStoppedWhileTelling: what was told is remembered though the end came meanwhile.
func TestStoppedWhileTelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(8*day))
		r := w.run()
		r.stop()
		w.take()
		w.set(func() { clear(w.kept) })
		ctx, cancel := context.WithCancel(t.Context())
		r.told = nil
		notify := r.opts.Notify
		r.opts.Notify = func(ctx context.Context, subject string, paragraphs []string) error {
			cancel()
			return notify(ctx, subject, paragraphs)
		}
		r.check(ctx)
		w.want("told", ofSecret+"expires in 8 days")
		w.run()
		w.want("by the next process")
	})
}

func TestUnreadableMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, data := range []string{"{", `{"stage":-1}`, `{"stage":6}`, `{"expires":"never"}`} {
			item := secret(8 * day)
			w := newWorld(t, item)
			w.kept[memoryPrefix+item.key()] = []byte(data)
			r := w.run()
			w.want(data, ofSecret+"expires in 8 days")
			r.stop()
			r = w.run()
			w.want("mended")
			r.stop()
		}
	})
}

func FuzzRecall(f *testing.F) {
	f.Add([]byte(`{"expires":"2026-03-02T09:00:00Z","stage":5}`))
	f.Add([]byte(`{"stage":5000000000}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		item := secret(day)
		w := newWorld(t, item)
		w.kept[memoryPrefix+item.key()] = data
		r := New(Options{Memory: w, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
		if err := r.recall(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, item := range r.due([]Item{item}, time.Now()) {
			notice([]Item{item}, time.Now())
		}
	})
}

func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret(20*day), consent(1, 20*day))
		r := w.run()
		defer r.stop()
		w.want("two", "2 credentials and consents expire, the last of them in 20 days")
		records := func() (n int) {
			w.set(func() { n = len(w.kept) - 1 })
			return n
		}
		both := w.items
		w.set(func() { w.items = both[:1] })
		pass(day)
		w.set(func() { w.items = both })
		pass(day)
		w.want("gone for a day and back")
		w.set(func() { w.items = nil })
		pass(47 * day)
		if n := records(); n != 2 {
			t.Errorf("%d records before it is time to forget, want 2", n)
		}
		w.set(func() { w.memory = errors.New("no space") })
		pass(2 * day)
		w.set(func() { w.memory = nil })
		pass(checkEvery)
		if n := records(); n != 0 {
			t.Errorf("%d records 30 days after the date, want none", n)
		}
		w.want("gone")
	})
}

func TestPoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.run()
		defer r.stop()
		pass(30 * time.Minute)
		for i := range 3 { // an operator adds one after the other
			w.set(func() { w.items = append(w.items, consent(i, 3*day)) })
			r.Poke()
			pass(time.Second)
			if n := len(r.Items()); n != i+1 {
				t.Errorf("the page sees %d items, want %d", n, i+1)
			}
		}
		w.want("gathering")
		pass(gather - 3*time.Second) // since the first
		w.want("one notice", "3 credentials and consents expire, the last of them in 3 days")
		for range 1000 {
			r.Poke() // never blocks
		}
		pass(time.Hour)
		asked := 0
		w.set(func() { asked = w.asked })
		pass(10 * time.Hour)
		w.set(func() { asked = w.asked - asked })
		if asked != 10 {
			t.Errorf("asked %d times in ten hours, want 10", asked)
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Unix(2_000_000_000, 0)
		w := newWorld(t,
			Item{Kind: KindSecret, Tenant: "both", Expires: at.Add(time.Hour)}, Item{Kind: KindCertificate, Tenant: "both", Expires: at},
			Item{Kind: KindSecret, Tenant: "one", Expires: at}, Item{Kind: KindConsent, Tenant: "consent", Sender: "a@b.example", Expires: at},
			Item{Kind: KindSecret, Tenant: "undated"},
		)
		r := w.run()
		defer r.stop()
		check := func(samples string) {
			t.Helper()
			const head = "# HELP relayd_credential_expiry_timestamp_seconds When the tenant's client secret or certificate expires, as far as that is known.\n" +
				"# TYPE relayd_credential_expiry_timestamp_seconds gauge\n"
			if err := testutil.GatherAndCompare(r.reg, strings.NewReader(head+samples)); err != nil {
				t.Error(err)
			}
		}
		check("relayd_credential_expiry_timestamp_seconds{tenant=\"both\"} 2e+09\nrelayd_credential_expiry_timestamp_seconds{tenant=\"one\"} 2e+09\n")
		w.set(func() { w.items = w.items[:2] })
		r.Poke()
		synctest.Wait()
		check("relayd_credential_expiry_timestamp_seconds{tenant=\"both\"} 2e+09\n")
	})
}

// TestSendersAreOneWhateverTheirCase: a mailbox is compared without case, like everywhere.
func TestSendersAreOneWhateverTheirCase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, consent(1, 3*day))
		r := w.run()
		defer r.stop()
		w.take()
		w.set(func() { w.items[0].Sender = strings.ToUpper(w.items[0].Sender) })
		pass(2 * time.Hour)
		w.want("in capitals")
	})
}

// mailQueue keeps the texts of mails.
type mailQueue struct{ mails []string }

func (q *mailQueue) Put(_ context.Context, _ *envelope.Envelope, body io.Reader) error {
	text, err := io.ReadAll(body)
	q.mails = append(q.mails, string(text))
	return err
}

// TestByPostmaster: a notice is a mail to operators in which each advice stands right below its item.
func TestByPostmaster(t *testing.T) {
	q := &mailQueue{}
	p := postmaster.New(postmaster.Options{
		Settings: postmaster.Settings{
			Modes: []string{postmaster.ModeNotify}, From: "postmaster@contoso.com", Notify: []envelope.Address{"ops@contoso.com"}, Hostname: "relay.contoso.com",
		},
		Queue: q, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(),
	})
	now := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	subject, paragraphs := notice([]Item{{Kind: KindSecret, Tenant: "contoso", Expires: now.Add(14 * day), Advice: "Make a new one."}}, now)
	if err := p.Notice(t.Context(), postmaster.Notice{Subject: subject, Paragraphs: paragraphs}); err != nil {
		t.Fatal(err)
	}
	const want = "The client secret of tenant contoso expires on Mon, 16 Mar 2026, 09:00\r\nUTC, in 14 days.\r\n  Make a new one.\r\n\r\n" +
		"Nothing is lost if it is not renewed in time: the mail of the senders\r\nthat depend on it then waits in the queue, and is sent once it has been.\r\n"
	if len(q.mails) != 1 || !strings.HasSuffix(q.mails[0], want) || !strings.Contains(q.mails[0], "Subject: The client secret of tenant contoso expires in 14 days\r\n") {
		t.Errorf("got %q", q.mails)
	}
}
