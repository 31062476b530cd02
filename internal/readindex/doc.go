// SPDX-License-Identifier: Apache-2.0

// Package readindex makes reads linearizable: it finds a log index such that a
// state that has applied it reflects every write that was acknowledged before
// the read began. A Leader finds the index, a Node asks whoever leads and waits
// until the local state has got there. Each such read, and a round per heartbeat
// timeout, also shows how new the local state is (Node.FreshAsOf): it has what was
// acknowledged before the question was asked, once it has got to the answer. That
// the leader was heard from shows nothing of the kind: heartbeats say neither how
// far the log is committed nor what of it has been applied.
//
// # Why an index that Leader.Index returns is right
//
// One round does this, in this order, for requests that all arrived before it
// began:
//
//  1. term: this node leads in term, and an entry of that term has been applied
//     here (the barrier).
//  2. t0: the clock is read.
//  3. index: Raft's commit index is read.
//  4. It waits until a majority of the voters has answered, in term, appends
//     that were *sent* at t0 or later. Answers to earlier appends do not count,
//     whenever they arrive, and neither do nonvoters.
//  5. This node still is the leader, in the same term.
//  6. From index it steps down to the newest command: the entries between are
//     Raft's own and change no state.
//
// Claim: every write acknowledged before t0 is at or below index. A write is
// acknowledged after its entry has been committed and applied by a leader.
//
//   - By this leader in term: its commit index was raised before it was
//     acknowledged, and index was read later.
//   - By a leader of an older term, however late that leader noticed: the entry
//     was on a majority in its own term before that majority moved to term, so
//     by Leader Completeness it is in this leader's log before the first entry
//     of term. That one is applied here (1), so the commit index covers it.
//   - By a leader of a newer term: there was none that had committed anything
//     before t0. It needs the votes of a majority, which shares a voter v with
//     the majority of (4). If v is another node, it processed an append of term
//     after t0 and accepted it, so it had not yet voted in a newer term then;
//     its vote, and everything that needs it, came after t0. If v is this node,
//     it was in term at (5), after t0, and Raft raises a node's term before it
//     grants a vote.
//
// The voters are those of the newest configuration in the leader's log at (4). A
// newer leader may have been elected under the configuration before it or after
// it, if that change is not committed; majorities of adjacent configurations
// share a voter, and a second change begins only after the first has committed.
//
// No clock of another node is involved, and no assumption about how fast this
// one runs: send times and t0 are readings of one clock and only compared.
// VerifyLeader is called only because it makes heartbeats go out at once; what
// it says is not used, because it counts answers to earlier appends and the
// votes of nonvoters.
package readindex
