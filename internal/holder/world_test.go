// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/holder/leaselog"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// world is a cluster as small as it can be: one log that is replicated entry by
// entry and whose tail is lost when leadership moves, machines whose clocks run at
// the bounds of what is allowed, servers, and messages that arrive in any order
// or never. It is driven by one goroutine.
type world struct {
	profile election.Profile
	now     time.Duration // real time
	nodes   []*member
	log     []entry
	commit  int
	term    uint64
	leader  int
	// barrier is the index of the leader's first entry.
	barrier  int
	messages []*message
	seq      uint64
	// waits is the rule of the leader; the right one is election.Decide.
	waits func(election.GroupView) bool
	// ops is which kinds of things happen.
	ops int
	// questions are the answers that are waited for.
	questions map[uint64]func(any)
	// served counts epochs that were seen to be served.
	served map[uint64]bool
}

type entry struct {
	term uint64
	cmd  *pb.Command
	// done is told the result, or lost that there is none; nil if nobody waits.
	done func(*pb.Result)
	lost func()
}

type message struct{ arrives, lost func() }

// member is a node: its clock, its log, its holder and its server.
type member struct {
	id        int
	w         *world
	rate, off int64
	stored    int
	storedAt  []clock.Instant
	applied   int
	state     *leaselog.State
	m         *machine
	// life counts restarts: what belongs to a former process is not delivered.
	life int
	// promoted and newest are the server's epochs; alive: it has a process.
	promoted, newest uint64
	alive            bool
	// silent is the newest epoch that the holder has given away as silenced.
	silent uint64
	// kills counts the ends of the server by its own node.
	kills int
}

func newWorld(rates []int64, offsets []int64) *world {
	w := &world{
		profile: election.Lan, leader: -1, ops: all, questions: map[uint64]func(any){}, served: map[uint64]bool{},
		waits: func(v election.GroupView) bool { return election.Decide(v).Do == election.Elect },
	}
	for i := range rates {
		n := &member{id: i, w: w, rate: rates[i], off: offsets[i], state: leaselog.NewState(), alive: true}
		w.nodes = append(w.nodes, n)
		n.start()
	}
	return w
}

func (n *member) name() string { return fmt.Sprintf("n%d", n.id) }

// clock is the node's own, which runs up to 1 in RhoInverse fast or slow.
func (n *member) clock() clock.Instant {
	t := int64(n.w.now)
	return clock.Instant(n.off + t + n.rate*(t/election.RhoInverse))
}

func (n *member) start() {
	n.m = newMachine(n.name(), "g", n.w.profile, true)
	n.status()
}

func (n *member) status() {
	s := Status{State: pb.InstanceState_INSTANCE_STATE_READY}
	if !n.alive {
		s = Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true}
	}
	n.step(evStatus{status: s})
}

// restart is a new process of hanode beside the same server.
func (n *member) restart() {
	n.life++
	for i := range n.storedAt {
		n.storedAt[i] = n.clock()
	}
	if n.w.leader == n.id {
		n.w.leader = -1
	}
	n.start()
}

// send lets something happen later, or lost instead. It is bound to the life of
// the sender.
func (n *member) send(arrives, lost func()) {
	life := n.life
	mine := func(f func()) func() {
		return func() {
			if n.life == life {
				f()
			}
		}
	}
	n.w.messages = append(n.w.messages, &message{arrives: mine(arrives), lost: mine(lost)})
}

func (n *member) step(ev event) {
	for _, a := range n.m.step(n.clock(), ev) {
		n.act(a)
	}
}

// back brings an event to the machine, sometime, or the other one.
func (n *member) back(ev, otherwise event) {
	n.send(func() { n.step(ev) }, func() { n.step(otherwise) })
}

// propose appends at the leader of the moment at which it arrives there.
func (n *member) propose(cmd *pb.Command, done func(*pb.Result), lost func()) {
	n.send(func() {
		if n.w.leader < 0 {
			lost()
			return
		}
		life := n.life
		n.w.append(cmd, func(r *pb.Result) {
			if n.life == life {
				n.send(func() { done(r) }, lost)
			}
		}, func() {
			if n.life == life {
				lost()
			}
		})
	}, lost)
}

