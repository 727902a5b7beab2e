package ticket

import (
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/sandbox/directory/refusal"
)

var ann = Subject{Tenant: "t", App: "a", User: "ann@b.c", ObjectID: "1", Scope: "openid"}

func number(r *refusal.Refusal) int {
	if r == nil {
		return 0
	}
	return r.Number
}

func fine[T any](T) *refusal.Refusal { return nil }

func TestCodeLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		early, late, checked := s.NewCode(Code{Subject: ann}), s.NewCode(Code{Subject: ann}), s.NewCode(Code{Subject: ann})
		<-time.After(CodeLife - time.Second)
		if _, refused := s.Redeem(checked, func(Code) *refusal.Refusal { return refusal.New(500112) }); number(refused) != 500112 {
			t.Errorf("got %v", refused)
		}
		if c, refused := s.Redeem(early, fine); refused != nil || c.Subject != ann {
			t.Errorf("got %+v, %v", c, refused)
		}
		<-time.After(time.Second)
		for code, want := range map[string]int{late: 70008, checked: 70008, early: 54005, "x": 9002313} {
			if _, refused := s.Redeem(code, fine); number(refused) != want {
				t.Errorf("got %v, want %d", refused, want)
			}
		}
		<-time.After(2 * time.Hour)
		s.NewCode(Code{}) // sweeps
		if _, refused := s.Redeem(late, fine); number(refused) != 9002313 || len(s.codes) != 1 {
			t.Errorf("%d codes are kept, got %v", len(s.codes), refused)
		}
	})
}

// Each use starts the 90 days anew.
func TestRefreshLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		first := s.NewRefresh(ann)
		<-time.After(RefreshLife - time.Minute)
		who, second, refused := s.Refresh(first, fine)
		if refused != nil || who != ann || second == first {
			t.Fatalf("got %v %v", who, refused)
		}
		<-time.After(time.Minute)
		if _, _, refused := s.Refresh(first, fine); number(refused) != 700082 || refused.Value == "" {
			t.Errorf("got %+v", refused)
		}
		if _, _, refused := s.Refresh(second, fine); refused != nil {
			t.Errorf("got %v", refused)
		}
		short := New(Options{RefreshLife: time.Hour})
		token := short.NewRefresh(ann)
		<-time.After(time.Hour)
		if _, _, refused := short.Refresh(token, fine); number(refused) != 700082 {
			t.Errorf("got %v", refused)
		}
		if _, _, refused := s.Refresh(second, func(Subject) *refusal.Refusal { return refusal.New(50057) }); number(refused) != 50057 {
			t.Errorf("got %v", refused)
		}
		<-time.After(RefreshLife + 2*time.Hour)
		s.NewRefresh(ann)
		if len(s.refresh) != 1 {
			t.Errorf("%d tokens are kept", len(s.refresh))
		}
	})
}

func TestStrictRotation(t *testing.T) {
	s := New(Options{Strict: true})
	first := s.NewRefresh(ann)
	refusing := func(Subject) *refusal.Refusal { return refusal.New(50076) }
	if _, next, refused := s.Refresh(first, refusing); number(refused) != 50076 || next != "" {
		t.Errorf("got %q, %v", next, refused)
	}
	_, second, refused := s.Refresh(first, fine)
	if refused != nil {
		t.Fatalf("what was refused counts as used: %v", refused)
	}
	for _, token := range []string{first, second} {
		if _, _, refused := s.Refresh(token, fine); number(refused) != 70000 {
			t.Errorf("got %v", refused)
		}
	}
}

func TestDevicePolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		code, user, interval := s.NewDevice(Subject{Tenant: "t", App: "a", Scope: "openid"})
		if interval != 5*time.Second {
			t.Errorf("interval %v", interval)
		}
		poll := func(want int) {
			t.Helper()
			if _, refused := s.Poll(code, fine); number(refused) != want {
				t.Errorf("got %v, want %d", refused, want)
			}
		}
		poll(70016)
		<-time.After(4 * time.Second) // a second's haste is forgiven
		poll(70016)
		<-time.After(3900 * time.Millisecond)
		poll(700160)
		<-time.After(8900 * time.Millisecond) // 10 s are due now
		poll(700160)
		<-time.After(14 * time.Second)
		poll(70016)
		if _, refused := s.Poll(code, func(Subject) *refusal.Refusal { return refusal.New(70000) }); number(refused) != 70000 {
			t.Errorf("another client: got %v", refused)
		}
		if _, ok := s.Waiting(user); !ok || s.Answer("NOBODYS99", &ann) {
			t.Error("the wrong one waits")
		}
		if !s.Answer(user, &ann) || s.Answer(user, nil) {
			t.Error("not answered once")
		}
		<-time.After(20 * time.Second)
		if who, refused := s.Poll(code, fine); refused != nil || who != ann {
			t.Errorf("got %+v, %v", who, refused)
		}
		poll(70018)
	})
}

func TestDeviceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Interval: 2 * time.Second})
		late, lateUser, interval := s.NewDevice(Subject{})
		if interval != 2*time.Second {
			t.Errorf("interval %v", interval)
		}
		declined, declinedUser, _ := s.NewDevice(Subject{})
		if !s.Answer(declinedUser, nil) {
			t.Error("not declined")
		}
		if _, refused := s.Poll(declined, fine); number(refused) != 700170 {
			t.Errorf("got %v", refused)
		}
		<-time.After(DeviceLife)
		if _, ok := s.Waiting(lateUser); ok || s.Answer(lateUser, &ann) {
			t.Error("a code outlived its life")
		}
		if _, refused := s.Poll(late, fine); number(refused) != 70019 {
			t.Errorf("got %v", refused)
		}
		<-time.After(2 * time.Hour)
		s.NewDevice(Subject{})
		if _, refused := s.Poll(late, fine); number(refused) != 70018 || len(s.devices) != 1 {
			t.Errorf("%d are kept, got %v", len(s.devices), refused)
		}
	})
}

// A sign-in gets a new id, so that one planted before is worth nothing.
func TestSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		one := s.SignIn("planted", ann)
		if _, ok := s.SignedIn("planted", "t"); ok || one == "planted" {
			t.Error("the id was the client's choice")
		}
		bob := Subject{Tenant: "u", User: "bob@d.e"}
		two := s.SignIn(one, bob)
		if _, ok := s.SignedIn(one, "t"); ok {
			t.Error("the old id still works")
		}
		for tenant, want := range map[string]Subject{"t": ann, "u": bob, "v": {}} {
			if who, _ := s.SignedIn(two, tenant); who != want {
				t.Errorf("%s: got %+v", tenant, who)
			}
		}
		<-time.After(25 * time.Hour)
		if _, ok := s.SignedIn(two, "t"); ok {
			t.Error("a session outlived its day")
		}
		three := s.SignIn(two, ann)
		if _, ok := s.SignedIn(three, "u"); ok {
			t.Error("an ended session was joined")
		}
		s.SignOut(three)
		if _, ok := s.SignedIn(three, "t"); ok || len(s.sessions) != 0 {
			t.Errorf("%d sessions are kept", len(s.sessions))
		}
	})
}

func TestOwner(t *testing.T) {
	s := New(Options{})
	code, token := s.NewCode(Code{Subject: ann}), s.NewRefresh(ann)
	device, user, _ := s.NewDevice(Subject{})
	s.Answer(user, &ann)
	for _, handed := range []string{code, token, device} {
		if who, ok := s.Owner(handed); !ok || who.User != ann.User {
			t.Errorf("got %+v", who)
		}
	}
	if _, ok := s.Owner(""); ok {
		t.Error("nobody owns nothing")
	}
}
