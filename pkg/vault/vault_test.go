package vault

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/entra/grant"
	"relayd/pkg/queue"
)

var _ grant.Records = (*Kind)(nil)

func TestRecords(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	grants, sessions := v.Kind("grant"), v.Kind("session")
	want(t, grants, "a", "")
	if err := grants.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete nothing: %v", err)
	}
	first := put(t, grants, "a", "one")
	want(t, sessions, "a", "") // the same name of another kind
	if n, err := grants.Put(t.Context(), "a", []byte("two"), 0); n != 0 || err != nil {
		t.Errorf("put over what is there: got %d, %v, want 0 and no error", n, err)
	}
	second, err := grants.Put(t.Context(), "a", []byte("two"), first)
	if err != nil || second <= first {
		t.Fatalf("replace: got %d, %v", second, err)
	}
	if n, err := grants.Put(t.Context(), "a", []byte("three"), first); n != 0 || err != nil {
		t.Errorf("replace a former revision: got %d, %v, want 0 and no error", n, err)
	}
	if got := want(t, grants, "a", "two"); got != second {
		t.Errorf("got revision %d, want %d", got, second)
	}
	if n, err := grants.Put(t.Context(), "b", []byte("x"), first); n != 0 || err != nil {
		t.Errorf("replace what is not there: got %d, %v, want 0 and no error", n, err)
	}
	put(t, grants, "b", "other")
	put(t, sessions, "s", "cookie")
	wantNames(t, grants, "a", "b")
	wantNames(t, sessions, "s")
	if err := grants.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	want(t, grants, "a", "")
	wantNames(t, grants, "b")
	put(t, grants, "a", "again")
	want(t, grants, "a", "again")
	wantNames(t, grants, "a", "b")
}

func TestEmptyRecordIsOne(t *testing.T) {
	k := newRig(t, t.TempDir()).open(keyA).Kind("pause")
	put(t, k, "", "")
	data, revision, err := k.Get(t.Context(), "")
	if data == nil || revision == 0 || err != nil {
		t.Errorf("got %v, %d, %v, want an empty record", data, revision, err)
	}
}

func TestWhatIsNotTaken(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	for _, kind := range []string{"", "index", "a.b", "a*", ">", "Grant", strings.Repeat("k", 33)} {
		k := v.Kind(kind)
		_, _, get := k.Get(t.Context(), "n")
		_, put := k.Put(t.Context(), "n", nil, 0)
		_, names := k.Names(t.Context())
		for what, err := range map[string]error{
			"get": get, "put": put, "names": names, "delete": k.Delete(t.Context(), "n"), "watch": k.Watch(t.Context(), func(string) {}),
		} {
			if !errors.Is(err, errKind) {
				t.Errorf("%s of kind %q: got %v, want %v", what, kind, err, errKind)
			}
		}
	}
	k := v.Kind("grant")
	if _, err := k.Put(t.Context(), strings.Repeat("n", maxName+1), nil, 0); err == nil {
		t.Error("a longer name was taken")
	}
	if _, err := k.Put(t.Context(), "n", make([]byte, maxData+1), 0); err == nil {
		t.Error("a longer record was taken")
	}
	if _, err := k.Put(t.Context(), strings.Repeat("n", maxName), make([]byte, maxData), 0); err != nil {
		t.Errorf("the longest record: %v", err)
	}
}

// TestNothingReadable: neither name nor content of a record, nor a key, stands in any file.
func TestNothingReadable(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir)
	v := r.open(keyA, keyB)
	const name, secret = "canary-mailbox@contoso.com", "canary-refresh-token-0123456789"
	k := v.Kind("grant")
	revision := put(t, k, name, secret)
	if _, err := k.Put(t.Context(), name, []byte(secret+"2"), revision); err != nil {
		t.Fatal(err)
	}
	put(t, k, name+".deleted", secret)
	if err := k.Delete(t.Context(), name+".deleted"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNames(t, k, name)
	words := []string{"canary", "contoso"}
	for _, s := range []string{name, secret, keyA, keyB, string(v.index)} {
		words = append(words, s, hex.EncodeToString([]byte(s)))
		for shift := range 3 { // base64 of it at any offset
			text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + s))
			words = append(words, text[4:len(text)-4])
		}
	}
	for _, when := range []string{"running", "stopped"} {
		if found := grep(t, dir, words...); len(found) > 0 {
			t.Errorf("%s: %q", when, found)
		}
		if found := grep(t, dir, "relayd.vault.record.grant."); len(found) == 0 {
			t.Fatalf("%s: the record itself is not found: the test says nothing", when)
		}
		r.b.Close()
	}
}

