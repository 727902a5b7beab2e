package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/api/control"
	"relayd/pkg/admin/console"
)

const tenantsPath = "/api/v1/tenants"

// tenantAt is the path of a tenant in the API.
func tenantAt(name string) string { return tenantsPath + "/" + url.PathEscape(name) }

func newTenantCommand() *cobra.Command {
	var at apiFlags
	cmd := &cobra.Command{
		Use:   "tenant",
		Short: "List, add, check and remove tenants: app registrations in Entra ID",
		Long: "Look after the tenants of the running relay: those of its configuration file, which can only be changed there, and those\n" +
			"added here or on its page. It is asked over its admin address: that of --api, else of the configuration in --config.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	at.register(cmd.PersistentFlags())
	cmd.AddCommand(newTenantListCommand(&at), newTenantAddCommand(&at), newTenantCheckCommand(&at), newNamedCommand(&at, namedVerb{
		name: "remove", done: "removed", noun: "tenant", method: http.MethodDelete, path: tenantAt, question: "Remove", short: "Remove tenants",
		long: "Remove tenants, and forget their secrets. One that senders still use is kept: remove those first.",
	}))
	return cmd
}

func newTenantListCommand(at *apiFlags) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the tenants and how they stand", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := at.client()
			if err != nil {
				return err
			}
			var found control.Tenants
			if err := c.call(cmd.Context(), http.MethodGet, tenantsPath, nil, &found); err != nil {
				return fmt.Errorf("list: %w", err)
			}
			if asJSON {
				return writeLines(cmd.OutOrStdout(), found.Tenants)
			}
			if len(found.Tenants) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "there is no tenant yet; relayd tenant add --help tells how to add one")
				return nil
			}
			return writeTenants(cmd.OutOrStdout(), found.Tenants)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line")
	return cmd
}

func writeTenants(out io.Writer, tenants []console.Tenant) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tGRANT\tCREDENTIAL\tEXPIRES\tSENDERS\tFROM\tPROBLEM")
	for i := range tenants {
		t := &tenants[i]
		expires, problem := "-", ""
		if !t.CredentialExpires.IsZero() {
			expires = t.CredentialExpires.Format(time.DateOnly)
		}
		if t.Problem != nil {
			problem = t.Problem.Text
		}
		if t.Shadowed {
			problem = "the configuration file has one of that name, which is in force"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", printable(t.Name), printable(t.Grant), printable(t.Credential), expires, t.Senders,
			printable(t.Origin), printable(problem))
	}
	return w.Flush()
}

// tenantFlags are the flags of tenant add.
type tenantFlags struct {
	in              console.TenantInput
	secretFile      string
	replace, asJSON bool
}

