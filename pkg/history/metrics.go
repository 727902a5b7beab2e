package history

import "github.com/prometheus/client_golang/prometheus"

// metrics of the history; none has a label.
type metrics struct {
	dropped, damaged prometheus.Counter
	messages, bytes  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_history_dropped_total",
			Help: "Steps of messages that were not kept: too many at once, or the disk was full.",
		}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_history_damaged_total", Help: "Places in the history that could not be read.",
		}),
		messages: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "relayd_history_messages", Help: "Messages whose history is kept.",
		}),
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "relayd_history_bytes", Help: "Octets of history on the disk.",
		}),
	}
	reg.MustRegister(m.dropped, m.damaged, m.messages, m.bytes)
	return m
}
