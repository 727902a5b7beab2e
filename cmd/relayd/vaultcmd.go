package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/api/control"
	"relayd/pkg/config"
)

// vaultReset forgets, in the vault of a relay that is not running, all records that cannot be opened with the keys of cfg. It
// returns how many of which kind.
type vaultReset func(ctx context.Context, cfg *config.Config) (map[string]int, error)

func newVaultCommand(reset vaultReset) *cobra.Command {
	var at apiFlags
	cmd := &cobra.Command{
		Use:   "vault",
		Short: "Change the key that seals the relay's secrets, or forget what it no longer opens",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	at.register(cmd.PersistentFlags())
	cmd.AddCommand(newVaultRotateCommand(&at), newVaultResetCommand(&at, reset))
	return cmd
}

func newVaultRotateCommand(at *apiFlags) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Seal all secrets with the current key",
		Long: "Have the running relay seal all records of its vault with the key vault.key refers to now.\n\nTo change the key: name the old one in " +
			"vault.previous_keys, the new one in vault.key, reload the configuration, run this, and take the old one out.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := at.client()
			if err != nil {
				return err
			}
			var done control.Rotated
			if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/vault/rotate", nil, &done); err != nil {
				return fmt.Errorf("rotate: %w", err)
			}
			if asJSON {
				return writeLines(cmd.OutOrStdout(), []control.Rotated{done})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s sealed with the current key\n", count(done.Rotated, "record"))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object")
	return cmd
}

func newVaultResetCommand(at *apiFlags, reset vaultReset) *cobra.Command {
	var yes, asJSON bool
	cmd := &cobra.Command{
		Use:   "reset --config FILE",
		Short: "Forget the secrets that can no longer be opened",
		Long: "Where the vault's key is lost: forget all that cannot be opened, so that the relay starts again.\n\nForgotten are the records that " +
			"neither vault.key nor vault.previous_keys open. Tenants and senders added from the page, their secrets, consents and sessions among them must be entered again. The\n" +
			"relay must not be running. If the key is somewhere, put it back instead.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if at.config == "" {
				return usagef("vault reset needs --config FILE, whose data_dir has the vault")
			}
			cfg, err := readConfig(at.config)
			if err != nil {
				return err
			}
			if !yes {
				question := "Forget for good what the keys of " + at.config + " do not open?"
				if agreed, err := confirm(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr(), question); err != nil || !agreed {
					return err
				}
			}
			forgotten, err := reset(cmd.Context(), cfg)
			if err != nil {
				return fmt.Errorf("reset the vault: %w", err)
			}
			if asJSON {
				if forgotten == nil {
					forgotten = map[string]int{}
				}
				return writeLines(cmd.OutOrStdout(), []map[string]int{forgotten})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), sayForgotten(forgotten))
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&asJSON, "json", false, "how many records of which kind were forgotten, as a JSON object")
	return cmd
}

// sayForgotten says how many records of which kind are gone.
func sayForgotten(forgotten map[string]int) string {
	if len(forgotten) == 0 {
		return "every record can be opened: nothing forgotten"
	}
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(forgotten)) {
		parts = append(parts, fmt.Sprintf("%d %s", forgotten[kind], kind))
	}
	return "forgotten: " + strings.Join(parts, ", ")
}
