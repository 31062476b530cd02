// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// golden is an archive of format 1: it has to stay readable for ever, and this
// program has to go on making it.
const golden = "484153544154451a" + // magic
	"00000001" + // format
	"0000001b" + // header length
	"0801" + "12026331" + "1805" + "2002" + "2809" + "3003" + "3801" + "4080d095ffbc31" + "4a027631" +
	"4b7aeaf6" + // header checksum
	"616263" + // state
	"3bf73246" // checksum

func TestGoldenArchive(t *testing.T) {
	h := NewHeader(Stream{Index: 5, Term: 2, Revision: 9, Size: 3, ClusterID: "c1"}, true, created, "v1")
	if got := hex.EncodeToString(encode(t, h, "abc")); got != golden {
		t.Errorf("got  %s\nwant %s", got, golden)
	}
	a, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(a))
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); string(data) != "abc" || err != nil || !proto.Equal(r.Header(), h) {
		t.Errorf("%q %v %v", data, r.Header(), err)
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(rt, "data")
		h := &pb.ArchiveHeader{
			Format: Format, ClusterId: rapid.String().Draw(rt, "cluster"), Index: rapid.Uint64().Draw(rt, "index"),
			Term: rapid.Uint64().Draw(rt, "term"), Revision: rapid.Uint64().Draw(rt, "revision"), StateBytes: uint64(len(data)),
			Backup: rapid.Bool().Draw(rt, "backup"), CreatedUnixMs: rapid.Int64().Draw(rt, "created"), Version: rapid.String().Draw(rt, "version"),
		}
		a := encode(t, h, string(data))
		r, err := NewReader(bytes.NewReader(a))
		if err != nil {
			rt.Fatal(err)
		}
		if !proto.Equal(r.Header(), h) {
			rt.Fatalf("header %v, want %v", r.Header(), h)
		}
		got, err := io.ReadAll(iotest.OneByteReader(r))
		if err != nil || !bytes.Equal(got, data) {
			rt.Fatalf("read %d bytes of %d: %v", len(got), len(data), err)
		}
		info, err := Inspect(iotest.DataErrReader(bytes.NewReader(a)))
		if err != nil || info.Size != int64(len(a)) || !proto.Equal(info.Header, h) {
			rt.Fatalf("%+v %v", info, err)
		}
		m := RestoreMeta(info)
		if m.Size != int64(len(a)) || m.Index != h.GetIndex() || m.Version != 1 {
			rt.Fatalf("%+v", m)
		}
	})
}

func TestADamagedArchiveNeverEndsWell(t *testing.T) {
	good := archive(t, 5, 2, false, strings.Repeat("state ", 50))
	check := func(name string, a []byte) {
		t.Helper()
		if _, err := Inspect(bytes.NewReader(a)); !errors.Is(err, hastate.ErrInvalid) && !errors.Is(err, hastate.ErrPrecondition) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			a := bytes.Clone(good)
			a[i] ^= bit
			check("flipped", a)
		}
		check("truncated", good[:i])
	}
	check("followed by more", append(bytes.Clone(good), 0))
	check("something else", []byte("not an archive, but long enough to have a header"))
}

func TestANewerFormatIsRefusedWithWords(t *testing.T) {
	a := archive(t, 5, 2, false, "abc")
	binary.BigEndian.PutUint32(a[len(magic):], Format+1)
	_, err := NewReader(bytes.NewReader(a))
	if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "use a newer program") {
		t.Fatal(err)
	}
}

func TestTheReaderPassesOnErrorsOfItsSource(t *testing.T) {
	a := archive(t, 5, 2, false, "abcdef")
	for cut := range a {
		r := io.MultiReader(bytes.NewReader(a[:cut]), iotest.ErrReader(io.ErrClosedPipe))
		if _, err := Inspect(r); !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("after %d bytes: %v", cut, err)
		}
	}
	// An error sticks: the end of a damaged state is not its second Read.
	r, err := NewReader(bytes.NewReader(a[:len(a)-5]))
	if err != nil {
		t.Fatal(err)
	}
	_, first := io.ReadAll(r)
	n, second := r.Read(make([]byte, 1))
	if first == nil || n != 0 || !errors.Is(second, first) {
		t.Fatal(first, second)
	}
	if n, err := r.Read(nil); n != 0 || err == nil {
		t.Fatal("an empty read forgets the error")
	}
}

func TestWriteArchiveRefusesWhatDoesNotFit(t *testing.T) {
	h := NewHeader(Stream{Size: 3}, false, created, "")
	for _, data := range []string{"ab", "abcd"} {
		if _, err := WriteArchive(io.Discard, h, strings.NewReader(data)); err == nil {
			t.Errorf("a state of %d bytes passed for 3", len(data))
		}
	}
	if _, err := WriteArchive(io.Discard, &pb.ArchiveHeader{Format: 2}, strings.NewReader("")); !errors.Is(err, hastate.ErrInvalid) {
		t.Error(err)
	}
	if _, err := WriteArchive(io.Discard, &pb.ArchiveHeader{Format: 1, Version: strings.Repeat("v", maxHeaderBytes)}, strings.NewReader("")); !errors.Is(err, hastate.ErrLimit) {
		t.Error(err)
	}
	if _, err := WriteArchive(failing{}, h, strings.NewReader("abc")); !errors.Is(err, io.ErrShortWrite) {
		t.Error(err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// FuzzReader: no input makes the reader panic, allocate beyond its limits or end
// well without being a whole archive.
func FuzzReader(f *testing.F) {
	f.Add(archive(f, 5, 2, false, "abc"))
	f.Add(archive(f, 1, 1, true, ""))
	f.Add([]byte(magic))
	f.Add(append([]byte(magic), 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := Inspect(bytes.NewReader(b))
		if err != nil {
			return
		}
		if info.Size != int64(len(b)) || info.Header.GetStateBytes() > uint64(len(b)) {
			t.Fatalf("%+v for %d bytes", info, len(b))
		}
		end := len(b) - crcBytes
		if crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
			t.Fatal("a wrong checksum was accepted")
		}
	})
}
