// Package dispatch decides who is due next and what becomes of each recipient.
//
// Every sender's waiting mail is a lane; lanes that authenticate as the same mailbox share its limits: connections,
// messages in any minute, recipients in any day. A mailbox that may send now stands once in a queue of ready mailboxes,
// however much mail it has, and goes to its end after each message. So one slow, throttled or flooded sender costs the
// others nothing but the one worker it may be holding.
//
// The package keeps nothing a crash could lose: lanes come back from the source, a park is found out again by the next
// attempt, the pace starts full. What was attempted is on the source's disk before the next attempt begins.
package dispatch

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Source is the durable queue as the dispatcher sees it.
type Source interface {
	// Watch makes notify the one to tell when a sender's earliest due time comes nearer, and tells it of all waiting mail.
	Watch(notify func(sender envelope.Address, due time.Time))
	// Claim takes the sender's earliest message due at now, or none (Claim.Envelope nil). Claim.Next says when to come back.
	Claim(ctx context.Context, sender envelope.Address, now time.Time) (envelope.Claim, error)
	// Settle makes the outcome durable and ends the claim. It fails only when ctx ends; then the claim stays.
	Settle(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error
	// Release ends a claim as if it had never been.
	Release(env *envelope.Envelope, p envelope.Progress)
	// Park shows the sender's waiting mail as parked for reason; "" ends it.
	Park(sender envelope.Address, reason string)
}

// Router names the way of a sender's mail. An error means there is none at present; it is asked again after Reload.
type Router interface {
	Route(sender envelope.Address) (*envelope.Route, error)
}

// Deliverer makes one attempt for the recipients of env with the given indices. The outcome has one error, nil for
// accepted, for each of them; whatever went wrong is in there. It returns soon after ctx ends.
type Deliverer interface {
	Deliver(ctx context.Context, route *envelope.Route, env *envelope.Envelope, open []int, body io.Reader) status.Outcome
}

// Options of a Dispatcher; the parts and Logger and Registerer are required.
type Options struct {
	Source    Source
	Router    Router
	Deliverer Deliverer

	Workers      int             // attempts at once, over all mailboxes; 0: 256
	Retry        []time.Duration // see schedule; empty: 1m, 5m, 15m, 30m, 1h, 2h, 4h
	Lifetime     time.Duration   // of a message; the attempt that ends it is that of rules.outlived; 0: 5 days
	DrainTimeout time.Duration   // what attempts under way get to end when Run is told to stop; 0: 25 s
	SenderLabels int             // mailboxes with a metric of their own; 0: 200

	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

func (o *Options) setDefaults() {
	if o.Workers <= 0 {
		o.Workers = 256
	}
	if len(o.Retry) == 0 {
		o.Retry = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour}
	}
	if o.Lifetime <= 0 {
		o.Lifetime = 5 * 24 * time.Hour
	}
	if o.DrainTimeout <= 0 {
		o.DrainTimeout = 25 * time.Second
	}
	if o.SenderLabels <= 0 {
		o.SenderLabels = 200
	}
}

// Dispatcher runs the attempts.
type Dispatcher struct {
	opts    Options
	log     *zap.Logger
	metrics *metrics

	mu        sync.Mutex // guards all below, and every mailbox, tenant and lane
	work      *sync.Cond // signalled when ready grows or stopped is set
	ready     []*mailbox // may send now, longest waiting first
	waiting   waiting    // may send later
	rearm     chan struct{}
	stopped   bool
	retry     []time.Duration
	lifetime  time.Duration
	lanes     map[string]*lane // by Address.Key
	mailboxes map[string]*mailbox
	tenants   map[string]*tenant
	panics    map[envelope.ID]int
	turns     uint64 // lanes served so far
	reloads   int
}

// New returns a dispatcher that does nothing until Run.
func New(opts Options) *Dispatcher {
	opts.setDefaults()
	d := &Dispatcher{
		opts: opts, log: opts.Logger, rearm: make(chan struct{}, 1), retry: opts.Retry, lifetime: opts.Lifetime,
		lanes: map[string]*lane{}, mailboxes: map[string]*mailbox{}, tenants: map[string]*tenant{}, panics: map[envelope.ID]int{},
	}
	d.work = sync.NewCond(&d.mu)
	d.metrics = newMetrics(opts.Registerer, d)
	return d
}

// Run attempts deliveries until ctx ends, then drains: nothing new is begun, what is under way gets DrainTimeout, what is
// still under way then is cut off and goes back to the queue.
func (d *Dispatcher) Run(ctx context.Context) error {
	attempts, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var workers, clock sync.WaitGroup
	clock.Go(func() { d.runClock(ctx) })
	for range d.opts.Workers {
		workers.Go(func() { d.runWorker(attempts) })
	}
	d.opts.Source.Watch(d.notify)
	<-ctx.Done()
	d.mu.Lock()
	d.stopped = true
	d.work.Broadcast()
	d.mu.Unlock()
	deadline := time.AfterFunc(d.opts.DrainTimeout, cut)
	defer deadline.Stop()
	workers.Wait()
	clock.Wait()
	return nil
}

// Reload asks the router again for every sender, takes over a changed retry schedule and lifetime (zero values keep the
// old), and lets everything parked be probed at once: the change may have been the cure. What was counted stays counted.
func (d *Dispatcher) Reload(retry []time.Duration, lifetime time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(retry) > 0 {
		d.retry = retry
	}
	if lifetime > 0 {
		d.lifetime = lifetime
	}
	d.reloads++
	now := time.Now()
	for _, t := range d.tenants {
		t.gate.probeAt(now)
	}
	for _, m := range d.mailboxes {
		m.gate.probeAt(now)
	}
	for _, l := range d.lanes {
		due := l.due
		d.unlink(l)
		l.mailbox = nil
		if !due.IsZero() || l.shown != "" {
			d.assign(l)
		}
		if !due.IsZero() {
			d.wake(l, due)
		}
	}
	for key, m := range d.mailboxes {
		d.schedule(m, now)
		if m.idle(now) {
			delete(d.mailboxes, key)
		}
	}
}

// notify is the source's word that sender has mail due at due.
func (d *Dispatcher) notify(sender envelope.Address, due time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lanes[sender.Key()]
	if l == nil {
		l = &lane{sender: sender, pos: -1}
		d.lanes[sender.Key()] = l
	}
	d.wake(l, due)
}

// wake makes the lane due no later than due. The caller holds mu.
func (d *Dispatcher) wake(l *lane, due time.Time) {
	if l.mailbox == nil {
		d.assign(l)
	}
	if l.due.IsZero() || due.Before(l.due) {
		l.due = due
	} else if l.pos >= 0 {
		return
	}
	if l.mailbox == nil {
		return // no route: Reload will ask again
	}
	if l.pos >= 0 {
		heap.Fix(&l.mailbox.lanes, l.pos)
	} else {
		heap.Push(&l.mailbox.lanes, l)
	}
	d.schedule(l.mailbox, time.Now())
}

// assign puts the lane under the mailbox its route names, with the route's limits. The caller holds mu.
func (d *Dispatcher) assign(l *lane) {
	route, err := d.opts.Router.Route(l.sender)
	if err != nil {
		d.show(l, err.Error())
		return
	}
	t := d.tenants[route.Tenant]
	if t == nil {
		t = &tenant{name: route.Tenant}
		d.tenants[route.Tenant] = t
		d.metrics.tenant(route.Tenant)
	}
	m := d.mailboxes[route.Mailbox()]
	if m == nil {
		m = &mailbox{tenant: t, at: -1, reload: -1}
		d.mailboxes[route.Mailbox()] = m
	}
	m.limit(route, d.reloads)
	l.mailbox = m
	d.show(l, m.parkedFor())
}

// show tells the source, once, why nothing of this sender can be sent; "" that it can. The caller holds mu.
func (d *Dispatcher) show(l *lane, reason string) {
	if l.shown == reason {
		return
	}
	if l.mailbox == nil {
		d.log.Warn("sender parked", zap.String("sender", string(l.sender)), zap.String("reason", reason))
	}
	l.shown = reason
	d.opts.Source.Park(l.sender, reason)
}

// unlink takes the lane out of its mailbox's heap. The caller holds mu.
func (d *Dispatcher) unlink(l *lane) {
	if l.pos >= 0 {
		heap.Remove(&l.mailbox.lanes, l.pos)
	}
	l.due = time.Time{}
}

// schedule puts the mailbox where it belongs: among the ready, among the waiting until its time, or nowhere while it has
// no work or no free connection. The caller holds mu.
func (d *Dispatcher) schedule(m *mailbox, now time.Time) {
	if m.ready {
		return
	}
	if m.at >= 0 {
		heap.Remove(&d.waiting, m.at)
	}
	at, ok := m.next(now)
	if !ok || d.stopped {
		return
	}
	if !at.After(now) {
		m.ready = true
		d.ready = append(d.ready, m)
		d.work.Signal()
		return
	}
	m.wake = at
	heap.Push(&d.waiting, m)
	if m.at == 0 {
		select {
		case d.rearm <- struct{}{}:
		default: // the clock has not looked since the last time
		}
	}
}

// clockMost is how long the clock sleeps at most: timers stand still while the machine is suspended, and know nothing of a
// step of the wall clock, which is what due times are kept in.
const clockMost = time.Minute

// runClock moves mailboxes from waiting to ready when their time has come.
func (d *Dispatcher) runClock(ctx context.Context) {
	timer := time.NewTimer(clockMost)
	defer timer.Stop()
	for {
		d.mu.Lock()
		now := time.Now()
		for len(d.waiting) > 0 && !d.waiting[0].wake.After(now) {
			d.schedule(d.waiting[0], now)
		}
		sleep := clockMost
		if len(d.waiting) > 0 {
			sleep = min(sleep, d.waiting[0].wake.Sub(now))
		}
		d.mu.Unlock()
		timer.Reset(sleep)
		select {
		case <-timer.C:
		case <-d.rearm:
		case <-ctx.Done():
			return
		}
	}
}

// attempt is one connection of a mailbox at work, from its turn to its end.
type attempt struct {
	lane    *lane
	mailbox *mailbox // the lane's when the attempt began: Reload may move the lane meanwhile
	route   envelope.Route
	begun   time.Time
	rules   rules
	day     int // recipients reserved of the mailbox's day
}

// take waits for a ready mailbox and begins an attempt at its most urgent lane, one connection and one message of pace
// spent. nil means the dispatcher is stopping.
func (d *Dispatcher) take() *attempt {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		for len(d.ready) == 0 && !d.stopped {
			d.work.Wait()
		}
		if d.stopped {
			return nil
		}
		m := d.ready[0]
		d.ready[0] = nil
		d.ready = d.ready[1:]
		m.ready = false
		now := time.Now()
		if at, ok := m.next(now); !ok || at.After(now) {
			d.schedule(m, now)
			continue
		}
		a := &attempt{lane: m.lanes[0], mailbox: m, route: m.route, begun: now, rules: rules{retry: d.retry, lifetime: d.lifetime}}
		d.unlink(a.lane)
		d.turns++
		a.lane.rest, a.lane.turn = now, d.turns
		m.active++
		m.pace.begin(now)
		m.probe(a)
		d.schedule(m, now)
		return a
	}
}

