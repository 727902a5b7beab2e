package exchange

import (
	"time"

	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/exchange/submission"
)

// session is a session and what the pool knows of it.
type session struct {
	*submission.Session
	tenant  *tenant
	mailbox string // Route.Mailbox
	login   string
	token   string // it authenticated with
	born    time.Time
	idle    time.Time // since when it waits in the pool
}

// take returns the latest used idle session of a mailbox that is still good, or nil.
func (p *Pool) take(t *tenant, route *envelope.Route) *session {
	key, now := route.Mailbox(), time.Now()
	for {
		p.mu.Lock()
		list := p.idle[key]
		if len(list) == 0 {
			p.mu.Unlock()
			return nil
		}
		s := list[len(list)-1]
		list[len(list)-1] = nil
		p.keep(key, list[:len(list)-1])
		p.idling--
		p.mu.Unlock()
		s.tenant.idle.Dec()
		if s.tenant == t && !p.over(s, now) {
			t.active.Inc()
			return s
		}
		p.close(s)
	}
}

// release puts a sound session back, or closes it: worn out, not wanted by its tenant any more, or one too many for its
// mailbox's limit.
func (p *Pool) release(s *session, limit int) {
	s.tenant.active.Dec()
	s.idle = time.Now()
	if s.Messages() >= p.options.MaxMessages || p.over(s, s.idle) || !p.put(s, max(limit, 1)) {
		p.close(s)
	}
}

func (p *Pool) close(s *session) {
	s.Close()
	p.options.Logger.Debug("session closed", zap.String("tenant", s.tenant.name), zap.String("login", s.login),
		zap.Int("messages", s.Messages()))
}

func (p *Pool) put(s *session, limit int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[s.mailbox]
	if p.closed || p.tenants[s.tenant.name] != s.tenant || len(list) >= limit || p.idling >= p.options.MaxIdle {
		return false
	}
	p.idle[s.mailbox] = append(list, s)
	p.idling++
	s.tenant.idle.Inc()
	return true
}

// over reports whether a session has reached a limit of time.
func (p *Pool) over(s *session, now time.Time) bool {
	return now.Sub(s.idle) >= p.options.IdleLimit || now.Sub(s.born) >= p.options.AgeLimit
}

// keep sets the idle sessions of a mailbox. p.mu is held.
func (p *Pool) keep(mailbox string, list []*session) {
	if len(list) == 0 {
		delete(p.idle, mailbox)
		return
	}
	p.idle[mailbox] = list
}

// reap closes the idle sessions that are not to be used again.
func (p *Pool) reap(now time.Time) {
	var over []*session
	p.mu.Lock()
	for mailbox, list := range p.idle {
		good := list[:0]
		for _, s := range list {
			if p.closed || p.tenants[s.tenant.name] != s.tenant || p.over(s, now) {
				over = append(over, s)
			} else {
				good = append(good, s)
			}
		}
		clear(list[len(good):])
		p.keep(mailbox, good)
	}
	p.idling -= len(over)
	p.mu.Unlock()
	for _, s := range over {
		s.tenant.idle.Dec()
		p.close(s)
	}
}
