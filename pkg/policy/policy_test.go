package policy

import (
	"errors"
	"testing"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

func rulesUnderTest() Options {
	return Options{Senders: []Sender{
		{Match: "*@Contoso.com", Route: envelope.Route{Tenant: "contoso", Connections: 3}},
		{Match: "Alerts@contoso.com", Route: envelope.Route{Tenant: "contoso", Login: "robot@contoso.com", Connections: 1}},
		{Match: "only@fabrikam.com", Route: envelope.Route{Tenant: "fabrikam"}},
	}}
}

func TestChoose(t *testing.T) {
	rewrite := rulesUnderTest()
	rewrite.RewriteTo, rewrite.KeepOriginal = "noreply@contoso.com", true
	tests := []struct {
		name       string
		opts       Options
		path, from envelope.Address
		want       envelope.Address
		keep       bool
		err        string
	}{
		{"From decides, not the reverse-path", rulesUnderTest(), "only@fabrikam.com", "a@contoso.com", "a@contoso.com", false, ""},
		{"case is no difference", rulesUnderTest(), "", "ONLY@fabrikam.com", "ONLY@fabrikam.com", false, ""},
		{"no From: the reverse-path", rulesUnderTest(), "a@contoso.com", "", "a@contoso.com", false, ""},
		{"a subdomain is another domain", rulesUnderTest(), "a@contoso.com", "a@mail.contoso.com", "", false,
			"550 5.7.1 <a@mail.contoso.com>: no sender with that address is configured"},
		{"a domain's other addresses stay unknown", rulesUnderTest(), "", "other@fabrikam.com", "", false,
			"550 5.7.1 <other@fabrikam.com>: no sender with that address is configured"},
		{"nothing to go by", rulesUnderTest(), "", "", "", false,
			"550 5.7.1 message has neither a reverse-path nor a From: no sender to go by"},
		{"unknown rewritten", rewrite, "root@localhost", "root@web01.local", "noreply@contoso.com", true, ""},
		{"known left alone", rewrite, "root@localhost", "a@contoso.com", "a@contoso.com", false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, keep, err := New(tt.opts).Choose(tt.path, tt.from)
			if text := errorText(err); got != tt.want || keep != tt.keep || text != tt.err {
				t.Errorf("got %q keep=%v %q, want %q keep=%v %q", got, keep, text, tt.want, tt.keep, tt.err)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return status.From(err).Error()
}

func TestKnown(t *testing.T) {
	p := New(rulesUnderTest())
	for path, want := range map[envelope.Address]string{
		"":                  "",
		"x@contoso.com":     "",
		"only@fabrikam.com": "",
		"x@fabrikam.com":    "550 5.7.1 <x@fabrikam.com>: no sender with that address is configured",
	} {
		if got := errorText(p.Known(path)); got != want {
			t.Errorf("Known(%q): got %q, want %q", path, got, want)
		}
	}
	opts := rulesUnderTest()
	opts.RewriteTo = "noreply@contoso.com"
	p.Configure(opts)
	if err := p.Known("x@fabrikam.com"); err != nil {
		t.Errorf("got %v, want unknown reverse-paths let in where they are rewritten", err)
	}
}

func TestRoute(t *testing.T) {
	p := New(rulesUnderTest())
	tests := []struct {
		sender envelope.Address
		want   envelope.Route
	}{
		{"a@contoso.com", envelope.Route{Tenant: "contoso", Login: "a@contoso.com", Connections: 3}},
		{"alerts@CONTOSO.com", envelope.Route{Tenant: "contoso", Login: "robot@contoso.com", Connections: 1}},
		{"only@fabrikam.com", envelope.Route{Tenant: "fabrikam", Login: "only@fabrikam.com"}},
	}
	for _, tt := range tests {
		got, err := p.Route(tt.sender)
		if err != nil || *got != tt.want {
			t.Errorf("Route(%s): got %+v, %v, want %+v", tt.sender, got, err, tt.want)
		}
	}
	p.Configure(Options{})
	if _, err := p.Route("a@contoso.com"); !errors.Is(err, ErrNoRoute) {
		t.Errorf("got %v, want ErrNoRoute once the rule is gone", err)
	}
}

func TestRouteCarriesItsLimitsAndFallback(t *testing.T) {
	limits := envelope.Route{Tenant: "contoso", RecipientsPerMessage: 500, RecipientsPerDomain: 50, Fallback: "Spare@contoso.com"}
	robot := limits
	robot.Login = "robot@contoso.com"
	p := New(Options{Senders: []Sender{
		{Match: "*@contoso.com", Route: limits},
		{Match: "alerts@contoso.com", Route: robot},
		{Match: "lost@contoso.com", Route: envelope.Route{Tenant: "contoso", Fallback: "nobody@fabrikam.com"}},
		{Match: "robot@contoso.com", Route: envelope.Route{Tenant: "contoso", Fallback: "alerts@contoso.com"}},
		{Match: "*@fabrikam.com", Route: envelope.Route{Tenant: "fabrikam", Login: "all@fabrikam.com", Fallback: "spare@fabrikam.com"}},
		{Match: "a@contoso.de", Route: envelope.Route{Tenant: "de", Login: "robot@contoso.com", Fallback: "alerts@contoso.com"}},
	}})
	tests := []struct {
		name   string
		sender envelope.Address
		want   envelope.Address
	}{
		{"by a domain's rule", "a@contoso.com", "Spare@contoso.com"},
		{"by an address's rule", "alerts@contoso.com", "Spare@contoso.com"},
		{"the fallback itself has none", "spare@Contoso.com", ""},
		{"one through the same mailbox is none", "robot@contoso.com", ""},
		{"one domain, one mailbox", "a@fabrikam.com", ""},
		{"the same login of another tenant is another mailbox", "a@contoso.de", "alerts@contoso.com"},
		{"where it leads is asked when it is needed", "lost@contoso.com", "nobody@fabrikam.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := p.Route(tt.sender)
			if err != nil || got.Fallback != tt.want {
				t.Fatalf("got fallback %q, %v, want %q", got.Fallback, err, tt.want)
			}
		})
	}
	got, err := p.Route("a@contoso.com")
	if err != nil || got.RecipientsPerMessage != 500 || got.RecipientsPerDomain != 50 {
		t.Errorf("got %+v, %v, want the rule's limits", got, err)
	}
}

func TestExternal(t *testing.T) {
	opts := rulesUnderTest()
	opts.Domains = map[string][]string{"contoso": {"Contoso.onmicrosoft.com"}, "new": {"new.example"}}
	p := New(opts)
	tests := []struct {
		tenant    string
		recipient envelope.Address
		want      bool
	}{
		{"contoso", "x@contoso.com", false},
		{"contoso", "x@CONTOSO.com", false},
		{"contoso", "x@mail.contoso.com", true}, // a subdomain is another domain
		{"contoso", "only@fabrikam.com", true},  // another tenant's
		{"contoso", "x@contoso.onmicrosoft.com", false},
		{"fabrikam", "other@fabrikam.com", false}, // one configured address makes the domain ours
		{"fabrikam", "x@contoso.onmicrosoft.com", true},
		{"new", "x@new.example", false},
		{"nobody", "x@contoso.com", true},
	}
	for _, tt := range tests {
		if got := p.External(tt.tenant, tt.recipient); got != tt.want {
			t.Errorf("External(%s, %s): got %v, want %v", tt.tenant, tt.recipient, got, tt.want)
		}
	}
	p.Configure(Options{})
	if !p.External("contoso", "x@contoso.com") {
		t.Error("the domains of rules taken out are still ours")
	}
}
