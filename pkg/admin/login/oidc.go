package login

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/login/provider"
)

// openID is the OpenID provider with the rules who may log in by it.
type openID struct {
	OIDC
	*provider.Provider
	entra bool
}

func newOpenID(o *OIDC) (*openID, error) {
	byGroup := slices.ContainsFunc(o.Allowed, func(r Rule) bool { return r.Group != "" })
	p, err := provider.New(provider.Options{
		Issuer: o.Issuer, ClientID: o.ClientID, ClientSecret: o.ClientSecret, Groups: byGroup, RootCAs: o.RootCAs, Client: o.Client,
	})
	if err != nil {
		return nil, err
	}
	for _, rule := range o.Allowed {
		if rule.Role.Scopes() == nil || (rule.User == "") == (rule.Group == "") {
			return nil, errors.New("each entry of allowed names a user or a group, and one of the roles viewer, operator and admin")
		}
	}
	u, err := url.Parse(o.Issuer)
	if err != nil {
		return nil, err
	}
	entra := isEntra(u)
	if tenant, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/"); entra && slices.Contains([]string{"common", "organizations", "consumers"}, tenant) {
		return nil, fmt.Errorf("the issuer %q is for people of every organisation; write your tenant's id in place of %q", o.Issuer, tenant)
	}
	return &openID{OIDC: *o, Provider: p, entra: entra}, nil
}

// isEntra reports whether an issuer is Microsoft Entra ID, of any cloud.
func isEntra(issuer *url.URL) bool {
	host := strings.ToLower(issuer.Hostname())
	return host == "sts.windows.net" || host == "login.windows.net" || host == "login.partner.microsoftonline.cn" || host == "sts.chinacloudapi.cn" ||
		strings.HasPrefix(host, "login.microsoftonline.") || strings.HasSuffix(host, ".ciamlogin.com")
}

// flow is a sign-in under way. The browser keeps it, in a cookie that pages cannot read and no other site's request changes; the
// provider's answer counts in that browser only.
type flow struct {
	State    string    `json:"s"`
	Nonce    string    `json:"n"`
	Verifier string    `json:"v"`
	To       string    `json:"t"` // path to go to behind it
	Expires  time.Time `json:"e"`
}

func newFlow(to string) *flow {
	return &flow{State: random(), Nonce: random(), Verifier: oauth2.GenerateVerifier(), To: to, Expires: time.Now().Add(flowLife).UTC()}
}

func (f *flow) at(base *url.URL) provider.Flow {
	return provider.Flow{State: f.State, Nonce: f.Nonce, Verifier: f.Verifier, Redirect: base.JoinPath(CallbackPath).String()}
}

// finish returns who has signed in.
func (p *openID) finish(ctx context.Context, base *url.URL, f *flow, answer url.Values) (*claims, error) {
	who := &claims{}
	return who, p.Finish(ctx, f.at(base), answer, who)
}

// claims is what an id token says of a user, as far as roles depend on it.
type claims struct {
	Subject   string    `json:"sub"`
	Object    string    `json:"oid,omitempty"`
	Username  string    `json:"preferred_username,omitempty"`
	Email     string    `json:"email,omitempty"`
	Verified  loose     `json:"email_verified,omitempty"`
	Groups    names     `json:"groups,omitempty"`
	Elsewhere elsewhere `json:"_claim_names,omitzero"` // claims that are too large for the token (OpenID Connect Core 5.6.2)
	Many      loose     `json:"hasgroups,omitempty"`
}

type elsewhere struct {
	Groups string `json:"groups,omitempty"`
}

// loose is a truth that some providers write as a text.
type loose bool

// UnmarshalJSON implements json.Unmarshaler.
func (b *loose) UnmarshalJSON(data []byte) error {
	*b = loose(string(data) == "true" || string(data) == `"true"`)
	return nil
}

// names are texts, or one of them alone.
type names []string

// UnmarshalJSON implements json.Unmarshaler.
func (n *names) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte(`"`)) {
		*n = make(names, 1)
		return json.Unmarshal(data, &(*n)[0])
	}
	return json.Unmarshal(data, (*[]string)(n))
}

// errOverage says that the provider left the groups out, and so nobody knows whether they allow it.
var errOverage = errors.New("the user is in more groups than the token holds")

// role returns the highest role of the rules that fit; empty: none does. See [Rule] for what users are known by.
func (p *openID) role(c *claims) (access.Role, error) {
	known := []string{c.Subject}
	switch {
	case p.entra:
		known = append(known, c.Object, c.Username)
	case bool(c.Verified):
		known = append(known, c.Email)
	}
	var role access.Role
	byGroup := false
	for _, rule := range p.Allowed {
		byGroup = byGroup || rule.Group != ""
		fits := rule.Group != "" && slices.Contains(c.Groups, rule.Group) ||
			rule.User != "" && slices.ContainsFunc(known, func(name string) bool { return same(name, rule.User) })
		if fits && len(rule.Role.Scopes()) > len(role.Scopes()) {
			role = rule.Role
		}
	}
	if role == "" && byGroup && (c.Elsewhere.Groups != "" || bool(c.Many)) {
		return "", errOverage
	}
	return role, nil
}

// same compares what a user is known by: addresses and user names without regard to case of ASCII letters, all else exactly.
func same(name, rule string) bool {
	if strings.Contains(rule, "@") && !strings.ContainsFunc(name+rule, func(r rune) bool { return r >= 0x80 }) {
		return strings.EqualFold(name, rule)
	}
	return name == rule
}

// shown is the name of a user as audit log and history show it: one that is theirs for sure, where there is one.
func (p *openID) shown(c *claims) string {
	switch {
	case p.entra && c.Username != "":
		return c.Username
	case bool(c.Verified) && c.Email != "" && !p.entra:
		return c.Email
	case p.entra && c.Object != "":
		return c.Object
	}
	return c.Subject
}

// kept is what of the claims a session keeps: all that rules could depend on, and of the groups those that rules name, since
// there may be hundreds.
func (p *openID) kept(c *claims) claims {
	k := *c
	k.Groups = nil
	for _, rule := range p.Allowed {
		if rule.Group != "" && slices.Contains(c.Groups, rule.Group) && !slices.Contains(k.Groups, rule.Group) {
			k.Groups = append(k.Groups, rule.Group)
		}
	}
	return k
}
