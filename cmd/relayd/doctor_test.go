package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/exchange/doctor"
	"relayd/pkg/sandbox"
	"relayd/pkg/status"
)

var updateDoctor = flag.Bool("update-doctor", false, "write the golden files of relayd doctor anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *updateDoctor {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// hospital runs a simulated Exchange Online and Entra ID, and returns a configuration for it with those senders.
func hospital(t *testing.T, senders string) (*sandbox.Sandbox, string) {
	t.Helper()
	box, err := sandbox.New(sandbox.Options{Tenants: []sandbox.Tenant{{ID: sandbox.DefaultTenantID, Apps: []sandbox.App{
		{ID: sandbox.DefaultClientID, ObjectID: "22222222-2222-2222-2222-222222222222", Secret: "s3cret-canary"}}}}})
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
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, box.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return box, writeConfig(t, fmt.Sprintf(`hostname: relay.contoso.com
listeners: [{address: ":2525"}]
tenants:
  - {name: contoso, tenant_id: %s, client_id: %s, client_secret: "file:SECRET", authority: %q, smtp_server: %q, ca_file: %q,
     credential_expires: 2026-11-01}
senders: %s
`, sandbox.DefaultTenantID, sandbox.DefaultClientID, box.Authority(), box.SMTPAddr(), ca, senders))
}

func strike(t *testing.T, box *sandbox.Sandbox, text string) {
	t.Helper()
	rule, err := sandbox.ParseRule(text)
	if err == nil {
		_, err = box.AddFault(rule)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// steady replaces what differs from run to run.
func steady(text string) string {
	for _, r := range []struct{ pattern, by string }{
		{`127\.0\.0\.1:\d+`, "127.0.0.1:PORT"},
		{`\d{4}-\d\d-\d\dT[0-9:.]+Z [0-9A-F]{16}`, "STAMP"},
		{`(expires in|differ by|agrees with Entra ID's to|valid until|expired on|expires on) [0-9][^,\n"]*`, "$1 SOME"},
		{`connected to (\S+) in [^"\n]+`, "connected to $1 in SOME"},
		{`"took_ms": [0-9.]+`, `"took_ms": 1`},
		{` \(took [^)]*\)`, ""},
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.by)
	}
	return text
}

func TestDoctorFails(t *testing.T) {
	box, file := hospital(t, `[{address: erp@contoso.com, tenant: contoso}]`)
	strike(t, box, "auth-disabled-mailbox")
	stdout, _, err := execute(t, newDoctorCommand(), "", "--config", file)
	if err == nil || err.Error() != "1 sender of 1 failed the examination" {
		t.Errorf("got %v", err)
	}
	if _, usage := errors.AsType[*usageError](err); usage {
		t.Error("a failure is no usage error")
	}
	golden(t, "doctor_fails.txt", steady(stdout))
	stdout, _, err = execute(t, newDoctorCommand(), "", "--config", file, "--json")
	if err == nil {
		t.Error("with --json: no error")
	}
	golden(t, "doctor_fails.json", steady(stdout))
}

func TestDoctorOfOneSender(t *testing.T) {
	box, file := hospital(t, `[{match: "*@contoso.com", tenant: contoso}, {address: sales@contoso.com, tenant: contoso, login: erp@contoso.com}]`)
	stdout, _, err := execute(t, newDoctorCommand(), "", "--config", file, "--to", "you@fabrikam.com", "SALES@contoso.com")
	if err != nil {
		t.Errorf("got %v, want warnings to be no failure", err)
	}
	golden(t, "doctor_sender.txt", steady(stdout))
	stdout, _, err = execute(t, newDoctorCommand(), "", "--config", file, "somebody@contoso.com")
	if err != nil || !strings.HasPrefix(stdout, "somebody@contoso.com (for *@contoso.com)\n") || !strings.Contains(stdout, "as somebody@contoso.com: 235") {
		t.Errorf("covered by its domain: got %v, %s", err, stdout)
	}
	if got := box.Stats().Messages; got != 0 {
		t.Errorf("%d messages were sent", got)
	}
}

func TestDoctorOfAll(t *testing.T) {
	box, file := hospital(t, `[{address: erp@contoso.com, tenant: contoso}, {address: crm@contoso.com, tenant: contoso},
  {match: "*@fabrikam.com", tenant: contoso, login: robot@contoso.com}, {match: "*@contoso.com", tenant: contoso},
  {address: sales@contoso.com, tenant: contoso, login: ERP@contoso.com}]`)
	strike(t, box, "auth-disabled-mailbox,mailbox=crm@contoso.com")
	stdout, _, err := execute(t, newDoctorCommand(), "", "--config", file, "--all")
	if err == nil || err.Error() != "1 sender of 3 failed the examination" {
		t.Errorf("got %v", err)
	}
	golden(t, "doctor_all.txt", steady(stdout))
	if s := box.Stats(); s.Connections != 3 || s.Tokens != 1 {
		t.Errorf("got %d connections, %d tokens; want each mailbox once and one token for all", s.Connections, s.Tokens)
	}
	stdout, _, _ = execute(t, newDoctorCommand(), "", "--config", file, "--all", "--json")
	var report struct {
		Result           string
		Examined, Failed int
		Senders          []struct {
			Entries       []string
			Login, Result string
		}
		Skipped []struct{ Entry, Reason string }
	}
	decoder := json.NewDecoder(strings.NewReader(stdout))
	if err := decoder.Decode(&report); err != nil {
		t.Fatal(err)
	}
	if report.Result != "fail" || report.Examined != 3 || report.Failed != 1 || len(report.Skipped) != 1 || report.Skipped[0].Entry != "*@contoso.com" {
		t.Errorf("got %+v", report)
	}
	var got []string
	for _, s := range report.Senders {
		got = append(got, strings.Join(s.Entries, "+")+" "+s.Login+" "+s.Result)
	}
	want := "erp@contoso.com+sales@contoso.com erp@contoso.com warn, crm@contoso.com crm@contoso.com fail, *@fabrikam.com robot@contoso.com warn"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// TestDoctorSecrets: neither the client secret nor a token is in what is written, whatever fails.
func TestDoctorSecrets(t *testing.T) {
	box, file := hospital(t, `[{address: erp@contoso.com, tenant: contoso}]`)
	for _, fault := range []string{"", "token-7000215", "token-garbage", "auth-unsuccessful", "auth-challenge", "rcpt-not-found"} {
		box.ClearFaults()
		if fault != "" {
			strike(t, box, fault)
		}
		for _, form := range []string{"--json=false", "--json"} {
			stdout, stderr, err := execute(t, newDoctorCommand(), "", "--config", file, form)
			for _, secret := range []string{"s3cret-canary", "eyJ"} {
				if all := stdout + stderr + fmt.Sprint(err); strings.Contains(all, secret) || len(stdout) < 100 {
					t.Errorf("%s %s: %q in %s", fault, form, secret, all)
				}
			}
		}
	}
}

// TestDoctorIsBounded: a far end that falls silent costs no more than --timeout.
func TestDoctorIsBounded(t *testing.T) {
	box, file := hospital(t, `[{address: erp@contoso.com, tenant: contoso}]`)
	strike(t, box, "connect-blackhole")
	started := time.Now()
	stdout, _, err := execute(t, newDoctorCommand(), "", "--config", file, "--timeout", "200ms")
	if err == nil || !strings.Contains(stdout, "FAIL  starttls    greeting: no answer within 200ms") {
		t.Errorf("got %v, %s", err, stdout)
	}
	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestDoctorInterrupted(t *testing.T) {
	box, file := hospital(t, `[{address: erp@contoso.com, tenant: contoso}]`)
	strike(t, box, "connect-blackhole")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := newDoctorCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"--config", file})
	var out lockedBuffer
	cmd.SetOut(&out)
	out.on = func(text string) {
		if strings.Contains(text, "  tcp ") {
			cancel()
		}
	}
	if err := cmd.ExecuteContext(ctx); err == nil || err.Error() != "interrupted before the examination was done" {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(out.String(), "FAIL  starttls    interrupted\n") {
		t.Errorf("got %s", out.String())
	}
}

// lockedBuffer tells on of each write.
type lockedBuffer struct {
	bytes.Buffer
	on func(text string)
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.on(string(p))
	return b.Buffer.Write(p)
}

func TestDoctorCommandLine(t *testing.T) {
	one := writeConfig(t, goodConfig)
	two := writeConfig(t, strings.Replace(goodConfig, "[{match", "[{address: a@contoso.com, tenant: contoso}, {address: b@contoso.com, tenant: contoso}, {match", 1))
	rewriting := writeConfig(t, goodConfig+"unknown_sender: {rewrite_to: noreply@contoso.com}\n")
	none := writeConfig(t, strings.Replace(goodConfig, `senders: [{match: "*@contoso.com", tenant: contoso}]`, "", 1))
	tests := []struct {
		name  string
		args  []string
		want  string
		usage bool
	}{
		{"no configuration", []string{}, "doctor needs --config FILE or --api URL; relayd doctor --help says more", true},
		{"sender and all", []string{"--config", one, "--all", "a@contoso.com"}, "doctor takes a SENDER or --all, not both", true},
		{"no address", []string{"--config", one, "erp"}, `"erp" is not the address of a sender; write one like app@contoso.com`, true},
		{"a pattern", []string{"--config", one, "*@contoso.com"}, `"*@contoso.com" is not the address of a sender; write one like app@contoso.com`, true},
		{"no recipient", []string{"--config", one, "--to", "you"}, `--to "you" is not a mail address: no @ behind the local part`, true},
		{"no time", []string{"--config", one, "--timeout", "0s"}, "--timeout must be more than 0", true},
		{"which one", []string{"--config", two}, "doctor needs a SENDER or --all; configured: a@contoso.com, b@contoso.com, *@contoso.com", true},
		{"only a domain", []string{"--config", one}, "doctor needs a SENDER or --all; configured: *@contoso.com", true},
		{"all of a domain", []string{"--config", one, "--all"},
			"no entry of senders names a mailbox; name an address one of them covers: relayd doctor SENDER (configured: *@contoso.com)", false},
		{"not covered", []string{"--config", two, "x@fabrikam.com"}, "no entry of senders covers x@fabrikam.com, so relayd refuses its mail; " +
			"configured: a@contoso.com, b@contoso.com, *@contoso.com", false},
		{"rewritten", []string{"--config", rewriting, "x@fabrikam.com"}, "no entry of senders covers x@fabrikam.com, so its mail is sent as " +
			"noreply@contoso.com (unknown_sender.rewrite_to); configured: *@contoso.com", false},
		{"nobody", []string{"--config", none}, "the configuration has no senders; add one", false},
		{"nobody, asked for", []string{"--config", none, "x@fabrikam.com"}, "no entry of senders covers x@fabrikam.com, so relayd refuses its mail; configured: none", false},
		{"no file", []string{"--config", "/nonexistent"}, "/nonexistent cannot be used, so there is nothing to examine:\n/nonexistent: cannot be read: " +
			"no such file or directory; name a file, `relayd config example` prints one to start from", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := execute(t, newDoctorCommand(), "", tt.args...)
			if err == nil {
				t.Fatal("no error")
			}
			file, asked, _ := strings.Cut(err.Error(), ". What was entered on the page the running relay alone knows: ")
			if file != tt.want || (asked != "") != strings.HasPrefix(tt.want, "no entry of senders covers") {
				t.Fatalf("got %v\nwant %s", err, tt.want)
			}
			if _, usage := errors.AsType[*usageError](err); usage != tt.usage {
				t.Errorf("got %T", err)
			}
		})
	}
}

func TestEntriesOfMany(t *testing.T) {
	var senders []string
	for i := range 23 {
		senders = append(senders, fmt.Sprintf("{address: s%d@contoso.com, tenant: contoso}", i))
	}
	c := parse(t, strings.Replace(sixLines, `{match: "*@contoso.com", tenant: contoso, login: robot@contoso.com}`, strings.Join(senders, ", "), 1))
	if got := entriesOf(c); !strings.HasPrefix(got, "s0@contoso.com, ") || !strings.HasSuffix(got, ", s19@contoso.com, and 3 more") {
		t.Errorf("got %s", got)
	}
	patients, skipped := allPatients(c)
	if len(patients) != 23 || len(skipped) != 0 {
		t.Errorf("got %d and %d, want every address", len(patients), len(skipped))
	}
}

func TestPatientOf(t *testing.T) {
	c := parse(t, strings.Replace(sixLines, "[{match", "[{address: Boss@contoso.com, tenant: contoso}, {match", 1))
	for _, tt := range []struct {
		address envelope.Address
		login   envelope.Address
		entry   string
	}{
		{"boss@contoso.com", "boss@contoso.com", "Boss@contoso.com"}, {"clerk@contoso.com", "robot@contoso.com", "*@contoso.com"}, {"x@fabrikam.com", "", ""},
	} {
		p, ok := patientOf(c, tt.address)
		if ok != (tt.entry != "") || p.route.Login != tt.login || strings.Join(p.entries, "") != tt.entry {
			t.Errorf("%s: got %+v, %v", tt.address, p, ok)
		}
	}
}

func TestDoctorWarnings(t *testing.T) {
	_, file := hospital(t, `[{address: erp@contoso.com, tenant: contoso, connections: 9}, {address: crm@contoso.com, tenant: contoso, connections: 7}]`)
	stdout, _, err := execute(t, newDoctorCommand(), "", "--config", file, "erp@contoso.com")
	if err != nil || !strings.Contains(stdout, "cause   senders[0].connections: 9 is more than Exchange Online allows a mailbox") ||
		strings.Contains(stdout, "senders[1]") || strings.Count(stdout, "credential_expires") != 2 {
		t.Errorf("got %v, %s, want the warnings about this sender, and the secret's end in a step of its own", err, stdout)
	}
}

func TestDoctorPrinter(t *testing.T) {
	var b bytes.Buffer
	p := &doctorPrinter{&b, colouredMark}
	p.step(doctor.Step{Name: "auth", State: doctor.Failed, Detail: "535 no", Cause: "why", Advice: "one\ntwo", Took: 2345 * time.Millisecond,
		Error: &status.Error{Code: 535}})
	p.step(doctor.Step{Name: "mail", State: doctor.Skipped})
	p.step(doctor.Step{Name: "dns", State: doctor.OK, Detail: "x", Took: 999 * time.Millisecond})
	p.step(doctor.Step{Name: "clock", State: doctor.Warning, Detail: "y"})
	p.remark("")
	const want = "  \x1b[31m✗\x1b[0m  auth        535 no (took 2.3s)\n        cause   why\n        change  one\n                two\n" +
		"  \x1b[2m-\x1b[0m  mail\n  \x1b[32m✓\x1b[0m  dns         x\n  \x1b[33m!\x1b[0m  clock       y\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	if newDoctorPrinter(&b).mark(doctor.Failed) != "FAIL" {
		t.Error("want words where there is no terminal")
	}
}

// TestDoctorReadsReplies: what the configuration says of a reply, or of Entra ID's refusal, goes before what relayd does.
func TestDoctorReadsReplies(t *testing.T) {
	box, file := hospital(t, `[{address: erp@contoso.com, tenant: contoso}]
replies:
  - {name: ours, enhanced: 5.7.139, action: park tenant, cause: the usual, advice: Call Bob}
  - {name: theirs, stage: token, aadsts: [7000222], action: park tenant, cause: the yearly, advice: Call Alice}`)
	for fault, want := range map[string]string{
		"auth-disabled-mailbox": "cause   the usual\n        change  Call Bob\n", "token-7000222": "cause   the yearly\n        change  Call Alice\n",
	} {
		box.ClearFaults()
		strike(t, box, fault)
		stdout, _, err := execute(t, newDoctorCommand(), "", "--config", file)
		if err == nil || !strings.Contains(stdout, want) {
			t.Errorf("%s: got %v, %s, want %q", fault, err, stdout, want)
		}
	}
}
