package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"relayd/pkg/status"
)

// Check is one condition of the relay's health.
type Check struct {
	Name string // a word or two, "queue storage"
	// Run returns nil where all is well, else what is wrong, in words without secrets. It should return when ctx ends;
	// while it has not, it is not asked again.
	Run func(ctx context.Context) error
}

// checkTimeout is how long a check may take. Kubernetes asks again after 10 s, by default.
const checkTimeout = 3 * time.Second

// pages is the paths and what answers on them. Exact paths only: there is nothing below them.
type pages map[string]http.Handler

func newPages(opts *Options) pages {
	log := opts.Logger
	return pages{
		"/livez":    newHealth(opts.Live),
		"/readyz":   newHealth(opts.Ready),
		"/startupz": newHealth(opts.Startup),
		"/metrics": promhttp.HandlerFor(opts.Gatherer, promhttp.HandlerOpts{
			ErrorLog:            gatherLog{log},
			ErrorHandling:       promhttp.ContinueOnError, // one broken collector must not blind the rest
			MaxRequestsInFlight: 8,
			EnableOpenMetrics:   true,
		}),
	}
}

// ServeHTTP implements http.Handler.
func (p pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if page := p[r.URL.Path]; page != nil {
		page.ServeHTTP(w, r)
		return
	}
	http.Error(w, "nothing here; there are /livez, /readyz, /startupz and /metrics", http.StatusNotFound)
}

// gatherLog has what promhttp could not collect.
type gatherLog struct{ log *zap.Logger }

// Println implements promhttp.Logger.
func (l gatherLog) Println(v ...any) {
	l.log.Error("metrics are incomplete", zap.String("err", strings.TrimSpace(fmt.Sprintln(v...))))
}

// health answers with one line for each check: 200 where all are well, else 503.
type health struct {
	checks []Check
	flight []singleflight.Group // a check runs once at a time, however many ask
}

func newHealth(checks []Check) *health {
	return &health{checks: checks, flight: make([]singleflight.Group, len(checks))}
}

// ServeHTTP implements http.Handler.
func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	errs := make([]error, len(h.checks))
	var all sync.WaitGroup
	for i := range h.checks {
		all.Go(func() { errs[i] = h.run(ctx, i) })
	}
	all.Wait()
	code := http.StatusOK
	var body strings.Builder
	for i, c := range h.checks {
		if errs[i] == nil {
			fmt.Fprintf(&body, "ok %s\n", c.Name)
			continue
		}
		code = http.StatusServiceUnavailable
		fmt.Fprintf(&body, "failed %s: %s\n", c.Name, oneLine(errs[i]))
	}
	if len(h.checks) == 0 {
		body.WriteString("ok\n")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body.String())) // the asker may be gone
}

// run asks check i, or joins whoever is asking already, and waits no longer than ctx.
func (h *health) run(ctx context.Context, i int) error {
	answer := h.flight[i].DoChan("", func() (_ any, err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("check panicked: %v", r)
			}
		}()
		// Not the context of who asked first: the others want the answer even where that one hangs up.
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		return nil, h.checks[i].Run(own)
	})
	select {
	case r := <-answer:
		return r.Err
	case <-ctx.Done():
		return errors.New("no answer in time")
	}
}

// maxLine bounds what a failure may say, in octets.
const maxLine = 300

// oneLine is what a failure says to whoever asks: the text that is safe to show where it has one, no control characters.
func oneLine(err error) string {
	text := err.Error()
	if e, ok := errors.AsType[*status.Error](err); ok {
		text = e.Error()
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxLine {
		text = strings.ToValidUTF8(text[:maxLine], "") + "…"
	}
	return text
}
