package endpoint

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/url"
	"slices"
	"strings"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/directory/ticket"
)

// grant authenticates the client and honours its grant, in the order Entra complains in.
func (e *Endpoint) grant(tenantID string, q *request) (answer, *refusal.Refusal) {
	f := q.form
	if refused := e.findTenant(tenantID, q); refused != nil {
		return answer{}, refused
	}
	grant := f.get("grant_type")
	switch {
	case grant == "":
		return answer{}, &refusal.Refusal{Number: 900144, Value: "grant_type"}
	case f.get("client_id") == "":
		return answer{}, &refusal.Refusal{Number: 900144, Value: "client_id"}
	case kind(grant) == "other":
		return answer{}, &refusal.Refusal{Number: 70003, Value: grant}
	}
	if refused := q.findApp(); refused != nil {
		return answer{}, refused
	}
	if refused := e.authenticate(q); refused != nil {
		return answer{}, refused
	}
	switch grant {
	case grantCode:
		return e.redeem(q)
	case grantRefresh:
		return e.refresh(q)
	case grantDevice:
		return e.device(q)
	}
	resource, isDefault := strings.CutSuffix(f.get("scope"), "/.default")
	switch {
	case !isDefault:
		return answer{}, &refusal.Refusal{Number: 70011, Value: f.get("scope")}
	case resource != appResource:
		return answer{}, &refusal.Refusal{Number: 500011, Value: resource}
	}
	return answer{}, nil
}

const appResource = "https://outlook.office365.com" // what an app may have tokens of its own for

func (e *Endpoint) findTenant(id string, q *request) *refusal.Refusal {
	if id == "common" || id == "consumers" {
		return refusal.New(9001023)
	}
	var ok bool
	if q.tenant, ok = e.dir.Tenant(id); !ok {
		return refusal.New(90002)
	}
	return nil
}

func (q *request) findApp() *refusal.Refusal {
	var ok bool
	if q.app, ok = q.tenant.App(q.form.get("client_id")); !ok {
		return refusal.New(700016)
	}
	return nil
}

// unescape undoes the form encoding that RFC 6749, 2.3.1 asks for inside HTTP Basic.
func unescape(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return s
}

// mine checks that a code or token was given to this client, in this tenant.
func (q *request) mine(s ticket.Subject) *refusal.Refusal {
	switch {
	case s.Tenant != q.tenant.ID:
		return refusal.New(700005)
	case s.App != q.app.ID:
		return &refusal.Refusal{Number: 70000, Value: "it was issued to another client."}
	}
	return nil
}

// alive checks that the user may still have tokens, and finds the user.
func (e *Endpoint) alive(q *request, s ticket.Subject) (directory.User, *refusal.Refusal) {
	u, refused := e.dir.User(&q.tenant, s.User)
	if refused != nil {
		return u, refused
	}
	if refused = u.Refused(); refused != nil {
		return u, refused
	}
	if u.ObjectID != s.ObjectID || e.dir.Epoch(s.ObjectID) != s.Epoch {
		return u, &refusal.Refusal{Number: 50173, Value: "The grant was issued to " + s.User + "."}
	}
	return u, nil
}

// authorized checks that the consent is there, whoever gave it, and reads the scopes.
func (e *Endpoint) authorized(q *request, user, scope string) (directory.Scopes, *refusal.Refusal) {
	scopes, refused := directory.ParseScopes(scope)
	if refused == nil && !q.tenant.Consented(q.app.ID, user, scopes) {
		refused = refusal.New(65001)
	}
	return scopes, refused
}

