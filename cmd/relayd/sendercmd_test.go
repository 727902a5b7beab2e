package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/status"
)

// office is senders and tenants behind the real API, of which the test knows everything.
type office struct {
	console.Console // what a command must not ask for is nil

	mu       sync.Mutex // guards the rest
	err      error      // of all changes
	calls    []string
	senders  []console.Sender
	tenants  []console.Tenant
	tenant   console.TenantInput
	sender   console.SenderInput
	device   console.Device
	story    []console.Device // what successive looks at the device see; the last stays
	findings []console.Finding
}

func (o *office) call(format string, args ...any) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls = append(o.calls, fmt.Sprintf(format, args...))
	return o.err
}

func (o *office) Senders(_ context.Context, q console.SenderQuery) (*console.SenderPage, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	page := &console.SenderPage{}
	for _, s := range o.senders {
		if (q.State == "" || q.State == s.State) && (q.Tenant == "" || q.Tenant == s.Tenant) && strings.Contains(s.Match, q.Text) {
			if page.Total++; page.Total > q.Offset && len(page.Senders) < q.Limit {
				page.Senders = append(page.Senders, s)
			}
		}
	}
	return page, nil
}

func (o *office) Sender(_ context.Context, match string) (*console.Sender, error) {
	for i := range o.senders {
		if o.senders[i].Match == match {
			return &o.senders[i], nil
		}
	}
	return nil, console.ErrNotFound
}

func (o *office) SaveSender(_ context.Context, match string, in console.SenderInput) error {
	o.sender = in
	return o.call("save %q", match)
}

func (o *office) change(what, match string) error {
	if _, err := o.Sender(context.Background(), match); err != nil {
		return err
	}
	return o.call("%s %s", what, match)
}
func (o *office) RemoveSender(_ context.Context, match string) error {
	return o.change("remove", match)
}
func (o *office) Pause(_ context.Context, match string) error  { return o.change("pause", match) }
func (o *office) Resume(_ context.Context, match string) error { return o.change("resume", match) }
func (o *office) Revoke(_ context.Context, match string) error { return o.change("revoke", match) }
func (o *office) Examine(context.Context, string, func(console.Finding)) error {
	panic("not a command")
}

func (o *office) Invite(_ context.Context, match string) (*console.Invitation, error) {
	return &console.Invitation{Sender: match, Login: "a@contoso.com", URL: "https://relay/consent/x\x1b", Expires: time.Unix(1e9, 0)}, o.call("invite %s", match)
}

func (o *office) StartDevice(_ context.Context, match string) (*console.Device, error) {
	return &o.device, o.call("device %s", match)
}

func (o *office) Device(_ context.Context, id string) (*console.Device, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if id != o.device.ID || len(o.story) == 0 {
		return nil, console.ErrNotFound
	}
	now := o.story[0]
	if len(o.story) > 1 {
		o.story = o.story[1:]
	}
	if now.State == "" {
		return nil, status.New(451, status.Enhanced{4, 3, 0}, "short of breath")
	}
	return &now, nil
}

func (o *office) Tenants(context.Context) ([]console.Tenant, error) { return o.tenants, nil }

func (o *office) Tenant(_ context.Context, name string) (*console.Tenant, error) {
	for i := range o.tenants {
		if o.tenants[i].Name == name {
			return &o.tenants[i], nil
		}
	}
	return nil, console.ErrNotFound
}

func (o *office) SaveTenant(_ context.Context, name string, in console.TenantInput) error {
	o.tenant = in
	return o.call("save %q", name)
}
func (o *office) RemoveTenant(_ context.Context, name string) error { return o.call("remove %s", name) }

func (o *office) CheckTenant(_ context.Context, name string) ([]console.Finding, error) {
	return o.findings, o.call("check %s", name)
}

func (o *office) NewLink(_ context.Context, role access.Role, by string) (string, time.Time, error) {
	return "https://relay/login?code=x", time.Unix(1e9, 0), o.call("link %s by %s", role, by)
}

func (o *office) Rotate(context.Context) (int, error) { return 42, o.call("rotate") }

