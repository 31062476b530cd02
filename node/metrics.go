// SPDX-License-Identifier: Apache-2.0

package node

import (
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// metrics is what /metrics shows: read when scraped, so that nothing is counted
// twice.
type metrics struct{ registry *prometheus.Registry }

// newMetrics registers the node's figures.
func newMetrics(n *Node) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &nodeCollector{n: n})
	return m
}

// nodeCollector reads the node at each scrape.
type nodeCollector struct{ n *Node }

var (
	descLeader   = prometheus.NewDesc("hastate_raft_leader", "1 if this node leads.", nil, nil)
	descTerm     = prometheus.NewDesc("hastate_raft_term", "Raft term.", nil, nil)
	descCommit   = prometheus.NewDesc("hastate_raft_commit_index", "Commit index.", nil, nil)
	descApplied  = prometheus.NewDesc("hastate_applied_index", "Log index applied to the state.", nil, nil)
	descFlushed  = prometheus.NewDesc("hastate_flushed_index", "Log index that is durable in the state file.", nil, nil)
	descFirst    = prometheus.NewDesc("hastate_log_first_index", "Oldest log entry that is kept.", nil, nil)
	descRevision = prometheus.NewDesc("hastate_revision", "Revision of the state.", nil, nil)
	descStalled  = prometheus.NewDesc("hastate_log_stalled_seconds", "How long the running write to the log has taken.", nil, nil)
	descSlow     = prometheus.NewDesc("hastate_log_slow_writes_total", "Writes to the log that took longer than a heartbeat timeout.", nil, nil)
	descTerms    = prometheus.NewDesc("hastate_terms_led_total", "Terms that this node has led.", nil, nil)
	descInstance = prometheus.NewDesc("hastate_instance_ready", "1 if the instance beside this node is ready.", []string{"group"}, nil)
	descPaused   = prometheus.NewDesc("hastate_group_paused", "1 if automatic failover of the group is paused or held.", []string{"group"}, nil)
	descPrimary  = prometheus.NewDesc("hastate_primary", "1 if the instance beside this node is the primary of the group.", []string{"group"}, nil)
	descEpoch    = prometheus.NewDesc("hastate_group_epoch", "Newest epoch of the group.", []string{"group"}, nil)
	descVacant   = prometheus.NewDesc("hastate_group_vacant", "1 if nobody holds the group.", []string{"group"}, nil)
	descMoves    = prometheus.NewDesc("hastate_group_transitions_total", "Transitions of the group.", []string{"group"}, nil)
	descReady    = prometheus.NewDesc("hastate_ready", "1 if this node can serve the API.", nil, nil)
)

// Describe lists the figures.
func (c *nodeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLeader, descTerm, descCommit, descApplied, descFlushed, descFirst, descRevision, descStalled, descSlow, descTerms, descInstance, descPaused, descPrimary, descEpoch, descVacant, descMoves, descReady} {
		ch <- d
	}
}

// Collect reads them.
func (c *nodeCollector) Collect(ch chan<- prometheus.Metric) {
	n := c.n
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	applied, _ := n.machine.Applied()
	ready, _ := n.Ready()
	gauge(descLeader, number(n.raft.State() == raft.Leader))
	gauge(descTerm, float64(n.raft.CurrentTerm()))
	gauge(descCommit, float64(n.raft.CommitIndex()))
	gauge(descApplied, float64(applied))
	gauge(descFlushed, float64(n.machine.Flushed()))
	if first, err := n.FirstLogIndex(); err == nil {
		gauge(descFirst, float64(first))
	}
	gauge(descRevision, float64(n.machine.Revision()))
	gauge(descStalled, n.logs.Stalled().Seconds())
	gauge(descReady, number(ready))
	count := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	count(descSlow, n.slow.count.Load())
	count(descTerms, n.leadership.terms.Load())
	for group, h := range n.holders {
		gauge(descInstance, number(h.Status().Status.State == pb.InstanceState_INSTANCE_STATE_READY), group)
		_, serves := h.Primary()
		gauge(descPrimary, number(serves), group)
	}
	for _, g := range n.machine.Groups() {
		gauge(descEpoch, float64(g.GetEpoch()), g.GetName())
		gauge(descPaused, number(g.GetPaused() || g.GetHeld()), g.GetName())
		gauge(descVacant, number(g.GetHolder() == ""), g.GetName())
		ch <- prometheus.MustNewConstMetric(descMoves, prometheus.CounterValue, float64(g.GetTransitions()), g.GetName())
	}
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
