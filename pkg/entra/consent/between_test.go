package consent

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

// between is Records in which others act, or the store fails, at the moment that matters.
type between struct {
	grant.Records
	put       func(name string, revision uint64) error // before a Put
	deleteErr error
	names     func() // after Names
}

func (b *between) Names(ctx context.Context) ([]string, error) {
	names, err := b.Records.Names(ctx)
	if b.names != nil {
		b.names()
	}
	return names, err
}

func (b *between) Put(ctx context.Context, name string, data []byte, revision uint64) (uint64, error) {
	if b.put != nil {
		if err := b.put(name, revision); err != nil {
			return 0, err
		}
	}
	return b.Records.Put(ctx, name, data, revision)
}

func (b *between) Delete(ctx context.Context, name string) error {
	if b.deleteErr != nil {
		return b.deleteErr
	}
	return b.Records.Delete(ctx, name)
}

var errDisk = errors.New("disk full")

// TestCallbackOvertaken: another node takes the state between this one's reading and taking it.
func TestCallbackOvertaken(t *testing.T) {
	r := newRig(t)
	other := r.Consents
	store := &between{Records: r.pending}
	r.options.Pending = store
	slow := r.node(t)
	cb := callback(r.begin(t, ann()))
	overtaken := 0
	store.put = func(string, uint64) error {
		if overtaken++; overtaken == 1 {
			if _, err := other.Finish(t.Context(), cb); err != nil {
				t.Errorf("the quicker one: %v", err)
			}
		}
		return nil
	}
	_, err := slow.Finish(t.Context(), cb)
	wantRefusal(t, err, "sign-in-unknown")
	if overtaken != 1 || len(r.grants()) != 1 || r.entra.count() != 1 {
		t.Errorf("overtaken %d times, adopted %d, %d requests", overtaken, len(r.grants()), r.entra.count())
	}
}

// TestInvitationOvertaken: of two sign-ins by one link that end well, another is accepted between this one's check and its use.
func TestInvitationOvertaken(t *testing.T) {
	r := newRig(t)
	other := r.Consents
	store := &between{Records: r.invitations}
	r.options.Invitations = store
	slow := r.node(t)
	i := r.invite(t)
	first := r.accepted(t, i.Code, "one")
	overtaken := 0
	store.put = func(string, uint64) error {
		if overtaken++; overtaken == 1 {
			if _, err := other.Finish(t.Context(), r.accepted(t, i.Code, "two")); err != nil {
				t.Errorf("the quicker one: %v", err)
			}
		}
		return nil
	}
	// Entra ID's answer to first is good before the other begins.
	_, err := slow.Finish(t.Context(), first)
	wantRefusal(t, err, "sign-in-link-used")
	if overtaken != 1 || len(r.grants()) != 1 {
		t.Errorf("overtaken %d times, adopted %d", overtaken, len(r.grants()))
	}
}

// TestMarksOutliveFailedDeletes: what has served is marked before it is dropped, so that it serves once even where it stays.
func TestMarksOutliveFailedDeletes(t *testing.T) {
	r := newRig(t)
	r.options.Pending = &between{Records: r.pending, deleteErr: errDisk}
	r.options.Invitations = &between{Records: r.invitations, deleteErr: errDisk}
	r.Consents = r.node(t)
	i := r.invite(t)
	again := r.accepted(t, i.Code, "owner")
	r.entra.claims = map[string]any{"nonce": "of neither"}
	_, err := r.Finish(t.Context(), again)
	wantRefusal(t, err, "sign-in-identity")
	r.entra.claims = nil
	cb := r.accepted(t, i.Code, "owner")
	if _, err := r.Finish(t.Context(), cb); err != nil {
		t.Fatal(err)
	}
	if r.pending.len() == 0 || r.invitations.len() == 0 || r.logs.FilterMessageSnippet("not dropped").Len() == 0 || r.logs.FilterMessageSnippet("not settled").Len() != 1 {
		t.Fatalf("nothing failed: %d sign-ins, %d links", r.pending.len(), r.invitations.len())
	}
	for _, used := range []Callback{cb, again} {
		_, err = r.Finish(t.Context(), used)
		wantRefusal(t, err, "sign-in-unknown")
	}
	if _, err := r.Invitation(t.Context(), i.Code); !errors.Is(err, ErrInvitation) {
		t.Errorf("the link: got %v", err)
	}
	for _, left := range []string{r.pending.contents(), r.invitations.contents()} {
		wantNoSecret(t, "what stays", left, i.Code)
	}
}

