// Package config reads relayd's configuration: strict YAML, defaults, environment overrides, validation, JSON Schema.
//
// Everything wrong with a configuration is found in one pass and reported with file, line, column, key and a way out,
// as an [Error]. A [Config] that was returned without an error is complete: every default is filled in and every file
// it refers to could be read a moment ago. The package keeps no state; a caller that reloads keeps the old Config when
// [Load] refuses the new one.
package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Config is a whole configuration file. Paths in it are relative to the working directory.
type Config struct {
	Hostname      string        `yaml:"hostname"`                        // name in EHLO and Received; default: the host name of the system
	DataDir       string        `yaml:"data_dir"`                        // directory of queue, vault and history; default ./relayd-data
	Listeners     []Listener    `yaml:"listeners" jsonschema:"required"` // at least one
	Clients       []Client      `yaml:"clients"`                         // who may log in; none by default
	Limits        Limits        `yaml:"limits"`                          // what a message may be
	Queue         Queue         `yaml:"queue"`                           // how long and how much is kept
	Tenants       []Tenant      `yaml:"tenants"`                         // app registrations in Entra ID
	Senders       []Sender      `yaml:"senders"`                         // whose mail is sent, and by which tenant
	UnknownSender UnknownSender `yaml:"unknown_sender"`                  // what becomes of mail from anybody else; default reject
	Bounces       Bounces       `yaml:"bounces"`                         // who is told of mail that fails
	Replies       []Reply       `yaml:"replies"`                         // replies to read otherwise than relayd does; none by default
	Admin         Admin         `yaml:"admin"`                           // the page, the API, health and metrics
	Vault         Vault         `yaml:"vault"`                           // what seals refresh tokens and entered secrets
	Metrics       Metrics       `yaml:"metrics"`                         // health and metrics for others
	Log           Log           `yaml:"log"`                             // what is written to stderr
}

// Listener is one SMTP socket.
type Listener struct {
	Address             string    `yaml:"address" jsonschema:"required"`        // host:port; no host: all interfaces
	TLS                 string    `yaml:"tls" enum:"none,starttls,implicit"`    // default none
	CertFile            string    `yaml:"cert_file"`                            // PEM, leaf first
	KeyFile             string    `yaml:"key_file"`                             // PEM
	MinTLS              string    `yaml:"min_tls" enum:"1.0,1.1,1.2,1.3"`       // default 1.2; see MinTLSVersion
	Auth                string    `yaml:"auth" enum:"none,optional,required"`   // default optional with clients, else none
	PlaintextAuth       bool      `yaml:"plaintext_auth"`                       // offer AUTH before TLS; default false
	AllowNetworks       []Network `yaml:"allow_networks"`                       // may send without AUTH; default loopback
	LineEndings         string    `yaml:"line_endings" enum:"normalize,reject"` // bare CR and LF; default normalize
	ProxyProtocol       bool      `yaml:"proxy_protocol"`                       // expect a PROXY header; default false
	MaxConnections      int       `yaml:"max_connections" min:"1"`              // default 1000
	MaxConnectionsPerIP int       `yaml:"max_connections_per_ip" min:"1"`       // default 50
	CommandTimeout      Duration  `yaml:"command_timeout" min:"1s" max:"1h"`    // wait for a command; default 5m
	MinBodyRate         Rate      `yaml:"min_body_rate" min:"0" max:"1MiB/s"`   // bytes a second; default 500; 0: none
}

// MinTLSVersion returns min_tls as crypto/tls knows it.
func (l *Listener) MinTLSVersion() uint16 {
	switch l.MinTLS {
	case "1.0":
		return tls.VersionTLS10
	case "1.1":
		return tls.VersionTLS11
	case "1.3":
		return tls.VersionTLS13
	}
	return tls.VersionTLS12
}

// Client is an app or device that logs in by SMTP AUTH.
type Client struct {
	Username          string    `yaml:"username" jsonschema:"required"`
	PasswordHash      string    `yaml:"password_hash" jsonschema:"required"` // bcrypt, from `relayd password`
	Networks          []Network `yaml:"networks"`                            // where it may log in from; default anywhere
	Senders           []string  `yaml:"senders" jsonschema:"required"`       // addresses or *@domain it may send as
	DefaultSender     string    `yaml:"default_sender"`                      // sender of mail without a From; default none
	MessagesPerMinute int       `yaml:"messages_per_minute" min:"0"`         // default 0: no limit
}

