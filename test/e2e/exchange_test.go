package e2e

import (
	"bufio"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"relayd/test/rig"
)

// addresses returns n recipients, spread evenly over domains.
func addresses(n int, domains ...string) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("r%d@%s", i, domains[i%len(domains)])
	}
	return list
}

// onceEach fails unless the messages together went to exactly these recipients, each once, in parts no larger than
// Exchange Online takes.
func onceEach(t *testing.T, list []rig.Message, want []string, most, mostDomain int) {
	t.Helper()
	var got []string
	for _, m := range list {
		got = append(got, m.Rcpts...)
		domains := map[string]int{}
		for _, r := range m.Rcpts {
			domains[r[strings.LastIndexByte(r, '@'):]]++
		}
		if len(m.Rcpts) > most {
			t.Errorf("one message has %d recipients, want %d at most", len(m.Rcpts), most)
		}
		for d, n := range domains {
			if n > mostDomain {
				t.Errorf("one message has %d recipients in %s, want %d at most", n, d, mostDomain)
			}
		}
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%d deliveries, want each of %d recipients once", len(got), len(want))
	}
}

// TestManyRecipients sends more recipients than Exchange Online takes in one message, and more of one domain.
func TestManyRecipients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{more: "limits: {recipients: 1000}"})
	want := addresses(600, "a.example", "b.example", "c.example", "d.example")
	w.send("erp@contoso.com", letter("erp@contoso.com", "six-hundred"), want...)
	onceEach(t, w.arrived("erp@contoso.com", 2, patience), want, 500, 200)
	want = addresses(450, "one.example")
	w.send("crm@contoso.com", letter("crm@contoso.com", "one-domain"), want...)
	onceEach(t, w.arrived("crm@contoso.com", 3, patience), want, 500, 200)
	w.becomes(0, "relayd_queue_messages")
	w.stays(0, "relayd_deliveries_total", `outcome="deferred"`)
	w.stays(0, "relayd_possible_duplicates_total")
}

// TestFewerRecipientsThanConfigured has a far end that takes fewer than relayd believes: the refused ones go in messages
// of their own, and nobody gets two.
func TestFewerRecipientsThanConfigured(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--recipients", "50")
	w.start(plan{})
	want := addresses(180, "a.example", "b.example")
	w.send("erp@contoso.com", letter("erp@contoso.com", "learned"), want...)
	onceEach(t, w.arrived("erp@contoso.com", 4, patience), want, 50, 50)
	w.becomes(0, "relayd_queue_messages")
	w.stays(0, "relayd_deliveries_total", `outcome="failed"`)
}

