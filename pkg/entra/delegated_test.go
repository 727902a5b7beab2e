package entra

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/entra/catalogue"
	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

const owner = "a@contoso.com"

// issuer is a token endpoint that revokes a refresh token the moment it is used.
type issuer struct {
	endpoint

	state  sync.Mutex // guards what follows
	valid  map[string]bool
	n      int           // answers given
	slow   time.Duration // before each answer
	refuse func(w http.ResponseWriter) bool
}

func (i *issuer) serve(_ int, w http.ResponseWriter) {
	i.mu.Lock()
	form := i.requests[len(i.requests)-1]
	i.mu.Unlock()
	i.state.Lock()
	slow := i.slow
	i.state.Unlock()
	if slow > 0 {
		advance(slow)
	}
	i.state.Lock()
	defer i.state.Unlock()
	if i.refuse != nil && i.refuse(w) {
		return
	}
	if form.Get("grant_type") == "client_credentials" {
		i.n++
		give(w, fmt.Sprintf("app-%d", i.n), "3600")
		return
	}
	used := form.Get("refresh_token")
	if !i.valid[used] {
		refuse(w, 400, "invalid_grant", "70000")
		return
	}
	delete(i.valid, used)
	i.n++
	next := fmt.Sprintf("refresh-%d", i.n)
	i.valid[next] = true
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token_type":"Bearer","expires_in":3600,"access_token":"access-%d","refresh_token":%q}`, i.n, next)
}

func (i *issuer) set(f func()) {
	i.state.Lock()
	defer i.state.Unlock()
	f()
}

// faulty is Records that fail on demand.
type faulty struct {
	*grant.Memory
	mu  sync.Mutex
	get func() error // nil: none fails
	put func(data []byte) error
}

func (f *faulty) set(get func() error, put func([]byte) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.get, f.put = get, put
}

func (f *faulty) Get(ctx context.Context, name string) ([]byte, uint64, error) {
	f.mu.Lock()
	get := f.get
	f.mu.Unlock()
	if get != nil {
		if err := get(); err != nil {
			return nil, 0, err
		}
	}
	return f.Memory.Get(ctx, name)
}

func (f *faulty) Put(ctx context.Context, name string, data []byte, revision uint64) (uint64, error) {
	f.mu.Lock()
	put := f.put
	f.mu.Unlock()
	if put != nil {
		if err := put(data); err != nil {
			return 0, err
		}
	}
	return f.Memory.Put(ctx, name, data, revision)
}

// cluster is nodes that share records, on fake time.
type cluster struct {
	*issuer
	nodes   []*Tokens
	records []*faulty
	memory  *grant.Memory
	logs    *observer.ObservedLogs
	metrics *prometheus.Registry // of the first
}

func delegated() Tenant {
	tenant := contoso()
	tenant.Delegated = true
	return tenant
}

func clustered(t *testing.T, nodes int, tenant Tenant, f func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{endpoint: endpoint{conns: make(chan net.Conn)}, valid: map[string]bool{"refresh-0": true}}
		i.answer = i.serve
		server := &http.Server{Handler: i}
		go func() { _ = server.Serve(i) }()
		core, logs := observer.New(zap.DebugLevel)
		c := &cluster{issuer: i, memory: grant.NewMemory(), logs: logs, metrics: prometheus.NewRegistry()}
		for n := range nodes {
			records := &faulty{Memory: c.memory}
			options := Options{Tenants: map[string]Tenant{"contoso": tenant}, Dial: i.dial, Logger: zap.New(core), Records: records,
				Node: fmt.Sprint("node-", n)}
			if n == 0 {
				options.Registerer = c.metrics
			}
			tokens, err := New(options)
			if err != nil {
				t.Fatal(err)
			}
			c.nodes, c.records = append(c.nodes, tokens), append(c.records, records)
		}
		f(t, c)
		for _, tokens := range c.nodes {
			tokens.Close()
		}
		close(i.conns)
		_ = server.Close()
		advance(2 * time.Hour)
	})
}

