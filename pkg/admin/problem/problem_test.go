package problem

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
)

func TestWrite(t *testing.T) {
	w := httptest.NewRecorder()
	New(404, "no %s", "such thing").Write(w)
	if w.Code != 404 || w.Header().Get("Content-Type") != "application/problem+json" || w.Body.String() != `{"title":"Not Found","status":404,"detail":"no such thing"}`+"\n" {
		t.Errorf("got %d %v %q", w.Code, w.Header(), w.Body)
	}
}

func TestFields(t *testing.T) {
	p := Fields(422, []error{
		&huma.ErrorDetail{Location: "query.limit", Message: "expected number", Value: "canary"},
		errors.New("neither here nor there"),
	})
	if p.Status != 422 || p.Detail != "query.limit: expected number; neither here nor there" || len(p.Errors) != 2 {
		t.Errorf("got %+v", p)
	}
	text, err := json.Marshal(p)
	if err != nil || strings.Contains(string(text), "canary") {
		t.Errorf("a value is repeated: %s, %v", text, err)
	}
	var many []error
	for i := range 25 {
		many = append(many, fmt.Errorf("e%d %s", i, strings.Repeat("é", 500)))
	}
	p = Fields(422, many)
	if len(p.Errors) != 10 || !strings.HasSuffix(p.Detail, "; and 15 more") || len(p.Detail) > 3000 || strings.Contains(p.Detail, "\ufffd") {
		t.Errorf("got %d, %q", len(p.Errors), p.Detail)
	}
}

func TestReword(t *testing.T) {
	for _, tt := range []struct {
		in   any
		want string
	}{
		{&huma.ErrorModel{Status: 400, Detail: "validation failed", Errors: []*huma.ErrorDetail{{Location: "body", Message: "unexpected end", Value: "canary"}}},
			`{"title":"Bad Request","status":400,"detail":"body: unexpected end","errors":[{"message":"unexpected end","location":"body"}]}`},
		{&huma.ErrorModel{Status: 400, Detail: "request body is required"}, `{"title":"Bad Request","status":400,"detail":"request body is required"}`},
		{New(409, "busy"), `{"title":"Conflict","status":409,"detail":"busy"}`},
		{[]int{1}, `[1]`},
	} {
		got, err := Reword(nil, "", tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := json.Marshal(got); string(text) != tt.want || err != nil {
			t.Errorf("got %s, %v, want %s", text, err, tt.want)
		}
	}
}
