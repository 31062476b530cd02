// SPDX-License-Identifier: Apache-2.0

// Package fsm is the replicated state of hastate and the store that keeps it.
//
// The heart is pure: state.apply makes a Result and Events out of the state
// before and one command. It reads no clock, no randomness and no
// configuration of the node, so that every node that applies the same log has
// the same state. The files event.go, state.go, apply.go, sessions.go,
// leases.go, groups.go, instances.go, models.go, cluster.go, dedup.go,
// record.go and validate.go hold it; a test looks at their imports.
//
// Machine is the shell: the state machine that Raft drives. New records are
// kept in memory, over a bbolt file. One goroutine, owned by the Machine,
// writes them to the file from time to time, in one synced transaction together
// with the log index that they include. The Raft log is the write-ahead log:
// after a crash the entries above that index are applied again and those at or
// below it are skipped.
//
// Records that a Machine gives out are shared and never changed after they
// were published: callers keep them, and clone before they change one.
package fsm
