// SPDX-License-Identifier: Apache-2.0

package holder_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/holder"
	"github.com/hastate/hastate/internal/holder/holdertest"
	"github.com/hastate/hastate/internal/holder/leaselog"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// slow is a profile whose lease a busy machine does not miss.
func slow() election.Profile {
	p := election.Lan
	p.Lease, p.Renew, p.FenceMargin = 3*time.Second, 50*time.Millisecond, 300*time.Millisecond
	return p
}

// stand is one holder with its server and its log.
type stand struct {
	tb     testing.TB
	h      *holder.Holder
	log    *leaselog.Log
	server *holdertest.Server
	stop   func()
	killed atomic.Bool

	mu    sync.Mutex // guards roles
	roles []holder.Role
}

func newStand(tb testing.TB, p election.Profile, l *leaselog.Log, s *holdertest.Server, edit func(*holder.Config)) *stand {
	tb.Helper()
	if l == nil {
		l = leaselog.NewLog(clock.Boot{})
	}
	if s == nil {
		s = holdertest.NewServer()
	}
	st := &stand{tb: tb, log: l, server: s}
	cfg := holder.Config{
		NodeID: "n1", Group: "g", Instance: s, Address: "10.0.0.1:8000", Profile: p, State: l, Proposer: l.Node("n1"),
		OnRole: func(r holder.Role) {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.roles = append(st.roles, r)
		},
		Kill: func(ctx context.Context, reason string) error {
			st.killed.Store(true)
			return s.Kill(ctx, reason)
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	h, err := holder.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	st.h = h
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	var once sync.Once
	st.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				tb.Errorf("Run: %v", err)
			}
		})
	}
	tb.Cleanup(st.stop)
	return st
}

// ready waits until the instance has been reported.
func (s *stand) ready() {
	s.tb.Helper()
	wait.Until(s.tb, patience, func() error {
		if len(s.log.Instances("g")) == 0 {
			return errors.New("the instance is not in the log")
		}
		return nil
	})
}

// grant nominates the holder and grants it the group.
func (s *stand) grant(nomination uint64) uint64 {
	s.tb.Helper()
	s.ready()
	g, _ := s.log.Group("g")
	r := s.h.Nominate(context.Background(), &pb.NominateRequest{Group: "g", Nomination: nomination, Epoch: g.GetEpoch()})
	if !r.GetConsent() {
		s.tb.Fatalf("no consent: %s", r.GetReason())
	}
	res := s.log.Commit(&pb.Command{Op: &pb.Command_Grant{Grant: &pb.Grant{
		Group: "g", Holder: "n1", TtlMs: 3000, IfEpoch: g.GetEpoch(), IfLastRenew: g.GetLastRenew(), Nomination: nomination,
	}}})
	if res.GetCode() != pb.ResultCode_RESULT_CODE_OK {
		s.tb.Fatalf("grant: %v", res)
	}
	return res.GetEpoch()
}

func (s *stand) phase(want pb.GroupPhase) *pb.Group {
	s.tb.Helper()
	var g *pb.Group
	wait.Until(s.tb, patience, func() error {
		if g, _ = s.log.Group("g"); g.GetPhase() != want {
			return fmt.Errorf("the group is %v (%s), want %v; holder %+v", g.GetPhase(), g.GetReleaseReason(), want, s.h.Status())
		}
		return nil
	})
	return g
}

const (
	vacant  = pb.GroupPhase_GROUP_PHASE_VACANT
	serving = pb.GroupPhase_GROUP_PHASE_SERVING
)

func TestHolderServesAndRenews(t *testing.T) {
	s := newStand(t, slow(), nil, nil, nil)
	epoch := s.grant(7)
	g := s.phase(serving)
	if s.server.Promoted() != epoch {
		t.Fatalf("the server serves %d, want %d", s.server.Promoted(), epoch)
	}
	if e, ok := s.h.Primary(); !ok || e != epoch {
		t.Fatalf("Primary() = %d, %t", e, ok)
	}
	wait.Until(t, patience, func() error {
		if now, _ := s.log.Group("g"); now.GetLastRenew() <= g.GetLastRenew() {
			return errors.New("not renewed")
		}
		return nil
	})
	i := s.log.Instances("g")[0]
	if i.GetAddress() != "10.0.0.1:8000" || i.GetModel().GetDigest() != "sha256:a" {
		t.Fatalf("reported %v", i)
	}
	// Run's end gives the lease back.
	s.stop()
	if g, _ := s.log.Group("g"); g.GetPhase() != vacant || g.GetReleaseReason() != "node stopping" {
		t.Fatalf("after the stop: %v", g)
	}
	if s.server.Promoted() != 0 {
		t.Fatal("the server still serves")
	}
	if r := s.h.Nominate(context.Background(), &pb.NominateRequest{Group: "g", Nomination: 8, Epoch: epoch}); r.GetConsent() {
		t.Fatal("a stopped holder consents")
	}
}

