package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Kind is the records of one kind. Names are of at most 1 KiB, records of 512 KiB.
type Kind struct {
	v    *Vault
	name string
}

// Kind returns the records of the kind of that name, small letters. The methods of a kind that cannot be fail.
func (v *Vault) Kind(name string) *Kind { return &Kind{v, name} }

// Get returns a record; nil data and revision 0 where there is none. Errors: ErrKey, ErrDamaged, ErrVersion, ErrUnavailable.
func (k *Kind) Get(ctx context.Context, name string) (data []byte, revision uint64, err error) {
	place, err := k.place(name)
	if err != nil {
		return nil, 0, err
	}
	sealed, revision, err := k.v.store().Get(ctx, place)
	if err != nil {
		return nil, 0, unavailable("read a record of kind "+k.name, err)
	}
	if revision == 0 {
		return nil, 0, nil
	}
	r, err := k.v.ring.Load().open(place, sealed)
	if err == nil && (r.name != name || r.kind != typeRecord) {
		err = ErrDamaged
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read a record of kind %s: %w", k.name, err)
	}
	return r.data, revision, nil
}

// Put stores a record durably in place of the one with that revision, 0: of none. It returns the new revision, or 0 and no
// error where another has been quicker. After an error it may be stored or not: Get tells.
func (k *Kind) Put(ctx context.Context, name string, data []byte, revision uint64) (uint64, error) {
	place, err := k.place(name)
	if err != nil {
		return 0, err
	}
	sealed, err := k.v.ring.Load().seal(place, typeRecord, name, data)
	if err != nil {
		return 0, err
	}
	store := k.v.store()
	next, err := store.Put(ctx, place, sealed, revision)
	if err != nil {
		// What fails on a server that was replaced meanwhile says nothing about the new one.
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && k.v.opts.Fault != nil && store == k.v.store() {
			k.v.opts.Fault(err)
		}
		return 0, unavailable("store a record of kind "+k.name, err)
	}
	return next, nil
}

// Delete removes a record, whatever its revision, and even where it cannot be opened. None is no error.
func (k *Kind) Delete(ctx context.Context, name string) error {
	place, err := k.place(name)
	if err != nil {
		return err
	}
	note, err := k.v.ring.Load().seal(place, typeNote, name, nil)
	if err != nil {
		return err
	}
	if err := k.v.store().Delete(ctx, place, note); err != nil {
		return unavailable("delete a record of kind "+k.name, err)
	}
	names := k.v.known(k.name)
	if _, listed := names[place]; listed { // what could not be removed but only blanked is still a place
		names = maps.Clone(names)
		delete(names, place)
		k.v.learn(k.name, names)
	}
	return nil
}

// Names lists all records that can be opened, in no order. Those that cannot were logged when the vault was opened.
func (k *Kind) Names(ctx context.Context) ([]string, error) {
	if !validKind(k.name) {
		return nil, errKind
	}
	store := k.v.store()
	places, _, err := store.Places(ctx, k.name)
	if err != nil {
		return nil, unavailable("list the records of kind "+k.name, err)
	}
	known := k.v.known(k.name)
	names := make(map[string]string, len(places))
	var mu sync.Mutex // guards names
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for _, place := range places {
		group.Go(func() error {
			name, ok := known[place]
			if !ok {
				var err error
				if name, ok, err = k.read(gctx, store, place); err != nil {
					return err
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if ok {
				names[place] = name
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	k.v.learn(k.name, names)
	return slices.Collect(maps.Values(names)), nil
}

// read returns the name of the record at place; not ok: there is none that can be opened.
func (k *Kind) read(ctx context.Context, store Store, place string) (name string, ok bool, err error) {
	sealed, revision, err := store.Get(ctx, place)
	switch {
	case errors.Is(err, ErrDamaged):
		return "", false, nil
	case err != nil:
		return "", false, unavailable("list the records of kind "+k.name, err)
	case revision == 0:
		return "", false, nil
	}
	name, ok = k.nameOf(&Change{Place: place, Sealed: sealed})
	return name, ok, nil
}

// known returns the names of a kind's records as Names found them last. It must not be changed.
func (v *Vault) known(kind string) map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.names[kind]
}

func (v *Vault) learn(kind string, names map[string]string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.names[kind] = names
}

// retryWatch is how long Watch waits before it asks a store again that ended the watch.
const retryWatch = time.Second

// Watch calls changed with the name of every record that was stored or deleted since the vault was opened, by whomever,
// and in order, until ctx ends. It outlives the store's connections; of a deletion that is more than an hour old when the
// store comes back, nothing is told. changed must return soon. The error says that the kind cannot be.
func (k *Kind) Watch(ctx context.Context, changed func(name string)) error {
	if !validKind(k.name) {
		return errKind
	}
	after := k.v.opened
	for ctx.Err() == nil {
		at := k.v.attached()
		// Its error is the end of the connection, or of ctx; the next round finds out.
		_ = at.store.Watch(ctx, k.name, after, func(c Change) {
			after = c.Revision
			if name, ok := k.nameOf(&c); ok {
				changed(name)
			}
		})
		timer := time.NewTimer(retryWatch)
		select {
		case <-ctx.Done():
		case <-at.replaced:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// nameOf returns the name of the record that changed; it is bound to its place.
func (k *Kind) nameOf(c *Change) (string, bool) {
	r, err := k.v.ring.Load().open(c.Place, c.Sealed)
	return r.name, err == nil
}

func (k *Kind) place(name string) (string, error) {
	if !validKind(k.name) {
		return "", errKind
	}
	return k.v.place(k.name, name), nil
}
