package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"relayd/test/rig"
)

// TestConsent signs owners of mailboxes in, as the manual says, and tries everything that must not let them in.
func TestConsent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(plan{senders: "[]"})
	w.delegated(rig.Secret, "ann@contoso.com", "bob@contoso.com")
	s := w.admin()
	start := func() *surfer {
		t.Helper()
		return s.post(w.page("/senders/ann@contoso.com/consent"), nil).on()
	}
	notYet := func(what string) {
		t.Helper()
		var sender struct{ State string }
		if err := json.Unmarshal([]byte(w.done("GET", "/api/v1/senders/ann@contoso.com", "")), &sender); err != nil || sender.State != "consent" {
			t.Fatalf("%s signs in: %v %v", what, sender, err)
		}
	}
	w.send("ann@contoso.com", letter("ann@contoso.com", "waits"))

	s.open(w.page("/oauth/callback?state=" + strings.Repeat("A", 43) + "&code=forged")).says(http.StatusUnprocessableEntity)
	s.open(w.page("/oauth/callback")).says(http.StatusBadRequest)
	notYet("a forged callback")

	start().signIn("ann@contoso.com").submit("ucaccept", "0").says(http.StatusUnprocessableEntity)
	notYet("a refusal")
	start().signIn("eve@contoso.com").submit("ucaccept", "1").says(http.StatusUnprocessableEntity, "eve@contoso.com")
	notYet("another user")

	fresh := w.admin() // not signed in at the sandbox
	fresh.stop = true
	fresh.post(w.page("/senders/ann@contoso.com/consent"), nil).on().signIn("ann@contoso.com").submit("ucaccept", "1")
	if fresh.held == "" {
		t.Fatalf("no callback: %s", fresh.page)
	}
	for name, other := range map[string]*surfer{"another administrator": w.admin(), "a stranger": w.surf()} {
		other.open(fresh.held).says(http.StatusUnprocessableEntity)
		notYet(name)
	}
	fresh.open(fresh.held).says(http.StatusOK, "ann@contoso.com")
	fresh.open(fresh.held).says(http.StatusUnprocessableEntity)
	if m := w.arrived("ann@contoso.com", 1, patience); m[0].Login != "ann@contoso.com" {
		t.Errorf("sent by %s", m[0].Login)
	}

	// A one-time link, for an owner without an account here: it opens one sign-in.
	var link struct{ URL string }
	if err := json.Unmarshal([]byte(w.done("POST", "/api/v1/senders/bob@contoso.com/invitation", "")), &link); err != nil {
		t.Fatal(err)
	}
	owner := w.surf().open(link.URL).says(http.StatusOK, "bob@contoso.com")
	owner.post(link.URL, nil).on().signIn("bob@contoso.com").submit("ucaccept", "1").says(http.StatusOK, "bob@contoso.com")
	if strings.Contains(owner.page, "ann@contoso.com") || strings.Contains(owner.page, `href="/senders`) {
		t.Error("whoever was invited sees more than their own")
	}
	w.surf().open(link.URL).says(http.StatusGone)
	w.send("bob@contoso.com", letter("bob@contoso.com", "invited"))
	w.arrived("bob@contoso.com", 1, patience)
	if code := link.URL[strings.LastIndexByte(link.URL, '/')+1:]; strings.Contains(w.relay.Log(), code) {
		t.Error("the log has the link's code")
	}

	audit := w.done("GET", "/api/v1/audit?limit=1000", "")
	for _, what := range []string{"tenant.add", "sender.add", "consent.start", "consent.refused", "consent.granted", "consent.invite", "login.link"} {
		if !strings.Contains(audit, `"`+what+`"`) {
			t.Errorf("the audit log has no %s", what)
		}
	}
	// doctor, who cannot open the vault, asks the relay.
	for _, args := range [][]string{{"--config", w.relay.Config}, {"--api", "http://" + w.relay.Admin}} {
		if out := w.command(append([]string{"doctor", "ann@contoso.com"}, args...)...); !strings.Contains(out, "  ok    auth ") || !strings.Contains(out, "  ok    rset ") {
			t.Errorf("doctor %v:\n%s", args, out)
		}
	}
}

// TestLostVaultKey: the relay does not start without the key, says what is lost and how to go on, and each way works.
func TestLostVaultKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := map[string]string{}
	for _, name := range []string{"one", "two"} {
		keys[name] = w.path("key-" + name)
		if err := os.WriteFile(keys[name], []byte(strings.Repeat(name, 20)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.start(plan{more: fmt.Sprintf("vault: {key: %q}\n", "file:"+keys["one"])})
	w.delegated(rig.Secret, "ann@contoso.org")
	w.stop()

	key := func(text string) {
		t.Helper()
		w.rewrite(func(config string) string { return config[:strings.Index(config, "vault: {")] + text + "\n" })
	}
	key(fmt.Sprintf("vault: {key: %q}", "file:"+keys["two"]))
	p, err := rig.Start(relayd, "serve", "--config", w.relay.Config)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(patience):
		p.Kill()
		t.Fatal("the relay starts without the key of its vault")
	}
	for _, text := range []string{"the vault cannot be opened", "1 sender", "1 tenant", "vault.previous_keys", "relayd vault reset"} {
		if !strings.Contains(p.Log(), text) {
			t.Errorf("it does not say %q:\n%s", text, p.Log())
		}
	}
	if p.ExitCode() == 0 {
		t.Error("and ends as if all were well")
	}

	// The old key beside the new one, then all sealed anew, then the new one alone.
	key(fmt.Sprintf("vault: {key: %q, previous_keys: [%q]}", "file:"+keys["two"], "file:"+keys["one"]))
	w.restart()
	w.done("GET", "/api/v1/tenants/paged", "")
	if out := w.command("vault", "rotate", "--config", w.relay.Config); !strings.Contains(out, "sealed with the current key") {
		t.Errorf("got %s", out)
	}
	w.stop()
	key(fmt.Sprintf("vault: {key: %q}", "file:"+keys["two"]))
	w.restart()
	w.done("GET", "/api/v1/senders/ann@contoso.org", "")
	w.stop()

	// The key is lost for good.
	key(fmt.Sprintf("vault: {key: %q}", "file:"+keys["one"]))
	out := w.command("vault", "reset", "--yes", "--config", w.relay.Config)
	if !strings.Contains(out, "forgotten: ") || !strings.Contains(out, "1 tenant") || !strings.Contains(out, "1 sender") {
		t.Errorf("got %s", out)
	}
	w.restart()
	if code, body := w.api("GET", "/api/v1/tenants/paged", ""); code != http.StatusNotFound {
		t.Errorf("got %d %s", code, body)
	}
	w.send("erp@contoso.com", letter("erp@contoso.com", "after-reset"))
	w.arrived("erp@contoso.com", 1, patience)
}
