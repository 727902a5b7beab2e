// Package console says what the page and the API show and do beyond messages: tenants, senders, consent, what is in force.
//
// It holds the vocabulary and the interface; both ends of it speak plain words to people, so every reason is a sentence and
// every cure says what to do. No type here ever carries a secret.
package console

import (
	"context"
	"errors"
	"time"

	"relayd/pkg/envelope"
)

// What [Console]'s methods may answer besides [Mistakes] and a *status.Error, whose Text, Cause and Advice are safe to show.
var (
	ErrNotFound = errors.New("there is no such tenant, sender or request")
	ErrFile     = errors.New("it stands in the configuration file, so it can only be changed there")
	ErrInUse    = errors.New("senders still use this tenant; remove them first")
	ErrExpired  = errors.New("this link has been used already, or has expired; ask for a new one")
)

// Mistake is what is wrong with one field of a form.
type Mistake struct {
	Field string `json:"field"` // name of the input, as its json tag says
	Text  string `json:"text"`  // a sentence: what is wrong, and what to write instead
}

// Mistakes is an error that says what is wrong with what was entered, beside each field.
type Mistakes []Mistake

// Error implements error.
func (m Mistakes) Error() string {
	text := ""
	for i, one := range m {
		if i > 0 {
			text += "; "
		}
		text += one.Field + ": " + one.Text
	}
	return text
}

// The origins of a tenant or sender.
const (
	OriginFile = "file" // the configuration file; it wins
	OriginPage = "page" // added from page, API or command line; kept in the vault
)

// Tenant is an app registration as it is shown.
type Tenant struct {
	Name              string    `json:"name"`
	Cloud             string    `json:"cloud"`
	TenantID          string    `json:"tenant_id"`
	ClientID          string    `json:"client_id"`
	Grant             string    `json:"grant" enum:"client_credentials,delegated"`
	Credential        string    `json:"credential" enum:"client_secret,certificate,federated_token_file,managed_identity,none"`
	CredentialExpires time.Time `json:"credential_expires,omitzero" doc:"as entered, or of the certificate"`
	Authority         string    `json:"authority"`
	Scope             string    `json:"scope"`
	SMTPServer        string    `json:"smtp_server"`
	CertFile          string    `json:"cert_file,omitempty"`
	KeyFile           string    `json:"key_file,omitempty"`
	CAFile            string    `json:"ca_file,omitempty"`
	Origin            string    `json:"origin" enum:"file,page"`
	Shadowed          bool      `json:"shadowed,omitempty" doc:"added from the page, but the file has one of that name, which is in force"`
	Senders           int       `json:"senders" doc:"entries of senders that use it"`
	Problem           *Problem  `json:"problem,omitempty" doc:"why its mail cannot be sent now"`
	TokenExpires      time.Time `json:"token_expires,omitzero" doc:"of the current app-only access token"`
	RedirectURI       string    `json:"redirect_uri" doc:"the Authorized redirect URI to enter in Entra"`
	AdminConsentURL   string    `json:"admin_consent_url" doc:"where an administrator consents for the whole organisation"`
}

// Problem is why something does not work, and the cure.
type Problem struct {
	Text   string    `json:"text"`             // what was answered
	Cause  string    `json:"cause,omitempty"`  // what it means
	Advice string    `json:"advice,omitempty"` // what to change, and where
	Since  time.Time `json:"since,omitzero"`
}

// TenantInput is a tenant as entered. An empty secret keeps the one that is there.
type TenantInput struct {
	Name              string `json:"name"`
	Cloud             string `json:"cloud,omitempty"`
	TenantID          string `json:"tenant_id"`
	ClientID          string `json:"client_id"`
	Grant             string `json:"grant,omitempty" doc:"delegated if empty: a person signs in for each mailbox"`
	ClientSecret      string `json:"client_secret,omitempty" doc:"its value, which is kept encrypted"`
	CertFile          string `json:"cert_file,omitempty" doc:"PEM file on the relay's machine, instead of a secret"`
	KeyFile           string `json:"key_file,omitempty"`
	CredentialExpires string `json:"credential_expires,omitempty" doc:"date: 2027-12-31"`
	Authority         string `json:"authority,omitempty"`
	Scope             string `json:"scope,omitempty"`
	SMTPServer        string `json:"smtp_server,omitempty"`
	CAFile            string `json:"ca_file,omitempty"`
}

