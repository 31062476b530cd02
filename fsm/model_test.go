// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"fmt"
	"strings"

	"pgregory.net/rapid"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// model is the dumb twin of the state: maps, strings and the rules once more,
// without staging, layers or files.
type model struct {
	rev      uint64
	sessions map[string]modelSession
	groups   map[string]modelGroup
	clients  map[uint64]*modelClient
}

type modelSession struct {
	rev, created, base, epoch, ttl uint64
	value, owner                   string
}

type modelGroup struct {
	phase        pb.GroupPhase
	holder       string
	epoch, renew uint64
	revoked      bool
	failovers    uint32
	held         bool
	transitions  uint64
	pending      bool
}

type modelClient struct {
	acked    uint64
	answered map[uint64]string
}

func newModel() *model {
	return &model{sessions: map[string]modelSession{}, groups: map[string]modelGroup{}, clients: map[uint64]*modelClient{}}
}

// apply returns what the Result must say, in short.
func (m *model) apply(index uint64, c *pb.Command) string {
	id := c.GetRequest()
	var cl *modelClient
	if id != nil {
		switch cl = m.clients[id.GetClient()]; {
		case id.GetClient() == 0, id.GetAckedBelow() > id.GetSeq():
			return "INVALID"
		case cl == nil:
			return "CLIENT_EXPIRED"
		}
		if id.GetAckedBelow() > cl.acked {
			cl.acked = id.GetAckedBelow()
			for s := range cl.answered {
				if s < cl.acked {
					delete(cl.answered, s)
				}
			}
		}
		if id.GetSeq() < cl.acked {
			return "ALREADY_ACKED"
		}
		if r, done := cl.answered[id.GetSeq()]; done {
			return r
		}
	}
	r := m.run(index, c)
	if cl != nil {
		cl.answered[id.GetSeq()] = r
	}
	return r
}

func (m *model) run(index uint64, c *pb.Command) string {
	switch {
	case c.GetSessions() != nil:
		return m.batch(c.GetSessions().GetOps())
	case c.GetOpenClient() != nil:
		m.rev++
		m.clients[m.rev] = &modelClient{acked: 1, answered: map[uint64]string{}}
		return fmt.Sprintf("OK client=%d", m.rev)
	case c.GetExpire() != nil:
		for _, it := range c.GetExpire().GetSessions() {
			k := it.GetGroup() + "/" + it.GetId()
			if s, has := m.sessions[k]; has && s.rev == it.GetIfRevision() {
				m.rev++
				delete(m.sessions, k)
			}
		}
		return "OK"
	}
	return m.lease(index, c)
}

func (m *model) batch(ops []*pb.SessionOp) string {
	before, rev := map[string]modelSession{}, m.rev
	for k, v := range m.sessions {
		before[k] = v
	}
	var out []string
	for _, op := range ops {
		r, fine := m.op(op)
		if !fine {
			m.sessions, m.rev = before, rev
			return r
		}
		out = append(out, r)
	}
	return "OK " + strings.Join(out, ",")
}

func (m *model) fenced(group string, epoch uint64) bool {
	g := m.groups[group]
	return epoch != 0 && (g.epoch != epoch || g.phase == vacant)
}

func (m *model) op(op *pb.SessionOp) (string, bool) {
	switch {
	case op.GetPut() != nil:
		p := op.GetPut()
		x := p.GetSession()
		k := x.GetGroup() + "/" + x.GetId()
		cur, has := m.sessions[k]
		switch {
		case m.fenced(x.GetGroup(), x.GetEpoch()):
			return "FENCED", false
		case p.GetIfAbsent() && has, p.GetIfRevision() != 0 && cur.rev != p.GetIfRevision():
			return "CONFLICT", false
		}
		m.rev++
		next := modelSession{rev: m.rev, created: m.rev, base: x.GetBaseOffset(), epoch: x.GetEpoch(), ttl: x.GetTtlMs(), value: string(x.GetValue()), owner: x.GetOwner()}
		if has {
			next.created = cur.created
		}
		m.sessions[k] = next
		return fmt.Sprintf("%d:%d", m.rev, next.base+uint64(len(next.value))), true
	case op.GetAppend() != nil:
		return m.append(op.GetAppend())
	case op.GetDelete() != nil:
		d := op.GetDelete()
		k := d.GetGroup() + "/" + d.GetId()
		cur, has := m.sessions[k]
		switch {
		case m.fenced(d.GetGroup(), d.GetEpoch()):
			return "FENCED", false
		case !has:
			return "0:0", true
		case d.GetIfRevision() != 0 && cur.rev != d.GetIfRevision():
			return "CONFLICT", false
		}
		m.rev++
		delete(m.sessions, k)
		return "0:0deleted", true
	}
	t := op.GetTouch()
	k := t.GetGroup() + "/" + t.GetId()
	cur, has := m.sessions[k]
	if m.fenced(t.GetGroup(), t.GetEpoch()) {
		return "FENCED", false
	}
	if !has {
		return "NOT_FOUND", false
	}
	m.rev++
	cur.rev = m.rev
	if t.GetTtlMs() != 0 {
		cur.ttl = t.GetTtlMs()
	}
	m.sessions[k] = cur
	return fmt.Sprintf("%d:%d", m.rev, cur.base+uint64(len(cur.value))), true
}

