// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hastate/hastate"
)

// framed gives the body of a record what stands before and behind it.
func framed(body []byte) []byte {
	b := append([]byte(metaMagic), binary.BigEndian.AppendUint32(nil, uint32(len(body)))...)
	b = append(b, body...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// FuzzSnapshotRecord reads any bytes as a snapshot's record, as they are and as the
// body of one: what is accepted is read back from what it is written as.
func FuzzSnapshotRecord(f *testing.F) {
	r := newRecord(3, 10, 2, conf, 1)
	r.Received, r.Size, r.StateIndex, r.StateTerm = true, 5, 12, 3
	good, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	body, err := json.Marshal(&r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(body)
	f.Add([]byte(`{"id":"../x","size":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, b := range [][]byte{data, framed(data)} {
			r, err := decodeRecord(b)
			if err != nil {
				continue
			}
			_, _ = r.reach()
			_ = r.meta()
			again, err := r.encode()
			if err != nil {
				t.Fatal(err)
			}
			back, err := decodeRecord(again)
			if err != nil || !reflect.DeepEqual(normal(back), normal(r)) {
				t.Fatalf("%+v was read back as %+v, %v", r, back, err)
			}
		}
	})
}

// normal is a record without the difference between no servers and none.
func normal(r *record) record {
	n := *r
	if len(n.Configuration) == 0 {
		n.Configuration = nil
	}
	return n
}

// FuzzReceive writes any bytes into a sink, in pieces: what is refused leaves nothing
// behind and the older snapshot stands; what is accepted is read back as it came.
func FuzzReceive(f *testing.F) {
	good := archive(f, 12, 3, false, "what came")
	f.Add(good, uint16(7))
	f.Add(good[:len(good)-1], uint16(100))
	f.Add(archive(f, 3, 3, true, ""), uint16(1))
	f.Add(archive(f, 3, 3, false, "too old"), uint16(1))
	f.Add([]byte(nil), uint16(0))
	f.Fuzz(func(t *testing.T, data []byte, piece uint16) {
		s := openStore(t, options(filepath.Join(memoryDir(t), "snapshots"), &state{index: 4}))
		old := live(t, s, 4, 1)
		before := files(t, s)
		sink := begin(t, s, 10, 2)
		for rest := data; len(rest) > 0; {
			n := min(len(rest), int(piece)+1)
			if _, err := sink.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := sink.Close(); err != nil {
			if !errors.Is(err, hastate.ErrInvalid) && !errors.Is(err, hastate.ErrPrecondition) {
				t.Fatalf("the error has no kind: %v", err)
			}
			if got := files(t, s); !slices.Equal(got, before) {
				t.Fatalf("%v is left, was %v", got, before)
			}
			if got := ids(t, s); !slices.Equal(got, []string{old}) {
				t.Fatalf("the snapshots are %v", got)
			}
			return
		}
		meta, rc, err := s.Open(sink.ID())
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		if _, h, pending := s.Pending(); !pending || h.GetIndex() < 10 || meta.Size != int64(len(data)) {
			t.Fatalf("%v %v %d", h, pending, meta.Size)
		}
		if _, h, _ := s.Pending(); h.GetBackup() {
			return // it is for this node alone until it is restored
		}
		if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%x was read back as %x, %v", data, got, err)
		}
	})
}

// FuzzSnapshotFolder damages the files of a store that has received a snapshot: it
// is refused, or reading ends with an error, or all is as it was.
func FuzzSnapshotFolder(f *testing.F) {
	const came = "what came, and it is not that short"
	dir := filepath.Join(memoryDir(f), "snapshots")
	s := openStore(f, options(dir, &state{index: 4}))
	id, err := receive(f, s, 10, 2, archive(f, 12, 3, false, came))
	if err != nil {
		f.Fatal(err)
	}
	meta, err1 := os.ReadFile(filepath.Join(dir, id+metaSuffix))
	data, err2 := os.ReadFile(filepath.Join(dir, id+dataSuffix))
	if err := errors.Join(err1, err2); err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), byte(0), uint16(0), byte(0), uint16(0))
	f.Add(uint16(20), byte(1), uint16(0), byte(0), uint16(0))
	f.Add(uint16(0), byte(0), uint16(60), byte(4), uint16(0))
	f.Add(uint16(0), byte(0), uint16(0), byte(0), uint16(9))
	f.Fuzz(func(t *testing.T, atMeta uint16, xMeta byte, atData uint16, xData byte, cut uint16) {
		dir := filepath.Join(memoryDir(t), "snapshots")
		m, d := bytes.Clone(meta), bytes.Clone(data)
		m[int(atMeta)%len(m)] ^= xMeta
		d[int(atData)%len(d)] ^= xData
		d = d[:len(d)-int(cut)%len(d)]
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, id+metaSuffix), m, 0o600),
			os.WriteFile(filepath.Join(dir, id+dataSuffix), d, 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err := Open(options(dir, &state{index: 4}))
		if err != nil {
			if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "join again") {
				t.Fatalf("it does not say what to do: %v", err)
			}
			if got := len(filesIn(t, dir)); got != 2 {
				t.Fatalf("%d files are left of a refused folder", got)
			}
			return
		}
		got, h, pending := s.Pending()
		if !pending || got != id || h.GetIndex() != 12 || h.GetTerm() != 3 {
			t.Fatalf("%s %v %v", got, h, pending)
		}
		_, rc, err := s.Open(id)
		if err != nil {
			return
		}
		defer rc.Close()
		h = rc.(*Archive).Header()
		if state, err := io.ReadAll(rc); err == nil && (string(state) != came || h.GetIndex() != 12 || h.GetTerm() != 3) {
			t.Fatalf("read %q of %v", state, h)
		}
	})
}

func filesIn(t testing.TB, dir string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}
