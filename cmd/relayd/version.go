package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
)

// Set by the linker (see the Makefile); empty in a plain go build.
var version, commit string

// build is what this binary was made of.
type build struct{ version, commit, goVersion, nats string }

func thisBuild() build {
	b := build{version: version, commit: commit, goVersion: runtime.Version(), nats: server.VERSION}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.commit = cmp.Or(b.commit, s.Value)
			}
		}
	}
	b.version, b.commit = cmp.Or(b.version, "devel"), cmp.Or(b.commit, "unknown")
	return b
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit, Go and NATS versions",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := thisBuild()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "relayd %s (commit %s, %s, nats-server %s)\n", b.version, b.commit, b.goVersion, b.nats)
			return err
		},
	}
}

// registerBuildInfo shows the build as relayd_build_info.
func registerBuildInfo(reg prometheus.Registerer) {
	b := thisBuild()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "relayd_build_info", Help: "1, with what this binary was made of.",
		ConstLabels: prometheus.Labels{"version": b.version, "commit": b.commit, "goversion": b.goVersion, "nats": b.nats},
	})
	info.Set(1)
	reg.MustRegister(info)
}
