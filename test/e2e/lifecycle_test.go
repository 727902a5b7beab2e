package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"relayd/test/rig"
)

// TestDrain asks the relay to end while one client is in the middle of a message and another is idle.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	idle := dial(t, w.relay.SMTP)
	idle.say(250, "EHLO idle.contoso.com")
	busy := dial(t, w.relay.SMTP)
	busy.say(250, "EHLO app.contoso.com")
	busy.say(250, "MAIL FROM:<erp@contoso.com>")
	busy.say(250, "RCPT TO:<you@example.com>")
	busy.say(354, "DATA")
	sent := letter("erp@contoso.com", "drained")
	busy.write(sent[:50])

	if err := w.relay.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.logged(`"msg":"draining"`, 1)
	if text := idle.expect(421); !strings.HasPrefix(text, "4.3.2 ") {
		t.Errorf("the idle client was told 421 %s", text)
	}
	if code, body, err := w.relay.Page(t.Context(), "/readyz"); err != nil || code != http.StatusServiceUnavailable ||
		!strings.Contains(body, "failed running: stopping") {
		t.Errorf("/readyz while draining: %d %q, %v", code, body, err)
	}
	if code, _, err := w.relay.Page(t.Context(), "/livez"); err != nil || code != http.StatusOK {
		t.Errorf("/livez while draining: %d, %v", code, err)
	}
	if conn, err := net.Dial("tcp", w.relay.SMTP); err == nil {
		conn.Close()
		t.Error("a new connection was taken")
	}
	busy.write(sent[50:])
	_, id, ok := strings.Cut(busy.say(250, "."), "queued as ")
	if !ok {
		t.Fatal("no id")
	}
	if code := w.relay.ExitCode(); code != 0 {
		t.Fatalf("status %d", code)
	}
	w.restart()
	m := w.arrived("erp@contoso.com", 1, patience)[0]
	if raw := w.raw(m); m.RelaydID != id || !strings.HasSuffix(raw, sent) {
		t.Errorf("arrived as %s, %q", m.RelaydID, raw)
	}
}

// TestReload changes the configuration of a running relay, well and badly.
func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	greeting := func(code int, sender string) {
		t.Helper()
		c := dial(t, w.relay.SMTP)
		c.say(250, "EHLO app.contoso.com")
		c.say(code, "MAIL FROM:<%s>", sender)
		c.say(221, "QUIT")
	}
	add := func(domain string) func(string) string {
		return func(text string) string {
			return strings.Replace(text, "senders: [", fmt.Sprintf("senders: [{match: %q, tenant: contoso}, ", "*@"+domain), 1)
		}
	}
	greeting(550, "app@fabrikam.com")
	w.becomes(1, "relayd_config_last_reload_successful")

	w.rewrite(add("fabrikam.com"))
	w.hangup(reloaded)
	w.send("app@fabrikam.com", letter("app@fabrikam.com", "reloaded"))
	w.arrived("app@fabrikam.com", 1, patience)

	before := strings.Count(w.relay.Log(), reloaded)
	w.rewrite(add("tailspin.com"))
	w.logged(reloaded, before+1) // no signal: the content has changed
	w.send("app@tailspin.com", letter("app@tailspin.com", "reloaded"))
	w.arrived("app@tailspin.com", 1, patience)

	good, err := os.ReadFile(w.relay.Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, says string }{
		{"no YAML", "senders: [", "senders: [[", "is not YAML: did not find expected"},
		{"unknown tenant", "tenant: contoso", "tenant: cantoso", "did you mean contoso?"},
		{"a key that takes a restart", "relay.contoso.com", "other.contoso.com", `these keys take a restart: [\"hostname\"]; restart relayd, or put their old values back`},
		{"secret that is missing", "file:" + w.path("secret"), "file:" + w.path("nowhere"), "nowhere"},
	} {
		// Another sender comes with each: none of it may be in force.
		w.rewrite(func(text string) string { return add("wingtip.com")(strings.Replace(text, c.old, c.new, 1)) })
		w.hangup(notReloaded)
		w.becomes(0, "relayd_config_last_reload_successful")
		log := w.relay.Log()
		if last := log[strings.LastIndex(log, notReloaded):]; !strings.Contains(last, c.says) {
			t.Errorf("%s: the log does not say %q: %s", c.name, c.says, last)
		}
		greeting(550, "app@wingtip.com")
		greeting(250, "app@fabrikam.com")
		replaceFile(t, w.relay.Config, string(good))
		w.hangup(reloaded)
		w.becomes(1, "relayd_config_last_reload_successful")
	}
	w.rewrite(func(text string) string {
		return strings.Replace(text, `{match: "*@fabrikam.com", tenant: contoso}, `, "", 1)
	})
	w.hangup(reloaded)
	greeting(550, "app@fabrikam.com")
	greeting(250, "app@tailspin.com")
}

