package e2e

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// outcome is what a command came to.
type outcome struct {
	code           int
	stdout, stderr string
}

// runCommand runs relayd to its end.
func runCommand(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, relayd, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "RELAYD_") })
	cmd.Dir = t.TempDir()
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// commands are all that relayd --help lists, and those below them.
func commands(t *testing.T) [][]string {
	t.Helper()
	found := [][]string{{}}
	for i := 0; i < len(found); i++ {
		help := runCommand(t, "", append(slices.Clone(found[i]), "--help")...).stdout
		_, list, ok := strings.Cut(help, "\nAvailable Commands:\n")
		if !ok {
			continue
		}
		list, _, _ = strings.Cut(list, "\n\n")
		for line := range strings.Lines(list) {
			if name := strings.Fields(line)[0]; name != "help" {
				found = append(found, append(slices.Clone(found[i]), name))
			}
		}
	}
	return found
}

func TestEveryCommand(t *testing.T) {
	t.Parallel()
	all := commands(t)
	var names []string
	for _, args := range all {
		names = append(names, strings.Join(args, " "))
	}
	for _, want := range []string{"", "serve", "demo", "sandbox", "config", "config check", "config schema", "config example", "config replies", "config token-refusals", "config openapi", "doctor", "sender list", "sender add", "sender authorize", "sender revoke", "sender pause",
		"sender resume", "sender remove", "tenant list", "tenant add", "tenant remove", "tenant check", "token", "login", "vault rotate", "vault reset", "send", "queue list", "queue show", "queue retry",
		"queue hold", "queue release", "queue drop", "queue export", "password", "version",
		"completion", "completion bash"} {
		if !slices.Contains(names, want) {
			t.Errorf("relayd --help does not lead to %q", want)
		}
	}
	for i, args := range all {
		t.Run("relayd "+names[i], func(t *testing.T) {
			help := runCommand(t, "", append(slices.Clone(args), "--help")...)
			if help.code != 0 || help.stderr != "" || !strings.Contains(help.stdout, "\nUsage:\n  relayd") {
				t.Errorf("--help: %+v", help)
			}
			// The first line says what the command does, and is a sentence or two, not the usage.
			if first, _, _ := strings.Cut(help.stdout, "\n"); len(first) < 15 || len(first) > 120 {
				t.Errorf("--help begins with %q", first)
			}
			for _, wrong := range [][]string{{"--no-such-flag"}, {"no-such-thing"}} {
				if takesAnyName := names[i] == "tenant check" || names[i] == "tenant remove"; takesAnyName && wrong[0][0] != '-' {
					continue // a tenant may have that name
				}
				checkUsageError(t, runCommand(t, "", append(slices.Clone(args), wrong...)...), wrong[0])
			}
		})
	}
}

// checkUsageError wants status 2 and one sentence that names the thing and where help is.
func checkUsageError(t *testing.T, o outcome, names string) {
	t.Helper()
	if o.code != 2 || o.stdout != "" {
		t.Errorf("status %d, stdout %q; want 2 and none", o.code, o.stdout)
	}
	oneSentence(t, o.stderr)
	if !strings.Contains(o.stderr, names) || !regexp.MustCompile(`[Ss]ee relayd.* --help`).MatchString(o.stderr) {
		t.Errorf("stderr %q names not %q and --help", o.stderr, names)
	}
}

