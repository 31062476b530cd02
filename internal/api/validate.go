// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The limits of this package beside those of package hastate.
const (
	maxPage         = 1000
	defaultPage     = 100
	maxPolicyMillis = 7 * 24 * 3600 * 1000
	defaultHistory  = 20
	digestPrefix    = "sha256:"
	digestDigits    = 64
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", hastate.ErrInvalid, fmt.Sprintf(format, args...))
}

func notFound(format string, args ...any) error {
	return fmt.Errorf("%w: %s", hastate.ErrNotFound, fmt.Sprintf(format, args...))
}

// first returns the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkText refuses long text, control characters and bytes that are not UTF-8.
func checkText(field, v string, maximum int) error {
	switch {
	case len(v) > maximum:
		return &hastate.LimitError{Limit: "bytes of " + field, Maximum: uint64(maximum), Actual: uint64(len(v))}
	case !utf8.ValidString(v):
		return invalid("%s is not UTF-8", field)
	case strings.ContainsFunc(v, unicode.IsControl):
		return invalid("%s has a control character", field)
	}
	return nil
}

func checkName(field, v string, maximum int) error {
	if v == "" {
		return invalid("%s is missing", field)
	}
	return checkText(field, v, maximum)
}

func checkNodeID(v string) error { return checkName("node_id", v, hastate.MaxNameBytes) }

// groupName is the name of a group as asked for: the default group if it is
// empty.
func groupName(v string) (string, error) {
	if v == "" {
		return hastate.DefaultGroup, nil
	}
	if err := checkText("group", v, hastate.MaxNameBytes); err != nil {
		return v, err
	}
	if strings.ContainsFunc(v, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}) {
		return v, invalid("group %q: a name has only letters, digits, '-', '_' and '.'", v)
	}
	return v, nil
}

func checkMap(field string, m map[string]string, maxValue int) error {
	if len(m) > hastate.MaxMapEntries {
		return &hastate.LimitError{Limit: "entries of " + field, Maximum: hastate.MaxMapEntries, Actual: uint64(len(m))}
	}
	for k, v := range m {
		if err := first(checkName("a name in "+field, k, hastate.MaxNameBytes), checkText("a value in "+field, v, maxValue)); err != nil {
			return err
		}
	}
	return nil
}

// wantsLocal checks a read level.
func wantsLocal(level pb.ReadLevel) (bool, error) {
	switch level {
	case pb.ReadLevel_READ_LEVEL_UNSPECIFIED, pb.ReadLevel_READ_LEVEL_LINEARIZABLE:
		return false, nil
	case pb.ReadLevel_READ_LEVEL_LOCAL:
		return true, nil
	}
	return false, invalid("level %d is not known: use READ_LEVEL_LINEARIZABLE or READ_LEVEL_LOCAL", level)
}

func checkRequestID(r *pb.RequestId) error {
	switch {
	case r == nil:
		return nil
	case r.GetClient() == 0 || r.GetSeq() == 0:
		return invalid("request: client and seq must not be 0; client comes from OpenClient, seq counts from 1")
	case r.GetAckedBelow() > r.GetSeq():
		return invalid("request: acked_below %d is above seq %d: a request cannot confirm itself", r.GetAckedBelow(), r.GetSeq())
	}
	return nil
}

func checkDigest(d string) error {
	digits, ok := strings.CutPrefix(d, digestPrefix)
	if !ok || len(digits) != digestDigits || strings.Trim(digits, "0123456789abcdef") != "" {
		return invalid(`digest must be "sha256:" and 64 lower-case hex digits`)
	}
	return nil
}

func checkModelRef(ref *pb.ModelRef) error {
	return first(
		checkName("model name", ref.GetName(), hastate.MaxNameBytes),
		checkName("model version", ref.GetVersion(), hastate.MaxNameBytes))
}

func millis(ms uint64) time.Duration { return time.Duration(ms) * time.Millisecond }

func checkPolicy(p *pb.GroupPolicy) error {
	if p == nil {
		return nil
	}
	if ttl := p.GetTtlMs(); ttl != 0 && (ttl < hastate.MinTTLMillis || ttl > hastate.MaxTTLMillis) {
		return invalid("policy: lease of %v: must be %v to %v, or 0 for the default",
			millis(uint64(ttl)), millis(hastate.MinTTLMillis), millis(hastate.MaxTTLMillis))
	}
	for name, ms := range map[string]uint64{
		"calm_ms": p.GetCalmMs(), "drain_ms": uint64(p.GetDrainMs()), "promote_timeout_ms": uint64(p.GetPromoteTimeoutMs()),
	} {
		if ms > maxPolicyMillis {
			return &hastate.LimitError{Limit: name, Maximum: maxPolicyMillis, Actual: ms}
		}
	}
	return checkText("preferred_zone", p.GetPreferredZone(), hastate.MaxNameBytes)
}

