package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"relayd/pkg/envelope"
)

func TestRestartKeepsEveryState(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	now := time.Now()
	results := []envelope.Result{{State: envelope.Sent, Reply: "250 2.0.0 ok"}, {State: envelope.Deferred, Reply: "451 4.7.0 later"}}
	failed := []envelope.Result{{State: envelope.Sent}, {State: envelope.Failed, Reply: "550 5.1.10 nobody"}}
	rows := []struct {
		name string
		to   *envelope.Progress // nil: never claimed
		hold bool
		due  bool // offered again at once
	}{
		{name: "queued", due: true},
		{name: "deferred", to: &envelope.Progress{State: envelope.Deferred, Attempts: 3, Due: now.Add(time.Hour), Reason: "451", Results: results}},
		{name: "overdue", to: &envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: now.Add(-time.Hour), Results: results}, due: true},
		{name: "uncertain", to: &envelope.Progress{State: envelope.Uncertain, Attempts: 1, Due: now, Results: results}, due: true},
		{name: "held by dispatch", to: &envelope.Progress{State: envelope.Held, Reason: "poison", Results: results}},
		{name: "failed", to: &envelope.Progress{State: envelope.Failed, Attempts: 9, Results: failed}},
		{name: "held by operator", hold: true},
	}
	envs := map[string]*envelope.Envelope{}
	for _, row := range rows {
		sender := envelope.Address(strings.ReplaceAll(row.name, " ", ".") + "@contoso.com")
		env := r.put(sender, text(1000))
		envs[row.name] = env
		if row.to != nil {
			c := r.claim(sender)
			row.to.Changed = now
			r.settle(c.Envelope, *row.to)
		}
		if row.hold {
			if err := r.q.Hold(t.Context(), env.ID, "ann", "by hand"); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := r.q.List(nil)
	r.restart()
	if diff := cmp.Diff(before, r.q.List(nil), cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("the listing changed with the restart (-before +after):\n%s", diff)
	}
	for _, row := range rows {
		env := envs[row.name]
		c, err := r.q.Get(t.Context(), env.ID)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if diff := cmp.Diff(env, c.Envelope); diff != "" {
			t.Errorf("%s: envelope changed:\n%s", row.name, diff)
		}
		if row.to != nil {
			want := *row.to
			if want.State == envelope.Failed {
				want.Due = c.Progress.Due // set by the queue: when it is collected
			}
			if diff := cmp.Diff(want, c.Progress); diff != "" {
				t.Errorf("%s: progress changed:\n%s", row.name, diff)
			}
		}
		if got := r.claim(env.Sender) != nil; got != row.due {
			t.Errorf("%s: offered after restart: %v, want %v", row.name, got, row.due)
		}
	}
}

func TestRestartKeepsOrder(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	base := time.Now().Add(-time.Hour).Truncate(time.Second)
	var want []envelope.ID
	due := map[envelope.ID]time.Time{}
	for i := range 20 { // accepted in order, a nanosecond apart: only the exact time tells them apart
		env := newEnvelope(alice)
		env.Received = base.Add(time.Duration(i))
		if err := r.q.Put(t.Context(), env, bytes.NewReader(nil)); err != nil {
			t.Fatal(err)
		}
		want = append(want, env.ID)
	}
	for i := range 6 { // the first six are deferred to a minute later, in reverse
		c := r.claim(alice)
		due[c.Envelope.ID] = base.Add(time.Minute - time.Duration(i)*time.Second)
		r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: due[c.Envelope.ID]})
	}
	want = append(want[6:], want[5], want[4], want[3], want[2], want[1], want[0])
	for range 2 { // and from a message before the restart the order is the same
		var got []envelope.ID
		var claims []*envelope.Claim
		for c := r.claim(alice); c != nil; c = r.claim(alice) {
			got, claims = append(got, c.Envelope.ID), append(claims, c)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("order (-want +got):\n%s", diff)
		}
		for _, c := range claims {
			r.q.Release(c.Envelope, c.Progress)
		}
		r.restart()
	}
}

func TestClaimTellsWhenTheNextIsDue(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	now := time.Now()
	if c, err := r.q.Claim(t.Context(), alice, now); err != nil || c.Envelope != nil || !c.Next.IsZero() {
		t.Fatalf("empty queue: got %+v, %v", c, err)
	}
	r.put(alice, nil)
	c := r.claim(alice)
	if !c.Next.IsZero() {
		t.Errorf("nothing else waits: got next %v", c.Next)
	}
	later := now.Add(time.Hour)
	r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Due: later})
	for range 2 {
		c, err := r.q.Claim(t.Context(), alice, now.Add(time.Minute))
		if err != nil || c.Envelope != nil || !c.Next.Equal(later) {
			t.Errorf("got %+v, %v, want nothing now and next at %v", c, err, later)
		}
		r.restart()
	}
	if c, err := r.q.Claim(t.Context(), alice, later); err != nil || c.Envelope == nil {
		t.Errorf("at the due time: got %+v, %v, want the message", c, err)
	}
}

func TestLargeBodySurvivesRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	for _, size := range []int{inlineBytes - 1, inlineBytes, inlineBytes + 1, 2 * chunkBytes, 2*chunkBytes + 1} {
		env := r.put(alice, text(size))
		r.restart()
		c := r.claim(alice)
		if got := r.body(c); !bytes.Equal(got, text(size)) {
			t.Errorf("size %d: the body changed", size)
		}
		r.settle(c.Envelope, sent(c))
		if n := r.records("CHUNK", env.ID) + r.records("MAIL", env.ID); n != 0 {
			t.Errorf("size %d: %d records left after it was sent", size, n)
		}
	}
	if n := r.q.space.stored.Load(); n != 0 {
		t.Errorf("accounting says %d octets are stored, want 0", n)
	}
}

// TestManyRecipients: JetStream takes no more than 64 KiB of headers, a message to 500 has more to say.
func TestManyRecipients(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	for _, size := range []int{10, 3 * inlineBytes} {
		env := newEnvelope(alice)
		env.Recipients = nil
		for i := range 500 {
			env.Recipients = append(env.Recipients, envelope.Recipient{
				Address: envelope.Address(fmt.Sprintf("%s%d@example.org", strings.Repeat("r", 60), i)),
				Notify:  "SUCCESS,FAILURE,DELAY", ORCPT: "rfc822;" + strings.Repeat("o", 100),
			})
		}
		if err := r.q.Put(t.Context(), env, bytes.NewReader(text(size))); err != nil {
			t.Fatalf("put to 500: %v", err)
		}
		r.restart()
		c := r.claim(alice)
		if diff := cmp.Diff(env, c.Envelope); diff != "" {
			t.Fatalf("the envelope changed:\n%s", diff)
		}
		if !bytes.Equal(r.body(c), text(size)) {
			t.Error("the body changed")
		}
		p := envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: time.Now().Truncate(0), Changed: time.Now().Truncate(0)}
		for range env.Recipients {
			p.Results = append(p.Results, envelope.Result{State: envelope.Deferred, Reply: "451 4.7.500 " + strings.Repeat("busy ", 40)})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := r.q.Settle(ctx, env, p); err != nil {
			t.Fatalf("settle 500 recipients: %v", err)
		}
		if got := r.state(env.ID); got != envelope.Deferred {
			t.Errorf("got %v, want deferred", got)
		}
		r.restart()
		c = r.claim(alice)
		if diff := cmp.Diff(p, c.Progress); diff != "" {
			t.Errorf("the progress changed:\n%s", diff)
		}
		r.settle(env, sent(c))
	}
}

func TestEnvelopeBeyondAnyRecord(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := newEnvelope(alice)
	env.EnvelopeID = strings.Repeat("e", 1<<20)
	err := r.q.Put(t.Context(), env, bytes.NewReader(text(10)))
	if code(err) != 552 {
		t.Errorf("got %v, want a permanent refusal: it will never fit", err)
	}
	if len(r.q.broken) != 0 {
		t.Error("one client's envelope had the storage reopened for all")
	}
}

func TestLayoutIsFixedAtFirstStart(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	if l := r.q.store.Load().layout; l != (layout{Version: 1, Streams: defaultStreams, Shards: defaultShards}) {
		t.Fatalf("got layout %+v at the first start, want the defaults", l)
	}
	for _, row := range []struct {
		layout layout
		err    string // "": honoured
	}{
		{layout{Version: 1, Streams: 2, Shards: 8}, ""},
		{layout{Version: 1, Streams: 4, Shards: 256}, ""},
		{layout{Version: 2, Streams: 4, Shards: 64}, "written by a newer relayd; run that version, or restore a backup"},
		{layout{Version: 1, Streams: 65, Shards: 64}, "written by a newer relayd"},
		{layout{Version: 1, Streams: 4, Shards: 257}, "written by a newer relayd"},
		{layout{Version: 1, Streams: 0, Shards: 64}, "written by a newer relayd"},
	} {
		r := newRig(t, t.TempDir(), nil)
		data, err := json.Marshal(row.layout)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.jetstream().Publish(t.Context(), "relayd.meta.layout", data); err != nil {
			t.Fatal(err)
		}
		r.kill()
		err = r.tryStart()
		if row.err != "" {
			if err == nil || !strings.Contains(err.Error(), row.err) {
				t.Errorf("%+v: got %v, want a sentence with %q", row.layout, err, row.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", row.layout, err)
			continue
		}
		if l := r.q.store.Load().layout; l != row.layout {
			t.Errorf("got layout %+v, want the recorded %+v", l, row.layout)
		}
		for range 8 {
			env := r.put(alice, text(100))
			if at := r.q.index.get(env.ID).place(); int(at.stream) >= row.layout.Streams || int(at.shard) >= row.layout.Shards {
				t.Errorf("%+v: message placed at %+v", row.layout, at)
			}
		}
	}
}
