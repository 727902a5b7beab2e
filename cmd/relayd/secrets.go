package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"relayd/cmd/relayd/registry"
	"relayd/pkg/broker"
	"relayd/pkg/config"
	"relayd/pkg/vault"
)

// The kinds of records in the vault.
const (
	kindGrant      = "grant"      // refresh tokens
	kindPending    = "pending"    // sign-ins under way
	kindDevice     = "device"     // device codes under way
	kindInvitation = "invitation" // one-time consent links
	kindSession    = "session"    // who is logged in
	kindLogin      = "login"      // one-time login links
	kindTenant     = "tenant"     // entered on the page
	kindSender     = "sender"
	kindPause      = "pause"
)

// vaultOptions says what seals the vault: vault.key, or where none is set, a key generated in data_dir.
func vaultOptions(c *config.Config, log *zap.Logger) (vault.Options, error) {
	opts := vault.Options{Key: secretBytes(c.Vault.Key), Logger: log}
	for _, key := range c.Vault.PreviousKeys {
		opts.Previous = append(opts.Previous, secretBytes(key))
	}
	if !c.Vault.Key.IsZero() {
		return opts, nil
	}
	path := filepath.Join(c.DataDir, "vault.key")
	key, created, err := vault.LoadOrCreateKey(path)
	if err != nil {
		return opts, err
	}
	if created {
		log.Warn("vault: generated a key beside the data it seals; keep it elsewhere and name it in vault.key, and keep a copy", zap.String("file", path))
	}
	opts.Key = func() ([]byte, error) { return key, nil }
	return opts, nil
}

func secretBytes(s config.Secret) func() ([]byte, error) {
	return func() ([]byte, error) {
		value, err := s.Resolve()
		return []byte(value), err
	}
}

// vaultStore opens the vault's records on a connection.
func vaultStore(ctx context.Context, nc *nats.Conn) (*vault.Bucket, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return vault.NewBucket(ctx, js, 1)
}

// openVault opens the vault, and reads what was entered on the page.
func (d *daemon) openVault(ctx context.Context) error {
	opts, err := vaultOptions(d.cfg, d.log)
	if err != nil {
		return err
	}
	conns, err := d.broker.Connect(1)
	if err != nil {
		return err
	}
	if opts.Store, err = vaultStore(ctx, conns[0]); err != nil {
		return err
	}
	opts.Fault = d.queue.Fault
	if d.vault, err = vault.Open(ctx, opts); err != nil {
		return err
	}
	d.registry = registry.New(d.vault.Kind(kindTenant), d.vault.Kind(kindSender), d.vault.Kind(kindPause))
	if err := d.registry.Load(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		d.log.Error("some of what was entered on the page cannot be read, and is not in force", zap.Error(err))
	}
	return nil
}

// reopen opens the queue's server anew, and gives the queue and the vault new connections.
func (d *daemon) reopen(ctx context.Context) ([]*nats.Conn, error) {
	if err := d.broker.Reopen(ctx); err != nil {
		return nil, err
	}
	conns, err := d.broker.Connect(queueConns + 1)
	if err != nil {
		return nil, err
	}
	if d.vault != nil {
		store, err := vaultStore(ctx, conns[queueConns])
		if err != nil {
			return nil, fmt.Errorf("reopen the vault: %w", err)
		}
		d.vault.Attach(store)
	}
	return conns[:queueConns], nil
}

// resetVault forgets the vault's records that no key there is opens. The relay must not be running: it holds the directory.
func resetVault(ctx context.Context, c *config.Config) (_ map[string]int, err error) {
	log, _, err := newLogger(&c.Log)
	if err != nil {
		return nil, err
	}
	opts, err := vaultOptions(c, log)
	if err != nil {
		return nil, err
	}
	server, err := broker.Open(ctx, broker.Options{Dir: c.DataDir, Logger: log})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	conns, err := server.Connect(1)
	if err != nil {
		return nil, err
	}
	if opts.Store, err = vaultStore(ctx, conns[0]); err != nil {
		return nil, err
	}
	return vault.Reset(ctx, opts)
}
