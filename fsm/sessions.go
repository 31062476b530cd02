// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"fmt"
	"math"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// sessionOps does several operations of one group, all or none.
func (s *state) sessionOps(e env, c *pb.SessionOps) *pb.Result {
	ops := c.GetOps()
	if len(ops) == 0 {
		return invalid("there is no operation")
	}
	if len(ops) > hastate.MaxBatchOps {
		return overLimit("operations of a batch", hastate.MaxBatchOps, uint64(len(ops)))
	}
	group := sessionOpGroup(ops[0])
	if bad := checkGroup(group); bad != nil {
		return bad
	}
	res := ok()
	res.Sessions = make([]*pb.SessionOpResult, 0, len(ops))
	for i, op := range ops {
		if sessionOpGroup(op) != group {
			return invalid("operation %d is of another group than the first", i)
		}
		r, bad := s.sessionOp(e, op)
		if bad != nil {
			return bad
		}
		res.Sessions = append(res.Sessions, r)
	}
	return res
}

func sessionOpGroup(op *pb.SessionOp) string {
	switch o := op.GetOp().(type) {
	case *pb.SessionOp_Put:
		return o.Put.GetSession().GetGroup()
	case *pb.SessionOp_Append:
		return o.Append.GetGroup()
	case *pb.SessionOp_Delete:
		return o.Delete.GetGroup()
	case *pb.SessionOp_Touch:
		return o.Touch.GetGroup()
	}
	return ""
}

func (s *state) sessionOp(e env, op *pb.SessionOp) (*pb.SessionOpResult, *pb.Result) {
	switch o := op.GetOp().(type) {
	case *pb.SessionOp_Put:
		return s.putSession(e, o.Put)
	case *pb.SessionOp_Append:
		return s.appendSession(e, o.Append)
	case *pb.SessionOp_Delete:
		return s.deleteSession(e, o.Delete)
	case *pb.SessionOp_Touch:
		return s.touchSession(e, o.Touch)
	}
	panic(fmt.Sprintf("fsm: session operation %T passed decodeEntry but is not applied", op.GetOp()))
}

// checkEpoch refuses a write under an epoch that is not the group's newest, or
// whose holder has released it. A revoked epoch still counts: its lease runs.
func (s *state) checkEpoch(group string, epoch uint64) *pb.Result {
	if epoch == 0 {
		return nil
	}
	g := s.group(group)
	switch {
	case g.GetEpoch() != epoch:
		return fenced(g, "the epoch is not the newest of the group")
	case g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT:
		return fenced(g, "the epoch was released")
	}
	return nil
}

// valueLimit is the largest session value of a group.
func (s *state) valueLimit(group string) uint64 {
	if n := s.group(group).GetPolicy().GetSessionValueBytes(); n != 0 {
		return uint64(n)
	}
	return hastate.DefaultSessionValueBytes
}

// checkValue bounds the kept bytes of a session and their end offset.
func (s *state) checkValue(group string, base uint64, n int) *pb.Result {
	if limit := s.valueLimit(group); uint64(n) > limit {
		return overLimit(sessionValueLimitName, limit, uint64(n))
	}
	if base > math.MaxInt64-uint64(n) {
		return invalid("base offset %d is too large", base)
	}
	return nil
}

// checkRoom refuses one more session than a group may have.
func (s *state) checkRoom(group string) *pb.Result {
	n := s.counts.sessions[group]
	if n >= hastate.MaxSessionsPerGroup {
		return overLimit("sessions of the group", hastate.MaxSessionsPerGroup, uint64(n)+1)
	}
	if groups := len(s.counts.sessions); n == 0 && groups >= hastate.MaxGroups {
		return overLimit("groups with sessions", hastate.MaxGroups, uint64(groups)+1)
	}
	return nil
}

func sessionEnd(x *pb.Session) uint64 { return x.GetBaseOffset() + uint64(len(x.GetValue())) }

func sessionConflict(group, id string, cur *pb.Session, why string) *pb.Result {
	r := conflict(group+"/"+id, cur.GetRevision(), why)
	r.CurrentOffset = sessionEnd(cur)
	return r
}

func checkSession(x *pb.Session) *pb.Result {
	if x == nil {
		return invalid("session is missing")
	}
	return firstBad(
		checkName("session id", x.GetId(), hastate.MaxSessionIDBytes),
		checkText("owner", x.GetOwner(), hastate.MaxTextBytes),
		checkText("model digest", x.GetModelDigest(), hastate.MaxTextBytes),
		checkText("adapter", x.GetAdapter(), hastate.MaxTextBytes),
		checkMap("pointers", x.GetPointers(), hastate.MaxURIBytes),
		checkMap("labels", x.GetLabels(), hastate.MaxTextBytes))
}