// Limits bound one message, and all bodies in flight together.
type Limits struct {
	MessageBytes Size `yaml:"message_bytes" min:"1KiB" max:"150MiB"` // default 35MiB, at most 150MiB
	Recipients   int  `yaml:"recipients" min:"1"`                    // per message; default 500
	HeaderBytes  Size `yaml:"header_bytes" min:"1KiB" max:"16MiB"`   // default 128KiB
	Hops         int  `yaml:"hops" min:"1"`                          // Received fields; default 50
	MemoryBytes  Size `yaml:"memory_bytes" min:"1MiB"`               // bodies in flight in the process; default 64MiB
}

// Queue says how long messages are tried and kept, and how much disk they may take.
type Queue struct {
	Backend      string     `yaml:"backend" enum:"embedded"`           // default embedded
	Lifetime     Duration   `yaml:"lifetime" min:"1m" max:"365d"`      // then a message fails; default 5d
	MaxBytes     Size       `yaml:"max_bytes" min:"1MiB"`              // all stored mail; default 10GiB
	MinFreeBytes Size       `yaml:"min_free_bytes" min:"0"`            // disk left free; default 512MiB
	Retry        []Duration `yaml:"retry" min:"1s" max:"7d"`           // waits between attempts; the last repeats
	DelayWarning Duration   `yaml:"delay_warning" min:"0s" max:"365d"` // until the sender is told of a delay; default 4h; 0: never
	KeepSent     Duration   `yaml:"keep_sent" min:"1h" max:"3650d"`    // history of sent mail; default 7d
	KeepFailed   Duration   `yaml:"keep_failed" min:"1h" max:"3650d"`  // failed mail; default 30d
}

// Tenant is one app registration in Entra ID. It has one credential: a client secret, a certificate, a federated token or
// a managed identity; a delegated one may be a public client, with none.
type Tenant struct {
	Name               string      `yaml:"name" jsonschema:"required"`
	Cloud              string      `yaml:"cloud" enum:"worldwide,gcc-high,dod,china"` // default worldwide
	TenantID           string      `yaml:"tenant_id" jsonschema:"required"`           // GUID or verified domain
	ClientID           string      `yaml:"client_id" jsonschema:"required"`           // GUID of the app registration
	ClientSecret       Secret      `yaml:"client_secret"`
	Certificate        Certificate `yaml:"certificate"`                               // instead of a secret
	FederatedTokenFile string      `yaml:"federated_token_file"`                      // a token of another issuer, as Kubernetes mounts it; read for each request
	ManagedIdentity    string      `yaml:"managed_identity"`                          // system, or the client ID of a user-assigned one
	CredentialExpires  Date        `yaml:"credential_expires"`                        // zero: not said
	Grant              string      `yaml:"grant" enum:"client_credentials,delegated"` // default client_credentials
	Authority          string      `yaml:"authority"`                                 // base URL without trailing slash; default by cloud
	Scope              string      `yaml:"scope"`                                     // default by cloud and grant
	SMTPServer         string      `yaml:"smtp_server"`                               // host:port; default by cloud
	CAFile             string      `yaml:"ca_file"`                                   // PEM, trusted besides the system's roots
	Proxy              string      `yaml:"proxy"`                                     // URL of an HTTP proxy to Entra ID; default as the environment says
}

// Certificate is one whose public part is registered with the app.
type Certificate struct {
	CertFile string `yaml:"cert_file"` // PEM
	KeyFile  string `yaml:"key_file"`  // PEM
}

// FederatedToken reads federated_token_file, anew on each call: what mounts it renews it. Errors do not quote it.
func (t *Tenant) FederatedToken() (string, error) {
	value, err := readSecret(t.FederatedTokenFile)
	if err != nil {
		return "", fmt.Errorf("federated_token_file %w", err)
	}
	return value, nil
}

// RootCAs returns the roots to trust for this tenant's servers: the system's, and ca_file where one is set.
// Without a ca_file it is nil, which crypto/tls takes as the system's roots.
func (t *Tenant) RootCAs() (*x509.CertPool, error) { return rootCAs(t.CAFile) }

// RootCAs returns the roots to trust for the provider, as those of a Tenant.
func (o *OIDC) RootCAs() (*x509.CertPool, error) { return rootCAs(o.CAFile) }

func rootCAs(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	data, err := readRegular(file, maxPEMBytes)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("load the system's roots: %w", err)
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("holds no PEM certificate")
	}
	return pool, nil
}

