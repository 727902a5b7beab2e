// Command chaos kills a relay under load, again and again, and prints the ledger: what was accepted, what arrived, what
// arrived twice, what was lost or altered. Every 250 must arrive; a message may arrive twice only if its delivery was
// under way when a kill struck.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"relayd/test/rig"
)

type options struct {
	length, every time.Duration
	sessions      int
	senders       int
	connections   int
}

func main() {
	var o options
	flag.DurationVar(&o.length, "for", 5*time.Minute, "how long to go on")
	flag.DurationVar(&o.every, "every", 2*time.Second, "time between kills, restart included")
	flag.IntVar(&o.sessions, "sessions", 8, "SMTP sessions of the load")
	flag.IntVar(&o.senders, "senders", 20, "mailboxes")
	flag.IntVar(&o.connections, "connections", 3, "connections each mailbox may use")
	rig.Main("chaos", o.run)
}

func (o *options) run(ctx context.Context, bin, dir string) error {
	far, err := rig.StartSandbox(ctx, bin, dir, "--messages-per-minute", "0", "--recipients-per-day", "0", "--max-body-bytes", strconv.Itoa(4<<30))
	if err != nil {
		return err
	}
	defer far.Kill()
	relay, err := rig.StartRelay(ctx, bin, dir, func(smtp, admin string) string {
		return far.Config(smtp, admin, filepath.Join(dir, "data"),
			fmt.Sprintf("connections: %d, messages_per_minute: 10000000, recipients_per_day: 1000000000", o.connections),
			"queue: {retry: [1s], min_free_bytes: 0}\nlog: {level: warn}")
	})
	if err != nil {
		return err
	}
	defer func() { relay.Kill() }()
	return o.play(ctx, far, relay)
}

func (o *options) play(ctx context.Context, far *rig.Sandbox, relay *rig.Relay) error {
	load := &rig.Load{
		Addr: relay.SMTP, Sessions: o.sessions, Rcpt: "x@example.org", Size: size,
		Sender: func(i int) string { return fmt.Sprintf("s%d@contoso.com", i%o.senders) },
	}
	loading, stopLoad := context.WithTimeout(ctx, o.length)
	defer stopLoad()
	ended := make(chan error, 1)
	go func() { ended <- load.Run(loading, true) }()

	kills, slowest := 0, time.Duration(0)
	tick := time.NewTicker(o.every)
	defer tick.Stop()
	for loading.Err() == nil {
		select {
		case <-tick.C:
		case <-loading.Done():
			continue
		}
		relay.Kill()
		kills++
		started := time.Now()
		if err := relay.Restart(ctx); err != nil {
			return fmt.Errorf("after kill %d: %w", kills, err)
		}
		slowest = max(slowest, time.Since(started))
		if kills%10 == 0 {
			fmt.Printf("%4d kills, %7d accepted so far\n", kills, len(load.Accepted()))
		}
	}
	if err := <-ended; err != nil {
		return err
	}
	if err := drain(ctx, relay); err != nil {
		return err
	}
	return o.ledger(ctx, far, load, kills, slowest)
}

// size is a mix: most messages small, every hundredth in chunks.
func size(i int) int {
	if i%100 == 0 {
		return 700_000
	}
	return 1_000
}

// drain waits until nothing waits in the queue any more.
func drain(ctx context.Context, relay *rig.Relay) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		left, err := relay.Queued(ctx)
		if err != nil {
			return err
		}
		if left == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d messages still in the queue: %w", left, ctx.Err())
		}
	}
}

func (o *options) ledger(ctx context.Context, far *rig.Sandbox, load *rig.Load, kills int, slowest time.Duration) error {
	var stats rig.Stats
	var arrived []rig.Message
	if err := errors.Join(far.Get(ctx, "/sandbox/stats", &stats), far.Get(ctx, "/sandbox/messages", &arrived)); err != nil {
		return err
	}
	accepted := load.Accepted()
	copies, ids, altered := map[string]int{}, map[string]bool{}, 0
	for _, m := range arrived {
		copies[m.MessageID]++
		ids[m.RelaydID] = true
		ok, err := intact(ctx, far, m)
		if err != nil {
			return err
		}
		if !ok {
			altered++
		}
	}
	lost := 0
	for id := range accepted {
		if copies[id] == 0 {
			lost++
		}
	}
	unanswered := len(ids) - len(accepted)
	allowed := int64(kills * o.senders * o.connections)
	fmt.Printf("kills            %8d   (slowest restart until ready: %v)\n", kills, slowest.Round(time.Millisecond))
	fmt.Printf("accepted (250)   %8d\n", len(accepted))
	fmt.Printf("arrived          %8d   messages by X-Relayd-Id; %d of them stored although a kill took the 250, sent again by the client\n", len(ids), max(0, unanswered))
	fmt.Printf("lost             %8d\n", lost)
	fmt.Printf("altered          %8d\n", altered)
	fmt.Printf("arrived twice    %8d   of at most %d in flight at the kills (%.2f a kill)\n", stats.DuplicateCount, allowed, float64(stats.DuplicateCount)/float64(max(1, kills)))
	if lost > 0 || altered > 0 || stats.DuplicateCount > allowed {
		return errors.New("the ledger does not balance")
	}
	return nil
}

// intact compares an arrived body with the one that was sent.
func intact(ctx context.Context, far *rig.Sandbox, m rig.Message) (bool, error) {
	raw, err := far.Raw(ctx, m.Seq)
	if err != nil {
		return false, err
	}
	number, _, _ := strings.Cut(strings.TrimPrefix(m.MessageID, "<load-"), "@")
	i, err := strconv.Atoi(number)
	if err != nil {
		return false, fmt.Errorf("message %d has the Message-ID %q", m.Seq, m.MessageID)
	}
	_, body, found := bytes.Cut(raw, []byte("\r\n\r\n"))
	return found && string(body) == rig.Body(i, size(i)), nil
}
