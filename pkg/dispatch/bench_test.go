package dispatch

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// instant delivers everything at once and says when the last of n messages is through.
type instant struct {
	left atomic.Int64
	done chan struct{}
}

func (x *instant) Deliver(_ context.Context, _ *envelope.Route, _ *envelope.Envelope, open []int, _ io.Reader) status.Outcome {
	return status.Outcome{Reply: "250 2.0.0 OK", Errs: make([]*status.Error, len(open))}
}

// counting is a Source that costs as little as one can: each sender has a number of messages and no body.
type counting struct {
	*instant
	lanes map[envelope.Address]*countingLane // not written to once the dispatcher runs
}

type countingLane struct {
	left atomic.Int64
	env  *envelope.Envelope
}

func (c *counting) Watch(notify func(envelope.Address, time.Time)) {
	for sender := range c.lanes {
		notify(sender, time.Now())
	}
}

func (c *counting) Claim(_ context.Context, sender envelope.Address, now time.Time) (envelope.Claim, error) {
	l := c.lanes[sender]
	left := l.left.Add(-1)
	if left < 0 {
		return envelope.Claim{}, nil
	}
	claim := envelope.Claim{Envelope: l.env, Body: func(context.Context) io.Reader { return strings.NewReader("") }}
	if left > 0 {
		claim.Next = now
	}
	return claim, nil
}

func (c *counting) Settle(context.Context, *envelope.Envelope, envelope.Progress) error {
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
	return nil
}

func (c *counting) Note(context.Context, *envelope.Envelope, envelope.Progress) error { return nil }
func (c *counting) Release(*envelope.Envelope, envelope.Progress)                     {}
func (c *counting) Rest(*envelope.Envelope, time.Time)                                {}
func (c *counting) Park(envelope.Address, string)                                     {}

// BenchmarkDispatch is the dispatcher's own cost of a message: 1,000 mailboxes, a source and a far end that cost nothing.
func BenchmarkDispatch(b *testing.B) {
	const mailboxes = 1000
	far := &instant{done: make(chan struct{})}
	far.left.Store(int64(b.N))
	source := &counting{far, map[envelope.Address]*countingLane{}}
	router := &fakeRouter{routes: map[envelope.Address]envelope.Route{}}
	for i := range mailboxes {
		router.set(sender(i), envelope.Route{Tenant: "contoso", Connections: 3, MessagesPerMinute: 1 << 40, RecipientsPerDay: 1 << 40})
		l := &countingLane{env: &envelope.Envelope{ID: envelope.NewID(time.Now()), Received: time.Now(), Sender: sender(i),
			Recipients: []envelope.Recipient{{Address: "a@example.com"}}}}
		l.left.Store(int64(b.N / mailboxes))
		if i < b.N%mailboxes {
			l.left.Add(1)
		}
		source.lanes[sender(i)] = l
	}
	d := New(Options{Source: source, Router: router, Deliverer: far, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		defer close(ended)
		_ = d.Run(ctx) // is always nil
	}()
	<-far.done
	b.StopTimer()
	cancel()
	<-ended
}
