package sandbox_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"relayd/pkg/sandbox"
)

// BenchmarkSink is what a relay's benchmark can expect of the far end: 10 KB messages, pipelined, over TLS connections
// that are kept. The client's half of the work is in the figure.
func BenchmarkSink(b *testing.B) {
	box, err := sandbox.New(sandbox.Options{
		Tenants: []sandbox.Tenant{contoso()}, DropBodies: true,
		Limits: sandbox.Limits{MessagesPerMin: -1, RecipientsPerDay: -1, Sending: -1},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- box.Run(ctx) }()
	defer func() {
		cancel()
		<-stopped
	}()
	const connections = 8
	var ready []*client
	for i := range connections {
		ready = append(ready, login(b, box, fmt.Sprintf("app%d@contoso.com", i)))
	}
	b.SetBytes(10 << 10)
	b.ResetTimer()
	var all sync.WaitGroup
	for i, c := range ready {
		all.Go(func() {
			from := fmt.Sprintf("app%d@contoso.com", i)
			message := "From: " + from + "\r\nX-Relayd-Id: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 130) + ".\r\n"
			for range b.N/connections + 1 {
				c.write("MAIL FROM:<" + from + ">\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
				for range 3 {
					c.reply()
				}
				c.write(message)
				c.reply()
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
