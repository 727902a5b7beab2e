package postmaster

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/dispatch"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

var _ dispatch.Reporter = (*Postmaster)(nil)

// stored is a mail in the fake queue.
type stored struct {
	env     *envelope.Envelope
	text    string
	subject string
}

// fakeQueue keeps what is put, each id once.
type fakeQueue struct {
	mu    sync.Mutex
	mails []stored
	err   error
	hook  func() // called in Put
}

func (q *fakeQueue) Put(ctx context.Context, env *envelope.Envelope, body io.Reader) error {
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	q.mu.Lock()
	hook := q.hook
	q.mu.Unlock()
	if hook != nil {
		hook()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil || ctx.Err() != nil {
		return cmp.Or(q.err, ctx.Err())
	}
	for _, m := range q.mails {
		if m.env.ID == env.ID {
			return nil
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		return err
	}
	q.mails = append(q.mails, stored{env, string(text), m.Header.Get("Subject")})
	return nil
}

// fail has Put run hook and return err from now on; nil for neither.
func (q *fakeQueue) fail(err error, hook func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err, q.hook = err, hook
}

// take returns what was put since it was last asked.
func (q *fakeQueue) take() []stored {
	q.mu.Lock()
	defer q.mu.Unlock()
	mails := q.mails
	q.mails = nil
	return mails
}

type rig struct {
	t *testing.T
	*Postmaster
	queue *fakeQueue
	reg   *prometheus.Registry
	logs  *observer.ObservedLogs
}

func settings() Settings {
	return Settings{Modes: []string{ModeDSN, ModeNotify}, From: "postmaster@contoso.com", Notify: []envelope.Address{"ops@contoso.com", "boss@contoso.com"}, Hostname: "relay.contoso.com"}
}

// newRig makes a postmaster; change may alter its options.
func newRig(t *testing.T, change ...func(*Options)) *rig {
	core, logs := observer.New(zap.DebugLevel)
	r := &rig{t: t, queue: &fakeQueue{}, reg: prometheus.NewRegistry(), logs: logs}
	o := Options{Settings: settings(), Queue: r.queue, Logger: zap.New(core), Registerer: r.reg}
	for _, c := range change {
		c(&o)
	}
	r.Postmaster = New(o)
	return r
}

// run starts Run and returns what stops it.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}
}

// pass lets d go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// want checks one value of relayd_bounces_total.
func (r *rig) want(k kind, res result, n float64) {
	r.t.Helper()
	if got := testutil.ToFloat64(r.metrics.of(k, res)); got != n {
		r.t.Errorf("relayd_bounces_total{%s,%s}: got %v, want %v", k, res, got, n)
	}
}

const text = "From: erp@contoso.com\r\nSubject: Invoice\r\n\r\nHello\r\n"

// claim is a message of two recipients, the first of which has failed.
func claim(change ...func(*envelope.Envelope)) (*envelope.Claim, *envelope.Progress) {
	env := &envelope.Envelope{
		ID: envelope.NewID(time.Now()), Received: time.Now(), Intake: "smtp", ReversePath: "erp@contoso.com", Sender: "erp@contoso.com",
		Recipients: []envelope.Recipient{{Address: "bob@fabrikam.example"}, {Address: "carol@fabrikam.example"}}, Size: int64(len(text)),
	}
	for _, c := range change {
		c(env)
	}
	p := &envelope.Progress{State: envelope.Failed, Results: []envelope.Result{
		{State: envelope.Failed, Reply: "rcpt: 550 5.1.10 not found", Rule: "recipient-not-found"}, {State: envelope.Sent, Reply: "250 ok"}}}
	return &envelope.Claim{Envelope: env, Body: func(context.Context) io.Reader { return strings.NewReader(text) }}, p
}

// bounce reports a failed message and returns what was written.
func (r *rig) bounce(change ...func(*envelope.Envelope)) []stored {
	r.t.Helper()
	c, p := claim(change...)
	if _, err := r.Bounce(r.t.Context(), c, p, []int{0}); err != nil {
		r.t.Fatal(err)
	}
	return r.queue.take()
}

func TestBounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Server = func(envelope.Address) string { return "smtp.office365.com" } })
		c, p := claim()
		pass(time.Minute)
		written, err := r.Bounce(t.Context(), c, p, []int{0})
		if err != nil {
			t.Fatal(err)
		}
		mails := r.queue.take()
		if len(mails) != 1 {
			t.Fatalf("%d mails", len(mails))
		}
		env := mails[0].env
		if env.ID != written || env.ID != c.Envelope.ID.Derived("failure 0") || !env.ID.Valid() || env.Intake != Intake || env.ReversePath != "" || env.Sender != "postmaster@contoso.com" ||
			!env.Received.Equal(time.Now()) || env.MessageID != "<"+string(env.ID)+"@relay.contoso.com>" || env.EightBit || env.SMTPUTF8 {
			t.Errorf("envelope %+v", env)
		}
		if len(env.Recipients) != 1 || env.Recipients[0] != (envelope.Recipient{Address: "erp@contoso.com", Notify: "NEVER"}) {
			t.Errorf("recipients %v", env.Recipients)
		}
		for _, want := range []string{"Final-Recipient: rfc822; bob@", "Status: 5.1.10", "Action: failed", "Subject: Undeliverable: Invoice", "Remote-MTA: dns; smtp.office365.com",
			"Reporting-MTA: dns; relay.contoso.com"} {
			if !strings.Contains(mails[0].text, want) {
				t.Errorf("%q is missing in\n%s", want, mails[0].text)
			}
		}
		if strings.Contains(mails[0].text, "carol@") {
			t.Error("tells of a recipient that did not fail")
		}
		r.want(kindFailure, resultSent, 1)
		lines := r.logs.FilterMessage("sender told").All()
		if len(lines) != 1 || lines[0].ContextMap()["id"] != string(c.Envelope.ID) || lines[0].ContextMap()["notification"] != string(env.ID) {
			t.Errorf("log: %v", lines)
		}
	})
}

