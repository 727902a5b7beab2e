package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/control"
	"relayd/pkg/admin/api/feed"
	"relayd/pkg/admin/console"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// desk is a Console, sessions, links and vault of which the test knows everything. All methods note their call and return err,
// where it is set.
type desk struct {
	mu       sync.Mutex // guards the rest
	err      error
	calls    []string
	tenant   console.TenantInput
	sender   console.SenderInput
	query    console.SenderQuery
	entries  []console.Entry
	findings []console.Finding
	nothing  bool // lists are nil
	events   chan console.Event
}

func (d *desk) call(format string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
	return d.err
}

func (d *desk) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

func (d *desk) Overview(context.Context) (*console.Overview, error) {
	return &console.Overview{Version: "v1", Queue: map[string]int{"parked": 3}}, d.call("overview")
}

func (d *desk) Configuration(context.Context) (*console.Configuration, error) {
	return &console.Configuration{File: "/etc/relayd.yaml"}, d.call("configuration")
}

func (d *desk) Audit(_ context.Context, before uint64, limit int) ([]console.Entry, error) {
	return d.entries[:min(limit, len(d.entries))], d.call("audit %d %d", before, limit)
}

func (d *desk) Tenants(context.Context) ([]console.Tenant, error) {
	if d.nothing {
		return nil, d.call("tenants")
	}
	return []console.Tenant{{Name: "contoso"}}, d.call("tenants")
}

func (d *desk) Tenant(_ context.Context, name string) (*console.Tenant, error) {
	return &console.Tenant{Name: name, RedirectURI: "https://relay/oauth/callback"}, d.call("tenant %s", name)
}

func (d *desk) SaveTenant(_ context.Context, name string, in console.TenantInput) error {
	d.tenant = in
	return d.call("save tenant %q", name)
}
func (d *desk) RemoveTenant(_ context.Context, name string) error {
	return d.call("remove tenant %s", name)
}

func (d *desk) CheckTenant(_ context.Context, name string) ([]console.Finding, error) {
	return d.findings, d.call("check %s", name)
}

func (d *desk) Senders(_ context.Context, q console.SenderQuery) (*console.SenderPage, error) {
	d.query = q
	if d.nothing {
		return &console.SenderPage{}, d.call("senders")
	}
	return &console.SenderPage{Senders: []console.Sender{{Match: "*@contoso.com"}}, Total: 7}, d.call("senders")
}

func (d *desk) Sender(_ context.Context, match string) (*console.Sender, error) {
	return &console.Sender{Match: match, State: console.SenderReady}, d.call("sender %s", match)
}

func (d *desk) SaveSender(_ context.Context, match string, in console.SenderInput) error {
	d.sender = in
	return d.call("save sender %q", match)
}
func (d *desk) RemoveSender(_ context.Context, match string) error {
	return d.call("remove sender %s", match)
}
func (d *desk) Pause(_ context.Context, match string) error  { return d.call("pause %s", match) }
func (d *desk) Resume(_ context.Context, match string) error { return d.call("resume %s", match) }
func (d *desk) Revoke(_ context.Context, match string) error { return d.call("revoke %s", match) }

func (d *desk) Examine(_ context.Context, sender string, found func(console.Finding)) error {
	for _, f := range d.findings {
		found(f)
	}
	return d.call("examine %s", sender)
}

func (d *desk) Invite(_ context.Context, match string) (*console.Invitation, error) {
	return &console.Invitation{Code: "canary", Sender: match, URL: "https://relay/consent/x"}, d.call("invite %s", match)
}

func (d *desk) StartDevice(_ context.Context, match string) (*console.Device, error) {
	return &console.Device{ID: "d1", UserCode: "ABCD", State: "pending"}, d.call("device for %s", match)
}

func (d *desk) Device(_ context.Context, id string) (*console.Device, error) {
	return &console.Device{ID: id, State: "done"}, d.call("device %s", id)
}

func (d *desk) Follow(context.Context) <-chan console.Event {
	_ = d.call("follow")
	return d.events
}

// The API has no browser to send anywhere.
func (d *desk) StartConsent(context.Context, string, string) (string, error) {
	panic("not for the API")
}
func (d *desk) StartAdminConsent(context.Context, string, string) (string, error) {
	panic("not for the API")
}
func (d *desk) FinishConsent(context.Context, console.Callback) (*console.Consented, error) {
	panic("not for the API")
}
func (d *desk) Invitation(context.Context, string) (*console.Invitation, error) {
	panic("not for the API")
}
func (d *desk) AcceptInvitation(context.Context, string, string) (string, error) {
	panic("not for the API")
}

