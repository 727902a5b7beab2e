package radar

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics: relayd_credential_expiry_timestamp_seconds by tenant, a configured name: when its secret or certificate expires,
// whichever is first. A tenant whose credential has no known date has no sample.
type metrics struct {
	expiry *prometheus.GaugeVec
	shown  map[string]bool // only Run's
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "relayd_credential_expiry_timestamp_seconds", Help: "When the tenant's client secret or certificate expires, as far as that is known.",
		}, []string{"tenant"}),
		shown: map[string]bool{},
	}
	reg.MustRegister(m.expiry)
	return m
}

// show replaces what is shown. What stays is never missing in between.
func (m *metrics) show(items []Item) {
	first := map[string]time.Time{}
	for i := range items {
		item := &items[i]
		if item.Kind != KindSecret && item.Kind != KindCertificate {
			continue
		}
		if at, ok := first[item.Tenant]; !ok || item.Expires.Before(at) {
			first[item.Tenant] = item.Expires
		}
	}
	for tenant, at := range first {
		m.expiry.WithLabelValues(tenant).Set(float64(at.Unix()))
		m.shown[tenant] = true
	}
	for tenant := range m.shown {
		if _, ok := first[tenant]; !ok {
			m.expiry.DeleteLabelValues(tenant)
			delete(m.shown, tenant)
		}
	}
}
