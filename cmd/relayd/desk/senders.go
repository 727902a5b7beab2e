package desk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/cmd/relayd/registry"
	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/config"
	"relayd/pkg/dispatch"
	"relayd/pkg/entra/grant"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

const (
	defaultSenders = 100
	mostSenders    = 1000
)

// mailboxKey names a mailbox: a tenant and a login.
type mailboxKey struct{ tenant, login string }

func keyOf(tenant, login string) mailboxKey { return mailboxKey{tenant, strings.ToLower(login)} }

// scene is what all senders are looked at with.
type scene struct {
	tenants map[string]*config.Tenant
	boxes   map[mailboxKey]dispatch.Mailbox
	domains map[mailboxKey][]dispatch.Mailbox // by tenant and domain of the login
	grants  map[mailboxKey]grant.Grant
	waiting map[string]waiting // by rule, in lower case
	paused  map[string]registry.Pause
	logins  map[mailboxKey][]string  // rules that go by the mailbox
	stops   map[string]dispatch.Stop // of whole tenants
	expires map[string]time.Time     // of the tenants' own access tokens
}

type waiting struct {
	messages int
	oldest   time.Time
}

func (d *Desk) scene(ctx context.Context, x *config.Extended) (*scene, error) {
	s := &scene{
		tenants: map[string]*config.Tenant{}, boxes: map[mailboxKey]dispatch.Mailbox{}, domains: map[mailboxKey][]dispatch.Mailbox{},
		grants: map[mailboxKey]grant.Grant{}, waiting: map[string]waiting{}, paused: d.opts.Registry.Content().Pauses, logins: map[mailboxKey][]string{},
		expires: map[string]time.Time{},
	}
	for i := range x.Tenants {
		t := &x.Tenants[i]
		s.tenants[t.Name] = t
		s.expires[t.Name], _ = d.opts.Tokens.Status(t.Name)
	}
	grants, err := d.opts.Tokens.Grants(ctx) // those that can be read; without one of them its sender shows as not signed in
	if err != nil {
		if len(grants) == 0 {
			return nil, err
		}
		d.log.Error("some consents cannot be read", zap.Error(err))
	}
	for _, g := range grants {
		s.grants[keyOf(g.Tenant, g.Login)] = g
	}
	rules := map[string]bool{}
	for i := range x.Senders {
		sender := &x.Senders[i]
		rules[strings.ToLower(sender.Address+sender.Match)] = true
		if sender.Login != "" {
			k := keyOf(sender.Tenant, sender.Login)
			s.logins[k] = append(s.logins[k], sender.Address+sender.Match)
		}
	}
	boxes := d.opts.Dispatcher.Mailboxes()
	s.stops = tenantStops(boxes)
	for _, box := range boxes {
		s.boxes[keyOf(box.Tenant, box.Login)] = box
		if rules[strings.ToLower(box.Login)] {
			continue // it has an entry of its own
		}
		domain := keyOf(box.Tenant, envelope.Address(box.Login).Domain())
		s.domains[domain] = append(s.domains[domain], box)
	}
	for _, w := range d.opts.Queue.Waiting() {
		rule := w.Sender.Key()
		if !rules[rule] {
			rule = "*@" + strings.ToLower(w.Sender.Domain())
		}
		sum := s.waiting[rule]
		sum.messages += w.Messages
		if !w.Oldest.IsZero() && (sum.oldest.IsZero() || w.Oldest.Before(sum.oldest)) {
			sum.oldest = w.Oldest
		}
		s.waiting[rule] = sum
	}
	return s, nil
}

// senders returns every sender, ordered by what it matches.
func (d *Desk) senders(ctx context.Context) ([]console.Sender, error) {
	x := d.opts.Config()
	scene, err := d.scene(ctx, x)
	if err != nil {
		return nil, err
	}
	list := make([]console.Sender, 0, len(x.Senders))
	for i := range x.Senders {
		s := d.sender(scene, &x.Senders[i])
		s.Origin = console.OriginFile
		if i >= x.SendersOfFile {
			s.Origin = console.OriginPage
		}
		list = append(list, s)
	}
	entered := func(fields config.Fields, state string, problems []config.Problem) {
		list = append(list, enteredSender(fields, state, problems))
	}
	for _, fields := range x.Shadowed.Senders {
		entered(fields, console.SenderShadowed, nil)
	}
	for _, r := range x.Refused {
		if r.Fields["name"] == "" {
			entered(r.Fields, console.SenderParked, r.Problems)
		}
	}
	slices.SortStableFunc(list, func(a, b console.Sender) int {
		return cmp.Compare(strings.ToLower(a.Match), strings.ToLower(b.Match))
	})
	return list, nil
}

