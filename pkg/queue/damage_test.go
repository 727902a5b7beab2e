package queue

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"relayd/pkg/envelope"
)

// flip turns over one bit of the mail streams' stored octets, at the end of needle, as a bad disk would.
func flip(t *testing.T, dir string, needle string) {
	t.Helper()
	flipIn(t, dir, "RELAYD_MAIL_*", needle)
}

func flipIn(t *testing.T, dir, stream, needle string) {
	t.Helper()
	blocks, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", stream, "msgs", "*.blk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range blocks {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		i := bytes.Index(data, []byte(needle))
		if i < 0 {
			continue
		}
		data[i+len(needle)-1] ^= 4
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%q is in none of %d blocks", needle, len(blocks))
}

// TestFlippedBit: whatever a bad disk does to a stored message, it is not delivered changed, the others flow, and
// somebody is told.
func TestFlippedBit(t *testing.T) {
	const messages = 24
	needles := map[string]func(id string) string{
		"body":     func(id string) string { return "body of " + id },
		"envelope": func(id string) string { return `{"id":"` + id },
		"subject":  func(id string) string { return "." + id },
		"state":    func(id string) string { return `"reason":"marked ` + id },
	}
	for part, needle := range needles {
		for _, clean := range []bool{true, false} {
			name := part + " after a clean stop"
			if !clean {
				name = part + " after kill -9"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, t.TempDir(), nil)
				bodies := map[envelope.ID]string{}
				for range messages {
					env := newEnvelope(alice)
					bodies[env.ID] = "body of " + string(env.ID) + "\r\n"
					if err := r.q.Put(t.Context(), env, strings.NewReader(bodies[env.ID])); err != nil {
						t.Fatal(err)
					}
				}
				var claims []*envelope.Claim
				for c := r.claim(alice); c != nil; c = r.claim(alice) {
					claims = append(claims, c)
				}
				for _, c := range claims {
					r.settle(c.Envelope, envelope.Progress{
						State: envelope.Deferred, Due: time.Now(), Reason: "marked " + string(c.Envelope.ID),
					})
				}
				victim := claims[4].Envelope.ID
				dir := r.dir
				if clean {
					r.close()
				} else {
					dir = image(t, r.dir)
					r.kill()
				}
				flip(t, dir, needle(string(victim)))
				r = newRig(t, dir, nil)
				offered := 0
				for c := r.claim(alice); c != nil; c = r.claim(alice) {
					if got := string(r.body(c)); got != bodies[c.Envelope.ID] {
						t.Errorf("%s: got body %q", c.Envelope.ID, got)
					}
					if c.Envelope.ID == victim && clean {
						t.Error("the damaged message was offered")
					}
					offered++
					if clean { // in a block with an unreadable record, too
						r.settle(c.Envelope, sent(c))
					}
				}
				if !clean { // the server dropped the rest of the block: nobody can say what it was, but that it was
					if n := count(t, r.q.metrics.auditFailures); n != 1 {
						t.Errorf("relayd_queue_audit_failures_total is %v, want 1", n)
					}
					return
				}
				if offered != messages-1 {
					t.Errorf("got %d messages offered, want all but one of %d", offered, messages)
				}
				if got := r.state(victim); got != envelope.Held {
					t.Errorf("the damaged message is %q, want held", got)
				}
				if n := count(t, r.q.metrics.quarantined); n != 1 {
					t.Errorf("relayd_queue_quarantined_total is %v, want 1", n)
				}
				if _, err := r.q.Get(t.Context(), victim); !errors.Is(err, envelope.ErrCorrupt) {
					t.Errorf("get: %v, want ErrCorrupt", err)
				}
				if err := r.q.Resume(t.Context(), victim, "ann"); !errors.Is(err, envelope.ErrCorrupt) {
					t.Errorf("resume: %v, want ErrCorrupt", err)
				}
			})
		}
	}
}

