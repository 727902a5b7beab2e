package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"relayd/configs"
	"relayd/pkg/admin/api"
	"relayd/pkg/config"
	"relayd/pkg/entra"
	"relayd/pkg/exchange/catalogue"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check, describe or print the configuration",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigCheckCommand(), newConfigPrintCommand("schema", "Print the JSON Schema of the configuration",
		config.Schema), newConfigPrintCommand("example", "Print a configuration with every key and its default",
		func() ([]byte, error) { return configs.Sample(), nil }),
		newConfigPrintCommand("replies", "Print what relayd knows of Exchange Online's replies, and does about them", written(catalogue.Markdown)),
		newConfigPrintCommand("token-refusals", "Print what relayd knows of Entra ID's refusals, and does about them", written(entra.Markdown)),
		newConfigPrintCommand("openapi", "Print the description of the HTTP API (OpenAPI)", api.Document))
	return cmd
}

// written is what write writes.
func written(write func(io.Writer) error) func() ([]byte, error) {
	return func() ([]byte, error) {
		var b bytes.Buffer
		err := write(&b)
		return b.Bytes(), err
	}
}

func newConfigCheckCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Say everything that is wrong with a configuration",
		Long: "Read the configuration as serve would, with the RELAYD_ variables of the environment, its secrets, key pairs and\n" +
			"CA files, and print every error with line, column, key and a way out. Status 1 if there is one.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("config check needs --config FILE; relayd config example prints one to start from")
			}
			return checkConfig(file, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `file`")
	return cmd
}

// checkConfig writes warnings to stderr and, where there is no error, one line to stdout.
func checkConfig(file string, stdout, stderr io.Writer) error {
	cfg, warnings, err := config.Load(file)
	for _, w := range warnings {
		fmt.Fprintln(stderr, "warning: "+w.String())
	}
	if e, ok := errors.AsType[*config.Error](err); ok {
		return fmt.Errorf("%s has %s:\n%w", file, count(len(e.Problems), "error"), err)
	}
	if err == nil {
		_, err = wiringOf(cfg, nil) // knows the rows that replies may change
	}
	if err != nil {
		return err
	}
	said := "ok"
	if len(warnings) > 0 {
		said += ", with " + count(len(warnings), "warning")
	}
	_, err = fmt.Fprintln(stdout, file+": "+said)
	return err
}

// count returns "1 error", "2 errors".
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

func newConfigPrintCommand(name, short string, text func() ([]byte, error)) *cobra.Command {
	return &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := text()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
}
