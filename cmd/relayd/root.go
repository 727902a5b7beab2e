package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// usageError is a command line that makes no sense, as opposed to a command that failed.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "relayd",
		Short: "A mail relay that lets every old application send through Microsoft 365",
		Long: "relayd takes mail by plain SMTP, stores it durably and delivers it to Exchange Online with OAuth (XOAUTH2),\n" +
			"each sender with its own token and within Exchange Online's limits.",
		SilenceErrors: true, // main prints them, once and in one form
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return usagef("there is no command %q%s See relayd --help", args[0], orPeriod(hint))
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(newServeCommand(), newDemoCommand(), newSandboxCommand(), newConfigCommand(), newDoctorCommand(), newSendCommand(),
		newQueueCommand(), newSenderCommand(), newTenantCommand(), newTokenCommand(), newLoginCommand(), newVaultCommand(resetVault),
		newPasswordCommand(), newVersionCommand(), newManCommand())
	root.InitDefaultHelpCmd() // cobra would add these two later, behind the back of markUsage
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "completion":
			cmd.Args, cmd.RunE = cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		case "help":
			cmd.Args = knownTopic
		}
	}
	markUsage(root)
	return root
}

// knownTopic refuses help on what is no command; cobra would print the root's.
func knownTopic(cmd *cobra.Command, args []string) error {
	found, rest, err := cmd.Root().Find(args)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%s has no command %q", found.CommandPath(), rest[0])
	}
	return err
}

func orPeriod(hint string) string {
	if hint == "" {
		return "."
	}
	return hint
}

// markUsage makes every wrong flag and argument, of every command, a usage error.
func markUsage(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see %s --help", err, cmd.CommandPath())
	})
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			err := args(cmd, given)
			if err != nil && !cmd.HasSubCommands() && strings.HasPrefix(err.Error(), "unknown command") {
				err = fmt.Errorf("%s takes no argument, not %q", cmd.CommandPath(), given[0]) // cobra's words fit a parent only
			}
			if err != nil {
				return usagef("%w; see %s --help", err, cmd.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		markUsage(sub)
	}
}
