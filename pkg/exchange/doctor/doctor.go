// Package doctor walks the way of a message to Exchange Online, step by step and without a message: name, connection,
// STARTTLS, token, AUTH, MAIL, RCPT, RSET. It says of each step what was found and, where one fails, what is wrong and
// what to change.
//
// It needs the configuration's words for one sender and no running relay, keeps nothing, and stops before DATA: Exchange
// Online is never given anything to send. Neither the access token nor a part of it is ever in a report. Every wait is
// bounded, and so is everything that is read.
package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/exchange/doctor/diagnosis"
	"relayd/pkg/status"
)

// State is how a step went, in the words of the report.
type State string

// The states. A warning does not keep mail from flowing, or not for certain.
const (
	OK      State = "ok"
	Warning State = "warn"
	Failed  State = "fail"
	Skipped State = "skip"
)

// Step is one line of a report.
type Step struct {
	Name   string // one of Names
	State  State
	Detail string        // what was found, one line
	Took   time.Duration // 0: nothing was waited for
	Cause  string        // what is wrong, for a person; empty where nothing is, or it is not known
	Advice string        // what to change; may have more than one line
	Error  *status.Error // what a failed step came to; nil for any other
}

// Names returns the names of all steps in their order. Each is in every report, once.
func Names() []string {
	return []string{"config", "hostname", "credential", "clock", "dns", "tcp", "starttls", "token", "auth", "mail", "rcpt", "rset"}
}

