package exchange

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/status"
)

func TestReplySeriesAreBounded(t *testing.T) {
	m := newMetrics(prometheus.NewRegistry())
	m.count(status.StageDot, 250, status.Enhanced{2, 0, 0})
	for i := range 999 {
		m.count(status.StageRcpt, 550, status.Enhanced{5, 7, i})
	}
	if got := testutil.CollectAndCount(m.replies); got != maxReplySeries+1 {
		t.Errorf("got %d series, want %d", got, maxReplySeries+1)
	}
	if got := testutil.ToFloat64(m.replies.WithLabelValues("rcpt", "5xx", "other")); got != 999-maxReplySeries+1 {
		t.Errorf("got %v in the rest", got)
	}
	m.count(status.StageDot, 250, status.Enhanced{2, 0, 0}) // what was known stays
	if got := testutil.ToFloat64(m.replies.WithLabelValues("dot", "250", "2.0.0")); got != 2 {
		t.Errorf("got %v, want 2", got)
	}
}