// TestStoreTakesNothing: nothing is begun that could not be finished.
func TestStoreTakesNothing(t *testing.T) {
	for name, err := range map[string]error{"fails": errDisk, "another was quicker": nil} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.entra.device = codes(nil)
			i := r.invite(t)
			full := func(records grant.Records) *between {
				return &between{Records: records, put: func(name string, _ uint64) error {
					if err == nil {
						_, _ = records.Put(t.Context(), name, []byte("{}"), 0) // that name is taken
					}
					return err
				}}
			}
			r.options.Pending, r.options.Devices, r.options.Invitations = full(r.pending), full(r.devices), full(r.invitations)
			c := r.node(t)
			_, err := c.Start(t.Context(), ann())
			wantRefusal(t, err, "sign-in-store")
			_, err = c.StartAdmin(t.Context(), "contoso", "session-1")
			wantRefusal(t, err, "sign-in-store")
			_, err = c.Accept(t.Context(), i.Code, "owner")
			wantRefusal(t, err, "sign-in-store")
			_, err = c.StartDevice(t.Context(), ann())
			wantRefusal(t, err, "sign-in-store")
			_, err = c.Invite(t.Context(), ann(), 0)
			wantRefusal(t, err, "sign-in-store")
		})
	}
}

// TestNothingIsRedeemedUntaken: a state that cannot be taken is not redeemed; once the store is back, it can be.
func TestNothingIsRedeemedUntaken(t *testing.T) {
	r := newRig(t)
	cb := callback(r.begin(t, ann()))
	store := &between{Records: r.pending, put: func(string, uint64) error { return errDisk }}
	r.options.Pending = store
	c := r.node(t)
	_, err := c.Finish(t.Context(), cb)
	wantRefusal(t, err, "sign-in-store")
	if r.entra.count() != 0 {
		t.Error("redeemed")
	}
	store.put = nil
	if _, err := c.Finish(t.Context(), cb); err != nil {
		t.Errorf("once it is back: %v", err)
	}
}

// TestLinkCannotBeUsedUp: where the link cannot be marked, nothing is adopted.
func TestLinkCannotBeUsedUp(t *testing.T) {
	r := newRig(t)
	i := r.invite(t)
	store := &between{Records: r.invitations, put: func(string, uint64) error { return errDisk }}
	r.options.Invitations = store
	r.Consents = r.node(t)
	_, err := r.Finish(t.Context(), r.accepted(t, i.Code, "owner"))
	wantRefusal(t, err, "sign-in-store")
	store.put = nil
	if _, err := r.Finish(t.Context(), r.accepted(t, i.Code, "owner")); err != nil || len(r.grants()) != 1 {
		t.Errorf("got %v, adopted %d", err, len(r.grants()))
	}
}

// TestDeviceOvertaken: another node polls between this one's reading and claiming the poll.
func TestDeviceOvertaken(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		other := r.Consents
		d := r.code(t)
		store := &between{Records: r.devices}
		r.options.Devices = store
		slow := r.node(t)
		overtaken := 0
		store.put = func(string, uint64) error {
			if overtaken++; overtaken == 1 {
				if _, more := other.poll(t.Context(), d.ID); more {
					t.Error("the quicker one did not end it")
				}
			}
			return nil
		}
		<-time.After(deviceInterval)
		if at, more := slow.poll(t.Context(), d.ID); !more || !at.After(time.Now()) {
			t.Errorf("got %v, %v", at, more)
		}
		if r.entra.count() != 1 || len(r.grants()) != 1 || overtaken != 1 {
			t.Errorf("%d requests, adopted %d, overtaken %d", r.entra.count(), len(r.grants()), overtaken)
		}
	})
}

// TestDeviceClaimHolds: a poll whose answer takes its time is not repeated by another node.
func TestDeviceClaimHolds(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		other := r.node(t)
		d := r.code(t)
		r.script(func(form url.Values) (int, any) {
			<-time.After(20 * time.Second)
			return r.entra.yes(form)
		})
		<-time.After(deviceInterval)
		done := make(chan struct{})
		go func() { defer close(done); r.poll(t.Context(), d.ID) }()
		<-time.After(10 * time.Second)
		if at, more := other.poll(t.Context(), d.ID); !more || time.Until(at) <= 10*time.Second {
			t.Errorf("got %v, %v, want it left to the first", at, more)
		}
		<-done
		if r.entra.count() != 1 || r.state(t, d.ID).State != DeviceDone {
			t.Errorf("%d requests, %+v", r.entra.count(), r.state(t, d.ID))
		}
	})
}

