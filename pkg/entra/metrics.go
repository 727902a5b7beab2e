package entra

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The values of the label "result": a token came; Entra ID could not give one now; it refused to.
const (
	resultOK        = "ok"
	resultTemporary = "temporary"
	resultRefused   = "refused"
)

type metrics struct {
	requests *prometheus.CounterVec
	expiry   *prometheus.GaugeVec
	consent  *prometheus.GaugeVec

	mu      sync.Mutex          // guards senders
	senders map[string]struct{} // values of the label "sender", at most limit of them
	limit   int
}

func newMetrics(r prometheus.Registerer, senders int) *metrics {
	f := promauto.With(r)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{Name: "relayd_token_requests_total",
			Help: "Requests to the token endpoint of Entra ID."}, []string{"tenant", "result"}),
		expiry: f.NewGaugeVec(prometheus.GaugeOpts{Name: "relayd_token_expiry_timestamp_seconds",
			Help: "When the tenant's current access token expires."}, []string{"tenant"}),
		consent: f.NewGaugeVec(prometheus.GaugeOpts{Name: "relayd_consent_expiry_timestamp_seconds",
			Help: "When the mailbox's refresh token expires if it is not used until then."}, []string{"sender"}),
		senders: map[string]struct{}{}, limit: senders,
	}
}

// add pre-creates the counters of a tenant.
func (m *metrics) add(tenant string) {
	for _, result := range []string{resultOK, resultTemporary, resultRefused} {
		m.requests.WithLabelValues(tenant, result)
	}
}

// forget removes a tenant that is no longer configured.
func (m *metrics) forget(tenant string) {
	m.requests.DeletePartialMatch(prometheus.Labels{"tenant": tenant})
	m.expiry.DeleteLabelValues(tenant)
}

func (m *metrics) asked(tenant, result string) { m.requests.WithLabelValues(tenant, result).Inc() }

func (m *metrics) current(tenant string, expiry time.Time) {
	m.expiry.WithLabelValues(tenant).Set(float64(expiry.Unix()))
}

// consented shows when a mailbox's grant ends; zero: there is none that serves. Past the limit it is left out.
func (m *metrics) consented(sender string, ends time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ends.IsZero() {
		m.consent.DeleteLabelValues(sender)
		delete(m.senders, sender)
		return
	}
	if _, known := m.senders[sender]; !known {
		if len(m.senders) >= m.limit {
			return
		}
		m.senders[sender] = struct{}{}
	}
	m.consent.WithLabelValues(sender).Set(float64(ends.Unix()))
}
