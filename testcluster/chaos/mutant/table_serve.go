// SPDX-License-Identifier: Apache-2.0

package mutant

import "time"

// readMutants read the past.
var readMutants = []Mutant{
	{
		Name: "read-without-quorum",
		What: "The leader answers a read without evidence from a majority that it still leads: a deposed one answers with the past.",
		Changes: []Change{{
			File: "internal/readindex/leader.go",
			Old: `	if err := l.awaitEvidence(ctx, term, t0); err != nil {
		return 0, err
	}`,
			New: `	_ = t0`,
		}},
		Guarantee: "G4", Check: Linearizability, Faults: "disk-stall,pause-node", Limit: 3 * time.Minute,
		How:      "disk-stall: Raft of the stuck leader cannot step down, so for seconds it answers the readers that are tied to it from its own state while another leads. Or it is paused, and answers the reads in its sockets before it steps down.",
		UnitTest: "./internal/readindex TestLeader_StaleEvidence",
	},
	{
		Name: "read-before-applied",
		What: "A read does not wait until the node has applied up to the read index: a follower answers with the past.",
		Changes: []Change{{
			File: "internal/readindex/node.go",
			Old:  `			return n.reach(ctx, index, asOf)`,
			New: `			_, _ = index, asOf
			return nil`,
		}},
		Guarantee: "G4", Check: Linearizability, Faults: "pause-node,slow-link", Limit: time.Minute,
		How:      "A read at a follower right after a write was acknowledged; at once, also without a fault. Readers must use all nodes.",
		UnitTest: "./internal/readindex TestNode_Read",
	},
	{
		Name: "cas-ignores-revision",
		What: "A put with if_revision is applied whatever the revision: of two writers that saw the same, both win.",
		Changes: []Change{{
			File: "fsm/sessions.go",
			Old: `	case c.GetIfRevision() != 0 && cur.GetRevision() != c.GetIfRevision():
		return nil, sessionConflict(x.GetGroup(),`,
			New: `	case c.GetIfRevision() != 0 && cur == nil:
		return nil, sessionConflict(x.GetGroup(),`,
		}},
		Guarantee: "G4", Check: Linearizability, Faults: "kill-node", Limit: time.Minute,
		How:      "Two clients that compare and set one key; at once, also without a fault.",
		UnitTest: "./fsm TestPut",
	},
}

// onceMutants do a write twice, or where it does not belong.
var onceMutants = []Mutant{
	{
		Name: "retries-applied-again",
		What: "The state machine does not look at request ids: a write that is retried after an unknown outcome is applied twice.",
		Changes: []Change{{
			File: "fsm/apply.go",
			Old:  `	id := cmd.GetRequest()`,
			New:  `	var id *pb.RequestId`,
		}},
		Guarantee: "G5", Check: Linearizability, Faults: "cut-leader,kill-node,pause-node,transfer-leader", Limit: 3 * time.Minute,
		How:      "The leader is lost between commit and answer: the retry of a put overwrites what came after it, that of a compare-and-set or create is refused although it was done.",
		UnitTest: "./fsm TestRetriesAreAnsweredNotApplied",
	},
	{
		Name: "writers-forgotten",
		What: "The state file is written without the writers' results: a node that was restarted, or that got a snapshot, applies again what it has answered.",
		Changes: []Change{{
			File: "fsm/flush.go",
			Old:  `	for n, rec := range b.clients {`,
			New:  `	for n, rec := range map[uint64][]byte{} {`,
		}},
		Guarantee: "G5", Check: Convergence, Faults: "kill-node,restart-node", Limit: 2 * time.Minute,
		How:      "A node that was restarted knows fewer writers than its peers, and has another state hash at once; what is retried there is applied by this node alone.",
		UnitTest: "./fsm TestEverythingSurvivesARestart",
	},
	{
		Name: "append-anywhere",
		What: "An append does not compare its offset with the end of the stream: two at the same offset both succeed, one behind the other.",
		Changes: []Change{{
			File: "fsm/sessions.go",
			Old:  `	if c.GetOffset() != end || (cur != nil && len(c.GetData()) == 0 && c.GetTrimBefore() <= cur.GetBaseOffset()) {`,
			New:  `	if cur != nil && len(c.GetData()) == 0 && c.GetTrimBefore() <= cur.GetBaseOffset() {`,
		}},
		Guarantee: "G5", Check: Linearizability, Faults: "kill-node", Limit: time.Minute,
		How:      "Two clients that append to one session; at once, also without a fault.",
		UnitTest: "./fsm TestAppend",
	},
}

