// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/proc"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

// refused runs hanode with arguments that it cannot use. It must end by itself
// with the code and say in one line on stderr what is wrong and what to do: all
// of texts must be in it.
func refused(t *testing.T, env, args []string, code int, texts ...string) {
	t.Helper()
	r := runProgram(t, env, hanodePath, args...)
	if r.code != code {
		t.Errorf("exit code %d, not %d: %v", r.code, code, r)
	}
	var lines []string
	for line := range strings.Lines(r.stderr) {
		if !strings.HasPrefix(line, "time=") { // the log
			lines = append(lines, line)
		}
	}
	if code == exitUsage && len(lines) == 2 && strings.HasPrefix(lines[1], "See 'hanode") {
		lines = lines[:1]
	}
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "hanode: ") {
		t.Fatalf("there is not one clear line: %v", r)
	}
	for _, text := range texts {
		if !strings.Contains(lines[0], text) {
			t.Errorf("%q is not in it: %s", text, lines[0])
		}
	}
}

// node is the arguments of a node on free ports, and more.
func node(id, dir string, more ...string) []string {
	return append([]string{"run", "--node-id", id, "--data-dir", dir, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"}, more...)
}

// single is a cluster of one node that keeps one session.
type single struct {
	dir, grpc, web string
	proc           *proc.Process
	// more arguments of the node.
	more []string
}

func (s *single) start(t *testing.T) {
	t.Helper()
	args := []string{"run", "--node-id", "one", "--data-dir", s.dir, "--listen", s.grpc, "--http-listen", s.web, "--bootstrap-expect", "1"}
	s.proc = startArgs(t, append(args, s.more...))
}

const kept = "a value that can be found in a file"

func newSingle(t *testing.T, more ...string) *single {
	t.Helper()
	at := addresses(t, 2)
	s := &single{dir: t.TempDir(), grpc: at[0], web: at[1], more: more}
	s.start(t)
	c := s.client(t)
	eventually(t, "the first write", func() error {
		_, err := c.Sessions("").Put(t.Context(), &pb.PutRequest{Session: &pb.Session{Id: "kept", Value: []byte(kept)}})
		return err
	})
	return s
}

func (s *single) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.Dial(client.Options{Endpoints: []string{s.grpc}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// intact fails the test unless the session is there.
func (s *single) intact(t *testing.T) {
	t.Helper()
	got, err := s.client(t).Sessions("").Get(within(t), "kept", pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	if err != nil || string(got.GetValue()) != kept {
		t.Fatalf("%q, %v", got.GetValue(), err)
	}
}

// TestRun_RefusesUsage: mistakes in what was written end with exit code 2 before
// anything is touched.
func TestRun_RefusesUsage(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "hanode.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, test := range map[string]struct {
		env, args []string
		texts     []string
	}{
		"unknown command":   {args: []string{"start"}, texts: []string{`unknown command "start"`}},
		"unknown flag":      {args: []string{"run", "--dir", "x"}, texts: []string{"unknown flag: --dir"}},
		"argument":          {args: node("n", "x", "y"), texts: []string{`unexpected argument "y"`}},
		"bad flag":          {args: node("n", "x", "--bootstrap-expect", "three"), texts: []string{"--bootstrap-expect", `"three"`}},
		"no node id":        {args: []string{"run", "--data-dir", "x"}, texts: []string{"node id is missing"}},
		"odd node id":       {args: node("a/b", "x"), texts: []string{"node id", `'/'`, "use letters"}},
		"no data dir":       {args: []string{"run", "--node-id", "n"}, texts: []string{"data dir is missing", "give"}},
		"bad address":       {args: node("n", "x", "--listen", "7001"), texts: []string{"listen address", "use host:port"}},
		"bad port":          {args: node("n", "x", "--join", "10.0.0.1:70000"), texts: []string{"join address", "from 1 to 65535"}},
		"bad profile":       {args: node("n", "x", "--profile", "slow"), texts: []string{`profile "slow"`, "use fast, lan or wan"}},
		"bad log level":     {args: node("n", "x", "--log-level", "loud"), texts: []string{`"loud"`, "use debug, info, warn or error"}},
		"bad log format":    {args: node("n", "x", "--log-format", "xml"), texts: []string{`"xml"`, "use text or json"}},
		"not loopback":      {args: node("n", "x", "--listen", "0.0.0.0:7001", "--advertise", "10.0.0.1:7001"), texts: []string{"not loopback", "no TLS", "give certificates"}},
		"no advertise":      {args: node("n", "x", "--listen", "0.0.0.0:7001", "--allow-plaintext"), texts: []string{"every interface", "advertise"}},
		"half TLS":          {args: node("n", "x", "--tls-cert", "c.pem"), texts: []string{"tls needs all of cert, key and ca"}},
		"no certificate":    {args: node("n", "x", "--tls-cert", "/no/c.pem", "--tls-key", "/no/k.pem", "--tls-ca", "/no/ca.pem"), texts: []string{"load tls certificate", "/no/c.pem"}},
		"half an instance":  {args: node("n", "x", "--group", "chat"), texts: []string{"--group", "add --instance-kind"}},
		"odd instance kind": {args: node("n", "x", "--instance-kind", "carrier-pigeon", "--instance-target", "127.0.0.1:1", "--instance-address", "a:1"), texts: []string{"carrier-pigeon"}},
		"bad environment":   {env: []string{"HANODE_BOOTSTRAP_EXPECT=three"}, args: node("n", "x"), texts: []string{"HANODE_BOOTSTRAP_EXPECT", `"three"`}},
		"no file":           {args: node("n", "x", "--config", "/no/such.yaml"), texts: []string{"read config", "/no/such.yaml"}},
		"unknown key":       {args: []string{"run", "--config", file("node_id: n\ndata_directory: x\n")}, texts: []string{"line 2", "data_directory", "not known"}},
		"wrong type":        {args: []string{"run", "--config", file("instances: {group: a}\n")}, texts: []string{"line 1", "instances"}},
		"no YAML":           {args: []string{"run", "--config", file("{{{")}, texts: []string{"hanode.yaml", "yaml"}},
		"demo: bad fault":   {args: []string{"demo", "--fault", "flood"}, texts: []string{`"flood"`, "use kill-model"}},
		"demo: bad profile": {args: []string{"demo", "--profile", "slow"}, texts: []string{`"slow"`}},
		"demo: keep, json":  {args: []string{"demo", "--keep", "--json"}, texts: []string{"do not go together"}},
		"demo: ports":       {args: []string{"demo", "--base-port", "65530"}, texts: []string{"65530", "twelve"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, test.env, test.args, exitUsage, test.texts...) })
	}
	if _, err := os.Stat("x"); err == nil {
		t.Error("a data folder was made")
	}
}

// TestRun_RefusesNeighbours: what is in use by a running node cannot be taken,
// and the node goes on.
func TestRun_RefusesNeighbours(t *testing.T) {
	s := newSingle(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := taken.Addr().String()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := newSingle(t)
	send(t, other.proc, syscall.SIGTERM)
	ended(t, other.proc)
	for name, test := range map[string]struct {
		args  []string
		texts []string
	}{
		"gRPC port":       {node("two", t.TempDir(), "--listen", port, "--bootstrap-expect", "1"), []string{port, "gRPC", "in use", "choose another listen address"}},
		"HTTP port":       {node("two", t.TempDir(), "--http-listen", port, "--bootstrap-expect", "1"), []string{port, "HTTP", "in use", "choose another http listen address"}},
		"data folder":     {node("one", s.dir, "--bootstrap-expect", "1"), []string{s.dir, fmt.Sprintf("pid %d", s.proc.Pid()), "its own folder"}},
		"data folder, id": {node("two", s.dir, "--bootstrap-expect", "1"), []string{s.dir, "in use"}},
		"node id":         {node("one", t.TempDir(), "--join", s.grpc), []string{`"one"`, "in use by a running node", s.grpc, "its own id"}},
		"other cluster":   {node("one", other.dir, "--join", s.grpc), []string{"in use by a running node", s.grpc}},
		"nobody to join":  {node("two", t.TempDir()), []string{"nobody to join", "give join addresses", "bootstrap-expect"}},
		"folder is file":  {node("two", file), []string{"data folder", file}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, nil, test.args, exitFailed, test.texts...) })
	}
	s.intact(t)
}

// TestRun_RefusesOtherCluster: a node that has been in one cluster does not enter
// another.
func TestRun_RefusesOtherCluster(t *testing.T) {
	s := newSingle(t)
	at := addresses(t, 2)
	dir := t.TempDir()
	start := func(join string) []string {
		return []string{"run", "--node-id", "two", "--data-dir", dir, "--listen", at[0], "--http-listen", at[1], "--bootstrap-expect", "1", "--join", join}
	}
	two := &single{dir: dir, grpc: at[0], web: at[1]}
	two.proc = startArgs(t, start(at[0]))
	eventually(t, "a cluster of its own", func() error {
		_, err := two.client(t).Sessions("").Put(t.Context(), &pb.PutRequest{Session: &pb.Session{Id: "kept", Value: []byte(kept)}})
		return err
	})
	send(t, two.proc, syscall.SIGTERM)
	ended(t, two.proc)
	refused(t, nil, start(s.grpc), exitFailed, `"two"`, "belongs to cluster", "correct its join list")
	two.proc = startArgs(t, start(at[0]))
	two.intact(t)
	s.intact(t)
}

func startArgs(t *testing.T, args []string) *proc.Process {
	t.Helper()
	return start(t, proc.Spec{Name: strings.Join(args, " "), Path: hanodePath, Args: args})
}

// TestRun_RefusesFolder: a data folder that cannot be trusted is refused and left
// as it is.
func TestRun_RefusesFolder(t *testing.T) {
	s := newSingle(t, "--snapshot-interval", "50ms", "--snapshot-threshold", "1")
	eventually(t, "a snapshot: the log alone is not enough then", func() error {
		taken, err := filepath.Glob(filepath.Join(s.dir, "snapshots", "*.meta"))
		if err == nil && len(taken) == 0 {
			err = errors.New("none yet")
		}
		return err
	})
	send(t, s.proc, syscall.SIGTERM)
	ended(t, s.proc)
	for name, test := range map[string]struct {
		change func(t *testing.T, dir string)
		id     string
		texts  []string
	}{
		"other node id":       {id: "two", texts: []string{`belongs to node "one"`, "its own folder"}},
		"newer format":        {change: replace("node.json", `"format": 1`, `"format": 99`), texts: []string{"node.json", "format 99", "run a newer hanode"}},
		"no identity":         {change: write("node.json", "{"), texts: []string{"node.json", "damaged", "join again"}},
		"newer state":         {change: newerState, texts: []string{"state.db", "newer", "start a newer version"}},
		"log cut off":         {change: truncate("raft.db", 20000), texts: []string{"raft.db", "damaged", "truncated", "join again"}},
		"log empty":           {change: truncate("raft.db", 0), texts: []string{"raft.db", "damaged", "empty"}},
		"log with a flip":     {change: flip("raft.db", kept), texts: []string{"raft.db", "damaged", "checksum", "join again"}},
		"log of something":    {change: write("raft.db", strings.Repeat("no database ", 1000)), texts: []string{"raft.db", "damaged"}},
		"state cut off":       {change: truncate("state.db", 20000), texts: []string{"state.db", "damaged", "truncated", "join again"}},
		"state empty":         {change: truncate("state.db", 0), texts: []string{"state.db", "damaged", "empty"}},
		"state with a flip":   {change: flip("state.db", "hastate1"), texts: []string{"state.db", "damaged"}},
		"state of something":  {change: write("state.db", strings.Repeat("no database ", 1000)), texts: []string{"state.db", "damaged"}},
		"state without a log": {change: remove("raft.db"), texts: []string{"raft.db", "the log is missing", "put the file back", "join again"}},
		"log without a state": {change: remove("state.db"), texts: []string{"state.db", "missing", "put the file back", "join again"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
				t.Fatal(err)
			}
			if test.change != nil {
				test.change(t, dir)
			}
			if test.id == "" {
				test.id = "one"
			}
			refused(t, nil, node(test.id, dir, "--bootstrap-expect", "1"), exitFailed, test.texts...)
			// What was good is good still: with the damage undone all is there.
			for _, name := range []string{"node.json", "raft.db", "state.db"} {
				if strings.Contains(strings.Join(test.texts, " "), name) {
					original, err := os.ReadFile(filepath.Join(s.dir, name))
					if err != nil {
						t.Fatal(err)
					}
					write(name, string(original))(t, dir)
				}
			}
			mended := &single{dir: dir, grpc: s.grpc, web: s.web}
			mended.start(t)
			defer kill(t, mended.proc)
			mended.intact(t)
		})
	}
}

// TestRun_LogIsEnough: a node that lost its state makes it anew of its log, as
// long as that is whole.
func TestRun_LogIsEnough(t *testing.T) {
	s := newSingle(t)
	kill(t, s.proc)
	remove("state.db")(t, s.dir)
	s.start(t)
	s.intact(t)
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = os.WriteFile(path, change(data), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func write(name, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		edit(t, filepath.Join(dir, name), func([]byte) []byte { return []byte(text) })
	}
}

func replace(name, from, to string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		edit(t, filepath.Join(dir, name), func(data []byte) []byte {
			if !bytes.Contains(data, []byte(from)) {
				t.Fatalf("%s is not in %s", from, name)
			}
			return bytes.Replace(data, []byte(from), []byte(to), 1)
		})
	}
}

func truncate(name string, size int64) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.Truncate(filepath.Join(dir, name), size); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// flip flips one bit in every copy of a text: older pages of the database may
// hold it too.
func flip(name, text string) func(*testing.T, string) {
	flipped := []byte(text)
	flipped[len(flipped)/2] ^= 1
	return func(t *testing.T, dir string) {
		t.Helper()
		edit(t, filepath.Join(dir, name), func(data []byte) []byte {
			if !bytes.Contains(data, []byte(text)) {
				t.Fatalf("%s is not in %s", text, name)
			}
			return bytes.ReplaceAll(data, []byte(text), flipped)
		})
	}
}

// newerState gives the state file the version of a later program.
func newerState(t *testing.T, dir string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("meta"))
		record := bytes.Clone(b.Get([]byte("state")))
		binary.BigEndian.PutUint32(record[len("hastate1"):], 99)
		return b.Put([]byte("state"), record)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
