package consent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"relayd/pkg/status"
)

// ErrDevice reports a sign-in by device code that is not known, or was forgotten.
var ErrDevice = errors.New("there is no such sign-in by device code")

const (
	deviceKept     = time.Hour        // how long what became of one can be asked
	pollClaim      = 45 * time.Second // a node that polls has answered by then, or is gone
	defaultPoll    = 5 * time.Second  // RFC 8628, section 3.2
	slowDown       = 5 * time.Second  // section 3.5
	longestPoll    = time.Minute
	listEvery      = 30 * time.Second // of sign-ins that other nodes began
	sweepEvery     = 10 * time.Minute
	devicesMost    = 200
	longestCode    = time.Hour // Entra ID says 15 minutes
	deviceBytes    = 64 << 10
	deviceGrantURN = "urn:ietf:params:oauth:grant-type:device_code" // section 3.4
)

// deviceRecord is a sign-in by device code, as it is stored.
type deviceRecord struct {
	Tenant   string        `json:"tenant"`
	Sender   string        `json:"sender"`
	Login    string        `json:"login"`
	UserCode string        `json:"user_code"`
	URI      string        `json:"uri"`
	Code     string        `json:"code,omitempty"` // gone once it has ended
	Expires  time.Time     `json:"expires"`
	Interval time.Duration `json:"interval"`
	Next     time.Time     `json:"next"` // no poll before: of nobody, while one holds it
	State    string        `json:"state"`
	User     string        `json:"user,omitempty"`
	Problem  *problem      `json:"problem,omitempty"`
	Ended    time.Time     `json:"ended,omitzero"`
}

// problem is a *status.Error as it is stored.
type problem struct {
	Code     int             `json:"code"`
	Enhanced status.Enhanced `json:"enhanced"`
	Rule     string          `json:"rule,omitempty"`
	Text     string          `json:"text"`
	Cause    string          `json:"cause,omitempty"`
	Advice   string          `json:"advice,omitempty"`
}

func (p *problem) error() *status.Error {
	if p == nil {
		return nil
	}
	return &status.Error{Code: p.Code, Enhanced: p.Enhanced, Stage: status.StageToken, Rule: p.Rule, Text: p.Text, Cause: p.Cause, Advice: p.Advice}
}

// polls are the sign-ins that this node looks after.
type polls struct {
	wake chan struct{} // capacity 1

	mu   sync.Mutex // guards next
	next map[string]time.Time
}

func (p *polls) set(id string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = map[string]time.Time{}
	}
	if p.next[id] = at; at.IsZero() {
		delete(p.next, id)
	}
	select {
	case p.wake <- struct{}{}:
	default: // it is awake
	}
}

