package fate

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Case is one attempt to be judged.
type Case struct {
	Envelope *envelope.Envelope
	Before   envelope.Progress // not changed
	Tried    []int             // indices of recipients
	Held     []int             // those that were due but for a hold that keeps them back; not tried
	Outcome  status.Outcome
	Now      time.Time
	Stopping bool             // the attempt was cut off because the relay stops
	Probe    bool             // of a park: what fails before MAIL tells no more about the message than the park did
	External func(i int) bool // whether a recipient is outside the sender's organisation
}

// Verdict is what one attempt means for the message and for its sender.
type Verdict struct {
	Outcome  string            // label of relayd_deliveries_total; empty: it came to nothing
	Release  bool              // nothing that counts was tried: the message is to be as it was
	Progress envelope.Progress // of the message afterwards; State and Due as of Sum
	Reply    *status.Error     // the heaviest; nil: all were accepted
	Tried    []envelope.StepResult

	Accepted int   // recipients Exchange Online took
	Counted  int   // recipients its daily limit counts, as far as anybody knows
	Reached  bool  // a reply came from behind AUTH: nothing is wrong with getting there
	Failed   []int // recipients that failed now
	Resent   int   // recipients who may have the message twice now
	Part     int   // so many recipients at once were taken, after more were refused; 0: nothing was learned

	first [len(weights)]*status.Error
	held  []int // wait for a hold to end
}

// weights orders actions by how much they decide: of the replies to one message's recipients the heaviest is the log's
// and the message's. A failed recipient is settled and weighs least; an uncertain one asks for no more than a retry.
var weights = [...]int{
	status.Fail: 0, status.Split: 1, status.Retry: 2, status.RetryOnce: 2, status.Uncertain: 3, status.BackOffSender: 4, status.BackOffTenant: 5,
	status.HoldSenderExternal: 6, status.HoldTenantExternal: 7, status.HoldSender: 8, status.ParkSender: 9, status.ParkTenant: 10,
}

// ErrPoison is behind the error of a message that crashes whoever tries it.
var ErrPoison = errors.New("three attempts at this message ended in a panic")

// First returns the first reply that asks for the action, or nil.
func (v *Verdict) First(action status.Action) *status.Error {
	if int(action) >= len(v.first) {
		return nil
	}
	return v.first[action]
}

// Behind reports whether a failure at this stage came behind AUTH.
func Behind(stage status.Stage) bool {
	return stage == status.StageMail || stage == status.StageRcpt || stage == status.StageData || stage == status.StageDot
}

// mayHaveArrived stands behind the reply of a recipient that failed after an attempt of which nobody knows the outcome.
const mayHaveArrived = " (an earlier attempt may have been accepted)"

// signIn reports whether a reply at stage is about a token or the sign-in.
func signIn(stage status.Stage) bool { return stage == status.StageToken || stage == status.StageAuth }

// quota reports whether the action is that of a reply for want of quota, which Exchange Online does not count.
func quota(a status.Action) bool {
	return a == status.HoldSender || a == status.HoldSenderExternal || a == status.HoldTenantExternal
}

// ruling is what one reply means for one recipient.
type ruling uint8

const (
	settled   ruling = iota // sent or failed
	deferred                // an attempt is spent, the next one waits
	parked                  // its sender or tenant cannot send now: no attempt is spent
	untouched               // as if not tried, due at once: no attempt is spent
)

// judgement is a Case under way.
type judgement struct {
	*Case
	rules    *Rules
	had      []int // attempts before, of each recipient
	lot      float64
	accepted bool // some recipient was
	external bool // some recipient tried is
	part     int
	verdict  Verdict
	rulings  [4]int
}

