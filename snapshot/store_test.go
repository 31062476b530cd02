// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
)

func TestALiveSnapshotIsAPromiseAboutTheState(t *testing.T) {
	src := &state{index: 12, term: 3, revision: 4, data: []byte("the state")}
	s := openStore(t, options("", src))
	id := live(t, s, 10, 3)
	s = openStore(t, s.opts) // it survives a restart
	metas, err := s.List()
	if err != nil || len(metas) != 1 {
		t.Fatal(metas, err)
	}
	want := raft.SnapshotMeta{Version: 1, ID: id, Index: 10, Term: 3, Configuration: conf, ConfigurationIndex: 1}
	if !reflect.DeepEqual(*metas[0], want) {
		t.Fatalf("got %+v, want %+v", *metas[0], want)
	}
	meta, rc, err := s.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	a, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	if meta.Size != int64(len(a)) {
		t.Errorf("announced %d bytes, sent %d", meta.Size, len(a))
	}
	// The state has moved on since the snapshot; its own index goes with it.
	info, err := Inspect(bytes.NewReader(a))
	if err != nil || info.Header.GetIndex() != 12 || info.Header.GetTerm() != 3 || info.Header.GetClusterId() != "c1" {
		t.Error(info, err)
	}
	if err := errors.Join(rc.Close(), rc.Close()); err != nil || src.open != 0 {
		t.Errorf("%d streams open: %v", src.open, err)
	}
	if _, err := rc.Read(make([]byte, 1)); !errors.Is(err, hastate.ErrClosed) {
		t.Error(err)
	}
	if _, _, ok := s.Pending(); ok {
		t.Error("a live snapshot is pending")
	}
}

func TestTheIndexOfAStateIsRaisedToThatOfItsSnapshot(t *testing.T) {
	// Entries 9 and 10 were raft's own: the state machine is complete at 8.
	s := openStore(t, options("", &state{index: 8, term: 2, data: []byte("x")}))
	_, rc, err := s.Open(live(t, s, 10, 3))
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if h := rc.(*Archive).Header(); h.GetIndex() != 10 || h.GetTerm() != 3 {
		t.Error(h)
	}
}

func TestHeaderTurnsTheReaderToTheState(t *testing.T) {
	src := &state{index: 10, data: []byte("the state")}
	s := openStore(t, options("", src))
	live(t, s, 5, 1)
	received, err := receive(t, s, 10, 1, archive(t, 10, 1, false, "what came"))
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{ids(t, s)[1]: "the state", received: "what came"} {
		_, rc, err := s.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		a := rc.(*Archive)
		h := a.Header()
		got, err := io.ReadAll(rc)
		if string(got) != want || err != nil || h.GetStateBytes() != uint64(len(want)) || a.Live() != (id != received) {
			t.Errorf("%s: %q %v %v", id, got, h, err)
		}
		if err := errors.Join(rc.Close(), rc.Close()); err != nil {
			t.Error(err)
		}
	}
	if src.open != 0 {
		t.Errorf("%d streams open", src.open)
	}
}

func TestAClosedStreamEndsWithoutBeingRead(t *testing.T) {
	src := &state{data: bytes.Repeat([]byte("x"), 1<<20)}
	s := openStore(t, options("", src))
	id := live(t, s, 1, 1)
	for _, read := range []int{0, 1, 300_000} {
		_, rc, err := s.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, read)); err != nil {
			t.Fatal(err)
		}
		if err := rc.Close(); err != nil || src.open != 0 {
			t.Errorf("%d streams open: %v", src.open, err)
		}
	}
	src.fail = syscall.EIO
	if _, _, err := s.Open(id); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
}

