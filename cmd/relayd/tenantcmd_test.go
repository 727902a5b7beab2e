package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"relayd/pkg/admin/console"
)

func TestTenantList(t *testing.T) {
	o, url := newOffice(t)
	stdout, stderr, err := relaydCommand(t, "", newTenantCommand(), "list", "--api", url)
	lines := strings.Split(stdout, "\n")
	if err != nil || stderr != "" || len(lines) != 4 {
		t.Fatalf("got %q, %q, %v", stdout, stderr, err)
	}
	if want := []string{"contoso", "delegated", "client_secret", "2027-12-31", "2", "page"}; !slices.Equal(strings.Fields(lines[1]), want) {
		t.Errorf("got %q", lines[1])
	}
	if !strings.HasSuffix(lines[2], "file  the secret has expired") {
		t.Errorf("got %q", lines[2])
	}
	stdout, _, err = relaydCommand(t, "", newTenantCommand(), "list", "--json", "--api", url)
	if got := jsonLines[console.Tenant](t, stdout); err != nil || len(got) != 2 || got[1].Name != "fabrikam" {
		t.Errorf("got %+v, %v", got, err)
	}
	o.tenants[1].Shadowed = true
	if stdout, _, _ = relaydCommand(t, "", newTenantCommand(), "list", "--api", url); !strings.Contains(stdout, "the configuration file has one of that name, which is in force") {
		t.Errorf("got %q", stdout)
	}
	o.tenants = nil
	if stdout, stderr, err := relaydCommand(t, "", newTenantCommand(), "list", "--api", url); err != nil || stdout != "" || !strings.HasPrefix(stderr, "there is no tenant yet") {
		t.Errorf("got %q, %q, %v", stdout, stderr, err)
	}
}

