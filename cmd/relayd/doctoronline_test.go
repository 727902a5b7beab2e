package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"relayd/pkg/admin/console"
)

// relayOf is a running relay that knows a delegated sender of the file and one that was entered on the page.
func relayOf(t *testing.T, findings ...console.Finding) *httptest.Server {
	t.Helper()
	senders := map[string]console.Sender{}
	for _, match := range []string{"erp@contoso.com", "paged@contoso.org"} {
		senders[match] = console.Sender{Match: match, Tenant: "contoso"}
	}
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	missing := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"status":404,"detail":"there is no such tenant, sender or request"}`)
	}
	mux.HandleFunc("GET /api/v1/senders", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, console.SenderPage{Senders: []console.Sender{senders["erp@contoso.com"], senders["paged@contoso.org"], {Match: "*@contoso.net", Tenant: "contoso"}}, Total: 3})
	})
	mux.HandleFunc("GET /api/v1/senders/{match}", func(w http.ResponseWriter, r *http.Request) {
		s, ok := senders[r.PathValue("match")]
		if !ok {
			missing(w)
			return
		}
		reply(w, s)
	})
	mux.HandleFunc("GET /api/v1/tenants/contoso", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, console.Tenant{Name: "contoso", SMTPServer: "smtp.contoso.com:587"})
	})
	mux.HandleFunc("POST /api/v1/senders/{match}/examine", func(w http.ResponseWriter, r *http.Request) {
		if _, ok := senders[r.PathValue("match")]; !ok || r.Header.Get("Authorization") != "Bearer t0ken" {
			missing(w)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		for _, f := range findings {
			reply(w, f)
		}
		if findings[len(findings)-1].Step == "broken" {
			io.WriteString(w, `{"step": "dn`)
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	t.Setenv("RELAYD_TOKEN", "t0ken")
	return s
}

// ofPage is a configuration whose tenant is delegated, and whose relay is at that address.
func ofPage(t *testing.T, admin string) string {
	t.Helper()
	return writeConfig(t, fmt.Sprintf(`hostname: relay.contoso.com
listeners: [{address: ":2525"}]
admin: {address: %q}
tenants:
  - {name: contoso, grant: delegated, tenant_id: 11111111-1111-1111-1111-111111111111, client_id: 22222222-2222-2222-2222-222222222222,
     authority: "http://127.0.0.1:1", smtp_server: "127.0.0.1:1"}
senders: [{address: erp@contoso.com, tenant: contoso}]
`, admin))
}

