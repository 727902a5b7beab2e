package queue

import (
	"strings"
	"testing"
	"time"

	"relayd/pkg/envelope"
)

// TestEncodeStateFits: thousands of recipients with long replies make a record the server refuses for ever.
func TestEncodeStateFits(t *testing.T) {
	p := envelope.Progress{State: envelope.Deferred, Attempts: 3}
	for range 3000 {
		p.Results = append(p.Results, envelope.Result{State: envelope.Deferred, Reply: "451 4.7.0 " + strings.Repeat("é<", 400)})
	}
	record, err := encodeState(&p)
	if err != nil || len(record) > maxState {
		t.Fatalf("got %d octets, %v, want at most %d", len(record), err, maxState)
	}
	var got envelope.Progress
	if err := got.Decode(record); err != nil {
		t.Fatal(err)
	}
	if got.Attempts != 3 || len(got.Results) != 3000 || got.Results[2999].State != envelope.Deferred {
		t.Errorf("got %d attempts, %d results, want all but the length of the replies kept", got.Attempts, len(got.Results))
	}
	if reply := got.Results[0].Reply; !strings.HasPrefix(reply, "451 4.7.0 ") || !strings.HasSuffix(reply, "…") {
		t.Errorf("got reply %q, want its beginning, and a sign that more was there", reply)
	}
	if len(p.Results[0].Reply) < 1000 {
		t.Error("the caller's own replies were cut")
	}
}

func TestEncodeStateLeavesShortOnesAlone(t *testing.T) {
	p := envelope.Progress{State: envelope.Failed, Results: []envelope.Result{{State: envelope.Failed, Reply: strings.Repeat("x", 1000)}}}
	record, err := encodeState(&p)
	if err != nil {
		t.Fatal(err)
	}
	want, err := p.Encode()
	if err != nil || string(record) != string(want) {
		t.Errorf("got a changed record, %v, want it as it is", err)
	}
}

// TestEncodeStateOfEveryField: what a recipient's result says beside its reply must not make it too long either, and what
// decides its fate is never cut.
func TestEncodeStateOfEveryField(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(0)
	for _, row := range []struct {
		recipients, reply int
		replies, times    bool // something of them is kept
	}{{1000, 5000, true, true}, {4500, 300, true, true}, {20_000, 1, false, false}} {
		p := envelope.Progress{State: envelope.Deferred, Attempts: 3, Due: now, Part: 100, Warned: true, Reason: strings.Repeat("r", 10_000)}
		for i := range row.recipients {
			p.Results = append(p.Results, envelope.Result{
				State: envelope.Deferred, Attempts: i % 50, Due: now, Changed: now, Owed: i%2 == 0,
				Reply: strings.Repeat("x", row.reply), Rule: "a rule with a rather long name",
			})
		}
		record, err := encodeState(&p)
		if err != nil || len(record) > maxState {
			t.Errorf("%d recipients: got %d octets, %v, want at most %d", row.recipients, len(record), err, maxState)
			continue
		}
		var got envelope.Progress
		if err := got.Decode(record); err != nil {
			t.Fatal(err)
		}
		if got.State != p.State || got.Attempts != 3 || !got.Due.Equal(now) || got.Part != 100 || !got.Warned || len(got.Results) != row.recipients {
			t.Errorf("%d recipients: the message changed: %+v", row.recipients, got.State)
		}
		for i, r := range got.Results {
			if r.State != envelope.Deferred || r.Attempts != i%50 || r.Owed != (i%2 == 0) {
				t.Fatalf("%d recipients: %d is %+v", row.recipients, i, r)
			}
			if (r.Reply != "") != row.replies || r.Due.Equal(now) != row.times {
				t.Fatalf("%d recipients: %d has reply %q, due %v", row.recipients, i, r.Reply, r.Due)
			}
		}
	}
}