func (d *desk) Sessions(context.Context) ([]access.Session, error) {
	return []access.Session{{ID: "s1", User: "ops@contoso.com"}}, d.call("sessions")
}
func (d *desk) EndSession(_ context.Context, id string) error { return d.call("end %s", id) }
func (d *desk) EndSessions(context.Context, string) (int, error) {
	panic("not for the API")
}

func (d *desk) NewLink(_ context.Context, role access.Role, by string) (string, time.Time, error) {
	return "https://relay/login?code=x", time.Unix(1e9, 0), d.call("link %s by %s", role, by)
}

func (d *desk) Rotate(context.Context) (int, error) { return 42, d.call("rotate") }

// newDesk returns a server with the whole API on it.
func newDesk(t *testing.T) (*world, *desk) {
	t.Helper()
	d := &desk{events: make(chan console.Event)}
	w := newWorld(t, func(o *Options) { o.Console, o.Links, o.Sessions, o.Vault = d, d, d, d })
	w.f.get = &Message{State: envelope.Sent}
	return w, d
}

const (
	anID   = "0123456789abcdefghjk"
	sender = `{"match":"*@contoso.com","tenant":"contoso"}`
	tenant = `{"name":"contoso","tenant_id":"t","client_id":"c","client_secret":"canary"}`
)

// what is every operation of the API, with a request it takes.
func what() []ask {
	const messages, senders, tenants = "/api/v1/messages", "/api/v1/senders", "/api/v1/tenants"
	return []ask{
		{"GET", messages, "", "", access.Read, 200, "list"},
		{"GET", messages + "/{id}", anID, "", access.Read, 200, "get " + anID},
		{"GET", messages + "/{id}/raw", anID, "", access.Content, 200, "raw " + anID},
		{"POST", messages, "", `{"from":"a@contoso.com","to":["b@example.com"]}`, access.Send, 202, "send ops@contoso.com 127.0.0.1"},
		{"POST", messages + "/{id}/retry", anID, "", access.Operate, 204, "retry " + anID + " ops@contoso.com"},
		{"POST", messages + "/{id}/hold", anID, "", access.Operate, 204, "hold " + anID + " ops@contoso.com"},
		{"POST", messages + "/{id}/release", anID, "", access.Operate, 204, "release " + anID + " ops@contoso.com"},
		{"POST", messages + "/{id}/drop", anID, "", access.Operate, 204, "drop " + anID + " ops@contoso.com"},
		{"POST", messages + "/actions", "", `{"action":"drop","ids":["` + anID + `"]}`, access.Operate, 200, "drop " + anID + " ops@contoso.com"},
		{"GET", senders, "", "", access.Read, 200, "senders"},
		{"POST", senders, "", sender, access.Manage, 201, `save sender ""`},
		{"GET", senders + "/{match}", "%2A%40contoso.com", "", access.Read, 200, "sender *@contoso.com"},
		{"PUT", senders + "/{match}", "*@contoso.com", sender, access.Manage, 204, `save sender "*@contoso.com"`},
		{"DELETE", senders + "/{match}", "a%2Fb%25@contoso.com", "", access.Manage, 204, "remove sender a/b%@contoso.com"},
		{"POST", senders + "/{match}/pause", "%2a@contoso.com", "", access.Operate, 204, "pause *@contoso.com"},
		{"POST", senders + "/{match}/resume", "a+b@contoso.com", "{}", access.Operate, 204, "resume a+b@contoso.com"},
		{"POST", senders + "/{match}/revoke", "a%20b@contoso.com", "", access.Operate, 204, "revoke a b@contoso.com"},
		{"POST", senders + "/{match}/device", "a@contoso.com", "", access.Operate, 201, "device for a@contoso.com"},
		{"POST", senders + "/{match}/invitation", "a@contoso.com", "", access.Operate, 201, "invite a@contoso.com"},
		{"POST", senders + "/{match}/examine", "a@contoso.com", "", access.Operate, 200, "examine a@contoso.com"},
		{"GET", "/api/v1/devices/{id}", "d1", "", access.Operate, 200, "device d1"},
		{"GET", tenants, "", "", access.Read, 200, "tenants"},
		{"POST", tenants, "", tenant, access.Manage, 201, `save tenant ""`},
		{"GET", tenants + "/{name}", "contoso", "", access.Read, 200, "tenant contoso"},
		{"PUT", tenants + "/{name}", "old%20name", tenant, access.Manage, 204, `save tenant "old name"`},
		{"DELETE", tenants + "/{name}", "contoso", "", access.Manage, 204, "remove tenant contoso"},
		{"POST", tenants + "/{name}/check", "contoso", "", access.Operate, 200, "check contoso"},
		{"GET", "/api/v1/stats", "", "", access.Read, 200, "overview"},
		{"GET", "/api/v1/config", "", "", access.Read, 200, "configuration"},
		{"GET", "/api/v1/audit", "", "", access.Read, 200, "audit 0 100"},
		{"GET", "/api/v1/events", "", "", access.Read, 200, "follow"},
		{"GET", "/api/v1/sessions", "", "", access.Manage, 200, "sessions"},
		{"DELETE", "/api/v1/sessions/{id}", "s1", "", access.Manage, 204, "end s1"},
		{"POST", "/api/v1/login-links", "", `{"role":"viewer"}`, access.Manage, 201, "link viewer by ops@contoso.com"},
		{"POST", "/api/v1/vault/rotate", "", "", access.Manage, 200, "rotate"},
	}
}

