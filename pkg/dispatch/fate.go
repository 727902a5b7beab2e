package dispatch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// rules are what a message's fate depends on besides the replies.
type rules struct {
	now      time.Time
	retry    []time.Duration
	lifetime time.Duration
	stopping bool // the attempt was cut off because the relay stops
}

// verdict is what one attempt means for the message and for its sender.
type verdict struct {
	outcome  string // label of relayd_deliveries_total; empty: cut off by the relay's stop, counts as nothing
	release  bool   // nothing that counts was tried
	progress envelope.Progress
	action   status.Action // the widest any recipient asks for
	reason   string        // the reply behind it
	accepted int           // recipients Exchange Online took
	counted  int           // recipients it may have counted: the accepted and the uncertain
	tried    bool          // an attempt was made
	answered bool          // Exchange Online accepted or refused a recipient: nothing is wrong with the sender
}

// schedule is when a message that failed for now is tried again.
//
// After the first failed attempt it waits the first step of the configured list, after the second the second, and so on;
// the last step repeats until the message's lifetime is over. Each wait is made up to a quarter longer, by chance, so
// that mail deferred by one outage does not come back in one moment.
func schedule(steps []time.Duration, attempts int) time.Duration {
	step := steps[min(max(attempts, 1), len(steps))-1]
	return step + rand.N(step/4+1)
}

// judge decides every tried recipient's fate.
//
//	accepted                 → sent
//	fail                     → failed
//	uncertain                → uncertain, tried again
//	anything else            → deferred; failed once the message has outlived its lifetime
//
// A park or a relay that stops is no attempt: where no recipient came further, the message is released unchanged. A body
// that does not match its hash, and a message that panicked three times, is held.
func (r *rules) judge(env *envelope.Envelope, p envelope.Progress, open []int, out status.Outcome) verdict {
	v := verdict{tried: true}
	results := make([]envelope.Result, len(env.Recipients))
	for i := range results {
		results[i].State = envelope.Queued
	}
	copy(results, p.Results)
	parks, most := 0, -1
	for k, i := range open {
		e := out.Errs[k]
		if e == nil {
			results[i] = envelope.Result{State: envelope.Sent, Reply: out.Reply}
			v.accepted++
			v.counted++
			v.answered = true
			continue
		}
		results[i] = envelope.Result{State: envelope.Deferred, Reply: e.Error()}
		switch e.Action {
		case status.Fail:
			results[i].State = envelope.Failed
			v.answered = true
		case status.Uncertain:
			results[i].State = envelope.Uncertain
			v.counted++
		case status.ParkSender, status.ParkTenant:
			parks++
		default: // deferred
		}
		if w := weight(e.Action); w > most {
			most, v.action, v.reason = w, e.Action, e.Error()
		}
	}
	v.progress = envelope.Progress{Attempts: p.Attempts, Changed: r.now, Reason: v.reason, Results: results}
	if held := holdReason(out.Errs); held != "" {
		v.outcome = "failed" // nothing more happens to it by itself
		v.progress.State, v.progress.Reason, v.progress.Attempts = envelope.Held, held, p.Attempts+1
		return v
	}
	if (parks > 0 || r.stopping) && !v.answered && v.counted == 0 {
		v.release = true
		if parks > 0 {
			v.outcome = "parked"
		}
		return v
	}
	due := r.now
	if parks == 0 {
		v.progress.Attempts++
		due = r.now.Add(schedule(r.retry, v.progress.Attempts))
		if r.outlived(env, v.progress.Attempts) {
			expire(results, r.lifetime)
		}
	}
	v.progress.State, v.outcome = sum(results)
	if v.progress.State != envelope.Sent && v.progress.State != envelope.Failed {
		v.progress.Due = due
	}
	return v
}

// weight orders actions by how much they decide: of the replies to one message's recipients the heaviest is the sender's
// and the log's. A failed recipient is settled and weighs least; an uncertain one asks for no more than a retry.
func weight(a status.Action) int {
	switch a {
	case status.Fail:
		return 0
	case status.Uncertain:
		return 2
	case status.Retry:
		return 1
	default:
		return 1 + int(a)
	}
}

// outlived reports whether a message is to fail at this attempt, its last.
//
// It is where the message is older than its lifetime and the waits between its attempts make up for that. A message that
// was parked, or stood behind a slow mailbox's other mail, spent its days without being tried: those cost it no life.
// The waits are counted a quarter longer, the most that chance adds.
func (r *rules) outlived(env *envelope.Envelope, attempts int) bool {
	if r.now.Sub(env.Received) < r.lifetime {
		return false
	}
	var waited time.Duration
	for n := 1; n < attempts && waited < r.lifetime; n++ {
		waited += r.retry[min(n, len(r.retry))-1]
	}
	return waited*5/4 >= r.lifetime
}

// expire gives up on every recipient that is not settled.
func expire(results []envelope.Result, lifetime time.Duration) {
	for i, res := range results {
		if !res.State.Final() {
			results[i] = envelope.Result{State: envelope.Failed, Reply: fmt.Sprintf("554 5.4.7 not delivered within %v; last reply: %s", lifetime, res.Reply)}
		}
	}
}

// sum returns the state of a message whose recipients have these, and the outcome's name for the metric.
func sum(results []envelope.Result) (envelope.State, string) {
	var open, uncertain, failed bool
	for _, res := range results {
		switch res.State {
		case envelope.Sent:
		case envelope.Failed:
			failed = true
		case envelope.Uncertain:
			uncertain = true
		default:
			open = true
		}
	}
	switch {
	case uncertain:
		return envelope.Uncertain, "uncertain"
	case open:
		return envelope.Deferred, "deferred"
	case failed:
		return envelope.Failed, "failed"
	default:
		return envelope.Sent, "sent"
	}
}

// holdReason names what makes the message one for a person to look at, or "".
func holdReason(errs []*status.Error) string {
	for _, e := range errs {
		if e == nil {
			continue
		}
		if errors.Is(e, envelope.ErrCorrupt) || errors.Is(e, errPoison) {
			return e.Err.Error()
		}
	}
	return ""
}

// log writes the one line an attempt has in the log.
func (v *verdict) log(log *zap.Logger, out status.Outcome) {
	switch {
	case v.release && v.outcome == "parked":
		log.Debug("not sent: parked", zap.String("reply", v.reason))
	case v.release:
		log.Info("not sent: stopping")
	case v.progress.State == envelope.Sent:
		log.Info("sent", zap.String("reply", out.Reply))
	case v.progress.State == envelope.Held:
		log.Error("held", zap.String("reply", v.progress.Reason))
	case v.progress.State == envelope.Failed:
		log.Warn("failed", zap.Int("accepted", v.accepted), zap.String("reply", v.reason), causes(out))
	default:
		log.Warn(string(v.progress.State), zap.Int("accepted", v.accepted), zap.Time("due", v.progress.Due),
			zap.String("reply", v.reason), causes(out))
	}
}

// causes is what lies behind the first refusal, for the log only.
func causes(out status.Outcome) zap.Field {
	for _, e := range out.Errs {
		if e != nil && e.Err != nil {
			return zap.Error(e.Err)
		}
	}
	return zap.Skip()
}
