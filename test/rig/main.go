package rig

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

// Main is the body of a command built on the rig: it parses the flags, builds relayd into a folder of its own, and ends
// the process with 1 where run fails. Interrupt ends ctx.
func Main(name string, run func(ctx context.Context, bin, dir string) error) {
	flag.Parse()
	if err := inFolder(name, run); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

func inFolder(name string, run func(ctx context.Context, bin, dir string) error) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dir, err := os.MkdirTemp("", "relayd-"+name+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bin, err := Build(ctx, dir, false)
	if err != nil {
		return err
	}
	return run(ctx, bin, dir)
}
