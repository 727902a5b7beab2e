package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/access"
)

// newToken is a new API token, as --json writes it.
type newToken struct {
	Name    string         `json:"name"`
	Token   string         `json:"token"`
	Hash    string         `json:"hash"`
	Role    access.Role    `json:"role,omitempty"`
	Scopes  []access.Scope `json:"scopes,omitempty"`
	Expires string         `json:"expires,omitempty"`
}

func newTokenCommand() *cobra.Command {
	var t newToken
	var role string
	var scopes []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "token --name NAME",
		Short: "Make an API token, and the line with its hash for admin.tokens",
		Long: "Make an API token and print it, with the entry of admin.tokens that makes the relay accept it.\n\n" +
			"The entry has a hash alone: the token is shown here and never again. It takes effect once the relay has reloaded its configuration.",
		Example: `  relayd token --name grafana --role viewer
  relayd token --name backup --scope read --scope content --expires 2027-12-31`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := t.check(role, scopes); err != nil {
				return err
			}
			t.Token, t.Hash = access.NewToken()
			if asJSON {
				return writeLines(cmd.OutOrStdout(), []newToken{t})
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "the token, which is shown this once, and the entry for admin.tokens:")
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s\n", t.Token, t.entry())
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&t.Name, "name", "", "`NAME` of the token, as audit log and history show it")
	fs.StringVar(&role, "role", "", "what it may: viewer, operator or admin")
	fs.StringArrayVar(&scopes, "scope", nil, "what it may, singly: "+joinScopes()+" (repeatable)")
	fs.StringVar(&t.Expires, "expires", "", "last `DATE` it is good, as 2027-12-31 (default never)")
	fs.BoolVar(&asJSON, "json", false, "one JSON object")
	return cmd
}

func joinScopes() string {
	var names []string
	for _, s := range access.Admin.Scopes() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// check reads the flags. A name is of characters that need no quoting anywhere.
func (t *newToken) check(role string, scopes []string) error {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c)
	}
	t.Role, t.Scopes = access.Role(role), nil
	for _, s := range scopes {
		if !slices.Contains(access.Admin.Scopes(), access.Scope(s)) {
			return usagef("--scope %q is no scope; there are %s", s, joinScopes())
		}
		if !slices.Contains(t.Scopes, access.Scope(s)) {
			t.Scopes = append(t.Scopes, access.Scope(s))
		}
	}
	switch {
	case t.Name == "" || len(t.Name) > 64 || strings.ContainsFunc(t.Name, func(c rune) bool { return !plain(c) }):
		return usagef("--name %q is no name of a token; write up to 64 letters, digits, dots, - and _", t.Name)
	case role == "" && len(scopes) == 0:
		return usagef("say what the token may: --role viewer, operator or admin, or --scope")
	case role != "" && len(scopes) > 0:
		return usagef("--role and --scope exclude each other")
	case role != "" && t.Role.Scopes() == nil:
		return usagef("--role %q is no role; there are viewer, operator, admin", role)
	}
	if t.Expires == "" {
		return nil
	}
	day, err := time.Parse(time.DateOnly, t.Expires)
	if err != nil {
		return usagef("--expires %q is no date; write one like 2027-12-31", t.Expires)
	}
	if time.Now().After(day.AddDate(0, 0, 1)) {
		return usagef("--expires %s is past", t.Expires)
	}
	return nil
}

// entry is the token's entry of admin.tokens.
func (t *newToken) entry() string {
	s := fmt.Sprintf("- {name: %q, hash: %q", t.Name, t.Hash)
	if t.Role != "" {
		s += ", role: " + string(t.Role)
	} else {
		names := make([]string, len(t.Scopes))
		for i, scope := range t.Scopes {
			names[i] = string(scope)
		}
		s += ", scopes: [" + strings.Join(names, ", ") + "]"
	}
	if t.Expires != "" {
		s += ", expires: " + t.Expires
	}
	return s + "}"
}
