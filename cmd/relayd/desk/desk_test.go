package desk

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/enrol"
	"relayd/pkg/dispatch"
	"relayd/pkg/entra/grant"
	"relayd/pkg/envelope"
	"relayd/pkg/queue"
	"relayd/pkg/status"
)

// changes are all changes of a delegated world with one sender, by what the audit log calls them.
func changes(t *testing.T, w *world) map[string]func() error {
	ctx := ops(t)
	renewed := tenantInput("contoso")
	renewed.CredentialExpires = "2043-01-01"
	return map[string]func() error{
		"tenant.add":    func() error { return w.SaveTenant(ctx, "", tenantInput("another")) },
		"tenant.change": func() error { return w.SaveTenant(ctx, "contoso", renewed) },
		"tenant.remove": func() error { return w.RemoveTenant(ctx, "empty") },
		"sender.add": func() error {
			return w.SaveSender(ctx, "", console.SenderInput{Match: "b@contoso.com", Tenant: "contoso"})
		},
		"sender.change": func() error {
			return w.SaveSender(ctx, "a@contoso.com", console.SenderInput{Match: "a@contoso.com", Tenant: "contoso", Connections: 1})
		},
		"sender.remove":        func() error { return w.RemoveSender(ctx, "a@contoso.com") },
		"sender.pause":         func() error { return w.Pause(ctx, "a@contoso.com") },
		"sender.resume":        func() error { return w.Resume(ctx, "a@contoso.com") },
		"consent.start":        func() error { return second(w.StartConsent(ctx, "a@contoso.com", "s")) },
		"tenant.consent.start": func() error { return second(w.StartAdminConsent(ctx, "contoso", "s")) },
		"consent.device":       func() error { return second(w.StartDevice(ctx, "a@contoso.com")) },
		"consent.invite":       func() error { return second(w.Invite(ctx, "a@contoso.com")) },
		"consent.revoke":       func() error { return w.Revoke(ctx, "a@contoso.com") },
		"consent.granted":      func() error { return w.Adopt(ctx, grant.Grant{Tenant: "contoso", Login: "a@contoso.com"}) },
	}
}

