package desk

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"relayd/pkg/admin/console"
	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

func TestConsentBegins(t *testing.T) {
	w := newDelegated(t)
	w.addSender(console.SenderInput{Match: "*@contoso.org", Tenant: "contoso", Login: "a@contoso.com"})
	w.addSender(console.SenderInput{Match: "*@contoso.net", Tenant: "contoso"})
	w.consents.device = consent.Device{ID: "d1", UserCode: "ABC", VerificationURI: "https://microsoft.com/devicelogin", State: "failed",
		Problem: &status.Error{Code: 535, Text: "denied", Cause: "c", Advice: "a"}, Ended: time.Unix(4, 0)}
	url, err := w.StartConsent(ops(t), "A@contoso.com", "s1")
	if err != nil || !strings.HasPrefix(url, "https://login.example/") {
		t.Errorf("got %v", err)
	}
	if _, err := w.StartAdminConsent(ops(t), "contoso", "s2"); err != nil {
		t.Error(err)
	}
	d, err := w.StartDevice(ops(t), "*@contoso.org")
	if err != nil || d.ID != "d1" || d.UserCode != "ABC" || d.Problem == nil || d.Problem.Cause != "c" || !d.Problem.Since.Equal(time.Unix(4, 0)) {
		t.Errorf("got %+v, %v", d, err)
	}
	want := []consent.Request{
		{Tenant: "contoso", Login: "a@contoso.com", Sender: "a@contoso.com", Session: "s1"}, {Tenant: "contoso", Session: "s2"},
		{Tenant: "contoso", Login: "a@contoso.com", Sender: "*@contoso.org"},
	}
	if diff := cmp.Diff(want, w.consents.asked, cmpopts.EquateComparable(consent.Request{})); diff != "" {
		t.Error(diff)
	}
	for what, err := range map[string]error{
		"Device": second(w.Device(t.Context(), "d2")), "StartConsent": second(w.StartConsent(ops(t), "x@contoso.com", "s")),
		"StartAdminConsent": second(w.StartAdminConsent(ops(t), "nobody", "s")), "Invite": second(w.Invite(ops(t), "x@contoso.com")),
		"StartDevice": second(w.StartDevice(ops(t), "x@contoso.com")),
	} {
		if !errors.Is(err, console.ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", what, err)
		}
	}
	for match, want := range map[string]string{"filed@contoso.com": "nobody has to sign in", "*@contoso.net": "names no mailbox"} {
		_, err := w.StartConsent(ops(t), match, "s")
		if e, ok := errors.AsType[*status.Error](err); !ok || e.Temporary() || !strings.Contains(e.Text+e.Cause, want) {
			t.Errorf("%s: got %v", match, err)
		}
	}
	if d, err := w.Device(t.Context(), "d1"); err != nil || d.State != "failed" {
		t.Errorf("got %+v, %v", d, err)
	}
	w.consents.fail = errors.New("vault away")
	for what, err := range map[string]error{
		"consent.start": second(w.StartConsent(ops(t), "a@contoso.com", "s")), "tenant.consent.start": second(w.StartAdminConsent(ops(t), "contoso", "s")),
		"consent.device": second(w.StartDevice(ops(t), "a@contoso.com")), "consent.invite": second(w.Invite(ops(t), "a@contoso.com")), "": second(w.Device(t.Context(), "d1")),
	} {
		if !errors.Is(err, w.consents.fail) {
			t.Errorf("%s: got %v", what, err)
		}
		if what != "" && !slices.ContainsFunc(w.entries, func(e console.Entry) bool { return e.What == what && e.Error == "vault away" }) {
			t.Errorf("%s: its failure is not in the audit log", what)
		}
	}
	w.noCanary()
}

func TestConsentEnds(t *testing.T) {
	w := newDelegated(t)
	w.consents.fail = status.New(535, status.Enhanced{}, "this sign-in was started in another browser")
	if _, err := w.FinishConsent(t.Context(), console.Callback{State: canary, Code: canary}); !errors.Is(err, w.consents.fail) || len(w.entries) != 0 {
		t.Errorf("%v; anyone could fill the audit log: %v", err, w.entries)
	}
	w.consents.result = consent.Result{Tenant: "contoso", Sender: "a@contoso.com"}
	if _, err := w.FinishConsent(ops(t), console.Callback{State: canary, Code: canary}); !errors.Is(err, w.consents.fail) {
		t.Error(err)
	}
	if e := w.last(); e.What != "consent.refused" || e.On != "a@contoso.com" || e.Who != "ops@contoso.com" || e.Error == "" {
		t.Errorf("got %+v", e)
	}
	w.consents.result, w.consents.fail = consent.Result{Tenant: "contoso", Sender: "a@contoso.com", User: "a@contoso.com", Invited: true}, nil
	got, err := w.FinishConsent(t.Context(), console.Callback{})
	if diff := cmp.Diff(&console.Consented{Sender: "a@contoso.com", Tenant: "contoso", User: "a@contoso.com", Invited: true}, got); err != nil || diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
	w.auditFail = errors.New("disk full") // what was refused is refused all the same
	w.consents.fail = errors.New("refused")
	if _, err := w.FinishConsent(t.Context(), console.Callback{}); !errors.Is(err, w.consents.fail) || w.logs.FilterMessage("audit log: a failure was not written").Len() != 1 {
		t.Error(err)
	}
	w.noCanary()
}

