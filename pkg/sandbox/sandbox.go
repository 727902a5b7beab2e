// Package sandbox simulates Exchange Online's SMTP submission and Entra ID as far as its tokens and sign-ins go.
//
// It is an independent reading of the same facts relayd's client side is built on: it imports nothing of the relay and
// speaks SMTP from its own parser and its own body reader, so a misreading on one side shows up on the other. It is
// strict where Exchange is strict, it counts what relayd promises to keep (connections, messages a minute, duplicates),
// and it misbehaves on request: see [Rule].
//
// Where the published facts leave a choice, this is what was chosen:
//
//   - A connection is sending from the 354 (or the first BDAT) to the moment its final reply is written. The connection
//     that starts one too many is refused at the end of its own message.
//   - The 30 messages a minute are a sliding window. The reply to an excess message is withheld until the window has
//     room; [Limits.RejectOverRate] refuses it instead.
//   - MAIL FROM is judged together with the header From at the end of DATA, with the same text; MAIL FROM:<> is refused
//     like any address the login may not use. Every From address must be the login or a Send As grant.
//   - AUTH XOAUTH2 with an initial response works, and fails with a plain 535; [Options.RefuseInitialResponse] always
//     fails it.
//   - A refresh token that was replaced stays good; [Options.StrictRotation] takes its second use for theft. Revoking a
//     user leaves access tokens alone, as Entra does without continuous access evaluation.
//   - A page that refuses a person offers to send the error back to the application, which Microsoft's mostly do not.
//   - 35 MB is 35 MiB. Only accepted messages are charged to the recipients a day.
//
// All state is in memory and dies with the process.
//
// The parts are packages below this one: wire (the grammar), text (the replies), fault, mailbox (limits), directory
// (Entra ID, in parts of its own) and submission (SMTP sessions).
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/endpoint"
	"relayd/pkg/sandbox/directory/signin"
	"relayd/pkg/sandbox/directory/ticket"
	"relayd/pkg/sandbox/fault"
	"relayd/pkg/sandbox/mailbox"
	"relayd/pkg/sandbox/submission"
)

// The vocabulary of the parts; each is documented where it is defined.
//
//nolint:revive // one comment for all
type (
	Tenant       = directory.Tenant
	App          = directory.App
	User         = directory.User
	Consent      = directory.Consent
	Federated    = directory.FederatedIdentity
	Grant        = directory.Grant
	Limits       = mailbox.Limits
	MailboxStats = mailbox.Stats
	Message      = submission.Message
	DSN          = submission.DSN
	Rule         = fault.Rule
	Duration     = fault.Duration
)

// The directory entry of a sandbox that is given none; its secret is random.
const (
	DefaultTenantID = directory.DefaultTenantID
	DefaultClientID = directory.DefaultClientID
)

// The stages a [Rule] may name.
const (
	StageConnect  = fault.StageConnect
	StageEHLO     = fault.StageEHLO
	StageSTARTTLS = fault.StageSTARTTLS
	StageTLS      = fault.StageTLS
	StageAuth     = fault.StageAuth
	StageMail     = fault.StageMail
	StageRcpt     = fault.StageRcpt
	StageData     = fault.StageData
	StageBody     = fault.StageBody
	StageDot      = fault.StageDot
	StageRset     = fault.StageRset
	StageNoop     = fault.StageNoop
	StageQuit     = fault.StageQuit
	StageToken    = fault.StageToken

	StageAuthorize = fault.StageAuthorize
)

// ParseRule reads a fault as a flag gives it; see [fault.Parse].
func ParseRule(text string) (Rule, error) { return fault.Parse(text) }

// NewSecret returns a random client secret.
func NewSecret() string { return directory.NewSecret() }

// Presets returns the ready-made faults; see [fault.Presets].
func Presets() []Rule { return fault.Presets() }

