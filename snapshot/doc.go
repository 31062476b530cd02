// SPDX-License-Identifier: Apache-2.0

// Package snapshot is Raft's snapshot store, and the archive format in which a
// state travels between nodes and into backups.
//
// A snapshot that a node takes of itself is not a second copy of its state. It is
// a promise, kept in a small file: the state file holds everything up to this
// index, durably (a live snapshot). When raft opens it to send it to another node,
// the state file is streamed out of a read transaction. A snapshot that comes from
// another node or from a backup is written aside as an archive, verified, and only
// then becomes visible (a received snapshot); once the state machine has taken it
// over, its data is dropped and it is live like the others.
package snapshot