func TestAdopt(t *testing.T) {
	w := newDelegated(t)
	g := grant.Grant{Tenant: "contoso", Login: "a@contoso.com", User: "A@contoso.com", Refresh: canary, Access: canary}
	if err := w.Adopt(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	want := console.Entry{Who: "A@contoso.com", What: "consent.granted", On: "a@contoso.com", After: "tenant=contoso user=A@contoso.com"}
	if diff := cmp.Diff(want, w.last(), cmpopts.IgnoreFields(console.Entry{}, "At")); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(w.events, []string{"audit consent.granted", "adopt"}) || !slices.Equal(w.probed, []string{"contoso/a@contoso.com"}) {
		t.Errorf("%v, %v", w.events, w.probed)
	}
	if err := w.Adopt(ops(t), g); err != nil || w.last().Who != "ops@contoso.com" {
		t.Errorf("%v, %+v", err, w.last())
	}
	w.probed = nil
	w.tokenFail = errors.New("vault away")
	if err := w.Adopt(ops(t), g); !errors.Is(err, w.tokenFail) || w.last().Error != "vault away" || w.probed != nil {
		t.Errorf("%v, %+v", err, w.last())
	}
	w.tokenFail, w.auditFail, w.events = nil, errors.New("disk full"), nil
	if err := w.Adopt(ops(t), g); !errors.Is(err, w.auditFail) || len(w.events) != 0 {
		t.Errorf("%v; adopted without a word: %v", err, w.events)
	}
	w.auditFail, w.grants = nil, nil
	if err := w.RemoveSender(ops(t), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	if err := w.Adopt(ops(t), g); err == nil || len(w.grants) != 0 {
		t.Errorf("%v; a refresh token is kept for a sender that was removed meanwhile", err)
	}
	w.noCanary()
}

func TestInvitation(t *testing.T) {
	w := newDelegated(t)
	i, err := w.Invite(ops(t), "a@contoso.com")
	if err != nil || i.URL != "https://relay.contoso.com/consent/"+i.Code || i.Login != "a@contoso.com" || time.Until(i.Expires) < 71*time.Hour {
		t.Fatalf("got %+v, %v", i, err)
	}
	seen, err := w.Invitation(t.Context(), i.Code)
	if diff := cmp.Diff(i, seen); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if url, err := w.AcceptInvitation(t.Context(), i.Code, "anon"); err != nil || url == "" || w.consents.asked[1].Session != "anon" {
		t.Errorf("got %v", err)
	}
	before := len(w.entries)
	if e := w.last(); e.What != "consent.invite" {
		t.Errorf("opening a link, which its holder can do without end, is written down: %+v", e)
	}
	for _, err := range []error{second(w.Invitation(t.Context(), "forged")), second(w.AcceptInvitation(t.Context(), "forged", "anon"))} {
		if !errors.Is(err, console.ErrExpired) {
			t.Errorf("got %v, want ErrExpired", err)
		}
	}
	if len(w.entries) != before {
		t.Error("guesses at links fill the audit log")
	}
	w.consents.fail = consent.ErrInvitation // another was quicker
	if _, err := w.AcceptInvitation(t.Context(), i.Code, "anon"); !errors.Is(err, console.ErrExpired) {
		t.Errorf("got %v, %+v", err, w.last())
	}
	w.noCanary()
}

// A link for a sender that goes by another mailbox now, or is gone, opens nothing.
func TestInvitationOfAnotherTime(t *testing.T) {
	for name, change := range map[string]func(w *world) error{
		"removed": func(w *world) error { return w.RemoveSender(ops(t), "a@contoso.com") },
		"another login": func(w *world) error {
			return w.SaveSender(ops(t), "a@contoso.com", console.SenderInput{Match: "a@contoso.com", Tenant: "contoso", Login: "b@contoso.com"})
		},
	} {
		w := newDelegated(t)
		i, err := w.Invite(ops(t), "a@contoso.com")
		if err != nil {
			t.Fatal(err)
		}
		if err := change(w); err != nil {
			t.Fatal(err)
		}
		asked := len(w.consents.asked)
		for _, err := range []error{second(w.Invitation(t.Context(), i.Code)), second(w.AcceptInvitation(t.Context(), i.Code, "anon"))} {
			if !errors.Is(err, console.ErrExpired) {
				t.Errorf("%s: got %v, want ErrExpired", name, err)
			}
		}
		if len(w.consents.asked) != asked || !slices.Equal(w.consents.ended, []string{"contoso/a@contoso.com"}) {
			t.Errorf("%s: asked %v, withdrawn %v", name, w.consents.asked, w.consents.ended)
		}
	}
}

func TestRevoke(t *testing.T) {
	w := newDelegated(t)
	w.grants = []grant.Grant{{Tenant: "contoso", Login: "a@contoso.com", Refresh: canary}}
	if err := w.Revoke(ops(t), "A@contoso.com"); err != nil || len(w.grants) != 0 {
		t.Errorf("%v, left %v", err, w.grants)
	}
	if e := w.last(); e.What != "consent.revoke" || e.Before != "login=a@contoso.com" {
		t.Errorf("got %+v", e)
	}
	w.tokenFail = errors.New("vault away")
	if err := w.Revoke(ops(t), "a@contoso.com"); !errors.Is(err, w.tokenFail) || w.last().Error != "vault away" {
		t.Errorf("%v, %+v", err, w.last())
	}
}
