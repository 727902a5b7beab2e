package queue

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/broker"
	"relayd/pkg/envelope"
)

// benchQueue opens a queue in dir; stop ends it cleanly.
func benchQueue(b *testing.B, dir string) (q *Queue, stop func()) {
	b.Helper()
	srv, err := broker.Open(context.Background(), broker.Options{Dir: dir, Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	conns, err := srv.Connect(4)
	if err != nil {
		b.Fatal(err)
	}
	q, err = Open(context.Background(), conns, Options{
		Dir: dir, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(),
		Reopen: func(context.Context) ([]*nats.Conn, error) { return nil, context.Canceled },
	})
	if err != nil {
		b.Fatal(err)
	}
	return q, func() {
		if err := q.Close(context.Background()); err != nil {
			b.Error(err)
		}
		srv.Close()
	}
}

// fill16 puts n messages with 16 writers.
func fill16(b *testing.B, q *Queue, n int, body []byte) {
	var left atomic.Int64
	left.Store(int64(n))
	done := make(chan error, 16)
	for w := range 16 {
		go func() {
			sender := envelope.Address(fmt.Sprintf("s%d@contoso.com", w))
			for left.Add(-1) >= 0 {
				if err := q.Put(context.Background(), newEnvelope(sender), bytes.NewReader(body)); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 16 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPut is the accept rate: 10 KB, 16 writers.
func BenchmarkPut(b *testing.B) {
	q, stop := benchQueue(b, b.TempDir())
	defer stop()
	body := text(10 << 10)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	b.ResetTimer()
	fill16(b, q, b.N, body)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkLife is a message's whole way: put, claimed, marked, settled as sent; 10 KB, 16 at once, each of its own sender.
func BenchmarkLife(b *testing.B) {
	q, stop := benchQueue(b, b.TempDir())
	defer stop()
	body := text(10 << 10)
	var left, marking atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			ctx, sender := context.Background(), envelope.Address(fmt.Sprintf("s%d@contoso.com", w))
			for left.Add(-1) >= 0 {
				err := q.Put(ctx, newEnvelope(sender), bytes.NewReader(body))
				var c envelope.Claim
				if err == nil {
					c, err = q.Claim(ctx, sender, time.Now())
				}
				if err == nil {
					begun := time.Now()
					c.Mark()
					marking.Add(int64(time.Since(begun)))
					err = q.Settle(ctx, c.Envelope, sent(&c))
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(float64(marking.Load())/float64(b.N), "ns/mark")
}

// BenchmarkMark is the journal alone: a mark, and its removal.
func BenchmarkMark(b *testing.B) {
	j, _, err := openJournal(b.TempDir(), zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	defer j.close()
	m := interrupted{id: packID(envelope.NewID(time.Now())), at: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		j.mark(m)
		j.unmark(m.id)
	}
}

// BenchmarkLoad is the restart: one operation opens a queue that holds so many messages of 10 KB.
func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			q, stop := benchQueue(b, dir)
			fill16(b, q, n, text(10<<10))
			stop()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				q, stop := benchQueue(b, dir)
				b.StopTimer()
				if got := len(q.List(nil)); got != n {
					b.Fatalf("got %d messages, want %d", got, n)
				}
				stop()
				b.StartTimer()
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// BenchmarkList is a listing of a million messages that keeps none, and the longest anybody had to wait for the index
// meanwhile.
func BenchmarkList(b *testing.B) {
	q := new(Queue)
	q.index.init(new(space))
	now := time.Now()
	for i := range 1_000_000 {
		sender := envelope.Address(fmt.Sprintf("s%d@contoso.com", i%1000))
		q.index.add(&entry{id: packID(envelope.NewID(now)), due: now.UnixNano()}, sender)
	}
	var longest time.Duration
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		look := time.NewTicker(time.Millisecond)
		defer look.Stop()
		for {
			select {
			case <-stop:
				return
			case <-look.C:
				begun := time.Now()
				q.index.get("nothing")
				longest = max(longest, time.Since(begun))
			}
		}
	}()
	for b.Loop() {
		q.List(func(Info) bool { return false })
	}
	close(stop)
	<-done
	b.ReportMetric(float64(longest.Microseconds()), "µs-longest")
}
