package main

import (
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"relayd/pkg/admin/api"
	"relayd/pkg/admission"
	"relayd/pkg/envelope"
	"relayd/pkg/policy"
)

// TestSubmitWhileReloading: what a message of the API is admitted by is read whole, while a reload puts another
// configuration in force. It is for the race detector; the message is refused before the queue is asked.
func TestSubmitWhileReloading(t *testing.T) {
	c := parse(t, sixLines)
	w, err := wiringOf(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cfg: c, log: zap.NewNop(), policy: policy.New(w.policy), intakes: admission.NewMetrics(prometheus.NewRegistry())}
	d.wired.Store(w)
	var reload sync.WaitGroup
	reload.Go(func() { // as tryReload ends
		d.wired.Store(w)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.cfg = parse(t, sixLines)
	})
	_, err = d.submit(t.Context(), &api.Submission{
		From: "erp@contoso.com", To: []envelope.Address{"a@example.com"}, Peer: "127.0.0.1",
		Message: strings.NewReader("From: erp@contoso.com\r\n" + strings.Repeat("Received: here\r\n", 51) + "\r\n"),
	})
	reload.Wait()
	if err == nil || !strings.Contains(err.Error(), "too many hops") {
		t.Errorf("got %v, want the refusal of a loop", err)
	}
	if n := testutil.ToFloat64(d.intakes.Rejected.WithLabelValues(httpIntake, string(admission.ReasonLoop))); n != 1 {
		t.Errorf("got %v refusals counted, want 1", n)
	}
}
