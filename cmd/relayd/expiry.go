package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/pkg/config"
)

// credentialExpiry shows what credential_expires says of each tenant, so that an alert can be ahead of the day. A tenant
// that does not say has no sample. The label tenant is a configured name.
type credentialExpiry struct{ gauge *prometheus.GaugeVec }

func newCredentialExpiry(reg prometheus.Registerer) credentialExpiry {
	c := credentialExpiry{prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "relayd_credential_expiry_timestamp_seconds", Help: "When the tenant's client secret expires, as the configuration says.",
	}, []string{"tenant"})}
	reg.MustRegister(c.gauge)
	return c
}

func (c credentialExpiry) show(tenants []config.Tenant) {
	c.gauge.Reset()
	for i := range tenants {
		if day := time.Time(tenants[i].CredentialExpires); !day.IsZero() {
			c.gauge.WithLabelValues(tenants[i].Name).Set(float64(day.Unix()))
		}
	}
}
