package config

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.yaml.in/yaml/v4"
)

func newSecret(t *testing.T, reference string) Secret {
	t.Helper()
	var s Secret
	if err := s.UnmarshalText([]byte(reference)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSecretResolves(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	t.Setenv("RELAYD_TEST_SECRET", "from env\n")
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link") // as Kubernetes mounts them
	if err := os.Symlink(write("target", "linked"), link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, reference, want, wantErr, file string }{
		{"env", "env:RELAYD_TEST_SECRET", "from env\n", "", ""},
		{"env not set", "env:RELAYD_TEST_UNSET", "", `environment variable "RELAYD_TEST_UNSET" is not set`, ""},
		{"file", "file:" + write("plain", "a b"), "a b", "", dir + "/plain"},
		{"line end", "file:" + write("lf", "a b\n"), "a b", "", dir + "/lf"},
		{"Windows line end", "file:" + write("crlf", "a b\r\n"), "a b", "", dir + "/crlf"},
		{"spaces are part of it", "file:" + write("spaces", " a \n"), " a ", "", dir + "/spaces"},
		{"link", "file:" + link, "linked", "", link},
		{"credential", "cred:lf", "a b", "", dir + "/lf"},
		{"credential absent", "cred:no", "", "no such file", dir + "/no"},
		{"file absent", "file:" + dir + "/no", "", `no" cannot be read: no such file or directory`, dir + "/no"},
		{"file empty", "file:" + write("empty", "\n\n"), "", "is empty", dir + "/empty"},
		{"file too large", "file:" + write("big", strings.Repeat("x", 64<<10+1)), "", "larger than 64KiB", dir + "/big"},
		{"largest file", "file:" + write("max", strings.Repeat("x", 64<<10)), strings.Repeat("x", 64<<10), "", dir + "/max"},
		{"directory", "file:" + dir, "", "is not a regular file", dir},
		{"pipe without a writer", "file:" + fifo, "", "is not a regular file", fifo},
		{"plain", "hunter2", "hunter2", "", ""},
		{"plain with a colon", "vault:hunter2", "vault:hunter2", "", ""},
	} {
		s := newSecret(t, c.reference)
		got, err := s.Resolve()
		if got != c.want || (err == nil) != (c.wantErr == "") || (err != nil && !strings.Contains(err.Error(), c.wantErr)) {
			t.Errorf("%s: got %.20q, %v, want %.20q, %q", c.name, got, err, c.want, c.wantErr)
		}
		if s.File() != c.file {
			t.Errorf("%s: File() = %q, want %q", c.name, s.File(), c.file)
		}
		if s.Plain() != strings.HasPrefix(c.name, "plain") {
			t.Errorf("%s: Plain() = %v", c.name, s.Plain())
		}
	}
	var none Secret
	if _, err := none.Resolve(); err == nil || !none.IsZero() || none.String() != "" || none.File() != "" {
		t.Error("the zero Secret passes for one")
	}
}

func TestSecretSeesRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	s := newSecret(t, "file:"+path)
	for _, want := range []string{"first", "second"} {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Resolve(); got != want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

func TestSecretWithoutCredentialsDirectory(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	s := newSecret(t, "cred:contoso")
	const want = `credential "contoso" cannot be read: CREDENTIALS_DIRECTORY is not set`
	if _, err := s.Resolve(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if s.File() != "" {
		t.Errorf("File() = %q, want none", s.File())
	}
}

// A planted secret is in nothing that is made of a Config, whichever way somebody prints it.
func TestCanaryIsNowhere(t *testing.T) {
	const canary = "canary-4711"
	c := mustParse(t, strings.Replace(sixLines, "file:/run/secrets/contoso", canary, 1))
	if got, err := c.Tenants[0].ClientSecret.Resolve(); got != canary || err != nil {
		t.Fatalf("the canary is not planted: %q, %v", got, err)
	}
	var out bytes.Buffer
	type hidden struct{ secret Secret } // fmt calls no method of an unexported field
	tenant := c.Tenants[0]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%t", "%U"} {
		for _, value := range []any{
			*c, c, tenant, &tenant, tenant.ClientSecret, &tenant.ClientSecret, hidden{tenant.ClientSecret},
			&hidden{tenant.ClientSecret}, []any{tenant.ClientSecret}, map[string]any{"a": tenant.ClientSecret},
		} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
	}
	for _, encode := range []func(any) ([]byte, error){
		json.Marshal, xml.Marshal, func(v any) ([]byte, error) { return yaml.Dump(v) },
	} {
		for _, value := range []any{tenant, &tenant, tenant.ClientSecret} {
			data, err := encode(value)
			if err != nil {
				t.Error(err)
			}
			out.Write(append(data, '\n'))
		}
	}
	out.WriteString(tenant.ClientSecret.String() + tenant.ClientSecret.GoString())
	dump, err := c.Redacted()
	if err != nil || !bytes.Contains(dump, []byte("client_secret: '[redacted]'")) {
		t.Errorf("Redacted() = %s, %v", dump, err)
	}
	out.Write(dump)
	for _, encoder := range []zapcore.Encoder{
		zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()),
		zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()),
	} {
		logger := zap.New(zapcore.NewCore(encoder, zapcore.AddSync(&out), zap.DebugLevel))
		logger.Info("config", zap.Any("config", c), zap.Any("secret", tenant.ClientSecret), zap.Reflect("r", tenant),
			zap.Stringer("stringer", tenant.ClientSecret), zap.Any("hidden", hidden{tenant.ClientSecret}),
			zap.Error(fmt.Errorf("tenant %v: %w", tenant, errors.New("x"))))
		logger.Sugar().Infof("%v %+v", c, tenant)
	}
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary)} {
		if i := strings.Index(out.String(), form); i >= 0 {
			t.Errorf("the canary is shown: …%s…", out.String()[max(0, i-200):i+20])
		}
	}
	if strings.Count(out.String(), redacted) < 50 {
		t.Errorf("only %d places say that a secret was left out", strings.Count(out.String(), redacted))
	}
}

// Neither is it in a report about a file that holds it, be the file ever so broken.
func TestCanaryIsInNoReport(t *testing.T) {
	for _, line := range []string{
		"client_secret: [canary]", "client_secret: {canary: x}", "client_secrets: canary", "client_secret: *canary",
		"client_secret: &canary", "client_secret: !canary x", "client_secret: @canary", "client_secret: 'canary",
		"client_secret: canary: canary", "client_secret: \"\\canary\"", "client_secret: canary\n  client_secret: canary",
		"client_secret: file:canary", "client_secret: env:\ncanary", "client_secret: %canary", "client_secret: |canary",
		"client_secret: canary\n\tx: y", "%canary",
	} {
		_, warnings, err := Parse("relayd.yaml", []byte("tenants:\n- name: contoso\n  "+line+"\n"), nil)
		if report := fmt.Sprint(warnings, err); strings.Contains(report, "canary") {
			t.Errorf("%s: %s", line, report)
		}
	}
}
