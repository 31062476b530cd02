// SPDX-License-Identifier: Apache-2.0

//go:build chaos

package main

import (
	"io"
	"os"

	"github.com/hastate/hastate/node"
	"github.com/hastate/hastate/testcluster/chaos/inject"
)

// buildNote is printed with the version.
const buildNote = " CHAOS BUILD: anybody who can reach its socket can break it; for tests only"

// installFaults lets the chaos suite break this node. Close it after the node.
func installFaults(cfg *node.Config) (io.Closer, error) {
	cfg.Logger.Warn("this is a" + buildNote)
	return inject.Install(cfg, os.LookupEnv)
}
