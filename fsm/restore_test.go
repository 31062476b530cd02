// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// archive is a snapshot in memory.
type archive struct {
	io.Reader
	header *pb.ArchiveHeader
	closed bool
}

func (a *archive) Header() *pb.ArchiveHeader { return a.header }
func (a *archive) Close() error              { a.closed = true; return nil }

// wrapped is what Raft puts around a snapshot.
type wrapped struct{ io.ReadCloser }

func (w wrapped) WrappedReadCloser() io.ReadCloser { return w.ReadCloser }

var _ raft.ReadCloserWrapper = wrapped{}

// save streams a Machine's state.
func save(t tb, m *Machine) (*pb.ArchiveHeader, []byte) {
	t.Helper()
	s, err := m.BeginStream()
	if err != nil {
		t.Fatalf("begin stream: %v", err)
	}
	var b bytes.Buffer
	n, err := s.WriteTo(&b)
	if err = errors.Join(err, s.Close(), s.Close()); err != nil {
		t.Fatalf("stream: %v", err)
	}
	if n != s.Size || int64(b.Len()) != s.Size {
		t.Fatalf("streamed %d bytes, said %d", b.Len(), s.Size)
	}
	return &pb.ArchiveHeader{
		ClusterId: s.ClusterID, Index: s.Index, Term: s.Term, Revision: s.Revision, StateBytes: uint64(s.Size),
	}, b.Bytes()
}

func restore(m *Machine, h *pb.ArchiveHeader, data []byte) error {
	return m.Restore(wrapped{&archive{Reader: bytes.NewReader(data), header: h}})
}

// fullMachine is a Machine with something of everything.
func fullMachine(t *testing.T) *Machine {
	t.Helper()
	m := newMachine(t)
	must(t, m, initCluster("c1"), openClient("w"), setMember("n1"), registerModel("m", "1", digestA), report("g", "n1"))
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1"}))
	for i := range 300 {
		must(t, m, with(2, uint64(i+1), uint64(i/2), put("g", fmt.Sprintf("s%03d", i), strings.Repeat("v", 100))))
	}
	return m
}

func TestRestore(t *testing.T) {
	from := fullMachine(t)
	h, data := save(t, from)
	path := filepath.Join(t.TempDir(), "state.db")
	to := open(t, quiet(path))
	must(t, to, put("old", "s", "v"))
	f := subscribe(t, to, 0)
	defer f.Close()
	changed := to.Changed()
	if err := restore(to, h, data); err != nil {
		t.Fatal(err)
	}
	<-changed
	if hashOf(t, to) != hashOf(t, from) || to.Flushed() != h.GetIndex() {
		t.Errorf("restored state differs; flushed %d, index %d", to.Flushed(), h.GetIndex())
	}
	if _, err := f.Next(context.Background()); !errors.Is(err, hastate.ErrCompacted) {
		t.Errorf("feed after a restore: %v", err)
	}
	if _, found, _ := to.Session("old", "s"); found {
		t.Error("the old state is still there")
	}
	// Both go on alike, also over a restart.
	for _, m := range []*Machine{from, to} {
		must(t, m, put("g", "s000", "w"))
	}
	closeMachine(t, to)
	to = open(t, quiet(path))
	defer func() { closeMachine(t, to) }()
	if hashOf(t, to) != hashOf(t, from) {
		t.Error("the states differ after a restart")
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("files: %v, %v", left, err)
	}
}

func TestRestoreWithoutHeader(t *testing.T) {
	from := fullMachine(t)
	_, data := save(t, from)
	to := newMachine(t)
	if err := to.Restore(io.NopCloser(bytes.NewReader(data))); err != nil {
		t.Fatal(err)
	}
	if hashOf(t, to) != hashOf(t, from) {
		t.Error("restored state differs")
	}
}

