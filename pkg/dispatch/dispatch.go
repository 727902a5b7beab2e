// Package dispatch decides who is due next and what becomes of each recipient.
//
// Every sender's waiting mail is a lane; lanes that authenticate as the same mailbox share its limits: connections,
// messages in any minute, recipients in any day. A mailbox that may send now stands once in a queue of ready mailboxes,
// however much mail it has, and goes to its end after each message. So one slow, throttled or flooded sender costs the
// others nothing but the one worker it may be holding. Package limit below this one holds what keeps a mailbox or a tenant
// back, package fate what a reply means for a recipient.
//
// What survives a crash: lanes come back from the source. What was attempted is on the source's disk before the next
// attempt begins. The recipients a mailbox has left in its day, and what is parked or held and why, are written down
// through Options.Memory, the former ahead of use: a crash can only make them fewer. A failure is noted as owed to its
// sender before the reporter is asked to tell of it, and again until it has. The pace starts with one message, learned
// limits and back-offs are found out again.
package dispatch

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/dispatch/ledger"
	"relayd/pkg/dispatch/limit"
	"relayd/pkg/dispatch/report"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Source is the durable queue as the dispatcher sees it.
type Source interface {
	// Watch makes notify the one to tell when a sender's earliest due time comes nearer, and tells it of all waiting mail.
	Watch(notify func(sender envelope.Address, due time.Time))
	// Claim takes the sender's earliest message due at now, or none (Claim.Envelope nil). Claim.Next says when to come back.
	Claim(ctx context.Context, sender envelope.Address, now time.Time) (envelope.Claim, error)
	// Note makes an interim outcome durable, and the claim goes on. It fails only when ctx ends.
	Note(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error
	// Settle makes the outcome durable and ends the claim. It fails only when ctx ends; then the claim stays.
	Settle(ctx context.Context, env *envelope.Envelope, p envelope.Progress) error
	// Release ends a claim as if it had never been.
	Release(env *envelope.Envelope, p envelope.Progress)
	// Rest ends a claim as Release does, and does not offer the message again before until.
	Rest(env *envelope.Envelope, until time.Time)
	// Park shows the sender's waiting mail as parked for reason; "" ends it.
	Park(sender envelope.Address, reason string)
}

// Router names the way of a sender's mail. It must answer at once: the dispatcher's mutex is held.
type Router interface {
	// Route returns the way. An error means there is none at present; it is asked again after Reload.
	Route(sender envelope.Address) (*envelope.Route, error)
	// External reports whether recipient is outside the organisation of that tenant.
	External(tenant string, recipient envelope.Address) bool
}

// Deliverer makes one attempt for the recipients of env with the given indices. The outcome has one error, nil for
// accepted, for each of them; whatever went wrong is in there. It returns soon after ctx ends.
type Deliverer interface {
	Deliver(ctx context.Context, route *envelope.Route, env *envelope.Envelope, open []int, body io.Reader) status.Outcome
}

// Memory keeps small records that outlive the process, the newest of each key.
type Memory = ledger.Memory

// Reporter tells people of what became of their mail.
type Reporter = report.Reporter

// Options of a Dispatcher; the first three parts, Logger and Registerer are required.
type Options struct {
	Source    Source
	Router    Router
	Deliverer Deliverer
	Memory    Memory              // nil: nothing outlives the process
	Reporter  Reporter            // nil: nobody is told
	Record    func(envelope.Step) // told of each step of a message; must not block; nil: nobody is

	// Rewrite changes a message on its way out. It returns the envelope with the size of the result, and the result. Its error
	// is that of reading the stored message. nil: all leaves as it is stored.
	Rewrite func(route *envelope.Route, env *envelope.Envelope, open func() io.Reader) (*envelope.Envelope, io.Reader, error)

	Workers      int             // attempts at once, over all mailboxes; 0: 256
	Retry        []time.Duration // see fate.Rules; empty: 1m, 5m, 15m, 30m, 1h, 2h, 4h
	Lifetime     time.Duration   // of a message; the attempt that ends it is that of fate.Rules; 0: 5 days
	DelayWarning time.Duration   // age at which a message's sender is told that it waits; 0: never
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
	ledger  *ledger.Ledger
	teller  *report.Teller

	mu        sync.Mutex // guards all below, and every mailbox, tenant and lane
	work      *sync.Cond // signalled when ready grows or stopped is set
	ready     []*mailbox // may send now, longest waiting first
	waiting   waiting    // may send later
	rearm     chan struct{}
	stopped   bool
	began     time.Time // when Run did; zero: not yet
	rules     fate.Rules
	warnAfter time.Duration    // Options.DelayWarning
	lanes     map[string]*lane // by Address.Key
	mailboxes map[string]*mailbox
	tenants   map[string]*tenant
	panics    map[envelope.ID]int
	turns     uint64 // attempts begun so far
	reloads   int
}

// New returns a dispatcher that does nothing until Run.
func New(opts Options) *Dispatcher {
	opts.setDefaults()
	d := &Dispatcher{
		opts: opts, log: opts.Logger, rearm: make(chan struct{}, 1), warnAfter: opts.DelayWarning,
		rules: fate.Rules{Retry: opts.Retry, Lifetime: opts.Lifetime},
		lanes: map[string]*lane{}, mailboxes: map[string]*mailbox{}, tenants: map[string]*tenant{}, panics: map[envelope.ID]int{},
		ledger: ledger.New(opts.Memory, opts.Logger), teller: report.New(opts.Source, opts.Reporter, opts.Record, opts.Logger),
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
	d.ledger.Recall(ctx)
	d.mu.Lock()
	d.began = time.Now()
	d.mu.Unlock()
	var workers, clock sync.WaitGroup
	clock.Go(func() { d.runClock(ctx) })
	clock.Go(func() { d.runSweep(ctx) })
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
	d.balance(context.WithoutCancel(ctx))
	return nil
}

// Reload asks the router again for every sender, takes over a changed retry schedule and lifetime (zero values keep the
// old), and lets everything parked be probed at once: the change may have been the cure. A quota is probed where the
// mailbox's limits have changed. What was counted stays counted.
func (d *Dispatcher) Reload(retry []time.Duration, lifetime time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(retry) > 0 {
		d.rules.Retry = retry
	}
	if lifetime > 0 {
		d.rules.Lifetime = lifetime
	}
	now := time.Now()
	for _, t := range d.tenants {
		t.Gate.ProbeAt(now) // no reply holds a tenant as a whole for quota
	}
	for _, m := range d.mailboxes {
		if !m.Gate.Quota {
			m.Gate.ProbeAt(now)
		}
		m.probeRest = time.Time{}
	}
	d.reroute(now)
}

// Reroute asks the router again for every sender, as Reload does; what is parked is left to its time, or to Probe.
func (d *Dispatcher) Reroute() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reroute(time.Now())
}

func (d *Dispatcher) reroute(now time.Time) {
	d.reloads++
	limits := make(map[*mailbox]int, len(d.mailboxes))
	for _, m := range d.mailboxes {
		limits[m] = m.day.Limit
	}
	for _, l := range d.lanes {
		due := l.due
		d.leave(l)
		if !due.IsZero() || l.shown != "" {
			d.assign(l)
		}
		if !due.IsZero() {
			d.wake(l, due)
		}
	}
	for _, m := range d.mailboxes {
		if was, ok := limits[m]; ok && was != m.day.Limit {
			m.day.Reconsider()
			for _, g := range m.gates() {
				g.ProbeAt(now)
			}
		}
		d.schedule(m, now)
	}
	d.sweep(now)
	for name, t := range d.tenants {
		if t.idle(now) && !d.inhabited(t) {
			delete(d.tenants, name)
		}
	}
	for _, t := range d.tenants {
		d.admitHeld(t)
	}
}

// WarnAfter changes Options.DelayWarning.
func (d *Dispatcher) WarnAfter(age time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.warnAfter = age
}

// schedule puts the mailbox where it belongs: among the ready, among the waiting until its time, or nowhere while it has
// no work or no free connection. The caller holds mu.
func (d *Dispatcher) schedule(m *mailbox, now time.Time) {
	if m.ready {
		return
	}
	if m.at >= 0 {
		d.waiting.remove(m)
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
	d.waiting.add(m)
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

// sweepEvery is how often what has nothing to do and nothing to remember is forgotten.
const sweepEvery = 5 * time.Minute

func (d *Dispatcher) runSweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.mu.Lock()
			d.sweep(time.Now())
			d.mu.Unlock()
			d.forget(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// sweep forgets lanes and mailboxes that have nothing waiting and nothing to remember: senders of a *@domain rule may be
// without end. The caller holds mu.
func (d *Dispatcher) sweep(now time.Time) {
	for key, l := range d.lanes {
		if l.due.IsZero() && l.active == 0 && l.shown == "" {
			d.leave(l)
			delete(d.lanes, key)
		}
	}
	for key, m := range d.mailboxes {
		if m.idle(now) {
			delete(d.mailboxes, key)
			if m.recorded {
				d.ledger.Drop(ledger.MailboxKey(key))
			}
		}
	}
}

// attempt is one connection of a mailbox at work, from its turn to its end.
type attempt struct {
	number  uint64
	lane    *lane
	mailbox *mailbox // the lane's when the attempt began: Reload may move the lane meanwhile
	route   envelope.Route
	begun   time.Time
	start   uint64 // of the tenant's slow start
	probe   bool   // of a park
	rules   fate.Rules

	warnAfter time.Duration // as in Options.DelayWarning

	todo  []int     // recipients to try
	held  []int     // due, but for a hold; not tried
	until time.Time // when that hold is probed next
	day   int       // recipients reserved of the mailbox's day
	more  bool      // a further part of the message goes at once, as far as the mailbox is concerned
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
		if a := d.begin(m, now); a != nil {
			return a
		}
	}
}

// begin starts an attempt of the mailbox, if it may still send: else it is put where it belongs. The caller holds mu.
func (d *Dispatcher) begin(m *mailbox, now time.Time) *attempt {
	t := m.tenant
	at, ok := m.next(now)
	if !ok || at.After(now) {
		d.schedule(m, now)
		d.admitHeld(t)
		return nil
	}
	if d.room(t) <= 0 {
		m.ready = true
		t.held = append(t.held, m)
		return nil
	}
	l := m.first(now)
	if l == nil { // all its mail goes another way and none of it is due: it probes when some is
		m.probeRest = now.Add(clockMost)
		d.schedule(m, now)
		d.admitHeld(t)
		return nil
	}
	d.turns++
	a := &attempt{number: d.turns, lane: l, mailbox: m, route: m.route, begun: now, rules: d.rules, warnAfter: d.warnAfter, start: t.Ramp.Begin(), probe: m.stuck()}
	a.route.From = l.from
	if l.home != m {
		a.route.From = l.fallback
	}
	d.unlink(l)
	l.rest, l.turn = now, d.turns
	l.active++
	m.active++
	t.active++
	m.pace.Begin(now)
	for _, g := range []*limit.Gate{&m.Gate, &t.Gate} {
		if g.Parked() {
			g.Probe = a.number
		}
	}
	d.schedule(m, now)
	return a
}

// room returns how many more attempts the tenant may begin: what its slow start lets it, and with other tenants about, no
// more than three quarters of the workers. The caller holds mu.
func (d *Dispatcher) room(t *tenant) int {
	most := d.opts.Workers
	if len(d.tenants) > 1 {
		most = max(1, most*3/4)
	}
	return min(most-t.active, t.Ramp.Free())
}

// admitHeld lets mailboxes that stand behind their tenant's limit try again, as many as there is room for. The caller
// holds mu.
func (d *Dispatcher) admitHeld(t *tenant) {
	if len(t.held) == 0 {
		return
	}
	n := min(d.room(t), len(t.held))
	for range n {
		d.ready = append(d.ready, t.held[0])
		t.held[0] = nil
		t.held = t.held[1:]
		d.work.Signal()
	}
}

func (d *Dispatcher) runWorker(ctx context.Context) {
	for a := d.take(); a != nil; a = d.take() {
		d.serve(ctx, a)
	}
}