func (m *model) append(a *pb.AppendRequest) (string, bool) {
	k := a.GetGroup() + "/" + a.GetId()
	cur, has := m.sessions[k]
	end := cur.base + uint64(len(cur.value))
	newEnd := a.GetOffset() + uint64(len(a.GetData()))
	switch {
	case a.GetTrimBefore() > newEnd:
		return "INVALID", false
	case m.fenced(a.GetGroup(), a.GetEpoch()):
		return "FENCED", false
	case a.GetOffset() != end:
		if has && a.GetOffset() >= cur.base && newEnd <= end && cur.value[a.GetOffset()-cur.base:newEnd-cur.base] == string(a.GetData()) {
			return fmt.Sprintf("%d:%d", cur.rev, end), true
		}
		return "CONFLICT", false
	case has && len(a.GetData()) == 0 && a.GetTrimBefore() <= cur.base:
		return fmt.Sprintf("%d:%d", cur.rev, end), true
	}
	m.rev++
	if !has {
		cur = modelSession{created: m.rev, ttl: a.GetTtlMs()}
	}
	all := cur.value + string(a.GetData())
	if a.GetTrimBefore() > cur.base {
		all = all[a.GetTrimBefore()-cur.base:]
		cur.base = a.GetTrimBefore()
	}
	cur.value, cur.rev, cur.epoch = all, m.rev, a.GetEpoch()
	if a.GetOwner() != "" {
		cur.owner = a.GetOwner()
	}
	m.sessions[k] = cur
	return fmt.Sprintf("%d:%d", m.rev, newEnd), true
}

func (m *model) lease(index uint64, c *pb.Command) string {
	if r := c.GetReportInstance(); r != nil {
		if _, has := m.groups[r.GetInstance().GetGroup()]; !has {
			m.rev++
			m.groups[r.GetInstance().GetGroup()] = modelGroup{phase: vacant}
		}
		m.rev++
		return "OK"
	}
	if r := c.GetRenew(); r != nil {
		refused := 0
		for _, it := range r.GetItems() {
			g := m.groups[it.GetGroup()]
			if g.phase == vacant || g.epoch == 0 || g.epoch != it.GetEpoch() || g.holder != r.GetHolder() || g.revoked {
				refused++
				continue
			}
			g.renew = index
			m.groups[it.GetGroup()] = g
		}
		return fmt.Sprintf("OK refused=%d", refused)
	}
	var name string
	switch {
	case c.GetGrant() != nil:
		name = c.GetGrant().GetGroup()
	case c.GetHandover() != nil:
		name = c.GetHandover().GetGroup()
	case c.GetRelease() != nil:
		name = c.GetRelease().GetGroup()
	case c.GetRevoke() != nil:
		name = c.GetRevoke().GetGroup()
	case c.GetServing() != nil:
		name = c.GetServing().GetGroup()
	}
	g, has := m.groups[name]
	if !has {
		return "NOT_FOUND"
	}
	r := m.one(index, c, &g)
	m.groups[name] = g
	return r
}

func (m *model) start(index uint64, g *modelGroup, to string) string {
	if index <= g.epoch {
		return "CONFLICT"
	}
	if g.pending {
		m.rev++
	}
	m.rev++
	g.phase, g.holder, g.epoch, g.renew, g.revoked, g.pending = granted, to, index, index, false, true
	g.transitions++
	return fmt.Sprintf("OK epoch=%d", index)
}

