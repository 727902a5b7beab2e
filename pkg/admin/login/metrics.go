package login

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct{ logins *prometheus.CounterVec }

// newMetrics registers the metrics; it panics where they are registered already.
func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{promauto.With(r).NewCounterVec(prometheus.CounterOpts{Name: "relayd_admin_logins_total",
		Help: "Logins to page and API, and requests with a bearer token."}, []string{"method", "result"})}
	for method, results := range map[string][]string{
		"token": {"ok", "refused", "limited"}, methodLink: {"ok", "refused", "limited"}, methodOIDC: {"ok", "refused"},
	} {
		for _, result := range results {
			m.logins.WithLabelValues(method, result)
		}
	}
	return m
}

func (m *metrics) count(method, result string) { m.logins.WithLabelValues(method, result).Inc() }
