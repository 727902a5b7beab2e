package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"relayd/cmd/relayd/desk"
	"relayd/cmd/relayd/registry"
	"relayd/pkg/admin"
	"relayd/pkg/admin/audit"
	"relayd/pkg/admission"
	"relayd/pkg/broker"
	"relayd/pkg/config"
	"relayd/pkg/dispatch"
	"relayd/pkg/entra"
	"relayd/pkg/entra/consent"
	"relayd/pkg/envelope"
	"relayd/pkg/exchange"
	"relayd/pkg/history"
	"relayd/pkg/live"
	"relayd/pkg/policy"
	"relayd/pkg/postmaster"
	"relayd/pkg/queue"
	"relayd/pkg/radar"
	"relayd/pkg/smtpin"
	"relayd/pkg/vault"
)

const (
	queueConns    = 8 // connections to the queue's server: writes of one do not wait behind reads of another
	watchInterval = 2 * time.Second
	stopTimeout   = 10 * time.Second // for the last writes of a clean stop
)

func newServeCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the relay",
		Long: "Run the relay until SIGTERM or SIGINT, then drain: finish what is being sent, keep the rest.\n" +
			"SIGHUP, and any change to the content of the configuration or a file it names, reloads.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("serve needs --config FILE; relayd config example prints one to start from")
			}
			// From here on: loading a large queue takes a while, and the default action of SIGHUP is to end the process.
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			d, err := newDaemon(cmd.Context(), file)
			if err != nil {
				return err
			}
			return d.run(cmd.Context(), hangup)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `file`")
	return cmd
}

// daemon is the program as a value: what newDaemon built and run runs.
type daemon struct {
	file  string
	cfg   *config.Config // in force
	log   *zap.Logger
	level zap.AtomicLevel
	parts *parts

	vault      *vault.Vault
	registry   *registry.Registry
	audit      *audit.Log
	live       *live.Log
	consents   *consent.Consents
	desk       *desk.Desk
	radar      *radar.Radar
	intakes    *admission.Metrics
	history    *history.Log
	broker     *broker.Broker
	queue      *queue.Queue
	tokens     *entra.Tokens
	exchange   *exchange.Pool
	policy     *policy.Policy
	postmaster *postmaster.Postmaster
	dispatcher *dispatch.Dispatcher
	listeners  []*smtpin.Server
	admin      *admin.Server

	reloaded          prometheus.Gauge
	wired             atomic.Pointer[wiring]          // in force
	extended          atomic.Pointer[config.Extended] // in force: the file and what was entered beside it
	reloading         atomic.Pointer[reloadState]
	born              time.Time
	started, stopping atomic.Bool
	applying          sync.Mutex // held while something is put in force
	mu                sync.Mutex // guards cfg against the watch; whoever holds applying writes it
}

// newDaemon reads the configuration and builds every part, in the order mail flows backwards: nothing is accepted
// before there is a place to keep it, and nothing sent before its outcome can be kept. On an error all that was built is
// taken down again.
func newDaemon(ctx context.Context, file string) (_ *daemon, err error) {
	cfg, warnings, err := config.Load(file)
	if err != nil {
		return nil, fmt.Errorf("the configuration has errors:\n%w", err)
	}
	d := &daemon{file: file, cfg: cfg, born: time.Now()}
	if d.log, d.level, err = newLogger(&cfg.Log); err != nil {
		return nil, err
	}
	d.warn(warnings)
	d.parts = newParts(d.log)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.parts.stop())
		}
	}()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registerBuildInfo(reg)
	d.reloaded = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "relayd_config_last_reload_successful", Help: "1 where the configuration in force is the one on disk.",
	})
	d.reloaded.Set(1)
	reg.MustRegister(d.reloaded)
	d.reloading.Store(newReloadState(file, warnings))
	d.intakes = admission.NewMetrics(reg)

	if err := d.openQueue(ctx, reg); err != nil {
		return nil, err
	}
	if err := d.openVault(ctx); err != nil {
		return nil, err
	}
	if err := d.openUpstream(reg); err != nil {
		return nil, err
	}
	if err := d.openDesk(reg); err != nil {
		return nil, err
	}
	if err := d.openAdmin(reg); err != nil {
		return nil, err
	}
	if err := d.openListeners(reg); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *daemon) warn(warnings []config.Warning) {
	for _, w := range warnings {
		d.log.Warn("configuration: " + w.String())
	}
}

func (d *daemon) openQueue(ctx context.Context, reg prometheus.Registerer) (err error) {
	d.broker, err = broker.Open(ctx, broker.Options{Dir: d.cfg.DataDir, Logger: d.log, OnFatal: d.parts.fail})
	if err != nil {
		return err
	}
	d.parts.onStop("broker", d.broker.Close)
	q := &d.cfg.Queue
	d.history, err = history.Open(history.Options{
		Dir: filepath.Join(d.cfg.DataDir, "history"), KeepSent: time.Duration(q.KeepSent), KeepFailed: time.Duration(q.KeepFailed),
		MaxBytes: historyBytes(int64(q.MaxBytes)), Waiting: d.waits, Logger: d.log, Registerer: reg,
	})
	if err != nil {
		return err
	}
	d.parts.onStop("history", d.history.Close)
	d.live = live.New(live.Options{Memory: memoryLater{d}, Logger: d.log, Registerer: reg})
	conns, err := d.broker.Connect(queueConns)
	if err != nil {
		return err
	}
	d.queue, err = queue.Open(ctx, conns, queue.Options{
		Reopen: d.reopen,
		Dir:    d.cfg.DataDir, MinFreeBytes: int64(q.MinFreeBytes), MaxBytes: int64(q.MaxBytes), MemoryBytes: int64(d.cfg.Limits.MemoryBytes),
		KeepFailed: time.Duration(q.KeepFailed), Record: d.record,
		Logger: d.log, Registerer: reg,
	})
	if err != nil {
		return err
	}
	d.parts.onStop("queue", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		return d.queue.Close(ctx)
	})
	return nil
}

