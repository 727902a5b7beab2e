// Command hotsender measures what a flooded sender costs the others: 100 senders, one of which holds nine tenths of all
// messages, queued first. It prints the time the others' messages take with and without it, side by side.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"relayd/test/rig"
)

type options struct {
	messages, senders, rounds int
	latency                   time.Duration
}

func main() {
	var o options
	flag.IntVar(&o.messages, "messages", 50_000, "messages in all, nine tenths of them the hot sender's")
	flag.IntVar(&o.senders, "senders", 100, "senders, the hot one included")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds, of which the median counts")
	flag.DurationVar(&o.latency, "latency", 0, "time Exchange Online takes to answer the final dot")
	rig.Main("hotsender", o.run)
}

func (o *options) run(ctx context.Context, bin, dir string) error {
	var with, without []time.Duration
	for round := range o.rounds {
		for _, hot := range []bool{false, true} {
			took, err := o.play(ctx, bin, filepath.Join(dir, fmt.Sprintf("%d-%v", round, hot)), hot)
			if err != nil {
				return err
			}
			fmt.Printf("round %d  hot sender %-5v  the others' last message left after %v\n", round+1, hot, took.Round(time.Millisecond))
			if hot {
				with = append(with, took)
			} else {
				without = append(without, took)
			}
		}
	}
	slices.Sort(with)
	slices.Sort(without)
	ratio := float64(with[len(with)/2]) / float64(without[len(without)/2])
	fmt.Printf("median with / without: %v / %v = %.2f\n", with[len(with)/2].Round(time.Millisecond), without[len(without)/2].Round(time.Millisecond), ratio)
	if ratio > 1.5 {
		return errors.New("the hot sender delays the others by more than half")
	}
	return nil
}

// play fills the queue, the hot sender's mail first where it takes part, and returns the time from the others' first
// message to the arrival of their last.
func (o *options) play(ctx context.Context, bin, dir string, hot bool) (took time.Duration, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	far, err := rig.StartSandbox(ctx, bin, dir, "--messages-per-minute", "0", "--recipients-per-day", "0", "--keep-bodies=false")
	if err != nil {
		return 0, err
	}
	defer far.Kill()
	if o.latency > 0 {
		if err := far.Post(ctx, "/sandbox/faults", fmt.Sprintf(`{"stage":"dot","delay":%q}`, o.latency)); err != nil {
			return 0, err
		}
	}
	relay, err := rig.StartRelay(ctx, bin, dir, func(smtp, admin string) string {
		return far.Config(smtp, admin, filepath.Join(dir, "data"), "messages_per_minute: 10000000, recipients_per_day: 1000000000",
			"queue: {min_free_bytes: 0}\nlog: {level: warn}")
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		relay.Kill()
		if err != nil {
			err = fmt.Errorf("%w\nthe relay's log:\n%s", err, relay.Log())
		}
	}()
	others := o.messages / 10
	load := func(n int, sender func(i int) string) error {
		l := &rig.Load{Addr: relay.SMTP, Sessions: 16, Messages: n, Rcpt: "x@example.org", Sender: sender,
			Size: func(int) int { return 10 << 10 }}
		return l.Run(ctx, false)
	}
	if hot {
		if err := load(o.messages-others, func(int) string { return "hot@contoso.com" }); err != nil {
			return 0, err
		}
	}
	started := time.Now()
	if err := load(others, func(i int) string { return fmt.Sprintf("s%d@contoso.com", i%(o.senders-1)) }); err != nil {
		return 0, err
	}
	return o.arrival(ctx, far, others, started)
}

// arrival waits until the others' messages have all arrived.
func (o *options) arrival(ctx context.Context, far *rig.Sandbox, others int, started time.Time) (time.Duration, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var stats rig.Stats
		if err := far.Get(ctx, "/sandbox/stats", &stats); err != nil {
			return 0, err
		}
		arrived := 0
		for mailbox, m := range stats.Mailboxes {
			if mailbox != "hot@contoso.com" {
				arrived += m.Messages
			}
		}
		if arrived >= others {
			return time.Since(started), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
