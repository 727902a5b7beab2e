package dispatch

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mail is one message of a fakeQueue.
type mail struct {
	env      *envelope.Envelope
	progress envelope.Progress
	due      time.Time
	claimed  bool
	history  []envelope.Progress // as settled, oldest first
	settled  time.Time           // when it last was
	released int
	rested   []time.Time // until when
	noted    []envelope.Progress
	marks    int
}

// fakeLane is one sender's waiting mail.
type fakeLane struct {
	sender envelope.Address
	heap   mailHeap
	parked string
	parks  []string // every word about it
}

type mailHeap []*mail

func (h mailHeap) Len() int { return len(h) }
func (h mailHeap) Less(i, j int) bool {
	return cmp.Or(h[i].due.Compare(h[j].due), cmp.Compare(h[i].env.ID, h[j].env.ID)) < 0
}
func (h mailHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *mailHeap) Push(x any)   { *h = append(*h, x.(*mail)) }
func (h *mailHeap) Pop() any {
	old := *h
	m := old[len(old)-1]
	*h = old[:len(old)-1]
	return m
}

// fakeQueue is a Source in memory. Like the real one it tells of mail with no lock held, and of a message given back at
// once.
type fakeQueue struct {
	mu      sync.Mutex // guards all below
	notify  func(sender envelope.Address, due time.Time)
	lanes   map[string]*fakeLane
	mails   map[envelope.ID]*mail
	order   []*mail
	last    int
	wrong   []string // what broke the contract of Source
	claims  int
	broken  error         // what Claim answers
	waits   chan struct{} // not nil: Claim waits for it
	blocked chan struct{} // not nil: Settle waits for it

	unreadable error // what reading a body ends in
	noteless   bool  // Note fails
}

func newFakeQueue() *fakeQueue {
	return &fakeQueue{lanes: map[string]*fakeLane{}, mails: map[envelope.ID]*mail{}}
}

func (q *fakeQueue) lane(sender envelope.Address) *fakeLane {
	l := q.lanes[sender.Key()]
	if l == nil {
		l = &fakeLane{sender: sender}
		q.lanes[sender.Key()] = l
	}
	return l
}

// put accepts a message to n recipients, due in so long.
func (q *fakeQueue) put(sender envelope.Address, n int, in time.Duration) *mail {
	to := make([]envelope.Address, n)
	for i := range to {
		to[i] = envelope.Address(fmt.Sprintf("r%d@example.com", i))
	}
	return q.putTo(sender, in, to...)
}

// putTo accepts a message to these recipients, due in so long.
func (q *fakeQueue) putTo(sender envelope.Address, in time.Duration, to ...envelope.Address) *mail {
	q.mu.Lock()
	q.last++
	now := time.Now()
	m := &mail{due: now.Add(in), env: &envelope.Envelope{
		ID: envelope.ID(fmt.Sprintf("%020d", q.last)), Received: now, Sender: sender, ReversePath: sender, Recipients: make([]envelope.Recipient, len(to)),
	}}
	for i, a := range to {
		m.env.Recipients[i].Address = a
	}
	m.progress.State = envelope.Queued
	q.mails[m.env.ID] = m
	q.order = append(q.order, m)
	tell := q.enqueue(m)
	q.mu.Unlock()
	tell()
	return m
}

// enqueue puts m into its lane; the caller holds mu and makes the returned call without.
func (q *fakeQueue) enqueue(m *mail) func() {
	l := q.lane(m.env.Sender)
	heap.Push(&l.heap, m)
	if l.heap[0] != m || q.notify == nil {
		return func() {}
	}
	notify, due := q.notify, m.due
	return func() { notify(m.env.Sender, due) }
}

func (q *fakeQueue) Watch(notify func(sender envelope.Address, due time.Time)) {
	q.mu.Lock()
	q.notify = notify
	var heads []*mail
	for _, l := range q.lanes {
		if len(l.heap) > 0 {
			heads = append(heads, l.heap[0])
		}
	}
	q.mu.Unlock()
	for _, m := range heads {
		notify(m.env.Sender, m.due)
	}
}

