package dispatch

import (
	"time"

	"relayd/pkg/dispatch/limit"
	"relayd/pkg/status"
)

// Stop is what keeps mail back.
type Stop struct {
	Reply    *status.Error // what was answered
	Quota    bool          // it heals by itself
	External bool          // only mail to recipients outside is kept back
	Tenant   bool          // the whole tenant's
	Since    time.Time
}

// Mailbox is where a mailbox stands that has had mail since the start, or still has.
type Mailbox struct {
	Tenant, Login string
	Limit         int       // recipients a day; 0: none
	Remaining     int       // of them
	Stops         []Stop    // the mailbox's own first; empty: it can send
	Rests         time.Time // until then nothing is tried, since Exchange Online asked to slow down; zero: no rest
}

// Mailboxes returns where each mailbox stands, in no order.
func (d *Dispatcher) Mailboxes() []Mailbox {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	list := make([]Mailbox, 0, len(d.mailboxes))
	for _, m := range d.mailboxes {
		box := Mailbox{Tenant: m.tenant.name, Login: string(m.route.Login), Limit: m.day.Limit}
		if box.Limit > 0 {
			box.Remaining = m.day.Remaining(now)
		}
		box.Stops = appendStops(box.Stops, &m.Gate, &m.External, false)
		box.Stops = appendStops(box.Stops, &m.tenant.Gate, &m.tenant.External, true)
		for _, g := range []*limit.Gate{&m.Gate, &m.tenant.Gate} {
			if !g.Parked() && g.Until.After(now) {
				box.Rests = later(box.Rests, g.Until)
			}
		}
		list = append(list, box)
	}
	return list
}

func appendStops(stops []Stop, whole, external *limit.Gate, tenant bool) []Stop {
	for _, g := range []*limit.Gate{whole, external} {
		if g.Parked() {
			stops = append(stops, Stop{Reply: g.Reply, Quota: g.Quota, External: g == external, Tenant: tenant, Since: g.Since})
		}
	}
	return stops
}

// Probe lets a parked mailbox, and its tenant, be tried at once: somebody says that the cause is cured. A quota stays held.
func (d *Dispatcher) Probe(tenant, login string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, m := range d.mailboxes {
		if m.tenant.name != tenant || login != "" && m.route.Login.Key() != login {
			continue
		}
		m.tenant.Gate.ProbeAt(now)
		if !m.Gate.Quota {
			m.Gate.ProbeAt(now)
		}
		m.probeRest = time.Time{}
		d.schedule(m, now)
		d.admitHeld(m.tenant)
	}
}