func (c *cluster) adopt(t *testing.T, refresh string) {
	t.Helper()
	err := c.nodes[0].Adopt(t.Context(), grant.Grant{Tenant: "contoso", Login: "A@Contoso.com", ClientID: "app", TenantID: "0000-aaaa",
		User: owner, Granted: time.Now(), Refresh: refresh})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) want(t *testing.T, node int, refused, want string) {
	t.Helper()
	got, err := c.nodes[node].Token(t.Context(), "contoso", owner, refused)
	if err != nil || got != want {
		t.Errorf("node %d: got %q, %v (%v), want %q", node, got, err, errors.Unwrap(err), want)
	}
}

func (c *cluster) fails(t *testing.T, node int, rule string, action status.Action) *status.Error {
	t.Helper()
	got, err := c.nodes[node].Token(t.Context(), "contoso", owner, "")
	e, ok := errors.AsType[*status.Error](err)
	if !ok || e.Rule != rule || e.Action != action || e.Stage != status.StageToken {
		t.Fatalf("node %d: got %q, %v (%v), want %s, %v", node, got, err, errors.Unwrap(err), rule, action)
	}
	return e
}

func (c *cluster) stored(t *testing.T) *grant.Grant {
	t.Helper()
	g, _, err := grant.Load(t.Context(), c.memory, grant.Name("contoso", owner))
	if err != nil || g == nil {
		t.Fatalf("stored grant: %v, %v", g, err)
	}
	return g
}

// all has 100 callers on each node ask at once, all of whom must get want.
func (c *cluster) all(t *testing.T, refused, want string) {
	t.Helper()
	var wg sync.WaitGroup
	for n := range c.nodes {
		for range 100 {
			wg.Go(func() { c.want(t, n, refused, want) })
		}
	}
	wg.Wait()
}

func TestRefreshRequest(t *testing.T) {
	clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		c.want(t, 0, "", "access-1")
		want := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"refresh-0"}, "client_id": {"app"}, "client_secret": {canary},
			"scope": {"https://outlook.office.com/SMTP.Send offline_access"}}
		if got := c.requests[0]; got.Encode() != want.Encode() {
			t.Errorf("got %v, want %v", got, want)
		}
		g := c.stored(t)
		if g.Refresh != "refresh-1" || g.Access != "access-1" || g.Holder != "" || !g.Until.IsZero() || !g.Used.Equal(time.Now()) {
			t.Errorf("stored %#v: %+v", g, *g)
		}
		text := fmt.Sprintf(`
# HELP relayd_consent_expiry_timestamp_seconds When the mailbox's refresh token expires if it is not used until then.
# TYPE relayd_consent_expiry_timestamp_seconds gauge
relayd_consent_expiry_timestamp_seconds{sender=%q} %g
`, owner, float64(g.Used.Add(grant.IdleLife).Unix()))
		if err := testutil.GatherAndCompare(c.metrics, strings.NewReader(text), "relayd_consent_expiry_timestamp_seconds"); err != nil {
			t.Error(err)
		}
	})
}

// TestTwoNodes: 200 callers on two nodes are one request, at the first token, at each expiry and at a refusal, with an issuer
// that revokes each refresh token when it is used.
func TestTwoNodes(t *testing.T) {
	clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
		c.set(func() { c.slow = 3 * time.Second })
		c.adopt(t, "refresh-0")
		for n := 1; n <= 5; n++ {
			c.all(t, "", fmt.Sprintf("access-%d", n))
			if got := c.count(); got != n {
				t.Fatalf("got %d requests after %d expiries, want as many", got, n)
			}
			advance(time.Hour)
		}
		c.all(t, "", "access-6")
		c.all(t, "access-6", "access-7")
		c.all(t, "access-6", "access-7") // stragglers
		if got := c.count(); got != 7 {
			t.Errorf("got %d requests, want 7", got)
		}
		if g := c.stored(t); g.Refresh != "refresh-7" || g.Dead != "" {
			t.Errorf("stored %+v", *g)
		}
	})
}