// ask is one operation, and a request it takes.
type ask struct {
	method, path, name, body string // name stands in the path for its parameter
	scope                    access.Scope
	code                     int
	call                     string // what it comes to
}

func (a *ask) url() string {
	before, after, ok := strings.Cut(a.path, "{")
	if !ok {
		return a.path
	}
	_, after, _ = strings.Cut(after, "}")
	return before + a.name + after
}

func allBut(scope access.Scope) []access.Scope {
	return slices.DeleteFunc(access.Admin.Scopes(), func(s access.Scope) bool { return s == scope })
}

// Each operation, asked for by nobody, by one who has all rights but its own, and by one who has it.
func TestScopes(t *testing.T) {
	w, d := newDesk(t)
	close(d.events) // a stream ends at once
	for _, op := range what() {
		t.Run(op.method+" "+op.path, func(t *testing.T) {
			w.f.raw, w.f.size = strings.NewReader(""), 0
			methods := []string{op.method}
			if op.method == "GET" {
				methods = append(methods, "HEAD") // shows that there is something, and how much
			}
			for _, method := range methods {
				w.who.Store(nil)
				a := w.do(method, op.url(), op.body, nil)
				if a.code != 401 || a.header.Get("WWW-Authenticate") != "Bearer" || method != "HEAD" && !strings.Contains(a.problem(t), "relayd token makes one") {
					t.Errorf("%s by nobody: got %d %q, %v", method, a.code, a.body, a.header)
				}
				w.who.Store(&access.Principal{Name: "token grafana", Scopes: allBut(op.scope)})
				a = w.do(method, op.url(), op.body, nil)
				if a.code != 403 || a.header.Get("WWW-Authenticate") != `Bearer error="insufficient_scope", scope="`+string(op.scope)+`"` {
					t.Errorf("%s without %s: got %d %q, %v", method, op.scope, a.code, a.body, a.header)
				}
				if want := "this takes the scope " + string(op.scope) + ", which token grafana does not have"; method != "HEAD" && a.problem(t) != want {
					t.Errorf("without %s: got %q, want %q", op.scope, a.body, want)
				}
				a = w.do(method, op.url()+"?%zz", "{", header("Content-Type", "text/plain"))
				if a.code != 403 {
					t.Errorf("%s of rubbish without %s: got %d", method, op.scope, a.code)
				}
			}
			if calls := append(d.take(), w.f.calls...); len(calls) > 0 {
				t.Errorf("asked for %v", calls)
			}
			who := admin()
			if op.scope != access.Manage { // a role cannot be handed on by one who lacks it
				who.Role, who.Scopes = "", []access.Scope{op.scope}
			}
			w.who.Store(who)
			a := w.do(op.method, op.url(), op.body, nil)
			if calls := append(d.take(), w.f.calls...); a.code != op.code || !slices.Contains(calls, op.call) {
				t.Errorf("with %s: got %d %q after %q, want %d after %q", op.scope, a.code, a.body, calls, op.code, op.call)
			}
			if a.body == "" && op.code == 200 && !strings.HasSuffix(op.path, "raw") && !strings.HasSuffix(op.path, "examine") || a.body != "" && op.code == 204 {
				t.Errorf("got %d with %q", a.code, a.body)
			}
			if strings.Contains(a.body, "canary") {
				t.Errorf("shows a secret: %s", a.body)
			}
			w.f.calls = nil
		})
	}
	if text := fmt.Sprint(w.logs.All()); strings.Contains(text, "canary") {
		t.Error("the log has a secret")
	}
}

