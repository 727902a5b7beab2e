package consent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// answer is what the token endpoint gave (RFC 6749, section 5.1).
type answer struct {
	Access  string  `json:"access_token"`
	Refresh string  `json:"refresh_token"`
	ID      string  `json:"id_token"`
	Scope   string  `json:"scope"`
	Expires seconds `json:"expires_in"`
}

// seconds is a number that some send as a string.
type seconds int64

// UnmarshalJSON implements json.Unmarshaler; what is no number is 0, and nothing is over a day.
func (s *seconds) UnmarshalJSON(data []byte) error {
	n, err := strconv.ParseFloat(strings.Trim(string(data), `"`), 64)
	if err != nil || !(n > 0) {
		n = 0
	}
	*s = seconds(min(n, 86400))
	return nil
}

func (s seconds) duration() time.Duration { return time.Duration(s) * time.Second }

// post sends form with the client's credential to where and reads the answer into v. A refusal is an *oauth2.RetrieveError;
// any other error means there was no usable answer. Neither is safe to show or log: it may repeat what was sent.
func (r *Registration) post(ctx context.Context, where string, form url.Values, v any) error {
	form.Set("client_id", r.ClientID)
	if r.Authenticate != nil {
		if err := r.Authenticate(ctx, r.endpoint("oauth2/v2.0/token"), form); err != nil {
			return fmt.Errorf("authenticate the application: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	resp, err := r.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return err
	}
	if len(body) > maxAnswer {
		return errors.New("the answer is too long")
	}
	if resp.StatusCode/100 != 2 {
		return refused(resp, body)
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "application/json" || json.Unmarshal(body, v) != nil {
		return errors.New("the answer is no JSON that can be read")
	}
	return nil
}

// refused reads an error of RFC 6749, section 5.2.
func refused(resp *http.Response, body []byte) error {
	var e struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
		URI         string `json:"error_uri"`
	}
	_ = json.Unmarshal(body, &e) // what is none has its HTTP status
	return &oauth2.RetrieveError{Response: resp, Body: body, ErrorCode: e.Code, ErrorDescription: e.Description, ErrorURI: e.URI}
}
