// Package vault keeps secrets: refresh tokens, client secrets entered on the page, sessions.
//
// A record has a kind and a name. What is stored of it is AES-256-GCM ciphertext under a key of its own, derived from the
// master key (see seal.go), and a place: its kind and a keyed hash of its name. A copy of the data directory or of the
// stream thus shows how many records of which kind there are, how long, and when each was written; nothing else. It
// is not shown that a record is another's put under its name, or altered by a bit: both are [ErrDamaged]. Who can
// write to the store can, however, put back an older version of a record, or remove it: that is not detected.
//
// What survives: a Put or Delete that returned nil is on the disk. One that returned an error, or never returned, may have
// happened or not. A deleted record does not come back, whatever is killed when. Old versions and deleted records are no
// longer served, but their ciphertext stays in the server's files until it compacts them: after a key has leaked, renew
// the secrets too.
//
// The names' hashes use a random secret that is itself a record, of kind index. Where that one is lost, names are
// hashed anew when the vault is opened.
package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// What the vault's methods may answer. All else is temporary.
var (
	// ErrKey is of a record sealed with a key that is not among those the vault has.
	ErrKey = errors.New("sealed with a key that is not here")
	// ErrDamaged is of a record that is not what was stored under that name.
	ErrDamaged = errors.New("damaged record")
	// ErrVersion is of a record a newer relayd wrote.
	ErrVersion = errors.New("record of a newer version of relayd")
	// ErrUnavailable says that the store cannot be asked now; it comes back by itself.
	ErrUnavailable = errors.New("the vault's storage is not available now")
)

// LostError says that no record can be opened with the keys there are. It is an [ErrKey].
type LostError struct {
	Lost map[string]int // records by kind
}

// Error says what is lost and how to go on.
func (e *LostError) Error() string {
	return fmt.Sprintf("the vault cannot be opened: what is in it (%s) is sealed with a key that is not here; put that key back, "+
		"or name it in vault.previous_keys; if it is lost, `relayd vault reset` forgets these records, and what they held must be entered again",
		describe(e.Lost))
}

// Unwrap returns ErrKey.
func (e *LostError) Unwrap() error { return ErrKey }

// describe says "2 grant, 1 tenant".
func describe(byKind map[string]int) string {
	parts := make([]string, 0, len(byKind))
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		parts = append(parts, fmt.Sprintf("%d %s", byKind[kind], kind))
	}
	return strings.Join(parts, ", ")
}

// Options of a Vault. Store, Key and Logger are required.
type Options struct {
	Store    Store
	Key      func() ([]byte, error)   // the master key, at least 32 octets of anything; an end of line after it does not count
	Previous []func() ([]byte, error) // former keys, which still open but no longer seal
	// Fault is called, from any goroutine, when a Put has missed its deadline twice on the Store that is attached: after a
	// write error the server refuses all until it is opened anew. nil: nobody is told.
	Fault  func(err error)
	Logger *zap.Logger
}

// Vault is an open vault. All its methods may be called at once, and by several vaults on one store.
type Vault struct {
	opts    Options // Key and Previous are guarded by changes
	log     *zap.Logger
	ring    atomic.Pointer[keyring]
	opened  uint64     // position in the store's changes when it was
	changes sync.Mutex // held while many records or the keys change

	mu    sync.Mutex // guards what follows
	at    *attachment
	index []byte                       // secret of the names' hashes
	names map[string]map[string]string // of records, by kind and place, which stays theirs
}

// attachment is one life of the store.
type attachment struct {
	store    Store
	replaced chan struct{} // closed once there is another
}

