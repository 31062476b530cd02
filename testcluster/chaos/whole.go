// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/model"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

const (
	// wholeTimeout is how long a healed cluster may take until it is whole: a node
	// that lost its disk has to come in anew.
	wholeTimeout = 45 * time.Second
	// hopeTimeout is how long it waits while a majority has ended: far longer than a
	// leader leads without one.
	hopeTimeout = 3 * time.Second
	// lookEvery is the pace of questions while waiting.
	lookEvery = 20 * time.Millisecond
)

// exited is a node or model server that ended by itself.
type exited struct {
	id   string
	code int
	tail string
}

// heal puts everything right that a fault can have broken, and starts what does
// not run.
func (s *stage) heal(ctx context.Context) error {
	errs := []error{s.rig.HealLinks()}
	clear(s.cuts)
	for _, h := range s.rig.Hosts() {
		errs = append(errs, s.healHost(ctx, h))
	}
	for _, h := range s.members {
		errs = append(errs, s.startAgain(h))
	}
	return errors.Join(errs...)
}

// startAgain starts what does not run on a host, and notes a node that has ended
// by itself.
func (s *stage) startAgain(h *rig.Host) error {
	if p := h.Node(); !s.downed[h] && !p.Running() {
		s.ended = append(s.ended, exited{id: h.NodeID(), code: p.ExitCode(), tail: lastLines(p.Tail(), 12)})
	}
	return s.startHost(h)
}

func (s *stage) healHost(ctx context.Context, h *rig.Host) error {
	errs := []error{h.Thaw(ctx), h.Free()}
	for i, err := range errs {
		if errors.Is(err, rig.ErrUnsupported) {
			errs[i] = nil
		}
	}
	errs = append(errs, s.signal(syscall.SIGCONT, true, true, h))
	for _, g := range s.groups {
		if p := h.Model(g); p != nil && p.Running() {
			if err := h.ModelControl(ctx, g, []byte("{}")); err != nil && p.Running() {
				errs = append(errs, fmt.Errorf("model server of %s: %w", h.NodeID(), err))
			}
		}
	}
	return errors.Join(errs...)
}

// waitWhole waits until the cluster is as it should be: all members are there
// and have caught up, and every group has a primary that serves.
func (s *stage) waitWhole(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var last error
	hope := time.Now()
	for {
		err := s.whole(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // not what the end of ctx looks like from inside
		}
		if !s.mostEnded() {
			hope = time.Now()
		} else if time.Since(hope) > hopeTimeout {
			return fmt.Errorf("a majority of the nodes has ended: %w", last)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not whole within %v: %w", wholeTimeout, last)
		case <-tick.C:
		}
	}
}

// mostEnded says that a majority of the nodes has ended. They are started again only
// while somebody leads, and nobody can.
func (s *stage) mostEnded() bool {
	ended := 0
	for _, h := range s.members {
		if p := h.Node(); p == nil || !p.Running() {
			ended++
		}
	}
	return ended > len(s.members)/2
}

// whole says what is missing. On the way it does what an operator would do: it
// lets in members that are missing, removes those that are gone, and resumes.
func (s *stage) whole(ctx context.Context) error {
	if err := s.membersWhole(ctx); err != nil {
		return err
	}
	groups, instances, err := s.records(ctx)
	if err != nil {
		return err
	}
	ready := map[string]int{}
	for _, in := range instances {
		if in.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
			ready[in.GetGroup()]++
		}
	}
	for _, name := range s.groups {
		g := groups[name]
		switch {
		case g.GetPaused() || g.GetHeld():
			return errors.Join(fmt.Errorf("group %s is paused", name), s.resume(ctx, name))
		case g.GetPhase() != pb.GroupPhase_GROUP_PHASE_SERVING || g.GetRevoked():
			return fmt.Errorf("group %s is %v (%s)", name, g.GetPhase(), g.GetReleaseReason())
		case ready[name] < len(s.members):
			return fmt.Errorf("group %s has %d of %d instances ready", name, ready[name], len(s.members))
		}
		h, ok := s.rig.Host(g.GetHolder())
		if !ok || !slices.Contains(s.members, h) {
			return fmt.Errorf("group %s is held by %s, which is no member", name, g.GetHolder())
		}
		// The record may be of before the holder was restarted.
		if err := s.serves(ctx, h, g); err != nil {
			return err
		}
	}
	return nil
}

// serves asks the primary to do a request under the group's epoch.
func (s *stage) serves(ctx context.Context, h *rig.Host, g *pb.Group) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.ModelAddress(g.GetName())+"/generate", nil)
	if err != nil {
		return err
	}
	resp, err := s.web.Do(req)
	if err != nil {
		return fmt.Errorf("primary of %s: %w", g.GetName(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	var did model.Answer
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the primary of %s at %s answers %s", g.GetName(), h.NodeID(), resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&did); err != nil {
		return fmt.Errorf("primary of %s: %w", g.GetName(), err)
	}
	if did.Epoch != g.GetEpoch() {
		return fmt.Errorf("the primary of %s at %s serves under epoch %d, the group has %d", g.GetName(), h.NodeID(), did.Epoch, g.GetEpoch())
	}
	return nil
}

func (s *stage) resume(ctx context.Context, group string) error {
	return s.call(ctx, client.Repeatable, 2*time.Second, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewGroupServiceClient(cc).Resume(ctx, &pb.ResumeRequest{Group: group})
		return err
	})
}