// Judge decides every tried recipient's fate.
//
//	accepted                  → sent
//	fail                      → failed
//	uncertain                 → uncertain, tried again as the schedule says
//	retry once                → deferred; failed where it is the same reply again
//	park, hold                → deferred, and no attempt was spent; due when the gate opens
//	split                     → untouched, due at once. Where nobody was accepted beside it, parts become half as large;
//	                            one that is alone already is deferred (4yz) or failed (5yz)
//	anything else             → deferred; failed once it has outlived its lifetime, but by no refusal of a sign-in or a
//	                            token, which is no message's fault
//
// A relay that stops spends no attempt on what it cut off. Where nothing but that and parks came of it, the message is
// released unchanged. A body that does not match its hash, and a message that panicked three times, is held.
func (r *Rules) Judge(c Case) Verdict {
	j := judgement{Case: &c, rules: r, had: counts(c.Envelope, &c.Before), lot: lot(), part: c.Before.Part}
	v := &j.verdict
	results := make([]envelope.Result, len(c.Envelope.Recipients))
	for i := range results {
		results[i].State = envelope.Queued
		if c.Before.State == envelope.Uncertain && len(c.Before.Results) == 0 {
			results[i].State = envelope.Uncertain
		}
	}
	copy(results, c.Before.Results)
	for i := range results {
		if results[i].Attempts = j.had[i]; !results[i].State.Final() && results[i].Due.IsZero() {
			results[i].Due = c.Now // it is due, like the message
		}
	}
	for k, i := range c.Tried {
		j.accepted = j.accepted || c.Outcome.Errs[k] == nil
		j.external = j.external || c.External != nil && c.External(i)
	}
	v.Progress = envelope.Progress{Results: results, Warned: c.Before.Warned}
	for k, i := range c.Tried {
		j.one(i, c.Outcome.Errs[k])
	}
	v.Progress.Part = j.part
	if j.accepted && c.Before.Part > 0 {
		v.Part = c.Before.Part
	}
	v.held = append(v.held, c.Held...)
	v.Progress.Changed = c.Now
	if v.Reply != nil {
		v.Progress.Reason = v.Reply.Error()
	}
	for _, res := range results {
		v.Progress.Attempts = max(v.Progress.Attempts, res.Attempts)
	}
	if held := holdReason(c.Outcome.Errs); held != "" {
		v.Outcome = "failed" // nothing more happens to it by itself
		v.Progress.State, v.Progress.Reason = envelope.Held, held
		return *v
	}
	v.Release = j.rulings[settled]+j.rulings[deferred] == 0 && j.part == c.Before.Part
	Sum(&v.Progress)
	v.Outcome = j.outcome()
	return *v
}

// outcome is that of the message where this was its end, else that of those tried.
func (j *judgement) outcome() string {
	v := &j.verdict
	switch {
	case v.Progress.State.Final():
		return string(v.Progress.State)
	case v.First(status.Uncertain) != nil:
		return "uncertain"
	case j.rulings[deferred] > 0:
		return "deferred"
	case j.rulings[parked] > 0:
		return "parked"
	case len(v.Failed) > 0:
		return "failed"
	case v.Accepted > 0:
		return "sent"
	}
	return ""
}

// one decides the fate of the recipient i by its reply e; nil: accepted.
func (j *judgement) one(i int, e *status.Error) {
	v, res := &j.verdict, &j.verdict.Progress.Results[i]
	was := res.State
	if e == nil {
		*res = envelope.Result{State: envelope.Sent, Reply: j.Outcome.Reply, Attempts: j.had[i] + 1, Changed: j.Now}
		v.Accepted++
		j.rulings[settled]++
		v.Tried = append(v.Tried, envelope.StepResult{Address: j.Envelope.Recipients[i].Address, State: envelope.Sent, Reply: res.Reply})
	} else {
		j.note(e)
		j.refused(i, e)
	}
	if e == nil || Behind(e.Stage) && !quota(e.Action) || e.Action == status.Uncertain {
		v.Counted++
	}
	v.Reached = v.Reached || e == nil || e.Action == status.Uncertain || Behind(e.Stage) && e.Rule != ""
	if was == envelope.Uncertain && (e == nil || e.Action == status.Uncertain) {
		v.Resent++
	}
}

// note takes in what the reply asks of the sender.
func (j *judgement) note(e *status.Error) {
	v, a := &j.verdict, e.Action
	if int(a) >= len(weights) {
		a = status.Retry
	}
	if v.first[a] == nil {
		v.first[a] = e
	}
	if v.Reply == nil || weights[a] > weights[min(int(v.Reply.Action), len(weights)-1)] {
		v.Reply = e
	}
}

