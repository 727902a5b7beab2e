package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/api"
	"relayd/pkg/envelope"
)

func newQueueShowCommand(at *apiFlags) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Tell one message's whole story",
		Long:    "Tell where a message came from, where each recipient stands, and every step since: each attempt with the exact reply.",
		Example: "  relayd queue show 01kd3x8qv0abcdefghjk",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := readIDs(args)
			if err != nil {
				return err
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			d, err := c.get(cmd.Context(), ids[0])
			if err != nil {
				return fmt.Errorf("show %s: %w", ids[0], err)
			}
			if asJSON {
				return writeLines(cmd.OutOrStdout(), []*api.Detail{d})
			}
			return writeStory(cmd.OutOrStdout(), d, time.Now())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object")
	return cmd
}

// moment is a time as a person here reads it.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// standing is a message's state in a few words.
func standing(d *api.Detail, now time.Time) string {
	s := printable(string(d.State))
	if d.Attempts > 0 {
		s += ", " + count(d.Attempts, "attempt")
	}
	if !d.State.Final() && d.State != envelope.Held && d.State != envelope.Sending && d.Due.After(now) {
		s += ", next in " + age(d.Due.Sub(now)) + " (" + moment(d.Due) + ")"
	}
	if why := cmp.Or(d.Parked, d.Reason); why != "" {
		s += ": " + printable(why)
	}
	return s
}

// writeStory writes a message's story for a person.
func writeStory(out io.Writer, d *api.Detail, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	line("Message", printable(string(d.ID)))
	line("State", standing(d, now))
	if e := d.Envelope; e != nil {
		line("Received", moment(e.Received)+", "+age(now.Sub(e.Received))+" ago, "+origin(e))
		line("Sender", printable(string(e.Sender)))
		if e.ReversePath != e.Sender {
			line("MAIL FROM", "<"+printable(string(e.ReversePath))+">")
		}
		line("Message-ID", printable(e.MessageID))
		line("Size", count(int(e.Size), "byte"))
		line("Repaired", printable(strings.Join(e.Repairs, ", ")))
	}
	if !d.Stored {
		line("Content", "no longer kept")
	}
	if len(d.Recipients) > 0 {
		fmt.Fprintln(w, "\nRecipients")
	}
	for i := range d.Recipients {
		r := &d.Recipients[i]
		fmt.Fprintf(w, "  %s\t%s\t%s\n", printable(string(r.Address)), printable(string(r.State)), printable(r.Reply))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(d.Steps) > 0 {
		fmt.Fprintln(out, "\nHistory")
	}
	for i := range d.Steps {
		writeStep(out, &d.Steps[i])
	}
	return nil
}

// origin is where a message came from.
func origin(e *envelope.Envelope) string {
	s := "by " + printable(e.Intake)
	if e.Client != "" {
		s += ` from "` + printable(e.Client) + `"`
	}
	if e.Peer != "" {
		s += " at " + printable(e.Peer)
	}
	return s
}

// writeStep writes one step: its line, then what it meant for single recipients where they differ, then what can be done.
func writeStep(out io.Writer, s *envelope.Step) {
	what := printable(s.What)
	if s.Attempt > 0 {
		what += fmt.Sprintf(" %d", s.Attempt)
	}
	text := "  " + moment(s.At) + "  " + what
	if s.By != "" {
		text += " by " + printable(s.By)
	}
	if s.Took > 0 {
		text += ", " + s.Took.Round(time.Millisecond).String()
	}
	if string(s.State) != s.What && s.State != "" {
		text += ": " + printable(string(s.State))
	}
	if s.Reply != "" {
		text += ": " + printable(s.Reply)
	}
	if !s.Due.IsZero() {
		text += ", next " + moment(s.Due)
	}
	fmt.Fprintln(out, text)
	alike := !slices.ContainsFunc(s.Recipients, func(r envelope.StepResult) bool { return r.State != s.State || r.Reply != s.Reply })
	if !alike {
		for _, r := range s.Recipients {
			fmt.Fprintf(out, "      %s: %s\n", printable(string(r.Address)), strings.TrimSuffix(printable(string(r.State))+", "+printable(r.Reply), ", "))
		}
	}
	writeAdvice(out, "      ", s.Advice)
}

// writeAdvice writes what can be done, which may have lines.
func writeAdvice(out io.Writer, indent, advice string) {
	if strings.TrimSpace(advice) == "" {
		return
	}
	for i, line := range strings.Split(strings.TrimSpace(advice), "\n") {
		lead := "advice: "
		if i > 0 {
			lead = "        "
		}
		fmt.Fprintln(out, indent+lead+printable(strings.TrimRight(line, "\r")))
	}
}
