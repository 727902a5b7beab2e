package entra

import (
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
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{Name: "relayd_token_requests_total",
			Help: "Requests to the token endpoint of Entra ID."}, []string{"tenant", "result"}),
		expiry: f.NewGaugeVec(prometheus.GaugeOpts{Name: "relayd_token_expiry_timestamp_seconds",
			Help: "When the tenant's current access token expires."}, []string{"tenant"}),
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

func (m *metrics) fetched(tenant, result string, expiry time.Time) {
	m.requests.WithLabelValues(tenant, result).Inc()
	if result == resultOK {
		m.expiry.WithLabelValues(tenant).Set(float64(expiry.Unix()))
	}
}