// newOffice returns two senders of a tenant behind an API, and its address.
func newOffice(t *testing.T) (*office, string) {
	t.Helper()
	o := &office{
		senders: []console.Sender{
			{Match: "*@contoso.com", Tenant: "contoso", State: console.SenderReady, Origin: console.OriginFile, Remaining: 9000},
			{
				Match: "erp@contoso.com", Tenant: "contoso", Login: "relay@contoso.com", State: console.SenderConsent, Origin: console.OriginPage, Queued: 3,
				Problem: &console.Problem{Text: "nobody has signed in\x1b " + strings.Repeat("x", 100)},
			},
		},
		tenants: []console.Tenant{
			{Name: "contoso", Grant: "delegated", Credential: "client_secret", Senders: 2, Origin: "page", RedirectURI: "https://relay/oauth/callback", CredentialExpires: time.Date(2027, 12, 31, 0, 0, 0, 0, time.UTC)},
			{Name: "fabrikam", Grant: "client_credentials", Credential: "none", Origin: "file", Problem: &console.Problem{Text: "the secret has expired"}},
		},
	}
	return o, serveAPI(t, api.Options{Messages: &mailroom{}, Console: o, Links: o, Vault: o})
}

func jsonLines[T any](t *testing.T, text string) (list []T) {
	t.Helper()
	for line := range strings.Lines(text) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, v)
	}
	return list
}

func TestSenderList(t *testing.T) {
	o, url := newOffice(t)
	stdout, stderr, err := relaydCommand(t, "", newSenderCommand(), "list", "--api", url)
	lines := strings.Split(stdout, "\n")
	if err != nil || stderr != "" || len(lines) != 4 {
		t.Fatalf("got %q, %q, %v", stdout, stderr, err)
	}
	if want := []string{"*@contoso.com", "contoso", "-", "ready", "0", "9000", "file"}; !slices.Equal(strings.Fields(lines[1]), want) {
		t.Errorf("got %q", lines[1])
	}
	if !strings.Contains(lines[2], `nobody has signed in\x1b xxx`) || !strings.HasSuffix(lines[2], "x…") {
		t.Errorf("got %q", lines[2])
	}
	stdout, _, err = relaydCommand(t, "", newSenderCommand(), "list", "--json", "--state", "consent", "--text", "erp", "--tenant", "contoso", "--api", url)
	if got := jsonLines[console.Sender](t, stdout); err != nil || len(got) != 1 || got[0].Match != "erp@contoso.com" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, stderr, err = relaydCommand(t, "", newSenderCommand(), "list", "--state", "held", "--api", url); err != nil || stderr != "no sender fits\n" {
		t.Errorf("got %q, %v", stderr, err)
	}
	o.senders = nil
	for i := range 2*pageSize + 1 {
		o.senders = append(o.senders, console.Sender{Match: fmt.Sprintf("s%04d@contoso.com", i)})
	}
	for limit, want := range map[int]int{0: 2*pageSize + 1, 7: 7, pageSize + 3: pageSize + 3, 5000: 2*pageSize + 1} {
		stdout, stderr, err := relaydCommand(t, "", newSenderCommand(), "list", "--json", "--limit", fmt.Sprint(limit), "--api", url)
		seen := map[string]bool{}
		for _, s := range jsonLines[console.Sender](t, stdout) {
			seen[s.Match] = true
		}
		if more := strings.HasPrefix(stderr, "there are 1001; --limit N"); err != nil || len(seen) != want || more != (want < len(o.senders)) {
			t.Errorf("--limit %d: got %d, %q, %v", limit, len(seen), stderr, err)
		}
	}
}

