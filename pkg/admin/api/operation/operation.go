// Package operation adds operations to the HTTP API: each with the right it takes, a time limit, and a description of itself
// and of its errors for OpenAPI. It keeps no state of requests.
package operation

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/problem"
)

// Time is how long an operation may take until its answer is complete, but for those of [Stream].
const Time = 2 * time.Minute

// Operation is what differs from one operation to the next.
type Operation struct {
	Method, Path, ID, Summary, Description string

	Scope  access.Scope // right that whoever asks must have
	Status int          // HTTP status of success; 0: 200, or 204 where there is no body
	Errors []int        // HTTP statuses it may answer with, besides those every operation has
}

// Output is an answer with nothing but a JSON body.
type Output[T any] struct{ Body T }

// Created says where a thing that was added is.
type Created struct {
	Location string `header:"Location" doc:"path of what was added"`
}

// Nothing is a body that says nothing, so that one that says something is refused.
type Nothing struct{}

// Scheme is the name of the security scheme in OpenAPI.
const Scheme = "bearer"

// Set is the operations of an API.
type Set struct {
	API     huma.API
	Explain func(ctx context.Context, operation string, err error) *problem.Problem // what a client reads of an error

	scopes map[string]access.Scope // by the pattern of http.ServeMux
}

// Scope returns the right that a request takes which http.ServeMux has matched to pattern; false: it matches no operation.
func (s *Set) Scope(pattern string) (access.Scope, bool) {
	scope, ok := s.scopes[pattern]
	return scope, ok
}

// Add adds an operation that is answered within [Time].
func Add[I, O any](s *Set, op Operation, handle func(context.Context, *I) (*O, error)) {
	Stream(s, op, func(ctx context.Context, in *I) (*O, error) {
		ctx, cancel := context.WithTimeout(ctx, Time)
		defer cancel()
		return handle(ctx, in)
	})
}

// Stream adds an operation that keeps time itself. Errors of handle reach the client as [Set].Explain words them.
func Stream[I, O any](s *Set, op Operation, handle func(context.Context, *I) (*O, error)) {
	if s.scopes == nil {
		s.scopes = map[string]access.Scope{}
	}
	s.scopes[op.Method+" "+op.Path] = op.Scope
	huma.Register(s.API, huma.Operation{
		Method: op.Method, Path: op.Path, OperationID: op.ID, Summary: op.Summary, DefaultStatus: op.Status, Errors: statuses(&op),
		Description: op.Description + " Scope: " + string(op.Scope) + ".", Tags: []string{strings.Split(op.Path, "/")[3]},
		Security:     []map[string][]string{{Scheme: {string(op.Scope)}}},
		Extensions:   map[string]any{"x-scope": string(op.Scope)},
		MaxBodyBytes: -1, BodyReadTimeout: -1, // the body has been read and bounded before; a deadline would outlive that
	}, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, s.Explain(ctx, op.ID, err)
		}
		return out, nil
	})
}

// statuses are those that op may answer with and are no success; huma adds 422 and 500.
func statuses(op *Operation) []int {
	all := []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusServiceUnavailable}
	if op.Method == http.MethodPost || op.Method == http.MethodPut {
		all = append(all, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	}
	all = append(all, op.Errors...)
	slices.Sort(all)
	return slices.Compact(all)
}
