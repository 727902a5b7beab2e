package ledger

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/dispatch/limit"
	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory keeps records in a map; a write takes its time.
type memory struct {
	mu      sync.Mutex
	records map[string]string
	takes   time.Duration
	broken  error
}

func (m *memory) Recall(context.Context) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return nil, m.broken
	}
	all := map[string][]byte{}
	for k, v := range m.records {
		all[k] = []byte(v)
	}
	return all, nil
}

func (m *memory) Remember(ctx context.Context, key string, data []byte) error {
	m.mu.Lock()
	takes, broken := m.takes, m.broken
	m.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	if broken != nil {
		return broken
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[key] = string(data); len(data) == 0 {
		delete(m.records, key)
	}
	return nil
}

func (m *memory) keys() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := map[string]bool{}
	for k := range m.records {
		keys[k] = true
	}
	return keys
}

func some(n int) Record { return Record{Day: &limit.Tally{At: time.Now().UnixMilli(), Block: n}} }

func TestWriteAndRecall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{records: map[string]string{"postmaster.x": "?"}}
		ctx := context.Background()
		l := New(m, zap.NewNop())
		var g limit.Gate
		g.Park(time.Now(), time.Now(), &status.Error{Code: 535, Text: "no"}, false)
		l.Write(ctx, MailboxKey("contoso/a@contoso.com"), some(7))
		l.Write(ctx, TenantKey("contoso"), Record{Gate: g.Memo()})
		l.Write(ctx, TenantKey("fabrikam"), Record{Gate: g.Memo()})
		if !l.Write(ctx, TenantKey("fabrikam"), Record{}) {
			t.Error("an empty record is not written")
		}
		if got := m.keys(); len(got) != 3 || !got["dispatch.mailbox.contoso/a@contoso.com"] || !got["dispatch.tenant.contoso"] {
			t.Errorf("kept %v", got)
		}
		next := New(m, zap.NewNop())
		next.Recall(ctx)
		if r, ok := next.Take(MailboxKey("contoso/a@contoso.com")); !ok || r.Day.Block != 7 || r.Gate != nil {
			t.Errorf("got %+v, %v", r, ok)
		}
		if _, ok := next.Take(MailboxKey("contoso/a@contoso.com")); ok {
			t.Error("taken twice")
		}
		if r, ok := next.Take(TenantKey("contoso")); !ok || r.Gate.Text != "no" {
			t.Errorf("got %+v, %v", r, ok)
		}
		if _, ok := next.Take(TenantKey("nobody")); ok {
			t.Error("a record of nobody")
		}
	})
}

// Records of no more use are not given out, and forgotten; parks have no age.
func TestOldRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{records: map[string]string{}}
		ctx := context.Background()
		l := New(m, zap.NewNop())
		var g limit.Gate
		g.Park(time.Now(), time.Now(), &status.Error{Code: 535, Text: "no"}, false)
		parked := some(3)
		parked.Gate = g.Memo()
		l.Write(ctx, MailboxKey("old"), some(1))
		l.Write(ctx, MailboxKey("known again"), some(2))
		l.Write(ctx, MailboxKey("parked"), parked)
		<-time.After(40 * time.Hour)
		next := New(m, zap.NewNop())
		next.Recall(ctx)
		if _, ok := next.Take(MailboxKey("old")); ok {
			t.Error("a record of forty hours ago is given out")
		}
		if _, ok := next.Take(MailboxKey("parked")); !ok {
			t.Error("a park is forgotten")
		}
		next.Forget(ctx, func(key string) bool { return key == MailboxKey("known again") })
		if got := m.keys(); len(got) != 2 || got["dispatch.mailbox.old"] {
			t.Errorf("kept %v", got)
		}
		next.Drop(MailboxKey("parked"))
		ended, cancel := context.WithCancel(ctx)
		cancel()
		next.Forget(ended, func(string) bool { return false })
		if got := m.keys(); len(got) != 2 {
			t.Errorf("forgotten after the end: %v", got)
		}
	})
}

// A record written while its key is being forgotten is there afterwards.
func TestForgetAndWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{records: map[string]string{}, takes: time.Second}
		ctx := context.Background()
		l := New(m, zap.NewNop())
		l.Write(ctx, "mailbox.a", some(1))
		l.Drop("mailbox.a")
		var both sync.WaitGroup
		both.Go(func() { l.Forget(ctx, func(string) bool { return false }) })
		synctest.Wait() // it is being forgotten
		both.Go(func() { l.Write(ctx, "mailbox.a", some(2)) })
		both.Wait()
		if got := m.keys(); !got["dispatch.mailbox.a"] {
			t.Error("the newer record is gone")
		}
	})
}

func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		m := &memory{records: map[string]string{}, broken: errors.New("away")}
		ctx := context.Background()
		l := New(m, zap.New(core))
		began := time.Now()
		l.Recall(ctx)
		if took := time.Since(began); took != recallMost {
			t.Errorf("waited %v for the memory, want %v", took, recallMost)
		}
		for range 3 {
			if l.Write(ctx, "mailbox.a", some(1)) {
				t.Error("written")
			}
		}
		if got := logs.Len(); got != 2 {
			t.Errorf("%d lines, want one of the recall and one of the writes", got)
		}
		m.broken, m.takes = nil, time.Hour
		began = time.Now()
		if l.Write(ctx, "mailbox.a", some(1)) || time.Since(began) != rememberMost {
			t.Errorf("a write may take %v", time.Since(began))
		}
		began = time.Now()
		records := map[string]Record{}
		for _, k := range []string{"a", "b", "c"} {
			records["mailbox."+k] = some(1)
		}
		l.WriteAll(ctx, records)
		if took := time.Since(began); took != rememberMost {
			t.Errorf("the last writes took %v", took)
		}
		stopped, cancel := context.WithCancel(ctx)
		cancel()
		m.broken = errors.New("away")
		began = time.Now()
		l.Recall(stopped)
		if time.Since(began) != 0 {
			t.Error("waits for the memory after the end")
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{records: map[string]string{}, takes: time.Second}
		l := New(m, zap.NewNop())
		records := map[string]Record{}
		for i := range 40 {
			records[MailboxKey(string(rune('A'+i)))] = some(i)
		}
		began := time.Now()
		l.WriteAll(context.Background(), maps.Clone(records))
		if took := time.Since(began); took != 3*time.Second || len(m.keys()) != 40 {
			t.Errorf("%d written in %v, want 40 in three rounds of %d", len(m.keys()), took, writers)
		}
	})
}

func TestWithoutMemory(t *testing.T) {
	l := New(nil, zap.NewNop())
	ctx := context.Background()
	l.Recall(ctx)
	l.Drop("mailbox.a")
	l.Forget(ctx, func(string) bool { return false })
	if _, ok := l.Take("mailbox.a"); ok || l.Kept() || !l.Write(ctx, "mailbox.a", Record{}) {
		t.Error("without a memory there is something kept")
	}
}
