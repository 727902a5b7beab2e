// Package fate decides what becomes of each recipient of a message: whom an attempt tries, what the replies mean for
// each, when the next attempt is, and when to give up. It is a function of what is known and of chance; it keeps nothing.
package fate

import (
	"math/rand/v2"
	"strings"
	"time"

	"relayd/pkg/envelope"
)

// Rules are what a recipient's fate depends on besides the replies.
//
// After the first failed attempt a recipient waits the first step of Retry, after the second the second, and so on; the
// last step repeats until the lifetime is over. Each wait is made up to a quarter longer, by chance, so that mail deferred
// by one outage does not come back in one moment; the recipients of one message that failed together draw one lot, and are
// tried together again. A reply may ask for a longer wait than that, and never gets a shorter one.
//
// An attempt takes along whoever is due within 10 s of it, or within a tenth of their step where that is longer: one
// transaction instead of two.
type Rules struct {
	Retry    []time.Duration // not empty
	Lifetime time.Duration
}

func (r *Rules) step(attempts int) time.Duration {
	return r.Retry[min(max(attempts, 1), len(r.Retry))-1]
}

// lot is what chance adds to the waits of one attempt, in parts of a quarter.
func lot() float64 { return rand.Float64() }

// wait returns how long a recipient waits after so many attempts.
func (r *Rules) wait(attempts int, lot float64, least time.Duration) time.Duration {
	step := r.step(attempts)
	wait := step + time.Duration(lot*float64(step/4))
	if least > 0 { // and nobody is taken along before that
		wait = max(wait, least+r.slack(attempts))
	}
	return wait
}

func (r *Rules) slack(attempts int) time.Duration { return max(10*time.Second, r.step(attempts)/10) }

// outlived reports whether a recipient is to fail at this attempt, its last.
//
// It is where the message is older than its lifetime and the waits between the recipient's attempts make up for that. One
// whose sender was parked, or stood behind a slow mailbox's other mail, spent its days without being tried: those cost it
// no life. The waits are counted a quarter longer, the most that chance adds.
func (r *Rules) outlived(age time.Duration, attempts int) bool {
	if age < r.Lifetime {
		return false
	}
	var waited time.Duration
	for n := 1; n < attempts && waited < r.Lifetime; n++ {
		waited += r.step(n)
	}
	return waited*5/4 >= r.Lifetime
}

// counts returns how many attempts each recipient has had. Records from before there was a count for each have the
// message's only.
func counts(env *envelope.Envelope, p *envelope.Progress) []int {
	out, some := make([]int, len(env.Recipients)), false
	for i := range min(len(out), len(p.Results)) {
		out[i] = p.Results[i].Attempts
		some = some || out[i] > 0
	}
	for i := range out {
		if !some {
			out[i] = p.Attempts
		}
	}
	return out
}

// Attempt returns the number, from 1, of an attempt at the recipients with these indices.
func Attempt(env *envelope.Envelope, p *envelope.Progress, recipients []int) int {
	highest := 0
	had := counts(env, p)
	for _, i := range recipients {
		highest = max(highest, had[i])
	}
	return highest + 1
}

// Due returns the recipients an attempt at now is for. Where the message is due and none of them is, its sender is owed
// word of a failure; else somebody asked for an attempt, and all open ones are due.
func (r *Rules) Due(env *envelope.Envelope, p *envelope.Progress, now time.Time) []int {
	open, had := p.Open(env), counts(env, p)
	due := make([]int, 0, len(open))
	for _, i := range open {
		if i >= len(p.Results) || p.Results[i].Due.Sub(now) <= r.slack(had[i]) {
			due = append(due, i)
		}
	}
	if len(due) == 0 && len(Owed(p)) == 0 {
		return open
	}
	return due
}

// Pick chooses, of recipients, those of one transaction: at most so many, and of one domain at most so many; 0: no limit.
func Pick(env *envelope.Envelope, recipients []int, most, perDomain int) []int {
	if most <= 0 {
		most = len(recipients)
	}
	if perDomain <= 0 || perDomain >= len(recipients) {
		return recipients[:min(most, len(recipients))]
	}
	picked := make([]int, 0, min(most, len(recipients)))
	domains := map[string]int{}
	for _, i := range recipients {
		domain := strings.ToLower(env.Recipients[i].Address.Domain())
		if domains[domain] >= perDomain {
			continue
		}
		if domains[domain]++; len(picked) == most {
			break
		}
		picked = append(picked, i)
	}
	return picked
}

// Owed returns the recipients that failed without their sender having been told.
func Owed(p *envelope.Progress) []int {
	var owed []int
	for i, res := range p.Results {
		if res.Owed {
			owed = append(owed, i)
		}
	}
	return owed
}
