// SPDX-License-Identifier: Apache-2.0

// Package instance attaches a model server to the node beside it. One
// interface, Instance, hides how: the server implements our gRPC
// InstanceService (kind "grpc"), or it is an unmodified server of which only a
// health URL (kind "http") or a port (kind "tcp") is known, with exec hooks
// that promote and demote it.
//
// What holds for all kinds:
//
//   - One slow probe never makes an instance DOWN; a refused connection does at
//     once, and Status.Gone says so. A refused connection is taken as proof that
//     the process is gone. That is true for a server that keeps its listener
//     open while it still works; one that closes the listener first and
//     finishes requests afterwards must be of kind "grpc" with STATUS and keep its
//     status streams open until it is done, which shows that it still lives, or
//     must be supervised. A server that this process never heard is DOWN, and not
//     Gone, while its port refuses: it may be shutting down since before.
//   - A lower epoch is refused with a hastate.FencedError, the same epoch again
//     is an idempotent success, an epoch that was demoted never comes back.
//   - A call that timed out has an unknown outcome: the adapter looks at the
//     status once and reports success, a definite failure, or
//     hastate.ErrOutcomeUnknown.
//   - Promote returns success only after a fresh look at the server's health
//     (G7), and only if the digest of the model is the asked one.
//
// A server without a Demote hook, of kind "http" or "tcp", cannot be fenced by
// itself: Demote succeeds only if it is gone. Its node must gate its port or
// kill it.
//
// Concurrency: all methods may be called at the same time. Watch runs in its
// caller's goroutine, calls report from that goroutine only, and waits for all
// it has started before it returns.
package instance