func (n *member) act(a action) {
	switch a := a.(type) {
	case actRenew:
		ev := evRenewed{epoch: a.epoch, q: a.q}
		n.propose(&pb.Command{Op: &pb.Command_Renew{Renew: &pb.RenewBatch{
			Holder: n.name(), Items: []*pb.RenewBatch_Item{{Group: "g", Epoch: a.epoch}},
		}}}, func(r *pb.Result) {
			ev.outcome = accepted
			if len(r.GetRefused()) > 0 {
				ev.outcome, ev.newest = refused, r.GetRefused()[0].GetNewestEpoch()
			}
			n.step(ev)
		}, func() { n.step(ev) })
	case actServe:
		if !a.lease.ValidAt(n.clock()) {
			n.back(evServed{epoch: a.cmd.GetEpoch()}, evServed{epoch: a.cmd.GetEpoch()})
			return
		}
		ev := evServed{epoch: a.cmd.GetEpoch()}
		n.propose(&pb.Command{Op: &pb.Command_Serving{Serving: a.cmd}}, func(r *pb.Result) {
			ev.outcome, ev.newest = outcomeOf(r, nil), r.GetEpoch()
			n.step(ev)
		}, func() { n.step(ev) })
	case actRelease:
		n.silent = max(n.silent, a.cmd.GetEpoch())
		ev := evReleased{epoch: a.cmd.GetEpoch()}
		n.propose(&pb.Command{Op: &pb.Command_Release{Release: a.cmd}}, func(r *pb.Result) {
			ev.outcome = outcomeOf(r, nil)
			n.step(ev)
		}, func() { n.step(ev) })
	case actPromote:
		n.callPromote(a)
	case actDemote:
		n.send(func() {
			if a.epoch < n.newest {
				n.step(evDemoted{epoch: a.epoch, call: a.call, err: &hastate.FencedError{Epoch: a.epoch, NewestEpoch: n.newest}})
				return
			}
			n.promoted, n.newest = 0, a.epoch
			n.back(evDemoted{epoch: a.epoch, call: a.call}, evDemoted{epoch: a.epoch, call: a.call, err: errors.New("lost")})
		}, func() { n.step(evDemoted{epoch: a.epoch, call: a.call, err: errors.New("lost")}) })
	case actKill:
		n.kills++
		n.die()
		n.back(evKilled{epoch: a.epoch}, evKilled{epoch: a.epoch, err: errors.New("lost")})
	case actAnswer:
		n.answer(a)
	}
}

// callPromote reaches the server, even after it was cancelled and even a new
// process of it, but never after it has returned, nor after a kill.
func (n *member) callPromote(a actPromote) {
	kills := n.kills
	ev := evPromoted{epoch: a.lease.Epoch(), touch: a.touch, until: a.lease.FenceAt(a.margin)}
	failed := ev
	failed.err = errors.New("lost")
	if !a.lease.ValidAt(n.clock()) {
		n.back(failed, failed)
		return
	}
	n.send(func() {
		if !n.alive || ev.epoch < n.newest || n.kills != kills {
			n.step(failed)
			return
		}
		n.promoted, n.newest = ev.epoch, ev.epoch
		n.back(ev, failed)
	}, func() { n.step(failed) })
}

func (n *member) die() {
	n.alive, n.promoted = false, 0
}

// answer goes back to the leader that asked.
func (n *member) answer(a actAnswer) {
	if r, ok := a.response.(*pb.FenceResponse); ok && r.GetFenced() {
		n.silent = max(n.silent, n.m.silent)
	}
	if reply := n.w.questions[a.id]; reply != nil {
		delete(n.w.questions, a.id)
		reply(a.response)
	}
}

// append stores a command at the leader.
func (w *world) append(cmd *pb.Command, done func(*pb.Result), lost func()) {
	w.log = append(w.log, entry{term: w.term, cmd: cmd, done: done, lost: lost})
	w.nodes[w.leader].store()
}

// store takes the next entry of the log to a node's disk.
func (n *member) store() {
	if n.stored < len(n.w.log) {
		n.stored++
		n.storedAt = append(n.storedAt, n.clock())
	}
	n.w.advance()
}

// advance commits what a majority has stored, if the newest of it is of the term.
func (w *world) advance() {
	var have []int
	for _, n := range w.nodes {
		have = append(have, n.stored)
	}
	slices.Sort(have)
	if i := have[len(have)/2]; w.leader >= 0 && i > w.commit && w.log[i-1].term == w.term {
		w.commit = i
	}
}

// apply takes the next committed entry into a node's state, and its record to its
// holder. The leader's application answers the proposer.
func (n *member) apply() {
	if n.applied >= min(n.w.commit, n.stored) {
		return
	}
	e := &n.w.log[n.applied]
	n.applied++
	var res *pb.Result
	if e.cmd != nil {
		res = n.state.Apply(uint64(n.applied), e.cmd)
	}
	if e.done != nil && n.id == n.w.leader {
		done := e.done
		e.done = nil
		done(res)
	}
	if g, ok := n.state.Group("g"); ok {
		if g.GetPhase() == pb.GroupPhase_GROUP_PHASE_SERVING {
			n.w.served[g.GetEpoch()] = true
		}
		n.step(evRecord{group: g})
	}
}

