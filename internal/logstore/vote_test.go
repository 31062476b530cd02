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

// cut is a disk of which the power goes after the first of several values, if they are
// not one write.
type cut struct{ backend }

func (c cut) set(values []stableValue) error {
	if len(values) > 1 {
		return errors.Join(c.backend.set(values[:1]), errors.New("the power is gone"))
	}
	return c.backend.set(values)
}

// TestVote_Half: raft answers a second request of the candidate that it voted for with
// yes, without a look at the logs. So the new term must never be there with the candidate
// of an older vote.
func TestVote_Half(t *testing.T) {
	b := open(t, Options{Kind: Bolt})
	if err := errors.Join(b.SetUint64(voteTerm, 1), b.Set(voteCandidate, []byte("old"))); err != nil {
		t.Fatal(err)
	}
	b.disk = cut{b.disk}
	if err := errors.Join(b.SetUint64(voteTerm, 3), b.Set(voteCandidate, []byte("new"))); err == nil {
		t.Fatal("half a vote was given")
	}
	b.reopen()
	term, err := b.GetUint64(voteTerm)
	candidate, err2 := b.Get(voteCandidate)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if term == 3 && string(candidate) != "new" {
		t.Errorf("the vote of term %d is for %q", term, candidate)
	}
}
