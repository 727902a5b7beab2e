package login

import (
	"crypto/x509"
	"net/http"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/login/session"
)

// Settings say who may log in. They may change while the relay runs.
type Settings struct {
	Tokens    []access.Token
	OIDC      *OIDC  // nil: none
	PublicURL string // scheme and host by which browsers reach the relay; empty: by its own address
}

// OIDC is the OpenID provider people log in by. Its redirect URI is [CallbackPath] below the public URL.
type OIDC struct {
	Issuer       string // URL, as tokens have it: of one tenant, where the provider has many
	ClientID     string
	ClientSecret func() (string, error) // nil: a public client
	Allowed      []Rule                 // whoever fits none may not log in
	RootCAs      *x509.CertPool         // for the provider's certificate; nil: the system's
	Client       *http.Client           // nil: one of its own with RootCAs
}

// Rule lets a user or a group log in. Of several that fit, the highest role counts.
//
// What a user is known by must be nothing they can choose. From Entra ID that is the object id (claim oid) or the user name
// (preferred_username, which the tenant's administrators give); its email claim can hold any address its tenant likes, so it is
// never looked at ("nOAuth"). From other providers it is the subject, or the e-mail address where the provider has verified it.
type Rule struct {
	User  string // exactly one of User and Group is set
	Group string // a value of the claim "groups"; from Entra ID the object id of the group
	Role  access.Role
}

// Records is the encrypted, shared store of records of one kind.
type Records = session.Records
