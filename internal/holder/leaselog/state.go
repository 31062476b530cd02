// SPDX-License-Identifier: Apache-2.0

package leaselog

import (
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// State is what the lease needs of the replicated state. It is not safe for
// concurrent use.
type State struct {
	groups    map[string]*pb.Group
	instances map[string]*pb.Instance
	history   map[string][]*pb.Transition
	revision  uint64
}

// NewState is empty.
func NewState() *State {
	return &State{groups: map[string]*pb.Group{}, instances: map[string]*pb.Instance{}, history: map[string][]*pb.Transition{}}
}

// Group returns a copy.
func (s *State) Group(name string) (*pb.Group, bool) {
	g, ok := s.groups[name]
	if !ok {
		return nil, false
	}
	return proto.Clone(g).(*pb.Group), true
}

const (
	vacant  = pb.GroupPhase_GROUP_PHASE_VACANT
	granted = pb.GroupPhase_GROUP_PHASE_GRANTED
	serving = pb.GroupPhase_GROUP_PHASE_SERVING
)

// Apply is the effect of one committed command at index.
func (s *State) Apply(index uint64, cmd *pb.Command) *pb.Result {
	res := s.apply(index, cmd)
	res.Index, res.Revision = index, s.revision
	return res
}

func ok() *pb.Result { return &pb.Result{Code: pb.ResultCode_RESULT_CODE_OK} }

func conflict() *pb.Result {
	return &pb.Result{Code: pb.ResultCode_RESULT_CODE_CONFLICT, Message: "another record"}
}

func fenced(g *pb.Group) *pb.Result {
	return &pb.Result{Code: pb.ResultCode_RESULT_CODE_FENCED, Epoch: g.GetEpoch(), Holder: g.GetHolder()}
}

func (s *State) apply(index uint64, cmd *pb.Command) *pb.Result {
	switch op := cmd.GetOp().(type) {
	case *pb.Command_Grant:
		c := op.Grant
		g := s.groups[c.GetGroup()]
		if g == nil || g.Epoch != c.GetIfEpoch() || g.LastRenew != c.GetIfLastRenew() {
			return conflict()
		}
		return s.grant(index, g, c)
	case *pb.Command_Handover:
		c := op.Handover
		g := s.groups[c.GetGroup()]
		if g == nil || g.Epoch != c.GetIfEpoch() || g.Holder != c.GetFrom() || g.Phase == vacant {
			return conflict()
		}
		return s.grant(index, g, &pb.Grant{
			Group: c.GetGroup(), Holder: c.GetTo(), TtlMs: c.GetTtlMs(), Nomination: c.GetNomination(),
			Kind: c.GetKind(), Reason: c.GetReason(), GrantMs: c.GetGrantMs(),
		})
	case *pb.Command_Renew:
		return s.renew(index, op.Renew)
	case *pb.Command_Release:
		return s.release(op.Release)
	case *pb.Command_Revoke:
		g := s.groups[op.Revoke.GetGroup()]
		if g == nil || g.Epoch != op.Revoke.GetIfEpoch() || g.Phase == vacant {
			return conflict()
		}
		g.Revoked = true
		return s.touch(g)
	case *pb.Command_Serving:
		c := op.Serving
		g := s.groups[c.GetGroup()]
		if g == nil || g.Epoch != c.GetEpoch() || g.Holder != c.GetHolder() || g.Phase == vacant {
			return fenced(g)
		}
		if g.Phase == granted {
			g.Phase = serving
			s.end(g, pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING)
		}
		return s.touch(g)
	case *pb.Command_ReportInstance:
		i := proto.Clone(op.ReportInstance.GetInstance()).(*pb.Instance)
		g := s.groups[i.GetGroup()]
		if g == nil {
			g = &pb.Group{Name: i.GetGroup(), Phase: vacant}
			s.groups[i.GetGroup()] = g
			s.touch(g)
		}
		s.revision++
		i.Revision = s.revision
		s.instances[i.GetGroup()+"/"+i.GetNodeId()] = i
		return ok()
	case *pb.Command_Calm:
		g := s.groups[op.Calm.GetGroup()]
		g.FailoversSinceCalm = 0
		return s.touch(g)
	}
	return &pb.Result{Code: pb.ResultCode_RESULT_CODE_INVALID, Message: "unknown command"}
}

func (s *State) touch(g *pb.Group) *pb.Result {
	s.revision++
	g.Revision = s.revision
	return ok()
}

func (s *State) grant(index uint64, g *pb.Group, c *pb.Grant) *pb.Result {
	s.end(g, pb.TransitionOutcome_TRANSITION_OUTCOME_FAILED)
	from := g.Holder
	if from == "" {
		from = g.LastHolder
	}
	g.Transitions++
	s.history[g.Name] = append(s.history[g.Name], &pb.Transition{
		Group: g.Name, Number: g.Transitions, Kind: c.GetKind(), Outcome: pb.TransitionOutcome_TRANSITION_OUTCOME_PENDING,
		From: from, To: c.GetHolder(), EpochBefore: g.Epoch, Epoch: index, Reason: c.GetReason(), DetectedBy: c.GetDetectedBy(),
		DetectMs: c.GetDetectMs(), GrantMs: c.GetGrantMs(),
	})
	g.Holder, g.Epoch, g.LastRenew, g.Phase = c.GetHolder(), index, index, granted
	g.Revoked, g.Nomination, g.TtlMs = false, c.GetNomination(), c.GetTtlMs()
	switch c.GetKind() {
	case pb.TransitionKind_TRANSITION_KIND_FAILOVER, pb.TransitionKind_TRANSITION_KIND_FORCED:
		g.FailoversSinceCalm++
		m := g.GetPolicy().GetMaxFailovers()
		g.Held = m > 0 && g.FailoversSinceCalm >= m
	}
	s.touch(g)
	res := ok()
	res.Epoch = index
	return res
}

// end closes a transition that is still pending.
func (s *State) end(g *pb.Group, outcome pb.TransitionOutcome) {
	if h := s.history[g.Name]; len(h) > 0 && h[len(h)-1].Outcome == pb.TransitionOutcome_TRANSITION_OUTCOME_PENDING {
		h[len(h)-1].Outcome = outcome
	}
}

func (s *State) renew(index uint64, c *pb.RenewBatch) *pb.Result {
	res := ok()
	for _, i := range c.GetItems() {
		g := s.groups[i.GetGroup()]
		if g == nil || g.Epoch != i.GetEpoch() || g.Phase == vacant || g.Revoked || g.Holder != c.GetHolder() {
			res.Refused = append(res.Refused, &pb.RenewRefusal{Group: i.GetGroup(), NewestEpoch: g.GetEpoch(), Holder: g.GetHolder()})
			continue
		}
		g.LastRenew = index
	}
	return res
}

func (s *State) release(c *pb.Release) *pb.Result {
	g := s.groups[c.GetGroup()]
	if g == nil || g.Epoch != c.GetEpoch() || g.Holder != c.GetHolder() || g.Phase == vacant {
		return fenced(g)
	}
	s.end(g, pb.TransitionOutcome_TRANSITION_OUTCOME_FAILED)
	g.Phase, g.LastHolder, g.Holder, g.ReleaseReason = vacant, g.Holder, "", c.GetReason()
	return s.touch(g)
}

// Instances returns copies, in order of node.
func (s *State) Instances(group string) []*pb.Instance {
	var out []*pb.Instance
	for _, i := range s.instances {
		if group == "" || i.GetGroup() == group {
			out = append(out, proto.Clone(i).(*pb.Instance))
		}
	}
	slices.SortFunc(out, func(a, b *pb.Instance) int {
		if a.GetNodeId() < b.GetNodeId() {
			return -1
		}
		return 1
	})
	return out
}
