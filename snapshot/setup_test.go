// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// state is a Source with fixed bytes that counts its open streams.
type state struct {
	index, term, revision uint64
	data                  []byte
	open                  int
	fail                  error
}

type body struct {
	*bytes.Reader
	end func()
}

func (b *body) Close() error { b.end(); return nil }

func (s *state) BeginStream() (Stream, error) {
	if s.fail != nil {
		return Stream{}, s.fail
	}
	s.open++
	return Stream{
		Index: s.index, Term: s.term, Revision: s.revision, Size: int64(len(s.data)), ClusterID: "c1",
		Body: &body{bytes.NewReader(s.data), func() { s.open-- }},
	}, nil
}

var created = time.UnixMilli(1_700_000_000_000)

func options(dir string, src Source) Options {
	return Options{Dir: dir, Source: src, Version: "v1", Now: func() time.Time { return created }}
}

func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "snapshots")
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var conf = raft.Configuration{Servers: []raft.Server{
	{ID: "n1", Address: "n1", Suffrage: raft.Voter}, {ID: "n2", Address: "n2", Suffrage: raft.Nonvoter},
}}

func begin(t testing.TB, s *Store, index, term uint64) *Sink {
	t.Helper()
	sink, err := s.Create(raft.SnapshotVersionMax, index, term, conf, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sink.(*Sink)
}

// live takes a live snapshot.
func live(t testing.TB, s *Store, index, term uint64) string {
	t.Helper()
	sink := begin(t, s, index, term)
	if err := errors.Join(sink.Live(index), sink.Close()); err != nil {
		t.Fatal(err)
	}
	return sink.ID()
}

// receive writes an archive into a sink and closes it.
func receive(t testing.TB, s *Store, index, term uint64, archive []byte) (string, error) {
	t.Helper()
	sink := begin(t, s, index, term)
	if _, err := io.Copy(sink, iotestHalves{bytes.NewReader(archive)}); err != nil {
		return sink.ID(), errors.Join(err, sink.Cancel())
	}
	return sink.ID(), sink.Close()
}

// iotestHalves reads little at a time.
type iotestHalves struct{ r io.Reader }

func (h iotestHalves) Read(p []byte) (int, error) { return h.r.Read(p[:(len(p)+1)/2]) }

// archive makes one of a state of the index and term given.
func archive(t testing.TB, index, term uint64, backup bool, data string) []byte {
	t.Helper()
	h := NewHeader(Stream{Index: index, Term: term, Revision: 9, Size: int64(len(data)), ClusterID: "c1"}, backup, created, "v1")
	return encode(t, h, data)
}

func encode(t testing.TB, h *pb.ArchiveHeader, data string) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := WriteArchive(&b, h, strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) || n != ArchiveSize(h) {
		t.Fatalf("wrote %d bytes, counted %d, expected %d", b.Len(), n, ArchiveSize(h))
	}
	return b.Bytes()
}

// ids are the visible snapshots.
func ids(t testing.TB, s *Store) []string {
	t.Helper()
	metas, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range metas {
		ids = append(ids, m.ID)
	}
	return ids
}

func files(t testing.TB, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.dir.path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
