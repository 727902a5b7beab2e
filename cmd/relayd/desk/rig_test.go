package desk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"relayd/cmd/relayd/registry"
	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/config"
	"relayd/pkg/dispatch"
	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/grant"
	"relayd/pkg/envelope"
	"relayd/pkg/live"
	"relayd/pkg/queue"
	"relayd/pkg/status"
)

// canary is in every secret of these tests.
const canary = "canary-8Q~aZ"

// records is a kind of the vault in memory.
type records struct {
	*grant.Memory
	mu   sync.Mutex // guards fail
	fail error      // of Put and Delete
}

func newRecords() *records { return &records{Memory: grant.NewMemory()} }

func (r *records) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fail
}

func (r *records) Put(ctx context.Context, name string, data []byte, revision uint64) (uint64, error) {
	if err := r.failure(); err != nil {
		return 0, err
	}
	return r.Memory.Put(ctx, name, data, revision)
}

func (r *records) Delete(ctx context.Context, name string) error {
	if err := r.failure(); err != nil {
		return err
	}
	return r.Memory.Delete(ctx, name)
}

func (r *records) Watch(ctx context.Context, _ func(string)) error { <-ctx.Done(); return nil }

// world is a desk and everything around it.
type world struct {
	*Desk
	t      *testing.T
	events []string // what was done, in order
	logs   *observer.ObservedLogs

	file     *config.Config
	x        *config.Extended
	registry *registry.Registry
	tenants  *records
	senders  *records
	applied  error // of Apply

	waiting  []queue.Waiting
	tally    map[envelope.State]queue.Tally
	infos    map[envelope.ID]queue.Info
	notReady error

	boxes  []dispatch.Mailbox
	probed []string

	grants    []grant.Grant
	tokenFail error // of Grants, Adopt, Forget and Check
	expires   time.Time
	refused   *status.Error

	consents fakeConsents
	live     *live.Log

	entries   []console.Entry
	auditFail error
	examine   func(ctx context.Context, sender envelope.Address, found func(console.Finding)) error
}

type fakeConsents struct {
	asked   []consent.Request
	fail    error
	result  consent.Result
	device  consent.Device
	invited consent.Invitation
	ended   []string // tenant/login of withdrawn links
}

func (c *fakeConsents) Withdraw(_ context.Context, tenant, login string) error {
	c.ended = append(c.ended, tenant+"/"+login)
	return nil
}

const fileText = `
hostname: relay.contoso.com
listeners: [{address: ":2525"}]
tenants:
  - {name: filed, tenant_id: 11111111-1111-1111-1111-111111111111, client_id: 22222222-2222-2222-2222-222222222222, client_secret: "env:SECRET", credential_expires: 2040-01-31}
senders:
  - {address: filed@contoso.com, tenant: filed}
  - {match: "*@fabrikam.com", tenant: filed, recipients_per_day: 500}
`

func newWorld(t *testing.T) *world { return newWorldOf(t, fileText) }

func newWorldOf(t *testing.T, text string) *world {
	t.Helper()
	file, _, err := config.Parse("relayd.yaml", []byte(text), []string{"SECRET=" + canary})
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	w := &world{t: t, logs: logs, file: file, tenants: newRecords(), senders: newRecords(), infos: map[envelope.ID]queue.Info{},
		live: live.New(live.Options{Memory: noMemory{}, Logger: zap.NewNop()}), tally: map[envelope.State]queue.Tally{}}
	w.registry = registry.New(w.tenants, w.senders, newRecords())
	w.Desk = New(Options{
		Registry: w.registry, Config: func() *config.Extended { return w.x },
		Apply: func(context.Context) error {
			if w.applied != nil {
				return w.applied
			}
			w.extend()
			w.events = append(w.events, "apply")
			return nil
		},
		Reload: func() console.Reload { return console.Reload{At: time.Unix(1, 0), Errors: []string{"bad"}} },
		Settings: func() []console.Setting {
			return []console.Setting{{Key: "hostname", Value: "relay.contoso.com", Source: "file:2"}}
		},
		Warnings: func() []string { return []string{"odd"} },
		Queue:    w, Dispatcher: w, Tokens: fakeTokens{w}, Consents: &w.consents, Live: w.live, Audit: fakeAudit{w},
		Examine: func(ctx context.Context, sender envelope.Address, found func(console.Finding)) error {
			return w.examine(ctx, sender, found)
		},
		BaseURL: func() string { return "https://relay.contoso.com" }, File: "/etc/relayd.yaml", Version: "v1", Started: time.Unix(5, 0),
		Logger: zap.New(core),
	})
	w.extend()
	return w
}