// enteredSender shows what was entered and is not in force.
func enteredSender(fields config.Fields, state string, problems []config.Problem) console.Sender {
	number := func(name string) int {
		n, _ := strconv.Atoi(fields[name]) // what is none is told as a problem
		return n
	}
	return console.Sender{
		Match: fields["address"] + fields["match"], Tenant: fields["tenant"], Login: envelope.Address(fields["login"]),
		Fallback: envelope.Address(fields["fallback"]), Connections: number("connections"), MessagesPerMinute: number("messages_per_minute"),
		RecipientsPerDay: number("recipients_per_day"), Origin: console.OriginPage, State: state, Problem: refusedProblem(problems),
	}
}

func (d *Desk) sender(sc *scene, c *config.Sender) console.Sender {
	match := c.Address + c.Match
	s := console.Sender{
		Match: match, Tenant: c.Tenant, Login: envelope.Address(c.Login), State: console.SenderReady, RecipientsPerDay: c.RecipientsPerDay,
		Remaining: c.RecipientsPerDay, Connections: c.Connections, MessagesPerMinute: c.MessagesPerMinute, Fallback: envelope.Address(c.Fallback),
	}
	tenant := sc.tenants[c.Tenant]
	if tenant != nil {
		s.Grant = tenant.Grant
	}
	if s.Grant != "delegated" {
		s.TokenExpires = sc.expires[c.Tenant]
	}
	w := sc.waiting[strings.ToLower(match)]
	s.Queued, s.Oldest = w.messages, w.oldest
	login := cmp.Or(c.Login, c.Address) // "": each address of the domain is a mailbox of its own
	boxes := sc.domains[keyOf(c.Tenant, strings.TrimPrefix(c.Match, "*@"))]
	if login != "" {
		boxes = nil
		if box, ok := sc.boxes[keyOf(c.Tenant, login)]; ok {
			boxes = []dispatch.Mailbox{box}
		}
		for _, other := range sc.logins[keyOf(c.Tenant, login)] {
			if c.Login == "" && !strings.EqualFold(other, match) {
				s.SendAs = append(s.SendAs, other)
			}
		}
	}
	showStops(&s, boxes)
	if stop, stopped := sc.stops[c.Tenant]; stopped && len(boxes) == 0 { // it has sent nothing since the start, and cannot either
		showStop(&s, &stop)
	}
	if s.Grant == "delegated" && login != "" {
		sc.showConsent(&s, login, d.opts.Tokens.Advice)
	}
	if p, ok := sc.paused[strings.ToLower(match)]; ok {
		s.State, s.Problem = console.SenderPaused, &console.Problem{Text: "paused by " + p.By, Since: p.At, Advice: "Resume it to have its mail sent"}
	}
	return s
}

// shortRest is a rest that is over before anybody wonders.
const shortRest = 5 * time.Second

// showStops notes what of the mailboxes that a sender goes by keeps its mail back, and the least they have left of their day.
func showStops(s *console.Sender, boxes []dispatch.Mailbox) {
	for _, box := range boxes {
		if box.Limit > 0 {
			s.Remaining = min(s.Remaining, box.Remaining)
		}
		for _, stop := range box.Stops {
			showStop(s, &stop)
		}
		if s.Problem == nil && time.Until(box.Rests) > shortRest {
			s.Problem = &console.Problem{Text: "Exchange Online asked to slow down; the next attempt is at " + box.Rests.UTC().Format("15:04:05 UTC"),
				Advice: "Nothing: mail goes on by itself"}
		}
	}
}

// showStop notes what keeps mail back: what a person must act on before what heals by itself.
func showStop(s *console.Sender, stop *dispatch.Stop) {
	state := console.SenderParked
	if stop.Quota {
		state = console.SenderHeld
	}
	if s.State == console.SenderReady || s.State == console.SenderHeld && state == console.SenderParked {
		s.State, s.Problem = state, problemOf(stop.Reply, stop.Since)
	}
}

// showConsent notes what the owner of the mailbox has granted, or that somebody must sign in.
func (sc *scene) showConsent(s *console.Sender, login string, advice func(rule string) (cause, advice string)) {
	g, ok := sc.grants[keyOf(s.Tenant, login)]
	if !ok {
		s.State = console.SenderConsent
		s.Problem = &console.Problem{Text: "nobody has signed in for " + login + " yet", Advice: "Start the authentication, or hand the mailbox's owner a one-time link"}
		return
	}
	s.Consent = &console.Consent{User: g.User, Granted: g.Granted, Used: g.Used, IdleEnds: g.Used.Add(grant.IdleLife)}
	s.TokenExpires = g.Expires
	if g.Dead != "" {
		p := &console.Problem{Text: g.Reason, Since: g.DeadAt}
		p.Cause, p.Advice = advice(g.Dead)
		s.Consent.Problem, s.State, s.Problem = p, console.SenderConsent, p
	}
}