func (d *Dispatcher) runWorker(ctx context.Context) {
	for a := d.take(); a != nil; a = d.take() {
		d.serve(ctx, a)
	}
}

// claimRetry is how long a sender rests when the queue itself fails.
const claimRetry = time.Second

// serve makes one attempt at the lane's first message and gives the connection back.
func (d *Dispatcher) serve(ctx context.Context, a *attempt) {
	claim, err := d.opts.Source.Claim(ctx, a.lane.sender, time.Now())
	v := verdict{release: true}
	if d.admit(a, &claim, err) {
		v = d.try(ctx, a, claim)
	}
	d.mu.Lock()
	a.mailbox.day.settle(time.Now(), a.day, v.counted)
	if v.progress.State.Final() {
		delete(d.panics, claim.Envelope.ID)
	}
	d.gate(a, v) // before the outcome is told: the source names what is due again at once, and a closed gate must be by then
	d.mu.Unlock()
	switch {
	case claim.Envelope == nil:
	case v.release:
		d.opts.Source.Release(claim.Envelope, claim.Progress)
	default:
		d.settle(ctx, claim.Envelope, v.progress)
	}
	d.mu.Lock()
	a.mailbox.active--
	a.mailbox.pace.end(time.Now(), v.tried)
	d.schedule(a.mailbox, time.Now())
	d.mu.Unlock()
}

