// Package postmaster decides what relayd itself writes, and puts it into the queue: notifications to the senders of mail
// that failed or waits, notices to operators of mailboxes that cannot send, a digest of what failed, and whatever else other
// parts have operators told ([Postmaster.Notice]).
//
// Nothing it writes may come back and be written about again, and no fault of the far end may turn into a flood of mail:
//
//	null reverse-path                     nobody is told (RFC 5321, section 4.5.5)
//	reverse-path is the postmaster's      nobody is told
//	relayd's own mail (Intake)            nobody is told; it has a null reverse-path and NOTIFY=NEVER besides
//	Auto-Submitted: auto-replied          nobody is told: an answer to mail, perhaps another relay's notification
//	Auto-Submitted: auto-generated        is told of: a cron job has a person behind it (RFC 3834 speaks of answers only)
//	10 notifications to one address       no more within an hour of the first; the digest counts them
//	PerHour mails of all kinds            the same, a few places being kept for operators
//
// What relayd writes goes by an ordinary sender, the postmaster. Where that sender, or its tenant, is parked, it waits in the
// queue like all other mail of that sender: a notice that everything is parked then arrives with the cure. The log, the
// metrics and the page know at once.
//
// A notification is in the queue when Bounce returns; its id is derived from the message's, so that writing it again while
// it is queued writes it once. Notices not yet written (some seconds' worth of parks, an hour's of failures) live in memory: a
// stop in good order writes them, kill -9 loses them, and the log has them all.
package postmaster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"relayd/pkg/bounce"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Intake is the intake of what relayd itself writes, as in [envelope.Envelope].
const Intake = "postmaster"

// Words of Settings.Modes.
const (
	ModeDSN    = "dsn"    // delivery status notifications to the reverse-path
	ModeNotify = "notify" // notices and digest to operators
)

// Settings may change while relayd runs.
type Settings struct {
	Modes    []string           // ModeDSN, ModeNotify; other words mean nothing here. Empty: nothing is written
	From     envelope.Address   // the postmaster, a configured sender; empty: nothing is written
	Notify   []envelope.Address // operators; empty: no notices
	PerHour  int                // mails of all kinds in any hour; 0: 100
	Hostname string             // this relay's name
}

func (s *Settings) notifies() bool {
	return slices.Contains(s.Modes, ModeNotify) && s.From != "" && len(s.Notify) > 0
}

// reserve is how many of the hour's mails are kept for operators.
func (s *Settings) reserve() int {
	if !s.notifies() {
		return 0
	}
	return min(5, s.PerHour/2)
}

// Queue is where mail goes.
type Queue interface {
	// Put stores a message durably. An id that is queued already is no second message. Errors: temporary ones, and those
	// whose status is permanent, which say that this message will never be taken.
	Put(ctx context.Context, env *envelope.Envelope, body io.Reader) error
}

