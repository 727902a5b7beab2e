package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/console"
)

const (
	sendersPath = "/api/v1/senders"
	devicesPath = "/api/v1/devices"
)

func newSenderCommand() *cobra.Command {
	var at apiFlags
	cmd := &cobra.Command{
		Use:   "sender",
		Short: "List, add and remove senders, sign in for them, pause and resume them",
		Long: "Look after the senders of the running relay: those of its configuration file, which can only be changed there, and those\n" +
			"added here or on its page. It is asked over its admin address: that of --api, else of the configuration in --config.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	at.register(cmd.PersistentFlags())
	cmd.AddCommand(newSenderListCommand(&at), newSenderAddCommand(&at), newSenderAuthorizeCommand(&at))
	for _, v := range senderVerbs() {
		cmd.AddCommand(newNamedCommand(&at, v))
	}
	return cmd
}

func newSenderListCommand(at *apiFlags) *cobra.Command {
	var q console.SenderQuery
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the senders and how they stand",
		Example: `  relayd sender list
  relayd sender list --state consent --json | jq -r .match`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Limit < 0 {
				return usagef("--limit %d is less than none; 0 lists all", q.Limit)
			}
			if q.State != "" && !slices.Contains(senderStates(), q.State) {
				return usagef("--state %q is no state; there are %s", q.State, strings.Join(senderStates(), ", "))
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			return listSenders(cmd, c, q, asJSON)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&q.Text, "text", "", "only those with this `TEXT` in address, login or tenant")
	fs.StringVar(&q.Tenant, "tenant", "", "only those of the tenant with this `NAME`")
	fs.StringVar(&q.State, "state", "", "only those in this `STATE`: "+strings.Join(senderStates(), ", "))
	fs.IntVar(&q.Limit, "limit", 100, "at most so many; 0 lists all")
	fs.BoolVar(&asJSON, "json", false, "one JSON object a line")
	return cmd
}

func senderStates() []string {
	return []string{
		console.SenderReady, console.SenderConsent, console.SenderPaused, console.SenderParked, console.SenderHeld, console.SenderShadowed,
	}
}

// senderPages calls visit with the senders that fit q, page by page: at most q.Limit of them, all where it is 0.
func (c *client) senderPages(ctx context.Context, q console.SenderQuery, visit func([]console.Sender) error) (total int, err error) {
	v := url.Values{}
	for name, value := range map[string]string{"text": q.Text, "tenant": q.Tenant, "state": q.State} {
		if value != "" {
			v.Set(name, value)
		}
	}
	for seen := 0; q.Limit == 0 || seen < q.Limit; {
		size := pageSize
		if q.Limit > 0 {
			size = min(size, q.Limit-seen)
		}
		v.Set("limit", strconv.Itoa(size))
		v.Set("offset", strconv.Itoa(seen))
		var page console.SenderPage
		if err := c.call(ctx, http.MethodGet, sendersPath+"?"+v.Encode(), nil, &page); err != nil {
			return 0, err
		}
		total = page.Total
		if len(page.Senders) == 0 {
			break
		}
		if err := visit(page.Senders); err != nil {
			return 0, err
		}
		if seen += len(page.Senders); seen >= total {
			break
		}
	}
	return total, nil
}

func listSenders(cmd *cobra.Command, c *client, q console.SenderQuery, asJSON bool) error {
	out, listed := cmd.OutOrStdout(), 0
	total, err := c.senderPages(cmd.Context(), q, func(page []console.Sender) error {
		defer func() { listed += len(page) }()
		if asJSON {
			return writeLines(out, page)
		}
		return writeSenders(out, page, listed == 0)
	})
	switch {
	case err != nil:
		return fmt.Errorf("list: %w", err)
	case listed == 0:
		fmt.Fprintln(cmd.ErrOrStderr(), "no sender fits")
	case total > listed:
		fmt.Fprintf(cmd.ErrOrStderr(), "there are %d; --limit N lists N, --limit 0 all\n", total)
	}
	return nil
}

// writeSenders writes a page of a listing, aligned, with or without a head.
func writeSenders(out io.Writer, page []console.Sender, head bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if head {
		fmt.Fprintln(w, "SENDER\tTENANT\tLOGIN\tSTATE\tWAITING\tLEFT TODAY\tFROM\tPROBLEM")
	}
	for i := range page {
		s := &page[i]
		problem := ""
		if s.Problem != nil {
			problem = s.Problem.Text
		} else if s.Consent != nil && s.Consent.Problem != nil {
			problem = s.Consent.Problem.Text
		}
		short := []rune(printable(problem))
		if len(short) > maxReply {
			short = append(short[:maxReply-1], '…')
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", printable(s.Match), printable(s.Tenant), printable(cmp.Or(string(s.Login), "-")),
			printable(s.State), s.Queued, s.Remaining, printable(s.Origin), string(short))
	}
	return w.Flush()
}

// senderAt is the path of a sender in the API.
func senderAt(match string) string { return sendersPath + "/" + url.PathEscape(match) }

func newSenderAddCommand(at *apiFlags) *cobra.Command {
	var in console.SenderInput
	var replace, asJSON bool
	cmd := &cobra.Command{
		Use:   "add ADDRESS|*@DOMAIN --tenant NAME",
		Short: "Add a sender, or change one",
		Long: "Add a sender, which is in force at once.\n\nWith --replace, change one that was added here or on the page; what is not given " +
			"becomes the default. A sender of a tenant with delegated consent sends once its mailbox's owner has signed in: relayd sender authorize.",
		Example: `  relayd sender add erp@contoso.com --tenant contoso
  relayd sender add '*@contoso.com' --tenant contoso --login relay@contoso.com --recipients-per-day 5000`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Match = strings.TrimSpace(args[0])
			if err := checkSender(cmd, in.Match); err != nil {
				return err
			}
			if in.Tenant == "" {
				return usagef("sender add needs --tenant; relayd tenant list shows the tenants")
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if replace {
				err = c.call(ctx, http.MethodPut, senderAt(in.Match), in, nil)
			} else {
				err = c.call(ctx, http.MethodPost, sendersPath, in, nil)
			}
			if err != nil {
				return fmt.Errorf("add %s: %w", in.Match, err)
			}
			var s console.Sender
			if err := c.call(ctx, http.MethodGet, senderAt(in.Match), nil, &s); err != nil {
				return fmt.Errorf("%s is saved, but how it stands cannot be told: %w", in.Match, err)
			}
			if asJSON {
				return writeLines(cmd.OutOrStdout(), []console.Sender{s})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s saved: %s\n", printable(s.Match), printable(s.State))
			if s.State == console.SenderConsent {
				fmt.Fprintf(cmd.ErrOrStderr(), "nobody has signed in for it yet: relayd sender authorize '%s'\n", printable(s.Match))
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&in.Tenant, "tenant", "", "`NAME` of the tenant it belongs to")
	fs.StringVar(&in.Login, "login", "", "`ADDRESS` of the mailbox to authenticate as, which may Send As this sender (default the sender itself)")
	fs.StringVar(&in.Fallback, "fallback", "", "`ADDRESS` of a sender to send through while this one cannot")
	fs.IntVar(&in.Connections, "connections", 0, "connections at once (default 3)")
	fs.IntVar(&in.MessagesPerMinute, "messages-per-minute", 0, "messages a minute (default 30)")
	fs.IntVar(&in.RecipientsPerDay, "recipients-per-day", 0, "recipients a day (default 10000)")
	fs.BoolVar(&replace, "replace", false, "change the sender that is there")
	fs.BoolVar(&asJSON, "json", false, "write the sender as a JSON object")
	return cmd
}

// namedVerb is an act on things that have a name, in words.
type namedVerb struct {
	name, done, short, long, example string
	method                           string
	path                             func(name string) string
	noun                             string
	question                         string // that is asked first; empty: none
}

func senderVerbs() []namedVerb {
	act := func(name string) func(string) string {
		return func(match string) string { return senderAt(match) + "/" + name }
	}
	return []namedVerb{
		{
			name: "remove", done: "removed", noun: "sender", method: http.MethodDelete, path: senderAt, question: "Remove",
			short: "Remove senders", long: "Remove senders, and the consent where no other uses it. Their waiting mail stays, and is parked.",
		},
		{
			name: "revoke", done: "revoked", noun: "sender", method: http.MethodPost, path: act("revoke"), question: "Forget the consent of",
			short: "Forget the consent of senders", long: "Forget what the owners of mailboxes have granted: nothing is sent by them until somebody signs in again.",
		},
		{
			name: "pause", done: "paused", noun: "sender", method: http.MethodPost, path: act("pause"),
			short: "Keep senders' mail back", long: "Keep the mail of senders back until they are resumed. Mail is accepted all the same, and does not expire.",
		},
		{
			name: "resume", done: "resumed", noun: "sender", method: http.MethodPost, path: act("resume"),
			short: "Let paused senders send again", long: "End the pause of senders.",
		},
	}
}

// checkSender refuses what no sender can match.
func checkSender(cmd *cobra.Command, match string) error {
	if !strings.Contains(strings.Trim(match, "@ "), "@") {
		return usagef("%q is no sender; write an address like app@contoso.com, or '*@contoso.com'; see %s --help", match, cmd.CommandPath())
	}
	return nil
}

// named is what an act came to for one thing, as --json writes it.
type named struct {
	Name  string `json:"name"`
	Done  bool   `json:"done"`
	Error string `json:"error,omitempty"`
}

func newNamedCommand(at *apiFlags, v namedVerb) *cobra.Command {
	var yes, asJSON bool
	placeholder := strings.ToUpper(v.noun) + "…"
	cmd := &cobra.Command{
		Use: v.name + " " + placeholder, Short: v.short, Long: v.long, Example: v.example, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if strings.TrimSpace(arg) == "" {
					return usagef("%s needs the name of a %s, not nothing", cmd.CommandPath(), v.noun)
				}
				if v.noun != "sender" {
					continue
				}
				if err := checkSender(cmd, arg); err != nil {
					return err
				}
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			if v.question != "" && !yes {
				question := v.question + " " + printable(strings.Join(args, ", ")) + "?"
				if agreed, err := confirm(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr(), question); err != nil || !agreed {
					return err
				}
			}
			return v.run(cmd, c, args, asJSON)
		},
	}
	if v.question != "" {
		cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write the outcome for each as a JSON object a line")
	return cmd
}

// run does it to each, and goes on past one that is refused.
func (v *namedVerb) run(cmd *cobra.Command, c *client, names []string, asJSON bool) error {
	done := 0
	for _, name := range names {
		err := c.call(cmd.Context(), v.method, v.path(name), nil, nil)
		if _, refused := errors.AsType[*refusal](err); err != nil && (!refused || len(names) == 1 && !asJSON) {
			return fmt.Errorf("%s %s: %w", v.name, name, err)
		}
		result := named{Name: name, Done: err == nil}
		if err == nil {
			done++
		} else {
			result.Error = err.Error()
		}
		switch {
		case asJSON:
			if err := writeLines(cmd.OutOrStdout(), []named{result}); err != nil {
				return err
			}
		case err != nil:
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", printable(name), err)
		default:
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", printable(name), v.done)
		}
	}
	if done < len(names) {
		return fmt.Errorf("%s: %d of %s %s, the others not for the reasons above", v.name, done, count(len(names), v.noun), v.done)
	}
	return nil
}

func newSenderAuthorizeCommand(at *apiFlags) *cobra.Command {
	var link, asJSON bool
	cmd := &cobra.Command{
		Use:   "authorize SENDER",
		Short: "Sign in for a sender, here or by a link",
		Long: "Have the owner of the sender's mailbox sign in, so that the relay may send by it.\n\nPrints a code and the address to enter it at, in any browser anywhere, and waits. With --link it prints a one-time link instead, to hand to the owner; that needs no account\n" +
			"of this relay.",
		Example: "  relayd sender authorize erp@contoso.com\n  relayd sender authorize erp@contoso.com --link",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkSender(cmd, args[0]); err != nil {
				return err
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			if link {
				err = invite(cmd, c, args[0], asJSON)
			} else {
				err = signIn(cmd, c, args[0], asJSON)
			}
			if err != nil {
				return fmt.Errorf("authorize %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&link, "link", false, "print a one-time link for the mailbox's owner")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON objects, a line each: what is asked, then what came of it")
	return cmd
}

// invite prints a consent link.
func invite(cmd *cobra.Command, c *client, match string, asJSON bool) error {
	var i console.Invitation
	if err := c.call(cmd.Context(), http.MethodPost, senderAt(match)+"/invitation", nil, &i); err != nil {
		return err
	}
	if asJSON {
		return writeLines(cmd.OutOrStdout(), []console.Invitation{i})
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "for the owner of %s, once, until %s:\n", printable(string(i.Login)), moment(i.Expires))
	_, err := fmt.Fprintln(cmd.OutOrStdout(), printable(i.URL))
	return err
}

// signIn starts a sign-in by device code, and waits for its outcome.
func signIn(cmd *cobra.Command, c *client, match string, asJSON bool) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	var d console.Device
	if err := c.call(ctx, http.MethodPost, senderAt(match)+"/device", nil, &d); err != nil {
		return err
	}
	if asJSON {
		if err := writeLines(out, []console.Device{d}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(out, "Open %s in any browser, enter the code %s and sign in as the owner of the mailbox.\nThe code is good until %s.\n",
			printable(d.VerificationURI), printable(d.UserCode), moment(d.Expires))
	}
	if err := c.awaitDevice(ctx, &d); err != nil {
		return err
	}
	if asJSON {
		if err := writeLines(out, []console.Device{d}); err != nil {
			return err
		}
	}
	if d.State != "done" {
		return notSignedIn(&d)
	}
	if !asJSON {
		fmt.Fprintf(out, "%s has signed in: %s may send\n", printable(d.User), printable(match))
	}
	return nil
}

// awaitDevice asks until the sign-in has an outcome. The relay knows when the code has expired; a little later this gives up
// by itself.
func (c *client) awaitDevice(ctx context.Context, d *console.Device) error {
	late, cancel := context.WithDeadline(ctx, d.Expires.Add(time.Minute))
	defer cancel()
	for wait := firstLook; d.State == "pending"; wait = min(2*wait, lastLook) {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-late.Done():
			timer.Stop()
			if ctx.Err() != nil {
				return errors.New("interrupted: whoever enters the code until it expires is signed in all the same")
			}
			return errors.New("nobody has signed in before the code expired; start anew")
		}
		var now console.Device
		err := c.call(late, http.MethodGet, devicesPath+"/"+url.PathEscape(d.ID), nil, &now)
		r, refused := errors.AsType[*refusal](err)
		switch {
		case err == nil:
			*d = now
		case late.Err() != nil || refused && r.code == http.StatusServiceUnavailable: // asked again, or told above
		default:
			return err
		}
	}
	return nil
}

// notSignedIn says why a sign-in has failed.
func notSignedIn(d *console.Device) error {
	if d.Problem == nil {
		return errors.New("the sign-in was not accepted")
	}
	text := "not signed in: " + printable(d.Problem.Text)
	if d.Problem.Cause != "" {
		text += ": " + printable(d.Problem.Cause)
	}
	var advice strings.Builder
	writeAdvice(&advice, "", d.Problem.Advice)
	return errors.New(strings.TrimRight(text+"\n"+advice.String(), "\n"))
}

// writeFindings writes what an examination found, for a person or as JSON, and fails where something has.
func writeFindings(cmd *cobra.Command, findings []console.Finding, asJSON bool) error {
	failed := 0
	out := cmd.OutOrStdout()
	encoder := json.NewEncoder(out)
	for _, f := range findings {
		if f.Result == "fail" {
			failed++
		}
		if asJSON {
			if err := encoder.Encode(f); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(out, "%-4s  %s: %s\n", printable(f.Result), printable(f.Step), printable(f.Detail))
		if f.Cause != "" {
			fmt.Fprintf(out, "      cause: %s\n", printable(f.Cause))
		}
		writeAdvice(out, "      ", f.Advice)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %s failed", failed, count(len(findings), "step"))
	}
	return nil
}