// due returns the sign-ins to poll now, and when the next is.
func (p *polls) due(now time.Time) (ids []string, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, at := range p.next {
		switch {
		case !at.After(now):
			ids = append(ids, id)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	return ids, next
}

// StartDevice asks for a device code. The sign-in goes on by itself: see Device. Errors are *status.Error, or the store's.
func (c *Consents) StartDevice(ctx context.Context, r Request) (Device, error) {
	reg, err := c.opts.Registration(r.Tenant)
	if err != nil {
		return Device{}, err
	}
	names, err := c.opts.Devices.Names(ctx)
	if err != nil {
		return Device{}, fmt.Errorf("store sign-in: %w", err)
	}
	if len(names) >= devicesMost {
		c.sweepDevices(ctx, names)
		return Device{}, errTooMany()
	}
	answer, err := askDevice(ctx, &reg)
	if err != nil {
		return Device{}, err
	}
	now := time.Now()
	d := deviceRecord{
		Tenant: r.Tenant, Sender: r.Sender, Login: r.Login, UserCode: answer.UserCode, URI: answer.URI, Code: answer.Code,
		Expires: now.Add(min(max(time.Duration(answer.Life)*time.Second, time.Minute), longestCode)), State: DevicePending,
		Interval: min(max(time.Duration(answer.Interval)*time.Second, time.Second), longestPoll),
	}
	if answer.Interval == 0 {
		d.Interval = defaultPoll
	}
	d.Next = now.Add(d.Interval)
	id := random()
	if revision, err := put(ctx, c.opts.Devices, id, &d, 0); err != nil || revision == 0 {
		return Device{}, fmt.Errorf("store sign-in: %w", orConflict(err))
	}
	c.polls.set(id, d.Next)
	return d.shown(id), nil
}

func (d *deviceRecord) shown(id string) Device {
	return Device{ID: id, Tenant: d.Tenant, Sender: d.Sender, Login: d.Login, UserCode: d.UserCode, VerificationURI: d.URI, Expires: d.Expires,
		State: d.State, User: d.User, Problem: d.Problem.error(), Ended: d.Ended}
}

// Device returns where a sign-in by device code stands. Errors: [ErrDevice], and the store's.
func (c *Consents) Device(ctx context.Context, id string) (Device, error) {
	var d deviceRecord
	revision, err := get(ctx, c.opts.Devices, id, &d)
	switch {
	case err != nil:
		return Device{}, fmt.Errorf("read sign-in: %w", err)
	case revision == 0:
		return Device{}, ErrDevice
	}
	return d.shown(id), nil
}

// deviceAnswer is RFC 8628, section 3.2.
type deviceAnswer struct {
	Code     string `json:"device_code"`
	UserCode string `json:"user_code"`
	URI      string `json:"verification_uri"`
	Life     int    `json:"expires_in"` // seconds
	Interval int    `json:"interval"`   // seconds; 0: not said
}

func askDevice(ctx context.Context, reg *Registration) (*deviceAnswer, error) {
	form := url.Values{"client_id": {reg.ClientID}, "scope": {scopes(reg.Scope)}}
	at := endpoint(reg, "/oauth2/v2.0/devicecode")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, errAway(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := clientOf(reg).Do(req)
	if err != nil {
		return nil, explain(reg, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, deviceBytes))
	if err != nil {
		return nil, explain(reg, err)
	}
	if resp.StatusCode != http.StatusOK {
		var refused struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		_ = json.Unmarshal(body, &refused) // without it there is no hint
		return nil, explain(reg, &oauth2.RetrieveError{Response: resp, Body: body, ErrorCode: refused.Error, ErrorDescription: refused.Description})
	}
	a := new(deviceAnswer)
	if json.Unmarshal(body, a) != nil || a.Code == "" || a.UserCode == "" {
		return nil, errAway(errors.New("the answer to the request for a device code is none"))
	}
	if u, err := url.Parse(a.URI); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, errAway(errors.New("the answer to the request for a device code names no address to enter it at"))
	}
	return a, nil
}

// Run polls device codes, and removes what is over, until ctx ends.
func (c *Consents) Run(ctx context.Context) error {
	var listed, swept time.Time
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(listed) >= listEvery {
			listed = now
			c.listDevices(ctx)
		}
		if now.Sub(swept) >= sweepEvery {
			swept = now
			c.sweep(ctx)
		}
		ids, next := c.polls.due(time.Now())
		var polling sync.WaitGroup
		for _, id := range ids {
			polling.Go(func() { c.poll(ctx, id) })
		}
		polling.Wait()
		if len(ids) > 0 {
			continue
		}
		wait := listEvery
		if !next.IsZero() {
			wait = min(wait, time.Until(next))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-c.polls.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// listDevices takes up the sign-ins that others have begun, or this node before it was started anew.
func (c *Consents) listDevices(ctx context.Context) {
	names, err := c.opts.Devices.Names(ctx)
	if err != nil {
		return // asked again soon
	}
	for _, id := range names {
		var d deviceRecord
		if revision, err := get(ctx, c.opts.Devices, id, &d); err == nil && revision != 0 && d.State == DevicePending {
			c.polls.set(id, d.Next)
		}
	}
}

// poll asks once whether the owner has signed in, unless another node does.
func (c *Consents) poll(ctx context.Context, id string) {
	var d deviceRecord
	revision, err := get(ctx, c.opts.Devices, id, &d)
	now := time.Now()
	switch {
	case err != nil:
		c.polls.set(id, now.Add(defaultPoll))
		return
	case revision == 0 || d.State != DevicePending:
		c.polls.set(id, time.Time{})
		return
	case d.Next.After(now): // another has polled, or does
		c.polls.set(id, d.Next)
		return
	}
	d.Next = now.Add(pollClaim)
	if revision, err = put(ctx, c.opts.Devices, id, &d, revision); err != nil || revision == 0 {
		c.polls.set(id, now.Add(d.Interval))
		return
	}
	if now.After(d.Expires) {
		d.end(errDeviceExpired(), "")
	} else {
		c.ask(ctx, &d)
	}
	if ctx.Err() != nil {
		return // the claim ends by itself
	}
	if _, err := put(ctx, c.opts.Devices, id, &d, revision); err != nil {
		c.log.Warn("a sign-in by device code: its state was not stored", zap.Error(err))
	}
	next := d.Next
	if d.State != DevicePending {
		next = time.Time{}
	}
	c.polls.set(id, next)
}

// ask makes one poll and notes what it came to.
func (c *Consents) ask(ctx context.Context, d *deviceRecord) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	reg, err := c.opts.Registration(d.Tenant)
	if err != nil {
		d.end(err, "")
		return
	}
	client := clientOf(&reg)
	raw := Registration(reg)
	waiting := ""
	raw.Explain = func(err error, secrets ...string) *status.Error {
		if refusal, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
			waiting = refusal.ErrorCode
		}
		if reg.Explain == nil {
			return errAway(err)
		}
		return reg.Explain(err, secrets...)
	}
	tok, err := c.request(ctx, &raw, client, url.Values{"grant_type": {deviceGrantURN}, "device_code": {d.Code}}, d.Code)
	if err != nil {
		e, _ := errors.AsType[*status.Error](err)
		switch {
		case waiting == "authorization_pending":
		case waiting == "slow_down":
			d.Interval = min(d.Interval+slowDown, longestPoll)
		case waiting == "authorization_declined" || waiting == "access_denied":
			d.end(errDeclined(), "")
		case waiting == "expired_token" || waiting == "code_expired":
			d.end(errDeviceExpired(), "")
		case e != nil && (e.Action == status.Retry || e.Action == status.BackOffSender || e.Action == status.BackOffTenant):
			d.Interval = min(2*d.Interval, longestPoll) // section 3.5: back off where there is no answer
		default:
			d.end(err, "")
		}
		d.Next = time.Now().Add(d.Interval)
		return
	}
	g, err := c.judge(ctx, &reg, client, tok, d.Login, "")
	if err == nil {
		err = c.adopt(ctx, g, "")
	}
	if err != nil {
		d.end(err, "")
		return
	}
	d.end(nil, g.User)
}

// end notes that it is over: err says why, nil that user has signed in.
func (d *deviceRecord) end(err error, user string) {
	d.State, d.User, d.Code, d.Ended = DeviceDone, user, "", time.Now()
	if err == nil {
		return
	}
	d.State = DeviceFailed
	e, ok := errors.AsType[*status.Error](err)
	if !ok {
		e = errAway(err)
	}
	d.Problem = &problem{Code: e.Code, Enhanced: e.Enhanced, Rule: e.Rule, Text: e.Text, Cause: e.Cause, Advice: e.Advice}
}

func (c *Consents) sweepDevices(ctx context.Context, names []string) {
	for _, id := range names {
		var d deviceRecord
		if revision, err := get(ctx, c.opts.Devices, id, &d); err == nil && revision != 0 && time.Since(d.Expires) > deviceKept {
			_ = c.opts.Devices.Delete(ctx, id) // swept again
		}
	}
}

func (c *Consents) sweep(ctx context.Context) {
	if names, err := c.opts.Pending.Names(ctx); err == nil {
		c.sweepPending(ctx, names)
	}
	if names, err := c.opts.Invitations.Names(ctx); err == nil {
		c.sweepInvitations(ctx, names)
	}
	if names, err := c.opts.Devices.Names(ctx); err == nil {
		c.sweepDevices(ctx, names)
	}
}
