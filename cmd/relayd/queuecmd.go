package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"relayd/pkg/admin/api"
	"relayd/pkg/envelope"
)

func newQueueCommand() *cobra.Command {
	var at apiFlags
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "See what became of messages, and retry, hold, release, drop or export them",
		Long: "Ask the running relay what became of messages, both those waiting and those of which it keeps the history, and act on\n" +
			"those in its queue. It is asked over its admin address: that of --api, else of the configuration in --config.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	at.register(cmd.PersistentFlags())
	cmd.AddCommand(newQueueListCommand(&at), newQueueShowCommand(&at), newQueueExportCommand(&at))
	for _, v := range queueVerbs() {
		cmd.AddCommand(newQueueActionCommand(&at, v))
	}
	return cmd
}

// filterFlags select messages. All that are given must fit.
type filterFlags struct {
	messageID, sender, recipient, state, olderThan string
}

func (f *filterFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.sender, "sender", "", "only messages of this `ADDRESS` or *@domain")
	fs.StringVar(&f.recipient, "recipient", "", "only messages to this `ADDRESS` or *@domain")
	fs.StringVar(&f.state, "state", "", "only messages in this `STATE`: "+joinStates())
	fs.StringVar(&f.messageID, "message-id", "", "only messages with this `Message-ID`, with or without angle brackets")
	fs.StringVar(&f.olderThan, "older-than", "", "only messages accepted longer than this `AGE` ago: 30m, 4h, 5d")
}

func states() []envelope.State {
	return []envelope.State{
		envelope.Queued, envelope.Sending, envelope.Sent, envelope.Deferred, envelope.Held, envelope.Parked, envelope.Uncertain, envelope.Failed,
	}
}

