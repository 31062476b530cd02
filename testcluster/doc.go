// SPDX-License-Identifier: Apache-2.0

// Package testcluster runs whole clusters in one test: N nodes in this process
// over a network that can be cut, each with a model server that can be made to
// hang, refuse or die. A test that uses it cannot finish without proving the
// invariants: one leader per term, growing epochs, at most one valid lease at
// any instant, equal states on all nodes, and no goroutine left behind.
package testcluster
