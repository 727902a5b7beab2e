// Package control is the API's operations on all but messages: senders and their sign-in, tenants, sessions, login links, the
// vault's key, and what the relay tells of itself. It keeps no state; what a change answered with success is worth, is
// [console.Console]'s to promise.
package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/feed"
	"relayd/pkg/admin/api/operation"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/problem"
)

// Vault is where secrets are kept.
type Vault interface {
	// Rotate seals all records anew with the current key and returns how many it did.
	Rotate(ctx context.Context) (int, error)
}

// Options of [Register]. What is nil has no operations.
type Options struct {
	Console  console.Console
	Links    access.Links    // one-time login links
	Sessions access.Sessions // of browsers
	Vault    Vault
	Logger   *zap.Logger // required
}

// The paths.
const (
	root        = "/api/v1/"
	sendersPath = root + "senders"
	tenantsPath = root + "tenants"
)

type control struct {
	set     *operation.Set
	console console.Console
	feed    *feed.Feed
	log     *zap.Logger
}

// Register adds the operations to set.
func Register(set *operation.Set, opts Options) {
	c := &control{set: set, console: opts.Console, log: opts.Logger}
	if opts.Console != nil {
		c.feed = feed.New(opts.Console.Follow)
		c.registerSenders()
		c.registerConsent()
		c.registerTenants()
		c.registerRelay()
	}
	if opts.Sessions != nil {
		c.registerSessions(opts.Sessions)
	}
	if opts.Links != nil {
		c.registerLinks(opts.Links)
	}
	if opts.Vault != nil {
		c.registerVault(opts.Vault)
	}
}

// done logs a change and passes its error on. Of mistakes the log has the fields alone: their texts quote what was entered, and
// people paste secrets into the wrong field.
func (c *control) done(ctx context.Context, act, on string, err error) error {
	who := access.From(ctx)
	logged := err
	if wrong, ok := errors.AsType[console.Mistakes](err); ok {
		fields := make([]string, len(wrong))
		for i, m := range wrong {
			fields[i] = m.Field
		}
		logged = fmt.Errorf("mistakes in %s", strings.Join(fields, ", "))
	}
	c.log.Info("operator changes something", zap.String("action", act), zap.String("on", problem.Clip(on)),
		zap.String("client", who.Name), zap.String("peer", who.Peer), zap.Error(logged))
	return err
}

// at is the path of one thing below path.
func at(path, name string) string { return path + "/" + url.PathEscape(name) }

// notFound is the statuses of an operation on a thing that has a name, and more.
func notFound(more ...int) []int { return append(more, http.StatusNotFound) }

// change adds an operation with no body and no answer on the thing that is called name in path.
func change[I any](c *control, op operation.Operation, name func(*I) string, do func(context.Context, string) error) {
	operation.Add(c.set, op, func(ctx context.Context, in *I) (*struct{}, error) {
		return nil, c.done(ctx, op.ID, name(in), do(ctx, name(in)))
	})
}