// Open reads all records and makes ready for new ones. It fails with a [LostError] where there are records and none can be
// opened. Some that cannot are logged, and their names answer [ErrKey] or [ErrDamaged].
func Open(ctx context.Context, opts Options) (*Vault, error) {
	v, err := prepare(opts)
	if err != nil {
		return nil, err
	}
	s, err := v.survey(ctx, v.ring.Load())
	if err != nil {
		return nil, err
	}
	if len(s.found) == 0 && len(s.lost) > 0 && s.index == nil {
		return nil, &LostError{Lost: s.lost}
	}
	if len(s.lost) > 0 {
		v.log.Warn("vault: records are sealed with a key that is not here; put it into vault.previous_keys, or `relayd vault reset` forgets them",
			zap.String("records", describe(s.lost)))
	}
	if len(s.damaged) > 0 {
		v.log.Warn("vault: records are damaged; what they held must be entered again, and `relayd vault reset` forgets them",
			zap.String("records", describe(s.damaged)))
	}
	v.opened = s.position
	if err := v.settleIndex(ctx, s); err != nil {
		return nil, err
	}
	return v, nil
}

// prepare makes a vault that has not read anything yet.
func prepare(opts Options) (*Vault, error) {
	v := &Vault{opts: opts, log: opts.Logger, names: map[string]map[string]string{}}
	v.at = &attachment{store: opts.Store, replaced: make(chan struct{})}
	ring, err := v.readKeys()
	if err != nil {
		return nil, err
	}
	v.ring.Store(ring)
	return v, nil
}

// Attach replaces the store after its server was opened anew, which ended the connections of the one before. Until then, all
// methods answer with ErrUnavailable.
func (v *Vault) Attach(store Store) {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.at.replaced)
	v.at = &attachment{store: store, replaced: make(chan struct{})}
}

func (v *Vault) attached() *attachment {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.at
}

func (v *Vault) store() Store { return v.attached().store }

// survey is what opening every record has shown.
type survey struct {
	found    []entry        // all that can be opened, without the index
	lost     map[string]int // by kind: sealed with a key that is not here
	damaged  map[string]int // by kind
	bad      []string       // places of both
	index    []byte         // nil: there is none that can be opened
	position uint64         // in the store's changes, before
	indexRev uint64
}

// entry is a record that was opened.
type entry struct {
	place    string
	name     string
	revision uint64
	key      keyID // it is sealed with
}

// readers is how many records are read at once.
const readers = 8

