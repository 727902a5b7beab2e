package live

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics have no labels.
type metrics struct {
	readers       prometheus.Gauge
	lost, refused prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	r := promauto.With(reg)
	return &metrics{
		readers: r.NewGauge(prometheus.GaugeOpts{Name: "relayd_live_readers", Help: "Pages and clients that follow what happens."}),
		lost:    r.NewCounter(prometheus.CounterOpts{Name: "relayd_live_lost_total", Help: "Steps that a reader was too slow to take."}),
		refused: r.NewCounter(prometheus.CounterOpts{Name: "relayd_live_refused_total", Help: "Readers for which there was no room."}),
	}
}
