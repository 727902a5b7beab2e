package entra

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"relayd/pkg/entra/catalogue"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

// The times of sharing a token between nodes. The lease of who fetches one lasts as long as the request may, a managed
// identity's token before it and leaseSlack for the store. While it lasts the others look at the record every pollFirst, and
// ever more seldom up to pollLast.
const (
	leaseSlack = 15 * time.Second
	pollFirst  = 50 * time.Millisecond
	pollLast   = time.Second
	storeTime  = 10 * time.Second // for one access to the store
	storeFirst = time.Second      // before a store that failed is tried again; doubled with each failure up to storeLast
	storeLast  = 30 * time.Second
)

// want says which token in the record will do.
type want struct {
	refused string    // not this one
	present string    // nor this one, which is at hand
	renewed time.Time // none of a refresh token issued before; zero: any
}

func (w want) serves(g *grant.Grant, purpose string, now time.Time) bool {
	return g.Access != "" && g.For == purpose && now.Before(g.Expires.Add(-margin)) &&
		g.Access != w.refused && g.Access != w.present && !g.Used.Before(w.renewed)
}

// outcome is what came of wanting a token.
type outcome struct {
	token *oauth2.Token
	err   *status.Error
	hold  time.Duration // before the next request; 0: as err says
	gone  bool          // the grant serves no more, and so neither does a token of it
}

func failed(err *status.Error, hold time.Duration) outcome { return outcome{err: err, hold: hold} }

// lease is who fetches a token: one name for each request, so that none takes another's lease for its own.
func (s *source) lease() (holder string, length time.Duration) {
	return s.tokens.options.Node + "/" + rand.Text(), s.tokens.options.HTTPTimeout + machineTimeout + leaseSlack
}

// obtain takes the token that stands in the record, waits for the node that is fetching it, or fetches it.
func (s *source) obtain(r *request, w want) outcome {
	ctx := s.tokens.ctx
	holder, length := s.lease()
	watch := leaseWatch{length: length}
	for {
		if s.superseded(r) {
			return outcome{}
		}
		g, revision, err := s.load()
		if err != nil {
			return s.alone(err)
		}
		now := time.Now()
		if e := s.verdict(g); e != nil {
			return outcome{err: e, hold: recheck, gone: true}
		}
		if g == nil {
			g = &grant.Grant{Tenant: s.reg.name, ClientID: s.reg.tenant.ClientID, TenantID: s.reg.tenant.TenantID}
		}
		if w.serves(g, s.reg.purpose(), now) {
			return outcome{token: &oauth2.Token{AccessToken: g.Access, TokenType: "Bearer", Expiry: g.Expires}}
		}
		if wait := watch.wait(g, now); wait > 0 {
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
				return failed(shuttingDown(), 0)
			}
		}
		g.Holder, g.Until = holder, now.Add(length)
		if revision, err = s.store(g, revision); err != nil {
			return s.alone(err)
		}
		if revision == 0 {
			continue // another was quicker
		}
		if got, done := s.exchange(g, revision); done {
			return got
		}
	}
}

// leaseWatch is what one who waits has seen of a lease. A holder whose clock is ahead is waited for no longer than a lease
// lasts.
type leaseWatch struct {
	length time.Duration
	holder string
	since  time.Time
}

// wait returns how long to wait before the next look; 0: nobody holds the lease.
func (l *leaseWatch) wait(g *grant.Grant, now time.Time) time.Duration {
	if g.Holder == "" {
		return 0
	}
	if g.Holder != l.holder {
		l.holder, l.since = g.Holder, now
	}
	left := min(g.Until.Sub(now), l.since.Add(l.length).Sub(now))
	if left <= 0 {
		return 0
	}
	return min(left, jitter(min(max(now.Sub(l.since)/4, pollFirst), pollLast)))
}

// load reads the record.
func (s *source) load() (*grant.Grant, uint64, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.tokens.ctx), storeTime)
	defer cancel()
	return grant.Load(ctx, s.tokens.options.Records, s.record)
}