// What nobody may see is not told apart from what is not there, and credentials that are not known are named as that.
func TestNobody(t *testing.T) {
	w, _ := newDesk(t)
	w.who.Store(nil)
	for _, path := range []string{"/api/", "/api/v1/nothing", "/api/v1/openapi.json", "/api//x", "/api/v1/messages?a=%zz"} {
		if a := w.do("GET", path, "", nil); a.code != 401 {
			t.Errorf("%s: got %d %q", path, a.code, a.body)
		}
	}
	a := w.do("GET", "/api/v1/senders", "", header("Authorization", "Bearer wrong"))
	if a.code != 401 || a.header.Get("WWW-Authenticate") != `Bearer error="invalid_token"` || !strings.Contains(a.problem(t), "not known here, or are no longer good") {
		t.Errorf("a wrong token: got %d %q, %v", a.code, a.body, a.header)
	}
	w.who.Store(&access.Principal{Name: "none at all"})
	if a := w.do("GET", "/api/v1/openapi.json", "", nil); a.code != 200 {
		t.Errorf("the document without any scope: got %d", a.code)
	}
}

// The document has each operation with its scope, a summary, and what it may answer.
func TestDocument(t *testing.T) {
	w, _ := newDesk(t)
	a := w.do("GET", documentPath, "", nil)
	var doc struct {
		OpenAPI    string
		Info       struct{ Title, Version, Description string }
		Paths      map[string]map[string]map[string]any
		Components struct{ Schemas, SecuritySchemes map[string]any }
	}
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil || a.code != 200 || doc.OpenAPI != "3.1.0" || doc.Info.Title != "relayd" || doc.Info.Version == "" {
		t.Fatalf("got %d %.200q, %v", a.code, a.body, err)
	}
	if scheme := fmt.Sprint(doc.Components.SecuritySchemes["bearer"]); !strings.Contains(scheme, "scheme:bearer") || !strings.Contains(scheme, "type:http") {
		t.Errorf("security: got %s", scheme)
	}
	seen := map[any]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			at := strings.ToUpper(method) + " " + path
			i := slices.IndexFunc(what(), func(a ask) bool { return a.method+" "+a.path == at })
			if i < 0 {
				t.Errorf("%s is in no test", at)
				continue
			}
			want := what()[i]
			if op["x-scope"] != string(want.scope) || fmt.Sprint(op["security"]) != "[map[bearer:["+string(want.scope)+"]]]" ||
				!strings.HasSuffix(fmt.Sprint(op["description"]), "Scope: "+string(want.scope)+".") {
				t.Errorf("%s: scope %v, security %v, %v", at, op["x-scope"], op["security"], op["description"])
			}
			if seen[op["operationId"]] || op["operationId"] == "" || op["summary"] == "" || op["tags"] == nil {
				t.Errorf("%s: got %v", at, op)
			}
			seen[op["operationId"]] = true
			responses := op["responses"].(map[string]any)
			codes := []string{fmt.Sprint(want.code), "400", "401", "403", "500", "503"}
			if strings.Contains(path, "{") {
				codes = append(codes, "422")
				if !strings.Contains(path, "sessions") {
					codes = append(codes, "404")
				}
			}
			if method == "post" || method == "put" {
				codes = append(codes, "408", "413", "415")
			}
			for _, code := range codes {
				r := fmt.Sprint(responses[code])
				if responses[code] == nil || code >= "400" && !strings.Contains(r, "application/problem+json") {
					t.Errorf("%s does not say what %s is: %s", at, code, r)
				}
			}
			for code := range responses {
				if code < "300" && code != fmt.Sprint(want.code) {
					t.Errorf("%s says %s", at, code)
				}
			}
		}
	}
	if len(seen) != len(what()) {
		t.Errorf("%d operations, want %d", len(seen), len(what()))
	}
	var flat bytes.Buffer
	if printed, err := Document(); err != nil || json.Compact(&flat, printed) != nil || flat.String() != a.body {
		t.Errorf("Document is not what is served: %v", err)
	}
	for ref := range strings.SplitSeq(a.body, `"$ref":"#/components/schemas/`) {
		if name, _, ok := strings.Cut(ref, `"`); ok && ref != "" && !strings.HasPrefix(ref, "{") && doc.Components.Schemas[name] == nil {
			t.Errorf("reference to %q, which is not there", name)
		}
	}
	if model := fmt.Sprint(doc.Components.Schemas["ErrorModel"]); !strings.Contains(model, "advice") || !strings.Contains(model, "cause") {
		t.Errorf("errors: got %s", model)
	}
	body := fmt.Sprint(doc.Paths[messagesPath]["post"]["requestBody"])
	if !strings.Contains(body, "application/json") || !strings.Contains(body, "message/rfc822") {
		t.Errorf("send takes %s", body)
	}
	for path, want := range map[string]string{
		"get " + messagesPath + "/{id}/raw":       "message/rfc822",
		"get /api/v1/events":                      "text/event-stream",
		"post /api/v1/senders/{match}/examine":    "application/x-ndjson",
		"post /api/v1/senders":                    "Location",
		"put /api/v1/tenants/{name}":              "204",
		"delete /api/v1/tenants/{name}":           "409",
		"post /api/v1/messages":                   "507",
		"get /api/v1/devices/{id}":                "410",
		"post /api/v1/messages/{id}/drop":         "409",
		"post /api/v1/senders/{match}/invitation": "Invitation",
		"get /api/v1/audit":                       "Audit",
		"get /api/v1/stats":                       "Overview",
		"get /api/v1/senders/{match}":             "Sender",
		"post /api/v1/tenants/{name}/check":       "Findings",
		"post /api/v1/senders/{match}/device":     "Device",
		"get /api/v1/sessions":                    "SessionList",
	} {
		method, path, _ := strings.Cut(path, " ")
		if responses := fmt.Sprint(doc.Paths[path][method]["responses"]); !strings.Contains(responses, want) {
			t.Errorf("%s %s does not say %s: %s", method, path, want, responses)
		}
	}
}

