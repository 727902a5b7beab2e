package envelope

import (
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func sampleEnvelope() *Envelope {
	return &Envelope{
		ID: "01hxexample0000000ab", Received: noon, Intake: "smtp", Listener: ":2525", Client: "erp", Peer: "10.0.0.5",
		ReversePath: "a@contoso.com", Sender: "a@contoso.com",
		Recipients: []Recipient{{Address: "b@example.com", Notify: "NEVER", ORCPT: "rfc822;b@example.com"}, {Address: `"c d"@example.com`}},
		Size:       42, SHA256: sha256.Sum256([]byte("body")), Chunks: 2, EightBit: true, SMTPUTF8: true,
		Return: "HDRS", EnvelopeID: "x+20y", MessageID: "<m@contoso.com>", Repairs: []string{"removed Bcc"},
	}
}

func sampleProgress() *Progress {
	return &Progress{
		State: Deferred, Attempts: 3, Due: noon, Changed: noon.Add(-time.Minute), Reason: "451 4.3.0 try again",
		Results: []Result{{State: Sent, Reply: "250 2.1.5 ok"}, {State: Deferred}},
	}
}

// A record once written must be read by every later version: these files are never regenerated.
func TestSamplesOfVersion1(t *testing.T) {
	want, got := sampleEnvelope(), new(Envelope)
	checkSample(t, "testdata/envelope.1", want, got)
	wantProgress, gotProgress := sampleProgress(), new(Progress)
	checkSample(t, "testdata/progress.1", wantProgress, gotProgress)
}

type record interface {
	Encode() ([]byte, error)
	Decode([]byte) error
}

func checkSample(t *testing.T, file string, want, got record) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data = []byte(strings.TrimSuffix(string(data), "\n"))
	if err := got.Decode(data); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: -want +got\n%s", file, diff)
	}
	again, err := want.Encode()
	if err != nil || string(again) != string(data) {
		t.Errorf("%s: the encoding has changed without a new version:\n%s", file, again)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := sampleEnvelope().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range good { // any flipped bit, the body's hash excepted: the body itself proves that one
		if i >= 2 && i < 66 {
			continue
		}
		bad := slices.Clone(good)
		bad[i] ^= 0x40
		if err := new(Envelope).Decode(bad); err == nil {
			t.Errorf("flipped octet %d (%q) was not noticed", i, good[i])
		}
	}
	for i := range good {
		if err := new(Envelope).Decode(good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut at %d: got %v, want ErrCorrupt", i, err)
		}
	}
	newer := append([]byte("2"), good[1:]...)
	if err := new(Envelope).Decode(newer); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("newer version: got %v, want an error that names it, not ErrCorrupt", err)
	}
	notJSON, err := encode([32]byte{}, "a string")
	if err != nil {
		t.Fatal(err)
	}
	if err := new(Progress).Decode(notJSON); !errors.Is(err, ErrCorrupt) {
		t.Errorf("wrong JSON: got %v, want ErrCorrupt", err)
	}
}

func TestEncodeIsOneLine(t *testing.T) {
	e := sampleEnvelope()
	e.Repairs = []string{"line\r\nbreak"}
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(string(b), "\r\n") {
		t.Errorf("line break in %q", b)
	}
	got := new(Envelope)
	if err := got.Decode(b); err != nil || cmp.Diff(e, got) != "" {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzDecode(f *testing.F) {
	e, _ := sampleEnvelope().Encode()
	p, _ := sampleProgress().Encode()
	f.Add(e)
	f.Add(p)
	f.Add([]byte("1 "))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Envelope
		if e.Decode(b) == nil {
			if _, err := e.Encode(); err != nil {
				t.Fatal(err)
			}
		}
		_ = new(Progress).Decode(b)
	})
}

func TestID(t *testing.T) {
	a, b := NewID(noon), NewID(noon)
	if a == b || !a.Valid() || !b.Valid() {
		t.Errorf("got %q and %q", a, b)
	}
	if later := NewID(noon.Add(time.Millisecond)); later <= a || later <= b {
		t.Errorf("%q does not sort behind %q and %q", later, a, b)
	}
	if old := NewID(noon.AddDate(-50, 0, 0)); old >= a {
		t.Errorf("%q does not sort before %q", old, a)
	}
	for _, id := range []ID{"", "01hxexample0000000a", "01hxexample0000000abc", "01hxexample0000000aL", "01hxexample0000000ai", "01hxexample0000000a.", "01HXexample0000000ab"} {
		if id.Valid() {
			t.Errorf("%q is valid", id)
		}
	}
}

func TestProgressOpen(t *testing.T) {
	env := &Envelope{Recipients: make([]Recipient, 5)}
	tests := []struct {
		name string
		p    Progress
		want []int
	}{
		{"untouched", Progress{}, []int{0, 1, 2, 3, 4}},
		{"each state", Progress{Results: []Result{{State: Sent}, {State: Failed}, {State: Deferred}, {State: Uncertain}, {State: Queued}}}, []int{2, 3, 4}},
		{"a short record leaves the rest open", Progress{Results: []Result{{State: Sent}}}, []int{1, 2, 3, 4}},
		{"settled", Progress{Results: []Result{{State: Sent}, {State: Sent}, {State: Failed}, {State: Sent}, {State: Sent}}}, []int{}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, tt.p.Open(env)); diff != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, diff)
		}
	}
}

func TestMailbox(t *testing.T) {
	a, b := Route{Tenant: "t", Login: "Ann@b"}, Route{Tenant: "t", Login: "ann@b"}
	if a.Mailbox() != b.Mailbox() {
		t.Errorf("one mailbox has two names: %q, %q", a.Mailbox(), b.Mailbox())
	}
	if c := (&Route{Tenant: "u", Login: "ann@b"}); c.Mailbox() == b.Mailbox() {
		t.Error("mailboxes of two tenants have one name")
	}
}