func TestHolderReleasesAtOnceWhenTheProcessIsGone(t *testing.T) {
	p := slow()
	p.Lease = 50 * time.Second // the release does not wait for it
	s := newStand(t, p, nil, nil, nil)
	s.grant(7)
	s.phase(serving)
	s.server.Die()
	if g := s.phase(vacant); g.GetLastHolder() != "n1" {
		t.Fatalf("released by %q", g.GetLastHolder())
	}
	if _, ok := s.h.Primary(); ok {
		t.Fatal("still primary")
	}
	wait.Until(t, patience, func() error {
		if i := s.log.Instances("g")[0]; i.GetState() != pb.InstanceState_INSTANCE_STATE_DOWN {
			return fmt.Errorf("reported as %v", i.GetState())
		}
		return nil
	})
}

func TestHolderKillsWhatDoesNotObey(t *testing.T) {
	p := slow()
	s := newStand(t, p, nil, nil, nil)
	s.grant(7)
	s.phase(serving)
	s.server.On(nil, holdertest.Hang, nil)
	s.log.Cut("n1", true) // no renewal commits any more
	wait.Until(t, patience, func() error {
		if !s.killed.Load() {
			return errors.New("not killed")
		}
		return nil
	})
	if _, ok := s.h.Primary(); ok {
		t.Fatal("still primary")
	}
	s.mu.Lock()
	last := s.roles[len(s.roles)-1]
	s.mu.Unlock()
	if last.Kind != holder.RoleStandby {
		t.Fatalf("last role %v", last)
	}
	s.log.Cut("n1", false)
	s.phase(vacant)
}

func TestHolderFailedPromotion(t *testing.T) {
	s := newStand(t, slow(), nil, nil, nil)
	s.server.On(func(context.Context) error { return errors.New("out of memory") }, nil, nil)
	epoch := s.grant(7)
	s.phase(vacant)
	var failed bool
	for _, c := range s.log.Commands() {
		failed = failed || c.GetRelease().GetPromoteFailed()
	}
	if !failed {
		t.Fatal("the release does not say that the promotion failed")
	}
	wait.Until(t, patience, func() error {
		if s.h.Status().Phase != "idle" {
			return errors.New(s.h.Status().Phase)
		}
		return nil
	})
	if !s.h.Canvass(context.Background()).GetUnwilling() {
		t.Fatal("it is willing at once")
	}
	if r := s.h.Nominate(context.Background(), &pb.NominateRequest{Group: "g", Nomination: 8, Epoch: epoch}); r.GetConsent() {
		t.Fatal("it consents at once")
	}
}

func TestHolderRevoked(t *testing.T) {
	s := newStand(t, slow(), nil, nil, nil)
	epoch := s.grant(7)
	s.phase(serving)
	s.log.Commit(&pb.Command{Op: &pb.Command_Revoke{Revoke: &pb.Revoke{Group: "g", IfEpoch: epoch}}})
	s.phase(vacant)
	if s.server.Promoted() != 0 {
		t.Fatal("released while the server serves")
	}
}

func TestHolderGivesBackWhatItHeldBeforeARestart(t *testing.T) {
	p := slow()
	s := newStand(t, p, nil, nil, nil)
	epoch := s.grant(7)
	s.phase(serving)
	// The process ends without a word: its proposals and its demotion get lost.
	s.log.Cut("n1", true)
	s.server.On(nil, holdertest.Hang, nil)
	s.h.Status()
	s.stop()
	s.server.On(nil, nil, nil)
	revived := holdertest.NewServer()
	if _, err := revived.Promote(context.Background(), holder.Promotion{Epoch: epoch, Lease: time.Second}); err != nil {
		t.Fatal(err)
	}
	s.log.Cut("n1", false)
	again := newStand(t, p, s.log, revived, nil)
	if g := again.phase(vacant); g.GetEpoch() != epoch || g.GetReleaseReason() != "the node was restarted" {
		t.Fatalf("group %v", g)
	}
	if revived.Promoted() != 0 {
		t.Fatal("released while the server still serves under the old epoch")
	}
	again.grant(8)
	again.phase(serving)
}