// redeem honours an authorization code.
func (e *Endpoint) redeem(q *request) (answer, *refusal.Refusal) {
	for _, required := range []string{"code", "redirect_uri"} {
		if q.form.get(required) == "" {
			return answer{}, &refusal.Refusal{Number: 900144, Value: required}
		}
	}
	var a answer
	var user directory.User
	code, refused := e.opts.Tickets.Redeem(q.form.get("code"), func(c ticket.Code) *refusal.Refusal {
		if refused := q.mine(c.Subject); refused != nil {
			return refused
		}
		if c.RedirectURI != q.form.get("redirect_uri") {
			return &refusal.Refusal{Number: 500112, Value: q.form.get("redirect_uri")}
		}
		if refused := checkVerifier(c, q.form.get("code_verifier")); refused != nil {
			return refused
		}
		var refused *refusal.Refusal
		if user, refused = e.alive(q, c.Subject); refused != nil {
			return refused
		}
		a.scopes, refused = e.authorized(q, user.Mail, narrowed(c.Scope, q.form.get("scope")))
		return refused
	})
	if refused != nil {
		return a, refused
	}
	a.user, a.nonce = &user, code.Nonce
	if a.scopes.Offline {
		a.next = e.opts.Tickets.NewRefresh(code.Subject)
	}
	return a, nil
}

// narrowed is the scope of a token request: what was granted, or less of it. What the request leaves out of the OpenID
// scopes counts as asked for, since Entra's clients name the resource alone.
func narrowed(granted, asked string) string {
	if asked == "" {
		return granted
	}
	for _, word := range strings.Fields(granted) {
		if slices.Contains([]string{"openid", "profile", "email", "offline_access"}, strings.ToLower(word)) {
			asked += " " + word
		}
	}
	return asked
}

// checkVerifier is RFC 7636, 4.6. No method is plain.
func checkVerifier(c ticket.Code, verifier string) *refusal.Refusal {
	if c.Challenge == "" {
		return nil
	}
	if verifier == "" {
		return refusal.New(50148)
	}
	computed := verifier
	if c.Method == "S256" {
		digest := sha256.Sum256([]byte(verifier))
		computed = base64.RawURLEncoding.EncodeToString(digest[:])
	}
	if subtle.ConstantTimeCompare([]byte(computed), []byte(c.Challenge)) != 1 {
		return refusal.New(501481)
	}
	return nil
}

// refresh honours a refresh token.
func (e *Endpoint) refresh(q *request) (answer, *refusal.Refusal) {
	if q.form.get("refresh_token") == "" {
		return answer{}, &refusal.Refusal{Number: 900144, Value: "refresh_token"}
	}
	var a answer
	var user directory.User
	_, next, refused := e.opts.Tickets.Refresh(q.form.get("refresh_token"), func(s ticket.Subject) *refusal.Refusal {
		refused := q.mine(s)
		if refused == nil {
			user, refused = e.alive(q, s)
		}
		if refused == nil {
			a.scopes, refused = e.authorized(q, user.Mail, narrowed(s.Scope, q.form.get("scope")))
		}
		return refused
	})
	a.user, a.next = &user, next
	return a, refused
}

// device honours a device code.
func (e *Endpoint) device(q *request) (answer, *refusal.Refusal) {
	if q.form.get("device_code") == "" {
		return answer{}, &refusal.Refusal{Number: 900144, Value: "device_code"}
	}
	subject, refused := e.opts.Tickets.Poll(q.form.get("device_code"), q.mine)
	if refused != nil {
		return answer{}, refused
	}
	user, refused := e.alive(q, subject)
	if refused != nil {
		return answer{}, refused
	}
	a := answer{user: &user}
	if a.scopes, refused = e.authorized(q, user.Mail, subject.Scope); refused != nil {
		return answer{}, refused
	}
	if a.scopes.Offline {
		a.next = e.opts.Tickets.NewRefresh(subject)
	}
	return a, nil
}

// scopeAnswer is the scope of the token answer: the resource's permissions, and OpenID's in Entra's order.
func scopeAnswer(s directory.Scopes) string {
	names := s.Names()
	for _, open := range []struct {
		name string
		is   bool
	}{{"openid", s.OpenID}, {"profile", s.Profile}, {"email", s.Email}} {
		if open.is {
			names = append(names, open.name)
		}
	}
	return strings.Join(names, " ")
}
