package smtpin

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"go.uber.org/zap"

	"relayd/pkg/status"
)

// maxLogins is how many failed logins end a session.
const maxLogins = 3

// AuthMechanisms implements smtp.AuthSession: what EHLO offers.
func (s *session) AuthMechanisms() []string {
	if s.mayLogIn() != nil {
		return nil
	}
	return []string{sasl.Plain, sasl.Login}
}

// mayLogIn returns nil, or why AUTH is refused before a mechanism is looked at.
func (s *session) mayLogIn() error {
	switch {
	case !s.set.offersAuth():
		return refuse(reasonAccess, 502, status.Enhanced{5, 5, 1}, "authentication not available")
	case s.conn.tls == "" && !s.set.Listener.PlaintextAuth:
		return refuse(reasonAccess, 538, status.Enhanced{5, 7, 11}, "Encryption required")
	case s.mail != nil:
		return refuse(reasonAccess, 503, status.Enhanced{5, 5, 1}, "AUTH not allowed during a mail transaction")
	}
	return nil
}

// Auth implements smtp.AuthSession.
func (s *session) Auth(mechanism string) (sasl.Server, error) {
	if err := s.mayLogIn(); err != nil {
		return nil, reply(status.From(err))
	}
	switch mechanism {
	case sasl.Plain:
		return exchange{sasl.NewPlainServer(func(identity, username, password string) error {
			if identity != "" && identity != username {
				username = "" // nobody may act for another: a failed login like any
			}
			return s.logIn(username, password)
		})}, nil
	case sasl.Login:
		return exchange{&loginServer{authenticate: s.logIn}}, nil
	}
	return nil, reply(status.New(504, status.Enhanced{5, 5, 4}, "authentication mechanism not supported"))
}

// exchange gives an error of a mechanism that is no reply the code of a malformed one (RFC 4954, section 4).
type exchange struct{ sasl.Server }

func (e exchange) Next(response []byte) (challenge []byte, done bool, err error) {
	challenge, done, err = e.Server.Next(response)
	if _, ours := errors.AsType[*smtp.SMTPError](err); err != nil && !ours {
		err = reply(status.New(501, status.Enhanced{5, 5, 2}, "malformed authentication exchange"))
	}
	return challenge, done, err
}

// loginServer is LOGIN (draft-murchison-sasl-login) with the prompts old devices expect to the letter.
type loginServer struct {
	authenticate func(username, password string) error
	username     string
	step         int
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if l.step == 0 && response != nil {
		l.step = 1 // the name came with the command
	}
	l.step++
	switch l.step {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		l.username = string(response)
		return []byte("Password:"), false, nil
	case 3:
		return nil, true, l.authenticate(l.username, string(response))
	}
	return nil, false, sasl.ErrUnexpectedClientResponse
}

// logIn checks a password. An unknown name costs as much time as a wrong password. The error is for go-smtp.
func (s *session) logIn(username, password string) error {
	srv, addr := s.conn.srv, s.conn.peer
	if err := srv.penalties.wait(s.conn.ctx, addr); err != nil {
		return reply(status.From(err))
	}
	c, ok, err := s.verify(username, password)
	if err != nil {
		s.log.Error("password cannot be checked", zap.String("client", username), zap.Error(err))
		return reply(status.New(454, status.Enhanced{4, 7, 0}, "temporary authentication failure"))
	}
	if ok && c.mayConnect(addr) {
		srv.penalties.forgive(addr)
		s.client = c
		s.log = s.log.With(zap.String("client", c.Username))
		return nil
	}
	srv.penalties.add(addr)
	s.log.Info("login refused", zap.String("client", printable(username, 64)), zap.Bool("network_refused", ok))
	if s.logins++; s.logins >= maxLogins {
		s.g.lastReply()
		return reply(status.New(421, status.Enhanced{4, 7, 0}, "too many failed logins"))
	}
	return reply(status.New(535, status.Enhanced{5, 7, 8}, "authentication failed"))
}

func (s *session) verify(username, password string) (c *client, ok bool, err error) {
	select {
	case s.conn.srv.hashing <- struct{}{}:
		defer func() { <-s.conn.srv.hashing }()
	case <-s.conn.ctx.Done():
		return nil, false, s.conn.ctx.Err()
	}
	c = s.set.clients[username]
	if c == nil { // not through the cache: it would answer fast for a password somebody else has
		_, err = VerifyPassword(s.set.decoy, password)
		return nil, false, err
	}
	ok, err = s.conn.srv.passwords.Verify(c.PasswordHash, password)
	return c, ok, err
}

// Bounds of penalties.
const (
	freeFailures  = maxLogins        // failed logins of an address before it must wait
	maxPenalty    = 10 * time.Second // below what clients wait for a reply
	penaltyMemory = 10 * time.Minute // after which the failures of an address are forgotten
	maxPenalties  = 4096             // addresses remembered
)

// penalties makes each address that has failed to log in wait before its next attempt: 1 s, then twice as long each
// time. An IPv6 address stands for its /64. The zero value is ready to use.
type penalties struct {
	mu     sync.Mutex // guards failed
	failed map[netip.Prefix]penalty
}

type penalty struct {
	count int
	last  time.Time
}

func penaltyKey(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // fails for the zero Addr only, which then is a key of its own
	return p
}

// wait blocks for as long as addr must wait, or until ctx ends.
func (p *penalties) wait(ctx context.Context, addr netip.Addr) error {
	d := p.delay(addr)
	if d == 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *penalties) delay(addr netip.Addr) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failed[penaltyKey(addr)]
	if f.count < freeFailures || time.Since(f.last) > penaltyMemory {
		return 0
	}
	return min(maxPenalty, time.Second<<min(f.count-freeFailures, 10))
}

func (p *penalties) add(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil {
		p.failed = map[netip.Prefix]penalty{}
	}
	key, now := penaltyKey(addr), time.Now()
	f, known := p.failed[key]
	if !known && len(p.failed) >= maxPenalties {
		p.makeRoom(now)
	}
	if now.Sub(f.last) > penaltyMemory {
		f.count = 0
	}
	p.failed[key] = penalty{f.count + 1, now}
}

// makeRoom forgets what has expired, or else any address. The caller holds mu.
func (p *penalties) makeRoom(now time.Time) {
	for key, f := range p.failed {
		if now.Sub(f.last) > penaltyMemory {
			delete(p.failed, key)
		}
	}
	for key := range p.failed {
		if len(p.failed) < maxPenalties {
			return
		}
		delete(p.failed, key)
	}
}

func (p *penalties) forgive(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.failed, penaltyKey(addr))
}
