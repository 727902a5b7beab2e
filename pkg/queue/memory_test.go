package queue

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"relayd/pkg/envelope"
)

func (r *rig) remember(key, data string) {
	r.t.Helper()
	if err := r.q.Remember(r.t.Context(), key, []byte(data)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) recall(want map[string]string) {
	r.t.Helper()
	all, err := r.q.Recall(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	got := map[string]string{}
	for key, data := range all {
		got[key] = string(data)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("recalled (-want +got):\n%s", diff)
	}
}

func TestRememberOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	r.recall(map[string]string{})
	want := map[string]string{
		"budget contoso/a@contoso.com": "42",
		"odd key.*> \r\n\x00é":         strings.Repeat("x", 4000), // no subject could hold it
		"":                             "a key, too",
	}
	for key := range want {
		r.remember(key, "an older record")
		r.remember(key, want[key])
	}
	r.remember("over", "something")
	r.remember("over", "") // forgotten
	r.recall(want)
	r.restart()
	r.recall(want)
	woken := newRig(t, image(t, r.dir), nil) // kill -9
	woken.recall(want)
	woken.remember("over", "again")
	want["over"] = "again"
	woken.recall(want)
	r.remember("", "newer")
	r.kill()
	r.start()
	delete(want, "over")
	want[""] = "newer"
	r.recall(want)
}

func TestRememberTakesSmallRecordsOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	if err := r.q.Remember(t.Context(), "key", make([]byte, maxMemo-3)); err != nil {
		t.Errorf("8 KiB with its key: %v", err)
	}
	if err := r.q.Remember(t.Context(), "key", make([]byte, maxMemo-2)); err == nil {
		t.Error("more than 8 KiB were taken")
	}
	if all, err := r.q.Recall(t.Context()); err != nil || len(all["key"]) != maxMemo-3 {
		t.Errorf("got %d octets, %v, want what was taken", len(all["key"]), err)
	}
}

func TestDamagedMemoryIsLeftOut(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	r.remember("good", "data")
	sound, err := (&memo{Key: "sound", Data: []byte("data")}).encode()
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{ // by key
		"empty":          "",
		"no record":      "?",
		"no hash":        "1 ",
		"changed":        strings.Replace(string(sound), "sound", "hound", 1),
		"somebody elses": string(sound),
		"future":         "2 something new",
		"not an object":  "1 4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945 []",
	}
	for key, record := range rows {
		if _, err := r.jetstream().Publish(t.Context(), memoSubject(key), []byte(record)); err != nil {
			t.Fatal(err)
		}
	}
	r.recall(map[string]string{"good": "data"})
	if n := r.logs.FilterMessageSnippet("left out").Len(); n != len(rows) {
		t.Errorf("got %d warnings, want one for each of %d", n, len(rows))
	}
}

func TestMemoryWithoutServer(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	r.q.store.Store(nil)
	if _, err := r.q.Recall(t.Context()); code(err) != 451 {
		t.Errorf("recall: got %v, want 451", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.q.Remember(ctx, "key", []byte("data")); err == nil {
		t.Error("got no error although nothing was written")
	}
}

// FuzzMemo: whatever the disk makes of a record, it is read as what was stored, or not at all.
func FuzzMemo(f *testing.F) {
	sound, err := (&memo{Key: "k", Data: []byte("data")}).encode()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, sound, sound[:len(sound)-1], []byte("1 "), []byte("2 x"), bytes.ToUpper(sound)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		var m memo
		if err := m.decode(memoSubject("k"), record); err != nil {
			return
		}
		if m.Key != "k" {
			t.Errorf("got the record of %q", m.Key)
		}
		again, err := m.encode()
		var twin memo
		if err = errors.Join(err, twin.decode(memoSubject("k"), again)); err != nil || !bytes.Equal(twin.Data, m.Data) {
			t.Errorf("got %q, then %q, %v", m.Data, twin.Data, err)
		}
	})
}

func TestMemoKeepsItsName(t *testing.T) {
	var m memo
	record, err := (&memo{Key: "a"}).encode()
	if err = errors.Join(err, m.decode(memoSubject("a"), record)); err != nil {
		t.Fatal(err)
	}
	if err := m.decode(memoSubject("b"), record); !errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}
