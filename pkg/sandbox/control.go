package sandbox

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"

	"relayd/pkg/sandbox/directory/control"
	"relayd/pkg/sandbox/fault"
)

// handler serves Entra ID under the tenants' names and the control API under /sandbox/. The API is for tests on one
// machine and asks nobody who they are.
func (b *Sandbox) handler() http.Handler {
	mux := http.NewServeMux()
	b.endpoint.Routes(mux)
	b.pages.Routes(mux)
	control.New(b.directory).Routes(mux)

	mux.HandleFunc("GET /sandbox/messages", b.serveMessages)
	mux.HandleFunc("DELETE /sandbox/messages", answer(b.Clear))
	mux.HandleFunc("GET /sandbox/messages/{seq}", b.serveMessage)
	mux.HandleFunc("GET /sandbox/messages/{seq}/raw", b.serveRaw)
	mux.HandleFunc("GET /sandbox/stats", show(func() any { return b.Stats() }))
	mux.HandleFunc("DELETE /sandbox/stats", answer(b.ClearStats))
	mux.HandleFunc("GET /sandbox/faults", show(func() any { return b.Faults() }))
	mux.HandleFunc("POST /sandbox/faults", b.serveAddFault)
	mux.HandleFunc("DELETE /sandbox/faults", answer(b.ClearFaults))
	mux.HandleFunc("DELETE /sandbox/faults/{id}", b.serveRemoveFault)
	mux.HandleFunc("GET /sandbox/presets", show(func() any { return fault.Presets() }))
	mux.HandleFunc("POST /sandbox/tenants", b.serveAddTenant)
	mux.HandleFunc("GET /sandbox/ca", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-pem-file")
		w.Write(b.CAPEM())
	})
	return mux
}

func answer(act func()) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		act()
		w.WriteHeader(http.StatusNoContent)
	}
}

func show(what func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, what()) }
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // an error means the client is gone
}

func writeError(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"error": text})
}

// serveMessages lists messages. The query's relayd_id, message_id, login, sender and recipient select, after is a
// sequence number to start behind, limit bounds the answer. With wait=n it answers once n messages match, or with what
// there is and 504 after timeout (a duration, 30s).
func (b *Sandbox) serveMessages(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(q.Get(name), 10, 63)
		if err != nil {
			return 0
		}
		return n
	}
	f := Filter{
		RelaydID: q.Get("relayd_id"), MessageID: q.Get("message_id"), Login: q.Get("login"), Sender: q.Get("sender"),
		Recipient: q.Get("recipient"), After: number("after"), Limit: int(number("limit")),
	}
	wanted := int(number("wait"))
	if wanted == 0 {
		writeJSON(w, http.StatusOK, b.Messages(f))
		return
	}
	timeout, err := time.ParseDuration(q.Get("timeout"))
	if err != nil {
		timeout = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	found, err := b.Wait(ctx, wanted, f)
	status := http.StatusOK
	if err != nil {
		status = http.StatusGatewayTimeout
	}
	writeJSON(w, status, found)
}

func (b *Sandbox) serveMessage(w http.ResponseWriter, r *http.Request) {
	seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 64)
	if err == nil && seq > 0 {
		if found := b.Messages(Filter{After: seq - 1, Limit: 1}); len(found) == 1 && found[0].Seq == seq {
			writeJSON(w, http.StatusOK, found[0])
			return
		}
	}
	writeError(w, http.StatusNotFound, "no such message")
}

func (b *Sandbox) serveRaw(w http.ResponseWriter, r *http.Request) {
	seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 64)
	if err == nil {
		if body, ok := b.Raw(seq); ok {
			w.Header().Set("Content-Type", "message/rfc822")
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			w.Write(body)
			return
		}
	}
	writeError(w, http.StatusNotFound, "no such message, or its body is not kept")
}

func (b *Sandbox) serveAddFault(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		writeError(w, http.StatusBadRequest, "the rule could not be read")
		return
	}
	rule, err := fault.FromJSON(data)
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	if rule.ID, err = b.AddFault(rule); err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	writeJSON(w, http.StatusCreated, rule)
}

func (b *Sandbox) serveRemoveFault(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || !b.RemoveFault(id) {
		writeError(w, http.StatusNotFound, "no such rule")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (b *Sandbox) serveAddTenant(w http.ResponseWriter, r *http.Request) {
	var t Tenant
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&t)
	if err == nil {
		err = b.AddTenant(t)
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