// watchMutants leave something out.
var watchMutants = []Mutant{
	{
		Name: "watch-resumes-late",
		What: "A watch begins one revision too late: the first change after it was begun or resumed is not told.",
		Changes: []Change{{
			File: "fsm/feed.go",
			Old:  `	return &Feed{ring: r, generation: r.generation, after: after, done: make(chan struct{})}, nil`,
			New:  `	return &Feed{ring: r, generation: r.generation, after: after + 1, done: make(chan struct{})}, nil`,
		}},
		Guarantee: "G10", Check: Watch, Faults: "kill-node,reset-storm", Limit: 3 * time.Minute,
		How:      "Watches are resumed at another node in the middle of writes: a change of a session is missing that no later one covers. Sessions that are written once show it best.",
		UnitTest: "./fsm TestFeedHasEveryRevision",
	},
	{
		Name: "watch-skips-gaps",
		What: "A watch that fell behind, or whose node was given a snapshot, goes on with what is there: it is not told that it has missed something.",
		Changes: []Change{{
			File: "fsm/feed.go",
			Old: `	case f.generation != r.generation || f.after < r.floor:
		return nil, r.compacted()
	}`,
			New: `	}
	f.after = max(f.after, r.floor)`,
		}},
		Guarantee: "G10", Check: Watch, Faults: "snapshot-install", Limit: 4 * time.Minute,
		How:      "A watch that is tied to the node is taken on again when the node hears its leader, before it has got the snapshot: what was written while it was cut off is never told. Sessions that are written once show it: no later change covers them.",
		UnitTest: "./fsm TestSlowReadersAreToldAndBlockNobody",
	},
	{
		Name: "failover-not-in-history",
		What: "A failover writes no transition: operators do not see that it was.",
		Changes: []Change{{
			File: "fsm/leases.go",
			Old: `	s.storeGroup(e, n, t)
	res := ok()
	res.Epoch, res.Holder = e.index, to`,
			New: `	if t.GetKind() == pb.TransitionKind_TRANSITION_KIND_FAILOVER {
		t = nil
	}
	s.storeGroup(e, n, t)
	res := ok()
	res.Epoch, res.Holder = e.index, to`,
		}},
		Guarantee: "G10", Check: History, Faults: "kill-model", Limit: time.Minute,
		How:      "A primary is taken away and its group gets another epoch without a transition.",
		UnitTest: "./fsm TestHistory",
	},
}

// modelMutants announce, or take away, what they should not.
var modelMutants = []Mutant{
	{
		Name: "failed-promotion-announced",
		What: "A promotion that failed or timed out counts as one that succeeded: a primary is announced that does not serve.",
		Changes: []Change{{
			File: "internal/holder/grant.go",
			Old: `	h := &m.hold
	err := e.err
	if errors.Is(err, errLapsed) {`,
			New: `	h := &m.hold
	err := error(nil)
	if errors.Is(e.err, errLapsed) {`,
		}},
		Guarantee: "G7", Check: Promotion, Faults: "model-refuse,model-crash-on-promote,model-slow-promote", Limit: 2 * time.Minute,
		How:      "model-refuse: the group is SERVING under the new epoch, and the model server's own record has no Promote of it.",
		UnitTest: "./internal/holder TestHolderFailedPromotion",
	},
	{
		Name: "promotion-not-verified",
		What: "A model server's word for its promotion is taken without a look at its status: one that serves under another epoch is announced.",
		Changes: []Change{{
			File: "instance/grpc_role.go",
			Old:  `	if full && (st.Epoch != p.Epoch || st.Role != pb.Role_ROLE_PRIMARY) {`,
			New:  `	if full && st.Epoch == 0 && p.Epoch == 0 {`,
		}},
		Guarantee: "G7", Check: Promotion, Faults: "model-ignore-promote", Limit: 2 * time.Minute,
		How:      "A standby answers Promote as done and does nothing: it is announced, and its own record has no Promote of the epoch.",
		UnitTest: "./instance TestGRPC_Promote",
	},
	{
		Name: "one-late-status-is-down",
		What: "A model server whose status is late once counts as down: a primary that is only slow loses its lease.",
		Changes: []Change{{
			File: "instance/view.go",
			Old:  `		if silence > time.Duration(v.failAfter)*v.interval {`,
			New:  `		if silence > v.interval {`,
		}, {
			File: "instance/view.go",
			Old:  `		if silence <= silentAfter*v.interval && silence <= time.Duration(v.failAfter)*v.interval {`,
			New:  `		if silence <= v.interval {`,
		}},
		Guarantee: "G6", Check: FalseFailover, Faults: "model-late-status", Limit: 2 * time.Minute,
		How:      "model-late-status: the primary's statuses come, but each more than one interval after the one before: the primary moves although the fault is harmless.",
		UnitTest: "./instance TestView",
	},
}

