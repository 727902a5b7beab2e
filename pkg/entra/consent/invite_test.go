package consent

import (
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func (r *rig) invite(t *testing.T) Invitation {
	t.Helper()
	i, err := r.Invite(t.Context(), ann(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// accepted opens the link in a session and returns the callback that would end it well.
func (r *rig) accepted(t *testing.T, code, session string) Callback {
	t.Helper()
	where, err := r.Accept(t.Context(), code, session)
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	cb := callback(r.sent(t, where))
	cb.Session = session
	return cb
}

func TestInvitation(t *testing.T) {
	r := newRig(t)
	i := r.invite(t)
	if len(i.Code) != 43 || i.Tenant != "contoso" || i.Login != "ann@contoso.com" || i.Sender != "*@contoso.com" || time.Until(i.Expires).Round(time.Hour) != invitationLife {
		t.Errorf("got %+v", i)
	}
	wantNoSecret(t, "the store", r.invitations.contents(), i.Code)
	for range 3 { // looking uses nothing up
		if got, err := r.Invitation(t.Context(), i.Code); err != nil || !got.Expires.Equal(i.Expires) || got.Login != i.Login || got.Code != i.Code {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	got, err := r.Finish(t.Context(), r.accepted(t, i.Code, "owner"))
	if want := (Result{Tenant: "contoso", Sender: "*@contoso.com", Login: "ann@contoso.com", User: "Ann@contoso.com", Invited: true}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := r.Invitation(t.Context(), i.Code); !errors.Is(err, ErrInvitation) {
		t.Errorf("looked at after use: %v", err)
	}
	if _, err := r.Accept(t.Context(), i.Code, "owner"); !errors.Is(err, ErrInvitation) {
		t.Errorf("opened after use: %v", err)
	}
	if len(r.grants()) != 1 || r.invitations.len() != 0 {
		t.Errorf("adopted %d, left %s", len(r.grants()), r.invitations.contents())
	}
	r.wantCleanLogs(t, i.Code)
}

// TestInvitationServesAgain fails sign-ins by one link in every way an owner can, then ends one well.
func TestInvitationServesAgain(t *testing.T) {
	r := newRig(t)
	i := r.invite(t)
	cancelled := r.accepted(t, i.Code, "owner")
	cancelled.Code, cancelled.Error = "", "access_denied"
	_, err := r.Finish(t.Context(), cancelled)
	wantRefusal(t, err, "sign-in-declined")

	r.entra.claims = map[string]any{"preferred_username": "bob@contoso.com"}
	_, err = r.Finish(t.Context(), r.accepted(t, i.Code, "owner"))
	wantRefusal(t, err, "sign-in-user")
	r.entra.claims = nil

	foreign := r.accepted(t, i.Code, "owner")
	foreign.Session = "somebody"
	_, err = r.Finish(t.Context(), foreign)
	wantRefusal(t, err, "sign-in-foreign")

	r.adopt = errors.New("disk full")
	_, err = r.Finish(t.Context(), r.accepted(t, i.Code, "owner"))
	wantRefusal(t, err, "sign-in-store")
	r.adopt = nil

	if _, err := r.Finish(t.Context(), r.accepted(t, i.Code, "another browser of the owner")); err != nil || len(r.grants()) != 1 {
		t.Errorf("got %v, adopted %d", err, len(r.grants()))
	}
}

// TestInvitationIsTakenOnce ends many sign-ins by one link well at the same time.
func TestInvitationIsTakenOnce(t *testing.T) {
	r := newRig(t)
	i := r.invite(t)
	var callbacks []Callback
	nonces := map[string]string{}
	for n := range maxPerSession {
		where, err := r.Accept(t.Context(), i.Code, "browser")
		if err != nil {
			t.Fatal(err)
		}
		u, _ := url.Parse(where)
		cb := Callback{Session: "browser", State: u.Query().Get("state"), Code: strings.Repeat("c", n+1)}
		nonces[cb.Code] = u.Query().Get("nonce")
		callbacks = append(callbacks, cb)
	}
	r.entra.nonces = nonces
	var mu sync.Mutex
	accepted := 0
	var all sync.WaitGroup
	for _, cb := range callbacks {
		all.Go(func() {
			_, err := r.Finish(t.Context(), cb)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				accepted++
			} else {
				wantRefusal(t, err, "sign-in-link-used")
			}
		})
	}
	all.Wait()
	if accepted != 1 || len(r.grants()) != 1 {
		t.Errorf("accepted %d, adopted %d", accepted, len(r.grants()))
	}
}

func TestInvitationExpires(t *testing.T) {
	signingKey()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		i := r.invite(t)
		another := ann()
		another.Login = "other@contoso.com" // a mailbox has one link
		short, err := r.Invite(t.Context(), another, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		defer run(t, r.Consents)()
		<-time.After(time.Hour)
		if _, err := r.Invitation(t.Context(), short.Code); !errors.Is(err, ErrInvitation) {
			t.Errorf("the short one: %v", err)
		}
		<-time.After(invitationLife - time.Hour - 5*time.Minute)
		cb := r.accepted(t, i.Code, "owner")
		<-time.After(5*time.Minute + sweepEvery)
		for _, ask := range []func() error{
			func() error { _, err := r.Invitation(t.Context(), i.Code); return err },
			func() error { _, err := r.Accept(t.Context(), i.Code, "owner"); return err },
		} {
			if err := ask(); !errors.Is(err, ErrInvitation) {
				t.Errorf("got %v", err)
			}
		}
		_, err = r.Finish(t.Context(), cb) // opened in time, ended too late
		wantRefusal(t, err, "sign-in-link-used")
		if r.invitations.len() != 0 {
			t.Errorf("not swept: %s", r.invitations.contents())
		}
	})
}

// TestInvitationBounds opens one link from many browsers: they share the room of one.
func TestInvitationBounds(t *testing.T) {
	r := newRig(t)
	i := r.invite(t)
	for n := range 5 * maxPerSession {
		r.accepted(t, i.Code, strings.Repeat("s", n+1))
	}
	if got := r.pending.len(); got != maxPerSession {
		t.Errorf("got %d records, want %d", got, maxPerSession)
	}
}

func TestInviteRefuses(t *testing.T) {
	r := newRig(t)
	q := ann()
	q.Login = "ann"
	_, err := r.Invite(t.Context(), q, 0)
	wantRefusal(t, err, "sign-in-login")
	q = ann()
	q.Tenant = "fabrikam"
	if _, err := r.Invite(t.Context(), q, 0); err == nil {
		t.Error("an unknown tenant has a link")
	}
	r.invitations.fail(errors.New("away"))
	_, err = r.Invite(t.Context(), ann(), 0)
	wantRefusal(t, err, "sign-in-store")
	_, err = r.Accept(t.Context(), random(), "owner")
	wantRefusal(t, err, "sign-in-store")
	r.invitations.fail(nil)
	i := r.invite(t)
	if _, err = r.Accept(t.Context(), i.Code, ""); err == nil {
		t.Error("opened without a session")
	}
	cb := r.accepted(t, i.Code, "owner")
	r.invitations.fail(errors.New("away"))
	_, err = r.Finish(t.Context(), cb)
	wantRefusal(t, err, "sign-in-store")
	if len(r.grants()) != 0 {
		t.Error("adopted without using the link up")
	}
	r.invitations.fail(nil)
	for range maxInvitations {
		_, _ = r.invitations.Put(t.Context(), random(), []byte(`{}`), 0)
	}
	_, err = r.Invite(t.Context(), ann(), 0)
	wantRefusal(t, err, "sign-in-busy")
}

func FuzzInvitation(f *testing.F) {
	f.Add("")
	f.Add(random())
	f.Add(sum("x") + "=")
	f.Fuzz(func(t *testing.T, code string) {
		r := newRig(t)
		if _, err := r.Invite(t.Context(), ann(), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Invitation(t.Context(), code); !errors.Is(err, ErrInvitation) {
			t.Errorf("got %v", err)
		}
		if _, err := r.Accept(t.Context(), code, "s"); !errors.Is(err, ErrInvitation) {
			t.Errorf("got %v", err)
		}
	})
}

// A link that was made again, or withdrawn, opens nothing, nor does a sign-in begun by it end well; other mailboxes' stay.
func TestWithdraw(t *testing.T) {
	r := newRig(t)
	first := r.invite(t)
	begun := r.accepted(t, first.Code, "one")
	other, err := r.Invite(t.Context(), Request{Tenant: first.Tenant, Login: "other@contoso.com", Sender: "other@contoso.com"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	second := r.invite(t)
	if _, err := r.Invitation(t.Context(), first.Code); !errors.Is(err, ErrInvitation) {
		t.Errorf("the link made before: got %v", err)
	}
	if _, err := r.Finish(t.Context(), begun); err == nil || len(r.grants()) != 0 {
		t.Errorf("a sign-in begun by it: got %v, %d grants", err, len(r.grants()))
	}
	if err := r.Withdraw(t.Context(), second.Tenant, strings.ToUpper(second.Login)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Invitation(t.Context(), second.Code); !errors.Is(err, ErrInvitation) {
		t.Errorf("the link that was withdrawn: got %v", err)
	}
	if _, err := r.Invitation(t.Context(), other.Code); err != nil {
		t.Errorf("another mailbox's link: got %v", err)
	}
}
