package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/api"
	"relayd/pkg/envelope"
)

// sendFlags are the flags of relayd send.
type sendFlags struct {
	from, subject, body, file string
	to                        []string
	wait                      time.Duration
	noWait                    bool
}

func newSendCommand() *cobra.Command {
	var at apiFlags
	var f sendFlags
	cmd := &cobra.Command{
		Use:   "send --from A --to B",
		Short: "Send a message through the running relay and wait for its outcome",
		Long: "Send a message through the running relay, follow it, and print each change of its state and the reply that decided.\n" +
			"Status 0 once every recipient's server has it; 1 where one refuses, or the time is over: then the relay goes on trying.\n" +
			"This is a real message to real people.",
		Example: `  relayd send --from erp@contoso.com --to me@contoso.com
  relayd send --from erp@contoso.com --to a@example.com --to b@example.com --subject 'Test' --body -
  relayd send --from scanner@contoso.com --to me@contoso.com --file scan.eml --wait 5m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			return f.run(cmd, c)
		},
	}
	at.register(cmd.Flags())
	fs := cmd.Flags()
	fs.StringVar(&f.from, "from", "", "`ADDRESS` of the sender, one the configuration has")
	fs.StringArrayVar(&f.to, "to", nil, "`ADDRESS` of a recipient (repeatable)")
	fs.StringVar(&f.subject, "subject", "Test message from relayd", "subject")
	fs.StringVar(&f.body, "body", "", "text of the message; - reads it from standard input")
	fs.StringVar(&f.file, "file", "", "whole message to send as it is, header and all; - reads it from standard input")
	fs.DurationVar(&f.wait, "wait", time.Minute, "how `LONG` to wait for the outcome")
	fs.BoolVar(&f.noWait, "no-wait", false, "end as soon as the message is in the queue")
	return cmd
}

func (f *sendFlags) check(cmd *cobra.Command) error {
	if f.from == "" || len(f.to) == 0 {
		return usagef("send needs --from and at least one --to; see relayd send --help")
	}
	for i, address := range append([]string{f.from}, f.to...) {
		if _, err := envelope.ParseAddress(address, true); err != nil {
			return usagef("--%s %q is no address: %w", []string{"from", "to"}[min(i, 1)], address, err)
		}
	}
	given := cmd.Flags().Changed
	switch {
	case f.file != "" && (given("subject") || given("body")):
		return usagef("--file is a whole message: --subject and --body have no place in it")
	case f.noWait && given("wait"):
		return usagef("--wait and --no-wait exclude each other")
	case f.wait <= 0:
		return usagef("--wait %v is no time to wait; --no-wait does not wait", f.wait)
	}
	return nil
}

// The pace at which a message is looked after.
const (
	firstLook = 100 * time.Millisecond
	lastLook  = 2 * time.Second
)

func (f *sendFlags) run(cmd *cobra.Command, c *client) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	id, err := f.submit(ctx, c, cmd.InOrStdin())
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	fmt.Fprintf(out, "%s  queued as %s\n", time.Now().Format(time.TimeOnly), id)
	if f.noWait {
		return nil
	}
	late, cancel := context.WithTimeout(ctx, f.wait)
	defer cancel()
	d, err := follow(late, out, c, id)
	goesOn := "it stays in the queue; relayd queue show " + string(id) + " tells its story"
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted: " + goesOn)
	case errors.Is(err, context.DeadlineExceeded):
		last := "nothing is known of it yet"
		if d != nil {
			advise(out, d)
			last = "it is " + standing(d, time.Now())
		}
		return fmt.Errorf("not sent within %v: %s; %s", f.wait, last, goesOn)
	case err != nil:
		return fmt.Errorf("follow %s: %w", id, err)
	}
	for i := range d.Recipients {
		r := &d.Recipients[i]
		fmt.Fprintf(out, "%s: %s, %s\n", printable(string(r.Address)), printable(string(r.State)), printable(r.Reply))
	}
	if d.State != envelope.Sent {
		advise(out, d)
		return fmt.Errorf("not sent: %s", standing(d, time.Now()))
	}
	return nil
}

// submit hands the message over and returns its id.
func (f *sendFlags) submit(ctx context.Context, c *client, stdin io.Reader) (envelope.ID, error) {
	var sent api.Sent
	if f.file == "" {
		text := f.body
		switch text {
		case "-":
			b, err := io.ReadAll(io.LimitReader(stdin, 1<<20)) // the API takes no more
			if err != nil {
				return "", fmt.Errorf("read the text: %w", err)
			}
			text = string(b)
		case "":
			text = "This message was sent by relayd send at " + time.Now().Format(time.RFC1123Z) + " to see whether mail flows.\n"
		}
		err := c.call(ctx, http.MethodPost, messagesPath, api.SendRequest{From: f.from, To: f.to, Subject: f.subject, Text: text}, &sent)
		return sent.ID, err
	}
	body := io.NopCloser(stdin)
	if f.file != "-" {
		file, err := os.Open(f.file)
		if err != nil {
			return "", fmt.Errorf("read the message: %w", err)
		}
		defer file.Close()
		body = file
	}
	q := url.Values{"from": {f.from}, "to": f.to}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+messagesPath+"?"+q.Encode(), body)
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "message/rfc822")
	answer, err := c.open(ctx, req)
	if err != nil {
		return "", err
	}
	defer answer.Close()
	err = c.read(answer, &sent)
	return sent.ID, err
}

// follow prints each change of a message's state until it is final, or ctx ends. It returns what it saw last; nil: nothing.
func follow(ctx context.Context, out io.Writer, c *client, id envelope.ID) (*api.Detail, error) {
	var last *api.Detail
	said := string(envelope.Queued)
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		d, err := c.get(ctx, id)
		if r, refused := errors.AsType[*refusal](err); refused && (r.code == http.StatusNotFound || r.code == http.StatusServiceUnavailable) {
			err = nil // on its way from the queue to history, or the relay is short of breath
		}
		if err != nil {
			return last, err
		}
		if d != nil {
			last = d
			if now := strings.TrimSuffix(string(d.State)+": "+d.Parked+d.Reason, ": "); now != said && !d.State.Final() {
				said = now
				fmt.Fprintf(out, "%s  %s\n", time.Now().Format(time.TimeOnly), standing(d, time.Now()))
			}
			if d.State.Final() {
				fmt.Fprintf(out, "%s  %s\n", time.Now().Format(time.TimeOnly), printable(string(d.State)))
				return d, nil
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return last, ctx.Err()
		}
	}
}

// advise prints what the last step that had advice says.
func advise(out io.Writer, d *api.Detail) {
	for i := len(d.Steps) - 1; i >= 0; i-- {
		if d.Steps[i].Advice != "" {
			writeAdvice(out, "", d.Steps[i].Advice)
			return
		}
	}
}
