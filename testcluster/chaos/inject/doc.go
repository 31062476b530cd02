// SPDX-License-Identifier: Apache-2.0

// Package inject lets the chaos suite break a real hanode from outside: its clock,
// its network, its log store and its wall clock, and have it write down when it
// counted leases as valid. Only builds with the tag chaos link it: see cmd/hanode.
//
// It reads the environment, at start only:
//
//   - HANODE_CHAOS_RATE: the rate of the node's clock, 1 is true.
//   - HANODE_CHAOS_SOCKET: a unix socket on which it takes a State, with package
//     control.
//   - HANODE_CHAOS_LEASES: the file of its record.Lease lines. All processes of a
//     node, one after the other, are to be given the same file: what one left open,
//     the next one ends when it has silenced the model server.
//   - HANODE_CHAOS_WATCHDOG_OFF: 1 turns the stall watchdog off.
package inject