// MarshalJSON writes the step as relayd doctor --json documents it.
func (s Step) MarshalJSON() ([]byte, error) {
	type failure struct {
		Stage    status.Stage `json:"stage"`
		Code     int          `json:"code"`
		Enhanced string       `json:"enhanced,omitempty"`
		Text     string       `json:"text"`
		Action   string       `json:"action"`
		Rule     string       `json:"rule,omitempty"`
	}
	out := struct {
		Step   string   `json:"step"`
		Result State    `json:"result"`
		Detail string   `json:"detail"`
		TookMS float64  `json:"took_ms"`
		Cause  string   `json:"cause,omitempty"`
		Advice string   `json:"advice,omitempty"`
		Error  *failure `json:"error,omitempty"`
	}{s.Name, s.State, s.Detail, milliseconds(s.Took), s.Cause, s.Advice, nil}
	if e := s.Error; e != nil {
		out.Error = &failure{e.Stage, e.Code, e.Enhanced.String(), e.Text, e.Action.String(), e.Rule}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false) // addresses stand in angle brackets
	err := encoder.Encode(out)
	return b.Bytes(), err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Report is what the examination of one sender found.
type Report struct {
	Sender    envelope.Address `json:"sender"`
	Tenant    string           `json:"tenant"`
	Login     envelope.Address `json:"login"`
	Server    string           `json:"server"`
	Recipient envelope.Address `json:"recipient"`
	Result    State            `json:"result"` // the worst of its steps', where skip counts as nothing
	Steps     []Step           `json:"steps"`
	Remark    string           `json:"remark,omitempty"` // what no step can tell; only where none failed
}

// Timeouts are the longest waits for one step. A zero field takes its default; they are shorter than those of a
// delivery, for a person is waiting.
type Timeouts struct {
	Resolve time.Duration // DNS; 0: 10 s
	Connect time.Duration // TCP; 0: 10 s
	Token   time.Duration // Entra ID; 0: 30 s
	Clock   time.Duration // the time of Entra ID; 0: 5 s
	Command time.Duration // each SMTP command's whole reply, and the TLS handshake; 0: 30 s
}

// Token is an access token and what was asked for.
type Token struct {
	Value   string
	Expires time.Time // by this machine's clock; zero: not said
}

// Resolver looks names up; *net.Resolver is one.
type Resolver interface {
	// LookupNetIP returns the addresses of host; network is "ip". Errors are *net.DNSError as a rule.
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Options says whom to examine. Hostname, Server, Route and Token are required.
type Options struct {
	Hostname  string           // for EHLO
	Server    string           // host:port; the certificate must name the host
	RootCAs   *x509.CertPool   // nil: the system's
	Route     envelope.Route   // Tenant and Login are used
	Sender    envelope.Address // whose mail it is about; empty: Route.Login
	Recipient envelope.Address // for RCPT; empty: Sender

	Token        func(ctx context.Context) (Token, error) // errors are *status.Error
	Registration diagnosis.Registration

	Warnings []string  // what the configuration's own check says about this sender and its tenant
	Expires  time.Time // of the client secret, as the configuration says; zero: not said
	// Clock says by how much Entra ID's clock is ahead of this machine's; nil: not asked. See [HTTPClock].
	Clock func(ctx context.Context) (time.Duration, error)
	// Catalogue says what a reply means; nil: relayd's own rows.
	Catalogue *catalogue.Catalogue
	// Progress is told of each step when it is done; nil: nobody is.
	Progress func(Step)

	Resolver Resolver // nil: net.DefaultResolver
	// Dial opens the connection; nil: a net.Dialer.
	Dial     func(ctx context.Context, network, address string) (net.Conn, error)
	Timeouts Timeouts
}

func (o Options) withDefaults() Options {
	if o.Sender == "" {
		o.Sender = o.Route.Login
	}
	if o.Recipient == "" {
		o.Recipient = o.Sender
	}
	if o.Catalogue == nil {
		o.Catalogue = catalogue.Default()
	}
	if o.Progress == nil {
		o.Progress = func(Step) {}
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	t := &o.Timeouts
	for _, d := range []struct {
		value *time.Duration
		zero  time.Duration
	}{
		{&t.Resolve, 10 * time.Second}, {&t.Connect, 10 * time.Second}, {&t.Token, 30 * time.Second},
		{&t.Clock, 5 * time.Second}, {&t.Command, 30 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	return o
}

// exam is an examination under way.
type exam struct {
	Options
	host     string
	conn     net.Conn // closed by Examine
	dialogue *dialogue
	token    string
	doubt    string            // the cause of the token step's warning
	values   map[string]string // what stands for the words in angle brackets of an advice
}

// Examine walks all steps. Behind the first that fails the others are skipped. The end of ctx fails the step under way.
func Examine(ctx context.Context, options Options) Report {
	x := &exam{Options: options.withDefaults()}
	x.values = map[string]string{
		"<mailbox>": string(x.Route.Login), "<login-mailbox>": string(x.Route.Login), "<from-mailbox>": string(x.Sender),
		"<application-id>": x.Registration.ClientID,
	}
	x.host, _, _ = net.SplitHostPort(x.Server) // an error leaves no host, and the dns step says so
	defer func() {
		if x.dialogue != nil {
			x.dialogue.quit()
		}
		if x.conn != nil {
			x.conn.Close()
		}
	}()
	r := Report{Sender: x.Sender, Tenant: x.Route.Tenant, Login: x.Route.Login, Server: x.Server, Recipient: x.Recipient, Result: OK}
	walk := []func(context.Context) Step{
		x.config, x.hostname, x.credential, x.clock, x.resolve, x.connect, x.startTLS, x.fetchToken, x.auth, x.mail, x.rcpt, x.rset,
	}
	for i, name := range Names() {
		step := Step{State: Skipped}
		if r.Result != Failed {
			started := time.Now()
			step = walk[i](ctx)
			if i >= 3 { // the first three look at the configuration only
				step.Took = time.Since(started)
			}
		}
		step.Name = name
		x.finish(ctx, &step)
		switch {
		case step.State == Failed, step.State == Warning && r.Result == OK:
			r.Result = step.State
		}
		r.Steps = append(r.Steps, step)
		x.Progress(step)
	}
	if r.Result != Failed {
		r.Remark = x.remark()
	}
	return r
}

// finish makes a step fit to be shown: explained, escaped and without any part of the token.
func (x *exam) finish(ctx context.Context, s *Step) {
	if s.State == Failed && ctx.Err() != nil {
		s.Detail, s.Cause, s.Advice = "interrupted", "", ""
	}
	clean := escape
	if x.token != "" {
		sent := credential(x.Route.Login, x.token)
		clean = func(text string) string { return escape(withhold(withhold(text, x.token), sent)) }
	}
	s.Detail, s.Cause = clean(s.Detail), clean(s.Cause)
	lines := strings.Split(strings.TrimSpace(s.Advice), "\n")
	for i := range lines {
		lines[i] = clean(fill(lines[i], x.values))
	}
	s.Advice = strings.Join(lines, "\n")
	if s.Error != nil {
		e := *s.Error
		e.Text, e.Err = clean(e.Text), nil
		s.Error = &e
	}
}

// failed makes a step of an error. Its cause and advice are the catalogue's, unless the caller knows better.
func failed(e *status.Error, cause, advice string) Step {
	if cause == "" {
		cause = e.Cause
	}
	if advice == "" {
		advice = e.Advice
	}
	if inSession := e.Stage == status.StageAuth || e.Stage == status.StageMail || e.Stage == status.StageRcpt; cause == "" && inSession && e.Err != nil {
		cause = "Exchange Online, or something on the way, fell silent or cut the connection in the middle of the session"
		advice = "Run it again. If it stays so, look for a firewall or proxy on the way that ends connections, and at status.cloud.microsoft"
	}
	detail := *e
	detail.Stage = "" // the step has a name of its own
	text := detail.Error()
	if e.Rule == "" || e.Stage == status.StageToken { // the code is ours, not the server's
		text = e.Text
	}
	return Step{State: Failed, Detail: text, Cause: cause, Advice: advice, Error: e}
}

// unreachable makes a step of a server that could not be spoken to at all.
func unreachable(enhanced status.Enhanced, f diagnosis.Finding) Step {
	e := &status.Error{Code: 451, Enhanced: enhanced, Stage: status.StageConnect, Text: f.Text}
	return failed(e, f.Cause, f.Advice)
}

func (x *exam) config(context.Context) Step {
	s := Step{State: OK, Detail: fmt.Sprintf("tenant %s, login %s, server %s", x.Route.Tenant, x.Route.Login, x.Server)}
	if x.Route.Login != x.Sender {
		s.Detail = fmt.Sprintf("tenant %s, login %s for sender %s, server %s", x.Route.Tenant, x.Route.Login, x.Sender, x.Server)
	}
	if len(x.Warnings) > 0 {
		s.State, s.Cause = Warning, strings.Join(x.Warnings, "; ")
	}
	return s
}

// hostname judges the name for EHLO: Exchange Online has refused names without a dot, and Microsoft's own.
func (x *exam) hostname(context.Context) Step {
	name := strings.ToLower(strings.TrimSuffix(x.Hostname, "."))
	const advice = "Set hostname in the configuration to this machine's full name, such as relay.contoso.com"
	_, notIP := netip.ParseAddr(name)
	switch {
	case !strings.Contains(name, "."):
		return Step{State: Warning, Detail: x.Hostname + " is not a fully qualified domain name", Advice: advice,
			Cause: "Exchange Online may refuse such a name in EHLO: 501 5.5.4 Invalid domain name"}
	case notIP == nil:
		return Step{State: Warning, Detail: x.Hostname + " is an IP address", Advice: advice, Cause: "EHLO wants a domain name, and Exchange Online may insist"}
	}
	for _, theirs := range []string{".outlook.com", ".office365.com", ".microsoft.com", ".office365.us"} {
		if strings.HasSuffix("."+name, theirs) {
			return Step{State: Warning, Detail: x.Hostname + " is a name of Microsoft's", Advice: advice,
				Cause: "Exchange Online refuses it from anybody else: 5.7.506 Access Denied, Bad HELO"}
		}
	}
	return Step{State: OK, Detail: x.Hostname}
}

// expiresSoon is how long before its end a client secret is warned of.
const expiresSoon = 30 * 24 * time.Hour

func (x *exam) credential(context.Context) Step {
	const advice = "Microsoft Entra admin center > App registrations > the app > Certificates & secrets > New client secret; " +
		"put its value where client_secret refers to, and its end in credential_expires"
	left := time.Until(x.Expires)
	day := x.Expires.Format(time.DateOnly)
	switch {
	case x.Expires.IsZero():
		return Step{State: Skipped, Detail: "credential_expires is not set, so nothing can warn before the client secret expires"}
	case left <= 0:
		return Step{State: Warning, Detail: "the client secret expired on " + day, Advice: advice,
			Cause: "credential_expires says so; once the secret has expired, Entra ID gives no token and every sender of the tenant stops"}
	case left < expiresSoon:
		return Step{State: Warning, Detail: fmt.Sprintf("the client secret expires on %s, %s", day, "in "+diagnosis.Roughly(left)), Advice: advice,
			Cause: "from that day on Entra ID gives no token, and every sender of the tenant stops"}
	}
	return Step{State: OK, Detail: fmt.Sprintf("the client secret expires on %s, %s", day, "in "+diagnosis.Roughly(left))}
}

func (x *exam) resolve(ctx context.Context) Step {
	if x.host == "" {
		return unreachable(status.Enhanced{4, 4, 4}, diagnosis.Finding{Text: "the server is not host:port",
			Advice: "Correct smtp_server of the tenant; without it the cloud's own is used"})
	}
	if _, err := netip.ParseAddr(x.host); err == nil {
		return Step{State: OK, Detail: x.host + " is an address, nothing to resolve"}
	}
	ctx, cancel := context.WithTimeout(ctx, x.Timeouts.Resolve)
	defer cancel()
	found, err := x.Resolver.LookupNetIP(ctx, "ip", x.host)
	if err == nil && len(found) == 0 {
		err = &net.DNSError{Err: "no such host", Name: x.host, IsNotFound: true}
	}
	if err != nil {
		return unreachable(status.Enhanced{4, 4, 3}, diagnosis.DNS(x.host, err))
	}
	const most = 8
	var names []string
	for _, ip := range found[:min(len(found), most)] {
		names = append(names, ip.Unmap().String())
	}
	if len(found) > most {
		names = append(names, fmt.Sprintf("%d more", len(found)-most))
	}
	return Step{State: OK, Detail: x.host + " → " + strings.Join(names, ", ")}
}

func (x *exam) connect(ctx context.Context) Step {
	dialing, cancel := context.WithTimeout(ctx, x.Timeouts.Connect)
	defer cancel()
	started := time.Now()
	conn, err := x.Dial(dialing, "tcp", x.Server)
	if err != nil {
		return unreachable(status.Enhanced{4, 4, 1}, diagnosis.Dial(x.Server, x.Timeouts.Connect, err))
	}
	x.conn = conn
	x.dialogue = newDialogue(conn, x.Hostname, x.Timeouts.Command, x.Catalogue)
	return Step{State: OK, Detail: fmt.Sprintf("connected to %s in %s", conn.RemoteAddr(), time.Since(started).Round(100*time.Microsecond))}
}

// watch breaks the connection should ctx end while the step goes on.
func (x *exam) watch(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { x.conn.Close() })
}

func (x *exam) startTLS(ctx context.Context) Step {
	defer x.watch(ctx)()
	d := x.dialogue
	e := d.greet()
	if e == nil {
		e = d.hello()
	}
	if e != nil {
		return explainGreeting(e)
	}
	state, e := d.secure(ctx, &tls.Config{ServerName: x.host, RootCAs: x.RootCAs, MinVersion: tls.VersionTLS12})
	if e == nil {
		e = d.hello()
	}
	if e != nil {
		return explainSTARTTLS(e, x.host, time.Now())
	}
	return Step{State: OK, Detail: diagnosis.Session(x.host, state)}
}

func (x *exam) fetchToken(ctx context.Context) Step {
	ctx, cancel := context.WithTimeout(ctx, x.Timeouts.Token)
	defer cancel()
	token, err := x.Token(ctx)
	if err != nil {
		return explainToken(err)
	}
	x.token = token.Value
	f := diagnosis.Token(token.Value, token.Expires, x.Registration, x.Route.Login, time.Now())
	x.values["<object-id>"] = diagnosis.ObjectID(token.Value)
	if f.Cause == "" {
		return Step{State: OK, Detail: f.Text}
	}
	x.doubt = f.Cause
	return Step{State: Warning, Detail: f.Text, Cause: f.Cause, Advice: f.Advice}
}

func (x *exam) auth(ctx context.Context) Step {
	defer x.watch(ctx)()
	switch login := x.Route.Login; {
	case !sendable(login):
		e := &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageAuth, Action: status.ParkSender,
			Text: "the login is not a mailbox"}
		return failed(e, "", "Correct login of the sender in the configuration")
	case !x.dialogue.offers("AUTH", "XOAUTH2"):
		e := &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: status.StageAuth, Text: "XOAUTH2 is not offered"}
		return failed(e, "what answers does not offer XOAUTH2, which Exchange Online's submission service always does",
			"Check smtp_server of the tenant: smtp.office365.com:587, not an MX host")
	}
	said, e := x.dialogue.authenticate(x.Route.Login, x.token)
	if e == nil {
		return Step{State: OK, Detail: fmt.Sprintf("as %s: %s", x.Route.Login, said)}
	}
	s := failed(e, "", "")
	if x.doubt != "" {
		s.Cause = strings.TrimPrefix(s.Cause+"; of the token was said above: "+x.doubt, "; ")
	}
	return s
}

func (x *exam) mail(ctx context.Context) Step {
	defer x.watch(ctx)()
	parameter := ""
	if !x.Route.Login.ASCII() || !x.Recipient.ASCII() {
		parameter = " SMTPUTF8"
		if !x.dialogue.offers("SMTPUTF8", "") {
			e := &status.Error{Code: 553, Enhanced: status.Enhanced{5, 6, 7}, Stage: status.StageMail, Action: status.Fail,
				Text: "SMTPUTF8 is not offered, which the addresses need"}
			return failed(e, "", "Use addresses of ASCII characters")
		}
	}
	return x.command(status.StageMail, fmt.Sprintf("MAIL FROM:<%s>%s", x.Route.Login, parameter))
}

func (x *exam) rcpt(ctx context.Context) Step {
	defer x.watch(ctx)()
	if !sendable(x.Recipient) {
		e := &status.Error{Code: 553, Enhanced: status.Enhanced{5, 1, 3}, Stage: status.StageRcpt, Action: status.Fail,
			Text: "the recipient's address cannot be sent"}
		return failed(e, "", "Name another recipient with --to")
	}
	return x.command(status.StageRcpt, fmt.Sprintf("RCPT TO:<%s>", x.Recipient))
}

func (x *exam) rset(ctx context.Context) Step {
	defer x.watch(ctx)()
	return x.command(status.StageRcpt, "RSET")
}

// command runs one that is to be answered by 2yz.
func (x *exam) command(stage status.Stage, line string) Step {
	said, e := x.dialogue.command(stage, line)
	if e != nil {
		s := failed(e, "", "")
		s.Detail = line + ": " + s.Detail
		return s
	}
	return Step{State: OK, Detail: line + ": " + said.String()}
}

// remark says what no examination short of a message can.
func (x *exam) remark() string {
	try := fmt.Sprintf("relayd send --from %s --to %s", x.Sender, x.Recipient)
	if x.Sender.Key() == x.Route.Login.Key() {
		return "What Exchange Online thinks of a message's From, size and content it says only once it has the message: " + try
	}
	return fmt.Sprintf("That %s may send as %s (Send As) Exchange Online says only once it has a message: %s", x.Route.Login, x.Sender, try)
}
