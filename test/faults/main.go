// Command faults sends mail of many senders in many tenants through a relay whose far end misbehaves in every way the
// sandbox knows, each stage in a twentieth of all cases, and prints the ledger: every accepted message reached every
// recipient, or failed for a reason that is the message's own; what arrived twice was flagged; nobody got a bounce for
// mail that arrived.
//
// An operator is simulated, too: faults that park a sender or a tenant are cured by a reload now and then.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"relayd/test/rig"
)

type options struct {
	messages, senders, tenants, sessions int
	share                                float64
	length, limit                        time.Duration
}

func main() {
	var o options
	flag.IntVar(&o.messages, "messages", 20_000, "messages in all")
	flag.IntVar(&o.senders, "senders", 200, "mailboxes")
	flag.IntVar(&o.tenants, "tenants", 100, "tenants they belong to")
	flag.IntVar(&o.sessions, "sessions", 8, "SMTP sessions of the load")
	flag.Float64Var(&o.share, "share", 0.05, "share of the cases at each stage that meet a fault")
	flag.DurationVar(&o.length, "for", 12*time.Minute, "how long the far end misbehaves; what still waits then goes as the back-offs end")
	flag.DurationVar(&o.limit, "limit", 40*time.Minute, "how long the queue may take to empty")
	rig.Main("faults", o.run)
}

func (o *options) tenant(i int) string {
	return fmt.Sprintf("%08d-0000-0000-0000-000000000000", i%o.tenants+1)
}
func (o *options) sender(i int) string {
	return fmt.Sprintf("s%d@t%d.example", i%o.senders, i%o.senders%o.tenants)
}

// recipients gives every message one to four.
func (o *options) recipients(i int) []string {
	list := make([]string, 1+i%4)
	for k := range list {
		list[k] = fmt.Sprintf("r%d-%d@x%d.example", i, k, (i+k)%7)
	}
	return list
}

// config is the relay's configuration. generation makes two of them differ, so that a reload counts as a change.
func (o *options) config(far *rig.Sandbox, dir, smtp, admin string, generation int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "hostname: relay.contoso.com\ndata_dir: %q\nlisteners: [{address: %q}]\nadmin: {address: %q}\n", filepath.Join(dir, "data"), smtp, admin)
	b.WriteString("tenants:\n")
	for i := range o.tenants {
		fmt.Fprintf(&b, "  - {name: t%d, tenant_id: %q, client_id: %s, client_secret: %q, authority: %q, smtp_server: %q, ca_file: %q}\n",
			i, o.tenant(i), rig.ClientID, rig.Secret, "https://"+far.HTTP, far.SMTP, far.CA)
	}
	b.WriteString("senders:\n")
	for i := range o.tenants {
		fmt.Fprintf(&b, "  - {match: \"*@t%d.example\", tenant: t%d, messages_per_minute: 1000000, recipients_per_day: %d}\n", i, i, 1000000+generation)
	}
	b.WriteString("queue: {retry: [1s, 2s, 4s], min_free_bytes: 0}\nlog: {level: info, format: json}\n" +
		"bounces: {mode: dsn, from: " + postmaster + ", per_hour: 1000000}\n" +
		// The waits of these rows are far too long for a test; the rest of each row is the built-in one's.
		"replies:\n" + waits)
	return b.String()
}

// fault is a preset as the sandbox tells of it.
type fault struct {
	Name      string `json:"name"`
	Stage     string `json:"stage"`
	Reply     string `json:"reply"`
	Blackhole bool   `json:"blackhole"`
	Delay     string `json:"delay"`
	Drip      string `json:"drip"`
	Repeat    bool   `json:"repeat"`
}

// install puts every preset in force, each with its part of the stage's share. Those that make the relay wait for minutes
// strike three times each at most.
func (o *options) install(ctx context.Context, far *rig.Sandbox) (int, error) {
	var presets []fault
	if err := far.Get(ctx, "/sandbox/presets", &presets); err != nil {
		return 0, err
	}
	perStage := map[string]int{}
	for _, p := range presets {
		perStage[p.Stage]++
	}
	for _, p := range presets {
		rule := map[string]any{"preset": p.Name, "probability": o.share / float64(perStage[p.Stage])}
		if p.Blackhole || p.Drip != "" || strings.Contains(p.Name, "stall") {
			rule["count"] = 3
		}
		data, err := json.Marshal(rule)
		if err != nil {
			return 0, err
		}
		if err := far.Post(ctx, "/sandbox/faults", string(data)); err != nil {
			return 0, fmt.Errorf("preset %s: %w", p.Name, err)
		}
	}
	return len(presets), nil
}

