package admission

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/message"
	"relayd/pkg/status"
)

// shelf is a queue that keeps what it gets.
type shelf struct {
	body string
	env  envelope.Envelope
	err  error // instead
}

func (s *shelf) Put(_ context.Context, env *envelope.Envelope, body io.Reader) error {
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	s.body, s.env = string(b), *env
	return s.err
}

// rules knows contoso.com, and rewrites to it where rewrite is set.
type rules struct{ rewrite envelope.Address }

func (r rules) Known(a envelope.Address) error {
	if a.Domain() == "contoso.com" {
		return nil
	}
	return status.New(550, status.Enhanced{5, 7, 1}, "<%s>: unknown", a)
}

func (r rules) Choose(path, from envelope.Address) (envelope.Address, bool, error) {
	if from == "" {
		from = path
	}
	if r.Known(from) == nil {
		return from, false, nil
	}
	if r.rewrite != "" {
		return r.rewrite, true, nil
	}
	return "", false, r.Known(from)
}

func arrival(text string) *Arrival {
	now := time.Now()
	return &Arrival{
		Envelope: &envelope.Envelope{ID: envelope.NewID(now), Received: now, ReversePath: "erp@contoso.com",
			Recipients: []envelope.Recipient{{Address: "you@example.com"}}},
		Body:  strings.NewReader(strings.ReplaceAll(text, "\n", "\r\n")),
		Trace: message.Received{HELO: "app", Peer: netip.MustParseAddr("192.0.2.7"), Protocol: "HTTP"},
	}
}

func door(s *shelf) *Door {
	return &Door{Queue: s, Policy: rules{}, Hostname: "relay.contoso.com", MessageBytes: 2000, HeaderBytes: 1000, Hops: 2}
}

const sound = "From: <erp@contoso.com>\nTo: <you@example.com>\nDate: Thu, 01 Oct 2026 10:00:00 +0200\nMessage-ID: <a@contoso.com>\n\nbody\n"

func TestStore(t *testing.T) {
	s := new(shelf)
	a := arrival(sound)
	if err := door(s).Store(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	head, found := strings.CutSuffix(s.body, strings.ReplaceAll(sound, "\n", "\r\n"))
	if !found || !strings.HasPrefix(head, "Received: from app ([192.0.2.7])\r\n\tby relay.contoso.com with HTTP id "+string(a.Envelope.ID)) ||
		!strings.HasSuffix(head, "X-Relayd-Id: "+string(a.Envelope.ID)+"\r\n") || !strings.Contains(head, "for <you@example.com>") {
		t.Errorf("stored %q", s.body)
	}
	if e := a.Envelope; e.Sender != "erp@contoso.com" || e.MessageID != "<a@contoso.com>" || e.EightBit || e.LongLines || len(e.Repairs) != 0 {
		t.Errorf("envelope %+v", e)
	}
}

func TestStoreRefuses(t *testing.T) {
	field := func(n int) string { return "X: " + strings.Repeat("x", n) + "\n" }
	for _, tt := range []struct {
		name, text string
		change     func(*Door, *Arrival)
		why        Reason
		code       int
	}{
		{"stranger", strings.Replace(sound, "erp@contoso.com", "a@fabrikam.com", 1), nil, ReasonSender, 550},
		{"not this client's", sound, func(_ *Door, a *Arrival) {
			a.MaySend = func(envelope.Address) error { return bySender(status.New(550, status.Enhanced{5, 7, 1}, "no")) }
		}, ReasonSender, 550},
		{"loop", "Received: a\nReceived: b\nReceived: c\n" + sound, nil, ReasonLoop, 554},
		{"long header", field(990) + sound, nil, ReasonSize, 552},
		{"long field", field(33<<10) + sound, func(d *Door, _ *Arrival) { d.HeaderBytes, d.MessageBytes = 1<<20, 1<<20 }, ReasonSize, 552},
		{"NUL", "X: \x00\n" + sound, nil, ReasonContent, 554},
		{"two From", "From: <erp@contoso.com>\n" + sound, nil, ReasonContent, 554},
		{"too long", sound + strings.Repeat("x\n", 1000), nil, ReasonSize, 552},
		{"too long with what is added", sound + strings.Repeat("x\n", (1990-len(sound)-7)/3), nil, ReasonSize, 552},
	} {
		s := new(shelf)
		d, a := door(s), arrival(tt.text)
		if tt.change != nil {
			tt.change(d, a)
		}
		err := d.Store(t.Context(), a)
		r, ok := errors.AsType[*Refusal](err)
		if !ok || r.Why != tt.why || r.Err.Code != tt.code || s.body != "" {
			t.Errorf("%s: got %v, stored %q; want %s %d", tt.name, err, s.body, tt.why, tt.code)
		}
	}
}

// What Body or the queue say comes back; nothing that broke off is stored.
func TestStoreErrors(t *testing.T) {
	s := new(shelf)
	a := arrival(sound)
	a.Body = io.MultiReader(a.Body, iotest.ErrReader(io.ErrUnexpectedEOF))
	if err := door(s).Store(t.Context(), a); !errors.Is(err, io.ErrUnexpectedEOF) || s.body != "" {
		t.Errorf("broken off: %v, stored %q", err, s.body)
	}
	full := status.New(452, status.Enhanced{4, 3, 1}, "full")
	if err := door(&shelf{err: full}).Store(t.Context(), arrival(sound)); !errors.Is(err, full) {
		t.Errorf("a full queue: %v", err)
	}
}

func TestRewritten(t *testing.T) {
	s := new(shelf)
	d := door(s)
	d.Policy = rules{rewrite: "noreply@contoso.com"}
	if err := d.Store(t.Context(), arrival(strings.Replace(sound, "<erp@contoso.com>", "ERP <a@fabrikam.com>", 1))); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.body, "From: ERP <noreply@contoso.com>\r\n") || !strings.Contains(s.body, "Reply-To: <a@fabrikam.com>\r\n") ||
		len(s.env.Repairs) != 2 || s.env.Sender != "noreply@contoso.com" {
		t.Errorf("stored %q, repairs %q", s.body, s.env.Repairs)
	}
}

func TestNoticed(t *testing.T) {
	for text, want := range map[string][2]bool{ // eight bit, long lines
		sound: {}, sound + "Grüße\n": {true, false}, sound + strings.Repeat("y", 1100) + "\n": {false, true},
	} {
		a := arrival(text)
		if err := door(new(shelf)).Store(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		if got := [2]bool{a.Envelope.EightBit, a.Envelope.LongLines}; got != want {
			t.Errorf("%.20q…: %v, want %v", text[len(sound):], got, want)
		}
	}
}
