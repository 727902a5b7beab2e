package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the man pages of all commands to a directory",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("write man pages: %w", err)
			}
			epoch := time.Unix(0, 0).UTC() // the same build writes the same pages
			return doc.GenManTree(cmd.Root(), &doc.GenManHeader{Section: "1", Source: "relayd", Manual: "relayd", Date: &epoch}, args[0])
		},
	}
}
