// Package endpoint is what programs talk to in the sandbox's Entra ID: the token endpoint with its grants, the device
// authorization endpoint, OpenID metadata and keys, and the metadata service of a virtual machine.
package endpoint

import (
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/directory/ticket"
	"relayd/pkg/sandbox/fault"
)

// The grants of the token endpoint, as the parameter grant_type names them.
const (
	grantCode    = "authorization_code"
	grantRefresh = "refresh_token"
	grantDevice  = "urn:ietf:params:oauth:grant-type:device_code"
	grantClient  = "client_credentials"
)

// Options configure [New].
type Options struct {
	Directory *directory.Directory
	Tickets   *ticket.Store
	Shortest  time.Duration // life of an access token; 60 minutes
	Longest   time.Duration // 90 minutes, or Shortest if that is more
}

// Endpoint serves programs. Its methods may be called from any goroutine.
type Endpoint struct {
	opts Options
	dir  *directory.Directory

	mu         sync.Mutex // guards what follows
	requests   map[string]int64
	granted    map[string]int64
	assertions map[string]time.Time // seen, until they expire
}

// New returns the endpoints of a directory.
func New(opts Options) *Endpoint {
	if opts.Shortest == 0 {
		opts.Shortest = 60 * time.Minute
	}
	if opts.Longest == 0 {
		opts.Longest = max(opts.Shortest, 90*time.Minute)
	}
	e := &Endpoint{opts: opts, dir: opts.Directory, assertions: make(map[string]time.Time)}
	e.ClearCounts()
	return e
}

// Routes registers the endpoints.
func (e *Endpoint) Routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", e.ServeToken)
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/devicecode", e.ServeDeviceCode)
	mux.HandleFunc("GET /{tenant}/discovery/v2.0/keys", e.ServeKeys)
	mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", e.ServeMetadata)
	mux.HandleFunc("GET /metadata/identity/oauth2/token", e.ServeManagedIdentity)
}

// Counts are the requests by kind: the grants of the token endpoint by their short names, device_authorization,
// managed_identity, and other. Granted are those answered with what was asked for.
type Counts struct {
	Requests map[string]int64
	Granted  map[string]int64
}

// Counts returns the counters.
func (e *Endpoint) Counts() Counts {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := Counts{Requests: make(map[string]int64), Granted: make(map[string]int64)}
	for k, v := range e.requests {
		c.Requests[k] = v
	}
	for k, v := range e.granted {
		c.Granted[k] = v
	}
	return c
}

// ClearCounts starts counting anew.
func (e *Endpoint) ClearCounts() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests, e.granted = make(map[string]int64), make(map[string]int64)
}

// kind is the short name of a grant, for counters and rules.
func kind(grant string) string {
	switch grant {
	case grantCode, grantRefresh, grantClient:
		return grant
	case grantDevice:
		return "device_code"
	}
	return "other"
}

func (e *Endpoint) count(kind string, granted bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if granted {
		e.granted[kind]++
		return
	}
	e.requests[kind]++
}

// form are the fields of a request that must not be repeated (RFC 6749, 3.2): a repeated one reads as absent.
type form map[string][]string

