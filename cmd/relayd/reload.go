package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"relayd/pkg/admin/console"
	"relayd/pkg/config"
)

// reloadState is what the page shows of the configuration: the last change of the file, and what is in force.
type reloadState struct {
	console.Reload
	settings []console.Setting
	warnings []string
}

// newReloadState describes the file just read.
func newReloadState(file string, warnings []config.Warning) *reloadState {
	s := &reloadState{Reload: console.Reload{At: time.Now()}, settings: []console.Setting{}, warnings: []string{}}
	for _, w := range warnings {
		s.warnings = append(s.warnings, w.String())
	}
	settings, err := config.Explain(file)
	if err != nil { // changed since it was read: the next reload says so
		return s
	}
	for _, one := range settings {
		s.settings = append(s.settings, console.Setting(one))
	}
	return s
}

// files are all whose content is watched.
func (d *daemon) files() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append(d.cfg.Files(), d.file)
}

// reload puts the configuration on disk in force: all of it, or, on any error, nothing. What needs a restart is named.
func (d *daemon) reload() {
	d.applying.Lock()
	defer d.applying.Unlock()
	if err := d.tryReload(); err != nil {
		d.reloaded.Set(0)
		failed := *d.reloading.Load()
		failed.Reload = console.Reload{At: time.Now(), Errors: strings.Split(err.Error(), "\n")}
		d.reloading.Store(&failed)
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
	logins, err := loginSettings(cfg)
	if err != nil {
		return err
	}
	keys, err := vaultOptions(cfg, d.log)
	if err != nil {
		return err
	}
	level, err := zapcore.ParseLevel(cfg.Log.Level)
	if err != nil {
		return err
	}
	if err := d.vault.Configure(context.Background(), keys.Key, keys.Previous); err != nil {
		return err
	}
	if err := d.admin.Configure(logins); err != nil {
		return err
	}
	if err := d.putInForce(cfg); err != nil {
		was, undo := loginSettings(d.cfg) // they were in force a moment ago
		return errors.Join(err, undo, d.admin.Configure(was))
	}
	d.level.SetLevel(level)
	// Nothing from here on can fail.
	d.postmaster.Configure(d.wired.Load().postmaster)
	d.history.Configure(time.Duration(cfg.Queue.KeepSent), time.Duration(cfg.Queue.KeepFailed))
	for _, apply := range applies {
		apply()
	}
	d.dispatcher.WarnAfter(time.Duration(cfg.Queue.DelayWarning))
	d.dispatcher.Reload(d.wired.Load().retry, time.Duration(cfg.Queue.Lifetime))
	d.warn(warnings)
	d.reloading.Store(newReloadState(d.file, warnings))
	d.mu.Lock()
	d.cfg = cfg
	d.mu.Unlock()
	return nil
}

// putInForce puts tenants and senders in force: those of cfg, and what was entered beside it. On an error all stays as it
// was. The caller holds applying.
func (d *daemon) putInForce(cfg *config.Config) error {
	content := d.registry.Content()
	x := cfg.Extend(content.Added())
	w, err := extendedWiring(x, content)
	if err != nil {
		return err
	}
	old := d.wired.Load()
	err = d.tokens.SetRules(w.refusals)
	if err == nil {
		err = d.exchange.Configure(w.exchange)
	}
	if err == nil {
		err = d.tokens.Configure(w.entra)
	}
	if err != nil { // what was in force is taken without complaint
		return errors.Join(err, d.tokens.SetRules(old.refusals), d.exchange.Configure(old.exchange))
	}
	d.wired.Store(w)
	d.extended.Store(x)
	d.exchange.SetCatalogue(w.replies)
	d.policy.Configure(w.policy)
	d.warnRefused(x)
	d.radar.Poke()
	return nil
}

// apply puts what the registry holds in force, beside the file's configuration as it stands.
func (d *daemon) apply(context.Context) error {
	d.applying.Lock()
	defer d.applying.Unlock()
	if err := d.putInForce(d.cfg); err != nil {
		return err
	}
	d.dispatcher.Reroute()
	return nil
}

// warnRefused says what was entered on the page and no longer fits.
func (d *daemon) warnRefused(x *config.Extended) {
	for _, r := range x.Refused {
		for _, p := range r.Problems {
			d.log.Warn("entered on the page, and not in force", zap.String("tenant", r.Fields["name"]),
				zap.String("sender", r.Fields["address"]+r.Fields["match"]), zap.String("field", p.Key), zap.String("reason", p.Text))
		}
	}
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