func newTenantAddCommand(at *apiFlags) *cobra.Command {
	var f tenantFlags
	cmd := &cobra.Command{
		Use:   "add NAME --tenant-id ID --client-id ID",
		Short: "Add a tenant, or change one",
		Long: "Add an app registration, which is in force at once.\n\nIts client secret is read from --secret-file, - being standard input, and kept encrypted in the relay's vault.\n" +
			"With --replace, change one that was added here or on the page: what is not given becomes the default, but a secret stays.",
		Example: `  relayd tenant add contoso --tenant-id 0000… --client-id 1111… --secret-file -
  relayd tenant add contoso --tenant-id 0000… --client-id 1111… --grant client_credentials --secret-file secret.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.in.Name = strings.TrimSpace(args[0])
			if err := f.check(); err != nil {
				return err
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			if err := f.run(cmd, c); err != nil {
				return fmt.Errorf("add %s: %w", f.in.Name, err)
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.in.TenantID, "tenant-id", "", "directory (tenant) `ID`")
	fs.StringVar(&f.in.ClientID, "client-id", "", "application (client) `ID`")
	fs.StringVar(&f.in.Grant, "grant", "", "delegated (a person signs in for each mailbox) or client_credentials (default delegated)")
	fs.StringVar(&f.in.Cloud, "cloud", "", "worldwide, gcc-high, dod or china (default worldwide)")
	fs.StringVar(&f.secretFile, "secret-file", "", "`file` with the client secret; - reads it from standard input")
	fs.StringVar(&f.in.CertFile, "cert-file", "", "PEM `file` on the relay's machine, instead of a secret")
	fs.StringVar(&f.in.KeyFile, "key-file", "", "PEM `file` of the certificate's key, on the relay's machine")
	fs.StringVar(&f.in.CredentialExpires, "credential-expires", "", "`DATE` the secret expires, as 2027-12-31")
	fs.StringVar(&f.in.Authority, "authority", "", "base `URL` of the token service, where it is not the cloud's")
	fs.StringVar(&f.in.Scope, "scope", "", "`SCOPE` to ask for, where it is not the cloud's")
	fs.StringVar(&f.in.SMTPServer, "smtp-server", "", "`HOST:PORT` to send to, where it is not the cloud's")
	fs.StringVar(&f.in.CAFile, "ca-file", "", "PEM `file` on the relay's machine, to trust besides the system's roots")
	fs.BoolVar(&f.replace, "replace", false, "change the tenant that is there")
	fs.BoolVar(&f.asJSON, "json", false, "write the tenant as a JSON object")
	return cmd
}

func (f *tenantFlags) check() error {
	switch {
	case f.in.Name == "" || f.in.TenantID == "" || f.in.ClientID == "":
		return usagef("tenant add %q needs --tenant-id and --client-id, which the app registration's overview in Entra shows; see relayd tenant add --help", f.in.Name)
	case f.in.CertFile == "" != (f.in.KeyFile == ""):
		return usagef("--cert-file and --key-file belong together")
	case f.in.CertFile != "" && f.secretFile != "":
		return usagef("a certificate takes the place of a secret; give one of them")
	}
	return nil
}

func (f *tenantFlags) run(cmd *cobra.Command, c *client) error {
	ctx := cmd.Context()
	if f.secretFile != "" {
		if c.clear {
			return usagef("%s would send the secret in clear; name an https address, or make a tunnel to the relay's machine and name its end here", c.base)
		}
		secret, err := readSecret(ctx, f.secretFile, cmd.InOrStdin(), cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		f.in.ClientSecret = secret
	}
	var err error
	if f.replace {
		err = c.call(ctx, http.MethodPut, tenantAt(f.in.Name), f.in, nil)
	} else {
		err = c.call(ctx, http.MethodPost, tenantsPath, f.in, nil)
	}
	if err != nil {
		return err
	}
	var t console.Tenant
	if err := c.call(ctx, http.MethodGet, tenantAt(f.in.Name), nil, &t); err != nil {
		return fmt.Errorf("it is saved, but how it stands cannot be told: %w", err)
	}
	if f.asJSON {
		return writeLines(cmd.OutOrStdout(), []console.Tenant{t})
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s saved\n", printable(t.Name))
	if t.RedirectURI != "" && t.Grant == "delegated" {
		fmt.Fprintf(cmd.ErrOrStderr(), "redirect URI to enter in Entra: %s\n", printable(t.RedirectURI))
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "see whether it works: relayd tenant check '%s'\n", printable(t.Name))
	return nil
}

const maxSecret = 64 << 10 // octets, as in the configuration

// readSecret reads a client secret: the first line of a file, or of in where that is "-", without showing it on a terminal.
func readSecret(ctx context.Context, file string, in io.Reader, prompt io.Writer) (string, error) {
	if file != "-" {
		f, err := os.Open(filepath.Clean(file))
		if err != nil {
			return "", fmt.Errorf("read the client secret: %w", err)
		}
		defer f.Close()
		in = f
	}
	terminal, ok := in.(*os.File)
	if ok = ok && file == "-" && isTerminal(terminal); ok {
		show, err := hideInput(terminal)
		if err != nil {
			return "", err
		}
		defer show()
		fmt.Fprint(prompt, "Client secret: ")
		defer fmt.Fprintln(prompt) // the Enter that was typed is hidden, too
	}
	type result struct {
		line string
		err  error
	}
	done := make(chan result, 1)
	go func() { // a read from a terminal cannot be called off; it stays behind until the process ends
		line, err := bufio.NewReader(io.LimitReader(in, maxSecret+2)).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil // the last line may lack its end
		}
		done <- result{strings.TrimRight(line, "\r\n"), err}
	}()
	select {
	case r := <-done:
		switch {
		case r.err != nil:
			return "", fmt.Errorf("read the client secret: %w", r.err)
		case r.line == "":
			return "", errors.New("the client secret is empty; its value stands in Entra under Certificates & secrets")
		case len(r.line) > maxSecret:
			return "", errors.New("the client secret is too long to be one")
		}
		return r.line, nil
	case <-ctx.Done():
		return "", errors.New("interrupted before a client secret was read")
	}
}

func newTenantCheckCommand(at *apiFlags) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check NAME", Short: "Ask Entra ID whether a tenant's registration and credential are right",
		Long: "Have the relay ask Entra ID whether the app registration is there and its credential right.\n\nNothing is changed. Status 1 " +
			"where a step fails, with the cause and what to change.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := at.client()
			if err != nil {
				return err
			}
			var found control.Findings
			if err = c.call(cmd.Context(), http.MethodPost, tenantAt(args[0])+"/check", nil, &found); err == nil {
				err = writeFindings(cmd, found.Findings, asJSON)
			}
			if err != nil {
				return fmt.Errorf("check %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line for each step")
	return cmd
}
