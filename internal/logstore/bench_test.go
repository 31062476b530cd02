// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

// BenchmarkStoreLogs is one durable append of some entries of 1 KiB.
func BenchmarkStoreLogs(b *testing.B) {
	for _, kind := range Kinds {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/entries=%d", kind, n), func(b *testing.B) {
				s := open(b, Options{Kind: kind, SegmentBytes: 16 << 20})
				data := make([]byte, 1024)
				index := uint64(0)
				for b.Loop() {
					logs := make([]*raft.Log, n)
					for i := range logs {
						index++
						logs[i] = &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
					}
					if err := s.StoreLogs(logs); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkVote is what raft writes for a vote of a new term.
func BenchmarkVote(b *testing.B) {
	for _, kind := range Kinds {
		b.Run(string(kind), func(b *testing.B) {
			s := open(b, Options{Kind: kind, SegmentBytes: 16 << 20})
			term := uint64(0)
			for b.Loop() {
				term++
				for _, err := range []error{s.SetUint64([]byte("CurrentTerm"), term), s.SetUint64(voteTerm, term), s.Set(voteCandidate, []byte("n1"))} {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
