// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"context"
	"time"

	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Instance is the model server beside this node. Every call is given a context
// with a deadline, but for Watch.
type Instance interface {
	Info(ctx context.Context) (Info, error)
	// Watch blocks until ctx ends; it reports at once and on every change.
	Watch(ctx context.Context, report func(Status)) error
	// Clock is a reading of the server's own clock and its age, at most maxAge if that
	// can be had before ctx ends; 0 if the server shows none. An error: it could not be
	// asked whether it shows one.
	Clock(ctx context.Context, maxAge time.Duration) (reading uint64, age time.Duration, err error)
	// Load brings a model into memory. ErrPrecondition if the server cannot.
	Load(ctx context.Context, model *pb.ModelRef) error
	// Promote returns what is served, nil if the server does not say.
	Promote(ctx context.Context, p Promotion) (*pb.ModelRef, error)
	// Demote: after a success the server does no more work under the epoch.
	Demote(ctx context.Context, d Demotion) error
}

// What passes between a holder and its instance is the instance package's.
type (
	// Info is what a server says of itself.
	Info = instance.Info
	// Status is how an instance stands.
	Status = instance.Status
	// Promotion is the order to become the primary.
	Promotion = instance.Promotion
	// Demotion is the order to stop being the primary.
	Demotion = instance.Demotion
)

// State is the replicated state as this node has applied it.
type State interface {
	Group(name string) (*pb.Group, bool)
	Instances(group string) []*pb.Instance
	Applied() (index, term uint64)
	// Changed is closed at the next change of a group or instance, renewals
	// included. It is to be got before looking.
	Changed() <-chan struct{}
}

// Proposer brings a command to the log. An error says that the outcome is
// unknown or that nothing was done; a Result with another code than OK is no
// error.
type Proposer interface {
	Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error)
}

// RoleKind is what the gate of this node may do with the instance.
type RoleKind int

const (
	// RoleStandby: forward nothing to it.
	RoleStandby RoleKind = iota
	// RolePrimary: forward, as long as Primary says so.
	RolePrimary
	// RoleDraining: it finishes what it has, new requests are held.
	RoleDraining
)

// String is for logs and for people.
func (k RoleKind) String() string {
	return [...]string{"STANDBY", "PRIMARY", "DRAINING"}[k]
}

// Role is a RoleKind and the epoch that it is about.
type Role struct {
	Kind  RoleKind
	Epoch uint64
}

// Snapshot is what is known of the holder, for /primary and for people.
type Snapshot struct {
	Group, NodeID string
	// Phase is idle, promoting, serving, draining, fencing or fenced.
	Phase string
	Role  Role
	// Epoch is the one held or last held here, 0 if none.
	Epoch uint64
	// ValidUntil is the end of the lease if nothing is renewed; 0 if none is
	// held. It can be compared on this machine only.
	ValidUntil clock.Instant
	// Known: the instance has reported a status.
	Known  bool
	Status Status
	// Stopping: the node gives up leases and takes no more.
	Stopping bool
	// Unclean: the instance may still serve under an older epoch; it is being
	// demoted and is no candidate until that is done.
	Unclean bool
	// UnwillingUntil is the end of the back-off after failed promotions.
	UnwillingUntil clock.Instant
	// Reason is why the last lease ended, for people.
	Reason string
}
