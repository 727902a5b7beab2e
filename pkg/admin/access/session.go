package access

import (
	"context"
	"time"
)

// Session is a browser that is logged in.
type Session struct {
	ID      string    `json:"id" doc:"not what its cookie holds"`
	User    string    `json:"user"`
	Role    Role      `json:"role" enum:"viewer,operator,admin"`
	Method  string    `json:"method" enum:"link,oidc"`
	Peer    string    `json:"peer" doc:"IP address it logged in from"`
	Created time.Time `json:"created"`
	Seen    time.Time `json:"seen" doc:"last used, to within five minutes"`
	Expires time.Time `json:"expires" doc:"whether used or not"`
}

// Sessions shows who is logged in, and ends it. Whoever calls it has checked that the caller may.
type Sessions interface {
	Sessions(ctx context.Context) ([]Session, error)
	// EndSession logs one browser out, at once. One that is not there is no error.
	EndSession(ctx context.Context, id string) error
	// EndSessions logs all browsers of a user out and returns how many there were.
	EndSessions(ctx context.Context, user string) (int, error)
}

// Links makes one-time login links. Whoever calls it has checked that the caller may.
type Links interface {
	// NewLink returns the address that logs one browser in, once, until expires. by is who asked for it.
	NewLink(ctx context.Context, role Role, by string) (url string, expires time.Time, err error)
}

type browserKey struct{}

// WithBrowser returns a context that carries the id of a browser nobody is logged in with.
func WithBrowser(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, browserKey{}, id)
}

// Browser returns the id of the browser that asks, to bind a sign-in at the provider to: its session where somebody is logged
// in, else its own on the paths where it needs one (/consent/…, /oauth/callback). Empty: it is no browser, or it takes no cookies.
func Browser(ctx context.Context) string {
	if p := From(ctx); p != nil {
		return p.Session
	}
	id, _ := ctx.Value(browserKey{}).(string)
	return id
}
