package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// listed is a line of `relayd queue list --json`.
type listed struct {
	ID         string   `json:"id"`
	State      string   `json:"state"`
	Sender     string   `json:"sender"`
	MessageID  string   `json:"message_id"`
	Recipients []string `json:"recipients"`
	Reply      string   `json:"reply"`
}

// list runs queue list with filters.
func (w *world) list(filters ...string) []listed {
	w.t.Helper()
	o := runCommand(w.t, "", append([]string{"queue", "list", "--json", "--api", "http://" + w.relay.Admin}, filters...)...)
	if o.code != 0 {
		w.t.Fatalf("queue list %q: %+v", filters, o)
	}
	var all []listed
	for line := range strings.Lines(o.stdout) {
		var l listed
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			w.t.Fatalf("%q: %v", line, err)
		}
		all = append(all, l)
	}
	return all
}

// TestQueueCommands does to messages what an operator does, by the command line: finds them by every field, holds,
// releases, drops and exports them, and reads their story, also behind a restart.
func TestQueueCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	api := []string{"--api", "http://" + w.relay.Admin}
	w.fault(`{"stage": "rcpt", "reply": "450 4.2.1 mailbox busy", "mailbox": "erp@contoso.com"}`)
	waiting := letter("erp@contoso.com", "waiting")
	one := w.send("erp@contoso.com", waiting, "a@example.com", "b@example.net")
	two := w.send("erp@contoso.com", letter("erp@contoso.com", "other"), "c@example.com")
	sent := w.send("crm@contoso.com", letter("crm@contoso.com", "sent"), "d@example.com")
	w.arrived("crm@contoso.com", 1, patience)
	w.becomes(2, "relayd_queue_messages", `state="deferred"`)

	for _, id := range []string{one, two} {
		eventually(t, "held between two attempts", func() bool {
			return runCommand(t, "", append([]string{"queue", "hold", id}, api...)...).code == 0
		})
	}
	find := func() {
		t.Helper()
		for filter, want := range map[string]string{
			"--message-id=waiting.erp@contoso.com": one, "--recipient=B@Example.net": one, "--recipient=*@example.net": one, "--sender=crm@contoso.com": sent,
			"--state=sent": sent, "--recipient=c@example.com": two,
		} {
			if got := w.list("--history", filter); len(got) != 1 || got[0].ID != want {
				t.Errorf("%s: %+v, want %s", filter, got, want)
			}
		}
		if got := w.list("--state", "held"); len(got) != 2 || got[0].ID != two || got[1].ID != one {
			t.Errorf("held: %+v, want the two, the latest first", got)
		}
		if got := w.list(); len(got) != 2 || got[0].ID != two {
			t.Errorf("without a filter: %+v, want what is in the queue", got)
		}
		if got := w.list("--state", "held", "--recipient", "a@example.com"); len(got) != 1 || got[0].ID != one {
			t.Errorf("held to a@example.com: %+v", got)
		}
		if got := w.list("--older-than", "1h"); len(got) != 0 {
			t.Errorf("older than an hour: %+v", got)
		}
	}
	find()
	w.stop()
	w.restart()
	api = []string{"--api", "http://" + w.relay.Admin}
	find()

	story := w.command(append([]string{"queue", "show", one}, api...)...)
	for _, want := range []string{"erp@contoso.com", "b@example.net", "<waiting.erp@contoso.com>", "450 4.2.1 mailbox busy", "accepted", "held"} {
		if !strings.Contains(story, want) {
			t.Errorf("queue show lacks %q:\n%s", want, story)
		}
	}
	dir := filepath.Join(w.dir, "export")
	w.command(append([]string{"queue", "export", "--state", "held", "--output", dir}, api...)...)
	if eml, err := os.ReadFile(filepath.Join(dir, one+".eml")); err != nil || !strings.HasSuffix(string(eml), waiting) {
		t.Errorf("exported %q, %v", eml, err)
	}
	w.command(append([]string{"queue", "drop", two, "--yes"}, api...)...)
	if got := w.list("--state", "held"); len(got) != 1 || got[0].ID != one {
		t.Errorf("held, behind the drop: %+v", got)
	}
	w.noFaults()
	w.command(append([]string{"queue", "release", one}, api...)...)
	w.arrived("erp@contoso.com", 1, patience)
	if story := w.command(append([]string{"queue", "show", two}, api...)...); !strings.Contains(story, "dropped") {
		t.Errorf("the dropped message's story:\n%s", story)
	}
	if o := runCommand(t, "", append([]string{"queue", "hold", sent}, api...)...); o.code != 1 {
		t.Errorf("hold of a sent message: %+v", o)
	}
}

