package directory

import (
	"slices"
	"strings"

	"relayd/pkg/sandbox/directory/refusal"
)

// Scopes is what a user's token is asked for, taken apart.
type Scopes struct {
	Resource    string   // whose permissions those are; the audience of the access token
	Permissions []string // as the resource spells them
	OpenID      bool
	Profile     bool
	Email       bool
	Offline     bool
}

const graphResource = "https://graph.microsoft.com"

// permissions lists what a user can let an app do at a resource; nil for one that does not exist here.
func permissions(resource string) []string {
	switch resource {
	case exchangeAudience, "https://outlook.office.com":
		return []string{sendPermission, "IMAP.AccessAsUser.All", "POP.AccessAsUser.All", "Mail.Send"}
	case graphResource:
		return []string{sendPermission, "IMAP.AccessAsUser.All", "POP.AccessAsUser.All", "Mail.Send", "User.Read"}
	}
	return nil
}

// ParseScopes reads the scope parameter of a request for a user's token. A permission without a resource before it is one
// of Microsoft Graph.
func ParseScopes(scope string) (Scopes, *refusal.Refusal) {
	var s Scopes
	for _, word := range strings.Fields(scope) {
		switch strings.ToLower(word) {
		case "openid":
			s.OpenID = true
			continue
		case "profile":
			s.Profile = true
			continue
		case "email":
			s.Email = true
			continue
		case "offline_access":
			s.Offline = true
			continue
		}
		resource, permission := graphResource, word
		if i := strings.LastIndexByte(word, '/'); i >= 0 {
			resource, permission = strings.TrimSuffix(strings.ToLower(word[:i]), "/"), word[i+1:]
		}
		known := permissions(resource)
		switch {
		case known == nil:
			return s, &refusal.Refusal{Number: 500011, Value: resource}
		case s.Resource != "" && s.Resource != resource:
			return s, &refusal.Refusal{Number: 28000, Value: scope}
		}
		s.Resource = resource
		if permission == ".default" {
			permission = sendPermission
		}
		i := slices.IndexFunc(known, func(p string) bool { return strings.EqualFold(p, permission) })
		if i < 0 {
			return s, &refusal.Refusal{Number: 650053, Value: permission}
		}
		if !slices.Contains(s.Permissions, known[i]) {
			s.Permissions = append(s.Permissions, known[i])
		}
	}
	if s.Resource == "" && !s.OpenID {
		return s, &refusal.Refusal{Number: 70011, Value: scope}
	}
	if s.Resource == "" {
		s.Resource, s.Permissions = graphResource, []string{"User.Read"}
	}
	return s, nil
}

// Names are the permissions in full, as a token answer and a consent spell them.
func (s Scopes) Names() []string {
	names := make([]string, len(s.Permissions))
	for i, p := range s.Permissions {
		names[i] = s.Resource + "/" + p
	}
	return names
}

// Consent lets an app have tokens of a user, or of every user, for some permissions.
type Consent struct {
	App    string   `json:"app"`
	User   string   `json:"user,omitempty"` // mail; empty: an administrator's, for everyone
	Scopes []string `json:"scopes"`         // in full, such as https://outlook.office.com/SMTP.Send
}

// Consented reports whether the app may have what it asks for.
func (t *Tenant) Consented(app, user string, s Scopes) bool {
	return !slices.ContainsFunc(s.Names(), func(name string) bool {
		return !slices.ContainsFunc(t.Consents, func(c Consent) bool {
			return strings.EqualFold(c.App, app) && (c.User == "" || strings.EqualFold(c.User, user)) && c.covers(name)
		})
	})
}

// covers compares without telling Exchange's two names apart.
func (c Consent) covers(name string) bool {
	canonical := func(s string) string {
		return strings.Replace(strings.ToLower(s), "//outlook.office365.com/", "//outlook.office.com/", 1)
	}
	return slices.ContainsFunc(c.Scopes, func(s string) bool { return canonical(s) == canonical(name) })
}
