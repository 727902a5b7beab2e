package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"relayd/pkg/status"
)

// Machine is the managed identity of the Azure machine relayd runs on. Virtual machines, scale sets and Kubernetes nodes
// give its tokens at the instance metadata address; App Service, Functions and Container Apps at one that they name in
// IDENTITY_ENDPOINT, with a header from IDENTITY_HEADER. AZURE_POD_IDENTITY_AUTHORITY_HOST puts another host in place of the
// metadata address, as for Microsoft's own libraries.
type Machine struct {
	ID     string              // "system", or the client ID of a user-assigned identity
	Client *http.Client        // must not use a proxy: the address is the machine's own
	Getenv func(string) string // as os.Getenv
}

// metadata is where virtual machines reach their own description, a link-local address that leaves no host.
const metadata = "http://169.254.169.254"

// maxAnswer is how much of an answer is read: a token is a few kilobytes.
const maxAnswer = 256 << 10

// Federated proves an application that trusts the managed identity: a token of the identity for audience is its assertion.
func (m *Machine) Federated(audience string) Credential {
	return func(ctx context.Context, _ string, form url.Values) error {
		token, err := m.Token(ctx, audience)
		if err != nil {
			return err
		}
		assert(form, token.AccessToken)
		return nil
	}
}

// Token returns a token of the identity itself for a resource. Its extra "client_id" is the identity's, where the machine
// says. Errors are *status.Error.
func (m *Machine) Token(ctx context.Context, resource string) (*oauth2.Token, error) {
	request, err := m.request(ctx, resource)
	if err != nil {
		return nil, unreadable("managed identity", "managed_identity", err)
	}
	started := time.Now()
	response, err := m.Client.Do(request)
	if err != nil {
		return nil, unavailable(err)
	}
	defer func() { _ = response.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, unavailable(err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, m.refused(response.StatusCode, body)
	}
	return answer(body, started)
}

func (m *Machine) request(ctx context.Context, resource string) (*http.Request, error) {
	address, header, value, version := metadata+"/metadata/identity/oauth2/token", "Metadata", "true", "2018-02-01"
	if host := m.Getenv("AZURE_POD_IDENTITY_AUTHORITY_HOST"); host != "" {
		address = strings.TrimRight(host, "/") + "/metadata/identity/oauth2/token"
	}
	if endpoint := m.Getenv("IDENTITY_ENDPOINT"); endpoint != "" && m.Getenv("IDENTITY_HEADER") != "" {
		address, header, value, version = endpoint, "X-IDENTITY-HEADER", m.Getenv("IDENTITY_HEADER"), "2019-08-01"
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("the machine names no usable address for it")
	}
	query := url.Values{"api-version": {version}, "resource": {resource}}
	if m.ID != "system" {
		query.Set("client_id", m.ID)
	}
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set(header, value)
	return request, nil
}

// answer reads a token. Lifetimes are strings in one place and numbers in another; App Service gives only expires_on.
func answer(body []byte, now time.Time) (*oauth2.Token, error) {
	var a struct {
		Token   string          `json:"access_token"`
		Type    string          `json:"token_type"`
		Client  string          `json:"client_id"`
		In      json.RawMessage `json:"expires_in"`
		Expires json.RawMessage `json:"expires_on"` // Unix time
	}
	if json.Unmarshal(body, &a) != nil || a.Token == "" {
		return nil, unavailable(errors.New("the answer has no token"))
	}
	token := &oauth2.Token{AccessToken: a.Token, TokenType: a.Type}
	if n, ok := number(a.In); ok {
		token.Expiry = now.Add(time.Duration(min(n, 1<<30)) * time.Second)
	} else if n, ok := number(a.Expires); ok {
		token.Expiry = time.Unix(n, 0)
	}
	return token.WithExtra(map[string]any{"client_id": a.Client}), nil
}

func number(raw json.RawMessage) (int64, bool) {
	n, err := strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64)
	return n, err == nil && n > 0
}

// refused reads an answer that is no token: 404, 410, 429 and 5xx pass by themselves, Microsoft says; the rest means that
// the machine has no such identity.
func (m *Machine) refused(code int, body []byte) *status.Error {
	var a struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal(body, &a) // without it there is only the status
	if strings.Trim(a.Error, "abcdefghijklmnopqrstuvwxyz_") != "" {
		a.Error = "" // not one that Microsoft gives
	}
	err := fmt.Errorf("managed identity: HTTP %d %s", code, a.Error[:min(len(a.Error), 100)])
	if code == http.StatusNotFound || code == http.StatusGone || code == http.StatusTooManyRequests || code >= 500 {
		return unavailable(err)
	}
	return &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageToken, Action: status.ParkTenant,
		Rule: "managed-identity-refused", Text: "the machine has no such managed identity",
		Cause: "the machine relayd runs on refuses a token of managed_identity",
		Advice: "Azure portal > the machine or app > Identity: turn on System assigned, or add the user-assigned identity and " +
			"configure its client ID as managed_identity",
		Err: err}
}

func unavailable(err error) *status.Error {
	return &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: status.StageToken,
		Rule: "managed-identity-unavailable", Text: "the machine's managed identity gave no token",
		Cause: "the address at which Azure gives tokens of managed identities did not answer with one", Err: err,
		Advice: "If it lasts: managed_identity works only on Azure machines and in Azure apps, and with no firewall in front of 169.254.169.254"}
}
