// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Options say what to show.
type Options struct {
	// Faults are names out of Faults().
	Faults []string
	// JSON prints one object per fault and nothing else on Out.
	JSON bool
	// Keep leaves the (last) cluster running until the context ends.
	Keep bool
	// Hanode is the program to start nodes with.
	Hanode string
	// Textserver is the model server to start; empty: the one inside Hanode.
	Textserver string
	// Hactl is the hactl named in the hints of Keep.
	Hactl string
	// Profile of timeouts.
	Profile string
	// BasePort, if not 0, is the first of twelve consecutive ports to use.
	BasePort int
	// Dir is where the scratch folder is made; empty: the system's.
	Dir string
	Out io.Writer
	Log io.Writer
}

const (
	// tokens is the length of the streamed completion.
	tokens = 240
	// pace is the time that the model takes for a token.
	pace = 15 * time.Millisecond
	// faultAt is the token at which something is broken.
	faultAt = 80
	// runTimeout bounds one fault from start to end.
	runTimeout = 60 * time.Second
)

var errInterrupted = errors.New("interrupted: what was started has been ended")

// Result is what one fault showed.
type Result struct {
	Fault string `json:"fault"`
	// Milliseconds from the fault: until the cluster had decided that the primary
	// was lost, until the grant, until the new primary served. For kill-leader
	// until a new leader was there: primaryship does not move.
	DetectedMillis int64 `json:"detected_ms"`
	GrantedMillis  int64 `json:"granted_ms"`
	ServingMillis  int64 `json:"serving_ms"`
	// ClientGapMillis is the longest time without a token after the fault.
	ClientGapMillis int64 `json:"client_gap_ms"`
	// Lost and Repeated count tokens, by comparing with the completion that an
	// undisturbed model gives.
	Lost        int    `json:"lost"`
	Repeated    int    `json:"repeated"`
	EpochBefore uint64 `json:"epoch_before"`
	EpochAfter  uint64 `json:"epoch_after"`
}

// Check says what a result must not show.
func (r Result) Check() error {
	var errs []error
	if r.Lost != 0 || r.Repeated != 0 {
		errs = append(errs, fmt.Errorf("fault %s: %d tokens lost, %d repeated", r.Fault, r.Lost, r.Repeated))
	}
	if r.Fault == "kill-leader" && r.EpochAfter != r.EpochBefore {
		errs = append(errs, fmt.Errorf("fault %s: the loss of the Raft leader moved primaryship (epoch %d to %d)", r.Fault, r.EpochBefore, r.EpochAfter))
	}
	if r.Fault != "kill-leader" && r.EpochAfter <= r.EpochBefore {
		errs = append(errs, fmt.Errorf("fault %s: no new epoch (%d to %d)", r.Fault, r.EpochBefore, r.EpochAfter))
	}
	return errors.Join(errs...)
}

// Run shows each fault on a cluster of its own and leaves nothing behind, unless
// asked to keep the last one.
func Run(ctx context.Context, o Options) error {
	if o.Keep && o.JSON {
		return errors.New("keep and json do not go together: keep talks to people")
	}
	for _, f := range o.Faults {
		if _, ok := faults[f]; !ok {
			return fmt.Errorf("fault %q is not known: use one of %s, or all", f, strings.Join(Faults(), ", "))
		}
	}
	var errs []error
	for i, fault := range o.Faults {
		keep := o.Keep && i == len(o.Faults)-1
		if err := runOne(ctx, o, fault, keep); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", fault, err))
			if ctx.Err() != nil {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// runOne starts a cluster, shows one fault and ends the cluster.
func runOne(ctx context.Context, o Options, fault string, keep bool) (err error) {
	dir, err := os.MkdirTemp(o.Dir, "hanode-demo-")
	if err != nil {
		return fmt.Errorf("make a scratch folder: %w", err)
	}
	c := &cluster{options: o, dir: dir, timeline: newTimeline()}
	defer func() {
		err = errors.Join(err, c.stop())
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(o.Log, "%s", c.tails())
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	timed, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	result, err := show(timed, c, fault)
	if err != nil && ctx.Err() != nil {
		return errInterrupted // the rest is only what that looks like from inside
	}
	if err != nil {
		return err
	}
	if o.JSON {
		if err := json.NewEncoder(o.Out).Encode(result); err != nil {
			return fmt.Errorf("print the result: %w", err)
		}
	} else {
		c.timeline.print(o.Out, result)
	}
	if err := result.Check(); err != nil {
		return err
	}
	if keep {
		c.hints(o.Out)
		<-ctx.Done()
	}
	return nil
}

// show is the demo itself.
func show(ctx context.Context, c *cluster, fault string) (Result, error) {
	r := Result{Fault: fault}
	c.say("starting three nodes and three model servers (%s profile) in %s", c.options.Profile, c.dir)
	if err := c.start(ctx); err != nil {
		return r, err
	}
	before, err := c.waitServing(ctx, 0)
	if err != nil {
		return r, err
	}
	r.EpochBefore = before.Epoch
	c.say("%s is primary (epoch %d), %s leads; streaming %d tokens", before.NodeID, before.Epoch, c.leader(ctx), tokens)
	if err := faults[fault].prepare(ctx, c); err != nil {
		return r, err
	}
	stopWatch := c.watch(ctx)
	defer stopWatch()

	s := newStream(c)
	var faulted time.Time
	err = s.run(ctx, func(received int) error {
		if received != faultAt {
			return nil
		}
		what, err := faults[fault].inject(ctx, c)
		faulted = c.timeline.mark(what)
		s.faulted(faulted)
		return err
	})
	if err != nil {
		return r, err
	}
	after, err := c.waitServing(ctx, faults[fault].newEpochAfter(r.EpochBefore))
	if err != nil {
		return r, err
	}
	r.EpochAfter = after.Epoch
	r.ClientGapMillis = s.gap().Milliseconds()
	if r.Lost, r.Repeated, err = s.compare(); err != nil {
		return r, err
	}
	if err := c.phases(ctx, &r, faulted); err != nil {
		return r, err
	}
	return r, nil
}

// Faults are the names of what can be broken, in the order of All.
func Faults() []string {
	return []string{"kill-model", "kill-host", "hang-model", "kill-leader", "switchover"}
}

// ParseFaults turns a flag into names.
func ParseFaults(s string) ([]string, error) {
	if s == "all" {
		return Faults(), nil
	}
	names := strings.Split(s, ",")
	for _, n := range names {
		if !slices.Contains(Faults(), n) {
			return nil, fmt.Errorf("fault %q is not known: use %s, or all", n, strings.Join(Faults(), ", "))
		}
	}
	return names, nil
}
