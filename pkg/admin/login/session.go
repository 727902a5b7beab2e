package login

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/login/session"
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
	err := l.store.Each(ctx, func(r session.Stored) {
		who := readIdentity(r.Values[identityKey])
		if role := f.role(who); role != "" {
			list = append(list, access.Session{
				ID: r.Name, User: who.User, Role: role, Method: who.Method, Peer: who.Peer, Created: who.Created, Seen: r.Seen, Expires: r.Expires,
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
	err := l.store.Each(ctx, func(r session.Stored) {
		if who := readIdentity(r.Values[identityKey]); who != nil && fits(r.Name, who) {
			ending[r.Name] = who.User
		}
	})
	var ended []string
	defer func() { l.recheck(ctx, ended...) }()
	for name, user := range ending {
		if err := l.note(ctx, console.Entry{What: "session.end", On: user}); err != nil {
			return len(ended), err
		}
		if err := l.store.DeleteCtx(ctx, name); err != nil {
			return len(ended), err
		}
		ended = append(ended, name)
	}
	return len(ended), err
}