func newBusy(t *testing.T) *world {
	w := newDelegated(t)
	w.addTenant(tenantInput("empty"))
	if _, err := w.Invite(ops(t), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	w.events, w.entries, w.probed, w.consents.asked = nil, nil, nil, nil
	return w
}

// TestNothingChangesUnwritten: a change that the audit log does not take is not made, and says so.
func TestNothingChangesUnwritten(t *testing.T) {
	for what := range changes(t, newBusy(t)) {
		w := newBusy(t)
		w.auditFail = errors.New("disk full " + canary)
		before := w.registry.Content()
		err := changes(t, w)[what]()
		e, ok := errors.AsType[*status.Error](err)
		if !ok || !e.Temporary() || e.Advice == "" || strings.Contains(e.Error()+e.Cause+e.Advice, canary) || !errors.Is(err, w.auditFail) {
			t.Errorf("%s: got %v", what, err)
		}
		if diff := cmp.Diff(before, w.registry.Content()); diff != "" || w.events != nil || w.consents.asked != nil || w.probed != nil {
			t.Errorf("%s was done: %v %v %s", what, w.events, w.consents.asked, diff)
		}
	}
}

// TestEveryChangeIsWrittenFirst, with who and where from, and without a secret.
func TestEveryChangeIsWrittenFirst(t *testing.T) {
	for what := range changes(t, newBusy(t)) {
		w := newBusy(t)
		if err := changes(t, w)[what](); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if len(w.entries) != 1 || w.events[0] != "audit "+what || w.entries[0].Who != "ops@contoso.com" || w.entries[0].On == "" || w.entries[0].At.IsZero() {
			t.Errorf("%s: %v, %+v", what, w.events, w.entries)
		}
		w.noCanary()
	}
}

// TestWhatCannotBeInForceIsTakenBack, and the audit log says that it was not done.
func TestWhatCannotBeInForceIsTakenBack(t *testing.T) {
	for _, what := range []string{"tenant.add", "tenant.change", "tenant.remove", "sender.add", "sender.change", "sender.remove"} {
		w := newBusy(t)
		w.applied = errors.New("ca_file is gone")
		before := w.registry.Content()
		if err := changes(t, w)[what](); !errors.Is(err, w.applied) {
			t.Errorf("%s: got %v", what, err)
		}
		if diff := cmp.Diff(before, w.registry.Content()); diff != "" {
			t.Errorf("%s stays: %s", what, diff)
		}
		if e := w.last(); len(w.entries) != 2 || e.What != what || e.Error != "ca_file is gone" {
			t.Errorf("%s: %+v", what, w.entries)
		}
		if len(w.probed) != 0 {
			t.Errorf("%s: probed %v", what, w.probed)
		}
	}
}

func TestStoreFailures(t *testing.T) {
	for _, what := range []string{"tenant.add", "tenant.change", "tenant.remove", "sender.add", "sender.change", "sender.remove"} {
		w := newBusy(t)
		w.tenants.fail, w.senders.fail = errors.New("vault away"), errors.New("vault away")
		if err := changes(t, w)[what](); err == nil || w.last().Error != "vault away" || slices.Contains(w.events, "apply") {
			t.Errorf("%s: %v, %+v", what, err, w.last())
		}
	}
	w := newBusy(t) // and where it cannot even be taken back
	w.opts.Apply = func(context.Context) error {
		w.senders.mu.Lock()
		defer w.senders.mu.Unlock()
		w.senders.fail = errors.New("vault away")
		return errors.New("ca_file is gone")
	}
	err := w.SaveSender(ops(t), "", console.SenderInput{Match: "b@contoso.com", Tenant: "contoso"})
	if err == nil || !strings.Contains(err.Error(), "ca_file is gone") || !strings.Contains(err.Error(), "take the change back: vault away") {
		t.Errorf("got %v", err)
	}
}

func TestOverview(t *testing.T) {
	w := newDelegated(t)
	w.tally = map[envelope.State]queue.Tally{
		envelope.Queued: {Messages: 3, Bytes: 100, Oldest: time.Unix(50, 0)}, envelope.Failed: {Bytes: 7},
	}
	w.notReady = errors.New("the disk is full")
	w.live.Record(envelope.Step{ID: "x", At: time.Now(), What: envelope.StepAccepted})
	for range 60 {
		w.addSender(console.SenderInput{Match: strings.Repeat("x", len(w.x.Senders)) + "@contoso.com", Tenant: "contoso"})
	}
	o, err := w.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Queue["queued"] != 3 || o.Bytes != 107 || !o.Oldest["queued"].Equal(time.Unix(50, 0)) || !o.Oldest["failed"].IsZero() ||
		o.Ready != "the disk is full" || o.Version != "v1" || !o.Since.Equal(time.Unix(5, 0)) || len(o.Hour) != 60 || len(o.Day) != 24 ||
		o.Hour[59].Accepted+o.Hour[58].Accepted != 1 || len(o.Reload.Errors) != 1 || len(o.Expiries) != 2 {
		t.Errorf("got %+v", o)
	}
	if len(o.Parked) != overviewParked || o.Parked[0].State != console.SenderConsent {
		t.Errorf("%d parked", len(o.Parked))
	}
	w = newWorld(t)
	w.boxes = []dispatch.Mailbox{{Tenant: "filed", Login: "filed@contoso.com", Stops: []dispatch.Stop{{Reply: status.New(450, status.Enhanced{}, "q"), Quota: true}}}}
	if o, err := w.Overview(t.Context()); err != nil || len(o.Parked) != 1 || o.Parked[0].State != console.SenderHeld || o.Ready != "" {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestConfiguration(t *testing.T) {
	w := newDelegated(t)
	c, err := w.Configuration(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in := tenantInput("contoso")
	want := &console.Configuration{File: "/etc/relayd.yaml", Warnings: []string{"odd"}, Reload: console.Reload{At: time.Unix(1, 0), Errors: []string{"bad"}},
		Settings: []console.Setting{
			{Key: "hostname", Value: "relay.contoso.com", Source: "file:2"},
			{Key: "tenant contoso", Value: "delegated, " + in.TenantID + ", " + in.ClientID, Source: console.OriginPage},
			{Key: "sender a@contoso.com", Value: "tenant contoso", Source: console.OriginPage},
		}}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
}

func TestAuditIsListed(t *testing.T) {
	w := newDelegated(t)
	if err := w.Pause(ops(t), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	if list, err := w.Audit(t.Context(), 0, 5); err != nil || len(list) != 1 || list[0].What != "sender.pause" {
		t.Errorf("got %v, %v", list, err)
	}
}

// TestFollow gives each step the sender it is about.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		events := w.Follow(ctx)
		w.infos["2"] = queue.Info{ID: "2", Sender: "b@contoso.com"}
		w.live.Record(envelope.Step{ID: "1", Envelope: &envelope.Envelope{Sender: "a@contoso.com"}})
		w.live.Record(envelope.Step{ID: "2"})
		w.live.Record(envelope.Step{ID: "3"})
		for _, want := range []envelope.Address{"a@contoso.com", "b@contoso.com", ""} {
			if e := <-events; e.Sender != want {
				t.Errorf("got %+v, want of %q", e, want)
			}
		}
		w.live.Record(envelope.Step{ID: "4"})
		synctest.Wait() // it is offered to nobody
		cancel()
		for range events { //nolint:revive // ends once it is closed
		}
	})
}

func TestRedirectURI(t *testing.T) {
	if got := newWorld(t).RedirectURI(); got != "https://relay.contoso.com/oauth/callback" {
		t.Errorf("got %s", got)
	}
}

// The set-up guide shows it before there is a tenant.
var _ enrol.Redirector = (*Desk)(nil)
