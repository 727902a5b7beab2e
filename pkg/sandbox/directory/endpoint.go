package directory

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/fault"
	"relayd/pkg/sandbox/text"
)

// refusal is an error on its way to the client.
type refusal struct {
	number int
	value  string
}

// ServeToken is the token endpoint; the path value "tenant" names the tenant.
func (d *Directory) ServeToken(w http.ResponseWriter, r *http.Request) {
	tenantID := r.PathValue("tenant")
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	if err := r.ParseForm(); err != nil {
		writeAADSTS(w, refusal{number: 900144, value: "grant_type"}, "", tenantID, 0, 0)
		return
	}
	form := formOf(r.PostForm)
	if rule, hit := d.opts.Faults.Due(fault.Occasion{Stage: fault.StageToken, App: form("client_id")}); hit && d.strike(w, r, rule, form) {
		return
	}
	tenant, app, refused := d.client(tenantID, form)
	if refused != nil {
		d.opts.Log.Info("token refused", zap.String("tenant", tenantID), zap.Int("aadsts", refused.number))
		writeAADSTS(w, *refused, form("client_id"), tenantID, 0, 0)
		return
	}
	lifetime := d.opts.Shortest
	if spread := d.opts.Longest - lifetime; spread > 0 {
		lifetime += mathrand.N(spread)
	}
	token, err := d.issue(tenant, app, lifetime)
	if err != nil {
		http.Error(w, "Internal Server Error", http.StatusInternalServerError)
		return
	}
	d.opts.Log.Info("token issued", zap.String("tenant", tenantID))
	seconds := int64(lifetime / time.Second)
	w.Header().Set("Cache-Control", "no-store, no-cache")
	writeJSON(w, http.StatusOK, map[string]any{
		"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token,
	})
}

// formOf reads the fields of a form that must not be repeated (RFC 6749, 3.2): a repeated one reads as absent.
func formOf(values map[string][]string) func(string) string {
	return func(name string) string {
		if v := values[name]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
}

// client authenticates the caller and checks the grant, in the order Entra complains in. Another grant is another case
// of the switch.
func (d *Directory) client(tenantID string, form func(string) string) (Tenant, App, *refusal) {
	if tenantID == "common" || tenantID == "consumers" {
		return Tenant{}, App{}, &refusal{number: 9001023}
	}
	tenant, ok := d.tenant(tenantID)
	if !ok {
		return tenant, App{}, &refusal{number: 90002}
	}
	for _, required := range []string{"grant_type", "client_id"} {
		if form(required) == "" {
			return tenant, App{}, &refusal{900144, required}
		}
	}
	switch grant := form("grant_type"); grant {
	case "client_credentials":
	default:
		return tenant, App{}, &refusal{70003, grant}
	}
	app, ok := tenant.app(form("client_id"))
	if !ok {
		return tenant, app, &refusal{number: 700016}
	}
	secret := form("client_secret")
	switch {
	case secret == "":
		return tenant, app, &refusal{number: 7000218}
	case subtle.ConstantTimeCompare([]byte(secret), []byte(app.Secret)) != 1:
		return tenant, app, &refusal{number: 7000215}
	case !app.SecretExpires.IsZero() && !time.Now().Before(app.SecretExpires):
		return tenant, app, &refusal{number: 7000222}
	}
	resource, isDefault := strings.CutSuffix(form("scope"), "/.default")
	switch {
	case !isDefault:
		return tenant, app, &refusal{70011, form("scope")}
	case form("scope") != exchangeScope:
		return tenant, app, &refusal{500011, resource}
	}
	return tenant, app, nil
}

func (d *Directory) strike(w http.ResponseWriter, r *http.Request, rule fault.Rule, form func(string) string) bool {
	if rule.Delay > 0 && !fault.Sleep(r.Context(), time.Duration(rule.Delay)) {
		return true
	}
	if rule.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(rule.RetryAfter))
	}
	switch {
	case rule.Blackhole:
		<-r.Context().Done() // the client, or the sandbox, gave up
	case rule.Close != "":
		panic(http.ErrAbortHandler) // documented way to cut the connection without a reply
	case rule.AADSTS != 0:
		writeAADSTS(w, refusal{rule.AADSTS, form("scope")}, form("client_id"), r.PathValue("tenant"), rule.Status, rule.RetryAfter)
	case rule.Status != 0:
		w.WriteHeader(rule.Status)
		fmt.Fprint(w, rule.Raw)
	default:
		return false
	}
	return true
}

// writeAADSTS answers with Entra's JSON error. status overrides the table's if it is not 0.
func writeAADSTS(w http.ResponseWriter, r refusal, client, tenant string, status, retryAfter int) {
	e := text.AADSTS{Number: r.number, Status: http.StatusBadRequest, Code: "invalid_request", Text: "The request was refused."}
	for _, known := range text.Refusals() {
		if known.Number == r.number {
			e = known
		}
	}
	if status == 0 {
		status = e.Status
	}
	if status == http.StatusTooManyRequests && retryAfter == 0 {
		w.Header().Set("Retry-After", "60")
	}
	trace, correlation := randomGUID(), randomGUID()
	now := time.Now().UTC().Format("2006-01-02 15:04:05Z")
	description := strings.NewReplacer("%[1]s", client, "%[2]s", tenant, "%[3]s", r.value).Replace(e.Text)
	writeJSON(w, status, map[string]any{
		"error": e.Code,
		"error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s",
			e.Number, description, trace, correlation, now),
		"error_codes": []int{e.Number}, "timestamp": now, "trace_id": trace, "correlation_id": correlation,
		"error_uri": fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", e.Number),
	})
}

// ServeKeys is the JSON Web Key Set.
func (d *Directory) ServeKeys(w http.ResponseWriter, _ *http.Request) {
	public := d.key.PublicKey
	encode := base64.RawURLEncoding.EncodeToString
	writeJSON(w, http.StatusOK, map[string]any{"keys": []any{map[string]string{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": d.kid, "x5t": d.kid,
		"n": encode(public.N.Bytes()), "e": encode(big.NewInt(int64(public.E)).Bytes()),
	}}})
}

// ServeMetadata is the OpenID configuration of a tenant.
func (d *Directory) ServeMetadata(w http.ResponseWriter, r *http.Request) {
	tenant, ok := d.tenant(r.PathValue("tenant"))
	if !ok {
		writeAADSTS(w, refusal{number: 90002}, "", r.PathValue("tenant"), 0, 0)
		return
	}
	base := d.opts.Authority() + "/" + tenant.ID
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer": base + "/v2.0", "token_endpoint": base + "/oauth2/v2.0/token", "jwks_uri": base + "/discovery/v2.0/keys",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post"},
		"grant_types_supported":                 []string{"client_credentials"},
		"response_types_supported":              []string{"token"},
		"subject_types_supported":               []string{"pairwise"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // an error means the client is gone
}
