package sandbox

import (
	"fmt"
	"testing"
)

func TestStoreBounds(t *testing.T) {
	s := newStore(100, 16)
	for i := range 40 {
		s.add(&Message{Size: 30, Rcpts: []string{"a@b"}, RelaydID: fmt.Sprint(i)}, make([]byte, 30))
		if s.bytes > 100 || len(s.messages) > 16 {
			t.Fatalf("after %d: %d bytes, %d messages", i+1, s.bytes, len(s.messages))
		}
		kept := 0
		for seq := range uint64(42) {
			if _, ok := s.raw(seq); ok {
				kept++
			}
		}
		if kept != min(3, i+1) {
			t.Fatalf("after %d: %d bodies are kept, want the last 3", i+1, kept)
		}
		if _, ok := s.raw(uint64(i + 1)); !ok {
			t.Fatalf("the newest body is gone after %d", i+1)
		}
	}
	all := s.list(Filter{})
	for i, m := range all {
		if m.Seq != 40-uint64(len(all))+uint64(i)+1 {
			t.Fatalf("message %d is number %d of %d", i, m.Seq, len(all))
		}
	}
	if st := s.stats(); st.Messages != 40 || st.Bytes != 1200 || st.DuplicateCount != 0 {
		t.Errorf("got %+v", st)
	}
}

func TestStoreOneBodyTooLarge(t *testing.T) {
	s := newStore(10, 5)
	s.add(&Message{Size: 11}, make([]byte, 11))
	s.add(&Message{Size: 4}, make([]byte, 4))
	if _, ok := s.raw(1); ok {
		t.Error("a body over the bound is kept")
	}
	if _, ok := s.raw(2); !ok || s.bytes != 4 {
		t.Errorf("the next is gone, %d bytes", s.bytes)
	}
}

func TestDuplicates(t *testing.T) {
	s := newStore(0, 100)
	for _, d := range []struct {
		id    string
		rcpts []string
	}{
		{"one", []string{"a@x", "b@x"}},
		{"one", []string{"c@x"}},            // the rest of a message: no duplicate
		{"two", []string{"a@x"}},            // another message
		{"one", []string{"A@X"}},            // again
		{"one", []string{"a@x"}},            // and again
		{"", []string{"a@x"}},               // not from relayd
		{"", []string{"a@x"}},               //
		{"another", []string{"z@x", "z@x"}}, // the same recipient twice in one envelope
	} {
		s.add(&Message{RelaydID: d.id, Rcpts: d.rcpts}, nil)
	}
	got := fmt.Sprint(s.stats().DuplicateCount, s.stats().Duplicates)
	if want := "3 [{another z@x 2} {one a@x 3}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDropBodies(t *testing.T) {
	b, err := New(Options{DropBodies: true})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	b.store.add(&Message{SHA256: "x"}, nil) // what submission brings without KeepBodies
	if _, ok := b.Raw(1); ok || len(b.Messages(Filter{})) != 1 {
		t.Error("a body is kept, or no record is")
	}
}
