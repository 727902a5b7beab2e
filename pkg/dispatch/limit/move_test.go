package limit

import (
	"testing"
	"time"

	"relayd/pkg/dispatch/fate"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// verdict is that on a message to one recipient who got this reply.
func verdict(e *status.Error) *fate.Verdict {
	r := fate.Rules{Retry: []time.Duration{time.Minute}, Lifetime: time.Hour}
	env := &envelope.Envelope{Received: epoch, Recipients: []envelope.Recipient{{Address: "a@example.com"}}}
	v := r.Judge(fate.Case{Envelope: env, Tried: []int{0}, Now: epoch, Outcome: status.Outcome{Errs: []*status.Error{e}},
		External: func(int) bool { return true }})
	return &v
}

func said(stage status.Stage, code int, action status.Action) *status.Error {
	return &status.Error{Code: code, Stage: stage, Action: action, Text: "no", Rule: "rule"}
}

func outside(envelope.Address) bool { return true }

// Only the word on connections takes some away.
func TestMoveConnections(t *testing.T) {
	for _, tt := range []struct {
		code, want int
	}{{432, 4}, {454, 8}, {421, 8}} {
		var m Mailbox
		Move(&m, new(Tenant), Attempt{Number: 1, Begun: epoch, Most: 8}, verdict(said(status.StageDot, tt.code, status.BackOffSender)), epoch)
		if got := m.Connections.Allowed(epoch, 8); got != tt.want || !m.Gate.Until.After(epoch) {
			t.Errorf("%d: %d connections, closed until %v, want %d", tt.code, got, m.Gate.Until.Sub(epoch), tt.want)
		}
		// One that met the same takes no more.
		Move(&m, new(Tenant), Attempt{Number: 2, Begun: epoch, Most: 8}, verdict(said(status.StageDot, tt.code, status.BackOffSender)), epoch.Add(time.Second))
		if got := m.Connections.Allowed(epoch.Add(time.Second), 8); got != tt.want {
			t.Errorf("%d again: %d connections, want %d", tt.code, got, tt.want)
		}
	}
}

// In a tenant's slow start a success lets more begin, a failure on the way closes the tenant, and what is the sender's or
// the recipient's own does neither.
func TestMoveInASlowStart(t *testing.T) {
	for _, tt := range []struct {
		name   string
		e      *status.Error
		free   int
		closed bool
	}{
		{"accepted", nil, 2, false},
		{"refused behind AUTH", said(status.StageRcpt, 550, status.Fail), 2, false},
		{"lost on the way", &status.Error{Code: 451, Stage: status.StageEHLO}, 1, true},
		{"the tenant is asked for patience", said(status.StageConnect, 451, status.BackOffTenant), 1, true},
		{"the sender is parked", said(status.StageAuth, 535, status.ParkSender), 1, false},
		{"the sender is asked for patience", said(status.StageAuth, 454, status.BackOffSender), 1, false},
	} {
		var m Mailbox
		var x Tenant
		x.Ramp.Start()
		a := Attempt{Number: 1, Begun: epoch, Start: x.Ramp.Begin(), Most: 3, Workers: 100, Outside: outside}
		now := epoch.Add(time.Second)
		Move(&m, &x, a, verdict(tt.e), now)
		if x.Ramp.Free() != tt.free || x.Gate.Until.After(now) != tt.closed {
			t.Errorf("%s: %d may begin, closed=%v; want %d, %v", tt.name, x.Ramp.Free(), x.Gate.Until.After(now), tt.free, tt.closed)
		}
		if a := x.Ramp.Begin(); tt.name == "accepted" && a == 0 {
			t.Error("the slow start is over after one success")
		}
	}
	// Where nothing was tried the connection is given back, and nothing said.
	var x Tenant
	x.Ramp.Start()
	a := Attempt{Number: 1, Begun: epoch, Start: x.Ramp.Begin(), Most: 3, Workers: 100}
	if events := Move(new(Mailbox), &x, a, nil, epoch); len(events) != 0 || x.Ramp.Free() != 1 || x.Gate.Until.After(epoch) {
		t.Errorf("%v, %d may begin", events, x.Ramp.Free())
	}
}

// Events tell each park and its end once, with the reply and the time.
func TestMoveEvents(t *testing.T) {
	for _, action := range []status.Action{status.ParkSender, status.ParkTenant, status.HoldSender, status.HoldSenderExternal, status.HoldTenantExternal} {
		var m Mailbox
		var x Tenant
		gate := map[status.Action]*Gate{status.ParkSender: &m.Gate, status.ParkTenant: &x.Gate, status.HoldSender: &m.Gate,
			status.HoldSenderExternal: &m.External, status.HoldTenantExternal: &x.External}[action]
		quota := action != status.ParkSender && action != status.ParkTenant
		e := said(status.StageAuth, 535, action)
		move := func(number uint64, at time.Duration, e *status.Error) []Event {
			return Move(&m, &x, Attempt{Number: number, Begun: epoch.Add(at), Most: 3, Workers: 9, Outside: outside}, verdict(e), epoch.Add(at+time.Second))
		}
		first := move(1, 0, e)
		if len(first) != 1 || first[0].Gate != gate || first[0].Quota != quota || first[0].Reply != e || !first[0].Tell || !first[0].Since.Equal(epoch.Add(time.Second)) {
			t.Errorf("%v: %+v", action, first)
		}
		if again := move(2, time.Hour, e); len(again) != 0 {
			t.Errorf("%v again: %+v", action, again)
		}
		gate.Probe = 3
		if nothing := move(3, 2*time.Hour, &status.Error{Code: 451, Stage: status.StageConnect}); len(nothing) != 0 || gate.Probe != 0 || !gate.Until.After(epoch.Add(2*time.Hour)) {
			t.Errorf("%v, a probe that tells nothing: %+v, closed until %v", action, nothing, gate.Until.Sub(epoch))
		}
		last := move(4, 10*time.Hour, nil)
		if len(last) != 1 || last[0].Gate != gate || last[0].Reply != nil || last[0].Quota != quota || !last[0].Tell || !last[0].Since.Equal(epoch.Add(time.Second)) || gate.Parked() {
			t.Errorf("%v, the end: %+v", action, last)
		}
	}
}

// A hold for recipients outside is not ended by one inside that was taken.
func TestMoveInsideSaysNothingOfOutside(t *testing.T) {
	var m Mailbox
	var x Tenant
	Move(&m, &x, Attempt{Number: 1, Begun: epoch, Outside: outside}, verdict(said(status.StageDot, 550, status.HoldTenantExternal)), epoch)
	later := epoch.Add(time.Hour)
	Move(&m, &x, Attempt{Number: 2, Begun: later, Outside: func(envelope.Address) bool { return false }}, verdict(nil), later)
	if !x.External.Parked() {
		t.Error("opened by a recipient inside")
	}
}
