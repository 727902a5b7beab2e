package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"relayd/pkg/admin"
	"relayd/pkg/config"
	"relayd/pkg/envelope"
	"relayd/pkg/smtpin"
)

// drainTime is what sessions under way, and then attempts under way, get to end when the relay stops: together less
// than the 90 s systemd waits; Kubernetes needs a terminationGracePeriodSeconds of 60.
const drainTime = 20 * time.Second

func (d *daemon) openListeners(reg prometheus.Registerer) error {
	metrics := smtpin.NewMetrics(reg, d.intakes)
	for i := range d.cfg.Listeners {
		set, err := d.intake(d.cfg, i)
		if err != nil {
			return err
		}
		l, err := smtpin.New(smtpin.Options{Settings: set, Queue: d.queue, Metrics: metrics, Logger: d.log, Drain: drainTime})
		if err != nil {
			return fmt.Errorf("listeners[%d].address: %w%s", i, err, socketHint(err))
		}
		d.parts.onStop("listener", l.Close)
		d.listeners = append(d.listeners, l)
	}
	return nil
}

// socketHint is the way out of what keeps a socket from being opened, to stand behind the error; "" where none is known.
func socketHint(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "; another process has it: stop that one, or choose a free port"
	case errors.Is(err, syscall.EACCES):
		return "; ports below 1024 need root or CAP_NET_BIND_SERVICE: choose a higher one"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "; this machine has no such address: choose one it has, or leave the host out"
	}
	return ""
}

// runListeners serves on all sockets. They stop together: a drain takes as long as the slowest session, not their sum.
func (d *daemon) runListeners(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range d.listeners {
		d.log.Info("listening", zap.String("listener", l.Addr().String()))
		group.Go(func() error { return l.Run(ctx) })
	}
	return group.Wait()
}

// intake is what a configuration means to its i-th listener.
func (d *daemon) intake(c *config.Config, i int) (smtpin.Settings, error) {
	l := &c.Listeners[i]
	set := smtpin.Settings{
		Hostname: c.Hostname,
		Listener: smtpin.ListenerOptions{
			Address: l.Address, TLS: smtpin.TLSMode(l.TLS), CertFile: l.CertFile, KeyFile: l.KeyFile, MinTLS: l.MinTLSVersion(),
			Auth: smtpin.AuthMode(l.Auth), PlaintextAuth: l.PlaintextAuth, AllowNetworks: config.Prefixes(l.AllowNetworks),
			RejectLineEndings: l.LineEndings == "reject", ProxyProtocol: l.ProxyProtocol,
			MaxConnections: l.MaxConnections, MaxConnectionsPerIP: l.MaxConnectionsPerIP,
			CommandTimeout: time.Duration(l.CommandTimeout), MinBodyRate: int64(l.MinBodyRate),
		},
		Limits: smtpin.Limits{
			MessageBytes: int64(c.Limits.MessageBytes), HeaderBytes: int(c.Limits.HeaderBytes),
			Recipients: c.Limits.Recipients, Hops: c.Limits.Hops,
		},
		Policy: d.policy,
	}
	for j := range c.Clients {
		client := &c.Clients[j]
		fallback, err := defaultSender(client)
		if err != nil {
			return set, err
		}
		var networks []netip.Prefix // nil: anywhere; an empty list would be nowhere
		if len(client.Networks) > 0 {
			networks = config.Prefixes(client.Networks)
		}
		set.Clients = append(set.Clients, smtpin.Client{
			Username: client.Username, PasswordHash: client.PasswordHash, Networks: networks,
			Senders: client.Senders, DefaultSender: fallback, MessagesPerMinute: client.MessagesPerMinute,
		})
	}
	return set, nil
}

func defaultSender(c *config.Client) (envelope.Address, error) {
	if c.DefaultSender == "" {
		return "", nil
	}
	a, err := envelope.ParseAddress(c.DefaultSender, true)
	if err != nil {
		return "", fmt.Errorf("clients: default_sender of %q: %w", c.Username, err)
	}
	return a, nil
}

// maxMessageBytes is the most limits.message_bytes can be. What is in force is judged where a message is admitted.
const maxMessageBytes = 150 << 20