// Options configure [New]. The zero value is a sandbox on loopback ports of the system's choice with one tenant, one
// app with a random secret, and every address a mailbox.
type Options struct {
	SMTPAddr   string   // address of the submission port; "127.0.0.1:0"
	HTTPAddr   string   // address of Entra ID and the control API, HTTP and HTTPS on one port; "127.0.0.1:0"
	Names      []string // host names and IP addresses in the certificate besides localhost, 127.0.0.1 and ::1
	ServerName string   // the name in banner and replies; "SBXPR01CA0001.sandbox.prod.outlook.com"

	Tenants []Tenant // the directory; one tenant with [DefaultTenantID] and [DefaultClientID]
	Limits  Limits
	Faults  []Rule // rules in force from the start

	TokenLifetimeMin      time.Duration // shortest life of an access token; 60 minutes
	TokenLifetimeMax      time.Duration // longest; 90 minutes
	RefreshTokenLifetime  time.Duration // of a refresh token that is not used; 90 days
	StrictRotation        bool          // a replaced refresh token that is used again revokes its successors; Entra forgives it
	DeviceInterval        time.Duration // between two polls for a device code, whole seconds; 5 s
	RefuseInitialResponse bool          // answer every AUTH XOAUTH2 that carries an initial response with 535

	DropBodies   bool  // keep size, hash and X-Relayd-Id of each message only; for benchmarks
	MaxBodyBytes int64 // bodies kept, the oldest dropped first; 512 MiB
	MaxMessages  int   // message records kept, the oldest dropped first; 1,000,000

	Logger *zap.Logger // one line a session step; none
}

// Sandbox is a running simulator. Its methods may be called from any goroutine.
type Sandbox struct {
	log          *zap.Logger
	smtp, http   net.Listener
	certificates certificates

	faults     fault.List
	directory  *directory.Directory
	tickets    *ticket.Store
	endpoint   *endpoint.Endpoint
	pages      *signin.Pages
	mailboxes  *mailbox.Set
	store      *store
	submission *submission.Server

	running sync.WaitGroup // SMTP sessions

	mu    sync.Mutex // guards conns and ended
	conns map[net.Conn]struct{}
	ended bool
}

// New makes the certificates and signing key and opens both listeners; connections are served once Run is called. A
// taken port, an unusable rule or tenant is an error.
func New(opts Options) (*Sandbox, error) {
	opts = opts.withDefaults()
	limits := opts.Limits.WithDefaults()
	b := &Sandbox{
		log: opts.Logger, mailboxes: mailbox.New(limits), store: newStore(opts.MaxBodyBytes, opts.MaxMessages),
		conns: make(map[net.Conn]struct{}),
	}
	var err error
	b.directory, err = directory.New(directory.Options{
		Tenants: opts.Tenants, Shortest: opts.TokenLifetimeMin, Longest: opts.TokenLifetimeMax,
		Faults: &b.faults, Authority: b.Authority, Log: opts.Logger,
	})
	if err != nil {
		return nil, err
	}
	b.tickets = ticket.New(ticket.Options{
		RefreshLife: opts.RefreshTokenLifetime, Interval: opts.DeviceInterval, Strict: opts.StrictRotation,
	})
	b.endpoint = endpoint.New(endpoint.Options{
		Directory: b.directory, Tickets: b.tickets, Shortest: opts.TokenLifetimeMin, Longest: opts.TokenLifetimeMax,
	})
	if b.pages, err = signin.New(b.directory, b.tickets); err != nil {
		return nil, err
	}
	for _, r := range opts.Faults {
		if _, err := b.faults.Add(r); err != nil {
			return nil, err
		}
	}
	if b.certificates, err = newCertificates(opts.Names, time.Now()); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	b.submission = submission.New(submission.Options{
		ServerName: opts.ServerName, Limits: limits, Mailboxes: b.mailboxes, Directory: b.directory, Faults: &b.faults,
		TLS: b.certificates.smtp, Deliver: b.store.add, KeepBodies: !opts.DropBodies,
		RefuseInitialResponse: opts.RefuseInitialResponse, Log: opts.Logger,
	})
	if b.smtp, err = net.Listen("tcp", opts.SMTPAddr); err != nil {
		return nil, fmt.Errorf("listen for SMTP: %w", err)
	}
	if b.http, err = net.Listen("tcp", opts.HTTPAddr); err != nil {
		b.smtp.Close()
		return nil, fmt.Errorf("listen for HTTP: %w", err)
	}
	return b, nil
}