// TestSendCommand sends by the API: a good message, one of a sender that is not configured, one that fails.
func TestSendCommand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	api := "http://" + w.relay.Admin
	if out := w.command("send", "--from", "erp@contoso.com", "--to", "a@example.com", "--to", "b@example.com", "--subject", "Prüfung",
		"--body", "Grüße", "--api", api); !strings.Contains(out, "a@example.com: sent, 250 2.0.0 OK") {
		t.Errorf("said %q", out)
	}
	m := w.arrived("erp@contoso.com", 1, patience)[0]
	if raw := w.raw(m); !strings.Contains(raw, "X-Relayd-Id: ") || !strings.Contains(raw, "with HTTP id ") || len(m.Rcpts) != 2 {
		t.Errorf("arrived to %q as %q", m.Rcpts, raw)
	}
	if o := runCommand(t, "", "send", "--from", "x@fabrikam.com", "--to", "a@example.com", "--api", api); o.code != 1 ||
		!strings.Contains(o.stderr, "no sender with that address is configured") {
		t.Errorf("a stranger: %+v", o)
	}
	w.fault(`{"preset": "rcpt-not-found", "recipient": "gone@example.com"}`)
	if o := runCommand(t, "", "send", "--from", "erp@contoso.com", "--to", "gone@example.com", "--api", api); o.code != 1 ||
		!strings.Contains(o.stdout+o.stderr, "550 5.1.10") {
		t.Errorf("nobody there: %+v", o)
	}
	file := filepath.Join(w.dir, "letter.eml")
	replaceFile(t, file, strings.ReplaceAll(letter("crm@contoso.com", "file"), "\r\n", "\n"))
	w.command("send", "--from", "crm@contoso.com", "--to", "a@example.com", "--file", file, "--api", api)
	if raw := w.raw(w.arrived("crm@contoso.com", 1, patience)[0]); !strings.HasSuffix(raw, letter("crm@contoso.com", "file")) {
		t.Errorf("the file arrived as %q", raw)
	}
}

// TestDoctorCommand examines a sender that is well and one that is not; the secret is nowhere.
func TestDoctorCommand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	if out := w.command("doctor", "erp@contoso.com", "--config", w.relay.Config); strings.Count(out, "\n  ok ") < 10 {
		t.Errorf("a sender that is well:\n%s", out)
	}
	w.fault(`{"preset": "auth-disabled-mailbox", "mailbox": "erp@contoso.com"}`)
	o := runCommand(t, "", "doctor", "erp@contoso.com", "--config", w.relay.Config)
	if o.code != 1 || !strings.Contains(o.stdout, "Set-CASMailbox") || !strings.Contains(o.stdout, "FAIL  auth") {
		t.Errorf("a mailbox with SMTP AUTH off: %+v", o)
	}
	var report struct {
		Reports []struct {
			Steps []struct {
				Name, State string
			}
		}
	}
	o = runCommand(t, "", "doctor", "erp@contoso.com", "--json", "--config", w.relay.Config)
	if err := json.Unmarshal([]byte(o.stdout), &report); err != nil || o.code != 1 {
		t.Errorf("--json: %v, status %d: %s", err, o.code, o.stdout)
	}
	if n := w.stats().Messages; n != 0 {
		t.Errorf("doctor sent %d messages", n)
	}
}

// TestHistoryAfterKill kills the relay before its history is on the disk: what the queue kept is found all the same, by
// every filter.
func TestHistoryAfterKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"preset": "rcpt-not-found", "recipient": "gone@example.com"}`)
	w.fault(`{"stage": "rcpt", "reply": "450 4.2.1 mailbox busy", "recipient": "busy@example.com"}`)
	gone := w.send("erp@contoso.com", letter("erp@contoso.com", "gone"), "gone@example.com")
	busy := w.send("crm@contoso.com", letter("crm@contoso.com", "busy"), "busy@example.com")
	w.relay.Kill()
	w.restart()
	w.becomes(1, "relayd_queue_messages", `state="failed"`)
	for filter, want := range map[string]string{"--message-id=gone.erp@contoso.com": gone, "--recipient=busy@example.com": busy, "--state=failed": gone} {
		eventually(t, filter+" finds it", func() bool {
			got := w.list(filter)
			return len(got) == 1 && got[0].ID == want
		})
	}
	if story := w.command("queue", "show", gone, "--api", "http://"+w.relay.Admin); !strings.Contains(story, "accepted") {
		t.Errorf("the story of a message whose history was lost:\n%s", story)
	}
}