func (s *state) putSession(e env, c *pb.PutRequest) (*pb.SessionOpResult, *pb.Result) {
	x := c.GetSession()
	if bad := checkSession(x); bad != nil {
		return nil, bad
	}
	if c.GetIfAbsent() && c.GetIfRevision() != 0 {
		return nil, invalid("if_absent and if_revision exclude each other")
	}
	if bad := firstBad(s.checkValue(x.GetGroup(), x.GetBaseOffset(), len(x.GetValue())), s.checkEpoch(x.GetGroup(), x.GetEpoch())); bad != nil {
		return nil, bad
	}
	cur := s.session(x.GetGroup(), x.GetId())
	switch {
	case c.GetIfAbsent() && cur != nil:
		return nil, sessionConflict(x.GetGroup(), x.GetId(), cur, "there is a session already")
	case c.GetIfRevision() != 0 && cur.GetRevision() != c.GetIfRevision():
		return nil, sessionConflict(x.GetGroup(), x.GetId(), cur, "the session has another revision")
	}
	if cur == nil {
		if bad := s.checkRoom(x.GetGroup()); bad != nil {
			return nil, bad
		}
	}
	s.storeSession(e, x, cur)
	return &pb.SessionOpResult{Revision: x.GetRevision(), EndOffset: sessionEnd(x)}, nil
}

// storeSession writes next, which nobody else refers to, in place of cur.
func (s *state) storeSession(e env, next, cur *pb.Session) {
	next.Revision = s.next()
	next.CreateRevision = next.Revision
	if cur != nil {
		next.CreateRevision = cur.GetCreateRevision()
	}
	s.put(tableSessions, pairKey(next.GetGroup(), next.GetId()), next)
	s.change(e, Event{Session: &pb.SessionEvent{Revision: next.GetRevision(), Session: next}})
}

// remake copies a session but for its value.
func remake(x *pb.Session, value []byte) *pb.Session {
	return &pb.Session{
		Group: x.GetGroup(), Id: x.GetId(), Owner: x.GetOwner(), Value: value, BaseOffset: x.GetBaseOffset(),
		ModelDigest: x.GetModelDigest(), Adapter: x.GetAdapter(), Pointers: x.GetPointers(), Labels: x.GetLabels(),
		Epoch: x.GetEpoch(), TtlMs: x.GetTtlMs(), Revision: x.GetRevision(), CreateRevision: x.GetCreateRevision(),
	}
}

// inPlace reports whether data is in the kept stream at offset already.
func inPlace(cur *pb.Session, offset uint64, data []byte) bool {
	base := cur.GetBaseOffset()
	if cur == nil || offset < base || offset+uint64(len(data)) > sessionEnd(cur) {
		return false
	}
	at := offset - base
	return bytes.Equal(cur.GetValue()[at:at+uint64(len(data))], data)
}

func checkAppend(c *pb.AppendRequest) *pb.Result {
	if bad := firstBad(
		checkName("session id", c.GetId(), hastate.MaxSessionIDBytes),
		checkText("owner", c.GetOwner(), hastate.MaxTextBytes)); bad != nil {
		return bad
	}
	if len(c.GetData()) > hastate.MaxSessionValueBytes {
		return overLimit(sessionValueLimitName, hastate.MaxSessionValueBytes, uint64(len(c.GetData())))
	}
	if c.GetOffset() > math.MaxInt64-hastate.MaxSessionValueBytes {
		return invalid("offset %d is too large", c.GetOffset())
	}
	if end := c.GetOffset() + uint64(len(c.GetData())); c.GetTrimBefore() > end {
		return invalid("trim_before %d is behind the end of the stream, %d", c.GetTrimBefore(), end)
	}
	return nil
}