// survey opens every record with the given keys.
func (v *Vault) survey(ctx context.Context, ring *keyring) (*survey, error) {
	store := v.store()
	places, position, err := store.Places(ctx, "")
	if err != nil {
		return nil, unavailable("list the vault's records", err)
	}
	s := &survey{position: position, lost: map[string]int{}, damaged: map[string]int{}}
	var mu sync.Mutex // guards s
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for _, place := range places {
		group.Go(func() error {
			sealed, revision, err := store.Get(gctx, place)
			if err != nil && !errors.Is(err, ErrDamaged) {
				return unavailable("read the vault's records", err)
			}
			if err == nil && revision == 0 {
				return nil // removed meanwhile
			}
			var r record
			if err == nil {
				r, err = ring.open(place, sealed)
			}
			mu.Lock()
			defer mu.Unlock()
			return s.add(place, revision, &r, err)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return s, nil
}

// add counts one record. It fails for one of a newer version: an older relayd must leave that vault alone.
func (s *survey) add(place string, revision uint64, r *record, err error) error {
	kind, _, _ := strings.Cut(place, ".")
	switch {
	case place == indexPlace:
		s.indexRev = revision
		if err == nil && len(r.data) == indexBytes {
			s.index = r.data
		}
	case err == nil:
		s.found = append(s.found, entry{place, r.name, revision, r.key})
		return nil
	case errors.Is(err, ErrKey):
		s.lost[kind]++
		s.bad = append(s.bad, place)
	case errors.Is(err, ErrDamaged):
		s.damaged[kind]++
		s.bad = append(s.bad, place)
	}
	if errors.Is(err, ErrVersion) {
		return fmt.Errorf("open the vault: %w: run that version, or restore a backup", err)
	}
	return nil
}

// settleIndex takes over the secret of the names' hashes, or makes a new one, and moves records that lie where another
// secret had put them.
func (v *Vault) settleIndex(ctx context.Context, s *survey) error {
	store := v.store()
	for try := 0; s.index == nil; try++ {
		if try == maxPasses {
			return unavailable("write the vault's index", errors.New("it changes all the while"))
		}
		index := make([]byte, indexBytes)
		rand.Read(index) // never fails
		sealed, err := v.ring.Load().seal(indexPlace, typeRecord, "", index)
		if err != nil {
			return err
		}
		revision, err := store.Put(ctx, indexPlace, sealed, s.indexRev)
		if err != nil {
			return unavailable("write the vault's index", err)
		}
		if revision != 0 {
			s.index = index
			break
		}
		if s, err = v.survey(ctx, v.ring.Load()); err != nil { // another vault made it at the same moment
			return err
		}
	}
	v.mu.Lock()
	v.index = s.index
	v.mu.Unlock()
	moved := 0
	for i := range s.found {
		e := &s.found[i]
		kind, _, _ := strings.Cut(e.place, ".")
		place := v.place(kind, e.name)
		if place == e.place {
			continue
		}
		if err := v.move(ctx, e, place); err != nil {
			return err
		}
		moved++
	}
	if moved > 0 {
		v.log.Warn("vault: the index of names was lost and has been made anew", zap.Int("records", moved))
	}
	return nil
}

// move puts a record where the present index has it, unless a newer one is there, and then removes it from where it was.
func (v *Vault) move(ctx context.Context, e *entry, place string) error {
	store, ring := v.store(), v.ring.Load()
	sealed, revision, err := store.Get(ctx, e.place)
	if err != nil {
		return unavailable("move a record of the vault", err)
	}
	if revision == 0 {
		return nil
	}
	r, err := ring.open(e.place, sealed)
	if err != nil {
		return err
	}
	if sealed, err = ring.seal(place, typeRecord, r.name, r.data); err != nil {
		return err
	}
	if _, err = store.Put(ctx, place, sealed, 0); err == nil {
		err = store.Delete(ctx, e.place, nil)
	}
	if err != nil {
		return unavailable("move a record of the vault", err)
	}
	return nil
}

// maxPasses bounds Rotate against other vaults that seal with a former key all the while.
const maxPasses = 5

// Rotate reads the keys again and seals all records that can be opened with the current one; n says how many. Once it
// returns nil, previous keys are needed no more, except for records that could not be opened before either. After an error
// some records are sealed with the old key and some with the new: leave both in place and call it again.
func (v *Vault) Rotate(ctx context.Context) (n int, err error) {
	v.changes.Lock()
	defer v.changes.Unlock()
	if err := v.reload(ctx); err != nil {
		return 0, err
	}
	ring := v.ring.Load()
	if err := v.resealIndex(ctx, ring); err != nil { // first: from now on the current key alone opens the vault
		return 0, err
	}
	for range maxPasses {
		s, err := v.survey(ctx, ring)
		if err != nil {
			return n, err
		}
		left := 0
		for i := range s.found {
			if s.found[i].key == ring.current.id {
				continue
			}
			left++
			done, err := v.reseal(ctx, ring, s.found[i].place)
			if err != nil {
				return n, err
			}
			if done {
				n++
			}
		}
		if left == 0 {
			v.log.Info("vault: all records are sealed with the current key", zap.Int("records", n))
			return n, nil
		}
	}
	return n, fmt.Errorf("rotate the vault's key: another relayd still seals with the former one; give it the new key and try again")
}

func (v *Vault) resealIndex(ctx context.Context, ring *keyring) error {
	for range maxPasses {
		done, err := v.reseal(ctx, ring, indexPlace)
		if done || err != nil {
			return err
		}
	}
	return unavailable("rotate the vault's key", errors.New("another relayd does the same at this moment"))
}

// reseal seals one record with the current key. It is not done where the record changed meanwhile.
func (v *Vault) reseal(ctx context.Context, ring *keyring, place string) (done bool, err error) {
	store := v.store()
	sealed, revision, err := store.Get(ctx, place)
	if err != nil {
		return false, unavailable("seal a record anew", err)
	}
	if revision == 0 {
		return false, nil
	}
	r, err := ring.open(place, sealed)
	if err != nil {
		return false, err
	}
	if r.key == ring.current.id {
		return true, nil
	}
	if sealed, err = ring.seal(place, typeRecord, r.name, r.data); err != nil {
		return false, err
	}
	if revision, err = store.Put(ctx, place, sealed, revision); err != nil {
		return false, unavailable("seal a record anew", err)
	}
	return revision != 0, nil
}

// Reload reads the keys again, for a configuration that has changed. It fails, and all stays as it was, where records that
// can be opened now could not be any more.
func (v *Vault) Reload(ctx context.Context) error {
	v.changes.Lock()
	defer v.changes.Unlock()
	return v.reload(ctx)
}

// Configure has the vault use other keys, as in [Options], on the terms of Reload: on an error all stays as it was. Rotate
// then seals with the new one what there is.
func (v *Vault) Configure(ctx context.Context, key func() ([]byte, error), previous []func() ([]byte, error)) error {
	v.changes.Lock()
	defer v.changes.Unlock()
	was := v.opts
	v.opts.Key, v.opts.Previous = key, previous
	if err := v.reload(ctx); err != nil {
		v.opts = was
		return err
	}
	return nil
}

// reload is Reload for who holds changes.
func (v *Vault) reload(ctx context.Context) error {
	ring, err := v.readKeys()
	if err != nil {
		return err
	}
	old := v.ring.Load()
	if old.within(ring) {
		v.ring.Store(ring)
		return nil
	}
	s, err := v.survey(ctx, old)
	if err != nil {
		return err
	}
	lost := map[string]int{}
	for i := range s.found {
		if ring.all[s.found[i].key] == nil {
			kind, _, _ := strings.Cut(s.found[i].place, ".")
			lost[kind]++
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("the vault keeps its former keys: without them %s could not be opened any more; "+
			"name them in vault.previous_keys and run `relayd vault rotate` first: %w", describe(lost), ErrKey)
	}
	if v.index != nil { // sealed with a key that is about to go
		sealed, revision, err := v.store().Get(ctx, indexPlace)
		if err != nil {
			return unavailable("read the vault's index", err)
		}
		if r, err := old.open(indexPlace, sealed); revision != 0 && err == nil && ring.all[r.key] == nil {
			if _, err := v.reseal(ctx, ring.with(old), indexPlace); err != nil {
				return err
			}
		}
	}
	v.ring.Store(ring)
	return nil
}

// Reset forgets all records that cannot be opened with the keys there are, and returns how many of which kind.
func (v *Vault) Reset(ctx context.Context) (map[string]int, error) {
	v.changes.Lock()
	defer v.changes.Unlock()
	s, err := v.survey(ctx, v.ring.Load())
	if err != nil {
		return nil, err
	}
	return v.forget(ctx, s)
}

// Reset is [Vault.Reset] for a vault that cannot be opened. [Open] succeeds after it.
func Reset(ctx context.Context, opts Options) (map[string]int, error) {
	v, err := prepare(opts)
	if err != nil {
		return nil, err
	}
	return v.Reset(ctx)
}

func (v *Vault) forget(ctx context.Context, s *survey) (map[string]int, error) {
	n, store := map[string]int{}, v.store()
	for _, place := range s.bad {
		if err := store.Delete(ctx, place, nil); err != nil {
			return n, unavailable("forget a record of the vault", err)
		}
		kind, _, _ := strings.Cut(place, ".")
		n[kind]++
	}
	if len(n) > 0 {
		v.log.Warn("vault: forgot records that could not be opened", zap.String("records", describe(n)))
	}
	return n, nil
}

// unavailable wraps a failure of the store.
func unavailable(act string, err error) error {
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%s: %w", act, err)
	}
	return fmt.Errorf("%s: %w: %w", act, ErrUnavailable, err)
}
