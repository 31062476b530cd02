// SPDX-License-Identifier: Apache-2.0

// Package process holds the tests that start real hanode, textserver and hactl
// processes on loopback and end them in every way that a process can end. They
// are behind the build tag process: `make process`.
package process
