// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"testing"
)

// TestVote_IsOneWrite: raft sets the term of its vote, then the candidate.
func TestVote_IsOneWrite(t *testing.T) {
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) {
			b := open(t, Options{Kind: kind})
			before := b.Stats().Writes.Count
			if err := errors.Join(b.SetUint64(voteTerm, 5), b.Set(voteCandidate, []byte("n2"))); err != nil {
				t.Fatal(err)
			}
			if n := b.Stats().Writes.Count - before; n != 1 {
				t.Errorf("a vote was written in %d writes", n)
			}
			// The first half of the next one: no vote was given.
			if err := b.SetUint64(voteTerm, 6); err != nil {
				t.Fatal(err)
			}
			if term, err := b.GetUint64(voteTerm); term != 5 || err != nil {
				t.Errorf("the vote is of term %d already: %v", term, err)
			}
			b.reopen()
			term, err := b.GetUint64(voteTerm)
			candidate, err2 := b.Get(voteCandidate)
			if err := errors.Join(err, err2); err != nil || term != 5 || string(candidate) != "n2" {
				t.Errorf("the vote is for %q in term %d: %v", candidate, term, err)
			}
			// A candidate alone, as in a folder of before, is set alone.
			if err := b.Set(voteCandidate, []byte("n3")); err != nil {
				t.Fatal(err)
			}
			if term, _ := b.GetUint64(voteTerm); term != 5 {
				t.Errorf("the term of the vote is %d", term)
			}
		})
	}
}
