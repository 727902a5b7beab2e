package login

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/access/peer"
	"relayd/pkg/admin/login/session"
	"relayd/pkg/admin/problem"
)

// peerOf returns the IP address a request comes from. What a proxy says about it is not looked at: anybody can say it.
func peerOf(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// identify finds out who asks: nil, nobody. Where ok is false the request was answered.
func (l *Logins) identify(w http.ResponseWriter, r *http.Request) (f *flight, ok bool) {
	in := l.force.Load()
	if given := r.Header.Values("Authorization"); len(given) > 0 {
		return l.byToken(w, r, given)
	}
	if c, err := r.Cookie(in.cookie); err == nil && c.Value != "" {
		return l.bySession(w, r, c.Value)
	}
	if !in.local {
		return nil, true
	}
	user, ok := localUser(r)
	if !ok {
		return nil, true
	}
	p := &access.Principal{Name: "local " + user, Role: access.Admin, Scopes: access.Admin.Scopes(), Peer: peerOf(r).String()}
	return &flight{principal: p, again: func(context.Context) (*access.Principal, error) {
		if !l.force.Load().local {
			return nil, nil
		}
		return p, nil
	}}, true
}

// localUser returns as whom the process runs that asks, where that is as the relay itself or as root, and no other party speaks
// through it. A browser runs as its user, and yet says what pages tell it to; it says where a request comes from, and never asks
// without User-Agent. A proxy says so by a header, of which there are more names than anybody could list, or speaks HTTP/1.0. So
// those headers alone are let pass that plain clients send. What forwards bytes cannot be told from what asks.
func localUser(r *http.Request) (string, bool) {
	for name := range r.Header {
		if !isPlain(name) {
			return "", false
		}
	}
	if strings.HasPrefix(r.UserAgent(), "Mozilla/") || !r.ProtoAtLeast(1, 1) || !isLoopback(hostOf(r.Host)) || !peerOf(r).IsLoopback() {
		return "", false
	}
	return peer.User(r.Context())
}

// isPlain reports whether a header, by its canonical name, is one that clients such as curl send of their own, and says nothing of
// another party. net/http has taken Host and Transfer-Encoding out.
func isPlain(name string) bool {
	switch name {
	case "User-Agent", "Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "Content-Length", "Connection", "Expect",
		"Transfer-Encoding", "Te":
		return true
	}
	return false
}

// byToken checks a bearer token (RFC 6750 section 2.1). A token that is right is taken, whatever else came from its address:
// behind a proxy all share one. An address that keeps failing is put off.
func (l *Logins) byToken(w http.ResponseWriter, r *http.Request, given []string) (*flight, bool) {
	from := peerOf(r)
	scheme, presented, _ := strings.Cut(given[0], " ")
	presented = strings.TrimSpace(presented)
	var found *access.Token
	valid := false
	if len(given) == 1 && strings.EqualFold(scheme, "Bearer") {
		found, valid = l.force.Load().tokens.Find(presented, time.Now())
	}
	if !valid && l.mustWait(w, r, "token") {
		problem.New(http.StatusTooManyRequests, "the token is not one of this relay's, and too many failed logins came from this address; "+
			"wait %s s before the next", w.Header().Get("Retry-After")).Write(w)
		return nil, false
	}
	if !valid {
		const header, text = `Bearer realm="relayd", error="invalid_token"`, "the token is not one of this relay's; admin.tokens lists them by name, `relayd token` makes one"
		reason, say := "unknown", text
		if found != nil {
			reason, say = "expired", "the token has expired; `relayd token` makes another"
		}
		l.guesses.Add(from)
		l.metrics.count("token", "refused")
		l.log.Warn("login refused", zap.String("method", "token"), zap.Stringer("peer", from), zap.String("reason", reason))
		w.Header().Set("WWW-Authenticate", header)
		problem.New(http.StatusUnauthorized, "%s", say).Write(w)
		return nil, false
	}
	l.metrics.count("token", "ok")
	who := func(t *access.Token) *access.Principal {
		p := t.Principal()
		p.Peer = from.String()
		return p
	}
	return &flight{principal: who(found), again: func(context.Context) (*access.Principal, error) {
		if t, ok := l.force.Load().tokens.Find(presented, time.Now()); ok {
			return who(t), nil
		}
		return nil, nil
	}}, true
}

// mustWait reports whether an address that has failed did so too often, and says until when in the answer's header.
func (l *Logins) mustWait(w http.ResponseWriter, r *http.Request, method string) bool {
	wait := l.guesses.Wait(peerOf(r))
	if wait <= 0 {
		return false
	}
	l.metrics.count(method, "limited")
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	return true
}

// bySession finds the session of a cookie. Where it cannot be looked for, nobody is told that they are logged out; the pages to
// log in anew remain.
func (l *Logins) bySession(w http.ResponseWriter, r *http.Request, cookie string) (*flight, bool) {
	who, err := l.loggedIn(r.Context(), cookie)
	judge := func(who *identity) *access.Principal {
		role := l.force.Load().role(who)
		if role == "" {
			return nil
		}
		return &access.Principal{Name: who.User, Role: role, Scopes: role.Scopes(), Session: hashName(cookie), Peer: peerOf(r).String()}
	}
	p := judge(who)
	switch {
	case err != nil && ours(r.URL.Path):
		return nil, true
	case err != nil:
		l.log.Error("session cannot be read", zap.Error(err))
		problem.New(http.StatusServiceUnavailable, "your session cannot be read now; try again, or log in anew at /login").Write(w)
		return nil, false
	case p == nil:
		return nil, true
	}
	return &flight{principal: p, again: func(ctx context.Context) (*access.Principal, error) {
		now, err := l.loggedIn(ctx, cookie)
		if err != nil {
			return judge(who), err // who it was cannot have changed, what they may can
		}
		return judge(now), nil
	}}, true
}

// loggedIn returns who has logged in with a cookie's value; nil: nobody.
func (l *Logins) loggedIn(ctx context.Context, cookie string) (*identity, error) {
	f := l.force.Load()
	ctx, err := f.manager.Load(ctx, cookie)
	if err != nil {
		return nil, err
	}
	return readIdentity(f.manager.GetString(ctx, identityKey)), nil
}

// role returns what somebody who is logged in may by now; empty: nothing, and so they are not.
func (f *force) role(who *identity) access.Role {
	switch {
	case who == nil:
	case who.Method == methodLink:
		return who.Role
	case who.Method == methodOIDC && f.oidc != nil && f.oidc.Issuer == who.Issuer:
		role, _ := f.oidc.role(&who.Claims)
		return role
	}
	return ""
}

// ours reports whether a path is answered by this package.
func ours(path string) bool {
	return path == Path || path == StartPath || path == CallbackPath || path == LogoutPath
}

// hashName is what a random value is stored under, and known by.
func hashName(value string) string {
	sum := sha256.Sum256([]byte(value))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// random returns 256 random bits, safe in URLs.
func random() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // crypto/rand never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// browser gives a browser nobody is logged in with an id of its own where a sign-in at Entra ID begins and ends: it has to come
// back to the browser it began in. Nothing is stored for it.
func (l *Logins) browser(ctx context.Context, w http.ResponseWriter, r *http.Request) context.Context {
	begins := strings.HasPrefix(r.URL.Path, "/consent/")
	if !begins && r.URL.Path != "/oauth/callback" {
		return ctx
	}
	f := l.force.Load()
	if c, err := r.Cookie(f.cookie + "-browser"); err == nil && len(c.Value) == len(random()) {
		return access.WithBrowser(ctx, hashName("browser "+c.Value))
	}
	if !begins || r.Method != http.MethodGet { // a browser that brings no cookie back takes none
		return ctx
	}
	value := random()
	f.setCookie(w, "-browser", value, session.Life)
	return access.WithBrowser(ctx, hashName("browser "+value))
}

// setCookie sets a cookie beside the session's; a life of 0 removes it.
func (f *force) setCookie(w http.ResponseWriter, suffix, value string, life time.Duration) {
	c := &http.Cookie{ //nolint:gosec // Secure wherever the relay is reached by https
		Name: f.cookie + suffix, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: f.base.Scheme == "https",
		MaxAge: int(life.Seconds()),
	}
	if life == 0 {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}
