package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"
)

// parts are the running pieces of the daemon, in the order of their birth. Each has a context of its own, so that they
// can be stopped last-born first, each only when the one after it has ended.
type parts struct {
	log    *zap.Logger
	failed chan error // the first part that ended by itself; capacity 1

	mu   sync.Mutex
	live []part
}

type part struct {
	name string
	stop func() error
}

func newParts(log *zap.Logger) *parts {
	return &parts{log: log, failed: make(chan error, 1)}
}

// start runs a part whose run blocks until its context ends. That it ends before is a failure of the whole.
func (p *parts) start(name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		err := run(ctx)
		if ctx.Err() == nil {
			p.fail(fmt.Errorf("%s ended: %w", name, cmpErr(err)))
		}
		ended <- err
	}()
	p.onStop(name, func() error {
		cancel()
		return <-ended
	})
}

// cmpErr names the reason a part ended for, where it gave none.
func cmpErr(err error) error {
	if err == nil {
		return errors.New("for no reason it told")
	}
	return err
}

// fail reports the first failure; later ones are consequences.
func (p *parts) fail(err error) {
	select {
	case p.failed <- err:
	default:
	}
}

// onStop registers what a part without a run of its own needs at the end.
func (p *parts) onStop(name string, stop func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live = append(p.live, part{name, stop})
}

// stop ends all parts, last-born first, and returns what went wrong.
func (p *parts) stop() error {
	p.mu.Lock()
	live := p.live
	p.live = nil
	p.mu.Unlock()
	var errs []error
	for i := len(live) - 1; i >= 0; i-- {
		p.log.Debug("stopping", zap.String("part", live[i].name))
		if err := live[i].stop(); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", live[i].name, err))
		}
	}
	return errors.Join(errs...)
}
