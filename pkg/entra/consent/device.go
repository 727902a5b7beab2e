package consent

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"relayd/pkg/entra/consent/refusal"
	"relayd/pkg/status"
)

// Polling a device code (RFC 8628, section 3.5): every interval that Entra ID names, five seconds more each time it says
// slow_down, twice as long each time it does not answer, until it says yes or no or the code has expired.
const (
	devicePath     = "oauth2/v2.0/devicecode"
	deviceMemory   = time.Hour        // how long after its expiry a code's outcome can be asked for
	deviceLife     = 15 * time.Minute // where Entra ID does not say
	maxDeviceLife  = time.Hour
	deviceInterval = 5 * time.Second // where Entra ID does not say, and what slow_down adds
	maxInterval    = 5 * time.Minute
	maxBackOff     = time.Minute
	pollLease      = finishTimeout + 5*time.Second // a poll and what follows from it are over by then
	rescanEvery    = 30 * time.Second              // for codes begun at another node, or before a restart
)

// device is a device code, as it is stored.
type device struct {
	Tenant   string        `json:"tenant"`
	Login    string        `json:"login"`
	Sender   string        `json:"sender"`
	Code     string        `json:"code,omitempty"` // the secret; gone once it has ended
	UserCode string        `json:"user_code"`
	URI      string        `json:"uri"`
	Interval time.Duration `json:"interval"`
	Expires  time.Time     `json:"expires"`
	Next     time.Time     `json:"next"` // no node polls before
	State    string        `json:"state"`
	User     string        `json:"user,omitempty"`
	Problem  *problem      `json:"problem,omitempty"`
	Ended    time.Time     `json:"ended,omitzero"`
}

// problem is a *status.Error, as it is stored.
type problem struct {
	Rule   string `json:"rule"`
	Text   string `json:"text"`
	Cause  string `json:"cause,omitempty"`
	Advice string `json:"advice,omitempty"`
}

// StartDevice asks for a device code by which r.Login signs in at another screen (RFC 8628, section 3.1). From then on Run
// polls, at whichever node.
func (c *Consents) StartDevice(ctx context.Context, r Request) (Device, error) {
	reg, err := c.registration(r.Tenant)
	if err != nil {
		return Device{}, err
	}
	if !strings.Contains(r.Login, "@") {
		return Device{}, refusal.NoLogin()
	}
	names, err := c.options.Devices.Names(ctx)
	if err != nil {
		return Device{}, refusal.Store(err)
	}
	if len(names) >= maxDevices {
		if names, err = c.devices.sweep(ctx, names, func(d *device) bool { return d.State == DevicePending }); err != nil {
			return Device{}, refusal.Store(err)
		}
		if len(names) >= maxDevices {
			return Device{}, refusal.Busy()
		}
	}
	var a struct {
		Code     string  `json:"device_code"`
		UserCode string  `json:"user_code"`
		URI      string  `json:"verification_uri"`
		Expires  seconds `json:"expires_in"`
		Interval seconds `json:"interval"`
	}
	if err := reg.post(ctx, reg.endpoint(devicePath), url.Values{"scope": {reg.scopes()}}, &a); err != nil {
		return Device{}, c.read(&reg, err)
	}
	if a.Code == "" || len(a.UserCode) > 64 || strings.TrimSpace(a.UserCode) == "" || !web(a.URI) {
		return Device{}, refusal.NoAnswer(errors.New("its answer holds no device code that could be shown"))
	}
	now := time.Now()
	d := device{Tenant: r.Tenant, Login: strings.ToLower(r.Login), Sender: r.Sender, Code: a.Code, UserCode: a.UserCode, URI: a.URI,
		Interval: min(orElse(a.Interval.duration(), deviceInterval), maxInterval), State: DevicePending,
		Expires: now.Add(min(orElse(a.Expires.duration(), deviceLife), maxDeviceLife))}
	d.Next = now.Add(d.Interval)
	id := random()
	if revision, err := c.devices.put(ctx, id, &d, 0); err != nil || revision == 0 {
		return Device{}, refusal.Store(err)
	}
	c.log.Info("device code begun", zap.String("tenant", d.Tenant), zap.String("login", d.Login), zap.Time("expires", d.Expires))
	c.expect(id, d.Next)
	return d.shown(id), nil
}

// Device returns where the sign-in with that id stands. Errors: [ErrDevice].
func (c *Consents) Device(ctx context.Context, id string) (Device, error) {
	if len(id) != 43 || !token(id) {
		return Device{}, ErrDevice
	}
	d, revision, err := c.devices.get(ctx, id)
	switch {
	case err != nil:
		return Device{}, refusal.Store(err)
	case revision == 0:
		return Device{}, ErrDevice
	}
	return d.shown(id), nil
}

