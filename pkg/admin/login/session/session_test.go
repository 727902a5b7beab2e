package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// begin makes a session and returns what the browser would hold.
func begin(t *testing.T, s *Store, value string) string {
	t.Helper()
	m := NewManager(s, "relayd", false)
	ctx, err := m.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	m.Put(ctx, "who", value)
	token, expires, err := m.Commit(ctx)
	if err != nil || time.Until(expires) > Life || time.Until(expires) < Life-time.Minute {
		t.Fatalf("got %v, %v", expires, err)
	}
	return token
}

func read(t *testing.T, s *Store, token string) string {
	t.Helper()
	m := NewManager(s, "relayd", false)
	ctx, err := m.Load(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return m.GetString(ctx, "who")
}

func TestRoundTrip(t *testing.T) {
	records := &Memory{}
	s := &Store{Records: records, Logger: zap.NewNop()}
	a, b := begin(t, s, "a"), begin(t, s, "b")
	if read(t, s, a) != "a" || read(t, s, b) != "b" || read(t, s, "guess") != "" || read(t, s, "") != "" {
		t.Error("a session is another's, or nobody's")
	}
	names, _ := records.Names(t.Context())
	for _, name := range names {
		if name == a || name == b {
			t.Error("stored under what the browser holds")
		}
		if read(t, s, name) != "" {
			t.Error("what it is stored under opens it")
		}
	}
	seen := map[string]bool{}
	if err := s.Each(t.Context(), func(r Stored) { seen[r.Values["who"]] = true }); err != nil || !seen["a"] || !seen["b"] || len(seen) != 2 {
		t.Errorf("got %v, %v", seen, err)
	}
}

// A session that was ended while a request of it was under way does not come back, by being used or being made anew.
func TestEndedStaysEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := &Memory{}
		s := &Store{Records: records, Logger: zap.NewNop()}
		token := begin(t, s, "a")
		names, _ := records.Names(t.Context())
		<-time.After(touchEvery)
		slow := &Store{Records: &between{Records: records, act: func() { _ = records.Delete(context.Background(), names[0]) }}, Logger: zap.NewNop()}
		read(t, slow, token) // notes the use, after somebody has ended it
		if left, _ := records.Names(t.Context()); len(left) != 0 {
			t.Error("it is back")
		}
	})
}

// between acts between a Get and what follows.
type between struct {
	Records
	act func()
}

func (b *between) Get(ctx context.Context, name string) ([]byte, uint64, error) {
	data, revision, err := b.Records.Get(ctx, name)
	b.act()
	return data, revision, err
}

func TestUseIsNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{Records: &Memory{}, Logger: zap.NewNop()}
		token := begin(t, s, "a")
		for range 3 {
			<-time.After(IdleLife - time.Second)
			if read(t, s, token) != "a" {
				t.Fatal("over, though used")
			}
		}
		<-time.After(IdleLife)
		if read(t, s, token) != "" {
			t.Error("idle, and not over")
		}
	})
}

// What cannot be noted keeps nobody out.
func TestUseCannotBeNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := &Memory{}
		s := &Store{Records: records, Logger: zap.NewNop()}
		token := begin(t, s, "a")
		<-time.After(touchEvery)
		if got := read(t, &Store{Records: readOnly{records}, Logger: zap.NewNop()}, token); got != "a" {
			t.Errorf("got %q", got)
		}
	})
}

type readOnly struct{ Records }

func (readOnly) Put(context.Context, string, []byte, uint64) (uint64, error) {
	return 0, errors.New("no space")
}

func TestOneDamagedAmongGood(t *testing.T) {
	records := &Memory{}
	s := &Store{Records: records, Logger: zap.NewNop()}
	begin(t, s, "a")
	bad := `{"v":1,"expires":"2999-01-01T00:00:00Z","seen":"2999-01-01T00:00:00Z","session":[]}`
	for name, text := range map[string]string{"x": bad, "y": "{", "z": `{"v":9}`} {
		if _, err := records.Put(t.Context(), name, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	if err := s.Each(t.Context(), func(Stored) { n++ }); err == nil || n != 1 {
		t.Errorf("got %d, %v", n, err)
	}
	if names, _ := records.Names(t.Context()); len(names) != 3 || slices.Contains(names, "y") { // y is nobody's
		t.Errorf("left: %v", names)
	}
}

// A session of a later relayd logs nobody in here, and is there when that one comes back. What is of no version never was one.
func TestLaterVersion(t *testing.T) {
	for text, left := range map[string]bool{
		`{"v":2}`: true, `{"v":2,"expires":1,"seen":[],"session":"x"}`: true, `{"v":0}`: false, "null": false, `{"v":"2"}`: false, `{"v":1}`: false,
	} {
		records := &Memory{}
		s := &Store{Records: records, Logger: zap.NewNop()}
		if _, err := records.Put(t.Context(), "x", []byte(text), 0); err != nil {
			t.Fatal(err)
		}
		if data, found, err := s.FindCtx(t.Context(), "x"); data != nil || found || err != nil {
			t.Errorf("%s: got %s, %v, %v", text, data, found, err)
		}
		if err := s.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if _, revision, _ := records.Get(t.Context(), "x"); (revision != 0) != left {
			t.Errorf("%s: left %v, want %v", text, !left, left)
		}
	}
}

func TestCodec(t *testing.T) {
	if _, err := (codec{}).Encode(time.Now(), map[string]any{"a": 1}); err == nil {
		t.Error("what would come back as another type is taken")
	}
	if _, _, err := (codec{}).Decode([]byte("{")); err == nil {
		t.Error("no error")
	}
	s := &Store{Records: &Memory{}, Logger: zap.NewNop()}
	if err := s.Commit("a", []byte(`{}`), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit("a", []byte(`{"x":1}`), time.Now().Add(time.Hour)); err == nil {
		t.Error("a session was changed")
	}
	if data, ok, err := s.Find("a"); err != nil || !ok || string(data) != "{}" {
		t.Errorf("got %q, %v, %v", data, ok, err)
	}
	if err := s.Delete("a"); err != nil {
		t.Error(err)
	}
	if _, ok, _ := s.Find("a"); ok {
		t.Error("still there")
	}
}

// The contract of Records, by which one of many takes a record.
func TestMemory(t *testing.T) {
	m, ctx := &Memory{}, context.Background()
	if data, revision, err := m.Get(ctx, "a"); data != nil || revision != 0 || err != nil {
		t.Errorf("got %q, %d, %v", data, revision, err)
	}
	first, _ := m.Put(ctx, "a", []byte("1"), 0)
	if again, err := m.Put(ctx, "a", []byte("2"), 0); again != 0 || err != nil || first == 0 {
		t.Errorf("got %d, %v", again, err)
	}
	var won int
	var mu sync.Mutex // guards won
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if r, _ := m.Put(ctx, "a", []byte(fmt.Sprint(i)), first); r != 0 {
				mu.Lock()
				defer mu.Unlock()
				won++
			}
		})
	}
	all.Wait()
	if won != 1 {
		t.Errorf("%d won", won)
	}
	data, revision, _ := m.Get(ctx, "a")
	data[0] = 'x'
	if kept, _, _ := m.Get(ctx, "a"); kept[0] == 'x' {
		t.Error("a caller can change what is kept")
	}
	if err := m.Delete(ctx, "a"); err != nil {
		t.Error(err)
	}
	if r, _ := m.Put(ctx, "a", nil, revision); r != 0 {
		t.Error("a record that was deleted is replaced")
	}
}