func (q *fakeQueue) Claim(ctx context.Context, sender envelope.Address, now time.Time) (envelope.Claim, error) {
	q.mu.Lock()
	waits := q.waits
	q.mu.Unlock()
	if waits != nil {
		<-waits
	}
	q.mu.Lock()
	q.claims++
	l := q.lane(sender)
	var c envelope.Claim
	if len(l.heap) > 0 && !l.heap[0].due.After(now) {
		m := heap.Pop(&l.heap).(*mail)
		if q.broken != nil {
			err, tell := q.broken, q.enqueue(m) // the message stays where it was, and is told of again
			q.mu.Unlock()
			tell()
			return c, err
		}
		if m.claimed {
			q.wrong = append(q.wrong, "claimed twice: "+string(m.env.ID))
		}
		m.claimed = true
		c = envelope.Claim{Envelope: m.env, Progress: m.progress, Body: q.body, Mark: func() { q.mark(m) }}
		c.Progress.Results = slices.Clone(m.progress.Results)
	}
	if len(l.heap) > 0 {
		c.Next = l.heap[0].due
	}
	q.mu.Unlock()
	return c, nil
}

func (q *fakeQueue) body(context.Context) io.Reader {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.unreadable != nil {
		return io.MultiReader(strings.NewReader("bo"), iotest.ErrReader(q.unreadable))
	}
	return strings.NewReader("body")
}

func (q *fakeQueue) mark(m *mail) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m.marks++
}

func (q *fakeQueue) Note(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.noteless {
		return context.DeadlineExceeded
	}
	m := q.mails[env.ID]
	if !m.claimed {
		q.wrong = append(q.wrong, "noted without a claim: "+string(env.ID))
	}
	p.Results = slices.Clone(p.Results)
	m.progress = p
	m.noted = append(m.noted, p)
	return nil
}

func (q *fakeQueue) Settle(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error {
	q.mu.Lock()
	blocked := q.blocked
	q.mu.Unlock()
	if blocked != nil {
		select {
		case <-blocked:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	q.mu.Lock()
	m := q.mails[env.ID]
	if !m.claimed {
		q.wrong = append(q.wrong, "settled without a claim: "+string(env.ID))
	}
	m.claimed, m.progress, m.settled = false, p, time.Now()
	m.history = append(m.history, p)
	tell := func() {}
	switch p.State {
	case envelope.Sent, envelope.Failed, envelope.Held:
	case envelope.Queued, envelope.Deferred, envelope.Uncertain:
		m.due = p.Due
		tell = q.enqueue(m)
	default:
		q.wrong = append(q.wrong, fmt.Sprintf("settled as %q", p.State))
	}
	q.mu.Unlock()
	tell()
	return nil
}

func (q *fakeQueue) Release(env *envelope.Envelope, _ envelope.Progress) {
	q.giveBack(env, func(m *mail) { m.released++ })
}

func (q *fakeQueue) Rest(env *envelope.Envelope, until time.Time) {
	q.giveBack(env, func(m *mail) {
		m.rested = append(m.rested, until)
		if until.After(m.due) {
			m.due = until
		}
	})
}

func (q *fakeQueue) giveBack(env *envelope.Envelope, change func(*mail)) {
	q.mu.Lock()
	m := q.mails[env.ID]
	if !m.claimed {
		q.wrong = append(q.wrong, "released without a claim: "+string(env.ID))
	}
	m.claimed = false
	change(m)
	tell := q.enqueue(m)
	q.mu.Unlock()
	tell()
}

func (q *fakeQueue) Park(sender envelope.Address, reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.lane(sender)
	l.parked = reason
	l.parks = append(l.parks, reason)
}

// progress returns where m stands.
func (q *fakeQueue) progress(m *mail) envelope.Progress {
	q.mu.Lock()
	defer q.mu.Unlock()
	return m.progress
}

func (q *fakeQueue) state(m *mail) envelope.State { return q.progress(m).State }

func (q *fakeQueue) claimed() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.claims
}

// parks returns every word told about the sender.
func (q *fakeQueue) parks(sender envelope.Address) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.lane(sender).parks)
}

// fakeRouter knows the senders it was told of.
type fakeRouter struct {
	mu     sync.Mutex
	routes map[envelope.Address]envelope.Route
}

var errNoRoute = errors.New("no sender with that address is configured any more")

func (f *fakeRouter) Route(sender envelope.Address) (*envelope.Route, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.routes[sender]
	if !ok {
		return nil, errNoRoute
	}
	return &r, nil
}

// External has all of contoso.com inside.
func (f *fakeRouter) External(_ string, recipient envelope.Address) bool {
	return recipient.Domain() != "contoso.com"
}

