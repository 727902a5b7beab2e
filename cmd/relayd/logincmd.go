package main

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/control"
)

func newLoginCommand() *cobra.Command {
	var at apiFlags
	var role string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Print a one-time link that signs a browser in to the admin page",
		Long: "Print a link that signs in the browser which opens it first. Whoever has the link is let in: hand it over as you would a\n" +
			"password. On the relay's own machine this needs no token, but root or the user the relay runs as.",
		Example: "  relayd login\n  relayd login --role viewer",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if access.Role(role).Scopes() == nil {
				return usagef("--role %q is no role; there are viewer, operator, admin", role)
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			var link control.Link
			if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/login-links", control.LinkRequest{Role: access.Role(role)}, &link); err != nil {
				return fmt.Errorf("login: %w", err)
			}
			if asJSON {
				return writeLines(cmd.OutOrStdout(), []control.Link{link})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "signs in the first browser that opens it, as %s, until %s:\n", role, moment(link.Expires))
			_, err = fmt.Fprintln(cmd.OutOrStdout(), printable(link.URL))
			return err
		},
	}
	at.register(cmd.Flags())
	cmd.Flags().StringVar(&role, "role", string(access.Admin), "what the browser may do: viewer, operator or admin")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object")
	return cmd
}