// elect makes a node the leader of a new term if it has all that is committed.
// What others have beyond its log is lost.
func (w *world) elect(i int) {
	n := w.nodes[i]
	if n.stored < w.commit {
		return
	}
	w.term++
	w.leader = i
	tail := w.log[n.stored:]
	w.log = w.log[:n.stored:n.stored]
	for _, o := range w.nodes {
		o.stored = min(o.stored, n.stored)
		o.storedAt = o.storedAt[:o.stored]
	}
	w.append(nil, nil, nil)
	w.barrier = len(w.log)
	for _, e := range tail {
		if e.lost != nil {
			e.lost()
		}
	}
}

// view is what the leader decides on; nil if it does not know enough.
func (w *world) view() (*member, *pb.Group) {
	if w.leader < 0 {
		return nil, nil
	}
	n := w.nodes[w.leader]
	g, ok := n.state.Group("g")
	if !ok || n.applied < w.barrier {
		return nil, nil
	}
	return n, g
}

func (w *world) mayGrant(n *member, g *pb.Group) bool {
	v := election.GroupView{Group: g, Now: n.clock(), Slack: w.profile.GrantSlack, Leader: election.LeaderView{BarrierApplied: true}}
	if i := int(g.GetLastRenew()); i > 0 {
		v.Leader.RenewStoredAt = n.storedAt[i-1]
	}
	return w.waits(v)
}

// nominate asks a node for its consent and then proposes with it.
func (w *world) nominate(n *member, to int, g *pb.Group, propose func(number uint64) *pb.Command) {
	w.seq++
	number, term := w.seq, w.term
	req := &pb.NominateRequest{Group: "g", Nomination: number, Epoch: g.GetEpoch()}
	w.ask(to, func(id uint64) event { return evNominate{id: id, req: req} }, func(r any) {
		if nr, ok := r.(*pb.NominateResponse); ok && nr.GetConsent() && w.leader == n.id && w.term == term {
			w.append(propose(number), nil, nil)
		}
	})
}

// ask brings a question to a holder and its answer back, both maybe never.
func (w *world) ask(to int, ev func(id uint64) event, reply func(any)) {
	w.seq++
	id, n := w.seq, w.nodes[to]
	w.questions[id] = func(r any) {
		w.messages = append(w.messages, &message{arrives: func() { reply(r) }, lost: func() {}})
	}
	w.messages = append(w.messages, &message{arrives: func() { n.step(ev(id)) }, lost: func() {}})
}

// findPrimary is the coordinator's attempt.
func (w *world) findPrimary(to int) {
	n, g := w.view()
	if n == nil || !w.mayGrant(n, g) {
		return
	}
	w.nominate(n, to, g, func(number uint64) *pb.Command {
		return &pb.Command{Op: &pb.Command_Grant{Grant: &pb.Grant{
			Group: "g", Holder: w.nodes[to].name(), TtlMs: 1200, IfEpoch: g.GetEpoch(), IfLastRenew: g.GetLastRenew(), Nomination: number,
		}}}
	})
}

// switchover fences the holder and hands over to another.
func (w *world) switchover(to int, drain uint32) {
	n, g := w.view()
	if n == nil || g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
		return
	}
	from := slices.IndexFunc(w.nodes, func(o *member) bool { return o.name() == g.GetHolder() })
	w.ask(from, func(id uint64) event {
		return evFence{id: id, req: &pb.FenceRequest{Group: "g", Epoch: g.GetEpoch(), DrainMs: drain}}
	}, func(r any) {
		if fr, ok := r.(*pb.FenceResponse); !ok || !fr.GetFenced() || w.leader != n.id {
			return
		}
		w.nominate(n, to, g, func(number uint64) *pb.Command {
			return &pb.Command{Op: &pb.Command_Handover{Handover: &pb.Handover{
				Group: "g", From: g.GetHolder(), IfEpoch: g.GetEpoch(), To: w.nodes[to].name(), TtlMs: 1200, Nomination: number,
			}}}
		})
	})
}

func (w *world) revoke() {
	if n, g := w.view(); n != nil {
		w.append(&pb.Command{Op: &pb.Command_Revoke{Revoke: &pb.Revoke{Group: "g", IfEpoch: g.GetEpoch()}}}, nil, nil)
	}
}

// check is what must hold at every instant.
func (w *world) check() error {
	var holders []string
	for _, n := range w.nodes {
		if n.m.held() && n.m.lease.ValidAt(n.clock()) {
			holders = append(holders, fmt.Sprintf("%s under epoch %d", n.name(), n.m.lease.Epoch()))
		}
		if n.promoted != 0 && n.promoted <= n.silent {
			return fmt.Errorf("%s has given epoch %d away, but its server is promoted under %d", n.name(), n.silent, n.promoted)
		}
	}
	if len(holders) > 1 {
		return fmt.Errorf("two primaries: %v", holders)
	}
	return nil
}
