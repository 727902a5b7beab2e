package smtpin

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"relayd/pkg/admission"
)

// intakeName is the value of the label "intake", here and in [envelope.Envelope].
const intakeName = "smtp"

// Metrics are the counters of all listeners.
type Metrics struct {
	accepted    prometheus.Counter
	bytes       prometheus.Counter
	rejected    *prometheus.CounterVec
	connections *prometheus.GaugeVec
	commands    *prometheus.CounterVec
}

// NewMetrics registers the metrics, once for all listeners of a process, besides those of all intakes. It panics where they
// are registered already.
func NewMetrics(r prometheus.Registerer, intakes *admission.Metrics) *Metrics {
	f := promauto.With(r)
	m := &Metrics{
		accepted: intakes.Accepted.WithLabelValues(intakeName),
		bytes:    intakes.Bytes.WithLabelValues(intakeName),
		rejected: intakes.Rejected,
		connections: f.NewGaugeVec(prometheus.GaugeOpts{Name: "relayd_smtp_connections",
			Help: "Open SMTP connections."}, []string{"listener"}),
		commands: f.NewCounterVec(prometheus.CounterOpts{Name: "relayd_smtp_commands_total",
			Help: "SMTP commands by the first digit of their reply."}, []string{"listener", "command", "reply"}),
	}
	for _, why := range reasons() {
		m.rejected.WithLabelValues(intakeName, string(why))
	}
	return m
}

// commandCounters are relayd_smtp_commands_total of one listener, by verb and by first digit of the reply, 2 to 5.
type commandCounters [verbs][4]prometheus.Counter

// listen pre-creates the metrics of a listener.
func (m *Metrics) listen(listener string) (prometheus.Gauge, *commandCounters) {
	counts := new(commandCounters)
	for v := range verbs {
		for i := range counts[v] {
			counts[v][i] = m.commands.WithLabelValues(listener, v.String(), fmt.Sprintf("%dxx", i+2))
		}
	}
	return m.connections.WithLabelValues(listener), counts
}

// add counts a reply that begins with digit.
func (c *commandCounters) add(v verb, digit byte) {
	if digit >= '2' && digit <= '5' {
		c[v][digit-'2'].Inc()
	}
}
