// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The states of an item. It only moves forward, and waiting -> over is what
// makes "certainly not applied" certain: whoever wins that step knows that
// nobody has sent the command anywhere.
const (
	stateWaiting uint32 = iota
	// stateSent: it was handed to Raft or to a stream; from here on it may be
	// applied.
	stateSent
	stateOver
)

// The field numbers of pb.Entry.
const (
	entryWall     protowire.Number = 1
	entryCommands protowire.Number = 2
)

// entryOverhead is more than an Entry needs beside its commands.
const entryOverhead = 32

// item is one command on its way.
type item struct {
	cmd *pb.Command
	// data is cmd encoded: by its proposer, so that one that cannot be encoded
	// spoils neither an entry nor a stream that it shares with others.
	data []byte
	// size is what the command takes in an Entry.
	size     int
	deadline time.Time
	state    atomic.Uint32
	// done is called once, by whoever moves state to stateOver.
	done func(*pb.Result, error)
}

// newItem encodes the command and checks its size.
func newItem(cmd *pb.Command, deadline time.Time, done func(*pb.Result, error)) (*item, error) {
	data, err := proto.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w: %w", hastate.ErrInvalid, err)
	}
	size := protowire.SizeTag(entryCommands) + protowire.SizeBytes(len(data))
	if size+entryOverhead > hastate.MaxEntryBytes {
		return nil, &hastate.LimitError{Limit: "command_bytes", Maximum: hastate.MaxEntryBytes - entryOverhead, Actual: uint64(size)}
	}
	return &item{cmd: cmd, data: data, size: size, deadline: deadline, done: done}, nil
}

// take claims the item for sending. False: it was given up before.
func (it *item) take() bool { return it.state.CompareAndSwap(stateWaiting, stateSent) }

func (it *item) over() bool { return it.state.Load() == stateOver }

// finish ends the item; only the first call does anything.
func (it *item) finish(res *pb.Result, err error) {
	if it.state.Swap(stateOver) != stateOver {
		it.done(res, err)
	}
}

// giveUp ends the item because its caller waits no longer. What the caller is
// told depends on whether it had been sent.
func (it *item) giveUp(cause error) {
	if it.state.CompareAndSwap(stateWaiting, stateOver) {
		it.done(nil, notBegun(cause))
		return
	}
	if it.state.CompareAndSwap(stateSent, stateOver) {
		it.done(nil, unknown("the deadline passed before the command was confirmed"))
	}
}

// encodeEntry is proto.Marshal of the pb.Entry of these items, from their
// encoded commands.
func encodeEntry(wallUnixMilli int64, items []*item) []byte {
	size := entryOverhead
	for _, it := range items {
		size += it.size
	}
	out := make([]byte, 0, size)
	out = protowire.AppendTag(out, entryWall, protowire.VarintType)
	out = protowire.AppendVarint(out, uint64(wallUnixMilli))
	for _, it := range items {
		out = protowire.AppendTag(out, entryCommands, protowire.BytesType)
		out = protowire.AppendBytes(out, it.data)
	}
	return out
}