// raftMutants break what Raft relies on.
var raftMutants = []Mutant{
	{
		Name: "watchdog-off",
		What: "Nobody watches the writes of the log: a leader whose disk hangs sends heartbeats on and stays leader, and nothing is written meanwhile.",
		Changes: []Change{
			{
				File: "node/watchdog.go",
				Old: `func (n *Node) serving() bool {
	if n.cfg.Faults.WatchdogOff {`,
				New: `func (n *Node) serving() bool {
	if n != nil {`,
			},
			{
				File: "node/watchdog.go",
				Old: `func (n *Node) watchdog(ctx context.Context) error {
	if n.cfg.Faults.WatchdogOff {`,
				New: `func (n *Node) watchdog(ctx context.Context) error {
	if n != nil {`,
			},
		},
		Guarantee: "G9", Check: Availability, Faults: "disk-stall", Limit: 2 * time.Minute,
		How:      "disk-stall: no write is acknowledged and no primary is found until the disk goes on, 10 s instead of 3.",
		UnitTest: "./testcluster TestStall_AnotherLeads",
	},
	{
		Name: "heartbeat-fast-path",
		What: "Heartbeats are given to the handler of Raft's fast path, which changes term and state beside the main loop (hashicorp/raft#695): two leaders in one term, and logs that differ.",
		Changes: []Change{
			{
				File: "transport/transport.go",
				Old:  `func (t *Transport) SetHeartbeatHandler(func(raft.RPC)) {}`,
				New: `func (t *Transport) SetHeartbeatHandler(fast func(raft.RPC)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fast = fast
}

func (t *Transport) fastPath() func(raft.RPC) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fast
}`,
			},
			{
				File: "transport/transport.go",
				Old:  `	closed bool                    // guarded by mu`,
				New: `	fast   func(raft.RPC)
	closed bool                    // guarded by mu`,
			},
			{
				File: "transport/server.go",
				Old: `	resp, err := as[*raft.AppendEntriesResponse](s.t.handOver(ctx, r, nil))
	if err != nil {
		return nil, err
	}
	return appendResponseToProto(resp), nil`,
				New: `	var resp *raft.AppendEntriesResponse
	if fast := s.t.fastPath(); fast != nil && isHeartbeat(r) {
		answer := make(chan raft.RPCResponse, 1)
		fast(raft.RPC{Command: r, RespChan: answer})
		resp, err = as[*raft.AppendEntriesResponse](s.t.await(ctx, answer))
	} else {
		resp, err = as[*raft.AppendEntriesResponse](s.t.handOver(ctx, r, nil))
	}
	if err != nil {
		return nil, err
	}
	return appendResponseToProto(resp), nil`,
			},
		},
		Guarantee: "G3", Check: Convergence, Faults: "mute-leader", Limit: 4 * time.Minute,
		How:      "mute-leader: a leader that is not heard any more, but still hears late answers, hears its successor. Its main loop stands in its select as a leader; the next write that a follower has sent to it is stored under the term of the successor, whose own entry at that index is then taken for the same: state hashes differ, and soon what clients are told.",
		UnitTest: "./transport TestHeartbeatsGoToTheConsumer",
	},
}