func (d *device) shown(id string) Device {
	out := Device{ID: id, Tenant: d.Tenant, Sender: d.Sender, Login: d.Login, UserCode: d.UserCode, VerificationURI: d.URI, Expires: d.Expires,
		State: d.State, User: d.User, Ended: d.Ended}
	if p := d.Problem; p != nil {
		out.Problem = refusal.New(p.Rule, p.Text, p.Cause, p.Advice, nil)
	}
	return out
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

// web reports whether a page may link to s.
func web(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil && len(s) <= 1024
}

// expect has the code with that id polled at that time.
func (c *Consents) expect(id string, at time.Time) {
	c.mu.Lock()
	c.due[id] = at
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// pollAll polls what is due until ctx ends, and waits for the polls under way.
func (c *Consents) pollAll(ctx context.Context) {
	var polls sync.WaitGroup
	defer polls.Wait()
	busy := map[string]bool{} // being polled by this node; guarded by c.mu
	var scanned time.Time
	for {
		now := time.Now()
		if scanned.IsZero() || now.Sub(scanned) >= rescanEvery {
			scanned = now
			c.rescan(ctx, busy)
		}
		next := scanned.Add(rescanEvery)
		c.mu.Lock()
		for id, at := range c.due {
			if at.After(now) {
				if at.Before(next) {
					next = at
				}
				continue
			}
			delete(c.due, id)
			busy[id] = true
			polls.Go(func() {
				at, more := c.poll(ctx, id)
				c.mu.Lock()
				delete(busy, id)
				c.mu.Unlock()
				if more && ctx.Err() == nil {
					c.expect(id, at)
				}
			})
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-time.After(time.Until(next)):
		}
	}
}

// rescan takes up the codes that this node does not know of.
func (c *Consents) rescan(ctx context.Context, busy map[string]bool) {
	names, err := c.options.Devices.Names(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.log.Warn("device codes not listed", zap.Error(err))
		}
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range names {
		if _, known := c.due[id]; !known && !busy[id] {
			c.due[id] = time.Now()
		}
	}
}

// poll asks once whether the owner has signed in, unless another node has just done so; more: it is to be asked again at
// that time.
func (c *Consents) poll(ctx context.Context, id string) (at time.Time, more bool) {
	d, revision, err := c.devices.get(ctx, id)
	now := time.Now()
	switch {
	case err != nil:
		return now.Add(deviceInterval), true
	case revision == 0 || d.State != DevicePending:
		return now, false
	case now.Before(d.Next):
		return d.Next, true
	}
	expired := !now.Before(d.Expires)
	claimed := *d
	claimed.Next = now.Add(pollLease)
	if revision, err = c.devices.put(ctx, id, &claimed, revision); err != nil || revision == 0 {
		return now.Add(d.Interval), true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout) // the answer that says yes comes once
	defer cancel()
	if expired {
		c.end(d, "", refusal.Known(&oauth2.RetrieveError{ErrorCode: "expired_token"}))
	} else {
		c.ask(ctx, d)
	}
	d.Next = time.Now().Add(d.Interval)
	if revision, err = c.devices.put(ctx, id, d, revision); err != nil || revision == 0 {
		c.log.Error("device code's state not stored", zap.String("tenant", d.Tenant), zap.String("login", d.Login), zap.String("state", d.State), zap.Error(err))
		return time.Now().Add(d.Interval), true
	}
	return d.Next, d.State == DevicePending
}

// ask sends the device access token request (RFC 8628, section 3.4) and changes d by its answer.
func (c *Consents) ask(ctx context.Context, d *device) {
	reg, err := c.registration(d.Tenant)
	if err != nil {
		c.end(d, "", status.From(err))
		return
	}
	var a answer
	err = reg.post(ctx, reg.endpoint("oauth2/v2.0/token"), url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {d.Code},
	}, &a)
	if err == nil {
		user, err := c.accept(ctx, &reg, signIn{login: d.Login}, &a)
		if err != nil {
			c.end(d, "", status.From(err))
			return
		}
		c.end(d, user, nil)
		return
	}
	refused, ok := errors.AsType[*oauth2.RetrieveError](err)
	switch {
	case ok && refused.ErrorCode == "authorization_pending":
	case ok && refused.ErrorCode == "slow_down":
		d.Interval = min(d.Interval+deviceInterval, maxInterval)
	default:
		c.judge(d, c.read(&reg, err, d.Code), !ok || refused.Response.StatusCode >= http.StatusInternalServerError)
	}
}

// judge ends d where e says that only a person can help; without an answer, or with one that time may cure, it is asked again.
func (c *Consents) judge(d *device, e *status.Error, unanswered bool) {
	if unanswered || e.Action == status.Retry || e.Action == status.BackOffSender || e.Action == status.BackOffTenant {
		d.Interval = max(d.Interval, min(2*d.Interval, maxBackOff)) // section 3.5: back off exponentially
		return
	}
	c.end(d, "", e)
}

// end notes what became of d: done by user, or failed by e.
func (c *Consents) end(d *device, user string, e *status.Error) {
	log := c.log.With(zap.String("tenant", d.Tenant), zap.String("login", d.Login))
	d.Code, d.Ended = "", time.Now()
	if e != nil {
		d.State, d.Problem = DeviceFailed, &problem{Rule: e.Rule, Text: e.Text, Cause: e.Cause, Advice: e.Advice}
		log.Warn("sign-in by device code refused", zap.Error(refusal.Whole(e)))
		return
	}
	d.State, d.User = DeviceDone, user
	log.Info("sign-in by device code accepted")
}
