// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// FuzzSeal: an entry is read back as it was stored, and one that was changed
// afterwards is refused.
func FuzzSeal(f *testing.F) {
	f.Add(uint64(1), uint64(2), byte(0), []byte("data"), []byte("more"), byte(1), uint16(3))
	f.Add(uint64(0), uint64(0), byte(5), []byte(nil), []byte(nil), byte(0), uint16(0))
	f.Fuzz(func(t *testing.T, index, term uint64, kind byte, data, extensions []byte, x byte, at uint16) {
		l := &raft.Log{Index: index, Term: term, Type: raft.LogType(kind), Data: data, Extensions: extensions}
		s := seal(l)
		got := *s
		if err := unseal(index, &got); err != nil {
			t.Fatal(err)
		}
		if got.Index != index || got.Term != term || got.Type != l.Type || !bytes.Equal(got.Data, data) || !bytes.Equal(got.Extensions, extensions) {
			t.Fatalf("%+v was read back as %+v", l, got)
		}
		if x == 0 {
			return
		}
		changed := *s
		changed.Data, changed.Extensions = bytes.Clone(s.Data), bytes.Clone(s.Extensions)
		if i := int(at) % (len(changed.Data) + len(changed.Extensions)); i < len(changed.Data) {
			changed.Data[i] ^= x
		} else {
			changed.Extensions[i-len(changed.Data)] ^= x
		}
		if unseal(index, &changed) == nil {
			t.Fatalf("a changed byte of %+v is not noticed", l)
		}
	})
}

// FuzzUnseal reads what it is given as an entry and as a stable value: what is
// accepted is what would be written.
func FuzzUnseal(f *testing.F) {
	s := seal(entry(1, 2))
	f.Add(uint64(2), s.Data, s.Extensions)
	f.Add(uint64(0), []byte("CurrentTerm"), sealValue([]byte("CurrentTerm"), []byte("12345678")))
	f.Add(uint64(0), []byte(nil), []byte(nil))
	f.Fuzz(func(t *testing.T, index uint64, data, stored []byte) {
		l := raft.Log{Index: index, Term: 1, Data: data, Extensions: stored}
		if unseal(index, &l) == nil {
			if again := seal(&l); !bytes.Equal(again.Extensions, stored) {
				t.Fatalf("%x was accepted and is written as %x", stored, again.Extensions)
			}
		}
		value, err := unsealValue(data, stored)
		if err == nil && !bytes.Equal(sealValue(data, value), stored) {
			t.Fatalf("%x was accepted and is written otherwise", stored)
		}
	})
}

// FuzzLogFile damages a log file in up to four places and cuts it: it is refused, or
// each entry that is served is one that was once stored at its index, and the term
// and the vote are those that were written last.
//
// It may be an older one, or miss entries: where two places of a file agree on an
// older page that is right by itself nothing tells. TestAFlippedBitNeverChangesHistory
// holds for one bit.
func FuzzLogFile(f *testing.F) {
	good, want := agedLog(f)
	path := filepath.Join(memoryDir(f), "fuzz.db")
	f.Add([]byte{0, 0, 16, 60, 1}, uint32(0))                  // a meta page
	f.Add([]byte{0, 0, 32, 10, 1, 0, 0, 48, 10, 1}, uint32(0)) // how many elements two pages have
	f.Add([]byte{0, 0, 48, 24, 3}, uint32(0))
	f.Add([]byte(nil), uint32(8192))
	f.Fuzz(func(t *testing.T, damage []byte, cut uint32) {
		data := bytes.Clone(good)
		for ; len(damage) >= 5 && len(damage) <= 20; damage = damage[5:] {
			data[int(binary.BigEndian.Uint32(damage))%len(data)] ^= damage[4]
		}
		if cut != 0 {
			data = data[:int(cut)%len(data)]
		}
		found, opened := damagedOpen(t, path, data)
		if !opened || found == want {
			return
		}
		if wrong := wasStored(found, want); wrong != "" {
			t.Fatalf("nobody has stored this: %s", wrong)
		}
	})
}

func TestStoredKnowsTheAgedLog(t *testing.T) {
	_, want := agedLog(t)
	missing := []string{}
	for line := range strings.Lines(want) {
		if !stored[line] {
			missing = append(missing, strings.Fields(line)[0])
		}
	}
	if !reflect.DeepEqual(missing, []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"}) {
		t.Error(missing)
	}
}
