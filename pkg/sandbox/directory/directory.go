// Package directory is the sandbox's Entra ID as a store: tenants, apps, users, grants and consents, the tokens made from
// them, and the check Exchange makes of a token.
//
// What is built on it lives below: endpoint (tokens), signin (pages), control (the API of tests), ticket (codes, refresh
// tokens, device codes and browser sessions), refusal (errors) and jwt. All state is in memory and dies with the process.
package directory

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/fault"
	"relayd/pkg/sandbox/wire"
)

// The directory entry of a sandbox that is given none; its secret is random.
const (
	DefaultTenantID = "00000000-0000-0000-0000-000000000000"
	DefaultClientID = "11111111-1111-1111-1111-111111111111"
)

// Tenant is one Microsoft 365 organisation. Mailboxes and grants are patterns: an address, "*@domain", or "*".
type Tenant struct {
	ID        string   `json:"id"`
	Name      string   `json:"name,omitempty"`      // as pages show it; the id
	Mailboxes []string `json:"mailboxes,omitempty"` // those that exist; none listed: any address does
	SendAs    []Grant  `json:"send_as,omitempty"`
	Apps      []App    `json:"apps"`

	// Users lists people. As long as none of them may sign in (all have a State), everyone else in a domain of Mailboxes is
	// a user, too; otherwise nobody else is.
	Users      []User  `json:"users,omitempty"`
	UsersOnly  bool    `json:"users_only,omitempty"`  // nobody but Users is a user; set by what Users says
	FullAccess []Grant `json:"full_access,omitempty"` // mailboxes a user may open besides its own

	Consents             []Consent `json:"consents,omitempty"`
	AdminConsentRequired bool      `json:"admin_consent_required,omitempty"` // users may not consent by themselves
}

// Grant lets a mailbox send as another address (Send As), or a user open another mailbox (full access).
type Grant struct {
	Login string `json:"login"`
	As    string `json:"as"`
}

// App is an app registration and its service principal.
type App struct {
	ID            string    `json:"id"`             // client id
	Name          string    `json:"name,omitempty"` // as pages show it; "relayd"
	Secret        string    `json:"secret,omitempty"`
	SecretExpires time.Time `json:"secret_expires,omitzero"`
	ObjectID      string    `json:"object_id,omitempty"` // of the service principal; derived from ID
	Roles         []string  `json:"roles,omitempty"`     // application permissions; SMTP.SendAsApp
	NoRoles       bool      `json:"no_roles,omitempty"`  // consent is missing: tokens carry no roles until an administrator gives it
	Mailboxes     []string  `json:"mailboxes,omitempty"` // those it has been given access to; none listed: the whole tenant

	// RedirectURIs are compared letter by letter. "*" stands for every URI whose host is this machine's loopback. None
	// listed: nobody can be sent back.
	RedirectURIs    []string            `json:"redirect_uris,omitempty"`
	Public          bool                `json:"public,omitempty"`           // may ask for users' tokens without proving itself
	Certificates    []string            `json:"certificates,omitempty"`     // PEM; what client assertions may be signed with
	Federated       []FederatedIdentity `json:"federated,omitempty"`        // whose tokens are taken for client assertions
	ManagedIdentity string              `json:"managed_identity,omitempty"` // "system" or "user": the metadata service gives its tokens to anyone here
}

// FederatedIdentity is an issuer outside whose tokens stand for the app.
type FederatedIdentity struct {
	Issuer   string `json:"issuer"`
	Subject  string `json:"subject"`
	Audience string `json:"audience,omitempty"` // api://AzureADTokenExchange
	Key      string `json:"key"`                // its public keys: PEM, or a JSON Web Key Set
}

const (
	exchangeAudience = "https://outlook.office365.com"
	sendRole         = "SMTP.SendAsApp"
	sendPermission   = "SMTP.Send"
)

// Directory is Entra ID's store: tenants, and the key that signs tokens. Its methods may be called from any goroutine.
type Directory struct {
	opts Options
	key  *rsa.PrivateKey
	kid  string

	mu        sync.Mutex // guards what follows
	tenants   []Tenant
	issued    int64            // tokens so far; each carries its number
	revokedTo int64            // tokens up to this number are worthless
	userTo    map[string]int64 // the same for a user's, by object id
	epochs    map[string]int   // how often a user's grants were revoked, by object id
}

// Options configure [New].
type Options struct {
	Tenants   []Tenant
	Shortest  time.Duration // life of an access token; 60 minutes
	Longest   time.Duration // 90 minutes, or Shortest if that is more
	Faults    *fault.List   // looked up by the endpoints
	Authority func() string // base URL, known once the server listens
	Log       *zap.Logger
}

