// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// probe is the JSON body of the health endpoints.
type probe struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason"`
	Node   string `json:"node"`
	Group  string `json:"group,omitempty"`
	Role   string `json:"role,omitempty"`
	Epoch  uint64 `json:"epoch,omitempty"`
	Leader string `json:"leader,omitempty"`
}

// handler serves the HTTP port: 200 or 503 with a JSON reason, for load
// balancers, and the metrics.
func (n *Node) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", n.probeLive)
	mux.HandleFunc("GET /readyz", n.probeReady)
	mux.HandleFunc("GET /primary", func(w http.ResponseWriter, r *http.Request) { n.probeRole(w, r, true) })
	mux.HandleFunc("GET /standby", func(w http.ResponseWriter, r *http.Request) { n.probeRole(w, r, false) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}

func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// probeLive answers whether the process is of use at all: restarting it would
// help if it is not.
func (n *Node) probeLive(w http.ResponseWriter, _ *http.Request) {
	p := n.newProbe()
	p.OK, p.Reason = true, "running"
	if d := n.logs.Stalled(); d > n.cfg.Profile.Stall {
		p.OK, p.Reason = false, "a write to the log has hung for "+d.Round(time.Millisecond).String()
	}
	writeProbe(w, p)
}

// probeReady answers whether this node can serve the API.
func (n *Node) probeReady(w http.ResponseWriter, _ *http.Request) {
	p := n.newProbe()
	p.OK, p.Reason = n.Ready()
	writeProbe(w, p)
}

// probeRole answers for the instance beside this node: /primary is 200 only
// while its lease is valid and it serves, /standby while it is ready and is not
// the primary.
func (n *Node) probeRole(w http.ResponseWriter, r *http.Request, primary bool) {
	p := n.newProbe()
	p.Group = r.URL.Query().Get("group")
	if p.Group == "" {
		p.Group = n.onlyGroup()
	}
	h, ok := n.holders[p.Group]
	if !ok {
		p.Reason = "no instance of this group is beside this node"
		writeProbe(w, p)
		return
	}
	s := h.Status()
	_, serves := h.Primary()
	p.Role = s.Role.Kind.String()
	if serves {
		p.Epoch = s.Epoch
	}
	ready := s.Status.State == pb.InstanceState_INSTANCE_STATE_READY
	switch {
	case serves:
		p.OK, p.Reason = primary, "it is the primary"
	case !s.Known:
		p.Reason = "the model server has not answered yet"
	case primary:
		p.Reason = "it is not the primary (" + s.Phase + ")"
	case n.knowsNoLeader():
		p.Reason = "no leader is known: this node could not be told to take over"
	case s.Stopping:
		p.Reason = "the node is stopping"
	case !ready:
		p.Reason = "the model server is " + stateWord(s.Status.State) + ": " + s.Status.Reason
	default:
		p.OK, p.Reason = true, "it is a ready standby"
	}
	writeProbe(w, p)
}

func (n *Node) knowsNoLeader() bool {
	_, leader := n.Leader()
	return leader == ""
}

// stateWord is an instance's state as people write it.
func stateWord(s pb.InstanceState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "INSTANCE_STATE_"))
}

// onlyGroup is the group meant when none is named: the one beside this node if
// there is one, else the default.
func (n *Node) onlyGroup() string {
	if len(n.cfg.Instances) == 1 {
		return n.cfg.Instances[0].Group
	}
	return hastate.DefaultGroup
}

func (n *Node) newProbe() probe {
	_, leader := n.Leader()
	return probe{Node: n.cfg.NodeID, Leader: leader}
}

func writeProbe(w http.ResponseWriter, p probe) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !p.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(p) // the client is gone: nobody to tell
}
