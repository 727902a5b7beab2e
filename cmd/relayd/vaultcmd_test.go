package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"relayd/pkg/admin/api/control"
	"relayd/pkg/config"
)

func TestVaultRotate(t *testing.T) {
	o, url := newOffice(t)
	stdout, _, err := relaydCommand(t, "", newVaultCommand(nil), "rotate", "--api", url)
	if err != nil || stdout != "42 records sealed with the current key\n" {
		t.Errorf("got %q, %v", stdout, err)
	}
	stdout, _, err = relaydCommand(t, "", newVaultCommand(nil), "rotate", "--json", "--api", url)
	if got := jsonLines[control.Rotated](t, stdout); err != nil || len(got) != 1 || got[0].Rotated != 42 {
		t.Errorf("got %q, %v", stdout, err)
	}
	o.err = errors.New("canary")
	if _, _, err := relaydCommand(t, "", newVaultCommand(nil), "rotate", "--api", url); err == nil || err.Error() != "rotate: 451 4.3.0 internal error, try again" {
		t.Errorf("got %v", err)
	}
}

func TestVaultReset(t *testing.T) {
	file := writeConfig(t, "data_dir: /var/lib/relayd-test\nlisteners: [{address: \"127.0.0.1:0\"}]\n"+
		"tenants: [{name: c, tenant_id: 00000000-0000-0000-0000-000000000000, client_id: 11111111-1111-1111-1111-111111111111, client_secret: \"file:/x\"}]\n"+
		"senders: [{match: \"*@contoso.com\", tenant: c}]\n")
	var dir string
	forgotten, failure := map[string]int{"tenant": 2, "grant": 7}, error(nil)
	reset := func(_ context.Context, cfg *config.Config) (map[string]int, error) {
		dir = cfg.DataDir
		return forgotten, failure
	}
	run := func(args ...string) (string, error) {
		t.Helper()
		dir = ""
		stdout, _, err := relaydCommand(t, "", newVaultCommand(reset), append([]string{"reset"}, args...)...)
		return stdout, err
	}
	if _, err := run("--yes"); !isUsage(err) || !strings.Contains(err.Error(), "needs --config FILE") || dir != "" {
		t.Errorf("without a file: got %v", err)
	}
	if _, err := run("--config", file); err == nil || !strings.Contains(err.Error(), "add --yes") || dir != "" {
		t.Errorf("without a terminal: got %v", err)
	}
	if _, err := run("--config", file+"x", "--yes"); err == nil || dir != "" {
		t.Errorf("no file: got %v", err)
	}
	if out, err := run("--config", file, "--yes"); err != nil || out != "forgotten: 7 grant, 2 tenant\n" || dir != "/var/lib/relayd-test" {
		t.Errorf("got %q, %v, in %s", out, err, dir)
	}
	if out, err := run("--config", file, "--yes", "--json"); err != nil || out != `{"grant":7,"tenant":2}`+"\n" {
		t.Errorf("got %q, %v", out, err)
	}
	forgotten = nil
	if out, err := run("--config", file, "--yes"); err != nil || out != "every record can be opened: nothing forgotten\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if out, err := run("--config", file, "--yes", "--json"); err != nil || out != "{}\n" {
		t.Errorf("nothing as JSON: got %q, %v", out, err)
	}
	failure = errors.New("the queue is in use by another process")
	if _, err := run("--config", file, "--yes"); err == nil || err.Error() != "reset the vault: the queue is in use by another process" {
		t.Errorf("got %v", err)
	}
}