// What is not there has no operations.
func TestWithoutConsole(t *testing.T) {
	w := newWorld(t, nil)
	for _, op := range what() {
		if strings.HasPrefix(op.path, messagesPath) {
			continue
		}
		if a := w.do(op.method, op.url(), op.body, nil); a.code != 404 {
			t.Errorf("%s %s: got %d", op.method, op.path, a.code)
		}
	}
	if a := w.do("GET", documentPath, "", nil); strings.Contains(a.body, "senders") && strings.Contains(a.body, "/api/v1/senders") {
		t.Error("the document has what is not there")
	}
}

// Each error of the console, on each operation that can meet it.
func TestConsoleErrors(t *testing.T) {
	secret := errors.New("/var/lib/relayd: canary")
	for _, tt := range []struct {
		err    error
		code   int
		detail string
		more   string // stands somewhere in the answer
	}{
		{fmt.Errorf("ask: %w", console.ErrNotFound), 404, "there is no such tenant, sender or request", ""},
		{fmt.Errorf("ask: %w", console.ErrFile), 409, "it stands in the configuration file, so it can only be changed there", ""},
		{console.ErrInUse, 409, "senders still use this tenant; remove them first", ""},
		{console.ErrExpired, 410, "this link has been used already, or has expired; ask for a new one", ""},
		{
			fmt.Errorf("save: %w", console.Mistakes{{Field: "match", Text: "is no address"}, {Field: "tenant", Text: "is not there"}}), 422,
			"match: is no address; tenant: is not there",
			`"errors":[{"message":"is no address","location":"body.match"},{"message":"is not there","location":"body.tenant"}]`,
		},
		{
			&status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 3}, Text: "sign-in refused", Cause: "the consent is gone", Advice: "sign in again", Err: secret}, 422,
			"535 5.7.3 sign-in refused", `"cause":"the consent is gone","advice":"sign in again"`,
		},
		{secret, 503, "451 4.3.0 internal error, try again", ""},
		{context.DeadlineExceeded, 503, "no answer in time; ask for less, or try again", ""},
	} {
		w, d := newDesk(t)
		d.err = tt.err
		for _, op := range what() {
			if strings.HasPrefix(op.path, messagesPath) || op.path == "/api/v1/events" {
				continue
			}
			a := w.do(op.method, op.url(), op.body, nil)
			if detail := a.problem(t); a.code != tt.code || detail != tt.detail || !strings.Contains(a.body, tt.more) || strings.Contains(a.body, "canary") {
				t.Errorf("%s %s with %v: got %d %q, want %d %q", op.method, op.path, tt.err, a.code, a.body, tt.code, tt.detail)
			}
			if a.header.Get("Location") != "" {
				t.Errorf("%s %s with %v: Location %q", op.method, op.path, tt.err, a.header.Get("Location"))
			}
		}
	}
}

// Advice is for those who look after the relay, not for an app that may only send.
func TestAdviceIsForOperators(t *testing.T) {
	w := newWorld(t, nil)
	w.f.err = &status.Error{Code: 550, Text: "no", Cause: "a cause", Advice: "an advice"}
	for scopes, want := range map[access.Scope]bool{access.Read: true, access.Content: false} {
		w.who.Store(&access.Principal{Name: "app", Scopes: []access.Scope{access.Send, scopes}})
		a := w.do("POST", messagesPath, `{"from":"a@contoso.com","to":["b@example.com"]}`, nil)
		if a.code != 422 || strings.Contains(a.body, "a cause") != want || strings.Contains(a.body, "an advice") != want {
			t.Errorf("with %s: got %d %q", scopes, a.code, a.body)
		}
	}
}