func (o Options) withDefaults() Options {
	if o.SMTPAddr == "" {
		o.SMTPAddr = "127.0.0.1:0"
	}
	if o.HTTPAddr == "" {
		o.HTTPAddr = "127.0.0.1:0"
	}
	if o.ServerName == "" {
		o.ServerName = "SBXPR01CA0001.sandbox.prod.outlook.com"
	}
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = 512 << 20
	}
	if o.MaxMessages <= 0 {
		o.MaxMessages = 1_000_000
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return o
}

// Run serves until ctx ends, then closes listeners and connections and returns nil once every session has stopped. It
// returns an error if a listener fails before that. Run may be called once.
func (b *Sandbox) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	web := &http.Server{
		Handler: b.handler(), ReadHeaderTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    zap.NewStdLog(b.log),
	}
	failed := make(chan error, 2)
	go func() { failed <- web.Serve(eitherListener{b.http, b.certificates.https()}) }()
	go func() { failed <- b.acceptSMTP(ctx) }()

	pending := 2
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		pending--
	}
	cancel()
	b.Close()
	web.Close()
	for ; pending > 0; pending-- {
		<-failed
	}
	b.running.Wait()
	return err
}

// Close closes listeners and open SMTP connections. It is for a sandbox whose Run was never called; Run does it itself.
func (b *Sandbox) Close() {
	b.smtp.Close()
	b.http.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	for c := range b.conns {
		c.Close()
	}
}

func (b *Sandbox) acceptSMTP(ctx context.Context) error {
	for {
		conn, err := b.smtp.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && fault.Sleep(ctx, 10*time.Millisecond) {
				continue // out of file descriptors: others will close
			}
			return fmt.Errorf("accept SMTP: %w", err)
		}
		b.mu.Lock()
		if b.ended {
			b.mu.Unlock()
			conn.Close()
			continue
		}
		b.conns[conn] = struct{}{}
		b.running.Add(1)
		b.mu.Unlock()
		go func() {
			defer b.running.Done()
			b.submission.Serve(ctx, conn)
			b.mu.Lock()
			delete(b.conns, conn)
			b.mu.Unlock()
		}()
	}
}

// SMTPAddr returns the address to reach the submission port at, host:port.
func (b *Sandbox) SMTPAddr() string { return reachable(b.smtp.Addr()) }

// HTTPAddr returns the address to reach Entra ID and the control API at, host:port.
func (b *Sandbox) HTTPAddr() string { return reachable(b.http.Addr()) }

// reachable is the address of a listener, with localhost for one that listens on every interface: the name the
// certificate is for.
func reachable(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	return net.JoinHostPort("localhost", strconv.Itoa(tcp.Port))
}

// Authority returns the base URL of the simulated Entra ID; tenant and path are appended to it.
func (b *Sandbox) Authority() string { return "https://" + b.HTTPAddr() }

// CAPEM returns the certificate that both ports' certificates are signed by, as PEM.
func (b *Sandbox) CAPEM() []byte { return b.certificates.caPEM }

// Token issues an access token for an app as the token endpoint would, but asks for no secret. A lifetime below zero
// gives one that has already expired.
func (b *Sandbox) Token(tenantID, clientID string, lifetime time.Duration) (string, error) {
	return b.directory.Token(tenantID, clientID, lifetime)
}

// AddTenant adds a tenant to the directory, or replaces the one with the same ID.
func (b *Sandbox) AddTenant(t Tenant) error { return b.directory.Add(t) }

// Tenants returns the directory, secrets included.
func (b *Sandbox) Tenants() []Tenant { return b.directory.List() }

// ChangeTenant alters a tenant of the directory as act says; an error of act changes nothing.
func (b *Sandbox) ChangeTenant(id string, act func(*Tenant) error) error {
	return b.directory.Change(id, act)
}

