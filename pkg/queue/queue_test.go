package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"relayd/pkg/broker"
	"relayd/pkg/envelope"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newQueue opens a queue in dir with a server of its own; both end with the test.
func newQueue(t *testing.T, dir string, change func(*Options)) (*Queue, *broker.Broker) {
	t.Helper()
	b, err := broker.Open(t.Context(), broker.Options{Dir: dir, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	opts := Options{
		Dir: dir, Logger: zaptest.NewLogger(t), Registerer: prometheus.NewRegistry(),
		Reopen: func(ctx context.Context) ([]*nats.Conn, error) {
			if err := b.Reopen(ctx); err != nil {
				return nil, err
			}
			return b.Connect(2)
		},
	}
	if change != nil {
		change(&opts)
	}
	conns, err := b.Connect(2)
	if err != nil {
		t.Fatal(err)
	}
	q, err := Open(t.Context(), conns, opts)
	if err != nil {
		t.Fatal(err)
	}
	return q, b
}

func newEnvelope(sender envelope.Address) *envelope.Envelope {
	now := time.Now()
	return &envelope.Envelope{
		ID: envelope.NewID(now), Received: now, Intake: "smtp", ReversePath: sender, Sender: sender,
		Recipients: []envelope.Recipient{{Address: "x@example.org"}, {Address: "y@example.org"}},
	}
}

func TestPutClaimSettle(t *testing.T) {
	q, _ := newQueue(t, t.TempDir(), nil)
	for _, size := range []int{0, 1, inlineBytes - 1, inlineBytes, inlineBytes + 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 17} {
		body := bytes.Repeat([]byte("0123456789abcde\n"), size/16+1)[:size]
		env := newEnvelope("a@contoso.com")
		if err := q.Put(t.Context(), env, bytes.NewReader(body)); err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		if env.Size != int64(size) || env.SHA256 != sha256.Sum256(body) {
			t.Errorf("size %d: got size %d, want it and the hash noted", size, env.Size)
		}
		claim, err := q.Claim(t.Context(), "A@contoso.com", time.Now())
		if err != nil || claim.Envelope == nil {
			t.Fatalf("size %d: claim: %+v, %v", size, claim, err)
		}
		got, err := io.ReadAll(claim.Body(t.Context()))
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("size %d: got %d octets, %v, want what was put", size, len(got), err)
		}
		p := claim.Progress
		p.State = envelope.Sent
		p.Results = []envelope.Result{{State: envelope.Sent}, {State: envelope.Sent}}
		if err := q.Settle(t.Context(), claim.Envelope, p); err != nil {
			t.Fatal(err)
		}
		if list := q.List(nil); len(list) != 0 {
			t.Fatalf("size %d: got %v left, want nothing", size, list)
		}
	}
}
