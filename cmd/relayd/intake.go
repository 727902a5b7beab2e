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
