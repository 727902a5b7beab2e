package ticket

import (
	"crypto/rand"
	"time"

	"relayd/pkg/sandbox/directory/refusal"
)

// Device is a sign-in on a device without a browser (RFC 8628).
type Device struct {
	Subject  // User is empty until someone has agreed
	UserCode string

	expires   time.Time
	interval  time.Duration
	polled    time.Time
	declined  bool
	completed bool // the tokens were handed out
}

// NewDevice hands out a device code and the user code a person types in.
func (s *Store) NewDevice(subject Subject) (deviceCode, userCode string, interval time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.sweep(now)
	const letters = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789" // 32 of them, none that look alike
	raw := make([]byte, 9)
	rand.Read(raw) // never fails (crypto/rand)
	for i := range raw {
		raw[i] = letters[int(raw[i])%len(letters)]
	}
	d := &Device{Subject: subject, UserCode: string(raw), expires: now.Add(DeviceLife), interval: s.opts.Interval}
	code := random("", 150)
	s.devices[code] = d
	return code, d.UserCode, d.interval
}

// Waiting finds the sign-in a user code belongs to, as long as nobody has answered it.
func (s *Store) Waiting(userCode string) (Device, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.waiting(userCode); d != nil {
		return *d, true
	}
	return Device{}, false
}

func (s *Store) waiting(userCode string) *Device {
	now := time.Now()
	for _, d := range s.devices {
		if d.UserCode == userCode && now.Before(d.expires) && d.User == "" && !d.declined {
			return d
		}
	}
	return nil
}

// Answer settles a sign-in: by the user who agreed, or by nobody who declined. It reports whether it still waited.
func (s *Store) Answer(userCode string, user *Subject) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.waiting(userCode)
	if d == nil {
		return false
	}
	if user == nil {
		d.declined = true
		return true
	}
	d.User, d.ObjectID, d.Epoch = user.User, user.ObjectID, user.Epoch
	return true
}

// Poll asks for the outcome of a sign-in, once it is there: after that the code is spent. Too early a poll makes the
// interval 5 s longer (RFC 8628, 3.5); a second's haste is forgiven.
func (s *Store) Poll(deviceCode string, check func(Subject) *refusal.Refusal) (Subject, *refusal.Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.devices[deviceCode]
	if !ok || d.completed {
		return Subject{}, refusal.New(70018)
	}
	if refused := check(d.Subject); refused != nil {
		return d.Subject, refused
	}
	now := time.Now()
	const forgiven = time.Second
	early := !d.polled.IsZero() && now.Sub(d.polled) < d.interval-forgiven
	d.polled = now
	switch {
	case !now.Before(d.expires):
		return d.Subject, refusal.New(70019)
	case early:
		d.interval += 5 * time.Second
		return d.Subject, refusal.New(700160)
	case d.declined:
		return d.Subject, refusal.New(700170)
	case d.User == "":
		return d.Subject, refusal.New(70016)
	}
	d.completed = true
	return d.Subject, nil
}