// Senders implements console.Console.
func (d *Desk) Senders(ctx context.Context, q console.SenderQuery) (*console.SenderPage, error) {
	all, err := d.senders(ctx)
	if err != nil {
		return nil, err
	}
	text := strings.ToLower(q.Text)
	all = slices.DeleteFunc(all, func(s console.Sender) bool {
		return q.Tenant != "" && s.Tenant != q.Tenant || q.State != "" && s.State != q.State ||
			text != "" && !strings.Contains(strings.ToLower(s.Match+" "+string(s.Login)+" "+s.Tenant), text)
	})
	if q.Limit <= 0 {
		q.Limit = defaultSenders
	}
	from := min(max(q.Offset, 0), len(all))
	return &console.SenderPage{Senders: all[from:min(from+min(q.Limit, mostSenders), len(all))], Total: len(all)}, nil
}

// Sender implements console.Console.
func (d *Desk) Sender(ctx context.Context, match string) (*console.Sender, error) {
	all, err := d.senders(ctx)
	if err != nil {
		return nil, err
	}
	var found *console.Sender
	for i := range all {
		if strings.EqualFold(all[i].Match, match) && (found == nil || found.State == console.SenderShadowed) {
			found = &all[i]
		}
	}
	if found == nil {
		return nil, console.ErrNotFound
	}
	return found, nil
}

// SaveSender implements console.Console.
func (d *Desk) SaveSender(ctx context.Context, match string, in console.SenderInput) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	entered := d.opts.Registry.Content().Senders
	old, known := entered[registry.Key(match)]
	x := d.opts.Config()
	if match != "" && !known {
		if _, ok := senderOf(x, match); ok {
			return console.ErrFile
		}
		return console.ErrNotFound
	}
	if match != "" && !strings.EqualFold(in.Match, match) {
		return console.Mistakes{{Field: "match", Text: "a sender keeps its address; add another, and remove this one"}}
	}
	if _, taken := entered[registry.Key(in.Match)]; match == "" && taken {
		return console.Mistakes{{Field: "match", Text: fmt.Sprintf("%q has an entry already; change that one", in.Match)}}
	}
	fields := senderFields(in)
	if _, problems := without(x, "", match).NewSender(fields); len(problems) > 0 {
		return mistakes(problems, "match")
	}
	what := "sender.change"
	if match == "" {
		what = "sender.add"
	}
	return d.Change(ctx, what, in.Match, shownFields(old), shownFields(fields), func() error {
		if err := d.opts.Registry.PutSender(ctx, in.Match, fields); err != nil {
			return err
		}
		err := d.inForce(ctx, func(ctx context.Context) error {
			if known {
				return d.opts.Registry.PutSender(ctx, in.Match, old)
			}
			return d.opts.Registry.DeleteSender(ctx, in.Match)
		})
		if err != nil {
			return err
		}
		return d.forgetUnused(ctx, old)
	})
}

// senderOf returns the entry in force that matches exactly match.
func senderOf(x *config.Extended, match string) (*config.Sender, bool) {
	i := slices.IndexFunc(x.Senders, func(s config.Sender) bool { return strings.EqualFold(s.Address+s.Match, match) })
	if i < 0 {
		return nil, false
	}
	return &x.Senders[i], true
}

func senderFields(in console.SenderInput) config.Fields {
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	fields := config.Fields{
		"tenant": in.Tenant, "login": in.Login, "fallback": in.Fallback, "connections": number(in.Connections),
		"messages_per_minute": number(in.MessagesPerMinute), "recipients_per_day": number(in.RecipientsPerDay),
	}
	key := "address"
	if strings.HasPrefix(in.Match, "*") {
		key = "match"
	}
	fields[key] = in.Match
	maps.DeleteFunc(fields, func(_, value string) bool { return value == "" })
	return fields
}

// RemoveSender implements console.Console.
func (d *Desk) RemoveSender(ctx context.Context, match string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	old, known := d.opts.Registry.Content().Senders[registry.Key(match)]
	_, inForce := senderOf(d.opts.Config(), match)
	switch {
	case !known && inForce:
		return console.ErrFile
	case !known:
		return console.ErrNotFound
	}
	if err := d.neededBy(match); err != nil {
		return err
	}
	return d.Change(ctx, "sender.remove", match, shownFields(old), "", func() error {
		if err := d.opts.Registry.DeleteSender(ctx, match); err != nil {
			return err
		}
		err := d.inForce(ctx, func(ctx context.Context) error { return d.opts.Registry.PutSender(ctx, match, old) })
		if err != nil {
			return err
		}
		if _, ofFile := senderOf(d.opts.Config(), match); !ofFile { // whose pause it is now
			if err := d.opts.Registry.Resume(ctx, match); err != nil {
				return err
			}
		}
		return d.forgetUnused(ctx, old)
	})
}

