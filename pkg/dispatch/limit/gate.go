package limit

import (
	"math/rand/v2"
	"time"

	"relayd/pkg/status"
)

// Gate closes a mailbox or a tenant for a while.
//
//	back-off   a reply asks to slow down          nothing for 15 s, then 30 s, 1 min … up to 10 min while such replies go on
//	park       a failure that is nobody's mail's  one probe with real mail after 1 min, 2 min, 4 min … up to 15 min
//	hold       a quota is used up                 one probe after 30 min, then each hour; where the reply's row of the
//	                                              catalogue says how long to wait, after that
//
// Each wait is made up to a tenth longer, by chance, so that gates closed by one outage do not open in one moment. A
// probe that tells nothing, since the network failed it, say, is followed by the next after a park's wait.
//
// An attempt that began before the gate last closed is no news: of three attempts that meet one throttling, one counts,
// and the success of an old session cures nothing.
type Gate struct {
	Reply *status.Error // why it is parked or held; nil: it is not
	Quota bool          // held
	Since time.Time     // when it was parked or held
	Until time.Time     // closed before this time
	Probe uint64        // number of the one attempt a parked gate lets through, while it is under way; 0: none

	closed  time.Time // when it closed last
	strikes int       // in a row
	struck  time.Time // when the first of them was
	told    time.Time // when people were last told of a hold
	quiet   bool      // they were not told of this one
}

const (
	backOffFirst, backOffMost = 15 * time.Second, 10 * time.Minute
	probeFirst, probeMost     = time.Minute, 15 * time.Minute
	quotaFirst, quotaMost     = 30 * time.Minute, time.Hour

	// A quota that comes back bit by bit is used up again each hour. Who was told once knows.
	quotaQuiet = 24 * time.Hour

	// Probes after a start are spread over this time.
	stagger = 15 * time.Second
)

// Parked reports whether the gate is parked or held.
func (g *Gate) Parked() bool { return g.Reply != nil }

// Reason returns why the gate is parked or held, or "".
func (g *Gate) Reason() string {
	if g.Reply == nil {
		return ""
	}
	return g.Reply.Error()
}

// News reports whether an attempt begun then says anything the gate does not know.
func (g *Gate) News(begun time.Time) bool { return begun.After(g.closed) }

func (g *Gate) shut(now time.Time, first, most time.Duration) {
	wait := min(first<<min(g.strikes, 16), most)
	if g.strikes == 0 {
		g.struck = now
	}
	g.strikes++
	g.closed = now
	g.Until = now.Add(wait + rand.N(wait/10+1))
}

// BackOff closes the gate, and reports whether that was news and how long such replies have been going on. A parked gate
// stays parked.
func (g *Gate) BackOff(begun, now time.Time) (news bool, lasts time.Duration) {
	if !g.News(begun) {
		return false, 0
	}
	if g.Parked() {
		g.Again(now)
		return true, 0
	}
	g.shut(now, backOffFirst, backOffMost)
	return true, now.Sub(g.struck)
}

// AtLeast keeps a gate that has just been closed so for wait.
func (g *Gate) AtLeast(now time.Time, wait time.Duration) {
	if until := now.Add(wait); until.After(g.Until) {
		g.Until = until
	}
}

// Park closes the gate until a probe gets through. fresh: it was not parked, or for another kind of cause; tell: people
// are to be told.
func (g *Gate) Park(begun, now time.Time, reply *status.Error, quota bool) (fresh, tell bool) {
	fresh = g.Reply == nil || g.Quota != quota
	switch {
	case fresh:
		*g = Gate{Reply: reply, Quota: quota, Since: now, told: g.told}
		if g.quiet = quota && !g.told.IsZero() && now.Sub(g.told) < quotaQuiet; quota && !g.quiet {
			g.told = now
		}
	case !g.News(begun):
		return false, false
	}
	g.Reply = reply
	if wait := reply.Wait; quota && wait > 0 {
		g.shut(now, wait, wait)
	} else if quota {
		g.shut(now, quotaFirst, quotaMost)
	} else {
		g.shut(now, probeFirst, probeMost)
	}
	return fresh, fresh && !g.quiet
}

// Again closes a parked gate after a probe that told nothing.
func (g *Gate) Again(now time.Time) { g.shut(now, probeFirst, probeMost) }

// Open opens the gate and forgets its strikes. was: it was parked or held; tell: and people know of it.
func (g *Gate) Open(begun time.Time) (was, tell bool) {
	if !g.News(begun) {
		return false, false
	}
	was, tell = g.Parked(), g.Parked() && !g.quiet
	*g = Gate{told: g.told}
	return was, tell
}

// ProbeAt lets a parked gate be probed at now. A back-off goes on: no change of ours cures that.
func (g *Gate) ProbeAt(now time.Time) {
	if g.Parked() {
		g.Until = now
	}
}

// Idle reports whether nothing would be forgotten with g.
func (g *Gate) Idle(now time.Time) bool {
	return g.Reply == nil && !g.Until.After(now) && (g.told.IsZero() || now.Sub(g.told) >= quotaQuiet)
}

// Memo is a parked gate written down.
type Memo struct {
	Since  int64  `json:"since"`          // ms since 1970
	Until  int64  `json:"until"`          // ms since 1970
	Told   int64  `json:"told,omitempty"` // ms since 1970; 0: nobody was
	Quiet  bool   `json:"quiet,omitempty"`
	Quota  bool   `json:"quota,omitempty"`
	Code   int    `json:"code"`
	Detail [3]int `json:"enhanced"`
	Text   string `json:"text"`
	Stage  string `json:"stage,omitempty"`
	Rule   string `json:"rule,omitempty"`
	Cause  string `json:"cause,omitempty"`
	Advice string `json:"advice,omitempty"`
}

// Memo returns what to write of g; nil: it is not parked.
func (g *Gate) Memo() *Memo {
	if g.Reply == nil {
		return nil
	}
	e := g.Reply
	m := &Memo{
		Since: g.Since.UnixMilli(), Until: g.Until.UnixMilli(), Quiet: g.quiet, Quota: g.Quota, Code: e.Code, Detail: e.Enhanced,
		Text: e.Text, Stage: string(e.Stage), Rule: e.Rule, Cause: e.Cause, Advice: e.Advice,
	}
	if !g.told.IsZero() {
		m.Told = g.told.UnixMilli()
	}
	return m
}

// Recall parks g as m says. A park is probed within seconds, since the start may have been the cure; a quota at the time
// it was to be, as far as the wall clock can be trusted.
func (g *Gate) Recall(now time.Time, m *Memo) {
	if m == nil {
		return
	}
	*g = Gate{
		Reply: &status.Error{Code: m.Code, Enhanced: m.Detail, Text: m.Text, Stage: status.Stage(m.Stage), Rule: m.Rule, Cause: m.Cause, Advice: m.Advice},
		Quota: m.Quota, quiet: m.Quiet, Since: time.UnixMilli(m.Since), Until: now,
	}
	if m.Told != 0 {
		g.told = time.UnixMilli(min(m.Told, now.UnixMilli()))
	}
	if wait := time.Duration(m.Until-now.UnixMilli()) * time.Millisecond; m.Quota && wait > 0 {
		g.Until = now.Add(min(wait, quotaMost))
	}
	g.Until = g.Until.Add(rand.N(stagger))
}
