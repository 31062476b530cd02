// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/node"
	"github.com/hastate/hastate/testcluster/chaos/control"
)

// The names of the environment.
const (
	EnvRate        = "HANODE_CHAOS_RATE"
	EnvSocket      = "HANODE_CHAOS_SOCKET"
	EnvLeases      = "HANODE_CHAOS_LEASES"
	EnvWatchdogOff = "HANODE_CHAOS_WATCHDOG_OFF"
)

// The rates that a clock may be given: far more than the checks must catch.
const minRate, maxRate = 0.5, 2

// Injector breaks one node.
type Injector struct {
	network *network
	log     *logStall
	wall    *wall
	grants  *grantHold
	leases  *leases
	server  *control.Server[State]
}

// Install reads the environment through lookup (os.LookupEnv) and puts the faults
// into cfg, which must have its NodeID. Without any variable it changes nothing.
// The caller owns the Injector and closes it after the node.
func Install(cfg *node.Config, lookup func(string) (string, bool)) (*Injector, error) {
	in := &Injector{network: newNetwork(cfg.NodeID), log: &logStall{}, wall: &wall{}, grants: &grantHold{}}
	if err := in.install(cfg, lookup); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return in, nil
}

func (in *Injector) install(cfg *node.Config, lookup func(string) (string, bool)) error {
	shown := clock.NewScaled(1)
	if v, ok := lookup(EnvRate); ok {
		rate, err := strconv.ParseFloat(v, 64)
		if err != nil || !(rate >= minRate && rate <= maxRate) {
			return fmt.Errorf("%s is %q: use a number from %v to %v", EnvRate, v, minRate, maxRate)
		}
		shown.Rate = rate
		cfg.Clock = shown
	}
	switch v, _ := lookup(EnvWatchdogOff); v {
	case "", "0":
	case "1":
		cfg.Faults.WatchdogOff = true
	default:
		return fmt.Errorf("%s is %q: use 1, or leave it out", EnvWatchdogOff, v)
	}
	if path, ok := lookup(EnvLeases); ok {
		var err error
		if in.leases, err = openLeases(path, cfg.NodeID, shown, cfg.Logger); err != nil {
			return fmt.Errorf("%s: %w", EnvLeases, err)
		}
		cfg.Faults.OnLease = in.leases.told
	}
	if path, ok := lookup(EnvSocket); ok {
		cfg.Faults.Network, cfg.Faults.Log, cfg.Faults.Wall, cfg.Faults.Entry = in.network, in.log, in.wall.now, in.grants.before
		var err error
		if in.server, err = control.Listen(path, in.Set); err != nil {
			return fmt.Errorf("%s: %w", EnvSocket, err)
		}
	}
	return nil
}

// Set replaces the fault state, or refuses it and leaves the one before.
func (in *Injector) Set(s State) error {
	if err := s.validate(in.network.self); err != nil {
		return err
	}
	in.network.set(s.Links)
	in.wall.set(time.Duration(s.WallOffsetMS) * time.Millisecond)
	in.log.set(s.StallLog)
	in.grants.set(s.HoldGrant)
	return nil
}

// Close ends the control socket and the lease file; faults that are set stay. What
// hangs in a stalled log goes on hanging: heal it first if that is to be waited for.
func (in *Injector) Close() error {
	var errs []error
	if in.server != nil {
		errs = append(errs, in.server.Close())
	}
	if in.leases != nil {
		errs = append(errs, in.leases.close())
	}
	return errors.Join(errs...)
}
