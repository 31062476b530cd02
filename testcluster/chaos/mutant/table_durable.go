// SPDX-License-Identifier: Apache-2.0

package mutant

import "time"

// durabilityMutants lose what was acknowledged.
var durabilityMutants = []Mutant{
	{
		Name: "log-without-fsync",
		What: "Log entries are not fsynced: an acknowledged write is in the page cache of a majority only.",
		Changes: []Change{{
			File: "internal/logstore/boltopen.go",
			Old: `	return raftboltdb.New(raftboltdb.Options{
		Path: path,`,
			New: `	return raftboltdb.New(raftboltdb.Options{
		NoSync: true,
		Path:   path,`,
		}},
		Guarantee: "G3", Check: Durability, Faults: "power-cut-all", Limit: 3 * time.Minute,
		How:      "power-cut-all: the newest acknowledged writes are gone from all nodes, or log files are torn and no majority comes back.",
		UnitTest: "./internal/logstore TestStoredEntriesAreOnTheDisk",
	},
	{
		Name: "flush-without-fsync",
		What: "The state file is flushed without fsync, and the log is truncated in favour of it: a power cut takes the state back behind the log.",
		Changes: []Change{{
			File: "fsm/machine.go",
			Old:  `		o.commit = func(_ *bolt.DB, tx *bolt.Tx) error { return tx.Commit() }`,
			New: `		o.commit = func(db *bolt.DB, tx *bolt.Tx) error {
			db.NoSync = true
			return tx.Commit()
		}`,
		}},
		Guarantee: "G3", Check: Durability, Faults: "power-cut-all", Limit: 5 * time.Minute,
		How:      "power-cut-all just after a log was truncated: the state file is older than the snapshot says, or torn, and the nodes refuse to start: no majority comes back, and all is lost. Half a minute later the kernel would have written the state file by itself.",
		UnitTest: "./fsm TestFlushIsOnTheDisk",
	},
	{
		Name: "ack-before-store",
		What: "A follower answers an append before it has stored it: entries count as committed that only the leader has.",
		Changes: []Change{
			{
				File: "transport/coalesce.go",
				Old:  `			return stream.Send(&pb.AppendPipelineResponse{Append: appendResponseToProto(r)})`,
				New: `			if !r.Success {
				return errRejected
			}
			return nil // it was answered when it came`,
			},
			{
				File: "transport/coalesce.go",
				Old:  `	if !s.t.start(func() { receiveAppends(stream, from, in) }) {`,
				New:  `	if !s.t.start(func() { receiveAppends(stream, from, in, []byte(s.t.opts.ID)) }) {`,
			},
			{
				File: "transport/coalesce.go",
				Old:  `from raft.ServerID, in chan<- arrival) {`,
				New:  `from raft.ServerID, in chan<- arrival, self []byte) {`,
			},
			{
				File: "transport/coalesce.go",
				Old: `			a.request, a.err = appendRequest(from, msg.GetAppend())
		}`,
				New: `			a.request, a.err = appendRequest(from, msg.GetAppend())
		}
		if r := a.request; a.err == nil {
			a.err = stream.Send(&pb.AppendPipelineResponse{Append: appendResponseToProto(&raft.AppendEntriesResponse{
				RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: self, Addr: self},
				Term:      r.Term, LastLog: r.PrevLogEntry + uint64(len(r.Entries)), Success: true,
			})})
		}`,
			},
		},
		Guarantee: "G3", Check: Durability, Faults: "power-cut-behind", Limit: 3 * time.Minute,
		How:      "The disks of the followers hang while the leader's does not, then the power of all is cut: what was acknowledged meanwhile is on the disk of the leader alone, and one of the others is elected. With kill-all or power-cut-all it was a matter of milliseconds: caught in 16 s once, not in 5 minutes the next time.",
		UnitTest: "./transport TestPipelineDeliversNoError",
	},
	{
		Name: "ack-before-commit",
		What: "A session write is acknowledged when its entry is handed to Raft, before anybody has stored it, with a result that is made up.",
		Changes: []Change{{
			File: "internal/propose/batcher.go",
			Old: `		inFlight.Go(func() {
			err := settle(`,
			New: `		for _, it := range fl.items {
			if ops := it.cmd.GetSessions().GetOps(); len(ops) > 0 {
				it.finish(madeUp(ops), nil)
			}
		}
		inFlight.Go(func() {
			err := settle(`,
		}, madeUpResult},
		Guarantee: "G3", Check: Linearizability, Faults: "cut-leader,kill-node", Limit: time.Minute,
		How:      "At once by the revisions, which only the state machine knows; in any case when the leader is cut off, whose writes are then lost.",
		UnitTest: "./testcluster TestWriteWithoutQuorum",
	},
	{
		Name: "lost-leadership-is-success",
		What: "A future that ends with 'leadership lost', whose outcome is unknown, is acknowledged: the entry may be overwritten by the next leader's.",
		Changes: []Change{{
			File: "internal/propose/outcome.go",
			Old: `		out := unknown("%v", err)
		if certainlyNotApplied(err) {`,
			New: `		if errors.Is(err, raft.ErrLeadershipLost) {
			for _, it := range items {
				it.finish(madeUp(it.cmd.GetSessions().GetOps()), nil)
			}
			return err
		}
		out := unknown("%v", err)
		if certainlyNotApplied(err) {`,
		}, madeUpResult},
		Guarantee: "G3", Check: Linearizability, Faults: "cut-leader,pause-node,disk-stall", Limit: 3 * time.Minute,
		How:      "The leader is cut off from both others under load and steps down with entries in flight: they are acknowledged and lost.",
		UnitTest: "./internal/propose TestBatcher_ErroredFutureIsRefused",
	},
	{
		Name: "unknown-is-not-applied",
		What: "A future that ends with 'leadership lost' is said not to have been applied: what is told as failed shows up later.",
		Changes: []Change{{
			File: "internal/propose/outcome.go",
			Old:  `	return errors.Is(err, raft.ErrNotLeader) ||`,
			New:  `	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) ||`,
		}},
		Guarantee: "G5", Check: Linearizability, Faults: "deaf-leader", Limit: 2 * time.Minute,
		How:      "The leader is heard and hears nothing: what is in flight when it steps down is committed by the next one. A write of a client that is tied to it, or whose deadline ends meanwhile, is told as certainly not done, and then shows in watches and reads.",
		UnitTest: "./internal/propose TestBatcher_ErroredFutureIsRefused",
	},
	{
		Name: "empty-voter-let-in",
		What: "A voter that has lost its disk takes part in Raft at once: it votes a second time in a term, and acknowledges with what it has forgotten.",
		Changes: []Change{{
			File: "node/admission.go",
			Old: `	defer a.mu.Unlock()
	return a.admitted
}`,
			New: `	defer a.mu.Unlock()
	return true
}`,
		}},
		Guarantee: "G3", Check: Durability, Faults: "lost-disk-behind", Limit: 3 * time.Minute,
		How:      "lost-disk-behind: a node is behind, another one's folder is emptied and it is started under its old id, the leader is gone: the two elect one of them without what was acknowledged.",
		UnitTest: "./testcluster TestLostData_TheWholeDisk",
	},
	{
		Name: "replay-applied-again",
		What: "After a restart, entries that the state file already has are applied again: this node's state is another one than that of the others.",
		Changes: []Change{{
			File: "fsm/raft.go",
			Old:  `	return index <= m.applied`,
			New:  `	return index == 0`,
		}},
		Guarantee: "G5", Check: Convergence, Faults: "kill-node,restart-node", Limit: 2 * time.Minute,
		How:      "A node that was restarted has another state hash, and other revisions, than its peers: retried requests are recognised, but new clients, instances and renewals are not requests.",
		UnitTest: "./fsm TestAppliedEntriesAreSkipped",
	},
}

