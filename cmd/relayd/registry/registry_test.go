package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"relayd/pkg/config"
)

// records is a kind of the vault in memory, which several registries may share.
type records struct {
	mu       sync.Mutex // guards what follows
	revision uint64
	all      map[string][]byte
	at       map[string]uint64
	watchers []func(string)
	fail     error // of Names and Get
	failGet  error // of Get alone
	lose     bool  // the next Put finds that another was quicker
}

func newRecords() *records { return &records{all: map[string][]byte{}, at: map[string]uint64{}} }

func (r *records) Get(_ context.Context, name string) ([]byte, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[name], r.at[name], errors.Join(r.fail, r.failGet)
}

func (r *records) Put(_ context.Context, name string, data []byte, revision uint64) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lose || r.at[name] != revision {
		return 0, nil
	}
	r.revision++
	r.all[name], r.at[name] = data, r.revision
	r.tell(name)
	return r.revision, nil
}

func (r *records) Delete(_ context.Context, name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, name)
	delete(r.at, name)
	r.tell(name)
	return nil
}

func (r *records) Names(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.all)), r.fail
}

func (r *records) Watch(ctx context.Context, changed func(string)) error {
	r.mu.Lock()
	r.watchers = append(r.watchers, changed)
	r.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (r *records) tell(name string) {
	for _, w := range r.watchers {
		w(name)
	}
}

type kinds struct{ tenants, senders, pauses *records }

func newKinds() kinds { return kinds{newRecords(), newRecords(), newRecords()} }

func (k kinds) registry() *Registry { return New(k.tenants, k.senders, k.pauses) }

func TestWhatWasPutIsLoaded(t *testing.T) {
	k := newKinds()
	r, ctx := k.registry(), t.Context()
	tenant := config.Fields{"name": "contoso", "client_secret": "s3cret"}
	sender := config.Fields{"address": "Erp@Contoso.com", "tenant": "contoso"}
	pause := Pause{By: "ops", At: time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)}
	if err := errors.Join(r.PutTenant(ctx, "contoso", tenant), r.PutSender(ctx, "Erp@Contoso.com", sender), r.Pause(ctx, "Erp@Contoso.com", pause)); err != nil {
		t.Fatal(err)
	}
	want := Content{
		Tenants: map[string]config.Fields{"contoso": tenant}, Senders: map[string]config.Fields{"erp@contoso.com": sender},
		Pauses: map[string]Pause{"erp@contoso.com": pause},
	}
	other := k.registry()
	if err := other.Load(ctx); err != nil {
		t.Fatal(err)
	}
	for _, got := range []Content{r.Content(), other.Content()} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	added := other.Content().Added()
	if len(added.Tenants) != 1 || len(added.Senders) != 1 || other.Content().Paused()["erp@contoso.com"] != "ops" {
		t.Errorf("got %v and %v", added, other.Content().Paused())
	}
	if err := errors.Join(r.DeleteSender(ctx, "ERP@contoso.com"), r.Resume(ctx, "ERP@contoso.com"), r.DeleteTenant(ctx, "contoso")); err != nil {
		t.Fatal(err)
	}
	if c := r.Content(); len(c.Tenants)+len(c.Senders)+len(c.Pauses) != 0 {
		t.Errorf("after the removal: %v", c)
	}
	if len(k.tenants.all)+len(k.senders.all)+len(k.pauses.all) != 0 {
		t.Error("records are left")
	}
}

func TestConflict(t *testing.T) {
	k := newKinds()
	r := k.registry()
	k.tenants.lose = true
	if err := r.PutTenant(t.Context(), "contoso", config.Fields{}); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v, want the conflict", err)
	}
	if len(r.Content().Tenants) != 0 {
		t.Error("what was not stored is in force")
	}
}

// One record that cannot be read costs itself alone, and what it holds is not quoted.
func TestLoadLeavesOutWhatCannotBeRead(t *testing.T) {
	k := newKinds()
	r := k.registry()
	if err := r.PutTenant(t.Context(), "good", config.Fields{"name": "good"}); err != nil {
		t.Fatal(err)
	}
	k.tenants.all["bad"] = []byte(`{"client_secret": s3cret}`)
	err := r.Load(t.Context())
	if err == nil || !strings.Contains(err.Error(), "tenant bad") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
	if got := r.Content().Tenants; len(got) != 1 || got["good"] == nil {
		t.Errorf("got %v", got)
	}
	k.tenants.fail = errors.New("away")
	if err := r.Load(t.Context()); err == nil || len(r.Content().Tenants) != 1 {
		t.Errorf("got %v, and %v: a store that is away takes nothing out of force", err, r.Content().Tenants)
	}
}

// A store that goes away between the list and the records takes nothing out of force, and is asked again by itself.
func TestStoreGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKinds()
		here, there := k.registry(), k.registry()
		ctx, cancel := context.WithCancel(t.Context())
		var told []error
		ended := make(chan error)
		if err := there.PutTenant(ctx, "contoso", config.Fields{"name": "contoso"}); err != nil {
			t.Fatal(err)
		}
		if err := here.Load(ctx); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- here.Run(ctx, func(err error) { told = append(told, err) }) }()
		synctest.Wait()
		k.tenants.mu.Lock()
		k.tenants.failGet = errors.New("away")
		k.tenants.mu.Unlock()
		if _, err := k.tenants.Put(ctx, "fabrikam", []byte(`{"name":"fabrikam"}`), 0); err != nil {
			t.Fatal(err)
		}
		<-time.After(10 * time.Minute)
		synctest.Wait()
		if got := here.Content().Tenants; len(got) != 1 || got["contoso"] == nil || len(told) != 1 || told[0] == nil {
			t.Errorf("while it is away: got %v, told %v, want what was known, and the failure once", got, told)
		}
		k.tenants.mu.Lock()
		k.tenants.failGet = nil
		k.tenants.mu.Unlock()
		<-time.After(2 * time.Minute)
		synctest.Wait()
		if got := here.Content().Tenants; len(got) != 2 || len(told) != 2 || told[1] != nil {
			t.Errorf("once it is back: got %v, told %v", got, told)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Changes of another node are taken over, many at once together, and one's own stir nothing.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKinds()
		here, there := k.registry(), k.registry()
		ctx, cancel := context.WithCancel(t.Context())
		var changes atomic.Int32
		ended := make(chan error)
		go func() { ended <- here.Run(ctx, func(error) { changes.Add(1) }) }()
		synctest.Wait()
		for i := range 50 {
			name := fmt.Sprintf("s%d@contoso.com", i)
			if err := there.PutSender(ctx, name, config.Fields{"address": name}); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(time.Second)
		if changes.Load() != 1 || len(here.Content().Senders) != 50 {
			t.Errorf("%d changes were told of %d senders", changes.Load(), len(here.Content().Senders))
		}
		if err := here.Pause(ctx, "s1@contoso.com", Pause{By: "ops"}); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second)
		if changes.Load() != 1 {
			t.Error("one's own change was told of")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
