// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The names of grpc.health.v1. "" is the process.
const (
	// HealthReady: this node knows a leader and is caught up.
	HealthReady = "hastate.ready"
	// HealthPrimary: the instance beside this node is the primary of its group;
	// HealthPrimary/GROUP for one group.
	HealthPrimary = "hastate.primary"
)

const (
	// healthEvery is how often health is looked at although nothing has changed:
	// leases run out without an event.
	healthEvery = 100 * time.Millisecond
	// readyLag is how many entries a ready node may be behind.
	readyLag = 256
	// maxOwnEntries bounds the search for the newest command in the log.
	maxOwnEntries = 1024
)

// Run keeps grpc.health.v1 up to date until ctx ends. Then nothing is serving.
func (s *Services) Run(ctx context.Context) error {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	defer s.health.Shutdown()
	told := make(map[string]bool)
	set := func(name string, serving bool) {
		if was, ok := told[name]; ok && was == serving {
			return
		}
		told[name] = serving
		status := healthpb.HealthCheckResponse_NOT_SERVING
		if serving {
			status = healthpb.HealthCheckResponse_SERVING
		}
		s.health.SetServingStatus(name, status)
	}
	set("", true)
	for {
		changed := s.cfg.State.Changed()
		set(HealthReady, s.Ready() == nil)
		primaries := s.primaryHere()
		for name := range told {
			if _, ok := primaries[name]; !ok && name != "" && name != HealthReady && name != HealthPrimary {
				set(name, false)
			}
		}
		anywhere := false
		for name, serving := range primaries {
			set(name, serving)
			anywhere = anywhere || serving
		}
		set(HealthPrimary, anywhere)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// healthServer looks at the lease itself when it is asked: what Run has noted may
// be from before the lease ran out, or from before the process was frozen.
type healthServer struct {
	*health.Server
	s *Services
}

// Check answers for one name.
func (h *healthServer) Check(ctx context.Context, req *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	res, err := h.Server.Check(ctx, req)
	if err == nil && res.GetStatus() == healthpb.HealthCheckResponse_SERVING && !h.s.stillPrimary(req.GetService()) {
		res = &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}
	}
	return res, err
}

// stillPrimary is true for the names that are not about primaryship.
func (s *Services) stillPrimary(name string) bool {
	if group, ok := strings.CutPrefix(name, HealthPrimary+"/"); ok {
		return s.IsPrimary(group)
	}
	if name != HealthPrimary {
		return true
	}
	for _, primary := range s.primaryHere() {
		if primary {
			return true
		}
	}
	return false
}

// primaryHere tells for each group with an instance beside this node whether
// that instance is the primary, by health name.
func (s *Services) primaryHere() map[string]bool {
	out := make(map[string]bool)
	for _, inst := range s.cfg.State.Instances("") {
		if inst.GetNodeId() == s.cfg.NodeID {
			out[HealthPrimary+"/"+inst.GetGroup()] = s.IsPrimary(inst.GetGroup())
		}
	}
	return out
}

// IsPrimary reports whether the instance beside this node is the primary of a
// group: by the record, and by the holder's own view of its lease.
func (s *Services) IsPrimary(group string) bool {
	g, ok := s.cfg.State.Group(group)
	if !ok || g.GetHolder() != s.cfg.NodeID || g.GetPhase() != pb.GroupPhase_GROUP_PHASE_SERVING {
		return false
	}
	h, ok := s.cfg.Holders.For(group)
	return ok && h.Holds()
}

// Ready says why this node is not ready, nil if it is: it knows a leader and is
// caught up.
func (s *Services) Ready() error {
	if id, _ := s.leader(); id == "" {
		return errors.New("no leader is known")
	}
	return s.caughtUp()
}

func (s *Services) caughtUp() error {
	commit := s.cfg.Raft.CommitIndex()
	if commit == 0 {
		return errors.New("it has not heard from the leader how far the log is committed")
	}
	applied, _ := s.cfg.State.Applied()
	if applied+readyLag >= commit {
		return nil
	}
	// Raft's own entries do not count as applied.
	last := commit
	for i := 0; i < maxOwnEntries && last > applied; i++ {
		var entry raft.Log
		if s.cfg.Log.GetLog(last, &entry) != nil || entry.Type == raft.LogCommand {
			break
		}
		last--
	}
	if applied+readyLag >= last {
		return nil
	}
	return fmt.Errorf("it is %d log entries behind", last-applied)
}
