package page_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/envelope"
)

// hostile stands in every text of the fake that a stranger, or anybody, can choose.
const hostile = `"><script>alert('x')</script><img src=x onerror=alert(1)>`

// fakeConsole is a relay with many senders, most of which fare well. Methods that are not here are not called by these views.
type fakeConsole struct {
	console.Console
	calm    bool // nothing is wrong, little happens
	text    string
	entries int
	err     error
	now     time.Time
}

func (f *fakeConsole) Overview(context.Context) (*console.Overview, error) {
	if f.err != nil {
		return nil, f.err
	}
	o := &console.Overview{
		Since: f.now.Add(-50 * time.Hour), Version: "1.0", Bytes: 123 << 20, Queue: map[string]int{}, Oldest: map[string]time.Time{},
		Reload: console.Reload{At: f.now.Add(-time.Hour)},
	}
	for i := range 60 {
		m := console.Minute{At: f.now.Add(time.Duration(i-60) * time.Minute)}
		if !f.calm || i > 40 {
			m.Accepted, m.Sent = 20+i*7%13, 19+i*5%11
		}
		if !f.calm {
			m.Deferred, m.Failed = i%7, i%29/27
		}
		o.Hour = append(o.Hour, m)
	}
	for i := range 24 {
		o.Day = append(o.Day, console.Minute{At: f.now.Add(time.Duration(i-24) * time.Hour), Accepted: 900 + i*137%500, Sent: 880 + i*101%500, Deferred: i * 3 % 17, Failed: i % 5})
	}
	if f.calm {
		return o, nil
	}
	for i, s := range []envelope.State{envelope.Queued, envelope.Deferred, envelope.Held, envelope.Parked, envelope.Failed} {
		o.Queue[string(s)], o.Oldest[string(s)] = 12*(5-i)*(5-i), f.now.Add(-time.Duration(i*i*7+1)*time.Minute)
	}
	problem := &console.Problem{
		Text: "535 5.7.139 Authentication unsuccessful, the user credentials were incorrect" + f.text, Cause: "The client secret has expired." + f.text,
		Advice: "Make a new client secret in Entra: App registrations, Certificates & secrets; then enter its value here." + f.text, Since: f.now.Add(-3 * time.Hour),
	}
	for i := range 3 {
		o.Parked = append(o.Parked, console.Sender{Match: fmt.Sprintf("scanner%d@contoso.example%s", i, f.text), Tenant: "contoso" + f.text, State: console.SenderParked, Queued: i * 40, Problem: problem})
	}
	o.Parked[2].State = console.SenderConsent
	o.Expiries = []console.Expiry{
		{Kind: "secret", Tenant: "contoso" + f.text, Expires: f.now.Add(6 * 24 * time.Hour), Advice: "Make a new client secret and enter it." + f.text},
		{Kind: "consent", Tenant: "fabrikam", Sender: "billing@fabrikam.example" + f.text, Expires: f.now.Add(20 * 24 * time.Hour), Advice: "Sign in again." + f.text},
	}
	o.Reload.Errors = []string{"/etc/relayd/relayd.yaml:12: tenants.contoso.grant: write client_credentials or delegated" + f.text}
	return o, nil
}

func (f *fakeConsole) Configuration(context.Context) (*console.Configuration, error) {
	c := &console.Configuration{File: "/etc/relayd/relayd.yaml" + f.text, Reload: console.Reload{At: f.now, Errors: []string{"12: no such key" + f.text}}, Warnings: []string{"listeners[0] takes mail without TLS" + f.text}}
	if f.calm {
		c.Reload.Errors, c.Warnings = nil, nil
	}
	for i := range 300 {
		c.Settings = append(c.Settings, console.Setting{Key: fmt.Sprintf("section.key_%03d%s", i, f.text), Value: fmt.Sprintf("value %d%s", i, f.text), Source: []string{"default", "relayd.yaml:" + fmt.Sprint(i), "env RELAYD_X" + f.text}[i%3]})
	}
	c.Settings[7].Value = ""
	return c, f.err
}

