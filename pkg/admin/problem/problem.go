// Package problem is an error as a client of the HTTP API reads it: RFC 9457 problem details, in relayd's words.
package problem

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// Problem is an answer that is no success. huma sends it as it is where an operation returns it.
type Problem struct {
	huma.ErrorModel
	Cause  string `json:"cause,omitempty"`  // what it means, for whoever runs the relay
	Advice string `json:"advice,omitempty"` // what to change, and where
}

// New returns a Problem with an HTTP status and a sentence.
func New(code int, format string, args ...any) *Problem {
	return &Problem{ErrorModel: huma.ErrorModel{Title: http.StatusText(code), Status: code, Detail: fmt.Sprintf(format, args...)}}
}

// Write answers with p, outside of any operation.
func (p *Problem) Write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", p.ContentType("application/json"))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the asker may be gone
}

// What a Problem repeats of a request, at most.
const (
	maxFields = 10
	maxClip   = 200 // octets
)

// Fields says which fields of a request are wrong and in what way. It repeats nothing of their values.
func Fields(code int, errs []error) *Problem {
	p := New(code, "")
	var said []string
	for i, err := range errs {
		if i == maxFields {
			said = append(said, fmt.Sprintf("and %d more", len(errs)-maxFields))
			break
		}
		d := &huma.ErrorDetail{Message: Clip(err.Error())}
		if found, ok := errors.AsType[*huma.ErrorDetail](err); ok {
			d = &huma.ErrorDetail{Location: Clip(found.Location), Message: Clip(found.Message)}
		}
		p.Errors = append(p.Errors, d)
		said = append(said, strings.TrimPrefix(d.Location+": "+d.Message, ": "))
	}
	p.Detail = strings.Join(said, "; ")
	return p
}

// Reword puts huma's own errors into our words. It is a huma.Transformer.
func Reword(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	errs := make([]error, len(m.Errors))
	for i, d := range m.Errors {
		errs[i] = d
	}
	p := Fields(m.Status, errs)
	if p.Detail == "" {
		p.Detail = Clip(m.Detail)
	}
	return p, nil
}

// Clip bounds what is repeated of a request.
func Clip(s string) string {
	if len(s) > maxClip {
		s = strings.ToValidUTF8(s[:maxClip], "") + "…"
	}
	return s
}
