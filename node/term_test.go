// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/logstore"
)

// TestStable_TheFirstTermCannotBeSaved: NewRaft saves the term that it has read before
// anybody could wait for raft. That must end, with an error.
func TestStable_TheFirstTermCannotBeSaved(t *testing.T) {
	no := errors.New("no space left")
	logs, err := logstore.Open(logstore.Options{
		Path: filepath.Join(t.TempDir(), "raft.db"), Kind: logstore.Bolt, Clock: clock.Boot{}, Logger: slog.New(slog.DiscardHandler),
		Fault: full{no}, Halt: func(error) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = logs.Close() }()
	s := &stable{Store: logs, n: &Node{raftReady: make(chan struct{})}}
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, errTerm) || !errors.Is(err, no) {
			t.Errorf("%v", err)
		}
	}()
	_ = s.SetUint64([]byte("CurrentTerm"), 1)
	t.Error("the term was saved")
}

// full is a disk without space.
type full struct{ error }

func (f full) Before(string) error { return f.error }

var _ raft.StableStore = (*stable)(nil)
