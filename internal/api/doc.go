// SPDX-License-Identifier: Apache-2.0

// Package api serves hastate over gRPC: the public services (groups, sessions,
// models, cluster), the service between nodes, and grpc.health.v1. It holds no
// state of its own: it checks what comes in, reads the replicated state, and
// proposes commands.
//
// What all services share is done in the interceptors and nowhere else: a
// deadline for calls without one, the bound on a message, the reply header, the
// gRPC form of errors, and the recovery of panics.
//
// A call that only the leader can answer is sent on to it at most once: a node
// that is asked by another node and does not lead says so.
package api
