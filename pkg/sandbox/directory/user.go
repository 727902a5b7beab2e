package directory

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/text"
	"relayd/pkg/sandbox/wire"
)

// User is a person of a tenant.
type User struct {
	Mail     string `json:"mail"`                // the user principal name, and the mailbox
	Name     string `json:"name,omitempty"`      // as pages show it; made of Mail
	Password string `json:"password,omitempty"`  // none: any will do
	ObjectID string `json:"object_id,omitempty"` // derived from Mail
	Admin    bool   `json:"admin,omitempty"`     // may consent for the tenant

	// State is why this user may not sign in: disabled, unknown, blocked (by Conditional Access), mfa (needs more than a
	// password), foreign (belongs to another tenant), or the number of another AADSTS error; empty: may.
	State string `json:"state,omitempty"`
}

// States lists the words a User's State may be besides an error's number.
func States() []string { return []string{"disabled", "unknown", "blocked", "mfa", "foreign"} }

func stateNumber(state string) (int, error) {
	switch state {
	case "disabled":
		return 50057, nil
	case "unknown":
		return 50034, nil
	case "blocked":
		return 53003, nil
	case "mfa":
		return 50076, nil
	case "foreign":
		return 50020, nil
	}
	n, err := strconv.Atoi(state)
	if err != nil || !slices.ContainsFunc(text.Refusals(), func(a text.AADSTS) bool { return a.Number == n }) {
		return 0, fmt.Errorf("state %q is not one of %v or a known AADSTS number", state, States())
	}
	return n, nil
}

// Refused says why the user may not have a token; nil if nothing is in the way.
func (u *User) Refused() *refusal.Refusal {
	if u.State == "" {
		return nil
	}
	n, err := stateNumber(u.State)
	if err != nil {
		n = 50034 // never: states are checked on their way in
	}
	value := u.Mail
	if u.State == "mfa" {
		value = "00000002-0000-0ff1-ce00-000000000000" // Office 365 Exchange Online
	}
	return &refusal.Refusal{Number: n, Value: value}
}

// complete fills in what may be left out of a user.
func (u *User) complete(tenantID string) {
	u.Mail = strings.ToLower(u.Mail)
	local, _, _ := strings.Cut(u.Mail, "@")
	if u.ObjectID == "" {
		digest := sha256.Sum256([]byte(strings.ToLower(tenantID) + "/" + u.Mail))
		u.ObjectID = refusal.GUIDOf(digest[:])
	}
	if u.Name == "" {
		words := strings.FieldsFunc(local, func(r rune) bool { return r == '.' || r == '_' || r == '-' })
		for i, w := range words {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
		u.Name = strings.Join(words, " ")
	}
}

// User finds who signs in by that address. In a tenant that does not list its users anyone in one of its domains is one,
// and admin@ is an administrator. Nobody by that name is a refusal of Entra's.
func (t *Tenant) User(mail string) (User, *refusal.Refusal) {
	for _, u := range t.Users {
		if strings.EqualFold(u.Mail, mail) {
			return u, nil
		}
	}
	fits := func(pattern string) bool {
		return pattern == "*" || strings.EqualFold(wire.DomainOf(pattern), wire.DomainOf(mail))
	}
	if t.UsersOnly || !wire.ValidAddress(mail) || len(t.Mailboxes) > 0 && !slices.ContainsFunc(t.Mailboxes, fits) {
		return User{}, &refusal.Refusal{Number: 50034, Value: mail}
	}
	u := User{Mail: mail}
	u.complete(t.ID)
	u.Admin = strings.HasPrefix(u.Mail, "admin@")
	return u, nil
}

// User is Tenant.User for the whole directory: someone of another tenant here is refused as that.
func (d *Directory) User(t *Tenant, mail string) (User, *refusal.Refusal) {
	u, refused := t.User(mail)
	if refused == nil {
		return u, nil
	}
	for _, other := range d.List() {
		if _, not := other.User(mail); not == nil {
			return u, &refusal.Refusal{Number: 50020, Value: mail}
		}
	}
	return u, refused
}

// setUser adds or replaces a user.
func (t *Tenant) setUser(u User) error {
	if !wire.ValidAddress(u.Mail) {
		return fmt.Errorf("user %q: mail is not an address", u.Mail)
	}
	if u.State != "" {
		if _, err := stateNumber(u.State); err != nil {
			return fmt.Errorf("user %s: %w", u.Mail, err)
		}
	}
	u.complete(t.ID)
	t.Users = slices.DeleteFunc(t.Users, func(o User) bool { return strings.EqualFold(o.Mail, u.Mail) })
	t.Users = append(t.Users, u)
	return nil
}

// AnyLoopback among an app's redirect URIs stands for every URI whose host is this machine's loopback.
const AnyLoopback = "*"

func checkRedirectURI(uri string) error {
	if uri == AnyLoopback {
		return nil
	}
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" || u.Fragment != "" || u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u)) {
		return fmt.Errorf("redirect URI %q is not https, or http on loopback, without a fragment", uri)
	}
	return nil
}

func isLoopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// Redirects reports whether a browser may be sent back to uri.
func (a *App) Redirects(uri string) bool {
	if slices.Contains(a.RedirectURIs, uri) {
		return uri != AnyLoopback
	}
	if !slices.Contains(a.RedirectURIs, AnyLoopback) || checkRedirectURI(uri) != nil {
		return false
	}
	u, err := url.Parse(uri)
	return err == nil && isLoopback(u)
}
