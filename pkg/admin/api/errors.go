package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/problem"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// What [Messages] may answer besides a *status.Error.
var (
	ErrNotFound    = errors.New("there is no message with that id, or what was asked for is no longer kept")
	ErrBusy        = errors.New("the message is being sent right now; try again in a moment")
	ErrUnavailable = errors.New("the queue's storage is not available; try again in a moment")
)

// explain is what the client reads of err, which came up in an operation. What carries no words for a client is logged
// instead of told.
//
//	ErrNotFound 404 · envelope.ErrCorrupt 500 · ErrBusy 409 · ErrUnavailable, out of time and the unknown 503
//	console.Mistakes 422, each with its field · console.ErrNotFound 404 · ErrFile and ErrInUse 409 · ErrExpired 410
//	*status.Error: 452 507 · other 4xx 503 · 552 413 · other 5xx 422; with cause and advice for those who may look on
func (a *api) explain(ctx context.Context, operation string, err error) *problem.Problem {
	if p, ok := errors.AsType[*problem.Problem](err); ok {
		return p
	}
	if p := refused(err); p != nil {
		return p
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return problem.New(http.StatusNotFound, "%v", ErrNotFound)
	case errors.Is(err, ErrBusy):
		return problem.New(http.StatusConflict, "%v", ErrBusy)
	case errors.Is(err, envelope.ErrCorrupt):
		return problem.New(http.StatusInternalServerError, "the message is damaged in storage")
	case errors.Is(err, ErrUnavailable):
		a.log.Error("API request failed", zap.String("operation", operation), zap.Error(err))
		return problem.New(http.StatusServiceUnavailable, "%v", ErrUnavailable)
	}
	e, known := errors.AsType[*status.Error](err)
	cause := err
	switch {
	case known:
		cause = e.Err
	case errors.Is(err, context.Canceled):
		return problem.New(http.StatusServiceUnavailable, "the request was called off") // nobody reads it
	case errors.Is(err, context.DeadlineExceeded):
		return problem.New(http.StatusServiceUnavailable, "no answer in time; ask for less, or try again")
	default:
		e = status.From(err)
	}
	if cause != nil {
		a.log.Error("API request failed", zap.String("operation", operation), zap.Error(cause))
	}
	code := http.StatusUnprocessableEntity
	switch {
	case e.Code == 452:
		code = http.StatusInsufficientStorage
	case e.Temporary():
		code = http.StatusServiceUnavailable
	case e.Code == 552:
		code = http.StatusRequestEntityTooLarge
	}
	p := problem.New(code, "%s", problem.Clip((&status.Error{Code: e.Code, Enhanced: e.Enhanced, Text: e.Text}).Error()))
	if access.From(ctx).May(access.Read) {
		p.Cause, p.Advice = e.Cause, e.Advice
	}
	return p
}

// refused is what a client reads of an error of [console.Console] that it can do something about; nil: err is none.
func refused(err error) *problem.Problem {
	if wrong, ok := errors.AsType[console.Mistakes](err); ok {
		p := problem.New(http.StatusUnprocessableEntity, "%s", wrong.Error())
		for _, m := range wrong {
			p.Errors = append(p.Errors, &huma.ErrorDetail{Location: "body." + m.Field, Message: m.Text})
		}
		return p
	}
	for known, code := range map[error]int{
		console.ErrNotFound: http.StatusNotFound, console.ErrFile: http.StatusConflict, console.ErrInUse: http.StatusConflict,
		console.ErrExpired: http.StatusGone,
	} {
		if errors.Is(err, known) {
			return problem.New(code, "%v", known)
		}
	}
	return nil
}