func TestSenderAdd(t *testing.T) {
	o, url := newOffice(t)
	stdout, stderr, err := relaydCommand(t, "", newSenderCommand(), "add", "erp@contoso.com", "--tenant", "contoso", "--login", "relay@contoso.com",
		"--connections", "2", "--messages-per-minute", "20", "--recipients-per-day", "500", "--fallback", "noreply@contoso.com", "--api", url)
	want := console.SenderInput{
		Match: "erp@contoso.com", Tenant: "contoso", Login: "relay@contoso.com", Connections: 2, MessagesPerMinute: 20, RecipientsPerDay: 500, Fallback: "noreply@contoso.com",
	}
	if err != nil || o.sender != want || stdout != "erp@contoso.com saved: consent\n" || !strings.Contains(stderr, "relayd sender authorize 'erp@contoso.com'") {
		t.Errorf("got %q, %q, %v, saved %+v", stdout, stderr, err, o.sender)
	}
	stdout, _, err = relaydCommand(t, "", newSenderCommand(), "add", "*@contoso.com", "--tenant", "contoso", "--replace", "--json", "--api", url)
	if got := jsonLines[console.Sender](t, stdout); err != nil || len(got) != 1 || got[0].State != "ready" {
		t.Errorf("got %+v, %v", got, err)
	}
	if want := []string{`save ""`, `save "*@contoso.com"`}; !slices.Equal(o.calls, want) {
		t.Errorf("got %q, want %q", o.calls, want)
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{console.Mistakes{{Field: "match", Text: "is no address"}, {Field: "tenant", Text: "is not there"}}, "add x@y.z: match: is no address; tenant: is not there"},
		{console.ErrFile, "add x@y.z: it stands in the configuration file, so it can only be changed there"},
	} {
		o.err = tt.err
		if _, _, err := relaydCommand(t, "", newSenderCommand(), "add", "x@y.z", "--tenant", "y", "--api", url); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func TestSenderActs(t *testing.T) {
	o, url := newOffice(t)
	run := func(args ...string) (string, string, error) {
		t.Helper()
		o.calls = nil
		return relaydCommand(t, "", newSenderCommand(), append(args, "--api", url)...)
	}
	for name, done := range map[string]string{"remove": "removed", "revoke": "revoked", "pause": "paused", "resume": "resumed"} {
		args := []string{name, "*@contoso.com", "erp@contoso.com"}
		if name == "remove" || name == "revoke" {
			if _, _, err := run(args...); err == nil || !strings.Contains(err.Error(), "no terminal to ask on; add --yes") || o.calls != nil {
				t.Errorf("%s without --yes: got %v after %v", name, err, o.calls)
			}
			args = append(args, "--yes")
		}
		stdout, stderr, err := run(args...)
		if want := "*@contoso.com " + done + "\nerp@contoso.com " + done + "\n"; err != nil || stdout != want || stderr != "" {
			t.Errorf("%s: got %q, %q, %v", name, stdout, stderr, err)
		}
		if want := []string{name + " *@contoso.com", name + " erp@contoso.com"}; !slices.Equal(o.calls, want) {
			t.Errorf("%s: got %q", name, o.calls)
		}
	}
	if _, _, err := run("pause", "x@contoso.com"); err == nil || err.Error() != "pause x@contoso.com: there is no such tenant, sender or request" {
		t.Errorf("got %v", err)
	}
	stdout, stderr, err := run("pause", "x@contoso.com", "erp@contoso.com")
	if err == nil || err.Error() != "pause: 1 of 2 senders paused, the others not for the reasons above" || stdout != "erp@contoso.com paused\n" ||
		stderr != "x@contoso.com: there is no such tenant, sender or request\n" {
		t.Errorf("got %q, %q, %v", stdout, stderr, err)
	}
	stdout, _, err = run("pause", "x@contoso.com", "--json")
	if got := jsonLines[named](t, stdout); err == nil || len(got) != 1 || got[0] != (named{"x@contoso.com", false, "there is no such tenant, sender or request"}) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestSenderAuthorize(t *testing.T) {
	o, url := newOffice(t)
	o.device = console.Device{ID: "d/1", UserCode: "ABCD-EFGH", VerificationURI: "https://microsoft.com/devicelogin", Expires: time.Now().Add(time.Hour), State: "pending"}
	pending, done := o.device, o.device
	done.State, done.User = "done", "erp@contoso.com\x1b"
	failed := o.device
	failed.State, failed.Problem = "failed", &console.Problem{Text: "AADSTS65004", Cause: "consent was declined", Advice: "Sign in again,\nand accept."}
	authorize := func(args ...string) (string, string, error) {
		t.Helper()
		return relaydCommand(t, "", newSenderCommand(), append([]string{"authorize", "erp@contoso.com", "--api", url}, args...)...)
	}

	o.story = []console.Device{pending, {}, done}
	stdout, stderr, err := authorize()
	if err != nil || stderr != "" || !strings.HasPrefix(stdout, "Open https://microsoft.com/devicelogin in any browser, enter the code ABCD-EFGH") ||
		!strings.HasSuffix(stdout, "\n"+`erp@contoso.com\x1b has signed in: erp@contoso.com may send`+"\n") {
		t.Errorf("got %q, %q, %v", stdout, stderr, err)
	}
	o.story = []console.Device{failed}
	stdout, _, err = authorize()
	if want := "authorize erp@contoso.com: not signed in: AADSTS65004: consent was declined\nadvice: Sign in again,\n        and accept."; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if strings.Contains(stdout, "has signed in") {
		t.Errorf("got %q", stdout)
	}
	stdout, _, err = authorize("--json")
	if got := jsonLines[console.Device](t, stdout); err == nil || len(got) != 2 || got[0].State != "pending" || got[1].State != "failed" {
		t.Errorf("got %+v, %v", got, err)
	}
	o.story = nil
	if _, _, err = authorize(); err == nil || err.Error() != "authorize erp@contoso.com: there is no such tenant, sender or request" {
		t.Errorf("a sign-in that is not there: got %v", err)
	}
	o.device.Expires = time.Now().Add(-2 * time.Minute)
	if _, _, err = authorize(); err == nil || err.Error() != "authorize erp@contoso.com: nobody has signed in before the code expired; start anew" {
		t.Errorf("expired: got %v", err)
	}

	stdout, stderr, err = authorize("--link")
	if err != nil || stdout != `https://relay/consent/x\x1b`+"\n" || !strings.HasPrefix(stderr, "for the owner of a@contoso.com, once, until 20") {
		t.Errorf("got %q, %q, %v", stdout, stderr, err)
	}
	stdout, _, err = authorize("--link", "--json")
	if got := jsonLines[console.Invitation](t, stdout); err != nil || len(got) != 1 || got[0].URL != "https://relay/consent/x\x1b" {
		t.Errorf("got %+v, %v", got, err)
	}
	o.err = status.New(550, status.Enhanced{}, "this sender needs no sign-in")
	for _, args := range [][]string{nil, {"--link"}} {
		if _, _, err := authorize(args...); err == nil || err.Error() != "authorize erp@contoso.com: 550 this sender needs no sign-in" {
			t.Errorf("%v: got %v", args, err)
		}
	}
}

// Ctrl-C ends the waiting.
func TestSenderAuthorizeInterrupted(t *testing.T) {
	o, url := newOffice(t)
	o.device = console.Device{ID: "d", State: "pending", Expires: time.Now().Add(time.Hour)}
	o.story = []console.Device{o.device}
	ctx, cancel := context.WithCancel(t.Context())
	root := &cobra.Command{Use: "relayd", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(newSenderCommand())
	root.SetArgs([]string{"sender", "authorize", "erp@contoso.com", "--api", url})
	root.SetOut(writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }))
	if err := root.ExecuteContext(ctx); err == nil || !strings.HasPrefix(err.Error(), "authorize erp@contoso.com: interrupted") {
		t.Errorf("got %v", err)
	}
}

func TestSenderUsage(t *testing.T) {
	for args, want := range map[string]string{
		"list extra":                    `takes no argument, not "extra"`,
		"list --state lost":             `--state "lost" is no state; there are ready, consent,`,
		"list --limit -1":               "--limit -1 is less than none",
		"add":                           "accepts 1 arg(s)",
		"add a@b.c":                     "sender add needs --tenant",
		"add nobody --tenant t":         `"nobody" is no sender`,
		"pause nobody":                  `"nobody" is no sender`,
		"authorize nobody":              `"nobody" is no sender`,
		"add a@b.c --tenant t --api x":  "is no address of a relay",
		"remove":                        "requires at least 1 arg(s)",
		"pause":                         "requires at least 1 arg(s)",
		"authorize":                     "accepts 1 arg(s)",
		"authorize a@b.c x":             "accepts 1 arg(s)",
		"revoke a@b.c --yes --nonsense": "unknown flag",
	} {
		if _, _, err := relaydCommand(t, "", newSenderCommand(), strings.Fields(args)...); !isUsage(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("sender %s: got %v, want %q", args, err, want)
		}
	}
	if _, _, err := relaydCommand(t, "", newSenderCommand(), "pause", " "); !isUsage(err) {
		t.Errorf("an empty name: got %v", err)
	}
	if stdout, _, err := relaydCommand(t, "", newSenderCommand()); err != nil || !strings.Contains(stdout, "authorize") {
		t.Errorf("help: got %q, %v", stdout, err)
	}
}
