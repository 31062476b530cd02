// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"fmt"

	"pgregory.net/rapid"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

var (
	groupNames = []string{"a", "b"}
	nodeNames  = []string{"n1", "n2"}
	idNames    = []string{"x", "y", "z"}
)

// generator draws commands that often hit: it looks at the model for the epochs,
// revisions and offsets that are right now.
type generator struct {
	t *rapid.T
	m *model
}

func (g *generator) pick(label string, from []string) string {
	return rapid.SampledFrom(from).Draw(g.t, label)
}

func (g *generator) often(label string) bool { return rapid.IntRange(0, 3).Draw(g.t, label) > 0 }

// near returns v, or something beside it.
func (g *generator) near(label string, v uint64) uint64 {
	if g.often(label) {
		return v
	}
	return rapid.Uint64Range(0, 8).Draw(g.t, label+" other")
}

func (g *generator) command() *pb.Command {
	switch rapid.IntRange(0, 9).Draw(g.t, "kind") {
	case 0, 1, 2, 3:
		return g.request(sessions(g.ops()...))
	case 4:
		return g.request(sessions(g.ops()[0]))
	case 5:
		return openClient("c")
	case 6:
		return report(g.pick("group", groupNames), g.pick("node", nodeNames)+fmt.Sprint(g.m.rev))
	case 7:
		return g.expire()
	}
	return g.lease()
}

func (g *generator) request(c *pb.Command) *pb.Command {
	if len(g.m.clients) == 0 || !g.often("with request") {
		return c
	}
	var newest uint64
	for n := range g.m.clients {
		newest = max(newest, n)
	}
	seq := rapid.Uint64Range(1, 12).Draw(g.t, "seq")
	return with(g.near("client", newest), seq, rapid.Uint64Range(0, seq/2).Draw(g.t, "acked"), c)
}

func (g *generator) ops() []*pb.SessionOp {
	group := g.pick("group", groupNames)
	n := rapid.IntRange(1, 3).Draw(g.t, "ops")
	var out []*pb.SessionOp
	for range n {
		id := g.pick("id", idNames)
		cur := g.m.sessions[group+"/"+id]
		var epoch uint64
		if rapid.Bool().Draw(g.t, "under epoch") {
			epoch = g.near("epoch", g.m.groups[group].epoch)
		}
		value := []byte(rapid.StringMatching(`[ab]{0,4}`).Draw(g.t, "value"))
		ttl := rapid.Uint64Range(0, 2).Draw(g.t, "ttl")
		switch rapid.IntRange(0, 4).Draw(g.t, "op") {
		case 0:
			p := &pb.PutRequest{Session: &pb.Session{Group: group, Id: id, Value: value, Epoch: epoch, TtlMs: ttl, Owner: g.pick("owner", nodeNames)}}
			if p.IfAbsent = !g.often("any"); !p.IfAbsent && rapid.Bool().Draw(g.t, "compare") {
				p.IfRevision = g.near("revision", cur.rev)
			}
			out = append(out, opPut(p))
		case 1, 2:
			end := cur.base + uint64(len(cur.value))
			a := &pb.AppendRequest{Group: group, Id: id, Data: value, Offset: g.near("offset", end), Epoch: epoch, TtlMs: ttl}
			if !g.often("keep") {
				a.TrimBefore = g.near("trim", end)
			}
			out = append(out, opAppend(a))
		case 3:
			out = append(out, opDelete(&pb.DeleteRequest{Group: group, Id: id, Epoch: epoch, IfRevision: g.near("revision", 0)}))
		case 4:
			out = append(out, opTouch(&pb.TouchRequest{Group: group, Id: id, Epoch: epoch, TtlMs: ttl}))
		}
	}
	return out
}

func (g *generator) expire() *pb.Command {
	group, id := g.pick("group", groupNames), g.pick("id", idNames)
	return cmdExpire(&pb.Expire{Sessions: []*pb.Expire_SessionItem{{
		Group: group, Id: id, IfRevision: g.near("revision", g.m.sessions[group+"/"+id].rev),
	}}})
}

func (g *generator) lease() *pb.Command {
	group := g.pick("group", groupNames)
	cur := g.m.groups[group]
	holder := cur.holder
	if holder == "" || !g.often("right holder") {
		holder = g.pick("holder", nodeNames)
	}
	epoch := g.near("epoch", cur.epoch)
	switch rapid.IntRange(0, 6).Draw(g.t, "lease") {
	case 0, 1:
		return cmdGrant(&pb.Grant{Group: group, Holder: g.pick("to", nodeNames), IfEpoch: epoch, IfLastRenew: g.near("renew", cur.renew)})
	case 2:
		return renew(holder, renewal(group, epoch), renewal(g.pick("second", groupNames), epoch))
	case 3:
		return cmdRelease(&pb.Release{Group: group, Holder: holder, Epoch: epoch, Reason: "r"})
	case 4:
		return cmdHandover(&pb.Handover{Group: group, From: holder, To: g.pick("to", nodeNames), IfEpoch: epoch})
	case 5:
		return cmdRevoke(group, epoch)
	}
	return cmdServing(group, holder, epoch, 5)
}
