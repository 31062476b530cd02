// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Hub is the index of the place where this program itself and its clients are,
// as an end of a link.
const Hub = -1

// Policy is what happens to packets in one direction. The zero value is a healthy
// link. Loss, Reorder and Reset are probabilities from 0 to 1, per packet; without
// root, loss and reset are per message of hanode's own links.
type Policy struct {
	// Cut drops everything, silently.
	Cut bool
	// Delay is added to each packet, and up to Jitter more or less. The order is
	// kept. At most MaxDelay together.
	Delay, Jitter time.Duration
	// Loss drops.
	Loss float64
	// Reorder holds a packet back, so that later ones overtake it.
	Reorder float64
	// Reset drops a TCP segment with data and ends its connection at both ends.
	Reset float64
}

// MaxDelay bounds Delay plus Jitter.
const MaxDelay = 30 * time.Second

func (p Policy) validate() error {
	for _, v := range []float64{p.Loss, p.Reorder, p.Reset} {
		if !(v >= 0 && v <= 1) {
			return fmt.Errorf("link policy %+v: a probability is from 0 to 1", p)
		}
	}
	if p.Delay < 0 || p.Jitter < 0 || p.Delay > MaxDelay-p.Jitter {
		return fmt.Errorf("link policy %+v: delay and jitter are from 0 to %v together", p, MaxDelay)
	}
	return nil
}

// Link is one direction between two ends.
type Link struct {
	rig      *Rig
	from, to int
}

// Link is the direction from one host to another, by index; either may be Hub.
func (r *Rig) Link(from, to int) Link { return Link{r, from, to} }

// Set makes the direction behave by a policy, from now on and for connections
// that exist as well. Packets under way keep their delay, but none arrives after
// Cut was set. Any goroutine may call it.
//
// Without root it reaches the processes through the node's control socket, and a
// link with the hub or a policy with Reorder returns ErrUnsupported.
func (l Link) Set(p Policy) error {
	if err := p.validate(); err != nil {
		return err
	}
	n := len(l.rig.hosts)
	if l.from < Hub || l.to < Hub || l.from >= n || l.to >= n || l.from == l.to {
		return fmt.Errorf("there is no link from %d to %d: hosts are 0 to %d, the hub is %d", l.from, l.to, n-1, Hub)
	}
	if l.rig.net == nil {
		return l.rig.setLoopbackLink(l.from, l.to, p)
	}
	return l.rig.net.direction(l.from, l.to).set(p)
}

// HealLinks makes all links healthy.
func (r *Rig) HealLinks() error {
	if r.net == nil {
		return r.healLoopbackLinks()
	}
	var errs []error
	for _, d := range r.net.directions() {
		errs = append(errs, d.set(Policy{}))
	}
	return errors.Join(errs...)
}

// direction is the packets of one link that pass through this program.
type direction struct {
	from, to *endpoint
	queue    *delayQueue

	setting sync.Mutex // one set at a time; held over the change of the route

	mu     sync.Mutex // guards the rest
	policy Policy
	rng    *rand.Rand
	// last is when the last packet is due whose place in the order is kept.
	last time.Time
	// waiting counts the packets in the queue, dropped those that went nowhere.
	waiting int
	dropped uint64
}

// set changes the policy, and leads packets through here or past here.
func (d *direction) set(p Policy) error {
	d.setting.Lock()
	defer d.setting.Unlock()
	d.mu.Lock()
	was := d.policy
	d.mu.Unlock()
	if p == (Policy{}) {
		if was == (Policy{}) {
			return nil
		}
		// First the route: what is read meanwhile is still treated by the policy.
		if err := d.from.routes.remove(d.to.address, d.from.address, d.from.device); err != nil {
			return fmt.Errorf("heal the link from %s to %s: %w", d.from.name, d.to.name, err)
		}
	}
	d.mu.Lock()
	d.policy, d.last = p, time.Time{}
	d.mu.Unlock()
	if p == (Policy{}) || was != (Policy{}) {
		return nil
	}
	if err := d.from.routes.add(d.to.address, d.from.address, d.from.device); err != nil {
		d.mu.Lock()
		d.policy = Policy{} // as it still is
		d.mu.Unlock()
		return fmt.Errorf("break the link from %s to %s: %w", d.from.name, d.to.name, err)
	}
	return nil
}

// limits of one direction.
const (
	maxWaiting = 4096                  // packets that are delayed
	minHold    = 10 * time.Millisecond // of a packet that others shall overtake
)

// forward decides over one packet that was read from the sender. The packet is
// only lent.
func (d *direction) forward(packet []byte, now time.Time) {
	d.mu.Lock()
	p := d.policy
	if p.Cut || d.hit(p.Loss) || d.waiting >= maxWaiting {
		d.dropped++
		d.mu.Unlock()
		return
	}
	if s, ok := dataSegment(packet); ok && d.hit(p.Reset) {
		d.dropped++
		d.mu.Unlock()
		toSender, toReceiver := s.resets()
		d.from.write(toSender)
		d.to.write(toReceiver)
		return
	}
	due := now.Add(p.Delay)
	if p.Jitter > 0 {
		due = due.Add(time.Duration(d.rng.Int64N(2*int64(p.Jitter)+1)) - p.Jitter)
	}
	if d.hit(p.Reorder) {
		hold := max(2*p.Jitter, minHold)
		due = due.Add(hold/2 + time.Duration(d.rng.Int64N(int64(hold))))
	} else {
		if due.Before(d.last) {
			due = d.last
		}
		d.last = due
	}
	if !due.After(now) && d.waiting == 0 {
		d.mu.Unlock()
		d.to.write(packet)
		return
	}
	d.waiting++
	d.mu.Unlock()
	d.queue.put(delayed{due: due, d: d, packet: append([]byte(nil), packet...)})
}

// hit draws; it takes no number for a probability of 0. The caller holds mu.
func (d *direction) hit(probability float64) bool {
	return probability > 0 && d.rng.Float64() < probability
}

// arrive hands over a packet that has waited.
func (d *direction) arrive(packet []byte) {
	d.mu.Lock()
	d.waiting--
	cut := d.policy.Cut
	if cut {
		d.dropped++
	}
	d.mu.Unlock()
	if !cut {
		d.to.write(packet)
	}
}

// droppedSoFar counts the packets that went nowhere.
func (d *direction) droppedSoFar() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dropped
}
