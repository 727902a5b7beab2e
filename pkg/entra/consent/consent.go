// Package consent gets the consent of mailboxes' owners: the sign-ins at Entra ID from which a grant comes, by authorization
// code with PKCE (RFC 6749, RFC 7636), by device code (RFC 8628), by a one-time link handed to the owner, and an
// administrator's consent for a whole organisation.
//
// Whoever signs in must be the mailbox that was expected, in the tenant that was expected, and must have granted what
// sending needs; all else is refused as a *status.Error whose Text, Cause and Advice are sentences to show, and hold
// neither code, state, token nor secret. Only a sign-in that passed every check reaches Options.Adopt.
//
// What is known of a sign-in stands in three kinds of records, shared by all nodes, so any node may finish what another
// began, and a restart costs nothing:
//
//   - pending, one for each browser sent to Entra ID. It is found by the state parameter (256 random bits), belongs to one
//     browser session, lives ten minutes, and is taken by compare-and-swap before the code is redeemed: of two callbacks
//     with one state, one goes on. A crash after that costs the sign-in; it is begun again.
//   - device, one for each device code. Each poll is claimed by compare-and-swap for as long as a request can take, so
//     that nodes take turns; what became of it can be asked for an hour longer than the code lives. A crash between Entra
//     ID's last answer and Adopt costs the sign-in, as above.
//   - invitation, one for each one-time link, named by the SHA-256 of its code. The link is used up when a sign-in by it
//     succeeds, not when it is opened: whoever cancels or picks the wrong account opens it again. Each opening belongs to its
//     browser session, and of two sign-ins that end well at once only one is taken. A crash between using it up and Adopt
//     costs the link, never a second use; where Adopt fails it is given back.
package consent

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/entra/grant"
	"relayd/pkg/status"
)

// Registration is one app registration, ready to be asked for consent with.
type Registration struct {
	Name      string // of the configured tenant
	TenantID  string // directory (tenant) ID: a GUID or a verified domain
	ClientID  string // application (client) ID
	Authority string // base URL in front of the tenant ID, without a slash at its end
	Scope     string // what sending needs, like https://outlook.office.com/SMTP.Send; what OpenID Connect needs is added

	// Client makes all requests; it is used without following redirects. nil: one with the system's roots and 30 s.
	Client *http.Client
	// Authenticate adds the client's credential to the form of a request to tokenURL, which is also the audience of an
	// assertion. It is called for each request. A public client adds nothing; nil: the same.
	Authenticate func(ctx context.Context, tokenURL string, form url.Values) error
	// Explain reads what the token endpoint refused with, an *oauth2.RetrieveError, or why there was no answer, by the
	// catalogue, and strikes the secrets out of it.
	Explain func(err error, secrets ...string) *status.Error
}

// Options configures [New]. Everything but Logger is required.
type Options struct {
	// Registration returns a configured tenant's; a *status.Error where there is none.
	Registration                  func(name string) (Registration, error)
	Pending, Devices, Invitations grant.Records
	// Adopt stores the result of a sign-in and puts it in force. It is called once for each.
	Adopt       func(ctx context.Context, g grant.Grant) error
	RedirectURI func() string // as entered in Entra: public_url and /oauth/callback
	Logger      *zap.Logger   // nil: none
}

// Request says who is to sign in.
type Request struct {
	Tenant  string // name of the configured tenant
	Login   string // the mailbox that must sign in
	Sender  string // the entry of senders it is for; comes back in the result
	Session string // of the browser that is sent to Entra ID; no use for a device code or an invitation
}

// Callback is what a browser brings back to the redirect URI.
type Callback struct {
	Session          string // the browser's, as when it was sent to Entra ID
	State            string
	Code             string
	Issuer           string // RFC 9207; empty: not given
	Error            string
	ErrorDescription string
	AdminConsent     bool   // the answer of the admin-consent page
	Tenant           string // tenant ID in that answer
}

// Result is a sign-in that was accepted.
type Result struct {
	Tenant  string // name of the configured tenant
	Sender  string
	Login   string
	User    string // who signed in
	Admin   bool   // an administrator's consent; then Sender, Login and User are empty
	Invited bool   // by a one-time link
}

// The states of a [Device].
const (
	DevicePending = "pending"
	DeviceDone    = "done"
	DeviceFailed  = "failed"
)

// Device is a sign-in by device code.
type Device struct {
	ID              string
	Tenant          string
	Sender          string
	Login           string
	UserCode        string // what the mailbox's owner enters
	VerificationURI string // where
	Expires         time.Time
	State           string        // DevicePending, DeviceDone or DeviceFailed
	User            string        // who signed in, once done
	Problem         *status.Error // why it failed
	Ended           time.Time     // when it was done or failed
}

// Invitation is what a one-time link opens.
type Invitation struct {
	Code    string // of the link
	Tenant  string
	Sender  string
	Login   string
	Expires time.Time
}
