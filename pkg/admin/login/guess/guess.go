// Package guess bounds how often an address is told that what it brings opens nothing.
//
// It keeps in memory how often an address has failed; a restart forgives all.
package guess

import (
	"net/netip"
	"sync"
	"time"
)

// Bounds of [Guesses].
const (
	Free          = 5                // failed logins of an address before it must wait
	MaxWait       = 30 * time.Second // between two failures that are looked into; an attack is one line of the log that often
	guessMemory   = 10 * time.Minute // after which the failures of an address are forgotten
	maxAddresses  = 4096             // remembered
	ipv6Customers = 64               // bits of an IPv6 address that stand for one party
)

// Guesses makes each address that has failed to log in wait before its next failure is told from the one before: 1 s, then twice
// as long each time. What is right is not to be asked about here: it may come from the same address, such as a proxy's, as others'
// guesses, and nobody guesses 256 bits. What this bounds is the noise of those who try, in the log above all. Success forgives
// nothing, for the same reason: it says nothing of who failed. The zero value is ready to use.
type Guesses struct {
	mu     sync.Mutex // guards failed
	failed map[netip.Prefix]failures
}

type failures struct {
	count int
	last  time.Time
}

// Party returns the addresses that count as one with a: itself alone, or its /64 of IPv6.
func Party(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = ipv6Customers
	}
	p, _ := a.Prefix(bits) // fails for the zero Addr only, which then is a key of its own
	return p
}

// Wait returns for how long failures of an address are refused unseen.
func (g *Guesses) Wait(a netip.Addr) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.failed[Party(a)]
	if f.count < Free || time.Since(f.last) > guessMemory {
		return 0
	}
	return time.Until(f.last.Add(min(MaxWait, time.Second<<min(f.count-Free, 10))))
}

// Add notes that an address has failed.
func (g *Guesses) Add(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed == nil {
		g.failed = map[netip.Prefix]failures{}
	}
	key, now := Party(a), time.Now()
	f, known := g.failed[key]
	if !known && len(g.failed) >= maxAddresses {
		g.makeRoom(now)
	}
	if now.Sub(f.last) > guessMemory {
		f.count = 0
	}
	g.failed[key] = failures{f.count + 1, now}
}

// makeRoom forgets what has expired, or else any address. The caller holds mu.
func (g *Guesses) makeRoom(now time.Time) {
	for key, f := range g.failed {
		if now.Sub(f.last) > guessMemory {
			delete(g.failed, key)
		}
	}
	for key := range g.failed {
		if len(g.failed) < maxAddresses {
			return
		}
		delete(g.failed, key)
	}
}
