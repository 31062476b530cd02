// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"testing"

	"github.com/hastate/hastate/internal/logstore"
)

// full is a disk that takes no value of raft's.
type full struct{ error }

func (f full) Before(op string) error {
	if op == logstore.OpSet {
		return f.error
	}
	return nil
}

// TestOpen_TheFirstTermCannotBeSaved: NewRaft saves the term that it has read before
// anybody could wait for raft. That must end, with the reason.
func TestOpen_TheFirstTermCannotBeSaved(t *testing.T) {
	no := errors.New("no space left")
	n, err := Open(Config{NodeID: "n2", DataDir: t.TempDir(), Listen: "127.0.0.1:0", BootstrapExpect: 3, Faults: Faults{Log: full{no}}})
	if err == nil {
		_ = n.Close()
	}
	if !errors.Is(err, errTerm) || !errors.Is(err, no) {
		t.Error(err)
	}
}