func TestWrongKey(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	put(t, v.Kind("grant"), "a", "1")
	put(t, v.Kind("grant"), "b", "2")
	put(t, v.Kind("tenant"), "c", "3")
	_, err := Open(t.Context(), r.options(r.bucket, keyB))
	lost, ok := errors.AsType[*LostError](err)
	if !ok || !errors.Is(err, ErrKey) || lost.Lost["grant"] != 2 || lost.Lost["tenant"] != 1 || len(lost.Lost) != 2 {
		t.Fatalf("got %v, want what is lost", err)
	}
	for _, part := range []string{"2 grant, 1 tenant", "put that key back", "vault.previous_keys", "relayd vault reset"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if strings.Contains(err.Error(), keyA) || strings.Contains(err.Error(), keyB) {
		t.Errorf("%q tells a key", err)
	}
	v = r.open(keyA) // nothing was touched
	want(t, v.Kind("grant"), "a", "1")
	v = r.open(keyB, keyA) // the way out by previous_keys
	want(t, v.Kind("grant"), "a", "1")
}

func TestKeyWithEndOfLineIsTheSame(t *testing.T) {
	r := newRig(t, t.TempDir())
	put(t, r.open(keyA+"\r\n").Kind("grant"), "a", "1")
	want(t, r.open(keyA).Kind("grant"), "a", "1")
}

func TestKeysThatCannotBe(t *testing.T) {
	r := newRig(t, t.TempDir())
	broken := errors.New("no such file")
	for name, tt := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"short":             {func(o *Options) { o.Key = keyOf(strings.Repeat("x", MinKey-1) + "\n") }, "openssl rand -base64 32"},
		"unreadable":        {func(o *Options) { o.Key = func() ([]byte, error) { return nil, broken } }, "no such file"},
		"previous short":    {func(o *Options) { o.Previous = append(o.Previous, keyOf("x")) }, "vault.previous_keys[0]"},
		"previous not read": {func(o *Options) { o.Previous = append(o.Previous, func() ([]byte, error) { return nil, broken }) }, "vault.previous_keys[0]"},
	} {
		opts := r.options(r.bucket, keyA)
		tt.change(&opts)
		if _, err := Open(t.Context(), opts); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, tt.want)
		}
	}
}

// TestLostKey: after a reset, the vault goes on without what was sealed with the lost key, and only that.
func TestLostKey(t *testing.T) {
	r := newRig(t, t.TempDir())
	put(t, r.open(keyA).Kind("grant"), "a", "1")
	n, err := Reset(t.Context(), r.options(r.bucket, keyB))
	if err != nil || n["grant"] != 1 || len(n) != 1 {
		t.Fatalf("got %v, %v, want one grant forgotten", n, err)
	}
	v := r.open(keyB)
	wantNames(t, v.Kind("grant"))
	put(t, v.Kind("grant"), "a", "2")

	v = r.open(keyC, keyB) // c's are not lost when b's are
	put(t, v.Kind("tenant"), "c", "3")
	if _, err := Open(t.Context(), r.options(r.bucket, keyC)); err != nil {
		t.Fatalf("some can be opened, others not: %v", err)
	}
	if got := r.logged(); !strings.Contains(got, "1 grant") || strings.Contains(got, "tenant]") {
		t.Errorf("logged %s, want the grant that is lost", got)
	}
	v = r.open(keyC, keyB)
	want(t, v.Kind("grant"), "a", "2")
	want(t, v.Kind("tenant"), "c", "3")
}

func TestOneRecordOfALostKey(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA, keyB)
	put(t, v.Kind("tenant"), "c", "3")
	r.foreign(v, keyC, "grant", "a")
	v = r.open(keyA)
	grants := v.Kind("grant")
	wantErr(t, grants, "a", ErrKey)
	wantNames(t, grants)
	if n, err := grants.Put(t.Context(), "a", []byte("new"), 0); n != 0 || err != nil {
		t.Errorf("put over it: got %d, %v, want another to be quicker", n, err)
	}
	n, err := v.Reset(t.Context())
	if err != nil || n["grant"] != 1 || len(n) != 1 {
		t.Errorf("reset: got %v, %v", n, err)
	}
	want(t, grants, "a", "")
	want(t, v.Kind("tenant"), "c", "3")
	r.foreign(v, keyC, "grant", "a")
	if err := grants.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	put(t, grants, "a", "new")
}