func (f *fakeConsole) Audit(_ context.Context, before uint64, limit int) ([]console.Entry, error) {
	var found []console.Entry
	for id := uint64(f.entries); id > 0 && len(found) < limit; id-- {
		if before == 0 || id < before {
			e := console.Entry{ID: id, At: f.now.Add(-time.Duration(id) * time.Minute), Who: "ops@contoso.example" + f.text, Peer: "192.0.2.7", What: "sender.add", On: "scanner@contoso.example" + f.text, After: `{"match": "scanner@contoso.example"}` + f.text}
			if id%4 == 0 {
				e.What, e.Before, e.Error = "tenant.remove", e.After, "senders still use this tenant"+f.text
			}
			found = append(found, e)
		}
	}
	return found, f.err
}

func (f *fakeConsole) Tenants(context.Context) ([]console.Tenant, error) {
	var all []console.Tenant
	for i := range 20 {
		all = append(all, console.Tenant{Name: fmt.Sprintf("contoso%d%s", i, f.text), Cloud: "global", Grant: "delegated", Origin: console.OriginPage, Senders: 50, RedirectURI: "https://relay.example/oauth/callback" + f.text})
	}
	return all, f.err
}

// Senders answers with a part of a thousand.
func (f *fakeConsole) Senders(_ context.Context, q console.SenderQuery) (*console.SenderPage, error) {
	all := []string{console.SenderReady, console.SenderConsent, console.SenderPaused, console.SenderParked, console.SenderHeld, console.SenderShadowed}
	found := &console.SenderPage{Total: 1000}
	for i := q.Offset; i < 1000 && (q.Limit == 0 || len(found.Senders) < q.Limit); i++ {
		found.Senders = append(found.Senders, console.Sender{
			Match: fmt.Sprintf("scanner%03d@contoso.example%s", i, f.text), Tenant: "contoso0" + f.text, Grant: "delegated", Origin: console.OriginPage, State: all[i%len(all)],
			RecipientsPerDay: 10000, Remaining: 10000 - i, Connections: 3, MessagesPerMinute: 30, Queued: i % 7,
		})
	}
	return found, f.err
}

// fakeMessages is a queue in memory.
type fakeMessages struct {
	api.Messages
	err  error // of every method
	text string
	raw  string // content of every message

	mu   sync.Mutex // of what stands below
	all  []envelope.Summary
	done []string // "retry ID by"
	busy envelope.ID
}

// newMessages returns a queue of n messages of a thousand senders, the latest first.
func newMessages(n int, now time.Time, text string) *fakeMessages {
	f := &fakeMessages{text: text, raw: "From: scanner@contoso.example\r\nSubject: " + text + "=?utf-8?b?6KuL5rGC5pu4?=\r\nX-Odd" + "\r\n" +
		"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>Dear customer,</p><p>your invoice " + text + "&lt;script&gt;alert(2)&lt;/script&gt;" +
		"\r\n--b\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename=\"" + strings.ReplaceAll(text, `"`, `\"`) + "invoice.pdf\"\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--b--\r\n"}
	all := []envelope.State{envelope.Sent, envelope.Sent, envelope.Sent, envelope.Deferred, envelope.Sent, envelope.Failed, envelope.Sent, envelope.Held, envelope.Queued, envelope.Parked, envelope.Uncertain}
	for i := range n {
		at := now.Add(-time.Duration(i) * 17 * time.Second)
		s := envelope.Summary{
			ID: envelope.NewID(at), Received: at, Sender: envelope.Address(fmt.Sprintf("scanner%03d@contoso.example%s", i%1000, text)),
			Recipients: []envelope.Address{envelope.Address("anna@fabrikam.example" + text), envelope.Address(fmt.Sprintf("r%d@example.net", i))},
			MessageID:  fmt.Sprintf("<m%d@contoso.example>%s", i, text), Size: int64(i) * 977, State: all[i%len(all)], Attempts: 1, Reply: "250 2.0.0 OK",
		}
		if i%7 == 0 {
			s.Recipients = append(s.Recipients, "c@example.net", "d@example.net", "e@example.net")
		}
		if s.State != envelope.Sent {
			s.Reply = "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (AS77712004)" + text
		}
		if s.State == envelope.Deferred {
			s.Due = now.Add(4 * time.Minute)
		}
		f.all = append(f.all, s)
	}
	return f
}