func (f *fakeRouter) set(sender envelope.Address, r envelope.Route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Login == "" {
		r.Login = sender
	}
	f.routes[sender] = r
}

func (f *fakeRouter) remove(sender envelope.Address) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.routes, sender)
}

// try is one attempt as the far end sees it.
type try struct {
	id         envelope.ID
	sender     envelope.Address
	login      envelope.Address
	tenant     string
	from       envelope.Address // Route.From
	size       int64
	open       []int
	to         []envelope.Address
	begun, end time.Time
	errs       []*status.Error
}

// fakeExchange is a Deliverer whose answers the test writes. Without an answer all are accepted after latency.
type fakeExchange struct {
	answer  func(ctx context.Context, t *try) status.Outcome
	latency time.Duration

	mu     sync.Mutex
	tries  []*try // in the order they ended
	active map[envelope.Address]int
	most   map[envelope.Address]int // attempts at once, by login
}

func (x *fakeExchange) Deliver(ctx context.Context, route *envelope.Route, env *envelope.Envelope, open []int, body io.Reader) status.Outcome {
	t := &try{id: env.ID, sender: env.Sender, login: route.Login, tenant: route.Tenant, from: route.From, size: env.Size, open: open, begun: time.Now()}
	for _, i := range open {
		t.to = append(t.to, env.Recipients[i].Address)
	}
	x.mu.Lock()
	x.active[t.login]++
	x.most[t.login] = max(x.most[t.login], x.active[t.login])
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.active[t.login]--
		t.end = time.Now()
		x.tries = append(x.tries, t)
	}()
	if x.answer == nil {
		advance(x.latency)
		_, _ = io.Copy(io.Discard, body)
		return accept(t)
	}
	out := x.answer(ctx, t)
	t.errs = out.Errs
	for _, e := range out.Errs {
		if e != nil && e.Action != status.Uncertain {
			continue
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			out = refuse(t, status.Retry, "the stored message cannot be read")
			out.Errs[0].Err = err
		}
		break
	}
	return out
}

func (x *fakeExchange) all() []*try {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.tries)
}

// of returns the attempts at one sender's mail.
func (x *fakeExchange) of(sender envelope.Address) []*try {
	return slices.DeleteFunc(x.all(), func(t *try) bool { return t.sender != sender })
}

func accept(t *try) status.Outcome {
	return status.Outcome{Reply: "250 2.0.0 OK", Errs: make([]*status.Error, len(t.open))}
}

// refuse answers all recipients alike.
func refuse(t *try, action status.Action, text string) status.Outcome {
	out := status.Outcome{Errs: make([]*status.Error, len(t.open))}
	for i := range out.Errs {
		out.Errs[i] = &status.Error{Code: 451, Text: text, Action: action}
	}
	return out
}

// reply is what Exchange Online says at a stage, and the catalogue of it.
func reply(stage status.Stage, code int, action status.Action, text string) *status.Error {
	return &status.Error{Code: code, Text: text, Stage: stage, Action: action, Rule: text, Cause: "cause of " + text, Advice: "advice on " + text}
}

// each answers all recipients with e.
func each(t *try, e *status.Error) status.Outcome {
	out := status.Outcome{Errs: make([]*status.Error, len(t.open))}
	for i := range out.Errs {
		out.Errs[i] = e
	}
	return out
}

// fakeReporter notes what it is told.
type fakeReporter struct {
	mu      sync.Mutex
	parks   []status.Park
	bounced []told
	delayed []told
	broken  error
	panics  bool
	before  func() // called in Bounce
}

// answer is the id of what is written of that kind.
func (r *fakeReporter) answer(kind string) envelope.ID {
	if r.broken != nil {
		return ""
	}
	return envelope.ID("the " + kind)
}

type told struct {
	id    envelope.ID
	who   []int
	until time.Time
}

func (r *fakeReporter) Bounce(_ context.Context, claim *envelope.Claim, p *envelope.Progress, failed []int) (envelope.ID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.panics {
		panic("a header nobody thought of")
	}
	if r.before != nil {
		r.before()
	}
	if r.broken != nil {
		return "", r.broken
	}
	for _, i := range failed {
		if p.Results[i].State != envelope.Failed {
			return "", fmt.Errorf("told of the failure of a recipient that is %s", p.Results[i].State)
		}
	}
	r.bounced = append(r.bounced, told{id: claim.Envelope.ID, who: slices.Clone(failed)})
	return r.answer("bounce"), nil
}