func joinStates() string {
	var names []string
	for _, s := range states() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// filter reads the flags. An age is counted from now, so that all pages of a listing mean the same.
func (f *filterFlags) filter(now time.Time) (api.Filter, error) {
	filter := api.Filter{MessageID: f.messageID, Sender: f.sender, Recipient: f.recipient, State: envelope.State(f.state)}
	if f.state != "" && !slices.Contains(states(), filter.State) {
		return filter, usagef("--state %q is no state; there are %s", f.state, joinStates())
	}
	if f.olderThan != "" {
		var age api.Age
		if err := age.UnmarshalText([]byte(f.olderThan)); err != nil {
			return filter, usagef("--older-than: %w", err)
		}
		filter.Until = now.Add(-age.Duration)
	}
	return filter, nil
}

// readIDs checks the form of ids on the command line.
func readIDs(args []string) ([]envelope.ID, error) {
	var ids []envelope.ID
	for _, arg := range args {
		id := envelope.ID(strings.ToLower(strings.TrimSpace(arg)))
		if !id.Valid() {
			return nil, usagef("%q is no queue id; those have 20 letters and digits, and relayd queue list shows them; see relayd queue --help", arg)
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func newQueueListCommand(at *apiFlags) *cobra.Command {
	var filters filterFlags
	var limit int
	var asJSON, history bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the messages in the queue, the latest first",
		Long: "List what is in the queue: messages that wait, are held, or have failed and are kept. With --history, --message-id or\n" +
			"--state sent also those that have left it, as long as the history knows of them.",
		Example: `  relayd queue list
  relayd queue list --state parked --sender '*@contoso.com' --limit 0
  relayd queue list --history --recipient you@example.com
  relayd queue list --message-id 'abc@erp.contoso.com'
  relayd queue list --older-than 1d --json | jq -r .id`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := filters.filter(time.Now())
			if err != nil {
				return err
			}
			if limit < 0 {
				return usagef("--limit %d is less than none; 0 lists all", limit)
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			filter.Queued = !history && filter.State != envelope.Sent && filter.MessageID == ""
			return listQueue(cmd, c, &filter, limit, asJSON)
		},
	}
	filters.register(cmd.Flags())
	cmd.Flags().BoolVar(&history, "history", false, "also messages that have left the queue")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many; 0 lists all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line")
	return cmd
}

func listQueue(cmd *cobra.Command, c *client, filter *api.Filter, limit int, asJSON bool) error {
	out := cmd.OutOrStdout()
	listed := 0
	more, err := c.pages(cmd.Context(), filter, limit, func(page []envelope.Summary) error {
		defer func() { listed += len(page) }()
		if asJSON {
			return writeLines(out, page)
		}
		return writeTable(out, page, listed == 0, time.Now())
	})
	switch {
	case err != nil:
		return fmt.Errorf("list: %w", err)
	case listed == 0:
		fmt.Fprintln(cmd.ErrOrStderr(), "no message fits")
	case more:
		fmt.Fprintf(cmd.ErrOrStderr(), "there are more than these %d; --limit N lists N, --limit 0 all\n", listed)
	}
	return nil
}

// writeLines writes each of list as a line of JSON.
func writeLines[T any](out io.Writer, list []T) error {
	encoder := json.NewEncoder(out)
	for i := range list {
		if err := encoder.Encode(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

// maxReply is how much of a reply a table shows, in characters.
const maxReply = 70

// writeTable writes a page of a listing, aligned, with or without a head.
func writeTable(out io.Writer, page []envelope.Summary, head bool, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if head {
		fmt.Fprintln(w, "ID\tAGE\tSTATE\tATTEMPTS\tSENDER\tRECIPIENTS\tREPLY")
	}
	for i := range page {
		s := &page[i]
		recipients := "none"
		if len(s.Recipients) > 0 {
			recipients = printable(string(s.Recipients[0]))
		}
		if n := len(s.Recipients) - 1; n > 0 {
			recipients += fmt.Sprintf(" +%d", n)
		}
		reply := []rune(printable(s.Reply))
		if len(reply) > maxReply {
			reply = append(reply[:maxReply-1], '…')
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", printable(string(s.ID)), age(now.Sub(s.Received)), printable(string(s.State)), s.Attempts,
			printable(string(s.Sender)), recipients, string(reply))
	}
	return w.Flush()
}

// age is a duration in its largest whole unit.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s" // the clocks differ
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// choice is what a command on many messages is about: ids, or filters, or all.
type choice struct {
	filters filterFlags
	all     bool
}

func (ch *choice) register(fs *pflag.FlagSet) {
	ch.filters.register(fs)
	fs.BoolVar(&ch.all, "all", false, "every message in the queue")
}

// read returns the ids given, or else a filter.
func (ch *choice) read(cmd *cobra.Command, args []string) ([]envelope.ID, *api.Filter, error) {
	ids, err := readIDs(args)
	if err != nil {
		return nil, nil, err
	}
	filter, err := ch.filters.filter(time.Now())
	if err != nil {
		return nil, nil, err
	}
	filtered := filter != api.Filter{}
	switch {
	case len(ids) > 0 && !filtered && !ch.all:
		return ids, nil, nil
	case len(ids) == 0 && filtered != ch.all:
		return nil, &filter, nil
	}
	return nil, nil, usagef("%s takes ids, or filters, or --all: one of the three; see %s --help", cmd.CommandPath(), cmd.CommandPath())
}

// verb is an action in words.
type verb struct {
	name, done, short, long string
	final                   bool // cannot be taken back
}

func queueVerbs() []verb {
	return []verb{
		{name: "retry", done: "retried", short: "Make messages due at once",
			long: "Make waiting or failed messages due at once, without waiting for their next attempt. A parked sender stays parked."},
		{name: "hold", done: "held", short: "Keep messages back until they are released",
			long: "Keep messages back: nothing is tried for them, and they do not expire, until they are released."},
		{name: "release", done: "released", short: "Let held or failed messages go on",
			long: "End a hold, or give failed messages a new life with fresh attempts. Recipients who have the message do not get it again."},
		{name: "drop", done: "dropped", short: "Remove messages for good", final: true,
			long: "Remove messages from the queue for good. Nobody is told, not their senders either. relayd queue export keeps a copy."},
	}
}

// queueAction is one run of such a command.
type queueAction struct {
	verb
	choice
	yes, dryRun, asJSON bool
}

func newQueueActionCommand(at *apiFlags, v verb) *cobra.Command {
	a := &queueAction{verb: v}
	cmd := &cobra.Command{
		Use:   v.name + " [ID…]",
		Short: v.short,
		Long: v.long + "\n\nWhat filters select is shown first, and done once you agree; without a terminal to ask on, --yes agrees beforehand.\n" +
			"What is done is done to the messages shown, not to those that came to fit since.",
		Example: fmt.Sprintf("  relayd queue %[1]s 01kd3x8qv0abcdefghjk\n  relayd queue %[1]s --state failed --sender erp@contoso.com\n"+
			"  relayd queue %[1]s --older-than 2d --recipient '*@example.com' --yes", v.name),
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, filter, err := a.read(cmd, args)
			if err != nil {
				return err
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			if err := a.run(cmd, c, ids, filter); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			return nil
		},
	}
	a.register(cmd.Flags())
	cmd.Flags().BoolVar(&a.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "only show what would be done")
	cmd.Flags().BoolVar(&a.asJSON, "json", false, "write the outcome for each message as a JSON object a line")
	return cmd
}

// previewLines is how many messages are shown before a question.
const previewLines = 10

func (a *queueAction) run(cmd *cobra.Command, c *client, ids []envelope.ID, filter *api.Filter) error {
	ctx := cmd.Context()
	if filter != nil || a.final || a.dryRun {
		var sample []envelope.Summary
		var err error
		if filter != nil {
			ids, sample, err = chosen(ctx, c, filter)
		} else {
			ids, sample, err = a.preview(cmd, c, ids)
		}
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "no message fits")
			return nil
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "to be %s: %s\n", a.done, count(len(ids), "message"))
		if err := writeTable(cmd.ErrOrStderr(), sample, true, time.Now()); err != nil {
			return err
		}
		if n := len(ids) - len(sample); n > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "… and %d more\n", n)
		}
		if a.dryRun {
			return nil
		}
		if !a.yes {
			if agreed, err := confirm(ctx, cmd.InOrStdin(), cmd.ErrOrStderr(), "Go on?"); err != nil || !agreed {
				return err
			}
		}
	}
	return a.act(cmd, c, ids)
}

// chosen returns the ids of all messages that fit f and may be in the queue, and the first few: what was sent is history,
// which there is nothing to do about.
func chosen(ctx context.Context, c *client, f *api.Filter) (ids []envelope.ID, sample []envelope.Summary, err error) {
	held := *f
	held.Queued = held.State != envelope.Sent
	_, err = c.pages(ctx, &held, 0, func(page []envelope.Summary) error {
		for i := range page {
			if page[i].State == envelope.Sent {
				continue
			}
			ids = append(ids, page[i].ID)
			if len(sample) < previewLines {
				sample = append(sample, page[i])
			}
		}
		return nil
	})
	return ids, sample, err
}

// preview looks the given messages up; those that are not there are named and left out.
func (a *queueAction) preview(cmd *cobra.Command, c *client, ids []envelope.ID) (there []envelope.ID, sample []envelope.Summary, err error) {
	for batch := range slices.Chunk(ids, pageSize) {
		var out api.Outcomes
		if err := c.call(cmd.Context(), http.MethodPost, messagesPath+"/actions", api.Actions{Action: a.name, IDs: batch, DryRun: true}, &out); err != nil {
			return nil, nil, err
		}
		for _, r := range out.Results {
			if r.Message == nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", r.ID, printable(r.Error))
				continue
			}
			there = append(there, r.ID)
			if len(sample) < previewLines {
				sample = append(sample, *r.Message)
			}
		}
	}
	if len(there) == 0 {
		err = errors.New("none of these messages is there")
	}
	return there, sample, err
}

// act does it, batch by batch, and reports.
func (a *queueAction) act(cmd *cobra.Command, c *client, ids []envelope.ID) error {
	done := 0
	for batch := range slices.Chunk(ids, pageSize) {
		var out api.Outcomes
		if err := c.call(cmd.Context(), http.MethodPost, messagesPath+"/actions", api.Actions{Action: a.name, IDs: batch}, &out); err != nil {
			return fmt.Errorf("%w (%d of %s %s so far)", err, done, count(len(ids), "message"), a.done)
		}
		done += out.Done
		if a.asJSON {
			if err := writeLines(cmd.OutOrStdout(), out.Results); err != nil {
				return err
			}
			continue
		}
		for _, r := range out.Results {
			if !r.Done {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", printable(string(r.ID)), printable(r.Error))
			}
		}
	}
	if done < len(ids) {
		return fmt.Errorf("%d of %s %s, the others not for the reasons above", done, count(len(ids), "message"), a.done)
	}
	if !a.asJSON {
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", count(done, "message"), a.done)
	}
	return nil
}

// confirm asks a person. Where there is none to ask, that is an error which says how to agree beforehand.
func confirm(ctx context.Context, in io.Reader, out io.Writer, question string) (bool, error) {
	if terminal, ok := in.(*os.File); !ok || !isTerminal(terminal) {
		return false, errors.New("nothing done: there is no terminal to ask on; add --yes to go on without a question")
	}
	fmt.Fprint(out, question+" [y/N] ")
	answer := make(chan string, 1)
	go func() { // a read from a terminal cannot be called off; it stays behind until the process ends
		line, _ := bufio.NewReader(io.LimitReader(in, 100)).ReadString('\n') // no answer is no
		answer <- line
	}()
	select {
	case line := <-answer:
		word := strings.ToLower(strings.TrimSpace(line))
		if word == "y" || word == "yes" {
			return true, nil
		}
		fmt.Fprintln(out, "nothing done")
		return false, nil
	case <-ctx.Done():
		fmt.Fprintln(out)
		return false, errors.New("interrupted: nothing done")
	}
}

// export is one run of queue export.
type export struct {
	choice
	output string
	asJSON bool
}

func newQueueExportCommand(at *apiFlags) *cobra.Command {
	var e export
	cmd := &cobra.Command{
		Use:   "export [ID…] --output DIR",
		Short: "Write messages to files",
		Long: "Write each message, byte for byte as it is stored, to DIR/ID.eml. The content is there while a message waits, and for\n" +
			"queue.keep_failed after it has failed. A file that is there already is replaced.",
		Example: `  relayd queue export 01kd3x8qv0abcdefghjk --output -
  relayd queue export --state failed --output failed/ --json > failed/index.jsonl`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, filter, err := e.read(cmd, args)
			switch {
			case err != nil:
				return err
			case e.output == "":
				return usagef("queue export needs --output DIR, or --output - for one message")
			case e.output == "-" && (len(ids) != 1 || e.asJSON):
				return usagef("--output - is for one message, named by its id and without --json")
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			if err := e.run(cmd, c, ids, filter); err != nil {
				return fmt.Errorf("export: %w", err)
			}
			return nil
		},
	}
	e.register(cmd.Flags())
	cmd.Flags().StringVarP(&e.output, "output", "o", "", "`DIR` to write to, made where it is missing; - writes one message to standard output")
	cmd.Flags().BoolVar(&e.asJSON, "json", false, "write what is known of each message to standard output, a JSON object a line")
	return cmd
}

func (e *export) run(cmd *cobra.Command, c *client, ids []envelope.ID, filter *api.Filter) error {
	ctx := cmd.Context()
	if e.output == "-" {
		return e.write(ctx, c, ids[0], cmd.OutOrStdout())
	}
	if filter != nil {
		var err error
		if ids, _, err = chosen(ctx, c, filter); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(e.output, 0o700); err != nil {
		return err
	}
	done := 0
	for _, id := range ids {
		err := e.one(cmd, c, id)
		if _, refused := errors.AsType[*refusal](err); refused {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", id, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w (%d of %s exported so far)", id, err, done, count(len(ids), "message"))
		}
		done++
	}
	if done < len(ids) {
		return fmt.Errorf("%d of %s exported, the others not for the reasons above", done, count(len(ids), "message"))
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s exported to %s\n", count(done, "message"), e.output)
	return nil
}

// one writes a message to its file: first beside it, so that a file by that name is whole.
func (e *export) one(cmd *cobra.Command, c *client, id envelope.ID) (err error) {
	var d *api.Detail
	if e.asJSON {
		if d, err = c.get(cmd.Context(), id); err != nil {
			return err
		}
	}
	file, err := os.CreateTemp(e.output, "."+string(id)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	if err := errors.Join(e.write(cmd.Context(), c, id, file), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), filepath.Join(e.output, string(id)+".eml")); err != nil {
		return err
	}
	if d == nil {
		return nil
	}
	return writeLines(cmd.OutOrStdout(), []*api.Detail{d})
}

func (e *export) write(ctx context.Context, c *client, id envelope.ID, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+messagesPath+"/"+string(id)+"/raw", nil)
	if err != nil {
		return err
	}
	body, err := c.open(ctx, req)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(to, body); err != nil {
		return fmt.Errorf("copy the message: %w", err)
	}
	return nil
}
