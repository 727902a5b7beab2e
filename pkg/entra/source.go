package entra

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

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
// failure up to a minute; 30 s after a refusal, so that a cure shows soon.
const (
	firstHold         = time.Second
	maxHold           = time.Minute
	refusedHold       = 30 * time.Second
	maxRetryAfter     = time.Hour
	refusalsPerMinute = 30
)

// source is one tenant's token.
type source struct {
	name   string
	tokens *Tokens
	tenant Tenant
	client *http.Client

	mu       sync.Mutex // guards what follows
	secret   func() (string, error)
	token    *oauth2.Token // the newest; nil before the first
	renew    time.Time     // when token is to be renewed
	request  *request      // under way; nil: none
	err      *status.Error // of the last request; nil: it succeeded
	hold     time.Time     // no request before
	failures int           // temporary ones in a row
	minute   time.Time     // when refusals was last zero
	refusals int           // requests made because Exchange Online refused a token
}

// request is one call of the token endpoint, shared by all who wait for it.
type request struct {
	done  chan struct{} // closed when token or err is set
	token *oauth2.Token
	err   *status.Error
}

// same reports whether a token of o serves as one of s.
func (s *source) same(o *source) bool {
	a, b := s.tenant, o.tenant
	return a.TenantID == b.TenantID && a.ClientID == b.ClientID && a.Authority == b.Authority && a.Scope == b.Scope &&
		a.RootCAs.Equal(b.RootCAs) && sameURL(a.Proxy, b.Proxy)
}

func sameURL(a, b *url.URL) bool {
	return a == b || a != nil && b != nil && a.String() == b.String()
}

func (s *source) setSecret(secret func() (string, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret = secret
	s.hold, s.err, s.failures = time.Time{}, nil, 0 // the reload may be the cure: what the old secret was told is no news
}

// get returns a usable token other than refused, fetching one where needed.
func (s *source) get(ctx context.Context, refused string) (*oauth2.Token, error) {
	s.mu.Lock()
	now := time.Now()
	usable := s.token != nil && now.Before(s.token.Expiry.Add(-margin))
	if usable && s.token.AccessToken != refused {
		defer s.mu.Unlock()
		if s.request == nil && !now.Before(s.renew) && !now.Before(s.hold) {
			s.begin()
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
		r = s.begin()
	}
	s.mu.Unlock()
	select {
	case <-r.done:
	case <-ctx.Done():
		return nil, temporary("no access token in time", ctx.Err())
	}
	if r.err != nil {
		return nil, r.err
	}
	return r.token, nil
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
func (s *source) begin() *request {
	r := &request{done: make(chan struct{})}
	secret := s.secret
	if !s.tokens.start(func() { s.fetch(r, secret) }) {
		r.err = temporary("shutting down", nil)
		close(r.done)
		return r
	}
	s.request = r
	return r
}

// fetch makes the request and notes how it went.
func (s *source) fetch(r *request, secret func() (string, error)) {
	var hold time.Duration
	r.token, hold, r.err = s.ask(secret)

	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(r.done)
	now := time.Now()
	s.request, s.err = nil, r.err
	if r.err == nil {
		s.token, s.failures = r.token, 0
		s.renew = renewal(now, r.token.Expiry)
		s.tokens.metrics.fetched(s.name, resultOK, r.token.Expiry)
		return
	}
	result := resultRefused
	if temporaryAction(r.err.Action) {
		result = resultTemporary
		if hold == 0 {
			hold = min(firstHold<<min(s.failures, 10), maxHold)
		}
		s.failures++
	} else if hold == 0 {
		hold = refusedHold
	}
	s.hold = now.Add(jitter(hold))
	s.tokens.metrics.fetched(s.name, result, time.Time{})
	if s.token != nil && now.Before(s.token.Expiry.Add(-margin)) { // nobody else may be there to tell
		s.tokens.options.Logger.Warn("access token not renewed, keeping the old one", zap.String("tenant", s.name),
			zap.Time("expiry", s.token.Expiry), zap.Error(r.err), zap.NamedError("cause", r.err.Err))
	}
}

// ask makes one request. hold is what Entra ID asks for before the next one; 0: nothing.
func (s *source) ask(secret func() (string, error)) (tok *oauth2.Token, hold time.Duration, _ *status.Error) {
	value, err := secret()
	if err == nil && value == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, 0, &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageToken,
			Action: status.ParkTenant, Text: "the client secret of the sender's tenant cannot be read",
			Cause: "the client secret cannot be read, or is empty", Advice: "See that what client_secret refers to exists, is not empty and may be read by relayd",
			Err: fmt.Errorf("read client secret: %w", err)}
	}
	config := clientcredentials.Config{
		ClientID:     s.tenant.ClientID,
		ClientSecret: value,
		TokenURL:     s.tenant.Authority + "/" + url.PathEscape(s.tenant.TenantID) + "/oauth2/v2.0/token",
		Scopes:       []string{s.tenant.Scope},
		AuthStyle:    oauth2.AuthStyleInParams,
	}
	started := time.Now()
	tok, err = config.Token(context.WithValue(s.tokens.ctx, oauth2.HTTPClient, s.client))
	if err != nil {
		e, hold := read(*s.tokens.rules.Load(), err, value, started)
		return nil, hold, e
	}
	if err := check(tok); err != nil {
		return nil, 0, temporary("Entra ID gave no usable access token", err)
	}
	lifetime := tok.Expiry.Sub(started)
	if tok.Expiry.IsZero() {
		lifetime = defaultLifetime
	}
	tok.Expiry = started.Add(min(lifetime, maxLifetime))
	s.tokens.options.Logger.Debug("access token fetched", zap.String("tenant", s.name), zap.Time("expiry", tok.Expiry))
	return tok, 0, nil
}

// check refuses what could not be sent in XOAUTH2, where a control character would end a field.
func check(tok *oauth2.Token) error {
	if !strings.EqualFold(tok.Type(), "Bearer") {
		return errors.New("token_type is not Bearer")
	}
	for i := range len(tok.AccessToken) {
		if c := tok.AccessToken[i]; c <= ' ' || c >= 0x7f {
			return errors.New("access_token has characters that no token has")
		}
	}
	return nil
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
