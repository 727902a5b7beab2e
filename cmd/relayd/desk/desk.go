// Package desk is what the page and the API work on: it looks at the running parts, and makes the changes an operator asks
// for, durably and with an entry in the audit log.
//
// A change is written to the audit log before it is made, so that there is none that is not in it; one that then fails has a
// second entry that says so. One whose record is stored but cannot be put in force is taken back.
package desk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/cmd/relayd/registry"
	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/config"
	"relayd/pkg/dispatch"
	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/grant"
	"relayd/pkg/envelope"
	"relayd/pkg/live"
	"relayd/pkg/queue"
	"relayd/pkg/status"
)

// Options of a Desk; all are required.
type Options struct {
	Registry *registry.Registry
	Config   func() *config.Extended // in force
	// Apply puts what the registry holds in force.
	Apply func(ctx context.Context) error
	// Reload returns what became of the last change of the file, Settings what is in force and Warnings what is odd about it.
	Reload   func() console.Reload
	Settings func() []console.Setting
	Warnings func() []string

	Queue      Queue
	Dispatcher Dispatcher
	Tokens     Tokens
	Consents   Consents
	Live       *live.Log
	Audit      Audit
	Examine    func(ctx context.Context, sender envelope.Address, found func(console.Finding)) error

	BaseURL func() string // of the page
	File    string        // the configuration's
	Version string
	Started time.Time
	Logger  *zap.Logger
}

// Queue is the queue as the desk looks at it.
type Queue interface {
	Waiting() []queue.Waiting
	Tally() map[envelope.State]queue.Tally
	Info(id envelope.ID) (queue.Info, bool)
	Ready() error
}

// Dispatcher says where mailboxes stand, and tries one at once that is said to be cured.
type Dispatcher interface {
	Mailboxes() []dispatch.Mailbox
	Probe(tenant, login string)
}

// Tokens is entra.Tokens.
type Tokens interface {
	Grants(ctx context.Context) ([]grant.Grant, error)
	Adopt(ctx context.Context, g grant.Grant) error
	Forget(ctx context.Context, tenant, login string) error
	Status(tenant string) (expires time.Time, problem *status.Error)
	Check(ctx context.Context, tenant string) error
	Advice(rule string) (cause, advice string)
}

// Consents is consent.Consents.
type Consents interface {
	Start(ctx context.Context, r consent.Request) (url string, err error)
	StartAdmin(ctx context.Context, tenant, session string) (url string, err error)
	Finish(ctx context.Context, c consent.Callback) (consent.Result, error)
	StartDevice(ctx context.Context, r consent.Request) (consent.Device, error)
	Device(ctx context.Context, id string) (consent.Device, error)
	Invite(ctx context.Context, r consent.Request, life time.Duration) (consent.Invitation, error)
	Invitation(ctx context.Context, code string) (consent.Invitation, error)
	Accept(ctx context.Context, code, session string) (url string, err error)
	Withdraw(ctx context.Context, tenant, login string) error
}

// Audit is audit.Log.
type Audit interface {
	Write(ctx context.Context, e console.Entry) error
	List(ctx context.Context, before uint64, limit int) ([]console.Entry, error)
}

// Desk implements console.Console. All its methods may be called at once.
type Desk struct {
	opts Options
	log  *zap.Logger
	// changing is held from looking at what is entered to the end of a change of it, so that no two are judged by the same state.
	changing sync.Mutex
}

var _ console.Console = (*Desk)(nil)

// New returns a Desk.
func New(opts Options) *Desk { return &Desk{opts: opts, log: opts.Logger} }

// Change makes a change called what to on: it is written down, then done, and a failure is written down too.
func (d *Desk) Change(ctx context.Context, what, on, before, after string, do func() error) error {
	entry := entryOf(ctx, what, on)
	entry.Before, entry.After = before, after
	return d.change(ctx, entry, do)
}

func (d *Desk) change(ctx context.Context, entry console.Entry, do func() error) error {
	if err := d.opts.Audit.Write(ctx, entry); err != nil {
		return unwritten(err)
	}
	err := do()
	if err == nil {
		return nil
	}
	d.failed(ctx, entry, err)
	return err
}

// failed writes down that a change was not made. It is told whoever asked besides, so a log that takes no entry changes nothing.
func (d *Desk) failed(ctx context.Context, entry console.Entry, err error) {
	entry.At, entry.Error = time.Now(), err.Error()
	if failed := d.opts.Audit.Write(context.WithoutCancel(ctx), entry); failed != nil {
		d.log.Error("audit log: a failure was not written", zap.String("what", entry.What), zap.Error(failed))
	}
}