// madeUpResult is what an acknowledgement before the commit has to say.
var madeUpResult = Change{
	File: "internal/propose/item.go",
	Old:  `// The field numbers of pb.Entry.`,
	New: `func madeUp(ops []*pb.SessionOp) *pb.Result {
	res := &pb.Result{Code: pb.ResultCode_RESULT_CODE_OK}
	for _, op := range ops {
		a := op.GetAppend()
		res.Sessions = append(res.Sessions, &pb.SessionOpResult{EndOffset: a.GetOffset() + uint64(len(a.GetData()))})
	}
	return res
}

// The field numbers of pb.Entry.`,
}

// damageMutants believe what a disk or a network hands out.
var damageMutants = []Mutant{
	{
		Name: "state-without-checksums",
		What: "Neither a received snapshot nor the records of the state file are checked: a flipped bit becomes the state of this node, and of those that it sends a snapshot to.",
		Changes: []Change{
			{
				File: "snapshot/reader.go",
				Old:  `	if got := binary.BigEndian.Uint32(p[:]); got != want {`,
				New:  `	if got := binary.BigEndian.Uint32(p[:]); got == want+1 {`,
			},
			{
				File: "fsm/seal.go",
				Old:  `	if n < 0 || sumOf(t, key, stored[:n]) != binary.BigEndian.Uint32(stored[n:]) {`,
				New:  `	if n < 0 {`,
			},
		},
		Guarantee: "G3", Check: Convergence, Faults: "flip-bits", Limit: 5 * time.Minute,
		How:      "A flipped bit in what a session of state.db holds: the node starts and has another state hash; one in a record that cannot be read then ends it when somebody looks.",
		UnitTest: "./testcluster TestDamage",
	},
	{
		Name: "archive-without-checksum",
		What: "The checksum of an archive is not compared: a damaged backup is restored, a damaged snapshot taken over.",
		Changes: []Change{{
			File: "snapshot/reader.go",
			Old:  `	if got := binary.BigEndian.Uint32(p[:]); got != want {`,
			New:  `	if got := binary.BigEndian.Uint32(p[:]); got == want+1 {`,
		}},
		Guarantee: "G3", Check: Durability, Faults: "damaged-backup", Limit: 3 * time.Minute,
		How:      "A backup with flipped bits is restored, and with it a state from before what was acknowledged since. Where the bits hit a record, its own checksum finds them, but only when the leader's state machine is at it.",
		UnitTest: "./snapshot TestADamagedArchiveNeverEndsWell",
	},
	{
		Name: "older-log-believed",
		What: "A log that ends before the state does, or knows no term of it, is gone on with: what the node has acknowledged since, and whom it has voted for, is forgotten.",
		Changes: []Change{
			{
				File: "node/checkdata.go",
				Old:  `n.snapshots.Covers()); reach < flushed {`,
				New:  `n.snapshots.Covers()); reach+1<<62 < flushed {`,
			},
			{
				File: "node/checkdata.go",
				Old:  `err == nil && term < reached {`,
				New:  `err == nil && term+1<<62 < reached {`,
			},
		},
		Guarantee: "G3", Check: Durability, Faults: "old-log", Limit: 5 * time.Minute,
		How:      "A majority with older logs elects one of its own, and gives new commands the indexes of entries that its states have: they are acknowledged and skipped.",
		UnitTest: "./testcluster TestLostData_AnOlderLog",
	},
	{
		Name: "log-without-checksums",
		What: "The entries of the log are read without a look at their checksums: a flipped bit becomes history on this node.",
		Changes: []Change{{
			File: "internal/logstore/seal.go",
			Old:  `	if got := sum(l, extensions); got != want {`,
			New:  `	if got := sum(l, extensions); got == want+1 {`,
		}},
		Guarantee: "G3", Check: Convergence, Faults: "flip-bits", Limit: 5 * time.Minute,
		How:      "A flipped bit in what one of the newest entries of raft.db writes to a session: applied after the restart, it makes another state hash; one that makes a command unknown halts the node.",
		UnitTest: "./internal/logstore TestADamagedFileIsRefusedWithWords",
	},
}