func TestTwoNodesShareTheApplicationsToken(t *testing.T) {
	clustered(t, 2, contoso(), func(t *testing.T, c *cluster) {
		c.set(func() { c.slow = 3 * time.Second })
		for n := 1; n <= 3; n++ {
			c.all(t, "", fmt.Sprintf("app-%d", n))
			if got := c.count(); got != n {
				t.Fatalf("got %d requests after %d expiries, want as many", got, n)
			}
			advance(time.Hour)
		}
		if all, err := c.nodes[0].Grants(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("the application's token is listed as a grant: %v, %v", all, err)
		}
		for _, records := range c.records { // without the store each node fetches its own
			records.set(func() error { return errors.New("away") }, nil)
		}
		c.want(t, 0, "", "app-4")
		c.want(t, 1, "", "app-5")
	})
}

// TestHolderDies: the lease of a node that is gone ends by itself, and the stored refresh token still serves.
func TestHolderDies(t *testing.T) {
	clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		for _, until := range []time.Duration{40 * time.Second, 1000 * time.Hour} { // the second by a clock that is far ahead
			g := c.stored(t)
			_, revision, _ := c.memory.Get(t.Context(), grant.Name("contoso", owner))
			g.Holder, g.Until, g.Access = "dead/1", time.Now().Add(until), ""
			if _, err := grant.Store(t.Context(), c.memory, grant.Name("contoso", owner), g, revision); err != nil {
				t.Fatal(err)
			}
			begun, before := time.Now(), c.count()
			c.nodes[0].reset(grant.Name("contoso", owner))
			c.nodes[1].reset(grant.Name("contoso", owner))
			c.all(t, "", fmt.Sprintf("access-%d", before+1))
			if got, most := time.Since(begun), 56*time.Second; got < 40*time.Second || got > most {
				t.Errorf("took over after %v, want from 40 s to %v", got, most)
			}
			if got := c.count(); got != before+1 {
				t.Errorf("got %d requests, want one", got-before)
			}
		}
	})
}

// TestStoreFails: what cannot be stored is handed to nobody, and kept until it can.
func TestStoreFails(t *testing.T) {
	clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		c.records[0].set(nil, func(data []byte) error {
			if strings.Contains(string(data), "access-1") {
				return errors.New("disk full")
			}
			return nil
		})
		impatient, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if tok, err := c.nodes[0].Token(impatient, "contoso", owner, ""); err == nil {
			t.Errorf("got %q before it was stored", tok)
		}
		c.records[0].set(nil, nil)
		c.all(t, "", "access-1")
		if g := c.stored(t); g.Refresh != "refresh-1" || c.count() != 1 {
			t.Errorf("stored %+v after %d requests", *g, c.count())
		}
		var lost atomic.Int32 // stores that went well and whose answer was lost
		c.records[0].set(nil, func(data []byte) error {
			if strings.Contains(string(data), "access-2") && lost.Add(1) == 1 {
				_, revision, _ := c.memory.Get(context.Background(), grant.Name("contoso", owner))
				_, _ = c.memory.Put(context.Background(), grant.Name("contoso", owner), data, revision)
				return errors.New("timeout")
			}
			return nil
		})
		advance(time.Hour)
		c.want(t, 0, "", "access-2")
		c.want(t, 1, "", "access-2")
		if c.count() != 2 || lost.Load() == 0 {
			t.Errorf("got %d requests, want 2", c.count())
		}
	})
}