func TestSendersAndTenants(t *testing.T) {
	w, d := newDesk(t)
	page := decode[console.SenderPage](t, w.do("GET", "/api/v1/senders?text=con&tenant=contoso&state=parked&offset=20&limit=10", "", nil), 200)
	if want := (console.SenderQuery{Text: "con", Tenant: "contoso", State: "parked", Offset: 20, Limit: 10}); d.query != want || page.Total != 7 || len(page.Senders) != 1 {
		t.Errorf("asked for %+v, got %+v", d.query, page)
	}
	w.do("GET", "/api/v1/senders", "", nil)
	if want := (console.SenderQuery{Limit: 100}); d.query != want {
		t.Errorf("asked for %+v", d.query)
	}
	a := w.do("POST", "/api/v1/senders", `{"match":"*@contoso.com","tenant":"contoso","login":"a@contoso.com","recipients_per_day":5}`, nil)
	if want := (console.SenderInput{Match: "*@contoso.com", Tenant: "contoso", Login: "a@contoso.com", RecipientsPerDay: 5}); a.code != 201 || d.sender != want ||
		a.header.Get("Location") != "/api/v1/senders/%2A@contoso.com" || a.body != "" {
		t.Errorf("got %d %q, %v, saved %+v", a.code, a.body, a.header, d.sender)
	}
	found := decode[console.Sender](t, w.do("GET", a.header.Get("Location"), "", nil), 200)
	if found.Match != "*@contoso.com" {
		t.Errorf("Location leads to %+v", found)
	}
	a = w.do("POST", "/api/v1/tenants", `{"name":"a/b ..","tenant_id":"t","client_id":"c","grant":"client_credentials","client_secret":"x","ca_file":"/ca"}`, nil)
	if want := (console.TenantInput{Name: "a/b ..", TenantID: "t", ClientID: "c", Grant: "client_credentials", ClientSecret: "x", CAFile: "/ca"}); a.code != 201 || d.tenant != want {
		t.Errorf("got %d %q, saved %+v", a.code, a.body, d.tenant)
	}
	if found := decode[console.Tenant](t, w.do("GET", a.header.Get("Location"), "", nil), 200); found.Name != "a/b .." {
		t.Errorf("Location %s leads to %+v", a.header.Get("Location"), found)
	}
	d.nothing = true
	for path, want := range map[string]string{
		"/api/v1/senders": `{"senders":[],"total":0}`, "/api/v1/tenants": `{"tenants":[]}`, "/api/v1/audit": `{"entries":[]}`,
	} {
		if a := w.do("GET", path, "", nil); a.body != want+"\n" {
			t.Errorf("%s: got %q, want %q", path, a.body, want)
		}
	}
	if a := w.do("POST", "/api/v1/tenants/x/check", "", nil); a.body != `{"findings":[]}`+"\n" {
		t.Errorf("got %q", a.body)
	}
	for path, want := range map[string][]string{
		"/api/v1/stats": {`"hour":[]`, `"day":[]`, `"parked":[]`, `"expiries":[]`}, "/api/v1/config": {`"settings":[]`, `"warnings":[]`},
	} {
		a := w.do("GET", path, "", nil)
		for _, part := range want {
			if !strings.Contains(a.body, part) {
				t.Errorf("%s: got %q, want %s", path, a.body, part)
			}
		}
	}
}

