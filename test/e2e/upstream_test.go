package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"relayd/test/rig"
)

// ear stands between the relay and the far end and keeps what the relay sends.
type ear struct {
	addr string

	mu    sync.Mutex // guards heard
	heard []*bytes.Buffer
}

func newEar(t *testing.T, target string) *ear {
	t.Helper()
	e := &ear{}
	e.addr = pass(t, target, func(relay, far net.Conn) {
		b := new(bytes.Buffer)
		e.mu.Lock()
		e.heard = append(e.heard, b)
		e.mu.Unlock()
		done := make(chan struct{})
		go func() {
			defer close(done)
			shovel(relay, far, func([]byte) {})
			relay.Close()
		}()
		shovel(far, relay, func(p []byte) {
			e.mu.Lock()
			defer e.mu.Unlock()
			b.Write(p)
		})
		far.Close()
		<-done
	})
	return e
}

// onlyTLS fails if anything but a greeting and STARTTLS ever went in clear, and returns the number of connections.
func (e *ear) onlyTLS(t *testing.T) int {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range e.heard {
		if err := onlyTLS(b.Bytes()); err != nil {
			t.Errorf("in clear: %v", err)
		}
	}
	return len(e.heard)
}

func onlyTLS(b []byte) error {
	open := regexp.MustCompile(`^(EHLO relay\.contoso\.com\r\n)?(STARTTLS\r\n)?(QUIT\r\n)?`).Find(b)
	for b = b[len(open):]; len(b) > 0; {
		// Records of RFC 8446, section 5.1: type, version 3.x, length.
		if len(b) < 5 || b[0] < 20 || b[0] > 23 || b[1] != 3 {
			return fmt.Errorf("%q", b[:min(len(b), 200)])
		}
		b = b[min(len(b), 5+int(b[3])<<8+int(b[4])):]
	}
	return nil
}

