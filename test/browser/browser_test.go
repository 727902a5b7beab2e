// Package browser drives the admin page with Chromium, as a person does: `relayd serve` and `relayd sandbox` run as processes
// of their own, and everything is done and seen in the browser. With TEST_SCREENSHOTS set to a directory it also writes the
// pictures of the documentation there.
package browser

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"relayd/test/rig"
)

// patience is how long a test waits for what should take a second on an idle machine.
const patience = 30 * time.Second

// relayd is the binary under test; TestMain sets it before any test runs.
var relayd string

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run builds relayd once, or takes the one TEST_RELAYD_BIN names.
func run(m *testing.M) int {
	flag.Parse()
	dir, err := os.MkdirTemp("", "relayd-browser-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if relayd = os.Getenv("TEST_RELAYD_BIN"); relayd == "" {
		if relayd, err = rig.Build(context.Background(), dir, false); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// skip ends a test that needs what this machine has not; where nothing may be skipped, it fails.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("TEST_NO_SKIP") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// needChromium returns the path of the browser.
func needChromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	skip(t, "chromium is not installed (scripts/test-deps installs it)")
	return ""
}

// axeSource returns axe-core, which judges whether everybody can use a page.
func axeSource(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("TEST_NODE_DIR")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "relayd-test-node")
	}
	source, err := os.ReadFile(filepath.Join(dir, "node_modules", "axe-core", "axe.min.js"))
	if errors.Is(err, os.ErrNotExist) {
		skip(t, "axe-core is not installed (scripts/test-deps installs it)")
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(source)
}

// world is one browser, one sandbox and the relay in front of it, for all tests of a run.
type world struct {
	dir     string
	browser context.Context // of chromedp; each tab is a child of it
	far     *rig.Sandbox
	relay   *rig.Relay
}

// What stands in the relay's configuration file: where it listens, and nothing to send with.
func emptyConfig(dir, smtp, admin, more string) string {
	return fmt.Sprintf("hostname: relay.contoso.com\ndata_dir: %q\nlisteners: [{address: %q}]\nadmin: {address: %q}\n%s",
		filepath.Join(dir, "data"), smtp, admin, more)
}

// newWorld starts everything; it ends with the test, and both processes must end well.
func newWorld(t *testing.T) *world {
	t.Helper()
	chromium := needChromium(t)
	w := &world{dir: t.TempDir()}
	var err error
	w.far, err = rig.StartSandbox(t.Context(), relayd, w.dir, "--redirect-uri", "", "--device-interval", "1s", "--messages-per-minute", "0",
		"--user", "alice@contoso.com,name=Alice Ando", "--user", "bob@contoso.com,name=Bob Baker", "--user", "admin@contoso.com,name=Ada Admin,admin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.far.Stop(time.Minute); err != nil {
			t.Errorf("the sandbox did not end well: %v", err)
		}
	})
	w.relay, err = rig.StartRelay(t.Context(), relayd, w.dir, func(smtp, admin string) string { return emptyConfig(w.dir, smtp, admin, "") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.relay.Stop(time.Minute); err != nil {
			t.Errorf("the relay did not end well: %v", err)
		}
		if t.Failed() {
			t.Logf("relay:\n%s", tail(w.relay.Log()))
		}
	})
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.IgnoreCertErrors, chromedp.Flag("disable-component-update", true), chromedp.Flag("lang", "en-US"),
		chromedp.Flag("hide-scrollbars", true), chromedp.WindowSize(1280, 800), chromedp.UserDataDir(filepath.Join(w.dir, "profile")))
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	browser, end := chromedp.NewContext(allocator)
	t.Cleanup(end)
	if err := chromedp.Do(browser); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	w.browser = browser
	return w
}

// tail is the end of a log, for a failed test's output.
func tail(log string) string {
	const most = 12 << 10
	if len(log) > most {
		return "…" + log[len(log)-most:]
	}
	return log
}

// url is an address of the page, by the name Entra ID allows without TLS.
func (w *world) url(path string) string {
	_, port, _ := net.SplitHostPort(w.relay.Admin)
	return "http://" + net.JoinHostPort("localhost", port) + path
}

// loginLink returns the one-time link of the relay's log.
func (w *world) loginLink(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const before = `"msg":"open the page with this link`
	if err := w.relay.WaitLog(ctx, before, 1); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(w.relay.Log(), before)
	_, rest, ok := strings.Cut(rest, `"url":"`)
	link, _, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 {
		t.Fatalf("the log has no link: %s", tail(w.relay.Log()))
	}
	return link
}

// eventually asks until ok, or fails the test after patience.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not come true: %s", what)
		}
	}
}