func TestDoctorAsksTheRunningRelay(t *testing.T) {
	good := []console.Finding{{Step: "config", Result: "ok", Detail: "fine"}, {Step: "token", Result: "warn", Detail: "soon", Cause: "why", Advice: "do this\nand that"}}
	bad := append(good, console.Finding{Step: "auth", Result: "fail", Detail: "refused\x1b[2J", Cause: "locked", Advice: "unlock"})
	fine, failing := relayOf(t, good...), relayOf(t, bad...)
	of := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	for name, tt := range map[string]struct {
		args      []string
		out, fail string
	}{
		"a delegated sender of the file": {[]string{"--config", ofPage(t, of(fine)), "erp@contoso.com"},
			"erp@contoso.com\n  ok    config      fine\n  warn  token       soon\n        cause   why\n        change  do this\n                and that\n", ""},
		"one entered on the page": {[]string{"--config", ofPage(t, of(fine)), "paged@contoso.org"}, "paged@contoso.org\n  ok    config ", ""},
		"with --api alone":        {[]string{"--api", fine.URL, "paged@contoso.org"}, "paged@contoso.org\n  ok    config ", ""},
		"that fails":              {[]string{"--api", failing.URL, "paged@contoso.org"}, "  FAIL  auth        refused", "1 sender of 1 failed the examination"},
		"all":                     {[]string{"--api", fine.URL, "--all"}, "2 examined, 0 failed; 1 skipped", ""},
		"unknown to both": {[]string{"--config", ofPage(t, of(fine)), "x@contoso.com"}, "",
			"no entry of senders covers x@contoso.com, so relayd refuses its mail; configured: erp@contoso.com"},
		"unknown to the relay": {[]string{"--api", fine.URL, "x@contoso.com"}, "", "no entry of senders covers x@contoso.com, in the file or entered on the page"},
		"no relay, and not in the file": {[]string{"--config", ofPage(t, "127.0.0.1:1"), "x@contoso.com"}, "",
			"What was entered on the page the running relay alone knows: relayd serve is not answering"},
		"--to":               {[]string{"--api", fine.URL, "--to", "you@example.com", "erp@contoso.com"}, "", "--to is for an examination from here"},
		"--to and delegated": {[]string{"--config", ofPage(t, of(fine)), "--to", "you@example.com", "erp@contoso.com"}, "", "--to is for senders whose app sends by itself"},
		"no address":         {[]string{"--api", fine.URL, "*@contoso.com"}, "", "is not the address of a sender"},
	} {
		out, _, err := execute(t, newDoctorCommand(), "", tt.args...)
		if !strings.Contains(out, tt.out) || (err == nil) != (tt.fail == "") || err != nil && !strings.Contains(err.Error(), tt.fail) || strings.Contains(out, "\x1b") {
			t.Errorf("%s: got %v\n%s", name, err, out)
		}
	}
}

// TestDoctorWithoutTheRunningRelay goes as far as it can from here, and says what is missing at the token.
func TestDoctorWithoutTheRunningRelay(t *testing.T) {
	box, file := hospital(t, `[{address: erp@contoso.com, tenant: contoso}]`)
	_ = box
	text := strings.Replace(readFile(t, file), "{name: contoso,", "{name: contoso, grant: delegated,", 1) + "admin: {address: \"127.0.0.1:1\"}\n"
	out, _, err := execute(t, newDoctorCommand(), "", "--config", writeConfig(t, text), "erp@contoso.com")
	if err == nil || !strings.Contains(out, "  ok    starttls") || !strings.Contains(out, "  FAIL  token       ") || !strings.Contains(out, "in the vault of the running relay") ||
		!strings.Contains(out, "relayd serve is not answering at http://127.0.0.1:1") || !strings.Contains(out, "--token-file") {
		t.Errorf("got %v\n%s", err, out)
	}
}

func TestDoctorOnlineJSON(t *testing.T) {
	s := relayOf(t, console.Finding{Step: "config", Result: "ok", Detail: "fine"}, console.Finding{Step: "broken", Result: "warn"})
	out, _, err := execute(t, newDoctorCommand(), "", "--api", s.URL, "--json", "paged@contoso.org")
	var report struct {
		Result  string
		Failed  int
		Senders []struct {
			Sender, Tenant, Login, Server string
			Entries                       []string
			Steps                         []struct{ Step, Result, Detail string }
		}
	}
	if json.Unmarshal([]byte(out), &report) != nil || err == nil || report.Result != "fail" || report.Failed != 1 || len(report.Senders) != 1 {
		t.Fatalf("got %v\n%s", err, out)
	}
	one := report.Senders[0]
	if one.Sender != "paged@contoso.org" || one.Tenant != "contoso" || one.Login != one.Sender || one.Server != "smtp.contoso.com:587" || one.Entries[0] != one.Sender ||
		len(one.Steps) != 3 || one.Steps[2].Step != "examination" || one.Steps[2].Result != "fail" {
		t.Errorf("an examination that broke off: %+v", one)
	}
	t.Setenv("RELAYD_TOKEN", "wrong")
	if _, _, err := execute(t, newDoctorCommand(), "", "--api", s.URL, "paged@contoso.org"); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "examine paged@contoso.org") {
		t.Errorf("got %v", err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