func TestOnlyTLS(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"", "EHLO relay.contoso.com\r\n", "EHLO relay.contoso.com\r\nQUIT\r\n",
		"EHLO relay.contoso.com\r\nSTARTTLS\r\n\x16\x03\x01\x00\x02ab\x17\x03\x03\x00\x01c", "EHLO relay.contoso.com\r\nSTARTTLS\r\n\x16\x03\x01\x00\x09a"} {
		if err := onlyTLS([]byte(good)); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"EHLO relay.contoso.com\r\nAUTH XOAUTH2\r\n", "EHLO relay.contoso.com\r\nSTARTTLS\r\nEHLO relay.contoso.com\r\n",
		"EHLO relay.contoso.com\r\nSTARTTLS\r\n\x16\x03\x01\x00\x02abMAIL FROM:<erp@contoso.com>\r\n"} {
		if onlyTLS([]byte(bad)) == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

// TestNothingInClear has the far end spoil TLS in every way. Mail stays in the queue, nothing but the greeting goes over
// the wire, and once the fault is gone the mail leaves by itself.
func TestNothingInClear(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := newEar(t, w.far.SMTP)
	_, port, _ := net.SplitHostPort(e.addr)
	w.start(plan{server: "localhost:" + port}) // a name, for a certificate to be wrong about
	for i, c := range []struct{ preset, says string }{
		{"cert-expired", "certificate has expired or is not yet valid"},
		{"cert-wrong-name", "certificate is valid for wrong.name.invalid, not localhost"},
		{"cert-self-signed", "certificate signed by unknown authority"},
		{"tls-1.0", "protocol version not supported"},
		{"tls-rst", "or the handshake broke off"},
		{"no-starttls", "Exchange Online offers no STARTTLS, and nothing is sent without"},
		{"starttls-454", "454 4.7.0 TLS not available due to temporary reason"},
		{"starttls-injection", "data before the TLS handshake"},
		{"ehlo-garbage", "reply was not understood"},
		{"connect-421", "421 4.3.2 Service not active"},
	} {
		t.Run(c.preset, func(t *testing.T) {
			own := &world{t: t, dir: w.dir, far: w.far, relay: w.relay}
			own.fault(`{"preset": %q}`, c.preset)
			defer own.noFaults() // the next one must not meet it
			sender := fmt.Sprintf("tls%d@contoso.com", i)
			sent := letter(sender, c.preset)
			id := own.send(sender, sent)
			eventually(t, "the message is deferred, and the log says why", func() bool {
				return slices.ContainsFunc(strings.Split(own.relay.Log(), "\n"), func(line string) bool {
					return strings.Contains(line, `"msg":"deferred"`) && strings.Contains(line, id) && strings.Contains(line, c.says)
				})
			})
			own.becomes(1, "relayd_queue_messages", `state="deferred"`)
			stats := own.stats()
			if int(stats.Messages) != i || int(stats.AuthOK) != i || stats.AuthFailed != 0 {
				t.Errorf("the far end saw %d messages, %d and %d logins; want %d of each before", stats.Messages, stats.AuthOK, stats.AuthFailed, i)
			}
			e.onlyTLS(t)
			own.noFaults()
			if raw := own.raw(own.arrived(sender, 1, patience)[0]); !strings.HasSuffix(raw, sent) {
				t.Errorf("arrived as %q", raw)
			}
		})
	}
	if n := e.onlyTLS(t); n < 20 {
		t.Errorf("%d connections were listened to, want two a fault at least", n)
	}
	w.stays(0, "relayd_deliveries_total", `outcome="failed"`)
}

// TestWrongSecret gives the relay a secret that Entra ID refuses: mail is taken and kept, costs no attempt, nothing bounces,
// and a corrected file is all the cure it takes.
func TestWrongSecret(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	replaceFile(t, w.path("secret"), "not-the-secret\n")
	w.start(plan{})
	ids := []string{w.send("erp@contoso.com", letter("erp@contoso.com", "first")), w.send("erp@contoso.com", letter("erp@contoso.com", "second")),
		w.send("crm@contoso.com", letter("crm@contoso.com", "third"))}
	w.becomes(3, "relayd_queue_messages", `state="parked"`)
	w.becomes(1, "relayd_sender_parked", `sender="erp@contoso.com"`)
	w.becomes(1, "relayd_sender_parked", `sender="crm@contoso.com"`)
	if n, _ := w.metric("relayd_token_requests_total", `tenant="contoso"`, `result="refused"`); n < 1 || n > 2 {
		t.Errorf("%v refused token requests, want one, two at most: three messages must not ask three times", n)
	}
	w.logged("the client secret is wrong: configure the secret's value, not its ID (App registrations, Certificates & secrets)", 1)
	if n := len(w.all()); n != 0 {
		t.Errorf("%d messages arrived", n)
	}
	replaceFile(t, w.path("secret"), rig.Secret+"\n")
	cured := time.Now()
	w.arrived("erp@contoso.com", 2, patience)
	w.arrived("crm@contoso.com", 1, patience)
	// The file is looked at every 2 s and must stay the same for as long again.
	if took := time.Since(cured); took > 20*time.Second {
		t.Errorf("the mail left %v after the cure", took)
	}
	w.becomes(0, "relayd_sender_parked")
	w.becomes(0, "relayd_queue_messages", `state="parked"`)
	w.stays(3, "relayd_deliveries_total", `outcome="sent"`)
	w.stays(0, "relayd_deliveries_total", `outcome="failed"`)
	w.stays(0, "relayd_deliveries_total", `outcome="deferred"`)
	for _, id := range ids {
		w.sentOn(id, 1)
	}
}

// sentOn fails unless the log tells that a message was sent by its n-th attempt.
func (w *world) sentOn(id string, attempt int) {
	w.t.Helper()
	for line := range strings.Lines(w.relay.Log()) {
		if strings.Contains(line, `"msg":"sent"`) && strings.Contains(line, id) {
			if !strings.Contains(line, fmt.Sprintf(`"attempt":%d,`, attempt)) {
				w.t.Errorf("want attempt %d: %s", attempt, line)
			}
			return
		}
	}
	w.t.Errorf("the log does not tell that %s was sent", id)
}

// TestRefusedOnce has Exchange Online refuse a token that is good: one fresh token, and nobody notices.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"preset": "auth-unsuccessful", "count": 1}`)
	id := w.send("erp@contoso.com", letter("erp@contoso.com", "once"))
	w.arrived("erp@contoso.com", 1, patience)
	w.logged(`"msg":"sent"`, 1)
	w.sentOn(id, 1)
	w.stays(2, "relayd_token_requests_total", `result="ok"`)
	w.stays(0, "relayd_sender_parked")
	w.stays(0, "relayd_deliveries_total", `outcome="parked"`)
	w.stays(1, "relayd_exchange_replies_total", `stage="auth"`, `code="535"`, `enhanced="5.7.3"`)
}

