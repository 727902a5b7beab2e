// Package api is relayd's HTTP API: what has become of each message, senders, tenants and all else an operator looks after.
// OpenAPI describes it, errors are RFC 9457 problem details in relayd's words.
//
// Each operation takes a right, a scope of package access, which is looked at before anything of a request is read: 401 where
// nobody asks, 403 where it is somebody without that right. Requests that change anything carry a content type no HTML form can send, and none comes from a page of another site. Bodies
// are bounded in size and time. The package keeps no state; what a change answered with success is worth, is [Messages]' to
// promise.
package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/control"
	"relayd/pkg/admin/api/operation"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/problem"
)

// Root is where the API begins; everything below it is the API's to answer.
const Root = "/api/"

// The paths of the API.
const (
	documentPath = "/api/v1/openapi.json"
	messagesPath = "/api/v1/messages"
)

// The limits of one request to the API. Bodies of messages alone are large; they have limits of their own.
const (
	graceTime = 10 * time.Second // to say that there was none
	bodyTime  = 10 * time.Second // for a JSON body to come in
	jsonBytes = 1 << 20
)

// Options of [New]. Messages is required. What is nil has no operations.
type Options struct {
	Messages     Messages
	MessageBytes int64 // largest message that may be sent, in octets; 0: 35 MiB

	Console  console.Console
	Links    access.Links    // one-time login links
	Sessions access.Sessions // of browsers
	Vault    control.Vault

	Logger *zap.Logger // nil: none
}

type api struct {
	messages     Messages
	messageBytes int64
	log          *zap.Logger
	mux          *http.ServeMux
	huma         huma.API
	operations   *operation.Set
	origins      *http.CrossOriginProtection
	document     []byte // OpenAPI, as served
}

// New returns the handler of everything below [Root]. Whoever mounts it finds out who asks, and says so by [access.With]; and
// it checks by what name this server is asked.
func New(opts Options) (http.Handler, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	a := &api{
		messages: opts.Messages, messageBytes: opts.MessageBytes, log: opts.Logger,
		mux: http.NewServeMux(), origins: http.NewCrossOriginProtection(),
	}
	if a.messageBytes <= 0 {
		a.messageBytes = defaultMessageBytes
	}
	config := huma.DefaultConfig("relayd", "v1")
	config.Info.Description = "What the relay knows of each message and what may be done to it, its senders and tenants. " +
		"Requests with a body carry Content-Type application/json or message/rfc822, and so does every POST and PUT. " +
		"Each operation takes a scope, which its x-scope names. Errors are RFC 9457 problem details."
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{operation.Scheme: {
		Type: "http", Scheme: "bearer", Description: "An API token, as relayd token makes one. Its scopes say what it may do.",
	}}
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", "" // huma's handlers race for their document
	config.CreateHooks = nil                                             // no $schema in answers
	config.RejectUnknownQueryParameters = true
	config.Transformers = []huma.Transformer{problem.Reword}
	a.huma = humago.New(a.mux, config)
	a.operations = &operation.Set{API: a.huma, Explain: a.explain}
	a.registerMessages()
	control.Register(a.operations, control.Options{
		Console: opts.Console, Links: opts.Links, Sessions: opts.Sessions, Vault: opts.Vault, Logger: opts.Logger,
	})
	a.describeProblems()
	var err error
	if a.document, err = json.Marshal(a.huma.OpenAPI()); err != nil {
		return nil, err
	}
	a.mux.HandleFunc("GET "+documentPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(a.document) // the asker may be gone
	})
	a.mux.HandleFunc(Root, a.nothing)
	return a, nil
}

// Document returns the OpenAPI description of the whole API, indented, as a relay serves it below /api/v1/openapi.json.
func Document() ([]byte, error) {
	type browsers access.Sessions
	h, err := New(Options{ // none of which is ever called
		Messages: struct{ Messages }{}, Console: struct{ console.Console }{}, Links: struct{ access.Links }{}, Sessions: struct{ browsers }{},
		Vault: struct{ control.Vault }{},
	})
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := json.Indent(&text, h.(*api).document, "", "  "); err != nil {
		return nil, err
	}
	text.WriteByte('\n')
	return text.Bytes(), nil
}