// foreign puts a record where v has that name, sealed with another key.
func (r *rig) foreign(v *Vault, key, kind, name string) {
	r.t.Helper()
	ring := ringOf(r.t, key)
	place := v.place(kind, name)
	sealed, err := ring.seal(place, typeRecord, name, []byte("foreign"))
	if err == nil {
		_, err = r.bucket.Put(r.t.Context(), place, sealed, 0)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestRotation(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	for i := range 20 {
		put(t, v.Kind("grant"), fmt.Sprint("g", i), fmt.Sprint("data ", i))
	}
	put(t, v.Kind("tenant"), "t", "secret")
	v = r.open(keyB, keyA)
	put(t, v.Kind("tenant"), "new", "sealed with b")
	n, err := v.Rotate(t.Context())
	if n != 21 || err != nil {
		t.Errorf("got %d records, %v, want the 21 that were sealed with the former key", n, err)
	}
	if n, err := v.Rotate(t.Context()); n != 0 || err != nil {
		t.Errorf("again: got %d, %v, want nothing left to do", n, err)
	}
	v = r.open(keyB) // alone
	for i := range 20 {
		want(t, v.Kind("grant"), fmt.Sprint("g", i), fmt.Sprint("data ", i))
	}
	want(t, v.Kind("tenant"), "t", "secret")
	want(t, v.Kind("tenant"), "new", "sealed with b")
	if _, err := Open(t.Context(), r.options(r.bucket, keyA)); !errors.Is(err, ErrKey) {
		t.Errorf("the former key alone: got %v, want %v", err, ErrKey)
	}
}

// stopping is a store that fails after so many writes.
type stopping struct {
	Store
	left atomic.Int64
}

var errStopped = errors.New("stopped here")

func (s *stopping) Put(ctx context.Context, place string, sealed []byte, revision uint64) (uint64, error) {
	if s.left.Add(-1) < 0 {
		return 0, errStopped
	}
	return s.Store.Put(ctx, place, sealed, revision)
}

// TestRotationInterrupted: wherever rotation stops, both keys together open everything, a second one finishes, and the new
// key alone never finds an empty vault.
func TestRotationInterrupted(t *testing.T) {
	const records = 5
	for writes := range records + 1 {
		r := newRig(t, t.TempDir())
		v := r.open(keyA)
		for i := range records {
			put(t, v.Kind("grant"), fmt.Sprint("g", i), fmt.Sprint("data ", i))
		}
		store := &stopping{Store: r.bucket}
		store.left.Store(int64(writes))
		v, err := Open(t.Context(), r.options(store, keyB, keyA))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Rotate(t.Context()); !errors.Is(err, errStopped) || !errors.Is(err, ErrUnavailable) {
			t.Fatalf("after %d writes: got %v, want %v", writes, err, errStopped)
		}
		r.b.Close()
		r = newRig(t, r.dir)
		v, err = Open(t.Context(), r.options(r.bucket, keyB))
		switch done := writes - 1; { // the first is the index
		case done < 0:
			if !errors.Is(err, ErrKey) {
				t.Errorf("nothing rotated: got %v, want %v", err, ErrKey)
			}
		case err != nil:
			t.Errorf("after %d writes: %v", writes, err)
		default:
			names, err := v.Kind("grant").Names(t.Context())
			if err != nil || len(names) != done || !strings.Contains(r.logged(), fmt.Sprint(records-done, " grant")) {
				t.Errorf("after %d writes: %q, %v, want %d, and the others logged", writes, names, err, done)
			}
		}
		v = r.open(keyB, keyA)
		if n, err := v.Rotate(t.Context()); err != nil || n != records-max(writes-1, 0) {
			t.Errorf("after %d writes: the second rotation: %d, %v", writes, n, err)
		}
		v = r.open(keyB)
		for i := range records {
			want(t, v.Kind("grant"), fmt.Sprint("g", i), fmt.Sprint("data ", i))
		}
		r.b.Close()
	}
}

// TestRotationWhileInUse: what is stored during a rotation is neither lost nor put back.
func TestRotationWhileInUse(t *testing.T) {
	r := newRig(t, t.TempDir())
	a := r.open(keyA, keyB) // has heard of the new key only as one to open with
	for i := range 20 {
		put(t, a.Kind("grant"), fmt.Sprint("g", i), "0")
	}
	b := r.open(keyB, keyA)
	var writers sync.WaitGroup
	for i := range 20 {
		writers.Go(func() {
			k := a.Kind("grant")
			for n := 1; n <= 5; {
				_, revision, err := k.Get(t.Context(), fmt.Sprint("g", i))
				if err != nil {
					t.Error(err)
					return
				}
				next, err := k.Put(t.Context(), fmt.Sprint("g", i), fmt.Append(nil, n), revision)
				if err != nil {
					t.Error(err)
					return
				}
				if next != 0 {
					n++
				}
			}
		})
	}
	_, err := b.Rotate(t.Context())
	writers.Wait()
	if err != nil && !strings.Contains(err.Error(), "another relayd") {
		t.Error(err)
	}
	if _, err := b.Rotate(t.Context()); err != nil {
		t.Error(err)
	}
	b = r.open(keyB)
	for i := range 20 {
		want(t, b.Kind("grant"), fmt.Sprint("g", i), "5")
	}
}

func TestReload(t *testing.T) {
	r := newRig(t, t.TempDir())
	key, previous := keyA, keyB
	opts := r.options(r.bucket, keyA)
	opts.Key = func() ([]byte, error) { return []byte(key), nil }
	opts.Previous = []func() ([]byte, error){func() ([]byte, error) { return []byte(previous), nil }}
	v, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	k := v.Kind("grant")
	put(t, k, "a", "1")
	key = keyC
	if err := v.Reload(t.Context()); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "1 grant") {
		t.Errorf("got %v, want a refusal to lose the record", err)
	}
	want(t, k, "a", "1")
	previous = keyA
	if err := v.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, k, "b", "2")
	if _, err := v.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	previous = keyC // a goes
	if err := v.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	v = r.open(keyC)
	want(t, v.Kind("grant"), "a", "1")
	want(t, v.Kind("grant"), "b", "2")
	key = "short"
	if _, err := v.Rotate(t.Context()); err != nil {
		t.Errorf("its own key: %v", err)
	}
}

