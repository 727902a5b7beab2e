package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/api"
	"relayd/pkg/envelope"
)

func TestQueueList(t *testing.T) {
	m, url := newMailroom(t, 3)
	m.list[1].Recipients = append(m.list[1].Recipients, "b@example.com", "c@example.com")
	m.list[2].Reply = "451 4.7.0 " + strings.Repeat("später ", 20) + "\x1b[2J"
	stdout, stderr, err := relaydCommand(t, "", newQueueCommand(), "list", "--api", url)
	if err != nil || stderr != "" {
		t.Fatalf("got %q, %v", stderr, err)
	}
	lines := strings.Split(stdout, "\n")
	if len(lines) != 5 || !strings.HasPrefix(lines[0], "ID                    AGE") {
		t.Fatalf("got\n%s", stdout)
	}
	if want := []string{string(m.list[1].ID), "60m", "deferred", "1", "erp@contoso.com", "a@example.com", "+2"}; !slices.Equal(strings.Fields(lines[2]), want) {
		t.Errorf("got %q, want %q", lines[2], want)
	}
	if !strings.HasSuffix(lines[3], "…") || strings.Contains(stdout, "\x1b") {
		t.Errorf("got %q", lines[3])
	}
	for i := range lines[1:4] {
		if strings.Index(lines[i+1], "deferred") != strings.Index(lines[0], "STATE") {
			t.Errorf("out of line:\n%s", stdout)
		}
	}
}

func TestQueueListPages(t *testing.T) {
	m, url := newMailroom(t, 2*pageSize+20)
	for _, tt := range []struct {
		args []string
		want int
		more string
	}{
		{nil, 100, "there are more than these 100; --limit N lists N, --limit 0 all\n"},
		{[]string{"--limit", "0"}, 2*pageSize + 20, ""},
		{[]string{"--limit", "7"}, 7, "there are more than these 7"},
		{[]string{"--limit", fmt.Sprint(pageSize + 1)}, pageSize + 1, "there are more"},
		{[]string{"--limit", fmt.Sprint(3 * pageSize)}, 2*pageSize + 20, ""},
		{[]string{"--limit", "0", "--older-than", "10h30m"}, 2*pageSize + 9, ""},
		{[]string{"--sender", "nobody@contoso.com"}, 0, "no message fits\n"},
		{[]string{"--state", "failed"}, 0, "no message fits\n"},
		{[]string{"--recipient", "z@example.com"}, 0, "no message fits\n"},
		{[]string{"--message-id", "<z@x>"}, 0, "no message fits\n"},
		{[]string{"--limit", "0", "--sender", "erp@contoso.com", "--state", "deferred", "--recipient", "a@example.com"}, 2*pageSize + 20, ""},
	} {
		stdout, stderr, err := relaydCommand(t, "", newQueueCommand(), append([]string{"list", "--json", "--api", url}, tt.args...)...)
		if err != nil || !strings.HasPrefix(stderr, tt.more) || tt.more == "" && stderr != "" {
			t.Errorf("%v: got %q, %v", tt.args, stderr, err)
		}
		seen := map[envelope.ID]bool{}
		for line := range strings.Lines(stdout) {
			var s envelope.Summary
			if err := json.Unmarshal([]byte(line), &s); err != nil {
				t.Fatalf("%v: %q: %v", tt.args, line, err)
			}
			seen[s.ID] = true
		}
		if len(seen) != tt.want {
			t.Errorf("%v: got %d messages, want %d", tt.args, len(seen), tt.want)
		}
		if tt.want > 0 && seen[m.list[0].ID] == slices.Contains(tt.args, "--older-than") {
			t.Errorf("%v: the latest is there: %v", tt.args, seen[m.list[0].ID])
		}
	}
	stdout, _, err := relaydCommand(t, "", newQueueCommand(), "list", "--limit", "0", "--api", url)
	if n := strings.Count(stdout, "ATTEMPTS"); err != nil || n != 1 || strings.Count(stdout, "\n") != len(m.list)+1 {
		t.Errorf("the table has %d heads and %d lines, %v", n, strings.Count(stdout, "\n"), err)
	}
}

// TestQueueActsOnTheQueue: filters select from the history too, and what was sent is left out of what is to be changed.
func TestQueueActsOnTheQueue(t *testing.T) {
	m, url := newMailroom(t, 3)
	m.list[1].State = envelope.Sent
	_, stderr, err := relaydCommand(t, "", newQueueCommand(), "hold", "--sender", "erp@contoso.com", "--dry-run", "--api", url)
	if err != nil || !strings.Contains(stderr, "to be held: 2 messages\n") || strings.Contains(stderr, string(m.list[1].ID)) {
		t.Errorf("got %q, %v, want the two that wait", stderr, err)
	}
	m.list[0].State, m.list[2].State = envelope.Sent, envelope.Sent
	stdout, stderr, err := relaydCommand(t, "", newQueueCommand(), "drop", "--all", "--yes", "--api", url)
	if err != nil || stdout != "" || stderr != "no message fits\n" {
		t.Errorf("got %q, %q, %v, want nothing to do", stdout, stderr, err)
	}
}

