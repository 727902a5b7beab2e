// Package session keeps the sessions of browsers as records, under the hash of what the browser holds.
//
// A session is there when it was made, and gone when its deletion returns; it is never changed, so none comes back that was
// ended. When it was last used is noted every few minutes: after a crash it may seem to have been idle for that much longer.
package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/alexedwards/scs/v2"
	"go.uber.org/zap"
)

// The life of a session.
const (
	IdleLife   = 8 * time.Hour      // of one that is not used
	Life       = 7 * 24 * time.Hour // of one that is
	touchEvery = 5 * time.Minute    // how exact it is known when one was used; each time is a synced write
)

// Records is the encrypted, shared store of records of one kind. A revision names a record's version.
type Records interface {
	// Get returns a record; nil data and revision 0 where there is none.
	Get(ctx context.Context, name string) (data []byte, revision uint64, err error)
	// Put stores a record durably in place of the one with that revision, 0: of none. It returns the new revision, or 0 and no
	// error where another has been quicker.
	Put(ctx context.Context, name string, data []byte, revision uint64) (uint64, error)
	// Delete removes a record, whatever its revision. None is no error.
	Delete(ctx context.Context, name string) error
	// Names lists all records.
	Names(ctx context.Context) ([]string, error)
}

// NewManager returns a session manager. It reads and makes sessions; idle ones are the store's to end, since the manager would
// write at each request to know of them.
func NewManager(s *Store, cookie string, secure bool) *scs.SessionManager {
	return &scs.SessionManager{ // scs.New would begin with a store of its own, and a goroutine that never ends
		Store: s, Codec: codec{}, HashTokenInStore: true, Lifetime: Life,
		Cookie: scs.SessionCookie{Name: cookie, Secure: secure, HttpOnly: true, SameSite: http.SameSiteLaxMode, Path: "/", Persist: true},
	}
}

// codec writes a session as JSON; all its values are strings.
type codec struct{}

type content struct {
	Deadline time.Time         `json:"deadline"`
	Values   map[string]string `json:"values"`
}

// Encode implements scs.Codec.
func (codec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	s := content{deadline, map[string]string{}}
	for key, value := range values {
		text, ok := value.(string)
		if !ok {
			return nil, fmt.Errorf("session value %q is no string", key)
		}
		s.Values[key] = text
	}
	return json.Marshal(s)
}

// Decode implements scs.Codec.
func (codec) Decode(data []byte) (time.Time, map[string]any, error) {
	var s content
	if err := json.Unmarshal(data, &s); err != nil {
		return time.Time{}, nil, fmt.Errorf("read a session: %w", err)
	}
	values := make(map[string]any, len(s.Values))
	for key, text := range s.Values {
		values[key] = text
	}
	return s.Deadline, values, nil
}

// Store is the scs.Store of sessions in Records.
type Store struct {
	Records Records
	Logger  *zap.Logger
}

type record struct {
	V       int             `json:"v"`
	Expires time.Time       `json:"expires"` // whether used or not
	Seen    time.Time       `json:"seen"`
	Session json.RawMessage `json:"session"`
}

// version is that of records written here.
const version = 1

func (r *record) over(now time.Time) bool {
	return r.V != version || !now.Before(r.Expires) || now.Sub(r.Seen) >= IdleLife
}

// get returns a session that is not over; nil: there is none of that name that can be read here.
func (s *Store) get(ctx context.Context, name string) (*record, uint64, error) {
	data, revision, err := s.Records.Get(ctx, name)
	if err != nil {
		return nil, 0, fmt.Errorf("read a session: %w", err)
	}
	if revision == 0 {
		return nil, 0, nil
	}
	var newer struct {
		V int `json:"v"`
	}
	if json.Unmarshal(data, &newer) == nil && newer.V > version {
		return nil, 0, nil // of a later relayd, which may come back, and whose sessions go on then
	}
	r := &record{}
	if json.Unmarshal(data, r) == nil && !r.over(time.Now()) {
		return r, revision, nil
	}
	return nil, 0, s.DeleteCtx(ctx, name)
}

// FindCtx implements scs.CtxStore, and notes that the session is used.
func (s *Store) FindCtx(ctx context.Context, name string) ([]byte, bool, error) {
	r, revision, err := s.get(ctx, name)
	if err != nil || r == nil {
		return nil, false, err
	}
	if now := time.Now(); now.Sub(r.Seen) >= touchEvery {
		r.Seen = now
		data, err := json.Marshal(r)
		if err == nil {
			_, err = s.Records.Put(ctx, name, data, revision) // whoever was quicker has noted it, or ended it
		}
		if err != nil {
			s.Logger.Warn("use of a session not noted", zap.Error(err))
		}
	}
	return r.Session, true, nil
}

// CommitCtx implements scs.CtxStore. Sessions are made whole and never changed, so that none comes back that was ended.
func (s *Store) CommitCtx(ctx context.Context, name string, data []byte, expires time.Time) error {
	text, err := json.Marshal(record{V: version, Expires: expires, Seen: time.Now(), Session: data})
	if err != nil {
		return fmt.Errorf("write a session: %w", err)
	}
	revision, err := s.Records.Put(ctx, name, text, 0)
	if err == nil && revision == 0 {
		err = errors.New("there is one of that name")
	}
	if err != nil {
		return fmt.Errorf("write a session: %w", err)
	}
	return nil
}

// DeleteCtx implements scs.CtxStore.
func (s *Store) DeleteCtx(ctx context.Context, name string) error {
	if err := s.Records.Delete(ctx, name); err != nil {
		return fmt.Errorf("end a session: %w", err)
	}
	return nil
}

// Find implements scs.Store.
func (s *Store) Find(name string) ([]byte, bool, error) { return s.FindCtx(context.Background(), name) }

// Commit implements scs.Store.
func (s *Store) Commit(name string, data []byte, expires time.Time) error {
	return s.CommitCtx(context.Background(), name, data, expires)
}

// Delete implements scs.Store.
func (s *Store) Delete(name string) error { return s.DeleteCtx(context.Background(), name) }

// Stored is a session as it is stored.
type Stored struct {
	Name    string    // the hash of what the browser holds
	Seen    time.Time // last used, to within five minutes
	Expires time.Time // whether used or not
	Values  map[string]string
}

// Each reads all sessions that are not over. One that cannot be read keeps no other back.
func (s *Store) Each(ctx context.Context, take func(Stored)) error {
	names, err := s.Records.Names(ctx)
	if err != nil {
		return fmt.Errorf("list sessions: %w", err)
	}
	var errs []error
	for _, name := range names {
		r, _, err := s.get(ctx, name)
		if err != nil {
			errs = append(errs, err)
		}
		if r == nil {
			continue
		}
		var in content
		if err := json.Unmarshal(r.Session, &in); err != nil {
			errs = append(errs, fmt.Errorf("read a session: %w", err))
		} else {
			take(Stored{Name: name, Seen: r.Seen, Expires: r.Expires, Values: in.Values})
		}
	}
	return errors.Join(errs...)
}

// Sweep removes what is over.
func (s *Store) Sweep(ctx context.Context) error {
	return s.Each(ctx, func(Stored) {})
}