// Options of a Postmaster; Queue, Logger and Registerer are required.
type Options struct {
	Settings
	Queue  Queue
	Server func(sender envelope.Address) string // host the sender's mail is handed to, for Remote-MTA; nil: not told
	Advice func(rule string) string             // what an operator can do where that row of the catalogue decided; nil: nothing

	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

// composing is how many notifications are composed at once. Each holds a returned message, of bounce.MaxWhole at most, a few
// times over.
const composing = 4

// perAddress is how many notifications one address gets in any hour, where a digest tells operators of the others.
const perAddress = 10

// Postmaster writes relayd's own mail. All its methods may be called at once.
type Postmaster struct {
	opts    Options
	log     *zap.Logger
	metrics *metrics
	slots   chan struct{} // held while composing
	wake    chan struct{} // Run is to look again

	mu      sync.Mutex // guards all below
	set     Settings
	written window
	parks   parks
	digest  digest
	rest    time.Time // no notice before this, after one that could not be written
}

// New returns a postmaster that writes notifications at once, and notices once Run runs.
func New(opts Options) *Postmaster {
	p := &Postmaster{
		opts: opts, log: opts.Logger, metrics: newMetrics(opts.Registerer), slots: make(chan struct{}, composing), wake: make(chan struct{}, 1),
	}
	p.Configure(opts.Settings)
	return p
}

// Configure replaces the settings. What is noted for operators is dropped where they are no longer to be told.
func (p *Postmaster) Configure(s Settings) {
	if s.PerHour <= 0 {
		s.PerHour = 100
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set = s
	if !s.notifies() {
		p.parks, p.digest = parks{}, digest{}
	}
}

func (p *Postmaster) settings() Settings {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.set
}

// Bounce has the message's sender told that the recipients with the given indices failed, and notes them for the digest.
// It returns the id of the notification; "" where there is nobody to tell, or something is against it. An error says that it
// could not be stored now: ask again.
func (p *Postmaster) Bounce(ctx context.Context, claim *envelope.Claim, progress *envelope.Progress, failed []int) (written envelope.ID, err error) {
	n := notification{kind: kindFailure, claim: claim, progress: progress, about: bounce.FailureWanted(claim.Envelope, failed), compose: bounce.Failure}
	if written, err = p.tell(ctx, &n); err != nil {
		return "", err
	}
	p.noteFailed(claim.Envelope, progress, failed)
	return written, nil
}

// Delay has the message's sender told that the recipients with the given indices still wait, and until when they are
// tried. It returns what Bounce does.
func (p *Postmaster) Delay(ctx context.Context, claim *envelope.Claim, progress *envelope.Progress, open []int, until time.Time) (written envelope.ID, err error) {
	return p.tell(ctx, &notification{
		kind: kindDelay, claim: claim, progress: progress, about: bounce.DelayWanted(claim.Envelope, open), until: until, compose: bounce.Delay,
	})
}

// notification is one that may have to be written.
type notification struct {
	kind     kind
	claim    *envelope.Claim
	progress *envelope.Progress
	about    []int // recipients who want it
	until    time.Time
	compose  func(*bounce.Report) (*bounce.Mail, error)
}

// label tells notifications about one message apart.
func (n *notification) label() string {
	b := []byte(n.kind)
	for _, i := range n.about {
		b = strconv.AppendInt(append(b, ' '), int64(i), 10)
	}
	return string(b)
}

// tell writes a notification, unless something in the package comment's table is against it, and returns its id or "".
func (p *Postmaster) tell(ctx context.Context, n *notification) (envelope.ID, error) {
	env, set := n.claim.Envelope, p.settings()
	if !slices.Contains(set.Modes, ModeDSN) || set.From == "" || env.ReversePath == "" || len(n.about) == 0 {
		return "", nil
	}
	if env.Intake == Intake {
		p.suppress(n, "the mail is relayd's own")
		return "", nil
	}
	if env.ReversePath.Key() == set.From.Key() {
		p.suppress(n, "the reverse-path is the postmaster's own")
		return "", nil
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return "", fmt.Errorf("write notification: %w", ctx.Err())
	}
	place, why := p.admit(env.ReversePath)
	if place == nil {
		p.suppress(n, why)
		return "", nil
	}
	written, err := p.write(ctx, n, &set)
	if written == "" {
		p.mu.Lock()
		p.written.giveBack(place)
		p.mu.Unlock()
	}
	return written, err
}

// admit takes a place of the hour's for a notification to that address, or says why there is none; that counts for the digest.
func (p *Postmaster) admit(to envelope.Address) (place *entry, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.written.trim(now)
	switch {
	case len(p.written.entries) >= p.set.PerHour-p.set.reserve():
		why = "relayd has written too many mails within the hour"
	case p.set.notifies() && p.written.to(to) >= perAddress: // without operators, nobody would read of the others
		why = "the address has got too many notifications within the hour"
	default:
		return p.written.take(now, to), ""
	}
	if p.set.notifies() {
		p.digest.begin(now)
		p.digest.suppressed++
		p.nudge()
	}
	return nil, why
}

// write composes and stores a notification. It returns its id when it is in the queue; an error is worth asking again.
func (p *Postmaster) write(ctx context.Context, n *notification, set *Settings) (envelope.ID, error) {
	env := n.claim.Envelope
	original, err := p.original(ctx, n.claim)
	if err != nil {
		return "", err
	}
	if original != nil && original.AutoReplied() {
		p.suppress(n, "the mail is itself an answer to mail")
		return "", nil
	}
	now := time.Now()
	report := &bounce.Report{
		Letter: bounce.Letter{ID: env.ID.Derived(n.label()), Hostname: set.Hostname, From: set.From, To: []envelope.Address{env.ReversePath}, Date: now},
		Until:  n.until, Original: original, Envelope: env, Progress: n.progress, About: n.about,
	}
	if p.opts.Server != nil {
		report.Server = p.opts.Server(env.Sender)
	}
	mail, err := n.compose(report)
	if err != nil {
		p.metrics.of(n.kind, resultError).Inc()
		p.log.Error("notification could not be composed, and is not written", n.fields(zap.Error(err))...)
		return "", nil
	}
	if err := p.put(ctx, n.kind, &report.Letter, mail); err != nil {
		if !status.From(err).Temporary() {
			p.log.Error("notification is not taken by the queue, and not written", n.fields(zap.Error(err))...)
			return "", nil
		}
		return "", fmt.Errorf("store notification: %w", err)
	}
	p.log.Info("sender told", n.fields(zap.String("notification", string(report.ID)))...)
	return report.ID, nil
}

// original reads what is returned of the message. One that cannot be read is not returned: if it is the storage that fails,
// the notification cannot be stored either, and is asked for again.
func (p *Postmaster) original(ctx context.Context, claim *envelope.Claim) (*bounce.Original, error) {
	if claim.Body == nil {
		return nil, nil //nolint:nilnil // there is none to return
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	original, err := bounce.ReadOriginal(claim.Envelope, claim.Body(reading))
	if err == nil {
		return original, nil
	}
	if ctx.Err() != nil {
		return nil, err
	}
	p.log.Warn("message cannot be returned with its notification", zap.String("id", string(claim.Envelope.ID)), zap.Error(err))
	return nil, nil //nolint:nilnil // likewise
}

// put stores a mail of relayd's own, and counts it.
func (p *Postmaster) put(ctx context.Context, k kind, l *bounce.Letter, mail *bounce.Mail) error {
	env := &envelope.Envelope{
		ID: l.ID, Received: l.Date, Intake: Intake, Sender: l.From, MessageID: mail.MessageID, EightBit: mail.EightBit, SMTPUTF8: mail.SMTPUTF8,
	}
	for _, to := range l.To {
		env.Recipients = append(env.Recipients, envelope.Recipient{Address: to, Notify: "NEVER"})
	}
	err := p.opts.Queue.Put(ctx, env, bytes.NewReader(mail.Text))
	if err != nil {
		p.metrics.of(k, resultError).Inc()
		return err
	}
	p.metrics.of(k, resultSent).Inc()
	return nil
}

// suppress counts and logs a notification that is not written.
func (p *Postmaster) suppress(n *notification, why string) {
	p.metrics.of(n.kind, resultSuppressed).Inc()
	p.log.Info("sender not told", n.fields(zap.String("reason", why))...)
}

func (n *notification) fields(more ...zap.Field) []zap.Field {
	env := n.claim.Envelope
	return append([]zap.Field{
		zap.String("id", string(env.ID)), zap.String("sender", string(env.Sender)), zap.String("kind", string(n.kind)),
		zap.Int("recipients", len(n.about)),
	}, more...)
}
