// Command bench measures relayd and Debian's Postfix side by side, in one run: smtp-source sends the same messages to
// each, a simulated Exchange Online or smtp-sink takes them, rounds alternate and medians are printed.
//
//	relayd   → simulated Exchange Online, TLS and XOAUTH2
//	Postfix  → smtp-sink, neither TLS nor AUTH: its best case
//
// Needs root and the Debian package postfix.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"relayd/test/rig"
)

type options struct {
	messages, size, sessions, rounds, connections int
}

// figures are what one round of one relay came to.
type figures struct {
	accept, through float64 // messages a second: until smtp-source had its last 250; until the sink had the last message
	cpu             float64 // seconds of CPU for 1,000 messages, all processes of the relay
	peak            float64 // MiB of memory (proportional set size), all processes of the relay
}

// contender is a relay under test: start it, and stop it when done.
type contender struct {
	name  string
	start func(ctx context.Context, dir string) (*running, error)
}

// running is a started contender.
type running struct {
	addr    string
	pid     int                                    // of the first of its processes
	arrived func(ctx context.Context) (int, error) // messages the sink has
	stop    func() (cpu time.Duration, err error)
}

func main() {
	var o options
	flag.IntVar(&o.messages, "messages", 10_000, "messages a round")
	flag.IntVar(&o.size, "size", 10<<10, "octets of a message")
	flag.IntVar(&o.sessions, "sessions", 16, "parallel SMTP sessions")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds, of which the median counts")
	flag.IntVar(&o.connections, "connections", 20, "connections to the sink (Postfix's default)")
	rig.Main("bench", o.run)
}

func (o *options) run(ctx context.Context, bin, dir string) error {
	for _, program := range []string{"postfix", "smtp-source", "smtp-sink"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing: install the Debian package postfix", program)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // Postfix's processes run as another user
		return err
	}
	contenders := []contender{
		{"relayd", func(ctx context.Context, dir string) (*running, error) { return o.startRelayd(ctx, bin, dir) }},
		{"Postfix", o.startPostfix},
	}
	results := map[string][]figures{}
	for round := range o.rounds {
		for i, c := range contenders {
			sub := filepath.Join(dir, fmt.Sprintf("%d-%d", round, i))
			if err := os.Mkdir(sub, 0o755); err != nil {
				return err
			}
			f, err := o.measure(ctx, c, sub)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d  %-16s accept %.0f/s, end to end %.0f/s, %.2f s CPU per 1,000, peak %.0f MiB\n",
				round+1, c.name, f.accept, f.through, f.cpu, f.peak)
			results[c.name] = append(results[c.name], f)
		}
	}
	o.table(contenders, results)
	return nil
}

func (o *options) table(contenders []contender, results map[string][]figures) {
	fmt.Printf("\n%d messages of %d octets, %d sessions, %d connections to the sink; medians of %d\n\n", o.messages, o.size, o.sessions, o.connections, o.rounds)
	fmt.Println("| | accept, /s | end to end, /s | CPU s per 1,000 | peak memory, MiB |")
	fmt.Println("|---|---|---|---|---|")
	for _, c := range contenders {
		pick := func(get func(figures) float64) float64 {
			values := make([]float64, 0, o.rounds)
			for _, f := range results[c.name] {
				values = append(values, get(f))
			}
			slices.Sort(values)
			return values[len(values)/2]
		}
		fmt.Printf("| %s | %.0f | %.0f | %.2f | %.0f |\n", c.name, pick(func(f figures) float64 { return f.accept }),
			pick(func(f figures) float64 { return f.through }), pick(func(f figures) float64 { return f.cpu }), pick(func(f figures) float64 { return f.peak }))
	}
}

// measure runs one round.
func (o *options) measure(ctx context.Context, c contender, dir string) (f figures, err error) {
	r, err := c.start(ctx, dir)
	if err != nil {
		return f, err
	}
	peak := watchMemory(r.pid)
	started := time.Now()
	source := exec.CommandContext(ctx, "smtp-source", "-s", strconv.Itoa(o.sessions), "-m", strconv.Itoa(o.messages), "-l", strconv.Itoa(o.size),
		"-f", "app@contoso.com", "-t", "x@example.org", "-S", "bench", r.addr)
	out, err := source.CombinedOutput()
	accepted := time.Since(started)
	if err != nil {
		_, stopErr := r.stop()
		return f, errors.Join(fmt.Errorf("smtp-source: %w: %s", err, out), stopErr)
	}
	err = o.await(ctx, r)
	through := time.Since(started)
	most := peak()
	cpu, stopErr := r.stop()
	n := float64(o.messages)
	return figures{n / accepted.Seconds(), n / through.Seconds(), cpu.Seconds() / n * 1000, float64(most) / (1 << 20)}, errors.Join(err, stopErr)
}

// await waits until the sink has everything.
func (o *options) await(ctx context.Context, r *running) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := r.arrived(ctx)
		if err != nil || n >= o.messages {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d messages arrived: %w", n, o.messages, ctx.Err())
		}
	}
}

// startRelayd runs a sandbox and a relay in front of it.
func (o *options) startRelayd(ctx context.Context, bin, dir string) (*running, error) {
	far, err := startSink(ctx, bin, dir)
	if err != nil {
		return nil, err
	}
	relay, err := rig.StartRelay(ctx, bin, dir, func(smtp, admin string) string {
		return far.Config(smtp, admin, filepath.Join(dir, "data"),
			fmt.Sprintf("connections: %d, messages_per_minute: 10000000, recipients_per_day: 1000000000", o.connections),
			"queue: {min_free_bytes: 0}\nlog: {level: info, format: json}")
	})
	if err != nil {
		far.Kill()
		return nil, err
	}
	return &running{addr: "inet:" + relay.SMTP, pid: relay.PID(), arrived: arrivedAt(far), stop: func() (time.Duration, error) {
		err := relay.Stop(time.Minute)
		far.Kill()
		cpu, _ := relay.Usage()
		return cpu, err
	}}, nil
}

func startSink(ctx context.Context, bin, dir string) (*rig.Sandbox, error) {
	return rig.StartSandbox(ctx, bin, dir, "--messages-per-minute", "0", "--recipients-per-day", "0", "--connections", "0", "--keep-bodies=false")
}

func arrivedAt(far *rig.Sandbox) func(ctx context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		var stats rig.Stats
		err := far.Get(ctx, "/sandbox/stats", &stats)
		return int(stats.Messages), err
	}
}