func TestBounceOnce(t *testing.T) {
	r := newRig(t)
	c, p := claim()
	for range 2 { // asked again, as after a crash
		if _, err := r.Bounce(t.Context(), c, p, []int{0}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.queue.take()); n != 1 {
		t.Errorf("%d notifications about one failure", n)
	}
	p.Results[1] = p.Results[0]
	if _, err := r.Bounce(t.Context(), c, p, []int{1}); err != nil || len(r.queue.take()) != 1 {
		t.Errorf("another recipient's failure is not told: %v", err)
	}
	if _, err := r.Delay(t.Context(), c, p, []int{0}, time.Time{}); err != nil || len(r.queue.take()) != 1 {
		t.Errorf("a delay is taken for the failure: %v", err)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c, p := claim(func(e *envelope.Envelope) { e.Recipients[1].Notify = "FAILURE" })
		p.Results[0].Reply = "451 4.3.2 busy"
		written, err := r.Delay(t.Context(), c, p, []int{0, 1}, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		mails := r.queue.take()
		if len(mails) != 1 || mails[0].env.ID != written || !strings.Contains(mails[0].text, "Action: delayed") || !strings.Contains(mails[0].text, "Will-Retry-Until: ") ||
			strings.Contains(mails[0].text, "carol@") || mails[0].subject != "Delayed: Invoice" {
			t.Errorf("got %v", mails)
		}
		r.want(kindDelay, resultSent, 1)
		stop := r.run()
		pass(2 * time.Hour)
		stop()
		if got := r.queue.take(); len(got) != 0 {
			t.Errorf("a delay is in a digest: %s", got[0].text)
		}
	})
}

// TestNobodyToTell has one row for each reason why nothing is written. suppressed: there was one to tell.
func TestNobodyToTell(t *testing.T) {
	header := func(field string) func(*rig, *envelope.Claim) {
		return func(_ *rig, c *envelope.Claim) {
			c.Body = func(context.Context) io.Reader { return strings.NewReader(field + "\r\n" + text) }
		}
	}
	env := func(change func(*envelope.Envelope)) func(*rig, *envelope.Claim) {
		return func(_ *rig, c *envelope.Claim) { change(c.Envelope) }
	}
	set := func(change func(*Settings)) func(*rig, *envelope.Claim) {
		return func(r *rig, _ *envelope.Claim) {
			s := settings()
			change(&s)
			r.Configure(s)
		}
	}
	for _, row := range []struct {
		name                     string
		change                   func(*rig, *envelope.Claim)
		sent, suppressed, errors float64
	}{
		{"an ordinary message", env(func(*envelope.Envelope) {}), 1, 0, 0},
		{"mode without dsn", set(func(s *Settings) { s.Modes = []string{ModeNotify, "events"} }), 0, 0, 0},
		{"mode off", set(func(s *Settings) { s.Modes = []string{"off"} }), 0, 0, 0},
		{"no modes", set(func(s *Settings) { s.Modes = nil }), 0, 0, 0},
		{"no postmaster", set(func(s *Settings) { s.From = "" }), 0, 0, 0},
		{"nobody to notify", set(func(s *Settings) { s.Notify = nil }), 1, 0, 0},
		{"null reverse-path", env(func(e *envelope.Envelope) { e.ReversePath = "" }), 0, 0, 0},
		{"NOTIFY=NEVER", env(func(e *envelope.Envelope) { e.Recipients[0].Notify = "NEVER" }), 0, 0, 0},
		{"NOTIFY=DELAY", env(func(e *envelope.Envelope) { e.Recipients[0].Notify = "DELAY" }), 0, 0, 0},
		{"NOTIFY=SUCCESS,FAILURE", env(func(e *envelope.Envelope) { e.Recipients[0].Notify = "SUCCESS,FAILURE" }), 1, 0, 0},
		{"the postmaster's own reverse-path", env(func(e *envelope.Envelope) { e.ReversePath = "PostMaster@contoso.com" }), 0, 1, 0},
		{"relayd's own mail", env(func(e *envelope.Envelope) { e.Intake = Intake }), 0, 1, 0},
		{"an answer to mail", header("Auto-Submitted: auto-replied"), 0, 1, 0},
		{"a cron job's mail", header("Auto-Submitted: auto-generated"), 1, 0, 0},
		{"an address that is none", env(func(e *envelope.Envelope) { e.ReversePath = "a@b\r\nBcc: x@y.example" }), 0, 0, 1},
	} {
		r := newRig(t)
		c, p := claim()
		row.change(r, c)
		written, err := r.Bounce(t.Context(), c, p, []int{0})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		if (written != "") != (row.sent > 0) {
			t.Errorf("%s: said to be written as %q", row.name, written)
		}
		if n := len(r.queue.take()); float64(n) != row.sent {
			t.Errorf("%s: %d mails, want %v", row.name, n, row.sent)
		}
		r.want(kindFailure, resultSent, row.sent)
		r.want(kindFailure, resultSuppressed, row.suppressed)
		r.want(kindFailure, resultError, row.errors)
		if n := len(r.written.entries); float64(n) != row.sent {
			t.Errorf("%s: %d mails count for the hour, want %v", row.name, n, row.sent)
		}
	}
}

// Many an app has one reverse-path for everything: where no operator reads a digest, only the hour's cap bounds what it gets.
func TestPerAddressWithoutOperators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		set := r.settings()
		set.Notify = nil
		r.Configure(set)
		for i := range 2 * perAddress {
			if n := len(r.bounce()); n != 1 {
				t.Fatalf("bounce %d: %d mails, want 1", i, n)
			}
		}
	})
}

func TestPerAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for i := range 15 {
			want := 1
			if i >= perAddress {
				want = 0
			}
			if n := len(r.bounce()); n != want {
				t.Fatalf("bounce %d: %d mails, want %d", i, n, want)
			}
		}
		if n := len(r.bounce(func(e *envelope.Envelope) { e.ReversePath = "crm@contoso.com" })); n != 1 {
			t.Error("another address is held to account for the first")
		}
		if n := len(r.bounce(func(e *envelope.Envelope) { e.ReversePath = "ERP@contoso.com" })); n != 0 {
			t.Error("capitals make another address")
		}
		c, p := claim()
		if written, err := r.Delay(t.Context(), c, p, []int{0}, time.Time{}); err != nil || written != "" || len(r.queue.take()) != 0 {
			t.Errorf("a delay is not counted with failures (%v)", err)
		}
		r.want(kindFailure, resultSent, perAddress+1)
		r.want(kindFailure, resultSuppressed, 6)
		r.want(kindDelay, resultSuppressed, 1)
		pass(time.Hour - time.Second)
		if n := len(r.bounce()); n != 0 {
			t.Error("the hour is too short")
		}
		pass(time.Second)
		if n := len(r.bounce()); n != 1 {
			t.Error("the hour does not end")
		}
	})
}

func TestPerHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		sent := 0
		for i := range 150 {
			sent += len(r.bounce(func(e *envelope.Envelope) { e.ReversePath = envelope.Address(fmt.Sprintf("user%d@contoso.com", i)) }))
		}
		if sent != 95 {
			t.Errorf("%d of 150 were told, want 95 of the hour's 100: 5 are the operators'", sent)
		}
		stop := r.run()
		pass(digestAfter)
		mails := r.queue.take()
		if len(mails) != 1 || !strings.Contains(mails[0].text, "55 notifications to senders not written") || mails[0].subject != "150 messages failed" {
			t.Fatalf("digest: %v", mails)
		}
		pass(time.Hour)
		stop()
		if mails = r.queue.take(); len(mails) != 0 {
			t.Errorf("a second digest about the same: %v", mails)
		}
	})
}

func TestPerHourCountsWhatWasWrittenOnly(t *testing.T) {
	r := newRig(t, func(o *Options) { o.PerHour = 2; o.Modes = []string{ModeDSN} })
	r.queue.fail(&status.Error{Code: 452, Text: "full"}, nil)
	for range 5 {
		c, p := claim()
		if _, err := r.Bounce(t.Context(), c, p, []int{0}); err == nil {
			t.Fatal("an error of the queue is lost")
		}
	}
	r.queue.fail(nil, nil)
	if n := len(r.bounce()) + len(r.bounce()) + len(r.bounce()); n != 2 {
		t.Errorf("%d mails, want 2", n)
	}
	r.want(kindFailure, resultError, 5)
	r.want(kindFailure, resultSuppressed, 1)
}

func TestStorageErrors(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		ask  bool
	}{
		{"unknown", errors.New("broken"), true},
		{"full", &status.Error{Code: 452, Text: "queue storage is full"}, true},
		{"never", &status.Error{Code: 552, Text: "envelope too large"}, false}, // asking each minute would not help
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			r.queue.fail(row.err, nil)
			c, p := claim()
			_, err := r.Bounce(t.Context(), c, p, []int{0})
			if (err != nil) != row.ask || err != nil && !errors.Is(err, row.err) {
				t.Errorf("%s: got %v", row.name, err)
			}
			if noted := r.digest.messages == 1; noted == row.ask {
				t.Errorf("%s: in the digest: %v; a failure is noted once it is told", row.name, noted)
			}
			if _, err = r.Delay(t.Context(), c, p, []int{0}, time.Time{}); (err != nil) != row.ask {
				t.Errorf("%s, delay: got %v", row.name, err)
			}
			if len(r.written.entries) != 0 {
				t.Errorf("%s: counts for the hour", row.name)
			}
		})
	}
}

type unreadable struct{ err error }

func (u unreadable) Read([]byte) (int, error) { return 0, u.err }

