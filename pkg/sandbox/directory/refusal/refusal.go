// Package refusal writes Entra ID's errors: as JSON to a client of the token endpoint, as parameters to the application a
// browser is sent back to, as a sentence to a person.
package refusal

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"relayd/pkg/sandbox/text"
)

// Refusal is an error on its way to the client: its AADSTS number, and the offending value where the text has a place for
// one.
type Refusal struct {
	Number int
	Value  string
}

// Error is the number, for logs.
func (r *Refusal) Error() string { return "AADSTS" + strconv.Itoa(r.Number) }

// New returns a refusal by number alone.
func New(number int) *Refusal { return &Refusal{Number: number} }

// About says who was refused.
type About struct {
	Client, Tenant string // ids as they were given
}

// Told is a refusal in full.
type Told struct {
	Number      int
	Status      int    // of HTTP
	Code        string // the OAuth error
	Suberror    string // a hint beside the error; mostly empty
	Text        string // the sentence alone
	Trace       string
	Correlation string
	Time        time.Time
}

// Tell finds the published text of a refusal. A number that is not known is invalid_request.
func (r *Refusal) Tell(about About) Told {
	e := text.AADSTS{Status: http.StatusBadRequest, Code: "invalid_request", Text: "The request was refused."}
	for _, known := range text.Refusals() {
		if known.Number == r.Number {
			e = known
		}
	}
	fill := strings.NewReplacer("%[1]s", about.Client, "%[2]s", about.Tenant, "%[3]s", r.Value)
	return Told{
		Number: r.Number, Status: e.Status, Code: e.Code, Suberror: e.Suberror, Text: fill.Replace(e.Text),
		Trace: GUID(), Correlation: GUID(), Time: time.Now().UTC(),
	}
}

// Description is the value of error_description.
func (t Told) Description() string {
	return fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s", t.Number, t.Text, t.Trace,
		t.Correlation, t.timestamp())
}

func (t Told) timestamp() string { return t.Time.Format("2006-01-02 15:04:05Z") }

// Write answers with the JSON error.
func (t Told) Write(w http.ResponseWriter) {
	if t.Status == http.StatusTooManyRequests && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", "60")
	}
	body := map[string]any{
		"error": t.Code, "error_description": t.Description(), "error_codes": []int{t.Number}, "timestamp": t.timestamp(),
		"trace_id": t.Trace, "correlation_id": t.Correlation,
		"error_uri": fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", t.Number),
	}
	if t.Suberror != "" {
		body["suberror"] = t.Suberror
	}
	JSON(w, t.Status, body)
}

// JSON answers with v and forbids keeping the answer, which mostly holds a token.
func JSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store, no-cache")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // an error means the client is gone
}

// GUID returns a random one.
func GUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return GUIDOf(b[:])
}

// GUIDOf writes 16 bytes as a GUID.
func GUIDOf(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
