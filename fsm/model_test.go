// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"fmt"
	"strings"

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
