package queue

import (
	"strings"
	"testing"

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
