package endpoint

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/fault"
)

// ServeManagedIdentity is the token endpoint of a virtual machine's metadata service (IMDS), which on Azure only the
// machine itself reaches. Its identities are the apps with App.ManagedIdentity.
func (e *Endpoint) ServeManagedIdentity(w http.ResponseWriter, r *http.Request) {
	const kind = "managed_identity"
	e.count(kind, false)
	f := form(r.URL.Query())
	occasion := fault.Occasion{Stage: fault.StageToken, App: f.get("client_id"), Grant: kind}
	if rule, hit := e.dir.Faults().Due(occasion); hit && strike(w, r, rule, f) {
		return
	}
	refuse := func(code, text string) {
		refusal.JSON(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": text})
	}
	resource := strings.TrimSuffix(f.get("resource"), "/")
	switch {
	case !strings.EqualFold(r.Header.Get("Metadata"), "true"):
		refuse("invalid_request", "Required metadata header not specified")
		return
	case r.Header.Get("X-Forwarded-For") != "":
		refuse("invalid_request", "A forwarded request is not answered")
		return
	case f.get("api-version") == "":
		refuse("invalid_request", "Required query variable 'api-version' is missing")
		return
	case f.get("api-version") != "2018-02-01":
		refuse("bad_request_102", "The api-version is not supported")
		return
	case resource == "":
		refuse("invalid_request", "Required query variable 'resource' is missing")
		return
	case resource != appResource:
		refuse("invalid_resource", "AADSTS500011: The resource principal named "+resource+" was not found in the tenant.")
		return
	}
	t, a, ok := e.identity(f.get("client_id"))
	if !ok {
		refuse("invalid_request", "Identity not found")
		return
	}
	lifetime := e.lifetime()
	token, err := e.dir.AppToken(t, a, directory.ACRCertificate, lifetime)
	if err != nil {
		http.Error(w, "Internal Server Error", http.StatusInternalServerError)
		return
	}
	e.count(kind, true)
	now := time.Now()
	seconds := strconv.FormatInt(int64(lifetime/time.Second), 10) // strings all, as the service has them
	refusal.JSON(w, http.StatusOK, map[string]string{
		"access_token": token, "client_id": a.ID, "resource": f.get("resource"), "token_type": "Bearer",
		"expires_in": seconds, "ext_expires_in": seconds,
		"expires_on": strconv.FormatInt(now.Add(lifetime).Unix(), 10), "not_before": strconv.FormatInt(now.Unix(), 10),
	})
}

// identity finds the machine's identity: the one with that client id, or the system's own.
func (e *Endpoint) identity(clientID string) (directory.Tenant, directory.App, bool) {
	for _, t := range e.dir.List() {
		for _, a := range t.Apps {
			if a.ManagedIdentity != "" && strings.EqualFold(clientID, a.ID) || a.ManagedIdentity == "system" && clientID == "" {
				return t, a, true
			}
		}
	}
	return directory.Tenant{}, directory.App{}, false
}