// TestConfigure is how an operator changes the key of a running relay.
func TestConfigure(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	k := v.Kind("grant")
	put(t, k, "a", "1")
	if err := v.Configure(t.Context(), keyOf(keyB), nil); !errors.Is(err, ErrKey) {
		t.Errorf("got %v, want a refusal to lose the record", err)
	}
	put(t, k, "b", "2")
	if n, err := v.Rotate(t.Context()); n != 0 || err != nil { // by the keys there were
		t.Errorf("got %d, %v", n, err)
	}
	if err := v.Configure(t.Context(), keyOf(keyB), []func() ([]byte, error){keyOf(keyA)}); err != nil {
		t.Fatal(err)
	}
	if n, err := v.Rotate(t.Context()); n != 2 || err != nil {
		t.Errorf("got %d, %v, want both records", n, err)
	}
	if err := v.Configure(t.Context(), keyOf(keyB), nil); err != nil {
		t.Error(err)
	}
	want(t, k, "a", "1")
	want(t, r.open(keyB).Kind("grant"), "b", "2")
}

// TestReloadOfAnEmptyVault: the index alone is no reason to keep a key, and follows the new one.
func TestReloadOfAnEmptyVault(t *testing.T) {
	r := newRig(t, t.TempDir())
	key := keyA
	opts := r.options(r.bucket, keyA)
	opts.Key = func() ([]byte, error) { return []byte(key), nil }
	v, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	key = keyB
	if err := v.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, v.Kind("grant"), "a", "1")
	want(t, r.open(keyB).Kind("grant"), "a", "1")
	if got := r.logged(); got != "" {
		t.Errorf("logged %s", got)
	}
}

// TestUnusedVaultTakesAnyKey: where nothing but the index is sealed with a lost key, nothing is lost.
func TestUnusedVaultTakesAnyKey(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.open(keyA)
	v := r.open(keyB)
	put(t, v.Kind("grant"), "a", "1")
	want(t, r.open(keyB).Kind("grant"), "a", "1")
}

