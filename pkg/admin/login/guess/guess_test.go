package guess

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestGuessesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Guesses
		for i := range maxAddresses + 100 {
			g.Add(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		}
		if len(g.failed) > maxAddresses {
			t.Errorf("remembers %d", len(g.failed))
		}
		one, neighbour := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff:1")
		for range Free + 1 {
			g.Add(one)
		}
		if g.Wait(neighbour) == 0 || g.Wait(netip.MustParseAddr("2001:db8:0:1::1")) != 0 {
			t.Error("an IPv6 customer is a /64")
		}
		<-time.After(guessMemory + time.Second)
		if g.Wait(one) != 0 {
			t.Error("old guesses count")
		}
		g.Add(one)
		if g.failed[Party(one)].count != 1 {
			t.Error("old guesses are added to")
		}
	})
}

// The wait doubles, up to a bound, and is counted from the last failure.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Guesses
		a := netip.MustParseAddr("192.0.2.1")
		for i, want := range []time.Duration{0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30} {
			g.Add(a)
			if got := g.Wait(a); got != want*time.Second {
				t.Errorf("behind %d failures: got %v, want %v", i+1, got, want*time.Second)
			}
		}
		<-time.After(10 * time.Second)
		if got := g.Wait(a); got != 20*time.Second {
			t.Errorf("got %v", got)
		}
		<-time.After(20 * time.Second)
		if got := g.Wait(a); got > 0 {
			t.Errorf("got %v", got)
		}
		for range Free {
			g.Add(netip.Addr{}) // a peer whose address cannot be read
		}
		if g.Wait(netip.Addr{}) == 0 || g.Wait(a) > 0 {
			t.Error("the unknown address is not one of its own")
		}
	})
}
