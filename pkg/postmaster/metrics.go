package postmaster

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// kind is what a mail of relayd's own is, and the label of that name.
type kind string

const (
	kindFailure kind = "failure" // a notification that recipients failed
	kindDelay   kind = "delay"   // one that they wait
	kindNotice  kind = "notice"  // of parks
	kindDigest  kind = "digest"
	kindOther   kind = "announcement" // a notice of any other kind
)

// result is what became of it, and the label of that name.
type result string

const (
	resultSent       result = "sent"       // is in the queue
	resultSuppressed result = "suppressed" // loop or cap; of notices, no room to note a park
	resultError      result = "error"      // could not be stored; mostly tried again
)

// metrics: relayd_bounces_total by kind and result, all combinations from the start.
type metrics struct {
	bounces *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{bounces: promauto.With(r).NewCounterVec(prometheus.CounterOpts{
		Name: "relayd_bounces_total", Help: "Mails relayd wrote itself, or had reason to.",
	}, []string{"kind", "result"})}
	for _, k := range []kind{kindFailure, kindDelay, kindNotice, kindDigest, kindOther} {
		for _, res := range []result{resultSent, resultSuppressed, resultError} {
			m.of(k, res)
		}
	}
	return m
}

func (m *metrics) of(k kind, r result) prometheus.Counter {
	return m.bounces.WithLabelValues(string(k), string(r))
}
