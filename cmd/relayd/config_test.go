package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"relayd/configs"
)

// execute runs a command by itself, as root would.
func execute(t *testing.T, cmd *cobra.Command, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s3cret-canary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "relayd.yaml")
	text = strings.ReplaceAll(text, "SECRET", filepath.Join(dir, "secret"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const goodConfig = `hostname: relay.contoso.com
listeners: [{address: ":2525"}]
tenants:
  - {name: contoso, tenant_id: contoso.com, client_id: 11111111-1111-1111-1111-111111111111, client_secret: "file:SECRET"}
senders: [{match: "*@contoso.com", tenant: contoso}]
`

func TestConfigCheckGood(t *testing.T) {
	path := writeConfig(t, goodConfig)
	stdout, stderr, err := execute(t, newConfigCommand(), "", "check", "--config", path)
	if err != nil || stdout != path+": ok\n" || stderr != "" {
		t.Errorf("got %q, %q, %v", stdout, stderr, err)
	}
}

func TestConfigCheckWarns(t *testing.T) {
	path := writeConfig(t, strings.Replace(goodConfig, "file:SECRET", "s3cret-canary", 1))
	stdout, stderr, err := execute(t, newConfigCommand(), "", "check", "--config", path)
	const want = ":4:109: tenants[0].client_secret: the secret itself stands in the file; " +
		"move it and refer to it with file:, env: or cred:\n"
	if err != nil || stdout != path+": ok, with 1 warning\n" || stderr != "warning: "+path+want {
		t.Errorf("got %q, %q, %v", stdout, stderr, err)
	}
}

func TestConfigCheckSaysAllErrorsAndWarnings(t *testing.T) {
	path := writeConfig(t, "hostname: relay\nlisteners: [{address: 25}]\nlog: {level: loud}\n")
	stdout, stderr, err := execute(t, newConfigCommand(), "", "check", "--config", path)
	if err == nil || stdout != "" {
		t.Fatalf("got %q, %v", stdout, err)
	}
	want := path + ` has 2 errors:
` + path + `:2:23: listeners[0].address: "25" is not an address; write host:port, or ":2525" for all interfaces
` + path + `:3:14: log.level: unknown value "loud"; write debug or info or warn or error`
	if err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if got := strings.Count(stderr, "warning: "); got != 2 { // the host name, no senders
		t.Errorf("got %d warnings, want 2: %s", got, stderr)
	}
}

// Editors and containers hand over a file by name that is not there, or no name at all.
func TestConfigCheckWithoutFile(t *testing.T) {
	_, _, err := execute(t, newConfigCommand(), "", "check", "--config", "/nonexistent/relayd.yaml")
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/relayd.yaml: cannot be read: no such file or directory; ") {
		t.Errorf("got %v", err)
	}
	_, _, err = execute(t, newConfigCommand(), "", "check")
	if _, ok := err.(*usageError); !ok {
		t.Errorf("without --config: got %T %v, want a usage error", err, err)
	}
}

func TestConfigExampleAndSchema(t *testing.T) {
	stdout, _, err := execute(t, newConfigCommand(), "", "example")
	if err != nil || stdout != string(configs.Sample()) {
		t.Errorf("example: got %.60q, %v, want the sample", stdout, err)
	}
	stdout, _, err = execute(t, newConfigCommand(), "", "schema")
	if err != nil || !json.Valid([]byte(stdout)) || !strings.Contains(stdout, `"additionalProperties": false`) {
		t.Errorf("schema: got %.60q, %v", stdout, err)
	}
	if _, _, err := execute(t, newConfigCommand(), "", "shema"); err == nil {
		t.Error("an unknown subcommand: no error")
	}
}