// membersWhole looks at the nodes and the configuration of Raft.
func (s *stage) membersWhole(ctx context.Context) error {
	leader, err := s.leaderStatus(ctx)
	if leader == nil {
		return errors.Join(errors.New("no member says that it leads"), err)
	}
	found := map[string]*pb.Member{}
	for _, m := range leader.GetMembers() {
		found[m.GetNodeId()] = m
		if h, ok := s.rig.Host(m.GetNodeId()); !ok || !slices.Contains(s.members, h) {
			// It may be in the way of the node that takes its place.
			return errors.Join(fmt.Errorf("%s is a member and should not be", m.GetNodeId()), s.removeMember(ctx, m.GetNodeId()))
		}
	}
	for _, h := range s.members {
		// One may have ended while it was being put right.
		if err := s.startModels(h); err != nil {
			return err
		}
		m := found[h.NodeID()]
		switch p := h.Node(); {
		case !p.Running() && s.starts[h].Expect == 0 && m == nil:
			return errors.Join(fmt.Errorf("%s was not let in: %s", h.NodeID(), lastLines(p.Tail(), 1)), s.startNode(h))
		case !p.Running(): // one whose disk hung ends only when that is over
			return errors.Join(fmt.Errorf("%s has ended: %s", h.NodeID(), lastLines(p.Tail(), 3)), s.startAgain(h))
		case m == nil:
			return fmt.Errorf("%s is no member", h.NodeID())
		case m.GetRole() != pb.MemberRole_MEMBER_ROLE_VOTER:
			return errors.Join(fmt.Errorf("%s has no vote", h.NodeID()), s.promoteMember(ctx, h.NodeID()))
		case !m.GetReachable() && !m.GetLeader():
			return fmt.Errorf("the leader does not reach %s", h.NodeID())
		case m.GetAppliedIndex()+256 < leader.GetAppliedIndex():
			return fmt.Errorf("%s is behind", h.NodeID())
		}
	}
	return err
}

// leaderStatus is what the leader says of the cluster, nil if no member says that
// it leads. The error is about members that do not follow.
func (s *stage) leaderStatus(ctx context.Context) (leader *pb.StatusResponse, err error) {
	var errs []error
	for _, h := range s.members {
		st, err := s.status(ctx, h, false)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s does not answer: %w", h.NodeID(), err))
			continue
		case st.GetLeaderId() == "":
			errs = append(errs, fmt.Errorf("%s knows no leader", h.NodeID()))
		case st.GetAppliedIndex()+64 < st.GetCommitIndex():
			errs = append(errs, fmt.Errorf("%s is behind", h.NodeID()))
		}
		if st.GetLeaderId() == h.NodeID() {
			leader = st
		}
	}
	return leader, errors.Join(errs...)
}

// memberTimeout bounds one change of the membership.
const memberTimeout = 5 * time.Second

func (s *stage) removeMember(ctx context.Context, id string) error {
	return s.call(ctx, client.Once, memberTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewClusterServiceClient(cc).RemoveMember(ctx, &pb.RemoveMemberRequest{NodeId: id, Force: true})
		return err
	})
}

func (s *stage) promoteMember(ctx context.Context, id string) error {
	return s.call(ctx, client.Once, memberTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewClusterServiceClient(cc).PromoteMember(ctx, &pb.PromoteMemberRequest{NodeId: id})
		return err
	})
}

func (s *stage) demoteMember(ctx context.Context, id string) error {
	return s.call(ctx, client.Once, memberTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewClusterServiceClient(cc).DemoteMember(ctx, &pb.DemoteMemberRequest{NodeId: id})
		return err
	})
}

// replace gives a host a new disk and a new name, and lets it join: what an
// operator does with a dead node. It belongs to the members from now on.
func (s *stage) replace(ctx context.Context, h *rig.Host) error {
	if err := s.kill(true, true, h); err != nil {
		return err
	}
	s.joined++
	if err := h.Wipe(ctx); err != nil {
		return err
	}
	if err := h.Rename(fmt.Sprintf("n%d", s.joined)); err != nil {
		return err
	}
	join := []string{}
	for _, m := range s.members {
		if m != h {
			join = append(join, m.GRPC())
		}
	}
	s.starts[h] = rig.NodeStart{Join: join, WatchdogOff: s.o.watchdogOff}
	if !slices.Contains(s.members, h) {
		s.members = append(s.members, h)
	}
	return s.startHost(h)
}

// spare takes a host out of the members; its processes must have ended.
func (s *stage) spare(h *rig.Host) {
	s.members = slices.DeleteFunc(s.members, func(m *rig.Host) bool { return m == h })
	s.downed[h] = true
}

// sameState waits until all members hold the same state at the same index. The
// load must have stopped.
func (s *stage) sameState(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	seen := map[uint64]map[string]string{}
	for {
		for _, h := range s.members {
			st, err := s.status(ctx, h, true)
			if err != nil || st.GetStateHash() == "" {
				continue
			}
			at := seen[st.GetHashIndex()]
			if at == nil {
				at = map[string]string{}
				seen[st.GetHashIndex()] = at
			}
			at[h.NodeID()] = st.GetStateHash()
			if len(at) < len(s.members) {
				continue
			}
			for _, hash := range at {
				if hash != st.GetStateHash() {
					return &differ{fmt.Sprintf("the states at index %d differ: %v", st.GetHashIndex(), at)}
				}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the nodes were not seen at one index: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// differ is a violation and no accident of the measurement.
type differ struct{ text string }

func (d *differ) Error() string { return d.text }

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