// admit takes in what the source said, and reports whether there is a message that may be tried now.
func (d *Dispatcher) admit(a *attempt, claim *envelope.Claim, err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if l := a.lane; err != nil {
		if !l.failing {
			d.log.Warn("claim failed: the sender rests a second, and so on until it works", zap.String("sender", string(l.sender)), zap.Error(err))
		}
		// The source may have named the message again already, as due: the rest is the lane's own.
		l.failing, l.rest = true, now.Add(claimRetry)
		d.wake(l, now)
		if l.pos >= 0 {
			heap.Fix(&l.mailbox.lanes, l.pos)
		}
		return false
	}
	a.lane.failing = false
	if !claim.Next.IsZero() {
		d.wake(a.lane, claim.Next)
	}
	if claim.Envelope == nil || d.stopped {
		return false
	}
	n := len(claim.Progress.Open(claim.Envelope))
	if !a.mailbox.day.reserve(now, n) {
		return false
	}
	a.day = n
	return true
}

// try delivers one claimed message and judges what came of it.
func (d *Dispatcher) try(ctx context.Context, a *attempt, claim envelope.Claim) verdict {
	env, p, tenant := claim.Envelope, claim.Progress, a.route.Tenant
	open := p.Open(env)
	log := d.log.With(zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)),
		zap.String("tenant", tenant), zap.String("login", string(a.route.Login)), zap.Int("attempt", p.Attempts+1))
	if p.State == envelope.Uncertain {
		d.metrics.duplicates.Inc()
		log.Warn("possible duplicate: resending a message whose last attempt ended between final dot and reply")
	}
	started := time.Now()
	out := d.deliver(ctx, &a.route, claim, open)
	a.rules.now, a.rules.stopping = time.Now(), ctx.Err() != nil
	took := a.rules.now.Sub(started)
	d.metrics.duration.WithLabelValues(tenant).Observe(took.Seconds())
	v := a.rules.judge(env, p, open, out)
	if p.Attempts == 0 && len(p.Results) == 0 && !v.release { // what is released comes back for its first attempt
		d.metrics.wait.WithLabelValues(tenant).Observe(started.Sub(env.Received).Seconds())
	}
	if v.outcome != "" {
		d.metrics.deliveries.WithLabelValues(tenant, v.outcome).Inc()
	}
	v.log(log.With(zap.Int("recipients", len(open)), zap.Duration("took", took)), out)
	return v
}

