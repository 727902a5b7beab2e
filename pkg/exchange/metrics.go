package exchange

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/status"
)

// maxReplySeries bounds relayd_exchange_replies_total: past it a reply counts by its class alone ("5xx", "other"), so
// that no server can make series without end.
const maxReplySeries = 200

type metrics struct {
	replies     *prometheus.CounterVec
	connections *prometheus.GaugeVec
	unknown     *prometheus.CounterVec

	mu    sync.RWMutex // guards known
	known map[replyKind]prometheus.Counter
}

type replyKind struct {
	stage    status.Stage
	code     int
	enhanced status.Enhanced
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	m := &metrics{
		replies: f.NewCounterVec(prometheus.CounterOpts{Name: "relayd_exchange_replies_total",
			Help: "Replies of Exchange Online, good and bad."}, []string{"stage", "code", "enhanced"}),
		connections: f.NewGaugeVec(prometheus.GaugeOpts{Name: "relayd_exchange_connections",
			Help: "Authenticated sessions with Exchange Online: idle, or active in a delivery."}, []string{"tenant", "state"}),
		unknown: f.NewCounterVec(prometheus.CounterOpts{Name: "relayd_exchange_unknown_replies_total",
			Help: "Replies of Exchange Online that no row of the catalogue describes."}, []string{"stage"}),
		known: map[replyKind]prometheus.Counter{},
	}
	for _, stage := range catalogue.Stages() {
		m.unknown.WithLabelValues(string(stage))
	}
	return m
}

// count counts a reply.
func (m *metrics) count(stage status.Stage, code int, enhanced status.Enhanced) {
	kind := replyKind{stage, code, enhanced}
	m.mu.RLock()
	c := m.known[kind]
	m.mu.RUnlock()
	if c == nil {
		c = m.learn(kind)
	}
	c.Inc()
}

func (m *metrics) learn(kind replyKind) prometheus.Counter {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) >= maxReplySeries {
		return m.replies.WithLabelValues(string(kind.stage), strconv.Itoa(kind.code/100)+"xx", "other")
	}
	c := m.replies.WithLabelValues(string(kind.stage), strconv.Itoa(kind.code), kind.enhanced.String())
	m.known[kind] = c
	return c
}