func (o *options) run(ctx context.Context, bin, dir string) error {
	far, err := rig.StartSandbox(ctx, bin, dir, "--messages-per-minute", "0", "--recipients-per-day", "0", "--max-body-bytes", strconv.Itoa(2<<30))
	if err != nil {
		return err
	}
	defer far.Kill()
	for i := range o.tenants {
		tenant, err := json.Marshal(map[string]any{"id": o.tenant(i), "apps": []any{map[string]any{"id": rig.ClientID, "secret": rig.Secret}}})
		if err == nil {
			err = far.Post(ctx, "/sandbox/tenants", string(tenant))
		}
		if err != nil {
			return err
		}
	}
	relay, err := rig.StartRelay(ctx, bin, dir, func(smtp, admin string) string { return o.config(far, dir, smtp, admin, 0) })
	if err != nil {
		return err
	}
	defer func() { relay.Kill() }()
	presets, err := o.install(ctx, far)
	if err != nil {
		return err
	}
	load := &rig.Load{
		Addr: relay.SMTP, Sessions: o.sessions, Messages: o.messages, Rcpts: o.recipients, Sender: o.sender,
		Size: func(i int) int { return 500 + 100_000*(1-min(1, i%200)) },
	}
	started := time.Now()
	if err := load.Run(ctx, false); err != nil {
		return err
	}
	fmt.Printf("%d presets in force; %d messages accepted in %v\n", presets, len(load.Accepted()), time.Since(started).Round(time.Second))
	if err := o.drain(ctx, far, relay, dir); err != nil {
		return err
	}
	fmt.Printf("the queue was empty after %v\n", time.Since(started).Round(time.Second))
	return o.ledger(ctx, far, relay)
}

// drain waits until nothing waits in the queue any more, with an operator who reloads every 15 s.
func (o *options) drain(ctx context.Context, far *rig.Sandbox, relay *rig.Relay, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	end := time.NewTimer(o.length)
	defer end.Stop()
	for second := 1; ; second++ {
		left, err := relay.Queued(ctx)
		if err != nil {
			return err
		}
		if left == 0 {
			return nil
		}
		if second%60 == 0 {
			fmt.Printf("%4d s: %d messages wait\n", second, left)
		}
		if second%15 == 0 {
			if err := rig.ReplaceFile(relay.Config, o.config(far, dir, relay.SMTP, relay.Admin, second)); err != nil {
				return err
			}
			if err := relay.Signal(syscall.SIGHUP); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-end.C:
			fmt.Printf("the faults end; %d messages wait\n", left)
			if err := far.Delete(ctx, "/sandbox/faults"); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("%d messages still in the queue: %w", left, ctx.Err())
		}
	}
}

// postmaster is the one sender of all notifications.
const postmaster = "postmaster@t0.example"

// failure is a recipient that the relay gave up.
type failure struct{ reply string }

