package exchange_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"relayd/pkg/entra"
	"relayd/pkg/envelope"
	"relayd/pkg/exchange"
	"relayd/pkg/sandbox"
	"relayd/pkg/status"
)

// The simulator is written by the same facts and shares no code: where the two misread each other, one of them is wrong.

const clientSecret = "s3cr3t~of-the-app"

func simulate(t *testing.T, limits sandbox.Limits) (*sandbox.Sandbox, *x509.CertPool) {
	t.Helper()
	box, err := sandbox.New(sandbox.Options{Limits: limits, Tenants: []sandbox.Tenant{{
		ID: sandbox.DefaultTenantID, Apps: []sandbox.App{{ID: sandbox.DefaultClientID, Secret: clientSecret}}}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := box.Run(ctx); err != nil {
			t.Errorf("sandbox: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(box.CAPEM()) {
		t.Fatal("no CA")
	}
	return box, roots
}

// client returns a pool with its own tokens.
func client(t *testing.T, box *sandbox.Sandbox, roots *x509.CertPool) *exchange.Pool {
	t.Helper()
	tokens, err := entra.New(entra.Options{HTTPTimeout: time.Second, Tenants: map[string]entra.Tenant{"contoso": {
		TenantID: sandbox.DefaultTenantID, ClientID: sandbox.DefaultClientID, Authority: box.Authority(), RootCAs: roots,
		Secret: func() (string, error) { return clientSecret, nil }}}})
	if err != nil {
		t.Fatal(err)
	}
	wait := time.Second
	pool, err := exchange.New(exchange.Options{Hostname: "relay.contoso.com", Tokens: tokens,
		Tenants:  map[string]exchange.Tenant{"contoso": {Server: box.SMTPAddr(), RootCAs: roots}},
		Timeouts: exchange.Timeouts{Connect: wait, Greeting: wait, Command: wait, Data: wait, Block: wait, Dot: wait}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = pool.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait(); tokens.Close() })
	return pool
}

func message(from string, size int) string {
	head := "From: <" + from + ">\r\nTo: <b@fabrikam.com>\r\nSubject: dots\r\nDate: Sun, 22 Nov 2026 12:00:00 +0000\r\nMessage-ID: <" + from + ">\r\n\r\n"
	return head + strings.Repeat(".\r\n..\r\nA line of text, as lines go, and no longer than it need be.\r\n", max(size/75, 1))
}

func deliver(t *testing.T, pool *exchange.Pool, login, text string) status.Outcome {
	t.Helper()
	env := &envelope.Envelope{ID: "0123456789abcdefghjk", Size: int64(len(text)), SHA256: sha256.Sum256([]byte(text)),
		Recipients: []envelope.Recipient{{Address: "b@fabrikam.com", Notify: "FAILURE", ORCPT: "rfc822;b@fabrikam.com"}}}
	route := &envelope.Route{Tenant: "contoso", Login: envelope.Address(login), Connections: 3}
	out := pool.Deliver(t.Context(), route, env, []int{0}, strings.NewReader(text))
	if len(out.Errs) != 1 {
		t.Fatalf("got %d results", len(out.Errs))
	}
	return out
}

func TestSandboxTakesMail(t *testing.T) {
	box, roots := simulate(t, sandbox.Limits{})
	pool := client(t, box, roots)
	for i, size := range []int{1, 10_000, 5_000_000} {
		text := message("app@contoso.com", size)
		if out := deliver(t, pool, "app@contoso.com", text); out.Errs[0] != nil || !strings.HasPrefix(out.Reply, "250 2.0.0") {
			t.Fatalf("%d octets: %v, %q", size, out.Errs[0], out.Reply)
		}
		all := box.Messages(sandbox.Filter{})
		got := all[len(all)-1]
		if raw, ok := box.Raw(got.Seq); len(all) != i+1 || !ok || string(raw) != text {
			t.Errorf("%d octets: %d arrived, or others", len(text), len(raw))
		}
		if got.MailFrom != "app@contoso.com" || got.DSN == nil || got.DSN.Notify["b@fabrikam.com"] != "FAILURE" {
			t.Errorf("got %+v, %+v", got, got.DSN)
		}
	}
	box.RevokeTokens() // the session lives on; a new one needs a fresh token
	if out := deliver(t, pool, "other@contoso.com", message("other@contoso.com", 1)); out.Errs[0] != nil {
		t.Errorf("with tokens revoked: %v", out.Errs[0])
	}
	if out := deliver(t, pool, "app@contoso.com", message("sales@contoso.com", 1)); out.Errs[0] == nil || out.Errs[0].Action != status.RetryOnce {
		t.Errorf("From without Send As: %v", out.Errs[0])
	}
}

// TestSandboxFaults: each ready-made fault and what becomes of the recipient.
func TestSandboxFaults(t *testing.T) {
	const ok = status.Action(99)
	want := map[string]status.Action{
		"auth-unsuccessful": status.ParkSender, "auth-disabled-tenant": status.ParkTenant, "auth-disabled-mailbox": status.ParkSender,
		"auth-basic-disabled": status.ParkSender, "auth-security-defaults": status.ParkSender, "auth-criteria": status.ParkSender,
		"auth-sts-unreachable": status.BackOffTenant, "auth-temporary": status.BackOffSender, "auth-prx4": status.BackOffSender,
		"auth-draining": status.Retry, "auth-hve-invalid-user": status.ParkSender, "auth-challenge": status.ParkSender,
		"mail-not-authenticated": status.ParkSender, "mail-send-as-denied": status.Fail, "mail-basic-retired": status.ParkSender,
		"mail-dropped": status.BackOffSender, "rcpt-access-denied": status.BackOffTenant, "rcpt-server-busy": status.BackOffTenant,
		"rcpt-restricted": status.BackOffTenant, "rcpt-invalid": status.Fail, "rcpt-not-found": status.Fail, "rcpt-address-rejected": status.Fail,
		"dot-threads": status.BackOffSender, "dot-concurrent": status.BackOffSender, "dot-recipient-threads": status.Retry, "dot-mrh1": status.Uncertain,
		"dot-send-as-denied-old": status.RetryOnce, "dot-quota": status.HoldSender, "dot-daily-limit": status.HoldSender,
		"dot-submission-quota": status.HoldSender, "dot-mailbox-full": status.ParkSender, "dot-bad-sender": status.ParkSender,
		"dot-tenant-external": status.HoldTenantExternal, "dot-trial-external": status.HoldTenantExternal, "dot-onmicrosoft": status.HoldSenderExternal,
		"dot-spam": status.ParkSender, "dot-banned": status.ParkSender, "dot-tenant-threshold": status.ParkTenant, "dot-tenant-ip": status.ParkTenant,
		"dot-unregistered-domain": status.ParkSender, "dot-header-size": status.Fail, "dot-mime": status.Fail, "dot-invalid-characters": status.Fail,
		"dot-hourly-pair": status.Retry, "dot-not-allowed": status.Fail, "dot-group": status.Fail,

		"no-starttls": status.Retry, "starttls-454": status.Retry, "starttls-injection": status.Retry, "cert-expired": status.Retry,
		"cert-self-signed": status.Retry, "cert-wrong-name": status.Retry, "tls-1.0": status.Retry, "tls-rst": status.Retry,
		"connect-421": status.Retry, "connect-rst": status.BackOffTenant, "connect-blackhole": status.BackOffTenant, "ehlo-endless": status.Retry,
		"ehlo-endless-line": status.Retry, "ehlo-garbage": status.Retry, "mail-control": status.Retry, "mail-blackhole": status.Retry,
		"mail-drip": status.Retry, "body-drop": status.Retry, "body-rst": status.Retry, "body-stall": status.Retry,
		"dot-drop-delivered": status.Uncertain, "dot-drop-lost": status.Uncertain, "dot-rst-delivered": status.Uncertain,
		"dot-blackhole-delivered": status.Uncertain, "dot-421-delivered": status.Uncertain,

		"token-429": status.BackOffTenant, "token-500": status.Retry, "token-503": status.Retry, "token-garbage": status.Retry,
		"token-rst": status.Retry, "token-blackhole": status.Retry, "token-7000215": status.ParkTenant, "token-7000222": status.ParkTenant,
		"token-700016": status.ParkTenant, "token-90002": status.ParkTenant, "token-70011": status.ParkTenant, "token-500011": status.ParkTenant,
		"token-90033": status.Retry, "token-50196": status.BackOffTenant, "token-65001": status.ParkTenant,
	}
	box, roots := simulate(t, sandbox.Limits{})
	for i, rule := range sandbox.Presets() {
		t.Run(rule.Name, func(t *testing.T) {
			if _, known := want[rule.Name]; !known {
				t.Fatalf("a new fault: decide what it does to a recipient")
			}
			id, err := box.AddFault(rule)
			if err != nil {
				t.Fatal(err)
			}
			defer box.RemoveFault(id)
			pool := client(t, box, roots)
			login := fmt.Sprintf("s%d@contoso.com", i) // a mailbox each: limits are per mailbox
			size := 1
			if rule.Stage == sandbox.StageBody {
				size = 20_000_000 // more than the sockets on the way hold
			}
			out := deliver(t, pool, login, message(login, size))
			got := ok
			if e := out.Errs[0]; e != nil {
				got = e.Action
				if strings.ContainsFunc(e.Text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
					t.Errorf("control characters in %q", e.Text)
				}
				if e.Rule != "" && e.Cause == "" || strings.HasPrefix(e.Rule, "unknown-") && rule.Name != "starttls-454" && rule.Name != "connect-421" && rule.Name != "mail-control" {
					t.Errorf("read by %q: %s", e.Rule, e.Cause)
				}
				if strings.Contains(fmt.Sprint(e, e.Err), clientSecret) {
					t.Errorf("secret in %v", e.Err)
				}
			}
			if got != want[rule.Name] {
				t.Errorf("got %v: %v (%v), want %v", got, out.Errs[0], out.Errs[0].Unwrap(), want[rule.Name])
			}
			box.RemoveFault(id)
			box.Clear()
		})
	}
}

// TestSandboxCounts: past three sending connections 432 comes, and costs the message nothing.
func TestSandboxCounts(t *testing.T) {
	box, roots := simulate(t, sandbox.Limits{})
	pool := client(t, box, roots)
	started, release := make(chan struct{}), make(chan struct{})
	var deliveries sync.WaitGroup
	for range 3 {
		deliveries.Go(func() {
			text := message("app@contoso.com", 100_000)
			env := &envelope.Envelope{Size: int64(len(text)), Recipients: []envelope.Recipient{{Address: "b@fabrikam.com"}}}
			route := &envelope.Route{Tenant: "contoso", Login: "app@contoso.com", Connections: 3}
			out := pool.Deliver(t.Context(), route, env, []int{0}, &held{strings.NewReader(text), started, release})
			if out.Errs[0] != nil {
				t.Error(out.Errs[0])
			}
		})
	}
	for range 3 {
		<-started // past its 354
	}
	out := deliver(t, pool, "app@contoso.com", message("app@contoso.com", 1))
	if e := out.Errs[0]; e == nil || e.Code != 432 || e.Action != status.BackOffSender {
		t.Errorf("got %v, want 432", e)
	}
	close(release)
	deliveries.Wait()
}

// held says when it is first read from, and waits to be released.
type held struct {
	*strings.Reader
	started chan<- struct{}
	release <-chan struct{}
}

func (h *held) Read(p []byte) (int, error) {
	if h.started != nil {
		h.started <- struct{}{}
		<-h.release
		h.started = nil
	}
	return h.Reader.Read(p)
}
