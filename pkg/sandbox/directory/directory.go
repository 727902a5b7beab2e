// Package directory is the sandbox's Entra ID: tenants, apps and grants, the token endpoint, and the check Exchange makes
// of a token.
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
	Mailboxes []string `json:"mailboxes,omitempty"` // those that exist; none listed: any address does
	SendAs    []Grant  `json:"send_as,omitempty"`
	Apps      []App    `json:"apps"`
}

// Grant lets a mailbox send as another address.
type Grant struct {
	Login string `json:"login"`
	As    string `json:"as"`
}

// App is an app registration and its service principal.
type App struct {
	ID            string    `json:"id"` // client id
	Secret        string    `json:"secret"`
	SecretExpires time.Time `json:"secret_expires,omitzero"`
	ObjectID      string    `json:"object_id,omitempty"` // of the service principal; derived from ID
	Roles         []string  `json:"roles,omitempty"`     // application permissions; SMTP.SendAsApp
	NoRoles       bool      `json:"no_roles,omitempty"`  // consent is missing: tokens carry no roles
	Mailboxes     []string  `json:"mailboxes,omitempty"` // those it has been given access to; none listed: the whole tenant
}

const (
	exchangeAudience = "https://outlook.office365.com"
	exchangeScope    = exchangeAudience + "/.default"
	sendRole         = "SMTP.SendAsApp"
)

// Directory is Entra ID's store: tenants, and the key that signs tokens.
type Directory struct {
	opts Options
	key  *rsa.PrivateKey
	kid  string

	mu        sync.Mutex // guards what follows
	tenants   []Tenant
	issued    int64 // tokens so far; each carries its number
	revokedTo int64 // tokens up to this number are worthless
}

// Options configure [New].
type Options struct {
	Tenants   []Tenant
	Shortest  time.Duration // life of an access token; 60 minutes
	Longest   time.Duration // 90 minutes, or Shortest if that is more
	Faults    *fault.List   // looked up at fault.StageToken
	Authority func() string // base URL, known once the server listens
	Log       *zap.Logger
}

// New makes the signing key and reads the tenants; with none given it makes one with the default ids and a random
// secret. A tenant or app without an id, or a lifetime range upside down, is an error.
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
	d := &Directory{opts: opts, key: key, kid: base64.RawURLEncoding.EncodeToString(digest[:20])}
	tenants := opts.Tenants
	if len(tenants) == 0 {
		tenants = []Tenant{{
			ID: DefaultTenantID, Apps: []App{{ID: DefaultClientID, Secret: NewSecret()}},
		}}
	}
	for _, t := range tenants {
		if err := d.Add(t); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Add adds a tenant, or replaces the one with the same id.
func (d *Directory) Add(t Tenant) error {
	if t.ID == "" || strings.ContainsAny(t.ID, "/?# ") {
		return fmt.Errorf("tenant id %q is empty or does not fit into a URL", t.ID)
	}
	t.Apps = slices.Clone(t.Apps)
	for i := range t.Apps {
		a := &t.Apps[i]
		if a.ID == "" || a.Secret == "" {
			return fmt.Errorf("tenant %s: an app needs an id and a secret", t.ID)
		}
		if a.ObjectID == "" {
			digest := sha256.Sum256([]byte(t.ID + a.ID))
			a.ObjectID = guid(digest[:])
		}
		if len(a.Roles) == 0 && !a.NoRoles {
			a.Roles = []string{sendRole}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tenants = slices.DeleteFunc(d.tenants, func(o Tenant) bool { return strings.EqualFold(o.ID, t.ID) })
	d.tenants = append(d.tenants, t)
	return nil
}

// List returns the tenants, secrets included.
func (d *Directory) List() []Tenant {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.tenants)
}

func (d *Directory) tenant(id string) (Tenant, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tenants {
		if strings.EqualFold(t.ID, id) {
			return t, true
		}
	}
	return Tenant{}, false
}

func (t *Tenant) app(id string) (App, bool) {
	for _, a := range t.Apps {
		if strings.EqualFold(a.ID, id) {
			return a, true
		}
	}
	return App{}, false
}

// Revoke makes every token issued so far worthless.
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

func guid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func randomGUID() string {
	var b [16]byte
	rand.Read(b[:])
	return guid(b[:])
}

// MaySendAs reports whether login holds Send As on address.
func (t *Tenant) MaySendAs(login, address string) bool {
	return slices.ContainsFunc(t.SendAs, func(g Grant) bool {
		return wire.Matches(g.Login, login) && wire.Matches(g.As, address)
	})
}
