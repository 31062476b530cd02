// SPDX-License-Identifier: Apache-2.0

//go:build !chaos

package main

import (
	"io"

	"github.com/hastate/hastate/node"
)

// buildNote is printed with the version.
const buildNote = ""

// installFaults does nothing: only a build with the tag chaos can be broken from
// outside.
func installFaults(*node.Config) (io.Closer, error) { return io.NopCloser(nil), nil }