func TestUnreadableOriginal(t *testing.T) {
	r := newRig(t)
	c, p := claim()
	c.Body = func(context.Context) io.Reader { return unreadable{envelope.ErrCorrupt} }
	if _, err := r.Bounce(t.Context(), c, p, []int{0}); err != nil {
		t.Fatal(err)
	}
	mails := r.queue.take()
	if len(mails) != 1 || strings.Contains(mails[0].text, "rfc822-headers") || !strings.Contains(mails[0].text, "Status: 5.1.10") {
		t.Errorf("the sender is not told, or of a damaged original: %v", mails)
	}
	c.Body, c.Envelope.ID = nil, envelope.NewID(time.Now())
	if _, err := r.Bounce(t.Context(), c, p, []int{0}); err != nil || len(r.queue.take()) != 1 {
		t.Errorf("no body: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c.Body = func(ctx context.Context) io.Reader { cancel(); return unreadable{ctx.Err()} }
	if _, err := r.Bounce(ctx, c, p, []int{0}); !errors.Is(err, context.Canceled) {
		t.Errorf("cut off: got %v", err)
	}
	r.want(kindFailure, resultError, 0) // nothing was composed that could fail to be stored
}

func TestBodyIsClosedAfterReading(t *testing.T) {
	r := newRig(t)
	c, p := claim()
	var reading context.Context
	c.Body = func(ctx context.Context) io.Reader { reading = ctx; return strings.NewReader(text) }
	if _, err := r.Bounce(t.Context(), c, p, []int{0}); err != nil {
		t.Fatal(err)
	}
	if reading.Err() == nil {
		t.Error("what reads the body is not told that it is done")
	}
}

func TestUTF8(t *testing.T) {
	r := newRig(t)
	mails := r.bounce(func(e *envelope.Envelope) { e.ReversePath, e.SMTPUTF8 = "jürgen@contoso.com", true })
	if len(mails) != 1 || !mails[0].env.SMTPUTF8 || !mails[0].env.EightBit {
		t.Errorf("got %+v", mails)
	}
}

func TestComposesFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var mu sync.Mutex
		now, most := 0, 0
		r.queue.fail(nil, func() {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			<-time.After(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
		})
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				c, p := claim(func(e *envelope.Envelope) { e.ReversePath = envelope.Address(fmt.Sprintf("user%d@contoso.com", i)) })
				if _, err := r.Bounce(t.Context(), c, p, []int{0}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c, p := claim()
		if _, err := r.Bounce(ctx, c, p, []int{0}); !errors.Is(err, context.Canceled) {
			t.Errorf("waits for its turn although it is to stop: %v", err)
		}
		all.Wait()
		if most != composing {
			t.Errorf("%d at once, want %d", most, composing)
		}
	})
}

func TestMetricsAreThereFromTheStart(t *testing.T) {
	r := newRig(t)
	n, err := testutil.GatherAndCount(r.reg, "relayd_bounces_total")
	if err != nil || n != 15 {
		t.Errorf("%d series (%v), want 5 kinds by 3 results", n, err)
	}
}

func TestSettings(t *testing.T) {
	for _, row := range []struct {
		set      Settings
		notifies bool
		reserve  int
	}{
		{Settings{Modes: []string{ModeNotify}, From: "a@b.example", Notify: []envelope.Address{"c@d.example"}, PerHour: 100}, true, 5},
		{Settings{Modes: []string{ModeNotify}, From: "a@b.example", Notify: []envelope.Address{"c@d.example"}, PerHour: 4}, true, 2},
		{Settings{Modes: []string{ModeNotify}, From: "a@b.example", Notify: []envelope.Address{"c@d.example"}, PerHour: 1}, true, 0},
		{Settings{Modes: []string{ModeNotify}, From: "a@b.example", PerHour: 100}, false, 0},
		{Settings{Modes: []string{ModeNotify}, Notify: []envelope.Address{"c@d.example"}, PerHour: 100}, false, 0},
		{Settings{Modes: []string{ModeDSN}, From: "a@b.example", Notify: []envelope.Address{"c@d.example"}, PerHour: 100}, false, 0},
	} {
		if got, n := row.set.notifies(), row.set.reserve(); got != row.notifies || n != row.reserve {
			t.Errorf("%+v: got %v, %d", row.set, got, n)
		}
	}
}
