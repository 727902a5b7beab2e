package refusal

import (
	"encoding/json"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"relayd/pkg/sandbox/text"
)

// Every refusal fills in its text and has the shape of Entra's.
func TestTell(t *testing.T) {
	seen := map[int]bool{}
	for _, known := range text.Refusals() {
		if seen[known.Number] {
			t.Errorf("AADSTS%d is there twice", known.Number)
		}
		seen[known.Number] = true
		told := (&Refusal{known.Number, "VALUE"}).Tell(About{Client: "CLIENT", Tenant: "TENANT"})
		w := httptest.NewRecorder()
		told.Write(w)
		var body struct {
			Error       string `json:"error"`
			Suberror    string `json:"suberror"`
			Description string `json:"error_description"`
			Codes       []int  `json:"error_codes"`
			Trace       string `json:"trace_id"`
			Correlation string `json:"correlation_id"`
			Timestamp   string `json:"timestamp"`
			URI         string `json:"error_uri"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		if w.Code != known.Status || body.Error != known.Code || body.Suberror != known.Suberror || body.Codes[0] != known.Number ||
			strings.Contains(body.Description, "%") || !strings.HasSuffix(body.URI, strings.TrimPrefix((&Refusal{Number: known.Number}).Error(), "AADSTS")) {
			t.Errorf("AADSTS%d: %d %+v", known.Number, w.Code, body)
		}
		form := regexp.MustCompile(`^AADSTS\d+: .+ Trace ID: [0-9a-f-]{36} Correlation ID: [0-9a-f-]{36} Timestamp: [0-9]{4}-[0-9-]+ [0-9:]{8}Z$`)
		if !form.MatchString(body.Description) || !strings.Contains(body.Description, body.Trace) || !strings.Contains(body.Description, body.Timestamp) {
			t.Errorf("AADSTS%d: %s", known.Number, body.Description)
		}
		if w.Header().Get("Cache-Control") == "" {
			t.Errorf("AADSTS%d may be kept", known.Number)
		}
	}
}

// What a client sent comes back as it is, markers among it.
func TestTellTakesNoOrders(t *testing.T) {
	told := (&Refusal{50011, "%[2]s%d"}).Tell(About{Client: "c", Tenant: "t"})
	if !strings.Contains(told.Text, "'%[2]s%d'") {
		t.Errorf("got %s", told.Text)
	}
	if told = New(1).Tell(About{}); told.Code != "invalid_request" || told.Status != 400 {
		t.Errorf("an unknown number: %+v", told)
	}
}

func TestRetryAfter(t *testing.T) {
	w := httptest.NewRecorder()
	New(90055).Tell(About{}).Write(w)
	if w.Header().Get("Retry-After") != "60" {
		t.Errorf("got %v", w.Header())
	}
	w = httptest.NewRecorder()
	w.Header().Set("Retry-After", "5")
	New(90055).Tell(About{}).Write(w)
	if w.Header().Get("Retry-After") != "5" {
		t.Errorf("got %v", w.Header())
	}
}

func TestGUID(t *testing.T) {
	if got := GUIDOf([]byte("0123456789abcdef")); got != "30313233-3435-3637-3839-616263646566" {
		t.Errorf("got %s", got)
	}
	if one, other := GUID(), GUID(); one == other {
		t.Error("two are the same")
	}
}
