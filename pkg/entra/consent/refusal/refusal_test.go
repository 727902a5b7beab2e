package refusal

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"relayd/pkg/status"
)

func all() []*status.Error {
	return []*status.Error{Unknown(), Foreign(), Late(), Malformed(), Issuer(), Tenant("t"), Clock(io.EOF), Identity(io.EOF), Nobody(), User("a@b", "c@d"),
		User("", "c@d"), Scope("s"), NoRefresh(), Invitation(), NoLogin(), NoRedirect(), NoSession(), Busy(), NoAnswer(io.EOF), Store(io.EOF)}
}

// TestSentences holds every refusal and every row to a name, three sentences, and what their code promises.
func TestSentences(t *testing.T) {
	list := all()
	for _, r := range rows() {
		list = append(list, New(r.rule, r.text, r.cause, r.advice, nil))
	}
	for _, e := range list {
		if !strings.HasPrefix(e.Rule, "sign-in-") || e.Text == "" || e.Cause == "" || e.Advice == "" || e.Stage != status.StageToken {
			t.Errorf("%q lacks something: %+v", e.Rule, e)
		}
		if strings.HasSuffix(e.Text, ".") || strings.ContainsAny(e.Text+e.Cause+e.Advice, "\n<%") {
			t.Errorf("%q: %+v", e.Rule, e)
		}
		if e.Temporary() != (e.Action == status.Retry) || e.Code == 0 {
			t.Errorf("%q: code %d, action %v", e.Rule, e.Code, e.Action)
		}
	}
}

func TestWhole(t *testing.T) {
	if got := Whole(Unknown()).Error(); got != Unknown().Error() {
		t.Errorf("got %q", got)
	}
	if err := Whole(Store(io.EOF)); !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "EOF") || !strings.Contains(err.Error(), "records") {
		t.Errorf("got %v", err)
	}
}

func TestAdopt(t *testing.T) {
	own := Busy()
	if got := Adopt(fmt.Errorf("store: %w", own)); got != own {
		t.Errorf("got %v", got)
	}
	if got := Adopt(io.EOF); got.Rule != "sign-in-store" || !errors.Is(got, io.EOF) {
		t.Errorf("got %v", got)
	}
}

func TestKnown(t *testing.T) {
	tests := []struct {
		name, description, want string
	}{
		{"access_denied", "", "sign-in-declined"},
		{"access_denied", "AADSTS50105: x", "sign-in-not-assigned"}, // the number refines
		{"access_denied", "AADSTS90094: x", "sign-in-admin"},
		{"access_denied", "AADSTS50057: x", ""}, // a disabled account has declined nothing
		{"authorization_declined", "AADSTS50057: x", "sign-in-declined"},
		{"invalid_grant", "AADSTS70008: x", "sign-in-stale"},
		{"expired_token", "", "sign-in-device-expired"},
		{"bad_verification_code", "", "sign-in-device-expired"},
		{"invalid_client", "AADSTS7000215: x", ""}, // the catalogue's
		{"server_error", "", ""},
		{"", "AADSTS", ""},
		{"", "about AADSTS1 and AADSTS53003", "sign-in-policy"},
	}
	for _, tt := range tests {
		got := ""
		if e := Known(Returned(tt.name, tt.description)); e != nil {
			got = e.Rule
		}
		if got != tt.want {
			t.Errorf("%s, %q: got %q, want %q", tt.name, tt.description, got, tt.want)
		}
	}
	if e := Known(io.EOF); e != nil {
		t.Errorf("got %v for what is no refusal", e)
	}
	html := &oauth2.RetrieveError{Response: &http.Response{}, Body: []byte("<html>"), ErrorCode: "access_denied"}
	if e := Known(html); e == nil || e.Rule != "sign-in-declined" {
		t.Errorf("got %v", e)
	}
}

func FuzzReturned(f *testing.F) {
	f.Add("access_denied", "AADSTS65004: User declined")
	f.Add("\x00<script>", "AADSTSAADSTS99999999999999999999")
	f.Fuzz(func(t *testing.T, name, description string) {
		e := Returned(name, description)
		if strings.Trim(e.ErrorCode, "abcdefghijklmnopqrstuvwxyz_") != "" || len(e.ErrorCode) > 64 || e.ErrorDescription != "" || len(e.Body) > 300 {
			t.Errorf("got %+v", e)
		}
		Known(e)
	})
}
