// Package fault is how the sandbox misbehaves: rules as data, looked up at every stage of a session.
package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"relayd/pkg/sandbox/wire"
)

// Stage is the moment of a session at which a [Rule] strikes.
type Stage string

// The stages in the order a session meets them, and the token endpoint. A rule with no stage strikes at any command.
const (
	StageConnect  Stage = "connect" // in place of the banner
	StageEHLO     Stage = "ehlo"
	StageSTARTTLS Stage = "starttls"
	StageTLS      Stage = "tls"  // the handshake itself
	StageAuth     Stage = "auth" // in place of the verdict on the credentials, so the mailbox is known
	StageMail     Stage = "mail"
	StageRcpt     Stage = "rcpt"
	StageData     Stage = "data" // in place of the 354, or at the first BDAT
	StageBody     Stage = "body" // once After bytes of the body have arrived, or it ends; the session ends with the fault
	StageDot      Stage = "dot"  // in place of the reply to the final dot or BDAT LAST
	StageRset     Stage = "rset"
	StageNoop     Stage = "noop"
	StageQuit     Stage = "quit"
	StageToken    Stage = "token" // the token endpoint, that for device codes, and the metadata service

	StageAuthorize Stage = "authorize" // the pages people sign in and consent on; aadsts is told to the app
)

func stages() []Stage {
	return []Stage{StageConnect, StageEHLO, StageSTARTTLS, StageTLS, StageAuth, StageMail, StageRcpt, StageData,
		StageBody, StageDot, StageRset, StageNoop, StageQuit, StageToken, StageAuthorize}
}

// The certificates a STARTTLS may be answered with; all but the good one are for Rule.Certificate.
const (
	CertGood       = ""
	CertExpired    = "expired"
	CertSelfSigned = "self-signed"
	CertWrongName  = "wrong-name"
)

// Duration is a time.Duration that reads and writes "1.5s".
type Duration time.Duration

// MarshalText writes the duration as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// Rule is one fault as data: where it strikes, whom, how often, and what happens. The first rule that applies wins. A
// rule that answers nothing (Delay or Drip alone) only slows the ordinary reply.
type Rule struct {
	ID   int    `json:"id,omitempty"`   // given by the sandbox
	Name string `json:"name,omitempty"` // free, or the preset it came from

	Stage       Stage   `json:"stage,omitempty"`
	Mailbox     string  `json:"mailbox,omitempty"`     // only sessions of this login ("a@b", "*@b"); never true before AUTH; at token and authorize: of this user
	Recipient   string  `json:"recipient,omitempty"`   // only this recipient; from data on: messages that have it
	App         string  `json:"app,omitempty"`         // only this client id; from token and auth on
	Grant       string  `json:"grant,omitempty"`       // only this kind of token request: client_credentials, refresh_token, ...
	Skip        int     `json:"skip,omitempty"`        // spare the first n occasions
	Count       int     `json:"count,omitempty"`       // strike n times; 0 is always
	Probability float64 `json:"probability,omitempty"` // strike with this probability; 0 is always

	Delay     Duration `json:"delay,omitempty"`     // wait before anything else
	Drip      Duration `json:"drip,omitempty"`      // write the reply one byte each so often
	Reply     string   `json:"reply,omitempty"`     // answer with this; lines end in \n; {server} is the bracketed name
	Raw       string   `json:"raw,omitempty"`       // answer with exactly these bytes
	Repeat    bool     `json:"repeat,omitempty"`    // ... for ever
	Blackhole bool     `json:"blackhole,omitempty"` // read and answer nothing more
	Close     string   `json:"close,omitempty"`     // "fin" or "rst": end the connection after the above
	Deliver   bool     `json:"deliver,omitempty"`   // at dot: keep the message first, whatever is answered
	After     int64    `json:"after,omitempty"`     // at body: strike after so many bytes

	Hide        []string `json:"hide,omitempty"`        // at ehlo: keywords not offered
	Certificate string   `json:"certificate,omitempty"` // at tls: expired, self-signed or wrong-name
	OldTLS      bool     `json:"old_tls,omitempty"`     // at tls: speak nothing newer than TLS 1.0

	Status     int `json:"status,omitempty"`      // at token: the HTTP status; Raw is the body
	RetryAfter int `json:"retry_after,omitempty"` // at token: seconds in Retry-After
	AADSTS     int `json:"aadsts,omitempty"`      // at token: Entra's JSON error with this number

	Fired int `json:"fired,omitempty"` // times it has struck; kept by the sandbox
}