func TestQueueUsage(t *testing.T) {
	id := string(mailIDs(1)[0])
	for _, tt := range []struct {
		args string
		want string
	}{
		{"list extra", `takes no argument, not "extra"`},
		{"list --state lost", `--state "lost" is no state; there are queued, sending,`},
		{"list --older-than 5", `--older-than: "5" is no age`},
		{"list --limit -1", "--limit -1 is less than none"},
		{"list --nothing", "unknown flag: --nothing; see relayd queue list --help"},
		{"list --api nowhere", "is no address of a relay"},
		{"show", "accepts 1 arg(s)"},
		{"show ../../etc/passwd", "is no queue id; those have 20 letters and digits"},
		{"drop", "takes ids, or filters, or --all: one of the three; see relayd queue drop --help"},
		{"drop " + id + " --sender x@y.z", "one of the three"},
		{"drop " + id + " --all", "one of the three"},
		{"drop --all --state failed", "one of the three"},
		{"hold nonsense", "is no queue id"},
		{"export " + id, "needs --output DIR"},
		{"export --all --output -", "--output - is for one message"},
		{"export " + id + " --json --output -", "--output - is for one message"},
	} {
		stdout, _, err := relaydCommand(t, "", newQueueCommand(), strings.Fields(tt.args)...)
		if !isUsage(err) || !strings.Contains(err.Error(), tt.want) || stdout != "" {
			t.Errorf("queue %s: got %v, want %q", tt.args, err, tt.want)
		}
	}
	stdout, _, err := relaydCommand(t, "", newQueueCommand())
	if err != nil || !strings.Contains(stdout, "release") {
		t.Errorf("help: got %q, %v", stdout, err)
	}
}

func TestQueueShow(t *testing.T) {
	m, url := newMailroom(t, 1)
	id, now := m.list[0].ID, time.Date(2026, 3, 4, 5, 6, 7, 0, time.Local)
	env := &envelope.Envelope{
		ID: id, Received: now, Intake: "smtp", Client: "erp", Peer: "10.1.2.3", Sender: "erp@contoso.com", ReversePath: "bounce@contoso.com",
		MessageID: "<m@x>", Size: 1234, Repairs: []string{"added the missing Date", "removed Bcc"},
		Recipients: []envelope.Recipient{{Address: "a@example.com"}, {Address: "b@example.com"}},
	}
	m.story = []*api.Message{{
		Envelope: env, State: envelope.Parked, Parked: "consent is gone", Stored: true,
		Progress: envelope.Progress{Attempts: 2, Results: []envelope.Result{{State: envelope.Sent, Reply: "250 2.0.0 OK"}, {State: envelope.Deferred, Reply: "451 4.7.0 \x1b[2Jlater"}}},
		Steps: []envelope.Step{
			{At: now, What: envelope.StepAccepted, State: envelope.Queued, Envelope: env},
			{At: now.Add(time.Second), What: envelope.StepAttempt, State: envelope.Deferred, By: "contoso/erp@contoso.com", Attempt: 1, Took: 1234567 * time.Microsecond,
				Reply: "451 4.7.0 later", Due: now.Add(time.Minute), Advice: "Grant consent again:\n  portal > Entra ID\n", Recipients: []envelope.StepResult{
					{Address: "a@example.com", State: envelope.Sent, Reply: "250 2.0.0 OK"}, {Address: "b@example.com", State: envelope.Deferred, Reply: "451 4.7.0 later"}}},
			{At: now.Add(2 * time.Second), What: envelope.StepHeld, State: envelope.Held, By: "api 127.0.0.1"},
			{At: now.Add(3 * time.Second), What: envelope.StepAttempt, Attempt: 2, State: envelope.Sent, Reply: "250 ok", Recipients: []envelope.StepResult{{Address: "b@example.com", State: envelope.Sent, Reply: "250 ok"}}},
		},
	}}
	stdout, _, err := relaydCommand(t, "", newQueueCommand(), "show", strings.ToUpper(string(id)), "--api", url)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Message     " + string(id) + "\n",
		"State       parked, 2 attempts: consent is gone\n",
		"Received    2026-03-04 05:06:07, ", ` ago, by smtp from "erp" at 10.1.2.3` + "\n",
		"Sender      erp@contoso.com\n", "MAIL FROM   <bounce@contoso.com>\n", "Message-ID  <m@x>\n", "Size        1234 bytes\n",
		"Repaired    added the missing Date, removed Bcc\n",
		"\nRecipients\n", "  a@example.com  sent      250 2.0.0 OK\n", `  b@example.com  deferred  451 4.7.0 \x1b[2Jlater` + "\n",
		"\nHistory\n  2026-03-04 05:06:07  accepted: queued\n",
		"  2026-03-04 05:06:08  attempt 1 by contoso/erp@contoso.com, 1.235s: deferred: 451 4.7.0 later, next 2026-03-04 05:07:07\n" +
			"      a@example.com: sent, 250 2.0.0 OK\n      b@example.com: deferred, 451 4.7.0 later\n" +
			"      advice: Grant consent again:\n                portal > Entra ID\n",
		"  2026-03-04 05:06:09  held by api 127.0.0.1\n",
		"  2026-03-04 05:06:10  attempt 2: sent: 250 ok\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "\x1b") || strings.Contains(stdout, "no longer kept") {
		t.Errorf("got\n%s", stdout)
	}
	stdout, _, err = relaydCommand(t, "", newQueueCommand(), "show", string(id), "--json", "--api", url)
	var d api.Detail
	if err != nil || json.Unmarshal([]byte(stdout), &d) != nil || d.ID != id || strings.Count(stdout, "\n") != 1 {
		t.Errorf("got %q, %v", stdout, err)
	}
	m.story = nil
	_, _, err = relaydCommand(t, "", newQueueCommand(), "show", string(id), "--api", url)
	if err == nil || isUsage(err) || err.Error() != "show "+string(id)+": "+api.ErrNotFound.Error() {
		t.Errorf("got %v", err)
	}
}