// Sender is a mailbox, or all mailboxes of a domain, that relayd sends for. Exactly one of Address and Match is set.
type Sender struct {
	Address           string `yaml:"address"`
	Match             string `yaml:"match"`                        // *@domain
	Tenant            string `yaml:"tenant" jsonschema:"required"` // name of a tenant
	Login             string `yaml:"login"`                        // mailbox to log in as; default the sender itself
	Transport         string `yaml:"transport" enum:"smtp"`        // default smtp
	Connections       int    `yaml:"connections" min:"1"`          // at once, each mailbox; default 3
	MessagesPerMinute int    `yaml:"messages_per_minute" min:"1"`  // each mailbox; default 30
	RecipientsPerDay  int    `yaml:"recipients_per_day" min:"1"`   // each mailbox; default 10000

	RecipientsPerMessage int    `yaml:"recipients_per_message" min:"1"` // more are sent as several messages; default 500
	RecipientsPerDomain  int    `yaml:"recipients_per_domain" min:"1"`  // of one domain in one message; default 200
	Fallback             string `yaml:"fallback"`                       // sender to go through while this one is parked; default none
}

// UnknownSender is what becomes of mail whose sender no entry of senders covers: refused, or sent in another's name.
type UnknownSender struct {
	RewriteTo       string `yaml:"rewrite_to"`        // the sender to put in its place; empty: refuse the message
	ReplyToOriginal bool   `yaml:"reply_to_original"` // add Reply-To with the original sender; default true
}

// UnmarshalText reads the short form, the word "reject".
func (u *UnknownSender) UnmarshalText(text []byte) error {
	if string(text) != "reject" {
		return fmt.Errorf("unknown value %q; write reject, or {rewrite_to: noreply@contoso.com}", text)
	}
	u.RewriteTo = ""
	return nil
}

// Bounces says who is told of mail that could not be delivered, or not yet.
type Bounces struct {
	Mode    []string `yaml:"mode" enum:"dsn,notify,off" single:"true"` // default dsn and notify, as far as From and Notify are set
	From    string   `yaml:"from"`                                     // sender of what relayd writes itself; default none: it writes nothing
	Notify  []string `yaml:"notify"`                                   // operators; default none
	PerHour int      `yaml:"per_hour" min:"1"`                         // messages relayd writes in any hour; default 100
}

// Reply is a row of the catalogue of replies: an addition, or in place of the built-in row of that name. Of the fields
// that say which replies it is about, those that are empty fit any.
type Reply struct {
	Name     string   `yaml:"name" jsonschema:"required"`
	Stage    string   `yaml:"stage" enum:"greeting,ehlo,starttls,token,auth,mail,rcpt,data,dot"`
	Code     string   `yaml:"code"`     // reply code, or the digits it begins with
	Enhanced string   `yaml:"enhanced"` // enhanced status codes, separated by commas; the last number may be a range: 4.7.500-699
	Text     string   `yaml:"text"`     // part of the text, without regard to case
	Error    string   `yaml:"error"`    // with stage token: Entra ID's error
	AADSTS   []int    `yaml:"aadsts"`   // with stage token: any of these numbers
	Action   string   `yaml:"action" jsonschema:"required" enum:"retry,retry once,fail,split,back off sender,back off tenant,park sender,park tenant,hold sender,hold sender external,hold tenant external"`
	Fresh    bool     `yaml:"fresh_token"`             // try once more with a new access token first
	Wait     Duration `yaml:"wait" min:"0s" max:"24h"` // before the next attempt, at least
	Cause    string   `yaml:"cause"`                   // what is wrong, for the operator
	Advice   string   `yaml:"advice"`                  // what to do about it
}

// maxPEMBytes bounds files of certificates and keys; the roots of a whole system take a quarter of it.
const maxPEMBytes = 1 << 20

// Load reads certificate and key, anew on each call: a renewed pair is taken up.
func (c *Certificate) Load() (tls.Certificate, error) {
	cert, err := readRegular(c.CertFile, maxPEMBytes)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("cert_file %w", err)
	}
	key, err := readRegular(c.KeyFile, maxPEMBytes)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key_file %w", err)
	}
	return tls.X509KeyPair(cert, key)
}

// Expiry returns when the tenant's credential ends: credential_expires, or the end of its certificate; zero where nobody knows.
func (t *Tenant) Expiry() time.Time {
	if day := time.Time(t.CredentialExpires); !day.IsZero() || t.Certificate.CertFile == "" {
		return day
	}
	pair, err := t.Certificate.Load()
	if err != nil {
		return time.Time{} // the next token request says so
	}
	return pair.Leaf.NotAfter
}