func (r *Rule) validate() error {
	if r.Stage != "" && !slices.Contains(stages(), r.Stage) {
		return fmt.Errorf("stage %q is not one of %v", r.Stage, stages())
	}
	if r.Probability < 0 || r.Probability > 1 {
		return fmt.Errorf("probability %v is not between 0 and 1", r.Probability)
	}
	if r.Close != "" && r.Close != "fin" && r.Close != "rst" {
		return fmt.Errorf("close %q is not fin or rst", r.Close)
	}
	if !slices.Contains([]string{CertGood, CertExpired, CertSelfSigned, CertWrongName}, r.Certificate) {
		return fmt.Errorf("certificate %q is not %s, %s or %s", r.Certificate, CertExpired, CertSelfSigned, CertWrongName)
	}
	if r.Reply != "" && r.Code() == 0 {
		return fmt.Errorf("reply %q does not begin with a code", r.Reply)
	}
	answers := r.Reply != "" || r.Raw != "" || r.Blackhole || r.Close != "" || r.Delay > 0 || r.Drip > 0
	var fits bool
	switch r.Stage {
	case StageTLS:
		fits = answers || r.Certificate != "" || r.OldTLS
	case StageToken, StageAuthorize:
		fits = answers || r.Status != 0 || r.AADSTS != 0
	case StageEHLO:
		fits = answers || len(r.Hide) > 0
	default:
		fits = answers
	}
	if !fits {
		return errors.New("the rule does nothing at its stage")
	}
	return nil
}

// Code is the reply's three digits, 0 if it does not begin with any.
func (r *Rule) Code() int {
	if len(r.Reply) < 4 || r.Reply[0] < '2' || r.Reply[0] > '5' {
		return 0
	}
	n, err := strconv.Atoi(r.Reply[:3])
	if err != nil {
		return 0
	}
	return n
}

// Occasion is what is known when a rule is looked for.
type Occasion struct {
	Stage      Stage
	Login, App string // "" before they are known
	Grant      string // the kind of a token request
	Recipients []string
}

func (r *Rule) applies(o Occasion) bool {
	if r.Stage != o.Stage {
		command := o.Stage != StageConnect && o.Stage != StageTLS && o.Stage != StageBody && o.Stage != StageToken &&
			o.Stage != StageAuthorize
		if r.Stage != "" || !command {
			return false
		}
	}
	if r.Mailbox != "" && !wire.Matches(r.Mailbox, o.Login) || r.App != "" && !strings.EqualFold(r.App, o.App) ||
		r.Grant != "" && r.Grant != o.Grant {
		return false
	}
	return r.Recipient == "" || slices.ContainsFunc(o.Recipients, func(a string) bool { return wire.Matches(r.Recipient, a) })
}

// List is the rules in force. Its zero value is empty; its methods may be called from any goroutine.
type List struct {
	active atomic.Int32 // len(rules), so that a sandbox without faults takes no lock

	mu     sync.Mutex // guards what follows
	rules  []*activeRule
	lastID int
}

type activeRule struct {
	Rule
	spared int
}

// Add puts a rule in force behind the others and returns its id. An unusable rule is an error.
func (f *List) Add(r Rule) (int, error) {
	if err := r.validate(); err != nil {
		return 0, fmt.Errorf("fault rule: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastID++
	r.ID, r.Fired = f.lastID, 0
	f.rules = append(f.rules, &activeRule{Rule: r})
	f.active.Store(int32(len(f.rules)))
	return r.ID, nil
}

// List returns the rules with the number of times each has fired.
func (f *List) List() []Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	rules := make([]Rule, len(f.rules))
	for i, r := range f.rules {
		rules[i] = r.Rule
	}
	return rules
}

// Remove ends the rule with that id and reports whether there was one.
func (f *List) Remove(id int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.rules)
	f.rules = slices.DeleteFunc(f.rules, func(r *activeRule) bool { return r.ID == id })
	f.active.Store(int32(len(f.rules)))
	return len(f.rules) < before
}

// Clear ends every rule.
func (f *List) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
	f.active.Store(0)
}

// Due returns the rule that strikes on this occasion, and counts it.
func (f *List) Due(o Occasion) (Rule, bool) {
	if f.active.Load() == 0 {
		return Rule{}, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if !r.applies(o) || r.Count > 0 && r.Fired >= r.Count {
			continue
		}
		if r.spared < r.Skip {
			r.spared++
			continue
		}
		if r.Probability > 0 && rand.Float64() >= r.Probability {
			continue
		}
		r.Fired++
		return r.Rule, true
	}
	return Rule{}, false
}

// Sleep waits for d and reports whether ctx let it.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
