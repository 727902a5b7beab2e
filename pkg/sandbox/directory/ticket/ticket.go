// Package ticket keeps what Entra ID's endpoints hand out and take back: authorization codes, refresh tokens, device codes
// and browser sessions. Each is an opaque random string; what it stands for is known here only, in memory.
package ticket

import (
	"crypto/rand"
	"encoding/base64"
	"maps"
	"sync"
	"time"

	"relayd/pkg/sandbox/directory/refusal"
)

// Subject is who granted what to whom.
type Subject struct {
	Tenant   string // id
	App      string // client id
	User     string // mail
	ObjectID string // of the user
	Epoch    int    // of the user when it was granted; see directory.Directory.Epoch
	Scope    string // as it was asked for
}

// Code is what an authorization code stands for.
type Code struct {
	Subject
	RedirectURI string
	Challenge   string // of PKCE; "" is none
	Method      string // S256; else the challenge is the verifier itself
	Nonce       string
	expires     time.Time
	used        bool
}

// The lives of things handed out.
const (
	CodeLife    = 10 * time.Minute
	DeviceLife  = 15 * time.Minute
	RefreshLife = 90 * 24 * time.Hour
	sessionLife = 24 * time.Hour
	remembered  = time.Hour // after its end, to tell "expired" from "never was"
)

// Options configure [New].
type Options struct {
	RefreshLife time.Duration // of a refresh token; [RefreshLife]
	Interval    time.Duration // between two polls for a device code, whole seconds; 5 s
	Strict      bool          // a refresh token that was replaced revokes all its successors when it is used
}

// Store is everything handed out. Its methods may be called from any goroutine.
type Store struct {
	opts Options

	mu       sync.Mutex // guards what follows
	codes    map[string]*Code
	refresh  map[string]*refreshToken
	devices  map[string]*Device // by device code
	sessions map[string]*Session
	swept    time.Time
}

// New returns an empty store.
func New(opts Options) *Store {
	if opts.RefreshLife <= 0 {
		opts.RefreshLife = RefreshLife
	}
	if opts.Interval < time.Second {
		opts.Interval = 5 * time.Second
	}
	return &Store{
		opts: opts, codes: make(map[string]*Code), refresh: make(map[string]*refreshToken),
		devices: make(map[string]*Device), sessions: make(map[string]*Session),
	}
}

// random returns an opaque string that begins like Entra's.
func random(prefix string, n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

// sweep forgets what ended long ago. Callers hold mu.
func (s *Store) sweep(now time.Time) {
	if now.Sub(s.swept) < time.Minute {
		return
	}
	s.swept = now
	maps.DeleteFunc(s.codes, func(_ string, c *Code) bool { return now.Sub(c.expires) > remembered })
	maps.DeleteFunc(s.refresh, func(_ string, t *refreshToken) bool { return now.Sub(t.expires) > remembered })
	maps.DeleteFunc(s.devices, func(_ string, d *Device) bool { return now.Sub(d.expires) > remembered })
	maps.DeleteFunc(s.sessions, func(_ string, c *Session) bool { return now.After(c.expires) })
}

// NewCode hands out an authorization code.
func (s *Store) NewCode(c Code) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.sweep(now)
	c.expires = now.Add(CodeLife)
	code := random("1.", 120)
	s.codes[code] = &c
	return code
}

// Redeem takes a code back, once, if it is alive and check finds nothing wrong with what it stands for.
func (s *Store) Redeem(code string, check func(Code) *refusal.Refusal) (Code, *refusal.Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.codes[code]
	switch {
	case !ok:
		return Code{}, refusal.New(9002313)
	case c.used:
		return *c, refusal.New(54005)
	case !time.Now().Before(c.expires):
		return *c, refusal.New(70008)
	}
	if refused := check(*c); refused != nil {
		return *c, refused
	}
	c.used = true
	return *c, nil
}

// refreshToken is what a refresh token stands for. All that descend from one sign-in share a family.
type refreshToken struct {
	Subject
	family   *family
	issued   time.Time
	expires  time.Time
	replaced bool
}

type family struct{ revoked bool }

// NewRefresh hands out the first refresh token of a sign-in.
func (s *Store) NewRefresh(subject Subject) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addRefresh(subject, &family{})
}

func (s *Store) addRefresh(subject Subject, f *family) string {
	now := time.Now()
	s.sweep(now)
	token := random("1.AX", 240)
	s.refresh[token] = &refreshToken{Subject: subject, family: f, issued: now, expires: now.Add(s.opts.RefreshLife)}
	return token
}

// Owner tells whose a code or token is, dead or alive; false if it never was.
func (s *Store) Owner(code string) (Subject, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.codes[code]; ok {
		return c.Subject, true
	}
	if t, ok := s.refresh[code]; ok {
		return t.Subject, true
	}
	if d, ok := s.devices[code]; ok {
		return d.Subject, true
	}
	return Subject{}, false
}

// Refresh takes a refresh token and hands out its successor, if it is alive and check finds nothing wrong with it. The old
// one stays good, as at Entra, unless Options.Strict.
func (s *Store) Refresh(token string, check func(Subject) *refusal.Refusal) (Subject, string, *refusal.Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.refresh[token]
	switch {
	case !ok:
		return Subject{}, "", refusal.New(9002313)
	case !time.Now().Before(t.expires):
		return t.Subject, "", &refusal.Refusal{Number: 700082, Value: "The token was issued on " +
			t.issued.UTC().Format(time.RFC3339) + " and was inactive for " + s.opts.RefreshLife.String() + "."}
	}
	if s.opts.Strict && t.replaced {
		t.family.revoked = true
	}
	if t.family.revoked {
		return t.Subject, "", &refusal.Refusal{Number: 70000, Value: "the refresh token was replaced and used again."}
	}
	if refused := check(t.Subject); refused != nil {
		return t.Subject, "", refused
	}
	t.replaced = true
	return t.Subject, s.addRefresh(t.Subject, t.family), nil
}
