// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func single(dir string) Config {
	return Config{NodeID: "n1", DataDir: dir, Listen: "127.0.0.1:0", BootstrapExpect: 1}
}

// refused checks that no node opens, and what is said.
func refused(t *testing.T, c Config, say ...string) {
	t.Helper()
	n, err := Open(c)
	if err == nil {
		t.Fatalf("a node opens, want %q; %v", say, n.Close())
	}
	for _, want := range say {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func opens(t *testing.T, c Config) *Node {
	t.Helper()
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, n) })
	return n
}

func closes(t *testing.T, n *Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestFolder_BelongsToOneNode(t *testing.T) {
	dir := t.TempDir()
	n := opens(t, single(dir))
	// A second process is kept out as long as the first one runs, and only then.
	refused(t, single(dir), "in use by another process", "give this node its own folder")
	closes(t, n)
	closes(t, opens(t, single(dir)))

	other := single(dir)
	other.NodeID = "n2"
	refused(t, other, `belongs to node "n1", not "n2"`, "use its own folder")

	path := filepath.Join(dir, "node.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ content, say string }{
		"empty":        {"", "is damaged"},
		"cut off":      {string(good[:len(good)/2]), "is damaged"},
		"not JSON":     {"\x00\x01", "is damaged"},
		"newer format": {strings.Replace(string(good), `"format": 1`, `"format": 99`, 1), "this program knows up to 1: run a newer hanode"},
	} {
		if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) { refused(t, single(dir), test.say) })
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	opens(t, single(dir))
}

func TestFolder_CannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, single(file), "make data folder")
	refused(t, single(filepath.Join(file, "below")), "make data folder")
}

// A port in use is an error of Open, and what was taken before it is given back.
func TestOpen_PortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	dir := t.TempDir()
	c := single(dir)
	c.Listen = l.Addr().String()
	refused(t, c, "bind the gRPC port", "choose another listen address")
	c = single(dir)
	c.HTTPListen = l.Addr().String()
	refused(t, c, "bind the HTTP port", "choose another http listen address")
	n := opens(t, single(dir))
	if n.Address() == "" || strings.HasSuffix(n.Address(), ":0") || n.HTTPAddress() != "" {
		t.Fatalf("bound to %q and %q", n.Address(), n.HTTPAddress())
	}
}

// A file is replaced whole, and what cannot be written changes nothing.
func TestWriteFileSynced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"first, and longer", "second"} {
		if err := writeFileSynced(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if _, err := os.Stat(path + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the file aside is left: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	// The file aside cannot be made.
	if err := os.Mkdir(path+".tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeFileSynced(path, []byte("third")); err == nil {
		t.Fatal("written through a folder")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "second" {
		t.Fatalf("after a failed write: %q, %v", got, err)
	}
	if err := writeFileSynced(filepath.Join(dir, "none", "f"), nil); err == nil {
		t.Fatal("written into a folder that is not there")
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	id, err := openIdentity(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(id.Pin("c1"), id.Pin("c1")); err != nil {
		t.Fatal(err)
	}
	if err := id.Pin("c2"); err == nil || !strings.Contains(err.Error(), "belongs to cluster c1, not c2") {
		t.Fatalf("moved to another cluster: %v", err)
	}
	for _, test := range []struct {
		node, address string
		news          bool
	}{
		{"n2", "a:1", true}, {"n2", "a:1", false}, {"n2", "a:2", true}, {"n3", "", false}, {"n1", "me:1", false},
	} {
		if news, err := id.Learn(test.node, test.address); news != test.news || err != nil {
			t.Errorf("learn %s at %q: %v, %v", test.node, test.address, news, err)
		}
	}
	// It is all there after a restart.
	again, err := openIdentity(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := again.Address("n2"); again.ClusterID() != "c1" || !ok || a != "a:2" {
		t.Fatalf("after a restart: cluster %q, n2 at %q", again.ClusterID(), a)
	}
	if err := again.Forget("n2"); err != nil {
		t.Fatal(err)
	}
	if _, ok := again.Address("n2"); ok || len(again.Addresses()) != 0 {
		t.Fatal("forgotten and still known")
	}
}