// TestLostTouch: a node that cannot store what it was answered while another takes over, is refused the spent refresh token,
// and calls the grant dead: the answer overrules the refusal.
func TestLostTouch(t *testing.T) {
	clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		c.records[0].set(nil, func(data []byte) error {
			if strings.Contains(string(data), "access-1") {
				return errors.New("partition")
			}
			return nil
		})
		var wg sync.WaitGroup
		wg.Go(func() { c.want(t, 0, "", "access-1") })
		synctest.Wait()
		advance(2 * time.Minute)
		if e := c.fails(t, 1, "refresh-token-gone", status.ParkSender); !strings.Contains(e.Advice, "relayd sender authorize "+owner) {
			t.Errorf("got advice %q", e.Advice)
		}
		if g := c.stored(t); g.Dead == "" || g.DeadAt.IsZero() || !strings.Contains(g.Reason, "invalid_grant") {
			t.Errorf("stored %+v, want a dead grant", *g)
		}
		c.records[0].set(nil, nil)
		wg.Wait()
		if g := c.stored(t); g.Dead != "" || g.Refresh != "refresh-1" {
			t.Errorf("stored %+v, want it alive", *g)
		}
		advance(2 * time.Second)
		c.want(t, 1, "", "access-1")
		advance(time.Hour)
		c.all(t, "", "access-2")
	})
}

func TestDeadAndAdopted(t *testing.T) {
	clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
		e := c.fails(t, 0, "no-consent", status.ParkSender)
		if !strings.Contains(e.Advice, "relayd sender authorize "+owner) || !strings.Contains(e.Advice, "Senders") || strings.Contains(e.Text, owner) || e.Code != 535 {
			t.Errorf("got %+v", e)
		}
		c.adopt(t, "spent")
		c.fails(t, 0, "refresh-token-gone", status.ParkSender) // at once: nothing is held against a new grant
		if got := c.count(); got != 1 {
			t.Errorf("got %d requests, want 1", got)
		}
		advance(time.Hour)
		e = c.fails(t, 1, "refresh-token-gone", status.ParkSender)
		if e.Cause == "" || c.count() != 1 {
			t.Errorf("%d requests with a dead grant; %+v", c.count(), e)
		}
		g, ok, err := c.nodes[1].Grant(t.Context(), "contoso", "A@contoso.com")
		if err != nil || !ok || g.Dead != "refresh-token-gone" || g.Refresh != "" || g.Access != "" || g.User != owner {
			t.Errorf("got %+v, %v, %v", g, ok, err)
		}
		if got := testutil.CollectAndCount(c.nodes[0].metrics.consent); got != 0 {
			t.Errorf("%d series of a dead consent", got)
		}
		advance(time.Second)
		c.adopt(t, "refresh-0")
		c.want(t, 0, "", "access-1")
		advance(2 * time.Second)
		c.want(t, 1, "", "access-1")
		if err := c.nodes[0].Forget(t.Context(), "contoso", owner); err != nil {
			t.Fatal(err)
		}
		c.fails(t, 0, "no-consent", status.ParkSender)
		if all, err := c.nodes[1].Grants(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("got %v, %v", all, err)
		}
	})
}

// TestAdoptedMeanwhile: a grant that comes while the old one is being refused, or refreshed, is what all get.
func TestAdoptedMeanwhile(t *testing.T) {
	for _, old := range []string{"spent", "refresh-0"} {
		clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
			c.set(func() { c.slow, c.valid["fresh"] = 10*time.Second, true })
			c.adopt(t, old)
			var wg sync.WaitGroup
			wg.Go(func() {
				advance(5 * time.Second)
				c.adopt(t, "fresh")
			})
			want := map[string]string{"spent": "access-1", "refresh-0": "access-2"}[old]
			c.all(t, "", want)
			wg.Wait()
			if g := c.stored(t); g.Dead != "" || g.Access != want {
				t.Errorf("stored %+v", *g)
			}
			if got := c.count(); got != 2 {
				t.Errorf("got %d requests, want one for each grant", got)
			}
		})
	}
}

