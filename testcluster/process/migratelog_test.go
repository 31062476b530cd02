// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMigrateLog rewrites the log of a node both ways; it has what it had, also when it
// is killed afterwards.
func TestMigrateLog(t *testing.T) {
	s := newSingle(t)
	migrate := func(to string) result {
		return runProgram(t, nil, hanodePath, "migrate-log", "--data-dir", s.dir, "--to", to)
	}
	refused(t, nil, []string{"migrate-log", "--data-dir", s.dir, "--to", "segments"}, exitFailed, s.dir, "in use by another process", "stop it")
	for _, step := range []struct{ from, to, file string }{{"bolt", "segments", "raft.seg"}, {"segments", "bolt", "raft.db"}} {
		send(t, s.proc, syscall.SIGTERM)
		ended(t, s.proc)
		refused(t, nil, node("one", s.dir, "--bootstrap-expect", "1", "--log-store", step.to), exitFailed, step.from, step.to, "hanode migrate-log", s.dir)
		r := migrate(step.to)
		if r.code != 0 || !strings.Contains(r.stdout, "is of the kind "+step.to+" now") {
			t.Fatal(r)
		}
		logs, err := filepath.Glob(filepath.Join(s.dir, "raft.*"))
		if err != nil || len(logs) != 1 || filepath.Base(logs[0]) != step.file {
			t.Fatalf("the folder has %v: %v", logs, err)
		}
		refused(t, nil, []string{"migrate-log", "--data-dir", s.dir, "--to", step.to}, exitFailed, "already")
		s.start(t)
		s.intact(t)
		kill(t, s.proc)
		s.start(t)
		s.intact(t)
	}
	refused(t, nil, []string{"migrate-log", "--to", "bolt"}, exitUsage, "--data-dir is missing")
	refused(t, nil, []string{"migrate-log", "--data-dir", s.dir, "--to", "paper"}, exitUsage, `"paper"`, "bolt", "segments")
	refused(t, nil, []string{"migrate-log", "--data-dir", t.TempDir(), "--to", "bolt"}, exitFailed, "no node.json")
	refused(t, nil, node("one", t.TempDir(), "--log-store", "paper"), exitUsage, `"paper"`, "bolt", "segments")
}
