package ticket

import "time"

// Session is a browser in which people have signed in, one for each tenant.
type Session struct {
	users   map[string]Subject // by tenant id
	expires time.Time
}

// SignIn adds a person to a session, a new one if id names none, and returns the session's id.
func (s *Store) SignIn(id string, who Subject) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.sweep(now)
	c, ok := s.sessions[id]
	if !ok || now.After(c.expires) {
		c = &Session{users: make(map[string]Subject)}
	}
	delete(s.sessions, id) // a new id with every sign-in, or one planted before it would be signed in
	c.users[who.Tenant], c.expires = who, now.Add(sessionLife)
	id = random("0.", 48)
	s.sessions[id] = c
	return id
}

// SignedIn tells who is signed in to a tenant in a session.
func (s *Store) SignedIn(id, tenant string) (Subject, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.sessions[id]
	if !ok || time.Now().After(c.expires) {
		return Subject{}, false
	}
	who, ok := c.users[tenant]
	return who, ok
}

// SignOut ends a session.
func (s *Store) SignOut(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, id)
}