// store puts g in place of the version with that revision: 0 where that is no longer the newest.
func (s *source) store(g *grant.Grant, revision uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.tokens.ctx), storeTime)
	defer cancel()
	return grant.Store(ctx, s.tokens.options.Records, s.record, g, revision)
}

// alone is what is left where the record cannot be had: the application's own token does not depend on it.
func (s *source) alone(err error) outcome {
	if s.login == "" && !s.reg.tenant.Delegated {
		s.tokens.options.Logger.Warn("access token not shared with other nodes", zap.String("tenant", s.reg.name), zap.Error(err))
		tok, hold, e := s.reg.own(s.tokens.ctx)
		return outcome{token: tok, err: e, hold: hold}
	}
	e := catalogue.Temporary("the sender's sign-in cannot be read or stored", err)
	e.Rule, e.Cause = "grants-unavailable", "the store of what mailboxes' owners have granted does not answer, or cannot be opened"
	e.Advice = "See the log for what the vault says; nobody needs to sign in again once it answers"
	return failed(e, 0)
}

// verdict says why a record's grant serves for nothing; nil: it serves.
func (s *source) verdict(g *grant.Grant) *status.Error {
	if !s.reg.tenant.Delegated {
		return nil
	}
	const text = "nobody has signed in for the sender's mailbox"
	advice := "Sign in as " + s.login + ": on the page Senders choose the sender and Start authentication, or run: relayd sender authorize " + s.login
	e := &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageToken, Action: status.ParkSender,
		Rule: "no-consent", Text: text, Cause: "the tenant's mail is sent on behalf of each mailbox's owner, and nobody has signed in as " + s.login,
		Advice: advice}
	switch {
	case g == nil:
	case g.Dead != "":
		e.Rule, e.Text = g.Dead, "the sign-in for the sender's mailbox no longer serves: somebody must sign in again"
		e.Cause = "Entra ID refused the sign-in that is stored"
		if r, ok := catalogue.Named(*s.tokens.rules.Load(), g.Dead); ok {
			e.Cause = r.Cause
		}
		e.Advice, e.Err = strings.Replace(advice, "Sign in as", "Sign in again as", 1), errors.New(g.Reason)
	case !strings.EqualFold(g.ClientID, s.reg.tenant.ClientID):
		e.Rule, e.Cause = "consent-elsewhere", "whoever signed in as "+s.login+" consented to another application: client_id has changed since"
	case g.For != "" && !strings.HasPrefix(g.For, s.reg.tenant.Authority+" "):
		e.Rule, e.Cause = "consent-elsewhere", "whoever signed in as "+s.login+" did so elsewhere: authority or cloud has changed since"
	default:
		return nil
	}
	return e
}

// exchange makes the request that the lease in g, stored with that revision, is for, and stores what comes of it. done is
// false where the record has changed meanwhile, so that all is to be looked at anew.
func (s *source) exchange(g *grant.Grant, revision uint64) (got outcome, done bool) {
	started := time.Now()
	var tok *oauth2.Token
	var hold time.Duration
	var e *status.Error
	if s.login == "" {
		tok, hold, e = s.reg.own(s.tokens.ctx)
	} else {
		tok, hold, e = s.reg.refresh(context.WithoutCancel(s.tokens.ctx), g.Refresh)
	}
	next := *g
	next.Holder, next.Until = "", time.Time{}
	if e != nil {
		return s.refusedBy(&next, revision, e, hold)
	}
	next.Access, next.Expires, next.For, next.Used = tok.AccessToken, tok.Expiry.Round(0), s.reg.purpose(), started.Round(0)
	if tok.RefreshToken != "" && s.login != "" {
		next.Refresh = tok.RefreshToken
	}
	got, done = s.keep(&next, revision, g.Refresh)
	if done && got.err == nil {
		got.token = &oauth2.Token{AccessToken: tok.AccessToken, TokenType: "Bearer", Expiry: tok.Expiry}
		s.shown(&next)
	}
	return got, done
}