// ledger compares what was accepted with what arrived and what failed.
func (o *options) ledger(ctx context.Context, far *rig.Sandbox, relay *rig.Relay) error {
	var arrived []rig.Message
	if err := far.Get(ctx, "/sandbox/messages", &arrived); err != nil {
		return err
	}
	failed, err := failures(ctx, relay)
	if err != nil {
		return err
	}
	copies := map[string]map[string]int{} // by Message-ID and recipient
	relaydIDs := map[string]string{}
	var bounces []rig.Message
	for _, m := range arrived {
		if m.MailFrom == postmaster {
			bounces = append(bounces, m)
			continue
		}
		relaydIDs[m.MessageID] = m.RelaydID
		if copies[m.MessageID] == nil {
			copies[m.MessageID] = map[string]int{}
		}
		for _, r := range m.Rcpts {
			copies[m.MessageID][r]++
		}
	}
	flagged := map[string]bool{}
	for line := range strings.Lines(relay.Log()) {
		if !strings.Contains(line, "possible duplicate") {
			continue
		}
		var entry struct {
			ID string `json:"id"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil {
			flagged[entry.ID] = true
		}
	}
	var lost, recipients, twice, unflagged, bothWays, failures, wrong int
	for i := 1; i <= o.messages; i++ {
		id := fmt.Sprintf("<load-%d@contoso.com>", i)
		for _, r := range o.recipients(i) {
			recipients++
			n, f := copies[id][r], failed[id][r]
			isFlagged := flagged[relaydIDs[id]]
			switch {
			case n == 0 && f == nil:
				lost++
			case n > 1 && !isFlagged:
				unflagged++
			case n > 1:
				twice++
			case n > 0 && f != nil && !isFlagged && !strings.Contains(f.reply, "an earlier attempt may have been accepted"):
				bothWays++
				fmt.Printf("arrived, and failed: %s to %s: %s\n", id, r, f.reply)
			}
			if f != nil {
				failures++
				if !permanent(f.reply) {
					wrong++
					fmt.Printf("failed without need: %s to %s: %s\n", id, r, f.reply)
				}
			}
		}
	}
	stray, err := o.strayBounces(ctx, far, bounces, failed)
	if err != nil {
		return err
	}
	fmt.Printf("messages         %8d   with %d recipients, of %d senders in %d tenants\n", o.messages, recipients, o.senders, o.tenants)
	fmt.Printf("lost             %8d\n", lost)
	fmt.Printf("failed           %8d   recipients, for reasons of the message's own\n", failures-wrong)
	fmt.Printf("failed wrongly   %8d\n", wrong+bothWays)
	fmt.Printf("bounces          %8d   of which %d tell of nothing that failed\n", len(bounces), stray)
	fmt.Printf("arrived twice    %8d   recipients, flagged as possible duplicates\n", twice)
	fmt.Printf("   unflagged     %8d\n", unflagged)
	if lost+wrong+bothWays+stray+unflagged > 0 {
		return errors.New("the ledger does not balance")
	}
	return nil
}

// strayBounces counts the notifications that name no message with a failed recipient.
func (o *options) strayBounces(ctx context.Context, far *rig.Sandbox, bounces []rig.Message, failed map[string]map[string]*failure) (int, error) {
	stray := 0
	for _, b := range bounces {
		raw, err := far.Raw(ctx, b.Seq)
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(raw), "\r\nIn-Reply-To: ")
		id, _, _ := strings.Cut(rest, "\r\n")
		if failed[id] == nil {
			stray++
			fmt.Printf("a bounce about %q\n", id)
		}
	}
	return stray, nil
}

// failures asks the relay's API for every failed message.
func failures(ctx context.Context, relay *rig.Relay) (map[string]map[string]*failure, error) {
	all := map[string]map[string]*failure{}
	for before := ""; ; {
		var page struct {
			Messages []struct {
				ID string `json:"id"`
			} `json:"messages"`
		}
		if err := get(ctx, relay, "/api/v1/messages?state=failed&limit=500&before="+before, &page); err != nil {
			return nil, err
		}
		if len(page.Messages) == 0 {
			return all, nil
		}
		for _, m := range page.Messages {
			before = m.ID
			var whole struct {
				Envelope struct {
					MessageID string `json:"message_id"`
				} `json:"envelope"`
				Recipients []struct {
					Address string `json:"address"`
					State   string `json:"state"`
					Reply   string `json:"reply"`
				} `json:"recipients"`
			}
			if err := get(ctx, relay, "/api/v1/messages/"+m.ID, &whole); err != nil {
				return nil, err
			}
			for _, r := range whole.Recipients {
				if r.State != "failed" {
					continue
				}
				id := whole.Envelope.MessageID
				if all[id] == nil {
					all[id] = map[string]*failure{}
				}
				all[id][r.Address] = &failure{r.Reply}
			}
		}
	}
}

func get(ctx context.Context, relay *rig.Relay, path string, v any) error {
	code, text, err := relay.Page(ctx, path)
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("GET %s: %d %s", path, code, text)
	}
	return json.Unmarshal([]byte(text), v)
}

// permanent reports whether a reply is one a message may fail for: written down here once more, from the published
// meanings, so that the relay's own reading is not its judge.
func permanent(reply string) bool {
	for _, text := range []string{
		"Client does not have permissions to send as this sender",
		"Invalid address", "RecipientNotFound", "Recipient address rejected",
		"SendAsDenied",
		"Header size exceeds", "Invalid message content", "Invalid characters",
		"not in allowed-senders list", "not authenticated for group",
	} {
		if strings.Contains(reply, text) {
			return true
		}
	}
	return false
}
