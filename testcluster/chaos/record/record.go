// SPDX-License-Identifier: Apache-2.0

package record

import (
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The kinds of an Op.
const (
	Put    = "put"    // unconditional
	Create = "create" // only if absent
	CAS    = "cas"    // only if the revision is IfRevision
	Append = "append" // at Offset
	Delete = "delete" // only if the revision is IfRevision, if that is not 0
	Get    = "get"    // linearizable
)

// The outcomes of an Op.
const (
	// OK: it was done; Revision, EndOffset, Value and Found say how.
	OK = "ok"
	// Refused: it was certainly not done, because its condition did not hold
	// (conflict, fenced). It is a statement about the state at that time.
	Refused = "refused"
	// Failed: it was certainly not done, for a reason that says nothing of the
	// state (no leader, limit).
	Failed = "failed"
	// Unknown: it may have been done, or may be done at any later time.
	Unknown = "unknown"
)

// Op is one operation on one session, by one client.
type Op struct {
	Client int    `json:"client"`
	Group  string `json:"group"`
	Key    string `json:"key"`
	Kind   string `json:"kind"`
	// Value is what was written, or for Get what was read. Written values are
	// unique in a run. For Append it is the piece.
	Value string `json:"value,omitempty"`
	// IfRevision, Offset and Epoch are the conditions; Epoch 0: none.
	IfRevision uint64 `json:"if_revision,omitempty"`
	Offset     uint64 `json:"offset,omitempty"`
	Epoch      uint64 `json:"epoch,omitempty"`

	Call    clock.Instant `json:"call"`
	Return  clock.Instant `json:"return"`
	Outcome string        `json:"outcome"`
	// Revision of the write, or of the record that was read.
	Revision  uint64 `json:"revision,omitempty"`
	EndOffset uint64 `json:"end_offset,omitempty"`
	// Found: Get found a record, Delete deleted one.
	Found bool `json:"found,omitempty"`
	// Base is the offset of the first byte of Value, for Get.
	Base  uint64 `json:"base,omitempty"`
	Error string `json:"error,omitempty"`
}

// Lease is what a holder believed: from From until Until it held the lease of a
// group. One line is written when a lease begins and at every renewal, with the
// same From and a later Until, and one with Ended when it was given up before its
// Until. The last line of a node, group and epoch counts.
type Lease struct {
	Node  string        `json:"node"`
	Group string        `json:"group"`
	Epoch uint64        `json:"epoch"`
	From  clock.Instant `json:"from"`
	Until clock.Instant `json:"until"`
	Ended bool          `json:"ended,omitempty"`
}

// Served is one request that a model server did as the primary. At is when it
// decided that it was allowed to.
type Served struct {
	Node  string        `json:"node"`
	Group string        `json:"group"`
	Epoch uint64        `json:"epoch"`
	At    clock.Instant `json:"at"`
}

// Promotion is the first Promote of an epoch that a model server has obeyed, as
// the server itself knows it: nobody was told of it before At.
type Promotion struct {
	Node  string        `json:"node"`
	Group string        `json:"group"`
	Epoch uint64        `json:"epoch"`
	At    clock.Instant `json:"at"`
}

// Request is one request of a client to the primary of a group.
type Request struct {
	Group  string        `json:"group"`
	Call   clock.Instant `json:"call"`
	Return clock.Instant `json:"return"`
	// Node and Epoch of the server that did it; empty and 0 if it failed.
	Node  string `json:"node,omitempty"`
	Epoch uint64 `json:"epoch,omitempty"`
	Error string `json:"error,omitempty"`
}

// SessionEvent is one message of a session watch.
type SessionEvent struct {
	// Watcher tells one watch from another, resumed or not.
	Watcher int `json:"watcher"`
	// Prefix of the sessions that it watches.
	Prefix string `json:"prefix,omitempty"`
	// Tied: it keeps to one node, and need not get to the end of what was written.
	Tied   bool          `json:"tied,omitempty"`
	At     clock.Instant `json:"at"`
	Resync bool          `json:"resync,omitempty"`
	// Resumed: nothing was told yet, the watcher asks to go on after Revision.
	Resumed  bool   `json:"resumed,omitempty"`
	Group    string `json:"group,omitempty"`
	Key      string `json:"key,omitempty"`
	Value    string `json:"value,omitempty"`
	Revision uint64 `json:"revision,omitempty"`
	Deleted  bool   `json:"deleted,omitempty"`
}

// GroupEvent is one change of a group, as a watch told it.
type GroupEvent struct {
	// Stream of the watch that told it, from 1: another one each time that the
	// watch began anew with the current state. A watch that went on at another node
	// where it was is in the same one. Each load counts its own.
	Stream     int            `json:"stream,omitempty"`
	At         clock.Instant  `json:"at"`
	Revision   uint64         `json:"revision"`
	Group      *pb.Group      `json:"group"`
	Transition *pb.Transition `json:"transition,omitempty"`
}

// Fault is one thing that was broken, from Began until everything was put right
// again and the cluster was whole.
type Fault struct {
	Round int    `json:"round"`
	Kind  string `json:"kind"`
	// What was done, for people.
	What   string        `json:"what"`
	Began  clock.Instant `json:"began"`
	Healed clock.Instant `json:"healed"`
	Whole  clock.Instant `json:"whole"`
	// Harmless: it must not move the primary of any group.
	Harmless bool `json:"harmless,omitempty"`
	// Lost are the groups whose primary it took away for certain.
	Lost []string `json:"lost,omitempty"`
	// Spared are the groups that it cannot touch, whatever it does to others.
	Spared []string `json:"spared,omitempty"`
	// NotInjected are those of its kinds that could not be done, or not in full.
	NotInjected []string `json:"not_injected,omitempty"`
	// Epochs are the epochs of all groups when it began.
	Epochs map[string]uint64 `json:"epochs,omitempty"`
	// WholeEpochs are the epochs when everything was whole again.
	WholeEpochs map[string]uint64 `json:"whole_epochs,omitempty"`
}

// Violation is something that must never be seen.
type Violation struct {
	// Check that found it: linearizability, one-primary, exactly-once, watch,
	// promotion, convergence, history, false-failover, leak, durability, proof.
	Check string `json:"check"`
	Text  string `json:"text"`
	// Key is set if it is about one session.
	Key string `json:"key,omitempty"`
}
