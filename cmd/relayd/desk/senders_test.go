package desk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"relayd/pkg/admin/console"
	"relayd/pkg/config"
	"relayd/pkg/dispatch"
	"relayd/pkg/entra/grant"
	"relayd/pkg/envelope"
	"relayd/pkg/queue"
	"relayd/pkg/status"
)

// newDelegated is a world with a delegated tenant contoso and its sender a@contoso.com.
func newDelegated(t *testing.T) *world {
	w := newWorld(t)
	w.addTenant(tenantInput("contoso"))
	w.addSender(console.SenderInput{Match: "a@contoso.com", Tenant: "contoso"})
	w.events, w.entries, w.probed = nil, nil, nil
	return w
}

// TestSenderStates has everything wrong with a sender at once, and cures one after the other.
func TestSenderStates(t *testing.T) {
	w := newDelegated(t)
	since := time.Unix(7, 0)
	if err := w.Pause(ops(t), "A@contoso.com"); err != nil {
		t.Fatal(err)
	}
	w.boxes = []dispatch.Mailbox{{Tenant: "contoso", Login: "A@contoso.com", Limit: 100, Remaining: 40, Stops: []dispatch.Stop{
		{Reply: status.New(450, status.Enhanced{}, "quota"), Quota: true, Since: since},
		{Reply: &status.Error{Code: 535, Text: "locked", Cause: "why", Advice: "unlock"}, Since: since},
	}}}
	w.grants = []grant.Grant{{Tenant: "contoso", Login: "a@contoso.com", User: "A@contoso.com", Refresh: canary, Access: canary,
		Granted: since, Used: since, Expires: since.Add(time.Hour), Dead: "revoked", Reason: "it was revoked", DeadAt: since}}
	step := func(state, problem, advice string) {
		t.Helper()
		s := w.sender1("a@CONTOSO.com")
		if s.State != state || (s.Problem == nil) != (problem == "") || s.Problem != nil && (s.Problem.Text != problem || s.Problem.Advice != advice) {
			t.Errorf("got %s %+v, want %s %q", s.State, s.Problem, state, problem)
		}
	}
	step(console.SenderPaused, "paused by ops@contoso.com", "Resume it to have its mail sent")
	w.noCanary()
	if err := w.Resume(ops(t), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	step(console.SenderConsent, "it was revoked", "advice of revoked")
	s := w.sender1("a@contoso.com")
	want := &console.Consent{User: "A@contoso.com", Granted: since, Used: since, IdleEnds: since.Add(grant.IdleLife), Problem: &console.Problem{
		Text: "it was revoked", Cause: "cause of revoked", Advice: "advice of revoked", Since: since}}
	if diff := cmp.Diff(want, s.Consent); diff != "" || !s.TokenExpires.Equal(since.Add(time.Hour)) || s.Remaining != 40 || s.Grant != "delegated" {
		t.Errorf("%+v: %s", s, diff)
	}
	w.grants[0].Dead = ""
	step(console.SenderParked, "535 locked", "unlock")
	w.boxes[0].Stops = w.boxes[0].Stops[:1]
	step(console.SenderHeld, "450 quota", "")
	w.boxes[0].Stops = nil
	step(console.SenderReady, "", "")
	w.grants = nil
	step(console.SenderConsent, "nobody has signed in for a@contoso.com yet", "Start the authentication, or hand the mailbox's owner a one-time link")
	w.changeFile("senders:", "senders:\n  - {address: a@contoso.com, tenant: filed}")
	all, err := w.Senders(t.Context(), console.SenderQuery{Text: "a@contoso"})
	if err != nil || len(all.Senders) != 2 || all.Senders[0].Origin != console.OriginFile || all.Senders[1].State != console.SenderShadowed {
		t.Errorf("got %+v, %v", all, err)
	}
	step(console.SenderReady, "", "") // the file's, which sends
}

// TestStoppedTenantStopsAll shows a sender as parked that has sent nothing since the start, where its whole tenant is.
func TestStoppedTenantStopsAll(t *testing.T) {
	w := newWorld(t)
	w.expires = time.Unix(3, 0)
	w.boxes = []dispatch.Mailbox{{Tenant: "filed", Login: "x@fabrikam.com", Limit: 500, Remaining: 200, Stops: []dispatch.Stop{
		{Reply: status.New(535, status.Enhanced{}, "blocked"), Tenant: true}}}}
	if s := w.sender1("filed@contoso.com"); s.State != console.SenderParked || !s.TokenExpires.Equal(w.expires) || s.Remaining != 10000 {
		t.Errorf("got %+v", s)
	}
	o, err := w.Overview(t.Context())
	if err != nil || len(o.Parked) != 2 {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestDomainSumsItsMailboxes(t *testing.T) {
	w := newWorld(t)
	w.addSender(console.SenderInput{Match: "own@fabrikam.com", Tenant: "filed"})
	parked := []dispatch.Stop{{Reply: status.New(535, status.Enhanced{}, "locked")}}
	w.boxes = []dispatch.Mailbox{
		{Tenant: "filed", Login: "A@Fabrikam.com", Limit: 500, Remaining: 30},
		{Tenant: "filed", Login: "b@fabrikam.com", Limit: 500, Remaining: 20, Stops: []dispatch.Stop{{Reply: status.New(450, status.Enhanced{}, "q"), Quota: true}}},
		{Tenant: "filed", Login: "own@fabrikam.com", Limit: 500, Remaining: 1, Stops: parked}, // has an entry of its own
		{Tenant: "another", Login: "c@fabrikam.com", Limit: 500, Remaining: 2, Stops: parked},
	}
	at := time.Unix(100, 0)
	w.waiting = []queue.Waiting{
		{Sender: "A@fabrikam.com", Messages: 2, Oldest: at}, {Sender: "b@fabrikam.com", Messages: 3, Oldest: at.Add(-time.Minute)},
		{Sender: "own@fabrikam.com", Messages: 5, Oldest: at.Add(-time.Hour)}, {Sender: "x@elsewhere.example", Messages: 7},
	}
	s := w.sender1("*@fabrikam.com")
	if s.State != console.SenderHeld || s.Remaining != 20 || s.RecipientsPerDay != 500 || s.Queued != 5 || !s.Oldest.Equal(at.Add(-time.Minute)) {
		t.Errorf("got %+v", s)
	}
	if s := w.sender1("own@fabrikam.com"); s.State != console.SenderParked || s.Remaining != 1 || s.Queued != 5 || s.Origin != console.OriginPage {
		t.Errorf("got %+v", s)
	}
}

func TestSendAs(t *testing.T) {
	w := newDelegated(t)
	w.grants = []grant.Grant{{Tenant: "contoso", Login: "a@contoso.com", User: "a@contoso.com"}}
	w.addSender(console.SenderInput{Match: "b@contoso.com", Tenant: "contoso", Login: "A@contoso.com"})
	w.addSender(console.SenderInput{Match: "*@contoso.org", Tenant: "contoso", Login: "a@contoso.com", Connections: 2, MessagesPerMinute: 7, Fallback: "a@contoso.com"})
	w.boxes = []dispatch.Mailbox{{Tenant: "contoso", Login: "a@contoso.com", Limit: 100, Remaining: 4}}
	if s := w.sender1("a@contoso.com"); !slices.Equal(s.SendAs, []string{"*@contoso.org", "b@contoso.com"}) {
		t.Errorf("got %v", s.SendAs)
	}
	s := w.sender1("*@contoso.org")
	if s.SendAs != nil || s.Remaining != 4 || s.Connections != 2 || s.MessagesPerMinute != 7 || s.Fallback != "a@contoso.com" || s.Login != "a@contoso.com" ||
		s.State != console.SenderReady || s.Consent == nil {
		t.Errorf("got %+v", s)
	}
	if err := w.RemoveSender(ops(t), "a@contoso.com"); err == nil || !strings.Contains(err.Error(), "*@contoso.org") {
		t.Errorf("got %v, want it kept, since another falls back on it", err)
	}
	if err := w.SaveSender(ops(t), "*@contoso.org", console.SenderInput{Match: "*@contoso.org", Tenant: "contoso", Login: "a@contoso.com"}); err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveSender(ops(t), "a@contoso.com"); err != nil || len(w.grants) != 1 {
		t.Errorf("%v; others go by the mailbox still, %v", err, w.grants)
	}
	for _, m := range []string{"b@contoso.com", "*@contoso.org"} {
		if err := w.RemoveSender(ops(t), m); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
	if len(w.grants) != 0 {
		t.Error("a consent is kept that nobody uses")
	}
}

func TestSendersAreFilteredAndPaged(t *testing.T) {
	w := newDelegated(t)
	for i := range 120 {
		w.addSender(console.SenderInput{Match: fmt.Sprintf("n%03d@contoso.com", i), Tenant: "filed", Login: "Shared@contoso.com"})
	}
	for name, tt := range map[string]struct {
		q             console.SenderQuery
		listed, total int
		first         string
	}{
		"all":            {console.SenderQuery{}, 100, 123, "*@fabrikam.com"},
		"the rest":       {console.SenderQuery{Offset: 100}, 23, 123, "n097@contoso.com"},
		"behind the end": {console.SenderQuery{Offset: 500}, 0, 123, ""},
		"before it":      {console.SenderQuery{Offset: -5, Limit: 1}, 1, 123, "*@fabrikam.com"},
		"more":           {console.SenderQuery{Limit: 5000}, 123, 123, "*@fabrikam.com"},
		"address":        {console.SenderQuery{Text: "N01"}, 10, 10, "n010@contoso.com"},
		"login":          {console.SenderQuery{Text: "shared@"}, 100, 120, "n000@contoso.com"},
		"tenant's name":  {console.SenderQuery{Text: "contoso", Tenant: "contoso"}, 1, 1, "a@contoso.com"},
		"state":          {console.SenderQuery{State: console.SenderConsent}, 1, 1, "a@contoso.com"},
		"none":           {console.SenderQuery{Text: "zzz"}, 0, 0, ""},
	} {
		page, err := w.Senders(t.Context(), tt.q)
		if err != nil || len(page.Senders) != tt.listed || page.Total != tt.total || tt.first != "" && page.Senders[0].Match != tt.first {
			t.Errorf("%s: got %d of %d, %v", name, len(page.Senders), page.Total, err)
		}
	}
	w.tokenFail = errors.New("vault away")
	for what, err := range map[string]error{
		"Senders": second(w.Senders(t.Context(), console.SenderQuery{})), "Sender": second(w.Sender(t.Context(), "a@contoso.com")),
		"Overview": second(w.Overview(t.Context())),
	} {
		if !errors.Is(err, w.tokenFail) {
			t.Errorf("%s: got %v; without the grants nobody knows who has signed in", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestSenderRules(t *testing.T) {
	w := newDelegated(t)
	in := func(match, tenant string) console.SenderInput {
		return console.SenderInput{Match: match, Tenant: tenant}
	}
	for name, tt := range map[string]struct{ got, want error }{
		"change the file's": {w.SaveSender(ops(t), "Filed@contoso.com", in("filed@contoso.com", "filed")), console.ErrFile},
		"remove the file's": {w.RemoveSender(ops(t), "filed@contoso.com"), console.ErrFile},
		"change none":       {w.SaveSender(ops(t), "x@contoso.com", in("x@contoso.com", "filed")), console.ErrNotFound},
		"remove none":       {w.RemoveSender(ops(t), "x@contoso.com"), console.ErrNotFound},
		"pause none":        {w.Pause(ops(t), "x@contoso.com"), console.ErrNotFound},
		"resume none":       {w.Resume(ops(t), "x@contoso.com"), console.ErrNotFound},
		"revoke none":       {w.Revoke(ops(t), "x@contoso.com"), console.ErrNotFound},
		"show none":         {second(w.Sender(t.Context(), "x@contoso.com")), console.ErrNotFound},
	} {
		if !errors.Is(tt.got, tt.want) {
			t.Errorf("%s: got %v, want %v", name, tt.got, tt.want)
		}
	}
	mistakesOf(t, w.SaveSender(ops(t), "a@contoso.com", in("b@contoso.com", "contoso")), "match")
	mistakesOf(t, w.SaveSender(ops(t), "", in("A@contoso.com", "contoso")), "match")
	mistakesOf(t, w.SaveSender(ops(t), "", in("filed@contoso.com", "contoso")), "match")
	mistakesOf(t, w.SaveSender(ops(t), "", in("no address", "contoso")), "match")
	mistakesOf(t, w.SaveSender(ops(t), "", in("b@contoso.com", "nobody")), "tenant")
	mistakesOf(t, w.SaveSender(ops(t), "", console.SenderInput{Match: "b@contoso.com", Tenant: "contoso", Login: "?", Fallback: "x@y.example"}), "login", "fallback")
	if len(w.entries)+len(w.events) != 0 {
		t.Errorf("done %v", w.events)
	}
	err := w.SaveSender(ops(t), "A@CONTOSO.com", console.SenderInput{Match: "a@contoso.com", Tenant: "contoso", RecipientsPerDay: 7})
	if e := w.last(); err != nil || e.What != "sender.change" || e.Before != "address=a@contoso.com tenant=contoso" ||
		e.After != "address=a@contoso.com recipients_per_day=7 tenant=contoso" || w.sender1("a@contoso.com").RecipientsPerDay != 7 {
		t.Errorf("%v, %+v", err, e)
	}
	w.grants = []grant.Grant{{Tenant: "contoso", Login: "a@contoso.com"}}
	if err := w.SaveSender(ops(t), "a@contoso.com", console.SenderInput{Match: "a@contoso.com", Tenant: "contoso", Login: "b@contoso.com"}); err != nil || len(w.grants) != 0 {
		t.Errorf("%v; the mailbox is used no more: %v", err, w.grants)
	}
}

// TestSenderThatNoLongerFits is shown with the reason and what was entered, and can be changed and removed.
func TestSenderThatNoLongerFits(t *testing.T) {
	w := newDelegated(t)
	spoil := func() {
		fields := config.Fields{"address": "a@contoso.com", "tenant": "gone", "login": "l@contoso.com", "connections": "4", "messages_per_minute": "5",
			"recipients_per_day": "6", "fallback": "filed@contoso.com"}
		if err := w.registry.PutSender(t.Context(), "a@contoso.com", fields); err != nil {
			t.Fatal(err)
		}
		w.extend()
	}
	spoil()
	got := w.sender1("a@contoso.com")
	if got.Problem == nil || got.Problem.Text != notInForce || got.Problem.Cause == "" {
		t.Fatalf("got %+v", got)
	}
	got.Problem = nil
	want := &console.Sender{Match: "a@contoso.com", Tenant: "gone", Login: "l@contoso.com", Origin: console.OriginPage, State: console.SenderParked,
		Connections: 4, MessagesPerMinute: 5, RecipientsPerDay: 6, Fallback: "filed@contoso.com"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := w.SaveSender(ops(t), "a@contoso.com", console.SenderInput{Match: "a@contoso.com", Tenant: "contoso"}); err != nil {
		t.Errorf("it cannot be put right: %v", err)
	}
	spoil()
	w.grants = []grant.Grant{{Tenant: "gone", Login: "l@contoso.com"}}
	if err := w.RemoveSender(ops(t), "a@contoso.com"); err != nil || len(w.grants) != 0 {
		t.Errorf("it cannot be removed: %v, %v", err, w.grants)
	}
	if _, err := w.Sender(t.Context(), "a@contoso.com"); !errors.Is(err, console.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestUnfitSenderKeepsConsentForOthers: an entry that is not in force today may be again tomorrow.
func TestUnfitSenderKeepsConsentForOthers(t *testing.T) {
	w := newDelegated(t)
	if err := w.registry.PutSender(t.Context(), "b@contoso.com", config.Fields{"address": "b@contoso.com", "tenant": "contoso", "login": "a@contoso.com", "connections": "x"}); err != nil {
		t.Fatal(err)
	}
	w.extend()
	w.grants = []grant.Grant{{Tenant: "contoso", Login: "a@contoso.com"}}
	if err := w.RemoveSender(ops(t), "a@contoso.com"); err != nil || len(w.grants) != 1 {
		t.Errorf("%v, %v", err, w.grants)
	}
}

// TestRemovingTheShadowed leaves the file's entry of that address as it is, and its pause.
func TestRemovingTheShadowed(t *testing.T) {
	w := newDelegated(t)
	w.changeFile("senders:", "senders:\n  - {address: a@contoso.com, tenant: filed}")
	if err := w.Pause(ops(t), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveSender(ops(t), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	if s := w.sender1("a@contoso.com"); s.State != console.SenderPaused || s.Origin != console.OriginFile {
		t.Errorf("got %+v", s)
	}
	if err := w.RemoveSender(ops(t), "a@contoso.com"); !errors.Is(err, console.ErrFile) {
		t.Errorf("got %v, want ErrFile", err)
	}
}

func TestPauseAndResume(t *testing.T) {
	w := newDelegated(t)
	for range 2 { // twice is no error
		if err := w.Pause(ops(t), "a@contoso.com"); err != nil {
			t.Fatal(err)
		}
	}
	if e := w.last(); e.What != "sender.pause" || e.On != "a@contoso.com" {
		t.Errorf("got %+v", e)
	}
	if err := w.Resume(ops(t), "A@contoso.com"); err != nil || !slices.Equal(w.probed, []string{"contoso/a@contoso.com"}) {
		t.Errorf("%v, probed %v", err, w.probed)
	}
	if err := w.Pause(t.Context(), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	if s := w.sender1("a@contoso.com"); s.Problem.Text != "paused by nobody" {
		t.Errorf("got %+v", s)
	}
	if err := w.RemoveSender(ops(t), "a@contoso.com"); err != nil {
		t.Fatal(err)
	}
	w.addSender(console.SenderInput{Match: "a@contoso.com", Tenant: "contoso"})
	if s := w.sender1("a@contoso.com"); s.State == console.SenderPaused {
		t.Error("a new entry is born paused")
	}
	// One whose entry has left the file is still paused, should it come back.
	if err := w.Pause(ops(t), "filed@contoso.com"); err != nil {
		t.Fatal(err)
	}
	w.changeFile("  - {address: filed@contoso.com, tenant: filed}\n", "")
	w.probed = nil
	if err := w.Resume(ops(t), "filed@contoso.com"); err != nil || w.probed != nil {
		t.Errorf("%v, probed %v", err, w.probed)
	}
}

func TestExamine(t *testing.T) {
	w := newWorld(t)
	for _, bad := range []string{"", "*@contoso.com", "nobody", "a@b@c"} {
		mistakesOf(t, w.Examine(t.Context(), bad, func(console.Finding) {}), "sender")
	}
	w.examine = func(ctx context.Context, sender envelope.Address, found func(console.Finding)) error {
		done := make(chan struct{})
		for range 8 {
			go func() { found(console.Finding{Step: "dns"}); done <- struct{}{} }()
		}
		for range 8 {
			<-done
		}
		if sender != "x@contoso.com" {
			return console.ErrNotFound
		}
		return nil
	}
	n := 0 // found is called one at a time: the race detector looks on
	if err := w.Examine(t.Context(), "x@contoso.com", func(console.Finding) { n++ }); err != nil || n != 8 {
		t.Errorf("%v, %d findings", err, n)
	}
	if err := w.Examine(t.Context(), "y@contoso.com", func(console.Finding) {}); !errors.Is(err, console.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestThousandSenders is what a page of a large installation costs the desk.
func TestThousandSenders(t *testing.T) {
	var text strings.Builder
	text.WriteString(fileText)
	for i := range 1000 {
		fmt.Fprintf(&text, "  - {address: s%04d@contoso.com, tenant: filed}\n", i)
	}
	w := newWorldOf(t, text.String())
	for i := range 1000 {
		a := fmt.Sprintf("s%04d@contoso.com", i)
		w.boxes = append(w.boxes, dispatch.Mailbox{Tenant: "filed", Login: a})
		w.waiting = append(w.waiting, queue.Waiting{Sender: envelope.Address(a), Messages: i})
		w.grants = append(w.grants, grant.Grant{Tenant: "filed", Login: a, User: a})
	}
	begun := time.Now()
	page, err := w.Senders(t.Context(), console.SenderQuery{})
	took := time.Since(begun)
	if err != nil || page.Total != 1002 || took > 200*time.Millisecond {
		t.Errorf("%d in %v, %v", page.Total, took, err)
	}
}

// A mailbox that rests is ready, and says until when nothing is tried.
func TestSenderRests(t *testing.T) {
	until := time.Now().Add(time.Minute)
	s := console.Sender{State: console.SenderReady}
	showStops(&s, []dispatch.Mailbox{{Rests: until}})
	if s.State != console.SenderReady || s.Problem == nil || !strings.Contains(s.Problem.Text, until.UTC().Format("15:04:05 UTC")) {
		t.Errorf("got %+v", s)
	}
	s = console.Sender{State: console.SenderReady}
	showStops(&s, []dispatch.Mailbox{{Rests: time.Now().Add(time.Second)}})
	if s.Problem != nil {
		t.Errorf("a rest that is as good as over is shown: %+v", s.Problem)
	}
}
