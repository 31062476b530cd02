// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/proc"
)

// hactl runs the program with some flags.
type hactl struct {
	t     *testing.T
	flags []string
}

func (h hactl) with(flags ...string) hactl {
	return hactl{h.t, append(append([]string{}, h.flags...), flags...)}
}

func (h hactl) run(args ...string) result {
	h.t.Helper()
	return runProgram(h.t, nil, hactlPath, append(append([]string{}, h.flags...), args...)...)
}

// ok is the output of a command that must succeed and say nothing on stderr.
func (h hactl) ok(args ...string) string {
	h.t.Helper()
	r := h.run(args...)
	if r.code != 0 || r.stderr != "" {
		h.t.Fatalf("%v", r)
	}
	return r.stdout
}

// says runs a command that must succeed, and looks for texts in its table.
func (h hactl) says(texts []string, args ...string) {
	h.t.Helper()
	out := h.ok(args...)
	for _, text := range texts {
		if !strings.Contains(out, text) {
			h.t.Errorf("hactl %s: %q is not in it:\n%s", strings.Join(args, " "), text, out)
		}
	}
}

// json is the output of a command as JSON.
func (h hactl) json(args ...string) map[string]any {
	h.t.Helper()
	out := h.ok(append(args, "-o", "json")...)
	var v map[string]any
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		h.t.Fatalf("hactl %v: %v:\n%s", args, err, out)
	}
	return v
}

// fails runs a command that must end with a code and with two lines on stderr,
// what happened and what to do next, with texts in them.
func (h hactl) fails(code int, texts []string, args ...string) {
	h.t.Helper()
	r := h.run(args...)
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	if r.code != code || len(lines) != 2 || !strings.HasPrefix(lines[0], "error: ") || !strings.HasPrefix(lines[1], "next: ") {
		h.t.Errorf("want exit code %d and two lines: %v", code, r)
	}
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			h.t.Errorf("hactl %s: %q is not in it:\n%s", strings.Join(args, " "), text, r.stderr)
		}
	}
}

// at is a value inside of decoded JSON.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			list, _ := v.([]any)
			if p >= len(list) {
				return nil
			}
			v = list[p]
		}
	}
	return v
}

// TestHactl operates a cluster as a person would.
func TestHactl(t *testing.T) {
	c := newCluster(t, options{models: true})
	for _, part := range []struct {
		name string
		run  func(t *testing.T, c *cluster, h hactl)
	}{
		{"look", hactlLooks},
		{"sessions", hactlSessions},
		{"models", hactlModels},
		{"primary", hactlMoves},
		{"leader", hactlLeader},
		{"members", hactlMembers},
		{"snapshots", hactlSnapshots},
		{"no leader", hactlWithoutLeader},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.run(t, c.as(t), hactl{t, []string{"--endpoints", strings.Join(c.endpoints(), ",")}})
		})
	}
}

func hactlLooks(t *testing.T, c *cluster, h hactl) {
	primary, epoch := c.serves()
	h.says([]string{"n1", "n2", "n3", "voter", "default", "serving", primary.id, "ready", "lan"}, "status")
	h.says([]string{primary.id, primary.address, fmt.Sprint(epoch)}, "primary")
	h.says([]string{primary.id}, "primary", "default", "--local")
	h.says([]string{"default", "serving"}, "group", "list")
	h.says([]string{"default", "MAX FAILOVERS", "ready", primary.address}, "group", "show")
	h.says([]string{"first", "serving", primary.id}, "history")
	h.says([]string{"n1", "n2", "n3"}, "member", "list")
	h.says([]string{c.leader().id}, "leader", "show")
	h.says([]string{"hactl"}, "version")
	if got := at(h.json("status"), "members", 2, "node_id"); got != "n3" {
		t.Errorf("the third member is %v", got)
	}
	if got := at(h.json("primary"), "primary", "node_id"); got != primary.id {
		t.Errorf("the primary is %v", got)
	}
	if got := at(h.json("history"), "transitions", 0, "outcome"); got != "TRANSITION_OUTCOME_SERVING" {
		t.Errorf("the newest transition ended as %v", got)
	}
	if got := at(h.json("group", "show"), "group", "name"); got != "default" {
		t.Errorf("the group is %v", got)
	}
	for _, args := range [][]string{{"group", "list"}, {"member", "list"}, {"leader", "show"}} {
		h.json(args...)
	}
	if out := h.ok("status", "-o", "yaml"); !strings.Contains(out, "\nmembers:\n") {
		t.Errorf("yaml:\n%s", out)
	}
	h.fails(1, []string{"nosuch"}, "primary", "nosuch")
	h.fails(1, []string{"nosuch"}, "group", "show", "nosuch")
	h.fails(2, []string{"statsu", "did you mean status"}, "statsu")
	h.fails(2, []string{"xml", "use table"}, "status", "-o", "xml")
	nobody := addresses(t, 1)[0]
	hactl{t, []string{"--endpoints", nobody, "--timeout", "1s"}}.fails(1, []string{nobody, "--endpoints"}, "status")
	r := hactl{t, []string{"--timeout", "1s"}}.run("watch", "--endpoints", strings.Join(c.endpoints(), ","))
	if r.code != 0 || !strings.Contains(r.stdout, "primary="+primary.id) {
		t.Errorf("watch: %v", r)
	}
}