func (f form) get(name string) string {
	if v := f[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// readForm reads the body of a request, with the client's name and secret from HTTP Basic if they are there
// (RFC 6749, 2.3.1).
func readForm(w http.ResponseWriter, r *http.Request) (form, bool) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	if err := r.ParseForm(); err != nil {
		return nil, false
	}
	f := form(r.PostForm)
	if id, secret, ok := r.BasicAuth(); ok {
		f["client_id"], f["client_secret"] = []string{unescape(id)}, []string{unescape(secret)}
	}
	return f, true
}

// request is one request to the token endpoint on its way.
type request struct {
	form   form
	tenant directory.Tenant
	app    directory.App
	acr    string // how the client proved itself
}

// answer is what the client is given.
type answer struct {
	user   *directory.User // nil: the app's own token
	scopes directory.Scopes
	nonce  string
	next   string // the refresh token, if there is one
}

// ServeToken is the token endpoint; the path value "tenant" names the tenant.
func (e *Endpoint) ServeToken(w http.ResponseWriter, r *http.Request) {
	tenantID := r.PathValue("tenant")
	f, ok := readForm(w, r)
	if !ok {
		(&refusal.Refusal{Number: 900144, Value: "grant_type"}).Tell(refusal.About{Tenant: tenantID}).Write(w)
		return
	}
	kind := kind(f.get("grant_type"))
	e.count(kind, false)
	owner, _ := e.opts.Tickets.Owner(f.get("refresh_token") + f.get("code") + f.get("device_code"))
	occasion := fault.Occasion{Stage: fault.StageToken, App: f.get("client_id"), Login: owner.User, Grant: kind}
	if rule, hit := e.dir.Faults().Due(occasion); hit && strike(w, r, rule, f) {
		return
	}
	q := &request{form: f}
	a, refused := e.grant(tenantID, q)
	if refused != nil {
		e.dir.Log().Info("token refused", zap.String("tenant", tenantID), zap.String("grant", kind), zap.Int("aadsts", refused.Number))
		refused.Tell(refusal.About{Client: f.get("client_id"), Tenant: tenantID}).Write(w)
		return
	}
	if e.respond(w, q, a) {
		e.count(kind, true)
		e.dir.Log().Info("token issued", zap.String("tenant", tenantID), zap.String("grant", kind))
	}
}

// lifetime is a random one for an access token.
func (e *Endpoint) lifetime() time.Duration {
	lifetime := e.opts.Shortest
	if spread := e.opts.Longest - lifetime; spread > 0 {
		lifetime += mathrand.N(spread)
	}
	return lifetime
}

// respond issues the tokens and writes them; false if they could not be made.
func (e *Endpoint) respond(w http.ResponseWriter, q *request, a answer) bool {
	lifetime := e.lifetime()
	seconds := int64(lifetime / time.Second)
	body := map[string]any{"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds}
	var err error
	var access string
	if a.user == nil {
		access, err = e.dir.AppToken(q.tenant, q.app, q.acr, lifetime)
	} else {
		access, err = e.dir.UserToken(q.tenant, q.app, *a.user, a.scopes, q.acr, lifetime)
		body["scope"] = scopeAnswer(a.scopes)
		if a.next != "" {
			body["refresh_token"] = a.next
		}
	}
	if err == nil && a.user != nil && a.scopes.OpenID {
		body["id_token"], err = e.dir.IDToken(q.tenant, q.app, *a.user, a.scopes, a.nonce)
	}
	if err != nil {
		http.Error(w, "Internal Server Error", http.StatusInternalServerError)
		return false
	}
	body["access_token"] = access
	refusal.JSON(w, http.StatusOK, body)
	return true
}

// strike does what a rule says in place of the ordinary answer, and reports whether it answered.
func strike(w http.ResponseWriter, r *http.Request, rule fault.Rule, f form) bool {
	if rule.Delay > 0 && !fault.Sleep(r.Context(), time.Duration(rule.Delay)) {
		return true
	}
	if rule.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(rule.RetryAfter))
	}
	switch {
	case rule.Blackhole:
		<-r.Context().Done() // the client, or the sandbox, gave up
	case rule.Close != "":
		panic(http.ErrAbortHandler) // documented way to cut the connection without a reply
	case rule.AADSTS != 0:
		told := (&refusal.Refusal{Number: rule.AADSTS, Value: f.get("scope")}).Tell(
			refusal.About{Client: f.get("client_id"), Tenant: r.PathValue("tenant")})
		if rule.Status != 0 {
			told.Status = rule.Status
		}
		told.Write(w)
	case rule.Status != 0:
		w.WriteHeader(rule.Status)
		fmt.Fprint(w, rule.Raw)
	default:
		return false
	}
	return true
}
