package record

import (
	"bytes"
	"testing"

	"relayd/pkg/envelope"
)

func signalled(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestBuffer(t *testing.T) {
	s := envelope.Step{ID: envelope.NewID(noon)}
	one := Append(nil, &s)
	b := NewBuffer(5*len(one), 2)
	if batch, n, dropped := b.Take(); batch != nil || n != 0 || dropped != 0 || signalled(b.Begun) {
		t.Error("something in a new buffer")
	}
	b.Add(&s)
	if !signalled(b.Begun) || signalled(b.Full) {
		t.Error("one step: want Begun, not Full")
	}
	b.Add(&s)
	if signalled(b.Begun) || !signalled(b.Full) {
		t.Error("a batch: want Full, and Begun no second time")
	}
	batch, n, _ := b.Take()
	if n != 2 || !bytes.Equal(batch, append(append([]byte{}, one...), one...)) {
		t.Errorf("%d records, %d octets", n, len(batch))
	}

	third := envelope.Step{ID: envelope.NewID(noon), Reply: "3"}
	b.Add(&third)
	signalled(b.Begun)
	if !b.GiveBack(batch, n) || !signalled(b.Begun) {
		t.Error("not taken back, or nobody told")
	}
	if batch, n, _ = b.Take(); n != 3 || !bytes.Equal(batch[2*len(one):], Append(nil, &third)) {
		t.Errorf("%d records; want the ones given back first", n)
	}
	b.Recycle(batch)

	for range 5 {
		if !b.Add(&s) {
			t.Error("dropped, though there is room")
		}
	}
	for range 2 {
		if b.Add(&s) {
			t.Error("no bound")
		}
	}
	if _, n, dropped := b.Take(); n != 5 || dropped != 2 {
		t.Errorf("%d records and %d dropped, want 5 and 2", n, dropped)
	}
	signalled(b.Begun)
	if b.Add(&envelope.Step{ID: "no id"}) || !signalled(b.Begun) {
		t.Error("a step without an id was taken, or its loss not told")
	}
	b.Close()
	if b.Add(&s) {
		t.Error("taken after Close")
	}
}

func TestGiveBackIsBounded(t *testing.T) {
	b := NewBuffer(1000, 10)
	s := envelope.Step{ID: envelope.NewID(noon)}
	b.Add(&s)
	if b.GiveBack(make([]byte, 1000+MaxPayload), 1) {
		t.Error("more taken back than the bound allows")
	}
	if _, n, _ := b.Take(); n != 1 {
		t.Errorf("%d records, want the one added", n)
	}
}

// A buffer that grew in a burst is not kept; one of a common size is.
func TestRecycle(t *testing.T) {
	b := NewBuffer(8000, 1000)
	s := envelope.Step{ID: envelope.NewID(noon)}
	for _, row := range []struct {
		size int
		kept bool
	}{{900, true}, {2000, false}} {
		b.Recycle(make([]byte, 0, row.size))
		b.Add(&s)
		b.Take() // now the spare, if any, is being filled
		b.Add(&s)
		batch, _, _ := b.Take()
		if kept := cap(batch) == row.size; kept != row.kept {
			t.Errorf("buffer of %d octets kept: %v, want %v", row.size, kept, row.kept)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	s := envelope.Step{ID: envelope.NewID(noon), At: noon, What: envelope.StepAttempt, State: envelope.Sent, By: "contoso/erp@contoso.com",
		Attempt: 1, Took: 1e8, Reply: "250 2.0.0 OK <abc@contoso.com> [Hostname=X.prod.outlook.com] Queued mail for delivery"}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = Append(buf[:0], &s)
	}
}
