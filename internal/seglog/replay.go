// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/indexes"
)

// location is where an entry lies.
type location struct {
	in *segment
	// position and number are those of its append, offset that of its record within
	// the payload of the append, length that of the record.
	position, number, offset, length uint32
}

// contents are what the appends add up to.
type contents struct {
	stored indexes.Set
	at     map[uint64]location
	// values by name; their order in headers is that of the names.
	values map[string][]byte
}

func newContents() contents {
	return contents{at: map[uint64]location{}, values: map[string][]byte{}}
}

// store puts an entry where it lies now.
func (c *contents) store(index uint64, where location) {
	if old, ok := c.at[index]; ok {
		old.in.live--
	}
	c.at[index] = where
	where.in.live++
	c.stored = c.stored.Add(index, index)
}

// remove forgets the entries first..last.
func (c *contents) remove(first, last uint64) {
	if last < first {
		return
	}
	if last-first >= uint64(len(c.at)) { // a range may be of any size
		for i := range c.at {
			if first <= i && i <= last {
				c.drop(i)
			}
		}
	} else {
		for i := first; i <= last; i++ {
			c.drop(i)
		}
	}
	c.stored = c.stored.Remove(first, last)
}

func (c *contents) drop(index uint64) {
	if where, ok := c.at[index]; ok {
		where.in.live--
		delete(c.at, index)
	}
}

// replay takes over one append of a segment.
func (c *contents) replay(in *segment, a found, before end, first bool) error {
	return eachRecord(a.body, func(record any, offset, length int) error {
		head, isHeader := record.(header)
		if isHeader != (a.number == 0 && offset == 0) {
			return errors.New("a segment begins with a header and has no other")
		}
		switch r := record.(type) {
		case header:
			return c.begin(in, head, before, first)
		case *raft.Log:
			if r.Index == 0 || r.Index == math.MaxUint64 {
				return fmt.Errorf("there is an entry with the index %d", r.Index)
			}
			c.store(r.Index, location{in: in, position: a.position, number: a.number, offset: uint32(offset + lengthBytes), length: uint32(length)})
		case indexes.Run:
			c.remove(r.First, r.Last)
		case value:
			c.values[r.name] = append([]byte(nil), r.data...)
		}
		return nil
	})
}

// begin compares a header with what is known, or takes it for it, in the oldest segment
// that is left.
func (c *contents) begin(in *segment, h header, before end, first bool) error {
	if h.segment != in.number {
		return fmt.Errorf("it says that it is segment %d", h.segment)
	}
	if in.capacity < h.capacity {
		return fmt.Errorf("it had %d sectors, and has %d: its end is lost", h.capacity, in.capacity)
	}
	if first {
		c.stored = append(indexes.Set(nil), h.stored...)
		for _, v := range h.values {
			c.values[v.name] = append([]byte(nil), v.data...)
		}
		return nil
	}
	if h.before != before {
		return fmt.Errorf("it says that the segment before it has %d appends in %d sectors, and there are %d in %d", h.before.appends, h.before.sectors, before.appends, before.sectors)
	}
	if !equalSets(h.stored, c.stored) {
		return fmt.Errorf("it says that the log had the indexes %v, and it had %v", h.stored, c.stored)
	}
	if len(h.values) != len(c.values) {
		return fmt.Errorf("it says that there were %d values, and there were %d", len(h.values), len(c.values))
	}
	for _, v := range h.values {
		if string(c.values[v.name]) != string(v.data) {
			return fmt.Errorf("it has another value of %q than the segment before it", v.name)
		}
	}
	return nil
}

func equalSets(a, b indexes.Set) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// complete says whether each index that the log has was found in a segment.
func (c *contents) complete() error {
	if c.stored.Count() == uint64(len(c.at)) {
		return nil
	}
	for _, r := range c.stored {
		for i := r.First; i <= r.Last; i++ {
			if _, ok := c.at[i]; !ok {
				return fmt.Errorf("entry %d is in none of the segments", i)
			}
		}
	}
	return errors.New("there are entries that the log does not tell of")
}
