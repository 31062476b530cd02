// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/indexes"
)

// Store makes entries durable, all or none. One that the log has already takes the place
// of it; gaps are possible.
func (l *Log) Store(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	size := 0
	for _, e := range entries {
		if e.Index == 0 || e.Index == math.MaxUint64 {
			return fmt.Errorf("an entry cannot have the index %d", e.Index)
		}
		if size += entryBytes(e); size > maxBody/2 {
			return fmt.Errorf("%d entries have more than %d bytes: too much for one append", len(entries), maxBody/2)
		}
	}
	offsets := make([]uint32, len(entries)+1)
	return l.append(func(f *frame) {
		for i, e := range entries {
			offsets[i] = uint32(f.n)
			putEntry(f, e)
		}
		offsets[len(entries)] = uint32(f.n)
	}, func(in *segment, position, number uint32) {
		for i, e := range entries {
			l.contents.store(e.Index, location{in: in, position: position, number: number, offset: offsets[i], length: offsets[i+1] - offsets[i]})
		}
	})
}

// Delete removes the entries from first to last, both included, in one append.
func (l *Log) Delete(first, last uint64) error {
	l.mu.RLock()
	lo, hi := l.contents.stored.Clamp(first, last)
	l.mu.RUnlock()
	if lo > hi {
		return nil
	}
	err := l.append(func(f *frame) { putDelete(f, indexes.Run{First: lo, Last: hi}) },
		func(*segment, uint32, uint32) { l.contents.remove(lo, hi) })
	if err == nil {
		l.retire()
	}
	return err
}

// SetValues makes named values durable, all or none.
func (l *Log) SetValues(names []string, values [][]byte) error {
	l.mu.RLock()
	all := maps.Clone(l.contents.values)
	l.mu.RUnlock()
	for i, name := range names {
		if len(name) > MaxValueBytes || len(values[i]) > MaxValueBytes {
			return fmt.Errorf("the value %.40q is longer than %d bytes", name, MaxValueBytes)
		}
		all[name] = values[i]
	}
	if len(all) > MaxValues {
		return fmt.Errorf("there would be %d named values, at most %d are possible", len(all), MaxValues)
	}
	return l.append(func(f *frame) {
		for i, name := range names {
			putValue(f, value{name, values[i]})
		}
	}, func(*segment, uint32, uint32) {
		for i, name := range names {
			l.contents.values[name] = slices.Clone(values[i])
		}
	})
}

// append writes records as one append, and publishes them when they are durable.
// build may be called several times.
func (l *Log) append(build func(*frame), publish func(in *segment, position, number uint32)) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.failed != nil {
		return l.failed
	}
	l.mu.RLock()
	closed, in := l.closed, l.segments[len(l.segments)-1]
	l.mu.RUnlock()
	if closed {
		return ErrClosed
	}
	l.frame.reset()
	build(&l.frame)
	begins := in.end.sectors+l.frame.sectors() > in.capacity
	if begins {
		next, err := l.begin(in, build)
		if err != nil {
			return l.fail(fmt.Errorf("begin a segment: %w", err))
		}
		in = next
	}
	position, number := in.end.sectors, in.end.appends
	if err := in.write(l.frame.seal(in.number, number, position)); err != nil {
		return l.fail(fmt.Errorf("segment %d: %w", in.number, err))
	}
	l.frame.shrink()
	l.mu.Lock()
	defer l.mu.Unlock()
	if begins {
		l.segments = append(l.segments, in)
		l.spares = l.spares[1:]
		l.wakePreparer()
	}
	publish(in, position, number)
	return nil
}

// fail ends all writing. Called with writing held.
func (l *Log) fail(err error) error {
	l.failed = fmt.Errorf("%s takes no more writes: %w", l.dir, err)
	return l.failed
}

// begin takes the next segment and puts its header before the records. The segment is a
// spare until the append is durable. build may be called again.
func (l *Log) begin(before *segment, build func(*frame)) (*segment, error) {
	if before.number == math.MaxUint32 {
		return nil, errors.New("there are no more segment numbers")
	}
	next, err := l.spare(before.number + 1)
	if err != nil {
		return nil, err
	}
	for range 2 { // once more if it had to grow
		l.frame.reset()
		putHeader(&l.frame, l.header(next, before.end))
		build(&l.frame)
		if l.frame.sectors() <= next.capacity {
			return next, nil
		}
		if err := next.grow(l.frame.sectors()); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the segment has not grown")
}

// header is that of a segment that begins now.
func (l *Log) header(in *segment, before end) header {
	l.mu.RLock()
	defer l.mu.RUnlock()
	h := header{segment: in.number, capacity: in.capacity, before: before, stored: slices.Clone(l.contents.stored)}
	for _, name := range slices.Sorted(maps.Keys(l.contents.values)) {
		h.values = append(h.values, value{name, l.contents.values[name]})
	}
	return h
}