// rule says what the reply means.
func (j *judgement) rule(i int, e *status.Error) (ruling, envelope.State) {
	switch a := e.Action; {
	case a == status.Fail:
		return settled, envelope.Failed
	case a == status.Uncertain:
		return deferred, envelope.Uncertain
	case a == status.ParkSender, a == status.ParkTenant, a == status.HoldSender:
		return parked, envelope.Deferred
	case a == status.HoldSenderExternal, a == status.HoldTenantExternal:
		// Refused for others' sake, inside recipients go on without them. With no others the reply knows better.
		if j.external && !j.External(i) {
			return untouched, envelope.Deferred
		}
		return parked, envelope.Deferred
	case j.Stopping:
		return untouched, envelope.Deferred
	case a == status.Split && (j.accepted || len(j.Tried) > 1):
		if !j.accepted {
			j.part = len(j.Tried) / 2
		}
		return untouched, envelope.Deferred
	case a == status.Split && !e.Temporary():
		return settled, envelope.Failed
	case a == status.RetryOnce && e.Rule != "" && i < len(j.Before.Results) && j.Before.Results[i].Rule == e.Rule:
		return settled, envelope.Failed
	case j.Probe && !Behind(e.Stage) && a != status.Split && a != status.RetryOnce:
		return parked, envelope.Deferred
	}
	return deferred, envelope.Deferred
}

// refused records what a reply means for the recipient i.
func (j *judgement) refused(i int, e *status.Error) {
	v, before := &j.verdict, j.verdict.Progress.Results[i]
	rule, state := j.rule(i, e)
	res := envelope.Result{State: state, Reply: e.Error(), Attempts: j.had[i], Rule: e.Rule, Due: j.Now, Owed: before.Owed}
	if before.State == envelope.Uncertain && state == envelope.Deferred {
		res.State = envelope.Uncertain // what is refused now may still have been accepted then
	}
	shown := state
	switch rule {
	case settled:
	case deferred:
		res.Attempts++
		res.Due = j.Now.Add(j.rules.wait(res.Attempts, j.lot, e.Wait))
		if !signIn(e.Stage) && j.rules.outlived(j.Now.Sub(j.Envelope.Received), res.Attempts) && !j.held() {
			res.State = envelope.Failed
			res.Reply = fmt.Sprintf("554 5.4.7 not delivered within %v; last reply: %s", j.rules.Lifetime, e.Error())
		}
	case parked:
		shown = envelope.Parked
		if e.Action == status.HoldSenderExternal || e.Action == status.HoldTenantExternal {
			v.held = append(v.held, i)
		}
	case untouched:
		shown = envelope.Queued
		res = before
		res.Due = j.Now
	}
	if res.State == envelope.Failed {
		if rule == settled {
			res.Attempts++
		}
		rule, shown = settled, envelope.Failed
		res.Due, res.Changed = time.Time{}, j.Now
		if before.State == envelope.Uncertain { // the refusal is of the second copy: the first may have arrived
			res.Reply += mayHaveArrived
		}
		v.Failed = append(v.Failed, i)
	}
	j.rulings[rule]++
	v.Progress.Results[i] = res
	v.Tried = append(v.Tried, envelope.StepResult{Address: j.Envelope.Recipients[i].Address, State: shown, Reply: res.Reply})
}

func (j *judgement) held() bool { return holdReason(j.Outcome.Errs) != "" }

// Waits reports whether some recipient's next attempt is for a hold to name.
func (v *Verdict) Waits() bool { return len(v.held) > 0 }

// GoesOn reports whether some recipient is due at now: the message has a part more to go at once.
func (v *Verdict) GoesOn(now time.Time) bool {
	p := &v.Progress
	return !p.State.Final() && !p.Due.After(now)
}

// HoldUntil makes those that wait for a hold due at until.
func (v *Verdict) HoldUntil(until time.Time) {
	for _, i := range v.held {
		if !v.Progress.Results[i].State.Final() {
			v.Progress.Results[i].Due = until
		}
	}
	if v.Progress.State != envelope.Held {
		Sum(&v.Progress)
	}
}

// Sum gives p the state and due time that follow from its recipients'.
func Sum(p *envelope.Progress) {
	ranks := [...]envelope.State{envelope.Sent, envelope.Failed, envelope.Queued, envelope.Deferred, envelope.Uncertain}
	highest := 0
	p.Due = time.Time{}
	for _, res := range p.Results {
		highest = max(highest, slices.Index(ranks[:], res.State))
		if !res.State.Final() && (p.Due.IsZero() || res.Due.Before(p.Due)) {
			p.Due = res.Due
		}
	}
	p.State = ranks[highest]
}

// holdReason names what makes the message one for a person to look at, or "".
func holdReason(errs []*status.Error) string {
	for _, e := range errs {
		if e != nil && (errors.Is(e, envelope.ErrCorrupt) || errors.Is(e, ErrPoison)) {
			return e.Err.Error()
		}
	}
	return ""
}
