package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
)

// link is a one-time link, stored under the hash of its code.
type link struct {
	V       int         `json:"v"`
	Role    access.Role `json:"role"`
	By      string      `json:"by"`
	Expires time.Time   `json:"expires"`
	Used    bool        `json:"used,omitempty"`
}

// errLink says that a code opens nothing: it never did, was used, or has expired.
var errLink = errors.New("the link was used already, has expired, or never was one")

// NewLink implements access.Links.
func (l *Logins) NewLink(ctx context.Context, role access.Role, by string) (string, time.Time, error) {
	if role.Scopes() == nil {
		return "", time.Time{}, fmt.Errorf("make a login link: there is no role %q", role)
	}
	code, expires := random(), time.Now().Add(linkLife).UTC()
	data, err := json.Marshal(link{V: 1, Role: role, By: by, Expires: expires})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("make a login link: %w", err)
	}
	if err := l.note(ctx, console.Entry{Who: by, What: "login.link", On: string(role)}); err != nil {
		return "", time.Time{}, err
	}
	if _, err := l.links.Put(ctx, hashName(code), data, 0); err != nil {
		return "", time.Time{}, fmt.Errorf("make a login link: %w", err)
	}
	return l.force.Load().base.JoinPath(Path).String() + "?" + url.Values{"code": {code}}.Encode(), expires, nil
}

// takeLink uses a code up. Of several that try, one succeeds; the others get errLink.
func (l *Logins) takeLink(ctx context.Context, code string) (*link, error) {
	name := hashName(code)
	data, revision, err := l.links.Get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read a login link: %w", err)
	}
	var found link
	if revision == 0 || json.Unmarshal(data, &found) != nil || found.V != 1 || found.Used || !time.Now().Before(found.Expires) {
		return nil, errLink
	}
	found.Used = true
	if data, err = json.Marshal(found); err != nil {
		return nil, fmt.Errorf("use a login link: %w", err)
	}
	if revision, err = l.links.Put(ctx, name, data, revision); err != nil {
		return nil, fmt.Errorf("use a login link: %w", err)
	}
	if revision == 0 {
		return nil, errLink
	}
	return &found, nil // the sweep removes it: it is used, that is enough
}

// sweepLinks removes links that are of no use any more.
func (l *Logins) sweepLinks(ctx context.Context) error {
	names, err := l.links.Names(ctx)
	if err != nil {
		return fmt.Errorf("list login links: %w", err)
	}
	for _, name := range names {
		data, revision, err := l.links.Get(ctx, name)
		if err != nil {
			return fmt.Errorf("read a login link: %w", err)
		}
		var found link
		if revision == 0 || json.Unmarshal(data, &found) == nil && !found.Used && time.Now().Before(found.Expires) {
			continue
		}
		if err := l.links.Delete(ctx, name); err != nil {
			return fmt.Errorf("remove a login link: %w", err)
		}
	}
	return nil
}
