// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Archive is an opened snapshot. Raft opens one for two ends without saying for
// which, so it serves both: as it is, Read yields the whole archive, to be sent to
// another node; once Header has been called, before the first Read, Read yields the
// bytes of the state alone, to be restored from, and io.EOF only if they are whole.
//
// raft.FSM.Restore gets it wrapped: raft.ReadCloserWrapper takes the wrapper off.
type Archive struct {
	size int64
	live bool
	// header is what the state machine is told.
	header *pb.ArchiveHeader
	// whole yields the archive, and closes what is behind it, once or more often.
	whole io.ReadCloser
	// private says why the archive may be restored from but not be sent on.
	private error

	mu sync.Mutex
	// reader is what Read reads from: nil until the first Read or Header decides.
	// Guarded by mu.
	reader io.Reader
}

// Header is the header to take the state over by: with the index and the term that
// raft has given a backup. Called before the first Read it turns the reader to the
// bytes of the state.
func (a *Archive) Header() *pb.ArchiveHeader {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reader == nil {
		a.reader = &lazyState{whole: a.whole}
	}
	return proto.CloneOf(a.header)
}

// Live says that this is the node's own state, streamed from its state file: there
// is nothing to restore from it, and its state file must not be replaced while it is
// open.
func (a *Archive) Live() bool { return a.live }

// Size is that of the whole archive.
func (a *Archive) Size() int64 { return a.size }

// Read reads the archive, or the state if Header was called first.
func (a *Archive) Read(p []byte) (int, error) {
	a.mu.Lock()
	if a.reader == nil {
		a.reader = a.whole
		if a.private != nil {
			a.reader = refusing{a.private}
		}
	}
	r := a.reader
	a.mu.Unlock()
	return r.Read(p)
}

// Close ends the read transaction or closes the file.
func (a *Archive) Close() error { return a.whole.Close() }

type refusing struct{ err error }

func (r refusing) Read([]byte) (int, error) { return 0, r.err }

// dataFile is a received archive. Both the state machine and raft close it.
type dataFile struct {
	*os.File
	once sync.Once
	err  error
}

func (f *dataFile) Close() error {
	f.once.Do(func() { f.err = f.File.Close() })
	return f.err
}

// lazyState reads the state out of an archive.
type lazyState struct {
	whole  io.Reader
	reader *Reader
	err    error
}

func (l *lazyState) Read(p []byte) (int, error) {
	if l.reader == nil && l.err == nil {
		l.reader, l.err = NewReader(l.whole)
	}
	if l.err != nil {
		return 0, l.err
	}
	return l.reader.Read(p)
}

func (s *Store) openReceived(r *record) (*Archive, error) {
	a := &Archive{size: r.Size}
	if r.Backup {
		// A backup is made part of the cluster's state when the state machine of the
		// leader takes it over, and what results depends on the state there. Another
		// node must get that result, not the backup. No entry has the index that raft
		// gives to a restore, so the state machine is at it only when it is done.
		stream, err := s.opts.Source.BeginStream()
		if err != nil {
			return nil, fmt.Errorf("begin to stream the state: %w", err)
		}
		if stream.Index >= r.Index {
			return s.archiveOf(r, stream)
		}
		if err := stream.Body.Close(); err != nil {
			return nil, fmt.Errorf("end the stream of the state: %w", err)
		}
		a.private = fmt.Errorf("%w: the backup is not restored on this node yet: try again", hastate.ErrPrecondition)
	}
	f, err := os.Open(s.dir.file(r.ID + dataSuffix))
	if errors.Is(err, os.ErrNotExist) {
		if now := s.find(r.ID); now != nil && !now.Received {
			return s.openLive(now) // taken over since we looked
		}
	}
	if err != nil {
		return nil, err
	}
	reader, err := NewReader(f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	a.header, a.whole = r.present(reader.header), &dataFile{File: f}
	return a, nil
}

func (s *Store) openLive(r *record) (*Archive, error) {
	stream, err := s.opts.Source.BeginStream()
	if err != nil {
		return nil, fmt.Errorf("begin to stream the state: %w", err)
	}
	return s.archiveOf(r, stream)
}

func (s *Store) archiveOf(r *record, stream Stream) (*Archive, error) {
	if stream.Size < 0 {
		return nil, errors.Join(fmt.Errorf("%w: the state has %d bytes", hastate.ErrInvalid, stream.Size), stream.Body.Close())
	}
	// The state holds all entries up to the snapshot's index, but its own index may
	// be lower, because raft counts entries that are not for the state machine.
	h := r.present(NewHeader(stream, false, s.opts.Now(), s.opts.Version))
	return &Archive{size: ArchiveSize(h), live: true, header: h, whole: &liveReader{header: h, stream: stream}}, nil
}

// liveReader turns a stream, which writes, into a reader. Its goroutine begins with
// the first Read; Close ends it and waits for it.
type liveReader struct {
	header *pb.ArchiveHeader
	stream Stream

	mu sync.Mutex
	// pipe is nil before the first Read. Guarded by mu.
	pipe *io.PipeReader
	// done is closed when the goroutine has ended. Guarded by mu.
	done chan struct{}
	// closed is set by Close. Guarded by mu.
	closed bool
}

func (l *liveReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return 0, fmt.Errorf("snapshot: %w", hastate.ErrClosed)
	}
	if l.pipe == nil {
		l.start()
	}
	pipe := l.pipe
	l.mu.Unlock()
	return pipe.Read(p)
}

// start is called with mu held.
func (l *liveReader) start() {
	r, w := io.Pipe()
	done := make(chan struct{})
	l.pipe, l.done = r, done
	go func() {
		defer close(done)
		_, err := WriteArchive(w, l.header, l.stream.Body)
		_ = w.CloseWithError(err) // nil is io.EOF
	}()
}

func (l *liveReader) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if l.pipe != nil {
		_ = l.pipe.CloseWithError(hastate.ErrClosed)
		<-l.done
	}
	if err := l.stream.Body.Close(); err != nil {
		return fmt.Errorf("end the stream of the state: %w", err)
	}
	return nil
}
