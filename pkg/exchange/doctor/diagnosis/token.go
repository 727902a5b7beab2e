package diagnosis

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"relayd/pkg/envelope"
)

// claims are those of an access token that say whether Exchange Online will take it. They are read for a person, not
// believed: the token is Exchange Online's, and its signature is its business.
type claims struct {
	Audience audience `json:"aud"`
	Expires  float64  `json:"exp"`
	TenantID string   `json:"tid"`
	AppID    string   `json:"appid"` // version 1.0
	AZP      string   `json:"azp"`   // the same in version 2.0
	ObjectID string   `json:"oid"`   // of an app's token: of its service principal, the enterprise application
	Roles    []string `json:"roles"` // application permissions
	Scopes   string   `json:"scp"`   // delegated permissions, separated by spaces
	UPN      string   `json:"upn"`
	Name     string   `json:"preferred_username"`
}

// audience is one, or by RFC 7519 section 4.1.3 several.
type audience string

// UnmarshalJSON takes a string, or the first of a list.
func (a *audience) UnmarshalJSON(data []byte) error {
	var list []string
	if json.Unmarshal(data, &list) == nil && len(list) > 0 {
		*a = audience(list[0])
		return nil
	}
	var one string
	err := json.Unmarshal(data, &one)
	*a = audience(one)
	return err
}

// readClaims returns false for a token that is no JWT, or an encrypted one: to its client a token is opaque.
func readClaims(token string) (claims, bool) {
	var c claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	return c, err == nil && json.Unmarshal(payload, &c) == nil
}

// What Exchange Online calls itself in the audience of a token.
const (
	exchangeAppID = "00000002-0000-0ff1-ce00-000000000000"
	sendAsApp     = "SMTP.SendAsApp"
	delegatedSend = "SMTP.Send"
)

// Registration is what the configuration says a token must be for. An empty field is not compared.
type Registration struct {
	TenantID string // compared only where it is a GUID: a token names its tenant so
	ClientID string
	Scope    string
}

// Token describes an access token that is for login and ends at expires (zero: not known), without repeating any of it.
// A Cause is a reason for which Exchange Online may refuse it. Whether it does, AUTH tells.
func Token(token string, expires time.Time, want Registration, login envelope.Address, now time.Time) Finding {
	c, ok := readClaims(token)
	if expires.IsZero() && c.Expires > 0 {
		expires = time.Unix(int64(min(c.Expires, 1<<40)), 0)
	}
	life := "no end given"
	if !expires.IsZero() {
		life = "expires in " + Roughly(expires.Sub(now))
	}
	if !ok {
		return Finding{Text: "opaque token, " + life}
	}
	delegated := c.Scopes != ""
	about := []string{"client credentials", life, "for " + string(c.Audience), "tenant " + c.TenantID, "app " + c.app()}
	switch {
	case delegated:
		about[0] = "delegated by " + c.user()
		about = append(about, "permissions "+c.Scopes)
	case len(c.Roles) > 0:
		about = append(about, "roles "+strings.Join(c.Roles, " "))
	default:
		about = append(about, "no roles")
	}
	f := c.doubt(want, login, delegated, !expires.IsZero() && !now.Before(expires))
	f.Text = strings.Join(about, ", ")
	return f
}

// The two versions of tokens have different names for the same.
func (c *claims) app() string  { return cmp.Or(c.AppID, c.AZP, "not named") }
func (c *claims) user() string { return cmp.Or(c.UPN, c.Name, "somebody") }

// ObjectID returns the object id of the service principal that an app's own token is of, or "": the one New-ServicePrincipal
// wants, which is not that of the app registration.
func ObjectID(token string) string {
	c, ok := readClaims(token)
	if !ok || c.Scopes != "" || !isGUID(c.ObjectID) {
		return ""
	}
	return c.ObjectID
}

func isGUID(s string) bool {
	return regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`).MatchString(s)
}

// doubt returns the first reason for which Exchange Online may refuse the token, if there is one.
func (c *claims) doubt(want Registration, login envelope.Address, delegated, expired bool) Finding {
	resource, _, _ := strings.Cut(want.Scope, " ")
	resource = strings.TrimSuffix(strings.TrimSuffix(resource, "/.default"), "/"+delegatedSend)
	switch {
	case isGUID(want.TenantID) && !strings.EqualFold(c.TenantID, want.TenantID):
		return Finding{Cause: fmt.Sprintf("the token is of tenant %s, but tenant_id is %s", c.TenantID, want.TenantID),
			Advice: "Copy the Directory (tenant) ID from the overview of the app registration to tenant_id, and check authority"}
	case isGUID(want.ClientID) && !strings.EqualFold(c.app(), want.ClientID):
		return Finding{Cause: fmt.Sprintf("the token is of app %s, but client_id is %s", c.app(), want.ClientID),
			Advice: "Copy the Application (client) ID from the overview of the app registration to client_id"}
	case strings.HasPrefix(resource, "https://") && !c.isFor(resource):
		return Finding{Cause: fmt.Sprintf("the token is for %s, not for Exchange Online (%s)", c.Audience, resource),
			Advice: "Check scope and cloud of the tenant; for SMTP the scope is https://outlook.office365.com/.default, and a token for Graph is not taken"}
	case expired:
		return Finding{Cause: "by this machine's clock the token has expired", Advice: "Check this machine's clock"}
	case delegated:
		return c.doubtDelegated(login)
	case !slices.ContainsFunc(c.Roles, isPermission(sendAsApp)):
		return Finding{
			Cause: "the token has no role " + sendAsApp + ": right if the app is to send by App RBAC (a role assignment in Exchange), " +
				"wrong if by the API permission, which then is missing or lacks admin consent",
			Advice: "By permission: Entra admin center > App registrations > the application > API permissions > Add a permission > APIs my " +
				"organization uses > Office 365 Exchange Online > Application permissions > SMTP.SendAsApp, then Grant admin consent. " +
				"By App RBAC, and then without that permission: New-ManagementRoleAssignment -App <object-id> " +
				"-Role 'Application SMTP.SendAsApp' -CustomResourceScope <scope>",
		}
	}
	return Finding{}
}

func (c *claims) doubtDelegated(login envelope.Address) Finding {
	switch {
	case !slices.ContainsFunc(strings.Fields(c.Scopes), isPermission(delegatedSend)):
		return Finding{Cause: "the token lacks the permission " + delegatedSend,
			Advice: "Entra admin center > App registrations > the application > API permissions: add the delegated permission SMTP.Send, and have " +
				string(login) + " sign in again"}
	case c.UPN+c.Name != "" && !strings.EqualFold(c.user(), string(login)):
		return Finding{Cause: fmt.Sprintf("%s signed in, not %s: that works only with rights on its mailbox", c.user(), login),
			Advice: fmt.Sprintf("Have %[1]s itself sign in, or give the rights. PowerShell: Add-MailboxPermission -Identity %[1]s -User %[2]s "+
				"-AccessRights FullAccess", login, c.user())}
	}
	return Finding{}
}

func isPermission(name string) func(string) bool {
	return func(s string) bool { return strings.EqualFold(s, name) }
}

// isFor reports whether the token's audience is Exchange Online, called by the resource's URL, its worldwide twin
// (outlook.office.com) or its app id.
func (c *claims) isFor(resource string) bool {
	a := strings.TrimSuffix(string(c.Audience), "/")
	return strings.EqualFold(a, strings.TrimSuffix(resource, "/")) || strings.EqualFold(a, "https://outlook.office.com") ||
		strings.EqualFold(a, "https://outlook.office365.com") || strings.EqualFold(a, exchangeAppID)
}
