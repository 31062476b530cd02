// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/indexes"
)

// Kind is how a log is kept on disk.
type Kind string

const (
	// Bolt is a bbolt file written through raft-boltdb: two fdatasyncs a write.
	Bolt Kind = "bolt"
	// Segments is a folder of preallocated segments: one fdatasync a write.
	Segments Kind = "segments"
)

// Kinds are all of them.
var Kinds = []Kind{Bolt, Segments}

// errNoValue is the error for a stable value that was never set. Raft compares its text.
var errNoValue = errors.New("not found")

// stableValue is one of the values that raft keeps beside the log.
type stableValue struct{ key, value []byte }

// backend keeps entries and stable values on disk. Every change is durable when the
// method returns, and any error of one is final. Reads may run beside everything.
type backend interface {
	// stored are the indexes that were there at open.
	stored() indexes.Set
	// store puts entries; gaps and overwrites are allowed.
	store(logs []*raft.Log) error
	// remove takes first..last away.
	remove(first, last uint64) error
	// read gets an entry and checks it; raft.ErrLogNotFound if it is not there.
	read(index uint64, out *raft.Log) error
	// set puts values, all or none if the backend can.
	set(values []stableValue) error
	// get returns a value, or errNoValue.
	get(key []byte) ([]byte, error)
	// chunk is how many indexes one remove may take without making appends wait.
	chunk() uint64
	close() error
}

// openBackend opens or makes what is at the path.
func openBackend(opts Options) (backend, error) {
	switch opts.Kind {
	case Bolt, "":
		return openBolt(opts.Path)
	case Segments:
		return openSegments(opts)
	}
	return nil, fmt.Errorf("%w: there is no log store of the kind %q: it is one of %q", hastate.ErrInvalid, opts.Kind, Kinds)
}