// unwritten refuses a change that cannot be written down.
func unwritten(err error) error {
	return &status.Error{Code: 451, Enhanced: status.Enhanced{4, 3, 0}, Text: "the audit log cannot be written, so nothing was changed",
		Cause:  "each change is written there before it is made",
		Advice: "Look for room and permissions of the folder audit in data_dir; the relay's log has the error. Then try again", Err: err}
}

// inForce puts what the registry holds in force. Where that cannot be done, undo takes the last change of it back.
func (d *Desk) inForce(ctx context.Context, undo func(ctx context.Context) error) error {
	err := d.opts.Apply(ctx)
	if err == nil {
		return nil
	}
	if failed := undo(context.WithoutCancel(ctx)); failed != nil {
		return errors.Join(err, fmt.Errorf("take the change back: %w", failed))
	}
	return err
}

func entryOf(ctx context.Context, what, on string) console.Entry {
	e := console.Entry{At: time.Now(), Who: "nobody", What: what, On: on}
	if p := access.From(ctx); p != nil {
		e.Who, e.Peer = p.Name, p.Peer
	}
	return e
}

// Audit implements console.Console.
func (d *Desk) Audit(ctx context.Context, before uint64, limit int) ([]console.Entry, error) {
	return d.opts.Audit.List(ctx, before, limit)
}

// Configuration implements console.Console.
func (d *Desk) Configuration(context.Context) (*console.Configuration, error) {
	c := &console.Configuration{File: d.opts.File, Settings: d.opts.Settings(), Warnings: d.opts.Warnings(), Reload: d.opts.Reload()}
	x := d.opts.Config()
	for i := x.TenantsOfFile; i < len(x.Tenants); i++ {
		t := &x.Tenants[i]
		c.Settings = append(c.Settings, console.Setting{Key: "tenant " + t.Name, Value: t.Grant + ", " + t.TenantID + ", " + t.ClientID, Source: console.OriginPage})
	}
	for i := x.SendersOfFile; i < len(x.Senders); i++ {
		s := &x.Senders[i]
		c.Settings = append(c.Settings, console.Setting{Key: "sender " + s.Address + s.Match, Value: "tenant " + s.Tenant, Source: console.OriginPage})
	}
	for _, r := range x.Refused {
		for _, p := range r.Problems {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s%s%s, entered on the page, is not in force: %s: %s",
				r.Fields["name"], r.Fields["address"], r.Fields["match"], p.Key, p.Text))
		}
	}
	return c, nil
}

// Follow implements console.Console.
func (d *Desk) Follow(ctx context.Context) <-chan console.Event {
	events := make(chan console.Event)
	steps := d.opts.Live.Follow(ctx)
	go func() { // ends with ctx, or with the steps
		defer close(events)
		for step := range steps {
			e := console.Event{Step: step}
			if step.Envelope != nil {
				e.Sender = step.Envelope.Sender
			} else if info, ok := d.opts.Queue.Info(step.ID); ok {
				e.Sender = info.Sender
			}
			select {
			case events <- e:
			case <-ctx.Done():
			}
		}
	}()
	return events
}

const overviewParked = 50

// Overview implements console.Console.
func (d *Desk) Overview(ctx context.Context) (*console.Overview, error) {
	o := &console.Overview{
		Since: d.opts.Started, Version: d.opts.Version, Queue: map[string]int{}, Oldest: map[string]time.Time{}, Reload: d.opts.Reload(),
		Parked: []console.Sender{},
	}
	o.Hour, o.Day = minutes(d.opts.Live.Hour()), minutes(d.opts.Live.Day())
	for state, t := range d.opts.Queue.Tally() {
		o.Queue[string(state)] = t.Messages
		o.Bytes += t.Bytes
		if t.Messages > 0 {
			o.Oldest[string(state)] = t.Oldest
		}
	}
	if err := d.opts.Queue.Ready(); err != nil {
		o.Ready = err.Error()
	}
	senders, err := d.senders(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range senders {
		switch s.State {
		case console.SenderParked, console.SenderHeld, console.SenderConsent:
			if len(o.Parked) < overviewParked {
				o.Parked = append(o.Parked, s)
			}
		}
	}
	o.Expiries, err = d.Expiries(ctx)
	return o, err
}

func minutes(in []live.Minute) []console.Minute {
	out := make([]console.Minute, len(in))
	for i, m := range in {
		out[i] = console.Minute(m)
	}
	return out
}