// TestRestoreCoversRaftsOwnEntries: the snapshot's index may be that of a no-op.
func TestRestoreCoversRaftsOwnEntries(t *testing.T) {
	h, data := save(t, fullMachine(t))
	h.Index, h.Term = h.GetIndex()+2, 5
	path := filepath.Join(t.TempDir(), "state.db")
	m := open(t, quiet(path))
	if err := restore(m, h, data); err != nil {
		t.Fatal(err)
	}
	if m.Flushed() != h.GetIndex() {
		t.Errorf("flushed %d, want %d", m.Flushed(), h.GetIndex())
	}
	closeMachine(t, m)
	m = open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	if index, term := m.Applied(); index != h.GetIndex() || term != 5 {
		t.Errorf("applied %d of term %d, want %d", index, term, h.GetIndex())
	}
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

// TestFailedRestoreChangesNothing tries everything that can be wrong with a
// snapshot.
func TestFailedRestoreChangesNothing(t *testing.T) {
	h, data := save(t, fullMachine(t))
	checksum := errors.New("checksum is wrong")
	path := filepath.Join(t.TempDir(), "state.db")
	m := open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	must(t, m, initCluster("c1"), put("g", "s", "mine"))
	before := hashOf(t, m)
	edit := func(fn func(h *pb.ArchiveHeader)) *pb.ArchiveHeader {
		c := clone(h)
		fn(c)
		return c
	}
	flipped := append([]byte(nil), data...)
	for i := range flipped {
		if i > 2*os.Getpagesize() && i%os.Getpagesize() < 64 {
			flipped[i] ^= 0x55
		}
	}
	for name, tc := range map[string]struct {
		h *pb.ArchiveHeader
		r io.Reader
	}{
		"read error":         {h, io.MultiReader(bytes.NewReader(data), brokenReader{checksum})},
		"cut off":            {h, bytes.NewReader(data[:len(data)/2])},
		"cut, header ok":     {edit(func(h *pb.ArchiveHeader) { h.StateBytes /= 2 }), bytes.NewReader(data[:len(data)/2])},
		"empty":              {edit(func(h *pb.ArchiveHeader) { h.StateBytes = 0 }), bytes.NewReader(nil)},
		"too long":           {h, io.MultiReader(bytes.NewReader(data), strings.NewReader("x"))},
		"flipped bits":       {h, bytes.NewReader(flipped)},
		"other cluster":      {edit(func(h *pb.ArchiveHeader) { h.ClusterId = "c2" }), bytes.NewReader(data)},
		"other revision":     {edit(func(h *pb.ArchiveHeader) { h.Revision++ }), bytes.NewReader(data)},
		"backup in the past": {edit(func(h *pb.ArchiveHeader) { h.Backup, h.Index = true, 1 }), bytes.NewReader(data)},
	} {
		a := &archive{Reader: tc.r, header: tc.h}
		err := m.Restore(a)
		if err == nil || !a.closed {
			t.Errorf("%s: restored with error %v, closed %v", name, err, a.closed)
		}
		if name == "read error" && !errors.Is(err, checksum) {
			t.Errorf("%s: %v", name, err)
		}
		if hashOf(t, m) != before {
			t.Errorf("%s: the state changed", name)
		}
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
			t.Errorf("%s: files %v, %v", name, left, err)
		}
	}
	must(t, m, put("g", "s", "still mine"))
	flush(t, m)
}

// TestStreamSurvivesWritesAndRestore: a stream is of one moment, and a slow one
// holds nobody up.
func TestStreamSurvivesWritesAndRestore(t *testing.T) {
	from := fullMachine(t)
	expect := hashOf(t, from)
	other, otherData := save(t, fullMachine(t))
	s, err := from.BeginStream()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		must(t, from, put("g", fmt.Sprintf("t%d", i), strings.Repeat("w", 5000)))
		flush(t, from)
	}
	if err := restore(from, other, otherData); err != nil {
		t.Fatal(err)
	}
	must(t, from, put("g", "after", "restore"))
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	to := newMachine(t)
	if err := to.Restore(io.NopCloser(&b)); err != nil {
		t.Fatal(err)
	}
	if hashOf(t, to) != expect {
		t.Error("the stream is not the state as it was")
	}
}

func TestReadersGoOnDuringRestore(t *testing.T) {
	h, data := save(t, fullMachine(t))
	m := newMachine(t)
	if err := restore(m, h, data); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, found, err := m.Session("g", "s000"); !found || err != nil {
					t.Errorf("read during a restore: %v, %v", found, err)
					return
				}
				if len(m.Groups()) != 1 {
					t.Error("a group is missing during a restore")
					return
				}
			}
		})
	}
	for range 5 {
		if err := restore(m, h, data); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	readers.Wait()
}

// plainSink is a snapshot sink that keeps a copy.
type plainSink struct {
	bytes.Buffer
	closed bool
}

func (s *plainSink) ID() string    { return "1" }
func (s *plainSink) Cancel() error { return nil }
func (s *plainSink) Close() error  { s.closed = true; return nil }

func TestPersistIntoAPlainSink(t *testing.T) {
	from := fullMachine(t)
	snap, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var s plainSink
	if err := snap.Persist(&s); err != nil || !s.closed {
		t.Fatalf("persist: %v, closed %v", err, s.closed)
	}
	to := newMachine(t)
	if err := to.Restore(io.NopCloser(&s.Buffer)); err != nil {
		t.Fatal(err)
	}
	if hashOf(t, to) != hashOf(t, from) {
		t.Error("restored state differs")
	}
}

type liveArchive struct{ archive }

func (l *liveArchive) Live() bool { return true }

func TestRestoreOfItsOwnState(t *testing.T) {
	m := fullMachine(t)
	before := hashOf(t, m)
	a := &liveArchive{archive{Reader: brokenReader{errors.New("read")}}}
	if err := m.Restore(wrapped{a}); err != nil || !a.closed {
		t.Errorf("restore: %v, closed %v", err, a.closed)
	}
	if hashOf(t, m) != before {
		t.Error("the state changed")
	}
}