func hactlSessions(t *testing.T, c *cluster, h hactl) {
	h.says([]string{"session default/a written", "end offset 5"}, "session", "put", "a", "hello", "--owner", "me", "--ttl", "1h", "--label", "k=v")
	if out := h.ok("session", "get", "a", "--value"); out != "hello" {
		t.Errorf("read %q", out)
	}
	h.says([]string{"default/a", "me", "1h0m0s", "k=v", "5 bytes"}, "session", "get", "a")
	h.says([]string{"end offset 11"}, "session", "append", "a", " world")
	if got := at(h.json("session", "get", "a", "--local"), "value"); got != "aGVsbG8gd29ybGQ=" {
		t.Errorf("the value is %v", got)
	}
	h.fails(1, []string{"conflict", "read the record again"}, "session", "append", "a", "!", "--offset", "3")
	h.fails(1, []string{"a"}, "session", "put", "a", "x", "--if-absent")
	h.fails(1, []string{"epoch 1", "stop writing"}, "session", "put", "a", "x", "--epoch", "1")
	h.fails(1, []string{"nosuch", "not found"}, "session", "get", "nosuch")
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, []byte("of a file\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	revision := at(h.json("session", "put", "b", "@"+file), "revision")
	h.ok("session", "put", "b2", "2")
	if out := h.ok("session", "get", "b", "--value"); out != "of a file\x00" {
		t.Errorf("read %q", out)
	}
	h.says([]string{"a", "b", "b2"}, "session", "list")
	if got := h.json("session", "list", "--prefix", "b"); len(at(got, "sessions").([]any)) != 2 {
		t.Errorf("the list is %v", got)
	}
	if r := h.run("session", "list", "--limit", "1"); r.code != 0 || !strings.Contains(r.stderr, "more than 1") {
		t.Errorf("%v", r)
	}
	lines := strings.Split(strings.TrimSpace(h.ok("session", "watch", "--count", "2", "-o", "json", "--after", fmt.Sprint(int(number(t, revision))-1), "--prefix", "b")), "\n")
	var event map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &event); err != nil || len(lines) != 2 || at(event, "session", "id") != "b" {
		t.Errorf("watch: %v: %q", err, lines)
	}
	h.fails(2, []string{"delete 2 sessions", "--yes"}, "session", "delete", "--prefix", "b")
	h.says([]string{"2 deleted"}, "session", "delete", "--prefix", "b", "--yes")
	h.says([]string{"1 deleted"}, "session", "delete", "a")
	h.says([]string{"0 deleted"}, "session", "delete", "a")
}

// number reads a 64-bit number, which JSON has as text.
func number(t *testing.T, v any) float64 {
	t.Helper()
	var n float64
	if _, err := fmt.Sscan(fmt.Sprint(v), &n); err != nil {
		t.Fatalf("%v: %v", v, err)
	}
	return n
}

func hactlModels(t *testing.T, c *cluster, h hactl) {
	one, two := "sha256:"+strings.Repeat("1", 64), "sha256:"+strings.Repeat("2", 64)
	h.says([]string{"llama:v1", one}, "model", "register", "llama:v1", "--digest", one, "--engine", "vllm")
	h.ok("model", "register", "llama:v1", "--digest", one, "--engine", "vllm") // again is no error
	h.fails(1, []string{"llama:v1", "what exists is not changed"}, "model", "register", "llama:v1", "--digest", two)
	h.ok("model", "register", "llama:v2", "--digest", two)
	h.says([]string{"llama@champion is v1"}, "model", "alias", "llama", "champion", "v1")
	h.says([]string{"llama@champion is v2"}, "model", "alias", "llama", "champion", "v2", "--if-version", "v1")
	h.fails(1, []string{"champion"}, "model", "alias", "llama", "champion", "v2", "--if-version", "v1")
	h.says([]string{"llama:v2", "champion", two}, "model", "show", "llama@champion")
	if got := at(h.json("model", "show", "llama:v1"), "model", "ref", "digest"); got != one {
		t.Errorf("the digest is %v", got)
	}
	h.says([]string{"v1", "v2", "champion"}, "model", "list")
	if got := h.json("model", "list", "llama"); len(at(got, "models").([]any)) != 2 {
		t.Errorf("the list is %v", got)
	}
	h.ok("model", "alias", "llama", "champion", "--delete")
	h.fails(1, []string{"champion"}, "model", "show", "llama@champion")
	h.fails(2, []string{"--digest"}, "model", "register", "llama:v3")
}

