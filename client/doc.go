// SPDX-License-Identifier: Apache-2.0

// Package client is what an AI process imports: it finds the primary of a
// group, follows it, and keeps sessions.
//
//   - [Client.Primary] and [Client.WatchPrimary] tell who the primary is;
//     [Client.ResolverBuilder] makes any gRPC channel follow it.
//   - [Client.Sessions] reads and writes sessions. A write that is retried
//     after an unknown outcome is applied once.
//   - [Client.Call] reaches every other service of the cluster.
//
// A Client is given the addresses of some nodes and needs one that answers: a
// node that hangs is given up after [Options.AttemptTimeout] and another is
// tried. All methods may be called from many goroutines. Every goroutine that a
// Client starts has ended when [Client.Close] returns.
//
// Errors are those of package hastate: test with errors.Is and errors.As.
//
// The package imports neither raft nor bbolt, nor anything of a node.
package client
