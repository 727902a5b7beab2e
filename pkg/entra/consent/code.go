package consent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"relayd/pkg/entra/grant"
	"relayd/pkg/entra/identity"
)

// The limits of sign-ins under way.
const (
	pendingLife    = 10 * time.Minute
	perSession     = 10   // of one browser
	pendingMost    = 1000 // of all
	requestTimeout = 30 * time.Second
)

// Consents is the sign-ins under way. All its methods may be called at once.
type Consents struct {
	opts    Options
	log     *zap.Logger
	checker identity.Checker
	polls   polls
}

// New checks the options. It asks nothing and stores nothing.
func New(o Options) (*Consents, error) {
	if o.Registration == nil || o.Pending == nil || o.Devices == nil || o.Invitations == nil || o.Adopt == nil || o.RedirectURI == nil {
		return nil, errors.New("consent: an option is missing")
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	c := &Consents{opts: o, log: o.Logger}
	c.polls.wake = make(chan struct{}, 1)
	return c, nil
}

// pending is a browser that was sent to Entra ID, as it is stored.
type pending struct {
	Admin      bool      `json:"admin,omitempty"` // an administrator's consent
	Tenant     string    `json:"tenant"`
	Sender     string    `json:"sender,omitempty"`
	Login      string    `json:"login,omitempty"`
	Verifier   string    `json:"verifier,omitempty"` // RFC 7636
	Nonce      string    `json:"nonce,omitempty"`
	Redirect   string    `json:"redirect"`
	Invitation string    `json:"invitation,omitempty"` // name of the record
	Expires    time.Time `json:"expires"`
	Taken      bool      `json:"taken,omitempty"`
}

// random returns 256 bits as text.
func random() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// pendingName is the record's name: a state is found only together with the browser it belongs to.
func pendingName(session, state string) string { return hash(session) + "." + hash(state) }

// Start returns the URL at Entra ID to send the browser of r.Session to. Errors are *status.Error, or the store's.
func (c *Consents) Start(ctx context.Context, r Request) (string, error) {
	return c.start(ctx, r, "")
}

func (c *Consents) start(ctx context.Context, r Request, invitation string) (string, error) {
	reg, err := c.opts.Registration(r.Tenant)
	if err != nil {
		return "", err
	}
	p := pending{
		Tenant: r.Tenant, Sender: r.Sender, Login: r.Login, Verifier: oauth2.GenerateVerifier(), Nonce: random(),
		Redirect: c.opts.RedirectURI(), Invitation: invitation,
	}
	state, err := c.store(ctx, r.Session, &p)
	if err != nil {
		return "", err
	}
	q := url.Values{
		"client_id": {reg.ClientID}, "response_type": {"code"}, "response_mode": {"query"}, "redirect_uri": {p.Redirect},
		"scope": {scopes(reg.Scope)}, "state": {state}, "nonce": {p.Nonce}, "login_hint": {r.Login}, "prompt": {"select_account"},
		"code_challenge": {oauth2.S256ChallengeFromVerifier(p.Verifier)}, "code_challenge_method": {"S256"},
	}
	return endpoint(&reg, "/oauth2/v2.0/authorize") + "?" + q.Encode(), nil
}

// StartAdmin returns the URL at Entra ID where an administrator consents to the tenant's application for everybody.
func (c *Consents) StartAdmin(ctx context.Context, tenant, session string) (string, error) {
	reg, err := c.opts.Registration(tenant)
	if err != nil {
		return "", err
	}
	p := pending{Admin: true, Tenant: tenant, Redirect: c.opts.RedirectURI()}
	state, err := c.store(ctx, session, &p)
	if err != nil {
		return "", err
	}
	resource, _, _ := strings.Cut(reg.Scope, " ")
	q := url.Values{"client_id": {reg.ClientID}, "redirect_uri": {p.Redirect}, "state": {state}, "scope": {resource}}
	return endpoint(&reg, "/v2.0/adminconsent") + "?" + q.Encode(), nil
}

// scopes adds what a refresh token and an id_token take.
func scopes(scope string) string {
	have := strings.Fields(scope)
	for _, needed := range []string{"offline_access", "openid", "profile"} {
		if !containsFold(have, needed) {
			have = append(have, needed)
		}
	}
	return strings.Join(have, " ")
}

func containsFold(list []string, s string) bool {
	for _, one := range list {
		if strings.EqualFold(one, s) {
			return true
		}
	}
	return false
}

func endpoint(r *Registration, path string) string {
	return r.Authority + "/" + url.PathEscape(r.TenantID) + path
}

// store keeps p for the browser of that session, and returns the state that finds it again.
func (c *Consents) store(ctx context.Context, session string, p *pending) (state string, err error) {
	if session == "" {
		return "", errNoSession()
	}
	names, err := c.opts.Pending.Names(ctx)
	if err != nil {
		return "", fmt.Errorf("store sign-in: %w", err)
	}
	own, prefix := 0, hash(session)+"."
	for _, name := range names {
		if strings.HasPrefix(name, prefix) {
			own++
		}
	}
	if own >= perSession || len(names) >= pendingMost {
		if c.sweepPending(ctx, names) == 0 {
			return "", errTooMany()
		}
	}
	state = random()
	p.Expires = time.Now().Add(pendingLife)
	if revision, err := put(ctx, c.opts.Pending, pendingName(session, state), p, 0); err != nil || revision == 0 {
		return "", fmt.Errorf("store sign-in: %w", orConflict(err))
	}
	return state, nil
}

func orConflict(err error) error {
	if err == nil {
		return errors.New("it changed at the same moment")
	}
	return err
}

func put(ctx context.Context, records grant.Records, name string, v any, revision uint64) (uint64, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	return records.Put(ctx, name, data, revision)
}

// get reads a record into v; revision 0: there is none.
func get(ctx context.Context, records grant.Records, name string, v any) (revision uint64, err error) {
	data, revision, err := records.Get(ctx, name)
	if err != nil || data == nil {
		return 0, err
	}
	if json.Unmarshal(data, v) != nil { // its error could quote the record
		return 0, errors.New("the record of a sign-in cannot be read")
	}
	return revision, nil
}

// Finish takes what a browser brings back. What it refuses is a *status.Error; the result then says what is known of whose
// sign-in it was.
func (c *Consents) Finish(ctx context.Context, cb Callback) (Result, error) {
	p, err := c.take(ctx, &cb)
	if err != nil {
		return Result{}, err
	}
	result := Result{Tenant: p.Tenant, Sender: p.Sender, Login: p.Login, Admin: p.Admin, Invited: p.Invitation != ""}
	reg, err := c.opts.Registration(p.Tenant)
	if err != nil {
		return result, err
	}
	client := clientOf(&reg)
	if cb.Issuer != "" { // RFC 9207: an answer of another server must not reach this one's token endpoint
		if issuer, err := c.checker.Issuer(ctx, registered(&reg, client)); err != nil {
			return result, errAway(err)
		} else if issuer != cb.Issuer {
			return result, errIssuer()
		}
	}
	if cb.Error != "" {
		return result, c.refusedBy(&reg, &cb)
	}
	if p.Admin {
		return result, checkAdmin(&reg, &cb)
	}
	if cb.Code == "" {
		return result, errNoCode()
	}
	tok, err := c.request(ctx, &reg, client, url.Values{
		"grant_type": {"authorization_code"}, "code": {cb.Code}, "redirect_uri": {p.Redirect}, "code_verifier": {p.Verifier},
		"scope": {scopes(reg.Scope)},
	}, cb.Code, p.Verifier)
	if err != nil {
		return result, err
	}
	g, err := c.judge(ctx, &reg, client, tok, p.Login, p.Nonce)
	if err != nil {
		return result, err
	}
	result.User = g.User
	return result, c.adopt(ctx, g, p.Invitation)
}

// take finds the sign-in that a callback belongs to, and uses its state up.
func (c *Consents) take(ctx context.Context, cb *Callback) (*pending, error) {
	if cb.State == "" || cb.Session == "" {
		return nil, errUnknown()
	}
	name := pendingName(cb.Session, cb.State)
	p := new(pending)
	revision, err := get(ctx, c.opts.Pending, name, p)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read sign-in: %w", err)
	case revision == 0 || p.Taken:
		return nil, errUnknown()
	}
	p.Taken = true
	if next, err := put(ctx, c.opts.Pending, name, p, revision); err != nil {
		return nil, fmt.Errorf("take sign-in: %w", err)
	} else if next == 0 {
		return nil, errUnknown() // another callback with this state was quicker
	}
	if err := c.opts.Pending.Delete(ctx, name); err != nil {
		c.log.Warn("a used sign-in was not removed yet", zap.Error(err)) // it is marked, and swept
	}
	if time.Now().After(p.Expires) {
		return nil, errExpired()
	}
	return p, nil
}