// The states of a sender.
const (
	SenderReady    = "ready"
	SenderConsent  = "consent"  // nobody has signed in for it yet, or must again
	SenderPaused   = "paused"   // by an operator
	SenderParked   = "parked"   // it or its tenant cannot send now; a person must act
	SenderHeld     = "held"     // a quota of Exchange Online; it heals by itself
	SenderShadowed = "shadowed" // the file has an entry with this address, which is in force
)

// Sender is an entry of senders as it is shown.
type Sender struct {
	Match             string           `json:"match" doc:"an address, or *@domain"`
	Tenant            string           `json:"tenant"`
	Login             envelope.Address `json:"login,omitempty" doc:"mailbox it authenticates as; empty: the address itself"`
	Grant             string           `json:"grant"`
	Origin            string           `json:"origin" enum:"file,page"`
	State             string           `json:"state" enum:"ready,consent,paused,parked,held,shadowed"`
	Problem           *Problem         `json:"problem,omitempty"`
	Consent           *Consent         `json:"consent,omitempty" doc:"of a delegated sender's login"`
	TokenExpires      time.Time        `json:"token_expires,omitzero"`
	RecipientsPerDay  int              `json:"recipients_per_day"`
	Remaining         int              `json:"recipients_remaining" doc:"today, of recipients_per_day; of *@domain: the least of its mailboxes"`
	Connections       int              `json:"connections"`
	MessagesPerMinute int              `json:"messages_per_minute"`
	Fallback          envelope.Address `json:"fallback,omitempty"`
	Queued            int              `json:"queued" doc:"messages waiting"`
	Oldest            time.Time        `json:"oldest,omitzero" doc:"when the oldest of them was accepted"`
	SendAs            []string         `json:"send_as,omitempty" doc:"other entries that authenticate as this mailbox: it may Send As them"`
}

// Consent is what a mailbox's owner has granted.
type Consent struct {
	User     string    `json:"user" doc:"who signed in"`
	Granted  time.Time `json:"granted"`
	Used     time.Time `json:"used" doc:"when the refresh token was last renewed"`
	IdleEnds time.Time `json:"idle_ends" doc:"when the refresh token expires if it is not used until then"`
	Problem  *Problem  `json:"problem,omitempty" doc:"why it no longer serves: sign in again"`
}

// SenderInput is a sender as entered. Zero numbers are the defaults.
type SenderInput struct {
	Match             string `json:"match"`
	Tenant            string `json:"tenant"`
	Login             string `json:"login,omitempty"`
	Connections       int    `json:"connections,omitempty"`
	MessagesPerMinute int    `json:"messages_per_minute,omitempty"`
	RecipientsPerDay  int    `json:"recipients_per_day,omitempty"`
	Fallback          string `json:"fallback,omitempty"`
}

// SenderQuery selects senders; zero fields select all.
type SenderQuery struct {
	Text   string // part of address, login or tenant, without regard to case
	Tenant string
	State  string
	Offset int
	Limit  int // 0: 100; at most 1000
}

// SenderPage is a part of all senders that fit, ordered by what they match.
type SenderPage struct {
	Senders []Sender `json:"senders" nullable:"false"`
	Total   int      `json:"total" doc:"how many fit in all"`
}