// TestSenderRemovedWithMail takes a sender out of the configuration while its mail waits: the mail is kept, and goes when
// the sender is back.
func TestSenderRemovedWithMail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const fabrikam = `{match: "*@fabrikam.com", tenant: contoso}, `
	w.start(plan{senders: "[" + fabrikam + `{match: "*@contoso.com", tenant: contoso}]`})
	w.fault(`{"preset": "connect-421"}`)
	w.send("app@fabrikam.com", letter("app@fabrikam.com", "waits"))
	w.becomes(1, "relayd_queue_messages", `state="deferred"`)
	w.rewrite(func(text string) string { return strings.Replace(text, fabrikam, "", 1) })
	w.hangup(reloaded)
	w.becomes(1, "relayd_queue_messages", `state="parked"`)
	w.noFaults()
	w.send("erp@contoso.com", letter("erp@contoso.com", "other"))
	w.arrived("erp@contoso.com", 1, patience)
	if n := len(w.all()); n != 1 {
		t.Errorf("%d messages arrived, want the other alone", n)
	}
	w.rewrite(func(text string) string { return strings.Replace(text, "senders: [", "senders: ["+fabrikam, 1) })
	w.hangup(reloaded)
	w.arrived("app@fabrikam.com", 1, patience)
	w.becomes(0, "relayd_queue_messages", `state="parked"`)
}

// TestCertificateSwap replaces the certificate of a listener, first by one that is broken.
func TestCertificateSwap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cert, key := w.path("tls.crt"), w.path("tls.key")
	old := certificate(t, cert, key)
	w.start(plan{listener: fmt.Sprintf(`, tls: starttls, cert_file: %q, key_file: %q`, cert, key)})
	accepts := func(roots *x509.CertPool) error {
		c := dial(t, w.relay.SMTP)
		c.say(250, "EHLO app.contoso.com")
		c.say(220, "STARTTLS")
		return tls.Client(c.conn, &tls.Config{ServerName: "relay.contoso.com", RootCAs: roots, MinVersion: tls.VersionTLS12}).HandshakeContext(t.Context())
	}
	if err := accepts(old); err != nil {
		t.Fatal(err)
	}
	open := dial(t, w.relay.SMTP)
	open.say(250, "EHLO app.contoso.com")
	open.upgrade(old)

	before := strings.Count(w.relay.Log(), notReloaded)
	replaceFile(t, cert, "no certificate\n")
	w.logged(notReloaded, before+1) // by its content, without a signal
	w.becomes(0, "relayd_config_last_reload_successful")
	if err := accepts(old); err != nil {
		t.Errorf("with a broken file in place of the certificate: %v", err)
	}
	fresh := certificate(t, cert, key)
	w.hangup(reloaded)
	w.becomes(1, "relayd_config_last_reload_successful")
	if err := accepts(fresh); err != nil {
		t.Errorf("with the new certificate: %v", err)
	}
	if err := accepts(old); err == nil {
		t.Error("the old certificate is still in use")
	}
	open.say(250, "EHLO app.contoso.com") // sessions go on
	open.say(250, "MAIL FROM:<erp@contoso.com>")
}