// TestKilledBehindTheDot kills the relay while it waits for the reply to the final dot: after the restart the message is
// sent again, and this time flagged; one that had not come so far is not.
func TestKilledBehindTheDot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"preset": "dot-blackhole-delivered", "mailbox": "erp@contoso.com", "count": 1}`)
	w.fault(`{"stage": "mail", "mailbox": "crm@contoso.com", "blackhole": true, "count": 1}`)
	w.send("erp@contoso.com", letter("erp@contoso.com", "in-flight"))
	w.arrived("erp@contoso.com", 1, patience)
	w.send("crm@contoso.com", letter("crm@contoso.com", "not-yet"))
	eventually(t, "both wait for a reply", func() bool {
		var faults []struct {
			Fired int `json:"fired"`
		}
		if err := w.far.Get(t.Context(), "/sandbox/faults", &faults); err != nil {
			t.Fatal(err)
		}
		return faults[0].Fired == 1 && faults[1].Fired == 1
	})
	w.relay.Kill()
	w.restart()
	list := w.arrived("erp@contoso.com", 2, patience)
	if w.raw(list[0]) != w.raw(list[1]) {
		t.Error("the second copy differs from the first")
	}
	w.arrived("crm@contoso.com", 1, patience)
	w.becomes(0, "relayd_queue_messages")
	w.stays(1, "relayd_possible_duplicates_total")
}

// TestFallback has one mailbox parked whose sender has a fallback: its mail goes through that one meanwhile, with the
// original author in Reply-To, and by its own way again once the cause is cured.
func TestFallback(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{senders: `
  - {address: erp@contoso.com, tenant: contoso, fallback: noreply@contoso.com, ` + unlimited + `}
  - {address: noreply@contoso.com, tenant: contoso, ` + unlimited + `}`})
	w.fault(`{"preset": "auth-disabled-mailbox", "mailbox": "erp@contoso.com"}`)
	w.send("erp@contoso.com", letter("erp@contoso.com", "by-fallback"))
	m := w.arrived("noreply@contoso.com", 1, patience)[0]
	head, err := mail.ReadMessage(strings.NewReader(w.raw(m)))
	if err != nil {
		t.Fatal(err)
	}
	if from, reply := head.Header.Get("From"), head.Header.Get("Reply-To"); !strings.Contains(from, "noreply@contoso.com") ||
		!strings.Contains(reply, "erp@contoso.com") || m.Login != "noreply@contoso.com" || m.MailFrom != "noreply@contoso.com" {
		t.Errorf("login %s, MAIL FROM %s, From %q, Reply-To %q", m.Login, m.MailFrom, from, reply)
	}
	if body, err := io.ReadAll(head.Body); err != nil || string(body) != "This is by-fallback.\r\n" {
		t.Errorf("body %q, %v", body, err)
	}
	w.becomes(1, "relayd_sender_parked", `sender="erp@contoso.com"`)
	w.noFaults()
	w.hangup(reloaded) // probes at once
	w.send("erp@contoso.com", letter("erp@contoso.com", "probe"))
	w.becomes(0, "relayd_sender_parked", `sender="erp@contoso.com"`)
	w.send("erp@contoso.com", letter("erp@contoso.com", "own-way"))
	for _, m := range w.arrived("erp@contoso.com", 2, patience) {
		if raw := w.raw(m); !strings.Contains(raw, "From: <erp@contoso.com>") || strings.Contains(raw, "Reply-To") {
			t.Errorf("arrived as %q", raw)
		}
	}
}

// TestQuota has Exchange Online refuse a mailbox with a 5xx that heals: nothing fails, others are not touched, and the
// mail shows as parked.
func TestQuota(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{more: "bounces: {from: postmaster@contoso.com, notify: [ops@example.net]}"})
	w.fault(`{"preset": "dot-quota", "mailbox": "erp@contoso.com"}`)
	for i := range 20 {
		w.send("erp@contoso.com", letter("erp@contoso.com", fmt.Sprint("quota", i)))
	}
	w.becomes(1, "relayd_sender_parked", `sender="erp@contoso.com"`)
	w.send("crm@contoso.com", letter("crm@contoso.com", "free"))
	w.arrived("crm@contoso.com", 1, patience)
	w.becomes(20, "relayd_queue_messages", `state="parked"`)
	w.stays(0, "relayd_deliveries_total", `outcome="failed"`)
	w.stays(0, "relayd_deliveries_total", `outcome="deferred"`)
	w.stays(0, "relayd_bounces_total", `kind="failure"`, `result="sent"`)
	// At most three were under way when the quota was met; the rest was not even tried.
	if n, _ := w.metric("relayd_exchange_replies_total", `stage="dot"`, `code="554"`); n < 1 || n > 3 {
		t.Errorf("%v messages were refused, want 1 to 3", n)
	}
}

// part is one part of a multipart/report.
type part struct {
	header textproto.MIMEHeader
	body   string
}

// report reads a delivery status notification into its parts, by the standard library's readers.
func report(t *testing.T, raw string) (mail.Header, []part) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("Content-Type %q (%v), want multipart/report of a delivery status", m.Header.Get("Content-Type"), err)
	}
	var parts []part
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextPart()
		if err == io.EOF {
			return m.Header, parts
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part{p.Header, string(body)})
	}
}

// TestBounce has one of two recipients refused for good: the sender is told by a delivery status notification, and of
// that recipient alone; it goes by the postmaster sender, and answers NOTIFY and ENVID.
func TestBounce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{more: "bounces: {from: postmaster@contoso.com}"})
	w.fault(`{"preset": "rcpt-not-found", "recipient": "gone@example.com"}`)
	w.fault(`{"preset": "rcpt-not-found", "recipient": "quiet@example.com"}`)
	c := dial(t, w.relay.SMTP)
	c.say(250, "EHLO app.contoso.com")
	c.say(250, "MAIL FROM:<erp@contoso.com> ENVID=order+2B77 RET=HDRS")
	c.say(250, "RCPT TO:<good@example.com>")
	c.say(250, "RCPT TO:<gone@example.com> NOTIFY=FAILURE ORCPT=rfc822;gone+2Balias@example.com")
	c.say(250, "RCPT TO:<quiet@example.com> NOTIFY=NEVER")
	c.say(354, "DATA")
	c.write(letter("erp@contoso.com", "partly"))
	c.say(250, ".")
	m := w.arrived("postmaster@contoso.com", 1, patience)[0]
	if !slices.Equal(m.Rcpts, []string{"erp@contoso.com"}) {
		t.Errorf("the notification went to %q", m.Rcpts)
	}
	head, parts := report(t, w.raw(m))
	if len(parts) != 3 || head.Get("Auto-Submitted") != "auto-replied" {
		t.Fatalf("%d parts, Auto-Submitted %q", len(parts), head.Get("Auto-Submitted"))
	}
	r := textproto.NewReader(bufio.NewReader(strings.NewReader(parts[1].body)))
	message, err1 := r.ReadMIMEHeader()
	recipient, err2 := r.ReadMIMEHeader()
	if err1 != nil || err2 != nil && err2 != io.EOF {
		t.Fatalf("delivery status %q: %v, %v", parts[1].body, err1, err2)
	}
	for name, want := range map[string]string{"Reporting-Mta": "dns; relay.contoso.com", "Original-Envelope-Id": "order+77"} {
		if got := message.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"Action": "failed", "Status": "5.1.10", "Final-Recipient": "rfc822; gone@example.com",
		"Original-Recipient": "rfc822; gone+alias@example.com"} {
		if got := recipient.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(recipient.Get("Diagnostic-Code"), "550 5.1.10 RESOLVER.ADR.RecipientNotFound") || strings.Contains(parts[1].body, "quiet") {
		t.Errorf("delivery status %q", parts[1].body)
	}
	if !strings.Contains(parts[2].body, "Message-ID: <partly.erp@contoso.com>") || strings.Contains(parts[2].body, "This is partly") {
		t.Errorf("original: %q", parts[2].body)
	}
	w.becomes(1, "relayd_bounces_total", `kind="failure"`, `result="sent"`)
	w.becomes(1, "relayd_queue_messages", `state="failed"`)
	w.arrived("erp@contoso.com", 1, patience)
	// Resent, it goes to those alone that did not get it.
	w.noFaults()
	out := w.command("queue", "retry", "--state", "failed", "--yes", "--api", "http://"+w.relay.Admin)
	if !strings.Contains(out, "1 ") {
		t.Errorf("queue retry: %q", out)
	}
	list := w.arrived("erp@contoso.com", 2, patience)
	if got := slices.Sorted(slices.Values(list[1].Rcpts)); !slices.Equal(got, []string{"gone@example.com", "quiet@example.com"}) {
		t.Errorf("resent to %q", got)
	}
}

// command runs relayd to its end, which must be a good one, and returns what it printed.
func (w *world) command(args ...string) string {
	w.t.Helper()
	out, err := exec.CommandContext(w.t.Context(), relayd, args...).CombinedOutput()
	if err != nil {
		w.t.Errorf("relayd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestNotices parks a whole tenant: the operators hear of it once, and of the end.
func TestNotices(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// The postmaster's mail goes by another mailbox of the tenant: only mailboxes are parked here.
	w.start(plan{more: "bounces: {from: postmaster@contoso.com, notify: [ops@example.net]}"})
	w.fault(`{"preset": "auth-disabled-mailbox", "mailbox": "erp@contoso.com"}`)
	for i := range 5 {
		w.send("erp@contoso.com", letter("erp@contoso.com", fmt.Sprint("parked", i)))
	}
	notice := w.raw(w.arrived("postmaster@contoso.com", 1, 2*patience)[0])
	for _, want := range []string{"erp@contoso.com", "SmtpClientAuthentication", "Set-CASMailbox"} {
		if !strings.Contains(notice, want) {
			t.Errorf("the notice lacks %q:\n%s", want, notice)
		}
	}
	w.noFaults()
	w.hangup(reloaded)
	w.arrived("erp@contoso.com", 5, patience)
	w.arrived("postmaster@contoso.com", 2, 2*patience)
	w.becomes(2, "relayd_bounces_total", `kind="notice"`, `result="sent"`)
}

// TestLongLines sends a line of 5,000 octets: it arrives with the same content, in lines Exchange Online takes; signed
// mail stays as it is.
func TestLongLines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	long := strings.Repeat("0123456789", 500)
	w.send("erp@contoso.com", "From: <erp@contoso.com>\r\nTo: <you@example.com>\r\nSubject: long\r\nMIME-Version: 1.0\r\n"+
		"Content-Type: text/plain; charset=utf-8\r\nMessage-ID: <long@contoso.com>\r\nDate: Thu, 01 Oct 2026 10:00:00 +0200\r\n\r\n"+long+"\r\n")
	raw := w.raw(w.arrived("erp@contoso.com", 1, patience)[0])
	for line := range strings.SplitSeq(raw, "\r\n") {
		if len(line) > 998 {
			t.Fatalf("a line of %d octets arrived", len(line))
		}
	}
	if !strings.Contains(raw, "Content-Transfer-Encoding: quoted-printable") {
		t.Errorf("arrived as %q", raw[:min(len(raw), 800)])
	}
	plain := regexp.MustCompile(`=\r\n`).ReplaceAllString(raw, "")
	if !strings.Contains(plain, long) {
		t.Error("the content changed")
	}
}
