package postmaster

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

func parked(login string) status.Park {
	return status.Park{Tenant: "contoso", Login: login, Since: time.Now(), Err: &status.Error{Code: 535, Text: "no", Rule: "auth", Cause: "SMTP AUTH is off.", Advice: "Switch it on."}}
}

func resumed(p status.Park) status.Park {
	p.Resumed, p.Err = true, nil
	return p
}

// subjects of what was written since last asked.
func (r *rig) subjects() string {
	var all []string
	for _, m := range r.queue.take() {
		all = append(all, m.subject)
	}
	return strings.Join(all, "; ")
}

func (r *rig) wantSubjects(when, want string) {
	r.t.Helper()
	if got := r.subjects(); got != want {
		r.t.Errorf("%s: got %q, want %q", when, got, want)
	}
}

func TestParkNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		defer stop()
		park := parked("erp@contoso.com")
		r.Park(park)
		r.Park(park) // the same again is no news
		pass(settled - time.Second)
		r.wantSubjects("before others had time to come", "")
		pass(time.Second) // a kill -9 later than this leaves nobody untold
		mails := r.queue.take()
		if len(mails) != 1 {
			t.Fatalf("%d notices", len(mails))
		}
		env := mails[0].env
		if env.ReversePath != "" || env.Sender != "postmaster@contoso.com" || env.Intake != Intake || !env.ID.Valid() || len(env.Recipients) != 2 ||
			env.Recipients[1] != (envelope.Recipient{Address: "boss@contoso.com", Notify: "NEVER"}) {
			t.Errorf("envelope %+v", env)
		}
		for _, want := range []string{"Mail of erp@contoso.com", "SMTP AUTH is off.", "Switch it on.", "Auto-Submitted: auto-generated"} {
			if !strings.Contains(mails[0].text, want) {
				t.Errorf("%q is missing in\n%s", want, mails[0].text)
			}
		}
		pass(3 * time.Hour)
		r.wantSubjects("told once", "")
		r.Park(resumed(park))
		pass(gather)
		r.wantSubjects("over", "Mail of erp@contoso.com is on its way again")
		r.want(kindNotice, resultSent, 2)
	})
}

func TestParksAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		defer stop()
		for i := range 15 * 100 { // a hundred every four seconds
			r.Park(parked(fmt.Sprintf("user%d@contoso.com", i%1000)))
			if i%100 == 99 {
				r.wantSubjects("while they come, for a minute", "")
				pass(settled - time.Second)
			}
		}
		r.wantSubjects("a minute after the first", "Mail of 1000 senders is waiting")
	})
}

func TestParksThatNeedNoNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		defer stop()
		short := parked("erp@contoso.com")
		r.Park(short)
		pass(settled - time.Second)
		r.Park(resumed(short))
		pass(time.Hour)
		r.wantSubjects("over before it was told", "")

		old := short
		old.Since = time.Now().Add(-time.Hour) // told of before the restart
		r.Park(resumed(old))
		pass(gather)
		r.wantSubjects("the end of what the last process told of", "Mail of erp@contoso.com is on its way again")

		r.Park(resumed(old))
		pass(time.Second)
		r.Park(parked("ERP@contoso.com"))
		pass(gather)
		mails := r.queue.take()
		if len(mails) != 1 || !strings.Contains(mails[0].text, "is waiting") || strings.Contains(mails[0].text, "on its way again") {
			t.Errorf("parked again before the end was told: %v", mails)
		}
	})
}

func TestOtherParksOfAMailboxAreToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		defer stop()
		first := parked("erp@contoso.com")
		r.Park(first)
		pass(time.Second)
		second := parked("erp@contoso.com") // another gate, or another kind of cause
		second.Quota = true
		r.Park(second)
		pass(time.Second)
		r.Park(resumed(first))
		pass(gather)
		mails := r.queue.take()
		if len(mails) != 1 || !strings.Contains(mails[0].text, "heals by itself") {
			t.Errorf("the end of one park ends the other: %v", mails)
		}
	})
}

func TestTooManyParks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		last := parked("late@contoso.com")
		for i := range maxParks {
			r.Park(parked(fmt.Sprintf("user%d@contoso.com", i)))
		}
		r.Park(last)
		stop := r.run()
		defer stop()
		pass(gather)
		mails := r.queue.take()
		if len(mails) != 1 || !strings.Contains(mails[0].text, "1 more are not listed") {
			t.Fatalf("got %v", mails)
		}
		r.want(kindNotice, resultSuppressed, 1)
		r.Park(resumed(last))
		pass(gather)
		r.wantSubjects("the end of what was not told", "")
	})
}

func TestNoticesOnlyWhereAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Modes = []string{ModeDSN} })
		stop := r.run()
		r.Park(parked("erp@contoso.com"))
		r.bounce()
		pass(3 * time.Hour)
		r.wantSubjects("mode without notify", "")
		r.Configure(settings())
		pass(3 * time.Hour)
		r.wantSubjects("what came before anybody wanted to know", "")
		r.Park(parked("erp@contoso.com"))
		r.bounce()
		s := settings()
		s.Notify = nil
		r.Configure(s)
		pass(3 * time.Hour)
		r.Configure(settings())
		stop()
		r.wantSubjects("nobody to notify any more", "")
	})
}

func TestQueueRefusesNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		defer stop()
		first, second := parked("erp@contoso.com"), parked("crm@contoso.com")
		r.Park(first)
		r.Park(second)
		r.bounce()
		r.queue.fail(errors.New("broken"), nil)
		pass(digestAfter + time.Second)
		r.Park(resumed(first)) // nobody was told it was parked
		r.Park(parked("shop@contoso.com"))
		r.queue.fail(nil, nil)
		pass(retryAfter)
		r.wantSubjects("mended", "Mail of 2 senders is waiting; 1 message failed")
		r.want(kindNotice, resultSent, 1)
		r.want(kindDigest, resultSent, 1)
		pass(3 * time.Hour)
		r.wantSubjects("told once", "")
	})
}

func TestParksWhileTheNoticeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.PerHour = 3 })
		stop := r.run()
		defer stop()
		first, second, third := parked("erp@contoso.com"), parked("crm@contoso.com"), parked("shop@contoso.com")
		r.Park(first)
		r.Park(second)
		r.queue.fail(errors.New("broken"), sync.OnceFunc(func() {
			r.Park(resumed(first)) // nobody was told it was parked
			r.Park(third)
		}))
		pass(gather + 10*retryAfter) // ten refusals cost none of the hour's three mails
		r.queue.fail(nil, nil)
		pass(retryAfter)
		mails := r.queue.take()
		if len(mails) != 1 {
			t.Fatalf("got %v", mails)
		}
		for login, want := range map[string]bool{"erp": false, "crm": true, "shop": true} {
			if got := strings.Contains(mails[0].text, login+"@contoso.com"); got != want {
				t.Errorf("%s is named: %v, want %v", login, got, want)
			}
		}
		r.want(kindNotice, resultError, 11)
	})
}

func TestSwitchedOffWhileTheNoticeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		r.Park(parked("erp@contoso.com"))
		r.queue.fail(errors.New("broken"), func() {
			r.Configure(Settings{})
		})
		pass(gather)
		r.queue.fail(nil, nil)
		r.Configure(settings())
		pass(time.Hour)
		stop()
		r.wantSubjects("nobody wanted to know", "")
	})
}

func TestFailuresWhileTheDigestIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		defer stop()
		r.bounce()
		r.queue.fail(errors.New("broken"), func() { // while the digest is on its way to a queue that refuses it
			c, p := claim()
			p.Results[0].Rule = "other"
			r.noteFailed(c.Envelope, p, []int{0, 1})
			r.Park(parked("erp@contoso.com"))
		})
		pass(digestAfter)
		r.queue.fail(nil, nil)
		pass(retryAfter)
		mails := r.queue.take()
		if len(mails) != 2 {
			t.Fatalf("got %v", mails)
		}
		for _, want := range []string{"2 messages failed", "did not get it: 3", "1  other", "1  recipient-not-found"} {
			if !strings.Contains(strings.ReplaceAll(mails[1].text, "\r\n", " "), want) {
				t.Errorf("%q is missing in\n%s", want, mails[1].text)
			}
		}
	})
}

func TestNoticeWaitsForTheHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.PerHour = 1 })
		if n := len(r.bounce()); n != 1 {
			t.Fatal("not told")
		}
		stop := r.run()
		defer stop()
		r.Park(parked("erp@contoso.com"))
		pass(time.Hour - time.Second)
		r.wantSubjects("the hour's mail is used up", "")
		pass(2 * time.Minute)
		r.wantSubjects("the next hour", "Mail of erp@contoso.com is waiting")
		pass(62 * time.Minute)
		r.wantSubjects("the hour after", "1 message failed")
	})
}

func TestDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Advice = func(rule string) string { return "Advice for " + rule + "." }
		})
		stop := r.run()
		defer stop()
		r.bounce(func(e *envelope.Envelope) { e.ReversePath = "" }) // nobody else hears of this one
		pass(digestAfter - time.Second)
		r.bounce(func(e *envelope.Envelope) { e.Recipients[0].Notify = "NEVER" })
		r.wantSubjects("too early", "")
		pass(time.Second)
		mails := r.queue.take()
		if len(mails) != 1 || mails[0].subject != "2 messages failed" {
			t.Fatalf("got %v", mails)
		}
		for _, want := range []string{"Advice for recipient-not-found.", "bob@fabrikam.example", "550 5.1.10 not found", "erp@contoso.com"} {
			if !strings.Contains(mails[0].text, want) {
				t.Errorf("%q is missing in\n%s", want, mails[0].text)
			}
		}
		r.bounce()
		pass(digestEvery - time.Second)
		r.wantSubjects("within the hour", "")
		pass(time.Second)
		r.wantSubjects("hourly", "1 message failed")
		pass(5 * time.Hour)
		r.bounce()
		pass(digestAfter)
		r.wantSubjects("after a quiet time", "1 message failed")
		r.want(kindDigest, resultSent, 3)
	})
}

func TestDigestIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for i := range 3 * maxRules {
			c, p := claim()
			p.Results[0].Rule = fmt.Sprintf("rule %d", i)
			r.noteFailed(c.Envelope, p, []int{0, 1})
		}
		if len(r.digest.failures) != maxFailures || len(r.digest.rules) != maxRules || r.digest.recipients != 6*maxRules {
			t.Errorf("%d failures, %d rules, %d recipients", len(r.digest.failures), len(r.digest.rules), r.digest.recipients)
		}
	})
}

func TestOwnMailIsInNoDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		r.bounce(func(e *envelope.Envelope) { e.Intake, e.ReversePath = Intake, "" })
		pass(3 * time.Hour)
		stop()
		r.wantSubjects("a digest about a digest", "")
		if r.logs.FilterMessage("mail of relayd's own failed").Len() != 1 {
			t.Error("not in the log either")
		}
	})
}

func TestDelaysSuppressedAreInTheDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		defer stop()
		for range perAddress + 2 {
			c, p := claim()
			if _, err := r.Delay(t.Context(), c, p, []int{0}, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		r.queue.take()
		pass(digestAfter)
		r.wantSubjects("delays", "2 notifications not written")
	})
}

func TestStopWritesWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		r.Park(parked("erp@contoso.com"))
		r.bounce()
		synctest.Wait()
		stop()
		r.wantSubjects("at the end", "Mail of erp@contoso.com is waiting; 1 message failed")
	})
}

func TestParkDoesNotWaitForTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		held := make(chan struct{})
		r.queue.fail(nil, func() { <-held })
		stop := r.run()
		r.Park(parked("erp@contoso.com"))
		pass(2 * gather)
		before := time.Now()
		r.Park(parked("crm@contoso.com")) // Put hangs
		if took := time.Since(before); took > 0 {
			t.Errorf("took %v", took)
		}
		close(held)
		synctest.Wait()
		pass(gather)
		stop()
		r.wantSubjects("both", "Mail of erp@contoso.com is waiting; Mail of crm@contoso.com is waiting")
	})
}

func TestNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.PerHour = 2 })
		n := Notice{Subject: "The client secret of tenant contoso expires in 14 days", Paragraphs: []string{"Make a new one.", "  There."}}
		if err := r.Notice(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		mails := r.queue.take()
		if len(mails) != 1 {
			t.Fatalf("%d mails", len(mails))
		}
		env := mails[0].env
		if mails[0].subject != n.Subject || env.ReversePath != "" || env.Sender != "postmaster@contoso.com" || env.Intake != Intake || !env.ID.Valid() ||
			len(env.Recipients) != 2 || env.Recipients[0] != (envelope.Recipient{Address: "ops@contoso.com", Notify: "NEVER"}) {
			t.Errorf("got %q, %+v", mails[0].subject, env)
		}
		for _, want := range []string{"Make a new one.\r\n  There.", "Auto-Submitted: auto-generated"} {
			if !strings.Contains(mails[0].text, want) {
				t.Errorf("%q is missing in\n%s", want, mails[0].text)
			}
		}
		broken := errors.New("broken")
		for range 5 { // refusals take none of the hour's places
			r.queue.fail(broken, nil)
			if err := r.Notice(t.Context(), n); !errors.Is(err, broken) {
				t.Errorf("got %v, want %v", err, broken)
			}
		}
		r.queue.fail(nil, nil)
		if err := r.Notice(t.Context(), n); err != nil {
			t.Error(err)
		}
		if err := r.Notice(t.Context(), n); !errors.Is(err, ErrTooMany) {
			t.Errorf("got %v, want %v", err, ErrTooMany)
		}
		pass(time.Hour)
		if err := r.Notice(t.Context(), n); err != nil {
			t.Errorf("an hour later: %v", err)
		}
		if err := r.Notice(t.Context(), Notice{Subject: "nothing"}); err == nil {
			t.Error("a notice about nothing was written")
		}
		r.want(kindOther, resultSent, 3)
		r.want(kindOther, resultError, 6)
		r.want(kindOther, resultSuppressed, 1)
		r.queue.take()
		for name, change := range map[string]func(*Settings){
			"mode": func(s *Settings) { s.Modes = []string{ModeDSN} }, "from": func(s *Settings) { s.From = "" }, "notify": func(s *Settings) { s.Notify = nil },
		} {
			s := settings()
			change(&s)
			r.Configure(s)
			if err := r.Notice(t.Context(), n); !errors.Is(err, ErrNobody) || len(r.queue.take()) > 0 {
				t.Errorf("without %s: got %v, want %v", name, err, ErrNobody)
			}
		}
	})
}
