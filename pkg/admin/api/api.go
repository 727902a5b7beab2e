// Package api is relayd's HTTP API: what has become of each message, and what an operator may do about it. OpenAPI describes
// it, errors are RFC 9457 problem details in relayd's words.
//
// Requests that change anything carry a content type no HTML form can send, and none comes from a page of another site. Bodies
// are bounded in size and time. The package keeps no state; what a change answered with success is worth, is [Messages]' to
// promise.
package api

import (
	"bytes"
	"context"
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
	answerTime = 2 * time.Minute  // until an answer is complete, but for a message's content
	graceTime  = 10 * time.Second // to say that there was none
	bodyTime   = 10 * time.Second // for a JSON body to come in
	jsonBytes  = 1 << 20
)

// Options of [New]. Messages is required.
type Options struct {
	Messages     Messages
	MessageBytes int64       // largest message that may be sent, in octets; 0: 35 MiB
	Logger       *zap.Logger // nil: none
}

type api struct {
	messages     Messages
	messageBytes int64
	log          *zap.Logger
	mux          *http.ServeMux
	huma         huma.API
	origins      *http.CrossOriginProtection
	document     []byte // OpenAPI, as served
}

// New returns the handler of everything below [Root]. It checks neither who asks nor by what name: whoever mounts it does.
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
	config.Info.Description = "What the relay knows of each message, and what may be done to it. " +
		"Requests that change anything carry Content-Type application/json or message/rfc822. Errors are RFC 9457 problem details."
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", "" // huma's handlers race for their document
	config.CreateHooks = nil                                             // no $schema in answers
	config.RejectUnknownQueryParameters = true
	config.Transformers = []huma.Transformer{problem.Reword}
	a.huma = humago.New(a.mux, config)
	a.registerMessages()
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

// operation is the part of an operation that differs.
type operation struct {
	method, path, id, summary, description string
}

// register adds an operation that is answered within answerTime.
func register[I, O any](a *api, op operation, handle func(context.Context, *I) (*O, error)) {
	registerStream(a, op, func(ctx context.Context, in *I) (*O, error) {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		return handle(ctx, in)
	})
}

// registerStream adds an operation that keeps time itself. Errors of handle reach the client as [api.explain] words them.
func registerStream[I, O any](a *api, op operation, handle func(context.Context, *I) (*O, error)) {
	group := strings.Split(op.path, "/")[3]
	huma.Register(a.huma, huma.Operation{
		Method: op.method, Path: op.path, OperationID: op.id, Summary: op.summary, Description: op.description, Tags: []string{group},
		MaxBodyBytes: -1, BodyReadTimeout: -1, // admit has read the body, and bounded it; a deadline would outlive that
	}, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, a.explain(op.id, err)
		}
		return out, nil
	})
}

// caller is who asks.
type caller struct {
	name string // as history shows it
	peer string // address and port
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
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
	if err := a.admit(w, r); err != nil {
		err.Write(w)
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime + graceTime)) // a recorder has none
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	ctx := context.WithValue(r.Context(), callerKey{}, caller{name: strings.TrimSpace("api " + host), peer: r.RemoteAddr})
	a.mux.ServeHTTP(w, r.WithContext(ctx))
}

// admit refuses what no operation takes, and reads a JSON body. It leaves no read deadline of its own: net/http watches for
// the client hanging up while a request is answered, and takes a deadline that passes for that.
func (a *api) admit(w http.ResponseWriter, r *http.Request) *problem.Problem {
	if path.Clean(r.URL.Path) != r.URL.Path { // the mux would redirect
		return errNothing()
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return problem.New(http.StatusBadRequest, "the query of the address is malformed; escape what is no letter or digit with %%")
	}
	for name, values := range query {
		if len(values) > 1 && name != "to" {
			return problem.New(http.StatusUnprocessableEntity, "query.%s: given more than once", problem.Clip(name))
		}
	}
	control := http.NewResponseController(w)
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if r.ContentLength != 0 {
			return problem.New(http.StatusBadRequest, "a %s takes no body", r.Method)
		}
	case http.MethodPost:
		if err := a.origins.Check(r); err != nil {
			return problem.New(http.StatusForbidden, "a page of another site may not change anything here")
		}
		if r.Header.Get("Content-Encoding") != "" {
			return problem.New(http.StatusUnsupportedMediaType, "bodies are taken as they are; leave Content-Encoding out")
		}
		media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		switch {
		case err == nil && media == mediaMessage && r.URL.Path == messagesPath:
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
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
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