func (s *state) appendSession(e env, c *pb.AppendRequest) (*pb.SessionOpResult, *pb.Result) {
	if bad := firstBad(checkAppend(c), s.checkEpoch(c.GetGroup(), c.GetEpoch())); bad != nil {
		return nil, bad
	}
	cur := s.session(c.GetGroup(), c.GetId())
	end := sessionEnd(cur)
	if c.GetOffset() != end || (cur != nil && len(c.GetData()) == 0 && c.GetTrimBefore() <= cur.GetBaseOffset()) {
		if !inPlace(cur, c.GetOffset(), c.GetData()) {
			return nil, sessionConflict(c.GetGroup(), c.GetId(), cur, "the offset is not the end of the stream")
		}
		return &pb.SessionOpResult{Revision: cur.GetRevision(), EndOffset: end}, nil
	}
	base := cur.GetBaseOffset()
	trim := max(base, c.GetTrimBefore())
	kept := int(end + uint64(len(c.GetData())) - trim)
	if bad := s.checkValue(c.GetGroup(), trim, kept); bad != nil {
		return nil, bad
	}
	if cur == nil {
		if bad := s.checkRoom(c.GetGroup()); bad != nil {
			return nil, bad
		}
	}
	next := s.appended(c, cur, trim, kept)
	s.storeSession(e, next, cur)
	return &pb.SessionOpResult{Revision: next.GetRevision(), EndOffset: sessionEnd(next)}, nil
}

// appended is the session after the append, with the kept bytes from trim on.
func (s *state) appended(c *pb.AppendRequest, cur *pb.Session, trim uint64, kept int) *pb.Session {
	value := make([]byte, 0, kept)
	if head := trim - cur.GetBaseOffset(); head < uint64(len(cur.GetValue())) {
		value = append(value, cur.GetValue()[head:]...)
	}
	data := c.GetData()
	value = append(value, data[len(data)-(kept-len(value)):]...)
	next := &pb.Session{Group: c.GetGroup(), Id: c.GetId(), TtlMs: c.GetTtlMs()}
	if cur != nil {
		next = remake(cur, nil)
	}
	next.Value, next.BaseOffset = value, trim
	if c.GetOwner() != "" {
		next.Owner = c.GetOwner()
	}
	next.Epoch = c.GetEpoch()
	return next
}

func (s *state) deleteSession(e env, c *pb.DeleteRequest) (*pb.SessionOpResult, *pb.Result) {
	if bad := firstBad(checkName("session id", c.GetId(), hastate.MaxSessionIDBytes), s.checkEpoch(c.GetGroup(), c.GetEpoch())); bad != nil {
		return nil, bad
	}
	cur := s.session(c.GetGroup(), c.GetId())
	if cur == nil {
		return &pb.SessionOpResult{}, nil
	}
	if c.GetIfRevision() != 0 && cur.GetRevision() != c.GetIfRevision() {
		return nil, sessionConflict(c.GetGroup(), c.GetId(), cur, "the session has another revision")
	}
	s.removeSession(e, cur, false)
	return &pb.SessionOpResult{Deleted: true}, nil
}

func (s *state) removeSession(e env, cur *pb.Session, expired bool) {
	s.del(tableSessions, pairKey(cur.GetGroup(), cur.GetId()))
	s.change(e, Event{Session: &pb.SessionEvent{
		Revision: s.next(), Session: &pb.Session{Group: cur.GetGroup(), Id: cur.GetId()}, Deleted: true, Expired: expired,
	}})
}

func (s *state) touchSession(e env, c *pb.TouchRequest) (*pb.SessionOpResult, *pb.Result) {
	if bad := firstBad(checkName("session id", c.GetId(), hastate.MaxSessionIDBytes), s.checkEpoch(c.GetGroup(), c.GetEpoch())); bad != nil {
		return nil, bad
	}
	cur := s.session(c.GetGroup(), c.GetId())
	if cur == nil {
		return nil, notFound("session %q of group %q", c.GetId(), c.GetGroup())
	}
	next := remake(cur, cur.GetValue())
	if c.GetTtlMs() != 0 {
		next.TtlMs = c.GetTtlMs()
	}
	s.storeSession(e, next, cur)
	return &pb.SessionOpResult{Revision: next.GetRevision(), EndOffset: sessionEnd(next)}, nil
}

// expire removes what was idle, if it has not changed since.
func (s *state) expire(e env, c *pb.Expire) *pb.Result {
	if n := max(len(c.GetSessions()), len(c.GetClients())); n > maxExpire {
		return overLimit("items of an expiry", maxExpire, uint64(n))
	}
	for _, it := range c.GetSessions() {
		if cur := s.session(it.GetGroup(), it.GetId()); cur != nil && cur.GetRevision() == it.GetIfRevision() {
			s.removeSession(e, cur, true)
		}
	}
	for _, it := range c.GetClients() {
		if w := s.clients[it.GetClient()]; w != nil && w.highestSeq == it.GetIfSeq() {
			s.forget(e, w)
		}
	}
	return ok()
}
