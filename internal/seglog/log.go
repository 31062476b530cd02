// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/hastate/hastate/internal/indexes"
)

const (
	// DefaultSegmentBytes is the size of a new file.
	DefaultSegmentBytes = 16 << 20
	// minSegmentBytes holds a header and some entries.
	minSegmentBytes = 64 << 10
	// lockTimeout is how long Open waits for another process that is just ending.
	lockTimeout = time.Second
)

var (
	// ErrDamaged: the files cannot be trusted. They are never repaired.
	ErrDamaged = errors.New("the log is damaged")
	// ErrLocked: another process has the log open.
	ErrLocked = errors.New("the log is in use by another process")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the log is closed")
)

// Options of a Log.
type Options struct {
	// Dir is the folder of the segments, for them alone. It is made if it does not
	// exist; the folder that it lies in must exist.
	Dir string
	// SegmentBytes is the size of new files, a multiple of 512 from 64 KiB to 1 GiB; 0
	// is DefaultSegmentBytes.
	SegmentBytes int64
	Logger       *slog.Logger
}

// Log is the log. All methods are safe for concurrent use. After the first write that
// failed nothing is written any more: an fsync that failed once may succeed later
// without the data being there.
type Log struct {
	dir    string
	size   int64
	logger *slog.Logger
	lock   *os.File

	// writing is held for the whole of an append.
	writing sync.Mutex
	// frame and failed are guarded by writing.
	frame  frame
	failed error

	// preparing is held by whoever makes or recycles a file.
	preparing sync.Mutex
	// prepare wakes the goroutine that keeps a spare segment ready.
	prepare chan struct{}
	stop    chan struct{}
	done    chan struct{}

	mu sync.RWMutex
	// contents is what the log holds. Guarded by mu.
	contents contents
	// segments are those in use, the last one being written to. Guarded by mu; writing
	// is held too to change it.
	segments []*segment
	// dead are segments that nothing lies in any more, oldest first. Guarded by mu.
	dead []*segment
	// spares are files for the segments that come next. Guarded by mu.
	spares []*segment
	// closed is guarded by mu.
	closed bool
}

// Open opens or makes a log, takes its lock and reads all of it.
func Open(opts Options) (_ *Log, err error) {
	l := &Log{
		dir: opts.Dir, size: opts.SegmentBytes, logger: opts.Logger, contents: newContents(),
		prepare: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if l.size == 0 {
		l.size = DefaultSegmentBytes
	}
	if l.size < minSegmentBytes || l.size > maxSegmentBytes || l.size%sectorBytes != 0 {
		return nil, fmt.Errorf("segments of %d bytes are not possible: take a multiple of %d from %d to %d", l.size, sectorBytes, minSegmentBytes, maxSegmentBytes)
	}
	if l.logger == nil {
		l.logger = slog.New(slog.DiscardHandler)
	}
	if err := create(l.dir, l.size); err != nil {
		return nil, fmt.Errorf("make the log %s: %w", l.dir, err)
	}
	if l.lock, err = lockDir(l.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.release())
		}
	}()
	if err := l.read(); err != nil {
		return nil, fmt.Errorf("%s: %w", l.dir, err)
	}
	l.retire()
	go l.keepSpare()
	l.wakePreparer()
	return l, nil
}

// create makes a folder with one empty segment, under another name until it is whole.
func create(dir string, size int64) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := dir + newSuffix
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, dirMode); err != nil {
		return err
	}
	s, err := createSegment(fresh, 1, size)
	if err != nil {
		return err
	}
	var f frame
	f.reset()
	putHeader(&f, header{segment: 1, capacity: s.capacity})
	if err := errors.Join(s.write(f.seal(1, 0, 0)), s.file.Close()); err != nil {
		return err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func lockDir(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	deadline := time.Now().Add(lockTimeout)
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return d, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("lock the log %s: %w", dir, err), d.Close())
		case time.Now().After(deadline):
			return nil, errors.Join(fmt.Errorf("%w: %s", ErrLocked, dir), d.Close())
		}
		<-time.After(10 * time.Millisecond) // nothing tells when another process lets go; bounded by the deadline
	}
}