// TestLostIndex: names are hashed anew, and nothing is lost.
func TestLostIndex(t *testing.T) {
	for name, spoil := range map[string]func(r *rig) error{
		"missing": func(r *rig) error { return r.bucket.Delete(r.t.Context(), indexPlace, nil) },
		"damaged": func(r *rig) error {
			sealed, revision, err := r.bucket.Get(r.t.Context(), indexPlace)
			if err == nil {
				sealed[len(sealed)-1] ^= 1
				_, err = r.bucket.Put(r.t.Context(), indexPlace, sealed, revision)
			}
			return err
		},
	} {
		r := newRig(t, t.TempDir())
		v := r.open(keyA)
		put(t, v.Kind("grant"), "a", "1")
		put(t, v.Kind("tenant"), "b", "2")
		if err := spoil(r); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			v = r.open(keyA)
			want(t, v.Kind("grant"), "a", "1")
			want(t, v.Kind("tenant"), "b", "2")
			wantNames(t, v.Kind("grant"), "a")
			wantNames(t, v.Kind("tenant"), "b")
		}
		if got := r.logged(); got != "" {
			t.Errorf("%s: the second start found something to mend: %s", name, got)
		}
	}
}

// TestSwappedRecords: what somebody else with access to the store put elsewhere does not open there.
func TestSwappedRecords(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	grants, tenants := v.Kind("grant"), v.Kind("tenant")
	put(t, grants, "victim", "v")
	put(t, grants, "attacker", "a")
	put(t, tenants, "victim", "t")
	copyTo := func(from, to string) {
		t.Helper()
		sealed, _, err := r.bucket.Get(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		_, revision, err := r.bucket.Get(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := r.bucket.Put(t.Context(), to, sealed, revision); n == 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	copyTo(v.place("grant", "attacker"), v.place("grant", "victim"))
	wantErr(t, grants, "victim", ErrDamaged)
	want(t, grants, "attacker", "a")
	copyTo(v.place("tenant", "victim"), v.place("grant", "victim"))
	wantErr(t, grants, "victim", ErrDamaged)
	want(t, tenants, "victim", "t")
	wantNames(t, grants, "attacker")
	v = r.open(keyA)
	wantErr(t, v.Kind("grant"), "victim", ErrDamaged)
	if got := r.logged(); !strings.Contains(got, "damaged") || !strings.Contains(got, "1 grant") {
		t.Errorf("logged %s, want the damaged grant", got)
	}
	note, err := v.ring.Load().seal(v.place("grant", "noted"), typeNote, "noted", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.bucket.Put(t.Context(), v.place("grant", "noted"), note, 0); err != nil {
		t.Fatal(err)
	}
	wantErr(t, grants, "noted", ErrDamaged) // a note of a deletion is no empty record
}

// TestOlderVersionIsNotDetected says what the vault does not promise.
func TestOlderVersionIsNotDetected(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	k := v.Kind("grant")
	revision := put(t, k, "a", "old")
	place := v.place("grant", "a")
	old, _, err := r.bucket.Get(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	if revision, err = k.Put(t.Context(), "a", []byte("new"), revision); err != nil {
		t.Fatal(err)
	}
	if _, err := r.bucket.Put(t.Context(), place, old, revision); err != nil {
		t.Fatal(err)
	}
	want(t, k, "a", "old")
}

func TestFlippedBits(t *testing.T) {
	r := newRig(t, t.TempDir())
	v := r.open(keyA)
	put(t, v.Kind("grant"), "a", "data")
	place := v.place("grant", "a")
	sealed, revision, err := r.bucket.Get(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(sealed) * 8 {
		sealed[bit/8] ^= 1 << (bit % 8)
		got, err := v.ring.Load().open(place, sealed)
		expected := ErrDamaged
		switch octet := bit / 8; {
		case octet == 0 && sealed[0] != 0:
			expected = ErrVersion
		case octet >= 2 && octet < 10:
			expected = ErrKey
		}
		if !errors.Is(err, expected) {
			t.Fatalf("bit %d: got %+v, %v, want %v", bit, got, err, expected)
		}
		sealed[bit/8] ^= 1 << (bit % 8)
	}
	for n := range sealed {
		if _, err := v.ring.Load().open(place, sealed[:n]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d octets: got %v, want %v", n, err, ErrDamaged)
		}
	}
	if _, err := v.ring.Load().open(place, append(sealed, 0)); !errors.Is(err, ErrDamaged) {
		t.Fatalf("one octet more: got %v", err)
	}
	sealed[0] = 2
	if _, err := r.bucket.Put(t.Context(), place, sealed, revision); err != nil {
		t.Fatal(err)
	}
	wantErr(t, v.Kind("grant"), "a", ErrVersion)
	if _, err := Open(t.Context(), r.options(r.bucket, keyA)); !errors.Is(err, ErrVersion) {
		t.Errorf("got %v, want to leave a newer relayd's vault alone", err)
	}
	if _, err := Reset(t.Context(), r.options(r.bucket, keyA)); !errors.Is(err, ErrVersion) {
		t.Errorf("reset: got %v, want to leave a newer relayd's vault alone", err)
	}
}

// TestNoTwoRecordsAlike: a lost answer is told from another's write by that, and salts must not repeat.
func TestNoTwoRecordsAlike(t *testing.T) {
	v := newRig(t, t.TempDir()).open(keyA)
	seen := map[string]bool{}
	for range 1000 {
		sealed, err := v.ring.Load().seal("grant.0", typeRecord, "a", []byte("same"))
		if err != nil {
			t.Fatal(err)
		}
		salt := string(sealed[headBytes-saltBytes : headBytes])
		if seen[salt] {
			t.Fatal("a salt came twice")
		}
		seen[salt] = true
	}
}

// TestTwoVaults: two vaults on one server count by compare and swap, and no count is lost.
func TestTwoVaults(t *testing.T) {
	r := newRig(t, t.TempDir())
	const each = 50
	var counters sync.WaitGroup
	for range 4 {
		v, err := Open(t.Context(), r.options(r.connect(), keyA))
		if err != nil {
			t.Fatal(err)
		}
		counters.Go(func() {
			k := v.Kind("grant")
			for done := 0; done < each; {
				data, revision, err := k.Get(t.Context(), "counter")
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				if data != nil {
					if _, err := fmt.Sscan(string(data), &n); err != nil {
						t.Error(err)
						return
					}
				}
				next, err := k.Put(t.Context(), "counter", fmt.Append(nil, n+1), revision)
				if err != nil {
					t.Error(err)
					return
				}
				if next != 0 {
					done++
				}
			}
		})
	}
	counters.Wait()
	want(t, r.open(keyA).Kind("grant"), "counter", fmt.Sprint(4*each))
}

// TestVaultsOpenedAtOnce: they agree on one index.
func TestVaultsOpenedAtOnce(t *testing.T) {
	r := newRig(t, t.TempDir())
	vaults := make([]*Vault, 8)
	var opening sync.WaitGroup
	for i := range vaults {
		bucket := r.connect()
		opts := r.options(bucket, keyA)
		opening.Go(func() {
			var err error
			if vaults[i], err = Open(t.Context(), opts); err != nil {
				t.Error(err)
			}
		})
	}
	opening.Wait()
	put(t, vaults[0].Kind("grant"), "a", "1")
	for _, v := range vaults {
		want(t, v.Kind("grant"), "a", "1")
	}
}

// TestBesideTheQueue: the vault's stream upsets neither the broker's check nor the queue, nor the other way round.
func TestBesideTheQueue(t *testing.T) {
	dir := t.TempDir()
	for round := range 2 {
		r := newRig(t, dir)
		conns, err := r.b.Connect(2)
		if err != nil {
			t.Fatal(err)
		}
		q, err := queue.Open(t.Context(), conns, queue.Options{
			Dir: dir, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(),
			Reopen: func(context.Context) ([]*nats.Conn, error) { return nil, errStopped },
		})
		if err != nil {
			t.Fatal(err)
		}
		k := r.open(keyA).Kind("grant")
		if round == 0 {
			put(t, k, "a", "1")
		}
		want(t, k, "a", "1")
		if err := q.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.b.Close()
	}
	meta := filepath.Join(dir, "jetstream", "$G", "streams", streamName, "meta.inf")
	if err := os.WriteFile(meta, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	blocks := func() int {
		found, _ := filepath.Glob(filepath.Join(filepath.Dir(meta), "msgs", "*.blk"))
		return len(found)
	}
	before := blocks()
	if _, err := openBroker(t.Context(), dir); err == nil || !strings.Contains(err.Error(), streamName) {
		t.Errorf("got %v, want a refusal to start without the vault's stream", err)
	}
	if got := blocks(); got != before || before == 0 {
		t.Errorf("%d blocks, then %d: erased", before, got)
	}
}
