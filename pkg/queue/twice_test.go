package queue

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"relayd/pkg/envelope"
)

// derived returns the envelope of what relayd itself writes about id, the same each time.
func derived(id envelope.ID) *envelope.Envelope {
	env := newEnvelope(alice)
	env.ID = id.Derived("bounce")
	return env
}

var errReadBody = errors.New("the body was read")

// TestPutOfWhatIsThere: a bounce that is stored again, since nobody knows whether it was stored, is one message.
func TestPutOfWhatIsThere(t *testing.T) {
	t.Parallel()
	unread := readerFunc(func([]byte) (int, error) { return 0, errReadBody })
	for _, size := range []int{100, 2*chunkBytes + 1} {
		r := newRig(t, t.TempDir(), nil)
		original := envelope.NewID(newEnvelope(alice).Received)
		if err := r.q.Put(t.Context(), derived(original), bytes.NewReader(text(size))); err != nil {
			t.Fatal(err)
		}
		id := original.Derived("bounce")
		once := func(what string, r *rig, state envelope.State) {
			t.Helper()
			records := r.records("MAIL", id) + r.records("CHUNK", id)
			if err := r.q.Put(t.Context(), derived(original), unread); err != nil {
				t.Errorf("%s: put again: %v", what, err)
			}
			if list := r.q.List(nil); len(list) != 1 || list[0].ID != id || list[0].State != state {
				t.Errorf("%s: got %v, want the one message, %s", what, list, state)
			}
			if n := r.records("MAIL", id) + r.records("CHUNK", id); n != records {
				t.Errorf("%s: %d records became %d", what, records, n)
			}
		}
		once("queued", r, envelope.Queued)
		woken := newRig(t, image(t, r.dir), nil) // kill -9 after the bounce was stored, before its original knew
		once("after kill -9", woken, envelope.Queued)
		c := woken.claim(alice)
		once("being sent", woken, envelope.Sending)
		woken.body(c)
		woken.settle(c.Envelope, sent(c))
		woken.idle()
		woken.restart()
		woken.idle()
		woken.kill()
		r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Held})
		r.restart()
		once("held, after a restart", r, envelope.Held)
		r.kill()
	}
}

// TestPutTwiceAtOnce: of many who store the same message at the same time one does.
func TestPutTwiceAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	for range 20 {
		original := envelope.NewID(newEnvelope(alice).Received)
		errs := make([]error, 4)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = r.q.Put(t.Context(), derived(original), bytes.NewReader(text(100))) })
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil && code(err) != 451 {
				t.Errorf("got %v, want nil or 451", err)
			}
		}
		if n := r.records("MAIL", original.Derived("bounce")); n != 1 {
			t.Fatalf("got %d mail records, want 1", n)
		}
	}
	if len(r.q.storing) != 0 {
		t.Error("who stores what is never forgotten")
	}
}

// TestPutAgainAfterAFailure: what was refused for its body can be put again.
func TestPutAgainAfterAFailure(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := newEnvelope(alice)
	for _, n := range []int{10, chunkBytes} {
		broken := io.MultiReader(bytes.NewReader(text(n)), readerFunc(func([]byte) (int, error) { return 0, errReadBody }))
		if err := r.q.Put(t.Context(), env, broken); !errors.Is(err, errReadBody) {
			t.Fatalf("got %v, want the body's error", err)
		}
	}
	if err := r.q.Put(t.Context(), env, bytes.NewReader(text(10))); err != nil {
		t.Fatal(err)
	}
	c := r.claim(alice)
	r.settle(env, sent(c))
	r.idle()
}

// unanswered is a server whose answers to the next publishings are lost, or that refuses them.
type unanswered struct {
	jetstream.JetStream
	stores []bool // by publishing: whether the record is stored all the same
	errs   []error
}

func (u *unanswered) PublishMsg(ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if len(u.errs) == 0 {
		return u.JetStream.PublishMsg(ctx, msg, opts...)
	}
	store, err := u.stores[0], u.errs[0]
	u.stores, u.errs = u.stores[1:], u.errs[1:]
	if store {
		if _, err := u.JetStream.PublishMsg(ctx, msg, opts...); err != nil {
			return nil, err
		}
	}
	return nil, err
}

// TestNotKnownWhetherStored: the first try to write the mail record was not answered, the second failed. The client hears
// 451 and sends again; the record, where there is one, must not be sent, and nothing of the kind be put until it is gone.
func TestNotKnownWhetherStored(t *testing.T) {
	t.Parallel()
	refusal := errors.New("refused")
	for _, row := range []struct {
		name   string
		stores []bool
		errs   []error
		code   int
		unsure bool // the record may be there
	}{
		{"stored, then refused", []bool{true, false}, []error{context.DeadlineExceeded, refusal}, 451, true},
		{"stored, then full", []bool{true, false}, []error{context.DeadlineExceeded, &jetstream.APIError{ErrorCode: codeStoreFull}}, 451, true},
		{"not stored, then refused", []bool{false, false}, []error{context.DeadlineExceeded, refusal}, 451, true},
		{"neither answered, both late", []bool{true, false}, []error{context.DeadlineExceeded, context.DeadlineExceeded}, 451, true},
		{"stored, then answered", []bool{true}, []error{context.DeadlineExceeded}, 0, false},
		{"not stored, then answered", []bool{false}, []error{context.DeadlineExceeded}, 0, false},
		{"full at once", []bool{false}, []error{&jetstream.APIError{ErrorCode: codeStoreFull}}, 452, false},
		{"busy", []bool{false}, []error{&jetstream.APIError{ErrorCode: codeBusy}}, 451, false},
	} {
		r := newRig(t, t.TempDir(), nil)
		env, kept := newEnvelope(alice), r.put(alice, text(10))
		st := r.q.store.Load()
		for k := range st.js {
			st.js[k] = &unanswered{JetStream: st.js[k], stores: row.stores, errs: row.errs}
		}
		err := r.q.Put(t.Context(), env, bytes.NewReader(text(10)))
		if code(err) != row.code || errors.Is(err, errUnknown) != row.unsure {
			t.Errorf("%s: got %v, want %d", row.name, err, row.code)
		}
		if got := len(r.q.broken) == 1 && r.q.refused[env.ID]; got != row.unsure {
			t.Errorf("%s: the record is to be removed: %v, want %v", row.name, got, row.unsure)
		}
		if row.unsure {
			if err := r.q.Put(t.Context(), env, bytes.NewReader(text(10))); code(err) != 451 {
				t.Errorf("%s: put again before the reopening: got %v, want 451", row.name, err)
			}
		}
		r.q.reopen(t.Context())
		if got := r.state(env.ID); (got == envelope.Queued) != (row.code == 0) {
			t.Errorf("%s: the message is %q", row.name, got)
		}
		if len(r.q.refused) != 0 {
			t.Errorf("%s: the refusal is never forgotten", row.name)
		}
		if err := r.q.Put(t.Context(), env, bytes.NewReader(text(10))); err != nil { // the same id again, as a bounce has
			t.Errorf("%s: put after the reopening: %v", row.name, err)
		}
		for _, id := range []envelope.ID{env.ID, kept.ID} {
			if n := r.records("MAIL", id); n != 1 {
				t.Errorf("%s: got %d records, want 1", row.name, n)
			}
		}
		r.kill()
	}
}
