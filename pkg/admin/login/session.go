package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/alexedwards/scs/v2"
	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
)

// identity is who has logged in, and how.
type identity struct {
	Method  string      `json:"method"`
	User    string      `json:"user"` // as it is shown
	Role    access.Role `json:"role,omitempty"`
	Issuer  string      `json:"issuer,omitempty"`
	Claims  claims      `json:"claims,omitzero"` // what roles are judged by, from the provider
	Peer    string      `json:"peer"`
	Created time.Time   `json:"created"`
}

const (
	methodLink  = "link"
	methodOIDC  = "oidc"
	identityKey = "identity" // in the session
)

// readIdentity reads an identity; nil: there is none.
func readIdentity(text string) *identity {
	var who identity
	if text == "" || json.Unmarshal([]byte(text), &who) != nil {
		return nil
	}
	return &who
}

// newManager returns a session manager. It reads and makes sessions; idle ones are the store's to end, since the manager would
// write at each request to know of them.
func newManager(s *store, cookie string, secure bool) *scs.SessionManager {
	return &scs.SessionManager{ // scs.New would begin with a store of its own, and a goroutine that never ends
		Store: s, Codec: codec{}, HashTokenInStore: true, Lifetime: sessionLife,
		Cookie: scs.SessionCookie{Name: cookie, Secure: secure, HttpOnly: true, SameSite: http.SameSiteLaxMode, Path: "/", Persist: true},
	}
}

// codec writes a session as JSON; all its values are strings.
type codec struct{}

type session struct {
	Deadline time.Time         `json:"deadline"`
	Values   map[string]string `json:"values"`
}

// Encode implements scs.Codec.
func (codec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	s := session{deadline, map[string]string{}}
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
	var s session
	if err := json.Unmarshal(data, &s); err != nil {
		return time.Time{}, nil, fmt.Errorf("read a session: %w", err)
	}
	values := make(map[string]any, len(s.Values))
	for key, text := range s.Values {
		values[key] = text
	}
	return s.Deadline, values, nil
}

// store is the scs.Store of sessions in Records.
type store struct {
	records Records
	log     *zap.Logger
}

type record struct {
	V       int             `json:"v"`
	Expires time.Time       `json:"expires"` // whether used or not
	Seen    time.Time       `json:"seen"`
	Session json.RawMessage `json:"session"`
}

func (r *record) over(now time.Time) bool {
	return r.V != 1 || !now.Before(r.Expires) || now.Sub(r.Seen) >= idleLife
}

// get returns a session that is not over; nil: there is none of that name.
func (s *store) get(ctx context.Context, name string) (*record, uint64, error) {
	data, revision, err := s.records.Get(ctx, name)
	if err != nil {
		return nil, 0, fmt.Errorf("read a session: %w", err)
	}
	if revision == 0 {
		return nil, 0, nil
	}
	r := &record{}
	if json.Unmarshal(data, r) == nil && !r.over(time.Now()) {
		return r, revision, nil
	}
	return nil, 0, s.DeleteCtx(ctx, name)
}

// FindCtx implements scs.CtxStore, and notes that the session is used.
func (s *store) FindCtx(ctx context.Context, name string) ([]byte, bool, error) {
	r, revision, err := s.get(ctx, name)
	if err != nil || r == nil {
		return nil, false, err
	}
	if now := time.Now(); now.Sub(r.Seen) >= touchEvery {
		r.Seen = now
		data, err := json.Marshal(r)
		if err == nil {
			_, err = s.records.Put(ctx, name, data, revision) // whoever was quicker has noted it, or ended it
		}
		if err != nil {
			s.log.Warn("use of a session not noted", zap.Error(err))
		}
	}
	return r.Session, true, nil
}

// CommitCtx implements scs.CtxStore. Sessions are made whole and never changed, so that none comes back that was ended.
func (s *store) CommitCtx(ctx context.Context, name string, data []byte, expires time.Time) error {
	text, err := json.Marshal(record{V: 1, Expires: expires, Seen: time.Now(), Session: data})
	if err != nil {
		return fmt.Errorf("write a session: %w", err)
	}
	revision, err := s.records.Put(ctx, name, text, 0)
	if err == nil && revision == 0 {
		err = errors.New("there is one of that name")
	}
	if err != nil {
		return fmt.Errorf("write a session: %w", err)
	}
	return nil
}

// DeleteCtx implements scs.CtxStore.
func (s *store) DeleteCtx(ctx context.Context, name string) error {
	if err := s.records.Delete(ctx, name); err != nil {
		return fmt.Errorf("end a session: %w", err)
	}
	return nil
}