// New makes the signing key and reads the tenants; with none given it makes one with the default ids, a random secret and
// every redirect URI on loopback. A tenant or app without an id, or a lifetime range upside down, is an error.
func New(opts Options) (*Directory, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("make the token signing key: %w", err)
	}
	digest := sha256.Sum256(key.N.Bytes())
	if opts.Shortest == 0 {
		opts.Shortest = 60 * time.Minute
	}
	if opts.Longest == 0 {
		opts.Longest = max(opts.Shortest, 90*time.Minute)
	}
	if opts.Longest < opts.Shortest {
		return nil, fmt.Errorf("token lifetime: the longest, %v, is below the shortest, %v", opts.Longest, opts.Shortest)
	}
	d := &Directory{
		opts: opts, key: key, kid: base64.RawURLEncoding.EncodeToString(digest[:20]),
		userTo: make(map[string]int64), epochs: make(map[string]int),
	}
	tenants := opts.Tenants
	if len(tenants) == 0 {
		tenants = []Tenant{{
			ID:   DefaultTenantID,
			Apps: []App{{ID: DefaultClientID, Secret: NewSecret(), RedirectURIs: []string{AnyLoopback}}},
		}}
	}
	for _, t := range tenants {
		if err := d.Add(t); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Authority is the base URL; tenant and path are appended to it.
func (d *Directory) Authority() string { return d.opts.Authority() }

// Faults are the rules the endpoints look up.
func (d *Directory) Faults() *fault.List { return d.opts.Faults }

// Log is where the endpoints log.
func (d *Directory) Log() *zap.Logger { return d.opts.Log }

// Add adds a tenant, or replaces the one with the same id.
func (d *Directory) Add(t Tenant) error {
	if t.ID == "" || strings.ContainsAny(t.ID, "/?# ") {
		return fmt.Errorf("tenant id %q is empty or does not fit into a URL", t.ID)
	}
	t = t.clone()
	for i := range t.Apps {
		if err := t.Apps[i].complete(t.ID); err != nil {
			return fmt.Errorf("tenant %s: %w", t.ID, err)
		}
	}
	users := t.Users
	t.Users = nil
	for _, u := range users {
		if err := t.setUser(u); err != nil {
			return fmt.Errorf("tenant %s: %w", t.ID, err)
		}
		t.UsersOnly = t.UsersOnly || u.State == ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tenants = slices.DeleteFunc(d.tenants, func(o Tenant) bool { return strings.EqualFold(o.ID, t.ID) })
	d.tenants = append(d.tenants, t)
	return nil
}

// complete fills in what may be left out of an app.
func (a *App) complete(tenantID string) error {
	if a.ID == "" {
		return fmt.Errorf("an app needs an id")
	}
	if a.Secret == "" && !a.Public && len(a.Certificates) == 0 && len(a.Federated) == 0 && a.ManagedIdentity == "" {
		return fmt.Errorf("app %s needs a secret, a certificate, a federated identity, managed_identity or public", a.ID)
	}
	if a.ManagedIdentity != "" && a.ManagedIdentity != "system" && a.ManagedIdentity != "user" {
		return fmt.Errorf("app %s: managed_identity %q is not system or user", a.ID, a.ManagedIdentity)
	}
	for _, uri := range a.RedirectURIs {
		if err := checkRedirectURI(uri); err != nil {
			return fmt.Errorf("app %s: %w", a.ID, err)
		}
	}
	if a.ObjectID == "" {
		digest := sha256.Sum256([]byte(tenantID + a.ID))
		a.ObjectID = refusal.GUIDOf(digest[:])
	}
	if a.Name == "" {
		a.Name = "relayd"
	}
	if len(a.Roles) == 0 && !a.NoRoles {
		a.Roles = []string{sendRole}
	}
	return nil
}

// clone copies what a change would otherwise write through to those who were handed the tenant before.
func (t Tenant) clone() Tenant {
	t.Mailboxes, t.SendAs, t.FullAccess = slices.Clone(t.Mailboxes), slices.Clone(t.SendAs), slices.Clone(t.FullAccess)
	t.Users, t.Consents = slices.Clone(t.Users), slices.Clone(t.Consents)
	t.Apps = slices.Clone(t.Apps)
	for i := range t.Apps {
		t.Apps[i].RedirectURIs = slices.Clone(t.Apps[i].RedirectURIs)
	}
	return t
}

// List returns the tenants, secrets included.
func (d *Directory) List() []Tenant {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.tenants)
}

// Tenant finds a tenant by its id.
func (d *Directory) Tenant(id string) (Tenant, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tenants {
		if strings.EqualFold(t.ID, id) {
			return t, true
		}
	}
	return Tenant{}, false
}

// App finds an app by its client id.
func (t *Tenant) App(id string) (App, bool) {
	for _, a := range t.Apps {
		if strings.EqualFold(a.ID, id) {
			return a, true
		}
	}
	return App{}, false
}

// MaySendAs reports whether login holds Send As on address.
func (t *Tenant) MaySendAs(login, address string) bool { return granted(t.SendAs, login, address) }

// MaySendAs asks the tenant as it is now, so that a grant counts from the next message on.
func (d *Directory) MaySendAs(tenantID, login, address string) bool {
	t, _ := d.Tenant(tenantID)
	return t.MaySendAs(login, address)
}

func granted(grants []Grant, login, address string) bool {
	return slices.ContainsFunc(grants, func(g Grant) bool {
		return wire.Matches(g.Login, login) && wire.Matches(g.As, address)
	})
}

// Revoke makes every access token issued so far worthless.
func (d *Directory) Revoke() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.revokedTo = d.issued
}

// NewSecret returns a random client secret of 40 characters.
func NewSecret() string {
	secret := make([]byte, 20)
	rand.Read(secret) // never fails (crypto/rand)
	return hex.EncodeToString(secret)
}