func hactlMoves(t *testing.T, c *cluster, h hactl) {
	from, epoch := c.serves()
	to := c.but(from)[0]
	h.says([]string{"switchover", "serving", from.id, to.id, "a test"}, "switchover", "--to", to.id, "--reason", "a test")
	now, next := c.serving(epoch)
	if now != to {
		t.Fatalf("%s is the primary", now.id)
	}
	c.over(from, epoch)
	h.fails(1, []string{to.id}, "switchover", "--to", to.id)
	h.fails(1, []string{`"nosuch" has no instance`, "name one of n1, n2, n3"}, "switchover", "--to", "nosuch")
	h.fails(1, []string{`"nosuch" has no instance`}, "failover", "--to", "nosuch", "--yes")
	h.fails(2, []string{"not confirmed", "--yes"}, "failover")
	if got := at(h.json("failover", "--yes", "--reason", "a test"), "transition", "kind"); got != "TRANSITION_KIND_FORCED" && got != "TRANSITION_KIND_FAILOVER" {
		t.Errorf("the kind is %v", got)
	}
	_, third := c.serving(next)
	c.over(to, next)

	h.says([]string{"group default is paused", "hactl group resume"}, "group", "pause", "--reason", "maintenance")
	h.says([]string{"paused: maintenance"}, "group", "list")
	victim, _ := c.serves()
	kill(t, victim.model)
	eventually(t, "the group to be vacant", func() error {
		if r := h.run("primary"); r.code != 1 || !strings.Contains(r.stderr, "next: ") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	h.says([]string{"paused"}, "group", "show")
	h.says([]string{"fails over automatically"}, "group", "resume")
	c.moved(victim, third)
	c.startModel(victim)
	c.isWhole()

	h.says([]string{"2s", "3"}, "group", "set", "--lease", "2s", "--max-failovers", "3", "--calm", "1m")
	if got := at(h.json("group", "show"), "group", "policy", "ttl_ms"); got != float64(2000) {
		t.Errorf("the lease is %v", got)
	}
	h.ok("group", "set", "--lease", "0", "--max-failovers", "0")
	h.says([]string{"vacant"}, "group", "set", "another", "--drain", "5s")
	h.fails(1, []string{"another"}, "switchover", "another")
}

func hactlLeader(t *testing.T, c *cluster, h hactl) {
	leader := c.leader()
	to := c.but(leader)[0]
	h.says([]string{to.id + " leads"}, "leader", "transfer", "--to", to.id)
	c.leader(leader)
	h.fails(1, []string{"nosuch"}, "leader", "transfer", "--to", "nosuch")
	h.ok("leader", "transfer")
	c.leader()
}

// hactlMembers: a fourth node comes by --join, changes its role and goes.
func hactlMembers(t *testing.T, c *cluster, h hactl) {
	addr, dir := addresses(t, 1)[0], t.TempDir()
	args := node("n4", dir, "--listen", addr, "--join", strings.Join(c.endpoints(), ","), "--replica")
	n4 := start(t, proc.Spec{Name: "node n4", Path: hanodePath, Args: args})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(n4.Tail())
		}
	})
	role := func(want string) {
		t.Helper()
		eventually(t, "n4 to be "+want, func() error {
			if out := h.ok("member", "list"); !strings.Contains(strings.Join(strings.Fields(out), " "), "n4 "+addr+" "+want+" no yes") {
				return errors.New(out)
			}
			return nil
		})
	}
	role("replica")
	eventually(t, "n4 to be promoted", func() error { // the leader may not have heard from it yet
		if r := h.run("member", "promote", "n4"); r.code != 0 || !strings.Contains(r.stdout, "member n4 is a voter") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	role("voter")
	h.says([]string{"member n4 is a replica"}, "member", "demote", "n4")
	role("replica")
	h.fails(2, []string{"not confirmed", "--yes"}, "member", "remove", "n4")
	h.says([]string{"member n4 removed"}, "member", "remove", "n4", "--yes")
	if out := h.ok("member", "list"); strings.Contains(out, "n4") {
		t.Errorf("it is still listed:\n%s", out)
	}
	h.fails(1, []string{"n9"}, "member", "remove", "n9", "--yes")
	h.fails(1, []string{"n9"}, "member", "promote", "n9")
	removedNode(t, n4)

	// By hand: it is told of nobody that is in the cluster.
	fresh := addresses(t, 1)[0]
	n5 := start(t, proc.Spec{Name: "node n5", Path: hanodePath, Args: node("n5", t.TempDir(), "--listen", fresh, "--join", addresses(t, 1)[0])})
	eventually(t, "n5 to be taken in", func() error {
		if r := h.run("member", "add", "n5", fresh); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	eventually(t, "n5 to be a voter", func() error {
		if out := strings.Join(strings.Fields(h.ok("member", "list")), " "); !strings.Contains(out, "n5 "+fresh+" voter no yes") {
			return fmt.Errorf("%s\n%s", out, n5.Tail())
		}
		return nil
	})
	h.ok("member", "remove", "n5", "--yes")
	h.fails(1, []string{"n6"}, "member", "add", "n6", addresses(t, 1)[0])
}

// removedNode looks at what becomes of a node that was removed.
func removedNode(t *testing.T, p *proc.Process) {
	t.Helper()
	select {
	case <-p.Exited():
		t.Logf("a removed node ended with %d:\n%s", p.ExitCode(), p.Tail())
	case <-time.After(3 * time.Second):
		t.Logf("a removed node goes on:\n%s", p.Tail())
	}
}

func hactlSnapshots(t *testing.T, c *cluster, h hactl) {
	file := filepath.Join(t.TempDir(), "archive")
	h.ok("session", "put", "kept", "before")
	h.says([]string{file, "saved"}, "snapshot", "save", file)
	h.fails(1, []string{"already exists", "not overwritten"}, "snapshot", "save", file)
	h.says([]string{"CLUSTER", "REVISION", "BACKUP", "yes"}, "snapshot", "inspect", file)
	h.json("snapshot", "inspect", file)
	h.ok("session", "put", "kept", "after")
	h.ok("session", "put", "later", "x")
	_, epoch := c.serves()
	h.fails(2, []string{"replace the sessions", "--yes"}, "snapshot", "restore", file)
	h.says([]string{"records restored"}, "snapshot", "restore", file, "--yes")
	if out := h.ok("session", "get", "kept", "--value"); out != "before" {
		t.Errorf("read %q", out)
	}
	h.fails(1, []string{"later"}, "session", "get", "later")
	// Epochs never go back, not even with the state.
	c.leader()
	if _, next := c.serves(); next < epoch {
		t.Errorf("epoch %d after %d", next, epoch)
	}
	c.isWhole()
	damaged := filepath.Join(t.TempDir(), "damaged")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(damaged, data, 0o600); err != nil {
		t.Fatal(err)
	}
	h.fails(1, []string{"damaged", "do not use this file"}, "snapshot", "inspect", damaged)
	h.fails(1, []string{"damaged"}, "snapshot", "restore", damaged, "--yes")
}

// hactlWithoutLeader: two of three nodes are gone.
func hactlWithoutLeader(t *testing.T, c *cluster, h hactl) {
	left := c.hosts[0]
	alone := hactl{t, []string{"--endpoints", left.grpc, "--timeout", "3s"}}
	h.ok("session", "put", "local", "x")
	eventually(t, "the session on "+left.id, func() error { // a follower hears of a commit a little later
		if r := alone.run("session", "get", "local", "--local", "--value"); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	kill(t, c.hosts[1].node, c.hosts[2].node)
	eventually(t, "no leader", func() error {
		if r := alone.run("status"); r.code != 3 || !strings.Contains(r.stdout, "n1") || !strings.Contains(r.stderr, "majority") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	alone.fails(3, []string{"no leader", "majority"}, "primary")
	alone.fails(3, []string{"nothing was done"}, "switchover")
	alone.fails(3, []string{"no leader", "nothing was done"}, "session", "put", "x", "y")
	alone.ok("session", "get", "local", "--local", "--value")
	// What it remembers of a primary is not passed off as one.
	eventually(t, "the lease to have run out", func() error {
		if r := alone.run("primary", "--local"); r.code != 1 || !strings.Contains(r.stderr, "lease has run out") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.startNode(c.hosts[1])
	c.startNode(c.hosts[2])
	c.isWhole()
}
