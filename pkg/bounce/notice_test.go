package bounce

import (
	"fmt"
	"strings"
	"testing"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

func letter() *Letter {
	return &Letter{ID: own, Hostname: "relay.contoso.com", From: "postmaster@contoso.com", To: []envelope.Address{"ops@contoso.com"}, Date: written}
}

// notice composes parks and returns subject and text.
func notice(t *testing.T, parks []status.Park, more int) (subject, words string) {
	t.Helper()
	m, err := Parks(letter(), parks, more)
	if err != nil {
		t.Fatal(err)
	}
	p, err := readGo(m.Text)
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, p.Fields, "Auto-Submitted"); got != "auto-generated" {
		t.Errorf("Auto-Submitted: %s", got)
	}
	return p.Subject, p.Parts[0].Text
}

func TestThousandSendersOfATenant(t *testing.T) {
	var parks []status.Park
	for i := range 1000 {
		e := &status.Error{Code: 535, Text: fmt.Sprintf("request %d refused", i), Rule: "smtp-auth-disabled", Cause: "SMTP AUTH is off."}
		parks = append(parks, status.Park{Tenant: "contoso", Login: fmt.Sprintf("user%d@contoso.com", i), Since: tried, Err: e})
	}
	subject, words := notice(t, parks, 5)
	if subject != "Mail of 1000 senders is waiting" {
		t.Errorf("subject %q", subject)
	}
	if n := strings.Count(words, "SMTP AUTH is off."); n != 1 {
		t.Errorf("one cause is told %d times", n)
	}
	for _, want := range []string{"user19@contoso.com", "and 980 more", "5 more are not listed", "Nothing is lost"} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is missing in\n%s", want, words)
		}
	}
	if strings.Contains(words, "user20@") {
		t.Error("names too many")
	}
}

func TestManyCauses(t *testing.T) {
	var parks []status.Park
	for i := range 30 {
		parks = append(parks, status.Park{Tenant: "contoso", Login: "a@b.example", Err: &status.Error{Code: 535, Text: fmt.Sprintf("reason %d", i)}})
	}
	_, words := notice(t, parks, 0)
	if !strings.Contains(words, "reason 19") || strings.Contains(words, "reason 20") || !strings.Contains(words, "10 more causes") {
		t.Errorf("got\n%s", words)
	}
}

func TestParkTellsWhatToDo(t *testing.T) {
	e := &status.Error{Code: 554, Text: "full", Cause: "The mailbox is full.", Advice: "Make room."}
	for _, row := range []struct {
		name      string
		park      status.Park
		has, lack []string
	}{
		{"for a person", status.Park{Tenant: "t", Login: "a@b.example", Since: tried, Err: e},
			[]string{"Make room.", "The mailbox is full.", "since Mon, 02 Mar 2026", "Nothing is lost"}, []string{"heals by itself", "(tenant t)\n"}},
		{"a quota", status.Park{Tenant: "t", Login: "a@b.example", Quota: true, Err: e}, []string{"heals by itself", "keep it from coming back: Make room."}, []string{"since"}},
		{"a tenant", status.Park{Tenant: "t", Err: e}, []string{"Mail of tenant t is waiting"}, []string{"(tenant"}},
		{"no reason", status.Park{Tenant: "t"}, []string{"is waiting"}, []string{"What is wrong", "The answer was", "What to do"}},
		{"over", status.Park{Tenant: "t", Login: "a@b.example", Resumed: true}, []string{"on its way again"}, []string{"is waiting", "Nothing is lost"}},
	} {
		_, words := notice(t, []status.Park{row.park}, 0)
		for _, want := range row.has {
			if !strings.Contains(words, want) {
				t.Errorf("%s: %q is missing in\n%s", row.name, want, words)
			}
		}
		for _, bad := range row.lack {
			if strings.Contains(words, bad) {
				t.Errorf("%s: %q is in\n%s", row.name, bad, words)
			}
		}
	}
}