// checkAdmin judges the answer of the admin-consent page.
func checkAdmin(reg *Registration, cb *Callback) error {
	switch {
	case !cb.AdminConsent:
		return errNotConsented()
	case isGUID(reg.TenantID) && cb.Tenant != "" && subtle.ConstantTimeCompare([]byte(strings.ToLower(cb.Tenant)), []byte(strings.ToLower(reg.TenantID))) == 0:
		return errTenant()
	}
	return nil
}

// clientOf returns the registration's client, without redirects: what is sent holds credentials.
func clientOf(reg *Registration) *http.Client {
	client := http.Client{Timeout: requestTimeout}
	if reg.Client != nil {
		client = *reg.Client
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client
}

func registered(reg *Registration, client *http.Client) identity.Registration {
	return identity.Registration{Authority: reg.Authority, TenantID: reg.TenantID, ClientID: reg.ClientID, Client: client}
}

// sweepPending removes sign-ins that were never finished, and returns how many.
func (c *Consents) sweepPending(ctx context.Context, names []string) (removed int) {
	for _, name := range names {
		var p pending
		revision, err := get(ctx, c.opts.Pending, name, &p)
		if err == nil && revision != 0 && (p.Taken || time.Now().After(p.Expires)) && c.opts.Pending.Delete(ctx, name) == nil {
			removed++
		}
	}
	return removed
}