// TestTemporaryRefusalKeepsTheGrant: only a refusal that says so ends a grant.
func TestTemporaryRefusalKeepsTheGrant(t *testing.T) {
	tests := []struct {
		http        int
		error, code string
		rule        string
		action      status.Action
		dead        bool
	}{
		{503, "", "", "unavailable", status.Retry, false},
		{401, "invalid_client", "7000222", "secret-expired", status.ParkTenant, false},
		{400, "invalid_grant", "50053", "account-locked", status.ParkSender, false},
		{400, "interaction_required", "53003", "conditional-access", status.ParkSender, false},
		{400, "invalid_grant", "700082", "refresh-token-gone", status.ParkSender, true},
		{400, "invalid_grant", "50173", "refresh-token-gone", status.ParkSender, true},
		{400, "invalid_grant", "", "sign-in-needed", status.ParkSender, true},
		{400, "interaction_required", "50076", "mfa-required", status.ParkSender, true},
		{400, "invalid_grant", "65001", "consent-needed", status.ParkSender, true},
		{400, "consent_required", "", "consent-needed", status.ParkSender, true},
	}
	for _, tt := range tests {
		clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
			c.adopt(t, "refresh-0")
			c.set(func() {
				c.refuse = func(w http.ResponseWriter) bool { refuse(w, tt.http, tt.error, tt.code); return true }
			})
			c.fails(t, 0, tt.rule, tt.action)
			g := c.stored(t)
			if (g.Dead != "") != tt.dead || tt.dead && g.Dead != tt.rule || g.Holder != "" || g.Refresh != "refresh-0" {
				t.Errorf("%s: stored %+v", tt.rule, *g)
			}
			_, problem := c.nodes[0].Status("contoso")
			if (problem != nil) != (tt.action == status.ParkTenant) {
				t.Errorf("%s: the tenant's problem is %v", tt.rule, problem)
			}
			c.set(func() { c.refuse = nil })
			advance(2 * time.Minute)
			if !tt.dead {
				c.want(t, 0, "", "access-1")
				if _, problem := c.nodes[0].Status("contoso"); problem != nil {
					t.Errorf("the problem outlived a success: %v", problem)
				}
			}
		})
	}
	for _, r := range catalogue.Builtin() { // the table above has them all
		if r.Person && r.Name != "consent-needed" {
			t.Errorf("no refusal for rule %s", r.Name)
		}
	}
}

// TestAnotherAuthority: a refresh token goes to nobody but who issued it.
func TestAnotherAuthority(t *testing.T) {
	clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		c.want(t, 0, "", "access-1")
		other := delegated()
		other.Authority = "http://127.0.0.2"
		if err := c.nodes[0].Configure(map[string]Tenant{"contoso": other}); err != nil {
			t.Fatal(err)
		}
		c.fails(t, 0, "consent-elsewhere", status.ParkSender)
		if c.count() != 1 {
			t.Error("another cloud was sent the refresh token")
		}
		if err := c.nodes[0].Configure(map[string]Tenant{"contoso": delegated()}); err != nil {
			t.Fatal(err)
		}
		c.want(t, 0, "", "access-1")
	})
}

// TestKeepAliveIsSpread: a thousand grants of one day are not due on one day.
func TestKeepAliveIsSpread(t *testing.T) {
	const third = grant.IdleLife / 3
	days := map[time.Duration]int{}
	for i := range 1000 {
		due := keepAlive(fmt.Sprintf("contoso mailbox%d@contoso.com", i))
		if due > third || due <= third-third/10 {
			t.Fatalf("due after %v, want at most a tenth before %v", due, third)
		}
		days[(third-due)/(24*time.Hour)]++
	}
	for day := range 3 {
		if n := days[time.Duration(day)]; n < 250 {
			t.Errorf("%d of 1000 are due %d days before the third, want about a third of them", n, day)
		}
	}
}

// TestGrantThatCannotBeRead: the others are listed all the same, and the error is told.
func TestGrantThatCannotBeRead(t *testing.T) {
	clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		if _, err := c.memory.Put(t.Context(), grant.Name("contoso", "b@contoso.com"), []byte("damaged"), 0); err != nil {
			t.Fatal(err)
		}
		if all, err := c.nodes[0].Grants(t.Context()); err == nil || len(all) != 1 || all[0].Login != owner {
			t.Errorf("got %v, %v, want the one that can be read, and an error", all, err)
		}
	})
}

