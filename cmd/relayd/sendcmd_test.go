package main

import (
	"context"
	"net/http"
	"net/http/httptest"
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

// state is a message to one recipient as Get sees it.
func state(s envelope.State, reply string, steps ...envelope.Step) *api.Message {
	return &api.Message{
		Envelope: &envelope.Envelope{Recipients: []envelope.Recipient{{Address: "a@example.com"}}}, State: s, Stored: true, Steps: steps,
		Progress: envelope.Progress{State: s, Reason: reply, Results: []envelope.Result{{State: s, Reply: reply}}},
	}
}

func send(t *testing.T, url, stdin string, args ...string) (string, error) {
	t.Helper()
	stdout, stderr, err := relaydCommand(t, stdin, newSendCommand(), append([]string{"--api", url, "--from", "erp@contoso.com", "--to", "a@example.com"}, args...)...)
	if stderr != "" {
		t.Errorf("stderr: %q", stderr)
	}
	return stdout, err
}

func TestSendUntilSent(t *testing.T) {
	m, url := newMailroom(t, 0)
	m.story = []*api.Message{nil, state(envelope.Sending, ""), state(envelope.Deferred, "451 4.7.0 later\x1b"), state(envelope.Deferred, "451 4.7.0 later\x1b"), nil, state(envelope.Sent, "250 2.0.0 OK")}
	out, err := send(t, url, "", "--subject", "Größe", "--body", "hello", "--to", "b@example.com")
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for line := range strings.Lines(out) {
		if _, after, ok := strings.Cut(line, "  "); ok && line[2] == ':' {
			line = after // without the time
		}
		said = append(said, strings.TrimSpace(line))
	}
	want := []string{"queued as " + strings.Fields(out)[3], "sending", `deferred: 451 4.7.0 later\x1b`, "sent", "a@example.com: sent, 250 2.0.0 OK"}
	if !slices.Equal(said, want) {
		t.Errorf("got %q, want %q", said, want)
	}
	if m.sent.From != "erp@contoso.com" || len(m.sent.To) != 2 || !strings.Contains(m.text, "Subject: =?utf-8?q?Gr=C3=B6=C3=9Fe?=\r\n") || !strings.HasSuffix(m.text, "\r\n\r\nhello\r\n") {
		t.Errorf("got %+v with\n%s", m.sent, m.text)
	}
}

func TestSendThatFails(t *testing.T) {
	m, url := newMailroom(t, 0)
	m.story = []*api.Message{state(envelope.Failed, "550 5.1.10 Recipient not found",
		envelope.Step{What: envelope.StepAttempt, Advice: "Look at the address.\nThen again."}, envelope.Step{What: envelope.StepBounced})}
	out, err := send(t, url, "")
	if err == nil || isUsage(err) || err.Error() != "not sent: failed: 550 5.1.10 Recipient not found" {
		t.Errorf("got %v", err)
	}
	if !strings.HasSuffix(out, "a@example.com: failed, 550 5.1.10 Recipient not found\nadvice: Look at the address.\n        Then again.\n") {
		t.Errorf("got\n%s", out)
	}
	if !strings.Contains(m.text, "Subject: Test message from relayd\r\n") || !strings.Contains(m.text, "This message was sent by relayd send at ") {
		t.Errorf("without a text: got\n%s", m.text)
	}
}

func TestSendThatTakesTooLong(t *testing.T) {
	m, url := newMailroom(t, 0)
	parked := state(envelope.Parked, "", envelope.Step{What: envelope.StepAttempt, Advice: "Grant consent."})
	parked.Parked = "consent is gone"
	m.story = []*api.Message{parked}
	out, err := send(t, url, "", "--wait", "300ms")
	if err == nil || !strings.HasPrefix(err.Error(), "not sent within 300ms: it is parked: consent is gone; it stays in the queue; relayd queue show ") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(out, "parked: consent is gone\n") || !strings.HasSuffix(out, "advice: Grant consent.\n") || strings.Count(out, "parked") != 1 {
		t.Errorf("got\n%s", out)
	}
	m.story = nil
	if _, err := send(t, url, "", "--wait", "50ms"); err == nil || !strings.Contains(err.Error(), "nothing is known of it yet") {
		t.Errorf("got %v", err)
	}
}

func TestSendWithoutWaiting(t *testing.T) {
	_, url := newMailroom(t, 0)
	out, err := send(t, url, "from\na pipe", "--no-wait", "--body", "-")
	if err != nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, "queued as ") {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestSendBodies(t *testing.T) {
	m, url := newMailroom(t, 0)
	if _, err := send(t, url, "from\na pipe", "--no-wait", "--body", "-"); err != nil || !strings.HasSuffix(m.text, "\r\n\r\nfrom\r\na pipe\r\n") {
		t.Errorf("got %v with\n%s", err, m.text)
	}
	const whole = "Subject: mine\n\nbare LF\n"
	if _, err := send(t, url, whole, "--no-wait", "--file", "-"); err != nil || m.text != whole {
		t.Errorf("got %v with\n%s", err, m.text)
	}
	path := filepath.Join(t.TempDir(), "m.eml")
	if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := send(t, url, "", "--no-wait", "--file", path, "--to", "b+c@example.com"); err != nil || m.text != whole || m.sent.To[1] != "b+c@example.com" {
		t.Errorf("got %v with\n%s", err, m.text)
	}
	if _, err := send(t, url, "", "--file", path+"x"); err == nil || !strings.Contains(err.Error(), path+"x") {
		t.Errorf("no file: got %v", err)
	}
	if _, err := send(t, url, strings.Repeat("x", 2<<20), "--no-wait", "--body", "-"); err == nil || !strings.Contains(err.Error(), "send: the body is larger than the 1048576 bytes allowed here") {
		t.Errorf("a long text: got %v", err)
	}
}

func TestSendUsage(t *testing.T) {
	for args, want := range map[string]string{
		"":                              "send needs --from and at least one --to",
		"--from a@b.c":                  "send needs --from and at least one --to",
		"--to a@b.c":                    "send needs --from and at least one --to",
		"--from x --to a@b.c":           `--from "x" is no address`,
		"--from a@b.c --to <a@b.c>":     `--to "<a@b.c>" is no address`,
		"--from a@b.c --to d@e.f extra": `takes no argument, not "extra"`,
		"--from a@b.c --to d@e.f --file x --subject y":    "--file is a whole message",
		"--from a@b.c --to d@e.f --no-wait --wait 1m":     "--wait and --no-wait exclude each other",
		"--from a@b.c --to d@e.f --wait 0s":               "is no time to wait",
		"--from a@b.c --to d@e.f --wait soon":             "invalid argument",
		"--from a@b.c --to d@e.f --api ftp://x --no-wait": "is no address of a relay",
		"--from a@b.c --to d@e.f --file x --body y":       "--file is a whole message",
		"--from a@b.c --to d@e.f --unknown":               "unknown flag",
		"--from a@b.c --to d@e.f --to ok@e.f --to a@":     "is no address",
	} {
		if _, _, err := relaydCommand(t, "", newSendCommand(), strings.Fields(args)...); !isUsage(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("send %s: got %v, want %q", args, err, want)
		}
	}
}

func TestSendRefused(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(422)
		w.Write([]byte(`{"detail":"550 5.7.1 <erp@contoso.com>: no sender with that address is configured"}`))
	}))
	defer s.Close()
	out, err := send(t, s.URL, "")
	if err == nil || err.Error() != "send: 550 5.7.1 <erp@contoso.com>: no sender with that address is configured" || out != "" {
		t.Errorf("got %q, %v", out, err)
	}
}

// Ctrl-C ends the waiting, not the message.
func TestSendInterrupted(t *testing.T) {
	m, url := newMailroom(t, 0)
	m.story = []*api.Message{state(envelope.Deferred, "451 later")}
	ctx, cancel := context.WithCancel(t.Context())
	root := &cobra.Command{Use: "relayd", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(newSendCommand())
	root.SetArgs([]string{"send", "--api", url, "--from", "erp@contoso.com", "--to", "a@example.com"})
	root.SetOut(writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "deferred") {
			cancel()
		}
		return len(p), nil
	}))
	began := time.Now()
	err := root.ExecuteContext(ctx)
	if err == nil || !strings.HasPrefix(err.Error(), "interrupted: it stays in the queue; relayd queue show ") || time.Since(began) > 30*time.Second {
		t.Errorf("got %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