// What is wrong by its form never reaches the console.
func TestBadForms(t *testing.T) {
	w, d := newDesk(t)
	for _, tt := range []struct {
		method, path, body string
		code               int
		detail             string
	}{
		{"POST", "/api/v1/senders", `{"match":"a@b.c","tenant":"t","tennant":"x"}`, 422, "body.tennant: unexpected property"},
		{"POST", "/api/v1/senders", `{"match":"a@b.c","tenant":"t","connections":"3"}`, 422, "body.connections: expected integer"},
		{"POST", "/api/v1/senders", `{"tenant":"t"}`, 422, "expected required property match to be present"},
		{"POST", "/api/v1/senders", "", 400, "request body is required"},
		{"POST", "/api/v1/senders", `{"match":`, 400, "body: unexpected end of JSON input"},
		{"PUT", "/api/v1/senders/a@b.c", `[]`, 422, "body: expected object"},
		{"PUT", "/api/v1/senders/" + strings.Repeat("x", 321), sender, 422, "path.match: expected length <= 320"},
		{"DELETE", "/api/v1/senders/a@b.c", `{}`, 400, "a DELETE takes no body"},
		{"GET", "/api/v1/senders?state=lost", "", 422, "query.state: expected value to be one of"},
		{"GET", "/api/v1/senders?limit=1001", "", 422, "query.limit: expected number <= 1000"},
		{"GET", "/api/v1/senders?offset=-1", "", 422, "query.offset: expected number >= 0"},
		{"GET", "/api/v1/audit?before=-1", "", 422, "query.before: invalid integer"},
		{"GET", "/api/v1/audit?limit=0", "", 422, "query.limit: expected number >= 1"},
		{"POST", "/api/v1/senders/a@b.c/pause", `{"for":"1h"}`, 422, "body.for: unexpected property"},
		{"POST", "/api/v1/senders/*@b.c/examine", "", 422, "path.match: only one address can be examined; name one of that domain"},
		{"POST", "/api/v1/login-links", `{"role":"root"}`, 422, "body.role: expected value to be one of"},
		{"POST", "/api/v1/login-links", `{}`, 422, "expected required property role"},
		{"GET", "/api/v1/events?id=x", "", 422, "query.id: not a queue id"},
		{"GET", "/api/v1/events?sender=nobody", "", 422, "query.sender: write an address, or *@domain"},
		{"GET", "/api/v1/events?sender=*@", "", 422, "query.sender: write an address, or *@domain"},
		{"POST", "/api/v1/senders/a@b.c", "", 405, "only GET and HEAD and PUT and DELETE is allowed here"},
		{"PUT", "/api/v1/senders", sender, 405, "only GET and HEAD and POST is allowed here"},
		{"GET", "/api/v1/senders/", "", 404, "nothing here"},
		{"GET", "/api/v1/senders/../tenants", "", 404, "nothing here"},
		{"GET", "/api/v1/senders//pause", "", 404, "nothing here"},
	} {
		a := w.do(tt.method, tt.path, tt.body, nil)
		if detail := a.problem(t); a.code != tt.code || !strings.Contains(detail, tt.detail) {
			t.Errorf("%s %s %s: got %d %q, want %d %q", tt.method, tt.path, tt.body, a.code, detail, tt.code, tt.detail)
		}
	}
	for _, method := range []string{"PUT", "DELETE"} {
		body := sender
		if method == "DELETE" {
			body = ""
		}
		if a := w.do(method, "/api/v1/senders/a@b.c", body, header("Sec-Fetch-Site", "cross-site")); a.code != 403 || !strings.Contains(a.body, "another site") {
			t.Errorf("%s from another site: got %d %q", method, a.code, a.body)
		}
	}
	if a := w.do("PUT", "/api/v1/senders/a@b.c", sender, header("Content-Type", "message/rfc822")); a.code != 415 {
		t.Errorf("PUT of a message: got %d", a.code)
	}
	if calls := d.take(); len(calls) > 0 {
		t.Errorf("asked for %v", calls)
	}
}

func TestExamine(t *testing.T) {
	w, d := newDesk(t)
	d.findings = []console.Finding{{Step: "DNS", Result: "ok", Detail: "one address"}, {Step: "TCP", Result: "fail", Detail: "refused", Advice: "open port 587"}}
	lines := func() (found []console.Finding) {
		t.Helper()
		a := w.do("POST", "/api/v1/senders/a@contoso.com/examine", "", nil)
		if a.code != 200 || a.header.Get("Content-Type") != "application/x-ndjson" {
			t.Errorf("got %d %q, %v", a.code, a.body, a.header)
		}
		for line := range strings.Lines(a.body) {
			var f console.Finding
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			found = append(found, f)
		}
		return found
	}
	if got := lines(); !slices.Equal(got, d.findings) {
		t.Errorf("got %+v", got)
	}
	d.err = &status.Error{Code: 451, Text: "gave up", Advice: "try again"}
	want := append(slices.Clone(d.findings), console.Finding{Step: "examination", Result: "fail", Detail: "451 gave up", Advice: "try again"})
	if got := lines(); !slices.Equal(got, want) {
		t.Errorf("broken off: got %+v, want %+v", got, want)
	}
}

func TestAuditPages(t *testing.T) {
	w, d := newDesk(t)
	for id := uint64(30); id > 0; id-- {
		d.entries = append(d.entries, console.Entry{ID: id, What: "sender.add"})
	}
	page := decode[control.Audit](t, w.do("GET", "/api/v1/audit?limit=10&before=31", "", nil), 200)
	if len(page.Entries) != 10 || page.Next != 21 || !slices.Contains(d.take(), "audit 31 10") {
		t.Errorf("got %+v", page)
	}
	if page := decode[control.Audit](t, w.do("GET", "/api/v1/audit", "", nil), 200); len(page.Entries) != 30 || page.Next != 0 {
		t.Errorf("got %d entries, next %d", len(page.Entries), page.Next)
	}
}

