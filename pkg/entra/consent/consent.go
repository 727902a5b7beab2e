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
//     ID's last answer and Adopt costs the sign-in, as above; one behind Adopt costs only the outcome: the code is then told
//     as expired, though the grant is in force.
//   - invitation, one for each one-time link, named by the SHA-256 of its code. The link is used up when a sign-in by it
//     succeeds, not when it is opened: whoever cancels or picks the wrong account opens it again. Each opening belongs to its
//     browser session, and of two sign-ins that end well at once only one is taken. A crash between using it up and Adopt
//     costs the link, never a second use; where Adopt fails it is given back.
package consent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/entra/consent/refusal"
	"relayd/pkg/entra/grant"
	"relayd/pkg/entra/identity"
	"relayd/pkg/status"
)

// What [Consents]'s methods answer besides a *status.Error.
var (
	ErrInvitation = errors.New("the link has been used, has expired, or never was one")
	ErrDevice     = errors.New("there is no such sign-in by device code")
)

// What bounds the records, so that nobody can fill the store by opening a page.
const (
	pendingLife    = 10 * time.Minute
	maxPending     = 1000 // in all
	maxPerSession  = 10   // of one browser session, or by one link; one more takes the place of the oldest
	maxDevices     = 200
	maxInvitations = 10000

	invitationLife = 72 * time.Hour // where Invite is given none
	sweepEvery     = time.Minute
	maxAnswer      = 1 << 20 // octets of Entra ID's answer
	finishTimeout  = 45 * time.Second
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

// String names the mailbox, and not the session.
func (r Request) String() string { return fmt.Sprintf("sign-in of %s for %s", r.Login, r.Tenant) }

// GoString is String: %#v would show what %v does not.
func (r Request) GoString() string { return r.String() }

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

// String says what kind of answer it is, and nothing of what it holds.
func (cb Callback) String() string {
	return fmt.Sprintf("callback: state %t, code %t, error %t", cb.State != "", cb.Code != "", cb.Error != "")
}

// GoString is String: %#v would show what %v does not.
func (cb Callback) GoString() string { return cb.String() }

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

// String names the link without its code.
func (i Invitation) String() string {
	return fmt.Sprintf("one-time link of %s for %s", i.Login, i.Tenant)
}

// GoString is String: %#v would show what %v does not.
func (i Invitation) GoString() string { return i.String() }

// pending is a browser that was sent to Entra ID, as it is stored.
type pending struct {
	Admin      bool      `json:"admin,omitempty"`
	Tenant     string    `json:"tenant"`
	Login      string    `json:"login,omitempty"`
	Sender     string    `json:"sender,omitempty"`
	Session    string    `json:"session"` // hash
	Nonce      string    `json:"nonce,omitempty"`
	Verifier   string    `json:"verifier,omitempty"` // of PKCE
	Redirect   string    `json:"redirect"`           // as sent: redeeming must repeat it, whatever public_url is by then
	Invitation string    `json:"invitation,omitempty"`
	Begun      time.Time `json:"begun"`
	Expires    time.Time `json:"expires"`
	Taken      bool      `json:"taken,omitempty"` // by a callback
}

// Consents is all sign-ins under way. It is safe for concurrent use.
type Consents struct {
	options     Options
	log         *zap.Logger
	identity    *identity.Verifier
	pending     box[pending]
	devices     box[device]
	invitations box[invitation]
	wake        chan struct{} // buffered; told when due has changed

	mu  sync.Mutex // guards due
	due map[string]time.Time
}

// New checks the options. Nothing is asked or read before [Consents.Run] or a first call.
func New(o Options) (*Consents, error) {
	if o.Registration == nil || o.Pending == nil || o.Devices == nil || o.Invitations == nil || o.Adopt == nil || o.RedirectURI == nil {
		return nil, errors.New("consent: an option is missing")
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return &Consents{
		options: o, log: o.Logger, identity: identity.New(),
		pending: box[pending]{o.Pending}, devices: box[device]{o.Devices}, invitations: box[invitation]{o.Invitations},
		wake: make(chan struct{}, 1), due: map[string]time.Time{},
	}, nil
}

// Start returns where to send the browser of r.Session, so that r.Login signs in (RFC 6749, section 4.1.1; RFC 7636).
func (c *Consents) Start(ctx context.Context, r Request) (string, error) {
	return c.start(ctx, r, "")
}

func (c *Consents) start(ctx context.Context, r Request, invitation string) (string, error) {
	reg, err := c.registration(r.Tenant)
	if err != nil {
		return "", err
	}
	if !strings.Contains(r.Login, "@") {
		return "", refusal.NoLogin()
	}
	nonce, verifier := random(), random()
	p := pending{Tenant: r.Tenant, Login: strings.ToLower(r.Login), Sender: r.Sender, Nonce: nonce, Verifier: verifier, Invitation: invitation}
	state, err := c.begin(ctx, &p, r.Session)
	if err != nil {
		return "", err
	}
	challenge := sha256.Sum256([]byte(verifier))
	c.log.Info("sign-in begun", zap.String("tenant", p.Tenant), zap.String("login", p.Login), zap.Bool("invited", invitation != ""))
	return reg.endpoint("oauth2/v2.0/authorize") + "?" + url.Values{
		"client_id": {reg.ClientID}, "response_type": {"code"}, "response_mode": {"query"}, "redirect_uri": {p.Redirect},
		"scope": {reg.scopes()}, "state": {state}, "nonce": {nonce}, "login_hint": {p.Login},
		"prompt":         {"select_account"}, // else whoever is signed in to Microsoft already goes on unasked
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"},
	}.Encode(), nil
}

// StartAdmin returns where to send the browser of session, so that an administrator consents for the whole organisation to
// what the tenant's app registration needs (https://learn.microsoft.com/entra/identity-platform/v2-admin-consent).
func (c *Consents) StartAdmin(ctx context.Context, tenant, session string) (string, error) {
	reg, err := c.registration(tenant)
	if err != nil {
		return "", err
	}
	p := pending{Admin: true, Tenant: tenant}
	state, err := c.begin(ctx, &p, session)
	if err != nil {
		return "", err
	}
	c.log.Info("administrator's consent begun", zap.String("tenant", tenant))
	return reg.endpoint("v2.0/adminconsent") + "?" + url.Values{
		"client_id": {reg.ClientID}, "redirect_uri": {p.Redirect}, "scope": {reg.Scope}, "state": {state},
	}.Encode(), nil
}

// begin stores p for session and returns its state.
func (c *Consents) begin(ctx context.Context, p *pending, session string) (string, error) {
	if p.Redirect = c.options.RedirectURI(); p.Redirect == "" {
		return "", refusal.NoRedirect()
	}
	if session == "" {
		return "", refusal.NoSession()
	}
	bucket := bucketOf("session", session)
	if p.Invitation != "" {
		bucket = bucketOf("invitation", p.Invitation)
	}
	if err := c.makeRoom(ctx, bucket); err != nil {
		return "", err
	}
	p.Session, p.Begun = sum(session), time.Now()
	p.Expires = p.Begun.Add(pendingLife)
	state := bucket + "." + random()
	name, _ := nameOf(state)
	if revision, err := c.pending.put(ctx, name, p, 0); err != nil || revision == 0 {
		return "", refusal.Store(err)
	}
	return state, nil
}

// makeRoom keeps the pending records within their bounds before one more.
func (c *Consents) makeRoom(ctx context.Context, bucket string) error {
	names, err := c.options.Pending.Names(ctx)
	if err != nil {
		return refusal.Store(err)
	}
	if len(names) >= maxPending {
		if names, err = c.pending.sweep(ctx, names, func(p *pending) bool { return time.Now().Before(p.Expires) }); err != nil {
			return refusal.Store(err)
		}
		if len(names) >= maxPending {
			return refusal.Busy()
		}
	}
	type entry struct {
		name  string
		begun time.Time
	}
	var mine []entry
	for _, name := range names {
		if !strings.HasPrefix(name, bucket+".") {
			continue
		}
		p, _, err := c.pending.get(ctx, name)
		if err != nil {
			return refusal.Store(err)
		}
		if p == nil { // finished, or another has made room
			continue
		}
		mine = append(mine, entry{name, p.Begun})
	}
	slices.SortFunc(mine, func(a, b entry) int { return a.begun.Compare(b.begun) })
	for ; len(mine) >= maxPerSession; mine = mine[1:] {
		if err := c.options.Pending.Delete(ctx, mine[0].name); err != nil {
			return refusal.Store(err)
		}
	}
	return nil
}

// Run polls device codes and drops what has expired, until ctx ends and the answers under way are in. The error is nil.
func (c *Consents) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { c.pollAll(ctx) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(sweepEvery):
			c.sweep(ctx)
		}
	}
}