func TestASinkTakesOneKindAndEndsOnce(t *testing.T) {
	s := openStore(t, options("", &state{}))
	sink := begin(t, s, 1, 1)
	if first, second := sink.Close(), sink.Close(); first == nil || !errors.Is(second, first) {
		t.Errorf("an empty sink closed with %v, then %v", first, second)
	}
	sink = begin(t, s, 1, 1)
	if err := errors.Join(sink.Cancel(), sink.Cancel()); err != nil {
		t.Error(err)
	}
	if err := sink.Close(); !errors.Is(err, hastate.ErrClosed) {
		t.Errorf("a cancelled sink closed with %v", err)
	}
	if err := sink.Live(1); !errors.Is(err, hastate.ErrClosed) {
		t.Error(err)
	}
	if _, err := sink.Write(nil); !errors.Is(err, hastate.ErrClosed) {
		t.Error(err)
	}
	sink = begin(t, s, 1, 1)
	if err := sink.Live(1); err != nil {
		t.Error(err)
	}
	if _, err := sink.Write([]byte("x")); !errors.Is(err, hastate.ErrInvalid) {
		t.Error(err)
	}
	if err := errors.Join(sink.Close(), sink.Close(), sink.Cancel()); err != nil {
		t.Error(err)
	}
	sink = begin(t, s, 2, 1)
	if _, err := sink.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := sink.Live(2); !errors.Is(err, hastate.ErrInvalid) {
		t.Error(err)
	}
	if err := sink.Cancel(); err != nil {
		t.Error(err)
	}
	if got := files(t, s); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
	if sink.Index() != 2 {
		t.Error(sink.Index())
	}
	if _, err := s.Create(0, 1, 1, conf, 1, nil); !errors.Is(err, hastate.ErrInvalid) {
		t.Error(err)
	}
	if _, _, err := s.Open("none"); !errors.Is(err, hastate.ErrNotFound) {
		t.Error(err)
	}
}

func TestTwoSnapshotsAreKeptNewestFirst(t *testing.T) {
	s := openStore(t, options("", &state{}))
	var want []string
	for i := uint64(1); i <= 5; i++ {
		want = append([]string{live(t, s, i, 1)}, want...)
		want = want[:min(len(want), 2)]
		if got := ids(t, s); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	// A snapshot that was begun early and finished late is no newer for it.
	late := live(t, s, 4, 1)
	if got := ids(t, s); got[0] != want[0] || slices.Contains(got, late) && len(got) > 2 {
		t.Fatalf("got %v", got)
	}
	s = openStore(t, s.opts)
	if got := ids(t, s); got[0] != want[0] || len(files(t, s)) != 2 {
		t.Fatalf("got %v in %v", got, files(t, s))
	}
	if next := live(t, s, 9, 1); slices.Contains(want, next) || next == late {
		t.Errorf("the id %s is used again", next)
	}
}

func TestLeftoversAreRemovedAtOpen(t *testing.T) {
	s := openStore(t, options("", &state{}))
	id := live(t, s, 1, 1)
	for _, name := range []string{"a" + dataSuffix + tmpSuffix, "a" + metaSuffix + tmpSuffix, "a" + dataSuffix, id + dataSuffix} {
		if err := os.WriteFile(s.dir.file(name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, s.opts)
	if got := files(t, s); !slices.Equal(got, []string{id + metaSuffix}) {
		t.Fatalf("left behind: %v", got)
	}
}

func TestADamagedRecordIsRefusedWithWords(t *testing.T) {
	s := openStore(t, options("", &state{}))
	id := live(t, s, 7, 2)
	name := s.dir.file(id + metaSuffix)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string) {
		t.Helper()
		_, err := Open(s.opts)
		if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "join again") {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 4
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		refused("flipped")
		if err := os.WriteFile(name, good[:i], 0o600); err != nil {
			t.Fatal(err)
		}
		refused("truncated")
	}
	if err := os.Rename(name, s.dir.file("other"+metaSuffix)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.dir.file("other"+metaSuffix), good, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("renamed")
}

// TestTheRecordIsComplete: every field of it survives the file.
func TestTheRecordIsComplete(t *testing.T) {
	r := &record{
		Sequence: 1, Order: 2, ID: "i", Index: 3, Term: 4, Configuration: []server{{"a", "b", 1}}, ConfigurationIndex: 5,
		Installed: true, Received: true, Size: 6, StateIndex: 7, StateTerm: 8, Backup: true, Durable: 9,
	}
	for i, v := 0, reflect.ValueOf(*r); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Fatalf("the test leaves %s out", v.Type().Field(i).Name)
		}
	}
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeRecord(b); err != nil || !reflect.DeepEqual(got, r) {
		t.Fatalf("got %+v %v, want %+v", got, err, r)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{{}, {Dir: "x"}, {Source: &state{}}} {
		if _, err := Open(o); !errors.Is(err, hastate.ErrInvalid) {
			t.Error(err)
		}
	}
	if _, err := Open(options(filepath.Join(t.TempDir(), "no", "parent"), &state{})); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestSourceFunc(t *testing.T) {
	src := &state{index: 3}
	if got, err := SourceFunc(src.BeginStream).BeginStream(); err != nil || got.Index != 3 || got.Body.Close() != nil {
		t.Error(got, err)
	}
}