// settle makes an outcome durable. It outlives a cut-off attempt by a little: what was sent should be on the disk before
// the process ends.
func (d *Dispatcher) settle(ctx context.Context, env *envelope.Envelope, p envelope.Progress) {
	settle, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(settleGrace, cancel) })()
	if err := d.opts.Source.Settle(settle, env, p); err != nil {
		d.log.Error("outcome not recorded: the message will be sent again after a restart", zap.String("id", string(env.ID)), zap.Error(err))
	}
}

// settleGrace is how long recording an outcome may still take once attempts are cut off.
const settleGrace = 5 * time.Second

// maxPanics is how often a message may crash an attempt before it is held for a person to look at.
const maxPanics = 3

var errPoison = errors.New("three attempts at this message ended in a panic")

// deliver calls the deliverer and turns a panic into a failure of this one message.
func (d *Dispatcher) deliver(ctx context.Context, route *envelope.Route, claim envelope.Claim, open []int) (out status.Outcome) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		id := claim.Envelope.ID
		d.log.Error("attempt panicked", zap.String("id", string(id)), zap.Any("panic", r), zap.Stack("stack"))
		d.mu.Lock()
		d.panics[id]++
		poison := d.panics[id] >= maxPanics
		if poison {
			delete(d.panics, id)
		}
		d.mu.Unlock()
		e := &status.Error{Code: 451, Enhanced: status.Enhanced{4, 3, 0}, Text: "internal error"}
		if poison {
			e.Err = errPoison
		}
		out = status.Outcome{Errs: make([]*status.Error, len(open))}
		for i := range out.Errs {
			out.Errs[i] = e
		}
	}()
	out = d.opts.Deliverer.Deliver(ctx, route, claim.Envelope, open, claim.Body(ctx))
	if len(out.Errs) != len(open) {
		panic(fmt.Sprintf("deliverer: %d results for %d recipients", len(out.Errs), len(open)))
	}
	return out
}