func (c *Consents) sweep(ctx context.Context) {
	now := time.Now()
	err := errors.Join(
		c.pending.sweepAll(ctx, func(p *pending) bool { return now.Before(p.Expires) }),
		c.devices.sweepAll(ctx, func(d *device) bool { return now.Before(d.Expires.Add(deviceMemory)) }),
		c.invitations.sweepAll(ctx, func(i *invitation) bool { return now.Before(i.Expires) }),
	)
	if err != nil && ctx.Err() == nil {
		c.log.Warn("expired sign-ins not dropped", zap.Error(err))
	}
}

func (c *Consents) registration(tenant string) (Registration, error) {
	reg, err := c.options.Registration(tenant)
	if err != nil {
		return reg, err
	}
	reg.Authority = strings.TrimRight(reg.Authority, "/")
	client := http.Client{}
	if reg.Client != nil {
		client = *reg.Client
	}
	if client.Timeout == 0 {
		client.Timeout = 30 * time.Second
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // it carries secrets
	reg.Client = &client
	return reg, nil
}

func (r *Registration) endpoint(path string) string {
	return fmt.Sprintf("%s/%s/%s", r.Authority, url.PathEscape(r.TenantID), path)
}

func (r *Registration) tenant() identity.Tenant {
	return identity.Tenant{Authority: r.Authority, ID: r.TenantID, Client: r.Client}
}

// scopes returns what is asked for: what sending needs, and what makes Entra ID give a refresh token and say who signed in.
func (r *Registration) scopes() string {
	all := strings.Fields(r.Scope)
	for _, s := range []string{"offline_access", "openid", "profile"} {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return strings.Join(all, " ")
}

// random returns 256 random bits as 43 characters that need no escaping in a URL; PKCE wants 43 to 128.
func random() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(h[:])
}

// bucketOf returns what the states of one browser session, or of one link, begin with, so that they can be counted.
func bucketOf(kind, id string) string { return sum(kind + " " + id)[:12] }

// nameOf returns the name of the record of a state: who reads the store's names cannot forge a callback.
func nameOf(state string) (string, bool) {
	bucket, secret, ok := strings.Cut(state, ".")
	if !ok || len(bucket) != 12 || !token(bucket) || len(secret) != 43 || !token(secret) {
		return "", false
	}
	return bucket + "." + sum(secret), true
}

// token reports whether s is of the characters of base64url.
func token(s string) bool {
	return s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}
