package main

import (
	"strings"
	"testing"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/config"
)

// What is printed is an entry that the configuration takes, and the token is the one it is for.
func TestToken(t *testing.T) {
	day := time.Now().AddDate(1, 0, 0).Format(time.DateOnly)
	for args, want := range map[string]config.Token{
		"--name grafana --role viewer":                                           {Name: "grafana", Role: "viewer"},
		"--name a.b_c-1 --scope read --scope send --scope read --expires " + day: {Name: "a.b_c-1", Scopes: []string{"read", "send"}},
	} {
		stdout, stderr, err := relaydCommand(t, "", newTokenCommand(), strings.Fields(args)...)
		lines := strings.Split(stdout, "\n")
		if err != nil || len(lines) != 3 || !strings.HasPrefix(stderr, "the token, which is shown this once") {
			t.Fatalf("%s: got %q, %q, %v", args, stdout, stderr, err)
		}
		cfg, _, err := config.Parse("x", []byte("listeners: [{address: \"127.0.0.1:0\"}]\nadmin:\n  tokens:\n  "+lines[1]+"\n"+
			"tenants: [{name: c, tenant_id: 00000000-0000-0000-0000-000000000000, client_id: 11111111-1111-1111-1111-111111111111, client_secret: \"file:/x\"}]\n"+
			"senders: [{match: \"*@contoso.com\", tenant: c}]\n"), nil)
		if err != nil {
			t.Fatalf("%s: %v", lines[1], err)
		}
		got := cfg.Admin.Tokens[0]
		if got.Name != want.Name || got.Role != want.Role || strings.Join(got.Scopes, ",") != strings.Join(want.Scopes, ",") || got.Hash != access.HashToken(lines[0]) {
			t.Errorf("%s: got %+v for %s", args, got, lines[0])
		}
		if strings.Contains(args, "--expires") != strings.Contains(lines[1], "expires: "+day) || strings.Contains(lines[1], lines[0]) {
			t.Errorf("%s: got %s", args, lines[1])
		}
	}
	first, _, _ := relaydCommand(t, "", newTokenCommand(), "--name", "x", "--role", "admin", "--json")
	second, _, err := relaydCommand(t, "", newTokenCommand(), "--name", "x", "--role", "admin", "--json")
	a, b := jsonLines[newToken](t, first), jsonLines[newToken](t, second)
	if err != nil || len(a) != 1 || len(b) != 1 || a[0].Token == b[0].Token || a[0].Hash != access.HashToken(a[0].Token) || a[0].Role != "admin" {
		t.Errorf("got %+v and %+v, %v", a, b, err)
	}
}

func TestTokenUsage(t *testing.T) {
	for args, want := range map[string]string{
		"--role viewer":            `--name "" is no name of a token`,
		"--name a,b --role viewer": "is no name of a token",
		"--name " + strings.Repeat("x", 65) + " --role viewer": "is no name of a token",
		"--name x":                                    "say what the token may",
		"--name x --role root":                        `--role "root" is no role`,
		"--name x --role viewer --scope read":         "--role and --scope exclude each other",
		"--name x --scope all":                        `--scope "all" is no scope; there are read, content, send, operate, manage`,
		"--name x --role viewer --expires tomorrow":   "is no date",
		"--name x --role viewer --expires 2020-01-01": "--expires 2020-01-01 is past",
		"extra": "takes no argument",
	} {
		stdout, _, err := relaydCommand(t, "", newTokenCommand(), strings.Fields(args)...)
		if !isUsage(err) || !strings.Contains(err.Error(), want) || stdout != "" {
			t.Errorf("token %s: got %q, %v, want %q", args, stdout, err, want)
		}
	}
}