func (w *world) extend() { w.x = w.file.Extend(w.registry.Content().Added()) }

// changeFile puts another file in force.
func (w *world) changeFile(old, by string) {
	w.t.Helper()
	text := strings.Replace(fileText, old, by, 1)
	file, _, err := config.Parse("relayd.yaml", []byte(text), []string{"SECRET=" + canary})
	if err != nil || text == fileText {
		w.t.Fatal("no other file", err)
	}
	w.file = file
	w.extend()
}

type noMemory struct{}

func (noMemory) Recall(context.Context) (map[string][]byte, error) { return nil, nil }
func (noMemory) Remember(context.Context, string, []byte) error    { return nil }

func (w *world) Waiting() []queue.Waiting               { return w.waiting }
func (w *world) Tally() map[envelope.State]queue.Tally  { return w.tally }
func (w *world) Info(id envelope.ID) (queue.Info, bool) { i, ok := w.infos[id]; return i, ok }
func (w *world) Ready() error                           { return w.notReady }
func (w *world) Mailboxes() []dispatch.Mailbox          { return w.boxes }
func (w *world) Probe(tenant, login string)             { w.probed = append(w.probed, tenant+"/"+login) }

type fakeTokens struct{ w *world }

func (f fakeTokens) Grants(context.Context) ([]grant.Grant, error) {
	safe := make([]grant.Grant, len(f.w.grants))
	for i, g := range f.w.grants {
		safe[i] = g.Safe()
	}
	return safe, f.w.tokenFail
}

func (f fakeTokens) Adopt(_ context.Context, g grant.Grant) error {
	if f.w.tokenFail != nil {
		return f.w.tokenFail
	}
	f.w.events = append(f.w.events, "adopt")
	f.w.grants = append(f.w.grants, g)
	return nil
}

func (f fakeTokens) Forget(_ context.Context, tenant, login string) error {
	if f.w.tokenFail != nil {
		return f.w.tokenFail
	}
	f.w.events = append(f.w.events, "forget "+tenant+"/"+login)
	f.w.grants = slices.DeleteFunc(f.w.grants, func(g grant.Grant) bool { return g.Tenant == tenant && strings.EqualFold(g.Login, login) })
	return nil
}

func (f fakeTokens) Status(string) (time.Time, *status.Error) { return f.w.expires, f.w.refused }
func (f fakeTokens) Check(context.Context, string) error      { return f.w.tokenFail }
func (f fakeTokens) Advice(rule string) (cause, advice string) {
	return "cause of " + rule, "advice of " + rule
}

func (c *fakeConsents) ask(r consent.Request) (string, error) {
	if c.fail != nil {
		return "", c.fail
	}
	c.asked = append(c.asked, r)
	return "https://login.example/authorize?state=" + canary, nil
}

func (c *fakeConsents) Start(_ context.Context, r consent.Request) (string, error) { return c.ask(r) }
func (c *fakeConsents) StartAdmin(_ context.Context, tenant, session string) (string, error) {
	return c.ask(consent.Request{Tenant: tenant, Session: session})
}
func (c *fakeConsents) Finish(context.Context, consent.Callback) (consent.Result, error) {
	return c.result, c.fail
}
func (c *fakeConsents) StartDevice(_ context.Context, r consent.Request) (consent.Device, error) {
	_, err := c.ask(r)
	return c.device, err
}
func (c *fakeConsents) Device(_ context.Context, id string) (consent.Device, error) {
	if id != c.device.ID {
		return consent.Device{}, consent.ErrDevice
	}
	return c.device, c.fail
}
func (c *fakeConsents) Invite(_ context.Context, r consent.Request, life time.Duration) (consent.Invitation, error) {
	_, err := c.ask(r)
	c.invited = consent.Invitation{Code: canary + "-code", Tenant: r.Tenant, Sender: r.Sender, Login: r.Login, Expires: time.Now().Add(life)}
	return c.invited, err
}
func (c *fakeConsents) Invitation(_ context.Context, code string) (consent.Invitation, error) {
	if code != c.invited.Code || code == "" {
		return consent.Invitation{}, consent.ErrInvitation
	}
	return c.invited, nil
}
func (c *fakeConsents) Accept(_ context.Context, _, session string) (string, error) {
	return c.ask(consent.Request{Sender: c.invited.Sender, Session: session})
}