func (m *model) one(index uint64, c *pb.Command, g *modelGroup) string {
	held := func(holder string, epoch uint64) bool {
		return g.phase != vacant && g.holder == holder && g.epoch == epoch
	}
	switch {
	case c.GetGrant() != nil:
		o := c.GetGrant()
		if g.epoch != o.GetIfEpoch() || g.renew != o.GetIfLastRenew() {
			return "CONFLICT"
		}
		r := m.start(index, g, o.GetHolder())
		if strings.HasPrefix(r, "OK") {
			g.failovers++
			g.held = g.held || g.failovers >= defaultMaxFailovers
		}
		return r
	case c.GetHandover() != nil:
		o := c.GetHandover()
		if !held(o.GetFrom(), o.GetIfEpoch()) {
			return "CONFLICT"
		}
		return m.start(index, g, o.GetTo())
	case c.GetRelease() != nil:
		o := c.GetRelease()
		if !held(o.GetHolder(), o.GetEpoch()) {
			return "FENCED"
		}
		m.rev++
		g.phase, g.holder, g.revoked, g.pending = vacant, "", false, false
		return "OK"
	case c.GetRevoke() != nil:
		switch {
		case c.GetRevoke().GetIfEpoch() != g.epoch:
			return "CONFLICT"
		case g.phase != vacant && !g.revoked:
			m.rev++
			g.revoked = true
		}
		return "OK"
	}
	o := c.GetServing()
	switch {
	case !held(o.GetHolder(), o.GetEpoch()):
		return "FENCED"
	case g.phase != serving:
		m.rev++
		g.phase, g.pending = serving, false
	}
	return "OK"
}

// brief is a Result in the words of the model.
func brief(c *pb.Command, r *pb.Result) string {
	if r.GetCode() != codeOK {
		return strings.TrimPrefix(r.GetCode().String(), "RESULT_CODE_")
	}
	switch {
	case c.GetSessions() != nil:
		var out []string
		for _, s := range r.GetSessions() {
			d := ""
			if s.GetDeleted() {
				d = "deleted"
			}
			out = append(out, fmt.Sprintf("%d:%d%s", s.GetRevision(), s.GetEndOffset(), d))
		}
		return "OK " + strings.Join(out, ",")
	case c.GetOpenClient() != nil:
		return fmt.Sprintf("OK client=%d", r.GetClient())
	case c.GetRenew() != nil:
		return fmt.Sprintf("OK refused=%d", len(r.GetRefused()))
	case c.GetGrant() != nil, c.GetHandover() != nil:
		return fmt.Sprintf("OK epoch=%d", r.GetEpoch())
	}
	return "OK"
}

// compare looks for a difference between the Machine and the model.
func (m *model) compare(t tb, got *Machine) {
	t.Helper()
	if got.Revision() != m.rev {
		t.Fatalf("revision %d, want %d", got.Revision(), m.rev)
	}
	total := 0
	for _, group := range groupNames {
		page, err := got.Sessions(SessionQuery{Group: group})
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		total += len(page.Sessions)
		for _, x := range page.Sessions {
			have := modelSession{
				rev: x.GetRevision(), created: x.GetCreateRevision(), base: x.GetBaseOffset(), epoch: x.GetEpoch(),
				ttl: x.GetTtlMs(), value: string(x.GetValue()), owner: x.GetOwner(),
			}
			if expect := m.sessions[group+"/"+x.GetId()]; have != expect {
				t.Fatalf("session %s/%s is %+v, want %+v", group, x.GetId(), have, expect)
			}
		}
	}
	if total != len(m.sessions) {
		t.Fatalf("%d sessions, want %d", total, len(m.sessions))
	}
	for name, expect := range m.groups {
		g, _ := got.Group(name)
		expect.pending = false
		have := modelGroup{
			phase: g.GetPhase(), holder: g.GetHolder(), epoch: g.GetEpoch(), renew: g.GetLastRenew(), revoked: g.GetRevoked(),
			failovers: g.GetFailoversSinceCalm(), held: g.GetHeld(), transitions: g.GetTransitions(),
		}
		if have != expect {
			t.Fatalf("group %s is %+v, want %+v", name, have, expect)
		}
	}
}

var (
	groupNames = []string{"a", "b"}
	nodeNames  = []string{"n1", "n2"}
	idNames    = []string{"x", "y", "z"}
)

// generator draws commands that often hit: it looks at the model for the epochs,
// revisions and offsets that are right now.
type generator struct {
	t    *rapid.T
	m    *model
	seqs uint64
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