func (f *fakeMessages) List(_ context.Context, q envelope.Query) ([]envelope.Summary, error) {
	if f.err != nil {
		return nil, f.err
	}
	fits := func(pattern string, address envelope.Address) bool {
		if domain, ok := strings.CutPrefix(pattern, "*@"); ok {
			return strings.EqualFold(address.Domain(), domain)
		}
		return strings.EqualFold(pattern, string(address))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []envelope.Summary
	for _, s := range f.all {
		switch {
		case q.Queued && s.State == envelope.Sent, q.ID != "" && q.ID != s.ID, q.Before != "" && s.ID >= q.Before, q.State != "" && q.State != s.State,
			q.Sender != "" && !fits(q.Sender, s.Sender), q.MessageID != "" && strings.Trim(q.MessageID, "<>") != strings.Trim(s.MessageID, "<>"),
			!q.Since.IsZero() && s.Received.Before(q.Since), !q.Until.IsZero() && !s.Received.Before(q.Until),
			q.Recipient != "" && !slices.ContainsFunc(s.Recipients, func(a envelope.Address) bool { return fits(q.Recipient, a) }):
			continue
		}
		if found = append(found, s); len(found) == q.Limit {
			break
		}
	}
	return found, nil
}

func (f *fakeMessages) Get(ctx context.Context, id envelope.ID) (*api.Message, error) {
	found, err := f.List(ctx, envelope.Query{ID: id, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, api.ErrNotFound
	}
	s := found[0]
	e := &envelope.Envelope{
		ID: id, Received: s.Received, Intake: "smtp", Listener: "[::]:587", Client: "erp" + f.text, Peer: "192.0.2.9", ReversePath: s.Sender, Sender: s.Sender, Size: s.Size, MessageID: s.MessageID,
		Repairs: []string{"added a Date field" + f.text},
	}
	m := &api.Message{Envelope: e, State: s.State, Stored: true, Parked: f.text, Progress: envelope.Progress{State: s.State, Attempts: 2, Due: s.Due, Reason: s.Reply}}
	for _, a := range s.Recipients {
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: a})
		m.Progress.Results = append(m.Progress.Results, envelope.Result{State: s.State, Reply: s.Reply, Attempts: 2})
	}
	m.Progress.Results = m.Progress.Results[:1] // of the others nothing is known yet
	m.Steps = []envelope.Step{
		{ID: id, At: s.Received, What: envelope.StepAccepted, State: envelope.Queued, Envelope: e},
		{ID: id, At: s.Received.Add(time.Second), What: envelope.StepAttempt, State: envelope.Deferred, By: "contoso/scanner@contoso.example", Attempt: 1, Took: 840 * time.Millisecond, Due: s.Received.Add(time.Minute), Reply: s.Reply, Advice: "Wait; it is tried again by itself." + f.text},
		{ID: id, At: s.Received.Add(time.Minute), What: "unheard-of" + f.text, State: s.State, By: "ops" + f.text, Recipients: []envelope.StepResult{{Address: s.Recipients[0], State: s.State, Reply: s.Reply}}},
	}
	return m, nil
}

func (f *fakeMessages) Raw(context.Context, envelope.ID) (io.ReadCloser, int64, error) {
	if f.err != nil {
		return nil, 0, f.err
	}
	return io.NopCloser(strings.NewReader(f.raw)), int64(len(f.raw)), nil
}

func (f *fakeMessages) note(what string, id envelope.ID, by string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy == id {
		return api.ErrBusy
	}
	f.done = append(f.done, what+" "+string(id)+" "+by)
	return f.err
}

func (f *fakeMessages) Retry(_ context.Context, id envelope.ID, by string) error {
	return f.note("retry", id, by)
}

func (f *fakeMessages) Hold(_ context.Context, id envelope.ID, by string) error {
	return f.note("hold", id, by)
}

func (f *fakeMessages) Release(_ context.Context, id envelope.ID, by string) error {
	return f.note("release", id, by)
}

func (f *fakeMessages) Drop(_ context.Context, id envelope.ID, by string) error {
	return f.note("drop", id, by)
}