func TestHolderFence(t *testing.T) {
	s := newStand(t, slow(), nil, nil, nil)
	epoch := s.grant(7)
	s.phase(serving)
	ctx := context.Background()
	if r := s.h.Fence(ctx, &pb.FenceRequest{Group: "g", Epoch: epoch + 1}); r.GetFenced() || r.GetReason() == "" {
		t.Fatalf("another epoch: %v", r)
	}
	release := make(chan struct{})
	s.server.On(nil, func(ctx context.Context) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, nil)
	answer := make(chan *pb.FenceResponse, 1)
	go func() { answer <- s.h.Fence(ctx, &pb.FenceRequest{Group: "g", Epoch: epoch, DrainMs: 60_000}) }()
	wait.Until(t, patience, func() error {
		if r := s.h.Status().Role; r.Kind != holder.RoleDraining {
			return fmt.Errorf("role %v", r)
		}
		return nil
	})
	close(release)
	if r := <-answer; !r.GetFenced() {
		t.Fatalf("answer %v", r)
	}
	if _, ok := s.h.Primary(); ok || s.server.Promoted() != 0 {
		t.Fatal("fenced, but still primary")
	}
	// Nobody hands over: after a while the holder releases.
	s.phase(vacant)
}

func TestHolderHandoff(t *testing.T) {
	s := newStand(t, slow(), nil, nil, nil)
	s.grant(7)
	s.phase(serving)
	if err := s.h.Handoff(context.Background(), time.Second); err != nil {
		t.Fatal(err)
	}
	if g, _ := s.log.Group("g"); g.GetPhase() != vacant || g.GetReleaseReason() != "node stopping" {
		t.Fatalf("group %v", g)
	}
	if !s.h.Canvass(context.Background()).GetUnwilling() {
		t.Fatal("it is still willing")
	}
}

func TestHolderPrepares(t *testing.T) {
	s := newStand(t, slow(), nil, nil, nil)
	s.server.Set(func(st *holder.Status) { st.State = pb.InstanceState_INSTANCE_STATE_WARM })
	s.ready()
	wait.Until(t, patience, func() error {
		if st := s.h.Status().Status.State; st != pb.InstanceState_INSTANCE_STATE_WARM {
			return fmt.Errorf("state %v", st)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if r := s.h.Nominate(ctx, &pb.NominateRequest{Group: "g", Nomination: 1}); r.GetConsent() {
		t.Fatal("a WARM instance consents without being prepared")
	}
	s.server.On(nil, nil, func() error { return nil })
	if r := s.h.Nominate(ctx, &pb.NominateRequest{Group: "g", Nomination: 2, Prepare: true}); !r.GetConsent() {
		t.Fatalf("no consent: %s", r.GetReason())
	}
	if st := s.h.Canvass(ctx).GetState(); st != pb.InstanceState_INSTANCE_STATE_READY {
		t.Fatalf("consented as %v", st)
	}
}

func TestHolderRepeatsPromoteForServersThatCount(t *testing.T) {
	server := holdertest.NewServer()
	server.Capable(pb.Capability_CAPABILITY_LEASE)
	s := newStand(t, slow(), nil, server, nil)
	s.grant(7)
	s.phase(serving)
	wait.Until(t, patience, func() error {
		if n := len(server.Calls()); n < 4 {
			return fmt.Errorf("%d calls", n)
		}
		return nil
	})
}

func TestHolderConfig(t *testing.T) {
	if _, err := holder.New(holder.Config{}); err == nil {
		t.Fatal("an empty configuration is taken")
	}
	s := newStand(t, slow(), nil, nil, nil)
	s.ready() // the first Run has begun
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.h.Run(ctx); err == nil || ctx.Err() != nil {
		t.Fatal("Run can be called twice")
	}
}