func (d *daemon) openAdmin(reg *prometheus.Registry) (err error) {
	ready := []admin.Check{
		{Name: "running", Run: func(context.Context) error {
			if d.stopping.Load() {
				return errors.New("stopping: draining what is under way")
			}
			return d.isStarted()
		}},
		{Name: "queue", Run: func(context.Context) error { return d.queue.Ready() }},
	}
	started := []admin.Check{{Name: "running", Run: func(context.Context) error { return d.isStarted() }}}
	d.admin, err = admin.New(admin.Options{
		Address: d.cfg.Admin.Address, MetricsAddress: d.cfg.Metrics.Address,
		Ready: ready, Startup: started, Gatherer: reg, Logger: d.log, Version: thisBuild().version,
		Messages: &messages{queue: d.queue, history: d.history, send: d.submit}, MessageBytes: maxMessageBytes,
	})
	if err != nil {
		return err
	}
	d.parts.onStop("admin", d.admin.Close)
	return nil
}

func (d *daemon) isStarted() error {
	if !d.started.Load() {
		return errors.New("starting")
	}
	return nil
}

// files are all whose content is watched.
func (d *daemon) files() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append(d.cfg.Files(), d.file)
}

// reload puts the configuration on disk in force: all of it, or, on any error, nothing. What needs a restart is named.
func (d *daemon) reload() {
	if err := d.tryReload(); err != nil {
		d.reloaded.Set(0)
		d.log.Error("configuration not reloaded: the old one stays in force", zap.Error(err))
		return
	}
	d.reloaded.Set(1)
	d.log.Info("configuration reloaded")
}

func (d *daemon) tryReload() error {
	cfg, warnings, err := config.Load(d.file)
	if err != nil {
		return err
	}
	if err := needsRestart(d.cfg, cfg); err != nil {
		return err
	}
	w, err := wiringOf(cfg)
	if err != nil {
		return err
	}
	applies := make([]func(), len(d.listeners))
	for i, l := range d.listeners {
		set, err := d.intake(cfg, i)
		if err != nil {
			return err
		}
		if applies[i], err = l.Prepare(set); err != nil {
			return err
		}
	}
	if err := errors.Join(d.tokens.SetRules(w.refusals), d.tokens.Configure(w.entra), d.exchange.Configure(w.exchange), d.level.UnmarshalText([]byte(cfg.Log.Level))); err != nil {
		return err
	}
	// Nothing from here on can fail.
	d.wired.Store(w)
	d.exchange.SetCatalogue(w.replies)
	d.policy.Configure(w.policy)
	d.postmaster.Configure(w.postmaster)
	d.history.Configure(time.Duration(cfg.Queue.KeepSent), time.Duration(cfg.Queue.KeepFailed))
	for _, apply := range applies {
		apply()
	}
	d.expiry.show(cfg.Tenants)
	d.dispatcher.WarnAfter(time.Duration(cfg.Queue.DelayWarning))
	d.dispatcher.Reload(w.retry, time.Duration(cfg.Queue.Lifetime))
	d.warn(warnings)
	d.mu.Lock()
	d.cfg = cfg
	d.mu.Unlock()
	return nil
}

// needsRestart returns an error naming the keys that differ and cannot change while the relay runs.
func needsRestart(old, c *config.Config) error {
	var keys []string
	differs := func(key string, same bool) {
		if !same {
			keys = append(keys, key)
		}
	}
	differs("hostname", old.Hostname == c.Hostname)
	differs("data_dir", old.DataDir == c.DataDir)
	differs("admin.address, public_url or tls", old.Admin.Address == c.Admin.Address && old.Admin.PublicURL == c.Admin.PublicURL && old.Admin.TLS == c.Admin.TLS)
	differs("metrics", old.Metrics == c.Metrics)
	differs("log.format", old.Log.Format == c.Log.Format)
	differs("limits.memory_bytes", old.Limits.MemoryBytes == c.Limits.MemoryBytes)
	q, p := old.Queue, c.Queue
	differs("queue.max_bytes, min_free_bytes or keep_failed",
		q.MaxBytes == p.MaxBytes && q.MinFreeBytes == p.MinFreeBytes && q.KeepFailed == p.KeepFailed)
	differs("listeners", len(old.Listeners) == len(c.Listeners))
	for i := range min(len(old.Listeners), len(c.Listeners)) {
		a, b := &old.Listeners[i], &c.Listeners[i]
		differs(fmt.Sprintf("listeners[%d].address, tls or proxy_protocol", i),
			a.Address == b.Address && a.TLS == b.TLS && a.ProxyProtocol == b.ProxyProtocol)
	}
	if len(keys) > 0 {
		return fmt.Errorf("these keys take a restart: %q; restart relayd, or put their old values back", keys)
	}
	return nil
}
