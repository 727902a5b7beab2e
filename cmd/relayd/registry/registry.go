// Package registry keeps the tenants, senders and pauses that were entered on the page or the command line, as encrypted
// records that all nodes share.
//
// A change is durable when its method returns nil. What cannot be read is told by Load, and stays as it was read last; what
// never was is left out. The rest goes on.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"relayd/pkg/config"
)

// Records is where one kind of record is kept, as vault.Kind is.
type Records interface {
	Get(ctx context.Context, name string) (data []byte, revision uint64, err error)
	Put(ctx context.Context, name string, data []byte, revision uint64) (uint64, error)
	Delete(ctx context.Context, name string) error
	Names(ctx context.Context) ([]string, error)
	// Watch tells of every change, by whomever, until ctx ends.
	Watch(ctx context.Context, changed func(name string)) error
}

// ErrConflict reports that another has changed the same thing at the same moment.
var ErrConflict = errors.New("it was changed by somebody else at the same moment; look at it again")

// Registry is the three kinds of records, and what was read of them last.
type Registry struct {
	tenants, senders, pauses Records

	mu  sync.Mutex // guards now
	now Content
}

// Content is all that was entered.
type Content struct {
	Tenants map[string]config.Fields // by name
	Senders map[string]config.Fields // by what they match, in lower case
	Pauses  map[string]Pause         // by what their sender matches, in lower case
}

// Pause is who has paused a sender, and when.
type Pause struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// New returns a registry that has read nothing yet.
func New(tenants, senders, pauses Records) *Registry {
	return &Registry{tenants: tenants, senders: senders, pauses: pauses}
}

