// Package submission is the SMTP side of the sandbox: sessions as Exchange Online's client submission holds them.
//
// A [Server] keeps nothing of its own but counters: what a mailbox has used is with [mailbox.Set], who may do what with
// [directory.Directory], and an accepted message goes to Options.Deliver before its 250 is written.
package submission

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/fault"
	"relayd/pkg/sandbox/mailbox"
)

// Options configure a [Server]; every field is needed.
type Options struct {
	ServerName            string
	Limits                mailbox.Limits // complete: see [mailbox.Limits.WithDefaults]
	Mailboxes             *mailbox.Set
	Directory             *directory.Directory
	Faults                *fault.List
	TLS                   func(certificate string, maxVersion uint16) *tls.Config // by a name of [fault.Rule]; 0 is the newest
	Deliver               func(m *Message, raw []byte)                            // raw is nil without KeepBodies
	KeepBodies            bool
	RefuseInitialResponse bool
	Log                   *zap.Logger
}

// Server holds SMTP sessions.
type Server struct {
	opts       Options
	sessions   atomic.Int64 // so far; the number in a connection's id
	authOK     atomic.Int64
	authFailed atomic.Int64
}

// New returns a server; connections are brought to it by Serve.
func New(opts Options) *Server { return &Server{opts: opts} }

// Serve holds one session and closes conn. It returns when the client leaves, a limit ends the session or ctx does and
// the caller has closed conn.
func (v *Server) Serve(ctx context.Context, conn net.Conn) {
	newSession(v, conn, v.sessions.Add(1)).serve(ctx)
	conn.Close()
}

// Counts are of all sessions so far.
type Counts struct{ Sessions, AuthOK, AuthFailed int64 }

// Counts returns the counters.
func (v *Server) Counts() Counts {
	return Counts{v.sessions.Load(), v.authOK.Load(), v.authFailed.Load()}
}

// Message is one accepted message.
type Message struct {
	Seq       uint64    `json:"seq"` // from 1, never reused
	Time      time.Time `json:"time"`
	Session   string    `json:"session"` // the connection, as in bracketed replies
	Login     string    `json:"login"`
	MailFrom  string    `json:"mail_from"`
	Rcpts     []string  `json:"rcpts"`
	Size      int64     `json:"size"`
	SHA256    string    `json:"sha256"` // of the exact bytes, in hexadecimal
	RelaydID  string    `json:"relayd_id,omitempty"`
	MessageID string    `json:"message_id,omitempty"`
	Body      string    `json:"body,omitempty"` // BODY= of MAIL
	SMTPUTF8  bool      `json:"smtputf8,omitempty"`
	BareLF    bool      `json:"bare_lf,omitempty"` // a line ended without CR
	DSN       *DSN      `json:"dsn,omitempty"`     // nil if the client asked for nothing
}

// DSN is what a client asked for by RFC 3461.
type DSN struct {
	Ret        string            `json:"ret,omitempty"`
	EnvID      string            `json:"envid,omitempty"`
	Notify     map[string]string `json:"notify,omitempty"` // by recipient
	Recipients map[string]string `json:"orcpt,omitempty"`  // ORCPT by recipient
}