// neededBy refuses to remove an entry that others name as their fallback: without it they would not be in force either.
func (d *Desk) neededBy(match string) error {
	x := d.opts.Config()
	file := *x.Config
	file.Tenants, file.Senders = slices.Clip(x.Tenants[:x.TenantsOfFile]), slices.Clip(x.Senders[:x.SendersOfFile])
	content := d.opts.Registry.Content()
	content.Senders = maps.Clone(content.Senders)
	delete(content.Senders, registry.Key(match))
	var names []string
	for _, r := range file.Extend(content.Added()).Refused {
		if _, ok := senderOf(x, r.Fields["address"]+r.Fields["match"]); ok && r.Fields["name"] == "" {
			names = append(names, r.Fields["address"]+r.Fields["match"])
		}
	}
	if names == nil {
		return nil
	}
	return &status.Error{Code: 550, Enhanced: status.Enhanced{5, 7, 0}, Text: "other senders name it as their fallback: " + strings.Join(names[:min(len(names), 10)], ", "),
		Cause: "without it they would not be in force", Advice: "Give them another fallback, or none; then remove it"}
}

// forgetUnused forgets the consent of the mailbox that an entry went by, where none goes by it any more.
func (d *Desk) forgetUnused(ctx context.Context, old config.Fields) error {
	login := cmp.Or(old["login"], old["address"])
	if login == "" || d.loginUsed(old["tenant"], login) {
		return nil
	}
	for _, other := range d.opts.Registry.Content().Senders { // one that is not in force today may be again
		if other["tenant"] == old["tenant"] && strings.EqualFold(cmp.Or(other["login"], other["address"]), login) {
			return nil
		}
	}
	return errors.Join(d.opts.Consents.Withdraw(ctx, old["tenant"], login), d.opts.Tokens.Forget(ctx, old["tenant"], login))
}

// loginUsed reports whether an entry in force goes by that mailbox.
func (d *Desk) loginUsed(tenant, login string) bool {
	x := d.opts.Config()
	return slices.ContainsFunc(x.Senders, func(s config.Sender) bool {
		return s.Tenant == tenant && strings.EqualFold(cmp.Or(s.Login, s.Address), login)
	})
}

// Pause implements console.Console.
func (d *Desk) Pause(ctx context.Context, match string) error {
	entry, ok := senderOf(d.opts.Config(), match)
	if !ok {
		return console.ErrNotFound
	}
	by := "nobody"
	if p := access.From(ctx); p != nil {
		by = p.Name
	}
	return d.Change(ctx, "sender.pause", entry.Address+entry.Match, "", "", func() error {
		if err := d.opts.Registry.Pause(ctx, match, registry.Pause{By: by, At: time.Now()}); err != nil {
			return err
		}
		return d.opts.Apply(ctx)
	})
}

// Resume implements console.Console.
func (d *Desk) Resume(ctx context.Context, match string) error {
	entry, ok := senderOf(d.opts.Config(), match)
	if _, paused := d.opts.Registry.Content().Pauses[registry.Key(match)]; !ok && !paused {
		return console.ErrNotFound
	}
	return d.Change(ctx, "sender.resume", match, "", "", func() error {
		if err := d.opts.Registry.Resume(ctx, match); err != nil {
			return err
		}
		if err := d.opts.Apply(ctx); err != nil {
			return err
		}
		if ok { // it may be parked besides: somebody wants to know now
			d.opts.Dispatcher.Probe(entry.Tenant, envelope.Address(cmp.Or(entry.Login, entry.Address)).Key())
		}
		return nil
	})
}

// Examine implements console.Console.
func (d *Desk) Examine(ctx context.Context, sender string, found func(console.Finding)) error {
	address, err := envelope.ParseAddress(sender, true)
	if err != nil || strings.HasPrefix(sender, "*") {
		return console.Mistakes{{Field: "sender", Text: fmt.Sprintf("%q is not the address of a sender; write one like app@contoso.com", sender)}}
	}
	var one sync.Mutex // found writes to one reader
	return d.opts.Examine(ctx, address, func(f console.Finding) {
		one.Lock()
		defer one.Unlock()
		found(f)
	})
}

var errNotDelegated = errors.New("its tenant's app sends by itself (grant: client_credentials); nobody has to sign in")