// read takes over what the segments hold.
func (l *Log) read() error {
	numbers, err := listSegments(l.dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var buf []byte
	for _, number := range numbers {
		s, err := openSegment(l.dir, number)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if buf, err = l.readSegment(s, buf); err != nil {
			return err
		}
	}
	if len(l.segments) == 0 {
		return fmt.Errorf("%w: there is no segment that was ever written to", ErrDamaged)
	}
	if err := l.contents.complete(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// readSegment takes over one segment and keeps its file. buf is memory to use.
func (l *Log) readSegment(s *segment, buf []byte) ([]byte, error) {
	l.spares = append(l.spares, s) // until it turns out to be used: release closes it
	size := int(s.capacity) * sectorBytes
	if cap(buf) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if _, err := io.ReadFull(io.NewSectionReader(s.file, 0, int64(size)), buf); err != nil {
		return buf, fmt.Errorf("read %s: %w", fileName(s.number), err)
	}
	var before end
	first := len(l.segments) == 0
	if !first {
		before = l.segments[len(l.segments)-1].end
	}
	held, err := scan(buf, s.number, func(a found) error { return l.contents.replay(s, a, before, first) })
	if err != nil {
		return buf, fmt.Errorf("%w: %s: %w", ErrDamaged, fileName(s.number), err)
	}
	s.end = held.end
	used := held.appends > 0
	if used && len(l.spares) > 1 {
		return buf, fmt.Errorf("%w: %s is in use, and %s before it is empty", ErrDamaged, fileName(s.number), fileName(l.spares[0].number))
	}
	if used {
		l.segments, l.spares = append(l.segments, s), nil
	}
	// Only the newest segment can have anything to settle, and which one that is is
	// not known yet; for the others it is a sync of what is on the disk already.
	if err := s.settle(buf, held); err != nil {
		return buf, fmt.Errorf("settle %s: %w", fileName(s.number), err)
	}
	return buf, nil
}

// Close waits for the running append and closes the files. Later calls do nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	was := l.closed
	l.closed = true
	l.mu.Unlock()
	if was {
		return nil
	}
	close(l.stop)
	<-l.done
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.release()
}

// release closes every file, the lock last.
func (l *Log) release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, s := range slices.Concat(l.dead, l.segments, l.spares) {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(append(errs, l.lock.Close())...)
}

// Stored returns the indexes that the log has.
func (l *Log) Stored() indexes.Set {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return slices.Clone(l.contents.stored)
}

// Value returns a named value.
func (l *Log) Value(name string) ([]byte, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	v, ok := l.contents.values[name]
	return slices.Clone(v), ok
}

// Entry reads an entry. The error of one that is not there is raft.ErrLogNotFound.
func (l *Log) Entry(index uint64, out *raft.Log) error {
	l.mu.RLock()
	where, ok := l.contents.at[index]
	closed := l.closed
	l.mu.RUnlock()
	if closed {
		return ErrClosed
	}
	if !ok {
		return raft.ErrLogNotFound // compared by ==, in raft
	}
	entry, err := where.read(index)
	if err == nil {
		*out = *entry
		return nil
	}
	// The segment may have been given to others while it was read.
	l.mu.RLock()
	now, ok := l.contents.at[index]
	closed = l.closed
	l.mu.RUnlock()
	switch {
	case closed:
		return ErrClosed
	case !ok:
		return raft.ErrLogNotFound
	}
	if now != where {
		if entry, err = now.read(index); err == nil {
			*out = *entry
			return nil
		}
	}
	return fmt.Errorf("%w: %s: entry %d in %s: %w", ErrDamaged, l.dir, index, fileName(where.in.number), err)
}

// read gets the entry from the file and checks it.
func (w location) read(index uint64) (*raft.Log, error) {
	first := w.offset / payloadBytes
	count := (w.offset+w.length-1)/payloadBytes - first + 1
	sectors := make([]byte, int(count)*sectorBytes)
	if _, err := w.in.file.ReadAt(sectors, int64(w.position+first)*sectorBytes); err != nil {
		return nil, err
	}
	for i := range count {
		position := w.position + first + i
		if state, number := classify(sectorAt(sectors, i), position, w.in.number); state != written || number != w.number {
			return nil, fmt.Errorf("sector %d is not what was written", position)
		}
	}
	payload := unframe(make([]byte, 0, int(count)*payloadBytes), sectors)[w.offset-first*payloadBytes:][:w.length]
	record, length, err := decodeRecord(payload)
	if err != nil {
		return nil, err
	}
	entry, ok := record.(*raft.Log)
	if !ok || length != int(w.length) || entry.Index != index {
		return nil, errors.New("another record is there")
	}
	return entry, nil
}
