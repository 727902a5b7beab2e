package catalogue

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

// maxRetryAfter is the longest that an answer can keep relayd from asking again.
const maxRetryAfter = time.Hour

// Request is what was asked, as far as reading the answer needs it.
type Request struct {
	Person  bool     // on a person's behalf: a sign-in, or a refresh token
	Secrets []string // struck out of all that is returned, should the far end repeat what it was sent
}

// Read turns the error of a token request, or of the answer to an authorization request, into ours, by the first of all
// that fits; the last fits everything. hold is how long no other request is to be made; 0: as the action says.
func Read(all []Rule, err error, asked Request) (e *status.Error, hold time.Duration) {
	refusal, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return Temporary("no usable answer from Entra ID", asked.strike(err)), 0
	}
	code, header := 0, http.Header{} // of what a browser brings back
	if refusal.Response != nil {
		code, header = refusal.Response.StatusCode, refusal.Response.Header
	}
	refusal = named(refusal)
	numbers := codes(refusal)
	r := all[slices.IndexFunc(all, func(r Rule) bool { return r.fits(code, refusal.ErrorCode, numbers, asked.Person) })]
	hold = r.Hold
	if after := retryAfter(header.Get("Retry-After"), time.Now()); after > 0 {
		hold = after
	}
	e = Temporary(or(r.Text, noToken), asked.printable(refusal))
	e.Rule, e.Cause, e.Advice = r.Name, r.Cause, r.Advice
	if e.Action = r.Action; !TemporaryAction(r.Action) {
		e.Code, e.Enhanced = 535, status.Enhanced{5, 7, 8}
	}
	return e, hold
}

// named returns e with the "error" of its body where the library has not read it, as of the endpoint of device codes.
func named(e *oauth2.RetrieveError) *oauth2.RetrieveError {
	var body struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if e.ErrorCode != "" || json.Unmarshal(e.Body, &body) != nil || body.Error == "" {
		return e
	}
	full := *e
	full.ErrorCode, full.ErrorDescription = body.Error, body.Description
	return &full
}

// codes returns the AADSTS numbers: error_codes, or, where there are none, as in what a browser brings back, those that the
// description begins its sentences with.
func codes(e *oauth2.RetrieveError) []int {
	var detail struct {
		Codes []int `json:"error_codes"`
	}
	_ = json.Unmarshal(e.Body, &detail) // without it there is no hint
	if len(detail.Codes) > 0 {
		return detail.Codes
	}
	for i, part := range strings.Split(e.ErrorDescription[:min(len(e.ErrorDescription), 4096)], "AADSTS") {
		digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
		if n, err := strconv.Atoi(digits); err == nil && i > 0 {
			detail.Codes = append(detail.Codes, n)
		}
	}
	return detail.Codes
}

// Temporary returns an error of the stage of tokens that time alone may cure.
func Temporary(text string, cause error) *status.Error {
	return &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: status.StageToken, Text: text, Err: cause}
}

// TemporaryAction reports whether time alone may cure what a is the answer to.
func TemporaryAction(a status.Action) bool {
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
// and the secrets struck out. What looks like a token response is left out whole.
func (r Request) printable(e *oauth2.RetrieveError) *oauth2.RetrieveError {
	body := ""
	if e.ErrorCode == "" && !strings.Contains(string(e.Body), "_token") {
		body = fmt.Sprintf("%q", r.clean(string(e.Body)))
	}
	response := new(http.Response)
	if e.Response != nil {
		response.Status, response.StatusCode = r.clean(e.Response.Status), e.Response.StatusCode
	}
	return &oauth2.RetrieveError{Response: response, Body: []byte(body), ErrorCode: r.clean(e.ErrorCode),
		ErrorDescription: r.clean(e.ErrorDescription)}
}

// strike returns err, or, where a secret is in its text, that text without it.
func (r Request) strike(err error) error {
	if text := r.clean(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}

// clean strikes the secrets out of s, in every form in which a request or an answer carries them, and cuts it short.
func (r Request) clean(s string) string {
	for _, secret := range r.Secrets {
		if secret == "" {
			continue
		}
		for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), jsonEscape(secret)} {
			s = strings.ReplaceAll(s, form, "[secret]")
		}
	}
	return s[:min(len(s), 600)]
}

func jsonEscape(s string) string {
	b, _ := json.Marshal(s) // a string always encodes
	return string(b[1 : len(b)-1])
}