// Without an envelope, and with nothing to say of the next attempt.
func TestQueueShowLittle(t *testing.T) {
	var out strings.Builder
	now := time.Now()
	for want, d := range map[string]*api.Detail{
		"State    sent, 1 attempt\nContent  no longer kept\n": {State: envelope.Sent, Attempts: 1, Due: now.Add(time.Hour)},
		"State  held: by hand\n":                              {State: envelope.Held, Reason: "by hand", Due: now.Add(time.Hour), Stored: true},
		"State  deferred, next in 60m (":                      {State: envelope.Deferred, Due: now.Add(time.Hour), Stored: true},
	} {
		out.Reset()
		if err := writeStory(&out, d, now); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("got %q, %v, want %q", out.String(), err, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 2 * time.Hour: "2h", 47 * time.Hour: "47h", 72 * time.Hour: "3d",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func TestQueueActionsByID(t *testing.T) {
	m, url := newMailroom(t, 3)
	first, second := m.list[0].ID, m.list[1].ID
	for _, v := range queueVerbs() {
		m.acts = nil
		args := []string{v.name, string(first), string(second), string(first), "--api", url}
		if v.final {
			_, _, err := relaydCommand(t, "y\n", newQueueCommand(), args...)
			if err == nil || !strings.Contains(err.Error(), "drop: nothing done: there is no terminal to ask on; add --yes") || m.acts != nil {
				t.Errorf("%s without --yes: got %v, %v", v.name, err, m.acts)
			}
			args = append(args, "--yes")
		}
		stdout, _, err := relaydCommand(t, "", newQueueCommand(), args...)
		slices.Sort(m.acts)
		want := []string{v.name + " " + string(second), v.name + " " + string(first)}
		if err != nil || stdout != "2 messages "+v.done+"\n" || !slices.Equal(m.acts, want) {
			t.Errorf("%s: got %q, %v, %v", v.name, stdout, err, m.acts)
		}
	}
	m.busy, m.acts = first, nil
	_, stderr, err := relaydCommand(t, "", newQueueCommand(), "hold", string(first), string(second), "--api", url)
	if err == nil || err.Error() != "hold: 1 of 2 messages held, the others not for the reasons above" || stderr != string(first)+": "+api.ErrBusy.Error()+"\n" {
		t.Errorf("got %q, %v", stderr, err)
	}
	stdout, stderr, err := relaydCommand(t, "", newQueueCommand(), "hold", string(first), string(second), "--api", url, "--json")
	var outcome api.Outcome
	if err == nil || stderr != "" || strings.Count(stdout, "\n") != 2 || json.Unmarshal([]byte(strings.SplitN(stdout, "\n", 2)[0]), &outcome) != nil || outcome.Status != 409 {
		t.Errorf("got %q, %q, %v", stdout, stderr, err)
	}
	absent := envelope.NewID(time.Now())
	_, stderr, err = relaydCommand(t, "", newQueueCommand(), "drop", string(absent), "--yes", "--api", url)
	if err == nil || err.Error() != "drop: none of these messages is there" || !strings.Contains(stderr, string(absent)+": there is no message") {
		t.Errorf("got %q, %v", stderr, err)
	}
}

func TestQueueActionsByFilter(t *testing.T) {
	m, url := newMailroom(t, pageSize+30)
	m.list[3].State = envelope.Failed
	run := func(args ...string) (string, string, error) {
		t.Helper()
		m.acts = nil
		return relaydCommand(t, "", newQueueCommand(), append(args, "--api", url)...)
	}
	_, stderr, err := run("hold", "--sender", "erp@contoso.com")
	if err == nil || !strings.Contains(err.Error(), "add --yes") || isUsage(err) || m.acts != nil {
		t.Errorf("got %v, %v", err, m.acts)
	}
	if !strings.HasPrefix(stderr, "to be held: 530 messages\nID  ") || strings.Count(stderr, "\n") != 2+previewLines+1 || !strings.HasSuffix(stderr, "… and 520 more\n") {
		t.Errorf("preview: got\n%s", stderr)
	}
	stdout, stderr, err := run("drop", "--state", "deferred", "--dry-run")
	if err != nil || stdout != "" || m.acts != nil || !strings.HasPrefix(stderr, "to be dropped: 529 messages\n") {
		t.Errorf("dry run: got %q, %q, %v, %v", stdout, stderr, err, m.acts)
	}
	stdout, _, err = run("drop", "--state", "deferred", "--yes")
	if err != nil || stdout != "529 messages dropped\n" || len(m.acts) != 529 || slices.Contains(m.acts, "drop "+string(m.list[3].ID)) {
		t.Errorf("got %q, %v after %d", stdout, err, len(m.acts))
	}
	stdout, _, err = run("retry", "--all", "--yes")
	if err != nil || stdout != "530 messages retried\n" || len(m.acts) != 530 {
		t.Errorf("all: got %q, %v after %d", stdout, err, len(m.acts))
	}
	stdout, stderr, err = run("retry", "--sender", "nobody@contoso.com", "--yes")
	if err != nil || stdout != "" || stderr != "no message fits\n" {
		t.Errorf("none: got %q, %q, %v", stdout, stderr, err)
	}
}

// The question is put to a person, and only yes is yes.
func TestQueueAsks(t *testing.T) {
	m, url := newMailroom(t, 2)
	for answer, acts := range map[string]int{"y\n": 2, "YES\n": 2, "n\n": 0, "\n": 0, "yeah\n": 0} {
		m.acts = nil
		person, terminal := openTerminal(t)
		if _, err := person.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		root := &cobra.Command{Use: "relayd", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(newQueueCommand())
		var out, errs strings.Builder
		root.SetArgs([]string{"queue", "drop", "--all", "--api", url})
		root.SetIn(terminal)
		root.SetOut(&out)
		root.SetErr(&errs)
		if err := root.ExecuteContext(t.Context()); err != nil || len(m.acts) != acts || !strings.Contains(errs.String(), "Go on? [y/N] ") {
			t.Errorf("%q: got %v, %v\n%s", answer, err, m.acts, errs.String())
		}
		if (acts == 0) != strings.HasSuffix(errs.String(), "nothing done\n") {
			t.Errorf("%q: got\n%s", answer, errs.String())
		}
	}
}

func TestQueueExport(t *testing.T) {
	m, url := newMailroom(t, 3)
	dir := filepath.Join(t.TempDir(), "made", "here")
	first := m.list[0].ID
	stdout, _, err := relaydCommand(t, "", newQueueCommand(), "export", string(first), "--output", "-", "--api", url)
	if err != nil || stdout != m.raw[first] {
		t.Errorf("got %q, %v", stdout, err)
	}
	m.story = []*api.Message{{State: envelope.Deferred, Stored: true}}
	for range 2 { // and once more over what is there
		stdout, stderr, err := relaydCommand(t, "", newQueueCommand(), "export", "--all", "--json", "-o", dir, "--api", url)
		if err != nil || strings.Count(stdout, "\n") != 3 || stderr != "3 messages exported to "+dir+"\n" {
			t.Errorf("got %q, %q, %v", stdout, stderr, err)
		}
	}
	for id, want := range m.raw {
		path := filepath.Join(dir, string(id)+".eml")
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", id, got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s may be read by others: %v, %v", id, info, err)
		}
	}
	delete(m.raw, first)
	_, stderr, err := relaydCommand(t, "", newQueueCommand(), "export", "--sender", "erp@contoso.com", "-o", dir, "--api", url)
	if err == nil || err.Error() != "export: 2 of 3 messages exported, the others not for the reasons above" || !strings.Contains(stderr, string(first)+": there is no message") {
		t.Errorf("got %q, %v", stderr, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	file := filepath.Join(dir, string(first)+".eml")
	if _, _, err := relaydCommand(t, "", newQueueCommand(), "export", "--all", "-o", file, "--api", url); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file in the way: got %v", err)
	}
}