// TestParkedMailbox has one mailbox refused for a while. Its mail waits, that of others does not; nobody touches the relay,
// which tries again after a minute.
func TestParkedMailbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"preset": "auth-disabled-mailbox", "mailbox": "erp@contoso.com"}`)
	id := w.send("erp@contoso.com", letter("erp@contoso.com", "parked"))
	w.becomes(1, "relayd_sender_parked", `sender="erp@contoso.com"`)
	w.send("crm@contoso.com", letter("crm@contoso.com", "not-parked"))
	w.arrived("crm@contoso.com", 1, patience)
	w.stays(0, "relayd_sender_parked", `sender="crm@contoso.com"`)
	w.stays(1, "relayd_queue_messages", `state="parked"`)
	w.logged("SmtpClientAuthentication is disabled for the Mailbox", 1)
	w.noFaults()
	w.arrived("erp@contoso.com", 1, 2*patience)
	w.becomes(0, "relayd_sender_parked", `sender="erp@contoso.com"`)
	w.sentOn(id, 1)
	w.logged(`"msg":"resumed"`, 1)
}

// TestSendAsDenied logs in as a mailbox that may not send as the sender. The message fails at the second attempt, is kept,
// and no other way is tried; with the permission it goes.
func TestSendAsDenied(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--send-as", "relay@contoso.com=granted@contoso.com")
	w.start(plan{senders: `[{match: "*@contoso.com", tenant: contoso, login: relay@contoso.com, ` + unlimited + `}]`})
	w.send("granted@contoso.com", letter("granted@contoso.com", "granted"))
	// Exchange Online is told the login as the reverse-path, and judges From.
	if m := w.arrived("relay@contoso.com", 1, patience)[0]; m.Login != "relay@contoso.com" || m.MessageID != "<granted.granted@contoso.com>" {
		t.Errorf("arrived: %+v", m)
	}
	id := w.send("denied@contoso.com", letter("denied@contoso.com", "denied"))
	// Such refusals are reported to heal now and then: the message is tried once more, in a quarter of an hour, or when an
	// operator says so.
	w.becomes(1, "relayd_queue_messages", `state="deferred"`)
	w.stays(1, "relayd_deliveries_total", `outcome="deferred"`)
	w.command("queue", "retry", id, "--api", "http://"+w.relay.Admin)
	w.becomes(1, "relayd_queue_messages", `state="failed"`)
	w.stays(1, "relayd_deliveries_total", `outcome="failed"`)
	w.logged("SendAsDenied; relay@contoso.com not allowed to send as denied@contoso.com", 2)
	w.stays(0, "relayd_sender_parked")
	if !strings.Contains(w.relay.Log(), id) {
		t.Error("the log does not name the message")
	}
	w.stop()
	w.restart()
	w.becomes(1, "relayd_queue_messages", `state="failed"`)
	if list := w.all(); len(list) != 1 {
		t.Errorf("%d messages arrived, want 1", len(list))
	}
}

// TestThrottled has Exchange Online ask one mailbox to slow down: it rests, the others do not, nothing fails.
func TestThrottled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"preset": "dot-concurrent", "mailbox": "erp@contoso.com", "count": 1}`)
	started := time.Now()
	id := w.send("erp@contoso.com", letter("erp@contoso.com", "throttled"))
	w.becomes(1, "relayd_exchange_replies_total", `stage="dot"`, `code="432"`, `enhanced="4.3.2"`)
	w.send("crm@contoso.com", letter("crm@contoso.com", "free"))
	w.arrived("crm@contoso.com", 1, 10*time.Second)
	w.stays(0, "relayd_sender_parked")
	w.arrived("erp@contoso.com", 1, patience)
	if rest := time.Since(started); rest < 15*time.Second {
		t.Errorf("tried again after %v, want 15 s of rest at least", rest)
	}
	w.becomes(2, "relayd_deliveries_total", `outcome="sent"`)
	w.stays(1, "relayd_deliveries_total", `outcome="deferred"`)
	w.sentOn(id, 2)
}