// Admin is the listener of the page and the API.
type Admin struct {
	Address   string   `yaml:"address"`    // default 127.0.0.1:8080
	PublicURL string   `yaml:"public_url"` // how browsers reach it, base of the redirect URI; default by Address: see BaseURL
	TLS       AdminTLS `yaml:"tls"`        // default none
	Tokens    []Token  `yaml:"tokens"`     // API tokens; default none
	OIDC      OIDC     `yaml:"oidc"`       // who may log in by an OpenID provider; default nobody
}

// AdminTLS is the certificate of the admin listener.
type AdminTLS struct {
	CertFile string `yaml:"cert_file"` // PEM, leaf first
	KeyFile  string `yaml:"key_file"`  // PEM
}

// Token is a bearer token of the API. Role or Scopes say what it may.
type Token struct {
	Name    string   `yaml:"name" jsonschema:"required"`
	Hash    string   `yaml:"hash" jsonschema:"required"`                     // sha256: and 64 hexadecimal digits, from `relayd token`
	Role    string   `yaml:"role" enum:"viewer,operator,admin"`              // default none
	Scopes  []string `yaml:"scopes" enum:"read,content,send,operate,manage"` // default none
	Expires Date     `yaml:"expires"`                                        // zero: never
}

// OIDC is an OpenID provider people log in by.
type OIDC struct {
	Issuer       string    `yaml:"issuer"` // URL; empty: there is none
	ClientID     string    `yaml:"client_id"`
	ClientSecret Secret    `yaml:"client_secret"` // none: a public client
	CAFile       string    `yaml:"ca_file"`       // PEM, trusted besides the system's roots
	Allowed      []Allowed `yaml:"allowed"`       // who may; nobody else does
}

// Allowed lets a user or a group log in. Exactly one of User and Group is set.
type Allowed struct {
	User  string `yaml:"user"`  // of Entra ID: preferred_username, object id or subject; of others: verified email or subject
	Group string `yaml:"group"` // a value of the claim groups
	Role  string `yaml:"role" jsonschema:"required" enum:"viewer,operator,admin"`
}

// Vault says what seals the records that are secrets.
type Vault struct {
	Key          Secret   `yaml:"key"`           // default: a generated one in data_dir
	PreviousKeys []Secret `yaml:"previous_keys"` // still opened with, until relayd vault rotate is done; default none
}

// BaseURL returns how browsers reach the page: public_url, else the address itself, by the name that Entra ID takes in a
// redirect URI without https.
func (a *Admin) BaseURL() string {
	if a.PublicURL != "" {
		return strings.TrimRight(a.PublicURL, "/")
	}
	scheme := "http"
	if a.TLS.CertFile != "" {
		scheme = "https"
	}
	host, port, _ := net.SplitHostPort(a.Address) // validated
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		host = "localhost"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

// Loopback reports whether only this machine can reach the listener.
func (a *Admin) Loopback() bool {
	host, _, err := net.SplitHostPort(a.Address)
	return err == nil && isLoopback(host)
}

// Metrics is the listener for probes and Prometheus.
type Metrics struct {
	Address        string `yaml:"address"`                  // any interface; default empty: on the admin listener only
	PerSenderLimit int    `yaml:"per_sender_limit" min:"1"` // senders that get a label of their own; default 200
}

// Log says what is written to stderr.
type Log struct {
	Level  string `yaml:"level" enum:"debug,info,warn,error"` // default info
	Format string `yaml:"format" enum:"json,console"`         // default empty: console on a terminal, else json
}

// Files returns every file the configuration refers to: certificates, keys, CA files and secrets. Watch them together
// with the configuration file.
func (c *Config) Files() []string {
	var files []string
	for i := range c.Listeners {
		files = append(files, c.Listeners[i].CertFile, c.Listeners[i].KeyFile)
	}
	for i := range c.Tenants {
		t := &c.Tenants[i]
		files = append(files, t.CAFile, t.ClientSecret.File(), t.Certificate.CertFile, t.Certificate.KeyFile)
	}
	for _, key := range append([]Secret{c.Vault.Key}, c.Vault.PreviousKeys...) {
		files = append(files, key.File())
	}
	files = append(files, c.Admin.TLS.CertFile, c.Admin.TLS.KeyFile, c.Admin.OIDC.CAFile, c.Admin.OIDC.ClientSecret.File())
	slices.Sort(files)
	files = slices.Compact(files)
	return slices.DeleteFunc(files, func(f string) bool { return f == "" })
}

// Prefixes returns networks as net/netip knows them.
func Prefixes(networks []Network) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(networks))
	for i, n := range networks {
		prefixes[i] = netip.Prefix(n)
	}
	return prefixes
}
