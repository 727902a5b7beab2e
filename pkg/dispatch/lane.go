package dispatch

import (
	"container/heap"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/envelope"
)

// lane is one sender with waiting mail.
type lane struct {
	sender   envelope.Address
	home     *mailbox         // its route's; nil: no route at present
	spare    *mailbox         // its fallback's, while home is parked; nil: not looked for, or none
	mailbox  *mailbox         // the one of the two it goes by
	fallback envelope.Address // sender to go through while home is parked
	from     envelope.Address // its route's From

	due     time.Time // of the earliest message, as far as known; zero: nothing to do
	rest    time.Time // not before this: it had its turn, or the queue failed
	turn    uint64    // number of its last attempt
	active  int       // attempts under way
	failing bool      // its last claim failed
	shown   string    // why the source was told it is parked
	pos     int       // in the mailbox's heap; -1: not in it
}

// at returns when the lane's turn may come.
func (l *lane) at() time.Time {
	if l.rest.After(l.due) {
		return l.rest
	}
	return l.due
}

// notify is the source's word that sender has mail due at due.
func (d *Dispatcher) notify(sender envelope.Address, due time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lanes[sender.Key()]
	if l == nil {
		l = &lane{sender: sender, pos: -1}
		d.lanes[sender.Key()] = l
	}
	d.wake(l, due)
}

// wake makes the lane due no later than due. The caller holds mu.
func (d *Dispatcher) wake(l *lane, due time.Time) {
	if l.mailbox == nil {
		d.assign(l)
	}
	if l.due.IsZero() || due.Before(l.due) {
		l.due = due
	} else if l.pos >= 0 {
		return
	}
	if l.mailbox == nil {
		return // no route: Reload will ask again
	}
	d.enter(l)
	d.schedule(l.mailbox, time.Now())
}

// enter puts the lane, which has something due, into its mailbox's heap, or where it belongs there. The caller holds mu.
func (d *Dispatcher) enter(l *lane) {
	if l.pos >= 0 {
		heap.Fix(&l.mailbox.lanes, l.pos)
	} else {
		heap.Push(&l.mailbox.lanes, l)
	}
}

// unlink takes the lane out of its mailbox's heap. The caller holds mu.
func (d *Dispatcher) unlink(l *lane) {
	if l.pos >= 0 {
		heap.Remove(&l.mailbox.lanes, l.pos)
	}
	l.due = time.Time{}
}

// assign puts the lane under the mailbox its route names, with the route's limits. The caller holds mu.
func (d *Dispatcher) assign(l *lane) {
	route, err := d.opts.Router.Route(l.sender)
	if err != nil {
		d.show(l, err.Error())
		return
	}
	l.home = d.enlist(route)
	l.home.members[l] = struct{}{}
	l.fallback, l.from = route.Fallback, route.From
	d.place(l)
}

// leave takes the lane away from its mailboxes. The caller holds mu.
func (d *Dispatcher) leave(l *lane) {
	d.unlink(l)
	d.forgetSpare(l)
	if l.home != nil {
		if l.mailbox != l.home {
			l.home.away--
		}
		delete(l.home.members, l)
	}
	l.home, l.mailbox = nil, nil
}

// place lets the lane go by its home, or by its fallback while home is parked: parked for a person to see to, since a
// quota heals by itself. A fallback that is parked too is none, and its own is not looked at. It tells the source whether
// the lane's mail can go. The caller holds mu.
func (d *Dispatcher) place(l *lane) {
	want := l.home
	if !l.home.stuck() {
		defer d.forgetSpare(l)
	} else if spare := d.spare(l); spare != nil && !spare.stuck() {
		want = spare
	}
	if was := l.mailbox; want != was {
		due := l.due
		if was != nil {
			d.unlink(l)
			how := map[bool]string{true: "goes by its own mailbox again", false: "goes by its fallback while its mailbox is parked"}
			d.log.Info(how[want == l.home], zap.String("sender", string(l.sender)),
				zap.String("tenant", want.tenant.name), zap.String("login", string(want.route.Login)))
		}
		switch {
		case want != l.home:
			l.home.away++
		case was != nil:
			l.home.away--
		}
		l.mailbox = want
		if l.due = due; !due.IsZero() {
			d.enter(l)
		}
		for _, m := range []*mailbox{l.home, l.spare} {
			if m != nil {
				d.schedule(m, time.Now())
			}
		}
	}
	d.show(l, want.parkedFor())
}

// spare returns the mailbox of the lane's fallback, or nil. The caller holds mu.
func (d *Dispatcher) spare(l *lane) *mailbox {
	if l.spare == nil && l.fallback != "" {
		route, err := d.opts.Router.Route(l.fallback)
		if err != nil || route.Mailbox() == l.home.key {
			return nil
		}
		l.spare = d.enlist(route)
		l.spare.members[l] = struct{}{}
	}
	return l.spare
}

func (d *Dispatcher) forgetSpare(l *lane) {
	if l.spare != nil {
		delete(l.spare.members, l)
		l.spare = nil
	}
}

// show tells the source, once, why nothing of this sender can be sent; "" that it can. The caller holds mu.
func (d *Dispatcher) show(l *lane, reason string) {
	if l.shown == reason {
		return
	}
	if l.mailbox == nil {
		d.log.Warn("sender parked", zap.String("sender", string(l.sender)), zap.String("reason", reason))
	}
	l.shown = reason
	d.opts.Source.Park(l.sender, reason)
}

// lanes is a heap by due time; a lane that has had its turn stands behind all that were due before that, so the senders
// of one mailbox take turns however much mail one of them has.
type lanes []*lane

func (h lanes) Len() int { return len(h) }
func (h lanes) Less(i, j int) bool {
	if c := h[i].at().Compare(h[j].at()); c != 0 {
		return c < 0
	}
	return h[i].turn < h[j].turn
}
func (h lanes) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].pos, h[j].pos = i, j }
func (h *lanes) Push(x any) {
	l := x.(*lane)
	l.pos = len(*h)
	*h = append(*h, l)
}
func (h *lanes) Pop() any {
	n := len(*h) - 1
	l := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	l.pos = -1
	return l
}
