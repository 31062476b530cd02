// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
)

// identityFormat is the version of the data folder's layout.
const identityFormat = 1

// identity is the file node.json of a data folder: whose it is, of which
// cluster, and where the other nodes were last. It survives the loss of
// everything but itself.
type identity struct {
	path string

	// mu guards saved.
	mu    sync.Mutex
	saved identityFile
}

type identityFile struct {
	Format    int    `json:"format"`
	NodeID    string `json:"node_id"`
	ClusterID string `json:"cluster_id,omitempty"`
	// Admitted: it may take part in Raft although it has no data, see admission.
	// Of no meaning once ClusterID is known.
	Admitted bool `json:"admitted,omitempty"`
	// Addresses of the other nodes, by id: needed to elect a leader before the
	// replicated member records can be read.
	Addresses map[string]string `json:"addresses,omitempty"`
}

// openIdentity reads or makes the identity of dir for nodeID.
func openIdentity(dir, nodeID string) (*identity, error) {
	id := &identity{path: filepath.Join(dir, "node.json")}
	data, err := os.ReadFile(id.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		id.saved = identityFile{Format: identityFormat, NodeID: nodeID, Addresses: map[string]string{}}
		return id, id.write()
	case err != nil:
		return nil, fmt.Errorf("read identity: %w", err)
	}
	var newer struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &newer); err == nil && newer.Format > identityFormat {
		return nil, fmt.Errorf("data folder %s has format %d by its node.json, this program knows up to %d: run a newer hanode", dir, newer.Format, identityFormat)
	}
	if err := id.decode(data); err != nil {
		return nil, fmt.Errorf("identity %s is damaged: %w: restore the file, or remove the node from the cluster, empty the folder and join again", id.path, err)
	}
	if id.saved.NodeID != nodeID {
		return nil, fmt.Errorf("data folder %s belongs to node %q, not %q: use its own folder, or correct the node id", dir, id.saved.NodeID, nodeID)
	}
	if id.saved.Addresses == nil {
		id.saved.Addresses = map[string]string{}
	}
	return id, nil
}

// decode reads the file strictly: a key that is not known is one that was changed,
// and without it the node could take itself for one of no cluster.
func (id *identity) decode(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&id.saved); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind its end")
	}
	if id.saved.Format != identityFormat {
		return fmt.Errorf("its format is %d", id.saved.Format)
	}
	return nil
}

// ClusterID is empty until the node belongs to a cluster.
func (id *identity) ClusterID() string {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.saved.ClusterID
}

// Admitted says that this node was admitted before it ever heard of a cluster.
func (id *identity) Admitted() bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.saved.Admitted && id.saved.ClusterID == ""
}

// SetAdmitted notes an admission: the node may stop before the first entry comes.
func (id *identity) SetAdmitted() error {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.saved.Admitted = true
	return id.writeLocked()
}

// Pin fixes the cluster for ever; another one is an error.
func (id *identity) Pin(cluster string) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	switch id.saved.ClusterID {
	case cluster:
		return nil
	case "":
		id.saved.ClusterID = cluster
		return id.writeLocked()
	}
	return fmt.Errorf("this node belongs to cluster %s, not %s: empty its data folder to move it", id.saved.ClusterID, cluster)
}

// Address is where a node was last known to be.
func (id *identity) Address(node string) (string, bool) {
	id.mu.Lock()
	defer id.mu.Unlock()
	a, ok := id.saved.Addresses[node]
	return a, ok
}

// Addresses is a copy of all.
func (id *identity) Addresses() map[string]string {
	id.mu.Lock()
	defer id.mu.Unlock()
	return maps.Clone(id.saved.Addresses)
}

// maxAddresses bounds what strangers can make this node remember.
const maxAddresses = 256

// Learn remembers where a node is and reports whether that is news.
func (id *identity) Learn(node, address string) (bool, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if node == id.saved.NodeID || address == "" || id.saved.Addresses[node] == address {
		return false, nil
	}
	if _, known := id.saved.Addresses[node]; !known && len(id.saved.Addresses) >= maxAddresses {
		return false, fmt.Errorf("more than %d nodes are known: refusing %s", maxAddresses, node)
	}
	id.saved.Addresses[node] = address
	return true, id.writeLocked()
}

// Forget drops a node that left.
func (id *identity) Forget(node string) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	if _, ok := id.saved.Addresses[node]; !ok {
		return nil
	}
	delete(id.saved.Addresses, node)
	return id.writeLocked()
}

func (id *identity) write() error {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.writeLocked()
}

// writeLocked replaces the file: a crash leaves the old or the new one.
func (id *identity) writeLocked() error {
	data, err := json.MarshalIndent(id.saved, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	return writeFileSynced(id.path, append(data, '\n'))
}

// writeFileSynced writes aside, syncs, renames and syncs the folder.
func writeFileSynced(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("sync folder of %s: %w", path, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("sync folder of %s: %w", path, err)
	}
	return nil
}