// TestDeviceOutcomeNotStored: the grant is in force all the same, and the log says what the page cannot.
func TestDeviceOutcomeNotStored(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		d := r.code(t)
		puts := 0
		r.options.Devices = &between{Records: r.devices, put: func(string, uint64) error {
			if puts++; puts == 2 { // after the claim
				return errDisk
			}
			return nil
		}}
		c := r.node(t)
		r.script(r.entra.yes, refuse(400, "expired_token", 70020))
		defer run(t, c)()
		<-time.After(2 * time.Minute)
		if got := r.state(t, d.ID); len(r.grants()) != 1 || got.State != DeviceFailed || r.entra.count() != 2 {
			t.Errorf("adopted %d, %+v, %d requests", len(r.grants()), got, r.entra.count())
		}
		if found := r.logs.FilterMessageSnippet("state not stored").All(); len(found) != 1 || found[0].ContextMap()["state"] != DeviceDone {
			t.Errorf("logged %v", found)
		}
		r.wantCleanLogs(t)
	})
}

// TestCatalogueMissing: without an Explain, or with one that has nothing to say, a refusal is not quoted.
func TestCatalogueMissing(t *testing.T) {
	r := newRig(t)
	inner := r.Consents.options.Registration
	r.Consents.options.Registration = func(name string) (Registration, error) {
		reg, err := inner(name)
		reg.Explain = nil
		return reg, err
	}
	r.script(refuse(400, "invalid_client", 7000215))
	_, err := r.Finish(t.Context(), callback(r.begin(t, ann())))
	if e := wantRefusal(t, err, "sign-in-no-answer"); strings.Contains(errors.Unwrap(e).Error(), "7000215") {
		t.Errorf("quoted: %v", errors.Unwrap(e))
	}
}

// TestTenantGone: the tenant is taken out of the configuration while the browser is at Entra ID.
func TestTenantGone(t *testing.T) {
	r := newRig(t)
	cb := callback(r.begin(t, ann()))
	where, err := r.StartAdmin(t.Context(), "contoso", "session-1")
	if err != nil {
		t.Fatal(err)
	}
	admin := callback(r.sent(t, where))
	admin.Code, admin.AdminConsent, admin.Tenant = "", true, tenantID
	r.Consents.options.Registration = func(string) (Registration, error) { return r.registration("gone") }
	for _, back := range []Callback{cb, admin} {
		result, err := r.Finish(t.Context(), back)
		if e, ok := errors.AsType[*status.Error](err); !ok || e.Text != "no such tenant" || result.Tenant != "contoso" || result.User != "" {
			t.Errorf("got %+v, %v", result, err)
		}
	}
	if len(r.grants()) != 0 || r.entra.count() != 0 {
		t.Errorf("adopted %d, %d requests", len(r.grants()), r.entra.count())
	}
}

// TestEntraGoesAway: it answers for a while, and then not.
func TestEntraGoesAway(t *testing.T) {
	r := newRig(t)
	where, err := r.StartAdmin(t.Context(), "contoso", "session-1")
	if err != nil {
		t.Fatal(err)
	}
	admin := callback(r.sent(t, where))
	admin.Code, admin.AdminConsent, admin.Tenant = "", true, tenantID
	r.entra.change(func() { r.entra.down = true })
	_, err = r.Finish(t.Context(), admin)
	wantRefusal(t, err, "sign-in-no-answer")

	r.entra.change(func() { r.entra.down = false })
	cb := callback(r.begin(t, ann()))
	r.script(func(form url.Values) (int, any) {
		r.entra.change(func() { r.entra.down = true }) // before the keys
		return r.entra.yes(form)
	})
	_, err = r.Finish(t.Context(), cb)
	wantRefusal(t, err, "sign-in-no-answer")
	if len(r.grants()) != 0 {
		t.Errorf("adopted %v", r.grants())
	}
}

// TestRoomOvertaken: a sign-in of the same browser is finished while room is made for another.
func TestRoomOvertaken(t *testing.T) {
	r := newRig(t)
	other := r.Consents
	store := &between{Records: r.pending}
	r.options.Pending = store
	slow := r.node(t)
	cb := callback(r.begin(t, ann()))
	store.names = func() {
		store.names = nil
		if _, err := other.Finish(t.Context(), cb); err != nil {
			t.Errorf("the other sign-in: %v", err)
		}
	}
	if _, err := slow.Start(t.Context(), ann()); err != nil {
		t.Errorf("the next sign-in: %v", err)
	}
	if store.names != nil {
		t.Error("nobody asked what is pending")
	}
}
