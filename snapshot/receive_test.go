// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hastate/hastate"
)

// calls records what the log was told.
type calls struct{ got []string }

func (c *calls) hook(o Options) Options {
	o.OnReceived = func(index, term uint64) error {
		c.got = append(c.got, fmt.Sprintf("received %d/%d", index, term))
		return nil
	}
	o.OnInstalled = func(index, term, state uint64) {
		c.got = append(c.got, fmt.Sprintf("installed %d/%d to %d", index, term, state))
	}
	return o
}

func (c *calls) want(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(c.got, want) {
		t.Fatalf("the log was told %q, want %q", c.got, want)
	}
	c.got = nil
}

func TestAReceivedSnapshotIsPendingUntilItIsRestored(t *testing.T) {
	var log calls
	s := openStore(t, log.hook(options("", &state{index: 4})))
	live(t, s, 4, 1)
	log.want(t)
	if got := s.Covers(); got != 0 {
		t.Fatal("its own snapshot covers entries that were not in the log, up to", got)
	}
	id, err := receive(t, s, 10, 2, archive(t, 12, 3, false, "what came"))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Covers(); got != 12 {
		t.Fatal("covered up to", got)
	}
	log.want(t, "received 10/2", "installed 10/2 to 12")
	check := func(s *Store) {
		t.Helper()
		got, h, ok := s.Pending()
		if !ok || got != id || h.GetIndex() != 12 || h.GetTerm() != 3 || h.GetBackup() {
			t.Fatal(got, h, ok)
		}
		_, rc, err := s.Open(got)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		if h := rc.(*Archive).Header(); h.GetIndex() != 12 || h.GetTerm() != 3 {
			t.Fatal(h)
		}
		if data, err := io.ReadAll(rc); string(data) != "what came" || err != nil {
			t.Fatal(string(data), err)
		}
	}
	check(s)
	// A crash before the state machine has taken it over.
	s = openStore(t, s.opts)
	log.want(t, "received 10/2", "installed 10/2 to 12")
	check(s)
	// Below its index nothing is taken over.
	if err := s.Restored(11); err != nil {
		t.Fatal(err)
	}
	check(s)
	if err := errors.Join(s.Restored(12), s.Restored(12)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, ok := s.Pending(); ok {
			t.Fatal("still pending")
		}
		if got := files(t, s); slices.ContainsFunc(got, func(n string) bool { return strings.HasSuffix(n, dataSuffix) }) {
			t.Fatalf("the data is still there: %v", got)
		}
		if got := ids(t, s); got[0] != id {
			t.Fatal(got)
		}
		s = openStore(t, s.opts)
		log.want(t, "installed 10/2 to 12")
	}
}

// What was received goes further than the log for a while: until the log has come as
// far, it takes more than newer snapshots for its record to go.
func TestAReceivedSnapshotIsKeptUntilTheLogIsPastIt(t *testing.T) {
	s := openStore(t, options("", &state{index: 4}))
	id, err := receive(t, s, 10, 2, archive(t, 30, 2, false, "what came"))
	if err = errors.Join(err, s.Restored(30)); err != nil {
		t.Fatal(err)
	}
	for i := uint64(11); i <= 30; i++ {
		newest := live(t, s, i, 2)
		for range 2 {
			got := ids(t, s)
			if got[0] != newest || len(got) > DefaultRetain+1 {
				t.Fatalf("at %d: %v", i, got)
			}
			if kept := slices.Contains(got, id); s.Covers() == 30 != kept || i < 30 && !kept || i == 30 && kept {
				t.Fatalf("at %d: %v cover entries up to %d", i, got, s.Covers())
			}
			s = openStore(t, s.opts)
		}
	}
}

func TestAnOpenedSnapshotOutlivesItsTakeover(t *testing.T) {
	src := &state{}
	s := openStore(t, options("", src))
	id, err := receive(t, s, 10, 2, archive(t, 10, 2, false, "what came"))
	if err != nil {
		t.Fatal(err)
	}
	_, rc, err := s.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if err := s.Restored(10); err != nil {
		t.Fatal(err)
	}
	if info, err := Inspect(rc); err != nil || info.Header.GetIndex() != 10 {
		t.Fatal(info, err)
	}
}

