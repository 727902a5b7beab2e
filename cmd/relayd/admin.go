package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/net/html/charset"

	"relayd/cmd/relayd/desk"
	"relayd/pkg/admin"
	"relayd/pkg/admin/access"
	"relayd/pkg/admin/audit"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/login"
	"relayd/pkg/admin/page"
	"relayd/pkg/config"
	"relayd/pkg/entra/consent"
	"relayd/pkg/entra/grant"
	"relayd/pkg/postmaster"
	"relayd/pkg/radar"
)

// nodeName tells this process from others that share the vault.
func nodeName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "relayd"
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// memoryLater is the queue's memory, for parts that are born before the queue and ask it after.
type memoryLater struct{ d *daemon }

func (m memoryLater) Recall(ctx context.Context) (map[string][]byte, error) {
	return m.d.queue.Recall(ctx)
}

func (m memoryLater) Remember(ctx context.Context, key string, data []byte) error {
	return m.d.queue.Remember(ctx, key, data)
}

// openDesk makes what page and API work on.
func (d *daemon) openDesk(reg prometheus.Registerer) (err error) {
	d.audit, err = audit.Open(audit.Options{Dir: filepath.Join(d.cfg.DataDir, "audit"), Logger: d.log})
	if err != nil {
		return err
	}
	d.parts.onStop("audit", d.audit.Close)
	d.consents, err = consent.New(consent.Options{
		Registration: d.tokens.Registration,
		Pending:      d.vault.Kind(kindPending), Devices: d.vault.Kind(kindDevice), Invitations: d.vault.Kind(kindInvitation),
		Adopt:       func(ctx context.Context, g grant.Grant) error { return d.desk.Adopt(ctx, g) },
		RedirectURI: func() string { return d.desk.RedirectURI() },
		Logger:      d.log,
	})
	if err != nil {
		return err
	}
	d.desk = desk.New(desk.Options{
		Registry: d.registry, Config: d.extended.Load, Apply: d.apply,
		Reload:   func() console.Reload { return d.reloading.Load().Reload },
		Settings: func() []console.Setting { return d.reloading.Load().settings },
		Warnings: func() []string { return d.reloading.Load().warnings },
		Queue:    d.queue, Dispatcher: d.dispatcher, Tokens: desk.NewRecent(d.tokens), Consents: d.consents, Live: d.live, Audit: d.audit,
		Examine: d.examine, BaseURL: d.baseURL, File: d.file, Version: thisBuild().version, Started: d.born, Logger: d.log,
	})
	d.radar = radar.New(radar.Options{
		Items: d.expiring, Memory: memoryLater{d}, Logger: d.log, Registerer: reg,
		Notify: func(ctx context.Context, subject string, paragraphs []string) error {
			err := d.postmaster.Notice(ctx, postmaster.Notice{Subject: subject, Paragraphs: paragraphs})
			if errors.Is(err, postmaster.ErrNobody) { // the log has it, and the page
				return nil
			}
			return err
		},
	})
	return nil
}

// baseURL is how browsers reach the page.
func (d *daemon) baseURL() string { return d.admin.Logins().BaseURL() }

// expiring is what the radar watches; what cannot be asked for now is looked for again in an hour.
func (d *daemon) expiring(ctx context.Context) []radar.Item {
	all, err := d.desk.Expiries(ctx)
	if err != nil && ctx.Err() == nil {
		d.log.Warn("the ends of consents cannot be read", zap.Error(err))
	}
	items := make([]radar.Item, len(all))
	for i, e := range all {
		items[i] = radar.Item{Kind: e.Kind, Tenant: e.Tenant, Sender: e.Sender, Expires: e.Expires, Advice: e.Advice}
	}
	return items
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
	logins, err := loginSettings(d.cfg)
	if err != nil {
		return err
	}
	mail := &auditedMessages{
		Messages: &messages{queue: d.queue, history: d.history, send: d.submit}, info: d.queue.Info, change: d.desk.Change,
	}
	views, err := page.New(page.Options{Console: d.desk, Messages: mail, Logger: d.log, Version: thisBuild().version, Charset: charset.NewReaderLabel})
	if err != nil {
		return err
	}
	d.admin, err = admin.New(admin.Options{
		Address: d.cfg.Admin.Address, MetricsAddress: d.cfg.Metrics.Address,
		Ready: ready, Startup: started, Gatherer: reg, Logger: d.log, Version: thisBuild().version,
		Messages: mail, MessageBytes: maxMessageBytes, Console: d.desk, Vault: auditedVault{d}, Page: views, Login: logins,
		Sessions: d.vault.Kind(kindSession), Links: d.vault.Kind(kindLogin), CertFile: d.cfg.Admin.TLS.CertFile, KeyFile: d.cfg.Admin.TLS.KeyFile,
		Audit: d.audit, Registerer: reg,
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

// auditedVault has a rotation of the key in the audit log.
type auditedVault struct{ d *daemon }

// Rotate implements control.Vault.
func (v auditedVault) Rotate(ctx context.Context) (n int, err error) {
	err = v.d.desk.Change(ctx, "vault.rotate", "vault", "", "", func() error {
		n, err = v.d.vault.Rotate(ctx)
		return err
	})
	return n, err
}

// loginSettings is what a configuration says of who may log in.
func loginSettings(c *config.Config) (login.Settings, error) {
	a := &c.Admin
	s := login.Settings{PublicURL: a.PublicURL}
	for i := range a.Tokens {
		t := &a.Tokens[i]
		token := access.Token{Name: t.Name, Hash: t.Hash, Expires: endOf(t.Expires)}
		if t.Role != "" {
			token.Scopes = access.Role(t.Role).Scopes()
		}
		for _, scope := range t.Scopes {
			token.Scopes = append(token.Scopes, access.Scope(scope))
		}
		s.Tokens = append(s.Tokens, token)
	}
	if a.OIDC.Issuer == "" {
		return s, nil
	}
	roots, err := a.OIDC.RootCAs()
	if err != nil {
		return s, fmt.Errorf("admin.oidc.ca_file %w", err)
	}
	s.OIDC = &login.OIDC{Issuer: a.OIDC.Issuer, ClientID: a.OIDC.ClientID, RootCAs: roots}
	if !a.OIDC.ClientSecret.IsZero() {
		s.OIDC.ClientSecret = a.OIDC.ClientSecret.Resolve
	}
	for _, one := range a.OIDC.Allowed {
		s.OIDC.Allowed = append(s.OIDC.Allowed, login.Rule{User: one.User, Group: one.Group, Role: access.Role(one.Role)})
	}
	return s, nil
}

// endOf is the end of a day, until which what expires on it may be used; zero of none.
func endOf(day config.Date) time.Time {
	if time.Time(day).IsZero() {
		return time.Time{}
	}
	return time.Time(day).AddDate(0, 0, 1)
}

// announce prints a one-time login link where nobody could log in otherwise.
func (d *daemon) announce(ctx context.Context) {
	if !d.admin.Logins().ByLinkOnly() {
		return
	}
	url, expires, err := d.admin.Logins().NewLink(ctx, access.Admin, "first start")
	if err != nil {
		d.log.Error("no login link could be made; relayd login makes one", zap.Error(err))
		return
	}
	d.log.Info("open the page with this link, once; relayd login makes another", zap.String("url", url), zap.Time("expires", expires))
}