func (r *fakeReporter) Delay(_ context.Context, claim *envelope.Claim, _ *envelope.Progress, open []int, until time.Time) (envelope.ID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delayed = append(r.delayed, told{id: claim.Envelope.ID, who: slices.Clone(open), until: until})
	return r.answer("delay"), r.broken
}

func (r *fakeReporter) Park(p status.Park) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parks = append(r.parks, p)
}

// bounces returns whose failures were told of, delays whose delays.
func (r *fakeReporter) bounces() []told {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.bounced)
}

func (r *fakeReporter) delays() []told {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.delayed)
}

// fail makes telling fail with err.
func (r *fakeReporter) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = err
}

// words returns what was told of parks, in short.
func (r *fakeReporter) words() (words []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.parks {
		w := p.Tenant
		if p.Login != "" {
			w += "/" + p.Login
		}
		switch {
		case p.Resumed && p.Err == nil:
			w += " resumed"
		case p.Quota:
			w += " held: " + p.Err.Error()
		default:
			w += " parked: " + p.Err.Error()
		}
		words = append(words, w)
	}
	return words
}

// fakeMemory keeps records in a map.
type fakeMemory struct {
	mu      sync.Mutex
	records map[string][]byte
	writes  map[string]int
	broken  error
	recalls int
}

func newFakeMemory() *fakeMemory {
	return &fakeMemory{records: map[string][]byte{}, writes: map[string]int{}}
}

func (f *fakeMemory) Recall(context.Context) (map[string][]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recalls++; f.broken != nil {
		return nil, f.broken
	}
	return maps.Clone(f.records), nil
}

func (f *fakeMemory) Remember(ctx context.Context, key string, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return f.broken
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.writes[key]++
	if f.records[key] = slices.Clone(data); len(data) == 0 {
		delete(f.records, key)
	}
	return nil
}

func (f *fakeMemory) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = err
}

// written returns how often the key's record was.
func (f *fakeMemory) written(key string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes[key]
}

func (f *fakeMemory) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.records)
}

// copy is what a kill -9 leaves.
func (f *fakeMemory) copy() *fakeMemory {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &fakeMemory{records: maps.Clone(f.records), writes: map[string]int{}}
}

// rig is a dispatcher with fakes around it, inside a bubble.
type rig struct {
	t        testing.TB
	queue    *fakeQueue
	router   *fakeRouter
	exchange *fakeExchange
	registry *prometheus.Registry
	logs     *observer.ObservedLogs
	d        *Dispatcher
	stop     func() // ends Run's context and waits for its return
}

func newRig(t testing.TB, change func(*Options)) *rig {
	core, logs := observer.New(zap.InfoLevel)
	r := &rig{
		t: t, queue: newFakeQueue(), router: &fakeRouter{routes: map[envelope.Address]envelope.Route{}},
		exchange: &fakeExchange{latency: 100 * time.Millisecond, active: map[envelope.Address]int{}, most: map[envelope.Address]int{}},
		registry: prometheus.NewRegistry(), logs: logs,
	}
	opts := Options{Source: r.queue, Router: r.router, Deliverer: r.exchange, Workers: 64, Logger: zap.New(core), Registerer: r.registry}
	if change != nil {
		change(&opts)
	}
	r.d = New(opts)
	return r
}

// run starts the dispatcher; the test's end stops it.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := r.d.Run(ctx); err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}()
	r.stop = func() {
		cancel()
		<-ended
	}
	r.t.Cleanup(func() {
		r.stop()
		for _, w := range r.queue.wrong {
			r.t.Error(w)
		}
	})
}

// settled reports how many messages have come to an end.
func (r *rig) settled() (n int) {
	r.queue.mu.Lock()
	defer r.queue.mu.Unlock()
	for _, m := range r.queue.order {
		if m.progress.State.Final() {
			n++
		}
	}
	return n
}

// after lets time pass until everything that was to happen in it has.
func after(d time.Duration) {
	advance(d)
	synctest.Wait()
}

// logged counts the log lines with this message.
func (r *rig) logged(message string) int { return r.logs.FilterMessage(message).Len() }

const parkedLine = "parked: mail is kept until the cause is cured, and costs no attempt"

func sender(i int) envelope.Address { return envelope.Address(fmt.Sprintf("s%03d@contoso.com", i)) }

// advance lets fake time pass, in a synctest bubble.
func advance(d time.Duration) { <-time.After(d) }
