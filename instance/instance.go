// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Instance is a model server as its node sees it.
type Instance interface {
	// Info says what the server is and what it can do.
	Info(ctx context.Context) (Info, error)
	// Watch reports the status as soon as it is known, on every change and at
	// least once an interval, until ctx ends; it returns ctx's error. report must
	// not block for long: it delays the next report.
	Watch(ctx context.Context, report func(Status)) error
	// Clock is a reading of the server's own clock, for Promotion.Clock, and how long
	// ago it was received when Clock returned; 0 if the server shows none. If the newest
	// one is older than maxAge, the server is asked until ctx ends; an older reading,
	// which makes the server's lease shorter and never longer, has to do after that. An
	// error: it could not be asked whether it shows one.
	Clock(ctx context.Context, maxAge time.Duration) (reading uint64, age time.Duration, err error)
	// Load brings a model into memory. ErrPrecondition if the server cannot.
	Load(ctx context.Context, model *pb.ModelRef) error
	// Promote makes the server the primary under an epoch and verifies it. It
	// returns the model that is served, nil if the server does not say.
	Promote(ctx context.Context, p Promotion) (*pb.ModelRef, error)
	// Demote ends primaryship: after a success the server does no more work under
	// the epoch. Demoting a server that is gone succeeds.
	Demote(ctx context.Context, d Demotion) error
	// Close frees the connections. It is idempotent.
	Close() error
}

// Info is what a server says of itself.
type Info struct {
	Engine, EngineVersion string
	Capabilities          []pb.Capability
}

// Has reports whether the server declared a capability.
func (i Info) Has(c pb.Capability) bool { return slices.Contains(i.Capabilities, c) }

// Status is how an instance stands.
type Status struct {
	State pb.InstanceState
	// Gone: the process certainly is gone, its port refuses connections. State is
	// DOWN then.
	Gone bool
	// Role is what the server was told to be, as far as is known.
	Role pb.Role
	// Model is the first model in memory, nil if none is known.
	Model *pb.ModelRef
	// Models are all models in memory, at most maxModels.
	Models           []*pb.ModelRef
	InFlight, Queued uint32
	// Steps grows with each unit of work; 0 for servers that do not count.
	Steps uint64
	// Epoch is the newest that the server has accepted, 0 if none.
	Epoch uint64
	// Reason is why, for people.
	Reason string
}

// Promotion is the order to become the primary.
type Promotion struct {
	// Group is "default" if empty.
	Group string
	Epoch uint64
	// Lease is what is left of it; 0: the server is not to count it.
	Lease time.Duration
	// Clock is what the server's own clock showed before Lease was worked out: the
	// server counts Lease from there, however late the order comes; 0: not known.
	Clock uint64
	// Model is what is to be served, nil for whatever there is.
	Model *pb.ModelRef
}

// Demotion is the order to stop being the primary.
type Demotion struct {
	// Group is "default" if empty.
	Group string
	Epoch uint64
	// Mode is ABORT if unspecified.
	Mode pb.DemoteMode
	// Deadline is after what time running work is ended even in DRAIN mode; 0:
	// DefaultDemoteTimeout.
	Deadline time.Duration
}

func (p Promotion) checked() (Promotion, error) {
	if p.Group == "" {
		p.Group = hastate.DefaultGroup
	}
	if p.Epoch == 0 {
		return p, fmt.Errorf("%w: a promotion needs the epoch of its grant, not 0", hastate.ErrInvalid)
	}
	if p.Lease < 0 || (p.Lease > 0 && p.Lease < time.Millisecond) || p.Lease.Milliseconds() > math.MaxUint32 {
		return p, fmt.Errorf("%w: lease %v of a promotion must be 0 or between 1ms and 49 days", hastate.ErrInvalid, p.Lease)
	}
	return p, nil
}

func (d Demotion) checked() (Demotion, error) {
	if d.Group == "" {
		d.Group = hastate.DefaultGroup
	}
	if d.Mode == pb.DemoteMode_DEMOTE_MODE_UNSPECIFIED {
		d.Mode = pb.DemoteMode_DEMOTE_MODE_ABORT
	}
	if d.Deadline == 0 {
		d.Deadline = DefaultDemoteTimeout
	}
	if d.Epoch == 0 {
		return d, fmt.Errorf("%w: a demotion needs the epoch that ends, not 0", hastate.ErrInvalid)
	}
	if d.Deadline < time.Millisecond || d.Deadline.Milliseconds() > math.MaxUint32 {
		return d, fmt.Errorf("%w: deadline %v of a demotion must be between 1ms and 49 days", hastate.ErrInvalid, d.Deadline)
	}
	return d, nil
}