func TestADamagedArchiveIsRefusedAndChangesNothing(t *testing.T) {
	var log calls
	s := openStore(t, log.hook(options("", &state{index: 4})))
	old := live(t, s, 4, 1)
	good := archive(t, 10, 2, false, strings.Repeat("state ", 100))
	bad := map[string][]byte{
		"flipped bit":        flip(good, len(good)/2),
		"flipped in header":  flip(good, 20),
		"truncated":          good[:len(good)-1],
		"truncated state":    good[:len(good)/2],
		"followed by more":   append(bytes.Clone(good), "more"...),
		"no archive":         []byte("hello"),
		"state behind index": archive(t, 9, 2, false, "x"),
	}
	for name, a := range bad {
		if _, err := receive(t, s, 10, 2, a); !errors.Is(err, hastate.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if got := ids(t, s); !slices.Equal(got, []string{old}) {
			t.Errorf("%s: visible are %v", name, got)
		}
		if got := files(t, s); !slices.Equal(got, []string{old + metaSuffix}) {
			t.Errorf("%s: files are %v", name, got)
		}
	}
	log.want(t)
}

func flip(a []byte, at int) []byte {
	a = bytes.Clone(a)
	a[at] ^= 1
	return a
}

// TestABrokenDiskLeavesTheOldSnapshot fails every step of taking a snapshot, live
// and received, once: the old snapshot stands, now and after a restart.
func TestABrokenDiskLeavesTheOldSnapshot(t *testing.T) {
	for _, kind := range []string{"live", "received"} {
		for step := 0; ; step++ {
			fault := &stepFault{at: -1}
			o := options("", &state{index: 4})
			o.Fault = fault
			s := openStore(t, o)
			old := live(t, s, 4, 1)
			fault.at, fault.n = step, 0
			var err error
			if kind == "live" {
				sink := begin(t, s, 10, 2)
				err = errors.Join(sink.Live(10), sink.Close())
			} else {
				_, err = receive(t, s, 10, 2, archive(t, 10, 2, false, strings.Repeat("state ", 10_000)))
			}
			if err == nil {
				if step < 3 {
					t.Fatalf("%s has only %d steps", kind, step)
				}
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			fault.at = -1
			for range 2 {
				if got := ids(t, s); !slices.Equal(got, []string{old}) {
					t.Fatalf("%s, step %d: visible are %v", kind, step, got)
				}
				if got := files(t, s); !slices.Equal(got, []string{old + metaSuffix}) {
					t.Fatalf("%s, step %d: files are %v", kind, step, got)
				}
				s = openStore(t, s.opts)
			}
			live(t, s, 11, 2) // and the store goes on
		}
	}
}

type stepFault struct{ at, n int }

func (f *stepFault) Before(string, string) error {
	f.n++
	if f.n-1 == f.at {
		return syscall.ENOSPC
	}
	return nil
}

func TestAStateThatGoesLessFarThanOursIsRefused(t *testing.T) {
	s := openStore(t, options("", &state{index: 20}))
	old := live(t, s, 20, 2)
	if _, err := receive(t, s, 10, 2, archive(t, 19, 2, false, "x")); !errors.Is(err, hastate.ErrPrecondition) {
		t.Fatal(err)
	}
	if got := ids(t, s); !slices.Equal(got, []string{old}) || len(files(t, s)) != 1 {
		t.Fatal(got, files(t, s))
	}
}

// TestAnInstalledSnapshotReplacesThoseAboveIt: after a recovery with another last
// index the leader's snapshot may lie below ours; ours is not history any more.
func TestAnInstalledSnapshotReplacesThoseAboveIt(t *testing.T) {
	s := openStore(t, options("", &state{index: 20}))
	live(t, s, 5, 1)
	live(t, s, 20, 2)
	id, err := receive(t, s, 18, 3, archive(t, 25, 3, false, "x"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := ids(t, s); got[0] != id || len(got) != 2 {
			t.Fatalf("visible are %v", got)
		}
		if err := s.Restored(25); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, s.opts)
	}
	newer := live(t, s, 26, 3)
	if got := ids(t, s); got[0] != newer {
		t.Fatal(got)
	}
}

func TestABackupGetsTheIndexOfItsSnapshot(t *testing.T) {
	src := &state{index: 30, term: 4, data: []byte("live")}
	var log calls
	s := openStore(t, log.hook(options("", src)))
	live(t, s, 30, 4)
	a := archive(t, 1000, 7, true, "from the backup") // of another log: its index means nothing here
	id, err := receive(t, s, 42, 5, a)
	if err != nil {
		t.Fatal(err)
	}
	log.want(t, "received 42/5", "installed 42/5 to 42")
	if got, h, ok := s.Pending(); !ok || got != id || h.GetIndex() != 42 || h.GetTerm() != 5 || !h.GetBackup() {
		t.Fatal(got, h, ok)
	}
	// The state machine of this node takes it over; other nodes must not: what it
	// becomes depends on the state here.
	meta, rc, err := s.Open(id)
	if err != nil || meta.Size != int64(len(a)) {
		t.Fatal(meta, err)
	}
	if _, err := io.ReadAll(rc); !errors.Is(err, hastate.ErrPrecondition) {
		t.Errorf("the backup was sent on: %v", err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
	if _, rc, err = s.Open(id); err != nil {
		t.Fatal(err)
	}
	if h := rc.(*Archive).Header(); h.GetIndex() != 42 || h.GetTerm() != 5 || !h.GetBackup() || h.GetStateBytes() != 15 {
		t.Fatal(h)
	}
	if data, err := io.ReadAll(rc); string(data) != "from the backup" || err != nil {
		t.Fatal(string(data), err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
	// Once it has, others get the result, even before Restored was called.
	src.index, src.term, src.data = 42, 5, []byte("restored")
	_, rc, err = s.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	info, err := Inspect(rc)
	if err != nil || info.Header.GetBackup() || info.Header.GetIndex() != 42 || !rc.(*Archive).Live() {
		t.Fatal(info, err)
	}
	if err := rc.Close(); err != nil || src.open != 0 {
		t.Fatalf("%d streams open: %v", src.open, err)
	}
}

func TestALogThatCannotBePreparedKeepsTheSnapshotFromRaft(t *testing.T) {
	o := options("", &state{index: 4})
	o.OnReceived = func(uint64, uint64) error { return syscall.EIO }
	s := openStore(t, o)
	old := live(t, s, 4, 1)
	id, err := receive(t, s, 10, 2, archive(t, 10, 2, false, "x"))
	if !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if got := ids(t, s); !slices.Equal(got, []string{old}) {
		t.Fatalf("visible are %v", got)
	}
	// Nothing may push it out: the log may have been trimmed for it.
	sink := begin(t, s, 11, 2)
	if err := errors.Join(sink.Live(11), sink.Close()); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if _, err := Open(s.opts); !errors.Is(err, syscall.EIO) {
		t.Fatalf("opened with a log that cannot be prepared: %v", err)
	}
	o.OnReceived = nil
	o.Dir = s.opts.Dir
	s = openStore(t, o)
	if got, _, ok := s.Pending(); !ok || got != id {
		t.Fatal("the snapshot is lost")
	}
}

func TestMissingDataOfAReceivedSnapshotIsRefused(t *testing.T) {
	s := openStore(t, options("", &state{}))
	id, err := receive(t, s, 10, 2, archive(t, 10, 2, false, "x"))
	if err != nil {
		t.Fatal(err)
	}
	name := s.dir.file(id + dataSuffix)
	if err := os.Truncate(name, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.opts); !errors.Is(err, hastate.ErrPrecondition) {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.opts); !errors.Is(err, hastate.ErrPrecondition) {
		t.Fatal(err)
	}
	if _, _, err := s.Open(id); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}