// Find implements scs.Store.
func (s *store) Find(name string) ([]byte, bool, error) { return s.FindCtx(context.Background(), name) }

// Commit implements scs.Store.
func (s *store) Commit(name string, data []byte, expires time.Time) error {
	return s.CommitCtx(context.Background(), name, data, expires)
}

// Delete implements scs.Store.
func (s *store) Delete(name string) error { return s.DeleteCtx(context.Background(), name) }

// each reads all sessions that are not over. One that cannot be read keeps no other back.
func (s *store) each(ctx context.Context, take func(name string, r *record, who *identity)) error {
	names, err := s.records.Names(ctx)
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
		var in session
		if err := json.Unmarshal(r.Session, &in); err != nil {
			errs = append(errs, fmt.Errorf("read a session: %w", err))
		} else if who := readIdentity(in.Values[identityKey]); who != nil {
			take(name, r, who)
		}
	}
	return errors.Join(errs...)
}

// sweep removes what is over.
func (s *store) sweep(ctx context.Context) error {
	return s.each(ctx, func(string, *record, *identity) {})
}

// begin logs a browser in: with a new session, whatever it had before, so that nobody knows the cookie beforehand.
func (l *Logins) begin(w http.ResponseWriter, r *http.Request, who *identity) error {
	f := l.force.Load()
	who.Peer, who.Created = peerOf(r).String(), time.Now().UTC()
	text, err := json.Marshal(who)
	if err != nil {
		return fmt.Errorf("write a session: %w", err)
	}
	if c, err := r.Cookie(f.cookie); err == nil && c.Value != "" {
		if err := l.store.DeleteCtx(r.Context(), hashName(c.Value)); err != nil {
			return err
		}
	}
	ctx, err := f.manager.Load(r.Context(), "")
	if err != nil {
		return err
	}
	f.manager.Put(ctx, identityKey, string(text))
	token, expires, err := f.manager.Commit(ctx)
	if err != nil {
		return err
	}
	f.manager.WriteSessionCookie(ctx, w, token, expires)
	l.metrics.count(who.Method, "ok")
	l.log.Info("logged in", zap.String("method", who.Method), zap.String("user", who.User), zap.String("peer", who.Peer))
	entry := console.Entry{Who: who.User, Peer: who.Peer, What: "session.begin", On: who.User, After: who.Method + " " + string(f.role(who))}
	if err := l.note(r.Context(), entry); err != nil {
		l.log.Error("login not recorded", zap.Error(err)) // nothing was changed yet, and nothing can be while that is so
	}
	return nil
}

// Sessions implements access.Sessions: who is logged in, the latest first.
func (l *Logins) Sessions(ctx context.Context) ([]access.Session, error) {
	f := l.force.Load()
	list := []access.Session{}
	err := l.store.each(ctx, func(name string, r *record, who *identity) {
		if role := f.role(who); role != "" {
			list = append(list, access.Session{
				ID: name, User: who.User, Role: role, Method: who.Method, Peer: who.Peer, Created: who.Created, Seen: r.Seen, Expires: r.Expires,
			})
		}
	})
	slices.SortFunc(list, func(a, b access.Session) int { return b.Created.Compare(a.Created) })
	return list, err
}

// EndSession implements access.Sessions.
func (l *Logins) EndSession(ctx context.Context, id string) error {
	n, err := l.end(ctx, func(name string, _ *identity) bool { return name == id })
	if err == nil && n == 0 {
		err = l.store.DeleteCtx(ctx, id) // one that cannot be read
	}
	return err
}

// EndSessions implements access.Sessions.
func (l *Logins) EndSessions(ctx context.Context, user string) (int, error) {
	return l.end(ctx, func(_ string, who *identity) bool { return who.User == user })
}

// end ends the sessions that fit, after it has noted so.
func (l *Logins) end(ctx context.Context, fits func(name string, who *identity) bool) (int, error) {
	ending := map[string]string{}
	err := l.store.each(ctx, func(name string, _ *record, who *identity) {
		if fits(name, who) {
			ending[name] = who.User
		}
	})
	defer l.recheck(ctx)
	n := 0
	for name, user := range ending {
		if err := l.note(ctx, console.Entry{What: "session.end", On: user}); err != nil {
			return n, err
		}
		if err := l.store.DeleteCtx(ctx, name); err != nil {
			return n, err
		}
		n++
	}
	return n, err
}