func TestAnotherApplication(t *testing.T) {
	clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		other := delegated()
		other.ClientID = "other"
		if err := c.nodes[0].Configure(map[string]Tenant{"contoso": other}); err != nil {
			t.Fatal(err)
		}
		c.fails(t, 0, "consent-elsewhere", status.ParkSender)
		if c.count() != 0 {
			t.Error("another application's refresh token was sent")
		}
		if err := c.nodes[0].Configure(map[string]Tenant{"contoso": delegated()}); err != nil {
			t.Fatal(err)
		}
		c.want(t, 0, "", "access-1")
	})
}

func TestStoreAway(t *testing.T) {
	clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		c.records[0].set(func() error { return errors.New("sealed with a key that is not here") }, nil)
		if e := c.fails(t, 0, "grants-unavailable", status.Retry); !e.Temporary() || e.Advice == "" {
			t.Errorf("got %+v", e)
		}
		c.records[0].set(nil, nil)
		advance(2 * time.Second)
		c.want(t, 0, "", "access-1")
	})
}

// TestCloseHearsTheAnswer: a stop in the middle of a refresh loses no token.
func TestCloseHearsTheAnswer(t *testing.T) {
	clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
		c.set(func() { c.slow = 10 * time.Second })
		c.adopt(t, "refresh-0")
		var wg sync.WaitGroup
		wg.Go(func() { c.want(t, 0, "", "access-1") })
		synctest.Wait()
		c.nodes[0].Close()
		wg.Wait()
		c.want(t, 1, "", "access-1")
		if g := c.stored(t); g.Refresh != "refresh-1" || c.count() != 1 {
			t.Errorf("stored %+v after %d requests", *g, c.count())
		}
	})
}

// TestCloseWithoutStore: Close gives up in the end, and says what was lost.
func TestCloseWithoutStore(t *testing.T) {
	clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		c.records[0].set(nil, func(data []byte) error {
			if strings.Contains(string(data), "access-1") {
				return errors.New("away")
			}
			return nil
		})
		var wg sync.WaitGroup
		wg.Go(func() { c.fails(t, 0, "", status.Retry) })
		synctest.Wait()
		c.nodes[0].Close()
		wg.Wait()
		if c.logs.FilterMessageSnippet("is lost").Len() != 1 {
			t.Error("nothing says that a token was lost")
		}
	})
}

// TestKeepAlive: a grant that nobody uses lives on for 120 days, by a refresh every 27 to 30 days on one of two nodes.
func TestKeepAlive(t *testing.T) {
	clustered(t, 2, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, tokens := range c.nodes {
			wg.Go(func() {
				if err := tokens.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		advance(26 * 24 * time.Hour)
		if c.count() != 0 {
			t.Errorf("%d requests within 26 days", c.count())
		}
		advance(94 * 24 * time.Hour)
		if got := c.count(); got < 3 || got > 4 {
			t.Errorf("%d refreshes in 120 days, want 3 or 4", got)
		}
		if g := c.stored(t); g.Dead != "" || time.Since(g.Used) > grant.IdleLife/3+3*time.Hour {
			t.Errorf("stored %+v", *g)
		}
		c.set(func() { c.valid = nil })
		advance(31 * 24 * time.Hour)
		if g := c.stored(t); g.Dead != "refresh-token-gone" {
			t.Errorf("stored %+v, want it found dead", *g)
		}
		if c.logs.FilterMessageSnippet("no longer serves").Len() != 1 {
			t.Error("nothing says that the consent died")
		}
		cancel()
		wg.Wait()
	})
}

// TestRunRenewsAhead: a token in use is renewed though nobody asks in the minutes before it expires; one out of use is not.
func TestRunRenewsAhead(t *testing.T) {
	clustered(t, 1, delegated(), func(t *testing.T, c *cluster) {
		c.adopt(t, "refresh-0")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.nodes[0].Run(ctx) })
		c.want(t, 0, "", "access-1")
		advance(50 * time.Minute)
		c.want(t, 0, "", "access-1")
		advance(10 * time.Minute)
		if c.count() != 2 {
			t.Errorf("got %d requests, want a renewal ahead", c.count())
		}
		c.want(t, 0, "", "access-2")
		advance(10 * time.Hour)
		if got := c.count(); got != 3 { // asked for once after the renewal
			t.Errorf("got %d requests, want no more once nobody asks", got)
		}
		advance(48 * time.Hour)
		if n := len(c.nodes[0].sources); n != 0 {
			t.Errorf("%d sources are kept for nobody", n)
		}
		cancel()
		wg.Wait()
	})
}

