// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"regexp"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// The kinds of faults that are looked at closely, and a reason.
const (
	killModel    = "kill-model"
	killHost     = "kill-host"
	leaseExpired = "lease expired"
)

// What is said where the model server was lost, the node, or the way to the other
// nodes, and what is said of an order.
var (
	modelLost = regexp.MustCompile(`process is gone|instance is down|instance has failed|was restarted|lost its epoch|refuses the epoch|does not become READY|counted its lease`)
	// One that is mute does not obey Demote either: then its lease runs out.
	modelMute = regexp.MustCompile(`instance is down|instance has failed|silent|counted its lease|does not become READY|` + leaseExpired)
	nodeLost  = regexp.MustCompile(leaseExpired + `|the node was restarted|could not be renewed|not renewed by the log|refused by the log`)
	wayLost   = regexp.MustCompile(nodeLost.String() + `|counted its lease`)
	hostMute  = regexp.MustCompile(wayLost.String() + `|` + modelMute.String())
	anOrder   = regexp.MustCompile(`^operator: |^switchover to .* (was not done|failed)|by an operator|request of the leader`)
)

// reasons are what the first transition of a group may say that a fault of one
// kind took from its primary. Other kinds may have any reason.
var reasons = map[string]*regexp.Regexp{
	killModel: modelLost, "model-crash-on-promote": modelLost, "model-slow-promote": modelLost, "model-refuse": modelLost, "model-ignore-promote": modelLost,
	"model-hang": modelMute, "pause-model": modelMute,
	killHost: nodeLost, "kill-node": nodeLost, "power-cut-host": hostMute,
	"pause-node": wayLost, "pause-host": hostMute, "cut-leader": wayLost, "cut-primary": wayLost, "cut-minority": wayLost,
	"cut-uncounted": wayLost, "snapshot-install": wayLost,
	"member-replace": nodeLost, "lost-disk": nodeLost, "flip-bits": nodeLost, "torn-log": nodeLost,
}

// orders are the kinds that break nothing: every group that moves in one is moved
// by an operator first.
var orders = map[string]bool{"switchover": true, "failover-force": true, "concurrent-switchover": true}

// fits: what a group's history says first after a fault has to do with the fault.
// A round of two faults has another kind, which is in no table.
func (h *history) fits(fault record.Fault, groups map[string][]*pb.Transition) {
	names, want := fault.Lost, reasons[fault.Kind]
	if orders[fault.Kind] {
		names, want = sorted(fault.Epochs, cmp.Compare[string]), anOrder
	}
	for _, name := range names {
		t := h.firstAfter(fault, name, groups[name])
		if t == nil {
			continue
		}
		if want != nil && !want.MatchString(t.GetReason()) {
			h.f.add("", "%s has a reason that does not fit round %d (%s: %s)", describeTransition(t), fault.Round, fault.Kind, fault.What)
		}
		h.waited(fault, t)
	}
}
