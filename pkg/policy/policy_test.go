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