// checkOp checks one session operation, fills in the default group and takes
// out the request id, which belongs to the whole. It returns group and epoch.
func checkOp(op *pb.SessionOp) (group string, epoch uint64, err error) {
	switch o := op.GetOp().(type) {
	case *pb.SessionOp_Put:
		return checkPut(o.Put)
	case *pb.SessionOp_Append:
		a := o.Append
		a.Request = nil
		if a.Group, err = groupName(a.GetGroup()); err != nil {
			return "", 0, err
		}
		if n := len(a.GetData()); n > hastate.MaxSessionValueBytes {
			err = &hastate.LimitError{Limit: "bytes of data", Maximum: hastate.MaxSessionValueBytes, Actual: uint64(n)}
		}
		return a.GetGroup(), a.GetEpoch(), first(err, checkSessionID(a.GetId()), checkText("owner", a.GetOwner(), hastate.MaxTextBytes))
	case *pb.SessionOp_Delete:
		o.Delete.Request = nil
		o.Delete.Group, err = groupName(o.Delete.GetGroup())
		return o.Delete.GetGroup(), o.Delete.GetEpoch(), first(err, checkSessionID(o.Delete.GetId()))
	case *pb.SessionOp_Touch:
		o.Touch.Request = nil
		o.Touch.Group, err = groupName(o.Touch.GetGroup())
		return o.Touch.GetGroup(), o.Touch.GetEpoch(), first(err, checkSessionID(o.Touch.GetId()))
	}
	return "", 0, invalid("an operation must be one of put, append, delete and touch")
}

func checkSessionID(id string) error { return checkName("session id", id, hastate.MaxSessionIDBytes) }

func checkPut(p *pb.PutRequest) (group string, epoch uint64, err error) {
	s := p.GetSession()
	if s == nil {
		return "", 0, invalid("session is missing")
	}
	p.Request = nil
	if s.Group, err = groupName(s.GetGroup()); err != nil {
		return "", 0, err
	}
	if n := len(s.GetValue()); n > hastate.MaxSessionValueBytes {
		err = &hastate.LimitError{Limit: "bytes of value", Maximum: hastate.MaxSessionValueBytes, Actual: uint64(n)}
	}
	if p.GetIfAbsent() && p.GetIfRevision() != 0 {
		err = first(err, invalid("if_absent and if_revision exclude each other"))
	}
	return s.GetGroup(), s.GetEpoch(), first(err,
		checkSessionID(s.GetId()),
		checkText("owner", s.GetOwner(), hastate.MaxTextBytes),
		checkText("model_digest", s.GetModelDigest(), hastate.MaxTextBytes),
		checkText("adapter", s.GetAdapter(), hastate.MaxTextBytes),
		checkMap("pointers", s.GetPointers(), hastate.MaxURIBytes),
		checkMap("labels", s.GetLabels(), hastate.MaxTextBytes))
}

// checkOps checks operations that are done atomically.
func checkOps(ops []*pb.SessionOp) (group string, epoch uint64, err error) {
	if len(ops) == 0 {
		return "", 0, invalid("there is no operation")
	}
	if len(ops) > hastate.MaxBatchOps {
		return "", 0, &hastate.LimitError{Limit: "operations of a batch", Maximum: hastate.MaxBatchOps, Actual: uint64(len(ops))}
	}
	for i, op := range ops {
		g, e, err := checkOp(op)
		switch {
		case err != nil && len(ops) > 1:
			return "", 0, fmt.Errorf("operation %d: %w", i, err)
		case err != nil:
			return "", 0, err
		case i > 0 && g != group:
			return "", 0, invalid("operation %d is of group %q, the first of %q: a batch is of one group", i, g, group)
		}
		group, epoch = g, max(epoch, e)
	}
	return group, epoch, nil
}

func checkModel(m *pb.ModelVersion) error {
	if m == nil {
		return invalid("model is missing")
	}
	return first(
		checkModelRef(m.GetRef()),
		checkDigest(m.GetRef().GetDigest()),
		checkText("uri", m.GetUri(), hastate.MaxURIBytes),
		checkText("engine", m.GetEngine(), hastate.MaxTextBytes),
		checkText("args_digest", m.GetArgsDigest(), hastate.MaxTextBytes),
		checkText("tokenizer_digest", m.GetTokenizerDigest(), hastate.MaxTextBytes),
		checkMap("adapters", m.GetAdapters(), hastate.MaxTextBytes),
		checkMap("labels", m.GetLabels(), hastate.MaxTextBytes),
		checkText("created_by", m.GetCreatedBy(), hastate.MaxTextBytes))
}
