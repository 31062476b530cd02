// SPDX-License-Identifier: Apache-2.0

// Package propose brings commands into the Raft log and their results back.
//
// A Batcher sits on the leader: it gathers commands while earlier log entries
// are in flight and puts many into one entry. A Node sits on every node: it
// gives commands to the local Batcher while this node leads, and otherwise sends
// them to the leader over one stream.
//
// What a caller is told is always one of three things, and never a guess:
//
//   - a Result: the command was applied, and this is what it did;
//   - NotLeaderError or LimitError: it certainly was not applied;
//   - OutcomeUnknownError: it may have been applied, or may yet be.
//
// The results of a future that ended in an error are never looked at, whatever
// they say: the entry may have been applied and then overwritten by a restore,
// or may not have been applied at all.
//
// Every queue is bounded and every proposal has a deadline. Callbacks are called
// exactly once, from this package's goroutines or before ProposeAsync returns;
// they must not block. A command must not be changed after it was handed over.
package propose
