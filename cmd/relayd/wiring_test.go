package main

import (
	"relayd/cmd/relayd/registry"
	"relayd/pkg/envelope"
	"relayd/pkg/policy"
	"strings"
	"testing"

	"relayd/pkg/config"
)

const sixLines = `
hostname: relay.contoso.com
listeners: [{address: ":2525", allow_networks: [127.0.0.0/8, 10.0.0.0/8]}]
tenants:
  - {name: contoso, tenant_id: 00000000-0000-0000-0000-000000000000, client_id: 11111111-1111-1111-1111-111111111111,
     client_secret: plain, grant: client_credentials}
senders: [{match: "*@contoso.com", tenant: contoso, login: robot@contoso.com}]
`

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	c, _, err := config.Parse("test.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWiring(t *testing.T) {
	w, err := wiringOf(parse(t, sixLines), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := w.policy.Senders[0]
	if s.Match != "*@contoso.com" || s.Route.Login != "robot@contoso.com" || s.Route.Connections != 3 || s.Route.MessagesPerMinute != 30 ||
		s.Route.RecipientsPerDay != 10000 {
		t.Errorf("got %+v, want the rule with the default limits", s)
	}
	if got := w.exchange["contoso"].Server; got != "smtp.office365.com:587" {
		t.Errorf("got server %q, want Exchange Online's", got)
	}
	if secret, err := w.entra["contoso"].Secret(); err != nil || secret != "plain" {
		t.Errorf("got %q, %v, want the secret resolved at each use", secret, err)
	}
	if len(w.retry) != 7 {
		t.Errorf("got %d steps of retry, want 7", len(w.retry))
	}
}

func TestNeedsRestart(t *testing.T) {
	old := parse(t, sixLines)
	tests := []struct{ name, from, to, want string }{
		{"a sender is taken over", "robot@", "other@", ""},
		{"a network is taken over", "10.0.0.0/8", "10.1.0.0/16", ""},
		{"an address is not", `":2525"`, `":2526"`, `these keys take a restart: ["listeners[0].address, tls or proxy_protocol"]; restart relayd, or put their old values back`},
		{"a host name is not", "relay.", "mx.", `these keys take a restart: ["hostname"]; restart relayd, or put their old values back`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := needsRestart(old, parse(t, strings.Replace(sixLines, tt.from, tt.to, 1))); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// A sender that was entered and no longer fits keeps its mail, and says why; a pause says by whom.
func TestExtendedWiring(t *testing.T) {
	c := parse(t, sixLines)
	content := registry.Content{
		Senders: map[string]config.Fields{"a@fabrikam.com": {"address": "a@fabrikam.com", "tenant": "gone"}},
		Pauses:  map[string]registry.Pause{"*@contoso.com": {By: "ops"}},
	}
	w, err := extendedWiring(c.Extend(content.Added()), content)
	if err != nil {
		t.Fatal(err)
	}
	p := policy.New(w.policy)
	for sender, want := range map[envelope.Address]string{
		"a@fabrikam.com": `what was entered for this sender is not in force: tenant: no tenant is called "gone"; add it to tenants`,
		"x@contoso.com":  "paused by ops",
	} {
		if _, _, err := p.Choose(sender, sender); err != nil {
			t.Errorf("%s: its mail is refused: %v", sender, err)
		}
		if _, err := p.Route(sender); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", sender, err, want)
		}
	}
}
