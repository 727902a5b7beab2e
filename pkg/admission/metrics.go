package admission

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are the counters of all intakes. The label intake is the name of one, as in [envelope.Envelope]; reason is one of
// a few words.
type Metrics struct {
	Accepted, Bytes *prometheus.CounterVec // intake
	Rejected        *prometheus.CounterVec // intake, reason
}

// NewMetrics registers the metrics, once for all intakes of a process. It panics where they are registered already.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	return &Metrics{
		Accepted: f.NewCounterVec(prometheus.CounterOpts{Name: "relayd_messages_accepted_total",
			Help: "Messages stored and acknowledged."}, []string{"intake"}),
		Bytes: f.NewCounterVec(prometheus.CounterOpts{Name: "relayd_message_bytes_total",
			Help: "Octets of the messages stored and acknowledged."}, []string{"intake"}),
		Rejected: f.NewCounterVec(prometheus.CounterOpts{Name: "relayd_messages_rejected_total",
			Help: "Senders, recipients and messages refused, temporarily or for good."}, []string{"intake", "reason"}),
	}
}
