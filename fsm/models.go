// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (s *state) model(name, version string) *pb.ModelVersion {
	r, _ := s.get(tableModels, pairKey(name, version)).(*pb.ModelVersion)
	return r
}

func (s *state) alias(name, alias string) *pb.ModelAlias {
	r, _ := s.get(tableAliases, pairKey(name, alias)).(*pb.ModelAlias)
	return r
}

func sameModel(a, b *pb.ModelRef) bool {
	return a.GetName() == b.GetName() && a.GetVersion() == b.GetVersion() && a.GetDigest() == b.GetDigest()
}

// registerModel adds a version. Versions are immutable.
func (s *state) registerModel(e env, c *pb.RegisterModel) *pb.Result {
	m := c.GetModel()
	if m == nil {
		return invalid("model is missing")
	}
	if bad := firstBad(
		checkModelRef(m.GetRef()),
		checkDigest(m.GetRef().GetDigest()),
		checkText("uri", m.GetUri(), hastate.MaxURIBytes),
		checkText("engine", m.GetEngine(), hastate.MaxTextBytes),
		checkText("args_digest", m.GetArgsDigest(), hastate.MaxTextBytes),
		checkText("tokenizer_digest", m.GetTokenizerDigest(), hastate.MaxTextBytes),
		checkMap("adapters", m.GetAdapters(), hastate.MaxTextBytes),
		checkMap("labels", m.GetLabels(), hastate.MaxTextBytes),
		checkText("created_by", m.GetCreatedBy(), hastate.MaxTextBytes)); bad != nil {
		return bad
	}
	ref := m.GetRef()
	if cur := s.model(ref.GetName(), ref.GetVersion()); cur != nil {
		if cur.GetRef().GetDigest() == ref.GetDigest() {
			return ok()
		}
		return &pb.Result{
			Code:    pb.ResultCode_RESULT_CODE_ALREADY_EXISTS,
			Message: "version " + ref.GetVersion() + " of model " + ref.GetName() + " is registered with digest " + cur.GetRef().GetDigest(),
		}
	}
	if n := s.counts.tables[tableModels]; n >= hastate.MaxModelVersions {
		return overLimit("model versions", hastate.MaxModelVersions, uint64(n)+1)
	}
	m.Revision, m.CreatedUnixMs = s.next(), e.wall
	s.put(tableModels, pairKey(ref.GetName(), ref.GetVersion()), m)
	s.change(e, Event{Model: m})
	return ok()
}

func (s *state) setModelAlias(e env, c *pb.SetModelAlias) *pb.Result {
	if bad := firstBad(
		checkName("model name", c.GetName(), hastate.MaxNameBytes),
		checkName("alias", c.GetAlias(), hastate.MaxNameBytes),
		checkName("model version", c.GetVersion(), hastate.MaxNameBytes)); bad != nil {
		return bad
	}
	if s.model(c.GetName(), c.GetVersion()) == nil {
		return notFound("model %q version %q", c.GetName(), c.GetVersion())
	}
	cur := s.alias(c.GetName(), c.GetAlias())
	switch {
	case c.GetIfVersion() != "" && cur.GetVersion() != c.GetIfVersion():
		return conflict("alias/"+c.GetName()+"/"+c.GetAlias(), cur.GetRevision(), "the alias points to "+cur.GetVersion())
	case cur != nil && cur.GetVersion() == c.GetVersion():
		return ok()
	}
	if n := s.counts.tables[tableAliases]; cur == nil && n >= maxAliases {
		return overLimit("model aliases", maxAliases, uint64(n)+1)
	}
	a := &pb.ModelAlias{Name: c.GetName(), Alias: c.GetAlias(), Version: c.GetVersion(), Revision: s.next()}
	s.put(tableAliases, pairKey(a.GetName(), a.GetAlias()), a)
	s.change(e, Event{Alias: a})
	return ok()
}

func (s *state) deleteModelAlias(e env, c *pb.DeleteModelAlias) *pb.Result {
	if bad := firstBad(
		checkName("model name", c.GetName(), hastate.MaxNameBytes),
		checkName("alias", c.GetAlias(), hastate.MaxNameBytes)); bad != nil {
		return bad
	}
	cur := s.alias(c.GetName(), c.GetAlias())
	if cur == nil {
		return notFound("alias %q of model %q", c.GetAlias(), c.GetName())
	}
	s.del(tableAliases, pairKey(c.GetName(), c.GetAlias()))
	s.next()
	s.change(e, Event{Alias: cur, Removed: true})
	return ok()
}