func TestSummary(t *testing.T) {
	rules := map[string]int{"": 2, "one": 9, "two": 9, "three": 10}
	m, err := Summary(letter(), &Digest{Since: tried, Until: written, Messages: 1, Recipients: 30, Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	p, err := readGo(m.Text)
	if err != nil {
		t.Fatal(err)
	}
	words := p.Parts[0].Text
	if p.Subject != "1 message failed" || strings.Contains(words, "The messages") || strings.Contains(words, "not written") || strings.Contains(words, "more.") {
		t.Errorf("%q:\n%s", p.Subject, words)
	}
	order := []string{"10  three", "9  one", "9  two", "2  (a reply no rule knows)"}
	for i := 1; i < len(order); i++ {
		if a, b := strings.Index(words, order[i-1]), strings.Index(words, order[i]); a < 0 || b < a {
			t.Errorf("%q does not stand before %q in\n%s", order[i-1], order[i], words)
		}
	}
	m, err = Summary(letter(), &Digest{Suppressed: 2})
	if err != nil || !strings.Contains(string(m.Text), "Subject: 2 notifications not written\r\n") || !strings.Contains(string(m.Text), "No message failed") {
		t.Errorf("%v:\n%s", err, m.Text)
	}
	many := map[string]int{}
	for i := range 25 {
		many[fmt.Sprintf("rule %d", i)] = 1
	}
	m, err = Summary(letter(), &Digest{Rules: many})
	if err != nil || !strings.Contains(string(m.Text), "and 5 causes more") {
		t.Errorf("%v:\n%s", err, m.Text)
	}
}

func TestNonASCIINotice(t *testing.T) {
	subject, _ := notice(t, []status.Park{{Tenant: "t", Login: "jürgen@contoso.com", Err: &status.Error{Code: 535}}}, 0)
	if subject != "Mail of jürgen@contoso.com is waiting" {
		t.Errorf("subject %q", subject)
	}
}

func TestAnnounce(t *testing.T) {
	m, err := Announce(letter(), "The client secret of tenant contoso expires in 14 days", []string{
		"The client secret of tenant contoso expires on Mon, 16 Mar 2026, in 14 days.", "  Make a new one and enter it.", "Nothing is lost.",
		strings.Repeat(" ", 100) + "Far in.",
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := readGo(m.Text)
	if err != nil {
		t.Fatal(err)
	}
	if p.Subject != "The client secret of tenant contoso expires in 14 days" || get(t, p.Fields, "Auto-Submitted") != "auto-generated" {
		t.Errorf("got %q, %v", p.Subject, p.Fields)
	}
	want := "The client secret of tenant contoso expires on Mon, 16 Mar 2026, in 14\ndays.\n  Make a new one and enter it.\n\nNothing is lost.\n        Far in.\n"
	if got := strings.ReplaceAll(p.Parts[0].Text, "\r\n", "\n"); strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := Announce(letter(), "nothing", nil); err == nil {
		t.Error("a notice about nothing was written")
	}
}

// TestHostileAnnouncement: whatever a name or an answer of the far end brings, it is words.
func TestHostileAnnouncement(t *testing.T) {
	bad := "x\r\nBcc: <evil@example.com>\r\n\r\n.\r\n\x00\x1b[2J" + strings.Repeat("y", 5000)
	many := make([]string, maxParagraphs+5)
	for i := range many {
		many[i] = bad
	}
	m, err := Announce(letter(), bad, many)
	if err != nil {
		t.Fatal(err)
	}
	p, err := readGo(m.Text)
	if err != nil {
		t.Fatal(err)
	}
	if get(t, p.Fields, "Bcc") != "" || len(p.Parts) != 1 || !strings.Contains(p.Parts[0].Text, "There is more than a mail takes") {
		t.Errorf("got fields %v and %d parts", p.Fields, len(p.Parts))
	}
	for line := range strings.SplitSeq(string(m.Text), "\r\n") {
		if len(line) > 998 || line == "." || strings.ContainsAny(line, "\r\n\x00\x1b") || strings.HasPrefix(line, "Bcc") {
			t.Fatalf("a line is %q", line)
		}
	}
}