func TestSenderLabelsAreBounded(t *testing.T) {
	m := newMetrics(prometheus.NewRegistry(), 3)
	for i := range 10 {
		m.consented(fmt.Sprint(i), time.Now())
	}
	if got := testutil.CollectAndCount(m.consent); got != 3 {
		t.Errorf("got %d series, want 3", got)
	}
	m.consented("1", time.Time{})
	m.consented("9", time.Now())
	m.consented("8", time.Now())
	if got := testutil.CollectAndCount(m.consent); got != 3 {
		t.Errorf("got %d series, want 3: one went, one came", got)
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name     string
		change   func(*Tenant)
		form     url.Values
		endpoint string
	}{
		{"the application's own", func(*Tenant) {}, url.Values{"grant_type": {"client_credentials"}, "client_id": {"app"}, "client_secret": {canary},
			"scope": {"https://outlook.office365.com/.default"}}, "token"},
		{"on behalf of persons", func(x *Tenant) { x.Delegated = true }, url.Values{"grant_type": {"client_credentials"}, "client_id": {"app"},
			"client_secret": {canary}, "scope": {"https://outlook.office365.com/.default"}}, "token"},
		{"a public client", func(x *Tenant) { x.Delegated, x.Secret = true, nil }, url.Values{"client_id": {"app"},
			"scope": {"https://outlook.office.com/SMTP.Send"}}, "devicecode"},
	}
	for _, tt := range tests {
		tenant := contoso()
		tt.change(&tenant)
		clustered(t, 1, tenant, func(t *testing.T, c *cluster) {
			c.set(func() {
				c.refuse = func(w http.ResponseWriter) bool { refuse(w, 400, "unauthorized_client", "700016"); return true }
			})
			err := c.nodes[0].Check(t.Context(), "contoso")
			if e, ok := errors.AsType[*status.Error](err); !ok || e.Rule != "application-unknown" || e.Advice == "" {
				t.Errorf("%s: got %v", tt.name, err)
			}
			if _, problem := c.nodes[0].Status("contoso"); problem == nil || problem.Rule != "application-unknown" {
				t.Errorf("%s: got status %v", tt.name, problem)
			}
			c.set(func() {
				c.refuse = func(w http.ResponseWriter) bool {
					if tt.endpoint == "token" {
						return false
					}
					w.Header().Set("Content-Type", "application/json")
					fmt.Fprint(w, `{"device_code":"d","user_code":"u","verification_uri":"https://x","expires_in":900,"interval":5}`)
					return true
				}
			})
			if err := c.nodes[0].Check(t.Context(), "contoso"); err != nil {
				t.Errorf("%s: got %v", tt.name, err)
			}
			if _, problem := c.nodes[0].Status("contoso"); problem != nil {
				t.Errorf("%s: the problem outlived its cure: %v", tt.name, problem)
			}
			if got := c.requests[1]; got.Encode() != tt.form.Encode() || !strings.HasSuffix(c.paths[1], "/oauth2/v2.0/"+tt.endpoint) {
				t.Errorf("%s: got %s %v, want %v", tt.name, c.paths[1], got, tt.form)
			}
		})
	}
	clustered(t, 1, contoso(), func(t *testing.T, c *cluster) {
		if e := status.From(c.nodes[0].Check(t.Context(), "fabrikam")); e.Action != status.ParkTenant {
			t.Errorf("unknown tenant: got %v", e)
		}
	})
}