// record tells the history, and whoever follows, of a step.
func (d *daemon) record(s envelope.Step) {
	d.history.Record(s)
	d.live.Record(s)
}

// historyBytes bounds the history: a tenth of what mail may take, and never less than 64 MiB.
func historyBytes(maxBytes int64) int64 { return max(64<<20, maxBytes/10) }

// waits reports whether the queue still holds a message.
func (d *daemon) waits(id envelope.ID) bool {
	_, ok := d.queue.Info(id)
	return ok
}

func (d *daemon) openUpstream(reg prometheus.Registerer) (err error) {
	content := d.registry.Content()
	x := d.cfg.Extend(content.Added())
	d.extended.Store(x)
	d.warnRefused(x)
	w, err := extendedWiring(x, content)
	if err != nil {
		return err
	}
	d.wired.Store(w)
	d.tokens, err = entra.New(entra.Options{
		Tenants: w.entra, Rules: w.refusals, Records: d.vault.Kind(kindGrant), Node: nodeName(), SenderLabels: d.cfg.Metrics.PerSenderLimit,
		Logger: d.log, Registerer: reg,
	})
	if err != nil {
		return err
	}
	d.parts.onStop("tokens", func() error { d.tokens.Close(); return nil })
	d.exchange, err = exchange.New(exchange.Options{
		Hostname: d.cfg.Hostname, Tenants: w.exchange, Tokens: d.tokens, Catalogue: w.replies, Logger: d.log, Registerer: reg,
	})
	if err != nil {
		return err
	}
	d.policy = policy.New(w.policy)
	d.postmaster = postmaster.New(postmaster.Options{
		Settings: w.postmaster, Queue: d.queue, Server: d.serverOf, Advice: d.adviceOf, Logger: d.log, Registerer: reg,
	})
	d.dispatcher = dispatch.New(dispatch.Options{
		Source: d.queue, Router: d.policy, Deliverer: d.exchange, Memory: d.queue, Reporter: d.postmaster, Record: d.record,
		Rewrite: rewriteMessage, Retry: w.retry, Lifetime: time.Duration(d.cfg.Queue.Lifetime), DelayWarning: time.Duration(d.cfg.Queue.DelayWarning),
		DrainTimeout: drainTime, SenderLabels: d.cfg.Metrics.PerSenderLimit, Logger: d.log, Registerer: reg,
	})
	return nil
}

// run starts all parts and waits for the end of ctx, or for a part that fails. It returns once everything has stopped.
//
// A value on hangup reloads.
func (d *daemon) run(ctx context.Context, hangup <-chan os.Signal) error {
	reload := make(chan struct{}, 1)

	d.parts.start("history", func(ctx context.Context) error {
		var healing sync.WaitGroup
		healing.Go(func() { (&messages{queue: d.queue, history: d.history}).heal(ctx, d.history.Record, d.log) })
		d.history.Run(ctx)
		healing.Wait()
		return nil
	})
	d.parts.start("queue watch", d.queue.Run)
	// Before the watch ends: a refresh token that is still to be stored may need the server to be opened anew.
	d.parts.onStop("token refreshes", func() error { d.tokens.Close(); return nil })
	d.parts.start("admin", d.admin.Run)
	d.parts.start("postmaster", d.postmaster.Run)
	d.parts.start("exchange", d.exchange.Run)
	d.parts.start("tokens", d.tokens.Run)
	d.parts.start("live", d.live.Run)
	d.parts.start("consents", d.consents.Run)
	d.parts.start("radar", d.radar.Run)
	d.parts.start("registry", func(ctx context.Context) error {
		return d.registry.Run(ctx, func(err error) {
			if err != nil {
				d.log.Error("some of what was entered on the page cannot be read, and is not in force", zap.Error(err))
			}
			if err := d.apply(ctx); err != nil {
				d.log.Error("what was entered on the page is not in force", zap.Error(err))
			}
		})
	})
	d.parts.start("dispatcher", d.dispatcher.Run)
	d.parts.start("configuration watch", func(ctx context.Context) error {
		config.Watch(ctx, watchInterval, d.files, func() {
			select {
			case reload <- struct{}{}:
			default: // one is due already
			}
		})
		return nil
	})
	d.parts.start("listeners", d.runListeners)
	d.announce(ctx)
	d.started.Store(true)
	d.log.Info("relayd is running", zap.String("version", thisBuild().version), zap.String("hostname", d.cfg.Hostname))

	var err error
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case err = <-d.parts.failed:
			d.log.Error("stopping", zap.Error(err))
			running = false
		case <-hangup:
			d.reload()
		case <-reload:
			d.reload()
		}
	}
	d.stopping.Store(true)
	d.log.Info("draining")
	err = errors.Join(err, d.parts.stop())
	d.log.Info("stopped")
	return err
}
