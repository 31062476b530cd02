// SPDX-License-Identifier: Apache-2.0

// Package member changes who belongs to the cluster. It runs on every node and
// changes anything only on the leader, after its barrier.
//
// What must hold:
//
//   - One change at a time, each with the index of the configuration that it was
//     decided on, so that two leaders cannot both change the same one.
//   - A change is begun only if a majority of the voters of the *new*
//     configuration answers now: one that cannot commit stops the cluster.
//   - The last voter is never removed or demoted, and a leader does not remove or
//     demote itself: it hands leadership over first.
//   - A newcomer is a replica until it has caught up. A voter that comes back
//     without its data is refused: it has forgotten its votes and what it had
//     acknowledged, and could let a majority forget it too.
//   - Leadership is handed over only to a voter that answers, and once per term:
//     a transfer that raft does not finish can block a later one for ever.
//
// The member records of the replicated state (addresses, roles, versions) follow
// Raft's configuration; Reconcile repairs what a crash between the two left. A
// record of a voter is written only when that voter has been seen with data, and
// so says that it had some.
package member