// Device is a sign-in by device code under way (RFC 8628).
type Device struct {
	ID              string    `json:"id"`
	UserCode        string    `json:"user_code" doc:"what the mailbox's owner enters"`
	VerificationURI string    `json:"verification_uri" doc:"where"`
	Expires         time.Time `json:"expires"`
	State           string    `json:"state" enum:"pending,done,failed"`
	Problem         *Problem  `json:"problem,omitempty"`
	User            string    `json:"user,omitempty" doc:"who signed in, once done"`
}

// Invitation is what a one-time consent link opens.
type Invitation struct {
	Code    string           `json:"-"` // of the link
	Sender  string           `json:"sender"`
	Login   envelope.Address `json:"login" doc:"the mailbox whose owner is asked"`
	URL     string           `json:"url"`
	Expires time.Time        `json:"expires"`
}

// Callback is what a browser brings back from Entra ID to the redirect URI.
type Callback struct {
	Session          string // the browser's, as when it was sent there
	State            string
	Code             string
	Issuer           string // RFC 9207; empty: not given
	Error            string
	ErrorDescription string
	AdminConsent     bool // the answer of the admin-consent page
	Tenant           string
}

// Consented is a sign-in that was accepted.
type Consented struct {
	Sender  string // the entry of senders it was for; empty: an administrator's consent for a tenant
	Tenant  string
	User    string
	Invited bool // by a one-time link, so whoever sees it may see nothing else
}

// Minute is how much happened in one step of a chart.
type Minute struct {
	At       time.Time `json:"at"` // its beginning
	Accepted int       `json:"accepted"`
	Sent     int       `json:"sent"`
	Deferred int       `json:"deferred"`
	Failed   int       `json:"failed"`
}

// Overview answers: is mail flowing?
type Overview struct {
	Since    time.Time            `json:"since" doc:"when the process started"`
	Version  string               `json:"version"`
	Hour     []Minute             `json:"hour" nullable:"false" doc:"60 minutes, the oldest first"`
	Day      []Minute             `json:"day" nullable:"false" doc:"24 hours, the oldest first"`
	Queue    map[string]int       `json:"queue" doc:"messages in the queue by state"`
	Oldest   map[string]time.Time `json:"oldest" doc:"when the oldest message of each state was accepted"`
	Bytes    int64                `json:"queue_bytes"`
	Parked   []Sender             `json:"parked" nullable:"false" doc:"senders that cannot send now, with the cure; the first 50"`
	Expiries []Expiry             `json:"expiries" nullable:"false" doc:"what expires, the nearest first"`
	Ready    string               `json:"ready,omitempty" doc:"why no mail is accepted now; absent: it is"`
	Reload   Reload               `json:"reload"`
}

// Expiry is something that ends at a known day.
type Expiry struct {
	Kind    string    `json:"kind" enum:"secret,certificate,consent"`
	Tenant  string    `json:"tenant"`
	Sender  string    `json:"sender,omitempty" doc:"the mailbox, of a consent"`
	Expires time.Time `json:"expires"`
	Advice  string    `json:"advice"`
}

// Reload is what became of the last change of the configuration file.
type Reload struct {
	At     time.Time `json:"at"`
	Errors []string  `json:"errors,omitempty" doc:"why it is not in force; absent: it is"`
}

// Setting is one value in force, without secrets.
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source" doc:"default, file:LINE, env NAME, page"`
}

// Configuration is what is in force.
type Configuration struct {
	File     string    `json:"file"`
	Settings []Setting `json:"settings" nullable:"false"`
	Warnings []string  `json:"warnings" nullable:"false"`
	Reload   Reload    `json:"reload"`
}

// Entry is one change in the audit log.
type Entry struct {
	ID     uint64    `json:"id"`
	At     time.Time `json:"at"`
	Who    string    `json:"who"`
	Peer   string    `json:"peer,omitempty" doc:"IP address"`
	What   string    `json:"what" doc:"the act, like sender.add"`
	On     string    `json:"on" doc:"what it was done to"`
	Before string    `json:"before,omitempty" doc:"without secrets"`
	After  string    `json:"after,omitempty" doc:"without secrets"`
	Error  string    `json:"error,omitempty" doc:"why it was not done"`
}