func TestTenantAdd(t *testing.T) {
	o, url := newOffice(t)
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("s3cret ~canary\r\nnot this\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := []string{"add", "contoso", "--tenant-id", "t", "--client-id", "c", "--api", url}
	for _, tt := range []struct {
		stdin string
		args  []string
		want  console.TenantInput
	}{
		{"canary-in\n", []string{"--secret-file", "-"}, console.TenantInput{ClientSecret: "canary-in"}},
		{"canary-in", []string{"--secret-file", "-"}, console.TenantInput{ClientSecret: "canary-in"}},
		{"", []string{"--secret-file", file}, console.TenantInput{ClientSecret: "s3cret ~canary"}},
		{"", nil, console.TenantInput{}},
		{
			"", strings.Fields("--grant client_credentials --cloud china --cert-file /c --key-file /k --credential-expires 2027-12-31 --authority https://a --scope s --smtp-server h:25 --ca-file /ca"),
			console.TenantInput{
				Grant: "client_credentials", Cloud: "china", CertFile: "/c", KeyFile: "/k", CredentialExpires: "2027-12-31", Authority: "https://a", Scope: "s",
				SMTPServer: "h:25", CAFile: "/ca",
			},
		},
	} {
		tt.want.Name, tt.want.TenantID, tt.want.ClientID = "contoso", "t", "c"
		stdout, stderr, err := relaydCommand(t, tt.stdin, newTenantCommand(), append(slices.Clone(base), tt.args...)...)
		if err != nil || o.tenant != tt.want || stdout != "contoso saved\n" || strings.Contains(stderr, "canary") {
			t.Errorf("%v: got %q, %q, %v, saved %+v, want %+v", tt.args, stdout, stderr, err, o.tenant, tt.want)
		}
		if !strings.Contains(stderr, "redirect URI to enter in Entra: https://relay/oauth/callback\n") || !strings.Contains(stderr, "relayd tenant check 'contoso'") {
			t.Errorf("%v: got %q", tt.args, stderr)
		}
	}
	o.calls = nil
	stdout, _, err := relaydCommand(t, "", newTenantCommand(), append(slices.Clone(base), "--replace", "--json")...)
	if got := jsonLines[console.Tenant](t, stdout); err != nil || len(got) != 1 || !slices.Equal(o.calls, []string{`save "contoso"`}) {
		t.Errorf("got %q, %v after %q", stdout, err, o.calls)
	}
	o.err = console.Mistakes{{Field: "client_secret", Text: "this is the secret's ID, not its value"}}
	if _, _, err := relaydCommand(t, "", newTenantCommand(), base...); err == nil || err.Error() != "add contoso: client_secret: this is the secret's ID, not its value" {
		t.Errorf("got %v", err)
	}
}

func TestTenantSecrets(t *testing.T) {
	for name, tt := range map[string]struct {
		in   io.Reader
		want string
	}{
		"empty":      {strings.NewReader(""), "the client secret is empty"},
		"empty line": {strings.NewReader("\nx"), "the client secret is empty"},
		"too long":   {strings.NewReader(strings.Repeat("x", maxSecret+1)), "too long"},
		"unreadable": {brokenReader{}, "read the client secret: io: read/write on closed pipe"},
	} {
		if got, err := readSecret(t.Context(), "-", tt.in, io.Discard); err == nil || got != "" || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if got, err := readSecret(t.Context(), "-", strings.NewReader(strings.Repeat("x", maxSecret)), io.Discard); err != nil || len(got) != maxSecret {
		t.Errorf("the longest: got %d, %v", len(got), err)
	}
	if _, err := readSecret(t.Context(), "/nowhere/secret", nil, io.Discard); err == nil || !strings.Contains(err.Error(), "/nowhere/secret") {
		t.Errorf("no file: got %v", err)
	}
	_, _, err := relaydCommand(t, "canary", newTenantCommand(), strings.Fields("add x --tenant-id t --client-id c --secret-file - --api http://192.0.2.1")...)
	if !isUsage(err) || !strings.Contains(err.Error(), "would send the secret in clear") {
		t.Errorf("in clear: got %v", err)
	}
}

func TestTenantUsage(t *testing.T) {
	const ids = " --tenant-id t --client-id c"
	for args, want := range map[string]string{
		"add":                        "accepts 1 arg(s)",
		"add x":                      `tenant add "x" needs --tenant-id and --client-id`,
		"add x --tenant-id t":        `tenant add "x" needs --tenant-id`,
		"add x --cert-file /c" + ids: "--cert-file and --key-file belong together",
		"add x --cert-file /c --key-file /k --secret-file -" + ids: "a certificate takes the place of a secret",
		"list x": "takes no argument",
		"remove": "requires at least 1 arg(s)",
		"check":  "accepts 1 arg(s)",
	} {
		if _, _, err := relaydCommand(t, "", newTenantCommand(), strings.Fields(args)...); !isUsage(err) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("tenant %s: got %v, want %q", args, err, want)
		}
	}
}

func TestTenantRemoveAndCheck(t *testing.T) {
	o, url := newOffice(t)
	stdout, _, err := relaydCommand(t, "", newTenantCommand(), "remove", "contoso", "--yes", "--api", url)
	if err != nil || stdout != "contoso removed\n" || !slices.Equal(o.calls, []string{"remove contoso"}) {
		t.Errorf("got %q, %v after %q", stdout, err, o.calls)
	}
	o.err = console.ErrInUse
	if _, _, err := relaydCommand(t, "", newTenantCommand(), "remove", "contoso", "--yes", "--api", url); err == nil || err.Error() != "remove contoso: senders still use this tenant; remove them first" {
		t.Errorf("got %v", err)
	}
	o.err = nil
	o.findings = []console.Finding{{Step: "metadata", Result: "ok", Detail: "found"}}
	stdout, _, err = relaydCommand(t, "", newTenantCommand(), "check", "contoso", "--api", url)
	if err != nil || stdout != "ok    metadata: found\n" {
		t.Errorf("got %q, %v", stdout, err)
	}
	o.findings = append(o.findings, console.Finding{Step: "token", Result: "fail", Detail: "AADSTS7000215\x1b", Cause: "wrong secret", Advice: "Make a new one."})
	stdout, _, err = relaydCommand(t, "", newTenantCommand(), "check", "contoso", "--api", url)
	if want := "ok    metadata: found\nfail  token: AADSTS7000215\\x1b\n      cause: wrong secret\n      advice: Make a new one.\n"; stdout != want ||
		err == nil || err.Error() != "check contoso: 1 of 2 steps failed" {
		t.Errorf("got %q, %v", stdout, err)
	}
	stdout, _, err = relaydCommand(t, "", newTenantCommand(), "check", "contoso", "--json", "--api", url)
	if got := jsonLines[console.Finding](t, stdout); err == nil || !slices.Equal(got, o.findings) {
		t.Errorf("got %+v, %v", got, err)
	}
}