// TestRestart ends a relay with mail in its queue and starts it again.
func TestRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"preset": "connect-421"}`)
	sent := map[string]string{} // by id
	for i := range 5 {
		sender := fmt.Sprintf("s%d@contoso.com", i)
		message := letter(sender, "restart") + rig.Body(i, i*700_000)
		sent[w.send(sender, message)] = message
	}
	w.becomes(5, "relayd_queue_messages", `state="deferred"`)
	w.stop()
	w.noFaults()
	w.restart()
	if _, err := w.far.Wait(t.Context(), 0, len(sent), patience); err != nil {
		t.Fatal(err)
	}
	for _, m := range w.all() {
		message, ok := sent[m.RelaydID]
		if raw := w.raw(m); !ok || !strings.HasSuffix(raw, message) {
			t.Errorf("%s arrived changed: %d octets, %d sent", m.RelaydID, len(raw), len(message))
		}
		delete(sent, m.RelaydID)
	}
	if len(sent) > 0 {
		t.Errorf("%d messages did not arrive", len(sent))
	}
	eventually(t, "the queue is empty", func() bool {
		queued, err := w.relay.Queued(t.Context())
		return err == nil && queued == 0
	})
}

// TestKill is the short form of make chaos: kill -9 under load, three times. What was acknowledged arrives.
func TestKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{more: "log: {level: warn}\n"})
	const senders = 10
	size := func(i int) int {
		if i%50 == 0 {
			return 600_000 // stored in chunks
		}
		return 2_000
	}
	load := &rig.Load{Addr: w.relay.SMTP, Sessions: 6, Rcpt: "you@example.com", Size: size,
		Sender: func(i int) string { return fmt.Sprintf("s%d@contoso.com", i%senders) }}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- load.Run(ctx, true) }()
	const kills = 3
	for n := range kills {
		eventually(t, "a hundred more are accepted", func() bool {
			v, _ := w.metric("relayd_messages_accepted_total")
			return v >= 100
		})
		w.relay.Kill()
		if n < kills-1 {
			w.restart()
		}
	}
	end()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	w.restart()
	accepted := load.Accepted()
	eventually(t, "the queue is empty", func() bool {
		queued, err := w.relay.Queued(t.Context())
		return err == nil && queued == 0
	})
	arrived := map[string]int{}
	for _, m := range w.all() {
		arrived[m.MessageID]++
		var i int
		if _, err := fmt.Sscanf(m.MessageID, "<load-%d@", &i); err != nil {
			t.Fatalf("%q: %v", m.MessageID, err)
		}
		if !strings.HasSuffix(w.raw(m), "\r\n\r\n"+rig.Body(i, size(i))) {
			t.Errorf("%s arrived changed", m.MessageID)
		}
	}
	lost, twice := 0, w.stats().DuplicateCount
	for id := range accepted {
		if arrived[id] == 0 {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged messages are lost", lost, len(accepted))
	}
	if most := int64(kills * senders * 3); twice > most {
		t.Errorf("%d duplicates, more than the %d deliveries that can have been under way", twice, most)
	}
	t.Logf("%d acknowledged, %d arrived, %d twice", len(accepted), len(arrived), twice)
	if len(accepted) < kills*100 {
		t.Errorf("%d acknowledged, want %d at least", len(accepted), kills*100)
	}
}

// TestDefaultLimits sends more than a minute's worth through one mailbox with the default limits, against a far end that
// has them, too. No minute sees more than 30; another mailbox does not notice.
func TestDefaultLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--messages-per-minute", "30")
	w.start(plan{senders: `[{match: "*@contoso.com", tenant: contoso}]`})
	const messages = 33
	load := &rig.Load{Addr: w.relay.SMTP, Sessions: 1, Messages: messages, Rcpt: "you@example.com",
		Size: func(int) int { return 1000 }, Sender: func(int) string { return "erp@contoso.com" }}
	started := time.Now()
	if err := load.Run(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	w.send("crm@contoso.com", letter("crm@contoso.com", "free"))
	w.arrived("crm@contoso.com", 1, 10*time.Second)
	if early := w.stats().Mailboxes["erp@contoso.com"].Messages; early > 15 {
		t.Errorf("%d messages went at once, want a burst of three and then one every two seconds", early)
	}
	w.arrived("erp@contoso.com", messages, 2*patience)
	took := time.Since(started)
	if took < time.Minute || took > 85*time.Second {
		t.Errorf("%d messages took %v, want a little over a minute", messages, took)
	}
	m := w.stats().Mailboxes["erp@contoso.com"]
	if m.WorstMinute > 30 || m.PeakSending > 3 {
		t.Errorf("%d messages in a minute and %d connections sending, want 30 and 3 at most", m.WorstMinute, m.PeakSending)
	}
	w.stays(0, "relayd_deliveries_total", `outcome="deferred"`)
}

// TestConnectionLimit sends through one mailbox as fast as it can: with all its three connections, and no more.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"stage": "dot", "delay": "100ms"}`) // so that deliveries meet
	const messages = 45
	load := &rig.Load{Addr: w.relay.SMTP, Sessions: 4, Messages: messages, Rcpt: "you@example.com",
		Size: func(int) int { return 1000 }, Sender: func(int) string { return "erp@contoso.com" }}
	if err := load.Run(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	w.arrived("erp@contoso.com", messages, patience)
	if m := w.stats().Mailboxes["erp@contoso.com"]; m.PeakSending != 3 {
		t.Errorf("%d connections were sending at once, want 3", m.PeakSending)
	}
	w.stays(0, "relayd_exchange_replies_total", `code="432"`)
}

// TestOneRequestForAll has many messages of many mailboxes wait for one access token.
func TestOneRequestForAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{})
	w.fault(`{"stage": "token", "delay": "1s", "count": 1}`)
	load := &rig.Load{Addr: w.relay.SMTP, Sessions: 4, Messages: 40, Rcpt: "you@example.com",
		Size: func(int) int { return 1000 }, Sender: func(i int) string { return fmt.Sprintf("s%d@contoso.com", i%20) }}
	if err := load.Run(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.far.Find(t.Context(), url.Values{}, 40, patience); err != nil {
		t.Fatal(err)
	}
	if n := w.stats().Tokens; n != 1 {
		t.Errorf("%d tokens were issued, want 1", n)
	}
}
