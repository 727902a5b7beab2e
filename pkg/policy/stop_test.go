package policy

import (
	"errors"
	"testing"

	"relayd/pkg/envelope"
)

func TestStopped(t *testing.T) {
	p := New(Options{
		Senders: []Sender{{Match: "erp@contoso.com"}, {Match: "*@contoso.com"}, {Match: "*@fabrikam.com"}},
		Stopped: map[string]string{"ERP@contoso.com": "paused by ops", "*@Fabrikam.com": "paused by night shift"},
	})
	for _, test := range []struct {
		sender envelope.Address
		want   string // why it is stopped; empty: it has a way
	}{
		{"erp@contoso.com", "paused by ops"}, {"Erp@Contoso.com", "paused by ops"}, {"scanner@contoso.com", ""}, {"a@fabrikam.com", "paused by night shift"},
	} {
		_, err := p.Route(test.sender)
		stopped, ok := errors.AsType[*StoppedError](err)
		if (test.want == "") != (err == nil) || ok && stopped.Reason != test.want {
			t.Errorf("%s: got %v, want %q", test.sender, err, test.want)
		}
		if _, _, err := p.Choose(test.sender, test.sender); err != nil {
			t.Errorf("%s: mail of a stopped sender is accepted all the same, got %v", test.sender, err)
		}
	}
	p.Configure(Options{Senders: []Sender{{Match: "erp@contoso.com"}}})
	if _, err := p.Route("erp@contoso.com"); err != nil {
		t.Errorf("resumed, and still %v", err)
	}
	// A domain's stop does not reach an address with a rule of its own.
	p.Configure(Options{Senders: []Sender{{Match: "erp@contoso.com"}, {Match: "*@contoso.com"}}, Stopped: map[string]string{"*@contoso.com": "paused by ops"}})
	if _, err := p.Route("erp@contoso.com"); err != nil {
		t.Errorf("got %v for an address with a rule of its own", err)
	}
}