// Manage alone is not all rights: nobody makes a login link for more than they may themselves.
func TestLinkForMoreThanOneMay(t *testing.T) {
	w, d := newDesk(t)
	w.who.Store(&access.Principal{Name: "token helm", Scopes: []access.Scope{access.Manage, access.Read}})
	for role, code := range map[access.Role]int{access.Viewer: 201, access.Operator: 403, access.Admin: 403} {
		a := w.do("POST", "/api/v1/login-links", `{"role":"`+string(role)+`"}`, nil)
		if a.code != code || code == 403 && !strings.Contains(a.problem(t), "nobody can hand on a right they lack") {
			t.Errorf("%s: got %d %q", role, a.code, a.body)
		}
		if calls := d.take(); (len(calls) == 1) != (code == 201) {
			t.Errorf("%s: asked for %v", role, calls)
		}
	}
	w.who.Store(admin())
	link := decode[control.Link](t, w.do("POST", "/api/v1/login-links", `{"role":"admin"}`, nil), 201)
	if link.URL != "https://relay/login?code=x" || !link.Expires.Equal(time.Unix(1e9, 0)) {
		t.Errorf("got %+v", link)
	}
	if text := fmt.Sprint(w.logs.FilterMessage("operator changes something").All()); strings.Contains(text, "code=x") || !strings.Contains(text, "make-login-link") {
		t.Errorf("log: got %s", text)
	}
}

// An event reaches its reader over the whole API; the stream itself is package feed's.
func TestEvents(t *testing.T) {
	w, d := newDesk(t)
	read := func(query string, events ...console.Event) string {
		t.Helper()
		d.events = make(chan console.Event, len(events))
		for _, e := range events {
			d.events <- e
		}
		close(d.events)
		a := w.do("GET", "/api/v1/events"+query, "", nil)
		if a.code != http.StatusOK || a.header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("%s: got %d, %v", query, a.code, a.header)
		}
		return a.body
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	one := console.Event{Sender: "a@contoso.com", Step: envelope.Step{ID: anID, At: at, What: envelope.StepAttempt, State: envelope.Sent}}
	other := console.Event{Sender: "B@fabrikam.com", Step: envelope.Step{ID: "zzzzzzzzzzzzzzzzzzzz", At: at, What: envelope.StepHeld, State: envelope.Held}}
	const first = "event: attempt\ndata: {\"step\":{\"id\":\"" + anID + "\",\"at\":\"2026-01-02T03:04:05Z\",\"what\":\"attempt\",\"state\":\"sent\"},\"sender\":\"a@contoso.com\"}\n\n"
	if got := read("", one); !strings.HasSuffix(got, first) {
		t.Errorf("got %q, want %q", got, first)
	}
	for query, want := range map[string][2]bool{
		"":                           {true, true},
		"?sender=A@CONTOSO.com":      {true, false},
		"?sender=*@CONTOSO.com":      {true, false},
		"?sender=*@fabrikam.com":     {false, true},
		"?sender=a@fabrikam.com":     {false, false},
		"?sender=*@oso.com":          {false, false},
		"?id=" + anID:                {true, false},
		"?id=" + anID + "&sender=x@": {false, false},
	} {
		got := read(query, one, other)
		if strings.Contains(got, "event: attempt") != want[0] || strings.Contains(got, "event: held") != want[1] {
			t.Errorf("%s: got %q, want %v", query, got, want)
		}
	}
}

// Streams hold connections, so there is an end to them; what one leaves is free again.
func TestTooManyReaders(t *testing.T) {
	w, _ := newDesk(t)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	open := func() (*http.Response, context.CancelFunc) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		req, err := http.NewRequestWithContext(ctx, "GET", w.url+"/api/v1/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp, cancel
	}
	var leave context.CancelFunc
	for i := range feed.MaxReaders {
		var resp *http.Response
		if resp, leave = open(); resp.StatusCode != 200 {
			t.Fatalf("reader %d: got %d", i, resp.StatusCode)
		}
	}
	if a := w.do("GET", "/api/v1/events", "", nil); a.code != 503 || a.problem(t) != "64 others follow already, which is the most; try again later" {
		t.Errorf("one more: got %d %q", a.code, a.body)
	}
	leave()
	for end := time.Now().Add(20 * time.Second); ; { // the server notices by itself, a moment later
		resp, _ := open()
		if resp.StatusCode == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the place that was left is not free: %d", resp.StatusCode)
		}
	}
}