// describeProblems adds to the document what our problems have beyond huma's.
func (a *api) describeProblems() {
	model := a.huma.OpenAPI().Components.Schemas.Map()["ErrorModel"]
	model.Properties["cause"] = &huma.Schema{Type: huma.TypeString, Description: "What it means, for whoever runs the relay; not always there."}
	model.Properties["advice"] = &huma.Schema{Type: huma.TypeString, Description: "What to change, and where; not always there."}
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler { //nolint:errorlint // a panic's value is the very one
				a.log.Error("API request panicked", zap.String("path", r.URL.Path), zap.Any("err", p), zap.ByteString("stack", debug.Stack()))
			}
			panic(http.ErrAbortHandler) // half an answer must not look like a whole one
		}
	}()
	if err := a.allow(w, r); err != nil {
		err.Write(w)
		return
	}
	if err := a.admit(w, r); err != nil {
		err.Write(w)
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(operation.Time + graceTime)) // a recorder has none
	a.mux.ServeHTTP(w, r)
}

// allow refuses who may not do what r asks for. It reads nothing of a body.
func (a *api) allow(w http.ResponseWriter, r *http.Request) *problem.Problem {
	who := access.From(r.Context())
	if who == nil {
		if r.Header.Get("Authorization") != "" {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`) // RFC 6750, section 3.1
			return problem.New(http.StatusUnauthorized, "these credentials are not known here, or are no longer good; relayd token makes a new API token")
		}
		w.Header().Set("WWW-Authenticate", "Bearer")
		return problem.New(http.StatusUnauthorized, "say who asks: send an API token as Authorization: Bearer TOKEN; relayd token makes one")
	}
	if path.Clean(r.URL.EscapedPath()) != r.URL.EscapedPath() { // the mux would redirect
		return errNothing()
	}
	_, pattern := a.mux.Handler(r)
	scope, ok := a.operations.Scope(pattern)
	if !ok || who.May(scope) {
		return nil // where it is no operation there is nothing to see
	}
	w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope", scope="`+string(scope)+`"`)
	return problem.New(http.StatusForbidden, "this takes the scope %s, which %s does not have", scope, problem.Clip(who.Name))
}

// admit refuses what no operation takes, and reads a JSON body. It leaves no read deadline of its own: net/http watches for
// the client hanging up while a request is answered, and takes a deadline that passes for that.
func (a *api) admit(w http.ResponseWriter, r *http.Request) *problem.Problem {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return problem.New(http.StatusBadRequest, "the query of the address is malformed; escape what is no letter or digit with %%")
	}
	for name, values := range query {
		if len(values) > 1 && name != "to" {
			return problem.New(http.StatusUnprocessableEntity, "query.%s: given more than once", problem.Clip(name))
		}
	}
	if err := a.origins.Check(r); err != nil {
		return problem.New(http.StatusForbidden, "a page of another site may not change anything here")
	}
	control := http.NewResponseController(w)
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodDelete:
		if r.ContentLength != 0 {
			return problem.New(http.StatusBadRequest, "a %s takes no body", r.Method)
		}
	case http.MethodPost, http.MethodPut:
		if r.Header.Get("Content-Encoding") != "" {
			return problem.New(http.StatusUnsupportedMediaType, "bodies are taken as they are; leave Content-Encoding out")
		}
		media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		switch {
		case err == nil && media == mediaMessage && r.Method == http.MethodPost && r.URL.Path == messagesPath:
			return nil // read as it is stored, with deadlines of its own
		case err != nil || media != mediaJSON:
			return problem.New(http.StatusUnsupportedMediaType, "%s", "say what the body is: Content-Type "+mediaJSON+
				", or "+mediaMessage+" for a message to send; a change needs it even where there is no body")
		}
		r.Header.Set("Content-Type", media)
		_ = control.SetReadDeadline(time.Now().Add(bodyTime))
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, jsonBytes))
		if err != nil {
			return bodyProblem(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(data))
		_ = control.SetReadDeadline(time.Time{})
	}
	return nil
}

// bodyProblem says why a body could not be read.
func bodyProblem(err error) *problem.Problem {
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem.New(http.StatusRequestEntityTooLarge, "the body is larger than the %d bytes allowed here", large.Limit)
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return problem.New(http.StatusRequestTimeout, "the body came too slowly")
	}
	return problem.New(http.StatusBadRequest, "the body ended too early")
}

// nothing answers where no operation does.
func (a *api) nothing(w http.ResponseWriter, r *http.Request) {
	var allow []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := a.mux.Handler(other); pattern != Root {
			allow = append(allow, method)
		}
	}
	if len(allow) == 0 {
		errNothing().Write(w)
		return
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	problem.New(http.StatusMethodNotAllowed, "only %s is allowed here", strings.Join(allow, " and ")).Write(w)
}

func errNothing() *problem.Problem {
	return problem.New(http.StatusNotFound, "%s", "nothing here; "+documentPath+" lists what there is")
}
