// SPDX-License-Identifier: Apache-2.0

// Package transport carries hashicorp/raft between nodes over gRPC, and gives
// the rest of a node its connections to its peers.
//
// The rules that it keeps, each of which is a bug that somebody else has had:
//
//   - Heartbeats go to Consumer() like every other request. The function given
//     to SetHeartbeatHandler is never called: it would change term and state of
//     the Raft node concurrently with its main loop.
//   - A server address is the server id. Where a node is, is asked of
//     Options.Resolve at every dial.
//   - Each peer has three connections: control (heartbeats, votes, and what
//     other packages send over Conn), append, and snapshot. A large append
//     never stands before a heartbeat.
//   - Every RPC has a deadline; a snapshot has one on its progress.
//   - A pipeline delivers no failed future. The first failed or rejected
//     response poisons it, which also unblocks a sender that waits for a place,
//     and its next AppendEntries fails.
//   - An append to a peer that cannot be reached waits in the transport until
//     the peer is back, instead of failing into Raft's back-off of ten seconds.
//   - What arrives on a pipeline while the Raft node is busy, for example in an
//     fsync, is handed to it as one request; each request gets its own answer.
//   - A request of another cluster, or for another node, is refused.
//
// # Evidence of leadership
//
// QuorumSentAt is the base of linearizable reads. For each peer and term the
// transport keeps the latest time at which it sent an append or heartbeat whose
// answer had the term of the request. The claim: if QuorumSentAt(T, voters)
// returns t >= t0, this node leads in term T when it returns, and t0 was read
// before, then no node was elected leader of a term above T before t0.
//
// Proof. A peer answers a request of term T with the term T only if its own
// term is T once it has processed the request; a peer whose term is higher
// answers with that. It processes a request after it was sent, so a peer that
// counts for t had the term T, and none higher, at some time at or after t0. So
// does this node, because it is the leader of T at the end. They are a majority
// of the voters. A leader of a term T' > T elected before t0 has the votes, in
// term T', of a majority before t0, and a node that votes in T' stores T' first
// and never goes back. Majorities of one configuration, or of two that are one
// change apart, intersect: some node had at least T' before t0 and T afterwards,
// which is impossible. (The voters must be those of the newest configuration in
// the leader's log, committed or not.)
//
// A rejection counts as long as it has the term: the argument is about terms,
// not about logs. A response is counted for the time its request was sent, not
// for the time it came back, however long it was held up. The time is read
// before the request can leave. The clock is this node's own, and it counts on
// through a suspend.
package transport
