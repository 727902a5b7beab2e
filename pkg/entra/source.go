package entra

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"relayd/pkg/entra/catalogue"
	"relayd/pkg/status"
)

// The life of a token, from the expires_in that Entra ID gives (60 to 90 minutes as a rule):
//
//	usable    until margin before it expires
//	renewed   in the background from refreshAhead before it expires, or from a tenth of its life if that is more,
//	          never before half its life; give or take a fifth, so that replicas do not ask in step
const (
	margin          = 10 * time.Second
	refreshAhead    = 5 * time.Minute
	defaultLifetime = 10 * time.Minute // where expires_in is missing: far below any that Entra ID gives
	maxLifetime     = 28 * time.Hour   // the longest documented
)

// After a failed request no other is made for a while: what Retry-After says, or 1 s, doubled with each temporary
// failure up to a minute; 30 s after a refusal, so that a cure shows soon. What the record alone says is looked up again
// after recheck, since that asks nothing of Entra ID.
const (
	firstHold         = time.Second
	maxHold           = time.Minute
	refusedHold       = 30 * time.Second
	recheck           = time.Second
	refusalsPerMinute = 30
)

// source is one token: a tenant's own, or that of a mailbox.
type source struct {
	reg    *registration
	tokens *Tokens
	login  string // empty: the application's own
	record string // its name

	mu       sync.Mutex    // guards what follows
	token    *oauth2.Token // the newest; nil before the first
	renew    time.Time     // when token is to be renewed
	fetched  time.Time     // when token came
	asked    time.Time     // when a caller last wanted it
	request  *request      // under way; nil: none
	err      *status.Error // of the last request; nil: it succeeded
	gone     bool          // err says what the record says
	hold     time.Time     // no request before
	failures int           // temporary ones in a row
	minute   time.Time     // when refusals was last zero
	refusals int           // requests made because Exchange Online refused a token
}

// request is one way to a token, shared by all who wait for it.
type request struct {
	done  chan struct{} // closed when token or err is set
	token *oauth2.Token
	err   *status.Error
	again bool // the grant was replaced meanwhile: neither token nor err counts
}

// release lets the next caller ask at once.
func (s *source) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold, s.err, s.failures = time.Time{}, nil, 0
}

// reset forgets all that came of the grant that has been replaced. Whoever waits for a request under way begins anew.
func (s *source) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.request, s.hold, s.err, s.failures = nil, nil, time.Time{}, nil, 0
}

// get returns a usable token other than refused, fetching one where needed.
func (s *source) get(ctx context.Context, refused string) (*oauth2.Token, error) {
	for {
		s.mu.Lock()
		now := time.Now()
		s.asked = now
		usable := s.token != nil && now.Before(s.token.Expiry.Add(-margin))
		if usable && s.token.AccessToken != refused {
			defer s.mu.Unlock()
			if s.request == nil && !now.Before(s.renew) && !now.Before(s.hold) {
				s.begin(s.unwanted(refused))
			}
			return s.token, nil
		}
		r := s.request
		if r == nil {
			if now.Before(s.hold) {
				defer s.mu.Unlock()
				return nil, s.err
			}
			if usable && !s.chargeRefusal(now) {
				defer s.mu.Unlock()
				return s.token, nil
			}
			r = s.begin(s.unwanted(refused))
		}
		s.mu.Unlock()
		select {
		case <-r.done:
		case <-ctx.Done():
			return nil, catalogue.Temporary("no access token in time", ctx.Err())
		}
		switch {
		case r.again && ctx.Err() == nil:
		case r.err != nil:
			return nil, r.err
		default:
			return r.token, nil
		}
	}
}

// unwanted is what a new token is wanted in place of: the present one, and the one that was refused. s.mu is held.
func (s *source) unwanted(refused string) want {
	w := want{refused: refused}
	if s.token != nil {
		w.present = s.token.AccessToken
	}
	return w
}

// chargeRefusal counts a request that a refusal causes, and reports whether this minute has one left. s.mu is held.
func (s *source) chargeRefusal(now time.Time) bool {
	if now.Sub(s.minute) >= time.Minute {
		s.minute, s.refusals = now, 0
	}
	s.refusals++
	return s.refusals <= refusalsPerMinute
}

// begin starts a request. s.mu is held and no other is under way.
func (s *source) begin(w want) *request {
	r := &request{done: make(chan struct{})}
	if !s.tokens.start(func() { s.fetch(r, w) }) {
		r.err = shuttingDown()
		close(r.done)
		return r
	}
	s.request = r
	return r
}

func shuttingDown() *status.Error { return catalogue.Temporary("shutting down", nil) }

// superseded reports whether nobody is to learn what becomes of r.
func (s *source) superseded(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.request != r
}

// fetch gets a token and notes how it went.
func (s *source) fetch(r *request, w want) {
	got := s.obtain(r, w)

	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(r.done)
	if s.request != r {
		r.again = true
		return
	}
	now := time.Now()
	r.token, r.err = got.token, got.err
	s.request, s.err, s.gone = nil, r.err, got.gone
	if r.err == nil {
		s.token, s.failures, s.fetched = r.token, 0, now
		s.renew = renewal(now, r.token.Expiry)
		if s.login == "" {
			s.tokens.metrics.current(s.reg.name, r.token.Expiry)
		}
		return
	}
	hold := got.hold
	if catalogue.TemporaryAction(r.err.Action) {
		if hold == 0 {
			hold = min(firstHold<<min(s.failures, 10), maxHold)
		}
		s.failures++
	} else if hold == 0 {
		hold = refusedHold
	}
	s.hold = now.Add(jitter(hold))
	if got.gone {
		s.token = nil
	}
	if s.token != nil && now.Before(s.token.Expiry.Add(-margin)) { // nobody else may be there to tell
		s.tokens.options.Logger.Warn("access token not renewed, keeping the old one", zap.String("tenant", s.reg.name),
			zap.String("login", s.login), zap.Time("expiry", s.token.Expiry), zap.Error(r.err), zap.NamedError("cause", r.err.Err))
	}
}

// renewal returns when to renew a token that is fresh now.
func renewal(now, expiry time.Time) time.Time {
	life := expiry.Sub(now)
	ahead := min(max(refreshAhead, life/10), life/2)
	return expiry.Add(-min(jitter(ahead), life/2))
}

// jitter returns d give or take a fifth.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
