package endpoint

import (
	"fmt"
	"net/http"
	"time"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/directory/ticket"
	"relayd/pkg/sandbox/fault"
)

// ServeKeys is the JSON Web Key Set.
func (e *Endpoint) ServeKeys(w http.ResponseWriter, _ *http.Request) {
	refusal.JSON(w, http.StatusOK, e.dir.Keys())
}

// ServeMetadata is the OpenID configuration of a tenant.
func (e *Endpoint) ServeMetadata(w http.ResponseWriter, r *http.Request) {
	tenant, ok := e.dir.Tenant(r.PathValue("tenant"))
	if !ok {
		refusal.New(90002).Tell(refusal.About{Tenant: r.PathValue("tenant")}).Write(w)
		return
	}
	base := e.dir.Authority() + "/" + tenant.ID
	refusal.JSON(w, http.StatusOK, map[string]any{
		"issuer":                                base + "/v2.0",
		"authorization_endpoint":                base + "/oauth2/v2.0/authorize",
		"token_endpoint":                        base + "/oauth2/v2.0/token",
		"device_authorization_endpoint":         base + "/oauth2/v2.0/devicecode",
		"end_session_endpoint":                  base + "/oauth2/v2.0/logout",
		"jwks_uri":                              base + "/discovery/v2.0/keys",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt", "client_secret_basic"},
		"grant_types_supported":                 []string{grantCode, grantRefresh, grantDevice, grantClient},
		"response_types_supported":              []string{"code"},
		"response_modes_supported":              []string{"query"},
		"subject_types_supported":               []string{"pairwise"},
		"scopes_supported":                      []string{"openid", "profile", "email", "offline_access"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"claims_supported": []string{"sub", "iss", "aud", "exp", "iat", "nonce", "preferred_username", "name", "tid", "oid",
			"ver", "email"},
	})
}

// ServeDeviceCode is the device authorization endpoint (RFC 8628, 3.1). As at Entra there is no
// verification_uri_complete.
func (e *Endpoint) ServeDeviceCode(w http.ResponseWriter, r *http.Request) {
	const kind = "device_authorization"
	e.count(kind, false)
	tenantID := r.PathValue("tenant")
	f, _ := readForm(w, r)
	occasion := fault.Occasion{Stage: fault.StageToken, App: f.get("client_id"), Grant: kind}
	if rule, hit := e.dir.Faults().Due(occasion); hit && strike(w, r, rule, f) {
		return
	}
	q := &request{form: f}
	if refused := e.checkDevice(tenantID, q); refused != nil {
		refused.Tell(refusal.About{Client: f.get("client_id"), Tenant: tenantID}).Write(w)
		return
	}
	deviceCode, userCode, interval := e.opts.Tickets.NewDevice(
		ticket.Subject{Tenant: q.tenant.ID, App: q.app.ID, Scope: f.get("scope")})
	page := e.dir.Authority() + "/devicelogin"
	e.count(kind, true)
	refusal.JSON(w, http.StatusOK, map[string]any{
		"device_code": deviceCode, "user_code": userCode, "verification_uri": page,
		"expires_in": int64(ticket.DeviceLife / time.Second), "interval": int64(interval / time.Second),
		"message": fmt.Sprintf("To sign in, use a web browser to open the page %s and enter the code %s to authenticate.", page, userCode),
	})
}

// checkDevice finds tenant and app of a request for a device code and reads its scope.
func (e *Endpoint) checkDevice(tenantID string, q *request) *refusal.Refusal {
	if refused := e.findTenant(tenantID, q); refused != nil {
		return refused
	}
	for _, required := range []string{"client_id", "scope"} {
		if q.form.get(required) == "" {
			return &refusal.Refusal{Number: 900144, Value: required}
		}
	}
	if refused := q.findApp(); refused != nil {
		return refused
	}
	_, refused := directory.ParseScopes(q.form.get("scope"))
	return refused
}