// refusedBy ends the lease, and with it the grant where the refusal says so.
func (s *source) refusedBy(next *grant.Grant, revision uint64, e *status.Error, hold time.Duration) (outcome, bool) {
	ends := s.login != "" && catalogue.Ends(*s.tokens.rules.Load(), e.Rule)
	if ends {
		next.Dead, next.Reason, next.DeadAt = e.Rule, reason(e), time.Now().Round(0)
		next.Access, next.Expires = "", time.Time{}
	}
	revision, err := s.store(next, revision)
	switch {
	case err == nil && revision == 0 && ends:
		return outcome{}, false // somebody has rotated it, or signed in again: the refusal is of a token that is gone
	case err != nil || !ends:
		return failed(e, hold), true // at worst the lease ends by itself
	}
	s.tokens.options.Logger.Warn("consent no longer serves", zap.String("tenant", s.reg.name), zap.String("login", s.login),
		zap.Error(e), zap.NamedError("cause", e.Err))
	s.shown(next)
	return outcome{err: s.verdict(next), hold: recheck, gone: true}, true
}

// reason is what Entra ID answered, in one line that is safe to show.
func reason(e *status.Error) string {
	text := e.Text
	if refusal, ok := errors.AsType[*oauth2.RetrieveError](e); ok {
		text = strings.Trim(refusal.ErrorCode+": "+refusal.ErrorDescription, ": ")
	}
	text, _, _ = strings.Cut(text, "\n")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	return strings.TrimSpace(strings.ToValidUTF8(text[:min(len(text), 300)], ""))
}

// keep stores next, which came of the refresh token used, in place of the version with that revision, however often it takes.
// Another's version is overruled where it stands on the same refresh token: it is a lease that was taken too early, or a
// refusal of what had just been used up. done is false where the record holds another grant or a newer token.
func (s *source) keep(next *grant.Grant, revision uint64, used string) (got outcome, done bool) {
	for failures := 0; ; {
		stored, err := s.store(next, revision)
		if err == nil && stored != 0 {
			return outcome{}, true
		}
		if err == nil { // not the newest any more
			var g *grant.Grant
			if g, stored, err = s.load(); err == nil {
				switch {
				case g != nil && g.Access == next.Access && g.Refresh == next.Refresh:
					return outcome{}, true // a store whose answer was lost
				case g == nil && s.login != "", g != nil && (!g.Granted.Equal(next.Granted) || g.Refresh != used):
					return outcome{}, false
				}
				revision = stored
				continue
			}
		}
		if s.login == "" {
			s.tokens.options.Logger.Warn("access token not shared with other nodes", zap.String("tenant", s.reg.name), zap.Error(err))
			return outcome{}, true
		}
		if s.tokens.ctx.Err() != nil && failures > 0 { // once more after Close, then never
			s.tokens.options.Logger.Error("a new refresh token was not stored and is lost", zap.String("tenant", s.reg.name),
				zap.String("login", s.login), zap.Error(err))
			return failed(shuttingDown(), 0), true
		}
		s.tokens.options.Logger.Warn("a new refresh token is not stored yet", zap.String("tenant", s.reg.name),
			zap.String("login", s.login), zap.Error(err))
		select {
		case <-time.After(jitter(min(storeFirst<<min(failures, 10), storeLast))):
		case <-s.tokens.ctx.Done():
		}
		failures++
	}
}

// shown tells the metrics until when a grant lasts.
func (s *source) shown(g *grant.Grant) {
	if s.login != "" {
		s.tokens.metrics.consented(s.login, ends(g))
	}
}

// ends returns when a grant ends if it is not used until then; zero: it serves no more.
func ends(g *grant.Grant) time.Time {
	if g == nil || g.Dead != "" {
		return time.Time{}
	}
	return slices.MaxFunc([]time.Time{g.Used, g.Granted}, time.Time.Compare).Add(grant.IdleLife)
}