// Finding is one line of an examination.
type Finding struct {
	Step   string `json:"step"`
	Result string `json:"result" enum:"ok,warn,fail,skip"`
	Detail string `json:"detail"`
	Cause  string `json:"cause,omitempty"`
	Advice string `json:"advice,omitempty"`
}

// Event is a step of a message's life as it happens.
type Event struct {
	Step   envelope.Step    `json:"step"`
	Sender envelope.Address `json:"sender,omitempty"`
}

// Console is what page and API work on. Changes are durable and in force when a method returns nil, and stand in the audit
// log whether they were done or not. by of a change is the caller: see access.From.
type Console interface {
	Overview(ctx context.Context) (*Overview, error)
	Configuration(ctx context.Context) (*Configuration, error)
	// Audit returns at most limit entries before the one with that id, the latest first; before 0: from the end.
	Audit(ctx context.Context, before uint64, limit int) ([]Entry, error)

	Tenants(ctx context.Context) ([]Tenant, error)
	Tenant(ctx context.Context, name string) (*Tenant, error)
	// SaveTenant adds a tenant, or replaces the one called name: empty to add. Errors: [Mistakes], [ErrNotFound], [ErrFile].
	SaveTenant(ctx context.Context, name string, in TenantInput) error
	// RemoveTenant forgets a tenant and its secret. Errors: [ErrNotFound], [ErrFile], [ErrInUse].
	RemoveTenant(ctx context.Context, name string) error
	// CheckTenant asks Entra ID whether the registration is there and the credential right, one finding a step.
	CheckTenant(ctx context.Context, name string) ([]Finding, error)

	Senders(ctx context.Context, q SenderQuery) (*SenderPage, error)
	Sender(ctx context.Context, match string) (*Sender, error)
	// SaveSender adds a sender, or replaces the one that matches match: empty to add. Errors as of SaveTenant.
	SaveSender(ctx context.Context, match string, in SenderInput) error
	// RemoveSender forgets an entry, and the consent where no other uses it. Its waiting mail stays and is parked.
	RemoveSender(ctx context.Context, match string) error
	// Pause keeps a sender's mail back until Resume; mail is accepted all the same. Pausing twice is no error.
	Pause(ctx context.Context, match string) error
	Resume(ctx context.Context, match string) error
	// Examine walks the way of a message of that sender, an address, without sending one; found is told each step.
	Examine(ctx context.Context, sender string, found func(Finding)) error

	// StartConsent returns where to send the browser of that session to sign in for the sender.
	StartConsent(ctx context.Context, match, session string) (url string, err error)
	// StartAdminConsent does the same for an administrator's consent to a tenant's permissions.
	StartAdminConsent(ctx context.Context, tenant, session string) (url string, err error)
	// FinishConsent takes what the browser brings back. A *status.Error says in words why it was not accepted.
	FinishConsent(ctx context.Context, c Callback) (*Consented, error)
	// Invite makes a one-time link by which the mailbox's owner signs in without an account here.
	Invite(ctx context.Context, match string) (*Invitation, error)
	// Invitation returns what a link's code opens. Errors: [ErrExpired].
	Invitation(ctx context.Context, code string) (*Invitation, error)
	// AcceptInvitation uses the code up and returns where to send the browser of that session. Errors: [ErrExpired].
	AcceptInvitation(ctx context.Context, code, session string) (url string, err error)
	StartDevice(ctx context.Context, match string) (*Device, error)
	// Device returns where the sign-in with that id stands. Errors: [ErrNotFound].
	Device(ctx context.Context, id string) (*Device, error)
	// Revoke forgets a sender's consent, so that nothing is sent by it until somebody signs in again.
	Revoke(ctx context.Context, match string) error

	// Follow returns the steps of messages as they happen, from now on until ctx ends. A reader that is too slow loses some.
	Follow(ctx context.Context) <-chan Event
}