// SetUser adds or replaces a user. Another password than before revokes what the user had granted.
func (b *Sandbox) SetUser(tenantID string, u User) error { return b.directory.SetUser(tenantID, u) }

// RevokeUser ends a user's refresh tokens and browser sessions, and with access the access tokens, too.
func (b *Sandbox) RevokeUser(tenantID, mail string, access bool) error {
	return b.directory.RevokeUser(tenantID, mail, access)
}

// AddConsent records a consent, an administrator's for everyone if it names no user.
func (b *Sandbox) AddConsent(tenantID string, c Consent) error {
	return b.directory.Consent(tenantID, c)
}

// AddFault puts a rule in force behind those already there and returns its id. An unusable rule is an error.
func (b *Sandbox) AddFault(r Rule) (int, error) { return b.faults.Add(r) }

// Faults lists the rules in force with the number of times each has fired.
func (b *Sandbox) Faults() []Rule { return b.faults.List() }

// RemoveFault ends the rule with that id and reports whether there was one.
func (b *Sandbox) RemoveFault(id int) bool { return b.faults.Remove(id) }

// ClearFaults ends every rule.
func (b *Sandbox) ClearFaults() { b.faults.Clear() }

// RevokeTokens makes every access token issued so far worthless. Authenticated sessions go on, as with Exchange.
func (b *Sandbox) RevokeTokens() { b.directory.Revoke() }

// Messages lists the delivered messages that f selects, oldest first.
func (b *Sandbox) Messages(f Filter) []Message { return b.store.list(f) }

// Raw returns a delivered message byte for byte as it stood after unstuffing; false if its body is not kept.
func (b *Sandbox) Raw(seq uint64) ([]byte, bool) { return b.store.raw(seq) }

// Wait blocks until at least n delivered messages match f and returns them, or until ctx ends and returns its error
// with those that are there.
func (b *Sandbox) Wait(ctx context.Context, n int, f Filter) ([]Message, error) {
	return b.store.wait(ctx, n, f)
}

// Clear forgets the delivered messages and the duplicates among them, and not what mailboxes have used of their limits.
func (b *Sandbox) Clear() { b.store.clear() }

// ClearStats forgets each mailbox's peaks and what it has used of its limits, and the token requests.
func (b *Sandbox) ClearStats() {
	b.mailboxes.Clear()
	b.endpoint.ClearCounts()
}

// Stats is what the sandbox itself has counted: the judge of what a client did.
type Stats struct {
	Messages    int64 `json:"messages"`   // accepted since the start or Clear
	Recipients  int64 `json:"recipients"` // of those messages
	Bytes       int64 `json:"bytes"`
	Connections int64 `json:"connections"` // SMTP connections since the start
	AuthOK      int64 `json:"auth_ok"`
	AuthFailed  int64 `json:"auth_failed"`
	Tokens      int64 `json:"tokens"` // access tokens issued

	// TokenRequests are the requests since the start or ClearStats by kind: client_credentials, authorization_code,
	// refresh_token, device_code, device_authorization, managed_identity, other. TokensGranted are those that were
	// answered with what they asked for.
	TokenRequests map[string]int64 `json:"token_requests"`
	TokensGranted map[string]int64 `json:"tokens_granted"`

	DuplicateCount int64                   `json:"duplicate_count"` // deliveries beyond the first of an X-Relayd-Id to a recipient
	Duplicates     []Duplicate             `json:"duplicates"`      // the first 1,000 of them, by id
	Mailboxes      map[string]MailboxStats `json:"mailboxes"`
}

// Stats returns the counters.
func (b *Sandbox) Stats() Stats {
	s := b.store.stats()
	c := b.submission.Counts()
	s.Connections, s.AuthOK, s.AuthFailed, s.Tokens = c.Sessions, c.AuthOK, c.AuthFailed, b.directory.Issued()
	requests := b.endpoint.Counts()
	s.TokenRequests, s.TokensGranted = requests.Requests, requests.Granted
	s.Mailboxes = b.mailboxes.Stats()
	return s
}
