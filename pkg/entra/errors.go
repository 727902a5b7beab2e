package entra

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"relayd/pkg/status"
)

// read turns the error of a token request into ours, by the first of all that fits; the last fits everything. secret is
// struck out of it, should the far end repeat what it was sent.
func read(all []Rule, err error, secret string, now time.Time) (e *status.Error, hold time.Duration) {
	refusal, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return temporary("no usable answer from Entra ID", err), 0
	}
	var detail struct {
		Codes []int `json:"error_codes"`
	}
	_ = json.Unmarshal(refusal.Body, &detail) // without it there is no hint
	code := refusal.Response.StatusCode
	r := all[slices.IndexFunc(all, func(r Rule) bool { return r.fits(code, refusal.ErrorCode, detail.Codes) })]
	hold = r.Hold
	if after := retryAfter(refusal.Response.Header.Get("Retry-After"), now); after > 0 {
		hold = after
	}
	e = temporary(or(r.Text, noToken), printable(refusal, secret))
	e.Rule, e.Cause, e.Advice = r.Name, r.Cause, r.Advice
	if e.Action = r.Action; !temporaryAction(r.Action) {
		e.Code, e.Enhanced = 535, status.Enhanced{5, 7, 8}
	}
	return e, hold
}

func temporary(text string, cause error) *status.Error {
	return &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: status.StageToken, Text: text, Err: cause}
}

// temporaryAction reports whether time alone may cure what a is the answer to.
func temporaryAction(a status.Action) bool {
	return a == status.Retry || a == status.BackOffSender || a == status.BackOffTenant
}

// retryAfter reads the header of RFC 9110, section 10.2.3: seconds or a date. The result is at most maxRetryAfter; 0
// where there is none.
func retryAfter(s string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(s); err == nil {
		return min(time.Duration(min(max(seconds, 0), 1<<20))*time.Second, maxRetryAfter)
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(max(t.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// printable returns e without all that leads back to the request (its body holds the secret), with its texts cut short
// and the secret struck out. What looks like a token response is left out whole.
func printable(e *oauth2.RetrieveError, secret string) *oauth2.RetrieveError {
	clean := func(s string) string {
		for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), jsonEscape(secret)} {
			s = strings.ReplaceAll(s, form, "[secret]")
		}
		return s[:min(len(s), 600)]
	}
	body := ""
	if e.ErrorCode == "" && !strings.Contains(string(e.Body), "_token") {
		body = fmt.Sprintf("%q", clean(string(e.Body)))
	}
	return &oauth2.RetrieveError{
		Response:         &http.Response{Status: clean(e.Response.Status), StatusCode: e.Response.StatusCode},
		Body:             []byte(body),
		ErrorCode:        clean(e.ErrorCode),
		ErrorDescription: clean(e.ErrorDescription),
	}
}

func jsonEscape(s string) string {
	b, _ := json.Marshal(s) // a string always encodes
	return string(b[1 : len(b)-1])
}