// TestDamageAtTheEnd: nothing comes behind the unreadable record.
func TestDamageAtTheEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	env := newEnvelope(alice)
	if err := r.q.Put(t.Context(), env, strings.NewReader("the only body")); err != nil {
		t.Fatal(err)
	}
	r.close()
	flip(t, r.dir, "the only body")
	r.start()
	if got := r.state(env.ID); got != envelope.Held {
		t.Errorf("got %q, want held", got)
	}
	kept := r.put(alice, text(10)) // and the queue goes on
	if c := r.claim(alice); c == nil || c.Envelope.ID != kept.ID {
		t.Error("new mail is not offered")
	}
}

// replace writes a record in place of an entry's own, as if it had been there from the start.
func (r *rig) replace(e *entry, kind string, record, body []byte) {
	r.t.Helper()
	msg := newRecord(e.place().subject(kind), record, body)
	msg.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	if _, err := r.jetstream().PublishMsg(context.Background(), msg); err != nil {
		r.t.Fatal(err)
	}
}

func TestRecordsThatAreNotSent(t *testing.T) {
	encoded := func(e interface{ Encode() ([]byte, error) }) string {
		record, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(record)
	}
	rows := []struct {
		name, kind string
		record     func(env *envelope.Envelope) string
		body       string
		corrupt    bool // else of a future version
		atLoad     bool // seen at the start; else when it is claimed
	}{
		{"future envelope", "mail", func(*envelope.Envelope) string { return "2 something new" }, "body", false, true},
		{"future state", "state", func(*envelope.Envelope) string { return "2 something new" }, "", false, true},
		{"no envelope", "mail", func(*envelope.Envelope) string { return "" }, "body", true, true},
		{"changed envelope", "mail", func(env *envelope.Envelope) string {
			return strings.Replace(encoded(env), "alice@", "mallo@", 1)
		}, "body", true, true},
		{"changed state", "state", func(*envelope.Envelope) string {
			return strings.Replace(encoded(&envelope.Progress{State: envelope.Held}), "held", "sent", 1)
		}, "", true, true},
		{"changed body", "mail", func(env *envelope.Envelope) string { return encoded(env) }, "bodY", true, false},
		{"somebody else's envelope", "mail", func(env *envelope.Envelope) string {
			other := *env
			other.ID = envelope.NewID(time.Now())
			return encoded(&other)
		}, "body", true, false},
		{"record longer than the payload", "mail", func(*envelope.Envelope) string { return strings.Repeat("x", maxHeader+1) }, "", true, true},
	}
	r := newRig(t, t.TempDir(), nil)
	ids := make([]envelope.ID, len(rows))
	records := make([]string, len(rows))
	for i, row := range rows {
		env := newEnvelope(alice)
		if err := r.q.Put(t.Context(), env, strings.NewReader("body")); err != nil {
			t.Fatal(err)
		}
		ids[i], records[i] = env.ID, row.record(env)
		r.replace(r.q.index.get(env.ID), row.kind, []byte(records[i]), []byte(row.body))
	}
	good := r.put(alice, text(10))
	r.kill()
	r.start()
	for i, row := range rows {
		if got := r.state(ids[i]); (got == envelope.Held) != row.atLoad {
			t.Errorf("%s: is %q after the start, want held: %v", row.name, got, row.atLoad)
		}
	}
	if c := r.claim(alice); c == nil || c.Envelope.ID != good.ID {
		t.Fatalf("got %+v, want the one good message", c)
	}
	for i, row := range rows {
		if got := r.state(ids[i]); got != envelope.Held {
			t.Errorf("%s: is %q, want held", row.name, got)
		}
		_, err := r.q.Get(t.Context(), ids[i])
		if errors.Is(err, envelope.ErrCorrupt) != row.corrupt || err == nil {
			t.Errorf("%s: got %v, want corrupt: %v", row.name, err, row.corrupt)
		}
		if err := errors.Join(r.q.Resume(t.Context(), ids[i], "ann"), r.q.Hold(t.Context(), ids[i], "ann", "")); err == nil {
			t.Errorf("%s: resumed or held anew, which writes over what should be examined", row.name)
		}
		if got := r.state(ids[i]); got != envelope.Held {
			t.Errorf("%s: is %q after a hold and a resume that failed, want held", row.name, got)
		}
		e := r.q.index.get(ids[i])
		s, err := r.jetstream().StreamNameBySubject(t.Context(), e.place().subject(row.kind))
		if err != nil {
			t.Fatal(err)
		}
		stream, err := r.jetstream().Stream(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		msg, err := stream.GetLastMsgForSubject(t.Context(), e.place().subject(row.kind))
		if err != nil {
			t.Fatal(err)
		}
		if record, body := splitRecord(msg.Header, msg.Data); string(record) != records[i] || string(body) != row.body {
			t.Errorf("%s: the record on the disk was touched", row.name)
		}
	}
	if n := count(t, r.q.metrics.quarantined); n != float64(len(rows)) {
		t.Errorf("relayd_queue_quarantined_total is %v, want %d", n, len(rows))
	}
	for i, row := range rows { // what the storage can read, it can remove
		if err := r.q.Drop(t.Context(), ids[i], "ann"); err != nil {
			t.Errorf("%s: drop: %v", row.name, err)
		}
	}
	r.restart()
	if list := r.q.List(nil); len(list) != 1 || list[0].ID != good.ID {
		t.Errorf("got %v after the damaged ones were dropped, want the good one", list)
	}
}

func TestRecordOfAnotherLength(t *testing.T) {
	for _, length := range []string{"-1", "11", "x", "9999999999999999999"} {
		if record, body := splitRecord(nats.Header{headerLength: {length}}, make([]byte, 10)); record != nil || body != nil {
			t.Errorf("length %q: got %q, %q, want nothing", length, record, body)
		}
	}
	big := bytes.Repeat([]byte("r"), maxHeader+1)
	for _, record := range [][]byte{{}, big[:maxHeader], big} {
		msg := newRecord("s", record, []byte("body"))
		if got, body := splitRecord(msg.Header, msg.Data); !bytes.Equal(got, record) || string(body) != "body" {
			t.Errorf("record of %d octets: came back as %d, %q", len(record), len(got), body)
		}
	}
}

func TestDamagedChunk(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		damage func(r *rig, at place)
	}{
		{"missing", func(r *rig, at place) {
			s, err := r.jetstream().Stream(t.Context(), "RELAYD_CHUNK_"+string('0'+rune(at.stream)))
			if err != nil {
				t.Fatal(err)
			}
			msg, err := s.GetLastMsgForSubject(t.Context(), r.q.store.Load().chunkSubject(at, 1))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.DeleteMsg(t.Context(), msg.Sequence); err != nil {
				t.Fatal(err)
			}
		}},
		{"altered", func(r *rig, at place) {
			data := text(2 * chunkBytes)[chunkBytes:]
			data[100] ^= 1
			if _, err := r.jetstream().Publish(t.Context(), r.q.store.Load().chunkSubject(at, 1), data); err != nil {
				t.Fatal(err)
			}
		}},
		{"shorter", func(r *rig, at place) {
			if _, err := r.jetstream().Publish(t.Context(), r.q.store.Load().chunkSubject(at, 2), nil); err != nil {
				t.Fatal(err)
			}
		}},
		{"swapped", func(r *rig, at place) {
			for n, part := range [][]byte{text(2 * chunkBytes)[chunkBytes:], text(chunkBytes)} {
				if _, err := r.jetstream().Publish(t.Context(), r.q.store.Load().chunkSubject(at, n), part); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		r := newRig(t, t.TempDir(), nil)
		env := r.put(alice, text(2*chunkBytes+1000))
		row.damage(r, r.q.index.get(env.ID).place())
		c := r.claim(alice)
		body := c.Body(t.Context())
		for range 3 { // also for one who does not listen the first time
			if n, err := io.Copy(io.Discard, body); !errors.Is(err, envelope.ErrCorrupt) {
				t.Errorf("%s chunk: %d octets, then %v, want ErrCorrupt", row.name, n, err)
			}
		}
		r.kill()
	}
}

func TestForeignRecords(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir(), nil)
	js := r.jetstream()
	for _, subject := range []string{
		"relayd.mail.0.0.NOT-AN-ID", "relayd.mail.0.300." + string(envelope.NewID(time.Now())), "relayd.state.0.x", "relayd.mail.0",
		"relayd.mail.0.0." + string(envelope.NewID(time.Now())) + ".more", "relayd.chunk.0.0.x.0",
	} {
		js.Publish(t.Context(), subject, []byte("?")) // some do not even belong to a stream
	}
	r.restart()
	if list := r.q.List(nil); len(list) != 0 {
		t.Errorf("got %v, want none of it taken for mail", list)
	}
	if n := r.logs.FilterMessageSnippet("not relayd's").Len(); n != 4 {
		t.Errorf("got %d log lines, want one for each of 4", n)
	}
}

// TestStateAfterADamagedOne: a state record that replaces one the server cannot read stays, and says what became of whom.
func TestStateAfterADamagedOne(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	c := r.claim(alice)
	r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Due: time.Now(), Reason: "marked " + string(env.ID)})
	last := r.q.index.get(env.ID).last
	r.close() // or the server answers from its memory
	flip(t, r.dir, `"reason":"marked `+string(env.ID))
	r.start()
	e := r.q.index.get(env.ID)
	e.last, e.state = last, stateSending // as if it had been damaged after it was claimed
	results := []envelope.Result{{State: envelope.Sent}, {State: envelope.Deferred}}
	r.settle(env, envelope.Progress{State: envelope.Deferred, Attempts: 2, Due: time.Now(), Results: results})
	r.settle(r.claim(alice).Envelope, envelope.Progress{State: envelope.Deferred, Attempts: 3, Due: time.Now(), Results: results})
	for _, restart := range []func(){func() {}, r.restart, func() { r.kill(); r.start() }} {
		restart()
		c := r.claim(alice)
		if c == nil || c.Progress.Attempts != 3 || len(c.Progress.Open(c.Envelope)) != 1 {
			t.Fatalf("got %+v, want the newest state, with one recipient left", c)
		}
		r.q.Release(c.Envelope, c.Progress)
	}
}

