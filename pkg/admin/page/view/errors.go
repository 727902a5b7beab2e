package view

import (
	"context"
	"errors"
	"net/http"

	"go.uber.org/zap"

	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// failure is why a page is not shown.
type failure struct {
	status  int
	key     string // of the word
	arg     string
	problem *console.Problem // what there is to say besides
}

// Fail answers with the page that says what err means. What carries no words for people is logged instead of told.
//
//	ErrNotFound 404 · ErrFile, ErrInUse, ErrBusy 409 · ErrExpired 410 · Mistakes 422 · *status.Error 422, temporary 503 ·
//	ErrUnavailable, out of time and the unknown 503
func (v *Renderer) Fail(w http.ResponseWriter, r *http.Request, err error) {
	v.fail(w, r, v.explain(r, err))
}

func (v *Renderer) explain(r *http.Request, err error) failure {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil { // the asker has gone: nobody failed, and nobody reads this
		return failure{status: http.StatusServiceUnavailable, key: "view.error.slow"}
	}
	for _, known := range []struct {
		err    error
		status int
		key    string
	}{
		{api.ErrNotFound, http.StatusNotFound, "view.error.message"},
		{console.ErrNotFound, http.StatusNotFound, "view.error.notfound"},
		{console.ErrFile, http.StatusConflict, "view.error.file"},
		{console.ErrInUse, http.StatusConflict, "view.error.inuse"},
		{console.ErrExpired, http.StatusGone, "view.error.expired"},
		{api.ErrBusy, http.StatusConflict, "view.error.busy"},
		{envelope.ErrCorrupt, http.StatusInternalServerError, "view.error.corrupt"},
		{api.ErrUnavailable, http.StatusServiceUnavailable, "view.error.unavailable"},
		{context.DeadlineExceeded, http.StatusServiceUnavailable, "view.error.slow"},
	} {
		if errors.Is(err, known.err) {
			if known.status >= http.StatusInternalServerError {
				v.log.Error("page not shown", zap.String("path", r.URL.Path), zap.Error(err))
			}
			return failure{status: known.status, key: known.key}
		}
	}
	if mistakes, ok := errors.AsType[console.Mistakes](err); ok {
		return failure{status: http.StatusUnprocessableEntity, key: "view.error.mistakes", problem: &console.Problem{Text: mistakes.Error()}}
	}
	if e, ok := errors.AsType[*status.Error](err); ok {
		if e.Err != nil {
			v.log.Error("page not shown", zap.String("path", r.URL.Path), zap.Error(e.Err))
		}
		f := failure{status: http.StatusUnprocessableEntity, key: "view.error.refused", problem: Explain(e)}
		if e.Temporary() {
			f.status = http.StatusServiceUnavailable
		}
		return f
	}
	v.log.Error("page not shown", zap.String("path", r.URL.Path), zap.Error(err))
	return failure{status: http.StatusServiceUnavailable, key: "view.error.unknown"}
}

// Reason is what err means, in a sentence or two, for texts that stand in data.
func (v *Renderer) Reason(w http.ResponseWriter, r *http.Request, err error) string {
	f := v.explain(r, err)
	text := v.Say(w, r, f.key)
	if f.problem != nil {
		text += " " + f.problem.Text
	}
	return text
}

// Explain is what a page shows of a *status.Error.
func Explain(e *status.Error) *console.Problem {
	return &console.Problem{Text: e.Text, Cause: e.Cause, Advice: e.Advice}
}

// failed is what the error page shows.
type failed struct {
	Status  int
	Text    string
	Problem *console.Problem
	Login   bool // signing in would help
}

func (v *Renderer) fail(w http.ResponseWriter, r *http.Request, f failure) {
	var args []any
	if f.arg != "" {
		args = append(args, f.arg)
	}
	v.Render(w, r, Page{
		Template: "error", Title: "view.error.title", Status: f.status, Self: "/", Bare: f.status == http.StatusUnauthorized,
		Data: failed{f.status, v.Say(w, r, f.key, args...), f.problem, f.status == http.StatusUnauthorized},
	})
}

// NotFound answers where nothing is.
func (v *Renderer) NotFound(w http.ResponseWriter, r *http.Request) {
	v.fail(w, r, failure{status: http.StatusNotFound, key: "view.error.nothing"})
}