type fakeAudit struct{ w *world }

func (f fakeAudit) Write(_ context.Context, e console.Entry) error {
	if f.w.auditFail != nil {
		return f.w.auditFail
	}
	f.w.entries = append(f.w.entries, e)
	f.w.events = append(f.w.events, "audit "+e.What)
	return nil
}

func (f fakeAudit) List(_ context.Context, before uint64, limit int) ([]console.Entry, error) {
	return f.w.entries[:min(limit, len(f.w.entries))], f.w.auditFail
}

// ops is a context of an operator.
func ops(t *testing.T) context.Context {
	return access.With(t.Context(), &access.Principal{Name: "ops@contoso.com", Peer: "192.0.2.7", Scopes: access.Admin.Scopes(), Session: "s1"})
}

func tenantInput(name string) console.TenantInput {
	return console.TenantInput{Name: name, TenantID: "33333333-3333-3333-3333-333333333333", ClientID: "44444444-4444-4444-4444-444444444444",
		Grant: "delegated", ClientSecret: canary + "-secret", CredentialExpires: "2041-02-03"}
}

func (w *world) addTenant(in console.TenantInput) {
	w.t.Helper()
	if err := w.SaveTenant(ops(w.t), "", in); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) addSender(in console.SenderInput) {
	w.t.Helper()
	if err := w.SaveSender(ops(w.t), "", in); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) sender1(match string) *console.Sender {
	w.t.Helper()
	s, err := w.Sender(w.t.Context(), match)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// last is the last entry of the audit log.
func (w *world) last() console.Entry {
	w.t.Helper()
	if len(w.entries) == 0 {
		w.t.Fatal("the audit log is empty")
	}
	return w.entries[len(w.entries)-1]
}

// noCanary looks at all views, the audit log, the log, and more.
func (w *world) noCanary(more ...any) {
	w.t.Helper()
	ctx := w.t.Context()
	tenants, err1 := w.Tenants(ctx)
	senders, err2 := w.Senders(ctx, console.SenderQuery{})
	overview, err3 := w.Overview(ctx)
	settings, err4 := w.Configuration(ctx)
	for i, all := range append(more, tenants, senders, overview, settings, w.entries, w.logs.All(), err1, err2, err3, err4) {
		if text := fmt.Sprintf("%+v", all) + deep(all); strings.Contains(text, canary) {
			w.t.Errorf("a secret is in view %d: %s", i, text)
		}
	}
}

// deep follows pointers of the views that have some.
func deep(v any) string {
	var b strings.Builder
	problem := func(p *console.Problem) {
		if p != nil {
			fmt.Fprintf(&b, "%+v", *p)
		}
	}
	switch all := v.(type) {
	case []console.Tenant:
		for _, t := range all {
			problem(t.Problem)
		}
	case *console.SenderPage:
		if all != nil {
			for _, s := range all.Senders {
				problem(s.Problem)
				if s.Consent != nil {
					fmt.Fprintf(&b, "%+v", *s.Consent)
					problem(s.Consent.Problem)
				}
			}
		}
	}
	return b.String()
}

func mistakesOf(t *testing.T, err error, fields ...string) {
	t.Helper()
	wrong, ok := errors.AsType[console.Mistakes](err)
	if !ok {
		t.Fatalf("got %v, want mistakes", err)
	}
	got := map[string]bool{}
	for _, m := range wrong {
		got[m.Field] = true
	}
	want := map[string]bool{}
	for _, f := range fields {
		want[f] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("mistakes in %v, want %v: %v", got, want, err)
	}
}