// TestRememberedOverADamagedOne: a note the server cannot read is replaced, and the server is not opened anew for it.
func TestRememberedOverADamagedOne(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	if err := r.q.Remember(t.Context(), "k", []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := r.q.Remember(t.Context(), "other", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	r.close() // or the server answers from its memory
	flipIn(t, r.dir, "RELAYD_META", base64.StdEncoding.EncodeToString([]byte("first")))
	r.start()
	for _, data := range []string{"second", "third"} {
		if err := r.q.Remember(t.Context(), "k", []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	for _, restart := range []func(){func() {}, r.restart, func() { r.kill(); r.start() }} {
		restart()
		all, err := r.q.Recall(t.Context())
		if err != nil || len(all) != 2 || string(all["k"]) != "third" || string(all["other"]) != "kept" {
			t.Fatalf("got %q, %v", all, err)
		}
	}
	if n := count(t, r.q.metrics.faults); n != 0 {
		t.Errorf("got %v faults, want none", n)
	}
}

// TestLeftoverState: a state record that a crash left below the newest goes with the message.
func TestLeftoverState(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	env := r.put(alice, text(10))
	c := r.claim(alice)
	r.settle(c.Envelope, envelope.Progress{State: envelope.Deferred, Attempts: 1, Due: time.Now()})
	e := r.q.index.get(env.ID)
	record, err := (&envelope.Progress{State: envelope.Deferred, Attempts: 2, Due: time.Now(), Changed: time.Now()}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.q.store.Load().publish(t.Context(), e.place(), newRecord(e.place().subject("state"), record, nil)); err != nil {
		t.Fatal(err) // the crash is before the purge
	}
	r.kill()
	r.start()
	c = r.claim(alice)
	if c == nil || c.Progress.Attempts != 2 {
		t.Fatalf("got %+v, want the newest state", c)
	}
	r.settle(c.Envelope, sent(c))
	for k, stream := range r.q.store.Load().mail {
		info, err := stream.Info(t.Context())
		if err != nil || info.State.Msgs != 0 {
			t.Errorf("stream %d: got %+v, %v, want nothing left", k, info.State, err)
		}
	}
}
