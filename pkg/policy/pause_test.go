package policy

import (
	"errors"
	"testing"

	"relayd/pkg/envelope"
)

func TestPaused(t *testing.T) {
	p := New(Options{
		Senders: []Sender{{Match: "erp@contoso.com"}, {Match: "*@contoso.com"}, {Match: "*@fabrikam.com"}},
		Paused:  map[string]string{"ERP@contoso.com": "ops", "*@Fabrikam.com": "night shift"},
	})
	for _, test := range []struct {
		sender envelope.Address
		want   string // who paused it; empty: it has a way
	}{
		{"erp@contoso.com", "ops"}, {"Erp@Contoso.com", "ops"}, {"scanner@contoso.com", ""}, {"a@fabrikam.com", "night shift"},
	} {
		_, err := p.Route(test.sender)
		paused, ok := errors.AsType[*PausedError](err)
		if (test.want == "") != (err == nil) || ok && paused.By != test.want {
			t.Errorf("%s: got %v, want it paused by %q", test.sender, err, test.want)
		}
		if _, _, err := p.Choose(test.sender, test.sender); err != nil {
			t.Errorf("%s: mail of a paused sender is accepted all the same, got %v", test.sender, err)
		}
	}
	p.Configure(Options{Senders: []Sender{{Match: "erp@contoso.com"}}})
	if _, err := p.Route("erp@contoso.com"); err != nil {
		t.Errorf("resumed, and still %v", err)
	}
	// A domain's pause does not reach an address with a rule of its own.
	p.Configure(Options{Senders: []Sender{{Match: "erp@contoso.com"}, {Match: "*@contoso.com"}}, Paused: map[string]string{"*@contoso.com": "ops"}})
	if _, err := p.Route("erp@contoso.com"); err != nil {
		t.Errorf("got %v for an address with a rule of its own", err)
	}
}