// oneSentence wants one line from relayd, and no stack, usage or Go-speak.
func oneSentence(t *testing.T, stderr string) {
	t.Helper()
	if !strings.HasPrefix(stderr, "relayd: ") || strings.Count(stderr, "\n") != 1 || !strings.HasSuffix(stderr, "\n") {
		t.Errorf("stderr is not one sentence: %q", stderr)
	}
	if strings.Contains(stderr, "goroutine") || strings.Contains(stderr, "Usage:") || strings.Contains(stderr, "%!") {
		t.Errorf("stderr %q", stderr)
	}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		want string
	}{
		{"serv", `relayd: there is no command "serv"; did you mean send or serve? See relayd --help`},
		{"deliver", `relayd: there is no command "deliver". See relayd --help`},
		{"serve", `relayd: serve needs --config FILE; relayd config example prints one to start from`},
		{"serve now", `relayd: relayd serve takes no argument, not "now"; see relayd serve --help`},
		{"serve --config", `relayd: flag needs an argument: --config; see relayd serve --help`},
		{"config check", `relayd: config check needs --config FILE; relayd config example prints one to start from`},
		{"config chek", `relayd: unknown command "chek" for "relayd config"; see relayd config --help`},
		{"help sandbx", `relayd: relayd has no command "sandbx"; see relayd help --help`},
		{"sandbox --fault nonsense", `relayd: --fault: there is no fault preset "nonsense"; relayd sandbox --list-faults lists the presets`},
		{"sandbox --send-as me", `relayd: --send-as "me" is not LOGIN=ADDRESS`},
		{"sandbox --connections many", `relayd: invalid argument "many" for "--connections" flag: strconv.ParseInt: parsing "many": invalid syntax; see relayd sandbox --help`},
	} {
		t.Run(c.args, func(t *testing.T) {
			o := runCommand(t, "", strings.Fields(c.args)...)
			if o.code != 2 || o.stdout != "" || o.stderr != c.want+"\n" {
				t.Errorf("got %+v, want status 2 and %q", o, c.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	o := runCommand(t, "", "version")
	if o.code != 0 || o.stderr != "" || !regexp.MustCompile(`^relayd \S+ \(commit \S+, go1\.\d+\S*, nats-server 2\.\d+\.\d+\)\n$`).MatchString(o.stdout) {
		t.Errorf("%+v", o)
	}
}

// TestCompletion has bash load the script and complete with it.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if o := runCommand(t, "", "completion", shell); o.code != 0 || len(o.stdout) < 1000 || o.stderr != "" {
			t.Errorf("completion %s: status %d, %d octets, %q", shell, o.code, len(o.stdout), o.stderr)
		}
	}
	if o := runCommand(t, "", "__complete", "s"); !strings.Contains(o.stdout, "serve\t") || !strings.Contains(o.stdout, "sandbox\t") {
		t.Errorf("s completes to %q", o.stdout)
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		skip(t, "no bash to load the completion with: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), bash, "-n", "/dev/stdin")
	cmd.Stdin = strings.NewReader(runCommand(t, "", "completion", "bash").stdout)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bash does not read its completion: %v\n%s", err, out)
	}
}

// TestConfigExample checks the sample with the one thing a sample cannot have put right: the secret.
func TestConfigExample(t *testing.T) {
	t.Parallel()
	example := runCommand(t, "", "config", "example")
	if example.code != 0 || example.stderr != "" {
		t.Fatalf("%+v", example)
	}
	dir := t.TempDir()
	file, secret := filepath.Join(dir, "relayd.yaml"), filepath.Join(dir, "secret")
	replaceFile(t, file, example.stdout)
	o := runCommand(t, "", "config", "check", "--config", file)
	if want := `client_secret: secret file "/run/secrets/contoso" cannot be read: no such file or directory; put the secret there, or refer to another place`; o.code != 1 ||
		!strings.Contains(o.stderr, "has 1 error:\n") || !strings.Contains(o.stderr, want) {
		t.Errorf("without the secret: %+v", o)
	}
	replaceFile(t, secret, "s3cret")
	replaceFile(t, file, strings.NewReplacer("file:/run/secrets/contoso", "file:"+secret, "#hostname:", "hostname:").Replace(example.stdout))
	if o := runCommand(t, "", "config", "check", "--config", file); o.code != 0 || o.stdout != file+": ok\n" || o.stderr != "" {
		t.Errorf("with the secret: %+v", o)
	}
	schema := runCommand(t, "", "config", "schema")
	published, err := os.ReadFile("../../docs/relayd.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if schema.code != 0 || schema.stdout != string(published) {
		t.Error("config schema does not print docs/relayd.schema.json")
	}
}

// TestManPages wants a page for every command.
func TestManPages(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "man1")
	if o := runCommand(t, "", "man", dir); o.code != 0 || o.stdout+o.stderr != "" {
		t.Fatalf("%+v", o)
	}
	for _, args := range commands(t) {
		name := strings.Join(append([]string{"relayd"}, args...), "-") + ".1"
		page, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.HasPrefix(page, []byte(".nh\n.TH")) {
			t.Errorf("%s: %.20q, %v", name, page, err)
		}
	}
}

func TestPassword(t *testing.T) {
	t.Parallel()
	o := runCommand(t, "s3cret\n", "password")
	if o.code != 0 || o.stderr != "" || !regexp.MustCompile(`^\$2[aby]\$1\d\$[./A-Za-z0-9]{53}\n$`).MatchString(o.stdout) {
		t.Errorf("%+v", o)
	}
	for _, wrong := range []string{"", "\n", strings.Repeat("long", 20) + "\n"} {
		o := runCommand(t, wrong, "password")
		if o.code != 1 || o.stdout != "" || !strings.Contains(o.stderr, "; choose another") {
			t.Errorf("password %q: %+v", wrong, o)
		}
		oneSentence(t, o.stderr)
	}
}

// TestDemoOnce is what make demo shows, and its verdict on damaged mail is tested where the sandbox can damage it.
func TestDemoOnce(t *testing.T) {
	t.Parallel()
	started := time.Now()
	o := runCommand(t, "", "demo", "--once", "--smtp", "127.0.0.1:0")
	if o.code != 0 || o.stderr != "" {
		t.Fatalf("%+v", o)
	}
	for _, want := range []string{
		`(?m)^relay +smtp://127\.0\.0\.1:\d+ +\(metrics and health: http://127\.0\.0\.1:\d+\)$`,
		`(?m)^sandbox +smtp://127\.0\.0\.1:\d+ +\(what arrived: http://127\.0\.0\.1:\d+/sandbox/messages\)$`,
		`(?m)^8-bit with attachment +\d+ octets from erp@contoso\.com +accepted in .*, delivered by login erp@contoso\.com after .*, unchanged$`,
		`(?m)^20 MB attachment +\d{8} octets from scanner@contoso\.com +accepted in .*, delivered by login scanner@contoso\.com after .*, unchanged$`,
	} {
		if !regexp.MustCompile(want).MatchString(o.stdout) {
			t.Errorf("no line %q in\n%s", want, o.stdout)
		}
	}
	t.Logf("took %v", time.Since(started).Round(time.Millisecond))
}

// TestDemoTakenPort takes the address the demo was told to use: it uses no other, and says so.
func TestDemoTakenPort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := runCommand(t, "", "demo", "--once", "--smtp", l.Addr().String())
	if o.code != 1 || !strings.Contains(o.stderr, "address already in use") || !strings.Contains(o.stderr, "another process has it") {
		t.Errorf("with a taken --smtp address: %+v", o)
	}
}