// Load reads everything. Records that cannot be read are named by the error, and stay as they were; what could be read is in
// force all the same.
func (r *Registry) Load(ctx context.Context) error {
	fresh := r.Content()
	errs := []error{
		readAll(ctx, r.tenants, "tenant", &fresh.Tenants), readAll(ctx, r.senders, "sender", &fresh.Senders), readAll(ctx, r.pauses, "pause", &fresh.Pauses),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = fresh
	return errors.Join(errs...)
}

// readAll reads the records of a kind in place of those in into. What cannot be listed or read stays as it is there: that the
// store is away takes nobody's tenant away.
func readAll[T any](ctx context.Context, records Records, what string, into *map[string]T) error {
	names, err := records.Names(ctx)
	if err != nil {
		return fmt.Errorf("list the entered %ss: %w", what, err)
	}
	slices.Sort(names) // the same errors are in the same order, then
	all := make(map[string]T, len(names))
	var errs []error
	for _, name := range names {
		data, _, err := records.Get(ctx, name)
		var one T
		if err == nil && data != nil {
			if json.Unmarshal(data, &one) != nil {
				err = errors.New("is not what was stored") // the decoder's error could quote a secret
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", what, name, err))
			if before, known := (*into)[name]; known {
				all[name] = before
			}
			continue
		}
		if data != nil {
			all[name] = one
		}
	}
	if ctx.Err() == nil {
		*into = all
	}
	return errors.Join(errs...)
}

// Content returns what was read or changed last. It must not be altered.
func (r *Registry) Content() Content {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// Added returns the tenants and senders as the configuration takes them, in the order of their names.
func (c Content) Added() config.Added {
	var added config.Added
	for _, name := range slices.Sorted(maps.Keys(c.Tenants)) {
		added.Tenants = append(added.Tenants, c.Tenants[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Senders)) {
		added.Senders = append(added.Senders, c.Senders[name])
	}
	return added
}

// Paused returns who has paused which senders.
func (c Content) Paused() map[string]string {
	paused := make(map[string]string, len(c.Pauses))
	for match, p := range c.Pauses {
		paused[match] = p.By
	}
	return paused
}

// Key returns the name under which what a sender matches is kept.
func Key(match string) string { return strings.ToLower(match) }

// PutTenant stores a tenant, in place of the one of that name.
func (r *Registry) PutTenant(ctx context.Context, name string, fields config.Fields) error {
	return put(ctx, r, r.tenants, name, fields, func(c *Content) map[string]config.Fields {
		c.Tenants = clone(c.Tenants)
		return c.Tenants
	})
}

// DeleteTenant forgets a tenant. None is no error.
func (r *Registry) DeleteTenant(ctx context.Context, name string) error {
	return remove(ctx, r, r.tenants, name, func(c *Content) map[string]config.Fields {
		c.Tenants = clone(c.Tenants)
		return c.Tenants
	})
}

// PutSender stores a sender, in place of the one that matches the same.
func (r *Registry) PutSender(ctx context.Context, match string, fields config.Fields) error {
	return put(ctx, r, r.senders, Key(match), fields, func(c *Content) map[string]config.Fields {
		c.Senders = clone(c.Senders)
		return c.Senders
	})
}

// DeleteSender forgets a sender. None is no error.
func (r *Registry) DeleteSender(ctx context.Context, match string) error {
	return remove(ctx, r, r.senders, Key(match), func(c *Content) map[string]config.Fields {
		c.Senders = clone(c.Senders)
		return c.Senders
	})
}

// Pause stores that a sender is paused.
func (r *Registry) Pause(ctx context.Context, match string, p Pause) error {
	return put(ctx, r, r.pauses, Key(match), p, func(c *Content) map[string]Pause {
		c.Pauses = clone(c.Pauses)
		return c.Pauses
	})
}

// Resume forgets a pause. None is no error.
func (r *Registry) Resume(ctx context.Context, match string) error {
	return remove(ctx, r, r.pauses, Key(match), func(c *Content) map[string]Pause {
		c.Pauses = clone(c.Pauses)
		return c.Pauses
	})
}

func clone[T any](m map[string]T) map[string]T {
	if m == nil {
		return map[string]T{}
	}
	return maps.Clone(m)
}

// put stores a record, and then keeps it in the map that of gives of a fresh Content.
func put[T any](ctx context.Context, r *Registry, records Records, name string, value T, of func(*Content) map[string]T) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, revision, err := records.Get(ctx, name)
	if err != nil {
		return err
	}
	revision, err = records.Put(ctx, name, data, revision)
	if err != nil {
		return err
	}
	if revision == 0 {
		return ErrConflict
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	of(&r.now)[name] = value
	return nil
}

func remove[T any](ctx context.Context, r *Registry, records Records, name string, of func(*Content) map[string]T) error {
	if err := records.Delete(ctx, name); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(of(&r.now), name)
	return nil
}

const (
	settle    = 200 * time.Millisecond // how long changes may follow one another before they are taken over together
	readAgain = time.Minute            // before what could not be read is read again
)

// Run takes over what others change, and calls changed where there is something new, or something else that cannot be read,
// until ctx ends.
func (r *Registry) Run(ctx context.Context, changed func(err error)) error {
	wake := make(chan struct{}, 1)
	var watches sync.WaitGroup
	var errs [3]error
	for i, records := range []Records{r.tenants, r.senders, r.pauses} {
		watches.Go(func() {
			errs[i] = records.Watch(ctx, func(string) {
				select {
				case wake <- struct{}{}:
				default: // one is due already
				}
			})
		})
	}
	var failed error
	for ctx.Err() == nil {
		var again <-chan time.Time
		if failed != nil {
			again = time.After(readAgain)
		}
		select {
		case <-ctx.Done():
			continue
		case <-again:
		case <-wake:
		}
		select {
		case <-ctx.Done():
			continue
		case <-time.After(settle):
		}
		select {
		case <-wake:
		default:
		}
		before := r.Content()
		err := r.Load(ctx)
		if ctx.Err() == nil && (err != nil && fmt.Sprint(err) != fmt.Sprint(failed) || !same(before, r.Content())) {
			changed(err)
		}
		failed = err
	}
	watches.Wait()
	return errors.Join(errs[:]...)
}

func same(a, b Content) bool {
	return maps.EqualFunc(a.Tenants, b.Tenants, maps.Equal[config.Fields, config.Fields]) &&
		maps.EqualFunc(a.Senders, b.Senders, maps.Equal[config.Fields, config.Fields]) &&
		maps.EqualFunc(a.Pauses, b.Pauses, func(x, y Pause) bool { return x.By == y.By && x.At.Equal(y.At) })
}
