// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// bootstrap begins the cluster once exactly the expected nodes see each other.
// Only the one with the smallest id writes the first configuration: there can be
// no two first configurations. The others wait for its Raft messages.
func (n *Node) bootstrap(answers map[string]*pb.HelloResponse, trouble string) (string, error) {
	ids := []string{n.cfg.NodeID}
	for id, a := range answers {
		if a.GetBootstrapExpect() == 0 {
			continue // it waits to join, it does not begin
		}
		if int(a.GetBootstrapExpect()) != n.cfg.BootstrapExpect {
			return "", fmt.Errorf("%w: node %s expects %d nodes, this one %d: give all the same number", hastate.ErrPrecondition, id, a.GetBootstrapExpect(), n.cfg.BootstrapExpect)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if len(ids) > n.cfg.BootstrapExpect {
		return "", fmt.Errorf("%w: %d nodes (%s) want to begin a cluster of %d: start the others with join alone", hastate.ErrPrecondition, len(ids), strings.Join(ids, ", "), n.cfg.BootstrapExpect)
	}
	if len(ids) < n.cfg.BootstrapExpect {
		return fmt.Sprintf("%d of %d expected nodes have been seen: %s%s", len(ids), n.cfg.BootstrapExpect, strings.Join(ids, ", "), trouble), nil
	}
	for id, a := range answers {
		for _, other := range ids {
			if _, knows := a.GetKnown()[other]; !knows && a.GetBootstrapExpect() > 0 {
				return fmt.Sprintf("node %s does not know node %s yet", id, other), nil
			}
		}
	}
	for id, a := range answers {
		for other := range a.GetKnown() {
			if _, answered := answers[other]; !answered && other != n.cfg.NodeID {
				// It may begin a cluster with some of the same nodes.
				return fmt.Sprintf("node %s knows node %s too, which does not answer here%s", id, other, trouble), nil
			}
		}
	}
	if ids[0] != n.cfg.NodeID {
		return "waiting for node " + ids[0] + " to begin the cluster", nil
	}
	return "", n.begin(ids)
}

// begin writes the first configuration. The cluster id is on disk before it.
func (n *Node) begin(ids []string) error {
	if n.identity.ClusterID() == "" {
		var raw [8]byte
		if _, err := rand.Read(raw[:]); err != nil {
			return fmt.Errorf("make a cluster id: %w", err)
		}
		if err := n.identity.Pin(hex.EncodeToString(raw[:])); err != nil {
			return err
		}
	}
	var configuration raft.Configuration
	for _, id := range ids {
		configuration.Servers = append(configuration.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	if err := n.raft.BootstrapCluster(configuration).Error(); err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("begin the cluster: %w", err)
	}
	n.admission.admit()
	n.log.Info("began a new cluster", "cluster", n.identity.ClusterID(), "voters", ids)
	return nil
}
