package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/config"
	"relayd/pkg/sandbox"
)

// What the command prints is a configuration that loads as it is, and the CA file and both ports are there.
func TestSandboxCommand(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, in := io.Pipe()
	cmd := newSandboxCommand()
	cmd.SetArgs([]string{"--smtp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ca", ca, "--client-secret", "given",
		"--mailbox", "app@contoso.com,*@fabrikam.com", "--send-as", "app@contoso.com=sales@contoso.com", "--fault", "dot-quota,count=1"})
	cmd.SetOut(in)
	ended := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		in.Close()
		ended <- err
	}()
	var text strings.Builder
	url := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if _, after, ok := strings.Cut(lines.Text(), "What arrives: "); ok {
			url = strings.TrimSuffix(after, "/messages")
		}
		if strings.Contains(lines.Text(), "*@fabrikam.com") {
			break
		}
	}
	file := filepath.Join(dir, "relayd.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, err := config.Load(file)
	if err != nil {
		t.Fatalf("the printed configuration: %v\n%s", err, text.String())
	}
	if tenant := c.Tenants[0]; tenant.CAFile != ca || len(c.Senders) != 2 {
		t.Errorf("got %+v", c)
	}
	resp, err := http.Get(url + "/faults")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.Contains(string(body), `"dot-quota"`) {
		t.Errorf("faults are %s", body)
	}
	if pem, err := os.ReadFile(ca); err != nil || !strings.HasPrefix(string(pem), "-----BEGIN CERTIFICATE-----") {
		t.Errorf("CA file: %q, %v", pem, err)
	}
	cancel()
	go io.Copy(io.Discard, out)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the command did not end with its context")
	}
}

func TestSandboxCommandRefuses(t *testing.T) {
	for _, test := range []struct {
		args  []string
		text  string
		usage bool
	}{
		{[]string{"--fault", "nonsense"}, `there is no fault preset "nonsense"`, true},
		{[]string{"--send-as", "a@b"}, `--send-as "a@b" is not LOGIN=ADDRESS`, true},
		{[]string{"--full-access", "=b"}, `--full-access "=b" is not USER=MAILBOX`, true},
		{[]string{"--user", "a@b,role=x"}, `--user "a@b": "role" is not admin, name, password or state`, true},
		{[]string{"--user", "a@b,state=tired"}, `state "tired" is not one of`, false},
		{[]string{"--redirect-uri", "http://relay.example.com/"}, `redirect URI "http://relay.example.com/" is not https`, false},
		{[]string{"--managed-identity", "own"}, `managed_identity "own" is not system or user`, false},
		{[]string{"--certificate", filepath.Join(t.TempDir(), "none.pem")}, "--certificate: ", true},
		{[]string{"--smtp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ca", filepath.Join(t.TempDir(), "none", "ca")}, "--ca names another file", false},
		{[]string{"--smtp", "256.0.0.1:1"}, "start the sandbox: listen for SMTP: ", false},
		{[]string{"--token-lifetime-min", "2h"}, "token lifetime", false},
	} {
		_, _, err := execute(t, newSandboxCommand(), "", test.args...)
		_, usage := errors.AsType[*usageError](err)
		if err == nil || !strings.Contains(err.Error(), test.text) || usage != test.usage {
			t.Errorf("%v: got %v, want %s", test.args, err, test.text)
		}
	}
}

func TestSandboxListFaults(t *testing.T) {
	stdout, _, err := execute(t, newSandboxCommand(), "", "--list-faults")
	if err != nil || !strings.Contains(stdout, "dot-quota") || strings.Count(stdout, "\n") < 60 {
		t.Errorf("got %q, %v", stdout, err)
	}
}

func TestSandboxLimitFlags(t *testing.T) {
	var f sandboxFlags
	cmd := &cobra.Command{}
	f.register(cmd)
	if err := cmd.ParseFlags([]string{"--messages-per-minute", "0", "--connections", "7", "--session-age", "0", "--keep-bodies=false"}); err != nil {
		t.Fatal(err)
	}
	o, err := f.options()
	if err != nil || o.Limits.MessagesPerMin >= 0 || o.Limits.Sending != 7 || o.Limits.SessionAge >= 0 || !o.DropBodies {
		t.Errorf("got %+v, %v", o, err)
	}
	if bare := regexp.MustCompile(`(?m)^ +(-\w, )?--\S+( \S+)? *$`).FindAllString(cmd.Flags().FlagUsages(), -1); bare != nil {
		t.Errorf("flags without help: %q", bare)
	}
}

func TestSandboxDirectoryFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(file, []byte("PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	var f sandboxFlags
	cmd := &cobra.Command{}
	f.register(cmd)
	if err := cmd.ParseFlags([]string{
		"--user", "ann@contoso.com", "--user", "boss@contoso.com,admin,name=The Boss,password=p=w", "--user", "gone@contoso.com,state=disabled",
		"--full-access", "ann@contoso.com=team@contoso.com", "--certificate", file, "--public-client", "--no-roles",
		"--admin-consent-required", "--managed-identity", "user", "--strict-rotation", "--device-interval", "1s",
	}); err != nil {
		t.Fatal(err)
	}
	o, err := f.options()
	if err != nil {
		t.Fatal(err)
	}
	tenant, app := o.Tenants[0], o.Tenants[0].Apps[0]
	if want := (sandbox.User{Mail: "boss@contoso.com", Admin: true, Name: "The Boss", Password: "p=w"}); len(tenant.Users) != 3 || tenant.Users[1] != want {
		t.Errorf("users %+v", tenant.Users)
	}
	if tenant.FullAccess[0] != (sandbox.Grant{Login: "ann@contoso.com", As: "team@contoso.com"}) || !tenant.AdminConsentRequired ||
		app.Certificates[0] != "PEM" || !app.Public || !app.NoRoles || app.ManagedIdentity != "user" || app.RedirectURIs[0] != "*" ||
		app.Secret == "" || !o.StrictRotation || o.DeviceInterval != time.Second || o.RefreshTokenLifetime != 90*24*time.Hour {
		t.Errorf("got %+v", o)
	}
}