// TestLostReply loses the reply to the final dot, with the message kept by the far end or not. It is sent again, the same
// to the octet, and counted as a possible duplicate.
func TestLostReply(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	for i, c := range []struct {
		preset  string
		arrives int
	}{{"dot-drop-delivered", 2}, {"dot-rst-delivered", 2}, {"dot-drop-lost", 1}} {
		t.Run(c.preset, func(t *testing.T) {
			own := &world{t: t, dir: w.dir, far: w.far, relay: w.relay}
			sender := fmt.Sprintf("lost%d@contoso.com", i)
			own.fault(`{"preset": %q, "mailbox": %q, "count": 1}`, c.preset, sender)
			id := own.send(sender, letter(sender, c.preset))
			list := own.arrived(sender, c.arrives, patience)
			for _, m := range list {
				if raw := own.raw(m); raw != own.raw(list[0]) || m.RelaydID != id {
					t.Errorf("arrived as %q, then as %q", own.raw(list[0]), raw)
				}
			}
			own.becomes(float64(i+1), "relayd_deliveries_total", `outcome="sent"`)
			own.stays(float64(i+1), "relayd_deliveries_total", `outcome="uncertain"`)
			own.stays(float64(i+1), "relayd_possible_duplicates_total")
			own.sentOn(id, 2)
		})
	}
	if n := w.stats().DuplicateCount; n != 2 {
		t.Errorf("the far end counts %d duplicates, want 2", n)
	}
	eventually(t, "the queue is empty", func() bool {
		queued, err := w.relay.Queued(t.Context())
		return err == nil && queued == 0
	})
}

// TestMixedRecipients has one of three recipients refused for good and one for now: each has its own fate, and none gets
// the message twice.
func TestMixedRecipients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"preset": "rcpt-not-found", "recipient": "gone@example.com"}`)
	w.fault(`{"stage": "rcpt", "reply": "450 4.2.1 mailbox busy", "recipient": "busy@example.com", "count": 1}`)
	w.send("erp@contoso.com", letter("erp@contoso.com", "mixed"), "good@example.com", "gone@example.com", "busy@example.com")
	list := w.arrived("erp@contoso.com", 2, patience)
	if !slices.Equal(list[0].Rcpts, []string{"good@example.com"}) || !slices.Equal(list[1].Rcpts, []string{"busy@example.com"}) {
		t.Errorf("first to %q, then to %q", list[0].Rcpts, list[1].Rcpts)
	}
	w.becomes(1, "relayd_queue_messages", `state="failed"`)
	if n := w.stats().DuplicateCount; n != 0 {
		t.Errorf("%d duplicates", n)
	}
}

// TestSecretUnreadableLater takes the secret away while the relay runs: what needs a token waits, and goes when it is back.
func TestSecretUnreadableLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	if err := os.Remove(w.path("secret")); err != nil {
		t.Fatal(err)
	}
	id := w.send("erp@contoso.com", letter("erp@contoso.com", "waits"))
	w.becomes(1, "relayd_queue_messages", `state="parked"`)
	w.logged("the client secret of the sender's tenant cannot be read", 1)
	replaceFile(t, w.path("secret"), rig.Secret)
	if _, err := w.far.Find(t.Context(), url.Values{"relayd_id": {id}}, 1, patience); err != nil {
		t.Error(err)
	}
	w.becomes(0, "relayd_sender_parked")
}
